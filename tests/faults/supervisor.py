"""
A process whose system calls another one decides on: each may be let through, or fail.

The kernel asks before it makes a call (seccomp_unotify(2)): the calling process, and
whatever it clones, wait for the answer. So the n-th call of a kind fails, of one
process of several, exactly; and a case costs a few milliseconds, not the attaching of
a debugger. Linux 5.5 on; a plain user gives up new privileges for it.

The process under test says where a case begins and ends by a call that no kernel has.
"""

import ctypes
import errno
import fcntl
import os
import pickle
import platform
import select
import signal
import socket
import struct
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from nsbox import lowlevel
from nsbox._constants import CLONE_FILES

P = TypeVar("P")
T = TypeVar("T")

# linux/seccomp.h, linux/bpf_common.h, linux/prctl.h
_SET_MODE_FILTER: Final = 1
_NEW_LISTENER: Final = 1 << 3
_RET_ALLOW: Final = 0x7FFF0000
_RET_USER_NOTIF: Final = 0x7FC00000
_CONTINUE: Final = 1
_RECEIVE: Final = 0xC0502100
_SEND: Final = 0xC0182101
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_QUESTION: Final = struct.Struct("=QII iIQ 6Q")  # struct seccomp_notif
_ANSWER: Final = struct.Struct("=QqiI")  # struct seccomp_notif_resp
_INSTRUCTION: Final = struct.Struct("=HBBI")
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER_AT, _FIRST_ARGUMENT_AT = 0, 16

_MARK: Final = 0x4000
"""Number of the call that marks a case: no kernel has it."""
_CHANNEL: Final = 777
"""Descriptor that the result comes through: calls whose first argument it is just pass."""
_HANGS: Final = 60.0
"""Seconds without a call after which the process under test is given up."""

_AT_REST: Final = 0.2
"""Seconds without a call after which all are taken to have done what they had to do."""

CALLER, THREAD, HELPER, INIT = 0, -1, -2, -3
"""
Roles: the thread under test, other threads of its process, other processes of its pid
namespace, and what has become nsbox-init.

Who is in a new one has the role of its process id there: 1, 2, ...
"""
_NAMES: Final = {CALLER: "caller", THREAD: "thread", HELPER: "helper", INIT: "init"}
_PAYLOAD: Final = -4

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libseccomp = ctypes.CDLL("libseccomp.so.2")
_libseccomp.seccomp_syscall_resolve_num_arch.restype = ctypes.c_char_p
_NATIVE: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[platform.machine()]


def number_of(name: str) -> int:
    """Return the number of a system call on this machine; below 0 if it has none."""
    return int(_libseccomp.seccomp_syscall_resolve_name(name.encode()))


def name_of(number: int) -> str:
    """Return the name of a system call, or its number as text."""
    name: bytes | None = _libseccomp.seccomp_syscall_resolve_num_arch(_NATIVE, number)
    return str(number) if name is None else name.decode()


_PRCTL: Final = number_of("prctl")
_EXECVE: Final = number_of("execve")
_EXECVEAT: Final = number_of("execveat")


class Call(NamedTuple):
    """
    A system call that was seen.

    Args:
        role: Who made it.
        name: Of the call.
        text: The path that it is about, or another word that says what it is for; "" if none.
        occurrence: How many of that name this one had made, with it.
    """

    role: int
    name: str
    text: str
    occurrence: int

    def __str__(self) -> str:
        return f"{_NAMES.get(self.role, self.role)} {self.name} {self.text}".rstrip()


