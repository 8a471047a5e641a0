"""Profiles: what is refused, and what the compiled programs answer, asked by interpreting them."""

import errno
import fcntl
import itertools
import json
import os
import platform
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbox import PlanError, Sandbox, UnsupportedError, _bpf
from nsbox._filter import (
    _call_number,
    _comes_first,
    _open,
    compile_filter,
    effective_rules,
)
from nsbox.seccomp import OPERATORS, Profile, Rule, built_in, check_seccomp, permitted, refuses_keys

ALLOW, LOG, KILL = 0x7FFF0000, 0x7FFC0000, 0x80000000
NATIVE, FOREIGN = {"x86_64": (0xC000003E, 0x40000003), "aarch64": (0xC00000B7, 0x40000028)}[
    platform.machine()
]
CLONE_NEWUSER, CLONE_THREAD = 0x10000000, 0x10000
TIOCSTI, TIOCLINUX, TIOCSETD = 0x5412, 0x541C, 0x5423
HIGH = 1 << 32


def error(number: int) -> int:
    return 0x00050000 | number


def answer(program: bytes, number: int, *args: int, arch: int = NATIVE) -> int:
    return _bpf.answer(program, arch, number, *args)


def ask(profile: str | Profile, name: str, *args: int, held: tuple[str, ...] = ()) -> int:
    chosen = built_in(profile) if isinstance(profile, str) else profile
    number = _call_number(_open()[1], chosen, name)
    assert number is not None, f"no {name} on this machine"
    return answer(compile_filter(chosen, held, False), number, *args)


def make(*rules: dict[str, Any], default: str = "SCMP_ACT_ERRNO", **keys: Any) -> Profile:
    profile = check_seccomp({"defaultAction": default, "syscalls": list(rules), **keys})
    assert isinstance(profile, Profile)
    return profile


def rule(*names: str, action: str = "SCMP_ACT_ALLOW", **keys: Any) -> dict[str, Any]:
    return {"names": list(names), "action": action, **keys}


# ---- the default profile ---------------------------------------------------


def test_unknown_calls_do_not_exist() -> None:
    """A call newer than the profile gets ENOSYS, so that libraries fall back."""
    program = compile_filter(built_in("default"), (), False)
    assert {answer(program, number) for number in range(480, 1000)} == {error(errno.ENOSYS)}


@pytest.mark.parametrize("profile", ["default", "strict"])
def test_foreign_abis_end_the_process(profile: str) -> None:
    """Calls of i386 (int 0x80) and of x32, in whatever number, are killed."""
    program = compile_filter(built_in(profile), (), False)
    assert {answer(program, number, arch=FOREIGN) for number in range(500)} == {KILL}
    if platform.machine() == "x86_64":
        assert {answer(program, 0x40000000 | number) for number in range(600)} == {KILL}


@pytest.mark.parametrize("profile", ["default", "strict"])
@pytest.mark.parametrize("command", [TIOCSTI, TIOCLINUX, TIOCSETD])
def test_ioctl_is_compared_in_32_bits(profile: str, command: int) -> None:
    """Terminal input and disciplines are refused whatever the upper half of the argument says."""
    assert ask(profile, "ioctl", 0, command) == error(errno.EPERM)
    assert ask(profile, "ioctl", 0, command | HIGH) == error(errno.EPERM)
    assert ask(profile, "ioctl", 0, 0x5401 | HIGH) == ALLOW


@pytest.mark.parametrize("profile", ["default", "strict"])
def test_keys_of_a_file_system_are_refused(profile: str) -> None:
    """Nobody adds or removes them, by which a directory of the host would be locked."""
    add, remove, look = 0xC0506617, 0xC0406618, 0xC0096616
    for request in (add, remove, add | HIGH, remove | HIGH):
        assert ask(profile, "ioctl", 0, request) == error(errno.EOPNOTSUPP)
    assert ask(profile, "ioctl", 0, look) == ALLOW


