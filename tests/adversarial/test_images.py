"""Attacks by what lies in a tree before the spawn: hostile root file systems, layers and binds."""

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from attack import PROGRAM, armed, attack

from nsbox import Bind, Dev, Overlay, Proc, Sandbox, SpawnError, Step, Tmpfs, lowlevel
from nsbox.lowlevel import MountFlag
from nsbox.mount import Mount
from support import enter_private_mounts, in_child, mount_tmpfs

pytestmark = pytest.mark.usefixtures("unharmed")

# ---- objects where a mount point should be ----------------------------------


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def _device(path: Path) -> None:
    """The host's null device, which only root may make."""
    if os.geteuid() == 0:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    else:
        path.symlink_to("/dev/null")


OBJECTS: dict[str, Callable[[Path], object]] = {
    "closed_directory": lambda path: path.mkdir(mode=0),
    "device": _device,
    "fifo": lambda path: os.mkfifo(path),
    "file": lambda path: path.touch(),
    "link_to_a_descriptor": lambda path: path.symlink_to("/proc/self/fd/3"),
    "link_to_itself": lambda path: path.symlink_to(path.name),
    "link_to_own_root": lambda path: path.symlink_to("/"),
    "link_to_the_canary": lambda path: path.symlink_to(path.parents[1] / "canary"),
    "link_up": lambda path: path.symlink_to("../" * 40 + str(path.parents[1] / "canary")),
    "socket": _socket,
}
PLACES = ["proc", "dev", "tmp", "etc", "data"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An empty root file system."""
    root = tmp_path / "image"
    root.mkdir()
    root.chmod(0o755)
    return root


def _run_or_refuse(box: Sandbox) -> str:
    """Return what the payload says, or the step at which the spawn was refused."""
    try:
        return attack(box, "descriptors")
    except SpawnError as error:
        return str(error.step)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("make", OBJECTS.values(), ids=OBJECTS)
@pytest.mark.parametrize("writable", [False, True], ids=["readonly", "writable"])
def test_object_in_the_way_does_no_harm(
    hostile: Path,
    image: Path,
    canary: Path,
    place: str,
    make: Callable[[Path], object],
    writable: bool,
) -> None:
    """Whatever an image has where something is mounted: no hang, no trace outside or in it."""
    (image / PROGRAM[1:]).touch()
    make(image / place)
    names = sorted(os.listdir(image))
    mounts: list[Mount] = [Bind(hostile, PROGRAM), Tmpfs("/data/below"), Bind(canary, "/etc")]
    box = Sandbox(root=image, writable=writable, mounts=mounts)
    assert _run_or_refuse(box) in {"none", Step.TARGET, Step.MOVE_MOUNT, Step.MKDIR}
    assert sorted(os.listdir(image)) == names


# ---- hostile layers ---------------------------------------------------------


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """A lower directory with a directory and a file whose attributes the tests falsify."""
    directory = tmp_path / "layer"
    (directory / "sub").mkdir(parents=True)
    (directory / "file").write_text("layer\n")
    for path in (directory, directory / "sub"):
        path.chmod(0o777)
    return directory


def _falsify(path: Path, name: str, value: bytes) -> None:
    try:
        os.setxattr(path, name, value)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EPERM):
            pytest.skip(f"{name} cannot be set on this file system")
        raise


ATTRIBUTES = {
    "redirect_absolute": ("sub", "overlay.redirect", b"/../canary"),
    "redirect_name": ("sub", "overlay.redirect", b"canary"),
    "metacopy": ("file", "overlay.metacopy", b""),
    "metacopy_redirect": ("file", "overlay.redirect", b"/../canary/secret"),
    "origin": ("sub", "overlay.origin", b"\0\xfb" + b"\0" * 30),
}


@pytest.mark.parametrize("space", ["user", "trusted"])
@pytest.mark.parametrize(("name", "attribute", "value"), ATTRIBUTES.values(), ids=ATTRIBUTES)
def test_attributes_of_a_layer_lead_nowhere(
    hostile: Path, layer: Path, space: str, name: str, attribute: str, value: bytes
) -> None:
    """Redirects and other marks that a layer brings along show nothing that lies beside it."""
    _falsify(layer / name, f"{space}.{attribute}", value)
    below = layer.parent / "below"
    below.mkdir()
    box = armed(hostile, Overlay([layer, below], "/layer"))
    for path in ("/layer/sub/secret", "/layer/sub/sub/link"):
        assert attack(box, "open", path, "0") in {"ENOENT", "EPERM"}  # EPERM: not followed
    assert "of the host" not in attack(box, "read", "/layer/file")


def test_upper_layer_of_a_former_payload_leads_nowhere(hostile: Path, layer: Path) -> None:
    """What a payload leaves in a kept upper layer shows the next one nothing of the host."""
    store = layer.parent / "store"
    for name in ("upper", "work"):
        (store / name).mkdir(parents=True)
        (store / name).chmod(0o777)
    (store / "upper" / "sub").mkdir()
    _falsify(store / "upper" / "sub", "user.overlay.redirect", b"/../canary")
    (store / "upper" / "file").symlink_to("../../canary/secret")
    box = armed(hostile, Overlay(layer, "/layer", upper=store / "upper", work=store / "work"))
    assert attack(box, "open", "/layer/sub/secret", "0") in {"ENOENT", "EPERM"}
    assert attack(box, "open", "/layer/file", "0") == "ENOENT"


def test_whiteouts_of_a_layer_hide_only_what_is_below(hostile: Path, layer: Path) -> None:
    """A whiteout in a layer does not take away a mount of ours on the same name."""
    if os.geteuid() == 0:
        os.mknod(layer / "proc", stat.S_IFCHR, 0)
    else:
        (layer / "proc").symlink_to("/nowhere")
    box = Sandbox(root=Overlay(layer), mounts=[Bind(hostile, PROGRAM)])
    assert _run_or_refuse(box) in {"none", Step.TARGET, Step.MKDIR}


# ---- mounts of the host -----------------------------------------------------


def _shared_everything() -> None:
    """As systemd makes it: each mount of the host is shared."""
    enter_private_mounts()
    lowlevel.mount(None, "/", None, MountFlag.MS_REC | MountFlag.MS_SHARED)


SHAPES: dict[str, Callable[[Path, Path], Sandbox]] = {
    "default": lambda hostile, tree: armed(hostile),
    "bind": lambda hostile, tree: armed(hostile, Bind(tree, "/data", readonly=False)),
    "bind_below": lambda hostile, tree: armed(hostile, Bind(tree, "/data"), Tmpfs("/data/sub/new")),
    "overlay": lambda hostile, tree: armed(hostile, Overlay(tree, "/data")),
    "root": lambda hostile, tree: Sandbox(root=tree, mounts=[Bind(hostile, PROGRAM)]),
    "root_overlay": lambda hostile, tree: Sandbox(
        root=Overlay(tree), mounts=[Bind(hostile, PROGRAM)]
    ),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("user", ["new", "host"])
def test_nothing_is_mounted_on_a_host_with_shared_mounts(
    hostile: Path, canary: Path, shape: Callable[[Path, Path], Sandbox], user: str
) -> None:
    """Where all mounts of the host are shared, none of the sandbox's comes back to it."""
    if user == "host" and os.geteuid() != 0:
        pytest.skip("needs root")

    def spawn() -> tuple[str, bool]:
        _shared_everything()
        if os.geteuid() == 0:  # the kernel refuses others an overlay above locked mounts
            mount_tmpfs(canary / "sub")
        box = shape(hostile, canary)
        box = Sandbox(root=box.root, mounts=box.mounts, user=user)
        before = Path("/proc/self/mountinfo").read_text()
        word = _run_or_refuse(box)
        return word, Path("/proc/self/mountinfo").read_text() == before

    assert in_child(spawn) == ("none", True)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_stacked_root_of_the_host_is_left(
    hostile: Path, canary: Path, shape: Callable[[Path, Path], Sandbox]
) -> None:
    """Where the host's "/" has further mounts stacked on it, a payload still finds none of them."""

    def spawn() -> str:
        enter_private_mounts()
        for _ in range(3):
            lowlevel.mount("/", "/", None, MountFlag.MS_BIND | MountFlag.MS_REC)
            os.chroot("/..")  # onto what now lies above, as an early boot does
        box = shape(hostile, canary)
        return attack(box, "open", f"/../..{canary}/secret", "0")

    assert in_child(spawn) == "ENOENT"


def test_source_that_becomes_another_is_one_or_the_other(hostile: Path, tmp_path: Path) -> None:
    """A source that is exchanged during spawns is mounted as a whole: no mixture, nothing else."""
    one, two = tmp_path / "one", tmp_path / "two"
    for directory in (one, two):
        directory.mkdir()
        directory.chmod(0o755)
        (directory / "name").write_text(directory.name)
    name = os.fsencode(tmp_path / "link")
    os.symlink(one, name)
    box = armed(hostile, Bind(os.fsdecode(name), "/data"))
    seen = set()
    for number in range(20):
        os.symlink((one, two)[number % 2], name + b".new")
        os.rename(name + b".new", name)
        seen.add(attack(box, "read", "/data/name"))
    assert seen == {"one", "two"}


def test_proc_and_dev_elsewhere_are_as_closed(hostile: Path) -> None:
    """A second procfs and a second /dev give no more than the first."""
    box = armed(hostile, Proc("/second/proc"), Dev("/second/dev"))
    flags = str(os.O_WRONLY)
    for path in ("proc/sys/kernel/core_pattern", "proc/sys/kernel/modprobe", "dev/new"):
        word = attack(box, "open", f"/second/{path}", flags)
        assert word in {"EACCES", "EROFS", "ENOENT", "EPERM"}
