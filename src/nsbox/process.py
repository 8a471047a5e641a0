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
import os
import subprocess
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Final, Literal, NoReturn

from ._calls import Descriptor
from ._constants import NAMESPACE_FLAGS
from ._fence import Fence
from ._interact import connect
from ._layers import Enforced
from ._output import Capture, Codec
from ._payload import Args, Payload, Place, arguments
from ._request import Ids, Request
from ._values import (
    MAX_ID,
    check_id,
    check_mode,
    check_no_directories,
    short,
)
from .cgroup import Cgroup
from .errors import (
    NamespaceError,
    PlanError,
    PlanOverflowError,
    PlanTypeError,
    Step,
    bad_descriptor,
)
from .namespace import Namespace, check_kind
from .result import Reason, Result, Usage
from .terminal import Terminal

# A Popen that starts its processes in a way of its own cannot be driven by a pidfd. One that only
# adds to the standard library's has that one's method.
if getattr(getattr(subprocess.Popen, "_execute_child", None), "__module__", None) != "subprocess":
    raise ImportError(
        f"subprocess.Popen has been replaced by {subprocess.Popen!r}, which does not start "
        "processes as the standard library's does: import nsbox before that is done (gevent's "
        "monkey.patch_all() is not supported, before or after: it replaces os.close(), too)"
    )


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
    _closed_child_pipe_fds: Iterator[int] | Literal[False] = False

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
        self._payload = Payload(place, attended=attended, outlives=self._outlives)
        self.pty = terminal
        self._controlling_terminal = controlling_terminal
        _check_text_layer(options.get("encoding"), options.get("errors"))
        _check_descriptors(options)
        try:
            super().__init__(args, **options)
        except BaseException as error:
            _close_lost_pipes(error)
            _close_each(self._closed_child_pipe_fds or iter(()))
            raise

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
        argv, program = arguments(args, executable, shell=shell)
        request = Request(argv, program, env, cwd)
        request.stdio = p2cread, c2pwrite, errwrite
        for fd in request.stdio:
            if fd < -1:
                raise bad_descriptor(errno.EBADF, Step.DUP, fd)
        request.pass_fds = [fd for fd in (pass_fds if close_fds else _inheritable()) if fd > 2]
        request.inherit = not close_fds
        request.umask = _umask(umask)
        request.setsid = bool(start_new_session)
        request.process_group = _process_group(process_group, leads=request.setsid)
        request.restore_signals = bool(restore_signals)
        request.controlling_terminal = self._controlling_terminal
        request.terminal = self.pty
        if (uid, gid, gids) != (None, None, None):
            groups = None if gids is None else [check_id("extra_groups", group) for group in gids]
            request.ids = Ids(_id("user", uid), _id("group", gid), groups)
        devnull = getattr(self, "_devnull", -1)
        pipes = (p2cread, p2cwrite), (c2pwrite, c2pread), (errwrite, errread)
        owned = [fd for fd, other in pipes if -1 not in (fd, other) and fd != devnull]
        ends = iter([*owned, devnull] if devnull >= 0 else owned)
        try:
            self._payload.start(request, args)
            # Popen's rest takes it for started from here on.
            self.pid = self._payload.child.pid
            self._child_created = True
        except BaseException:
            self._payload.abandon()
            raise
        # Not by Popen's _close_pipe_fds: if a signal's handler raises before it has noted that they
        # are closed, Popen.__init__ closes them again, and by then the numbers may be others',
        # such as those of the thread that works ahead. What is not False is such a note.
        self._closed_child_pipe_fds = ends
        _close_each(ends)

    @property
    def _fence(self) -> Fence | None:
        return self._payload.place.fence

    @property
    def enforced(self) -> Enforced:
        """The layers that are in force."""
        child = self._payload.child
        return child.source.enforced(new_session=child.request.setsid)

    @property
    def cgroup(self) -> Cgroup | None:
        """Its cgroup, None without limits that need one; closed when it has been waited for."""
        return None if self._fence is None else self._fence.cgroup

    @property
    def degraded(self) -> frozenset[str]:
        """Limits that were left out, as ``Limits(degrade=...)`` allowed."""
        return frozenset() if self._fence is None else self._fence.degraded

    @property
    def pidfd(self) -> int | None:
        """
        A file descriptor of the process, which this object owns.

        None once the process has been waited for. Becomes readable when it ends. An event
        loop that watches it must let go of it before anything waits: use spawn_async().
        """
        pidfd = self._payload.child.pidfd
        return pidfd if pidfd >= 0 else None

    @property
    def namespaces(self) -> ProcessNamespaces:
        """The namespaces that the process is in, by kind."""
        return ProcessNamespaces(self)

    @property
    def usage(self) -> Usage | None:
        """What it has used, once it has ended and been waited for."""
        verdict = self._payload.verdict
        return None if verdict is None else verdict.usage()

    @property
    def reason(self) -> Reason | None:
        """Why it ended, once it has ended and been waited for."""
        verdict = self._payload.verdict
        return None if verdict is None else verdict.reason

    # ---- waiting ----

    def _internal_poll(self, _deadstate: int | None = None, **_: Any) -> int | None:
        if self.returncode is None:
            self._payload.look(0)
            self.returncode = self._payload.returncode
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self.returncode is None:
            self._payload.wait(timeout)
            self.returncode = self._payload.returncode
        assert self.returncode is not None
        return self.returncode

    def prepare_next(self) -> None:
        """Make ready what the next one like it will need: the caller has time."""
        self._payload.prepare_next()

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """
        As subprocess.Popen's; a limit of output ends it when that is reached.

        What was captured up to the limit is returned, and the sandbox is killed. With pty
        what the terminal shows takes the place of stdout, and there is no input.
        """
        return self.converse(input, timeout, alone=False)

    def converse(self, input: Any, timeout: float | None, *, alone: bool) -> tuple[Any, Any]:
        """
        Communicate.

        Args:
            alone: It is over when the process has ended, with which all in its sandbox end.
        """
        limit = self.output_limit
        # Popen's own may wait for the payload in a read or write, whatever its timeout.
        plain = limit is None and self.pty is None and timeout is None and not alone
        begun: bool = self._communication_started  # type: ignore[attr-defined]
        if self._capture is None and (plain or begun):
            return super().communicate(input, timeout)
        if input is not None and self.pty is not None:
            raise ValueError("with pty there is no end of an input: write to process.pty")
        if self._capture is None:
            self._capture = Capture(self, input, limit, alone=alone)
        elif input:
            raise ValueError("Cannot send input after starting communication")
        return self._capture.run(self, timeout)

    def take_rest(self) -> list[bytes | None]:
        """Return all that one has written which is alone and has been killed: see converse()."""
        if self._capture is None:
            self._capture = Capture(self, None, self.output_limit, alone=True)
        self._capture.exchange(self, None)
        return self._capture.raw()

    def signs_of_end(self) -> list[int]:
        """Return descriptors that become readable when the end may be known; none once it is."""
        return self._payload.child.signs_of_end()

    @property
    def output_limit(self) -> int | None:
        """How many bytes of output may be captured: Limits.output."""
        return None if self._fence is None else self._fence.output

    @property
    def codec(self) -> Codec | None:
        """How its text layer encodes; None for bytes."""
        if not self.text_mode:  # type: ignore[attr-defined]
            return None
        return Codec(self.encoding, self.errors or "strict")  # type: ignore[attr-defined]

    def end_for_output(self) -> None:
        """Kill the sandbox because it has written more than may be captured."""
        assert self._fence is not None
        self._fence.output_reached = True
        self.kill()
        self._fence.kill()
        if self._payload.verdict is not None:
            self._payload.verdict.cause = Reason.OUTPUT  # also if it had been waited for before

    def result(self, stdout: Any, stderr: Any, size: int | None = None) -> Result:
        """Return the Result, with what was captured: see Payload.result."""
        if self._capture is not None and size is None:
            size = self._capture.size
        elif size is None and (stdout is not None or stderr is not None):
            size = _size(stdout, stderr)
        return self._payload.result(stdout, stderr, size)

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
        self._payload.signal(sig)

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        if self.returncode is not None:
            return
        payload = getattr(self, "_payload", None)
        if payload is not None:
            payload.give_up(_warn, self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a running process cannot be pickled; pickle its Sandbox instead")


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


def _close_each(fds: Iterator[int]) -> None:
    """Close what an iterator yields: in one call, between whose steps no signal handler runs."""
    deque(map(os.close, fds), 0)


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
    end up in the payload. A negative number is none of a pipe's: what stdin, stdout or stderr
    means by it is for _get_handles to say, which a subclass may have replaced.
    """
    for name in ("stdin", "stdout", "stderr"):
        fd = options.get(name)
        if fd is None:
            continue
        if isinstance(fd, (str, bytes, os.PathLike)) and not hasattr(fd, "fileno"):
            raise PlanTypeError(f"{name}: open() the file; {fd!r} is only its path")
        if isinstance(fd, int) and fd >= 0:
            _check_open(Step.DUP, fd)
    for fd in options.get("pass_fds", ()):
        if not isinstance(fd, int):
            raise PlanTypeError(f"pass_fds: {fd!r} is not an int")
        if fd < 0:
            raise PlanError(f"pass_fds: {fd} is not a file descriptor")
        _check_open(Step.PASS_FD, fd)


def _check_open(step: Step, fd: int) -> None:
    try:
        os.get_inheritable(fd)
    except OSError as error:
        if error.errno is None:
            raise  # a signal handler's, as a TimeoutError
        raise bad_descriptor(error.errno, step, fd) from None
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
