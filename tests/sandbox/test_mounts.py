"""The file systems inside: what is shown, what may be written, what the host never notices."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from nsbox import Bind, Dev, Overlay, Proc, Sandbox, SpawnError, Step, Tmpfs, lowlevel
from nsbox.lowlevel import MountFlag
from nsbox.mount import Mount
from support import (
    PYTHON,
    enter_private_mounts,
    expose,
    in_child,
    inside,
    mount_tmpfs,
    python_box,
    stdout_of,
    tree,
)

pytestmark = pytest.mark.usefixtures("box")

# Prints the error of a call as its name, or "ok".
ATTEMPT = """
import errno, json, os, sys
def attempt(function, *args):
    try:
        function(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"
def write(path):
    with open(path, "w") as file:
        file.write("changed")
"""


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory of the caller with a file and a directory in it, open to payloads."""
    directory = tmp_path / "shared"
    (directory / "sub").mkdir(parents=True)
    (directory / "file").write_text("content")
    (directory / "file").chmod(0o644)
    for path in (tmp_path, directory, directory / "sub"):
        path.chmod(0o755)
    return directory


def mount_table(box: Sandbox) -> dict[str, tuple[set[str], str]]:
    """Return mount point -> options and type, as the payload's mountinfo tells them."""
    result = box.run(["/bin/cat", "/proc/self/mountinfo"], capture_output=True, text=True)
    table = {}
    for line in result.stdout.splitlines():
        before, after = line.split(" - ")
        fields = before.split()
        table[fields[4]] = (set(fields[5].split(",")), after.split()[0])
    return table


# ---- Bind -----------------------------------------------------------------


def test_bind_shows_the_content(shared: Path) -> None:
    """What lies in the source is seen at the target."""
    code = "import json, sys; print(json.dumps(open('/data/file').read()))"
    assert inside(code, box=python_box(mounts=[Bind(shared, "/data")])) == "content"


@pytest.mark.parametrize(
    "call",
    [
        "write, '/data/file'",
        "write, '/data/new'",
        "os.mkdir, '/data/new'",
        "os.unlink, '/data/file'",
        "os.rename, '/data/file', '/data/other'",
        "os.link, '/data/file', '/data/other'",
        "os.symlink, 'x', '/data/other'",
        "os.chmod, '/data/file', 0o777",
        "os.utime, '/data/file'",
    ],
)
def test_readonly_bind_refuses_changes(shared: Path, call: str) -> None:
    """Nothing can be changed through a read-only bind: EROFS."""
    before = tree(shared)
    code = f"{ATTEMPT}\nprint(json.dumps(attempt({call})))"
    assert inside(code, box=python_box(mounts=[Bind(shared, "/data")])) == "EROFS"
    assert tree(shared) == before


def test_writable_bind_changes_the_host(shared: Path) -> None:
    """What the payload writes in a writable bind appears on the host, owned as the source is."""
    box = Sandbox(mounts=[Bind(shared, "/data", readonly=False)])
    box.run(["/bin/sh", "-c", "echo hi >/data/new; mkdir /data/newdir"], check=True)
    owner = shared.stat()
    for name in ("new", "newdir"):
        info = (shared / name).stat()
        assert (info.st_uid, info.st_gid) == (owner.st_uid, owner.st_gid)


def test_writable_bind_of_a_private_directory(tmp_path: Path) -> None:
    """A directory that only its owner may enter can be bound writable, and written."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    Sandbox(mounts=[Bind(private, "/data", readonly=False)]).run(
        ["/bin/sh", "-c", "echo hi >/data/new"], check=True
    )
    assert (private / "new").read_text() == "hi\n"


def test_bind_of_a_file(shared: Path) -> None:
    """A single file can be bound, at a mount point that is made for it."""
    box = python_box(mounts=[Bind(shared / "file", "/deep/down/name")])
    assert inside("import json; print(json.dumps(open('/deep/down/name').read()))", box=box) == (
        "content"
    )


def test_relative_source_is_the_callers(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative source is relative to the caller's working directory at the spawn."""
    box = Sandbox(mounts=[Bind("shared", "/data")])
    monkeypatch.chdir(shared.parent)
    assert box.run(["/bin/cat", "/data/file"], capture_output=True).stdout == b"content"


def test_source_that_is_a_link_means_its_target(shared: Path) -> None:
    """A source that is a symbolic link shows what the link points to."""
    link = shared.parent / "link"
    link.symlink_to(shared)
    box = Sandbox(mounts=[Bind(link, "/data")])
    assert box.run(["/bin/cat", "/data/file"], capture_output=True).stdout == b"content"


def test_submounts_are_shown_and_readonly(shared: Path) -> None:
    """A file system mounted below a read-only bind is seen, and as read-only as the bind."""

    def child() -> Any:
        enter_private_mounts()
        mount_tmpfs(shared / "sub")
        (shared / "sub" / "inner").write_text("inner")
        code = f"""{ATTEMPT}
print(json.dumps([open("/data/sub/inner").read(), attempt(write, "/data/sub/inner"),
                  attempt(write, "/data/sub/new")]))"""
        return inside(code, box=python_box(mounts=[Bind(shared, "/data")]))

    assert in_child(child) == ["inner", "EROFS", "EROFS"]


def test_submounts_are_nosuid_and_nodev(shared: Path) -> None:
    """A file system mounted below a bind gets the attributes of the bind."""

    def child() -> set[str]:
        enter_private_mounts()
        mount_tmpfs(shared / "sub")
        return mount_table(Sandbox(mounts=[Bind(shared, "/data")]))["/data/sub"][0]

    assert {"ro", "nosuid", "nodev"} <= in_child(child)


def test_later_mounts_of_the_host_stay_outside(shared: Path) -> None:
    """What the host mounts below the source of a bind after the spawn does not appear inside."""

    def child() -> list[str]:
        enter_private_mounts()
        mount_tmpfs(shared / "sub")
        lowlevel.mount(None, shared / "sub", None, MountFlag.MS_SHARED)
        (shared / "sub" / "later").mkdir()
        code = "import os; print(1, flush=True); input(); print(os.listdir('/data/sub/later'))"
        box = python_box(mounts=[Bind(shared, "/data")])
        with box.spawn([*PYTHON, code], stdin=-1, stdout=-1, text=True) as process:
            ready = stdout_of(process).readline()
            mount_tmpfs(shared / "sub" / "later")
            (shared / "sub" / "later" / "secret").write_text("")
            return [ready, process.communicate("\n")[0]]

    assert in_child(child) == ["1\n", "[]\n"]


def test_mounts_inside_stay_inside(shared: Path) -> None:
    """What is mounted inside is not mounted on the host, even where the source is shared."""

    def child() -> bool:
        enter_private_mounts()
        lowlevel.mount(shared, shared, None, MountFlag.MS_BIND)
        lowlevel.mount(None, shared, None, MountFlag.MS_SHARED)
        before = Path("/proc/self/mountinfo").read_text()
        box = Sandbox(mounts=[Bind(shared, "/data", readonly=False), Tmpfs("/data/sub")])
        with box.spawn(["/bin/cat"], stdin=-1) as process:
            during = Path("/proc/self/mountinfo").read_text()
            process.communicate()
        return before == during

    assert in_child(child)


def test_every_bind_is_nosuid_and_nodev(shared: Path) -> None:
    """A writable bind too is nosuid and nodev."""
    table = mount_table(Sandbox(mounts=[Bind(shared, "/data", readonly=False)]))
    assert {"rw", "nosuid", "nodev"} <= table["/data"][0]


def test_every_mount_is_nosuid() -> None:
    """No mount of a default sandbox honours set-user-ID bits."""
    assert [
        path for path, (options, _) in mount_table(Sandbox()).items() if "nosuid" not in options
    ] == []


def test_only_devices_and_devpts_allow_devices() -> None:
    """Device files work in /dev alone; and what masks a file of /proc is one."""
    table = mount_table(Sandbox())
    allowing = {path for path, (options, _) in table.items() if "nodev" not in options}
    allowing = {path for path in allowing if not path.startswith("/proc/")}
    assert allowing == {"/dev", "/dev/pts"} | {
        f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")
    }


def test_no_mount_propagates() -> None:
    """Every mount inside is private: it neither receives nor sends mounts."""
    result = Sandbox().run(["/bin/cat", "/proc/self/mountinfo"], capture_output=True, text=True)
    assert "shared:" not in result.stdout
    assert "master:" not in result.stdout


def test_order_of_the_list_does_not_matter(shared: Path) -> None:
    """Mounts given in any order end up one in another by depth."""
    mounts: list[Mount] = [
        Tmpfs("/a"),
        Bind(shared, "/a/b"),
        Tmpfs("/a/b/sub"),
        Bind(shared / "file", "/a/b/sub/f"),
    ]
    tables = [mount_table(Sandbox(mounts=order)) for order in (mounts, mounts[::-1])]
    assert tables[0] == tables[1]
    assert {"/a", "/a/b", "/a/b/sub", "/a/b/sub/f"} <= tables[0].keys()


# ---- Tmpfs ----------------------------------------------------------------


def test_tmpfs_size_holds() -> None:
    """A Tmpfs takes no more bytes than its size: ENOSPC."""
    code = f"""{ATTEMPT}
def fill():
    with open("/small/file", "wb", buffering=0) as file:
        for _ in range(1024):
            file.write(bytes(4096))
print(json.dumps([attempt(fill), os.stat("/small/file").st_size]))"""
    outcome, size = inside(code, box=python_box(mounts=[Tmpfs("/small", size="1M")]))
    assert (outcome, size <= 1 << 20) == ("ENOSPC", True)


def test_tmpfs_inodes_hold() -> None:
    """A Tmpfs takes no more files than its inodes: ENOSPC."""
    code = f"""{ATTEMPT}
def fill():
    for number in range(100):
        write(f"/small/{{number}}")
print(json.dumps([attempt(fill), len(os.listdir("/small"))]))"""
    outcome, count = inside(code, box=python_box(mounts=[Tmpfs("/small", inodes=32)]))
    assert (outcome, count < 32) == ("ENOSPC", True)


@pytest.mark.parametrize("path", ["/tmp", "/dev/shm", "/home/sandbox"])
def test_default_memory_file_systems_are_bounded(path: str) -> None:
    """Every file system in memory that the payload may write has a limit of bytes and files."""
    code = f"import json, os; v = os.statvfs({path!r}); print(json.dumps([v.f_blocks, v.f_files]))"
    blocks, files = inside(code)
    assert 0 < blocks * 4096 <= 512 << 20
    assert 0 < files <= 131072


@pytest.mark.parametrize("mode", [0o700, 0o1777, 0o555])
def test_tmpfs_mode(mode: int) -> None:
    """The root directory of a Tmpfs has the permission bits that were asked for."""
    code = "import json, os; print(json.dumps(os.stat('/x').st_mode & 0o7777))"
    assert inside(code, box=python_box(mounts=[Tmpfs("/x", mode=mode)])) == mode


def test_tmpfs_is_fresh_each_time() -> None:
    """What one spawn leaves in /tmp the next one does not see."""
    box = Sandbox()
    box.run(["/bin/sh", "-c", "echo >/tmp/left"], check=True)
    assert box.run(["/bin/ls", "/tmp"], capture_output=True).stdout == b""


# ---- Proc and Dev ---------------------------------------------------------


def test_proc_elsewhere() -> None:
    """A Proc can be mounted elsewhere, with the same pid namespace in it."""
    code = "import json, os; print(json.dumps(os.readlink('/other/self')))"
    assert inside(code, box=python_box(mounts=[Proc("/other")])) == "1"


def test_proc_attributes() -> None:
    """The procfs is nosuid, nodev and noexec."""
    options, fstype = mount_table(Sandbox())["/proc"]
    assert fstype == "proc"
    assert {"nosuid", "nodev", "noexec"} <= options


def test_dev_content() -> None:
    """/dev holds the six harmless devices, pts, shm and the usual links, and nothing else."""
    result = Sandbox().run(["/bin/ls", "/dev"], capture_output=True, text=True)
    assert sorted(result.stdout.split()) == sorted(
        [
            "fd",
            "full",
            "null",
            "ptmx",
            "pts",
            "random",
            "shm",
            "stderr",
            "stdin",
            "stdout",
            "tty",
            "urandom",
            "zero",
        ]
    )


@pytest.mark.parametrize(
    ("name", "major", "minor"),
    [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ],
)
def test_device_identity(name: str, major: int, minor: int) -> None:
    """A device inside is the character device of that number."""
    code = f"""
import json, os, stat
info = os.stat("/dev/{name}")
print(json.dumps([stat.S_ISCHR(info.st_mode), os.major(info.st_rdev), os.minor(info.st_rdev)]))"""
    assert inside(code) == [True, major, minor]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("open('/dev/null', 'rb').read(1).hex()", ""),
        ("open('/dev/null', 'wb').write(b'abc')", 3),
        ("open('/dev/zero', 'rb').read(4).hex()", "00000000"),
        ("len(open('/dev/random', 'rb').read(16))", 16),
        ("len(open('/dev/urandom', 'rb').read(16))", 16),
        ("attempt(write, '/dev/full')", "ENOSPC"),
        ("attempt(open, '/dev/tty')", "ENXIO"),
    ],
)
def test_device_works(expression: str, value: object) -> None:
    """Each device does what it is for; there is no terminal behind /dev/tty."""
    assert inside(f"{ATTEMPT}\nprint(json.dumps({expression}))") == value


