"""
The limits of a sandbox that stays: those of the whole, and those of each command in it.

The whole has a cgroup, if it has limits that need one, or else one that only freezes,
where the host has it. Those of commands are made in it. What a limit of the whole has
ended, it has ended for every command: they say so, by what the kernel has counted and
what nsbox itself has killed.
"""

import errno
import signal
import weakref
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import cached_property
from typing import Final

from ._cgroup_choice import Purpose
from ._cgroup_layout import read_words
from ._cgroup_tree import reported
from ._child import End
from ._constants import SHORTAGE
from ._exit import snapshot
from ._fence import Fence, Site, Terms
from ._forks import this_process
from ._request import NOWHERE, Placement
from .cgroup import Cgroup
from .errors import CgroupError, PlanError, UnsupportedError
from .limits import NO_LIMITS, Limits
from .result import Reason

_MOST_SITES: Final = 16
"""Of how many different limits it is remembered where their cgroups are made."""


def terms_of(
    limits: Limits | None, parent: Cgroup | tuple[str, ...] | None, *, exposed: bool
) -> Terms:
    """Return the terms of a whole; without a limit that needs a cgroup, one to freeze."""
    terms = Terms(limits or NO_LIMITS, parent, sole=True, exposed=exposed)
    return terms if terms.need_cgroup else terms._replace(purpose=Purpose.FREEZE)


