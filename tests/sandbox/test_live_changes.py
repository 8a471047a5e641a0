"""What a live sandbox has changed in its overlays, read from the upper layer."""

import errno
import gc
import os
import resource
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import open_fds, unavailable
from nsbox import Bind, CgroupError, FileError, Live, Overlay, Sandbox, SpawnError, Step, Tmpfs
from nsbox._child import Child
from nsbox._request import Request
from nsbox.mount import Mount
from support import PYTHON, descriptors, expose, in_child, python_box, running

pytestmark = pytest.mark.usefixtures("box")

Found = list[tuple[str, str]]

RELEASE = tuple(int(part) for part in os.uname().release.split(".")[:2])


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    """A lower layer: files, directories, and a link; everything belongs to the payload."""
    layer = expose(tmp_path) / "lower"
    for name in ("dir/sub", "gone/deep", "again"):
        (layer / name).mkdir(parents=True)
    for name in ("file", "other", "dir/file", "gone/file", "gone/deep/file", "again/old"):
        (layer / name).write_text(name)
    (layer / "link").symlink_to("file")
    return expose(layer)


def changes(live: Live) -> Found:
    return [(change.path, change.kind.value) for change in live.changes()]


def after(lower: Path, script: str, **fields: object) -> Found:
    """Return what a shell script changes in an overlay on /tree."""
    with Sandbox(mounts=[Overlay(lower, "/tree", **fields)]).open() as live:  # type: ignore[arg-type]
        live.run(["/bin/sh", "-ec", script], cwd="/tree", check=True)
        return changes(live)


SCRIPTS: dict[str, tuple[str, Found]] = {
    "nothing": ("cat file dir/file; ls -lR", []),
    "added": ("echo x > new", [("new", "added")]),
    "added_deep": (
        "mkdir -p dir/a/b; echo x > dir/a/b/c",
        [("dir/a", "added"), ("dir/a/b", "added"), ("dir/a/b/c", "added")],
    ),
    "added_link": ("ln -s /etc/passwd new", [("new", "added")]),
    "added_fifo": ("mkfifo new", [("new", "added")]),
    "added_and_removed": ("echo x > new; rm new", []),
    "changed": ("echo x >> file", [("file", "changed")]),
    "changed_deep": ("echo x >> dir/file", [("dir/file", "changed")]),
    "changed_mode": ("chmod 600 file", [("file", "changed")]),
    "changed_directory": ("chmod 700 dir", [("dir", "changed")]),
    "replaced": ("rm file; echo x > file", [("file", "changed")]),
    "replaced_link": ("rm link; ln -s other link", [("link", "changed")]),
    "file_to_directory": (
        "rm file; mkdir file; echo x > file/x",
        [("file", "changed"), ("file/x", "added")],
    ),
    "directory_to_file": ("rm -r gone; echo x > gone", [("gone", "changed")]),
    "deleted": ("rm file link", [("file", "deleted"), ("link", "deleted")]),
    "deleted_tree": ("rm -r gone", [("gone", "deleted")]),
    "deleted_inside": ("rm gone/deep/file", [("gone/deep/file", "deleted")]),
    "renamed": ("mv file new", [("file", "deleted"), ("new", "added")]),
    "renamed_over": ("mv file other", [("file", "deleted"), ("other", "changed")]),
    "made_again": (
        "rm -r again; mkdir again; echo x > again/new",
        [("again/new", "added"), ("again/old", "deleted")],
    ),
    "made_again_with_the_same": (
        "rm -r gone; mkdir -p gone/deep; echo x > gone/file",
        [("gone/deep/file", "deleted"), ("gone/file", "changed")],
    ),
    "odd_names": (
        "mkdir 'a b'; echo x > 'a b/new\nline'; echo x > -n",
        [("-n", "added"), ("a b", "added"), ("a b/new\nline", "added")],
    ),
}


