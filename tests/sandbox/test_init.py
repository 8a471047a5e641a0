"""Sandbox(init=True): what an init does for its payload, and what the payload cannot do to it."""

import errno
import fcntl
import gc
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest

import nsbox
from conftest import open_fds
from nsbox import DEVNULL, PIPE, Limits, Process, Reason, Sandbox, SpawnError, Step
from nsbox._init import PROGRAM, image
from support import PYTHON, ends, expired, in_child, inside, python_box, stdin_of, stdout_of

pytestmark = pytest.mark.usefixtures("box")

SH = "/bin/sh"
DEADLINE = 30.0


@pytest.fixture
def guarded() -> Sandbox:
    return Sandbox(init=True)


@pytest.fixture
def lifeline() -> Iterator[tuple[IO[bytes], int]]:
    """A pipe that ends when all processes that have been passed its other end are gone."""
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as file:
        yield file, writer


def sh(box: Sandbox, command: str, **options: Any) -> str:
    result = box.run([SH, "-c", command], capture_output=True, text=True, **options)
    assert result.stderr == ""
    return str(result.stdout).strip()


def parent_of(process: Process) -> int:
    """Return the pid of the init of a process."""
    return int(Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


# ---- the program -------------------------------------------------------------


def test_program_is_small() -> None:
    """Each sandbox that waits has one in memory."""
    assert os.path.getsize(PROGRAM) < 100 * 1024


def test_program_is_sealed() -> None:
    """It is in a memfd that nobody changes any more, and nobody else reads."""
    fd = image()
    assert os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:nsbox-init")
    assert os.fstat(fd).st_size == os.path.getsize(PROGRAM)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o111
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & seals == seals
    for change in (
        lambda: os.pwrite(fd, b"x", 0),
        lambda: os.ftruncate(fd, 0),
        lambda: os.ftruncate(fd, 1 << 20),
        lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    ):
        with pytest.raises(PermissionError):
            change()


def test_init_runs_from_it(root: None) -> None:
    """What an init executes is that memfd, and no file of the host."""
    with Sandbox().open() as live:
        assert os.path.samestat(os.stat(f"/proc/{live.pid}/exe"), os.fstat(image()))


# ---- what an init is for -----------------------------------------------------


def test_payload_is_not_the_first(guarded: Sandbox) -> None:
    """The first process is the init, and the payload its child; the pid is the payload's."""
    assert sh(guarded, "cat /proc/1/comm; echo $$ $PPID") == "nsbox-init\n2 1"
    with guarded.spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE) as process:
        stdin_of(process).write(b"x")
        stdin_of(process).flush()
        # Within exec the kernel first gives up the memory, for which spawn() waits, and then
        # sets the name.
        assert stdout_of(process).read(1) == b"x"
        assert Path(f"/proc/{process.pid}/comm").read_text() == "cat\n"
        assert process.poll() is None


@pytest.mark.parametrize("option", ["user", "group"])
def test_ids_and_streams(guarded: Sandbox, option: str) -> None:
    """No stream is taken for the caller when ids are asked for: /dev/null is always readable."""
    number = int(sh(guarded, f"id -{option[0]}"))
    options: dict[str, Any] = {option: number, "stdout": DEVNULL}
    assert guarded.run(["/bin/true"], **options).returncode == 0
    with guarded.open() as live:
        assert live.run(["/bin/true"], **options).returncode == 0


def test_orphans_are_reaped(guarded: Sandbox) -> None:
    """Daemons that have ended leave no zombies."""
    # There are init, this shell, and the one that expands and counts: all others have to go.
    command = """
        for i in 1 2 3 4 5; do (setsid true &) ; done
        until set -- $(echo /proc/[0-9]*) && [ $# -le 3 ]; do :; done
    """
    sh(guarded, command, timeout=DEADLINE)


def test_signal_without_handler(guarded: Sandbox) -> None:
    """A signal without a handler ends the payload, as it would outside."""
    with guarded.spawn(["/bin/cat"], stdin=PIPE) as process:
        process.terminate()
        assert process.wait(DEADLINE) == -signal.SIGTERM
    assert process.reason is Reason.SIGNAL


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_to_the_init(guarded: Sandbox, sent: signal.Signals) -> None:
    """What the host sends to the init, the payload gets."""
    command = f"trap 'exit 7' {sent.name[3:]}; echo ready; while :; do sleep 0.01; done"
    with guarded.spawn([SH, "-c", command], stdout=PIPE) as process:
        stdout_of(process).readline()
        os.kill(parent_of(process), sent)
        assert process.wait(DEADLINE) == 7


