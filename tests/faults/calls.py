"""What is known of the calls of a set-up: what they fail with, and what comes of it."""

import errno
from fnmatch import fnmatchcase

from supervisor import CALLER, INIT, THREAD, Call, Fault

from nsbox import Step

ERRORS = {
    "access": "EACCES",
    "capset": "EPERM ENOMEM",
    "capget": "EPERM",
    "chdir": "EACCES ENOMEM",
    "clone": "EAGAIN ENOMEM",
    "clone3": "EAGAIN EPERM ENOMEM ENOSPC",
    "close_range": "ENOMEM",
    "dup3": "EMFILE EINTR",
    "epoll_ctl": "ENOMEM ENOSPC",
    "epoll_wait": "EINTR",
    "eventfd2": "EMFILE ENOMEM",
    "execve": "ENOMEM EPERM EACCES",
    "execveat": "ENOMEM EPERM",
    "faccessat": "ENOMEM EACCES",
    "fallocate": "ENOSPC ENOMEM EINTR",
    "fchdir": "EACCES EPERM",
    "fchmod": "EPERM",
    "fchownat": "EPERM ENOMEM",
    "fcntl": "EMFILE",
    "fgetxattr": "ENOMEM EPERM",
    "fsconfig": "ENOMEM EPERM ENOSPC EINTR",
    "fsmount": "EMFILE EPERM ENOMEM ENOSPC EINTR",
    "fsopen": "EMFILE EPERM ENOMEM",
    "fstatfs": "EPERM ENOMEM",
    "ftruncate": "ENOSPC ENOMEM",
    "getdents64": "ENOMEM",
    "ioctl": "EPERM ENOMEM",
    "keyctl": "EDQUOT EPERM ENOMEM",
    "landlock_add_rule": "ENOMEM EPERM",
    "landlock_create_ruleset": "EMFILE EPERM ENOMEM",
    "landlock_restrict_self": "ENOMEM EPERM",
    "memfd_create": "EMFILE ENOMEM",
    "mkdir": "ENOSPC EACCES EPERM ENOMEM",
    "mkdirat": "ENOSPC EPERM ENOMEM",
    "mknodat": "ENOSPC EPERM ENOMEM",
    "mmap": "ENOMEM",
    "mount_setattr": "EPERM ENOMEM",
    "move_mount": "ENOSPC EPERM ENOMEM",
    "newfstatat": "ENOMEM",
    "open_tree": "EMFILE EPERM ENOMEM ENOSPC EINTR",
    "openat": "EMFILE EPERM ENOMEM EINTR",
    "openat2": "EMFILE EPERM ENOMEM EINTR EAGAIN",
    "pidfd_open": "EMFILE ENOMEM",
    "pipe2": "EMFILE",
    "pivot_root": "EPERM ENOMEM",
    "poll": "ENOMEM EINTR",
    "ppoll": "EINTR",
    "prctl": "EPERM ENOMEM",
    "pread64": "ENOMEM EINTR",
    "prlimit64": "EPERM",
    "pwrite64": "EPERM ENOMEM EINTR",
    "read": "ENOMEM EINTR",
    "readlink": "ENOMEM EACCES",
    "readlinkat": "ENOMEM EACCES",
    "recvmsg": "ENOMEM",
    "rmdir": "ENOMEM EBUSY",
    "seccomp": "ENOMEM EPERM",
    "sendmsg": "ENOMEM ETOOMANYREFS",
    "setgroups": "EPERM ENOMEM",
    "setdomainname": "EPERM",
    "sethostname": "EPERM",
    "setpgid": "EPERM",
    "setpriority": "EPERM EACCES",
    "setns": "EPERM ENOMEM",
    "setresgid": "EPERM ENOMEM",
    "setresuid": "EPERM ENOMEM",
    "setsid": "EPERM",
    "setsockopt": "EPERM ENOMEM",
    "signalfd4": "EMFILE ENOMEM",
    "socket": "EMFILE EPERM ENOMEM",
    "socketpair": "EMFILE ENOMEM",
    "statx": "ENOMEM",
    "symlinkat": "ENOSPC EPERM ENOMEM",
    "umount2": "EPERM ENOMEM",
    "unlinkat": "ENOMEM EBUSY",
    "unshare": "ENOSPC EPERM ENOMEM",
    "waitid": "EINTR",
    "timerfd_create": "EMFILE ENOMEM",
    "write": "ENOSPC EPERM ENOMEM EINTR",
}
"""What each call can fail with, the likeliest first: the short form is content with that."""

