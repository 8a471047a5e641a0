"""
Connect the caller's own terminal to that of a payload.

Whatever happens, the caller's is in its old mode afterwards. So no signal handler of the
program runs while it is in raw mode: signals that would end, stop or interrupt the caller, and
those that the program handles, are noted, and delivered when the mode is back.
"""

import errno
import os
import select
import signal
import stat
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, Final

from ._calls import Descriptor
from .errors import PlanError
from .terminal import Terminal, TerminalSize, read_rest, size_of_caller

_IN: Final = 0
_OUT: Final = 1
_CHUNK: Final = 65536
# What the program itself does wrong comes at once, or never; the others do no harm by themselves,
# or stop who does not have the terminal. At SIGCONT it has another mode, which the shell has made.
_LEFT_ALONE: Final = frozenset(
    {
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGCHLD,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGKILL,
        signal.SIGSEGV,
        signal.SIGSTOP,
        signal.SIGSYS,
        signal.SIGTRAP,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGURG,
    }
)
"""Signals that are not noted if the program has no handler for them."""


def connect(terminal: Terminal, pidfd: Descriptor | None) -> None:
    """
    Connect descriptors 0 and 1 to a payload's terminal, until one of the two has ended.

    If the caller goes on after a signal, as after a stop, so does this.

    Args:
        terminal: Of the payload.
        pidfd: Of the payload; None if it has ended.

    Raises:
        PlanError: If descriptor 0 is not a terminal, descriptor 1 or the payload's terminal is
            closed; outside of the main thread, which alone may handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        raise PlanError("interact(): only the main thread can; other threads have process.pty")
    if not os.isatty(_IN):
        raise PlanError("interact(): stdin is not a terminal; read and write process.pty instead")
    if terminal.closed:
        raise PlanError("interact(): the payload's terminal has been closed")
    if sys.stdout is not None:  # as it is if it was closed when Python started
        sys.stdout.flush()
    with closing(_own_output()) as out:
        session, ended = _Session(terminal, pidfd, out), False
        while not ended and not terminal.closed:  # as a handler may have done
            try:
                ended = session.run()
            finally:  # also with an error: nobody else has heard of them
                _deliver(session.noted())


def _deliver(signals: list[int]) -> None:
    """Deliver all of them, though a handler raises."""
    try:
        while signals:
            signal.raise_signal(signals.pop(0))
    finally:
        if signals:
            _deliver(signals)


def _own_output() -> Descriptor:
    """
    Open the caller's output once more, so that writing to it does not block.

    By a flag of the open file, which others have, too, if it is not one of our own. Where
    that may not be opened, as after su(1), writing may have to wait.
    """
    try:
        mode = os.fstat(_OUT).st_mode
    except OSError:
        raise PlanError(
            "interact(): stdout is closed; read and write process.pty instead"
        ) from None
    if os.isatty(_OUT) or stat.S_ISFIFO(mode):
        with suppress(OSError):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
            return Descriptor(f"/proc/self/fd/{_OUT}", flags)
    return Descriptor.duplicate(_OUT)


class _Session:
    """The caller's terminal in raw mode, until the end, or until a signal is to be delivered."""

    def __init__(self, terminal: Terminal, pidfd: Descriptor | None, out: Descriptor) -> None:
        self._terminal = terminal
        self._pidfd = pidfd
        self._out = out
        self._typed = b""
        self._printed = b""
        self._over = False  # the payload has ended, and all that it has printed has been read
        self._size: TerminalSize | None = None  # the caller's, as the terminal has been told
        self._signals: list[int] = []  # that wait to be delivered
        self._resized = False  # and SIGWINCH, for which the payload need not wait

    def run(self) -> bool:
        """Copy in both directions; return whether the payload or its terminal has ended."""
        with _handled_by(self._note) as reader:
            try:
                mode = self._make_raw()
            except termios.error:
                if os.isatty(_IN):
                    raise
                return self._hang_up()  # before the first wait, or while signals were delivered
            if mode is None:
                return False
            try:
                os.set_blocking(self._terminal.fileno(), False)
                return self._copy(reader)
            finally:
                _restore(mode)
                if not self._terminal.closed:
                    os.set_blocking(self._terminal.fileno(), True)

    def _make_raw(self) -> list[Any] | None:
        """Return the mode from before; None, and it is still that, if a signal was first."""
        while not self._signals:
            mode = termios.tcgetattr(_IN)  # in the background it may be one of the shell's own
            try:
                tty.setraw(_IN, termios.TCSANOW)  # what has been typed ahead is for the payload
                return mode
            except termios.error as error:  # in the background it is stopped here, and continued
                if error.args[0] != errno.EINTR:
                    raise
        return None

    def noted(self) -> list[int]:
        """Return the list of the signals that are to be delivered, to take them from it."""
        if self._resized:
            self._resized = False
            self._signals.append(signal.SIGWINCH)
        return self._signals

    def _note(self, number: int, _: object) -> None:
        if number == signal.SIGWINCH:
            self._resized = True
        else:
            self._signals.append(number)

    def _copy(self, reader: int) -> bool:
        master = self._terminal.fileno()
        self._follow_size()
        while not self._signals:
            if self._over and not self._printed:
                return True
            ready = self._wait(reader)
            if reader in ready:
                os.read(reader, _CHUNK)
            # What is typed after a change of the size comes after it, though its signal be late.
            if reader in ready or _IN in ready:
                self._follow_size()
            if _IN in ready and not self._listen():
                return self._hang_up()
            if self._typed:
                self._type()
            if self._printed and not self._print():
                return self._hang_up()
            if ready.get(master, 0) & ~select.POLLOUT:
                self._read()
            if self._pidfd is not None and self._pidfd.fileno() in ready:
                # What was printed before the end: what the payload has left behind may print on.
                self._printed += b"".join(read_rest(self._terminal))
                self._over = True
        return False

    def _wait(self, reader: int) -> dict[int, int]:
        """Wait for something to do; nothing more is read before what was is shown."""
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        # No more is taken than the payload reads; without events it still tells of its end.
        poll.register(_IN, select.POLLIN if len(self._typed) < _CHUNK else 0)
        if self._printed:
            poll.register(self._out.fileno(), select.POLLOUT)
        else:
            typed = select.POLLOUT if self._typed else 0
            poll.register(self._terminal.fileno(), select.POLLIN | typed)
            if self._pidfd is not None:
                poll.register(self._pidfd.fileno(), select.POLLIN)
        return dict(poll.poll())

    def _hang_up(self) -> bool:
        """The caller's terminal was hung up, and so is the payload's."""
        self._terminal.close()
        return True

    def _follow_size(self) -> None:
        # Only changes: a payload may have given its terminal another size.
        if (size := size_of_caller()) != self._size:
            self._size = size
            self._terminal.resize(*size)

    def _listen(self) -> bool:
        """Take what has been typed; without more to come, the caller's terminal was hung up."""
        try:
            typed = os.read(_IN, _CHUNK)
        except BlockingIOError:
            return True  # somebody else has read it
        except OSError:
            typed = b""
        self._typed += typed
        return bool(typed)

    def _type(self) -> None:
        """Hand on what has been typed, as far as the payload's terminal takes it."""
        try:
            self._typed = self._typed[self._terminal.write(self._typed) :]
        except BlockingIOError:
            pass
        except OSError:
            self._typed = b""  # hung up: the next read will say so

    def _read(self) -> None:
        """Take a part of what has been printed, if there is some, or note the end."""
        try:
            self._printed = self._terminal.read(_CHUNK)
        except BlockingIOError:
            return
        self._over = not self._printed

    def _print(self) -> bool:
        """Show what the caller's terminal takes of it; return False if that was hung up."""
        try:
            self._printed = self._printed[os.write(self._out.fileno(), self._printed) :]
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False
        return True


