"""Launchers and builders that somebody kills: the caller has its error, and does not hang."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nsbox import Cgroup, Limits, Namespace, Sandbox, SpawnError, Step
from support import in_child

pytestmark = pytest.mark.usefixtures("box")

# Kills children of a process: those that wait within a system call ("D"), the older of two, all.
_KILLER = """
import os, sys
caller, what = sys.argv[1:]
def children():
    with open(f"/proc/{caller}/task/{caller}/children") as file:
        return sorted(set(map(int, file.read().split())) - {os.getpid()})
def waits(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "D"
while True:
    pids = children()
    for pid in pids:
        try:
            if what == "all" or (waits(pid) if what == "waiting" else pid != pids[-1]):
                os.kill(pid, 9)
        except OSError:
            pass
"""

# While a process moves from one cgroup to another, nobody can fork: all wait within clone(2).
_MOVER = """
import os, sys
files = [open(f"{path}/cgroup.procs", "w") for path in sys.argv[1:]]
while True:
    for file in files:
        file.write("0")
        file.flush()
"""


@contextmanager
def helper(code: str, *args: str) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", code, *args]) as process:
        try:
            yield
        finally:
            process.kill()


def outcomes(box: Sandbox, what: str) -> set[object]:
    """Return how spawns of a caller end whose children are killed meanwhile."""

    def child() -> set[object]:
        found: set[object] = set()
        spawns = 0
        for _ in range(2):
            box.run(["/bin/true"], check=True)
        with helper(_KILLER, str(os.getpid()), what):
            while spawns < 300 or str(Step.KILLED) not in found:
                spawns += 1
                try:
                    found.add(box.run(["/bin/true"]).returncode)
                except SpawnError as error:
                    found.add(str(error.step))
        found.add(("afterwards", box.run(["/bin/true"]).returncode))
        return found

    return in_child(child)


# Whoever is killed before the maps are written has none to write to.
EXPECTED = {
    *(0, -9, ("afterwards", 0)),
    *map(str, (Step.KILLED, Step.SETGROUPS_DENY, Step.UID_MAP, Step.GID_MAP)),
}


# Half a second for each spawn, where one processor is all that they share.
@pytest.mark.one_kernel
def test_killed_within_clone(cgroups: None) -> None:
    """The kernel withdraws a descriptor that it has stored already: no child is waited for."""
    limits = Limits(pids=16)
    with (
        Cgroup.create(limits) as first,
        Cgroup.create(limits) as second,
        helper(_MOVER, first.directories[0], second.directories[0]),
    ):
        found = outcomes(Sandbox(), "waiting")
    assert found <= EXPECTED
    assert found >= {str(Step.KILLED)}


def test_killed_before_the_child_has_its_ids(root: None) -> None:
    """A child that waits for its id maps ends with the launcher that would have written them."""
    with Namespace.create("net") as net:
        found = outcomes(Sandbox(net=net), "older")
    assert found <= EXPECTED
    assert found >= {str(Step.KILLED)}


@pytest.mark.one_kernel
def test_killed_at_any_moment() -> None:
    """Whoever is killed, for a spawn or ahead of one: the next spawn succeeds."""
    found = outcomes(Sandbox(), "all")
    assert found <= EXPECTED
    assert found >= {str(Step.KILLED)}