LASTING = "EMFILE"
"""A shortage that the long form also lets last until the end."""

CANNOT_FAIL = {
    "clock_gettime", "clock_nanosleep", "close", "exit", "exit_group", "futex", "getegid",
    "geteuid", "getpid", "getppid", "getpriority", "getsockname", "gettid", "getuid", "kcmp",
    "kill", "lseek", "madvise", "mprotect", "munmap", "pidfd_send_signal", "rseq", "rt_sigaction",
    "rt_sigprocmask", "sched_getscheduler", "sched_setattr", "sched_yield", "set_robust_list",
    "shutdown", "tgkill", "timerfd_settime",
    "umask", "uname",
    # malloc's, now and then; without more of the heap it takes mmap
    "brk",
}  # fmt: skip
"""Or with nothing that the kernel would say to these calls, or not in a way that matters."""

NEVER = [
    "* fcntl F_[GS]ETF[DL]",
    "* prctl PR_?ET_DUMPABLE",
    "* ioctl FIONBIO",
    "* ioctl TCGETS",
    "* ioctl TIOCGWINSZ",
    "* waitid WNOHANG",
    "* write \x01",  # a number, to an eventfd
    # threading.Thread.start() waits for ever for a thread that finds no memory for its first frame.
    "thread mmap",
]
"""The same, as patterns for Call.__str__."""

