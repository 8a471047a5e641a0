"""
What has been changed in an overlay: its upper layer, read as a list.

The payload may change the tree while it is read. So each directory is opened from
the root of its layer, below it and through no symbolic link: whatever is moved, the
walk does not leave the layer. Of what disappears meanwhile nothing is said.
"""

import errno
import os
import re
import stat
from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from ._calls import Descriptor, open_within
from ._constants import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV
from .errors import FileError, UnsupportedError, file_error

MOST: Final = 100_000
"""How many entries are looked at, unless the caller says otherwise."""

_MEAN_PATH: Final = 256
"""How many bytes their paths may have on the average: a payload can make each 4095 long."""

_PATH_MAX: Final = 4096


# Whiteouts of the form that has no device: Linux 6.7.
_KNOWS_MARKS: Final = [*map(int, re.findall(r"[0-9]+", os.uname().release)[:2])] >= [6, 7]

_LISTED: Final = os.O_RDONLY | os.O_DIRECTORY
_WITHIN: Final = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV


class ChangeKind(StrEnum):
    """What has become of a path."""

    ADDED = "added"
    """It is in no lower layer."""
    CHANGED = "changed"
    """
    The payload has written to it, replaced it, or changed its mode, owner or times: the
    upper layer has a copy. A directory counts if its mode, owner or type is another one.
    """
    DELETED = "deleted"
    """It is in a lower layer, and no longer seen; so is all that is below it."""


class Change(NamedTuple):
    """
    A path that differs from the lower layers of an overlay.

    Args:
        path: Absolute path inside, with os.fsdecode()'s surrogates if it is not UTF-8.
        kind: What has become of it.
    """

    path: str
    kind: ChangeKind


class Stack(NamedTuple):
    """
    The layers of an overlay.

    Args:
        target: Where the overlay is mounted, as an absolute path inside.
        upper: Descriptor of the upper layer.
        lowers: Descriptors of the lower ones, the topmost first.
        attributes: Prefix of the overlay's extended attributes.
    """

    target: str
    upper: int
    lowers: Sequence[int]
    attributes: str


def changes_of(stack: Stack, most: int = MOST) -> list[Change]:
    """
    Return what the upper layer of an overlay holds, each directory before what is in it.

    Args:
        stack: The overlay.
        most: How many entries of directories may be looked at.

    Raises:
        FileError: EFBIG if there are more, or their paths are too long together; EACCES if
            this process may not read a directory; ENAMETOOLONG if one lies too deep for a path.
        UnsupportedError: If the kernel has renamed a directory by a redirect.
    """
    walk = _Walk(stack, most)
    waiting = [_Directory(b"", tuple(range(len(stack.lowers))), replaced=False)]
    while waiting:
        try:
            waiting += walk.look(waiting.pop())
        except FileError:
            raise
        except OSError as error:
            raise file_error(error.errno or errno.EIO, stack.target) from None
    # By the names on the way, without a list of them for each path: there may be thousands in one.
    return sorted(walk.found, key=lambda change: change.path.replace("/", "\0"))


class _Directory(NamedTuple):
    """
    A directory of the upper layer.

    Args:
        path: Relative to the root of the layer, "" for that itself.
        lowers: Positions of the lower layers that have a directory there too.
        replaced: What those have in it is not seen any more.
    """

    path: bytes
    lowers: tuple[int, ...]
    replaced: bool

    def entry(self, name: bytes) -> bytes:
        return b"/".join(filter(None, (self.path, name)))


class _Below(NamedTuple):
    """
    What the lower layers have at a path.

    Args:
        there: There is something.
        kept: What of it is compared (see _kept), None for the mount point of another mount,
            behind which the overlay sees and this process does not.
        lowers: Positions of those layers whose directories are seen there together.
    """

    there: bool
    kept: tuple[int, int, int] | None
    lowers: tuple[int, ...]


_NOTHING: Final = _Below(False, None, ())


