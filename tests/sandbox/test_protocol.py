"""What an init and its caller say to each other, said wrong: csrc/protocol.h."""

import array
import errno
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import open_fds
from nsbox import Limits, Sandbox, SpawnError, Step
from nsbox._bridge import Lowered
from nsbox._child import Child
from nsbox._control import Control, Mode
from nsbox._forks import this_process
from nsbox._native import ffi, lib
from nsbox._payload import FixedPlace, Payload
from nsbox._request import Request
from nsbox.errors import STEPS
from support import ends, in_child, stop

pytestmark = pytest.mark.usefixtures("box")

DEADLINE = 30.0
VERSION, START, OPEN, LINE = 4, 1, 2, 3
HERE, STARTED, ENDED, OPENED = 1, 2, 3, 4
FLAG_ATTENDED = int(lib.NSBOX_REQUEST_ATTENDED)
HEAD = struct.Struct("=4I 3Q 2q 4i 8I")  # struct start_request
REPLY = struct.Struct("=2I 4i 2i 4q")  # struct reply


def request(*command: bytes, **changes: object) -> Request:
    env = {"PATH": "/usr/bin"}
    made = Request(command, command[0], env, "/")
    made.__dict__.update(changes)
    return made


@pytest.fixture
def lowered() -> Lowered:
    box = Sandbox()
    return box._cache.lowered(box)


@pytest.fixture
def control(lowered: Lowered) -> Iterator[Control]:
    made = Control(lowered)
    yield made
    made.close()


def works(control: Control) -> bool:
    child = Child()
    try:
        control.start(request(b"/bin/true"), child)
    except SpawnError as error:
        if error.step is Step.INIT:
            return False
        raise
    end = child.wait(-1)
    return end is not None and end.returncode == 0


# ---- the three modes ----------------------------------------------------------


def test_replace(control: Control) -> None:
    """With REPLACE the init becomes the process: our own child, and the first of its world."""
    reader, writer = os.pipe()
    command = (b"/bin/sh", b"-c", b"echo $$; ls /proc/self/fd | wc -w; exit 7")
    child = Child()
    pid = control.init.pid
    control.start(request(*command, stdio=(-1, writer, -1)), child, Mode.REPLACE)
    os.close(writer)
    assert child.pid == pid
    end = child.wait(-1)
    assert end is not None
    assert end.returncode == 7
    with open(reader) as output:
        assert output.read().split() == ["1", "4"]
    assert control.init.pidfd == -1
    assert not control.close()


@pytest.mark.parametrize("mode", Mode)
def test_failures(control: Control, mode: Mode) -> None:
    """In each mode a program that does not exist is the failure of an execve."""
    with pytest.raises(SpawnError) as caught:
        control.start(request(b"/no/such"), Child(), mode)
    assert caught.value.step is Step.EXECVE
    assert works(control) == (mode is not Mode.REPLACE)


def begin(
    control: Control, *command: bytes, mode: Mode = Mode.NORMAL, attended: bool = True
) -> Child:
    child = Child()
    control.start(request(*command, attended=attended), child, mode)
    return child


def finish(child: Child) -> int:
    """Wait for the end; return the status, or raise what the start has failed with."""
    end = None
    while end is None:
        end = child.wait(-1)
    if child.record.step:
        raise child.source.failure(child)
    return end.returncode


ATTENDED = [Mode.NORMAL, Mode.REPLACE]


@pytest.mark.parametrize("mode", ATTENDED)
def test_attended(lowered: Lowered, mode: Mode) -> None:
    """Who waits for the end only hears all at once, be it an end or a failure; nothing is kept."""
    before = set(open_fds())
    for command, status in (((b"/bin/sh", b"-c", b"exit 7"), 7), ((b"/no/such",), None)):
        control = Control(lowered)
        child = begin(control, *command, mode=mode)
        if status is None:
            with pytest.raises(SpawnError) as caught:
                finish(child)
            assert (caught.value.step, caught.value.path) == (Step.EXECVE, "/no/such")
        else:
            assert finish(child) == status
        assert works(control) == (mode is Mode.NORMAL)
        control.close()
    assert set(open_fds()) == before


def test_attended_ones_over_one_line(control: Control) -> None:
    """The next needs no descriptor; after one that was killed there is another line."""
    before = set(open_fds())
    assert finish(begin(control, b"/bin/true")) == 0
    line = set(open_fds())
    assert len(line - before) == 3
    for status in range(3):
        assert finish(begin(control, b"/bin/sh", b"-c", b"exit %d" % status)) == status
    assert set(open_fds()) == line
    killed = begin(control, b"/bin/sleep", b"1000")
    killed.signal(signal.SIGKILL)
    assert finish(killed) == -signal.SIGKILL
    assert finish(begin(control, b"/bin/true")) == 0
    assert len(open_fds()) == len(line)
    control.close()
    assert set(open_fds()) < line


