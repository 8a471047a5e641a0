"""
Lists of mounts that lie beside, within and above each other, against a model: mount_model.py.

Each example is run several times: made as a whole, with the list reversed, from what is made
ahead, in a live sandbox and in one of a pool. What the payload sees must be what the model
says, and always the same.
"""

import errno
import os
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

import strategies  # noqa: F401  # it loads the profile
from mount_model import Contradiction, Seen, Unclear, World, parts, predict
from nsbox import Bind, Dev, Live, Overlay, PlanError, Pool, Proc, Sandbox, SpawnError, Step, Tmpfs
from nsbox.mount import Mount
from support import tree

pytestmark = pytest.mark.usefixtures("box")

# Tells of each path what is there, whether it can be changed, what a file says, and what a
# directory holds if that is not much; then of the file systems, and of all mounts.
LOOK = r"""
busybox=$1 made=
shift
for path; do
    kind=none text= names=
    if [ -d "$path" ]; then
        kind=directory
        for entry in "$path"/* "$path"/.[!.]*; do
            [ ${#names} -lt 400 ] || break
            case ${entry##*/} in [0-9]*) continue ;; esac
            if [ -e "$entry" ] || [ -L "$entry" ]; then names="$names ${entry##*/}"; fi
        done
    elif [ -f "$path" ]; then
        kind=file
        read -r text <"$path"
    elif [ -e "$path" ]; then
        kind=other
    fi
    echo "seen|$path|$kind|$text|$names"
done
for path; do
    if [ -d "$path" ]; then
        true >"$path/.new" && echo "can|$path" && made="$made $path/.new"
    elif [ -f "$path" ]; then
        true >>"$path" && echo "can|$path"
    fi
done
"$busybox" rm -f $made
"$busybox" stat -L -f -c 'on|%n|%t|%b' "$@"
"$busybox" stat -L -c 'info|%n|%a %u %g %F' "$@"
[ -e /proc/self/mountinfo ] || exit 0
while read -r id parent device root point options rest; do
    rest=${rest##* - }
    echo "mount|$point|$options ${rest%% *}"
done </proc/self/mountinfo
exit 0
"""

TYPES = {"tmpfs": "1021994", "proc": "9fa0", "devpts": "1cd1", "overlay": "794c7630"}
"""Of file systems whose type is no secret of the host's, in the words of stat(1)."""

DOUBTFUL = {(Step.MKDIR, errno.EACCES), (Step.TARGET, errno.ENOENT)}
"""What comes of a mount point that is missing where only a link leads."""

TREES = ["one", "two", "three"]
READ = {"bind": ["one", "one/a", "two", "two/b", "three"], "file": ["one/f", "two/b/f"]}
# None of the layers: an overlay need not notice what changes below it.
WRITTEN = {"bind": ["open", "open/b"], "file": ["open/b/f"]}

# ---- examples ---------------------------------------------------------------

NAMES = ["a", "a", "a", "b", "b", "c", "f", "l", "k", "u"]
EMPTY = ["", "/srv", "/tmp", "/dev/shm", "/home/sandbox"]
FULL = ["", "/usr/share", "/usr", "/etc", "/etc/ssl", "/lib", "/lib64", "/sbin", "/home", "/dev"]
KINDS = ["bind", "bind", "bind", "file", "tmpfs", "tmpfs", "overlay", "upper", "proc", "dev"]


def _rarely(rng: Random) -> bool:
    return rng.random() < 0.1


def _may_hold(mount: Mount) -> bool:
    return isinstance(mount, (Tmpfs, Overlay)) or (isinstance(mount, Bind) and mount.readonly)


