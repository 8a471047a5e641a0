"""Namespaces as objects: made, opened, kept, entered, and joined by sandboxes."""

import errno
import os
import pickle
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nsbox import (
    PIPE,
    Namespace,
    NamespaceError,
    PlanError,
    Process,
    Sandbox,
    SpawnError,
    Step,
    UnsupportedError,
    lowlevel,
)
from support import (
    PYTHON,
    enter_private_mounts,
    in_child,
    inside,
    python_box,
    stdin_of,
    stdout_of,
)

pytestmark = pytest.mark.usefixtures("box")

KINDS = ["user", "mnt", "pid", "uts", "ipc", "net", "cgroup", "time"]
OWNED = ["mnt", "uts", "ipc", "net", "cgroup", "time"]
FIELDS = {
    "uts": "uts",
    "ipc": "ipc",
    "net": "net",
    "cgroup": "cgroup_ns",
    "time": "time",
}
LINK = "import json, os, sys; print(json.dumps(os.readlink('/proc/self/ns/' + sys.argv[1])))"


def own_link(kind: str) -> str:
    return os.readlink(f"/proc/thread-self/ns/{kind}")


def link(namespace: Namespace) -> str:
    return f"{namespace.kind}:[{namespace.id}]"


@contextmanager
def running(box: Sandbox) -> Iterator[Process]:
    """A sandbox in which something runs, under its own name."""
    with box.spawn(["/bin/cat"], stdin=PIPE, stdout=PIPE) as process:
        # The kernel sets the name when exec, for which spawn() waits, is nearly over.
        stdin_of(process).write(b"x")
        stdin_of(process).flush()
        assert stdout_of(process).read(1) == b"x"
        yield process


@pytest.fixture
def user() -> Iterator[Namespace]:
    """A user namespace of the caller's."""
    with Namespace.create("user") as namespace:
        yield namespace


