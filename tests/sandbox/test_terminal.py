"""Terminals of payloads: made inside, used from outside, connected with the caller's own."""

import asyncio
import errno
import json
import os
import resource
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import open_fds, unavailable
from nsbox import (
    DEVNULL,
    PIPE,
    STDOUT,
    Dev,
    Limits,
    PlanError,
    Process,
    Reason,
    Sandbox,
    SpawnError,
    Step,
    Terminal,
    TerminalSize,
    TimeoutExpired,
    Tmpfs,
)
from support import PYTHON, SOURCE, python_box

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


@pytest.fixture(params=["fresh", "init", "live"])
def spawn(request: pytest.FixtureRequest) -> Iterator[Spawn]:
    """Spawns a process wherever one can be: fresh, below an init, in a live sandbox."""
    if request.param == "live":
        with python_box().open() as live:
            yield live.spawn
    else:
        yield python_box(init=request.param == "init").spawn


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
    with spawn([*PYTHON, TELL], pty=(33, 99)) as process:
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
    with spawn([SH, "-i"], pty=True, env={"PS1": "$ "}) as process:
        terminal = terminal_of(process)
        # It prints when it is the foreground job.
        terminal.write(b"sh -c 'echo $((40 + 2)); sleep 1000'\n")
        read_until(terminal, b"42\r\n")
        terminal.write(b"\x03")
        read_until(terminal, b"^C")
        terminal.write(b"echo $((20 + 3))\n")
        read_until(terminal, b"23\r\n")
        terminal.write(b"\x04")
        assert process.wait() == 0 or process.returncode == 130


def test_resize_tells_the_payload(spawn: Spawn) -> None:
    """A new size comes with SIGWINCH."""
    code = """
import os, signal, termios
signal.signal(signal.SIGWINCH, lambda *_: os.write(1, b"now %d %d" % termios.tcgetwinsize(0)))
os.write(1, b"ready")
os.read(0, 1)
"""
    with spawn([*PYTHON, code], pty=(10, 20)) as process:
        terminal = terminal_of(process)
        read_until(terminal, b"ready")
        terminal.resize(11, 21)
        read_until(terminal, b"now 11 21")
        assert terminal.size == (11, 21)
        terminal.write(b"\n")


def test_closing_hangs_up(spawn: Spawn) -> None:
    """When the caller's end is closed the payload's session gets SIGHUP, and reads the end."""
    code = """
import signal, sys
signal.signal(signal.SIGHUP, lambda *_: sys.exit(7))
print("ready", flush=True)
while True: signal.pause()
"""
    with spawn([*PYTHON, code], pty=True) as process:
        read_until(terminal_of(process), b"ready")
    assert process.returncode == 7


def test_caller_s_end_is_all_that_is_left(spawn: Spawn) -> None:
    """One descriptor, close-on-exec and blocking; closed with the object."""
    before = open_fds()
    process = spawn(["/bin/true"], pty=True)
    terminal = terminal_of(process)
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
    with spawn(program, pty=True, stderr=PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.read() == b"err\n"
        assert read_until(terminal_of(process), b"out\r\n") == b"out\r\n"
    with spawn(program, pty=True, stderr=STDOUT) as process:
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
    with spawn([*PYTHON, code], pty=True) as process:
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
    for options in ({}, {"capture_output": True}):
        result = Sandbox().run(program, pty=True, **options)
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
    with pytest.raises(TimeoutExpired) as raised:
        Sandbox().run([SH, "-c", "echo x; exec sleep 1000"], pty=True, timeout=0.3)
    assert raised.value.stdout == b"x\r\n"


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


# ---- the caller's terminal -------------------------------------------------


class Tmux:
    """A terminal emulator with one window."""

    def __init__(self, program: str, directory: Path) -> None:
        self._command = [program, "-S", str(directory / "tmux"), "-f", "/dev/null"]

    def __call__(self, *arguments: str) -> str:
        environment = {**os.environ, "TERM": "screen"}
        environment.pop("TMUX", None)
        done = subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, command: str) -> None:
        self("new-session", "-d", "-x", "80", "-y", "24", command)

    def type(self, *keys: str) -> None:
        self("send-keys", *keys)

    def screen(self) -> str:
        return self("capture-pane", "-p")

    def wait_for(self, text: str) -> None:
        """Wait until the screen has a text."""
        deadline = time.monotonic() + DEADLINE
        while text not in self.screen():
            assert time.monotonic() < deadline, f"{text!r} is not on:\n{self.screen()}"


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    """A terminal emulator."""
    program = shutil.which("tmux")
    if program is None:
        unavailable("no tmux (Debian: apt-get install tmux)")
    assert program is not None
    tmux = Tmux(program, tmp_path)
    yield tmux
    tmux("kill-server")


