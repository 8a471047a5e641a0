"""
What is still open at the interpreter's exit, and closed then.

The frame of a thread that is stopped, or another module, can hold an object until nothing
of Python is left that could clear up after it.
"""

import atexit
import warnings
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

T = TypeVar("T")


def snapshot(items: weakref.WeakSet[T]) -> list[T]:
    """Return what is in a set that other threads may change."""
    while True:
        try:
            return list(items)
        except RuntimeError:
            continue  # another thread has added one meanwhile


class Open(weakref.WeakSet[T]):
    """
    The objects of a kind that may be open.

    Args:
        end: Closes one, whatever has been done for that already; returns what to say of it
            if it was open.
    """

    def __init__(self, end: Callable[[T], str | None]) -> None:
        super().__init__()
        self._end = end
        # Twice: if a signal handler raises in the first, nobody else will do the rest.
        atexit.register(self.end_all)
        atexit.register(self.end_all)

    def end_all(self) -> None:
        """Close what is open, and warn of it; what one of them raises keeps no other open."""
        with ExitStack() as stack:
            for item in snapshot(self):
                stack.callback(self._end_one, item)

    def _end_one(self, item: T) -> None:
        text = self._end(item)
        self.discard(item)  # not before all is done
        if text is not None:
            # As warn() has it where no caller is left: it is nobody's line.
            warnings.warn_explicit(text, ResourceWarning, "sys", 1, source=item)
