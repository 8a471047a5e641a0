"""
Gather the facts of the demonstration: real processes, really looked at.

Nothing here is made up or remembered: each value was read from the kernel, or
was the answer of a live shell, while this program ran. How to show it is the
business of :mod:`nsbox.demo.text`.
"""

import ctypes
import os
import pwd
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Final

from .. import Namespace, Process, Sandbox, lowlevel
from ..lowlevel import CloneFlag

SHELL: Final = "/bin/sh"
_SANDBOXES: Final = 3
_END: Final = "__nsbox_demo_end__"


class DemoError(Exception):
    """The demonstration cannot go on; the text says why."""


# ---- what there is to know ---------------------------------------------


@dataclass(frozen=True, slots=True)
class Host:
    """This program, and the machine it runs on."""

    hostname: str
    kernel: str
    pid: int
    uid: int
    user: str


@dataclass(frozen=True, slots=True)
class Line:
    """One process, as a line of ``ps``."""

    pid: int
    text: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What ``ps`` printed: how many processes in all, and the lines to show."""

    command: str
    header: str
    count: int
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class View:
    """
    What a process sees of the world.

    ``ipc_objects`` and ``cgroup`` are None where the kernel has no such thing.
    """

    pid: int
    uid: int
    first_process: str
    processes: int
    hostname: str
    mounts: int
    network_devices: tuple[str, ...]
    ipc_objects: int | None
    cgroup: str | None


@dataclass(frozen=True, slots=True)
class Inside:
    """A sandboxed shell, as it sees itself."""

    pid: int
    ps: Listing
    host_processes: int


@dataclass(frozen=True, slots=True)
class Outside:
    """The same shell, as /proc of the host describes it."""

    pid: int
    command: str
    parent: int
    nspid: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Twin:
    """One of several sandboxes that run at the same time."""

    pid_inside: int
    pid_outside: int
    pid_namespace: int


@dataclass(frozen=True, slots=True)
class Killed:
    """
    What became of a sandbox with several processes.

    Args:
        pid: The host's pid of its PID 1.
        others: The host's pids of the other processes.
        ps: What ``ps`` inside showed.
        background: The command that was started in the background.
        after_kill_inside: What the shell said after ``kill -9 1`` inside.
        returncode: How it ended after the host's ``kill -9``; -N is signal N.
        ended: Those of ``others`` that had ended then.
    """

    pid: int
    others: tuple[int, ...]
    ps: Listing
    background: str
    after_kill_inside: str
    returncode: int
    ended: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """The inode numbers of two processes' namespaces of one kind."""

    kind: str
    outside: int
    inside: int


