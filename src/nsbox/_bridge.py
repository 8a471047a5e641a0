"""
Between the plan and the C core: lower a plan to C structs, call, raise.

A plan is lowered once and used by any number of threads; a spawn adds only
what differs. cffi frees memory with its last Python reference, so every
buffer that a struct points to is kept beside the struct.
"""

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple

from . import _bpf, _calls, _diagnose, _filter, _init, _unshared
from ._ahead import can_be_made_ahead
from ._constants import ANYWHERE, NAMESPACE_FLAGS
from ._enforced import layers_of
from ._layers import Enforced
from ._native import ffi, lib
from ._plan import Code, Op, OpFlag, Plan
from ._spares import Store, maker
from ._watch import Watch
from .errors import STEPS, NamespaceError, SpawnError, Step, UnsupportedError, spawn_error
from .namespace import Namespace, create_id_map_namespace
from .terminal import Terminal

_PR_SET_DUMPABLE: Final = 4

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Placement(NamedTuple):
    """
    Where a payload goes, and who watches it.

    Args:
        cgroup: Descriptor of the v2 cgroup that it is born in, or -1.
        tasks: Descriptors of the "tasks" of the v1 cgroups that it joins.
        shield: The memory of that cgroup may run out (see csrc/spawn.c).
        watch: Its deadlines, or None.
    """

    cgroup: int
    tasks: tuple[int, ...]
    shield: bool
    watch: Watch | None


NOWHERE: Final = Placement(-1, (), False, None)


class Environment(dict[str, str]):
    """Variables that many spawns have, and nobody changes."""

    __slots__ = ("lowered",)

    def __init__(self, variables: Mapping[str, str]) -> None:
        super().__init__(variables)
        self.lowered: tuple[object, list[object]] | None = None


class Request(NamedTuple):
    """
    What differs from spawn to spawn.

    Args:
        argv: Arguments, not empty.
        executable: Program to execute, instead of argv[0].
        env: The whole environment.
        cwd: Working directory inside.
        stdio: Descriptors for 0, 1, 2; -1 leaves the caller's.
        pass_fds: Further descriptors, kept under their numbers.
        inherit: Of pass_fds, hand on only what is open and inheritable.
        umask: -1 leaves the caller's.
        setsid: Start a session.
        process_group: Process group to join, 0 for a new one; -1 leaves the caller's.
        user: User id inside; None: the sandbox's.
        group: Group id inside; None: the sandbox's.
        extra_groups: Supplementary group ids inside; None: none that are mapped.
        controlling_terminal: Make stdin its controlling terminal.
        restore_signals: SIGPIPE and SIGXFSZ back to their defaults.
        attended: The calling thread waits for its end, and the payload is killed when this
            thread ends, not the main one.
        placement: Its cgroup and its deadlines.
        layers: Descriptor of a socket that the layers of overlays are sent to, or -1.
        nice: Niceness, besides the plan's; by an init only.
        rlimits: Resource limits, likewise: of both the stricter ones hold.
        terminal: The caller's end of a terminal of its own, to be made; its slave end
            replaces each -1 of stdio.
    """

    argv: Sequence[bytes]
    executable: bytes
    env: Mapping[str, str]
    cwd: str
    stdio: tuple[int, int, int]
    pass_fds: Sequence[int] = ()
    inherit: bool = False
    umask: int = -1
    setsid: bool = True
    process_group: int = -1
    user: int | None = None
    group: int | None = None
    extra_groups: Sequence[int] | None = None
    controlling_terminal: bool = False
    restore_signals: bool = True
    attended: bool = False
    placement: Placement = NOWHERE
    layers: int = -1
    nice: int = 0
    rlimits: tuple[tuple[int, int], ...] = ()
    terminal: Terminal | None = None


_EXITED: Final = int(os.CLD_EXITED)


class End:
    """
    How a process ended, as waitid(2) and getrusage(2) tell it.

    Args:
        struct: A ``struct nsbox_exit``, of which this keeps a copy.
    """

    __slots__ = ("_struct", "returncode")

    def __init__(self, struct: Any) -> None:
        status = int(struct.status)
        self.returncode = status if struct.code == _EXITED else -status
        self._struct = ffi.new("struct nsbox_exit *", struct)

    @property
    def user_time(self) -> float:
        """Seconds."""
        return float(self._struct.user_usec / 1e6)

    @property
    def system_time(self) -> float:
        """Seconds."""
        return float(self._struct.system_usec / 1e6)

    @property
    def switches(self) -> tuple[int, int]:
        """Context switches: voluntary ones, others."""
        return int(self._struct.voluntary_switches), int(self._struct.involuntary_switches)