class Session:
    """A Python program in a terminal emulator, and the modes of the terminal before and after."""

    def __init__(self, tmux: Tmux, directory: Path, code: str, job_control: str = "") -> None:
        """
        Args:
            tmux: The terminal.
            directory: For files of the session.
            code: Of the program, after its imports.
            job_control: Run it as a job, and then this.
        """
        self.tmux = tmux
        self.directory = directory
        (directory / "program.py").write_text(
            "import os, signal, sys\n"
            f"open({str(directory / 'pid')!r}, 'w').write(str(os.getpid()) + '\\n')\n"
            "from nsbox import Sandbox\n" + code
        )
        (directory / "session").write_text(
            f"cd {shlex.quote(str(directory))}\n"
            f"{'set -m' if job_control else ''}\n"
            "stty -a >before\n"
            f"PYTHONPATH={shlex.quote(str(SOURCE))} {shlex.quote(sys.executable)} program.py\n"
            f"{job_control}\n"
            "echo $? >status.new; stty -a >after; mv status.new status; echo finished\n"
            "exec sleep 1000\n"
        )
        tmux.start(f"sh {shlex.quote(str(directory / 'session'))}")

    @property
    def pid(self) -> int:
        """Of the program."""
        return int((self.directory / "pid").read_text())

    def finish(self) -> int:
        """Wait for the end, and return the status; the terminal is as it was."""
        self.tmux.wait_for("finished")
        modes = [(self.directory / name).read_text() for name in ("before", "after")]
        # The size may have changed with the window.
        before, after = (text.split(";", 3)[3] for text in modes)
        assert before == after
        return int((self.directory / "status").read_text())


SHELL = """
with Sandbox().spawn(["/bin/sh", "-i"], pty=True, env={"PS1": "in> "}) as process:
    sys.exit(process.interact())
"""


def test_interact_connects_the_terminals(tmux: Tmux, tmp_path: Path) -> None:
    """Keys, signals of keys, and the size go in; output comes out; the status is returned."""
    session = Session(tmux, tmp_path, SHELL)
    tmux.wait_for("in>")
    tmux.type("echo $(stty size) = $((6 * 7))", "Enter")
    tmux.wait_for("24 80 = 42")
    tmux("resize-window", "-x", "100", "-y", "30")
    tmux.type("echo $(stty size) = $((7 * 7))", "Enter")
    tmux.wait_for("30 100 = 49")
    tmux.type("sh -c 'echo begin$((1 + 1)); sleep 1000'", "Enter")
    tmux.wait_for("begin2")
    tmux.type("C-c")
    tmux.wait_for("^C")
    tmux.type("echo after$((1 + 1))", "Enter")
    tmux.wait_for("after2")
    tmux.type("exit 3", "Enter")
    assert session.finish() == 3


def test_size_changes_reach_a_running_program(tmux: Tmux, tmp_path: Path) -> None:
    """A program that is running when the window changes gets SIGWINCH."""
    session = Session(tmux, tmp_path, SHELL)
    tmux.wait_for("in>")
    tmux.type("trap 'echo now $(stty size)' WINCH; echo set$((1 + 1))", "Enter")
    tmux.wait_for("set2")
    tmux("resize-window", "-x", "90", "-y", "20")
    tmux.type("", "Enter")
    tmux.wait_for("now 20 90")
    tmux.type("exit", "Enter")
    session.finish()


def test_full_screen_program_works(tmux: Tmux, tmp_path: Path, busybox: str) -> None:
    """An editor draws its screen, and takes keys one by one."""
    session = Session(tmux, tmp_path, SHELL)
    tmux.wait_for("in>")
    tmux.type("busybox vi /tmp/text", "Enter")
    tmux.wait_for("~")
    tmux.type("i", "hello")
    tmux.wait_for("I /tmp/text")
    tmux.type("Escape")
    tmux.wait_for("- /tmp/text")  # it waits for what may be the rest of a key
    tmux.type("yyp", ":wq", "Enter")
    tmux.wait_for("in>")
    tmux.type("echo $(cat /tmp/text) $((1 + 1)); exit", "Enter")
    tmux.wait_for("hello hello 2")
    assert session.finish() == 0