@dataclass(frozen=True, slots=True)
class Namespaces:
    """
    A shell on the host next to one in a sandbox.

    Args:
        outside: What the host's shell sees.
        inside: What the sandbox's shell sees.
        uid_outside: The user id of the sandbox's shell, as the host sees it.
        user_outside: That user's name on the host.
        message_queue: Among the host's IPC objects is one that was made for this.
        pairs: The namespaces of both.
    """

    outside: View
    inside: View
    uid_outside: int
    user_outside: str
    message_queue: bool
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class RawClone:
    """
    A shell started by clone with a new pid namespace and nothing else.

    Args:
        flags: The flags of the call.
        view: What it sees; ``view.pid`` is its ``$$``.
        pid_outside: Its pid on the host.
        pid_in_proc: Its pid according to the /proc that it has.
        ps: What ``ps`` shows it, cut to a few lines.
        new: The kinds of namespaces in which it differs from this program.
    """

    flags: tuple[str, ...]
    view: View
    pid_outside: int
    pid_in_proc: int
    ps: Listing
    new: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that the demonstration shows, one field per section."""

    host: Host
    inside: Inside
    outside: Outside
    several: tuple[Twin, ...]
    killed: Killed
    namespaces: Namespaces
    raw_clone: RawClone


def gather(root: str | None = None) -> Facts:
    """
    Run the experiments, and return what came of them.

    Args:
        root: Directory to be the root of the sandboxes. Default: the host's
            system directories.

    Raises:
        NsboxError: If a sandbox cannot be made here.
        OSError: If a system call of this program itself fails.
        DemoError: If a shell does not do as it should.
    """
    box = Sandbox(root=root)
    with message_queue() as queue, host_shell() as outside:
        with sandboxed_shell(box) as (shell, process):
            inside_facts = _inside(shell, outside)
            outside_facts = _outside(process)
            namespaces = _namespaces(shell, process, outside, queue)
        return Facts(
            host=_host(),
            inside=inside_facts,
            outside=outside_facts,
            several=_several(box),
            killed=_killed(box),
            namespaces=namespaces,
            raw_clone=_raw_clone(),
        )


# ---- shells to ask -----------------------------------------------------


class Shell:
    """
    A live shell at the other end of two pipes.

    Needs no program but the shell: what can be read is read by its builtins.
    """

    def __init__(self, stdin: IO[str], stdout: IO[str]) -> None:
        self._stdin = stdin
        self._stdout = stdout
        self.ask('show() { while IFS= read -r line; do echo "$line"; done <"$1"; }')

    def ask(self, command: str) -> tuple[str, ...]:
        """Run a command in the shell, and return the lines that it prints."""
        lines: list[str] = []
        try:
            self._stdin.write(f"{command}\necho {_END}\n")
            self._stdin.flush()
        except BrokenPipeError:
            pass  # there is no answer to read either
        for line in self._stdout:
            if line.rstrip("\n") == _END:
                return tuple(lines)
            lines.append(line.rstrip("\n"))
        raise DemoError(f"the shell ended, instead of running {command!r}")

    def number(self, command: str) -> int:
        """Run a command that prints a number."""
        text = "\n".join(self.ask(command))
        try:
            return int(text)
        except ValueError:
            raise DemoError(f"{command!r} printed no number: {text!r}") from None

    def read(self, path: str) -> tuple[str, ...]:
        """Return the lines of a file, as the shell sees it; () if there is none."""
        return self.ask(f"[ -r {path} ] && show {path}")


@contextmanager
def sandboxed_shell(box: Sandbox) -> Iterator[tuple[Shell, Process]]:
    """Keep /bin/sh running in a sandbox for the length of a with block."""
    process = box.spawn(
        [SHELL],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
    )
    with _asking(process) as shell:
        yield shell, process


@contextmanager
def host_shell() -> Iterator[Shell]:
    """Keep the host's /bin/sh running, in no new namespace at all."""
    process = subprocess.Popen(
        [SHELL],
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    with _asking(process) as shell:
        yield shell


@contextmanager
def _asking(process: subprocess.Popen[str]) -> Iterator[Shell]:
    """Talk to a process that is a shell, and end it afterwards."""
    with process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            yield Shell(process.stdin, process.stdout)
        finally:
            process.kill()


@contextmanager
def cloned_shell(flags: CloneFlag) -> Iterator[tuple[Shell, int]]:
    """Keep the host's /bin/sh running in new namespaces, with nothing else done for it."""
    with ExitStack() as stack:
        in_read, in_write = _pipe(stack)
        out_read, out_write = _pipe(stack)
        with _standard_streams(in_read, out_write):
            pid, pidfd = lowlevel.clone(flags, SHELL, [SHELL], _environment())
        stack.callback(os.close, pidfd)
        stack.callback(os.waitpid, pid, 0)
        stack.callback(lowlevel.pidfd_send_signal, pidfd, signal.SIGKILL)
        os.close(in_read.release())
        os.close(out_write.release())
        stdin = stack.enter_context(os.fdopen(in_write.release(), "w", encoding="utf-8"))
        stdout = stack.enter_context(
            os.fdopen(out_read.release(), encoding="utf-8", errors="replace")
        )
        yield Shell(stdin, stdout), pid


def _environment() -> dict[str, str]:
    """Return what the host's shells get: nothing that makes programs speak differently."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}


class _Owned:
    """A descriptor that is closed unless it is released before."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def release(self) -> int:
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self.release())


def _pipe(stack: ExitStack) -> tuple[_Owned, _Owned]:
    read, write = os.pipe()
    ends = _Owned(read), _Owned(write)
    for end in ends:
        stack.callback(end.close)
    return ends


