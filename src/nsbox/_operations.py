"""
The operations that build a new root, in the order of the kernel.

Pure: what contradicts itself is refused here, and missing mount points are
found, but nothing is looked at and nothing done.
"""

import copy
import os.path
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import lru_cache
from itertools import pairwise
from typing import Final, TypeVar

from . import _host
from ._constants import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
)
from ._host import Host
from ._plan import CONTENT, NO_FLAGS, Code, Description, Ids, Op, OpFlag
from .errors import PlanError
from .mount import TERMINALS, Bind, Dev, Mount, Overlay, Proc, Tmpfs

_MountT = TypeVar("_MountT", bound=Mount)

HOME: Final = "/home/sandbox"
_MAX_OPTION: Final = 255  # bytes in a value, by fsconfig(2)
_BASE: Final = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV


# ---- mounts ------------------------------------------------------------


@lru_cache(maxsize=512)
def _parts(target: str) -> tuple[str, ...]:
    return tuple(part for part in target.split("/") if part)


def _within(inner: str, outer: str) -> bool:
    """Tell whether a path is another one or lies below it."""
    return _parts(inner)[: len(_parts(outer))] == _parts(outer)


def _above(target: str) -> Iterator[tuple[str, ...]]:
    """Yield what holds a path, the nearest first: its directory, and so on up to the root."""
    parts = _parts(target)
    return (parts[:length] for length in reversed(range(len(parts))))


def _is_covered(target: str, covered: Set[tuple[str, ...]]) -> bool:
    """Tell whether a path, or what holds it, is among others."""
    return not covered.isdisjoint((_parts(target), *_above(target)))


def _default_mounts(box: Description, host: Host) -> list[Mount]:
    mounts: list[Mount] = []
    if box.default_mounts:
        # The kernel refuses a new procfs for a pid namespace that is not the sandbox's own.
        proc = Bind("/proc") if box.namespaces["pid"] == "host" else Proc()
        mounts += [proc, Dev(), Tmpfs("/tmp")]
    if box.root is None:
        mounts += [Bind(path) for path in host.directories]
        mounts += [Bind(path) for path in (*host.etc, *host.etc_large)]
        if box.default_mounts:
            mounts.append(Tmpfs(HOME, mode=0o700))
    return mounts


def _all_mounts(box: Description, host: Host) -> list[Mount]:
    """Return what to mount below the root, sorted so that each comes after what holds it."""
    taken: dict[str, Mount] = {}
    links = dict(host.links) if box.root is None else {}
    for mount in box.mounts:
        links.pop(mount.target[1:], None)  # there will be no such link
    for given in box.mounts:
        mount = _behind_link(given, links)
        _check_mount(mount, box)
        if mount.target in taken:
            raise PlanError(
                f"two mounts on {mount.target!r}: {taken[mount.target]!r} and {mount!r}"
            )
        taken[mount.target] = mount
    covered = {_parts(target) for target in taken}
    defaults = [
        mount for mount in _default_mounts(box, host) if not _is_covered(mount.target, covered)
    ]
    return sorted([*defaults, *taken.values()], key=lambda mount: _parts(mount.target))


def _behind_link(mount: Mount, links: Mapping[str, str]) -> Mount:
    """
    Return a mount below one of our links in "/" with the target that the link leads to.

    /bin/tool is in /usr/bin, so its mount comes after, and lies in, that of /usr.
    """
    first, *rest = _parts(mount.target) or ("",)
    if not rest or first not in links:
        return mount
    target = os.path.normpath("/".join(("", links[first], *rest)))
    return _changed(mount, "target", "/" + target.lstrip("/"))


def _changed(mount: _MountT, name: str, value: str) -> _MountT:
    changed = copy.copy(mount)
    object.__setattr__(changed, name, value)
    return changed


def without_sources(box: Description) -> tuple[Description, dict[str | None, str]]:
    """
    Return a description with names in the place of paths that make no difference to a plan.

    These are sources of binds, but for those of which a rule speaks, and those that are the
    target as well. And return what each name stands for; none can be a path.
    """
    sources: dict[str | None, str] = {}
    mounts = list(box.mounts)
    for index, mount in enumerate(mounts if not box.without_namespaces else ()):
        if isinstance(mount, Bind) and mount.source != mount.target and not _kernel_tree(mount):
            name = f"\0{index}"
            sources[name] = mount.source
            mounts[index] = _changed(mount, "source", name)
    return (box._replace(mounts=tuple(mounts)) if sources else box), sources


