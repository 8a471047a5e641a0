"""Process, run() and Result: shaped like subprocess, and nothing outlives its owner."""

import errno
import gc
import os
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

import nsbox
from nsbox import (
    DEVNULL,
    PIPE,
    STDOUT,
    Bind,
    CalledProcessError,
    NamespaceError,
    Process,
    Reason,
    Result,
    Sandbox,
    TimeoutExpired,
    lowlevel,
)
from support import PYTHON, SOURCE, in_child, inside, python_box, stdin_of, stdout_of

pytestmark = pytest.mark.usefixtures("box")

SH = "/bin/sh"
# Here the payload is no init, and signals have their usual effect.
HOST_PID = Sandbox(pid="host", mounts=[Bind("/proc")])
DEADLINE = 30.0
"""How long a test waits for what should happen at once, before it fails."""


@pytest.fixture
def lifeline() -> Iterator[tuple[IO[bytes], int]]:
    """
    A pipe: a file to read from, and the fd to pass to processes of a sandbox.

    It ends when all of them are gone.
    """
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as file:
        yield file, writer


def ends(file: IO[bytes] | int, deadline: float = DEADLINE) -> bool:
    """Wait until a pipe has no writer any more (or a pidfd's process has ended)."""
    fd = file if isinstance(file, int) else file.fileno()
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLHUP)
    return bool(poll.poll(deadline * 1000))


def waiting(process: Process) -> Process:
    """Wait until the shell of a process has printed that it runs."""
    assert stdout_of(process).readline()
    return process


# ---- shape ----------------------------------------------------------------


def test_process_is_a_popen() -> None:
    """A Process is a subprocess.Popen, and works as its context manager does."""
    with Sandbox().spawn([SH, "-c", "read x"], stdin=PIPE) as process:
        assert isinstance(process, subprocess.Popen)
        stdin_of(process).write(b"hi\n")
    assert process.returncode == 0
    assert stdin_of(process).closed


def test_result_is_a_completed_process() -> None:
    """A Result is a subprocess.CompletedProcess with the same fields."""
    result = Sandbox().run([SH, "-c", "echo out; echo err >&2; exit 3"], capture_output=True)
    assert isinstance(result, Result)
    assert isinstance(result, subprocess.CompletedProcess)
    assert (result.returncode, result.stdout, result.stderr) == (3, b"out\n", b"err\n")


def test_args_are_kept() -> None:
    """args are as they were given, on the process and the result."""
    args = ("/bin/true", "x")
    assert Sandbox().run(args).args == args


def test_pid_is_the_callers_view() -> None:
    """pid is that of the caller's pid namespace, and 1 inside."""
    with Sandbox().spawn(["/bin/cat"], stdin=PIPE) as process:
        text = Path(f"/proc/{process.pid}/status").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("NSpid:")]
    assert line.split()[1:] == [str(process.pid), "1"]


def test_process_is_a_child_of_the_caller() -> None:
    """The payload's parent is the calling process itself."""
    with Sandbox().spawn(["/bin/cat"], stdin=PIPE) as process:
        text = Path(f"/proc/{process.pid}/status").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("PPid:")]
    assert int(line.split()[1]) == os.getpid()


@pytest.mark.parametrize("status", [0, 1, 127, 255])
def test_exit_status(status: int) -> None:
    """returncode is the exit status, reason EXIT."""
    result = Sandbox().run([SH, "-c", f"exit {status}"])
    assert (result.returncode, result.reason) == (status, Reason.EXIT)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGXCPU])
def test_signal_status(number: signal.Signals) -> None:
    """A payload that a signal from outside ends has returncode -N and reason SIGNAL."""
    with HOST_PID.spawn(["/bin/cat"], stdin=PIPE) as process:
        process.send_signal(number)
        assert process.wait(DEADLINE) == -number


def test_reason_of_a_signal() -> None:
    """The Result of a killed payload has the reason SIGNAL."""
    result = HOST_PID.run([SH, "-c", "kill -9 $$"])
    assert (result.returncode, result.reason) == (-9, Reason.SIGNAL)


