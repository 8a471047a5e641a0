"""
From a description of a sandbox to the ordered operations that make it.

A pure function: objects in, an immutable, comparable, printable plan out. No
I/O, no compiled module. Rules that concern several objects are checked here,
and the order of operations is decided here: the C core walks the plan and
decides nothing.
"""

import copy
import os.path
import resource
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum, IntFlag
from functools import lru_cache
from typing import Final, NamedTuple

from . import _host, _landlock
from ._cgroup_choice import wanted_fields
from ._constants import (
    CAPABILITIES,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    NAMESPACE_FLAGS,
)
from ._host import Host
from ._landlock import Landlock, Right
from .errors import PlanError, UnsupportedError
from .limits import Limits
from .mount import Bind, Dev, Mount, Overlay, Proc, Tmpfs
from .seccomp import Profile, refuses_keys

HOME: Final = "/home/sandbox"
_MAX_OPTION: Final = 255  # bytes in a value, by fsconfig(2)
_BASE: Final = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV


class Code(IntEnum):
    """What an operation does: ``enum nsbox_opcode`` of csrc/nsbox.h."""

    LOOPBACK = 0
    HOSTNAME = 1
    IDS = 2
    PROPAGATION = 3
    SCRATCH = 4
    BIND = 5
    DEVICE = 6
    MOUNT = 7
    OVERLAY = 8
    DIRECTORY = 9
    FILE = 10
    SYMLINK = 11
    READONLY = 12
    PIVOT = 13
    NO_USER_NAMESPACES = 14
    MASK = 15


class OpFlag(IntFlag):
    """``enum nsbox_op_flag`` of csrc/nsbox.h."""

    IN_SCRATCH = 1
    OWN = 2
    PLACED = 4


_NO_FLAGS: Final = OpFlag(0)
_CONTENT: Final = (Code.DEVICE, Code.DIRECTORY, Code.FILE, Code.SYMLINK)


class Op(NamedTuple):
    """
    One operation; the fields are those of ``struct nsbox_op``.

    Args:
        code: What to do.
        target: Path inside without the leading "/"; for the content of a file
            system (DIRECTORY, FILE, SYMLINK, DEVICE) relative to its root. With
            OpFlag.PLACED the C core gets it relative to the mount of parent.
        source: Path on the host, type of file system, or text of a link.
        parent: Index of the operation whose mount holds target, or -1.
        attributes: MOUNT_ATTR_*.
        options: Parameters of a new file system.
        mode: Permission bits of what is created.
        flags: See :class:`OpFlag`.
        device: Device number that source must have, as (major << 32) | minor.
        idmap: Show the owner of source as the payload, by an id-mapped mount.
        layers: Name of the directory that holds an overlay's layers.
        content: Of a file.
    """

    code: Code
    target: str = ""
    source: str | None = None
    parent: int = -1
    attributes: int = 0
    options: tuple[tuple[str, str | None], ...] = ()
    mode: int = 0
    flags: OpFlag = _NO_FLAGS
    device: int = 0
    idmap: bool = False
    layers: str | None = None
    content: bytes = b""

    def path(self, ops: Sequence["Op"]) -> str:
        """Return the absolute path of the target inside; in scratch, as "scratch/..."."""
        base, scratch = "", OpFlag.IN_SCRATCH in self.flags
        if self.code in _CONTENT:
            parent = ops[self.parent]
            base = parent.target
            scratch = parent.code is Code.SCRATCH or OpFlag.IN_SCRATCH in parent.flags
        path = "/" + "/".join(part for part in (base, self.target) if part)
        return f"scratch{path}" if scratch else path


class Ids(NamedTuple):
    """
    Who the payload is.

    Args:
        uid: User id inside.
        gid: Group id inside.
        host_uid: The same user as the host sees it, or None where it is not ours to say.
        host_gid: The same for the group.
        mapped: A new user namespace gets a map of one id each.
        deny_setgroups: The map has to be written without privilege.
        clear_groups: The caller's supplementary groups are dropped.
        idmapped: The payload is not the caller, so binds may need an id map.
    """

    uid: int
    gid: int
    host_uid: int | None
    host_gid: int | None
    mapped: bool
    deny_setgroups: bool
    clear_groups: bool
    idmapped: bool