@pytest.mark.parametrize("profile", ["default", "strict"])
def test_leases_are_refused(profile: str) -> None:
    """Nobody waits for a payload when he opens a file; other commands of fcntl are allowed."""
    delegation = 1040  # F_SETDELEG
    for command in (fcntl.F_SETLEASE, fcntl.F_SETLEASE | HIGH, delegation, delegation | HIGH):
        assert ask(profile, "fcntl", 0, command, fcntl.F_WRLCK) == error(errno.EINVAL)
    assert ask(profile, "fcntl", 0, fcntl.F_GETLEASE) == ALLOW


@pytest.mark.parametrize("profile", ["default", "strict"])
def test_limit_of_core_dumps_cannot_be_set(profile: str) -> None:
    """Who sets it is told that it is so; other limits, and questions, are the kernel's."""
    core, files, pointer = resource.RLIMIT_CORE, resource.RLIMIT_NOFILE, 1 << 40
    for limit in (core, core | HIGH):
        assert ask(profile, "setrlimit", limit, pointer) == error(0)
        assert ask(profile, "prlimit64", 0, limit, pointer, 0) == error(0)
        assert ask(profile, "prlimit64", 0, limit, pointer, pointer) == error(errno.EPERM)
        assert ask(profile, "prlimit64", 0, limit, 0, pointer) == ALLOW
    assert ask(profile, "prlimit64", 0, files, pointer, pointer) == ALLOW
    assert ask(profile, "setrlimit", files, pointer) == ALLOW


@pytest.mark.parametrize("profile", ["default", "strict"])
def test_huge_pages_of_the_machine_are_refused(profile: str) -> None:
    """Nobody takes pages that were reserved for others, of whatever size."""
    anonymous, huge, gigabyte = 0x22, 0x40000, 30 << 26
    for flags in (anonymous | huge, anonymous | huge | gigabyte):
        assert ask(profile, "mmap", 0, 1 << 30, 3, flags) == error(errno.ENOMEM)
    assert ask(profile, "mmap", 0, 1 << 30, 3, anonymous) == ALLOW
    if profile == "default":
        assert ask(profile, "memfd_create", 0, 0x4) == error(errno.ENOMEM)
        assert ask(profile, "memfd_create", 0, 0x3) == ALLOW
        assert ask(profile, "shmget", 0, 1 << 30, 0o4600) == error(errno.ENOMEM)
        assert ask(profile, "shmget", 0, 1 << 30, 0o1600) == ALLOW


@pytest.mark.parametrize("bit", [0x20000, *(1 << bit for bit in range(25, 31))])
def test_namespace_flags_are_refused(bit: int) -> None:
    """clone and unshare with any CLONE_NEW*, alone and among other flags."""
    for call in ("clone", "unshare"):
        assert ask("default", call, bit) == error(errno.EPERM)
        assert ask("default", call, bit | 0x7F00) == error(errno.EPERM)
        assert ask("default", call, 0x7F11) == ALLOW
    assert ask("default", "unshare", 0x80) == error(errno.EPERM)
    assert ask("default", "clone3") == error(errno.ENOSYS)


STREAM, DATAGRAM, RAW = 1, 2, 3
FLAGS = 0o2004000  # SOCK_CLOEXEC, SOCK_NONBLOCK