def test_check_raises() -> None:
    """check=True raises CalledProcessError with what was captured."""
    with pytest.raises(CalledProcessError) as caught:
        Sandbox().run([SH, "-c", "echo out; exit 4"], check=True, capture_output=True)
    assert (caught.value.returncode, caught.value.stdout) == (4, b"out\n")


def test_poll_and_wait() -> None:
    """poll() is None while it runs, and the status afterwards, as often as asked."""
    with Sandbox().spawn(["/bin/cat"], stdin=PIPE) as process:
        assert process.poll() is None
        stdin_of(process).close()
        assert process.wait() == 0
        assert process.poll() == 0
        assert process.wait(0) == 0


def test_wait_timeout() -> None:
    """wait(timeout) raises TimeoutExpired and leaves the process running."""
    with Sandbox().spawn(["/bin/cat"], stdin=PIPE) as process:
        with pytest.raises(TimeoutExpired):
            process.wait(0.01)
        assert process.poll() is None


def test_pidfd_announces_the_end() -> None:
    """pidfd becomes readable at the end, and None once the process has been waited for."""
    with Sandbox().spawn(["/bin/cat"], stdin=PIPE) as process:
        pidfd = process.pidfd
        assert pidfd is not None
        stdin_of(process).close()
        assert ends(pidfd)
        process.wait()
        assert process.pidfd is None


def test_pidfd_is_close_on_exec() -> None:
    """The pidfd does not leak into other children."""
    with Sandbox().spawn(["/bin/cat"], stdin=PIPE) as process:
        assert process.pidfd is not None
        assert not os.get_inheritable(process.pidfd)


def test_process_is_not_picklable() -> None:
    """A running process cannot be pickled."""
    import pickle

    with (
        Sandbox().spawn(["/bin/cat"], stdin=PIPE) as process,
        pytest.raises(TypeError, match="pickle"),
    ):
        pickle.dumps(process)


# ---- streams --------------------------------------------------------------


def test_communicate_a_megabyte_both_ways() -> None:
    """communicate() neither blocks nor loses anything, with more than a pipe holds."""
    data = os.urandom(1 << 20)
    with Sandbox().spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE) as process:
        assert process.communicate(data)[0] == data


def test_input() -> None:
    """run(input=...) is what the payload reads."""
    assert Sandbox().run(["/bin/cat"], input=b"hi", capture_output=True).stdout == b"hi"


def test_text() -> None:
    """text=True decodes the streams."""
    result = Sandbox().run(["/bin/cat"], input="gr\u00fc\u00df", capture_output=True, text=True)
    assert result.stdout == "gr\u00fc\u00df"


def test_encoding_and_errors() -> None:
    """encoding and errors say how the streams are decoded."""
    result = Sandbox().run(
        [SH, "-c", "printf 'a\\351b'"], capture_output=True, encoding="ascii", errors="replace"
    )
    assert result.stdout == "a\ufffdb"


def test_bufsize() -> None:
    """bufsize=0 gives raw streams."""
    with Sandbox().spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE, bufsize=0) as process:
        stdin_of(process).write(b"hi")
        assert stdout_of(process).read(2) == b"hi"


def test_stdin_file(tmp_path: Path) -> None:
    """stdin may be a file of the caller."""
    (tmp_path / "in").write_text("content")
    with open(tmp_path / "in", "rb") as file:
        result = Sandbox().run(["/bin/cat"], stdin=file, stdout=PIPE)
    assert result.stdout == b"content"


def test_stdout_fd(tmp_path: Path) -> None:
    """stdout may be a descriptor of the caller."""
    fd = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    try:
        Sandbox().run(["/bin/echo", "hi"], stdout=fd, check=True)
    finally:
        os.close(fd)
    assert (tmp_path / "out").read_text() == "hi\n"


def test_stderr_to_stdout() -> None:
    """stderr=STDOUT merges the two."""
    result = Sandbox().run([SH, "-c", "echo out; echo err >&2"], stdout=PIPE, stderr=STDOUT)
    assert result.stdout == b"out\nerr\n"


