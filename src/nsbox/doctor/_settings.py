"""The kernel, its system calls, its settings and its security modules, as the caller meets them."""

import errno
import os
from collections.abc import Callable, Iterator
from typing import Final

from .. import _calls, _diagnose
from .._constants import ANYWHERE
from ._values import UNKNOWN, Finding

_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_AT_FDCWD: Final = -100
_LAST_FD: Final = 2**31 - 1


def read(path: str) -> str | None:
    """Return what a small file says, or None if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().strip("\0\n ")
    except OSError:
        return None


# ---- kernel ----------------------------------------------------------------


def examine_kernel() -> Iterator[Finding]:
    system = os.uname()
    yield Finding(area="kernel", name="release", detail=f"{system.release} {system.machine}")
    tries: tuple[tuple[str, str, Callable[[], object]], ...] = (
        ("pidfd_open", "Linux 5.3", lambda: os.close(_calls.pidfd_open(os.getpid()))),
        ("openat2", "Linux 5.6", lambda: os.close(_calls.openat2(_AT_FDCWD, "/", os.O_PATH))),
        ("close_range", "Linux 5.9", lambda: _calls.close_range(_LAST_FD, _LAST_FD)),
    )
    for name, since, call in tries:
        yield _call_finding("kernel", name, f"since {since}", call)


def _call_finding(area: str, name: str, detail: str, call: Callable[[], object]) -> Finding:
    try:
        call()
    except OSError as error:
        code = error.errno or 0
        return Finding(
            area=area,
            name=name,
            works=False,
            blocker=f"{name}: {os.strerror(code)}",
            fix=ANYWHERE.get(code, UNKNOWN),
        )
    return Finding(area=area, name=name, works=True, detail=detail)


# ---- sysctls ---------------------------------------------------------------


def examine_sysctls() -> Iterator[Finding]:
    forbidding = dict(_diagnose.forbidding_sysctls())
    for name in _diagnose.SYSCTLS:
        value = _diagnose.sysctl(name)
        if name in forbidding:
            yield Finding(
                area="sysctls",
                name=name,
                works=False,
                blocker=f"{name} is {value}",
                fix=forbidding[name],
            )
        else:
            detail = "not on this kernel" if value is None else value
            yield Finding(area="sysctls", name=name, detail=detail)


# ---- security ----------------------------------------------------------------


def examine_security() -> Iterator[Finding]:
    lines = (read("/proc/thread-self/status") or "").splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    yield Finding(area="security", name="caller", detail=_caller(status))
    modules = read("/sys/kernel/security/lsm")
    yield Finding(
        area="security",
        name="modules",
        detail=modules or "unknown: securityfs is not mounted on /sys/kernel/security",
    )
    label = read("/proc/thread-self/attr/current")
    if label:
        yield Finding(area="security", name="label", detail=label)
    in_force = "one" if _diagnose.seccomp_mode() == "2" else "none"
    detail = f"filters can be installed; in force for the caller: {in_force}"
    yield _call_finding("security", "seccomp", detail, _try_seccomp)
    yield _landlock()


def _caller(status: dict[str, str]) -> str:
    effective = int(status.get("CapEff", "0"), 16)
    return (
        f"uid {os.geteuid()}, gid {os.getegid()}, "
        f"{effective.bit_count()} capabilities, no_new_privs {status.get('NoNewPrivs', '?')}"
    )


def _try_seccomp() -> None:
    """prctl(2): a kernel with filters wants to read one, and finds none at NULL."""
    try:
        _calls.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise


def _landlock() -> Finding:
    version = _calls.landlock_abi()
    if version:
        return Finding(area="security", name="landlock", works=True, detail=f"version {version}")
    return Finding(
        area="security",
        name="landlock",
        works=False,
        blocker="this kernel has no Landlock, or does not use it",
        fix="CONFIG_SECURITY_LANDLOCK, and landlock in the list of the boot parameter lsm=",
    )
