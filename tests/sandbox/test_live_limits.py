"""Limits of a live sandbox as a whole and of each command in it; freezing, figures, the end."""

import errno
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest

import nsbox
from nsbox import (
    PIPE,
    Cgroup,
    FileError,
    Limits,
    Live,
    PlanError,
    Process,
    Reason,
    Sandbox,
    SpawnError,
    TimeoutExpired,
    UnsupportedError,
)
from nsbox._fence import Fence
from support import (
    CHILD_DEADLINE,
    PYTHON,
    ends,
    in_child,
    in_time,
    interruptions,
    meanwhile,
    no_descriptors,
    python_box,
    running,
    stdout_of,
)

pytestmark = pytest.mark.usefixtures("box")

PACKAGE = os.path.dirname(nsbox.__file__)
_PATIENCE = 10.0  # of freeze()
_FILL = "data = []\nwhile True: data.append(bytearray(1 << 20))"
_SPIN = "while True: pass"
_DAEMON = "sleep 1000 > /dev/null 2>&1 & echo $!"


def started(live: Live, code: str = "") -> AbstractContextManager[Process]:
    """Let Python code run until it is killed, as at the end of the with block."""
    return running(live, f"import os, signal\nos.write(1, b'x')\n{code or 'signal.pause()'}")


# ---- of each command --------------------------------------------------------


@pytest.mark.usefixtures("cgroups")
def test_memory_of_a_command() -> None:
    """A command that uses up its own memory is ended for it; the next is not."""
    with python_box().open() as live:
        result = live.run([*PYTHON, _FILL], limits=Limits(memory="32M"))
        assert (result.returncode, result.reason) == (-signal.SIGKILL, Reason.MEMORY)
        assert result.usage.oom_kills
        assert result.usage.memory_peak is not None
        result = live.run([*PYTHON, "x = bytearray(40 << 20)"])
        assert (result.returncode, result.reason) == (0, Reason.EXIT)


@pytest.mark.usefixtures("cgroups")
def test_pids_of_a_command() -> None:
    """A command that may not fork says so; its neighbours may."""
    fork = "import os\nfor _ in range(20):\n if not os.fork(): os._exit(0)"
    with python_box().open() as live:
        assert live.run([*PYTHON, fork], limits=Limits(pids=4), stderr=-3).reason is Reason.PIDS
        assert live.run([*PYTHON, fork]).reason is Reason.EXIT


@pytest.mark.usefixtures("cgroups")
def test_ids_of_a_command_with_limits() -> None:
    """Who asks for ids outlives the thread of the init that started it in a cgroup."""
    limits = Limits(memory="64M")
    with Sandbox().open() as live:
        gid = int(live.run(["id", "-g"], stdout=PIPE).stdout)
        result = live.run(["/bin/sh", "-c", "id -g"], stdout=PIPE, group=gid, limits=limits)
        assert (result.returncode, int(result.stdout)) == (0, gid)


@pytest.mark.usefixtures("cgroups")
def test_times_of_a_command() -> None:
    """Deadlines of a command begin with it, and end it alone."""
    with python_box().open() as live, started(live) as other:
        result = live.run([*PYTHON, _SPIN], limits=Limits(cpu_time=0.05))
        assert (result.returncode, result.reason) == (-signal.SIGKILL, Reason.CPU_TIME)
        result = live.run(["/bin/sleep", "1000"], limits=Limits(wall_time=0.05))
        assert (result.returncode, result.reason) == (-signal.SIGKILL, Reason.WALL_TIME)
        assert other.poll() is None


@pytest.mark.usefixtures("cgroups")
def test_all_of_a_command_ends_with_its_limits() -> None:
    """With limits, what a command leaves behind ends with it; without, it lives on."""
    with Sandbox().open() as live:
        command = ["/bin/sh", "-c", _DAEMON]
        live.run(command, limits=Limits(pids=10), stdout=subprocess.DEVNULL)
        assert live.processes() == []
        live.run(command, stdout=subprocess.DEVNULL)
        assert len(live.processes()) == 1


