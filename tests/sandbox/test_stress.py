"""A caller in a bad state: short of descriptors, stack or memory, forked, flooded with signals."""

import errno
import faulthandler
import gc
import importlib
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from types import FrameType, ModuleType

import pytest

from conftest import children, open_fds
from nsbox import DEVNULL, PIPE, Sandbox, SpawnError, Step, TimeoutExpired
from support import SOURCE, in_child

pytestmark = [pytest.mark.usefixtures("box"), pytest.mark.one_kernel]

CAT = ["/bin/cat"]
LONG = ["/bin/sleep", "1000"]


def echo(box: Sandbox) -> bytes:
    """Send something through a payload: pipes, communicate, wait."""
    output: bytes = box.run(CAT, input=b"text", capture_output=True).stdout
    return output


def left() -> tuple[set[int], set[int]]:
    gc.collect()
    fds = set(open_fds())
    return children(), fds


# ---- signals --------------------------------------------------------------


def test_storm_of_signals_changes_no_result() -> None:
    """With an interval timer and a thread that sends signals, every call ends as it should."""

    def child() -> tuple[set[object], int]:
        seen = []
        for number in (signal.SIGALRM, signal.SIGPROF, signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(number, lambda *_: seen.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        signal.setitimer(signal.ITIMER_PROF, 0.0003, 0.0003)
        stop, main = threading.Event(), threading.main_thread().ident
        assert main is not None

        def send() -> None:
            while not stop.wait(0.0005):
                signal.pthread_kill(main, signal.SIGUSR1)

        sender = threading.Thread(target=send)
        sender.start()
        box, results = Sandbox(), set[object]()
        for _ in range(30):
            results.add(echo(box))
            with box.spawn(["/bin/sh", "-c", "exit 7"], stdin=DEVNULL) as process:
                results.add(process.wait(60))
            with box.spawn(LONG, stdin=DEVNULL) as process:
                with pytest.raises(TimeoutExpired):
                    process.wait(0.001)
                process.kill()
            results.add(process.returncode)
            with pytest.raises(FileNotFoundError):
                box.run(["/missing"])
        stop.set()
        sender.join()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        return results, len(seen)

    results, signals = in_child(child)
    assert results == {b"text", 7, -signal.SIGKILL}
    assert signals > 100


class Interrupted(Exception):
    """Raised by a signal handler."""


def test_storm_of_handlers_that_raise_leaves_no_process(request: pytest.FixtureRequest) -> None:
    """Wherever a timer's handler raises, in the clean-up after another too, no process is left."""
    rounds = 2000 if request.config.getoption("--long") else 200

    def child() -> tuple[int, set[int]]:
        left_to_raise = 0

        def interrupt(number: int, frame: FrameType | None) -> None:
            nonlocal left_to_raise
            left_to_raise -= 1
            if left_to_raise == 0:
                signal.setitimer(signal.ITIMER_REAL, 0)
            raise Interrupted

        sys.unraisablehook = lambda _: None
        signal.signal(signal.SIGALRM, interrupt)
        box, interrupted = Sandbox(), 0
        for number in range(rounds):
            # Later and later; then while the first exception is dealt with, or was lost in __del__.
            first, left_to_raise = 0.0002 + 0.00004 * (number % 200), 3
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, first, 0.0007)
                    box.run(LONG, stdin=PIPE, stdout=PIPE)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupted:
                interrupted += 1
        gc.collect()
        return interrupted, children()

    interrupted, processes = in_child(child)
    assert interrupted == rounds
    assert processes == set()


def test_handler_of_sigchld_that_reaps_everything() -> None:
    """A handler that calls waitpid(-1) until nothing is left does not take the result."""

    def child() -> list[int | None]:
        reaped = set()

        def reap(number: int, frame: FrameType | None) -> None:
            try:
                while (found := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                    reaped.add(found[0])
            except ChildProcessError:
                pass

        signal.signal(signal.SIGCHLD, reap)
        box, statuses = Sandbox(), list[int | None]()
        for _ in range(20):
            statuses.append(box.run(["/bin/sh", "-c", "exit 3"]).returncode)
            with box.spawn(["/bin/sh", "-c", "exit 3"], stdin=DEVNULL) as process:
                while process.pid not in reaped:  # so that the handler is the first
                    assert process.pidfd is not None
                    select.select([process.pidfd], [], [], 60)
                statuses.append(process.wait(60))
        return statuses

    # Before Linux 6.15 the status is lost, and taken for success.
    assert set(in_child(child)) <= ({3} if _kernel() >= (6, 15) else {0, 3})


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split("-")[0].split(".")[:2]
    return int(major), int(minor)


# ---- descriptors ----------------------------------------------------------


def test_thousands_of_open_descriptors() -> None:
    """With 2000 descriptors open, all of nsbox's are above 1024 (select's limit), and all works."""

    def child() -> tuple[int | None, bytes, int, bytes]:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
        for _ in range(2000):
            os.set_inheritable(os.open("/dev/null", os.O_RDONLY), True)
        box = Sandbox()
        with box.spawn(CAT, stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
            pidfd = process.pidfd
            output, _ = process.communicate(b"text", timeout=60)
        inside = box.run(["/bin/sh", "-c", "echo /proc/self/fd/*"], stdout=PIPE).stdout
        return pidfd, output, process.returncode, inside

    pidfd, output, status, inside = in_child(child)
    assert pidfd is not None
    assert pidfd > 2000
    assert (output, status) == (b"text", 0)
    assert len(inside.split()) <= 4  # the shell has the directory open while it lists it


def test_every_limit_of_descriptors() -> None:
    """Whichever descriptor is one too many: an error that says so, and nothing left."""

    def child() -> tuple[set[str], list[int], bytes]:
        box = Sandbox()
        echo(box)
        before = left()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        steps, wrong, status = set[str](), [], None
        for limit in range(3, 200):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            try:
                # Without pipes: those of subprocess leak when the second fails, before 3.11.5.
                status = box.run(["/bin/true"]).returncode
            except SpawnError as error:
                steps.add(error.step)
                if error.errno != errno.EMFILE or "RLIMIT_NOFILE" not in str(error):
                    wrong.append(limit)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            if left() != before:
                wrong.append(limit)
            if status == 0:
                break
        return steps, wrong, echo(box)

    steps, wrong, output = in_child(child)
    assert wrong == []
    assert output == b"text"
    assert {Step.PIDFD_OPEN, Step.CLONE, Step.FSMOUNT} <= steps


# ---- other limits ---------------------------------------------------------


@pytest.mark.parametrize("name", ["CORE", "MEMLOCK", "MSGQUEUE", "NICE", "RTPRIO", "SIGPENDING"])
def test_limits_that_are_zero_do_not_matter(name: str) -> None:
    """A caller whose limit of something is zero can make sandboxes all the same."""

    def child() -> bytes:
        limit = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(limit, (0, resource.getrlimit(limit)[1]))
        return echo(Sandbox())

    assert in_child(child) == b"text"


def test_limit_of_processes_is_an_error_that_names_it(plain_user: None) -> None:
    """A caller that may have no more processes is told so, and spawns again when it may."""

    def child() -> tuple[str, bool, bytes]:
        soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))
        with pytest.raises(SpawnError) as caught:
            Sandbox().run(["/bin/true"])
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
        return caught.value.step, "RLIMIT_NPROC" in str(caught.value), echo(Sandbox())

    assert in_child(child) == (Step.CLONE, True, b"text")


def test_limit_of_file_size_is_an_error_that_names_it() -> None:
    """The files that a set-up writes count against RLIMIT_FSIZE; no signal ends the caller."""

    def child() -> tuple[str, int | None, bool, bytes]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        with pytest.raises(SpawnError) as caught:
            Sandbox().run(["/bin/true"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        error = caught.value
        return error.step, error.errno, "RLIMIT_FSIZE" in str(error), echo(Sandbox())

    assert in_child(child) == (Step.WRITE_FILE, errno.EFBIG, True, b"text")


def test_every_limit_of_memory() -> None:
    """With an address space that is full: ENOMEM or MemoryError, nothing left, and on it goes."""

    def child() -> tuple[list[str], bool, bytes]:
        box = Sandbox()
        echo(box)
        before, wrong, refused = left(), [], False
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        for extra in range(0, 1 << 20, 1 << 15):
            resource.setrlimit(resource.RLIMIT_AS, (size + extra, hard))
            try:
                output = echo(box).decode()
            except MemoryError:
                output = ""
            except OSError as error:
                refused = True
                output = "" if error.errno == errno.ENOMEM else str(error)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
            if output not in ("", "text") or left() != before:
                wrong.append(f"{extra}: {output}")
        return wrong, refused, echo(box)

    wrong, refused, output = in_child(child)
    assert wrong == []
    assert refused
    assert output == b"text"


def test_every_allocation_that_fails(request: pytest.FixtureRequest) -> None:
    """Whichever of Python's allocations fails, no process is left, and nothing is broken."""
    testcapi = pytest.importorskip("_testcapi")
    step = 1 if request.config.getoption("--long") else 3

    def child() -> tuple[int, set[int], bytes]:
        sys.unraisablehook = lambda _: None
        warnings.simplefilter("ignore")
        box, failures, output = Sandbox(), 0, b""
        echo(box)
        for number in range(1, 1200, step):
            # Used once: nothing works ahead in a thread. The library closes descriptors twice
            # when it has no memory, and they could be that thread's by then.
            box = Sandbox()
            try:
                testcapi.set_nomemory(number, number + 1)
                echo(box)
            except (MemoryError, RuntimeError):  # "can't allocate lock"
                failures += 1
            finally:
                testcapi.remove_mem_hooks()
        gc.collect()
        output = echo(box)
        return failures, children(), output

    failures, processes, output = in_child(child)
    assert failures > 50
    assert processes == set()
    assert output == b"text"


def test_every_depth_of_recursion() -> None:
    """However little stack is left: RecursionError or success, nothing left, and on it goes."""

    def child() -> tuple[list[int], set[bytes], bytes]:
        box = Sandbox()
        echo(box)
        before, wrong, outcomes = left(), [], set()
        sys.unraisablehook = lambda _: None
        warnings.simplefilter("ignore")

        def deep(levels: int) -> bytes:
            return deep(levels - 1) if levels else echo(box)

        for levels in range(sys.getrecursionlimit() - 90, sys.getrecursionlimit() - 10):
            try:
                outcomes.add(deep(levels))
            except RecursionError:
                outcomes.add(b"")
            if left()[0] != before[0]:
                wrong.append(levels)
        return wrong, outcomes, echo(box)

    wrong, outcomes, output = in_child(child)
    assert wrong == []
    assert outcomes == {b"", b"text"}
    assert output == b"text"


# ---- fork -----------------------------------------------------------------


def test_forked_child_can_do_nothing_to_an_inherited_process() -> None:
    """To a fork of the caller its Process seems to have ended, as with Popen; the payload lives."""
    with Sandbox().spawn(CAT, stdin=PIPE, stdout=PIPE) as process:

        def child() -> tuple[object, ...]:
            copies = set(open_fds())
            found = process.poll(), process.wait(), process.wait(1), process.pidfd
            process.kill()
            process.send_signal(signal.SIGTERM)
            return *found, len(copies - set(open_fds()))

        # The last: its copy of the pidfd is closed.
        assert in_child(child) == (0, 0, 0, None, 1)
        assert process.poll() is None
        assert process.communicate(b"alive", timeout=60)[0] == b"alive"


def test_process_that_a_forked_child_forgets_lives_on() -> None:
    """A fork that collects an inherited Process neither kills it nor warns, and closes its copy."""
    kept = [Sandbox().spawn(CAT, stdin=PIPE, stdout=PIPE)]

    def child() -> tuple[int, list[str]]:
        pidfd = kept[0].pidfd
        for stream in (kept[0].stdin, kept[0].stdout):
            assert stream is not None
            stream.close()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            kept.clear()
            gc.collect()
        return int(pidfd in open_fds()), [str(warning.message) for warning in caught]

    assert in_child(child) == (0, [])
    with kept[0] as process:
        assert process.communicate(b"alive", timeout=60)[0] == b"alive"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method: str, tmp_path: Path) -> None:
    """A Sandbox that was used goes to the processes of multiprocessing, and works there."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import multiprocessing, nsbox
box = nsbox.Sandbox(hostname="other")

def work(number):
    return box.run(["/bin/sh", "-c", f"exit {{number}}"]).returncode

def take(box, number):
    return box.run(["/bin/sh", "-c", f"exit {{number}}"]).returncode

if __name__ == "__main__":
    box.run(["/bin/true"], check=True)
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        assert pool.map(work, range(4)) == [0, 1, 2, 3]
        assert pool.starmap(take, [(box, number) for number in range(4)]) == [0, 1, 2, 3]
""")
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    subprocess.run([sys.executable, script], env=environment, check=True, timeout=120)


# ---- threads --------------------------------------------------------------


def test_threads_that_wait_poll_and_signal_at_once() -> None:
    """While others wait, poll() does not block, and whoever is last closes the descriptor."""

    def child() -> tuple[set[int | None], set[int | None], int | None, bool]:
        before, box = left(), Sandbox()
        polled, waited, pidfds = set[int | None](), set[int | None](), set[int | None]()
        for _ in range(20):
            with box.spawn(LONG, stdin=DEVNULL) as process:
                calls = [process.wait, lambda p=process: p.wait(60)] * 3
                threads = [
                    threading.Thread(target=lambda call=call: waited.add(call())) for call in calls
                ]
                for thread in threads:
                    thread.start()
                for _ in range(20):
                    polled.add(process.poll())
                    process.send_signal(0)
                process.kill()
                for thread in threads:
                    thread.join()
            pidfds.add(process.pidfd)
        return polled, waited, pidfds.pop(), left() == before

    assert in_child(child) == ({None}, {-signal.SIGKILL}, None, True)


# ---- the interpreter ------------------------------------------------------


def _subinterpreters() -> ModuleType:
    for name in ("_interpreters", "_xxsubinterpreters"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    pytest.skip("this Python has no module for subinterpreters")


def test_subinterpreter_works_or_says_that_it_does_not(tmp_path: Path) -> None:
    """In a subinterpreter nsbox works or is an ImportError; the main interpreter works after it."""
    interpreters = _subinterpreters()
    report = tmp_path / "report"
    code = f"""
import sys
sys.path[:] = {[str(SOURCE), *sys.path]!r}
try:
    import nsbox
except ImportError as error:
    found = f"ImportError {{error}}"
else:
    found = str(nsbox.Sandbox().run(["/bin/true"]).returncode)
with open({str(report)!r}, "w") as file:
    file.write(found)
"""

    def child() -> bytes:
        for _ in range(3):
            interpreter = interpreters.create()
            interpreters.run_string(interpreter, code)
            interpreters.destroy(interpreter)
        return echo(Sandbox())

    assert in_child(child) == b"text"
    found = report.read_text()
    assert found == "0" or "does not support loading in subinterpreters" in found


def test_collections_at_every_allocation() -> None:
    """With a collection at nearly every allocation, forgotten processes disturb no other spawn."""

    def child() -> tuple[set[bytes], set[int]]:
        warnings.simplefilter("ignore")
        box, outputs = Sandbox(), set()
        gc.set_threshold(1, 1, 1)
        for _ in range(20):
            process = box.spawn(LONG, stdin=DEVNULL)
            process.me = process  # type: ignore[attr-defined]
            del process
            outputs.add(echo(box))
        gc.set_threshold(700)
        gc.collect()
        return outputs, children()

    assert in_child(child) == ({b"text"}, set())


def test_process_that_another_thread_forgets() -> None:
    """A Process may be collected by another thread than the one that spawned it."""

    def child() -> set[int]:
        warnings.simplefilter("ignore")
        kept = [Sandbox().spawn(LONG, stdin=DEVNULL)]
        thread = threading.Thread(target=kept.clear)
        thread.start()
        thread.join()
        return children()

    assert in_child(child) == set()


def test_faulthandler_that_dumps_all_the_time() -> None:
    """The alternate stack, handlers and watchdog thread of faulthandler do not disturb spawns."""

    def child() -> tuple[set[bytes], int]:
        faulthandler.enable()
        # The watchdog only waits: its dump of a running thread's frames crashes any program.
        faulthandler.dump_traceback_later(3600)
        box = Sandbox()
        echo(box)
        with tempfile.TemporaryFile() as file:
            faulthandler.register(signal.SIGALRM, file=file, all_threads=False, chain=False)
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            outputs = {echo(box) for _ in range(20)}
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
            return outputs, file.tell()

    outputs, dumped = in_child(child)
    assert outputs == {b"text"}
    assert dumped > 0


def test_crash_of_a_payload_is_its_own() -> None:
    """A payload that crashes has none of the caller's handlers: nothing is printed by them."""

    def child() -> tuple[int, bytes]:
        with open(os.devnull, "w") as null:
            faulthandler.enable(file=null)
            crash = ["/bin/sh", "-c", "kill -SEGV $$"]
            result = Sandbox(pid="host").run(crash, capture_output=True)
        return result.returncode, result.stderr

    assert in_child(child) == (-signal.SIGSEGV, b"")
