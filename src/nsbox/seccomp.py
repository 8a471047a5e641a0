"""
System-call filters: profiles in the JSON format of OCI and Docker, compiled by libseccomp.

A :class:`Profile` is a value, checked when it is made. :func:`compile_filter`
turns it into a program for the kernel, once for each process; a spawn only
installs it. Two profiles come with nsbox: "default" for real programs, and
"strict" for pure computation.

Where rules of a profile meet in one call, the refusing one wins, as if the two
stood in filters of their own. So a profile can permit ioctl(2) and refuse some
requests of it, which neither libseccomp nor the OCI format can say otherwise.

The library is opened when the first profile is compiled, not at import.
"""

import errno
import json
import os
import platform
import re
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any, Final, NamedTuple

from ._constants import CAPABILITIES, CLONE_NEWUSER
from ._values import PathArg, check_path
from .errors import PlanError, PlanTypeError, UnsupportedError

LIBRARY: Final = "libseccomp.so.2"
BUILT_IN: Final = ("default", "strict")

# Actions: SECCOMP_RET_* of linux/seccomp.h.
_ERRNO: Final = 0x00050000
_ALLOW: Final = 0x7FFF0000
_KILL_PROCESS: Final = 0x80000000
_ACTIONS: Final = {
    "SCMP_ACT_KILL": 0,
    "SCMP_ACT_KILL_THREAD": 0,
    "SCMP_ACT_KILL_PROCESS": _KILL_PROCESS,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": _ERRNO,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": _ALLOW,
}
_PERMITTING: Final = (_ALLOW, _ACTIONS["SCMP_ACT_LOG"])

_OPERATORS: Final = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}

# AUDIT_ARCH_* of linux/audit.h, as libseccomp names and numbers them.
_ARCHITECTURES: Final = {
    "SCMP_ARCH_X86": 0x40000003,
    "SCMP_ARCH_X86_64": 0xC000003E,
    "SCMP_ARCH_X32": 0x4000003E,
    "SCMP_ARCH_ARM": 0x40000028,
    "SCMP_ARCH_AARCH64": 0xC00000B7,
    "SCMP_ARCH_MIPS": 0x00000008,
    "SCMP_ARCH_MIPS64": 0x80000008,
    "SCMP_ARCH_MIPS64N32": 0xA0000008,
    "SCMP_ARCH_MIPSEL": 0x40000008,
    "SCMP_ARCH_MIPSEL64": 0xC0000008,
    "SCMP_ARCH_MIPSEL64N32": 0xE0000008,
    "SCMP_ARCH_PARISC": 0x0000000F,
    "SCMP_ARCH_PARISC64": 0x8000000F,
    "SCMP_ARCH_PPC": 0x00000014,
    "SCMP_ARCH_PPC64": 0x80000015,
    "SCMP_ARCH_PPC64LE": 0xC0000015,
    "SCMP_ARCH_RISCV64": 0xC00000F3,
    "SCMP_ARCH_S390": 0x00000016,
    "SCMP_ARCH_S390X": 0x80000016,
}
# Machine -> its name in a profile's "architectures", and in "includes" and "excludes".
_MACHINES: Final = {
    "x86_64": ("SCMP_ARCH_X86_64", "amd64"),
    "aarch64": ("SCMP_ARCH_AARCH64", "arm64"),
}

# Calls that libseccomp 2.5.4 does not know; from 424 on the numbers are the same everywhere.
_NEWER: Final = {
    "futex_waitv": 449,
    "set_mempolicy_home_node": 450,
    "cachestat": 451,
    "fchmodat2": 452,
    "map_shadow_stack": 453,
    "futex_wake": 454,
    "futex_wait": 455,
    "futex_requeue": 456,
    "statmount": 457,
    "listmount": 458,
    "lsm_get_self_attr": 459,
    "lsm_set_self_attr": 460,
    "lsm_list_modules": 461,
    "mseal": 462,
    "setxattrat": 463,
    "getxattrat": 464,
    "listxattrat": 465,
    "removexattrat": 466,
    "open_tree_attr": 467,
    "file_getattr": 468,
    "file_setattr": 469,
}
# Calls of other architectures, or of x86_64 alone, that it does not know either.
_ELSEWHERE: Final = frozenset(("riscv_hwprobe", "uretprobe", "uprobe"))

