"""Wrong input, and hosts that lack something: a typed error that says what, and nothing left."""

import errno
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nsbox import (
    Bind,
    Dev,
    Namespace,
    NamespaceError,
    Overlay,
    PlanError,
    Proc,
    Sandbox,
    SpawnError,
    Step,
    Tmpfs,
)
from nsbox.errors import PlanTypeError
from support import (
    SOURCE,
    enter_private_mounts,
    expose,
    in_child,
    mount_tmpfs,
)

pytestmark = [pytest.mark.usefixtures("box"), pytest.mark.one_kernel]

# ---- values that cannot be meant: refused before anything is started -----

PLAN_ERRORS: dict[str, Callable[[], object]] = {
    "root_nul": lambda: Sandbox(root="/tmp/a\0b"),
    "root_empty": lambda: Sandbox(root=""),
    "bind_nul": lambda: Bind("/tmp/a\0b"),
    "bind_target_nul": lambda: Bind("/tmp", "/a\0b"),
    "bind_target_dotdot": lambda: Bind("/tmp", "/a/../b"),
    "bind_target_relative": lambda: Bind("/tmp", "a"),
    "tmpfs_dotdot": lambda: Tmpfs("/a/.."),
    "proc_dotdot": lambda: Proc("/.."),
    "dev_dotdot": lambda: Dev("/dev/.."),
    "overlay_dotdot": lambda: Overlay("/tmp", "/../x"),
    "overlay_no_lower": lambda: Overlay([]),
    "overlay_upper_alone": lambda: Overlay("/tmp", upper="/var/tmp/u"),
    "size_unit": lambda: Tmpfs("/tmp", size="12Q"),
    "size_negative": lambda: Tmpfs("/tmp", size=-1),
    "size_zero": lambda: Tmpfs("/tmp", size=0),
    "size_blank": lambda: Tmpfs("/tmp", size=""),
    "size_lower_case": lambda: Tmpfs("/tmp", size="1m"),
    "inodes_negative": lambda: Tmpfs("/tmp", inodes=-1),
    "mode_too_large": lambda: Tmpfs("/tmp", mode=0o10000),
    "uid_negative": lambda: Sandbox(uid=-1),
    "gid_negative": lambda: Sandbox(gid=-1),
    "uid_too_large": lambda: Sandbox(uid=2**32 - 1),
    "cwd_dotdot": lambda: Sandbox(cwd="/tmp/.."),
    "cwd_relative": lambda: Sandbox(cwd="tmp"),
    "two_on_one_target": lambda: Sandbox(mounts=[Tmpfs("/x"), Bind("/usr", "/x/")]),
    "over_root": lambda: Sandbox(mounts=[Tmpfs("/")]),
    "over_proc": lambda: Sandbox(mounts=[Tmpfs("/proc")]),
    "over_dev": lambda: Sandbox(mounts=[Bind("/usr", "/dev")]),
    "host_proc": lambda: Sandbox(mounts=[Bind("/proc")]),
    "proc_for_host_pids": lambda: Sandbox(pid="host", mounts=[Proc()]),
    "hostname_line": lambda: Sandbox(hostname="a\n1.2.3.4 b"),
    "hostname_space": lambda: Sandbox(hostname="a b"),
    "hostname_empty": lambda: Sandbox(hostname=""),
    "hostname_long": lambda: Sandbox(hostname="a" * 65),
    "hostname_of_host": lambda: Sandbox(hostname="a", uts="host"),
    "namespace_mode": lambda: Sandbox(net="none"),
    "namespace_kind": lambda: Namespace.create("network"),
    "namespace_of_kind": lambda: Namespace.of(0, "mount"),
    "env_name": lambda: Sandbox(env={"A=B": "c"}),
    "env_nul": lambda: Sandbox(env={"A": "b\0c"}),
    "capability": lambda: Sandbox(capabilities=["FLY"]),
    "preexec_fn": lambda: Sandbox().run(
        ["/bin/true"],
        preexec_fn=print,  # type: ignore[arg-type]
    ),
    "argv_empty": lambda: Sandbox().run([]),
    "argv_nul": lambda: Sandbox().run(["/bin/echo", "a\0b"]),
    "run_cwd_dotdot": lambda: Sandbox().run(["/bin/true"], cwd="/tmp/.."),
    "run_env_nul": lambda: Sandbox().run(["/bin/true"], env={"A": "\0"}),
    "input_and_stdin": lambda: Sandbox().run(["/bin/true"], input=b"", stdin=0),
    "capture_and_stdout": lambda: Sandbox().run(["/bin/true"], capture_output=True, stdout=1),
    "pass_fds_giant": lambda: Sandbox().run(["/bin/true"], pass_fds=[10**5000]),
    "timeout_nan": lambda: Sandbox().run(["/bin/true"], timeout=float("nan")),
    "process_group_huge": lambda: Sandbox().run(["/bin/true"], process_group=1 << 31),
    "terminal_without_session": lambda: Sandbox().run(
        ["/bin/true"], controlling_terminal=True, start_new_session=False
    ),
}

