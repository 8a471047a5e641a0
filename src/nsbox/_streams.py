"""
Streams of asyncio on the pipes or the terminal of a process.

By add_reader() and add_writer() alone, and not by connect_read_pipe(): uvloop's closes the
descriptor twice, and the second time it may be another thread's. Here nothing waits
either, so nothing can be cancelled half-way, and a pipe is closed when that is asked for.
"""

import asyncio
import os
from typing import IO, Any, Final

from .terminal import Terminal, read_rest, read_some

_CHUNK: Final = 65536
_HIGH: Final = 65536
"""From so many bytes that wait to be written, drain() waits; asyncio's own default."""
_LOW: Final = _HIGH // 4


class ReadPipe(asyncio.ReadTransport):
    """
    Feeds a StreamReader, which pauses and resumes it.

    Args:
        pipe: What it reads.
        limit: Of the reader's buffer.
        loop: Whose it is.
        typing: What writes to the same terminal, at whose end it is over, too.

    Attributes:
        reader: What it feeds.
    """

    def __init__(
        self,
        pipe: IO[bytes] | Terminal,
        limit: int,
        loop: asyncio.AbstractEventLoop,
        typing: "WritePipe | None" = None,
    ) -> None:
        super().__init__({"pipe": pipe})
        self._pipe = pipe
        self._fd = pipe.fileno()
        self._loop = loop
        self._typing = typing
        os.set_blocking(self._fd, False)
        self.reader = asyncio.StreamReader(limit=limit, loop=loop)
        self.reader.set_transport(self)
        self.resume_reading()

    def resume_reading(self) -> None:
        if not self._pipe.closed:
            self._loop.add_reader(self._fd, self._read)

    def pause_reading(self) -> None:
        if not self._pipe.closed:
            self._loop.remove_reader(self._fd)

    def is_closing(self) -> bool:
        return self._pipe.closed

    def close(self) -> None:
        """Close the pipe; what has been read from it is still in the reader."""
        if self._pipe.closed:
            return
        self._loop.remove_reader(self._fd)
        self._pipe.close()
        if not self._loop.is_closed():  # or nobody is there to be told
            self.reader.feed_eof()

    def finish(self) -> None:
        """Close it after what it holds has been read; whoever else writes there is not heard."""
        if not self._pipe.closed:
            for data in read_rest(self._pipe):
                self.reader.feed_data(data)
        self.close()

    def _read(self) -> None:
        try:
            data = read_some(self._fd, _CHUNK)
        except BlockingIOError:
            return
        if data:
            self.reader.feed_data(data)
            return
        self.close()
        if self._typing is not None:
            self._typing.end_by_peer()


class WritePipe(asyncio.WriteTransport):
    """
    Writes what a StreamWriter is given, as the pipe takes it.

    Attributes:
        writer: For whom it writes.
    """

    def __init__(self, pipe: IO[bytes] | Terminal, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__({"pipe": pipe})
        self._pipe = pipe
        self._fd = pipe.fileno()
        self._loop = loop
        self._buffer = bytearray()
        self._closing = False
        self._paused = False
        os.set_blocking(self._fd, False)
        if not isinstance(pipe, Terminal):
            loop.add_reader(self._fd, self.end_by_peer)  # it "can be read" when nobody reads it
        # Of this protocol a writer needs drain() and wait_closed(); there is nothing to read.
        self._protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), loop=loop)
        self._protocol.connection_made(self)
        self.writer = asyncio.StreamWriter(self, self._protocol, None, loop)

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self._closing

    def write(self, data: Any) -> None:
        """Write, or keep for later; without effect after close(), as asyncio has it."""
        if self._closing:
            return
        rest = memoryview(data).cast("B")
        if not self._buffer:
            rest = rest[self._written(rest) :]
        if not rest or self._closing:
            return
        self._loop.add_writer(self._fd, self._flush)
        self._buffer += rest
        if len(self._buffer) > _HIGH and not self._paused:
            self._paused = True
            self._protocol.pause_writing()

    def write_eof(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the pipe as soon as all is written."""
        self._closing = True
        if not self._buffer or self._loop.is_closed():
            self._end(None)

    def abort(self) -> None:
        """Close the pipe; what is not written yet is lost."""
        self._end(None)

    def _flush(self) -> None:
        del self._buffer[: self._written(self._buffer)]
        if self._paused and len(self._buffer) <= _LOW:
            self._paused = False
            self._protocol.resume_writing()
        if not self._buffer:
            self._loop.remove_writer(self._fd)
            if self._closing:
                self._end(None)

    def _written(self, data: bytearray | memoryview) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._end(error)
            return 0

    def end_by_peer(self) -> None:
        """Close the pipe, which nobody reads any more."""
        self._end(BrokenPipeError() if self._buffer else None)

    def _end(self, error: OSError | None) -> None:
        self._closing = True
        self._buffer.clear()
        if self._pipe.closed:
            return
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._pipe.close()
        if not self._loop.is_closed():
            self._protocol.connection_lost(error)