# Which argument of a call is a path, or text otherwise.
_TEXT_AT: Final = {
    "access": 0, "execve": 0, "execveat": 1, "fsconfig": 2, "fsopen": 0, "memfd_create": 0,
    "mkdir": 0, "mkdirat": 1, "mknodat": 1, "newfstatat": 1, "open_tree": 1, "openat": 1,
    "openat2": 1, "rmdir": 0, "setdomainname": 0, "sethostname": 0, "symlinkat": 2, "unlinkat": 1,
    "write": 1,
}  # fmt: skip
UNREADABLE: Final = "?"
KILLED: Final = 9999
"""No errno that a kernel has."""
CLONE_FS: Final = 0x200  # linux/sched.h
_OPTION_AT: Final = {"prctl": 0, "fcntl": 1, "fsconfig": 1, "ioctl": 1}
_OPTIONS: Final = {
    "prctl": {
        1: "PR_SET_PDEATHSIG", 3: "PR_GET_DUMPABLE", 4: "PR_SET_DUMPABLE", 8: "PR_SET_KEEPCAPS",
        24: "PR_CAPBSET_DROP", 27: "PR_GET_SECUREBITS", 28: "PR_SET_SECUREBITS",
        38: "PR_SET_NO_NEW_PRIVS", 47: "PR_CAP_AMBIENT",
    },
    "ioctl": {
        0x5401: "TCGETS", 0x540E: "TIOCSCTTY", 0x5413: "TIOCGWINSZ", 0x5414: "TIOCSWINSZ",
        0x5421: "FIONBIO", 0x5441: "TIOCGPTPEER", 0x40045431: "TIOCSPTLCK", 0x8914: "SIOCSIFFLAGS",
        0xB703: "NS_GET_NSTYPE",
    },
    "fcntl": {1: "F_GETFD", 2: "F_SETFD", 3: "F_GETFL", 4: "F_SETFL", 1030: "F_DUPFD_CLOEXEC"},
    "fsconfig": {0: "SET_FLAG", 1: "SET_STRING", 6: "CMD_CREATE"},
}  # fmt: skip


def _text_of(thread: int, name: str, arguments: list[int]) -> str:
    words = []
    if name in _OPTION_AT:
        option = arguments[_OPTION_AT[name]]
        words.append(_OPTIONS[name].get(option, str(option)))
    if name == "waitid" and arguments[3] & os.WNOHANG:
        words.append("WNOHANG")
    # Another thread shares the directories, too.
    if name == "clone" and arguments[0] & (CLONE_FS | CLONE_FILES) == CLONE_FILES:
        words.append("CLONE_FILES")
    address = arguments[_TEXT_AT[name]] if name in _TEXT_AT else 0
    if address:
        try:
            memory = open(f"/proc/{thread}/mem", "rb", buffering=0)  # noqa: SIM115
        except PermissionError:
            return UNREADABLE  # a plain user's process that has joined another user namespace
        with memory:
            memory.seek(address)
            text = memory.read(256)  # less, if the next page is none
        words.extend(text.partition(b"\0")[0].decode(errors="replace").splitlines()[0:1])
    return " ".join(words)


class Fault(NamedTuple):
    """
    What is to fail.

    Args:
        role: Whose call.
        name: Of the call.
        occurrence: The n-th of that name.
        error: With which errno; or KILLED: who makes it is killed instead.
        lasting: All later ones of that name and role too.
    """

    role: int
    name: str
    occurrence: int
    error: int
    lasting: bool

    def __str__(self) -> str:
        until = " from there on" if self.lasting else ""
        what = "kills" if self.error == KILLED else f"fails with {errno.errorcode[self.error]}"
        return f"{self.name} number {self.occurrence}{until} {what}"


class Hung(AssertionError):
    """The process under test made no call for a long time."""


class Gate:
    """What the process under test knows of its supervisor."""

    def watch(self) -> None:
        """Begin a case in which nothing fails."""
        self._mark(1, 0, 0, 0, 0, 0)

    def arm(self, fault: Fault) -> None:
        """Begin a case."""
        self._mark(1, fault.role, number_of(fault.name), *fault[2:])

    def rest(self) -> bool:
        """End the case; return whether the fault came about."""
        return self._mark(0, 0, 0, 0, 0, 0) != 0

    def _mark(self, *case: int) -> int:
        return int(_libc.syscall(_MARK, *map(ctypes.c_long, case)))


