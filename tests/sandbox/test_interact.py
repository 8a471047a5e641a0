"""process.interact(), under a real terminal emulator."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import unavailable
from nsbox import PlanError, Sandbox
from support import SOURCE, interpreter

pytestmark = pytest.mark.usefixtures("box")

DEADLINE = 60.0
"""How long a test waits for what should happen at once, before it fails."""


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
    tmux.type("sh -c 'echo begin$((1 + 1)); exec sleep 1000'", "Enter")
    tmux.wait_for("begin2")
    tmux.type("C-c")
    tmux.wait_for("^C")
    tmux.type("echo after$((1 + 1))", "Enter")
    tmux.wait_for("after2")
    tmux.type("exit 3", "Enter")
    assert session.finish() == 3


# A signal comes when the wait is over, as does one that comes right before it.
LATE = """
import select
poll = select.poll
class Late:
    def __init__(self):
        self.inner = poll()
        self.register = self.inner.register
    def poll(self):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
        ready = self.inner.poll()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGWINCH])
        return ready
select.poll = Late
"""


@pytest.mark.one_kernel
@pytest.mark.parametrize("code", [SHELL, LATE + SHELL], ids=["at once", "late"])
def test_size_changes_reach_a_running_program(tmux: Tmux, tmp_path: Path, code: str) -> None:
    """A program that is running when the window changes gets SIGWINCH, before later keys."""
    session = Session(tmux, tmp_path, code)
    tmux.wait_for("in>")
    tmux.type("trap 'echo now $(stty size)' WINCH; echo set$((1 + 1))", "Enter")
    tmux.wait_for("set2")
    tmux("resize-window", "-x", "90", "-y", "20")
    tmux.type("", "Enter")
    tmux.wait_for("now 20 90")
    tmux.type("exit", "Enter")
    session.finish()


@pytest.mark.one_kernel
def test_size_that_a_payload_has_set_stays(tmux: Tmux, tmp_path: Path) -> None:
    """As long as the window keeps its own, whatever is typed."""
    session = Session(tmux, tmp_path, SHELL)
    tmux.wait_for("in>")
    tmux.type("stty rows 11 cols 77; echo set$((1 + 1))", "Enter")
    tmux.wait_for("set2")
    tmux.type("echo now $(stty size); exit", "Enter")
    tmux.wait_for("now 11 77")
    session.finish()


@pytest.mark.one_kernel
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


# What a signal does is Python's.
@pytest.mark.one_kernel
@pytest.mark.parametrize(
    ("code", "number", "status"),
    [
        (SHELL, signal.SIGTERM, 128 + signal.SIGTERM),
        (SHELL, signal.SIGHUP, 128 + signal.SIGHUP),
        (SHELL, signal.SIGQUIT, 128 + signal.SIGQUIT),
        (SHELL, signal.SIGINT, 128 + signal.SIGINT),
        (SHELL, signal.SIGUSR1, 128 + signal.SIGUSR1),
        (SHELL, signal.SIGALRM, 128 + signal.SIGALRM),
        ("signal.signal(signal.SIGTERM, lambda *_: 1 / 0)\n" + SHELL, signal.SIGTERM, 1),
        ("signal.signal(signal.SIGTERM, lambda *_: os._exit(9))\n" + SHELL, signal.SIGTERM, 9),
    ],
    ids=["term", "hup", "quit", "int", "usr1", "alrm", "handler that raises", "handler that exits"],
)
def test_terminal_is_restored_after_a_signal(
    tmux: Tmux, tmp_path: Path, code: str, number: signal.Signals, status: int
) -> None:
    """Whatever a signal does to the caller, its terminal is as before."""
    session = Session(tmux, tmp_path, code)
    tmux.wait_for("in>")
    os.kill(session.pid, number)
    assert session.finish() == status


@pytest.mark.one_kernel
def test_signal_that_changes_nothing_lets_it_go_on(tmux: Tmux, tmp_path: Path) -> None:
    """A handler of the program runs, and the terminals stay connected."""
    handler = "signal.signal(signal.SIGTERM, lambda *_: print('handled'))\n"
    session = Session(tmux, tmp_path, handler + SHELL)
    tmux.wait_for("in>")
    os.kill(session.pid, signal.SIGTERM)
    tmux.wait_for("handled")
    tmux.type("exit 6", "Enter")
    assert session.finish() == 6


# What another thread takes does not end the wait, as what comes right before it does not.
TAKE_IT = """
import threading
def take():
    open("fifo").close()
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
os.mkfifo("fifo")
threading.Thread(target=take, daemon=True).start()
"""


@pytest.mark.one_kernel
def test_signal_that_does_not_end_the_wait_is_not_missed(tmux: Tmux, tmp_path: Path) -> None:
    """The program ends by it without another key."""
    session = Session(tmux, tmp_path, TAKE_IT + SHELL)
    tmux.wait_for("in>")
    (tmp_path / "fifo").write_bytes(b"")
    assert session.finish() == 128 + signal.SIGTERM


@pytest.mark.one_kernel
def test_program_has_its_wakeup_descriptor_back(tmux: Tmux, tmp_path: Path) -> None:
    """An event loop's, which hears of what came meanwhile when the terminal is back."""
    code = """
reader, writer = os.pipe()
os.set_blocking(writer, False)
signal.set_wakeup_fd(writer)
signal.signal(signal.SIGTERM, lambda *_: None)
with Sandbox().spawn(["/bin/sh", "-i"], pty=True, env={"PS1": "in> "}) as process:
    process.interact()
sys.exit(os.read(reader, 2) != bytes([signal.SIGTERM]) or signal.set_wakeup_fd(-1) != writer)
"""
    session = Session(tmux, tmp_path, code)
    tmux.wait_for("in>")
    os.kill(session.pid, signal.SIGTERM)
    tmux.type("exit", "Enter")
    assert session.finish() == 0