def test_devnull() -> None:
    """DEVNULL is an empty input."""
    assert Sandbox().run(["/bin/cat"], stdin=DEVNULL, stdout=PIPE).stdout == b""


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_caller_without_standard_streams(closed: tuple[int, ...]) -> None:
    """A caller that has closed standard descriptors can still use pipes."""

    def child() -> tuple[bytes, bytes]:
        for fd in closed:
            os.close(fd)
        result = Sandbox().run(
            [SH, "-c", "cat; echo err >&2"], input=b"hi", stdout=PIPE, stderr=PIPE
        )
        return result.stdout, result.stderr

    assert in_child(child) == (b"hi", b"err\n")


def test_pass_fds() -> None:
    """pass_fds reach the payload under the same number, and no other descriptor does."""
    code = """
import json, os, sys
fd = int(sys.argv[1])
os.write(fd, b"hi")
fds = []
for number in range(64):
    try:
        os.fstat(number)
    except OSError:
        continue
    fds.append(number)
print(json.dumps(fds))"""
    reader, writer = os.pipe()
    with open(reader, "rb") as file:
        fds = inside(code, str(writer), pass_fds=[writer])
        os.close(writer)
        assert file.read() == b"hi"
    assert fds == [0, 1, 2, writer]


# ---- other options --------------------------------------------------------


def test_shell() -> None:
    """shell=True runs a command line by the sandbox's /bin/sh."""
    assert Sandbox().run("echo $((1 + 2))", shell=True, capture_output=True).stdout == b"3\n"


def test_executable() -> None:
    """executable= is executed instead of args[0], which stays the name."""
    result = Sandbox().run(
        ["name", "-c", "echo $0 $1", "zero", "one"], executable=SH, capture_output=True
    )
    assert result.stdout == b"zero one\n"


def test_program_is_searched_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without a slash is searched in the PATH inside, not in the caller's."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert Sandbox().run(["echo", "hi"], capture_output=True).stdout == b"hi\n"


def test_umask() -> None:
    """umask= is the payload's; without it, it is the caller's."""
    before = os.umask(0o027)
    try:
        own = Sandbox().run([SH, "-c", "umask"], capture_output=True).stdout
        given = Sandbox().run([SH, "-c", "umask"], capture_output=True, umask=0o077).stdout
    finally:
        os.umask(before)
    assert (own, given) == (b"0027\n", b"0077\n")


def test_cwd() -> None:
    """cwd= of the call wins over that of the Sandbox."""
    box = Sandbox(cwd="/usr")
    options: list[dict[str, Any]] = [{}, {"cwd": "/tmp"}]
    outputs = [box.run(["/bin/pwd"], capture_output=True, **o).stdout for o in options]
    assert outputs == [b"/usr\n", b"/tmp\n"]


def test_env_merges() -> None:
    """env= of the call is added to that of the Sandbox, which is added to the defaults."""
    box = Sandbox(env={"A": "box", "B": "box"})
    result = box.run([SH, "-c", "echo $A $B $C $HOME"], env={"B": "call", "C": "call"}, stdout=PIPE)
    assert result.stdout == b"box call call /home/sandbox\n"


def test_signals_have_default_actions() -> None:
    """Signals that the caller handles or blocks have their default action in the payload."""

    def child() -> dict[str, str]:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        result = Sandbox().run(["/bin/cat", "/proc/self/status"], capture_output=True, text=True)
        lines = (line.split(":\t") for line in result.stdout.splitlines() if "Sig" in line)
        return dict(tuple(line) for line in lines)

    found = in_child(child)
    ignored = int(found["SigIgn"], 16)
    assert (int(found["SigBlk"], 16), int(found["SigCgt"], 16)) == (0, 0)
    assert ignored & 1 << (signal.SIGPIPE - 1) == 0


