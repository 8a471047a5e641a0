"""Which descriptors cross into a sandbox: 0, 1, 2 and those passed, and no other."""

import errno
import json
import os
import resource
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from children import python

from conftest import open_fds
from nsbox import Bind, Sandbox, SpawnError, Step
from nsbox._spares import settle
from nsbox.errors import PlanError

pytestmark = pytest.mark.one_kernel

LIST = "ls /proc/$$/fd; :"
"""A command of the shell that prints the shell's own descriptors."""


def fds_inside(box: Sandbox, **options: Any) -> set[int]:
    """Return the numbers of the descriptors that a payload has."""
    result = box.run(["/bin/sh", "-c", LIST], capture_output=True, text=True, check=True, **options)
    return {int(line) for line in result.stdout.split()}


@pytest.fixture
def many_fds(tmp_path: Path) -> Iterator[list[int]]:
    """Inheritable descriptors of files, directories and pipes, some with large numbers."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))
    highest = min(limit[1] if limit[1] != resource.RLIM_INFINITY else 4096, 4096) - 1
    (tmp_path / "file").write_text("text")
    with ExitStack() as stack:
        opened = [
            os.open("/", os.O_RDONLY | os.O_DIRECTORY),
            os.open("/", os.O_PATH),
            os.open("/etc", os.O_RDONLY | os.O_DIRECTORY),
            os.open(tmp_path / "file", os.O_RDWR),
            *os.pipe(),
        ]
        opened += [os.dup2(opened[0], number) for number in (255, 256, highest // 2, highest)]
        for fd in opened:
            stack.callback(os.close, fd)
            os.set_inheritable(fd, True)
        yield opened
    resource.setrlimit(resource.RLIMIT_NOFILE, limit)


# ---- what does not cross -------------------------------------------------


def test_fds_inheritable_ones_stay_outside(box: Sandbox, many_fds: list[int]) -> None:
    """A payload has 0, 1 and 2, whatever the caller has open and inheritable."""
    assert fds_inside(box) == {0, 1, 2}


def test_fds_of_an_overlay_stay_outside(box: Sandbox, tmp_path: Path) -> None:
    """A set-up with more mounts leaves no descriptor of them to the payload."""
    tmp_path.chmod(0o755)
    other = Sandbox(mounts=[Bind(tmp_path, "/srv/a"), Bind(tmp_path, "/srv/a2/b")])
    assert fds_inside(other) == {0, 1, 2}


def test_fds_passed_ones_cross(box: Sandbox, many_fds: list[int]) -> None:
    """A payload has the descriptors that were passed, under their numbers."""
    directories = [fd for fd in many_fds if stat.S_ISDIR(os.fstat(fd).st_mode)]
    files = [fd for fd in many_fds if fd not in directories]
    found = fds_inside(box, pass_fds=files, pass_directories=directories)
    assert found == {0, 1, 2, *many_fds}


def test_fds_passed_one_need_not_be_inheritable(box: Sandbox) -> None:
    """Passing a close-on-exec descriptor is enough, and leaves it close-on-exec."""
    read, write = os.pipe()
    try:
        assert fds_inside(box, pass_fds=[write]) == {0, 1, 2, write}
        assert not os.get_inheritable(write)
    finally:
        os.close(read)
        os.close(write)


def test_fds_passed_twice_or_standard_are_harmless(box: Sandbox) -> None:
    """Passing a descriptor twice, or 0 to 2, changes nothing."""
    read, write = os.pipe()
    try:
        assert fds_inside(box, pass_fds=[write, write, 0, 1, 2]) == {0, 1, 2, write}
    finally:
        os.close(read)
        os.close(write)


def test_fds_passed_one_is_the_same_file(box: Sandbox) -> None:
    """What a payload writes to a passed pipe arrives."""
    done = python(
        """
        os.dup2(1, 9)
        command = ["/bin/sh", "-c", "echo hello >&9"]
        nsbox.Sandbox().run(command, pass_fds=[9], stdout=nsbox.DEVNULL, check=True)
        """
    )
    assert done.stdout == "hello\n"


# ---- closed and impossible ones ------------------------------------------


def _closed() -> list[int]:
    return sorted(set(range(3, 60)) - open_fds().keys())


def test_fds_passing_a_closed_one_is_an_error(box: Sandbox) -> None:
    """A passed descriptor that the caller does not have is an error of its own step."""
    with pytest.raises(SpawnError) as caught:
        box.run(["/bin/true"], pass_fds=[2000])
    assert (caught.value.step, caught.value.errno) == (Step.PASS_FD, errno.EBADF)


def test_fds_error_says_which_one_is_closed(box: Sandbox) -> None:
    """The error for a closed descriptor has its number."""
    with pytest.raises(SpawnError) as caught:
        box.run(["/bin/true"], pass_fds=[1999])
    assert "1999" in str(caught.value)


def _failure(box: Sandbox, **options: Any) -> tuple[Step, int | None] | None:
    """Return step and error number of a spawn's failure, or None if it succeeds."""
    settle()  # what the thread that works ahead has open on its way is open
    try:
        box.run(["/bin/true"], **options)
    except SpawnError as error:
        return error.step, error.errno
    return None