# ---- making and opening ---------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_of_the_caller(kind: str) -> None:
    """Namespace.of(0) is the calling thread's own."""
    with Namespace.of(0, kind) as namespace:
        assert (link(namespace), namespace.kind) == (own_link(kind), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_process(kind: str) -> None:
    """Namespace.of(pid) is that of a process."""
    with running(Sandbox()) as process, Namespace.of(process.pid, kind) as namespace:
        assert link(namespace) == os.readlink(f"/proc/{process.pid}/ns/{kind}")


@pytest.mark.parametrize("kind", KINDS)
def test_open_by_path(kind: str) -> None:
    """Namespace.open() takes a path of /proc."""
    with Namespace.open(f"/proc/self/ns/{kind}") as namespace:
        assert link(namespace) == own_link(kind)


@pytest.mark.parametrize("kind", OWNED)
def test_create_in_a_user_namespace(user: Namespace, kind: str) -> None:
    """Every kind but user and pid can be made in a user namespace, also by a plain user."""
    with Namespace.create(kind, owner=user) as namespace, namespace.owner() as owner:
        assert namespace.kind == kind
        assert link(namespace) != own_link(kind)
        assert owner == user


def test_create_user(user: Namespace) -> None:
    """A user namespace can be made by anybody, and is a child of the caller's."""
    assert link(user) != own_link("user")
    with user.parent() as parent, Namespace.of(0, "user") as own:
        assert parent == own


def test_create_pid_is_unsupported() -> None:
    """A pid namespace cannot exist without a process."""
    with pytest.raises(UnsupportedError):
        Namespace.create("pid")


def test_create_without_privilege(plain_user: None) -> None:
    """Without an owner of its own a plain user is refused, and told what to do."""
    with pytest.raises(NamespaceError) as caught:
        Namespace.create("net")
    assert (caught.value.step, caught.value.errno) == (Step.CLONE, errno.EPERM)
    assert caught.value.hint is not None
    assert "owner=" in caught.value.hint


def test_owner_of_a_user_namespace_is_refused(user: Namespace) -> None:
    """A user namespace takes no owner."""
    with pytest.raises(PlanError):
        Namespace.create("user", owner=user)


def test_owner_of_another_kind_is_refused(user: Namespace) -> None:
    """Only a user namespace can own."""
    with Namespace.create("net", owner=user) as net, pytest.raises(PlanError):
        Namespace.create("uts", owner=net)


def test_new_network_has_loopback_up(user: Namespace) -> None:
    """A network made by create() has lo up."""
    code = """
import json, socket
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname())
print(json.dumps("connected"))"""
    with Namespace.create("net", owner=user) as net:
        assert inside(code, box=python_box(user=user, net=net)) == "connected"


# ---- relations and identity -----------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_equality(kind: str) -> None:
    """Two objects of one namespace are equal and hash alike; another namespace differs."""
    with (
        Namespace.of(0, kind) as one,
        Namespace.of(os.getpid(), kind) as two,
        Namespace.of(0, "net" if kind == "uts" else "uts") as other,
    ):
        assert one == two
        assert hash(one) == hash(two)
        assert one != other
        assert one != kind


def test_owner_of_a_sandbox_namespace() -> None:
    """The namespaces of a sandbox are owned by its user namespace."""
    with (
        running(Sandbox()) as process,
        process.namespaces["net"] as net,
        net.owner() as owner,
        process.namespaces["user"] as user,
    ):
        assert owner == user


def test_parent_of_a_pid_namespace() -> None:
    """The parent of a sandbox's pid namespace is the caller's."""
    with (
        running(Sandbox()) as process,
        process.namespaces["pid"] as pid,
        pid.parent() as parent,
        Namespace.of(0, "pid") as own,
    ):
        assert parent == own


def test_parent_of_other_kinds() -> None:
    """Only pid and user namespaces have parents: EINVAL."""
    with Namespace.of(0, "net") as net, pytest.raises(NamespaceError) as caught:
        net.parent()
    assert caught.value.errno == errno.EINVAL


def test_close_is_idempotent() -> None:
    """close() may be called again; afterwards there is no descriptor."""
    namespace = Namespace.of(0, "uts")
    fd = namespace.fileno()
    namespace.close()
    namespace.close()
    assert namespace.closed
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(PlanError):
        namespace.fileno()


def test_closed_namespace_keeps_its_identity() -> None:
    """A closed object still compares by the namespace that it was."""
    namespace = Namespace.of(0, "uts")
    namespace.close()
    with Namespace.of(0, "uts") as again:
        assert namespace == again


def test_namespace_cannot_be_pickled() -> None:
    """An open descriptor cannot travel: neither the Namespace nor a Sandbox with one."""
    with Namespace.of(0, "uts") as namespace:
        for value in (namespace, Sandbox(uts=namespace)):
            with pytest.raises(TypeError):
                pickle.dumps(value)


def test_descriptor_is_close_on_exec() -> None:
    """A Namespace does not leak into children."""
    with Namespace.create("user") as namespace:
        assert not os.get_inheritable(namespace.fileno())


def test_descriptor_of_something_else() -> None:
    """A descriptor that is no namespace is refused, and stays the caller's."""
    fd = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(NamespaceError) as caught:
        Namespace(fd)
    os.close(fd)
    assert caught.value.errno == errno.ENOTTY


def test_wrong_kind_in_a_field() -> None:
    """A field of Sandbox takes its own kind only."""
    with Namespace.of(0, "uts") as namespace, pytest.raises(PlanError):
        Sandbox(net=namespace)


# ---- joining --------------------------------------------------------------


@pytest.mark.parametrize("kind", FIELDS)
def test_join_with_its_user_namespace(user: Namespace, kind: str) -> None:
    """A sandbox joins a namespace together with the user namespace that owns it."""
    with Namespace.create(kind, owner=user) as namespace:
        fields: dict[str, Any] = {"user": user, FIELDS[kind]: namespace}
        box = python_box(**fields)
        assert inside(LINK, kind, box=box) == link(namespace)


def test_join_user_only(user: Namespace) -> None:
    """A sandbox joins a user namespace, and its other namespaces are new ones owned by it."""
    box = python_box(user=user)
    assert inside(LINK, "user", box=box) == link(user)
    assert inside(LINK, "net", box=box) != own_link("net")


@pytest.mark.parametrize("kind", ["uts", "ipc", "net", "cgroup"])
def test_join_of_a_running_sandbox(kind: str) -> None:
    """A sandbox joins a namespace of a running one, with that one's user namespace."""
    with (
        running(Sandbox()) as process,
        process.namespaces[kind] as namespace,
        process.namespaces["user"] as user,
    ):
        fields: dict[str, Any] = {"user": user, FIELDS[kind]: namespace}
        box = python_box(**fields)
        assert inside(LINK, kind, box=box) == link(namespace)


def test_join_pid_of_a_running_sandbox() -> None:
    """A payload that joins a pid namespace sees the processes that run there."""
    with (
        running(Sandbox()) as process,
        process.namespaces["pid"] as pid,
        process.namespaces["user"] as user,
    ):
        box = python_box(user=user, pid=pid)
        code = "import json, os; print(json.dumps([os.getpid(), open('/proc/1/comm').read()]))"
        number, name = inside(code, box=box)
    assert number > 1
    assert name == "cat\n"


def test_joined_pid_namespace_can_be_left() -> None:
    """The end of a payload that has joined does not end the sandbox that it joined."""
    with (
        running(Sandbox()) as process,
        process.namespaces["pid"] as pid,
        process.namespaces["user"] as user,
    ):
        Sandbox(user=user, pid=pid).run(["/bin/true"])
        assert process.poll() is None


def test_joining_payload_has_no_capability() -> None:
    """A payload that joins has empty capability sets, as any other."""
    with (
        running(Sandbox()) as process,
        process.namespaces["pid"] as pid,
        process.namespaces["user"] as user,
    ):
        result = Sandbox(user=user, pid=pid).run(
            ["/bin/cat", "/proc/self/status"], capture_output=True, text=True
        )
    sets = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("Cap")]
    assert [int(value, 16) for value in sets] == [0] * 5


