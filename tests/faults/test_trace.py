"""
An exception at every single place: trace and profile functions that raise.

A handler of a signal, that of Ctrl-C above all, can raise between any two steps of
Python code. Here a trace function does, at one event after the other, so that each
place is met once and no timing decides.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from workloads import WORKLOADS, Belongings, Workload

from nsbox import PIPE, Sandbox
from support import SOURCE, in_child

PACKAGE = str(SOURCE / "nsbox")
LIBRARY = subprocess.__file__
STRIDE = 8
"""The short form raises at every eighth event."""

pytestmark = [pytest.mark.usefixtures("box"), pytest.mark.one_kernel]


class Interrupted(BaseException):
    """What the trace function raises."""


class Interruption:
    """A trace or profile function that raises at the n-th event in the files of interest."""

    def __init__(self, number: int, files: str, *, opcodes: bool) -> None:
        self.left = number
        self.files = files
        self.opcodes = opcodes
        self.place: str | None = None

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        code = frame.f_code
        # Instructions without a line belong to no place where a signal's handler could run.
        if not code.co_filename.startswith(self.files) or frame.f_lineno is None:
            return None
        frame.f_trace_opcodes = self.opcodes
        self.left -= 1
        if self.left == 0:
            name = os.path.basename(code.co_filename)
            self.place = f"{name}:{frame.f_lineno} {code.co_name}, at a {event}"
            raise Interrupted
        return self


def sweep(
    workload: Workload,
    install: Callable[[Any], object],
    files: str = PACKAGE,
    *,
    opcodes: bool = False,
    stride: int = 1,
    processes_only: bool = False,
) -> tuple[int, list[str]]:
    """
    Do a workload again and again, interrupted at a later event each time.

    Returns:
        How many events there are, and the places after which something was left.
    """
    # What a collection finds last is reported, and not to be raised.
    sys.unraisablehook = lambda _: None
    belongings = Belongings(workload)
    wrong: list[str] = []
    number = 1 - stride
    while True:
        number += stride
        interruption = Interruption(number, files, opcodes=opcodes)
        workload.before()
        try:
            install(interruption)
            workload.act()
        except Interrupted:
            pass
        finally:
            install(None)
        if interruption.place is None:
            return number - 1, wrong
        left = belongings.left()
        if "children" in left or (left and not processes_only):
            wrong.append(f"{interruption.place}: {left}")


TRACED = [workload for workload in WORKLOADS if workload.lines]


@pytest.mark.long
@pytest.mark.parametrize("install", [sys.settrace, sys.setprofile], ids=["trace", "profile"])
@pytest.mark.parametrize("workload", TRACED, ids=str)
def test_exception_anywhere_leaves_nothing(
    workload: Workload, install: Callable[[Any], object], request: pytest.FixtureRequest
) -> None:
    """
    At each line (trace), call and return (profile) an exception leaves nothing, and hangs nothing.

    Those of the core's C functions included; in the long form at each instruction.
    """
    workload.require(request)
    long = request.config.getoption("--long")
    count, wrong = in_child(
        lambda: sweep(workload, install, opcodes=long, stride=1 if long else STRIDE), 3600
    )
    assert wrong == []
    assert count > 50


@pytest.mark.parametrize("workload", [item for item in TRACED if item.pipes], ids=str)
def test_exception_in_the_library_leaves_no_process(
    workload: Workload, request: pytest.FixtureRequest
) -> None:
    """The same in the lines of subprocess that nsbox inherits; those lose pipes, but no process."""
    workload.require(request)
    count, wrong = in_child(
        lambda: sweep(workload, sys.settrace, LIBRARY, stride=STRIDE, processes_only=True)
    )
    assert wrong == []
    assert count > 90


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
