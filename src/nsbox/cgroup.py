"""
Cgroups: the fence around processes.

One object for the three kinds of hosts: cgroup v2, v1, and hybrid ones, whose
controllers are on v1 while a bare v2 hierarchy counts, freezes and kills. It
stands for a directory of the same name in each hierarchy that it needs.
"""

import errno
import os
import threading
import time
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, NamedTuple

from . import _calls, _cgroup_choice, _cgroup_layout, _cgroup_names
from ._calls import Descriptor
from ._cgroup_ahead import Ahead, left, tidy
from ._cgroup_choice import Choice, Part, Purpose, by_controller, narrowed
from ._cgroup_files import LOCAL, SWITCHES, Place, Reader, Switch, find, read
from ._cgroup_layout import UNIFIED, read_words
from ._cgroup_tree import (
    await_event,
    kill_tree,
    look_again,
    remove_tree,
    reported,
    sweep,
    sweep_once,
    text,
    tree,
    write,
)
from ._forks import this_process
from ._values import PathArg, check_bool, check_path
from .errors import CgroupError, PlanError, PlanTypeError
from .limits import CGROUP_FIELDS, NO_LIMITS, Limits, check_limits

_SEAT: Final = "seat"

_PATIENCE: Final = 10.0
"""Seconds until a cgroup that does not change its state is an error."""


class Stats(NamedTuple):
    """
    What the processes of a cgroup use now, and have used together so far.

    A figure that this host does not measure is None.

    Args:
        memory: Bytes now, page cache and kernel memory too.
        memory_peak: The most so far, in bytes.
        memory_anon: Bytes of anonymous memory (heap, stacks) now.
        memory_file: Bytes of page cache now, tmpfs and shared memory too.
        swap: Bytes now.
        pids: Processes and threads now.
        pids_peak: The most so far (Linux 6.1).
        cpu_time: Seconds so far, of processes that ended too.
        user_time: The part in user mode.
        system_time: The part in the kernel.
        sources: For each figure that was measured, the file that it is from.
    """

    memory: int | None
    memory_peak: int | None
    memory_anon: int | None
    memory_file: int | None
    swap: int | None
    pids: int | None
    pids_peak: int | None
    cpu_time: float | None
    user_time: float | None
    system_time: float | None
    sources: dict[str, str]


class Events(NamedTuple):
    """
    How often a limit was met, by the kernel's count.

    Args:
        oom_kills: Processes that the OOM killer ended; None if not counted here.
        pids_refused: Processes and threads that could not be started; None as well.
    """

    oom_kills: int | None
    pids_refused: int | None