# The first pattern that fits a call (see Call.__str__) says which steps its failure may have.
STEPS: list[tuple[str, str]] = [
    ("caller openat /proc/self/?id_map", "host"),
    ("caller openat /proc/thread-self/status", "host"),
    ("caller openat /proc/sys/kernel/overflow?id", "host"),
    ("caller openat /etc*", "host"),
    ("* clone", "clone3"),
    ("1 execveat", "init"),
    ("[0-9] sendmsg", "message init terminal_pass layers"),
    ("* chdir", "chdir layers"),
    ("init openat *", "terminal_open"),
    ("* ioctl TIOCSCTTY", "controlling_terminal"),
    ("* ioctl TIOC*", "terminal_peer"),
    ("caller fstatfs", "terminal_peer terminal_pass"),
    ("1 openat2 ptmx", "terminal_open"),
    ("1 openat upper", "layers create_file"),
    ("1 openat [0-9]*", "layers create_file"),
    ("caller statx", "dup3 terminal_peer terminal_pass"),
    ("caller socketpair", "socketpair terminal_open"),
    ("helper sendmsg", "namespace_open"),
    ("caller setsockopt", "message init"),
    ("caller sendmsg", "message terminal_open"),
    ("caller recvmsg", "message init terminal_open terminal_pass layers namespace_open"),
    ("1 sendmsg", "terminal_pass layers"),
    ("caller mmap", "mmap"),
    ("* pidfd_open", "pidfd_open"),
    ("caller eventfd2", "watch"),
    ("caller timerfd_create", "watch"),
    ("caller epoll_ctl", "watch"),
    ("init fcntl F_DUPFD_CLOEXEC", "pass_fd dup3"),
    ("caller fcntl F_DUPFD_CLOEXEC", "watch pidfd_open open_tree message init"),
    ("caller clone3", "clone3 watch"),
    ("caller openat */profiles/*", "seccomp"),
    ("caller memfd_create *", "seccomp"),
    ("caller read", "seccomp host"),
    ("caller getdents64", "host"),
    ("caller readlink", "host"),
    ("caller newfstatat /*", "host"),
    ("* openat /proc/*/setgroups", "setgroups_deny"),
    ("* openat /proc/*/uid_map", "uid_map"),
    ("* openat /proc/*/gid_map", "gid_map"),
    ("* write deny", "setgroups_deny"),
    ("* write 0 *", "uid_map gid_map"),
    ("helper clone3", "clone3"),
    ("helper openat /proc/self/ns/*", "namespace_open"),
    ("caller ioctl NS_GET_NSTYPE", "namespace_open"),
    ("caller newfstatat", "namespace_open host"),
    ("* setns", "setns"),
    ("* unshare", "cgroup_unshare unshare"),
    ("* open_tree *", "open_tree"),
    ("caller mount_setattr", "mount_setattr idmap"),
    ("* mount_setattr", "mount_setattr readonly propagation"),
    ("thread clone3", "clone3"),
    ("thread statx", "dup3"),
    ("* prctl PR_SET_PDEATHSIG", "pdeathsig"),
    ("* prctl PR_SET_KEEPCAPS", "keep_capabilities"),
    ("* prctl PR_CAPBSET_DROP", "capbset_drop"),
    ("* prctl PR_CAP_AMBIENT", "cap_ambient"),
    ("* prctl PR_*_SECUREBITS", "securebits"),
    ("* prctl PR_SET_NO_NEW_PRIVS", "no_new_privs"),
    ("* write 0", "cgroup_join"),
    ("* socket", "socket"),
    ("* ioctl SIOCSIFFLAGS", "loopback_up"),
    ("* set*name *", "sethostname"),
    ("* setgroups", "setgroups extra_groups"),
    ("* setresgid", "setresgid group"),
    ("* setresuid", "setresuid user"),
    ("* openat /proc", "proc_sys"),
    ("* openat2 sys/user/*", "proc_sys"),
    ("* fstatfs", "proc_sys mask_target terminal_peer"),
    ("* pwrite64", "max_user_namespaces"),
    ("* fsopen *", "fsopen"),
    ("* fsconfig SET_*", "fsconfig"),
    ("* fsconfig CMD_CREATE", "fsconfig_create"),
    ("* fsmount", "fsmount"),
    ("* fcntl F_DUPFD_CLOEXEC", "fsmount dup3 open_tree"),
    ("* openat2 /..", "umount2"),
    ("* openat2 /*", "chdir"),
    ("* openat2 *", "target mask_target"),
    ("* readlinkat *", "target"),
    ("helper fchownat", "create_file"),
    ("* mkdirat *", "mkdirat"),
    ("* mknodat *", "mknodat"),
    ("* symlinkat *", "symlinkat"),
    ("helper openat /*", "open_path"),
    ("* openat *", "create_file"),
    ("* write *", "write_file"),
    ("* statx", "device target mask_target open_tree umount2 terminal_peer"),
    ("* move_mount", "move_mount mask"),
    ("* fchdir", "fchdir chdir"),
    ("* pivot_root", "pivot_root"),
    ("* umount2", "umount2"),
    ("* dup3", "dup3"),
    ("* setsid", "setsid"),
    ("* setpgid", "setpgid"),
    ("* fcntl F_SETFD", "pass_fd dup3"),
    ("* setpriority", "setpriority"),
    ("* close_range", "close_range"),
    ("* prlimit64", "lower_limits limit"),
    ("* keyctl", "keyring"),
    ("* capget", "cap_inheritable keep_capabilities"),
    ("* capset", "capset cap_inheritable keep_capabilities"),
    ("* landlock_create_ruleset", "landlock_create_ruleset"),
    ("* landlock_add_rule", "landlock_add_rule"),
    ("* landlock_restrict_self", "landlock_restrict_self"),
    ("* seccomp", "seccomp"),
    ("* execve *", "execve"),
]

FROM_ROOT = {Step.UMOUNT, Step.CHDIR}
"""The steps in which openat2() is told a path that begins at the process's own root."""

TRANSLATED = {Step.WATCH, Step.INIT, Step.TERMINAL_OPEN, ""}
"""
Their errno is another's: pthread_create(3) says EAGAIN, and of an init that gives up, as it
does wherever it fails, only the end is seen. A FileError has no step.
"""

NO_CALL = {Step.KILLED}
"""Not a call of ours that fails: see test_interruption.py."""