def test_two_sandboxes_talk_over_one_network(user: Namespace) -> None:
    """Two sandboxes in one network namespace reach each other over lo."""
    serve = """
import socket
server = socket.create_server(("127.0.0.1", 4000))
print("ready", flush=True)
server.accept()[0].sendall(b"hello")"""
    ask = """
import json, socket
print(json.dumps(socket.create_connection(("127.0.0.1", 4000)).recv(5).decode()))"""
    with Namespace.create("net", owner=user) as net:
        box = python_box(user=user, net=net)
        with box.spawn([*PYTHON, serve], stdout=PIPE) as server:
            assert stdout_of(server).readline() == b"ready\n"
            assert inside(ask, box=box) == "hello"
            assert server.wait() == 0


def test_joined_hostname(user: Namespace) -> None:
    """A joined uts namespace keeps its host name, which sandboxes share."""
    with (
        running(Sandbox(hostname="shared")) as process,
        process.namespaces["uts"] as uts,
        process.namespaces["user"] as owner,
    ):
        result = Sandbox(user=owner, uts=uts).run(["/bin/hostname"], capture_output=True)
    assert result.stdout == b"shared\n"


def test_join_of_a_foreign_network_needs_its_user_namespace(plain_user: None) -> None:
    """A plain user that joins a network without its user namespace gets EPERM and advice."""
    with Namespace.of(0, "net") as net, pytest.raises(SpawnError) as caught:
        Sandbox(net=net).run(["/bin/true"])
    assert (caught.value.step, caught.value.errno) == (Step.SETNS, errno.EPERM)
    assert caught.value.path == "net"
    assert caught.value.hint is not None
    assert "user=" in caught.value.hint


def test_join_of_an_own_network_without_its_user_namespace(
    user: Namespace, plain_user: None
) -> None:
    """The same holds for a network that the plain user has made."""
    with Namespace.create("net", owner=user) as net, pytest.raises(SpawnError) as caught:
        Sandbox(net=net).run(["/bin/true"])
    assert (caught.value.step, caught.value.errno) == (Step.SETNS, errno.EPERM)


def test_join_leaves_the_calling_thread(user: Namespace) -> None:
    """A spawn that joins leaves the calling thread where it was."""
    before = [own_link(kind) for kind in KINDS]
    with Namespace.create("net", owner=user) as net:
        Sandbox(user=user, net=net).run(["/bin/true"])
    assert [own_link(kind) for kind in KINDS] == before