@pytest.mark.usefixtures("cgroups")
def test_output_of_a_command() -> None:
    """A command that writes more than may be captured is killed."""
    with Sandbox().open() as live:
        result = live.run(
            ["/bin/cat", "/dev/zero"], limits=Limits(output="10K"), capture_output=True
        )
        assert (len(result.stdout), result.reason) == (10240, Reason.OUTPUT)


def test_resource_limits_of_a_command() -> None:
    """Limits of single processes need no cgroup, and hold for the command that has them."""
    limits = Limits(open_files=17, file_size=4096, stack="1M", nice=5)
    code = (
        "import json, os, resource as r; print(json.dumps([r.getrlimit(r.RLIMIT_NOFILE), "
        "r.getrlimit(r.RLIMIT_FSIZE), r.getrlimit(r.RLIMIT_STACK), os.nice(0)]))"
    )
    with python_box().open() as live:
        result = live.run([*PYTHON, code], limits=limits, capture_output=True, text=True)
        assert result.stdout == "[[17, 17], [4096, 4096], [1048576, 1048576], 5]\n"
        result = live.run([*PYTHON, code], capture_output=True, text=True)
        assert "[17, 17]" not in result.stdout


def test_resource_limits_of_the_whole() -> None:
    """Those of the sandbox hold for each command, which may have stricter ones only."""
    code = "import resource as r; print(r.getrlimit(r.RLIMIT_NOFILE)[1])"
    with python_box(limits=Limits(open_files=30)).open() as live:
        for limits, expected in (
            (None, 30),
            (Limits(open_files=20), 20),
            (Limits(open_files=40), 30),
        ):
            result = live.run([*PYTHON, code], limits=limits, capture_output=True)
            assert int(result.stdout) == expected


@pytest.mark.usefixtures("cgroups")
def test_memory_below_what_starting_needs() -> None:
    """A limit too small to start with is an error, and the sandbox goes on."""
    with Sandbox().open() as live:
        try:
            result = live.run(["/bin/true"], limits=Limits(memory=4096))
        except SpawnError:
            pass
        else:
            assert result.reason is Reason.MEMORY
        assert live.run(["/bin/true"]).returncode == 0


@pytest.mark.usefixtures("no_cgroups")
def test_no_place_for_a_command() -> None:
    """Where there is no place for a cgroup, a limit that needs one is refused; nothing starts."""
    with Sandbox().open() as live:
        for limits in (Limits(memory="64M"), Limits(wall_time=1)):
            with pytest.raises(UnsupportedError):
                live.run(["/bin/true"], limits=limits)
        assert live.run(["/bin/true"], limits=Limits(open_files=20)).returncode == 0


@pytest.mark.parametrize("value", [1, "64M", {"memory": 1}])
def test_no_limits(value: object) -> None:
    """What is no Limits is refused."""
    with Sandbox().open() as live, pytest.raises(TypeError, match="limits"):
        live.run(["/bin/true"], limits=value)  # type: ignore[arg-type]


# ---- of the whole -------------------------------------------------------------


@pytest.mark.usefixtures("cgroups")
def test_memory_of_the_whole() -> None:
    """All commands together stay below the limit of the whole; who is killed for it says so."""
    with python_box(limits=Limits(memory="64M")).open() as live:
        with started(live, "data = b'x' * (8 << 20)\nsignal.pause()") as other:
            result = live.run([*PYTHON, _FILL])
            assert (result.returncode, result.reason) == (-signal.SIGKILL, Reason.MEMORY)
            assert other.poll() is None
            other.kill()
            other.wait()
            assert other.reason is Reason.SIGNAL
        assert live.run(["/bin/true"]).reason is Reason.EXIT
        assert live.stats().memory_peak is not None


