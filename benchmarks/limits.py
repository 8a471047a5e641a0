"""
How exactly limits hold, and what they cost.

Overshoot is the time by which a payload outlives its limit: for wall time until its caller has
the result, for processor time what it used beyond the limit. Costs are measured in rounds, each
contender once per round in an order drawn anew.

    python benchmarks/limits.py --samples 100 --json limits.json
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence

import _report
import _spawners
from nsbox import Limits, NsboxError, Process, Reason, Result, Sandbox

NS = 1_000_000_000
WALL = 0.5
CPU = 0.5
SPIN = "while :; do :; done"
MANY = f"for i in 1 2 3 4 5 6 7 8; do ({SPIN}) & done; wait"
# Hashing lets go of the interpreter's lock, so these threads run at the same time.
HASHING = """
import hashlib, threading
def work():
    while True:
        hashlib.sha256(data)
data = bytes(1 << 20)
for _ in range(8):
    threading.Thread(target=work).start()
"""
THREADS = f"exec /usr/bin/python3 -c '{HASHING}'"
BOMB = "x=x; while :; do x=$x$x; done"

Sampler = Callable[[], int]


def _run(limits: Limits, command: str, reason: Reason) -> tuple[Result, float]:
    """Run a shell command, check the verdict, return the result and the seconds that it took."""
    start = time.perf_counter()
    box = Sandbox(limits=limits)
    result = box.run(["/bin/sh", "-c", command], stdout=subprocess.DEVNULL)
    elapsed = time.perf_counter() - start
    if result.reason is not reason:
        raise RuntimeError(f"{limits}: {result.reason} instead of {reason}")
    return result, elapsed


def wall_overshoot() -> int:
    """From the deadline to the result in the caller's hands."""
    _, elapsed = _run(Limits(wall_time=WALL), "exec sleep 10", Reason.WALL_TIME)
    return round((elapsed - WALL) * NS)


def cpu_overshoot(command: str) -> int:
    """What was used beyond the limit, as the kernel has counted it."""
    limits = Limits(cpu_time=CPU, pids=32, wall_time=60)
    result, _ = _run(limits, command, Reason.CPU_TIME)
    return round((result.usage.cpu_time - CPU) * NS)


def oom_to_result() -> int:
    """From the start of a memory bomb of 16 MiB to its verdict."""
    _, elapsed = _run(Limits(memory="16M", swap=0, wall_time=60), BOMB, Reason.MEMORY)
    return round(elapsed * NS)


def wall_by_command(argv: Sequence[str]) -> Sampler:
    """Time a program that keeps the wall limit itself."""

    def sample() -> int:
        start = time.perf_counter()
        subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        return round((time.perf_counter() - start - WALL) * NS)

    return sample


def peers() -> tuple[dict[str, Sampler], dict[str, str]]:
    """Return other programs that keep a limit of wall time, and why some are missing."""
    commands = {
        "timeout(1), no isolation": ["timeout", "-s", "KILL", str(WALL), "sleep", "10"],
        "nsjail (whole seconds)": ["nsjail", "-Mo", "-t", "1", "--", "/bin/sleep", "10"],
        "isolate": ["isolate", f"--wall-time={WALL}", "--run", "--", "/bin/sleep", "10"],
        "systemd-run": [
            *("systemd-run", "-q", "--wait", "-p", f"RuntimeMaxSec={WALL}", "sleep", "10")
        ],
    }
    found: dict[str, Sampler] = {}
    missing = {"crun": "it keeps no limit of time"}
    for name, command in commands.items():
        if shutil.which(command[0]) is None:
            missing[name] = "not installed"
        elif subprocess.run([*command[:-2], "true"], capture_output=True, check=False).returncode:
            missing[name] = "does not work here"
        else:
            found[name] = wall_by_command(command)
    return found, missing


# ---- cost ---------------------------------------------------------------------


def spawners(argv: Sequence[str]) -> dict[str, Sampler]:
    """Return spawns with and without limits."""
    limits = {
        "no limits": None,
        "wall time": Limits(wall_time=60),
        "memory, pids, cpu": Limits(memory="64M", pids=16, cpu=1.0),
        "memory, pids, cpu, both times": Limits(
            memory="64M", pids=16, cpu=1.0, cpu_time=60, wall_time=60
        ),
    }
    return {name: _spawner(Sandbox(limits=value), argv) for name, value in limits.items()}


