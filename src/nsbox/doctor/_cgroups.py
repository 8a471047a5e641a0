"""Cgroups: which hierarchies there are, and which limits the caller can have kept in them."""

import os
from collections.abc import Iterator

from .. import _cgroup_layout
from .._cgroup_layout import Layout
from .._cgroup_tree import sweep
from ..cgroup import Cgroup
from ..errors import NsboxError
from ..limits import IoLimit, Limits
from ._values import Finding, finding_of


def examine_cgroups() -> Iterator[Finding]:
    """Make a cgroup for each limit, the way that a spawn with limits does, and remove it."""
    try:
        layout = _cgroup_layout.look()
    except OSError as error:
        yield finding_of("cgroups", "layout", error)
        return
    yield Finding(area="cgroups", name="layout", detail=_describe(layout))
    yield _left_over(layout)
    yield _limit(layout, "memory", Limits(memory="64M", degrade={"swap"}))
    yield _limit(layout, "memory", Limits(memory="64M", swap=0), name="swap")
    yield _limit(layout, "pids", Limits(pids=64))
    yield _limit(layout, "cpu", Limits(cpu=1.0))
    yield _limit(layout, "cpuset", Limits(cpuset=[min(os.sched_getaffinity(0))]))
    disk = _disk()
    if disk is None:
        yield Finding(area="cgroups", name="io", detail="there is no disk to try it with")
    else:
        yield _limit(layout, "io", Limits(io=[IoLimit(device=disk, read="1G")]))


def _describe(layout: Layout) -> str:
    """Return the kind of layout, and which controllers are where."""
    parts = [layout.kind]
    if layout.unified is not None:
        parts.append(f"v2: {' '.join(layout.unified.controllers) or 'no controllers'}")
    old = [name for item in layout.hierarchies if item.version == 1 for name in item.controllers]
    if old:
        parts.append(f"v1: {' '.join(sorted(old))}")
    return "; ".join(parts)


def _left_over(layout: Layout) -> Finding:
    """Remove the cgroups of callers that were killed, wherever this caller may make its own."""
    parents = {directory for item in layout.hierarchies for directory in item.above()}
    removed = [path for parent in sorted(parents) for path in sweep(parent)]
    detail = f"removed: {', '.join(removed)}" if removed else "none of callers that have ended"
    return Finding(area="cgroups", name="left over", detail=detail)


def _limit(layout: Layout, controller: str, limits: Limits, name: str = "") -> Finding:
    try:
        with Cgroup.create(limits) as cgroup:
            directories = cgroup.directories
    except (NsboxError, OSError) as error:
        return finding_of("cgroups", name or controller, error)
    holder = layout.holder(controller)
    assert holder is not None  # or it could not have been made
    (parent,) = {os.path.dirname(path) for path in directories if path.startswith(holder.mount)}
    detail = f"v{holder.version}, in {parent}"
    return Finding(area="cgroups", name=name or controller, works=True, detail=detail)


def _disk() -> str | None:
    """Return the path of a disk, or None if this host shows none."""
    try:
        names = sorted(os.listdir("/sys/block"))
    except OSError:
        return None
    paths = (f"/dev/{name}" for name in names if not name.startswith(("loop", "ram", "zram")))
    return next((path for path in paths if os.path.exists(path)), None)
