"""``box.subprocess``: the surface, the rules and the refusals of the standard library's module."""

import asyncio
import errno
import inspect
import os
import pickle
import select
import socket
import subprocess
import threading
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any
from unittest import mock

import pytest

from nsbox import Bind, Namespace, PlanError, Process, Sandbox, SpawnError, UnsupportedError
from nsbox import _subprocess as implementation

pytestmark = [pytest.mark.usefixtures("box"), pytest.mark.one_kernel]

BAD_INPUT: dict[str, tuple[Any, dict[str, Any]]] = {
    "no_arguments": ([], {}),
    "empty_program": ([""], {}),
    "arguments_none": (None, {}),
    "argument_int": (["/bin/true", 1], {}),
    "argument_nul": (["/bin/true", "a\0b"], {}),
    "program_missing": (["/missing"], {}),
    "program_missing_in_path": (["missing-program"], {}),
    "program_is_directory": (["/usr"], {}),
    "program_below_file": (["/etc/passwd/x"], {}),
    "program_not_executable": (["/etc/passwd"], {}),
    "executable_missing": (["true"], {"executable": "/missing"}),
    "executable_nul": (["true"], {"executable": "a\0"}),
    "path_for_shell": (Path("/bin/true"), {"shell": True}),
    "cwd_missing": (["/bin/true"], {"cwd": "/missing"}),
    "cwd_empty": (["/bin/true"], {"cwd": ""}),
    "cwd_is_file": (["/bin/true"], {"cwd": "/etc/passwd"}),
    "cwd_nul": (["/bin/true"], {"cwd": "a\0b"}),
    "cwd_int": (["/bin/true"], {"cwd": 1.5}),
    "env_name": (["/bin/true"], {"env": {"A=B": "c"}}),
    "env_nul": (["/bin/true"], {"env": {"A": "b\0c"}}),
    "env_int": (["/bin/true"], {"env": {"A": 1}}),
    "bufsize": (["/bin/true"], {"bufsize": "1"}),
    "pipesize": (["/bin/true"], {"pipesize": "1"}),
    "stdin_closed": (["/bin/true"], {"stdin": 1 << 20}),
    "stdin_negative": (["/bin/true"], {"stdin": -9}),
    "stderr_negative": (["/bin/true"], {"stdin": subprocess.PIPE, "stderr": -9}),
    "stdout_object": (["/bin/true"], {"stdout": object()}),
    "pass_fds_closed": (["/bin/true"], {"pass_fds": [1 << 20]}),
    "pass_fds_negative": (["/bin/true"], {"pass_fds": [-1]}),
    "pass_fds_object": (["/bin/true"], {"pass_fds": [object()]}),
    "text_contradiction": (["/bin/true"], {"text": True, "universal_newlines": False}),
    "encoding": (["/bin/true"], {"encoding": "no-such", "stdout": subprocess.PIPE}),
    "umask_str": (["/bin/true"], {"umask": "0"}),
    "user_negative": (["/bin/true"], {"user": -1}),
    "user_large": (["/bin/true"], {"user": 1 << 64}),
    "user_float": (["/bin/true"], {"user": 1.0}),
    "user_unknown": (["/bin/true"], {"user": "no-such-user"}),
    "group_negative": (["/bin/true"], {"group": -1}),
    "group_large": (["/bin/true"], {"group": 1 << 64}),
    "group_unknown": (["/bin/true"], {"group": "no-such-group"}),
    "extra_groups_str": (["/bin/true"], {"extra_groups": "root"}),
    "extra_groups_negative": (["/bin/true"], {"extra_groups": [-1]}),
    "extra_groups_large": (["/bin/true"], {"extra_groups": [1 << 64]}),
    "process_group_str": (["/bin/true"], {"process_group": "0"}),
    "process_group_missing": (["/bin/true"], {"process_group": (1 << 31) - 1}),
    "startupinfo": (["/bin/true"], {"startupinfo": 1}),
    "creationflags": (["/bin/true"], {"creationflags": 1}),
    "unknown_option": (["/bin/true"], {"colour": "red"}),
}


