"""
Workloads again and again, from many threads: what test_soak.py measures.

Does a number of rounds for each line that it reads, and answers with a line.
"""

import argparse
import gc
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from workloads import SOAKED, Workload, kept_pool

from nsbox._spares import drain


def work(workloads: list[Workload], rounds: int, seed: str) -> None:
    choices = random.Random(seed)
    for _ in range(rounds):
        choices.choice(workloads).act()


def main() -> None:
    parser = argparse.ArgumentParser(description="Do workloads in threads.")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True, help="of all threads, for each line")
    parser.add_argument("--seed", required=True)
    parser.add_argument("--workloads", required=True, help="names, separated by commas")
    parser.add_argument("--cgroup", action="append", default=[], help="directories to enter")
    options = parser.parse_args()
    for directory in options.cgroup:
        Path(directory, "cgroup.procs").write_text("0")
    names = options.workloads.split(",")
    workloads = [workload for workload in SOAKED if workload.name in names]
    for workload in workloads:
        workload.prepare()
    for number, _ in enumerate(sys.stdin):
        with ThreadPoolExecutor(options.threads) as pool:
            tasks = [
                pool.submit(
                    work,
                    workloads,
                    options.rounds // options.threads,
                    f"{options.seed} {number} {thread}",
                )
                for thread in range(options.threads)
            ]
        for task in tasks:
            task.result()
        gc.collect()
        # What the pool makes ahead is complete, and nothing else is.
        while (stats := kept_pool().stats()).ready < stats.size:
            os.sched_yield()
        drain()
        print("done", flush=True)


if __name__ == "__main__":
    main()
