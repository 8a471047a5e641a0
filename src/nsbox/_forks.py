"""Which process this is: in a fork there are copies of all that its parent has."""

from typing import Final

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