def test_lines_of_many(control: Control) -> None:
    """Of many at a time a few lines stay, and none in a fork, or when the control is closed."""
    before = len(open_fds())
    children = [begin(control, b"/bin/true") for _ in range(30)]
    assert [finish(child) for child in children] == [0] * 30
    assert len(open_fds()) == before + 3 * 4
    running = begin(control, b"/bin/sleep", b"1000")

    def left() -> int:
        running.wait(0)
        return len(open_fds())

    # Nor that of the process that runs, nor the control's own, nor the init's.
    assert in_child(left) < before
    assert running.discard()
    control.close()
    assert len(open_fds()) < before


def test_line_that_others_have(control: Control) -> None:
    """A copy of it, such as a fork has, keeps neither its process nor the line."""
    child = begin(control, b"/bin/sleep", b"1000")
    copy, names = os.dup(child.record.report), socket.socket(fileno=os.dup(child.record.names))
    assert child.discard()
    with names:
        names.settimeout(DEADLINE)
        assert names.recv(4096) == b""
    os.close(copy)


def test_no_room_for_lines(lowered: Lowered) -> None:
    """An init whose descriptors are used up says so if there is one to say it over, and goes on."""

    def child() -> tuple[set[tuple[Step | None, int | None]], bool]:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        control = Control(lowered)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        failures: set[tuple[Step | None, int | None]] = set()
        children: list[Child] = []
        for _ in range(60):
            children.append(Child())
            wanted = request(b"/bin/sleep", b"1000", attended=True)
            try:
                control.start(wanted, children[-1])
            except SpawnError as error:
                failures.add((error.step, error.errno))
            else:
                told = [children[-1].record.names, children[-1].record.report]
                assert select.select(told, [], [], DEADLINE)[0]
        for each in children:
            each.signal(signal.SIGKILL)
            each.discard()
            if each.record.step:
                failure = each.source.failure(each)
                failures.add((failure.step, failure.errno))
        return failures, works(control)

    failures, alive = in_child(child)
    assert alive
    assert failures
    assert {number for _, number in failures - {(Step.INIT, errno.ESRCH)}} <= {errno.EMFILE}


@pytest.mark.one_kernel
def test_closed_by_two(lowered: Lowered) -> None:
    """Threads may close it at the same time."""
    for _ in range(100):
        control = Control(lowered)
        assert finish(begin(control, b"/bin/true")) == 0
        threads = [threading.Thread(target=control.close) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def test_attended_ones_together(control: Control) -> None:
    """Each is told what became of it, though the next began before anybody has asked."""
    children = [begin(control, program) for program in (b"/no/such", b"/bin/true") * 5]
    for missing, present in zip(children[::2], children[1::2], strict=True):
        assert finish(present) == 0
        with pytest.raises(SpawnError):
            finish(missing)


@pytest.mark.parametrize("mode", ATTENDED)
def test_two_wait_for_an_attended_one(control: Control, mode: Mode) -> None:
    """What one thread has heard the other does not take for the end of it."""
    child = begin(control, b"/bin/sleep", b"0.4", mode=mode)
    heard: list[int] = []
    threads = [threading.Thread(target=lambda: heard.append(finish(child))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == [0, 0]
    assert child.record.step == 0


def test_attended_one_without_room(control: Control) -> None:
    """Who has no descriptor left when it is heard of has kept a place for it."""
    child = begin(control, b"/bin/sleep", b"0.4")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, limits[1]), limits[1]))
    taken = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 13):
            os.close(taken.pop())  # to tell a pidfd's pid takes another
        assert finish(child) == 0
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("mode", ATTENDED)
@pytest.mark.parametrize("sent", [signal.SIGKILL, None])
def test_attended_is_killed(control: Control, mode: Mode, sent: signal.Signals | None) -> None:
    """A signal finds it, whatever has been heard; so does whoever gives it up."""
    reader, writer = os.pipe()
    child = Child()
    wanted = request(b"/bin/sleep", b"1000", stdio=(-1, writer, -1), attended=True)
    control.start(wanted, child, mode)
    os.close(writer)
    if sent is None:
        assert child.discard()
    else:
        child.signal(sent)
        assert finish(child) == -sent
    assert ends(reader, DEADLINE)
    os.close(reader)
    assert child.pidfd == -1
    assert works(control) == (mode is Mode.NORMAL)


def test_end_of_its_init_is_that_of_an_attended_one(control: Control) -> None:
    """It has been killed if it had begun, and has never been there otherwise."""
    child = begin(control, b"/bin/sleep", b"1000")
    control.kill()
    with suppress(SpawnError):
        assert finish(child) == -signal.SIGKILL


def test_replace_passes_descriptors(control: Control) -> None:
    """Descriptors for the process stay, and the channel, which is above them, does not."""
    reader, writer = os.pipe()
    fds = [os.dup2(writer, number) for number in (64, 99)]
    child = Child()
    wanted = request(b"/bin/ls", b"/proc/self/fd", stdio=(-1, writer, -1), pass_fds=fds)
    control.start(wanted, child, Mode.REPLACE)
    for fd in (writer, *fds):
        os.close(fd)
    with open(reader) as output:
        assert output.read().split() == ["0", "1", "2", "3", "64", "99"]
    child.wait(-1)


