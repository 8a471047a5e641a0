"""Limits hold, at once and for everything in a sandbox, and the verdict is the kernel's."""

import os
import resource
import select
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nsbox import (
    PIPE,
    Bind,
    Cgroup,
    CgroupError,
    Limits,
    Reason,
    Result,
    Sandbox,
    SpawnError,
    TimeoutExpired,
    UnsupportedError,
    _cgroup_layout,
)
from nsbox._cgroup_layout import Layout
from support import (
    CHILD_DEADLINE,
    PYTHON,
    expired,
    expose,
    in_child,
    in_time,
    inside,
    meanwhile,
    output_of,
    python_box,
)

DEADLINE = 30.0
"""How long a test waits for what should happen much sooner, before it fails."""

SPIN = "while :; do :; done"


def shell(command: str, limits: Limits, **options: Any) -> Result:
    """Run a shell command under limits."""
    return Sandbox(limits=limits).run(["/bin/sh", "-c", command], **options)


def python(code: str, limits: Limits, **fields: Any) -> Result:
    """Run Python code under limits, and a deadline in case that they do not hold."""
    limits = Limits(**{**_fields(limits), "wall_time": limits.wall_time or DEADLINE})
    box = python_box(limits=limits, **fields)
    return box.run([*PYTHON, code], capture_output=True)


def bombed(run: Callable[[float], Result]) -> Result:
    """Return the result of a bomb that only a deadline ends, with one that lets it go off."""

    def attempt(wall_time: float) -> Result | None:
        result = run(wall_time)
        return None if result.reason is Reason.WALL_TIME else result

    return in_time(attempt)


def _fields(limits: Limits) -> dict[str, Any]:
    return {name: getattr(limits, name) for name in limits.given()}


# ---- time ------------------------------------------------------------------