@pytest.mark.parametrize(
    ("family", "kind", "protocol", "expected"),
    [
        (1, 5, 0, ALLOW),
        (2, STREAM, 6, ALLOW),
        (2, STREAM | FLAGS, 262, ALLOW),
        (2, DATAGRAM, 1, ALLOW),
        (2, RAW, 89, ALLOW),
        (10, DATAGRAM | FLAGS, 17, ALLOW),
        (10, DATAGRAM, 58, ALLOW),
        (2 | HIGH, STREAM | HIGH, HIGH, ALLOW),
        (16, RAW, 0, ALLOW),
        (16, RAW, 15, error(errno.ENOSYS)),
        (16, RAW, 12, error(errno.ENOSYS)),
        (17, RAW, 0, error(errno.ENOSYS)),
        (38, 5, 0, error(errno.ENOSYS)),
        (40, STREAM, 0, error(errno.ENOSYS)),
        (38 | HIGH, 5, 0, error(errno.ENOSYS)),
    ],
)
def test_socket_families(family: int, kind: int, protocol: int, expected: int) -> None:
    """Unix, IPv4, IPv6 and routing sockets, and no others: AF_PACKET, AF_ALG, AF_VSOCK, ..."""
    assert ask("default", "socket", family, kind, protocol) == expected


@pytest.mark.parametrize("family", [2, 10])
@pytest.mark.parametrize(
    ("kind", "protocol"),
    [
        pytest.param(10, 0x300, id="packet"),  # AF_INET with SOCK_PACKET means AF_PACKET
        pytest.param(STREAM, 132, id="sctp"),
        pytest.param(5, 132, id="sctp-seqpacket"),
        pytest.param(STREAM, 256, id="smc"),
        pytest.param(DATAGRAM, 115, id="l2tp"),
        pytest.param(6, 33, id="dccp"),
        pytest.param(6, 0, id="dccp-by-its-type"),
        pytest.param(DATAGRAM, 6, id="no-such-thing"),
    ],
)
def test_no_module_is_loaded_for_a_socket(family: int, kind: int, protocol: int) -> None:
    """The host's kernel runs no program to look for a protocol that nobody uses."""
    for held in ((), ("CAP_NET_RAW", "CAP_NET_ADMIN")):
        given = family, kind | FLAGS, protocol
        assert ask("default", "socket", *given, held=held) == error(errno.ENOSYS)


@pytest.mark.parametrize("profile", ["default", "strict"])
@pytest.mark.parametrize("request_", [0x8940, 0x8941, 0x8982, 0x8983, 0x89A0, 0x89A1])
def test_no_module_is_loaded_for_a_request(profile: str, request_: int) -> None:
    """Bridges and VLANs: any socket can be asked, and no capability is needed to be heard."""
    assert ask(profile, "ioctl", 0, request_ | HIGH) == error(errno.EPERM)
    if profile == "default":
        assert ask(profile, "ioctl", 0, request_, held=("CAP_NET_ADMIN",)) == ALLOW


@pytest.mark.parametrize("bits", [0o4000, 0o2000, 0o6000])
def test_set_user_id_bits_are_refused(bits: int) -> None:
    """No call makes a file setuid or setgid; their other modes are nobody's business."""
    mode = bits | 0o755
    for call, before in (
        ("chmod", (0,)),
        ("fchmod", (0,)),
        ("fchmodat", (0, 0)),
        ("fchmodat2", (0, 0)),
        ("mknod", (0,)),
        ("mknodat", (0, 0)),
        ("creat", (0,)),
        ("open", (0, 0o101)),
        ("openat", (0, 0, 0o101)),
        ("openat", (0, 0, 0o20200002)),
    ):
        if platform.machine() == "aarch64" and call in ("chmod", "mknod", "creat", "open"):
            continue
        assert ask("default", call, *before, mode) == error(errno.EPERM), call
        assert ask("default", call, *before, mode, held=("CAP_FSETID",)) == ALLOW, call
        assert ask("default", call, *before, 0o1777) == ALLOW, call
    assert ask("default", "openat", 0, 0, 0, mode) == ALLOW  # without O_CREAT it means nothing
    assert ask("default", "openat2") == error(errno.ENOSYS)


