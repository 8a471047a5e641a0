"""Files of a live sandbox, read, written and copied from outside, whatever the payload does."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nsbox import Bind, FileError, Limits, Live, PlanError, Sandbox, Tmpfs
from support import PYTHON, ends, expose, python_box, running

pytestmark = pytest.mark.usefixtures("box")


@pytest.fixture
def live() -> Iterator[Live]:
    """A live sandbox in which Python works, with a /tree of one megabyte."""
    with python_box(mounts=[Tmpfs("/tree", size="1M", inodes=64)]).open() as live:
        yield live


def sh(live: Live, script: str) -> None:
    live.run(["/bin/sh", "-c", script], check=True, cwd="/tree")


def allowing(codes: tuple[int, ...], act: Callable[[], object]) -> bool:
    """Do something, which may fail with one of these errors; tell whether it did not."""
    try:
        act()
    except FileError as error:
        if error.errno not in codes:
            raise
        return False
    return True


def refused(live: Live, path: str) -> FileError:
    """Return the error that reading a path fails with."""
    with pytest.raises(FileError) as caught:
        live.read_file(path)
    assert caught.value.filename == path
    return caught.value


# ---- what they are for ----------------------------------------------------


def test_write_and_read(live: Live) -> None:
    """What is written from outside is there inside, and the other way round."""
    live.write_file("/tree/in", b"from outside\n")
    sh(live, "cat in > out; echo from inside >> out")
    assert live.read_file("/tree/out") == b"from outside\nfrom inside\n"


def test_write_replaces(live: Live) -> None:
    """A file that is there has the new content and nothing else, and keeps its mode."""
    sh(live, "echo a much longer text > file; chmod 600 file")
    live.write_file("/tree/file", b"short", mode=0o777)
    assert live.read_file("/tree/file") == b"short"
    sh(live, 'test "$(stat -c %a file)" = 600')


@pytest.mark.parametrize("mode", [0o644, 0o755, 0o600])
def test_mode(live: Live, mode: int) -> None:
    """A file that is made has the mode asked for, and belongs to the payload."""
    live.write_file("/tree/file", b"", mode=mode)
    sh(live, f'test "$(stat -c "%a %u" file)" = "{mode:o} $(id -u)"')


def test_written_program_runs(live: Live) -> None:
    """No descriptor for writing is left: what was written can be executed at once."""
    live.write_file("/tree/program", b"#!/bin/sh\necho ran\n", mode=0o755)
    assert live.run(["/tree/program"], capture_output=True).stdout == b"ran\n"


def test_binary_names(live: Live) -> None:
    """Names need not be text."""
    live.write_file(b"/tree/\xff\n", b"x")
    assert live.read_file(os.fsdecode(b"/tree/\xff\n")) == b"x"


def test_copy(live: Live, tmp_path: Path) -> None:
    """Files travel both ways, with the permission bits on the way in."""
    source = tmp_path / "program"
    source.write_bytes(os.urandom(300_000))
    source.chmod(0o711)
    live.copy_in(source, "/tree/program")
    sh(live, 'test "$(stat -c %a program)" = 711')
    live.copy_out("/tree/program", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert not os.access(tmp_path / "copy", os.X_OK, effective_ids=False) or os.geteuid() == 0
    assert (tmp_path / "copy").stat().st_mode & 0o111 == 0


def test_relative_host_paths(live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of the host may be relative."""
    monkeypatch.chdir(tmp_path)
    Path("a").write_text("x")
    live.copy_in("a", "/tree/a")
    live.copy_out("/tree/a", "b")
    assert Path("b").read_text() == "x"


# ---- rights -----------------------------------------------------------------


def test_the_payloads_rights(live: Live) -> None:
    """What the payload may not do cannot be done for it: its mounts are read-only to us, too."""
    for path in ("/usr/new", "/new"):
        with pytest.raises(FileError) as caught:
            live.write_file(path, b"")
        assert caught.value.errno in (errno.EROFS, errno.EACCES)


