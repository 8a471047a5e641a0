"""
What is made ahead of a spawn: the same world as without, used once, never stale, never left.

A Sandbox has something made ahead from its second spawn on, by a thread. The tests let
it finish with fill(), which makes what is missing, and waits.
"""

import errno
import gc
import json
import os
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import await_tasks, children, needs_kernel_of, open_fds, tasks
from nsbox import (
    Bind,
    Dev,
    Limits,
    Namespace,
    Overlay,
    Proc,
    Sandbox,
    SpawnError,
    Step,
    Tmpfs,
    lowlevel,
)
from nsbox._ahead import can_be_made_ahead
from nsbox._forks import Own
from nsbox._native import lib
from nsbox._spares import Store, maker, settle
from support import OWN_PIDS, PYTHON, SOURCE, descriptors, in_child, interpreter, python_box

pytestmark = pytest.mark.usefixtures("box")


def own_fds() -> set[int]:
    """Return all descriptors of this process, those of what was made ahead too."""
    return set(descriptors())


def store_of(box: Sandbox) -> Store:
    """Return the store of a Sandbox, which has one from its second spawn on."""
    for _ in range(2):
        box.run(["/bin/true"], check=True)
    made = box._cache.store(box._cache.lowered(box))
    assert made is not None
    return made


def warm(box: Sandbox) -> Sandbox:
    """Return the Sandbox with all made ahead for its next spawn."""
    assert store_of(box).fill() > 0
    return box


def namespaces(box: Sandbox) -> dict[str, str]:
    """Return the namespaces of a payload, by kind."""
    script = "for kind in /proc/self/ns/*; do echo ${kind##*/} $(readlink $kind); done"
    text = box.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True).stdout
    return dict(line.split() for line in text.splitlines())


# ---- the same world ----------------------------------------------------------

INVENTORY = """
id; hostname; umask; pwd; cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups
grep -v -E '^(Pid|Tgid|NSpid|Vm|Rss|Hugetlb|voluntary|nonvoluntary)' /proc/self/status
cat /proc/self/limits /proc/self/cgroup /proc/1/comm
sed -E 's/^[0-9]+ [0-9]+ [0-9:]+ //' /proc/self/mountinfo | sort
ls -lAn --time-style=+ / /dev /etc /tmp /home /dev/shm | sed -E 's/ +/ /g; / proc$/s/ [0-9]+//'
cat /proc/sys/user/max_user_namespaces /proc/sys/kernel/domainname /proc/net/dev | cut -d: -f1
cat /proc/keys /proc/interrupts; cat /sys/class/net/lo/flags; echo $$; ls /proc/self/fd
echo whole
"""

WORLDS: dict[str, Callable[[], dict[str, Any]]] = {
    "default": dict,
    "user": lambda: {"uid": 1000, "gid": 1000},
    "names": lambda: {"hostname": "elsewhere", "user_namespaces": True},
    "binds": lambda: {"mounts": [Bind("/etc", "/data/etc"), Bind("/etc/passwd", "/passwd")]},
    "masks": lambda: {"masks": ["/etc/group", "/usr/share", "/proc/uptime"]},
    "proc": lambda: {"mounts": [Proc("/proc", only_processes=True)]},
    "shared": lambda: {"net": "host", "ipc": "host", "uts": "host"},
    "capable": lambda: {"capabilities": ["CAP_NET_ADMIN", "CAP_CHOWN"]},
    "bare": lambda: {"default_mounts": False, "mounts": [Dev(), Proc(), Tmpfs("/tmp")]},
    "without": lambda: {"landlock": False, "seccomp": None},
}


@pytest.mark.parametrize("options", WORLDS.values(), ids=WORLDS)
def test_world_is_the_same(options: Callable[[], dict[str, Any]]) -> None:
    """A payload sees the same mounts, ids, limits, files and settings with a spare as without."""

    def look(box: Sandbox) -> list[str]:
        result = box.run(["/bin/sh", "-c", INVENTORY], capture_output=True, text=True)
        assert result.stdout.endswith("whole\n"), result.stderr
        return f"{result.stdout}{result.stderr}".splitlines()

    without, with_spare = Sandbox(**options()), Sandbox(**options())
    assert look(warm(with_spare)) == look(without)


