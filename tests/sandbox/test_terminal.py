"""Terminals of payloads: made inside, used from outside, connected with the caller's own."""

import asyncio
import errno
import gc
import json
import os
import pickle
import resource
import select
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conftest import needs_kernel_of, open_fds
from nsbox import (
    DEVNULL,
    PIPE,
    STDOUT,
    Dev,
    Limits,
    PlanError,
    Pool,
    Process,
    Reason,
    Result,
    Sandbox,
    SpawnError,
    Step,
    Terminal,
    TerminalSize,
    TimeoutExpired,
    Tmpfs,
)
from support import PYTHON, expired, full, python_box, stdout_of

pytestmark = pytest.mark.usefixtures("box")

SH = "/bin/sh"
DEADLINE = 30.0
"""How long a test waits for what should happen at once, before it fails."""

TIOCSTI = 0x5412


def terminal_of(process: Process) -> Terminal:
    assert process.pty is not None
    return process.pty


def read_until(terminal: Terminal, text: bytes) -> bytes:
    """Read what a terminal shows, up to a text."""
    shown = b""
    while text not in shown:
        assert select.select([terminal], [], [], DEADLINE)[0], f"{text!r} is not in {shown!r}"
        data = terminal.read()
        assert data, f"{text!r} is not in {shown!r}"
        shown += data
    return shown


Spawn = Callable[..., Process]


@contextmanager
def ended(process: Process) -> Iterator[Process]:
    """Wait for the end of a process, or kill it if the test has failed."""
    with process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


@pytest.fixture(params=["fresh", "init", "live", "pool", "pool-init"])
def spawn(request: pytest.FixtureRequest) -> Iterator[Spawn]:
    """Spawns a process wherever one can be: fresh, below an init, in a live sandbox, in a pool."""
    box = python_box(init=request.param in ("init", "pool-init"))
    if request.param == "live":
        with box.open() as live:
            yield live.spawn
    elif request.param.startswith("pool"):
        with box.pool(1) as pool:
            yield pool.spawn
            assert (pool.stats().warm > 0, pool.stats().stale) == (True, 0)
    else:
        yield box.spawn


def settle(spawn: Spawn) -> None:
    """Wait until nothing is opened and closed in the background: a pool's next sandbox is ready."""
    pool = getattr(spawn, "__self__", None)
    if isinstance(pool, Pool):
        full(pool)


# ---- the terminal ---------------------------------------------------------

TELL = """
import fcntl, json, os, signal, termios
print("\\x02" + json.dumps({
    "names": [os.ttyname(fd) for fd in range(3)],
    "controlling": os.open("/dev/tty", os.O_RDWR) > 2,
    "session": os.getsid(0) == os.getpid(),
    "foreground": os.tcgetpgrp(0) == os.getpgrp(),
    "size": termios.tcgetwinsize(0),
    "owner": os.stat(os.ttyname(0)).st_uid == os.getuid(),
    "open": sorted(map(int, os.listdir("/proc/self/fd")))[:3],
    "fds": len(os.listdir("/proc/self/fd")),
    "blocking": os.get_blocking(0),
}) + "\\x03")
"""


def test_payload_has_a_terminal_of_its_own(spawn: Spawn) -> None:
    """It is /dev/pts/N inside, controls the session, belongs to the payload; nothing else leaks."""
    with ended(spawn([*PYTHON, TELL], pty=(33, 99))) as process:
        shown = read_until(terminal_of(process), b"\x03")
        told = json.loads(shown[shown.index(b"\x02") + 1 : shown.index(b"\x03")])
        assert terminal_of(process).size == TerminalSize(33, 99)
        while terminal_of(process).read():
            pass
    assert told == {
        "names": ["/dev/pts/0"] * 3,
        "controlling": True,
        "session": True,
        "foreground": True,
        "size": [33, 99],
        "owner": True,
        "open": [0, 1, 2],
        "fds": 5,  # /dev/tty, and the directory
        "blocking": True,
    }


