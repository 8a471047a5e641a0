"""A fork has copies of all that its parent has, and takes none of it for its own."""

import threading

import pytest

from nsbox._forks import this_process
from support import OWN_PIDS, in_child, interpreter

pytestmark = pytest.mark.one_kernel

# A fork and its parent are both process 1, each in a pid namespace of its own.
_SAME_NUMBER = """
import gc, os, sys, warnings
from nsbox import Cgroup, Limits, Sandbox
from nsbox.lowlevel import CloneFlag, unshare

make, works, act = sys.argv[1:]
box, limited = Sandbox(), Sandbox(limits=Limits(pids=16, wall_time=1000))

def end():
    kept[0].kill()
    (getattr(kept[0], "close", None) or kept[0].wait)()

def forget():
    kept.clear()
    gc.collect()

kept = [eval(make)]
unshare(CloneFlag.CLONE_NEWPID)
if (pid := os.fork()) == 0:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        eval(act)()
    print(os.getpid(), [str(warning.message) for warning in caught], flush=True)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
print(os.getpid(), eval(works))
end()
"""
_KEPT = {
    "process": ("box.spawn(['/bin/sleep', '1000'])", "kept[0].poll() is None"),
    "popen": ("box.subprocess.Popen(['/bin/sleep', '1000'])", "kept[0].poll() is None"),
    "live": ("box.open()", "kept[0].run(['/bin/true']).returncode == 0"),
}
_KEPT_WITH_CGROUPS = {
    "limited process": (
        "limited.spawn(['/bin/sleep', '1000'])",
        "kept[0].poll() is None and not any(kept[0].cgroup.events())",
    ),
    "limited live": (
        "limited.open()",
        "kept[0].run(['/bin/true']).returncode == 0 and kept[0].stats().pids == 1",
    ),
    "cgroup": ("Cgroup.create(Limits(pids=16))", "kept[0].processes() == []"),
}


@pytest.mark.parametrize("act", ["end", "forget"])
@pytest.mark.parametrize("kept", _KEPT)
def test_same_number(kept: str, act: str) -> None:
    """What a fork does to it does nothing, and says nothing, though their pids are the same."""
    result = interpreter(_SAME_NUMBER, *_KEPT[kept], act, within=OWN_PIDS)
    assert (result.stdout, result.stderr) == ("1 []\n1 True\n", "")


@pytest.mark.usefixtures("cgroups")
@pytest.mark.parametrize("act", ["end", "forget"])
@pytest.mark.parametrize("kept", _KEPT_WITH_CGROUPS)
def test_same_number_with_cgroups(kept: str, act: str) -> None:
    """The same; cgroups, with all that is in them, are the parent's."""
    result = interpreter(_SAME_NUMBER, *_KEPT_WITH_CGROUPS[kept], act, within=OWN_PIDS)
    assert (result.stdout, result.stderr) == ("1 []\n1 True\n", "")


_POOL = """
import os
from nsbox import Limits, PlanError, Sandbox
from nsbox.lowlevel import CloneFlag, unshare

with Sandbox(limits=Limits(pids=16)).pool(1) as pool:
    unshare(CloneFlag.CLONE_NEWPID)
    if (pid := os.fork()) == 0:
        try:
            pool.run(["/bin/true"])
        except PlanError as error:
            print(os.getpid(), "fork" in str(error), flush=True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    result = pool.run(["/bin/true"])
    print(os.getpid(), result.returncode, pool.stats().warm, pool.stats().stale)
"""


@pytest.mark.usefixtures("cgroups")
def test_same_number_with_a_pool() -> None:
    """Its members, and their cgroups, are the parent's."""
    result = interpreter(_POOL, within=OWN_PIDS)
    assert (result.stdout, result.stderr) == ("1 True\n1 0 1 0\n", "")


def test_number_of_a_process() -> None:
    """Threads have one, a fork another, and its fork another again."""

    def numbers() -> list[int]:
        found = [this_process()]
        thread = threading.Thread(target=lambda: found.append(this_process()))
        thread.start()
        thread.join()
        return found

    def child() -> list[int]:
        return [*numbers(), *in_child(numbers)]

    mine, same, *others = [*numbers(), *in_child(child)]
    assert mine == same
    assert others[0] == others[1] != others[2] == others[3]
    assert mine not in others


# Neither Python nor libc knows of the last two, and the last has the pid of its parent.
_WAYS = """
import ctypes, os, platform, signal, sys

def hook():
    print(this_process() not in known, flush=True)

os.register_at_fork(after_in_child=hook)
from nsbox._forks import this_process
libc = ctypes.PyDLL(None)
CLONE, CLONE_NEWPID = {"x86_64": 56, "aarch64": 220}[platform.machine()], 0x20000000
ways = {
    "os.fork": os.fork,
    "fork": libc.fork,
    "clone": lambda: libc.syscall(CLONE, signal.SIGCHLD, 0, 0, 0, 0),
    "clone, same pid": lambda: libc.syscall(CLONE, signal.SIGCHLD | CLONE_NEWPID, 0, 0, 0, 0),
}
known = [this_process()]

def generations(count):
    if (pid := ways[sys.argv[1]]()) == 0:
        new = this_process()
        print(new not in known and new == this_process(), flush=True)
        known.append(new)
        if count > 1:
            generations(count - 1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    print(this_process() == known[-1], flush=True)

generations(3)
"""


@pytest.mark.parametrize("way", ["os.fork", "fork", "clone", "clone, same pid"])
def test_ways_to_fork(way: str) -> None:
    """Whatever call makes it, and before the first hook of Python's, a fork is known for one."""
    result = interpreter(_WAYS, way, within=OWN_PIDS)
    lines = 9 if way == "os.fork" else 6
    assert result.stdout == "True\n" * lines, result.stderr


_FORK = """
import os
from nsbox._forks import this_process
mine = this_process()
if (pid := os.fork()) == 0:
    os._exit(this_process() == mine)
print(os.waitpid(pid, 0)[1], this_process() == mine)
"""


def test_fork_where_the_kernel_does_not_help(strace: str) -> None:
    """Where madvise(2) is refused, the hook of fork(3) is enough."""
    refusing = [strace, "-f", "-o", "/dev/null", "-e", "inject=madvise:error=EINVAL"]
    result = interpreter(_FORK, within=refusing)
    assert result.stdout == "0 True\n", result.stderr
