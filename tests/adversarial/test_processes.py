"""Attacks on other processes, on privileges and on limits, and attempts to outlive the sandbox."""

import os
import resource
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from attack import PROGRAM, REFUSED, armed, attack

from nsbox import Process, Sandbox
from support import in_child

pytestmark = pytest.mark.usefixtures("unharmed")


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host, of the caller's own user, with an ordinary environment."""
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process
        assert process.poll() is None, "the payload has ended a process of the host"
        assert process.stdin is not None
        process.stdin.close()


# ---- processes of the host --------------------------------------------------


def test_no_process_can_be_reached(hostile: Path, victim: subprocess.Popen[bytes]) -> None:
    """No number up to 5000, and not the caller's, is a process that the payload can touch."""
    box = armed(hostile)
    for first, last in ((2, 5000), (os.getpid(), os.getpid()), (victim.pid, victim.pid)):
        assert attack(box, "reach-others", str(first), str(last)) == "none"


@pytest.mark.parametrize("target", ["-1 9", "0 9", "1 9", "1 19"])
def test_signal_stays_inside(hostile: Path, victim: subprocess.Popen[bytes], target: str) -> None:
    """kill(-1), kill(0) and kill(1) reach no process of the host, and PID 1 ignores them."""
    assert attack(armed(hostile), "call", "kill", *target.split()) in {"ok", "ESRCH", *REFUSED}
    assert victim.poll() is None


def test_peer_of_a_passed_socket_is_out_of_reach(hostile: Path) -> None:
    """SO_PEERPIDFD tells a payload who is at the other end; it can do nothing to it."""
    ours, passed = socket.socketpair()
    with ours, passed:
        word = attack(armed(hostile), "peer", str(passed.fileno()), pass_fds=[passed.fileno()])
    assert word in {"none", "ENODATA", "ENOPROTOOPT", *REFUSED}


# What the host's /proc shows of another process of the same user.
PROC_FILES = [
    "root/etc/passwd",
    "cwd/.",
    "environ",
    "mem",
    "maps",
    "exe",
    "fd/0",
    "auxv",
]


@pytest.mark.parametrize("name", PROC_FILES)
def test_processes_of_the_host_keep_their_secrets(
    hostile: Path, victim: subprocess.Popen[bytes], name: str
) -> None:
    """With pid="host" a payload sees the processes, but no file, memory or environment of them."""
    box = armed(hostile, pid="host")
    assert attack(box, "open", f"/proc/{victim.pid}/{name}", str(os.O_RDONLY)) in REFUSED
    assert attack(box, "open", f"/proc/{os.getpid()}/{name}", str(os.O_RDONLY)) in REFUSED


def test_processes_of_the_host_cannot_be_traced(
    hostile: Path, victim: subprocess.Popen[bytes]
) -> None:
    """With pid="host" no process can be traced, read or robbed of a descriptor."""
    word = attack(armed(hostile, pid="host"), "reach-others", str(victim.pid), str(victim.pid))
    assert not {"ptrace", "process_vm_readv", "pidfd_getfd", "kcmp", "setns"} & {
        part.partition("(")[0] for part in word.split()
    }


def test_processes_of_root_cannot_be_touched(
    hostile: Path, victim: subprocess.Popen[bytes], root: None
) -> None:
    """With pid="host" a root caller's payload can do nothing at all to root's processes."""
    word = attack(armed(hostile, pid="host"), "reach-others", str(victim.pid), str(victim.pid))
    assert word == "none"


def test_settings_of_the_host_are_readonly_with_its_proc(hostile: Path) -> None:
    """With pid="host" the host's /proc is read-only, for whoever the payload is."""
    box = armed(hostile, pid="host", host_uid=None)
    flags = str(os.O_WRONLY)
    for path in (
        "/proc/sys/kernel/core_pattern",
        "/proc/self/oom_score_adj",
        "/proc/sysrq-trigger",
    ):
        assert attack(box, "open", path, flags) in {"EROFS", "ENOENT", *REFUSED}


