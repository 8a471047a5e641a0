"""Sandboxes made ahead: each used once, never stale, never in the way of anybody."""

import errno
import gc
import os
import pickle
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import fingerprint
import nsbox._stock
import nsbox.lowlevel
import nsbox.pool
from conftest import children, open_fds
from nsbox import (
    DEVNULL,
    PIPE,
    Bind,
    CalledProcessError,
    Cgroup,
    CgroupError,
    Limits,
    Namespace,
    NsboxError,
    Overlay,
    PlanError,
    Pool,
    Process,
    Reason,
    Result,
    Sandbox,
    SpawnError,
    Step,
    Tmpfs,
    UnsupportedError,
)
from nsbox._cgroup_files import Reader
from nsbox._child import Child
from nsbox._control import Control, Mode
from nsbox._fence import Figures
from nsbox._request import Request
from nsbox._stock import Member, Stock
from nsbox.errors import spawn_error
from support import (
    CHILD_DEADLINE,
    PYTHON,
    SOURCE,
    ends,
    enter_private_mounts,
    expired,
    expose,
    full,
    in_child,
    in_time,
    interruptions,
    meanwhile,
    mount_tmpfs,
    no_descriptors,
    python_box,
    stdin_of,
    stdout_of,
    until,
)

pytestmark = pytest.mark.usefixtures("box")

TRUE = ["/bin/true"]
CAT = ["/bin/cat"]
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38


@pytest.fixture
def pool(box: Sandbox) -> Iterator[Pool]:
    with box.pool(2) as made:
        yield full(made)


