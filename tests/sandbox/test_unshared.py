"""Without namespaces: what works, what is reported, and what contradicts."""

import os
import re
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from conftest import unavailable
from nsbox import (
    PIPE,
    Bind,
    Dev,
    Limits,
    Namespace,
    Overlay,
    PlanError,
    Proc,
    Reason,
    Sandbox,
    SpawnError,
    Step,
    TimeoutExpired,
    Tmpfs,
    UnsupportedError,
    interpreter_mounts,
    lowlevel,
)
from nsbox._calls import landlock_abi
from nsbox._compile import compile_plan
from nsbox._enforced import layers_of
from nsbox._host import Host
from nsbox._landlock import SCOPE_ABI, SCOPE_SIGNALS, TCP
from nsbox.lowlevel import CloneFlag
from support import SOURCE, in_child, python_box, stdin_of, stdout_of

DEADLINE = 30.0
LIMIT = Path("/proc/sys/user/max_user_namespaces")


@pytest.fixture(autouse=True)
def landlock() -> None:
    """The kernel has all that is tested here."""
    if landlock_abi() < SCOPE_ABI:
        unavailable("this kernel has no Landlock with scopes (Linux 6.12)", newer_kernel=True)


@pytest.fixture
def bare() -> Sandbox:
    """A sandbox without namespaces, and nothing else said."""
    return Sandbox(namespaces="none")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that the payload can reach, and owns."""
    # Not below pytest's directory: that is closed to the payloads of root.
    with TemporaryDirectory(prefix="nsbox-shared-") as name:
        path = Path(name)
        path.chmod(0o755)
        if os.geteuid() == 0:
            os.chown(path, 65534, 65534)
        yield path


def output(box: Sandbox, *args: str, **options: Any) -> str:
    """Run a program, and return what it prints."""
    text: str = box.run(args, capture_output=True, text=True, check=True, **options).stdout
    return text


def python() -> list[str]:
    """Return a command for a Python that other users may execute."""
    found = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
    return [found, "-I", "-S", "-c"]


# ---- what works --------------------------------------------------------------


def test_shell_runs(bare: Sandbox) -> None:
    """Programs find each other and their devices; paths are the host's."""
    script = "echo to nobody > /dev/null; pwd; echo $HOME; uname -n | cat"
    assert output(bare, "sh", "-c", script) == f"/\n/\n{os.uname().nodename}\n"


def test_python_runs() -> None:
    """The interpreter imports, starts processes and threads, and makes pairs of sockets."""
    code = """if 1:
        import asyncio, concurrent.futures, json, random, subprocess, tempfile
        asyncio.run(asyncio.sleep(0))
        with concurrent.futures.ThreadPoolExecutor() as pool:
            print(list(pool.map(abs, [-1])), subprocess.check_output(["/bin/echo", "x"]))"""
    box = Sandbox(namespaces="none", mounts=interpreter_mounts())
    assert output(box, *python(), code) == "[1] b'x\\n'\n"


def test_inside_of_a_sandbox() -> None:
    """There the securebits are locked, and there are no capabilities to keep."""
    code = """if 1:
        import sys
        sys.path.append(sys.argv[1])
        from nsbox import Sandbox
        Sandbox(namespaces="none").run(["/bin/echo", "x"], check=True)"""
    box = python_box(mounts=[Bind(SOURCE)], user_namespaces=True, uid=1000, gid=1000)
    assert output(box, sys.executable, "-I", "-c", code, str(SOURCE)) == "x\n"


def test_writable_directory(shared: Path) -> None:
    """What is bound writable can be filled, at its own path."""
    box = Sandbox(namespaces="none", mounts=[Bind(shared, readonly=False)], cwd=shared)
    output(box, "sh", "-c", "umask 077; mkdir a; echo x > a/b; mv a/b c; cat c", umask=0o22)
    assert (shared / "c").read_text() == "x\n"


def test_directory_to_read(shared: Path) -> None:
    """A read-only bind can be read, and executed."""
    (shared / "program").write_text("#!/bin/sh\necho ran\n")
    (shared / "program").chmod(0o755)
    box = Sandbox(namespaces="none", mounts=[Bind(shared)])
    assert output(box, str(shared / "program")) == "ran\n"


def test_network_of_the_host() -> None:
    """With net="host" there are sockets."""
    code = "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.fileno() > 0)"
    assert output(Sandbox(namespaces="none", net="host"), *python(), code) == "True\n"


def test_strict_profile() -> None:
    """The profile for pure computation works here too."""
    assert output(Sandbox(namespaces="none", seccomp="strict"), *python(), "print(2)") == "2\n"


def test_closed_standard_descriptors() -> None:
    """A path that is opened under the number of a closed stream keeps its rule."""

    def child() -> int:
        os.close(0)
        return Sandbox(namespaces="none").run(["true"]).returncode

    assert in_child(child) == 0


