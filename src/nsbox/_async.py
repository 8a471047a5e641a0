"""
Processes and runs for asyncio: the same sandboxes, waited for by the event loop.

The loop watches the pidfd and the pipes: no thread, no child watcher, no signal
handler. Any loop will do that has add_reader() and add_writer(), as uvloop's.
"""

import asyncio
import errno
import io
import subprocess
import weakref
from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import IO, Any, Final, NoReturn, Self, Unpack

from ._calls import Descriptor
from ._constants import ANYWHERE
from ._layers import Enforced
from ._output import Captured, encoded
from ._payload import Args
from ._run import STREAM_LIMIT, SpawnOptions, prepare
from ._streams import ReadPipe, WritePipe
from .cgroup import Cgroup
from .errors import PlanError, SpawnError, Step, spawn_error
from .process import Process, ProcessNamespaces
from .result import Reason, Result, Usage
from .terminal import Terminal

_TICK: Final = 0.1
"""Seconds between two looks at a process that has ended, and of which nobody says how."""


class AsyncProcess:
    """
    A payload that was started by ``Sandbox.spawn_async()``; users do not construct it.

    Shaped like :class:`asyncio.subprocess.Process`, for the tasks of the loop that it
    was started in. Whoever leaves ``async with`` by an exception, a CancelledError
    for example, kills the sandbox. One that nobody holds any more is killed, too.

    Attributes:
        stdin: An asyncio.StreamWriter, if PIPE was asked for; else None.
        stdout: An asyncio.StreamReader, likewise.
        stderr: An asyncio.StreamReader, likewise.
    """

    stdin: asyncio.StreamWriter | None = None
    stdout: asyncio.StreamReader | None = None
    stderr: asyncio.StreamReader | None = None

    def __init__(self, process: Process) -> None:
        """
        Args:
            process: Started with bufsize=0.
        """
        self._process = process
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()
        self._talking = False
        self._alone = False
        self._stdin: WritePipe | None = None
        self._outputs: list[ReadPipe | None] = []

    def _attach(self, limit: int) -> None:
        """
        Hand it to the running loop: its streams, and its end.

        Not when it is made: who handles what is raised in here needs the object.

        Args:
            limit: Of each stream, in bytes.
        """
        self._loop = loop = asyncio.get_running_loop()
        process = self._process
        pipes = process.stdin, process.stdout, process.stderr
        stdin, stdout, stderr = map(_raw, pipes)
        if process.pty is not None:
            stdin, stdout = _writable(process.pty), process.pty
        self._captured = Captured((stdout, stderr), process.codec, process.output_limit)
        self._stdin = None if stdin is None else WritePipe(stdin, loop)
        typing = None if process.pty is None else self._stdin
        for pipe in (stdout, stderr):
            self._outputs.append(None if pipe is None else ReadPipe(pipe, limit, loop, typing))
        self._view = _View(self, loop)
        self.stdin = None if self._stdin is None else self._stdin.writer
        self.stdout, self.stderr = (None if pipe is None else pipe.reader for pipe in self._outputs)

    # ---- what it is ----

    @property
    def args(self) -> Any:
        """As they were given."""
        return self._process.args

    @property
    def pid(self) -> int:
        """Process id in the caller's pid namespace."""
        return self._process.pid

    @property
    def pidfd(self) -> int | None:
        """A file descriptor of the process; None once it has ended and the loop has noticed."""
        return self._process.pidfd

    @property
    def returncode(self) -> int | None:
        """None until the loop has noticed its end; exit status, or -N for signal N."""
        return self._process.returncode

    @property
    def reason(self) -> Reason | None:
        """Why it ended; None until then."""
        return self._process.reason

    @property
    def usage(self) -> Usage | None:
        """What it used; None until it has ended."""
        return self._process.usage

    @property
    def pty(self) -> Terminal | None:
        """The other end of its terminal, which stdin writes and stdout reads, to resize it."""
        return self._process.pty

    @property
    def enforced(self) -> Enforced:
        """The layers that are in force."""
        return self._process.enforced

    @property
    def cgroup(self) -> Cgroup | None:
        """Its cgroup, as for Process."""
        return self._process.cgroup

    @property
    def degraded(self) -> frozenset[str]:
        """Limits that were left out, as ``Limits(degrade=...)`` allowed."""
        return self._process.degraded

    @property
    def namespaces(self) -> ProcessNamespaces:
        """The namespaces that the process is in, by kind."""
        return self._process.namespaces

    def __repr__(self) -> str:
        return f"<AsyncProcess: pid: {self.pid} returncode: {self.returncode} args: {self.args!r}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a running process cannot be pickled; pickle its Sandbox instead")

    # ---- waiting ----

    async def wait(self) -> int:
        """
        Wait for its end, and return the returncode.

        A payload that fills a pipe which nobody reads does not end: see
        :meth:`communicate`.

        Raises:
            PlanError: If it was started in another loop, which alone hears of its end.
        """
        self._check_loop()
        await self._ended.wait()
        return self._process.wait()

    async def communicate(self, input: Any = None) -> tuple[Any, Any]:
        """
        Write input to stdin and close it, read stdout and stderr to their ends, and wait.

        A limit of output ends it when that is reached: what was captured up to the limit
        is returned, and the sandbox is killed. One that was cancelled can be
        continued by another, which loses nothing.

        Args:
            input: Bytes, or None.

        Returns:
            What came from stdout and stderr; None where there is no pipe.

        Raises:
            ValueError: For input when an earlier call had its own.
            PlanError: If it was started in another loop.
        """
        self._check_loop()
        if input is not None and self._talking:
            raise ValueError("Cannot send input after starting communication")
        data = encoded(self._process.codec, input)
        self._talking = True
        if self.stdin is not None:
            self.stdin.write(data)  # not in a task, which can be cancelled before it begins
        await asyncio.gather(*self._exchanges())
        if self._captured.over:
            self._process.end_for_output()
        await self.wait()
        return self._captured.result()

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise PlanError(
                "the process was started in another event loop: wait there "
                "(asyncio.run_coroutine_threadsafe), or spawn() it and wait in a thread"
            )

    def _exchanges(self) -> Iterator[Coroutine[Any, Any, None]]:
        if self.stdin is not None:
            yield self._feed(self.stdin)
        for number, reader in enumerate((self.stdout, self.stderr)):
            if reader is not None:
                yield self._collect(number, reader)

    async def _feed(self, stdin: asyncio.StreamWriter) -> None:
        try:
            await stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            pass  # as Popen.communicate(): the payload is not interested
        stdin.close()

    async def _collect(self, number: int, reader: asyncio.StreamReader) -> None:
        while not self._captured.over and (data := await reader.read(self._captured.room())):
            self._captured.add(number, data)
        if self._captured.over:
            self._close(abort=True)  # which ends the other exchanges

    # ---- ending ----

    def send_signal(self, signal: int) -> None:
        """Send a signal, as Process.send_signal(); nothing happens if it has ended."""
        self._process.send_signal(signal)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL; with the payload, all of its pid namespace dies."""
        self._process.kill()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Close the streams and wait for its end; after an exception, kill it before."""
        if error is not None:
            await self._give_up(error)
            return
        self._close(abort=False)
        try:
            await self.wait()
        except BaseException as cancelled:
            await self._give_up(cancelled)
            raise

    async def _give_up(self, error: BaseException) -> None:
        """
        Kill it, reap it, and close everything, whatever comes.

        Who is cancelled may wait, and others go on while the kernel takes the sandbox down.
        Who is cancelled again, or interrupted, or was dropped with the loop, has to do it here.
        """
        self._process.kill()  # first: what it does when its pipes close is not wanted any more
        self._close(abort=True)
        try:
            if isinstance(error, (asyncio.CancelledError, Exception)):
                await self._ended.wait()
        finally:
            self._view.close()
            self._process.wait()

    def _close(self, *, abort: bool) -> None:
        """Close the pipes; with abort, what is still to be written is lost."""
        if self._stdin is not None:
            self._stdin.abort() if abort else self._stdin.close()
        for pipe in self._outputs:
            if pipe is not None:
                pipe.close()

    def _note_end(self) -> bool:
        """The loop has seen something of its end: take note, and tell if it has ended."""
        try:
            if self._process.poll() is None:
                return False
        except BaseException:
            self._ended.set()  # the error is raised again for those who wait
            raise
        self._ended.set()
        if self._alone:
            self._finish()
        return True

    def _finish(self) -> None:
        """Take what is left in the pipes, and close them."""
        if self._stdin is not None:
            self._stdin.abort()
        for pipe in self._outputs:
            if pipe is not None:
                pipe.finish()