def refusal(popen: Any, args: Any, options: dict[str, Any]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # which type it is, is the question
        popen(args, **options).wait()
    return caught.value


@pytest.mark.parametrize("name", BAD_INPUT)
def test_what_popen_refuses_is_refused_alike(name: str) -> None:
    """What subprocess.Popen refuses is refused, and caught by whoever caught its exception."""
    args, options = BAD_INPUT[name]
    expected = refusal(subprocess.Popen, args, options)
    assert isinstance(refusal(Sandbox().subprocess.Popen, args, options), type(expected))


def test_preexec_fn_is_refused_with_the_alternatives() -> None:
    """There is no Python between clone and exec; the error says what there is."""
    with pytest.raises(PlanError, match=r"preexec_fn: .*start_new_session.*umask"):
        Sandbox().subprocess.run(["/bin/true"], preexec_fn=print)


def test_surface_is_that_of_the_module() -> None:
    """Every name is there, and of the same kind; what is no Popen is the same object."""
    module = Sandbox().subprocess
    assert isinstance(module, ModuleType)
    assert set(vars(subprocess)) <= set(vars(module))
    for name, value in vars(subprocess).items():
        if isinstance(value, FunctionType):
            assert inspect.signature(getattr(module, name)) == inspect.signature(value)
        elif name != "Popen":
            assert getattr(module, name) is value
    assert issubclass(module.Popen, Process)
    assert inspect.signature(module.Popen) == inspect.signature(subprocess.Popen)


def test_module_belongs_to_its_sandbox() -> None:
    """Asked twice, a Sandbox has one module; its classes stay the same for isinstance."""
    box = Sandbox()
    assert box.subprocess is box.subprocess
    assert box.subprocess is not Sandbox().subprocess


@pytest.mark.parametrize("name", ["run", "call", "check_call", "check_output", "getoutput"])
def test_every_function_runs_in_the_sandbox(name: str, tmp_path: Path) -> None:
    """No function of the module reaches the host, where the file could be made."""
    function = getattr(Sandbox().subprocess, name)
    command = f"echo > {tmp_path}/made || true"
    if name == "getoutput":
        function(command)
    else:
        function(command, shell=True, stderr=subprocess.DEVNULL)
    assert list(tmp_path.iterdir()) == []


def test_a_function_that_cannot_be_bound_makes_no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python whose functions may start processes in other ways is refused as a whole."""
    monkeypatch.setattr(subprocess, "run", len)
    with pytest.raises(UnsupportedError, match="run"):
        implementation.make_module(lambda *_: None)


def inside(code: str, **options: Any) -> str:
    """Return what a line of shell prints in a sandbox of the defaults."""
    output = Sandbox(env={"FROM": "box"}).subprocess.check_output(
        code, shell=True, text=True, **options
    )
    assert isinstance(output, str)
    return output.strip()


def test_environment_is_the_sandbox_s_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the caller's; what env gives is the whole environment, as for Popen."""
    monkeypatch.setenv("SECRET", "s")
    assert inside("echo $FROM/$SECRET") == "box/"
    assert inside("echo $FROM/$A", env={"A": Path("/a"), "PATH": "/bin"}) == "//a"


def test_environment_and_directory_of_the_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A Sandbox that says so gives each process what the caller has at that moment."""
    box = Sandbox(env="host", cwd="host", mounts=[Bind(tmp_path, readonly=False)])
    assert (box.env, box.cwd, hash(box), pickle.loads(pickle.dumps(box))) == (
        "host",
        "host",
        hash(box),
        box,
    )
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOW", "set")
    command = "echo $NOW $PWD"
    assert box.subprocess.getoutput(command) == f"set {tmp_path}"
    assert box.subprocess.check_output(command, shell=True, cwd="sub") == (
        f"set {tmp_path}/sub\n".encode()
    )


def test_directory_is_the_sandbox_s_and_others_are_relative_to_it() -> None:
    """A cwd means what chdir(2) would make of it, from where the payload starts."""
    assert inside("pwd") == "/"
    assert inside("pwd", cwd="usr/../tmp") == "/tmp"


def test_session_is_new_unless_refused() -> None:
    """A payload in the caller's session could forge its terminal's input: it must be asked for."""
    box = Sandbox(pid="host")
    code = "cut -d' ' -f6 /proc/$$/stat"
    theirs = [int(box.subprocess.getoutput(code))]
    theirs.append(int(box.subprocess.check_output(code, shell=True, start_new_session=True)))
    ours = int(box.subprocess.check_output(code, shell=True, start_new_session=False))
    assert os.getsid(0) == ours
    assert ours not in theirs


def test_process_group(tmp_path: Path) -> None:
    """A group of its own, or one of the caller's session, if that is shared."""
    popen = Sandbox(pid="host").subprocess.Popen
    with popen(["cat"], stdin=subprocess.PIPE, process_group=0) as leader:
        assert os.getpgid(leader.pid) == leader.pid
        leader.stdin.close()
    options = {"stdin": subprocess.PIPE, "start_new_session": False}
    with popen(["cat"], process_group=0, **options) as leader:
        assert (os.getpgid(leader.pid), os.getsid(leader.pid)) == (leader.pid, os.getsid(0))
        with popen(["cat"], process_group=leader.pid, **options) as member:
            assert os.getpgid(member.pid) == leader.pid
            member.stdin.close()
        with pytest.raises(PermissionError) as caught:
            popen(["cat"], process_group=leader.pid)
        leader.stdin.close()
    assert isinstance(caught.value, SpawnError)
    assert caught.value.step == "setpgid"
    assert "start_new_session=False" in str(caught.value)


def test_inheritable_descriptors_are_handed_on_only_on_demand(tmp_path: Path) -> None:
    """close_fds=False hands on what is inheritable, and nothing else."""
    fds = [os.open(tmp_path / name, os.O_WRONLY | os.O_CREAT) for name in ("a", "b")]
    os.set_inheritable(fds[0], True)
    popen = Sandbox().subprocess
    try:
        listing = [
            popen.check_output(["/bin/ls", "/proc/self/fd"], text=True, close_fds=close).split()
            for close in (False, True)
        ]
    finally:
        for fd in fds:
            os.close(fd)
    assert (str(fds[0]) in listing[0], str(fds[1]) in listing[0]) == (True, False)
    assert listing[1] == ["0", "1", "2", "3"]  # 3 is the directory that ls reads


@pytest.mark.parametrize("option", ["user", "group"])
def test_id_that_is_not_mapped(option: str) -> None:
    """The sandbox has one id of each kind; another is refused, by name and with the reason."""
    run = Sandbox(uid=0, gid=0).subprocess.run
    assert run(["/bin/true"], **{option: 0}).returncode == 0
    with pytest.raises(PermissionError) as caught:
        run(["/bin/true"], **{option: 1234})
    assert isinstance(caught.value, SpawnError)
    assert caught.value.step == option
    assert f"{option}: id 1234 is not mapped" in str(caught.value)


def test_abandoned_process_goes_on() -> None:
    """As with Popen, a process that nobody holds any more is not killed, and reaped later."""
    popen = Sandbox().subprocess.Popen
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = popen(["/bin/cat"], stdin=theirs, stdout=theirs)
        theirs.close()
        identity = id(process)
        holder = [process]
        del process
        with pytest.warns(ResourceWarning, match="still running"):
            holder.clear()
        ours.sendall(b"still here")
        assert ours.recv(100) == b"still here"
    active = [item for item in subprocess._active if id(item) == identity]  # type: ignore[attr-defined]
    for item in active:
        item.wait()
    assert len(active) == 1
    subprocess._cleanup()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("option", "value"), [("user", 1234), ("group", 1234), ("extra_groups", [1234])]
)
def test_id_that_a_joined_namespace_does_not_have(option: str, value: object) -> None:
    """What nsbox cannot know beforehand, the kernel refuses; step and hint name the option."""
    with Namespace.create("user") as user, pytest.raises(SpawnError) as caught:
        Sandbox(user=user).subprocess.run(["/bin/true"], **{option: value})
    assert caught.value.step == option
    assert caught.value.errno in (errno.EINVAL, errno.EPERM)
    assert option in str(caught.value)


