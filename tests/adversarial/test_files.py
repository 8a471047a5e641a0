"""Attacks on files and mounts: to write what is read-only, leave the root, fill the memory."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from attack import PROGRAM, REFUSED, armed, attack

from nsbox import Bind, Overlay, Sandbox, SpawnError, Tmpfs
from support import enter_private_mounts, in_child, mount_tmpfs

pytestmark = pytest.mark.usefixtures("unharmed")

AT_FDCWD = "-100"
UNCHANGEABLE = {"EROFS", *REFUSED}


@pytest.fixture
def shown(hostile: Path, canary: Path) -> Sandbox:
    """A sandbox in which the canary is read-only at /canary."""
    return armed(hostile, Bind(canary, "/canary"))


# ---- mounts -----------------------------------------------------------------

MOUNT_CALLS = {
    "bind": "mount s:/usr s:/tmp 0 4096 0",
    "cgroup": "mount s:none s:/tmp s:cgroup 0 s:memory",
    "cgroup2": "mount s:none s:/tmp s:cgroup2 0 0",
    "detach_proc": "umount2 s:/proc 2",
    "detach_root": "umount2 s:/ 2",
    "expire": "umount2 s:/canary 4",
    "fsopen": "fsopen s:tmpfs 0",
    "fspick": f"fspick {AT_FDCWD} s:/canary 0",
    "mount_setattr": f"mount_setattr {AT_FDCWD} s:/canary 0x8000 z:32 32",
    "move": "mount s:/canary s:/tmp 0 8192 0",
    "move_mount": f"move_mount {AT_FDCWD} s:/canary {AT_FDCWD} s:/tmp 0",
    "open_tree": f"open_tree {AT_FDCWD} s:/canary 0x8001",
    "overlay": "mount s:none s:/tmp s:overlay 0 s:lowerdir=/usr",
    "pivot_root": "pivot_root s:/tmp s:/tmp",
    "proc": "mount s:none s:/tmp s:proc 0 0",
    "remount_all": f"mount 0 s:/ 0 {32 | 4096 | 16384} 0",
    "remount_bind": f"mount 0 s:/canary 0 {32 | 4096} 0",
    "remount_superblock": "mount 0 s:/canary 0 32 0",
    "shared": f"mount 0 s:/ 0 {1 << 20 | 16384} 0",
    "sysfs": "mount s:none s:/tmp s:sysfs 0 0",
    "tmpfs": "mount s:none s:/tmp s:tmpfs 0 0",
    "chroot": "chroot s:/tmp",
}


@pytest.mark.parametrize("call", MOUNT_CALLS.values(), ids=MOUNT_CALLS)
def test_mounts_cannot_be_changed(shown: Sandbox, call: str) -> None:
    """No call changes what is mounted, moves the root, or makes a detached copy."""
    assert attack(shown, "call", *call.split()) in {"EINVAL", *REFUSED}


def test_remount_with_capabilities_writes_nothing(shown: Sandbox, canary: Path, root: None) -> None:
    """Even a payload that may remount its mounts writes to no file of root's, if root calls."""
    box = Sandbox(mounts=shown.mounts, capabilities=["SYS_ADMIN", "DAC_OVERRIDE", "FOWNER"])
    command = "mount -o remount,bind,rw /canary; echo x >>/canary/secret; chmod 777 /canary"
    box.run(["/bin/sh", "-c", command], capture_output=True)
    assert (canary / "secret").read_text() == "of the host\n"


def test_no_mount_is_hidden_from_the_table(hostile: Path) -> None:
    """listmount(2) shows no mount of the host that /proc/self/mountinfo conceals."""
    assert attack(armed(hostile), "list-mounts") in {"none", *REFUSED}


# ---- files of a read-only bind ----------------------------------------------

