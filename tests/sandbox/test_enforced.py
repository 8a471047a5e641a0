"""The report of layers, beforehand and afterwards, and the reason of a refused call."""

import os
import pickle
import select
import signal
import socket
from typing import Any

import pytest

import nsbox
from nsbox import PIPE, Bind, Proc, Reason, Sandbox
from nsbox._filter import _find_record, killed_call
from support import PYTHON, python_box, stdin_of

pytestmark = pytest.mark.usefixtures("box")


def test_report_is_the_same_before_while_and_after() -> None:
    """explain(), the process and the result name the same layers."""
    box = Sandbox()
    with box.spawn(["/bin/cat"], stdin=PIPE) as process:
        while_running = process.enforced
        stdin_of(process).close()
    assert box.explain().enforced == while_running == box.run(["/bin/true"]).enforced


def test_every_layer_of_the_default_sandbox_is_active() -> None:
    """Only what cannot be, or has not been asked for, is off: time and the user's own groups."""
    off = {layer.name for layer in Sandbox().explain().enforced if not layer.active}
    expected = {"time namespace"}
    if os.geteuid() != 0:
        expected.add("supplementary groups")
    assert off - {"landlock"} == expected


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"seccomp": None}, "seccomp"),
        ({"user_namespaces": True}, "no user namespaces"),
        ({"user_namespaces": True}, "read-only /proc"),
        ({"landlock": False}, "landlock"),
        ({"net": "host"}, "net namespace"),
        ({"pid": "host"}, "pid namespace"),
        ({"capabilities": ["KILL"]}, "capabilities"),
        ({"mounts": [Proc(readonly=False)]}, "read-only /proc"),
        ({"pid": "host", "mounts": [Bind("/proc", readonly=False)]}, "read-only /proc"),
    ],
    ids=str,
)
def test_layer_that_is_given_up(fields: dict[str, Any], name: str) -> None:
    """A layer that an option gives up is reported as inactive, and why."""
    layer = Sandbox(**fields).explain().enforced[name]
    assert not layer.active
    assert layer.why


def test_proc_of_the_host_is_read_only() -> None:
    """With pid="host" it is bound, and protected as ours is."""
    assert Sandbox(pid="host").explain().enforced["read-only /proc"].active


def test_session_is_reported() -> None:
    """start_new_session=False is an option of the spawn, and shows in its report."""
    process = Sandbox().spawn(["/bin/true"], start_new_session=False)
    process.wait()
    assert not process.enforced["session"].active


def test_report_is_data_and_text() -> None:
    """Layers are found by name and position, printed, and pickled with the explanation."""
    explanation = Sandbox(mounts=[Bind("/sys")]).explain()
    copy = pickle.loads(pickle.dumps(explanation))
    assert copy == explanation
    assert copy.enforced == explanation.enforced
    assert explanation.enforced[0].name == "user namespace"
    with pytest.raises(KeyError):
        explanation.enforced["nothing"]
    assert str(explanation.enforced["seccomp"]) in str(explanation)


def test_reason_of_a_refused_call() -> None:
    """A call that ends the payload is told from a signal; its name, where the log can be read."""
    box = python_box(seccomp="strict")
    result = box.run([*PYTHON, "import ctypes; ctypes.CDLL(None).ptrace(0, 0, 0, 0)"])
    assert (result.returncode, result.reason) == (-signal.SIGSYS, Reason.SECCOMP)
    assert result.refused_call in (None, "ptrace")
    assert "SECCOMP" in repr(result)


def test_name_of_a_refused_call_comes_from_the_log() -> None:
    """Where the kernel logs what its filters end, and we may read it, the call has a name."""
    process = python_box(seccomp="strict").spawn([*PYTHON, "import os; os.fork()"])
    assert process.wait() == -signal.SIGSYS
    if not _log_has_record(process.pid):
        pytest.skip("the kernel's log cannot be read, or has no record of this")
    assert killed_call(process.pid, 60) == "clone"
    assert killed_call(process.pid, -60) is None


_RECORD = (
    "5,431534,1000000,-;audit: type=1326 audit(1795772811.793:6507): auid=0 uid=0 gid=0 pid=7 "
    'comm="sh" exe="/usr/bin/dash" sig=31 arch=c000003e syscall={} compat=0 ip=0x7f49 code={}\n'
)


@pytest.mark.parametrize(
    "forged",
    [
        # What a payload mounts is in the log with its name.
        "3,431535,1000000,-;overlayfs: failed to resolve 'audit: type=1326 audit(1.1:1): pid=7 x "
        "sig=31 arch=c000003e syscall=101 compat=0 code=0x80000000\n': -2\n",
        # A filter of the payload's own has ended one of its threads.
        _RECORD.format(101, "0x0"),
    ],
)
def test_call_is_not_named_by_the_payload(forged: str) -> None:
    """Other records of the log, and those of threads, are not taken for that of the end."""
    true = _RECORD.format(57, "0x80000000")
    silent, other = socket.socketpair()
    with silent, other:
        for records in [forged, true], [true, forged]:
            assert _find_record(_Log(silent, *records), 7, 0.5) == (0xC000003E, 57)
        assert _find_record(_Log(silent, forged), 7, 0.5) is None


class _Log:
    """The kernel's log, to which nothing more comes."""

    def __init__(self, silent: socket.socket, *records: str) -> None:
        self._records = list(records)
        self.fileno = silent.fileno

    def read(self, size: int) -> bytes | None:
        return self._records.pop(0).encode()[:size] if self._records else None


def _log_has_record(pid: int) -> bool:
    """Tell whether the end of a process by a filter reaches the readable log, within seconds."""
    try:
        with open("/dev/kmsg", "rb", buffering=0, opener=_nonblocking) as log:
            waiting = select.poll()
            waiting.register(log, select.POLLIN)
            while waiting.poll(2000):
                record = log.read(8192)
                if b"type=1326" in record and b" pid=%d " % pid in record:
                    return True
    except OSError:
        pass
    return False


def _nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def test_names_are_exported() -> None:
    """The types of the report are part of the package."""
    assert isinstance(Sandbox().explain().enforced, nsbox.Enforced)
    assert isinstance(Sandbox().explain().enforced[0], nsbox.Layer)
