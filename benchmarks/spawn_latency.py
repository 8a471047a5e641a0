"""
How long a sandbox takes from the call that starts it to the end of a program that does nothing.

All contenders run in turn within every round, in an order drawn anew for each, so that whatever
else the machine does meets them all alike. Times of separate runs are not comparable.

    python benchmarks/spawn_latency.py --rounds 200 --json latency.json --plot latency.png
"""

from __future__ import annotations

import argparse
import contextlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import _peers
import _report
import _spawners
from _report import Summary

WARM_UP_ROUNDS = 5

PROGRAMS = ("bwrap", "unshare", "crun", "runc", "nsjail", "minijail0")


def prepare(
    argv: Sequence[str], names: Sequence[str], stack: contextlib.ExitStack
) -> tuple[dict[str, _spawners.Sampler], dict[str, str]]:
    """
    Set up every contender that can run here.

    Returns:
        The samplers, and for each contender that is missing the reason.
    """
    view = _peers.default_view(stack)
    samplers: dict[str, _spawners.Sampler] = {}
    missing: dict[str, str] = {}
    for contender in _peers.CONTENDERS:
        if names and contender.name not in names:
            continue
        try:
            samplers[contender.name] = contender.prepare(view, argv, stack)
        except (_spawners.Unavailable, OSError) as reason:
            missing[contender.name] = str(reason)
    return samplers, missing


def print_results(summaries: Mapping[str, Summary], missing: Mapping[str, str]) -> None:
    """
    Print the table, the reasons of those that are not in it, and the comparison with nsbox.
    """
    floor = summaries["floor"].median if "floor" in summaries else None
    _report.print_table(
        ["ms", "min", "median", "p99", "IQR", "median / floor"],
        [
            [
                name,
                _report.milliseconds(summary.minimum),
                _report.milliseconds(summary.median),
                _report.milliseconds(summary.p99),
                _report.milliseconds(summary.spread),
                _report.ratio(summary.median, floor),
            ]
            for name, summary in summaries.items()
        ],
    )
    for name, reason in missing.items():
        print(f"{name}: not measured: {reason}")
    nsbox = summaries.get("nsbox")
    if nsbox is None:
        return
    print()
    for name, summary in summaries.items():
        if name != "nsbox":
            print(f"{name} / nsbox = {summary.median / nsbox.median:.2f}")


def print_notes(names: Sequence[str]) -> None:
    """
    Print what each number includes: without that the comparison would say nothing.
    """
    print("\nWhat each does:")
    for contender in _peers.CONTENDERS:
        if contender.name in names:
            note = f"{contender.name}: {contender.isolation}"
            print(textwrap.fill(note, 96, initial_indent="  ", subsequent_indent="    "))


def plot(path: str, summaries: Mapping[str, Summary], pyplot: Any) -> None:
    """
    Draw the medians as bars and the middle half of the samples as whiskers.
    """
    names = list(summaries)[::-1]
    values = [summaries[name] for name in names]
    medians = [value.median / _report.NS_PER_MS for value in values]
    below = [(value.median - value.quartile1) / _report.NS_PER_MS for value in values]
    above = [(value.quartile3 - value.median) / _report.NS_PER_MS for value in values]
    colors = ["tab:orange" if name.startswith("nsbox") else "tab:gray" for name in names]
    figure, axes = pyplot.subplots(figsize=(8, 0.45 * len(names) + 1.2), layout="constrained")
    bars = axes.barh(names, medians, xerr=[below, above], color=colors, capsize=3)
    axes.bar_label(bars, fmt="%.2f", padding=6)
    axes.margins(x=0.12)
    axes.set_xlabel("ms from spawn to reap: median, whiskers the quartiles")
    figure.savefig(path, dpi=150)


def parse_arguments() -> argparse.Namespace:
    """
    Define and read the command line.
    """
    parser = argparse.ArgumentParser(description="Spawn-to-reap latency of a static `true`.")
    parser.add_argument("--rounds", type=int, default=200, metavar="N", help="default: 200")
    parser.add_argument("--seed", type=int, default=1, help="of the order within the rounds")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=[contender.name for contender in _peers.CONTENDERS],
        help="measure this contender; can be repeated (default: all)",
    )
    parser.add_argument("--json", metavar="FILE", help="write figures and raw samples")
    parser.add_argument("--plot", metavar="FILE.png", help="draw a picture with matplotlib")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be 2 or more: one sample has no spread")
    return options


def main() -> None:
    """
    Measure and report.
    """
    options = parse_arguments()
    pyplot = _report.load_pyplot() if options.plot else None
    try:
        argv = _spawners.find_payload()
    except _spawners.Unavailable as reason:
        raise SystemExit(str(reason)) from reason
    machine = _report.describe_machine(PROGRAMS)
    method = (
        f"{' '.join(argv)}: {options.rounds} rounds after {WARM_UP_ROUNDS} for warming up, every "
        f"contender once per round in an order shuffled per round (seed {options.seed})"
    )
    _report.print_machine(machine)
    print(f"{method}\n", flush=True)
    with contextlib.ExitStack() as stack:
        samplers, missing = prepare(argv, options.only, stack)
        samples = _spawners.in_turn(samplers, options.rounds, WARM_UP_ROUNDS, options.seed)
    summaries = {name: _report.summarise(values) for name, values in samples.items()}
    print_results(summaries, missing)
    print_notes(list(summaries))
    if options.json:
        content = {"method": method, "summaries": summaries, "missing": missing, "ns": samples}
        _report.write_json(options.json, machine, content)
    if options.plot:
        plot(options.plot, summaries, pyplot)


if __name__ == "__main__":
    _report.run_command_line(main)
