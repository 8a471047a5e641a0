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
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nsbox import Step
from support import SOURCE

pytestmark = [pytest.mark.usefixtures("box"), pytest.mark.one_kernel]

# The report is made by calls that no test makes fail, or is tried again.
_CALLER = """
import gc, json, os, sys
import nsbox
from nsbox import Bind, Overlay, Sandbox, Tmpfs
mounts = [Bind(sys.argv[1], "/x"), Tmpfs("/x/y"), Overlay(sys.argv[1], "/z")]
box = Sandbox(mounts=mounts, masks=["/etc/group"], cwd="/tmp")
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
os.pwritev(report, [json.dumps(outcome).encode()], 0)
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
    """
    A call that fails: that of the child, or of the caller, whose line in a trace has some text.

    only: "root" or "user", if only such a caller makes the call.
    """

    call: str
    step: Step
    text: str = ""
    error: str = "EPERM"
    caller: bool = False
    only: str = ""

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.call, self.step.value, self.error, self.only)))


FAULTS = [
    Fault("pidfd_open", Step.PIDFD_OPEN, error="EMFILE", caller=True),
    Fault("clone3", Step.CLONE, caller=True),
    Fault("openat", Step.SETGROUPS_DENY, "/setgroups", "EACCES", caller=True, only="user"),
    Fault("openat", Step.UID_MAP, "/uid_map", "EACCES", caller=True),
    Fault("openat", Step.GID_MAP, "/gid_map", "EACCES", caller=True),
    Fault("write", Step.SETGROUPS_DENY, '"deny"', caller=True, only="user"),
    Fault("write", Step.UID_MAP, '"0 ', caller=True),
    Fault("open_tree", Step.OPEN_TREE, caller=True, only="root"),
    Fault("open_tree", Step.OPEN_TREE, only="user"),
    Fault("mount_setattr", Step.SOURCE_ATTRIBUTES, caller=True, only="root"),
    Fault("mount_setattr", Step.SOURCE_ATTRIBUTES, only="user"),
    Fault(
        "mount_setattr", Step.READONLY, "AT_EMPTY_PATH, {attr_set=MOUNT_ATTR_RDONLY,", only="user"
    ),
    Fault("socket", Step.SOCKET),
    Fault("ioctl", Step.LOOPBACK_UP),
    Fault("sethostname", Step.SETHOSTNAME),
    Fault("setgroups", Step.SETGROUPS, only="root"),
    Fault("setresgid", Step.SETRESGID),
    Fault("setresuid", Step.SETRESUID),
    Fault("openat2", Step.PROC_SYS, "max_user_namespaces", "ENOENT"),
    Fault("fstatfs", Step.PROC_SYS),
    Fault("pwrite64", Step.MAX_USER_NAMESPACES),
    Fault("fsopen", Step.FSOPEN),
    Fault("fsconfig", Step.FSCONFIG, "SET_STRING"),
    Fault("fsconfig", Step.FSCONFIG_CREATE, "CMD_CREATE"),
    Fault("fsmount", Step.FSMOUNT),
    Fault("move_mount", Step.MOVE_MOUNT),
    Fault("openat2", Step.TARGET, '"x"', error="EACCES"),
    Fault("openat2", Step.MASK_TARGET, '"etc/group"', error="ENOENT"),
    Fault("mkdirat", Step.MKDIR, '"etc"'),
    Fault("mknodat", Step.MKNOD, '"null"'),
    Fault("symlinkat", Step.SYMLINK),
    Fault("openat", Step.CREATE_FILE, "O_CREAT", "ENOSPC"),
    Fault("write", Step.WRITE_FILE, error="ENOSPC"),
    Fault("fchdir", Step.FCHDIR),
    Fault("pivot_root", Step.PIVOT_ROOT),
    Fault("umount2", Step.UMOUNT),
    Fault("dup3", Step.DUP, error="EBADF"),
    Fault("setsid", Step.SETSID),
    Fault("close_range", Step.CLOSE_RANGE, error="ENOMEM"),
    Fault("prctl", Step.CAPBSET_DROP, "PR_CAPBSET_DROP, CAP_SYS_ADMIN"),
    Fault("prlimit64", Step.LOWER_LIMITS),
    Fault("prctl", Step.SECUREBITS, "PR_SET_SECUREBITS"),
    Fault("capset", Step.CAPSET),
    Fault("prctl", Step.CAP_AMBIENT, "PR_CAP_AMBIENT_CLEAR_ALL"),
    Fault("prctl", Step.NO_NEW_PRIVS, "PR_SET_NO_NEW_PRIVS"),
    Fault("prctl", Step.PDEATHSIG, "PR_SET_PDEATHSIG", only="user"),
    Fault("openat2", Step.CHDIR, '"/tmp"', error="EACCES"),
    Fault("landlock_create_ruleset", Step.LANDLOCK_RULESET),
    Fault("landlock_add_rule", Step.LANDLOCK_RULE),
    Fault("landlock_restrict_self", Step.LANDLOCK_RESTRICT),
    Fault("seccomp", Step.SECCOMP, error="EINVAL"),
    Fault("execve", Step.EXECVE, error="ENOMEM"),
]

HARMLESS = {
    # cannot fail, or not in a way that matters
    "close", "exit_group", "futex", "munmap", "umask", "rt_sigprocmask", "rt_sigaction",
    "getpid", "waitid", "pidfd_send_signal", "ppoll",
    # asked what a file is: without an answer it is taken for something that is not ours
    "statx",
    # asked whether 0, 1, 2 shall be closed: without an answer the exec closes them
    "fcntl",
    "mmap",
}  # fmt: skip


Trace = tuple[list[tuple[str, str]], list[tuple[str, str]]]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """The calls of a spawn, name and line: the caller's, and the child's up to its execve."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("no strace (Debian: apt-get install strace)")
    with _attached(strace, tmp_path_factory.mktemp("trace"), []) as log:
        lines = log.read_text().splitlines()
    caller: list[tuple[str, str]] = []
    child: list[tuple[str, str]] = []
    first = lines[0].split()[0]
    executed = False
    for line in lines:
        match = re.match(r"(\d+) +([a-z0-9_]+)\(", line)
        if match is None:
            continue
        if match[1] == first:
            if not executed or match[2] == "prctl":  # root's caller makes one more at the end
                caller.append((match[2], line))
        elif not executed:
            child.append((match[2], line))
            executed = match[2] == "execve"
    return caller, child


