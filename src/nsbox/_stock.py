"""
The sandboxes of a pool that are made ahead, and the thread that makes them.

A member is a finished world with an init that waits in it. What those who take one
share with the thread needs no lock, which a signal handler that raises could leave held.
"""

import errno
import operator
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

from ._bell import Bell
from ._bridge import Lowered
from ._calls import Descriptor
from ._child import Child, End
from ._control import Control, Mode
from ._diagnose import hint
from ._exit import Open, snapshot
from ._fence import Fence, Figures, Site, Terms, Verdict
from ._forks import this_process
from ._payload import Starter
from ._request import Placement, Request
from ._run import Running
from ._spares import Store
from ._view import View
from .cgroup import Cgroup
from .errors import PlanError, SpawnError, Step, spawn_error
from .process import Process

_FIRST_PAUSE: Final = 0.05

_LONGEST_PAUSE: Final = 5.0
"""Seconds without an attempt, after a failed one: twice as long after each."""

_MOMENT: Final = 0.004
"""
Seconds until the thread begins to work: a short process has ended by then.

A timer that is due before the processor's next tick takes much longer to set.
"""

_MOST_USED: Final = 8
"""Members that wait to be cleared away while others are taken: each may hold memory."""


class PoolStats(NamedTuple):
    """
    What a pool has, and what has become of its sandboxes so far.

    Args:
        size: How many it keeps prepared.
        ready: How many are prepared at this moment.
        prepared: How many it has made.
        warm: Processes that were started in one of them.
        cold: Processes for which none was there, or none would do.
        stale: Prepared ones that were thrown away: they had died, or would have shown
            something else than the host has by now.
        failed: How often making one failed.
        error: Why it did last, or None.
    """

    size: int
    ready: int
    prepared: int
    warm: int
    cold: int
    stale: int
    failed: int
    error: Exception | None


class World(NamedTuple):
    """
    What a pool needs to know of its Sandbox.

    Args:
        spawn: Spawns as it does, in a given place, and
        attend: Likewise, for a thread that waits for the end.
        start: Starts a process in a fresh world.
        lowered: Returns its plan for the present caller.
        store: Returns what is made ahead for a plan, if something is.
        terms: Returns what its fences are made of.
        mode: What a process is to its init.
        drain: See ``_run.run``.
    """

    spawn: Callable[..., Process]
    attend: Callable[..., Running]
    start: Starter
    lowered: Callable[[], Lowered]
    store: Callable[[Lowered], Store | None]
    terms: Callable[[], tuple[Terms, Site]]
    mode: Mode
    drain: bool


class Counter:
    """Counts for many threads, in one step of the interpreter's."""

    def __init__(self) -> None:
        self._steps = iter(range(sys.maxsize))

    def add(self) -> None:
        next(self._steps)

    @property
    def value(self) -> int:
        return sys.maxsize - operator.length_hint(self._steps)


