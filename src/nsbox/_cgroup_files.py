"""
The files of cgroups: what a limit is called, and where a figure is found.

Two dialects, version 1 and version 2. Nothing here makes or removes a cgroup.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from ._cgroup_layout import UNIFIED
from .limits import IoLimit, Limits

PERIOD: Final = 100_000
"""Microseconds over which a cpu limit is counted: what a new cgroup has, on v1 too."""

CONTROLLER_OF: Final = {
    "memory": "memory",
    "swap": "memory",
    "oom_group": "memory",
    "pids": "pids",
    "cpu": "cpu",
    "cpuset": "cpuset",
    "io": "io",
}
"""Field of Limits -> the controller that keeps it."""

ONLY_V2: Final = ("io", "oom_group")

_V1_SOCKETS: Final = "memory.kmem.tcp.limit_in_bytes"  # of UDP as well


class Setting(NamedTuple):
    """A value for a file of a cgroup."""

    file: str
    value: str


# ---- limits -------------------------------------------------------------


def settings(field: str, limits: Limits, version: int, parent: str) -> list[Setting]:
    """
    Return what to write for a field of Limits, in order.

    Args:
        field: Name of a field that is set.
        limits: Where it is set.
        version: Of the hierarchy that has the controller.
        parent: Directory of the cgroup above.
    """
    dialect = _V1 if version == 1 else _V2
    return dialect[field](limits, parent)


def _quota(limits: Limits) -> int:
    assert limits.cpu is not None
    return round(limits.cpu * PERIOD)


def _list(numbers: object) -> str:
    assert isinstance(numbers, tuple)
    return ",".join(map(str, numbers))


def _v1_memory(limits: Limits, parent: str) -> list[Setting]:
    lines = [Setting("memory.limit_in_bytes", str(limits.memory))]
    # Buffers of TCP and UDP are counted apart from all else, and only where they are limited.
    if os.path.exists(f"{parent}/{_V1_SOCKETS}"):
        lines.append(Setting(_V1_SOCKETS, str(limits.memory)))
    return lines


def _v1_swap(limits: Limits, parent: str) -> list[Setting]:
    # Memory and swap together; the kernel wants it no lower than memory, which is set first.
    assert isinstance(limits.memory, int)
    both = limits.memory + int(limits.swap or 0)
    return [Setting("memory.memsw.limit_in_bytes", str(both))]


def _v1_cpuset(limits: Limits, parent: str) -> list[Setting]:
    nodes, _ = v1_cpuset_of(parent)
    return [nodes, Setting("cpuset.cpus", _list(limits.cpuset))]


def v1_cpuset_of(parent: str) -> list[Setting]:
    """Return what the cgroup above has: both are empty in a new one, and nobody may enter it."""
    return [
        Setting(f"cpuset.{name}", read(f"{parent}/cpuset.effective_{name}") or "0")
        for name in ("mems", "cpus")
    ]


def _io(limits: Limits, parent: str) -> list[Setting]:
    return [Setting("io.max", _io_line(item)) for item in limits.io or ()]


def _io_line(item: IoLimit) -> str:
    device = os.stat(item.device).st_rdev
    rates = {
        "rbps": item.read,
        "wbps": item.write,
        "riops": item.read_operations,
        "wiops": item.write_operations,
    }
    words = [f"{key}={value}" for key, value in rates.items() if value is not None]
    return " ".join([f"{os.major(device)}:{os.minor(device)}", *words])


_Lower = Callable[[Limits, str], list[Setting]]

_V1: Final[Mapping[str, _Lower]] = {
    "memory": _v1_memory,
    "swap": _v1_swap,
    "pids": lambda limits, _: [Setting("pids.max", str(limits.pids))],
    "cpu": lambda limits, _: [Setting("cpu.cfs_quota_us", str(_quota(limits)))],
    "cpuset": _v1_cpuset,
}

_V2: Final[Mapping[str, _Lower]] = {
    "memory": lambda limits, _: [Setting("memory.max", str(limits.memory))],
    "swap": lambda limits, _: [Setting("memory.swap.max", str(limits.swap or 0))],
    "oom_group": lambda limits, _: [Setting("memory.oom.group", "1")],
    "pids": lambda limits, _: [Setting("pids.max", str(limits.pids))],
    "cpu": lambda limits, _: [Setting("cpu.max", f"{_quota(limits)} {PERIOD}")],
    "cpuset": lambda limits, _: [Setting("cpuset.cpus", _list(limits.cpuset))],
    "io": _io,
}


# ---- freezing -----------------------------------------------------------


class Switch(NamedTuple):
    """
    How a cgroup is frozen. Pairs are of what is thawed, and of what is frozen.

    Args:
        file: Where it is said.
        words: What is written there.
        told: The file that holds "0" or "1", as it was said last, by whomever.
        state: The file that tells whether it has come to that, and
        lines: the line that does.
    """

    file: str
    words: tuple[str, str]
    told: str
    state: str
    lines: tuple[str, str]


_STATES: Final = ("THAWED", "FROZEN")

SWITCHES: Final[Mapping[int, Switch]] = {
    1: Switch("freezer.state", _STATES, "freezer.self_freezing", "freezer.state", _STATES),
    2: Switch(
        "cgroup.freeze", ("0", "1"), "cgroup.freeze", "cgroup.events", ("frozen 0", "frozen 1")
    ),
}
"""By version of the hierarchy."""


# ---- figures ------------------------------------------------------------


class Source(NamedTuple):
    """
    Where a figure is found.

    Args:
        controller: Whose directory has the file.
        version: Of the hierarchy.
        file: Its name.
        key: The word before the number, for files of several lines.
        unit: What one is worth, in bytes, seconds or pieces.
    """

    controller: str
    version: int
    file: str
    key: str | None = None
    unit: float = 1

    def __str__(self) -> str:
        return self.file if self.key is None else f"{self.file} {self.key}"


_USEC: Final = 1e-6
_NSEC: Final = 1e-9

FIGURES: Final[Mapping[str, tuple[Source, ...]]] = {
    "memory": (
        Source("memory", 2, "memory.current"),
        Source("memory", 1, "memory.usage_in_bytes"),
    ),
    "memory_peak": (
        Source("memory", 2, "memory.peak"),  # since Linux 5.19
        Source("memory", 1, "memory.max_usage_in_bytes"),
    ),
    "memory_anon": (
        Source("memory", 2, "memory.stat", "anon"),
        Source("memory", 1, "memory.stat", "total_rss"),
    ),
    "memory_file": (
        Source("memory", 2, "memory.stat", "file"),
        Source("memory", 1, "memory.stat", "total_cache"),
    ),
    "swap": (
        Source("memory", 2, "memory.swap.current"),
        Source("memory", 1, "memory.stat", "total_swap"),
    ),
    "pids": (Source("pids", 2, "pids.current"), Source("pids", 1, "pids.current")),
    "pids_peak": (Source("pids", 2, "pids.peak"), Source("pids", 1, "pids.peak")),  # since 6.1
    "cpu_time": (
        Source(UNIFIED, 2, "cpu.stat", "usage_usec", _USEC),
        Source("cpuacct", 1, "cpuacct.usage", None, _NSEC),
    ),
    "user_time": (
        Source(UNIFIED, 2, "cpu.stat", "user_usec", _USEC),
        Source("cpuacct", 1, "cpuacct.usage_user", None, _NSEC),
    ),
    "system_time": (
        Source(UNIFIED, 2, "cpu.stat", "system_usec", _USEC),
        Source("cpuacct", 1, "cpuacct.usage_sys", None, _NSEC),
    ),
    "oom_kills": (
        Source("memory", 2, "memory.events", "oom_kill"),
        Source("memory", 1, "memory.oom_control", "oom_kill"),
    ),
    "pids_refused": (
        Source("pids", 2, "pids.events", "max"),
        Source("pids", 1, "pids.events", "max"),
    ),
    "pressure_cpu": (Source(UNIFIED, 2, "cpu.pressure", "some", _USEC),),
    "pressure_memory": (Source(UNIFIED, 2, "memory.pressure", "some", _USEC),),
    "pressure_io": (Source(UNIFIED, 2, "io.pressure", "some", _USEC),),
}
"""Each figure, and where it may be found, the best first."""


LOCAL: Final = ("oom_kills", "pids_refused")
"""Figures that version 1, and in part 2 of older kernels, counts where it happens, not above."""


class Reader:
    """
    Some figures of one cgroup at one moment.

    Each file is read once, so that figures of one file agree.

    Args:
        found: Where the figures are: see find().
        texts: What is in the files.
        seat: Those that are LOCAL, of the cgroup inside of it where its processes are.
    """

    def __init__(self, found: "Found", texts: Sequence[str], seat: "Reader | None" = None) -> None:
        self._found, self._texts, self._seat = found, texts, seat
        self.sources: dict[str, str] = {}

    def _look_up(self, name: str) -> tuple[int, Source, str] | None:
        """Return the number, its source and the text of that, from the first that has one."""
        inside = self._seat._look_up(name) if self._seat is not None and name in LOCAL else None
        for index, source, text in self._found[name]:
            number = _number(self._texts[index], source.key)
            if number is not None and (inside is None or number >= inside[0]):
                return number, source, text
        return inside

    def first_above_zero(self, names: Iterable[str]) -> str | None:
        """Return the first of some figures that has counted something."""
        return next((name for name in names if (self._look_up(name) or (0,))[0]), None)

    def figure(self, name: str) -> float | None:
        """Return a figure, and note its source; None if nothing here measures it."""
        found = self._look_up(name)
        if found is None:
            return None
        number, source, self.sources[name] = found
        return number * source.unit

    def count(self, name: str) -> int | None:
        """Return a figure that is a whole number."""
        number = self.figure(name)
        return None if number is None else int(number)


Place = tuple[str, int]
"""A controller, and the version of its hierarchy."""

_Files = list[tuple[Place, str]]
Found = dict[str, list[tuple[int, Source, str]]]


@lru_cache(maxsize=64)
def find(places: tuple[Place, ...], names: tuple[str, ...]) -> tuple[_Files, Found]:
    """
    Return the files that hold some figures, and for each figure its sources.

    Args:
        places: Controllers of a cgroup, and the versions of their hierarchies.
        names: The figures.

    Returns:
        The files, and sources as index of a file, source, and its text.
    """
    files: dict[tuple[Place, str], int] = {}
    found: Found = {name: [] for name in names}
    for name in names:
        for source in FIGURES[name]:
            place = (source.controller, source.version)
            if place in places:
                index = files.setdefault((place, source.file), len(files))
                found[name].append((index, source, str(source)))
    return list(files), found


def read(path: str) -> str | None:
    """Return a file's text without the space around it; None if it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(16384).decode("ascii").strip()
    except OSError:
        return None


@lru_cache(maxsize=256)
def _number(text: str, key: str | None) -> int | None:
    """Return the number that a file holds, or the one that its line with a key ends with."""
    if key is None:
        value = text.strip()
    else:
        # At a line's beginning; a pressure file ends its lines with "total=N".
        _, _, rest = f"\n{text}".partition(f"\n{key} ")
        value = rest.partition("\n")[0].rpartition("total=")[2]
    return int(value) if value.isdecimal() else None
