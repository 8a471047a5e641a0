"""Wakes the thread that works in the background; see csrc/bell.c."""

import math
import os

from ._native import ffi, lib


class Bell:
    """
    Something to wait for, by one thread, that any number of others may ring.

    Args:
        delay: Seconds without another ring until it is heard; from the first one, if it
            is urgent.

    Raises:
        OSError: If there are no descriptors left.
    """

    def __init__(self, delay: float) -> None:
        self._memory = ffi.new(
            "struct nsbox_bell *", {"fd": -1, "delay": max(1, math.ceil(delay * 1e9))}
        )
        self._struct = ffi.gc(self._memory, lib.nsbox_bell_close)
        ret = lib.nsbox_bell_open(self._struct)
        if ret < 0:
            raise OSError(-ret, os.strerror(-ret))

    def ring(self, *, urgent: bool) -> None:
        """Wake who waits, or who will; without effect once it is closed."""
        lib.nsbox_bell_ring(self._struct, urgent)

    def wait(self, timeout: float | None) -> None:
        """
        Wait until it is heard.

        Args:
            timeout: Seconds to wait at most; None: for ever.
        """
        lib.nsbox_bell_await(self._struct, -1 if timeout is None else math.ceil(timeout * 1000))

    def close(self) -> None:
        """Let go of it, when nobody waits any more; without effect the second time."""
        lib.nsbox_bell_close(self._struct)

    def forget(self) -> None:
        """In a fork: close the copy. Whoever may have held its lock is not here."""
        self._struct.lock = 0
        self.close()
