"""
From a description of a sandbox to its plan.

A pure function: objects in, a plan out. No I/O, no compiled module. Rules that
concern several objects are checked here and in _operations.
"""

import resource
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

from . import _landlock, _unshared
from ._cgroup_choice import wanted_fields
from ._constants import (
    CAPABILITIES,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_RDONLY,
    NAMESPACE_FLAGS,
)
from ._host import Host
from ._landlock import Landlock, Right
from ._operations import operations, without_sources
from ._plan import Code, Description, Ids, Modes, Op, OpFlag, Plan
from .errors import PlanError, UnsupportedError
from .limits import Limits
from .seccomp import refuses_keys

# Field of Limits -> resource of setrlimit(2).
RLIMITS: Final = {
    "file_size": resource.RLIMIT_FSIZE,
    "open_files": resource.RLIMIT_NOFILE,
    "stack": resource.RLIMIT_STACK,
}


@lru_cache(maxsize=64)
def compile_plan(box: Description, host: Host) -> Plan:
    """
    Return the plan of a sandbox.

    Raises:
        PlanError: If the parts contradict each other.
    """
    common, sources = without_sources(box)
    if not sources:
        return _compile(box, host)
    try:
        plan = _compile(common, host)
    except PlanError:
        return _compile(box, host)  # which says of what it is
    own = (sources.get(op.source) for op in plan.ops)
    ops = (op._replace(source=path) if path else op for op, path in zip(plan.ops, own, strict=True))
    return plan._replace(ops=tuple(ops))


# Programs that describe the same sandbox for each run, but for a directory of the run's own,
# should not pay for it each time.
@lru_cache(maxsize=64)
def _compile(box: Description, host: Host) -> Plan:
    if box.init:
        check_init(box, "init=True")
    if box.without_namespaces:
        return _unshared_plan(box, host)
    return _plan(box, host, _ids(box, host))


def check_init(box: Description, what: str) -> None:
    """
    Refuse an nsbox-init where none can be.

    Args:
        box: The sandbox.
        what: What needs the init, for the error.
    """
    if box.without_namespaces:
        raise PlanError(f"{what}: needs namespaces='own'; without any, nothing ends with an init")
    if box.namespaces["pid"] != "new":
        raise PlanError(f"{what}: needs pid='new', or no process could be the first")
    if "CAP_SYS_PTRACE" in box.capabilities:
        raise PlanError(
            f"{what}: with CAP_SYS_PTRACE the payload could take over nsbox-init, which is "
            "trusted with its end; leave that capability out"
        )


def _unshared_plan(box: Description, host: Host) -> Plan:
    _unshared.check_unshared(box, host)
    withheld = _unshared.withheld(box.namespaces)
    box = box._replace(namespaces=Modes(dict.fromkeys(box.namespaces, "host")), landlock=True)
    ids = _ids(box, host)
    plan = _plan(box, host, ids)
    assert plan.landlock is not None
    tcp = _landlock.TCP if "net" in withheld and host.landlock >= _landlock.NET_ABI else 0
    return plan._replace(
        clone_flags=0,
        parent_sources=False,
        landlock=plan.landlock._replace(net=tcp),
        withheld=withheld,
        keep_bounds=not host.may_bound,
    )


def _plan(box: Description, host: Host, ids: Ids) -> Plan:
    joins = tuple(kind for kind, mode in box.namespaces.items() if mode == "join")
    # The user namespace last: whoever is privileged outside can still join the others.
    joins = tuple(sorted(joins, key=lambda kind: kind == "user"))
    flags = NAMESPACE_FLAGS["mnt"]
    for kind, mode in box.namespaces.items():
        if mode == "new":
            flags |= NAMESPACE_FLAGS[kind]
    user_mode = box.namespaces["user"]
    _check_privileges(box)
    ops = _unshared.paths(box, host) if box.without_namespaces else operations(box, host, ids)
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
        rlimits=rlimits_of(box.limits),
        nice=0 if box.limits is None else box.limits.nice or 0,
        fenced=() if box.limits is None else wanted_fields(box.limits),
        init=box.init,
    )


def rlimits_of(limits: Limits | None) -> tuple[tuple[int, int], ...]:
    """Return the resource limits among some limits: number of the resource, value."""
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
        if op.code is Code.PATH and op.device:
            yield index, _landlock.DEVICES
            continue
        if op.code not in _MOUNTING or OpFlag.IN_SCRATCH in op.flags:
            continue
        if not (op.attributes & MOUNT_ATTR_RDONLY or index in protected):
            yield index, _landlock.handled(1 << 16)
        elif not op.target or op.code is Code.PATH:
            yield index, _landlock.READ
        elif op.source == "tmpfs" and not op.attributes & MOUNT_ATTR_NODEV:
            yield index, _landlock.DEVICES


_MOUNTING: Final = (Code.BIND, Code.MOUNT, Code.OVERLAY, Code.PATH)


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
    if box.namespaces["pid"] == "join" and box.seccomp is None:
        raise PlanError(
            "seccomp=None: in a joined pid namespace nothing keeps the payload from giving its "
            "children to the caller (CLONE_PARENT), and the namespace could not end; give a "
            "profile, which may permit everything else"
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
