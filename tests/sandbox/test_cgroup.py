"""Cgroup objects: made, measured, stopped, ended and removed; and hosts on bad days."""

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from nsbox import (
    PIPE,
    Cgroup,
    CgroupError,
    Limits,
    PlanError,
    Reason,
    Sandbox,
    UnsupportedError,
    _cgroup_layout,
    _cgroup_names,
    lowlevel,
)
from nsbox.cgroup import remove_abandoned, remove_leftovers
from nsbox.lowlevel import CloneFlag, MountFlag
from support import SOURCE, enter_private_mounts, in_child, meanwhile

pytestmark = pytest.mark.usefixtures("cgroups")

LIMITS = Limits(memory="64M", pids=16, cpu=1.0)
DEADLINE = 30.0


def spinning(cgroup: Cgroup) -> Any:
    """Start a payload that uses a processor, in a cgroup."""
    return Sandbox(cgroup=cgroup).spawn(["/bin/sh", "-c", "while :; do :; done"])


# ---- objects -------------------------------------------------------------------


def test_is_made_and_removed() -> None:
    """Its directories exist as long as it is open; closing twice is no error."""
    cgroup = Cgroup.create(LIMITS)
    assert all(os.path.isdir(path) for path in cgroup.directories)
    assert cgroup.processes() == []
    assert (cgroup.events().oom_kills, cgroup.events().pids_refused) == (0, 0)
    cgroup.close()
    cgroup.close()
    assert not any(os.path.exists(path) for path in cgroup.directories)
    with pytest.raises(PlanError):
        cgroup.stats()
    with pytest.raises(TypeError):
        pickle.dumps(cgroup)


def test_limits_are_written() -> None:
    """The kernel has the values, read back from the files."""
    with Cgroup.create(Limits(memory="64M", pids=16, cpu=0.5)) as cgroup:
        text = {}
        for directory in cgroup.directories:
            for name in (
                "memory.max",
                "memory.limit_in_bytes",
                "memory.kmem.tcp.limit_in_bytes",
                "pids.max",
                "cpu.max",
                "cpu.cfs_quota_us",
                "memory.swap.max",
                "memory.memsw.limit_in_bytes",
            ):
                path = Path(directory, name)
                if path.exists():
                    text[name] = path.read_text().strip()
    assert text.pop("pids.max") == "16"
    assert text.pop("memory.max", None) in ("67108864", None)
    assert text.pop("memory.limit_in_bytes", None) in ("67108864", None)
    assert text.pop("memory.kmem.tcp.limit_in_bytes", None) in ("67108864", None)
    assert text.pop("memory.memsw.limit_in_bytes", None) in ("67108864", None)
    assert text.pop("memory.swap.max", None) in ("0", None)
    assert list(text.values()) in (["50000"], ["50000 100000"])


def test_limits_hold_for_all_runs_together() -> None:
    """Sandboxes in one cgroup share its limits."""
    with Cgroup.create(Limits(pids=2)) as cgroup:
        box = Sandbox(cgroup=cgroup, limits=Limits(pids=16))
        with box.spawn(["/bin/cat"], stdin=PIPE):
            fork = ["/bin/sh", "-c", "/bin/true; /bin/true"]
            alone = box.run(fork, stderr=subprocess.DEVNULL)
        assert alone.returncode != 0
        assert box.run(fork).returncode == 0


def test_stats_while_it_runs() -> None:
    """What is used now, and by what it was measured."""
    with Cgroup.create(LIMITS) as cgroup, spinning(cgroup) as process:
        while not cgroup.stats().cpu_time:
            pass
        stats = cgroup.stats()
        assert process.pid in cgroup.processes()
        assert stats.pids == 1
        assert stats.memory
        assert set(stats.sources) >= {"memory", "memory_anon", "memory_file", "pids", "cpu_time"}
        process.kill()


def test_what_was_abandoned_is_removed_by_several_threads() -> None:
    """Whoever finds that another was faster goes on."""

    cgroup = Cgroup.create()
    cgroup.abandon()
    with meanwhile("remove_tree", remove_abandoned):
        remove_abandoned()
    assert not any(map(os.path.exists, cgroup.directories))


def time_at_rest(cgroup: Cgroup) -> float | None:
    """Return what frozen processes have used, which stays the same while others run."""
    # They count as frozen a moment before their last time slice is accounted for.
    deadline = time.monotonic() + DEADLINE
    while True:
        used = cgroup.stats().cpu_time
        Sandbox().run(["/bin/true"])
        if cgroup.stats().cpu_time == used:
            return used
        assert time.monotonic() < deadline, "they are not frozen"


