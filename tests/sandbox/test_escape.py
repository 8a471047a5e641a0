"""Ways out of a sandbox that were open once, or would be if a part of the set-up were left out."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nsbox import Bind, Namespace, Overlay, Sandbox, Tmpfs
from support import expose

Shape = Callable[[Path, Path], Sandbox]

MOUNT_POINTS = ("proc", "dev", "tmp", "data")

SHAPES: dict[str, Shape] = {
    "default": lambda root, data: Sandbox(),
    "no_default_mounts": lambda root, data: Sandbox(default_mounts=False),
    "writable": lambda root, data: Sandbox(writable=True),
    "bind": lambda root, data: Sandbox(mounts=[Bind(data, "/data")]),
    "bind_that_holds_a_mount": lambda root, data: Sandbox(
        mounts=[Bind(data, "/data"), Tmpfs("/data/below")]
    ),
    "overlay": lambda root, data: Sandbox(mounts=[Overlay(data, "/data")]),
    "two_overlays": lambda root, data: Sandbox(
        mounts=[Overlay(data, "/one"), Overlay([data, root], "/two")]
    ),
    "root": lambda root, data: Sandbox(root=root),
    "root_writable": lambda root, data: Sandbox(root=root, writable=True, default_mounts=False),
    "root_lacks_mount_points": lambda root, data: Sandbox(
        root=root, mounts=[Bind(data, "/not/there")]
    ),
    "root_overlay": lambda root, data: Sandbox(root=Overlay(root)),
    "time": lambda root, data: Sandbox(time="new", root=root),
}


@pytest.fixture(params=SHAPES)
def shape(
    request: pytest.FixtureRequest, rootfs: Path, tmp_path: Path, box: Sandbox
) -> Callable[[], Sandbox]:
    """Make one sandbox of each shape that a plan can take, all of which have a busybox."""
    data = tmp_path / "data"
    shutil.copytree(rootfs, data, symlinks=True)
    expose(data)
    for name in MOUNT_POINTS:
        (rootfs / name).mkdir()
        expose(rootfs / name)
    # Made by the test: a Sandbox keeps descriptors of id maps for as long as it exists.
    return lambda: SHAPES[request.param](rootfs, data)


def run_busybox(box: Sandbox, *args: str) -> list[str]:
    program = shutil.which("busybox") if box.root is None else "/bin/busybox"
    assert program is not None
    result = box.run([program, *args], capture_output=True, text=True, check=True)
    output: str = result.stdout
    return output.splitlines()


def test_nothing_lies_above_the_root(shape: Callable[[], Sandbox]) -> None:
    """The parent of "/" is "/" itself, not a mount of the host on which it was stacked."""
    root, parent = run_busybox(shape(), "stat", "-c", "%d:%i", "/", "/..")
    assert parent == root


def test_entries_above_the_root_are_those_of_the_root(shape: Callable[[], Sandbox]) -> None:
    """What ".." of the root holds is what the root holds."""
    sandbox = shape()
    assert run_busybox(sandbox, "ls", "-a", "/..") == run_busybox(sandbox, "ls", "-a", "/")


def test_no_mount_of_the_host_is_left(shape: Callable[[], Sandbox], box: Sandbox) -> None:
    """Exactly one mount is on "/": neither the host's root nor a scratch tmpfs remains there."""
    sandbox = shape()
    if not sandbox.default_mounts:
        pytest.skip("no /proc to look at")
    points = [line.split()[4] for line in run_busybox(sandbox, "cat", "/proc/self/mountinfo")]
    assert points.count("/") == 1


def test_file_of_the_host_cannot_be_reached_by_dots(
    shape: Callable[[], Sandbox], tmp_path: Path
) -> None:
    """No number of ".." leads to a file that exists on the host alone."""
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    path = "/.." * 20 + str(secret)
    sandbox = shape()
    program = shutil.which("busybox") if sandbox.root is None else "/bin/busybox"
    result = sandbox.run([program or "", "cat", path], capture_output=True, text=True)
    assert result.returncode == 1
    assert "No such file" in result.stderr


def test_joined_sandbox_has_nothing_above_its_root(rootfs: Path, box: Sandbox) -> None:
    """The same holds for a sandbox that is started through a launcher."""
    with Namespace.create("user") as user, Namespace.create("net", owner=user) as net:
        joined = Sandbox(user=user, net=net, root=Overlay(rootfs))
        root, parent = run_busybox(joined, "stat", "-c", "%d:%i", "/", "/..")
    assert parent == root


def test_scaffold_keeps_a_closed_directory_closed(rootfs: Path, root: None, box: Sandbox) -> None:
    """A directory that others may not list stays so when a mount point is made in it."""
    closed = rootfs / "closed"
    closed.mkdir()
    (closed / "file").touch()
    closed.chmod(0o711)
    holder = Sandbox(root=rootfs, mounts=[Tmpfs("/closed/mount")])
    result = holder.run(["/bin/ls", "/closed"], capture_output=True, text=True)
    assert result.returncode != 0
    assert "Permission denied" in result.stderr


def test_user_host_is_nobody_unless_an_id_is_named(root: None, box: Sandbox) -> None:
    """Root's payload without a user namespace is not host root by default."""
    result = Sandbox(user="host").run(["id", "-u"], capture_output=True, text=True)
    assert result.stdout == "65534\n"


def test_symbols_of_the_core_are_its_own() -> None:
    """The module exports its init function alone, so no other library can replace a part of it."""
    import nsbox._native as native

    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm")
    file = native.__file__
    output = subprocess.run(
        [nm, "-D", "--defined-only", file], capture_output=True, text=True, check=True
    ).stdout
    names = [line.split()[-1] for line in output.splitlines()]
    allowed = {"PyInit__native", "_cffi_pypyinit__native"}
    assert {name for name in names if not name.startswith("__")} <= allowed


def test_core_binds_its_symbols_when_it_is_loaded() -> None:
    """No symbol is bound lazily, which takes the dynamic linker's locks, in the child."""
    import nsbox._native as native

    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("no readelf")
    file = native.__file__
    output = subprocess.run([readelf, "-d", file], capture_output=True, text=True, check=True)
    assert "NOW" in output.stdout
    assert os.path.basename(file).startswith("_native")
