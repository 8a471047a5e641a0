"""A plan in the kernel's words: for teaching, tests and audit."""

import resource
from collections.abc import Iterable
from typing import Any, NamedTuple

from . import _constants
from ._ahead import can_be_made_ahead
from ._constants import CAPABILITIES, NAMESPACE_FLAGS
from ._enforced import layers_of
from ._landlock import SCOPE_ABSTRACT_SOCKETS, SCOPE_SIGNALS
from ._layers import Enforced
from ._plan import Code, Op, Plan
from .seccomp import name_of

_ATTRIBUTES = {
    name.removeprefix("MOUNT_ATTR_").lower(): value
    for name, value in vars(_constants).items()
    if name.startswith("MOUNT_ATTR_")
}


_RLIMIT_NAMES = {
    number: name
    for name, number in vars(resource).items()
    if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
}


class Action(NamedTuple):
    """
    One step of a set-up.

    Args:
        who: "caller", "launcher" or "child"; with an init also "init" and "payload".
        call: The system call, or the file that is written.
        arguments: What it is about, as text.
        op: Position among the plan's operations (``SpawnError.index``), or -1.
    """

    who: str
    call: str
    arguments: str
    op: int = -1

    def __str__(self) -> str:
        return f"{self.who:<8}  {self.call:<14}  {self.arguments}"


class Explanation(tuple[Action, ...]):
    """
    The ordered steps of a set-up; printing it gives one line each, and the layers.

    Attributes:
        enforced: The layers that will be in force: :class:`Enforced`.
        ahead: From the second spawn of a Sandbox on, the steps that need neither the
            payload's pid namespace nor its process may have been done before, by a
            thread of the caller; each such preparation serves one spawn.
    """

    enforced: Enforced
    ahead: bool

    def __new__(cls, actions: Iterable[Action], enforced: Enforced, ahead: bool) -> "Explanation":
        self = super().__new__(cls, actions)
        self.enforced = enforced
        self.ahead = ahead
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (tuple(self), self.enforced, self.ahead)

    def __str__(self) -> str:
        note = [_AHEAD] if self.ahead else []
        return "\n".join([*map(str, self), *note, "", *map(str, self.enforced)])


_AHEAD = "from the second spawn on, done ahead by a thread: all but what needs the new process"


def explain_plan(plan: Plan, cwd: str) -> Explanation:
    """Return the steps of a plan in the order in which they happen."""
    actions: list[Action] = []
    sources = [
        Action("caller" if plan.parent_sources else "child", *text, op=index)
        for index, op in enumerate(plan.ops)
        for text in _source(op)
    ]
    cloner = "launcher" if plan.joins else "caller"
    if plan.fenced:
        actions.append(Action("caller", "mkdir", f"a fresh cgroup for {', '.join(plan.fenced)}"))
    if plan.parent_sources:
        actions += sources
    if plan.joins:
        memory = "a copy of the memory" if plan.private_memory else "CLONE_VM"
        actions.append(Action("caller", "clone3", f"CLONE_FILES, {memory}: the launcher"))
        actions += [Action("launcher", "setns", NAME_OF_KIND[kind]) for kind in plan.joins]
    actions.append(Action(cloner, "clone3", _clone_flags(plan)))
    if plan.fenced:
        actions.append(Action("child", "write", "0 to tasks, where the cgroup is of v1"))
    if plan.ids.mapped:
        actions += _maps(plan, cloner)
    if not plan.parent_sources:
        actions += sources
    for index, op in enumerate(plan.ops):
        actions += [Action("child", *text, op=index) for text in _operation(op, plan)]
    actions += _finish(plan, cwd)
    return Explanation(actions, layers_of(plan), can_be_made_ahead(plan))


NAME_OF_KIND = {
    kind: "CLONE_NEWNS" if kind == "mnt" else f"CLONE_NEW{kind.upper()}" for kind in NAMESPACE_FLAGS
}