class Member(Fence):
    """
    A world that waits for its process, and the limits of that.

    Args:
        stock: Which it belongs to.

    Raises:
        NsboxError, OSError: If it cannot be made; nothing is left.
    """

    _control: Control | None = None
    _watched: Placement | None = None
    _given_back = False

    def __init__(self, stock: "Stock") -> None:
        super().__init__(*stock.world.terms())
        self._stock = stock
        self.lowered = stock.world.lowered()
        self._held: list[Descriptor] = []
        self._view = View(self.lowered.sources)
        _members.add(self)
        try:
            self._make()
        except BaseException as error:
            if isinstance(error, SpawnError):
                self.advise(error)
            self.remove()
            raise

    def _make(self) -> None:
        self._site.prepare(())  # in one call of C, and that is this one's
        placement = self._open()
        placement, store = placement._replace(watch=None), self._stock.world.store(self.lowered)
        mode = self._stock.world.mode
        control = self._control = Control(self.lowered, placement, store=store, mode=mode)
        if self._watch is not None:
            self._watch.add()  # it begins with the process
            self._watched = Placement(-1, (), shield=False, watch=self._watch)
        self.started()
        pid, pidfd = control.init.pid, control.init.pidfd
        # To take apart a mount or an IPC namespace, or to free the filter, takes longer than all
        # else at the end of a process, and the last descriptor of it takes its time. So whoever
        # waits for the end is not the one to let go of them. (The control has the filter's. After a
        # change of ids the init may be somebody else's to inspect.)
        self._held.append(Descriptor.duplicate(pidfd))
        inside = self.lowered.mount_points
        try:
            with suppress(PermissionError):
                for kind in ("mnt", "ipc"):
                    self._held.append(Descriptor.namespace(kind, pid, pidfd))
            root = Descriptor(f"/proc/{pid}/root", os.O_PATH) if len(inside) else None
        except (FileNotFoundError, ProcessLookupError) as error:
            advice = hint(Step.INIT, errno.ESRCH, self.lowered.plan, None, None)
            raise spawn_error(errno.ESRCH, Step.INIT, hint=advice) from error
        if root is not None:
            self._view = View(inside, root, self._view)

    # ---- its process ----

    def start(self, request: Request, child: Child) -> None:
        """Start its process, which is the only one, unless a world made now would differ."""
        assert self._control is not None
        request.view = self._view
        if self._watched is not None:
            request.placement = self._watched
        self._control.start(request, child, self._stock.world.mode)

    def prepare_next(self) -> None:
        """That is the thread's work."""

    def _conclude(self, end: End, *, attended: bool) -> Verdict:
        if self._stock.world.mode is Mode.LAST and self._control is not None:
            self._control.close()  # wait for the end of its init, and of all else
        return super()._conclude(end, attended=attended)

    def _count(self, cgroup: Cgroup, *, attended: bool) -> Figures:
        # Where nothing is left in it, and nobody else can remove it, the thread has the time.
        alone = self._terms.sole and attended and not isinstance(self._terms.parent, Cgroup)
        return Figures(cgroup) if alone else super()._count(cgroup, attended=attended)

    def discard(self) -> None:
        """Let the thread remove it; without effect the second time."""
        if self._given_back:
            return
        if self._told is None:
            self.release()
        self._stock.clear_away(self)
        self._given_back = True  # twice does no harm

    # ---- its end ----

    def remove(self) -> None:
        """Kill what there is, and remove it; without effect the second time."""
        if self._control is not None:
            self._control.close()
        self._view.close()
        while self._held:
            self._held.pop().close()
        self.settle()  # there are descriptors now, if nobody else took them
        super().discard()

    def settle(self) -> None:
        """Read the figures of its cgroup, if somebody may still ask for them."""
        verdict = None if self._told is None else self._told()
        if verdict is not None:
            verdict.settle()


_members: Final[weakref.WeakSet[Member]] = weakref.WeakSet()