def test_blocked_signals_of_the_caller_come_back() -> None:
    """A spawn leaves the calling thread's signal mask as it was."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    Sandbox().run(["/bin/true"])
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


@pytest.mark.parametrize("option", ["memory", "startupinfo", "start"])
def test_unknown_option(option: str) -> None:
    """An option that does not exist here is a TypeError that names it."""
    options: dict[str, Any] = {option: None}
    with pytest.raises(TypeError, match=option):
        Sandbox().spawn(["/bin/true"], **options)


def test_argument_list_too_long() -> None:
    """Arguments beyond what the kernel takes are a SpawnError E2BIG."""
    with pytest.raises(nsbox.SpawnError) as caught:
        Sandbox().run(["/bin/true", "x" * (1 << 18)])
    assert (caught.value.step, caught.value.errno) == ("execve", errno.E2BIG)


def test_audit_event() -> None:
    """A spawn raises the audit event nsbox.spawn."""

    def child() -> list[Any]:
        events = []
        sys.addaudithook(lambda name, args: events.append(args) if name == "nsbox.spawn" else None)
        Sandbox().run(["/bin/true"], cwd="/tmp")
        return events

    assert in_child(child) == [(b"/bin/true", ["/bin/true"], "/tmp")]


# ---- usage ----------------------------------------------------------------


def test_usage_is_plausible() -> None:
    """Processor time is what the payload burnt, and no more than the wall time."""
    code = "import time\nwhile time.process_time() < 0.2: pass"
    usage = python_box().run([*PYTHON, code]).usage
    assert 0.2 <= usage.cpu_time <= usage.wall_time * 1.5
    assert usage.cpu_time == usage.user_time + usage.system_time


@pytest.mark.one_kernel
def test_usage_of_a_sleeper() -> None:
    """A payload that waits uses wall time, hardly processor time, and switches voluntarily."""
    with Sandbox().spawn(["/bin/cat"], stdin=PIPE) as process:
        assert process.usage is None
        with pytest.raises(TimeoutExpired):
            process.wait(0.1)
        stdin_of(process).close()
        process.wait()
    assert process.usage is not None
    assert process.usage.wall_time >= 0.1
    assert process.usage.cpu_time < 0.1
    assert process.usage.voluntary_switches > 0


# ---- namespaces of a process ----------------------------------------------


def test_namespaces_of_a_live_process() -> None:
    """process.namespaces opens each kind; the id is what /proc shows."""
    with Sandbox().spawn(["/bin/cat"], stdin=PIPE) as process:
        assert set(process.namespaces) == {
            "user",
            "mnt",
            "pid",
            "uts",
            "ipc",
            "net",
            "cgroup",
            "time",
        }
        with process.namespaces["net"] as namespace:
            assert os.readlink(f"/proc/{process.pid}/ns/net") == f"net:[{namespace.id}]"


def test_namespaces_of_a_dead_process() -> None:
    """After the end there is nothing to open."""
    process = Sandbox().spawn(["/bin/true"])
    process.wait()
    with pytest.raises((NamespaceError, ProcessLookupError)):
        process.namespaces["net"]


def test_namespaces_of_a_dead_process_whose_number_is_taken() -> None:
    """Once waited for, not even a living process of that number is asked."""
    process = Sandbox().spawn(["/bin/true"])
    process.wait()
    process.pid = os.getpid()
    with pytest.raises((NamespaceError, ProcessLookupError)):
        process.namespaces["net"]


def test_unknown_kind_of_namespace() -> None:
    """An unknown kind is a KeyError."""
    with Sandbox().spawn(["/bin/cat"], stdin=PIPE) as process, pytest.raises(KeyError):
        process.namespaces["network"]


# ---- the end of everything ------------------------------------------------

# Starts grandchildren that outlive it if they can, then tells that they run.
TREE = "setsid sleep 1000 & sleep 1000 & echo ready; exec sleep 1000"


def test_kill_from_outside_ends_everything(lifeline: tuple[IO[bytes], int]) -> None:
    """os.kill() of the payload's pid ends its grandchildren too."""
    reader, writer = lifeline
    with Sandbox().spawn([SH, "-c", TREE], stdout=PIPE, pass_fds=[writer]) as process:
        os.close(writer)
        waiting(process)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(DEADLINE) == -signal.SIGKILL
        assert reader.read() == b""


def test_exit_ends_everything(lifeline: tuple[IO[bytes], int]) -> None:
    """When the payload exits, what it left in the background is gone before wait() returns."""
    reader, writer = lifeline
    os.set_blocking(reader.fileno(), False)
    with Sandbox().spawn(
        [SH, "-c", "sleep 1000 & setsid sleep 1000 & exit 5"], pass_fds=[writer]
    ) as process:
        os.close(writer)
        assert process.wait(DEADLINE) == 5
        assert reader.read() == b""  # not None: no writer is left