def needs_attributes() -> None:
    """To replace a directory the overlay needs an upper layer that keeps its marks."""
    if RELEASE < (6, 6):
        unavailable("tmpfs keeps user.* attributes since Linux 6.6", newer_kernel=True)


_REPLACING = ("rm -r", "rm file; mkdir file")


@pytest.mark.parametrize(("script", "expected"), SCRIPTS.values(), ids=SCRIPTS)
def test_kinds(lower: Path, script: str, expected: Found) -> None:
    """Each change is listed once, by what has become of the path."""
    if script.startswith(_REPLACING):
        needs_attributes()
    assert after(lower, script) == [(f"/tree/{path}", kind) for path, kind in expected]


def test_renamed_directory(lower: Path) -> None:
    """A directory that is moved is deleted in one place and added, with its content, in another."""
    needs_attributes()
    assert after(lower, "mv gone dir/moved") == [
        ("/tree/dir/moved", "added"),
        ("/tree/dir/moved/deep", "added"),
        ("/tree/dir/moved/deep/file", "added"),
        ("/tree/dir/moved/file", "added"),
        ("/tree/gone", "deleted"),
    ]


def test_names_that_are_no_text(lower: Path) -> None:
    """Bytes that are no UTF-8 come as surrogates, for os.fsencode()."""
    found = after(lower, r"""echo x > "$(printf 'new\377')" """)
    assert [os.fsencode(path) for path, _ in found] == [b"/tree/new\xff"]


def test_state_between_commands(lower: Path) -> None:
    """Changes of one command are there for the next, and the list grows with them."""
    with Sandbox(mounts=[Overlay(lower, "/tree")]).open() as live:
        assert changes(live) == []
        live.run(["/bin/sh", "-c", "echo x > /tree/new"], check=True)
        assert changes(live) == [("/tree/new", "added")]
        live.run(["/bin/rm", "/tree/new", "/tree/file"], check=True)
        assert changes(live) == [("/tree/file", "deleted")]
    assert (lower / "file").read_text() == "file"


def test_root(rootfs: Path) -> None:
    """The root can be an overlay; the mount points that nsbox has made in it are no changes."""
    box = Sandbox(root=Overlay(rootfs), mounts=[Tmpfs("/deep/mount/point")])
    with box.open() as live:
        assert changes(live) == []
        live.run(["/bin/sh", "-c", "echo x > /tmp/x; mkdir /made; rm /bin/id"], check=True)
        assert changes(live) == [("/bin/id", "deleted"), ("/made", "added")]


def test_several(lower: Path, tmp_path: Path) -> None:
    """All overlays are listed, in the order of their mount points."""
    other = tmp_path / "other"
    other.mkdir()
    mounts = [Overlay(expose(other), "/b"), Overlay(lower, "/a")]
    with Sandbox(mounts=mounts).open() as live:
        live.run(["/bin/sh", "-c", "touch /b/new /a/new"], check=True)
        assert changes(live) == [("/a/new", "added"), ("/b/new", "added")]


def test_no_overlay() -> None:
    """Without an overlay there is nothing to list."""
    with Sandbox().open() as live:
        assert live.changes() == []


def test_given_upper(lower: Path, tmp_path: Path) -> None:
    """An upper layer of the host keeps the changes, and lists those of earlier sandboxes too."""
    upper, work = tmp_path / "upper, :", tmp_path / "work"
    for path in (upper, work):
        path.mkdir()
    try:
        overlay = Overlay(lower, "/tree", upper=upper, work=work)
        for name in ("one", "two"):
            with Sandbox(mounts=[overlay]).open() as live:
                live.run(["/bin/sh", "-c", f"echo x > /tree/{name}; rm -rf /tree/gone"], check=True)
                found = changes(live)
        assert found == [("/tree/gone", "deleted"), ("/tree/one", "added"), ("/tree/two", "added")]
    finally:
        for path in work.iterdir():
            path.chmod(0o700)


