"""
A sandbox that stays: one world, in which any number of commands run.

Made by ``Sandbox.open()``. Everything in it ends with the object, or with the caller.
"""

import errno
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from subprocess import TimeoutExpired
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TypeVar, Unpack

from . import _files
from ._bridge import Lowered
from ._calls import Descriptor
from ._changes import MOST, Change, ChangeKind, Stack, changes_of
from ._child import Child
from ._compile import rlimits_of
from ._constants import ANYWHERE
from ._control import Control, Mode
from ._exit import Open
from ._payload import Args, FixedPlace, Place
from ._plan import Code, OpFlag
from ._request import Request
from ._run import STREAM_LIMIT, Running, SpawnOptions, run
from ._spares import Store
from ._values import PathArg, check_mode, check_path, check_target, parse_size
from ._whole import Whole
from .cgroup import Stats
from .errors import (
    CgroupError,
    PlanError,
    PlanTypeError,
    SpawnError,
    UnsupportedError,
    file_error,
)
from .limits import Limits, check_limits
from .process import Process
from .result import Result

if TYPE_CHECKING:
    from ._async import AsyncProcess

T = TypeVar("T")

_PF_EXITING: Final = 0x4

_LONG: Final = 1e6
"""Seconds: more than any start may take."""

_CLOSING: Final = CgroupError, PlanError, UnsupportedError
"""What may come of it that another thread closes the sandbox."""


