"""
From a profile to a program for the kernel, by the system's libseccomp.

Compiled once for each process and kind of payload; a spawn only installs the
program. The library is opened when the first one is compiled, not at import.
"""

import errno
import os
import re
import select
import time
from collections import Counter
from collections.abc import Sequence, Set
from functools import lru_cache
from typing import Any, Final

from . import _bpf
from ._constants import CAPABILITIES, CLONE_NEWUSER, CLONE_PARENT
from .errors import PlanError, UnsupportedError
from .seccomp import (
    ARCHITECTURES,
    ERRNO,
    KILL_PROCESS,
    MACHINES,
    OPERATORS,
    PERMITTING,
    Argument,
    Condition,
    Profile,
    Rule,
    built_in,
    permitted,
)

SONAME: Final = "libseccomp.so.2"

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
    "listns": 470,
}
# Calls that it does not know either, and their numbers where this machine has them.
_SOME_MACHINES: Final[dict[str, dict[str, int]]] = {
    "riscv_hwprobe": {},
    "uretprobe": {"x86_64": 335},
    "uprobe": {"x86_64": 336},
}
_UNKNOWN: Final = {*_NEWER, *_SOME_MACHINES}


# ---- what counts here ----------------------------------------------------


def effective_rules(
    profile: Profile,
    capabilities: Sequence[str],
    *,
    user_namespaces: bool,
    refused: Sequence[Rule] = (),
) -> list[Rule]:
    """
    Return the rules that count for a payload on this machine.

    Args:
        profile: Whose rules.
        capabilities: What the payload keeps.
        user_namespaces: It may make user namespaces, and has every capability in
            them; otherwise it is kept from that whatever the profile says.
        refused: Rules that hold whatever the profile says.
    """
    held = set(CAPABILITIES if user_namespaces else capabilities)
    rules = [rule for rule in profile.rules if _counts(rule, held)]
    return [*rules, *_whatever_it_says(user_namespaces, refused)]


def _whatever_it_says(user_namespaces: bool, refused: Sequence[Rule]) -> Sequence[Rule]:
    nested = () if user_namespaces else _NO_USER_NAMESPACES
    return (*_NO_STRAY_CHILDREN, *nested, *refused)


def _counts(rule: Rule, held: set[str]) -> bool:
    arch = MACHINES[os.uname().machine][1]
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


def _refuse_flag(flag: int, *names: str) -> Rule:
    argument = Argument(0, OPERATORS["SCMP_CMP_MASKED_EQ"], flag, flag)
    return Rule(names, ERRNO | errno.EPERM, (argument,), Condition(), Condition())


# A child of the caller, which does not know of it: PID 1 of its namespace could never end.
_NO_STRAY_CHILDREN: Final = (
    _refuse_flag(CLONE_PARENT, "clone"),
    # Its flags lie in memory, where a filter cannot look.
    Rule(("clone3",), ERRNO | errno.ENOSYS, (), Condition(), Condition()),
)
_NO_USER_NAMESPACES: Final = (_refuse_flag(CLONE_NEWUSER, "clone", "unshare"),)

# ---- compiling -----------------------------------------------------------


def program_of(
    profile: str | Profile | None,
    capabilities: int,
    user_namespaces: bool,
    refused: tuple[Rule, ...] = (),
) -> bytes:
    """Return the program for a plan; empty without a profile. See :func:`compile_filter`."""
    if profile is None:
        return b""
    if isinstance(profile, str):
        profile = built_in(profile)
    held = tuple(name for bit, name in enumerate(CAPABILITIES) if capabilities >> bit & 1)
    return compile_filter(profile, held, user_namespaces, refused)


@lru_cache(maxsize=64)
def compile_filter(
    profile: Profile,
    capabilities: tuple[str, ...],
    user_namespaces: bool,
    refused: tuple[Rule, ...] = (),
) -> bytes:
    """
    Return the program that the kernel gets: an array of ``struct sock_filter``.

    Compiled once for each process and set of arguments.

    Raises:
        PlanError: If the profile names a call that nobody knows.
        UnsupportedError: If libseccomp is missing.
    """
    rules = effective_rules(profile, capabilities, user_namespaces=user_namespaces, refused=refused)
    first = _of_each_call(_whatever_it_says(user_namespaces, refused))
    granted = permitted(rules)
    rules = _of_each_call(rules)
    rules.sort(key=lambda rule: not (rule in first or _comes_first(rule, granted)))
    program = _program(profile, rules)
    if len(program) > _bpf.MOST * _bpf.INSTRUCTION.size:
        raise PlanError(
            f"seccomp {profile.name}: {len(program) // _bpf.INSTRUCTION.size} instructions, "
            f"and the kernel takes {_bpf.MOST}; compare fewer arguments"
        )
    return program


def _of_each_call(rules: Sequence[Rule]) -> list[Rule]:
    """Return rules with one name each: what another permits is a matter of the call."""
    return [rule._replace(names=(name,)) for rule in rules for name in rule.names]


