"""
What is made ahead of the spawns of a sandbox, as Python sees it.

See csrc/spare.c: a store for each Sandbox that is used again, and one thread of C for
all of them, which exists only while it has something to make.
"""

import atexit
import os
from typing import Any, Final

from ._constants import NAMESPACE_FLAGS
from ._native import ffi, lib
from ._plan import Code, Op, OpFlag, Plan


class _Maker:
    """The C core's maker of this process, made when it is needed first."""

    def __init__(self) -> None:
        self._pointer: Any = ffi.NULL
        # No thread at a fork: the child has half of what it does, and Python warns of threads.
        os.register_at_fork(
            before=self._stop, after_in_parent=self._resume, after_in_child=self._forget
        )
        atexit.register(self._stop)

    @property
    def pointer(self) -> Any:
        """The maker; NULL without memory for one."""
        if self._pointer == ffi.NULL:
            self._pointer = lib.nsbox_maker_create()
        return self._pointer

    @property
    def existing(self) -> Any:
        """The maker, NULL if none was needed yet."""
        return self._pointer

    def drain(self) -> None:
        if self._pointer != ffi.NULL:
            lib.nsbox_maker_drain(self._pointer)

    def _stop(self) -> None:
        if self._pointer != ffi.NULL:
            lib.nsbox_maker_stop(self._pointer)

    def _resume(self) -> None:
        if self._pointer != ffi.NULL:
            lib.nsbox_maker_resume(self._pointer)

    def _forget(self) -> None:
        if self._pointer != ffi.NULL:
            lib.nsbox_maker_forget(self._pointer)
            self._pointer = ffi.NULL


maker: Final = _Maker()


def drain() -> None:
    """Let go of all that was made ahead, of every Sandbox, and end the thread."""
    maker.drain()


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
        self.owner = os.getpid()
        # Without memory it is NULL, which does nothing.
        self.pointer = ffi.gc(
            lib.nsbox_store_create(maker.pointer, struct, dumpable), lib.nsbox_store_destroy
        )

    def fill(self) -> int:
        """Make ahead now, whatever has failed before; return how many spawns can use it."""
        return 0 if self.pointer == ffi.NULL else int(lib.nsbox_store_fill(self.pointer))


def can_be_made_ahead(plan: Plan) -> bool:
    """
    Tell whether the spawns of a plan can use a set of namespaces that was made before.

    All that is mounted has to lie in file systems of the sandbox's own: in a tree of the
    host somebody could remove the mount point meanwhile, and the mount with it. An
    overlay shows what its layers were when it was mounted.
    """
    own = NAMESPACE_FLAGS["user"] | NAMESPACE_FLAGS["mnt"]
    procs = [index for index, op in enumerate(plan.ops) if _is_proc(op)]
    return (
        not plan.joins
        and plan.clone_flags & own == own
        and not plan.clone_flags & NAMESPACE_FLAGS["time"]
        and (plan.parent_sources or plan.ids.deny_setgroups)
        and len(procs) <= 1
        and all(_stays(op, plan, procs) for op in plan.ops)
    )


def _is_proc(op: Op) -> bool:
    return op.code is Code.MOUNT and OpFlag.LATE in op.flags


def _stays(op: Op, plan: Plan, procs: list[int]) -> bool:
    if op.code in (Code.SCRATCH, Code.OVERLAY):
        return False
    if op.code is Code.MASK:
        return op.parent == -1 or op.parent in procs
    if op.code not in (Code.BIND, Code.MOUNT) or not op.target:
        return True
    return op.parent >= 0 and OpFlag.OWN in plan.ops[op.parent].flags
