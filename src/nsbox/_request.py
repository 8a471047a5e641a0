"""
What differs from spawn to spawn, in Python's words and in those of the C core.

cffi frees memory with its last Python reference, so every buffer that a struct points
to is kept beside the struct.
"""

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from . import _calls
from ._native import ffi, lib
from ._spares import maker
from ._view import View
from ._watch import Watch
from .terminal import Terminal

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


_MOST_DIRECTORIES: Final = 16


class Environment(dict[str, str]):
    """
    Variables that many spawns have, and nobody changes.

    Attributes:
        lowered: With a few working directories: what lower() begins with.
    """

    __slots__ = ("lowered",)

    def __init__(self, variables: Mapping[str, str]) -> None:
        super().__init__(variables)
        self.lowered: dict[str, tuple[Any, object]] = {}


class Ids(NamedTuple):
    """
    Ids inside, instead of the sandbox's; None leaves those.

    Args:
        user: User id.
        group: Group id.
        extra_groups: Supplementary group ids; of the sandbox's own there are none that are mapped.
    """

    user: int | None
    group: int | None
    extra_groups: Sequence[int] | None


class Request:
    """
    What differs from spawn to spawn. Most differ in little, and what does is set.

    Attributes:
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
        ids: Its ids, if they are not the sandbox's.
        controlling_terminal: Make stdin its controlling terminal.
        restore_signals: SIGPIPE and SIGXFSZ back to their defaults.
        attended: The calling thread waits for its end, and the payload is killed when this
            thread ends, not the main one.
        placement: Its cgroup and its deadlines.
        layers: Descriptor of a socket that the layers of overlays are sent to, or -1.
        nice: Niceness, besides the plan's; by an init only.
        rlimits: Resource limits, likewise: of both the stricter ones hold.
        view: By an init that was started ahead: what must still be as it was seen then.
        patience: By an init: milliseconds that its answers may take; 0: a minute, the most.
        terminal: The caller's end of a terminal of its own, to be made; its slave end
            replaces each -1 of stdio.
    """

    stdio: tuple[int, int, int] = (-1, -1, -1)
    pass_fds: Sequence[int] = ()
    inherit: bool = False
    umask: int = -1
    setsid: bool = True
    process_group: int = -1
    ids: Ids | None = None
    controlling_terminal: bool = False
    restore_signals: bool = True
    attended: bool = False
    placement: Placement = NOWHERE
    layers: int = -1
    nice: int = 0
    rlimits: tuple[tuple[int, int], ...] = ()
    view: View | None = None
    patience: int = 0
    terminal: Terminal | None = None

    def __init__(
        self, argv: Sequence[bytes], executable: bytes, env: Mapping[str, str], cwd: str
    ) -> None:
        self.argv = argv
        self.executable = executable
        self.env = env
        self.cwd = cwd

    def is_usual(self) -> bool:
        """It asks for nothing but a program, and where it runs."""
        return self.__dict__.keys() <= _USUAL


# ---- lowering ---------------------------------------------------------------

_SETSID: Final = int(lib.NSBOX_REQUEST_SETSID)
_CONTROLLING_TERMINAL: Final = int(lib.NSBOX_REQUEST_CONTROLLING_TERMINAL)
_RESTORE_SIGNALS: Final = int(lib.NSBOX_REQUEST_RESTORE_SIGNALS)
_ATTENDED: Final = int(lib.NSBOX_REQUEST_ATTENDED)
_INHERIT_FDS: Final = int(lib.NSBOX_REQUEST_INHERIT_FDS)
_SHIELD: Final = int(lib.NSBOX_REQUEST_SHIELD)

_DEFAULTS: Final = ffi.new(
    "struct nsbox_request *",
    {
        "stdio": Request.stdio,
        "umask": -1,
        "process_group": -1,
        "uid": -1,
        "gid": -1,
        "n_groups": -1,
        "flags": _SETSID | _RESTORE_SIGNALS,
        "cgroup": -1,
        "layers": -1,
    },
)
"""A Request of which nothing has been set."""