@contextmanager
def _standard_streams(stdin: _Owned, stdout: _Owned) -> Iterator[None]:
    """
    Replace this program's standard streams for the length of a with block.

    A raw clone passes on the descriptors that it finds, as fork(2) does.
    """
    with ExitStack() as stack:
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        stack.callback(os.close, null)
        for number, fd in ((0, stdin.fileno()), (1, stdout.fileno()), (2, null)):
            saved = os.dup(number)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, number)
            os.dup2(fd, number)
        yield


# ---- questions ---------------------------------------------------------

# The first that works is taken. The last needs no program at all.
_PS: Final = (
    "busybox ps",
    "ps -e -o pid,user,args",
    "ps",
    "echo '  PID COMMAND'; for d in /proc/[0-9]*; do read -r name <$d/comm && "
    'echo "${d#/proc/} $name"; done',
)


def _ps(shell: Shell) -> Listing:
    """Return what ``ps`` shows to a shell."""
    for command in _PS:
        lines = shell.ask(command)
        words = [(line.split(maxsplit=1), line) for line in lines]
        rows = tuple(Line(int(first[0]), line) for first, line in words if _is_row(first))
        if rows:
            return Listing(command, lines[0], len(rows), rows)
    raise DemoError("neither ps nor /proc shows a process")


def _is_row(words: list[str]) -> bool:
    return bool(words) and words[0].isdecimal()


def _look(shell: Shell) -> View:
    """Ask a shell what it sees; the same questions wherever it runs."""
    devices = shell.read("/proc/net/dev")[2:]
    objects = [shell.read(f"/proc/sysvipc/{kind}") for kind in ("msg", "sem", "shm")]
    return View(
        pid=shell.number("echo $$"),
        uid=int(_status(shell.read("/proc/self/status"))["Uid"].split()[0]),
        first_process="\n".join(shell.read("/proc/1/comm")),
        processes=shell.number("set -- /proc/[0-9]*; echo $#"),
        hostname="\n".join(shell.read("/proc/sys/kernel/hostname")),
        mounts=len(shell.read("/proc/self/mountinfo")),
        network_devices=tuple(line.split(":")[0].strip() for line in devices),
        ipc_objects=sum(len(lines) - 1 for lines in objects) if all(objects) else None,
        cgroup=_cgroup(shell.read("/proc/self/cgroup")),
    )


def _cgroup(lines: tuple[str, ...]) -> str | None:
    """Return the path in the unified hierarchy (the line "0::"), or else in the last listed."""
    paths = {line.split(":", 2)[0]: line.split(":", 2)[2] for line in lines}
    return paths.get("0", next(iter(paths.values()), None))


