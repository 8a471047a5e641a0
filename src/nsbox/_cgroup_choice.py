"""
Which hierarchies a cgroup needs for given limits, and below which parent in each.

Nothing is made here. What cannot be kept on this host is an UnsupportedError
that names the controller, its mount and the remedy.
"""

import os
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final, NamedTuple

from ._cgroup_files import CONTROLLER_OF, ONLY_V2, Place, Setting, settings, v1_cpuset_of
from ._cgroup_layout import UNIFIED, Hierarchy, Layout, read_words
from .errors import PlanError, UnsupportedError
from .limits import CGROUP_FIELDS, Limits

_MEASURED: Final = ("memory", "pids")
"""Controllers that count something, besides keeping limits."""

_DELEGATE: Final = {
    1: (
        "let root make a cgroup there for this user (mkdir, chown -R), and name it, and one "
        "for each further hierarchy, with cgroup="
    ),
    2: (
        "run it in a subtree that is yours, such as one made by "
        "'systemd-run --user --scope -p Delegate=yes COMMAND', or name one with cgroup="
    ),
}


class Purpose(Enum):
    """
    What a cgroup is made for, besides its limits.

    ``LIMIT``: a process is born in it. ``FREEZE``: only to freeze and kill what is in it.
    ``JOIN``: processes enter that run already.
    """

    LIMIT = 1
    FREEZE = 2
    JOIN = 3


class Part(NamedTuple):
    """
    What to make in one hierarchy.

    Args:
        version: Of the hierarchy.
        parent: Directory to make the cgroup in.
        controllers: Those that the cgroup will have there, UNIFIED for version 2 itself.
        settings: What to write into it, in order.
    """

    version: int
    parent: str
    controllers: tuple[str, ...]
    settings: tuple[Setting, ...]

    def entrance(self, purpose: Purpose) -> str | None:
        """Return the file by which a process gets in; None if it is born in it."""
        if self.version == 1:
            return "tasks"
        return "cgroup.procs" if purpose is Purpose.JOIN else None

    def seat(self, directory: str) -> "Part":
        """
        Return what to make inside of what was made of this: a cgroup that limits nothing.

        Args:
            directory: The one that was made.
        """
        if self.version == 1:
            needed = tuple(item for item in self.settings if item.file.startswith("cpuset."))
            return Part(1, directory, self.controllers, needed)
        offered = read_words(f"{directory}/cgroup.controllers")
        more = [name for name in _MEASURED if name in offered and name not in self.controllers]
        return Part(2, directory, (*more, *self.controllers), ())


class Choice(NamedTuple):
    """
    What to make on this host.

    Args:
        parts: One for each hierarchy; that of version 2 first, else that of the freezer.
        degraded: Fields of Limits that are left out, as they allow.
    """

    parts: tuple[Part, ...]
    degraded: frozenset[str]


def by_controller(parts: Sequence[Part], directories: Sequence[str]) -> dict[Place, str]:
    """Return one directory for each part by the controllers that it has there."""
    return {
        (controller, part.version): directory
        for part, directory in zip(parts, directories, strict=True)
        for controller in part.controllers
    }


def narrowed(layout: Layout, purpose: Purpose) -> Layout:
    """
    Return the hierarchies that serve a purpose.

    One is enough to freeze. To enter a cgroup of version 2 costs a grace period of RCU, and
    without controllers that keep a limit gives nothing that those of version 1 do not.
    """
    unified = layout.unified
    if purpose is Purpose.FREEZE:
        freezers = [item for item in layout.hierarchies if "freezer" in item.controllers]
        return Layout((unified,) if unified else tuple(freezers))
    of_use = {*CONTROLLER_OF.values(), *_MEASURED}
    if purpose is Purpose.JOIN and unified is not None and of_use.isdisjoint(unified.controllers):
        others = tuple(item for item in layout.hierarchies if item is not unified)
        return Layout(others or layout.hierarchies)
    return layout


def wanted_fields(limits: Limits) -> tuple[str, ...]:
    """Return the fields that need a cgroup."""
    fields = [name for name in limits.given() if name in (*CGROUP_FIELDS, "cpu_time")]
    if limits.memory is not None and limits.swap is None:
        fields.insert(fields.index("memory") + 1, "swap")  # 0, unless said otherwise
    return tuple(fields)


