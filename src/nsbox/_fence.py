"""
The limits of one run: a fresh cgroup, deadlines, and the verdict at the end.

A fence is opened right before the spawn and ended after the payload has been
reaped. What it makes, it removes.
"""

import errno
import os
import signal
import threading
import warnings
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Final, NamedTuple, Protocol
from weakref import ref

from ._calls import Descriptors
from ._cgroup_ahead import Ahead, Form, tidy
from ._cgroup_choice import Choice, Purpose, wanted_fields
from ._cgroup_files import FIGURES, Reader
from ._cgroup_tree import reported
from ._child import End
from ._forks import this_process
from ._request import Placement
from ._watch import HIT_CPU_TIME, HIT_WALL_TIME, Watch
from .cgroup import Cgroup, adopt, choose, make, remove_abandoned
from .errors import CgroupError, PlanError, SpawnError
from .limits import Limits, nanoseconds
from .result import Reason, Usage

_RLock: Final = type(threading.RLock())  # of C, without the function around it

_PATIENCE: Final = 2.0
"""Seconds that the end of a run waits for its cgroup to become empty."""


_PAGE: Final = 4096

_HITS: Final = {HIT_WALL_TIME: Reason.WALL_TIME, HIT_CPU_TIME: Reason.CPU_TIME}

_COUNTED: Final = {"oom_kills": Reason.MEMORY, "pids_refused": Reason.PIDS}

_RUSAGE: Final = dict.fromkeys(
    ("user_time", "system_time", "voluntary_switches", "involuntary_switches", "cpu_time"),
    "rusage",
)


class Terms(NamedTuple):
    """
    What the fences of one sandbox have in common.

    Args:
        limits: Of a run.
        parent: Where the cgroups are made, as for ``Cgroup.create()``.
        sole: The payload is the init of its pid namespace: nothing outlives it.
        purpose: What the cgroups are for, besides the limits.
        spares: What outlives the payload lives on, in its cgroup.
        exposed: The payload could write the files of its cgroup: it may mount them, and is
            the caller's user. It gets one inside, which limits nothing: nobody can mount
            what is above the root of a cgroup namespace.
    """

    limits: Limits
    parent: Cgroup | tuple[str, ...] | None
    sole: bool
    purpose: Purpose = Purpose.LIMIT
    spares: bool = False
    exposed: bool = False

    @property
    def shelter(self) -> bool:
        """Its own cgroup has to be none of the caller's, whom it could freeze or kill by that."""
        return self.exposed and self.purpose is not Purpose.JOIN

    @property
    def need_cgroup(self) -> bool:
        """Also without a setting in it: what outlives the payload is killed by its cgroup."""
        limits = self.limits
        killed = limits.wall_time is not None or limits.output is not None
        fenced = bool(wanted_fields(limits)) or (killed and not self.sole and not self.spares)
        return self.parent is not None or fenced or self.purpose is Purpose.FREEZE


class Figures:
    """
    What a cgroup has counted, at the end of a run, while it is still there.

    They are read by whoever asks first, or before the cgroup is removed.

    Args:
        cgroup: Whose. Nothing is in it any more.
    """

    def __init__(self, cgroup: Cgroup) -> None:
        self._cgroup: Cgroup | None = cgroup  # None when they have been read
        self._owner = this_process()
        self._lock = _RLock()
        self._reader: Reader | None = None
        self._error: CgroupError | None = None

    def settle(self) -> None:
        """Read them, for the cgroup goes; what is in the way is told to whoever asks later."""
        try:
            self.read()
        except CgroupError as error:
            self._error = error.with_traceback(None)

    def read(self) -> Reader | None:
        """
        Return them; None if others have removed the cgroup.

        Raises:
            CgroupError: If there are no descriptors left, or there were none while it was there.
        """
        # Not the lock of a thread that is not in this fork.
        if self._reader is None and self._owner == this_process():
            with self._lock:
                cgroup = self._cgroup
                if self._reader is None and cgroup is not None and not cgroup.closed:
                    reader = cgroup.reader(MEASURED)
                    # A signal handler may have read them meanwhile.
                    self._reader = self._reader or reader
                    self._cgroup = None
        if self._reader is None and self._error is not None:
            raise self._error
        return self._reader


