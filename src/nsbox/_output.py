"""
Communicate with a payload whose output is limited.

As :meth:`subprocess.Popen.communicate`, which has no bound: what a payload
writes there, the caller has to hold in memory.
"""

import codecs
import io
import os
import select
import selectors
import subprocess
import time
from typing import IO, Any, Final, Protocol

_CHUNK: Final = 65536
_PIPE_BUF: Final = select.PIPE_BUF
"""What a pipe that polls as writable takes without blocking."""


class Talker(Protocol):
    """What this needs of a Process."""

    args: Any
    stdin: IO[Any] | None
    stdout: IO[Any] | None
    stderr: IO[Any] | None

    def wait(self, timeout: float | None = None) -> int: ...
    def end_for_output(self) -> None: ...


class Capture:
    """One communication; it can be continued after a timeout."""

    def __init__(self, process: Talker, input: Any, limit: int) -> None:
        """
        Args:
            process: With whom.
            input: str or bytes for its stdin, or None.
            limit: Bytes of stdout and stderr together.
        """
        self._process = process
        self._left = limit
        self._over = False
        self._input = memoryview(_encoded(process.stdin, input)).cast("B")
        self._captured: dict[IO[Any], bytearray] = {}
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                self._captured[stream] = bytearray()
        _flush(process.stdin)

    @property
    def size(self) -> int:
        """How many bytes have been captured."""
        return sum(len(data) for data in self._captured.values())

    def run(self, timeout: float | None) -> tuple[Any, Any]:
        """
        Write and read until the streams end, the process has ended, or the limit is reached.

        Raises:
            subprocess.TimeoutExpired: With what was captured so far.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with selectors.PollSelector() as selector:
            self._register(selector)
            while selector.get_map() and not self._over:
                for key, _ in selector.select(self._remaining(deadline, timeout)):
                    self._serve(selector, key.fileobj)  # type: ignore[arg-type]  # ours
        if self._over:
            self._process.end_for_output()
        self._process.wait(self._remaining(deadline, timeout))
        for stream in self._captured:
            stream.close()
        return self._result(self._process.stdout), self._result(self._process.stderr)

    def _register(self, selector: selectors.BaseSelector) -> None:
        stdin = self._process.stdin
        if stdin is not None and not stdin.closed:
            if self._input:
                selector.register(stdin, selectors.EVENT_WRITE)
            else:
                _close(stdin)
        for stream in self._captured:
            if not stream.closed:
                selector.register(stream, selectors.EVENT_READ)

    def _remaining(self, deadline: float | None, timeout: float | None) -> float | None:
        if deadline is None:
            return None
        remaining = deadline - time.monotonic()
        if remaining < 0:
            captured = [
                None if stream is None else bytes(self._captured[stream])
                for stream in (self._process.stdout, self._process.stderr)
            ]
            raise subprocess.TimeoutExpired(self._process.args, timeout or 0.0, *captured)
        return remaining

    def _serve(self, selector: selectors.BaseSelector, stream: IO[Any]) -> None:
        if stream is self._process.stdin:
            if not self._feed(stream):
                selector.unregister(stream)
                _close(stream)
            return
        data = os.read(stream.fileno(), min(_CHUNK, self._left + 1))
        if not data:
            selector.unregister(stream)
            stream.close()
            return
        self._over = len(data) > self._left
        self._captured[stream] += data[: self._left]
        self._left -= min(len(data), self._left)

    def _feed(self, stream: IO[Any]) -> bool:
        """Write a part of the input; tell whether there is more to write."""
        try:
            written = os.write(stream.fileno(), self._input[:_PIPE_BUF])
        except BrokenPipeError:
            return False
        self._input = self._input[written:]
        return len(self._input) > 0

    def _result(self, stream: IO[Any] | None) -> Any:
        if stream is None:
            return None
        data = bytes(self._captured[stream])
        if not isinstance(stream, io.TextIOBase):
            return data
        encoding, errors = stream.encoding, stream.errors or "strict"
        decoder = codecs.getincrementaldecoder(encoding)(errors)
        # A limit may cut a character in two: its first part is left out.
        text = decoder.decode(data, final=not self._over)
        return text.replace("\r\n", "\n").replace("\r", "\n")


def _encoded(stdin: IO[Any] | None, input: Any) -> bytes:
    if stdin is None or input is None:
        return b""
    if isinstance(stdin, io.TextIOBase):
        encoded: bytes = input.encode(stdin.encoding, stdin.errors or "strict")
        return encoded
    return bytes(memoryview(input))


def _flush(stdin: IO[Any] | None) -> None:
    if stdin is not None:
        try:
            stdin.flush()
        except BrokenPipeError:
            pass  # as communicate(): the payload is not interested


def _close(stdin: IO[Any]) -> None:
    try:
        stdin.close()
    except BrokenPipeError:
        pass