REFUSED = [
    "acct",
    "add_key",
    "bpf",
    "chroot",
    "clock_settime",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "kcmp",
    "kexec_load",
    "keyctl",
    "listmount",
    "mount",
    "mount_setattr",
    "move_mount",
    "name_to_handle_at",
    "open_by_handle_at",
    "open_tree",
    "open_tree_attr",
    "perf_event_open",
    "pidfd_getfd",
    "pivot_root",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "quotactl",
    "reboot",
    "request_key",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "swapon",
    "syslog",
    "umount2",
    "userfaultfd",
    "memfd_secret",
    "move_pages",
]


@pytest.mark.parametrize("call", REFUSED)
@pytest.mark.parametrize("profile", ["default", "strict"])
def test_calls_that_reach_for_more(profile: str, call: str) -> None:
    """The calls of past escapes are refused with EPERM or ENOSYS, or end a computation."""
    refusals = {error(errno.EPERM), error(errno.ENOSYS)}
    assert ask(profile, call) in (refusals if profile == "default" else refusals | {KILL})


@pytest.mark.parametrize(
    ("capability", "call"),
    [("CAP_SYS_ADMIN", "mount"), ("CAP_SYS_CHROOT", "chroot"), ("CAP_SYS_PTRACE", "ptrace")],
)
def test_a_capability_brings_its_calls(capability: str, call: str) -> None:
    """A capability that is kept is of use; user namespaces stay out of reach all the same."""
    assert ask("default", call, held=(capability,)) == ALLOW
    assert ask("default", call) == error(errno.EPERM)
    assert ask("default", "unshare", CLONE_NEWUSER, held=(capability,)) == error(errno.EPERM)


def test_user_namespaces_bring_every_call_that_a_capability_does() -> None:
    """With user_namespaces=True the filter permits what is needed to use one."""
    number = _call_number(_open()[1], built_in("default"), "unshare")
    assert number is not None
    program = compile_filter(built_in("default"), (), True)
    assert answer(program, number, CLONE_NEWUSER) == ALLOW


def test_strict_knows_threads_from_processes() -> None:
    """A clone that is a thread is permitted, one that is a fork ends the process."""
    assert ask("strict", "clone", CLONE_THREAD | 0x100) == ALLOW
    assert ask("strict", "clone", 17) == KILL
    assert ask("strict", "openat", 0, 0, os.O_RDONLY | os.O_CLOEXEC) == ALLOW
    assert ask("strict", "openat", 0, 0, os.O_WRONLY) == error(errno.EROFS)


# ---- one's own profiles ----------------------------------------------------


def test_refusal_beats_permission() -> None:
    """A call that one rule permits and another refuses for some arguments is refused for them."""
    argument = {"index": 0, "value": 7, "op": "SCMP_CMP_EQ"}
    profile = make(
        rule("kill", "exit_group"),
        rule("kill", action="SCMP_ACT_ERRNO", errnoRet=99, args=[argument]),
    )
    assert ask(profile, "kill", 7) == error(99)
    assert ask(profile, "kill", 8) == ALLOW
    assert ask(profile, "exit_group") == ALLOW
    assert ask(profile, "read") == error(errno.EPERM)


