"""
The surface of the standard library's subprocess module, bound to one sandbox.

Its functions are the standard library's own, with all their rules: the same
code, run in a namespace where ``Popen`` is the sandbox's. So there is one way
to start a process, and a newer Python's rules need no copy here.

They have to be Python functions that look ``Popen`` up among their module's
globals. Where that is not so, no module is made (UnsupportedError), since what
a function starts might not be sandboxed.
"""

import functools
import subprocess
import warnings
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any, ClassVar, Final

from ._forks import this_process
from ._payload import Args
from .errors import UnsupportedError
from .process import Process

Constructor = Callable[[Process, Args, dict[str, Any]], None]

# subprocess.Popen's parameters that may be given by position, after self and args.
_CODE: Final = subprocess.Popen.__init__.__code__
_POSITIONAL: Final = _CODE.co_varnames[2 : _CODE.co_argcount]


class BoundPopen(Process):
    """
    A process in a fresh world of the sandbox whose ``box.subprocess`` this is.

    Takes what subprocess.Popen takes, in the same order, and can be subclassed.
    Unless given, env and cwd are the sandbox's, and the session is a new one.
    """

    _construct: ClassVar[Constructor]
    _outlives = True

    @functools.wraps(subprocess.Popen.__init__)  # type: ignore[misc]  # for inspect.signature
    def __init__(self, args: Args, *positional: Any, **options: Any) -> None:
        if len(positional) > len(_POSITIONAL):
            raise TypeError("too many positional arguments")
        named = dict(zip(_POSITIONAL, positional, strict=False))
        for name in named.keys() & options.keys():
            raise TypeError(f"got multiple values for argument {name!r}")
        type(self)._construct(self, args, {**named, **options})

    def __del__(
        self,
        _warn: Callable[..., None] = warnings.warn,
        _this_process: Callable[[], int] = this_process,
    ) -> None:
        payload = getattr(self, "_payload", None)
        if payload is None:
            return
        child = payload.child
        # Whoever gives a Popen up without waiting for it expects the process to go on.
        if child.record.owner == _this_process():
            # asyncio's child watchers, who wait by the process id, set what they know. Of a payload
            # behind an init that is nothing: its end has not been seen, and the init not reaped.
            if payload.returncode is None and self.returncode is not None:
                self.returncode = None
                self._internal_poll()
            super(Process, self).__del__()
        else:
            child.discard()  # after a fork: closes this process's copy of the pidfd


def make_module(construct: Constructor) -> ModuleType:
    """
    Return a module like subprocess.

    Args:
        construct: Initialises a Popen from its args and options.

    Raises:
        UnsupportedError: If the standard library's is not made as described above.
    """
    module = ModuleType("subprocess", subprocess.__doc__)
    attributes = {"__doc__": BoundPopen.__doc__, "_construct": staticmethod(construct)}
    popen = type("Popen", (BoundPopen,), {**attributes, "__module__": "subprocess"})
    space = vars(module)
    space.update({**vars(subprocess), "Popen": popen})
    for name, value in vars(subprocess).items():
        if isinstance(value, FunctionType) and value.__globals__ is vars(subprocess):
            space[name] = _rebind(value, space)
        elif name in subprocess.__all__ and not isinstance(value, (type, int)):
            raise UnsupportedError(f"subprocess.{name} of this Python cannot be sandboxed")
    return module


def _rebind(function: FunctionType, space: dict[str, Any]) -> FunctionType:
    """Return the same function with other globals."""
    bound = FunctionType(
        function.__code__,
        space,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    bound.__kwdefaults__ = function.__kwdefaults__
    bound.__doc__, bound.__module__ = function.__doc__, function.__module__
    return bound