def test_what_is_written_is_typed(spawn: Spawn) -> None:
    """Lines are echoed and read; Ctrl-C interrupts the foreground job, Ctrl-D ends the input."""
    with ended(spawn([SH, "-i"], pty=True, env={"PS1": "$ "})) as process:
        terminal = terminal_of(process)
        # One program, which prints: a shell between two of its commands may miss the key.
        terminal.write(b"sh -c 'echo $((40 + 2)); exec sleep 1000'\n")
        read_until(terminal, b"42\r\n")
        terminal.write(b"\x03")
        read_until(terminal, b"^C")
        terminal.write(b"echo $((20 + 3))\n")
        read_until(terminal, b"23\r\n")
        terminal.write(b"\x04")
        assert process.wait() == 0 or process.returncode == 130


def test_cannot_be_pickled(spawn: Spawn) -> None:
    """It says so in words of its own."""
    with ended(spawn(["/bin/cat"], pty=True)) as process:
        with pytest.raises(TypeError, match="of this process"):
            pickle.dumps(process.pty)
        process.kill()


def test_resize_tells_the_payload(spawn: Spawn) -> None:
    """A new size comes with SIGWINCH."""
    code = """
import os, signal, termios
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
os.write(1, b"ready")
signal.sigwait([signal.SIGWINCH])
os.write(1, b"now %d %d" % termios.tcgetwinsize(0))
"""
    with ended(spawn([*PYTHON, code], pty=(10, 20))) as process:
        terminal = terminal_of(process)
        read_until(terminal, b"ready")
        terminal.resize(11, 21)
        read_until(terminal, b"now 11 21")
        assert terminal.size == (11, 21)


def test_closing_hangs_up(spawn: Spawn) -> None:
    """When the caller's end is closed the payload's session gets SIGHUP, and reads the end."""
    code = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
os.write(1, b"ready")
signal.sigwait([signal.SIGHUP])
sys.exit(7 if os.read(0, 1) == b"" else 8)
"""
    with ended(spawn([*PYTHON, code], pty=True)) as process:
        read_until(terminal_of(process), b"ready")
    assert process.returncode == 7


def test_caller_s_end_is_all_that_is_left(spawn: Spawn) -> None:
    """One descriptor, close-on-exec and blocking; closed with the object."""
    before = open_fds()
    process = spawn(["/bin/true"], pty=True)
    terminal = terminal_of(process)
    settle(spawn)
    new = open_fds().keys() - before.keys() - {process.pidfd}
    assert terminal.fileno() in new
    for fd in new:
        assert not os.get_inheritable(fd)
    assert os.get_blocking(terminal.fileno())
    assert [os.readlink(f"/proc/self/fd/{fd}") for fd in new].count("/dev/ptmx") <= 1
    process.wait()
    with terminal:
        assert str(terminal.fileno()) in repr(terminal)
    assert terminal.closed
    terminal.close()
    for use in (terminal.fileno, terminal.read, lambda: terminal.write(b""), lambda: terminal.size):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_nothing_of_the_caller_reaches_the_payload() -> None:
    """Its standard streams are not the caller's, even where the caller has none."""
    code = (
        "import os, json; print(json.dumps([os.readlink(f'/proc/self/fd/{n}') for n in range(3)]))"
    )
    result = python_box().run([*PYTHON, code], pty=True, text=True)
    assert result.stdout == '["/dev/pts/0", "/dev/pts/0", "/dev/pts/0"]\n'


def test_stderr_may_be_apart(spawn: Spawn) -> None:
    """stderr may be a pipe or anything else; STDOUT means the terminal."""
    program = [SH, "-c", "echo out; echo err >&2"]
    with ended(spawn(program, pty=True, stderr=PIPE)) as process:
        assert process.stderr is not None
        assert process.stderr.read() == b"err\n"
        assert read_until(terminal_of(process), b"out\r\n") == b"out\r\n"
    with ended(spawn(program, pty=True, stderr=STDOUT)) as process:
        read_until(terminal_of(process), b"out\r\nerr\r\n")


@pytest.mark.parametrize(
    ("sandbox", "options"),
    [
        ({}, {"stdin": PIPE}),
        ({}, {"stdin": DEVNULL}),
        ({}, {"stdout": PIPE}),
        ({}, {"start_new_session": False}),
        ({}, {"pty": 1}),
        ({}, {"pty": None}),
        ({}, {"pty": (24,)}),
        ({}, {"pty": (24, "80")}),
        ({}, {"pty": (True, 80)}),
        ({}, {"pty": (0, 80)}),
        ({}, {"pty": (24, 65536)}),
        ({"default_mounts": False, "mounts": [Tmpfs("/tmp")]}, {}),
        ({"default_mounts": False, "mounts": [Dev("/dev2")]}, {}),
        ({"namespaces": "none"}, {}),
    ],
)
def test_what_cannot_be_meant_is_refused(sandbox: dict[str, Any], options: dict[str, Any]) -> None:
    """Streams that contradict, sizes that are none, sandboxes that have no devpts at its place."""
    needs_kernel_of(sandbox)
    with pytest.raises(PlanError):
        Sandbox(**sandbox).spawn(["/bin/true"], **{"pty": True, **options})


