"""Attacks on the host from a sandbox without namespaces, which has no other walls than a few."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attack import REFUSED, attack, outcome

from conftest import unavailable
from nsbox import PIPE, Bind, Sandbox
from nsbox._calls import landlock_abi
from nsbox._landlock import SCOPE_ABI
from nsbox.mount import Mount
from support import stdout_of, tree

pytestmark = pytest.mark.usefixtures("unharmed")

AT_FDCWD = str(-100 % (1 << 64))


@pytest.fixture(autouse=True)
def landlock() -> None:
    """The kernel has all that is tested here."""
    if landlock_abi() < SCOPE_ABI:
        unavailable("this kernel has no Landlock with scopes (Linux 6.12)", newer_kernel=True)


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host that has the payload's user id."""
    user: dict[str, Any] = {"user": 65534, "group": 65534} if os.geteuid() == 0 else {}
    with subprocess.Popen(["/bin/cat"], stdin=PIPE, stdout=PIPE, cwd="/", **user) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process
        assert process.poll() is None
        process.stdin.write(b"alive\n")
        process.stdin.close()
        assert process.stdout.read() == b"alive\n"
    assert process.returncode == 0


@pytest.fixture
def treasure() -> Iterator[Path]:
    """A directory of the host that the host lets the payload's user change, and nobody may."""
    # Not below pytest's directory: that is closed to the payloads of root anyway.
    with tempfile.TemporaryDirectory(prefix="nsbox-treasure-") as name:
        directory = Path(name)
        (directory / "sub").mkdir()
        (directory / "secret").write_text("of the host\n")
        (directory / "sub" / "link").symlink_to("../secret")
        for path in (directory, directory / "sub", directory / "secret"):
            path.chmod(0o755)
            if os.geteuid() == 0:
                os.chown(path, 65534, 65534)
        before = tree(directory)
        yield directory
        assert tree(directory) == before


def armed(hostile: Path, *mounts: Mount, **fields: Any) -> Sandbox:
    """Return a sandbox without namespaces in which the hostile payload can be executed."""
    return Sandbox(namespaces="none", mounts=[Bind(hostile), *mounts], **fields)


def strike(hostile: Path, *args: object, box: Sandbox | None = None, **options: Any) -> str:
    """Run one attack, and return its outcome."""
    command = [str(hostile), *map(str, args)]
    result = (box or armed(hostile)).run(
        command, capture_output=True, text=True, timeout=60, **options
    )
    return outcome(result)


# ---- files -----------------------------------------------------------------


@pytest.mark.parametrize("path", ["/root", "/home", "/tmp", "/proc/1/status", "/etc/passwd", "/"])
def test_path_of_the_host_is_closed(hostile: Path, path: str) -> None:
    """What was not given cannot be opened, whoever may read it on the host."""
    assert strike(hostile, "open", path, os.O_RDONLY) in REFUSED


def test_file_of_the_host_is_closed(hostile: Path, treasure: Path) -> None:
    """A file that the host would let it read is not for the payload."""
    assert strike(hostile, "open", treasure / "secret", os.O_RDONLY) in REFUSED
    assert strike(hostile, "open", treasure / "sub" / "link", os.O_RDONLY) in REFUSED


@pytest.mark.parametrize("directory", ["/tmp", "/dev/shm", "/var/tmp", "/usr", "/dev"])
def test_nothing_can_be_made(hostile: Path, directory: str) -> None:
    """Nothing is writable that was not given, sticky directories neither."""
    path = f"{directory}/nsbox-unshared"
    assert strike(hostile, "open", path, os.O_CREAT | os.O_WRONLY) in {*REFUSED, "ENOENT"}
    assert strike(hostile, "call", "mkdirat", AT_FDCWD, f"s:{path}") in {*REFUSED, "ENOENT"}
    assert not os.path.lexists(path)