@pytest.mark.usefixtures("cgroups")
def test_memory_of_a_command_below_that_of_the_whole() -> None:
    """Both limits hold, and the one that is met first ends the command."""
    with python_box(limits=Limits(memory="256M")).open() as live:
        result = live.run([*PYTHON, _FILL], limits=Limits(memory="32M"))
        assert result.reason is Reason.MEMORY
        assert result.usage.memory_peak is not None
        assert result.usage.memory_peak <= 32 << 20


@pytest.mark.usefixtures("cgroups")
def test_pids_of_the_whole() -> None:
    """A command that is refused a process because of the limit of the whole says so."""
    fork = "import os\nfor _ in range(20):\n if not os.fork(): signal.pause()"
    with python_box(limits=Limits(pids=8)).open() as live:
        result = live.run([*PYTHON, f"import signal\n{fork}"], stderr=subprocess.DEVNULL)
        assert result.reason is Reason.PIDS


def test_wall_time_of_the_whole() -> None:
    """At the deadline of the whole everything ends, and every command says why."""

    def attempt(wall_time: float) -> list[Process] | None:
        processes: list[Process] = []
        with Sandbox(limits=Limits(wall_time=wall_time)).open() as live:
            with suppress(SpawnError):
                while len(processes) < 2:
                    processes.append(live.spawn(["/bin/sleep", "1000"]))
            for process in processes:
                assert process.wait() == -signal.SIGKILL
                assert process.reason is Reason.WALL_TIME
            with pytest.raises(SpawnError, match="ended"):
                live.run(["/bin/true"])
        return processes if len(processes) == 2 else None

    in_time(attempt)


@pytest.mark.usefixtures("cgroups")
def test_cpu_time_of_the_whole() -> None:
    """The processor time of all commands together is counted, of those that ended too."""
    burn = "import time\nwhile time.process_time() < 0.1: pass"
    with (
        python_box(limits=Limits(cpu_time=0.3)).open() as live,
        live.spawn(["/bin/sleep", "1000"]) as bystander,
    ):
        reasons: list[Reason] = []
        with suppress(SpawnError):  # the limit may be noticed between two commands
            while bystander.poll() is None:
                assert len(reasons) < 1000, "it is not counted together"
                reasons.append(live.run([*PYTHON, burn]).reason)
        assert set(reasons) <= {Reason.EXIT, Reason.CPU_TIME}
        assert bystander.wait() == -signal.SIGKILL
        assert bystander.reason is Reason.CPU_TIME


@pytest.mark.usefixtures("cgroups")
def test_output_of_the_whole() -> None:
    """The limit of output is for each command; a command's own may only be smaller."""
    with Sandbox(limits=Limits(output=1000)).open() as live:
        for limits, most in ((None, 1000), (Limits(output=10), 10), (Limits(output=5000), 1000)):
            result = live.run(["/bin/cat", "/dev/zero"], limits=limits, capture_output=True)
            assert (len(result.stdout), result.reason) == (most, Reason.OUTPUT)


@pytest.mark.usefixtures("cgroups")
def test_daemon_in_a_limited_whole() -> None:
    """In a whole with limits, too, what a command leaves behind lives on, and ends with it all."""
    with Sandbox(limits=Limits(pids=20)).open() as live:
        for count in range(1, 4):
            live.run(["/bin/sh", "-c", _DAEMON], stdout=subprocess.DEVNULL)
            assert len(live.processes()) == count
        for pid in live.processes():
            os.kill(pid, signal.SIGKILL)


@pytest.mark.usefixtures("cgroups")
def test_command_that_ends_while_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cgroup goes with the whole: nobody has to remove it when the interpreter has ended."""
    live = Sandbox(limits=Limits(pids=20)).open()
    remove = Cgroup.remove_if_empty
    left = []

    def close_first(cgroup: Cgroup) -> bool:
        left.append(cgroup)
        live.close()
        return remove(cgroup)

    monkeypatch.setattr(Cgroup, "remove_if_empty", close_first)
    assert live.run(["/bin/true"]).returncode == 0
    assert [cgroup.closed for cgroup in left] == [True]


@pytest.mark.usefixtures("cgroups")
def test_killed_by_itself() -> None:
    """A command that was killed by nobody's limit does not blame one."""
    with Sandbox(limits=Limits(memory="64M", pids=20, wall_time=1000)).open() as live:
        result = live.run(["/bin/sh", "-c", "kill -9 $$"])
        assert (result.returncode, result.reason) == (-signal.SIGKILL, Reason.SIGNAL)


