"""What the system-call filter and the masks of /proc take away from a payload."""

import os
import platform
import subprocess
from pathlib import Path

import pytest
from attack import PROGRAM, REFUSED, armed, attack

from fingerprint import KEY
from nsbox import Bind, Sandbox

pytestmark = pytest.mark.usefixtures("unharmed")

x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="an ABI of x86_64")

FAMILIES = {
    "ax25": "3 5 0",
    "alg": "38 5 0",
    "can": "29 3 0",
    "netlink_audit": "16 3 9",
    "netlink_netfilter": "16 3 12",
    "netlink_uevent": "16 3 15",
    "nfc": "39 5 0",
    "packet": "17 3 0",
    "tipc": "30 1 0",
    "vsock": "40 1 0",
    "xdp": "44 3 0",
}


@pytest.mark.parametrize("arguments", FAMILIES.values(), ids=FAMILIES)
def test_family_of_sockets_is_refused(hostile: Path, arguments: str) -> None:
    """
    Families that no ordinary program needs cannot be used.

    AF_VSOCK above all: it reaches the host of a virtual machine from any network namespace.
    """
    assert attack(armed(hostile), "call", "socket", *arguments.split()) in REFUSED


CALLS = {
    "add_key": "add_key s:user s:x s:x 1 -3",
    "bpf": "bpf 0 z:128 128",
    "fanotify_init": "fanotify_init 0 0",
    "io_uring_setup": "io_uring_setup 8 z:120",
    "keyctl": "keyctl 0 -3 0",
    "kexec_load": "kexec_load 0 0 z:32 0",
    "name_to_handle_at": "name_to_handle_at -100 s:/usr z:140 z:8 0",
    "open_tree": "open_tree -100 s:/usr 0",
    "perf_event_open": "perf_event_open z:128 0 -1 -1 0",
    "syslog": "syslog 3 z:100 100",
    "userfaultfd": "userfaultfd 1",
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_part_of_the_kernel_is_out_of_reach(hostile: Path, call: str) -> None:
    """Calls that lead into much code of the kernel, and that few programs need, are refused."""
    assert attack(armed(hostile), "call", *call.split()) in REFUSED


@x86_64
@pytest.mark.parametrize("number", [20, 1, 5], ids=["getpid", "exit", "open"])
def test_i386_is_refused_as_a_whole(hostile: Path, number: int) -> None:
    """int 0x80 makes no call at all, however harmless."""
    assert attack(armed(hostile), "i386", str(number)) in {"ENOSYS", "SIGSYS"}


@x86_64
@pytest.mark.parametrize("call", ["kill 0 0", "personality", "socket 1 1 0"])
def test_x32_is_refused_as_a_whole(hostile: Path, call: str) -> None:
    """Nor does a number with the bit of the x32 ABI."""
    assert attack(armed(hostile), "x32", *call.split()) in {"ENOSYS", "SIGSYS"}


def test_user_namespace_cannot_be_nested(hostile: Path) -> None:
    """A payload has no user namespace of its own, in which it would have all capabilities."""
    assert attack(armed(hostile), "nested", "umount2", "s:/proc", "2") == "refused"


def test_clone3_is_not_there(hostile: Path) -> None:
    """A filter cannot look into the arguments of clone3, so libc shall use clone."""
    assert attack(armed(hostile), "clone3", "0") == "ENOSYS"


@pytest.mark.parametrize("keyring", ["-1", "-2", "-3", "-4", "-5"])
def test_no_key_can_be_added(hostile: Path, keyring: str) -> None:
    """Not to the session keyring of the caller either, as the fingerprint would show."""
    assert attack(armed(hostile), "key-add", keyring, KEY) in REFUSED


@pytest.mark.parametrize("bits", [0, 1 << 32, 1 << 63])
def test_input_cannot_be_typed_into_an_own_terminal(hostile: Path, bits: int) -> None:
    """TIOCSTI is refused even on the controlling terminal, by the 32 bits that the kernel reads."""
    leader, follower = os.openpty()
    try:
        box = armed(hostile)
        word = attack(box, "type-character", str(bits), stdin=follower, controlling_terminal=True)
    finally:
        os.close(leader)
        os.close(follower)
    assert word in REFUSED


def test_program_cannot_be_made_set_user_id(hostile: Path, tmp_path: Path) -> None:
    """No payload leaves a set-user-ID program in a writable bind for somebody on the host."""
    out = tmp_path / "out"
    out.mkdir()
    box = Sandbox(
        mounts=[*armed(hostile).mounts, *_writable(out)],
    )
    for mode in ("04755", "02755", "06711"):
        assert attack(box, "call", "fchmodat", "-100", "s:/out", mode) in REFUSED
    result = box.run(["/bin/sh", "-c", f"cp {PROGRAM} /out/p; chmod u+s /out/p"], stderr=-3)
    assert result.returncode != 0


def _writable(path: Path) -> list[Bind]:
    return [Bind(path, "/out", readonly=False)]


def test_joining_payload_cannot_give_a_child_to_the_caller(hostile: Path) -> None:
    """
    CLONE_PARENT is refused where the kernel allows it: to who is not PID 1.

    A child that the caller does not know of is never reaped, and PID 1 of its
    namespace could not end: wait() would hang.
    """
    with armed(hostile).spawn(
        [PROGRAM, "abstract-server", "x"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as resident:
        with resident.namespaces["user"] as user, resident.namespaces["pid"] as pid:
            word = attack(armed(hostile, user=user, pid=pid), "clone", str(0x8000))
        if word == "ok":
            os.waitpid(-1, 0)  # the child that is ours now, or this test would hang as well
        resident.kill()
    assert word in REFUSED


# ---- /proc --------------------------------------------------------------------

SETTINGS = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/vm/panic_on_oom",
    "/proc/irq/default_smp_affinity",
]


@pytest.mark.parametrize("path", SETTINGS)
def test_settings_are_readonly_even_for_root_of_the_host(
    hostile: Path, root: None, path: str
) -> None:
    """With host_uid=0, asked for by name, the settings of the kernel still cannot be written."""
    box = armed(hostile, host_uid=0, host_gid=0)
    assert attack(box, "open", path, str(os.O_WRONLY)) in {"EROFS", "ENOENT", *REFUSED}


@pytest.mark.parametrize("name", ["timer_list", "keys", "kcore", "sched_debug"])
def test_masks_hold_even_for_root_of_the_host(hostile: Path, root: None, name: str) -> None:
    """With host_uid=0 the files of /proc that show the whole machine are empty or absent."""
    box = armed(hostile, host_uid=0, host_gid=0)
    assert attack(box, "read", f"/proc/{name}") in {"empty", "ENOENT", *REFUSED}