def _target(rng: Random, others: Sequence[Mount]) -> str:
    """Choose a target, as likely as not beside or within those of others."""
    if others and rng.random() < 0.6:
        holders = [] if _rarely(rng) else list(filter(_may_hold, others))
        above = rng.choice(holders or others).target
        above = above if rng.random() < 0.6 else os.path.dirname(above)
        names = rng.choices(NAMES, k=rng.randint(1, 2))
    elif rng.random() < 0.5:
        above, names = rng.choice(["", "/srv", "/tmp"]), rng.choices("ab", k=rng.randint(1, 3))
    else:
        above, names = rng.choice([*EMPTY, *FULL]), rng.choices(NAMES, k=rng.randint(0, 3))
    return "/".join([above.rstrip("/"), *names]) or "/a"


def _mount(rng: Random, base: Path, others: Sequence[Mount]) -> Mount:
    target = _target(rng, others)
    if target == "/dev" and not _rarely(rng):
        return Dev(target, shm_size="1M")
    if _rarely(rng):
        return Bind(rng.choice(["/usr", "/usr/share", "/usr/lib", "/etc", "/etc/ssl"]))
    match rng.choice(KINDS):
        case "bind" | "file" as kind:
            readonly = rng.random() < 0.7
            source = rng.choice((READ if readonly else WRITTEN)[kind])
            return Bind(base / source, target, readonly=readonly)
        case "tmpfs":
            mode = rng.choice([0o1777, 0o700, 0o555, 0o755])
            return Tmpfs(target, size=rng.choice(["64K", "1M"]), inodes=100, mode=mode)
        case "overlay":
            lower = rng.sample(TREES, k=rng.randint(1, 3))
            return Overlay([base / name for name in lower], target, size="1M")
        case "upper":
            # Each run of an example needs fresh ones: see _with_layers().
            return Overlay(base / rng.choice(TREES), target, upper="/upper", work="/aside")
        case "proc":
            return Proc(target)
        case _:
            return Dev(target, shm_size="1M")


@st.composite
def _boxes(draw: st.DrawFn, base: Path) -> dict[str, Any]:
    """
    Draw what a Sandbox is made of.

    By numbers, since hypothesis would draw few lists with much in them, and change a little of
    one for the next. It chooses which mounts are left, so it finds out which are needed.
    """
    rng = Random(draw(st.integers(0, 2**64 - 1)))
    kept = draw(st.lists(st.sampled_from([False, True]), min_size=8, max_size=8))
    mounts: list[Mount] = []
    for keep in kept:
        mount = _mount(rng, base, mounts)
        mounts += [mount] if keep else []
    if not _rarely(rng):
        mounts = list({mount.target: mount for mount in mounts}.values())
    some = rng.sample(mounts, k=min(2, len(mounts)) if rng.random() < 0.3 else 0)
    masks = [mount.target + rng.choice(["", "/a", "/b", "/f", "/shm"]) for mount in some]
    image = base / rng.choice(["image", "image", "ready", "links"])
    root = rng.choice([None, None, None, None, image, image, Overlay(image, size="1M")])
    # One that lacks mount points cannot be written.
    may_write = root is None or root == base / "ready" or (root == image and _rarely(rng))
    return {
        "root": root,
        "writable": may_write and rng.random() < 0.5,
        "mounts": mounts,
        "masks": masks,
        "uid": rng.choice([None, None, 1000]),
        "default_mounts": rng.random() < 0.8,
    }


# ---- trees of the host ------------------------------------------------------


def _fill(directory: Path, *names: str) -> None:
    """Make directories with a file in each that says which it is, files called "f", and links."""
    for name in ("", *names):
        path = directory / name
        if "=" in name:
            name, text = name.split("=")
            (directory / name).symlink_to(text)
        elif path.name == "f":
            path.write_text(f"{directory.name}/{name}\n")
        else:
            path.mkdir(parents=True, exist_ok=True)
            (path / "marker").write_text(f"{directory.name}/{name}\n")