@pytest.mark.parametrize(
    "call",
    [
        "write, '/dev/new'",
        "os.mkdir, '/dev/new'",
        "os.unlink, '/dev/fd'",
        "os.symlink, 'x', '/dev/new'",
        "os.chmod, '/dev', 0o777",
        "os.chmod, '/dev/null', 0o777",
        "os.mknod, '/dev/mem', 0o20666, os.makedev(1, 1)",
    ],
)
def test_dev_is_readonly(call: str) -> None:
    """Nothing can be made or changed in /dev."""
    assert inside(f"{ATTEMPT}\nprint(json.dumps(attempt({call})))") == "EROFS"


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ],
)
def test_dev_links(name: str, target: str) -> None:
    """The customary links of /dev are there."""
    code = f"import json, os; print(json.dumps(os.readlink('/dev/{name}')))"
    assert inside(code) == target


def test_pty_inside() -> None:
    """The payload can open pseudoterminals of its own, numbered from zero."""
    code = """
import json, os
leader, follower = os.openpty()
os.write(follower, b"x")
print(json.dumps([os.ttyname(follower), os.read(leader, 1).decode()]))"""
    assert inside(code) == ["/dev/pts/0", "x"]


def test_host_ptys_are_not_shown() -> None:
    """A pseudoterminal of the host is not in the sandbox's /dev/pts."""
    leader, follower = os.openpty()
    try:
        listing = Sandbox().run(["/bin/ls", "/dev/pts"], capture_output=True, text=True).stdout
    finally:
        os.close(leader)
        os.close(follower)
    assert listing.split() == ["ptmx"]