class Whole(Fence):
    """What holds for all that runs in a live sandbox together."""

    def __init__(self, terms: Terms, site: Site) -> None:
        super().__init__(terms, site)
        self._missing: str | None = None
        self._left: list[Cgroup] = []
        self._inside: weakref.WeakSet[Inside] = weakref.WeakSet()
        self._sites: dict[Limits | None, tuple[Terms, Site]] = {}
        self._ran_out = False

    @property
    def fenced(self) -> bool:
        """It has a cgroup because of its limits; so has every command, for its own figures."""
        return self._terms.purpose is Purpose.LIMIT and self.cgroup is not None

    def open(self) -> Placement:
        """Make the cgroup, and the place in it where the init goes."""
        try:
            return super().open()
        except (UnsupportedError, CgroupError) as error:
            # Nobody has asked for one that only freezes: where there is none, that is said when
            # it is needed. Who is short of something now is not told later that there is none.
            failed = error.errno if isinstance(error, CgroupError) else None
            needed = failed is not None and self._terms.exposed
            if failed in SHORTAGE or needed or self._terms.purpose is not Purpose.FREEZE:
                raise
            self._missing = str(error)
            self.cgroup = None
            self._watch = self._make_watch()
            return NOWHERE._replace(watch=self._watch)

    def _want_seat(self, cgroup: Cgroup) -> bool:
        # On version 2 a cgroup whose children have controllers may have no processes of its own.
        path = f"{cgroup.directories[0]}/cgroup.controllers"
        with reported(path):
            return super()._want_seat(cgroup) or bool(read_words(path))

    def required(self, what: str) -> Cgroup:
        """
        Return the cgroup.

        Raises:
            UnsupportedError: If there is none; says why.
        """
        if self.cgroup is None:
            raise UnsupportedError(f"{what} needs a cgroup: {self._missing or 'it was left out'}")
        return self.cgroup

    def freeze(self) -> None:
        """Stop everything in it."""
        self._set_frozen(Cgroup.freeze)

    def thaw(self) -> None:
        """Let everything in it go on."""
        self._set_frozen(Cgroup.thaw)

    def let_die(self) -> None:
        """It has been killed: it is not frozen any more."""
        if self.cgroup is not None:
            self.cgroup.let_die()

    def _set_frozen(self, act: Callable[[Cgroup], None]) -> None:
        cgroup = self.required("freezing")
        try:
            act(cgroup)
        except CgroupError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise UnsupportedError(f"freezing needs a cgroup: {error}") from None
            raise

    # ---- commands ----

    def inside(self, limits: Limits | None) -> "Inside | None":
        """Return the fence of a command, or None if there is nothing to keep, nor to tell."""
        if limits is None and not self._is_told:
            return None
        known = self._sites.get(limits)
        if known is None:
            terms = self._terms_inside(limits)
            if len(self._sites) >= _MOST_SITES:
                self._sites.clear()
            known = self._sites[limits] = terms, Site(terms)
        fence = Inside(self, *known)
        self._inside.add(fence)
        return fence

    @cached_property
    def _is_told(self) -> bool:
        """Commands without limits of their own are fenced nevertheless; once it is open."""
        return self.fenced or self._watch is not None or self.output is not None

    def _terms_inside(self, limits: Limits | None) -> Terms:
        alone = Terms(limits or NO_LIMITS, None, sole=False, purpose=Purpose.JOIN)
        return alone._replace(
            limits=_with_output(alone.limits, self.output),
            parent=self.cgroup if self.fenced or alone.need_cgroup else None,
            spares=not alone.need_cgroup,
            exposed=self._terms.exposed,
        )

    def cause(self, end: End) -> Reason | None:
        """Return the limit of the whole that a command was ended by, if it was by one."""
        if end.returncode != -signal.SIGKILL:
            return None
        return self.hit or (Reason.MEMORY if self._init_ran_out() else None)

    def _init_ran_out(self) -> bool:
        """Tell whether the OOM killer has ended the init, and everything with it."""
        if self.fenced and self.cgroup is not None and not self.cgroup.closed:
            with suppress(CgroupError, PlanError):  # the second: another thread closes it
                self._ran_out = bool(self.cgroup.seat.events().oom_kills)
        return self._ran_out

    def leave(self, cgroup: Cgroup) -> None:
        """Take over the cgroup of a command that has ended, with what lives on in it."""
        if self.cgroup is None or self.cgroup.closed:
            self._remove(cgroup)  # all of it has ended
            return
        with self._lock:
            self._left = [other for other in self._left if not other.remove_if_empty()]
            if not cgroup.remove_if_empty():
                self._left.append(cgroup)
        if self.cgroup.closed:
            self._remove_left()  # nobody else looks any more

    def discard(self) -> None:
        if self._owner != this_process():
            super().discard()
            return
        self._init_ran_out()
        self._remove_left()
        with self._lock:  # else another thread may remove it, or kill what is in it
            super().discard()
        self._remove_left()  # what another thread has left meanwhile

    def _remove_left(self) -> None:
        with self._lock:  # else another thread may remove one in between
            for cgroup in self._left:
                if not cgroup.closed:
                    self._remove(cgroup)

    def discard_inside(self) -> None:
        """Let go of the fences of commands, too: nobody will ask for their figures any more."""
        # Not the lock of a thread that is not in this fork.
        alone = self._owner != this_process()
        for fence in snapshot(self._inside):
            with nullcontext() if alone else fence._lock:  # else another thread may be reading them
                fence.discard()


class Inside(Fence):
    """
    The limits of one command.

    What it leaves behind lives on, as it does in a shell, unless the command has limits
    that need a cgroup: those hold for all that it starts, and all of it ends with it.
    """

    def __init__(self, whole: Whole, terms: Terms, site: Site) -> None:
        super().__init__(terms, site)
        self._whole = whole

    def prepare_next(self) -> None:
        """Make nothing ahead: it would have to go before the whole does."""

    def _cause(self, end: End) -> Reason | None:
        return super()._cause(end) or self._whole.cause(end)

    def _remove(self, cgroup: Cgroup) -> None:
        if self._terms.spares:
            self._whole.leave(cgroup)
        else:
            super()._remove(cgroup)


def _with_output(limits: Limits, most: int | None) -> Limits:
    """Return limits whose output is no more than that of the whole."""
    given = [int(value) for value in (limits.output, most) if value is not None]
    return replace(limits, output=min(given)) if given else limits