def test_shield(cgroups: None, lowered: Lowered) -> None:
    """A process in a cgroup whose memory runs out on the way ends alone, and not the init."""
    control = Control(lowered)
    box = Sandbox(limits=Limits(memory="64K"))
    for _ in range(5):
        fence = box._cache.fence(box)
        assert fence is not None
        child = Child()
        with suppress(SpawnError):
            control.start(request(b"/bin/true", placement=fence.open()), child)
        child.discard()
        fence.discard()
    assert works(control)
    control.close()


def test_own_cgroup_and_deadline(cgroups: None, lowered: Lowered) -> None:
    """A process can have limits of its own, and the deadline begins at its start."""
    control = Control(lowered)
    for limits in (Limits(memory="64M"), Limits(memory="64M", wall_time=0.3)):
        box = Sandbox(limits=limits)
        fence = box._cache.fence(box)
        assert fence is not None
        child = Child()
        control.start(request(b"/bin/sleep", b"1000", placement=fence.open()), child)
        fence.started()
        if limits.wall_time is None:
            assert fence.cgroup is not None
            assert list(fence.cgroup.processes()) == [child.pid]
            child.signal(signal.SIGKILL)
        end = child.wait(-1)
        assert end is not None
        payload = Payload(FixedPlace(control.start, fence), attended=False)
        fence.end(end, payload)
        assert payload.verdict is not None
        assert payload.verdict.reason == ("wall_time" if limits.wall_time else "signal")
    assert works(control)
    control.close()


def test_file(control: Control) -> None:
    """A file of the world is opened from its root, by no link and no "..", without waiting."""
    child = Child()
    command = (
        b"cd /tmp; echo text > file; ln -s file link; ln -s /tmp dir; mkfifo fifo; mkdir sub; "
        b"chmod 0 sub"
    )
    control.start(request(b"/bin/sh", b"-c", command), child)
    child.wait(-1)
    with control.open("/tmp/file", os.O_RDONLY) as fd:
        assert os.read(fd, 99) == b"text\n"
        assert not os.get_inheritable(fd)
    control.open("/tmp/", os.O_RDONLY).close()
    control.open("/", os.O_PATH).close()
    control.open("/tmp/fifo", os.O_RDONLY).close()
    for path, number in (
        ("/tmp/link", "ELOOP"),
        ("/tmp/dir/file", "ENOTDIR"),
        ("/proc/self/root/tmp/file", "ENOTDIR"),
        ("/proc/1/exe", "ELOOP"),
        (f"/proc/{os.getpid()}/exe", "ENOENT"),
        ("/tmp/../tmp/file", "EXDEV"),
        ("/no", "ENOENT"),
        ("/root", "ENOENT"),
        ("/" + "x" * 300, "ENAMETOOLONG"),
        ("/x" * 2048, "ENAMETOOLONG"),
    ):
        with pytest.raises(OSError) as caught:  # noqa: PT011  # its number is looked at
            control.open(path, os.O_RDONLY)
        assert caught.value.errno == getattr(errno, number), path
    assert works(control)


# ---- a caller that talks nonsense ------------------------------------------------


def body(*strings: Sequence[bytes], cwd: bytes = b"/", targets: Sequence[int] = ()) -> bytes:
    """Return the body of a start: executables, argv, envp; and the offset of cwd, packed before."""
    slots = sum(len(items) + 1 for items in strings)
    at = slots * 8 + 4 * len(targets)
    text, addresses = cwd + b"\0", b""
    for items in strings:
        for string in items:
            addresses += struct.pack("=Q", at + len(text))
            text += string + b"\0"
        addresses += struct.pack("=Q", 0)
    return addresses + struct.pack(f"={len(targets)}i", *targets) + text


def start(*, descriptors: int = 0, **changes: int) -> bytes:
    """Return a message that starts /bin/true, with some fields changed."""
    content = body([b"/bin/true"], [b"true"], [], targets=range(descriptors))
    fields = {
        "version": VERSION,
        "kind": START,
        "mode": 0,
        "flags": 0,
        "body_size": len(content),
        "mask": 0,
        "cwd": 5 * 8 + 4 * descriptors,
        "uid": -1,
        "gid": -1,
        "umask": -1,
        "process_group": -1,
        "nice": 0,
        "n_groups": -1,
        "n_executables": 1,
        "n_argv": 1,
        "n_envp": 0,
        "n_rlimits": 0,
        "filter_length": 0,
        "n_tasks": 0,
        "n_fds": descriptors,
        "in_memfd": 0,
    }
    fields.update(changes)
    return HEAD.pack(*fields.values()) + content