class Cgroup:
    """
    A cgroup that nsbox made, and removes when it is closed.

    A context manager. Processes get into it by ``Sandbox(cgroup=...)``, each
    sandbox in a fresh cgroup of its own inside; nothing else is ever moved.
    """

    def __init__(self) -> None:
        raise TypeError("use Cgroup.create()")

    _is_callers: bool = False  # else a sandbox's, which speaks for it
    _parts: tuple[Part, ...]
    _name: str
    _directories: tuple[str, ...]
    _owner: int
    _directory: Descriptor
    _closed: bool
    ahead: Ahead | None = None  # if it was made so
    _seat: "Cgroup | None" = None
    _lock: threading.RLock  # held by whoever freezes or thaws, to say so and to note it
    _frozen: bool = False
    _dying: bool = False  # never frozen again
    limits: Limits
    degraded: frozenset[str]

    @classmethod
    def create(
        cls,
        limits: Limits | None = None,
        *,
        parent: "CgroupArg | None" = None,
        enable: bool = False,
    ) -> "Cgroup":
        """
        Make a cgroup.

        Args:
            limits: For everything in it together. Fields that are not kept by
                cgroup controllers must not be set.
            parent: Directory to make it in, or one for each v1 hierarchy, or a
                Cgroup. Default: the caller's own cgroup, and on v2 one above it
                where the controllers are enabled.
            enable: On v2, write needed controllers to the parent's
                cgroup.subtree_control. Without it that is done for a Cgroup only.

        Raises:
            UnsupportedError: If a limit cannot be kept on this host; names the
                controller, its mount and the remedy.
            CgroupError: If making it or a setting failed; nothing is left.
            PlanError: If the limits or the parent cannot be meant.
        """
        limits = check_limits("limits", limits) or Limits()
        if check_bool("enable", enable) and parent is None:
            raise PlanError("enable: name the parent whose controllers are to be enabled")
        others = {*limits.given()} - {*CGROUP_FIELDS, "core"}
        if others:
            raise PlanTypeError(f"limits: {sorted(others)[0]!r} is for one run, not for a cgroup")
        place = check_parent(parent)
        choice = choose(limits, place, enable=enable, measure=True)
        cgroup = make(limits, choice, enable=enable or isinstance(place, Cgroup))
        cgroup._is_callers = True
        return cgroup

    # ---- looking ----

    @property
    def name(self) -> str:
        """The name of its directories."""
        return self._name

    @property
    def directories(self) -> tuple[str, ...]:
        """Its directories, one for each hierarchy, that of version 2 first."""
        return self._directories

    @property
    def closed(self) -> bool:
        """Whether it has been removed, or given up."""
        return self._closed

    def fileno(self) -> int:
        """
        Return a descriptor of the first of its directories, which this object owns.

        Raises:
            PlanError: If it is closed.
        """
        self._check_open()
        return self._directory.fileno()

    def processes(self) -> list[int]:
        """Return the ids of the processes in it and below it."""
        self._check_open()
        found: set[int] = set()
        with reported(self.directories[0]):
            for directory in tree(self.directories[0]):
                found.update(int(pid) for pid in read_words(f"{directory}/cgroup.procs"))
        return sorted(found - {0})  # 0: not in our pid namespace

    def reader(self, names: Iterable[str]) -> Reader:
        """Return some of its figures at this moment: see :class:`nsbox._cgroup_files.Reader`."""
        names, ahead = tuple(names), self.ahead
        if ahead is not None and names == ahead.form.figures:
            return Reader(ahead.form.found, ahead.read())
        directories = self.by_controller()
        files, found = find(tuple(directories), names)
        paths = [f"{directories[at]}/{file}" for at, file in files]
        with reported(self.directories[0]):
            texts = _calls.read_files(paths)
        if self._seat is None:
            return Reader(found, texts)
        return Reader(found, texts, self._seat.reader(name for name in names if name in LOCAL))

    def by_controller(self) -> dict[Place, str]:
        """Return its directories by controller and version of the hierarchy."""
        return by_controller(self._parts, self.directories)

    def stats(self) -> Stats:
        """Return what its processes use."""
        self._check_open()
        reader = self.reader(name for name in Stats._fields if name != "sources")
        return Stats(
            memory=reader.count("memory"),
            memory_peak=reader.count("memory_peak"),
            memory_anon=reader.count("memory_anon"),
            memory_file=reader.count("memory_file"),
            swap=reader.count("swap"),
            pids=reader.count("pids"),
            pids_peak=reader.count("pids_peak"),
            cpu_time=reader.figure("cpu_time"),
            user_time=reader.figure("user_time"),
            system_time=reader.figure("system_time"),
            sources=reader.sources,
        )

    def events(self) -> Events:
        """Return how often a limit was met."""
        self._check_open()
        reader = self.reader(Events._fields)
        return Events(reader.count("oom_kills"), reader.count("pids_refused"))

    # ---- its processes' own ----

    @property
    def seat(self) -> "Cgroup":
        """The cgroup where its processes go: it itself, unless one was made inside for them."""
        return self._seat or self

    def make_seat(self) -> None:
        """
        Make a cgroup inside of it for its processes, which limits nothing.

        Raises:
            CgroupError: If that failed.
        """
        pairs = zip(self._parts, self.directories, strict=True)
        parts = tuple(part.seat(directory) for part, directory in pairs)
        self._seat = _described(NO_LIMITS, Choice(parts, frozenset()), _SEAT)
        self._seat._make(enable=True)

    def killing_fileno(self) -> int:
        """
        Return the descriptor by which the C core kills what is in it: see csrc/watcher.c.

        It kills what is below a cgroup of version 2, too; of version 1, what is in that one.
        """
        return (self if self._parts[0].version == 2 else self.seat).fileno()

    # ---- acting ----

    def freeze(self) -> None:
        """
        Stop everything in it, and return when it has stopped.

        Also when another thread has thawed it meanwhile, or ended what is in it.

        Raises:
            CgroupError: If it does not stop within 10 s (ETIMEDOUT): it goes on then.
                If the host has neither cgroup v2 nor the v1 freezer (EOPNOTSUPP).
            PlanError: If it is closed.
        """
        try:
            self._set_frozen(True)
        except BaseException:
            with suppress(CgroupError, PlanError):
                self._set_frozen(False)
            raise

    def thaw(self) -> None:
        """
        Let everything in it go on, and return when it does, or has been frozen again.

        Raises:
            CgroupError: As from :meth:`freeze`; ETIMEDOUT if a cgroup above it is frozen.
            PlanError: If it is closed.
        """
        self._set_frozen(False)

    def let_die(self) -> None:
        """
        Thaw it for good, since it has been killed: on v1 what is frozen does not die.

        Raises:
            CgroupError: If it cannot be thawed.
        """
        with self._lock:
            self._dying = True
            if self._frozen:
                self._turn(False)

    @property
    def frozen(self) -> bool:
        """It has been frozen by this object, and not thawed: nothing can be started in it."""
        return self._frozen

    def kill(self) -> None:
        """Send SIGKILL to everything in it, frozen or not; does not wait for the end."""
        self._check_open()
        self._kill()

    def close(self) -> None:
        """
        Kill what is in it, wait until it is empty, and remove it.

        Raises:
            CgroupError: If it does not become empty within 10 s (EBUSY); it can
                be closed again.
        """
        if self._closed:
            return
        if self._owner != this_process():
            self._forget()  # a fork's copy: the cgroup is the parent's
            return
        self.remove(_PATIENCE)

    def empty(self, patience: float = _PATIENCE) -> None:
        """
        Kill what is in it, and wait until it is empty.

        Args:
            patience: Seconds to wait.

        Raises:
            CgroupError: If it does not become empty (EBUSY).
        """
        self._check_open()
        if self._is_empty():
            return
        deadline = time.monotonic() + patience
        self._kill()
        self.let_die()
        if self._parts[0].version == 2:
            await_event(self.directories[0], "populated 0", deadline, errno.EBUSY)
        else:
            look_again(self._is_empty, deadline, errno.EBUSY, self.directories[0])

    def remove(self, patience: float) -> None:
        """As :meth:`close`, with another bound in seconds."""
        try:
            if not self._removed_at_once():
                self.empty(patience)
                deadline = time.monotonic() + patience
                for directory in reversed(self.directories):
                    remove_tree(directory, deadline)
        except (CgroupError, PlanError):
            if not self._closed:  # else a signal handler or another thread has removed it
                raise
        self._forget()

    def remove_if_empty(self) -> bool:
        """Remove it unless something is in it; tell whether it is gone."""
        if self._removed_at_once():
            self._forget()
        return self._closed

    def _removed_at_once(self) -> bool:
        """Remove it if nothing is in it, by far the most common case: the kernel knows best."""
        inside = () if self._seat is None else self._seat.directories
        try:
            for directory in reversed((*self.directories, *inside)):
                os.rmdir(directory)
        except OSError:
            return False
        return True

    def hand_over(self) -> bool:
        """
        Leave it, empty, to be removed by the thread that has made it.

        Returns:
            Whether it could be; it is closed then.
        """
        if self.ahead is None or not self.ahead.retire():
            return False
        self._forget()
        return True

    def abandon(self) -> None:
        """Leave it to be removed when a later one is made."""
        _abandoned.extend(self.directories)
        self._forget()

    def _forget(self) -> None:
        self._closed = True
        self._directory.close()
        if self._seat is not None and not self._seat.closed:
            self._seat._forget()

    def __enter__(self) -> "Cgroup":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_closed", True) or self._owner != this_process():
            return
        text = f"{self!r} was not closed"
        try:
            self.remove(1.0)
        except CgroupError:
            self.abandon()
        # Last, since a filter may make it an exception.
        if self._is_callers:
            warnings.warn(text, ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        state = "closed" if self._closed else self.limits
        return f"<Cgroup {self.directories[0]} {state}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Cgroup is of this host and process; pickle its limits instead")

    # ---- inside ----

    def _make(self, *, enable: bool) -> None:
        """
        Make its directories, and write its settings.

        Args:
            enable: On version 2, enable its controllers in the cgroup above.
        """
        settings = []
        try:
            for part, directory in zip(self._parts, self.directories, strict=True):
                if enable and part.version == 2:
                    _enable(part)
                settings += [(f"{directory}/{file}", value) for file, value in part.settings]
            with reported(self.directories[0]):
                for directory in self.directories:
                    os.mkdir(directory)
                _calls.write_files(settings)
                self._open()
        except BaseException:
            # All of them: a signal handler can raise after mkdir(), before that is noted anywhere.
            for directory in reversed(self.directories):
                with suppress(OSError):
                    os.rmdir(directory)
            raise

    def _open(self) -> None:
        self._directory = Descriptor(self.directories[0], os.O_RDONLY | os.O_DIRECTORY)
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise PlanError("the cgroup is closed")

    def _kill(self) -> None:
        if self._parts[0].version == 2:
            # Recursive, and atomic, where the kernel has it.
            with reported(self.directories[0]):
                _calls.cgroup_kill(self._directory.fileno())
            # (What is frozen by a v1 freezer beside it does not die.)
            if self._freezer is None and os.path.exists(f"{self.directories[0]}/cgroup.kill"):
                return
        kill_tree(self._freezer or self.directories[0])

    @property
    def _freezer(self) -> str | None:
        for part, directory in zip(self._parts, self.directories, strict=True):
            if "freezer" in part.controllers:
                return directory
        return None

    @property
    def _switch(self) -> tuple[str, Switch]:
        """Where it is frozen, and how."""
        first = self.directories[0]
        if self._parts[0].version == 2:
            return first, SWITCHES[2]
        if self._freezer is not None:
            return self._freezer, SWITCHES[1]
        raise CgroupError(errno.EOPNOTSUPP, first, "neither cgroup v2 nor the v1 freezer")

    def _set_frozen(self, frozen: bool) -> None:
        self._check_open()
        with self._lock:
            if not (frozen and self._dying):
                self._turn(frozen)
        deadline = time.monotonic() + _PATIENCE
        look_again(lambda: self._is_settled(frozen), deadline, errno.ETIMEDOUT, self.directories[0])

    def _turn(self, frozen: bool) -> None:
        directory, switch = self._switch
        write(f"{directory}/{switch.file}", switch.words[frozen])
        self._frozen = frozen

    def _is_settled(self, frozen: bool) -> bool:
        """
        Tell whether it is as it was told to be.

        Or is told otherwise by now, by whomever, which is no event if it comes before
        that; or removed.
        """
        directory, switch = self._switch
        try:
            told, state = text(f"{directory}/{switch.told}"), text(f"{directory}/{switch.state}")
        except CgroupError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
            return True
        return told != str(int(frozen)) or switch.lines[frozen] in state.splitlines()

    def _is_empty(self) -> bool:
        first = self.directories[0]
        if self._parts[0].version == 2:
            # Of what lies below it too; and no text if it was removed by someone.
            return "populated 1" not in (read(f"{first}/cgroup.events") or "")
        return not self.processes()