def shell(pool: Pool, command: str, **options: Any) -> str:
    result = pool.run(["/bin/sh", "-c", command], capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stderr
    return str(result.stdout).strip()


def called(name: str) -> set[int]:
    """Return the children of that name: of the init's, that is, who waits in a sandbox."""
    found = set()
    for pid in children():
        try:
            if Path(f"/proc/{pid}/comm").read_text() == f"{name}\n":
                found.add(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


# ---- the same as a fresh one -------------------------------------------------


def test_result_is_that_of_a_sandbox(box: Sandbox, pool: Pool) -> None:
    """Status, output, reason and layers are those of the Sandbox."""
    args = ["/bin/sh", "-c", "cat; echo error >&2; exit 3"]
    warm = pool.run(args, input=b"text", capture_output=True)
    cold = box.run(args, input=b"text", capture_output=True)
    assert (warm.returncode, warm.stdout, warm.stderr) == (3, b"text", b"error\n")
    assert (warm.args, warm.reason, warm.enforced) == (cold.args, cold.reason, cold.enforced)
    assert pool.stats().warm == 1


def test_world_is_that_of_a_sandbox(box: Sandbox, pool: Pool) -> None:
    """Ids, privileges, limits, mounts and the place in the tree of processes are the same."""
    command = (
        "echo $$; grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Sig)' /proc/self/status;"
        "ulimit -a; umask; nice; env | sort; pwd; hostname; ls -l /proc/self/fd | wc -l;"
        "cut -d' ' -f4- /proc/self/mountinfo | sed 's/ext4.*//' | sort; cat /proc/self/cgroup"
    )
    args = ["/bin/sh", "-c", command]
    warm = pool.run(args, capture_output=True, text=True, stdin=DEVNULL)
    cold = box.run(args, capture_output=True, text=True, stdin=DEVNULL)
    assert warm.stdout == cold.stdout
    assert pool.stats().warm == 1


def test_each_sandbox_is_used_once(pool: Pool) -> None:
    """Nothing that one process leaves is there for another, and no namespace is the same."""
    command = "cat /tmp/left; echo text > /tmp/left; readlink /proc/self/ns/*"
    first, second = shell(pool, command), shell(pool, command)
    assert pool.stats().warm == 2
    names = [{line for line in out.splitlines() if ":" in line} for out in (first, second)]
    common = {name.partition(":")[0] for name in names[0] & names[1]}
    assert "text" not in second
    assert common <= {"time", "time_for_children"}


def test_options_of_a_spawn(pool: Pool) -> None:
    """Streams, descriptors, variables, directory, umask and program are the spawn's own."""
    reader, writer = os.pipe()
    with (
        open(reader, "rb"),
        open(writer, "wb"),
        pool.spawn(
            "echo $VARIABLE; umask; pwd; cat; ls /proc/$$/fd",
            shell=True,
            executable="/bin/sh",
            stdin=PIPE,
            stdout=PIPE,
            text=True,
            env={"VARIABLE": "value"},
            cwd="/tmp",
            umask=0o27,
            pass_fds=[writer],
        ) as process,
    ):
        output, _ = process.communicate("text\n")
    assert output == f"value\n0027\n/tmp\ntext\n0\n1\n2\n{writer}\n"
    assert pool.stats().warm == 1


@pytest.mark.parametrize(
    "options",
    [
        {"start_new_session": False},
        {"process_group": 0, "start_new_session": False},
        {"restore_signals": False},
        {"user": 0, "group": 0},
    ],
    ids=str,
)
def test_what_needs_a_fresh_sandbox_gets_one(pool: Pool, options: dict[str, Any]) -> None:
    """What an init that waits could not do is done all the same, and counted."""
    assert pool.run(TRUE, **options).returncode == 0
    stats = pool.stats()
    assert (stats.warm, stats.cold, stats.stale) == (0, 1, 0)


def test_large_arguments(pool: Pool) -> None:
    """Arguments and variables of a megabyte arrive."""
    big = "x" * 100_000
    result = pool.run(
        ["/bin/sh", "-c", 'echo "$*$V0$V9" | wc -c', "-", *[big] * 5],
        env={f"V{number}": big for number in range(10)},
        capture_output=True,
    )
    assert int(result.stdout) == 700_000 + 4 + 1
    assert pool.stats().warm == 1


def test_more_descriptors_than_a_message_takes(pool: Pool) -> None:
    """What does not fit into a message to the init goes to a fresh sandbox."""
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(300)]
    try:
        assert pool.run(TRUE, pass_fds=fds).returncode == 0
    finally:
        for fd in fds:
            os.close(fd)
    assert pool.stats().cold == 1


def test_program_that_is_missing(pool: Pool) -> None:
    """It is the error of a Sandbox, and no other sandbox is tried."""
    with pytest.raises(SpawnError) as caught:
        pool.run(["/missing"])
    assert isinstance(caught.value, FileNotFoundError)
    assert (caught.value.step, caught.value.path) == ("execve", "/missing")
    assert (pool.stats().warm, pool.stats().cold) == (1, 0)
    with pytest.raises(SpawnError, match="chdir"):
        pool.run(TRUE, cwd="/missing")


def test_timeout_and_check(pool: Pool) -> None:
    """TimeoutExpired carries what was captured, CalledProcessError the status."""
    command = ["/bin/sh", "-c", "echo out; exec sleep 1000"]
    late = expired(lambda timeout: pool.run(command, capture_output=True, timeout=timeout))
    assert late.stdout == b"out\n"
    with pytest.raises(CalledProcessError) as failed:
        pool.run(["/bin/sh", "-c", "exit 4"], check=True)
    assert failed.value.returncode == 4


def test_drop_of_privileges_with_late_filter() -> None:
    """A filter that leaves the init no room holds for the process."""
    with Sandbox(seccomp="strict").pool(1) as pool:
        assert pool.run(["/bin/sh", "-c", "true & wait"], stderr=DEVNULL).returncode != 0
        assert pool.stats().warm == 1


LISTEN = """
import ctypes, os, platform
number = {"x86_64": 317, "aarch64": 277}[platform.machine()]
libc = ctypes.CDLL(None, use_errno=True)
allow = ctypes.create_string_buffer(b"\\x06\\0\\0\\0\\0\\0\\xff\\x7f", 8)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
program = Program(1, ctypes.addressof(allow))
listener = libc.syscall(number, 1, 8, ctypes.byref(program))
"""
"""Installs a filter that allows all, with SECCOMP_FILTER_FLAG_NEW_LISTENER (seccomp_unotify(2))."""


@pytest.mark.parametrize(("init", "number"), [(False, errno.EBUSY), (True, 0)])
def test_filter_is_held(init: bool, number: int) -> None:
    """What is held of a filter is the one listener that there can be, and only in a pool."""
    box = python_box(init=init)
    command = [*PYTHON, f"{LISTEN}os._exit(ctypes.get_errno() if listener < 0 else 0)"]
    assert box.run(command).returncode == 0
    with box.pool(2) as pool:
        assert full(pool).run(command).returncode == number
        with full(pool).spawn(command) as process:
            assert process.wait(CHILD_DEADLINE) == number
        assert pool.stats().warm == 2


def test_no_descriptors_for_what_is_heard() -> None:
    """How a run has ended needs none, whatever the end, and however long it has taken."""

    def child() -> list[object]:
        ends: list[object] = []
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        for args in (["/bin/false"], ["/no"], ["/bin/sleep", "0.5"]):
            with Sandbox().pool(1) as pool, ExitStack() as taken:
                full(pool)
                with suppress(OSError):
                    while True:
                        taken.callback(os.close, os.dup(0))
                try:
                    ends.append(pool.run(args).returncode)
                except FileNotFoundError:
                    ends.append(FileNotFoundError)
        return ends

    assert in_child(child) == [1, FileNotFoundError, 0]


def test_filter_that_cannot_be_held() -> None:
    """Below a filter that has a listener a pool does without one of its own."""

    def child() -> tuple[bool, int, int]:
        nsbox.lowlevel.prctl(PR_SET_NO_NEW_PRIVS, 1)
        names: dict[str, Any] = {}
        exec(LISTEN, names)
        with Sandbox().pool(1) as pool:
            return names["listener"] >= 0, full(pool).run(TRUE).returncode, pool.stats().warm

    assert in_child(child) == (True, 0, 1)


def test_init_that_stays() -> None:
    """With init=True the process is not the first, and what it leaves ends with it."""
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as lifeline, Sandbox(init=True).pool(1) as pool:
        result = full(pool).run(
            ["/bin/sh", "-c", "setsid sleep 1000 & cat /proc/1/comm; echo $PPID"],
            pass_fds=[writer],
            capture_output=True,
            text=True,
        )
        os.close(writer)
        assert lifeline.read() == b""
        assert result.stdout == "nsbox-init\n1\n"
        with full(pool).spawn(CAT, stdin=PIPE) as process:
            process.terminate()
            assert process.wait(CHILD_DEADLINE) == -signal.SIGTERM
        assert pool.stats().warm == 2


def test_member_without_room_for_descriptors() -> None:
    """An init that cannot take them all gives way to a fresh sandbox, in silence."""

    def child() -> tuple[int, int, int, bytes]:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (96, hard))
        with Sandbox().pool(1) as pool:
            full(pool)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            passed = [os.open(os.devnull, os.O_RDONLY) for _ in range(100)]
            peer, stdin = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with peer, stdin:
                status = pool.run(TRUE, stdin=stdin.fileno(), pass_fds=passed).returncode
                stdin.close()
                return status, pool.stats().warm, pool.stats().cold, peer.recv(4096)

    assert in_child(child) == (0, 0, 1, b"")


