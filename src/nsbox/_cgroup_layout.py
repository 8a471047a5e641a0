"""
Where this host keeps its cgroups, as data.

Read from ``/proc/self/mountinfo`` and ``/proc/self/cgroup``: which hierarchies
are mounted, which controller is in which, and which cgroup of each is the
caller's. :func:`parse` is pure; :func:`look` reads the files of the caller.
"""

import os
from functools import lru_cache
from typing import Final, NamedTuple

from ._constants import SHORTAGE

UNIFIED: Final = ""
"""The controller of a v2 hierarchy as /proc/self/cgroup spells it: none."""


class Hierarchy(NamedTuple):
    """
    One mounted hierarchy of cgroups.

    Args:
        version: 1 or 2.
        mount: The mount point.
        directory: The caller's own cgroup there, or None if it lies outside
            of what is mounted (as in some containers).
        controllers: Version 1: those of the mount, and "name=..." of a named
            one. Version 2: those that the root of the mount offers.
        readonly: The mount is read-only.
    """

    version: int
    mount: str
    directory: str | None
    controllers: tuple[str, ...]
    readonly: bool

    def writable(self, directory: str) -> bool:
        """Tell whether the caller may make cgroups in a directory of it, and place into them."""
        if self.readonly:
            return False
        return all(os.access(path, os.W_OK) for path in (directory, f"{directory}/cgroup.procs"))

    @property
    def own_is_writable(self) -> bool:
        """The caller may make cgroups in its own one, which so is its own user's in general."""
        return self.directory is not None and self.writable(self.directory)

    def above(self) -> list[str]:
        """Return the caller's own cgroup and those above it, up to the mount point."""
        found = []
        directory = self.directory
        while directory is not None:
            found.append(directory)
            if directory == self.mount or len(directory) <= len(self.mount):
                break
            directory = os.path.dirname(directory)
        return found


class Layout(NamedTuple):
    """All hierarchies of a host that its mounts show."""

    hierarchies: tuple[Hierarchy, ...]

    @property
    def unified(self) -> Hierarchy | None:
        """The v2 hierarchy; without controllers too, it freezes, kills and counts CPU time."""
        return next((item for item in self.hierarchies if item.version == 2), None)

    def holds(self, path: str) -> bool:
        """Tell whether a directory is in one of the hierarchies."""
        return any(
            (path + "/").startswith(item.mount.rstrip("/") + "/") for item in self.hierarchies
        )

    @property
    def kind(self) -> str:
        """ "v2", "v1", "hybrid" (controllers on v1, and a v2 mount beside them) or "none"."""
        versions = {item.version for item in self.hierarchies}
        return {frozenset({1, 2}): "hybrid", frozenset({1}): "v1", frozenset({2}): "v2"}.get(
            frozenset(versions), "none"
        )

    def holder(self, controller: str) -> Hierarchy | None:
        """Return the hierarchy that a controller is in, or None if it is in none."""
        for item in self.hierarchies:
            if controller in item.controllers:
                return item
        return None


def parse(mountinfo: str, cgroups: str) -> Layout:
    """
    Return the layout that two files of /proc describe.

    Args:
        mountinfo: Text of /proc/self/mountinfo.
        cgroups: Text of /proc/self/cgroup.
    """
    own = _own_cgroups(cgroups)
    found: dict[str, Hierarchy] = {}
    for line in mountinfo.splitlines():
        hierarchy = _parse_mount(line, own)
        # A hierarchy may be mounted in several places: the first one that shows our cgroup.
        if hierarchy is None:
            continue
        key = ",".join(hierarchy.controllers) if hierarchy.version == 1 else UNIFIED
        known = found.get(key)
        if known is None or (known.directory is None and hierarchy.directory is not None):
            found[key] = hierarchy
    return Layout(tuple(found.values()))


def look() -> Layout:
    """Return the layout as the calling process sees it, with v2's controllers filled in."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mountinfo = file.read()
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        cgroups = file.read()
    return _look(mountinfo, cgroups)


@lru_cache(maxsize=4)
def _look(mountinfo: str, cgroups: str) -> Layout:
    return Layout(
        tuple(
            item._replace(controllers=read_words(f"{item.mount}/cgroup.controllers"))
            if item.version == 2
            else item
            for item in parse(mountinfo, cgroups).hierarchies
        )
    )


def read_words(path: str) -> tuple[str, ...]:
    """
    Return the words in a small file; none if it cannot be read.

    Raises:
        OSError: If the caller is short of descriptors or memory: that says nothing of the file.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return tuple(file.read().split())
    except OSError as error:
        if error.errno in SHORTAGE:
            raise
        return ()


def _own_cgroups(text: str) -> dict[str, str]:
    """Map each controller, and UNIFIED, to the path of the caller's cgroup: cgroups(7)."""
    own = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            own[name] = path
    return own


def _parse_mount(line: str, own: dict[str, str]) -> Hierarchy | None:
    """Return the hierarchy of a line of mountinfo, proc_pid_mountinfo(5), if it is of one."""
    head, _, tail = line.partition(" - ")
    root, mount, options = head.split(" ")[3:6]
    fstype, _, super_options = tail.split(" ", 2)
    if fstype not in ("cgroup", "cgroup2"):
        return None
    version = 2 if fstype == "cgroup2" else 1
    words = super_options.split(",")
    # What a v1 mount is about stands among its options: those that /proc/self/cgroup knows too.
    names = tuple(word for word in words if word in own) if version == 1 else ()
    mount = _unescape(mount)
    path = own.get(names[0] if names else UNIFIED)
    return Hierarchy(
        version=version,
        mount=mount,
        directory=None if path is None else _below(mount, _unescape(root), path),
        controllers=names,
        readonly="ro" in options.split(",") or "ro" in words,
    )


def _below(mount: str, root: str, path: str) -> str | None:
    """Return where a cgroup is below a mount that shows the hierarchy from root on."""
    prefix = root.rstrip("/")
    if path != prefix and not path.startswith(prefix + "/"):
        return None
    if "/.." in path:
        return None  # outside of the caller's cgroup namespace
    rest = path[len(prefix) :].rstrip("/")
    return mount + rest


def _unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