def test_input_of_the_terminal_cannot_be_forged_outside(spawn: Spawn) -> None:
    """The default filter refuses TIOCSTI, on the payload's own terminal too."""
    code = f"""
import fcntl, termios
for request in ({TIOCSTI}, {TIOCSTI} | 1 << 32):
    try:
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        ret = libc.ioctl(0, ctypes.c_ulong(request), b"x")
        print("errno", ctypes.get_errno() if ret else 0)
    except OSError as error:
        print("errno", error.errno)
print("done")
"""
    with ended(spawn([*PYTHON, code], pty=True)) as process:
        shown = read_until(terminal_of(process), b"done")
    assert shown.split() == [b"errno", b"1"] * 2 + [b"done"]


def test_terminals_of_a_live_sandbox_are_apart() -> None:
    """Each process has its own; what one has open, others may open too, being the same user."""
    with Sandbox().open() as live:
        first = live.spawn([SH, "-c", "tty; read x"], pty=True)
        second = live.spawn([SH, "-c", "tty; read x"], pty=True)
        with first, second:
            assert read_until(terminal_of(first), b"\n") == b"/dev/pts/0\r\n"
            assert read_until(terminal_of(second), b"\n") == b"/dev/pts/1\r\n"


OPEN_ALL = """
import os, resource, sys
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1024), hard))
masters, why = [], 0
try:
    while len(masters) < 400:
        masters.append(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))
except OSError as error:
    why = error.errno
print(len(masters), why, flush=True)
sys.stdin.read()
"""


def test_payload_does_not_use_up_the_host_s_terminals(spawn: Spawn) -> None:
    """A sandbox has 256 of them, and who has opened all of these is in nobody else's way."""
    with ended(spawn([*PYTHON, OPEN_ALL], stdin=PIPE, stdout=PIPE)) as process:
        assert stdout_of(process).readline() == b"%d %d\n" % (256, errno.ENOSPC)
        with ended(Sandbox().spawn(["/bin/tty"], pty=True)) as other:
            read_until(terminal_of(other), b"/dev/pts/0\r\n")


def test_no_terminal_is_left_in_a_live_sandbox() -> None:
    """When its payload has opened all, the next is a SpawnError that says so, and nothing else."""
    with python_box().open() as live:
        with ended(live.spawn([*PYTHON, OPEN_ALL], stdin=PIPE, stdout=PIPE)) as process:
            assert stdout_of(process).readline().startswith(b"256 ")
            before = open_fds()
            with pytest.raises(SpawnError) as raised:
                live.spawn(["/bin/true"], pty=True)
            assert open_fds().keys() == before.keys()
            assert (raised.value.step, raised.value.errno) == (Step.TERMINAL_OPEN, errno.ENOSPC)
            assert "256" in str(raised.value.hint)
        assert live.run(["/bin/tty"], pty=True).stdout == b"/dev/pts/0\r\n"


def test_pool_s_terminals(box: Sandbox) -> None:
    """run() and run_async() as everywhere; warm ones and cold ones alike."""

    async def run_async(pool: Pool) -> Result:
        return await pool.run_async(["/bin/tty"], pty=True)

    with box.pool(1) as pool:
        for _ in range(5):
            assert pool.run(["/bin/tty"], pty=True).stdout == b"/dev/pts/0\r\n"
            assert asyncio.run(run_async(pool)).stdout == b"/dev/pts/0\r\n"
        with pytest.raises(PlanError, match="stdin"):
            pool.spawn(["/bin/tty"], pty=True, stdin=PIPE)
        with pytest.raises(TimeoutExpired):
            pool.run(["/bin/cat"], pty=True, timeout=0.1)
        stats = pool.stats()
        assert (stats.warm + stats.cold, stats.stale) == (11, 0)