class Stock:
    """
    The members of a pool, and the thread that makes them.

    Args:
        world: What they are made for.
        size: How many there are to be.
    """

    def __init__(self, world: World, size: int) -> None:
        self.world = world
        self.warm, self.cold, self.stale = Counter(), Counter(), Counter()
        self.lost = Counter()  # counted as warm, but stale
        self.closing = False
        self.size = size
        self._owner = this_process()
        self._ready: deque[Member] = deque()
        self._used: deque[Member] = deque()  # and to be cleared away
        self._bell = Bell(_MOMENT)
        self._prepared = self._failed = 0
        self._error: Exception | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="nsbox-pool", daemon=True)

    def open(self) -> None:
        """
        Make the first member, and let the thread make the others.

        Raises:
            NsboxError, OSError: If it cannot be made.
        """
        try:
            self._make()
            _open.add(self)
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError as error:  # the caller is short of threads
            raise spawn_error(errno.EAGAIN, Step.WATCH, hint=str(error)) from error

    # ---- for callers ----

    def check(self) -> None:
        """Refuse to serve a fork, or after close()."""
        if self._owner != this_process():
            raise PlanError("the pool belongs to the process that made it; make one in this fork")
        if self.closing:
            raise PlanError("the pool is closed")

    def take(self) -> Member | None:
        """Return a member that is nobody else's, or None; do not wait for one."""
        lowered = self.world.lowered()
        if lowered.plan.joins:
            lowered.check_joins()
        while not self.closing:
            try:
                member = self._ready.popleft()
            except IndexError:
                return None
            if member.lowered is lowered:
                return member
            self.stale.add()
            self.clear_away(member)
        return None

    def wake(self) -> None:
        """
        Let the thread make what is missing, and remove what was used; but not at once.

        It would take processors and caches from a run that begins. So it waits until none
        has begun or ended for a moment, as long as half of the members are there.
        """
        urgent = 2 * len(self._ready) < self.size or len(self._used) > _MOST_USED
        self._bell.ring(urgent=urgent or self.closing)

    def clear_away(self, member: Member) -> None:
        """Let the thread remove a member."""
        if self._owner != this_process():
            member.remove()  # after a fork: this process's copies of descriptors
            return
        self._used.append(member)
        if self._ended:
            self._clear_up()
        else:
            self.wake()

    def stats(self) -> PoolStats:
        lost = self.lost.value
        return PoolStats(
            size=self.size,
            ready=len(self._ready),
            prepared=self._prepared,
            warm=self.warm.value - lost,
            cold=self.cold.value,
            stale=self.stale.value + lost,
            failed=self._failed,
            error=self._error,
        )

    def close(self) -> bool:
        """Discard all members, and wait until it is done; tell if there was something to do."""
        was_open = not self.closing
        self.closing = True
        if self._owner != this_process():
            return False
        self.wake()
        if self._thread.ident is None:
            self._end()  # it has never begun
        # A garbage collection can happen in the thread itself.
        elif self._thread is not threading.current_thread():
            self._thread.join()
            self._bell.close()
        _open.discard(self)
        return was_open

    def end_forgotten(self) -> str | None:
        """Close it; return what to say of it if nobody has done that before."""
        return f"a pool of {self.size} was not closed" if self.close() else None

    def forget(self) -> None:
        """In a fork: close the copies of descriptors. The thread and the members are not here."""
        self._end()
        self._bell.forget()

    # ---- the thread ----

    def _make(self) -> None:
        self._ready.append(Member(self))
        self._prepared += 1

    def _work(self) -> None:
        pause, next_attempt = _FIRST_PAUSE, 0.0
        while not self.closing:
            self._clear_up()
            now = time.monotonic()
            if len(self._ready) >= self.size:
                self._bell.wait(None)
            elif now < next_attempt:
                self._bell.wait(next_attempt - now)
            else:
                try:
                    self._make()
                    pause = _FIRST_PAUSE
                except Exception as error:
                    self._error = error.with_traceback(None)
                    self._failed += 1  # after what it is about: others look meanwhile
                    next_attempt = now + pause
                    pause = min(2 * pause, _LONGEST_PAUSE)
        self._end()

    def _end(self) -> None:
        # Before the last look: who gives something back later clears it away himself.
        self._ended = True
        while self._ready:
            self._used.append(self._ready.pop())
        self._clear_up()

    def _clear_up(self) -> None:
        with suppress(IndexError):
            while True:
                self._remove(self._used.popleft())

    def _remove(self, member: Member) -> None:
        try:
            member.remove()
        except Exception as error:  # a warning too, where those are made errors
            self._error = error.with_traceback(None)


_open: Final = Open(Stock.end_forgotten)


def _settle_all() -> None:
    """Before a fork, which has no cgroups to read. What a handler raises in here is lost."""
    for member in snapshot(_members):
        member.settle()


def _forget_all() -> None:
    for stock in list(_open):
        stock.forget()
    _open.clear()
    # Those too that another thread was making, or has in use: it is not here to let go of them.
    for member in list(_members):
        member.remove()


os.register_at_fork(before=_settle_all, after_in_child=_forget_all)
