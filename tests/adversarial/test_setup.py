"""Attacks on the set-up: what others do, or have prepared, while a sandbox comes into being."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attack import PROGRAM, armed

from nsbox import Bind, Sandbox, SpawnError, Step
from support import CHILD_DEADLINE

pytestmark = pytest.mark.usefixtures("unharmed")


# ---- the program itself ---------------------------------------------------


@pytest.fixture
def open_directory(tmp_path: Path) -> Iterator[int]:
    """A directory of the host that the caller has open, with a program in it."""
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(0o755)
    shutil.copy("/bin/cat", directory / "cat")
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def _script(path: Path, interpreter: str) -> None:
    path.write_text(f"#!{interpreter}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("kind", ["link", "interpreter"])
@pytest.mark.parametrize("way", ["{fd}/cat", "{fd}/../open/cat"])
def test_program_does_not_lead_through_a_descriptor_of_the_caller(
    tmp_path: Path, open_directory: int, kind: str, way: str
) -> None:
    """A program, or a script's interpreter, in /proc/self/fd of the caller is not there."""
    tree = tmp_path / "tree"
    tree.mkdir()
    path = f"/proc/self/fd/{way.format(fd=open_directory)}"
    if kind == "link":
        (tree / "program").symlink_to(path)
    else:
        _script(tree / "program", path)
    with pytest.raises(SpawnError) as caught:
        Sandbox(mounts=[Bind(tree, "/tree")]).run(["/tree/program"], capture_output=True)
    assert (caught.value.step, caught.value.errno) == (Step.EXECVE, 2)


def test_program_may_be_a_descriptor_that_was_passed(hostile: Path, box: Sandbox) -> None:
    """What is given by name can be executed: pass_fds outlive the closing of all others."""
    fd = os.open(hostile, os.O_RDONLY)
    try:
        result = box.run(
            [f"/proc/self/fd/{fd}", "call", "chroot", "s:/tmp"],
            pass_fds=[fd],
            capture_output=True,
            text=True,
        )
    finally:
        os.close(fd)
    assert result.stdout == "EPERM\n"


# ---- signals to a half-built child ----------------------------------------


def _spawn_until_refused(box: Sandbox) -> SpawnError:
    """Spawn until somebody interferes; each spawn comes back, whatever happens to it."""
    deadline = time.monotonic() + CHILD_DEADLINE
    while time.monotonic() < deadline:
        try:
            process = box.spawn(["/bin/true"])
        except SpawnError as error:
            return error
        process.kill()
        process.wait()
    raise AssertionError("nobody has interfered")


def test_child_that_is_kept_stopped_from_the_host_is_given_up(hostile: Path) -> None:
    """A process of the payload's uid that stops the half-built child cannot hang the caller."""
    ids = {"user": 65534, "group": 65534, "extra_groups": ()} if os.geteuid() == 0 else {}
    with subprocess.Popen(
        [hostile, "stop-children", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **ids,  # type: ignore[call-overload]
    ) as attacker:
        attacker.stdout.readline()
        error = _spawn_until_refused(Sandbox())
    assert error.step is Step.KILLED


def test_child_that_is_kept_stopped_in_a_joined_namespace_is_given_up(hostile: Path) -> None:
    """A payload that stops whoever joins its pid namespace cannot hang the caller."""
    with armed(hostile).spawn([PROGRAM, "stop-others"], stdout=subprocess.PIPE) as attacker:
        assert attacker.stdout is not None
        attacker.stdout.readline()
        try:
            with attacker.namespaces["user"] as user, attacker.namespaces["pid"] as pid:
                error = _spawn_until_refused(Sandbox(user=user, pid=pid, default_mounts=False))
        finally:
            attacker.kill()
    assert error.step is Step.KILLED


# ---- the plan ---------------------------------------------------------------


@pytest.mark.parametrize("user", ["new", "host"])
def test_spawn_does_what_was_explained(user: str) -> None:
    """The plan that a spawn carries out is the one that explain() shows, with every layer."""
    if user == "host" and os.geteuid() != 0:
        pytest.skip("needs root")
    box = Sandbox(user=user)
    box.run(["/bin/true"], check=True)
    assert box._cache.lowered(box).plan == box._plan()


# ---- the caller -------------------------------------------------------------

SPAWN = """
import nsbox
try:
    nsbox.Sandbox().run(["/bin/true"])
except nsbox.UnsupportedError:
    print("no")
"""


def test_program_with_privileges_of_its_file_is_refused(tmp_path: Path, root: None) -> None:
    """A set-group-ID program cannot use nsbox, which is not made to resist its own caller."""
    program = tmp_path / "python"
    shutil.copy(os.path.realpath(sys.executable), program)
    os.chown(program, 0, 4711)
    program.chmod(0o2755)
    path = os.pathsep.join(filter(None, sys.path))
    environment = {"PYTHONHOME": sys.base_prefix, "PYTHONPATH": path}
    command = [str(program), "-S", "-c", SPAWN]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.stdout == "no\n", result.stderr