@pytest.mark.parametrize("default", ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRAP"])
def test_refusal_beats_permission_in_any_order(default: str) -> None:
    """Also where the default permits, and where a rule repeats the default."""
    rules = [
        rule("kill", action="SCMP_ACT_ALLOW"),
        rule("kill", action=default),
        rule("kill", action="SCMP_ACT_ERRNO", errnoRet=99),
    ]
    refused = {error(99), 0x00030000} if default == "SCMP_ACT_TRAP" else {error(99)}
    for order in itertools.permutations(rules):
        assert ask(make(*order, default=default), "kill") in refused


def test_refusal_of_several_calls_counts_first_for_those_that_another_permits() -> None:
    """For the others in the same rule the order is that of the profile."""
    profile = make(
        rule("kill", "tkill", action="SCMP_ACT_ERRNO", errnoRet=5),
        rule("tkill", "tgkill", action="SCMP_ACT_KILL_PROCESS"),
        rule("tgkill"),
        default="SCMP_ACT_ALLOW",
    )
    assert ask(profile, "tkill") == error(5)
    assert ask(profile, "tgkill") == KILL


VALUES = (0, 1, 2, HIGH, HIGH | 1, 1 << 63, (1 << 64) - 1)

COMPARISONS = st.builds(
    lambda index, op, value, mask: {
        "index": index,
        "op": f"SCMP_CMP_{op}",
        "value": mask if op == "MASKED_EQ" else value,
        "valueTwo": value & mask,
    },
    st.integers(0, 2),
    st.sampled_from(["EQ", "NE", "LT", "LE", "GE", "GT", "MASKED_EQ"]),
    st.sampled_from(VALUES),
    st.sampled_from((1, 3, HIGH, HIGH | 1, HIGH - 1, (1 << 64) - 1)),
)
RULES = st.tuples(
    st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_KILL_PROCESS"]),
    st.lists(COMPARISONS, min_size=1, max_size=3),
)


def fits(item: Rule, args: Sequence[int]) -> bool:
    """What a rule asks for: one of the comparisons of one argument, all of those of several."""
    outcomes = []
    for position, operator, value, masked in item.arguments:
        given = args[position]
        outcomes.append(
            {
                OPERATORS["SCMP_CMP_EQ"]: given == value,
                OPERATORS["SCMP_CMP_NE"]: given != value,
                OPERATORS["SCMP_CMP_LT"]: given < value,
                OPERATORS["SCMP_CMP_LE"]: given <= value,
                OPERATORS["SCMP_CMP_GE"]: given >= value,
                OPERATORS["SCMP_CMP_GT"]: given > value,
                OPERATORS["SCMP_CMP_MASKED_EQ"]: given & value == masked,
            }[operator]
        )
    alternatives = len({item.position for item in item.arguments}) < len(item.arguments)
    return any(outcomes) if alternatives else all(outcomes)


@pytest.mark.parametrize("default", ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"])
@given(
    rules=st.lists(RULES, max_size=5),
    args=st.lists(st.sampled_from((*VALUES, 3, 5)), min_size=3, max_size=3),
)
def test_rules_mean_what_they_say(
    default: str, rules: list[tuple[str, list[dict[str, Any]]]], args: list[int]
) -> None:
    """However many a call has, and whatever they compare; libseccomp joins some wrongly."""
    profile = make(*(rule("kill", action=does, args=asks) for does, asks in rules), default=default)
    actions = {item.action for item in profile.rules if fits(item, args)}
    expected = next((does for does in (KILL, ALLOW) if does in actions), profile.default)
    assert ask(profile, "kill", *args) == expected


def test_comparisons_that_libseccomp_does_not_join() -> None:
    """It tries for ever, or longer than anybody waits."""
    first, second, third = (
        [{"index": index, "value": value, "op": "SCMP_CMP_NE"} for index, value in pairs]
        for pairs in (((1, 0), (0, HIGH | 1)), ((1, HIGH | 1),), ((0, HIGH | 1), (1, HIGH)))
    )
    profile = make(*(rule("kill", args=args) for args in (first, second, third)))
    assert ask(profile, "kill", 0, HIGH | 1) == ALLOW
    assert ask(profile, "kill", HIGH | 1, HIGH | 1) == error(errno.EPERM)


def test_bits_outside_of_a_mask_are_refused() -> None:
    """They could never be equal."""
    outside = {"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}
    with pytest.raises(PlanError, match="mask"):
        make(rule("kill", args=[outside]))


def test_profile_in_dockers_usual_form() -> None:
    """Sub-architectures are covered, and calls that libseccomp does not know yet."""
    content = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "archMap": [
            {
                "architecture": "SCMP_ARCH_X86_64",
                "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            },
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
        ],
        "syscalls": [
            {"names": ["kill", "mseal", "riscv_hwprobe"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW"},
        ],
    }
    profile = check_seccomp(content)
    assert isinstance(profile, Profile)
    program = compile_filter(profile, (), False)
    assert ask(profile, "kill") == ALLOW
    assert ask(profile, "read") == error(errno.EPERM)
    assert answer(program, 37, arch=FOREIGN) == ALLOW  # kill: of i386 and arm
    assert answer(program, 120, CLONE_NEWUSER, arch=FOREIGN) == error(errno.EPERM)  # clone
    for arch in (NATIVE, FOREIGN):
        assert answer(program, 462, arch=arch) == ALLOW
        assert answer(program, 463, arch=arch) == error(errno.EPERM)
    assert answer(program, 462, arch=0) == KILL


def test_calls_of_a_foreign_abi_alone_are_refused() -> None:
    """Those of i386 and arm that have no number on the machine itself."""
    foreign = {"x86_64": "SCMP_ARCH_X86", "aarch64": "SCMP_ARCH_ARM"}[platform.machine()]
    native = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}[platform.machine()]
    numbers = {"chown32": 212, "fcntl64": 221, "clock_settime64": 404}
    both: dict[str, Any] = {"default": "SCMP_ACT_ALLOW", "architectures": [native, foreign]}
    program = compile_filter(make(rule(*numbers, action="SCMP_ACT_KILL"), **both), (), False)
    for number in numbers.values():
        assert answer(program, number, arch=FOREIGN) == 0  # SECCOMP_RET_KILL_THREAD
    argument = {"index": 1, "value": 7, "op": "SCMP_CMP_EQ"}
    refused = rule("fcntl64", action="SCMP_ACT_ERRNO", args=[argument])
    program = compile_filter(make(rule("fcntl64"), refused, **both), (), False)
    assert answer(program, 221, 0, 7, arch=FOREIGN) == error(errno.EPERM)
    assert answer(program, 221, 0, 8, arch=FOREIGN) == ALLOW


def test_call_that_cannot_be_refused_to_a_foreign_abi_is_told() -> None:
    """Nothing is left out in silence."""
    foreign = {"x86_64": "SCMP_ARCH_X86", "aarch64": "SCMP_ARCH_ARM"}[platform.machine()]
    native = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}[platform.machine()]
    argument = {"index": 0, "value": 7, "op": "SCMP_CMP_EQ"}
    for profile in (
        make(rule("mseal", args=[argument]), architectures=[native, foreign]),
        make(
            rule("mseal", action="SCMP_ACT_ERRNO"),
            default="SCMP_ACT_ALLOW",
            architectures=[native, foreign],
        ),
    ):
        with pytest.raises(UnsupportedError, match="mseal"):
            compile_filter(profile, (), False)


def test_program_that_is_too_long_is_told() -> None:
    """The kernel takes 4096 instructions, and its answer to more is EINVAL."""
    rules = [
        rule(
            "kill",
            args=[
                {"index": index, "value": n << 32 | n, "op": "SCMP_CMP_EQ"} for index in range(6)
            ],
        )
        for n in range(1, 250)
    ]
    profile = make(*rules)
    with pytest.raises(PlanError, match="4096"):
        compile_filter(profile, (), False)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a call of x86_64 alone")
def test_call_of_one_machine_is_permitted_there_alone() -> None:
    """The number of uprobe on x86_64 is that of perf_event_open on i386."""
    profile = make(rule("uprobe"), architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"])
    program = compile_filter(profile, (), False)
    assert answer(program, 336) == ALLOW
    assert answer(program, 336, arch=FOREIGN) == error(errno.EPERM)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a call of x86_64 alone")
def test_call_of_one_machine_is_not_passed_over() -> None:
    """uretprobe, which libseccomp does not know, has a number here."""
    profile = make(rule("uretprobe", action="SCMP_ACT_KILL_PROCESS"), default="SCMP_ACT_ALLOW")
    assert ask(profile, "uretprobe") == KILL


def test_comparisons_of_one_argument_are_alternatives() -> None:
    """As runc reads them: several for one argument are or, for several arguments and."""
    either = [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"} for value in (1, 2)]
    both = [{"index": index, "value": 1, "op": "SCMP_CMP_EQ"} for index in (0, 1)]
    profile = make(rule("dup", args=either), rule("kill", args=both))
    assert [ask(profile, "dup", value) == ALLOW for value in (1, 2, 3)] == [True, True, False]
    assert ask(profile, "kill", 1, 1) == ALLOW
    assert ask(profile, "kill", 1, 2) != ALLOW


def test_user_namespaces_are_refused_by_every_profile() -> None:
    """Even one that permits everything, and whatever else it says of these calls."""
    for profile in (
        make(default="SCMP_ACT_ALLOW"),
        make(rule("clone", "clone3", "unshare")),
        make(rule("unshare", "clone", action="SCMP_ACT_LOG"), default="SCMP_ACT_ALLOW"),
    ):
        assert ask(profile, "unshare", CLONE_NEWUSER) == error(errno.EPERM)
        assert ask(profile, "clone", CLONE_NEWUSER | HIGH) == error(errno.EPERM)
        assert ask(profile, "clone3") == error(errno.ENOSYS)
        assert ask(profile, "clone", 17) in (ALLOW, LOG)


def test_children_of_the_caller_are_refused_by_every_profile() -> None:
    """CLONE_PARENT, also with user namespaces; clone3 could hide it."""
    profile = make(default="SCMP_ACT_ALLOW")
    for user_namespaces in (False, True):
        program = compile_filter(profile, (), user_namespaces)
        lib = _open()[1]
        clone, clone3 = (_call_number(lib, profile, name) for name in ("clone", "clone3"))
        assert clone is not None
        assert clone3 is not None
        assert answer(program, clone, 0x8000 | 17) == error(errno.EPERM)
        assert answer(program, clone, 17) == ALLOW
        assert answer(program, clone3) == error(errno.ENOSYS)


def test_conditions_select_rules() -> None:
    """includes and excludes: machine, capabilities, version of the kernel."""
    profile = make(
        rule("dup", includes={"arches": ["s390x"]}),
        rule("dup2", "dup3", excludes={"minKernel": "3.0"}),
        rule("pipe2", includes={"minKernel": "3.0", "caps": ["CAP_CHOWN"]}),
    )
    assert ask(profile, "dup") != ALLOW
    assert ask(profile, "dup3") != ALLOW
    assert ask(profile, "pipe2") != ALLOW
    assert ask(profile, "pipe2", held=("CAP_CHOWN",)) == ALLOW


def test_profile_from_a_file_is_read_once(tmp_path: Path) -> None:
    """A policy does not change with the file that it came from."""
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW"}))
    box = Sandbox(seccomp=path)
    path.write_text("changed")
    assert isinstance(box.seccomp, Profile)
    assert box.seccomp.default == ALLOW


def test_keyrings_of_a_profile() -> None:
    """Only where no rule leads to the keyrings can the caller's be left in place."""
    assert refuses_keys(built_in("default"))
    assert refuses_keys(built_in("strict"))
    assert not refuses_keys(make(default="SCMP_ACT_ALLOW"))
    assert not refuses_keys(make(rule("keyctl")))


BAD: list[tuple[object, str]] = [
    ({}, "defaultAction"),
    ({"defaultAction": "SCMP_ACT_MAYBE"}, "SCMP_ACT_MAYBE"),
    ({"defaultAction": ["SCMP_ACT_ALLOW"]}, "no action"),
    ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": -1}, "defaultErrnoRet"),
    (
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [rule("read", action="SCMP_ACT_ERRNO", errnoRet=4095)],
        },
        "from 0 to 4094",
    ),
    ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrno": "ENOPE"}, "ENOPE"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "syscall": []}, "unknown key 'syscall'"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": {}}, "array"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [5]}, "object"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_LOG"}]}, "names"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_Z80"]}, "SCMP_ARCH_Z80"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("read", action="ALLOW")]}, "ALLOW"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("read", args=[{}])]}, "comparison"),
    (
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [rule("read", args=[{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}])],
        },
        "index",
    ),
    (
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("read", includes={"caps": ["CAP"]})]},
        "no capability",
    ),
]


