"""Which module may import which: down only, and most without the compiled core."""

import ast
from functools import cache
from pathlib import Path

import pytest

import nsbox

PACKAGE = Path(nsbox.__file__).parent

# Each module may import those of lower levels only. A new module needs a place here.
LEVELS: tuple[tuple[str, ...], ...] = (
    (
        "_native",
        "_version",
        "_constants",
        "_exit",
        "_landlock",
        "_layers",
        "_libseccomp",
        "errors",
    ),
    ("_bpf", "_cgroup_layout", "_forks", "_values", "_host", "result"),
    ("mount", "limits", "_calls", "seccomp", "_spares", "_cgroup_names"),
    ("_filter", "_cgroup_files", "terminal"),
    ("_cgroup_choice", "_cgroup_tree"),
    ("_cgroup_ahead",),
    ("lowlevel", "namespace", "cgroup", "_plan", "_interpreter", "_files", "_changes"),
    ("_operations", "_unshared", "_enforced", "_diagnose", "_ahead"),
    ("_compile",),
    ("_explain",),
    ("_watch", "_init", "_view", "_bell"),
    ("_request",),
    ("_child",),
    ("_bridge",),
    ("_fence", "_output", "_control", "_interact", "_streams"),
    ("_whole", "_payload"),
    ("process",),
    ("_run",),
    ("_subprocess", "_async", "_stock"),
    ("live", "pool", "_cache"),
    ("sandbox",),
    ("doctor",),
    ("__init__",),
    ("demo",),
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}

MAY_IMPORT_NATIVE = {
    "_calls",
    "_cgroup_ahead",
    "_forks",
    "namespace",
    "_watch",
    "_spares",
    "_view",
    "_bell",
    "_request",
    "_child",
    "_bridge",
    "_control",
}
WITHOUT_NATIVE = (
    "_ahead",
    "_bpf",
    "_cgroup_choice",
    "_cgroup_files",
    "_cgroup_layout",
    "_compile",
    "_constants",
    "_diagnose",
    "_enforced",
    "_exit",
    "_explain",
    "_filter",
    "_host",
    "_init",
    "_interpreter",
    "_landlock",
    "_layers",
    "_operations",
    "_plan",
    "_unshared",
    "_values",
    "_version",
    "errors",
    "limits",
    "mount",
    "result",
    "seccomp",
)


def _name(path: Path) -> str:
    """Return the name of a module in the table; all of demo/ is "demo"."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


SOURCES = sorted(path for path in PACKAGE.rglob("*.py"))
MODULES = sorted({_name(path) for path in SOURCES})


def _imported(path: Path) -> set[str]:
    """Return the modules of nsbox that a file imports, inside functions too."""
    package = ["nsbox", *path.relative_to(PACKAGE).parts[:-1]]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [module] if module.count(".") else [f"{module}.{a.name}" for a in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] != "nsbox":
                continue
            top = parts[1] if len(parts) > 1 else "__init__"
            # "from nsbox import Sandbox" imports a name of the package, not a module.
            found.add(top if top in LEVEL or top in MODULES else "__init__")
    return found


@cache
def imports(name: str) -> frozenset[str]:
    """Return what a module of the table imports, itself excepted."""
    found: set[str] = set()
    for path in SOURCES:
        if _name(path) == name:
            found |= _imported(path)
    return frozenset(found - {name})


def reaches(name: str) -> set[str]:
    """Return what a module imports directly or through others."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        for other in imports(waiting.pop()) - seen:
            seen.add(other)
            waiting.append(other)
    return seen


@pytest.mark.parametrize("name", MODULES)
def test_module_has_a_level(name: str) -> None:
    """Every module has a place in the table of levels."""
    assert name in LEVEL


def test_table_has_no_other_modules() -> None:
    """The table names no module that does not exist."""
    assert LEVEL.keys() == {*MODULES, "_native"}


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_downward(name: str) -> None:
    """A module imports only modules of lower levels."""
    wrong = {other for other in imports(name) if LEVEL[other] >= LEVEL[name]}
    assert wrong == set()


def test_the_imports_are_seen() -> None:
    """The parser above finds imports in all the forms that the package uses."""
    assert {"_plan", "mount", "_native"} <= reaches("sandbox")
    assert imports("mount") == {"_values", "errors"}
    assert "_native" in imports("_bridge")


def test_few_modules_import_the_core() -> None:
    """Only the modules that call into the compiled core import it."""
    assert {name for name in MODULES if "_native" in imports(name)} == MAY_IMPORT_NATIVE


@pytest.mark.parametrize("name", WITHOUT_NATIVE)
def test_module_works_without_the_core(name: str) -> None:
    """Values, errors and the plan need no compiled module, not even through others."""
    assert "_native" not in reaches(name)


def test_process_does_not_know_the_sandbox() -> None:
    """The running process knows neither the plan nor the sandbox that it came from."""
    assert {"sandbox", "_plan", "mount"}.isdisjoint(imports("process"))


def test_values_do_not_know_the_plan() -> None:
    """Mounts and namespaces know nothing of what is made from them."""
    for name in ("mount", "namespace", "limits"):
        assert {"_plan", "_bridge", "sandbox", "process"}.isdisjoint(reaches(name))