def _occurrence(trace: Trace, fault: Fault) -> int:
    """Return which call of that name it is, such that the injection meets no other process."""
    caller, child = ([line for name, line in part if name == fault.call] for part in trace)
    lines = caller if fault.caller else child
    least = 0 if fault.caller else len(caller)
    found = [
        number for number, line in enumerate(lines, 1) if fault.text in line and number > least
    ]
    assert found, f"no {fault.call} with {fault.text!r} in the trace"
    return found[0]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_failed_call(strace: str, trace: Trace, tmp_path: Path, fault: Fault) -> None:
    """A system call that fails gives a SpawnError with its step and errno, and leaves nothing."""
    if fault.only and (fault.only == "root") != (os.geteuid() == 0):
        pytest.skip(f"only a {fault.only} caller makes this call")
    injection = f"{fault.call}:error={fault.error}:when={_occurrence(trace, fault)}"
    report = spawn_with(strace, tmp_path, injection)
    assert {key: report.get(key) for key in ("step", "errno", "children", "fds")} == {
        "step": fault.step,
        "errno": getattr(errno, fault.error),
        "children": [],
        "fds": 0,
    }, report


def test_every_call_of_the_child_is_made_to_fail(trace: Trace) -> None:
    """The table above knows every system call that the child makes before its exec."""
    calls = {name for name, _ in trace[1]}
    assert calls - {fault.call for fault in FAULTS} - HARMLESS == set()


LONG_CALLS = [
    "openat2", "open_tree", "mount_setattr", "move_mount", "fsopen", "fsconfig", "fsmount",
    "mkdirat", "mknodat", "symlinkat", "statx", "fchdir", "prctl", "capset", "dup3", "fcntl",
    "write", "openat", "execve", "umask",
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("call", LONG_CALLS)
def test_any_occurrence(
    strace: str, tmp_path: Path, request: pytest.FixtureRequest, call: str
) -> None:
    """Whichever occurrence fails, the spawn works or raises a SpawnError, and no child is left."""
    if not request.config.getoption("--long"):
        pytest.skip("needs --long")
    for when in range(1, 60):
        report = spawn_with(strace, tmp_path, f"{call}:error=EIO:when={when}")
        assert "unexpected" not in report, (when, report)
        assert report["children"] == [], (when, report)
        if report.get("returncode") == 0:
            break
