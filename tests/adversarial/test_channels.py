"""Attacks over what connects: terminals, sockets, keys, IPC, the network, and between siblings."""

import os
import pty
import select
import socket
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attack import PROGRAM, REFUSED, armed, attack

from fingerprint import KEY
from nsbox import PlanError, Process, Sandbox
from support import in_child

pytestmark = pytest.mark.usefixtures("unharmed")


# ---- terminals --------------------------------------------------------------

HIGH_BITS = {"plain": 0, "bit_32": 1 << 32, "bit_63": 1 << 63, "all_high": 0xFFFFFFFF << 32}


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A terminal of the host, and the descriptor of its other end."""
    leader, follower = pty.openpty()
    yield leader, follower
    os.close(leader)
    os.close(follower)


@pytest.mark.parametrize("bits", HIGH_BITS.values(), ids=HIGH_BITS)
def test_input_cannot_be_typed(hostile: Path, terminal: tuple[int, int], bits: int) -> None:
    """TIOCSTI is refused, whatever the upper half of its argument says."""
    _, follower = terminal
    assert attack(armed(hostile), "type-character", str(bits), stdin=follower) in REFUSED
    assert select.select([follower], [], [], 0)[0] == []


TERMINAL_CALLS = {
    "TIOCLINUX": termios.TIOCLINUX,
    "TIOCCONS": termios.TIOCCONS,
    "TIOCVHANGUP": 0x5437,
    "TIOCSERSETMULTI": 0x545B,
}


@pytest.mark.parametrize("request_number", TERMINAL_CALLS.values(), ids=TERMINAL_CALLS)
def test_terminal_call_is_refused(
    hostile: Path, terminal: tuple[int, int], request_number: int
) -> None:
    """Requests that act on consoles, or on every user of the terminal, are refused."""
    word = attack(armed(hostile), "terminal", str(request_number), stdin=terminal[1])
    assert word in {"ENOTTY", "EINVAL", *REFUSED}


@pytest.mark.parametrize("path", ["/dev/tty", "/dev/tty0", "/dev/console", "/dev/pts/0"])
def test_no_terminal_can_be_opened(hostile: Path, path: str) -> None:
    """There is no controlling terminal, no console, and none of the host's terminals."""
    assert attack(armed(hostile), "open", path, str(os.O_RDWR)) in {"ENXIO", "ENOENT", *REFUSED}


# ---- sockets and the network ------------------------------------------------


def _abstract_name() -> str:
    return f"nsbox-attack-{os.getpid()}"


def test_abstract_socket_of_the_host_is_not_there(hostile: Path) -> None:
    """A name that a process of the host listens on cannot be connected to."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{_abstract_name()}")
        server.listen()
        assert attack(armed(hostile), "abstract", _abstract_name()) == "ECONNREFUSED"


@pytest.fixture
def sibling(hostile: Path) -> Iterator[Process]:
    """Another sandbox of the same caller, that has left something of each kind for the tests."""
    commands = [
        "shared-memory 0x6e73626f 0x3b6",
        "message-queue nsbox 0x42",
        f"key-add -4 {KEY}",
        f"key-add -5 {KEY}",
    ]
    left = "; ".join(f"{PROGRAM} {command}" for command in commands)
    script = f"{left}; touch /tmp/left /dev/shm/left; exec {PROGRAM} abstract-server nsbox-sibling"
    with armed(hostile).spawn(["/bin/sh", "-c", script], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        words = [process.stdout.readline().strip() for _ in range(len(commands) + 1)]
        assert words[-1] == "ok"
        assert words[0] == "ok"
        yield process
        process.kill()


SIBLING = {
    "abstract_socket": ("abstract nsbox-sibling", {"ECONNREFUSED"}),
    "shared_memory": ("shared-memory 0x6e73626f 0", {"ENOENT"}),
    "message_queue": ("message-queue nsbox 0", {"ENOENT"}),
    "user_keyring": (f"key-search -4 {KEY}", {"ENOKEY"}),
    "user_session_keyring": (f"key-search -5 {KEY}", {"ENOKEY"}),
    "tmp": ("open /tmp/left 0", {"ENOENT"}),
    "dev_shm": ("open /dev/shm/left 0", {"ENOENT"}),
}


@pytest.mark.parametrize(("command", "expected"), SIBLING.values(), ids=SIBLING)
def test_sibling_sees_nothing(
    hostile: Path, sibling: Process, command: str, expected: set[str]
) -> None:
    """What a sandbox leaves while it runs is not there in one beside it."""
    assert attack(armed(hostile), *command.split()) in expected | REFUSED


@pytest.mark.parametrize(("command", "expected"), SIBLING.values(), ids=SIBLING)
def test_successor_sees_nothing(
    hostile: Path, sibling: Process, command: str, expected: set[str]
) -> None:
    """Nor is it there in one that comes after it."""
    sibling.kill()
    sibling.wait()
    assert attack(armed(hostile), *command.split()) in expected | REFUSED


def test_key_of_the_caller_is_not_in_the_user_keyring(hostile: Path, sibling: Process) -> None:
    """What a payload puts into "its" user's keyring does not arrive in that of the host's user."""
    command = [str(hostile), "key-search", "-4", KEY]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert found.strip() in {"ENOKEY", *REFUSED}


ADDRESSES = {
    "metadata": "169.254.169.254 80",
    "private": "10.0.0.1 53",
    "public": "192.0.2.1 80",
    "broadcast": "255.255.255.255 9",
}


@pytest.mark.parametrize("address", ADDRESSES.values(), ids=ADDRESSES)
def test_address_is_unreachable(hostile: Path, address: str) -> None:
    """No address but the loopback's has a route."""
    assert attack(armed(hostile), "connect", *address.split()) in {"ENETUNREACH", *REFUSED}


