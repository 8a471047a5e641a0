"""What only root can do, and what must hold for a root caller in particular."""

import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import cffi
import pytest

import nsbox
from conftest import needs_kernel_of
from nsbox import (
    DEVNULL,
    Bind,
    Namespace,
    Overlay,
    Sandbox,
    SpawnError,
    Step,
    UnsupportedError,
    lowlevel,
)
from nsbox._host import OVERFLOW_ID
from support import SOURCE, enter_private_mounts, in_child, mount_tmpfs, stdout_of

pytestmark = pytest.mark.usefixtures("root", "box")

KINDS = ["net", "uts", "ipc", "cgroup"]
FIELDS = {"uts": "uts", "ipc": "ipc", "net": "net", "cgroup": "cgroup_ns", "time": "time"}
WRITE = ["/bin/sh", "-c", "echo hi >/data/new && cat /data/file"]


def own_link(kind: str) -> str:
    return os.readlink(f"/proc/thread-self/ns/{kind}")


def link(namespace: Namespace) -> str:
    return f"{namespace.kind}:[{namespace.id}]"


@pytest.mark.parametrize("fields", [{"user": "host"}, {"namespaces": "none"}])
def test_payload_is_nobody_without_proc(fields: dict[str, Any]) -> None:
    """Where the maps of ids cannot be read, the payload is not root all the same."""
    needs_kernel_of(fields)

    def child() -> tuple[bytes, bytes]:
        enter_private_mounts()
        mount_tmpfs(Path("/proc"))
        result = Sandbox(**fields).run(["/usr/bin/id", "-u"], capture_output=True)
        return result.stdout, result.stderr

    assert in_child(child) == (b"%d\n" % OVERFLOW_ID, b"")


# ---- writable binds -------------------------------------------------------


@pytest.mark.parametrize("owner", [0, 1000, 65534])
@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_writable_bind_maps_the_owner(tmp_path: Path, owner: int, mode: int) -> None:
    """Whoever owns the source, the payload writes there as its owner, however private it is."""
    source = tmp_path / "source"
    source.mkdir(mode=mode)
    (source / "file").write_text("content")
    for path in (source, source / "file"):
        os.chown(path, owner, owner)
    result = Sandbox(mounts=[Bind(source, "/data", readonly=False)]).run(WRITE, capture_output=True)
    assert result.stdout == b"content"
    info = (source / "new").stat()
    assert (info.st_uid, info.st_gid) == (owner, owner)


def test_source_belongs_to_the_payload_inside(tmp_path: Path) -> None:
    """Inside, what belongs to the source's owner belongs to the payload."""
    source = tmp_path / "source"
    source.mkdir()
    os.chown(source, 1000, 1000)
    box = Sandbox(uid=5, gid=6, mounts=[Bind(source, "/data", readonly=False)])
    result = box.run(["/usr/bin/stat", "-c", "%u %g", "/data"], capture_output=True)
    assert result.stdout == b"5 6\n"


def test_other_owners_in_the_source_stay_foreign(tmp_path: Path) -> None:
    """A file of somebody else in a writable bind is not the payload's to read."""
    source = tmp_path / "source"
    source.mkdir()
    os.chown(source, 1000, 1000)
    secret = source / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    box = Sandbox(mounts=[Bind(source, "/data", readonly=False)])
    result = box.run(["/bin/cat", "/data/secret"], capture_output=True)
    assert (result.returncode != 0, result.stdout) == (True, b"")


def test_no_set_user_id_file_for_root_can_be_left(tmp_path: Path) -> None:
    """A payload cannot leave a program that runs as root on the host in a foreign directory."""
    source = tmp_path / "source"
    source.mkdir()
    os.chown(source, 1000, 1000)
    command = ["/bin/sh", "-c", "cp /bin/true /data/p; chmod 6755 /data/p"]
    mounts = [Bind(source, "/data", readonly=False)]
    assert Sandbox(mounts=mounts).run(command, stderr=DEVNULL).returncode != 0
    assert stat.S_IMODE((source / "p").stat().st_mode) == 0o755
    # Without the filter it can be set, but the program is not root's.
    Sandbox(mounts=mounts, seccomp=None).run(command, check=True)
    assert (source / "p").stat().st_uid == 1000


