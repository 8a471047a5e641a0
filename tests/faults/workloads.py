"""What is done under faults, kills and interruptions: each from its beginning to its end."""

import asyncio
import atexit
import gc
import os
import time
import warnings
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from threading import Thread
from typing import Any

import pytest

from conftest import held, open_fds, tasks
from nsbox import (
    DEVNULL,
    PIPE,
    Bind,
    Cgroup,
    Limits,
    Live,
    Namespace,
    Overlay,
    Pool,
    Process,
    Sandbox,
    TimeoutExpired,
    Tmpfs,
    _calls,
    _filter,
    _host,
    sandbox,
)
from nsbox._native import lib
from nsbox._spares import drain, maker, settle

TRUE = ["/bin/true"]
SLEEP = ["/bin/sleep", "1000"]

PLAIN = Sandbox()
MOUNTS = Sandbox(
    mounts=[Bind("/usr/share", "/x"), Tmpfs("/x/doc"), Overlay("/usr/lib", "/z")],
    masks=["/etc/group"],
    cwd="/tmp",
)
ASKING = Sandbox(
    capabilities=["CAP_NET_BIND_SERVICE"],
    limits=Limits(open_files=64, nice=5),
    user_namespaces=True,
)
AHEAD = Sandbox(hostname="ahead")
OVERLAID = Sandbox(mounts=[Overlay("/usr/lib", "/z")])
INITIAL = Sandbox(init=True)
WITHOUT = Sandbox(namespaces="none")
LAYERED = Sandbox(mounts=[Overlay("/usr/share/doc", "/data")])
LIMITS = Limits(memory="64M", pids=16, cpu_time=60, wall_time=60, output="1M")
LIMITED = Sandbox(limits=LIMITS)
LIMITED_AHEAD = Sandbox(limits=LIMITS, hostname="ahead")
TERSE = Sandbox(limits=Limits(pids=16, output=100))


def _make_nothing() -> None:
    drain()
    lib.nsbox_maker_stop(maker.pointer)


@dataclass(frozen=True)
class Workload:
    """
    Something to do.

    Args:
        name: Of it.
        act: Does it; may be called again and again.
        cgroups: It needs a host where cgroups can be made.
        pipes: It uses pipes, which the standard library makes, reads and writes.
        background: A thread makes set-ups beside it, so whose call fails varies.
        lines: Its Python code differs from that of the others.
        before: Called each time before, and no part of it. By default, nothing is made
            ahead from there on.
        prepare: Called once in the process that does it, which ends afterwards.
    """

    name: str
    act: Callable[[], object]
    cgroups: bool = False
    pipes: bool = False
    background: bool = False
    lines: bool = True
    before: Callable[[], object] = _make_nothing
    prepare: Callable[[], object] = lambda: None

    def require(self, request: pytest.FixtureRequest) -> None:
        """Skip the test where the workload cannot run."""
        if self.cgroups:
            request.getfixturevalue("cgroups")

    def __str__(self) -> str:
        return self.name


def _spawn() -> None:
    with PLAIN.spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE, stderr=DEVNULL) as process:
        process.communicate(b"text")


def _close_streams() -> None:
    """So that what is opened gets the numbers 0, 1, 2, where it must not stay."""
    for fd in range(3):
        os.close(fd)


def _capture() -> None:
    PLAIN.run(["/bin/cat"], input=b"text", capture_output=True)


def _group() -> None:
    PLAIN.run(TRUE, start_new_session=False, process_group=0)


def _timeout() -> None:
    with pytest.raises(TimeoutExpired):
        PLAIN.run(SLEEP, timeout=0.001)


def _spawn_and_wait() -> None:
    with PLAIN.spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE) as process:
        process.poll()
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)
        process.wait()


def _kill() -> None:
    with PLAIN.spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE) as process:
        process.kill()
        process.communicate()


def _forget() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        PLAIN.spawn(SLEEP, stdin=DEVNULL)


def _missing() -> None:
    with pytest.raises(FileNotFoundError):
        LIMITED.run(["/missing"], capture_output=True)


def _too_much() -> None:
    TERSE.run(["/usr/bin/yes"], stdout=PIPE)


def _join() -> None:
    with Namespace.create("user") as user, Namespace.create("net", owner=user) as net:
        Sandbox(user=user, net=net).run(TRUE)


def _first() -> None:
    """The first run of a process, which looks at the host and remembers what it finds."""
    for module in (_host, _filter, _calls, sandbox):
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()
    box = Sandbox()
    box.run(TRUE)
    assert box._plan() == PLAIN._plan(), "what could not be seen was guessed"


_openpty: list[int] = []


def _open_terminal() -> None:
    _openpty.extend(os.openpty())