_PROFILE_KEYS: Final = frozenset(
    (
        "archMap",
        "architectures",
        "comment",
        "defaultAction",
        "defaultErrno",
        "defaultErrnoRet",
        "flags",
        "listenerMetadata",
        "listenerPath",
        "syscalls",
    )
)
_RULE_KEYS: Final = frozenset(
    (
        "action",
        "args",
        "comment",
        "errno",
        "errnoRet",
        "excludes",
        "includes",
        "name",
        "names",
    )
)
_FILTER_KEYS: Final = frozenset(("arches", "caps", "minKernel"))


class Argument(NamedTuple):
    """A comparison of one argument of a system call; ``masked`` is the second value."""

    position: int
    operator: int
    value: int
    masked: int


class Condition(NamedTuple):
    """When a rule counts, or does not: machines, capabilities held, kernel of at least."""

    arches: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    kernel: tuple[int, int] | None = None


class Rule(NamedTuple):
    """What to do with some calls if all comparisons of their arguments hold."""

    names: tuple[str, ...]
    action: int
    arguments: tuple[Argument, ...]
    includes: Condition
    excludes: Condition


class Profile(NamedTuple):
    """
    A checked profile: immutable, comparable, picklable.

    Args:
        name: Where it came from, for messages.
        default: Action for calls that no rule names.
        architectures: SCMP_ARCH_* names of ABIs that it covers; empty: the machine's own.
        rules: The rules, in the order of the profile.
    """

    name: str
    default: int
    architectures: tuple[str, ...]
    rules: tuple[Rule, ...]


def check_seccomp(value: object) -> "str | Profile | None":
    """
    Return a normalised ``seccomp=``: the name of a built-in profile, a Profile, or None.

    A path is read now and never again: whoever can write there later cannot
    change the policy.

    Raises:
        PlanError: If a file cannot be read, is no JSON, or no profile.
    """
    if value is None or isinstance(value, Profile):
        return value
    if isinstance(value, str) and value in BUILT_IN:
        return value
    if isinstance(value, Mapping):
        return parse_profile("seccomp", value)
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise PlanTypeError(
            f"seccomp: must be 'default', 'strict', a path, a mapping or None, not {value!r}"
        )
    return read_profile(value)


