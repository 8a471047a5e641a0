#!/usr/bin/env python3
"""
Run tests in guests with another kernel: ``tests/guest/boot.py [PYTEST ARGUMENT ...]``.

Boots Debian's cloud kernel, with all controllers on cgroup v2, under QEMU's own
processor, in two guests at the same time. In one the tests run as root, in the
other as a plain user with a delegated cgroup. The verdict is read from the
reports that pytest wrote there: a guest that dies, hangs or says nothing has failed.

Each guest has one processor. With two, each wake-up of one by the other, of which
strace makes thousands, waits until the host runs both: five times as slow.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import image

SUITES = ("root", "plain")
"""Who runs the tests, each in a guest; init.sh has the same names."""
# All but what is marked, needs a compiler or Python's tests, or no kernel at all.
SELECTION = (
    "tests",
    *(f"--ignore=tests/{name}" for name in ("adversarial", "cpython", "guest", "unit")),
    "--ignore=tests/native/test_contract.py",  # reads the sources
    "-m",
    "not one_kernel",
)
SHARED = {
    "root": ("adoption", "init", "live", "live_files", "pool"),
    "plain": (
        *("async", "cgroup_ahead", "interact", "lifetime"),
        *("process", "protocol", "seccomp", "terminal"),
    ),
}
"""
What each suite alone runs of tests/sandbox: it asks the kernel for the same, whoever calls.
Where callers differ (mounts, ids, cgroups, limits, Landlock), both run it. A module with tests
for root only is not the plain user's.
"""
DEADLINE = 2400.0


class Report(NamedTuple):
    """What pytest said of a suite."""

    passed: int
    skipped: int
    failed: int

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.skipped} skipped, {self.failed} failed"


def read_report(path: Path) -> Report:
    """
    Read pytest's report of a suite.

    Raises:
        ValueError: If it is missing or cut off, or no test passed.
    """
    try:
        suite = ElementTree.parse(path).getroot().find("testsuite")
    except (OSError, ElementTree.ParseError) as error:
        raise ValueError(f"no whole report ({error})") from error
    if suite is None:
        raise ValueError("a report without a suite")
    tests, skipped, failures, errors = (
        int(suite.attrib[name]) for name in ("tests", "skipped", "failures", "errors")
    )
    report = Report(tests - skipped - failures - errors, skipped, failures + errors)
    if report.passed <= 0:
        raise ValueError(str(report))
    return report


def judge(reports: Mapping[str, Path]) -> bool:
    """Print what the reports of the suites say, and return whether all is well."""
    well = True
    for name, path in reports.items():
        try:
            report = read_report(path)
            print(f"{name}: {report}")
            well = well and report.failed == 0
        except ValueError as error:
            print(f"{name}: {error}")
            well = False
    return well


def selection(name: str, whole: bool) -> tuple[str, ...]:
    """Return pytest's arguments for a suite: what it does not leave to the other, or the whole."""
    others = [] if whole else [SHARED[other] for other in SUITES if other != name]
    left = (f"--ignore=tests/sandbox/test_{module}.py" for modules in others for module in modules)
    return (*left, *SELECTION)


def power_on(name: str, command: Sequence[str | Path], deadline: float) -> bool:
    """
    Run a virtual machine until it powers itself off, and print its console line by line.

    Returns:
        False if it failed, or was still running after the deadline, in seconds;
        then it was killed.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    timer = threading.Timer(deadline, process.kill)
    timer.start()
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"{name}: {line.rstrip()}", flush=True)
    timer.cancel()
    timer.join()
    if process.returncode == -signal.SIGKILL:
        print(f"{name}: still running after {deadline:g} seconds")
    return process.returncode == 0


def machine(name: str, kernel: Path, initramfs: Path, disk: Path, report: Path) -> list[str | Path]:
    """Return the command of a virtual machine for a suite, with a port for its report."""
    (vmlinuz,) = kernel.glob("boot/vmlinuz-*")
    # What the kernel does not know on its command line becomes the environment of init.sh.
    # The kernel counts ticks for a moment at boot, and panics if a busy host delivers none.
    # Nobody attacks a processor that is a program, and it need not look for a better clock.
    append = "console=ttyS0 loglevel=1 panic=-1 no_timer_check mitigations=off tsc=reliable"
    append += f" suite={name}"
    # Of the plainest processor: tables of five levels, keys and wide registers that a kernel
    # uses where they exist are work for a program.
    command: list[str | Path] = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "qemu64"]
    command += ["-smp", "1", "-m", "1G", "-nodefaults", "-no-user-config", "-no-reboot"]
    command += ["-display", "none", "-serial", "stdio"]
    command += ["-kernel", vmlinuz, "-initrd", initramfs, "-append", append]
    command += ["-drive", f"file={disk},if=virtio,format=raw,snapshot=on"]
    command += ["-chardev", f"file,id=report,path={report}"]
    command += ["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=report"]
    return command


def run(work: Path, package: Path, suites: Mapping[str, Sequence[str]], deadline: float) -> bool:
    """
    Build what the guests boot in the directory work, boot them, and judge.

    Args:
        work: Where to work.
        package: nsbox: a wheel, or a checkout.
        suites: What pytest's arguments are in each.
        deadline: In seconds.
    """
    kernel = image.kernel(work)
    initramfs, disk = work / "initramfs.cpio", work / "disk.img"
    image.initramfs(work, kernel, initramfs)
    image.disk(work, package, suites, disk)
    reports = {name: work / f"{name}.xml" for name in suites}
    for path in reports.values():
        path.unlink(missing_ok=True)

    def boot(name: str) -> bool:
        command = machine(name, kernel, initramfs, disk, reports[name])
        return power_on(name, command, deadline)

    with ThreadPoolExecutor(len(suites)) as pool:
        finished = list(pool.map(boot, suites))
    return judge(reports) and all(finished)


def main() -> int:
    """Return the exit status: 0 if all tests passed as everybody."""
    parser = argparse.ArgumentParser(
        description="Run tests in a guest with another kernel. Other arguments go to pytest there.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--package", type=Path, default=image.PROJECT, help="wheel to test (default: the checkout)"
    )
    parser.add_argument("--as", dest="suite", choices=SUITES, help="who runs them (default: both)")
    parser.add_argument(
        "--whole", action="store_true", help="run as both what CI runs only as one of them"
    )
    parser.add_argument("--deadline", type=float, default=DEADLINE, help="in seconds (%(default)s)")
    parser.add_argument("--work", type=Path, help="directory to keep kernel and reports in")
    options, arguments = parser.parse_known_args()
    missing = image.missing_packages()
    if missing:
        print(f"first: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 2
    names = (options.suite,) if options.suite else SUITES
    whole = options.whole or options.suite is not None  # nobody else runs the rest
    suites = {name: arguments or selection(name, whole) for name in names}
    with tempfile.TemporaryDirectory(prefix="nsbox-guest.") as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(exist_ok=True)
        package = options.package.resolve()
        well = run(work, package, suites, options.deadline)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
