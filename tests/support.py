"""What several test modules need: Python inside a sandbox, and children of their own."""

import hashlib
import itertools
import json
import os
import pickle
import resource
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any, TypeVar

import pytest

import nsbox
from nsbox import Live, Pool, Process, Sandbox, interpreter_mounts, lowlevel
from nsbox.lowlevel import CloneFlag, MountFlag
from nsbox.mount import Mount

T = TypeVar("T")

SOURCE = Path(nsbox.__file__).parents[1]
"""Where the nsbox that is tested lies: a checkout, or site-packages."""
PYTHON = [sys.executable, "-I", "-S", "-c"]
"""Runs code, outside as well as inside; without site, which is most of the start-up time."""

CHILD_DEADLINE = 300.0


def python_box(*, mounts: Sequence[Mount] = (), **fields: Any) -> Sandbox:
    """Return a sandbox in which the running Python works."""
    return Sandbox(mounts=[*interpreter_mounts(), *mounts], **fields)


def interpreter(
    code: str, *args: str, within: Sequence[str] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """
    Run a program that uses nsbox in an interpreter of its own.

    Args:
        code: The program.
        args: Its arguments.
        within: A command that runs it, and that command's arguments.
        variables: Of its environment, besides this one's.
    """
    return subprocess.run(
        [*within, sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE), **variables},
        timeout=CHILD_DEADLINE,
    )


