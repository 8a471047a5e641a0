"""Signals, deaths and closed descriptors at bad moments: nothing is lost, nothing is left."""

import errno
import gc
import itertools
import math
import os
import select
import signal
import subprocess
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from nsbox import DEVNULL, Limits, PlanError, Pool, Process, Reason, Sandbox, SpawnError, Step
from nsbox._spares import settle
from support import CHILD_DEADLINE, SOURCE, ends, in_child, interruptions

PR_GET_DUMPABLE = 3


class Interrupted(Exception):
    """Raised by a signal handler."""


def raise_interrupted(number: int, frame: FrameType | None) -> None:
    raise Interrupted


# A process that was lost just after its start is killed with a ResourceWarning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_raising_signal_handler_loses_no_process(box: Sandbox) -> None:
    """A handler that raises as soon as a spawn is over leaves neither process nor descriptor."""
    before = signal.signal(signal.SIGALRM, raise_interrupted)
    interrupted = 0
    try:
        for round_number in range(60):
            try:
                # Again and again: Python may see one that comes right before a system call
                # that blocks only when the next has interrupted that, and drops what is
                # raised in a finalizer.
                delay = 0.0002 + 0.0001 * (round_number % 30)
                signal.setitimer(signal.ITIMER_REAL, delay, 0.5)
                box.run(["sleep", "1000"])
            except Interrupted:
                interrupted += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted == 60  # the check after each test finds what is left


@pytest.mark.one_kernel
def test_no_descriptor_is_closed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a handler raises: the number may be another thread's the second time."""
    close, twice = os.close, list[int]()

    def watched(fd: int) -> None:
        try:
            close(fd)
        except OSError:
            twice.append(fd)

    def child() -> tuple[int, list[int]]:
        sys.unraisablehook = lambda _: None
        warnings.simplefilter("ignore")
        monkeypatch.setattr(os, "close", watched)
        files = subprocess.__file__, str(SOURCE / "nsbox" / "process.py")
        box, number = Sandbox(), 0
        run = partial(box.run, ["cat"], input=b"", capture_output=True)
        for _ in interruptions(run, files):
            number += 1
            gc.collect()
        return number, twice

    number, twice = in_child(child)
    assert number > 100
    assert twice == []


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_closed_descriptor_as_a_stream_is_refused(box: Sandbox, stream: str) -> None:
    """A number that is not open must not come to mean a descriptor that nsbox opens."""
    for fd in range(5, 60):
        settle()  # what the thread that works ahead has open on its way is open
        try:
            os.fstat(fd)
        except OSError:
            options: dict[str, Any] = {stream: fd}
            with pytest.raises(SpawnError) as caught:
                box.run(["true"], **options)
            assert (caught.value.step, caught.value.errno) == (Step.DUP, errno.EBADF)


def test_closed_descriptor_beside_a_pipe_is_refused(box: Sandbox) -> None:
    """Nor may it come to mean our end of a pipe that is made for another stream."""
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    with pytest.raises(SpawnError) as caught:
        box.run(["true"], stdin=reader, capture_output=True)
    assert caught.value.errno == errno.EBADF


def test_closed_descriptor_in_pass_fds_is_refused(box: Sandbox) -> None:
    """The same for descriptors that keep their numbers."""
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    with pytest.raises(SpawnError) as caught:
        box.run(["true"], pass_fds=[writer])
    assert (caught.value.step, caught.value.errno) == (Step.PASS_FD, errno.EBADF)


SPAWN_AND_WAIT = f"""
import sys
sys.path.insert(0, {str(SOURCE)!r})
import nsbox
box = nsbox.Sandbox()
box.run(["true"])
print("ready", flush=True)
sys.stdin.readline()
box.run(["sleep", "1000"])
"""


DELAY = ["-e", "inject=clone3:delay_exit=2000000:when=2"]


