"""
Facts of the host and the caller that a plan depends on.

Gathered here, by reading files only, so that making a plan from them is a pure
function that tests can call with facts of their own.
"""

import errno
import os
import stat
from functools import lru_cache
from typing import NamedTuple

from ._constants import ANYWHERE, CAPABILITIES, SHORTAGE
from .errors import SpawnError, Step

OVERFLOW_ID = 65534

# Where distributions keep programs. /usr and the links to it nearly everywhere;
# the stores of Nix and Guix hold theirs, and /usr has next to nothing there.
_PROGRAM_DIRECTORIES = ("/usr", "/nix/store", "/gnu/store")
_USR_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")

# Without these programs fail to start or to find each other: the dynamic
# linker's cache, alternatives (cc, java, awk, ...), name services, time zone,
# the public certificates, and the settings a JVM refuses to start without.
_ETC = (
    "alternatives",
    "ld.so.cache",
    "localtime",
    "nsswitch.conf",
    "ssl/certs",
    "ssl/openssl.cnf",
)
_ETC_PREFIXES = ("java-",)
_SMALL = 65536

# Files that tell of the host or of its other users, as runc and Docker mask them; what
# they mask to keep it from being written is safe in a read-only /proc.
_MASKED = (
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)

DEVICES = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
"""Name, major and minor number, as in the kernel's devices.txt."""


class Host(NamedTuple):
    """
    What a plan has to know.

    Args:
        uid: Effective user id of the caller.
        gid: Effective group id of the caller.
        privileged: The caller is root of its user namespace, and maps ids that are not its own.
        may_mount: It has CAP_SYS_ADMIN, which root in a container often has not.
        may_bound: It has CAP_SETPCAP, over its bounding set and securebits.
        overflow_uid: The host id "nobody" for root's payloads.
        overflow_gid: The same for groups.
        directories: Program directories that exist.
        links: Name in / and what it links to.
        etc: Directories of /etc to show, as paths.
        etc_large: Files of /etc that are too large to copy, as paths.
        etc_files: Small files of /etc: name and content. To write a copy costs
            a quarter of what a bind of the file does.
        etc_links: Symbolic links in /etc: name and what it links to.
        masks: What exists of the files of /proc and /sys that are to be masked,
            and whether others than root could read it.
        landlock: Version of Landlock, 0 if the kernel has none.
    """

    uid: int
    gid: int
    privileged: bool
    may_mount: bool = True
    may_bound: bool = True
    overflow_uid: int = OVERFLOW_ID
    overflow_gid: int = OVERFLOW_ID
    directories: tuple[str, ...] = ("/usr",)
    links: tuple[tuple[str, str], ...] = ()
    etc: tuple[str, ...] = ()
    etc_large: tuple[str, ...] = ()
    etc_files: tuple[tuple[str, bytes], ...] = ()
    etc_links: tuple[tuple[str, str], ...] = ()
    masks: tuple[tuple[str, bool], ...] = ()
    landlock: int = 0

    @property
    def payload_uid(self) -> int:
        """The host's user id of a payload, unless the user asks for another."""
        return self.overflow_uid if self.privileged else self.uid

    @property
    def payload_gid(self) -> int:
        return self.overflow_gid if self.privileged else self.gid


def look() -> Host:
    """
    Return the facts as they are now for the calling process.

    Raises:
        SpawnError: If one cannot be read, as when descriptors run out. None is guessed, to
            take root for a plain user would let its payloads be root; nor is it remembered.
    """
    try:
        return _look()
    except OSError as error:
        number = error.errno or errno.EIO
        raise SpawnError(number, Step.HOST, error.filename, hint=ANYWHERE.get(number)) from error


def _look() -> Host:
    uid, gid = os.geteuid(), os.getegid()
    overflow_uid, overflow_gid = _overflow_id("uid"), _overflow_id("gid")
    directories, links = _root_directory()
    etc = _etc_entries()
    return Host(
        uid=uid,
        gid=gid,
        privileged=uid == 0 and is_mapped("uid", overflow_uid) and is_mapped("gid", overflow_gid),
        may_mount=uid == 0 and has_capability("CAP_SYS_ADMIN"),
        may_bound=uid == 0 and has_capability("CAP_SETPCAP"),
        overflow_uid=overflow_uid,
        overflow_gid=overflow_gid,
        directories=directories,
        links=links,
        etc=etc.directories,
        etc_large=etc.large,
        etc_files=etc.files,
        etc_links=etc.links,
        masks=_masks(),
    )


