"""
What runs somewhere, from its start to its verdict.

Pipes, text and terminals are Process's: a run with the caller's streams needs nothing but
this.
"""

import math
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, Self

from ._calls import STREAMS, find_directory
from ._child import Child
from ._fence import Fence, Verdict
from ._filter import killed_call
from ._request import NOWHERE, Request
from ._values import PathArg, check_items
from .errors import PlanError, PlanIndexError, PlanTypeError, SpawnError, Step, spawn_error
from .result import Reason, Result

Args = PathArg | Sequence[PathArg]
Starter = Callable[[Request, Child], None]

_LAST_WORD: Final = 100
"""Milliseconds for an init to tell how its process has ended, which has been killed."""


class Place(Protocol):
    """What starts a process, and what limits it, which may be known only then."""

    @property
    def start(self) -> Starter:
        """Starts it."""

    @property
    def fence(self) -> Fence | None:
        """Its limits."""


class FixedPlace(NamedTuple):
    """One whose limits are known before."""

    start: Starter
    fence: Fence | None


class Payload:
    """
    A process, its limits, and what has become of it.

    Args:
        place: Where it runs.
        attended: The calling thread waits for its end, and nobody else knows of it.
        outlives: Leave it alone when nobody holds this any more.

    Attributes:
        args: As its caller has given them.
        returncode: None until its end has been seen.
        verdict: The same.
    """

    args: Any = None
    returncode: int | None = None
    verdict: Verdict | None = None

    def __init__(self, place: Place, *, attended: bool, outlives: bool = False) -> None:
        self.place, self.attended = place, attended
        self.child = Child(outlives=outlives)

    def start(self, request: Request, args: Any) -> None:
        """Start what is asked for."""
        self.args = args
        _check_streams(request)
        sys.audit("nsbox.spawn", request.executable, args, request.cwd)
        place = self.place
        if self.attended:
            request.attended = True
        try:
            if place.fence is not None:
                placement = place.fence.open()
                if placement is not NOWHERE:
                    request.placement = placement
            place.start(request, self.child)
            if place.fence is not None:
                place.fence.started()
        except BaseException as error:
            if place.fence is not None and isinstance(error, SpawnError):
                place.fence.advise(error)
            # A signal handler raised when the child was there already.
            self.abandon()
            raise

    def look(self, timeout: int) -> None:
        """Take note of the end, if it comes within so many milliseconds (negative: for ever)."""
        end = self.child.wait(timeout)
        if end is None:
            return
        fence = self.place.fence
        if fence is None:
            self.verdict = Verdict(end)
        else:
            fence.end(end, self)
        self.returncode = end.returncode

    def wait(self, timeout: float | None) -> None:
        """
        Wait for the end.

        Args:
            timeout: Seconds; None: for ever.

        Raises:
            subprocess.TimeoutExpired: If it did not come.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        if deadline != deadline:  # which would never come, and not be waited for either
            raise PlanError(f"timeout: {timeout!r} is no number of seconds")
        # A signal ends a look, too; its Python handler runs before the next.
        while self.returncode is None:
            if deadline is None:
                self.look(-1)
                continue
            # The core takes milliseconds that fit an int: at most an hour at a time.
            remaining = min(max(0.0, deadline - time.monotonic()), 3600)
            self.look(math.ceil(remaining * 1000))
            if self.returncode is None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)

    def signal(self, sig: int) -> None:
        """Send a signal; nothing happens if it has ended."""
        self.child.signal(sig)
        fence = self.place.fence
        if sig != signal.SIGKILL or fence is None or self.returncode is not None:
            return
        # An init that stays tells how it ended, if it gets to run.
        if not self.child.has_init or self.child.wait(_LAST_WORD) is None:
            fence.hasten()

    def abandon(self) -> bool:
        """Kill and reap the child if there is one, remove its cgroup; tell if there was one."""
        fence = self.place.fence
        if fence is not None:
            fence.hasten()  # what comes next waits for the end
        running = self.child.discard()
        if fence is not None:
            fence.discard()
        return running

    def give_up(self, warn: Callable[..., None], source: object) -> None:
        """The same, of something that is not held any more, with a warning."""
        if self.abandon():
            text = f"sandboxed process {self.child.pid} was still running"
            warn(text, ResourceWarning, source=source)

    def prepare_next(self) -> None:
        """Make ready what the next one like it will need: the caller has time."""
        if self.place.fence is not None:
            self.place.fence.prepare_next()

    def result(self, stdout: Any, stderr: Any, size: int | None = None) -> Result:
        """
        Return the Result of what has been waited for, with what was captured.

        Args:
            stdout: What was captured, or None.
            stderr: Likewise.
            size: Bytes of both, where that is known.

        Raises:
            SpawnError: If it was an attended start, and has failed. Not before: whoever kills
                it, or is interrupted, would be told in the place of who waits.
        """
        child, verdict, fence = self.child, self.verdict, self.place.fence
        if child.record.step:
            error = child.source.failure(child)
            error._attended = True
            raise error
        if verdict is None or self.returncode is None:
            raise ValueError("the process has not been waited for")
        result = Result(self.args, self.returncode, stdout, stderr, verdict, size)
        if fence is not None and fence.degraded:
            result.degraded = fence.degraded
        result.enforced = child.source.enforced(new_session=child.request.setsid)
        if self.returncode == -signal.SIGSYS and result.reason is Reason.SECCOMP:
            result.refused_call = killed_call(child.pid, result.usage.wall_time)
        return result


class Attended(Payload):
    """A process with the caller's streams, started by the thread that waits for its end."""

    def __init__(self, place: Place) -> None:
        super().__init__(place, attended=True)

    def begin(self, args: Args, env: Mapping[str, str], cwd: str) -> Self:
        """Start it: the arguments, its whole environment, and its directory."""
        argv = _strings(args)
        if argv is None:
            argv, _ = arguments(args, None, shell=False)
        self.start(Request(argv, argv[0], env, cwd), args)
        return self

    def finish(self, timeout: float | None) -> Result:
        """Wait for the end, and kill it if that does not come."""
        try:
            self.prepare_next()
            self.wait(timeout)
        except BaseException:
            self.kill()
            self.wait(None)
            raise
        return self.result(None, None)

    def kill(self) -> None:
        """Kill it; nothing happens if it has ended."""
        self.signal(signal.SIGKILL)

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        if self.returncode is None and hasattr(self, "child"):
            self.give_up(_warn, self)