def say(control: Control, message: bytes, *fds: int) -> socket.socket:
    """Send a message with a channel and descriptors; return our end of the channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with socket.socket(fileno=os.dup(control._struct.socket)) as line, theirs:
        rights = array.array("i", [theirs.fileno(), *fds])
        with suppress(BrokenPipeError):
            line.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    return ours


def receive(line: socket.socket) -> tuple[bytes, list[int]]:
    """Return a message, and the descriptors that came with it."""
    data, control, _, _ = line.recvmsg(65536, 4096)
    return data, [fd for *_, rights in control for (fd,) in struct.iter_unpack("=i", rights)]


def listen(channel: socket.socket) -> list[tuple[int, ...]]:
    """Return kind, step and status of all that comes, until the channel ends."""
    heard: list[tuple[int, ...]] = []
    with channel:
        channel.settimeout(DEADLINE)
        while True:
            try:
                data, control, _, _ = channel.recvmsg(4096, 256)
            except ConnectionResetError:
                return heard
            for _level, _kind, rights in control:
                for (fd,) in struct.iter_unpack("=i", rights):
                    os.close(fd)
            if not data:
                return heard
            _, kind, step, _, _, _, _, status, *_ = REPLY.unpack(data)
            heard.append((kind, step, status))


def test_right(control: Control) -> None:
    """The message that the others are made from is right."""
    assert listen(say(control, start())) == [(HERE, 0, 0), (STARTED, 0, 0), (ENDED, 0, 0)]
    with open(os.devnull) as null:
        fds = [null.fileno()] * 3
        assert listen(say(control, start(descriptors=3), *fds))[-1] == (ENDED, 0, 0)


WRONG: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "one byte": lambda: b"\1",
    "no header": lambda: start()[:8],
    "half a header": lambda: start()[:50],
    "no body": lambda: start()[: HEAD.size],
    "half a body": lambda: start()[:-1],
    "more than the body": lambda: start() + b"\0",
    "another version": lambda: start(version=VERSION + 1),
    "another kind": lambda: start(kind=77),
    "another mode": lambda: start(mode=3),
    "no end of the strings": lambda: start()[:-1] + b"x",
    "empty": lambda: start(body_size=0)[: HEAD.size],
    "more arguments than there are": lambda: start(n_argv=2),
    "less": lambda: start(n_argv=0),
    "as many as a number can say": lambda: start(n_argv=0xFFFFFFFF, n_envp=0xFFFFFFFF),
    "so many groups": lambda: start(n_groups=0x7FFFFFFF),
    "so many limits": lambda: start(n_rlimits=0xFFFFFFFF),
    "such a filter": lambda: start(filter_length=0xFFFFFFFF),
    "so many descriptors": lambda: start(n_fds=0xFFFFFFFF),
    "so many cgroups": lambda: start(n_tasks=0xFFFFFFFF),
    "a descriptor that did not come": lambda: start(n_fds=1),
    "a cgroup that did not come": lambda: start(n_tasks=1),
    "a memfd that did not come": lambda: start(in_memfd=1),
    "a memfd that is two": lambda: start(in_memfd=2),
    "no channel, but one that came": lambda: start(mode=2, flags=FLAG_ATTENDED),
    "a directory outside": lambda: start(cwd=1 << 40),
    "a directory in the arrays": lambda: start(cwd=0),
    "an address outside": lambda: (
        start()[: HEAD.size] + struct.pack("=Q", 1 << 62) + start()[HEAD.size + 8 :]
    ),
    "a body of 2^63": lambda: start(body_size=1 << 63),
    "too long": lambda: start() + bytes(60_000),
    "a path without an end": lambda: struct.pack("=2I2Q", VERSION, OPEN, 0, 0) + b"/tmp",
    "no path": lambda: struct.pack("=2I2Q", VERSION, OPEN, 0, 0),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong(control: Control, name: str) -> None:
    """What makes no sense is the end of the init, and of everything in its world."""
    child = Child()
    control.start(request(b"/bin/sleep", b"1000"), child)
    assert listen(say(control, WRONG[name]())) == []
    end = child.wait(-1)
    assert end is not None
    assert end.returncode == -signal.SIGKILL
    assert not works(control)


@pytest.mark.parametrize("count", [1, 251])
def test_more_descriptors_than_said(control: Control, count: int) -> None:
    """So are descriptors that nobody has spoken of."""
    with open(os.devnull) as null:
        assert listen(say(control, start(), *[null.fileno()] * count)) == []
    assert not works(control)


def test_short_memfd(control: Control) -> None:
    """A memfd that is shorter than it should be is never read beyond its end."""
    fd = os.memfd_create("short")
    os.write(fd, b"x" * 100)
    message = start(in_memfd=1, body_size=1 << 20)[: HEAD.size]
    assert listen(say(control, message, fd)) == []
    os.close(fd)
    assert not works(control)


@pytest.mark.parametrize(
    "changes", [{}, {"mode": 2}, {"flags": FLAG_ATTENDED}, {"flags": FLAG_ATTENDED, "mode": 1}]
)
def test_without_channel(control: Control, changes: dict[str, int]) -> None:
    """A message without a channel is the end, unless it is the last, and nobody hears of it."""
    with socket.socket(fileno=os.dup(control._struct.socket)) as line:
        line.send(start(**changes))
        assert ends(control.init.pidfd, DEADLINE)
        assert line.recv(4096) == b""


@pytest.mark.parametrize(("program", "said"), [(b"/bin/true", []), (b"/missing", [STARTED])])
def test_over_the_control(control: Control, program: bytes, said: list[int]) -> None:
    """Whatever the init becomes, or fails with, is told over the control socket, and the last."""
    content = body([program], [b"true"], [], targets=())
    message = start(mode=2, flags=FLAG_ATTENDED, body_size=len(content))[: HEAD.size]
    line = socket.socket(fileno=os.dup(control._struct.socket))
    line.send(message + content)
    heard = [kind for kind, _, _ in listen(line)]
    assert heard == [HERE, *said]


def test_channel_that_is_closed(control: Control) -> None:
    """Whoever closes a channel gives up the process: it is killed."""
    reader, writer = os.pipe()
    content = body([b"/bin/sleep"], [b"sleep", b"1000"], [], targets=[1])
    message = start(body_size=len(content), n_argv=2, n_fds=1, cwd=6 * 8 + 4, descriptors=0)[
        : HEAD.size
    ]
    channel = say(control, message + content, writer)
    os.close(writer)
    assert channel.recv(4096)
    channel.close()
    assert ends(reader, DEADLINE)
    os.close(reader)
    assert works(control)


@pytest.fixture
def line(control: Control) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A line: for starts and their answers, and for names."""
    names, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        talk = say(control, struct.pack("=2I", VERSION, LINE), theirs.fileno())
    with talk, names:
        talk.settimeout(DEADLINE)
        names.settimeout(DEADLINE)
        yield talk, names


