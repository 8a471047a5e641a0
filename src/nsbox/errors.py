"""
What can go wrong, as types.

::

    NsboxError
      +-- PlanError (ValueError)        the request cannot be meant; nothing was started
      |     +-- PlanTypeError (TypeError), PlanIndexError (IndexError), PlanOverflowError
      |           (OverflowError): where Python raises these for such a value
      +-- UnsupportedError              this kernel or host cannot do it; says what to do instead
      +-- SpawnError (OSError)          a system call of the set-up failed; nothing is left of it
      +-- NamespaceError (OSError)      a namespace could not be made, opened or entered
      +-- CgroupError (OSError)         a cgroup could not be made, set, read or removed
      +-- FileError (OSError)           a file inside could not be read, written or copied

An exec that finds no program, may not run it, or whose working directory is
missing, and an id or process group that the payload may not take on, raises a
:class:`SpawnError` that is also the built-in exception users of
:mod:`subprocess` catch: FileNotFoundError, PermissionError or
NotADirectoryError.
"""

import errno as errno_codes
import os
from enum import StrEnum
from typing import Any


class Step(StrEnum):
    """
    The system call that failed, one member per call site.

    The order is that of ``enum nsbox_step`` in csrc/nsbox.h, whose zero means
    that nothing failed.
    """

    HOST = "host"
    MMAP = "mmap"
    PIDFD_OPEN = "pidfd_open"
    WATCH = "watch"
    CLONE = "clone3"
    KILLED = "killed"
    SOCKETPAIR = "socketpair"
    MESSAGE = "message"
    INIT = "init"
    SETNS = "setns"
    UNSHARE = "unshare"
    SETGROUPS_DENY = "setgroups_deny"
    UID_MAP = "uid_map"
    GID_MAP = "gid_map"
    NAMESPACE_OPEN = "namespace_open"
    OPEN_TREE = "open_tree"
    SOURCE_ATTRIBUTES = "mount_setattr"
    IDMAP = "idmap"
    OPEN_PATH = "open_path"
    CGROUP_JOIN = "cgroup_join"
    CGROUP_UNSHARE = "cgroup_unshare"
    SOCKET = "socket"
    LOOPBACK_UP = "loopback_up"
    SETHOSTNAME = "sethostname"
    SETGROUPS = "setgroups"
    SETRESGID = "setresgid"
    SETRESUID = "setresuid"
    KEEP_CAPABILITIES = "keep_capabilities"
    PROC_SYS = "proc_sys"
    MAX_USER_NAMESPACES = "max_user_namespaces"
    PROPAGATION = "propagation"
    FSOPEN = "fsopen"
    FSCONFIG = "fsconfig"
    FSCONFIG_CREATE = "fsconfig_create"
    FSMOUNT = "fsmount"
    TARGET = "target"
    MKDIR = "mkdirat"
    MKNOD = "mknodat"
    SYMLINK = "symlinkat"
    CREATE_FILE = "create_file"
    WRITE_FILE = "write_file"
    DEVICE = "device"
    MOVE_MOUNT = "move_mount"
    LAYERS = "layers"
    MASK_TARGET = "mask_target"
    MASK = "mask"
    FCHDIR = "fchdir"
    READONLY = "readonly"
    PIVOT_ROOT = "pivot_root"
    UMOUNT = "umount2"
    TERMINAL_OPEN = "terminal_open"
    TERMINAL_PEER = "terminal_peer"
    TERMINAL_PASS = "terminal_pass"
    SETSID = "setsid"
    CONTROLLING_TERMINAL = "controlling_terminal"
    SETPGID = "setpgid"
    DUP = "dup3"
    CLOSE_RANGE = "close_range"
    PASS_FD = "pass_fd"
    EXTRA_GROUPS = "extra_groups"
    GROUP = "group"
    USER = "user"
    LOWER_LIMITS = "lower_limits"
    KEYRING = "keyring"
    CAPBSET_DROP = "capbset_drop"
    CAP_INHERITABLE = "cap_inheritable"
    CAP_AMBIENT = "cap_ambient"
    SECUREBITS = "securebits"
    CAPSET = "capset"
    NO_NEW_PRIVS = "no_new_privs"
    PDEATHSIG = "pdeathsig"
    LANDLOCK_RULESET = "landlock_create_ruleset"
    LANDLOCK_RULE = "landlock_add_rule"
    LANDLOCK_RESTRICT = "landlock_restrict_self"
    CHDIR = "chdir"
    SETPRIORITY = "setpriority"
    LIMIT = "limit"
    SECCOMP = "seccomp"
    EXECVE = "execve"


STEPS: tuple[Step, ...] = tuple(Step)
"""``STEPS[n - 1]`` is the step numbered n in csrc/nsbox.h."""


class NsboxError(Exception):
    """Base of everything that nsbox raises on purpose."""


class PlanError(NsboxError, ValueError):
    """A value, or a combination of values, that cannot be meant."""


class PlanTypeError(PlanError, TypeError):
    """A value of a wrong type."""


class PlanIndexError(PlanError, IndexError):
    """An empty list of arguments."""


class PlanOverflowError(PlanError, OverflowError):
    """A number that the kernel has no room for."""


class UnsupportedError(NsboxError):
    """Something that this kernel, host or situation does not allow."""