def has_capability(name: str) -> bool:
    """
    Tell whether a capability is effective in the calling thread; False without /proc.

    Raises:
        OSError: If that cannot be read.
    """
    try:
        _, _, rest = _read("/proc/thread-self/status").partition(b"\nCapEff:")
    except FileNotFoundError:
        return False
    return bool(int(rest.split(maxsplit=1)[0], 16) >> CAPABILITIES.index(name) & 1)


def is_mapped(kind: str, number: int) -> bool:
    """
    Tell whether an id exists in the caller's own user namespace.

    True without /proc: to take root for somebody who has no other ids would let its payloads
    be root, where the attempt to take on such an id fails.

    Raises:
        OSError: If that cannot be read.
    """
    try:
        lines = _read(f"/proc/self/{kind}_map").splitlines()
    except FileNotFoundError:
        return True
    maps = (map(int, line.split()) for line in lines)
    return any(inside <= number < inside + count for inside, _, count in maps)


def _read(path: str) -> bytes:
    """Return a file of /proc; its text and buffer layers would cost more than the reading."""
    with open(path, "rb", buffering=0) as file:
        return file.read()


@lru_cache(maxsize=2)
def _overflow_id(kind: str) -> int:
    try:
        return int(_read(f"/proc/sys/kernel/overflow{kind}"))
    except (OSError, ValueError) as error:
        _check_shortage(error)
        return OVERFLOW_ID


def _check_shortage(error: Exception) -> None:
    """Raise an error that says nothing about the file that it is about: it would be remembered."""
    if isinstance(error, OSError) and error.errno in SHORTAGE:
        raise error


def _mode(path: str, *, follow_symlinks: bool = True) -> int:
    """Return the mode of a file, 0 if there is none."""
    try:
        return os.stat(path, follow_symlinks=follow_symlinks).st_mode
    except OSError as error:
        _check_shortage(error)
        return 0


@lru_cache(maxsize=1)
def _root_directory() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Find the program directories: merged into /usr by links, or beside it."""
    directories = [path for path in _PROGRAM_DIRECTORIES if stat.S_ISDIR(_mode(path))]
    links = []
    for name in _USR_LINKS:
        path = f"/{name}"
        if stat.S_ISLNK(_mode(path, follow_symlinks=False)):
            links.append((name, os.readlink(path)))
        elif stat.S_ISDIR(_mode(path)):
            directories.append(path)
    return tuple(directories), tuple(links)


@lru_cache(maxsize=1)
def _masks() -> tuple[tuple[str, bool], ...]:
    found = []
    for path in _MASKED:
        try:
            found.append((path, bool(os.stat(path).st_mode & stat.S_IROTH)))
        except OSError as error:
            _check_shortage(error)
    return tuple(found)


class _Etc(NamedTuple):
    directories: tuple[str, ...]
    large: tuple[str, ...]
    files: tuple[tuple[str, bytes], ...]
    links: tuple[tuple[str, str], ...]


@lru_cache(maxsize=1)
def _etc_entries() -> _Etc:
    names = list(_ETC)
    try:
        names += sorted(name for name in os.listdir("/etc") if name.startswith(_ETC_PREFIXES))
    except OSError as error:
        _check_shortage(error)
    directories, large, files, links = [], [], [], []
    for name in names:
        path = f"/etc/{name}"
        try:
            info = os.lstat(path)
            if stat.S_ISLNK(info.st_mode):
                links.append((name, os.readlink(path)))
            elif stat.S_ISDIR(info.st_mode):
                directories.append(path)
            elif stat.S_ISREG(info.st_mode) and info.st_size > _SMALL:
                large.append(path)
            elif stat.S_ISREG(info.st_mode):
                with open(path, "rb") as file:
                    files.append((name, file.read(_SMALL)))
        except OSError as error:
            _check_shortage(error)
    return _Etc(tuple(directories), tuple(large), tuple(files), tuple(links))