@pytest.mark.parametrize(
    ("code", "number", "status"),
    [
        (SHELL, signal.SIGTERM, 128 + signal.SIGTERM),
        (SHELL, signal.SIGHUP, 128 + signal.SIGHUP),
        (SHELL, signal.SIGQUIT, 128 + signal.SIGQUIT),
        (SHELL, signal.SIGINT, 128 + signal.SIGINT),
        ("signal.signal(signal.SIGTERM, lambda *_: 1 / 0)\n" + SHELL, signal.SIGTERM, 1),
        ("signal.signal(signal.SIGTERM, lambda *_: os._exit(9))\n" + SHELL, signal.SIGTERM, 9),
    ],
    ids=["term", "hup", "quit", "int", "handler that raises", "handler that exits"],
)
def test_terminal_is_restored_after_a_signal(
    tmux: Tmux, tmp_path: Path, code: str, number: signal.Signals, status: int
) -> None:
    """Whatever a signal does to the caller, its terminal is as before."""
    session = Session(tmux, tmp_path, code)
    tmux.wait_for("in>")
    os.kill(session.pid, number)
    assert session.finish() == status


def test_signal_that_changes_nothing_lets_it_go_on(tmux: Tmux, tmp_path: Path) -> None:
    """A handler of the program runs, and the terminals stay connected."""
    handler = "signal.signal(signal.SIGTERM, lambda *_: print('handled'))\n"
    session = Session(tmux, tmp_path, handler + SHELL)
    tmux.wait_for("in>")
    os.kill(session.pid, signal.SIGTERM)
    tmux.wait_for("handled")
    tmux.type("exit 6", "Enter")
    assert session.finish() == 6


def test_stopped_caller_leaves_a_usable_terminal(tmux: Tmux, tmp_path: Path) -> None:
    """Stopped from outside, the terminal is as before until the caller goes on."""
    resume = "stty -a >stopped; echo between; read x; fg"
    session = Session(tmux, tmp_path, SHELL, job_control=resume)
    tmux.wait_for("in>")
    os.kill(session.pid, signal.SIGTSTP)
    tmux.wait_for("between")
    assert (tmp_path / "stopped").read_text() == (tmp_path / "before").read_text()
    tmux("resize-window", "-x", "70", "-y", "25")
    tmux.type("", "Enter")
    tmux.type("echo $(stty size) = $((6 * 7))", "Enter")
    tmux.wait_for("25 70 = 42")
    tmux.type("exit 8", "Enter")
    assert session.finish() == 8


def test_killed_payload_ends_it(tmux: Tmux, tmp_path: Path) -> None:
    """SIGKILL of the payload: its status is returned, the terminal is as before."""
    code = """
import threading
process = Sandbox().spawn(["/bin/sh", "-i"], pty=True, env={"PS1": "in> "})
open("payload.new", "w").write(str(process.pid))
os.rename("payload.new", "payload")
sys.exit(-process.interact())
"""
    session = Session(tmux, tmp_path, code)
    tmux.wait_for("in>")
    os.kill(int((tmp_path / "payload").read_text()), signal.SIGKILL)
    assert session.finish() == signal.SIGKILL


def test_much_output_comes_out_whole(tmux: Tmux, tmp_path: Path) -> None:
    """What a payload prints right before its end is shown."""
    code = """
process = Sandbox().spawn(["/bin/sh", "-c", "seq 1 200000; echo the last line"], pty=True)
sys.exit(process.interact())
"""
    session = Session(tmux, tmp_path, code)
    tmux.wait_for("the last line")
    assert session.finish() == 0


def test_pasted_text_goes_in_whole(tmux: Tmux, tmp_path: Path) -> None:
    """More than a terminal's buffer, typed at once, while the payload prints much: no deadlock."""
    session = Session(tmux, tmp_path, SHELL)
    tmux.wait_for("in>")
    (tmp_path / "paste").write_text("".join(f"echo {number:060}\n" for number in range(500)))
    tmux("load-buffer", str(tmp_path / "paste"))
    tmux("paste-buffer")
    tmux.type("echo end$((1 + 1)); exit", "Enter")
    tmux.wait_for("end2")
    assert session.finish() == 0


def test_interact_needs_a_terminal() -> None:
    """Without pty, or where stdin is no terminal, and in another thread, it is an error."""
    with Sandbox().spawn(["/bin/true"]) as process, pytest.raises(PlanError, match="pty=True"):
        process.interact()
    code = (
        "import threading, nsbox\n"
        "process = nsbox.Sandbox().spawn(['/bin/true'], pty=True)\n"
        "def interact():\n"
        "    try: process.interact()\n"
        "    except nsbox.PlanError as error: print(error)\n"
        "interact(); thread = threading.Thread(target=interact); thread.start(); thread.join()\n"
        "process.wait()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert "not a terminal" in first
    assert "main thread" in second
