"""
What is made ahead of the spawns of a sandbox, as Python sees it.

See csrc/spare.c: a store for each Sandbox that is used again, and one thread of C for
all of them, which exists only while it has something to make, or to take apart.
"""

import atexit
import os
from typing import Any, Final

from ._forks import Own, this_process
from ._native import ffi, lib


class _Maker(Own):
    """The C core's maker of this process."""

    def __init__(self) -> None:
        super().__init__(lib.nsbox_maker_create, lib.nsbox_maker_forget)
        # No thread at a fork: the child has half of what it does, and Python warns of threads.
        os.register_at_fork(before=self._stop, after_in_parent=self._resume)
        atexit.register(self._stop)

    def drain(self) -> None:
        if self.existing != ffi.NULL:
            lib.nsbox_maker_drain(self.existing)

    def settle(self) -> None:
        if self.existing != ffi.NULL:
            lib.nsbox_maker_settle(self.existing)

    def _stop(self) -> None:
        if self.existing != ffi.NULL:
            lib.nsbox_maker_stop(self.existing)

    def _resume(self) -> None:
        if self.existing != ffi.NULL:
            lib.nsbox_maker_resume(self.existing)


maker: Final = _Maker()


def drain() -> None:
    """Let go of all that was made ahead, of every Sandbox, and end the thread."""
    maker.drain()


def settle() -> None:
    """Wait until the thread has done all there is to do. Only for who looks at what it has done."""
    maker.settle()


class Store:
    """
    What is made ahead for one plan, of which C keeps a copy.

    Nothing at first; each spawn that is given the store makes it fill itself again. All
    of it is gone when nobody holds the store any more, and in a fork.

    Args:
        struct: The lowered plan.
        dumpable: The note of the process's dumpable mark, or NULL: as for nsbox_spawn.
    """

    def __init__(self, struct: Any, dumpable: Any) -> None:
        self.owner = this_process()
        # Without memory it is NULL, which does nothing.
        self.pointer = ffi.gc(
            lib.nsbox_store_create(maker.pointer, struct, dumpable), lib.nsbox_store_destroy
        )

    def fill(self) -> int:
        """Make ahead now, whatever has failed before; return how many spawns can use it."""
        return 0 if self.pointer == ffi.NULL else int(lib.nsbox_store_fill(self.pointer))
