"""Several small files in one call into C."""

import errno
import os
from pathlib import Path

import pytest

from nsbox import _calls
from nsbox._native import ffi, lib

pytestmark = pytest.mark.one_kernel


def _files(directory: Path, *names: str) -> list[str]:
    for name in names:
        (directory / name).write_text("")
    return [str(directory / name) for name in names]


def test_writes_in_order(tmp_path: Path) -> None:
    """The last text for a path is what is there, whatever its characters."""
    first, second = _files(tmp_path, "first", "sécond")
    _calls.write_files([(first, "1"), (second, "é"), (first, "2")])
    assert Path(first).read_text() == "2"
    assert Path(second).read_text() == "é"


def test_a_failure_names_its_file_and_ends_it(tmp_path: Path) -> None:
    """What comes after the one that fails is not written, and nothing is created."""
    first, last = _files(tmp_path, "first", "last")
    missing = str(tmp_path / "missing")
    with pytest.raises(FileNotFoundError) as caught:
        _calls.write_files([(first, "1"), (missing, "2"), (last, "3")])
    assert caught.value.filename == missing
    assert Path(first).read_text() == "1"
    assert Path(last).read_text() == ""
    assert not Path(missing).exists()


def test_reads_each_or_nothing(tmp_path: Path) -> None:
    """One text for each path, also for those that are missing, empty or directories."""
    one, empty = _files(tmp_path, "one", "empty")
    Path(one).write_text("1\n2\n")
    paths = [str(tmp_path), one, str(tmp_path / "missing"), empty, one]
    assert _calls.read_files(paths) == ["", "1\n2\n", "", "", "1\n2\n"]
    assert _calls.read_files([]) == []


def test_what_is_too_long_is_cut(tmp_path: Path) -> None:
    """No text is longer than the room, and those after it are still counted."""
    long, short = _files(tmp_path, "long", "short")
    Path(long).write_text("x" * 100_000)
    Path(short).write_text("y")
    texts = _calls.read_files([short, long, short])
    assert [len(text) for text in texts] == [1, 32768 - 4, 0]


def test_no_room_at_all() -> None:
    """A buffer without room for the ends of the texts is refused."""
    buffer = ffi.new("char[]", 1)
    ret = lib.nsbox_read_files(b"/proc/self/stat\0/proc/self/stat\0", 2, buffer, 1)
    assert ret == -errno.ENOBUFS


def test_opens_all_and_closes_all(tmp_path: Path) -> None:
    """The numbers come in the order of the paths; closed twice is closed once."""
    paths = _files(tmp_path, "one", "two")
    opened = _calls.Descriptors(paths, os.O_RDONLY)
    numbers = opened.filenos()
    assert [os.readlink(f"/proc/self/fd/{number}") for number in numbers] == paths
    assert not any(os.get_inheritable(number) for number in numbers)
    opened.close()
    opened.close()
    assert opened.filenos() == ()
    for number in numbers:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)


def test_one_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    """What was opened before it is closed again: the check after each test looks."""
    (first,) = _files(tmp_path, "first")
    missing = str(tmp_path / "missing")
    with pytest.raises(FileNotFoundError) as caught:
        _calls.Descriptors([first, missing], os.O_RDONLY)
    assert caught.value.filename == missing


def test_more_than_there_is_room_for() -> None:
    """Nothing is opened then."""
    with pytest.raises(OSError, match="too long"):
        _calls.Descriptors(["/dev/null"] * 17, os.O_RDONLY)
