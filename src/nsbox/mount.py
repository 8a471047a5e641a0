"""
What to mount in a sandbox: immutable values, checked when they are made.

They say nothing about order and touch no file system; the plan sorts them by
depth, and the C core mounts them.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ._values import (
    PathArg,
    check_bool,
    check_mode,
    check_path,
    check_target,
    is_within,
    parse_size,
)
from .errors import PlanError, PlanTypeError

DEFAULT_TMPFS_SIZE = "512M"
DEFAULT_TMPFS_INODES = 131072
TERMINALS = 256  # of a sandbox; all share the host's, by default 4096 (sysctl kernel.pty.max)
_MAX_LAYERS = 500  # OVL_MAX_STACK in the kernel's fs/overlayfs/params.h


def _set(instance: object, **fields: object) -> None:
    """Store normalised values in a frozen dataclass; for __post_init__ only."""
    for name, value in fields.items():
        object.__setattr__(instance, name, value)


@dataclass(frozen=True, slots=True)
class Bind:
    """
    Show a file or directory of the host inside, with everything mounted below it.

    The mount is always nosuid and nodev. Read-only holds for every submount
    too. A path that is a symbolic link on the host means what it points to.

    Args:
        source: Path on the host; a relative one is relative to the caller's
            working directory when it spawns.
        target: Absolute path inside; default: the same as source.
        readonly: Default True.
        idmap: Show what belongs to the owner of source as belonging to the
            payload, by an id-mapped mount, when the payload runs under another
            host id than the caller (that is: for a root caller). None, the
            default, does so if the bind is writable. Needs Linux 5.12 and a
            file system that can (ext4, xfs, btrfs; tmpfs since 6.3).

    Raises:
        PlanError: If a path is empty, has a NUL or, as target, is relative or
            has "..".
    """

    source: str
    target: str
    readonly: bool
    idmap: bool | None

    def __init__(
        self,
        source: PathArg,
        target: PathArg | None = None,
        *,
        readonly: bool = True,
        idmap: bool | None = None,
    ) -> None:
        path = check_path("Bind source", source)
        if target is None and not path.startswith("/"):
            raise PlanError(f"Bind source {path!r} is relative, so it needs a target")
        if idmap is not None:
            check_bool("Bind idmap", idmap)
        _set(
            self,
            source=path,
            target=check_target("Bind target", path if target is None else target),
            readonly=check_bool("Bind readonly", readonly),
            idmap=idmap,
        )


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """
    Mount an empty file system in memory, nosuid and nodev.

    Args:
        target: Absolute path inside.
        size: Most bytes it may hold: an int or "64K", "256M", "1G". Default 512M.
        inodes: Most files and directories it may hold. Default 131072.
        mode: Permission bits of its root directory. Default 0o1777, as /tmp has.
    """

    target: str
    size: int
    inodes: int
    mode: int

    def __init__(
        self,
        target: PathArg,
        *,
        size: int | str = DEFAULT_TMPFS_SIZE,
        inodes: int = DEFAULT_TMPFS_INODES,
        mode: int = 0o1777,
    ) -> None:
        _set(
            self,
            target=check_target("Tmpfs target", target),
            size=parse_size("Tmpfs size", size),
            inodes=parse_size("Tmpfs inodes", inodes),
            mode=check_mode("Tmpfs mode", mode),
        )

    def __repr__(self) -> str:
        # As a dataclass has it, but for the permission bits, which are read in octal.
        return (
            f"Tmpfs(target={self.target!r}, size={self.size}, inodes={self.inodes}, "
            f"mode={self.mode:#o})"
        )


@dataclass(frozen=True, slots=True)
class Proc:
    """
    Mount a procfs of the sandbox's pid namespace, nosuid, nodev and noexec.

    What tells of the host or of its other users there is masked: see
    ``Sandbox(masks=...)``.

    Args:
        target: Absolute path inside. Default /proc.
        readonly: Nothing in it can be written: no setting of the kernel below
            /proc/sys, and no attribute of a process. Default: True, unless the
            payload may make user namespaces, whose maps are files there.
        only_processes: Show processes and nothing else: no cpuinfo, meminfo,
            sys, ... which real programs read. Default False.
    """

    target: str
    readonly: bool | None
    only_processes: bool

    def __init__(
        self,
        target: PathArg = "/proc",
        *,
        readonly: bool | None = None,
        only_processes: bool = False,
    ) -> None:
        if readonly is not None:
            check_bool("Proc readonly", readonly)
        _set(
            self,
            target=check_target("Proc target", target),
            readonly=readonly,
            only_processes=check_bool("Proc only_processes", only_processes),
        )


@dataclass(frozen=True, slots=True)
class Dev:
    """
    Mount a fresh /dev: a small read-only tmpfs that holds null, zero, full,
    random, urandom and tty of the host, a devpts of its own (pts, ptmx) for at most
    256 terminals, shm, and the links fd, stdin, stdout and stderr.

    Args:
        target: Absolute path inside. Default /dev.
        shm_size: Most bytes that shm may hold. Default 512M.
    """

    target: str
    shm_size: int

    def __init__(
        self, target: PathArg = "/dev", *, shm_size: int | str = DEFAULT_TMPFS_SIZE
    ) -> None:
        _set(
            self,
            target=check_target("Dev target", target),
            shm_size=parse_size("Dev shm_size", shm_size),
        )


@dataclass(frozen=True, slots=True)
class Overlay:
    """
    Stack directories of the host, and let the payload change what it sees of them.

    Without upper, the changes go to a file system in memory and vanish with
    the sandbox. The lower directories are never changed. Mounts below a lower
    directory are not part of the overlay. In memory, directories of lower layers cannot
    be removed or replaced before Linux 6.6 (EIO): tmpfs keeps no marks for it.

    Args:
        lower: Directory of the host, or several, the topmost first; at most 500,
            and more than 88 only since Linux 6.8.
        target: Absolute path inside. Default "/", for ``Sandbox(root=Overlay(...))``.
        upper: Directory of the host that keeps the changes, as an absolute path
            without "..".
        work: An empty directory, which the kernel needs; required with upper, and
            best beside it: they have to be on one mount, and the kernel is given
            the directory that holds both. What it leaves there has no permission
            bits, so a plain user has to chmod it before removing it.
        size: Without upper: most bytes that the changes may take. Default 512M.

    Raises:
        PlanError: If upper and work do not come together, or there are too many layers.
    """

    lower: tuple[str, ...]
    target: str
    upper: str | None
    work: str | None
    size: int

    def __init__(
        self,
        lower: PathArg | Sequence[PathArg],
        target: PathArg = "/",
        *,
        upper: PathArg | None = None,
        work: PathArg | None = None,
        size: int | str = DEFAULT_TMPFS_SIZE,
    ) -> None:
        layers = lower if isinstance(lower, (list, tuple)) else [lower]
        if not layers:
            raise PlanError("Overlay lower: at least one directory is needed")
        if len(layers) > _MAX_LAYERS:
            raise PlanError(f"Overlay lower: at most {_MAX_LAYERS} directories, not {len(layers)}")
        if (upper is None) != (work is None):
            raise PlanError("Overlay: upper and work come together")
        for name, path in (("upper", upper), ("work", work)):
            if path is not None:
                check_target(f"Overlay {name}", path)
        _set(
            self,
            lower=tuple(check_path("Overlay lower", layer) for layer in layers),
            target=check_target("Overlay target", target),
            upper=None if upper is None else check_target("Overlay upper", upper),
            work=None if work is None else check_target("Overlay work", work),
            size=parse_size("Overlay size", size),
        )


class Stopgap(Bind):
    """A bind that is there only to have a directory that holds it; not for users."""

    __slots__ = ()


Mount = Bind | Tmpfs | Proc | Dev | Overlay


def without_stopgaps(
    mounts: Sequence[Mount], root: str | Overlay | None, *, writable: bool
) -> tuple[Mount, ...]:
    """
    Leave out the stopgaps whose directory is there without them, or cannot be made.

    There they would hide what the directory has under their name.
    """
    others: list[Mount] = [mount for mount in mounts if not isinstance(mount, Stopgap)]
    if len(others) == len(mounts):
        return tuple(mounts)
    below = [] if not isinstance(root, str) else [Bind(root, "/", readonly=not writable)]
    kept = (
        mount
        for mount in mounts
        if not isinstance(mount, Stopgap)
        or not _has_directory([*below, *others], os.path.dirname(mount.target))
    )
    return tuple(kept)


def _has_directory(mounts: Sequence[Mount], directory: str) -> bool:
    if any(is_within(mount.target, directory) for mount in mounts):
        return True
    above = [mount for mount in mounts if is_within(directory, mount.target)]
    nearest = max(above, key=lambda mount: len(mount.target), default=None)
    return isinstance(nearest, Bind) and (
        not nearest.readonly or os.path.normpath(nearest.source) == nearest.target
    )


def check_mounts(value: object) -> tuple[Mount, ...]:
    """Return the mounts of a Sandbox as a tuple of known types."""
    if not isinstance(value, (list, tuple)):
        raise PlanTypeError(f"mounts: must be a list or tuple, not {type(value).__name__}")
    for item in value:
        if not isinstance(item, Mount):
            raise PlanTypeError(f"mounts: {item!r} is not a Bind, Tmpfs, Proc, Dev or Overlay")
    return tuple(value)


def check_masks(value: object) -> tuple[str, ...]:
    """Return the masks of a Sandbox as normalised paths inside, each once."""
    if not isinstance(value, (list, tuple)):
        raise PlanTypeError(f"masks: must be a list or tuple, not {type(value).__name__}")
    paths = dict.fromkeys(check_target("masks", item) for item in value)
    if "/" in paths:
        raise PlanError("masks: '/' would hide everything")
    return tuple(paths)
