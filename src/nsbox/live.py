"""A sandbox that stays: one world for many commands."""

from functools import partial
from typing import Any, Unpack

from ._control import Control
from ._run import Place, PopenOptions, SpawnOptions, run


class Live:
    """What ``Sandbox.open()`` returns; users do not construct it."""

    def __init__(self, spawn: "Spawner", control: Control) -> None: ...

    def spawn(self, args, **options) -> "Process":  # as Sandbox.spawn
        # self._spawn(args, place=Place(self._control.start, fence=None), die_with_thread=False)
        ...

    def run(self, args, *, input=None, capture_output=False, timeout=None, check=False, **options): ...

    def kill(self) -> None: ...

    def close(self) -> None: ...