class _View:
    """
    What the loop has of a process: descriptors that become readable at its end.

    A pidfd, and what its init, if it is the child of one, tells the end by. The word comes a
    moment later than the end, and may not come at all: the loop does not wait for it.

    They are its own, because a descriptor must leave the loop before it is closed, and whoever
    reaps closes the process's. And it does not hold the process: one that nobody else holds is
    killed, though the loop watches it.
    """

    def __init__(self, process: AsyncProcess, loop: asyncio.AbstractEventLoop) -> None:
        self._process = weakref.ref(process)
        self._loop = loop
        child = process._process._payload.child
        self._watched: list[Descriptor] = []
        try:
            for fd in child.signs_of_end():
                descriptor = Descriptor.duplicate(fd)
                self._watched.append(descriptor)
                loop.add_reader(descriptor.fileno(), self._note_end, descriptor)
        except BaseException:
            self.close()
            raise

    def _note_end(self, descriptor: Descriptor) -> None:
        process = self._process()
        if process is None or process._note_end():
            self.close()
        elif descriptor in self._watched:
            # It stays readable, and tells no more.
            self._watched.remove(descriptor)
            self._loop.remove_reader(descriptor.fileno())
            descriptor.close()
            self._look_again()

    def _look_again(self) -> None:
        process = self._process()
        if process is not None and not process._ended.is_set() and not process._note_end():
            self._loop.call_later(_TICK, self._look_again)

    def close(self) -> None:
        """Look away; without effect the second time."""
        while self._watched:
            descriptor = self._watched.pop()
            if not self._loop.is_closed():  # the collector may have closed the descriptor, too
                self._loop.remove_reader(descriptor.fileno())
            descriptor.close()