def permits(program: bytes, calls: Sequence[tuple[str, *tuple[int, ...]]]) -> bool:
    """Tell whether a program permits system calls, each a name and its first arguments."""
    _, lib = _open()
    native, _ = MACHINES[os.uname().machine]
    for name, *arguments in calls:
        number = int(lib.seccomp_syscall_resolve_name(os.fsencode(name)))
        if _bpf.answer(program, ARCHITECTURES[native], number, *arguments) not in PERMITTING:
            return False
    return True


def _program(profile: Profile, rules: Sequence[Rule]) -> bytes:
    """
    Return the program for rules of one call each, of which the first that fits counts.

    libseccomp says what depends on arguments, one alternative at a time: several of one call it
    (2.5.4) joins to programs that permit more than the rules, or to none at all. It translates
    numbers for several architectures, but of calls that it does not know.
    """
    native, _ = MACHINES[os.uname().machine]
    foreign = {*profile.architectures} - {native}
    named = {name for rule in rules for name in rule.names}
    if foreign:
        _check_unknown(profile, rules, named & _UNKNOWN)
        told = named - _UNKNOWN
    else:
        told = _conditional(rules)
    programs = [_build(profile, layer) for layer in _layers(_only(rules, told))]
    rules = _only(rules, named - told)
    answers = {ARCHITECTURES[native]: _answers(profile, rules)}
    for name in foreign - {"SCMP_ARCH_X32"}:  # which numbers its calls otherwise
        answers[ARCHITECTURES[name]] = _answers(profile, _only(rules, {*_NEWER}))
    return _bpf.joined(programs, profile.default, answers)


def _check_unknown(profile: Profile, rules: Sequence[Rule], unknown: Set[str]) -> None:
    """Refuse what neither libseccomp nor an answer before its program can say."""
    refused = {name for rule in rules if rule.action not in PERMITTING for name in rule.names}
    if (unknown & _conditional(rules)) or (unknown & refused and profile.default in PERMITTING):
        raise UnsupportedError(
            f"seccomp {profile.name}: libseccomp knows none of {', '.join(sorted(unknown))}; "
            "leave 'architectures' and 'archMap' out to filter the machine's own calls alone"
        )


def _conditional(rules: Sequence[Rule]) -> set[str]:
    """Return the names of calls whose answer depends on arguments."""
    return {name for rule in rules if rule.arguments for name in rule.names}


def _layers(rules: Sequence[Rule]) -> list[list[Rule]]:
    """Return rules in lists that are asked one after the other, each once at most for a call."""
    layers: list[list[Rule]] = []
    asked: Counter[str] = Counter()
    for rule in rules:
        (name,) = rule.names
        for arguments in _alternatives(rule):
            if asked[name] == len(layers):
                layers.append([])
            layers[asked[name]].append(rule._replace(arguments=arguments))
            asked[name] += 1
    return layers


def _alternatives(rule: Rule) -> list[tuple[Argument, ...]]:
    """Comparisons of one argument are alternatives, those of several hold together (as in runc)."""
    if len({item.position for item in rule.arguments}) < len(rule.arguments):
        return [(item,) for item in rule.arguments]
    return [rule.arguments]


def _only(rules: Sequence[Rule], names: set[str]) -> list[Rule]:
    """Return what rules of one call each say of some calls."""
    return [rule for rule in rules if names.issuperset(rule.names)]


def _answers(profile: Profile, rules: Sequence[Rule]) -> dict[int, int]:
    """Return the answer to each call that a rule names."""
    _, lib = _open()
    answers: dict[int, int] = {}
    for rule in rules:
        (name,) = rule.names
        number = _call_number(lib, profile, name)
        if number is not None and number >= 0:
            answers.setdefault(number, rule.action)
    return answers


def _comes_first(rule: Rule, granted: Set[str]) -> bool:
    """Tell whether a rule refuses calls that another permits: a refusal counts, in any order."""
    return rule.action not in PERMITTING and not granted.isdisjoint(rule.names)


@lru_cache(maxsize=1)
def _open() -> tuple[Any, Any]:
    """Return cffi's ``ffi`` and ``lib`` of libseccomp."""
    from ._libseccomp import ffi

    try:
        return ffi, ffi.dlopen(SONAME)
    except OSError as error:
        # It has no errno. A program out of descriptors hears of that, and of no missing library.
        os.close(os.memfd_create("seccomp"))
        raise UnsupportedError(
            f"the system-call filter needs {SONAME} (Debian, Ubuntu: apt-get install libseccomp2; "
            f"Fedora, Alpine: libseccomp), or seccomp=None to go without: {error}"
        ) from None


_BAD_ARCHITECTURE: Final = 2  # SCMP_FLTATR_ACT_BADARCH


def _build(profile: Profile, rules: Sequence[Rule]) -> bytes:
    """Return libseccomp's program for rules; to all other calls it says GO_ON."""
    ffi, lib = _open()
    with open(os.memfd_create("seccomp"), "rb") as file:
        context = lib.seccomp_init(_bpf.GO_ON)
        if not context:
            raise UnsupportedError("seccomp_init failed: libseccomp does not know the action")
        try:
            _add_rules(ffi, lib, context, profile, rules)
            _check(lib.seccomp_export_bpf(context, file.fileno()), "seccomp_export_bpf")
        finally:
            lib.seccomp_release(context)
        file.seek(0)
        return file.read()


