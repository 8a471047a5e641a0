"""The doctor tells the truth, on this host and where something is really in the way."""

import ctypes
import errno
import json
import os
import pickle
import platform
import pty
import struct
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

import nsbox
from nsbox import Cgroup, Diagnosis, Finding, Limits, NsboxError, Sandbox, lowlevel
from nsbox._calls import landlock_abi
from nsbox._constants import NAMESPACE_FLAGS
from nsbox._landlock import TRUNCATE_ABI
from nsbox.lowlevel import CloneFlag, UmountFlag
from support import SOURCE, enter_private_mounts, in_child, mount_tmpfs

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE), "TERM": "xterm"}
COMMAND = [sys.executable, "-W", "error", "-m", "nsbox.doctor"]


def enter_user_namespace() -> None:
    """Give the calling process a user namespace, with its own ids; only for children."""
    uid, gid = os.geteuid(), os.getegid()
    lowlevel.unshare(CloneFlag.CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def diagnosis_behind(obstruct: Callable[[], None]) -> Diagnosis:
    """Return what the doctor says in a child that something stands in the way of."""

    def child() -> Diagnosis:
        import_module("nsbox.doctor._examine")  # before it is out of reach
        obstruct()
        return nsbox.doctor()

    diagnosis = in_child(child)
    for finding in diagnosis.blocked:
        assert finding.blocker, finding
        assert finding.fix, finding
    return diagnosis


def works(diagnosis: Diagnosis, area: str) -> set[str]:
    return {finding.name for finding in diagnosis if finding.area == area and finding.works}


# ---- without obstacles ---------------------------------------------------


def test_doctor_finds_nothing_wrong_where_sandboxes_work(box: Sandbox) -> None:
    """Where a sandbox works, all namespaces and mounts that it is made of do."""
    box.run(["/bin/true"], check=True)
    diagnosis = nsbox.doctor()
    assert diagnosis.healthy
    assert works(diagnosis, "namespaces") == {*NAMESPACE_FLAGS}
    assert works(diagnosis, "mounts") >= {"bind", "tmpfs", "proc", "dev", "overlay"}
    assert works(diagnosis, "kernel") == {"pidfd_open", "openat2", "close_range"}


@pytest.mark.parametrize("name", ["memory", "pids", "cpu"])
def test_doctor_agrees_with_a_cgroup(box: Sandbox, name: str) -> None:
    """A limit works for the doctor where a cgroup with such a limit can be made, and only there."""
    limits = {
        "memory": Limits(memory="32M", degrade={"swap"}),
        "pids": Limits(pids=8),
        "cpu": Limits(cpu=0.5),
    }
    try:
        Cgroup.create(limits[name]).close()
        possible = True
    except NsboxError:
        possible = False
    assert nsbox.doctor().find("cgroups", name).works is possible


def test_doctor_removes_what_a_killed_caller_left(root: None) -> None:
    """The cgroup of a caller that was killed is found and removed; others stay."""
    code = """if 1:
        import nsbox, os
        print(*nsbox.Cgroup.create().directories, flush=True)
        os.kill(os.getpid(), 9)"""
    command = [sys.executable, "-c", code]
    made = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    left = made.stdout.split()
    assert left
    with Cgroup.create() as own:
        nsbox.doctor()
        assert not any(map(os.path.exists, left))
        assert all(map(os.path.exists, own.directories))


def test_finding_not_there_is_a_key_error() -> None:
    """find() knows the findings, and no others."""
    finding = Finding(area="mounts", name="proc", works=True)
    diagnosis = Diagnosis((finding,))
    assert diagnosis.find("mounts", "proc") is finding
    with pytest.raises(KeyError):
        diagnosis.find("mounts", "none")


def test_diagnosis_is_data(box: Sandbox) -> None:
    """A diagnosis is a value that can be pickled, compared, and written as JSON."""
    diagnosis = nsbox.doctor()
    assert pickle.loads(pickle.dumps(diagnosis)) == diagnosis
    data = json.loads(json.dumps(diagnosis.as_dict()))
    assert tuple(Finding(**item) for item in data["findings"]) == diagnosis.findings


# ---- obstacles -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["user", "mnt", "net", "time"])
def test_namespaces_forbidden_by_sysctl(box: Sandbox, kind: str) -> None:
    """With user.max_*_namespaces=0 that kind does not work, and the fix is the sysctl."""

    def obstruct() -> None:
        enter_user_namespace()
        Path(f"/proc/sys/user/max_{kind}_namespaces").write_text("0")

    diagnosis = diagnosis_behind(obstruct)
    name = f"user.max_{kind}_namespaces"
    finding = diagnosis.find("namespaces", kind)
    assert finding.works is False
    assert os.strerror(errno.ENOSPC) in (finding.blocker or "")
    assert f"sysctl {name}=" in (finding.fix or "")
    assert diagnosis.find("sysctls", name).works is False
    assert diagnosis.healthy is (kind == "time")


def test_covered_proc(box: Sandbox) -> None:
    """Where a part of /proc is covered, only what mounts a procfs does not work."""

    def obstruct() -> None:
        enter_private_mounts()
        mount_tmpfs(Path("/proc/sys/kernel"))

    diagnosis = diagnosis_behind(obstruct)
    assert not diagnosis.healthy
    assert works(diagnosis, "mounts") >= {"bind", "tmpfs", "dev", "overlay"}
    assert "covered" in (diagnosis.find("mounts", "proc").fix or "")


def test_no_proc(box: Sandbox) -> None:
    """Without /proc ids cannot be mapped, and the fix is to mount it."""

    def obstruct() -> None:
        enter_private_mounts()
        mount_tmpfs(Path("/proc"))

    diagnosis = diagnosis_behind(obstruct)
    assert not diagnosis.healthy
    assert "user" in works(diagnosis, "namespaces")
    assert "/proc" in (diagnosis.find("ids", "payload").fix or "")
    assert diagnosis.find("cgroups", "layout").works is False


def test_empty_chroot(box: Sandbox, tmp_path: Path) -> None:
    """In a chroot with nothing in it, where the kernel makes no user namespace, it says so."""

    def obstruct() -> None:
        enter_user_namespace()
        os.chroot(tmp_path)

    diagnosis = diagnosis_behind(obstruct)
    assert not diagnosis.healthy
    assert "chroot" in (diagnosis.find("namespaces", "user").fix or "")


def _refuse_user_namespaces() -> None:
    """Install a seccomp filter like those of container runtimes; it cannot be taken off."""
    clone = {"x86_64": 56, "aarch64": 220}[platform.machine()]
    load, equal, any_bit, answer = 0x20, 0x15, 0x45, 0x06
    program = [
        (load, 0, 0, 0),  # number of the call
        (equal, 0, 1, 435),  # clone3: what it is given cannot be looked into
        (answer, 0, 0, 0x00050000 | errno.ENOSYS),
        (equal, 0, 3, clone),
        (load, 0, 0, 16),  # first argument, its lower half
        (any_bit, 0, 1, CloneFlag.CLONE_NEWUSER),
        (answer, 0, 0, 0x00050000 | errno.EPERM),
        (answer, 0, 0, 0x7FFF0000),
    ]
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code)
    header = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, header, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def test_seccomp_filter(box: Sandbox) -> None:
    """A filter that refuses user namespaces is named as what may be in the way."""
    diagnosis = diagnosis_behind(_refuse_user_namespaces)
    assert not diagnosis.healthy
    finding = diagnosis.find("namespaces", "user")
    assert os.strerror(errno.EPERM) in (finding.blocker or "")
    assert "seccomp" in (finding.fix or "")
    assert "namespaces='none'" in (finding.fix or "")
    remains = diagnosis.find("sandbox", "without namespaces").works
    assert remains is (landlock_abi() >= TRUNCATE_ABI)
    assert "in force for the caller: one" in diagnosis.find("security", "seccomp").detail