class Verdict:
    """
    How a run ended, and what it has used.

    Most callers never look, so both are put together when somebody does.

    Args:
        end: How the payload ended.
        cause: The limit that nsbox has ended it for, if it was one.
        figures: Of its cgroup, if it had one.
    """

    __slots__ = ("__weakref__", "_end", "_figures", "_usage", "cause")

    def __init__(
        self,
        end: End,
        cause: Reason | None = None,
        figures: Figures | None = None,
    ) -> None:
        self._end, self.cause, self._figures = end, cause, figures
        self._usage: Usage | None = None

    def settle(self) -> None:
        """Read the figures, if there are some, while they are there."""
        if self._figures is not None:
            self._figures.settle()

    def _read(self) -> Reader | None:
        return None if self._figures is None else self._figures.read()

    @property
    def reason(self) -> Reason:
        """By the kernel's counters and by what nsbox itself did, in a fixed order."""
        reader = self._read()
        counted = None if reader is None else reader.first_above_zero(_COUNTED)
        if counted is not None:
            return _COUNTED[counted]
        return plain_reason(self._end) if self.cause is None else self.cause

    def usage(self, output: int | None = None) -> Usage:
        """Return all figures, and that one."""
        if self._usage is None:
            usage, reader = _plain(self._end), self._read()
            self._usage = usage if reader is None else _measured(usage, reader)
        return self._usage if output is None else self._usage._replace(output=output)


class Concluded(Protocol):
    """What gets a verdict: an object with attributes of its own."""

    attended: bool
    verdict: Verdict | None


