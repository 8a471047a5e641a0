"""Payloads that other threads than the main one have spawned: they live and die with the caller."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from conftest import needs_kernel_of, why_no_cgroup
from nsbox import PIPE, Limits, Namespace, Process, Sandbox, lowlevel
from nsbox.lowlevel import CloneFlag
from support import SOURCE, ends, in_child

pytestmark = pytest.mark.usefixtures("box")

DEADLINE = 30.0
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE)}

# Spawns in a thread that ends, and reports when all is quiet.
PROGRAM = """
import os, sys, threading, time
import nsbox
from nsbox import *
writer = int(sys.argv[1])
SCRIPT = ["/bin/sh", "-c", "echo ready; exec sleep 1000"]
kept = []
def in_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    tid = thread.native_id
    thread.join()
    while os.path.exists(f"/proc/self/task/{tid}"):
        pass
"""
SPAWN = "in_thread(lambda: kept.append(Sandbox().spawn(SCRIPT, pass_fds=[writer])))"
WAYS = {
    "spawn": SPAWN,
    "popen": """
popen = Sandbox().subprocess.Popen
in_thread(lambda: kept.append(popen(SCRIPT, pass_fds=[writer])))
""",
    "launcher": """
box = Sandbox(limits=Limits(memory="64M", pids=16))
in_thread(lambda: kept.append(box.spawn(SCRIPT, pass_fds=[writer])))
""",
    "private memory": """
user = Namespace.create("user")
box = Sandbox(user=user)
in_thread(lambda: kept.append(box.spawn(SCRIPT, pass_fds=[writer])))
""",
    "pid of the host": """
box = Sandbox(pid="host")
in_thread(lambda: kept.append(box.spawn(SCRIPT, pass_fds=[writer])))
""",
    "with an init": """
box = Sandbox(init=True)
in_thread(lambda: kept.append(box.spawn(SCRIPT, pass_fds=[writer])))
""",
    "a thread of a thread": f"in_thread(lambda: {SPAWN})",
    "a fork of a thread": f"""
def fork():
    pid = os.fork()
    if pid == 0:
        {SPAWN}
        time.sleep(1000)
    print(pid, flush=True)
in_thread(fork)
os.close(writer)
""",
}


@pytest.fixture
def lifeline() -> Iterator[tuple[IO[bytes], int]]:
    """A pipe that ends when all processes that hold it are gone: a file, and the fd to pass."""
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as file:
        yield file, writer


def children_of_main_thread(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("way", WAYS)
def test_dies_with_the_caller(lifeline: tuple[IO[bytes], int], way: str) -> None:
    """A caller that is killed when the spawning thread has ended takes its sandbox along."""
    reader, writer = lifeline
    if way == "launcher" and (reason := why_no_cgroup()) is not None:
        os.close(writer)
        pytest.skip(reason)
    program = f"{PROGRAM}{WAYS[way]}\ntime.sleep(1000)"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(writer)],
        stdout=PIPE,
        pass_fds=[writer],
        env=ENVIRONMENT,
        start_new_session=True,
    ) as caller:
        os.close(writer)
        assert caller.stdout is not None
        victim = caller.pid
        if way == "a fork of a thread":
            # Its number, from the caller, and what the payload says, whichever is first.
            number, ready = sorted(caller.stdout.readline() for _ in range(2))
            victim = int(number)
        else:
            ready = caller.stdout.readline()
        assert ready == b"ready\n"
        os.kill(victim, signal.SIGKILL)
        assert ends(reader)
        caller.kill()


def spawned_by_a_thread(spawn: Callable[[], Process]) -> Process:
    """Return what a thread has spawned that is gone by then."""
    processes: list[Process] = []
    thread = threading.Thread(target=lambda: processes.append(spawn()))
    thread.start()
    tid = thread.native_id
    thread.join()
    deadline = time.monotonic() + DEADLINE
    while os.path.exists(f"/proc/self/task/{tid}"):  # join() returns just before the end
        assert time.monotonic() < deadline
    return processes[0]


def lives(process: Process) -> bool:
    with process:
        return bool(process.communicate(b"alive")[0] == b"alive" and process.returncode == 0)


@pytest.mark.parametrize(
    "fields", [{}, {"pid": "host"}, {"namespaces": "none"}, {"init": True}], ids=str
)
def test_outlives_the_thread(fields: dict[str, Any]) -> None:
    """The end of the thread that spawned it is nothing to a payload."""
    needs_kernel_of(fields)
    box = Sandbox(**fields)
    assert lives(spawned_by_a_thread(lambda: box.spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE)))


@pytest.mark.usefixtures("cgroups")
def test_outlives_the_thread_with_limits() -> None:
    """The same where a launcher makes it."""
    box = Sandbox(limits=Limits(memory="64M", pids=16, wall_time=60))
    assert lives(spawned_by_a_thread(lambda: box.spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE)))


def test_outlives_the_thread_in_a_joined_namespace() -> None:
    """The same where the launcher has a copy of the memory."""
    with Namespace.create("user") as user:
        box = Sandbox(user=user)
        assert lives(spawned_by_a_thread(lambda: box.spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE)))


def test_is_a_child_of_the_main_thread(box: Sandbox) -> None:
    """It has not merely been left alone: the kernel lists it as the main thread's."""
    with spawned_by_a_thread(lambda: box.spawn(["/bin/cat"], stdin=PIPE)) as process:
        assert process.pid in children_of_main_thread(os.getpid())


