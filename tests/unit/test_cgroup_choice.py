"""Where cgroups are made, decided from directories that look like those of a host."""

from pathlib import Path

import pytest

from nsbox._cgroup_choice import Purpose, choose, narrowed, wanted_fields
from nsbox._cgroup_layout import UNIFIED, Hierarchy, Layout
from nsbox.errors import PlanError, UnsupportedError
from nsbox.limits import Limits

ALL = ("cpu", "io", "memory", "pids")


def v2(path: Path, *, enabled: tuple[str, ...] = (), readonly: bool = False) -> Layout:
    """Make a tree of version 2, mount/mid/own, with controllers enabled down to mid."""
    for directory, names in ((path, enabled), (path / "mid", enabled), (path / "mid/own", ())):
        directory.mkdir(exist_ok=True)
        (directory / "cgroup.procs").write_text("")
        (directory / "cgroup.controllers").write_text(" ".join(enabled))
        (directory / "cgroup.subtree_control").write_text(" ".join(names))
    return Layout((Hierarchy(2, str(path), str(path / "mid/own"), ALL, readonly),))


def v1(path: Path, *names: str) -> Layout:
    """Make one hierarchy of version 1 for each controller."""
    found = []
    for name in names:
        directory = path / name / "own"
        directory.mkdir(parents=True)
        (directory / "cgroup.procs").write_text("")
        found.append(Hierarchy(1, str(path / name), str(directory), (name,), False))
    return Layout(tuple(found))


def test_the_nearest_cgroup_that_hands_on_the_controllers(tmp_path: Path) -> None:
    """Not the caller's own: it has processes, and so no controllers for children."""
    choice = choose(Limits(memory="1M", pids=3), v2(tmp_path, enabled=ALL))
    (part,) = choice.parts
    assert part.parent == str(tmp_path / "mid")
    assert set(part.controllers) == {"memory", "pids", UNIFIED}
    assert [setting.file for setting in part.settings] == [
        "memory.max",
        "memory.swap.max",
        "pids.max",
    ]


def test_own_cgroup_if_no_controller_is_needed(tmp_path: Path) -> None:
    """Processor time is counted everywhere."""
    (part,) = choose(Limits(cpu_time=1), v2(tmp_path)).parts
    assert (part.parent, part.controllers, part.settings) == (
        str(tmp_path / "mid/own"),
        (UNIFIED,),
        (),
    )


def test_not_enabled(tmp_path: Path) -> None:
    """The error has the command; nothing is enabled unasked."""
    layout = v2(tmp_path, enabled=("pids",))
    with pytest.raises(UnsupportedError) as caught:
        choose(Limits(memory="1M", pids=3), layout)
    text = str(caught.value)
    assert "'memory'" in text
    assert f"echo +memory > {tmp_path}/cgroup.subtree_control" in text
    (part,) = choose(Limits(memory="1M", pids=3, degrade={"memory", "swap"}), layout).parts
    assert part.controllers == ("pids", UNIFIED)


def test_enabled_by_the_owner(tmp_path: Path) -> None:
    """In a parent of nsbox's own what can be enabled counts as enabled."""
    layout = v2(tmp_path, enabled=("memory",))
    parent = str(tmp_path / "mid/own")
    (part,) = choose(Limits(memory="1M"), layout, parents=[parent], owned=True).parts
    assert part.parent == parent


def test_read_only(tmp_path: Path) -> None:
    """The error names the mount, and how to make it writable."""
    with pytest.raises(UnsupportedError, match=f"mount -o remount,rw {tmp_path}"):
        choose(Limits(pids=3), v2(tmp_path, enabled=ALL, readonly=True))


def test_no_controller_is_named_where_none_is_needed(tmp_path: Path) -> None:
    """Who wants a cgroup of version 2, as to freeze it, hears where that would have to be."""
    readonly = v2(tmp_path, enabled=ALL, readonly=True)
    with pytest.raises(UnsupportedError, match=f": cgroup v2 is at {tmp_path}, which is mounted"):
        choose(Limits(), readonly)


def test_v1_uses_one_hierarchy_for_each_controller(tmp_path: Path) -> None:
    """Those that are needed, and without version 2 what counts time."""
    layout = v1(tmp_path, "memory", "pids", "cpu", "cpuacct", "blkio")
    choice = choose(Limits(pids=3, cpu=0.5), layout)
    assert [part.controllers for part in choice.parts] == [("pids",), ("cpu",), ("cpuacct",)]


def test_v1_kills_in_the_freezer(tmp_path: Path) -> None:
    """The first part is where processes are killed: there they are thawed for it."""
    choice = choose(Limits(pids=3), v1(tmp_path, "memory", "pids", "cpuacct", "freezer"))
    assert choice.parts[0].controllers == ("freezer",)


