"""
The two traps of a child that shares its caller's memory.

One: a process that can trace the child reads the caller. Two: a change of ids
in the child takes the caller's dumpable mark away.
"""

import ctypes
import json
import os
import resource
import secrets
import select
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest

from nsbox import PIPE, Sandbox, SpawnError, lowlevel
from nsbox._spares import settle
from support import PYTHON, python_box, stdout_of

pytestmark = pytest.mark.usefixtures("box")

PR_GET_DUMPABLE = 3

# Runs inside with CAP_SYS_PTRACE. It knows where in the caller's memory the secret lies, and
# tries to look there in every process that comes up, from before that process exists.
_SPY = """
import ctypes, errno, json, os, sys
way, address = sys.argv[1], int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
PTRACE_SEIZE = 0x4206
WALL = 0x40000000
read, refused, pid = [], 0, 2
os.set_blocking(0, False)
def look(pid):
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        read.append(os.pread(fd, 32, address).hex())
    except OSError:
        read.append("")  # nothing is mapped there: it has executed its program already
    finally:
        os.close(fd)
def attempt(pid):
    # One try: did the process let us?
    if way == "mem":
        look(pid)
        return True
    if libc.ptrace(PTRACE_SEIZE, pid, None, None) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    try:
        look(pid)
    finally:
        while True:
            try:
                _, status = os.waitpid(pid, WALL)
            except ChildProcessError:
                break
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                break
    return True
def over():
    try:
        return os.read(0, 1) == b""
    except BlockingIOError:
        return False
print("ready", flush=True)
seen = False
while True:
    try:
        attempt(pid)
        pid, seen = pid + 1, False
    except (FileNotFoundError, ProcessLookupError):
        # The last number is that of the newest process here: is this one past already?
        if seen or int(open("/proc/loadavg").read().split()[-1]) >= pid + 1:
            pid, seen = pid + 1, False
        elif over():
            break
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            raise
        refused, seen = refused + 1, True
        if refused == 1:
            print("refused", flush=True)
print(json.dumps({"read": read, "refused": refused}))
"""


@pytest.mark.parametrize("way", ["mem", "ptrace"])
def test_joining_process_does_not_show_the_callers_memory(
    way: str, request: pytest.FixtureRequest
) -> None:
    """A payload that may trace all of its sandbox cannot read the caller through a newcomer."""
    secret = secrets.token_bytes(32)
    buffer = ctypes.create_string_buffer(secret, 32)
    address = ctypes.addressof(buffer)
    rounds = 300 if request.config.getoption("--long") else 30
    box = python_box(capabilities=["SYS_PTRACE"])
    with box.spawn([*PYTHON, _SPY, way, str(address)], stdin=PIPE, stdout=PIPE) as spy:
        assert stdout_of(spy).readline() == b"ready\n"
        with spy.namespaces["user"] as user, spy.namespaces["pid"] as pid:
            newcomer = Sandbox(user=user, pid=pid)
            done = 0
            # At least so often, and until the spy has met one before it executed its program.
            while done < rounds or not (
                select.select([stdout_of(spy)], [], [], 0)[0] or done > 5000
            ):
                assert newcomer.run(["/bin/true"]).returncode == 0
                done += 1
        report = json.loads(spy.communicate()[0].splitlines()[-1])
    assert report["refused"] > 0
    assert secret.hex() not in report["read"]


def test_address_of_the_secret_is_right() -> None:
    """The spy's way of reading finds the secret where it is allowed to: the test above can fail."""
    secret = secrets.token_bytes(32)
    buffer = ctypes.create_string_buffer(secret, 32)
    with open("/proc/self/mem", "rb", buffering=0) as file:
        assert os.pread(file.fileno(), 32, ctypes.addressof(buffer)) == secret