# ---- limits --------------------------------------------------------------------


def test_wall_time_begins_with_the_process(box: Sandbox) -> None:
    """A sandbox may wait longer than its process may run."""

    def attempt(wall_time: float) -> bool | None:
        with Sandbox(limits=Limits(wall_time=wall_time)).pool(1) as pool:
            begin = time.monotonic()
            while time.monotonic() < begin + wall_time + 0.1:
                box.run(TRUE)
            result = pool.run(["/bin/sh", "-c", "exec sleep 1000"])
            warm = pool.stats().warm
            assert result.reason is Reason.WALL_TIME
            assert result.usage.wall_time >= wall_time
            result = full(pool).run(TRUE)
            # It has been in time, or it was not given less than its time.
            assert result.reason is Reason.EXIT or result.usage.wall_time >= wall_time
        # It is cold if the time was over before the process had begun.
        return warm == 1 or None

    assert in_time(attempt)


def test_limit_of_output() -> None:
    """Output beyond the limit ends the process, and what came before is there."""
    with Sandbox(limits=Limits(output=10)).pool(1) as pool:
        result = pool.run(["/bin/sh", "-c", "while :; do echo 1234; done"], capture_output=True)
    assert (result.reason, result.stdout) == (Reason.OUTPUT, b"1234\n1234\n")


@pytest.mark.usefixtures("cgroups")
def test_limits_of_a_cgroup() -> None:
    """Memory and processes are limited; the figures are the process's, the cgroup then goes."""
    limits = Limits(memory="64M", pids=5, cpu=1.0)
    with Sandbox(limits=limits).pool(2) as pool:
        hungry = full(pool).run(["/bin/sh", "-c", "tail /dev/zero"])
        forker = full(pool).run(FORKER, stderr=DEVNULL)
        modest = full(pool).run(TRUE)
        assert [result.reason for result in (hungry, forker, modest)] == [
            Reason.MEMORY,
            Reason.PIDS,
            Reason.EXIT,
        ]
        assert modest.usage.pids_peak in (1, None)
        assert modest.usage.memory_peak
        assert modest.usage.sources["memory_peak"].startswith("memory.")
        assert (pool.stats().warm, pool.stats().cold) == (3, 0)


FORKER = ["/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done"]


@pytest.mark.usefixtures("cgroups")
def test_figures_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for at once, later, or when nothing of the pool is left, they are the same."""
    cleared: list[Member] = []
    with Sandbox(limits=Limits(memory="64M", pids=5)).pool(2) as pool:
        with monkeypatch.context() as patched:
            # As if the thread had other things to do.
            patched.setattr(Stock, "clear_away", lambda _, member: cleared.append(member))
            at_once = full(pool).run(FORKER, stderr=DEVNULL)
            assert at_once.reason is Reason.PIDS
            later = full(pool).run(FORKER, stderr=DEVNULL)
        for member in cleared:
            pool._stock.clear_away(member)
    assert later.reason is Reason.PIDS
    assert pickle.loads(pickle.dumps(later)).reason is Reason.PIDS
    assert at_once.usage.pids_refused
    assert later.usage.pids_refused
    assert at_once.usage.memory_peak
    assert later.usage.memory_peak


@pytest.mark.usefixtures("cgroups")
def test_figures_that_nobody_can_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not read when the result has been forgotten, and once when it has not."""
    read: list[Cgroup] = []
    reader = Cgroup.reader

    def counted(cgroup: Cgroup, names: Iterable[str]) -> Reader:
        read.append(cgroup)
        return reader(cgroup, names)

    cleared: list[Member] = []
    monkeypatch.setattr(Cgroup, "reader", counted)
    box = Sandbox(limits=Limits(memory="64M"))
    with box.pool(1) as pool:
        with monkeypatch.context() as patched:
            # The thread gets it when its result has been forgotten, and not a moment before.
            patched.setattr(Stock, "clear_away", lambda _, member: cleared.append(member))
            assert full(pool).run(TRUE).returncode == 0
        pool._stock.clear_away(cleared.pop())
    assert not read
    with box.pool(1) as pool:
        kept = full(pool).run(TRUE)
    assert len(read) == 1
    assert kept.usage.memory_peak
    assert len(read) == 1


@pytest.mark.one_kernel
@pytest.mark.usefixtures("cgroups")
def test_figures_while_the_cgroup_is_removed() -> None:
    """Threads that look, and the one that removes what they look at, agree."""
    runs = 50
    with (
        Sandbox(limits=Limits(memory="64M", pids=5)).pool(2) as pool,
        ThreadPoolExecutor(4) as threads,
    ):
        for _ in range(runs):
            result = pool.run(TRUE)
            usages = list(threads.map(lambda result: result.usage, [result] * 4))
            assert usages[0].memory_peak
            assert usages == [usages[0]] * 4


def reason_of(result: Result) -> str:
    return str(result.reason)


@pytest.mark.usefixtures("cgroups")
def test_figures_in_a_fork() -> None:
    """What was not read before is not to be had there; nobody waits for a lock that is held."""
    with Cgroup.create(Limits(memory="64M")) as cgroup:
        figures = Figures(cgroup)
        with figures._lock:
            assert in_child(lambda: figures.read() is None)
        assert figures.read() is not None
        assert in_child(lambda: figures.read() is not None)
    with Sandbox(limits=Limits(pids=1)).pool(2) as pool:
        for _ in range(10):
            result = full(pool).run(["/bin/sh", "-c", "/bin/true; :"], stderr=DEVNULL)
            assert in_child(partial(reason_of, result)) == "pids"