def _ask() -> None:
    """Spawn with all that can be asked for of one process."""
    ASKING.run(
        TRUE,
        stdin=_openpty[1],
        controlling_terminal=True,
        pass_fds=_openpty[:1],
        user=0,
        group=0,
        extra_groups=[0] if os.geteuid() == 0 else None,
        cwd="/usr",
        umask=0o77,
        env={"LANG": "C"},
    )


def _open() -> None:
    with PLAIN.open() as live:
        live.run(TRUE)
        live.processes()


def _files() -> None:
    """What a live sandbox is asked for."""
    with OVERLAID.open() as live:
        live.write_file("/z/new", b"text")
        assert live.read_file("/z/new") == b"text"
        assert live.changes()


def _terminal() -> None:
    with PLAIN.spawn(TRUE, pty=True) as process:
        process.wait()


def _terminal_in_live() -> None:
    with PLAIN.open() as live, live.spawn(TRUE, pty=True) as process:
        process.wait()


def _pool() -> None:
    with PLAIN.pool(1) as pool:
        pool.run(TRUE)
        with pool.spawn(TRUE) as process:
            process.wait()


def _pool_map() -> None:
    with PLAIN.pool(1) as pool:
        for _ in pool.map([TRUE, TRUE]):
            pass


_loops: list[asyncio.Runner] = []


def _make_loop() -> None:
    """Make what is asyncio's alone, and no part of the workload."""
    _make_nothing()
    _loops.append(asyncio.Runner())
    _loops[0].get_loop()


def _in_loop(main: Callable[[], Coroutine[object, object, object]]) -> None:
    with _loops.pop() as loop:
        loop.run(main())


async def _run_async() -> None:
    await PLAIN.run_async(["/bin/cat"], input=b"text", capture_output=True)


async def _spawn_async() -> None:
    async with await PLAIN.spawn_async(TRUE, pty=True) as process:
        assert process.stdout is not None
        await process.stdout.read()
        await process.wait()


def _fill() -> None:
    """Have all made ahead that the next spawn can use."""
    lib.nsbox_maker_resume(maker.pointer)
    store = AHEAD._cache.store(AHEAD._cache.lowered(AHEAD))
    if store is not None:  # used for the first time
        store.fill()


def _fill_limited() -> None:
    """Have a cgroup made ahead, which takes a run or two."""
    lib.nsbox_maker_resume(maker.pointer)
    for _ in range(3):
        if not LIMITED_AHEAD._cache.terms(LIMITED_AHEAD)[1]._spares:
            LIMITED_AHEAD.run(TRUE)
    settle()


def _cgroup() -> None:
    with Cgroup.create(Limits(pids=100)) as cgroup:
        cgroup.freeze()
        cgroup.thaw()


def _live() -> None:
    with LAYERED.open() as live:
        live.run(["/bin/touch", "/data/3"])
        live.write_file("/data/1", b"text")
        live.copy_in("/etc/hostname", "/data/2")
        assert live.read_file("/data/1") == b"text"
        assert [change.path for change in live.changes()] == [
            "/data/1",
            "/data/2",
            "/data/3",
        ]


def _limited_live() -> None:
    with LIMITED.open() as live:
        live.run(TRUE)
        live.run(TRUE, limits=Limits(pids=8, wall_time=60, open_files=64))
        live.freeze()
        live.thaw()
        live.stats()


def _forget_live() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        PLAIN.open().spawn(SLEEP, stdin=DEVNULL)


def _spawn_many() -> None:
    processes = [PLAIN.spawn(SLEEP), LIMITED.spawn(SLEEP)]
    for process in processes:
        process.wait()