def test_hidden_from_the_payload(tmp_path: Path, root: None) -> None:
    """A file that only root can read is not read for the payload of a root caller."""
    expose(tmp_path)
    (tmp_path / "secret").write_text("of root")
    (tmp_path / "secret").chmod(0o600)
    box = Sandbox(mounts=[Bind(tmp_path, "/data")])
    with box.open() as live, pytest.raises(PermissionError):
        live.read_file("/data/secret")


# ---- what is not a file -----------------------------------------------------


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/tree", errno.EISDIR),
        ("/", errno.EISDIR),
        ("/tree/fifo", errno.EINVAL),
        ("/tree/socket", errno.EINVAL),
        ("/dev/zero", errno.EINVAL),
        ("/dev/null", errno.EINVAL),
        ("/dev/tty", errno.EINVAL),
        ("/dev/pts/ptmx", errno.EINVAL),
        ("/tree/link", errno.ELOOP),
        ("/tree/loop", errno.ELOOP),
        ("/tree/directory/passwd", errno.ENOTDIR),
        ("/bin/sh", errno.ENOTDIR),
        ("/proc/self/status", errno.ENOTDIR),
        ("/proc/1/mem", errno.EINVAL),
        ("/proc/1/environ", errno.EINVAL),
        ("/proc/1/status", errno.EINVAL),
        ("/proc/1/root/etc/passwd", errno.ENOTDIR),
        ("/proc/1/fd/0", errno.ELOOP),
        ("/dev/stdin", errno.ELOOP),
        ("/tree/none", errno.ENOENT),
        ("/tree/file/x", errno.ENOTDIR),
    ],
)
def test_read_refuses(live: Live, path: str, code: int) -> None:
    """Only regular files of a file system that stores them are read; nothing blocks."""
    sh(live, "ln -s file link; ln -s loop loop; ln -s /etc directory; mkfifo fifo; echo x > file")
    live.run(
        [*PYTHON, "import socket; socket.socket(socket.AF_UNIX).bind('/tree/socket')"], check=True
    )
    allowed = {code, errno.EACCES} if path.startswith(("/proc", "/dev")) else {code}
    assert refused(live, path).errno in allowed


@pytest.mark.parametrize(
    "path", ["/tree/fifo", "/dev/zero", "/proc/1/mem", "/tree/link", "/tree/dangling", "/tree"]
)
def test_write_refuses(live: Live, path: str) -> None:
    """Nothing but a regular file is written to, and no file is made through a link."""
    sh(live, "mkfifo fifo; echo old > file; ln -s file link; ln -s new dangling")
    with pytest.raises(FileError):
        live.write_file(path, b"new")
    sh(live, 'test "$(cat file)" = old; test ! -e new')


def test_fifo_with_a_reader(live: Live) -> None:
    """A FIFO that somebody reads is opened, and refused without a byte in it."""
    sh(live, "mkfifo fifo")
    reader = (
        "import os\nfile = os.open('/tree/fifo', os.O_RDWR)\nos.write(1, b'x')\nos.read(file, 1)"
    )
    with running(live, reader) as process:
        with pytest.raises(FileError) as caught:
            live.write_file("/tree/fifo", b"x")
        assert caught.value.errno == errno.EINVAL
        assert process.poll() is None


def test_builtin_classes(live: Live) -> None:
    """Errors are those that Python's own functions raise."""
    with pytest.raises(FileNotFoundError):
        live.read_file("/tree/none")
    with pytest.raises(IsADirectoryError, match="tar"):
        live.read_file("/tree")
    sh(live, "touch file")
    with pytest.raises(NotADirectoryError):
        live.read_file("/tree/file/x")


@pytest.mark.parametrize("path", ["relative", "", "/a/../b", "/a\0b"])
def test_paths(live: Live, path: str) -> None:
    """A path inside is absolute, and what it is called."""
    with pytest.raises(PlanError):
        live.read_file(path)
    with pytest.raises(PlanError):
        live.write_file(path, b"")
    with pytest.raises(PlanError):
        live.copy_in("/etc/passwd", path)
    with pytest.raises(PlanError):
        live.copy_out(path, "/tmp/never")


