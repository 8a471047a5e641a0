"""
A sandbox that stays: one world, in which any number of commands run.

Made by ``Sandbox.open()``. Everything in it ends with the object, or with the caller.
"""

import warnings
from collections.abc import Callable
from typing import Any, NoReturn, Self, Unpack

from ._bridge import Child, Request
from ._control import Control
from ._run import Place, SpawnOptions, run
from .errors import PlanError
from .process import Args, Process
from .result import Result


class Live:
    """
    A world that is there, and the processes in it; users do not construct it.

    A context manager: leaving it closes it. Any number of threads may use it. After a
    fork it is the parent's: the copy does nothing, and says that it is closed.
    """

    def __init__(self, spawn: Callable[..., Process], control: Control) -> None:
        """
        Args:
            spawn: ``Sandbox._spawn``.
            control: Of the init, which this object owns from now on.
        """
        self._spawn = spawn
        self._control = control

    def spawn(self, args: Args, **options: Unpack[SpawnOptions]) -> Process:
        """
        Start a process in this world; the arguments are those of ``Sandbox.spawn()``.

        It is a child of the world's init, not its first process: signals without a
        handler end it, and what it has started may outlive it, until the world ends.

        Raises:
            SpawnError, PlanError, LookupError: As from ``Sandbox.spawn()``.
                A SpawnError with step "init" with ESRCH: the world has ended, killed by somebody.
            PlanError: Also if the sandbox is closed.
        """
        if self._control.closed:
            raise PlanError("the sandbox is closed")
        return self._spawn(args, die_with_thread=False, place=Place(self._start, None), **options)

    def run(
        self,
        args: Args,
        *,
        input: Any = None,
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        **options: Unpack[SpawnOptions],
    ) -> Result:
        """
        Run a process in this world, and wait for its end: as ``Sandbox.run()``.

        At the timeout that process is killed, not the world.
        """
        return run(
            self.spawn,
            args,
            input=input,
            capture_output=capture_output,
            timeout=timeout,
            check=check,
            drain=False,
            **options,
        )

    def _start(self, request: Request, child: Child) -> None:
        self._control.start(request, child)

    # ---- its end ----

    @property
    def closed(self) -> bool:
        """It has been closed, or this process is a fork of the one that it belongs to."""
        return self._control.closed

    def kill(self) -> None:
        """Kill every process of the world, and wait for that; nothing can be started after."""
        self._control.close()

    def close(self) -> None:
        """The same; without effect the second time."""
        self._control.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        control = getattr(self, "_control", None)
        if control is not None and control.close():
            _warn(f"live sandbox {control.init.pid} was still open", ResourceWarning, source=self)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"init is process {self._control.init.pid}"
        return f"<nsbox.Live: {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a live sandbox cannot be pickled; pickle its Sandbox instead")