TYPE_ERRORS: dict[str, Callable[[], object]] = {
    "uid_str": lambda: Sandbox(uid="0"),  # type: ignore[arg-type]
    "uid_bool": lambda: Sandbox(uid=True),
    "uid_float": lambda: Sandbox(uid=1.0),  # type: ignore[arg-type]
    "gid_str": lambda: Sandbox(gid="01"),  # type: ignore[arg-type]
    "host_uid_str": lambda: Sandbox(host_uid="1"),  # type: ignore[arg-type]
    "size_float": lambda: Tmpfs("/tmp", size=1.5),  # type: ignore[arg-type]
    "size_bool": lambda: Tmpfs("/tmp", size=True),
    "mode_str": lambda: Tmpfs("/tmp", mode="755"),  # type: ignore[arg-type]
    "bind_source": lambda: Bind(3),  # type: ignore[arg-type]
    "bind_readonly": lambda: Bind("/usr", readonly=1),  # type: ignore[arg-type]
    "mounts_item": lambda: Sandbox(mounts=["/usr"]),  # type: ignore[list-item]
    "mounts_one": lambda: Sandbox(mounts=Tmpfs("/x")),  # type: ignore[arg-type]
    "env_value": lambda: Sandbox(env={"A": 1}),  # type: ignore[dict-item]
    "env_list": lambda: Sandbox(env=["A=b"]),  # type: ignore[arg-type]
    "capabilities_str": lambda: Sandbox(capabilities="SYS_ADMIN"),
    "namespace_owner": lambda: Namespace.create("net", owner="user"),  # type: ignore[arg-type]
    "namespace_kind_int": lambda: Namespace.create(1),  # type: ignore[arg-type]
    "argv_int": lambda: Sandbox().run(["/bin/echo", 1]),  # type: ignore[list-item]
    "argv_none": lambda: Sandbox().run([None]),  # type: ignore[list-item]
    "args_none": lambda: Sandbox().run(None),  # type: ignore[arg-type]
    "args_int": lambda: Sandbox().run(5),  # type: ignore[arg-type]
    "pass_fds_int": lambda: Sandbox().run(["/bin/true"], pass_fds=3),  # type: ignore[arg-type]
    "pass_directories_int": lambda: Sandbox().run(
        ["/bin/true"],
        pass_directories=3,  # type: ignore[arg-type]
    ),
    "process_group_str": lambda: Sandbox().run(
        ["/bin/true"],
        start_new_session=False,
        process_group="0",  # type: ignore[arg-type]
    ),
    "stdin_path": lambda: Sandbox().run(["/bin/cat"], stdin="/etc/passwd"),  # type: ignore[arg-type]
    "input_text": lambda: Sandbox().run(["/bin/cat"], input="text"),
    "input_bytes": lambda: Sandbox().run(["/bin/cat"], input=b"bytes", text=True),
    "unknown_option": lambda: Sandbox().run(["/bin/true"], memory=1),  # type: ignore[call-arg]
    "timeout_str": lambda: Sandbox().run(["/bin/true"], timeout="1"),  # type: ignore[arg-type]
    "new_session_str": lambda: Sandbox().run(
        ["/bin/true"],
        start_new_session="no",  # type: ignore[arg-type]
    ),
    "terminal_int": lambda: Sandbox().run(
        ["/bin/true"],
        controlling_terminal=1,  # type: ignore[arg-type]
    ),
}


