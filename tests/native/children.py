"""Run a script in a Python of its own, for tests that change the process they run in."""

import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nsbox

SOURCE = str(Path(nsbox.__file__).parents[1])
TIMEOUT = 60

_PRELUDE = f"""
import sys
sys.path.insert(0, {SOURCE!r})
import json, os, signal, subprocess
import nsbox
from nsbox import lowlevel
from nsbox.lowlevel import *
"""

# The caller's own ids are root in the new user namespace; mounts stay inside.
_ENTER = """
uid, gid = os.geteuid(), os.getegid()
unshare(CloneFlag.CLONE_NEWUSER | CloneFlag.CLONE_NEWNS | CloneFlag.CLONE_NEWUTS)
for name, text in ("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1"):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
mount(None, "/", None, MountFlag.MS_REC | MountFlag.MS_PRIVATE)
"""


def python(
    script: str, *args: str, pass_fds: Sequence[int] = (), **options: Any
) -> subprocess.CompletedProcess[str]:
    """
    Run a script with nsbox and its lowlevel names imported; its failure fails the test.

    Args:
        script: What to run; indentation that all lines share is taken away.
        args: Its ``sys.argv[1:]``.
        pass_fds: Descriptors that it inherits.
        options: As for subprocess.run.
    """
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [sys.executable, "-W", "error", "-c", _PRELUDE + textwrap.dedent(script), *args],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        pass_fds=pass_fds,
        **options,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done


def python_as_root(script: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a script as :func:`python` does, as root of user, mount and uts namespaces of its own."""
    return python(_ENTER + textwrap.dedent(script), *args)