def read_profile(path: PathArg) -> Profile:
    """
    Read a profile from a JSON file.

    Raises:
        PlanError: If it cannot be read, is no JSON, or no profile.
    """
    name = check_path("seccomp", path)
    try:
        with open(name, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        known = ", ".join(map(repr, BUILT_IN))
        raise PlanError(
            f"seccomp: {name!r} is neither {known} nor a file that can be read: {error.strerror}"
        ) from None
    except ValueError as error:
        raise PlanError(f"seccomp: {name!r} is no JSON: {error}") from None
    return parse_profile(name, content)


@lru_cache(maxsize=len(BUILT_IN))
def built_in(name: str) -> Profile:
    """Return one of the profiles that come with nsbox."""
    text = (resources.files(__package__) / "profiles" / f"{name}.json").read_text("utf-8")
    return parse_profile(name, json.loads(text))


# ---- parsing -------------------------------------------------------------


def parse_profile(name: str, content: object) -> Profile:
    """
    Return a profile from the mapping that its JSON is.

    Raises:
        PlanError: For an unknown key, action, operator, architecture or capability.
        UnsupportedError: If it needs a supervisor (SCMP_ACT_NOTIFY), or is for other machines.
    """
    profile = _mapping(f"seccomp {name}", content, _PROFILE_KEYS)
    where = f"seccomp {name}"
    if profile.get("listenerPath") or profile.get("flags"):
        raise UnsupportedError(f"{where}: 'listenerPath' and 'flags' are not supported")
    if "defaultAction" not in profile:
        raise PlanError(f"{where}: 'defaultAction' is missing")
    number = _error_number(where, profile, "defaultErrnoRet", "defaultErrno")
    return Profile(
        name,
        _action(where, profile["defaultAction"], number),
        _architectures(where, profile),
        tuple(
            _rule(f"{where}: syscalls[{index}]", rule)
            for index, rule in enumerate(_sequence(where, profile.get("syscalls")))
        ),
    )


def _mapping(where: str, value: object, keys: frozenset[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise PlanError(f"{where}: must be an object, not {value!r}")
    for key in value:
        if key not in keys:
            raise PlanError(f"{where}: unknown key {key!r}")
    return value


def _sequence(where: str, value: object) -> Sequence[Any]:
    if value is None:
        return ()
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise PlanError(f"{where}: must be an array, not {value!r}")
    return value


def _texts(where: str, value: object) -> tuple[str, ...]:
    items = _sequence(where, value)
    for item in items:
        if not isinstance(item, str):
            raise PlanError(f"{where}: must be a string, not {item!r}")
    return tuple(items)


def _number(where: str, value: object, limit: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
        raise PlanError(f"{where}: must be a number from 0 to {limit - 1}, not {value!r}")
    return value


def _error_number(where: str, holder: Mapping[str, Any], number: str, name: str) -> int:
    """Return the error number of an action; EPERM is the format's default."""
    if holder.get(number) is not None:
        return _number(f"{where}: {number}", holder[number], 4096)
    text = holder.get(name)
    if not text:
        return errno.EPERM
    found = getattr(errno, text, None) if isinstance(text, str) else None
    if not isinstance(found, int):
        raise PlanError(f"{where}: {name} {text!r} is no name of an error")
    return found


def _action(where: str, name: object, number: int) -> int:
    if name in ("SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE"):
        raise UnsupportedError(f"{where}: {name} needs a supervisor, which nsbox has not")
    if not isinstance(name, str) or name not in _ACTIONS:
        raise PlanError(f"{where}: {name!r} is no action; known are {', '.join(_ACTIONS)}")
    action = _ACTIONS[name]
    return action | number if action == _ERRNO else action


def _architectures(where: str, profile: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the ABIs that a profile covers, the machine's own among them."""
    native = _native(where)
    names = list(_texts(f"{where}: architectures", profile.get("architectures")))
    mapped = _sequence(f"{where}: archMap", profile.get("archMap"))
    keys = frozenset(("architecture", "subArchitectures"))
    for index, item in enumerate(mapped):
        entry = _mapping(f"{where}: archMap[{index}]", item, keys)
        below = _texts(f"{where}: subArchitectures", entry.get("subArchitectures"))
        found = (*_texts(f"{where}: architecture", [entry.get("architecture")]), *below)
        _check_architectures(where, found)
        names += found if found[0] == native else ()
    _check_architectures(where, names)
    if (names or mapped) and native not in names:
        raise UnsupportedError(f"{where}: is for other machines than this one, {native}")
    return tuple(dict.fromkeys(names))


def _check_architectures(where: str, names: Sequence[object]) -> None:
    for name in names:
        if name not in _ARCHITECTURES:
            raise PlanError(f"{where}: {name!r} is no architecture")


def _native(where: str) -> str:
    machine = platform.machine()
    if machine not in _MACHINES:
        raise UnsupportedError(f"{where}: no system-call filter for {machine}")
    return _MACHINES[machine][0]


def _rule(where: str, content: object) -> Rule:
    rule = _mapping(where, content, _RULE_KEYS)
    names = _texts(f"{where}: names", rule.get("names"))
    if rule.get("name"):
        names += _texts(f"{where}: name", [rule["name"]])
    if not names:
        raise PlanError(f"{where}: names no system call")
    number = _error_number(where, rule, "errnoRet", "errno")
    return Rule(
        names,
        _action(where, rule.get("action"), number),
        tuple(_argument(f"{where}: args", item) for item in _sequence(where, rule.get("args"))),
        _condition(f"{where}: includes", rule.get("includes")),
        _condition(f"{where}: excludes", rule.get("excludes")),
    )


def _argument(where: str, content: object) -> Argument:
    item = _mapping(where, content, frozenset(("index", "op", "value", "valueTwo")))
    if item.get("op") not in _OPERATORS:
        raise PlanError(f"{where}: {item.get('op')!r} is no comparison")
    return Argument(
        _number(f"{where}: index", item.get("index"), 6),
        _OPERATORS[item["op"]],
        _number(f"{where}: value", item.get("value"), 1 << 64),
        _number(f"{where}: valueTwo", item.get("valueTwo", 0), 1 << 64),
    )


def _condition(where: str, content: object) -> Condition:
    if content is None:
        return Condition()
    item = _mapping(where, content, _FILTER_KEYS)
    capabilities = _texts(f"{where}: caps", item.get("caps"))
    for name in capabilities:
        if name not in CAPABILITIES:
            raise PlanError(f"{where}: {name!r} is no capability")
    kernel = None
    if item.get("minKernel"):
        match = re.fullmatch(r"([0-9]{1,4})\.([0-9]{1,4})(\.[0-9]+)?", str(item["minKernel"]))
        if match is None:
            raise PlanError(f"{where}: minKernel {item['minKernel']!r} is no version")
        kernel = int(match[1]), int(match[2])
    return Condition(_texts(f"{where}: arches", item.get("arches")), capabilities, kernel)


# ---- what counts here ----------------------------------------------------


def effective_rules(
    profile: Profile, capabilities: Sequence[str], *, user_namespaces: bool
) -> list[Rule]:
    """
    Return the rules that count for a payload on this machine.

    Args:
        profile: Whose rules.
        capabilities: What the payload keeps.
        user_namespaces: It may make user namespaces, and has every capability in
            them; otherwise it is kept from that whatever the profile says.
    """
    held = set(CAPABILITIES if user_namespaces else capabilities)
    rules = [rule for rule in profile.rules if _counts(rule, held)]
    return rules if user_namespaces else [*rules, *_NO_USER_NAMESPACES]


def _counts(rule: Rule, held: set[str]) -> bool:
    arch = _MACHINES[platform.machine()][1]
    kernel = tuple(int(part) for part in re.findall(r"[0-9]+", os.uname().release)[:2])
    included, excluded = rule.includes, rule.excludes
    return not (
        (included.arches and arch not in included.arches)
        or not held.issuperset(included.capabilities)
        or (included.kernel is not None and kernel < included.kernel)
        or arch in excluded.arches
        or not held.isdisjoint(excluded.capabilities)
        or (excluded.kernel is not None and kernel >= excluded.kernel)
    )


_NO_USER_NAMESPACES: Final = (
    Rule(
        ("clone", "unshare"),
        _ERRNO | errno.EPERM,
        (Argument(0, _OPERATORS["SCMP_CMP_MASKED_EQ"], CLONE_NEWUSER, CLONE_NEWUSER),),
        Condition(),
        Condition(),
    ),
    # Its flags lie in memory, where a filter cannot look.
    Rule(("clone3",), _ERRNO | errno.ENOSYS, (), Condition(), Condition()),
)

_KEYS: Final = frozenset(("add_key", "keyctl", "request_key"))


@lru_cache(maxsize=64)
def refuses_keys(profile: str | Profile) -> bool:
    """Tell whether no rule lets a payload reach the kernel's keyrings; none of ours does."""
    if isinstance(profile, str):
        return True
    return profile.default not in _PERMITTING and _KEYS.isdisjoint(_permitted(profile.rules))


# ---- compiling -----------------------------------------------------------


def program_of(profile: str | Profile | None, capabilities: int, user_namespaces: bool) -> bytes:
    """Return the program for a plan; empty without a profile. See :func:`compile_filter`."""
    if profile is None:
        return b""
    if isinstance(profile, str):
        profile = built_in(profile)
    held = tuple(name for bit, name in enumerate(CAPABILITIES) if capabilities >> bit & 1)
    return compile_filter(profile, held, user_namespaces)


def name_of(profile: str | Profile) -> str:
    """Return what to call a profile."""
    return profile if isinstance(profile, str) else profile.name


@lru_cache(maxsize=64)
def compile_filter(profile: Profile, capabilities: tuple[str, ...], user_namespaces: bool) -> bytes:
    """
    Return the program that the kernel gets: an array of ``struct sock_filter``.

    Compiled once for each process and set of arguments.

    Raises:
        PlanError: If the profile names a call that nobody knows.
        UnsupportedError: If libseccomp is missing.
    """
    rules = effective_rules(profile, capabilities, user_namespaces=user_namespaces)
    refusing = [rule for rule in rules if _comes_first(rule, profile, rules)]
    others = [rule for rule in rules if rule not in refusing]
    program = _build(profile, profile.default, others)
    return _chain(_build(profile, _ALLOW, refusing), program) if refusing else program


def _permitted(rules: Sequence[Rule]) -> set[str]:
    return {name for rule in rules if rule.action in _PERMITTING for name in rule.names}


def _comes_first(rule: Rule, profile: Profile, rules: Sequence[Rule]) -> bool:
    """Tell whether a rule refuses calls that another permits: libseccomp would drop one of them."""
    if rule in _NO_USER_NAMESPACES:
        return True
    if rule.action in _PERMITTING or profile.default in _PERMITTING:
        return False
    return not _permitted(rules).isdisjoint(rule.names)


_RETURN: Final = 0x06  # BPF_RET | BPF_K
_JUMP: Final = 0x05  # BPF_JMP | BPF_JA
_INSTRUCTION: Final = struct.Struct("=HBBI")
INSTRUCTION_SIZE: Final = _INSTRUCTION.size


def _chain(first: bytes, second: bytes) -> bytes:
    """Return one program from two: what the first allows goes on to the second."""
    length = len(first) // _INSTRUCTION.size
    joined = []
    for index, (code, true, false, value) in enumerate(_INSTRUCTION.iter_unpack(first)):
        if code == _RETURN and value == _ALLOW:
            code, value = _JUMP, length - index - 1
        joined.append(_INSTRUCTION.pack(code, true, false, value))
    return b"".join(joined) + second


@lru_cache(maxsize=1)
def _open() -> tuple[Any, Any]:
    """Return cffi's ``ffi`` and ``lib`` of libseccomp."""
    from ._libseccomp import ffi

    try:
        return ffi, ffi.dlopen(LIBRARY)
    except OSError as error:
        raise UnsupportedError(
            f"the system-call filter needs {LIBRARY} (Debian, Ubuntu: apt-get install libseccomp2; "
            f"Fedora, Alpine: libseccomp), or seccomp=None to go without: {error}"
        ) from None


_BAD_ARCHITECTURE: Final = 2  # SCMP_FLTATR_ACT_BADARCH
_OPTIMIZE: Final = 8  # SCMP_FLTATR_CTL_OPTIMIZE, libseccomp 2.5
_BINARY_TREE: Final = 2


def _build(profile: Profile, default: int, rules: Sequence[Rule]) -> bytes:
    # First, so that a program out of descriptors hears of that, and not of a missing library.
    with open(os.memfd_create("seccomp"), "rb") as file:
        ffi, lib = _open()
        context = lib.seccomp_init(default)
        if not context:
            raise UnsupportedError("seccomp_init failed: libseccomp does not know the action")
        try:
            _add_rules(ffi, lib, context, profile, [r for r in rules if r.action != default])
            _check(lib.seccomp_export_bpf(context, file.fileno()), "seccomp_export_bpf")
        finally:
            lib.seccomp_release(context)
        file.seek(0)
        return file.read()


def _add_rules(ffi: Any, lib: Any, context: Any, profile: Profile, rules: Sequence[Rule]) -> None:
    # Foreign ABIs, and with them the x32 numbers, end the process: their calls are not
    # the ones that the rules speak of. To list them instead would double the program.
    _check(lib.seccomp_attr_set(context, _BAD_ARCHITECTURE, _KILL_PROCESS), "seccomp_attr_set")
    # The length of the path to an answer counts, and not that of the program: the kernel
    # asks once for each call at each install. An older library makes a list instead.
    lib.seccomp_attr_set(context, _OPTIMIZE, _BINARY_TREE)
    for name in profile.architectures:
        ret = lib.seccomp_arch_add(context, _ARCHITECTURES[name])
        _check(0 if ret == -errno.EEXIST else ret, f"seccomp_arch_add {name}")
    for rule in rules:
        _add_rule(ffi, lib, context, profile, rule)


def _check(ret: int, call: str) -> None:
    if ret < 0:
        raise UnsupportedError(f"{call}: {os.strerror(-ret)}")


def _add_rule(ffi: Any, lib: Any, context: Any, profile: Profile, rule: Rule) -> None:
    positions = [argument.position for argument in rule.arguments]
    # Comparisons of one argument are alternatives, those of several hold together (as in runc).
    alternatives = [rule.arguments]
    if len(set(positions)) < len(positions):
        alternatives = [(argument,) for argument in rule.arguments]
    for name in rule.names:
        number = _call_number(lib, profile, name)
        if number is None:
            continue
        for arguments in alternatives:
            array = ffi.new("struct scmp_arg_cmp[]", [tuple(item) for item in arguments])
            ret = lib.seccomp_rule_add_array(context, rule.action, number, len(arguments), array)
            _check(0 if ret == -errno.EEXIST else ret, f"seccomp_rule_add {name}")


def _call_number(lib: Any, profile: Profile, name: str) -> int | None:
    """Return the number of a system call; None if this architecture does not have it."""
    if name in _NEWER:
        return _NEWER[name]
    if name in _ELSEWHERE:
        return None
    number = int(lib.seccomp_syscall_resolve_name(os.fsencode(name)))
    if number == -1:
        raise PlanError(
            f"seccomp {profile.name}: {name!r} is no system call that nsbox or libseccomp knows"
        )
    return number if number >= 0 else None