# ---- making ---------------------------------------------------------------


def choose(
    limits: Limits,
    parent: Cgroup | tuple[str, ...] | None,
    *,
    enable: bool = False,
    measure: bool = False,
    purpose: Purpose = Purpose.LIMIT,
    shelter: bool = False,
    optional: bool = False,
) -> Choice:
    """
    Decide where to make a cgroup: :func:`nsbox._cgroup_choice.choose` with this host's facts.

    Raises:
        CgroupError: If these cannot be read.
    """
    owned = isinstance(parent, Cgroup)
    with reported("/proc/self/cgroup"):
        layout = _cgroup_layout.look()
        if not shelter:
            layout = narrowed(layout, purpose)
        parents = _directories(parent)
        if purpose is Purpose.JOIN:
            parents = [path for path in parents if layout.holds(path)]
        return _cgroup_choice.choose(
            limits,
            layout,
            parents=parents,
            owned=owned or enable,
            measure=measure,
            shelter=shelter,
            optional=optional,
        )


CgroupArg = PathArg | Sequence[PathArg] | Cgroup
"""Where a cgroup is made: a directory, one for each v1 hierarchy, or a Cgroup."""


def check_parent(value: object) -> Cgroup | tuple[str, ...] | None:
    """Return a parent, paths as a tuple of str."""
    if value is None or isinstance(value, Cgroup):
        return value
    if isinstance(value, (str, bytes)) or hasattr(value, "__fspath__"):
        value = [value]
    if not isinstance(value, Sequence) or not value:
        raise PlanTypeError(f"cgroup: must be a Cgroup, a path or paths, not {value!r}")
    return tuple(check_path("cgroup", item) for item in value)


