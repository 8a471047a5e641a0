"""
What a payload may use, as a value.

Some limits are kept by cgroups and hold for all processes of a sandbox
together; some are resource limits, setrlimit(2), and hold for each process;
some are kept by nsbox with a deadline. ``docs/limits.md`` has the table.
"""

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from ._values import PathArg, check_bool, check_path, parse_size, short
from .errors import PlanError, PlanTypeError

CGROUP_FIELDS: Final = ("memory", "swap", "pids", "cpu", "cpuset", "io", "oom_group")
"""Fields whose limit is a setting of a cgroup controller."""

MIN_CPU: Final = 0.01
"""A hundredth of a processor: the kernel's smallest quota is 1 ms, and the period 100 ms."""

MIN_STACK: Final = 128 * 1024
"""What the kernel grants arguments and environment in any case: execve(2)."""

_CPU_RANGE: Final = r"([0-9]{1,5})(?:-([0-9]{1,5}))?"
_MAX_CPU: Final = 8191
_MAX_SECONDS: Final = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class IoLimit:
    """
    The rate at which a block device may be used: ``io.max`` of cgroup v2.

    Args:
        device: Path of the block device, such as "/dev/sda"; a whole disk.
        read: Bytes per second that are read, or None.
        write: Bytes per second that are written, or None.
        read_operations: Read operations per second, or None.
        write_operations: Write operations per second, or None.

    Raises:
        PlanError: If a value cannot be meant, or none is given.
    """

    device: PathArg
    read: int | str | None = None
    write: int | str | None = None
    read_operations: int | None = None
    write_operations: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", check_path("device", self.device))
        given = 0
        for name in ("read", "write", "read_operations", "write_operations"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, parse_size(name, value))
                given += 1
        if not given:
            raise PlanError(f"{self!r}: limits nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """
    Upper bounds for a payload. Every field but ``core`` is None: no limit.

    Kept by cgroups, for the sandbox as a whole:

    Args:
        memory: Bytes of memory, page cache and kernel memory; an int, or "64M".
            Where they are used up the kernel's OOM killer ends a process.
        swap: Bytes of swap. Default: 0 if memory is set. Needs memory.
        pids: Number of processes and threads; more cannot be started (EAGAIN).
        cpu: Processors' worth of time per 100 ms, such as 0.5 or 2; from 0.01.
        cpuset: Processors to run on: "0-2,5", or ints.
        io: IoLimit objects, one for each device. cgroup v2 only.
        oom_group: At the memory limit kill all processes, not one. cgroup v2
            only. Needs memory.
        cpu_time: Seconds of processor time, of all processes together, those
            that ended too. Then the sandbox is killed.

    Kept by nsbox:

    Args:
        wall_time: Seconds from the start of the spawn. Then the sandbox is killed.
        output: Bytes of stdout and stderr together that ``run()`` and
            ``communicate()`` capture. Then the sandbox is killed.

    Kept by resource limits, for each process by itself. They never loosen the
    caller's own hard limits:

    Args:
        file_size: Bytes that a file may grow to (SIGXFSZ, EFBIG).
        open_files: One more than the highest descriptor; from 3.
        stack: Bytes of the main thread's stack; from 128K.
        core: Bytes of a core dump. There is none, whatever this says, nor for a program that
            the host's core_pattern names, core(5).
        nice: Niceness, 1 to 19; a caller that is nicer hands on its own.

    Args:
        degrade: Names of fields that may be left out where the host cannot keep
            them. Without this it is an UnsupportedError, before anything
            starts. ``Result.degraded`` tells what was left out.

    Raises:
        PlanError: If a value cannot be meant.
    """

    memory: int | str | None = None
    swap: int | str | None = None
    pids: int | None = None
    cpu: float | None = None
    cpuset: str | Iterable[int] | None = None
    io: Sequence[IoLimit] | None = None
    oom_group: bool | None = None
    cpu_time: float | None = None
    wall_time: float | None = None
    output: int | str | None = None
    file_size: int | str | None = None
    open_files: int | None = None
    stack: int | str | None = None
    core: int | str | None = 0
    nice: int | None = None
    degrade: Iterable[str] = frozenset()

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {"degrade": _check_degrade(self.degrade)}
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value is not None:
                checked[name] = check(name, value)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        for name in ("swap", "oom_group"):
            if getattr(self, name) is not None and self.memory is None:
                raise PlanError(f"{name}: needs a limit of memory")

    def given(self) -> tuple[str, ...]:
        """Return the names of the fields that limit something, in the order of the class."""
        names = (item.name for item in fields(self) if item.name != "degrade")
        values = ((name, getattr(self, name)) for name in names)
        return tuple(name for name, value in values if value is not None and value is not False)

    def without(self, names: Iterable[str]) -> "Limits":
        """Return the same limits but for some; what needs a limit goes with it."""
        gone = set(names)
        if "memory" in gone:
            gone |= {"swap", "oom_group"}
        kept = {item.name: getattr(self, item.name) for item in fields(self)}
        return Limits(**(kept | dict.fromkeys(gone)))

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.given())
        return f"Limits({given})"


# ---- checks -------------------------------------------------------------


def _size(name: str, value: object) -> int:
    return parse_size(name, value)


def _size_or_zero(name: str, value: object) -> int:
    if value == 0 and isinstance(value, int) and not isinstance(value, bool):
        return 0
    return parse_size(name, value)


def _stack(name: str, value: object) -> int:
    size = parse_size(name, value)
    if size < MIN_STACK:
        raise PlanError(f"{name}: a program cannot start with less than {MIN_STACK} bytes")
    return size


def _count(name: str, value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise PlanTypeError(f"{name}: must be an int, not {type(value).__name__}")
    if not low <= value <= high:
        raise PlanError(f"{name}: must be between {low} and {high}, not {short(value)}")
    return value


def _pids(name: str, value: object) -> int:
    return _count(name, value, 1, 4 * 1024 * 1024)


def _open_files(name: str, value: object) -> int:
    return _count(name, value, 3, 2**31 - 1)


def _nice(name: str, value: object) -> int:
    return _count(name, value, 1, 19)


def _number(name: str, value: object, low: float, high: float) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise PlanTypeError(f"{name}: must be a number, not {type(value).__name__}")
    if not low <= value <= high:  # false for nan too
        raise PlanError(f"{name}: must be between {low:g} and {high:g}, not {short(value)}")
    return value


def _cpu(name: str, value: object) -> float:
    return _number(name, value, MIN_CPU, _MAX_CPU)


def _seconds(name: str, value: object) -> float:
    return _number(name, value, 0.001, _MAX_SECONDS)


def _cpuset(name: str, value: object) -> tuple[int, ...]:
    """Return processor numbers, sorted, each once."""
    if isinstance(value, str):
        numbers = [number for part in value.split(",") for number in _cpu_range(name, part)]
    elif isinstance(value, Iterable) and not isinstance(value, bytes):
        numbers = [_count(name, number, 0, _MAX_CPU) for number in value]
    else:
        raise PlanTypeError(f"{name}: must be a str such as '0-2,5' or ints, not {value!r}")
    if not numbers:
        raise PlanError(f"{name}: names no processor")
    return tuple(sorted(set(numbers)))


def _cpu_range(name: str, part: str) -> range:
    match = re.fullmatch(_CPU_RANGE, part.strip())
    if match is None:
        raise PlanError(f"{name}: {part!r} is neither a processor's number nor a range")
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    if not first <= last <= _MAX_CPU:
        raise PlanError(f"{name}: {part!r} is no range of processors")
    return range(first, last + 1)


def _io(name: str, value: object) -> tuple[IoLimit, ...]:
    if not isinstance(value, Sequence) or not all(isinstance(item, IoLimit) for item in value):
        raise PlanTypeError(f"{name}: must be a sequence of IoLimit objects, not {value!r}")
    devices = [os.fsdecode(item.device) for item in value]
    if not devices or len(set(devices)) < len(devices):
        raise PlanError(f"{name}: must name one device or more, each once")
    return tuple(value)


_CHECKS: Final = {
    "memory": _size,
    "swap": _size_or_zero,
    "pids": _pids,
    "cpu": _cpu,
    "cpuset": _cpuset,
    "io": _io,
    "oom_group": check_bool,
    "cpu_time": _seconds,
    "wall_time": _seconds,
    "output": _size,
    "file_size": _size,
    "open_files": _open_files,
    "stack": _stack,
    "core": _size_or_zero,
    "nice": _nice,
}


def _check_degrade(value: object) -> frozenset[str]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise PlanTypeError(f"degrade: must be a set of field names, not {value!r}")
    names = frozenset(value)
    unknown = names - {*CGROUP_FIELDS, "cpu_time"}
    if unknown:
        some = sorted(map(repr, unknown))[0]
        raise PlanError(f"degrade: {some} is no limit that depends on the host")
    return names


def check_limits(name: str, value: object) -> Limits | None:
    if value is not None and not isinstance(value, Limits):
        raise PlanTypeError(f"{name}: must be a Limits, not {type(value).__name__}")
    return value


def nanoseconds(seconds: float | None) -> int:
    """Return a time for the C core, 0 for none."""
    return 0 if seconds is None else math.ceil(seconds * 1e9)


NO_LIMITS: Final = Limits(core=None)
