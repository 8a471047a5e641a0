"""
What it means to spawn and to run, wherever that is: the options, and the way to the end.

A Sandbox makes a fresh world for each process; other objects start processes in one that
is there already. All of them take the same options and return the same results.
"""

import subprocess
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import IO, Any, Final, TypedDict, Unpack

from ._payload import Args, Attended
from ._values import PathArg, check_bool, check_passed, check_timeout
from .errors import PlanError, PlanTypeError
from .process import Process
from .result import Result
from .terminal import Terminal, check_size, size_of_caller

_Stream = int | IO[Any] | None

Pty = bool | tuple[int, int]

STREAM_LIMIT: Final = 65536
"""What a stream of asyncio buffers, in bytes: its own default."""


class PopenOptions(TypedDict, total=False):
    """What subprocess.Popen takes and means the same here."""

    bufsize: int
    close_fds: bool
    encoding: str | None
    errors: str | None
    executable: PathArg | None
    extra_groups: Iterable[str | int] | None
    group: str | int | None
    pass_fds: Collection[int]
    pipesize: int
    preexec_fn: None
    process_group: int | None
    restore_signals: bool
    shell: bool
    stderr: _Stream
    stdin: _Stream
    stdout: _Stream
    text: bool | None
    umask: int
    universal_newlines: bool | None
    user: str | int | None


class SpawnOptions(PopenOptions, total=False):
    """What run() hands on to the spawn; see Sandbox.spawn."""

    cwd: PathArg | None
    env: Mapping[str, str] | None
    start_new_session: bool
    controlling_terminal: bool
    pass_directories: Collection[int]
    pty: Pty


class RunOptions(SpawnOptions, total=False):
    """What run() takes; see Sandbox.run."""

    input: Any
    capture_output: bool
    timeout: float | None
    check: bool


Running = Attended | Process
"""What a run has begun."""


def run(
    attend: Callable[..., Running],
    args: Args,
    *,
    drain: bool,
    input: Any = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **options: Unpack[SpawnOptions],
) -> Result:
    """
    Spawn, communicate, and return the result: see Sandbox.run.

    Args:
        attend: Takes args and options.
        drain: With the payload die all in its sandbox: nobody else is waited for.
    """
    if timeout is not None or input is not None or capture_output:
        prepare(options, input, timeout, capture_output=capture_output)
    running = attend(args, **options)
    if isinstance(running, Attended):
        result = running.finish(timeout)
    else:
        result = running.result(*_communicate(running, input, timeout, drain=drain))
    if check:
        result.check_returncode()
    return result


def prepare(
    options: SpawnOptions, input: Any, timeout: float | None, *, capture_output: bool
) -> None:
    """Check what a run takes beside the options of a spawn, and ask for the pipes that it needs."""
    if timeout is not None:
        check_timeout("timeout", timeout)
    terminal = options.get("pty", False) is not False
    if input is not None and terminal:
        raise PlanError("input: with pty there is no end of it; spawn, and write to process.pty")
    if input is not None:
        if options.get("stdin") is not None:
            raise PlanError("stdin and input may not both be given")
        _check_input(input, options)
        options["stdin"] = subprocess.PIPE
    if capture_output and not terminal:
        if options.get("stdout") is not None or options.get("stderr") is not None:
            raise PlanError("stdout and stderr may not be given with capture_output")
        options["stdout"] = options["stderr"] = subprocess.PIPE


def _check_input(input: Any, options: SpawnOptions) -> None:
    """Name the two ways to confuse bytes with text; the standard library's words do not."""
    text = any(options.get(name) for name in ("text", "encoding", "errors", "universal_newlines"))
    if text and isinstance(input, (bytes, bytearray, memoryview)):
        raise PlanTypeError("input: must be a str with text=True, not bytes")
    if input and isinstance(input, str) and not text:
        raise PlanTypeError("input: must be bytes, not a str; encode() it, or give text=True")


def check_options(options: dict[str, Any]) -> tuple[Terminal | None, bool]:
    """
    Check the options of a spawn, but for its directory and its environment.

    Returns:
        The caller's end of its terminal, which is yet to be made, if it is to have one, and
        whether it gets a session of its own. The options are those of Process then.
    """
    new_session = check_bool("start_new_session", options.pop("start_new_session", True))
    controlling = check_bool(
        "controlling_terminal", options.setdefault("controlling_terminal", False)
    )
    directories, pty = options.pop("pass_directories", ()), options.pop("pty", False)
    if not options.keys() <= _KNOWN:
        raise PlanTypeError(f"unexpected option {sorted(options.keys() - _KNOWN)[0]!r}")
    if "pass_fds" in options or directories != ():
        options["pass_fds"] = check_passed(options.get("pass_fds", ()), directories)
    if controlling and not new_session:
        raise PlanError("controlling_terminal: only a new session can be given a terminal")
    terminal = _make_terminal(pty, options)
    if terminal is not None and not new_session:
        raise PlanError("pty: only a new session can be given a terminal")
    options["controlling_terminal"] = controlling or terminal is not None
    return terminal, new_session


_KNOWN: Final = PopenOptions.__annotations__.keys() | {"controlling_terminal"}


def _make_terminal(pty: Pty, options: dict[str, Any]) -> Terminal | None:
    if pty is False:
        return None
    size = size_of_caller() if pty is True else check_size(pty)
    for name in ("stdin", "stdout"):
        if options.get(name) is not None:
            raise PlanError(f"{name}: with pty it is the terminal")
    if options.get("stderr") == subprocess.STDOUT:
        options["stderr"] = None
    return Terminal(size)


def _communicate(
    process: Process, input: Any, timeout: float | None, *, drain: bool
) -> tuple[Any, Any]:
    """
    Communicate, and kill the payload if that does not come to its end.

    With drain, all processes of its sandbox die with the payload, so what is left in its
    pipes then is all that there will be.

    No with statement before the kill: one that is left by an exception waits for
    the payload, and a signal handler can raise before, or in, whatever would kill
    it. A Process that nobody holds any more is killed in any case.
    """
    try:
        process.prepare_next()
        return process.converse(input, timeout, alone=drain)
    except BaseException as error:
        process.kill()
        with process:
            if drain and isinstance(error, subprocess.TimeoutExpired):
                error.stdout, error.stderr = process.take_rest()
        raise
