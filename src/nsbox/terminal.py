"""The caller's end of a payload's terminal."""

import errno
import fcntl
import os
import termios
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, NoReturn, Self

from ._calls import Descriptor
from ._values import short
from .errors import PlanError, PlanTypeError


class TerminalSize(NamedTuple):
    """Rows and columns of a terminal, in characters."""

    rows: int
    columns: int


_UNKNOWN_SIZE: Final = TerminalSize(24, 80)
_CHUNK: Final = 65536
_HOLDS: Final = 1 << 17
"""More bytes than the buffers of a terminal hold."""


class Terminal:
    """
    The other end (the master) of a payload's terminal; users do not construct it.

    What is written here the payload reads as typed, and what it prints is read here,
    in raw bytes: pty(7). A context manager; closing it hangs the payload's terminal up.
    """

    def __init__(self, size: TerminalSize) -> None:
        """
        Args:
            size: To begin with.
        """
        self.initial_size = size
        self._master = Descriptor.none()

    @property
    def slot(self) -> Any:
        """Where the C core puts the descriptor."""
        return self._master.slot

    def fileno(self) -> int:
        """
        Return the descriptor, which this object owns.

        Raises:
            ValueError: If it is closed.
        """
        if self.closed:
            raise ValueError("the terminal is closed")
        return self._master.fileno()

    def read(self, size: int = _CHUNK) -> bytes:
        """
        Read what there is, at most size bytes, and wait if there is nothing.

        Empty when nobody has the terminal open any more (the EIO of a master).
        """
        return read_some(self.fileno(), size)

    def write(self, data: bytes) -> int:
        """Type; return how many of the bytes were taken, as of a raw file."""
        return os.write(self.fileno(), data)

    @property
    def size(self) -> TerminalSize:
        """Rows and columns."""
        return TerminalSize(*termios.tcgetwinsize(self.fileno()))

    def resize(self, rows: int, columns: int) -> None:
        """Set rows and columns; the foreground job inside gets SIGWINCH if that is a change."""
        termios.tcsetwinsize(self.fileno(), check_size((rows, columns)))

    @property
    def closed(self) -> bool:
        """It has been closed."""
        return self._master.fileno() < 0

    def close(self) -> None:
        """Hang up: the session inside gets SIGHUP. Without effect the second time."""
        self._master.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a terminal is a descriptor of this process, and cannot be pickled")

    def __repr__(self) -> str:
        return f"<nsbox.Terminal: {'closed' if self.closed else f'descriptor {self.fileno()}'}>"


def read_some(fd: int, size: int) -> bytes:
    """Read from a pipe or a terminal; empty at the end."""
    try:
        return os.read(fd, size)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""


def read_rest(stream: Any, room: Callable[[], int] = lambda: _HOLDS) -> Iterator[bytes]:
    """
    Read what a pipe holds, or what is on its way through a terminal, and no more than that.

    Somebody else may write there without end.

    Args:
        stream: One that does not block.
        room: Returns how many bytes may be read next.
    """
    fd = stream.fileno()
    left = _HOLDS if isinstance(stream, Terminal) else fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    while left > 0:
        try:
            data = read_some(fd, min(left, room()))
        except BlockingIOError:
            return
        if not data:
            return
        yield data
        left -= len(data)


def check_size(value: object) -> TerminalSize:
    """Return a size, or say what is wrong with it."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise PlanTypeError(f"pty: must be True or (rows, columns), not {value!r}")
    for number in value:
        if not isinstance(number, int) or isinstance(number, bool):
            raise PlanTypeError(f"pty: rows and columns are ints, not {number!r}")
        if not 0 < number < 65536:
            raise PlanError(f"pty: {short(number)} is no number of rows or columns")
    return TerminalSize(*value)


def size_of_caller() -> TerminalSize:
    """Return the size of the caller's terminal, 24 by 80 if there is none that knows its size."""
    for fd in range(3):
        try:
            size = TerminalSize(*termios.tcgetwinsize(fd))
        except (OSError, termios.error):
            continue
        if all(size):
            return size
    return _UNKNOWN_SIZE