class Fence:
    """The limits of one run."""

    cgroup: Cgroup | None = None
    degraded: frozenset[str] = frozenset()
    output_reached = False
    _told: ref[Verdict] | None = None  # whose process keeps it
    _watch: Watch | None = None

    def __init__(self, terms: Terms, site: "Site") -> None:
        """
        Args:
            terms: What to keep.
            site: Where the cgroup is made, if one is needed.
        """
        self._terms = terms
        self._site = site
        self._owner = this_process()
        self._lock = _RLock()
        self._to_start: list[Descriptors | Ahead] = []

    @property
    def output(self) -> int | None:
        """How many bytes of output may be captured."""
        limit = self._terms.limits.output
        return None if limit is None else int(limit)

    # ---- before and while it runs ----

    def open(self) -> Placement:
        """
        Make the cgroup, and what the C core needs to put the payload into it.

        Raises:
            UnsupportedError, CgroupError: If it cannot be made; nothing is left.
        """
        try:
            return self._open()
        except BaseException:
            self.discard()
            raise

    def _open(self) -> Placement:
        born, shield, tasks = -1, False, []
        if self._site.want_cgroup:
            choice, self.cgroup = self._site.make()
            self.degraded = choice.degraded
        if self.cgroup is not None:
            if self._want_seat(self.cgroup):
                self.cgroup.make_seat()
            seat = self.cgroup.seat
            for part, directory in zip(choice.parts, seat.directories, strict=True):
                shield = shield or "memory" in part.controllers
                entrance = part.entrance(self._terms.purpose)
                if entrance is None:
                    born = seat.fileno()
                else:
                    tasks.append(f"{directory}/{entrance}")
        entrances = self._open_entrances(tasks) if tasks else ()
        self._watch = self._make_watch()
        return Placement(born, entrances, shield, self._watch)

    def _want_seat(self, cgroup: Cgroup) -> bool:
        """Tell whether processes go into a cgroup inside of the one with the limits."""
        return self._terms.exposed

    def _open_entrances(self, paths: Sequence[str]) -> tuple[int, ...]:
        ahead = None if self.cgroup is None else self.cgroup.ahead
        if ahead is None:
            return self._opened(paths, os.O_WRONLY)
        self._to_start.append(ahead)
        return ahead.filenos()

    def _opened(self, paths: Sequence[str], flags: int) -> tuple[int, ...]:
        """Return descriptors that are open until the payload has started."""
        with reported(paths[0]):
            opened = Descriptors(paths, flags)
        self._to_start.append(opened)
        return opened.filenos()

    def _make_watch(self) -> Watch | None:
        limits = self._terms.limits
        cpu_time = None if "cpu_time" in self.degraded else limits.cpu_time
        outlived = self.cgroup is not None and not self._terms.sole and not self._terms.spares
        if limits.wall_time is None and cpu_time is None and not outlived:
            return None
        usage = -1 if cpu_time is None else self._open_usage()
        return Watch(
            wall_time=nanoseconds(limits.wall_time),
            cpu_time=nanoseconds(cpu_time),
            cpus=_processors(limits),
            cgroup=-1 if self.cgroup is None else self.cgroup.killing_fileno(),
            usage=usage,
            outlived=outlived,
        )

    def _open_usage(self) -> int:
        assert self.cgroup is not None
        directories = self.cgroup.by_controller()
        for source in FIGURES["cpu_time"]:
            place = source.controller, source.version
            if place not in directories:
                continue
            ahead = self.cgroup.ahead
            opened = -1 if ahead is None else ahead.figure_fileno(place, source.file)
            if opened >= 0:
                return opened
            return self._opened([f"{directories[place]}/{source.file}"], os.O_RDONLY)[0]
        raise AssertionError("the choice of hierarchies has one that counts")

    def started(self) -> None:
        """The payload runs: let go of what was only needed to start it."""
        while self._to_start:
            self._to_start.pop().close()

    def prepare_next(self) -> None:
        """The caller has time: its payload runs."""
        self._site.prepare()

    def advise(self, error: SpawnError) -> None:
        """Say so in an error if it was a limit that the spawn failed at."""
        limit = self._terms.limits.memory
        if self.cgroup is None or self.cgroup.closed or limit is None:
            return
        # Not by the errno: that differs from call to call (ENOMEM, ENFILE, ENOSPC).
        peak = None
        with suppress(CgroupError):
            peak = self.cgroup.stats().memory_peak
        if peak is not None and peak >= int(limit) - _PAGE:
            error.hint = f"the limit memory={limit} is below what starting needs"

    def kill(self) -> None:
        """Kill everything in the cgroup, if there is one."""
        if self.cgroup is not None and not self.cgroup.closed:
            self.cgroup.kill()

    def hasten(self) -> None:
        """
        The init is killed: kill all that would end with it.

        It has to run to end the others, and those can keep it from that for minutes: it has
        their user id, so they may give it the lowest priority, and use up the processors.
        """
        if not self._terms.sole or self._owner != this_process():
            return
        # The lock, else another thread may remove it; a signal handler still may.
        with self._lock, suppress(CgroupError, PlanError):
            self.kill()

    # ---- the end ----

    def end(self, end: End, payload: Concluded) -> None:
        """
        Tell a payload that has been reaped its verdict, and remove the cgroup.

        Any number of threads may ask, and a signal handler in the middle of it; one that
        raises undoes nothing.
        """
        if self._owner != this_process():
            payload.verdict = Verdict(end)  # after a fork: the parent's
            return
        with self._lock:
            verdict = payload.verdict
            if verdict is None:
                verdict = self._conclude(end, attended=payload.attended)
                # In one step. A handler may have asked meanwhile: what it was told holds.
                verdict = vars(payload).setdefault("verdict", verdict)
            self._told = ref(verdict)
            self.discard()

    def _conclude(self, end: End, *, attended: bool) -> Verdict:
        """Figures are final when the cgroup is empty: what may still be in it is killed first."""
        figures = None
        if self._watch is not None:
            self._watch.remove()
        if self.cgroup is not None and not self.cgroup.closed:
            if not self._terms.sole and not self._terms.spares:
                with suppress(CgroupError):  # discard() will say so
                    self.cgroup.empty(_PATIENCE)
            figures = self._count(self.cgroup, attended=attended)
        return Verdict(end, self._cause(end), figures)

    def _count(self, cgroup: Cgroup, *, attended: bool) -> Figures:
        """
        Return the figures of the cgroup, which is about to be removed.

        Args:
            cgroup: Which.
            attended: Nobody else has it.
        """
        figures = Figures(cgroup)
        figures.settle()
        return figures

    def _cause(self, end: End) -> Reason | None:
        """Return the limit that nsbox has ended the payload for."""
        if self.output_reached:
            return Reason.OUTPUT
        # A payload that ended by itself in the same moment was not killed by us.
        return self.hit if end.returncode == -signal.SIGKILL else None

    @property
    def hit(self) -> Reason | None:
        """The deadline at which nsbox has killed, if it has."""
        return None if self._watch is None else _HITS.get(self._watch.hit)

    def release(self) -> None:
        """Watch it no longer, and let go of what starting it needed."""
        if self._watch is not None:
            self._watch.remove()
        if self._to_start:
            self.started()

    def discard(self) -> None:
        """Release everything; without effect the second time."""
        self.release()
        if self.cgroup is None or self.cgroup.closed:
            return
        if self._owner != this_process():
            self.cgroup.close()  # after a fork: this process's copy of a descriptor
            return
        self._remove(self.cgroup)

    def _remove(self, cgroup: Cgroup) -> None:
        # Else something may still be in it: that is killed, here and now.
        if self._terms.sole and cgroup.hand_over():
            return
        try:
            cgroup.remove(_PATIENCE)
        except CgroupError as error:
            # A process in an uninterruptible sleep: it is dead to all but the kernel.
            cgroup.abandon()
            warnings.warn(f"left behind: {error}", ResourceWarning, stacklevel=2)


def _plain(end: End) -> Usage:
    """Return what is known without a cgroup."""
    voluntary, involuntary = end.switches
    return Usage(
        wall_time=end.wall_time,
        user_time=end.user_time,
        system_time=end.system_time,
        voluntary_switches=voluntary,
        involuntary_switches=involuntary,
        cpu_time=end.user_time + end.system_time,
        sources=dict(_RUSAGE),
    )