class Live:
    """
    A world that is there, and the processes in it; users do not construct it.

    A context manager: leaving it closes it. Any number of threads may use it. After a
    fork it is the parent's: the copy does nothing, and says that it is closed.
    """

    def __init__(
        self,
        spawn: Callable[..., Process],
        attend: Callable[..., Running],
        lowered: Lowered,
        whole: Whole,
        store: Store | None,
    ) -> None:
        """
        Make the world.

        Args:
            spawn: ``Sandbox._spawn``, and
            attend: ``Sandbox._attend``.
            lowered: The plan.
            whole: The limits, which this object owns from now on.
            store: What was made ahead, or None.
        """
        self._spawn, self._attend = spawn, attend
        self._whole = whole
        self._plan = lowered.plan
        try:
            layers = any(op.code is Code.OVERLAY for op in self._plan.ops)
            self._control = Control(
                lowered, whole.open(), layers=layers, store=store, mode=Mode.NORMAL
            )
            whole.started()
            self._made = {change.path for change in self._changes(MOST, given=False)}
            _lives.add(self)
        except BaseException as error:
            if isinstance(error, SpawnError):
                whole.advise(error)
            self._end()
            raise

    # ---- commands ----

    def spawn(
        self, args: Args, *, limits: Limits | None = None, **options: Unpack[SpawnOptions]
    ) -> Process:
        """
        Start a process in this world; the arguments are those of ``Sandbox.spawn()``.

        It is a child of the world's init, not its first process: signals without a
        handler end it, and what it has started may outlive it, until the world ends.

        Args:
            limits: For this process and all that it starts, besides those of the sandbox.
                What it leaves behind is then killed when it ends, unless these are resource
                limits only.

        Raises:
            SpawnError, PlanError, LookupError, UnsupportedError, CgroupError: As from
                ``Sandbox.spawn()``. A SpawnError with step "init" and ESRCH: the world has
                ended, killed by somebody or for a limit.
            PlanError: Also if the sandbox is closed, or frozen.
        """
        process: Process = self._begin(self._spawn, limits, None, args, **options)
        return process

    def run(
        self,
        args: Args,
        *,
        limits: Limits | None = None,
        input: Any = None,
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        **options: Unpack[SpawnOptions],
    ) -> Result:
        """
        Run a process in this world, and wait for its end: as ``Sandbox.run()``.

        At the timeout that process is killed, not the world.

        Args:
            limits: As for :meth:`spawn`.
        """
        return run(
            partial(self._begin, self._attend, limits, timeout),
            args,
            input=input,
            capture_output=capture_output,
            timeout=timeout,
            check=check,
            drain=False,
            **options,
        )

    async def spawn_async(
        self,
        args: Args,
        *,
        limits: Limits | None = None,
        limit: int = STREAM_LIMIT,
        **options: Unpack[SpawnOptions],
    ) -> "AsyncProcess":
        """Start a process in this world, for asyncio: as ``Sandbox.spawn_async()``."""
        from . import _async  # not before: to import asyncio takes as long as all of nsbox

        return _async.spawn(partial(self.spawn, limits=limits), args, limit=limit, **options)

    async def run_async(
        self,
        args: Args,
        *,
        limits: Limits | None = None,
        input: Any = None,
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        **options: Unpack[SpawnOptions],
    ) -> Result:
        """
        Run a process in this world, and wait for its end in the event loop.

        As ``Sandbox.run_async()``; at the timeout, or when it is cancelled, that process is
        killed, not the world.
        """
        from . import _async

        return await _async.run(
            partial(self._begin, self._spawn, limits, timeout),
            args,
            input=input,
            capture_output=capture_output,
            timeout=timeout,
            check=check,
            drain=False,
            **options,
        )

    def _begin(
        self,
        begin: Callable[..., Any],
        limits: Limits | None,
        timeout: float | None,
        args: Args,
        /,
        **options: Unpack[SpawnOptions],
    ) -> Any:
        # At least one: 0 is no bound.
        patience = 0 if timeout is None else math.ceil(min(max(0.001, timeout), _LONG) * 1000)
        since = time.monotonic()
        try:
            return begin(self._place(limits, patience), args, **options)
        except _CLOSING:
            self._check_open()
            raise
        except SpawnError as error:
            # Its init has not said that it has begun: what runs there may keep it from running.
            waited = time.monotonic() - since
            if timeout is None or waited < timeout or error.errno != errno.ETIMEDOUT:
                raise
            raise TimeoutExpired(args, timeout) from None

    def _place(self, limits: Limits | None, patience: int) -> Place:
        if limits is not None:
            check_limits("limits", limits)
        self._check_active()
        start = self._control.start
        if limits is not None or patience:
            start = partial(self._start, limits, patience)
        return FixedPlace(start, self._whole.inside(limits))

    def _start(self, limits: Limits | None, patience: int, request: Request, child: Child) -> None:
        request.patience = patience
        if limits is not None:
            request.rlimits, request.nice = rlimits_of(limits), limits.nice or 0
        self._control.start(request, child)

    # ---- files ----

    def read_file(self, path: PathArg, *, max_size: int | str = _files.MAX_SIZE) -> bytes:
        """
        Return what a file inside holds.

        With the payload's rights, through no symbolic link; a regular file only, of a file
        system that stores what is written to it: none of /proc.

        Args:
            path: Absolute path inside.
            max_size: Most bytes that it may have. Default 64M.

        Raises:
            FileError: If it cannot be opened (also FileNotFoundError, ...), is another kind
                of file (EINVAL, EISDIR), too large (EFBIG), or the sandbox has ended (ESRCH).
            PlanError: If an argument cannot be meant, or the sandbox is closed, or frozen.
        """
        target, most = check_target("path", path), parse_size("max_size", max_size)
        return _files.read(self._opener(), target, most)

    def write_file(self, path: PathArg, data: bytes, *, mode: int = 0o644) -> None:
        """
        Make a file inside, or replace the content of one, in place.

        Args:
            path: Absolute path inside.
            data: What it shall hold.
            mode: Permission bits of a file that is made, up to 0o777.

        Raises:
            FileError: As for :meth:`read_file`. If there is no room (ENOSPC), what was
                there is as before.
            PlanError: The same.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise PlanTypeError(f"data: must be bytes, not {type(data).__name__}; encode() it")
        if check_mode("mode", mode) > 0o777:
            raise PlanError(f"mode: {mode:#o} has more than permission bits")
        target = check_target("path", path)
        _files.write(self._opener(), target, bytes(data), mode)

    def copy_in(
        self, host_path: PathArg, path: PathArg, *, max_size: int | str = _files.MAX_SIZE
    ) -> None:
        """
        Copy a file of the host, with its permission bits, as :meth:`write_file` writes it.

        Args:
            host_path: Of a regular file; read with the caller's rights, links followed.
            path: Absolute path inside, of the file itself.
            max_size: Most bytes to copy. Default 64M.

        Raises:
            FileError, PlanError: As for :meth:`write_file`.
        """
        source, most = check_path("host_path", host_path), parse_size("max_size", max_size)
        target = check_target("path", path)
        _files.copy_in(self._opener(), source, target, most)

    def copy_out(
        self, path: PathArg, host_path: PathArg, *, max_size: int | str = _files.MAX_SIZE
    ) -> None:
        """
        Copy a file to the host, as :meth:`read_file` reads it.

        It is made with the caller's umask, not executable, and gets its name when it is
        whole: it replaces a file or a link that has the name.

        Args:
            path: Absolute path inside.
            host_path: Of the file to be made. No symbolic link on the way is followed.
            max_size: Most bytes to copy. Default 64M.

        Raises:
            FileError, PlanError: As for :meth:`read_file`.
        """
        target, most = check_target("path", path), parse_size("max_size", max_size)
        _files.copy_out(self._opener(), target, check_path("host_path", host_path), most)

    def _opener(self) -> _files.Opener:
        self._check_active()
        return self._open

    def _open(self, path: str, flags: int, mode: int) -> Descriptor:
        try:
            return self._control.open(path, flags, mode)
        except ProcessLookupError:
            raise file_error(errno.ESRCH, path, "the sandbox has ended") from None

    # ---- changes ----

    def changes(self, *, most: int = MOST) -> list[Change]:
        """
        Return what the payload has changed in the sandbox's overlays.

        It reads their upper layers, also while the sandbox is frozen, which is how to get
        a list of one moment. Of an upper layer of the host the list has all, what
        earlier sandboxes have changed, too.

        Args:
            most: How many entries of directories may be looked at in one overlay. Default 100000.

        Returns:
            Changes, overlay by overlay, each directory before what is in it.

        Raises:
            FileError: If there are more entries, or more than 256 bytes of their paths for each
                (EFBIG); or one cannot be looked at.
            PlanError: If the sandbox is closed.
            UnsupportedError: If the kernel has renamed a directory by a redirect.
        """
        self._check_open()
        entries = parse_size("most", most)
        # What nsbox has made before the payload came: mount points.
        return [
            change
            for change in self._changes(entries)
            if change.kind is not ChangeKind.ADDED or change.path not in self._made
        ]

    def _changes(self, most: int, *, given: bool = True) -> Iterator[Change]:
        """Yield the changes in all overlays; without given ones, in those of memory."""
        layers = self._control.layers  # which are open as long as this list is held
        overlays = [
            (op.path(self._plan.ops), index, op)
            for index, op in enumerate(self._plan.ops)
            if op.code is Code.OVERLAY and (given or OpFlag.OWN in op.flags)
        ]
        prefix = "user.overlay." if self._plan.user_xattr else "trusted.overlay."
        for target, index, _ in sorted(overlays):
            upper, *lowers = (fd for part in layers if part.op == index for fd in part.fds)
            yield from changes_of(Stack(target, upper, lowers, prefix), most)

    # ---- everything together ----

    @property
    def pid(self) -> int:
        """Process id of its init in the caller's pid namespace."""
        return self._control.init.pid

    @property
    def pidfd(self) -> int | None:
        """
        A file descriptor of its init, which this object owns; None once it is closed.

        Becomes readable when the sandbox has ended.
        """
        pidfd = self._control.init.pidfd
        return pidfd if pidfd >= 0 else None

    def processes(self) -> list[int]:
        """
        Return the ids of its processes in the caller's pid namespace, without the init.

        Raises:
            FileError: If /proc cannot be read, for want of descriptors (EMFILE) for example.
            PlanError: If the sandbox is closed.
        """
        self._check_open()
        init = self._control.init
        try:
            found = sorted(_descendants(init.pid))
        except OSError as error:
            code = error.errno or errno.EIO
            raise file_error(code, str(error.filename or "/proc"), ANYWHERE.get(code)) from None
        # The number could be another process's by now, unless ours has not been reaped.
        return found if init.wait(0) is None else []

    def stats(self) -> Stats:
        """
        Return what its processes use, and have used together so far.

        Raises:
            UnsupportedError: If it has no cgroup; says why.
            CgroupError: If there are no descriptors left.
            PlanError: If the sandbox is closed.
        """
        return self._unless_closed(lambda: self._whole.required("stats()").stats())

    @property
    def frozen(self) -> bool:
        """It has been frozen, and not thawed."""
        cgroup = self._whole.cgroup
        return cgroup is not None and cgroup.frozen

    def freeze(self) -> None:
        """
        Stop everything in it, and return when it has stopped.

        Also when another thread has thawed or killed it meanwhile.

        Raises:
            UnsupportedError: If it has no cgroup that can be frozen; says why.
            CgroupError: If it does not stop within 10 s (ETIMEDOUT); it goes on then.
            PlanError: If the sandbox is closed.
        """
        self._unless_closed(self._whole.freeze)

    def thaw(self) -> None:
        """
        Let everything in it go on.

        Raises:
            As :meth:`freeze`.
        """
        self._unless_closed(self._whole.thaw)

    def kill(self) -> None:
        """
        Kill everything in it; does not wait for the end.

        Who closes many sandboxes kills all of them first, and they end at the same time.
        """
        self._control.kill()
        # A cgroup that another thread removes in this moment is none to be thawed.
        if not self._control.closed:
            with suppress(CgroupError):
                self._whole.let_die()
            self._whole.hasten()

    def close(self) -> None:
        """Kill everything in it, and wait for the end; without effect the second time."""
        self._end()

    @property
    def closed(self) -> bool:
        """It has been closed, or this process is a fork of the one that it belongs to."""
        return self._control.closed

    def _end(self) -> bool:
        """Wait for the end, and remove what is left; tell if it was running."""
        control = getattr(self, "_control", None)
        running = control is not None and control.init.wait(0) is None
        if control is not None:
            with suppress(PermissionError):  # close() does what is left then
                self.kill()
            control.close()
        self._whole.discard()
        return running

    def _end_forgotten(self) -> str | None:
        """End it; return what to say of it if it was running."""
        return f"live sandbox {self.pid} was still open" if self._end() else None

    def _end_at_exit(self) -> str | None:
        """The same, and what its processes have, whoever holds them."""
        text = self._end_forgotten()
        self._whole.discard_inside()
        return text

    def _check_open(self) -> None:
        if self._control.closed:
            raise PlanError("the sandbox is closed")

    def _unless_closed(self, act: Callable[[], T]) -> T:
        """Do something; what fails because another thread closes the sandbox says so."""
        self._check_open()
        try:
            return act()
        except _CLOSING:
            self._check_open()
            raise

    def _check_active(self) -> None:
        self._check_open()
        cgroup = self._whole.cgroup
        if cgroup is not None and cgroup.frozen:
            raise PlanError("the sandbox is frozen: thaw() it first")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        text = None if getattr(self, "_control", None) is None else self._end_forgotten()
        if text is not None:
            _warn(text, ResourceWarning, source=self)

    def __repr__(self) -> str:
        if self.closed:
            return "<nsbox.Live: closed>"
        init = self._control.init
        state = f"init is process {init.pid}" if init.wait(0) is None else "ended"
        return f"<nsbox.Live: {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a live sandbox cannot be pickled; pickle its Sandbox instead")