@pytest.mark.one_kernel
def test_handlers_run_in_the_old_mode(tmux: Tmux, tmp_path: Path) -> None:
    """Those of any signal: one that raises just when the mode comes back would keep it raw."""
    handler = """
import termios
def tell(*_):
    print("cooked" if termios.tcgetattr(0)[3] & termios.ICANON else "raw")
signal.signal(signal.SIGUSR1, tell)
"""
    session = Session(tmux, tmp_path, handler + SHELL)
    tmux.wait_for("in>")
    os.kill(session.pid, signal.SIGUSR1)
    tmux.wait_for("cooked")
    tmux.type("exit 6", "Enter")
    assert session.finish() == 6


@pytest.mark.one_kernel
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


@pytest.mark.one_kernel
def test_caller_that_goes_on_after_sigstop(tmux: Tmux, tmp_path: Path) -> None:
    """Nobody can take note of that, and the shell makes the terminal usable: it is raw again."""
    resume = "stty sane; echo; echo between; read x; fg"
    session = Session(tmux, tmp_path, SHELL, job_control=resume)
    tmux.wait_for("in>")
    os.kill(session.pid, signal.SIGSTOP)
    tmux.wait_for("between")
    tmux.type("", "Enter")
    tmux.type("echo on$((1 + 1))", "Enter")
    tmux.wait_for("on2")
    tmux.type("C-c")
    tmux.wait_for("^C")
    tmux.type("exit 8", "Enter")
    assert session.finish() == 8


@pytest.mark.one_kernel
def test_caller_that_was_in_the_background(tmux: Tmux, tmp_path: Path) -> None:
    """What comes back is not the mode that a shell has for itself meanwhile."""
    resume = (
        "stty -icanon -echo; bg\n"
        "until grep -q '^State:.T' /proc/$(cat pid)/status; do sleep 0.1; done\n"
        "stty icanon echo; fg"
    )
    code = "os.kill(os.getpid(), signal.SIGSTOP)\n" + SHELL
    session = Session(tmux, tmp_path, code, job_control=resume)
    tmux.wait_for("in>")
    tmux.type("exit 8", "Enter")
    assert session.finish() == 8


@pytest.mark.one_kernel
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


# The emulator draws a million characters here, and reads thousands below.
@pytest.mark.one_kernel
def test_much_output_comes_out_whole(tmux: Tmux, tmp_path: Path) -> None:
    """What a payload prints right before its end is shown."""
    code = """
process = Sandbox().spawn(["/bin/sh", "-c", "seq 1 200000; echo the last line"], pty=True)
sys.exit(process.interact())
"""
    session = Session(tmux, tmp_path, code)
    tmux.wait_for("the last line")
    assert session.finish() == 0


