"""
What is made ahead of the spawns of a sandbox, as Python sees it.

See csrc/spare.c: a store for each Sandbox that is used again, and one thread of C for
all of them, which exists only while it has something to make, or to take apart.
"""

import atexit
import os
from typing import Any, Final

from ._forks import this_process
from ._native import ffi, lib


class _Maker:
    """The C core's maker of this process, made when it is needed first."""

    def __init__(self) -> None:
        self._made: list[Any] = []  # the first is the maker
        self._owner = this_process()
        # No thread at a fork: the child has half of what it does, and Python warns of threads.
        os.register_at_fork(
            before=self._stop, after_in_parent=self._resume, after_in_child=self._forget
        )
        atexit.register(self._stop)

    @property
    def pointer(self) -> Any:
        """The maker; NULL without memory for one."""
        self._forget()
        if not self._made:
            made = lib.nsbox_maker_create()
            if made == ffi.NULL:
                return made
            # Without a lock, as in sandbox._Cache: threads may all make one, and all get the first.
            self._made.append(made)
        return self._made[0]

    @property
    def existing(self) -> Any:
        """The maker, NULL if none was needed yet."""
        self._forget()
        return self._made[0] if self._made else ffi.NULL

    def drain(self) -> None:
        if self._made:
            lib.nsbox_maker_drain(self._made[0])

    def settle(self) -> None:
        if self._made:
            lib.nsbox_maker_settle(self._made[0])

    def _stop(self) -> None:
        if self._made:
            lib.nsbox_maker_stop(self._made[0])

    def _resume(self) -> None:
        if self._made:
            lib.nsbox_maker_resume(self._made[0])

    def _forget(self) -> None:
        """Let go of the parent's, in a fork: its thread is not here, and its lock may be held."""
        # Who needs one before the hooks of nsbox run does it, too: a hook of the program's, or what
        # only another thread has, which ends as soon as the fork begins.
        if self._owner == this_process():
            return
        if self._made:
            lib.nsbox_maker_forget(self._made[0])
            self._made = []
        self._owner = this_process()


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
