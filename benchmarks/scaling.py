"""
Does the cost of a spawn grow with the caller?

Three parts, each against what Python offers without isolation as a contrast:
- memory: the caller has touched 0, 1 or 4 GiB; fork has to copy the page tables of that.
- mounts: the host has 10 to 2000 mounts; a new mount namespace has to copy them.
- threads: 1 to 8 threads of the caller spawn at once.

    python benchmarks/scaling.py --json scaling.json --plot scaling.png
    python benchmarks/scaling.py --part memory --gib 0 1 --rounds 5
"""

from __future__ import annotations

import argparse
import contextlib
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _peers
import _report
import _spawners
from _report import Summary
from _spawners import Unavailable
from _worker import Worker

GIB = 1 << 30
WARM_UP_SAMPLES = 3
# Smaller than a block of anything else: at 4 GiB one fork takes as long as a whole block.
FORK_BLOCK = 4

# For each contender how a worker is asked for it: its method and the command.
Requests = Mapping[str, tuple[str, Sequence[str]]]
# By contender and size, e.g. samples["nsbox"][1.0].
Samples = dict[str, dict[float, list[float]]]

THREAD_SAMPLERS: Mapping[str, Callable[[Sequence[str]], _spawners.Sampler]] = {
    "nsbox": _spawners.by_nsbox,
    "subprocess": _spawners.by_command,
}


@dataclass(frozen=True)
class Part:
    """
    The outcome of one part.

    Args:
        name: of the part on the command line.
        axis: what the sizes count.
        unit: of the samples as people read them.
        per_unit: how many of what was sampled make one of that unit.
        samples: by contender and size.
        missing: what could not be measured, and why.
    """

    name: str
    axis: str
    unit: str
    per_unit: int
    samples: Samples
    missing: Mapping[str, str]

    def summaries(self) -> dict[str, dict[float, Summary]]:
        """
        Summarise every series of samples.
        """
        return {
            name: {size: _report.summarise(values) for size, values in sizes.items()}
            for name, sizes in self.samples.items()
        }


def sample_workers(
    workers: Mapping[float, Worker], requests: Requests, options: argparse.Namespace
) -> tuple[Samples, dict[str, str]]:
    """
    Ask all workers for blocks of samples, in an order drawn anew for each round.

    The first samples of every pair warm it up, and tell whether it works at all.

    Args:
        workers: the processes to compare, by what distinguishes them.
        requests: for each contender the worker's method and the command.
        options: the command line: rounds, block and seed.
    """
    samples: Samples = {}
    missing: dict[str, str] = {}
    for name, (method, argv) in requests.items():
        try:
            for worker in workers.values():
                worker.samples(method, argv, WARM_UP_SAMPLES)
        except Unavailable as reason:
            missing[name] = str(reason)
        else:
            samples[name] = {size: [] for size in workers}
    order = random.Random(options.seed)
    pairs = [(name, size) for name in samples for size in workers]
    for _ in range(options.rounds):
        order.shuffle(pairs)
        for name, size in pairs:
            method, argv = requests[name]
            count = min(options.block, FORK_BLOCK) if method == "fork" else options.block
            samples[name][size] += workers[size].samples(method, argv, count)
    return samples, missing


def available_memory() -> int:
    """
    Read how many bytes the machine can give without swapping.
    """
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def measure_memory(argv: Sequence[str], options: argparse.Namespace) -> Part:
    """
    Measure from callers that have touched different amounts of memory.

    All of them are alive at once, so that their samples can be taken in turn.
    """
    requests = {"nsbox": ("nsbox", argv), "subprocess": ("command", argv), "fork": ("fork", argv)}
    left = available_memory() * 3 // 4
    missing: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        workers: dict[float, Worker] = {}
        for gib in options.gib:
            size = int(gib * GIB)
            if size > left:
                missing[f"{gib:g} GiB"] = "the machine does not have that much memory to spare"
                continue
            left -= size
            workers[gib] = stack.enter_context(contextlib.closing(Worker(memory=size)))
        samples, unable = sample_workers(workers, requests, options)
    axis = "GiB touched by the caller"
    return Part("memory", axis, "ms", _report.NS_PER_MS, samples, missing | unable)


def measure_mounts(argv: Sequence[str], options: argparse.Namespace) -> Part:
    """
    Measure from mount namespaces with different numbers of mounts.

    A size below what the host has is measured as the host is; the result carries the real number.
    """
    requests: dict[str, tuple[str, Sequence[str]]] = {
        "nsbox": ("nsbox", argv),
        "subprocess": ("command", argv),
    }
    missing: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        try:
            command = _peers.bwrap_command(_peers.default_view(stack), argv)
            requests["bwrap"] = ("command", command)
        except Unavailable as reason:
            missing["bwrap"] = str(reason)
        workers: dict[float, Worker] = {}
        for wanted in options.mounts:
            try:
                worker = stack.enter_context(contextlib.closing(Worker(mounts=wanted)))
            except Unavailable as reason:
                missing[f"{wanted} mounts"] = str(reason)
            else:
                workers.setdefault(worker.mounts, worker)
        samples, unable = sample_workers(workers, requests, options)
    axis = "mounts on the host"
    return Part("mounts", axis, "ms", _report.NS_PER_MS, samples, missing | unable)


def spawn_rate(sampler: _spawners.Sampler, threads: int, seconds: float) -> float:
    """
    Count the spawns that a number of threads complete, and return them per second.
    """
    start = threading.Barrier(threads + 1)
    counts = [0] * threads
    failures: list[BaseException] = []

    def work(number: int) -> None:
        start.wait()
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                sampler()
                counts[number] += 1
        except BaseException as failure:  # a dead thread must not pass for a slow one
            failures.append(failure)

    team = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in team:
        thread.start()
    start.wait()
    began = time.monotonic()
    for thread in team:
        thread.join()
    if failures:
        raise failures[0]
    return sum(counts) / (time.monotonic() - began)