@pytest.mark.usefixtures("cgroups")
def test_earlier_command_is_not_blamed() -> None:
    """What ended one command is no reason for another."""
    with python_box(limits=Limits(memory="32M")).open() as live:
        assert live.run([*PYTHON, _FILL]).reason is Reason.MEMORY
        with started(live) as process:
            process.kill()
        assert process.reason is Reason.SIGNAL
        with started(live) as process:
            live.kill()
            process.wait()
        assert process.reason is Reason.SIGNAL


@pytest.mark.usefixtures("cgroups")
def test_given_cgroup() -> None:
    """The whole goes into the cgroup that the sandbox names."""
    with (
        Cgroup.create(Limits(pids=50)) as jobs,
        python_box(cgroup=jobs).open() as live,
        started(live) as process,
    ):
        assert process.pid in jobs.processes()


# ---- processes, figures -------------------------------------------------------


def test_processes() -> None:
    """All processes are listed, however they were started, without the init."""
    with Sandbox().open() as live:
        assert live.processes() == []
        with live.spawn(["/bin/sh", "-c", _DAEMON + "; wait"], stdout=PIPE) as process:
            stdout_of(process).readline()
            assert process.pid in live.processes()
            assert len(live.processes()) == 2
            process.kill()
        # The subshell between has been waited for: an orphan is all that is left of the command.
        live.run(["/bin/sh", "-c", f"({_DAEMON}); :"], stdout=subprocess.DEVNULL)
        assert len(live.processes()) == 2


# Keeps a process on its way out: the first of a pid namespace, which waits for the others of
# it, one of which has a tracer that does not let it go.
_DYING = """
import ctypes, os, signal
CLONE_NEWUSER, CLONE_NEWPID, PTRACE_SEIZE, PF_EXITING = 0x10000000, 0x20000000, 0x4206, 4
libc = ctypes.CDLL(None)
assert libc.unshare(CLONE_NEWUSER | CLONE_NEWPID) == 0
reader, writer = os.pipe()
first = os.fork()
if first == 0:
    if os.fork():
        os.write(writer, b"x")
    signal.pause()
os.read(reader, 1)
other = int(open(f"/proc/{first}/task/{first}/children").read())
assert libc.ptrace(PTRACE_SEIZE, other, 0, 0) == 0
os.kill(first, signal.SIGKILL)
while not int(open(f"/proc/{first}/stat").read().rpartition(")")[2].split()[6]) & PF_EXITING:
    pass
while open(f"/proc/{other}/stat").read().rpartition(")")[2].split()[0] != "Z":
    pass
os.write(1, b"x")
signal.pause()
"""


def test_processes_on_their_way_out() -> None:
    """What is ending is none of them any more."""
    box = python_box(user_namespaces=True, seccomp=None)
    with box.open() as live, running(live, _DYING) as process:
        assert live.processes() == [process.pid]


def test_processes_without_descriptors() -> None:
    """Whoever cannot read the list now is told so, and reads it later."""
    with Sandbox().open() as live:
        with no_descriptors(), pytest.raises(FileError, match="RLIMIT_NOFILE") as caught:
            live.processes()
        assert caught.value.errno == errno.EMFILE
        assert live.processes() == []


@pytest.mark.usefixtures("cgroups")
def test_stats() -> None:
    """Figures are those of everything in it, of what has ended too."""
    with python_box(limits=Limits(memory="128M")).open() as live:
        live.run([*PYTHON, "import time\nwhile time.process_time() < 0.1: pass"])
        stats = live.stats()
        assert stats.cpu_time is not None
        assert stats.cpu_time >= 0.1
        assert stats.memory_peak