@pytest.fixture
def trees(tmp_path: Path, busybox: str) -> Path:
    """A directory with trees of the host: some to show, and some to be a root."""
    _fill(tmp_path / "one", "a", "a/b", "a/b/c", "f")
    _fill(tmp_path / "two", "b", "b/f", "b/a", "l=b", "k=/a/b", "u=../b")
    _fill(tmp_path / "open", "b", "b/f", "b/a", "l=b", "k=/a/b", "u=../b")
    _fill(tmp_path / "three", "c", "c/a", "f", "a=c", "b=/srv", "l=missing")
    _fill(tmp_path / "image", "bin", "a", "a/b", "etc", "f")
    _fill(tmp_path / "ready", "bin", "dev", "proc", "tmp", "a/a", "a/b", "b/a", "b/b", "srv/a", "c")
    _fill(tmp_path / "links", "bin", "b", "b/a", "a=b", "c=/b/a", "srv=/b", "tmp=b", "l=missing")
    for image in ("image", "ready", "links"):
        shutil.copy(busybox, tmp_path / image / "bin" / "busybox")
    for directory, _, names in os.walk(tmp_path):
        os.chmod(directory, 0o755)
        for name in names:
            path = Path(directory, name)
            if not path.is_symlink() and name != "busybox":
                path.chmod(0o644)
    return tmp_path


def _state(base: Path) -> dict[str, Any]:
    """Return what is in the trees, without the times of directories: payloads make files there."""
    return {
        path: entry[:2] if stat.S_ISDIR(entry[0]) else entry
        for name in (*TREES, "open", "image", "ready", "links")
        for path, entry in {name + "/" + key: e for key, e in tree(base / name).items()}.items()
    }


def _with_layers(mounts: Sequence[Mount], layers: Path) -> Iterator[Mount]:
    """Yield the mounts, with upper layers of their own in a directory."""
    for number, mount in enumerate(mounts):
        if isinstance(mount, Overlay) and mount.upper is not None:
            place = layers / str(number)
            (place / "up" / "b").mkdir(parents=True)
            (place / "up" / "upper").write_text("")
            (place / "aside").mkdir()
            for path in (layers, place, place / "up", place / "up" / "b"):
                path.chmod(0o755)
            yield Overlay(mount.lower, mount.target, upper=place / "up", work=place / "aside")
        else:
            yield mount


# ---- the comparison ---------------------------------------------------------


def _paths(box: Sandbox) -> list[str]:
    """Return where to look: at each target, what is above it, and some of what may be below."""
    found: dict[str, None] = {"/": None}
    for mount in box.mounts:
        names = parts(mount.target)
        for length in range(len(names) + 1):
            found["/" + "/".join(names[:length])] = None
        for name in ("marker", "upper", "a", "b", "b/marker", "f", "l", "k", "u", "null", "shm"):
            found["/".join((mount.target.rstrip("/"), name))] = None
    return [path for path in found if "/proc" not in path and "busybox" not in path]


def _difference(seen: Seen, found: Mapping[str, str]) -> str | None:
    """Return what of a path differs from the prediction, or None."""
    kind, text, names = found["seen"].split("|")
    filesystem, _, blocks = found.get("on", "").partition("|")
    system = seen.system
    if kind != seen.type:
        return f"type {seen.type}"
    if system is None:
        return None
    if seen.type != "other" and ("can" in found) != seen.writable:
        return f"writable {seen.writable}"
    if seen.text is not None and text != seen.text:
        return f"text {seen.text!r}"
    if system.kind in TYPES and filesystem != TYPES[system.kind] and seen.type != "other":
        return f"file system {system.kind}"
    if system.size is not None and int(blocks) * 4096 != system.size:
        return f"size {system.size}"
    if seen.names is None or system.kind == "proc" or len(names) >= 400:
        return None
    return None if set(names.split()) == seen.names else f"names {sorted(seen.names)}"