@pytest.mark.parametrize("size", [4096, 1 << 14, 1 << 20])
def test_long_paths(live: Live, size: int, tmp_path: Path) -> None:
    """Such a path is too long, as for open(2), and nobody's end."""
    assert refused(live, "/a" * 2047).errno == errno.ENOENT
    path = "/a" * (size // 2)
    for act in (
        lambda: live.read_file(path),
        lambda: live.write_file(path, b""),
        lambda: live.copy_in("/etc/passwd", path),
        lambda: live.copy_out(path, tmp_path / "never"),
    ):
        with pytest.raises(FileError) as caught:
            act()
        assert caught.value.errno == errno.ENAMETOOLONG
    assert live.run(["/bin/true"]).returncode == 0


def test_no_bytes(live: Live) -> None:
    """Text has to be encoded by whoever knows how."""
    with pytest.raises(TypeError, match="encode"):
        live.write_file("/tree/file", "text")  # type: ignore[arg-type]


# ---- sizes ------------------------------------------------------------------


def test_cap(live: Live, tmp_path: Path) -> None:
    """A file of exactly so many bytes is read; one more, and the error says what to raise."""
    live.write_file("/tree/file", bytes(1000))
    assert len(live.read_file("/tree/file", max_size=1000)) == 1000
    for act in (
        lambda: live.read_file("/tree/file", max_size=999),
        lambda: live.copy_out("/tree/file", tmp_path / "copy", max_size=999),
    ):
        with pytest.raises(FileError, match="max_size") as caught:
            act()
        assert caught.value.errno == errno.EFBIG
    (tmp_path / "large").write_bytes(bytes(1000))
    with pytest.raises(FileError, match="max_size"):
        live.copy_in(tmp_path / "large", "/tree/large", max_size=999)
    assert os.listdir(tmp_path) == ["large"]
    sh(live, "test ! -e large")


def test_copy_of_what_is_too_large_changes_nothing(live: Live, tmp_path: Path) -> None:
    """No room is made for it, and a file that is there is as before."""
    live.write_file("/tree/file", b"content")
    (tmp_path / "large").touch()
    for size in (1000, 1 << 40):
        os.truncate(tmp_path / "large", size)
        for name in ("file", "new"):
            with pytest.raises(FileError, match="max_size") as caught:
                live.copy_in(tmp_path / "large", f"/tree/{name}", max_size=999)
            assert caught.value.errno == errno.EFBIG
    assert live.read_file("/tree/file") == b"content"
    sh(live, "test ! -e new")


def test_sparse_giant(live: Live, tmp_path: Path) -> None:
    """A file of a tebibyte without a byte in it is refused at once."""
    sh(live, "truncate -s 1099511627776 giant")
    assert refused(live, "/tree/giant").errno == errno.EFBIG
    with pytest.raises(FileError):
        live.copy_out("/tree/giant", tmp_path / "giant")
    assert os.listdir(tmp_path) == []


_GROW = """
import os
file = os.open("/tree/file", os.O_RDWR | os.O_CREAT)
os.write(1, b"x")
while True:
    os.ftruncate(file, 100)
    os.ftruncate(file, 1 << 40)
"""


@pytest.mark.one_kernel
def test_growing_file(live: Live) -> None:
    """A file that is grown while it is read is read up to the cap, or refused."""
    with running(live, _GROW):
        for _ in range(200):
            allowing((errno.EFBIG,), lambda: live.read_file("/tree/file", max_size="1M"))


# ---- no room ----------------------------------------------------------------


def test_full(live: Live, tmp_path: Path) -> None:
    """Where there is no room, what was there is as before, and nothing new is there."""
    live.write_file("/tree/old", b"old")
    (tmp_path / "large").write_bytes(bytes(2 << 20))
    for path in ("/tree/old", "/tree/new"):
        with pytest.raises(FileError, match="full") as caught:
            live.write_file(path, bytes(2 << 20))
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises(FileError, match="full"):
            live.copy_in(tmp_path / "large", path)
    assert live.read_file("/tree/old") == b"old"
    sh(live, "test ! -e new")


def test_no_inodes(live: Live) -> None:
    """A file system without a free inode is an error, too."""
    sh(live, "seq 100 | xargs touch 2>/dev/null || true")
    with pytest.raises(FileError) as caught:
        live.write_file("/tree/one-more", b"")
    assert caught.value.errno == errno.ENOSPC


# ---- the host's side ----------------------------------------------------------


def test_copy_out_replaces_links(live: Live, tmp_path: Path) -> None:
    """A link with the file's name on the host is replaced, and what it leads to not touched."""
    live.write_file("/tree/file", b"new")
    (tmp_path / "precious").write_text("old")
    (tmp_path / "copy").symlink_to("precious")
    (tmp_path / "hard").hardlink_to(tmp_path / "precious")
    for name in ("copy", "hard"):
        live.copy_out("/tree/file", tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"new"
        assert not (tmp_path / name).is_symlink()
    assert (tmp_path / "precious").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["copy", "hard", "precious"]


def test_copy_out_through_a_link(live: Live, tmp_path: Path) -> None:
    """No link on the way is followed: the payload may have made it, in a directory it shares."""
    live.write_file("/tree/file", b"new")
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(FileError, match="symbolic link") as caught:
        live.copy_out("/tree/file", tmp_path / "link" / "file")
    assert caught.value.errno == errno.ELOOP
    assert os.listdir(tmp_path / "target") == []


@pytest.mark.parametrize("name", ["directory", "none/file", "directory/"])
def test_copy_out_nowhere(live: Live, tmp_path: Path, name: str) -> None:
    """A directory is not replaced, and none is made; nothing is left of the attempt."""
    live.write_file("/tree/file", b"new")
    (tmp_path / "directory").mkdir()
    with pytest.raises(FileError):
        live.copy_out("/tree/file", f"{tmp_path}/{name}")
    assert os.listdir(tmp_path) == ["directory"]
    assert os.listdir(tmp_path / "directory") == []


def test_copy_in_what_is_no_file(live: Live, tmp_path: Path) -> None:
    """A FIFO of the host does not block, and is refused like a directory and a missing file."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, tmp_path / "none", "/dev/zero"):
        with pytest.raises(FileError):
            live.copy_in(path, "/tree/file")
    sh(live, "test ! -e file")


def test_whose_path_it_is(live: Live, tmp_path: Path) -> None:
    """An error about a path of the host says so, since the same path may be inside."""
    with pytest.raises(FileNotFoundError, match="on the host"):
        live.copy_in(tmp_path / "none", "/tree/file")
    live.write_file("/tree/file", b"new")
    with pytest.raises(FileNotFoundError, match="on the host"):
        live.copy_out("/tree/file", tmp_path / "none/file")
    with pytest.raises(FileNotFoundError) as caught:
        live.copy_out("/tree/none", tmp_path / "file")
    assert "on the host" not in str(caught.value)


# ---- races --------------------------------------------------------------------

_REFUSALS = (errno.ELOOP, errno.ENOTDIR, errno.ENOENT, errno.EINVAL, errno.EISDIR)

_FLIP = """
import os
os.makedirs("/tree/real", exist_ok=True)
os.makedirs("/tree/other", exist_ok=True)
open("/tree/real/file", "w").write("real")
open("/tree/other/file", "w").write("other")
os.symlink("/tree/other", "/tree/link")
os.rename("/tree/real", "/tree/flip")
os.write(1, b"x")
while True:
    os.rename("/tree/flip", "/tree/away")
    os.rename("/tree/link", "/tree/flip")
    os.rename("/tree/flip", "/tree/link")
    os.rename("/tree/away", "/tree/flip")
"""


@pytest.mark.one_kernel
def test_flipping_directory(live: Live, tmp_path: Path) -> None:
    """A directory that is exchanged for a link all the time leads nothing through the link."""
    with running(live, _FLIP):
        done, copy = 0, tmp_path / "copy"
        for _ in range(1000):
            done += allowing(_REFUSALS, partial(live.write_file, "/tree/flip/file", b"new"))
            if allowing(_REFUSALS, partial(live.copy_out, "/tree/flip/file", copy)):
                assert copy.read_bytes() in (b"real", b"new", b"")
    assert live.read_file("/tree/other/file") == b"other"
    assert done


_SWAP = """
import os
os.write(1, b"x")
while True:
    for make in (
        lambda: os.symlink("/etc/passwd", "/tree/new"),
        lambda: os.mkfifo("/tree/new"),
        lambda: os.symlink("/dev/zero", "/tree/new"),
        lambda: os.symlink("/proc/1/mem", "/tree/new"),
        lambda: os.mkdir("/tree/new"),
        lambda: os.close(os.open("/tree/new", os.O_CREAT)),
    ):
        try:
            make()
        except OSError:
            pass
        os.rename("/tree/new", "/tree/file") if not os.path.isdir("/tree/new") else None
        for remove in (os.unlink, os.rmdir):
            for path in ("/tree/file", "/tree/new"):
                try:
                    remove(path)
                except OSError:
                    pass
"""


@pytest.mark.one_kernel
def test_swapped_file(live: Live, tmp_path: Path) -> None:
    """A file that becomes a link, FIFO, device or directory all the time is a file or an error."""
    copy = tmp_path / "copy"
    with running(live, _SWAP):
        for _ in range(1000):
            allowing(_REFUSALS, partial(live.write_file, "/tree/file", b"mine"))
            if allowing(_REFUSALS, partial(live.copy_out, "/tree/file", copy)):
                assert copy.read_bytes() in (b"", b"mine")


_LEASE = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = os.open("/tree/file", os.O_RDWR | os.O_CREAT)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
os.write(1, b"x")
signal.pause()
"""


def test_lease() -> None:
    """A lease that the payload does not give back makes an error, and nobody wait."""
    box = python_box(mounts=[Tmpfs("/tree")], seccomp=None)  # the filter permits no lease
    with box.open() as live, running(live, _LEASE):
        assert refused(live, "/tree/file").errno == errno.EAGAIN


_UNDER_WAY = """
import array, os, signal, socket
rights = array.array("i", [0] * 50)
pairs = []
try:
    while True:
        pairs.append(socket.socketpair())
        for _ in range(20):
            pairs[-1][0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
except OSError:
    os.write(1, b"x")
signal.pause()
"""


def test_too_many_descriptors_under_way(root: None) -> None:
    """A descriptor that cannot be sent is an error that says so, not the end of the sandbox."""
    user: dict[str, Any] = {
        "host_uid": 47131,
        "host_gid": 47131,
    }  # the usual one is that of other tests, too
    with python_box(**user).open() as live, running(live, _UNDER_WAY):
        with pytest.raises(FileError, match="under way") as caught:
            live.write_file("/tmp/file", b"")
        assert caught.value.errno == errno.ETOOMANYREFS
    with (
        python_box(**user).open() as live,
        python_box(**user, limits=Limits(open_files=256)).open() as other,
        running(other, _UNDER_WAY),
    ):
        live.write_file("/tmp/file", b"")
        assert live.run(["/bin/true"]).returncode == 0


@pytest.mark.one_kernel
def test_many_threads(live: Live) -> None:
    """Any number of threads may read, write and run at the same time."""
    wrong: list[object] = []

    def work(number: int) -> None:
        path, data = f"/tree/{number}", str(number).encode() * 100
        for _ in range(20):
            live.write_file(path, data)
            if live.read_file(path) != data:
                wrong.append(number)
            if live.run(["/bin/cat", path], capture_output=True).stdout != data:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_after_the_end(live: Live) -> None:
    """When the sandbox has ended, an operation is an error and does not wait."""
    live.kill()
    assert live.pidfd is not None
    assert ends(live.pidfd)
    with pytest.raises(FileError, match="ended") as caught:
        live.read_file("/tree/file")
    assert caught.value.errno == errno.ESRCH
    live.close()
    assert live.pidfd is None
    with pytest.raises(PlanError, match="closed"):
        live.read_file("/tree/file")