# ---- a sandbox that is joined -----------------------------------------------


@pytest.fixture
def resident(hostile: Path) -> Iterator[Process]:
    """A payload that waits, for others to join its namespaces."""
    with armed(hostile).spawn(
        [PROGRAM, "abstract-server", "nsbox-resident"], stdin=-1, stdout=-1
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


SPY = r"""
while :; do
  for p in /proc/[0-9]*; do
    n=${p#/proc/}
    [ $n -le 2 ] && continue
    for f in environ maps mem root/etc/shadow fd/3 cwd/pyproject.toml; do
      if head -c1 $p/$f >/tmp/x 2>/dev/null && [ -s /tmp/x ] && ! grep -q attack $p/cmdline; then
        echo $f
      fi
    done
  done
done
"""


def test_half_built_child_shows_nothing_of_the_caller(hostile: Path) -> None:
    """Who watches its pid namespace while others join reads nothing in the newcomers' /proc."""
    spy = armed(hostile).spawn(["/bin/sh", "-c", SPY], stdout=subprocess.PIPE, text=True)
    with spy:
        with spy.namespaces["user"] as user, spy.namespaces["pid"] as pid:
            box = armed(hostile, user=user, pid=pid, env={"ONLY": "inside"})
            for _ in range(15):
                box.run([PROGRAM, "descriptors"], capture_output=True)
        spy.kill()
        assert spy.stdout is not None
        assert set(spy.stdout.read().split()) <= {"environ", "maps"}  # of the payload itself


# ---- outliving --------------------------------------------------------------


def _lifeline(box: Sandbox, *args: str) -> None:
    """Run an attack whose processes hold a pipe open; return when the last one is gone."""
    reader, writer = os.pipe()
    try:
        word = attack(box, *args, pass_fds=[writer])
    finally:
        os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read() == b""  # the end of the file comes when nobody holds it any more
    assert word == "ok"


def test_daemon_does_not_outlive_the_payload(hostile: Path) -> None:
    """A double fork, a session of its own and ignored signals do not save a process."""
    _lifeline(armed(hostile), "daemonize")


@pytest.mark.parametrize("count", [1, 100])
def test_background_processes_do_not_outlive_the_payload(hostile: Path, count: int) -> None:
    """All processes have ended before run() returns, however many there are."""
    _lifeline(armed(hostile), "fork", str(count))


def test_payload_that_closes_everything_meets_the_timeout(hostile: Path) -> None:
    """Closing stdout and spinning on ends at the timeout, not later."""
    with pytest.raises(subprocess.TimeoutExpired):
        armed(hostile).run([PROGRAM, "close-and-spin"], capture_output=True, timeout=0.2)


def test_flood_meets_the_timeout(hostile: Path) -> None:
    """Output without end, that is no text, does not keep the timeout from coming."""
    with pytest.raises(subprocess.TimeoutExpired):
        armed(hostile).run([PROGRAM, "flood"], stdout=subprocess.DEVNULL, timeout=0.2)


def test_stopped_payload_meets_the_timeout(box: Sandbox) -> None:
    """A payload whose processes are all stopped is killed at the timeout."""
    with pytest.raises(subprocess.TimeoutExpired):
        box.run(["/bin/sh", "-c", "sh -c 'kill -STOP $$' & wait"], capture_output=True, timeout=0.2)


def test_threads_of_the_caller_that_fork_keep_nothing(hostile: Path) -> None:
    """While other threads fork and spawn, no payload has a descriptor that is not its own."""
    stop = threading.Event()
    box = armed(hostile)

    def noise() -> None:
        while not stop.is_set():
            reader, writer = os.pipe()
            os.set_inheritable(writer, True)
            subprocess.run(["/bin/true"], close_fds=False, check=True)
            os.close(reader)
            os.close(writer)

    threads = [threading.Thread(target=noise) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert {attack(box, "descriptors") for _ in range(10)} == {"none"}
    finally:
        stop.set()
        for thread in threads:
            thread.join()


# ---- privileges and limits --------------------------------------------------

RAISES = ["raise-capabilities", "raise-ambient", "undo-no-new-privs"]


@pytest.mark.parametrize("way", RAISES)
@pytest.mark.parametrize("uid", [0, 1000])
def test_privilege_cannot_be_regained(hostile: Path, way: str, uid: int) -> None:
    """No capability can be raised in any set, and no_new_privs cannot be taken back."""
    assert attack(armed(hostile, uid=uid, gid=uid), way) in {"EINVAL", *REFUSED}


IDS = {
    "setresuid": "setresuid 1 1 1",
    "setresgid": "setresgid 1 1 1",
    "setgroups": "setgroups 0 0",
    "host_nobody": "setresuid 65534 65534 65534",
}


@pytest.mark.parametrize("call", IDS.values(), ids=IDS)
def test_ids_cannot_be_changed(hostile: Path, call: str) -> None:
    """No other user or group can be taken on, and no group left."""
    assert attack(armed(hostile), "call", *call.split()) in {"EINVAL", *REFUSED}


@pytest.mark.parametrize(
    "name", ["NOFILE", "NPROC", "CORE", "MEMLOCK", "NICE", "RTPRIO", "CPU", "AS"]
)
def test_hard_limit_cannot_be_raised(hostile: Path, name: str) -> None:
    """What the caller has as a hard limit holds for the payload of root too."""
    number = getattr(resource, f"RLIMIT_{name}")

    def limited() -> str:
        if name in ("CPU", "AS", "CORE", "NPROC"):
            soft = 4 << 30 if name == "AS" else 3600
            resource.setrlimit(number, (soft, soft))
        return attack(armed(hostile), "raise-limit", str(number))

    assert in_child(limited) in {"unchanged", *REFUSED}


@pytest.mark.parametrize("policy", [1, 2, 6], ids=["fifo", "rr", "deadline"])
def test_real_time_scheduling_is_refused(hostile: Path, policy: int) -> None:
    """No payload can take the processors from the host."""
    call = f"call sched_setscheduler 0 {policy} z:8"
    assert attack(armed(hostile), *call.split()) in {"EINVAL", *REFUSED}


def test_crash_leaves_no_core_on_the_host(
    tmp_path: Path, hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A payload that crashes with its core limit raised leaves no file outside its binds."""
    if Path("/proc/sys/kernel/core_pattern").read_text().startswith("|"):
        pytest.skip("the host hands cores to a program of its own")
    monkeypatch.chdir(tmp_path)
    before = set(os.listdir("."))
    result = armed(hostile).run(["/bin/sh", "-c", "ulimit -c unlimited; kill -SEGV $$; :"])
    assert result.returncode in (0, -signal.SIGSEGV)
    assert set(os.listdir(".")) == before


def test_setting_of_a_run_does_not_last(hostile: Path, box: Sandbox) -> None:
    """A second run of the same Sandbox finds nothing that the first has changed."""
    first = (
        "echo x >/tmp/f; echo x >/dev/shm/f; cd; echo x >f; ulimit -n 9; renice 19 $$; umask 777"
    )
    look = "ls -A /tmp /dev/shm ~; ulimit -n; nice; umask"
    before = box.run(["/bin/sh", "-c", look], capture_output=True).stdout
    box.run(["/bin/sh", "-c", first], capture_output=True)
    assert box.run(["/bin/sh", "-c", look], capture_output=True).stdout == before


def test_teardown_of_many_processes_is_prompt(hostile: Path) -> None:
    """A sandbox with a thousand processes is gone when kill() and wait() return."""
    box = armed(hostile)
    with box.spawn(
        ["/bin/sh", "-c", f"{PROGRAM} fork 1000; exec sleep 1000"], stdout=-1
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        assert process.wait() == -signal.SIGKILL
