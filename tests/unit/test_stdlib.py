"""
The private parts of the standard library that nsbox leans on are as it expects.

Each test names what would go wrong if a newer Python changed that part.
"""

import inspect
import subprocess
from types import FunctionType

import pytest

from nsbox import Process, Sandbox
from nsbox._run import PopenOptions

METHODS = {
    name: value for name, value in vars(subprocess.Popen).items() if isinstance(value, FunctionType)
}
FUNCTIONS = {
    name: value
    for name, value in vars(subprocess).items()
    if isinstance(value, FunctionType) and value.__module__ == "subprocess"
}
# How a program of the standard library starts, waits for, or signals a process.
SYSTEM_CALLS = {
    "_fork_exec",
    "_try_wait",
    "_waitpid",
    "execve",
    "fork",
    "fork_exec",
    "kill",
    "killpg",
    "pidfd_open",
    "pidfd_send_signal",
    "popen",
    "posix_spawn",
    "posix_spawnp",
    "system",
    "waitid",
    "waitpid",
}


def names(function: FunctionType) -> set[str]:
    """Return what a function refers to: globals, attributes and its arguments."""
    code = function.__code__
    return {*code.co_names, *code.co_varnames[: code.co_argcount]}


def test_execute_child_has_the_same_parameters() -> None:
    """Popen passes them by position; another order would mix them up."""
    ours = list(inspect.signature(Process._execute_child).parameters)
    theirs = list(inspect.signature(METHODS["_execute_child"]).parameters)
    assert ours == theirs


def test_nothing_but_what_is_replaced_makes_system_calls() -> None:
    """A further method of Popen that waits or signals would do so by pid, not by the pidfd."""
    callers = {name for name, method in METHODS.items() if names(method) & SYSTEM_CALLS}
    # terminate and kill call send_signal; the helpers are called by what is replaced.
    replaced = {name for name in callers if name in vars(Process)}
    helpers = {"_posix_spawn", "_try_wait"}
    assert {"_execute_child", "_internal_poll", "_wait", "send_signal"} <= replaced
    assert callers - replaced - helpers == set()
    for helper in helpers & METHODS.keys():
        assert {name for name, method in METHODS.items() if helper in names(method)} <= replaced


def test_helpers_of_popen_are_there() -> None:
    """What is called of Popen, and which of its attributes are used, exists."""
    assert list(inspect.signature(METHODS["_close_pipe_fds"]).parameters)[1:] == [
        "p2cread",
        "p2cwrite",
        "c2pread",
        "c2pwrite",
        "errread",
        "errwrite",
    ]
    assert "_child_created" in vars(subprocess.Popen)
    assert {"_execute_child", "_closed_child_pipe_fds", "_devnull"} <= names(METHODS["__init__"])
    assert {"_sigint_wait_secs", "_wait"} <= names(METHODS["wait"])
    assert {"_internal_poll", "_child_created"} <= names(METHODS["__del__"])


def test_every_option_of_popen_is_known() -> None:
    """An option that a newer Popen has is taken or refused on purpose, not by accident."""
    theirs = set(inspect.signature(subprocess.Popen).parameters) - {"args"}
    spawn = set(inspect.signature(Sandbox.spawn).parameters)
    windows = {"startupinfo", "creationflags"}
    assert theirs - windows <= PopenOptions.__annotations__.keys() | spawn


@pytest.mark.parametrize(
    "name", ["call", "check_call", "check_output", "getoutput", "getstatusoutput", "run"]
)
def test_functions_start_processes_by_popen_alone(name: str) -> None:
    """With other globals, a function reaches the sandbox's Popen, and nothing else."""
    seen, waiting = set(), {name}
    while waiting:
        current = waiting.pop()
        seen.add(current)
        assert names(FUNCTIONS[current]) & SYSTEM_CALLS <= {"kill"}  # a method of Popen
        assert FUNCTIONS[current].__closure__ is None
        waiting |= (names(FUNCTIONS[current]) & FUNCTIONS.keys()) - seen
    assert any("Popen" in names(FUNCTIONS[reached]) for reached in seen)