def _clone_flags(plan: Plan) -> str:
    names = [NAME_OF_KIND[k] for k, flag in NAMESPACE_FLAGS.items() if plan.clone_flags & flag]
    parent = ["CLONE_PARENT"] if plan.joins else []
    into = ["CLONE_INTO_CGROUP (v2)"] if plan.fenced else []
    return " | ".join(["CLONE_VM", "CLONE_PIDFD", *parent, *names, *into])


def _maps(plan: Plan, cloner: str) -> list[Action]:
    ids = plan.ids
    deny = [Action(cloner, "setgroups", "deny")] if ids.deny_setgroups else []
    return [
        *deny,
        Action(cloner, "uid_map", f"{ids.uid} {ids.host_uid} 1"),
        Action(cloner, "gid_map", f"{ids.gid} {ids.host_gid} 1"),
    ]


def _attributes(value: int) -> str:
    return ",".join(name for name, bit in _ATTRIBUTES.items() if value & bit)


def _source(op: Op) -> list[tuple[str, str]]:
    if op.code is Code.PATH:
        return [("openat", f"{op.source} (O_PATH)")]
    if op.code not in (Code.BIND, Code.DEVICE, Code.MASK):
        return []
    idmap = " and id-mapped to the payload" if op.idmap else ""
    return [
        ("open_tree", f"{op.source} (clone, recursive)"),
        ("mount_setattr", f"{op.source}: {_attributes(op.attributes)},private recursively{idmap}"),
    ]


def _operation(op: Op, plan: Plan) -> list[tuple[str, str]]:
    where = op.path(plan.ops)
    options = ",".join(key if value is None else f"{key}={value}" for key, value in op.options)
    match op.code:
        case Code.LOOPBACK:
            return [("ioctl", "SIOCSIFFLAGS lo up")]
        case Code.HOSTNAME:
            return [("sethostname", op.source or ""), ("setdomainname", "(none)")]
        case Code.IDS:
            groups = [("setgroups", "none")] if plan.ids.clear_groups and not plan.joins else []
            ids = plan.ids
            return [*groups, ("setresgid", f"{ids.gid}"), ("setresuid", f"{ids.uid}")]
        case Code.NO_USER_NAMESPACES:
            return [
                ("write", "0 to /proc/sys/user/max_user_namespaces"),
                ("write", "16 to /proc/sys/user/max_inotify_instances"),
                ("write", "8192 to /proc/sys/user/max_inotify_watches"),
            ]
        case Code.PROPAGATION:
            return [("mount_setattr", "/: private recursively")]
        case Code.SCRATCH:
            return [("fsmount", "tmpfs for the layers of overlays")]
        case Code.BIND:
            return [("move_mount", f"{op.source} -> {where}")]
        case Code.DEVICE:
            number = f"{op.device >> 32}:{op.device & 0xFFFFFFFF}"
            return [
                ("statx", f"{op.source} is character device {number}"),
                ("mknodat", f"{where} (mount point)"),
                ("move_mount", f"{op.source} -> {where}"),
            ]
        case Code.MASK:
            return [("move_mount", f"{op.source}, or an empty directory -> {where}")]
        case Code.MOUNT | Code.OVERLAY:
            flags = _attributes(op.attributes)
            return [
                ("fsmount", f"{op.source} {options} ({flags})".replace("  ", " ")),
                ("move_mount", f"{op.source} -> {where}"),
            ]
        case Code.DIRECTORY:
            return [("mkdirat", f"{where} {op.mode:o}")]
        case Code.FILE:
            return [("openat", f"{where} {op.mode:o}, {len(op.content)} bytes")]
        case Code.SYMLINK:
            return [("symlinkat", f"{where} -> {op.source}")]
        case Code.READONLY:
            return [("mount_setattr", f"{where}: rdonly")]
        case Code.PATH:
            return []
        case Code.PIVOT:
            return [("pivot_root", ". ."), ("umount2", "the host's mounts (MNT_DETACH)")]


