"""Attacks that use up the machine: under limits they end, and the result says at which."""

from pathlib import Path

import pytest
from attack import PROGRAM, armed

from nsbox import Limits, Reason, Tmpfs

pytestmark = pytest.mark.usefixtures("unharmed")

MEMORY = Limits(memory="24M")
BOMBS = {
    "processes": ("fork 1000", Limits(pids=20), {Reason.PIDS}),
    "tmpfs": ("fill-bytes /tmp/file", MEMORY, {Reason.MEMORY}),
    "mapping": ("fill-mapping /tmp/file", MEMORY, {Reason.MEMORY}),
    "dev_shm": ("fill-bytes /dev/shm/file", MEMORY, {Reason.MEMORY}),
    "inodes": ("fill-inodes /tmp", MEMORY, {Reason.MEMORY}),
    "processor": ("close-and-spin", Limits(cpu_time=0.2, wall_time=30), {Reason.CPU_TIME}),
}

WATCHED = {
    "output": ("flood", Limits(output="1M", wall_time=30), {Reason.OUTPUT}),
    "time": ("close-and-spin", Limits(wall_time=0.3), {Reason.WALL_TIME}),
}


def _reason(hostile: Path, command: str, limits: Limits) -> Reason:
    box = armed(hostile, Tmpfs("/tmp", size="1G", inodes=10**7), limits=limits)
    return box.run([PROGRAM, *command.split()], capture_output=True, timeout=60).reason


@pytest.mark.parametrize(("command", "limits", "reasons"), BOMBS.values(), ids=BOMBS)
def test_bomb_ends_at_its_limit(
    hostile: Path, cgroups: None, command: str, limits: Limits, reasons: set[Reason]
) -> None:
    """What takes processes, memory or processors without end is ended, for that reason."""
    assert _reason(hostile, command, limits) in reasons


@pytest.mark.parametrize(("command", "limits", "reasons"), WATCHED.values(), ids=WATCHED)
def test_endless_payload_ends_at_its_limit(
    hostile: Path, command: str, limits: Limits, reasons: set[Reason]
) -> None:
    """What takes time or output without end is ended as well, where there is no cgroup too."""
    assert _reason(hostile, command, limits) in reasons
