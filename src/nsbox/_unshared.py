"""
A sandbox without namespaces: what of a description is left, and what stands in.

Nothing is mounted, so paths are the host's, and Landlock alone decides which of
them are open. What Landlock leaves alone and a namespace would have kept apart,
the system-call filter refuses. Pure, as all that makes a plan.
"""

import errno
import os.path
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

from . import _host
from ._constants import MOUNT_ATTR_RDONLY
from ._host import Host
from ._landlock import TRUNCATE_ABI
from ._plan import Code, Description, Modes, Op
from ._values import is_within
from .errors import PlanError, UnsupportedError
from .mount import Bind, Mount
from .seccomp import ERRNO, OPERATORS, Argument, Condition, Rule


def check_unshared(box: Description, host: Host) -> None:
    """
    Refuse what only namespaces and mounts could do.

    Raises:
        PlanError: Naming the option, and why it cannot be had.
        UnsupportedError: If the kernel's Landlock is missing or too old.
    """
    for name, given, why in _contradictions(box):
        if given:
            raise PlanError(f"{name}: cannot be had with namespaces='none', {why}")
    for mount in box.mounts:
        _check_mount(mount, box.mounts)
    if host.landlock < TRUNCATE_ABI:
        raise UnsupportedError(
            "namespaces='none' rests on Landlock, which this kernel lacks or has in a version "
            "that does not cover truncate(2): Linux 6.2, with landlock in the boot parameter lsm="
        )


def _contradictions(box: Description) -> Iterator[tuple[str, bool, str]]:
    """Yield options, whether they ask for what cannot be, and the reason."""
    rooted = "where the root is the host's"
    yield "root", box.root is not None, rooted
    yield "writable", box.writable, f"{rooted}: name what may change, Bind(path, readonly=False)"
    yield "masks", bool(box.masks), "where nothing is mounted"
    yield "hostname", box.hostname is not None, "where it would be the host's that changes"
    for name in ("uid", "gid", "host_uid", "host_gid"):
        why = "where no ids are mapped: the payload is the caller, or nobody if that is root"
        yield name, getattr(box, name) is not None, why
    for kind, mode in box.namespaces.items():
        name = "cgroup_ns" if kind == "cgroup" else kind
        yield name, mode == "join" or (kind, mode) == ("time", "new"), "which makes and joins none"
    yield "capabilities", bool(box.capabilities), "where they would be over the host"
    yield "user_namespaces", box.user_namespaces, "where Landlock forbids all mounts"
    yield "landlock", box.landlock is False, "which rests on it"
    yield "seccomp", box.seccomp is None, "where the filter closes what Landlock leaves open"


def _check_mount(mount: Mount, mounts: Sequence[Mount]) -> None:
    if not isinstance(mount, Bind):
        raise PlanError(f"{mount!r}: nothing can be mounted with namespaces='none'")
    if os.path.normpath(mount.source) != mount.target:
        raise PlanError(
            f"{mount!r}: with namespaces='none' each path is where the host has it, "
            "so source and target must be the same"
        )
    if mount.idmap:
        raise PlanError(f"{mount!r}: idmap: with namespaces='none' there is no mount to map")
    in_proc = is_within(mount.target, "/proc") or is_within("/proc", mount.target)
    if in_proc and not mount.readonly:
        raise PlanError(f"{mount!r}: the host's /proc may only be shown read-only")
    for other in mounts:
        if not isinstance(other, Bind) or other.readonly or not mount.readonly:
            continue
        if is_within(mount.target, other.target):
            raise PlanError(
                f"{mount!r} lies in {other!r}, which is writable, and with namespaces='none' what "
                "is allowed above cannot be taken away below"
            )


# ---- paths -------------------------------------------------------------------


def paths(box: Description, host: Host) -> tuple[Op, ...]:
    """
    Return the operations: ids, and the paths that are open.

    Those that Sandbox() shows at the host's own paths: programs and the files of /etc
    that they need, devices, and what the user binds. No /tmp, /proc and home.
    """
    shown = [*host.directories, *host.etc, *host.etc_large]
    shown += [f"/etc/{name}" for name, _ in host.etc_files]
    ops = [Op(Code.IDS), *(_path(name, readonly=True) for name in shown)]
    if box.default_mounts:
        ops += [
            _path(f"/dev/{name}", readonly=False, device=major << 32 | minor)
            for name, major, minor in _host.DEVICES
        ]
    for mount in box.mounts:
        assert isinstance(mount, Bind)
        ops.append(_path(mount.target, readonly=mount.readonly))
    return tuple(ops)