@pytest.mark.usefixtures("no_cgroups")
def test_no_stats() -> None:
    """Without a cgroup there are no figures; the error says what is missing."""
    with Sandbox().open() as live:
        for act in (live.stats, live.freeze):
            with pytest.raises(UnsupportedError, match="cgroup"):
                act()


# ---- freezing -------------------------------------------------------------------

_COUNT = "n = 0\nwhile True:\n n += 1\n os.pwrite(2, b'%d' % n, 0)"


@pytest.mark.usefixtures("cgroups")
def test_freeze(tmp_path: Path) -> None:
    """What is frozen does nothing; thawed, it goes on."""
    with python_box().open() as live, open(tmp_path / "count", "w+b") as file:
        code = f"import os\nos.write(1, b'x')\n{_COUNT}"
        with running(live, code, stderr=file):
            _await_change(file.fileno(), b"")
            live.freeze()
            assert live.frozen
            seen = os.pread(file.fileno(), 100, 0)
            for _ in range(5):
                subprocess.run(["/bin/true"], check=True)  # others get the processor meanwhile
            assert os.pread(file.fileno(), 100, 0) == seen
            live.freeze()  # without effect the second time
            live.thaw()
            assert not live.frozen
            _await_change(file.fileno(), seen)


def _await_change(fd: int, seen: bytes) -> None:
    deadline = time.monotonic() + 60
    while os.pread(fd, 100, 0) == seen:
        assert time.monotonic() < deadline
        os.sched_yield()


@pytest.mark.one_kernel
@pytest.mark.usefixtures("cgroups")
def test_freeze_that_is_interrupted() -> None:
    """Wherever an exception ends it, the sandbox says whether it is frozen."""
    number = 0
    with Sandbox().open() as live:
        for _ in interruptions(live.freeze, PACKAGE):
            number += 1
            if live.frozen:
                live.thaw()
            assert live.run(["/bin/true"]).returncode == 0
    assert number > 30


@pytest.mark.usefixtures("cgroups")
@pytest.mark.parametrize("end", ["thaw", "kill", "close"])
def test_freeze_meanwhile(end: str) -> None:
    """Whoever waits until it has stopped hears at once that another thread wants otherwise."""
    live = python_box().open()
    with started(live, _SPIN), live:
        began = time.monotonic()
        with meanwhile("look_again", getattr(live, end)):
            live.freeze()
        assert time.monotonic() - began < _PATIENCE
        assert not live.frozen


@pytest.mark.usefixtures("cgroups")
def test_freeze_of_what_was_killed() -> None:
    """It would not die, on cgroup v1."""
    live = python_box().open()
    with started(live, _SPIN) as process, live:
        with meanwhile("_set_frozen", live.kill):
            live.freeze()
        assert process.wait() == -signal.SIGKILL


@pytest.mark.usefixtures("cgroups")
@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("_turn", Live.freeze),
        ("_turn", Live.thaw),
        ("required", Live.stats),
        ("make", lambda live: live.run(["/bin/true"], limits=Limits(pids=5))),
    ],
)
def test_closed_meanwhile(name: str, act: Callable[[Live], object]) -> None:
    """What fails because another thread closes the sandbox says so."""
    closed = pytest.raises(PlanError, match="the sandbox is closed")
    with Sandbox().open() as live, closed, meanwhile(name, live.close):
        act(live)


@pytest.mark.usefixtures("cgroups")
def test_while_frozen() -> None:
    """Commands and files wait for nobody: they are errors that say what to do."""
    with Sandbox().open() as live:
        live.freeze()
        for act in (
            lambda: live.run(["/bin/true"]),
            lambda: live.spawn(["/bin/true"]),
            lambda: live.read_file("/etc/passwd"),
            lambda: live.write_file("/tmp/x", b""),
            lambda: live.copy_in("/etc/passwd", "/tmp/x"),
            lambda: live.copy_out("/etc/passwd", "/tmp/never"),
        ):
            with pytest.raises(PlanError, match="thaw"):
                act()
        assert live.processes() == []
        assert live.changes() == []
        live.thaw()
        assert live.run(["/bin/true"]).returncode == 0


