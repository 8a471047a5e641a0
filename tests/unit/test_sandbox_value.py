"""Sandbox as a value: frozen, comparable, hashable, picklable, checked when made."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbox import Bind, Limits, Namespace, Overlay, Proc, Sandbox, Tmpfs
from nsbox.errors import PlanError, PlanTypeError
from nsbox.mount import Mount
from strategies import environments, ids, mount_lists

FIELDS = (
    "root",
    "writable",
    "mounts",
    "default_mounts",
    "masks",
    "hostname",
    "cwd",
    "env",
    "uid",
    "gid",
    "host_uid",
    "host_gid",
    "user",
    "pid",
    "uts",
    "ipc",
    "net",
    "cgroup_ns",
    "time",
    "capabilities",
    "seccomp",
    "user_namespaces",
    "landlock",
    "namespaces",
    "init",
    "limits",
    "cgroup",
)
CHANGES: list[dict[str, Any]] = [
    {"root": "/image"},
    {"root": Overlay("/image")},
    {"writable": True},
    {"mounts": [Tmpfs("/scratch")]},
    {"default_mounts": False},
    {"masks": ["/usr/bin"]},
    {"hostname": "other"},
    {"cwd": "/tmp"},
    {"env": {"A": "1"}},
    {"uid": 1000},
    {"gid": 1000},
    {"host_uid": 1000},
    {"host_gid": 1000},
    {"user": "host"},
    {"pid": "host"},
    {"uts": "host"},
    {"ipc": "host"},
    {"net": "host"},
    {"cgroup_ns": "host"},
    {"time": "new"},
    {"capabilities": ["CAP_KILL"]},
    {"seccomp": "strict"},
    {"seccomp": None},
    {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}},
    {"user_namespaces": True},
    {"landlock": False},
    {"namespaces": "none"},
    {"init": True},
    {"limits": Limits(pids=3)},
    {"cgroup": "/sys/fs/cgroup/jobs"},
]
changes = pytest.mark.parametrize("change", CHANGES, ids=repr)


def everything() -> Sandbox:
    """Return a sandbox whose every field differs from its default, as far as that is possible."""
    return Sandbox(
        root=Overlay(["/top", "/base"]),
        writable=True,
        mounts=[Bind("/data"), Tmpfs("/scratch", size="1M")],
        default_mounts=False,
        masks=["/data/secret"],
        hostname="box",
        cwd="/scratch",
        env={"A": "1", "B": "\udcff"},
        uid=1,
        gid=2,
        host_uid=3,
        host_gid=4,
        pid="host",
        ipc="host",
        net="host",
        cgroup_ns="host",
        time="new",
        capabilities=["CAP_CHOWN", "CAP_KILL"],
        seccomp={"defaultAction": "SCMP_ACT_ALLOW"},
        user_namespaces=True,
        landlock=True,
        limits=Limits(memory="64M", cpuset="0-1", degrade={"cpuset"}),
        cgroup=["/sys/fs/cgroup/memory/jobs", "/sys/fs/cgroup/pids/jobs"],
    )


# ---- equality ------------------------------------------------------------


@changes
def test_sandbox_equal_values_are_equal(change: dict[str, Any]) -> None:
    """Two sandboxes described alike are equal."""
    assert Sandbox(**change) == Sandbox(**change)


@changes
def test_sandbox_every_field_counts(change: dict[str, Any]) -> None:
    """A sandbox that differs in one field is another one."""
    assert Sandbox(**change) != Sandbox()


@changes
def test_sandbox_equal_values_hash_alike(change: dict[str, Any]) -> None:
    """Two sandboxes described alike are one in a set."""
    assert len({Sandbox(**change), Sandbox(**change)}) == 1


@given(environments.flatmap(lambda env: st.permutations(list(env.items()))))
def test_sandbox_hash_ignores_the_order_of_variables(items: list[tuple[str, str]]) -> None:
    """Equal sandboxes hash alike in whatever order their variables were given."""
    one, other = Sandbox(env=dict(items)), Sandbox(env=dict(sorted(items)))
    assert one == other
    assert hash(one) == hash(other)


def test_sandbox_spelling_makes_no_difference() -> None:
    """Lists and tuples, paths and str, short and long names of capabilities are the same."""
    one = Sandbox(
        root=Path("/image"),
        mounts=[Tmpfs("/tmp")],
        cwd="//tmp/.",
        capabilities=["kill", "CAP_KILL"],
    )
    other = Sandbox(root="/image", mounts=(Tmpfs("/tmp"),), cwd="/tmp", capabilities=("CAP_KILL",))
    assert one == other


# ---- immutability --------------------------------------------------------


@pytest.mark.parametrize("name", FIELDS)
def test_sandbox_field_cannot_be_changed(name: str) -> None:
    """Assigning to a field raises."""
    box = Sandbox()
    with pytest.raises(AttributeError):
        setattr(box, name, getattr(box, name))


def test_sandbox_does_not_follow_its_arguments() -> None:
    """Changing what a sandbox was made from does not change the sandbox."""
    mounts: list[Mount] = [Tmpfs("/a")]
    env = {"A": "1"}
    names = ["CAP_KILL"]
    box = Sandbox(mounts=mounts, env=env, capabilities=names)
    mounts.append(Tmpfs("/b"))
    env["B"] = "2"
    names.append("CAP_CHOWN")
    assert box == Sandbox(mounts=[Tmpfs("/a")], env={"A": "1"}, capabilities=["CAP_KILL"])


def test_sandbox_environment_cannot_be_changed() -> None:
    """The environment that a sandbox shows cannot be written to."""
    with pytest.raises(TypeError):
        Sandbox(env={"A": "1"}).env["A"] = "2"  # type: ignore[index]


def test_sandbox_takes_no_positional_arguments() -> None:
    """Every field is given by name."""
    with pytest.raises(TypeError):
        Sandbox("/image")  # type: ignore[call-arg]


def test_sandbox_can_be_varied() -> None:
    """dataclasses.replace makes a sandbox that differs in what is named."""
    assert dataclasses.replace(everything(), uid=9).uid == 9
    assert dataclasses.replace(everything(), uid=1) == everything()


# ---- travelling ----------------------------------------------------------


def _pickled(box: Sandbox) -> Sandbox:
    copied = pickle.loads(pickle.dumps(box))
    assert isinstance(copied, Sandbox)
    return copied


copiers = pytest.mark.parametrize(
    "copier", [_pickled, copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"]
)


@copiers
@pytest.mark.parametrize("make", [Sandbox, everything])
def test_sandbox_copy_is_equal(
    copier: Callable[[Sandbox], Sandbox], make: Callable[[], Sandbox]
) -> None:
    """A copy of any kind equals the original and hashes alike."""
    box = make()
    twin = copier(box)
    assert twin == box
    assert hash(twin) == hash(box)
    assert repr(twin) == repr(box)


@copiers
def test_sandbox_copy_has_its_own_cache(copier: Callable[[Sandbox], Sandbox]) -> None:
    """A copy does not share what the original has prepared for spawning."""
    box = Sandbox()
    assert copier(box)._cache is not box._cache


@copiers
def test_sandbox_copy_cannot_be_changed(copier: Callable[[Sandbox], Sandbox]) -> None:
    """A copy is as immutable as the original, its environment too."""
    twin = copier(Sandbox(env={"A": "1"}))
    with pytest.raises(AttributeError):
        twin.uid = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        twin.env["A"] = "2"  # type: ignore[index]


@given(mount_lists, environments, ids, ids)
def test_sandbox_of_any_kind_survives_pickling(
    mounts: list[Mount], env: dict[str, str], uid: int, gid: int
) -> None:
    """Whatever a sandbox is made of, it arrives equal in another process."""
    box = Sandbox(mounts=mounts, env=env, uid=uid, gid=gid)
    assert _pickled(box) == box


def test_sandbox_with_a_namespace_cannot_be_pickled() -> None:
    """An open namespace cannot travel; the error says what to do instead."""
    with Namespace.of(0, "uts") as namespace:
        box = Sandbox(uts=namespace)
        with pytest.raises(TypeError) as caught:
            pickle.dumps(box)
    assert "persist" in str(caught.value)


def test_sandbox_with_a_namespace_compares_by_namespace() -> None:
    """Two sandboxes that join the same namespace by different descriptors are equal."""
    with Namespace.of(0, "uts") as one, Namespace.of(0, "uts") as other:
        assert Sandbox(uts=one) == Sandbox(uts=other)
        assert hash(Sandbox(uts=one)) == hash(Sandbox(uts=other))


# ---- invalid values ------------------------------------------------------


INVALID: list[tuple[str, Any, type[Exception]]] = [
    ("limits", {"pids": 3}, PlanTypeError),
    ("cgroup", "", PlanError),
    ("cgroup", (), PlanTypeError),
    ("cgroup", 3, PlanTypeError),
    ("cgroup", [None], PlanTypeError),
    ("root", "", PlanError),
    ("root", "/a\0", PlanError),
    ("root", "/\ud800", PlanError),
    ("root", 3, PlanTypeError),
    ("root", Tmpfs("/"), PlanTypeError),
    ("root", Overlay("/a", "/b"), PlanError),
    ("writable", 1, PlanTypeError),
    ("writable", None, PlanTypeError),
    ("mounts", None, PlanTypeError),
    ("mounts", "/tmp", PlanTypeError),
    ("mounts", ["/tmp"], PlanTypeError),
    ("mounts", Tmpfs("/tmp"), PlanTypeError),
    ("default_mounts", 0, PlanTypeError),
    ("masks", None, PlanTypeError),
    ("masks", "/a", PlanTypeError),
    ("masks", ["a"], PlanError),
    ("masks", ["/"], PlanError),
    ("masks", ["/a/../.."], PlanError),
    ("masks", [5], PlanTypeError),
    ("hostname", "", PlanError),
    ("hostname", "a" * 65, PlanError),
    ("hostname", "é" * 33, PlanError),
    ("hostname", "a\0", PlanError),
    ("hostname", "\ud800", PlanError),
    ("hostname", 5, PlanTypeError),
    ("hostname", b"box", PlanTypeError),
    ("cwd", "", PlanError),
    ("cwd", "tmp", PlanError),
    ("cwd", "/a/..", PlanError),
    ("cwd", "/\0", PlanError),
    ("cwd", None, PlanTypeError),
    ("env", {"A=B": "1"}, PlanError),
    ("env", {"": "1"}, PlanError),
    ("env", {"A": "\0"}, PlanError),
    ("env", {"A": "\ud800"}, PlanError),
    ("env", {"A": 1}, PlanTypeError),
    ("env", ["A=1"], PlanTypeError),
    ("env", None, PlanTypeError),
    ("user", "old", PlanError),
    ("user", None, PlanError),
    ("pid", "", PlanError),
    ("pid", 1, PlanError),
    ("uts", "NEW", PlanError),
    ("uts", False, PlanError),
    ("ipc", None, PlanError),
    ("ipc", ["new"], PlanError),
    ("net", "none", PlanError),
    ("net", None, PlanError),
    ("cgroup_ns", "cgroup", PlanError),
    ("cgroup_ns", b"new", PlanError),
    ("time", "", PlanError),
    ("time", 0, PlanError),
    ("capabilities", "CAP_KILL", PlanTypeError),
    ("capabilities", None, PlanTypeError),
    ("capabilities", ["CAP_NONE"], PlanError),
    ("capabilities", [1], PlanTypeError),
    ("seccomp", "/nonexistent/profile.json", PlanError),
    ("seccomp", "", PlanError),
    ("seccomp", "a\0", PlanError),
    ("seccomp", 5, PlanTypeError),
    ("seccomp", False, PlanTypeError),
    ("seccomp", {}, PlanError),
    ("user_namespaces", 1, PlanTypeError),
    ("user_namespaces", None, PlanTypeError),
    ("landlock", 1, PlanTypeError),
    ("landlock", "yes", PlanTypeError),
    ("namespaces", "new", PlanError),
    ("namespaces", None, PlanError),
    ("namespaces", False, PlanError),
    ("init", 1, PlanError),
    ("init", None, PlanError),
    *[
        (name, value, error)
        for name in ("uid", "gid", "host_uid", "host_gid")
        for value, error in (
            (-1, PlanError),
            (2**32 - 1, PlanError),
            ("0", PlanTypeError),
            (True, PlanTypeError),
            (1.0, PlanTypeError),
        )
    ],
]


@pytest.mark.parametrize(
    ("name", "value", "error"), INVALID, ids=[f"{n}-{case[0]}" for n, case in enumerate(INVALID)]
)
def test_sandbox_invalid_value_is_refused(name: str, value: Any, error: type[Exception]) -> None:
    """A value that cannot be meant is refused at once, with a message that names the field."""
    with pytest.raises(PlanError) as caught:
        Sandbox(**{name: value})
    assert isinstance(caught.value, error)
    assert name in str(caught.value)


def test_sandbox_every_field_is_tested_with_invalid_values() -> None:
    """The list above leaves out no field."""
    public = {item.name for item in dataclasses.fields(Sandbox) if not item.name.startswith("_")}
    assert public == set(FIELDS) == {case[0] for case in INVALID}


def test_sandbox_namespace_of_another_kind_is_refused() -> None:
    """A field for one kind of namespace takes no other."""
    with Namespace.of(0, "uts") as namespace, pytest.raises(PlanError) as caught:
        Sandbox(net=namespace)
    assert "net" in str(caught.value)


def test_sandbox_contradictions_are_refused_when_made() -> None:
    """What can be meant on no host is refused before any spawn."""
    for contradiction in (
        {"hostname": "box", "uts": "host"},
        {"mounts": [Tmpfs("/a"), Proc("/a")]},
        {"mounts": [Tmpfs("/")]},
        {"user": "host", "host_uid": 1000},
    ):
        with pytest.raises(PlanError):
            Sandbox(**contradiction)


# ---- arguments of a spawn, refused before anything starts ------------------


@pytest.mark.parametrize(
    ("args", "options", "error"),
    [
        ([], {}, PlanError),
        ("a\0b", {}, PlanError),
        (["true", "a\0b"], {}, PlanError),
        (["true", "\ud800"], {}, PlanError),
        (["true", 5], {}, PlanTypeError),
        ([None], {}, PlanTypeError),
        (["true"], {"cwd": "relative"}, PlanError),
        (["true"], {"cwd": "/\0"}, PlanError),
        (["true"], {"env": {"A=": "1"}}, PlanError),
        (["true"], {"env": {"A": 1}}, PlanTypeError),
        (["true"], {"executable": "a\0"}, PlanError),
        (["true"], {"preexec_fn": print}, PlanError),
        (["true"], {"unknown": 1}, PlanTypeError),
        (["true"], {"input": b"", "stdin": 0}, PlanError),
        (["true"], {"capture_output": True, "stdout": 1}, PlanError),
    ],
    ids=repr,
)
def test_run_invalid_argument_is_refused(
    args: Any, options: dict[str, Any], error: type[Exception]
) -> None:
    """An argument that cannot be meant raises PlanError, and nothing is started."""
    with pytest.raises(PlanError) as caught:
        Sandbox().run(args, **options)
    assert isinstance(caught.value, error)


def test_sandbox_is_frozen() -> None:
    """A policy cannot change once it is made: neither its fields nor what they hold."""
    mounts: list[Mount] = [Tmpfs("/data")]
    box = Sandbox(mounts=mounts, env={"A": "1"})
    mounts.append(Bind("/"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        box.writable = True  # type: ignore[misc]
    with pytest.raises(TypeError):
        box.env["LD_PRELOAD"] = "evil"  # type: ignore[index]
    assert box.mounts == (Tmpfs("/data"),)
