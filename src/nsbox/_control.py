"""
The caller's end of an nsbox-init: a world that stays, and processes started in it.

csrc/control.c speaks the protocol (csrc/protocol.h); here is who owns what. A Control
is nobody's after a fork: the copy closes its descriptors, and raises if it is used.
"""

import os
import weakref
from enum import IntEnum
from functools import partial
from typing import Final

from . import _init
from ._bridge import NOWHERE, Child, Lowered, Placement, Request
from ._calls import Descriptor
from ._native import ffi, lib
from ._values import PathArg


class Mode(IntEnum):
    """
    What a process that is started means to its init.

    Args:
        NORMAL: One of any number; it reports the end, and goes on.
        LAST: The init ends with it, and so does everything else in the world.
        REPLACE: The init becomes it: PID 1, and a child of the caller's like any other.
    """

    NORMAL = 0
    LAST = int(lib.NSBOX_START_LAST)
    REPLACE = int(lib.NSBOX_START_REPLACE)


class Control:
    """
    An init that waits in a world of its own, all layers of the plan in force.

    Attributes:
        init: The init process: its pid, pidfd and end. After a REPLACE it is nobody.
    """

    def __init__(self, lowered: Lowered, placement: Placement = NOWHERE) -> None:
        """
        Make the world, and start the init in it.

        Args:
            lowered: The plan.
            placement: Where the init goes, and with it all that it starts. Its watch, if
                any, begins now.

        Raises:
            SpawnError: If a step failed; nothing is left then.
        """

    def start(self, request: Request, child: Child, mode: Mode = Mode.NORMAL) -> None:
        """
        Start a process, and wait until it executes; any number of threads may.

        Args:
            request: What to start. Its placement is its own: descriptors of cgroups to
                enter, and a watch that begins now.
            child: Receives pid and pidfd; its end comes from the init (REPLACE: the kernel).

        Raises:
            SpawnError: If a step failed; as from ``Lowered.spawn``. Step "init" with ESRCH:
                the init has ended, or the Control is closed or of another process.
        """

    def open(self, path: PathArg, flags: int, mode: int = 0) -> Descriptor:
        """
        Open a file of the world, with the payload's rights.

        Below its root, no symbolic link followed, without waiting for the other end of a
        FIFO (O_NONBLOCK), no controlling terminal, close-on-exec.

        Raises:
            OSError: What openat2(2) inside failed with; ESRCH if the init has ended.
        """

    @property
    def alive(self) -> bool:
        """The init runs, as far as one can know."""

    def close(self) -> None:
        """Kill everything in the world, and wait for it; without effect the second time."""
