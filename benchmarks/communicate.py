"""
How fast output comes out of a sandbox, compared with subprocess.

Two parts, in each of which both sides take turns in an order drawn anew for every round:
- pipe: one process writes 1 GiB, which communicate() collects.
- threads: 200 processes write 1 MiB each, collected at once by as many threads.

    python benchmarks/communicate.py --rounds 20 --json communicate.json
    python benchmarks/communicate.py --part threads --processes 50
"""

from __future__ import annotations

import argparse
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from types import ModuleType

import _report
import _spawners
import nsbox
from _report import Summary
from _spawners import Sampler

MIB = 1 << 20
WARM_UP_ROUNDS = 1

# Collects all output and returns the nanoseconds that it took.


def by_pipe(module: ModuleType, busybox: str, size: int) -> Sampler:
    """
    Start one process and collect its output, from the call that starts it to its end.
    """
    command = [busybox, "head", "-c", str(size), "/dev/zero"]

    def sample() -> int:
        start = time.perf_counter_ns()
        with module.Popen(command, stdout=subprocess.PIPE) as process:
            output, _ = process.communicate()
        elapsed = time.perf_counter_ns() - start
        _expect(process.returncode, len(output), size)
        return elapsed

    return sample


def by_threads(module: ModuleType, busybox: str, size: int, count: int) -> Sampler:
    """
    Collect the output of many processes, which were started before and wait for a line of input.
    """
    script = f"read line; exec {busybox} head -c {size} /dev/zero"
    command = [busybox, "sh", "-c", script]
    pipe = subprocess.PIPE

    def sample() -> int:
        processes = [module.Popen(command, stdin=pipe, stdout=pipe) for _ in range(count)]
        sizes = [0] * count
        together = threading.Barrier(count + 1)

        def collect(number: int) -> None:
            together.wait()
            output, _ = processes[number].communicate(b"go\n")
            sizes[number] = len(output)

        threads = [threading.Thread(target=collect, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        together.wait()
        start = time.perf_counter_ns()
        for thread in threads:
            thread.join()
        elapsed = time.perf_counter_ns() - start
        for process, got in zip(processes, sizes, strict=True):
            _expect(process.returncode, got, size)
        return elapsed

    return sample


def _expect(returncode: int, got: int, size: int) -> None:
    if (returncode, got) != (0, size):
        raise RuntimeError(f"{got} bytes and status {returncode} instead of {size} and 0")


def print_results(title: str, size: int, summaries: Mapping[str, Summary]) -> None:
    """
    Print times, throughput, and the throughput as a part of that of subprocess.
    """
    base = summaries["subprocess"].median
    print(f"{title}: {size / MIB:.0f} MiB")
    _report.print_table(
        ["ms", "min", "median", "IQR", "MiB/s", "throughput / subprocess"],
        [
            [
                name,
                _report.milliseconds(summary.minimum),
                _report.milliseconds(summary.median),
                _report.milliseconds(summary.spread),
                f"{size / MIB / (summary.median / 1e9):.0f}",
                _report.ratio(base, summary.median),
            ]
            for name, summary in summaries.items()
        ],
    )
    print(flush=True)


def parse_arguments() -> argparse.Namespace:
    """
    Define and read the command line.
    """
    parser = argparse.ArgumentParser(description="Throughput of communicate().")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="default: 15")
    parser.add_argument("--seed", type=int, default=1, help="of the order within the rounds")
    parser.add_argument("--part", choices=["pipe", "threads"], help="only this part")
    parser.add_argument("--mib", type=int, default=1024, help="size of the pipe part")
    parser.add_argument("--processes", type=int, default=200, help="of the threads part")
    parser.add_argument("--json", metavar="FILE", help="write figures and raw samples")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be 2 or more: one sample has no spread")
    return options


def parts(options: argparse.Namespace, busybox: str) -> dict[str, tuple[int, dict[str, Sampler]]]:
    """
    Return for each wanted part how many bytes it moves, and a sampler for each side.
    """
    sides = {"nsbox": nsbox.Sandbox().subprocess, "subprocess": subprocess}
    size = options.mib * MIB
    found = {
        "pipe": (size, {name: by_pipe(side, busybox, size) for name, side in sides.items()}),
        "threads": (
            options.processes * MIB,
            {
                name: by_threads(side, busybox, MIB, options.processes)
                for name, side in sides.items()
            },
        ),
    }
    return {name: part for name, part in found.items() if options.part in (None, name)}


def find_busybox() -> str:
    """
    Find the program that writes.
    """
    try:
        argv: Sequence[str] = _spawners.find_payload()
    except _spawners.Unavailable as reason:
        raise SystemExit(str(reason)) from reason
    return argv[0]


def main() -> None:
    """
    Measure and report.
    """
    options = parse_arguments()
    machine = _report.describe_machine()
    method = (
        f"{options.rounds} rounds after {WARM_UP_ROUNDS} for warming up, both sides once per "
        f"round in an order shuffled per round (seed {options.seed})"
    )
    _report.print_machine(machine)
    print(f"{method}\n", flush=True)
    content: dict[str, object] = {"method": method}
    for name, (size, samplers) in parts(options, find_busybox()).items():
        samples = _spawners.in_turn(samplers, options.rounds, WARM_UP_ROUNDS, options.seed)
        summaries = {side: _report.summarise(values) for side, values in samples.items()}
        print_results(name, size, summaries)
        content[name] = {"bytes": size, "summaries": summaries, "ns": samples}
    if options.json:
        _report.write_json(options.json, machine, content)


if __name__ == "__main__":
    _report.run_command_line(main)
