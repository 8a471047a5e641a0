"""Overlays of many layers, as container images have them."""

import os
from pathlib import Path

import pytest

from conftest import unavailable
from nsbox import Overlay, PlanError, Sandbox
from support import expose

pytestmark = pytest.mark.usefixtures("box")


def _layer(directory: Path, number: int) -> Path:
    """Make a directory with a file of its own, and one that all have."""
    layer = directory / str(number)
    layer.mkdir()
    (layer / f"own{number}").touch()
    (layer / "all").write_text(f"{number}\n")
    return expose(layer)


@pytest.mark.parametrize("count", [1, 10, 36, 88, 89, 500])
def test_layers(tmp_path: Path, count: int) -> None:
    """All layers are seen, the first one on top, however many there are."""
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if count > 88 and release < (6, 8):
        unavailable("overlays of more than 88 layers need Linux 6.8", newer_kernel=True)
    layers = [_layer(tmp_path, number) for number in range(count)]
    box = Sandbox(mounts=[Overlay(layers, "/stack")])
    result = box.run(
        ["/bin/sh", "-c", "echo /stack/own* | wc -w; cat /stack/all"],
        capture_output=True,
        text=True,
    )
    assert (result.stdout, result.stderr) == (f"{count}\n0\n", "")


def test_too_many_layers() -> None:
    """More layers than the kernel stacks are refused at once."""
    with pytest.raises(PlanError, match="500"):
        Overlay(["/usr"] * 501, "/stack")