def test_rootfs_cannot_lead_the_caller_astray(rootfs: Path, tmp_path: Path) -> None:
    """An image whose /dev is a link gets a terminal of the inner devpts, or none."""
    bait = tmp_path / "bait"
    bait.mkdir(mode=0o777)
    (rootfs / "dev").symlink_to(bait)
    for make in (Sandbox(root=str(rootfs)), Sandbox(root=str(rootfs), writable=False)):
        try:
            result = make.run(["/bin/sh", "-c", "cat /proc/self/fd/0 </dev/null; echo x"], pty=True)
        except SpawnError:
            continue  # a link that leads nowhere inside
        assert result.stdout == b"x\r\n"
    assert list(bait.iterdir()) == []


def test_no_descriptor_is_left_for_the_terminal(box: Sandbox) -> None:
    """With none to spare a spawn fails as a whole, at whichever step; nothing is left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    box.run(["/bin/true"], pty=True)  # what is opened once is open
    before = open_fds()
    failures: set[tuple[Step | None, int | None]] = set()
    try:
        for limit in range(3, 60):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            try:
                process = box.spawn(["/bin/true"], pty=True)
            except OSError as error:
                failures.add((getattr(error, "step", None), error.errno))
            else:
                with process:
                    pass
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert open_fds().keys() <= before.keys()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (Step.SOCKETPAIR, errno.EMFILE) in failures
    assert {number for _, number in failures} == {errno.EMFILE}


# ---- run and communicate ---------------------------------------------------


def test_run_captures_what_the_terminal_shows() -> None:
    """As stdout, with or without capture_output; as text, the terminal's line ends are those."""
    program = [SH, "-c", "test -t 1 && echo yes; echo err >&2; exit 5"]
    for capture_output in (False, True):
        result = Sandbox().run(program, pty=True, capture_output=capture_output)
        assert (result.returncode, result.stdout, result.stderr) == (5, b"yes\r\nerr\r\n", None)
    result = Sandbox().run(program, pty=True, text=True, stderr=PIPE)
    assert (result.stdout, result.stderr) == ("yes\n", "err\n")
    assert result.usage.output == 9


def test_run_with_a_terminal_takes_no_input() -> None:
    """A terminal has no end of its input, so input= is refused."""
    with pytest.raises(PlanError, match=r"process\.pty"):
        Sandbox().run(["/bin/cat"], pty=True, input=b"x")
    with Sandbox().spawn(["/bin/cat"], pty=True) as process:
        with pytest.raises(ValueError, match=r"process\.pty"):
            process.communicate(b"x")
        terminal_of(process).write(b"\x04")
        assert process.communicate() == (b"", None)


def test_limits_and_timeouts_hold_for_a_terminal() -> None:
    """Limits.output and timeout end what is captured from a terminal, too."""
    result = Sandbox(limits=Limits(output=1000)).run([SH, "-c", "yes"], pty=True)
    assert (result.reason, len(result.stdout)) == (Reason.OUTPUT, 1000)
    command = [SH, "-c", "echo x; exec sleep 1000"]
    raised = expired(lambda timeout: Sandbox().run(command, pty=True, timeout=timeout))
    assert raised.stdout == b"x\r\n"


def test_asyncio_has_streams_of_the_terminal() -> None:
    """stdin and stdout of an AsyncProcess are the terminal; run_async captures it."""

    async def main() -> None:
        async with await Sandbox().spawn_async([SH, "-i"], pty=(5, 6)) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"stty size; exit 4\n")
            assert b"5 6\r\n" in await process.stdout.read()
            assert process.pty is not None
        assert process.returncode == 4
        result = await Sandbox().run_async([SH, "-c", "tty; exit 5"], pty=True, text=True)
        assert (result.returncode, result.stdout) == (5, "/dev/pts/0\n")

    asyncio.run(main())


def test_asyncio_closes_the_streams_at_the_end_of_the_terminal() -> None:
    """Who has read to the end, and waited, has nothing more to close: as with pipes."""

    async def main() -> None:
        process = await Sandbox().spawn_async([SH, "-c", "echo x"], pty=True)
        assert process.stdin is not None
        assert process.stdout is not None
        assert await process.stdout.read() == b"x\r\n"
        assert process.stdin.is_closing()
        await process.stdin.wait_closed()
        assert await process.wait() == 0
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del process
            gc.collect()
        assert [str(warning.message) for warning in caught] == []

    asyncio.run(main())