# ---- arguments ----------------------------------------------------------------


def _strings(args: Any) -> list[bytes] | None:
    """Return argv for a list of str, which is the usual; None for what needs a closer look."""
    if type(args) not in (list, tuple):
        return None
    try:
        argv = "\0".join(args).encode(_ENCODING, _ENCODING_ERRORS).split(b"\0")
    except (TypeError, UnicodeEncodeError):
        return None
    return argv if len(argv) == len(args) else None


_ENCODING: Final = sys.getfilesystemencoding()
_ENCODING_ERRORS: Final = sys.getfilesystemencodeerrors()


def arguments(args: Any, executable: Any, *, shell: bool) -> tuple[list[bytes], bytes]:
    """Return argv and the program to execute, by the rules of subprocess.Popen."""
    if isinstance(args, (str, bytes)):
        args = [args]
    elif isinstance(args, os.PathLike):
        if shell:
            raise PlanTypeError("args: a path-like object is no command for a shell")
        args = [args]
    else:
        args = check_items("args", args)
    if shell:
        args = ["/bin/sh", "-c", *args]
        if executable:
            args[0] = executable
    if not args:
        raise PlanIndexError("args: the argument list is empty")
    argv = [_argument("args", item) for item in args]
    program = argv[0] if executable is None else _argument("executable", executable)
    return argv, program


def _argument(name: str, item: Any) -> bytes:
    try:
        encoded = os.fsencode(item)
    except TypeError:
        raise PlanTypeError(f"{name}: {item!r} is neither str, bytes nor os.PathLike") from None
    except UnicodeEncodeError:
        raise PlanError(f"{name}: {item!r} cannot be encoded for the kernel") from None
    if b"\0" in encoded:
        raise PlanError(f"{name}: {item!r} contains a NUL character")
    return encoded


# ---- streams ------------------------------------------------------------------


def _check_streams(request: Request) -> None:
    """Refuse a directory as a stream, the caller's own too: see check_no_directories()."""
    streams: Sequence[int] = STREAMS
    if request.terminal is not None:
        streams = request.stdio
    elif request.stdio != Request.stdio:
        streams = [own if fd < 0 else fd for own, fd in enumerate(request.stdio)]
    try:
        found = find_directory(streams)
    except OSError as error:
        raise spawn_error(error.errno or 0, Step.DUP) from None
    if found is not None:
        name = ("stdin", "stdout", "stderr")[found]
        raise PlanError(
            f"{name}: {streams[found]} is a directory, through which the payload could leave "
            "its root"
        )
