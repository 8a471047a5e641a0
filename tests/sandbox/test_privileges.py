"""What a payload has given up, and cannot take back."""

import errno
import os
import resource
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import unavailable
from nsbox import PIPE, Bind, Namespace, PlanError, Proc, Sandbox, SpawnError, Step, Tmpfs
from support import PYTHON, enter_private_mounts, in_child, inside, mount_tmpfs, python_box, until

pytestmark = pytest.mark.usefixtures("box")

STATUS = """
import json
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({key: value.strip() for key, value in status.items()}))
"""
SECUREBITS = """
import ctypes, json
libc = ctypes.CDLL(None, use_errno=True)
before = libc.prctl(27, 0, 0, 0, 0)
answers = []
for bits in (0, before ^ 1, before & ~2):
    ctypes.set_errno(0)
    libc.prctl(28, bits, 0, 0, 0)
    answers.append(ctypes.get_errno())
print(json.dumps([before, answers]))
"""


@pytest.mark.parametrize("fields", [{}, {"uid": 1000}, {"seccomp": None}])
def test_all_five_sets_are_empty(fields: dict[str, Any]) -> None:
    """Inheritable, permitted, effective, bounding, ambient; for user 0 inside too."""
    status = inside(STATUS, box=python_box(**fields))
    sets = {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert sets == {"0" * 16}
    assert status["NoNewPrivs"] == "1"


def test_kept_capabilities_are_in_all_sets_and_no_others() -> None:
    """capabilities= names are kept in every set; an exec neither adds nor loses one."""
    status = inside(STATUS, box=python_box(capabilities=["CHOWN", "KILL"]))
    sets = {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert sets == {1 << 0 | 1 << 5}


@pytest.mark.parametrize("capabilities", [[], ["SETPCAP"]])
def test_securebits_are_locked(capabilities: list[str]) -> None:
    """Being user 0 gives nothing at an exec, and not even CAP_SETPCAP can change that."""
    before, answers = inside(SECUREBITS, box=python_box(capabilities=capabilities))
    assert before == 0xEB
    assert answers == [errno.EPERM] * 3


def test_priority_limits() -> None:
    """No nice value below the caller's, no real-time priority; hard limits."""
    code = """
import json, os, resource
limits = [resource.getrlimit(r) for r in (13, 14)]
try:
    os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) - 1)
    lowered = True
except OSError:
    lowered = False
print(json.dumps([limits, lowered]))
"""
    assert inside(code) == [[[0, 0]] * 2, False]


@pytest.mark.parametrize("kind", ["run", "init", "live"])
def test_crash_is_not_handed_to_the_host(box: Sandbox, kind: str) -> None:
    """Where core_pattern names a program, which root runs outside of all limits."""
    if Path("/proc/sys/kernel/core_pattern").read_text() != "|/run/core %P\n":
        pytest.skip("the host does not tell who gets a core: see tests/guest/init.sh")
    cores = Path("/tmp/cores")

    def told() -> set[str]:
        return set(cores.read_text().split()) if cores.exists() else set()

    before = told()
    crash = ["/bin/sh", "-c", "ulimit -c 0; sh -c 'ulimit -c unlimited; kill -SEGV $$'; :"]
    if kind == "live":
        with box.open() as live:
            live.run(crash, check=True)
    else:
        replace(box, init=kind == "init").run(crash, check=True)
    outside = subprocess.Popen(["/bin/sh", "-c", "kill -SEGV $$"])  # which is told, later
    assert outside.wait() == -signal.SIGSEGV
    until(lambda: str(outside.pid) in told())
    assert told() - before == {str(outside.pid)}


def test_oom_score_cannot_be_lowered() -> None:
    """The payload stays the first victim that its caller made it."""
    code = """
import json
answers = []
for value in ("-1000", "-1"):
    try:
        open("/proc/self/oom_score_adj", "w").write(value)
        answers.append(0)
    except OSError as error:
        answers.append(error.errno)
print(json.dumps(answers))
"""
    assert inside(code) == [errno.EROFS] * 2
    box = Sandbox(mounts=[Proc(readonly=False)])
    command = "echo -1000 >/proc/self/oom_score_adj"
    assert box.run(["/bin/sh", "-c", command], stderr=-3).returncode != 0


# ---- keyrings ------------------------------------------------------------------

KEYCTL = """
import ctypes, json, os
libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": 250, "aarch64": 219}[os.uname().machine]
serial = libc.syscall(number, 0, -3, 0)  # KEYCTL_GET_KEYRING_ID of the session's
print(json.dumps([serial, ctypes.get_errno()]))
"""


def test_session_keyring_is_out_of_reach() -> None:
    """The filter refuses keyctl; without it the payload has a session keyring of its own."""
    assert inside(KEYCTL) == [-1, errno.ENOSYS]
    box = python_box(seccomp=None)
    serial, error = inside(KEYCTL, box=box)
    if error == errno.ENOSYS:
        unavailable("this kernel has no keys")
    assert serial > 0
    assert inside(KEYCTL, box=box)[0] != serial


# ---- /proc ----------------------------------------------------------------------


def _sh(command: str, box: Sandbox) -> tuple[int, str]:
    result = box.run(["/bin/sh", "-c", command], capture_output=True, text=True)
    return result.returncode, result.stdout


@pytest.mark.parametrize("fields", [{}, {"seccomp": None}, {"capabilities": ["SYS_RESOURCE"]}])
def test_no_setting_of_the_kernel_can_be_written(fields: dict[str, Any]) -> None:
    """/proc is read-only: sysctls of the sandbox's own namespaces, and its processes' files."""
    for path in ("sys/net/ipv4/ip_forward", "sys/user/max_user_namespaces", "self/comm"):
        assert _sh(f"echo 1 2>/dev/null >/proc/{path}", Sandbox(**fields))[0] != 0, path


def test_proc_can_be_writable() -> None:
    """Proc(readonly=False) lets a process write its own files."""
    box = Sandbox(mounts=[Proc(readonly=False)])
    assert _sh("printf x >/proc/$$/comm && cat /proc/$$/comm", box) == (0, "x\n")


@pytest.mark.parametrize("name", ["keys", "interrupts", "timer_list", "kcore"])
def test_files_of_proc_are_masked(name: str) -> None:
    """What tells of the host or of its other users reads as empty, or cannot be read at all."""
    if not Path("/proc", name).exists():
        pytest.skip(f"this kernel has no /proc/{name}")
    status, output = _sh(f"cat /proc/{name}", Sandbox())
    assert output == ""
    assert (status == 0) == bool(Path("/proc", name).stat().st_mode & 0o004)


def test_only_processes() -> None:
    """Proc(only_processes=True) has nothing but processes in it."""
    box = Sandbox(mounts=[Proc(only_processes=True)])
    assert _sh("ls /proc", box)[1].split() == ["1", "2", "self", "thread-self"]


def test_masks_hide_files_and_directories() -> None:
    """A masked file is empty, a masked directory too, and neither can be written."""
    box = Sandbox(masks=["/etc/hosts", "/usr/share", "/tmp/secret"], mounts=[Tmpfs("/tmp/secret")])
    script = "cat /etc/hosts; ls -A /usr/share /tmp/secret | grep -v :; touch /tmp/secret/x"
    status, output = _sh(f"{{ {script}; }} 2>/dev/null", box)
    assert status != 0
    assert output.split() == []


@pytest.mark.parametrize("step", [1, -1])
def test_masks_within_masks(tmp_path: Path, step: int) -> None:
    """What lies in a masked directory is hidden with it, in whatever order they are named."""
    tmp_path.chmod(0o755)
    (tmp_path / "within").mkdir()
    masks = ["/data", "/data/within"][::step]
    box = Sandbox(mounts=[Bind(tmp_path, "/data")], masks=masks)
    assert _sh("ls -A /data", box) == (0, "")
    with box.pool(1) as pool:
        assert pool.run(["ls", "-A", "/data"], capture_output=True).stdout == b""
        assert pool.stats().warm == 1


@pytest.mark.parametrize("step", [1, -1])
def test_mask_of_a_link_within_a_mask(tmp_path: Path, step: int) -> None:
    """What the link leads to is hidden, though it lies elsewhere."""
    tmp_path.chmod(0o755)
    (tmp_path / "link").symlink_to("/etc/hosts")
    masks = ["/data", "/data/link"][::step]
    box = Sandbox(mounts=[Bind(tmp_path, "/data")], masks=masks)
    assert _sh("cat /etc/hosts; ls -A /data", box) == (0, "")


def test_masks_stay_inside(tmp_path: Path) -> None:
    """A link in a mount leads a mask to where it leads the payload: not to the host."""
    tmp_path.chmod(0o755)
    (tmp_path / "link").symlink_to("/etc/hosts")
    before = Path("/etc/hosts").read_bytes()
    box = Sandbox(mounts=[Bind(tmp_path, "/data")], masks=["/data/link"])
    assert _sh("cat /etc/hosts /data/link", box) == (0, "")
    assert Path("/etc/hosts").read_bytes() == before


def test_mask_that_cannot_be_applied_is_fatal() -> None:
    """A mask of something that is not there is an error, since it would hide nothing."""
    with pytest.raises(SpawnError) as caught:
        Sandbox(masks=["/etc/nothing"]).run(["/bin/true"])
    assert (caught.value.step, caught.value.errno) == (Step.MASK_TARGET, errno.ENOENT)
    assert caught.value.path == "/etc/nothing"
    assert "there is no such path inside" in (caught.value.hint or "")


def test_sys_is_masked_where_it_is_bound() -> None:
    """A bound /sys has no firmware tables in it."""
    if not os.path.isdir("/sys/firmware"):
        pytest.skip("this host has no /sys/firmware")
    assert _sh("ls -A /sys/firmware", Sandbox(mounts=[Bind("/sys")])) == (0, "")


def test_inotify_instances_are_not_used_up() -> None:
    """They count for the caller's user too; CAP_SYS_RESOURCE, which is not there, could undo it."""
    code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
count = 0
while libc.inotify_init1(0) >= 0:
    count += 1
print(count, ctypes.get_errno())
"""
    result = python_box().run([*PYTHON, code], stdout=PIPE, check=True)
    assert result.stdout.split() == [b"16", str(errno.EMFILE).encode()]


def test_inotify_watches_are_not_used_up() -> None:
    """A payload has so many in all its instances together."""
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
instances = [libc.inotify_init1(0) for _ in range(3)]
paths = [f"/tmp/{number}" for number in range(3000)]
for path in paths:
    os.close(os.open(path, os.O_CREAT))
watches = [libc.inotify_add_watch(fd, path.encode(), 2) for fd in instances for path in paths]
print(sum(watch > 0 for watch in watches), ctypes.get_errno())
"""
    result = python_box().run([*PYTHON, code], stdout=PIPE, check=True)
    assert result.stdout.split() == [b"8192", str(errno.ENOSPC).encode()]


@pytest.mark.parametrize("limit", [resource.RLIMIT_SIGPENDING, resource.RLIMIT_MSGQUEUE])
@pytest.mark.parametrize("live", [False, True])
def test_half_of_what_the_user_has_is_left_to_the_caller(limit: int, live: bool) -> None:
    """Root's own programs could start no timer, and make no queue, while a payload has all."""
    code = f"import resource; print(*resource.getrlimit({limit}))"
    if live:
        with python_box().open() as box:
            result = box.run([*PYTHON, code], stdout=PIPE, check=True)
    else:
        result = python_box().run([*PYTHON, code], stdout=PIPE, check=True)
    half = resource.getrlimit(limit)[0] // 2
    assert result.stdout.split() == [str(half).encode()] * 2


def test_covered_proc_of_the_host_is_noticed() -> None:
    """Where something covers the host's sysctl file, no sandbox is made half-way."""

    def child() -> tuple[str, int | None]:
        enter_private_mounts()
        mount_tmpfs(Path("/proc/sys/user"))
        Path("/proc/sys/user/max_user_namespaces").write_text("1")
        try:
            Sandbox(default_mounts=False, root="/").run(["/bin/true"])
        except SpawnError as error:
            return error.step, error.errno
        return "none", 0

    assert in_child(child) == (Step.PROC_SYS, errno.EXDEV)


# ---- combinations that cannot be meant -------------------------------------------


@pytest.mark.parametrize("user", ["host"])
def test_no_filter_and_no_limit_is_refused(user: str) -> None:
    """Without a filter and without a user namespace nothing would forbid new ones."""
    with pytest.raises(PlanError, match="user_namespaces=True"):
        Sandbox(user=user, seccomp=None)
    Sandbox(user=user, seccomp=None, user_namespaces=True)


def test_no_filter_in_a_joined_pid_namespace_is_refused() -> None:
    """CLONE_PARENT would make children of the caller there, which it never reaps."""
    with Namespace.of(0, "pid") as pid, pytest.raises(PlanError, match="CLONE_PARENT"):
        Sandbox(pid=pid, seccomp=None, user_namespaces=True)


@pytest.mark.parametrize(
    ("name", "field"), [("NET_ADMIN", "net"), ("IPC_OWNER", "ipc"), ("SYS_BOOT", "pid")]
)
def test_capability_without_its_namespace_is_refused(name: str, field: str) -> None:
    """A capability over a namespace that is the host's would do nothing."""
    with pytest.raises(PlanError, match=f"CAP_{name}"):
        Sandbox(capabilities=[name], **{field: "host"})  # type: ignore[arg-type]


def test_ptrace_tools_find_nothing() -> None:
    """strace inside needs a capability that brings its calls."""
    if shutil.which("strace") is None:
        unavailable("no strace (Debian: apt-get install strace)")
    command = ["strace", "-o", "/dev/null", "/bin/true"]
    assert Sandbox().run(command, stderr=-3).returncode != 0
    assert Sandbox(capabilities=["SYS_PTRACE"]).run(command, stderr=-3).returncode == 0
