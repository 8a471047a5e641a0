"""
Sandboxes that are made ahead, or stay: what a process in one of them costs.

    python benchmarks/pool.py                          # all parts, about two minutes
    python benchmarks/pool.py --part latency --rounds 1000 --plot pool.png
    python benchmarks/pool.py --part throughput --part many --json pool.json

Parts: `latency` (each way to run a program, in turn), `burst` (one run after the other, from a
pool that is full before), `mounts` (a used Sandbox beside few and many mounts of the host),
`throughput` (a pool of 8 from 8 threads), `many` (1,000 live sandboxes).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import _peers
import _report
import _spawners
from _report import Summary
from _spawners import Sampler, Unavailable
from _worker import Worker
from nsbox import Limits, Live, Pool, Sandbox
from nsbox._request import DEFAULT_PATH
from scaling import spawn_rate

WARM_UP_ROUNDS = 5
LIMITS = Limits(memory="256M", pids=64, cpu=1.0, wall_time=60.0)
POOL = "pool, limits"
PLAIN = "subprocess"
BUSY_SECONDS = 0.02
THREADS = 8
BURST = 8
KINDS = ("SUnreclaim", "SReclaimable", "Percpu", "KernelStack", "PageTables", "AnonPages", "Shmem")
SETTLED_SECONDS = 2.0

Samples = dict[str, list[float]]


# ---- latency ----------------------------------------------------------------


def when_full(pools: Sequence[Pool], sample: Sampler) -> Sampler:
    """
    Take a sample when all pools are full, so that no thread works behind anybody's back.
    """

    def wait_and_sample() -> int:
        while any(pool.stats().ready < pool.stats().size for pool in pools):
            time.sleep(0.0005)
        return sample()

    return wait_and_sample


def prepare_latency(
    argv: Sequence[str], stack: contextlib.ExitStack, *, by_name: bool
) -> tuple[dict[str, Sampler], dict[str, str]]:
    """
    Set up every way to run a program; those that cannot be had here with the reason.

    By name all but the C program look it up, in the same directories.
    """
    path = list(argv)
    if by_name:
        argv = [os.path.basename(argv[0])]
        os.environ["PATH"] = DEFAULT_PATH
    limited, plain = Sandbox(limits=LIMITS), Sandbox()
    pools = [stack.enter_context(plain.pool(2))]
    samplers = {
        PLAIN: _spawners.by_command(argv),
        "pool": _spawners.by_run(pools[0].run, argv),
        "live": _spawners.by_run(stack.enter_context(plain.open()).run, argv),
        "Sandbox": _spawners.by_box(plain, argv),
    }
    missing: dict[str, str] = {}
    try:
        pools.append(stack.enter_context(limited.pool(2)))
        samplers[POOL] = _spawners.by_run(pools[1].run, argv)
        samplers["Sandbox, limits"] = _spawners.by_box(limited, argv)
    except Exception as reason:
        missing[POOL] = str(reason)
    try:
        view = _peers.default_view(stack)
        samplers["floor (C)"] = _peers.prepare_floor(view, path, stack)
    except (Unavailable, OSError) as reason:
        missing["floor (C)"] = str(reason)
    return {name: when_full(pools, sample) for name, sample in samplers.items()}, missing


def measure_latency(options: argparse.Namespace) -> tuple[Samples, dict[str, str]]:
    """
    Take one sample of each way in every round.
    """
    argv = [os.path.realpath(shutil.which("true") or "/bin/true")]
    with contextlib.ExitStack() as stack:
        samplers, missing = prepare_latency(argv, stack, by_name=options.by_name)
        samples = _spawners.in_turn(samplers, options.rounds, WARM_UP_ROUNDS, options.seed)
    return {name: list(map(float, values)) for name, values in samples.items()}, missing


def print_latency(samples: Samples) -> None:
    """
    Print the medians beside those of a process without a sandbox, and of the C program.
    """
    summaries = {name: _report.summarise(values) for name, values in samples.items()}
    floor = summaries.get("floor (C)")
    _report.print_table(
        ["ms", "min", "median", "p99", "IQR", f"median / {PLAIN}", "median / floor"],
        [
            [
                name,
                *map(
                    _report.milliseconds,
                    (summary.minimum, summary.median, summary.p99, summary.spread),
                ),
                _report.ratio(summary.median, summaries[PLAIN].median),
                _report.ratio(summary.median, floor.median if floor else None),
            ]
            for name, summary in sorted(summaries.items(), key=lambda item: item[1].median)
        ],
    )


def plot(path: str, samples: Samples, pyplot: Any) -> None:
    """
    Draw the medians as bars and the middle half of the samples as whiskers.
    """
    summaries = {name: _report.summarise(values) for name, values in samples.items()}
    names = sorted(summaries, key=lambda name: -summaries[name].median)
    values = [summaries[name] for name in names]
    medians = [value.median / _report.NS_PER_MS for value in values]
    below = [(value.median - value.quartile1) / _report.NS_PER_MS for value in values]
    above = [(value.quartile3 - value.median) / _report.NS_PER_MS for value in values]
    others = (PLAIN, "floor (C)")
    colors = ["tab:gray" if name in others else "tab:orange" for name in names]
    figure, axes = pyplot.subplots(figsize=(8, 0.45 * len(names) + 1.2), layout="constrained")
    bars = axes.barh(names, medians, xerr=[below, above], color=colors, capsize=3)
    axes.bar_label(bars, fmt="%.2f", padding=6)
    axes.margins(x=0.12)
    axes.set_xlabel("ms from the call to the end of `true`: median, whiskers the quartiles")
    figure.savefig(path, dpi=150)


# ---- burst ------------------------------------------------------------------


def measure_burst(options: argparse.Namespace) -> tuple[Samples, dict[str, str]]:
    """
    Take as many samples in a row as half of a pool has sandboxes, and as many of each other way.
    """
    argv = [os.path.realpath(shutil.which("true") or "/bin/true")]
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(Sandbox().pool(2 * BURST))
        live = stack.enter_context(Sandbox().open())
        samplers = {
            PLAIN: _spawners.by_command(argv),
            "pool": _spawners.by_run(pool.run, argv),
            "live": _spawners.by_run(live.run, argv),
        }

        def burst(name: str) -> Sampler:
            def take() -> int:
                when_full([pool], int)()
                samples[name].extend(samplers[name]() for _ in range(BURST))
                return 0

            return take

        samples: Samples = {name: [] for name in samplers}
        bursts = {name: burst(name) for name in samplers}
        _spawners.in_turn(bursts, max(2, options.rounds // 10), 0, options.seed)
    return samples, {}


def print_burst(samples: Samples) -> None:
    """
    Print the medians beside those of a process without a sandbox.
    """
    summaries = {name: _report.summarise(values) for name, values in samples.items()}
    _report.print_table(
        ["ms", "min", "median", "IQR", f"median / {PLAIN}"],
        [
            [
                name,
                *map(_report.milliseconds, (summary.minimum, summary.median, summary.spread)),
                _report.ratio(summary.median, summaries[PLAIN].median),
            ]
            for name, summary in summaries.items()
        ],
    )


# ---- mounts -----------------------------------------------------------------


def measure_mounts(options: argparse.Namespace) -> tuple[Samples, dict[str, str]]:
    """
    Take blocks of samples of a used Sandbox beside 20 and 2,000 mounts of the host.
    """
    argv = [os.path.realpath(shutil.which("true") or "/bin/true")]
    samples: Samples = {}
    order = random.Random(options.seed)
    with contextlib.ExitStack() as stack:
        workers = {}
        for wanted in (20, 2000):
            try:
                worker = stack.enter_context(contextlib.closing(Worker(mounts=wanted)))
                worker.samples("nsbox", argv, WARM_UP_ROUNDS)
            except Unavailable as reason:
                return {}, {f"{wanted} mounts": str(reason)}
            workers[f"{worker.mounts} mounts"] = worker
        names = list(workers)
        for _ in range(max(2, options.rounds // 10)):
            order.shuffle(names)
            for name in names:
                taken = workers[name].samples("nsbox", argv, 10)
                samples.setdefault(name, []).extend(map(float, taken))
    return samples, {}


def print_mounts(samples: Samples) -> None:
    """
    Print the medians, few mounts first.
    """
    summaries = {name: _report.summarise(values) for name, values in samples.items()}
    few = min(summaries, key=lambda name: int(name.split()[0]), default=None)
    _report.print_table(
        ["ms", "min", "median", "IQR", f"median / {few}"],
        [
            [
                name,
                *map(_report.milliseconds, (summary.minimum, summary.median, summary.spread)),
                _report.ratio(summary.median, summaries[few].median if few else None),
            ]
            for name, summary in summaries.items()
        ],
    )


# ---- throughput -------------------------------------------------------------


def busy_command() -> list[str]:
    """
    Return a command that needs BUSY_SECONDS of a processor.
    """
    loop = "i=0; while [ $i -lt {} ]; do i=$((i+1)); done"

    def seconds(turns: int) -> float:
        before = os.times()
        subprocess.run(["/bin/sh", "-c", loop.format(turns)], check=True)
        after = os.times()
        used = after.children_user - before.children_user
        return used + after.children_system - before.children_system

    many = 500_000  # the clock of processor time ticks 100 times a second
    per_turn = min(seconds(many) for _ in range(3)) / many
    return ["/bin/sh", "-c", loop.format(round(BUSY_SECONDS / per_turn))]


def measure_throughput(options: argparse.Namespace) -> tuple[Samples, dict[str, str]]:
    """
    Count runs per second of 8 threads: plain, and with pools of 8.
    """
    rates: Samples = {}
    payloads = {"true": ["/bin/true"], "20 ms": busy_command()}
    with Sandbox().pool(THREADS) as plain, Sandbox(limits=LIMITS).pool(THREADS) as limited:
        pools = {"pool": plain, POOL: limited}
        pairs: list[tuple[str, Sampler]] = []
        for name, argv in payloads.items():
            # A sandbox has a session of its own, too, and with it a share of busy processors.
            pairs.append((f"{PLAIN}, {name}", _spawners.by_command(argv, new_session=True)))
            for kind, pool in pools.items():
                pairs.append((f"{kind}, {name}", _spawners.by_run(pool.run, argv)))
        order = random.Random(options.seed)
        for _ in range(options.repeats):
            order.shuffle(pairs)
            for name, sample in pairs:
                when_full(list(pools.values()), int)()
                rate = spawn_rate(sample, THREADS, options.seconds)
                rates.setdefault(name, []).append(rate)
        counts = {kind: pool.stats() for kind, pool in pools.items()}
    return rates, {
        f"of the runs, {kind}": f"{stats.warm} warm, {stats.cold} cold"
        for kind, stats in counts.items()
    }


def print_throughput(rates: Samples) -> None:
    """
    Print the medians of the rates, and the pool's part of the plain one.
    """
    medians = {name: _report.summarise(values).median for name, values in rates.items()}
    rows = []
    for name, median in sorted(medians.items()):
        plain = medians[f"{PLAIN}, {name.rpartition(', ')[2]}"]
        rows.append([name, f"{median:.0f}", _report.ratio(median, plain)])
    _report.print_table(["runs per second", "median", f"/ {PLAIN}"], rows)


# ---- many -------------------------------------------------------------------


def memory() -> dict[str, int]:
    """
    Return the host's figures in KiB: what it could give to programs, as used, and of what kinds.

    MemAvailable lacks what each processor keeps free for itself. That is 100 MiB at times, more
    or less of it each time one looks.
    """
    kept = sum(map(int, re.findall(r"^ +count: +(\d+)$", Path("/proc/zoneinfo").read_text(), re.M)))
    lines = map(str.split, Path("/proc/meminfo").read_text().splitlines())
    figures = {words[0].rstrip(":"): int(words[1]) for words in lines}
    available = figures["MemAvailable"] + kept * (resource.getpagesize() // 1024)
    return {"memory": -available, **{kind: figures[kind] for kind in KINDS}}


def settled_memory() -> dict[str, int]:
    """
    Return the figures when nothing more is freed of what was used before.

    The kernel takes network namespaces apart one by one, seconds after their last user.
    """
    least = memory()["SUnreclaim"]
    since = time.perf_counter()
    while time.perf_counter() - since < SETTLED_SECONDS:
        time.sleep(0.1)
        if (now := memory()["SUnreclaim"]) < least - 256:
            least, since = now, time.perf_counter()
    return memory()


def measure_many(options: argparse.Namespace) -> tuple[Samples, dict[str, str]]:
    """
    Open many live sandboxes, look at the host's memory, close them.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    box = Sandbox()
    figures: Samples = {"open, s": [], "close, s": []}
    for _ in range(2):
        before = settled_memory()
        start = time.perf_counter()
        opened: list[Live] = []
        try:
            opened.extend(box.open() for _ in range(options.many))
            figures["open, s"].append(time.perf_counter() - start)
            for kind, now in settled_memory().items():
                each = (now - before[kind]) / options.many
                figures.setdefault(f"{kind} of each, KiB", []).append(each)
        finally:
            start = time.perf_counter()
            for live in opened:
                live.close()
            figures["close, s"].append(time.perf_counter() - start)
    return figures, {}


