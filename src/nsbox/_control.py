"""
The caller's end of an nsbox-init: a world that stays, and processes started in it.

csrc/control.c speaks the protocol (csrc/protocol.h); here is who owns what. A Control
is nobody's after a fork: the copy closes its descriptors, and raises if it is used.
"""

import errno
import os
import signal
import socket
import weakref
from contextlib import suppress
from enum import IntEnum
from functools import partial
from typing import Any, Final

from ._bridge import Lowered
from ._calls import Descriptor, Layers
from ._child import Child
from ._native import ffi, lib
from ._request import NOWHERE, Placement, Request
from ._spares import Store
from ._values import PathArg
from .errors import SpawnError, Step, spawn_error


class Mode(IntEnum):
    """
    What a process that is started means to its init.

    Args:
        NORMAL: One of any number; the init reports its end, and goes on.
        LAST: The init ends with it, and so does everything else in the world.
        REPLACE: The init becomes it: PID 1, and a child of the caller's like any other.
    """

    NORMAL = int(lib.NSBOX_START_NORMAL)
    LAST = int(lib.NSBOX_START_LAST)
    REPLACE = int(lib.NSBOX_START_REPLACE)


_FLAGS: Final[dict[Mode | None, int]] = {
    Mode.NORMAL: int(lib.NSBOX_REQUEST_STAYS),
    Mode.REPLACE: int(lib.NSBOX_REQUEST_KEEP_FILTER),
}

_controls: Final[weakref.WeakSet["Control"]] = weakref.WeakSet()


def _after_fork() -> None:
    for control in list(_controls):
        control.close()


os.register_at_fork(after_in_child=_after_fork)


class Control:
    """
    An init that waits in a world of its own, all layers of the plan in force.

    Attributes:
        init: The init process: its pid, pidfd and end. Nobody, after a REPLACE.
        layers: Of the overlays, if they were asked for; this object owns them.
        closed: No process can be started any more, by a :meth:`close`, or after a fork.
    """

    closed = False

    def __init__(
        self,
        lowered: Lowered,
        placement: Placement = NOWHERE,
        *,
        layers: bool = False,
        store: Store | None = None,
        mode: Mode | None = None,
    ) -> None:
        """
        Make the world, and start the init in it.

        Args:
            lowered: The plan.
            placement: Where the init goes, and with it all that it starts. Its watch, if
                any, begins now.
            layers: Get descriptors of the layers of overlays.
            store: What was made ahead for a plan without any, or None.
            mode: Of all the processes that it starts, if that is known. NORMAL: the init may take
                its time to be small. REPLACE: the filter is kept until this is closed.

        Raises:
            SpawnError: If a step failed; nothing is left then.
        """
        self._lowered = lowered
        self.layers: list[Layers] = []
        self.init = Child()
        self._memory = ffi.new("struct nsbox_control *", {"socket": -1, "listener": -1})
        self._struct = ffi.gc(self._memory, lib.nsbox_control_close)
        _controls.add(self)
        # Its session is its own; what it executes, and with which streams, is not said here.
        request = Request([b"nsbox-init"], b"nsbox-init", {}, "/")
        request.placement = placement
        flags = _FLAGS.get(mode, 0)
        if layers:
            self._prepare_with_layers(request, flags)
        else:
            lowered.prepare(self._struct, request, self.init, store, flags=flags)

    def _prepare_with_layers(self, request: Request, flags: int) -> None:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise spawn_error(error.errno or errno.EIO, Step.SOCKETPAIR) from None
        try:
            with ours, theirs:
                request.layers = theirs.fileno()
                self._lowered.prepare(self._struct, request, self.init, flags=flags)
                while (received := Layers.receive(ours.fileno())) is not None:
                    self.layers.append(received)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError) and not isinstance(error, SpawnError):
                raise spawn_error(error.errno or errno.EIO, Step.LAYERS) from None
            raise

    def start(self, request: Request, child: Child, mode: Mode = Mode.NORMAL) -> None:
        """
        Start a process, and wait until it executes; any number of threads may.

        Args:
            request: What to start. Its placement is its own: descriptors of cgroups to
                enter, and a watch that begins now.
            child: Receives pid and pidfd; its end comes from the init (REPLACE: the kernel).
            mode: What its end means.

        Raises:
            SpawnError: If a step failed; as from ``Lowered.spawn``. Step "init" with ESRCH:
                the init has ended, or the Control is closed or another process's.
        """
        self._lowered.start(self._struct, request, child, mode)

    def open(self, path: PathArg, flags: int, mode: int = 0) -> Descriptor:
        """
        Open a file of the world, with the payload's rights.

        From its root, ".." refused (EXDEV), no symbolic link followed (ELOOP, or ENOTDIR
        on the way), without waiting for the other end of a FIFO (O_NONBLOCK), no
        controlling terminal, close-on-exec.

        Args:
            path: Absolute, inside.
            flags: Of open(2).
            mode: Of a file that is created; the umask is the init's.

        Raises:
            OSError: What openat(2) inside failed with; ESRCH if the init has ended.
        """
        return Descriptor(path, flags, partial(self._openat, mode))

    def _openat(self, mode: int, path: bytes, flags: int, fd: Any) -> int:
        return int(lib.nsbox_control_openat(self._struct, path, flags, mode, 0, fd))

    def kill(self) -> None:
        """Kill everything in the world; does not wait for the end."""
        self.init.signal(signal.SIGKILL)

    def close(self) -> bool:
        """Kill everything in the world, and wait for that; tell if the init was running."""
        # Before the end of the control can be what ends it; which is what is left to a caller
        # who has changed its ids since.
        with suppress(PermissionError):
            self.kill()
        self.closed = True
        lib.nsbox_control_close(self._struct)
        self.layers = []  # whoever is reading them has a copy of the list
        return self.init.discard()