def _check_mount(mount: Mount, box: Description) -> None:
    if mount.target == "/":
        raise PlanError(f"{mount!r} covers the root; give it as Sandbox(root=...)")
    if mount.target == "/dev" and not isinstance(mount, Dev):
        raise PlanError(f"{mount!r}: only a Dev may be mounted on /dev")
    # A procfs of another pid namespace would lie to the payload, or show the host's processes.
    host_proc = isinstance(mount, Bind) and _kernel_tree(mount) == "/proc"
    if host_proc and box.namespaces["pid"] != "host":
        raise PlanError(f"{mount!r}: the host's /proc may only be shown with pid='host'")
    if isinstance(mount, Proc) and (box.namespaces["pid"], box.namespaces["user"]) == (
        "host",
        "new",
    ):
        raise PlanError(f"{mount!r}: with pid='host' show the host's, Bind('/proc')")
    if mount.target == "/proc" and not host_proc and not isinstance(mount, Proc):
        raise PlanError(f"{mount!r}: only a Proc may be mounted on /proc")
    if mount.target.startswith("/proc/"):
        raise PlanError(f"{mount!r}: nothing may be mounted below /proc, whose files must be true")


# ---- operations --------------------------------------------------------


class _Builder:
    """Collects operations; knows which mount holds which path, and what is in our own."""

    def __init__(self, ids: Ids, mounts: Sequence[Mount], *, user_xattr: bool) -> None:
        self.ids = ids
        self.user_xattr = user_xattr
        self.ops: list[Op] = []
        # Sorted, so what lies in a mount comes right after it.
        targets = ("/", *(mount.target for mount in mounts))
        self.holders = {outer for outer, inner in pairwise(targets) if _within(inner, outer)}
        self.mounted: dict[tuple[str, ...], int] = {}
        self.readonly: list[int] = []
        self.scratch = -1
        # For each tmpfs of ours: what is in it, and whether that is a directory.
        self.content: dict[int, dict[tuple[str, ...], bool]] = {}

    def add(self, op: Op) -> int:
        self.ops.append(op)
        if op.parent in self.content and op.code in CONTENT:
            self.content[op.parent][_parts(op.target)] = op.code is Code.DIRECTORY
        return len(self.ops) - 1

    def holder(self, target: str) -> int:
        """Return the index of the operation whose mount a new mount on target lies in."""
        return next((self.mounted[path] for path in _above(target) if path in self.mounted), -1)

    def mount(self, op: Op, *, point: Code | None = Code.DIRECTORY, readonly: bool = False) -> int:
        """
        Add an operation that mounts something on op.target.

        Args:
            op: The operation; its parent is filled in.
            point: What is sure to be mounted, a DIRECTORY or a FILE; None: who knows.
            readonly: Make the mount read-only when all is in place.
        """
        parent = self.holder(op.target)
        placed = self.make_point(parent, op.target, point)
        flags = op.flags | OpFlag.PLACED if placed else op.flags
        index = self.add(op._replace(parent=parent, flags=flags))
        self.mounted[_parts(op.target)] = index
        if op.code is Code.MOUNT and OpFlag.OWN in op.flags:
            self.content[index] = {}
        if readonly:
            self.readonly.append(index)
        return index

    def make_point(self, parent: int, target: str, point: Code | None) -> bool:
        """Make a mount point of that kind, where that can be known; else what is above it."""
        if point is Code.DIRECTORY:
            return self.make_directories(parent, target)
        if not self.make_directories(parent, os.path.dirname(target)) or point is None:
            return False
        path = target.removeprefix(self.ops[parent].target).lstrip("/")
        self.add(Op(Code.FILE, path, parent=parent, mode=0o444))
        return True

    def make_directories(self, parent: int, target: str) -> bool:
        """
        Make the mount point in a tmpfs of ours, if it can be known where it is.

        It cannot where the path leads through a link; the child finds out then.
        """
        if parent not in self.content:
            return False
        content = self.content[parent]
        parts = _parts(target)[len(_parts(self.ops[parent].target)) :]
        prefixes = [parts[: length + 1] for length in range(len(parts))]
        if not all(content.get(prefix, True) for prefix in prefixes):
            return False
        for prefix in prefixes:
            if prefix not in content:
                self.add(Op(Code.DIRECTORY, "/".join(prefix), parent=parent, mode=0o755))
        return True


