"""
Run a process in its own world on Linux.

Describe the world once as a :class:`Sandbox`; call ``run()`` or ``spawn()`` as
often as needed, each time in fresh namespaces.
"""

from importlib import import_module
from subprocess import DEVNULL, PIPE, STDOUT, CalledProcessError, TimeoutExpired
from typing import TYPE_CHECKING, Any

from ._changes import Change, ChangeKind
from ._explain import Action, Explanation
from ._interpreter import interpreter_mounts
from ._layers import Enforced, Layer
from ._stock import PoolStats
from ._version import __version__
from .cgroup import Cgroup, Events, Stats
from .doctor import Diagnosis, Finding, doctor
from .errors import (
    CgroupError,
    FileError,
    NamespaceError,
    NsboxError,
    PlanError,
    SpawnError,
    Step,
    UnsupportedError,
)
from .limits import IoLimit, Limits
from .live import Live
from .mount import Bind, Dev, Overlay, Proc, Tmpfs
from .namespace import Namespace
from .pool import Pool
from .process import Process
from .result import Reason, Result, Usage
from .sandbox import Sandbox
from .terminal import Terminal, TerminalSize

if TYPE_CHECKING:
    from . import lowlevel
    from ._async import AsyncProcess

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "Action",
    "AsyncProcess",
    "Bind",
    "CalledProcessError",
    "Cgroup",
    "CgroupError",
    "Change",
    "ChangeKind",
    "Dev",
    "Diagnosis",
    "Enforced",
    "Events",
    "Explanation",
    "FileError",
    "Finding",
    "IoLimit",
    "Layer",
    "Limits",
    "Live",
    "Namespace",
    "NamespaceError",
    "NsboxError",
    "Overlay",
    "PlanError",
    "Pool",
    "PoolStats",
    "Proc",
    "Process",
    "Reason",
    "Result",
    "Sandbox",
    "SpawnError",
    "Stats",
    "Step",
    "Terminal",
    "TerminalSize",
    "TimeoutExpired",
    "Tmpfs",
    "UnsupportedError",
    "Usage",
    "__version__",
    "doctor",
    "interpreter_mounts",
    "lowlevel",
]


def __getattr__(name: str) -> Any:
    # Its flag types take a tenth of the whole import; few programs need them.
    if name == "lowlevel":
        return import_module("nsbox.lowlevel")
    # Importing asyncio takes as long as all of this.
    if name == "AsyncProcess":
        return import_module("nsbox._async").AsyncProcess
    raise AttributeError(f"module 'nsbox' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
