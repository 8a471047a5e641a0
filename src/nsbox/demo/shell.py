"""
An interactive shell in a sandbox, on a terminal of its own.

The user's terminal is only a window to it: bytes are copied both ways, and the
sandbox holds no descriptor of it.
"""

import fcntl
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Final

from .. import Process, Sandbox
from .facts import SHELL, DemoError

_CHUNK: Final = 65536
_STDIN: Final = 0
_STDOUT: Final = 1


def run(root: str | None, *, color: bool) -> int:
    """
    Give the user a shell inside, and return its exit status.

    Args:
        root: Directory to be the root, as for ``Sandbox``.
        color: Colours may be used.

    Raises:
        DemoError: If standard input is no terminal.
        NsboxError: If a sandbox cannot be made here.
    """
    if not os.isatty(_STDIN):
        raise DemoError("--shell: standard input is not a terminal, so nobody could type")
    variables = {"PS1": "sandbox:$PWD# ", "TERM": os.environ.get("TERM", "dumb")}
    box = Sandbox(root=root, env=variables)
    with ExitStack() as stack:
        master, slave = os.openpty()
        stack.callback(os.close, master)
        try:
            _copy_size(master)
            process = _start(box, slave)
        finally:
            os.close(slave)
        stack.enter_context(process)
        stack.callback(process.kill)
        _welcome(process, color)
        with _terminating_signals(), _window(master), _raw_mode():
            if not _copy(master):
                process.kill()
        status = process.wait()
    return 128 - status if status < 0 else status


def _start(box: Sandbox, slave: int) -> Process:
    # Ignored signals stay ignored across exec, and a background job ignores these two.
    for number in (signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    process = box.spawn([SHELL], stdin=slave, stdout=slave, stderr=slave, controlling_terminal=True)
    try:
        # As login(1) does: who runs the shell owns its terminal, or /dev/stderr cannot be opened.
        os.fchown(slave, os.stat(f"/proc/{process.pid}").st_uid, -1)
    except OSError:
        pass  # gone already; what there is to say about that, its status says
    return process


def _welcome(process: Process, color: bool) -> None:
    start, end = ("\x1b[1;36m", "\x1b[0m") if color else ("", "")
    print(f"{start}You are about to be PID 1.{end} The host calls this shell {process.pid}.")
    print("Try:  echo $$    ps    hostname    ls /    kill -9 1    (exit or Ctrl-D to leave)")
    sys.stdout.flush()


@contextmanager
def _raw_mode() -> Iterator[None]:
    """Pass every key on as it is, and restore the user's terminal afterwards."""
    before = termios.tcgetattr(_STDIN)
    try:
        tty.setraw(_STDIN, termios.TCSANOW)  # keeps what has been typed ahead
        yield
    finally:
        try:
            termios.tcsetattr(_STDIN, termios.TCSADRAIN, before)
        except termios.error:
            pass  # the terminal is gone, as after SIGHUP


@contextmanager
def _terminating_signals() -> Iterator[None]:
    """Turn the signals that would end this program into an exception, for the cleanup's sake."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with ExitStack() as stack:
        for number in (signal.SIGHUP, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, leave))
        yield


@contextmanager
def _window(master: int) -> Iterator[None]:
    """Let the inner terminal have the size of the user's, also when that changes."""

    def resize(number: int, frame: FrameType | None) -> None:
        _copy_size(master)

    before = signal.signal(signal.SIGWINCH, resize)
    try:
        _copy_size(master)  # it may have changed since the spawn
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def _copy_size(master: int) -> None:
    size = fcntl.ioctl(_STDIN, termios.TIOCGWINSZ, bytes(8))
    fcntl.ioctl(master, termios.TIOCSWINSZ, size)


def _copy(master: int) -> bool:
    """
    Copy between the user's terminal and the inner one, until either ends.

    What is typed waits here while nobody reads it inside: a blocking write
    would deadlock with a program that itself waits to be read.

    Returns:
        True if the inner terminal ended, False if the user's did.
    """
    os.set_blocking(master, False)
    typed = b""
    while True:
        wants = [master] if typed else [master, _STDIN]
        readable, writable, _ = select.select(wants, [master] if typed else [], [])
        try:
            if master in readable:
                _write_all(os.read(master, _CHUNK))
            if writable:
                typed = typed[os.write(master, typed) :]
        except BlockingIOError:
            continue
        except OSError:
            return True  # EIO: no process has the inner terminal open any more
        if _STDIN in readable:
            typed = os.read(_STDIN, _CHUNK)
            if not typed:
                return False


def _write_all(data: bytes) -> None:
    while data:
        data = data[os.write(_STDOUT, data) :]