def test_privileges() -> None:
    """Nothing is held; what a plain user may not drop is unchanged."""
    box = Sandbox(namespaces="none", mounts=[Bind("/proc/self")])
    status = dict(
        line.split(":\t") for line in output(box, "cat", "/proc/self/status").splitlines()
    )
    held = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")}
    assert set(held.values()) == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    is_root = os.geteuid() == 0
    assert status["Uid"].split() == 4 * [str(65534 if is_root else os.geteuid())]
    if is_root:
        assert int(status["CapBnd"], 16) == 0
        assert not status["Groups"].split()
    assert box.explain().enforced["securebits"].active is is_root


def test_limits(bare: Sandbox) -> None:
    """Resource limits and timeouts hold as elsewhere."""
    limited = Sandbox(namespaces="none", limits=Limits(open_files=7))
    assert output(limited, "sh", "-c", "ulimit -n") == "7\n"
    with pytest.raises(TimeoutExpired):
        bare.run(["sleep", "60"], timeout=0.2)


@pytest.mark.usefixtures("cgroups")
def test_deadline() -> None:
    """At its deadline a payload is killed, with all that it has started."""
    box = Sandbox(namespaces="none", limits=Limits(wall_time=0.2))
    result = box.run(["sh", "-c", "(setsid sleep 60 &); exec sleep 60"], capture_output=True)
    assert (result.reason, result.returncode) == (Reason.WALL_TIME, -signal.SIGKILL)


@pytest.mark.usefixtures("no_cgroups")
def test_deadline_without_cgroups() -> None:
    """A deadline that would not hold for everything is refused, and not half kept."""
    with pytest.raises(UnsupportedError):
        Sandbox(namespaces="none", limits=Limits(wall_time=9)).run(["true"])


def _orphan(box: Sandbox) -> int:
    """Let a payload start a process and end; return the pidfd of what it has started."""
    with box.spawn(
        ["sh", "-c", "sleep 60 > /dev/null & echo $!; read line"],
        stdin=PIPE,
        stdout=PIPE,
        text=True,
    ) as process:
        pidfd = os.pidfd_open(int(stdout_of(process).readline()))
        stdin_of(process).close()
        process.wait()
    return pidfd


def _has_ended(pidfd: int, timeout: float) -> bool:
    return bool(select.select([pidfd], [], [], timeout)[0])


def test_orphan_survives(bare: Sandbox) -> None:
    """Without a pid namespace nothing ends what the payload leaves behind."""
    pidfd = _orphan(bare)
    try:
        assert not _has_ended(pidfd, 0)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert _has_ended(pidfd, DEADLINE)
    finally:
        os.close(pidfd)


@pytest.mark.usefixtures("cgroups")
def test_orphan_ends_with_its_cgroup() -> None:
    """A cgroup, that of limits=, ends all that was started."""
    pidfd = _orphan(Sandbox(namespaces="none", limits=Limits(pids=16)))
    try:
        assert _has_ended(pidfd, DEADLINE)
    finally:
        os.close(pidfd)


@pytest.mark.usefixtures("cgroups")
def test_limit_of_processes() -> None:
    """Limits that a cgroup keeps hold."""
    box = Sandbox(namespaces="none", limits=Limits(pids=4))
    script = "for i in 1 2 3 4 5 6 7 8; do sleep 60 & done"
    result = box.run(["sh", "-c", script], capture_output=True, text=True, timeout=DEADLINE)
    assert "fork" in result.stderr


# ---- where namespaces are refused ----------------------------------------------


