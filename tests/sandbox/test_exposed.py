"""
A payload that may mount cgroup file systems, and to the host is its caller's own user.

The files of its cgroup belong to that user, so it may write them. It sits in one that limits
nothing, inside of the one that does.
"""

import errno
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nsbox import CgroupError, Limits, Reason, Result, Sandbox, TimeoutExpired
from support import PYTHON, python_box, until

DEADLINE = 120.0

MOUNTED = """
import ctypes, json, os, sys, time

libc = ctypes.CDLL(None, use_errno=True)

def check(result):
    assert result == 0, os.strerror(ctypes.get_errno())

if sys.argv[1] == "user_namespaces":
    check(libc.unshare(0x10000000 | 0x20000 | 0x2000000))  # CLONE_NEWUSER, _NEWNS, _NEWCGROUP
    for name, text in (("setgroups", "deny"), ("uid_map", "0 1000 1"), ("gid_map", "0 1000 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)

places = []
for line in open("/proc/self/cgroup").read().splitlines():
    number, names, _ = line.split(":", 2)
    kind, options = ("cgroup", names.replace("name=", "none,name=")) if names else ("cgroup2", "")
    places.append(f"/tmp/{number}")
    os.mkdir(places[-1])
    check(libc.mount(b"none", places[-1].encode(), kind.encode(), 0, options.encode()))

def attempt(name, text):
    for place in places:
        try:
            with open(f"{place}/{name}", "w") as file:
                file.write(text)
        except OSError:
            pass
"""
"""Mounts all hierarchies."""

LIFT = """
for name in ("tasks", "cgroup.procs"):
    attempt(name, "0")
for name in ("pids.max", "memory.max", "memory.swap.max"):
    attempt(name, "max")
for name in ("memory.memsw.limit_in_bytes", "memory.limit_in_bytes", "cpu.cfs_quota_us"):
    attempt(name, "-1")
attempt("cpu.max", "max 100000")
"""

BOMB = """
children = []
try:
    while len(children) < 40:
        child = os.fork()
        if child == 0:
            time.sleep(600)
        children.append(child)
except OSError:
    pass
for child in children:
    os.kill(child, 9)
print(len(children))
"""


ADMIN, NESTED = "CAP_SYS_ADMIN", "user_namespaces"
"""How it may mount."""


def exposed(way: str, **fields: Any) -> Sandbox:
    """Return a sandbox whose payload is the caller to the host, and may mount in that way."""
    if os.geteuid() == 0:
        fields |= {"host_uid": 0, "host_gid": 0}
    if way == ADMIN:
        return python_box(capabilities=[way], **fields)
    return python_box(user_namespaces=True, uid=1000, gid=1000, **fields)


def do(run: Callable[..., Result], way: str, code: str, **options: Any) -> Result:
    args = [*PYTHON, MOUNTED + code, way]
    return run(args, capture_output=True, text=True, timeout=DEADLINE, **options)


Run = Callable[[str, str, Limits | None], Result]


def in_run(way: str, code: str, limits: Limits | None = None) -> Result:
    return do(exposed(way, limits=limits).run, way, code)


def in_pool(way: str, code: str, limits: Limits | None = None) -> Result:
    with exposed(way, limits=limits).pool(1) as pool:
        return do(pool.run, way, code)


def in_live(way: str, code: str, limits: Limits | None = None) -> Result:
    with exposed(way, limits=limits).open() as live:
        return do(live.run, way, code)


def in_command(way: str, code: str, limits: Limits | None = None) -> Result:
    """With limits of the command alone."""
    with exposed(way).open() as live:
        return do(live.run, way, code, limits=limits)


EACH = pytest.mark.parametrize(
    ("way", "run"),
    [(ADMIN, in_run), (NESTED, in_pool), (NESTED, in_live), (ADMIN, in_command)],
)
TWO = pytest.mark.parametrize(("way", "run"), [(NESTED, in_run), (ADMIN, in_command)])


@EACH
@pytest.mark.usefixtures("box")
def test_is_alone_in_its_cgroup(way: str, run: Run) -> None:
    """Also without any limits: else it could freeze or kill its caller."""
    code = """
for place in places:
    if os.access(place, os.W_OK):
        print(place, *open(f"{place}/cgroup.procs").read().split(), flush=True)
"""
    result = run(way, code, None)
    assert result.returncode == 0, result.stderr
    assert "0" not in result.stdout.split(), "processes from outside"


