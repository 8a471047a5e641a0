"""Symbolic links in foreign trees lead no set-up and no payload to where they point."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nsbox import Bind, Sandbox, SpawnError, Tmpfs
from nsbox.mount import Mount
from support import (
    expose,
    tree,
)

pytestmark = pytest.mark.usefixtures("box")


def _outside(tmp_path: Path) -> Path:
    """Return a directory of the host that no sandbox may touch."""
    outside = tmp_path / "outside"
    (outside / "dir").mkdir(parents=True)
    (outside / "null").write_text("host")
    return outside


def _spawn_or_refuse(box: Sandbox, args: list[str]) -> str:
    try:
        result = box.run(args, capture_output=True)
    except SpawnError as error:
        return str(error.step)
    return "ran" if result.returncode == 0 else "failed"


LINKS = {
    "absolute": "{outside}",
    "relative": "../outside",
    "relative_deep": "../../../../../../../../../../{outside}",
    "dangling": "/nowhere/at/all",
    "dangling_relative": "../nowhere",
    "itself": "{name}",
    "dotdot": "..",
    "to_file": "{outside}/null",
    "old_root": "/oldroot/{outside}",
    "proc_root": "/proc/1/root",
    "proc_cwd": "/proc/self/cwd",
}


@pytest.mark.parametrize("name", ["dev", "proc", "tmp"])
@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
def test_root_with_a_link_in_the_way(rootfs: Path, name: str, link: str) -> None:
    """A root whose /dev, /proc or /tmp is a link to anywhere never leads the set-up outside."""
    outside = _outside(rootfs.parent)
    (rootfs / name).symlink_to(link.format(outside=outside, name=name))
    before = tree(rootfs.parent)
    _spawn_or_refuse(Sandbox(root=str(rootfs)), ["/bin/ls", "/"])
    assert tree(rootfs.parent) == before


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
def test_mount_through_a_link_in_a_writable_bind(tmp_path: Path, link: str) -> None:
    """A mount below a link in a writable directory of the host creates nothing on the host."""
    outside = _outside(expose(tmp_path))
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "x").symlink_to(link.format(outside=outside, name="x"))
    before = tree(tmp_path)
    mounts: list[Mount] = [Bind(shared, "/data", readonly=False), Tmpfs("/data/x/y")]
    _spawn_or_refuse(Sandbox(mounts=mounts), ["/bin/true"])
    assert tree(tmp_path) == before


def test_mount_through_a_link_to_the_old_root(tmp_path: Path) -> None:
    """With ``x -> /oldroot/tmp/pwn`` in a bind, a mount at x/y makes nothing in the host's /tmp."""
    shared = expose(tmp_path) / "shared"
    shared.mkdir()
    victim = tmp_path / "pwn"
    (shared / "x").symlink_to(f"/oldroot{victim}")
    for readonly in (True, False):
        mounts: list[Mount] = [Bind(shared, "/data", readonly=readonly), Tmpfs("/data/x/y")]
        _spawn_or_refuse(Sandbox(mounts=mounts), ["/bin/true"])
    assert not victim.exists()


def test_mount_through_a_link_to_another_bind(tmp_path: Path) -> None:
    """A link from our own tmpfs tree into a writable bind makes no mount points there."""
    expose(tmp_path)
    shared, other = tmp_path / "shared", tmp_path / "other"
    shared.mkdir()
    other.mkdir()
    (other / "x").symlink_to("/data")
    before = tree(tmp_path)
    mounts: list[Mount] = [
        Bind(shared, "/data", readonly=False),
        Bind(other, "/other"),
        Tmpfs("/other/x/new/deep"),
    ]
    _spawn_or_refuse(Sandbox(mounts=mounts), ["/bin/true"])
    assert tree(tmp_path) == before


def test_absolute_link_is_resolved_inside(rootfs: Path) -> None:
    """An absolute link in a root means a path of that root, not of the host."""
    (rootfs / "real").mkdir()
    (rootfs / "link").symlink_to("/real")
    box = Sandbox(root=str(rootfs), mounts=[Tmpfs("/link/below")])
    assert box.run(["/bin/ls", "-d", "/real/below"]).returncode == 0