def test_service_of_the_host_is_unreachable(hostile: Path) -> None:
    """A port that the host listens on at 127.0.0.1 is refused: it is another loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        assert attack(armed(hostile), "connect", "127.0.0.1", port) in {"ECONNREFUSED", *REFUSED}


@pytest.mark.parametrize("kind", ["dummy", "veth", "bridge", "ipvlan"])
def test_interface_cannot_be_made(hostile: Path, kind: str) -> None:
    """rtnetlink makes no device for a payload, of whatever kind."""
    assert attack(armed(hostile), "new-link", kind) in REFUSED


SOCKETS = {
    "packet": "socket 17 3 0",
    "raw": "socket 2 3 1",
    "raw6": "socket 10 3 58",
    "ipsec_keys": "socket 15 3 2",
}
NO_SUCH_FAMILY = {"EAFNOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT"}


@pytest.mark.parametrize("call", SOCKETS.values(), ids=SOCKETS)
def test_raw_socket_is_refused(hostile: Path, call: str) -> None:
    """No socket that sees or forges packets below its own."""
    assert attack(armed(hostile), "call", *call.split()) in NO_SUCH_FAMILY | REFUSED


# ---- files that are shared on purpose ---------------------------------------


def test_descriptor_of_a_directory_gives_nothing_to_a_payload_without_it(hostile: Path) -> None:
    """An inheritable descriptor of "/" that was not passed is not there."""
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.set_inheritable(fd, True)
        assert attack(armed(hostile), "open", f"/proc/self/fd/{fd}/etc/passwd", "0") == "ENOENT"
    finally:
        os.close(fd)


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_pipe_leads_nowhere(hostile: Path, stream: str) -> None:
    """The pipes of a payload cannot be used as directories, or as anything else but pipes."""
    number = ["stdin", "stdout", "stderr"].index(stream)
    path = f"/proc/self/fd/{number}/../../etc/shadow"
    assert attack(armed(hostile), "open", path, "0", stdin=subprocess.DEVNULL) == "ENOTDIR"


def test_caller_that_reads_text_survives_bytes_that_are_none(hostile: Path) -> None:
    """Half a character at the end of the output is an error for text, after the payload is gone."""
    box = armed(hostile)
    with pytest.raises(UnicodeDecodeError):
        box.run(["/bin/sh", "-c", "printf '\\303'"], capture_output=True, encoding="utf-8")


def test_memory_of_a_sandbox_is_not_that_of_another(hostile: Path, box: Sandbox) -> None:
    """A file in /dev/shm of one run is not there in the next."""
    box.run(["/bin/sh", "-c", "echo secret >/dev/shm/file"], check=True)
    assert attack(armed(hostile), "open", "/dev/shm/file", "0") == "ENOENT"


MODES = {
    "read": (os.O_RDONLY, os.O_WRONLY),
    "read_to_change": (os.O_RDONLY, os.O_RDWR),
    "append": (os.O_WRONLY | os.O_APPEND, os.O_RDONLY),
}


@pytest.mark.parametrize(("given", "wanted"), MODES.values(), ids=MODES)
@pytest.mark.parametrize("way", ["stdin", "pass_fds"])
def test_file_that_was_given_is_not_opened_for_more(
    hostile: Path, tmp_path: Path, way: str, given: int, wanted: int
) -> None:
    """What is handed over to be read cannot be written by /proc/self/fd, not by its owner."""
    file = tmp_path / "file"
    file.write_text("of the host")
    file.chmod(0o666)
    fd = os.open(file, given)
    options: dict[str, Any] = {"stdin": fd} if way == "stdin" else {"pass_fds": [fd]}
    path = f"/proc/self/fd/{0 if way == 'stdin' else fd}"
    try:
        assert attack(armed(hostile), "open", path, str(wanted), **options) in REFUSED
        assert attack(armed(hostile), "open", path, str(given & os.O_ACCMODE), **options) == "ok"
    finally:
        os.close(fd)


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
@pytest.mark.parametrize("own", [False, True], ids=["given", "inherited"])
def test_directory_is_no_stream(hostile: Path, stream: str, own: bool) -> None:
    """A directory of the host as a stream, given or the caller's own, is refused."""
    number = ["stdin", "stdout", "stderr"].index(stream)

    def spawn() -> str:
        fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        if own:
            os.dup2(fd, number)
        options: dict[str, Any] = {} if own else {stream: fd}
        try:
            armed(hostile).run([PROGRAM, "descriptors"], **options)
        except PlanError as error:
            return str(error).partition(":")[0]
        return "ran"

    assert in_child(spawn) == stream
