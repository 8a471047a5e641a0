"""
Files of a live sandbox: read, written and copied from outside.

What is in there is the payload's, and may be anything. Each file is opened by the init,
inside, with the payload's rights and through no symbolic link; what was opened is then
looked at by its descriptor: a regular file, of a file system that stores what is
written to it. So nothing here waits for the payload or believes it. It may change a file
while that is read, and make it grow without end: sizes are counted, not asked for.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from . import _calls
from ._calls import Descriptor, open_within
from ._constants import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS
from .errors import FileError, file_error

MAX_SIZE: Final = "64M"
"""How many bytes are read or copied at most, unless the caller says otherwise."""

Opener = Callable[[str, int, int], Descriptor]
"""Opens a path inside, given flags and mode; raises OSError."""

_CHUNK: Final = 1 << 18
_KEEP_SIZE: Final = 1  # FALLOC_FL_KEEP_SIZE

_HINTS: Final = {
    errno.ELOOP: "a symbolic link is on the way, and none is followed; name what it leads to",
    errno.ENOTDIR: "a file or a symbolic link is on the way, and none is followed",
    errno.EAGAIN: "the payload holds a lease on it: fcntl(2), F_SETLEASE",
    errno.EDQUOT: "a quota is used up",
    errno.EISDIR: "a directory; for a whole tree run tar inside",
    errno.EINVAL: "not a regular file of a file system that stores files",
    errno.ENOSPC: "the file system is full, or has no inode left",
    errno.ENAMETOOLONG: "a path has at most 4095 bytes, and a name in it 255",
    errno.EROFS: "it is read-only there",
    errno.ETXTBSY: "it is a program that runs",
    errno.ETIMEDOUT: "the init of the sandbox does not answer: kill() or close() it",
    errno.ETOOMANYREFS: "too many descriptors of the payload's user are under way over sockets",
}

_ON_HOST: Final = "on the host"

# The kernel makes their files up when they are read, and acts when they are written.
_MADE_UP: Final = frozenset(
    {
        0x9FA0,  # proc
        0x62656572,  # sysfs
        0x64626720,  # debugfs
        0x74726163,  # tracefs
        0x73636673,  # securityfs
        0x62656570,  # configfs
        0x6165676C,  # pstore
        0xDE5E81E4,  # efivarfs
        0xF97CFF8C,  # selinuxfs
        0x43415D53,  # smackfs
        0x5A3C69F0,  # apparmorfs
        0x42494E4D,  # binfmt_misc
        0x27E0EB,  # cgroup
        0x63677270,  # cgroup2
        0x07655821,  # resctrl
        0xCAFE4A11,  # bpf
        0x6E736673,  # nsfs
        0x50494446,  # pidfs
        0x19800202,  # mqueue
    }
)


# ---- inside ----------------------------------------------------------------


def read(opener: Opener, path: str, most: int) -> bytes:
    """
    Return what a file holds.

    Raises:
        FileError: If it cannot be opened or read, is no regular file (EINVAL, EISDIR),
            or has more than so many bytes (EFBIG).
    """
    with _about(path), _regular(opener, path, os.O_RDONLY) as fd:
        # Mostly all at once; and then what it has grown by.
        size = os.fstat(fd).st_size
        return b"".join(_chunks(fd, most, path, min(size, most) + 1))


def write(opener: Opener, path: str, data: bytes, mode: int) -> None:
    """
    Make a file, or replace the content of one.

    Args:
        mode: Permission bits of a file that is made.

    Raises:
        FileError: As for :func:`read`. If there is no room (ENOSPC), the file is as before.
    """
    with _about(path):
        _fill(opener, path, [data], len(data), mode)


def copy_in(opener: Opener, host_path: str, path: str, most: int) -> None:
    """Copy a file of the host, with its permission bits."""
    try:
        source = Descriptor(host_path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise _error(error, host_path, _ON_HOST) from None
    with _about(host_path, _ON_HOST), source as fd:
        info = os.fstat(fd)
        _check_regular(info, host_path)
        _check_size(info.st_size, most, host_path)  # before the file inside is touched
        chunks = _chunks(fd, most, host_path)
        _fill(opener, path, chunks, info.st_size, stat.S_IMODE(info.st_mode) & 0o777)


def copy_out(opener: Opener, path: str, host_path: str, most: int) -> None:
    """
    Copy a file to the host, where it replaces what has that name, be it a link.

    No symbolic link on the way to it is followed. It comes into being whole, or not at all.
    """
    directory, name = os.path.split(host_path)
    if name in ("", ".", ".."):
        raise file_error(errno.EISDIR, host_path, "name the file that is to be made")
    source = _regular(opener, path, os.O_RDONLY)
    try:
        place = open_within(directory or ".", os.O_PATH | os.O_DIRECTORY, RESOLVE_NO_SYMLINKS)
    except OSError as error:
        source.close()
        raise _error(error, host_path, _ON_HOST) from None
    with _about(host_path, _ON_HOST), source as fd, place as parent:
        _replace(parent, name, _chunks(fd, most, path))


def _regular(opener: Opener, path: str, flags: int, mode: int = 0) -> Descriptor:
    try:
        opened = opener(path, flags, mode)
    except FileError:
        raise
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV):
            error.errno = errno.EINVAL  # a FIFO without a reader, a socket, a device
        raise _error(error, path) from None
    try:
        _check_regular(os.fstat(opened.fileno()), path)
        if _calls.filesystem(opened.fileno()) in _MADE_UP:
            raise file_error(errno.EINVAL, path, _HINTS[errno.EINVAL])
    except BaseException:
        opened.close()
        raise
    return opened


def _fill(opener: Opener, path: str, chunks: Iterable[bytes], size: int, mode: int) -> None:
    """Write chunks of so many bytes together into a file that is made, or was there."""
    try:
        file = _regular(opener, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        made = True
    except FileError as error:
        if error.errno != errno.EEXIST:
            raise
        file = _regular(opener, path, os.O_WRONLY)
        made = False
    with file as fd:
        begun = False
        try:
            _reserve(fd, size)  # or fail, and what was there is as it was
            begun = True
            if made:
                os.fchmod(fd, mode)  # whatever the umask inside
            os.ftruncate(fd, _put(fd, chunks))
        except BaseException as error:
            with suppress(OSError):
                if made:
                    _remove(opener, path, fd)
                elif begun:
                    os.ftruncate(fd, 0)
            if isinstance(error, OSError) and not isinstance(error, FileError):
                raise _error(error, path) from None
            raise


def _remove(opener: Opener, path: str, fd: int) -> None:
    """Remove what was made, unless the name means something else by now."""
    directory, name = os.path.split(path)
    with opener(directory, os.O_PATH | os.O_DIRECTORY, 0) as parent:
        there = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if os.path.samestat(there, os.fstat(fd)):
            os.unlink(name, dir_fd=parent)


# ---- on the host -------------------------------------------------------------


def _replace(parent: int, name: str, chunks: Iterable[bytes]) -> None:
    """Make a file in a directory under another name, and give it its own when it is whole."""
    draft = f".nsbox-{os.urandom(8).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    within = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
    try:
        # Not the payload's permission bits: it could make a program of what is copied.
        with open_within(draft, flags, within, dirfd=parent, mode=0o666) as fd:
            _put(fd, chunks)
        os.rename(draft, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft, dir_fd=parent)
        raise


# ---- both ----------------------------------------------------------------------


def _check_regular(info: os.stat_result, path: str) -> None:
    if stat.S_ISREG(info.st_mode):
        return
    code = errno.EISDIR if stat.S_ISDIR(info.st_mode) else errno.EINVAL
    raise file_error(code, path, _HINTS[code])


def _check_size(size: int, most: int, path: str) -> None:
    if size > most:
        raise file_error(errno.EFBIG, path, f"more than {most} bytes: raise max_size=")


def _chunks(fd: int, most: int, path: str, first: int = _CHUNK) -> Iterator[bytes]:
    """Yield what a file holds, as long as that is no more than so many bytes."""
    _check_size(os.fstat(fd).st_size, most, path)
    size = 0
    while chunk := os.read(fd, _CHUNK if size else first):
        size += len(chunk)
        _check_size(size, most, path)
        yield chunk


def _put(fd: int, chunks: Iterable[bytes]) -> int:
    """Write chunks, and return how many bytes that were."""
    size = 0
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(fd, rest) :]
        size += len(chunk)
    return size


def _reserve(fd: int, size: int) -> None:
    """Allocate the room for so many bytes, where the file system can."""
    try:
        if size:
            _calls.fallocate(fd, _KEEP_SIZE, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise


@contextmanager
def _about(path: str, place: str | None = None) -> Iterator[None]:
    """Turn an OSError that is none of ours yet into a FileError about a path."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise _error(error, path, place) from None


def _error(error: OSError, path: str, place: str | None = None) -> FileError:
    """Return the FileError about a path, with the place where that is not inside."""
    code = error.errno or errno.EIO
    return file_error(code, path, "; ".join(filter(None, (place, _HINTS.get(code)))) or None)
