"""
Namespaces as objects that hold an open file descriptor.

A :class:`Namespace` keeps its namespace alive while it is open, can be given
to a ``Sandbox``, entered by the calling thread, compared, and persisted to a
path. See namespaces(7).
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from . import _calls, _host
from ._constants import NAMESPACE_FLAGS
from ._native import ffi, lib
from ._values import PathArg, check_id, check_path
from .errors import (
    STEPS,
    NamespaceError,
    PlanError,
    PlanTypeError,
    SpawnError,
    Step,
    UnsupportedError,
)

_MS_BIND: Final = 4096  # mount(2)
# ioctl_ns(2): _IO(0xb7, n)
_NS_GET_USERNS: Final = 0xB701
_NS_GET_PARENT: Final = 0xB702
_NS_GET_NSTYPE: Final = 0xB703

KINDS: Final = tuple(NAMESPACE_FLAGS)
_BY_FLAG: Final = {flag: kind for kind, flag in NAMESPACE_FLAGS.items()}

_PERSIST_HINTS: Final = {
    errno.EPERM: "needs CAP_SYS_ADMIN over the caller's mount namespace, as root has; "
    "without it, keep the object or a process in the namespace",
    errno.ENOTDIR: "a namespace is bound to a file, not to a directory",
    errno.EINVAL: "a mount namespace can only be kept in one that is older, and not in itself",
}


def check_kind(kind: object) -> str:
    if not isinstance(kind, str):
        raise PlanTypeError(f"namespace kind: must be a str, not {type(kind).__name__}")
    if kind not in NAMESPACE_FLAGS:
        raise PlanError(f"unknown namespace kind {kind!r}; the kinds are {', '.join(KINDS)}")
    return kind


class Namespace:
    """
    A namespace, held open by a file descriptor.

    Make one with :meth:`create`, :meth:`of` or :meth:`open`. It is a context
    manager; :meth:`close` may be called again. Two objects are equal when they
    refer to the same namespace.
    """

    __slots__ = ("_fd", "_identity", "_kind")

    def __init__(self, fd: int) -> None:
        """
        Take ownership of a namespace file descriptor.

        Raises:
            NamespaceError: If fd does not refer to a namespace (ENOTTY); it is still the caller's.
        """
        self._fd = -1
        try:
            flag = fcntl.ioctl(fd, _NS_GET_NSTYPE)
            info = os.fstat(fd)
        except OSError as error:
            raise NamespaceError(
                error.errno or errno.EBADF,
                Step.NAMESPACE_OPEN,
                hint="this file descriptor does not refer to a namespace",
            ) from None
        self._kind = _BY_FLAG[flag]
        self._identity = (info.st_dev, info.st_ino)
        self._fd = fd

    @classmethod
    def _take(cls, fd: int) -> Self:
        """Return the namespace of a descriptor that is nobody else's, or close that."""
        try:
            return cls(fd)
        except NamespaceError:
            os.close(fd)
            raise

    @classmethod
    def create(cls, kind: str, *, owner: "Namespace | None" = None) -> Self:
        """
        Make a new namespace with no process in it.

        Args:
            kind: "user", "mnt", "uts", "ipc", "net", "cgroup" or "time".
            owner: The user namespace that is to own it. Default: the caller's,
                which needs CAP_SYS_ADMIN, except for kind "user". The owner of
                a new user namespace is always the caller's; its id 0 stands
                for the caller's ids or, if the caller is root, for the
                overflow ids.

        A new network namespace has its loopback device up.

        Raises:
            UnsupportedError: For "pid": a pid namespace lives and dies with
                its first process.
            NamespaceError: EPERM without the privilege; ENOSPC at the limit of
                /proc/sys/user/max_*_namespaces; EINVAL if the kernel lacks the kind.
        """
        flag = NAMESPACE_FLAGS[check_kind(kind)]
        if kind == "pid":
            raise UnsupportedError(
                "an empty pid namespace cannot exist: it needs a first process, and ends with "
                "it; spawn one with Sandbox(pid='new') and use process.namespaces['pid']"
            )
        if owner is not None and not isinstance(owner, Namespace):
            raise PlanTypeError(f"owner: must be a Namespace, not {type(owner).__name__}")
        if owner is not None and owner.kind != "user":
            raise PlanError(f"owner: a user namespace is needed, not {owner.kind!r}")
        if kind != "user":
            return cls._take(_create(kind, flag, owner))
        if owner is not None:
            raise PlanError("owner: a user namespace belongs to the one it is made in")
        try:
            host = _host.look()
        except SpawnError as error:
            raise NamespaceError(error.errno or 0, error.step, error.path, error.hint) from error
        maps = (f"0 {host.payload_uid} 1", f"0 {host.payload_gid} 1")
        return cls._take(_create(kind, flag, None, maps, deny_setgroups=not host.privileged))

    @classmethod
    def of(cls, pid: int, kind: str) -> Self:
        """
        Open the namespace that a process is in.

        Args:
            pid: A process, in the caller's pid namespace; 0 means the calling thread.
            kind: As for :meth:`create`, or "pid".

        Raises:
            NamespaceError: ENOENT if there is no such process (or the kernel
                lacks the kind), EACCES if it may not be inspected.
        """
        check_kind(kind)
        process = "thread-self" if check_id("pid", pid) == 0 else str(pid)
        return cls.open(f"/proc/{process}/ns/{kind}")

    @classmethod
    def open(cls, path: PathArg) -> Self:
        """
        Open a namespace by a path: one of /proc/pid/ns, or a persisted one.

        Raises:
            NamespaceError: If the path cannot be opened, or is no namespace (ENOTTY).
        """
        text = check_path("path", path)
        try:
            # Not blocking on a FIFO, no terminal taken: the path may be anything.
            fd = os.open(text, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            hint = None
            if error.errno == errno.ENOENT and text.startswith("/proc/"):
                hint = "the process has ended, or this kernel lacks the kind"
            raise NamespaceError(error.errno or 0, Step.NAMESPACE_OPEN, text, hint) from None
        try:
            return cls._take(fd)
        except NamespaceError as error:
            raise NamespaceError(error.errno or 0, error.step, text, error.hint) from None

    @property
    def kind(self) -> str:
        """One of "user", "mnt", "pid", "uts", "ipc", "net", "cgroup", "time"."""
        return self._kind

    @property
    def id(self) -> int:
        """The inode number, as ``readlink /proc/pid/ns/*`` shows it."""
        return self._identity[1]

    @property
    def closed(self) -> bool:
        """True after :meth:`close`."""
        return self._fd < 0

    def fileno(self) -> int:
        """
        Return the file descriptor, which this object still owns.

        Raises:
            PlanError: If it is closed.
        """
        if self._fd < 0:
            raise PlanError(f"this {self._kind} namespace is closed")
        return self._fd

    def owner(self) -> "Namespace":
        """
        Return the user namespace that owns this one.

        Raises:
            NamespaceError: EPERM if it is out of the caller's sight.
        """
        return self._related(_NS_GET_USERNS)

    def parent(self) -> "Namespace":
        """
        Return the parent of a pid or user namespace.

        Raises:
            NamespaceError: EINVAL for other kinds, EPERM if it is out of sight.
        """
        return self._related(_NS_GET_PARENT)

    def _related(self, request: int) -> "Namespace":
        try:
            return Namespace._take(fcntl.ioctl(self.fileno(), request))
        except OSError as error:
            hint = None
            if error.errno == errno.EPERM:
                hint = "it lies outside the caller's own user or pid namespace, out of sight"
            elif error.errno == errno.EINVAL:
                hint = f"only pid and user namespaces have a parent, not {self._kind} namespaces"
            raise NamespaceError(error.errno or 0, Step.NAMESPACE_OPEN, hint=hint) from None

    @contextmanager
    def enter(self) -> Iterator["Namespace"]:
        """
        Move the calling thread into this namespace for the length of a with block.

        What the thread spawns meanwhile is inside as well. A pid namespace
        takes the thread's children, not the thread itself.

        Raises:
            UnsupportedError: For a user namespace, which cannot be left again,
                and for a mount or time namespace in a program with threads.
            NamespaceError: EPERM without CAP_SYS_ADMIN over it.
        """
        fd = self.fileno()
        if self._kind == "user":
            raise UnsupportedError(
                "a thread cannot enter a user namespace: the kernel refuses it to programs with "
                "threads, and there is no way back; use Sandbox(user=namespace) instead"
            )
        # For "pid" and "time" what a thread may set is that of its children.
        name = f"{self._kind}_for_children" if self._kind in ("pid", "time") else self._kind
        back = os.open(f"/proc/thread-self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._setns(fd)
            try:
                yield self
            finally:
                _calls.setns(back, NAMESPACE_FLAGS[self._kind])
        finally:
            os.close(back)

    def _setns(self, fd: int) -> None:
        try:
            _calls.setns(fd, NAMESPACE_FLAGS[self._kind])
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EUSERS) and self._kind in ("mnt", "time"):
                raise UnsupportedError(
                    f"a {self._kind} namespace can only be entered by a program with a single "
                    "thread, since threads share what it changes; spawn a Sandbox instead"
                ) from error
            hint = None
            if error.errno == errno.EPERM:
                hint = (
                    "needs CAP_SYS_ADMIN in the user namespace that owns it; a Sandbox can join "
                    "it together with that one: Sandbox(user=namespace.owner(), ...)"
                )
            raise NamespaceError(error.errno or 0, Step.SETNS, hint=hint) from None

    def persist(self, path: PathArg) -> None:
        """
        Keep the namespace alive without any process, at a path of the host.

        Binds it to a file, which is made if it is missing, as ``ip netns add``
        does. To end it: ``nsbox.lowlevel.umount2(path)`` and remove the file.
        Needs CAP_SYS_ADMIN over the caller's mount namespace.

        Raises:
            NamespaceError: If the file cannot be made or the bind is refused.
        """
        text = check_path("path", path)
        fd = self.fileno()
        created = False
        try:
            os.close(os.open(text, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
            created = True
        except FileExistsError:
            pass
        except OSError as error:
            raise NamespaceError(error.errno or 0, Step.CREATE_FILE, text) from None
        try:
            _calls.mount(f"/proc/self/fd/{fd}", text, None, _MS_BIND)
        except OSError as error:
            if created:
                os.unlink(text)
            hint = _PERSIST_HINTS.get(error.errno or 0)
            raise NamespaceError(error.errno or 0, Step.MOVE_MOUNT, text, hint) from None

    def close(self) -> None:
        """Give up the namespace. It lives on while processes or others hold it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # An fd and nothing more: nobody minds when exactly it goes.
        self.close()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Namespace):
            return NotImplemented
        return self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<nsbox.Namespace {self._kind}:[{self.id}]{state}>"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError(
            "a Namespace is an open file descriptor and cannot be pickled; "
            "persist() it and open() the path on the other side"
        )


def _create(
    kind: str,
    flag: int,
    owner: Namespace | None,
    maps: tuple[str, str] | None = None,
    *,
    deny_setgroups: bool = False,
) -> int:
    record = ffi.new("struct nsbox_result *")
    owner_fd = -1 if owner is None else owner.fileno()
    uid_map, gid_map = (ffi.NULL, ffi.NULL) if maps is None else (text.encode() for text in maps)
    fd = lib.nsbox_namespace_create(flag, owner_fd, uid_map, gid_map, deny_setgroups, record)
    if fd >= 0:
        return int(fd)
    hint = None
    if record.error == errno.EPERM and kind != "user":
        hint = (
            "needs CAP_SYS_ADMIN in the user namespace that is to own it; a plain user has that "
            "in one of its own: Namespace.create(kind, owner=Namespace.create('user'))"
        )
    elif record.error == errno.ENOSPC:
        hint = f"the limit in /proc/sys/user/max_{kind}_namespaces is reached, or it is 0"
    elif record.error == errno.EINVAL:
        hint = f"this kernel has no {kind} namespaces"
    raise NamespaceError(int(record.error), STEPS[record.step - 1], hint=hint)


def create_id_map_namespace(uid_map: str, gid_map: str) -> Namespace:
    """
    Return a user namespace with the given maps, for id-mapped mounts.

    Needs CAP_SETUID and CAP_SETGID, for maps with ids that are not the caller's.
    """
    return Namespace._take(_create("user", NAMESPACE_FLAGS["user"], None, (uid_map, gid_map)))