@contextmanager
def _handled_by(note: Callable[[int, object], None]) -> Iterator[int]:
    """
    Have the program's signals handled by a function, and give the program its handlers back.

    Gives a descriptor to read from, which tells of signals as soon as they come. Python's
    handlers run later, maybe after a wait that began in between.
    """
    handlers: dict[int, Any] = {}
    try:
        for number, handler in _program_s_handlers():
            handlers[number] = handler
            signal.signal(number, note)
        # From here on none of them raises.
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(wakeup)
            os.close(reader)
            os.close(writer)
    finally:
        # One that raises does so when all of them are back.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, handlers)
        try:
            _give_back(handlers)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _give_back(handlers: dict[int, Any]) -> None:
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    except BaseException:
        _give_back(handlers)  # another thread has taken a signal, whose handler has raised here
        raise


def _program_s_handlers() -> Iterator[tuple[int, Any]]:
    """Yield what would disturb, and what Python does then."""
    caught = _caught()
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        # None, or none though it is caught: C code has its own, which Python could not give back.
        if handler is signal.SIG_DFL:
            if number not in _LEFT_ALONE and not caught >> (number - 1) & 1:
                yield number, handler
        elif callable(handler):
            yield number, handler


def _caught() -> int:
    """Return the signals that have a handler, as a mask; none where /proc does not say."""
    with suppress(OSError), open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"SigCgt:"):
                return int(line.split()[1], 16)
    return 0


def _restore(mode: list[Any]) -> None:
    # A signal ends the wait of the first; a terminal that was hung up has no mode to restore.
    for when in (termios.TCSADRAIN, termios.TCSANOW):
        with suppress(termios.error):
            termios.tcsetattr(_IN, when, mode)
            return
