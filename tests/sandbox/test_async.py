"""run_async() and spawn_async(): the same sandboxes, waited for by an event loop."""

import asyncio
import errno
import gc
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from conftest import await_tasks, children, open_fds, tasks, unavailable
from nsbox import (
    PIPE,
    STDOUT,
    AsyncProcess,
    Bind,
    CalledProcessError,
    Limits,
    PlanError,
    Pool,
    Reason,
    Result,
    Sandbox,
    SpawnError,
    TimeoutExpired,
)
from nsbox._spares import drain
from nsbox.errors import Step
from support import (
    HANDS_ON,
    PYTHON,
    SOURCE,
    ends,
    expired,
    full,
    in_child,
    python_box,
    stop,
    write_on,
)

pytestmark = pytest.mark.usefixtures("box")

T = TypeVar("T")
Main = Coroutine[Any, Any, T]
Run = Callable[[Main[T]], T]
NewLoop = Callable[[], asyncio.AbstractEventLoop]

SH = "/bin/sh"
HOST_PID = Sandbox(pid="host", mounts=[Bind("/proc")])


@pytest.fixture(scope="module", autouse=True)
def new_loops() -> dict[str, NewLoop]:
    """What makes an event loop, by its kind."""
    found: dict[str, NewLoop] = {"asyncio": asyncio.new_event_loop}
    try:
        import uvloop
    except ImportError:
        return found
    uvloop.new_event_loop().close()  # libuv opens a pipe for signals once, and keeps it
    return {**found, "uvloop": uvloop.new_event_loop}


# Both ask the kernel for the same things.
@pytest.fixture(params=["asyncio", pytest.param("uvloop", marks=pytest.mark.one_kernel)])
def new_loop(request: pytest.FixtureRequest, new_loops: dict[str, NewLoop]) -> NewLoop:
    """Makes an event loop of either kind."""
    if request.param not in new_loops:
        unavailable(f"no {request.param} (pip install {request.param})")
    return new_loops[request.param]


@pytest.fixture
def run(new_loop: NewLoop) -> Iterator[Run[Any]]:
    """Runs a coroutine to its end, in a loop of its own, which has nothing to complain about."""
    complaints: list[dict[str, Any]] = []

    def run(main: Main[T]) -> T:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.get_loop().set_exception_handler(lambda _, context: complaints.append(context))
            return runner.run(main)

    yield run
    assert complaints == []


def reader_of(process: AsyncProcess) -> asyncio.StreamReader:
    assert process.stdout is not None
    return process.stdout


def writer_of(process: AsyncProcess) -> asyncio.StreamWriter:
    assert process.stdin is not None
    return process.stdin


# ---- run_async -------------------------------------------------------------


def test_run_is_the_same_as_run(run: Run[Result]) -> None:
    """Options and result are those of run()."""
    options: dict[str, Any] = {
        "input": "in\r\n",
        "capture_output": True,
        "text": True,
        "env": {"A": "b"},
    }
    args = [SH, "-c", "cat; echo $A; printf 'x\\r\\ny' >&2; exit 3"]
    expected = Sandbox().run(args, **options)
    result = run(Sandbox().run_async(args, **options))
    assert isinstance(result, Result)
    for name in ("args", "returncode", "stdout", "stderr", "reason", "enforced"):
        assert getattr(result, name) == getattr(expected, name)
    assert result.usage.wall_time > 0


def test_run_captures_bytes(run: Run[Result]) -> None:
    """Much input and output at the same time; usage says how much was captured."""
    data = os.urandom(3_000_000)
    result = run(Sandbox().run_async(["/bin/cat"], input=data, capture_output=True))
    assert (result.stdout, result.stderr) == (data, b"")
    assert result.usage.output == len(data)


def test_run_without_pipes(run: Run[Result]) -> None:
    """What is not captured is None."""
    result = run(Sandbox().run_async([SH, "-c", "exit 7"]))
    assert (result.returncode, result.stdout, result.stderr) == (7, None, None)


def test_run_joins_stderr(run: Run[Result]) -> None:
    """stderr=STDOUT goes where stdout goes."""
    args = [SH, "-c", "echo a; echo b >&2"]
    result = run(Sandbox().run_async(args, stdout=PIPE, stderr=STDOUT))
    assert (result.stdout, result.stderr) == (b"a\nb\n", None)


