"""
Directories of cgroups: write into them, empty them, remove them.

Also those that dead callers have left (see :mod:`nsbox._cgroup_names`).
"""

import errno
import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from . import _calls, _cgroup_names
from ._calls import Descriptor
from ._constants import ANYWHERE
from ._forks import this_process
from .errors import CgroupError

_SHORTEST: Final = 0.0002
_LONGEST: Final = 0.02

_HINTS: Final = {
    errno.EMFILE: ANYWHERE[errno.EMFILE],
    errno.EACCES: "the caller may not write there",
    errno.EROFS: "the cgroup file system is mounted read-only",
    errno.EBUSY: "it, or a cgroup above it, has processes or cgroups of its own",
    errno.ENOENT: "the cgroup above was removed, or this kernel lacks the file",
    errno.EAGAIN: "the cgroup above may have no more cgroups below it (cgroup.max.descendants)",
    errno.EINVAL: "the kernel takes no such value: a processor or device that is not there",
    errno.ENODEV: "the cgroup was removed meanwhile, or there is no such device",
    errno.ENOSPC: "a cpuset needs processors that the cgroup above has",
    errno.ERANGE: "the value is out of the kernel's range",
}


@contextmanager
def reported(path: str) -> Iterator[None]:
    """Turn an OSError into a CgroupError about its path, or this one if it has none."""
    try:
        yield
    except CgroupError:
        raise
    except OSError as error:
        number = error.errno or errno.EIO
        raise CgroupError(number, error.filename or path, _HINTS.get(number)) from None


def write(path: str, text: str) -> None:
    """Write a file of a cgroup."""
    with reported(path):
        _calls.write_files([(path, text)])


def text(path: str) -> str:
    """Return what is in a file of a cgroup, without the space around it."""
    with reported(path), _calls.Descriptor(path, os.O_RDONLY) as fd:
        return os.read(fd, 16384).decode("ascii").strip()


# ---- ending ---------------------------------------------------------------


def look_again(done: Callable[[], bool], deadline: float, error: int, path: str) -> None:
    """Look again and again, with longer and longer pauses, for what is no event of the kernel's."""
    pause = _SHORTEST
    while not done():
        if time.monotonic() >= deadline:
            raise CgroupError(error, path, "it did not come to rest; see its cgroup.procs")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST)


def await_event(directory: str, line: str, deadline: float, code: int) -> None:
    """
    Wait until cgroup.events has a line; the kernel reports each change as POLLPRI.

    Raises:
        CgroupError: With this code at the deadline.
    """
    path = f"{directory}/cgroup.events"
    try:
        with reported(path), Descriptor(path, os.O_RDONLY) as fd:
            poll = select.poll()
            poll.register(fd, select.POLLPRI)
            while line not in os.pread(fd, 4096, 0).decode().splitlines():
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise CgroupError(code, directory, f"its state did not become {line!r}")
                poll.poll(min(remaining, 3600) * 1000)
    except CgroupError as error:
        # Removed by someone: not populated.
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise


def tree(directory: str) -> Iterator[str]:
    """
    Yield a cgroup and those below it, the lowest first; what is gone meanwhile is left out.

    A payload that may mount can nest its own deeper than a path or the stack goes, and take
    rights away from its user, who is the caller's.

    Yields:
        A path that leads there until the next.
    """
    try:
        here = _enter(directory)
    except FileNotFoundError:
        return
    way: list[str] = []
    pending = [_names_in(here)]
    while way or pending[0]:
        if pending[-1]:
            name = pending[-1].pop()
            with suppress(FileNotFoundError):
                lower = _enter(_below(here, name))
                pending.append(_names_in(lower))
                way.append(name)
                here = lower
        else:
            pending.pop()
            here = _enter(_below(here, ".."))
            yield _below(here, way.pop())
    yield directory


def _enter(path: str) -> Descriptor:
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        with suppress(OSError):
            os.chmod(path, 0o755)
    return Descriptor(path, os.O_RDONLY | os.O_DIRECTORY)


def _below(directory: Descriptor, name: str) -> str:
    return f"/proc/thread-self/fd/{directory.fileno()}/{name}"


def _names_in(directory: Descriptor) -> list[str]:
    with os.scandir(directory.fileno()) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def kill_tree(directory: str) -> None:
    """Kill everything in a cgroup and below it."""
    with reported(directory):
        for path in tree(directory):
            try:
                with Descriptor(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
                    _calls.cgroup_kill(fd)
            except FileNotFoundError:
                continue


def remove_tree(directory: str, deadline: float) -> None:
    """
    Remove a cgroup and those below it.

    What has just died can still count as there for a moment, so EBUSY is tried
    again; and in v1, which has no cgroup.kill, a fork may have been missed.
    """

    def removed() -> bool:
        try:
            for path in tree(directory):
                os.rmdir(path)
        except FileNotFoundError:
            return not os.path.exists(directory)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise CgroupError(
                    error.errno or errno.EIO, directory, _HINTS.get(error.errno or 0)
                ) from None
            kill_tree(directory)
            return False
        return True

    try:
        os.rmdir(directory)  # by far the most common case: no walk
    except OSError:
        look_again(removed, deadline, errno.EBUSY, directory)


# ---- what dead callers have left ------------------------------------------

_MOST_SWEPT: Final = 1000

_swept: set[tuple[int, str]] = set()


def sweep_once(parent: str) -> None:
    """Remove what dead callers have left in a directory, at this process's first use of it."""
    key = (this_process(), parent)
    if len(_swept) > _MOST_SWEPT:  # every live sandbox with limits is one
        _swept.clear()
    if key not in _swept:
        _swept.add(key)
        sweep(parent)


def sweep(parent: str) -> list[str]:
    """
    Remove the cgroups in a directory whose makers have ended, and kill what is in them.

    Returns:
        The directories that were removed.
    """
    removed = []
    try:
        names = os.listdir(parent)
    except OSError:
        return []
    for name in names:
        if not _cgroup_names.is_left_over(name):
            continue
        directory = f"{parent}/{name}"
        try:
            kill_tree(directory)
            remove_tree(directory, time.monotonic() + 1.0)
        except (CgroupError, OSError):
            continue  # not ours to remove, or still dying: the next one tries again
        removed.append(directory)
    return removed
