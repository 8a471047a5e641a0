"""The exceptions: what they derive from, what they say, how they travel."""

import copy
import errno
import os
import pickle
import re
from pathlib import Path

import pytest

from nsbox.errors import (
    STEPS,
    NamespaceError,
    NsboxError,
    PlanError,
    PlanTypeError,
    SpawnError,
    SpawnFileNotFoundError,
    SpawnNotADirectoryError,
    SpawnPermissionError,
    Step,
    UnsupportedError,
    spawn_error,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "errors.md"

EXAMPLES: list[NsboxError] = [
    NsboxError("something"),
    PlanError("uid: an id is between 0 and 1, not 2"),
    PlanTypeError("uid: an id is an int"),
    UnsupportedError("not here"),
    NamespaceError(errno.EPERM, Step.SETNS),
    NamespaceError(errno.ENOENT, Step.NAMESPACE_OPEN, "/run/netns/blue", "make it first"),
    SpawnError(errno.EPERM, Step.CLONE),
    SpawnError(errno.ENOENT, Step.OPEN_TREE, "/nowhere", 12, "there is no such file"),
    SpawnFileNotFoundError(errno.ENOENT, Step.EXECVE, "/bin/none", -1, "hint"),
    SpawnPermissionError(errno.EACCES, Step.EXECVE, "/bin/none"),
    SpawnNotADirectoryError(errno.ENOTDIR, Step.CHDIR, "/etc/passwd/x"),
]
examples = pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        (PlanError, (NsboxError, ValueError)),
        (PlanTypeError, (PlanError, TypeError)),
        (UnsupportedError, (NsboxError,)),
        (NamespaceError, (NsboxError, OSError)),
        (SpawnError, (NsboxError, OSError)),
        (SpawnFileNotFoundError, (SpawnError, FileNotFoundError)),
        (SpawnPermissionError, (SpawnError, PermissionError)),
        (SpawnNotADirectoryError, (SpawnError, NotADirectoryError)),
    ],
)
def test_error_derives_from(error: type[Exception], bases: tuple[type, ...]) -> None:
    """Each exception can be caught as nsbox's own and as the built-in one it resembles."""
    for base in bases:
        assert issubclass(error, base)


@pytest.mark.parametrize("error", [PlanError, UnsupportedError])
def test_error_before_any_call_is_no_oserror(error: type[Exception]) -> None:
    """What no system call has refused is not an OSError."""
    assert not issubclass(error, OSError)


def _state(error: NsboxError) -> tuple[object, ...]:
    names = ("errno", "strerror", "filename", "step", "path", "index", "hint")
    return (type(error), str(error), error.args, *(getattr(error, name, None) for name in names))


@examples
def test_error_survives_pickling(error: NsboxError) -> None:
    """An exception arrives in another process with its type and every attribute."""
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert _state(pickle.loads(pickle.dumps(error, protocol))) == _state(error)


@examples
def test_error_survives_copying(error: NsboxError) -> None:
    """A copy of an exception has its type and every attribute."""
    assert _state(copy.copy(error)) == _state(copy.deepcopy(error)) == _state(error)


def test_error_with_nothing_but_a_number() -> None:
    """A SpawnError without a path, operation or hint says so with None and -1."""
    error = SpawnError(errno.EPERM, Step.CLONE)
    assert (error.path, error.filename, error.index, error.hint) == (None, None, -1, None)


def test_error_path_is_the_filename() -> None:
    """The path has the name that OSError gives it, too."""
    error = SpawnError(errno.ENOENT, Step.OPEN_TREE, "/nowhere")
    assert error.path == error.filename == "/nowhere"


@pytest.mark.parametrize(
    "error",
    [
        SpawnError(errno.ENOENT, Step.OPEN_TREE, "/no where", 3, "make it"),
        NamespaceError(errno.ENOENT, Step.NAMESPACE_OPEN, "/no where", "make it"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_text_has_all_parts(error: SpawnError | NamespaceError) -> None:
    """The text has the step, the kernel's words, the path and the hint, in this order."""
    text = str(error)
    parts = [error.step.value, os.strerror(errno.ENOENT), repr("/no where"), "make it"]
    positions = [text.index(part) for part in parts]
    assert positions == sorted(positions)


@examples
def test_error_repr_has_all_parts(error: NsboxError) -> None:
    """Where only the repr is shown, as of an exception in a list, it tells as much."""
    assert repr(error).startswith(type(error).__name__ + "(")
    for name in ("errno", "step", "path", "hint"):
        value = getattr(error, name, None)
        assert value is None or repr(value) in repr(error)


def test_error_text_leaves_out_what_is_missing() -> None:
    """Without a path and a hint the text is the step and the kernel's words."""
    assert str(SpawnError(errno.EPERM, Step.CLONE)) == f"clone3: {os.strerror(errno.EPERM)}"


@pytest.mark.parametrize("step", [Step.EXECVE, Step.CHDIR])
@pytest.mark.parametrize(
    ("code", "builtin"),
    [
        (errno.ENOENT, FileNotFoundError),
        (errno.EACCES, PermissionError),
        (errno.EPERM, PermissionError),
        (errno.ENOTDIR, NotADirectoryError),
    ],
)
def test_payload_error_is_the_builtin_one(step: Step, code: int, builtin: type[OSError]) -> None:
    """A program or directory that cannot be used raises what subprocess raises."""
    error = spawn_error(code, step, "/x", -1, "hint")
    assert isinstance(error, builtin)
    assert isinstance(error, SpawnError)
    assert (error.errno, error.step, error.path, error.hint) == (code, step, "/x", "hint")


def test_setup_error_is_no_builtin_one() -> None:
    """A missing file of the set-up must not be taken for a missing program."""
    for step in set(Step) - {Step.EXECVE, Step.CHDIR}:
        assert type(spawn_error(errno.ENOENT, step, "/x")) is SpawnError


def test_payload_error_of_another_kind_is_plain() -> None:
    """An exec that fails for another reason is a plain SpawnError."""
    assert type(spawn_error(errno.E2BIG, Step.EXECVE)) is SpawnError


# ---- steps ---------------------------------------------------------------


def test_steps_are_in_order_of_definition() -> None:
    """STEPS lists every step once, in the order of the enum."""
    assert list(STEPS) == list(Step)
    assert len(set(STEPS)) == len(STEPS)


def test_step_is_a_str() -> None:
    """A step compares and prints as its value."""
    for step in Step:
        assert step == step.value == str(step)


def test_steps_are_explained() -> None:
    """docs/errors.md has one table row for each step, in order, its value in backticks."""
    table = DOCUMENT.read_text().split("## Steps", 1)[1]
    assert re.findall(r"^\|\s*`([^`]+)`\s*\|.+\|$", table, re.M) == [step.value for step in Step]
