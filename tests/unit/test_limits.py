"""Limits as a value: frozen, comparable, picklable, checked when made."""

import copy
import dataclasses
import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbox import Sandbox
from nsbox.errors import PlanError, PlanTypeError
from nsbox.limits import IoLimit, Limits

EVERYTHING: dict[str, Any] = {
    "memory": "64M",
    "swap": "1M",
    "pids": 16,
    "cpu": 0.5,
    "cpuset": "0-1",
    "io": [IoLimit(device="/dev/vda", read="1M", write_operations=100)],
    "oom_group": True,
    "cpu_time": 2,
    "wall_time": 5.0,
    "output": "1M",
    "file_size": "10M",
    "open_files": 64,
    "stack": "8M",
    "core": 4096,
    "nice": 5,
    "degrade": {"cpu"},
}


def test_nothing_is_limited_by_default() -> None:
    """No hidden default: all fields are None, but for core dumps, of which there are none."""
    values = {item.name: getattr(Limits(), item.name) for item in dataclasses.fields(Limits)}
    assert values.pop("core") == 0
    assert values.pop("degrade") == frozenset()
    assert set(values.values()) == {None}
    assert values.keys() | {"core", "degrade"} == EVERYTHING.keys()


def test_is_a_value() -> None:
    """Equal, hashable, and the same after a pickle and a copy."""
    one, two = Limits(**EVERYTHING), Limits(**EVERYTHING)
    assert one == two
    assert hash(one) == hash(two)
    assert pickle.loads(pickle.dumps(one)) == one
    assert copy.deepcopy(one) == one
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.pids = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", sorted(EVERYTHING.keys() - {"memory", "swap", "oom_group"}))
def test_each_field_counts_in_comparison(name: str) -> None:
    """Two that differ in one field are not equal."""
    assert Limits(**{name: EVERYTHING[name]}) != Limits()


def test_sizes_and_sets_are_normalised() -> None:
    """A size is bytes, a set of processors a sorted tuple: equal meaning, equal value."""
    assert Limits(memory="64M") == Limits(memory=64 << 20)
    assert Limits(cpuset="3,0-1,1") == Limits(cpuset=[0, 1, 3])
    assert Limits(cpuset="0-2").cpuset == (0, 1, 2)


BAD: list[tuple[str, Any, type[PlanError]]] = [
    *((name, 0, PlanError) for name in ("memory", "pids", "cpu", "cpu_time", "wall_time")),
    *((name, 0, PlanError) for name in ("output", "file_size", "open_files", "stack", "nice")),
    *((name, -1, PlanError) for name in EVERYTHING if name not in ("cpuset", "io", "degrade")),
    *((name, True, PlanTypeError) for name in ("memory", "pids", "cpu", "cpu_time", "core")),
    *((name, "x", PlanError) for name in ("memory", "output", "stack", "cpuset")),
    *((name, "1", PlanTypeError) for name in ("pids", "cpu", "cpu_time", "wall_time", "nice")),
    *((name, math.nan, PlanError) for name in ("cpu", "cpu_time", "wall_time")),
    *((name, math.inf, PlanError) for name in ("cpu", "cpu_time", "wall_time")),
    ("cpu", 0.001, PlanError),
    ("open_files", 2, PlanError),
    ("stack", "64K", PlanError),
    ("nice", 20, PlanError),
    ("memory", 2**63, PlanError),
    ("pids", 2**40, PlanError),
    ("cpuset", "", PlanError),
    ("cpuset", "2-1", PlanError),
    ("cpuset", "0-99999", PlanError),
    ("cpuset", [], PlanError),
    ("cpuset", [-1], PlanError),
    ("cpuset", 3, PlanTypeError),
    ("io", [], PlanError),
    ("io", [1], PlanTypeError),
    ("io", [IoLimit(device="/dev/a", read=1)] * 2, PlanError),
    ("degrade", {"wall_time"}, PlanError),
    ("degrade", "cpu", PlanTypeError),
    ("swap", "1M", PlanError),
    ("oom_group", True, PlanError),
]


@pytest.mark.parametrize(("name", "value", "error"), BAD, ids=repr)
def test_what_cannot_be_meant_is_refused(name: str, value: object, error: type[PlanError]) -> None:
    """Zero, negative, too small, too large, not a number, of a wrong type."""
    if name == "oom_group" and value == -1:
        error = PlanTypeError
    with pytest.raises(error) as caught:
        Limits(**{name: value})  # type: ignore[arg-type]
    assert name in str(caught.value)


@pytest.mark.parametrize("fields", [{}, {"read": 0}, {"write": -5}])
def test_io_limit_must_limit(fields: dict[str, Any]) -> None:
    """A rate of zero, or none at all, cannot be meant."""
    with pytest.raises(PlanError):
        IoLimit(device="/dev/vda", **fields)


def test_given_and_without() -> None:
    """What limits something, and the same without some of it."""
    limits = Limits(memory="1M", oom_group=True, pids=3)
    assert limits.given() == ("memory", "pids", "oom_group", "core")
    assert limits.without(["memory"]) == Limits(pids=3)
    assert limits.without([]) == limits


def test_are_explained() -> None:
    """box.explain() says what is limited by whom, before the payload is executed."""
    limits = Limits(memory="1M", pids=3, cpu_time=1, open_files=64, nice=5)
    lines = [str(action) for action in Sandbox(limits=limits).explain()]
    made = [line for line in lines if "a fresh cgroup for memory, swap, pids, cpu_time" in line]
    assert len(made) == 1
    assert lines.index(made[0]) < next(n for n, line in enumerate(lines) if "clone3" in line)
    assert [line.split()[1:] for line in lines[-5:] if "limit" in line or "priority" in line] == [
        ["setpriority", "at", "least", "5"],
        ["prlimit64", "RLIMIT_NOFILE", "64"],
    ]
    assert not any("cgroup for" in str(action) for action in Sandbox().explain())


@given(st.sets(st.integers(0, 200), min_size=1))
def test_cpuset_text_and_numbers_agree(numbers: set[int]) -> None:
    """Any order, any repetition: the same set."""
    text = ",".join(map(str, [*numbers, *numbers]))
    assert Limits(cpuset=text) == Limits(cpuset=numbers)