def _writable(terminal: Terminal) -> Terminal:
    """Return another descriptor of a terminal, which can be closed without hanging it up."""
    other = Terminal(terminal.initial_size)
    other._master = Descriptor.duplicate(terminal.fileno())
    return other


def _raw(stream: IO[Any] | None) -> Any:
    """Return the unbuffered file of a pipe that was made with bufsize=0."""
    return stream.detach() if isinstance(stream, io.TextIOBase) else stream


_BYTES_ONLY: Final = ("bufsize", "encoding", "errors", "text", "universal_newlines")


def spawn(
    spawn: Callable[..., Process], args: Args, *, limit: int, **options: Unpack[SpawnOptions]
) -> AsyncProcess:
    """
    Start a process: see Sandbox.spawn_async.

    Args:
        spawn: Takes args and options.
    """
    for name in _BYTES_ONLY:
        if name in options:
            raise PlanError(f"{name}: the streams of asyncio carry bytes")
    if not isinstance(limit, int) or limit <= 0:
        raise PlanError(f"limit: must be a positive number of bytes, not {limit!r}")
    return _start(spawn, args, limit, options)


def _start(
    spawn: Callable[..., Process], args: Args, limit: int, options: SpawnOptions
) -> AsyncProcess:
    options["bufsize"] = 0
    process = spawn(args, **options)
    started = AsyncProcess(process)
    try:
        started._attach(limit)
        return started
    except BaseException as error:
        started._close(abort=True)  # before a pipe is: the loop would look at another's number
        process.kill()
        with process:
            if isinstance(error, OSError):
                raise _unwatched(error.errno or errno.EIO) from None
            raise


def _unwatched(code: int) -> SpawnError:
    """Return the error for a process that the loop cannot watch."""
    hint = "fs.epoll.max_user_watches is reached" if code == errno.ENOSPC else ANYWHERE.get(code)
    return spawn_error(code, Step.WATCH, hint=hint)


async def run(
    spawn: Callable[..., Process],
    args: Args,
    *,
    input: Any,
    capture_output: bool,
    timeout: float | None,
    check: bool,
    drain: bool,
    **options: Unpack[SpawnOptions],
) -> Result:
    """
    Spawn, communicate, and return the result: see Sandbox.run_async.

    Args:
        spawn: Takes args and options.
        drain: With the payload die all in its sandbox: nobody else is waited for.
    """
    prepare(options, input, timeout, capture_output=capture_output)
    async with _start(spawn, args, STREAM_LIMIT, options) as process:
        process._alone = drain
        try:
            async with asyncio.timeout(timeout) as deadline:
                stdout, stderr = await process.communicate(input)
        except TimeoutError:
            if timeout is None or not deadline.expired():
                raise
            process.kill()
            captured = await process.communicate() if drain else process._captured.raw()
            raise subprocess.TimeoutExpired(args, timeout, *captured) from None
    result = process._process.result(stdout, stderr, process._captured.size)
    if check:
        result.check_returncode()
    return result