def test_shared_memory_works() -> None:
    """POSIX shared memory works inside, and is not the host's."""
    code = """
import json, os
with open("/dev/shm/x", "w") as file: file.write("abc")
print(json.dumps(os.listdir("/dev/shm")))"""
    assert inside(code) == ["x"]


def test_dev_shm_size() -> None:
    """The size of /dev/shm is what Dev was given."""
    code = "import json, os; v = os.statvfs('/dev/shm'); print(v.f_blocks * v.f_frsize)"
    assert inside(code, box=python_box(mounts=[Dev(shm_size="1M")])) == 1 << 20


# ---- Overlay --------------------------------------------------------------


def test_overlay_is_throwaway(shared: Path) -> None:
    """Changes in an Overlay without upper are seen inside, and never on the host."""
    before = tree(shared)
    code = """
import json, os
open("/data/file", "w").write("changed")
open("/data/new", "w").write("")
os.rmdir("/data/sub")
print(json.dumps([open("/data/file").read(), sorted(os.listdir("/data"))]))"""
    box = python_box(mounts=[Overlay(shared, "/data")])
    assert inside(code, box=box) == ["changed", ["file", "new"]]
    assert tree(shared) == before


def test_overlay_changes_vanish(shared: Path) -> None:
    """The next spawn of the same Sandbox sees the lower directory as it is."""
    box = Sandbox(mounts=[Overlay(shared, "/data")])
    box.run(["/bin/rm", "/data/file"], check=True)
    assert box.run(["/bin/cat", "/data/file"], capture_output=True).stdout == b"content"


