"""A sandbox that stays: what is kept, what ends when, and what happens after the end."""

import errno
import fcntl
import gc
import math
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import nsbox
from conftest import open_fds, own_cgroups, why_no_cgroup
from nsbox import PIPE, Bind, Live, PlanError, Sandbox, SpawnError, Step, TimeoutExpired
from nsbox._child import Child, End
from support import (
    PYTHON,
    SOURCE,
    ends,
    in_child,
    interpreter,
    interruptions,
    python_box,
    stop,
    until,
)


@pytest.fixture
def live(box: Sandbox) -> Iterator[Live]:
    with box.open() as opened:
        yield opened


def shell(live: Live, command: str) -> str:
    result = live.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True)
    return str(result.stdout).strip()


# ---- commands --------------------------------------------------------------


def test_state_is_kept(live: Live) -> None:
    """What one command writes to the private /tmp, the next one reads."""
    shell(live, "echo kept > /tmp/file")
    assert shell(live, "cat /tmp/file") == "kept"


def test_worlds_are_apart(box: Sandbox, live: Live) -> None:
    """Another live sandbox of the same description has its own files."""
    shell(live, "echo kept > /tmp/file")
    with box.open() as other:
        assert shell(other, "ls /tmp") == ""


@pytest.mark.one_kernel
def test_worlds_have_in_common_what_nobody_changes(box: Sandbox) -> None:
    """From the third on, live sandboxes of one description share "/" and /dev, and no more."""
    look = "stat -c %d / /dev; stat -c %d /tmp /dev/shm /home/sandbox /dev/pts /proc"

    def devices() -> list[str]:
        with box.open() as live:
            store = box._cache.store(box._cache.lowered(box))
            assert store is not None
            assert store.fill() > 0
            worlds.append(shell(live, look).split())
            return devices() if len(worlds) < 4 else []

    worlds: list[list[str]] = []
    with box.open():
        devices()
    first, *others = worlds
    for other in others:
        assert other[:2] == others[0][:2] != first[:2]
    for own in zip(*(world[2:] for world in worlds), strict=True):
        assert len(set(own)) == len(worlds)


def test_init_is_the_first_process(live: Live) -> None:
    """The first process is the init, and the command is its child."""
    assert shell(live, "cat /proc/1/comm; echo $PPID") == "nsbox-init\n1"


def test_status_and_output(live: Live) -> None:
    """Status, streams and input are those of the command."""
    result = live.run(
        ["/bin/sh", "-c", "cat; echo err >&2; exit 7"], input=b"in", capture_output=True
    )
    assert (result.returncode, result.stdout, result.stderr) == (7, b"in", b"err\n")
    assert result.reason is nsbox.Reason.EXIT


def test_signal_of_command(live: Live) -> None:
    """A command is no first process: a signal without a handler ends it, and it alone."""
    with live.spawn(["/bin/cat"], stdin=PIPE) as process:
        process.terminate()
        assert process.wait() == -signal.SIGTERM
    assert shell(live, "echo alive") == "alive"


def test_same_layers(box: Sandbox, live: Live) -> None:
    """Ids, capabilities, filter and no_new_privs of a command are those of a payload."""
    command = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Sig)' /proc/self/status; ulimit -a"
    args = ["/bin/sh", "-c", command]
    fresh = box.run(args, capture_output=True, text=True, check=True)
    kept = live.run(args, capture_output=True, text=True, check=True)
    assert kept.stdout == fresh.stdout
    assert kept.enforced == fresh.enforced


def test_same_scheduling() -> None:
    """A command has the policy and slice of a payload, though its init asks for shorter turns."""
    number = {"x86_64": 315, "aarch64": 275}[os.uname().machine]  # sched_getattr(2)
    code = f"""if True:
        import ctypes, struct, sys
        attributes = ctypes.create_string_buffer(56)
        assert ctypes.CDLL(None).syscall({number}, int(sys.argv[1]), attributes, 56, 0) == 0
        print(struct.unpack_from("=IQiIQ", attributes, 4))
    """

    def attributes(run: Any, pid: int = 0) -> str:
        args = [*PYTHON, code, str(pid)]
        return str(run(args, capture_output=True, text=True, check=True).stdout)

    with python_box().open() as live:
        assert attributes(live.run) == attributes(python_box().run)
        assert attributes(live.run) != attributes(live.run, 1)


