"""
Sandboxes made ahead, each for one process: what ``Sandbox.pool()`` returns.

Whoever starts a process takes one of them, or makes a world of its own if there is none,
and never waits for another. What is ready, and who makes it, is in _stock.py.
"""

import errno
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Unpack

from ._child import Child
from ._constants import ANYWHERE
from ._fence import Fence
from ._payload import Args
from ._request import Request
from ._run import STREAM_LIMIT, Running, RunOptions, SpawnOptions, run
from ._stock import PoolStats, Stock, World
from ._values import check_iterable, short
from .errors import (
    NsboxError,
    PlanError,
    PlanTypeError,
    SpawnError,
    Step,
    UnsupportedError,
    spawn_error,
)
from .process import Process
from .result import Result

if TYPE_CHECKING:
    from ._async import AsyncProcess

_MOST_FDS: Final = 240
"""The kernel sends 253 at once, and a few are for the protocol."""

_MOST: Final = 10_000
"""Sandboxes of one pool: each takes descriptors and a process."""

_LOST: Final = (Step.SOCKETPAIR, Step.MESSAGE, Step.INIT)
"""Steps at which nothing has been started, and a cold spawn may still do it."""


class _Seat:
    """A place in the stock: that of the member it gets, or in a world of its own without any."""

    __slots__ = ("_stock", "fence")

    def __init__(self, stock: Stock) -> None:
        self._stock = stock
        self.fence: Fence | None = None

    def start(self, request: Request, child: Child) -> None:
        """Start a process in a member, or cold; a member that fails gives way to the next."""
        possible, stock = _is_possible(request), self._stock
        while possible and (member := stock.take()) is not None:
            self.fence = member
            try:
                member.start(request, child)
            except SpawnError as error:
                # A process that has said who it is may have run: it is not started twice.
                if error.step not in _LOST or child.pid:
                    stock.warm.add()
                    raise
                stock.stale.add()
                member.discard()
                possible = error.step is Step.INIT  # else the next would not do any better
                continue
            stock.warm.add()
            stock.wake()
            return
        stock.cold.add()
        request.view = None
        fence = self.fence = Fence(*stock.world.terms())
        request.placement = fence.open()
        stock.world.start(request, child)
        if possible:
            stock.wake()  # an exception may have lost one, and nobody said so


def _is_possible(request: Request) -> bool:
    """
    Tell whether a member can start it.

    Its init has a session of its own already, signals at their defaults, and no right to
    other ids any more. It takes only so many descriptors at once.
    """
    return request.is_usual() or (
        request.setsid
        and request.process_group < 0
        and request.restore_signals
        and len(request.pass_fds) <= _MOST_FDS
        and request.ids is None
    )


def _short(number: int, error: OSError) -> SpawnError:
    """Return the error for a pool that cannot be kept: what its thread needs to hear."""
    step = Step.WATCH if error.filename is None else Step.HOST
    return spawn_error(number, step, error.filename, hint=ANYWHERE.get(number))


