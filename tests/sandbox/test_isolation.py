"""What the payload sees of the host, and what it may do to it: nothing that was not shown."""

import ctypes
import json
import os
import pty
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from nsbox import Bind, Namespace, Sandbox, lowlevel
from nsbox.lowlevel import CloneFlag
from support import (
    PYTHON,
    SOURCE,
    enter_private_mounts,
    expose,
    in_child,
    inside,
    python_box,
    stdout_of,
)

pytestmark = pytest.mark.usefixtures("box")

KINDS = ["user", "mnt", "pid", "uts", "ipc", "net", "cgroup"]

# call(number, ...) makes a raw system call and returns the name of its error, or "ok".
CALLS = """
import ctypes, errno, json, os, platform, sys
libc = ctypes.CDLL(None, use_errno=True)
arm = platform.machine() == "aarch64"
PIVOT_ROOT = 41 if arm else 155
PTRACE = 117 if arm else 101
def outcome(result):
    return "ok" if result >= 0 else errno.errorcode[ctypes.get_errno()]
def call(number, *args):
    return outcome(libc.syscall(number, *args))
def attempt(function, *args):
    try:
        function(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"
def write(path, data=""):
    with open(path, "r+") as file:
        file.write(data)
"""


def status(box: Sandbox) -> dict[str, str]:
    """Return /proc/self/status of a payload."""
    result = box.run(["/bin/cat", "/proc/self/status"], capture_output=True, text=True)
    return {
        key: value.strip()
        for key, value in (line.split(":", 1) for line in result.stdout.splitlines())
    }


# ---- processes ------------------------------------------------------------


def test_payload_is_pid_1() -> None:
    """The payload is the first process of its pid namespace."""
    assert Sandbox().run(["/bin/sh", "-c", "echo $$"], capture_output=True).stdout == b"1\n"


def test_payload_has_no_visible_parent() -> None:
    """The parent of the payload is out of its sight: 0."""
    assert inside("import json, os; print(json.dumps(os.getppid()))") == 0


def test_no_process_of_the_host_is_seen() -> None:
    """The procfs inside lists the processes of the sandbox only."""
    code = "import json, os; print(json.dumps([p for p in os.listdir('/proc') if p.isdigit()]))"
    assert inside(code) == ["1"]


def test_processes_of_the_host_cannot_be_signalled() -> None:
    """The caller's pid means nothing inside, and kill(-1) reaches nobody."""
    code = f"""{CALLS}
print(json.dumps([attempt(os.kill, int(sys.argv[1]), 0), attempt(os.kill, -1, 9)]))"""
    assert inside(code, str(os.getpid())) == ["ESRCH", "ESRCH"]


def test_payload_is_in_a_new_session() -> None:
    """The payload leads a session and a process group of its own."""
    assert inside("import json, os; print(json.dumps([os.getsid(0), os.getpgid(0)]))") == [1, 1]


# ---- files ----------------------------------------------------------------