def lower(request: Request) -> tuple[Any, object]:
    """Return a ``struct nsbox_request *``, and what has to be kept as long as it is used."""
    env = request.env
    beginning = _beginning(env, request.cwd)
    executables = _candidates(request.executable, env.get("PATH", DEFAULT_PATH))
    argv = _calls.string_array(request.argv)
    keep = [beginning, executables, argv]
    struct = ffi.new("struct nsbox_request *", beginning[0][0])
    struct.executables, struct.argv = executables[0], argv[0]
    if request.attended:
        struct.flags |= _ATTENDED
    if request.view is not None:
        struct.view = request.view.struct
    if request.patience:
        struct.patience = request.patience
    if request.placement is not NOWHERE:
        _lower_placement(request.placement, struct, keep)
    # Most requests have nothing of the rest, and each field takes its time.
    if not request.is_usual():
        _lower_unusual(request, struct, keep)
    return struct, keep


_USUAL: Final = {"argv", "executable", "env", "cwd", "attended", "placement", "view", "patience"}


def _lower_unusual(request: Request, struct: Any, keep: list[Any]) -> None:
    struct.maker = maker.existing  # whose descriptors nobody can mean
    struct.stdio = request.stdio
    struct.umask, struct.process_group = request.umask, request.process_group
    struct.nice, struct.layers = request.nice, request.layers
    struct.flags |= (
        _CONTROLLING_TERMINAL * request.controlling_terminal | _INHERIT_FDS * request.inherit
    )
    if not request.setsid:
        struct.flags &= ~_SETSID
    if not request.restore_signals:
        struct.flags &= ~_RESTORE_SIGNALS
    if request.pass_fds:
        pass_fds = ffi.new("int32_t[]", sorted(set(request.pass_fds)))
        struct.pass_fds, struct.n_pass_fds = pass_fds, len(pass_fds)
        keep.append(pass_fds)
    if request.ids is not None:
        _lower_ids(request.ids, struct, keep)
    if request.rlimits:
        rlimits = ffi.new("struct nsbox_rlimit[]", request.rlimits)
        struct.rlimits, struct.n_rlimits = rlimits, len(rlimits)
        keep.append(rlimits)
    if request.terminal is not None:
        struct.terminal = request.terminal.slot
        struct.rows, struct.columns = request.terminal.initial_size


def _lower_placement(placement: Placement, struct: Any, keep: list[Any]) -> None:
    struct.cgroup = placement.cgroup
    if placement.shield:
        struct.flags |= _SHIELD
    if placement.tasks:
        tasks = ffi.new("int32_t[]", placement.tasks)
        struct.tasks, struct.n_tasks = tasks, len(tasks)
        keep.append(tasks)
    if placement.watch is not None:
        struct.watch = placement.watch.struct


def _lower_ids(ids: Ids, struct: Any, keep: list[Any]) -> None:
    if ids.user is not None:
        struct.uid = ids.user
    if ids.group is not None:
        struct.gid = ids.group
    if ids.extra_groups is not None:
        groups = ffi.new("uint32_t[]", list(ids.extra_groups))
        struct.groups, struct.n_groups = groups, len(groups)
        keep.append(groups)


def _beginning(env: Mapping[str, str], cwd: str) -> tuple[Any, object]:
    """
    Return a request that has its environment and its directory, and what that needs.

    It is kept with an environment that lasts, and nowhere else.
    """
    kept = env.lowered if isinstance(env, Environment) else None
    if kept is not None and cwd in kept:
        return kept[cwd]
    envp = _calls.string_array([os.fsencode(f"{key}={value}") for key, value in env.items()])
    text = ffi.new("char[]", os.fsencode(cwd))
    struct = ffi.new("struct nsbox_request *", _DEFAULTS[0])
    struct.envp, struct.cwd = envp[0], text
    made = struct, (envp, text)
    if kept is not None and len(kept) < _MOST_DIRECTORIES:
        kept[cwd] = made
    return made


@lru_cache(maxsize=64)
def _candidates(executable: bytes, search: str) -> tuple[object, list[object]]:
    """Return the paths that execvpe(3) would try, as ``char *[]``."""
    paths = [executable]
    if b"/" not in executable:
        directories = os.fsencode(search).split(b":")
        paths = [(directory or b".") + b"/" + executable for directory in directories]
    return _calls.string_array(paths)