# It follows 40. When somebody mounts or renames meanwhile it begins anew, and counts on.
@pytest.mark.parametrize(("length", "outcome"), [(20, "ran"), (41, "target")])
def test_chain_of_links(rootfs: Path, length: int, outcome: str) -> None:
    """A chain of links that the kernel follows works; a longer one is an error."""
    (rootfs / "l0").mkdir()
    for number in range(length):
        (rootfs / f"l{number + 1}").symlink_to(f"l{number}")
    before = tree(rootfs)
    box = Sandbox(root=str(rootfs), mounts=[Tmpfs(f"/l{length}/x")])
    assert _spawn_or_refuse(box, ["/bin/ls", "-d", "/l0/x"]) == outcome
    assert tree(rootfs) == before


def test_link_to_a_device_as_dev_null(rootfs: Path) -> None:
    """A root's own /dev, whatever it holds, is never used: a fresh one covers it."""
    outside = _outside(rootfs.parent)
    (rootfs / "dev").mkdir()
    (rootfs / "dev" / "null").symlink_to(outside / "null")
    result = Sandbox(root=str(rootfs)).run(["/bin/sh", "-c", "echo x >/dev/null"])
    assert result.returncode == 0
    assert (outside / "null").read_text() == "host"


@contextmanager
def _flipping(shared: Path) -> Iterator[list[None]]:
    """Let a thread exchange "flip", a directory, and "link" all the time; yield a list of times."""
    stop = threading.Event()
    flips: list[None] = []

    def flip() -> None:
        while not stop.is_set():
            os.rename(shared / "flip", shared / "away")
            os.rename(shared / "link", shared / "flip")
            os.rename(shared / "flip", shared / "link")
            os.rename(shared / "away", shared / "flip")
            flips.append(None)

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        yield flips
    finally:
        stop.set()
        thread.join()


def _to_flip(tmp_path: Path) -> tuple[Path, Path]:
    """Return a directory of the host's, and a shared one that has a directory and a link to it."""
    outside = _outside(expose(tmp_path))
    shared = tmp_path / "shared"
    (shared / "flip" / "sub").mkdir(parents=True)
    (shared / "link").symlink_to(outside)
    return outside, shared


@pytest.mark.one_kernel
def test_link_flipped_during_spawns(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """While a shared directory flips between directory and link, no spawn touches the host."""
    outside, shared = _to_flip(tmp_path)
    before = tree(outside)
    box = Sandbox(
        mounts=[
            Bind(shared, "/data", readonly=False),
            Tmpfs("/data/flip/sub/a"),
            Tmpfs("/data/flip/b"),
        ]
    )
    with _flipping(shared) as flips:
        for _ in range(1000 if request.config.getoption("--long") else 200):
            _spawn_or_refuse(box, ["/bin/true"])
    assert flips
    assert tree(outside) == before
    assert sorted(os.listdir(shared / "flip")) == ["sub"]
    assert os.listdir(shared / "flip" / "sub") == []


@pytest.mark.one_kernel
def test_flipped_link_in_a_readonly_bind(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The same with mount points that are made above a read-only bind."""
    outside, shared = _to_flip(tmp_path)
    before = tree(outside)
    box = Sandbox(
        mounts=[Bind(shared, "/data"), Tmpfs("/data/flip/sub/new"), Tmpfs("/data/flip/b")]
    )
    with _flipping(shared):
        for _ in range(1000 if request.config.getoption("--long") else 100):
            _spawn_or_refuse(box, ["/bin/true"])
    assert tree(outside) == before
    assert sorted(os.listdir(shared / "flip")) == ["sub"]


def test_root_swapped_for_a_link_is_followed_once(rootfs: Path) -> None:
    """A root given by a link means what the link points to at the spawn."""
    link = rootfs.parent / "link"
    link.symlink_to(rootfs)
    result = Sandbox(root=str(link)).run(["/bin/ls", "/bin/busybox"])
    assert result.returncode == 0


def test_target_below_a_link_of_the_root(sh: Any, tmp_path: Path) -> None:
    """A mount below /bin, a link to usr/bin, is found in both places."""
    tool = expose(tmp_path) / "tool"
    tool.write_text("#!/bin/sh\necho tool\n")
    tool.chmod(0o755)
    result = sh("nsbox-tool; /usr/bin/nsbox-tool", Sandbox(mounts=[Bind(tool, "/bin/nsbox-tool")]))
    assert result.stdout == "tool\ntool\n"