def entries(path: str) -> set[str]:
    """List a directory of a default sandbox, one without the running Python's directories."""
    result = Sandbox().run(["/bin/ls", "-A", path], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_entries_of_the_root() -> None:
    """The root holds the program directories, /etc, /home, /dev, /proc and /tmp, and no more."""
    programs = {"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix", "gnu"}
    assert entries("/") - programs == {"etc", "dev", "proc", "tmp", "home"}


@pytest.mark.parametrize("path", ["/root", "/run", "/var", "/sys", "/mnt", "/srv", "/boot"])
def test_directory_of_the_host_is_absent(path: str) -> None:
    """Directories of the host that may hold secrets do not exist inside."""
    assert Sandbox().run(["/usr/bin/test", "-e", path]).returncode == 1


def test_homes_of_the_host_are_absent() -> None:
    """/home has the sandbox's own empty home directory only."""
    code = """
import json, os
print(json.dumps([os.listdir("/home"), os.listdir("/home/sandbox")]))"""
    assert inside(code) == [["sandbox"], []]


def test_tmp_of_the_host_is_absent(tmp_path: Path) -> None:
    """The host's temporary files are not seen."""
    assert entries("/tmp") == set()


def test_accounts_of_the_host_are_absent() -> None:
    """/etc/passwd names the users that exist inside, not those of the host."""
    result = Sandbox().run(["/bin/cat", "/etc/passwd"], capture_output=True, text=True)
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["root", "nobody"]


@pytest.mark.parametrize("path", ["/usr/new", "/etc/passwd", "/new", "/bin/new", "/etc/ssl/new"])
def test_system_directories_are_readonly(path: str) -> None:
    """The programs and settings of the host cannot be changed: EROFS."""
    assert inside(f"{CALLS}\nprint(json.dumps(attempt(open, {path!r}, 'a')))") == "EROFS"


def test_no_way_up_from_the_root() -> None:
    """Above the root there is the root."""
    code = "import json, os; print(json.dumps([os.path.samefile('/', '/..'), os.getcwd()]))"
    assert inside(code) == [True, "/"]


def test_root_of_pid_1_is_the_sandbox() -> None:
    """/proc/1/root and /proc/1/cwd lead to the sandbox's own root."""
    code = """
import json, os
print(json.dumps([os.path.samefile(f"/proc/1/{name}", "/") for name in ("root", "cwd")]))"""
    assert inside(code) == [True, True]


def test_own_executable_cannot_be_overwritten() -> None:
    """The host's program behind /proc/self/exe cannot be opened for writing."""
    code = f"{CALLS}\nprint(json.dumps(attempt(os.open, '/proc/self/exe', os.O_WRONLY)))"
    assert inside(code) in ("EROFS", "ETXTBSY", "EACCES")


def test_mounts_of_the_host_are_not_listed(tmp_path: Path) -> None:
    """mountinfo inside shows no mount point that is not the sandbox's."""
    result = Sandbox().run(["/bin/cat", "/proc/self/mounts"], capture_output=True, text=True)
    points = {line.split()[1] for line in result.stdout.splitlines()}
    allowed = ("/usr", "/bin", "/sbin", "/lib", "/etc/", "/dev", "/proc", "/tmp", "/home/sandbox")
    stores = ("/nix/store", "/gnu/store")
    assert [
        point for point in points if point != "/" and not point.startswith(allowed + stores)
    ] == []


def test_descriptors_of_the_caller_are_closed() -> None:
    """Inheritable descriptors of the caller do not reach the payload."""
    fds = [os.open("/", os.O_RDONLY | os.O_DIRECTORY) for _ in range(5)]
    for fd in fds:
        os.set_inheritable(fd, True)
    try:
        result = Sandbox().run(["/bin/ls", "/proc/self/fd"], capture_output=True, text=True)
    finally:
        for fd in fds:
            os.close(fd)
    assert result.stdout.split() == ["0", "1", "2", "3"]  # 3 is the listed directory


# ---- namespaces -----------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_namespace_is_new(kind: str) -> None:
    """Each kind of namespace is another one than the caller's."""
    link = inside(f"import json, os; print(json.dumps(os.readlink('/proc/self/ns/{kind}')))")
    assert link != os.readlink(f"/proc/self/ns/{kind}")


@pytest.mark.parametrize("kind", KINDS)
def test_namespace_differs_between_spawns(kind: str) -> None:
    """Two spawns of one Sandbox do not share a namespace."""
    code = f"import os; print(os.readlink('/proc/self/ns/{kind}'), flush=True); input()"
    box = python_box()
    with (
        box.spawn([*PYTHON, code], stdin=-1, stdout=-1) as one,
        box.spawn([*PYTHON, code], stdin=-1, stdout=-1) as two,
    ):
        assert stdout_of(one).readline() != stdout_of(two).readline()
        one.communicate(b"\n")
        two.communicate(b"\n")


def test_time_namespace_is_the_hosts() -> None:
    """By default the time namespace is shared, since nothing in it is secret."""
    link = inside("import json, os; print(json.dumps(os.readlink('/proc/self/ns/time')))")
    assert link == os.readlink("/proc/self/ns/time")


def test_new_time_namespace() -> None:
    """time='new' gives one of its own."""
    code = "import json, os; print(json.dumps(os.readlink('/proc/self/ns/time')))"
    assert inside(code, box=python_box(time="new")) != os.readlink("/proc/self/ns/time")


@pytest.mark.parametrize(
    ("field", "kind"),
    [("uts", "uts"), ("ipc", "ipc"), ("net", "net"), ("cgroup_ns", "cgroup"), ("time", "time")],
)
def test_host_mode_shares_the_namespace(field: str, kind: str) -> None:
    """'host' leaves the payload in the caller's namespace of that kind."""
    code = f"import json, os; print(json.dumps(os.readlink('/proc/self/ns/{kind}')))"
    fields: dict[str, Any] = {field: "host"}
    assert inside(code, box=python_box(**fields)) == os.readlink(f"/proc/self/ns/{kind}")


def test_host_pid_namespace() -> None:
    """pid='host' with the host's /proc shows the caller to the payload."""
    box = python_box(pid="host", mounts=[Bind("/proc", readonly=True)])
    code = "import json, os; print(json.dumps([os.getpid() != 1, os.getppid()]))"
    assert inside(code, box=box) == [True, os.getpid()]


def test_host_pid_namespace_alone() -> None:
    """pid='host' works with the default mounts."""
    assert Sandbox(pid="host").run(["/bin/true"]).returncode == 0


def test_hostname() -> None:
    """The host name is 'sandbox' unless one is given, and the host's does not change."""
    before = socket.gethostname()
    code = "import json, socket; print(json.dumps(socket.gethostname()))"
    names = [inside(code), inside(code, box=python_box(hostname="other"))]
    assert names == ["sandbox", "other"]
    assert socket.gethostname() == before


def test_domain_of_the_host_is_not_there() -> None:
    """The NIS domain name that the host has is none inside."""

    def domain_inside() -> Any:
        enter_private_mounts()
        lowlevel.unshare(CloneFlag.CLONE_NEWUTS)
        name = b"host.example"
        assert ctypes.CDLL(None).setdomainname(name, len(name)) == 0
        show = ["/bin/cat", "/proc/sys/kernel/domainname"]
        return Sandbox().run(show, capture_output=True, check=True).stdout

    assert in_child(domain_inside) == b"(none)\n"


# ---- ipc ------------------------------------------------------------------


def test_sysv_ipc_is_private() -> None:
    """Shared memory and message queues that a payload makes do not exist on the host."""
    tables = [Path(f"/proc/sysvipc/{name}") for name in ("shm", "msg", "sem")]
    key = 0x6E7362
    code = f"""{CALLS}
print(json.dumps([outcome(libc.shmget({key}, 4096, 0o1666)),
                  outcome(libc.msgget({key}, 0o1666)),
                  outcome(libc.semget({key}, 1, 0o1666))]), flush=True)
input()"""
    with python_box().spawn([*PYTHON, code], stdin=-1, stdout=-1) as process:
        made = json.loads(stdout_of(process).readline())
        keys = {line.split()[0] for table in tables for line in table.read_text().splitlines()}
        libc = ctypes.CDLL(None, use_errno=True)
        found = libc.shmget(key, 4096, 0)
        process.communicate(b"\n")
    assert made == ["ok", "ok", "ok"]
    assert (found, str(key) in keys) == (-1, False)


def test_siblings_do_not_share_memory() -> None:
    """A file in /dev/shm or /tmp of one sandbox is not in the other's."""
    box = Sandbox()
    script = "echo x >/dev/shm/left; echo x >/tmp/left; echo done; read line"
    with box.spawn(["/bin/sh", "-c", script], stdin=-1, stdout=-1) as process:
        stdout_of(process).readline()
        listing = box.run(["/bin/ls", "/dev/shm", "/tmp"], capture_output=True, text=True).stdout
        process.communicate(b"\n")
    assert "left" not in listing


# ---- network --------------------------------------------------------------


def test_only_loopback() -> None:
    """The network has the device lo and nothing else."""
    code = "import json, socket; print(json.dumps(socket.if_nameindex()))"
    assert inside(code) == [[1, "lo"]]


def test_loopback_is_up() -> None:
    """Processes of the sandbox can talk to each other over 127.0.0.1."""
    code = """
import json, socket
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
server.accept()[0].sendall(b"hi")
print(json.dumps(client.recv(2).decode()))"""
    assert inside(code) == "hi"


def test_tcp_port_of_the_host_is_out_of_reach() -> None:
    """A service on the host's 127.0.0.1 refuses the payload's connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"""{CALLS}
import socket
address = ("127.0.0.1", int(sys.argv[1]))
print(json.dumps(attempt(socket.create_connection, address)))"""
        assert inside(code, str(server.getsockname()[1])) == "ECONNREFUSED"


def test_abstract_socket_of_the_host_is_out_of_reach() -> None:
    """An abstract Unix socket of the host does not exist inside."""
    name = f"nsbox-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0" + name)
        server.listen()
        code = f"""{CALLS}
import socket
print(json.dumps(attempt(socket.socket(socket.AF_UNIX).connect, chr(0) + sys.argv[1])))"""
        assert inside(code, name) == "ECONNREFUSED"


def test_other_addresses_are_unreachable() -> None:
    """There is no route to anywhere."""
    code = f"""{CALLS}
import socket
print(json.dumps([attempt(socket.create_connection, (host, 80))
                  for host in ("169.254.169.254", "10.0.0.1", "8.8.8.8")]))"""
    assert inside(code) == ["ENETUNREACH"] * 3


def test_host_network_can_be_shared() -> None:
    """net='host' reaches a service on the host's 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"""{CALLS}
import socket
address = ("127.0.0.1", int(sys.argv[1]))
print(json.dumps(attempt(socket.create_connection, address)))"""
        port = str(server.getsockname()[1])
        assert inside(code, port, box=python_box(net="host")) == "ok"


# ---- environment ----------------------------------------------------------


def test_environment_is_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of the caller do not reach the payload."""
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    result = Sandbox().run(["/usr/bin/env"], capture_output=True, text=True)
    assert "secret" not in result.stdout
    assert "LD_LIBRARY_PATH" not in result.stdout


def test_default_environment() -> None:
    """The payload has PATH, HOME and LANG, and nothing else."""
    result = Sandbox().run(["/usr/bin/env"], capture_output=True, text=True)
    assert sorted(line.split("=")[0] for line in result.stdout.splitlines()) == [
        "HOME",
        "LANG",
        "PATH",
    ]


def test_environment_of_the_caller_is_not_readable() -> None:
    """/proc/1/environ holds the payload's own variables."""
    code = "import json; print(json.dumps(open('/proc/1/environ').read().count('PYTEST')))"
    assert inside(code) == 0


# ---- identity and privilege -----------------------------------------------


def test_ids_inside() -> None:
    """The payload is user and group 0 inside unless told otherwise."""
    code = "import json, os; print(json.dumps([os.getresuid(), os.getresgid()]))"
    assert inside(code) == [[0, 0, 0], [0, 0, 0]]
    assert inside(code, box=python_box(uid=7, gid=8)) == [[7, 7, 7], [8, 8, 8]]


def test_payload_is_not_root_to_the_host() -> None:
    """To the host the payload is the caller, or nobody if the caller is root."""
    expected = os.geteuid() or 65534
    with Sandbox().spawn(["/bin/cat"], stdin=-1) as process:
        owner = os.stat(f"/proc/{process.pid}/status")
        text = Path(f"/proc/{process.pid}/status").read_text()
        process.communicate()
    line = next(line for line in text.splitlines() if line.startswith("Uid:"))
    assert line.split()[1:] == [str(expected)] * 4
    assert stat.S_ISREG(owner.st_mode)


def test_id_maps_hold_one_id() -> None:
    """The user namespace maps a single id, never the host's root."""
    uid, gid = (os.geteuid() or 65534), (os.getegid() if os.geteuid() else 65534)
    code = """
import json
print(json.dumps([open(f"/proc/self/{kind}_map").read().split() for kind in ("uid", "gid")]))"""
    assert inside(code) == [["0", str(uid), "1"], ["0", str(gid), "1"]]


def test_setgroups_is_denied_to_plain_users(plain_user: None) -> None:
    """A plain user's payload may not drop a group that denies it access."""
    code = "import json; print(json.dumps(open('/proc/self/setgroups').read().strip()))"
    assert inside(code) == "deny"


def test_no_supplementary_groups_for_root(root: None) -> None:
    """The payload of a root caller has none of the caller's supplementary groups."""
    before = os.getgroups()
    os.setgroups([0, 4, 27])
    try:
        groups = status(Sandbox())["Groups"]
    finally:
        os.setgroups(before)
    assert groups == ""


@pytest.mark.parametrize("name", ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"])
def test_no_capability(name: str) -> None:
    """Every capability set of the payload is empty, also that of a payload with uid 0 inside."""
    assert int(status(Sandbox())[name], 16) == 0


def test_no_new_privileges() -> None:
    """The payload can gain no privilege by executing a program."""
    assert status(Sandbox())["NoNewPrivs"] == "1"


def test_asked_capabilities_are_the_only_ones() -> None:
    """capabilities= gives exactly those, in all five sets."""
    found = status(Sandbox(capabilities=["NET_RAW", "cap_chown"]))
    sets = {int(found[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert sets == {1 << 13 | 1 << 0}


def test_set_user_id_program_gives_nothing(tmp_path: Path) -> None:
    """A set-user-ID and set-group-ID program in a writable bind runs with unchanged ids."""
    shared = expose(tmp_path) / "shared"
    shared.mkdir()
    program = shared / "id"
    shutil.copy("/usr/bin/id", program)
    program.chmod(0o6755)
    box = Sandbox(uid=5, gid=6, mounts=[Bind(shared, "/data", readonly=False)])
    result = box.run(["/data/id"], capture_output=True, text=True)
    assert result.stdout.startswith("uid=5(sandbox) gid=6(sandbox)")


def test_set_user_id_program_of_the_host_gives_nothing() -> None:
    """The host's own set-user-ID programs in /usr give nothing either."""
    table = Sandbox().run(["/bin/cat", "/proc/self/mountinfo"], capture_output=True, text=True)
    (usr,) = [line for line in table.stdout.splitlines() if line.split()[4] == "/usr"]
    assert "nosuid" in usr.split()[5].split(",")


KERNEL_FILES = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/panic",
    "/proc/sys/vm/drop_caches",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/fs/file-max",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sysrq-trigger",
]


@pytest.mark.parametrize("path", KERNEL_FILES)
def test_settings_of_the_kernel_cannot_be_written(path: str) -> None:
    """No setting of the kernel can be opened for writing, by root's payload neither."""
    outcome = inside(f"{CALLS}\nprint(json.dumps(attempt(os.open, {path!r}, os.O_WRONLY)))")
    assert outcome in ("EACCES", "EPERM", "EROFS", "ENOENT")


def test_core_pattern_of_the_host_is_unchanged() -> None:
    """An attempt to write core_pattern leaves the host's as it is."""
    path = Path("/proc/sys/kernel/core_pattern")
    before = path.read_text()
    Sandbox().run(
        ["/bin/sh", "-c", f"echo '|/tmp/evil' >{path}"], stderr=subprocess.DEVNULL, check=False
    )
    assert path.read_text() == before


@pytest.mark.parametrize(
    "expression",
    [
        "outcome(libc.mount(b'x', b'/tmp', b'tmpfs', 0, None))",
        "outcome(libc.mount(b'proc', b'/tmp', b'proc', 0, None))",
        "outcome(libc.mount(b'/usr', b'/tmp', None, 4096, None))",
        "outcome(libc.mount(None, b'/usr', None, 32 | 4096, None))",
        "outcome(libc.mount(None, b'/', None, 32, None))",
        "outcome(libc.mount(None, b'/', None, 1 << 20, None))",
        "outcome(libc.umount2(b'/proc', 2))",
        "outcome(libc.umount2(b'/tmp', 0))",
        "outcome(libc.umount2(b'/', 2))",
        "call(PIVOT_ROOT, b'/tmp', b'/tmp')",
        "attempt(os.chroot, '/tmp')",
        "call(428, -100, b'/usr', 1)",  # open_tree(OPEN_TREE_CLONE)
        "call(430, b'tmpfs', 0)",  # fsopen
        "call(442, -100, b'/usr', 0, bytes(32), 32)",  # mount_setattr
        "outcome(libc.sethostname(b'x', 1))",
        "outcome(libc.setns(os.open('/proc/self/ns/net', os.O_RDONLY), 0))",
        "outcome(libc.unshare(0x00020000))",
        "outcome(libc.unshare(0x40000000))",
        "outcome(libc.unshare(0x20000000))",
        "attempt(os.mknod, '/tmp/mem', 0o20666, os.makedev(1, 1))",
        "attempt(os.setuid, 1)",
        "attempt(os.setgroups, [1])",
        "attempt(os.chown, '/usr', 1, 1)",
    ],
)
def test_privileged_call_is_refused(expression: str) -> None:
    """Calls that change mounts, namespaces or ids fail, whatever the payload's uid inside."""
    outcome = inside(f"{CALLS}\nprint(json.dumps({expression}))")
    assert outcome in ("EPERM", "EINVAL", "ENOSYS", "EROFS")


def test_new_user_namespace_gives_no_mounts() -> None:
    """If the payload may nest a user namespace at all, its mounts stay locked in it."""
    code = f"""{CALLS}
if libc.unshare(0x10000000 | 0x00020000) < 0:
    print(json.dumps(["refused", "refused"]))
else:
    print(json.dumps([outcome(libc.umount2(b"/proc", 2)),
                      outcome(libc.mount(None, b"/usr", None, 32 | 4096, None))]))"""
    for outcome in inside(code):
        assert outcome in ("refused", "EPERM", "EINVAL")


# ---- terminal -------------------------------------------------------------

_FAKE_INPUT = f"""{CALLS}
import fcntl, termios
def push():
    for byte in b"echo pwned\\n":
        fcntl.ioctl(0, termios.TIOCSTI, bytes([byte]))
print(json.dumps([attempt(push), attempt(open, "/dev/tty"),
                  attempt(fcntl.ioctl, 0, termios.TIOCSCTTY, 0),
                  attempt(os.tcgetpgrp, 0)]))"""


def test_input_of_the_callers_terminal_cannot_be_forged() -> None:
    """TIOCSTI on an inherited terminal fails, and there is no controlling terminal to open."""
    reader, writer = os.pipe()
    pid, leader = pty.fork()
    if pid == 0:
        # The child has the terminal as its controlling one, as a shell's user does.
        os.close(reader)
        result = python_box().run([*PYTHON, _FAKE_INPUT], stdout=subprocess.PIPE)
        os.write(writer, result.stdout)
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        outcomes = json.loads(file.read())
    os.waitpid(pid, 0)
    os.close(leader)
    assert outcomes == ["EPERM", "ENXIO", "EPERM", "ENOTTY"]


def test_own_terminal_can_be_the_controlling_one() -> None:
    """controlling_terminal=True makes a terminal of the sandbox's own work as one."""
    leader, follower = pty.openpty()
    try:
        code = "import json, os; os.open('/dev/tty', os.O_RDWR); print(json.dumps(os.tcgetpgrp(0)))"
        box = python_box()
        result = box.run(
            [*PYTHON, code], stdin=follower, capture_output=True, controlling_terminal=True
        )
    finally:
        os.close(leader)
        os.close(follower)
    assert (result.returncode, result.stdout) == (0, b"1\n")


# ---- keyring, threads -----------------------------------------------------


@pytest.mark.one_kernel
def test_spawns_from_threads_are_alike() -> None:
    """A spawn from another thread is as isolated as one from the main thread."""
    links: list[str] = []

    def work() -> None:
        links.append(inside("import json, os; print(json.dumps(os.readlink('/proc/self/ns/net')))"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({*links, os.readlink("/proc/self/ns/net")}) == 9


def test_objects_tell_the_same_ids() -> None:
    """process.namespaces gives the ids that the payload itself reads."""
    code = """
import json, os
links = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in os.listdir("/proc/self/ns")}
print(json.dumps(links), flush=True)
input()"""
    with python_box().spawn([*PYTHON, code], stdin=-1, stdout=-1) as process:
        links = json.loads(stdout_of(process).readline())
        ids = {}
        for kind in process.namespaces:
            with process.namespaces[kind] as namespace:
                ids[kind] = f"{kind}:[{namespace.id}]"
        process.communicate(b"\n")
    assert {kind: links[kind] for kind in ids} == ids


def test_namespace_of_the_caller_is_unchanged() -> None:
    """A spawn leaves the calling thread in the namespaces that it was in."""

    def own() -> list[str]:
        return sorted(os.readlink(f"/proc/thread-self/ns/{kind}") for kind in KINDS)

    before = own()
    Sandbox().run(["/bin/true"])
    assert own() == before
    with Namespace.of(0, "net") as namespace:
        assert f"net:[{namespace.id}]" in before


def test_interpreter_is_the_same() -> None:
    """interpreter_mounts() shows the Python that runs these tests."""
    assert inside("import json, sys; print(json.dumps(sys.version))") == sys.version


def by_dots(code: str, directory: Path) -> tuple[str, str]:
    """Return what this interpreter says, and complains of, if it is started as ../.../python."""
    result = subprocess.run(
        [os.path.relpath(sys.executable, directory), "-c", code],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout, result.stderr


_BY_DOTS = """
import os, sys
from nsbox import Sandbox, interpreter_mounts
assert ".." in sys.executable, sys.executable
listing = f"import os; print(os.listdir({os.getcwd()!r}))"
Sandbox(mounts=interpreter_mounts()).run([sys.executable, "-I", "-S", "-c", listing], check=True)
"""


def test_interpreter_started_by_a_path_with_dots(tmp_path: Path) -> None:
    """../venv/bin/python finds itself inside as well, and shows nothing of where it was started."""
    assert by_dots(_BY_DOTS, tmp_path) == ("['python']\n", "")


_BESIDE_DOTS = """
import os, sys
from nsbox import Bind, Overlay, Sandbox, interpreter_mounts
here = os.getcwd()
listing = f"import os; print(os.listdir({here!r}), os.listdir({here + '/python'!r}))"
for mount in (
    Bind(here),
    Bind(here, readonly=False),
    Bind(os.path.dirname(here), readonly=False),
    Overlay(here, here),
):
    box = Sandbox(mounts=[*interpreter_mounts(), mount])
    box.run([sys.executable, "-I", "-S", "-c", listing], check=True)
assert here + "/python" not in str(Sandbox(root="/", mounts=interpreter_mounts()).explain())
Sandbox(namespaces="none", mounts=interpreter_mounts())
"""


def test_interpreter_started_by_a_path_with_dots_beside_other_mounts(tmp_path: Path) -> None:
    """The directory that it was started in may be shown, also writable, and is as it is."""
    here = tmp_path / "here"
    (here / "python").mkdir(parents=True)
    (here / "python/file").touch()
    assert by_dots(_BESIDE_DOTS, here) == ("['python'] ['file']\n" * 4, "")