@pytest.mark.usefixtures("cgroups")
@pytest.mark.parametrize("options", [{}, {"capture_output": True}, {"pty": (24, 80)}])
@pytest.mark.parametrize("signals", [False, True])
def test_timeout_of_a_command_that_a_freeze_overtakes(
    monkeypatch: pytest.MonkeyPatch, signals: bool, options: dict[str, Any]
) -> None:
    """It was asked for before the freeze, and its init has not read that: it is never started."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    if signals:
        signal.setitimer(signal.ITIMER_REAL, 0.3, 0.3)
    try:
        _overtake(monkeypatch, options)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _overtake(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    with Sandbox(limits=Limits(wall_time=CHILD_DEADLINE)).open() as live:
        live.write_file("/tmp/mark", b"")
        with monkeypatch.context() as patch:
            patch.setattr(live, "_check_active", lambda: None)
            live.freeze()
            with pytest.raises(TimeoutExpired):
                live.run(["/bin/rm", "/tmp/mark"], timeout=0.05, **options)
        live.thaw()
        assert live.run(["/bin/ls", "/tmp/mark"]).returncode == 0


@pytest.mark.usefixtures("cgroups")
@pytest.mark.parametrize("end", ["close", "kill", "limit"])
def test_end_while_frozen(end: str) -> None:
    """What is frozen can be ended, in each way."""

    def attempt(wall_time: float) -> Process | None:
        with Sandbox(limits=Limits(wall_time=wall_time) if end == "limit" else None).open() as live:
            try:
                process = live.spawn(["/bin/sleep", "1000"])
            except SpawnError:
                return None
            live.freeze()
            froze = process.poll() is None
            if end == "kill":
                live.kill()
            elif end == "close":
                live.close()
            assert process.wait() == -signal.SIGKILL
        return process if froze else None

    process = in_time(attempt)
    assert process.reason is (Reason.WALL_TIME if end == "limit" else Reason.SIGNAL)


@pytest.mark.usefixtures("cgroups")
@pytest.mark.parametrize("act", ["close", "kill"])
def test_end_while_a_handler_closes(act: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a signal handler has closed meanwhile is closed, and that is no error."""
    live = Sandbox(limits=Limits(pids=100)).open()
    step = "_removed_at_once" if act == "close" else "kill"
    original = getattr(Cgroup, step)

    def interrupted(cgroup: Cgroup) -> object:
        with monkeypatch.context() as patch:
            patch.setattr(Cgroup, step, original)
            live.close()
        return original(cgroup)

    monkeypatch.setattr(Cgroup, step, interrupted)
    getattr(live, act)()
    assert live.closed


@pytest.mark.one_kernel
@pytest.mark.usefixtures("cgroups")
def test_threads_that_close() -> None:
    """Whoever comes second finds it closed, at whatever moment he comes."""
    for _ in range(30):
        live = Sandbox(limits=Limits(pids=100)).open()
        with ThreadPoolExecutor(4) as threads:
            begin = threading.Barrier(4)

            def close(act: Callable[[], None], begin: threading.Barrier = begin) -> None:
                begin.wait()
                act()

            list(threads.map(close, [live.close, live.kill, live.kill, live.close]))


_STARVE = """
cpu = min(os.sched_getaffinity(0))
# The flag is set already, and not to be taken away.
os.sched_setscheduler(1, os.SCHED_IDLE | os.SCHED_RESET_ON_FORK, os.sched_param(0))
os.setpriority(os.PRIO_PROCESS, 1, 19)
for pid in (0, 1): os.sched_setaffinity(pid, {cpu})
for _ in range(100):
    if os.fork() == 0:
        while True: pass
signal.pause()
"""