def test_background_process_does_not_hold_the_pipes() -> None:
    """run() returns at the payload's end though a daemon has inherited its streams."""
    result = Sandbox().run(
        [SH, "-c", "setsid sleep 1000 & echo hi"], capture_output=True, timeout=DEADLINE
    )
    assert result.stdout == b"hi\n"


def test_run_timeout_kills_everything(lifeline: tuple[IO[bytes], int]) -> None:
    """run(timeout=...) raises TimeoutExpired with what was captured, and leaves no process."""
    reader, writer = lifeline
    with pytest.raises(TimeoutExpired) as caught:
        Sandbox().run([SH, "-c", TREE], capture_output=True, timeout=0.3, pass_fds=[writer])
    os.close(writer)
    assert caught.value.stdout == b"ready\n"
    assert reader.read() == b""


def test_communicate_timeout_keeps_the_output() -> None:
    """After a TimeoutExpired of communicate() another call returns everything."""
    with Sandbox().spawn([SH, "-c", "echo one; exec sleep 1000"], stdout=PIPE) as process:
        with pytest.raises(TimeoutExpired):
            process.communicate(timeout=0.2)
        process.kill()
        assert process.communicate()[0] == b"one\n"


def test_signal_without_handler_is_ignored() -> None:
    """A payload that is init ignores signals it has no handler for: SIGTERM does nothing."""
    with Sandbox().spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE) as process:
        process.terminate()
        assert process.communicate(b"alive") == (b"alive", None)
        assert process.returncode == 0


def test_signal_with_handler_arrives() -> None:
    """A payload that is init receives signals it has a handler for."""
    code = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("ready", flush=True)