def supervised(
    function: Callable[[Gate, P], T],
    prepare: Callable[[], P],
    names: Collection[str] | None = None,
) -> tuple[T, list[Call]]:
    """
    Call a function in a forked child, under supervision.

    Args:
        function: Gets the gate, and what was prepared; what it returns must be picklable.
        prepare: Called in the child before: what it does is not seen.
        names: The calls to be asked about. Default: all.

    Returns:
        What the function returned, and the calls that were made between its marks.

    Raises:
        Hung: If it did not come to an end.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        _be_supervised(theirs, function, prepare, names)
    theirs.close()
    supervisor = _Supervisor(pid)
    try:
        outcome = supervisor.serve(ours)
    finally:
        ours.close()
        supervisor.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    succeeded, value = outcome
    assert succeeded, f"in the child:\n{value}"
    return value, supervisor.calls


def killed(
    act: Callable[[], object],
    prepare: Callable[[], object],
    moment: int,
    *,
    orphans: bool = False,
) -> tuple[int, float]:
    """
    Call a function in a forked child, and kill that by SIGKILL.

    Whoever it has started inherits the filter, whatever becomes of it, and the kernel
    tells when the last one that has it is gone. The calling process is to be a subreaper
    (PR_SET_CHILD_SUBREAPER) that has no other children.

    Args:
        act: Should not come to an end; starts others.
        prepare: Called in the child before.
        moment: It is killed at its n-th call from there on, or that of a process of its
            own, before the call is made; or as soon as all are at rest.
        orphans: No signal tells a child of the end of its parent (PR_SET_PDEATHSIG), as if
            the kernel had not sent it.

    Returns:
        The child's process id, and the seconds until all were gone.

    Raises:
        Hung: If some did not go.
    """

    def run(gate: Gate, _: object) -> None:
        gate.watch()
        act()

    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        _be_supervised(theirs, run, prepare, None)
    theirs.close()
    supervisor = _Supervisor(pid, moment, orphans=orphans)
    try:
        return pid, supervisor.kill(ours)
    finally:
        ours.close()
        supervisor.close()


# ---- the process under test -----------------------------------------------


def _be_supervised(
    channel: socket.socket,
    function: Callable[[Gate, P], object],
    prepare: Callable[[], P],
    names: Collection[str] | None,
) -> None:
    try:
        os.dup2(channel.fileno(), _CHANNEL)
        channel = socket.socket(fileno=_CHANNEL)
        prepared = prepare()
        listener = _install(None if names is None else sorted(map(number_of, names)))
        socket.send_fds(channel, [b"\0"], [listener])
        os.close(listener)
        outcome: tuple[bool, object] = (True, function(Gate(), prepared))
    except BaseException:
        outcome = (False, traceback.format_exc())
    channel.sendall(pickle.dumps(outcome))
    os._exit(0)


def _install(numbers: list[int] | None) -> int:
    """Ask about these calls from now on, all if None; return the listener's descriptor."""
    text = _program(numbers)
    buffer = ctypes.create_string_buffer(text)
    program = struct.pack("@HP", len(text) // _INSTRUCTION.size, ctypes.addressof(buffer))
    if os.geteuid() != 0:
        lowlevel.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    call, listener = number_of("seccomp"), -1
    listener = _libc.syscall(call, _SET_MODE_FILTER, _NEW_LISTENER, program)
    if listener < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(listener)


def _program(numbers: list[int] | None) -> bytes:
    """Return the filter: the channel's calls and the listener's pass, the others are asked for."""
    asked = [] if numbers is None else [_MARK, _EXECVE, _EXECVEAT, *numbers]
    default = _RET_USER_NOTIF if numbers is None else _RET_ALLOW
    code = [
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_EQUAL, 0, 1, _CHANNEL),
        (_RETURN, 0, 0, _RET_ALLOW),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    for number in asked:
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _RET_USER_NOTIF)]
    return b"".join(_INSTRUCTION.pack(*item) for item in [*code, (_RETURN, 0, 0, default)])


# ---- the supervisor -------------------------------------------------------