FILE_CALLS = {
    "append": f"openat {AT_FDCWD} s:/canary/secret {os.O_WRONLY | os.O_APPEND} 0",
    "chmod": f"fchmodat {AT_FDCWD} s:/canary/secret 0777",
    "chown": f"fchownat {AT_FDCWD} s:/canary/secret 0 0 0",
    "create": f"openat {AT_FDCWD} s:/canary/new {os.O_WRONLY | os.O_CREAT} 0666",
    "fifo": f"mknodat {AT_FDCWD} s:/canary/fifo 0010666 0",
    "hard_link": f"linkat {AT_FDCWD} s:/canary/secret {AT_FDCWD} s:/canary/link 0",
    "mkdir": f"mkdirat {AT_FDCWD} s:/canary/new 0777",
    "rename": f"renameat2 {AT_FDCWD} s:/canary/secret {AT_FDCWD} s:/canary/gone 0",
    "setxattr": "setxattr s:/canary/secret s:user.x s:x 1 0",
    "symlink": f"symlinkat s:/ {AT_FDCWD} s:/canary/root",
    "temporary": f"openat {AT_FDCWD} s:/canary {os.O_TMPFILE | os.O_RDWR} 0666",
    "truncate": "truncate s:/canary/secret 0",
    "unlink": f"unlinkat {AT_FDCWD} s:/canary/secret 0",
    "utimes": f"utimensat {AT_FDCWD} s:/canary/secret 0 0",
    "write": f"openat {AT_FDCWD} s:/canary/secret {os.O_WRONLY} 0",
    "write_program": f"openat {AT_FDCWD} s:/canary/program {os.O_RDWR} 0",
    "write_through_proc": f"openat {AT_FDCWD} s:/proc/1/root/canary/secret {os.O_WRONLY} 0",
    "write_usr": f"openat {AT_FDCWD} s:/usr/bin/env {os.O_WRONLY} 0",
    "write_etc": f"openat {AT_FDCWD} s:/etc/passwd {os.O_WRONLY} 0",
    "create_in_root": f"openat {AT_FDCWD} s:/new {os.O_WRONLY | os.O_CREAT} 0666",
    "create_in_dev": f"mknodat {AT_FDCWD} s:/dev/new 0100666 0",
    "chmod_device": f"fchmodat {AT_FDCWD} s:/dev/null 0",
}


@pytest.mark.parametrize("call", FILE_CALLS.values(), ids=FILE_CALLS)
def test_readonly_tree_cannot_be_changed(shown: Sandbox, call: str) -> None:
    """No call changes a file, its name or its attributes in what is read-only."""
    assert attack(shown, "call", *call.split()) in UNCHANGEABLE


CROSSING = {
    "hard_link_out": f"linkat {AT_FDCWD} s:/canary/secret {AT_FDCWD} s:/out/secret 0",
    "hard_link_across": f"linkat {AT_FDCWD} s:/again/secret {AT_FDCWD} s:/out/secret 0",
    "rename_across": f"renameat2 {AT_FDCWD} s:/again/secret {AT_FDCWD} s:/out/secret 0",
    "exchange": f"renameat2 {AT_FDCWD} s:/canary/secret {AT_FDCWD} s:/out/victim 2",
}


@pytest.mark.parametrize("call", CROSSING.values(), ids=CROSSING)
def test_name_does_not_cross_mounts(hostile: Path, tmp_path: Path, canary: Path, call: str) -> None:
    """No file moves from one bind to another, though both lie on one file system of the host."""
    for name in ("out", "again"):
        (tmp_path / name).mkdir()
    (tmp_path / "out" / "victim").touch()
    (tmp_path / "again" / "secret").touch()
    box = armed(
        hostile,
        Bind(canary, "/canary"),
        Bind(tmp_path / "out", "/out", readonly=False),
        Bind(tmp_path / "again", "/again", readonly=False),
    )
    assert attack(box, "call", *call.split()) in {"EXDEV", *UNCHANGEABLE}


