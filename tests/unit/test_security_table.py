"""docs/security.md names a test for each lesson: those tests exist."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
DOCUMENT = TESTS.parent / "docs" / "security.md"


def _rows() -> list[str]:
    table = DOCUMENT.read_text().split("| vulnerability |")[1]
    return [line for line in table.splitlines()[2:] if line.startswith("| ")]


def _named(row: str) -> list[tuple[str, str | None]]:
    """Return the files, and the functions in them, that the last column of a row names."""
    found: list[tuple[str, str | None]] = []
    for name in re.findall(r"`([^`]+)`", row.split(" | ")[-1]):
        path, _, function = name.partition("::")
        found.append((path or found[-1][0], function or None))
    return found


@pytest.mark.parametrize("row", _rows(), ids=lambda row: row.split("|")[1].strip()[:40])
def test_lesson_has_its_test(row: str) -> None:
    """Each row names at least one test file that exists, and only functions that it has."""
    named = _named(row)
    assert named
    for path, function in named:
        tree = ast.parse((TESTS / path).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert function is None or function in functions


def test_the_table_is_read() -> None:
    """The parser above sees the rows."""
    assert len(_rows()) >= 30
