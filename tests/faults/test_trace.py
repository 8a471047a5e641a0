"""
An exception at every single place: trace and profile functions that raise.

A handler of a signal, that of Ctrl-C above all, can raise between any two steps of
Python code. Here a trace function does, at one event after the other, so that each
place is met once and no timing decides.
"""

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from workloads import WORKLOADS, Belongings, Workload

from nsbox import PIPE, Sandbox
from support import SOURCE, in_child

PACKAGE = str(SOURCE / "nsbox")
LIBRARY = subprocess.__file__
FEW, MANY = 100, 10_000
"""
At how many events, evenly, it raises in the short form, and besides at the first in each function;
and at how many instructions in the long form: a live sandbox with limits has 45,000.
"""

PARTS = {
    "capture": {"Payload.start", "Process.converse", "Capture.run", "Capture._feed"},
    "cgroup": {"make", "Cgroup.freeze", "Cgroup.thaw"},
    "pool-map": {"_results", "_end", "_Run.__init__", "_Run.result", "Stock.close"},
    "files": {"Live.__init__", "Live.write_file", "Live.read_file", "Live.changes"},
}
STARTING = {"Request.__init__", "Payload.start", "Child.__init__"}
"""Functions in which each workload has to be interrupted, and those that are not in PARTS."""

LIBRARYS_PARTS = {
    "capture": {"Popen.wait"},
    "wait": {"Popen.poll", "Popen.wait", "Popen.__exit__"},
    "kill": {
        "Popen.kill",
        "Popen.communicate",
        "Popen._communicate",
        "Popen.wait",
        "Popen.__exit__",
    },
}
LIBRARYS_STARTING = {"Popen.__init__", "Popen._get_handles"}
"""The same of the standard library's: besides the latter, in which all are."""

pytestmark = [pytest.mark.usefixtures("box"), pytest.mark.one_kernel]


class Interrupted(SystemExit):
    """What the trace function raises: an event loop lets it through, as it does Ctrl-C."""


class Interruption:
    """
    A trace or profile function that raises in the files of interest.

    Args:
        when: At the n-th event, or at the first in the function of that name; 0: it only watches.
    """

    def __init__(self, when: int | str, files: str, *, opcodes: bool) -> None:
        self.when = when
        self.count = 0
        self.functions: dict[str, None] = {}  # that were seen, in that order
        self.files = files
        self.opcodes = opcodes
        self.place: str | None = None
        self.function = ""

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        code = frame.f_code
        # Instructions without a line belong to no place where a signal's handler could run.
        if not code.co_filename.startswith(self.files) or frame.f_lineno is None:
            return None
        frame.f_trace_opcodes = self.opcodes
        self.count += 1
        self.functions[code.co_qualname] = None
        if self.place is None and self.when in (self.count, code.co_qualname):
            name = os.path.basename(code.co_filename)
            self.function = code.co_qualname
            self.place = f"{name}:{frame.f_lineno} {code.co_qualname}, at a {event}"
            raise Interrupted
        return self


def sweep(
    workload: Workload,
    install: Callable[[Any], object],
    files: str = PACKAGE,
    *,
    opcodes: bool = False,
    most: int = FEW,
    processes_only: bool = False,
) -> tuple[set[str], list[str]]:
    """
    Do a workload again and again, interrupted at a later event each time.

    Args:
        most: How often, besides the first events in each function.

    Returns:
        The functions in which it was, and the places after which something was left.
    """
    # What a collection finds last is reported, and not to be raised.
    sys.unraisablehook = lambda _: None
    belongings = Belongings(workload)
    wrong: list[str] = []
    functions: set[str] = set()
    watching = Interruption(0, files, opcodes=opcodes)
    workload.before()
    install(watching)
    workload.act()
    install(None)
    step = math.ceil(watching.count / most)
    whens: Iterator[int | str] = itertools.chain(watching.functions, itertools.count(1, step))
    for when in whens:
        interruption = Interruption(when, files, opcodes=opcodes)
        workload.before()
        try:
            install(interruption)
            workload.act()
        except Interrupted:
            pass
        finally:
            install(None)
        if interruption.place is not None:
            functions.add(interruption.function)
        elif isinstance(when, int):
            break
        left = belongings.left()
        if "children" in left or (left and not processes_only):
            wrong.append(f"{interruption.place}: {left}")
    return functions, wrong


TRACED = [workload for workload in WORKLOADS if workload.lines]


@pytest.mark.long
@pytest.mark.parametrize("install", [sys.settrace, sys.setprofile], ids=["trace", "profile"])
@pytest.mark.parametrize("workload", TRACED, ids=str)
def test_exception_anywhere_leaves_nothing(
    workload: Workload, install: Callable[[Any], object], request: pytest.FixtureRequest
) -> None:
    """
    At a line (trace), call or return (profile) an exception leaves nothing, and hangs nothing.

    Those of the core's C functions included; at each instruction, or many, in the long form.
    """
    workload.require(request)
    long = request.config.getoption("--long")
    functions, wrong = in_child(
        lambda: sweep(workload, install, opcodes=long, most=MANY if long else FEW), 3600
    )
    assert wrong == []
    assert PARTS.get(workload.name, STARTING) <= functions


@pytest.mark.parametrize("workload", [item for item in TRACED if item.pipes], ids=str)
def test_exception_in_the_library_leaves_no_process(
    workload: Workload, request: pytest.FixtureRequest
) -> None:
    """The same in the lines of subprocess that nsbox inherits; those lose pipes, but no process."""
    workload.require(request)
    functions, wrong = in_child(lambda: sweep(workload, sys.settrace, LIBRARY, processes_only=True))
    assert wrong == []
    assert LIBRARYS_STARTING | LIBRARYS_PARTS.get(workload.name, set()) <= functions


def test_trace_function_that_only_watches_changes_nothing() -> None:
    """Under a debugger's trace function a run is what it is without."""

    def watch(frame: FrameType, event: str, argument: object) -> Any:
        seen.append(event)
        return watch

    def child() -> bytes:
        sys.settrace(watch)
        sys.setprofile(watch)
        try:
            output: bytes = Sandbox().run(["/bin/cat"], input=b"x", stdout=PIPE).stdout
        finally:
            sys.settrace(None)
            sys.setprofile(None)
        assert {"line", "return"} <= set(seen)
        return output

    seen: list[str] = []
    assert in_child(child) == b"x"
