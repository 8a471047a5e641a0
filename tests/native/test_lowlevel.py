"""nsbox.lowlevel: one system call each, and OSError with the kernel's own error number."""

import errno
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from children import python, python_as_root

from conftest import open_fds
from nsbox import lowlevel
from nsbox.lowlevel import AT_FDCWD, CloneFlag, OpenTreeFlag, ResolveFlag

# ---- bad input -----------------------------------------------------------


FAILURES: list[tuple[str, int, str | None, str | None]] = [
    ("unshare(1)", errno.EINVAL, None, None),
    ("setns(-1)", errno.EBADF, None, None),
    ("setns(0, 0)", errno.EINVAL, None, None),
    ("pivot_root('/none', '/')", errno.ENOENT, "/none", "/"),
    ("pivot_root('/', '/none')", errno.ENOENT, "/", "/none"),
    ("mount('none', '/none', 'tmpfs')", errno.ENOENT, "/none", None),
    ("mount('none', b'/tmp', 'nosuchfs')", errno.ENODEV, "/tmp", None),
    (
        "mount(None, '/tmp', None, MountFlag.MS_REMOUNT | MountFlag.MS_MOVE)",
        errno.EINVAL,
        "/tmp",
        None,
    ),
    ("umount2('/none')", errno.ENOENT, "/none", None),
    ("umount2('/proc/self')", errno.EINVAL, "/proc/self", None),
    ("umount2('/', 1 << 20)", errno.EINVAL, "/", None),
    ("open_tree(AT_FDCWD, '/none')", errno.ENOENT, "/none", None),
    ("open_tree(-1, 'x')", errno.EBADF, "x", None),
    ("move_mount(AT_FDCWD, '/none', AT_FDCWD, '/tmp')", errno.ENOENT, "/none", "/tmp"),
    ("move_mount(-1, '', -1, '', 0x44)", errno.EBADF, "", ""),
    (
        "mount_setattr(AT_FDCWD, '/none', attr_set=MountAttr.MOUNT_ATTR_RDONLY)",
        errno.ENOENT,
        "/none",
        None,
    ),
    ("mount_setattr(AT_FDCWD, '/', attr_set=1 << 40)", errno.EINVAL, "/", None),
    ("openat2(AT_FDCWD, '/none', os.O_RDONLY)", errno.ENOENT, "/none", None),
    ("openat2(AT_FDCWD, '/', os.O_RDONLY, resolve=1 << 40)", errno.EINVAL, "/", None),
    ("openat2(-1, 'x', os.O_RDONLY)", errno.EBADF, "x", None),
    ("pidfd_open(-1)", errno.EINVAL, None, None),
    ("pidfd_open(1 << 29)", errno.ESRCH, None, None),
    ("pidfd_send_signal(-1, 0)", errno.EBADF, None, None),
    ("pidfd_send_signal(pidfd_open(os.getpid()), 1000)", errno.EINVAL, None, None),
    ("close_range(5, 3)", errno.EINVAL, None, None),
    ("close_range(3, 5, 1 << 20)", errno.EINVAL, None, None),
    ("sethostname('a' * 65)", errno.EINVAL, None, None),
    ("lowlevel.prctl(1 << 20)", errno.EINVAL, None, None),
    ("clone(0, '/none', ['x'])", errno.ENOENT, "/none", None),
    ("clone(0, '/etc', ['x'])", errno.EACCES, "/etc", None),
    ("clone(0, b'/etc/passwd/x', ['x'])", errno.ENOTDIR, "/etc/passwd/x", None),
]


@pytest.fixture(scope="module")
def failures() -> dict[str, list[object]]:
    """What each of the calls raises to one who is root in namespaces of its own."""
    done = python_as_root(
        """
        found = {}
        for call in json.loads(sys.argv[1]):
            try:
                found[call] = repr(eval(call))
            except OSError as error:
                found[call] = [error.errno, error.filename, error.filename2, error.strerror]
        print(json.dumps(found))
        """,
        json.dumps([failure[0] for failure in FAILURES]),
    )
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("call", "code", "filename", "filename2"), FAILURES, ids=[case[0] for case in FAILURES]
)
def test_lowlevel_failure_is_an_oserror(
    failures: dict[str, list[object]],
    call: str,
    code: int,
    filename: str | None,
    filename2: str | None,
) -> None:
    """A call that fails raises OSError with the error number and the paths at fault."""
    assert failures[call] == [code, filename, filename2, os.strerror(code)]


