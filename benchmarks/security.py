"""
What each layer of security adds to the start of a sandbox, and that filters are compiled once.

All variants run in turn within every round, in an order drawn anew for each, as in
spawn_latency.py. The figure to look at is the ratio of "everything" to "nothing": of the
time by the clock on a quiet machine, of the processor time (caller and payload, in user
mode and in the kernel) on one where others work too.

    python benchmarks/security.py --rounds 500 --json security.json
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import statistics
import time
from collections.abc import Mapping
from typing import Any

import _report
import _spawners
from _report import Summary
from _spawners import NO_LAYERS
from nsbox import Proc, Sandbox
from nsbox._filter import compile_filter
from nsbox.seccomp import built_in

WARM_UP_ROUNDS = 5
VARIANTS: dict[str, dict[str, Any]] = {
    "nothing": NO_LAYERS,
    "+ seccomp": NO_LAYERS | {"seccomp": "default"},
    "+ landlock": NO_LAYERS | {"landlock": True, "user_namespaces": False},
    "+ no user namespaces": NO_LAYERS | {"user_namespaces": False},
    "+ /proc and its masks": NO_LAYERS | {"mounts": (Proc(readonly=True),)},
    "everything": {},
    "everything, strict": {"seccomp": "strict"},
}


Sample = tuple[int, float]


def processor_time() -> float:
    """
    Return what this process and its children have used by now, in nanoseconds.
    """
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages) * 1e9


def measure(argv: list[str], rounds: int, seed: int) -> dict[str, list[Sample]]:
    """
    Take one sample of every variant in each round: by the clock, and of processor time.
    """
    samplers = {
        name: _spawners.by_box(Sandbox(**fields), argv) for name, fields in VARIANTS.items()
    }
    order = random.Random(seed)
    samples: dict[str, list[Sample]] = {name: [] for name in samplers}
    names = list(samplers)
    for number in range(WARM_UP_ROUNDS + rounds):
        order.shuffle(names)
        for name in names:
            used = processor_time()
            sample = samplers[name]()
            used = processor_time() - used
            if number >= WARM_UP_ROUNDS:
                samples[name].append((sample, used))
    return samples


def measure_compiler(times: int = 20) -> dict[str, float]:
    """
    Take the time to make the default filter, and to get it again; medians in milliseconds.
    """
    profile = built_in("default")
    made: list[float] = []
    found: list[float] = []
    for _ in range(times):
        compile_filter.cache_clear()
        for samples in (made, found):
            start = time.perf_counter_ns()
            compile_filter(profile, (), False)
            samples.append((time.perf_counter_ns() - start) / _report.NS_PER_MS)
    return {"compile": statistics.median(made), "again": statistics.median(found)}


def print_results(clock: Mapping[str, Summary], processor: Mapping[str, Summary]) -> None:
    """
    Print the table.
    """
    _report.print_table(
        ["ms", "min", "median", "IQR", "ratio", "cpu median", "ratio"],
        [
            [
                name,
                _report.milliseconds(summary.minimum),
                _report.milliseconds(summary.median),
                _report.milliseconds(summary.spread),
                _report.ratio(summary.median, clock["nothing"].median),
                _report.milliseconds(processor[name].median),
                _report.ratio(processor[name].median, processor["nothing"].median),
            ]
            for name, summary in clock.items()
        ],
    )


def main() -> None:
    """
    Measure and report.
    """
    parser = argparse.ArgumentParser(description="What each layer adds to a spawn.")
    parser.add_argument("--rounds", type=int, default=300, metavar="N", help="default: 300")
    parser.add_argument("--seed", type=int, default=1, help="of the order within the rounds")
    parser.add_argument("--json", metavar="FILE", help="write figures and raw samples")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be 2 or more: one sample has no spread")
    try:
        argv = _spawners.find_payload()
    except _spawners.Unavailable as reason:
        raise SystemExit(str(reason)) from reason
    machine = _report.describe_machine(())
    _report.print_machine(machine)
    caller = "root" if os.geteuid() == 0 else "a plain user"
    print(f"{' '.join(argv)}, caller: {caller}, {options.rounds} rounds\n", flush=True)
    samples = measure(argv, options.rounds, options.seed)
    clock, processor = (
        {
            name: _report.summarise([pair[index] for pair in pairs])
            for name, pairs in samples.items()
        }
        for index in (0, 1)
    )
    print_results(clock, processor)
    spawns, made = sum(map(len, samples.values())), compile_filter.cache_info().misses
    compiler = measure_compiler()
    print(f"\nfilters made for these {spawns} sandboxes: {made}, one for each kind")
    print(
        f"making the default one: {compiler['compile']:.2f} ms; again: {compiler['again']:.4f} ms"
    )
    if options.json:
        content = {"clock": clock, "processor": processor, "compiler": compiler, "ns": samples}
        _report.write_json(options.json, machine, content)


if __name__ == "__main__":
    _report.run_command_line(main)
