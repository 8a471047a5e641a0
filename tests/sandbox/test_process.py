"""Process, run() and Result: shaped like subprocess."""

import copy
import errno
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import nsbox
from conftest import open_fds
from nsbox import (
    DEVNULL,
    PIPE,
    STDOUT,
    Bind,
    CalledProcessError,
    Limits,
    NamespaceError,
    Reason,
    Result,
    Sandbox,
    TimeoutExpired,
    Usage,
    lowlevel,
)
from support import PYTHON, SOURCE, ends, in_child, inside, python_box, stdin_of, stdout_of

pytestmark = pytest.mark.usefixtures("box")

SH = "/bin/sh"
# Here the payload is no init, and signals have their usual effect.
HOST_PID = Sandbox(pid="host", mounts=[Bind("/proc")])
DEADLINE = 30.0
"""How long a test waits for what should happen at once, before it fails."""


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


def test_result_is_a_value() -> None:
    """It can be pickled and copied, also before somebody has looked at its figures."""
    result = Sandbox().run([SH, "-c", "echo out"], capture_output=True)
    for other in (pickle.loads(pickle.dumps(result)), copy.copy(result), result):
        assert (other.args, other.stdout) == (result.args, b"out\n")
        assert (other.usage, other.reason) == (result.usage, Reason.EXIT)
    assert result.usage.output == 4
    assert result.usage is result.usage


@pytest.mark.one_kernel
def test_figures_are_for_several_threads() -> None:
    """Whoever looks at them between any two steps of another's look sees the same."""

    def looks_again(at: int) -> bool:
        result = Sandbox().run(["/bin/true"])
        looks: list[Usage | None] = []

        def trace(frame: FrameType, event: str, _: object) -> Any:
            frame.f_trace_opcodes = frame.f_code.co_name == "usage"
            if event == "opcode":
                looks.append(result.usage if len(looks) == at else None)  # not traced
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            usage = result.usage
        finally:
            sys.settrace(before)
        assert len(looks) <= at or looks[at] == usage
        return len(looks) > at

    assert next(at for at in range(1000) if not looks_again(at)) > 5


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


def test_check_names_the_limit() -> None:
    """The error has a note, so its traceback says more than SIGKILL."""
    box = Sandbox(limits=Limits(wall_time=0.1))
    with pytest.raises(CalledProcessError) as caught:
        box.run(["/bin/sleep", "60"], check=True)
    assert caught.value.__notes__ == ["reason: wall_time"]


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


def test_pidfd_may_be_non_blocking() -> None:
    """Event loops such as uvloop's make it so; wait() waits all the same."""
    with Sandbox().spawn(["/bin/cat"], stdin=PIPE) as process:
        assert process.pidfd is not None
        os.set_blocking(process.pidfd, False)
        waiting = threading.Thread(target=process.wait)
        waiting.start()
        while not process._payload.child.record.waiters:
            os.sched_yield()
        assert process.returncode is None
        stdin_of(process).close()
        waiting.join(DEADLINE)
        assert process.returncode == 0


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


@pytest.mark.parametrize(
    ("streams", "needed"), [((PIPE, PIPE, PIPE), 6), ((DEVNULL, PIPE, STDOUT), 3)]
)
def test_streams_that_cannot_all_be_opened(streams: tuple[int, int, int], needed: int) -> None:
    """Where descriptors run out between two pipes, those that were opened are closed again."""
    stdin, stdout, stderr = streams

    def child() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        Sandbox().run(["/bin/true"])
        before = open_fds().keys()
        full = os.dup(2)
        os.close(full)
        for free in range(needed):
            resource.setrlimit(resource.RLIMIT_NOFILE, (full + free, hard))
            with pytest.raises(OSError, match="Too many open files") as caught:
                Sandbox().spawn(["/bin/true"], stdin=stdin, stdout=stdout, stderr=stderr)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert type(caught.value) is OSError  # subprocess's own
            assert open_fds().keys() == before

    in_child(child)


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


def test_payload_has_the_callers_limits_of_resources() -> None:
    """Resource limits are inherited, as by any child."""
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


# ---- usage ----------------------------------------------------------------


def test_usage_is_plausible() -> None:
    """Processor time is what the payload burnt, and no more than the wall time."""
    code = "import time\nwhile time.process_time() < 0.2: pass"
    usage = python_box().run([*PYTHON, code]).usage
    assert 0.2 <= usage.cpu_time <= usage.wall_time * 1.5
    assert usage.cpu_time == usage.user_time + usage.system_time


def test_usage_of_a_sleeper() -> None:
    """A payload that waits uses wall time, no processor time, and switches voluntarily."""
    with Sandbox().spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE) as process:
        assert process.usage is None
        stdin_of(process).write(b"x")
        stdin_of(process).flush()
        assert stdout_of(process).read(1) == b"x"
        with pytest.raises(TimeoutExpired):
            process.wait(0.1)
        stdin_of(process).close()
        process.wait()
    assert process.usage is not None
    assert process.usage.wall_time >= 0.1
    assert process.usage.cpu_time <= process.usage.wall_time - 0.1
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
    with pytest.raises(NamespaceError) as caught:
        process.namespaces["net"]
    assert caught.value.errno == errno.ENOENT
    assert "net" in process.namespaces  # which opens nothing


def test_namespaces_of_a_dead_process_whose_number_is_taken() -> None:
    """Once waited for, not even a living process of that number is asked."""
    process = Sandbox().spawn(["/bin/true"])
    process.wait()
    process.pid = os.getpid()
    with pytest.raises(NamespaceError) as caught:
        process.namespaces["net"]
    assert caught.value.errno == errno.ENOENT
    assert "net" in process.namespaces  # which opens nothing


def test_unknown_kind_of_namespace() -> None:
    """An unknown kind is a KeyError."""
    with Sandbox().spawn(["/bin/cat"], stdin=PIPE) as process, pytest.raises(KeyError):
        process.namespaces["network"]
