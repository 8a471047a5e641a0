"""
Ways to start a program and wait for its end, each as a function that returns how long it took.

All of them are timed in Python around the call a user would write, and check that it worked.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from tempfile import TemporaryDirectory
from typing import Any

from nsbox import Bind, NsboxError, Proc, Result, Sandbox

Sampler = Callable[[], int]

NO_LAYERS: dict[str, Any] = {
    "seccomp": None,
    "landlock": False,
    "user_namespaces": True,
    "mounts": (Proc(only_processes=True),),
}
"""No filter, no Landlock, no limit of user namespaces, no read-only /proc and no masks in it."""


class Unavailable(Exception):
    """A contender cannot run here; the message says why."""


def in_turn(
    samplers: Mapping[str, Sampler], rounds: int, warm_up: int, seed: int
) -> dict[str, list[int]]:
    """
    Take one sample of each in every round, in an order drawn anew for each round.

    The first rounds, which warm caches up, are dropped.
    """
    order = random.Random(seed)
    samples: dict[str, list[int]] = {name: [] for name in samplers}
    names = list(samplers)
    for number in range(warm_up + rounds):
        order.shuffle(names)
        for name in names:
            sample = samplers[name]()
            if number >= warm_up:
                samples[name].append(sample)
    return samples


def find_payload() -> list[str]:
    """
    Find the program that every contender starts: the smallest there is, a static `true`.

    A dynamic one would spend more time in the loader than in any of the sandboxes.

    Raises:
        Unavailable: busybox is not installed.
    """
    busybox = shutil.which("busybox")
    if busybox is None:
        raise Unavailable("busybox is not on PATH; it is the static program that is started")
    return [os.path.realpath(busybox), "true"]


def by_command(
    argv: Sequence[str], stdio: int | None = None, *, new_session: bool = False
) -> Sampler:
    """
    Start argv by subprocess.run, the way a caller of a sandbox binary does.

    Args:
        argv: program and arguments.
        stdio: descriptor for all three standard streams; None inherits the caller's.
        new_session: start a session, which the scheduler may take for a unit of its own.
    """
    command = list(argv)

    def sample() -> int:
        start = time.perf_counter_ns()
        subprocess.run(
            command,
            check=True,
            stdin=stdio,
            stdout=stdio,
            stderr=stdio,
            start_new_session=new_session,
        )
        return time.perf_counter_ns() - start

    return sample


def by_posix_spawn(argv: Sequence[str]) -> Sampler:
    """
    Start argv by os.posix_spawn: the least that starting a process from Python can cost.
    """
    command = list(argv)

    def sample() -> int:
        start = time.perf_counter_ns()
        pid = os.posix_spawn(command[0], command, os.environ)
        _, status = os.waitpid(pid, 0)
        elapsed = time.perf_counter_ns() - start
        _expect_success("posix_spawn", os.waitstatus_to_exitcode(status))
        return elapsed

    return sample


def by_fork(argv: Sequence[str]) -> Sampler:
    """
    Start argv by os.fork and exec, whose cost grows with the memory of the caller.
    """
    command = list(argv)

    def sample() -> int:
        start = time.perf_counter_ns()
        pid = os.fork()
        if pid == 0:
            try:
                os.execv(command[0], command)
            finally:
                os._exit(127)
        _, status = os.waitpid(pid, 0)
        elapsed = time.perf_counter_ns() - start
        _expect_success("fork and exec", os.waitstatus_to_exitcode(status))
        return elapsed

    return sample


def by_nsbox(argv: Sequence[str]) -> Sampler:
    """
    Start argv in a Sandbox that is described once and used for every sample.

    Raises:
        Unavailable: nsbox refuses to run here.
    """
    box = Sandbox()
    return _by_sandbox(lambda command: box.run(command).returncode, argv)


def by_spawn(argv: Sequence[str]) -> Sampler:
    """
    The same by spawn and wait, without what run adds.

    Raises:
        Unavailable: nsbox refuses to run here.
    """
    box = Sandbox()
    return _by_sandbox(lambda command: box.spawn(command).wait(), argv)


def by_drop_in(argv: Sequence[str]) -> Sampler:
    """
    The same by the run of box.subprocess, as existing code calls it.

    Raises:
        Unavailable: nsbox refuses to run here.
    """
    module = Sandbox().subprocess
    return _by_sandbox(lambda command: int(module.run(command).returncode), argv)


def by_new_sandbox(argv: Sequence[str]) -> Sampler:
    """
    Start argv in a Sandbox that is described, validated and lowered again for every sample.

    Raises:
        Unavailable: nsbox refuses to run here.
    """
    return _by_sandbox(lambda command: Sandbox().run(command).returncode, argv)


def by_directory(argv: Sequence[str], stack: ExitStack) -> Sampler:
    """
    Start argv in a Sandbox that differs from all before it in the directory that it shows.

    Raises:
        Unavailable: nsbox refuses to run here.
    """
    parent = stack.enter_context(TemporaryDirectory())
    numbers = count()

    def run(command: Sequence[str]) -> int:
        directory = os.path.join(parent, str(next(numbers)))
        os.mkdir(directory)
        return Sandbox(mounts=[Bind(directory, "/work")]).run(command).returncode

    return _by_sandbox(run, argv)


def by_box(box: Sandbox, argv: Sequence[str]) -> Sampler:
    """
    Start argv in a given Sandbox.

    Raises:
        Unavailable: nsbox refuses to run here.
    """
    return by_run(box.run, argv)


def by_run(run: Callable[[Sequence[str]], Result], argv: Sequence[str]) -> Sampler:
    """
    Start argv by the run of a Sandbox, a Live or a Pool.

    Raises:
        Unavailable: nsbox refuses to run here.
    """
    return _by_sandbox(lambda command: run(command).returncode, argv)


def _by_sandbox(run: Callable[[Sequence[str]], int], argv: Sequence[str]) -> Sampler:
    command = list(argv)

    def sample() -> int:
        start = time.perf_counter_ns()
        returncode = run(command)
        elapsed = time.perf_counter_ns() - start
        _expect_success("nsbox", returncode)
        return elapsed

    try:
        sample()
    except NsboxError as error:
        raise Unavailable(f"nsbox cannot run here: {error}") from error
    return sample


def _expect_success(what: str, returncode: int) -> None:
    """
    Refuse to time a failure: it is usually the fastest of all.
    """
    if returncode != 0:
        raise RuntimeError(f"{what}: the program ended with {returncode} instead of 0")