def test_overlay_stacks_lowers(tmp_path: Path) -> None:
    """Of several lower directories the first lies on top."""
    expose(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "both").write_text(name)
        (tmp_path / name / name).write_text("")
    code = """
import json, os
print(json.dumps([open("/data/both").read(), sorted(os.listdir("/data"))]))"""
    box = python_box(mounts=[Overlay([tmp_path / "one", tmp_path / "two"], "/data")])
    assert inside(code, box=box) == ["one", ["both", "one", "two"]]


def test_overlay_upper_keeps_changes(shared: Path) -> None:
    """With upper and work the changes stay there, and the lower directory is not touched."""
    upper, work = shared.parent / "layers" / "upper", shared.parent / "layers" / "work"
    upper.mkdir(parents=True)
    work.mkdir()
    before = tree(shared)
    box = Sandbox(mounts=[Overlay(shared, "/data", upper=upper, work=work)])
    box.run(["/bin/sh", "-c", "echo changed >/data/file"], check=True)
    again = box.run(["/bin/cat", "/data/file"], capture_output=True)
    assert (upper / "file").read_text() == "changed\n"
    assert again.stdout == b"changed\n"
    assert tree(shared) == before


def test_overlay_with_special_characters(tmp_path: Path) -> None:
    """Colons, commas and backslashes in the paths of layers need no care."""
    names = ["a:b", "c,d=e", "f\\g"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / f"in {name}").write_text("")
    expose(tmp_path)
    lower = [tmp_path / name for name in names]
    (tmp_path / "l:,\\" / "up:,\\").mkdir(parents=True)
    (tmp_path / "l:,\\" / "wo:,\\").mkdir()
    box = python_box(
        mounts=[
            Overlay(
                lower,
                "/data",
                upper=tmp_path / "l:,\\" / "up:,\\",
                work=tmp_path / "l:,\\" / "wo:,\\",
            )
        ]
    )
    code = "import json, os; print(json.dumps(sorted(os.listdir('/data'))))"
    assert inside(code, box=box) == sorted(f"in {name}" for name in names)


