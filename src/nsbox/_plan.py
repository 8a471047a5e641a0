"""
A plan: the ordered operations that make a sandbox, as data.

Immutable, comparable, printable. The C core walks a plan and decides nothing;
_compile makes one from a description.
"""

from collections.abc import Sequence
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from ._constants import CAPABILITIES
from ._landlock import Landlock
from .limits import Limits
from .mount import Mount, Overlay
from .seccomp import Profile


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
    PATH = 16


class OpFlag(IntFlag):
    """``enum nsbox_op_flag`` of csrc/nsbox.h."""

    IN_SCRATCH = 1
    OWN = 2
    PLACED = 4
    LATE = 8
    SHARED = 16


NO_FLAGS: Final = OpFlag(0)
CONTENT: Final = (Code.DEVICE, Code.DIRECTORY, Code.FILE, Code.SYMLINK)


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
        device: Device number that source must have, as (major << 32) | minor, or 0.
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
    flags: OpFlag = NO_FLAGS
    device: int = 0
    idmap: bool = False
    layers: str | None = None
    content: bytes = b""

    def path(self, ops: Sequence["Op"]) -> str:
        """Return the absolute path of the target inside; in scratch, as "scratch/..."."""
        base, scratch = "", OpFlag.IN_SCRATCH in self.flags
        if self.code in CONTENT:
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
    """
    Everything about a spawn that does not differ from spawn to spawn.

    ``withheld``: without namespaces, the kinds for which the filter stands in;
    else None. ``keep_bounds``: bounding set and securebits stay as they are. ``init``:
    the first process is nsbox-init, and the payload its child.
    """

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
    withheld: tuple[str, ...] | None = None
    keep_bounds: bool = False
    init: bool = False

    @property
    def devpts(self) -> int | None:
        """The operation that mounts the devpts of terminals, at /dev/pts; None: there is none."""
        mounts = {Code.BIND, Code.MOUNT, Code.OVERLAY}
        found = None
        for index, op in enumerate(self.ops):
            if op.code in mounts and op.path(self.ops) == "/dev/pts":
                found = index if op.source == "devpts" and op.code is Code.MOUNT else None
        return found

    @property
    def has_sys_admin(self) -> bool:
        """The payload has CAP_SYS_ADMIN over its own namespaces."""
        return bool(self.capabilities >> CAPABILITIES.index("CAP_SYS_ADMIN") & 1)

    @property
    def unshared(self) -> bool:
        """There are no namespaces of the sandbox's own, and no mounts."""
        return self.withheld is not None


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
    without_namespaces: bool = False
    init: bool = False