def test_code_that_imports_subprocess_itself_can_be_sandboxed() -> None:
    """With Popen replaced in the real module, its functions start their processes in the box."""
    with mock.patch("subprocess.Popen", Sandbox(hostname="inside").subprocess.Popen):
        assert subprocess.check_output(["/bin/uname", "-n"]) == b"inside\n"
    assert subprocess.check_output(["/bin/uname", "-n"]) != b"inside\n"


@pytest.mark.parametrize(
    ("fields", "reported"), [({}, 3), ({"pid": "host"}, 3), ({"init": True}, 255)]
)
def test_status_for_code_that_waits_by_itself(fields: dict[str, Any], reported: int) -> None:
    """A payload behind an init is nobody's child for asyncio, and yet nothing is left of it."""
    popen = Sandbox(**fields).subprocess.Popen
    started: list[Process] = []

    class Kept(popen):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)

    async def code_of_asyncio() -> int:
        process = await asyncio.create_subprocess_exec("sh", "-c", "exit 3")
        return await process.wait()

    with mock.patch("subprocess.Popen", Kept):
        assert asyncio.run(code_of_asyncio()) == reported
    for thread in threading.enumerate():
        if "waitpid-" in thread.name:  # of asyncio's, which holds the process, too
            thread.join()
    signs = started[0].signs_of_end()
    assert select.select(signs, [], [], 60)[0]
    started.clear()


