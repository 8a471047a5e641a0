"""
An exception at every single place: trace and profile functions that raise.

A handler of a signal can raise between any two steps of Python code. Here a
trace function does, at one event after the other, so that each place is met
once and no timing decides.
"""

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from conftest import children, open_fds, own_cgroups
from nsbox import DEVNULL, PIPE, Limits, Sandbox
from support import SOURCE, in_child

PACKAGE = str(SOURCE / "nsbox")
LIBRARY = subprocess.__file__

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
    action: Callable[[], object],
    install: Callable[[Any], object],
    files: str = PACKAGE,
    *,
    opcodes: bool = False,
    look: Callable[[], object],
) -> tuple[int, list[str]]:
    """
    Do an action again and again, interrupted at one event later each time.

    Returns:
        At how many events it was interrupted, and the places after which
        look() was not what it had been before.
    """
    # What a collection finds last is reported, and not to be raised.
    sys.unraisablehook = lambda _: None
    action()
    wrong: list[str] = []
    number = 0
    while True:
        before = look()
        number += 1
        interruption = Interruption(number, files, opcodes=opcodes)
        try:
            install(interruption)
            action()
        except Interrupted:
            pass
        finally:
            install(None)
        gc.collect()
        if interruption.place is None:
            return number - 1, wrong
        if look() != before:
            wrong.append(interruption.place)


def run(box: Sandbox) -> None:
    box.run(["/bin/cat"], input=b"text", capture_output=True)


def run_into_timeout(box: Sandbox) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        box.run(["/bin/sleep", "1000"], timeout=0.001)


def spawn_and_wait(box: Sandbox) -> None:
    with box.spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE) as process:
        process.poll()
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)
        process.wait()


def spawn_and_kill(box: Sandbox) -> None:
    with box.spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE) as process:
        process.kill()
        process.communicate(timeout=60)


def spawn_and_forget(box: Sandbox) -> None:
    box.spawn(["/bin/sleep", "1000"], stdin=DEVNULL)


def run_into_output(box: Sandbox) -> None:
    TERSE.run(["/usr/bin/yes"], stdout=PIPE)


def fail(box: Sandbox) -> None:
    with pytest.raises(FileNotFoundError):
        box.run(["/missing"], capture_output=True)


LIMITS = Limits(memory="64M", pids=16, cpu_time=60, wall_time=60, output="1M")

TERSE = Sandbox(limits=Limits(pids=16, output=100))

ACTIONS = [run, run_into_timeout, spawn_and_wait, spawn_and_kill, spawn_and_forget, fail]


def left() -> tuple[set[int], set[int]]:
    fds = set(open_fds())
    return children(), fds


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
def test_trace_function_that_raises_anywhere_leaves_nothing(
    action: Callable[[Sandbox], None], request: pytest.FixtureRequest
) -> None:
    """At each line an exception leaves neither process nor descriptor, and hangs nothing."""
    box, opcodes = Sandbox(), request.config.getoption("--long")
    count, wrong = in_child(
        lambda: sweep(lambda: action(box), sys.settrace, opcodes=opcodes, look=left)
    )
    assert wrong == []
    assert count > 100


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
def test_profile_function_that_raises_anywhere_leaves_nothing(
    action: Callable[[Sandbox], None],
) -> None:
    """The same at each call and return, those of the core's C functions included."""
    box = Sandbox()
    count, wrong = in_child(lambda: sweep(lambda: action(box), sys.setprofile, look=left))
    assert wrong == []
    assert count > 50


def left_with_cgroups() -> tuple[set[int], set[int], set[str]]:
    return *left(), own_cgroups()


@pytest.mark.usefixtures("cgroups")
@pytest.mark.parametrize("action", [run, run_into_output, fail], ids=lambda action: action.__name__)
@pytest.mark.parametrize("install", [sys.settrace, sys.setprofile], ids=["trace", "profile"])
def test_limits_leave_nothing_wherever_it_is_raised(
    action: Callable[[Sandbox], None], install: Callable[[Any], object]
) -> None:
    """With limits neither a descriptor of a cgroup nor the cgroup itself stays."""
    box = Sandbox(limits=LIMITS)
    count, wrong = in_child(lambda: sweep(lambda: action(box), install, look=left_with_cgroups))
    assert wrong == []
    assert count > 100


@pytest.mark.parametrize("action", [run, spawn_and_kill], ids=lambda action: action.__name__)
def test_trace_function_that_raises_in_the_library_leaves_no_process(
    action: Callable[[Sandbox], None],
) -> None:
    """The same in the lines of subprocess that nsbox inherits; those lose pipes, but no process."""
    box = Sandbox()
    count, wrong = in_child(
        lambda: sweep(lambda: action(box), sys.settrace, LIBRARY, look=children)
    )
    assert wrong == []
    assert count > 100


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