def test_files_are_not_found_by_handle(shown: Sandbox) -> None:
    """open_by_handle_at(2) reaches no file beside the bind, as "shocker" did in containers."""
    assert attack(shown, "by-handle", "/canary") in REFUSED


def test_files_are_not_found_by_handle_with_its_capability(hostile: Path, canary: Path) -> None:
    """Nor does it with CAP_DAC_READ_SEARCH, which is one over the sandbox alone."""
    box = armed(hostile, Bind(canary, "/canary"), capabilities=["DAC_READ_SEARCH"])
    assert attack(box, "by-handle", "/canary") in {"ESTALE", *REFUSED}


def test_submount_of_a_readonly_bind_is_readonly(hostile: Path, canary: Path) -> None:
    """A file system that the host has mounted below a bound directory cannot be written either."""

    def spawn_with_submount() -> str:
        enter_private_mounts()
        mount_tmpfs(canary / "sub")
        (canary / "sub").chmod(0o777)
        box = armed(hostile, Bind(canary, "/canary"))
        return attack(box, "open", "/canary/sub/new", str(os.O_WRONLY | os.O_CREAT))

    assert in_child(spawn_with_submount) in UNCHANGEABLE


SCRIPT_OF_ITS_STARTER = """#!/proc/self/exe
import errno, os
try:
    os.open("/proc/self/exe", os.O_WRONLY)
    print("ok")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def test_interpreter_that_called_cannot_be_overwritten(tmp_path: Path, box: Sandbox) -> None:
    """A script with the interpreter /proc/self/exe does not get the caller's, or cannot write."""
    script = tmp_path / "script"
    script.write_text(SCRIPT_OF_ITS_STARTER)
    script.chmod(0o755)
    try:
        said = (
            Sandbox(mounts=[Bind(script, "/script")]).run(["/script"], capture_output=True).stdout
        )
    except SpawnError as error:
        said = f"{error.step} {error.errno}".encode()
    # Without its library the interpreter may not even start.
    assert said in (b"ETXTBSY\n", b"EACCES\n", b"EROFS\n", b"", b"execve 13")


# ---- privileges in files ----------------------------------------------------


def test_file_capabilities_cannot_be_set(hostile: Path, tmp_path: Path) -> None:
    """A payload cannot give capabilities to a program in a writable bind."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "program").touch()
    box = armed(hostile, Bind(out, "/out", readonly=False))
    call = "call setxattr s:/out/program s:security.capability z:20 20 0"
    assert attack(box, *call.split()) in {"EINVAL", *REFUSED}


@pytest.mark.parametrize("place", ["/out", "/tmp", "/dev/shm"])
def test_device_cannot_be_made(hostile: Path, tmp_path: Path, place: str) -> None:
    """No device node can be made anywhere, whatever the payload's capabilities are."""
    out = tmp_path / "out"
    out.mkdir()
    box = armed(hostile, Bind(out, "/out", readonly=False), capabilities=["MKNOD"])
    call = f"call mknodat {AT_FDCWD} s:{place}/mem 0020666 {1 << 8 | 1}"
    assert attack(box, *call.split()) in REFUSED


# ---- what a payload leaves --------------------------------------------------

LEAVE = """
cd /out
ln -s /etc/passwd link; ln -s ../canary/secret relative; ln link hard
mkfifo fifo; mkdir closed; touch closed/file; chmod 000 closed
printf x >"$(printf 'new\\nline')"; printf x >"$(printf 'byte\\377')"
truncate -s 1T sparse; chmod 6777 sparse || chmod 777 sparse
"""


def test_hostile_output_stays_where_it_is(tmp_path: Path, hostile: Path) -> None:
    """Links, pipes, odd names and sparse files are left in the writable bind and nowhere else."""
    out = tmp_path / "out"
    out.mkdir()
    box = armed(hostile, Bind(out, "/out", readonly=False))
    result = box.run(["/bin/sh", "-c", LEAVE], capture_output=True)
    assert result.returncode == 0, result.stderr
    owners = {os.lstat(out / name).st_uid for name in os.listdir(out)}
    assert owners == {os.stat(out).st_uid}
    (out / "closed").chmod(0o700)
    assert not any(stat.S_ISCHR(os.lstat(out / name).st_mode) for name in os.listdir(out))
    shutil.rmtree(out)