def test_freeze_and_thaw() -> None:
    """Frozen processes use no time; thawed, they go on."""
    with Cgroup.create(LIMITS) as cgroup, spinning(cgroup) as process:
        cgroup.freeze()
        before = time_at_rest(cgroup)
        cgroup.thaw()
        while cgroup.stats().cpu_time == before:
            pass
        process.kill()


def test_nothing_starts_in_what_is_frozen() -> None:
    """The spawn would wait for the thaw, whatever happens."""
    with Cgroup.create(LIMITS) as cgroup:
        box = Sandbox(cgroup=cgroup)
        cgroup.freeze()
        assert cgroup.frozen
        with pytest.raises(PlanError, match="thaw"):
            box.run(["/bin/true"])
        cgroup.thaw()
        assert not cgroup.frozen
        assert box.run(["/bin/true"]).returncode == 0


def test_freeze_that_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is undone."""

    def interrupt(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    with Cgroup.create(LIMITS) as cgroup, spinning(cgroup) as process:
        for name in ("await_event", "look_again"):
            monkeypatch.setattr(f"nsbox.cgroup.{name}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            cgroup.freeze()
        before = cgroup.stats().cpu_time
        while cgroup.stats().cpu_time == before:
            pass
        process.kill()


@pytest.mark.parametrize("end", ["thaw", "kill", "close"])
def test_freeze_meanwhile(end: str) -> None:
    """Whoever waits until it has stopped hears at once that another thread wants otherwise."""
    cgroup = Cgroup.create(LIMITS)
    with spinning(cgroup), cgroup:
        with meanwhile("look_again", getattr(cgroup, end)):
            cgroup.freeze()
        assert cgroup.frozen == (end == "kill")


def test_thaw_meanwhile() -> None:
    """Likewise, the other way round."""
    cgroup = Cgroup.create(LIMITS)
    with spinning(cgroup), cgroup:
        cgroup.freeze()
        with meanwhile("look_again", cgroup.freeze):
            cgroup.thaw()
        assert cgroup.frozen


def test_kill_of_what_is_frozen() -> None:
    """kill() ends everything, frozen or not."""
    with Cgroup.create(LIMITS) as cgroup, spinning(cgroup) as process:
        cgroup.freeze()
        cgroup.kill()
        assert process.wait(DEADLINE) == -signal.SIGKILL
        assert process.reason is Reason.SIGNAL


def test_close_ends_everything() -> None:
    """Closing kills, waits and removes, with the cgroups of runs inside."""
    cgroup = Cgroup.create(LIMITS)
    process = spinning(cgroup)
    cgroup.close()
    assert process.wait(DEADLINE) == -signal.SIGKILL
    assert not os.path.exists(cgroup.directories[0])


def test_forgotten() -> None:
    """A Cgroup that nobody holds any more is removed, with a warning."""
    cgroup = Cgroup.create(LIMITS)
    directories = cgroup.directories
    with pytest.warns(ResourceWarning, match="not closed"):
        del cgroup
    assert not any(os.path.exists(path) for path in directories)


@pytest.mark.parametrize("name", ["wall_time", "output", "cpu_time", "open_files", "nice"])
def test_limits_of_a_run_are_not_for_cgroups(name: str) -> None:
    """What no controller keeps is refused here."""
    with pytest.raises(PlanError, match=name):
        Cgroup.create(Limits(**{name: 10}))  # type: ignore[arg-type]


def test_enable_wants_a_parent() -> None:
    """Which cgroup may be changed has to be said."""
    with pytest.raises(PlanError, match="enable"):
        Cgroup.create(enable=True)


def test_a_parent_that_is_no_cgroup(tmp_path: Path) -> None:
    """A directory elsewhere cannot be meant."""
    with pytest.raises(PlanError, match=str(tmp_path)):
        Sandbox(cgroup=tmp_path).run(["/bin/true"])


# ---- bad days ------------------------------------------------------------------


def test_parent_is_removed_meanwhile() -> None:
    """A sandbox whose place is gone says so, and does not run elsewhere."""
    cgroup = Cgroup.create(LIMITS)
    box = Sandbox(cgroup=list(cgroup.directories), limits=Limits(pids=4))
    try:
        box.run(["/bin/true"], check=True)
    except UnsupportedError:
        assert _cgroup_layout.look().kind == "v2"  # its controllers are not enabled for children
    cgroup.close()
    with pytest.raises((UnsupportedError, CgroupError)) as caught:
        box.run(["/bin/true"])
    assert cgroup.name in str(caught.value)


def test_parent_object_is_closed() -> None:
    """A closed Cgroup is no place."""
    cgroup = Cgroup.create(LIMITS)
    cgroup.close()
    with pytest.raises(PlanError, match="closed"):
        Sandbox(cgroup=cgroup).run(["/bin/true"])


def test_parent_is_full() -> None:
    """Where no more cgroups may be made, the error names the file and the setting."""
    if _cgroup_layout.look().unified is None:
        pytest.skip("cgroup.max.descendants is v2's")
    with Cgroup.create(LIMITS) as cgroup:
        Path(cgroup.directories[0], "cgroup.max.descendants").write_text("0")
        with pytest.raises(CgroupError) as caught:
            Sandbox(cgroup=cgroup).run(["/bin/true"])
        assert caught.value.errno == errno.EAGAIN
        assert "cgroup.max.descendants" in str(caught.value)


def test_no_internal_processes() -> None:
    """On v2, a cgroup with processes cannot hand on controllers, not even if asked to."""
    unified = _cgroup_layout.look().unified
    if unified is None or "memory" not in unified.controllers:
        pytest.skip("needs controllers on v2")
    if unified.directory in (None, unified.mount):
        pytest.skip("the rule does not hold for the root")
    assert unified.directory is not None
    with pytest.raises(CgroupError) as caught:
        Cgroup.create(LIMITS, parent=unified.directory, enable=True)
    assert caught.value.errno == errno.EBUSY


def test_read_only_mounts(root: None) -> None:
    """A read-only cgroup file system is named, with the command that changes it."""

    def attempt() -> str:
        enter_private_mounts()
        for hierarchy in _cgroup_layout.look().hierarchies:
            flags = MountFlag.MS_REMOUNT | MountFlag.MS_BIND | MountFlag.MS_RDONLY
            lowlevel.mount(None, hierarchy.mount, None, flags)
        try:
            Sandbox(limits=Limits(pids=4)).run(["/bin/true"])
        except UnsupportedError as error:
            degraded = Limits(pids=4, degrade={"pids"})
            result = Sandbox(limits=degraded).run(["/bin/true"])
            return f"{error} {set(result.degraded)} {result.returncode}"
        return "no error"

    text = in_child(attempt)
    assert "'pids'" in text
    assert "read-only" in text
    assert "mount -o remount,rw /" in text
    assert text.endswith("{'pids'} 0")


def test_will_not_become_empty(root: None) -> None:
    """A process that cannot die makes close() fail; when it can, closing works."""
    freezer = _cgroup_layout.look().holder("freezer")
    if freezer is None:
        pytest.skip("needs the v1 freezer, whose frozen processes do not die")
    other = Path(f"{freezer.directory}/test.{os.getpid()}")
    other.mkdir()
    cgroup = Cgroup.create(LIMITS)
    process = Sandbox(cgroup=cgroup).spawn(["/bin/cat"], stdin=PIPE)
    try:
        (other / "cgroup.procs").write_text(str(process.pid))
        (other / "freezer.state").write_text("FROZEN")
        with pytest.raises(CgroupError) as caught:
            cgroup.remove(0.3)
        assert caught.value.errno == errno.EBUSY
        assert not cgroup.closed
    finally:
        (other / "freezer.state").write_text("THAWED")
        cgroup.close()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
        other.rmdir()


def test_a_limit_kills_no_other_cgroup_when_its_own_was_closed() -> None:
    """What descriptor has the closed one's number by then does not matter."""
    with (
        Cgroup.create(LIMITS) as other,
        Sandbox(cgroup=other).spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE) as bystander,
    ):
        limits = Limits(pids=16, wall_time=0.2)
        with Sandbox(limits=limits).spawn(["/bin/sleep", "60"]) as process:
            assert process.cgroup is not None
            os.dup2(other.fileno(), process.cgroup.fileno(), inheritable=False)
        assert process.reason is Reason.WALL_TIME
        assert bystander.communicate(b"text") == (b"text", None)


