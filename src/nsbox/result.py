"""What a run came to: its status, why it ended, and what it used."""

import signal
import subprocess
from contextlib import suppress
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from ._layers import Enforced
from .errors import CgroupError


class Reason(StrEnum):
    """
    Why a payload ended.

    If several are true, the first in this order is the reason: MEMORY, PIDS,
    OUTPUT, CPU_TIME or WALL_TIME (whichever nsbox killed it for), SECCOMP, SIGNAL, EXIT.
    What the kernel has counted comes before what followed from it.
    """

    EXIT = "exit"
    """It exited."""
    SIGNAL = "signal"
    """A signal ended it."""
    SECCOMP = "seccomp"
    """
    The system-call filter ended it: SIGSYS. The kernel does not say who sent a
    signal; under a filter that ends nobody, the payload did it itself.
    """
    WALL_TIME = "wall_time"
    """nsbox killed it when its time was over."""
    CPU_TIME = "cpu_time"
    """nsbox killed it when its processor time was used up."""
    MEMORY = "memory"
    """The kernel's OOM killer ended one of its processes."""
    PIDS = "pids"
    """The kernel refused it a process or a thread because of the limit of pids."""
    OUTPUT = "output"
    """It wrote more than may be captured; nsbox killed it."""


class Usage(NamedTuple):
    """
    What a payload used. A figure that was not measured is None.

    Times are those of all its processes if the run had a cgroup; otherwise of the
    payload and of those of its descendants that it waited for. The kernel keeps
    no peak of the parts of memory; ``process.cgroup.stats()`` has them at any
    moment of a run.

    Args:
        wall_time: Seconds from the start of the spawn until its end was seen.
        user_time: Seconds of processor time in user mode.
        system_time: Seconds of processor time in the kernel.
        voluntary_switches: Context switches because it waited; of the payload
            and of those of its descendants that it waited for.
        involuntary_switches: Context switches because others were due; the same.
        cpu_time: Seconds of processor time.
        sources: For each figure where it is from: a file of a cgroup, or "rusage".
        memory_peak: The most memory that was charged to it at a time, in bytes:
            anonymous, page cache, tmpfs, kernel.
        pids_peak: The most processes and threads at a time (Linux 6.1).
        oom_kills: Processes that the OOM killer ended.
        pids_refused: Processes and threads that the limit of pids refused.
        output: Bytes of stdout and stderr, if they were captured.
        pressure: Seconds in which at least one process waited for "cpu",
            "memory", "io" (PSI, cgroup v2).
    """

    wall_time: float
    user_time: float
    system_time: float
    voluntary_switches: int
    involuntary_switches: int
    cpu_time: float
    sources: dict[str, str]
    memory_peak: int | None = None
    pids_peak: int | None = None
    oom_kills: int | None = None
    pids_refused: int | None = None
    output: int | None = None
    pressure: dict[str, float] | None = None


class Outcome(Protocol):
    """What a Result is about."""

    @property
    def reason(self) -> Reason:
        """Why the payload ended."""

    def usage(self, output: int | None = None) -> Usage:
        """Return what it used, and how much output was captured."""


class _Kept(NamedTuple):
    """An outcome that can be pickled."""

    reason: Reason
    figures: Usage

    def usage(self, output: int | None = None) -> Usage:
        return self.figures


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
            told it: in its log, where this process may read that, and for filters that
            end the whole process (SCMP_ACT_KILL_PROCESS). Else None.
        reason: A :class:`Reason`.
        degraded: Limits that were left out, as ``Limits(degrade=...)`` allowed.
    """

    degraded: frozenset[str] = frozenset()
    enforced: Enforced = Enforced()
    refused_call: str | None = None
    _usage: Usage | None = None

    def __init__(
        self,
        args: Any,
        returncode: int,
        stdout: Any,
        stderr: Any,
        outcome: Outcome,
        output: int | None = None,
    ) -> None:
        super().__init__(args, returncode, stdout, stderr)
        self._outcome, self._output = outcome, output

    @property
    def usage(self) -> Usage:
        """
        What it used; put together when it is asked for.

        Raises:
            CgroupError: If the figures of its cgroup could not be read, for want of descriptors.
        """
        usage = self._usage  # once: another thread may store it meanwhile
        if usage is None:
            usage = self._usage = self._outcome.usage(self._output)
        return usage

    @property
    def reason(self) -> Reason:
        """
        Why it ended, likewise.

        Raises:
            CgroupError: The same.
        """
        return self._outcome.reason

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_outcome": _Kept(self.reason, self.usage)}

    def check_returncode(self) -> None:
        """
        Raise CalledProcessError for a status other than 0.

        It has a note if a limit, or the filter, was the reason.
        """
        try:
            super().check_returncode()
        except subprocess.CalledProcessError as error:
            with suppress(CgroupError):
                if self.reason not in (Reason.EXIT, Reason.SIGNAL):
                    error.add_note(f"reason: {self.reason}")
            raise

    def __repr__(self) -> str:
        text = super().__repr__()
        with suppress(CgroupError):
            if self.reason is not Reason.EXIT:
                return f"{text[:-1]}, reason={self._reason_text()})"
        return text

    def _reason_text(self) -> str:
        if self.reason is Reason.SIGNAL:
            try:
                return signal.Signals(-self.returncode).name
            except ValueError:
                pass
        return self.reason.name
