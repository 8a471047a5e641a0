"""The cgroup of a next run, made while the payload of this one is waited for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import own_cgroups
from nsbox import PIPE, Cgroup, Limits, Reason, Sandbox, _cgroup_layout
from nsbox.cgroup import remove_leftovers
from support import SOURCE, in_child

pytestmark = pytest.mark.usefixtures("cgroups")

LIMITS = Limits(memory="64M", pids=16, cpu=1.0)


def used_again() -> Sandbox:
    """Return a sandbox that has made a cgroup ahead."""
    box = Sandbox(limits=LIMITS)
    for _ in range(2):
        box.run(["/bin/true"], check=True)
    return box


def directories_of_a_run(box: Sandbox) -> set[str]:
    """Return those that the next process gets."""
    with box.spawn(["/bin/cat"], stdin=PIPE) as process:
        assert process.cgroup is not None
        return set(process.cgroup.directories)


def test_a_sandbox_used_once_makes_none() -> None:
    """It may never be used again."""
    box = Sandbox(limits=LIMITS)
    box.run(["/bin/true"], check=True)
    assert own_cgroups() == set()


def test_each_is_used_once_and_removed_with_the_sandbox() -> None:
    """The next process gets what was made ahead, those after it something new."""
    box = used_again()
    ahead = own_cgroups()
    assert directories_of_a_run(box) == ahead
    assert own_cgroups() == set()
    assert directories_of_a_run(box).isdisjoint(ahead)
    box.run(["/bin/true"], check=True)
    assert own_cgroups()
    del box
    assert own_cgroups() == set()


def test_no_figure_is_carried_over() -> None:
    """What a run has used says nothing of the next."""
    box = used_again()
    hungry = ["/bin/sh", "-c", "x=$(head -c 20000000 /dev/zero | tr '\\0' x); : & : & : & wait"]
    first = box.run(hungry).usage
    second = box.run(["/bin/true"]).usage
    for figure in ("memory_peak", "pids_peak", "cpu_time"):
        before, after = getattr(first, figure), getattr(second, figure)
        assert before is None or after < before


def test_limits_hold_in_it() -> None:
    """It is made with all settings."""
    box = used_again()
    bomb = "i=0; while [ $i -lt 40 ]; do sleep 60 & i=$((i+1)); done"
    assert box.run(["/bin/sh", "-c", bomb], stderr=subprocess.DEVNULL).reason is Reason.PIDS


def test_one_that_was_removed_is_replaced() -> None:
    """Somebody who cleans up does no harm."""
    box = used_again()
    ahead = own_cgroups()
    for path in ahead:
        os.rmdir(path)
    assert directories_of_a_run(box).isdisjoint(ahead)


def test_a_parent_can_be_closed() -> None:
    """The cgroup that was made ahead goes with the one around it."""
    with Cgroup.create() as parent:
        box = Sandbox(cgroup=parent, limits=Limits(wall_time=60))
        for _ in range(2):
            box.run(["/bin/true"], check=True)
        assert len(next(os.walk(parent.directories[0]))[1]) == 1
    assert own_cgroups() == set()


def test_no_room_for_it_is_no_error() -> None:
    """Where there may be one cgroup only, a run still gets it."""
    if _cgroup_layout.look().unified is None:
        pytest.skip("cgroup.max.descendants is v2's")
    with Cgroup.create() as parent:
        Path(parent.directories[0], "cgroup.max.descendants").write_text("1")
        box = Sandbox(cgroup=parent, limits=Limits(wall_time=60))
        for _ in range(4):
            box.run(["/bin/true"], check=True)


def test_a_fork_leaves_it_to_its_maker() -> None:
    """The child makes its own, and removes nothing of its parent's."""
    box = used_again()
    ahead = own_cgroups()

    def child() -> bool:
        own = directories_of_a_run(box).isdisjoint(ahead)
        box.run(["/bin/true"], check=True)
        return own

    assert in_child(child)
    assert remove_leftovers()  # it ended without a chance to do that
    assert own_cgroups() == ahead
    assert directories_of_a_run(box) == ahead


def test_it_is_removed_when_the_interpreter_exits() -> None:
    """Also if the sandbox is still referred to."""
    script = """if True:
        import sys, nsbox
        box = nsbox.Sandbox(limits=nsbox.Limits(pids=16))
        for _ in range(2):
            box.run(["/bin/true"], check=True)
        sys.modules["kept"] = box
        print(*box._cache._terms[1]._spares[0][1].directories)
    """
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    assert result.stderr == ""
    paths = result.stdout.split()
    assert paths
    assert not any(os.path.exists(path) for path in paths)