def test_join_of_a_dead_pid_namespace() -> None:
    """A pid namespace whose init has ended takes no process: a SpawnError."""
    with running(Sandbox()) as process:
        pid, user = process.namespaces["pid"], process.namespaces["user"]
    with pid, user, pytest.raises(SpawnError) as caught:
        Sandbox(user=user, pid=pid).run(["/bin/true"])
    assert (caught.value.step, caught.value.errno) == (Step.CLONE, errno.ENOMEM)


# ---- entering -------------------------------------------------------------


def test_user_namespace_cannot_be_entered(user: Namespace) -> None:
    """A thread cannot enter a user namespace, and is told what to do instead."""
    with pytest.raises(UnsupportedError, match="Sandbox"), user.enter():
        pass


def test_enter_without_privilege(plain_user: None) -> None:
    """A plain user cannot enter a network, and is told why."""
    with (
        Namespace.of(0, "net") as net,
        pytest.raises(NamespaceError) as caught,
        net.enter(),
    ):
        pass
    assert (caught.value.step, caught.value.errno) == (Step.SETNS, errno.EPERM)
    assert caught.value.hint is not None


# ---- keeping --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["user", "net", "uts", "ipc", "cgroup", "time"])
def test_persist(tmp_path: Path, kind: str) -> None:
    """A persisted namespace can be opened by its path after the object is gone."""

    def child() -> bool:
        enter_private_mounts()
        path = tmp_path / "kept"
        with Namespace.create("user") as user:
            namespace = user if kind == "user" else Namespace.create(kind, owner=user)
            with namespace:
                namespace.persist(path)
        with Namespace.open(path) as again:
            same = again == namespace and again.kind == kind
        lowlevel.umount2(path)
        path.unlink()
        return same

    assert in_child(child)


def test_persist_at_a_bad_path(tmp_path: Path) -> None:
    """A path that cannot be made is a NamespaceError with that path."""
    path = str(tmp_path / "missing" / "name")
    with Namespace.of(0, "uts") as namespace, pytest.raises(NamespaceError) as caught:
        namespace.persist(path)
    found = caught.value.step, caught.value.errno, caught.value.filename
    assert found == (Step.CREATE_FILE, errno.ENOENT, path)


def test_persist_without_privilege_leaves_no_file(tmp_path: Path, plain_user: None) -> None:
    """Where the bind is refused, the file that was made for it is gone again."""
    path = tmp_path / "name"
    with Namespace.of(0, "uts") as namespace, pytest.raises(NamespaceError) as caught:
        namespace.persist(path)
    assert (caught.value.step, caught.value.errno) == (Step.MOVE_MOUNT, errno.EPERM)
    assert not path.exists()


def test_mounts_of_a_container_stay_as_they_are(root: None) -> None:
    """Whoever is in a container's mount namespace, and joins its users, mounts nothing there."""
    shared = ["unshare", "--user", "--map-root-user", "--mount", "--propagation", "shared"]
    container = subprocess.Popen([*shared, "cat"], stdin=PIPE, stdout=PIPE)
    assert container.stdin is not None
    assert container.stdout is not None
    container.stdin.write(b"ready\n")
    container.stdin.flush()
    container.stdout.readline()
    table = Path(f"/proc/{container.pid}/mountinfo")
    before = table.read_text()

    def child() -> int:
        with Namespace.of(container.pid, "mnt") as mounts, mounts.enter():
            user = Namespace.open(f"/proc/{container.pid}/ns/user")
            process = Sandbox(user=user).spawn(["cat"], stdin=PIPE)
            assert table.read_text() == before
            stdin_of(process).close()
            return process.wait()

    with container:
        assert in_child(child) == 0
        assert table.read_text() == before
        container.stdin.close()


@pytest.mark.one_kernel
def test_joins_from_many_threads(user: Namespace) -> None:
    """Threads may spawn into one network at once."""
    links: list[str] = []
    with Namespace.create("net", owner=user) as net:
        box = python_box(user=user, net=net)
        threads = [
            threading.Thread(target=lambda: links.append(inside(LINK, "net", box=box)))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert links == [link(net)] * 6
