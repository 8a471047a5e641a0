"""How the tests of this directory run a hostile payload, and what they expect of it."""

import signal
from pathlib import Path
from typing import Any

import nsbox
from nsbox import Bind, Sandbox
from nsbox.mount import Mount

PROGRAM = "/attack"
"""Where the hostile payload is inside."""

REFUSED = {"EPERM", "EACCES", "ENOSYS", "SIGSYS"}
"""How a kernel, or a filter, says that a call is not allowed."""


def armed(hostile: Path, *mounts: Mount, **fields: Any) -> Sandbox:
    """Return a sandbox with the hostile payload in it."""
    return Sandbox(mounts=[Bind(hostile, PROGRAM), *mounts], **fields)


def outcome(result: nsbox.Result) -> str:
    """Return the word that an attack has printed, or the signal that ended it."""
    if result.returncode < 0:
        return signal.Signals(-result.returncode).name
    assert result.returncode == 0, result.stderr
    word: str = result.stdout
    return word.strip()


def attack(box: Sandbox, *args: str, **options: Any) -> str:
    """Run one attack in a sandbox, and return its outcome."""
    options.setdefault("timeout", 60)
    return outcome(box.run([PROGRAM, *args], capture_output=True, text=True, **options))
