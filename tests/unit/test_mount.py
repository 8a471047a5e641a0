"""Mount objects as values: equal, hashable, frozen, picklable, checked when made."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from nsbox import Bind, Dev, Overlay, Proc, Tmpfs
from nsbox.errors import PlanError, PlanTypeError
from nsbox.mount import Mount, check_mounts
from strategies import mount_lists, untidy_targets

MAKERS: list[Callable[[], Mount]] = [
    lambda: Bind("/data"),
    lambda: Bind("out", "/out", readonly=False, idmap=True),
    lambda: Tmpfs("/tmp"),
    lambda: Tmpfs("/tmp", size="64K", inodes=10, mode=0o700),
    lambda: Proc(),
    lambda: Dev(shm_size="1M"),
    lambda: Overlay("/image"),
    lambda: Overlay(["/top", "/base"], "/app", upper="/changes/up", work="/changes/work"),
]
FIELDS: dict[type, tuple[str, ...]] = {
    Bind: ("source", "target", "readonly", "idmap"),
    Tmpfs: ("target", "size", "inodes", "mode"),
    Proc: ("target",),
    Dev: ("target", "shm_size"),
    Overlay: ("lower", "target", "upper", "work", "size"),
}
makers = pytest.mark.parametrize("make", MAKERS, ids=lambda make: repr(make()))


@makers
def test_mount_equal_values_are_equal(make: Callable[[], Mount]) -> None:
    """Two objects made alike are equal."""
    assert make() == make()


@makers
def test_mount_equal_values_hash_alike(make: Callable[[], Mount]) -> None:
    """Two objects made alike are one in a set."""
    assert len({make(), make()}) == 1


@makers
def test_mount_pickles_to_an_equal_value(make: Callable[[], Mount]) -> None:
    """A mount object survives pickling, under every protocol."""
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(make(), protocol)) == make()


@makers
def test_mount_copies_are_equal(make: Callable[[], Mount]) -> None:
    """Both kinds of copies are equal to the original."""
    assert copy.copy(make()) == copy.deepcopy(make()) == make()


@makers
def test_mount_cannot_be_changed(make: Callable[[], Mount]) -> None:
    """Assigning to a field, or deleting one, raises."""
    mount = make()
    for name in FIELDS[type(mount)]:
        with pytest.raises(AttributeError):
            setattr(mount, name, getattr(mount, name))
        with pytest.raises(AttributeError):
            delattr(mount, name)


@makers
def test_mount_repr_makes_it_again(make: Callable[[], Mount]) -> None:
    """The repr is an expression that names every field and gives the same mount."""
    mount = make()
    text = repr(mount)
    assert [name for name in FIELDS[type(mount)] if f"{name}=" not in text] == []
    assert eval(text) == mount


def test_mount_repr_has_permission_bits_in_octal() -> None:
    """Nobody reads 1023 as the permissions of /tmp."""
    assert "mode=0o1777" in repr(Tmpfs("/tmp"))


def test_mount_different_values_differ() -> None:
    """No two of the examples are equal, whatever their types."""
    mounts = [make() for make in MAKERS]
    assert len(set(mounts)) == len(mounts)


def test_mount_types_differ() -> None:
    """Objects of different types are not equal, even on the same target."""
    mounts: list[Mount] = [Proc("/x"), Dev("/x"), Tmpfs("/x"), Bind("/x"), Overlay("/x", "/x")]
    assert len(set(mounts)) == len(mounts)


@pytest.mark.parametrize("changed", [{"readonly": False}, {"idmap": False}, {"target": "/b"}])
def test_bind_every_field_counts(changed: dict[str, Any]) -> None:
    """A bind that differs in one field is another one."""
    assert Bind("/a", **changed) != Bind("/a")


# ---- defaults ------------------------------------------------------------


def test_bind_defaults() -> None:
    """A bind shows its source at the same path, read-only, id-mapped as needed."""
    bind = Bind("/data")
    assert (bind.source, bind.target, bind.readonly, bind.idmap) == ("/data", "/data", True, None)


def test_bind_default_target_is_normalised() -> None:
    """The default target is the source, normalised; the source is kept as given."""
    bind = Bind("/data/./x//")
    assert (bind.source, bind.target) == ("/data/./x//", "/data/x")


def test_tmpfs_defaults() -> None:
    """A tmpfs holds 512 MiB and 131072 files, and anyone may write to it."""
    tmpfs = Tmpfs("/tmp")
    assert (tmpfs.size, tmpfs.inodes, tmpfs.mode) == (512 << 20, 131072, 0o1777)


def test_proc_and_dev_defaults() -> None:
    """A procfs goes to /proc, devices to /dev with 512 MiB of shared memory."""
    assert (Proc().target, Dev().target, Dev().shm_size) == ("/proc", "/dev", 512 << 20)


def test_overlay_defaults() -> None:
    """An overlay is the root, with changes in memory."""
    overlay = Overlay("/image")
    assert overlay.lower == ("/image",)
    assert (overlay.target, overlay.upper, overlay.work) == ("/", None, None)
    assert overlay.size == 512 << 20


@pytest.mark.parametrize("path", ["/data", b"/data", Path("/data")], ids=repr)
def test_mount_takes_any_kind_of_path(path: Any) -> None:
    """The kind of path that was given makes no difference."""
    assert Bind(path) == Bind("/data")
    assert Tmpfs(path) == Tmpfs("/data")
    assert Overlay(path, path) == Overlay(["/data"], "/data")


@given(untidy_targets)
def test_mount_targets_are_normalised(path: str) -> None:
    """Every type normalises its target alike."""
    target = Tmpfs(path).target
    assert target == Bind("/a", path).target == Proc(path).target
    assert target == Dev(path).target == Overlay("/a", path).target
    assert "//" not in target


# ---- invalid arguments ---------------------------------------------------


INVALID: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: Bind(""), PlanError, "source"),
    (lambda: Bind("/a\0"), PlanError, "source"),
    (lambda: Bind(3), PlanTypeError, "source"),  # type: ignore[arg-type]
    (lambda: Bind(None), PlanTypeError, "source"),  # type: ignore[arg-type]
    (lambda: Bind("\ud800", "/a"), PlanError, "source"),
    (lambda: Bind("relative"), PlanError, "source"),
    (lambda: Bind("/a/../b"), PlanError, "target"),
    (lambda: Bind("/a", "b"), PlanError, "target"),
    (lambda: Bind("/a", "/b/../c"), PlanError, "target"),
    (lambda: Bind("/a", ""), PlanError, "target"),
    (lambda: Bind("/a", 5), PlanTypeError, "target"),  # type: ignore[arg-type]
    (lambda: Bind("/a", readonly=1), PlanTypeError, "readonly"),  # type: ignore[arg-type]
    (lambda: Bind("/a", readonly=None), PlanTypeError, "readonly"),  # type: ignore[arg-type]
    (lambda: Bind("/a", idmap=0), PlanTypeError, "idmap"),  # type: ignore[arg-type]
    (lambda: Bind("/a", idmap="auto"), PlanTypeError, "idmap"),  # type: ignore[arg-type]
    (lambda: Tmpfs("tmp"), PlanError, "target"),
    (lambda: Tmpfs("/tmp", size=0), PlanError, "size"),
    (lambda: Tmpfs("/tmp", size="lots"), PlanError, "size"),
    (lambda: Tmpfs("/tmp", size=1.5), PlanTypeError, "size"),  # type: ignore[arg-type]
    (lambda: Tmpfs("/tmp", inodes=0), PlanError, "inodes"),
    (lambda: Tmpfs("/tmp", inodes=True), PlanTypeError, "inodes"),
    (lambda: Tmpfs("/tmp", mode=0o10000), PlanError, "mode"),
    (lambda: Tmpfs("/tmp", mode="755"), PlanTypeError, "mode"),  # type: ignore[arg-type]
    (lambda: Proc("proc"), PlanError, "target"),
    (lambda: Proc(None), PlanTypeError, "target"),  # type: ignore[arg-type]
    (lambda: Dev("/dev/.."), PlanError, "target"),
    (lambda: Dev(shm_size=-1), PlanError, "shm_size"),
    (lambda: Dev(shm_size=None), PlanTypeError, "shm_size"),  # type: ignore[arg-type]
    (lambda: Overlay([]), PlanError, "lower"),
    (lambda: Overlay(""), PlanError, "lower"),
    (lambda: Overlay(["/a", ""]), PlanError, "lower"),
    (lambda: Overlay(7), PlanTypeError, "lower"),  # type: ignore[arg-type]
    (lambda: Overlay({"/a"}), PlanTypeError, "lower"),  # type: ignore[arg-type]
    (lambda: Overlay("/a", "b"), PlanError, "target"),
    (lambda: Overlay("/a", upper="/b"), PlanError, "work"),
    (lambda: Overlay("/a", work="/b"), PlanError, "upper"),
    (lambda: Overlay("/a", upper="b", work="/c"), PlanError, "upper"),
    (lambda: Overlay("/a", upper="/b", work="c"), PlanError, "work"),
    (lambda: Overlay("/a", upper="/b\0", work="/c"), PlanError, "upper"),
    (lambda: Overlay("/a", upper=1, work=2), PlanTypeError, "upper"),  # type: ignore[arg-type]
    (lambda: Overlay("/a", size="0"), PlanError, "size"),
]


@pytest.mark.parametrize(
    ("make", "error", "argument"), INVALID, ids=[f"{n}-{case[2]}" for n, case in enumerate(INVALID)]
)
def test_mount_invalid_argument_is_refused(
    make: Callable[[], object], error: type[Exception], argument: str
) -> None:
    """A value that cannot be meant is refused at once, with a message that names the argument."""
    with pytest.raises(error) as caught:
        make()
    assert type(caught.value) is error
    assert argument in str(caught.value)


# ---- lists of mounts -----------------------------------------------------


@given(mount_lists)
def test_mounts_become_a_tuple(mounts: list[Mount]) -> None:
    """A list of mounts is kept in order, as a tuple."""
    assert check_mounts(mounts) == tuple(mounts)


@pytest.mark.parametrize(
    "value", [None, "/tmp", Tmpfs("/tmp"), {Tmpfs("/tmp")}, [Tmpfs], ["/tmp"], [None]], ids=repr
)
def test_mounts_of_wrong_type_are_refused(value: object) -> None:
    """Mounts are a list or tuple of mount objects."""
    with pytest.raises(PlanTypeError):
        check_mounts(value)
