"""
Random sandboxes: whatever is combined, the same few things hold.

Hypothesis draws mounts, root, ids, namespaces and capabilities; each example is
spawned for real, and a payload inside looks around and tries to write wherever
something was mounted.
"""

import errno
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from attack import PROGRAM
from hypothesis import given, settings
from hypothesis import strategies as st

import fingerprint
from nsbox import Bind, Dev, Overlay, PlanError, Proc, Sandbox, SpawnError, Step, Tmpfs
from nsbox.mount import Mount
from strategies import ids

pytestmark = pytest.mark.usefixtures("unharmed")

CAPABILITIES = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "NET_ADMIN", "SETUID", "SYS_ADMIN", "SYS_PTRACE"]

# What a random combination may fail at: mount points that cannot be, and nothing else.
EXPECTED = {Step.TARGET, Step.MKDIR, Step.MKNOD, Step.MOVE_MOUNT, Step.EXECVE, Step.FSCONFIG_CREATE}

_names = st.sampled_from(["data", "sub", "link", "etc", "file", "tmp", "usr", "up"])
_targets = st.lists(_names, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
_sources = st.sampled_from(["readonly", "readonly/sub", "writable", "readonly/file", "canary"])


@st.composite
def _mounts(draw: st.DrawFn, base: Path) -> Mount:
    target = draw(_targets)
    match draw(st.sampled_from(["bind", "bind", "tmpfs", "overlay", "proc", "dev"])):
        case "bind":
            source = draw(_sources)
            return Bind(base / source, target, readonly=source != "writable")
        case "overlay":
            return Overlay(base / draw(st.sampled_from(["readonly", "canary"])), target, size="1M")
        case "tmpfs":
            return Tmpfs(target, size="1M", inodes=100)
        case "proc":
            return Proc(target)
        case _:
            return Dev(target, shm_size="1M")


def _root(base: Path) -> st.SearchStrategy[Any]:
    tree = base / "image"
    return st.sampled_from([None, None, str(tree), Overlay(tree, size="1M")])


@st.composite
def _descriptions(draw: st.DrawFn, base: Path) -> dict[str, Any]:
    mode = st.sampled_from(["new", "new", "host"])
    return {
        "root": draw(_root(base)),
        "mounts": draw(st.lists(_mounts(base), max_size=5)),
        "default_mounts": draw(st.booleans()),
        "uid": draw(st.none() | ids),
        "gid": draw(st.none() | ids),
        "uts": draw(mode),
        "ipc": draw(mode),
        "net": draw(mode),
        "pid": draw(mode),
        "cgroup_ns": draw(mode),
        "time": draw(st.sampled_from([None, None, "new"])),
        "capabilities": draw(st.lists(st.sampled_from(CAPABILITIES), unique=True, max_size=3)),
    }


@pytest.fixture
def trees(tmp_path: Path, canary: Path) -> Path:
    """A directory with trees of the host: for reading, for writing, and one to be a root."""
    for name in ("readonly/sub", "writable", "image/data/sub", "image/etc", "image/usr"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "readonly" / "file").write_text("text")
    (tmp_path / "readonly" / "link").symlink_to("../writable")
    (tmp_path / "readonly" / "up").symlink_to("/.." * 9 + str(canary))
    (tmp_path / "image" / "link").symlink_to("/data")
    (tmp_path / "image" / "file").touch()
    (tmp_path / "image" / PROGRAM[1:]).touch()
    for path in (tmp_path / "readonly", tmp_path / "readonly" / "sub", tmp_path / "image"):
        path.chmod(0o777)
    return tmp_path


def _survey(box: Sandbox) -> dict[str, str]:
    """Return what a payload finds: "NAME VALUE" lines, and the outcome of a write for each path."""
    paths = [f"{mount.target}/marker" for mount in box.mounts]
    result = box.run([PROGRAM, "survey", "/marker", *paths], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return dict(line.rsplit(" ", 1) for line in result.stdout.splitlines())


def _check(fields: dict[str, Any], hostile: Path) -> str:
    """Spawn one example, check what the payload finds, and return how far it came."""
    try:
        box = Sandbox(**{**fields, "mounts": [*fields["mounts"], Bind(hostile, PROGRAM)]})
    except PlanError:
        return "contradiction"
    try:
        found = _survey(box)
    except SpawnError as error:
        return error.step
    assert found["descriptors"] == "0"
    assert found["no_new_privs"] == "1"
    assert found["above"] == "0"
    assert found["ids"] == f"{fields['uid'] or 0}:{fields['gid'] or 0}"
    assert bool(int(found["capabilities"], 16)) == bool(fields["capabilities"])
    if any("link" in mount.target for mount in fields["mounts"]):
        return "ran"  # two targets can be one place then, and what is seen is the later mount
    for mount in fields["mounts"]:
        if isinstance(mount, Bind) and mount.readonly:
            assert found[f"{mount.target}/marker"] != "ok", mount
    return "ran"


def test_random_sandboxes_keep_their_promises(
    trees: Path, hostile: Path, request: pytest.FixtureRequest
) -> None:
    """Nothing of the host inside that was not given; nothing written but where it is allowed."""
    watched = [trees / name for name in ("readonly", "image", "canary")]
    examples = 500 if request.config.getoption("--long") else 60

    ends: Counter[str] = Counter()

    @settings(max_examples=examples)
    @given(_descriptions(trees))
    def check(fields: dict[str, Any]) -> None:
        before = fingerprint.take(watched)
        ends[_check(fields, hostile)] += 1
        assert fingerprint.take(watched) == before
        assert set(os.listdir(trees / "writable")) <= {"marker"}

    check()
    assert set(ends) <= {"ran", "contradiction", *EXPECTED}
    assert ends["ran"] > examples // 10, f"the examples are worth little: {ends}"


@pytest.mark.parametrize("value", ["1", "01", "1:2", "", "-1", b"1", 1.0, True, -1, 2**32 - 1])
@pytest.mark.parametrize("name", ["uid", "gid", "host_uid", "host_gid"])
def test_id_is_never_guessed(name: str, value: object) -> None:
    """An id is an int in range: nothing is parsed, and nothing becomes 0 by mistake."""
    with pytest.raises((PlanError, TypeError)):
        Sandbox(**{name: value})  # type: ignore[arg-type]


def test_errno_of_a_refusal_is_real(trees: Path, hostile: Path) -> None:
    """The fuzzer's refusals are errors of the kernel, not of a broken test."""
    with pytest.raises(SpawnError) as caught:
        Sandbox(mounts=[Bind(trees / "writable", "/w", readonly=False), Tmpfs("/w/x")]).run(["x"])
    assert caught.value.errno == errno.ENOENT