def operations(box: Description, host: Host, ids: Ids) -> tuple[Op, ...]:
    mounts = _all_mounts(box, host)
    build = _Builder(ids, mounts, user_xattr=box.namespaces["user"] != "host")
    if box.namespaces["net"] == "new":
        build.add(Op(Code.LOOPBACK))
    if box.namespaces["uts"] == "new":
        build.add(Op(Code.HOSTNAME, source=box.hostname or "sandbox"))
    elif box.hostname is not None:
        raise PlanError("hostname: needs uts='new', or it would be the host's that changes")
    build.add(Op(Code.IDS))
    if box.namespaces["user"] == "new" and not box.user_namespaces:
        build.add(Op(Code.NO_USER_NAMESPACES))
    if box.namespaces["user"] != "new":
        # In a user namespace of one's own the kernel has cut the ties already; in another one
        # only if that is not the owner of the mounts that the caller sees.
        build.add(Op(Code.PROPAGATION))
    if _needs_scratch(build, box, mounts):
        options = _tmpfs_options(16 << 20, 16384, 0o700)
        scratch = Op(Code.SCRATCH, "", "tmpfs", -1, _BASE, options, flags=OpFlag.OWN)
        build.scratch = build.add(scratch)
    _add_root(build, box, host, mounts)
    known = {
        **dict.fromkeys((*host.directories, *host.etc), Code.DIRECTORY),
        **dict.fromkeys(host.etc_large, Code.FILE),
    }
    for mount in mounts:
        if isinstance(mount, Proc):
            _add_proc(build, mount, box)
            continue
        _add_mount(build, mount, point=known.get(mount.target))
    _add_masks(build, box, host, mounts)
    for index in build.readonly:
        build.add(Op(Code.READONLY, target=build.ops[index].target, parent=index))
    build.add(Op(Code.PIVOT))
    return _shared(build.ops)


def _shared(ops: Sequence[Op]) -> tuple[Op, ...]:
    """
    Mark the file systems of ours that nobody can change once they are there, and their content.

    A mount point that is not known yet would have to be made in one of them.
    """
    mounts = [op for op in ops if op.code in (Code.BIND, Code.MOUNT, Code.OVERLAY) and op.target]
    if not all(OpFlag.PLACED in op.flags for op in mounts):
        return tuple(ops)
    readonly = {op.parent for op in ops if op.code is Code.READONLY}
    shared = {index for index in readonly if ops[index].code is Code.MOUNT}
    return tuple(
        op._replace(flags=op.flags | OpFlag.SHARED)
        if index in shared or (op.code in CONTENT and op.parent in shared)
        else op
        for index, op in enumerate(ops)
    )


def _needs_scratch(build: _Builder, box: Description, mounts: Sequence[Mount]) -> bool:
    """Tell whether an overlay is wanted, or may be needed for missing mount points."""
    binds = [mount for mount in mounts if isinstance(mount, Bind) and mount.readonly]
    return (
        isinstance(box.root, Overlay)
        or any(isinstance(mount, Overlay) for mount in mounts)
        or (isinstance(box.root, str) and not box.writable and bool(mounts))
        or any(mount.target in build.holders for mount in binds)
    )


def _add_root(build: _Builder, box: Description, host: Host, mounts: Sequence[Mount]) -> None:
    if isinstance(box.root, Overlay):
        _add_overlay(build, box.root, "")
        return
    if box.root is not None:
        _add_bind(build, Bind(box.root, "/", readonly=not box.writable), "")
        return
    options = (("size", "16M"), ("nr_inodes", "16384"), ("mode", "0755"))
    index = build.mount(
        Op(Code.MOUNT, source="tmpfs", attributes=_BASE, options=options, flags=OpFlag.OWN),
        readonly=not box.writable,
    )
    covered = {_parts(mount.target) for mount in mounts}
    for name, text in host.links:
        if (name,) not in covered:
            build.add(Op(Code.SYMLINK, name, text, parent=index))
    _add_etc(build, index, box, host, covered)


def _add_etc(
    build: _Builder, root: int, box: Description, host: Host, covered: Set[tuple[str, ...]]
) -> None:
    """A minimal /etc: what the host has, and accounts for the ids that exist inside."""
    accounts = [(name, text.encode()) for name, text in _accounts(build.ids, box.hostname).items()]
    entries = [
        Op(Code.FILE, f"etc/{name}", parent=root, mode=0o644, content=content)
        for name, content in (*host.etc_files, *accounts)
    ]
    entries += [Op(Code.SYMLINK, f"etc/{name}", text, root) for name, text in host.etc_links]
    for op in entries:
        if not _is_covered(op.target, covered):
            build.make_directories(root, os.path.dirname(op.target))
            build.add(op)


