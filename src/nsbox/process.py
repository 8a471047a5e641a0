"""
A running payload, shaped like :class:`subprocess.Popen` because it is one.

What the standard library does well (pipes, text layers, communicate with its
timeouts) is inherited. What it does by fork and by pid is replaced: starting
goes through the C core, waiting and signalling through the pidfd.

docs/design.md lists the private parts of Popen that this leans on, and how a
change there would be noticed.
"""

import errno
import io
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple, NoReturn, Protocol, Self

from ._calls import STREAMS, Descriptor, find_directory
from ._child import Child
from ._constants import NAMESPACE_FLAGS
from ._fence import Fence, Verdict
from ._filter import killed_call
from ._interact import connect
from ._layers import Enforced
from ._output import Capture, Codec
from ._request import NOWHERE, Ids, Request
from ._values import (
    MAX_ID,
    PathArg,
    check_id,
    check_items,
    check_mode,
    check_no_directories,
    short,
)
from .cgroup import Cgroup
from .errors import (
    NamespaceError,
    PlanError,
    PlanIndexError,
    PlanOverflowError,
    PlanTypeError,
    SpawnError,
    Step,
    bad_descriptor,
    spawn_error,
)
from .namespace import Namespace, check_kind
from .result import Reason, Result, Usage
from .terminal import Terminal

Args = PathArg | Sequence[PathArg]
Starter = Callable[[Request, Child], None]


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


class ProcessNamespaces(Mapping[str, Namespace]):
    """
    The namespaces of a process, by kind.

    Each look-up opens the namespace anew; the caller owns what it gets.
    """

    def __init__(self, process: "Process") -> None:
        self._process = process

    def __getitem__(self, kind: str) -> Namespace:
        """
        Open one of the namespaces.

        Raises:
            KeyError: If there is no such kind.
            NamespaceError: If the process has ended (ENOENT), or may not be
                inspected (EACCES).
        """
        if kind not in NAMESPACE_FLAGS:
            raise KeyError(kind)
        namespace = Namespace.of(self._process.pid, check_kind(kind))
        # The number could be another process's by now, unless ours has not been reaped.
        if self._process.pidfd is None:
            namespace.close()
            raise NamespaceError(errno.ENOENT, Step.NAMESPACE_OPEN, hint="the process has ended")
        return namespace

    def __contains__(self, kind: object) -> bool:
        return kind in NAMESPACE_FLAGS

    def __repr__(self) -> str:
        return f"<nsbox.ProcessNamespaces of process {self._process.pid}>"

    def __iter__(self) -> Iterator[str]:
        return iter(NAMESPACE_FLAGS)

    def __len__(self) -> int:
        return len(NAMESPACE_FLAGS)