def test_nothing_is_done_for_a_set_user_id_program(tmp_path: Path) -> None:
    """A program with rights that its caller does not have gets no sandbox."""
    program = Path(shutil.copy(os.path.realpath(sys.executable), tmp_path / "python"))
    program.chmod(0o4755)
    for directory in (tmp_path, *tmp_path.parents[:-1]):
        if not directory.stat().st_mode & 0o001:
            directory.chmod(directory.stat().st_mode | 0o011)
    if os.statvfs(tmp_path).f_flag & os.ST_NOSUID:
        pytest.skip("temporary files are on a file system that is mounted nosuid")
    code = "import nsbox; nsbox.Sandbox().run(['/bin/true'])"
    paths = [str(SOURCE), str(Path(cffi.__file__).parents[1])]
    result = subprocess.run(
        [program, "-S", "-c", code],
        user=4711,
        group=4711,
        cwd="/",
        env={"PYTHONHOME": sys.base_prefix, "PYTHONPATH": ":".join(paths)},
        capture_output=True,
        text=True,
    )
    assert "UnsupportedError: this program runs with privileges" in result.stderr


def test_idmap_false_shows_the_true_owner(tmp_path: Path) -> None:
    """idmap=False leaves the owners as they are, and root's private directory closed."""
    source = tmp_path / "source"
    source.mkdir(mode=0o700)
    box = Sandbox(mounts=[Bind(source, "/data", readonly=False, idmap=False)])
    assert box.run(["/bin/ls", "/data"], capture_output=True).returncode != 0


def test_readonly_bind_with_idmap(tmp_path: Path) -> None:
    """idmap=True opens a private directory of root for reading."""
    source = tmp_path / "source"
    source.mkdir(mode=0o700)
    (source / "file").write_text("content")
    (source / "file").chmod(0o600)
    box = Sandbox(mounts=[Bind(source, "/data", idmap=True)])
    assert box.run(["/bin/cat", "/data/file"], capture_output=True).stdout == b"content"


def test_overlay_upper_belongs_to_its_owner(tmp_path: Path) -> None:
    """What an Overlay keeps in upper belongs to the owner of the directory that holds it."""
    for name in ("lower", "layers", "layers/upper", "layers/work"):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, 1000, 1000)
    overlay = Overlay(
        tmp_path / "lower",
        "/data",
        upper=tmp_path / "layers" / "upper",
        work=tmp_path / "layers" / "work",
    )
    Sandbox(mounts=[overlay]).run(["/bin/sh", "-c", "echo >/data/new"], check=True)
    assert (tmp_path / "layers" / "upper" / "new").stat().st_uid == 1000


@pytest.mark.parametrize("source", ["/proc/sys", "/sys/kernel"])
def test_file_system_that_cannot_be_mapped(source: str) -> None:
    """A writable bind of a file system that cannot be id-mapped fails and says what to do."""
    with pytest.raises(SpawnError) as caught:
        Sandbox(mounts=[Bind(source, "/data", readonly=False)]).run(["/bin/true"])
    found = caught.value.step, caught.value.errno, caught.value.path
    assert found == (Step.IDMAP, errno.EINVAL, source)
    assert caught.value.hint is not None
    assert "idmap=False" in caught.value.hint


# ---- ids ------------------------------------------------------------------


def test_host_uid_can_be_chosen() -> None:
    """host_uid and host_gid say who the payload is to the host."""
    box = Sandbox(host_uid=1000, host_gid=1001)
    with box.spawn(["/bin/sh", "-c", "echo; read line"], stdin=-1, stdout=-1) as process:
        stdout_of(process).readline()  # right after the exec they are still root's
        info = os.stat(f"/proc/{process.pid}")
    assert (info.st_uid, info.st_gid) == (1000, 1001)


def test_payload_has_no_rights_over_root_files(tmp_path: Path) -> None:
    """A private file of root that lies in a read-only bind cannot be read."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    result = Sandbox(mounts=[Bind(secret, "/secret")]).run(
        ["/bin/cat", "/secret"], capture_output=True
    )
    assert (result.returncode != 0, result.stdout) == (True, b"")


@pytest.mark.parametrize("host_uid", [None, 1000])
def test_kernel_settings_are_closed(host_uid: int | None) -> None:
    """core_pattern cannot be written, and keeps its value."""
    path = Path("/proc/sys/kernel/core_pattern")
    before = path.read_text()
    result = Sandbox(host_uid=host_uid, capabilities=["SYS_ADMIN"]).run(
        ["/bin/sh", "-c", f"echo x >{path}"], capture_output=True
    )
    assert result.returncode != 0
    assert path.read_text() == before


def test_user_host_without_capabilities() -> None:
    """user='host' with uid=0 is root's uid, without any capability."""
    box = Sandbox(user="host", uid=0, gid=0)
    result = box.run(
        ["/bin/sh", "-c", "id -u; grep ^Cap /proc/self/status; mount -t tmpfs x /tmp"],
        capture_output=True,
        text=True,
    )
    lines = result.stdout.split("\n")
    assert lines[0] == "0"
    assert {line.split()[1] for line in lines[1:6]} == {"0" * 16}
    assert result.returncode != 0