@pytest.mark.one_kernel
def test_caller_killed_during_a_set_up_leaves_nothing(box: Sandbox, strace: str) -> None:
    """A half-built child that waits for its ids dies when its caller is killed."""
    script = [sys.executable, "-c", SPAWN_AND_WAIT]
    tracer = subprocess.Popen(
        # The second clone3 is held up just before it returns to the caller.
        [strace, "-f", "-o", "/dev/null", "-e", "trace=clone3", *DELAY, *script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with tracer:
        assert tracer.stdin is not None
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == "ready\n"
        caller = int(Path(f"/proc/{tracer.pid}/task/{tracer.pid}/children").read_text())
        tracer.stdin.write("go\n")
        tracer.stdin.flush()
        children = Path(f"/proc/{caller}/task/{caller}/children")
        while not children.read_text():
            pass
        os.kill(caller, signal.SIGKILL)
        # strace ends when the last process that it traces has ended.
        tracer.wait(timeout=60)


def test_process_that_is_collected_is_killed_even_if_warnings_are_errors(box: Sandbox) -> None:
    """The warning comes after the kill, so turning it into an error changes nothing."""
    process = box.spawn(["sleep", "1000"], stdin=DEVNULL)
    pidfd = process.pidfd
    assert pidfd is not None
    watch = os.dup(pidfd)
    try:
        with warnings.catch_warnings(), _Quiet():
            warnings.simplefilter("error")
            del process
            gc.collect()
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        assert poll.poll(0)
    finally:
        os.close(watch)


class _Quiet:
    """Take the report of an exception in __del__, which cannot be caught otherwise."""

    def __enter__(self) -> None:
        self.hook, sys.unraisablehook = sys.unraisablehook, lambda *_: None

    def __exit__(self, *_: object) -> None:
        sys.unraisablehook = self.hook


@pytest.mark.parametrize("timeout", [3e6, 1e10, math.inf])
def test_wait_takes_any_timeout(box: Sandbox, timeout: float) -> None:
    """A timeout that no system call could take is waited for all the same."""
    with box.spawn(["true"]) as process:
        assert process.wait(timeout) == 0


@pytest.mark.parametrize("timeout", [3e6, 1e10, math.inf])
def test_run_takes_any_timeout(box: Sandbox, timeout: float) -> None:
    """Where there are pipes or a terminal as well."""
    result = box.run(["echo", "hi"], timeout=timeout, capture_output=True)
    assert result.stdout == b"hi\n"
    assert box.run(["echo", "hi"], timeout=timeout, pty=True).stdout == b"hi\r\n"
    with box.spawn(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.communicate(b"x" * 10, timeout=timeout)[0] == b"x" * 10


def test_wait_refuses_what_is_no_timeout(box: Sandbox) -> None:
    """A deadline that is never reached, and never far away, would be looked at for ever."""
    with (
        box.spawn(["cat"], stdin=subprocess.PIPE) as process,
        pytest.raises(PlanError, match="no number of seconds"),
    ):
        process.wait(math.nan)


def test_timeout_does_not_wait_for_processes_that_are_not_ours_to_end(box: Sandbox) -> None:
    """With the host's pids a grandchild can hold the pipes open; the timeout holds all the same."""
    reader, writer = os.pipe()
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            Sandbox(pid="host").run(
                ["sh", "-c", "exec 3<&0; cat <&3 & wait"],
                stdin=reader,
                stdout=subprocess.PIPE,
                timeout=0.2,
            )
    finally:
        os.close(writer)  # lets the grandchild go
        os.close(reader)


@pytest.mark.one_kernel
def test_forked_child_keeps_a_dumpable_mark(root: None, box: Sandbox) -> None:
    """A fork in the middle of root's spawns does not leave the child without its mark."""
    import threading

    from nsbox import lowlevel

    stop = threading.Event()

    def spawn() -> None:
        while not stop.is_set():
            box.run(["true"])

    threads = [threading.Thread(target=spawn) for _ in range(3)]
    for thread in threads:
        thread.start()
    marks = []
    try:
        for _ in range(30):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of forks in programs with threads
                pid = os.fork()
            if pid == 0:
                os._exit(lowlevel.prctl(PR_GET_DUMPABLE))
            marks.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(marks) == {1}


class _InWait:
    """A trace function that raises at the n-th instruction of the library's part of a wait()."""

    def __init__(self, when: int) -> None:
        self.when = when
        self.count = 0

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(str(SOURCE / "nsbox")):
            return None
        frame.f_trace_opcodes = True
        self.count += event == "opcode"
        if event == "opcode" and self.count == self.when:
            raise Interrupted
        return self


def _interrupted(process: Process, when: int) -> bool:
    """Wait, and be interrupted at the n-th instruction; tell if there was one."""
    trace = _InWait(when)
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        process.wait()
    except Interrupted:
        pass
    finally:
        sys.settrace(before)
    return trace.count >= when


@pytest.mark.one_kernel
@pytest.mark.usefixtures("cgroups")
@pytest.mark.parametrize("pooled", [False, True])
def test_interrupted_wait_loses_no_verdict(pooled: bool) -> None:
    """Whatever raises in wait(), the next one tells why it ended, by the kernel's counters."""
    box = Sandbox(limits=Limits(pids=1))
    command = ["/bin/sh", "-c", "/bin/true; :"]
    spawners: AbstractContextManager[Pool | Sandbox] = box.pool(2) if pooled else nullcontext(box)
    with spawners as spawner:
        for when in itertools.count(1, 3):
            process = spawner.spawn(command, stderr=DEVNULL)
            assert process.pidfd is not None
            assert ends(process.pidfd, CHILD_DEADLINE)
            interrupted = _interrupted(process, when)
            process.wait()
            assert process.reason is Reason.PIDS, when
            assert process.usage is not None
            assert process.usage.pids_refused, when
            if not interrupted:
                break
    assert when > 100