class Child:
    """
    What the C core says of a child, and its pidfd.

    Made before the spawn and filled in by C: a signal handler that raises as
    soon as the spawn is over finds the child here and nowhere else. All that
    changes it is one call into C, so it is whole whatever raises in between.
    After a fork it is nobody's child here: it seems to have ended.

    Args:
        outlives: Leave the child alone when nobody holds this any more.
    """

    __slots__ = ("_memory", "failure", "record")

    def __init__(self, *, outlives: bool = False) -> None:
        self.failure: Callable[[], Exception] | None = None
        # Held here too: of a cycle that is collected, the record may be finalised before those
        # who use it in a __del__ of theirs, and lets go of the memory then.
        self._memory = ffi.new("struct nsbox_result *", _calls.NO_RESULT)
        # Its destructor is C, too: whoever is forgotten is killed, even if __del__ is interrupted.
        self.record = ffi.gc(self._memory, lib.nsbox_release if outlives else lib.nsbox_discard)

    @property
    def pid(self) -> int:
        return int(self.record.pid)

    @property
    def pidfd(self) -> int:
        """The pidfd, or -1 before the start and once the end is known."""
        return int(self.record.pidfd)

    def signs_of_end(self) -> list[int]:
        """Return descriptors that become readable when the end may be known; none once it is."""
        record = self.record
        own = (record.init,) if record.init >= 0 else (record.pidfd, record.report)
        return [int(fd) for fd in own if fd >= 0]

    def wait(self, timeout: int) -> End | None:
        """
        Return how the child ended; None if it has not, or a signal came.

        If another part of the program has reaped it, and the kernel (before
        Linux 6.15) has not kept its status, that is taken for 0, as by Popen.

        Args:
            timeout: Milliseconds; negative: for ever.
        """
        ret = lib.nsbox_wait(self.record, timeout)
        if ret in (0, -errno.EINTR):
            return None
        if ret < 0:
            raise OSError(-ret, os.strerror(-ret))
        return End(self.record.end)

    def check_start(self) -> None:
        """Raise what an attended start has failed with, once the end is known."""
        if self.record.step:
            assert self.failure is not None
            raise self.failure()

    def signal(self, sig: int) -> None:
        """Send a signal; nothing happens if the child has ended."""
        ret = lib.nsbox_signal(self.record, sig)
        if ret < 0:
            raise OSError(-ret, os.strerror(-ret))

    def discard(self) -> bool:
        """Kill the child if there is one, and reap it; return whether there was."""
        return bool(lib.nsbox_discard(self.record))


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


class _Gate:
    """
    What keeps a fork from copying a message that is half sent: struct nsbox_gate.

    A signal that came during a fork is handled in the first Python code after it, and the
    exception gets lost, with all that this code had to do. So the gate's hooks are none.
    """

    def __init__(self) -> None:
        self.note = ffi.new("struct nsbox_gate *")
        opens = partial(lib.nsbox_gate_open, self.note)
        os.register_at_fork(
            before=partial(lib.nsbox_gate_close, self.note),
            after_in_parent=opens,
            after_in_child=opens,
        )