def test_overlay_as_root(rootfs: Path) -> None:
    """An Overlay as the root is writable, and leaves the directory as it was."""
    before = tree(rootfs)
    result = Sandbox(root=Overlay(rootfs)).run(
        ["/bin/sh", "-c", "echo x >/new && rm /bin/ps && cat /new"], capture_output=True
    )
    assert (result.returncode, result.stdout) == (0, b"x\n")
    assert tree(rootfs) == before


def test_overlay_size_holds(shared: Path) -> None:
    """Without upper the changes take no more bytes than size."""
    code = f"""{ATTEMPT}
def fill():
    with open("/data/big", "wb", buffering=0) as file:
        for _ in range(1024):
            file.write(bytes(4096))
print(json.dumps(attempt(fill)))"""
    box = python_box(mounts=[Overlay(shared, "/data", size="1M")])
    assert inside(code, box=box) == "ENOSPC"


# ---- root -----------------------------------------------------------------


def test_root_directory(rootfs: Path) -> None:
    """root= makes a directory the root, with /proc, /dev and /tmp mounted in it."""
    result = Sandbox(root=str(rootfs)).run(["/bin/ls", "/"], capture_output=True, text=True)
    assert result.stdout.split() == ["bin", "dev", "proc", "tmp"]


def test_root_is_readonly(rootfs: Path) -> None:
    """A root directory is read-only, and its listing, owners, times and contents stay."""
    before = tree(rootfs)
    result = Sandbox(root=str(rootfs)).run(
        ["/bin/sh", "-c", "echo >/bin/new || echo >/new"], capture_output=True, text=True
    )
    assert result.returncode != 0
    assert tree(rootfs) == before


def test_missing_mount_points_do_not_touch_the_root(rootfs: Path) -> None:
    """Mount points that a read-only root lacks are made without changing the directory."""
    before = tree(rootfs)
    box = Sandbox(root=str(rootfs), mounts=[Tmpfs("/a/b/c"), Bind("/etc/passwd", "/d/file")])
    result = box.run(["/bin/sh", "-c", "ls -d /a/b/c && cat /d/file"], capture_output=True)
    assert result.returncode == 0
    assert tree(rootfs) == before


def test_missing_mount_points_do_not_touch_a_readonly_bind(shared: Path) -> None:
    """Mount points that a read-only bind lacks are made without changing its source."""
    before = tree(shared)
    box = Sandbox(mounts=[Bind(shared, "/data"), Tmpfs("/data/x/y"), Bind("/usr", "/data/sub/u")])
    result = box.run(["/bin/ls", "-d", "/data/x/y", "/data/sub/u/bin", "/data/file"])
    assert result.returncode == 0
    assert tree(shared) == before


