"""
What a payload must see of a list of mounts: a small model of file systems, with nothing of nsbox.

Directories, files and links are nodes; of the host's they are read when they are needed. A
mount is a copy of a tree that lies over a node. The rules, as README.md, the docstrings and
docs/design.md have them:

- Mounts are sorted by their targets, so each comes after what holds it; the order of the list
  says nothing, and two on one target are an error.
- A mount on the target of something that is there by default, or above it, replaces that.
- Masks come last, those within others before these.
- A target is looked up inside, links and all. What is missing of it is made in file systems
  of the sandbox's own, and above read-only trees of the host; in others it is an error.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from nsbox import Bind, Dev, Overlay, Proc, Tmpfs, _host
from nsbox.mount import Mount

_MOST_LINKS = 40


class Contradiction(Exception):
    """There must be a PlanError."""


class Unclear(Exception):
    """A mount within one that no path leads to: by a link it has hidden what it lies in itself."""


class Failure(Exception):
    """A mount point that cannot be."""


@dataclass(eq=False)
class System:
    """A mounted file system: its type, whether it is read-only, and ours to make something in."""

    kind: str
    readonly: bool
    own: bool
    size: int | None = None


@dataclass(eq=False)
class Node:
    """
    A file as one mount shows it.

    Args:
        system: What it lies on.
        sources: Paths on the host of which it shows what is there, the topmost first.
        text: Of a link.
        writable: Its owner may change it.
    """

    system: System
    type: str
    sources: tuple[str, ...] = ()
    text: str = ""
    writable: bool = True
    parent: "Node | None" = None
    over: "Node | None" = None
    known: "dict[str, Node] | None" = None

    def children(self) -> "dict[str, Node]":
        if self.known is None:
            self.known = {}
            for source in reversed(self.sources):
                for name in os.listdir(source):
                    self.known[name] = self._merged(name)
        return self.known

    def _merged(self, name: str) -> "Node":
        found: list[str] = []
        for source in self.sources:
            path = f"{source}/{name}"
            if os.path.lexists(path):
                if found and _type_of(path) != "directory":
                    break
                found.append(path)
                if _type_of(path) != "directory":
                    break
        return _host_node(found, self.system, self)

    def add(self, name: str, kind: str, *, text: str = "") -> "Node":
        node = Node(self.system, kind, text=text, parent=self)
        self.children()[name] = node
        return node

    def top(self) -> "Node":
        """Return what is seen here: the root of the last mount on it."""
        node = self
        while node.over is not None:
            node = node.over
        return node


def _type_of(path: str) -> str:
    mode = os.lstat(path).st_mode
    if stat.S_ISDIR(mode):
        return "directory"
    return "link" if stat.S_ISLNK(mode) else "file" if stat.S_ISREG(mode) else "other"


def _host_node(paths: Sequence[str], system: System, parent: Node | None = None) -> Node:
    kind = _type_of(paths[0])
    text = os.readlink(paths[0]) if kind == "link" else ""
    return Node(system, kind, tuple(paths), text=text, parent=parent)


class Seen(NamedTuple):
    """
    What is at a path.

    Args:
        type: "directory", "file", "other" or "none".
        system: What it lies on, or None.
        names: In a directory.
        text: Of a file of the host's.
        writable: Something can be made in it, or written to it.
    """

    type: str
    system: System | None = None
    names: frozenset[str] | None = None
    text: str | None = None
    writable: bool = False


def parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split("/") if part)


@dataclass
class World:
    """
    What the payload sees.

    Args:
        root: Of all.
        failed: Targets that cannot be; if there are any, one of them is the error.
        targets: Those that can.
        doubtful: Among them those that are made where a link of a tree leads out of it, to a tree
            that was not made ready for it: it may lack nothing else, so that it has no layer in
            memory, or belong to somebody whom the user namespace does not know.
    """

    root: Node
    failed: set[str] = field(default_factory=set)
    targets: set[str] = field(default_factory=set)
    doubtful: set[str] = field(default_factory=set)

    def walk(self, path: str, *, make: str | None = None) -> Node:
        """Follow a path; make what is missing: directories, and at last a node of that type."""
        node = self.root.top()
        todo = list(reversed(parts(path)))
        ours = len(todo)  # so many of them are of the path, and no link's
        links = 0
        while todo:
            if node.type != "directory":
                raise Failure("no directory")
            name = todo.pop()
            if name == ".":
                continue
            if name == "..":
                above = node.parent
                node = node if above is None else above.top()
                continue
            found = node.children().get(name)
            if found is None:
                if make is None or _is_of_link(todo, ours) or not node.system.own:
                    raise Failure("missing")
                if links and node.system.kind == "host":
                    self.doubtful.add(path)
                found = node.add(name, "directory" if todo else make)
            found = found.top()
            if found.type == "link":
                links += 1
                if links > _MOST_LINKS:
                    raise Failure("links")
                if found.text.startswith("/"):
                    node = self.root.top()
                ours = min(ours, len(todo))
                todo += reversed(parts(found.text))
                continue
            node = found
        return node

    def mount(self, target: str, tree: Node) -> None:
        point = self.walk(target, make="directory" if tree.type == "directory" else "file")
        if (point.type == "directory") != (tree.type == "directory"):
            raise Failure("type")
        tree.parent = point.parent
        point.over = tree
        self.targets.add(target)

    def leads_to(self, target: str, tree: Node) -> bool:
        try:
            return self.walk(target) is tree
        except Failure:
            return False

    def mask(self, path: str) -> None:
        point = self.walk(path)
        empty = point.type == "directory"
        system = System("tmpfs" if empty else "null", True, False)
        over = Node(system, "directory" if empty else "other", parent=point.parent)
        point.over = over
        self.targets.add(path)

    def hidden(self) -> set[str]:
        """Return the targets at which there is nothing: a later mount covers what is above."""
        return {target for target in self.targets if self.see(target).type == "none"}

    def see(self, path: str) -> Seen:
        try:
            node = self.walk(path)
        except Failure:
            return Seen("none")
        text = None
        if node.type == "file" and node.sources:
            with open(node.sources[0], encoding="utf-8", errors="replace") as file:
                text = file.readline().rstrip("\n")
        names = frozenset(node.children()) if node.type == "directory" else None
        writable = node.writable and not node.system.readonly and node.type != "other"
        return Seen(node.type, node.system, names, text, writable)


def _is_of_link(todo: Sequence[str], ours: int) -> bool:
    """Tell whether what is missing is named by a link: nothing is made there."""
    return len(todo) >= ours


def _is_covered(path: str, targets: Iterable[str]) -> bool:
    return any(parts(path)[: len(parts(target))] == parts(target) for target in targets)


def _tmpfs(size: int, mode: int = 0o1777) -> Node:
    return Node(System("tmpfs", False, True, size), "directory", writable=bool(mode & 0o200))


def _trees(mount: Mount, *, holds: bool) -> Iterator[tuple[str, Node]]:
    """
    Yield the file systems of a mount, with where they lie below its target.

    Args:
        holds: Other mounts lie in it.
    """
    match mount:
        case Tmpfs():
            yield "", _tmpfs(mount.size, mount.mode)
        case Bind():
            source = os.path.realpath(mount.source)
            system = System("host", mount.readonly, mount.readonly and holds)
            yield "", _host_node([source], system)
        case Overlay():
            paths = [*([] if mount.upper is None else [mount.upper]), *mount.lower]
            if any(not os.path.isdir(path) for path in paths):
                raise Failure("layer")
            yield "", _host_node(paths, System("overlay", False, mount.upper is None))
        case Proc():
            yield "", Node(System("proc", True, False), "directory", known={})
        case Dev():
            dev = Node(System("tmpfs", True, True), "directory")
            for name in ("null", "zero", "full", "random", "urandom", "tty"):
                dev.add(name, "other")
            for name, text in (
                ("fd", "/proc/self/fd"),
                ("stdin", "/proc/self/fd/0"),
                ("stdout", "/proc/self/fd/1"),
                ("stderr", "/proc/self/fd/2"),
                ("ptmx", "pts/ptmx"),
            ):
                dev.add(name, "link", text=text)
            yield "", dev
            pts = Node(System("devpts", True, False), "directory")
            pts.add("ptmx", "other")
            yield "/pts", pts
            yield "/shm", _tmpfs(mount.shm_size)


def predict(
    mounts: Sequence[Mount],
    root: Path | Overlay | None,
    masks: Sequence[str],
    *,
    writable: bool,
    default_mounts: bool,
    uid: int | None = None,
) -> World:
    """
    Return what the payload must see, for fields of a Sandbox.

    Raises:
        Contradiction: If there must be a PlanError.
        Unclear: If nothing is said of what there is.
    """
    host = _host.look()
    given = _given(mounts, host if root is None else None)
    defaults: dict[str, Mount] = {}
    if default_mounts:
        defaults = {"/proc": Proc(), "/dev": Dev(), "/tmp": Tmpfs("/tmp")}
    if root is None:
        for path in (*host.directories, *host.etc, *host.etc_large):
            defaults[path] = Bind(path)
        if default_mounts:
            defaults["/home/sandbox"] = Tmpfs("/home/sandbox", mode=0o700)
    found = {path: mount for path, mount in defaults.items() if not _is_covered(path, given)}
    found.update(given)
    order = sorted(found, key=parts)
    world = World(_root(root, order, host, writable=writable))
    placed: dict[str, Node] = {}
    for target in order:
        holds = any(_nearest(other, order) == target for other in order)
        holder = _nearest(target, order)
        if holder in placed and not world.leads_to(holder, placed[holder]):
            raise Unclear(target)
        try:
            for below, tree in _trees(found[target], holds=holds):
                world.mount(target + below, tree)
                placed[target + below] = tree
        except Failure:
            # What lies in it may be missed first.
            world.failed |= {other for other in order if _is_covered(other, [target])}
    for path in sorted(masks, key=lambda path: len(parts(path)), reverse=True):
        try:
            world.mask(path)
        except Failure:
            world.failed.add(path)
    # For what a mask hides nobody looks.
    world.targets -= {path for path in world.targets if _is_covered(os.path.dirname(path), masks)}
    return world


def _given(mounts: Sequence[Mount], host: _host.Host | None) -> dict[str, Mount]:
    """Return the mounts by their targets, with a host those that its links in "/" lead to."""
    found: dict[str, Mount] = {}
    plain = {mount.target for mount in mounts}
    for mount in mounts:
        target = mount.target
        for name, text in host.links if host is not None else ():
            if f"/{name}" not in plain and target.startswith(f"/{name}/"):
                target = os.path.normpath(f"/{text}/{target[len(name) + 2 :]}")
                break
        if target == "/" or target in found or target.startswith("/proc/"):
            raise Contradiction(target)
        for name, kind in ("/dev", Dev), ("/proc", Proc):
            if target == name and not isinstance(mount, kind):
                raise Contradiction(target)
        found[target] = mount
    return found


def _nearest(target: str, targets: Sequence[str]) -> str | None:
    """Return the mount that a target lies in."""
    above = [other for other in targets if other != target and _is_covered(target, [other])]
    return max(above, key=len, default=None)


def _root(
    root: Path | Overlay | None, targets: Sequence[str], host: _host.Host, *, writable: bool
) -> Node:
    if isinstance(root, Overlay):
        ((_, node),) = _trees(root, holds=True)
        return node
    if root is not None:
        return _host_node([os.path.realpath(root)], System("host", not writable, not writable))
    node = Node(System("tmpfs", not writable, True), "directory")
    for name, text in host.links:
        if f"/{name}" not in targets:
            node.add(name, "link", text=text)
    files = [name for name, _ in host.etc_files] + ["passwd", "group", "hosts"]
    for kind, entries in ("file", [(name, "") for name in files]), ("link", host.etc_links):
        for name, text in entries:
            if not _is_covered(f"/etc/{name}", targets):
                above = node
                for part in parts(f"/etc/{name}")[:-1]:
                    above = above.children().get(part) or above.add(part, "directory")
                above.add(os.path.basename(name), kind, text=text)
    return node