# Its terminal is read more slowly than it is written, so it is never empty.
LEFT_BEHIND = """
import select
from nsbox.terminal import Terminal
read, chunks = Terminal.read, 0
def read_when_full(self, size):
    global chunks
    chunks += 1
    if chunks > 1000: os._exit(9)
    select.select([self], [], [])
    return read(self, size)
Terminal.read = read_when_full
command = "trap '' HUP; yes & exit 3"
with Sandbox().open() as live:
    status = live.spawn(["/bin/sh", "-c", command], pty=True).interact()
sys.exit(status)
"""


@pytest.mark.one_kernel
def test_what_is_left_behind_prints_on(tmux: Tmux, tmp_path: Path) -> None:
    """The end of the payload is the end, though others print on its terminal without end."""
    session = Session(tmux, tmp_path, LEFT_BEHIND)
    assert session.finish() == 3


@pytest.mark.one_kernel
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


# The program has both ends of the terminal that it runs on.
ALONE = """
import os, pty, signal, sys
from nsbox import Sandbox
from nsbox.terminal import Terminal
master, slave = pty.openpty()
os.dup2(slave, 0)
os.dup2(slave, 1)
os.close(slave)
read = Terminal.read
def read_and_act(self, size):
    data = read(self, size)
    act()
    return data
Terminal.read = read_and_act
process = Sandbox().spawn(["/bin/sh", "-c", "echo text; read line"], pty=True)
"""


TO_A_PIPE = """
reader, writer = os.pipe()
os.dup2(writer, 1)
"""


@pytest.mark.parametrize("out", ["", TO_A_PIPE], ids=["terminal", "pipe"])
def test_signal_while_the_caller_s_output_is_full(out: str) -> None:
    """Nobody reads what is printed, and another thread takes the signal: that ends it."""
    code = """
import threading
def take():
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
write = os.write
def write_and_take(fd, data):
    written = write(fd, data)
    if written < len(data):
        threading.Thread(target=take).start()
    return written
os.write = write_and_take
Terminal.read = lambda self, size: b"x" * (1 << 18)  # more than a terminal or a pipe holds
signal.alarm(60)
process.interact()
"""
    assert interpreter(ALONE + out + code).returncode == -signal.SIGTERM


def test_caller_s_terminal_that_is_gone() -> None:
    """Hung up just when something is to be printed there, the payload's is hung up, too."""
    code = """
def act():
    os.close(master)
print(process.interact(), file=sys.stderr)
"""
    done = interpreter(ALONE + code)
    assert (done.returncode, done.stderr) == (0, "1\n")


def test_caller_s_terminal_that_is_gone_after_a_signal() -> None:
    """As when SIGHUP is noted before the hang-up is, and its handler lets the program go on."""
    code = """
signal.signal(signal.SIGHUP, lambda *_: None)
def act():
    os.close(master)
    signal.raise_signal(signal.SIGHUP)
print(process.interact(), file=sys.stderr)
"""
    assert interpreter(ALONE + code).stderr == "1\n"


@pytest.mark.one_kernel
def test_signal_before_an_error_is_delivered() -> None:
    """What ends interact() does not end the signals that it has taken note of."""
    code = """
signal.signal(signal.SIGTERM, lambda *_: print("handled", file=sys.stderr))
def act():
    signal.raise_signal(signal.SIGTERM)
    raise EOFError
try:
    process.interact()
except EOFError:
    print("error", file=sys.stderr)
process.kill()
"""
    done = interpreter(ALONE + code)
    assert done.stderr == "handled\nerror\n"


@pytest.mark.one_kernel
def test_change_of_the_size_is_delivered() -> None:
    """The program's own handler of SIGWINCH hears of it when it has its terminal back."""
    code = """
import termios
def resized(*_):
    print("cooked" if termios.tcgetattr(0)[3] & termios.ICANON else "raw", file=sys.stderr)
signal.signal(signal.SIGWINCH, resized)
def act():
    signal.raise_signal(signal.SIGWINCH)
    signal.raise_signal(signal.SIGWINCH)
    process.kill()
process.interact()
"""
    assert interpreter(ALONE + code).stderr == "cooked\n"


@pytest.mark.one_kernel
def test_signal_after_one_whose_handler_raises_is_delivered() -> None:
    """What the first does is no reason to forget the second."""
    code = """
def raises(*_):
    raise EOFError
signal.signal(signal.SIGUSR1, raises)
def act():
    signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGTERM)
try:
    process.interact()
except EOFError:
    process.kill()
"""
    assert interpreter(ALONE + code).returncode == -signal.SIGTERM


