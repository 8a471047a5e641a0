"""
Between the plan and the C core: lower a plan to C structs, call, raise.

A plan is lowered once and used by any number of threads; a spawn adds only
what differs (_request.py).
"""

import errno
import os
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any, Final
from weakref import ref

from . import _bpf, _calls, _diagnose, _filter, _init, _unshared
from ._ahead import can_be_made_ahead
from ._child import Child
from ._constants import ANYWHERE, NAMESPACE_FLAGS
from ._enforced import layers_of
from ._layers import Enforced
from ._native import ffi, lib
from ._plan import Code, Op, OpFlag, Plan
from ._request import Ids, Request, lower
from ._spares import Store
from ._view import Paths, mount_points, sources
from .errors import (
    STEPS,
    NamespaceError,
    SpawnError,
    Step,
    UnsupportedError,
    bad_descriptor,
    spawn_error,
)
from .namespace import Namespace, create_id_map_namespace

_PR_SET_DUMPABLE: Final = 4


class _Dumpable:
    """The C core's note of this process's dumpable mark (see csrc/spawn.c)."""

    def __init__(self) -> None:
        self.note = ffi.new("struct nsbox_dumpable *")
        self._wanted = 0
        os.register_at_fork(before=self._before_fork, after_in_child=self._after_fork)

    def _before_fork(self) -> None:
        self._wanted = lib.nsbox_dumpable_wanted(self.note)

    def _after_fork(self) -> None:
        # The spawns that were under way are the parent's, and so was the mark at that moment.
        if self._wanted == 1:
            _calls.prctl(_PR_SET_DUMPABLE, 1)
        self.note = ffi.new("struct nsbox_dumpable *")


_dumpable = _Dumpable()


def _unfinished(step: Step, error: OSError) -> SpawnError:
    """Return what is raised for a call that failed here, before C was asked."""
    number = error.errno or errno.EIO
    return spawn_error(number, step, error.filename, hint=ANYWHERE.get(number))


def _program_of_init() -> int:
    try:
        return _init.image()
    except OSError as error:
        raise _unfinished(Step.INIT, error) from error