def hear(channel: socket.socket) -> int:
    """Return the kind of one answer."""
    data, fds = receive(channel)
    for fd in fds:
        os.close(fd)
    return int(REPLY.unpack(data)[1])


def test_line(control: Control, line: tuple[socket.socket, socket.socket]) -> None:
    """One process after the other is started over it; each says who it is, and how it ended."""
    talk, names = line
    for _ in range(3):
        talk.send(start(flags=FLAG_ATTENDED))
        assert (hear(talk), hear(names)) == (ENDED, HERE)
    content = body([b"/missing"], [b"missing"], [])
    talk.send(start(flags=FLAG_ATTENDED, body_size=len(content))[: HEAD.size] + content)
    assert (hear(talk), hear(names)) == (STARTED, HERE)
    talk.send(start(flags=FLAG_ATTENDED))
    assert (hear(talk), hear(names)) == (ENDED, HERE)
    talk.close()
    assert names.recv(1) == b""
    assert works(control)


@pytest.mark.parametrize(
    "message",
    [
        b"x",
        start(),
        start(mode=1, flags=FLAG_ATTENDED),
        start(mode=2, flags=FLAG_ATTENDED),
        start(flags=FLAG_ATTENDED, n_fds=1),
        struct.pack("=2I", VERSION, LINE),
        struct.pack("=2I2Q", VERSION, OPEN, 0, 0) + b"/\0",
    ],
)
def test_wrong_over_a_line(
    control: Control, line: tuple[socket.socket, socket.socket], message: bytes
) -> None:
    """What is not meant for a line is nonsense there."""
    line[0].send(message)
    assert ends(control.init.pidfd, DEADLINE)


@pytest.mark.parametrize("more", [[], [0, 0]])
def test_line_that_is_none(control: Control, more: list[int]) -> None:
    """It has two sockets."""
    say(control, struct.pack("=2I", VERSION, LINE), *more).close()
    assert ends(control.init.pidfd, DEADLINE)


def test_line_that_is_closed(control: Control, line: tuple[socket.socket, socket.socket]) -> None:
    """Its process is given up, and killed."""
    reader, writer = os.pipe()
    content = body([b"/bin/sleep"], [b"sleep", b"1000"], [], targets=[1])
    head = start(flags=FLAG_ATTENDED, body_size=len(content), n_argv=2, n_fds=1, cwd=6 * 8 + 4)[
        : HEAD.size
    ]
    rights = array.array("i", [writer])
    line[0].sendmsg([head + content], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    os.close(writer)
    assert hear(line[1]) == HERE
    line[0].close()
    assert ends(reader, DEADLINE)
    os.close(reader)
    assert works(control)


@pytest.mark.one_kernel
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, HEAD.size + 60), st.integers(0, 255)), min_size=1, max_size=4
    ),
    cut=st.integers(-40, 40),
)
def test_any_message(lowered: Lowered, changes: list[tuple[int, int]], cut: int) -> None:
    """Whatever is sent, the init starts something, or ends; never does it hang."""
    control = Control(lowered)
    message = bytearray(start())
    for position, value in changes:
        if position < len(message):
            message[position] = value
    message = message[:cut] if cut < 0 else message + bytes(cut)
    ours = say(control, bytes(message))
    ready, _, _ = select.select([ours], [], [], DEADLINE)
    assert ready
    ours.close()
    control.close()


# ---- an init that talks nonsense --------------------------------------------------


