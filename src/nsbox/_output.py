"""
Communicate with a payload whose output is limited, or comes from a terminal.

As :meth:`subprocess.Popen.communicate`, which has no bound: what a payload
writes there, the caller has to hold in memory.
"""

import codecs
import os
import selectors
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, Final, NamedTuple, Protocol

from .terminal import Terminal, read_rest, read_some

_CHUNK: Final = 65536
"""Bytes to read or write at a time: what a pipe holds."""
_LONGEST: Final = 86400.0
"""Seconds that poll(2) is asked to wait at a time; there are some that it cannot."""

_TICK: Final = 0.1
"""Seconds between two looks at a process that has ended, and of which nobody says how."""


class Codec(NamedTuple):
    """How a text layer encodes and decodes."""

    encoding: str
    errors: str


def encoded(codec: Codec | None, input: Any) -> memoryview:
    """Return the input of a process as bytes; None is empty."""
    if input is None:
        return memoryview(b"")
    if codec is not None:
        input = input.encode(*codec)
    return memoryview(input).cast("B")


class Captured:
    """What a payload has written to stdout and stderr, up to a limit of both together."""

    def __init__(self, streams: Sequence[object], codec: Codec | None, limit: int | None) -> None:
        """
        Args:
            streams: Its stdout and stderr; None where nothing is captured.
            codec: Of its text layer, or None.
            limit: Bytes; None for no limit.
        """
        self._codec = codec
        self._data = [None if stream is None else bytearray() for stream in streams]
        self._limit = limit
        self.size = 0
        self.over = False

    def room(self) -> int:
        """Return how many bytes to read next: one beyond the limit shows that it is exceeded."""
        return _CHUNK if self._limit is None else min(_CHUNK, self._limit - self.size + 1)

    def add(self, number: int, data: bytes) -> None:
        """Take what was read from stdout (0) or stderr (1), as far as it is within the limit."""
        captured = self._data[number]
        assert captured is not None
        if self._limit is not None and len(data) > self._limit - self.size:
            data = data[: self._limit - self.size]
            self.over = True
        captured += data
        self.size += len(data)

    def raw(self) -> list[bytes | None]:
        """Return what there is, as bytes."""
        return [None if data is None else bytes(data) for data in self._data]

    def result(self) -> tuple[Any, Any]:
        """Return what there is, as text if that was asked for."""
        stdout, stderr = map(self._decoded, self.raw())
        return stdout, stderr

    def _decoded(self, data: bytes | None) -> Any:
        if data is None or self._codec is None:
            return data
        encoding, errors = self._codec
        decoder = codecs.getincrementaldecoder(encoding)(errors)
        # A limit may cut a character in two: its first part is left out.
        text = decoder.decode(data, final=not self.over)
        return text.replace("\r\n", "\n").replace("\r", "\n")


class Talker(Protocol):
    """What this needs of a Process."""

    args: Any
    stdin: IO[Any] | None
    stdout: IO[Any] | None
    stderr: IO[Any] | None
    pty: Terminal | None

    @property
    def codec(self) -> Codec | None: ...
    def signs_of_end(self) -> list[int]: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def end_for_output(self) -> None: ...