class NamespaceError(NsboxError, OSError):
    """
    A namespace could not be made, opened, entered or kept.

    Attributes:
        errno: The error number.
        step: The system call that failed.
        hint: What to do about it, or None.
    """

    def __init__(
        self, errno: int, step: Step, filename: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(errno, os.strerror(errno), filename)
        self.step = step
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.errno, self.step, self.filename, self.hint)

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.__reduce__()[1]}"

    def __str__(self) -> str:
        return _message(self.step, self.strerror, self.filename, self.hint)


class CgroupError(NsboxError, OSError):
    """
    A file or directory of a cgroup could not be made, written, read or removed.

    Attributes:
        errno: The error number.
        filename: Which file or directory.
        hint: What to do about it, or None.
    """

    def __init__(self, errno: int, filename: str, hint: str | None = None) -> None:
        super().__init__(errno, os.strerror(errno), filename)
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.errno, self.filename, self.hint)

    def __str__(self) -> str:
        return _message("cgroup", self.strerror, self.filename, self.hint)


class FileError(NsboxError, OSError):
    """
    A file of a live sandbox could not be opened, read, written or copied.

    Or one of /proc that tells of its processes could not be read.

    Where Python has a class for the error number it is also of that class:
    FileNotFoundError, PermissionError, ...

    Attributes:
        errno: The error number.
        filename: The path that it was about.
        hint: What to do about it, or None.
    """

    def __init__(self, errno: int, filename: str, hint: str | None = None) -> None:
        super().__init__(errno, os.strerror(errno), filename)
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        return file_error, (self.errno, self.filename, self.hint)

    def __str__(self) -> str:
        return _message("file", self.strerror, self.filename, self.hint)


class FileMissingError(FileError, FileNotFoundError):
    """There is no such file, or no such directory on the way to it."""


class FilePermissionError(FileError, PermissionError):
    """The payload may not do that, or Landlock forbids it."""


class FileIsADirectoryError(FileError, IsADirectoryError):
    """It is a directory, and no regular file."""


class FileNotADirectoryError(FileError, NotADirectoryError):
    """A part of the path is no directory."""


_FILE_ERRORS: dict[int, type[FileError]] = {
    errno_codes.ENOENT: FileMissingError,
    errno_codes.EACCES: FilePermissionError,
    errno_codes.EPERM: FilePermissionError,
    errno_codes.EISDIR: FileIsADirectoryError,
    errno_codes.ENOTDIR: FileNotADirectoryError,
}


def file_error(errno: int, filename: str, hint: str | None = None) -> FileError:
    """Return the FileError of the fitting class."""
    return _FILE_ERRORS.get(errno, FileError)(errno, filename, hint)


class SpawnError(NsboxError, OSError):
    """
    A system call between clone and exec failed.

    The half-built sandbox has been killed and reaped, and every descriptor of
    it closed, when this is raised.

    Attributes:
        errno: The error number of the system call.
        step: Which call it was (a :class:`Step`, which is a str).
        path: The path it was about, or None.
        filename: The same, under the name that OSError gives it.
        index: Position in ``Sandbox.explain()``'s operations, or -1.
        hint: What to do about it, or None.
    """

    _attended = False  # it came with the end of a run, and not with its spawn

    def __init__(
        self,
        errno: int,
        step: Step,
        path: str | None = None,
        index: int = -1,
        hint: str | None = None,
    ) -> None:
        super().__init__(errno, os.strerror(errno), path)
        self.step = step
        self.index = index
        self.hint = hint

    @property
    def path(self) -> str | None:
        return self.filename  # type: ignore[no-any-return]  # typeshed: Any

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.errno, self.step, self.path, self.index, self.hint)

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.__reduce__()[1]}"

    def __str__(self) -> str:
        return _message(self.step, self.strerror, self.path, self.hint)


class SpawnFileNotFoundError(SpawnError, FileNotFoundError):
    """The program or working directory does not exist inside the sandbox."""


class SpawnPermissionError(SpawnError, PermissionError):
    """The program, working directory, id or process group may not be used by the payload."""


class SpawnNotADirectoryError(SpawnError, NotADirectoryError):
    """A part of the program's or working directory's path is no directory."""


_PAYLOAD_ERRORS: dict[int, type[SpawnError]] = {
    errno_codes.ENOENT: SpawnFileNotFoundError,
    errno_codes.EACCES: SpawnPermissionError,
    errno_codes.EPERM: SpawnPermissionError,
    errno_codes.ENOTDIR: SpawnNotADirectoryError,
}

# What a payload may be refused; subprocess.Popen raises PermissionError for the same.
_REQUESTED = (Step.SETPGID, Step.EXTRA_GROUPS, Step.GROUP, Step.USER)


def spawn_error(
    errno: int, step: Step, path: str | None = None, index: int = -1, hint: str | None = None
) -> SpawnError:
    """Return the SpawnError of the fitting class."""
    cls = SpawnError
    if step in (Step.EXECVE, Step.CHDIR):
        cls = _PAYLOAD_ERRORS.get(errno, SpawnError)
    elif step in _REQUESTED and errno == errno_codes.EPERM:
        cls = SpawnPermissionError
    return cls(errno, step, path, index, hint)


def bad_descriptor(error: int, step: Step, fd: int) -> SpawnError:
    """Return the error for a descriptor that cannot be handed to the payload."""
    return spawn_error(error, step, hint=f"descriptor {fd} is not open in the caller")


def _message(step: str, strerror: str | None, path: str | None, hint: str | None) -> str:
    text = f"{step}: {strerror}"
    if path is not None:
        text += f": {path!r}"
    if hint is not None:
        text += f" ({hint})"
    return text