def test_no_cgroup_mounts(root: None, box: Sandbox) -> None:
    """Without a cgroup file system no limit works, and the fix is to mount one."""

    def obstruct() -> None:
        enter_private_mounts()
        lowlevel.umount2("/sys/fs/cgroup", UmountFlag.MNT_DETACH)

    diagnosis = diagnosis_behind(obstruct)
    assert diagnosis.healthy
    assert works(diagnosis, "cgroups") == set()
    assert "mount -t cgroup2" in (diagnosis.find("cgroups", "memory").fix or "")


# ---- the command -----------------------------------------------------------


def test_command_prints_json(box: Sandbox) -> None:
    """--json gives the same findings as the function, and the status says that all is well."""
    done = subprocess.run(
        [*COMMAND, "--json"], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    data = json.loads(done.stdout)
    assert data["healthy"] is True
    names = [(finding.area, finding.name) for finding in nsbox.doctor()]
    assert [(item["area"], item["name"]) for item in data["findings"]] == names


def test_command_fails_where_no_sandbox_can_be_made(box: Sandbox) -> None:
    """Where a default sandbox cannot be made, the status is 1."""

    def child() -> tuple[int, str]:
        enter_user_namespace()
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
        done = subprocess.run(COMMAND, env=ENVIRONMENT, capture_output=True, text=True)
        return done.returncode, done.stdout

    status, text = in_child(child)
    assert status == 1
    assert "A default Sandbox cannot be made here." in text
    assert "fix: namespaces are forbidden" in text


def _on_a_terminal(**variables: str) -> str:
    """Return what the command writes to a terminal."""
    primary, secondary = pty.openpty()
    environment = {**ENVIRONMENT, **variables}
    with open(primary, "rb", buffering=0) as terminal:
        process = subprocess.Popen(COMMAND, env=environment, stdout=secondary)
        os.close(secondary)
        output = b""
        try:
            while chunk := terminal.read(4096):
                output += chunk
        except OSError:
            pass  # EIO, when nobody has the other side open any more
        assert process.wait() == 0
    return output.decode()


@pytest.mark.one_kernel
def test_report_has_colors_on_a_terminal_only(box: Sandbox) -> None:
    """Escape sequences appear on a terminal, not in a pipe, and not with NO_COLOR."""
    piped = subprocess.run(COMMAND, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert "\x1b" not in piped.stdout
    assert "\x1b[" in _on_a_terminal(NO_COLOR="")
    assert "\x1b" not in _on_a_terminal(NO_COLOR="1")


def test_report_is_the_text_of_a_diagnosis() -> None:
    """str() of a diagnosis has each finding, and for what does not work the blocker and the fix."""
    diagnosis = Diagnosis(
        (
            Finding(area="sandbox", name="default", works=True, detail="good"),
            Finding(area="mounts", name="proc", works=False, blocker="covered", fix="uncover it"),
            Finding(area="kernel", name="release", detail="1.0"),
        )
    )
    assert str(diagnosis).splitlines() == [
        "sandbox",
        "  yes  default  good",
        "",
        "mounts",
        "   no  proc  covered",
        "             fix: uncover it",
        "",
        "kernel",
        "    -  release  1.0",
        "",
        "A default Sandbox can be made here; not everything else works.",
    ]


@pytest.mark.one_kernel
@pytest.mark.parametrize("first", ["import nsbox.doctor", "import nsbox", "from nsbox import *"])
def test_name_is_the_function_however_it_is_imported(first: str) -> None:
    """The package nsbox.doctor does not take the place of the function of that name."""
    code = f"""
{first}
import nsbox.doctor, types
from nsbox.doctor import Finding
assert isinstance(nsbox.doctor, types.FunctionType)
assert Finding is nsbox.Finding
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], env=ENVIRONMENT, check=True)
