"""The end of the caller's interpreter, in every way it can come, while payloads run."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import IO

import pytest

from support import SOURCE

pytestmark = [pytest.mark.usefixtures("box"), pytest.mark.one_kernel]

_HEAD = """
import atexit, gc, os, sys, threading
import nsbox
from nsbox import PIPE, Sandbox
box = Sandbox()
lifeline = int(sys.argv[1])
LONG = ["/bin/sh", "-c", "echo ready; exec sleep 1000"]

def spawn(**options):
    # Keeps the lifeline open for as long as it runs.
    process = box.spawn(LONG, stdout=PIPE, pass_fds=[lifeline], **options)
    assert process.stdout.readline() == b"ready\\n"
    return process

def in_thread(function, daemon=False):
    thread = threading.Thread(target=function, daemon=daemon)
    thread.start()
    return thread
"""

# Way to end -> what a caller does, and its exit status.
_ENDS = {
    "normally": ("process = spawn()", 0),
    "normally, after a spawn in a thread": (
        "found = []\nin_thread(lambda: found.append(spawn())).join()",
        0,
    ),
    "by sys.exit()": ("process = spawn()\nsys.exit(3)", 3),
    "by an exception": ("process = spawn()\nraise RuntimeError", 1),
    "by os._exit()": ("process = spawn()\nos._exit(4)", 4),
    "by os._exit() in a thread": (
        "process = spawn()\nin_thread(lambda: os._exit(5)).join()\nprocess.wait()",
        5,
    ),
    "after sys.exit() in a thread": (
        "process = spawn()\nin_thread(lambda: sys.exit(6)).join()",
        0,
    ),
    "with a process in a cycle": ("process = spawn()\nprocess.me = process\ngc.disable()", 0),
    "with a process in another module": ("sys.kept = spawn()\nsys.modules['kept'] = sys.kept", 0),
    "in a with block": ("with spawn() as process:\n    sys.exit(process.kill())", 0),
    "while a daemon thread waits": (
        """
process = spawn()
begun = threading.Event()
def wait():
    begun.set()
    process.wait()
in_thread(wait, daemon=True)
begun.wait()""",
        0,
    ),
    "while a daemon thread runs one": (
        """
reader, writer = os.pipe()
def run():
    box.run(["/bin/sh", "-c", "echo ready >&$0; exec sleep 1000", str(writer)],
            pass_fds=[lifeline, writer])
in_thread(run, daemon=True)
assert os.read(reader, 6) == b"ready\\n" """,
        0,
    ),
    "while daemon threads spawn": (
        """
def spawns():
    while True:
        box.run(["/bin/true"], pass_fds=[lifeline])
for _ in range(4):
    in_thread(spawns, daemon=True)
for _ in range(10):
    box.run(["/bin/true"])""",
        0,
    ),
    "with a sandbox used at exit": (
        """
process = spawn()
def at_exit():
    assert process.poll() is None
    assert box.run(["/bin/cat"], input=b"x", stdout=PIPE).stdout == b"x"
    print("at exit", flush=True)
atexit.register(at_exit)""",
        0,
    ),
    "with a sandbox used by a finalizer": (
        """
class Final:
    def __del__(self, box=box):
        box.run(["/bin/true"], check=True)
        os.write(1, b"finalized\\n")
final = Final()
final.me = final
process = spawn()""",
        0,
    ),
}
_SAYS = {
    "with a sandbox used at exit": "at exit\n",
    "with a sandbox used by a finalizer": "finalized\n",
}


@pytest.fixture
def lifeline() -> Iterator[tuple[IO[bytes], int]]:
    """A pipe that ends when all who have its other end are gone."""
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as file:
        yield file, writer


@pytest.mark.parametrize("way", _ENDS)
def test_interpreter_that_ends_takes_its_payloads_along(
    lifeline: tuple[IO[bytes], int], way: str
) -> None:
    """However the caller ends: with its own status, no hang, no crash, and nothing runs on."""
    reader, writer = lifeline
    code, status = _ENDS[way]
    with subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "ignore", "-c", _HEAD + code, str(writer)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[writer],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    ) as caller:
        os.close(writer)
        output, errors = caller.communicate(timeout=120)
    assert (caller.returncode, output) == (status, _SAYS.get(way, "")), errors
    assert reader.read() == b""
    assert errors.replace("RuntimeError", "").count("Error") == 0, errors