def test_the_context_is_that_of_the_calling_thread(box: Sandbox) -> None:
    """Whoever makes the clone in between changes nothing: affinity, as an example."""
    one = {min(os.sched_getaffinity(0))}

    def spawn() -> Process:
        os.sched_setaffinity(0, one)
        return box.spawn(["/bin/cat"], stdin=PIPE)

    with spawned_by_a_thread(spawn) as process:
        assert os.sched_getaffinity(process.pid) == one


@pytest.mark.one_kernel
def test_many_threads_at_once(box: Sandbox) -> None:
    """Each waits for its own child."""
    statuses: list[int] = []

    def work(number: int) -> None:
        command = ["/bin/sh", "-c", f"exit {number}"]
        statuses.extend(box.spawn(command).wait() for _ in range(10))

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == sorted([*range(8)] * 10)


def test_a_failure_is_reported(box: Sandbox) -> None:
    """A spawn that fails in a thread says so, as elsewhere."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            box.spawn(["/missing"])
        except FileNotFoundError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(errors) == 1


# ---- where it cannot be -----------------------------------------------------------------

REPORT = """
def spawn():
    try:
        kept.append(Sandbox().spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE))
    except SpawnError as error:
        print(error.step, error.errno, flush=True)
in_thread(spawn)
for process in kept:
    print(process.communicate(b"alive")[0].decode(), process.returncode, flush=True)
"""


@pytest.mark.one_kernel
@pytest.mark.parametrize(
    ("error", "report"),
    [("EAGAIN", f"clone3 {errno.EAGAIN}\n"), ("EINVAL", "alive 0\n")],
)
def test_a_thread_that_cannot_be_made(strace: str, error: str, report: str) -> None:
    """No resources: an error. Where the kernel permits no thread, the payload lives on alone."""
    inject = ["-e", "trace=clone", "-e", f"inject=clone:error={error}"]
    result = subprocess.run(
        [strace, "-f", "-o", "/dev/null", *inject, sys.executable, "-c", PROGRAM + REPORT, "0"],
        stdout=PIPE,
        text=True,
        check=True,
        env=ENVIRONMENT,
    )
    assert result.stdout == report


def test_a_thread_with_a_pid_namespace_for_its_children(root: None) -> None:
    """It may make no threads; what it spawns outlives it."""

    def child() -> bool:
        def spawn() -> Process:
            lowlevel.unshare(CloneFlag.CLONE_NEWPID)
            return Sandbox(pid="host").spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE)

        return lives(spawned_by_a_thread(spawn))

    assert in_child(child)


def test_the_main_thread_has_ended() -> None:
    """Then it is no parent: the payload outlives both threads."""
    exit_number = {"x86_64": 60, "aarch64": 93}[os.uname().machine]
    program = f"""{PROGRAM}
import ctypes
def work():
    stat = f"/proc/self/task/{{os.getpid()}}/stat"
    while open(stat).read().rpartition(") ")[2][0] != "Z":
        pass
    {REPORT.replace(chr(10), chr(10) + "    ")}
    os._exit(0)
threading.Thread(target=work).start()
ctypes.CDLL(None).syscall({exit_number}, 0)
"""
    result = subprocess.run(
        [sys.executable, "-c", program, "0"], stdout=PIPE, text=True, check=True, env=ENVIRONMENT
    )
    assert result.stdout == "alive 0\n"