def test_tree_with_long_names_can_be_removed(tmp_path: Path, hostile: Path) -> None:
    """Directories deeper than any path is long can still be deleted by the caller."""
    out = tmp_path / "out"
    out.mkdir()
    box = armed(hostile, Bind(out, "/out", readonly=False))
    assert attack(box, "deep-directories", "/out", "100") == "ok 100"
    subprocess.run(["rm", "-rf", str(out)], check=True)


# ---- exhaustion -------------------------------------------------------------


@pytest.mark.parametrize("place", ["/tmp", "/dev/shm"])
def test_tmpfs_is_full_at_its_size(hostile: Path, place: str) -> None:
    """Bytes written to a file system in memory end with ENOSPC at the size that was set."""
    box = armed(hostile, Tmpfs("/tmp", size="4M"), Tmpfs("/dev/shm", size="4M"))
    assert attack(box, "fill-bytes", f"{place}/file").split()[0] == "ENOSPC"


def test_tmpfs_is_full_for_mappings_too(hostile: Path) -> None:
    """A mapping of a sparse file cannot take more: the kernel sends SIGBUS."""
    box = armed(hostile, Tmpfs("/tmp", size="4M"))
    assert attack(box, "fill-mapping", "/tmp/file") == "SIGBUS"


@pytest.mark.parametrize("attacker", ["fill-inodes /tmp", "deep-directories /tmp 100000"])
def test_tmpfs_has_no_more_inodes_than_set(hostile: Path, attacker: str) -> None:
    """Empty files and nested directories end with ENOSPC as well."""
    box = armed(hostile, Tmpfs("/tmp", inodes=300))
    word, made = attack(box, *attacker.split()).split()
    assert (word, int(made) < 300) == ("ENOSPC", True)


WRITABLE_IN_MEMORY = ["/tmp", "/dev/shm", "/home/sandbox", "/dev", "/", "/etc", "/dev/pts"]


@pytest.mark.parametrize("place", WRITABLE_IN_MEMORY)
def test_no_default_directory_is_without_bounds(hostile: Path, place: str) -> None:
    """Every file system in memory of a default sandbox is bounded in bytes and files, or closed."""
    code = f"stat -f -c '%b %c' {place}"
    result = armed(hostile).run(["/bin/sh", "-c", code], capture_output=True, text=True)
    blocks, inodes = map(int, result.stdout.split())
    probe = attack(armed(hostile), "open", f"{place}/probe", str(os.O_WRONLY | os.O_CREAT))
    assert probe in {"EROFS", *REFUSED} or (blocks > 0 and inodes > 0)


def test_upper_layer_in_memory_is_bounded(hostile: Path, tmp_path: Path) -> None:
    """The changes to an overlay take no more memory than was set."""
    lower = tmp_path / "lower"
    lower.mkdir()
    lower.chmod(0o777)
    box = armed(hostile, Overlay(lower, "/lower", size="4M"))
    assert attack(box, "fill-bytes", "/lower/file").split()[0] == "ENOSPC"


def test_program_that_is_written_runs_without_privilege(hostile: Path, tmp_path: Path) -> None:
    """A set-user-ID copy of the payload, in /tmp and in a bind, gains no capability."""
    out = tmp_path / "out"
    out.mkdir()
    box = armed(hostile, Bind(out, "/out", readonly=False), uid=5, gid=5)
    for place in ("/tmp", "/out"):
        code = f"cd {place}; cp {PROGRAM} p; chmod 6755 p; ./p raise-capabilities"
        result = box.run(["/bin/sh", "-c", code], capture_output=True, text=True)
        assert result.stdout.strip() in REFUSED
