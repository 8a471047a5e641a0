"""
The C core's system calls as Python functions that raise OSError.

``nsbox.lowlevel`` publishes them together with the flags; inside the package
they are used from here, since making flag types takes time at import.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Final, NoReturn, Self

from ._constants import AT_FDCWD, NAMESPACE_FLAGS
from ._native import ffi, lib
from ._values import PathArg, check_text


def _path(path: PathArg) -> bytes:
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError("embedded null byte")
    return encoded


def _fail(ret: int, *paths: PathArg) -> NoReturn:
    filename = os.fsdecode(paths[0]) if paths else None
    if len(paths) > 1:
        raise OSError(-ret, os.strerror(-ret), filename, None, os.fsdecode(paths[1]))
    raise OSError(-ret, os.strerror(-ret), filename)


class Descriptor:
    """
    An open file. It is this object's before Python code knows its number.

    A signal handler can raise between any two steps of Python code; what os.open()
    returned is lost if that comes before it is noted somewhere.
    """

    def __init__(
        self, path: PathArg, flags: int, opener: Callable[[bytes, int, Any], int] = lib.nsbox_open
    ) -> None:
        """
        Open a path, close-on-exec: open(2).

        Args:
            path: What to open.
            flags: O_*.
            opener: What does it: stores the descriptor, or returns -errno.

        Raises:
            OSError: If that fails.
        """
        self._memory, self._fd = _none()
        ret = opener(_path(path), flags, self._fd)
        if ret < 0:
            _fail(ret, path)

    @classmethod
    def duplicate(cls, fd: int) -> Self:
        """
        Duplicate a descriptor, close-on-exec: fcntl(2), F_DUPFD_CLOEXEC.

        Raises:
            OSError: If that fails.
        """
        descriptor = cls.none()
        ret = lib.nsbox_dup(fd, descriptor.slot)
        if ret < 0:
            _fail(ret)
        return descriptor

    @classmethod
    def namespace(cls, kind: str, pid: int, pidfd: int) -> Self:
        """
        Open a namespace of a process that only the caller can reap.

        By its pidfd, since Linux 6.11: names below /proc/pid that were looked up are something
        for the kernel to forget while it is reaped. By such a name otherwise.

        Args:
            kind: "mnt" or "ipc".
            pid: Of the process.
            pidfd: Likewise.

        Raises:
            OSError: If that fails; EACCES if it is not the caller's to inspect.
        """
        descriptor = cls.none()
        ret = lib.nsbox_open_namespace(pidfd, NAMESPACE_FLAGS[kind], descriptor.slot)
        return descriptor if ret == 0 else cls(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)

    @classmethod
    def none(cls) -> Self:
        """Return one that is closed, until C code stores a descriptor in its slot."""
        descriptor = cls.__new__(cls)
        descriptor._memory, descriptor._fd = _none()
        return descriptor

    @property
    def slot(self) -> Any:
        """Where its number is, as ``int32_t *``."""
        return self._fd

    def fileno(self) -> int:
        """Return its number, -1 once it is closed."""
        return int(self._fd[0])

    def close(self) -> None:
        """Close it; without effect the second time."""
        lib.nsbox_close(self._fd)

    def __enter__(self) -> int:
        return self.fileno()

    def __exit__(self, *_: object) -> None:
        self.close()


class Descriptors:
    """Several open files, as a Descriptor is one: opened and closed in one call each."""

    def __init__(self, paths: Sequence[str], flags: int) -> None:
        """
        Open at most 16 paths, close-on-exec.

        Raises:
            OSError: For the first that cannot be opened, with its path.
        """
        self._memory = ffi.new("struct nsbox_files *")  # held, too: see _none()
        self._files = ffi.gc(self._memory, lib.nsbox_close_files)
        ret = lib.nsbox_open_files(_joined(paths), len(paths), flags, self._files)
        if ret < 0:
            _fail(ret, paths[self._files.count])

    def filenos(self) -> tuple[int, ...]:
        """Return their numbers in the order of the paths; none once they are closed."""
        return tuple(self._files.fds[0 : self._files.count])

    def close(self) -> None:
        """Close them; without effect the second time."""
        lib.nsbox_close_files(self._files)


def write_files(items: Sequence[tuple[str, str]]) -> None:
    """
    Write texts into files of the kernel's, in order: pairs of a path and a text.

    Raises:
        OSError: For the first that cannot be written, with its path.
    """
    done = ffi.new("uint32_t *")
    ret = lib.nsbox_write_files(_joined(part for item in items for part in item), len(items), done)
    if ret < 0:
        _fail(ret, items[done[0]][0])


_SIZE: Final = 32768
_new_buffer: Final = ffi.new_allocator(should_clear_after_alloc=False)


def read_files(paths: Sequence[str]) -> list[str]:
    """
    Return what is in files of the kernel's; "" for one that cannot be read.

    Args:
        paths: A few of them; more than 32 KiB together are cut.

    Raises:
        OSError: If there are no descriptors left.
    """
    joined = _joined(paths)

    def read(buffer: Any, size: int) -> int:
        got = int(lib.nsbox_read_files(joined, len(paths), buffer, size))
        return got if got >= 0 else _fail(got)

    return read_texts(read, len(paths))


def read_texts(read: Callable[[Any, int], int], count: int) -> list[str]:
    """Return the texts that a function of C stores in a buffer, "" for those that it does not."""
    buffer = _new_buffer("char[]", _SIZE)
    size = max(0, read(buffer, _SIZE))
    texts = bytes(ffi.buffer(buffer, size)).decode("ascii").split("\0")[:-1]
    return texts + [""] * (count - len(texts))


def _joined(items: Iterable[str]) -> bytes:
    """Return strings as csrc/files.c takes them."""
    return os.fsencode("".join(f"{item}\0" for item in items))


def open_within(
    path: PathArg, flags: int, resolve: int, *, dirfd: int = AT_FDCWD, mode: int = 0
) -> Descriptor:
    """Open a path, close-on-exec, under rules of resolution, RESOLVE_*: openat2(2)."""

    def opener(path: bytes, flags: int, fd: Any) -> int:
        return int(lib.nsbox_open_within(dirfd, path, flags, mode, resolve, fd))

    return Descriptor(path, flags, opener)


class Layers:
    """
    Descriptors of layers of an overlay, as the child of a spawn has sent them.

    Args:
        op: Index of the overlay's operation in the plan.
        fds: O_PATH descriptors, open as long as this object is there.
    """

    __slots__ = ("_memory", "fds", "op")

    def __init__(self, memory: Any) -> None:
        self._memory = memory
        self.op = int(memory.op)
        self.fds = tuple(int(memory.fds[position]) for position in range(memory.count))

    @classmethod
    def receive(cls, socket: int) -> "Layers | None":
        """
        Return what the next message has brought; None if there is none.

        Raises:
            OSError: EMFILE if this process may not open so many descriptors.
        """
        memory = ffi.gc(ffi.new("struct nsbox_layers *"), lib.nsbox_release_layers)
        ret = lib.nsbox_receive_layers(socket, memory)
        if ret < 0:
            _fail(ret)
        return cls(memory) if ret else None


def _none() -> tuple[Any, Any]:
    """
    Return room for a descriptor, and what closes it with the last reference.

    Whoever closes it himself holds both: of a cycle that is collected, the second may be finalised,
    and let go of the first, before a __del__ that closes it, or hands it to another thread.
    """
    memory = ffi.new("int32_t *", -1)
    return memory, ffi.gc(memory, lib.nsbox_close)


def unshare(flags: int) -> None:
    """
    Move the calling thread into new namespaces: unshare(2).

    Raises:
        OSError: EINVAL for CLONE_NEWUSER in a program with threads; EPERM
            without CAP_SYS_ADMIN, or, for CLONE_NEWUSER, where the host forbids it.
    """
    ret = lib.nsbox_unshare(flags)
    if ret < 0:
        _fail(ret)


def setns(fd: int, nstype: int = 0) -> None:
    """
    Move the calling thread into the namespace that fd refers to: setns(2).

    Args:
        fd: Of a /proc/pid/ns file, or a pidfd (Linux 5.8; then nstype says which).
        nstype: CLONE_NEW* that fd must be of, or 0 for any.
    """
    ret = lib.nsbox_setns(fd, nstype)
    if ret < 0:
        _fail(ret)


def pivot_root(new_root: PathArg, put_old: PathArg) -> None:
    """Change the root mount: pivot_root(2)."""
    ret = lib.nsbox_pivot_root(_path(new_root), _path(put_old))
    if ret < 0:
        _fail(ret, new_root, put_old)


def mount(
    source: PathArg | None,
    target: PathArg,
    filesystemtype: str | None,
    mountflags: int = 0,
    data: str | None = None,
) -> None:
    """Mount a file system, or change a mount: mount(2)."""
    ret = lib.nsbox_mount(
        ffi.NULL if source is None else _path(source),
        _path(target),
        ffi.NULL if filesystemtype is None else _path(filesystemtype),
        mountflags,
        ffi.NULL if data is None else _path(data),
    )
    if ret < 0:
        _fail(ret, target)


def umount2(target: PathArg, flags: int = 0) -> None:
    """Unmount: umount2(2)."""
    ret = lib.nsbox_umount2(_path(target), flags)
    if ret < 0:
        _fail(ret, target)


def open_tree(dirfd: int, path: PathArg, flags: int = 0) -> int:
    """Open a mount, or clone it detached: open_tree(2), Linux 5.2. Returns an fd."""
    ret = lib.nsbox_open_tree(dirfd, _path(path), flags)
    if ret < 0:
        _fail(ret, path)
    return int(ret)


def move_mount(
    from_dirfd: int,
    from_path: PathArg,
    to_dirfd: int,
    to_path: PathArg,
    flags: int = 0,
) -> None:
    """Attach or move a mount: move_mount(2), Linux 5.2."""
    ret = lib.nsbox_move_mount(from_dirfd, _path(from_path), to_dirfd, _path(to_path), flags)
    if ret < 0:
        _fail(ret, from_path, to_path)


def mount_setattr(
    dirfd: int,
    path: PathArg,
    flags: int = 0,
    *,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns_fd: int = -1,
) -> None:
    """Change attributes of a mount or, with AT_RECURSIVE, a tree: mount_setattr(2), Linux 5.12."""
    ret = lib.nsbox_mount_setattr(
        dirfd, _path(path), flags, attr_set, attr_clr, propagation, userns_fd
    )
    if ret < 0:
        _fail(ret, path)


def openat2(dirfd: int, path: PathArg, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open a path under the given rules of resolution: openat2(2), Linux 5.6. Returns an fd."""
    ret = lib.nsbox_openat2(dirfd, _path(path), flags, mode, resolve)
    if ret < 0:
        _fail(ret, path)
    return int(ret)