def plain_reason(end: End) -> Reason:
    """Return why a payload ended if nobody but itself had a part in it."""
    if end.returncode >= 0:
        return Reason.EXIT
    return Reason.SECCOMP if end.returncode == -signal.SIGSYS else Reason.SIGNAL


def _processors(limits: Limits) -> int:
    if isinstance(limits.cpuset, tuple):
        return len(limits.cpuset)
    return os.cpu_count() or 1


_PRESSURES: Final = {name: f"pressure_{name}" for name in ("cpu", "memory", "io")}

MEASURED: Final = (
    "cpu_time",
    "user_time",
    "system_time",
    "memory_peak",
    "pids_peak",
    "oom_kills",
    "pids_refused",
    *_PRESSURES.values(),
)


def _measured(usage: Usage, reader: Reader) -> Usage:
    """Return usage with the figures of a cgroup, as far as this host has them."""
    cpu_time = reader.figure("cpu_time")
    if cpu_time is not None:
        # All processes, and not only those that were waited for.
        user, system = reader.figure("user_time"), reader.figure("system_time")
        usage = usage._replace(
            cpu_time=cpu_time,
            user_time=usage.user_time if user is None else user,
            system_time=usage.system_time if system is None else system,
        )
    pressure = {name: reader.figure(figure) for name, figure in _PRESSURES.items()}
    return usage._replace(
        memory_peak=reader.count("memory_peak"),
        pids_peak=reader.count("pids_peak"),
        oom_kills=reader.count("oom_kills"),
        pids_refused=reader.count("pids_refused"),
        pressure={name: value for name, value in pressure.items() if value is not None} or None,
        sources={**usage.sources, **reader.sources},
    )


class Site:
    """
    Where the cgroups of one sandbox are made: decided once for many runs.

    It is looked for again when it is gone, or the calling process is another one. For a
    sandbox that is used again and again, the cgroup of the next run is made while this
    one is waited for.
    """

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._known: tuple[tuple[int, int], Choice] | None = None
        self._used_again = False
        self._forms: dict[tuple[str, ...], Form] = {}
        self._spares: list[Ahead] = []
        weakref.finalize(self, _remove_spares, self._spares)

    @cached_property
    def want_cgroup(self) -> bool:
        """As the terms have it."""
        return self._terms.need_cgroup or self._terms.shelter

    def make(self) -> tuple[Choice, Cgroup | None]:
        """Make a cgroup, or none if all that needed one is left out."""
        parent = self._terms.parent
        if isinstance(parent, Cgroup) and parent.frozen:
            raise PlanError("cgroup: it is frozen, and so would be the spawn: thaw() it first")
        known = self._known
        if known is None or known[0] != _caller():
            return self._make_elsewhere()
        self._used_again = True
        spare = self._take_spare(known[1])
        return self._make_there(known[1]) if spare is None else (known[1], spare)

    def prepare(self, figures: tuple[str, ...] = MEASURED) -> None:
        """
        Make the cgroup of the next run, if that is likely to come; errors will be its own.

        Args:
            figures: Those that will be read when it has no time.
        """
        known = self._known
        if not self._used_again or known is None or not known[1].parts or self._spares:
            return
        if self._terms.exposed:
            return  # it takes two
        form = self._forms.get(figures)
        if form is None or form.choice is not known[1]:
            form = self._forms[figures] = Form(known[1], self._terms.purpose, figures)
        with suppress(OSError):
            self._spares.append(Ahead(form))
            remove_abandoned()

    def _make_elsewhere(self) -> tuple[Choice, Cgroup | None]:
        terms = self._terms
        choice = choose(
            terms.limits,
            terms.parent,
            measure=terms.parent is not None or terms.purpose is Purpose.FREEZE,
            purpose=terms.purpose,
            shelter=terms.shelter,
            optional=not terms.need_cgroup,
        )
        self._known = _caller(), choice
        return choice, self._fresh(choice) if choice.parts else None

    def _make_there(self, choice: Choice) -> tuple[Choice, Cgroup | None]:
        if not choice.parts:
            return choice, None
        try:
            return choice, self._fresh(choice)
        except CgroupError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
        return self._make_elsewhere()

    def _fresh(self, choice: Choice) -> Cgroup:
        return make(self._terms.limits, choice, enable=isinstance(self._terms.parent, Cgroup))

    def _take_spare(self, choice: Choice) -> Cgroup | None:
        try:
            ahead = self._spares.pop()  # one step: of two threads one gets it
        except IndexError:
            return None
        return adopt(self._terms.limits, ahead) if ahead.form.choice is choice else None


def _caller() -> tuple[int, int]:
    return this_process(), os.geteuid()


def _remove_spares(spares: list[Ahead]) -> None:
    """Remove what has not been used, and what has been; a copy in a fork is only forgotten."""
    spares.clear()
    tidy()