@pytest.mark.usefixtures("cgroups")
def test_figures_without_descriptors() -> None:
    """Whoever cannot read them now is told so, and reads them later."""

    def child() -> tuple[int | None, str]:
        cleared: list[Member] = []
        number = None
        with (
            Sandbox(limits=Limits(pids=1)).pool(1) as pool,
            pytest.MonkeyPatch.context() as patched,
        ):
            patched.setattr(Stock, "clear_away", lambda _, member: cleared.append(member))
            result = full(pool).run(["/bin/sh", "-c", "/bin/true; :"], stderr=DEVNULL)
            with no_descriptors():
                try:
                    print(result.reason)
                except CgroupError as error:
                    number = error.errno
            patched.undo()
            pool._stock.clear_away(cleared[0])
        return number, str(result.reason)

    assert in_child(child) == (errno.EMFILE, "pids")


@pytest.mark.usefixtures("cgroups")
def test_cpu_time_is_limited() -> None:
    """Processor time is counted while the process runs."""
    with Sandbox(limits=Limits(cpu_time=0.3)).pool(1) as pool:
        result = pool.run(["/bin/sh", "-c", "while :; do :; done"])
        assert (result.reason, pool.stats().warm) == (Reason.CPU_TIME, 1)


@pytest.mark.usefixtures("cgroups")
def test_memory_too_small_to_start() -> None:
    """What does not even start says what it lacks; the first error comes out of pool()."""
    with pytest.raises(NsboxError, match="memory"):
        Sandbox(limits=Limits(memory="64K")).pool(1)


# ---- a cold one ---------------------------------------------------------------


def test_empty_pool_does_not_keep_anybody(box: Sandbox) -> None:
    """Who finds none gets a fresh sandbox at once."""
    with box.pool(1) as pool, ExitStack() as stack:
        processes: list[Process] = []
        # As long as the thread is faster they are warm.
        while not pool.stats().cold:
            process = pool.spawn(CAT, stdin=PIPE, stdout=PIPE)
            processes.append(stack.enter_context(process))
        for process in processes:
            assert process.communicate(b"text")[0] == b"text"
        stats = pool.stats()
        assert (stats.warm, stats.cold, stats.stale) == (len(processes) - 1, 1, 0)


@pytest.mark.one_kernel
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_exception_that_takes_one_away(box: Sandbox) -> None:
    """Wherever a signal handler raises while one is taken: there will be another."""
    number = 0
    with box.pool(1) as pool:
        full(pool)
        for _ in interruptions(
            lambda: pool.run(TRUE), (nsbox.pool.__file__, nsbox._stock.__file__)
        ):
            number += 1
            pool.run(TRUE)
            full(pool)
    assert number > 30


def test_number_is_bounded(box: Sandbox) -> None:
    """There are never more sandboxes than are to be ready, and those that run."""
    with box.pool(3) as pool:
        full(pool)
        for _ in range(20):
            pool.run(TRUE)
            assert pool.stats().ready <= 3
            assert len(called("nsbox-init")) <= 3
        full(pool)
        until(lambda: len(called("nsbox-init")) == 3)


def test_member_that_has_died(pool: Pool) -> None:
    """Sandboxes that were killed while they waited are replaced; nobody notices."""
    until(lambda: len(called("nsbox-init")) == 2)
    for pid in called("nsbox-init"):
        os.kill(pid, signal.SIGKILL)
    assert shell(pool, "echo text") == "text"
    assert shell(full(pool), "echo text") == "text"
    stats = pool.stats()
    # The first is cold, unless the thread has made another by then.
    assert (stats.stale, stats.warm + stats.cold) == (2, 2)


# ---- never stale ---------------------------------------------------------------


