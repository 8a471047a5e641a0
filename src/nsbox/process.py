"""
A running payload, shaped like :class:`subprocess.Popen` because it is one.

What the standard library does well (pipes, text layers, communicate with its
timeouts) is inherited. What it does by fork and by pid is replaced: starting
goes through the C core, waiting and signalling through the pidfd.

The private parts of Popen that this leans on: ``_execute_child`` (its
signature is checked by a test), ``_close_pipe_fds``, ``_internal_poll``,
``_wait``, ``_waitpid_lock``, ``_child_created`` and ``_sigint_wait_secs``.
"""

import os
import select
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from . import _bridge, _calls
from ._bridge import Child, End, Request
from ._constants import NAMESPACE_FLAGS
from ._values import PathArg
from .errors import PlanError, PlanTypeError, Step
from .namespace import Namespace, check_kind
from .result import Usage

Args = PathArg | Sequence[PathArg]
Starter = Callable[[Request, Child], None]


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
            raise ProcessLookupError("the process has ended")
        return namespace

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
        usage: A Usage once it has ended and been waited for; else None.
    """

    usage: Usage | None

    def __init__(
        self,
        start: Starter,
        environment: Mapping[str, str],
        args: Args,
        *,
        cwd: str,
        start_new_session: bool,
        controlling_terminal: bool,
        die_with_thread: bool,
        **options: Any,
    ) -> None:
        self._start = start
        self._environment = environment
        self._inside_cwd = cwd
        self._setsid = start_new_session
        self._controlling_terminal = controlling_terminal
        self._die_with_thread = die_with_thread
        self._child = Child()
        self._owner = os.getpid()
        self._pidfd_lock = threading.Lock()
        self.usage = None
        self._started_at = time.monotonic()
        _check_descriptors(options)
        super().__init__(args, **options)

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
        argv, program = _arguments(args, executable, shell)
        request = Request(
            argv=argv,
            executable=program,
            env=self._environment,
            cwd=self._inside_cwd,
            stdio=(p2cread, c2pwrite, errwrite),
            pass_fds=[int(fd) for fd in pass_fds if int(fd) > 2],
            umask=umask,
            setsid=self._setsid,
            controlling_terminal=self._controlling_terminal,
            restore_signals=bool(restore_signals),
            die_with_thread=self._die_with_thread,
        )
        sys.audit("nsbox.spawn", program, args, self._inside_cwd)
        try:
            self._start(request, self._child)
            self.pid = self._child.pid
            self._child_created = True
        except BaseException:
            # A signal handler raised when the child was there already.
            _calls.kill_and_reap(self._child.record)
            raise
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]

    @property
    def pidfd(self) -> int | None:
        """
        A file descriptor of the process, which this object owns.

        None once the process has been waited for. Becomes readable when it ends.
        """
        pidfd = self._child.pidfd
        return pidfd if pidfd >= 0 else None

    @property
    def namespaces(self) -> ProcessNamespaces:
        """The namespaces that the process is in, by kind."""
        return ProcessNamespaces(self)

    # ---- waiting ----

    def _ended(self, end: End) -> None:
        """Take note of the end; the caller holds _waitpid_lock."""
        self.usage = Usage(
            wall_time=time.monotonic() - self._started_at,
            user_time=end.user_time,
            system_time=end.system_time,
            voluntary_switches=end.voluntary_switches,
            involuntary_switches=end.involuntary_switches,
        )
        self.returncode = end.returncode
        with self._pidfd_lock:
            self._child.close()

    def _reap(self, *, block: bool) -> None:
        """Wait for the process if it has not been yet; the caller holds _waitpid_lock."""
        if self.returncode is not None:
            return
        try:
            end = _bridge.wait(self._child.pidfd, block=block)
        except ChildProcessError:
            # Reaped by someone else, and the kernel kept no status: as Popen, assume success.
            end = End(0, 0.0, 0.0, 0, 0)
        if end is not None:
            self._ended(end)

    def _internal_poll(self, _deadstate: int | None = None, **_: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                self._reap(block=False)
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if timeout is None:
            self._wait_forever()
        else:
            self._wait_until(time.monotonic() + timeout, timeout)
        return self.returncode

    def _wait_forever(self) -> None:
        while self.returncode is None:
            with self._waitpid_lock:  # type: ignore[attr-defined]
                try:
                    self._reap(block=True)
                except InterruptedError:
                    continue  # the signal's Python handler runs before the next call

    def _wait_until(self, deadline: float, timeout: float) -> None:
        lock: threading.Lock = self._waitpid_lock  # type: ignore[attr-defined]
        remaining = max(0.0, deadline - time.monotonic())
        if not lock.acquire(timeout=min(remaining, threading.TIMEOUT_MAX)):
            raise subprocess.TimeoutExpired(self.args, timeout)
        try:
            while self.returncode is None:
                poll = select.poll()
                poll.register(self._child.pidfd, select.POLLIN)
                # poll takes milliseconds that fit an int: at most an hour at a time.
                remaining = deadline - time.monotonic()
                ready = poll.poll(min(max(0.0, remaining), 3600) * 1000)
                if not ready and remaining <= 3600:
                    raise subprocess.TimeoutExpired(self.args, timeout)
                self._reap(block=False)
        finally:
            lock.release()

    # ---- ending ----

    def send_signal(self, sig: int) -> None:
        """
        Send a signal to the process; nothing happens if it has ended.

        A payload that is the init of its pid namespace (the default) ignores
        every signal that it has no handler for, except SIGKILL and SIGSTOP:
        pid_namespaces(7).
        """
        self.poll()
        with self._pidfd_lock:
            if self._child.pidfd < 0:
                return
            try:
                _calls.pidfd_send_signal(self._child.pidfd, sig)
            except ProcessLookupError:
                pass

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        child = getattr(self, "_child", None)
        # After a fork this may be the parent's process, and none of ours.
        if child is None or child.pidfd < 0 or self._owner != os.getpid():
            return
        _calls.kill_and_reap(child.record)
        _warn(f"sandboxed process {child.pid} was still running", ResourceWarning, source=self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a running process cannot be pickled; pickle its Sandbox instead")


def _check_descriptors(options: Mapping[str, Any]) -> None:
    """
    Refuse descriptors that are not open.

    Before any pipe is made: it could get such a number, and its other end would
    end up in the payload.
    """
    streams = [options.get(name) for name in ("stdin", "stdout", "stderr")]
    special = (subprocess.PIPE, subprocess.DEVNULL, subprocess.STDOUT)
    numbers = [(Step.DUP, fd) for fd in streams if isinstance(fd, int) and fd not in special]
    numbers += [(Step.PASS_FD, fd) for fd in options.get("pass_fds", ())]
    for step, fd in numbers:
        if not isinstance(fd, int):
            raise PlanTypeError(f"pass_fds: {fd!r} is not an int")
        try:
            os.get_inheritable(fd)
        except OSError as error:
            raise _bridge.bad_descriptor(error.errno or 0, step, fd) from None
        except OverflowError:
            raise PlanError(f"{fd} is not a file descriptor") from None


def _arguments(args: Any, executable: Any, shell: bool) -> tuple[list[bytes], bytes]:
    """Return argv and the program to execute, by the rules of subprocess.Popen."""
    if isinstance(args, (str, bytes)) or hasattr(args, "__fspath__"):
        args = [args]
    elif not isinstance(args, Sequence):
        args = list(args)
    if shell:
        args = ["/bin/sh", "-c", *args]
        if executable is not None:
            args[0] = executable
    if not args:
        raise PlanError("args: the argument list is empty")
    argv = [_argument(item) for item in args]
    program = argv[0] if executable is None else _argument(executable)
    if not program:
        raise PlanError("args: the name of the program is empty")
    return argv, program


def _argument(item: Any) -> bytes:
    try:
        encoded = os.fsencode(item)
    except TypeError:
        raise PlanTypeError(
            f"args: every argument must be a str, bytes or os.PathLike, not {item!r}"
        ) from None
    except UnicodeEncodeError:
        raise PlanError(f"args: {item!r} cannot be encoded for the kernel") from None
    if b"\0" in encoded:
        raise PlanError(f"args: {item!r} contains a NUL character")
    return encoded
