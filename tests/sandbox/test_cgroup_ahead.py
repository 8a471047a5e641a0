"""The cgroup of a next run, made while the payload of this one is waited for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import own_cgroups
from nsbox import PIPE, Cgroup, Limits, Process, Reason, Sandbox, SpawnError, Step, _cgroup_layout
from nsbox._spares import settle
from nsbox.cgroup import remove_leftovers
from support import SOURCE, descriptors, in_child

pytestmark = pytest.mark.usefixtures("cgroups")

LIMITS = Limits(memory="64M", pids=16, cpu=1.0)


def used_again(box: Sandbox | None = None) -> Sandbox:
    """Return a sandbox that has made a cgroup ahead."""
    box = box or Sandbox(limits=LIMITS)
    for _ in range(2):
        box.run(["/bin/true"], check=True)
    settle()
    return box


def directories_of_a_run(box: Sandbox) -> set[str]:
    """Return those that the next process gets."""
    with box.spawn(["/bin/cat"], stdin=PIPE) as process:
        directories = directories_of(process)
    settle()
    return directories


def directories_of(process: Process) -> set[str]:
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
    del box
    assert own_cgroups() == set()


def test_no_figure_is_carried_over() -> None:
    """What a run has used says nothing of the next."""
    box = used_again()
    hungry = ["/bin/sh", "-c", "x=$(head -c 5000000 /dev/zero | tr '\\0' x); : & : & : & wait"]
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


def test_what_cannot_be_removed_is_tried_again() -> None:
    """Somebody has made a cgroup in it: the next run removes both."""
    box = used_again()
    process = box.spawn(["/bin/cat"], stdin=PIPE)
    left = directories_of(process)
    for path in left:
        os.mkdir(f"{path}/inner")
    process.communicate()
    settle()
    assert own_cgroups() == left
    box.run(["/bin/true"], check=True)
    settle()
    assert own_cgroups().isdisjoint(left)


def test_figures_are_the_same_ones() -> None:
    """Read from files that were opened ahead, they have the same names and sources."""
    box = Sandbox(limits=LIMITS)
    first, *_, last = (box.run(["/bin/true"]).usage for _ in range(3))
    assert last.sources == first.sources
    assert last.memory_peak is None or last.memory_peak > 0
    assert last.pids_peak in (1, None)


@pytest.mark.parametrize("forgotten", [False, True])
def test_what_outlives_the_payload_is_killed_in_it_too(forgotten: bool) -> None:
    """With a pid namespace of the host's; when the process is waited for, and when it is not."""
    box = used_again(Sandbox(limits=LIMITS, pid="host"))
    process = box.spawn(["/bin/sh", "-c", "sleep 999 & echo; exec sleep 999"], stdout=PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"\n"
    directories = directories_of(process)
    if forgotten:
        process.stdout.close()
        with pytest.warns(ResourceWarning):
            del process
    else:
        process.kill()
        process.communicate()
    assert own_cgroups().isdisjoint(directories)


def test_its_files_are_nobody_elses() -> None:
    """Who guesses the number of an entrance cannot hand it to a payload."""
    box = used_again()
    own = own_cgroups()
    names = descriptors()
    files = [fd for fd, name in names.items() if os.path.dirname(name) in own]
    assert files
    for fd in files:
        with pytest.raises(SpawnError) as caught:
            Sandbox().run(["/bin/true"], pass_fds=[fd])
        assert caught.value.step is Step.PASS_FD
    del box


def test_a_run_with_deadlines_uses_it() -> None:
    """What processor time is counted by is opened ahead, too."""
    box = Sandbox(limits=Limits(cpu_time=0.2, pids=16))
    spin = ["/bin/sh", "-c", "while :; do :; done"]
    assert [box.run(spin).reason for _ in range(3)] == [Reason.CPU_TIME] * 3


def test_a_parent_can_be_closed() -> None:
    """The cgroup that was made ahead goes with the one around it."""
    with Cgroup.create() as parent:
        box = Sandbox(cgroup=parent, limits=Limits(wall_time=60))
        for _ in range(2):
            box.run(["/bin/true"], check=True)
        settle()
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

    def child() -> tuple[bool, set[str]]:
        own = directories_of_a_run(box).isdisjoint(ahead)
        box.run(["/bin/true"], check=True)
        settle()
        return own, own_cgroups()

    own, left = in_child(child)
    assert own
    assert left  # it ended without a chance to remove them
    remove_leftovers()
    assert not any(os.path.exists(path) for path in left)
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
        spare = box._cache.terms(box)[1]._spares[0]
        print(*(f"{part.parent}/{spare.name}" for part in spare.form.choice.parts))
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