def test_signals_from_inside_are_not_handed_on(guarded: Sandbox) -> None:
    """What is sent from inside does nothing to the init, nor to the payload."""
    command = """
        trap 'echo got it' TERM INT HUP USR1
        (for name in TERM INT HUP USR1 STOP KILL; do kill -$name 1; done)
        (kill -TERM 1; kill -INT 1)
        cat /proc/1/comm
    """
    assert sh(guarded, command) == "nsbox-init"


def test_end_of_payload_ends_everything(guarded: Sandbox, lifeline: tuple[IO[bytes], int]) -> None:
    """What the payload left in the background is gone before wait() returns."""
    reader, writer = lifeline
    os.set_blocking(reader.fileno(), False)
    command = "sleep 1000 & setsid sleep 1000 & exit 5"
    with guarded.spawn([SH, "-c", command], pass_fds=[writer]) as process:
        os.close(writer)
        assert process.wait(DEADLINE) == 5
        assert reader.read() == b""  # not None: no writer is left


@pytest.mark.usefixtures("cgroups")
def test_killed_with_limits_it_tells_the_end() -> None:
    """The cgroup is killed only if the init does not get to say how its process has ended."""
    box = Sandbox(init=True, limits=Limits(pids=10))
    with box.spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE) as process:
        stdin_of(process).write(b"x\n")
        stdin_of(process).flush()
        stdout_of(process).readline()
        process.kill()
    assert process.usage is not None
    assert process.usage.voluntary_switches > 0


def test_kill_ends_everything(guarded: Sandbox, lifeline: tuple[IO[bytes], int]) -> None:
    """So is it after kill()."""
    reader, writer = lifeline
    os.set_blocking(reader.fileno(), False)
    command = "setsid sleep 1000 & echo ready; exec sleep 1000"
    with guarded.spawn([SH, "-c", command], stdout=PIPE, pass_fds=[writer]) as process:
        os.close(writer)
        stdout_of(process).readline()
        process.kill()
        assert process.wait(DEADLINE) == -signal.SIGKILL
        assert reader.read() == b""


def test_timeout(guarded: Sandbox) -> None:
    """A timeout kills the sandbox, daemons that hold the pipes open too."""
    command = [SH, "-c", "setsid sleep 1000 & echo out; wait"]
    caught = expired(lambda timeout: guarded.run(command, capture_output=True, timeout=timeout))
    assert caught.stdout == b"out\n"


def test_usage(guarded: Sandbox) -> None:
    """The times are the payload's, and not the init's."""
    code = "import time\nwhile time.process_time() < 0.2: pass"
    result = python_box(init=True).run([*PYTHON, code])
    assert 0.2 <= result.usage.user_time + result.usage.system_time < 5


def test_layers_and_plan(guarded: Sandbox) -> None:
    """The report says that there is an init; all else is as without."""
    with_init = guarded.run(["/bin/true"]).enforced
    without = Sandbox().run(["/bin/true"]).enforced
    assert [layer.name for layer in with_init if layer not in without] == ["pid namespace"]
    assert ("init", "clone") in {(step.who, step.call) for step in guarded.explain()}


def test_streams_can_be_opened_again(guarded: Sandbox, tmp_path: Path) -> None:
    """/dev/stdout and /dev/stdin lead to files of the host that were handed on."""
    (tmp_path / "in").write_text("hello\n")
    with (tmp_path / "in").open() as source, (tmp_path / "out").open("w") as target:
        os.fchmod(target.fileno(), 0o666)
        guarded.run(
            [SH, "-c", "cat /dev/stdin > /dev/stdout"], stdin=source, stdout=target, check=True
        )
    assert (tmp_path / "out").read_text() == "hello\n"


def test_ids(root: None) -> None:
    """User and group of a spawn are those of the whole sandbox."""
    box = Sandbox(user="host", init=True)
    assert sh(box, "id -u; id -g", user=4711, group=4712) == "4711\n4712"


@pytest.mark.parametrize("late", [False, True])
def test_filter(late: bool) -> None:
    """The filter holds for the payload, also where the init could not live under it."""
    box = Sandbox(init=True, seccomp="strict" if late else "default")
    result = box.run(["/bin/grep", "Seccomp:", "/proc/self/status"], capture_output=True)
    assert result.stdout.split() == [b"Seccomp:", b"2"]