def _accounts(ids: Ids, hostname: str | None) -> dict[str, str]:
    users = {0: "root", _host.OVERFLOW_ID: "nobody"}
    users.setdefault(ids.uid, "sandbox")
    groups = {0: "root", _host.OVERFLOW_ID: "nogroup"}
    groups.setdefault(ids.gid, "sandbox")
    passwd = "".join(
        f"{name}:x:{uid}:{ids.gid if uid == ids.uid else uid}::"
        f"{HOME if uid == ids.uid else '/'}:/bin/sh\n"
        for uid, name in users.items()
    )
    return {
        "passwd": passwd,
        "group": "".join(f"{name}:x:{gid}:\n" for gid, name in groups.items()),
        "hosts": f"127.0.0.1 localhost {hostname or 'sandbox'}\n::1 localhost\n",
    }


def _add_mount(build: _Builder, mount: Mount, *, point: Code | None) -> None:
    target = mount.target.lstrip("/")
    if isinstance(mount, Bind):
        point = point if mount.source == mount.target else None
        _add_bind(build, mount, target, point=point)
    elif isinstance(mount, Overlay):
        _add_overlay(build, mount, target)
    elif isinstance(mount, Dev):
        _add_dev(build, mount, target)
    elif isinstance(mount, Tmpfs):
        build.mount(
            Op(
                Code.MOUNT,
                target,
                "tmpfs",
                attributes=_BASE,
                options=_tmpfs_options(mount.size, mount.inodes, mount.mode),
                flags=OpFlag.OWN,
            )
        )


def _add_proc(build: _Builder, mount: Proc, box: Description) -> None:
    readonly = not box.user_namespaces if mount.readonly is None else mount.readonly
    build.mount(
        Op(
            Code.MOUNT,
            mount.target.lstrip("/"),
            "proc",
            attributes=_BASE | MOUNT_ATTR_NOEXEC | (MOUNT_ATTR_RDONLY if readonly else 0),
            options=(("subset", "pid"),) if mount.only_processes else (),
            flags=OpFlag.LATE,
        )
    )


def _add_masks(build: _Builder, box: Description, host: Host, mounts: Sequence[Mount]) -> None:
    """
    Hide files of each procfs and of the host's /sys, and what the user names.

    What only root can read is hidden from those who are root to the host. What the user names
    within another one comes before that, which hides it: it may be a link that leads out.
    """
    by_root = build.ids.host_uid == 0
    hidden = [path for path, readable in host.masks if readable or by_root]
    for mount in mounts:
        holder = _mask_source(mount)
        for path in hidden:
            if holder is not None and _within(path, holder):
                _add_mask(build, mount.target + path.removeprefix(holder), verified=holder)
    for path in sorted(box.masks, key=lambda path: len(_parts(path)), reverse=True):
        _add_mask(build, path, verified=None)


def _mask_source(mount: Mount) -> str | None:
    """Return "/proc" or "/sys" for a mount that shows one of them, whole."""
    if isinstance(mount, Proc):
        return None if mount.only_processes else "/proc"
    if isinstance(mount, Bind) and mount.source.startswith("/"):
        return _kernel_tree(mount)
    return None


def _kernel_tree(mount: Bind) -> str | None:
    """
    Return "/proc" or "/sys" for a bind of the host's, however that is spelled.

    A relative path may be that, too: with "/" for the working directory.
    """
    path = "/".join(("", *_parts(os.path.normpath(mount.source))))
    return path if path in ("/proc", "/sys") else None


def _add_mask(build: _Builder, path: str, *, verified: str | None) -> None:
    """Add a mask; of a procfs, the mount is known, and the file is looked for in it alone."""
    target = path.lstrip("/")
    procfs = verified == "/proc"
    build.add(
        Op(
            Code.MASK,
            target,
            "/dev/null",
            build.holder(target) if procfs else -1,
            MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_RDONLY,
            flags=OpFlag.LATE | (OpFlag.PLACED if procfs else NO_FLAGS),
            device=_NULL,
        )
    )


_NULL: Final = 1 << 32 | 3


def _tmpfs_options(size: int, inodes: int, mode: int) -> tuple[tuple[str, str], ...]:
    return (("size", str(size)), ("nr_inodes", str(inodes)), ("mode", f"{mode:o}"))