def pidfd_open(pid: int, flags: int = 0) -> int:
    """Open a process: pidfd_open(2), Linux 5.3. Returns an fd, close-on-exec."""
    ret = lib.nsbox_pidfd_open(pid, flags)
    if ret < 0:
        _fail(ret)
    return int(ret)


def pidfd_send_signal(pidfd: int, sig: int, flags: int = 0) -> None:
    """Send a signal to the process that pidfd refers to: pidfd_send_signal(2), Linux 5.1."""
    ret = lib.nsbox_pidfd_send_signal(pidfd, sig, flags)
    if ret < 0:
        _fail(ret)


def cgroup_kill(directory: int) -> None:
    """Send SIGKILL to everything in a cgroup, given a descriptor of its directory."""
    ret = lib.nsbox_cgroup_kill(directory)
    if ret < 0:
        _fail(ret)


def close_range(first: int, last: int, flags: int = 0) -> None:
    """Close descriptors first to last: close_range(2), Linux 5.9 (CLOEXEC 5.11)."""
    ret = lib.nsbox_close_range(first, last, flags)
    if ret < 0:
        _fail(ret)


def filesystem(fd: int) -> int:
    """Return the type of the file system that a file is on: f_type of fstatfs(2)."""
    ret = lib.nsbox_filesystem(fd)
    if ret < 0:
        _fail(ret)
    return int(ret)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Allocate the space of a file, or fail and change nothing: fallocate(2)."""
    ret = lib.nsbox_fallocate(fd, mode, offset, length)
    if ret < 0:
        _fail(ret)


def sethostname(name: str) -> None:
    """Set the host name of the calling thread's uts namespace: sethostname(2)."""
    encoded = _path(name)
    ret = lib.nsbox_sethostname(encoded, len(encoded))
    if ret < 0:
        _fail(ret)