def test_run_checks(run: Run[Result]) -> None:
    """check=True raises as run() does."""
    with pytest.raises(CalledProcessError) as raised:
        run(Sandbox().run_async([SH, "-c", "echo x; exit 2"], stdout=PIPE, check=True))
    assert (raised.value.returncode, raised.value.stdout) == (2, b"x\n")


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": -1, "capture_output": True, "stdout": PIPE},
        {"input": b"", "stdin": PIPE},
        {"timeout": "1"},
        {"nothing": 1},
    ],
)
def test_run_refuses_what_run_refuses(run: Run[Result], options: dict[str, Any]) -> None:
    """Options that cannot be meant are a PlanError."""
    with pytest.raises(PlanError):
        run(Sandbox().run_async(["/bin/true"], **options))


def test_failed_start_is_a_spawn_error(run: Run[Any]) -> None:
    """As with spawn(), a program that cannot be executed is an exception."""
    for method in (Sandbox().run_async, Sandbox().spawn_async):
        with pytest.raises(SpawnError) as raised:
            run(method(["/nothing"], stdin=PIPE, stdout=PIPE))
        assert raised.value.step == "execve"


def test_wrong_input_leaves_nothing(run: Run[Result]) -> None:
    """Input of a wrong type raises as in run(); the payload that was there is gone."""
    with pytest.raises(TypeError):
        run(Sandbox().run_async(["/bin/cat"], input=1, stdout=PIPE))
    with pytest.raises(TypeError, match="must be a str"):
        run(Sandbox().run_async(["/bin/cat"], input=b"", text=True))


def test_timeout_is_as_in_run(run: Run[Result]) -> None:
    """At the timeout the sandbox is killed; what was captured comes with the exception."""
    args = [SH, "-c", "echo e >&2; echo x; exec sleep 1000"]
    raised = expired(
        lambda timeout: run(
            Sandbox().run_async(args, capture_output=True, text=True, timeout=timeout)
        )
    )
    captured: tuple[Any, Any] = raised.stdout, raised.stderr
    assert (raised.cmd, captured) == (args, ("x\n", "e\n"))
    assert children() == set()


def test_timeout_does_not_wait_for_who_was_handed_the_pipes(run: Run[Result]) -> None:
    """It ends though somebody outside has what the payload wrote to, and read from."""
    box, (ours, theirs) = python_box(), socket.socketpair()
    with ours, theirs:
        args = [*PYTHON, f"{HANDS_ON}; time.sleep(1000)", str(theirs.fileno())]
        options: dict[str, Any] = {"input": b"y" * 200_000, "pass_fds": [theirs.fileno()]}
        options["capture_output"] = True
        raised = expired(lambda timeout: run(box.run_async(args, timeout=timeout, **options)))
    captured: tuple[Any, Any] = raised.stdout, raised.stderr
    assert captured == (b"x\n", b"")


@pytest.mark.parametrize("init", [False, True])
def test_run_does_not_wait_for_who_writes_on(run: Run[Result], init: bool) -> None:
    """It ends with the payload though somebody writes to its pipe without end."""
    box, (ours, theirs) = python_box(init=init), socket.socketpair()
    with ours, theirs, ThreadPoolExecutor() as threads:
        threads.submit(write_on, ours)
        args = [*PYTHON, HANDS_ON, str(theirs.fileno())]
        result = run(box.run_async(args, capture_output=True, pass_fds=[theirs.fileno()]))
    assert result.returncode == 0
    assert result.stdout.strip(b"y") == b"x\n"


@pytest.mark.parametrize("timeout", [0, -1])
def test_timeout_that_is_over(run: Run[Result], timeout: float) -> None:
    """So it is where there was no time at all."""
    args = ["/bin/sleep", "1000"]
    with pytest.raises(TimeoutExpired) as raised:
        run(Sandbox().run_async(args, capture_output=True, timeout=timeout))
    assert (raised.value.cmd, raised.value.timeout) == (args, timeout)
    assert children() == set()


def test_timeout_does_not_wait_for_others(run: Run[Result]) -> None:
    """Where something may outlive the payload and hold its pipes, nobody waits for that."""
    args = [SH, "-c", "echo $$; exec /bin/sleep 1000 <&-"]
    raised = expired(lambda timeout: run(HOST_PID.run_async(args, stdout=PIPE, timeout=timeout)))
    assert raised.stdout is not None
    assert raised.stdout.strip().isdigit()