def test_lowlevel_failure_is_the_builtin_subclass() -> None:
    """An error that Python has a name for comes under that name."""
    with pytest.raises(FileNotFoundError):
        lowlevel.open_tree(AT_FDCWD, "/none")
    with pytest.raises(ProcessLookupError):
        lowlevel.pidfd_open(1 << 29)


@pytest.mark.parametrize(
    "call",
    [
        lambda: lowlevel.mount("a\0", "/", "tmpfs"),
        lambda: lowlevel.mount("a", "/\0", "tmpfs"),
        lambda: lowlevel.mount("a", "/", "tmpfs\0"),
        lambda: lowlevel.mount("a", "/", "tmpfs", 0, "size\0"),
        lambda: lowlevel.umount2("/\0"),
        lambda: lowlevel.pivot_root("/", "/\0"),
        lambda: lowlevel.open_tree(AT_FDCWD, "/\0"),
        lambda: lowlevel.openat2(AT_FDCWD, "/\0", 0),
        lambda: lowlevel.sethostname("a\0"),
        lambda: lowlevel.clone(0, "/bin/true\0", ["true"]),
        lambda: lowlevel.clone(0, "/bin/true", ["true", "a\0"]),
        lambda: lowlevel.clone(0, "/bin/true", ["true"], {"A": "\0"}),
        lambda: lowlevel.clone(0, "/bin/true", []),
    ],
)
def test_lowlevel_argument_that_cannot_be_is_refused(call: object) -> None:
    """A NUL, which would cut an argument short, raises ValueError before any call."""
    assert callable(call)
    with pytest.raises(ValueError, match=r"(?i)nul|empty"):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: lowlevel.umount2(None),  # type: ignore[arg-type]
        lambda: lowlevel.umount2(3),  # type: ignore[arg-type]
        lambda: lowlevel.setns("3"),  # type: ignore[arg-type]
        lambda: lowlevel.openat2(AT_FDCWD, "/", None),  # type: ignore[arg-type]
    ],
)
def test_lowlevel_argument_of_wrong_type_is_refused(call: object) -> None:
    """An argument of a wrong type raises TypeError, and crashes nothing."""
    assert callable(call)
    with pytest.raises(TypeError):
        call()


@pytest.mark.parametrize(
    "value", [2**31, -(2**31) - 1, 2**64, 10**5000], ids=lambda v: f"{v:#x}"[:12]
)
def test_lowlevel_number_out_of_range_is_refused(value: int) -> None:
    """A number that the kernel's type cannot hold raises OverflowError instead of wrapping."""
    with pytest.raises(OverflowError):
        lowlevel.setns(value)


# ---- what works without privilege ----------------------------------------


def test_openat2_in_root_follows_links_inside(tmp_path: Path) -> None:
    """With RESOLVE_IN_ROOT an absolute link is resolved below the directory."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text("inside")
    (tmp_path / "link").symlink_to("/../../etc/passwd")
    directory = os.open(tmp_path, os.O_PATH)
    try:
        fd = lowlevel.openat2(directory, "link", os.O_RDONLY, resolve=ResolveFlag.RESOLVE_IN_ROOT)
    finally:
        os.close(directory)
    with open(fd) as file:
        assert file.read() == "inside"


@pytest.mark.parametrize(
    ("resolve", "code"),
    [
        (ResolveFlag.RESOLVE_BENEATH, errno.EXDEV),
        (ResolveFlag.RESOLVE_NO_SYMLINKS, errno.ELOOP),
        (ResolveFlag.RESOLVE_IN_ROOT, errno.ENOENT),
    ],
)
def test_openat2_rule_is_kept(tmp_path: Path, resolve: ResolveFlag, code: int) -> None:
    """A path that breaks the rule of resolution is refused with its error number."""
    (tmp_path / "link").symlink_to("/etc/passwd")
    directory = os.open(tmp_path, os.O_PATH)
    try:
        with pytest.raises(OSError, match="link") as caught:
            lowlevel.openat2(directory, "link", os.O_RDONLY, resolve=resolve)
    finally:
        os.close(directory)
    assert (caught.value.errno, caught.value.filename) == (code, "link")


def test_openat2_mode_is_used(tmp_path: Path) -> None:
    """A file that openat2 makes has the given permission bits."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    os.close(lowlevel.openat2(AT_FDCWD, tmp_path / "new", flags, 0o600))
    assert (tmp_path / "new").stat().st_mode & 0o7777 == 0o600