class Liar:
    """A process that seems to be an init, whose part the test plays."""

    def __init__(self) -> None:
        self.init = Child()
        box = Sandbox()
        self.lowered = box._cache.lowered(box)
        self.lowered.spawn(request(b"/bin/sleep", b"1000"), self.init)
        ours, self.line = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.over = os.eventfd(0)
        self.control = Control.__new__(Control)
        self.control._lowered, self.control.init = self.lowered, self.init
        memory = ffi.new(
            "struct nsbox_control *",
            {"socket": ours.detach(), "listener": -1, "owner": this_process()},
        )
        memory.init = self.init.record
        self.control._struct = ffi.gc(memory, lib.nsbox_control_close)

    def close(self) -> None:
        self.control.close()
        self.line.close()
        os.close(self.over)

    def answer(self, *answers: tuple[bytes, Sequence[int]]) -> None:
        """Take one request, and answer it, and close the channel; if there comes one."""
        asked = self.line.fileno()
        if asked not in select.select([asked, self.over], [], [])[0]:
            return
        channel, names = self.take_start()
        with channel, names:
            for data, passed in answers:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", passed))]
                to = names if data[4:8] == struct.pack("=I", HERE) else channel
                with suppress(BrokenPipeError, ConnectionResetError):  # it has read enough
                    to.sendmsg([data], rights if passed else [])

    def take_start(self) -> tuple[socket.socket, socket.socket]:
        """Take a request to start something; return what is said over, and where names go."""
        data, (fd, *others) = receive(self.line)
        channel = names = socket.socket(fileno=fd)
        if struct.unpack("=2I", data[:8]) == (VERSION, LINE):
            names = socket.socket(fileno=others.pop())
            _, others = receive(channel)
        for fd in others:
            os.close(fd)
        return channel, names

    def asked(self, call: Callable[[], object], *answers: tuple[bytes, Sequence[int]]) -> OSError:
        """Make a call, answer it, and return its error."""
        thread = threading.Thread(target=self.answer, args=answers)
        thread.start()
        try:
            with pytest.raises(OSError) as caught:  # noqa: PT011  # its number is looked at
                call()
        finally:
            os.eventfd_write(self.over, 1)
            thread.join()
            os.eventfd_read(self.over)
        return caught.value


@pytest.fixture
def liar() -> Iterator[Liar]:
    made = Liar()
    yield made
    made.close()


def reply(
    kind: int, *, version: int = VERSION, step: int = 0, error: int = 0, index: int = -1
) -> bytes:
    return REPLY.pack(version, kind, step, error, index, 0, 0, 0, 0, 0, 0, 0)


@pytest.mark.one_kernel
@pytest.mark.parametrize("attended", [False, True])
def test_lies_about_a_start(liar: Liar, attended: bool) -> None:
    """An answer that makes no sense is an error, and none of its descriptors is kept."""
    null = os.open(os.devnull, os.O_RDONLY)
    own = os.pidfd_open(os.getpid())
    lies: list[tuple[tuple[bytes, Sequence[int]], ...]] = [
        (),
        ((b"", ()),),
        ((b"x", ()),),
        ((reply(STARTED)[:-1], ()),),
        ((reply(STARTED) + b"x", ()),),
        ((reply(HERE), ()),),
        ((reply(HERE), [null]),),
        ((reply(HERE), ()), (reply(HERE), ())),
        ((reply(STARTED), ()),),
        ((reply(STARTED), [null]),),
        ((reply(STARTED), [own]),),
        ((reply(HERE), [null] * 2), (reply(STARTED), [null])),
        ((reply(HERE), [null] * 200), (reply(STARTED), ())),
        ((reply(ENDED), ()),),
        ((reply(77), [null]),),
        ((reply(STARTED, version=VERSION + 1), ()),),
        ((reply(STARTED, step=1, error=0), ()),),
        ((reply(STARTED, step=1, error=-1), ()),),
        ((reply(STARTED, step=1, error=1 << 30), ()),),
        ((reply(STARTED, step=-1, error=1), ()),),
        ((reply(STARTED, step=10_000, error=1), ()),),
    ]
    for answers in lies:
        before = set(open_fds())
        child = Child()

        def call(child: Child = child) -> None:
            liar.control.start(request(b"/bin/true", attended=attended), child)
            finish(child)

        error = liar.asked(call, *answers)
        assert isinstance(error, SpawnError)
        assert error.step is Step.INIT, answers
        assert error.errno in (errno.EPROTO, errno.ESRCH, errno.EMFILE)
        assert child.pidfd == -1
        assert set(open_fds()) == before, answers
    os.close(null)
    os.close(own)