def test_new_sandbox_does_not_show_the_callers_memory() -> None:
    """A payload of a new sandbox finds nothing mapped at the address of the caller's secret."""
    secret = secrets.token_bytes(32)
    buffer = ctypes.create_string_buffer(secret, 32)
    code = """
import os, sys
with open("/proc/self/mem", "rb", buffering=0) as file:
    try:
        sys.stdout.write(os.pread(file.fileno(), 32, int(sys.argv[1])).hex())
    except OSError:
        pass"""
    result = python_box().run(
        [*PYTHON, code, str(ctypes.addressof(buffer))], capture_output=True, text=True
    )
    assert (result.returncode, secret.hex() in result.stdout) == (0, False)


# ---- the dumpable mark ----------------------------------------------------

SPAWNS: dict[str, Callable[[], object]] = {
    "default": lambda: Sandbox().run(["/bin/true"]),
    "other_ids": lambda: Sandbox(uid=7, gid=8).run(["/bin/true"]),
    "capabilities": lambda: Sandbox(capabilities=["CHOWN"]).run(["/bin/true"]),
    "own_time": lambda: Sandbox(time="new").run(["/bin/true"]),
    "failed": lambda: _failing(),
}


def _failing() -> None:
    with pytest.raises(FileNotFoundError):
        Sandbox().run(["/missing"])


@pytest.mark.parametrize("spawn", SPAWNS.values(), ids=SPAWNS)
def test_dumpable_is_as_before(spawn: Callable[[], object]) -> None:
    """A spawn leaves PR_GET_DUMPABLE of the caller as it was."""
    before = lowlevel.prctl(PR_GET_DUMPABLE)
    spawn()
    assert lowlevel.prctl(PR_GET_DUMPABLE) == before == 1


def test_dumpable_is_as_before_after_a_join() -> None:
    """A spawn that joins namespaces leaves the mark as it was."""
    with (
        Sandbox().spawn(["/bin/cat"], stdin=PIPE) as process,
        process.namespaces["user"] as user,
        process.namespaces["net"] as net,
    ):
        Sandbox(user=user, net=net).run(["/bin/true"])
    assert lowlevel.prctl(PR_GET_DUMPABLE) == 1


def test_mark_of_a_caller_that_is_not_dumpable() -> None:
    """A caller that has taken its own mark away does not get it back."""
    lowlevel.prctl(4, 0)  # PR_SET_DUMPABLE
    try:
        # A plain user's /proc belongs to root meanwhile: it cannot write the id maps.
        expected: AbstractContextManager[object] = (
            nullcontext() if os.geteuid() == 0 else pytest.raises(SpawnError)
        )
        with expected:
            Sandbox().run(["/bin/true"])
        assert lowlevel.prctl(PR_GET_DUMPABLE) == 0
    finally:
        lowlevel.prctl(4, 1)


@pytest.mark.one_kernel
def test_dumpable_with_many_threads() -> None:
    """The mark is there again when eight threads have spawned at once."""
    box = Sandbox()

    def work() -> None:
        for _ in range(20):
            box.run(["/bin/true"])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    settle()  # who works ahead takes the mark off for a moment
    assert lowlevel.prctl(PR_GET_DUMPABLE) == 1


def test_limit_of_core_files_is_untouched() -> None:
    """A spawn does not change the caller's RLIMIT_CORE."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    Sandbox().run(["/bin/true"])
    assert resource.getrlimit(resource.RLIMIT_CORE) == before


@pytest.mark.one_kernel
def test_own_proc_stays_accessible_during_spawns() -> None:
    """While it spawns, the caller can open its own /proc/self/mem, maps and fd."""
    errors: list[OSError] = []
    stop = threading.Event()
    looks = 0

    def watch() -> None:
        nonlocal looks
        while not stop.is_set():
            try:
                for name in ("mem", "maps", "environ"):
                    os.close(os.open(f"/proc/self/{name}", os.O_RDONLY))
                os.readlink("/proc/self/exe")
                os.listdir("/proc/self/fd")
            except OSError as error:
                errors.append(error)
            looks += 1

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        box, runs = Sandbox(), 0
        while runs < 100 or looks <= 100:
            box.run(["/bin/true"])
            runs += 1
    finally:
        stop.set()
        thread.join()
    assert errors == []
