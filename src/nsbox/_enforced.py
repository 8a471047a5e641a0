"""From a plan to the report of layers: what is in force, what not, and why."""

from ._constants import CAPABILITIES, MOUNT_ATTR_RDONLY, NAMESPACE_FLAGS
from ._landlock import LEAST_ABI, SCOPE_ABI, SCOPE_ABSTRACT_SOCKETS, SCOPE_SIGNALS
from ._layers import Enforced, Layer
from ._plan import Code, Plan
from .seccomp import name_of


def layers_of(plan: Plan, *, new_session: bool = True) -> Enforced:
    """
    Return the layers that a plan puts in force.

    All of them are: a step of the set-up that fails fails the spawn.
    """
    return Enforced(
        (
            *_namespaces(plan),
            *_identity(plan),
            *_files(plan),
            *_privileges(plan),
            Layer(
                "session",
                new_session,
                "no terminal of the caller's"
                if new_session
                else "start_new_session=False: it can forge input of the caller's terminal",
            ),
        )
    )


def _namespaces(plan: Plan) -> list[Layer]:
    layers = []
    for kind, flag in NAMESPACE_FLAGS.items():
        if plan.clone_flags & flag:
            first = ", and nsbox-init is its first process" if plan.init and kind == "pid" else ""
            active, why = True, f"new{first}"
        elif kind in plan.joins:
            active, why = True, "joined, and shared with what else is in it"
        else:
            active, why = False, f"the host's{_instead(plan, kind)}"
        layers.append(Layer(f"{kind} namespace", active, why))
    return layers


def _instead(plan: Plan, kind: str) -> str:
    """Return what of a namespace is there without one."""
    if plan.withheld is None:
        return ""
    found = _INSTEAD[kind] if kind in plan.withheld else ""
    if kind == "pid" and plan.landlock is not None and not plan.landlock.scoped & SCOPE_SIGNALS:
        found = f"; without Landlock's ABI {SCOPE_ABI} its user's processes can be signalled"
    return f", by namespaces='none'{found}"


_INSTEAD = {
    "mnt": "; Landlock keeps its files, the filter their modes, owners and times",
    "pid": "; Landlock keeps its processes from signals and tracing. What the payload starts "
    "may outlive it, unless a cgroup ends both",
    "net": "; the filter refuses every socket",
    "ipc": "; the filter refuses every queue and segment",
}


def _identity(plan: Plan) -> list[Layer]:
    ids = plan.ids
    if ids.host_uid is None:
        outside = f"user {ids.uid} of the joined user namespace"
    elif ids.mapped:
        outside = f"user {ids.uid} inside is user {ids.host_uid} of the host"
    else:
        outside = f"user {ids.host_uid} of the host, without a user namespace"
    groups = "none" if ids.clear_groups else "the caller's: a plain user may not drop them"
    return [
        Layer("ids", ids.host_uid != 0, outside),
        Layer("supplementary groups", ids.clear_groups, groups),
    ]


def _files(plan: Plan) -> list[Layer]:
    procs = [
        index
        for index, op in enumerate(plan.ops)
        if (op.code is Code.MOUNT and op.source == "proc")
        or (op.code is Code.BIND and op.source == "/proc")
    ]
    protected = {op.parent for op in plan.ops if op.code is Code.READONLY}
    readonly = all(
        plan.ops[index].attributes & MOUNT_ATTR_RDONLY or index in protected for index in procs
    )
    masks = [op.path(plan.ops) for op in plan.ops if op.code is Code.MASK]
    if plan.unshared:
        root = Layer("root", False, "the host's, by namespaces='none'")
        return [root, *_unshared_files(plan), _landlock_layer(plan)]
    return [
        Layer("root", True, "entered by pivot_root; the host's mounts are detached"),
        Layer(
            "read-only /proc",
            readonly,
            "nothing of the kernel can be set" if readonly else "processes can write their files",
        ),
        Layer("masks", bool(masks), ", ".join(masks) or "nothing to mask"),
        _landlock_layer(plan),
    ]


def _unshared_files(plan: Plan) -> list[Layer]:
    shown = any(op.code is Code.PATH and (op.target or "proc") == "proc" for op in plan.ops)
    why = "the host's, and not writable" if shown else "closed"
    return [Layer("read-only /proc", True, why), Layer("masks", False, "nothing is mounted")]


def _landlock_layer(plan: Plan) -> Layer:
    landlock = plan.landlock
    if landlock is None:
        why = (
            f"not wanted, not in this kernel (it needs ABI {LEAST_ABI}, Linux 5.19), "
            "or given up by user_namespaces=True or CAP_SYS_ADMIN"
        )
        return Layer("landlock", False, why)
    parts = [
        "files" if landlock.rights else "",
        "TCP" if landlock.net else "",
        "abstract sockets" if landlock.scoped & SCOPE_ABSTRACT_SOCKETS else "",
        "signals" if landlock.scoped & SCOPE_SIGNALS else "",
    ]
    return Layer("landlock", True, f"ABI {landlock.abi}: {', '.join(filter(None, parts))}")


def _privileges(plan: Plan) -> list[Layer]:
    limited = any(op.code is Code.NO_USER_NAMESPACES for op in plan.ops)
    barred = [
        "max_user_namespaces is 0" if limited else "",
        "the filter refuses them" if plan.seccomp and not plan.user_namespaces else "",
    ]
    if plan.new_keyring:
        keyring = "a new one"
    else:
        keyring = "the filter refuses every call that could reach one"
    return [
        _capabilities(plan),
        Layer("no_new_privs", True, "no exec gives privileges"),
        _securebits(plan),
        Layer(
            "no user namespaces",
            not plan.user_namespaces,
            "user_namespaces=True" if plan.user_namespaces else " and ".join(filter(None, barred)),
        ),
        Layer("session keyring", True, keyring),
        Layer("seccomp", plan.seccomp is not None, _filter_text(plan)),
    ]


def _capabilities(plan: Plan) -> Layer:
    kept = [name for bit, name in enumerate(CAPABILITIES) if plan.capabilities >> bit & 1]
    none = (
        "none; the bounding set is the caller's" if plan.keep_bounds else "none, in all five sets"
    )
    return Layer("capabilities", not kept, ", ".join(kept) or none)


def _securebits(plan: Plan) -> Layer:
    if plan.keep_bounds:
        return Layer("securebits", False, "the caller's: it has no CAP_SETPCAP")
    return Layer("securebits", True, "user 0 is one like others, and they are locked")


def _filter_text(plan: Plan) -> str:
    if plan.seccomp is None:
        return "seccomp=None"
    return f"the profile {name_of(plan.seccomp)!r}"
