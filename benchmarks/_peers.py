"""
The contenders of spawn_latency.py: how each is told to build what nsbox builds by default.

That is: new user, mount, pid, uts, ipc, net and cgroup namespaces with only the loopback
interface, up; root inside is an unprivileged id outside; the system directories and a part of
/etc read-only; a private /proc, /dev, /tmp and home; everything else absent; no capabilities,
no_new_privs, a session of its own. Which directories and files these are is read from nsbox's own
plan. `isolation` states for each contender where it differs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _spawners
from _floor import Floor, command_line, compile_floor
from _spawners import NO_LAYERS, Sampler, Unavailable
from _worker import Worker
from nsbox import Sandbox
from nsbox._plan import Code

# How the kernel names an id that is nobody's.
NOBODY = 65534


@dataclass(frozen=True)
class View:
    """
    What every contender shows inside, taken from nsbox's own plan of a default sandbox.

    Args:
        binds: paths of the host, shown read-only where they are.
        links: name in the root and what the symbolic link there says.
        etc: a directory with the files and links of /etc, and mount points for the binds there.
            nsbox writes these files for every sandbox; the peers find them ready.
        devices: names in /dev.
        scratch: where an empty tmpfs is mounted, beside those in /dev.
        hostname: inside.
        environment: of the payload.
    """

    binds: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    etc: Path
    devices: tuple[str, ...]
    scratch: tuple[str, ...]
    hostname: str
    environment: Mapping[str, str]

    @classmethod
    def of(cls, box: Sandbox, directory: Path) -> View:
        """
        Read the plan of a sandbox.

        Args:
            box: a default sandbox.
            directory: in which `etc` is made; the id inside must be able to search it.
        """
        ops = box._plan().ops
        mounts = [op for op in ops if op.code is Code.MOUNT and op.source == "tmpfs"]
        links = [op for op in ops if op.code is Code.SYMLINK and ops[op.parent].target == ""]
        view = cls(
            binds=tuple(f"/{op.target}" for op in ops if op.code is Code.BIND),
            links=tuple((op.target, op.source or "") for op in links if "/" not in op.target),
            etc=directory / "etc",
            devices=tuple(op.target for op in ops if op.code is Code.DEVICE),
            scratch=tuple(
                f"/{op.target}" for op in mounts if op.target and not op.target.startswith("dev")
            ),
            hostname=next(op.source or "" for op in ops if op.code is Code.HOSTNAME),
            environment=box._environment(),
        )
        view.etc.mkdir()
        for op in ops:
            if op.code is Code.FILE:
                view._in_etc(op.target).write_bytes(op.content)
            elif op.code is Code.SYMLINK and op.target.startswith("etc/"):
                view._in_etc(op.target).symlink_to(op.source or "")
        for path in view.binds:
            if path.startswith("/etc/"):
                view._in_etc(path).mkdir(parents=True)
        return view

    def _in_etc(self, path: str) -> Path:
        made = self.etc.parent / path.lstrip("/")
        made.parent.mkdir(parents=True, exist_ok=True)
        return made

    def sources(self) -> Iterator[tuple[str, str]]:
        """
        Yield what to bind and where, each after what holds it.
        """
        yield str(self.etc), "/etc"
        for path in self.binds:
            yield path, path

    def make_root(self, directory: Path) -> None:
        """
        Fill a directory for a contender that cannot make links and mount points itself.
        """
        directory.mkdir()
        for name in ("/proc", "/dev", *self.scratch, *self.binds):
            if not name.startswith("/etc/"):
                directory.joinpath(name[1:]).mkdir(parents=True)
        for name, target in self.links:
            directory.joinpath(name).symlink_to(target)
        shutil.copytree(self.etc, directory / "etc", symlinks=True)


Prepare = Callable[[View, Sequence[str], contextlib.ExitStack], Sampler]


@dataclass(frozen=True)
class Contender:
    """
    Something that can run the payload.

    Args:
        name: how the table calls it.
        isolation: what it does and does not do, compared with nsbox.
        prepare: makes the sampler, leaving what must be undone on the stack.
    """

    name: str
    isolation: str
    prepare: Prepare


def outside_id(own: int) -> int:
    """
    The id on the host that is root inside: nobody for root, who must not be itself inside.
    """
    return NOBODY if os.geteuid() == 0 else own


def installed(program: str) -> str:
    """
    Return the path of a program.

    Raises:
        Unavailable: it is not on PATH.
    """
    path = shutil.which(program)
    if path is None:
        raise Unavailable(f"{program} is not installed")
    return path


def scratch_directory(stack: contextlib.ExitStack) -> Path:
    """
    Make a temporary directory that also the unprivileged id inside a sandbox may search.
    """
    name = stack.enter_context(tempfile.TemporaryDirectory(prefix="nsbox-benchmark-"))
    os.chmod(name, 0o711)
    return Path(name)


def default_view(stack: contextlib.ExitStack) -> View:
    """
    Prepare what the contenders show.
    """
    return View.of(Sandbox(), scratch_directory(stack))


def tried(argv: Sequence[str], stdio: int | None = None) -> Sampler:
    """
    Run a command once and return its sampler, so that a contender that fails says why.

    Raises:
        Unavailable: it did not exit with 0; the message is the last thing it said.
    """
    trial = subprocess.run(
        list(argv), check=False, stdin=stdio, capture_output=True, text=True, errors="replace"
    )
    if trial.returncode != 0:
        said = (trial.stderr + trial.stdout).strip().splitlines()
        raise Unavailable(f"exit status {trial.returncode}: {said[-1] if said else 'no message'}")
    return _spawners.by_command(argv, stdio)


# ---- the floor: no library, no launcher, only the system calls ----


def prepare_floor(view: View, argv: Sequence[str], stack: contextlib.ExitStack) -> Sampler:
    """
    Compile floor.c and start it.
    """
    directory = scratch_directory(stack)
    binary = compile_floor(installed(os.environ.get("CC", "cc")), directory)
    command = [str(binary), *command_line(Sandbox(**NO_LAYERS), argv, directory)]
    floor = Floor(command, dict(view.environment))
    stack.callback(floor.close)
    floor.sample()
    return floor.sample


# ---- programs that take their sandbox as arguments ----


def bwrap_command(view: View, argv: Sequence[str]) -> list[str]:
    """
    Bubblewrap; --as-pid-1 saves it the init process that nsbox does not have by default either.
    """
    command = [installed("bwrap"), "--unshare-user", "--unshare-pid", "--unshare-uts"]
    command += ["--unshare-ipc", "--unshare-net", "--unshare-cgroup", "--uid", "0", "--gid", "0"]
    command += ["--cap-drop", "ALL", "--new-session", "--as-pid-1", "--die-with-parent"]
    command += ["--hostname", view.hostname, "--clearenv"]
    for name, value in view.environment.items():
        command += ["--setenv", name, value]
    for source, target in view.sources():
        command += ["--ro-bind", source, target]
    for name, text in view.links:
        command += ["--symlink", text, f"/{name}"]
    command += ["--proc", "/proc", "--dev", "/dev"]
    for path in view.scratch:
        command += ["--tmpfs", path]
    command += ["--remount-ro", "/", "--chdir", "/", "--", *argv]
    return command


def unshare_command(argv: Sequence[str]) -> list[str]:
    """
    util-linux unshare: namespaces and /proc; further mounts would take one program each.
    """
    command = [installed("unshare"), "--user", "--map-root-user", "--mount", "--pid", "--fork"]
    return [*command, "--uts", "--ipc", "--net", "--cgroup", "--mount-proc", "--", *argv]


def nsjail_command(view: View, argv: Sequence[str]) -> list[str]:
    """
    nsjail in its mode for a single run, without the resource limits and niceness it adds.
    """
    command = [installed("nsjail"), "-Mo", "--really_quiet", "--disable_rlimits"]
    command += ["--nice_level", "0", "--time_limit", "0", "--proc_rw"]
    command += ["--user", f"0:{outside_id(os.geteuid())}:1"]
    command += ["--group", f"0:{outside_id(os.getegid())}:1"]
    command += ["--hostname", view.hostname]
    for name, value in view.environment.items():
        command += ["--env", f"{name}={value}"]
    for source, target in view.sources():
        command += ["--bindmount_ro", f"{source}:{target}"]
    for name, text in view.links:
        command += ["--symlink", f"{text}:/{name}"]
    command += ["--tmpfsmount", "/dev"]
    for device in view.devices:
        command += ["--bindmount", f"/dev/{device}"]
    command += ["--mount", "none:/dev/pts:devpts:newinstance,ptmxmode=0666"]
    command += ["--tmpfsmount", "/dev/shm", "--symlink", "pts/ptmx:/dev/ptmx"]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        command += ["--symlink", f"/proc/self/fd/{number}:/dev/{name}"]
    for path in view.scratch:
        command += ["--tmpfsmount", path]
    return [*command, "--", *argv]


def minijail_command(view: View, argv: Sequence[str], root: Path) -> list[str]:
    """
    minijail0 on a prepared root; -T static because it would preload a library otherwise.
    """
    command = [installed("minijail0"), "-U", "-v", "-p", "-I", "-l", "-e", "-N"]
    command += [f"--uts={view.hostname}"]
    command += ["-m", f"0 {outside_id(os.geteuid())} 1", "-M", f"0 {outside_id(os.getegid())} 1"]
    command += ["-n", "-c", "0", "-T", "static", "-P", str(root)]
    for path in view.binds:
        command += ["-b", path]
    command += ["-k", "proc,/proc,proc", "-k", "tmpfs,/dev,tmpfs"]
    for device in view.devices:
        command += ["-b", f"/dev/{device},/dev/{device},1"]
    for path in ("/dev/shm", *view.scratch):
        command += ["-k", f"tmpfs,{path},tmpfs"]
    return [*command, "--", *argv]


def prepare_minijail(view: View, argv: Sequence[str], stack: contextlib.ExitStack) -> Sampler:
    """
    Make the root that minijail0 cannot make for itself.
    """
    root = scratch_directory(stack) / "root"
    view.make_root(root)
    return tried(minijail_command(view, argv, root))


# ---- OCI runtimes: the sandbox is a directory with a config.json ----


def _oci_mount(destination: str, kind: str, *options: str, source: str = "") -> dict[str, Any]:
    return {
        "destination": destination,
        "type": kind,
        "source": source or kind,
        "options": list(options),
    }


def _oci_mounts(view: View) -> Iterator[dict[str, Any]]:
    for path in view.binds:
        yield _oci_mount(path, "bind", "rbind", "ro", "nosuid", "nodev", source=path)
    yield _oci_mount("/proc", "proc", "nosuid", "nodev", "noexec")
    yield _oci_mount("/dev", "tmpfs", "nosuid", "noexec", "mode=755")
    yield _oci_mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666")
    yield _oci_mount("/dev/shm", "tmpfs", "nosuid", "nodev", "mode=1777")
    for path in view.scratch:
        yield _oci_mount(path, "tmpfs", "nosuid", "nodev", "mode=1777")


def oci_config(view: View, argv: Sequence[str]) -> Mapping[str, Any]:
    """
    Describe the sandbox in the terms of the OCI runtime specification.
    """
    sets = ("bounding", "effective", "inheritable", "permitted", "ambient")
    namespaces = ("user", "mount", "pid", "uts", "ipc", "network", "cgroup")
    return {
        "ociVersion": "1.0.0",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(argv),
            "env": [f"{name}={value}" for name, value in view.environment.items()],
            "cwd": "/",
            "capabilities": {name: [] for name in sets},
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": view.hostname,
        "mounts": list(_oci_mounts(view)),
        "linux": {
            "namespaces": [{"type": name} for name in namespaces],
            "uidMappings": [_oci_map(os.geteuid())],
            "gidMappings": [_oci_map(os.getegid())],
        },
    }


def _oci_map(own: int) -> dict[str, int]:
    return {"containerID": 0, "hostID": outside_id(own), "size": 1}


def oci_command(
    runtime: Sequence[str], view: View, argv: Sequence[str], stack: contextlib.ExitStack
) -> list[str]:
    """
    Write a bundle and return the command that creates, runs and deletes a container from it.
    """
    bundle = scratch_directory(stack)
    view.make_root(bundle / "rootfs")
    bundle.joinpath("config.json").write_text(json.dumps(oci_config(view, argv)))
    state = bundle / "state"
    name = f"nsbox-benchmark-{os.getpid()}"
    command = [installed(runtime[0]), *runtime[1:], "--root", str(state)]
    # `run` deletes its container itself; this is for a run that was interrupted.
    stack.callback(_delete_container, [*command, "delete", "--force", name])
    return [*command, "run", "--bundle", str(bundle), name]


def _delete_container(command: Sequence[str]) -> None:
    subprocess.run(list(command), check=False, stdin=subprocess.PIPE, capture_output=True)


def anonymous_stdio(stack: contextlib.ExitStack) -> int:
    """
    Open an anonymous file for the standard streams of an OCI runtime.

    These runtimes give their streams to the container's root: handed /dev/null or a terminal,
    they would change its owner on the host.
    """
    descriptor = os.memfd_create("stdio")
    stack.callback(os.close, descriptor)
    return descriptor


def prepare_runc(view: View, argv: Sequence[str], stack: contextlib.ExitStack) -> Sampler:
    """
    runc from a bundle.
    """
    command = oci_command(["runc"], view, argv, stack)
    return tried(command, anonymous_stdio(stack))


def prepare_crun(view: View, argv: Sequence[str], stack: contextlib.ExitStack) -> Sampler:
    """
    crun from a bundle, without cgroups.

    Some versions refuse hosts with v1 cgroups and a v2 hierarchy beside them even when they are
    told to leave cgroups alone. There crun is started, and timed, by a Python process in a
    private mount namespace in which that hierarchy is hidden.
    """
    command = oci_command(["crun", "--cgroup-manager=disabled"], view, argv, stack)
    try:
        return tried(command, anonymous_stdio(stack))
    except Unavailable as refusal:
        unified = "/sys/fs/cgroup/unified"
        if not os.path.isdir(unified):
            raise
        worker = stack.enter_context(contextlib.closing(Worker(cover=unified)))
        try:
            worker.samples("command", command, 1)
        except Unavailable as error:
            raise Unavailable(f"{refusal}; with {unified} hidden: {error}") from error
        return lambda: worker.samples("command", command, 1)[0]


# ---- all of them ----

CONTENDERS = (
    Contender(
        "floor",
        "The system calls of the next one made by a C program that does nothing else, timed in C.",
        prepare_floor,
    ),
    Contender(
        "nsbox, isolation only",
        "Namespaces, mounts, ids and capabilities, as the floor and the peers: without the filter, "
        "Landlock, the limit of user namespaces and the closed /proc.",
        lambda _view, argv, _stack: _spawners.by_box(Sandbox(**NO_LAYERS), argv),
    ),
    Contender(
        "nsbox",
        "Sandbox().run(...), all layers: a Sandbox described once. The reference for all below.",
        lambda _view, argv, _stack: _spawners.by_nsbox(argv),
    ),
    Contender(
        "nsbox, spawn",
        "The same by Sandbox().spawn(...).wait(): what run is built on.",
        lambda _view, argv, _stack: _spawners.by_spawn(argv),
    ),
    Contender(
        "nsbox, drop-in",
        "The same by Sandbox().subprocess.run(...), the standard library's run.",
        lambda _view, argv, _stack: _spawners.by_drop_in(argv),
    ),
    Contender(
        "nsbox, described anew",
        "The same with a new Sandbox, validated and lowered again, for every run.",
        lambda _view, argv, _stack: _spawners.by_new_sandbox(argv),
    ),
    Contender(
        "nsbox, a directory each",
        "The same with another directory of the host in each, as in a judge of many programs, "
        "which is made, too.",
        lambda _view, argv, stack: _spawners.by_directory(argv, stack),
    ),
    Contender(
        "posix_spawn",
        "No isolation. os.posix_spawn and os.waitpid: the least Python can do.",
        lambda _view, argv, _stack: _spawners.by_posix_spawn(argv),
    ),
    Contender(
        "subprocess",
        "No isolation. subprocess.run, and so a part of every contender below.",
        lambda _view, argv, _stack: _spawners.by_command(argv),
    ),
    Contender(
        "bwrap",
        "All namespaces and mounts. For a root caller root inside is root outside: it maps only "
        "the caller's own id. No seccomp filter.",
        lambda view, argv, _stack: tried(bwrap_command(view, argv)),
    ),
    Contender(
        "unshare",
        "All namespaces and a new /proc, but nothing else: the host's whole file system stays "
        "visible with its modes, lo is down, capabilities are kept, and for a root caller root "
        "inside is root outside.",
        lambda _view, argv, _stack: tried(unshare_command(argv)),
    ),
    Contender(
        "crun",
        "All namespaces, mounts and ids, from an OCI bundle; also writes the container's state "
        "to disk and removes it. No cgroup, no seccomp filter.",
        prepare_crun,
    ),
    Contender(
        "runc",
        "As crun, and for a root caller it also makes a cgroup in every hierarchy, which it cannot "
        "be asked not to do.",
        prepare_runc,
    ),
    Contender(
        "nsjail",
        "All namespaces, mounts and ids; its rlimits and niceness are turned off. No seccomp.",
        lambda view, argv, _stack: tried(nsjail_command(view, argv)),
    ),
    Contender(
        "minijail0",
        "All namespaces and ids; no devpts and no links in /dev, /proc read-only. No seccomp.",
        prepare_minijail,
    ),
)
