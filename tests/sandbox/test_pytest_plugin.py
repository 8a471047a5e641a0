"""The pytest plugin, in runs of pytest of their own, which find it by its entry point."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from support import SOURCE

pytestmark = [pytest.mark.usefixtures("box"), pytest.mark.one_kernel]

HEAD = """
import asyncio, os, subprocess, sys
from pathlib import Path
import nsbox, pytest
from subprocess import Popen, check_output

def hostname():
    return subprocess.check_output(["uname", "-n"], text=True).strip()

OUTSIDE = os.uname().nodename
"""


def outcomes(pytester: pytest.Pytester, code: str, *args: str, head: str = HEAD) -> dict[str, int]:
    """Run a test module in a process of its own; return how many tests had which outcome."""
    if not list(pytester.path.glob("*.ini")):
        pytester.makeini("[pytest]")  # a root of its own, wherever temporary directories lie
    pytester.makepyfile(head + code)
    without = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")  # which takes its time
    result = pytester.runpytest_subprocess(*without, *args)
    return {name: n for name, n in result.parseoutcomes().items() if n and name != "warnings"}


def test_entry_point_is_installed() -> None:
    """The installed distribution offers the plugin to pytest, under the name blocked here."""
    found = [point for point in entry_points(group="pytest11") if point.name == "nsbox"]
    assert [point.value for point in found] == ["pytest_nsbox"]


def test_plugin_imports_nothing_of_nsbox() -> None:
    """Loading the plugin does not import the package, and so not the compiled core."""
    code = (
        "import sys, pytest; before = set(sys.modules); import pytest_nsbox; "
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['pytest_nsbox']\n"


def test_run_without_sandboxed_tests_does_not_import_nsbox(pytester: pytest.Pytester) -> None:
    """A whole run in which no test asks for a sandbox leaves the package alone."""
    code = """
import sys

def test_nothing():
    assert "pytest_nsbox" in sys.modules
    assert "nsbox" not in sys.modules
"""
    assert outcomes(pytester, code, head="") == {"passed": 1}


def test_marker_sends_all_functions_into_the_sandbox(pytester: pytest.Pytester) -> None:
    """Within a marked test the module's functions, however they were imported, are sandboxed."""
    code = """
@pytest.mark.sandboxed
def test_marked():
    assert hostname() == "sandbox"
    assert subprocess.getoutput("uname -n") == "sandbox"
    assert subprocess.run("uname -n", shell=True, capture_output=True).stdout == b"sandbox\\n"
    assert subprocess.call(["true"]) == 0
    assert check_output(["uname", "-n"]) == b"sandbox\\n"
    with subprocess.Popen(["uname", "-n"], stdout=subprocess.PIPE) as process:
        assert isinstance(process, nsbox.Process)
        assert process.communicate()[0] == b"sandbox\\n"

def test_after():
    assert subprocess.Popen is Popen
    assert hostname() == OUTSIDE

@pytest.mark.sandboxed
def test_asyncio():
    async def main():
        process = await asyncio.create_subprocess_exec("uname", "-n", stdout=subprocess.PIPE)
        assert (await process.communicate())[0] == b"sandbox\\n"
        assert process.returncode == 0
    asyncio.run(main())
"""
    assert outcomes(pytester, code) == {"passed": 3}


def test_python_and_the_projects_files_are_there(pytester: pytest.Pytester) -> None:
    """The default sandbox shows this Python, the project read-only, and a writable tmp_path."""
    pytester.makepyfile(helper="print('from the project')")
    code = """
@pytest.mark.sandboxed
def test_files(tmp_path, request):
    root = request.config.rootpath
    run = [sys.executable, "helper.py"]
    assert subprocess.check_output(run) == b"from the project\\n"
    assert subprocess.run(["touch", root / "new"], stderr=subprocess.DEVNULL).returncode != 0
    subprocess.run(["sh", "-c", "echo text > file"], cwd=tmp_path, check=True)
    assert (tmp_path / "file").read_text() == "text\\n"
    assert (tmp_path / "file").stat().st_uid == os.geteuid()
    assert subprocess.check_output(["pwd"], text=True).strip() == os.getcwd()
    os.chdir(tmp_path)
    assert subprocess.check_output(["cat", "file"]) == b"text\\n"
    os.environ["SECRET"] = "secret"
    assert "SECRET" not in subprocess.check_output(["env"], text=True)
    assert "PATH=" + os.environ["PATH"] in subprocess.check_output(["env"], text=True)
    assert list(Path("/proc/self/root").iterdir())
    assert subprocess.run(["ls", "/var"], stderr=subprocess.DEVNULL).returncode != 0
"""
    assert outcomes(pytester, code) == {"passed": 1}