gate: Final = _Gate()


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
        self._joins = [joins[kind] for kind in plan.joins]
        self._keep: list[object] = []
        self._enforced: dict[bool, Enforced] = {}
        self._id_maps: dict[tuple[int, int], Namespace] = {}
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
        struct, keep, note = self._prepared(request)
        if store is not None:
            struct.store = store.pointer
        if self.plan.init:
            struct.flags |= self._late_filter()
            struct.exec_fd = _program_of_init()
            lib.nsbox_spawn_with_init(self._struct, struct, note, gate.note, child.record)
        else:
            lib.nsbox_spawn(self._struct, struct, note, child.record)
        del keep
        self._raise_failure(child, request)

    def prepare(
        self, control: Any, request: Request, child: Child, store: Store | None = None
    ) -> None:
        """
        Start an nsbox-init: a payload that starts others.

        Args:
            control: The ``struct nsbox_control *`` to fill.
            request: What it starts as. Its streams are replaced.
            child: Receives its pid and pidfd.
            store: What was made ahead, or None.

        Raises:
            SpawnError: If a step failed; nothing is left then.
        """
        struct, keep, note = self._prepared(request)
        if store is not None:
            struct.store = store.pointer
        struct.flags |= self._late_filter()
        struct.exec_fd = _program_of_init()
        control.init = child.record
        lib.nsbox_control_prepare(self._struct, struct, False, note, control)
        del keep
        self._raise_failure(child, request)

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
                in ``Child.check_start``.
        """
        if asks_for_ids(request):
            self._check_ids(request)
        struct, keep = self._lower_request(request)
        struct.flags |= self._late_filter()
        if request.attended:
            child.failure = partial(self._failure, child, request)
        lib.nsbox_control_start(control, self._struct, struct, mode, gate.note, child.record)
        del keep
        self._raise_failure(child, request)

    def check_joins(self) -> None:
        """
        Look at the namespaces to join anew, before a number means another file.

        Raises:
            PlanError: If one has been closed.
        """
        for position, namespace in enumerate(self._joins):
            self._fds[position] = namespace.fileno()

    def _prepared(self, request: Request) -> tuple[Any, object, Any]:
        """Return a request lowered, what it needs, and the note of the dumpable mark."""
        self.check_joins()
        if asks_for_ids(request):
            self._check_ids(request)
        struct, keep = self._lower_request(request)
        struct.maker = maker.existing
        note = _dumpable.note if self._changes_ids or asks_for_ids(request) else ffi.NULL
        return struct, keep, note

    def _late_filter(self) -> int:
        return 0 if _init.works_under(self._program) else _LATE_FILTER

    def _raise_failure(self, child: Child, request: Request) -> None:
        if child.record.step:
            raise self._failure(child, request)

    def _failure(self, child: Child, request: Request) -> Exception:
        record = child.record
        return self._error(int(record.step), int(record.error), int(record.index), request)

    def _check_ids(self, request: Request) -> None:
        """Refuse ids that the sandbox's own user namespace does not have: it maps one of each."""
        if not self.plan.ids.mapped:
            return
        for step, wanted, mapped in (
            (Step.EXTRA_GROUPS, request.extra_groups or (), self.plan.ids.gid),
            (Step.GROUP, _given(request.group), self.plan.ids.gid),
            (Step.USER, _given(request.user), self.plan.ids.uid),
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

    def _error(self, number: int, error: int, index: int, request: Request) -> Exception:
        step = STEPS[number - 1]
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
        program, landlock = self._filter(), plan.landlock
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
                "ops": self._kept(
                    ffi.new("struct nsbox_op[]", [self._lower_op(op) for op in plan.ops])
                ),
                "filter_length": len(program) // _bpf.INSTRUCTION.size,
                "filter": self._kept(ffi.from_buffer(program)),
                "landlock_rights": landlock.rights if landlock else 0,
                "landlock_net": landlock.net if landlock else 0,
                "landlock_scoped": landlock.scoped if landlock else 0,
                "n_rules": len(rules),
                "rules": self._kept(ffi.new("struct nsbox_rule[]", rules)),
                "devpts": -1 if plan.devpts is None else plan.devpts,
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

    def _lower_op(self, op: Op) -> dict[str, object]:
        options = [(self._text(key), self._text(value)) for key, value in op.options]
        return {
            "code": int(op.code),
            "parent": op.parent,
            "flags": int(op.flags),
            "mode": op.mode,
            "attributes": op.attributes,
            "device": op.device,
            "idmap": self._id_map(op) if op.idmap else -1,
            "n_options": len(options),
            "options": self._kept(ffi.new("struct nsbox_option[]", options)),
            "source": self._text(op.source),
            "target": self._text(self._lowered_target(op)),
            "layers": self._text(op.layers),
            "content": self._kept(ffi.new("char[]", op.content)),
            "content_size": len(op.content),
        }

    def _lowered_target(self, op: Op) -> str:
        if OpFlag.PLACED not in op.flags:
            return op.target
        return op.target.removeprefix(self.plan.ops[op.parent].target).lstrip("/")

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
        if owner not in self._id_maps:
            try:
                self._id_maps[owner] = create_id_map_namespace(
                    f"{owner[0]} {ids.host_uid} 1", f"{owner[1]} {ids.host_gid} 1"
                )
            except NamespaceError as error:
                raise UnsupportedError(
                    f"cannot map the owner of {op.source!r} ({owner[0]}:{owner[1]}): {error}"
                ) from error
        return self._id_maps[owner].fileno()

    # ---- a request ----

    def _lower_request(self, request: Request) -> tuple[Any, object]:
        search = request.env.get("PATH", DEFAULT_PATH)
        executables = _candidates(request.executable, search)
        argv = _calls.string_array(request.argv)
        envp = _lower_environment(request.env)
        cwd = _text(request.cwd)
        struct = ffi.new("struct nsbox_request *", _DEFAULTS[0])
        struct.executables, struct.argv, struct.envp = executables[0], argv[0], envp[0]
        struct.cwd = cwd
        struct.stdio = request.stdio
        struct.umask, struct.process_group = request.umask, request.process_group
        struct.flags = (
            _SETSID * request.setsid
            | _CONTROLLING_TERMINAL * request.controlling_terminal
            | _RESTORE_SIGNALS * request.restore_signals
            | _ATTENDED * request.attended
            | _INHERIT_FDS * request.inherit
            | _SHIELD * request.placement.shield
        )
        keep = [executables, argv, envp, cwd]
        # Most requests have nothing of the rest, and each field takes its time.
        if request.pass_fds:
            pass_fds = ffi.new("int32_t[]", sorted(set(request.pass_fds)))
            struct.pass_fds, struct.n_pass_fds = pass_fds, len(pass_fds)
            keep.append(pass_fds)
        if request.placement is not NOWHERE:
            keep.append(_lower_placement(struct, request.placement))
        if asks_for_ids(request):
            keep.append(_lower_ids(struct, request))
        if request.rlimits:
            rlimits = ffi.new("struct nsbox_rlimit[]", request.rlimits)
            struct.rlimits, struct.n_rlimits = rlimits, len(rlimits)
            keep.append(rlimits)
        if request.nice:
            struct.nice = request.nice
        if request.layers >= 0:
            struct.layers = request.layers
        if request.terminal is not None:
            struct.terminal = request.terminal.slot
            struct.rows, struct.columns = request.terminal.initial_size
        return struct, keep


_SETSID: Final = int(lib.NSBOX_REQUEST_SETSID)
_CONTROLLING_TERMINAL: Final = int(lib.NSBOX_REQUEST_CONTROLLING_TERMINAL)
_RESTORE_SIGNALS: Final = int(lib.NSBOX_REQUEST_RESTORE_SIGNALS)
_ATTENDED: Final = int(lib.NSBOX_REQUEST_ATTENDED)
_INHERIT_FDS: Final = int(lib.NSBOX_REQUEST_INHERIT_FDS)
_SHIELD: Final = int(lib.NSBOX_REQUEST_SHIELD)
_INIT: Final = int(lib.NSBOX_REQUEST_INIT)
_LATE_FILTER: Final = int(lib.NSBOX_REQUEST_LATE_FILTER)

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


_DEFAULTS: Final = ffi.new(
    "struct nsbox_request *", {"uid": -1, "gid": -1, "n_groups": -1, "cgroup": -1, "layers": -1}
)


def _lower_environment(env: Mapping[str, str]) -> tuple[object, list[object]]:
    """Return ``envp``; it is kept with an environment that lasts, and nowhere else."""
    if isinstance(env, Environment) and env.lowered is not None:
        return env.lowered
    lowered = _calls.string_array([os.fsencode(f"{key}={value}") for key, value in env.items()])
    if isinstance(env, Environment):
        env.lowered = lowered
    return lowered


def _lower_placement(struct: Any, placement: Placement) -> object:
    tasks = ffi.new("int32_t[]", placement.tasks)
    struct.tasks, struct.n_tasks, struct.cgroup = tasks, len(tasks), placement.cgroup
    if placement.watch is not None:
        struct.watch = placement.watch.struct
    return tasks


def _lower_ids(struct: Any, request: Request) -> object:
    if request.user is not None:
        struct.uid = request.user
    if request.group is not None:
        struct.gid = request.group
    if request.extra_groups is None:
        return None
    groups = ffi.new("uint32_t[]", list(request.extra_groups))
    struct.groups, struct.n_groups = groups, len(groups)
    return groups


@lru_cache(maxsize=64)
def _text(text: str) -> object:
    """Return a path as ``char[]``."""
    return ffi.new("char[]", os.fsencode(text))


@lru_cache(maxsize=64)
def _candidates(executable: bytes, search: str) -> tuple[object, list[object]]:
    """Return the paths that execvpe(3) would try, as ``char *[]``."""
    paths = [executable]
    if b"/" not in executable:
        directories = os.fsencode(search).split(b":")
        paths = [(directory or b".") + b"/" + executable for directory in directories]
    return _calls.string_array(paths)


def asks_for_ids(request: Request) -> bool:
    """Tell whether a payload is to have other ids than its sandbox's."""
    return (request.user, request.group, request.extra_groups) != (None, None, None)


def _given(value: int | None) -> tuple[int, ...]:
    return () if value is None else (value,)


def bad_descriptor(error: int, step: Step, fd: int) -> SpawnError:
    """Return the error for a descriptor that cannot be handed to the payload."""
    return spawn_error(error, step, hint=f"descriptor {fd} is not open in the caller")
