"""
Profiles of system-call filters, in the JSON format of OCI and Docker.

A :class:`Profile` is a value, checked when it is made; what becomes of it for
the kernel is made elsewhere, when it is needed. Two come with nsbox: "default"
for real programs, and "strict" for pure computation.

Where rules of a profile meet in one call, the refusing one wins, as if the two
stood in filters of their own. So a profile can permit ioctl(2) and refuse some
requests of it, which the format could not say otherwise.
"""

import errno
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from ._constants import CAPABILITIES
from ._values import PathArg, check_path
from .errors import PlanError, PlanTypeError, UnsupportedError

BUILT_IN: Final = ("default", "strict")

# Actions: SECCOMP_RET_* of linux/seccomp.h.
ERRNO: Final = 0x00050000
ALLOW: Final = 0x7FFF0000
KILL_PROCESS: Final = 0x80000000
_ACTIONS: Final = {
    "SCMP_ACT_KILL": 0,
    "SCMP_ACT_KILL_THREAD": 0,
    "SCMP_ACT_KILL_PROCESS": KILL_PROCESS,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": ERRNO,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": ALLOW,
}
PERMITTING: Final = (ALLOW, _ACTIONS["SCMP_ACT_LOG"])

OPERATORS: Final = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}

# AUDIT_ARCH_* of linux/audit.h, as libseccomp names and numbers them.
ARCHITECTURES: Final = {
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
MACHINES: Final = {
    "x86_64": ("SCMP_ARCH_X86_64", "amd64"),
    "aarch64": ("SCMP_ARCH_AARCH64", "arm64"),
}

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
        content = _load(name)
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
    # Not by importlib.resources, whose import takes a fifth of the time of nsbox's.
    path = os.path.join(os.path.dirname(__file__), "profiles", f"{name}.json")
    return parse_profile(name, _load(path))


def _load(path: str) -> object:
    import json  # not needed by programs that import nsbox and make no Sandbox

    with open(path, encoding="utf-8") as file:
        return json.load(file)


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


_MAX_ERRNO: Final = 4095  # of the kernel; libseccomp takes less than that


def _error_number(where: str, holder: Mapping[str, Any], number: str, name: str) -> int:
    """Return the error number of an action; EPERM is the format's default."""
    if holder.get(number) is not None:
        return _number(f"{where}: {number}", holder[number], _MAX_ERRNO)
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
    return action | number if action == ERRNO else action


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
        if name not in ARCHITECTURES:
            raise PlanError(f"{where}: {name!r} is no architecture")


def _native(where: str) -> str:
    machine = os.uname().machine
    if machine not in MACHINES:
        raise UnsupportedError(f"{where}: no system-call filter for {machine}")
    return MACHINES[machine][0]


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
    if item.get("op") not in OPERATORS:
        raise PlanError(f"{where}: {item.get('op')!r} is no comparison")
    argument = Argument(
        _number(f"{where}: index", item.get("index"), 6),
        OPERATORS[item["op"]],
        _number(f"{where}: value", item.get("value"), 1 << 64),
        _number(f"{where}: valueTwo", item.get("valueTwo", 0), 1 << 64),
    )
    # Never true to the kernel; libseccomp drops those bits, and it would be true.
    if item["op"] == "SCMP_CMP_MASKED_EQ" and argument.masked & ~argument.value:
        raise PlanError(f"{where}: valueTwo has bits outside the mask, which is value")
    return argument


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


# ---- what a plan asks -------------------------------------------------------


def name_of(profile: str | Profile) -> str:
    """Return what to call a profile."""
    return profile if isinstance(profile, str) else profile.name


def permitted(rules: Sequence[Rule]) -> set[str]:
    """Return the names of calls that some rule permits."""
    return {name for rule in rules if rule.action in PERMITTING for name in rule.names}


_KEYS: Final = frozenset(("add_key", "keyctl", "request_key"))


@lru_cache(maxsize=64)
def refuses_keys(profile: str | Profile) -> bool:
    """Tell whether no rule lets a payload reach the kernel's keyrings; none of ours does."""
    if isinstance(profile, str):
        return True
    return profile.default not in PERMITTING and _KEYS.isdisjoint(permitted(profile.rules))