def test_fds_of_the_set_up_cannot_be_passed(box: Sandbox) -> None:
    """A closed number is an error also where the set-up itself uses that number meanwhile."""
    found = {fd: _failure(box, pass_fds=[fd]) for fd in _closed()}
    assert found == dict.fromkeys(found, (Step.PASS_FD, errno.EBADF))


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_fds_of_the_set_up_cannot_become_stdio(box: Sandbox, stream: str) -> None:
    """A closed number as stdin, stdout or stderr is an error, whatever the set-up has open."""
    found = {fd: _failure(box, **{stream: fd}) for fd in _closed()}
    assert found == dict.fromkeys(found, (Step.DUP, errno.EBADF))


@pytest.mark.parametrize("fd", [-1, -5, 2**31, 2**64, "3", None, 1.5], ids=repr)
def test_fds_impossible_one_is_refused(box: Sandbox, fd: object) -> None:
    """What can be no descriptor is refused by an error of nsbox's own, not ignored or parsed."""
    with pytest.raises((PlanError, SpawnError)):
        box.run(["/bin/true"], pass_fds=[fd])  # type: ignore[list-item]


@pytest.mark.parametrize("fd", [-4, -100, 2**31, 2**64], ids=repr)
def test_fds_impossible_stdin_is_refused(box: Sandbox, fd: int) -> None:
    """A number that is neither a descriptor nor one of subprocess's constants is refused."""
    with pytest.raises((PlanError, SpawnError)):
        box.run(["/bin/true"], stdin=fd)


# ---- stdin, stdout, stderr -----------------------------------------------


def test_stdio_three_pipes(box: Sandbox) -> None:
    """All three streams can be pipes at once, and do not mix."""
    result = box.run(
        ["/bin/sh", "-c", "cat; echo error >&2"], input="text", capture_output=True, text=True
    )
    assert (result.stdout, result.stderr, result.returncode) == ("text", "error\n", 0)