# These may fail, and all goes well.
HARMLESS = [
    # what a path of the host is, for a decision that is made anew then, or made later
    "caller newfstatat*",
    "caller openat /sys/devices/system/cpu/online",
    # its version, which needs nothing that could be short
    "caller landlock_create_ruleset",
    # what a caller may not read the payload need not have; who is short of something: test below
    "caller openat /etc*",
    "caller openat /proc/sys/kernel/overflow?id",
    # what is asked for to explain an error
    "caller openat /proc/self/?id_map",
    "caller read*",
    "caller openat */cgroup.events",
    "caller openat */cgroup.subtree_control",
    "caller access *",
    # asked of the socket whether there is more; the init's name
    "init read",
    "init prctl 15",
    "init close_range",
    # who takes the larger table of descriptors along
    "init clone CLONE_FILES",
    # of a process's end: that of its channel says it as well
    "init sendmsg",
    # a cgroup that does not go at once is removed by a walk
    "caller rmdir *",
    "caller unlinkat *",
    # one that was made ahead is not needed
    "caller faccessat *",
    "caller mkdirat *",
    # by whoever is privileged namespaces are joined before, and else after, the user namespace
    "helper setns",
    # the caller is alive: nothing happens at its end
    "helper prctl PR_SET_PDEATHSIG",
    # whoever has no capabilities, as a plain user, has none to keep
    "helper prctl PR_SET_KEEPCAPS",
]


def faults_of(calls: list[Call], *, long: bool) -> dict[Fault, Call]:
    """
    Return the faults to try, and the call that each is about.

    The short form tries the likeliest error, at the first of calls that look alike.
    """
    alike: dict[str, list[Call]] = {}
    for call in calls:
        if not any(fnmatchcase(str(call), pattern) for pattern in NEVER):
            alike.setdefault(str(call), []).append(call)
    return {
        Fault(call.role, call.name, call.occurrence, getattr(errno, name), lasting): call
        for group in alike.values()
        for call in (group if long else group[:1])
        for name in ERRORS[call.name].split()[: None if long else 1]
        for lasting in ((False, True) if long and name == LASTING else (False,))
    }


def harmless(calls: list[Call]) -> set[Call]:
    """Return those of the calls that may fail without consequence."""
    found: set[Call] = set()
    before: set[tuple[int, str]] = set()
    system: dict[int, str] = {}  # by role: the file system that it makes, until it has it
    for call in calls:
        before.add((call.role, call.name))
        if call.name in ("fsopen", "pivot_root"):
            system[call.role] = call.text
        if (
            any(fnmatchcase(str(call), pattern) for pattern in HARMLESS)
            # The watcher's: what it does not learn now it learns when it looks again.
            or call.role == THREAD
            # The payload is started: what is left is to end it, and figures that may be missing.
            or (call.role == CALLER and (CALLER, "clone3") in before)
            # libseccomp's, into memory
            or (call.name == "write" and (call.role, "memfd_create") in before)
            # POSIX message queues, which are closed then
            or (call.name in _MOUNTING and system.get(call.role) == "mqueue")
        ):
            found.add(call)
    return found


_MOUNTING = ("fsopen", "fsconfig", "fsmount", "fcntl", "move_mount")


def dispensable(calls: list[Call]) -> set[Call]:
    """
    Return those of the calls that may fail without consequence but for a shortage.

    They are about the cgroup in which a sandbox that stays can be frozen. Where there is
    none it does without: see test_a_sandbox_that_cannot_be_frozen().
    """
    if not any(call.name == "execveat" for call in calls):
        return set()
    return {
        call
        for call in calls
        if call.role == CALLER and ("/nsbox." in call.text or call.text in PLACES)
    }


def librarys(calls: list[Call]) -> set[Call]:
    """Return those of the calls that the standard library makes, and raises a plain OSError for."""
    found: set[Call] = set()
    started = False
    for call in calls:
        started = started or call.name in ("execve", "execveat")
        pipes = call.name == "pipe2" or str(call) == "caller openat /dev/null"
        if call.role == CALLER and (pipes or (started and call.name in _COMMUNICATING)):
            found.add(call)
    return found


_COMMUNICATING = ("poll", "read", "write")

PLACES = ("/proc/self/mountinfo", "/proc/self/cgroup")
"""Where it stands which cgroups there are."""


def steps_of(call: Call, *, sure: bool = True) -> list[str]:
    """
    Return the steps that its failure may have.

    Args:
        call: What has failed.
        sure: It was that very call. Beside a thread that works ahead it may have been
            another one of that name.
    """
    found = ["init", "message", "terminal_open"] if call.role == INIT else []
    fitting = [steps for pattern, steps in STEPS if fnmatchcase(str(call), pattern)][:1]
    if not sure:
        who, name, *_ = str(call).split()
        words = [(*pattern.split()[:2], steps) for pattern, steps in STEPS]
        fitting += [steps for role, of, steps in words if of == name and fnmatchcase(who, role)]
    return found + " ".join(fitting).split()