OWN_PIDS = (
    "unshare",
    *(() if os.geteuid() == 0 else ("--user", "--map-root-user")),
    *("--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
)
"""Runs a command as process 1 of a pid namespace, and as root there."""


def inside(code: str, *args: str, box: Sandbox | None = None, **options: Any) -> Any:
    """Run Python code inside and return the JSON that it prints."""
    result = (box or python_box()).run(
        [*PYTHON, code, *args], capture_output=True, text=True, **options
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


HANDS_ON = (
    "import socket, sys, time; print('x', flush=True); "
    "socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b'x'], [0, 1, 2])"
)
"""Hands its streams on, over a socket that it was given."""


def write_on(channel: socket.socket) -> None:
    """Write to the stdout that a payload has handed on, until nobody reads that."""
    _, fds, _, _ = socket.recv_fds(channel, 1, 3)
    try:
        while True:
            os.write(fds[1], b"y" * 4096)
    except BrokenPipeError:
        pass
    for fd in fds:
        os.close(fd)


def stdin_of(process: Process) -> IO[Any]:
    """Return the pipe to a process that was spawned with one."""
    assert process.stdin is not None
    return process.stdin


def stdout_of(process: Process) -> IO[Any]:
    """Return the pipe from a process that was spawned with one."""
    assert process.stdout is not None
    return process.stdout


@contextmanager
def running(live: Live, code: str, **options: Any) -> Iterator[Process]:
    """Let Python code run in a live sandbox, which writes "x" when it has begun; kill it after."""
    with live.spawn([*PYTHON, code], stdout=nsbox.PIPE, **options) as process:
        try:
            assert stdout_of(process).read(1) == b"x"
            yield process
        finally:
            process.kill()


def in_child(function: Callable[[], T], deadline: float = CHILD_DEADLINE) -> T:
    """
    Call a function in a forked child, which has one thread, and return its result.

    For what must not happen to the process of the tests. After the deadline, in seconds,
    the child is killed.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            outcome: tuple[bool, Any] = (True, function())
        except BaseException:
            outcome = (False, traceback.format_exc())
        with open(writer, "wb") as file:
            pickle.dump(outcome, file)
        os._exit(0)
    os.close(writer)
    data = b""
    with open(reader, "rb", buffering=0) as file:
        while True:
            if not select.select([file], [], [], deadline)[0]:
                os.kill(pid, signal.SIGKILL)
            chunk = file.read(65536)
            if not chunk:
                break
            data += chunk
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with wait status {status}"
    succeeded, value = pickle.loads(data)
    assert succeeded, f"in the child:\n{value}"
    result: T = value
    return result


def enter_private_mounts() -> None:
    """
    Give the calling process a mount namespace of its own, and the right to change it.

    Only for children: see in_child(). A plain user gets a user namespace with
    the same ids as outside.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        lowlevel.unshare(CloneFlag.CLONE_NEWNS)
    else:
        lowlevel.unshare(CloneFlag.CLONE_NEWUSER | CloneFlag.CLONE_NEWNS)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    lowlevel.mount(None, "/", None, MountFlag.MS_REC | MountFlag.MS_PRIVATE)


def mount_tmpfs(path: Path, *, extra: int = 0) -> None:
    """Mount a tmpfs; for children after enter_private_mounts()."""
    lowlevel.mount("tmpfs", path, "tmpfs", extra, "mode=755")


def tree(path: Path) -> dict[str, tuple[int, int, int, str]]:
    """Return what lies below a directory: mode, owner, time of change, content's hash or link."""
    found = {}
    for directory, names, files in os.walk(path):
        for name in [".", *names, *files]:
            entry = Path(directory, name)
            info = entry.lstat()
            content = ""
            if entry.is_symlink():
                content = os.readlink(entry)
            elif entry.is_file():
                content = hashlib.sha256(entry.read_bytes()).hexdigest()
            key = str(entry.relative_to(path))
            found[key] = (info.st_mode, info.st_uid, info.st_mtime_ns, content)
    return found


def expose(path: Path) -> Path:
    """Make a directory of a test accessible to the payloads of a root caller."""
    path.chmod(0o755)
    return path


def ends(file: IO[bytes] | int, deadline: float = CHILD_DEADLINE) -> bool:
    """Wait until a pipe has no writer any more (or a pidfd's process has ended)."""
    fd = file if isinstance(file, int) else file.fileno()
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLHUP)
    return bool(poll.poll(deadline * 1000))


def expired(run: Callable[[float], object]) -> nsbox.TimeoutExpired:
    """
    Return the exception of a run at its timeout, with what was captured.

    Args:
        run: Runs something that writes to stdout at once, with the timeout that it is given:
            a longer one each time, until there was time to write.
    """
    timeout = 0.1
    while timeout < CHILD_DEADLINE:
        timeout *= 2
        with pytest.raises(nsbox.TimeoutExpired) as raised:
            run(timeout)
        assert raised.value.timeout == timeout
        if raised.value.stdout:
            return raised.value
    raise AssertionError(f"nothing was written in {timeout} s")


def until(condition: Callable[[], object]) -> None:
    """Let other threads work until something has become true."""
    deadline = time.monotonic() + CHILD_DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        os.sched_yield()


def full(pool: Pool) -> Pool:
    """Wait until all sandboxes of a pool are ready."""
    until(lambda: pool.stats().ready == pool.stats().size)
    return pool


def stop(pid: int) -> None:
    """Stop a child of this process, and wait until it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


def in_time(attempt: Callable[[float], T | None]) -> T:
    """
    Return what comes of something that needs time for its first part, and ends at a deadline.

    Args:
        attempt: Does it with the deadline that it is given, in seconds: a longer one each time,
            until it does not return None, which says that there was no time.
    """
    deadline = 0.5
    while deadline < CHILD_DEADLINE:
        deadline *= 2
        if (outcome := attempt(deadline)) is not None:
            return outcome
    raise AssertionError(f"{deadline} s were no time")


def descriptors(pid: int | None = None) -> dict[int, str]:
    """Return what a process has open, by default this one; some of it may be gone by now."""
    directory, found = Path(f"/proc/{pid or 'self'}/fd"), {}
    for name in os.listdir(directory):
        with suppress(FileNotFoundError):  # the one that lists the directory, for example
            found[int(name)] = os.readlink(directory / name)
    return found


def output_of(command: list[str]) -> str:
    """Run a program of the host, and return what it prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@contextmanager
def no_descriptors() -> Iterator[None]:
    """No descriptor can be opened, however many are closed meanwhile, and none polled (poll(2))."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def meanwhile(name: str, act: Callable[[], object]) -> Iterator[None]:
    """Do something once, as another thread might, when a function with a name is called."""
    left = [act]

    def enter(frame: FrameType, event: str, argument: object) -> None:
        if left and frame.f_code.co_name == name:
            left.pop()()  # not traced

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)
    assert not left


class Interruption:
    """A trace function that raises at the n-th event in some files."""

    def __init__(self, number: int, files: str | tuple[str, ...]) -> None:
        self.left, self._files = number, files

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        self.left -= frame.f_code.co_filename.startswith(self._files)
        if self.left == 0:
            raise KeyboardInterrupt
        return self


def interruptions(act: Callable[[], object], files: str | tuple[str, ...]) -> Iterator[int]:
    """
    Do something again and again, each time with an exception at a later place.

    Args:
        act: What to do.
        files: How the names of the files begin in which it is to be raised.

    Yields:
        The number of the event, after each time; the last was none any more.
    """
    for number in itertools.count(1):
        interruption = Interruption(number, files)
        sys.settrace(interruption)
        try:
            with suppress(KeyboardInterrupt):
                act()
        finally:
            sys.settrace(None)
        yield number
        if interruption.left > 0:
            return