def test_user_host_is_not_root_by_default() -> None:
    """user='host' with no uid given makes the payload nobody, not root."""
    result = Sandbox(user="host").run(["/bin/sh", "-c", "id -u; id -g"], capture_output=True)
    assert result.stdout == b"65534\n65534\n"


def test_user_host_with_another_uid() -> None:
    """user='host' with a uid makes the payload that user of the host."""
    result = Sandbox(user="host", uid=1000, gid=1000).run(
        ["/bin/sh", "-c", "id -u; id -g; id -G"], capture_output=True
    )
    assert result.stdout == b"1000\n1000\n1000\n"


def test_user_host_mounts_stay_inside() -> None:
    """With user='host' too, no mount of the sandbox reaches the host."""
    before = Path("/proc/self/mountinfo").read_text()
    with Sandbox(user="host").spawn(["/bin/cat"], stdin=-1) as process:
        during = Path("/proc/self/mountinfo").read_text()
        process.communicate()
    assert during == before


# ---- namespaces -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["mnt", "uts", "ipc", "net", "cgroup", "time"])
def test_create_in_the_own_user_namespace(kind: str) -> None:
    """Root makes namespaces without a user namespace of their own."""
    with (
        Namespace.create(kind) as namespace,
        namespace.owner() as owner,
        Namespace.of(0, "user") as own,
    ):
        assert owner == own


@pytest.mark.parametrize("kind", FIELDS)
def test_join_without_a_user_namespace(kind: str) -> None:
    """A sandbox of root joins a namespace and still has a user namespace of its own."""
    with Namespace.create(kind) as namespace:
        fields: dict[str, Any] = {FIELDS[kind]: namespace}
        box = Sandbox(**fields)
        result = box.run(
            ["/bin/readlink", f"/proc/self/ns/{kind}", "/proc/self/ns/user"],
            capture_output=True,
            text=True,
        )
    joined, user = result.stdout.split()
    assert joined == link(namespace)
    assert user != own_link("user")


@pytest.mark.parametrize("kind", KINDS)
def test_enter_and_back(kind: str) -> None:
    """enter() moves the calling thread for the length of the block, and back."""
    before = own_link(kind)
    with Namespace.create(kind) as namespace:
        with namespace.enter() as entered:
            assert entered is namespace
            assert own_link(kind) == link(namespace)
        assert own_link(kind) == before


def test_enter_comes_back_after_an_exception() -> None:
    """An exception in the block leaves the thread where it was before."""
    before = own_link("net")
    with Namespace.create("net") as net:
        with pytest.raises(RuntimeError), net.enter():
            raise RuntimeError
        assert own_link("net") == before


def test_enter_concerns_the_calling_thread_only() -> None:
    """Another thread stays where it is, and a thread made meanwhile inherits."""
    seen: dict[str, str] = {}
    entered, looked = threading.Event(), threading.Event()

    def bystander() -> None:
        entered.wait()
        seen["bystander"] = own_link("net")
        looked.set()

    other = threading.Thread(target=bystander)
    other.start()
    before = own_link("net")
    with Namespace.create("net") as net, net.enter():
        entered.set()
        looked.wait()
        heir = threading.Thread(target=lambda: seen.update(heir=own_link("net")))
        heir.start()
        heir.join()
    other.join()
    assert seen == {"bystander": before, "heir": link(net)}


def test_spawn_inherits_what_the_thread_has_entered() -> None:
    """With net='host' a payload is in the network that the calling thread has entered."""
    with Namespace.create("net") as net, net.enter():
        result = Sandbox(net="host").run(
            ["/bin/readlink", "/proc/self/ns/net"], capture_output=True, text=True
        )
    assert result.stdout.strip() == link(net)