def test_program_of_wrong_type_is_named() -> None:
    """An executable that is none is not said to be one of args."""
    with pytest.raises(PlanTypeError, match="executable"):
        Sandbox().run(["/bin/true"], executable=3)  # type: ignore[arg-type]


def test_bytes_where_text_may_be() -> None:
    """Paths of bytes are not compared with text, which is an error by python -bb."""
    program = f"""
import sys
sys.path.insert(0, {str(SOURCE)!r})
from nsbox import Sandbox
box = Sandbox(cwd=b"/tmp", env={{b"A": b"b"}})
for run in (box.run, box.subprocess.run):
    run([b"/bin/pwd"], cwd=b"/usr", check=True)
"""
    command = [sys.executable, "-bb", "-c", program]
    assert subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout == b"/usr\n" * 2


@pytest.mark.parametrize("encoding", ["latin-0", "rot13"])
def test_unknown_encoding(encoding: str) -> None:
    """An encoding that is none for text is Popen's LookupError, with no pipe left open."""
    with pytest.raises(LookupError, match=encoding):
        Sandbox().run(["/bin/true"], capture_output=True, encoding=encoding)


@pytest.mark.parametrize("make", PLAN_ERRORS.values(), ids=PLAN_ERRORS)
def test_value_that_cannot_be_meant(make: Callable[[], object]) -> None:
    """A value that cannot be meant is a PlanError, which is a ValueError."""
    with pytest.raises(PlanError) as caught:
        make()
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("make", TYPE_ERRORS.values(), ids=TYPE_ERRORS)
def test_value_of_wrong_type(make: Callable[[], object]) -> None:
    """A value of a wrong type is a PlanTypeError, which is a TypeError."""
    with pytest.raises(PlanTypeError) as caught:
        make()
    assert isinstance(caught.value, TypeError)


# ---- what only the kernel can refuse --------------------------------------


@dataclass(frozen=True)
class Refused:
    """A spawn that fails: how to make it in a directory, and what the error has to say."""

    make: Callable[[Path], tuple[Sandbox, list[str]]]
    step: Step
    errno: int
    path: str
    """{tmp} stands for the directory of the test."""
    builtin: type[OSError] = OSError


def _file(path: Path, content: bytes, mode: int = 0o755) -> str:
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


def _program(content: bytes, mode: int = 0o755) -> Callable[[Path], tuple[Sandbox, list[str]]]:
    def make(tmp: Path) -> tuple[Sandbox, list[str]]:
        source = _file(tmp / "program", content, mode)
        return Sandbox(mounts=[Bind(source, "/program")]), ["/program"]

    return make


def _foreign_elf() -> bytes:
    """Return the header of a 64-bit big-endian program for S/390."""
    ident = b"\x7fELF" + bytes([2, 2, 1]) + bytes(9)
    return ident + struct.pack(">HHIQQQIHHHHHH", 2, 22, 1, 0, 64, 0, 0, 64, 56, 0, 0, 0, 0)


TRUE = ["/bin/true"]

