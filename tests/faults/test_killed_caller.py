"""The caller is killed by SIGKILL, at any system call of its set-ups: nothing of it remains."""

import os
import random
from collections.abc import Callable, Collection
from functools import partial

import pytest
from supervisor import killed
from workloads import LIMITED, MOUNTS, PLAIN, STAYING, TRUE, Workload

import fingerprint
from conftest import mounts
from nsbox import Limits, Sandbox, _cgroup_layout
from nsbox._cgroup_names import parse
from nsbox.cgroup import remove_leftovers
from support import in_child

pytestmark = [pytest.mark.usefixtures("box"), pytest.mark.one_kernel]

BATCH = 10
"""Rounds in one process, which reaps what is left of its children's."""


def prepare() -> None:
    """Do once what is done but once, so that the calls are those of a set-up."""
    for box in (PLAIN, MOUNTS):
        box.run(TRUE)


def prepare_with_limits() -> None:
    prepare()
    LIMITED.run(TRUE)


def cgroups_of(pids: Collection[int]) -> set[str]:
    """Return the cgroups that these processes have made."""
    found = set()
    for hierarchy in _cgroup_layout.look().hierarchies:
        for place in hierarchy.above():
            for name in os.listdir(place):
                owner = parse(name)
                if owner is not None and owner.pid in pids:
                    found.add(f"{place}/{name}")
    return found


def batch(workload: Workload, moments: list[int]) -> Callable[[], list[tuple[int, float]]]:
    def rounds() -> list[tuple[int, float]]:
        fingerprint.prctl(fingerprint.PR_SET_CHILD_SUBREAPER, 1)
        before = prepare_with_limits if workload.cgroups else prepare
        return [killed(workload.act, before, moment) for moment in moments]

    return rounds


@pytest.mark.parametrize("limited", [False, True])
def test_nobody_waits_for_a_caller_that_is_gone(
    limited: bool, request: pytest.FixtureRequest
) -> None:
    """A half-built child that the kernel has not told of it (it may have no right to) ends, too."""
    if limited:
        request.getfixturevalue("cgroups")
    box = Sandbox(hostname="new", limits=Limits(memory="64M") if limited else None)

    def rounds() -> list[tuple[int, float]]:
        fingerprint.prctl(fingerprint.PR_SET_CHILD_SUBREAPER, 1)
        before = prepare_with_limits if limited else prepare
        act = partial(box.run, TRUE)
        return [killed(act, before, moment, orphans=True) for moment in range(1, 130, 3)]

    callers, _ = zip(*in_child(rounds), strict=True)
    remove_leftovers()
    assert cgroups_of(callers) == set()


@pytest.mark.long
@pytest.mark.parametrize("workload", STAYING, ids=str)
def test_killed_caller_leaves_nothing(workload: Workload, request: pytest.FixtureRequest) -> None:
    """Soon no process is left, and no mount; the next caller removes the cgroups."""
    workload.require(request)
    seed = f"{workload} {request.config.getoption('--seed')}"
    print(f"seed: {seed}")
    rounds = request.config.getoption("--rounds") or (
        60 if request.config.getoption("--long") else 4
    )
    moments = [random.Random(f"{seed} {number}").randint(1, 900) for number in range(rounds)]
    mounted = mounts()
    found: list[tuple[int, float]] = []
    for start in range(0, rounds, BATCH):
        found += in_child(batch(workload, moments[start : start + BATCH]))
    callers, times = zip(*found, strict=True)
    print(f"{workload}: {rounds} times; all was gone after at most {max(times):.3f} s")
    remove_leftovers()
    assert cgroups_of(callers) == set()
    assert mounts() == mounted
