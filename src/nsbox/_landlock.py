"""
What Landlock adds to a plan: landlock(7), one more layer where the kernel has it.

The payload may read and execute below its root, change what lies in writable
mounts, use what was handed to it, and reach nothing else, by whatever
descriptor. Pure; the C core applies it by the descriptors of the mounts.
"""

from collections.abc import Mapping
from enum import IntFlag
from functools import lru_cache
from typing import Final, NamedTuple


class Right(IntFlag):
    """LANDLOCK_ACCESS_FS_* of linux/landlock.h."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13  # ABI 2
    TRUNCATE = 1 << 14  # ABI 3
    IOCTL_DEV = 1 << 15  # ABI 5


READ: Final = Right.EXECUTE | Right.READ_FILE | Right.READ_DIR
DEVICES: Final = READ | Right.WRITE_FILE | Right.TRUNCATE | Right.IOCTL_DEV

TCP: Final = 3  # LANDLOCK_ACCESS_NET_BIND_TCP, LANDLOCK_ACCESS_NET_CONNECT_TCP

SCOPE_ABSTRACT_SOCKETS: Final = 1
SCOPE_SIGNALS: Final = 2

# Without REFER (ABI 1, before Linux 5.19) no file could be moved to another directory.
LEAST_ABI: Final = 2
# Without TRUNCATE (before Linux 6.2) whoever may write a file may empty it, rules or not.
TRUNCATE_ABI: Final = 3
NET_ABI: Final = 4
SCOPE_ABI: Final = 6


class Landlock(NamedTuple):
    """
    A ruleset.

    Args:
        abi: The kernel's version of Landlock.
        rights: Rights that are handled: denied where no rule allows them. 0: none.
        scoped: LANDLOCK_SCOPE_*.
        rules: Operation that makes the mount -> rights on it and all that is below.
        net: LANDLOCK_ACCESS_NET_*, denied for every port.
    """

    abi: int
    rights: int
    scoped: int
    rules: tuple[tuple[int, int], ...]
    net: int = 0


@lru_cache(maxsize=4)  # of a flag type: a sixth of all that a plan takes
def handled(abi: int) -> Right:
    """Return all rights that an ABI knows."""
    rights = Right(0)
    for right in Right:
        rights |= right
    if abi < 5:
        rights &= ~Right.IOCTL_DEV
    if abi < 3:
        rights &= ~Right.TRUNCATE
    return rights if abi >= LEAST_ABI else Right(0)


def scopes(abi: int, namespaces: Mapping[str, str]) -> int:
    """
    Return what is scoped: where a namespace of the host's is shared, and nothing else does it.

    Not in namespaces of one's own, where processes that were started apart
    from each other in one sandbox may talk.
    """
    if abi < SCOPE_ABI:
        return 0
    return (SCOPE_ABSTRACT_SOCKETS if namespaces["net"] == "host" else 0) | (
        SCOPE_SIGNALS if namespaces["pid"] == "host" else 0
    )