REFUSED = {
    "root_missing": Refused(
        lambda tmp: (Sandbox(root=tmp / "missing"), TRUE),
        Step.OPEN_TREE,
        errno.ENOENT,
        "{tmp}/missing",
    ),
    "bind_file_on_directory": Refused(
        lambda tmp: (
            Sandbox(mounts=[Bind("/usr"), Bind(_file(tmp / "file", b""), "/usr/bin")]),
            TRUE,
        ),
        Step.MOVE_MOUNT,
        errno.EINVAL,
        "/usr/bin",
    ),
    "bind_source_missing": Refused(
        lambda tmp: (Sandbox(mounts=[Bind(tmp / "missing", "/x")]), TRUE),
        Step.OPEN_TREE,
        errno.ENOENT,
        "{tmp}/missing",
    ),
    "writable_bind_source_missing": Refused(
        lambda tmp: (Sandbox(mounts=[Bind(tmp / "missing", "/x", readonly=False)]), TRUE),
        Step.OPEN_TREE,
        errno.ENOENT,
        "{tmp}/missing",
    ),
    "overlay_lower_missing": Refused(
        lambda tmp: (Sandbox(mounts=[Overlay(tmp / "missing", "/x")]), TRUE),
        Step.OPEN_TREE,
        errno.ENOENT,
        "{tmp}/missing",
    ),
    "cwd_missing": Refused(
        lambda tmp: (Sandbox(cwd="/missing"), TRUE),
        Step.CHDIR,
        errno.ENOENT,
        "/missing",
        FileNotFoundError,
    ),
    "cwd_is_file": Refused(
        lambda tmp: (Sandbox(cwd="/etc/passwd"), TRUE),
        Step.CHDIR,
        errno.ENOTDIR,
        "/etc/passwd",
        NotADirectoryError,
    ),
    "executable_missing": Refused(
        lambda tmp: (Sandbox(), ["/missing"]),
        Step.EXECVE,
        errno.ENOENT,
        "/missing",
        FileNotFoundError,
    ),
    "executable_not_in_path": Refused(
        lambda tmp: (Sandbox(), ["no-such-program"]),
        Step.EXECVE,
        errno.ENOENT,
        "no-such-program",
        FileNotFoundError,
    ),
    "executable_not_executable": Refused(
        _program(b"#!/bin/sh\n", 0o644),
        Step.EXECVE,
        errno.EACCES,
        "/program",
        PermissionError,
    ),
    "executable_of_another_machine": Refused(
        _program(_foreign_elf()), Step.EXECVE, errno.ENOEXEC, "/program"
    ),
    "executable_is_text": Refused(_program(b"echo hi\n"), Step.EXECVE, errno.ENOEXEC, "/program"),
    "interpreter_missing": Refused(
        _program(b"#!/missing/interpreter\n"),
        Step.EXECVE,
        errno.ENOENT,
        "/program",
        FileNotFoundError,
    ),
    "executable_is_directory": Refused(
        lambda tmp: (Sandbox(), ["/usr/bin"]),
        Step.EXECVE,
        errno.EACCES,
        "/usr/bin",
        PermissionError,
    ),
    "executable_below_a_file": Refused(
        lambda tmp: (Sandbox(), ["/etc/passwd/x"]),
        Step.EXECVE,
        errno.ENOTDIR,
        "/etc/passwd/x",
        NotADirectoryError,
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused_spawn(case: Refused, tmp_path: Path) -> None:
    """A spawn that cannot work raises a SpawnError with the step, errno and path at fault."""
    box, args = case.make(expose(tmp_path))
    with pytest.raises(SpawnError) as caught:
        box.run(args)
    error = caught.value
    found = error.step, errno.errorcode[error.errno or 0], error.path
    assert found == (case.step, errno.errorcode[case.errno], case.path.format(tmp=tmp_path))
    assert isinstance(error, case.builtin)


def test_root_that_is_a_file_is_explained(tmp_path: Path) -> None:
    """A root that is a file gives an error that names it, or a hint."""
    path = _file(tmp_path / "file", b"")
    with pytest.raises(SpawnError) as caught:
        Sandbox(root=path).run(TRUE)
    assert caught.value.path == path or caught.value.hint is not None


def test_file_bound_on_a_directory_has_a_hint(tmp_path: Path) -> None:
    """The EINVAL of a file mounted on a directory comes with advice."""
    box, args = REFUSED["bind_file_on_directory"].make(expose(tmp_path))
    with pytest.raises(SpawnError) as caught:
        box.run(args)
    assert caught.value.hint is not None


def test_handler_raises_while_descriptors_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a signal handler raises then is no bad descriptor, though it is an OSError."""

    def get_inheritable(fd: int) -> bool:
        raise TimeoutError("time is up")

    monkeypatch.setattr(os, "get_inheritable", get_inheritable)
    with pytest.raises(TimeoutError, match="time is up"):
        Sandbox().run(TRUE, stdin=0)


def test_cwd_through_a_magic_link_is_refused() -> None:
    """A working directory given as /proc/self/fd/N cannot be one of the host."""
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY)
    os.set_inheritable(fd, True)
    try:
        with pytest.raises(SpawnError) as caught:
            Sandbox().run(TRUE, cwd=f"/proc/self/fd/{fd}", pass_directories=[fd])
    finally:
        os.close(fd)
    assert (caught.value.step, caught.value.errno) == (Step.CHDIR, errno.ELOOP)


def test_directory_is_passed_only_by_name(tmp_path: Path) -> None:
    """A directory among pass_fds is refused; named as one it reaches the payload and works."""
    (expose(tmp_path) / "file").write_text("content")
    box = Sandbox()
    fd = os.open(tmp_path, os.O_RDONLY)
    command = ["/bin/cat", f"/proc/self/fd/{fd}/file"]
    try:
        for run in (box.run, box.subprocess.run):
            with pytest.raises(PlanError, match="pass_directories"):
                run(command, pass_fds=[fd])
        result = box.run(command, pass_directories=[fd], capture_output=True)
    finally:
        os.close(fd)
    assert result.stdout == b"content"


def test_closed_namespace_is_refused_by_spawn() -> None:
    """A Sandbox with a closed Namespace raises before its number can mean another file."""
    namespace = Namespace.of(0, "uts")
    box = Sandbox(uts=namespace)
    namespace.close()
    with pytest.raises(PlanError):
        box.run(TRUE)


def test_closed_namespace_is_refused_by_enter() -> None:
    """A closed Namespace cannot be entered."""
    namespace = Namespace.of(0, "uts")
    namespace.close()
    with pytest.raises(PlanError), namespace.enter():
        pass


@pytest.mark.parametrize("path", ["/dev/null", "/etc/passwd"])
def test_no_namespace_at_path(path: str) -> None:
    """A path that is no namespace is a NamespaceError with that path."""
    with pytest.raises(NamespaceError) as caught:
        Namespace.open(path)
    found = caught.value.step, caught.value.errno, caught.value.filename
    assert found == (Step.NAMESPACE_OPEN, errno.ENOTTY, path)


def test_namespace_of_missing_process() -> None:
    """A process that does not exist has no namespace to open."""
    with pytest.raises(NamespaceError) as caught:
        Namespace.of(2**22 + 1, "net")
    assert caught.value.errno == errno.ENOENT


def test_error_survives_pickling() -> None:
    """A SpawnError that crosses to another process keeps its type and its facts."""
    import pickle

    with pytest.raises(SpawnError) as caught:
        Sandbox().run(["/missing"])
    error = caught.value
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.step, copy.errno, copy.path, copy.hint) == (
        type(error),
        error.step,
        error.errno,
        error.path,
        error.hint,
    )


# ---- hosts that lack something --------------------------------------------

_PROGRAM = """
import json, sys
import nsbox
try:
    result = nsbox.Sandbox().run(["/bin/sh", "-c", "echo $$"], capture_output=True, text=True)
    report = {"stdout": result.stdout}
except nsbox.SpawnError as error:
    report = {"step": error.step, "errno": error.errno, "hint": error.hint}
with open("/proc/thread-self/children") as file:
    report["children"] = file.read()
print(json.dumps(report))
"""


def _with_injection(strace: str, expression: str, tmp_path: Path) -> dict[str, Any]:
    command = [strace, "-f", "-qq", "-o", str(tmp_path / "log"), "-e", f"inject={expression}"]
    result = subprocess.run(
        [*command, sys.executable, "-c", _PROGRAM],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=True,
    )
    report: dict[str, Any] = json.loads(result.stdout)
    return report


@pytest.mark.parametrize("name", ["EINVAL", "EPERM", "EAGAIN", "ENOMEM"])
def test_clone3_fails(strace: str, tmp_path: Path, name: str) -> None:
    """A kernel or filter that refuses clone3 gives a SpawnError with its errno."""
    report = _with_injection(strace, f"clone3:error={name}", tmp_path)
    assert (report["step"], report["errno"]) == (Step.CLONE, getattr(errno, name))
    assert report["children"] == ""


@pytest.mark.parametrize("name", ["EPERM", "EAGAIN"])
def test_clone3_failure_has_a_hint(strace: str, tmp_path: Path, name: str) -> None:
    """A refused clone3 comes with advice."""
    assert _with_injection(strace, f"clone3:error={name}", tmp_path)["hint"]


def test_clone3_missing_falls_back_to_clone(strace: str, tmp_path: Path) -> None:
    """Where clone3 is hidden by ENOSYS, clone does the same."""
    report = _with_injection(strace, "clone3:error=ENOSYS", tmp_path)
    assert report == {"stdout": "1\n", "children": ""}


_FEW_DESCRIPTORS = """
import json, os, resource
import nsbox
full = os.dup(2)
os.close(full)
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
print("[")
for free in range(64):
    if os.fork() == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (full + free, limits[1]))
        try:
            report = [nsbox.Sandbox(init=INIT).run(["/bin/true"]).returncode]
        except nsbox.SpawnError as error:
            report = [error.step, error.errno, error.hint]
        except BaseException as error:
            report = [repr(error)]
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        report.append(str(nsbox.Sandbox(init=INIT).explain()))
        os.write(1, json.dumps(report).encode() + b",")
        os._exit(0)
    os.wait()
os.write(1, b"0]")
"""


@pytest.mark.parametrize("init", [False, True])
def test_few_descriptors_for_the_first_spawn(init: bool) -> None:
    """
    However many a program can open when it spawns for the first time: it works, or EMFILE.

    What it could not see then it does not take for missing afterwards.
    """
    result = subprocess.run(
        [sys.executable, "-c", _FEW_DESCRIPTORS.replace("INIT", str(init))],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    reports = json.loads(result.stdout)[:-1]
    assert len({report.pop() for report in reports}) == 1
    works = reports.index([0])
    assert reports[works:] == [[0]] * (64 - works)
    assert reports[0][:2] == [Step.HOST, errno.EMFILE]
    for _, code, hint in reports[:works]:
        assert code == errno.EMFILE
        assert "RLIMIT_NOFILE" in hint


def _spawn_error() -> tuple[str, int | None, str | None, str | None]:
    try:
        Sandbox().run(TRUE)
    except SpawnError as error:
        return error.step, error.errno, error.path, error.hint
    return "none", None, None, None


def test_user_namespaces_forbidden_by_sysctl() -> None:
    """With user.max_user_namespaces=0 a spawn fails with ENOSPC and names the sysctl."""

    def child() -> tuple[str, int | None, str | None, str | None]:
        from nsbox import lowlevel

        uid, gid = os.geteuid(), os.getegid()
        lowlevel.unshare(lowlevel.CloneFlag.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
        # The limit of this very user namespace, not the host's.
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
        return _spawn_error()

    step, code, _, hint = in_child(child)
    assert (step, code) == (Step.CLONE, errno.ENOSPC)
    assert hint is not None
    assert "user.max_user_namespaces" in hint


def test_covered_proc() -> None:
    """Where a part of /proc is covered the kernel refuses a new procfs, and the error says why."""

    def child() -> tuple[str, int | None, str | None, str | None]:
        enter_private_mounts()
        mount_tmpfs(Path("/proc/sys/kernel"))
        return _spawn_error()

    step, code, path, hint = in_child(child)
    assert (step, code, path) == (Step.FSMOUNT, errno.EPERM, "/proc")
    assert hint is not None
    assert "covered" in hint
