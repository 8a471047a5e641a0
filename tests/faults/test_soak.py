"""Spawns by the thousands from eight threads: memory, descriptors, and all else stay flat."""

import os
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pytest
from workloads import SOAKED

from conftest import why_no_cgroup
from nsbox import Cgroup
from support import SOURCE

pytestmark = [pytest.mark.usefixtures("box"), pytest.mark.one_kernel]

THREADS = 8
STAGES = 12
SPARE = 3 * THREADS
"""Each thread may have made a cgroup ahead, of three hierarchies at most."""
MIB = 1 << 20


class Sample(NamedTuple):
    """
    What a process has, between two stages.

    Args:
        resident: Bytes of its memory, its file mappings not counted.
        kernel: Bytes that the kernel keeps for it and its children: slabs, stacks, tables.
        fds, threads, mounts, children, cgroups: How many.
    """

    resident: int
    kernel: int
    fds: int
    threads: int
    mounts: int
    children: int
    cgroups: int


def children_of(task: Path) -> list[str]:
    with suppress(FileNotFoundError, ProcessLookupError):  # a thread on its way out
        return (task / "children").read_text().split()
    return []


def sample(pid: int, cgroup: Cgroup | None) -> Sample:
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    children = [child for task in (process / "task").iterdir() for child in children_of(task)]
    return Sample(
        resident=int(status["RssAnon"].split()[0]) * 1024,
        kernel=0 if cgroup is None else kernel_memory(cgroup),
        fds=len(os.listdir(process / "fd")),
        threads=len(os.listdir(process / "task")),
        mounts=len((process / "mountinfo").read_text().splitlines()),
        children=len(children),
        cgroups=0 if cgroup is None else sum(map(count_below, cgroup.directories)),
    )


def kernel_memory(cgroup: Cgroup) -> int:
    """Return what is left of a cgroup's memory when its caches have been reclaimed."""
    for directory in cgroup.directories:
        # As much as can be; the first on v2 (Linux 5.19), the second on v1.
        with suppress(OSError):
            Path(directory, "memory.reclaim").write_text("1G")
        with suppress(OSError):
            Path(directory, "memory.force_empty").write_text("0")
    stats = cgroup.stats()
    assert stats.memory is not None
    return stats.memory - (stats.memory_anon or 0) - (stats.memory_file or 0)


def count_below(directory: str) -> int:
    return sum(len(names) for _, names, _ in os.walk(directory))


@pytest.mark.long
def test_soak(request: pytest.FixtureRequest) -> None:
    """After the first stages nothing grows: neither the caller, nor what the kernel has for it."""
    long = request.config.getoption("--long")
    rounds = request.config.getoption("--rounds") or (100_000 if long else 1_200)
    cgroups = why_no_cgroup() is None
    names = [item.name for item in SOAKED if cgroups or not item.cgroups]
    with ExitStack() as stack:
        cgroup = stack.enter_context(Cgroup.create()) if cgroups else None
        program = [
            *(sys.executable, str(Path(__file__).with_name("soak.py"))),
            *("--threads", str(THREADS), "--rounds", str(rounds // STAGES)),
            *("--seed", request.config.getoption("--seed"), "--workloads", ",".join(names)),
            *(f"--cgroup={path}" for path in (() if cgroup is None else cgroup.directories)),
        ]
        environment = {**os.environ, "PYTHONPATH": f"{SOURCE}:{Path(__file__).parents[1]}"}
        process = stack.enter_context(
            subprocess.Popen(
                program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
            )
        )
        assert process.stdin is not None
        assert process.stdout is not None
        stack.callback(process.kill)
        samples, began = [], time.monotonic()
        for _ in range(STAGES):
            process.stdin.write("on\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"
            samples.append(sample(process.pid, cgroup))
    print(f"{rounds} rounds of {', '.join(names)} in {time.monotonic() - began:.0f} s")
    for item in samples:
        print(item)
    # The first third fills caches and free lists, those of eight threads' allocators too.
    early, late = samples[STAGES // 3 : 2 * STAGES // 3], samples[2 * STAGES // 3 :]
    for field in ("fds", "threads", "mounts", "children", "cgroups"):
        most = max(getattr(item, field) for item in early)
        assert max(getattr(item, field) for item in late) <= most + SPARE, field
    assert growth(early, late, "resident") < MIB + 8 * rounds
    assert growth(early, late, "kernel") < 4 * MIB + 64 * rounds


def growth(early: list[Sample], late: list[Sample], field: str) -> float:
    before, after = ([getattr(item, field) for item in part] for part in (early, late))
    return float(median(after) - median(before))
