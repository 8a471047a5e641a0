"""The Python in the documentation runs, in order, for whoever copies it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import why_no_cgroup
from support import SOURCE, expose

CHECKOUT = Path(__file__).parents[2]

pytestmark = [pytest.mark.usefixtures("box"), pytest.mark.one_kernel]


@pytest.fixture
def workspace(tmp_path: Path, rootfs: Path) -> Path:
    """A directory that has what the documentation takes for granted."""
    for name in ("input", "out", "data", "project"):
        (tmp_path / name).mkdir()
        expose(tmp_path / name)
    (tmp_path / "input" / "data.csv").write_text("1,2")
    (tmp_path / "solution.py").write_text("print(sum(map(int, input().split())))")
    (rootfs / "etc").mkdir()
    (rootfs / "etc" / "motd").write_text("hello")
    return tmp_path


def _blocks(document: str) -> list[str]:
    text = (CHECKOUT / document).read_text()
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


OTHERS = [
    name
    for name in sorted(f"docs/{path.name}" for path in CHECKOUT.glob("docs/*.md"))
    if _blocks(name) and name != "docs/quickstart.md"
]


def _run(document: str, directory: Path) -> str:
    """Run a document's blocks of Python as one program, and return what it prints."""
    blocks = _blocks(document)
    assert blocks
    if why_no_cgroup() is not None:
        # Without a cgroup of his own, a plain user cannot limit memory.
        blocks = [block for block in blocks if "memory=" not in block]
    result = subprocess.run(
        [sys.executable, "-u", "-W", "error", "-c", "\n".join(blocks)],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_readme(workspace: Path) -> None:
    """Every recipe of the README does what it says."""
    output = _run("README.md", workspace)
    assert "uid=0(root)" in output  # something untrusted
    assert why_no_cgroup() is not None or "exit b'3\\n'" in output  # a solution
    assert "hello" in output  # generated Python
    assert (workspace / "out" / "data.csv").read_text() == "1,2"
    assert "\n200\n" in output  # two processes in one network
    assert "pivot_root" in output  # in the kernel's words


def test_quickstart(workspace: Path) -> None:
    """Every block of the quickstart runs, and prints what its comments say."""
    output = _run("docs/quickstart.md", workspace)
    assert output.startswith("1\nroot\nsandbox\n\n0\nexit\nUsage(wall_time=")
    assert (workspace / "out" / "done").exists()
    assert (workspace / "rootfs" / "etc" / "motd").exists()  # removed in the sandbox only
    assert "lo:" in output  # the joined network
    assert "\nwall_time\n" in output  # the limit
    assert "execve 2 /opt/tool" in output  # the failure


@pytest.mark.parametrize("document", OTHERS)
def test_other_documents(workspace: Path, document: str) -> None:
    """What any other document shows runs as well."""
    _run(document, workspace)