def rate_rounds(options: argparse.Namespace) -> int:
    """
    Take fewer rounds for rates than for blocks: each of their samples is many spawns.
    """
    return max(2, int(options.rounds) // 2)


def measure_threads(argv: Sequence[str], options: argparse.Namespace) -> Part:
    """
    Measure the rate of every contender at every number of threads, one after the other.
    """
    samplers: dict[str, _spawners.Sampler] = {}
    missing: dict[str, str] = {}
    for name, make in THREAD_SAMPLERS.items():
        try:
            samplers[name] = make(argv)
        except Unavailable as reason:
            missing[name] = str(reason)
    rates: Samples = {name: {count: [] for count in options.threads} for name in samplers}
    order = random.Random(options.seed)
    pairs = [(name, threads) for name in samplers for threads in options.threads]
    for _ in range(rate_rounds(options)):
        order.shuffle(pairs)
        for name, threads in pairs:
            rates[name][threads].append(spawn_rate(samplers[name], threads, options.seconds))
    return Part("threads", "threads of the caller", "1/s", 1, rates, missing)


PARTS: Mapping[str, Callable[[Sequence[str], argparse.Namespace], Part]] = {
    "memory": measure_memory,
    "mounts": measure_mounts,
    "threads": measure_threads,
}


def print_part(part: Part) -> None:
    """
    Print every series, each figure with its ratio to the smallest size of the same contender.
    """

    def cell(value: float) -> str:
        return f"{value / part.per_unit:.3f}" if part.unit == "ms" else f"{value:.0f}"

    rows = []
    for name, sizes in part.summaries().items():
        base = next(iter(sizes.values())).median
        for size, found in sizes.items():
            figures = (found.minimum, found.median, found.p99, found.spread)
            row = [name, f"{size:g}", str(found.samples), *map(cell, figures)]
            rows.append([*row, _report.ratio(found.median, base)])
    print(f"{part.name}: {part.unit} against {part.axis}")
    header = [part.unit, "size", "samples", "min", "median", "p99", "IQR", "median / first"]
    _report.print_table(header, rows)
    for name, reason in part.missing.items():
        print(f"{name}: not measured: {reason}")
    print(flush=True)


def plot(path: str, parts: Sequence[Part], pyplot: Any) -> None:
    """
    Draw one panel for each part, with the quartiles as bars around the medians.
    """
    figure, panels = pyplot.subplots(
        1, len(parts), figsize=(4.5 * len(parts), 3.6), squeeze=False, layout="constrained"
    )
    for axes, part in zip(panels[0], parts, strict=True):
        for name, sizes in part.summaries().items():
            found = list(sizes.values())
            medians = [value.median / part.per_unit for value in found]
            below = [(value.median - value.quartile1) / part.per_unit for value in found]
            above = [(value.quartile3 - value.median) / part.per_unit for value in found]
            axes.errorbar(
                list(sizes), medians, yerr=[below, above], marker="o", capsize=3, label=name
            )
        # From fork to subprocess it is two orders of magnitude; a rate is read from zero.
        if part.unit == "ms":
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlabel(part.axis)
        axes.set_ylabel(f"median, {part.unit}")
        axes.legend()
    figure.savefig(path, dpi=150)


def parse_arguments() -> argparse.Namespace:
    """
    Define and read the command line.
    """
    parser = argparse.ArgumentParser(description="Spawn cost against the size of the caller.")
    parser.add_argument(
        "--part", action="append", choices=list(PARTS), help="can be repeated (default: all)"
    )
    parser.add_argument("--gib", type=float, nargs="+", default=[0, 1, 4], help="part memory")
    parser.add_argument(
        "--mounts", type=int, nargs="+", default=[10, 100, 1000, 2000], help="part mounts"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=10, help="of blocks (default: 10)")
    parser.add_argument("--block", type=int, default=20, help="samples in a block (default: 20)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one count with threads")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the blocks")
    parser.add_argument("--json", metavar="FILE", help="write figures and raw samples")
    parser.add_argument("--plot", metavar="FILE.png", help="draw a picture with matplotlib")
    options = parser.parse_args()
    if options.rounds < 2 or options.block < 1:
        parser.error("needs 2 rounds of 1 sample at least: one sample has no spread")
    return options


def main() -> None:
    """
    Measure and report part by part.
    """
    options = parse_arguments()
    pyplot = _report.load_pyplot() if options.plot else None
    try:
        argv = _spawners.find_payload()
    except Unavailable as reason:
        raise SystemExit(str(reason)) from reason
    machine = _report.describe_machine(["bwrap"])
    method = (
        f"{' '.join(argv)}: {options.rounds} rounds of blocks of {options.block} samples "
        f"({min(options.block, FORK_BLOCK)} for fork), shuffled per round (seed {options.seed}); "
        f"threads: {rate_rounds(options)} counts of {options.seconds:g} s each"
    )
    _report.print_machine(machine)
    print(f"{method}\n", flush=True)
    parts = []
    for name in options.part or PARTS:
        parts.append(PARTS[name](argv, options))
        print_part(parts[-1])
    if options.json:
        content = {
            part.name: {
                "axis": part.axis,
                "unit": "ns" if part.unit == "ms" else part.unit,
                "summaries": part.summaries(),
                "missing": part.missing,
                "samples": part.samples,
            }
            for part in parts
        }
        _report.write_json(options.json, machine, {"method": method} | content)
    if options.plot:
        plot(options.plot, parts, pyplot)


if __name__ == "__main__":
    _report.run_command_line(main)