@pytest.mark.parametrize(
    "call",
    [
        ["truncate", "s:{}/secret", "0"],
        ["unlinkat", AT_FDCWD, "s:{}/secret", "0"],
        ["renameat2", AT_FDCWD, "s:{}/secret", AT_FDCWD, "s:{}/other", "0"],
        ["linkat", AT_FDCWD, "s:{}/secret", AT_FDCWD, "s:{}/other", "0"],
        ["symlinkat", "s:/etc/passwd", AT_FDCWD, "s:{}/other"],
        ["mknodat", AT_FDCWD, "s:{}/other", str(0o100644), "0"],
        ["fchmodat", AT_FDCWD, "s:{}/secret", str(0o777)],
        ["fchownat", AT_FDCWD, "s:{}/secret", str(os.geteuid()), str(os.getegid()), "0"],
        ["utimensat", AT_FDCWD, "s:{}/secret", "0", "0"],
        ["setxattr", "s:{}/secret", "s:user.x", "s:x", "1", "0"],
        ["inotify_add_watch", "0", "s:{}", "2"],
        ["inotify_init1", "0"],
    ],
    ids=lambda call: call[0],
)
@pytest.mark.parametrize("shown", [False, True])
def test_file_cannot_be_changed(
    hostile: Path, treasure: Path, call: list[str], shown: bool
) -> None:
    """Content, name, mode, owner, times and attributes stay, of what can be read as well."""
    mounts = [Bind(treasure)] if shown else []
    arguments = [text.format(treasure) for text in call]
    assert strike(hostile, "call", *arguments, box=armed(hostile, *mounts)) in REFUSED


def test_readonly_bind_stays_readonly(hostile: Path, treasure: Path) -> None:
    """What is open to be read is not open to be written."""
    box = armed(hostile, Bind(treasure))
    assert strike(hostile, "open", treasure / "secret", os.O_RDONLY, box=box) == "ok"
    assert strike(hostile, "open", treasure / "secret", os.O_WRONLY, box=box) in REFUSED
    assert strike(hostile, "open", treasure / "secret", os.O_TRUNC, box=box) in REFUSED


@pytest.mark.parametrize(
    "request_number",
    [0x40086602, 0x40086604, 0x6609, 0x800C6613, 0x40806685, 0x5000940E, 0x50009418, 0x4008941A],
    ids=hex,
)
def test_request_to_a_file_system_is_refused(
    hostile: Path, treasure: Path, request_number: int
) -> None:
    """What is open to be read cannot be changed by ioctl(2): flags, encryption, subvolumes."""
    box = armed(hostile, Bind(treasure))
    with open(treasure / "secret", "rb") as file:
        call = ("call", "ioctl", 0, request_number, 0)
        assert strike(hostile, *call, box=box, stdin=file) == "EPERM"


def test_working_directory_is_not_the_callers(hostile: Path, treasure: Path) -> None:
    """A relative path starts at "/", wherever the caller is."""
    before = os.getcwd()
    os.chdir(treasure)
    try:
        assert strike(hostile, "open", "secret", os.O_RDONLY) == "ENOENT"
    finally:
        os.chdir(before)


# ---- processes ---------------------------------------------------------------


def test_process_of_the_host_cannot_be_signalled(
    hostile: Path, victim: subprocess.Popen[bytes]
) -> None:
    """Neither a process of its own user nor its maker."""
    assert strike(hostile, "call", "kill", victim.pid, signal.SIGTERM) in REFUSED
    assert strike(hostile, "call", "kill", os.getpid(), 0) in REFUSED


@pytest.mark.parametrize(
    "call",
    [
        ["ptrace", "16", "{}"],  # PTRACE_ATTACH
        ["process_vm_readv", "{}"],
        ["prlimit64", "{}", "0", "z:16", "0"],
        ["sched_setscheduler", "{}", "5", "z:8"],
        ["setpriority", "0", "{}", "19"],
        ["setpriority", "2", "0", "19"],
    ],
    ids=lambda call: " ".join(call[:2]),
)
def test_process_of_the_host_cannot_be_changed(
    hostile: Path, victim: subprocess.Popen[bytes], call: list[str]
) -> None:
    """A process of the same user can be neither traced nor limited nor slowed."""
    assert strike(hostile, "call", *[text.format(victim.pid) for text in call]) in REFUSED


def test_memory_of_the_host_is_closed(hostile: Path, victim: subprocess.Popen[bytes]) -> None:
    """Even with the host's /proc to be read, what asks for the right to trace does not open."""
    box = armed(hostile, Bind("/proc"))
    for name in ("environ", "mem", "maps", "root/etc/passwd"):
        path = f"/proc/{victim.pid}/{name}"
        assert strike(hostile, "open", path, os.O_RDONLY, box=box) in REFUSED
    assert strike(hostile, "open", f"/proc/{victim.pid}/oom_score_adj", os.O_WRONLY) in REFUSED


def test_own_process_alone(hostile: Path) -> None:
    """Bind("/proc/self") shows the payload itself, and no other process."""
    box = armed(hostile, Bind("/proc/self"))
    assert strike(hostile, "open", "/proc/self/status", os.O_RDONLY, box=box) == "ok"
    for path in ("/proc/1/status", "/proc", f"/proc/{os.getpid()}/status"):
        assert strike(hostile, "open", path, os.O_RDONLY, box=box) in REFUSED


