"""What a Sandbox keeps from one spawn to the next."""

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any, Protocol, TypeVar
from weakref import ref

from . import _calls, _host
from ._bridge import Lowered
from ._compile import compile_plan
from ._fence import Fence, Site, Terms
from ._forks import this_process
from ._host import Host
from ._payload import Args
from ._plan import Description
from ._request import Environment
from ._spares import Store
from ._subprocess import make_module
from ._whole import Whole, terms_of
from .cgroup import CgroupArg, check_parent
from .limits import NO_LIMITS, Limits
from .namespace import Namespace
from .process import Process

_T = TypeVar("_T")


class Box(Protocol):
    """What is asked of a Sandbox."""

    @property
    def limits(self) -> Limits | None: ...
    @property
    def cgroup(self) -> CgroupArg | None: ...
    @property
    def capabilities(self) -> Sequence[str]: ...
    @property
    def user_namespaces(self) -> bool: ...
    def _own_environment(self) -> dict[str, str]: ...
    def _is_init(self) -> bool: ...
    def _describe(self) -> Description: ...
    def _joins(self) -> dict[str, Namespace]: ...
    def _popen(self, popen: Process, args: Args, options: dict[str, Any]) -> None: ...


class Cache:
    """
    The lowered plan of a Sandbox, made at the first spawn.

    It depends on who the caller is; a change of ids makes it anew. Without a
    lock, which another thread could hold at a fork: two threads may both make
    one, and either will do.
    """

    __slots__ = (
        "__weakref__",
        "_environment",
        "_made",
        "_modules",
        "_store",
        "_terms",
        "_used",
        "defaults",
    )

    def __init__(self) -> None:
        self.defaults: tuple[Mapping[str, str], str] | None = None  # if they never change
        self._made: tuple[tuple[int, int], Lowered] | None = None
        self._environment: Environment | None = None
        self._modules: dict[str, ModuleType] = {}
        self._terms: dict[bool, tuple[Terms, Site]] = {}  # of a whole; of runs
        self._used: Lowered | None = None
        self._store: tuple[Lowered, Store | None] | None = None

    def environment(self, box: Box) -> Mapping[str, str]:
        """Return the variables of every spawn, which nobody changes."""
        if self._environment is None:
            self._environment = Environment(box._own_environment())
        return self._environment

    def fence(self, box: Box) -> Fence | None:
        """Return the fence for one run, or None if there is nothing to keep."""
        if box.limits is None and box.cgroup is None and not self._is_exposed(box):
            return None
        return Fence(*self.terms(box))

    def whole(self, box: Box) -> Whole:
        """Return the limits for one live sandbox."""
        return Whole(*self.terms(box, whole=True))

    def terms(self, box: Box, *, whole: bool = False) -> tuple[Terms, Site]:
        """Return what all fences of a sandbox are made of: of its runs, or of a whole live one."""
        exposed, made = self._is_exposed(box), self._terms.get(whole)
        if made is None or made[0].exposed != exposed:
            parent = check_parent(box.cgroup)
            if whole:
                terms = terms_of(box.limits, parent, exposed=exposed)
            else:
                limits = box.limits or NO_LIMITS
                terms = Terms(limits, parent, sole=box._is_init(), exposed=exposed)
            made = self._terms[whole] = terms, Site(terms)
        return made

    def _is_exposed(self, box: Box) -> bool:
        """Tell whether a payload could mount the files of its cgroup, and write them."""
        if not box.user_namespaces and "CAP_SYS_ADMIN" not in box.capabilities:
            return False
        # In a joined user namespace it may be anybody.
        return self.lowered(box).plan.ids.host_uid in (None, os.geteuid())

    def lowered(self, box: Box) -> Lowered:
        caller, made = (os.geteuid(), os.getegid()), self._made
        if made is None or made[0] != caller:
            made = self._made = (caller, _lower(box))
        return made[1]

    def store(self, lowered: Lowered, *, stays: bool = False) -> Store | None:
        """
        Return what was made ahead for a spawn, or None.

        From the second spawn on: a Sandbox that is used once has nothing made ahead. But what
        stays uses what is made ahead for an equal one that has stayed, or has something made
        for those that come after it: each would have a copy of what is in common otherwise.

        Args:
            lowered: The plan.
            stays: It is for a live sandbox.
        """
        if self._used is not lowered:
            self._used, self._store = lowered, None
            if not stays:
                return None
            other, first = _of(lowered.shared), _of(lowered.living)
            if other is not None and not _is_inherited(other):
                return other
            if first is None:
                lowered.living = ref(self)
            if first is None or first is self:
                return None
        made = self._store
        if made is None or made[0] is not lowered or _is_inherited(made[1]):
            made = self._store = (lowered, lowered.store())
            if made[1] is not None:
                lowered.shared = ref(made[1])
        return made[1]

    def subprocess(self, box: Box) -> ModuleType:
        found = self._modules.get("subprocess")
        # Of two threads that both make one, both get the first, for the sake of isinstance.
        return found or self._modules.setdefault("subprocess", make_module(box._popen))


def _of(held: "ref[_T] | None") -> _T | None:
    return None if held is None else held()


def _is_inherited(store: Store | None) -> bool:
    return store is not None and store.owner != this_process()


def look() -> Host:
    """Return all facts of the host that a plan depends on: those that only a call can tell, too."""
    return _host.look()._replace(landlock=_calls.landlock_abi())


def _lower(box: Box) -> Lowered:
    description, host = box._describe(), look()
    plan = compile_plan(description, host)
    if plan.joins or any(op.idmap for op in plan.ops):
        return Lowered(plan, box._joins())  # it holds descriptors, and so is the box's own
    return _lower_shared(description, host)


@lru_cache(maxsize=16)
def _lower_shared(description: Description, host: Host) -> Lowered:
    """For programs that make an equal Sandbox anew for each run."""
    return Lowered(compile_plan(description, host), {})