@pytest.mark.usefixtures("root")
def test_niceness_of_the_caller() -> None:
    """A command has what its caller had when the sandbox was opened, below zero as well."""

    def nice(value: int) -> str:
        os.nice(value)
        with Sandbox().open() as live:
            return shell(live, "nice")

    before = os.nice(0)
    found = [in_child(lambda value=value: nice(value)) for value in (-3, 0, 3)]  # type: ignore[misc]
    assert found == [str(before - 3), str(before), str(before + 3)]


def test_limits_of_resources() -> None:
    """Resource limits and niceness hold for the command."""
    with Sandbox(limits=nsbox.Limits(open_files=17, nice=5)).open() as live:
        assert shell(live, "ulimit -n; nice") == "17\n5"


def test_no_descriptor_of_others(live: Live) -> None:
    """A command has its streams and nothing of the init's."""
    with live.spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE):
        names = shell(live, "ls -l /proc/self/fd")
    assert len([line for line in names.splitlines() if "->" in line]) == 4  # with its directory
    assert "socket" not in names


def test_no_room_for_descriptors_of_others(box: Sandbox) -> None:
    """What the caller has open is no reason for an init to keep a table for as much."""
    high = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 1000)
    try:
        live = box.open()
    finally:
        os.close(high)
    with live:
        assert shell(live, "echo") == ""  # by when it has done what it was told before
        status = Path(f"/proc/{live.pid}/status").read_text()
    (size,) = (line.split()[1] for line in status.splitlines() if line.startswith("FDSize:"))
    assert int(size) < 1000