def test_limit_of_output_holds(run: Run[Result]) -> None:
    """Limits.output ends it, with what was captured up to the limit, of both streams together."""
    box = Sandbox(limits=Limits(output=100_000))
    result = run(box.run_async([SH, "-c", "yes & yes >&2"], input=b"", capture_output=True))
    assert result.reason is Reason.OUTPUT
    assert len(result.stdout) + len(result.stderr) == result.usage.output == 100_000


def test_output_within_the_limit_is_no_reason(run: Run[Result]) -> None:
    """Exactly the limit is within it."""
    box = Sandbox(limits=Limits(output=5))
    result = run(box.run_async([SH, "-c", "printf 12345"], capture_output=True))
    assert (result.reason, result.stdout) == (Reason.EXIT, b"12345")


def test_limit_cuts_no_character_in_two(run: Run[Result]) -> None:
    """Text that the limit cuts inside of a character ends before it, as with run()."""
    box = Sandbox(limits=Limits(output=4))
    result = run(box.run_async([SH, "-c", "printf 'abc\\303\\244'"], stdout=PIPE, encoding="utf-8"))
    assert (result.reason, result.stdout) == (Reason.OUTPUT, "abc")


def test_wall_time_is_a_reason(run: Run[Result]) -> None:
    """The limits of a run are those of the sandbox."""
    box = Sandbox(limits=Limits(wall_time=0.1))
    assert run(box.run_async(["/bin/sleep", "1000"])).reason is Reason.WALL_TIME


# ---- spawn_async -----------------------------------------------------------


def test_process_is_like_asyncio_s(run: Run[None]) -> None:
    """Streams, wait, and what asyncio.subprocess.Process has, with what Process adds."""

    async def main() -> None:
        process = await Sandbox().spawn_async(["/bin/cat"], stdin=PIPE, stdout=PIPE)
        for name in vars(asyncio.subprocess.Process):
            assert name.startswith("_") or hasattr(process, name)
        assert process.returncode is None
        assert process.pid in children()
        assert process.pidfd is not None
        assert str(process.enforced)
        writer_of(process).write(b"a\nb\n")
        await writer_of(process).drain()
        assert await reader_of(process).readline() == b"a\n"
        writer_of(process).close()
        assert await reader_of(process).read() == b"b\n"
        assert await process.wait() == 0
        ended: tuple[Any, ...] = process.returncode, process.reason, process.pidfd
        assert ended == (0, Reason.EXIT, None)
        assert process.usage is not None
        assert process.stderr is None

    run(main())


def test_communicate_is_as_popen_s(run: Run[None]) -> None:
    """communicate() writes, closes, reads both and waits; without input it closes stdin, too."""

    async def main() -> None:
        for data in (b"x" * 200_000, b"", None):
            process = await Sandbox().spawn_async(
                [SH, "-c", "cat; echo e >&2"], stdin=PIPE, stdout=PIPE, stderr=PIPE
            )
            assert await process.communicate(data) == (data or b"", b"e\n")
            assert process.returncode == 0

    run(main())


def test_cancelled_communicate_can_be_continued(run: Run[None]) -> None:
    """What a cancelled communicate() had read is in the result of the next; its input stays."""

    async def main() -> None:
        program = "echo one; read x; echo $x; cat >/dev/null"
        process = await Sandbox().spawn_async([SH, "-c", program], stdin=PIPE, stdout=PIPE)
        first = asyncio.create_task(process.communicate(b"two\n" + b"x" * 500_000))
        while not process._captured.size:
            await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        with pytest.raises(ValueError, match="Cannot send input"):
            await process.communicate(b"more")
        assert await process.communicate() == (b"one\ntwo\n", None)

    run(main())


def test_communicate_that_is_cancelled_at_once_keeps_its_input(run: Run[None]) -> None:
    """Wherever it was: what was to be written is written."""

    async def main() -> None:
        for steps in range(1, 5):
            process = await Sandbox().spawn_async(["/bin/cat"], stdin=PIPE, stdout=PIPE)
            assert await cancelled_after(steps, process.communicate(b"input"))
            assert await process.communicate() == (b"input", None)

    run(main())


def test_signals_are_sent(run: Run[None]) -> None:
    """send_signal, terminate and kill; nothing happens when it has ended."""

    async def main() -> None:
        for number, send in (
            (signal.SIGUSR1, lambda process: process.send_signal(signal.SIGUSR1)),
            (signal.SIGTERM, AsyncProcess.terminate),
            (signal.SIGKILL, AsyncProcess.kill),
        ):
            process = await HOST_PID.spawn_async(["/bin/sleep", "1000"])
            send(process)
            assert await process.wait() == -number
            send(process)
            assert process.reason is Reason.SIGNAL

    run(main())


