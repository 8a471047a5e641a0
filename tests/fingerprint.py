"""What a payload must not change on the host: taken before and after each attack."""

import ctypes
import os
import platform
import resource
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

import nsbox
from nsbox._spares import drain

PR_GET_DUMPABLE = 3
PR_SET_CHILD_SUBREAPER = 36

SYSCTLS = (
    "dev/tty/legacy_tiocsti",
    "fs/file-max",
    "fs/protected_symlinks",
    "fs/suid_dumpable",
    "kernel/core_pattern",
    "kernel/domainname",
    "kernel/hotplug",
    "kernel/keys/maxkeys",
    "kernel/modprobe",
    "kernel/msgmax",
    "kernel/panic",
    "kernel/perf_event_paranoid",
    "kernel/pid_max",
    "kernel/randomize_va_space",
    "kernel/sem",
    "kernel/shmmax",
    "kernel/sysrq",
    "kernel/unprivileged_bpf_disabled",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_unprivileged_port_start",
    "user/max_net_namespaces",
    "user/max_user_namespaces",
    "vm/overcommit_memory",
    "vm/swappiness",
)

KEY = f"nsbox-key-{os.getpid()}"
"""Description of the keys that payloads add; the host's keyrings must never have it."""
KEYRINGS = (-1, -2, -3, -4, -5)  # thread, process, session, user, user's session: keyctl(2)
_KEYCTL = {"x86_64": 250, "aarch64": 219}.get(platform.machine(), -1)
_KEYCTL_SEARCH = 10

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int = 0) -> int:
    result: int = _libc.prctl(option, value, 0, 0, 0)
    return result


def _key_errno(keyring: int) -> int:
    """Look for KEY in one of our own keyrings, and return why it was not found; 0 if it was."""
    found = _libc.syscall(_KEYCTL, _KEYCTL_SEARCH, keyring, b"user", KEY.encode(), 0)
    return 0 if found >= 0 else ctypes.get_errno()


def read(path: str) -> str | None:
    """Return the text of a file, or None if it cannot be read."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return None


def _status(path: str | Path) -> tuple[int, ...] | None:
    """A file's identity and times; the time of change tells of every write, chmod and link."""
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino, info.st_mode, info.st_uid, info.st_size, info.st_ctime_ns


def programs() -> list[str]:
    """Return the files of the host that a payload's way out would lead over."""
    import nsbox._native as native

    return [
        os.path.realpath(sys.executable),
        native.__file__,
        nsbox.__file__,
        "/bin/sh",
        "/etc/passwd",
        "/etc/shadow",
        "/etc/ld.so.preload",
    ]


def _tree(path: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for directory, names, files in os.walk(path):
        for name in [".", *names, *files]:
            entry = Path(directory, name)
            info = entry.lstat()
            content: object = None
            if entry.is_symlink():
                content = os.readlink(entry)
            elif entry.is_file():
                content = entry.read_bytes()
            key = str(entry.relative_to(path))
            found[key] = info.st_mode, info.st_uid, info.st_nlink, info.st_mtime_ns, content
    return found


def _self() -> dict[str, object]:
    """What belongs to the calling process, and could be changed from outside it."""
    limits = {
        name: resource.getrlimit(getattr(resource, name))
        for name in dir(resource)
        if name.startswith("RLIMIT_")
    }
    return {
        "dumpable": prctl(PR_GET_DUMPABLE),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "scheduler": os.sched_getscheduler(0),
        "affinity": os.sched_getaffinity(0),
        "oom_score_adj": read("/proc/self/oom_score_adj"),
        "session": (os.getsid(0), os.getpgid(0)),
        "directory": os.getcwd(),
        "limits": limits,
        "namespaces": [
            os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")
        ],
        "cgroup": read("/proc/self/cgroup"),
    }


def take(watched: Iterable[Path]) -> dict[str, object]:
    """
    Return the host's fingerprint: what it was before must equal what it is after.

    Args:
        watched: Directories that the test made and that may not change either.
    """
    drain()  # whoever works ahead changes the dumpable mark meanwhile
    return {
        "mounts": read("/proc/self/mountinfo"),
        "sysctls": {name: read(f"/proc/sys/{name}") for name in SYSCTLS},
        "hostname": socket.gethostname(),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "keys": [_key_errno(keyring) for keyring in KEYRINGS],
        "programs": {path: _status(path) for path in programs()},
        "watched": {str(path): _tree(path) for path in watched},
        "self": _self(),
    }
