"""Landlock: what it holds when another layer has a hole."""

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import unavailable
from nsbox import PIPE, Bind, Sandbox, SpawnError
from nsbox._calls import landlock_abi
from nsbox._spares import settle
from nsbox.errors import Step
from support import PYTHON, expose, in_child, inside, python_box, stdout_of

pytestmark = pytest.mark.usefixtures("box")


@pytest.fixture(autouse=True)
def landlock() -> None:
    """The kernel has all that is tested here."""
    if landlock_abi() < 6:
        unavailable("this kernel has no Landlock with scopes (Linux 6.12)", newer_kernel=True)


RECEIVE = """
import errno, json, os, socket
end = socket.socket(fileno=3)
_, fds, _, _ = socket.recv_fds(end, 1, 1)
answers = []
for path in ("file", "../file"):
    try:
        os.close(os.open(path, os.O_RDONLY, dir_fd=fds[0]))
        answers.append(0)
    except OSError as error:
        answers.append(error.errno)
end.send(json.dumps(answers).encode())
"""


def _receive(directory: Path, **fields: Any) -> list[int]:
    """Send a directory of the host into a sandbox; return what opening files by it gives there."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs_fd = os.dup2(theirs.fileno(), 3) if theirs.fileno() != 3 else 3
        box = python_box(**fields)
        fd = os.open(directory, os.O_RDONLY)
        with box.spawn([*PYTHON, RECEIVE], pass_fds=[theirs_fd]) as process:
            socket.send_fds(ours, [b"x"], [fd])
            os.close(fd)
            assert process.wait() == 0
        answers: list[int] = json.loads(ours.recv(100))
    return answers


@pytest.fixture
def three() -> Iterator[None]:
    """Descriptor 3 is free for the payload's socket, and as it was afterwards."""
    try:
        saved = os.dup(3)
    except OSError:
        saved = -1
    yield
    if saved >= 0:
        os.dup2(saved, 3)
        os.close(saved)
    else:
        with contextlib.suppress(OSError):
            os.close(3)


@pytest.mark.usefixtures("three")
def test_directory_of_the_host_leads_nowhere(tmp_path: Path) -> None:
    """Even with a descriptor of a directory of the host the payload opens nothing below it."""
    directory = expose(tmp_path) / "directory"
    directory.mkdir()
    for path in (directory / "file", tmp_path / "file"):
        path.write_text("")
        path.chmod(0o644)
    assert _receive(directory, landlock=False) == [0, 0]
    assert _receive(directory) == [errno.EACCES] * 2


def test_rules_do_not_disturb(tmp_path: Path) -> None:
    """What mounts permit stays permitted: write, move between directories, devices, exec."""
    expose(tmp_path)
    box = Sandbox(mounts=[Bind(tmp_path, "/data", readonly=False)], landlock=True)
    script = (
        "echo a >/data/a; mkdir /data/b; mv /data/a /data/b; ln -s b /data/c; cp /data/c/a /tmp; "
        "mv /tmp/a ~; echo x >/dev/null; cp /bin/true /dev/shm; mkfifo /tmp/p; cat ~/a"
    )
    result = box.run(["/bin/sh", "-ec", script], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "a\n", "")


def test_output_can_be_opened_again(tmp_path: Path) -> None:
    """A file that was handed on as stdout can be opened as /dev/stdout."""
    path = expose(tmp_path) / "out"
    path.write_text("")
    path.chmod(0o666)
    with open(path, "a") as file:
        Sandbox().run(["/bin/sh", "-c", "echo x >>/dev/stdout"], stdout=file, check=True)
    assert path.read_text() == "x\n"


CONNECT = """
import json, socket, sys
with socket.socket(socket.AF_UNIX) as end:
    print(json.dumps(end.connect_ex("\\0" + sys.argv[1])))
"""


def test_abstract_sockets_of_the_host_are_out_of_reach() -> None:
    """With net="host" too: the network is shared, abstract Unix sockets are not."""
    name = f"nsbox-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + name)
        listener.listen()
        assert inside(CONNECT, name, box=python_box(net="host", landlock=False)) == 0
        assert inside(CONNECT, name, box=python_box(net="host")) == errno.EPERM