def _finish(plan: Plan, cwd: str) -> list[Action]:
    """Return what comes when the world is finished; with an init, in two processes."""
    if not plan.init:
        steps = [*_handed(), *_restrictions(plan), *_own(plan, cwd), *_filter(plan)]
        return [Action("child", *step) for step in [*steps, ("execve", "the payload")]]
    init = [
        ("dup3", "the control socket and a pidfd of the caller into place"),
        ("setsid", "no controlling terminal"),
        *_restrictions(plan),
        ("fchdir", "/"),
        *_filter(plan),
        ("execveat", "nsbox-init, from a sealed memfd; it must not be traced (PR_SET_DUMPABLE)"),
    ]
    payload = [*_handed(), ("close_range", "3-, but for those passed"), *_own(plan, cwd)]
    return [
        *(Action("child", *step) for step in init),
        Action("init", "clone", "CLONE_VM | CLONE_PIDFD"),
        *(Action("payload", *step) for step in [*payload, ("execve", "the payload")]),
    ]


def _handed() -> list[tuple[str, str]]:
    return [
        ("dup3", "stdin, stdout, stderr into place"),
        ("setsid", "no controlling terminal"),
    ]


def _restrictions(plan: Plan) -> list[tuple[str, str]]:
    names = [name for number, name in enumerate(CAPABILITIES) if plan.capabilities >> number & 1]
    kept = ", ".join(names) or "none"
    return [
        ("prctl", "PR_SET_NO_NEW_PRIVS"),
        *_restriction(plan),
        ("close_range", "3-, but for those passed"),
        ("prlimit64", "RLIMIT_NICE, RLIMIT_RTPRIO: 0; RLIMIT_CORE: 1, no dump to anybody"),
        ("prlimit64", "RLIMIT_SIGPENDING, RLIMIT_MSGQUEUE: half of the caller's"),
        *([("keyctl", "KEYCTL_JOIN_SESSION_KEYRING, a new one")] if plan.new_keyring else []),
        *([] if plan.keep_bounds else [("prctl", f"PR_CAPBSET_DROP, all but: {kept}")]),
        ("prctl", f"PR_CAP_AMBIENT: {kept}"),
        *([] if plan.keep_bounds else [("prctl", "PR_SET_SECUREBITS: noroot, and locked")]),
        ("capset", f"effective, permitted, inheritable: {kept}"),
    ]


def _own(plan: Plan, cwd: str) -> list[tuple[str, str]]:
    """Return what is the payload's alone, and no init's."""
    return [
        ("chdir" if plan.init else "fchdir", cwd),
        *([("setpriority", f"at least {plan.nice}")] if plan.nice else []),
        *(("prlimit64", f"{_RLIMIT_NAMES[number]} {value}") for number, value in plan.rlimits),
    ]


def _filter(plan: Plan) -> list[tuple[str, str]]:
    if plan.seccomp is None:
        return []
    late = "; if the init could not work under it, before the payload's execve" if plan.init else ""
    return [("seccomp", f"the filter {name_of(plan.seccomp)!r}{late}")]


def _restriction(plan: Plan) -> list[tuple[str, str]]:
    if plan.landlock is None:
        return []
    writable = [
        plan.ops[index].path(plan.ops)
        for index, rights in plan.landlock.rules
        if rights == plan.landlock.rights
    ]
    readable = "what was opened above" if plan.unshared else "below /"
    parts = (
        [f"{readable} to read, to write {', '.join(writable) or 'nothing'}"]
        if plan.landlock.rules
        else []
    )
    if plan.landlock.net:
        parts.append("no TCP")
    if plan.landlock.scoped & SCOPE_ABSTRACT_SOCKETS:
        parts.append("no abstract sockets of others")
    if plan.landlock.scoped & SCOPE_SIGNALS:
        parts.append("no signals to others")
    return [("landlock", "; ".join(parts))]