def _add_rules(ffi: Any, lib: Any, context: Any, profile: Profile, rules: Sequence[Rule]) -> None:
    # Foreign ABIs, and with them the x32 numbers, end the process: their calls are not
    # the ones that the rules speak of. To list them instead would double the program.
    _check(lib.seccomp_attr_set(context, _BAD_ARCHITECTURE, KILL_PROCESS), "seccomp_attr_set")
    for name in profile.architectures:
        ret = lib.seccomp_arch_add(context, ARCHITECTURES[name])
        _check(0 if ret == -errno.EEXIST else ret, f"seccomp_arch_add {name}")
    for rule in rules:
        _add_rule(ffi, lib, context, profile, rule)


def _check(ret: int, call: str) -> None:
    if ret < 0:
        raise UnsupportedError(f"{call}: {os.strerror(-ret)}")


def _add_rule(ffi: Any, lib: Any, context: Any, profile: Profile, rule: Rule) -> None:
    (name,) = rule.names
    number = _call_number(lib, profile, name)
    # What this machine does not have is refused to the others, but not permitted to them:
    # they have several calls for what is one here, and only that may be refused otherwise.
    if number is None or (number < 0 and rule.action in PERMITTING):
        return
    array = ffi.new("struct scmp_arg_cmp[]", [tuple(item) for item in rule.arguments])
    ret = lib.seccomp_rule_add_array(context, rule.action, number, len(rule.arguments), array)
    _check(ret, f"seccomp_rule_add {name}")


def _call_number(lib: Any, profile: Profile, name: str) -> int | None:
    """
    Return the number of a system call; None if nobody knows one for this machine.

    It is negative, as libseccomp has it, if only other architectures have the call.
    """
    if name in _NEWER:
        return _NEWER[name]
    if name in _SOME_MACHINES:
        return _SOME_MACHINES[name].get(os.uname().machine)
    number = int(lib.seccomp_syscall_resolve_name(os.fsencode(name)))
    if number == -1:
        raise PlanError(
            f"seccomp {profile.name}: {name!r} is no system call that nsbox or libseccomp knows"
        )
    return number


# ---- what a filter has ended -----------------------------------------------

_LOG: Final = "/dev/kmsg"
_LOG_WAIT: Final = 50  # milliseconds that the kernel's thread may take to write its record
_CLOCKS_DIFFER: Final = 2.0  # seconds, between the log's clock and ours: one is steered
# From its beginning, for other records have texts in them that a payload chooses. And of the
# end of a whole process (SECCOMP_RET_KILL_PROCESS): a filter of its own may end threads, too.
_ENDED: Final = (
    rb"[0-9]+,[0-9]+,[0-9]+,[^;]*;audit: type=1326 audit\([0-9.:]+\): .* pid=%d .*"
    rb" sig=31 arch=([0-9a-f]+) syscall=([0-9]+) .* code=0x80000000\n"
)
_FIRST_PID_NAMESPACE: Final = 0xEFFFFFFC  # inode number: PROC_PID_INIT_INO of the kernel


def killed_call(pid: int, within: float) -> str | None:
    """
    Return the name of the system call for which a filter has ended a process.

    The kernel tells it in its log alone (an audit record of type 1326), with the
    pid as the host counts: where nothing else takes those records, and this
    process may read the log. None otherwise, or where the kernel has left the
    record out, as it does if there are many.

    Args:
        pid: Of a process that SIGSYS has ended.
        within: Seconds since its start at most. Pids come again, and so does the log.
    """
    try:
        if os.stat("/proc/self/ns/pid").st_ino != _FIRST_PID_NAMESPACE:
            return None
        with open(_LOG, "rb", buffering=0, opener=_nonblocking) as log:
            number = _find_record(log, pid, time.monotonic() - within - _CLOCKS_DIFFER)
    except OSError:
        return None
    return None if number is None else _call_name(*number)


def _nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _find_record(log: Any, pid: int, since: float) -> tuple[int, int] | None:
    """Return architecture and number of the call in the last record of a process since then."""
    found = None
    pattern = re.compile(_ENDED % pid)
    while True:
        try:
            record = log.read(8192)
        except BrokenPipeError:
            continue  # records were overwritten meanwhile
        if record is None:
            waiting = select.poll()
            waiting.register(log, select.POLLIN)
            if found or not waiting.poll(_LOG_WAIT):
                return found
            continue
        match = pattern.match(record)
        if match is not None and int(record.split(b",", 3)[2]) >= since * 1e6:
            found = int(match[1], 16), int(match[2])


def _call_name(architecture: int, number: int) -> str:
    for name, known in _NEWER.items():
        if known == number:
            return name
    ffi, lib = _open()
    text = lib.seccomp_syscall_resolve_num_arch(architecture, number)
    if not text:
        return f"system call {number}"
    try:
        return str(ffi.string(text).decode())
    finally:
        # The program's, which may not be the one that the library finds first (LD_PRELOAD).
        ffi.dlopen(None).free(text)