def test_no_stack_of_the_kernels(guarded: Sandbox) -> None:
    """An init runs on a stack of its own, and keeps neither the kernel's nor its page tables."""
    with guarded.spawn(["/bin/cat"], stdin=PIPE) as process:
        lines = Path(f"/proc/{parent_of(process)}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines)
    assert status["VmStk"].split() == ["0", "kB"]


# ---- the same as without -------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "options"),
    [
        (["/no/such"], {}),
        (["no-such"], {}),
        (["/etc/passwd"], {}),
        (["/bin/true"], {"cwd": "/no/such"}),
        (["/bin/true", *["x" * 100_000] * 40], {}),
        (["/bin/true"], {"user": 4711}),
        (["/bin/true"], {"process_group": 4711, "start_new_session": False}),
    ],
)
def test_failures_are_the_same(guarded: Sandbox, args: list[str], options: dict[str, Any]) -> None:
    """What cannot be started fails with the error of a sandbox without an init."""
    errors = []
    for box in (Sandbox(), guarded):
        with pytest.raises(SpawnError) as caught:
            box.run(args, **options)
        errors.append(repr(caught.value))
    assert errors[0] == errors[1]


def test_failure_of_the_world() -> None:
    """A step of the set-up that fails is reported as ever."""
    box = Sandbox(init=True, masks=["/no/such"])
    with pytest.raises(SpawnError) as caught:
        box.run(["/bin/true"])
    assert caught.value.step is Step.MASK_TARGET


def test_limits_of_time() -> None:
    """A limit of time ends the sandbox, and is the reason."""
    limits = Limits(wall_time=0.3)
    result = Sandbox(init=True, limits=limits).run([SH, "-c", "setsid sleep 1000 & sleep 1000"])
    assert (result.reason, result.returncode) == (Reason.WALL_TIME, -signal.SIGKILL)


def test_limits_of_memory_and_pids(cgroups: None) -> None:
    """Limits hold for init and payload together."""
    code = "x = bytearray(200 << 20)"
    result = python_box(init=True, limits=Limits(memory="64M")).run([*PYTHON, code])
    assert result.reason is Reason.MEMORY
    box = Sandbox(init=True, limits=Limits(pids=3))
    result = box.run([SH, "-c", "sleep 0 & sleep 0 & wait"], capture_output=True)
    assert result.reason is Reason.PIDS
    assert box.run([SH, "-c", "sleep 0 & wait"]).reason is Reason.EXIT


def test_resource_limits() -> None:
    """Resource limits and niceness are the payload's."""
    box = Sandbox(init=True, limits=Limits(open_files=17, nice=5))
    assert sh(box, "ulimit -n; nice; cat /proc/1/limits | grep -c 'open files *17'; true") == (
        "17\n5\n0"
    )


def test_subprocess_module() -> None:
    """A box.subprocess.Popen that nobody holds lives on, as one of the standard library's."""
    reader, writer = os.pipe()
    module = Sandbox(init=True).subprocess
    popen = module.Popen(["/bin/cat"], stdin=reader, stdout=subprocess.PIPE)
    os.close(reader)
    pid, output = popen.pid, os.dup(popen.stdout.fileno())
    popen.stdout.close()
    with pytest.warns(ResourceWarning):
        del popen
    os.write(writer, b"alive")
    assert os.read(output, 5) == b"alive"
    os.kill(pid, signal.SIGKILL)
    os.close(writer)
    assert ends(output)
    os.close(output)
    while module._active:
        module._cleanup()  # which the next Popen does


# ---- who ends when ---------------------------------------------------------------


def test_init_is_killed(guarded: Sandbox) -> None:
    """If somebody kills the init, wait() tells that the payload was killed."""
    with guarded.spawn(["/bin/cat"], stdin=PIPE) as process:
        os.kill(parent_of(process), signal.SIGKILL)
        assert process.wait(DEADLINE) == -signal.SIGKILL


def test_thread_that_ends(guarded: Sandbox) -> None:
    """The end of the thread that has spawned means nothing."""
    made: list[Process] = []
    thread = threading.Thread(target=lambda: made.append(guarded.spawn(["/bin/cat"], stdin=PIPE)))
    thread.start()
    thread.join()
    with made[0] as process:
        assert process.poll() is None
        process.kill()


START = """
import os, signal, sys, threading
from nsbox import Sandbox
def start():
    global process
    {start}
thread = threading.Thread(target=start)
thread.start()
thread.join()
if "fork" in sys.argv and os.fork() == 0:
    os.close(1)
    signal.pause()
print(process.pid, flush=True)
sys.stdin.read()
"""
IN_INIT = 'process = Sandbox(init=True).spawn(["/bin/sleep", "1000"])'
IN_LIVE = 'global live; live = Sandbox().open(); process = live.spawn(["/bin/sleep", "1000"])'