class Plan(NamedTuple):
    """Everything about a spawn that does not differ from spawn to spawn."""

    clone_flags: int
    joins: tuple[str, ...]
    ids: Ids
    capabilities: int
    ops: tuple[Op, ...]
    parent_sources: bool
    private_memory: bool
    user_xattr: bool
    seccomp: str | Profile | None
    user_namespaces: bool
    new_keyring: bool
    landlock: Landlock | None
    rlimits: tuple[tuple[int, int], ...] = ()
    nice: int = 0
    fenced: tuple[str, ...] = ()


class Modes(dict[str, str]):
    """Kind of namespace -> "new", "host" or "join". Never changed, so it may be a key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))


class Description(NamedTuple):
    """
    What a Sandbox asks for, each value checked already; hashable.

    ``namespaces`` has every kind but "mnt".
    """

    namespaces: Modes
    root: str | Overlay | None = None
    writable: bool = False
    mounts: tuple[Mount, ...] = ()
    default_mounts: bool = True
    hostname: str | None = None
    uid: int | None = None
    gid: int | None = None
    host_uid: int | None = None
    host_gid: int | None = None
    capabilities: tuple[str, ...] = ()
    seccomp: str | Profile | None = "default"
    user_namespaces: bool = False
    masks: tuple[str, ...] = ()
    landlock: bool | None = None
    limits: Limits | None = None


# Field of Limits -> resource of setrlimit(2).
RLIMITS: Final = {
    "file_size": resource.RLIMIT_FSIZE,
    "open_files": resource.RLIMIT_NOFILE,
    "stack": resource.RLIMIT_STACK,
    "core": resource.RLIMIT_CORE,
}


# Programs that describe the same sandbox for each run should not pay for it each time.
@lru_cache(maxsize=64)
def compile_plan(box: Description, host: Host) -> Plan:
    """
    Return the plan of a sandbox.

    Raises:
        PlanError: If the parts contradict each other.
    """
    ids = _ids(box, host)
    joins = tuple(kind for kind, mode in box.namespaces.items() if mode == "join")
    # The user namespace last: whoever is privileged outside can still join the others.
    joins = tuple(sorted(joins, key=lambda kind: kind == "user"))
    flags = NAMESPACE_FLAGS["mnt"]
    for kind, mode in box.namespaces.items():
        if mode == "new":
            flags |= NAMESPACE_FLAGS[kind]
    user_mode = box.namespaces["user"]
    _check_privileges(box)
    ops = _operations(box, host, ids)
    return Plan(
        clone_flags=flags,
        joins=joins,
        ids=ids,
        capabilities=sum(1 << CAPABILITIES.index(name) for name in box.capabilities),
        ops=ops,
        # The child of a privileged caller is unprivileged on the host and might
        # not reach what the caller can.
        parent_sources=host.privileged and host.may_mount and user_mode != "host",
        # In these another process may see or trace the newcomer; and a time
        # namespace can only be entered by a process that shares its memory with none.
        private_memory=not {"user", "pid", "time"}.isdisjoint(joins),
        user_xattr=user_mode != "host",
        seccomp=box.seccomp,
        user_namespaces=box.user_namespaces,
        # One costs quota, of which a plain user has 200: not where no call can reach it.
        new_keyring=box.seccomp is None or not refuses_keys(box.seccomp),
        landlock=_landlock_of(box, host, ops),
        rlimits=_rlimits(box.limits),
        nice=0 if box.limits is None else box.limits.nice or 0,
        fenced=() if box.limits is None else wanted_fields(box.limits),
    )


def _rlimits(limits: Limits | None) -> tuple[tuple[int, int], ...]:
    if limits is None:
        return ()
    values = ((number, getattr(limits, name)) for name, number in RLIMITS.items())
    return tuple((number, value) for number, value in values if value is not None)


def _landlock_of(box: Description, host: Host, ops: Sequence[Op]) -> Landlock | None:
    if box.landlock is False:
        return None
    if box.landlock and host.landlock < _landlock.LEAST_ABI:
        raise UnsupportedError(
            "landlock=True: this kernel has no Landlock (5.19 or later, and 'landlock' among the "
            "security modules: boot parameter lsm=)"
        )
    rights = _landlock.handled(host.landlock)
    # Landlock forbids every change of mounts, which is what this capability is for.
    if box.user_namespaces or "CAP_SYS_ADMIN" in box.capabilities:
        rights = Right(0)
    rules = tuple((index, int(right & rights)) for index, right in _rules(ops)) if rights else ()
    scoped = _landlock.scopes(host.landlock, box.namespaces)
    return Landlock(host.landlock, int(rights), scoped, rules) if rights or scoped else None


def _rules(ops: Sequence[Op]) -> Iterator[tuple[int, Right]]:
    """Yield what may be done in which mount: read below the root, change in writable mounts."""
    protected = {op.parent for op in ops if op.code is Code.READONLY}
    for index, op in enumerate(ops):
        if op.code not in _MOUNTING or OpFlag.IN_SCRATCH in op.flags:
            continue
        if not (op.attributes & MOUNT_ATTR_RDONLY or index in protected):
            yield index, _landlock.handled(1 << 16)
        elif not op.target:
            yield index, _landlock.READ
        elif op.source == "tmpfs" and not op.attributes & MOUNT_ATTR_NODEV:
            yield index, _landlock.DEVICES


_MOUNTING: Final = (Code.BIND, Code.MOUNT, Code.OVERLAY)


# The kind of namespace in which a capability means something; outside of it only the host's counts.
_CAPABILITY_NAMESPACES: Final = {
    "CAP_NET_ADMIN": "net",
    "CAP_NET_BIND_SERVICE": "net",
    "CAP_NET_BROADCAST": "net",
    "CAP_NET_RAW": "net",
    "CAP_IPC_OWNER": "ipc",
    "CAP_SYS_BOOT": "pid",
}


def _check_privileges(box: Description) -> None:
    user_mode = box.namespaces["user"]
    if user_mode != "new" and box.seccomp is None and not box.user_namespaces:
        raise PlanError(
            "seccomp=None: without a filter, and without a user namespace whose limit could be "
            "set, nothing keeps the payload from making user namespaces; say "
            "user_namespaces=True if it may"
        )
    for name in box.capabilities:
        kind = _CAPABILITY_NAMESPACES.get(name)
        if user_mode != "host" and kind is not None and box.namespaces[kind] == "host":
            raise PlanError(
                f"capabilities: {name} is over the payload's own {kind} namespace, and with "
                f"{kind}='host' it has none; leave one of the two out"
            )


def _ids(box: Description, host: Host) -> Ids:
    mode = box.namespaces["user"]
    if mode != "new" and (box.host_uid is not None or box.host_gid is not None):
        raise PlanError("host_uid, host_gid: only a new user namespace has a map to set")
    if mode == "new":
        return _mapped_ids(box, host)
    same = mode == "host"
    # Host root only by name: without one, root's payload is nobody here too.
    uid = box.uid if box.uid is not None else host.payload_uid if same else 0
    gid = box.gid if box.gid is not None else host.payload_gid if same else 0
    return Ids(
        uid=uid,
        gid=gid,
        host_uid=uid if same else None,
        host_gid=gid if same else None,
        mapped=False,
        deny_setgroups=False,
        clear_groups=host.privileged,
        idmapped=False,
    )


def _mapped_ids(box: Description, host: Host) -> Ids:
    uid = host.payload_uid if box.host_uid is None else box.host_uid
    gid = host.payload_gid if box.host_gid is None else box.host_gid
    if not host.privileged and (uid, gid) != (host.uid, host.gid):
        raise PlanError(
            f"host_uid, host_gid: a caller without privilege can only map its own ids, "
            f"{host.uid} and {host.gid}"
        )
    return Ids(
        uid=box.uid or 0,
        gid=box.gid or 0,
        host_uid=uid,
        host_gid=gid,
        mapped=True,
        deny_setgroups=not host.privileged,
        clear_groups=host.privileged,
        idmapped=(uid, gid) != (host.uid, host.gid),
    )


# ---- mounts ------------------------------------------------------------


@lru_cache(maxsize=512)
def _parts(target: str) -> tuple[str, ...]:
    return tuple(part for part in target.split("/") if part)


def _within(inner: str, outer: str) -> bool:
    """Tell whether a path is another one or lies below it."""
    return _parts(inner)[: len(_parts(outer))] == _parts(outer)


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
    for given in box.mounts:
        mount = _behind_link(given, links)
        _check_mount(mount, box)
        if mount.target in taken:
            raise PlanError(
                f"two mounts on {mount.target!r}: {taken[mount.target]!r} and {mount!r}"
            )
        taken[mount.target] = mount
    defaults = [
        mount
        for mount in _default_mounts(box, host)
        if not any(_within(mount.target, target) for target in taken)
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
    moved = copy.copy(mount)
    target = os.path.normpath("/".join(("", links[first], *rest)))
    object.__setattr__(moved, "target", "/" + target.lstrip("/"))
    return moved


def _check_mount(mount: Mount, box: Description) -> None:
    if mount.target == "/":
        raise PlanError(f"{mount!r} covers the root; give it as Sandbox(root=...)")
    if mount.target == "/dev" and not isinstance(mount, Dev):
        raise PlanError(f"{mount!r}: only a Dev may be mounted on /dev")
    # A procfs of another pid namespace would lie to the payload, or show the host's processes.
    host_proc = isinstance(mount, Bind) and _parts(os.path.normpath(mount.source)) == ("proc",)
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

    def __init__(self, ids: Ids, *, user_xattr: bool) -> None:
        self.ids = ids
        self.user_xattr = user_xattr
        self.ops: list[Op] = []
        self.mounted: list[tuple[tuple[str, ...], int]] = []
        self.readonly: list[int] = []
        self.scratch = -1
        # For each tmpfs of ours: what is in it, and whether that is a directory.
        self.content: dict[int, dict[tuple[str, ...], bool]] = {}

    def add(self, op: Op) -> int:
        self.ops.append(op)
        if op.parent in self.content and op.code in _CONTENT:
            self.content[op.parent][_parts(op.target)] = op.code is Code.DIRECTORY
        return len(self.ops) - 1

    def holder(self, target: str) -> int:
        """Return the index of the operation whose mount a new mount on target lies in."""
        parts = _parts(target)
        found = -1
        for prefix, index in self.mounted:  # sorted by depth: the last match is the deepest
            if parts[: len(prefix)] == prefix and parts != prefix:
                found = index
        return found

    def mount(self, op: Op, *, directory: bool = True, readonly: bool = False) -> int:
        """
        Add an operation that mounts something on op.target.

        Args:
            op: The operation; its parent is filled in.
            directory: It is sure to be a directory that is mounted.
            readonly: Make the mount read-only when all is in place.
        """
        parent = self.holder(op.target)
        placed = directory and self.make_directories(parent, op.target)
        flags = op.flags | OpFlag.PLACED if placed else op.flags
        index = self.add(op._replace(parent=parent, flags=flags))
        self.mounted.append((_parts(op.target), index))
        if op.code is Code.MOUNT and OpFlag.OWN in op.flags:
            self.content[index] = {}
        if readonly:
            self.readonly.append(index)
        return index

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


def _operations(box: Description, host: Host, ids: Ids) -> tuple[Op, ...]:
    mounts = _all_mounts(box, host)
    build = _Builder(ids, user_xattr=box.namespaces["user"] != "host")
    if box.namespaces["net"] == "new":
        build.add(Op(Code.LOOPBACK))
    if box.namespaces["uts"] == "new":
        build.add(Op(Code.HOSTNAME, source=box.hostname or "sandbox"))
    elif box.hostname is not None:
        raise PlanError("hostname: needs uts='new', or it would be the host's that changes")
    build.add(Op(Code.IDS))
    if box.namespaces["user"] == "new" and not box.user_namespaces:
        build.add(Op(Code.NO_USER_NAMESPACES))
    if box.namespaces["user"] == "host":
        # In a user namespace of one's own the kernel has cut the ties already.
        build.add(Op(Code.PROPAGATION))
    if _needs_scratch(box, mounts):
        options = _tmpfs_options(16 << 20, 16384, 0o700)
        scratch = Op(Code.SCRATCH, "", "tmpfs", -1, _BASE, options, flags=OpFlag.OWN)
        build.scratch = build.add(scratch)
    _add_root(build, box, host, mounts)
    known = {*host.directories, *host.etc}
    for mount in mounts:
        if isinstance(mount, Proc):
            _add_proc(build, mount, box)
            continue
        _add_mount(build, mount, mounts, directory=mount.target in known)
    _add_masks(build, box, host, mounts)
    for index in build.readonly:
        build.add(Op(Code.READONLY, target=build.ops[index].target, parent=index))
    build.add(Op(Code.PIVOT))
    return tuple(build.ops)


def _needs_scratch(box: Description, mounts: Sequence[Mount]) -> bool:
    """Tell whether an overlay is wanted, or may be needed for missing mount points."""
    binds = [mount for mount in mounts if isinstance(mount, Bind) and mount.readonly]
    return (
        isinstance(box.root, Overlay)
        or any(isinstance(mount, Overlay) for mount in mounts)
        or (isinstance(box.root, str) and not box.writable and bool(mounts))
        or any(_holds(mount, mounts) for mount in binds)
    )


def _holds(holder: Mount, mounts: Sequence[Mount]) -> bool:
    return any(mount is not holder and _within(mount.target, holder.target) for mount in mounts)


def _add_root(build: _Builder, box: Description, host: Host, mounts: Sequence[Mount]) -> None:
    if isinstance(box.root, Overlay):
        _add_overlay(build, box.root, "")
        return
    if box.root is not None:
        _add_bind(build, Bind(box.root, "/", readonly=not box.writable), "", mounts)
        return
    options = (("size", "16M"), ("nr_inodes", "16384"), ("mode", "0755"))
    index = build.mount(
        Op(Code.MOUNT, source="tmpfs", attributes=_BASE, options=options, flags=OpFlag.OWN),
        readonly=not box.writable,
    )
    for name, text in host.links:
        if not any(mount.target == f"/{name}" for mount in mounts):
            build.add(Op(Code.SYMLINK, name, text, parent=index))
    _add_etc(build, index, box, host, [mount.target for mount in mounts])


def _add_etc(
    build: _Builder, root: int, box: Description, host: Host, covered: Sequence[str]
) -> None:
    """A minimal /etc: what the host has, and accounts for the ids that exist inside."""
    accounts = [(name, text.encode()) for name, text in _accounts(build.ids, box.hostname).items()]
    entries = [
        Op(Code.FILE, f"etc/{name}", parent=root, mode=0o644, content=content)
        for name, content in (*host.etc_files, *accounts)
    ]
    entries += [Op(Code.SYMLINK, f"etc/{name}", text, root) for name, text in host.etc_links]
    for op in entries:
        if not any(_within(f"/{op.target}", path) for path in covered):
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


def _add_mount(build: _Builder, mount: Mount, mounts: Sequence[Mount], *, directory: bool) -> None:
    target = mount.target.lstrip("/")
    if isinstance(mount, Bind):
        _add_bind(
            build, mount, target, mounts, directory=directory and mount.source == mount.target
        )
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
        )
    )


def _add_masks(build: _Builder, box: Description, host: Host, mounts: Sequence[Mount]) -> None:
    """
    Hide files of each procfs and of the host's /sys, and what the user names.

    What only root can read is hidden from those who are root to the host.
    """
    by_root = build.ids.host_uid == 0
    hidden = [path for path, readable in host.masks if readable or by_root]
    for mount in mounts:
        holder = _mask_source(mount)
        for path in hidden:
            if holder is not None and _within(path, holder):
                _add_mask(build, mount.target + path.removeprefix(holder), verified=holder)
    for path in box.masks:
        _add_mask(build, path, verified=None)


def _mask_source(mount: Mount) -> str | None:
    """Return "/proc" or "/sys" for a mount that shows one of them, whole."""
    if isinstance(mount, Proc):
        return None if mount.only_processes else "/proc"
    source = os.path.normpath(mount.source) if isinstance(mount, Bind) else None
    return source if source in ("/proc", "/sys") else None


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
            flags=OpFlag.PLACED if procfs else _NO_FLAGS,
            device=_NULL,
        )
    )


_NULL: Final = 1 << 32 | 3


def _tmpfs_options(size: int, inodes: int, mode: int) -> tuple[tuple[str, str], ...]:
    return (("size", str(size)), ("nr_inodes", str(inodes)), ("mode", f"{mode:o}"))


def _add_bind(
    build: _Builder,
    mount: Bind,
    target: str,
    mounts: Sequence[Mount],
    *,
    directory: bool = False,
) -> None:
    idmap = not mount.readonly if mount.idmap is None else mount.idmap
    # Mount points that may be missing in it are made in an overlay, which is
    # read-only only when they are there.
    overlay = mount.readonly and _holds(mount, mounts)
    build.mount(
        Op(
            Code.BIND,
            target,
            mount.source,
            attributes=_BASE | (MOUNT_ATTR_RDONLY if mount.readonly else 0),
            idmap=idmap and build.ids.idmapped,
            layers=str(len(build.ops)) if overlay else None,
        ),
        directory=directory,
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
            options=(("mode", "620"), ("ptmxmode", "666")),
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
            flags=OpFlag.OWN if mount.upper is None else _NO_FLAGS,
            layers=layers,
        )
    )