@pytest.mark.parametrize("kind", ["mnt", "time"])
def test_enter_in_a_program_with_threads(kind: str) -> None:
    """A mount or time namespace cannot be entered while other threads exist."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with (
            Namespace.create(kind) as namespace,
            pytest.raises(UnsupportedError, match="thread"),
            namespace.enter(),
        ):
            pass
    finally:
        done.set()
        thread.join()


def test_user_namespace_cannot_be_entered_by_root() -> None:
    """Root cannot enter a user namespace either."""
    with (
        Namespace.create("user") as user,
        pytest.raises(UnsupportedError),
        user.enter(),
    ):
        pass


def test_entered_pid_namespace_takes_children() -> None:
    """What a thread starts in an entered pid namespace is there, and the thread is not."""
    before = own_link("pid")
    with (
        Sandbox().spawn(["/bin/cat"], stdin=-1) as process,
        process.namespaces["pid"] as pid,
    ):
        with pid.enter():
            assert own_link("pid") == before
            assert own_link("pid_for_children") == link(pid)
        process.communicate()
    assert own_link("pid_for_children") == before


def test_dumpable_mark_is_the_callers() -> None:
    """A failed spawn too leaves PR_GET_DUMPABLE as it was."""
    before = lowlevel.prctl(3)
    with pytest.raises(SpawnError):
        Sandbox().run(["/missing"])
    assert lowlevel.prctl(3) == before


def test_requested_ids_are_taken_on_and_leave_no_capability() -> None:
    """user, group and extra_groups hold with the host's ids; the caller stays dumpable."""
    before = lowlevel.prctl(3)
    box = Sandbox(user="host", uid=1234, gid=1234)
    command = ["grep", "-E", "^(Uid|Gid|Groups|Cap|NoNewPrivs)", "/proc/self/status"]
    output = box.subprocess.check_output(
        command, text=True, user=77, group=78, extra_groups=[79, 80]
    )
    status = dict(line.split(":") for line in output.splitlines())
    assert status.pop("Uid").split() == ["77"] * 4
    assert status.pop("Gid").split() == ["78"] * 4
    assert status.pop("Groups").split() == ["79", "80"]
    assert status.pop("NoNewPrivs").strip() == "1"
    assert {name: int(text, 16) for name, text in status.items()} == dict.fromkeys(status, 0)
    assert len(status) == 5
    assert lowlevel.prctl(3) == before


def test_requested_ids_keep_the_capabilities_of_the_sandbox() -> None:
    """Another id does not cost the payload what the sandbox gives it."""
    box = Sandbox(user="host", uid=1234, gid=1234, capabilities=["CHOWN"])
    command = ["grep", "CapEff", "/proc/self/status"]
    assert box.subprocess.check_output(command, user=77).split() == [b"CapEff:", b"0" * 15 + b"1"]


# ---- root without CAP_SYS_ADMIN, as in a container --------------------------

_PR_CAPBSET_DROP = 24  # prctl(2)
_CAP_SETUID, _CAP_SYS_ADMIN = 7, 21
_REPORT = """
import sys
import nsbox
try:
    mounts = [nsbox.Bind(path, "/out", readonly=False) for path in sys.argv[1:]]
    result = nsbox.Sandbox(mounts=mounts).run(["/bin/sh", "-c", "id -u"], capture_output=True)
    print(result.stdout.decode(), end="")
except nsbox.SpawnError as error:
    print(error.step, error.hint)
"""


def _without(capability: int, *args: str) -> str:
    """Run the report as root that lacks a capability, and return what it prints."""
    return subprocess.run(
        [sys.executable, "-c", _REPORT, *args],
        env={**os.environ, "PYTHONPATH": str(Path(nsbox.__file__).parents[1])},
        preexec_fn=lambda: lowlevel.prctl(_PR_CAPBSET_DROP, capability),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_root_without_the_right_to_mount() -> None:
    """It needs none of the host's: the child has it in its own user namespace."""
    assert _without(_CAP_SYS_ADMIN) == "0\n"


def test_root_without_the_right_to_mount_cannot_map_owners(tmp_path: Path) -> None:
    """A writable bind of root's needs an id-mapped mount, and so the right; the error says it."""
    step, _, hint = _without(_CAP_SYS_ADMIN, str(tmp_path)).partition(" ")
    assert step == Step.IDMAP
    assert "CAP_SYS_ADMIN" in hint


def test_root_without_the_right_to_map_ids() -> None:
    """It is not made host root instead: the error names the right that is missing."""
    step, _, hint = _without(_CAP_SETUID).partition(" ")
    assert step == Step.UID_MAP
    assert "CAP_SETUID" in hint
