"""Attacks on the kernel's own interfaces: privileged calls, /proc, /sys, devices, foreign ABIs."""

import os
import platform
from pathlib import Path

import pytest
from attack import REFUSED, armed, attack

from nsbox import Bind, Sandbox

pytestmark = pytest.mark.usefixtures("unharmed")

x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="an ABI of x86_64")

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_NEWTIME = 0x00000080
CLONE_PARENT = 0x00008000

# ---- calls that only the host's root may make -------------------------------

CALLS = {
    "acct": "acct s:/tmp/acct",
    "bpf_program": "bpf 5 z:128 128",
    "clock_settime": "clock_settime 0 z:16",
    "delete_module": "delete_module s:ext4 0",
    "fanotify_of_a_mount": "fanotify_init 0xc 0",
    "finit_module": "finit_module 0 s: 0",
    "init_module": "init_module z:64 64 s:",
    "kexec_load": "kexec_load 0 0 z:32 0",
    "reboot": "reboot 0xfee1dead 672274793 0x89abcdef 0",
    "setdomainname": "setdomainname s:evil 4",
    "sethostname": "sethostname s:evil 4",
    "settimeofday": "settimeofday z:16 0",
    "swapoff": "swapoff s:/tmp/swap",
    "swapon": "swapon s:/tmp/swap 0",
    "vhangup": "vhangup",
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_call_of_an_administrator_is_refused(hostile: Path, call: str) -> None:
    """What needs a capability over the host is refused to uid 0 inside."""
    assert attack(armed(hostile), "call", *call.split()) in REFUSED


@x86_64
@pytest.mark.parametrize("call", ["iopl 3", "ioperm 0x70 1 1"], ids=["iopl", "ioperm"])
def test_ports_of_the_machine_are_refused(hostile: Path, call: str) -> None:
    """No access to I/O ports."""
    assert attack(armed(hostile), "call", *call.split()) in REFUSED


def test_capabilities_over_the_sandbox_are_none_over_the_host(hostile: Path) -> None:
    """With CAP_SYS_ADMIN, CAP_SYS_TIME and others inside, the same calls are refused."""
    box = armed(
        hostile,
        capabilities=["SYS_ADMIN", "SYS_BOOT", "SYS_MODULE", "SYS_TIME", "SYS_RAWIO", "SYS_PACCT"],
    )
    own = {"sethostname", "setdomainname", "reboot"}  # of its own namespaces
    outcomes = {
        name: attack(box, "call", *call.split()) for name, call in CALLS.items() if name not in own
    }
    assert {name for name, word in outcomes.items() if word == "ok"} == set()


def test_reboot_ends_the_sandbox_only(hostile: Path) -> None:
    """With CAP_SYS_BOOT, reboot(2) ends the payload's pid namespace: pid_namespaces(7)."""
    box = armed(hostile, capabilities=["SYS_BOOT"])
    restart = "call reboot 0xfee1dead 672274793 0x01234567 0"
    assert attack(box, *restart.split()) in {"SIGHUP", *REFUSED}


# ---- namespaces -------------------------------------------------------------

NAMESPACES = {
    "mnt": CLONE_NEWNS,
    "cgroup": CLONE_NEWCGROUP,
    "uts": CLONE_NEWUTS,
    "ipc": CLONE_NEWIPC,
    "pid": CLONE_NEWPID,
    "net": CLONE_NEWNET,
}


@pytest.mark.parametrize("flag", NAMESPACES.values(), ids=NAMESPACES)
@pytest.mark.parametrize("way", ["clone", "clone3"])
def test_child_in_a_new_namespace_is_refused(hostile: Path, way: str, flag: int) -> None:
    """Neither clone(2) nor clone3(2) makes a namespace for a payload without capabilities."""
    assert attack(armed(hostile), way, str(flag)) in REFUSED


@pytest.mark.parametrize("flag", [*NAMESPACES.values(), CLONE_NEWTIME], ids=[*NAMESPACES, "time"])
def test_unsharing_a_namespace_is_refused(hostile: Path, flag: int) -> None:
    """The same for unshare(2)."""
    assert attack(armed(hostile), "call", "unshare", str(flag)) in REFUSED


def test_init_cannot_give_its_child_to_the_caller(hostile: Path) -> None:
    """CLONE_PARENT would make a process that the caller has to reap; PID 1 may not use it."""
    assert attack(armed(hostile), "clone", str(CLONE_PARENT)) in {"EINVAL", *REFUSED}


NESTED = {
    "remount_writable": f"mount 0 s:/usr 0 {32 | 4096} 0",
    "unmount_proc": "umount2 s:/proc 2",
    "unmount_root": "umount2 s:/ 2",
    "unmount_device": "umount2 s:/dev/null 2",
    "sysfs_of_the_host": "mount s:sysfs s:/tmp s:sysfs 0 0",
    "disk": "mount s:/dev/vda s:/tmp s:ext4 0 0",
    "debugfs": "mount s:debugfs s:/tmp s:debugfs 0 0",
    "device": "mknodat -100 s:/tmp/mem 0020666 0x101",
    "hostname": "sethostname s:evil 4",
}


@pytest.mark.parametrize("call", NESTED.values(), ids=NESTED)
def test_nested_user_namespace_gives_nothing(hostile: Path, call: str) -> None:
    """All capabilities in a user namespace of its own, if it may have one, do not help."""
    word = attack(armed(hostile), "nested", *call.split())
    assert word in {"refused", "EINVAL", "ENODEV", "ENOENT", "ENOTBLK", *REFUSED}


def test_namespaces_of_the_host_are_not_found_by_handle(hostile: Path) -> None:
    """open_by_handle_at(2) gives no descriptor of the first namespaces, whose numbers are known."""
    assert attack(armed(hostile), "namespace-by-handle") in {"ESTALE", "EINVAL", "EBADF", *REFUSED}


# ---- foreign ABIs -----------------------------------------------------------

I386 = {
    "mount": "21 s:none s:/tmp s:tmpfs 0 0",
    "umount": "22 s:/proc",
    "sethostname": "74 s:evil 4",
    "reboot": "88 0xfee1dead 672274793 0x89abcdef 0",
    "unshare": f"310 {CLONE_NEWNS}",
    "chroot": "61 s:/tmp",
    "init_module": "128 0 0 s:",
    "bpf": "357 5 0 0",
}


@x86_64
@pytest.mark.parametrize("call", I386.values(), ids=I386)
def test_i386_call_is_refused(hostile: Path, call: str) -> None:
    """int 0x80 is no way around what the call of the machine's own ABI is refused."""
    assert attack(armed(hostile), "i386", *call.split()) in {"SIGSEGV", *REFUSED}


@x86_64
@pytest.mark.parametrize("call", ["mount", "unshare 0x10000000", "reboot"])
def test_x32_call_is_refused(hostile: Path, call: str) -> None:
    """Nor are the numbers of the x32 ABI."""
    assert attack(armed(hostile), "x32", *call.split()) in REFUSED


# ---- /proc, /sys, devices ---------------------------------------------------

ABSENT = [
    "/dev/fuse",
    "/dev/kmsg",
    "/dev/kvm",
    "/dev/loop-control",
    "/dev/mem",
    "/dev/net/tun",
    "/dev/port",
    "/dev/vda",
    "/dev/console",
    "/dev/vsock",
    "/sys/fs/cgroup/cgroup.procs",
    "/sys/fs/cgroup/memory/release_agent",
    "/sys/firmware/acpi/tables/DSDT",
    "/sys/kernel/debug",
    "/sys/kernel/uevent_helper",
    "/sys/power/state",
    "/proc/sys/fs/binfmt_misc/register",
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/root/.ssh",
    "/home/sandbox/.ssh",
    "/etc/shadow",
]


@pytest.mark.parametrize("path", ABSENT)
def test_dangerous_file_is_absent(hostile: Path, path: str) -> None:
    """Devices, /sys and the host's secrets are not there at all."""
    assert attack(armed(hostile), "open", path, str(os.O_RDONLY)) == "ENOENT"


UNREADABLE = [
    "/proc/kcore",
    "/proc/kmsg",
    "/proc/kpageflags",
    "/proc/pagetypeinfo",
    "/proc/slabinfo",
    "/proc/timer_list",
    "/proc/vmallocinfo",
    "/proc/sched_debug",
    "/proc/1/stack",
    "/proc/1/map_files",
    "/proc/sys/kernel/cad_pid",
    "/proc/sys/vm/mmap_rnd_bits",
]


@pytest.mark.parametrize("path", UNREADABLE)
def test_view_of_the_kernel_is_closed(hostile: Path, path: str) -> None:
    """What shows the memory or the state of the whole machine cannot be read."""
    assert attack(armed(hostile), "read", path) in {"ENOENT", "empty", "EISDIR", *REFUSED}


def test_addresses_of_the_kernel_are_hidden(hostile: Path) -> None:
    """/proc/kallsyms, if it can be read, shows zeros."""
    text = attack(armed(hostile), "read", "/proc/kallsyms")
    assert text in {"ENOENT", "empty", *REFUSED} or {
        line.split()[0].strip("0") for line in text.splitlines()[:-1]
    } == {""}


@pytest.mark.parametrize(
    "setting",
    ["pid_max", "shmmax", "msgmax", "sem", "shm_rmid_forced", "ns_last_pid"],
)
def test_setting_of_an_own_namespace_does_not_reach_the_host(
    hostile: Path, box: Sandbox, setting: str
) -> None:
    """Settings that belong to the payload's own pid or IPC namespace stay in it."""
    path = f"/proc/sys/kernel/{setting}"
    before = Path(path).read_text() if setting != "ns_last_pid" else None
    box.run(["/bin/sh", "-c", f"for n in 301 1 400; do echo $n >{path}; done 2>/dev/null; :"])
    assert before is None or Path(path).read_text() == before


WRITE = [
    "/proc/1/oom_score_adj",
    "/proc/sys/user/max_user_namespaces",
    "/proc/sys/net/core/somaxconn",
    "/proc/sys/net/ipv4/conf/all/forwarding",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/sysrq",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sys/fs/suid_dumpable",
    "/proc/1/uid_map",
    "/proc/1/setgroups",
    "/proc/irq/default_smp_affinity",
]


@pytest.mark.parametrize("path", WRITE)
def test_written_setting_does_not_take_effect(hostile: Path, path: str) -> None:
    """A write of "-1" to a setting fails; the fingerprint shows that the host's is unchanged."""
    result = armed(hostile).run(
        ["/bin/sh", "-c", f"echo -999 >{path}"], capture_output=True, text=True
    )
    assert result.returncode != 0


def test_image_with_a_sysfs_of_its_own_gets_none(hostile: Path, tmp_path: Path) -> None:
    """A root file system that brings a link /sys -> /proc/1/root/sys has no /sys."""
    root = tmp_path / "rootfs"
    root.mkdir()
    (root / "sys").symlink_to("/proc/1/root/sys")
    root.chmod(0o755)
    box = Sandbox(root=root, mounts=[Bind(hostile, "/attack")])
    assert attack(box, "open", "/sys/kernel", "0") in {"ENOENT", "ELOOP"}
