"""What ``import nsbox`` gives, and that it does nothing else."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import nsbox
from nsbox import lowlevel

SOURCE = str(Path(nsbox.__file__).parents[1])


def _own(module: ModuleType) -> set[str]:
    """Return the public names of classes and functions that nsbox itself defines."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__.startswith("nsbox")
    }


def test_exports_exist() -> None:
    """Every name of __all__ is there."""
    for name in nsbox.__all__:
        assert hasattr(nsbox, name)


def test_exports_are_complete() -> None:
    """Whatever public class or function of nsbox can be reached is in __all__."""
    assert _own(nsbox) <= set(nsbox.__all__)


def test_exports_hold_nothing_foreign() -> None:
    """Besides its own, nsbox exports what subprocess calls by the same names."""
    rest = set(nsbox.__all__) - _own(nsbox) - {"__version__", "lowlevel", "AsyncProcess"}
    assert rest == {"DEVNULL", "PIPE", "STDOUT", "CalledProcessError", "TimeoutExpired"}
    for name in rest:
        assert getattr(nsbox, name) is getattr(subprocess, name)


def test_completion_offers_the_exports() -> None:
    """dir(), and so a completing shell, shows the public names and no others."""
    assert dir(nsbox) == sorted(nsbox.__all__)


def test_exports_are_unique() -> None:
    """No name is exported twice."""
    assert len(set(nsbox.__all__)) == len(nsbox.__all__)


def test_lowlevel_exports_are_complete() -> None:
    """Whatever public class or function nsbox.lowlevel has is in its __all__, and nothing else."""
    assert set(lowlevel.__all__) - {"AT_FDCWD"} == _own(lowlevel)


def test_star_import_works() -> None:
    """``from nsbox import *`` binds exactly the names of __all__."""
    names: dict[str, object] = {}
    exec("from nsbox import *", names)
    assert names.keys() - {"__builtins__"} == set(nsbox.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    """A name that nsbox does not have raises AttributeError."""
    with pytest.raises(AttributeError):
        _ = nsbox.nothing


def _documented() -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for prefix, module in (("", nsbox), ("lowlevel.", lowlevel)):
        for name in sorted(_own(module)):
            value = getattr(module, name)
            found.append((prefix + name, value))
            if not inspect.isclass(value):
                continue
            for member, part in vars(value).items():
                plain = part.__func__ if isinstance(part, classmethod) else part
                public = not member.startswith("_")
                if public and (inspect.isfunction(plain) or isinstance(plain, property)):
                    found.append((f"{prefix}{name}.{member}", part))
    return found


def _explained(name: str, value: object) -> bool:
    text = inspect.getdoc(value) or ""
    if not text and isinstance(value, property):  # an attribute explained by its class is enough
        owner, _, attribute = name.rpartition(".")
        return f"{attribute}:" in (inspect.getdoc(getattr(nsbox, owner)) or "")
    # What dataclasses and named tuples write by themselves explains nothing.
    return bool(text) and not text.startswith(name.rpartition(".")[2] + "(")


def test_exports_have_docstrings() -> None:
    """Every public class, function, method and property says what it is for."""
    documented = _documented()
    assert len(documented) > 50
    assert [name for name, value in documented if not _explained(name, value)] == []


PROBE = """
import json, sys, threading, warnings
warnings.simplefilter("error")
sys.path.insert(0, sys.argv[1])
events = []
sys.addaudithook(lambda event, args: events.append((event, [repr(item) for item in args])))
import nsbox
events = list(events)
found = sorted({f"{event} {args}" for event, args in events if event.split(".")[0] in (
    "socket", "subprocess", "ctypes", "signal", "tempfile", "fcntl", "nsbox", "shutil", "syslog"
) or event in ("os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.system", "os.putenv",
    "os.unsetenv", "os.kill", "os.chdir", "os.mkdir", "os.rename", "os.remove", "os.scandir",
    "_thread.start_new_thread")})
opened = sorted({args[0].strip("b'") for event, args in events if event == "open"})
listed = sorted({args[0] for event, args in events if event == "os.listdir"})
print(json.dumps({"events": found, "opened": opened, "listed": listed, "path": sys.path,
                  "threads": threading.active_count()}))
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, object]:
    """What the interpreter did during a first ``import nsbox``."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", PROBE, SOURCE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_import_opens_only_modules(imported: dict[str, list[str]]) -> None:
    """Importing reads source, byte code and extension modules, and nothing of the host."""
    assert imported["opened"], "the probe sees no opens at all"
    # A byte code file being written has a number after its suffix.
    module = re.compile(r"\.(py|so|pyc(\.\d+)?)$")
    assert [path for path in imported["opened"] if not module.search(path)] == []


def test_import_lists_only_where_modules_are(imported: dict[str, list[str]]) -> None:
    """Importing lists directories of packages only."""
    outside = [
        path
        for path in imported["listed"]
        if not any(path.strip("'").startswith(entry or ".") for entry in imported["path"])
    ]
    assert outside == []


def test_import_starts_nothing(imported: dict[str, object]) -> None:
    """Importing makes no process, thread, socket or signal handler, and changes nothing."""
    assert (imported["events"], imported["threads"]) == ([], 1)


def test_import_does_not_read_the_environment() -> None:
    """Importing works alike in an empty environment."""
    done = subprocess.run(
        [sys.executable, "-E", "-W", "error", "-c", PROBE, SOURCE],
        env={},
        check=False,
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")


REPLACED = """
import subprocess, sys
sys.path.insert(0, sys.argv[1])
standard = subprocess.Popen

class Adding(standard):
    pass

class Starting(standard):
    def _execute_child(self, *args):
        pass

for popen in (Starting, lambda *args: None):
    subprocess.Popen = popen
    try:
        import nsbox
    except ImportError as error:
        print(error)
subprocess.Popen = Adding
import nsbox
print(issubclass(nsbox.Process, Adding))
"""


def test_a_popen_that_starts_processes_in_its_own_way_is_refused() -> None:
    """As gevent's: the import says so, not the first spawn; it works when that is over."""
    ran = subprocess.run(
        [sys.executable, "-c", REPLACED, SOURCE], check=True, capture_output=True, text=True
    )
    *refused, last = ran.stdout.splitlines()
    assert last == "True"
    assert len(refused) == 2
    for line, name in zip(refused, ("Starting", "lambda"), strict=True):
        assert re.match(rf"subprocess.Popen has been replaced by .*{name}.*: import nsbox ", line)