@pytest.mark.parametrize("fork", [False, True])
@pytest.mark.parametrize("start", [IN_INIT, IN_LIVE], ids=["init", "live"])
def test_caller_is_killed(start: str, fork: bool) -> None:
    """When the caller is killed, all is gone: in whatever thread it was made, whoever forks."""
    code = START.format(start=start)
    command = [sys.executable, "-c", code, *(["fork"] if fork else [])]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, start_new_session=True) as caller:
        assert caller.stdout is not None
        pidfd = os.pidfd_open(int(caller.stdout.readline()))
        caller.kill()
        assert ends(pidfd, DEADLINE)
        os.close(pidfd)
        if fork:
            os.killpg(caller.pid, signal.SIGKILL)


def test_fork_of_caller(guarded: Sandbox) -> None:
    """In a fork the process seems to have ended, and what the fork does to it does nothing."""
    with guarded.spawn(["/bin/cat"], stdin=PIPE) as process:

        def touch() -> int | None:
            process.kill()
            return process.wait()

        assert in_child(touch) == 0
        assert process.poll() is None


@contextmanager
def room_for(count: int) -> Iterator[None]:
    """While it is entered, this process can open only so many descriptors more."""
    fillers = []
    try:
        while True:
            fillers.append(os.dup(0))
    except OSError:
        pass
    for fd in fillers[:count]:
        os.close(fd)
    try:
        yield
    finally:
        for fd in fillers[count:]:
            os.close(fd)


def failure(count: int, work: Callable[[], object]) -> tuple[int, Step | None]:
    """Return how it fails with so few descriptors, of which none may be lost."""
    before = set(open_fds())
    code, step = 0, None
    with room_for(count):
        try:
            work()
        except OSError as error:
            code, step = error.errno or 0, getattr(error, "step", None)
    gc.collect()
    assert set(open_fds()) == before
    return code, step


def test_start_without_descriptors(box: Sandbox) -> None:
    """In an open sandbox, a caller short of descriptors gets typed errors, and loses none."""
    with box.open() as live:
        seen = [failure(count, lambda: live.run(["/bin/true"])) for count in range(5)]
        assert {code for code, _ in seen} == {errno.EMFILE}
        assert {step for _, step in seen} == {Step.INIT, Step.SOCKETPAIR}
        assert live.run(["/bin/true"]).returncode == 0
        # What that was started over is there.
        assert failure(0, lambda: live.run(["/bin/true"])) == (0, None)


def test_open_without_descriptors(guarded: Sandbox) -> None:
    """The same where all is made anew."""
    guarded.run(["/bin/true"])
    seen = [failure(count, lambda: guarded.run(["/bin/true"])) for count in (*range(12), 60)]
    assert {code for code, _ in seen} == {errno.EMFILE, 0}
    assert {step for _, step in seen} >= {Step.SOCKETPAIR, Step.PIDFD_OPEN}
    assert seen[-1] == (0, None)


# ---- hostile payloads ----------------------------------------------------------