def test_command_whose_init_dies_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has said who it is may have run, whatever its init says of it."""
    started: list[int] = []

    def start(control: Control, request: Request, child: Child, mode: Mode) -> None:
        started.append(mode)
        child.record.pid = 12345
        raise spawn_error(errno.ESRCH, Step.INIT)

    with Sandbox(init=True).pool(1) as pool:
        monkeypatch.setattr(Control, "start", start)
        with pytest.raises(SpawnError):
            pool.run(["true"])
        monkeypatch.undo()
        assert started == [Mode.LAST]
        assert pool.stats().warm == 1


def test_source_that_was_replaced(tmp_path: Path) -> None:
    """A process sees what the path of a bind leads to when it starts."""
    expose(tmp_path)
    for name in ("old", "new"):
        expose_directory(tmp_path / name)
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "old").rename(tmp_path / "source")
    with Sandbox(mounts=[Bind(tmp_path / "source", "/data")]).pool(2) as pool:
        assert shell(full(pool), "cat /data/file") == "old"
        full(pool)
        (tmp_path / "source").rename(tmp_path / "old")
        (tmp_path / "new").rename(tmp_path / "source")
        assert shell(pool, "cat /data/file") == "new"
        assert pool.stats().stale == 2
        assert shell(full(pool), "cat /data/file") == "new"
        stats = pool.stats()
        # The second is cold, unless the thread has made another by then.
        assert (stats.stale, stats.warm + stats.cold) == (2, 3)
        assert stats.warm >= 2


def test_source_that_is_gone(tmp_path: Path) -> None:
    """A source that is missing is the error of a Sandbox, until it is there again."""
    expose(tmp_path)
    source = expose_directory(tmp_path / "source")
    with Sandbox(mounts=[Bind(source, "/data")]).pool(1) as pool:
        source.rmdir()
        for _ in range(2):
            with pytest.raises(SpawnError) as caught:
                pool.run(TRUE)
            assert (caught.value.step, caught.value.path) == ("open_tree", str(source))
        until(lambda: pool.stats().failed)
        error = pool.stats().error
        assert isinstance(error, SpawnError)
        assert error.path == str(source)
        expose_directory(source)
        for _ in range(2):
            assert full(pool).run(TRUE).returncode == 0
        # The first may be stale, if it was being made while the source was still missing.
        assert pool.stats().warm >= 1


def test_mount_below_a_source(tmp_path: Path) -> None:
    """What has been mounted meanwhile is there."""

    def child() -> tuple[str, str, int]:
        enter_private_mounts()
        expose(tmp_path)
        source = expose_directory(tmp_path / "source")
        sub = expose_directory(source / "sub")
        with Sandbox(mounts=[Bind(source, "/data")]).pool(1) as pool:
            before = shell(full(pool), "ls /data/sub")
            full(pool)
            mount_tmpfs(sub)
            (sub / "file").touch()
            return before, shell(pool, "ls /data/sub"), pool.stats().stale

    assert in_child(child) == ("", "file", 1)


def test_mount_point_that_was_moved_away(tmp_path: Path) -> None:
    """A mask stays where it was asked for, though its directory of the host has been renamed."""
    expose(tmp_path)
    tree = expose_directory(tmp_path / "tree")
    expose_directory(tree / "hidden")
    (tree / "hidden" / "secret").write_text("of the host\n")
    expose_directory(tmp_path / "other")
    box = Sandbox(mounts=[Bind(tree, "/tree"), Tmpfs("/tree/hidden")])
    with box.pool(1) as pool:
        assert shell(full(pool), "ls /tree/hidden") == ""
        full(pool)
        (tree / "hidden").rename(tmp_path / "other" / "moved")
        expose_directory(tree / "hidden")
        (tree / "hidden" / "secret").write_text("another\n")
        assert shell(pool, "ls /tree/hidden") == ""
        assert pool.stats().stale == 1


def test_mount_point_behind_a_link(tmp_path: Path) -> None:
    """Where links of a tree lead is looked for in the tree, as by a spawn."""
    tree = expose_directory(expose(tmp_path) / "tree")
    for name in ("target", "target/sub"):
        expose_directory(tree / name)
    (tree / "link").symlink_to("/tree/target")
    box = Sandbox(mounts=[Bind(tree, "/tree"), Tmpfs("/tree/link/sub")])
    with box.pool(1) as pool:
        shell(full(pool), "echo text > /tree/target/sub/file")
        assert pool.stats().warm == 1


def test_mount_that_another_one_hides(tmp_path: Path) -> None:
    """Whether it was moved cannot be told, so there is no pool, and the error names it."""
    tree = expose_directory(expose(tmp_path) / "tree")
    expose_directory(expose_directory(tree / "b") / "x")
    (tree / "a").symlink_to("b")
    box = Sandbox(mounts=[Bind(tree, "/tree"), Tmpfs("/tree/a/x"), Tmpfs("/tree/b")])
    with pytest.raises(SpawnError) as caught:
        box.pool(1)
    assert (caught.value.errno, caught.value.path) == (errno.ENOENT, "/tree/a/x")


def test_mount_within_a_mask(tmp_path: Path) -> None:
    """Nobody can see it, so nobody looks whether it is still there."""
    tree = expose_directory(expose(tmp_path) / "tree")
    expose_directory(expose_directory(tree / "a") / "b")
    box = Sandbox(mounts=[Bind(tree, "/tree"), Tmpfs("/tree/a/b")], masks=["/tree/a"])
    with box.pool(1) as pool:
        assert pool.run(["ls", "-A", "/tree/a"], capture_output=True).stdout == b""
        assert pool.stats().warm == 1


def test_namespace_that_was_closed() -> None:
    """A namespace to join that was closed is an error, though the sandboxes are in it."""
    with (
        Namespace.create("user") as user,
        Namespace.create("net", owner=user) as net,
        Sandbox(user=user, net=net).pool(1) as pool,
    ):
        assert full(pool).run(TRUE).returncode == 0
        full(pool)
        net.close()
        with pytest.raises(PlanError, match="closed"):
            pool.run(TRUE)


@pytest.mark.usefixtures("root")
def test_ids_of_the_caller() -> None:
    """After a change of ids it is the new ones that a sandbox runs with."""

    def child() -> tuple[int, int, int]:
        with Sandbox().pool(1) as pool:
            full(pool)
            os.setresgid(4711, 4711, 4711)
            os.setresuid(4711, 4711, 4711)
            fingerprint.prctl(PR_SET_DUMPABLE, 1)
            command = ["/bin/sh", "-c", "echo; read line"]
            with pool.spawn(command, stdin=PIPE, stdout=PIPE) as process:
                stdout_of(process).readline()  # right after its exec it is still root's
                owner = os.stat(f"/proc/{process.pid}").st_uid
            # That one is cold, unless the thread has made another by then.
            before = full(pool).stats().warm
            pool.run(TRUE)
            return owner, pool.stats().stale, pool.stats().warm - before

    assert in_child(child) == (4711, 1, 1)


def test_other_network_of_the_thread(box: Sandbox) -> None:
    """A thread that has entered another namespace does not get what was made in the first."""
    with (
        box.spawn(CAT, stdin=PIPE) as process,
        process.namespaces["user"] as user,
        process.namespaces["net"] as net,
    ):
        network = f"net:[{net.id[1]}]" if isinstance(net.id, tuple) else None

        def child() -> tuple[str, bool, int]:
            with Sandbox(net="host").pool(1) as pool:
                full(pool)
                outcome: list[str] = []
                if os.geteuid() != 0:
                    return "", True, 1  # a program with threads cannot enter a user namespace
                with net.enter():
                    outcome.append(shell(pool, "readlink /proc/self/ns/net"))
                # One has been refused, and each other that the thread may have made by then.
                return outcome[0], pool.stats().stale >= 1, pool.stats().cold

        seen, refused, cold = in_child(child)
        assert (refused, cold) == (True, 1)
        if seen and network is not None:
            assert seen == network
        assert user.kind == "user"


@pytest.mark.usefixtures("cgroups")
def test_cgroup_that_is_gone(box: Sandbox) -> None:
    """When the place of its cgroups is closed, the error is that of a Sandbox."""
    parent = Cgroup.create(Limits(pids=1000))
    with Sandbox(cgroup=parent).pool(1) as pool:
        assert full(pool).run(TRUE).returncode == 0
        full(pool)
        parent.close()
        with pytest.raises(NsboxError):
            pool.run(TRUE)
        assert pool.stats().stale >= 1


# ---- its end --------------------------------------------------------------------


def test_close_leaves_what_runs(box: Sandbox) -> None:
    """Closing kills what waits, and not what runs; a second time does nothing."""
    with box.pool(2) as pool:
        process = full(pool).spawn(CAT, stdin=PIPE, stdout=PIPE)
    pool.close()
    # What runs may have the name still, right after its exec.
    assert called("nsbox-init") <= {process.pid}
    assert process.communicate(b"text")[0] == b"text"
    assert process.returncode == 0
    assert pool.stats().ready == 0


def test_commands_after_close(box: Sandbox) -> None:
    """A closed pool starts nothing."""
    with box.pool(1) as pool:
        pass
    for command in (lambda: pool.run(TRUE), lambda: pool.spawn(TRUE), lambda: pool.map([TRUE])):
        with pytest.raises(PlanError, match="closed"):
            command()


def test_forgotten_pool_warns(box: Sandbox) -> None:
    """A pool that is collected says so, and everything of it is gone."""
    pool = full(box.pool(2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del pool
        gc.collect()
    assert [str(warning.message) for warning in caught] == ["a pool of 2 was not closed"]


def test_pickle_says_what_to_do(pool: Pool) -> None:
    """The Sandbox is what travels."""
    with pytest.raises(TypeError, match="pickle its Sandbox instead"):
        pickle.dumps(pool)


@pytest.mark.parametrize("size", [0, -1, 10**6, 10**6000], ids=["0", "-1", "large", "huge"])
def test_size_that_cannot_be_meant(box: Sandbox, size: int) -> None:
    """A pool of nothing cannot, nor can one that no machine has descriptors for."""
    with pytest.raises(PlanError, match="size"):
        box.pool(size)


@pytest.mark.parametrize("size", [1.0, "1", None, True])
def test_size_of_another_type(box: Sandbox, size: Any) -> None:
    """The size is an int."""
    with pytest.raises(TypeError, match="size"):
        box.pool(size)


@pytest.mark.parametrize(
    "fields",
    [
        {"namespaces": "none"},
        {"pid": "host"},
        {"root": Overlay("/usr", upper="/u", work="/w")},
        {"mounts": [Overlay("/usr", "/x", upper="/u", work="/w")]},
    ],
    ids=str,
)
def test_sandboxes_that_cannot_be_pooled(fields: dict[str, Any]) -> None:
    """Where no init can be, or two sandboxes cannot be at once, that is said at once."""
    with pytest.raises(PlanError, match=r"pool\(\)"):
        Sandbox(**fields).pool(1)


def test_sandbox_that_cannot_start() -> None:
    """The first error comes out once, whole, and nothing goes on trying."""
    with pytest.raises(SpawnError) as caught:
        Sandbox(mounts=[Bind("/missing", "/data")]).pool(3)
    assert (caught.value.step, caught.value.path) == ("open_tree", "/missing")


def test_fork_of_the_caller(box: Sandbox) -> None:
    """In a fork the pool says whose it is; the parent's goes on."""
    with box.pool(2) as pool:
        full(pool)

        def child() -> tuple[str, set[str], int]:
            try:
                pool.run(TRUE)
                text = "no error"
            except PlanError as error:
                text = str(error)
            pool.close()
            left = {name for name in open_fds().values() if "mnt:" in name or "mountinfo" in name}
            with box.pool(1) as own:
                status = own.run(TRUE).returncode
            return text, left, status

        text, left, status = in_child(child)
        assert (left, status) == (set(), 0)
        assert "fork" in text
        assert pool.run(TRUE).returncode == 0
        assert (pool.stats().warm, pool.stats().stale) == (1, 0)