def test_stdio_stderr_can_follow_stdout(box: Sandbox) -> None:
    """With stderr=STDOUT both come through one pipe, in order."""
    result = box.run(
        ["/bin/sh", "-c", "echo 1; echo 2 >&2; echo 3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert (result.stdout, result.stderr) == ("1\n2\n3\n", None)


def test_stdio_devnull(box: Sandbox) -> None:
    """DEVNULL reads as empty."""
    result = box.run(["/bin/cat"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert (result.stdout, result.returncode) == (b"", 0)


def test_stdio_one_file_for_all(box: Sandbox, tmp_path: Path) -> None:
    """The same open file can be stdin, stdout and stderr."""
    path = tmp_path / "file"
    path.write_text("question\n")
    with path.open("r+") as file:
        box.run(
            ["/bin/sh", "-c", "read line; echo answer; echo error >&2"],
            stdin=file,
            stdout=file,
            stderr=file,
            check=True,
        )
    text = path.read_text()
    assert text.endswith("answer\nerror\n")


SWAPPED = """
source, out, err = sys.argv[1:4]
os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT), 1)
os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT), 0)
saved = os.dup(2)
os.dup2(os.open(source, os.O_RDONLY), 2)
stdin, stdout, stderr = json.loads(sys.argv[4])
nsbox.Sandbox().run(["/bin/sh", "-c", "cat; echo error >&2"], stdin=stdin, stdout=stdout,
                    stderr=stderr, check=True)
os.dup2(saved, 2)
"""


def test_stdio_swapped(box: Sandbox, tmp_path: Path) -> None:
    """The caller's 2, 0 and 1 can become the payload's 0, 1 and 2."""
    source, out, err = (tmp_path / name for name in ("source", "out", "err"))
    source.write_text("text\n")
    python(SWAPPED, str(source), str(out), str(err), "[2, 0, 1]")
    assert (out.read_text(), err.read_text()) == ("text\n", "error\n")


CALLER = """
closed, mode, report = json.loads(sys.argv[1]), sys.argv[2], 9
os.dup2(int(sys.argv[3]), report)
os.close(int(sys.argv[3]))
saved = [os.dup(fd) for fd in range(3)]
box = nsbox.Sandbox()
command = "(ls /proc/$$/fd >&9); :"
for fd in closed:
    os.close(fd)
try:
    if mode == "inherit":
        result = box.run(["/bin/sh", "-c", command], pass_fds=[report])
        found = result.returncode
    elif mode == "pipes":
        result = box.run(["/bin/sh", "-c", "cat; echo e >&2; " + command], pass_fds=[report],
                         input=b"in", capture_output=True)
        found = [result.returncode, result.stdout.decode(), result.stderr.decode()]
    elif mode == "output":
        result = box.run(["/bin/sh", "-c", "echo o; " + command], pass_fds=[report],
                         stdout=subprocess.PIPE)
        found = [result.returncode, result.stdout.decode()]
    else:
        result = box.run(["/bin/sh", "-c", "cat; " + command], pass_fds=[report],
                         stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                         stderr=subprocess.DEVNULL)
        found = result.returncode
    left = sorted(set(closed) & {int(n) for n in os.listdir("/proc/self/fd")
                                 if os.path.exists(f"/proc/self/fd/{n}")})
    error = None
except BaseException as caught:
    found, left, error = None, None, repr(caught)
for fd in range(3):
    os.dup2(saved[fd], fd)
print(json.dumps([found, left, error]))
"""
closings = pytest.mark.parametrize(
    "closed", [[0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]], ids=repr
)


def _from_caller_without(closed: list[int], mode: str) -> tuple[object, set[int]]:
    """Run a payload from a caller that has closed some; return what it saw, and its descriptors."""
    read, write = os.pipe()
    try:
        done = python(CALLER, json.dumps(closed), mode, str(write), pass_fds=[write])
    finally:
        os.close(write)
        with open(read) as file:
            inside = {int(line) for line in file.read().split()}
    found, left, error = json.loads(done.stdout)
    assert error is None
    assert left == []
    return found, inside - {9}


@closings
def test_stdio_closed_ones_stay_closed(box: Sandbox, closed: list[int]) -> None:
    """What the caller has closed and does not redirect is closed inside, too."""
    found, inside = _from_caller_without(closed, "inherit")
    assert (found, inside) == (0, {0, 1, 2} - set(closed))


@closings
def test_stdio_pipes_replace_closed_ones(box: Sandbox, closed: list[int]) -> None:
    """Pipes work though they themselves get the numbers that the caller has closed."""
    found, inside = _from_caller_without(closed, "pipes")
    assert (found, inside) == ([0, "in", "e\n"], {0, 1, 2})


@closings
def test_stdio_one_pipe_beside_closed_ones(box: Sandbox, closed: list[int]) -> None:
    """One stream can be a pipe while others are closed."""
    found, inside = _from_caller_without(closed, "output")
    assert (found, inside) == ([0, "o\n"], {0, 1, 2} - set(closed) | {1})


@closings
def test_stdio_devnull_replaces_closed_ones(box: Sandbox, closed: list[int]) -> None:
    """DEVNULL can take the place of what the caller has closed."""
    found, inside = _from_caller_without(closed, "devnull")
    assert (found, inside) == (0, {0, 1, 2})


@closings
def test_stdio_numbers_are_not_used_for_the_pidfd(closed: list[int]) -> None:
    """A caller that has closed standard streams gets no pidfd under their numbers."""
    done = python(
        """
        saved = os.dup(1)
        for fd in json.loads(sys.argv[1]):
            os.close(fd)
        pid, pidfd = clone(0, "/bin/true", ["true"])
        os.waitpid(pid, 0)
        os.write(saved, str(pidfd).encode())
        """,
        json.dumps(closed),
    )
    assert int(done.stdout) > 2


def test_stdio_numbers_are_not_used_for_what_stays(box: Sandbox, tmp_path: Path) -> None:
    """What is kept open for live sandboxes, cgroups, deadlines and namespaces is above 2."""
    done = python(
        """
        saved = os.dup(1)
        for fd in range(3):
            os.close(fd)
        overlay = nsbox.Overlay(sys.argv[1], "/data")
        limits = nsbox.Limits(wall_time=60)
        low = []
        with nsbox.Sandbox(mounts=[overlay], limits=limits).open() as live:
            with nsbox.Namespace.create("user"):
                low = [fd for fd in range(3) if os.path.exists(f"/proc/self/fd/{fd}")]
                status = live.run(["/bin/sh", "-c", "exit 3"]).returncode
        os.write(saved, json.dumps([status, low]).encode())
        """,
        str(tmp_path),
    )
    assert json.loads(done.stdout) == [3, []]