class Process(subprocess.Popen[Any]):
    """
    A payload that was started by ``Sandbox.spawn()``; users do not construct it.

    Everything that is documented for :class:`subprocess.Popen` holds. With the
    default ``pid="new"`` the payload is the init of its pid namespace: when it
    ends or is killed, every process of the sandbox is gone, before ``wait()``
    returns.

    Attributes:
        args: As they were given.
        pid: Process id in the caller's pid namespace.
        returncode: None while it runs; exit status, or -N for signal N.
        stdin: A writable file, if PIPE was asked for.
        stdout: A readable file, if PIPE was asked for.
        stderr: A readable file, if PIPE was asked for.
        pty: The other end of its terminal, a :class:`Terminal`, if pty was asked for.
        usage: A Usage once it has ended and been waited for; else None.
        reason: A Reason, likewise.
    """

    returncode: int | Any = None
    pty: Terminal | None = None
    _outlives: ClassVar[bool] = False  # whoever gives up the object
    _capture: Capture | None = None
    _verdict: Verdict | None = None

    def __init__(
        self,
        place: Place,
        args: Args,
        *,
        controlling_terminal: bool = False,
        attended: bool,
        terminal: Terminal | None = None,
        **options: Any,
    ) -> None:
        self._place = place
        self._child = Child(outlives=self._outlives)
        self.pty = terminal
        self._attended = attended
        self._controlling_terminal = controlling_terminal
        _check_text_layer(options.get("encoding"), options.get("errors"))
        _check_descriptors(options)
        try:
            super().__init__(args, **options)
        except BaseException as error:
            _close_lost_pipes(error)
            raise

    @classmethod
    def plain(
        cls, place: Place, args: Args, env: Mapping[str, str], cwd: str, *, attended: bool
    ) -> Self:
        """
        Start a process with the caller's streams, for which Popen's constructor has little to do.

        The same as the constructor with these arguments, and not through Popen's: that takes
        longer than all else here.
        """
        if not _SHARED:
            return cls(place, args, env=env, cwd=cwd, attended=attended)
        self = cls.__new__(cls)
        self.args, self._place = args, place
        self._child = Child()
        argv = _strings(args)
        if argv is None:
            argv, _ = _arguments(args, None, shell=False)
        request = Request(argv, argv[0], env, cwd)
        if attended:
            request.attended = True
        self._begin(request, args)
        return self

    # ---- starting ----

    def _execute_child(
        self,
        args: Any,
        executable: Any,
        preexec_fn: Any,
        close_fds: Any,
        pass_fds: Any,
        cwd: Any,
        env: Any,
        startupinfo: Any,
        creationflags: Any,
        shell: Any,
        p2cread: int,
        p2cwrite: int,
        c2pread: int,
        c2pwrite: int,
        errread: int,
        errwrite: int,
        restore_signals: Any,
        gid: Any,
        gids: Any,
        uid: Any,
        umask: int,
        start_new_session: Any,
        process_group: Any,
    ) -> None:
        if preexec_fn is not None:
            raise PlanError(_NO_PREEXEC_FN)
        argv, program = _arguments(args, executable, shell=shell)
        request = Request(argv, program, env, cwd)
        request.stdio = p2cread, c2pwrite, errwrite
        request.pass_fds = [fd for fd in (pass_fds if close_fds else _inheritable()) if fd > 2]
        request.inherit = not close_fds
        request.umask = _umask(umask)
        request.setsid = bool(start_new_session)
        request.process_group = _process_group(process_group, leads=request.setsid)
        request.restore_signals = bool(restore_signals)
        request.controlling_terminal = self._controlling_terminal
        request.attended = self._attended
        request.terminal = self.pty
        if (uid, gid, gids) != (None, None, None):
            groups = None if gids is None else [check_id("extra_groups", group) for group in gids]
            request.ids = Ids(_id("user", uid), _id("group", gid), groups)
        self._begin(request, args)
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]

    def _begin(self, request: Request, args: Any) -> None:
        """Start what is asked for."""
        _check_streams(request)
        sys.audit("nsbox.spawn", request.executable, args, request.cwd)
        place = self._place
        try:
            if place.fence is not None:
                placement = place.fence.open()
                if placement is not NOWHERE:
                    request.placement = placement
            place.start(request, self._child)
            self.pid = int(self._child.record.pid)
            self._child_created = True
            if place.fence is not None:
                place.fence.started()
        except BaseException as error:
            fence = place.fence
            if fence is not None and isinstance(error, SpawnError):
                fence.advise(error)
            # A signal handler raised when the child was there already.
            self._abandon()
            raise

    def _abandon(self) -> bool:
        """Kill and reap the child if there is one, remove its cgroup; tell if there was one."""
        running = self._child.discard()
        if self._place.fence is not None:
            self._place.fence.discard()
        return running

    @property
    def enforced(self) -> Enforced:
        """The layers that are in force."""
        return self._child.source.enforced(new_session=self._child.request.setsid)

    @property
    def cgroup(self) -> Cgroup | None:
        """Its cgroup, None without limits that need one; closed when it has been waited for."""
        return None if self._place.fence is None else self._place.fence.cgroup

    @property
    def degraded(self) -> frozenset[str]:
        """Limits that were left out, as ``Limits(degrade=...)`` allowed."""
        return frozenset() if self._place.fence is None else self._place.fence.degraded

    @property
    def pidfd(self) -> int | None:
        """
        A file descriptor of the process, which this object owns.

        None once the process has been waited for. Becomes readable when it ends. An event
        loop that watches it must let go of it before anything waits: use spawn_async().
        """
        pidfd = self._child.pidfd
        return pidfd if pidfd >= 0 else None

    @property
    def namespaces(self) -> ProcessNamespaces:
        """The namespaces that the process is in, by kind."""
        return ProcessNamespaces(self)

    @property
    def usage(self) -> Usage | None:
        """What it has used, once it has ended and been waited for."""
        return None if self._verdict is None else self._verdict.usage()

    @property
    def reason(self) -> Reason | None:
        """Why it ended, once it has ended and been waited for."""
        return None if self._verdict is None else self._verdict.reason

    # ---- waiting ----

    def _look(self, timeout: int) -> None:
        """Take note of the end, if it comes within so many milliseconds (negative: for ever)."""
        end = self._child.wait(timeout)
        if end is None:
            return
        fence = self._place.fence
        self._verdict = Verdict(end) if fence is None else fence.end(end)
        self.returncode = end.returncode

    def _internal_poll(self, _deadstate: int | None = None, **_: Any) -> int | None:
        if self.returncode is None:
            self._look(0)
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        if deadline != deadline:  # which would never come, and not be waited for either
            raise PlanError(f"timeout: {timeout!r} is no number of seconds")
        # A signal ends a look, too; its Python handler runs before the next.
        while self.returncode is None:
            if deadline is None:
                self._look(-1)
                continue
            # The core takes milliseconds that fit an int: at most an hour at a time.
            remaining = min(max(0.0, deadline - time.monotonic()), 3600)
            self._look(math.ceil(remaining * 1000))
            if self.returncode is None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode

    def finish(self, input: Any, timeout: float | None) -> tuple[Any, Any]:
        """
        Communicate; which is but to wait for a process with the caller's streams.

        Meanwhile what the next one like it will need is made ready.
        """
        if self._place.fence is not None:
            self._place.fence.prepare_next()
        asked = self.stdin, self.stdout, self.stderr, self.pty, input, timeout
        # In the caller's session Ctrl-C is for it, too, and Popen gives it a moment then.
        if asked != _NOTHING or not self._child.request.setsid:
            return self.communicate(input, timeout=timeout)
        while self.returncode is None:
            self._look(-1)
        return None, None

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """
        As subprocess.Popen's; a limit of output ends it when that is reached.

        What was captured up to the limit is returned, and the sandbox is killed. With pty
        what the terminal shows takes the place of stdout, and there is no input.
        """
        limit = self.output_limit
        if limit is None and self.pty is None:
            return super().communicate(input, timeout)
        if input is not None and self.pty is not None:
            raise ValueError("with pty there is no end of an input: write to process.pty")
        if self._capture is None:
            self._capture = Capture(self, input, limit)
        elif input is not None:
            raise ValueError("Cannot send input after starting communication")
        return self._capture.run(timeout)

    @property
    def output_limit(self) -> int | None:
        """How many bytes of output may be captured: Limits.output."""
        return None if self._place.fence is None else self._place.fence.output

    @property
    def codec(self) -> Codec | None:
        """How its text layer encodes; None for bytes."""
        if not self.text_mode:  # type: ignore[attr-defined]
            return None
        return Codec(self.encoding, self.errors or "strict")  # type: ignore[attr-defined]

    def end_for_output(self) -> None:
        """Kill the sandbox because it has written more than may be captured."""
        assert self._place.fence is not None
        self._place.fence.output_reached = True
        self.kill()
        self._place.fence.kill()
        if self._verdict is not None:
            self._verdict.cause = Reason.OUTPUT  # also if it had been waited for before

    def result(self, stdout: Any, stderr: Any, size: int | None = None) -> Result:
        """
        Return the Result of a process that has been waited for, with what was captured.

        Args:
            stdout: What was captured, or None.
            stderr: Likewise.
            size: Bytes of both, where that is known.

        Raises:
            SpawnError: If it was an attended start, and has failed. Not before: whoever kills
                it, or is interrupted, would be told in the place of who waits.
        """
        child = self._child
        if child.record.step:
            error = child.source.failure(child)
            error.attended = True
            raise error
        if self._verdict is None:
            raise ValueError("the process has not been waited for")
        if self._capture is not None and size is None:
            size = self._capture.size
        elif size is None and (stdout is not None or stderr is not None):
            size = _size(stdout, stderr)
        result = Result(self.args, self.returncode, stdout, stderr, self._verdict, size)
        fence = self._place.fence
        if fence is not None and fence.degraded:
            result.degraded = fence.degraded
        result.enforced = child.source.enforced(new_session=child.request.setsid)
        if self.returncode == -signal.SIGSYS and result.reason is Reason.SECCOMP:
            result.refused_call = killed_call(child.pid, result.usage.wall_time)
        return result

    # ---- a terminal of its own ----

    def interact(self) -> int:
        """
        Connect the caller's terminal with the payload's, until one of them ends, and wait.

        The caller's is in raw mode meanwhile: each key, Ctrl-C too, goes to the payload,
        whose terminal follows it in size. Afterwards it is as it was before, whatever
        has happened: the payload was killed, a handler has raised, or a signal comes that
        ends the caller (but for SIGKILL).

        Returns:
            The returncode.

        Raises:
            PlanError: Without pty, if stdin is not a terminal, or in another thread than the
                main one.
        """
        if self.pty is None:
            raise PlanError("interact(): it has no terminal of its own: spawn(..., pty=True)")
        pidfd = self.pidfd
        connect(self.pty, None if pidfd is None else Descriptor.duplicate(pidfd))
        return self.wait()

    def __exit__(self, *error: Any) -> None:
        """As subprocess.Popen's: close the pipes, hang the terminal up, and wait."""
        if self.pty is not None:
            self.pty.close()
        super().__exit__(*error)

    # ---- ending ----

    def send_signal(self, sig: int) -> None:
        """
        Send a signal to the process; nothing happens if it has ended.

        A payload that is the init of its pid namespace (the default) ignores
        every signal that it has no handler for, except SIGKILL and SIGSTOP:
        pid_namespaces(7).
        """
        self.poll()
        self._child.signal(sig)

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        if self.returncode is not None:
            return
        child = getattr(self, "_child", None)
        if child is not None and self._abandon():
            _warn(f"sandboxed process {child.pid} was still running", ResourceWarning, source=self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a running process cannot be pickled; pickle its Sandbox instead")


class _Unstarted(subprocess.Popen[Any]):
    """What the constructor leaves behind, but no process."""

    def _execute_child(self, *_: Any) -> None:
        """Start nothing."""


def _share_state_of_popen() -> bool:
    """
    Give Process the attributes that Popen's constructor gives one with the caller's streams.

    It is asked, since another version may have others. Tell whether all of them may be those of
    the class: if not, each process has to be made by the constructor.
    """
    state = vars(_Unstarted([]))
    del state["args"], state["returncode"]
    lock = state.pop("_waitpid_lock", None)  # of who waits by pid, which nobody does
    if not all(value is None or isinstance(value, (bool, int, float)) for value in state.values()):
        return False
    for name, value in {**state, "_waitpid_lock": lock}.items():
        setattr(Process, name, value)
    return True


_SHARED: Final = _share_state_of_popen()

_NO_PREEXEC_FN: Final = (
    "preexec_fn: between clone and exec the child shares the caller's memory, so no Python can run "
    "there; use start_new_session, process_group, umask, cwd, env, user, group, extra_groups, "
    "pass_fds or restore_signals, or let the program be one that prepares itself and then execs"
)


def _size(stdout: Any, stderr: Any) -> int | None:
    """Return how many bytes were captured, None for text."""
    found = [data for data in (stdout, stderr) if data is not None]
    if not all(isinstance(data, bytes) for data in found):
        return None
    return sum(map(len, found))


def _umask(umask: Any) -> int:
    """Return -1 for none, as Popen has it for every number below zero."""
    return -1 if isinstance(umask, int) and umask < 0 else check_mode("umask", umask)


def _process_group(value: Any, *, leads: bool) -> int:
    """Return -1 for none; the leader of a new session leads a new process group already."""
    if not isinstance(value, int):
        raise PlanTypeError(f"process_group: must be an int, not {value!r}")
    if value >= 1 << 31:
        raise PlanOverflowError(f"process_group: {short(value)} is no id of a process")
    return -1 if leads and value == 0 else value


def _id(name: str, value: int | None) -> int | None:
    if value is not None and value > MAX_ID:
        raise PlanOverflowError(f"{name}: an id is at most {MAX_ID}")
    return value


def _check_text_layer(encoding: str | None, errors: str | None) -> None:
    """Popen would find out when the pipes are there, and leave one of them open."""
    if encoding is not None or errors is not None:
        io.TextIOWrapper(io.BytesIO(), encoding, errors)


def _close_lost_pipes(error: BaseException) -> None:
    """
    Close what Popen had opened for the streams when it could not open more.

    From 3.11.4 on it does that itself. Nobody but the frame that has failed knows of them.
    """
    if hasattr(subprocess.Popen, "_on_error_fd_closer"):
        return
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code is not _GET_HANDLES:
        trace = trace.tb_next
    if trace is None:
        return
    found = trace.tb_frame.f_locals
    pipes = [ends for stream, *ends in _ENDS if found[stream] == subprocess.PIPE]
    # A signal's handler may have raised before the first line.
    lost = [found.get(end, -1) for ends in pipes for end in ends]
    for fd in (*lost, getattr(found["self"], "_devnull", -1)):
        if fd >= 0:
            os.close(fd)


_GET_HANDLES: Final = subprocess.Popen._get_handles.__code__  # type: ignore[attr-defined]
_ENDS: Final = (
    ("stdin", "p2cread", "p2cwrite"),
    ("stdout", "c2pread", "c2pwrite"),
    ("stderr", "errread", "errwrite"),
)
"""Its parameters, and what it calls the ends of a pipe for each."""


def _check_descriptors(options: Mapping[str, Any]) -> None:
    """
    Refuse descriptors that are not open.

    Before any pipe is made: it could get such a number, and its other end would
    end up in the payload.
    """
    for name in ("stdin", "stdout", "stderr"):
        fd = options.get(name)
        if fd is None:
            continue
        if isinstance(fd, (str, bytes, os.PathLike)) and not hasattr(fd, "fileno"):
            raise PlanTypeError(f"{name}: open() the file; {fd!r} is only its path")
        if isinstance(fd, int) and fd not in _SPECIAL:
            _check_open(Step.DUP, fd)
    for fd in options.get("pass_fds", ()):
        if not isinstance(fd, int):
            raise PlanTypeError(f"pass_fds: {fd!r} is not an int")
        if fd < 0:
            raise PlanError(f"pass_fds: {fd} is not a file descriptor")
        _check_open(Step.PASS_FD, fd)


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


_NOTHING: Final = (None,) * 6

_SPECIAL: Final = (subprocess.PIPE, subprocess.DEVNULL, subprocess.STDOUT)


def _check_open(step: Step, fd: int) -> None:
    try:
        os.get_inheritable(fd)
    except OSError as error:
        raise bad_descriptor(error.errno or 0, step, fd) from None
    except OverflowError:
        raise PlanError(f"{short(fd)} is not a file descriptor") from None


def _inheritable() -> list[int]:
    """Return what close_fds=False hands on; the child looks again, when it is made."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
        except OSError:
            pass  # closed since, as is the one that listed them
    check_no_directories(found, ())
    return found


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


def _arguments(args: Any, executable: Any, *, shell: bool) -> tuple[list[bytes], bytes]:
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