def _add_bind(build: _Builder, mount: Bind, target: str, *, point: Code | None = None) -> None:
    idmap = not mount.readonly if mount.idmap is None else mount.idmap
    # Mount points that may be missing in it are made in an overlay, which is
    # read-only only when they are there.
    overlay = mount.readonly and mount.target in build.holders
    build.mount(
        Op(
            Code.BIND,
            target,
            mount.source,
            attributes=_BASE | (MOUNT_ATTR_RDONLY if mount.readonly else 0),
            idmap=idmap and build.ids.idmapped,
            layers=str(len(build.ops)) if overlay else None,
        ),
        point=point,
        readonly=overlay,
    )


def _add_dev(build: _Builder, mount: Dev, target: str) -> None:
    options = (("size", "64K"), ("nr_inodes", "64"), ("mode", "0755"))
    dev = build.mount(
        Op(
            Code.MOUNT,
            target,
            "tmpfs",
            attributes=MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC,
            options=options,
            flags=OpFlag.OWN,
        ),
        readonly=True,
    )
    for name, major, minor in _host.DEVICES:
        build.add(
            Op(
                Code.DEVICE,
                name,
                f"/dev/{name}",
                dev,
                MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_RDONLY,
                mode=0o666,
                device=major << 32 | minor,
            )
        )
    links = (
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    )
    for name, text in links:
        build.add(Op(Code.SYMLINK, name, text, dev))
    build.mount(
        Op(
            Code.MOUNT,
            f"{target}/pts",
            "devpts",
            attributes=MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC,
            options=(("mode", "620"), ("ptmxmode", "666"), ("max", str(TERMINALS))),
        )
    )
    build.mount(
        Op(
            Code.MOUNT,
            f"{target}/shm",
            "tmpfs",
            attributes=_BASE | MOUNT_ATTR_NOEXEC,
            options=_tmpfs_options(mount.shm_size, _host_inodes(mount.shm_size), 0o1777),
            flags=OpFlag.OWN,
        )
    )


def _host_inodes(size: int) -> int:
    """As many files as pages fit, which is tmpfs's own measure."""
    return max(16, size // 4096)


def _lower_options(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the options for an overlay's lower layers, whose names have no special characters."""
    joined = ":".join(names)
    if len(joined) <= _MAX_OPTION:
        return [("lowerdir", joined)]
    return [("lowerdir+", name) for name in names]  # one by one: since Linux 6.8


def _add_overlay(build: _Builder, mount: Overlay, target: str) -> None:
    """
    Lay out the layers in a directory of scratch, then stack them.

    All names in the options are ours and relative to that directory: layers are
    clones of the host's mounts, attached there, so nothing has to be escaped and
    no path of the host is resolved twice.
    """
    layers = str(len(build.ops))
    idmap = build.ids.idmapped
    lowers = [str(number) for number in range(len(mount.lower))]

    def layer(name: str, source: str, *, writable: bool = False) -> None:
        attributes = _BASE | (0 if writable else MOUNT_ATTR_RDONLY)
        build.add(
            Op(
                Code.BIND,
                f"{layers}/{name}",
                source,
                attributes=attributes,
                flags=OpFlag.IN_SCRATCH,
                idmap=idmap,
            )
        )

    if mount.upper is None or mount.work is None:
        store = build.add(
            Op(
                Code.MOUNT,
                layers,
                "tmpfs",
                attributes=_BASE,
                options=_tmpfs_options(mount.size, _host_inodes(mount.size), 0o755),
                flags=OpFlag.IN_SCRATCH | OpFlag.OWN,
            )
        )
        for name in ("upper", "work"):
            build.add(Op(Code.DIRECTORY, name, parent=store, mode=0o755))
    else:
        # The kernel wants both on one mount: clone the directory that holds them.
        common = os.path.commonpath([mount.upper, mount.work])
        layer("store", common, writable=True)
        # Their names may hold any character; before Linux 6.5 an option could not hold a comma.
        for name, path in ("upper", mount.upper), ("work", mount.work):
            text = os.path.join("store", os.path.relpath(path, common))
            build.add(Op(Code.SYMLINK, f"{layers}/{name}", text, build.scratch))
    for name, source in zip(lowers, mount.lower, strict=True):
        layer(name, source)
    options: list[tuple[str, str | None]] = [
        *_lower_options(lowers),
        ("upperdir", "upper"),
        ("workdir", "work"),
    ]
    if build.user_xattr:
        options.append(("userxattr", None))
    build.mount(
        Op(
            Code.OVERLAY,
            target,
            "overlay",
            attributes=_BASE,
            options=tuple(options),
            flags=OpFlag.OWN if mount.upper is None else NO_FLAGS,
            layers=layers,
        )
    )