def test_marker_takes_fields_and_values(pytester: pytest.Pytester) -> None:
    """The marker's keywords are added to the defaults; a Sandbox is taken as it is."""
    code = """
BOX = nsbox.Sandbox(hostname="value", mounts=nsbox.interpreter_mounts())

@pytest.fixture
def mine():
    return nsbox.Sandbox(hostname="mine")

@pytest.mark.sandboxed(hostname="field", env={"A": "1"}, mounts=[nsbox.Tmpfs("/scratch")])
def test_fields(tmp_path):
    assert hostname() == "field"
    output = subprocess.check_output("echo $A; touch /scratch/x; ls -d $0; pwd", shell=True)
    assert output.startswith(b"1\\n")
    assert output.endswith(os.getcwd().encode() + b"\\n")
    assert subprocess.check_output([sys.executable, "-c", "print(1)"]) == b"1\\n"

@pytest.mark.sandboxed(BOX)
def test_value(sandbox):
    assert hostname() == "value"
    assert sandbox is BOX

@pytest.mark.sandboxed("mine")
def test_fixture(sandbox):
    assert hostname() == "mine"
    assert sandbox.hostname == "mine"

@pytest.mark.sandboxed(env="host", net="host")
def test_environment(monkeypatch):
    monkeypatch.setenv("A", "2")
    assert subprocess.check_output(["sh", "-c", "echo $A"]) == b"2\\n"

@pytest.mark.parametrize("name", ["out", pytest.param("in", marks=pytest.mark.sandboxed)])
def test_parameters(name):
    assert hostname() == {"out": OUTSIDE, "in": "sandbox"}[name]
"""
    assert outcomes(pytester, code) == {"passed": 6}


def test_closest_marker_holds(pytester: pytest.Pytester) -> None:
    """A function's marker replaces the class's, and that the module's; None means no sandbox."""
    code = """
import unittest
pytestmark = pytest.mark.sandboxed(hostname="module")

def test_module():
    assert hostname() == "module"

@pytest.mark.sandboxed(hostname="class")
class TestClass:
    def setup_method(self):
        self.before = hostname()

    def test_class(self):
        assert (self.before, hostname()) == (OUTSIDE, "class")

    @pytest.mark.sandboxed(hostname="function")
    def test_function(self):
        assert hostname() == "function"

    @pytest.mark.sandboxed(None)
    def test_none(self):
        assert hostname() == OUTSIDE
        os.system("true")

class TestCase(unittest.TestCase):
    def test_unittest(self):
        self.assertEqual(hostname(), "module")
"""
    assert outcomes(pytester, code) == {"passed": 5}


def test_fixtures_are_made_outside(pytester: pytest.Pytester) -> None:
    """Fixtures of every scope are set up and torn down outside; sandbox is a value to use."""
    code = """
@pytest.fixture(scope="session")
def session():
    return hostname()

@pytest.fixture
def function():
    yield hostname()
    assert hostname() == OUTSIDE

@pytest.mark.sandboxed
def test_inside(session, function):
    assert (session, function, hostname()) == (OUTSIDE, OUTSIDE, "sandbox")

def test_fixture(sandbox):
    assert hostname() == OUTSIDE
    assert sandbox.run([sys.executable, "-c", "print(2)"], capture_output=True).stdout == b"2\\n"
"""
    assert outcomes(pytester, code) == {"passed": 2}


def test_project_can_change_the_defaults(pytester: pytest.Pytester) -> None:
    """A fixture sandbox_fields of the project replaces the default fields."""
    pytester.makeconftest("""
import pytest

@pytest.fixture
def sandbox_fields(sandbox_fields):
    return {**sandbox_fields, "hostname": "project"}
""")
    code = """
@pytest.mark.sandboxed
def test_default():
    assert hostname() == "project"
    assert subprocess.check_output([sys.executable, "-c", "print(1)"]) == b"1\\n"
"""
    assert outcomes(pytester, code) == {"passed": 1}