def test_fork_while_others_run(box: Sandbox) -> None:
    """A fork keeps no mounts of a sandbox that another thread has in use, or is making."""

    def in_use(pool: Pool) -> None:
        with pool.spawn(["/bin/cat"], stdin=PIPE):
            started.wait()
            forked.wait()

    def child() -> set[str]:
        return {name for name in open_fds().values() if "mnt:" in name}

    started, forked = threading.Barrier(2), threading.Barrier(2)
    with box.pool(1) as pool:
        thread = threading.Thread(target=in_use, args=(pool,))
        thread.start()
        started.wait()
        left = in_child(child)
        forked.wait()
        thread.join()
        assert pool.stats().warm == 1
    assert left == set()


_PROGRAM = """
import os, signal, sys
from nsbox import PIPE, Limits, Sandbox
pool = Sandbox(limits=Limits(wall_time=1000)).pool(3)
while pool.stats().ready < 3:
    os.sched_yield()
lifeline = int(sys.argv[1])
process = pool.spawn(["/bin/sh", "-c", "echo; exec sleep 1000"], stdout=PIPE, pass_fds=[lifeline])
process.stdout.readline()
"""


def ending(program: str) -> tuple[int, str]:
    """Run a caller that holds a pool; return its status and words when all of it has ended."""
    reader, writer = os.pipe()
    with (
        open(reader, "rb", buffering=0) as lifeline,
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "always::ResourceWarning",
                "-c",
                _PROGRAM + program,
                str(writer),
            ],
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            pass_fds=[writer],
            stderr=subprocess.PIPE,
            text=True,
        ) as caller,
    ):
        os.close(writer)
        _, words = caller.communicate(timeout=CHILD_DEADLINE)
        assert ends(lifeline)
        return caller.returncode, words


