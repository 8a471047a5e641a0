"""Spawning again and again, successfully or not, leaves nothing behind in the caller."""

import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import children, mounts, open_fds
from nsbox import Bind, Overlay, Sandbox, SpawnError, Step, Tmpfs

pytestmark = pytest.mark.one_kernel

GROWTH = 2 << 20
"""Bytes that the resident memory may grow by."""

WARM_UP = 40


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _maps() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


@pytest.fixture
def count(request: pytest.FixtureRequest) -> int:
    """How often to spawn."""
    return 10_000 if request.config.getoption("--long") else 300


def _repeat(call: Callable[[], None], count: int) -> None:
    """Call again and again; compare what the process holds before and after."""
    for _ in range(WARM_UP):
        call()
    gc.collect()
    before = open_fds(), threading.active_count(), children(), mounts(), _maps()
    memory = _resident()
    for _ in range(count):
        call()
    gc.collect()
    assert (open_fds(), threading.active_count(), children(), mounts()) == before[:4]
    assert _maps() - before[4] < 10
    assert _resident() - memory < GROWTH


def _fails(box: Sandbox, step: Step, program: str = "/bin/true", cwd: str | None = None) -> None:
    with pytest.raises(SpawnError) as caught:
        box.run([program], cwd=cwd)
    assert caught.value.step is step


def test_leaks_none_by_success(box: Sandbox, count: int) -> None:
    """Spawns that succeed leave no descriptor, thread, child, mount or memory."""
    _repeat(lambda: _succeeds(box), count)


def _succeeds(box: Sandbox) -> None:
    assert box.run(["/bin/true"]).returncode == 0


def test_leaks_none_by_pipes(box: Sandbox, count: int) -> None:
    """Nor do spawns with pipes for all streams."""

    def call() -> None:
        assert box.run(["/bin/cat"], input=b"text", capture_output=True).stdout == b"text"

    _repeat(call, count // 3)


def test_leaks_none_by_new_sandboxes(box: Sandbox, count: int) -> None:
    """Nor do sandboxes that are made, used once and dropped."""
    _repeat(lambda: _succeeds(Sandbox(mounts=[Tmpfs("/scratch")])), count // 3)


def test_leaks_none_by_processes_that_are_killed(box: Sandbox, count: int) -> None:
    """Nor do processes that are killed instead of ending by themselves."""

    def call() -> None:
        with box.spawn(["/bin/cat"], stdin=-1) as process:
            process.kill()

    _repeat(call, count // 3)


def test_leaks_none_by_missing_program(box: Sandbox, count: int) -> None:
    """An exec that fails leaves nothing of the sandbox."""
    _repeat(lambda: _fails(box, Step.EXECVE, "/none"), count)


def test_leaks_none_by_missing_source(box: Sandbox, count: int) -> None:
    """A set-up that fails at its first step leaves nothing."""
    broken = Sandbox(mounts=[Bind("/none", "/data")])
    _repeat(lambda: _fails(broken, Step.OPEN_TREE), count)


def test_leaks_none_by_missing_directory(box: Sandbox, count: int) -> None:
    """A working directory that is missing leaves nothing of the finished set-up."""
    _repeat(lambda: _fails(box, Step.CHDIR, cwd="/none"), count)


def test_leaks_none_by_missing_layer(box: Sandbox, count: int) -> None:
    """An overlay without its lower directory leaves nothing."""
    broken = Sandbox(root=Overlay("/none"))
    _repeat(lambda: _fails(broken, Step.OPEN_TREE), count // 3)


def test_leaks_none_by_missing_target(box: Sandbox, count: int, tmp_path: Path) -> None:
    """A mount point that cannot be made, half-way through the mounts, leaves nothing."""
    tmp_path.chmod(0o755)
    broken = Sandbox(
        mounts=[Bind(tmp_path, "/srv", readonly=False, idmap=False), Tmpfs("/srv/missing")]
    )
    _repeat(lambda: _fails(broken, Step.TARGET), count // 3)
    assert list(tmp_path.iterdir()) == []


def test_leaks_none_by_closed_descriptor(box: Sandbox, count: int) -> None:
    """A descriptor that cannot be passed leaves nothing of the sandbox."""

    def call() -> None:
        with pytest.raises(SpawnError) as caught:
            box.run(["/bin/true"], pass_fds=[3000])
        assert caught.value.step is Step.PASS_FD

    _repeat(call, count // 3)