def _status(lines: tuple[str, ...]) -> dict[str, str]:
    """Return the fields of a /proc/pid/status."""
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _status_of(pid: int) -> dict[str, str]:
    """Return the fields of a process's status on the host; {} if it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            return _status(tuple(file))
    except (FileNotFoundError, ProcessLookupError):
        return {}


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


# ---- experiments -------------------------------------------------------


def _host() -> Host:
    name = os.uname()
    uid = os.geteuid()
    return Host(name.nodename, name.release, os.getpid(), uid, _user_name(uid))


def _inside(shell: Shell, host: Shell) -> Inside:
    return Inside(
        pid=shell.number("echo $$"),
        ps=_ps(shell),
        host_processes=host.number("set -- /proc/[0-9]*; echo $#"),
    )


def _outside(process: Process) -> Outside:
    status = _status_of(process.pid)
    with open(f"/proc/{process.pid}/cmdline", encoding="utf-8", errors="replace") as file:
        command = file.read().replace("\0", " ").strip()
    return Outside(
        pid=process.pid,
        command=command,
        parent=int(status["PPid"]),
        nspid=tuple(int(number) for number in status["NSpid"].split()),
    )


def _several(box: Sandbox) -> tuple[Twin, ...]:
    with ExitStack() as stack:
        shells = [stack.enter_context(sandboxed_shell(box)) for _ in range(_SANDBOXES)]
        return tuple(
            Twin(shell.number("echo $$"), process.pid, _inode(process.pid, "pid"))
            for shell, process in shells
        )


def _killed(box: Sandbox) -> Killed:
    with sandboxed_shell(box) as (shell, process), ExitStack() as stack:
        background = _start_background(shell)
        listing = _ps(shell)
        others = _children(process.pid)
        watched = {pid: lowlevel.pidfd_open(pid) for pid in others}
        for pidfd in watched.values():
            stack.callback(os.close, pidfd)
        answer = shell.ask("kill -9 1; echo 'still here'")
        os.kill(process.pid, signal.SIGKILL)
        return Killed(
            pid=process.pid,
            others=others,
            ps=listing,
            background=background,
            after_kill_inside="\n".join(answer),
            returncode=process.wait(),
            ended=tuple(pid for pid, pidfd in watched.items() if _has_ended(pidfd)),
        )


def _start_background(shell: Shell) -> str:
    """Start two processes beside a shell, and return their command."""
    stopped = f"{SHELL} -c 'kill -STOP $$'"  # for want of anything that sleeps
    found = shell.ask(
        "command -v sleep >/dev/null && echo sleep 1000 || "
        "{ busybox true && echo busybox sleep 1000; }"
    )
    command = found[0] if found else stopped
    for _ in range(2):
        shell.ask(f"{command} &")
        # Until it executes, it is still a copy of the shell: let ps not see that.
        shell.ask(
            "read -r before </proc/$$/comm; now=$before; tries=0; "
            'while [ "$now" = "$before" ] && [ $tries -lt 2000 ]; do '
            "read -r now </proc/$!/comm; tries=$((tries + 1)); done"
        )
    return command


def _children(pid: int) -> tuple[int, ...]:
    numbers = sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())
    return tuple(number for number in numbers if _status_of(number).get("PPid") == str(pid))


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _namespaces(shell: Shell, process: Process, host: Shell, queue: bool) -> Namespaces:
    uid = int(_status_of(process.pid)["Uid"].split()[0])
    return Namespaces(
        outside=_look(host),
        inside=_look(shell),
        uid_outside=uid,
        user_outside=_user_name(uid),
        message_queue=queue,
        pairs=tuple(
            Pair(kind, _inode(0, kind), _inode(process.pid, kind))
            for kind in process.namespaces
            if kind in _kinds()
        ),
    )


def _kinds() -> tuple[str, ...]:
    """Return the kinds of namespaces that this kernel has."""
    return tuple(name for name in os.listdir("/proc/self/ns") if not name.endswith("_for_children"))


def _inode(pid: int, kind: str) -> int:
    with Namespace.of(pid, kind) as namespace:
        return namespace.id


def _raw_clone() -> RawClone:
    with ExitStack() as stack:
        flags = CloneFlag.CLONE_NEWPID
        try:
            shell, pid = stack.enter_context(cloned_shell(flags))
        except PermissionError:
            # Without CAP_SYS_ADMIN, only the owner of a user namespace may make others.
            flags |= CloneFlag.CLONE_NEWUSER
            shell, pid = stack.enter_context(cloned_shell(flags))
        return RawClone(
            flags=tuple(flag.name or "" for flag in CloneFlag if flag in flags),
            view=_look(shell),
            pid_outside=pid,
            pid_in_proc=shell.number("read -r pid rest </proc/self/stat; echo $pid"),
            ps=_excerpt(_ps(shell), (os.getpid(), pid)),
            new=tuple(kind for kind in _kinds() if _inode(0, kind) != _inode(pid, kind)),
        )


def _excerpt(listing: Listing, pids: tuple[int, ...]) -> Listing:
    """Return a listing cut to its first two lines and those of the given processes."""
    lines = [
        line for position, line in enumerate(listing.lines) if position < 2 or line.pid in pids
    ]
    return Listing(listing.command, listing.header, listing.count, tuple(lines))


@contextmanager
def message_queue() -> Iterator[bool]:
    """
    Keep a System V message queue on the host for the length of a with block.

    Most hosts have no IPC object at all, and a comparison wants one. Yields
    False if the kernel refuses: then there is none.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    ipc_private, ipc_rmid = 0, 0  # <sys/ipc.h>
    number = libc.msgget(ipc_private, 0o600)
    try:
        yield number >= 0
    finally:
        if number >= 0:
            libc.msgctl(number, ipc_rmid, None)