def _survey(runner: Sandbox | Live | Pool, program: str, paths: list[str]) -> list[str]:
    command = [program, "sh", "-c", LOOK, "look", program, *paths]
    result = runner.run(command, capture_output=True, text=True, errors="replace")
    assert result.returncode == 0, result.stderr
    return sorted(result.stdout.removesuffix("\n").split("\n"))


def _check_first(survey: list[str], world: World, paths: list[str]) -> None:
    found: dict[str, dict[str, str]] = {path: {} for path in paths}
    for line in survey:
        kind, path, *rest = line.split("|", 2)
        if kind != "mount":
            found[path][kind] = "".join(rest)
    for path, lines in found.items():
        difference = _difference(world.see(path), lines)
        assert difference is None, f"{path} is {lines}, not {difference}"


def _check(fields: dict[str, Any], busybox: str, ends: Counter[str]) -> None:
    try:
        world = predict(**fields)
    except Contradiction:
        with pytest.raises(PlanError):
            Sandbox(**fields)
        ends["contradiction"] += 1
        return
    except Unclear:
        return
    program = "/bin/busybox"
    if fields["root"] is None:
        program = os.path.realpath(busybox)
        if not program.startswith("/usr/") or world.see(program).type != "file":
            program = "/busybox"
            fields = {**fields, "mounts": [*fields["mounts"], Bind(busybox, program)]}
            world = predict(**fields)
    box = Sandbox(**fields)
    paths = _paths(box)
    assert str(box.explain())
    if world.failed:
        for _ in range(2):  # the second time after a first
            with pytest.raises(SpawnError) as caught:
                _survey(box, program, paths)
            assert caught.value.path in world.failed | world.doubtful
        ends["failure"] += 1
    elif world.see(program).type == "file":
        _check_runs(box, world, program, ends)


def _check_runs(box: Sandbox, world: World, program: str, ends: Counter[str]) -> None:
    paths = _paths(box)
    try:
        first = _survey(box, program, paths)
    except SpawnError as error:
        if (error.step, error.errno) in DOUBTFUL and error.path in world.doubtful:
            return
        raise
    _check_first(first, world, paths)
    other = replace(box, mounts=box.mounts[::-1])
    assert _survey(other, program, paths) == first
    assert _survey(box, program, paths) == first
    ends["ran"] += 1
    store = box._cache.store(box._cache.lowered(box))
    if store is not None and store.fill() > 0:
        assert _survey(box, program, paths) == first
        ends["ahead"] += 1
    with box.open() as live:
        assert _survey(live, program, paths) == first
    if any(isinstance(mount, Overlay) and mount.upper for mount in box.mounts):
        return
    try:
        pool = box.pool(1)
    except SpawnError as error:
        if error.path in world.hidden():
            return  # as docs/pool.md has it
        raise
    with pool:
        assert _survey(pool, program, paths) == first
        ends["pool"] += pool.stats().warm


# An older kernel looks paths up no other way, and an emulated one takes minutes.
@pytest.mark.one_kernel
def test_lists_of_mounts(trees: Path, busybox: str, request: pytest.FixtureRequest) -> None:
    """Whatever lies above, within or beside what: the payload sees it, and the host stays."""
    examples = 1000 if request.config.getoption("--long") else 80
    before = _state(trees)
    ends: Counter[str] = Counter()

    @seed(request.config.getoption("--seed"))
    @settings(max_examples=examples)
    @given(_boxes(trees))
    def check(fields: dict[str, Any]) -> None:
        layers = Path(tempfile.mkdtemp(dir=trees))
        try:
            mounts = list(_with_layers(fields["mounts"], layers))
            _check({**fields, "mounts": mounts}, busybox, ends)
        finally:
            for work in layers.glob("*/aside/*"):
                work.chmod(0o700)
            shutil.rmtree(layers)
        assert _state(trees) == before

    check()
    assert ends["ran"] > examples // 5, f"the examples are worth little: {ends}"
    assert min(ends["ahead"], ends["pool"]) > 0