def test_loopback_is_up() -> None:
    """The network of a spare has a loopback interface that works."""
    code = (
        "import socket; server = socket.create_server(('127.0.0.1', 0));"
        "socket.create_connection(server.getsockname()); print('up')"
    )
    result = warm(python_box()).run([*PYTHON, code], capture_output=True, text=True)
    assert result.stdout == "up\n", result.stderr


def test_limits_hold(cgroups: None) -> None:
    """A payload that uses a spare is in the cgroup of its run, also one that is shielded."""
    box = warm(Sandbox(limits=Limits(memory="64M", pids=16)))
    result = box.run(["/bin/cat", "/proc/self/cgroup"], capture_output=True, text=True)
    assert result.returncode == 0
    assert all(line.endswith(":/") for line in result.stdout.splitlines() if "pids" in line)
    assert result.usage.memory_peak


# ---- each once ----------------------------------------------------------------


def test_namespaces_are_used_once() -> None:
    """Of two spawns in a row, each with a spare, none has a namespace of the other."""
    box = Sandbox()
    warm(box)
    with box.spawn(["/bin/sleep", "60"]) as first:
        before = {
            kind: os.readlink(f"/proc/{first.pid}/ns/{kind}") for kind in ("mnt", "net", "ipc")
        }
        assert store_of(box).fill() > 0
        after = namespaces(box)
        first.kill()
    assert all(after[kind] != name for kind, name in before.items())


def test_spare_is_used() -> None:
    """What was made ahead is what the next payload gets."""
    box = warm(Sandbox())
    ahead = {name for name in descriptors().values() if name.startswith(("net:", "ipc"))}
    got = namespaces(box)
    assert {got["net"], got["ipc"]} == ahead


def test_nothing_is_carried_over() -> None:
    """What a payload leaves in its tmpfs, in shared memory, in its host name, no other finds."""
    box = Sandbox()
    write = "echo x > /tmp/x; echo x > /dev/shm/x; echo x > ~/x; ipcmk -M 64"
    for _ in range(3):
        warm(box)
        box.run(["/bin/sh", "-c", write], capture_output=True)
        warm(box)
        look = "ls /tmp /dev/shm ~; cat /proc/sysvipc/shm | wc -l"
        result = box.run(["/bin/sh", "-c", look], capture_output=True, text=True)
        assert "x" not in result.stdout.split()
        assert result.stdout.split()[-1] == "1"


# ---- shared ----------------------------------------------------------------------