class _Supervisor:
    """Answers the kernel's questions about one process and its children."""

    def __init__(self, pid: int, moment: int = 0, *, orphans: bool = False) -> None:
        self.calls: list[Call] = []
        self._pid = pid
        self._moment = moment
        self._orphans = orphans
        self._listener = -1
        self._fault: Fault | None = None
        self._fired = False
        self._open = False
        self._seen = 0
        self._killed: float | None = None
        self._roles: dict[int, int] = {}
        self._counts: Counter[tuple[int, int]] = Counter()

    def serve(self, channel: socket.socket) -> tuple[bool, Any]:
        """Answer until the result has come."""
        text, fds, _, _ = socket.recv_fds(channel, 1, 1)
        if fds:
            self._listener = fds[0]
        else:
            data = text
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        if fds:
            data = b""
            poll.register(self._listener, select.POLLIN)
        while True:
            ready = dict(poll.poll(_HANGS * 1000))
            if not ready:
                raise Hung(f"nothing happens any more after {self._fault}")
            if self._listener in ready:
                self._answer()
            if channel.fileno() in ready:
                chunk = channel.recv(1 << 20)
                if not chunk:
                    return pickle.loads(data)  # type: ignore[no-any-return]
                data += chunk

    def kill(self, channel: socket.socket) -> float:
        """Answer until the moment, kill, and answer until all are gone; return how long."""
        _, (self._listener,), _, _ = socket.recv_fds(channel, 1, 1)
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while self._killed is None:
            if poll.poll(_AT_REST * 1000):
                self._answer()
            else:
                self._kill()
        while time.monotonic() < self._killed + _HANGS:
            # Zombies count: it is for us to reap what has lost its parents.
            while _reap():
                pass
            ((_, events),) = poll.poll(1) or [(0, 0)]
            if events & select.POLLIN:
                self._answer()
            elif events & select.POLLHUP:
                taken = time.monotonic() - self._killed
                _reap_all()
                return taken
        left = {pid: Path(f"/proc/{pid}/comm").read_text() for pid in _children()}
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        raise Hung(f"after the end of their caller there are still {left}")

    def _kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        self._killed = time.monotonic()

    def close(self) -> None:
        if self._listener >= 0:
            os.close(self._listener)

    def _answer(self) -> None:
        question = bytearray(_QUESTION.size)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, question)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return  # it was killed while it waited
            raise
        request, pid, _, number, _, _, *arguments = _QUESTION.unpack(question)
        value, code, flags = self._decide(pid, number, arguments)
        try:
            fcntl.ioctl(self._listener, _SEND, _ANSWER.pack(request, value, code, flags))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def _decide(self, pid: int, number: int, arguments: list[int]) -> tuple[int, int, int]:
        """Return value, error and flags of the answer."""
        if number == _MARK:
            return self._begin_or_end(arguments), 0, 0
        if not self._open:
            return 0, 0, _CONTINUE
        self._seen += 1
        if self._seen == self._moment:
            self._kill()
        if self._moment:
            lost = self._orphans and number == _PRCTL and arguments[0] == _PR_SET_PDEATHSIG
            return 0, 0, 0 if lost else _CONTINUE
        role = self._role(pid)
        if role is None:
            return 0, 0, _CONTINUE
        self._counts[role, number] += 1
        occurrence = self._counts[role, number]
        fault = self._fault
        if fault is None:
            name = name_of(number)
            self.calls.append(Call(role, name, _text_of(pid, name, arguments), occurrence))
        elif (role, number) == (fault.role, number_of(fault.name)) and (
            occurrence == fault.occurrence or (fault.lasting and occurrence > fault.occurrence)
        ):
            self._fired = True
            if fault.error == KILLED:
                os.kill(_look_up(pid)[0], signal.SIGKILL)
                return 0, 0, _CONTINUE
            return 0, -fault.error, 0
        if number == _EXECVE and role != CALLER:
            self._roles[pid] = _PAYLOAD
        if number == _EXECVEAT:
            self._roles[pid] = INIT
        return 0, 0, _CONTINUE

    def _begin_or_end(self, arguments: list[int]) -> int:
        begin, role, number, occurrence, error, lasting = arguments
        fired, self._fired, self._open = self._fired, False, begin > 0
        self._fault = None
        if error:
            role = ctypes.c_int(role & 0xFFFFFFFF).value
            self._fault = Fault(role, name_of(number), occurrence, error, lasting > 0)
        self._roles = {self._pid: CALLER}
        self._counts.clear()
        return int(fired)

    def _role(self, thread: int) -> int | None:
        """Return who a thread is; None for a payload."""
        role = self._roles.get(thread)
        if role is None:
            role = self._roles[thread] = self._find_role(thread)
        return None if role == _PAYLOAD else role

    def _find_role(self, thread: int) -> int:
        try:
            process, inside = _look_up(thread)
        except (FileNotFoundError, ProcessLookupError):
            return HELPER  # killed meanwhile: nobody hears the answer
        if process == self._pid:
            return THREAD
        return inside[-1] if len(inside) > 1 else HELPER


def _reap() -> bool:
    """Reap a child that has ended; tell if there was one."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False


def _reap_all() -> None:
    """Wait for all children: whoever lets go of the filter is still on the way out."""
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        pass


def _children() -> list[int]:
    return [int(pid) for pid in Path("/proc/thread-self/children").read_text().split()]


def _look_up(thread: int) -> tuple[int, list[int]]:
    """Return the process of a thread, and its ids from our pid namespace to its own."""
    fields = {}
    for line in Path(f"/proc/{thread}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        fields[key] = value
    return int(fields["Tgid"]), [int(number) for number in fields["NSpid"].split()]