def print_many(figures: Samples) -> None:
    """
    Print what each repetition has shown.
    """
    _report.print_table(
        ["live sandboxes", "first", "second"],
        [[name, *(f"{value:.2f}" for value in values)] for name, values in figures.items()],
    )


Part = tuple[
    Callable[[argparse.Namespace], tuple[Samples, dict[str, str]]], Callable[[Samples], None]
]
PARTS: Mapping[str, Part] = {
    "latency": (measure_latency, print_latency),
    "burst": (measure_burst, print_burst),
    "mounts": (measure_mounts, print_mounts),
    "throughput": (measure_throughput, print_throughput),
    "many": (measure_many, print_many),
}


def parse_arguments() -> argparse.Namespace:
    """
    Define and read the command line.
    """
    parser = argparse.ArgumentParser(description="What is made ahead, and what stays.")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="default: all")
    parser.add_argument(
        "--by-name", action="store_true", help="latency: look the program up in PATH"
    )
    parser.add_argument("--rounds", type=int, default=300, metavar="N", help="default: 300")
    parser.add_argument("--repeats", type=int, default=5, help="of each rate (default: 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each rate (default: 2)")
    parser.add_argument("--many", type=int, default=1000, help="live sandboxes (default: 1000)")
    parser.add_argument("--seed", type=int, default=1, help="of the order within the rounds")
    parser.add_argument("--json", metavar="FILE", help="write figures and raw samples")
    parser.add_argument("--plot", metavar="FILE.png", help="draw a picture of the latencies")
    options = parser.parse_args()
    if options.rounds < 2 or options.repeats < 2:
        parser.error("two or more: one sample has no spread")
    return options


def main() -> None:
    """
    Measure and report part by part.
    """
    options = parse_arguments()
    pyplot = _report.load_pyplot() if options.plot else None
    machine = _report.describe_machine()
    _report.print_machine(machine)
    content: dict[str, Any] = {}
    for name in options.part or PARTS:
        measure, show = PARTS[name]
        samples, notes = measure(options)
        print(f"\n{name}", flush=True)
        show(samples)
        for what, text in notes.items():
            print(f"{what}: {text}", flush=True)
        summaries: dict[str, Summary] = {
            key: _report.summarise(values) for key, values in samples.items()
        }
        content[name] = {"summaries": summaries, "notes": notes, "samples": samples}
        if name == "latency" and options.plot:
            plot(options.plot, samples, pyplot)
    if options.json:
        _report.write_json(options.json, machine, content)


if __name__ == "__main__":
    _report.run_command_line(main)
