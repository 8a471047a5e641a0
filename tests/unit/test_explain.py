"""What explain() says of a plan, line by line."""

from plans import ROOT, plan_of

from nsbox._explain import explain_plan

GOLDEN = """\
caller    clone3          CLONE_VM | CLONE_PIDFD | CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWCGROUP
caller    setgroups       deny
caller    uid_map         0 1000 1
caller    gid_map         0 100 1
child     open_tree       /dev/null (clone, recursive)
child     mount_setattr   /dev/null: rdonly,nosuid,noexec,private recursively
child     open_tree       /dev/zero (clone, recursive)
child     mount_setattr   /dev/zero: rdonly,nosuid,noexec,private recursively
child     open_tree       /dev/full (clone, recursive)
child     mount_setattr   /dev/full: rdonly,nosuid,noexec,private recursively
child     open_tree       /dev/random (clone, recursive)
child     mount_setattr   /dev/random: rdonly,nosuid,noexec,private recursively
child     open_tree       /dev/urandom (clone, recursive)
child     mount_setattr   /dev/urandom: rdonly,nosuid,noexec,private recursively
child     open_tree       /dev/tty (clone, recursive)
child     mount_setattr   /dev/tty: rdonly,nosuid,noexec,private recursively
child     open_tree       /etc/alternatives (clone, recursive)
child     mount_setattr   /etc/alternatives: rdonly,nosuid,nodev,private recursively
child     open_tree       /usr (clone, recursive)
child     mount_setattr   /usr: rdonly,nosuid,nodev,private recursively
child     ioctl           SIOCSIFFLAGS lo up
child     sethostname     sandbox
child     setdomainname   (none)
child     setresgid       0
child     setresuid       0
child     write           0 to /proc/sys/user/max_user_namespaces
child     write           16 to /proc/sys/user/max_inotify_instances
child     write           8192 to /proc/sys/user/max_inotify_watches
child     fsmount         tmpfs size=16M,nr_inodes=16384,mode=0755 (nosuid,nodev)
child     move_mount      tmpfs -> /
child     symlinkat       /bin -> usr/bin
child     symlinkat       /lib -> usr/lib
child     mkdirat         /etc 755
child     openat          /etc/nsswitch.conf 644, 14 bytes
child     mkdirat         /etc/ssl 755
child     openat          /etc/ssl/openssl.cnf 644, 0 bytes
child     openat          /etc/passwd 644, 66 bytes
child     openat          /etc/group 644, 27 bytes
child     openat          /etc/hosts 644, 42 bytes
child     symlinkat       /etc/localtime -> /usr/share/zoneinfo/UTC
child     mkdirat         /dev 755
child     fsmount         tmpfs size=64K,nr_inodes=64,mode=0755 (nosuid,noexec)
child     move_mount      tmpfs -> /dev
child     statx           /dev/null is character device 1:3
child     mknodat         /dev/null (mount point)
child     move_mount      /dev/null -> /dev/null
child     statx           /dev/zero is character device 1:5
child     mknodat         /dev/zero (mount point)
child     move_mount      /dev/zero -> /dev/zero
child     statx           /dev/full is character device 1:7
child     mknodat         /dev/full (mount point)
child     move_mount      /dev/full -> /dev/full
child     statx           /dev/random is character device 1:8
child     mknodat         /dev/random (mount point)
child     move_mount      /dev/random -> /dev/random
child     statx           /dev/urandom is character device 1:9
child     mknodat         /dev/urandom (mount point)
child     move_mount      /dev/urandom -> /dev/urandom
child     statx           /dev/tty is character device 5:0
child     mknodat         /dev/tty (mount point)
child     move_mount      /dev/tty -> /dev/tty
child     symlinkat       /dev/fd -> /proc/self/fd
child     symlinkat       /dev/stdin -> /proc/self/fd/0
child     symlinkat       /dev/stdout -> /proc/self/fd/1
child     symlinkat       /dev/stderr -> /proc/self/fd/2
child     symlinkat       /dev/ptmx -> pts/ptmx
child     mkdirat         /dev/pts 755
child     fsmount         devpts mode=620,ptmxmode=666,max=256 (nosuid,noexec)
child     move_mount      devpts -> /dev/pts
child     mkdirat         /dev/shm 755
child     fsmount         tmpfs size=536870912,nr_inodes=131072,mode=1777 (nosuid,nodev,noexec)
child     move_mount      tmpfs -> /dev/shm
child     mkdirat         /etc/alternatives 755
child     move_mount      /etc/alternatives -> /etc/alternatives
child     mkdirat         /home 755
child     mkdirat         /home/sandbox 755
child     fsmount         tmpfs size=536870912,nr_inodes=131072,mode=700 (nosuid,nodev)
child     move_mount      tmpfs -> /home/sandbox
child     mkdirat         /proc 755
child     fsmount         proc (rdonly,nosuid,nodev,noexec)
child     move_mount      proc -> /proc
child     mkdirat         /tmp 755
child     fsmount         tmpfs size=536870912,nr_inodes=131072,mode=1777 (nosuid,nodev)
child     move_mount      tmpfs -> /tmp
child     mkdirat         /usr 755
child     move_mount      /usr -> /usr
child     mount_setattr   /: rdonly
child     mount_setattr   /dev: rdonly
child     pivot_root      . .
child     umount2         the host's mounts (MNT_DETACH)
child     dup3            stdin, stdout, stderr into place
child     setsid          no controlling terminal
child     prctl           PR_SET_NO_NEW_PRIVS
child     close_range     3-, but for those passed
child     prlimit64       RLIMIT_NICE, RLIMIT_RTPRIO: 0; RLIMIT_CORE: 1, no dump to anybody
child     prlimit64       RLIMIT_SIGPENDING, RLIMIT_MSGQUEUE: half of the caller's
child     prctl           PR_CAPBSET_DROP, all but: none
child     prctl           PR_CAP_AMBIENT: none
child     prctl           PR_SET_SECUREBITS: noroot, and locked
child     capset          effective, permitted, inheritable: none
child     fchdir          /
child     seccomp         the filter 'default'
child     execve          the payload
"""  # noqa: E501


def test_plan_of_the_default_sandbox() -> None:
    """The default sandbox of a plain user, step by step."""
    assert [str(action) for action in explain_plan(plan_of(), "/")] == GOLDEN.splitlines()


def test_plan_of_root_differs_in_who_does_what() -> None:
    """For root the caller opens the sources, before the clone, and the groups are dropped."""
    user = [str(action) for action in explain_plan(plan_of(), "/")]
    root = [str(action) for action in explain_plan(plan_of(host=ROOT), "/")]
    only_user = {line.split()[1] for line in user if line not in root}
    only_root = {line.split()[1] for line in root if line not in user}
    assert only_user == {"setgroups", "uid_map", "gid_map", "open_tree", "mount_setattr"}
    assert only_root == {"setgroups", "uid_map", "gid_map", "open_tree", "mount_setattr"}
    opened = [index for index, line in enumerate(root) if "open_tree" in line]
    cloned = [index for index, line in enumerate(root) if "clone3" in line]
    assert max(opened) < min(cloned)