def test_passed_descriptors(live: Live, tmp_path: Path) -> None:
    """Descriptors are handed on under their numbers, also where others stand in the way."""
    write = "import os; [os.write(fd, b'%d ' % fd) for fd in (7, 40, 41)]"
    code = (
        "import os, nsbox\n"
        # At first: nothing else may have one of these numbers.
        "read_end, write_end = os.pipe()\n"
        "fds = [os.dup2(write_end, number) for number in (40, 7, 41)]\n"
        "with nsbox.Sandbox().open() as live:\n"
        f"    live.run(['/usr/bin/python3', '-c', {write!r}], pass_fds=fds, check=True)\n"
        "    print(os.read(read_end, 99).decode())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["7", "40", "41"], "")


def test_closed_streams(live: Live) -> None:
    """A stream that the caller does not have is closed for the command too."""
    code = (
        "import os, nsbox\n"
        "with nsbox.Sandbox().open() as live:\n"
        "    for fd in range(3): os.close(fd)\n"
        "    result = live.run(['/bin/sh', '-c', 'ls /proc/self/fd > /tmp/fds'])\n"
        "    out = live.run(['/bin/cat', '/tmp/fds'], stdout=-1)\n"
        "    os._exit(9 if out.stdout.split() == [b'0', b'1'] else 1)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9


def test_big_arguments(live: Live) -> None:
    """A mebibyte of arguments and environment arrives."""
    args, env = ["x" * 100_000] * 5, {f"V{number}": "y" * 100_000 for number in range(5)}
    command = "echo ${#1} $# ${#V4} $(env | wc -c)"
    result = live.run(
        ["/bin/sh", "-c", command, "name", *args], env=env, capture_output=True, text=True
    )
    sizes = result.stdout.split()
    assert sizes[:3] == ["100000", "5", "100000"]
    assert int(sizes[3]) > 500_000


@pytest.mark.parametrize("count", [40, 200])
def test_too_big_arguments(box: Sandbox, live: Live, count: int) -> None:
    """More arguments than the kernel takes fail as in a sandbox that is made anew."""
    args = ["/bin/true", *["x" * 100_000] * count]
    with pytest.raises(SpawnError) as fresh:
        box.run(args)
    with pytest.raises(SpawnError) as kept:
        live.run(args)
    assert (kept.value.step, kept.value.errno) == (fresh.value.step, fresh.value.errno)


@pytest.mark.parametrize(
    ("args", "options"),
    [
        (["/no/such"], {}),
        (["no-such"], {}),
        (["/etc/passwd"], {}),
        (["/bin/true"], {"cwd": "/no/such"}),
        (["/bin/true"], {"cwd": "/etc/passwd"}),
        (["/bin/true"], {"extra_groups": [4711]}),
        (["/bin/true"], {"user": 4711}),
        (["/bin/true"], {"process_group": 4711, "start_new_session": False}),
    ],
)
def test_failures_are_the_same(
    box: Sandbox, live: Live, args: list[str], options: dict[str, object]
) -> None:
    """What cannot be started fails with the error of a sandbox that is made anew."""
    errors = []
    for place in (box, live):
        with pytest.raises(SpawnError) as caught:
            place.run(args, **options)  # type: ignore[arg-type]
        errors.append(caught.value)
    assert repr(errors[0]) == repr(errors[1])
    assert shell(live, "echo alive") == "alive"


@pytest.mark.parametrize("count", [251, 300])
def test_too_many_descriptors(box: Sandbox, live: Live, count: int) -> None:
    """More descriptors than one message takes, beside the streams, are an error that says so."""
    fds = [os.dup(0) for _ in range(count)]
    for place in (live, Sandbox(init=True)):
        with pytest.raises(SpawnError, match="250") as caught:
            place.run(["/bin/true"], pass_fds=fds)
        assert (caught.value.step, caught.value.errno) == (Step.MESSAGE, errno.E2BIG)
    assert live.run(["/bin/true"], pass_fds=fds[:240]).returncode == 0
    for fd in fds:
        os.close(fd)


@pytest.mark.one_kernel
def test_too_many_commands(box: Sandbox) -> None:
    """One more than an init takes is an error that says so; the next after an end is none."""

    def child() -> tuple[str | None, int | None, str, int]:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        with box.open() as live:
            processes = [live.spawn(["/bin/sleep", "1000"]) for _ in range(1024)]
            with pytest.raises(SpawnError) as caught:
                live.run(["/bin/true"])
            processes[0].kill()
            processes[0].wait()
            status = live.run(["/bin/true"]).returncode
            live.close()
            for process in processes:
                process.wait()
        return caught.value.step, caught.value.errno, str(caught.value.hint), status

    step, code, hint, status = in_child(child)
    assert (step, code, status) == (Step.MESSAGE, errno.EAGAIN, 0)
    assert "1,024" in hint


@pytest.mark.one_kernel
def test_many_threads(live: Live) -> None:
    """Several threads run commands at once, and each gets its own result."""

    def run(number: int) -> int:
        return live.run(["/bin/sh", "-c", f"exit {number % 256}"]).returncode

    with ThreadPoolExecutor(8) as executor:
        assert list(executor.map(run, range(200))) == [number % 256 for number in range(200)]


def test_thread_that_ends(box: Sandbox) -> None:
    """The end of the thread that opened the sandbox, or started a command, means nothing."""
    made: list[Live] = []
    started: list[nsbox.Process] = []
    for work in (
        lambda: made.append(box.open()),
        lambda: started.append(made[0].spawn(["/bin/cat"], stdin=PIPE)),
    ):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    with made[0] as live, started[0] as process:
        assert shell(live, "echo alive") == "alive"
        assert process.poll() is None


def test_timeout_kills_the_command(live: Live) -> None:
    """At a timeout the command is killed, and the world stays."""
    with pytest.raises(nsbox.TimeoutExpired):
        live.run(["/bin/sleep", "60"], timeout=0.1)
    assert len(shell(live, "echo /proc/[0-9]*").split()) == 2  # the init and the shell


def test_no_lease_keeps_a_start_waiting() -> None:
    """A command cannot have a lease on a program, whose execution the kernel would hold up."""
    code = """
import fcntl, os, shutil
shutil.copy("/bin/true", "/tmp/program")
try:
    fcntl.fcntl(os.open("/tmp/program", os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_WRLCK)
except OSError as error:
    os.write(1, error.strerror.encode())
"""
    with python_box().open() as live:
        assert live.run([*PYTHON, code], stdout=PIPE).stdout == b"Invalid argument"


def test_late_filter() -> None:
    """A profile that an init could not live under holds for the commands."""
    with Sandbox(seccomp="strict").open() as live:
        result = live.run(["/bin/sh", "-c", "/bin/true"], capture_output=True)
        assert result.returncode != 0  # no further processes
        assert live.run(["/bin/grep", "-c", "Seccomp:.2", "/proc/self/status"]).returncode == 0


# ---- the end ---------------------------------------------------------------


def test_close_ends_everything(box: Sandbox) -> None:
    """Closing kills all commands, and what they have started; their owners see it."""
    live = box.open()
    process = live.spawn(["/bin/sh", "-c", "sleep 60 & sleep 60"])
    live.close()
    assert process.wait() == -signal.SIGKILL
    assert live.closed
    live.close()


def test_after_close(box: Sandbox) -> None:
    """A closed sandbox starts nothing."""
    live = box.open()
    live.close()
    with pytest.raises(PlanError, match="closed"):
        live.run(["/bin/true"])
    with pytest.raises(PlanError, match="closed"):
        live.spawn(["/bin/true"])


def test_init_killed(box: Sandbox) -> None:
    """If somebody kills the init, commands end, and new ones fail; nothing hangs."""
    with box.open() as live:
        process = live.spawn(["/bin/cat"], stdin=PIPE)
        os.kill(live._control.init.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert process.stdin is not None
        process.stdin.close()
        with pytest.raises(SpawnError) as caught:
            live.run(["/bin/true"])
        assert caught.value.step is Step.INIT
        assert live.pidfd is not None
        assert ends(live.pidfd)
        assert repr(live) == "<nsbox.Live: ended>"


def test_init_stopped(box: Sandbox) -> None:
    """If somebody outside stops the init, that is an error, too; nothing hangs."""
    with box.open() as live:
        process = live.spawn(["/bin/cat"], stdin=PIPE)
        stop(live._control.init.pid)
        with pytest.raises(SpawnError) as caught:
            live.run(["/bin/true"])
        assert (caught.value.step, caught.value.errno) == (Step.INIT, errno.ETIMEDOUT)
        assert process.stdin is not None
        process.stdin.close()
        with pytest.warns(ResourceWarning):
            del process  # killed by its destructor
        os.kill(live._control.init.pid, signal.SIGCONT)
        assert shell(live, "echo alive") == "alive"


def test_close_while_threads_run(box: Sandbox) -> None:
    """Threads whose sandbox is closed under them get results or errors; nothing hangs."""
    live = box.open()
    started = threading.Barrier(5)

    def work() -> None:
        started.wait()
        with suppress(PlanError, SpawnError):
            while True:
                live.run(["/bin/true"])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    live.run(["/bin/true"])
    live.close()
    for thread in threads:
        thread.join()


def test_forgotten(box: Sandbox) -> None:
    """A live sandbox that nobody holds warns, and ends."""
    opened = [box.open()]
    opened[0].run(["/bin/true"])
    with pytest.warns(ResourceWarning, match="still open"):
        opened.clear()


def test_pickle(live: Live) -> None:
    """It cannot be pickled, and says what can."""
    with pytest.raises(TypeError, match="pickle its Sandbox"):
        pickle.dumps(live)


def test_fork(live: Live) -> None:
    """In a fork it is closed, and what the fork does to it does nothing."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            live.run(["/bin/true"])
        except PlanError:
            live.kill()
            status = 9 if live.closed else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert shell(live, "echo alive") == "alive"


@pytest.mark.one_kernel
def test_fork_that_is_interrupted(box: Sandbox) -> None:
    """
    An exception anywhere in what a fork calls keeps no command from being started.

    The handler of a signal that comes during the fork runs in the first Python code after it.
    """

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        forks.append(pid)

    forks: list[int] = []

    def rounds() -> int:
        sys.unraisablehook = lambda _: None
        number = 0
        with box.open() as live:
            for number in interruptions(fork, os.path.dirname(nsbox.__file__)):
                assert len(forks) == number
                assert shell(live, "echo alive") == "alive"
        return number

    assert in_child(rounds) > 1


@pytest.mark.parametrize("timeout", [0, -1, -1e300, -math.inf, 1e-9])
@pytest.mark.parametrize("options", [{}, {"capture_output": True}])
def test_timeout_that_is_over(box: Sandbox, timeout: float, options: dict[str, Any]) -> None:
    """Whatever number it is, the run has no time."""
    with box.open() as live, pytest.raises(TimeoutExpired):
        live.run(["/bin/sleep", "1000"], timeout=timeout, **options)


_START_WHILE_FORKING = """
import os

def start():
    live.spawn(["/bin/true"]).wait()
    print("started", flush=True)

os.register_at_fork(before=start, after_in_parent=start)
from nsbox import Sandbox
with Sandbox().open() as live:
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
"""


def test_start_by_what_runs_before_a_fork() -> None:
    """A hook of the program's, or a handler in one of nsbox's, does not wait for the fork."""
    result = interpreter(_START_WHILE_FORKING)
    assert result.stdout == "started\n" * 2, result.stderr


_FORK_WHILE_FORKING = """
import ctypes, os
libc = ctypes.PyDLL(None)
began = []

@ctypes.CFUNCTYPE(None)
def before():
    if not began:
        began.append(True)
        if (pid := libc.fork()) == 0:
            libc._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)

# Hooks that come before a fork are called in reverse: this one when nsbox's has been.
assert libc["__register_atfork"](before, None, None, None) == 0
from nsbox import Sandbox
with Sandbox().open() as live:
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    print(live.run(["/bin/true"]).returncode)
"""


def test_fork_by_a_hook_of_a_fork() -> None:
    """It does not wait for the one that it is part of."""
    result = interpreter(_FORK_WHILE_FORKING)
    assert result.stdout == "7\n0\n", result.stderr


def test_fork_that_stays(box: Sandbox) -> None:
    """A fork that lives on keeps no command from being seen to end."""
    with box.open() as live:
        with live.spawn(["/bin/cat"], stdin=PIPE) as process:
            read_end, write_end = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(write_end)
                os.read(read_end, 1)
                os._exit(0)
            os.close(read_end)
            process.kill()
            assert process.wait() == -signal.SIGKILL
        assert shell(live, "echo alive") == "alive"
        live.close()
    os.close(write_end)
    os.waitpid(pid, 0)


_EXIT_HEAD = """
import os, sys, threading
from nsbox import Limits, Sandbox
from support import SOURCE
box = Sandbox(limits=Limits(pids=50) if sys.argv[1:] else None)

def in_thread(function):
    begun = threading.Event()
    threading.Thread(target=function, args=(begun,), daemon=True).start()
    begun.wait()
"""

# Who holds it -> what the caller does.
_HOLDERS = {
    "a module": "live = box.open(); process = live.spawn(['/bin/sleep', '60'])",
    "another module": "sys.kept = live = box.open(); sys.too = live.spawn(['/bin/sleep', '60'])",
    "a cycle": "live = box.open(); live.me = live",
    "a fork, too": """
sys.kept = live = box.open()
if (pid := os.fork()) == 0:
    sys.exit()
assert os.waitpid(pid, 0)[1] == 0
live.run(["/bin/true"], check=True)""",
    "a thread": """
def hold(begun):
    global pid
    live = box.open()
    process = live.spawn(["/bin/sleep", "60"])
    pid = live.pid
    begun.set()
    threading.Event().wait()
in_thread(hold)""",
    "a thread that waits": """
reader, writer = os.pipe()
def run(begun):
    global pid
    live = box.open()
    pid = live.pid
    begun.set()
    live.run(["/bin/sh", "-c", "echo >&$0; exec sleep 60", str(writer)], pass_fds=[writer])
in_thread(run)
os.read(reader, 1)""",
}


def _caller(code: str) -> subprocess.CompletedProcess[str]:
    """Let another interpreter do something, with the limits that this host has for it."""
    limited = ["limited"] if why_no_cgroup() is None else []
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", _EXIT_HEAD + code, *limited],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{SOURCE}:{Path(__file__).parents[1]}"},
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.one_kernel
@pytest.mark.parametrize("holder", _HOLDERS)
def test_interpreter_exit(box: Sandbox, holder: str) -> None:
    """At the interpreter's exit it ends, with one warning, and leaves nothing, whoever holds it."""
    show = "\nprint(os.getpid(), live.pid if 'live' in globals() else pid)"
    done = _caller(_HOLDERS[holder] + show)
    caller, init = map(int, done.stdout.split())
    said = [line for line in done.stderr.splitlines() if "live sandbox" in line]
    assert len(said) == 1, done.stderr
    assert f"ResourceWarning: live sandbox {init} was still open" in said[0]
    assert own_cgroups(caller) == set()
    with pytest.raises(ProcessLookupError):
        os.kill(init, 0)


_INTERRUPTED_EXIT = """
import atexit, itertools
from conftest import children, own_cgroups
from support import Interruption

def leave(number):
    sys.kept = live, pool = box.open(), box.pool(1)
    sys.too = live.spawn(["/bin/sleep", "60"])
    interruption = Interruption(number, str(SOURCE / "nsbox"))
    sys.settrace(interruption)
    atexit._run_exitfuncs()
    sys.settrace(None)
    assert not children(), f"left children, interrupted at {number}"
    os._exit(2 * (interruption.left > 0))  # an error is 1

for number in itertools.count(1, 19):
    if (pid := os.fork()) == 0:
        leave(number)
    status = os.waitpid(pid, 0)[1]
    assert not own_cgroups(pid), f"left cgroups, interrupted at {number}"
    if status:
        break
print(os.waitstatus_to_exitcode(status), number > 20)
"""


@pytest.mark.one_kernel  # many interpreters
def test_interrupted_interpreter_exit(box: Sandbox) -> None:
    """A signal handler that raises while the interpreter exits leaves nothing behind."""
    assert _caller(_INTERRUPTED_EXIT).stdout == "2 True\n"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"namespaces": "none"}, "namespaces"),
        ({"pid": "host"}, "pid"),
        ({"capabilities": ["CAP_SYS_PTRACE"]}, "CAP_SYS_PTRACE"),
    ],
)
def test_no_init_possible(options: dict[str, object], match: str) -> None:
    """Where no init can be, opening is refused."""
    with pytest.raises(PlanError, match=match):
        Sandbox(**options).open()  # type: ignore[arg-type]