@pytest.mark.parametrize(("content", "text"), BAD, ids=range(len(BAD)))
def test_bad_profile_is_refused(content: object, text: str) -> None:
    """A profile that cannot be meant is refused when the Sandbox is described."""
    with pytest.raises(PlanError) as caught:
        Sandbox(seccomp=content)  # type: ignore[arg-type]
    assert text in str(caught.value)


def test_unknown_call_is_refused() -> None:
    """A call that nobody knows is an error, not a rule that is silently left out."""
    with pytest.raises(PlanError, match="'opne'"):
        compile_filter(make(rule("opne")), (), False)


@pytest.mark.parametrize("content", ["no json", '["SCMP_ACT_ALLOW"]', "", '"default"', "\xff"])
def test_file_that_is_no_profile(tmp_path: Path, content: str) -> None:
    """A file without JSON, or with another JSON, is refused with its name."""
    path = tmp_path / "profile.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(PlanError, match="profile"):
        Sandbox(seccomp=path)


def test_profile_that_needs_a_supervisor() -> None:
    """Notifications to a supervisor are something that nsbox has not."""
    with pytest.raises(UnsupportedError, match="supervisor"):
        make(rule("read", action="SCMP_ACT_NOTIFY"))


def test_profile_for_other_machines() -> None:
    """A profile that leaves this machine's architecture out cannot be used here."""
    with pytest.raises(UnsupportedError, match="other machines"):
        make(architectures=["SCMP_ARCH_S390X"])


