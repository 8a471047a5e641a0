"""
After a failure: read what may explain it, and say what to do.

Never called on success. A hint is a guess and reads like one; the facts of an
error are its step, errno and path.
"""

import errno
import os
from collections.abc import Callable, Iterator
from typing import Final

from . import _host
from ._constants import ANYWHERE, NAMESPACE_FLAGS
from ._plan import Code, Op, Plan
from .errors import Step
from .mount import TERMINALS
from .seccomp import name_of

_SYSCTL: Final = "/proc/sys/"


def hint(step: Step, error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    """Return advice for a failed step, or None; also if what it depends on cannot be read."""
    try:
        return _advise(step, error, plan, op, path)
    except OSError:
        return None


def _advise(step: Step, error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    if error in ANYWHERE:
        return ANYWHERE[error]
    advise = _ADVISORS.get(step)
    if advise is not None:
        found = advise(error, plan, op, path)
        if found is not None:
            return found
    if error in (errno.EPERM, errno.EACCES) and plan.ids.mapped and _restricted_by_apparmor():
        return (
            "AppArmor takes all rights away in unprivileged user namespaces here: "
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or give the program a "
            "profile that allows userns"
        )
    return None


SYSCTLS: Final = (
    *(f"user.max_{kind}_namespaces" for kind in NAMESPACE_FLAGS),
    "kernel.unprivileged_userns_clone",
    "kernel.apparmor_restrict_unprivileged_userns",
    "kernel.yama.ptrace_scope",
)
"""Settings of the kernel that matter to nsbox."""


def forbidding_sysctls() -> Iterator[tuple[str, str]]:
    """Yield the settings that forbid namespaces to the caller, and the commands that allow them."""
    for name in SYSCTLS:
        value = sysctl(name)
        if name.startswith("user.max_") and value == "0":
            yield name, f"sysctl {name}=10000"
        elif name == "kernel.unprivileged_userns_clone" and value == "0" and os.geteuid() != 0:
            yield name, f"sysctl {name}=1"


def sysctl(name: str) -> str | None:
    """Return the value of a setting, or None if this kernel does not have it, or no /proc."""
    try:
        with open(
            _SYSCTL + name.replace(".", "/"), encoding="utf-8", errors="surrogateescape"
        ) as file:
            return file.read().strip()
    except OSError:
        return None


def _restricted_by_apparmor() -> bool:
    return os.geteuid() != 0 and sysctl("kernel.apparmor_restrict_unprivileged_userns") == "1"


# Only placing into a cgroup gives these: clone3(2), cgroups(7).
_CGROUP: Final = {
    errno.EACCES: (
        "the caller may not place processes into the cgroup: it has to write to cgroup.procs "
        "there, and to that of what lies above both it and the caller"
    ),
    errno.EBUSY: "a cgroup above has processes of its own, and so no controllers for others",
    errno.ENODEV: "the cgroup was removed meanwhile",
    errno.EOPNOTSUPP: "the cgroup is threaded, and takes no whole processes",
}


def _join_cgroup(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    if error == errno.EINVAL:
        return "a cpu cgroup of v1 takes no processes of real-time priority without a share of it"
    if error == errno.ENOSPC:
        return "the cpuset has no processors or no memory nodes"
    return _CGROUP.get(error)


def _message(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    if error == errno.E2BIG:
        return "an init takes about 250 descriptors at once: hand on fewer"
    if error == errno.EAGAIN:
        return "an init has at most 1,024 commands at a time: wait until one has ended"
    return None


def _init(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    if error == errno.ESRCH:
        return "the sandbox has ended, killed by somebody or for a limit"
    if error == errno.ETIMEDOUT:
        return (
            "its init does not answer: somebody outside has stopped it (SIGSTOP) or frozen it, or "
            "what runs inside leaves it no processor; kill() and close() end that"
        )
    if error == errno.EACCES:
        return "this host lets no memfd be executed, and nsbox-init is one: vm.memfd_noexec"
    return None


def _clone(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    found = _refused_clone(error, plan)
    if error not in (errno.EPERM, errno.ENOSPC):
        return found
    return f"{found}; what remains without namespaces is Sandbox(namespaces='none')"


def _refused_clone(error: int, plan: Plan) -> str | None:
    if error == errno.ENOSPC:
        return _forbidden("user.max_") or (
            "a limit of user.max_*_namespaces is reached, or namespaces nest too deep"
        )
    if error == errno.EPERM:
        forbidden = _forbidden("kernel.")
        if forbidden is not None:
            return forbidden
        if not plan.ids.mapped:
            return "new namespaces need CAP_SYS_ADMIN, or a user namespace of their own: user='new'"
        if not _caller_is_mapped():
            return (
                "the caller's own ids are not mapped in its user namespace, and so the kernel "
                "refuses it another: map them there (unshare --map-current-user)"
            )
        if _in_chroot():
            return "the caller lives in a chroot, where the kernel refuses user namespaces"
        if seccomp_mode() == "2":
            return (
                "a seccomp filter is in force for the caller, and may refuse namespaces: let it "
                "pass them (docker: --security-opt seccomp=unconfined)"
            )
        return "user namespaces are refused here: a security module or a chroot forbids them"
    if error == errno.EINVAL:
        missing = [name for name in _kernel_lacks() if name]
        if missing:
            return f"this kernel has no {', '.join(missing)} namespaces"
    if error == errno.ENOMEM and "pid" in plan.joins:
        return "the joined pid namespace's first process has ended, and it takes no other since"
    if error == errno.EAGAIN:
        return "the limit of processes (RLIMIT_NPROC or a pids cgroup) is reached"
    return _CGROUP.get(error)


def _caller_is_mapped() -> bool:
    return _host.is_mapped("uid", os.geteuid()) and _host.is_mapped("gid", os.getegid())


def _in_chroot() -> bool:
    """Tell whether "/" is surely a chroot: it is none of the mounts that can be seen."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            return "/" not in [line.split()[4] for line in file]
    except OSError:
        return False


def _forbidden(prefix: str) -> str | None:
    found = {name: fix for name, fix in forbidding_sysctls() if name.startswith(prefix)}
    if not found:
        return None
    settings = ", ".join(f"{name}={sysctl(name)}" for name in found)
    return f"namespaces are forbidden by sysctl {settings}: {'; '.join(found.values())}"


def seccomp_mode() -> str | None:
    """Return "2" if a seccomp filter is in force for the caller: proc_pid_status(5)."""
    try:
        path = "/proc/thread-self/status"
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            found = [line.split()[1] for line in file if line.startswith("Seccomp:")]
    except OSError:
        return None
    return found[0] if found else None


def _kernel_lacks() -> list[str]:
    try:
        present = set(os.listdir("/proc/self/ns"))
    except OSError:
        return []
    return [kind for kind in NAMESPACE_FLAGS if kind not in present]


def _maps(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    try:
        number = os.readlink("/proc/self")
    except OSError:
        return "/proc is not mounted here, and id maps are written through it"
    if number != str(os.getpid()):
        return (
            "the /proc that is mounted here belongs to another pid namespace, and id maps are "
            "written through it: mount one of this namespace (mount -t proc proc /proc)"
        )
    if error == errno.EROFS:
        return "/proc is mounted read-only here, and id maps are written through it"
    if error == errno.EACCES:
        return "the calling process is not dumpable, so its own /proc files belong to root"
    if error == errno.EPERM and plan.ids.host_uid == 0 and not _host.has_capability("CAP_SETFCAP"):
        return (
            "user id 0 cannot be mapped without CAP_SETFCAP (Linux 5.12), not even by itself: "
            "run as another user here; as a payload of nsbox, in a Sandbox(uid=1000, gid=1000)"
        )
    if error == errno.EPERM:
        return "mapping ids other than one's own needs CAP_SETUID and CAP_SETGID"
    return None


def _join(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    if error == errno.EINVAL and path == "user":
        return "the caller is in this user namespace already, and no one enters it twice"
    if error == errno.EPERM:
        return (
            "joining needs CAP_SYS_ADMIN in the user namespace that owns the other one: "
            "join that too, with Sandbox(user=namespace.owner(), ...)"
        )
    return None


def _source(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    if error == errno.ENOENT:
        missing = "there is no such file or directory on the host"
        if path is None or path.startswith("/"):
            return missing
        return f"{missing}; a relative path starts at the caller's working directory"
    if error == errno.ENOTDIR:
        return "the root, and what leads to a source, must be a directory"
    if error == errno.EINVAL:
        return (
            "it lies outside of the caller's mounts, as what a descriptor leads to may do: give "
            "its own path, not one through /proc/self/fd or /dev/fd"
        )
    if error == errno.EPERM and not plan.ids.mapped and not plan.joins:
        return "cloning mounts needs CAP_SYS_ADMIN"
    return None


def _idmap(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    if error == errno.EPERM:
        return (
            "without CAP_SYS_ADMIN nothing can be shown with other owners, as a writable bind "
            "of root's is: pass idmap=False, and let its owner be the payload's host id "
            f"({plan.ids.host_uid})"
        )
    return (
        "its file system (or one mounted below it) cannot be id-mapped, so a payload that is "
        "not the caller could not write there; let its owner be the payload's host id "
        f"({plan.ids.host_uid}) and pass idmap=False, or use another file system"
    )


def _mount(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    if op is not None and op.code is Code.BIND:
        return (
            "mount points are missing in this read-only directory, and the kernel refuses an "
            "overlay above it to make them in: create them, or use another file system"
        )
    if op is None or op.code not in (Code.MOUNT, Code.OVERLAY):
        return None
    if op.source == "proc" and error == errno.EPERM:
        if not plan.clone_flags & NAMESPACE_FLAGS["pid"]:
            return (
                "a procfs needs CAP_SYS_ADMIN in the user namespace that owns the pid namespace: "
                "join that too, or with pid='host' show the host's: Bind('/proc')"
            )
        return (
            "the host's /proc is covered in part, as in a container, and then the kernel "
            "refuses a new one: unmask it there (docker: --security-opt systempaths=unconfined), "
            "or use pid='host'"
        )
    if op.source == "overlay":
        return (
            "overlayfs refused: its layers must be directories that do not overlap, on file "
            "systems that support it, upper and work on one that has extended attributes; the "
            "kernel log may say more"
        )
    if error in (errno.ENODEV, errno.EINVAL):
        return f"this kernel may lack the file system {op.source}, or one of its options"
    return None


def _mask_target(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    if error == errno.ENOENT:
        return (
            "masks: there is no such path inside, and so nothing to hide: correct it, or leave "
            "it out where it is missing"
        )
    return None


def _target(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    if error == errno.ENOENT:
        return (
            "the mount point is missing, and nsbox creates none on a writable file system of "
            "the host: create it, or use an Overlay"
        )
    if error in (errno.ELOOP, errno.EXDEV):
        return "a symbolic link on the way to the mount point leads nowhere inside the sandbox"
    if error == errno.ENOTDIR:
        return "what lies on the way to the mount point is a file inside the sandbox"
    if error == errno.EACCES:
        who = (
            f"user {plan.ids.host_uid}, who the payload is to the host"
            if plan.ids.idmapped
            else "you"
        )
        return (
            "the root, or a directory on the way to the mount point, is closed to "
            f"{who}: open it (chmod a+rx)"
        )
    return None


def _mkdir(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    if error == errno.EEXIST:
        return "something that leads nowhere, such as a dangling symbolic link, is in the way"
    return None


def _move(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    if error in (errno.EINVAL, errno.ENOTDIR):
        return "a file can only be mounted on a file, and a directory (or Tmpfs) on a directory"
    return None


def _pivot(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    if error == errno.EINVAL:
        return "the caller's root is no mount point (a chroot), or is the initial ramfs"
    return None


def _propagation(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    if error == errno.EINVAL:
        return "the caller's root is no mount point (a chroot)"
    return None


def _setresuid(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    if error == errno.EINVAL:
        return f"id {plan.ids.uid} or {plan.ids.gid} is not mapped in the joined user namespace"
    return None


def _setpgid(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    return (
        "process_group: only a group of the payload's own session and pid namespace can be "
        "joined; pid='host' and start_new_session=False share the caller's"
    )


def _requested_id(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    if error == errno.EPERM and plan.ids.deny_setgroups:
        return "extra_groups: a sandbox of a plain user cannot have supplementary groups"
    if error == errno.EINVAL:
        return "user, group, extra_groups: the id is not mapped in the sandbox's user namespace"
    if error == errno.EPERM:
        return "user, group, extra_groups: only root can change to other ids, with user='host'"
    return None


def _capset(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    return "a capability that the set-up itself does not hold cannot be given to the payload"


def _controlling_terminal(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    if error == errno.ENOTTY:
        return "stdin must be a terminal: open one with os.openpty() and give its slave as stdin"
    if error == errno.EPERM:
        return "stdin is the terminal of another session: open a new one with os.openpty()"
    return None


def _terminal_open(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    if error == errno.ENOSPC:
        return (
            f"{TERMINALS} terminals are open in the sandbox, or on the whole host as many as "
            "sysctl kernel.pty.max allows"
        )
    return None


def _proc_sys(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    return (
        "/proc/sys/user/max_user_namespaces cannot be written here, as in containers that cover "
        "/proc/sys or have it read-only; show a whole /proc (docker: --privileged, or "
        "--security-opt systempaths=unconfined), or do without this layer: user_namespaces=True"
    )


def _keyring(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    if error == errno.EDQUOT:
        return (
            "each sandbox without a filter has a session keyring, and this user may have no more "
            "keys (sysctl kernel.keys.maxkeys); seccomp='default' needs none"
        )
    return None


def _seccomp(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    if error == errno.EINVAL:
        return "this kernel lacks seccomp filters, or an action that the profile uses"
    return None


def _chdir(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    if error == errno.ENOENT:
        return "cwd: the directory does not exist inside the sandbox"
    if error == errno.ELOOP:
        return "cwd: it must not lead through a link such as /proc/self/fd/N"
    if error == errno.EACCES:
        return _foreign_owner(plan)
    return None


def _execve(error: int, plan: Plan, op: Op | None, path: str | None) -> str | None:
    if not path:
        return "the name of the program is empty"
    if error == errno.ENOENT and path is not None and " " in path:
        return (
            "no such program inside the sandbox; a command line is a list of arguments, or a "
            "str with shell=True"
        )
    if error == errno.ENOENT:
        return (
            "no such program inside the sandbox, or the interpreter that it names (#! line, "
            "dynamic linker) is missing there"
        )
    if error == errno.EACCES and "/" not in path:
        return _foreign_owner(plan) or (
            "no directory of PATH has such a program; one of them may not be searched by the "
            "payload, or has it, but not executable"
        )
    if error == errno.EACCES:
        return _foreign_owner(plan) or "it is not executable"
    if error == errno.EPERM and plan.seccomp is not None:
        return f"the seccomp profile {name_of(plan.seccomp)!r} may refuse execve, which starts it"
    if error == errno.ENOEXEC:
        return "not a program for this machine, or a script without a #! line"
    if error == errno.E2BIG:
        return (
            "an argument or variable may have 128 KiB, all of them together a quarter of "
            "RLIMIT_STACK (ulimit -s): pass more by input= or a file"
        )
    return None


def _foreign_owner(plan: Plan) -> str | None:
    if plan.unshared:
        return (
            "not executable, or not below a path that namespaces='none' leaves open, or closed by "
            f"the host's permissions to user {plan.ids.host_uid}: add a Bind(path), or chmod o+rx"
        )
    if not plan.ids.idmapped:
        return None
    return (
        f"not executable, or not accessible to the payload, which is user {plan.ids.host_uid} to "
        "the host: open the directories to others (chmod o+rx), or bind them with idmap=True"
    )


_Advisor = Callable[[int, Plan, Op | None, str | None], str | None]
_ADVISORS: Final[dict[Step, _Advisor]] = {
    Step.CLONE: _clone,
    Step.MESSAGE: _message,
    Step.INIT: _init,
    Step.CGROUP_JOIN: _join_cgroup,
    Step.SETGROUPS_DENY: _maps,
    Step.UID_MAP: _maps,
    Step.GID_MAP: _maps,
    Step.SETNS: _join,
    Step.OPEN_TREE: _source,
    Step.IDMAP: _idmap,
    Step.OPEN_PATH: _source,
    Step.PROPAGATION: _propagation,
    Step.FSOPEN: _mount,
    Step.FSCONFIG: _mount,
    Step.FSCONFIG_CREATE: _mount,
    Step.FSMOUNT: _mount,
    Step.TARGET: _target,
    Step.MASK_TARGET: _mask_target,
    Step.MKDIR: _mkdir,
    Step.MOVE_MOUNT: _move,
    Step.PIVOT_ROOT: _pivot,
    Step.SETRESUID: _setresuid,
    Step.SETRESGID: _setresuid,
    Step.SETPGID: _setpgid,
    Step.EXTRA_GROUPS: _requested_id,
    Step.GROUP: _requested_id,
    Step.USER: _requested_id,
    Step.CAPBSET_DROP: _capset,
    Step.CAP_INHERITABLE: _capset,
    Step.SECUREBITS: _capset,
    Step.CAPSET: _capset,
    Step.CAP_AMBIENT: _capset,
    Step.TERMINAL_OPEN: _terminal_open,
    Step.CONTROLLING_TERMINAL: _controlling_terminal,
    Step.PROC_SYS: _proc_sys,
    Step.KEYRING: _keyring,
    Step.SECCOMP: _seccomp,
    Step.CHDIR: _chdir,
    Step.EXECVE: _execve,
}