def test_many_lowers(tmp_path: Path) -> None:
    """What is in any lower layer, and not hidden by one above it, is there to be changed."""
    if RELEASE < (6, 8):
        unavailable("overlays of more than 88 layers need Linux 6.8", newer_kernel=True)
    layers = []
    for number in range(300):
        layer = expose(tmp_path) / str(number)
        (layer / "dir").mkdir(parents=True)
        (layer / "dir" / str(number)).touch()
        layers.append(expose(layer))
    with Sandbox(mounts=[Overlay(layers, "/tree")]).open() as live:
        live.run(["/bin/sh", "-c", "cd /tree/dir; echo x >> 0; echo x >> 299; rm 150"], check=True)
        assert changes(live) == [
            ("/tree/dir/0", "changed"),
            ("/tree/dir/150", "deleted"),
            ("/tree/dir/299", "changed"),
        ]


def test_lowers_with_whiteouts(lower: Path, tmp_path: Path) -> None:
    """Layers that are the uppers of earlier overlays hide what those had deleted."""
    middle, work = tmp_path / "middle", tmp_path / "work"
    for path in (middle, work):
        path.mkdir()
    try:
        script = "rm file; rm -r again; mkdir again; echo x > again/new"
        after(lower, script, upper=middle, work=work)
        assert after_stack([middle, lower], "echo x > file; echo x > again/old; rm other") == [
            ("/tree/again/old", "added"),
            ("/tree/file", "added"),
            ("/tree/other", "deleted"),
        ]
        assert after_stack([middle, lower], "rm -r again; mkdir again; rm again/new || true") == [
            ("/tree/again/new", "deleted"),
        ]
    finally:
        for path in work.iterdir():
            path.chmod(0o700)


def test_lowers_with_whiteouts_that_are_files(lower: Path, tmp_path: Path) -> None:
    """So do those with the marks of a file, which anybody can make (Linux 6.7)."""
    if RELEASE < (6, 7):
        unavailable("whiteouts that are files are known since Linux 6.7", newer_kernel=True)
    middle = tmp_path / "middle"
    (middle / "dir").mkdir(parents=True)
    for name, text in ("file", ""), ("dir/file", ""), ("other", "more than a mark"):
        (middle / name).write_text(text)
        try:
            os.setxattr(middle / name, "user.overlay.whiteout", b"y")
        except OSError as error:
            unavailable(f"no attributes in {tmp_path}: {error}")
    script = "for name in file dir/file other; do echo x > $name; done"
    assert after_stack([middle, lower], script) == [
        ("/tree/dir/file", "added"),
        ("/tree/file", "added"),
        ("/tree/other", "changed"),
    ]


def after_stack(layers: list[Path], script: str) -> Found:
    with Sandbox(mounts=[Overlay(layers, "/tree")]).open() as live:
        live.run(["/bin/sh", "-c", script], cwd="/tree", check=True)
        return changes(live)


def test_lower_is_replaced(lower: Path) -> None:
    """The lower layer is the one that was mounted, whatever its path means by now."""
    with Sandbox(mounts=[Overlay(lower, "/tree")]).open() as live:
        lower.rename(lower.parent / "moved")
        lower.mkdir()
        live.run(["/bin/sh", "-c", "echo x >> /tree/file"], check=True)
        assert changes(live) == [("/tree/file", "changed")]


def test_host_users(tmp_path: Path, root: None) -> None:
    """With the host's users, marks are in trusted attributes: root reads them, too."""
    lower = expose(tmp_path) / "lower"
    (lower / "again").mkdir(parents=True)
    (lower / "again" / "old").touch()
    for path in (lower, lower / "again", lower / "again" / "old"):
        path.chmod(0o777)
    box = Sandbox(mounts=[Overlay(lower, "/tree")], user="host")
    with box.open() as live:
        live.run(["/bin/sh", "-c", "cd /tree; rm -r again; mkdir -m 777 again"], check=True)
        assert changes(live) == [("/tree/again/old", "deleted")] or changes(live) == [
            ("/tree/again", "changed"),  # it belongs to the payload now
            ("/tree/again/old", "deleted"),
        ]


