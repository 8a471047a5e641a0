"""
System calls one to one with their man pages, for those who compose by hand.

No defaults beyond the man page's, no convenience, no cleaning up. Every
function raises OSError with the error number and the path at fault. What is
called here happens to the calling thread.

Only :func:`clone` differs in form: a child that returned into Python would
run an interpreter whose other threads, and the locks they held, no longer
exist. So it takes what the child is to execute.
"""

import os
from enum import IntFlag

from . import _constants
from ._calls import (
    clone,
    close_range,
    mount,
    mount_setattr,
    move_mount,
    open_tree,
    openat2,
    pidfd_open,
    pidfd_send_signal,
    pivot_root,
    prctl,
    sethostname,
    setns,
    umount2,
    unshare,
)

__all__ = [
    "AT_FDCWD",
    "CloneFlag",
    "CloseRangeFlag",
    "MountAttr",
    "MountFlag",
    "MoveMountFlag",
    "OpenTreeFlag",
    "ResolveFlag",
    "SetattrFlag",
    "UmountFlag",
    "clone",
    "close_range",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "openat2",
    "pidfd_open",
    "pidfd_send_signal",
    "pivot_root",
    "prctl",
    "sethostname",
    "setns",
    "umount2",
    "unshare",
]

AT_FDCWD = -100
"""Stands for the working directory where a dirfd is wanted."""


class CloneFlag(IntFlag):
    """Flags of clone(2), unshare(2) and setns(2)."""

    CLONE_NEWTIME = _constants.CLONE_NEWTIME
    CLONE_FS = 0x00000200
    CLONE_FILES = 0x00000400
    CLONE_NEWNS = _constants.CLONE_NEWNS
    CLONE_SYSVSEM = 0x00040000
    CLONE_NEWCGROUP = _constants.CLONE_NEWCGROUP
    CLONE_NEWUTS = _constants.CLONE_NEWUTS
    CLONE_NEWIPC = _constants.CLONE_NEWIPC
    CLONE_NEWUSER = _constants.CLONE_NEWUSER
    CLONE_NEWPID = _constants.CLONE_NEWPID
    CLONE_NEWNET = _constants.CLONE_NEWNET


class MountFlag(IntFlag):
    """Flags of mount(2)."""

    MS_RDONLY = 1
    MS_NOSUID = 2
    MS_NODEV = 4
    MS_NOEXEC = 8
    MS_SYNCHRONOUS = 16
    MS_REMOUNT = 32
    MS_MANDLOCK = 64
    MS_DIRSYNC = 128
    MS_NOSYMFOLLOW = 256
    MS_NOATIME = 1024
    MS_NODIRATIME = 2048
    MS_BIND = 4096
    MS_MOVE = 8192
    MS_REC = 16384
    MS_SILENT = 32768
    MS_UNBINDABLE = 1 << 17
    MS_PRIVATE = 1 << 18
    MS_SLAVE = 1 << 19
    MS_SHARED = 1 << 20
    MS_RELATIME = 1 << 21
    MS_STRICTATIME = 1 << 24
    MS_LAZYTIME = 1 << 25


class UmountFlag(IntFlag):
    """Flags of umount2(2)."""

    MNT_FORCE = 1
    MNT_DETACH = 2
    MNT_EXPIRE = 4
    UMOUNT_NOFOLLOW = 8


class MountAttr(IntFlag):
    """Attributes of mount_setattr(2)."""

    MOUNT_ATTR_RDONLY = _constants.MOUNT_ATTR_RDONLY
    MOUNT_ATTR_NOSUID = _constants.MOUNT_ATTR_NOSUID
    MOUNT_ATTR_NODEV = _constants.MOUNT_ATTR_NODEV
    MOUNT_ATTR_NOEXEC = _constants.MOUNT_ATTR_NOEXEC
    MOUNT_ATTR_NOATIME = 0x10
    MOUNT_ATTR_STRICTATIME = 0x20
    MOUNT_ATTR_NODIRATIME = 0x80
    MOUNT_ATTR_IDMAP = 0x100000
    MOUNT_ATTR_NOSYMFOLLOW = 0x200000


class SetattrFlag(IntFlag):
    """The ``flags`` of mount_setattr(2) and of the *at() calls here."""

    AT_SYMLINK_NOFOLLOW = 0x100
    AT_NO_AUTOMOUNT = 0x800
    AT_EMPTY_PATH = 0x1000
    AT_RECURSIVE = 0x8000


class OpenTreeFlag(IntFlag):
    """Flags of open_tree(2)."""

    OPEN_TREE_CLONE = 1
    AT_SYMLINK_NOFOLLOW = 0x100
    AT_NO_AUTOMOUNT = 0x800
    AT_EMPTY_PATH = 0x1000
    AT_RECURSIVE = 0x8000
    OPEN_TREE_CLOEXEC = os.O_CLOEXEC


class MoveMountFlag(IntFlag):
    """Flags of move_mount(2)."""

    MOVE_MOUNT_F_SYMLINKS = 0x01
    MOVE_MOUNT_F_AUTOMOUNTS = 0x02
    MOVE_MOUNT_F_EMPTY_PATH = 0x04
    MOVE_MOUNT_T_SYMLINKS = 0x10
    MOVE_MOUNT_T_AUTOMOUNTS = 0x20
    MOVE_MOUNT_T_EMPTY_PATH = 0x40


class ResolveFlag(IntFlag):
    """The ``resolve`` of openat2(2)."""

    RESOLVE_NO_XDEV = 0x01
    RESOLVE_NO_MAGICLINKS = 0x02
    RESOLVE_NO_SYMLINKS = 0x04
    RESOLVE_BENEATH = 0x08
    RESOLVE_IN_ROOT = 0x10


class CloseRangeFlag(IntFlag):
    """Flags of close_range(2)."""

    CLOSE_RANGE_UNSHARE = 2
    CLOSE_RANGE_CLOEXEC = 4