def test_open_tree_is_close_on_exec() -> None:
    """OPEN_TREE_CLOEXEC makes the descriptor close-on-exec."""
    fd = lowlevel.open_tree(AT_FDCWD, "/", OpenTreeFlag.OPEN_TREE_CLOEXEC)
    try:
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_pidfd_signals_the_process() -> None:
    """A signal sent through a pidfd ends the process, and the pidfd tells when."""
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    pidfd = lowlevel.pidfd_open(process.pid)
    try:
        assert not os.get_inheritable(pidfd)
        lowlevel.pidfd_send_signal(pidfd, signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM
        with pytest.raises(ProcessLookupError):
            lowlevel.pidfd_send_signal(pidfd, 0)
    finally:
        os.close(pidfd)
        process.communicate()


def test_close_range_closes_what_it_is_given() -> None:
    """close_range closes a range of descriptors, and no other."""
    first = os.dup2(0, 500)
    for fd in (501, 502, 503):
        os.dup2(0, fd)
    try:
        lowlevel.close_range(501, 502)
        assert {501, 502}.isdisjoint(open_fds())
        assert {first, 503} <= open_fds().keys()
    finally:
        lowlevel.close_range(500, 503)


def test_close_range_can_mark_instead() -> None:
    """With CLOSE_RANGE_CLOEXEC descriptors stay open until exec."""
    os.dup2(0, 500)
    try:
        lowlevel.close_range(500, 500, lowlevel.CloseRangeFlag.CLOSE_RANGE_CLOEXEC)
        assert not os.get_inheritable(500)
    finally:
        os.close(500)


# ---- in namespaces of one's own ------------------------------------------


def test_mount_and_umount(tmp_path: Path) -> None:
    """A tmpfs covers a directory while it is mounted there."""
    done = python_as_root(
        """
        path = sys.argv[1]
        open(f"{path}/below", "w").close()
        mount("none", path, "tmpfs", MountFlag.MS_NOSUID, "size=64k")
        covered = os.listdir(path), os.statvfs(path).f_blocks * os.statvfs(path).f_frsize
        umount2(path)
        print(json.dumps([covered, os.listdir(path)]))
        """,
        str(tmp_path),
    )
    assert json.loads(done.stdout) == [[[], 65536], ["below"]]


def test_pivot_root_changes_the_root(tmp_path: Path) -> None:
    """After pivot_root and umount2 nothing but the new root is there."""
    done = python_as_root(
        """
        path = sys.argv[1]
        mount("none", path, "tmpfs")
        open(f"{path}/inside", "w").close()
        os.chdir(path)
        pivot_root(".", ".")
        umount2(".", UmountFlag.MNT_DETACH)
        os.chdir("/")
        print(os.listdir("/"), os.listdir(".."))
        """,
        str(tmp_path),
    )
    assert done.stdout == "['inside'] ['inside']\n"


def test_open_tree_and_move_mount_bind(tmp_path: Path) -> None:
    """A cloned tree that is moved to a path shows the same files there."""
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "file").write_text("text")
    (tmp_path / "to").mkdir()
    done = python_as_root(
        """
        tree = open_tree(AT_FDCWD, f"{sys.argv[1]}/from", OpenTreeFlag.OPEN_TREE_CLONE)
        move_mount(tree, "", AT_FDCWD, f"{sys.argv[1]}/to", MoveMountFlag.MOVE_MOUNT_F_EMPTY_PATH)
        with open(f"{sys.argv[1]}/to/file") as file:
            print(file.read())
        """,
        str(tmp_path),
    )
    assert done.stdout == "text\n"
    assert list((tmp_path / "to").iterdir()) == []