CHANGES = """
for path in / /dev /etc /etc/passwd /dev/fd; do
    chmod 777 $path; chown -h 0:0 $path; touch -h $path; mv $path $path-; ln $path /x; rm -r $path
done
mkdir /x /etc/x; mknod /dev/x p; ln -s x /x; setfattr -n user.x -v 1 /etc/passwd; echo x > /dev/x
for path in /etc/passwd /etc/hosts; do echo x > $path; echo x >> $path; truncate -s 0 $path; done
for path in / /dev; do mount -o remount,rw $path; mount -o remount,bind,rw $path; umount $path; done
"""
INSIDE = f"unshare --user --map-root-user --mount sh -c '{CHANGES}'"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"user_namespaces": True},
        {"capabilities": ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_LINUX_IMMUTABLE"]},
        {"landlock": False, "seccomp": None, "user_namespaces": True},
    ],
    ids=["default", "nesting", "capable", "without"],
)
def test_what_is_shared_cannot_be_changed(options: dict[str, Any]) -> None:
    """What sandboxes have in common of "/" and /dev stays as it is, whatever a payload does."""
    look = "stat -c '%n %F %a %u %g %s %d %i %Y %Z' / /dev /dev/fd /etc /etc/*; cat /etc/passwd"

    def seen() -> str:
        result = warm(box).run(["/bin/sh", "-c", look], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return str(result.stdout)

    box = Sandbox(**options)
    before = seen()
    warm(box).run(["/bin/sh", "-c", f"{CHANGES}; {INSIDE}"], capture_output=True)
    assert seen() == before


def test_what_is_written_is_not_shared() -> None:
    """A root that the payload may write to is its own."""
    box = Sandbox(writable=True)
    for _ in range(2):
        result = warm(box).run(["/bin/sh", "-c", "ls /; echo x > /mine"], capture_output=True)
        assert b"mine" not in result.stdout
        assert not result.stderr


# ---- never stale ---------------------------------------------------------------


def read(box: Sandbox, path: str = "/data/text") -> str:
    return str(box.run(["/bin/cat", path], capture_output=True, text=True).stdout)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with a file, to be bound."""
    directory = tmp_path / "source"
    directory.mkdir()
    (directory / "text").write_text("old")
    for path in (tmp_path, directory):
        path.chmod(0o755)
    return directory


def test_source_that_is_replaced(source: Path) -> None:
    """A spawn binds what is at the path by then."""
    box = warm(Sandbox(mounts=[Bind(source, "/data")]))
    assert read(box) == "old"
    warm(box)
    source.rename(source.with_name("moved"))
    source.mkdir()
    (source / "text").write_text("new")
    assert read(box) == "new"
    assert read(warm(box)) == "new"


def test_file_that_is_replaced(source: Path) -> None:
    """The same for a file, as editors and package managers replace it."""
    box = warm(Sandbox(mounts=[Bind(source / "text", "/text")]))
    other = source / "other"
    other.write_text("new")
    other.rename(source / "text")
    assert read(box, "/text") == "new"


def test_link_that_leads_elsewhere(source: Path) -> None:
    """The same for a symbolic link that is switched."""
    link, other = source.with_name("link"), source.with_name("other")
    link.symlink_to(source)
    box = warm(Sandbox(mounts=[Bind(link, "/data")]))
    other.mkdir()
    (other / "text").write_text("new")
    link.unlink()
    link.symlink_to(other)
    assert read(box) == "new"


def test_source_that_is_removed(source: Path) -> None:
    """A source that is gone is the error that it always is, and nothing else."""
    mounts = [Bind(source, "/data")]
    box = warm(Sandbox(mounts=mounts))
    source.rename(source.with_name("moved"))
    errors = []
    for subject in (Sandbox(mounts=mounts), box, box):
        with pytest.raises(SpawnError) as caught:
            subject.run(["/bin/true"])
        errors.append((caught.value.step, caught.value.errno, caught.value.path, str(caught.value)))
    assert errors[0][:3] == (Step.OPEN_TREE, errno.ENOENT, str(source))
    assert errors == errors[:1] * 3


_SUBMOUNT = """
import os, subprocess, sys
from nsbox import Bind, Sandbox
source = sys.argv[1]
os.mkdir(source + "/below")
box = Sandbox(mounts=[Bind(source, "/data")])
for _ in range(2):
    box.run(["/bin/true"], check=True)
store = box._cache.store(box._cache.lowered(box))
def look():
    assert store.fill() > 0
    return box.run(["/bin/ls", "/data/below"], capture_output=True, text=True).stdout
print(repr(look()))
subprocess.run(["mount", "-t", "tmpfs", "none", source + "/below"], check=True)
open(source + "/below/file", "w").close()
print(repr(box.run(["/bin/ls", "/data/below"], capture_output=True, text=True).stdout))
print(repr(look()))
subprocess.run(["umount", source + "/below"], check=True)
print(repr(box.run(["/bin/ls", "/data/below"], capture_output=True, text=True).stdout))
print(repr(look()))
"""


def test_submount_that_comes_and_goes(source: Path) -> None:
    """What is mounted below a source after the base was made is there in the next sandbox."""
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    unshare += ["--propagation", "private"]
    result = interpreter(_SUBMOUNT, str(source), within=unshare)
    assert result.stdout.split() == ["''", r"'file\n'", r"'file\n'", "''", "''"], result.stderr


def test_caller_who_is_somebody_else(root: None) -> None:
    """A caller who has changed its ids does not get what was made for another."""

    def child() -> tuple[str, str]:
        box = warm(Sandbox())
        os.seteuid(4711)
        lowlevel.prctl(4, 1)  # PR_SET_DUMPABLE, which the change has cleared
        user = box.run(["/bin/cat", "/proc/self/uid_map"], capture_output=True, text=True)
        os.seteuid(0)
        again = box.run(["/bin/cat", "/proc/self/uid_map"], capture_output=True, text=True)
        return user.stdout, again.stdout

    user, again = in_child(child)
    assert user.split() == ["0", "4711", "1"]
    assert again.split() == ["0", "65534", "1"]


# ---- which plans ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"net": "host"}, True),
        ({"mounts": [Bind("/etc", "/x"), Tmpfs("/y")]}, True),
        ({"user": "host"}, False),
        ({"time": "new"}, False),
        # It could enter the other mount namespace of its spare, or trace its launcher.
        ({"capabilities": ["CAP_SYS_ADMIN"]}, False),
        ({"pid": "host", "default_mounts": False}, False),
        ({"namespaces": "none"}, False),
        ({"root": Overlay("/usr", "/")}, False),
        ({"mounts": [Overlay("/usr", "/x")]}, False),
        # /usr is the host's: who removes a directory there removes the mount on it.
        ({"mounts": [Tmpfs("/usr/share")]}, False),
        ({"mounts": [Proc("/one")]}, False),
    ],
    ids=str,
)
def test_which_plans_can_be_made_ahead(options: dict[str, Any], expected: bool) -> None:
    """All that lies in file systems of the sandbox's own, and belongs to it alone."""
    if os.geteuid() != 0 and options.get("user") == "host":
        pytest.skip("needs root")
    needs_kernel_of(options)
    assert can_be_made_ahead(Sandbox(**options)._plan()) is expected


def test_joined_namespaces_are_not_made_ahead(root: None) -> None:
    """Who joins a namespace does so at each spawn."""
    with Namespace.create("net") as net:
        box = Sandbox(net=net)
        for _ in range(3):
            assert namespaces(box)["net"] == os.readlink(f"/proc/self/fd/{net.fileno()}")
        assert box._cache.store(box._cache.lowered(box)) is None


# ---- nothing is left ------------------------------------------------------------


def test_sandbox_that_was_used_once_holds_nothing() -> None:
    """Nothing is made ahead for a Sandbox that may never be used again."""
    before = own_fds()
    box = Sandbox()
    box.run(["/bin/true"])
    assert own_fds() == before


def test_worlds_of_equal_sandboxes_have_much_in_common() -> None:
    """The first is made as a whole, the second too; but others use what was made ahead then."""
    before = own_fds()
    roots, lives = [], []
    for _ in range(4):
        lives.append(Sandbox(hostname="alike").open())
        roots.append(lives[-1].run(["/bin/stat", "-c", "%d", "/"], capture_output=True).stdout)
        settle()
    for live in lives:
        live.close()
    del live, lives
    gc.collect()
    assert own_fds() == before
    assert roots[2] == roots[3]
    assert len({*roots}) == 3


def test_sandbox_that_dies_releases_all() -> None:
    """With the Sandbox go its descriptors, at once."""
    before = own_fds()
    box = warm(Sandbox())
    assert own_fds() > before
    del box
    gc.collect()
    assert own_fds() == before


@pytest.mark.one_kernel
def test_sandbox_that_dies_while_something_is_made() -> None:
    """Also at the very moment when the thread works for it."""
    before = own_fds()
    for _ in range(30):
        box = Sandbox()
        box.run(["/bin/true"])
        box.run(["/bin/true"])
        del box
    gc.collect()
    assert set(open_fds()) - before == set()
    assert children() == set()


@pytest.mark.one_kernel
def test_many_sandboxes_hold_few_descriptors() -> None:
    """Eight at a time have something made ahead."""
    before = len(own_fds())
    boxes = [Sandbox(hostname=f"host{number}") for number in range(12)]
    assert sum(bool(store_of(box).fill()) for box in boxes) >= 8
    assert len(own_fds()) - before <= 8 * 12
    assert all(box.run(["/bin/true"]).returncode == 0 for box in boxes)


def test_descriptors_are_closed_on_exec_and_reach_nobody() -> None:
    """Neither a sandboxed payload nor any other program has one of them."""
    before = own_fds()
    box = warm(Sandbox())
    links = descriptors()
    kept = sorted(links.keys() - before)
    assert kept
    assert not any(os.get_inheritable(fd) for fd in kept)
    assert min(kept) > 2
    for subject in (Sandbox(), box):
        with pytest.raises(SpawnError) as caught:
            subject.run(["/bin/true"], pass_fds=[fd for fd in kept if links[fd] != "/proc"])
        assert (caught.value.step, caught.value.errno) == (Step.PASS_FD, errno.EBADF)
        with pytest.raises(SpawnError) as caught:
            subject.run(["/bin/true"], stdin=kept[0])
        assert (caught.value.step, caught.value.errno) == (Step.DUP, errno.EBADF)


def test_no_command_of_a_live_sandbox_gets_them() -> None:
    """Nor are they handed on to an init."""
    with Sandbox().open() as live:
        before = own_fds()
        box = warm(Sandbox())
        links = descriptors()
        kept = [fd for fd in links if fd not in before and links[fd] != "/proc"]
        assert kept
        for fd in kept:
            for options, step in (({"pass_fds": [fd]}, Step.PASS_FD), ({"stdin": fd}, Step.DUP)):
                with pytest.raises(SpawnError) as caught:
                    live.run(["/bin/true"], **options)
                assert (caught.value.step, caught.value.errno) == (step, errno.EBADF)
        assert box.run(["/bin/true"]).returncode == 0


def test_few_descriptors_left() -> None:
    """A caller that runs short of descriptors has its spawns, or an error of its own."""

    def child() -> list[int]:
        box, outcomes = warm(Sandbox()), list[int]()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        least = max(own_fds()) + 1
        for more in range(40):
            resource.setrlimit(resource.RLIMIT_NOFILE, (least + more, limits[1]))
            try:
                outcomes.append(box.run(["/bin/true"]).returncode)
            except SpawnError as error:
                outcomes.append(-(error.errno or 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        warm(box)
        return outcomes

    outcomes = in_child(child)
    assert set(outcomes) <= {0, -errno.EMFILE}
    assert outcomes[-1] == 0


# ---- forks, threads, death ---------------------------------------------------------


def test_fork_has_none_of_it() -> None:
    """A child of a fork holds nothing of the parent's, and makes its own."""
    before = own_fds()
    box = warm(Sandbox())
    kept = own_fds() - before

    def child() -> tuple[int, str, str]:
        shared = len(kept & own_fds())
        first = namespaces(box)["net"]
        return shared, first, namespaces(warm(box))["net"]

    links = descriptors()
    ours = {links[fd] for fd in kept}
    shared, first, second = in_child(child)
    assert shared == 0
    assert {first, second}.isdisjoint(ours)
    assert namespaces(box)["net"] in ours


@pytest.mark.one_kernel
def test_forks_while_it_is_made() -> None:
    """A fork at any moment finds no thread, and its child can spawn."""
    box = Sandbox()
    for _ in range(20):
        box.run(["/bin/true"])

        def child() -> tuple[int, int]:
            return tasks(), box.run(["/bin/true"]).returncode

        assert in_child(child) == (1, 0)


_REUSE = """
import os, threading
from pathlib import Path
from nsbox import Sandbox
from nsbox._spares import settle

def numbers():
    return {int(name) for name in os.listdir("/proc/self/task")} - {os.getpid()}

box, found = Sandbox(), set()
while not found:
    box.run(["/bin/true"])
    found = numbers()
settle()
while numbers():
    pass
(number,) = found
end, other = threading.Event(), None
# It is free a moment after it is nobody's.
while other is None or other.native_id != number:
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(number - 1))
    other = threading.Thread(target=end.wait)
    other.start()
print(box.run(["/bin/true"]).returncode, flush=True)
end.set()
"""


def test_number_of_the_thread_is_used_again() -> None:
    """A spawn does not wait for a thread of the program that has got the number of C's."""
    # In a pid namespace of its own, where it can be said which number is next.
    result = interpreter(_REUSE, within=OWN_PIDS)
    assert result.stdout == "0\n", result.stderr


_LOCAL = """
import os, threading
from nsbox import Sandbox

def work():
    local.box = Sandbox(hostname="local")
    for _ in range(2):
        local.box.run(["/bin/true"])
    made.set()
    end.wait()

local, made, end = threading.local(), threading.Event(), threading.Event()
thread = threading.Thread(target=work)
thread.start()
made.wait()
if (pid := os.fork()) == 0:
    os._exit(Sandbox().run(["/bin/true"]).returncode)
print(os.waitpid(pid, 0)[1])
end.set()
"""


def test_fork_that_has_no_copy_of_a_thread() -> None:
    """What only another thread has ends in a fork before nsbox knows of that."""
    result = interpreter(_LOCAL, MALLOC_PERTURB_="85")  # what is freed is overwritten
    assert result.stdout == "0\n", result.stderr


_HOOK = """
import os

def child():
    print(maker.existing == ffi.NULL, flush=True)
    result = Sandbox(limits=Limits(wall_time=0.1)).run(["/bin/sleep", "1000"])
    print(result.reason, flush=True)

os.register_at_fork(after_in_child=child)
from nsbox import Limits, Sandbox
from nsbox._native import ffi
from nsbox._spares import maker

box = Sandbox(limits=Limits(wall_time=1000))
for _ in range(2):
    box.run(["/bin/true"])
with box.spawn(["/bin/sleep", "1000"]) as process:
    if (pid := os.fork()) == 0:
        os._exit(0)
    print(os.waitpid(pid, 0)[1])
    process.kill()
"""


def test_fork_whose_first_hook_is_the_programs() -> None:
    """It has a watcher and a maker of its own, whose threads are there."""
    result = interpreter(_HOOK)
    assert result.stdout == "True\nwall_time\n0\n", result.stderr


_SAME_NUMBER = """
import os
from nsbox import Limits, Sandbox
from nsbox._native import ffi
from nsbox._spares import maker
from nsbox._watch import watcher
from nsbox.lowlevel import CloneFlag, unshare

box = Sandbox(limits=Limits(wall_time=1000))
for _ in range(2):
    box.run(["/bin/true"])
with box.spawn(["/bin/sleep", "1000"]) as process:
    unshare(CloneFlag.CLONE_NEWPID)
    if (pid := os.fork()) == 0:
        print(os.getpid(), maker.existing == watcher.existing == ffi.NULL, flush=True)
        os._exit(0)
    print(os.getpid(), os.waitpid(pid, 0)[1])
    process.kill()
"""


def test_fork_that_has_the_number_of_its_parent() -> None:
    """It is 1 in a pid namespace of its own: threads of the parent's are not taken for its own."""
    result = interpreter(_SAME_NUMBER, within=OWN_PIDS)
    assert result.stdout == "1 True\n1 0\n", result.stderr


def test_threads_that_fork_at_the_same_time() -> None:
    """The thread rests until the last of them has forked; then it lets go of what was used."""
    before = tasks()
    box = warm(Sandbox())
    for _ in range(2):
        lib.nsbox_maker_stop(maker.pointer)
    used = namespaces(box)["net"]
    lib.nsbox_maker_resume(maker.pointer)
    lib.nsbox_maker_settle(maker.pointer)
    await_tasks(before)
    assert used in descriptors().values()
    lib.nsbox_maker_resume(maker.pointer)
    lib.nsbox_maker_settle(maker.pointer)
    assert used not in descriptors().values()


@pytest.mark.one_kernel
def test_threads_share_what_is_made() -> None:
    """Eight threads spawn from one Sandbox: no namespace is ever used twice."""
    box = warm(Sandbox())
    seen: list[str] = []

    def work() -> None:
        for _ in range(25):
            with box.spawn(["/bin/sleep", "60"]) as process:
                seen.append(os.readlink(f"/proc/{process.pid}/ns/net"))
                alive.append(process)
                barrier.wait(60)
                process.kill()

    alive: list[object] = []
    barrier = threading.Barrier(8)
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for start in range(0, len(seen), 8):
        assert len(set(seen[start : start + 8])) == 8


_KILLED = """
import os, sys
from nsbox import Sandbox
box = Sandbox()
box.run(["/bin/true"])
print("ready", flush=True)
while True:
    box.run(["/bin/true"])
"""


@pytest.mark.one_kernel
def test_caller_that_is_killed_leaves_nothing() -> None:
    """Whenever SIGKILL comes, no child that works ahead outlives the caller."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    for number in range(15):
        reader, writer = os.pipe()
        with subprocess.Popen(
            [sys.executable, "-c", _KILLED],
            stdout=subprocess.PIPE,
            env=environment,
            pass_fds=[writer],
        ) as caller:
            os.close(writer)
            assert caller.stdout is not None
            assert caller.stdout.read(6) == b"ready\n"
            threading.Event().wait(number * 0.0007)
            caller.kill()
        # Every process that has a copy of the pipe's end is gone when it is at its end.
        assert os.read(reader, 1) == b""
        os.close(reader)


# ---- without a spare ---------------------------------------------------------------

_COPY = """
import json, sys
from nsbox import Sandbox
from nsbox._native import lib
from nsbox._spares import maker
def look(box):
    command = ["/bin/sh", "-c", sys.argv[1]]
    result = box.run(command, capture_output=True, text=True, check=True)
    return result.stderr.splitlines() + result.stdout.splitlines()
without, box = Sandbox(), Sandbox()
for _ in range(2):
    box.run(["/bin/true"], check=True)
assert box._cache.store(box._cache.lowered(box)).fill() > 0
lib.nsbox_maker_stop(maker.pointer)
# The first has the spare, the second a copy of the base.
print(json.dumps([look(without), look(box), look(box)]))
"""


def test_copy_of_the_base() -> None:
    """A spawn that finds no spare copies the base, with what is shared in it."""
    result = interpreter(_COPY, f"{INVENTORY}stat -c %d /")
    assert result.returncode == 0, result.stderr
    (*without, _), (*spare, device), (*copy, copied) = json.loads(result.stdout)
    assert spare == without
    assert copy == without
    assert copied == device


# ---- faults ---------------------------------------------------------------------------

_CALLER = """
import json, os, sys
import nsbox
from nsbox import Sandbox
box = Sandbox()
null = os.open("/dev/null", os.O_RDWR)
for _ in range(2):
    box.run(["/bin/true"], stdout=null, stderr=null)
try:
    box.run(["/missing"])  # so that what a failure imports is there
except nsbox.SpawnError:
    pass
try:
    nsbox.lowlevel.prctl(0x59616D61, 2**64 - 1)  # PR_SET_PTRACER: whoever, where Yama asks
except OSError:
    pass
store = box._cache.store(box._cache.lowered(box))
def spawn():
    try:
        return {"returncode": box.run(["/bin/true"], stdout=null, stderr=null).returncode}
    except nsbox.SpawnError as error:
        return {"step": error.step, "errno": error.errno}
def fill():
    return {"made": store.fill()}
def prepare(what):
    nsbox._spares.drain()
    return {"made": store.fill() if what == "spawn" else 0}
for line in sys.stdin:
    command, _, what = line.strip().partition(" ")
    print(json.dumps({"spawn": spawn, "fill": fill, "prepare": lambda: prepare(what)}[command]()))
    sys.stdout.flush()
nsbox._spares.drain()
with open("/proc/thread-self/children") as file:
    assert file.read() == ""
"""


class Caller:
    """A process with a Sandbox, which strace can be attached to."""

    def __init__(self, strace: str, directory: Path) -> None:
        self._strace, self._log = strace, directory / "log"
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CALLER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            text=True,
        )

    def ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(command, file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def traced(self, command: str, *options: str) -> tuple[dict[str, Any], list[str]]:
        """Ask under a strace with these options; return the answer and the trace."""
        self.ask(f"prepare {command}")
        with subprocess.Popen(
            [self._strace, "-f", "-o", self._log, *options, "-p", str(self._process.pid)],
            stderr=subprocess.PIPE,
            text=True,
        ) as tracer:
            assert tracer.stderr is not None
            assert "attached" in tracer.stderr.readline()
            answer = self.ask(command)
            tracer.terminate()
            tracer.wait(60)
        return answer, self._log.read_text().splitlines()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(60) == 0


@pytest.fixture
def caller(strace: str, tmp_path: Path) -> Iterator[Caller]:
    """A caller for strace, which has no child left in the end."""
    process = Caller(strace, tmp_path)
    yield process
    process.close()


# Calls of the launcher and of the child, which make the rest when all else was made ahead.
REST = [
    ("clone3", 1, errno.EPERM, Step.CLONE),
    ("setns", 1, errno.EPERM, Step.SETNS),
    ("setresgid", 1, errno.EPERM, Step.SETRESGID),
    ("setresuid", 1, errno.EPERM, Step.SETRESUID),
    ("open_tree", 1, errno.EPERM, Step.OPEN_TREE),
    ("fsopen", 1, errno.EPERM, Step.FSOPEN),
    ("fsconfig", 1, errno.EPERM, Step.FSCONFIG_CREATE),
    ("fsmount", 1, errno.EPERM, Step.FSMOUNT),
    ("move_mount", 1, errno.EPERM, Step.MOVE_MOUNT),
    ("move_mount", 2, errno.EPERM, Step.MASK),
    ("openat2", 1, errno.ENOENT, Step.MASK_TARGET),
    ("fstatfs", 1, errno.EPERM, Step.MASK_TARGET),
    ("landlock_add_rule", 1, errno.EPERM, Step.LANDLOCK_RULE),
    ("landlock_restrict_self", 1, errno.EPERM, Step.LANDLOCK_RESTRICT),
    ("seccomp", 1, errno.EINVAL, Step.SECCOMP),
    ("execve", 1, errno.ENOMEM, Step.EXECVE),
]


@pytest.mark.one_kernel
def test_call_of_the_rest_that_fails(caller: Caller) -> None:
    """A call that fails when a spare is used is the error of its step; the next spawn succeeds."""
    wrong: list[object] = []
    for call, when, error, step in REST:
        name = errno.errorcode[error]
        answer, _ = caller.traced("spawn", "-e", f"inject={call}:error={name}:when={when}")
        if answer != {"step": step, "errno": error}:
            wrong.append((call, when, answer))
        if caller.ask("spawn") != {"returncode": 0}:
            wrong.append((call, when, "afterwards"))
    assert wrong == []


HARMLESS = {
    # cannot fail, or not in a way that matters
    "close", "exit", "exit_group", "futex", "munmap", "umask", "rt_sigprocmask", "getpid",
    "waitid", "pidfd_send_signal", "ppoll", "clock_gettime", "geteuid", "getegid", "kcmp",
    "sched_yield", "gettid", "tgkill", "set_robust_list", "rseq", "madvise", "mprotect",
    "mmap", "uname",
    # asked how many mounts there are: without an answer, few
    "read",
    # asked which of 0, 1, 2 to leave alone
    "fcntl",
}  # fmt: skip


def test_who_works_ahead_keeps_no_descriptors(caller: Caller) -> None:
    """Before all else it leaves the caller's table: a pipe has no end while there are copies."""
    _, lines = caller.traced("fill")
    calls: dict[str, list[str]] = {}
    for line in lines:
        pid, call = line.split(maxsplit=1)
        calls.setdefault(pid, []).append(call)
    builders = [made for made in calls.values() if any("pivot_root(" in call for call in made)]
    assert len(builders) == 2  # of the base and of the spare
    assert all("CLOSE_RANGE_UNSHARE" in made[0] for made in builders)


@pytest.mark.one_kernel
def test_call_that_fails_ahead(caller: Caller) -> None:
    """Whatever fails while something is made ahead, nobody notices, and it is made later."""
    answer, lines = caller.traced("fill")
    assert answer == {"made": 1}
    tried_again = {"setns"}
    does_not_matter = {"prctl", "statx", "setgroups"}
    found = {match[1] for line in lines if (match := re.match(r"\d+ +([a-z0-9_]+)\(", line))}
    wrong: list[object] = []
    for call in sorted(found - HARMLESS - {"write", "clone3"}):
        answer, _ = caller.traced("fill", "-e", f"inject={call}:error=EPERM:when=1")
        if answer != {"made": 0} and call not in tried_again | does_not_matter:
            wrong.append((call, answer))
        if caller.ask("spawn") != {"returncode": 0} or caller.ask("fill") != {"made": 1}:
            wrong.append((call, "afterwards"))
    assert {"unshare", "sendmsg", "recvmsg", "socketpair", "pivot_root"} <= found
    assert wrong == []


@pytest.mark.one_kernel
def test_threads_that_begin_together_have_one() -> None:
    """There is one of each in a process: one that nobody knows of stays through a fork."""

    def look(made: Own, together: threading.Barrier, found: set[str]) -> None:
        together.wait()
        found.add(str(made.pointer))

    def most_found() -> int:
        most = 0
        for _ in range(100):
            made = Own(lib.nsbox_maker_create, lib.nsbox_maker_forget)
            arguments = made, threading.Barrier(8), set[str]()
            threads = [threading.Thread(target=look, args=arguments) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            most = max(most, len(arguments[2]))
        return most

    assert in_child(most_found) == 1