WITNESS = """
import array, os, socket, sys
channel = socket.socket(fileno=int(sys.argv[1]))
own = array.array("i", [os.pidfd_open(os.getpid())])
channel.sendmsg([bytes.fromhex(sys.argv[2])], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, own)])
channel.close()
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.one_kernel
@pytest.mark.parametrize("attended", [False, True])
@pytest.mark.parametrize(
    "said", [(b"x", 0), (reply(HERE), 0), (reply(STARTED), 1), (reply(77), 1), (b"", 0)]
)
def test_lies_of_a_process_that_is_there(
    liar: Liar, attended: bool, said: tuple[bytes, int]
) -> None:
    """After a true HERE, nonsense is an error or the end of the process; no descriptor is kept."""
    null = os.open(os.devnull, os.O_RDONLY)
    before = set(open_fds())
    witnesses: list[subprocess.Popen[bytes]] = []

    def answer() -> None:
        channel, names = liar.take_start()
        number = names.fileno()
        command = [sys.executable, "-S", "-c", WITNESS, str(number), reply(HERE).hex()]
        witness = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[number]
        )
        witnesses.append(witness)
        assert witness.stdout is not None
        witness.stdout.readline()
        with channel, names:
            data, count = said
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * count))]
            with suppress(BrokenPipeError, ConnectionResetError):
                channel.sendmsg([data], rights if count else [])

    thread = threading.Thread(target=answer)
    thread.start()
    child = Child()
    with suppress(SpawnError):
        liar.control.start(request(b"/bin/true", attended=attended), child)
        assert finish(child) == -signal.SIGKILL
    thread.join()
    for witness in witnesses:
        with witness:
            witness.kill()
    child.discard()
    assert set(open_fds()) == before
    os.close(null)


def test_our_own_pidfd_is_refused(liar: Liar) -> None:
    """Whatever an init claims, nobody is told to signal the caller itself."""
    own = os.pidfd_open(os.getpid())
    child = Child()
    # The kernel adds to HERE who has sent it, and that is us.
    error = liar.asked(
        lambda: liar.control.start(request(b"/bin/true"), child),
        (reply(HERE), [own]),
        (reply(STARTED), ()),
    )
    assert error.errno == errno.EPROTO
    os.close(own)


def test_failure_as_the_init_tells_it(liar: Liar) -> None:
    """A failure that can be is passed on; a step that is none of an init's is a lie."""
    passed = set()
    for number, step in enumerate(STEPS, 1):
        for index in (-1, 3, 10_000):
            error = liar.asked(
                partial(liar.control.start, request(b"/bin/true"), Child()),
                (reply(STARTED, step=number, error=errno.ENOTTY, index=index), ()),
            )
            assert isinstance(error, SpawnError)
            if error.errno == errno.ENOTTY:
                passed.add(error.step)
                assert error.step is step
            else:
                assert (error.step, error.errno) == (Step.INIT, errno.EPROTO)
    assert {Step.CLONE, Step.CHDIR, Step.EXECVE} <= passed
    assert {Step.SETNS, Step.OPEN_TREE, Step.UID_MAP, Step.INIT}.isdisjoint(passed)


def test_lies_about_a_file(liar: Liar) -> None:
    """So it is with files."""
    null = os.open(os.devnull, os.O_RDONLY)
    for data, passed in (
        (b"x", [null]),
        (reply(OPENED), ()),
        (reply(OPENED, error=errno.EPERM), [null]),
        (reply(OPENED, error=-errno.EPERM), ()),
        (reply(STARTED), [null]),
    ):
        before = set(open_fds())
        error = liar.asked(lambda: liar.control.open("/", 0), (data, passed))
        assert error.errno == errno.EPROTO
        assert set(open_fds()) == before
    os.close(null)


@pytest.mark.parametrize(
    "lies",
    [
        (),
        ((b"", 0),),
        ((b"x", 1),),
        ((reply(HERE), 3),),
        ((reply(HERE), 0), (reply(HERE), 200)),
        ((reply(STARTED), 1),),
        ((reply(STARTED, step=10_000, error=1), 0),),
        ((reply(HERE), 0), (reply(STARTED, step=1, error=-1), 0)),
        ((reply(ENDED), 2), (reply(77), 2)),
        ((reply(HERE, version=VERSION + 1), 1),),
    ],
)
def test_lies_of_an_init_that_was_to_become_the_process(
    liar: Liar, lies: tuple[tuple[bytes, int], ...]
) -> None:
    """It has said nonsense over the control socket, and is killed: no descriptor is kept."""
    null = os.open(os.devnull, os.O_RDONLY)
    before, pid = set(open_fds()), liar.init.pid
    child = begin(liar.control, b"/bin/true", mode=Mode.REPLACE)
    _, control, _, _ = liar.line.recvmsg(65536, 4096)
    for *_, rights in control:
        for (fd,) in struct.iter_unpack("=i", rights):
            os.close(fd)
    for data, count in lies:
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * count))]
        liar.line.sendmsg([data], passed if count else [])
    os.kill(pid, signal.SIGKILL)
    with suppress(SpawnError):
        assert finish(child) == -signal.SIGKILL
    assert set(open_fds()) < before
    os.close(null)