def test_other_ways_out_are_refused(pytester: pytest.Pytester) -> None:
    """What would start a process beside the sandbox is an error, in the marked test only."""
    code = """
WAYS = {
    "system": lambda: os.system("true"),
    "fork": os.fork,
    "posix_spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "Popen": lambda: Popen(["true"]),
}

@pytest.mark.sandboxed
@pytest.mark.parametrize("way", WAYS)
def test_refused(way):
    with pytest.raises(nsbox.UnsupportedError, match="outside of the sandbox"):
        WAYS[way]()

def test_allowed():
    assert os.system("true") == 0
    with Popen(["true"]) as process:
        pass
"""
    assert outcomes(pytester, code) == {"passed": 5}


def test_mistakes_are_errors(pytester: pytest.Pytester) -> None:
    """A marker that cannot be meant fails the test before it starts."""
    code = """
@pytest.fixture
def number():
    return 1

@pytest.mark.sandboxed(nett="host")
def test_field(): pass

@pytest.mark.sandboxed(net="nowhere")
def test_content(): pass

@pytest.mark.sandboxed(1)
def test_value(): pass

@pytest.mark.sandboxed("number")
def test_fixture(): pass

@pytest.mark.sandboxed("missing")
def test_missing(): pass

@pytest.mark.sandboxed(nsbox.Sandbox(), net="host")
def test_both(): pass
"""
    assert outcomes(pytester, code) == {"errors": 6}


def test_marker_is_registered(pytester: pytest.Pytester) -> None:
    """Strict markers know it, and --markers explains it."""
    assert outcomes(pytester, "\n@pytest.mark.sandboxed\ndef test(): pass", "--strict-markers") == {
        "passed": 1
    }
    pytester.runpytest_subprocess("--markers").stdout.fnmatch_lines(["@pytest.mark.sandboxed(*"])


NO_SANDBOX = """
import os
import pytest

# A user namespace of which no further ones can be made.
@pytest.fixture(scope="session", autouse=True)
def no_namespaces():
    from nsbox import lowlevel
    uid, gid = os.geteuid(), os.getegid()
    lowlevel.unshare(lowlevel.CloneFlag.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")
"""


@pytest.mark.parametrize(
    ("ini", "expected"),
    [
        ("", {"errors": 1}),
        ("sandbox_missing = fail", {"errors": 1}),
        ("sandbox_missing = skip", {"skipped": 1}),
    ],
)
def test_missing_capability(pytester: pytest.Pytester, ini: str, expected: dict[str, int]) -> None:
    """Where no sandbox can be made, marked tests fail, or are skipped if the project says so."""
    pytester.makeini(f"[pytest]\n{ini}\n")
    pytester.makeconftest(NO_SANDBOX)
    code = """
@pytest.mark.sandboxed
def test_marked():
    pass

def test_plain():
    pass
"""
    assert outcomes(pytester, code) == {**expected, "passed": 1}


def test_other_setting_is_refused(pytester: pytest.Pytester) -> None:
    """Anything but fail and skip is a mistake in the settings."""
    pytester.makeini("[pytest]\nsandbox_missing = maybe\n")
    result = pytester.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*sandbox_missing must be*"])


def test_workers_of_xdist(pytester: pytest.Pytester) -> None:
    """Each worker of pytest-xdist sandboxes the tests that it runs."""
    pytest.importorskip("xdist")
    code = """
@pytest.mark.sandboxed
@pytest.mark.parametrize("n", range(6))
def test_inside(n, worker_id):
    assert worker_id.startswith("gw")
    assert hostname() == "sandbox"

def test_outside():
    assert hostname() == OUTSIDE
"""
    assert outcomes(pytester, code, "-n", "2") == {"passed": 7}


def test_marked_test_can_run_pytest(pytester: pytest.Pytester) -> None:
    """A run of pytest in a sandboxed test's sandbox is that of a project of its own."""
    # A name that the outer run does not collect.
    Path(pytester.path, "inner.py").write_text("def test_inner(): pass\n")
    code = f"""
@pytest.mark.sandboxed(mounts=[nsbox.Bind({str(SOURCE)!r})])
def test_outer():
    run = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "inner.py"]
    assert "1 passed" in subprocess.check_output(run, text=True)
"""
    assert outcomes(pytester, code) == {"passed": 1}
