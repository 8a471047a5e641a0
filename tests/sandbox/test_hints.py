"""The advice in an error names the true cause, and following it helps."""

import errno
import os
import pty
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import cffi
import pytest

from nsbox import (
    Bind,
    Namespace,
    NamespaceError,
    NsboxError,
    Overlay,
    Sandbox,
    SpawnError,
    Step,
    Tmpfs,
    lowlevel,
)
from nsbox.lowlevel import CloneFlag, MountFlag
from support import SOURCE, enter_private_mounts, in_child, inside, mount_tmpfs, python_box

pytestmark = pytest.mark.usefixtures("box")

Report = tuple[str, int | None, str]


def _failure(box: Sandbox, *args: str, **options: Any) -> Report:
    """Return step, errno and hint of a run that has to fail."""
    with pytest.raises(SpawnError) as caught:
        box.run(args or ["/bin/true"], **options)
    return caught.value.step, caught.value.errno, caught.value.hint or ""


# ---- hosts ---------------------------------------------------------------


def test_caller_without_mapped_ids() -> None:
    """In a user namespace without maps the advice is to map, not to look for a filter."""

    def child() -> Report:
        lowlevel.unshare(CloneFlag.CLONE_NEWUSER)
        return _failure(Sandbox())

    step, code, hint = in_child(child)
    assert (step, code) == (Step.CLONE, errno.EPERM)
    assert "not mapped" in hint


@pytest.mark.parametrize("user", ["new", "host"])
def test_chroot(user: Literal["new", "host"], rootfs: Path) -> None:
    """A caller in a chroot is told that it is one."""

    def child() -> Report:
        enter_private_mounts()
        box = Sandbox(root="/", user=user)
        for name in ("proc", "dev"):
            (rootfs / name).mkdir()
            flags = MountFlag.MS_BIND | MountFlag.MS_REC
            lowlevel.mount(f"/{name}", rootfs / name, None, flags)
        os.chroot(rootfs)
        return _failure(box)

    step, code, hint = in_child(child)
    if user == "new":
        assert (step, code) == (Step.CLONE, errno.EPERM)
        assert "lives in a chroot" in hint
    else:
        assert (step, code) == (Step.PROPAGATION, errno.EINVAL)
        assert "(a chroot)" in hint


def test_covered_sysctls() -> None:
    """Where a container covers /proc/sys, the advice names a way on, and it is one."""

    def child() -> tuple[Report, int]:
        enter_private_mounts()
        flags = MountFlag.MS_BIND
        lowlevel.mount("/proc/sys", "/proc/sys", None, flags)
        lowlevel.mount(None, "/proc/sys", None, flags | MountFlag.MS_REMOUNT | MountFlag.MS_RDONLY)
        failure = _failure(Sandbox(pid="host"))
        return failure, Sandbox(pid="host", user_namespaces=True).run(["/bin/true"]).returncode

    (step, code, hint), status = in_child(child)
    assert (step, code) == (Step.PROC_SYS, errno.EXDEV)
    assert "user_namespaces=True" in hint
    assert status == 0


def test_proc_of_another_pid_namespace() -> None:
    """Where /proc shows other pids than the caller's own, the advice is to mount the right one."""

    def child() -> tuple[Report, int]:
        enter_private_mounts()
        lowlevel.unshare(CloneFlag.CLONE_NEWPID)

        def first() -> tuple[Report, int]:
            report = _failure(Sandbox())
            lowlevel.mount("proc", "/proc", "proc")
            return report, Sandbox().run(["/bin/true"]).returncode

        return in_child(first)

    (step, code, hint), status = in_child(child)
    assert step in (Step.SETGROUPS_DENY, Step.UID_MAP)
    assert code in (errno.EACCES, errno.EPERM, errno.ENOENT)
    assert "another pid namespace" in hint
    assert status == 0


def test_proc_missing() -> None:
    """Without /proc the advice says so."""

    def child() -> str:
        enter_private_mounts()
        mount_tmpfs(Path("/proc"))
        return _failure(Sandbox())[2]

    assert "not mounted" in in_child(child)