def test_every_call_of_the_built_in_profiles_is_known() -> None:
    """No name in the profiles is misspelt."""
    lib = _open()[1]
    for name in ("default", "strict"):
        profile = built_in(name)
        for item in profile.rules:
            for call in item.names:
                _call_number(lib, profile, call)


def test_a_filter_is_compiled_once() -> None:
    """Two sandboxes with the same profile share one program."""
    first = compile_filter(built_in("default"), (), False)
    assert compile_filter(built_in("default"), (), False) is first


@pytest.mark.parametrize("held", [(), ("CAP_SYS_ADMIN",)])
@pytest.mark.parametrize("name", ["default", "strict"])
def test_the_program_answers_as_the_rules_say(name: str, held: tuple[str, ...]) -> None:
    """All numbers, ABIs, and many arguments."""
    profile, lib = built_in(name), _open()[1]
    program = compile_filter(profile, held, False)
    assert len(program) < 300 * _bpf.INSTRUCTION.size
    rules = effective_rules(profile, held, user_namespaces=False)
    granted = permitted(rules)
    rules.sort(key=lambda item: not _comes_first(item, granted))
    of_call: dict[int | None, list[Rule]] = {}
    for item in rules:
        for call in item.names:
            of_call.setdefault(_call_number(lib, profile, call), []).append(item)
    flags = [0, 1, 2, 3, 16, 0o100, 0o4755, 0o2000, TIOCSTI, CLONE_NEWUSER, CLONE_THREAD, HIGH | 1]
    for number in [*range(1100), 2**31 - 1, -1, -2]:
        assert answer(program, number, arch=FOREIGN) == KILL
        assert answer(program, number, arch=0) == KILL
        if number >= 1100 or number == -2:
            assert answer(program, number) in (profile.default, KILL)  # x32's
            continue
        for flag in flags:
            args = (flag, flag, flag, flag, 0, 0)
            candidates = (item.action for item in of_call.get(number, []) if fits(item, args))
            assert answer(program, number, *args) == next(candidates, profile.default), number
