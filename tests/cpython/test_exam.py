"""CPython's own tests pass in a sandbox, and the documentation says how many."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from exam import CANNOT_RUN, EXAMS, Report
from not_applicable import DOCUMENTED, SUBPROCESS

from conftest import unavailable

HERE = Path(__file__).parent
DOCUMENT = HERE.parent.parent / "docs" / "compatibility.md"


def rows() -> list[list[str]]:
    """Return the cells of all tables in the document."""
    lines = DOCUMENT.read_text().splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]


@pytest.mark.usefixtures("box")
@pytest.mark.parametrize("subject", EXAMS)
def test_cpython_s_tests_pass_in_a_sandbox(subject: str, tmp_path: Path) -> None:
    """All that apply pass, none is listed as not applicable that does; the count is documented."""
    output = tmp_path / "report.json"
    command = [sys.executable, str(HERE / "exam.py"), subject, "--json", str(output)]
    exam = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if exam.returncode == CANNOT_RUN:
        unavailable(exam.stdout)
    print(exam.stdout)
    assert exam.returncode == 0, exam.stdout
    report = Report(**json.loads(output.read_text()))
    user = "root" if os.geteuid() == 0 else "plain user"
    key = [subject, platform.python_version(), user]
    documented = [row[3:] for row in rows() if row[:3] == key]
    assert documented in ([], [report.counts.split(" | ")])


def test_what_does_not_apply_is_documented() -> None:
    """The document names the same tests, with the same reasons."""
    documented = {row[0].strip("`"): row[1] for row in rows() if ".test_" in row[0]}
    assert documented == DOCUMENTED


def test_a_listed_test_that_passes_fails_the_exam() -> None:
    """The list cannot rot: an entry that passes, skips itself or is gone is an error."""
    first, second, *others = SUBPROCESS
    report = Report("subprocess")
    report.add(first, problems="", skipped=None)
    report.add(second, problems="", skipped="for Windows")
    for name in others[1:]:
        report.add(name, problems="it failed", skipped=None)
    report.finish()
    assert not report.ok
    assert report.wrongly_listed == {
        first: "it passes",
        second: "for Windows",
        others[0]: "there is no such test",
    }


def test_an_unlisted_test_that_fails_fails_the_exam() -> None:
    """A failure counts as run, and not as passed."""
    report = Report("subprocess")
    report.add("SomeTestCase.test_good", problems="", skipped=None)
    report.add("SomeTestCase.test_bad", problems="AssertionError", skipped=None)
    assert not report.ok
    assert report.counts == "2 | 1 | 0 | 0"