def test_mount_setattr_reaches_submounts(tmp_path: Path) -> None:
    """With AT_RECURSIVE a mount below the given one becomes read-only, too."""
    done = python_as_root(
        """
        outer, inner = sys.argv[1], sys.argv[1] + "/inner"
        mount("none", outer, "tmpfs")
        os.mkdir(inner)
        mount("none", inner, "tmpfs")
        mount_setattr(AT_FDCWD, outer, SetattrFlag.AT_RECURSIVE,
                      attr_set=MountAttr.MOUNT_ATTR_RDONLY)
        found = []
        for directory in outer, inner:
            try:
                open(f"{directory}/new", "w")
            except OSError as error:
                found.append(error.errno)
        mount_setattr(AT_FDCWD, inner, attr_clr=MountAttr.MOUNT_ATTR_RDONLY)
        open(f"{inner}/new", "w").close()
        print(found)
        """,
        str(tmp_path),
    )
    assert json.loads(done.stdout) == [errno.EROFS, errno.EROFS]


def test_sethostname_and_setns() -> None:
    """Each uts namespace keeps its host name, and setns leads back to it."""
    done = python_as_root(
        """
        sethostname("one")
        back = os.open("/proc/self/ns/uts", os.O_RDONLY)
        unshare(CloneFlag.CLONE_NEWUTS)
        sethostname("two")
        names = [os.uname().nodename]
        setns(back, CloneFlag.CLONE_NEWUTS)
        names.append(os.uname().nodename)
        try:
            setns(back, CloneFlag.CLONE_NEWNET)
        except OSError as error:
            names.append(error.errno)
        print(json.dumps(names))
        """
    )
    assert json.loads(done.stdout) == ["two", "one", errno.EINVAL]


def test_unshare_user_in_a_program_with_threads_is_refused() -> None:
    """The kernel makes no user namespace for one thread of several."""
    done = python(
        """
        import threading
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()
        try:
            unshare(CloneFlag.CLONE_NEWUSER)
        except OSError as error:
            print(error.errno)
        stop.set()
        thread.join()
        """
    )
    assert int(done.stdout) == errno.EINVAL


# ---- clone ---------------------------------------------------------------


def test_clone_makes_pid_1() -> None:
    """In a new pid namespace the program sees itself as process 1."""
    done = python(
        """
        flags = CloneFlag.CLONE_NEWUSER | CloneFlag.CLONE_NEWPID
        pid, pidfd = clone(flags, "/bin/sh", ["sh", "-c", "echo $$; exit 7"])
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(status, os.readlink(f"/proc/self/fd/{pidfd}"), os.get_inheritable(pidfd))
        """
    )
    assert done.stdout.splitlines() == ["1", "7 anon_inode:[pidfd] False"]


@pytest.mark.parametrize("argv", ["true", b"true"])
def test_clone_takes_a_list_of_arguments(argv: str | bytes) -> None:
    """One str would be taken for a sequence of letters."""
    with pytest.raises(TypeError, match="argv"):
        lowlevel.clone(0, "/bin/true", argv)  # type: ignore[arg-type]


def test_clone_passes_arguments_and_environment() -> None:
    """The program gets exactly the arguments and variables that were given."""
    done = python(
        """
        command = 'echo "$0|$1|$A|$HOME"'
        pid, pidfd = clone(0, "/bin/sh", ["sh", "-c", command, "zero", "a b"], {"A": "1 2"})
        os.waitpid(pid, 0)
        """,
        env={"HOME": "/caller"},
    )
    assert done.stdout == "zero|a b|1 2|\n"


def test_clone_inherits_the_environment_by_default() -> None:
    """Without an environment the program gets the caller's."""
    done = python(
        """
        pid, pidfd = clone(0, "/bin/sh", ["sh", "-c", "echo $A"])
        os.waitpid(pid, 0)
        """,
        env={"A": "mine"},
    )
    assert done.stdout == "mine\n"


def test_clone_failure_leaves_no_child() -> None:
    """After a failed exec there is nothing to wait for."""
    with pytest.raises(FileNotFoundError):
        lowlevel.clone(CloneFlag.CLONE_NEWUSER | CloneFlag.CLONE_NEWPID, "/none", ["x"])
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_clone_keeps_no_descriptor_of_its_own() -> None:
    """What clone opens is the pidfd that it returns."""
    before = open_fds()
    pid, pidfd = lowlevel.clone(0, "/bin/true", ["true"])
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert open_fds().keys() - before.keys() == {pidfd}
    finally:
        os.close(pidfd)