class Pool:
    """
    Sandboxes that are made ahead; users get one from ``Sandbox.pool()``.

    A context manager. Any number of threads may use it; none waits for another.
    """

    def __init__(self, world: World, size: int) -> None:
        self._world = world
        try:
            self._stock = Stock(world, _check_size(size))
            self._stock.open()
        except NsboxError:
            raise
        except OSError as error:  # the caller is short of descriptors
            if error.errno is None:
                raise  # a signal handler's, as a TimeoutError
            raise _short(error.errno, error) from error

    def spawn(self, args: Args, **options: Unpack[SpawnOptions]) -> Process:
        """
        Start a process in a sandbox that is ready, or in a fresh one if there is none.

        The same as ``Sandbox.spawn()``, with the same arguments. The process is its owner's:
        closing the pool does not end it. A new session that is declined, process_group,
        user, group, extra_groups and restore_signals=False are not for a sandbox that is
        there already: such a process is started in a fresh one, and counted as cold.

        Raises:
            PlanError: If the pool is closed, or belongs to the process that this one is a
                fork of; and as ``Sandbox.spawn()``, like the others.
            SpawnError, UnsupportedError, CgroupError, LookupError: As ``Sandbox.spawn()``.
        """
        self._stock.check()
        return self._world.spawn(_Seat(self._stock), args, **options)

    def run(self, args: Args, **options: Unpack[RunOptions]) -> Result:
        """
        Run a process in a sandbox that is ready, or in a fresh one, and wait for its end.

        The same as ``Sandbox.run()``, with the same arguments, and as to what needs a fresh
        sandbox the same as :meth:`spawn`.
        """
        # This thread stays until the process has ended, so its end may be the process's.
        return self._run(args, options)

    async def spawn_async(
        self, args: Args, *, limit: int = STREAM_LIMIT, **options: Unpack[SpawnOptions]
    ) -> "AsyncProcess":
        """
        Start a process in a sandbox that is ready, or in a fresh one, for asyncio.

        As ``Sandbox.spawn_async()``, and as to what needs a fresh sandbox as :meth:`spawn`.
        """
        from . import _async  # not before: to import asyncio takes as long as all of nsbox

        return _async.spawn(self.spawn, args, limit=limit, **options)

    async def run_async(
        self,
        args: Args,
        *,
        input: Any = None,
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        **options: Unpack[SpawnOptions],
    ) -> Result:
        """
        Run a process in a sandbox that is ready, or in a fresh one, and wait in the event loop.

        As ``Sandbox.run_async()``: who cancels it kills the whole sandbox. As many run at
        a time as there are tasks that ask for it; the pool does not bound their number.
        """
        from . import _async

        return await _async.run(
            self.spawn,
            args,
            input=input,
            capture_output=capture_output,
            timeout=timeout,
            check=check,
            drain=self._world.drain,
            **options,
        )

    def map(self, commands: Iterable[Args], **options: Unpack[RunOptions]) -> Iterator[Result]:
        """
        Run many processes, as many at a time as the pool has sandboxes.

        Args:
            commands: The args of each, taken from it only when there is room: a process
                that has ended counts until its result has been asked for.
            **options: The same for all: see :meth:`run`. A stdin or input is the same, too.

        Returns:
            An iterator over the results, in the order of the commands. What a run raises
            comes out in place of its result, and ends the iteration. When that ends, or is
            closed, whatever still runs is killed.

        Raises:
            PlanError: If the pool is closed, or the commands are none.
            UnsupportedError: If no thread can be started to wait for a run; on the way.
        """
        self._stock.check()
        if isinstance(commands, (str, bytes)):  # each letter would be one
            raise PlanTypeError(
                f"commands: must be a list of commands, not the one {short(commands)}; "
                "run() is for one"
            )
        waiting = check_iterable("commands", commands)
        return _results(self, waiting, options, self._stock.size)

    def stats(self) -> PoolStats:
        """Return what it has, and what has become of its sandboxes so far."""
        return self._stock.stats()

    def close(self) -> None:
        """
        Remove what has not been used, and wait until that is done.

        Processes that were started go on, and are their owners'. Without effect the second
        time, and in a fork.
        """
        self._stock.close()

    def _run(
        self, args: Args, options: RunOptions, note: Callable[[Running], None] | None = None
    ) -> Result:
        """Run a process; `note` gets to know it."""
        drain = self._world.drain
        try:
            attend = partial(self._begin, self._world.attend, note)
            return run(attend, args, drain=drain, **options)
        except SpawnError as error:
            # What the spawn itself fails with is final: it has tried what there is, or the
            # process may have run.
            if not error._attended or (error.step, error.errno) != (Step.INIT, errno.ESRCH):
                raise
        # Nothing has been started: whoever killed the member was faster than the request.
        self._stock.lost.add()
        spawn = partial(self._begin, self._world.spawn, note)
        return run(spawn, args, drain=drain, **options)

    def _begin(
        self,
        begin: Callable[..., Running],
        note: Callable[[Running], None] | None,
        args: Args,
        /,
        **options: Unpack[SpawnOptions],
    ) -> Running:
        self._stock.check()
        running = begin(_Seat(self._stock), args, **options)
        if note is not None:
            note(running)
        return running

    def __enter__(self) -> "Pool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        stock = getattr(self, "_stock", None)
        text = None if stock is None else stock.end_forgotten()
        if text is not None:
            warnings.warn(text, ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        return f"<nsbox.Pool of {self._stock.size}{', closed' if self._stock.closing else ''}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a pool is of this process; pickle its Sandbox instead")


def _check_size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise PlanTypeError(f"size: must be an int, not {value!r}")
    if value < 1:
        raise PlanError(f"size: a pool has at least one sandbox, not {value}")
    if value > _MOST:
        raise PlanError(f"size: a pool has at most {_MOST} sandboxes, not {short(value)}")
    return value


# ---- many runs --------------------------------------------------------------


class _Run(threading.Thread):
    """
    One run of a map(), in a thread that waits for its end.

    Args:
        pool: Where it runs.
        args: What.
        options: Of the run.
    """

    def __init__(self, pool: Pool, args: Args, options: RunOptions) -> None:
        super().__init__(name="nsbox-pool-map", daemon=True)
        self._pool, self._args, self._options = pool, args, options
        self._running: Running | None = None
        self._outcome: Result | BaseException | None = None
        self._cancelled = False

    def start(self) -> None:
        try:
            super().start()
        except RuntimeError as error:  # the caller is short of threads
            raise UnsupportedError(f"nothing can be run beside others now: {error}") from error

    def run(self) -> None:
        try:
            self._outcome = self._pool._run(self._args, self._options, self._note)
        except BaseException as error:
            self._outcome = error
        self._running = None

    def _note(self, running: Running) -> None:
        self._running = running
        if self._cancelled:  # whoever cancels may have looked before it was there
            running.kill()

    def result(self) -> Result:
        """Wait for the end, and return what came of it, or raise it."""
        self.join()
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome

    def cancel(self) -> None:
        """Kill it; does not wait for the end."""
        self._cancelled = True
        running = self._running
        if running is not None:
            running.kill()


def _results(
    pool: Pool, commands: Iterable[Args], options: RunOptions, most: int
) -> Iterator[Result]:
    """Yield the results in order; no more than so many runs are not over, or not yielded yet."""
    runs: deque[_Run] = deque()
    try:
        for args in commands:
            if len(runs) == most:
                yield _first(runs)
            runs.append(_Run(pool, args, options))
            runs[-1].start()
        while runs:
            yield _first(runs)
    finally:
        try:
            _end(runs)
        except BaseException:
            _end(runs)  # a signal handler has raised, and nobody else will do this
            raise


def _first(runs: deque[_Run]) -> Result:
    result = runs[0].result()
    runs.popleft()
    return result


def _end(runs: Iterable[_Run]) -> None:
    for item in runs:
        item.cancel()
    for item in runs:
        if item.ident is not None:
            item.join()