ATTACK = """
import ctypes, errno, json, os, resource, signal, socket
libc = ctypes.CDLL(None, use_errno=True)
found = {}

def attempt(name, call):
    ctypes.set_errno(0)
    try:
        result = call()
    except OSError as error:
        result = errno.errorcode[error.errno]
    if result == -1:
        result = errno.errorcode[ctypes.get_errno()]
    found[name] = result

PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
attempt("attach", lambda: libc.ptrace(PTRACE_ATTACH, 1, 0, 0))
attempt("seize", lambda: libc.ptrace(PTRACE_SEIZE, 1, 0, 0))
for name in ("mem", "environ", "maps", "auxv"):
    attempt(name, lambda: open(f"/proc/1/{name}", "rb").read() and "read")
attempt("write", lambda: os.open("/proc/1/mem", os.O_RDWR))
attempt("fd", lambda: os.readlink("/proc/1/fd/0"))
attempt("open fd", lambda: os.open("/proc/1/fd/0", os.O_RDONLY))
attempt("fdinfo", lambda: os.open("/proc/1/fdinfo/0", os.O_RDONLY))
attempt("exe", lambda: os.readlink("/proc/1/exe"))
attempt("open exe", lambda: os.open("/proc/1/exe", os.O_RDONLY))
attempt("root", lambda: os.listdir("/proc/1/root"))
attempt("ns", lambda: os.readlink("/proc/1/ns/mnt"))
buffer = ctypes.create_string_buffer(8)
vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
attempt("readv", lambda: libc.process_vm_readv(1, vector, 1, vector, 1, 0))
pidfd = os.pidfd_open(1)
attempt("getfd", lambda: libc.syscall(438, pidfd, 0, 0))
for name in ("KILL", "STOP", "TERM", "SEGV"):
    os.kill(1, getattr(signal, "SIG" + name))
attempt("fds", lambda: sorted(map(int, os.listdir("/proc/self/fd"))))
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"uid": 1000, "gid": 1000},
        {"capabilities": ["CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN", "CAP_KILL", "CAP_SYS_RESOURCE"]},
        {"user_namespaces": True},
    ],
    ids=["root", "user", "capabilities", "writable proc"],
)
def test_init_cannot_be_taken_over(fields: dict[str, Any]) -> None:
    """No memory, no descriptor and no link of the init opens; signals from inside do nothing."""
    found = inside(ATTACK, box=python_box(init=True, seccomp=None, **fields))
    assert found.pop("fds") == [0, 1, 2, 3, 4]  # two of its own
    # As the first user of its namespace it may seem to own them: then /proc is read-only.
    assert set(found.values()) <= {"EACCES", "EPERM", "EROFS"}, found
    assert len(found) == 16


def test_zombies_without_end(box: Sandbox) -> None:
    """An init that has endless orphans to reap still listens to its caller."""
    code = """
import os
print("ready", flush=True)
while True:
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
"""
    with python_box().open() as live, live.spawn([*PYTHON, code], stdout=PIPE) as process:
        stdout_of(process).readline()
        for _ in range(10):
            assert live.run(["/bin/true"], timeout=DEADLINE).returncode == 0
        process.kill()
        assert process.wait(DEADLINE) == -signal.SIGKILL


def test_stopping_newcomers(box: Sandbox) -> None:
    """A payload that stops everything else all the time keeps no caller waiting for ever."""
    code = """
import os, signal
print("ready", flush=True)
while True:
    try:
        os.kill(-1, signal.SIGSTOP)
    except ProcessLookupError:
        pass
"""
    with python_box().open() as live:
        with live.spawn([*PYTHON, code], stdout=PIPE) as process:
            stdout_of(process).readline()
            for _ in range(3):
                # Stopped on its way, or when it was the payload already.
                with suppress(SpawnError, nsbox.TimeoutExpired):
                    live.run(["/bin/true"], timeout=0.2)
            process.kill()
            assert process.wait(DEADLINE) == -signal.SIGKILL
        assert live.run(["/bin/true"]).returncode == 0


def test_tracer_of_another_command(box: Sandbox) -> None:
    """A command that traces another, and keeps it when it has ended, does not keep the caller."""
    code = """
import ctypes, os, signal, sys
PTRACE_SEIZE = 0x4206
trace = ctypes.CDLL(None).ptrace
for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
    if pid not in (1, os.getpid()):
        trace(PTRACE_SEIZE, pid, 0, 0)
print("ready", flush=True)
signal.pause()
"""
    with (
        python_box(seccomp=None).open() as live,
        live.spawn([SH, "-c", "read x; exit 3"], stdin=PIPE) as process,
        live.spawn([*PYTHON, code], stdout=PIPE) as tracer,
    ):
        stdout_of(tracer).readline()
        process.kill()
        assert process.wait() == -signal.SIGKILL
        tracer.kill()


def test_killing_everybody(box: Sandbox) -> None:
    """A command that kills all it can ends other commands, and not the world."""
    with box.open() as live, live.spawn(["/bin/cat"], stdin=PIPE) as process:
        assert live.run([SH, "-c", "kill -KILL -1; kill -KILL $$"]).returncode == -signal.SIGKILL
        assert process.wait(DEADLINE) == -signal.SIGKILL
        assert live.run(["/bin/true"]).returncode == 0


def test_limits_of_the_init_are_lowered(box: Sandbox) -> None:
    """A payload may lower the resource limits of its init: that ends in errors, not in a hang."""
    code = """
import resource, sys
resource.prlimit(1, getattr(resource, sys.argv[1]), (0, 0))
"""
    for name in ("RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_AS", "RLIMIT_STACK"):
        with python_box().open() as live:
            live.run([*PYTHON, code, name], check=True)
            with suppress(SpawnError):
                live.run(["/bin/true"], timeout=DEADLINE)