def test_proc_read_only() -> None:
    """With a read-only /proc the advice says so."""

    def child() -> Report:
        enter_private_mounts()
        lowlevel.mount("/proc", "/proc", None, MountFlag.MS_BIND | MountFlag.MS_REC)
        flags = MountFlag.MS_REMOUNT | MountFlag.MS_BIND | MountFlag.MS_RDONLY
        restricted = MountFlag.MS_NOSUID | MountFlag.MS_NODEV | MountFlag.MS_NOEXEC
        lowlevel.mount(None, "/proc", None, flags | restricted)
        return _failure(Sandbox())

    _, code, hint = in_child(child)
    assert code == errno.EROFS
    assert "read-only" in hint


def test_covered_proc_and_the_hosts_pids() -> None:
    """Where no procfs can be mounted, pid="host" works, as the advice says."""

    def child() -> tuple[Report, int]:
        enter_private_mounts()
        mount_tmpfs(Path("/proc/sys/kernel"))
        return _failure(Sandbox()), Sandbox(pid="host").run(["/bin/true"]).returncode

    (_, _, hint), status = in_child(child)
    assert "pid='host'" in hint
    assert status == 0


_NESTED = """
import json, sys
sys.path[:0] = sys.argv[1:]
import nsbox
try:
    code, hint = nsbox.Sandbox(FIELDS).run(["/bin/true"]).returncode, ""
except nsbox.SpawnError as error:
    code, hint = error.step, error.hint
print(json.dumps([code, hint]))
"""


def _nested(inner: str = "", **fields: Any) -> tuple[Any, str]:
    """Spawn from within a sandbox; return the status, or step and hint."""
    places = [SOURCE, Path(cffi.__file__).parents[1]]
    shown = {f"/mnt/{number}": place for number, place in enumerate(places)}
    box = python_box(mounts=[Bind(place, path) for path, place in shown.items()], **fields)
    code, hint = inside(_NESTED.replace("FIELDS", inner), *shown, box=box)
    return code, hint


def test_nested_without_user_namespaces() -> None:
    """Where the outer sandbox forbids user namespaces, the advice names its filter."""
    step, hint = _nested()
    assert step == Step.CLONE
    assert "seccomp filter" in hint


def test_nested_as_the_sandboxs_root() -> None:
    """A payload that is user 0 without capabilities cannot nest, and hears what would help."""
    step, hint = _nested(user_namespaces=True)
    assert step == Step.UID_MAP
    assert "CAP_SETFCAP" in hint
    assert "Sandbox(uid=1000, gid=1000)" in hint


def test_nested_as_another_user() -> None:
    """What that advice says leads on to the masks of /proc, and what this one says works."""
    step, hint = _nested(user_namespaces=True, uid=1000, gid=1000)
    assert step == Step.FSMOUNT
    assert "pid='host'" in hint
    assert _nested("pid='host'", user_namespaces=True, uid=1000, gid=1000) == (0, "")


# ---- limits of the caller ------------------------------------------------


def test_few_descriptors() -> None:
    """Out of descriptors: the advice names the limit."""

    def child() -> Report:
        resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))
        return _failure(Sandbox())

    _, code, hint = in_child(child)
    assert code == errno.EMFILE
    assert "RLIMIT_NOFILE" in hint


def test_small_files() -> None:
    """A limit on the size of files hits the files of /etc, and is named."""

    def child() -> Report:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        report = _failure(Sandbox())
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return report

    step, code, hint = in_child(child)
    assert (step, code) == (Step.WRITE_FILE, errno.EFBIG)
    assert "RLIMIT_FSIZE" in hint


# ---- namespaces ----------------------------------------------------------


def test_join_of_a_pid_namespace_that_has_ended(box: Sandbox) -> None:
    """ENOMEM is what the kernel says when the first process is gone; the advice says it."""
    with box.spawn(["/bin/sleep", "60"]) as process:
        user, pid = process.namespaces["user"], process.namespaces["pid"]
        process.kill()
    with user, pid:
        step, code, hint = _failure(Sandbox(user=user, pid=pid))
    assert (step, code) == (Step.CLONE, errno.ENOMEM)
    assert "first process has ended" in hint


def test_join_of_ones_own_user_namespace() -> None:
    """The user namespace of the caller itself cannot be joined, and the advice says why."""
    with Namespace.of(0, "user") as own:
        step, code, hint = _failure(Sandbox(user=own))
    assert (step, code) == (Step.SETNS, errno.EINVAL)
    assert "already" in hint