# ---- hostile trees ------------------------------------------------------------


def test_too_many(lower: Path) -> None:
    """More entries than asked for are an error that says what to raise."""
    with Sandbox(mounts=[Overlay(lower, "/tree")]).open() as live:
        live.run(["/bin/sh", "-c", "cd /tree; for i in $(seq 50); do : > $i; done"], check=True)
        assert len(live.changes(most=100)) == 50
        assert len(live.changes(most="1K")) == 50  # type: ignore[arg-type]
        with pytest.raises(FileError, match="most=") as caught:
            live.changes(most=40)
        assert caught.value.errno == errno.EFBIG


_DEEP = """
import os
os.chdir("/tree")
for _ in range(int(__import__("sys").argv[1])):
    os.mkdir("d")
    os.chdir("d")
"""


@pytest.mark.one_kernel
def test_deep(lower: Path) -> None:
    """A tree as deep as a path can say is listed; a deeper one is an error, not a crash."""
    with python_box(mounts=[Overlay(lower, "/tree")]).open() as live:
        live.run([*PYTHON, _DEEP, "2000"], check=True)
        assert len(live.changes()) == 2000
        live.run(["/bin/sh", "-c", "rm -r /tree/d"], check=True)
        live.run([*PYTHON, _DEEP, "3000"], check=True)
        with pytest.raises(FileError) as caught:
            live.changes()
        assert caught.value.errno == errno.ENAMETOOLONG


_MANY_BELOW = """
for number in range(1000):
    os.mkdir(f"{number:03}")
"""


@pytest.mark.one_kernel
def test_deep_and_many(lower: Path) -> None:
    """Long paths in great number are an error, before they fill the caller's memory."""
    with python_box(mounts=[Overlay(lower, "/tree")]).open() as live:
        live.run([*PYTHON, _DEEP + _MANY_BELOW, "1950"], check=True)
        tracemalloc.start()
        try:
            found = live.changes()
            assert tracemalloc.get_traced_memory()[1] < 40 << 20  # 4 KiB each, a few times over
            with pytest.raises(FileError, match="paths of more than") as caught:
                live.changes(most=10_000)
        finally:
            tracemalloc.stop()
        assert caught.value.errno == errno.EFBIG
        assert len(found) == 2950
        assert found == sorted(found, key=lambda change: change.path.split("/"))


def test_closed_directory(lower: Path, plain_user: None) -> None:
    """A directory that the payload has closed cannot be listed by a caller with the same rights."""
    with Sandbox(mounts=[Overlay(lower, "/tree")]).open() as live:
        live.run(["/bin/sh", "-c", "mkdir /tree/new; chmod 0 /tree/new"], check=True)
        with pytest.raises(PermissionError, match="/tree/new"):
            live.changes()


_CHURN = """
import os
os.makedirs("/tree/x/y", exist_ok=True)
os.write(1, b"x")
while True:
    open("/tree/x/y/file", "w").close()
    os.rename("/tree/x", "/tree/dir/x")
    os.symlink("/", "/tree/x")
    os.unlink("/tree/x")
    os.rename("/tree/dir/x", "/tree/x")
    os.unlink("/tree/x/y/file")
"""


@pytest.mark.one_kernel
def test_changed_meanwhile(lower: Path) -> None:
    """A tree that is changed while it is listed makes neither an error nor a way out of it."""
    box = python_box(mounts=[Overlay(lower, "/tree")])
    with box.open() as live, running(live, _CHURN):
        for _ in range(300):
            for change in live.changes():
                assert change.path.startswith("/tree/"), change
                assert "/etc" not in change.path