@pytest.mark.one_kernel
def test_handler_of_c_code_stays() -> None:
    """Python does not know of it, and could not give it back."""
    code = """
import faulthandler
faulthandler.register(signal.SIGQUIT)
def act():
    signal.raise_signal(signal.SIGQUIT)
    os.close(master)
process.interact()
signal.raise_signal(signal.SIGQUIT)
"""
    done = interpreter(ALONE + code)
    assert done.returncode == 0
    assert done.stderr.count("most recent call first") == 2


def test_pasted_text_waits_for_the_payload() -> None:
    """As long as the payload does not read, what it has not read is left where it is."""
    code = """
import select, threading, tty
tty.setraw(0)
act = lambda: None
threading.Thread(target=os.write, args=(master, b"x" * 1_000_000), daemon=True).start()
takes = 0
def take_nothing(self, data):
    global takes
    select.select([0], [], [])  # there is more
    takes += 1
    if len(data) > 200_000:
        os._exit(9)
    if takes > 200:
        os._exit(0)
    raise BlockingIOError
Terminal.write = take_nothing
process.interact()
"""
    assert interpreter(ALONE + code).returncode == 0


@pytest.mark.one_kernel
def test_caller_without_stdout() -> None:
    """The object may be missing, and the descriptor is used; without that it is an error."""
    code = """
import nsbox
act = lambda: None
os.write(master, b"line\\n")
sys.stdout = None
status = process.interact()
process = Sandbox().spawn(["/bin/true"], pty=True)
os.close(1)
try:
    process.interact()
except nsbox.PlanError as error:
    print(status, error, file=sys.stderr)
"""
    assert interpreter(ALONE + code).stderr.startswith("0 interact(): stdout is closed")


@pytest.mark.one_kernel
def test_payload_s_terminal_that_was_closed() -> None:
    """There is nothing to connect any more."""
    code = """
import nsbox
process.pty.close()
try:
    process.interact()
except nsbox.PlanError as error:
    print(error, file=sys.stderr)
process.kill()
"""
    assert interpreter(ALONE + code).stderr.startswith("interact(): the payload's terminal")


@pytest.mark.one_kernel
def test_handler_raises_before_all_are_back() -> None:
    """A signal that another thread has taken, which blocks none: the others are given back."""
    code = """
import threading
def raises(*_):
    raise EOFError
signal.signal(signal.SIGHUP, raises)
was = {number: signal.getsignal(number) for number in signal.valid_signals()}
count = len(os.listdir("/proc/self/fd"))
now = threading.Event()
def take():
    now.wait()
    signal.pthread_kill(threading.get_ident(), signal.SIGHUP)
thread = threading.Thread(target=take)
thread.start()
set_handler = signal.signal
def set_and_get_one(number, handler):
    set_handler(number, handler)
    if handler is raises:
        signal.signal = set_handler
        now.set()
        thread.join()
signal.signal = set_and_get_one
act = lambda: None
os.write(master, b"line\\n")
try:
    process.interact()
except EOFError:
    print("raised", file=sys.stderr)
back = {number: signal.getsignal(number) for number in signal.valid_signals()}
wakeup = signal.set_wakeup_fd(-1)
print(back == was, wakeup, len(os.listdir("/proc/self/fd")) - count, file=sys.stderr)
process.kill()
"""
    assert interpreter(ALONE + code).stderr == "raised\nTrue -1 0\n"


@pytest.mark.one_kernel
def test_handler_that_closes_the_payload_s_terminal() -> None:
    """The terminal has ended, and with it interact()."""
    code = """
signal.signal(signal.SIGUSR1, lambda *_: process.pty.close())
def act():
    signal.raise_signal(signal.SIGUSR1)
print(process.interact(), file=sys.stderr)
"""
    assert interpreter(ALONE + code).stderr == "1\n"


def test_what_somebody_else_reads_from_a_terminal_that_does_not_block() -> None:
    """Nothing to read any more is no hang-up."""
    code = """
import select
os.set_blocking(0, False)
poll, taken = select.poll, False
class Other:
    def __init__(self):
        self.inner = poll()
        self.register = self.inner.register
    def poll(self):
        global taken
        if taken:
            os.write(master, b"line\\n")
            select.poll = poll
        ready = self.inner.poll()
        if not taken and 0 in dict(ready):
            taken = os.read(0, 4096)
        return ready
select.poll = Other
act = lambda: None
os.write(master, b"lost")
print(process.interact(), file=sys.stderr)
"""
    assert interpreter(ALONE + code).stderr == "0\n"


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