def test_scaffold_above_a_bind_is_readonly(shared: Path) -> None:
    """A read-only bind with added mount points still refuses every write."""
    code = f"{ATTEMPT}\nprint(json.dumps([attempt(write, p) for p in sys.argv[1:]]))"
    box = python_box(mounts=[Bind(shared, "/data"), Tmpfs("/data/x")])
    outcome = inside(code, "/data/file", "/data/new", "/data/sub/new", box=box)
    assert outcome == ["EROFS", "EROFS", "EROFS"]


def test_scaffold_above_a_root_is_readonly(rootfs: Path) -> None:
    """A read-only root with added mount points still refuses every write."""
    result = Sandbox(root=str(rootfs)).run(
        ["/bin/sh", "-c", "for p in /new /bin/new /bin/sh; do (: >>$p) && echo $p; done; :"],
        capture_output=True,
    )
    assert result.stdout == b""


def test_writable_root_lacks_mount_point(rootfs: Path) -> None:
    """In a writable root nothing is created: the spawn fails and names the mount point."""
    before = tree(rootfs)
    with pytest.raises(SpawnError) as caught:
        Sandbox(root=str(rootfs), writable=True).run(["/bin/true"])
    error = caught.value
    assert (error.step, error.errno, error.path) == (Step.TARGET, errno.ENOENT, "/dev")
    assert tree(rootfs) == before


def test_writable_bind_lacks_mount_point(shared: Path) -> None:
    """In a writable bind nothing is created: the spawn fails and names the mount point."""
    before = tree(shared)
    box = Sandbox(mounts=[Bind(shared, "/data", readonly=False), Tmpfs("/data/missing/x")])
    with pytest.raises(SpawnError) as caught:
        box.run(["/bin/true"])
    error = caught.value
    assert (error.step, error.errno, error.path) == (
        Step.TARGET,
        errno.ENOENT,
        "/data/missing/x",
    )
    assert tree(shared) == before


def test_writable_root_works(rootfs: Path) -> None:
    """A writable root that has the mount points takes changes."""
    for name in ("dev", "proc", "tmp"):
        (rootfs / name).mkdir()
    Sandbox(root=str(rootfs), writable=True).run(["/bin/touch", "/new"], check=True)
    assert (rootfs / "new").exists()


def test_private_root_of_a_plain_user(rootfs: Path, plain_user: None) -> None:
    """A root directory that only its owner may enter works for its owner."""
    rootfs.chmod(0o700)
    assert Sandbox(root=str(rootfs)).run(["/bin/ls", "/"]).returncode == 0


def test_no_default_mounts(rootfs: Path) -> None:
    """With default_mounts=False there is the root and nothing more."""
    box = Sandbox(root=str(rootfs), default_mounts=False)
    result = box.run(["/bin/ls", "/"], capture_output=True, text=True)
    assert result.stdout.split() == ["bin"]


def test_no_default_mounts_without_root() -> None:
    """With default_mounts=False the host's programs have neither /proc, /dev nor /tmp."""
    result = Sandbox(default_mounts=False).run(["/bin/ls", "/"], capture_output=True, text=True)
    assert {"proc", "dev", "tmp", "home"}.isdisjoint(result.stdout.split())


@pytest.mark.parametrize(
    "mounts",
    [
        [Bind("/usr/share", "/srv/w/a"), Tmpfs("/srv/w/b")],
        [Bind("/usr/share", "/tmp/w/a"), Tmpfs("/tmp/w/b"), Bind("/etc/passwd", "/tmp/w/c")],
        [Tmpfs("/x/b"), Bind("/usr/share", "/x/b/c/d"), Tmpfs("/x/b/c/e")],
    ],
)
def test_mount_points_with_parents_in_common(mounts: list[Mount]) -> None:
    """Mounts of any kind lie beside each other in directories that are made for them."""
    where = [mount.target for mount in mounts]
    result = Sandbox(mounts=mounts).run(["ls", "-d", *where], capture_output=True, text=True)
    assert (result.returncode, result.stdout.split()) == (0, sorted(where)), result.stderr


@pytest.mark.parametrize("step", [1, -1])
def test_mount_that_replaces_a_link_of_ours(step: int) -> None:
    """A mount on /sbin is one there, whatever /sbin is by default; so is what lies within."""
    mounts = [Tmpfs("/sbin", size="64K"), Tmpfs("/sbin/within", size="64K")]
    table = mount_table(Sandbox(mounts=mounts[::step]))
    assert {"/sbin", "/sbin/within"} <= table.keys()
    assert "/usr/sbin/within" not in table