KILL = """
import json, os, sys
try:
    os.kill(int(sys.argv[1]), 0)
    print(0)
except OSError as error:
    print(error.errno)
"""


def test_processes_of_the_same_user_cannot_be_signalled() -> None:
    """With pid="host" the payload sees processes of its own user, and cannot signal them."""
    user: Any = {"user": 65534, "group": 65534} if os.geteuid() == 0 else {}
    with subprocess.Popen(["sleep", "1000"], **user) as victim:
        try:
            pid = str(victim.pid)
            assert inside(KILL, pid, box=python_box(pid="host", landlock=False)) == 0
            assert inside(KILL, pid, box=python_box(pid="host")) == errno.EPERM
        finally:
            victim.kill()


def test_processes_of_one_sandbox_can_be_signalled() -> None:
    """Scopes end where the sandbox shares nothing of the host's."""
    command = "sleep 1000 & echo ready; kill $! && wait $!; exit $(($? - 128))"
    process = Sandbox().spawn(["/bin/sh", "-c", command], stdout=PIPE)
    with process:
        assert stdout_of(process).readline() == b"ready\n"
    assert process.returncode == signal.SIGTERM


def test_message_queues() -> None:
    """Queues of its own can be used, by a spare too, though they are mounted nowhere."""
    code = """
import ctypes, json, os
libc = ctypes.CDLL(None, use_errno=True)
queue = libc.mq_open(b"/queue", os.O_RDWR | os.O_CREAT, 0o600, None)
buffer = ctypes.create_string_buffer(8192)
calls = [queue >= 0, libc.mq_send(queue, b"text", 4, 0), libc.mq_receive(queue, buffer, 8192, None)]
print(json.dumps([*calls, "mqueue" in open("/proc/self/mountinfo").read()]))
"""
    box = python_box()
    for _ in range(3):
        assert inside(code, box=box) == [True, 0, 4, False]


def test_message_queues_without_standard_streams(tmp_path: Path) -> None:
    """Their file system is not where the payload's streams go: those get no rule of its own."""
    log = tmp_path / "log"
    log.touch()
    log.chmod(0o666)
    code = """
import ctypes, errno, os, sys
queue = ctypes.CDLL(None).mq_open(b"/queue", os.O_RDWR | os.O_CREAT, 0o600, None)
try:
    os.open("/proc/self/fd/1", os.O_RDONLY)
except OSError as error:
    sys.exit(100 if error.errno == errno.EACCES and queue >= 0 else 1)
"""
    box = python_box()
    box.run([*PYTHON, "pass"])  # what Python imports for it is there

    def child() -> tuple[int, Step]:
        for fd in range(3):
            os.close(fd)
        null = os.dup2(os.open(os.devnull, os.O_RDWR), 50)
        out = os.dup2(os.open(log, os.O_WRONLY), 51)
        for fd in range(3):
            with contextlib.suppress(OSError):
                os.close(fd)
        result = box.run([*PYTHON, code], stdin=null, stdout=out, stderr=null)
        settle()  # what the thread that works ahead has open on its way is open
        with pytest.raises(SpawnError) as caught:
            box.run([*PYTHON, "pass"], stdin=null, stdout=1, stderr=null)
        return result.returncode, caught.value.step

    assert in_child(child) == (100, Step.DUP)


def test_mounting_needs_the_file_system_part_off() -> None:
    """Where mounting is what a capability is for, the file-system part is left out."""
    box = Sandbox(capabilities=["SYS_ADMIN"])
    result = box.run(["mount", "-t", "tmpfs", "none", "/tmp"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_rules_are_those_of_the_mounts_where_standard_descriptors_were_free() -> None:
    """With 0, 1, 2 closed in the caller, no mount gets such a number, and no stream its rule."""

    def child() -> int:
        null = [os.open(os.devnull, os.O_RDWR) for _ in range(3)]
        for fd in range(3):
            os.close(fd)
        box = Sandbox(root="/", landlock=True)
        return box.run(["/bin/true"], stdin=null[0], stdout=null[1], stderr=null[2]).returncode

    assert in_child(child) == 0
