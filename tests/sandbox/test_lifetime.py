"""Lifetimes: nothing outlives its owner, whoever else waits or interrupts."""

import errno
import gc
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import IO, Any

import pytest

from nsbox import (
    DEVNULL,
    PIPE,
    Limits,
    Process,
    Sandbox,
    SpawnError,
    Step,
)
from nsbox._fence import Fence
from nsbox._watch import Watch
from support import (
    HANDS_ON,
    PYTHON,
    SOURCE,
    ends,
    expired,
    in_child,
    python_box,
    stdin_of,
    stdout_of,
    write_on,
)

pytestmark = pytest.mark.usefixtures("box")

SH = "/bin/sh"
DEADLINE = 30.0
"""How long a test waits for what should happen at once, before it fails."""


@pytest.fixture
def lifeline() -> Iterator[tuple[IO[bytes], int]]:
    """
    A pipe: a file to read from, and the fd to pass to processes of a sandbox.

    It ends when all of them are gone.
    """
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as file:
        yield file, writer


def waiting(process: Process) -> Process:
    """Wait until the shell of a process has printed that it runs."""
    assert stdout_of(process).readline()
    return process


# ---- the end of everything ------------------------------------------------

# Starts grandchildren that outlive it if they can, then tells that they run.
TREE = "setsid sleep 1000 & sleep 1000 & echo ready; exec sleep 1000"


def test_kill_from_outside_ends_everything(lifeline: tuple[IO[bytes], int]) -> None:
    """os.kill() of the payload's pid ends its grandchildren too."""
    reader, writer = lifeline
    with Sandbox().spawn([SH, "-c", TREE], stdout=PIPE, pass_fds=[writer]) as process:
        os.close(writer)
        waiting(process)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(DEADLINE) == -signal.SIGKILL
        assert reader.read() == b""


def test_exit_ends_everything(lifeline: tuple[IO[bytes], int]) -> None:
    """When the payload exits, what it left in the background is gone before wait() returns."""
    reader, writer = lifeline
    os.set_blocking(reader.fileno(), False)
    with Sandbox().spawn(
        [SH, "-c", "sleep 1000 & setsid sleep 1000 & exit 5"], pass_fds=[writer]
    ) as process:
        os.close(writer)
        assert process.wait(DEADLINE) == 5
        assert reader.read() == b""  # not None: no writer is left


def test_background_process_does_not_hold_the_pipes() -> None:
    """run() returns at the payload's end though a daemon has inherited its streams."""
    result = Sandbox().run(
        [SH, "-c", "setsid sleep 1000 & echo hi"], capture_output=True, timeout=DEADLINE
    )
    assert result.stdout == b"hi\n"


def test_run_timeout_kills_everything(lifeline: tuple[IO[bytes], int]) -> None:
    """run(timeout=...) raises TimeoutExpired with what was captured, and leaves no process."""
    reader, writer = lifeline
    options: dict[str, Any] = {"capture_output": True, "pass_fds": [writer]}
    caught = expired(lambda timeout: Sandbox().run([SH, "-c", TREE], timeout=timeout, **options))
    os.close(writer)
    assert caught.stdout == b"ready\n"
    assert reader.read() == b""


@pytest.mark.parametrize("wrong", [0o377, 0o303], ids=["no-text", "half-a-character"])
def test_run_timeout_is_one_whatever_was_written(wrong: int) -> None:
    """run(text=True, timeout=...) raises TimeoutExpired, with bytes, also if they are no text."""
    script = f"printf '\\{wrong:o}'; exec sleep 1000"
    options: dict[str, Any] = {"capture_output": True, "text": True}
    caught = expired(lambda timeout: Sandbox().run([SH, "-c", script], timeout=timeout, **options))
    assert (caught.stdout, caught.stderr) == (bytes([wrong]), b"")


def test_run_timeout_does_not_wait_for_who_was_handed_the_pipes() -> None:
    """run(timeout=...) ends though somebody outside has what the payload wrote to."""
    box, (ours, theirs) = python_box(), socket.socketpair()
    with ours, theirs:
        args = [*PYTHON, f"{HANDS_ON}; time.sleep(1000)", str(theirs.fileno())]
        options: dict[str, Any] = {"capture_output": True, "pass_fds": [theirs.fileno()]}
        caught = expired(lambda timeout: box.run(args, timeout=timeout, **options))
    assert (caught.stdout, caught.stderr) == (b"x\n", b"")


@pytest.mark.parametrize("init", [False, True])
def test_run_does_not_wait_for_who_writes_on(init: bool) -> None:
    """It ends with the payload though somebody writes to its pipe without end."""
    box, (ours, theirs) = python_box(init=init), socket.socketpair()
    with ours, theirs, ThreadPoolExecutor() as threads:
        threads.submit(write_on, ours)
        args = [*PYTHON, HANDS_ON, str(theirs.fileno())]
        result = box.run(args, capture_output=True, pass_fds=[theirs.fileno()])
    assert result.returncode == 0
    assert result.stdout.strip(b"y") == b"x\n"