def test_hybrid_counts_by_v2(tmp_path: Path) -> None:
    """The bare version 2 comes first, and makes cpuacct unnecessary."""
    (tmp_path / "unified").mkdir()
    (unified,) = v2(tmp_path / "unified").hierarchies
    controllers = v1(tmp_path, "pids", "cpuacct").hierarchies
    layout = Layout((*controllers, unified._replace(controllers=())))
    choice = choose(Limits(pids=3, cpu_time=1), layout)
    assert [part.version for part in choice.parts] == [2, 1]
    assert choice.parts[1].controllers == ("pids",)


@pytest.mark.parametrize(
    ("controllers", "versions"),
    [((), [1]), (("hugetlb", "misc"), [1]), (("hugetlb", "io"), [1, 2])],
    ids=repr,
)
def test_hybrid_is_joined_by_v1(
    tmp_path: Path, controllers: tuple[str, ...], versions: list[int]
) -> None:
    """To join version 2 costs a grace period: only where it has what keeps a limit."""
    (tmp_path / "unified").mkdir()
    (unified,) = v2(tmp_path / "unified").hierarchies
    layout = Layout((*v1(tmp_path, "pids").hierarchies, unified._replace(controllers=controllers)))
    found = narrowed(layout, Purpose.JOIN).hierarchies
    assert [hierarchy.version for hierarchy in found] == versions


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (Limits(memory="1M"), "no mounted hierarchy has the controller 'memory'"),
        (Limits(pids=3, cpuset=[0]), "no mounted hierarchy has the controller 'cpuset'"),
    ],
    ids=repr,
)
def test_controller_is_missing(tmp_path: Path, limits: Limits, why: str) -> None:
    """A controller that is in no hierarchy is named."""
    with pytest.raises(UnsupportedError, match=why):
        choose(limits, v1(tmp_path, "pids", "cpu"))


def test_only_v2_can(tmp_path: Path) -> None:
    """What version 1 lacks is refused with the reason, or left out if allowed."""
    layout = v1(tmp_path, "memory")
    (tmp_path / "memory/own/memory.memsw.limit_in_bytes").write_text("")
    with pytest.raises(UnsupportedError, match="on v2 only"):
        choose(Limits(memory="1M", oom_group=True), layout)
    choice = choose(Limits(memory="1M", oom_group=True, degrade={"oom_group"}), layout)
    assert choice.degraded == {"oom_group"}


def test_no_cgroups_at_all() -> None:
    """The error says what to mount."""
    with pytest.raises(UnsupportedError, match="mount -t cgroup2"):
        choose(Limits(pids=3), Layout(()))


def test_parents(tmp_path: Path) -> None:
    """One for each hierarchy, and in one."""
    layout = v1(tmp_path, "memory", "pids")
    with pytest.raises(PlanError, match="no mounted cgroup hierarchy"):
        choose(Limits(pids=3), layout, parents=["/usr"])
    with pytest.raises(PlanError, match="same hierarchy"):
        choose(Limits(pids=3), layout, parents=[f"{tmp_path}/pids", f"{tmp_path}/pids/own"])
    gone = f"{tmp_path}/pids/gone"
    with pytest.raises(UnsupportedError, match=gone):
        choose(Limits(pids=3), layout, parents=[gone])


def test_swap_goes_with_memory() -> None:
    """A limit of memory alone means no swap."""
    assert wanted_fields(Limits(memory="1M", pids=2, wall_time=1)) == ("memory", "swap", "pids")
    assert wanted_fields(Limits()) == ()


def test_shelter(tmp_path: Path) -> None:
    """Where the caller's own cgroup is its own; nothing at all, where it is not."""
    layout = v1(tmp_path, "memory", "cpuset", "freezer")
    (tmp_path / "cpuset/own/cpuset.effective_mems").write_text("0\n")
    (tmp_path / "cpuset/own/cpuset.effective_cpus").write_text("0-3\n")
    choice = choose(Limits(), layout, shelter=True, optional=True)
    assert {part.controllers for part in choice.parts} == {("memory",), ("cpuset",), ("freezer",)}
    (cpuset,) = [part for part in choice.parts if "cpuset" in part.controllers]
    assert cpuset.settings == (("cpuset.mems", "0"), ("cpuset.cpus", "0-3"))
    readonly = Layout(tuple(item._replace(readonly=True) for item in layout.hierarchies))
    assert choose(Limits(), readonly, shelter=True, optional=True).parts == ()
    with pytest.raises(UnsupportedError):
        choose(Limits(), readonly, shelter=True)


def test_seat(tmp_path: Path) -> None:
    """It limits nothing, but on version 1 it needs processors; on 2 it counts what it can."""
    (memory, cpuset) = choose(
        Limits(memory="1M", cpuset=[0], degrade={"swap"}),
        v1(tmp_path / "v1", "memory", "cpuset"),
    ).parts
    assert memory.seat("/x") == (1, "/x", ("memory",), ())
    assert cpuset.seat("/x") == (1, "/x", ("cpuset",), cpuset.settings)
    (part,) = choose(Limits(pids=1), v2(tmp_path, enabled=ALL)).parts
    assert part.seat(str(tmp_path)) == (2, str(tmp_path), ("memory", "pids", UNIFIED), ())
