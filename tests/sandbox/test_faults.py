"""
Every system call of a set-up, made to fail: a typed error that names it, and nothing left.

strace attaches to a caller that has spawned once already, so its first calls
after that are those of the spawn. Its counters are per process: "when=1" is
the first such call of the caller and the first one of the child.
"""

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import SOURCE

from nsbox import Step

pytestmark = pytest.mark.usefixtures("box")

# The report is made by calls that no test makes fail, or is tried again.
_CALLER = """
import gc, json, os, sys
import nsbox
from nsbox import Bind, Overlay, Sandbox, Tmpfs
box = Sandbox(mounts=[Bind(sys.argv[1], "/x"), Tmpfs("/x/y"), Overlay(sys.argv[1], "/z")])
args = ["/bin/true"]
report = os.open(sys.argv[2], os.O_WRONLY)
null = os.open("/dev/null", os.O_RDWR)
box.run(args, stdout=null, stderr=null)
try:
    box.run(["/missing"])  # so that what a failure imports is there
except nsbox.SpawnError:
    pass
try:
    nsbox.lowlevel.prctl(0x59616D61, 2**64 - 1)  # PR_SET_PTRACER: whoever, where Yama asks
except OSError:
    pass
def stubborn(function, *args):
    for _ in range(100):
        try:
            return function(*args)
        except OSError:
            continue
def children():
    with open("/proc/thread-self/children") as file:
        return file.read().split()
def fds():
    return sorted(os.listdir("/proc/self/fd"))
before = fds()
os.write(1, b"ready")
os.read(0, 1)
try:
    result = box.run(args, stdout=null, stderr=null)
    outcome = {"returncode": result.returncode}
except nsbox.SpawnError as error:
    outcome = {"step": error.step, "errno": error.errno, "path": error.path}
except BaseException as error:
    outcome = {"unexpected": repr(error)}
outcome["children"] = stubborn(children)
outcome["fds"] = len(stubborn(fds)) - len(before)
os.pwrite(report, json.dumps(outcome).encode(), 0)
"""


