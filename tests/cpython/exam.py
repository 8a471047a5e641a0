"""
CPython's own tests of subprocess and of asyncio's, with every process in a sandbox.

    python tests/cpython/exam.py subprocess             # all
    python tests/cpython/exam.py subprocess test_repr   # those whose name has this in it
    python tests/cpython/exam.py asyncio

While the test module is imported and run, ``subprocess`` is ``box.subprocess``, for the
helpers of ``test.support`` too; or asyncio's two functions that create a process
are ``box.spawn_async()``. The tests and their child programs are as the interpreter
has them. A process that is to be started in any other way is refused, and fails the exam.

A test that does not apply is listed in not_applicable.py, by name and with the
reason. It runs all the same, and has to fail: one that passes, or is not there
any more, has no place in the list, and the exam fails.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import _cffi_backend
from not_applicable import ASYNCIO, SUBPROCESS

import nsbox
from nsbox import AsyncProcess, Bind, Sandbox

CANNOT_RUN = 3
JOBS = 4  # the tests mostly wait


def make_box(directory: str) -> Sandbox:
    """
    Return the sandbox of the exam.

    It shows the host's files, read-only, and one writable directory. The
    payload has the caller's ids, environment and working directory, because the
    tests compare them. The pid namespace is the caller's, since the tests expect
    the default actions of signals, which the init of a new one does not have.
    """
    return Sandbox(
        root="/",
        mounts=[Bind(directory, readonly=False)],
        env="host",
        cwd="host",
        pid="host",
        uid=os.geteuid(),
        gid=os.getegid(),
        host_uid=os.geteuid(),
        host_gid=os.getegid(),
    )


def change_subprocess(box: Sandbox) -> None:
    """Let who imports subprocess have the sandbox's."""
    sys.modules["subprocess"] = box.subprocess


def change_asyncio(box: Sandbox) -> None:
    """Let asyncio create its processes by spawn_async()."""
    import asyncio.subprocess

    async def create_subprocess_exec(program: Any, *args: Any, **options: Any) -> AsyncProcess:
        return await create([program, *args], **options)

    async def create_subprocess_shell(cmd: Any, **options: Any) -> AsyncProcess:
        return await create(cmd, shell=True, **options)

    async def create(args: Any, *, creationflags: int = 0, **options: Any) -> AsyncProcess:
        assert not creationflags  # for Windows
        return await box.spawn_async(args, **options)

    for function in (create_subprocess_exec, create_subprocess_shell):
        for module in (asyncio, asyncio.subprocess):
            setattr(module, function.__name__, function)
    # What an earlier test has done, when they are run one after another; 3.12's
    # test_create_subprocess_with_pidfd depends on it.
    asyncio.set_event_loop(None)


class Exam(NamedTuple):
    """
    What is examined.

    Args:
        module: The tests.
        change: Lets them start their processes in a sandbox.
        not_applicable: Names of tests that do not apply, each with the reason.
    """

    module: str
    change: Callable[[Sandbox], None]
    not_applicable: Mapping[str, str]


EXAMS = {
    "subprocess": Exam("test.test_subprocess", change_subprocess, SUBPROCESS),
    "asyncio": Exam("test.test_asyncio.test_subprocess", change_asyncio, ASYNCIO),
}


@dataclass
class Report:
    """
    What became of each test, by its name, and how many processes were started.

    Args:
        subject: Which of the exams.
    """

    subject: str
    sandboxed: int = 0
    outside: list[str] = field(default_factory=list)

    passed: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    not_applicable: dict[str, str] = field(default_factory=dict)
    wrongly_listed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    again: dict[str, str] = field(default_factory=dict)

    @property
    def exam(self) -> Exam:
        return EXAMS[self.subject]

    def groups(self) -> dict[str, dict[str, str]]:
        return {name: value for name, value in vars(self).items() if isinstance(value, dict)}

    def add(self, name: str, problems: str, skipped: str | None) -> None:
        """Judge a test that has run."""
        if name in self.exam.not_applicable:
            if problems:
                self.not_applicable[name] = self.exam.not_applicable[name]
            else:
                self.wrongly_listed[name] = skipped or "it passes"
        elif problems:
            self.failed[name] = problems
        elif skipped is not None:
            self.skipped[name] = skipped
        else:
            self.passed[name] = ""

    def merge(self, other: "Report") -> None:
        self.sandboxed += other.sandboxed
        self.outside += other.outside
        for name, group in other.groups().items():
            self.groups()[name].update(group)

    def finish(self) -> None:
        """Look for listed tests of which nothing was seen."""
        seen = {name for group in self.groups().values() for name in group}
        gone = self.exam.not_applicable.keys() - seen
        self.wrongly_listed.update(dict.fromkeys(gone, "there is no such test"))

    @property
    def ok(self) -> bool:
        return not self.failed and not self.wrongly_listed and not self.outside

    @property
    def counts(self) -> str:
        """Run, passed, not applicable, skipped by themselves."""
        run = len(self.passed) + len(self.failed)
        return f"{run} | {len(self.passed)} | {len(self.not_applicable)} | {len(self.skipped)}"