def test_run_timeout_does_not_depend_on_the_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    It ends though a pipe cannot be read or written any more, which poll() has said it could.

    A payload can see to that by F_SETPIPE_SZ, or by reading what it has written.
    """
    monkeypatch.setattr(selectors, "PollSelector", _Hasty)
    monkeypatch.setattr(subprocess, "_PopenSelector", _Hasty)
    with pytest.raises(subprocess.TimeoutExpired):
        Sandbox().run(["/bin/sleep", "1000"], input=b"x" * 200_000, capture_output=True, timeout=1)


class _Hasty(selectors.PollSelector):
    """Says of all that it is ready."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return [(key, key.events) for key in self.get_map().values()]


def test_communicate_timeout_keeps_the_output() -> None:
    """After a TimeoutExpired of communicate() another call returns everything."""
    with Sandbox().spawn([SH, "-c", "echo one; exec sleep 1000"], stdout=PIPE) as process:
        expired(lambda timeout: process.communicate(timeout=timeout))
        process.kill()
        assert process.communicate()[0] == b"one\n"


def test_signal_without_handler_is_ignored() -> None:
    """A payload that is init ignores signals it has no handler for: SIGTERM does nothing."""
    with Sandbox().spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE) as process:
        process.terminate()
        assert process.communicate(b"alive") == (b"alive", None)
        assert process.returncode == 0


def test_signal_with_handler_arrives() -> None:
    """A payload that is init receives signals it has a handler for."""
    code = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("ready", flush=True)
while True: signal.pause()"""
    with python_box().spawn([*PYTHON, code], stdout=PIPE) as process:
        waiting(process).terminate()
        assert process.wait(DEADLINE) == 7


def test_signal_after_the_end() -> None:
    """Signals to an ended process do nothing, before and after wait()."""
    process = Sandbox().spawn(["/bin/true"])
    assert process.pidfd is not None
    assert ends(process.pidfd)
    process.kill()
    process.wait()
    process.kill()
    process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


def test_stopped_payload_can_be_killed() -> None:
    """A stopped payload is not taken for an ended one, and can be killed."""
    with Sandbox().spawn(["/bin/cat"], stdin=PIPE) as process:
        process.send_signal(signal.SIGSTOP)
        assert process.poll() is None
        process.kill()
        assert process.wait(DEADLINE) == -signal.SIGKILL


def test_forgotten_process_is_killed(lifeline: tuple[IO[bytes], int]) -> None:
    """A Process that is collected while it runs warns, and its sandbox is gone."""
    reader, writer = lifeline
    process = Sandbox().spawn([SH, "-c", TREE], stdout=DEVNULL, pass_fds=[writer])
    os.close(writer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del process
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    assert reader.read() == b""


def test_exception_in_with_waits_for_the_payload() -> None:
    """Leaving the with block by an exception closes the pipes and reaps the payload."""
    with (
        pytest.raises(RuntimeError),
        Sandbox().spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE) as process,
    ):
        raise RuntimeError
    assert process.returncode == 0


_CYCLE = """
import gc, nsbox
from nsbox._forks import this_process

class Late:
    def __del__(self):
        print(self.child.record.owner == this_process(), self.watch.struct.wall_time == 10**12)

gc.disable()
process = nsbox.Sandbox(limits=nsbox.Limits(wall_time=1000)).spawn(["/bin/sleep", "1000"])
late = Late()
late.child, late.watch = process._payload.child, process._payload.place.fence._watch
late.process, late.cycle = process, late
del process, late
gc.collect()
"""


def test_record_lives_as_long_as_who_uses_it() -> None:
    """In a cycle that is collected, a __del__ finds the record whole after its destructor ran."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "MALLOC_PERTURB_": "85"}
    command = [sys.executable, "-c", _CYCLE]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert result.stdout == "True True\n"