def choose(
    limits: Limits,
    layout: Layout,
    *,
    parents: Sequence[str] = (),
    owned: bool = False,
    measure: bool = False,
    shelter: bool = False,
    optional: bool = False,
) -> Choice:
    """
    Decide where to make a cgroup with these limits.

    Args:
        limits: What it has to keep.
        layout: Of this host.
        parents: Directories to make it in, at most one for each hierarchy.
            Elsewhere it is made in the caller's own cgroup or one above it.
        owned: Controllers may be enabled in the parents: they are nsbox's own, or
            the user says so.
        measure: Also use hierarchies that are there only to count.
        shelter: Also use all in which the caller's own cgroup belongs to the caller.
        optional: No part at all will do.

    Raises:
        UnsupportedError: If a limit cannot be kept, and may not be left out.
        PlanError: If a parent is in no hierarchy.
    """
    given = _by_hierarchy(layout, parents)
    fields, degraded = [], set()
    for field in wanted_fields(limits):
        reason = _why_not(field, layout, given, owned)
        if reason is None:
            fields.append(field)
        elif field in limits.degrade:
            degraded.add(field)
        else:
            raise UnsupportedError(f"the limit {field!r} cannot be kept here: {reason}")
    if "memory" in degraded:
        fields = [field for field in fields if field not in ("swap", "oom_group")]
    parts = _parts(fields, limits, layout, given, owned, measure, shelter)
    if not parts and not limits.degrade and not optional:
        raise UnsupportedError(f"no cgroup can be made here: {_no_place(layout, given)}")
    return Choice(parts, frozenset(degraded))


def _by_hierarchy(layout: Layout, parents: Sequence[str]) -> dict[Hierarchy, str]:
    given: dict[Hierarchy, str] = {}
    for path in parents:
        path = os.path.realpath(path)
        holders = [
            item for item in layout.hierarchies if path == item.mount or _below(path, item.mount)
        ]
        if not holders:
            raise PlanError(f"cgroup: {path!r} is in no mounted cgroup hierarchy")
        holder = max(holders, key=lambda item: len(item.mount))
        if holder in given:
            raise PlanError(f"cgroup: {given[holder]!r} and {path!r} are in the same hierarchy")
        given[holder] = path
    return given


def _below(path: str, mount: str) -> bool:
    return path.startswith(mount.rstrip("/") + "/")


# ---- parents -----------------------------------------------------------


def _places(hierarchy: Hierarchy, given: Mapping[Hierarchy, str]) -> list[str]:
    """Return the directories of a hierarchy in which a cgroup could be made, the best first."""
    if hierarchy in given:
        places = [given[hierarchy]]
    elif hierarchy.version == 2:
        # Any cgroup above the caller's: placing needs the right over what both have in common.
        places = hierarchy.above()
    else:
        places = hierarchy.above()[:1]
    return [place for place in places if hierarchy.writable(place)]


def _offers(place: str, controllers: Sequence[str], owned: bool) -> bool:
    """Tell whether cgroups in a directory of version 2 have the controllers."""
    file = "cgroup.controllers" if owned else "cgroup.subtree_control"
    return set(controllers) <= set(read_words(f"{place}/{file}"))


def _find(
    hierarchy: Hierarchy,
    controllers: Sequence[str],
    given: Mapping[Hierarchy, str],
    owned: bool,
) -> str | None:
    for place in _places(hierarchy, given):
        mine = owned and hierarchy in given
        if hierarchy.version == 1 or _offers(place, controllers, mine):
            return place
    return None


# ---- hierarchies -------------------------------------------------------


def _parts(
    fields: Sequence[str],
    limits: Limits,
    layout: Layout,
    given: Mapping[Hierarchy, str],
    owned: bool,
    measure: bool,
    shelter: bool,
) -> tuple[Part, ...]:
    needed = {CONTROLLER_OF[field] for field in fields if field in CONTROLLER_OF}
    extra = set(_MEASURED) if measure else set()
    parts: list[Part] = []
    for hierarchy in sorted(layout.hierarchies, key=_rank):
        has = [name for name in hierarchy.controllers if name in needed]
        may = [name for name in hierarchy.controllers if name in extra and name not in has]
        if hierarchy.version == 1:
            may += _helpers(hierarchy, layout, parts)
            if shelter and hierarchy.own_is_writable and not has and not may:
                may += hierarchy.controllers
            if not has and not may:
                continue
        place = _find(hierarchy, [*has, *may], given, owned) or _find(hierarchy, has, given, owned)
        if place is None:
            continue
        # What is already enabled comes with it; what we own may be enabled.
        if hierarchy.version == 2 and not _offers(place, may, owned and hierarchy in given):
            may = []
        names = (*has, *may)
        lines = [
            line
            for field in fields
            if CONTROLLER_OF.get(field) in names
            for line in settings(field, limits, hierarchy.version, place)
        ]
        if hierarchy.version == 1 and "cpuset" in hierarchy.controllers and "cpuset" not in has:
            lines += v1_cpuset_of(place)
        if hierarchy.version == 2:
            names = (*names, UNIFIED)
        parts.append(Part(hierarchy.version, place, names, tuple(lines)))
    return tuple(parts)


