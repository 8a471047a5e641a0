"""
The pytest plugin of nsbox: what a test starts by subprocess runs in a sandbox.

A module beside the package, and nsbox is imported by the first test that asks for it:
a run in which none does pays nothing, and loads no compiled code.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from nsbox import Bind, Sandbox

_MARKER: Final = (
    "sandboxed(box, /, **fields): run what the test starts by subprocess in a sandbox: in box, a "
    "Sandbox or the name of a fixture that returns one, or in the default one with these fields of "
    "Sandbox added; sandboxed(None) takes a marker of the class or module back"
)

# Audit events of processes that do not come from the subprocess.Popen that a test sees.
_OUTSIDE: Final = {
    "os.fork": "os.fork()",
    "os.forkpty": "os.forkpty()",
    "os.posix_spawn": "os.posix_spawn()",
    "os.system": "os.system()",
    "subprocess.Popen": "a subprocess.Popen that was imported before the test",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "sandbox_missing",
        "what becomes of sandboxed tests where no sandbox can be made: 'fail' (default) or 'skip'",
        default="fail",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER)
    if config.getini("sandbox_missing") not in ("fail", "skip"):
        raise pytest.UsageError("sandbox_missing must be 'fail' or 'skip'")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("sandboxed") is None:
        return
    if not isinstance(item, pytest.Function):
        pytest.fail("sandboxed: only test functions and methods can be", pytrace=False)
    # Last, so that the other fixtures are made outside, and in a list of this item's own:
    # the parameters of a test share theirs.
    if "_sandboxed" not in item.fixturenames:
        item.fixturenames = [*item.fixturenames, "_sandboxed"]


# ---- fixtures -------------------------------------------------------------


@pytest.fixture
def sandbox_fields(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Fields of the default Sandbox of a test. Override it to change them for a whole project."""
    from nsbox import Bind, interpreter_mounts

    mounts = [*interpreter_mounts(), Bind(tmp_path, readonly=False)]
    if request.config.rootpath != Path("/"):
        mounts.append(_show(request.config.rootpath))
    # The same directory may be two of these; the first says how it is shown.
    distinct = {mount.target: mount for mount in reversed(mounts)}
    return {
        "mounts": list(distinct.values()),
        "cwd": "host",
        "env": {"PATH": os.environ.get("PATH", os.defpath)},
    }


@pytest.fixture
def sandbox(request: pytest.FixtureRequest) -> "Sandbox":
    """The nsbox.Sandbox that the test's marker describes, or the default one of a test."""
    return _described(request) or _default(request, {})


@pytest.fixture
def _sandboxed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Puts the Popen of the test's sandbox into the subprocess module."""
    box = _described(request)
    if box is None:
        yield
        return
    with pytest.MonkeyPatch.context() as patch, _refusing_others():
        patch.setattr(subprocess, "Popen", box.subprocess.Popen)
        yield


# ---- which sandbox --------------------------------------------------------


def _described(request: pytest.FixtureRequest) -> "Sandbox | None":
    """Return the sandbox of the test's closest marker; None if it is to have none."""
    marker = request.node.get_closest_marker("sandboxed")
    if marker is None or marker.args == (None,):
        return None
    if not marker.args:
        return _default(request, marker.kwargs)
    if marker.kwargs or len(marker.args) > 1:
        pytest.fail("sandboxed: takes one sandbox, or fields of one", pytrace=False)
    _check_capability(request.config)
    from nsbox import Sandbox

    box = marker.args[0]
    if isinstance(box, str):
        box = request.getfixturevalue(box)
    if not isinstance(box, Sandbox):
        pytest.fail(f"sandboxed: {box!r} is not a Sandbox", pytrace=False)
    return box


def _default(request: pytest.FixtureRequest, fields: dict[str, Any]) -> "Sandbox":
    """Return the default sandbox of a test, with other fields; mounts and env are added."""
    _check_capability(request.config)
    from nsbox import PlanError, Sandbox

    defaults: dict[str, Any] = request.getfixturevalue("sandbox_fields")
    both = {**defaults, **fields}
    try:
        if "mounts" in fields:
            both["mounts"] = [*defaults.get("mounts", ()), *fields["mounts"]]
        if isinstance(fields.get("env"), dict) and isinstance(defaults.get("env"), dict):
            both["env"] = {**defaults["env"], **fields["env"]}
        return Sandbox(**both)
    except (PlanError, TypeError) as error:
        pytest.fail(f"sandboxed: {error}", pytrace=False)


def _show(directory: Path) -> "Bind":
    """Return a read-only bind that the payload can read, also if the directory is the caller's."""
    from nsbox import Bind

    private = directory.stat().st_mode & 0o005 != 0o005
    return Bind(directory, idmap=True if private else None)


# ---- where none can be made -----------------------------------------------


def _check_capability(config: pytest.Config) -> None:
    reason = _why_no_sandbox()
    if reason is None:
        return
    if config.getini("sandbox_missing") == "skip":
        pytest.skip(reason)
    pytest.fail(f"{reason} (sandbox_missing = skip would skip this test)", pytrace=False)


@lru_cache(maxsize=1)
def _why_no_sandbox() -> str | None:
    try:
        from nsbox import NsboxError, Sandbox
    except ImportError as error:
        return f"nsbox cannot be imported: {error}"
    try:
        Sandbox().run(["/bin/true"], check=True)
    except (NsboxError, OSError) as error:
        return f"no sandbox can be made here: {error}"
    return None


# ---- what would go past the sandbox ---------------------------------------

_refusing = False


@lru_cache(maxsize=1)
def _install_hook() -> None:
    """Add the audit hook; it cannot be removed, so it comes with the first sandboxed test only."""
    sys.addaudithook(_refuse)


def _refuse(event: str, _: tuple[object, ...]) -> None:
    if _refusing and event in _OUTSIDE:
        from nsbox import UnsupportedError

        raise UnsupportedError(
            f"this test is sandboxed, and {_OUTSIDE[event]} would start a process outside of the "
            "sandbox; use subprocess.run() or subprocess.Popen()"
        )


@contextmanager
def _refusing_others() -> Iterator[None]:
    global _refusing
    _install_hook()
    before, _refusing = _refusing, True  # a test may run pytest in its own process
    try:
        yield
    finally:
        _refusing = before