@pytest.mark.usefixtures("box")
class TestWallTime:
    """Kept for everybody: needs no cgroup."""

    def test_verdict(self) -> None:
        """A payload that does nothing for too long is killed, and the reason is told."""
        result = shell("exec sleep 60", Limits(wall_time=0.2))
        assert (result.reason, result.returncode) == (Reason.WALL_TIME, -signal.SIGKILL)
        assert 0.2 <= result.usage.wall_time < DEADLINE

    def test_in_time(self) -> None:
        """A payload that ends in time has ended by itself."""
        result = shell("exit 3", Limits(wall_time=DEADLINE))
        assert (result.reason, result.returncode) == (Reason.EXIT, 3)

    def test_its_own_sigkill_is_a_signal(self) -> None:
        """A SIGKILL from somebody else is no limit, whatever 137 may suggest."""
        process = Sandbox(limits=Limits(wall_time=DEADLINE)).spawn(["/bin/sleep", "60"])
        process.kill()
        process.wait()
        assert process.reason is Reason.SIGNAL

    def test_everything_is_stopped(self) -> None:
        """Stopped processes, and who has stopped them, die as well."""
        code = "import os, signal; os.fork(); os.kill(-1, signal.SIGSTOP); signal.pause()"
        assert python(code, Limits(wall_time=0.5)).reason is Reason.WALL_TIME

    def test_signals_are_ignored(self) -> None:
        """A payload that ignores what can be ignored."""
        result = shell(f"trap '' TERM INT XCPU ALRM; {SPIN}", Limits(wall_time=0.3))
        assert result.reason is Reason.WALL_TIME

    def test_a_daemon_holds_the_pipes(self) -> None:
        """A process of another session that keeps stdout open does not keep the caller."""
        command = "(setsid sleep 60 &) ; exec sleep 60"
        result = shell(command, Limits(wall_time=0.3), capture_output=True)
        assert result.reason is Reason.WALL_TIME

    def test_nobody_waits(self) -> None:
        """It holds for a process whose caller is busy with other things."""
        process = Sandbox(limits=Limits(wall_time=0.2)).spawn(["/bin/sleep", "60"])
        assert process.pidfd is not None
        assert select.select([process.pidfd], [], [], DEADLINE)[0]
        process.wait()
        assert process.reason is Reason.WALL_TIME

    def test_the_interpreter_is_busy(self) -> None:
        """It holds while Python threads compete for the interpreter's lock."""
        done = threading.Event()

        def spin() -> None:
            while not done.is_set():
                pass

        threads = [threading.Thread(target=spin) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            result = shell("exec sleep 60", Limits(wall_time=0.2))
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert result.reason is Reason.WALL_TIME

    def test_many_at_once(self) -> None:
        """Each has its own deadline, whatever the order of their starts and ends."""
        times = [0.5, 0.1, 0.3, DEADLINE, 0.2]
        boxes = [Sandbox(limits=Limits(wall_time=wall_time)) for wall_time in times]
        processes = [box.spawn(["/bin/cat"], stdin=PIPE) for box in boxes]
        for wall_time, process in zip(times, processes, strict=True):
            if wall_time != DEADLINE:
                process.wait()
                assert process.reason is Reason.WALL_TIME
        for process in processes:
            process.communicate()
        assert processes[times.index(DEADLINE)].reason is Reason.EXIT

    def test_a_later_one_is_due_first(self) -> None:
        """The thread does not sleep on for a deadline that is further away."""
        long = Sandbox(limits=Limits(wall_time=1000.0))
        with long.spawn(["/bin/sleep", "1000"]) as first:
            for _ in range(3):
                assert shell("exec sleep 1000", Limits(wall_time=0.2)).reason is Reason.WALL_TIME
            assert first.poll() is None
            first.kill()

    def test_after_a_fork(self) -> None:
        """A fork has a watcher of its own, and the parent's goes on."""
        box = Sandbox(limits=Limits(wall_time=0.4))
        process = box.spawn(["/bin/sleep", "60"])
        assert in_child(lambda: str(box.run(["/bin/sleep", "60"]).reason)) == "wall_time"
        process.wait()
        assert process.reason is Reason.WALL_TIME


@pytest.mark.usefixtures("cgroups")
class TestCpuTime:
    """Counted by a cgroup: whoever uses it."""

    def test_verdict(self) -> None:
        """A payload that ignores the signal of RLIMIT_CPU, too."""
        result = shell(f"trap '' XCPU TERM; {SPIN}", Limits(cpu_time=0.3, wall_time=DEADLINE))
        assert (result.reason, result.returncode) == (Reason.CPU_TIME, -signal.SIGKILL)
        assert result.usage.cpu_time >= 0.3

    def test_of_many_processes(self) -> None:
        """All processes draw on the same account."""
        command = f"for i in 1 2 3 4 5 6 7 8; do ({SPIN}) & done; wait"
        result = shell(command, Limits(cpu_time=0.3, wall_time=DEADLINE))
        assert result.reason is Reason.CPU_TIME

    def test_forked_away(self) -> None:
        """Time of processes that nobody waited for counts."""
        code = """if True:
            import os, time
            def burn():
                end = time.process_time() + 0.3
                while time.process_time() < end: pass
            reader, writer = os.pipe()
            if os.fork() == 0:
                if os.fork() == 0:
                    burn()
                os._exit(0)
            os.close(writer)
            os.read(reader, 1)
        """
        result = python(code, Limits(cpu_time=DEADLINE))
        assert result.reason is Reason.EXIT
        assert result.usage.cpu_time >= 0.3
        assert "usage" in result.usage.sources["cpu_time"]

    def test_sleeping_is_free(self) -> None:
        """Time that passes is not processor time."""
        result = shell("sleep 2.2", Limits(cpu_time=2))
        assert result.reason is Reason.EXIT
        assert result.usage.cpu_time < 2 < result.usage.wall_time

    def test_the_sooner_limit_is_the_reason(self) -> None:
        """Wall time and processor time are never confused."""
        limits = Limits(cpu_time=DEADLINE, wall_time=0.3)
        assert shell(SPIN, limits).reason is Reason.WALL_TIME
        limits = Limits(cpu_time=0.2, wall_time=DEADLINE)
        assert shell(SPIN, limits).reason is Reason.CPU_TIME

    def test_nothing_is_carried_over(self) -> None:
        """A second run of the same sandbox starts from zero."""
        box = Sandbox(limits=Limits(cpu_time=DEADLINE, memory="32M", pids=8))
        count = "i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done; /bin/true; /bin/true"
        first, second = (box.run(["/bin/sh", "-c", code]) for code in (count, "exec /bin/true"))
        assert (first.reason, second.reason) == (Reason.EXIT, Reason.EXIT)
        assert second.usage.cpu_time < first.usage.cpu_time
        assert second.usage.pids_peak in (1, None)


# ---- memory ----------------------------------------------------------------

HEAP = "x = [bytearray(1 << 20) for _ in range(512)]"
SHARED = """if True:
    import mmap
    area = mmap.mmap(-1, 256 << 20)
    for at in range(0, len(area), 4096): area[at] = 1
"""
TMPFS = """if True:
    with open("/tmp/file", "wb", buffering=0) as file:
        for _ in range(256): file.write(bytes(1 << 20))
"""
MEMFD = """if True:
    import os
    file = os.memfd_create("bomb")
    for _ in range(256): os.write(file, bytes(1 << 20))
"""
PIPES = """if True:
    import fcntl, os
    for _ in range(63):
        reader, writer = os.pipe()
        size = fcntl.fcntl(writer, 1031, 1 << 20)  # F_SETPIPE_SZ
        os.set_blocking(writer, False)
        os.write(writer, bytes(size))
"""
BY_A_CHILD = f"""if True:
    import os
    if os.fork() == 0:
        {HEAP}
        os._exit(0)
    os.wait()
"""


@pytest.mark.usefixtures("cgroups")
class TestMemory:
    """Kept by the kernel; what it counts is the verdict."""

    @pytest.mark.parametrize(
        "bomb",
        [HEAP, SHARED, TMPFS, MEMFD, PIPES, BY_A_CHILD],
        ids=["heap", "shared", "tmpfs", "memfd", "pipes", "child"],
    )
    def test_bomb(self, bomb: str) -> None:
        """Memory of whatever kind, also of a child: the OOM killer's count is the reason."""
        result = python(bomb, Limits(memory="32M"))
        assert result.reason is Reason.MEMORY, result.stderr
        assert result.usage.oom_kills
        assert result.usage.memory_peak is None or result.usage.memory_peak <= 32 << 20

    def test_page_cache_is_reclaimed(self, tmp_path: Path) -> None:
        """Writing more than the limit to a disk is no reason to die."""
        kind = output_of(["stat", "-f", "-c", "%T", str(tmp_path)]).strip()
        if kind in ("tmpfs", "ramfs", "rootfs"):
            pytest.skip(f"files are on {kind} here, which is memory")
        code = """if True:
            import os
            with open("/out/file", "w+b", buffering=0) as file:
                for _ in range(16):
                    file.write(bytes(4 << 20))
                    os.fdatasync(file)
                file.seek(0)
                while file.read(1 << 20): pass
        """
        mount = Bind(expose(tmp_path), "/out", readonly=False)
        result = python(code, Limits(memory="32M"), mounts=[mount])
        assert result.reason is Reason.EXIT, result.stderr

    def test_buffers_of_sockets(self) -> None:
        """What waits in sockets is memory as well, on v1 counted by itself."""
        code = """if True:
            import socket
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            receivers = []
            for _ in range(500):
                receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                receivers.append(receiver)
                receiver.bind(("127.0.0.1", 0))
                receiver.setblocking(False)
                for _ in range(100):
                    sender.sendto(bytes(2000), receiver.getsockname())
            held = 0
            for receiver in receivers:
                try:
                    while True:
                        held += len(receiver.recv(2000))
                except BlockingIOError:
                    pass
            print(held)
        """
        result = python(code, Limits(memory="32M"))
        assert result.reason is Reason.MEMORY or int(result.stdout) < 32 << 20

    def test_below_the_limit(self) -> None:
        """What fits is no matter; the peak is told."""
        result = python("x = bytearray(24 << 20)", Limits(memory="64M"))
        assert (result.reason, result.usage.oom_kills) == (Reason.EXIT, 0)
        assert result.usage.memory_peak is None or result.usage.memory_peak > 24 << 20

    @pytest.mark.parametrize("memory", [4096, 16384, "64K", "128K", "256K"])
    def test_too_little_to_start(self, memory: int | str) -> None:
        """
        Too little memory is an error of the spawn, or the verdict on the payload.

        Never the end of the caller, whose memory the child shares before its exec.
        """
        box = Sandbox(limits=Limits(memory=memory))
        try:
            result = box.run(["/bin/true"])
        except SpawnError as error:
            outcome = error.hint or ""
        else:
            outcome = result.reason
        assert "memory" in outcome or outcome == Reason.EXIT

    def test_an_umbrella_without_room(self) -> None:
        """A sandbox whose neighbours have used up the common memory leaves its caller alive."""
        with Cgroup.create(Limits(memory="16M")) as umbrella:
            box = python_box(cgroup=umbrella)
            code = "x = bytearray(8 << 20); print(flush=True); input()"
            with box.spawn([*PYTHON, code], stdin=PIPE, stdout=PIPE) as neighbour:
                assert neighbour.stdout is not None
                neighbour.stdout.readline()
                reasons = []
                for _ in range(5):
                    try:
                        reasons.append(box.run([*PYTHON, "x = bytearray(64 << 20)"]).reason)
                    except SpawnError:
                        reasons.append(Reason.MEMORY)
                neighbour.kill()
        assert Reason.MEMORY in reasons

    def test_oom_group_or_a_reason_why_not(self) -> None:
        """On v2 all processes die with one; on v1 it is refused before anything starts."""
        limits = Limits(memory="32M", oom_group=True, wall_time=DEADLINE)
        box = python_box(limits=limits)
        memory = _cgroup_layout.look().holder("memory")
        assert memory is not None
        if memory.version == 1:
            with pytest.raises(UnsupportedError, match=r"'memory' is on cgroup v1 \(/"):
                box.run([*PYTHON, BY_A_CHILD])
        else:
            result = box.run([*PYTHON, BY_A_CHILD])
            assert (result.reason, result.returncode) == (Reason.MEMORY, -signal.SIGKILL)


# ---- processes -------------------------------------------------------------

FORKS = """if True:
    import os, signal
    while True:
        try:
            if os.fork() == 0: signal.pause()
        except OSError: pass
"""
THREADS = """if True:
    import os, threading
    event = threading.Event()
    while True:
        try:
            threading.Thread(target=event.wait).start()
        except RuntimeError:
            os._exit(3)
"""


@pytest.mark.usefixtures("cgroups")
class TestPids:
    """Refused by the kernel; its count is the verdict."""

    def test_fork_bomb(self) -> None:
        """One that never gives up is ended by a deadline, but that is not why."""
        result = bombed(lambda wall_time: python(FORKS, Limits(pids=16, wall_time=wall_time)))
        assert (result.reason, result.returncode) == (Reason.PIDS, -signal.SIGKILL)
        assert result.usage.pids_refused
        assert result.usage.pids_peak in (16, None)

    def test_fork_bomb_of_a_shell(self) -> None:
        """The classic."""
        command = "f() { f | f & }; f; exec sleep 1000"
        result = bombed(
            lambda wall_time: shell(command, Limits(pids=16, wall_time=wall_time), stderr=PIPE)
        )
        assert result.reason is Reason.PIDS

    def test_thread_bomb(self) -> None:
        """Threads count."""
        result = python(THREADS, Limits(pids=16))
        assert (result.reason, result.returncode) == (Reason.PIDS, 3)

    def test_within_the_limit(self) -> None:
        """As many as allowed is no matter."""
        result = shell("sleep 0 & sleep 0 & wait", Limits(pids=3))
        assert (result.reason, result.usage.pids_refused) == (Reason.EXIT, 0)


# ---- output ----------------------------------------------------------------


@pytest.mark.usefixtures("box")
class TestOutput:
    """What is captured is bounded, for everybody."""

    def test_ten_gigabytes(self) -> None:
        """The caller holds the limit and no more, and the payload dies."""
        result = shell(f"yes | head -c {10 << 30}", Limits(output="1M"), capture_output=True)
        assert result.reason is Reason.OUTPUT
        assert len(result.stdout) + len(result.stderr) == result.usage.output == 1 << 20

    def test_both_streams_count(self) -> None:
        """stdout and stderr share one limit."""
        command = "printf 12345; printf 67890 >&2; sleep 60"
        limits = Limits(output=9, wall_time=DEADLINE)
        result = shell(command, limits, capture_output=True)
        assert result.reason is Reason.OUTPUT
        assert len(result.stdout) + len(result.stderr) == 9

    def test_exactly_the_limit(self) -> None:
        """What fits is returned, and is no reason."""
        result = shell("printf 12345", Limits(output=5), capture_output=True)
        assert (result.reason, result.stdout, result.usage.output) == (Reason.EXIT, b"12345", 5)

    def test_more_by_a_payload_that_has_ended(self) -> None:
        """Output that waits in the pipe counts, although nobody has to be killed."""
        result = shell("printf 123456", Limits(output=5), capture_output=True)
        assert (result.reason, result.stdout) == (Reason.OUTPUT, b"12345")

    def test_more_by_a_payload_that_has_been_waited_for(self) -> None:
        """Reading is what counts, so the verdict changes when it comes after the wait."""
        box = Sandbox(limits=Limits(output=5))
        with box.spawn(["/usr/bin/printf", "123456"], stdout=PIPE) as process:
            process.wait()
            assert process.reason is Reason.EXIT
            stdout, stderr = process.communicate()
        assert stdout == b"12345"
        assert process.result(stdout, stderr).reason is Reason.OUTPUT

    @pytest.mark.parametrize(("input", "text"), [(5, False), ("x", False), (b"x", True)])
    def test_input_of_the_wrong_type(self, input: object, text: bool) -> None:
        """Refused as by subprocess, and not written as something else."""
        with pytest.raises((TypeError, AttributeError)):
            shell("cat", Limits(output=99), input=input, capture_output=True, text=text)

    def test_text_is_cut_between_characters(self) -> None:
        """A limit in the middle of a character does not make the text undecodable."""
        result = shell("printf 'ab\\303\\251'", Limits(output=3), capture_output=True, text=True)
        assert (result.reason, result.stdout) == (Reason.OUTPUT, "ab")

    def test_input_and_output(self) -> None:
        """Input of any size goes in, text is translated, as by subprocess."""
        text = "line\r\n" * 50000
        result = shell("cat", Limits(output="1M"), input=text, capture_output=True, text=True)
        assert (result.reason, result.stdout) == (Reason.EXIT, "line\n" * 50000)

    def test_input_that_nobody_reads(self) -> None:
        """A payload that does not want its input is no error."""
        result = shell("exit 0", Limits(output=10), input=b"x" * 200000, capture_output=True)
        assert (result.returncode, result.stdout) == (0, b"")

    def test_timeout(self) -> None:
        """A timeout of the caller carries what was captured."""
        options: dict[str, Any] = {"limits": Limits(output=10), "capture_output": True}
        caught = expired(lambda timeout: shell("echo hi; sleep 60", timeout=timeout, **options))
        assert caught.stdout == b"hi\n"

    @pytest.mark.usefixtures("cgroups")  # for what the command may leave behind
    def test_timeout_after_the_streams_have_ended(self) -> None:
        """The same when the payload has closed its streams, and goes on."""
        command = ["/bin/sh", "-c", "echo hi; exec >&- 2>&-; sleep 60"]
        options: dict[str, Any] = {"limits": Limits(output=10), "capture_output": True}
        with Sandbox().open() as live:
            caught = expired(lambda timeout: live.run(command, timeout=timeout, **options))
        assert caught.stdout == b"hi\n"

    def test_timeout_then_more(self) -> None:
        """communicate() can be called again after a timeout; nothing is lost."""
        box = Sandbox(limits=Limits(output=100))
        reader, writer = os.pipe()
        command = ["/bin/sh", "-c", "echo a; read line"]
        with box.spawn(command, stdin=reader, stdout=PIPE) as process:
            os.close(reader)
            with pytest.raises(TimeoutExpired):
                process.communicate(timeout=0.01)
            os.close(writer)
            assert process.communicate() == (b"a\n", None)
        assert process.reason is Reason.EXIT


# ---- resource limits -------------------------------------------------------


@pytest.mark.usefixtures("box")
class TestResourceLimits:
    """For each process; kept for everybody."""

    def test_are_set(self) -> None:
        """Soft and hard, as given."""
        limits = Limits(file_size="1M", open_files=32, stack="1M", core=None, nice=7)
        code = """if True:
            import json, os, resource as r
            names = ("FSIZE", "NOFILE", "STACK")
            limits = {name: r.getrlimit(getattr(r, f"RLIMIT_{name}")) for name in names}
            print(json.dumps([limits, os.getpriority(os.PRIO_PROCESS, 0)]))
        """
        found, nice = inside(code, box=python_box(limits=limits))
        assert found == {"FSIZE": [1 << 20] * 2, "NOFILE": [32] * 2, "STACK": [1 << 20] * 2}
        assert nice == max(7, os.getpriority(os.PRIO_PROCESS, 0))

    @pytest.mark.parametrize("limits", [None, Limits(), Limits(core="1M")], ids=repr)
    def test_no_core_dumps(self, limits: Limits | None) -> None:
        """For good, and neither to a program that the host has for them: 0 would permit that."""
        code = """if True:
            import json, resource
            def limit():
                return resource.getrlimit(resource.RLIMIT_CORE)
            before = limit()
            for value in (0, 1, resource.RLIM_INFINITY):
                resource.setrlimit(resource.RLIMIT_CORE, (value, value))
                assert limit() == before
            try:
                resource.prlimit(0, resource.RLIMIT_CORE, (0, 0))
            except PermissionError:
                print(json.dumps([*before, *limit()]))
        """
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        most = 0 if hard == 0 else 1
        assert inside(code, box=python_box(limits=limits)) == [most] * 4

    def test_never_loosen(self) -> None:
        """A limit above the caller's own hard limit leaves that."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        code = "import json, resource as r; print(json.dumps(r.getrlimit(r.RLIMIT_NOFILE)))"
        limits = Limits(open_files=min(hard + 1000, 2**31 - 1))
        assert inside(code, box=python_box(limits=limits)) == [hard, hard]

    def test_a_file_that_is_too_large(self) -> None:
        """SIGXFSZ ends the writer; that is no verdict of nsbox's."""
        result = shell(f"head -c {2 << 20} /dev/zero >/tmp/x; exit $?", Limits(file_size="1M"))
        assert (result.reason, result.returncode) == (Reason.EXIT, 128 + signal.SIGXFSZ)

    def test_smallest_values_start(self) -> None:
        """The least that is accepted is enough to start a program."""
        limits = Limits(open_files=3, stack="128K", file_size=1)
        static = "/bin/busybox" if os.path.exists("/bin/busybox") else None
        if static is None:
            pytest.skip("no busybox: a dynamic program opens its libraries itself")
        result = Sandbox(limits=limits).run([static, "true"])
        assert (result.reason, result.returncode) == (Reason.EXIT, 0)


# ---- the host's process ids ---------------------------------------------------


@pytest.mark.usefixtures("no_cgroups")
def test_shared_pids_without_cgroups() -> None:
    """A deadline that would not hold for everything is refused, and not half kept."""
    with pytest.raises(UnsupportedError):
        Sandbox(pid="host", limits=Limits(wall_time=9)).run(["/bin/true"])


@pytest.mark.usefixtures("cgroups")
class TestSharedPids:
    """With the host's process ids nothing dies with the payload by itself: the cgroup's does."""

    BOX: dict[str, Any] = {"pid": "host", "mounts": [Bind("/proc")]}

    @pytest.mark.parametrize("pids", [16, None], ids=["pids", "alone"])
    def test_limit_kills_all(self, pids: int | None) -> None:
        """A daemon that holds the pipes dies at the deadline too."""
        box = Sandbox(limits=Limits(pids=pids, wall_time=0.3), **self.BOX)
        command = "(setsid sleep 60 &); exec sleep 60"
        result = box.run(["/bin/sh", "-c", command], capture_output=True)
        assert result.reason is Reason.WALL_TIME

    def test_end_of_the_payload_ends_all(self) -> None:
        """What the payload leaves does not keep its caller."""
        box = Sandbox(limits=Limits(pids=16), **self.BOX)
        command = "(setsid sleep 60 &); exit 5"
        result = box.run(["/bin/sh", "-c", command], capture_output=True)
        assert (result.reason, result.returncode) == (Reason.EXIT, 5)
        assert result.usage.wall_time < DEADLINE

    @pytest.mark.parametrize("pids", [16, None], ids=["pids", "alone"])
    def test_output_kills_all(self, pids: int | None) -> None:
        """At the limit of output as well."""
        box = Sandbox(limits=Limits(pids=pids, output=10), **self.BOX)
        command = "(setsid sh -c 'yes; sleep 60' &); exec sleep 60"
        result = box.run(["/bin/sh", "-c", command], capture_output=True)
        assert result.reason is Reason.OUTPUT


# ---- rates and sets ----------------------------------------------------------


@pytest.mark.usefixtures("cgroups")
class TestCpu:
    """Rate and set of processors."""

    def test_rate(self) -> None:
        """A twentieth of a processor takes long for what a whole one does at once."""
        code = "import time\nwhile time.process_time() < 0.05: pass"
        result = python(code, Limits(cpu=0.05, wall_time=CHILD_DEADLINE))
        assert result.reason is Reason.EXIT
        assert result.usage.cpu_time < 0.3 * result.usage.wall_time

    def test_cpuset(self) -> None:
        """The payload may run where it is told, and nowhere else."""
        first = min(os.sched_getaffinity(0))
        code = "import json, os; print(json.dumps(sorted(os.sched_getaffinity(0))))"
        box = python_box(limits=Limits(cpuset=[first], degrade={"cpuset"}))
        with box.spawn(["/bin/true"]) as process:
            process.wait()
        if process.degraded:
            pytest.skip("no cpuset controller here")
        assert inside(code, box=box) == [first]

    def test_processors_that_are_not_there(self) -> None:
        """The kernel's refusal is an error that says what it may be."""
        cpuset = _cgroup_layout.look().holder("cpuset")
        if cpuset is None or cpuset.version == 2:
            pytest.skip("v2 takes any set, and uses what there is of it")
        with pytest.raises(CgroupError) as caught:
            Sandbox(limits=Limits(cpuset=[4000])).run(["/bin/true"])
        assert caught.value.filename.endswith("cpuset.cpus")
        assert caught.value.hint is not None


# ---- v1 alone ----------------------------------------------------------------


@pytest.mark.usefixtures("cgroups")
class TestVersion1:
    """A host without a v2 mount: what counts, freezes and kills is v1's."""

    @pytest.fixture(autouse=True)
    def without_v2(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the rest of nsbox not see the v2 mount."""
        layout = _cgroup_layout.look()
        v1 = Layout(tuple(item for item in layout.hierarchies if item.version == 1))
        if v1.holder("memory") is None or v1.holder("cpuacct") is None:
            pytest.skip("this host has no controllers on v1")
        monkeypatch.setattr(_cgroup_layout, "look", lambda: v1)

    def test_cpu_time(self) -> None:
        """cpuacct counts it."""
        command = f"for i in 1 2 3; do ({SPIN}) & done; wait"
        result = shell(command, Limits(cpu_time=0.2, wall_time=DEADLINE))
        assert result.reason is Reason.CPU_TIME
        assert result.usage.sources["cpu_time"] == "cpuacct.usage"

    def test_memory_and_pids(self) -> None:
        """The verdicts are the same."""
        assert python(HEAP, Limits(memory="32M")).reason is Reason.MEMORY
        result = bombed(lambda wall_time: python(FORKS, Limits(pids=16, wall_time=wall_time)))
        assert result.reason is Reason.PIDS

    def test_shared_pids(self) -> None:
        """Without cgroup.kill, a fork bomb with the host's pids dies all the same."""

        def run(wall_time: float) -> Result:
            limits = Limits(pids=32, wall_time=wall_time)
            box = python_box(pid="host", mounts=[Bind("/proc")], limits=limits)
            return box.run([*PYTHON, FORKS], capture_output=True)

        assert bombed(run).reason is Reason.PIDS

    def test_freeze_and_kill(self) -> None:
        """A frozen process of v1 does not die before it is thawed: kill() thaws."""
        with Sandbox(limits=Limits(pids=4)).spawn(["/bin/sleep", "60"]) as process:
            assert process.cgroup is not None
            process.cgroup.freeze()
            process.cgroup.kill()
            assert process.wait(DEADLINE) == -signal.SIGKILL

    @pytest.mark.parametrize("end", ["thaw", "kill", "close"])
    def test_freeze_meanwhile(self, end: str) -> None:
        """What another thread has thawed, or killed, is not waited for, and dies."""
        live = Sandbox().open()
        with live.spawn(["/bin/sh", "-c", SPIN]) as process, live:
            with meanwhile("look_again", getattr(live, end)):
                live.freeze()
            live.kill()
            assert process.wait(DEADLINE) == -signal.SIGKILL

    def test_forgotten_while_frozen(self) -> None:
        """It is thawed, and dies."""
        live = Sandbox().open()
        live.freeze()
        with pytest.warns(ResourceWarning, match="still open"):
            del live

    @pytest.mark.parametrize("end", ["kill", "close"])
    def test_freeze_of_what_is_killed(self, end: str) -> None:
        """It would not die."""
        live = Sandbox().open()
        with live.spawn(["/bin/sh", "-c", SPIN]) as process, live:
            with meanwhile("let_die", live.freeze):
                getattr(live, end)()
            assert process.wait(DEADLINE) == -signal.SIGKILL


# ---- hosts that cannot -------------------------------------------------------


@pytest.mark.usefixtures("no_cgroups")
class TestWithoutCgroups:
    """A plain user without a delegated subtree."""

    @pytest.mark.parametrize(
        ("limits", "controller"),
        [
            ({"memory": "64M"}, "memory"),
            ({"pids": 16}, "pids"),
            ({"cpu": 0.5}, "cpu"),
            ({"cpu_time": 1}, "cpu.stat"),
        ],
        ids=repr,
    )
    def test_refused(self, limits: dict[str, Any], controller: str) -> None:
        """The error names the controller, its mount and a remedy; nothing was started."""
        with pytest.raises(UnsupportedError) as caught:
            Sandbox(limits=Limits(**limits)).run(["/bin/true"])
        text = str(caught.value)
        assert f"{controller!r}" in text
        assert "/sys/fs/cgroup" in text or "mount" in text
        assert "cgroup=" in text or "boot" in text or "mount" in text

    def test_degraded(self) -> None:
        """Allowed to go on without, it does, and says so."""
        names = {"memory", "swap", "pids", "cpu", "cpu_time"}
        limits = Limits(memory="64M", pids=16, cpu=0.5, cpu_time=9, wall_time=0.2, degrade=names)
        result = shell("exec sleep 60", limits)
        assert result.degraded == names
        assert result.reason is Reason.WALL_TIME
        assert result.usage.memory_peak is None


@pytest.mark.usefixtures("box")
def test_time_is_monotonic_and_in_order() -> None:
    """Usage.wall_time starts no later than the caller's own clock says."""
    start = time.monotonic()
    result = shell("exit 0", Limits(wall_time=DEADLINE))
    assert 0 < result.usage.wall_time <= time.monotonic() - start