class Capture:
    """
    One communication; it can be continued after a timeout.

    It does not hold the process, which has it: who is forgotten is killed at once.
    """

    def __init__(self, process: Talker, input: Any, limit: int | None, *, alone: bool) -> None:
        """
        Args:
            process: With whom.
            input: str or bytes for its stdin, or None.
            limit: Bytes of stdout and stderr together; None for no limit.
            alone: With it die all in its sandbox. Others, whom it has handed its streams, may
                keep them open, and write without end: nobody waits for them.
        """
        self._args = process.args
        self._alone = alone
        self._stdin = stdin = process.stdin
        self._input = encoded(process.codec, None if stdin is None else input)
        self._streams = (process.pty or process.stdout, process.stderr)
        self._captured = Captured(self._streams, process.codec, limit)
        _flush(stdin)

    @property
    def size(self) -> int:
        """How many bytes have been captured."""
        return self._captured.size

    def run(self, process: Talker, timeout: float | None) -> tuple[Any, Any]:
        """
        Write and read until the streams end, or the limit is reached; and wait for the end.

        Of one that is alone the end is that of the streams, too.

        Raises:
            subprocess.TimeoutExpired: With what was captured so far, in bytes.
        """
        self.exchange(process, timeout)
        return self._captured.result()

    def raw(self) -> list[bytes | None]:
        """Return what there is, as bytes, also of what was to be text: it need not be any."""
        return self._captured.raw()

    def exchange(self, process: Talker, timeout: float | None) -> None:
        """Do all of run() but for the result."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with selectors.PollSelector() as selector, self._never_blocking():
            self._register(selector)
            signs = process.signs_of_end() if self._alone else []
            told = self._alone and not signs
            for sign in signs:
                selector.register(sign, selectors.EVENT_READ)
            while len(selector.get_map()) > len(signs) and not self._captured.over:
                remaining = self._remaining(deadline, timeout)
                if told:
                    remaining = _TICK if remaining is None else min(_TICK, remaining)
                elif remaining is not None:
                    remaining = min(_LONGEST, remaining)
                for key, _ in selector.select(remaining):
                    if key.fileobj in signs:
                        selector.unregister(key.fileobj)  # it stays readable, and tells no more
                        signs.remove(key.fd)
                        told = True
                    else:
                        self._serve(selector, key.fileobj)
                if told and process.poll() is not None:
                    self._take_rest()
                    break
        if self._captured.over:
            process.end_for_output()
        try:
            process.wait(self._remaining(deadline, timeout))
        except subprocess.TimeoutExpired:
            raise self._expired(timeout) from None
        if self._stdin is not None and not self._stdin.closed:
            _close(self._stdin)
        for stream in self._streams:
            if stream is not None:
                stream.close()

    def _take_rest(self) -> None:
        """Read what is left of a payload with which all have ended who could write."""
        for number, stream in enumerate(self._streams):
            if stream is None or stream.closed or self._captured.over:
                continue
            for data in read_rest(stream, self._captured.room):
                self._captured.add(number, data)
                if self._captured.over:
                    break

    @contextmanager
    def _never_blocking(self) -> Iterator[None]:
        """
        Have reads and writes fail that would have to wait.

        What poll() has said need not be so any more: the payload can shrink a pipe (F_SETPIPE_SZ),
        and, with the caller's user id, open it and read.
        """
        changed: list[Any] = []
        try:
            for stream in (self._stdin, *self._streams):
                if stream is not None and not stream.closed and os.get_blocking(stream.fileno()):
                    changed.append(stream)
                    os.set_blocking(stream.fileno(), False)
            yield
        finally:
            for stream in changed:
                if not stream.closed:
                    os.set_blocking(stream.fileno(), True)

    def _register(self, selector: selectors.BaseSelector) -> None:
        if self._stdin is not None:
            if self._input and not self._stdin.closed:
                selector.register(self._stdin, selectors.EVENT_WRITE)
            else:
                _close(self._stdin)
        for stream in self._streams:
            if stream is not None and not stream.closed:
                selector.register(stream, selectors.EVENT_READ)

    def _remaining(self, deadline: float | None, timeout: float | None) -> float | None:
        if deadline is None:
            return None
        remaining = deadline - time.monotonic()
        if remaining < 0:
            raise self._expired(timeout)
        return remaining

    def _expired(self, timeout: float | None) -> subprocess.TimeoutExpired:
        return subprocess.TimeoutExpired(self._args, timeout or 0.0, *self._captured.raw())

    def _serve(self, selector: selectors.BaseSelector, stream: Any) -> None:
        if stream == self._stdin:
            if not self._feed(stream):
                selector.unregister(stream)
                _close(stream)
            return
        try:
            data = read_some(stream.fileno(), self._captured.room())
        except BlockingIOError:
            return
        if not data:
            selector.unregister(stream)
            stream.close()
            return
        self._captured.add(self._streams.index(stream), data)

    def _feed(self, stream: IO[Any]) -> bool:
        """Write a part of the input; tell whether there is more to write."""
        try:
            written = os.write(stream.fileno(), self._input[:_CHUNK])
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False
        self._input = self._input[written:]
        return len(self._input) > 0


def _flush(stdin: IO[Any] | None) -> None:
    if stdin is not None and not stdin.closed:
        try:
            stdin.flush()
        except BrokenPipeError:
            pass  # as communicate(): the payload is not interested


def _close(stdin: IO[Any]) -> None:
    try:
        stdin.close()
    except BrokenPipeError:
        pass
