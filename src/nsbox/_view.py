"""
What a sandbox that is made ahead must not have missed when it is used.

See csrc/view.c. A cold spawn resolves every path anew; so does, in effect, a start that
looks first whether all of them still lead where they led.
"""

import errno
import os
from collections.abc import Iterable, Sequence
from typing import Final

from ._calls import Descriptor, string_array
from ._constants import NAMESPACE_FLAGS
from ._native import ffi, lib
from ._plan import Code, Op, OpFlag, Plan
from ._values import is_within

_MOUNTS: Final = (Code.BIND, Code.MOUNT, Code.OVERLAY, Code.MASK)
_CHILDREN: Final = {"pid": "pid_for_children", "time": "time_for_children"}


class Paths:
    """
    Paths to look at, for any number of views.

    Args:
        paths: Absolute.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self.array, self._texts = string_array([os.fsencode(path) for path in paths])

    def __len__(self) -> int:
        return len(self._texts)

    def text(self, number: int) -> str:
        """Return one of them."""
        return os.fsdecode(ffi.string(self._texts[number]))


class View:
    """
    What the calling thread sees at some paths, its ids and its mount table.

    Args:
        paths: Which.
        root: A directory that they begin at, and never leave; all of them must exist
            there. Default: the calling thread's, where what is missing is noted, too.
        beside: A view that has to hold with this one.

    Raises:
        OSError: If /proc cannot be read, or a path below root leads nowhere.
    """

    def __init__(
        self,
        paths: Paths,
        root: Descriptor | None = None,
        beside: "View | None" = None,
    ) -> None:
        self._paths = paths
        self._seen = ffi.new("struct nsbox_identity[]", len(paths))
        self._memory = ffi.new(
            "struct nsbox_view *",
            {"paths": paths.array, "seen": self._seen, "n_paths": len(paths), "table": -1},
        )
        # Of all of it: what points into a struct does not keep that. Held, too: see _calls._none().
        self.struct = ffi.gc(self._memory, lib.nsbox_view_close)
        self._root, self._beside = root, beside
        self.struct.root = -1 if root is None else root.fileno()
        if beside is not None:
            self.struct.next = beside.struct
        ret = lib.nsbox_view_take(self.struct)
        if ret < 0:
            raise OSError(-ret, os.strerror(-ret), "/proc/thread-self/mountinfo")
        missing = (number for number, seen in enumerate(self._seen) if seen.inode == 0)
        if root is not None and (number := next(missing, None)) is not None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), paths.text(number))

    def close(self) -> None:
        """Let go of the descriptors; it does not hold any more then."""
        lib.nsbox_view_close(self.struct)
        if self._root is not None:
            self._root.close()
        if self._beside is not None:
            self._beside.close()


def sources(plan: Plan) -> Paths:
    """
    Return what a plan takes from its caller's host: the root, sources, namespaces.

    A device is the same whichever node leads to it, and a spawn has looked at its number.
    The namespaces that are not new matter, because each thread may have entered others;
    but not another user namespace, which a program with threads cannot.
    """
    kinds = [
        _CHILDREN.get(kind, kind)
        for kind, flag in NAMESPACE_FLAGS.items()
        if kind not in ("user", "mnt", *plan.joins) and not plan.clone_flags & flag
    ]
    paths = [op.source for op in plan.ops if op.source and op.code is Code.BIND]
    own = [f"/proc/thread-self/ns/{kind}" for kind in kinds]
    return Paths(["/", *own, *dict.fromkeys(paths)])


def mount_points(plan: Plan) -> Paths:
    """
    Return the paths inside that lead to a mount by directories of the host.

    Whoever may change those can move the mount away, or remove it together with its
    mount point. But for what is within a mask, to which no path leads any more.
    """
    masks = {op.path(plan.ops) for op in plan.ops if op.code is Code.MASK}
    paths = (op.path(plan.ops) for op in plan.ops if _is_on_host(op, plan.ops))
    return Paths(
        path for path in paths if not any(is_within(path, mask) for mask in masks - {path})
    )


def _is_on_host(op: Op, ops: Sequence[Op]) -> bool:
    if op.code not in _MOUNTS or not op.target or OpFlag.IN_SCRATCH in op.flags:
        return False
    return op.parent < 0 or (
        ops[op.parent].code in (Code.BIND, Code.OVERLAY) and OpFlag.OWN not in ops[op.parent].flags
    )
