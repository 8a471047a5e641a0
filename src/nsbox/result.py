"""What a run came to: its status, why it ended, and what it used."""

import signal
import subprocess
from enum import StrEnum
from typing import Any, NamedTuple

from ._layers import Enforced


class Reason(StrEnum):
    """Why a payload ended."""

    EXIT = "exit"
    """It exited."""
    SIGNAL = "signal"
    """A signal ended it."""
    SECCOMP = "seccomp"
    """
    The system-call filter ended it: SIGSYS. The kernel does not say who sent a
    signal; under a filter that ends nobody, the payload did it itself.
    """


class Usage(NamedTuple):
    """
    What a payload used.

    Processor time is that of the payload and of those of its descendants that
    it waited for.

    Args:
        wall_time: Seconds from the start of the spawn to the end.
        user_time: Seconds of processor time in user mode.
        system_time: Seconds of processor time in the kernel.
        voluntary_switches: Context switches because it waited.
        involuntary_switches: Context switches because others were due.
    """

    wall_time: float
    user_time: float
    system_time: float
    voluntary_switches: int
    involuntary_switches: int

    @property
    def cpu_time(self) -> float:
        """user_time and system_time together, in seconds."""
        return self.user_time + self.system_time


class Result(subprocess.CompletedProcess[Any]):
    """
    A :class:`subprocess.CompletedProcess` that also says why and what it used.

    Attributes:
        args: As they were given.
        returncode: Exit status, or -N if signal N ended the payload.
        stdout: What was captured, or None.
        stderr: What was captured, or None.
        usage: A :class:`Usage`.
        enforced: The layers that were in force: an :class:`Enforced`.
        refused_call: For Reason.SECCOMP the name of the system call, if the kernel
            told it: in its log, where this process may read that. Else None.
    """

    usage: Usage
    enforced: Enforced = Enforced()
    refused_call: str | None = None

    def __init__(self, args: Any, returncode: int, stdout: Any, stderr: Any, usage: Usage) -> None:
        super().__init__(args, returncode, stdout, stderr)
        self.usage = usage

    @property
    def reason(self) -> Reason:
        """Why the payload ended."""
        if self.returncode == -signal.SIGSYS:
            return Reason.SECCOMP
        return Reason.SIGNAL if self.returncode < 0 else Reason.EXIT

    def __repr__(self) -> str:
        text = super().__repr__()
        if self.returncode < 0:
            try:
                text = f"{text[:-1]}, reason={signal.Signals(-self.returncode).name})"
            except ValueError:
                pass
        return text