def _directories(parent: Cgroup | tuple[str, ...] | None) -> Sequence[str]:
    if isinstance(parent, Cgroup):
        parent._check_open()
        return parent.directories
    return parent or ()


_abandoned: list[str] = []


def remove_abandoned() -> None:
    """Try once more to remove what would not become empty."""
    _abandoned.extend(left())
    for directory in list(_abandoned):
        with suppress(CgroupError, ValueError):  # the second: another thread was faster
            remove_tree(directory, time.monotonic())
            _abandoned.remove(directory)


def make(
    limits: Limits,
    choice: Choice,
    *,
    enable: bool = False,
) -> Cgroup:
    """
    Make a cgroup where it was decided.

    Args:
        limits: Its limits.
        choice: What :func:`choose` returned for them.
        enable: On v2, enable its controllers in the cgroup above.

    Raises:
        CgroupError: If something failed; nothing is left.
    """
    cgroup = _described(limits, choice, _cgroup_names.new_name())
    tidy()  # it would count where there may be only so many
    remove_abandoned()
    for part in choice.parts:
        sweep_once(part.parent)
    cgroup._make(enable=enable)
    return cgroup


def adopt(limits: Limits, ahead: Ahead) -> Cgroup | None:
    """Return the cgroup that was made ahead; None if it is not there."""
    cgroup = _described(limits, ahead.form.choice, ahead.name)
    if not ahead.take():
        return None
    cgroup.ahead = ahead
    with suppress(OSError):
        cgroup._open()
    return None if cgroup.closed else cgroup


def _described(limits: Limits, choice: Choice, name: str) -> Cgroup:
    """Return a cgroup that is yet to be made."""
    cgroup = Cgroup.__new__(Cgroup)
    cgroup.limits, cgroup.degraded = limits, choice.degraded
    cgroup._parts, cgroup._name = choice.parts, name
    cgroup._directories = tuple(f"{part.parent}/{name}" for part in choice.parts)
    cgroup._owner, cgroup._closed = this_process(), True
    cgroup._lock = threading.RLock()
    return cgroup


def _enable(part: Part) -> None:
    """Enable the controllers of a part for the children of its parent, which is ours to change."""
    path = f"{part.parent}/cgroup.subtree_control"
    with reported(path):
        enabled = read_words(path)
    missing = [name for name in part.controllers if name != UNIFIED and name not in enabled]
    if missing:
        write(path, " ".join(f"+{name}" for name in missing))


def remove_leftovers() -> list[str]:
    """
    Remove what dead callers have left in every place where nsbox makes cgroups by default.

    Returns:
        The directories that were removed.
    """
    with reported("/proc/self/cgroup"):
        layout = _cgroup_layout.look()
    places = [place for item in layout.hierarchies for place in item.above()]
    return [path for place in places for path in sweep(place)]
