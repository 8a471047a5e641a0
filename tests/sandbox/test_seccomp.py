"""The filter at work: real programs under it, and what it does to calls."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from conftest import unavailable
from nsbox import Bind, Sandbox, SpawnError, Step, Tmpfs
from support import PYTHON, SOURCE, inside, python_box

pytestmark = pytest.mark.usefixtures("box")

# ---- real programs under the default profile --------------------------------

JAVA = """
public class Hello {
    public static void main(String[] args) throws Exception {
        Thread thread = new Thread(() -> System.out.println("thread"));
        thread.start();
        thread.join();
        Process child = new ProcessBuilder("echo", "child").start();
        System.out.print(new String(child.getInputStream().readAllBytes()));
        new java.net.ServerSocket(0).close();
        System.gc();
    }
}
"""
NODE = """
const { execSync } = require("child_process");
const { Worker } = require("worker_threads");
require("fs").writeFileSync("/tmp/file", "file\\n");
process.stdout.write(execSync("cat /tmp/file"));
new Worker("console.log('thread')", { eval: true });
"""
PROGRAMS = {
    "bash": ("bash", "cat <(echo a); coproc cat; mkfifo /tmp/f; (echo b >/tmp/f &); cat </tmp/f"),
    "busybox": ("busybox", "busybox ps >/dev/null; busybox ifconfig lo >/dev/null; echo a; echo b"),
    "gcc": (
        "gcc",
        "cd /tmp && echo 'int main(void) { return 0; }' >a.c && gcc -O2 -flto a.c && ./a.out "
        "&& gcc -fsanitize=undefined -g a.c && ./a.out && printf 'a\\nb\\n'",
    ),
    "git": (
        "git",
        "cd /tmp && git init -q x && cd x && git config user.email a@b && git config user.name a "
        "&& echo a >f && git add f && git commit -qm x && git clone -q . ../y && cd ../y "
        "&& git gc -q && cat f && echo b",
    ),
    "node": ("node", f"cat >/tmp/x.js <<'E'\n{NODE}E\nnode /tmp/x.js"),
    "java": (
        "javac",
        f"cat >/tmp/Hello.java <<'E'\n{JAVA}E\ncd /tmp && javac Hello.java && java Hello",
    ),
}
OUTPUT = {"node": {"file", "thread"}, "java": {"thread", "child"}}


@pytest.mark.one_kernel
@pytest.mark.parametrize("name", PROGRAMS)
def test_program_runs_under_the_default_profile(name: str) -> None:
    """Compilers, interpreters, virtual machines and shells notice nothing of the filter."""
    program, script = PROGRAMS[name]
    if shutil.which(program) is None:
        unavailable(f"no {program}")
    result = Sandbox().run(["bash", "-ec", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert set(result.stdout.split()) == OUTPUT.get(name, {"a", "b"})


@pytest.mark.one_kernel
def test_postgresql_runs_under_the_default_profile() -> None:
    """A database is initialised, started, asked and stopped."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not versions:
        unavailable("no PostgreSQL (Debian: apt-get install postgresql)")
    script = """
    initdb -D /tmp/pg >/tmp/log
    pg_ctl -D /tmp/pg -o "-k /tmp -c listen_addresses=" -l /tmp/log -w start >/dev/null
    psql -h /tmp -Atc 'select 6 * 7' postgres
    pg_ctl -D /tmp/pg -m fast stop >/dev/null
    """
    # It refuses to run as user 0, of whatever user namespace.
    result = Sandbox(uid=1000, gid=1000).run(
        ["bash", "-ec", script],
        env={"PATH": f"{versions[-1]}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (0, "42\n"), result.stderr


@pytest.mark.one_kernel
def test_cpython_passes_its_tests_under_the_default_profile() -> None:
    """What the interpreter tests of the kernel's interface works inside as it does outside."""
    if subprocess.run([sys.executable, "-c", "import test.test_os"], stderr=-3).returncode:
        unavailable("this Python comes without its tests")
    code = """
import sys, unittest
from test import support
tests = unittest.defaultTestLoader.loadTestsFromNames(["test." + name for name in sys.argv[1:]])
def leaves(suite):
    for item in suite:
        yield from leaves(item) if isinstance(item, unittest.TestSuite) else [item]
result = unittest.TestResult()
for test in leaves(tests):
    test.run(result)
print(result.testsRun, [str(test) for test, _ in result.failures + result.errors])
"""
    arguments = [sys.executable, "-c", code, "test_mmap", "test_posix", "test_pty"]
    box = python_box(mounts=[Tmpfs("/var/tmp")])
    results = [
        sandbox.run(arguments, capture_output=True, text=True, cwd="/tmp").stdout.splitlines()[-1]
        for sandbox in (box, python_box(mounts=[Tmpfs("/var/tmp")], seccomp=None))
    ]
    assert results[0] == results[1]
    assert int(results[0].split()[0]) > 100


# ---- what is refused ----------------------------------------------------------

CALL = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
answers = []
for call in json.loads(sys.argv[1]):
    ctypes.set_errno(0)
    libc.syscall(*[ctypes.c_long(argument) for argument in call])
    answers.append(ctypes.get_errno())
print(json.dumps(answers))
"""


def answers(calls: Sequence[Sequence[int]], box: Sandbox) -> list[int]:
    """Return the errno of raw system calls made inside."""
    result: list[int] = inside(CALL, repr([list(call) for call in calls]), box=box)
    return result


IO_URING_SETUP, CLONE3, OPENAT2, UNKNOWN = 425, 435, 437, 1000  # on every architecture


def test_calls_are_refused_inside() -> None:
    """The kernel answers as the program says it should."""
    calls = [(IO_URING_SETUP, 1, 0), (CLONE3, 0, 0), (OPENAT2, 0, 0, 0, 0), (UNKNOWN,)]
    assert answers(calls, python_box()) == [errno.ENOSYS] * 4
    assert answers([(CLONE3, 0, 0)], python_box(seccomp=None)) != [errno.ENOSYS]


def test_no_filter_when_none_is_wanted() -> None:
    """seccomp=None installs nothing."""
    command = ["/bin/sh", "-c", "grep ^Seccomp: /proc/self/status"]
    for box, mode in ((Sandbox(seccomp=None), "0"), (Sandbox(), "2")):
        result = box.run(command, capture_output=True, text=True)
        assert result.stdout.split() == ["Seccomp:", mode]


@pytest.mark.parametrize("seccomp", ["default", None])
def test_no_user_namespace_inside(seccomp: str | None) -> None:
    """Nested user namespaces are off, by the filter and, without it, by the namespace's limit."""
    code = """
import ctypes, json
libc = ctypes.CDLL(None, use_errno=True)
libc.unshare(0x10000000)
print(json.dumps(ctypes.get_errno()))
"""
    expected = errno.EPERM if seccomp else errno.ENOSPC
    assert inside(code, box=python_box(seccomp=seccomp)) == expected
    assert inside(code, box=python_box(seccomp=seccomp, user_namespaces=True)) == 0


@pytest.mark.one_kernel
def test_bwrap_works_inside_when_user_namespaces_are_permitted() -> None:
    """With user_namespaces=True another sandbox can be built inside."""
    if shutil.which("bwrap") is None:
        unavailable("no bwrap (Debian: apt-get install bubblewrap)")
    # The kernel asks for CAP_SETFCAP of whoever maps user 0 (user_namespaces(7)), so be another.
    box = Sandbox(user_namespaces=True, uid=1000, gid=1000)
    command = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"]
    result = box.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# ---- strict ---------------------------------------------------------------------


def test_strict_computes() -> None:
    """An interpreter starts, computes, reads files and uses threads."""
    code = """
import json, threading
values = []
thread = threading.Thread(target=lambda: values.append(sum(range(1000))))
thread.start()
thread.join()
print(json.dumps([values, open("/etc/hosts").read().split()[0]]))
"""
    assert inside(code, box=python_box(seccomp="strict")) == [[499500], "127.0.0.1"]


def test_strict_refuses_to_write() -> None:
    """Files cannot be opened to write, made, renamed or removed, not even in /tmp."""
    code = """
import json, os
def number(function, *args):
    try:
        function(*args)
    except OSError as error:
        return error.errno
write = number(open, "/tmp/x", "w")
print(json.dumps([write, number(os.mkdir, "/tmp/x"), number(os.rmdir, "/x")]))
"""
    assert inside(code, box=python_box(seccomp="strict")) == [errno.EROFS] * 3


@pytest.mark.parametrize("code", ["os.fork()", "ctypes.CDLL(None).unshare(0)"])
def test_strict_ends_what_is_no_computation(code: str) -> None:
    """A fork, or an attempt at more rights, ends the payload by SIGSYS."""
    program = f"import ctypes, os; {code}; os._exit(0)"
    result = python_box(seccomp="strict").run([*PYTHON, program])
    assert result.returncode == -signal.SIGSYS


# ---- one's own --------------------------------------------------------------------


def test_own_profile_from_a_file(tmp_path: Path) -> None:
    """A profile in Docker's format is read from a file and holds."""
    path = tmp_path / "profile.json"
    path.write_text(
        """{"defaultAction": "SCMP_ACT_ALLOW", "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}],
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99}]}"""
    )
    code = """
import json, os
try:
    os.mkdir("/tmp/x")
except OSError as error:
    print(json.dumps(error.errno))
"""
    assert inside(code, box=python_box(seccomp=path)) == 99


def test_profile_that_refuses_execve() -> None:
    """A profile under which nothing can start is a SpawnError of execve."""
    for default in ("SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS"):
        box = Sandbox(seccomp={"defaultAction": default})
        if default == "SCMP_ACT_KILL_PROCESS":
            assert box.run(["/bin/true"]).returncode == -signal.SIGSYS
            continue
        with pytest.raises(SpawnError) as caught:
            box.run(["/bin/true"])
        assert (caught.value.step, caught.value.errno) == (Step.EXECVE, errno.EPERM)
        assert "seccomp" in str(caught.value)


def test_missing_library_is_an_error() -> None:
    """Without libseccomp nothing runs unfiltered: an UnsupportedError names the package."""
    code = """
import nsbox, nsbox._filter
nsbox._filter.SONAME = "missing"
try:
    nsbox.Sandbox().run(["/bin/true"])
except nsbox.UnsupportedError as error:
    print(error)
nsbox.Sandbox(seccomp=None).run(["/bin/true"], check=True)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "libseccomp2" in result.stdout


def test_import_does_not_load_the_library() -> None:
    """Only the first spawn opens libseccomp."""
    code = """
import nsbox, sys
box = nsbox.Sandbox()
assert "nsbox._libseccomp" not in sys.modules
assert "libseccomp" not in open("/proc/self/maps").read()
box.run(["/bin/true"], check=True)
assert "libseccomp" in open("/proc/self/maps").read()
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_set_user_id_bits_are_refused_in_a_writable_bind(tmp_path: Path) -> None:
    """A payload leaves no setuid program where the host could run it."""
    tmp_path.chmod(0o755)
    box = Sandbox(mounts=[Bind(tmp_path, "/data", readonly=False)])
    command = "cp /bin/true /data/p && chmod 4755 /data/p"
    assert box.run(["/bin/sh", "-c", command], stderr=-3).returncode == 1
    assert (tmp_path / "p").stat().st_mode & 0o7000 == 0
