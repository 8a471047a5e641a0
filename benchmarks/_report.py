"""
What every benchmark does with its samples: summarise, describe the machine, print, save, draw.

Samples are nanoseconds as integers from the clock to the JSON file; only people see milliseconds.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nsbox

NS_PER_MS = 1_000_000


@dataclass(frozen=True)
class Summary:
    """The figures of one set of samples, in the unit of the samples."""

    samples: int
    minimum: float
    quartile1: float
    median: float
    quartile3: float
    p99: float

    @property
    def spread(self) -> float:
        """
        The interquartile range: half of all samples lie within it, and no outlier moves it.
        """
        return self.quartile3 - self.quartile1


def summarise(samples: Sequence[float]) -> Summary:
    """
    Reduce samples to figures that a few slow outliers cannot move.

    The mean is left out on purpose: on a shared machine it measures the neighbours.
    """
    percentiles = statistics.quantiles(samples, n=100, method="inclusive")
    return Summary(
        samples=len(samples),
        minimum=min(samples),
        quartile1=percentiles[24],
        median=statistics.median(samples),
        quartile3=percentiles[74],
        p99=percentiles[98],
    )


def milliseconds(nanoseconds: float) -> str:
    """
    Write a duration with the three digits that a median of this kind can carry.
    """
    return f"{nanoseconds / NS_PER_MS:.3f}"


def ratio(value: float, base: float | None) -> str:
    """
    Write value / base, or a dash where there is nothing to compare with.
    """
    return f"{value / base:.2f}" if base else "-"


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """
    Print aligned columns: the first to the left as a name, the others to the right as numbers.
    """
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for number, line in enumerate(lines):
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


def host_mounts() -> int:
    """
    Count the mounts of this mount namespace, which every new one has to copy.
    """
    return len(Path("/proc/self/mountinfo").read_text().splitlines())


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "CPU part")):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(program: str) -> str | None:
    """
    Ask an installed program for the first line of its --version; None if it is not installed.
    """
    if shutil.which(program) is None:
        return None
    answer = subprocess.run(
        [program, "--version"],
        stdin=subprocess.PIPE,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = (answer.stdout or answer.stderr).strip().splitlines()
    return lines[0] if lines and answer.returncode == 0 else "installed, tells no version"


def describe_machine(programs: Iterable[str] = ()) -> dict[str, Any]:
    """
    Collect what a reader needs to judge or repeat the numbers.

    Args:
        programs: installed programs whose versions belong to the result.
    """
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "cpu_model": _cpu_model(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "uid": os.geteuid(),
        "host_mounts": host_mounts(),
        "nsbox": nsbox.__version__,
        "versions": {program: _version(program) for program in programs},
    }


def print_machine(machine: Mapping[str, Any]) -> None:
    """
    Print the description of the machine above the numbers it produced.
    """
    print(
        f"kernel {machine['kernel']} {machine['architecture']}, {machine['cpus']} cpus "
        f"({machine['cpu_model']}), load {machine['load_average'][0]:.2f}"
    )
    print(
        f"python {machine['python']}, nsbox {machine['nsbox']}, "
        f"uid {machine['uid']}, {machine['host_mounts']} mounts on the host, {machine['date']}"
    )
    for program, version in machine["versions"].items():
        if version is not None:
            print(f"{program}: {version}")


def write_json(path: str, machine: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """
    Save machine, figures and every raw sample, so that others can draw their own conclusions.
    """

    def encode(value: object) -> dict[str, Any]:
        if isinstance(value, Summary):
            return asdict(value)
        raise TypeError(f"not for JSON: {value!r}")

    document = {"machine": machine} | dict(content)
    Path(path).write_text(json.dumps(document, default=encode, indent=1) + "\n")


class MissingExtra(Exception):
    """An optional dependency of the benchmarks is not installed."""


def load_pyplot() -> Any:
    """
    Import matplotlib's plotting interface on a backend that needs no display.

    It is imported by name because it is optional, and early because a picture that cannot be
    drawn should be known before the measurement, not after it.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        importlib.import_module("matplotlib").use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise MissingExtra("--plot needs matplotlib: pip install nsbox[bench]") from error


def run_command_line(main: Callable[[], None]) -> None:
    """
    Run a benchmark's main and turn what a user can fix into one line without a traceback.
    """
    try:
        main()
    except MissingExtra as error:
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None