def test_procfs_of_a_joined_pid_namespace(box: Sandbox) -> None:
    """A procfs that is refused for want of rights over the pids is not laid to a covered /proc."""
    with box.spawn(["/bin/sleep", "60"]) as process:
        with process.namespaces["pid"] as pid, process.namespaces["user"] as user:
            other = Sandbox(pid=pid, user="new" if os.geteuid() == 0 else user)
            if os.geteuid() == 0:
                step, code, hint = _failure(other)
                assert (step, code) == (Step.FSCONFIG_CREATE, errno.EPERM)
                assert "owns the pid namespace" in hint
            else:
                assert other.run(["/bin/true"]).returncode == 0
        process.kill()


def _namespace_hint(act: Callable[[], object]) -> str:
    with pytest.raises(NamespaceError) as caught:
        act()
    return caught.value.hint or ""


def test_relatives_of_a_namespace() -> None:
    """What has no parent, or one out of sight, is said to."""
    with Namespace.of(0, "net") as net, Namespace.create("user") as user:
        assert "only pid and user" in _namespace_hint(net.parent)
        with user.parent() as parent:
            assert parent.id == os.stat("/proc/self/ns/user").st_ino

    def child() -> str:
        lowlevel.unshare(CloneFlag.CLONE_NEWUSER)
        with Namespace.of(0, "user") as own:
            return _namespace_hint(own.parent)

    assert "out of sight" in in_child(child)


def test_namespace_of_no_process() -> None:
    """A process that is gone is said to be."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    assert "has ended" in _namespace_hint(lambda: Namespace.of(pid, "net"))


def test_persist_without_the_right(tmp_path: Path, plain_user: None) -> None:
    """A plain user cannot keep a namespace at a path, and hears what it can do."""
    with Namespace.create("user") as user:
        assert "CAP_SYS_ADMIN" in _namespace_hint(lambda: user.persist(tmp_path / "user"))
    assert list(tmp_path.iterdir()) == []


def test_persist_where_it_cannot_be(tmp_path: Path) -> None:
    """A directory as path, and a mount namespace in itself, are explained."""

    def child() -> list[str]:
        enter_private_mounts()
        with Namespace.of(0, "net") as net, Namespace.of(0, "mnt") as mnt:
            return [
                _namespace_hint(lambda: net.persist(tmp_path)),
                _namespace_hint(lambda: mnt.persist(tmp_path / "mnt")),
            ]

    directory, itself = in_child(child)
    assert "not to a directory" in directory
    assert "older" in itself


# ---- requests ------------------------------------------------------------


@pytest.mark.parametrize(
    "mount",
    [
        lambda path: Tmpfs("/usr/bin/env"),
        lambda path: Overlay(path, "/usr/bin/env"),
        lambda path: Bind(path, "/usr/bin/env"),
        lambda path: Bind("/usr/bin/env", "/usr/bin"),
    ],
    ids=["tmpfs", "overlay", "directory", "file"],
)
def test_a_file_and_a_directory(tmp_path: Path, mount: Callable[[Path], Any]) -> None:
    """Whatever is mounted on a file, or a file on a directory: the advice is the rule."""
    step, _, hint = _failure(Sandbox(mounts=[mount(tmp_path)]))
    assert step == Step.MOVE_MOUNT
    assert "a file can only be mounted on a file" in hint


@pytest.mark.parametrize("mount", [Bind, Overlay, lambda *args: Bind(*args, idmap=True)])
def test_relative_source_that_is_missing(mount: Callable[..., Any]) -> None:
    """Where a relative path starts is said of such a path only."""
    words = "caller's working directory"
    assert words in _failure(Sandbox(mounts=[mount("none", "/x")]))[2]
    assert words not in _failure(Sandbox(mounts=[mount("/none", "/x")]))[2]


def test_below_a_file() -> None:
    """A mount point below a file has advice."""
    box = Sandbox(mounts=[Bind("/usr/bin/env", "/a"), Tmpfs("/a/b")])
    step, code, hint = _failure(box)
    assert (step, code) == (Step.TARGET, errno.ENOTDIR)
    assert "is a file" in hint


def test_root_that_is_closed_to_the_payload(rootfs: Path, root: None) -> None:
    """A root directory that root's payload, nobody, may not enter: the advice opens it."""
    box = Sandbox(root=rootfs)
    rootfs.chmod(0o700)
    step, code, hint = _failure(box, "/bin/sh", "-c", "true")
    assert (step, code) == (Step.TARGET, errno.EACCES)
    assert "chmod a+rx" in hint
    rootfs.chmod(0o755)
    assert box.run(["/bin/sh", "-c", "true"]).returncode == 0


