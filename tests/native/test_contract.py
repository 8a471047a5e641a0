"""The contract between Python and C: csrc/nsbox.h and the kernel's headers."""

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from enum import IntEnum, IntFlag
from pathlib import Path

import pytest

from conftest import unavailable
from nsbox import _constants, lowlevel, namespace
from nsbox._native import ffi, lib
from nsbox._plan import Code, OpFlag
from nsbox.errors import STEPS, Step

pytestmark = pytest.mark.one_kernel

HEADER = Path(__file__).parents[2] / "csrc" / "nsbox.h"


def _text() -> str:
    """Return the header without its comments."""
    return re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)


def _enum(name: str) -> dict[str, int]:
    """Return the constants of an enum of the header, with the values that C gives them."""
    found = re.search(rf"enum {name} \{{(.*?)\}}", _text(), re.DOTALL)
    assert found is not None
    values: dict[str, int] = {}
    following = 0
    for item in found[1].split(","):
        key, _, value = item.partition("=")
        if not key.strip():
            continue
        following = int(value, 0) if value.strip() else following
        values[key.strip()] = following
        following += 1
    return values


def test_steps_are_those_of_the_header() -> None:
    """errors.Step lists the names of enum nsbox_step, in the same order."""
    steps = _enum("nsbox_step")
    assert steps.pop("NSBOX_STEP_NONE") == 0
    assert steps.pop("NSBOX_STEP_COUNT") == len(STEPS) + 1
    assert [name.removeprefix("NSBOX_STEP_") for name in steps] == [step.name for step in Step]


def test_steps_have_the_numbers_of_the_compiled_core() -> None:
    """The extension that is loaded was built from the same list of steps."""
    compiled = [getattr(lib, f"NSBOX_STEP_{step.name}") for step in STEPS]
    assert compiled == list(range(1, len(STEPS) + 1))


@pytest.mark.parametrize(
    ("enum", "name", "prefix"),
    [(Code, "nsbox_opcode", "NSBOX_OP_"), (OpFlag, "nsbox_op_flag", "NSBOX_OP_")],
    ids=["Code", "OpFlag"],
)
def test_plan_enum_is_that_of_the_header(
    enum: type[IntEnum] | type[IntFlag], name: str, prefix: str
) -> None:
    """The plan's numbers are those of the header and of the compiled core."""
    python = {prefix + member.name: member.value for member in enum if member.name}
    assert python == _enum(name)
    assert python == {key: getattr(lib, key) for key in python}


def test_flags_of_the_header_are_single_bits() -> None:
    """The constants of each enum of flags are different powers of two."""
    for name in ("nsbox_op_flag", "nsbox_plan_flag", "nsbox_request_flag"):
        values = list(_enum(name).values())
        assert len(set(values)) == len(values)
        assert all(value & (value - 1) == 0 for value in values)


@pytest.mark.parametrize("name", re.findall(r"^struct (\w+) \{", _text(), re.MULTILINE))
def test_struct_can_be_allocated(name: str) -> None:
    """Python and C agree on every struct: cffi checks the layout at its first use."""
    assert ffi.sizeof(ffi.new(f"struct {name} *")[0]) > 0


def test_functions_are_there() -> None:
    """Every function that the header declares can be called."""
    names = re.findall(r"^int (\w+)\(", _text(), re.MULTILINE)
    assert "nsbox_spawn" in names
    assert [name for name in names if not callable(getattr(lib, name, None))] == []


# ---- the kernel's headers ------------------------------------------------


HEADERS = (
    "fcntl.h",
    "linux/capability.h",
    "linux/close_range.h",
    "linux/mount.h",
    "linux/nsfs.h",
    "linux/openat2.h",
    "linux/sched.h",
)


def _compiled(names: Iterable[str], headers: Iterable[str], directory: Path) -> dict[str, int]:
    """Return the values that the C compiler finds for those of the names that it knows."""
    compiler = shutil.which("cc")
    if compiler is None:
        unavailable("no C compiler")
    assert compiler is not None
    source = directory / "constants.c"
    lines = [f"#include <{header}>" for header in ("stdio.h", *headers)]
    lines.append("int main(void)\n{")
    lines += [
        f'#ifdef {name}\n\tprintf("{name} %llu\\n", (unsigned long long){name});\n#endif'
        for name in names
    ]
    lines.append("\treturn 0;\n}\n")
    source.write_text("#define _GNU_SOURCE\n" + "\n".join(lines))
    program = directory / "constants"
    subprocess.run([compiler, "-o", program, source], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}


def _agree(
    constants: Mapping[str, int], headers: Iterable[str], directory: Path, *, known: int
) -> None:
    """Compare constants with headers, which must know at least so many of them."""
    found = _compiled(constants, headers, directory)
    assert found == {name: constants[name] for name in found}
    assert len(found) >= known


def test_constants_are_the_kernels(tmp_path: Path) -> None:
    """_constants repeats clone flags and mount attributes as the kernel's headers have them."""
    constants = {
        name: value
        for name, value in vars(_constants).items()
        if name.startswith(("CLONE_", "MOUNT_ATTR_"))
    }
    _agree(constants, HEADERS, tmp_path, known=12)


def test_namespace_kinds_have_the_kernels_flags(tmp_path: Path) -> None:
    """Each kind of namespace has the clone flag that makes one."""
    names = {kind: f"CLONE_NEW{kind.upper()}" for kind in _constants.NAMESPACE_FLAGS}
    names["mnt"] = "CLONE_NEWNS"
    constants = {names[kind]: flag for kind, flag in _constants.NAMESPACE_FLAGS.items()}
    _agree(constants, HEADERS, tmp_path, known=8)


def test_capabilities_are_the_kernels(tmp_path: Path) -> None:
    """The position of a capability in the list is its number."""
    constants = {name: number for number, name in enumerate(_constants.CAPABILITIES)}
    _agree(constants, HEADERS, tmp_path, known=38)


def test_namespace_requests_are_the_kernels(tmp_path: Path) -> None:
    """The ioctl numbers of namespaces are those of linux/nsfs.h."""
    constants = {
        name: getattr(namespace, f"_{name}")
        for name in ("NS_GET_USERNS", "NS_GET_PARENT", "NS_GET_NSTYPE")
    }
    _agree(constants, HEADERS, tmp_path, known=3)


@pytest.mark.parametrize(
    "flags",
    [
        lowlevel.CloneFlag,
        lowlevel.CloseRangeFlag,
        lowlevel.MountAttr,
        lowlevel.MoveMountFlag,
        lowlevel.OpenTreeFlag,
        lowlevel.ResolveFlag,
        lowlevel.SetattrFlag,
    ],
    ids=lambda flags: flags.__name__,
)
def test_lowlevel_flags_are_the_kernels(flags: type[IntFlag], tmp_path: Path) -> None:
    """The flags of nsbox.lowlevel have the values of the kernel's headers."""
    constants = {str(member.name): member.value for member in flags}
    _agree(constants, HEADERS, tmp_path, known=min(2, len(constants)))


@pytest.mark.parametrize(
    "flags", [lowlevel.MountFlag, lowlevel.UmountFlag], ids=lambda flags: flags.__name__
)
def test_lowlevel_mount_flags_are_those_of_libc(flags: type[IntFlag], tmp_path: Path) -> None:
    """The flags of mount(2) and umount2(2) have the values of sys/mount.h."""
    constants = {str(member.name): member.value for member in flags}
    _agree(constants, ["sys/mount.h"], tmp_path, known=4)
