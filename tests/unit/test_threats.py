"""The table of past vulnerabilities names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
TABLE = PROJECT / "tests" / "adversarial" / "README.md"
ROWS = [
    line
    for line in TABLE.read_text().splitlines()
    if line.startswith("|") and "---" not in line and "test_" in line and "`test_" not in line
]
REFERENCES = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TABLE.read_text())))


def test_table_is_read() -> None:
    """There are as many rows as the table has, and each names a test."""
    assert len(ROWS) >= 30
    assert all(re.search(r"`tests/[\w/]+\.py::test_\w+`", row) for row in ROWS)


@pytest.mark.parametrize(("file", "name"), REFERENCES)
def test_test_of_the_table_exists(file: str, name: str) -> None:
    """A test that a row names is defined in its file."""
    tree = ast.parse((PROJECT / file).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