@EACH
@pytest.mark.usefixtures("cgroups")
def test_number_of_processes_cannot_be_lifted(way: str, run: Run) -> None:
    result = run(way, LIFT + BOMB, Limits(pids=16))
    assert result.returncode == 0, result.stderr
    assert 1 < int(result.stdout) < 16
    assert result.reason is Reason.PIDS


@TWO
@pytest.mark.usefixtures("cgroups")
def test_memory_cannot_be_lifted(way: str, run: Run) -> None:
    code = f"""{LIFT}
child = os.fork()
if child == 0:
    bytearray(200 << 20)
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""
    result = run(way, code, Limits(memory="64M"))
    assert result.stdout.split() == ["9"], result.stderr
    assert result.reason is Reason.MEMORY


@TWO
@pytest.mark.usefixtures("cgroups")
def test_figures_cannot_be_set_back(way: str, run: Run) -> None:
    code = """
len(bytearray(b"x") * (20 << 20))
for name in ("memory.max_usage_in_bytes", "memory.peak", "cpuacct.usage"):
    attempt(name, "0")
"""
    result = run(way, code, Limits(memory="128M"))
    assert result.returncode == 0, result.stderr
    assert result.usage.memory_peak is None or result.usage.memory_peak > 20 << 20


FREEZE = """
attempt("cgroup.freeze", "1")
attempt("freezer.state", "FROZEN")
time.sleep(600)
"""


@pytest.mark.usefixtures("cgroups")
@pytest.mark.parametrize(("way", "run"), [(ADMIN, in_run), (NESTED, in_pool), (NESTED, in_live)])
def test_frozen_by_itself(way: str, run: Run) -> None:
    """It does not come to its end, but is ended."""
    assert run(way, FREEZE, Limits(wall_time=1.5)).reason is Reason.WALL_TIME


@pytest.mark.usefixtures("cgroups")
def test_frozen_by_a_command() -> None:
    """With its init, and all else that lives in the same sandbox: it ends for its caller."""
    with exposed(ADMIN).open() as live:
        process = live.spawn([*PYTHON, MOUNTED + FREEZE, ADMIN])
        whole = live._whole.cgroup
        assert whole is not None
        events = Path(whole.seat.directories[0], "cgroup.events")
        until(lambda: "frozen 1" in events.read_text())
        with pytest.raises(TimeoutExpired):
            live.run(["/bin/true"], timeout=0.2)
    assert process.wait(DEADLINE) == -signal.SIGKILL


@pytest.mark.usefixtures("cgroups")
def test_cgroups_of_its_own_are_removed() -> None:
    """However deep they are, and whatever their rights."""
    code = """
for place, depth in zip(reversed(places), [1100] + [3] * len(places)):
    if not os.access(place, os.W_OK):
        continue
    os.chdir(place)
    for level in range(depth):
        os.mkdir("deep")
        os.chdir("deep")
        if level < 2:
            os.chmod("..", 0)
"""
    result = in_run(ADMIN, code, Limits(pids=16))
    assert result.returncode == 0, result.stderr


@pytest.mark.usefixtures("cgroups")
@pytest.mark.parametrize("way", [ADMIN, NESTED])
def test_leaves_nothing_behind(way: str) -> None:
    """Also without limits, and where it is no init: its cgroup goes with all that is in it."""
    reader, writer = os.pipe()
    with open(reader, "rb") as end:
        with open(writer, "wb") as kept:
            script = ["/bin/sh", "-c", "sleep 1000 &"]
            exposed(way, pid="host").run(script, stdout=kept, check=True)
        assert select.select([end], [], [], DEADLINE)[0], "something has still got the pipe"


@pytest.mark.usefixtures("cgroups")
def test_cgroup_inside_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the kernel's, and nothing is left: a host may limit how deep cgroups are."""
    made: list[str] = []
    mkdir = os.mkdir

    def refusing(path: str) -> None:
        if path.endswith("/seat"):
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)
        mkdir(path)
        made.append(path)

    monkeypatch.setattr(os, "mkdir", refusing)
    with pytest.raises(CgroupError) as caught:
        exposed(ADMIN, limits=Limits(pids=16)).run(["/bin/true"])
    assert caught.value.errno == errno.EAGAIN
    assert made
    assert not any(map(os.path.exists, made))
