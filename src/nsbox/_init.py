"""
The program nsbox-init, and what a system-call filter must permit for it to work.

It is built with the package (csrc/init.c) and run from a sealed memfd: no path leads to
it, nobody can write to it, and those who run it cannot read it.
"""

import fcntl
import os
import signal
from functools import lru_cache
from typing import Final

from . import _filter
from ._constants import (
    CLONE_CHILD_CLEARTID,
    CLONE_FILES,
    CLONE_NEWCGROUP,
    CLONE_PIDFD,
    CLONE_VFORK,
    CLONE_VM,
)
from .errors import UnsupportedError

PROGRAM: Final = os.path.join(os.path.dirname(__file__), "nsbox-init")

_MFD_EXEC: Final = 0x10  # Linux 6.3; without it, vm.memfd_noexec may forbid to execute
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NAME: Final = 15


@lru_cache(maxsize=1)
def image() -> int:
    """
    Return the descriptor of a sealed memfd with the program: one for the whole process.

    Raises:
        UnsupportedError: If the package has no program, or this host lets no memfd be executed.
        OSError: If the memfd could not be made.
    """
    try:
        with open(PROGRAM, "rb", buffering=0) as file:
            program = file.read()
    except FileNotFoundError:
        raise UnsupportedError(
            f"{PROGRAM} is missing: this nsbox was installed without it; build it with pip, "
            "or install a wheel"
        ) from None
    fd = _create()
    try:
        os.write(fd, program)
        # Whoever may not read what he executes cannot be traced by his like: ptrace(2).
        os.fchmod(fd, 0o111)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def _create() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("nsbox-init", flags | _MFD_EXEC)
    except PermissionError:
        raise UnsupportedError(
            "the sysctl vm.memfd_noexec is 2: no memfd may be executed, and nsbox-init is one"
        ) from None
    except OSError:
        return os.memfd_create("nsbox-init", flags)  # a kernel before 6.3


# A thread of its own: CLONE_VM, CLONE_FILES, CLONE_SIGHAND and CLONE_THREAD; and CLONE_FS.
_HOLDER: Final = CLONE_VM | CLONE_FILES | 0x800 | 0x10000 | CLONE_CHILD_CLEARTID
_LAUNCHER: Final = _HOLDER | 0x200

# What it calls, and its child until its own exec: csrc/init.c, follow_request() in csrc/child.c.
_CALLS: Final[tuple[tuple[str, *tuple[int, ...]], ...]] = (
    ("clone", CLONE_VM | CLONE_PIDFD | CLONE_CHILD_CLEARTID | signal.SIGCHLD),
    ("clone", _HOLDER),
    ("clone", _LAUNCHER),
    ("clone", CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLONE_CHILD_CLEARTID | signal.SIGCHLD),
    ("prctl", _PR_SET_PDEATHSIG),
    ("prctl", _PR_SET_DUMPABLE),
    ("prctl", _PR_SET_NAME),
    *(
        (name,)
        for name in (
            "capget",
            "capset",
            "chdir",
            "clock_gettime",
            "close",
            "close_range",
            "dup3",
            "execve",
            "execveat",
            "exit",
            "exit_group",
            "fcntl",
            "futex",
            "getpid",
            "getpriority",
            "ioctl",
            "kill",
            "lseek",
            "mmap",
            "munmap",
            "openat",
            "pidfd_open",
            "pidfd_send_signal",
            "ppoll",
            "prlimit64",
            "read",
            "recvmsg",
            "rt_sigaction",
            "rt_sigprocmask",
            "sendmsg",
            "setgroups",
            "setpgid",
            "setpriority",
            "setresgid",
            "setresuid",
            "setsid",
            "shutdown",
            "signalfd4",
            "umask",
            "waitid",
            "write",
        )
    ),
)
# For what has CAP_SYS_ADMIN, as soon as it is in its cgroup.
_CALLS_OF_MOUNTERS: Final = (("unshare", CLONE_NEWCGROUP),)


@lru_cache(maxsize=16)
def works_under(program: bytes, *, may_mount: bool) -> bool:
    """
    Tell whether an init can work under a filter, and hand it down to what it starts.

    Otherwise its children install it themselves, each right before its exec.
    """
    calls = (*_CALLS, *_CALLS_OF_MOUNTERS) if may_mount else _CALLS
    return not program or _filter.permits(program, calls)