@pytest.mark.parametrize("attempt", ["raise-capabilities", "raise-ambient", "undo-no-new-privs"])
def test_privilege_cannot_be_regained(hostile: Path, attempt: str) -> None:
    """What was dropped stays dropped."""
    assert strike(hostile, attempt) in {*REFUSED, "EINVAL"}


@pytest.mark.parametrize("flag", [0x10000000, 0x00020000, 0x20000000, 0x40000000])
def test_namespace_cannot_be_made(hostile: Path, flag: int) -> None:
    """That the sandbox has none does not mean that the payload may make its own."""
    assert strike(hostile, "clone", flag) in REFUSED
    assert strike(hostile, "call", "unshare", flag) in REFUSED


# ---- channels ------------------------------------------------------------------


def test_abstract_socket_of_the_host_is_out_of_reach(hostile: Path) -> None:
    """Neither the filter nor, with the host's network, Landlock lets the payload connect."""
    name = f"nsbox-unshared-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        # The attack goes on without the socket that it has not got.
        assert strike(hostile, "abstract", name) in {*REFUSED, "EBADF"}
        assert strike(hostile, "abstract", name, box=armed(hostile, net="host")) in REFUSED


@pytest.mark.parametrize("family", [1, 2, 10, 16, 17, 40])
def test_no_socket(hostile: Path, family: int) -> None:
    """Behind the sockets of the host are services that may do anything for their user."""
    assert strike(hostile, "call", "socket", family, 1, 0) in REFUSED


def test_profile_does_not_open_what_is_withheld(hostile: Path, treasure: Path) -> None:
    """A profile that permits everything, even by name, does not open sockets and modes."""
    rule = {"names": ["socket", "fchmodat", "prlimit64"], "action": "SCMP_ACT_ALLOW"}
    for default in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG"):
        box = armed(hostile, Bind(treasure), seccomp={"defaultAction": default, "syscalls": [rule]})
        assert strike(hostile, "call", "socket", 1, 1, 0, box=box) in REFUSED
        mode = ("call", "fchmodat", AT_FDCWD, f"s:{treasure}/secret", 0o777)
        assert strike(hostile, *mode, box=box) in REFUSED
        assert strike(hostile, "call", "prlimit64", 1, 0, 0, 0, box=box) in REFUSED


def test_passed_socket_is_not_connected_elsewhere(hostile: Path) -> None:
    """A TCP socket that is handed on may not be bound: Landlock holds where no call is refused."""
    code = "import socket, sys; socket.socket(fileno=0).bind(('127.0.0.1', 0))"
    with socket.socket() as given:
        result = Sandbox(namespaces="none").run(
            [python(), "-I", "-S", "-c", code], stdin=given.fileno(), stderr=PIPE, text=True
        )
    assert "Permission" in result.stderr


def python() -> str:
    """Return a Python that other users may execute."""
    return "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable


@pytest.mark.parametrize(
    "args", [["call", "semget", "77", "1", "1023"], ["message-queue", "x", "66"]]
)
def test_no_queue_and_no_segment(hostile: Path, args: list[str]) -> None:
    """The host's IPC namespace is closed."""
    assert strike(hostile, *args) in REFUSED
    assert strike(hostile, "shared-memory", 4711, 0o1666) in REFUSED


@pytest.mark.parametrize("high", [0, 1 << 32])
def test_input_cannot_be_typed(hostile: Path, high: int) -> None:
    """TIOCSTI is refused, whatever the upper half of its argument says."""
    ours, theirs = os.openpty()
    try:
        assert strike(hostile, "type-character", high, stdin=theirs) in REFUSED
    finally:
        os.close(ours)
        os.close(theirs)


def test_only_named_descriptors(hostile: Path, canary: Path) -> None:
    """An inheritable descriptor of the caller stays outside."""
    fd = os.open(canary / "secret", os.O_RDONLY)
    os.set_inheritable(fd, True)
    try:
        with armed(hostile).spawn([str(hostile), "descriptors"], stdout=PIPE, text=True) as process:
            words = stdout_of(process).read().split()
    finally:
        os.close(fd)
    assert str(fd) not in words


def test_attack_is_one_elsewhere(hostile: Path, canary: Path) -> None:
    """What is refused above works where it may: the payload does not fail for other reasons."""
    box = Sandbox(mounts=[Bind(hostile, "/attack")])
    assert attack(box, "call", "socket", "1", "1", "0") == "ok"
    assert attack(box, "call", "semget", "77", "1", "1023") == "ok"
    assert strike(hostile, "call", "kill", 0, 0) == "ok"
