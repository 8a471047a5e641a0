"""A guest that dies, hangs, says nothing or reports a failure is a failure."""

import re
import subprocess
import sys
from pathlib import Path

import boot
import image
import pytest

FOUR_TESTS = """
import pytest
@pytest.fixture
def broken(): 1 / 0
def test_passed(): pass
@pytest.mark.skip
def test_skipped(): pass
def test_failed(): assert False
def test_broken(broken): pass
"""

ATTRIBUTES = 'tests="{}" skipped="{}" failures="{}" errors="{}"'


def report(path: Path, *counts: int) -> Path:
    """Write a report in the form that pytest gives it."""
    suite = f"<testsuite {ATTRIBUTES.format(*counts)}></testsuite>"
    path.write_text(f'<?xml version="1.0"?><testsuites>{suite}</testsuites>')
    return path


def test_report_of_pytest_is_read(tmp_path: Path) -> None:
    """What pytest writes of a passed, a skipped, a failed and a broken test is counted so."""
    (tmp_path / "test_four.py").write_text(FOUR_TESTS)
    path = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", f"--junitxml={path}", "-p", "no:cacheprovider"]
    subprocess.run(command, cwd=tmp_path, stdout=subprocess.DEVNULL, check=False)
    assert boot.read_report(path) == boot.Report(passed=1, skipped=1, failed=2)


@pytest.mark.parametrize(
    ("counts", "well"),
    [((3, 1, 0, 0), True), ((3, 0, 1, 0), False), ((3, 0, 0, 1), False), ((2, 2, 0, 0), False)],
    ids=["passed", "failure", "error", "all skipped"],
)
def test_verdict(tmp_path: Path, counts: tuple[int, ...], well: bool) -> None:
    """All is well if some tests passed and none failed, in every suite."""
    good = report(tmp_path / "good.xml", 1, 0, 0, 0)
    assert boot.judge({"a": good, "b": report(tmp_path / "b.xml", *counts)}) is well


@pytest.mark.parametrize("part", [0, 10, -1])
def test_verdict_on_a_report_cut_off(tmp_path: Path, part: int) -> None:
    """A report that is empty or cut off is a failure."""
    path = report(tmp_path / "report.xml", 3, 0, 0, 0)
    path.write_bytes(path.read_bytes()[:part])
    assert not boot.judge({"root": path})


def test_verdict_on_no_report(tmp_path: Path) -> None:
    """A report that never came is a failure."""
    assert not boot.judge({"root": tmp_path / "missing"})


def test_machine_that_fails() -> None:
    """A machine that ends with an error has not powered itself off."""
    assert boot.power_on("test", ["true"], 60.0)
    assert not boot.power_on("test", ["false"], 60.0)


def test_machine_that_hangs() -> None:
    """A machine that still runs after the deadline is killed, and has failed."""
    assert not boot.power_on("test", ["sleep", "1000"], 0.1)


def test_each_module_runs_in_some_suite() -> None:
    """What a suite leaves to the other is there, and the other runs it."""
    left = {
        name: {word for word in boot.selection(name, False) if word not in boot.SELECTION}
        for name in boot.SUITES
    }
    assert left["root"].isdisjoint(left["plain"])
    for word in left["root"] | left["plain"]:
        module = (image.PROJECT / word.removeprefix("--ignore=")).read_text()
        # What root leaves to the plain user has nothing that only root runs.
        assert word in left["plain"] or not re.search(r'root: None|usefixtures\("root"\)', module)
    assert all(boot.selection(name, True) == boot.SELECTION for name in boot.SUITES)


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    """Each module is inserted once, after all that it depends on."""
    for name, depends in {"top": "mid-1,low", "mid-1": "low", "low": "", "other": ""}.items():
        (tmp_path / f"{name}.ko").write_bytes(b"\x7fELF\0depends=" + depends.encode() + b"\0")
    found = image.with_dependencies(tmp_path, ["top", "low"])
    assert [path.stem for path in found] == ["low", "mid-1", "top"]