def test_a_forgotten_one_is_removed_when_its_warning_is_an_error() -> None:
    """Under "python -W error" the warning is raised, but nothing stays."""

    def child() -> list[str]:
        cgroup = Cgroup.create(LIMITS)
        directories, texts = cgroup.directories, []
        sys.unraisablehook = lambda raised: texts.append(str(raised.exc_value))
        warnings.simplefilter("error")
        del cgroup
        assert not any(map(os.path.exists, directories))
        return texts

    (text,) = in_child(child)
    assert "was not closed" in text


def test_that_of_a_sandbox_does_not_warn_for_it() -> None:
    """In a cycle it may be finalised first; what the user has made is the process."""
    with Sandbox(limits=LIMITS).spawn(["/bin/sleep", "60"]) as process:
        assert process.cgroup is not None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            process.cgroup.__del__()
        assert not caught
        assert process.wait() == -signal.SIGKILL


# ---- what dead callers leave ---------------------------------------------------------

CALLER = """if True:
    import nsbox, sys
    cgroup = nsbox.Cgroup.create(nsbox.Limits(pids=16))
    process = nsbox.Sandbox(cgroup=cgroup, limits=nsbox.Limits(pids=8)).spawn(
        ["/bin/cat"], stdin=nsbox.PIPE)
    print(*cgroup.directories, *process.cgroup.directories, flush=True)
    sys.stdin.read()
"""