def _path(path: str, *, readonly: bool, device: int = 0) -> Op:
    attributes = MOUNT_ATTR_RDONLY if readonly else 0
    return Op(Code.PATH, path.lstrip("/"), path, attributes=attributes, device=device)


# ---- what stands in for namespaces -------------------------------------------

HOST: Final = "host"
_CHANGES: Final = (
    "chmod",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "chown",
    "fchown",
    "fchownat",
    "lchown",
)
_TIMES: Final = ("futimesat", "utime", "utimensat", "utimes")
_ATTRIBUTES: Final = (
    *("setxattr", "fsetxattr", "lsetxattr", "setxattrat"),
    *("removexattr", "fremovexattr", "lremovexattr", "removexattrat", "file_setattr"),
)
# Each user has so many instances.
_INOTIFY: Final = ("inotify_init", "inotify_init1", "inotify_add_watch")
# A descriptor that reads is enough for them. The kernel reads 32 bits.
_REQUESTS: Final = (
    0x40086602,  # FS_IOC_SETFLAGS
    0x40087602,  # FS_IOC_SETVERSION
    0x40086604,  # EXT4_IOC_SETVERSION
    0x6609,  # EXT4_IOC_MIGRATE
    0x401C5820,  # FS_IOC_FSSETXATTR
    0x800C6613,  # FS_IOC_SET_ENCRYPTION_POLICY
    0x40806685,  # FS_IOC_ENABLE_VERITY
    0x4008941A,  # BTRFS_IOC_SUBVOL_SETFLAGS
    0x40309410,  # BTRFS_IOC_DEFRAG_RANGE
    0xC0C89425,  # BTRFS_IOC_SET_RECEIVED_SUBVOL
)
# Those of btrfs that name something: BTRFS_IOC_SUBVOL_CREATE, BTRFS_IOC_SNAP_DESTROY and others.
_NAMING: Final = 0x50009400
_IPC: Final = (
    *("ipc", "msgctl", "msgget", "msgrcv", "msgsnd"),
    *("semctl", "semget", "semop", "semtimedop", "shmat", "shmctl", "shmdt", "shmget"),
    *("mq_open", "mq_unlink"),
)
# Of any process of the same user: no hook of Landlock is asked.
_OF_OTHERS: Final = (
    *("prlimit64", "sched_setaffinity", "sched_setattr"),
    *("sched_setparam", "sched_setscheduler"),
)
_LOW: Final = 0xFFFFFFFF


def _refuse(*names: str, arguments: tuple[Argument, ...] = ()) -> Rule:
    return Rule(names, ERRNO | errno.EPERM, arguments, Condition(), Condition())


def _equal(position: int, value: int, bits: int = _LOW) -> tuple[Argument, ...]:
    return (Argument(position, OPERATORS["SCMP_CMP_MASKED_EQ"], bits, value),)


def _not_zero(position: int) -> tuple[Argument, ...]:
    return (Argument(position, OPERATORS["SCMP_CMP_NE"], 0, 0),)


_REFUSED: Final = {
    # Landlock is not asked for these, wherever a file lies; and inotify tells of names.
    "mnt": (
        _refuse(*_CHANGES, *_TIMES, *_ATTRIBUTES, *_INOTIFY),
        *(_refuse("ioctl", arguments=_equal(1, request)) for request in _REQUESTS),
        _refuse("ioctl", arguments=_equal(1, _NAMING, _LOW ^ 0xFF)),
    ),
    "pid": (
        _refuse(*_OF_OTHERS, arguments=_not_zero(0)),
        _refuse("setpriority", "ioprio_set", arguments=_not_zero(1)),
        _refuse("setpriority", arguments=_equal(0, 2)),  # PRIO_USER
        _refuse("ioprio_set", arguments=_equal(0, 3)),  # IOPRIO_WHO_USER
    ),
    # Whole: behind a socket in the file system is a service of the host, maybe one that
    # starts programs for its user. A socketpair is nobody else's.
    "net": (_refuse("socket", "socketcall"),),
    "ipc": (_refuse(*_IPC),),
}


def withheld(namespaces: Modes) -> tuple[str, ...]:
    """Return the kinds that are the host's, and for which the filter stands in."""
    return tuple(kind for kind in _REFUSED if namespaces.get(kind) != HOST)


@lru_cache(maxsize=16)
def refusals(kinds: tuple[str, ...]) -> tuple[Rule, ...]:
    """Return the rules that stand in for namespaces of some kinds."""
    return tuple(rule for kind in kinds for rule in _REFUSED[kind])