def _threads(function: Callable[[], object]) -> None:
    threads = [Thread(target=function) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _spawn_in_threads() -> None:
    """Those threads end, and what they have spawned goes on."""
    processes: list[Process] = []
    _threads(lambda: processes.append(PLAIN.spawn(SLEEP)))
    for process in processes:
        process.wait()


def _live_and_stay() -> None:
    with PLAIN.open() as live, live.spawn(SLEEP), live.spawn(SLEEP, pty=True):
        live.run(SLEEP)


def _pool_and_stay() -> None:
    with LIMITED.pool(2) as pool:
        _threads(lambda: pool.run(SLEEP))


def _join_and_stay() -> None:
    with Namespace.create("user") as user, Namespace.create("net", owner=user) as net:
        Sandbox(user=user, net=net).run(SLEEP)


STAYING = [
    Workload("run", lambda: PLAIN.run(SLEEP)),
    Workload("limits", lambda: LIMITED.run(SLEEP), cgroups=True),
    Workload("spawn", _spawn_many, cgroups=True),
    Workload("threads", lambda: _threads(lambda: MOUNTS.run(SLEEP))),
    Workload("spawn-in-threads", _spawn_in_threads),
    Workload("join", _join_and_stay),
    Workload("init", lambda: INITIAL.run(SLEEP)),
    Workload("live", _live_and_stay),
    Workload("pool", _pool_and_stay, cgroups=True),
]
"""What does not come to an end by itself."""

BOXES = [value for value in list(vars().values()) if isinstance(value, Sandbox)]


class Belongings:
    """
    What a process has that does a workload again and again.

    What its sandboxes keep for the next spawn may be there or not; all else must be as
    it was.
    """

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._threads = tasks()
        workload.prepare()
        self._measure()

    def _measure(self) -> None:
        self._warm_up()
        self._usual = self._look()
        self._let_go()
        self._bare, self._open = self._look(), open_fds()
        self._warm_up()

    def left(self) -> list[str]:
        """
        Return the kinds of things of which there are more, or less, than there should be.

        Of descriptors also which there were not before.

        Once: what has been told belongs to the process from there on.
        """
        now = self._look()
        # A thread that has been joined may still be on its way out.
        deadline = time.monotonic() + 10
        while now["threads"] > self._usual["threads"] and time.monotonic() < deadline:
            os.sched_yield()
            now = self._look()
        if now == self._usual:
            return []
        self._let_go()
        now = self._look()
        found = [key for key in now if now[key] != self._bare[key]]
        if "fds" in found:
            fds = open_fds().items()
            found += [f"fd {number}: {what}" for number, what in fds if number not in self._open]
        if found:
            self._measure()
        else:
            self._warm_up()
        return found

    def _warm_up(self) -> None:
        for _ in range(3):
            self._workload.before()
            self._workload.act()

    def _let_go(self) -> None:
        for box in BOXES:
            object.__setattr__(box, "_cache", type(box._cache)())

    def _look(self) -> dict[str, Any]:
        gc.collect()
        now = held()
        # A thread that has been joined may still be on its way out.
        deadline = time.monotonic() + 10
        while now["threads"] > self._threads and time.monotonic() < deadline:
            os.sched_yield()
            now = held()
        return now


WORKLOADS = [
    Workload("run", lambda: PLAIN.run(TRUE)),
    Workload("mounts", lambda: MOUNTS.run(TRUE), lines=False),
    Workload("spawn", _spawn, pipes=True, lines=False),
    Workload("capture", _capture, pipes=True),
    Workload("wait", _spawn_and_wait, pipes=True),
    Workload("kill", _kill, pipes=True),
    Workload("timeout", _timeout),
    Workload("forget", _forget, pipes=True),
    Workload("missing", _missing, pipes=True, cgroups=True),
    Workload("output", _too_much, pipes=True, cgroups=True),
    Workload("limits", lambda: LIMITED.run(TRUE), cgroups=True),
    Workload("streams", lambda: PLAIN.run(TRUE), prepare=_close_streams, lines=False),
    Workload("first", _first, lines=False),
    Workload("options", _ask, prepare=_open_terminal, lines=False),
    Workload("group", _group, lines=False),
    Workload("none", lambda: WITHOUT.run(TRUE), lines=False),
    Workload("join", _join, lines=False),
    Workload("fill", _fill, before=drain, background=True, lines=False),
    Workload("ahead", lambda: AHEAD.run(TRUE), before=_fill, background=True, lines=False),
    Workload(
        "limits-ahead",
        lambda: LIMITED_AHEAD.run(TRUE),
        cgroups=True,
        background=True,
        before=_fill_limited,
    ),
    Workload("init", lambda: INITIAL.run(TRUE)),
    Workload("open", _open),
    Workload("files", _files),
    Workload("terminal", _terminal),
    Workload("terminal-live", _terminal_in_live),
    Workload("pool", _pool, background=True),
    Workload("pool-map", _pool_map, background=True),
    Workload("run_async", lambda: _in_loop(_run_async), before=_make_loop, pipes=True),
    Workload("spawn_async", lambda: _in_loop(_spawn_async), before=_make_loop),
    Workload("cgroup", _cgroup, cgroups=True),
    Workload("live", _live),
    Workload("live_limits", _limited_live, cgroups=True),
    Workload("live_forget", _forget_live, pipes=True),
]

_pools: list[Pool] = []
_lives: list[Live] = []


def _keep_pool() -> None:
    _pools.append(MOUNTS.pool(8))
    atexit.register(_pools[0].close)


def kept_pool() -> Pool:
    return _pools[0]


def _keep_live() -> None:
    _lives.append(PLAIN.open())
    atexit.register(_lives[0].close)


SOAKED = [
    *(item for item in WORKLOADS if item.name in ("run", "capture", "limits")),
    Workload("pool-run", lambda: kept_pool().run(TRUE), prepare=_keep_pool),
    Workload("live-run", lambda: _lives[0].run(TRUE), prepare=_keep_live),
]
"""What is repeated a hundred thousand times."""