@pytest.mark.one_kernel
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    answers=st.lists(
        st.tuples(
            st.binary(max_size=70)
            | st.builds(
                REPLY.pack,
                st.integers(0, 2),
                st.integers(0, 5),
                *[st.integers(-(1 << 31), (1 << 31) - 1)] * 6,
                *[st.integers(0, 9)] * 4,
            ),
            st.integers(0, 3),
        ),
        max_size=4,
    ),
    attended=st.booleans(),
)
def test_any_answer(liar: Liar, answers: list[tuple[bytes, int]], attended: bool) -> None:
    """Whatever comes, the caller gets an error, and keeps no descriptor."""
    null = os.open(os.devnull, os.O_RDONLY)
    before = set(open_fds())
    liar.asked(
        lambda: finish(begin(liar.control, b"/bin/true", attended=attended)),
        *((data, [null] * count) for data, count in answers),
    )
    assert set(open_fds()) == before
    os.close(null)


@pytest.mark.parametrize(
    "said",
    [
        b"x",
        reply(ENDED),
        reply(STARTED),
        REPLY.pack(VERSION, ENDED, 0, 0, 0, 0, 1, 256, 0, 0, 0, 0),  # CLD_EXITED
        REPLY.pack(VERSION, ENDED, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0),  # CLD_KILLED
        REPLY.pack(VERSION, ENDED, 0, 0, 0, 0, 9, 9, 0, 0, 0, 0),
    ],
)
def test_lies_about_an_end(control: Control, said: bytes) -> None:
    """An end that cannot be is not believed: the process is killed."""
    child = Child()
    control.start(request(b"/bin/sleep", b"1000"), child)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(said)
        os.dup2(ours.fileno(), child.record.report, inheritable=False)
        end = child.wait(-1)
    assert end is not None
    assert end.returncode == -signal.SIGKILL


def test_end_is_never_told(control: Control) -> None:
    """The end of an init is that of its processes, though a fork keeps a channel open."""
    child = Child()
    control.start(request(b"/bin/sleep", b"1000"), child)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        os.dup2(ours.fileno(), child.record.report, inheritable=False)
        control.kill()
        end = child.wait(-1)
    assert end is not None
    assert end.returncode == -signal.SIGKILL


def fill(line: socket.socket) -> None:
    """Say things that nobody hears, until there is no room for more."""
    with suppress(BlockingIOError):
        while True:
            line.send(bytes(256), socket.MSG_DONTWAIT)


@pytest.mark.parametrize("attended", [False, True])
@pytest.mark.parametrize("mode", list(Mode))
def test_nobody_answers(liar: Liar, mode: Mode, attended: bool) -> None:
    """An init that is stopped keeps nobody waiting for its answer; one that was to go is killed."""
    liar.init.signal(signal.SIGSTOP)
    with pytest.raises(SpawnError) as caught:
        finish(begin(liar.control, b"/bin/true", mode=mode, attended=attended))
    number = errno.ESRCH if attended and mode is Mode.REPLACE else errno.ETIMEDOUT
    assert (caught.value.step, caught.value.errno) == (Step.INIT, number)


def test_pool_starts_nothing_twice(liar: Liar) -> None:
    """An init that is lost when its process may have run is an error, and no cold start."""
    with Sandbox(init=True).pool(1) as pool:
        (member,) = pool._stock._ready
        own, member._control = member._control, liar.control
        error = liar.asked(partial(pool.run, ["/bin/true"]), (reply(HERE), ()))
        assert own is not None
        own.close()
        assert isinstance(error, SpawnError)
        assert (error.step, pool.stats().cold) == (Step.INIT, 0)


@pytest.mark.parametrize(
    ("sent", "number"), [(signal.SIGKILL, errno.ESRCH), (signal.SIGSTOP, errno.ETIMEDOUT)]
)
def test_nobody_takes_requests(liar: Liar, sent: signal.Signals, number: int) -> None:
    """A full socket keeps nobody waiting for an init that has ended, or is stopped."""
    with socket.socket(fileno=os.dup(liar.control._struct.socket)) as line:
        fill(line)
    liar.init.signal(sent)
    with pytest.raises(SpawnError) as caught:
        liar.control.start(request(b"/bin/true"), Child())
    assert (caught.value.step, caught.value.errno) == (Step.INIT, number)


def test_answer_never_comes(liar: Liar) -> None:
    """An init that dies before it answers is an error, though a fork keeps its sockets open."""

    def die() -> None:
        _, control, _, _ = liar.line.recvmsg(65536, 4096)
        os.kill(liar.init.pid, signal.SIGKILL)
        died.append(control)

    died: list[object] = []
    thread = threading.Thread(target=die)
    thread.start()
    with pytest.raises(SpawnError) as caught:
        liar.control.start(request(b"/bin/true"), Child())
    thread.join()
    assert (caught.value.step, caught.value.errno) == (Step.INIT, errno.ESRCH)
    for *_, rights in died[0]:  # type: ignore[attr-defined]
        for (fd,) in struct.iter_unpack("=i", rights):
            os.close(fd)


def test_init_that_ends_before_it_becomes_the_process(control: Control) -> None:
    """Nothing has been started then, and nothing has succeeded."""
    pid = control.init.pid
    stop(pid)
    say(control, b"nonsense").close()
    child = begin(control, b"/bin/true", mode=Mode.REPLACE)
    os.kill(pid, signal.SIGCONT)
    with pytest.raises(SpawnError) as caught:
        finish(child)
    assert caught.value.step is Step.INIT
