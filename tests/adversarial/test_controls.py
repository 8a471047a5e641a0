"""
Counter-experiments: each kind of attack succeeds where nothing forbids it.

An attack that could not work anywhere would prove nothing about a sandbox that
stops it.
"""

import os
import platform
import pty
import socket
import subprocess
from pathlib import Path

import pytest
from attack import PROGRAM, armed, attack, outcome

from nsbox import Bind, Sandbox

CLONE_NEWNET = 0x40000000


def on_the_host(hostile: Path, *args: str, **options: object) -> str:
    """Run an attack without any sandbox."""
    command = [str(hostile), *args]
    result = subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    word: str = result.stdout.strip()
    return word


def several(box: Sandbox, *commands: str) -> list[str]:
    """Run attacks one after another in one sandbox, and return what each printed."""
    script = "; ".join(f"{PROGRAM} {command}" for command in commands)
    return outcome(box.run(["/bin/sh", "-c", script], capture_output=True, text=True)).split("\n")


def test_other_process_is_reached_on_the_host(hostile: Path) -> None:
    """reach-others gets at a process of the same user."""
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as process:
        word = on_the_host(hostile, "reach-others", str(process.pid), str(process.pid))
        process.kill()
    assert {part.partition("(")[0] for part in word.split()} >= {"kill", "prlimit", "setpriority"}


def test_peer_is_reached_on_the_host(hostile: Path) -> None:
    """peer signals the process at the other end of a socket."""
    ours, passed = socket.socketpair()
    with ours, passed:
        word = on_the_host(hostile, "peer", str(passed.fileno()), pass_fds=[passed.fileno()])
    assert "signal" in word.split()


def test_capability_that_was_given_can_be_raised(hostile: Path, box: Sandbox) -> None:
    """Raising works for what a sandbox has."""
    assert attack(armed(hostile, capabilities=["CHOWN"]), "raise-capabilities") == "ok 0"


@pytest.mark.parametrize("way", ["clone", "clone3", "call unshare"])
def test_namespace_can_be_made_with_the_capability(hostile: Path, box: Sandbox, way: str) -> None:
    """All three ways to a namespace work with CAP_SYS_ADMIN, unless a filter refuses them."""
    box = armed(hostile, capabilities=["SYS_ADMIN"])
    assert attack(box, *way.split(), str(CLONE_NEWNET)) in {"ok", "ENOSYS"}


def test_device_can_be_made_with_the_capability(hostile: Path, box: Sandbox) -> None:
    """new-link makes a network device in a network of its own with CAP_NET_ADMIN."""
    word = attack(armed(hostile, capabilities=["NET_ADMIN"]), "new-link", "dummy")
    assert word in {"ok", "EOPNOTSUPP"}  # the latter where the kernel has no such module


def test_mount_works_with_the_capability(hostile: Path, box: Sandbox) -> None:
    """call mount mounts a tmpfs with CAP_SYS_ADMIN, unless a filter refuses it."""
    call = "call mount s:none s:/tmp s:tmpfs 0 0"
    assert attack(armed(hostile, capabilities=["SYS_ADMIN"]), *call.split()) in {"ok", "ENOSYS"}


def test_things_left_are_found_in_the_same_sandbox(hostile: Path, box: Sandbox) -> None:
    """Shared memory is there for who shares the namespaces."""
    words = several(armed(hostile), "shared-memory 0x6e73626f 0x3b6", "shared-memory 0x6e73626f 0")
    assert words == ["ok", "ok"]


def test_message_queue_is_found_on_the_host(hostile: Path) -> None:
    """message-queue makes a queue, and finds it."""
    name = f"nsbox-control-{os.getpid()}"
    script = f"{hostile} message-queue {name} 0x42; {hostile} message-queue {name} 0"
    command = ["unshare", "--ipc", "--map-root-user", "/bin/sh", "-c", script]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout.split() == ["ok", "ok"], result.stderr


def test_key_is_found_on_the_host(hostile: Path) -> None:
    """key-search finds what key-add has put into the process's own keyring."""
    assert on_the_host(hostile, "key-add", "-2", "nsbox-control") == "ok"


def test_abstract_socket_is_found_on_the_host(hostile: Path) -> None:
    """abstract connects where the network is the server's."""
    name = f"nsbox-control-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        assert on_the_host(hostile, "abstract", name) == "ok"


def test_port_is_reached_in_the_same_network(hostile: Path, box: Sandbox) -> None:
    """connect reaches a port of the host with net="host"."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        assert attack(armed(hostile, net="host"), "connect", "127.0.0.1", port) == "ok"


@pytest.mark.parametrize("bits", [0, 1 << 32])
def test_input_is_typed_into_an_own_terminal(hostile: Path, bits: int) -> None:
    """type-character works on a controlling terminal, where the kernel allows it at all."""
    if Path("/proc/sys/dev/tty/legacy_tiocsti").read_text() != "1\n":
        pytest.skip("dev.tty.legacy_tiocsti is 0: nobody can type")
    pid, leader = pty.fork()
    if pid == 0:
        os.execv(hostile, [str(hostile), "type-character", str(bits)])
    text = b""
    try:
        while chunk := os.read(leader, 100):
            text += chunk
    except OSError:
        pass  # EIO: the other end is closed
    os.waitpid(pid, 0)
    os.close(leader)
    assert b"ok" in text


def test_inheritable_descriptor_is_found_on_the_host(hostile: Path) -> None:
    """descriptors lists what a program without a sandbox inherits."""
    with open(os.devnull) as file:
        assert on_the_host(hostile, "descriptors", pass_fds=[file.fileno()]) != "none"


def test_file_is_found_by_handle_on_the_host(hostile: Path, root: None) -> None:
    """by-handle opens the root of a file system for the host's root."""
    assert on_the_host(hostile, "by-handle", str(hostile.parent)) in {"ok", "ESTALE"}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="an ABI of x86_64")
def test_i386_call_works_on_the_host(hostile: Path) -> None:
    """i386 makes calls by int 0x80: getpid."""
    assert on_the_host(hostile, "i386", "20") in {"ok", "ENOSYS"}


def test_writable_tree_can_be_changed(hostile: Path, canary: Path, box: Sandbox) -> None:
    """The calls that a read-only bind refuses change a writable one."""
    shown = armed(hostile, Bind(canary, "/canary", readonly=False))
    assert attack(shown, "open", "/canary/new", str(os.O_WRONLY | os.O_CREAT)) == "ok"
    assert (canary / "new").exists()