def test_a_signal_that_finds_it_dead_leaves_its_end_to_the_loop(run: Run[None]) -> None:
    """send_signal() may reap it before the loop has looked; wait() still comes to its end."""

    async def main() -> None:
        process = await Sandbox().spawn_async(["/bin/true"])
        assert process.pidfd is not None
        ends(process.pidfd)
        process.send_signal(0)
        assert process.pidfd is None
        assert await process.wait() == 0

    run(main())


def test_many_wait_for_one(run: Run[list[int]]) -> None:
    """Any number of tasks may wait."""

    async def main() -> list[int]:
        process = await Sandbox().spawn_async(["/bin/cat"], stdin=PIPE)
        waiting = [asyncio.create_task(process.wait()) for _ in range(5)]
        await asyncio.sleep(0)
        writer_of(process).close()
        return await asyncio.gather(*waiting)

    assert run(main()) == [0] * 5


def test_broken_pipe_is_an_error_of_drain(run: Run[None]) -> None:
    """Writing to a payload that reads no more raises; communicate() ignores it."""

    async def main() -> None:
        process = await Sandbox().spawn_async(["/bin/true"], stdin=PIPE)
        await process.wait()
        writer_of(process).write(b"x" * 1_000_000)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await writer_of(process).drain()
        process = await Sandbox().spawn_async(["/bin/true"], stdin=PIPE)
        assert await process.communicate(b"x" * 1_000_000) == (None, None)

    run(main())


@pytest.mark.parametrize("limit", [0, -1, 1.5, None])
def test_limit_must_be_a_number(run: Run[Any], limit: Any) -> None:
    """limit is a positive number of bytes."""
    with pytest.raises(PlanError, match="limit"):
        run(Sandbox().spawn_async(["/bin/true"], limit=limit))


@pytest.mark.parametrize(
    "options", [{"text": True}, {"encoding": "utf-8"}, {"errors": "strict"}, {"bufsize": 1}]
)
def test_streams_carry_bytes(run: Run[Any], options: dict[str, Any]) -> None:
    """Options of text layers are refused, as asyncio refuses them."""
    with pytest.raises(PlanError):
        run(Sandbox().spawn_async(["/bin/true"], **options))


def test_limit_is_that_of_the_streams(run: Run[None]) -> None:
    """A line longer than the limit is an error of readline(), as in asyncio."""

    async def main() -> None:
        async with await Sandbox().spawn_async(
            [SH, "-c", "printf %0100d 1"], stdout=PIPE, limit=50
        ) as process:
            with pytest.raises(ValueError, match="limit"):
                await reader_of(process).readline()

    run(main())


@pytest.mark.one_kernel
def test_much_output_does_not_pile_up(new_loop: NewLoop, request: pytest.FixtureRequest) -> None:
    """A reader that is slower than the payload pauses it: memory does not grow."""
    size = 2**30 if request.config.getoption("--long") else 2**27

    async def main() -> int:
        read = 0
        async with await Sandbox().spawn_async(
            [SH, "-c", f"head -c {size} /dev/zero"], stdout=PIPE
        ) as process:
            while data := await reader_of(process).read(65536):
                read += len(data)
                await asyncio.sleep(0)
        return read

    def measure() -> tuple[int, int]:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with asyncio.Runner(loop_factory=new_loop) as runner:
            read = runner.run(main())
        return read, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    read, growth = in_child(measure)
    assert read == size
    assert growth < 32 * 1024  # KiB


def test_processes_run_at_the_same_time(run: Run[None]) -> None:
    """Twenty sandboxes wait for each other in one loop, without a thread."""

    async def main() -> None:
        box, before = Sandbox(), tasks()
        processes = [
            await box.spawn_async(["/bin/cat"], stdin=PIPE, stdout=PIPE) for _ in range(20)
        ]
        for process in reversed(processes):
            writer_of(process).write(b"%d\n" % process.pid)
            assert await reader_of(process).readline() == b"%d\n" % process.pid
        drain()  # the thread that works ahead comes and goes
        assert threading.active_count() == 1
        await_tasks(before)
        for process in processes:
            writer_of(process).close()
        assert await asyncio.gather(*(process.wait() for process in processes)) == [0] * 20

    run(main())


