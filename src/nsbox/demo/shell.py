"""An interactive shell in a sandbox, on a terminal of its own."""

import os
import signal
import sys
from types import FrameType

from .. import Process, Sandbox
from .facts import SHELL, DemoError


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
    if not os.isatty(0):
        raise DemoError("--shell: standard input is not a terminal, so nobody could type")
    variables = {"PS1": "sandbox:$PWD# ", "TERM": os.environ.get("TERM", "dumb")}
    _set_signals()
    with Sandbox(root=root, env=variables).spawn([SHELL], pty=True) as process:
        try:
            _welcome(process, color)
            status = process.interact()
        finally:
            process.kill()
    return 128 - status if status < 0 else status


def _set_signals() -> None:
    """
    End by an exception, for the cleanup's sake, and give the shell what shells expect.

    Ignored signals stay ignored across exec, and a background job ignores these two.
    """
    for number in (signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, _leave)


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _welcome(process: Process, color: bool) -> None:
    start, end = ("\x1b[1;36m", "\x1b[0m") if color else ("", "")
    print(f"{start}You are about to be PID 1.{end} The host calls this shell {process.pid}.")
    print("Try:  echo $$    ps    hostname    ls /    kill -9 1    (exit or Ctrl-D to leave)")
    sys.stdout.flush()