@pytest.mark.usefixtures("cgroups")
@pytest.mark.parametrize("end", ["close", "kill"])
def test_end_of_an_init_that_is_starved(end: str) -> None:
    """What leaves no processor to the init ends with it all the same, and at once."""
    with (
        python_box(limits=Limits(cpu=0.5, pids=200)).open() as live,
        running(live, f"import os, signal\nos.write(1, b'x')\n{_STARVE}") as process,
    ):
        assert not ends(stdout_of(process), 2)
        begin = time.monotonic()
        getattr(live, end)()
        assert ends(stdout_of(process), _PATIENCE)
        assert time.monotonic() - begin < _PATIENCE


@pytest.mark.usefixtures("cgroups")
def test_timeout_with_an_init_that_is_starved() -> None:
    """The same, where it is the init of a single payload."""
    box = python_box(init=True, limits=Limits(cpu=0.2, pids=200))
    begin = time.monotonic()
    with pytest.raises(TimeoutExpired):
        box.run([*PYTHON, f"import os, signal\n{_STARVE}"], timeout=3)
    assert time.monotonic() - begin < _PATIENCE


@pytest.mark.usefixtures("cgroups")
def test_abandoned_init_that_is_starved() -> None:
    """Whoever lets go of a process does not wait for that either."""
    box = python_box(init=True, limits=Limits(cpu=0.2, pids=200))
    code = f"import os, signal\nos.write(1, b'x')\n{_STARVE}"
    process = box.spawn([*PYTHON, code], stdout=PIPE)
    with stdout_of(process) as stream:
        assert stream.read(1) == b"x"
        assert not ends(stream, 2)
        begin = time.monotonic()
        with pytest.warns(ResourceWarning, match="still running"):
            del process
        assert time.monotonic() - begin < _PATIENCE


# ---- many -------------------------------------------------------------------------


@pytest.mark.one_kernel
@pytest.mark.usefixtures("cgroups")
def test_many_commands_at_once() -> None:
    """Commands with limits of their own, from many threads, do not disturb each other."""
    reasons: list[Reason] = []

    def work(number: int) -> None:
        for _ in range(5):
            code, limits = (_FILL, Limits(memory="24M")) if number % 2 else ("", Limits(pids=5))
            reasons.append(live.run([*PYTHON, code], limits=limits).reason)

    with python_box(limits=Limits(memory="512M", pids=200)).open() as live:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(reasons) == [Reason.EXIT] * 15 + [Reason.MEMORY] * 15


@pytest.mark.one_kernel
def test_many_sandboxes() -> None:
    """Many sandboxes live at the same time, and end together."""
    lives = [Sandbox().open() for _ in range(50)]
    try:
        for live in lives:
            assert live.run(["/bin/true"]).returncode == 0
    finally:
        for live in lives:
            live.kill()
        for live in lives:
            live.close()


@pytest.mark.usefixtures("cgroups")
def test_exit_of_a_fork_while_a_command_ends() -> None:
    """It does not wait for a thread of its parent's that was about to tell how one ended."""
    held, over = threading.Event(), threading.Event()

    def hold(fence: Fence) -> None:
        with fence._lock:
            held.set()
            over.wait()

    limits = Limits(wall_time=1000)
    with Sandbox().open() as live, live.spawn(["/bin/sleep", "1000"], limits=limits) as process:
        fence = process._payload.place.fence
        assert fence is not None
        thread = threading.Thread(target=hold, args=(fence,))
        thread.start()
        held.wait()
        try:
            assert in_child(live._end_at_exit) is None
        finally:
            over.set()
            thread.join()
        process.kill()


def test_end_from_outside() -> None:
    """A sandbox whose init is killed ends; its commands are told, and nothing hangs."""
    with python_box().open() as live, started(live) as process:
        os.kill(live.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert process.reason is Reason.SIGNAL
        assert live.pidfd is not None
        assert ends(live.pidfd)