def test_interruption_of_a_failing_run_is_not_lost(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C that comes together with the news of a failed start is what comes out."""
    wait = Child.wait

    def interrupted(child: Child, timeout: int) -> End | None:
        end = wait(child, timeout)
        if timeout:
            raise KeyboardInterrupt
        return end

    monkeypatch.setattr(Child, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        live.run(["/missing"])


def test_an_init_that_waits_has_one_page(root: None, live: Live) -> None:
    """There may be a thousand: all that it writes to before the first command is together."""
    # Its last step on the way there is to give back the stack that the kernel has made.
    until(lambda: "[stack]" not in Path(f"/proc/{live.pid}/maps").read_text())
    figures = Path(f"/proc/{live.pid}/smaps_rollup").read_text()
    kib = {words[0]: words[1] for words in map(str.split, figures.splitlines())}
    assert int(kib["Anonymous:"]) == resource.getpagesize() // 1024


def test_nothing_keeps_a_plan_of_former_ids(root: None, tmp_path: Path) -> None:
    """A caller that changes its ids has no more descriptors with each change."""
    os.chown(tmp_path, 1234, 1234)
    box = Sandbox(mounts=[Bind(tmp_path, "/data", idmap=True)])

    def opened() -> int:
        for group in (1000, 0):
            os.setegid(group)
            with box.open():
                pass
        gc.collect()
        return len(open_fds())

    def child() -> set[int]:
        opened()
        return {opened(), opened()}

    # A change of ids takes the dumpable mark off.
    assert len(in_child(child)) == 1


def test_cwd_of_the_caller_is_not_looked_at_in_vain(tmp_path: Path) -> None:
    """With a directory of its own, a process needs none of its caller's."""
    gone = tmp_path / "gone"
    gone.mkdir()

    def child() -> int:
        os.chdir(gone)
        gone.rmdir()
        return Sandbox(cwd="host").run(["/bin/true"], cwd="/tmp").returncode

    assert in_child(child) == 0


def test_cwd_of_the_caller_that_is_gone(tmp_path: Path) -> None:
    """The error is of this library, and says which directory is meant."""
    gone = tmp_path / "gone"
    gone.mkdir()

    def child() -> int:
        os.chdir(gone)
        gone.rmdir()
        with pytest.raises(SpawnError, match="the caller's own directory was removed") as caught:
            Sandbox(cwd="host").run(["/bin/true"])
        assert isinstance(caught.value, FileNotFoundError)
        return len(caught.value.step)

    assert in_child(child) == len("chdir")
