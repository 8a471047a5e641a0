"""
The examination: what is tried, and in which order.

What a sandbox does is tried by making sandboxes, each with one thing more than
the plainest, for a program that does not exist. If execve is what fails, all
that comes before it works; else the error has the step and its hint, the same
that a spawn would have had.
"""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from .. import _calls, _diagnose, _host
from .._constants import NAMESPACE_FLAGS
from ..errors import NsboxError, SpawnError, Step
from ..mount import Bind, Dev, Mount, Overlay, Proc, Tmpfs
from ..sandbox import Sandbox
from ._cgroups import examine_cgroups
from ._settings import examine_kernel, examine_security, examine_sysctls
from ._values import UNKNOWN, Finding, finding_of

_NO_PROGRAM: Final = "/nonexistent/nsbox-doctor"
_IDS: Final = (
    Step.SETGROUPS_DENY,
    Step.UID_MAP,
    Step.GID_MAP,
    Step.SETGROUPS,
    Step.SETRESGID,
    Step.SETRESUID,
)


def examine() -> Iterator[Finding]:
    """Try everything, and yield what was found."""
    yield _sandbox_finding("sandbox", "default", "Sandbox() works", Sandbox())
    name, unshared = "without namespaces", Sandbox(namespaces="none")
    yield _sandbox_finding("sandbox", name, "Sandbox(namespaces='none') works", unshared)
    yield from examine_kernel()
    yield from _examine_namespaces()
    yield from _examine_ids()
    yield from _examine_mounts()
    yield from examine_cgroups()
    yield from examine_sysctls()
    yield from examine_security()


# ---- trying sandboxes ----------------------------------------------------


def _plainest(*mounts: Mount, pid: str = "host") -> Sandbox:
    """Return a sandbox of user and mount namespaces, the root, and what is given."""
    return Sandbox(
        mounts=mounts,
        default_mounts=False,
        pid=pid,
        uts="host",
        ipc="host",
        net="host",
        cgroup_ns="host",
    )


def _failure(box: Sandbox) -> NsboxError | OSError | None:
    """Return what keeps a sandbox from being made, or None if nothing does."""
    try:
        box.run([_NO_PROGRAM])
    except SpawnError as error:
        return None if error.step is Step.EXECVE else error
    except (NsboxError, OSError) as error:
        return error
    raise RuntimeError(f"{_NO_PROGRAM} exists")


def _sandbox_finding(area: str, name: str, detail: str, box: Sandbox) -> Finding:
    error = _failure(box)
    if error is not None:
        return finding_of(area, name, error)
    return Finding(area=area, name=name, works=True, detail=detail)


# ---- namespaces and ids --------------------------------------------------


def _examine_namespaces() -> Iterator[Finding]:
    user = _clone_error(NAMESPACE_FLAGS["user"])
    for kind, flag in NAMESPACE_FLAGS.items():
        # Root can make the others without a user namespace; for all else it comes along.
        error = user if kind == "user" else _clone_error(flag)
        mapped = error == errno.EPERM and kind != "user"
        if mapped:
            error = _clone_error(flag | NAMESPACE_FLAGS["user"])
        yield _namespace_finding(kind, error, "in a user namespace" if mapped else "")


def _clone_error(flags: int) -> int | None:
    """Return what a clone with these flags fails with, or None."""
    try:
        pid, pidfd = _calls.clone(flags, _NO_PROGRAM, [_NO_PROGRAM], {})
    except OSError as error:
        # The child got as far as execve, so clone has done its part.
        return None if error.errno == errno.ENOENT else error.errno
    os.close(pidfd)
    os.waitpid(pid, 0)
    raise RuntimeError(f"{_NO_PROGRAM} exists")


def _namespace_finding(kind: str, error: int | None, detail: str) -> Finding:
    if error is None:
        return Finding(area="namespaces", name=kind, works=True, detail=detail)
    return Finding(
        area="namespaces",
        name=kind,
        works=False,
        blocker=f"{Step.CLONE}: {os.strerror(error)}",
        fix=_diagnose.hint(Step.CLONE, error, Sandbox()._plan(), None, None) or UNKNOWN,
    )


def _examine_ids() -> Iterator[Finding]:
    host, error = _host.look(), _failure(_plainest())
    # Steps after the maps have been reached only if those work.
    if isinstance(error, SpawnError) and error.step in (Step.CLONE, *_IDS):
        yield finding_of("ids", "payload", error)
    else:
        detail = f"is user {host.payload_uid} of the host, group {host.payload_gid}"
        yield Finding(area="ids", name="payload", works=True, detail=detail)
    detail = "can be had with host_uid=" if host.privileged else "only root can map them"
    yield Finding(area="ids", name="others", works=host.privileged or None, detail=detail)


# ---- mounts --------------------------------------------------------------


def _examine_mounts() -> Iterator[Finding]:
    tries: Sequence[tuple[str, str, Callable[[], Sandbox]]] = (
        ("bind", "read-only trees of the host (open_tree, mount_setattr)", _plainest),
        ("tmpfs", "", lambda: _plainest(Tmpfs("/tmp"))),
        ("proc", "of a pid namespace", lambda: _plainest(Proc(), pid="new")),
        ("dev", "devices bound, and a devpts", lambda: _plainest(Dev())),
    )
    for name, detail, make in tries:
        yield _sandbox_finding("mounts", name, detail, make())
    yield from _examine_file_system()


def _examine_file_system() -> Iterator[Finding]:
    """Try what depends on a file system; that of temporary files stands for others."""
    try:
        temporary = tempfile.TemporaryDirectory(prefix="nsbox-doctor.")
    except OSError as error:
        yield finding_of("mounts", "overlay", error)
        return
    host = _host.look()
    with temporary as directory:
        detail = f"tried in {os.path.dirname(directory)}"
        bind = Bind(directory, "/data", readonly=False, idmap=True)
        mapped = _sandbox_finding("mounts", "id-mapped", detail, _plainest(bind))
        if host.privileged:
            os.chown(directory, host.payload_uid, host.payload_gid)  # needs no id map then
        else:
            text = "not needed: what the caller may write, its payload may"
            mapped = Finding(area="mounts", name="id-mapped", detail=text)
        overlay = Overlay(directory, "/overlay")
        yield _sandbox_finding("mounts", "overlay", detail, _plainest(overlay))
        yield mapped
