"""
What every test gets: probed capabilities, and a check that nothing is left.

A capability that is missing skips the test with the probed reason, or fails it
when NSBOX_MUST_RUN=1 says that it should be there.
"""

import gc
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

import fingerprint
import nsbox
from nsbox import Cgroup, Limits, NsboxError, Sandbox, _cgroup_layout, _init
from nsbox._bridge import id_map_namespace
from nsbox._calls import landlock_abi
from nsbox._cgroup_names import _started, parse
from nsbox._landlock import TRUNCATE_ABI
from nsbox._spares import drain
from support import descriptors

MUST_RUN = os.environ.get("NSBOX_MUST_RUN")
"""What must not be missing: "1" nothing, "host" nothing but features of newer kernels."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long forms of long tests")
    parser.addoption("--seed", default="1", help="of what long tests choose at random")
    parser.addoption("--rounds", type=int, help="how many rounds of a long test")


def pytest_collection_finish() -> None:
    _init.image()  # one descriptor for the whole process, whichever test needs it first
    # The check after each test collects garbage; what was imported by now is none.
    gc.collect()
    gc.freeze()


def unavailable(reason: str, *, newer_kernel: bool = False) -> None:
    """Skip the running test, or fail it where it has to run."""
    if MUST_RUN == "1" or (MUST_RUN == "host" and not newer_kernel):
        pytest.fail(f"NSBOX_MUST_RUN={MUST_RUN}, but: {reason}")
    pytest.skip(reason)


def needs_kernel_of(fields: Mapping[str, Any]) -> None:
    """Skip what takes a newer kernel than this one: a Sandbox with these fields."""
    if fields.get("namespaces") == "none" and landlock_abi() < TRUNCATE_ABI:
        unavailable("without namespaces Landlock of Linux 6.2 is needed", newer_kernel=True)


@lru_cache(maxsize=1)
def _why_no_sandbox() -> str | None:
    try:
        Sandbox().run(["/bin/true"], check=True)
    except (NsboxError, OSError) as error:
        return f"no sandbox can be made here: {error}"
    return None


@pytest.fixture
def box() -> Sandbox:
    """A default Sandbox, on a host where one can be made."""
    reason = _why_no_sandbox()
    if reason is not None:
        unavailable(reason)
    return Sandbox()


@pytest.fixture
def root() -> None:
    """The test needs root; it is not meant for plain users, so never fails for them."""
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture
def plain_user() -> None:
    """The test needs a caller without privilege."""
    if os.geteuid() == 0:
        pytest.skip("needs a plain user")


@lru_cache(maxsize=1)
def why_no_cgroup() -> str | None:
    try:
        Cgroup.create(Limits(memory="64M", pids=16, cpu=1.0)).close()
    except (NsboxError, OSError) as error:
        return str(error)
    return None


@pytest.fixture
def cgroups(box: Sandbox) -> None:
    """A host where memory, pids and cpu can be limited; a plain user needs a delegated subtree."""
    reason = why_no_cgroup()
    if reason is None:
        return
    if os.geteuid() != 0:
        pytest.skip(reason)
    unavailable(reason)


@pytest.fixture
def no_cgroups(box: Sandbox) -> None:
    """A caller who may not make cgroups."""
    if why_no_cgroup() is None:
        pytest.skip("this caller can make cgroups")


@pytest.fixture
def busybox() -> str:
    """Path of a static busybox."""
    path = shutil.which("busybox")
    if path is None:
        unavailable("no busybox (Debian: apt-get install busybox-static)")
    assert path is not None
    return path


@pytest.fixture
def strace() -> str:
    """Path of strace, for tests that make system calls fail."""
    path = shutil.which("strace")
    if path is None:
        unavailable("no strace (Debian: apt-get install strace)")
    assert path is not None
    return path


@pytest.fixture
def rootfs(tmp_path: Path, busybox: str) -> Path:
    """A minimal root file system: busybox and the links sh, ls, cat, id, touch, ps, mount."""
    root = tmp_path / "rootfs"
    (root / "bin").mkdir(parents=True)
    shutil.copy(busybox, root / "bin" / "busybox")
    for name in ("sh", "ls", "cat", "id", "touch", "ps", "mount", "mkdir", "rm"):
        (root / "bin" / name).symlink_to("busybox")
    for directory in (tmp_path, root, root / "bin"):
        directory.chmod(0o755)
    return root


# ---- hostile payloads ----------------------------------------------------


@pytest.fixture(scope="session")
def hostile() -> Iterator[Path]:
    """Path of the hostile payload, compiled once: tests/adversarial/payload."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        unavailable("no C compiler (Debian: apt-get install gcc libc6-dev)")
    assert compiler is not None
    sources = sorted((Path(__file__).parent / "adversarial" / "payload").glob("*.c"))
    options = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-static"]
    # Not below pytest's directory, which is private: attackers on the host have other uids.
    with tempfile.TemporaryDirectory(prefix="nsbox-hostile-") as directory:
        os.chmod(directory, 0o755)
        program = Path(directory, "payload")
        subprocess.run([compiler, *options, "-o", str(program), *map(str, sources)], check=True)
        yield program


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A directory of the host with a few files, none of which may change during the test."""
    directory = tmp_path / "canary"
    (directory / "sub").mkdir(parents=True)
    (directory / "secret").write_text("of the host\n")
    (directory / "program").write_text("#!/bin/sh\necho host\n")
    (directory / "program").chmod(0o755)
    (directory / "sub" / "link").symlink_to("../secret")
    for path in (tmp_path, directory, directory / "sub"):
        path.chmod(0o755)
    return directory


@pytest.fixture
def unharmed(canary: Path, box: Sandbox) -> Iterator[None]:
    """After the test the host is as it was; orphans of payloads would be our children."""
    fingerprint.prctl(fingerprint.PR_SET_CHILD_SUBREAPER, 1)
    before = fingerprint.take([canary])
    yield
    after = fingerprint.take([canary])
    fingerprint.prctl(fingerprint.PR_SET_CHILD_SUBREAPER, 0)
    for name, value in before.items():
        assert after[name] == value, f"the payload changed the host: {name}"


Shell = Callable[..., nsbox.Result]


@pytest.fixture
def sh(box: Sandbox) -> Shell:
    """Run a shell command: ``sh("id -u")``, or in another box: ``sh("id -u", Sandbox(...))``."""

    def run(command: str, sandbox: Sandbox = box, **options: Any) -> nsbox.Result:
        return sandbox.run(["/bin/sh", "-c", command], capture_output=True, text=True, **options)

    return run


# ---- nothing is left -----------------------------------------------------


def open_fds() -> dict[int, str]:
    """Return what this process has open, once what was made ahead for a Sandbox is let go."""
    drain()
    return descriptors()


def children() -> set[int]:
    """Return this process's children, zombies too, of all its threads; none that works ahead."""
    drain()
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            text = Path(f"/proc/self/task/{task}/children").read_text()
        except FileNotFoundError:
            continue  # a thread that has just ended
        found.update(int(pid) for pid in text.split())
    return found


def mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def tasks() -> int:
    """Return the number of this process's threads, those of C too."""
    return len(os.listdir("/proc/self/task"))


def await_tasks(most: int) -> None:
    """Wait until there are so many threads: one that has been joined may be on its way out."""
    deadline = time.monotonic() + 60
    while tasks() > most:
        assert time.monotonic() < deadline, "left threads of C"
        os.sched_yield()


def own_cgroups(pid: int | None = None) -> set[str]:
    """Return a process's cgroups, in all places where nsbox makes them; this one's by default."""
    found = set()
    # What is older was left by another, whose number it was.
    since = _started("self") or 0
    for hierarchy in _cgroup_layout.look().hierarchies:
        for place in hierarchy.above():
            for name in os.listdir(place):
                owner = parse(name)
                if owner is None or owner.pid != (pid or os.getpid()):
                    continue
                if owner.started >= since:
                    found.add(f"{place}/{name}")
    return found


def held() -> dict[str, Any]:
    """Return how much this process has of what it should not lose."""
    return {
        "children": len(children()),
        "fds": len(open_fds()),
        "cgroups": len(own_cgroups()),
        "threads": tasks(),
        "mounts": mounts(),
        "dumpable": fingerprint.prctl(fingerprint.PR_GET_DUMPABLE),
    }


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """After each test: no fd, child, mount, thread or cgroup more than before."""
    before = open_fds(), children(), mounts(), threading.active_count(), tasks()
    yield
    id_map_namespace.cache_clear()
    gc.collect()  # a failed test's traceback may hold objects
    gc.freeze()  # what is left is not looked at again
    after = open_fds(), children(), mounts(), threading.active_count()
    assert after[0].keys() - before[0].keys() == set(), f"left open: {after[0]}"
    assert after[1] - before[1] == set(), "left children"
    assert after[2] == before[2], "left mounts"
    assert after[3] == before[3], "left threads"
    await_tasks(before[4])
    assert own_cgroups() == set(), "left cgroups"