def test_from_threads(lower: Path) -> None:
    """Any number of threads may list at the same time."""
    found: list[Found] = []
    with Sandbox(mounts=[Overlay(lower, "/tree")]).open() as live:
        live.run(["/bin/sh", "-c", "echo x > /tree/new"], check=True)
        act: Callable[[], None] = lambda: found.append(changes(live))  # noqa: E731
        threads = [threading.Thread(target=act) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [[("/tree/new", "added")]] * 8


def test_submount_of_a_lower(tmp_path: Path, lower: Path) -> None:
    """A bind over a directory of the overlay hides it, and is none of its changes."""
    bound = tmp_path / "bound"
    bound.mkdir()
    bound.chmod(0o777)
    mounts: list[Mount] = [Overlay(lower, "/tree"), Bind(bound, "/tree/dir", readonly=False)]
    with Sandbox(mounts=mounts).open() as live:
        live.run(["/bin/sh", "-c", "touch /tree/dir/x /tree/y"], check=True)
        assert changes(live) == [("/tree/y", "added")]


# ---- who else has the layers --------------------------------------------------


def test_fork(lower: Path) -> None:
    """A fork of the caller has no descriptor of the layers, and the parent keeps its own."""
    with Sandbox(mounts=[Overlay(lower, "/tree")]).open() as live:
        before = layer_fds()
        assert before

        def child() -> tuple[bool, int]:
            return live.closed, len(layer_fds())

        assert in_child(child) == (True, 0)
        live.run(["/bin/sh", "-c", "echo x > /tree/new"], check=True)
        assert changes(live) == [("/tree/new", "added")]
        assert layer_fds() == before


def layer_fds() -> list[int]:
    """Return the descriptors of an upper layer in memory that this process has."""
    return [fd for fd, link in descriptors().items() if link == "/upper"]


def test_payload_has_no_layers(lower: Path) -> None:
    """Neither the payload nor the init has a descriptor of a layer, or of the way to the caller."""
    with python_box(mounts=[Overlay(lower, "/tree")]).open() as live:
        code = "import os; print(sorted(os.listdir('/proc/self/fd')))"
        result = live.run([*PYTHON, code], capture_output=True, text=True)
        assert result.stdout == "['0', '1', '2', '3']\n"
        if os.geteuid() == 0:
            links = descriptors(live.pid)
            assert not any(link.startswith("/") for link in links.values()), links


def test_no_descriptors_left(lower: Path) -> None:
    """Who may not open so many descriptors gets an error that names the step, and keeps none."""

    def child() -> list[tuple[str, int]]:
        layers = [lower / name for name in ("dir", "gone", "again")]
        box = Sandbox(mounts=[Overlay(layers, "/tree")])
        box.open().close()  # what is made once is there
        before = len(open_fds())
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        seen = set()
        for most in range(before, before + 20):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            try:
                box.open().close()
            except (SpawnError, CgroupError) as error:
                seen.add((str(getattr(error, "step", "cgroup")), error.errno or 0))
        gc.collect()
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        assert len(open_fds()) == before
        return sorted(seen)

    seen = in_child(child)
    assert seen
    assert {number for _, number in seen} <= {errno.EMFILE, errno.ETOOMANYREFS}


def test_layers_that_cannot_be_handed_over(lower: Path) -> None:
    """A set-up whose layers nobody takes fails with a step of its own, and leaves nothing."""
    box, child = Sandbox(mounts=[Overlay(lower, "/tree")]), Child()
    with open("/dev/null", "rb") as null:
        request = Request([b"true"], b"/bin/true", {}, "/")
        request.layers = null.fileno()
        with pytest.raises(SpawnError) as caught:
            box._cache.lowered(box).spawn(request, child)
    assert (caught.value.step, caught.value.errno) == (Step.LAYERS, errno.ENOTSOCK)
    assert caught.value.path == "/tree"