while True: signal.pause()"""
    with python_box().spawn([*PYTHON, code], stdout=PIPE) as process:
        waiting(process).terminate()
        assert process.wait(DEADLINE) == 7


def test_signal_after_the_end() -> None:
    """Signals to an ended process do nothing, before and after wait()."""
    process = Sandbox().spawn(["/bin/true"])
    assert process.pidfd is not None
    assert ends(process.pidfd)
    process.kill()
    process.wait()
    process.kill()
    process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


def test_stopped_payload_can_be_killed() -> None:
    """A stopped payload is not taken for an ended one, and can be killed."""
    with Sandbox().spawn(["/bin/cat"], stdin=PIPE) as process:
        process.send_signal(signal.SIGSTOP)
        assert process.poll() is None
        process.kill()
        assert process.wait(DEADLINE) == -signal.SIGKILL


def test_forgotten_process_is_killed(lifeline: tuple[IO[bytes], int]) -> None:
    """A Process that is collected while it runs warns, and its sandbox is gone."""
    reader, writer = lifeline
    process = Sandbox().spawn([SH, "-c", TREE], stdout=DEVNULL, pass_fds=[writer])
    os.close(writer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del process
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    assert reader.read() == b""


def test_exception_in_with_waits_for_the_payload() -> None:
    """Leaving the with block by an exception closes the pipes and reaps the payload."""
    with (
        pytest.raises(RuntimeError),
        Sandbox().spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE) as process,
    ):
        raise RuntimeError
    assert process.returncode == 0


# ---- others that wait -----------------------------------------------------


def test_sigchld_ignored_by_the_caller() -> None:
    """With SIGCHLD ignored the kernel reaps the payload, and wait() still returns its status."""

    def child() -> tuple[int, int | None]:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        result = Sandbox().run([SH, "-c", "exit 3"])
        process = Sandbox().spawn(["/bin/true"])
        return result.returncode, process.wait(DEADLINE)

    status, other = in_child(child)
    # Before Linux 6.15 the status is lost; subprocess assumes success too.
    assert status in ((3,) if _keeps_status() else (0, 3))
    assert other == 0


def _keeps_status() -> bool:
    release = os.uname().release.split("-")[0].split(".")
    return (int(release[0]), int(release[1])) >= (6, 15)


@pytest.mark.one_kernel
def test_other_threads_reap_all_children() -> None:
    """Where other threads call waitpid(-1) in a loop, wait() returns the status nevertheless."""

    def child() -> list[int]:
        stop = threading.Event()

        def reaper() -> None:
            while not stop.is_set():
                try:
                    os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    pass

        threads = [threading.Thread(target=reaper) for _ in range(3)]
        for thread in threads:
            thread.start()
        box = Sandbox()
        statuses = [box.run([SH, "-c", "exit 3"]).returncode for _ in range(300)]
        stop.set()
        for thread in threads:
            thread.join()
        return statuses

    statuses = in_child(child)
    assert set(statuses) <= ({3} if _keeps_status() else {0, 3})


def test_waits_from_several_threads() -> None:
    """Several threads may wait for one process; all get its status."""
    with Sandbox().spawn([SH, "-c", "read x; exit 6"], stdin=PIPE) as process:
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda: statuses.append(process.wait())) for _ in range(4)
        ]
        threads += [
            threading.Thread(target=lambda: statuses.append(process.wait(DEADLINE)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        stdin_of(process).close()
        for thread in threads:
            thread.join()
    assert statuses == [6] * 8


def test_keyboard_interrupt_in_run_kills_the_sandbox(lifeline: tuple[IO[bytes], int]) -> None:
    """KeyboardInterrupt during run() leaves no process of the sandbox."""
    reader, writer = lifeline

    def child() -> str:
        ready, told = os.pipe()

        def interrupt() -> None:
            os.read(ready, 1)  # the payload runs, and so run() waits
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGINT)

        signal.signal(signal.SIGINT, signal.default_int_handler)
        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            Sandbox().run([SH, "-c", TREE], stdin=DEVNULL, stdout=told, pass_fds=[writer])
        except KeyboardInterrupt:
            return "interrupted"
        finally:
            thread.join()
        return "returned"

    outcome = in_child(child)
    os.close(writer)
    assert outcome == "interrupted"
    assert reader.read() == b""


def test_keyboard_interrupt_during_the_spawn_leaves_nothing(
    lifeline: tuple[IO[bytes], int],
) -> None:
    """KeyboardInterrupt while a spawn is under way leaves no process of the sandbox."""
    reader, writer = lifeline

    def child() -> list[str]:
        box = Sandbox()
        box.run(["/bin/true"])
        main = threading.main_thread().ident
        assert main is not None
        about_to_spawn = threading.Event()
        null = os.open("/dev/null", os.O_WRONLY)  # now, as it lets go of the interpreter too

        def interrupt() -> None:
            about_to_spawn.wait()  # goes on when the main thread lets go of the interpreter
            signal.pthread_kill(main, signal.SIGINT)

        signal.signal(signal.SIGINT, signal.default_int_handler)
        thread = threading.Thread(target=interrupt)
        thread.start()
        outcome = "returned"
        try:
            about_to_spawn.set()
            box.run([SH, "-c", TREE], stdout=null, pass_fds=[writer])
        except KeyboardInterrupt:
            outcome = "interrupted"
        thread.join()
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [outcome, file.read()]

    outcome = in_child(child)
    os.close(writer)
    assert outcome == ["interrupted", ""]
    assert reader.read() == b""


# ---- whose end is whose ---------------------------------------------------

_CALLER = """
import os, sys
from nsbox import Sandbox
writer = int(sys.argv[1])
script = "echo ready; exec sleep 1000"
Sandbox().{call}(["/bin/sh", "-c", script], pass_fds=[writer]){wait}
"""


@pytest.mark.parametrize(("call", "wait"), [("run", ""), ("spawn", ".wait()")])
def test_payload_dies_with_the_caller(
    lifeline: tuple[IO[bytes], int], call: str, wait: str
) -> None:
    """A caller that is killed while its main thread waits takes the sandbox along."""
    reader, writer = lifeline
    with subprocess.Popen(
        [sys.executable, "-c", _CALLER.format(call=call, wait=wait), str(writer)],
        stdout=PIPE,
        pass_fds=[writer],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    ) as caller:
        os.close(writer)
        assert caller.stdout is not None
        assert caller.stdout.readline() == b"ready\n"
        caller.kill()
        caller.wait()
        assert ends(reader)
        assert reader.read() == b""


def test_payload_of_run_in_a_thread_dies_with_the_caller(
    lifeline: tuple[IO[bytes], int],
) -> None:
    """The same where run() is called by another thread than the main one."""
    reader, writer = lifeline
    program = f"""