def test_exit_of_the_interpreter() -> None:
    """It does not hang, warns, and leaves nothing."""
    status, words = ending("")
    assert status == 0
    assert "a pool of 3 was not closed" in words


def test_caller_that_is_killed() -> None:
    """With its caller everything of a pool ends: what waits, and what runs."""
    status, _ = ending("os.kill(os.getpid(), signal.SIGKILL)")
    assert status == -signal.SIGKILL


# ---- many ------------------------------------------------------------------------


def test_map_keeps_the_order(pool: Pool) -> None:
    """Results come in the order of the commands, however long each takes."""
    commands = [["/bin/sh", "-c", f"sleep 0.0{9 - number}; echo {number}"] for number in range(9)]
    outputs = [result.stdout for result in pool.map(commands, capture_output=True, text=True)]
    assert outputs == [f"{number}\n" for number in range(9)]


def test_map_takes_what_it_has_room_for(pool: Pool) -> None:
    """Commands are taken when there is room, and no more run than the pool has sandboxes."""
    taken = 0

    def commands() -> Iterator[list[str]]:
        nonlocal taken
        for _ in range(10):
            taken += 1
            yield TRUE

    results = pool.map(commands())
    assert taken == 0
    for number, result in enumerate(results, 1):
        assert isinstance(result, Result)
        assert taken <= number + pool.stats().size
    assert taken == 10