class Result(unittest.TestResult):
    """Collects the problems of each test, and what processes it starts."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report
        self._skipped: str | None = None
        self._running = ""
        # The interpreter tells of each start, whoever makes it.
        sys.addaudithook(self._note_start)

    def _note_start(self, event: str, args: tuple[object, ...]) -> None:
        if event == "nsbox.spawn":
            self._report.sandboxed += 1
        elif event in ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.system"):
            start = f"{self._running}: {event} {args}"
            if self._running not in self._report.exam.not_applicable:
                self._report.outside.append(start)
            raise RuntimeError(f"not in a sandbox: {start}")

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._running = test_name(test)
        self.errors.clear()
        self.failures.clear()
        self._skipped = None

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        if not isinstance(test, unittest.TestCase):  # setUpModule, setUpClass
            self._report.failed[str(test)] = self.errors[-1][1]

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self._skipped = reason

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        problems = "\n".join(text for _, text in self.errors + self.failures)
        self._report.add(test_name(test), problems, self._skipped)


def test_name(test: unittest.TestCase) -> str:
    return f"{type(test).__name__}.{test._testMethodName}"


def tests_of(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from tests_of(item)
        else:
            yield item


def load(exam: Exam, box: Sandbox, wanted: str) -> list[unittest.TestCase]:
    """Import the test module, with what it needs of the sandbox, and return its tests."""
    exam.change(box)
    suite = unittest.defaultTestLoader.loadTestsFromName(exam.module)
    return [test for test in tests_of(suite) if wanted in test_name(test)]


def run_part(subject: str, wanted: str, part: int, parts: int) -> Report:
    """Run every parts-th test, in this process."""
    report = Report(subject)
    result = Result(report)
    # Some tests want to meet the limit; most systems have this one.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    with tempfile.TemporaryDirectory(prefix="nsbox-exam-") as directory:
        # Test files are made in the working directory and in the temporary one.
        os.environ["TMPDIR"] = tempfile.tempdir = directory
        os.chdir(directory)
        tests = load(report.exam, make_box(directory), wanted)
        unittest.TestSuite(tests[part::parts]).run(result)
        os.chdir("/")
    return report


def start_part(
    subject: str, wanted: str, part: int, parts: int, output: Path
) -> "subprocess.Popen[bytes]":
    """
    Run a part in a process of its own.

    By the interpreter outside of any virtual environment: some tests skip
    themselves in one.
    """
    places = {
        os.path.dirname(os.path.dirname(nsbox.__file__)),
        os.path.dirname(_cffi_backend.__file__),
    }
    python = getattr(sys, "_base_executable", None) or sys.executable
    own = ["--part", str(part), "--parts", str(parts), "--json", str(output)]
    return subprocess.Popen(
        [python, __file__, subject, wanted, *own],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
    )


def run_parts(subject: str, wanted: str, parts: int) -> Report:
    report = Report(subject)
    with tempfile.TemporaryDirectory(prefix="nsbox-exam-") as directory:
        outputs = [Path(directory, str(part)) for part in range(parts)]
        processes = [
            start_part(subject, wanted, part, parts, path) for part, path in enumerate(outputs)
        ]
        for process, output in zip(processes, outputs, strict=True):
            if process.wait() != 0:
                report.failed[f"part {output.name}"] = (
                    f"the process ended with {process.returncode}"
                )
            else:
                report.merge(Report(**json.loads(output.read_text())))
    return report


def run_again(report: Report) -> None:
    """
    Run what has failed once more, each by itself, as regrtest --rerun does.

    Some of the tests give a process a fifth of a second to end, which is little
    on a machine that is busy with the others.
    """
    for name in list(report.failed):
        again = run_parts(report.subject, name, 1)
        if name in again.passed:
            del report.failed[name]
            report.again[name] = "passed when it was run again, by itself"
            report.merge(again)


def print_report(report: Report, seconds: float) -> None:
    for title in ("failed", "wrongly_listed", "again", "skipped", "not_applicable"):
        for name, text in sorted(getattr(report, title).items()):
            print(f"{title.replace('_', ' ')}: {name}: {text}")
    for start in report.outside:
        print(f"started outside: {start}")
    run, passed, not_applicable, skipped = report.counts.split(" | ")
    print(
        f"{report.exam.module} of CPython {sys.version.split()[0]}, uid {os.geteuid()}: {run} run, "
        f"{passed} passed, {not_applicable} not applicable, {skipped} skipped by themselves; "
        f"{report.sandboxed} processes in sandboxes, {len(report.outside)} outside "
        f"({seconds:.0f} s)"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="CPython's tests of subprocess, sandboxed.")
    parser.add_argument("subject", choices=EXAMS, help="whose tests")
    parser.add_argument("wanted", nargs="?", default="", help="part of a test's name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what became of each test")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--parts", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        import_module("test.support")
    except ModuleNotFoundError as error:
        print(f"cannot run: this Python has no {error.name} (Debian: libpython3.11-testsuite)")
        return CANNOT_RUN
    if options.part is not None:
        os.environ.pop("PYTHONPATH")
        report = run_part(options.subject, options.wanted, options.part, options.parts)
        options.json.write_text(json.dumps(asdict(report)))
        return 0
    started = time.monotonic()
    report = run_parts(options.subject, options.wanted, JOBS)
    run_again(report)
    if not options.wanted:
        report.finish()
    print_report(report, time.monotonic() - started)
    if options.json:
        options.json.write_text(json.dumps(asdict(report)))
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