def _rank(hierarchy: Hierarchy) -> tuple[int, bool]:
    """Sort what kills first: version 2, then the v1 freezer, whose frozen processes do not die."""
    return -hierarchy.version, "freezer" not in hierarchy.controllers


def _helpers(hierarchy: Hierarchy, layout: Layout, parts: Sequence[Part]) -> list[str]:
    """Return what counts time, and what stops processes, where version 2 does not do both."""
    if parts and parts[0].version == 2:
        return []
    return [name for name in ("cpuacct", "freezer") if name in hierarchy.controllers]


# ---- reasons -----------------------------------------------------------


def _why_not(field: str, layout: Layout, given: Mapping[Hierarchy, str], owned: bool) -> str | None:
    """Return why a field of Limits cannot be kept on this host, or None if it can."""
    if field == "cpu_time":
        return _why_not_counted(layout, given)
    controller = CONTROLLER_OF[field]
    hierarchy = layout.holder(controller)
    if hierarchy is None:
        return _not_mounted(controller, layout)
    if hierarchy.version == 1 and field in ONLY_V2:
        return (
            f"the controller {controller!r} is on cgroup v1 ({hierarchy.mount}) and can do "
            "that on v2 only: boot with systemd.unified_cgroup_hierarchy=1"
        )
    place = _find(hierarchy, [controller], given, owned)
    if place is None:
        return _no_right(controller, hierarchy, given)
    if field == "swap" and not _counts_swap(hierarchy, place):
        return (
            f"this kernel does not count swap ({hierarchy.mount} has no "
            "memory.memsw.limit_in_bytes): boot with swapaccount=1"
        )
    return None


def _counts_swap(hierarchy: Hierarchy, place: str) -> bool:
    if not os.path.exists("/proc/swaps"):
        return True  # a kernel without swap: what cannot happen is limited
    return hierarchy.version == 2 or os.path.exists(f"{place}/memory.memsw.limit_in_bytes")


def _why_not_counted(layout: Layout, given: Mapping[Hierarchy, str]) -> str | None:
    unified, v1 = layout.unified, layout.holder("cpuacct")
    counting = [item for item in (unified, v1) if item is not None]
    if any(_places(item, given) for item in counting):
        return None
    if not counting:
        return "neither cgroup v2 nor the v1 controller 'cpuacct' is mounted, so nothing counts it"
    return _no_right("cpu.stat" if unified else "cpuacct", counting[0], given)


def _not_mounted(controller: str, layout: Layout) -> str:
    if not layout.hierarchies:
        return (
            f"the controller {controller!r} is nowhere mounted, and no cgroup file system is: "
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup"
        )
    mounts = ", ".join(sorted({item.mount for item in layout.hierarchies}))
    return (
        f"no mounted hierarchy has the controller {controller!r} ({mounts}): it is disabled "
        f"(boot without cgroup_disable={controller}), or not delegated to this container"
    )


def _no_right(controller: str | None, hierarchy: Hierarchy, given: Mapping[Hierarchy, str]) -> str:
    what = f"cgroup v{hierarchy.version}"
    if controller is None:
        where = f"{what} is at {hierarchy.mount}"
    else:
        where = f"the controller {controller!r} is on {what} at {hierarchy.mount}"
    if hierarchy.readonly:
        return f"{where}, which is mounted read-only: mount -o remount,rw {hierarchy.mount}"
    places = [given[hierarchy]] if hierarchy in given else hierarchy.above()
    if not places:
        return f"{where}, whose mount does not show the caller's own cgroup: name one with cgroup="
    missing = [place for place in places if not os.path.isdir(place)]
    if missing:
        return f"{where}, but there is no cgroup {missing[0]} (any more)"
    writable = _places(hierarchy, given)
    if not writable:
        remedy = _DELEGATE[hierarchy.version]
        return f"{where}, where the caller may not write to {places[0]}: {remedy}"
    return (
        f"{where}, but is not enabled for cgroups below {writable[-1]}: "
        f"echo +{controller} > {writable[-1]}/cgroup.subtree_control, or "
        "Cgroup.create(parent=..., enable=True)"
    )


def _no_place(layout: Layout, given: Mapping[Hierarchy, str]) -> str:
    for hierarchy in layout.hierarchies:
        if hierarchy.version == 2:
            return _no_right(None, hierarchy, given)  # a cgroup of it needs no controller
        if hierarchy.controllers[0] in _MEASURED:
            return _no_right(hierarchy.controllers[0], hierarchy, given)
    return _not_mounted("memory", layout)