def caller() -> tuple["subprocess.Popen[str]", list[str]]:
    """Start a program that uses cgroups; return it and their directories."""
    process = subprocess.Popen(
        [sys.executable, "-c", CALLER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    assert process.stdout is not None
    return process, process.stdout.readline().split()


def test_leftovers_of_dead_callers_are_removed_and_only_those() -> None:
    """A caller that was killed leaves cgroups; the next finds them by their names."""
    alive, kept = caller()
    assert kept
    highest, removed = {"none yet"}, set[str]()
    try:
        # Whoever else makes a cgroup on this machine removes them, too, and may be the first.
        while not highest <= removed:
            dead, left = caller()
            assert left
            dead.kill()
            dead.communicate()
            # With a cgroup goes what is below it.
            highest = {path for path in left if os.path.dirname(path) not in left}
            removed = set(remove_leftovers())
            assert not any(os.path.exists(path) for path in left)
        assert all(os.path.isdir(path) for path in kept)
    finally:
        alive.communicate("")
        remove_leftovers()
    assert not any(os.path.exists(path) for path in kept)


def test_a_living_caller_is_not_taken_for_dead_below_a_foreign_proc(root: None) -> None:
    """In a pid namespace without a /proc of its own, numbers there are of other processes."""

    def init() -> bool:
        with Cgroup.create(Limits(pids=16)) as cgroup:
            in_child(remove_leftovers)
            return all(map(os.path.isdir, cgroup.directories))

    def child() -> bool:
        lowlevel.unshare(CloneFlag.CLONE_NEWPID)
        return in_child(init)

    assert in_child(child)


def test_a_fork_with_the_same_id_is_another_owner(root: None) -> None:
    """Both are PID 1, each in a pid namespace of its own."""

    def owner() -> tuple[int, _cgroup_names.Owner | None]:
        return os.getpid(), _cgroup_names.parse(_cgroup_names.new_name())

    def init() -> list[tuple[int, _cgroup_names.Owner | None]]:
        first = owner()
        lowlevel.unshare(CloneFlag.CLONE_NEWPID)
        return [first, in_child(owner)]

    def child() -> list[tuple[int, _cgroup_names.Owner | None]]:
        lowlevel.unshare(CloneFlag.CLONE_NEWPID)
        return in_child(init)

    (outer, above), (inner, below) = in_child(child)
    assert outer == inner == 1
    assert above != below


_HOOK = """
import os
os.register_at_fork(after_in_child=lambda: print(parse(new_name()).pid == os.getpid(), flush=True))
from nsbox._cgroup_names import new_name, parse
new_name()
if (pid := os.fork()) == 0:
    os._exit(0)
os.waitpid(pid, 0)
"""


def test_name_in_a_fork_whose_first_hook_is_the_programs() -> None:
    """Its cgroups have its name, and not those that its parent makes next."""
    command = [sys.executable, "-c", _HOOK]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert result.stdout == "True\n"


def test_a_living_caller_is_not_taken_for_dead_where_proc_hides_it(root: None) -> None:
    """With /proc mounted hidepid=, other users' processes are not in it."""
    name = _cgroup_names.new_name()

    def child() -> bool:
        enter_private_mounts()
        lowlevel.mount("proc", "/proc", "proc", 0, "hidepid=2")
        os.setresgid(4711, 4711, 4711)
        os.setgroups([])
        os.setresuid(4711, 4711, 4711)
        assert not os.path.exists(f"/proc/{os.getppid()}")
        return _cgroup_names.is_left_over(name)

    assert in_child(child) is False


def test_the_next_user_removes_leftovers() -> None:
    """Making a cgroup is enough; nobody has to ask."""
    dead, left = caller()
    dead.kill()
    dead.communicate()
    code = "import nsbox; nsbox.Cgroup.create(nsbox.Limits(pids=3)).close()"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert not any(os.path.exists(path) for path in left)