class Lowered:
    """A plan as C structs, with the descriptors that it needs."""

    def __init__(self, plan: Plan, joins: Mapping[str, Namespace]) -> None:
        """
        Lower a plan.

        Args:
            plan: What to lower.
            joins: The namespaces of ``plan.joins``.

        Raises:
            SpawnError: If the source of an id-mapped bind does not exist.
            PlanError: If the seccomp profile names a call that nobody knows.
            UnsupportedError: If libseccomp is missing. In a set-user-ID program, or one with file
                capabilities: nothing here is made to resist its caller.
        """
        if lib.nsbox_secure_execution():
            raise UnsupportedError(
                "this program runs with privileges that its caller does not have (setuid, "
                "setgid or file capabilities); nsbox refuses to work for it"
            )
        self.plan = plan
        # Of equal Sandboxes, which have this in common: one that stays, and what is made ahead.
        # Here and not in a table, which would keep this, and its descriptors, as long as that one.
        self.living: ref[Any] | None = None
        self.shared: ref[Store] | None = None
        self._joins = [joins[kind] for kind in plan.joins]
        self._keep: list[object] = []
        self._enforced: dict[bool, Enforced] = {}
        self._fds = ffi.new("int32_t[]", max(1, len(self._joins)))
        self._struct = self._lower_plan()
        # With shared memory, and other ids than ours, the dumpable mark is at stake.
        outside = (plan.ids.host_uid, plan.ids.host_gid)
        self._changes_ids = not plan.private_memory and outside != (os.geteuid(), os.getegid())

    def store(self) -> Store | None:
        """Return an empty store for what can be made ahead; None if nothing can."""
        if not can_be_made_ahead(self.plan):
            return None
        return Store(self._struct, _dumpable.note if self._changes_ids else ffi.NULL)

    def spawn(self, request: Request, child: Child, store: Store | None = None) -> None:
        """
        Start a payload, and wait until it executes.

        Args:
            request: What to start.
            child: Receives the pid and the pidfd.
            store: What was made ahead, or None.

        Raises:
            SpawnError: If a step failed; nothing is left then.
        """
        struct, keep, note = self._prepared(request, child, store)
        if self.plan.init:
            struct.flags |= self._late_filter
            struct.exec_fd = _program_of_init()
            lib.nsbox_spawn_with_init(self._struct, struct, note, child.record)
        else:
            lib.nsbox_spawn(self._struct, struct, note, child.record)
        del keep
        if child.record.step:
            raise self.failure(child)

    def prepare(
        self,
        control: Any,
        request: Request,
        child: Child,
        store: Store | None = None,
        *,
        flags: int = 0,
    ) -> None:
        """
        Start an nsbox-init: a payload that starts others.

        Args:
            control: The ``struct nsbox_control *`` to fill.
            request: What it starts as. Its streams are replaced.
            child: Receives its pid and pidfd.
            store: What was made ahead, or None.
            flags: What it is for: NSBOX_REQUEST_STAYS or NSBOX_REQUEST_KEEP_FILTER.

        Raises:
            SpawnError: If a step failed; nothing is left then.
        """
        struct, keep, note = self._prepared(request, child, store)
        struct.flags |= self._late_filter | flags
        struct.exec_fd = _program_of_init()
        control.init = child.record
        lib.nsbox_control_prepare(self._struct, struct, False, note, control)
        del keep
        if child.record.step:
            raise self.failure(child)

    def start(self, control: Any, request: Request, child: Child, mode: int) -> None:
        """
        Start a payload by an nsbox-init that :meth:`prepare` has started.

        Args:
            control: Of the init.
            request: What to start.
            child: Receives the pid and the pidfd.
            mode: NSBOX_START_*.

        Raises:
            SpawnError: If a step failed; nothing is left then. An attended start may do so later,
                with the end.
        """
        child.source, child.request = self, request
        if request.ids is not None:
            self._check_ids(request.ids)
        struct, keep = lower(request)
        if self._late_filter:
            struct.flags |= _LATE_FILTER
        if self.plan.has_sys_admin:
            struct.flags |= _OWN_CGROUPS
        lib.nsbox_control_start(control, self._struct, struct, mode, child.record)
        del keep
        if child.record.step:
            raise self.failure(child)

    def check_joins(self) -> None:
        """
        Look at the namespaces to join anew, before a number means another file.

        Raises:
            PlanError: If one has been closed.
        """
        for position, namespace in enumerate(self._joins):
            self._fds[position] = namespace.fileno()

    def _prepared(
        self, request: Request, child: Child, store: Store | None
    ) -> tuple[Any, object, Any]:
        """Return a request lowered, what that needs, and the note of the dumpable mark."""
        self.check_joins()
        child.source, child.request = self, request
        if request.ids is not None:
            self._check_ids(request.ids)
        struct, keep = lower(request)
        if store is not None:
            struct.store = store.pointer
        note = _dumpable.note if self._changes_ids or request.ids is not None else ffi.NULL
        return struct, keep, note

    @cached_property
    def sources(self) -> Paths:
        """What the plan takes from its caller's host: see _view.sources()."""
        return sources(self.plan)

    @cached_property
    def mount_points(self) -> Paths:
        """What leads to its mounts by directories of the host: see _view.mount_points()."""
        return mount_points(self.plan)

    @cached_property
    def _late_filter(self) -> int:
        works = _init.works_under(self._program, may_mount=self.plan.has_sys_admin)
        return 0 if works else _LATE_FILTER

    def _check_ids(self, ids: Ids) -> None:
        """Refuse ids that the sandbox's own user namespace does not have: it maps one of each."""
        if not self.plan.ids.mapped:
            return
        for step, wanted, mapped in (
            (Step.EXTRA_GROUPS, ids.extra_groups or (), self.plan.ids.gid),
            (Step.GROUP, _given(ids.group), self.plan.ids.gid),
            (Step.USER, _given(ids.user), self.plan.ids.uid),
        ):
            for number in wanted:
                if number != mapped:
                    advice = f"{step}: id {number} is not mapped inside; only {mapped} is"
                    raise spawn_error(errno.EPERM, step, hint=advice)

    def enforced(self, *, new_session: bool) -> Enforced:
        """Return the layers that are in force for what this has started."""
        if new_session not in self._enforced:
            self._enforced[new_session] = layers_of(self.plan, new_session=new_session)
        return self._enforced[new_session]

    # ---- errors ----

    def failure(self, child: Child) -> SpawnError:
        """Return the error for the step of a start that has failed."""
        record, request = child.record, child.request
        step, error, index = STEPS[record.step - 1], int(record.error), int(record.index)
        op, path = None, None
        if step is Step.EXECVE:
            path = os.fsdecode(request.executable)
        elif step is Step.CHDIR:
            path = request.cwd
        elif step is Step.SETNS:
            path = self.plan.joins[index] if index >= 0 else None
        elif step in (Step.DUP, Step.PASS_FD):
            return bad_descriptor(error, step, index)
        elif 0 <= index < len(self.plan.ops) and step not in _NO_OPERATION:
            op = self.plan.ops[index]
            path = op.source if step in _ABOUT_SOURCE else self._target(op)
        advice = _diagnose.hint(step, error, self.plan, op, path)
        if step is Step.EXECVE and advice and request.executable != request.argv[0]:
            advice = f"executable: {advice}"
        return spawn_error(error, step, path, index if op is not None else -1, advice)

    def _target(self, op: Op) -> str | None:
        if op.code in _WITHOUT_TARGET:
            return None
        if op.code is Code.HOSTNAME:
            return op.source
        return op.path(self.plan.ops)

    # ---- lowering ----

    def _text(self, text: str | None) -> Any:
        if text is None:
            return ffi.NULL
        return self._kept(ffi.new("char[]", os.fsencode(text)))

    def _kept(self, data: Any) -> Any:
        self._keep.append(data)
        return data

    def _lower_plan(self) -> Any:
        plan, ids = self.plan, self.plan.ids
        flags = 0
        for wanted, flag in (
            (plan.parent_sources, lib.NSBOX_PLAN_PARENT_SOURCES),
            (plan.private_memory, lib.NSBOX_PLAN_PRIVATE_MEMORY),
            (ids.deny_setgroups, lib.NSBOX_PLAN_DENY_SETGROUPS),
            (ids.clear_groups, lib.NSBOX_PLAN_CLEAR_GROUPS),
            (plan.user_xattr, lib.NSBOX_PLAN_USER_XATTR),
            (plan.new_keyring, lib.NSBOX_PLAN_NEW_KEYRING),
            (plan.keep_bounds, lib.NSBOX_PLAN_KEEP_BOUNDS),
        ):
            flags |= flag if wanted else 0
        types = [NAMESPACE_FLAGS[kind] for kind in plan.joins]
        program, landlock, devpts = self._filter(), plan.landlock, plan.devpts
        self._program = program
        rules = landlock.rules if landlock else ()
        return ffi.new(
            "struct nsbox_plan *",
            {
                "clone_flags": plan.clone_flags,
                "capabilities": plan.capabilities,
                "flags": flags,
                "uid": ids.uid,
                "gid": ids.gid,
                "n_joins": len(self._joins),
                "n_ops": len(plan.ops),
                "joins": self._fds,
                "nice": plan.nice,
                "n_rlimits": len(plan.rlimits),
                "rlimits": self._kept(ffi.new("struct nsbox_rlimit[]", list(plan.rlimits))),
                "join_types": self._kept(ffi.new("int32_t[]", types)),
                "uid_map": self._text(f"{ids.uid} {ids.host_uid} 1" if ids.mapped else None),
                "gid_map": self._text(f"{ids.gid} {ids.host_gid} 1" if ids.mapped else None),
                "host_uid": (ids.host_uid or 0) if ids.mapped else 0,
                "host_gid": (ids.host_gid or 0) if ids.mapped else 0,
                "ops": self._kept(self._lower_ops()),
                "filter_length": len(program) // _bpf.INSTRUCTION.size,
                "filter": self._kept(ffi.from_buffer(program)),
                "landlock_rights": landlock.rights if landlock else 0,
                "landlock_net": landlock.net if landlock else 0,
                "landlock_scoped": landlock.scoped if landlock else 0,
                "n_rules": len(rules),
                "rules": self._kept(ffi.new("struct nsbox_rule[]", rules)),
                "devpts": -1 if devpts is None else devpts,
            },
        )

    def _filter(self) -> bytes:
        plan = self.plan
        try:
            return _filter.program_of(
                plan.seccomp,
                plan.capabilities,
                plan.user_namespaces,
                _unshared.refusals(plan.withheld or ()),
            )
        except OSError as error:
            raise _unfinished(Step.SECCOMP, error) from error

    def _lower_ops(self) -> Any:
        ops = self.plan.ops
        lowered = ffi.new("struct nsbox_op[]", len(ops))
        for index, op in enumerate(ops):
            base = ops[op.parent].target if op.parent >= 0 else ""
            lowered[index] = self._kept(_lower_op(op, base))[0][0]  # a copy
            lowered[index].idmap = self._id_map(op) if op.idmap else -1
        return lowered

    def _id_map(self, op: Op) -> int:
        """Return a user namespace that shows the owner of op.source as the payload."""
        assert op.source is not None
        try:
            info = os.stat(op.source)
        except OSError as error:
            code = error.errno or 0
            advice = _diagnose.hint(Step.OPEN_TREE, code, self.plan, op, op.source)
            raise spawn_error(
                code, Step.OPEN_TREE, op.source, self.plan.ops.index(op), advice
            ) from None
        ids = self.plan.ids
        owner = (info.st_uid, info.st_gid)
        if owner == (ids.host_uid, ids.host_gid):
            return -1
        try:
            maps = f"{owner[0]} {ids.host_uid} 1", f"{owner[1]} {ids.host_gid} 1"
            namespace: Namespace = self._kept(id_map_namespace(*maps))
        except NamespaceError as error:
            raise UnsupportedError(
                f"cannot map the owner of {op.source!r} ({owner[0]}:{owner[1]}): {error}"
            ) from error
        return namespace.fileno()