def test_advice_for_a_host_without_user_namespaces() -> None:
    """Where the limit of user namespaces is 0, the error names what remains, and that works."""

    def child() -> tuple[str, int | None, str, str]:
        uid, gid = os.geteuid(), os.getegid()
        lowlevel.unshare(CloneFlag.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
        LIMIT.write_text("0")
        with pytest.raises(SpawnError) as caught:
            Sandbox().run(["true"])
        error = caught.value
        advised = re.search(r"Sandbox\(namespaces='(\w+)'\)", error.hint or "")
        assert advised is not None
        box = Sandbox(namespaces=advised[1])  # type: ignore[arg-type]
        return (
            error.step,
            error.errno,
            output(box, "echo", "ran"),
            output(box, *python(), "print(1)"),
        )

    assert in_child(child) == (Step.CLONE, 28, "ran\n", "1\n")


# ---- the report ----------------------------------------------------------------


def test_report(bare: Sandbox) -> None:
    """What is missing is said, with its reason, beforehand and afterwards."""
    enforced = bare.explain().enforced
    assert bare.run(["true"]).enforced == enforced
    missing = {layer.name for layer in enforced if not layer.active}
    kinds = ("user", "mnt", "pid", "uts", "ipc", "net", "cgroup", "time")
    expected = {"root", "masks", *(f"{kind} namespace" for kind in kinds)}
    if os.geteuid() != 0:
        expected |= {"supplementary groups", "securebits"}
    assert missing == expected
    assert all("namespaces='none'" in enforced[f"{kind} namespace"].why for kind in kinds)
    assert {"files", "TCP", "abstract sockets", "signals"} <= {
        *re.findall(r"files|TCP|abstract sockets|signals", enforced["landlock"].why)
    }


def test_steps(bare: Sandbox) -> None:
    """No step makes a namespace, a mount or a map."""
    steps = bare.explain()
    assert {step.call for step in steps}.isdisjoint(
        {"move_mount", "open_tree", "fsmount", "pivot_root", "uid_map", "sethostname", "setns"}
    )
    assert not any("CLONE_NEW" in step.arguments for step in steps)


def test_shared_kinds_are_not_kept_apart() -> None:
    """Where a kind is the host's by wish, nothing stands in for its namespace."""
    enforced = Sandbox(namespaces="none", net="host", ipc="host").explain().enforced
    assert "refuses" not in enforced["net namespace"].why
    assert "refuses" not in enforced["ipc namespace"].why
    assert "TCP" not in enforced["landlock"].why


@pytest.mark.parametrize("abi", [3, 4, 6])
def test_older_landlock(abi: int) -> None:
    """What a kernel's Landlock does not have is not asked for, and the report says so."""
    host = Host(uid=1000, gid=1000, privileged=False, landlock=abi)
    plan = compile_plan(Sandbox(namespaces="none")._describe(), host)
    assert plan.landlock is not None
    assert plan.landlock.net == (TCP if abi >= 4 else 0)
    scoped = bool(plan.landlock.scoped & SCOPE_SIGNALS)
    assert scoped is (abi >= SCOPE_ABI)
    assert ("can be signalled" in layers_of(plan)["pid namespace"].why) is not scoped


@pytest.mark.parametrize("abi", [0, 2])
def test_no_landlock(abi: int) -> None:
    """Without the one wall that is left there is no sandbox."""
    host = Host(uid=1000, gid=1000, privileged=False, landlock=abi)
    with pytest.raises(UnsupportedError, match="Landlock"):
        compile_plan(Sandbox(namespaces="none")._describe(), host)


# ---- contradictions ------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"root": "/srv"},
        {"root": Overlay(["/srv"])},
        {"writable": True},
        {"masks": ["/usr/bin/x"]},
        {"hostname": "box"},
        {"uid": 0},
        {"gid": 0},
        {"host_uid": 0},
        {"host_gid": 0},
        {"time": "new"},
        {"capabilities": ["KILL"]},
        {"user_namespaces": True},
        {"landlock": False},
        {"seccomp": None},
    ],
    ids=str,
)
def test_option_that_cannot_be_had(fields: dict[str, Any]) -> None:
    """The error names the option and why."""
    with pytest.raises(PlanError, match=rf"^{next(iter(fields))}: .*namespaces='none', w"):
        Sandbox(namespaces="none", **fields)


def test_namespace_to_join() -> None:
    """There is nothing to join a namespace with."""
    with Namespace.open("/proc/self/ns/net") as net, pytest.raises(PlanError, match=r"^net: "):
        Sandbox(namespaces="none", net=net)


@pytest.mark.parametrize(
    "mount",
    [
        Tmpfs("/scratch"),
        Proc(),
        Dev(),
        Overlay(["/usr"], "/over"),
        Bind("/usr", "/data"),
        Bind("data", "/data"),
        Bind("/data", idmap=True),
        Bind("/proc", readonly=False),
        Bind("/proc/self", readonly=False),
        Bind("/", readonly=False),
    ],
    ids=repr,
)
def test_mount_that_cannot_be_had(mount: Any) -> None:
    """The error names the mount."""
    with pytest.raises(PlanError, match=re.escape(repr(mount))):
        Sandbox(namespaces="none", mounts=[mount])


def test_readonly_below_writable() -> None:
    """Landlock cannot take away below what it allows above, so this is refused."""
    with pytest.raises(PlanError, match="writable"):
        Sandbox(namespaces="none", mounts=[Bind("/data", readonly=False), Bind("/data/keep")])


def test_path_that_does_not_exist() -> None:
    """A path to show must be there; the error has its step and path."""
    with pytest.raises(SpawnError) as caught:
        Sandbox(namespaces="none", mounts=[Bind("/nonexistent/x")]).run(["true"])
    assert (caught.value.step, caught.value.path) == (Step.OPEN_PATH, "/nonexistent/x")
    assert "on the host" in (caught.value.hint or "")


def test_program_outside() -> None:
    """A program that is not open is refused, with the way to open it."""
    with TemporaryDirectory() as name:
        program = Path(name, "program")
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        Path(name).chmod(0o755)
        with pytest.raises(SpawnError) as caught:
            Sandbox(namespaces="none").run([str(program)])
    assert caught.value.step == Step.EXECVE
    assert "Bind(path)" in (caught.value.hint or "")