def prctl(option: int, argument: int = 0) -> int:
    """Operate on the calling thread or process: prctl(2), with one argument."""
    ret = lib.nsbox_prctl(option, argument)
    if ret < 0:
        _fail(ret)
    return int(ret)


@lru_cache(maxsize=1)
def landlock_abi() -> int:
    """Return the kernel's version of Landlock: landlock_create_ruleset(2); 0 if it has none."""
    return max(0, int(lib.nsbox_landlock_abi()))


def clone(
    flags: int,
    path: PathArg,
    argv: Sequence[str | bytes],
    env: Mapping[str, str] | None = None,
) -> tuple[int, int]:
    """
    Start a program in new namespaces and do nothing else: clone3(2), execve(2).

    No mount is changed, no id mapped, no privilege dropped: what the program
    sees is what the kernel gives it. Descriptors that are not close-on-exec
    are inherited.

    Args:
        flags: CLONE_NEW* flags. The child never shares memory with the caller
            once its program runs.
        path: Program to execute, as for execve(2).
        argv: Its arguments, the first being its name.
        env: Its environment. Default: the caller's.

    Returns:
        The child's pid, which the caller has to wait for, and its pidfd.

    Raises:
        OSError: What clone3(2) or execve(2) failed with.
    """
    if isinstance(argv, (str, bytes)):
        raise TypeError(f"argv must be a sequence of arguments, not {type(argv).__name__}")
    candidates, arguments = [_path(path)], [_path(item) for item in argv]
    if not arguments:
        raise ValueError("argv is empty")
    variables = (
        os.environb
        if env is None
        else {
            os.fsencode(check_text("env", key)): os.fsencode(check_text("env", value))
            for key, value in env.items()
        }
    )
    environment = [key + b"=" + value for key, value in variables.items()]
    arrays = [string_array(items) for items in (candidates, arguments, environment)]
    request = ffi.new(
        "struct nsbox_request *",
        {
            "executables": arrays[0][0],
            "argv": arrays[1][0],
            "envp": arrays[2][0],
            "stdio": [-1, -1, -1],
            "umask": -1,
            "process_group": -1,
            "uid": -1,
            "gid": -1,
            "n_groups": -1,
            "cgroup": -1,
            "layers": -1,
            "flags": lib.NSBOX_REQUEST_BARE,
        },
    )
    plan = ffi.new("struct nsbox_plan *", {"clone_flags": flags})
    result = ffi.new("struct nsbox_result *", NO_RESULT[0])
    try:
        ret = lib.nsbox_spawn(plan, request, ffi.NULL, result)
        if ret < 0:
            _fail(ret, path)
        return int(result.pid), int(result.pidfd)
    except BaseException:
        # A signal handler may raise when the child is there, and nobody knows of it.
        lib.nsbox_discard(result)
        raise


# What nobody's child is: no descriptor in it is one.
NO_RESULT: Final = ffi.new(
    "struct nsbox_result *",
    dict.fromkeys(("pidfd", "report", "init", "control", "starter", "starting", "names"), -1),
)


STREAMS: Final = ffi.new("int32_t[]", [0, 1, 2])
"""The standard ones, for find_directory()."""


def find_directory(fds: Sequence[int]) -> int | None:
    """
    Return the index of the first descriptor of a directory; what is not open is none.

    Raises:
        OSError: If that cannot be told.
    """
    found = lib.nsbox_find_directory(fds, len(fds))
    if found < 0:
        _fail(found)
    return None if found == len(fds) else int(found)


def string_array(items: Sequence[bytes]) -> tuple[object, list[object]]:
    """Return a NULL-terminated ``char *[]`` and the strings that it points to."""
    strings = list(map(_new_string, items))
    return ffi.new("char *[]", [*strings, _NULL]), strings


_NULL: Final = ffi.NULL
_new_string: Final = partial(ffi.new, "char[]")