_lives: Final = Open(Live._end_at_exit)


def _descendants(pid: int) -> Iterator[int]:
    """Yield the ids of a process's descendants, as the kernel lists them at this moment."""
    waiting = [pid]
    while waiting:
        found = [child for task in _tasks(waiting.pop()) for child in _children(task)]
        yield from found
        waiting += found


def _tasks(pid: int) -> list[str]:
    """Return the directories of a process's threads."""
    tasks = f"/proc/{pid}/task"
    try:
        return [f"{tasks}/{name}" for name in os.listdir(tasks)]
    except FileNotFoundError:
        return []


def _children(task: str) -> list[int]:
    """Return the ids of a thread's children that have not ended."""
    return [pid for pid in map(int, _read(f"{task}/children").split()) if _runs(pid)]


def _runs(pid: int) -> bool:
    stat = _read(f"/proc/{pid}/stat")
    if not stat:
        return False
    # The name, in parentheses, may contain anything; the state comes after, and the flags:
    # whoever is on the way out has left its cgroup already, or is about to.
    state, *rest = stat[stat.rindex(b")") + 2 :].split()
    return state not in (b"Z", b"X") and not int(rest[5]) & _PF_EXITING


def _read(path: str) -> bytes:
    """Return a file of a process; nothing if there is no such process any more."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return b""