class _Walk:
    def __init__(self, stack: Stack, most: int) -> None:
        self.found: list[Change] = []
        self._stack = stack
        self._most = most
        self._left = most
        self._room = most * _MEAN_PATH + _PATH_MAX

    def look(self, directory: _Directory) -> list[_Directory]:
        """Take note of the changes in a directory; return the directories in it."""
        inner: list[_Directory] = []
        try:
            opened = self._open(self._stack.upper, directory.path)
        except FileNotFoundError:
            return inner  # it is gone meanwhile
        with opened as fd:
            if self._mark(fd, "redirect"):
                raise UnsupportedError(
                    f"{self._absolute(directory.path)!r} was renamed by a redirect, which "
                    "changes() cannot follow: load the overlay module with redirect_dir=off"
                )
            mark = self._mark(fd, "opaque")
            replaced = directory.replaced or mark == b"y"
            names = self._names(fd, directory.path)
            for name in names:
                path = directory.entry(name)
                try:
                    info = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise self._error(error.errno or errno.EIO, path) from None
                below = self._below(path, directory.lowers)
                if _is_whiteout(info) or (mark == b"x" and self._is_marked(fd, name, info)):
                    if below.there:
                        self._note(path, ChangeKind.DELETED)
                    continue
                if not below.there:
                    self._note(path, ChangeKind.ADDED)
                elif not stat.S_ISDIR(info.st_mode) or below.kept not in (None, _kept(info)):
                    self._note(path, ChangeKind.CHANGED)
                if stat.S_ISDIR(info.st_mode):
                    inner.append(_Directory(path, below.lowers, replaced))
        if replaced:
            for name in self._lower_names(directory) - set(names):
                self._note(directory.entry(name), ChangeKind.DELETED)
        return inner

    def _note(self, path: bytes, kind: ChangeKind) -> None:
        self.found.append(Change(self._absolute(path), kind))

    def _absolute(self, path: bytes) -> str:
        return f"{self._stack.target.rstrip('/')}/{os.fsdecode(path)}"

    # ---- the lower layers ----

    def _below(self, path: bytes, lowers: tuple[int, ...]) -> _Below:
        """Look a path up in those layers that have a directory where it is."""
        found = _NOTHING
        for position in lowers:
            try:
                with self._open(self._stack.lowers[position], path, os.O_PATH) as fd:
                    info = os.fstat(fd)
                    whiteout = _is_whiteout(info) or self._is_marked_below(fd, info)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                return found if found.there else _Below(True, None, ())
            if whiteout:
                break
            if not found.there:
                found = found._replace(there=True, kept=_kept(info))
            if not stat.S_ISDIR(info.st_mode):
                break
            found = found._replace(lowers=(*found.lowers, position))
            if position != lowers[-1] and self._is_opaque(position, path):
                break
        return found

    def _is_opaque(self, position: int, path: bytes) -> bool:
        with self._open(self._stack.lowers[position], path) as fd:
            return self._mark(fd, "opaque") == b"y"

    def _lower_names(self, directory: _Directory) -> set[bytes]:
        """Return what is in a directory of the lower layers together."""
        names: set[bytes] = set()
        for position in directory.lowers:
            with self._open(self._stack.lowers[position], directory.path) as fd:
                names.update(self._names(fd, directory.path))
        return {
            name for name in names if self._below(directory.entry(name), directory.lowers).there
        }

    # ---- one layer ----

    def _open(self, layer: int, path: bytes, flags: int = _LISTED) -> Descriptor:
        try:
            return open_within(path or b".", flags | os.O_NOFOLLOW, _WITHIN, dirfd=layer)
        except OSError as error:
            # A link is where a directory was, or was meant to be.
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise FileNotFoundError from None
            raise self._error(error.errno or errno.EIO, path) from None

    def _error(self, code: int, path: bytes) -> OSError:
        return file_error(code, self._absolute(path), _HINTS.get(code))

    def _names(self, fd: int, path: bytes) -> list[bytes]:
        """Return the names in a directory, unless there are too many, or too long paths."""
        names = []
        with os.scandir(fd) as entries:
            for entry in entries:
                self._left -= 1
                if self._left < 0:
                    hint = f"more than {self._most} entries: raise most="
                    raise file_error(errno.EFBIG, self._stack.target, hint)
                name = os.fsencode(entry.name)
                self._room -= len(path) + 1 + len(name)
                if self._room < 0:
                    hint = f"paths of more than {_MEAN_PATH} bytes on the average: raise most="
                    raise file_error(errno.EFBIG, self._stack.target, hint)
                names.append(name)
        return names

    def _mark(self, fd: int, name: str) -> bytes:
        """Return an extended attribute that the overlay has set, b"" for none."""
        try:
            return os.getxattr(fd, self._stack.attributes + name)
        except OSError:
            return b""  # ENODATA, or a file system without them

    def _is_marked(self, directory: int, name: bytes, info: os.stat_result) -> bool:
        """Tell whether a file is a whiteout in the form that has no device (Linux 6.7)."""
        if not stat.S_ISREG(info.st_mode) or info.st_size:
            return False
        with self._open(directory, name, os.O_RDONLY | os.O_NONBLOCK) as fd:
            try:
                os.getxattr(fd, self._stack.attributes + "whiteout")
            except OSError:
                return False
        return True

    def _is_marked_below(self, fd: int, info: os.stat_result) -> bool:
        """The same of a file of a lower layer, where the kernel asks nothing of its directory."""
        if not _KNOWS_MARKS or not stat.S_ISREG(info.st_mode) or info.st_size:
            return False
        try:
            os.getxattr(f"/proc/self/fd/{fd}", self._stack.attributes + "whiteout")
        except OSError:
            return False
        return True


def _is_whiteout(info: os.stat_result) -> bool:
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def _kept(info: os.stat_result) -> tuple[int, int, int]:
    """Return what of a directory is compared: type and mode, and owner."""
    return info.st_mode, info.st_uid, info.st_gid


_HINTS: Final = {
    errno.EACCES: "this process may not look into it: the payload has closed it",
    errno.ENAMETOOLONG: "it lies deeper than a path can say",
    errno.EMFILE: "this process has no descriptor left",
}
