"""Which process this is: in a fork there are copies of all that its parent has."""

import os
from collections.abc import Callable
from typing import Any, Final

from ._native import ffi, lib

_place: Final = ffi.new("const uint64_t **")
if lib.nsbox_guard_forks(_place) < 0:
    raise MemoryError
_number: Final = _place[0]


def this_process() -> int:
    """
    Return a number that this process has, and none that it is a fork of.

    Whoever makes what a fork must not take for its own notes it, and compares. By whatever call
    the fork is made, and from its first moment on, before any hook: see csrc/forks.c. Who only
    shares this memory, as after vfork(2), has the same number.
    """
    # Mostly it is known, and read where it is: a call into C would let other threads run.
    number: int = _number[0] or lib.nsbox_this_process()
    return number


class Own:
    """
    An object of the C core's of which each process has one, made when it is needed first.

    Args:
        create: Returns one, NULL without memory for it.
        forget: Closes what a fork has a copy of: the threads of its parent's are not here, and
            their locks may be held.
    """

    def __init__(self, create: Callable[[], Any], forget: Callable[[Any], object]) -> None:
        self._create, self._forget = create, forget
        self._made: dict[int, Any] = {}  # by process; of others only in a fork that has not looked
        os.register_at_fork(after_in_child=self._forget_others)

    @property
    def pointer(self) -> Any:
        """The object; NULL without memory for one."""
        found = self.existing
        if found == ffi.NULL and (made := self._create()) != ffi.NULL:
            # Without a lock, as in _cache.Cache: threads may all make one, and all get the first.
            found = self._made.setdefault(this_process(), made)
        return found

    @property
    def existing(self) -> Any:
        """The object, NULL if it was not needed yet."""
        found = self._made.get(this_process())
        if found is None:
            # Who asks in a fork before the hook runs: a hook of the program's, or what only another
            # thread has, which ends as soon as the fork begins.
            self._forget_others()
            found = ffi.NULL
        return found

    def _forget_others(self) -> None:
        for process in self._made.keys() - {this_process()}:
            made = self._made.pop(process, None)  # a signal handler may have asked meanwhile
            if made is not None:
                self._forget(made)