def test_read_only_root_without_mount_points(plain_user: None) -> None:
    """Where no overlay can be made for the missing mount points, the advice is about those."""
    step, code, hint = _failure(Sandbox(root="/proc"))
    assert (step, code) == (Step.FSCONFIG_CREATE, errno.EINVAL)
    assert "mount points are missing" in hint


def test_source_by_descriptor(tmp_path: Path, plain_user: None) -> None:
    """A source that is a plain user's descriptor is in other mounts than those it can clone."""
    fd = os.open(tmp_path, os.O_PATH)
    step, code, hint = _failure(Sandbox(mounts=[Bind(f"/proc/self/fd/{fd}", "/x")]))
    os.close(fd)
    assert (step, code) == (Step.OPEN_TREE, errno.EINVAL)
    assert "its own path" in hint


def test_overlay_of_a_file() -> None:
    """A lower layer that is a file: the advice says what it has to be."""
    assert "must be directories" in _failure(Sandbox(mounts=[Overlay("/usr/bin/env", "/a")]))[2]


@pytest.mark.parametrize("command", ["echo hi", "/bin/echo hi"])
def test_command_line_as_str(box: Sandbox, command: str) -> None:
    """A str is a program's name, as for subprocess; who gave a command line is told."""
    step, code, hint = _failure(box, command)
    assert (step, code) == (Step.EXECVE, errno.ENOENT)
    assert "shell=True" in hint


def test_arguments_too_long(box: Sandbox) -> None:
    """E2BIG says how long they may be."""
    _, code, hint = _failure(box, "/bin/true", "x" * 200_000)
    assert code == errno.E2BIG
    assert "128 KiB" in hint


def test_controlling_terminal_that_is_none(box: Sandbox) -> None:
    """A stdin that is no terminal cannot be the controlling one: the advice is to open one."""
    with open(os.devnull) as null:
        _, code, hint = _failure(box, stdin=null, controlling_terminal=True)
    assert code == errno.ENOTTY
    assert "os.openpty()" in hint


def test_controlling_terminal_of_another_session(box: Sandbox) -> None:
    """A terminal that controls another session is refused, and the advice is a new one."""
    pid, master = pty.fork()
    if pid == 0:
        try:
            _, code, hint = _failure(Sandbox(), stdin=0, controlling_terminal=True)
            os.write(1, f"{code} {hint}".encode())
        except (AssertionError, NsboxError, OSError) as error:
            os.write(1, repr(error).encode())
        finally:
            os._exit(0)
    with open(master, "rb", buffering=0) as terminal:
        text = terminal.read(4096).decode()
    os.waitpid(pid, 0)
    assert text.startswith(f"{errno.EPERM} ")
    assert "another session" in text


# ---- programs ------------------------------------------------------------


def test_name_that_a_closed_directory_of_path_may_have(tmp_path: Path) -> None:
    """Nobody is told that a program is not executable which may not exist."""
    closed = tmp_path / "closed"
    closed.mkdir(0o000)
    (tmp_path / "data").touch(0o644)
    box = Sandbox(
        mounts=[Bind(tmp_path, "/data")],
        env={"PATH": "/data/closed:/usr/bin"},
        host_uid=os.geteuid(),
        host_gid=os.getegid(),
    )
    step, code, hint = _failure(box, "missing-program")
    assert (step, code) == (Step.EXECVE, errno.EACCES)
    assert hint.startswith("no directory of PATH has such a program; one of them may not be")
    step, code, hint = _failure(box, "/data/data")
    assert (step, code, hint) == (Step.EXECVE, errno.EACCES, "it is not executable")