def _spawner(box: Sandbox, argv: Sequence[str]) -> Sampler:
    def sample() -> int:
        start = time.perf_counter_ns()
        result = box.run(argv)
        elapsed = time.perf_counter_ns() - start
        if result.returncode:
            raise RuntimeError(f"{box}: ended with {result.returncode}")
        return elapsed

    return sample


def measure(samplers: dict[str, Sampler], rounds: int) -> dict[str, list[int]]:
    """Take one sample of each in every round, after two rounds to warm up."""
    order = list(samplers)
    samples: dict[str, list[int]] = {name: [] for name in samplers}
    for number in range(rounds + 2):
        random.shuffle(order)
        for name in order:
            value = samplers[name]()
            if number >= 2:
                samples[name].append(value)
    return samples


# ---- many at once -----------------------------------------------------------------


def alive_at_once(count: int, argv: Sequence[str]) -> list[Process]:
    """Start so many sandboxes with limits, wait for all, and check each one's figures."""
    box = Sandbox(limits=Limits(memory="64M", pids=16, cpu=1.0, cpu_time=60, wall_time=120))
    read, write = subprocess.PIPE, subprocess.PIPE
    processes = [box.spawn(argv, stdin=read, stdout=write) for _ in range(count)]
    for process in processes:
        process.communicate(b"")
    for process in processes:
        usage = process.usage
        if process.reason is not Reason.EXIT or usage is None or usage.pids_peak not in (1, None):
            raise RuntimeError(f"{process.reason}, {usage}")
    return processes


# ---- the whole --------------------------------------------------------------------


def _table(title: str, samples: dict[str, list[int]]) -> None:
    print(f"\n{title}")
    _report.print_table(
        ["ms", "min", "median", "worst"],
        [
            [name, *(_report.milliseconds(f(values)) for f in (min, _median, max))]
            for name, values in samples.items()
        ],
    )


def _median(values: Sequence[int]) -> float:
    return sorted(values)[len(values) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=100, help="of each overshoot")
    parser.add_argument("--rounds", type=int, default=200, help="of the comparison of costs")
    parser.add_argument("--alive", type=int, default=500, help="sandboxes at once")
    parser.add_argument("--json", help="where to write the samples")
    options = parser.parse_args()
    machine = _report.describe_machine(["nsjail", "isolate", "systemd-run", "crun"])
    _report.print_machine(machine)

    overshoot: dict[str, Sampler] = {f"nsbox: wall time {WALL} s": wall_overshoot}
    others, missing = peers()
    try:
        Sandbox(limits=Limits(memory="64M", pids=16, cpu=1.0, cpu_time=1)).run(["/bin/true"])
    except NsboxError as error:
        missing["nsbox: limits that need a cgroup"] = str(error)
    else:
        overshoot[f"nsbox: cpu time {CPU} s, 1 process"] = lambda: cpu_overshoot(SPIN)
        overshoot[f"nsbox: cpu time {CPU} s, 8 processes"] = lambda: cpu_overshoot(MANY)
        if os.path.exists("/usr/bin/python3"):
            overshoot[f"nsbox: cpu time {CPU} s, 8 threads"] = lambda: cpu_overshoot(THREADS)
        overshoot["nsbox: memory bomb of 16 MiB, start to verdict"] = oom_to_result
    results = {"overshoot": measure({**overshoot, **others}, options.samples)}
    _table("Time beyond the limit", results["overshoot"])

    if "nsbox: limits that need a cgroup" not in missing:
        argv = _spawners.find_payload()
        results["cost"] = measure(spawners(argv), options.rounds)
        _table("Spawn to end of a program that does nothing", results["cost"])
        base = _median(results["cost"]["no limits"])
        for name, values in results["cost"].items():
            print(f"{name}: {_median(values) / base:.2f} times the spawn without limits")
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
        start = time.perf_counter()
        alive_at_once(options.alive, [*argv[:-1], "cat"])
        elapsed = time.perf_counter() - start
        print(f"\n{options.alive} sandboxes alive at once, 4096 open files: {elapsed:.1f} s")
    for name, reason in missing.items():
        print(f"{name}: not measured: {reason}")
    if options.json:
        _report.write_json(options.json, machine, results)


if __name__ == "__main__":
    _report.run_command_line(main)
