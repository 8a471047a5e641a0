"""
Names of cgroups that tell whether the process that made them still lives.

A name is there from the moment of mkdir(2), so no cgroup is ever without its
owner's mark; and an owner that is dead stays dead, so whoever finds its cgroup
may remove it. A process id alone would be somebody else's one day: the time
when the process started goes with it. Both mean something only in the owner's
own pid and time namespaces, so names of others are left alone.
"""

import os
from functools import lru_cache
from itertools import count
from typing import Final, NamedTuple

from ._forks import this_process

PREFIX: Final = "nsbox"

_numbers = count()


class Owner(NamedTuple):
    """
    A process, for good.

    Args:
        pid_namespace: Inode number of its pid namespace.
        time_namespace: Inode number of its time namespace, 0 before Linux 5.6.
        pid: Process id there.
        started: Start time there, in clock ticks since boot.
    """

    pid_namespace: int
    time_namespace: int
    pid: int
    started: int


def new_name() -> str:
    """Return a name that no other process uses, and this one has not used yet."""
    return ".".join((PREFIX, *(str(part) for part in _self()), str(next(_numbers))))


def parse(name: str) -> Owner | None:
    """Return the owner that a name states, or None if it is not a name made here."""
    prefix, *parts = name.split(".")
    if prefix != PREFIX or len(parts) != 5 or not all(part.isdecimal() for part in parts):
        return None
    return Owner(*(int(part) for part in parts[:4]))


def is_left_over(name: str) -> bool:
    """Tell whether a cgroup's owner is known to have ended."""
    owner, me = parse(name), _self()
    if owner is None or owner[:2] != me[:2]:
        return False
    return not _lives(owner)


def _lives(owner: Owner) -> bool:
    """
    Tell whether an owner of our own namespaces may still live: in doubt it does.

    By kill(2), because /proc may be mounted so that it hides the processes of others
    (hidepid=), or may be that of a pid namespace above ours, where numbers differ.
    """
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    started = _started(str(owner.pid)) if os.readlink("/proc/self") == str(os.getpid()) else None
    return started is None or started == owner.started


def _self() -> Owner:
    return _owner(this_process())


@lru_cache(maxsize=1)
def _owner(_process: int) -> Owner:
    started = _started("self")
    if started is None:
        raise RuntimeError("/proc is not mounted, or is that of another pid namespace")
    return Owner(_namespace("pid"), _namespace("time"), os.getpid(), started)


def _namespace(kind: str) -> int:
    try:
        return os.stat(f"/proc/self/ns/{kind}").st_ino
    except FileNotFoundError:
        return 0


def _started(pid: str) -> int | None:
    """Return field 22 of /proc/pid/stat; None if it cannot be read."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    # The name, in parentheses, may contain anything.
    return int(text[text.rindex(b")") + 2 :].split()[19])