@pytest.mark.parametrize("mode", ["plain", "init", "live"])
def test_watch_that_another_thread_removes(
    mode: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """What the end of the program lets go of while a thread starts it: that start fails."""
    if mode == "live":
        request.getfixturevalue("cgroups")
    make = Fence._make_watch

    def removed(fence: Fence) -> Watch | None:
        watch = make(fence)
        assert watch is not None
        watch.add()
        watch.remove()
        return watch

    limits = Limits(wall_time=1000)
    with Sandbox().open() as live:
        box = Sandbox(limits=limits, init=mode == "init")
        run = partial(live.run, limits=limits) if mode == "live" else box.run
        with monkeypatch.context() as patch:
            patch.setattr(Fence, "_make_watch", removed)
            with pytest.raises(SpawnError) as caught:
                run(["/bin/true"])
        assert (caught.value.step, caught.value.errno) == (Step.WATCH, errno.ECANCELED)
        assert run(["/bin/true"]).returncode == 0


# ---- others that wait -----------------------------------------------------


def test_sigchld_ignored_by_the_caller() -> None:
    """With SIGCHLD ignored the kernel reaps the payload, and wait() still returns its status."""

    def child() -> tuple[int, int | None]:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        result = Sandbox().run([SH, "-c", "exit 3"])
        process = Sandbox().spawn(["/bin/true"])
        return result.returncode, process.wait(DEADLINE)

    status, other = in_child(child)
    # Before Linux 6.15 the status is lost; subprocess assumes success too.
    assert status in ((3,) if _keeps_status() else (0, 3))
    assert other == 0


@pytest.mark.parametrize("mode", ["live", "pool", "init"])
def test_sigchld_ignored_around_an_init(mode: str) -> None:
    """An init hears of the ends of its processes, which ignore SIGCHLD as their caller does."""

    def child() -> tuple[int, str, bool]:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        box = Sandbox(init=mode != "live")
        places: dict[str, Callable[[], Any]] = {
            "live": box.open,
            "pool": partial(box.pool, 1),
            "init": partial(nullcontext, box),
        }
        with places[mode]() as where:
            status = where.run([SH, "-c", "exit 3"]).returncode
            look = ["/bin/grep", "SigIgn", "/proc/self/status"]
            ignored = where.run(look, capture_output=True, text=True).stdout.split()[1]
            try:
                where.run(["/missing"])
            except FileNotFoundError:
                return status, ignored, True
        return status, ignored, False

    status, ignored, failed = in_child(child)
    assert (status, failed) == (3, True)
    assert int(ignored, 16) >> signal.SIGCHLD - 1 & 1


def _keeps_status() -> bool:
    release = os.uname().release.split("-")[0].split(".")
    return (int(release[0]), int(release[1])) >= (6, 15)


@pytest.mark.one_kernel
def test_other_threads_reap_all_children() -> None:
    """Where other threads call waitpid(-1) in a loop, wait() returns the status nevertheless."""

    def child() -> list[int]:
        stop = threading.Event()

        def reaper() -> None:
            while not stop.is_set():
                try:
                    os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    pass

        threads = [threading.Thread(target=reaper) for _ in range(3)]
        for thread in threads:
            thread.start()
        box = Sandbox()
        statuses = [box.run([SH, "-c", "exit 3"]).returncode for _ in range(300)]
        stop.set()
        for thread in threads:
            thread.join()
        return statuses

    statuses = in_child(child)
    assert set(statuses) <= ({3} if _keeps_status() else {0, 3})


def test_waits_from_several_threads() -> None:
    """Several threads may wait for one process; all get its status."""
    with Sandbox().spawn([SH, "-c", "read x; exit 6"], stdin=PIPE) as process:
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda: statuses.append(process.wait())) for _ in range(4)
        ]
        threads += [
            threading.Thread(target=lambda: statuses.append(process.wait(DEADLINE)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        stdin_of(process).close()
        for thread in threads:
            thread.join()
    assert statuses == [6] * 8


def interrupt_main(over: threading.Event) -> None:
    """Send SIGINT to the main thread, and again as long as it has not heard."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)
    # One that comes right before a blocking call ends none, as everywhere in Python.
    while not over.wait(5):
        signal.pthread_kill(main, signal.SIGINT)


def test_keyboard_interrupt_in_run_kills_the_sandbox(lifeline: tuple[IO[bytes], int]) -> None:
    """KeyboardInterrupt during run() leaves no process of the sandbox."""
    reader, writer = lifeline

    def child() -> str:
        ready, told = os.pipe()
        over = threading.Event()

        def interrupt() -> None:
            os.read(ready, 1)  # the payload runs, and so run() waits, or is about to
            interrupt_main(over)

        signal.signal(signal.SIGINT, signal.default_int_handler)
        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            Sandbox().run([SH, "-c", TREE], stdin=DEVNULL, stdout=told, pass_fds=[writer])
        except KeyboardInterrupt:
            return "interrupted"
        finally:
            over.set()
            thread.join()
        return "returned"

    outcome = in_child(child)
    os.close(writer)
    assert outcome == "interrupted"
    assert reader.read() == b""


def test_keyboard_interrupt_during_the_spawn_leaves_nothing(
    lifeline: tuple[IO[bytes], int],
) -> None:
    """KeyboardInterrupt while a spawn is under way leaves no process of the sandbox."""
    reader, writer = lifeline

    def child() -> list[str]:
        box = Sandbox()
        box.run(["/bin/true"])
        about_to_spawn, over = threading.Event(), threading.Event()
        null = os.open("/dev/null", os.O_WRONLY)  # now, as it lets go of the interpreter too

        def interrupt() -> None:
            about_to_spawn.wait()  # goes on when the main thread lets go of the interpreter
            interrupt_main(over)

        signal.signal(signal.SIGINT, signal.default_int_handler)
        thread = threading.Thread(target=interrupt)
        thread.start()
        outcome = "returned"
        try:
            about_to_spawn.set()
            box.run([SH, "-c", TREE], stdout=null, pass_fds=[writer])
        except KeyboardInterrupt:
            outcome = "interrupted"
        finally:
            over.set()
            thread.join()
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [outcome, file.read()]

    outcome = in_child(child)
    os.close(writer)
    assert outcome == ["interrupted", ""]
    assert reader.read() == b""


# ---- whose end is whose ---------------------------------------------------

_CALLER = """
import os, sys
from nsbox import Sandbox
writer = int(sys.argv[1])
script = "echo ready; exec sleep 1000"
Sandbox().{call}(["/bin/sh", "-c", script], pass_fds=[writer]){wait}
"""


def _kill_caller(program: str, writer: int) -> None:
    """Run a program that hands a lifeline on to a payload; kill it when that one runs."""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(writer)],
        stdout=PIPE,
        pass_fds=[writer],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    ) as caller:
        os.close(writer)
        assert caller.stdout is not None
        assert caller.stdout.readline() == b"ready\n"
        caller.kill()
        caller.wait()


@pytest.mark.parametrize(("call", "wait"), [("run", ""), ("spawn", ".wait()")])
def test_payload_dies_with_the_caller(
    lifeline: tuple[IO[bytes], int], call: str, wait: str
) -> None:
    """A caller that is killed while its main thread waits takes the sandbox along."""
    reader, writer = lifeline
    _kill_caller(_CALLER.format(call=call, wait=wait), writer)
    assert ends(reader)
    assert reader.read() == b""


def test_payload_of_run_in_a_thread_dies_with_the_caller(
    lifeline: tuple[IO[bytes], int],
) -> None:
    """The same where run() is called by another thread than the main one."""
    reader, writer = lifeline
    program = """
import sys, threading
from nsbox import Sandbox
def work():
    script = "echo ready; exec sleep 1000"
    Sandbox().run(["/bin/sh", "-c", script], pass_fds=[int(sys.argv[1])])
threading.Thread(target=work).start()
"""
    _kill_caller(program, writer)
    assert ends(reader)


def test_payload_outlives_the_thread_that_spawned_it() -> None:
    """A payload that a thread has spawned keeps running when that thread ends."""
    processes: list[Process] = []
    thread = threading.Thread(
        target=lambda: processes.append(Sandbox().spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE))
    )
    thread.start()
    tid = thread.native_id
    thread.join()
    deadline = time.monotonic() + DEADLINE
    while os.path.exists(f"/proc/self/task/{tid}"):  # join() returns just before the end
        assert time.monotonic() < deadline
    with processes[0] as process:
        assert process.communicate(b"alive")[0] == b"alive"
        assert process.returncode == 0


@pytest.mark.one_kernel
def test_many_threads_spawn_at_once() -> None:
    """Spawns from many threads do not disturb each other."""
    outputs: list[bytes] = []

    def work(number: int) -> None:
        for _ in range(10):
            result = Sandbox().run(["/bin/echo", str(number)], capture_output=True)
            outputs.append(result.stdout)

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outputs) == sorted(
        f"{number}\n".encode() for number in range(8) for _ in range(10)
    )


def test_spawn_in_a_forked_child() -> None:
    """A Sandbox that was used before os.fork() works in the child."""
    box = Sandbox()
    box.run(["/bin/true"])
    assert in_child(lambda: box.run([SH, "-c", "exit 9"]).returncode) == 9


def test_handler_of_sigchld_sees_the_payload() -> None:
    """The end of a payload raises SIGCHLD in the caller, as any child's does."""

    def child() -> int:
        seen = []
        signal.signal(signal.SIGCHLD, lambda *_: seen.append(1))
        Sandbox().run(["/bin/true"])
        return len(seen)

    assert in_child(child) == 1


def test_failed_spawn_raises_no_sigchld() -> None:
    """A spawn that fails is invisible to the caller's SIGCHLD handler."""

    def child() -> int:
        seen = []
        signal.signal(signal.SIGCHLD, lambda *_: seen.append(1))
        try:
            Sandbox().run(["/missing"])
        except FileNotFoundError:
            pass
        return len(seen)

    assert in_child(child) == 0