@contextmanager
def _attached(strace: str, directory: Path, options: list[str]) -> Iterator[Path]:
    """Let a caller spawn under a strace with these options; the report's path is yielded after."""
    source = directory / "source"
    source.mkdir(exist_ok=True)
    for path in (directory, source):
        path.chmod(0o755)
    report, log = directory / "report", directory / "log"
    report.write_text("")
    with subprocess.Popen(
        [sys.executable, "-c", _CALLER, str(source), str(report)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    ) as caller:
        assert caller.stdin is not None
        assert caller.stdout is not None
        assert caller.stdout.read(5) == b"ready"
        with subprocess.Popen(
            [strace, "-f", "-o", str(log), *options, "-p", str(caller.pid)],
            stderr=subprocess.PIPE,
            text=True,
        ) as tracer:
            assert tracer.stderr is not None
            assert "attached" in tracer.stderr.readline()
            caller.stdin.write(b"\n")
            caller.stdin.close()
            assert caller.wait(60) == 0
            tracer.wait(60)
    yield log


def spawn_with(strace: str, directory: Path, injection: str) -> dict[str, Any]:
    """Return the report of a spawn during which strace injects a fault."""
    with _attached(strace, directory, ["-e", f"inject={injection}"]):
        report: dict[str, Any] = json.loads((directory / "report").read_text())
    return report


@dataclass(frozen=True)
class Fault:
    """A call that fails; steps are those that may be at fault, as the first to make the call."""

    call: str
    step: Step
    when: int = 1
    error: str = "EPERM"
    only: str = ""

    @property
    def name(self) -> str:
        return f"{self.call}-{self.when}-{self.error}{self.only and '-' + self.only}"


LAST_CAPABILITY = int(Path("/proc/sys/kernel/cap_last_cap").read_text())

# Calls of which the caller makes some itself while a child waits: three to write the maps
# as a plain user, two as root. Later ones are the child's.
FAULTS = [
    Fault("pidfd_open", Step.PIDFD_OPEN, error="EMFILE"),
    Fault("open_tree", Step.OPEN_TREE),
    Fault("mount_setattr", Step.SOURCE_ATTRIBUTES),
    Fault("clone3", Step.CLONE),
    Fault("openat", Step.SETGROUPS_DENY, only="user", error="EACCES"),
    Fault("openat", Step.UID_MAP, when=2, only="user", error="EACCES"),
    Fault("openat", Step.GID_MAP, when=3, only="user", error="EACCES"),
    Fault("openat", Step.UID_MAP, only="root", error="EACCES"),
    Fault("openat", Step.GID_MAP, when=2, only="root", error="EACCES"),
    Fault("openat", Step.CREATE_FILE, when=4, error="ENOSPC"),
    Fault("write", Step.SETGROUPS_DENY, only="user"),
    Fault("write", Step.UID_MAP, when=2, only="user"),
    Fault("write", Step.UID_MAP, only="root"),
    Fault("write", Step.WRITE_FILE, when=4, error="ENOSPC"),
    Fault("socket", Step.SOCKET),
    Fault("ioctl", Step.LOOPBACK_UP),
    Fault("sethostname", Step.SETHOSTNAME),
    Fault("setgroups", Step.SETGROUPS, only="root"),
    Fault("setresgid", Step.SETRESGID),
    Fault("setresuid", Step.SETRESUID),
    Fault("fsopen", Step.FSOPEN),
    Fault("fsconfig", Step.FSCONFIG_CREATE),
    Fault("fsconfig", Step.FSCONFIG, when=2),
    Fault("fsmount", Step.FSMOUNT),
    Fault("move_mount", Step.MOVE_MOUNT),
    Fault("openat2", Step.TARGET, error="EACCES"),
    Fault("mkdirat", Step.MKDIR),
    Fault("mknodat", Step.MKNOD),
    Fault("symlinkat", Step.SYMLINK),
    Fault("statx", Step.DEVICE, when=4),
    Fault("fchdir", Step.FCHDIR),
    Fault("pivot_root", Step.PIVOT_ROOT),
    Fault("umount2", Step.UMOUNT),
    Fault("dup3", Step.DUP, error="EBADF"),
    Fault("setsid", Step.SETSID),
    Fault("close_range", Step.CLOSE_RANGE, error="ENOMEM"),
    Fault("prctl", Step.CAPBSET_DROP, when=3),
    Fault("capset", Step.CAPSET),
    # The calls before these drop the capabilities one by one.
    Fault("prctl", Step.CAP_AMBIENT, when=LAST_CAPABILITY + 3),
    Fault("prctl", Step.NO_NEW_PRIVS, when=LAST_CAPABILITY + 4),
    Fault("prctl", Step.PDEATHSIG, when=LAST_CAPABILITY + 5),
    Fault("execve", Step.EXECVE, error="ENOMEM"),
]

HARMLESS = {
    # cannot fail in a way that matters, or are taken back to be tried again
    "close", "exit_group", "futex", "munmap", "umask", "rt_sigprocmask", "rt_sigaction",
    "getpid", "waitid", "pidfd_send_signal", "ppoll",
    "mmap",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_failed_call(strace: str, tmp_path: Path, fault: Fault) -> None:
    """A system call that fails gives a SpawnError with its step and errno, and leaves nothing."""
    if fault.only and (fault.only == "root") != (os.geteuid() == 0):
        pytest.skip(f"only a {fault.only} caller makes this call")
    injection = f"{fault.call}:error={fault.error}:when={fault.when}"
    report = spawn_with(strace, tmp_path, injection)
    assert {key: report.get(key) for key in ("step", "errno", "children", "fds")} == {
        "step": fault.step,
        "errno": getattr(errno, fault.error),
        "children": [],
        "fds": 0,
    }, report


def _calls_of_the_child(strace: str, directory: Path) -> set[str]:
    """Return the names of the system calls from the child's first to its execve."""
    with _attached(strace, directory, []) as log:
        text = log.read_text()
    lines = re.findall(r"^(\d+) +([a-z0-9_]+)\(", text, re.MULTILINE)
    caller = lines[0][0]
    names = [name for pid, name in lines if pid != caller]
    return set(names[: names.index("execve") + 1])


def test_every_call_of_the_child_is_made_to_fail(strace: str, tmp_path: Path) -> None:
    """The table above knows every system call that the child makes before its exec."""
    calls = _calls_of_the_child(strace, tmp_path)
    assert calls - {fault.call for fault in FAULTS} - HARMLESS == set()


LONG_CALLS = [
    "openat2", "open_tree", "mount_setattr", "move_mount", "fsopen", "fsconfig", "fsmount",
    "mkdirat", "mknodat", "symlinkat", "statx", "fchdir", "prctl", "capset", "dup3", "fcntl",
    "write", "openat", "execve", "umask", "close",
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("call", LONG_CALLS)
def test_any_occurrence(
    strace: str, tmp_path: Path, request: pytest.FixtureRequest, call: str
) -> None:
    """Whichever occurrence of a call fails, the spawn works or raises a SpawnError and leaves no child."""
    if not request.config.getoption("--long"):
        pytest.skip("needs --long")
    for when in range(1, 60):
        report = spawn_with(strace, tmp_path, f"{call}:error=EIO:when={when}")
        assert "unexpected" not in report, (when, report)
        assert report["children"] == [], (when, report)
        if report.get("returncode") == 0 and call != "close":
            break