@pytest.mark.one_kernel
def test_loops_in_several_threads(new_loop: NewLoop) -> None:
    """Each thread may have a loop; a payload belongs to the one that it was started in."""
    box = Sandbox()
    results: dict[int, list[bytes]] = {}

    async def main(number: int) -> None:
        runs = [box.run_async([SH, "-c", f"echo {number} {run}"], stdout=PIPE) for run in range(10)]
        results[number] = [result.stdout for result in await asyncio.gather(*runs)]

    def work(number: int) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(main(number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {n: [b"%d %d\n" % (n, run) for run in range(10)] for n in range(4)}
    assert results == expected


# ---- in a live sandbox -----------------------------------------------------


def test_live_sandbox_has_the_same(run: Run[None]) -> None:
    """Several at a time in one world; what is cancelled or late is killed, and the world stays."""

    async def main() -> None:
        with Sandbox().open() as live:
            results = await asyncio.gather(
                *(live.run_async(["/bin/echo", str(n)], capture_output=True) for n in range(5))
            )
            assert [result.stdout for result in results] == [b"%d\n" % n for n in range(5)]
            assert await cancelled_after(3, live.run_async(["/bin/sleep", "1000"]))
            with pytest.raises(TimeoutExpired):
                await live.run_async(["/bin/sleep", "1000"], timeout=0.1)
            async with await live.spawn_async(["/bin/cat"], stdin=PIPE, stdout=PIPE) as process:
                writer_of(process).write(b"x\n")
                assert await reader_of(process).readline() == b"x\n"
            assert process.returncode == 0
            listing = await live.run_async([SH, "-c", "echo /proc/[0-9]*"], stdout=PIPE)
            assert len(listing.stdout.split()) == 2  # the init and the shell

    run(main())


def test_end_that_is_not_told(run: Run[None]) -> None:
    """The loop goes on while an init, which somebody has stopped, does not tell of an end."""

    async def main() -> None:
        done: list[str] = []
        with Sandbox().open() as live:
            process = await live.spawn_async(["/bin/sleep", "1000"])
            stop(live.pid)
            assert process.pidfd is not None
            dead = asyncio.Event()
            loop = asyncio.get_running_loop()
            pidfd = os.dup(process.pidfd)
            loop.add_reader(pidfd, dead.set)
            process.kill()
            await dead.wait()
            loop.remove_reader(pidfd)
            os.close(pidfd)
            loop.call_later(0.01, done.append, "the loop goes on")
            assert await process.wait() == -signal.SIGKILL
            assert done

    run(main())


# ---- in a pool -------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["first", "init"])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    """Two sandboxes, ready; the payload is the first process, or its init's child."""
    with Sandbox(init=request.param).pool(2) as made:
        yield full(made)


def test_pool_has_the_same(run: Run[Result], pool: Pool) -> None:
    """Options and result are those of run(), in a sandbox that was ready."""
    args = [SH, "-c", "cat; echo $A; echo e >&2; exit 3"]
    options: dict[str, Any] = {"input": b"in ", "capture_output": True, "env": {"A": "b"}}
    expected = pool.run(args, **options)
    full(pool)
    result = run(pool.run_async(args, **options))
    for name in ("args", "returncode", "stdout", "stderr", "reason", "enforced"):
        assert getattr(result, name) == getattr(expected, name)
    assert (pool.stats().warm, pool.stats().cold) == (2, 0)


def test_pool_spawns_with_streams(run: Run[None], pool: Pool) -> None:
    """A conversation with a process in a sandbox that was ready."""

    async def main() -> None:
        async with await pool.spawn_async(["/bin/cat"], stdin=PIPE, stdout=PIPE) as process:
            writer_of(process).write(b"x\n")
            assert await reader_of(process).readline() == b"x\n"
        assert (process.returncode, process.reason) == (0, Reason.EXIT)
        with pytest.raises(PlanError, match="text"):
            await pool.spawn_async(["/bin/cat"], text=True)
        with pytest.raises(SpawnError, match="execve"):
            await pool.run_async(["/missing"])
        with pytest.raises(CalledProcessError):
            await pool.run_async(["/bin/false"], check=True)

    run(main())
    assert pool.stats().warm >= 1


def test_empty_pool_starts_cold(run: Run[None], pool: Pool) -> None:
    """More tasks than there are sandboxes: none waits for another, the rest are fresh ones."""

    async def main() -> None:
        processes = [
            await pool.spawn_async(["/bin/cat"], stdin=PIPE, stdout=PIPE) for _ in range(8)
        ]
        outputs = [await process.communicate(b"x") for process in processes]
        assert outputs == [(b"x", None)] * 8
        stats = pool.stats()
        assert (stats.warm + stats.cold, stats.stale) == (8, 0)
        result = await pool.run_async([SH, "-c", "exit 5"], start_new_session=False)
        assert result.returncode == 5
        assert pool.stats().cold == stats.cold + 1

    run(main())


def test_timeout_in_a_pool(run: Run[Result], pool: Pool) -> None:
    """At the timeout the sandbox is killed, with all that holds its pipes; the next one works."""
    args = [SH, "-c", "sleep 1000 & echo x; exec sleep 1000"]
    raised = expired(
        lambda timeout: run(full(pool).run_async(args, capture_output=True, timeout=timeout))
    )
    assert raised.stdout == b"x\n"
    assert called("sleep") == set()
    assert run(full(pool).run_async(["/bin/true"])).returncode == 0
    assert pool.stats().cold == 0


def called(*names: str) -> set[int]:
    """Return the processes of these names below this one: what waits in a pool has another."""
    found, pending = set(), list(children())
    while pending:
        pid = pending.pop()
        with suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/comm").read_text().strip() in names:
                found.add(pid)
            pending += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return found


def test_cancelled_in_a_pool(run: Run[None], pool: Pool) -> None:
    """Wherever the cancellation hits, the payload is reaped, warm or cold; the pool goes on."""

    async def main() -> None:
        for steps in range(20):
            coroutine = pool.run_async(
                [SH, "-c", "echo x; cat; exec sleep 1000"],
                input=b"x" * 100_000,
                capture_output=True,
            )
            assert await cancelled_after(steps, coroutine)
            assert called("sh", "cat", "sleep") == set()
        result = await pool.run_async(["/bin/echo", "x"], stdout=PIPE)
        assert result.stdout == b"x\n"

    run(main())
    full(pool)


def test_pool_closed_meanwhile(run: Run[None], pool: Pool) -> None:
    """What runs is its owner's and goes on, to its end or its cancellation; nothing new starts."""

    async def main() -> None:
        process = await pool.spawn_async(["/bin/cat"], stdin=PIPE, stdout=PIPE)
        late = asyncio.create_task(pool.run_async(["/bin/sleep", "1000"], stdout=PIPE))
        while not called("sleep"):
            await asyncio.sleep(0)
        await asyncio.to_thread(pool.close)
        assert await process.communicate(b"x") == (b"x", None)
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
        assert children() == set()
        for method in (pool.run_async, pool.spawn_async):
            with pytest.raises(PlanError, match="closed"):
                await method(["/bin/true"])

    run(main())


# ---- leaving nothing -------------------------------------------------------


def test_leaving_the_context_waits(run: Run[None]) -> None:
    """Without an exception the streams are closed, and the payload comes to its own end."""

    async def main() -> None:
        async with await Sandbox().spawn_async([SH, "-c", "cat; exit 4"], stdin=PIPE) as process:
            writer_of(process).write(b"x" * 300_000)
        assert process.returncode == 4

    run(main())


def test_leaving_the_context_by_an_exception_kills(run: Run[None]) -> None:
    """An exception goes on, and the sandbox is gone."""

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with await Sandbox().spawn_async(
                ["/bin/cat"], stdin=PIPE, stdout=PIPE
            ) as process:
                raise ZeroDivisionError
        assert process.returncode == -signal.SIGKILL
        assert children() == set()

    run(main())


def test_cancelled_while_leaving_the_context_kills(run: Run[None]) -> None:
    """Who is cancelled while he waits for the end leaves by an exception, too."""

    async def main() -> None:
        async def leave() -> None:
            async with process:
                pass

        process = await Sandbox().spawn_async(["/bin/sleep", "1000"])
        assert await cancelled_after(2, leave())
        assert process.returncode == -signal.SIGKILL
        assert children() == set()

    run(main())


def test_process_that_cannot_be_watched_leaves_nothing_in_the_loop(
    run: Run[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spawn fails, and the loop does not look at numbers that the next one has again."""

    async def main() -> None:
        loop, args = asyncio.get_running_loop(), [SH, "-c", "cat; echo err >&2"]
        for at in range(4):
            count = iter(range(at))

            def add_reader(*arguments: Any, count: Iterator[int] = count) -> None:
                if next(count, None) is None:
                    raise OSError(errno.ENOSPC, "max_user_watches")  # epoll_ctl(2)
                type(loop).add_reader(loop, *arguments)

            before = open_fds()
            with monkeypatch.context() as patch:
                patch.setattr(loop, "add_reader", add_reader)
                with pytest.raises(SpawnError, match="watches") as caught:
                    await Sandbox().spawn_async(args, stdin=PIPE, stdout=PIPE, stderr=PIPE)
            assert (caught.value.step, caught.value.errno) == (Step.WATCH, errno.ENOSPC)
            assert children() == set()
            assert open_fds().keys() <= before.keys()
            process = await Sandbox().spawn_async(args, stdin=PIPE, stdout=PIPE, stderr=PIPE)
            async with asyncio.timeout(30):
                assert await process.communicate(b"out") == (b"out", b"err\n")

    run(main())


def test_every_limit_of_descriptors(run: Run[Any]) -> None:
    """Whichever descriptor is one too many: an error that says so, and nothing left."""

    async def main() -> tuple[set[tuple[str, bool]], bool]:
        seen, same = set[tuple[str, bool]](), True
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with Sandbox().open() as live:
            await live.run_async(["/bin/true"])
            before = open_fds()
            for limit in range(3, 300):
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
                try:
                    await live.run_async(["/bin/true"])
                    return seen, same
                except SpawnError as error:
                    said = error.errno == errno.EMFILE and "RLIMIT_NOFILE" in str(error)
                    seen.add((error.step, said))
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                same = same and open_fds().keys() <= before.keys()
        raise AssertionError("it never works")

    seen, same = in_child(lambda: run(main()))
    assert same
    assert all(said for _, said in seen)
    assert (Step.WATCH, True) in seen


async def cancelled_after(steps: int, main: Main[Any]) -> bool:
    """Cancel a coroutine after so many iterations of the loop; tell if it was not done by then."""
    task = asyncio.create_task(main)
    for _ in range(steps):
        await asyncio.sleep(0)
    if task.done():
        await task
        return False
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return True


@pytest.mark.one_kernel
@pytest.mark.parametrize(
    "limits", [None, Limits(wall_time=100, output="1M")], ids=["plain", "limits"]
)
def test_cancelled_run_leaves_nothing(run: Run[None], limits: Limits | None) -> None:
    """Wherever the cancellation hits: the payload is reaped when the CancelledError is out."""

    async def main() -> None:
        box = Sandbox(limits=limits)
        for steps in range(40):
            before = open_fds()
            coroutine = box.run_async(
                [SH, "-c", "echo x; cat; sleep 1000"],
                input=b"x" * 100_000,
                capture_output=True,
                timeout=1000,
            )
            assert await cancelled_after(steps, coroutine)
            assert children() == set()
            assert open_fds().keys() <= before.keys()

    run(main())


def test_spawn_cannot_be_cancelled_half_way(run: Run[None]) -> None:
    """A task that spawns is either not begun or done: nothing waits in between."""

    async def main() -> None:
        for steps in range(2):
            task = asyncio.create_task(
                Sandbox().spawn_async(["/bin/sleep", "1000"], stdin=PIPE, stdout=PIPE, stderr=PIPE)
            )
            for _ in range(steps):
                await asyncio.sleep(0)
            assert task.cancel() == (steps == 0)
            if steps:
                async with await task as process:
                    process.kill()
            else:
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert children() == set()

    run(main())


def test_cancelled_twice_leaves_nothing(run: Run[None]) -> None:
    """A second cancellation, while the first is waiting for the end, does not leave it behind."""

    async def main() -> None:
        for steps in range(10):
            task = asyncio.create_task(Sandbox().run_async(["/bin/sleep", "1000"], stdout=PIPE))
            while not children():
                await asyncio.sleep(0)
            for _ in range(5):
                await asyncio.sleep(0)
            task.cancel()
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert children() == set()

    run(main())


@pytest.mark.one_kernel
def test_wait_for_races_the_end(run: Run[None]) -> None:
    """Whichever comes first, a timeout of wait_for() or the end: nothing is left."""

    async def main() -> None:
        outcomes = set()
        for number in range(150):
            try:
                coroutine = Sandbox().run_async(["/bin/echo", "x"], stdout=PIPE)
                result = await asyncio.wait_for(coroutine, number * 0.00004)
                assert result.stdout == b"x\n"
                outcomes.add("result")
            except TimeoutError:
                outcomes.add("timeout")
            assert children() == set()
        assert "timeout" in outcomes

    run(main())


def test_cancelled_wait_leaves_it_running(run: Run[None]) -> None:
    """Who merely waits may be cancelled, as in asyncio: the process is not."""

    async def main() -> None:
        process = await Sandbox().spawn_async(["/bin/cat"], stdin=PIPE)
        assert await cancelled_after(3, process.wait())
        assert process.returncode is None
        writer_of(process).close()
        assert await process.wait() == 0

    run(main())


def test_others_run_while_a_cancelled_one_ends(run: Run[None]) -> None:
    """A task group that fails takes its sandboxes with it."""

    async def fail() -> None:
        while len(children()) < 3:
            await asyncio.sleep(0)
        raise ZeroDivisionError

    async def together() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(Sandbox().run_async(["/bin/sleep", "1000"]))
            group.create_task(fail())

    async def main() -> None:
        with pytest.raises(ExceptionGroup):
            await together()
        assert children() == set()

    run(main())


def test_interrupted_loop_leaves_nothing(new_loop: NewLoop) -> None:
    """Ctrl-C cancels the main task, and with it the sandbox."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, os.kill, os.getpid(), signal.SIGINT)
        await Sandbox().run_async(["/bin/sleep", "1000"], capture_output=True)

    with pytest.raises(KeyboardInterrupt), asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert children() == set()


def test_forgotten_process_is_killed(run: Run[None]) -> None:
    """Nobody holds it: it is killed, though the loop watches it, with a ResourceWarning."""

    async def main() -> None:
        process = await Sandbox().spawn_async(["/bin/sleep", "1000"], stdout=PIPE)
        reader = reader_of(process)
        with pytest.warns(ResourceWarning, match="still running"):
            del process
        assert children() == set()
        assert await reader.read() == b""

    run(main())


def test_closed_loop_kills(new_loop: NewLoop) -> None:
    """A loop that is closed while the payload runs: it dies with the object, with a warning."""
    loop = new_loop()
    process = loop.run_until_complete(Sandbox().spawn_async(["/bin/sleep", "1000"], stdout=PIPE))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.close()
        assert process.pid in children()
        process.send_signal(signal.SIGCONT)  # works without a loop
        del process, loop
        gc.collect()
        assert children() == set()
        assert any("still running" in str(item.message) for item in caught)
        caught.clear()  # each holds its source, and that the pipes
        gc.collect()


def test_closed_loop_has_nothing_to_let_go_of(new_loop: NewLoop) -> None:
    """What is collected with its loop may have lost its descriptors first."""
    loop = new_loop()
    process = loop.run_until_complete(Sandbox().spawn_async(["/bin/sleep", "1000"]))
    loop.close()
    for descriptor in process._view._watched:
        descriptor.close()
    process._view.close()
    process.kill()
    process._process.wait()


def test_task_dropped_with_its_loop_kills(
    new_loop: NewLoop, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that is pending when its loop is closed, and is collected then, leaves nothing."""

    def start() -> None:
        loop = new_loop()
        task = loop.create_task(Sandbox().run_async(["/bin/sleep", "1000"], stdout=PIPE))

        async def spin() -> None:
            while not children():
                await asyncio.sleep(0)
            for _ in range(5):
                await asyncio.sleep(0)

        loop.run_until_complete(spin())
        assert not task.done()
        loop.close()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        start()
        gc.collect()
    assert children() == set()


def test_process_cannot_be_pickled(run: Run[None]) -> None:
    """A running process stays where it is; so says the error."""

    async def main() -> None:
        async with await Sandbox().spawn_async(["/bin/true"]) as process:
            with pytest.raises(TypeError, match="pickle its Sandbox"):
                process.__reduce__()

    run(main())


@pytest.mark.one_kernel
def test_import_does_without_asyncio() -> None:
    """Importing nsbox, and running something, imports no asyncio."""
    code = "import sys, nsbox; nsbox.Sandbox().run(['/bin/true']); print('asyncio' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", code], stdout=PIPE, text=True, env=env, check=True)
    assert done.stdout == "False\n"


def test_another_loop_is_told_that_it_does_not_hear_of_the_end() -> None:
    """Who waits in the process's own loop is not disturbed, and nobody waits for ever."""

    async def main() -> int:
        process = await Sandbox().spawn_async(["cat"], stdin=PIPE, stdout=PIPE)

        def elsewhere() -> None:
            for call in (process.wait, process.communicate):
                with pytest.raises(PlanError, match="another event loop"):
                    asyncio.run(asyncio.wait_for(call(), 5))

        await asyncio.to_thread(elsewhere)
        assert await process.communicate(b"hi") == (b"hi", None)
        return await process.wait()

    assert asyncio.run(main()) == 0
