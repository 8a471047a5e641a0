"""Where the cgroups of a host are, from the two files of /proc that tell."""

import os
from pathlib import Path

import pytest

from nsbox import _cgroup_layout
from nsbox._cgroup_layout import Hierarchy, parse

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup systemd rw,xattr,name=systemd\n"
)
BARE_V2 = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
OTHER = "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"
OWN_V1 = "4:memory:/jobs/a\n2:cpu,cpuacct:/\n1:name=systemd:/\n"


def test_pure_v2() -> None:
    """One hierarchy; the caller's cgroup lies below its mount point."""
    layout = parse(OTHER + V2, "0::/user.slice/app.scope\n")
    assert layout.kind == "v2"
    assert layout.unified == Hierarchy(
        2, "/sys/fs/cgroup", "/sys/fs/cgroup/user.slice/app.scope", (), False
    )
    assert layout.unified.above() == [
        "/sys/fs/cgroup/user.slice/app.scope",
        "/sys/fs/cgroup/user.slice",
        "/sys/fs/cgroup",
    ]


def test_pure_v1() -> None:
    """Controllers by mount; two may share one, and a named hierarchy has none."""
    layout = parse(OTHER + V1, OWN_V1)
    assert layout.kind == "v1"
    assert layout.unified is None
    assert layout.holder("cpuacct") is layout.holder("cpu")
    memory = layout.holder("memory")
    assert memory is not None
    assert memory.directory == "/sys/fs/cgroup/memory/jobs/a"
    assert layout.holder("pids") is None


def test_hybrid() -> None:
    """Controllers on v1, and a v2 mount beside them."""
    layout = parse(V1 + BARE_V2, OWN_V1 + "0::/x\n")
    assert layout.kind == "hybrid"
    assert layout.unified is not None
    assert layout.unified.directory == "/sys/fs/cgroup/unified/x"
    assert layout.holder("memory") != layout.unified


def test_no_cgroups() -> None:
    """A host, or a container, in which none is mounted."""
    assert parse(OTHER, "0::/\n").kind == "none"


def test_a_part_of_a_hierarchy_is_mounted() -> None:
    """A mount that shows a subtree: the path is relative to its root, or not in it."""
    mount = "30 23 0:26 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup rw\n"
    inside = parse(mount, "0::/docker/x/job\n").unified
    assert inside is not None
    assert inside.directory == "/sys/fs/cgroup/job"
    for outside in ("/docker/xy", "/other", "/../elsewhere"):
        hierarchy = parse(mount, f"0::{outside}\n").unified
        assert hierarchy is not None
        assert hierarchy.directory is None
        assert hierarchy.above() == []


def test_the_mount_that_shows_the_callers_cgroup_wins() -> None:
    """Of several mounts of one hierarchy, the one that the caller's cgroup is in counts."""
    elsewhere = "30 23 0:26 /other /mnt rw - cgroup2 cgroup rw\n"
    layout = parse(elsewhere + V2, "0::/job\n")
    assert layout.unified is not None
    assert layout.unified.mount == "/sys/fs/cgroup"


@pytest.mark.parametrize("line", [V2.replace("rw,nosuid", "ro"), V2.replace("rw,nsd", "ro,nsd")])
def test_read_only(line: str) -> None:
    """A read-only mount is not writable for anybody, whatever the modes say."""
    hierarchy = parse(line, "0::/\n").unified
    assert hierarchy is not None
    assert hierarchy.readonly
    assert not hierarchy.writable("/")


def test_names_are_unescaped() -> None:
    """mountinfo writes a space as \\040."""
    hierarchy = parse(V2.replace("/sys/fs/cgroup", "/a\\040b"), "0::/\n").unified
    assert hierarchy is not None
    assert hierarchy.mount == "/a b"


def test_this_host() -> None:
    """The caller's own cgroups are directories, and the caller is in them."""
    layout = _cgroup_layout.look()
    for hierarchy in layout.hierarchies:
        if hierarchy.directory is None:
            continue
        pids = Path(hierarchy.directory, "cgroup.procs").read_text().split()
        assert str(os.getpid()) in pids