# For programs that make a Sandbox for each directory that they work in: mostly with one owner.
id_map_namespace: Final = lru_cache(maxsize=4)(create_id_map_namespace)


# Of two Sandboxes that differ, nearly all operations are the same.
@lru_cache(maxsize=512)
def _lower_op(op: Op, base: str) -> tuple[Any, ...]:
    """
    Return an operation as a C struct, but for its idmap; and what that points to.

    Args:
        op: What to lower.
        base: The target of its parent.
    """
    keep: list[Any] = []
    placed = OpFlag.PLACED in op.flags
    target = op.target.removeprefix(base).lstrip("/") if placed else op.target

    def text(value: str | None) -> Any:
        if value is None:
            return ffi.NULL
        keep.append(ffi.new("char[]", os.fsencode(value)))
        return keep[-1]

    options = ffi.new(
        "struct nsbox_option[]", [(text(key), text(value)) for key, value in op.options]
    )
    content = ffi.new("char[]", op.content)
    struct = {
        "code": int(op.code),
        "parent": op.parent,
        "flags": int(op.flags),
        "mode": op.mode,
        "attributes": op.attributes,
        "device": op.device,
        "n_options": len(op.options),
        "options": options,
        "source": text(op.source),
        "target": text(target),
        "layers": text(op.layers),
        "content": content,
        "content_size": len(op.content),
    }
    return ffi.new("struct nsbox_op *", struct), options, content, *keep


_INIT: Final = int(lib.NSBOX_REQUEST_INIT)
_LATE_FILTER: Final = int(lib.NSBOX_REQUEST_LATE_FILTER)
_OWN_CGROUPS: Final = int(lib.NSBOX_REQUEST_OWN_CGROUPS)

_WITHOUT_TARGET: Final = {
    Code.LOOPBACK,
    Code.IDS,
    Code.NO_USER_NAMESPACES,
    Code.PROPAGATION,
    Code.PIVOT,
}
# Steps that are about the host's side of a mount; the others are about the inside.
_ABOUT_SOURCE: Final = {
    Step.OPEN_TREE,
    Step.SOURCE_ATTRIBUTES,
    Step.IDMAP,
    Step.DEVICE,
    Step.OPEN_PATH,
}
# Their index counts something else than operations.
_NO_OPERATION: Final = {Step.CAPBSET_DROP, Step.CAP_AMBIENT, Step.LOWER_LIMITS, Step.LIMIT}


def _given(value: int | None) -> tuple[int, ...]:
    return () if value is None else (value,)
