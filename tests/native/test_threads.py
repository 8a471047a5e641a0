"""Spawning from many threads, beside threads that allocate, log and fork."""

import faulthandler
import io
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from nsbox import Namespace, Sandbox, SpawnError, Tmpfs, lowlevel
from nsbox._spares import settle

PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
THREADS = 32

# Python 3.12 and later warn of a fork in a program with threads, which is the point here.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def no_hang(request: pytest.FixtureRequest) -> Iterator[None]:
    """A deadlock ends the run, with the stacks of all threads, instead of hanging it."""
    seconds = 3600 if request.config.getoption("--long") else 600
    faulthandler.dump_traceback_later(seconds, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def count(request: pytest.FixtureRequest) -> int:
    """How often to spawn."""
    return 2000 if request.config.getoption("--long") else 300


def dumpable() -> int:
    return lowlevel.prctl(PR_GET_DUMPABLE)


@contextmanager
def meanwhile(*works: Callable[[], object]) -> Iterator[None]:
    """Repeat each piece of work in a thread of its own during the with block."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def repeat(work: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                work()
        except BaseException as error:  # reported below, in the thread that tests
            failures.append(error)

    threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


def allocate() -> int:
    """Keep malloc and the garbage collector busy."""
    return sum(len(bytes(size)) for size in range(0, 200_000, 1777)) + len([[] for _ in range(999)])


def fork_and_wait(work: Callable[[], int] = lambda: 0) -> int:
    """Fork; the child does the work and ends with what it returns. Return its exit code."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            status = work()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.one_kernel
def test_threads_all_get_their_own_output(box: Sandbox, count: int) -> None:
    """Threads that spawn while others allocate and log do not hang or mix up their payloads."""
    log = logging.getLogger("nsbox-test")
    log.propagate = False
    handler = logging.StreamHandler(io.StringIO())
    log.addHandler(handler)

    def spawn(number: int) -> str:
        log.warning("spawning %d", number)
        result = box.run(["/bin/echo", str(number)], capture_output=True, text=True, check=True)
        log.warning("%s", [number, allocate()])
        return str(result.stdout)

    try:
        with meanwhile(allocate), ThreadPoolExecutor(THREADS) as pool:
            outputs = list(pool.map(spawn, range(count)))
    finally:
        log.removeHandler(handler)
    assert outputs == [f"{number}\n" for number in range(count)]


@pytest.mark.one_kernel
def test_threads_share_the_first_spawn() -> None:
    """Threads that all are the first to use a sandbox agree on one preparation of it."""
    for _ in range(5):
        box = Sandbox(mounts=[Tmpfs(f"/m/{number}") for number in range(20)])
        start = threading.Barrier(8)

        def spawn(box: Sandbox = box, start: threading.Barrier = start) -> int:
            start.wait()
            return box.run(["/bin/true"]).returncode

        with ThreadPoolExecutor(8) as pool:
            found = [future.result() for future in [pool.submit(spawn) for _ in range(8)]]
        assert found == [0] * 8


@pytest.mark.one_kernel
def test_threads_failures_stay_apart(box: Sandbox, count: int) -> None:
    """Each thread gets the error of its own spawn."""

    def fail(number: int) -> str | None:
        with pytest.raises(SpawnError) as caught:
            box.run([f"/none/{number}"])
        return caught.value.path

    with ThreadPoolExecutor(THREADS) as pool:
        paths = list(pool.map(fail, range(count // 3)))
    assert paths == [f"/none/{number}" for number in range(count // 3)]


def test_threads_may_end_before_their_payload(box: Sandbox) -> None:
    """A process that was spawned by a thread outlives the thread."""
    with ThreadPoolExecutor(1) as pool:
        process = pool.submit(
            lambda: box.spawn(["/bin/cat"], stdin=-1, stdout=-1, text=True)
        ).result()
    with process:
        assert process.communicate("text")[0] == "text"
    assert process.returncode == 0


# ---- fork ----------------------------------------------------------------


@pytest.mark.one_kernel
def test_threads_may_fork_meanwhile(box: Sandbox, count: int) -> None:
    """Forks in one thread and spawns in others do not disturb each other."""
    with meanwhile(*[lambda: box.run(["/bin/cat"], input=b"x", check=True)] * 3):
        codes = {fork_and_wait() for _ in range(count)}
    assert codes == {0}


@pytest.mark.one_kernel
def test_forked_child_can_spawn(box: Sandbox, count: int) -> None:
    """A child that was forked during spawns of other threads can use the same sandbox."""

    def work() -> int:
        signal.alarm(60)  # a lock that nobody is left to release would hang the child
        return box.run(["/bin/true"]).returncode

    box.run(["/bin/true"], check=True)
    with meanwhile(*[lambda: box.run(["/bin/true"], check=True)] * 3):
        for _ in range(count // 10):
            assert fork_and_wait(work) == 0


@pytest.mark.one_kernel
def test_forked_child_can_spawn_what_was_being_prepared() -> None:
    """A child that was forked during the first spawn of a sandbox can use that sandbox."""
    fresh = [Sandbox(mounts=[Tmpfs(f"/m/{number}") for number in range(300)])]

    def prepare() -> None:
        fresh[0] = Sandbox(mounts=fresh[0].mounts)
        with pytest.raises(SpawnError):
            fresh[0].run(["/none"])

    def work() -> int:
        signal.alarm(60)
        try:
            fresh[0].run(["/none"])
        except SpawnError:
            return 0
        return 1

    with meanwhile(prepare):
        for _ in range(20):
            assert fork_and_wait(work) == 0


@pytest.mark.one_kernel
def test_forked_child_is_dumpable(box: Sandbox, count: int) -> None:
    """A child that was forked during spawns has the caller's PR_GET_DUMPABLE."""
    before = dumpable()
    with meanwhile(*[lambda: box.run(["/bin/true"], check=True)] * 3):
        found = {fork_and_wait(dumpable) for _ in range(count // 3)}
    assert found == {before}


# ---- the dumpable mark ---------------------------------------------------


@pytest.mark.parametrize("mark", [0, 1])
def test_dumpable_is_kept(box: Sandbox, mark: int, plain_or_root: None) -> None:
    """PR_GET_DUMPABLE is the same before and after a spawn, whether it succeeds or fails."""
    lowlevel.prctl(PR_SET_DUMPABLE, mark)
    try:
        box.run(["/bin/true"], check=True)
        found = [dumpable()]
        with pytest.raises(SpawnError):
            box.run(["/none"])
        settle()  # who works ahead takes the mark off for a moment
        found.append(dumpable())
    finally:
        lowlevel.prctl(PR_SET_DUMPABLE, 1)
    assert found == [mark, mark]


@pytest.fixture
def plain_or_root(mark: int) -> None:
    """A plain user that is not dumpable cannot write id maps: its /proc files are root's."""
    if mark == 0 and os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.mark.one_kernel
def test_dumpable_is_kept_by_many_threads(box: Sandbox, count: int) -> None:
    """After spawns that overlapped, PR_GET_DUMPABLE is as before."""
    before = dumpable()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: box.run(["/bin/true"], check=True), range(count // 3)))
    settle()  # who works ahead takes the mark off for a moment
    assert dumpable() == before


@pytest.mark.parametrize(
    "ids",
    [
        {"host_uid": 0, "host_gid": 0},
        {"host_uid": 0},
        {"host_gid": 0},
        {"user": "host", "uid": 1000},
        {"user": "host", "gid": 1000},
        {"user": "host", "uid": 1000, "gid": 1000},
    ],
    ids=repr,
)
def test_dumpable_is_kept_by_every_change_of_ids(root: None, ids: dict[str, object]) -> None:
    """Whatever ids root gives a payload, PR_GET_DUMPABLE of the caller is as before."""
    before = dumpable()
    Sandbox(**ids).run(["/bin/true"], check=True)  # type: ignore[arg-type]
    after = dumpable()
    lowlevel.prctl(PR_SET_DUMPABLE, before)
    assert after == before


@pytest.mark.parametrize("ids", [{}, {"user": "host", "uid": 1000}], ids=repr)
@pytest.mark.parametrize("kind", ["net", "uts", "ipc"])
def test_dumpable_is_kept_by_a_launcher(root: None, kind: str, ids: dict[str, object]) -> None:
    """A spawn that joins a namespace leaves PR_GET_DUMPABLE as it was, too."""
    before = dumpable()
    with Namespace.create(kind) as namespace:
        Sandbox(**{kind: namespace, **ids}).run(["/bin/true"], check=True)  # type: ignore[arg-type]
    after = dumpable()
    lowlevel.prctl(PR_SET_DUMPABLE, before)
    assert after == before


def test_proc_self_is_ones_own_meanwhile(plain_user: None, box: Sandbox, count: int) -> None:
    """While a plain user spawns, the entries of /proc/self stay that user's, and readable."""
    with meanwhile(*[lambda: box.run(["/bin/true"], check=True)] * 3):
        for _ in range(count):
            assert os.stat("/proc/self/environ").st_uid == os.geteuid()
            assert dumpable() == 1
            Path("/proc/self/environ").read_bytes()
