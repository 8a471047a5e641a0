"""Where a limited payload is: in its cgroup from the first moment, without a sight of it."""

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from nsbox import (
    PIPE,
    Bind,
    Limits,
    Reason,
    Sandbox,
    SpawnError,
    _cgroup_layout,
)
from support import in_child, inside, output_of, python_box

DEADLINE = 30.0
"""How long a test waits for what should happen much sooner, before it fails."""


@pytest.mark.usefixtures("cgroups")
class TestPlacement:
    """In its cgroup from the first moment, without a way out or a sight of it."""

    LIMITS = Limits(memory="64M", pids=16, cpu=1.0, cpu_time=DEADLINE)

    def test_its_cgroup_is_the_root(self) -> None:
        """Each hierarchy that it is limited in shows "/"."""
        code = "import json; print(json.dumps(open('/proc/self/cgroup').read()))"
        text = inside(code, box=python_box(limits=self.LIMITS))
        assert {line.split(":", 2)[2] for line in text.splitlines()} == {"/"}

    def test_no_cgroup_file_system(self) -> None:
        """None is mounted inside, and none can be."""
        code = """if True:
            import ctypes, json
            libc = ctypes.CDLL(None, use_errno=True)
            kinds = (b"cgroup2", b"cgroup")
            mounted = [libc.mount(kind, b"/tmp", kind, 0, b"memory") for kind in kinds]
            print(json.dumps([open("/proc/self/mountinfo").read(), mounted]))
        """
        mountinfo, mounted = inside(code, box=python_box(limits=self.LIMITS))
        assert " cgroup" not in mountinfo
        assert mounted == [-1, -1]

    @pytest.mark.parametrize("fields", [{}, {"pid": "host", "cgroup_ns": "host"}], ids=repr)
    def test_is_inside(self, fields: dict[str, Any]) -> None:
        """The payload is in each of the directories, and nobody else."""
        if fields:
            fields["mounts"] = [Bind("/proc")]
        box = Sandbox(limits=self.LIMITS, **fields)
        with box.spawn(["/bin/cat"], stdin=PIPE) as process:
            assert process.cgroup is not None
            assert process.cgroup.processes() == [process.pid]
            for directory in process.cgroup.directories:
                text = Path(directory, "cgroup.procs").read_text()
                assert text.split() == [str(process.pid)], directory
        assert process.cgroup.closed

    def test_joined_network(self) -> None:
        """Also when a launcher joins namespaces first."""
        with Sandbox().spawn(["/bin/cat"], stdin=PIPE) as other:
            with other.namespaces["user"] as user, other.namespaces["net"] as net:
                box = Sandbox(user=user, net=net, limits=self.LIMITS)
                with box.spawn(["/bin/cat"], stdin=PIPE) as process:
                    assert process.cgroup is not None
                    assert process.cgroup.processes() == [process.pid]
            with other.namespaces["net"] as net:
                if os.geteuid() == 0:
                    result = Sandbox(net=net, limits=self.LIMITS).run(["/bin/true"])
                    assert result.reason is Reason.EXIT

    def test_payload_cannot_raise_its_limits(self) -> None:
        """The files of the cgroup belong to the caller, whoever the payload is on the host."""
        if os.geteuid() != 0:
            pytest.skip("the payload of a plain user is that user; it has no path to the files")
        with Sandbox(limits=self.LIMITS).spawn(["/bin/cat"], stdin=PIPE) as process:
            assert process.cgroup is not None
            for directory in process.cgroup.directories:
                for path in [directory, *map(str, Path(directory).iterdir())]:
                    info = os.stat(path)
                    assert (info.st_uid, info.st_mode & 0o022) == (0, 0), path

    def test_failed_spawn_leaves_no_cgroup(self) -> None:
        """The check after each test would find it."""
        with pytest.raises(SpawnError) as caught:
            Sandbox(limits=self.LIMITS).run(["/no/such/program"])
        assert caught.value.step == "execve"

    def test_clone3_is_hidden(self, strace: str) -> None:
        """Where a filter answers ENOSYS to clone3, the child enters the cgroup by itself."""
        code = """if True:
            import nsbox, sys
            box = nsbox.Sandbox(limits=nsbox.Limits(memory="64M", pids=16))
            with box.spawn(["/bin/cat", "/proc/self/cgroup"], stdout=nsbox.PIPE) as process:
                names = {line.decode().split(":", 2)[2].strip() for line in process.stdout}
            result = box.run(["/bin/sh", "-c", "for i in $(seq 20); do sleep 60 & done"],
                             stderr=nsbox.DEVNULL)
            print(names, result.reason)
        """
        command = [strace, "-f", "-qq", "-o", "/dev/null", "-e", "inject=clone3:error=ENOSYS"]
        done = output_of([*command, sys.executable, "-c", code])
        assert done == "{'/'} pids\n"

    @pytest.mark.one_kernel
    @pytest.mark.parametrize(
        ("injection", "step", "number"),
        [
            ("setpriority:error=EACCES", "setpriority", errno.EACCES),
            # After eight that every payload needs: core dumps, priorities, quotas of the user.
            ("prlimit64:error=EPERM:when=9", "limit", errno.EPERM),
            ("eventfd2:error=EMFILE", "watch", errno.EMFILE),
            ("unshare:error=ENOSPC", "cgroup_unshare", errno.ENOSPC),
        ],
    )
    def test_failed_call(self, strace: str, injection: str, step: str, number: int) -> None:
        """A call that fails is a SpawnError with its step, and leaves nothing."""
        pids = _cgroup_layout.look().holder("pids")
        if step == "cgroup_unshare" and pids is not None and pids.version == 2:
            pytest.skip("on v2 the child is born in its cgroup namespace")
        code = """if True:
            import nsbox, os, time
            limits = nsbox.Limits(pids=16, nice=19, file_size=4096, wall_time=60)
            def alone():
                # A thread that has been joined may be on its way out.
                deadline = time.monotonic() + 60
                while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < deadline:
                    pass
                return os.listdir("/proc/self/task") == [str(os.getpid())]
            try:
                nsbox.Sandbox(limits=limits).run(["/bin/true"])
            except nsbox.SpawnError as error:
                print(error.step, error.errno, alone())
            nsbox.Cgroup.create(nsbox.Limits(pids=3)).close()
        """
        command = [strace, "-f", "-qq", "-o", "/dev/null", "-e", f"inject={injection}"]
        assert output_of([*command, sys.executable, "-c", code]) == f"{step} {number} True\n"

    def test_failed_join(self, root: None) -> None:
        """A cgroup that does not take the child is an error with its own step."""
        cpu = _cgroup_layout.look().holder("cpu")
        if cpu is None or not os.path.exists(f"{cpu.mount}/cpu.rt_runtime_us"):
            pytest.skip("needs a cgroup that refuses processes of real-time priority")

        def attempt() -> tuple[str, int]:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            try:
                Sandbox(limits=Limits(cpu=1.0)).run(["/bin/true"])
            except SpawnError as error:
                return str(error.step), error.errno or 0
            return "none", 0

        assert in_child(attempt) == ("cgroup_join", errno.EINVAL)
