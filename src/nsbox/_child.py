"""A child as the C core tells of it, and its end."""

import errno
import os
from typing import Any, Protocol

from . import _calls
from ._layers import Enforced
from ._native import ffi, lib
from ._request import Request
from .errors import SpawnError


class End:
    """
    How a process ended, as waitid(2) and getrusage(2) tell it.

    Args:
        record: A ``struct nsbox_result *``, which this keeps.
    """

    __slots__ = ("_record", "returncode")

    def __init__(self, record: Any) -> None:
        self._record = record
        self.returncode = int(lib.nsbox_returncode(record))

    @property
    def wall_time(self) -> float:
        """Seconds from the start of the spawn, until the end was seen."""
        return float(lib.nsbox_wall_time(self._record) / 1e9)

    @property
    def user_time(self) -> float:
        """Seconds."""
        return float(self._record.end.user_usec / 1e6)

    @property
    def system_time(self) -> float:
        """Seconds."""
        return float(self._record.end.system_usec / 1e6)

    @property
    def switches(self) -> tuple[int, int]:
        """Context switches: voluntary ones, others."""
        return int(self._record.end.voluntary_switches), int(self._record.end.involuntary_switches)


class Source(Protocol):
    """What a child was started from."""

    def failure(self, child: "Child") -> SpawnError:
        """Return the error for the step of its start that has failed."""

    def enforced(self, *, new_session: bool) -> Enforced:
        """Return the layers that are in force for what this has started."""


class Child:
    """
    What the C core says of a child, and its pidfd.

    Made before the spawn and filled in by C: a signal handler that raises as
    soon as the spawn is over finds the child here and nowhere else. All that
    changes it is one call into C, so it is whole whatever raises in between.
    After a fork it is nobody's child here: it seems to have ended.

    Args:
        outlives: Leave the child alone when nobody holds this any more.

    Attributes:
        source: What it was started from, and
        request: what was asked for.
    """

    __slots__ = ("_memory", "record", "request", "source")

    source: Source
    request: Request

    def __init__(self, *, outlives: bool = False) -> None:
        # Held here too: of a cycle that is collected, the record may be finalised before those
        # who use it in a __del__ of theirs, and lets go of the memory then.
        self._memory = ffi.new("struct nsbox_result *", _calls.NO_RESULT[0])
        # Its destructor is C, too: whoever is forgotten is killed, even if __del__ is interrupted.
        self.record = ffi.gc(self._memory, lib.nsbox_release if outlives else lib.nsbox_discard)

    @property
    def pid(self) -> int:
        return int(self.record.pid)

    @property
    def pidfd(self) -> int:
        """The pidfd, or -1 before the start and once the end is known."""
        return int(self.record.pidfd)

    @property
    def has_init(self) -> bool:
        """Its end is that of an init, which knows how it ended."""
        return bool(self.record.init >= 0)

    def signs_of_end(self) -> list[int]:
        """Return descriptors that become readable when the end may be known; none once it is."""
        record = self.record
        own = (record.init,) if self.has_init else (record.pidfd, record.report)
        return [int(fd) for fd in own if fd >= 0]

    def wait(self, timeout: int) -> End | None:
        """
        Return how the child ended; None if it has not, or a signal came.

        If another part of the program has reaped it, and the kernel (before
        Linux 6.15) has not kept its status, that is taken for 0, as by Popen.

        Args:
            timeout: Milliseconds; negative: for ever.
        """
        ret = lib.nsbox_wait(self.record, timeout)
        if ret == 1:
            return End(self._memory)
        if ret in (0, -errno.EINTR):
            return None
        raise OSError(-ret, os.strerror(-ret))

    def signal(self, sig: int) -> None:
        """Send a signal; nothing happens if the child has ended."""
        ret = lib.nsbox_signal(self.record, sig)
        if ret < 0:
            raise OSError(-ret, os.strerror(-ret))

    def discard(self) -> bool:
        """Kill the child if there is one, and reap it; return whether there was."""
        return bool(lib.nsbox_discard(self.record))