import os, sys, threading
from nsbox import Sandbox
def work():
    Sandbox().run(["/bin/sh", "-c", "echo ready; exec sleep 1000"], pass_fds=[{writer}])
threading.Thread(target=work).start()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=PIPE,
        pass_fds=[writer],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    ) as caller:
        os.close(writer)
        assert caller.stdout is not None
        assert caller.stdout.readline() == b"ready\n"
        caller.kill()
        caller.wait()
        assert ends(reader)


def test_payload_outlives_the_thread_that_spawned_it() -> None:
    """A payload that a thread has spawned keeps running when that thread ends."""
    processes: list[Process] = []
    thread = threading.Thread(
        target=lambda: processes.append(Sandbox().spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE))
    )
    thread.start()
    tid = thread.native_id
    thread.join()
    deadline = time.monotonic() + DEADLINE
    while os.path.exists(f"/proc/self/task/{tid}"):  # join() returns just before the end
        assert time.monotonic() < deadline
    with processes[0] as process:
        assert process.communicate(b"alive")[0] == b"alive"
        assert process.returncode == 0


def test_many_threads_spawn_at_once() -> None:
    """Spawns from many threads do not disturb each other."""
    outputs: list[bytes] = []

    def work(number: int) -> None:
        for _ in range(10):
            result = Sandbox().run(["/bin/echo", str(number)], capture_output=True)
            outputs.append(result.stdout)

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outputs) == sorted(
        f"{number}\n".encode() for number in range(8) for _ in range(10)
    )


def test_spawn_in_a_forked_child() -> None:
    """A Sandbox that was used before os.fork() works in the child."""
    box = Sandbox()
    box.run(["/bin/true"])
    assert in_child(lambda: box.run([SH, "-c", "exit 9"]).returncode) == 9


def test_handler_of_sigchld_sees_the_payload() -> None:
    """The end of a payload raises SIGCHLD in the caller, as any child's does."""

    def child() -> int:
        seen = []
        signal.signal(signal.SIGCHLD, lambda *_: seen.append(1))
        Sandbox().run(["/bin/true"])
        return len(seen)

    assert in_child(child) == 1


def test_failed_spawn_raises_no_sigchld() -> None:
    """A spawn that fails is invisible to the caller's SIGCHLD handler."""

    def child() -> int:
        seen = []
        signal.signal(signal.SIGCHLD, lambda *_: seen.append(1))
        try:
            Sandbox().run(["/missing"])
        except FileNotFoundError:
            pass
        return len(seen)

    assert in_child(child) == 0


def test_payload_has_the_callers_limits_of_resources() -> None:
    """Resource limits are inherited, as by any child."""
    import resource

    code = "import json, resource; print(json.dumps(resource.getrlimit(resource.RLIMIT_NOFILE)))"
    assert inside(code) == list(resource.getrlimit(resource.RLIMIT_NOFILE))


def test_clone_shows_a_bare_child() -> None:
    """lowlevel.clone() starts a program with nothing but new namespaces."""
    flags = lowlevel.CloneFlag.CLONE_NEWUSER | lowlevel.CloneFlag.CLONE_NEWPID
    pid, pidfd = lowlevel.clone(flags, SH, ["sh", "-c", "exit $((10 + $$))"])
    os.close(pidfd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 11


def test_files_of_the_kernel_are_not_text_of_the_locale() -> None:
    """A name that is no text stops nothing, nor does a Python that is asked to warn of such."""
    code = """
open("/proc/self/comm", "wb").write(b"\\xff")
import nsbox
nsbox.Sandbox().run(["/bin/true"], check=True)
"""
    options = ["-X", "warn_default_encoding", "-W", "error::EncodingWarning", "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    subprocess.run([sys.executable, *options], check=True, env=environment)