def test_payload_behind_an_init_is_not_the_callers_child() -> None:
    """Its status is to be had from the Popen alone."""
    with Sandbox(init=True).subprocess.Popen(["sh", "-c", "exit 3"]) as process:
        with pytest.raises(ChildProcessError):
            os.waitpid(process.pid, 0)
        assert process.wait() == 3


def test_arguments_by_position() -> None:
    """Popen's order of parameters holds; too many, or the same one twice, is a TypeError."""
    popen = Sandbox().subprocess.Popen
    with popen(["echo", "hi"], -1, None, None, subprocess.PIPE) as process:
        assert process.stdout.read() == b"hi\n"
    with pytest.raises(TypeError):
        popen(["true"], -1, bufsize=-1)
    with pytest.raises(TypeError):
        popen(["true"], *[None] * 50)


def test_popen_can_be_subclassed() -> None:
    """A subclass runs in the same sandbox, and what it adds is there."""

    class Counting(Sandbox(hostname="inside").subprocess.Popen):  # type: ignore[misc]
        starts = 0

        def __init__(self, *args: Any, **options: Any) -> None:
            type(self).starts += 1
            super().__init__(*args, **options)

    with Counting(["/bin/uname", "-n"], stdout=subprocess.PIPE) as process:
        assert process.communicate() == (b"inside\n", None)
    assert Counting.starts == 1


def test_a_subclass_may_give_negative_numbers_a_meaning() -> None:
    """As sarge does, whose -9 makes stdout what stderr is: it has its own _get_handles."""
    popen: Any = Sandbox().subprocess.Popen

    class ToStderr(popen):  # type: ignore[misc]
        def _get_handles(self, stdin: Any, stdout: Any, stderr: Any) -> tuple[int, ...]:
            assert stdout == -9
            *rest, errread, errwrite = super()._get_handles(stdin, None, stderr)
            return (*rest[:2], os.dup(errread), os.dup(errwrite), errread, errwrite)

    with ToStderr(["echo", "hi"], stdout=-9, stderr=subprocess.PIPE) as process:
        assert process.stderr.read() == b"hi\n"
    with pytest.raises(SpawnError, match="descriptor -9 is not open") as caught:
        popen(["true"], stdout=-9, stderr=subprocess.PIPE)
    assert (caught.value.step, caught.value.errno) == ("dup3", errno.EBADF)


def test_no_directory_is_handed_on_unnamed(tmp_path: Path) -> None:
    """Through a directory of the host the payload would be out, however it came to it."""
    popen = Sandbox().subprocess.Popen
    fd = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(fd, True)
    try:
        for options in ({"close_fds": False}, {"pass_fds": [fd]}):
            with pytest.raises(PlanError, match=f"{fd} is a directory"):
                popen(["/bin/true"], **options)
    finally:
        os.close(fd)