def test_error_in_map_comes_in_its_place(pool: Pool) -> None:
    """What is before the error comes first; what runs after it is killed."""
    commands = [TRUE, TRUE, ["/missing"], ["/bin/sh", "-c", "exec sleep 1000"]]
    results = pool.map(iter(commands))
    assert next(results).returncode == next(results).returncode == 0
    with pytest.raises(FileNotFoundError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


@pytest.mark.parametrize("commands", [5, None, "echo hi", b"echo hi"])
def test_map_of_what_is_no_list_of_commands(pool: Pool, commands: Any) -> None:
    """It is named, before anything runs."""
    with pytest.raises(TypeError, match="commands: "):
        pool.map(commands)


def test_map_without_threads(pool: Pool) -> None:
    """Where no thread can be started that is an error of ours, and what runs is killed."""
    before = threading.stack_size()

    def commands() -> Iterator[list[str]]:
        yield ["/bin/sleep", "1000"]
        threading.stack_size(1 << 46)  # no address space has room for it
        yield TRUE

    try:
        with pytest.raises(UnsupportedError, match="beside others"):
            next(pool.map(commands()))
    finally:
        threading.stack_size(before)


@pytest.mark.one_kernel
def test_forgotten_process_of_a_cycle(pool: Pool) -> None:
    """What it hands to the pool's thread has memory still: it closes nothing of anybody else's."""
    streams = [os.fstat(fd) for fd in (0, 1, 2)]
    for _ in range(50):
        process = pool.spawn(["/bin/sleep", "1000"])
        process.args = [process]  # type: ignore[list-item]
        # All in the block: a collection can come at any time, in any thread.
        with pytest.warns(ResourceWarning):  # noqa: PT031
            del process
            gc.collect()
        full(pool)
    assert [os.fstat(fd) for fd in (0, 1, 2)] == streams


@pytest.mark.one_kernel
def test_many_errors_in_map_leave_nothing() -> None:
    """What fails while the first error is on its way does not keep the others from being killed."""
    commands = [*[["/missing"]] * 7, ["/bin/sleep", "3"]]
    with Sandbox().pool(8) as pool:
        for _ in range(20):
            until(lambda: pool.stats().ready == 8)
            with pytest.raises(FileNotFoundError) as caught:
                list(pool.map(commands))
            assert caught.value.__context__ is None
            assert not [item for item in threading.enumerate() if item.name == "nsbox-pool-map"]


def test_closed_map_kills_what_runs(pool: Pool, tmp_path: Path) -> None:
    """Whoever leaves the loop leaves nothing behind."""
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as lifeline:
        commands = [TRUE, *[["/bin/sh", "-c", "exec sleep 1000"]] * 3]
        results = pool.map(iter(commands), pass_fds=[writer])
        assert next(results).returncode == 0
        os.close(writer)
        results.close()  # type: ignore[attr-defined]  # a generator's
        assert ends(lifeline)


def test_exception_of_the_commands_ends_map(pool: Pool) -> None:
    """An error of the iterable comes out, and nothing is left running."""

    def commands() -> Iterator[list[str]]:
        yield ["/bin/sh", "-c", "exec sleep 1000"]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(pool.map(commands()))


@pytest.mark.one_kernel
def test_many_threads(box: Sandbox) -> None:
    """Eight threads get what they have asked for, and all are counted."""
    with box.pool(4) as pool, ThreadPoolExecutor(8) as threads:
        outputs = list(threads.map(lambda number: shell(pool, f"echo {number}"), range(80)))
        stats = pool.stats()
    assert outputs == [str(number) for number in range(80)]
    assert stats.warm + stats.cold == 80


@pytest.mark.one_kernel
def test_members_killed_at_random(box: Sandbox, request: pytest.FixtureRequest) -> None:
    """Whoever is killed, waiting or running: callers get a status, and never wait for ever."""
    rounds = 500 if request.config.getoption("--long") else 30
    over = threading.Event()
    attacked = box.pool(4)
    dice = random.Random(4711)

    def killer() -> None:
        while not over.is_set():
            # Neither those that are not finished yet: that is another test's.
            found = sorted(called("nsbox-init") | called("true"))
            if found:
                try:
                    os.kill(dice.choice(found), signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def caller(_: int) -> set[int]:
        return {attacked.run(TRUE, timeout=CHILD_DEADLINE).returncode for _ in range(rounds)}

    with attacked:
        thread = threading.Thread(target=killer)
        thread.start()
        try:
            with ThreadPoolExecutor(8) as threads:
                found = set[int]().union(*threads.map(caller, range(8)))
        finally:
            over.set()
            thread.join()
        assert found <= {0, -signal.SIGKILL}
        assert full(attacked).run(TRUE).returncode == 0


def test_descriptors_short_when_it_is_made(box: Sandbox) -> None:
    """Whatever has none, the error is EMFILE with a step: of a member, or of the pool itself."""

    def child() -> tuple[set[int | None], set[Step]]:
        codes: set[int | None] = set()
        steps: set[Step] = set()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        box.run(TRUE)  # the facts of the host are known
        for most in range(64):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            try:
                box.pool(1).close()
            except SpawnError as error:
                codes.add(error.errno)
                steps.add(error.step)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return codes, steps

    codes, steps = in_child(child)
    assert codes == {errno.EMFILE}
    assert {Step.WATCH, Step.HOST} <= steps


def test_init_killed_while_it_is_made(box: Sandbox, root: None) -> None:
    """
    The error says so, and not which file of it could not be opened any more.

    A plain user may open none of these, and gets a pool whose first member is of no use.
    """

    def child() -> tuple[int | None, Step]:
        def kill() -> None:
            for pid in map(int, Path("/proc/thread-self/children").read_text().split()):
                os.kill(pid, signal.SIGKILL)
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

        with meanwhile("started", kill), pytest.raises(SpawnError) as caught:
            box.pool(1)
        return caught.value.errno, caught.value.step

    assert in_child(child) == (errno.ESRCH, Step.INIT)


def test_no_thread_for_it(box: Sandbox) -> None:
    """Where its thread cannot be started that is an error of ours, too."""

    def child() -> tuple[int | None, Step]:
        threading.stack_size(1 << 46)  # no address space has room for it
        with pytest.raises(SpawnError) as caught:
            box.pool(1)
        return caught.value.errno, caught.value.step

    assert in_child(child) == (errno.EAGAIN, Step.WATCH)


def test_handler_raises_while_it_is_made(box: Sandbox) -> None:
    """What a signal handler raises comes out as it is, though it is an OSError or the like."""

    class Late(TimeoutError, RuntimeError):
        """As a program's own that is out of time."""

    def handle() -> None:
        raise Late("time is up")

    for name in ("_check_size", "terms", "_make", "started"):
        with pytest.raises(Late), meanwhile(name, handle):
            box.pool(1)


def test_no_descriptors_left(box: Sandbox) -> None:
    """Without descriptors callers get the error; with some again all is as before."""

    def child() -> tuple[int | None, int]:
        with box.pool(2) as pool:
            full(pool)
            code = None
            with no_descriptors():
                try:
                    pool.run(TRUE, stdin=PIPE)
                except OSError as error:
                    code = error.errno
            return code, full(pool).run(TRUE).returncode

    assert in_child(child) == (errno.EMFILE, 0)


def test_idle_pool_does_nothing(box: Sandbox) -> None:
    """A full pool that nobody uses takes no processor time."""
    with box.spawn(CAT, stdin=PIPE, stdout=PIPE) as echo, box.pool(2) as pool:
        full(pool)
        [thread] = [t for t in threading.enumerate() if t.name == "nsbox-pool"]
        path = Path(f"/proc/self/task/{thread.native_id}/schedstat")

        def rests() -> bool:
            before = path.read_text()
            # Time passes, and no process ends: SIGCHLD may wake a thread, to be ignored by it.
            for _ in range(1000):
                stdin_of(echo).write(b"\n")
                stdin_of(echo).flush()
                stdout_of(echo).readline()
            return path.read_text() == before

        until(rests)  # it may still be on its way from the last one that it has made


def test_process_is_a_popen(pool: Pool) -> None:
    """Signals, polling and pidfd work as for every process of nsbox."""
    with pool.spawn(CAT, stdin=PIPE, stdout=PIPE) as process:
        assert isinstance(process, Process)
        assert process.poll() is None
        assert process.pidfd is not None
        stdin_of(process).write(b"text\n")
        stdin_of(process).flush()
        assert stdout_of(process).readline() == b"text\n"
        process.kill()
        assert process.wait(CHILD_DEADLINE) == -signal.SIGKILL
        assert process.usage is not None


def expose_directory(path: Path) -> Path:
    path.mkdir()
    return expose(path)
