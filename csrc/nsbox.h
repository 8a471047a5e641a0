/*
 * nsbox.h - the whole contract between the C core and Python.
 *
 * csrc/ffi_build.py drops the lines that begin with '#' and hands the rest to
 * cffi, so nothing below may be conditional and no macro may be defined here.
 *
 * Every function returns 0 or a value >= 0 on success and -errno on failure;
 * none touches errno, which other code on the calling thread may still need.
 */
#ifndef NSBOX_H
#define NSBOX_H

#include <stdint.h>

/*
 * The call that failed, one value per call site. src/nsbox/errors.py lists the
 * same names in the same order; a test compares the two.
 */
enum nsbox_step {
	NSBOX_STEP_NONE,
	NSBOX_STEP_HOST, /* Python's, before any other */
	/* the calling thread, or the launcher on its behalf */
	NSBOX_STEP_MMAP,
	NSBOX_STEP_PIDFD_OPEN,
	NSBOX_STEP_WATCH,
	NSBOX_STEP_CLONE,
	NSBOX_STEP_KILLED, /* somebody killed the half-built child */
	/* the caller, to a sandbox that is there already */
	NSBOX_STEP_SOCKETPAIR,
	NSBOX_STEP_MESSAGE,
	NSBOX_STEP_INIT, /* it could not be executed, has ended, or answers nonsense */
	NSBOX_STEP_SETNS,
	NSBOX_STEP_UNSHARE,
	NSBOX_STEP_SETGROUPS_DENY,
	NSBOX_STEP_UID_MAP,
	NSBOX_STEP_GID_MAP,
	NSBOX_STEP_NAMESPACE_OPEN,
	/* sources of mounts: opened by the caller or by the child */
	NSBOX_STEP_OPEN_TREE,
	NSBOX_STEP_SOURCE_ATTRIBUTES,
	NSBOX_STEP_IDMAP,
	NSBOX_STEP_OPEN_PATH,
	/* the child, in the order in which a plan usually runs them */
	NSBOX_STEP_CGROUP_JOIN,
	NSBOX_STEP_CGROUP_UNSHARE,
	NSBOX_STEP_SOCKET,
	NSBOX_STEP_LOOPBACK_UP,
	NSBOX_STEP_SETHOSTNAME,
	NSBOX_STEP_SETGROUPS,
	NSBOX_STEP_SETRESGID,
	NSBOX_STEP_SETRESUID,
	NSBOX_STEP_KEEP_CAPABILITIES,
	NSBOX_STEP_PROC_SYS,
	NSBOX_STEP_MAX_USER_NAMESPACES,
	NSBOX_STEP_PROPAGATION,
	NSBOX_STEP_FSOPEN,
	NSBOX_STEP_FSCONFIG,
	NSBOX_STEP_FSCONFIG_CREATE,
	NSBOX_STEP_FSMOUNT,
	NSBOX_STEP_TARGET,
	NSBOX_STEP_MKDIR,
	NSBOX_STEP_MKNOD,
	NSBOX_STEP_SYMLINK,
	NSBOX_STEP_CREATE_FILE,
	NSBOX_STEP_WRITE_FILE,
	NSBOX_STEP_DEVICE,
	NSBOX_STEP_MOVE_MOUNT,
	NSBOX_STEP_LAYERS,
	NSBOX_STEP_MASK_TARGET,
	NSBOX_STEP_MASK,
	NSBOX_STEP_FCHDIR,
	NSBOX_STEP_READONLY,
	NSBOX_STEP_PIVOT_ROOT,
	NSBOX_STEP_UMOUNT,
	NSBOX_STEP_TERMINAL_OPEN, /* its master; in a live sandbox by the init */
	NSBOX_STEP_TERMINAL_PEER, /* its size, and its slave */
	NSBOX_STEP_TERMINAL_PASS, /* the master, to the caller */
	NSBOX_STEP_SETSID,
	NSBOX_STEP_CONTROLLING_TERMINAL,
	NSBOX_STEP_SETPGID,
	NSBOX_STEP_DUP,
	NSBOX_STEP_CLOSE_RANGE,
	NSBOX_STEP_PASS_FD,
	NSBOX_STEP_EXTRA_GROUPS,
	NSBOX_STEP_GROUP,
	NSBOX_STEP_USER,
	NSBOX_STEP_LOWER_LIMITS,
	NSBOX_STEP_KEYRING,
	NSBOX_STEP_CAPBSET_DROP,
	NSBOX_STEP_CAP_INHERITABLE,
	NSBOX_STEP_CAP_AMBIENT,
	NSBOX_STEP_SECUREBITS,
	NSBOX_STEP_CAPSET,
	NSBOX_STEP_NO_NEW_PRIVS,
	NSBOX_STEP_PDEATHSIG,
	NSBOX_STEP_LANDLOCK_RULESET,
	NSBOX_STEP_LANDLOCK_RULE,
	NSBOX_STEP_LANDLOCK_RESTRICT,
	NSBOX_STEP_CHDIR,
	NSBOX_STEP_SETPRIORITY,
	NSBOX_STEP_LIMIT,
	NSBOX_STEP_SECCOMP,
	NSBOX_STEP_EXECVE,
	NSBOX_STEP_COUNT
};

/* One operation of the set-up, executed in the child in the order of the plan. */
enum nsbox_opcode {
	NSBOX_OP_LOOPBACK,           /* bring up "lo" */
	NSBOX_OP_HOSTNAME,           /* sethostname(source), and no domain */
	NSBOX_OP_IDS,                /* wait for the id maps, then take on the plan's ids */
	NSBOX_OP_PROPAGATION,        /* make every mount private */
	NSBOX_OP_SCRATCH,            /* a hidden tmpfs that holds the layers of overlays */
	NSBOX_OP_BIND,               /* a clone of the mounts at source */
	NSBOX_OP_DEVICE,             /* the same for a character device of known identity */
	NSBOX_OP_MOUNT,              /* a new file system of type source */
	NSBOX_OP_OVERLAY,            /* an overlay whose layers lie in scratch/layers */
	NSBOX_OP_DIRECTORY,          /* mkdir in the mount of operation parent */
	NSBOX_OP_FILE,               /* create and fill a file there */
	NSBOX_OP_SYMLINK,            /* symlink there, pointing to source */
	NSBOX_OP_READONLY,           /* make the mount of operation parent read-only */
	NSBOX_OP_PIVOT,              /* pivot_root, and detach the host's mounts */
	NSBOX_OP_NO_USER_NAMESPACES, /* none may be made in our user namespace */
	NSBOX_OP_MASK, /* hide target: a file below source, a directory below an empty one */
	NSBOX_OP_PATH  /* no mount: the object at source, for a rule */
};

enum nsbox_op_flag {
	NSBOX_OP_IN_SCRATCH = 1, /* target is relative to scratch, not to the new root */
	NSBOX_OP_OWN = 2, /* a file system of the sandbox's own: mount points may be made in it */
	NSBOX_OP_PLACED = 4, /* target is relative to the mount of parent, where it exists */
	NSBOX_OP_LATE = 8,   /* needs the payload's pid namespace, so it cannot be done ahead */
	NSBOX_OP_SHARED = 16 /* the same for every spawn, and never changed: once for each base */
};

/* A parameter for fsconfig(2); a flag has no value. */
struct nsbox_option {
	const char *key;
	const char *value;
};

struct nsbox_op {
	int32_t code;
	int32_t parent; /* index of the operation whose mount holds target, or -1 */
	uint32_t flags;
	uint32_t mode;       /* permission bits of what is created */
	uint64_t attributes; /* MOUNT_ATTR_* */
	uint64_t device;     /* device number that source must have (DEVICE, MASK, PATH), or 0 */
	int32_t idmap;       /* user namespace fd for MOUNT_ATTR_IDMAP, or -1 */
	uint32_t n_options;
	const struct nsbox_option *options;
	const char *source;
	/*
	 * Relative, normalised, without "..": to the new root (BIND, MOUNT,
	 * OVERLAY), to the mount of parent (DEVICE, DIRECTORY, FILE, SYMLINK).
	 * "" is the new root itself.
	 */
	const char *target;
	const char *layers; /* directory in scratch for the overlay's layers, or NULL */
	const char *content;
	uint64_t content_size;
};

enum nsbox_plan_flag {
	NSBOX_PLAN_PARENT_SOURCES = 1, /* the caller, not the child, opens the sources */
	NSBOX_PLAN_PRIVATE_MEMORY =
		2, /* do not share memory with the child: it joins foreign namespaces */
	NSBOX_PLAN_DENY_SETGROUPS = 4,
	NSBOX_PLAN_CLEAR_GROUPS = 8,
	NSBOX_PLAN_USER_XATTR = 16,  /* overlays keep their marks in user.* attributes */
	NSBOX_PLAN_NEW_KEYRING = 32, /* a session keyring of its own */
	NSBOX_PLAN_KEEP_BOUNDS = 64  /* the caller may not change bounding set and securebits */
};

/* Landlock: rights on the mount (PATH: the object) of an operation, and on all that is below. */
struct nsbox_rule {
	int32_t op;
	uint64_t rights; /* LANDLOCK_ACCESS_FS_* */
};

/* Soft and hard limit of a resource; never more than the caller's own hard limit. */
struct nsbox_rlimit {
	int32_t resource; /* RLIMIT_* */
	uint64_t value;
};

/* What is the same for every spawn of a sandbox. */
struct nsbox_plan {
	uint64_t clone_flags; /* CLONE_NEW* */
	uint64_t capabilities;
	uint32_t flags;
	uint32_t uid;
	uint32_t gid;
	uint32_t n_joins;
	uint32_t n_ops;
	const int32_t *joins;      /* namespace fds for setns(2) */
	const int32_t *join_types; /* CLONE_NEW* of each */
	const char *uid_map;       /* NULL: no map is written */
	const char *gid_map;
	uint32_t host_uid; /* uid and gid as these maps have it */
	uint32_t host_gid;
	const struct nsbox_op *ops;
	uint32_t filter_length;   /* instructions; 0: no filter */
	const void *filter;       /* struct sock_filter, see seccomp(2) */
	uint64_t landlock_rights; /* denied but for the rules; 0: no rules */
	uint64_t landlock_net;    /* LANDLOCK_ACCESS_NET_*, denied for every port */
	uint64_t landlock_scoped; /* LANDLOCK_SCOPE_* */
	uint32_t n_rules;
	const struct nsbox_rule *rules;
	int32_t nice; /* at least this; 0 leaves the caller's */
	uint32_t n_rlimits;
	const struct nsbox_rlimit *rlimits;
	int32_t devpts; /* operation that mounts the devpts for terminals, or -1 */
};

enum nsbox_request_flag {
	NSBOX_REQUEST_SETSID = 1,
	NSBOX_REQUEST_CONTROLLING_TERMINAL = 2, /* make stdin the controlling terminal */
	NSBOX_REQUEST_RESTORE_SIGNALS = 4,      /* SIGPIPE, SIGXFSZ back to SIG_DFL */
	/*
	 * The calling thread waits for the end: SIGKILL when it ends, and not the main one. What
	 * an init says of the start is heard by nsbox_wait(), too.
	 */
	NSBOX_REQUEST_ATTENDED = 8,
	NSBOX_REQUEST_BARE = 16,         /* clone and exec, nothing between */
	NSBOX_REQUEST_INHERIT_FDS = 32,  /* of pass_fds, keep those that are open and inheritable */
	NSBOX_REQUEST_SHIELD = 64,       /* the cgroup may run out of memory: see spawn.c */
	NSBOX_REQUEST_INIT = 128,        /* execute exec_fd: resource limits are not for it */
	NSBOX_REQUEST_LATE_FILTER = 256, /* nor is the filter */
	/*
	 * It will be there for long, and not become the payload: so it gives back at first what
	 * is more than it needs, for which it has a thread, with a pid and in its cgroup.
	 */
	NSBOX_REQUEST_STAYS = 512,
	NSBOX_REQUEST_KEEP_FILTER = 1024, /* it will become the payload: see install_filter() */
	/* Once it is in its cgroups, these are the root of what it can mount, not the init's. */
	NSBOX_REQUEST_OWN_CGROUPS = 2048
};

struct nsbox_watcher;
struct nsbox_view;

/* What is made ahead of the spawns of one sandbox, by a thread of C (spare.c). */
struct nsbox_store;
struct nsbox_maker;

enum nsbox_hit { NSBOX_HIT_NONE, NSBOX_HIT_WALL_TIME, NSBOX_HIT_CPU_TIME };

/*
 * One payload whose limits are watched (watcher.c). The memory is the caller's,
 * and the watcher's too from nsbox_watch_add to nsbox_watch_remove.
 */
struct nsbox_watch {
	struct nsbox_watcher *watcher;
	uint64_t owner;    /* nsbox_this_process() of who watches; 0: not added yet */
	int32_t pidfd;     /* of the payload, a copy of its own; -1 until it runs */
	int32_t cgroup;    /* directory fd of a cgroup to kill, or -1; a copy once it is added */
	int32_t usage;     /* fd of cpu.stat or cpuacct.usage, or -1; likewise */
	int32_t outlived;  /* other processes may outlive the payload: kill the cgroup then */
	int64_t wall_time; /* nanoseconds, or 0 for no limit */
	int64_t cpu_time;  /* nanoseconds, or 0 for no limit */
	int64_t cpus;      /* processors on which the payload can run at the same time */
	int32_t hit;       /* enum nsbox_hit: the limit that it was killed for */
	int64_t deadline;  /* of wall_time, on CLOCK_MONOTONIC */
	int64_t next;      /* when to look at it again */
	int32_t listed;    /* it has been added, and not removed */
	struct nsbox_watch *link;
};

/* What differs from spawn to spawn. */
struct nsbox_request {
	const char *const *executables; /* candidates for execve, tried in order */
	const char *const *argv;
	const char *const *envp;
	const char *cwd;       /* inside */
	int32_t stdio[3];      /* fds for 0, 1, 2; -1 leaves the caller's */
	int32_t umask;         /* -1 leaves the caller's */
	int32_t process_group; /* to join; 0: a new one; -1 leaves the caller's */
	/* Ids inside, instead of the plan's; -1 leaves those. */
	int64_t uid;
	int64_t gid;
	int32_t n_groups;
	uint32_t flags;
	const uint32_t *groups;
	uint32_t n_pass_fds;
	const int32_t *pass_fds; /* sorted, all > 2 */
	int32_t cgroup;          /* directory fd of the v2 cgroup to be born in, or -1 */
	uint32_t n_tasks;
	const int32_t *tasks;          /* fds of the "tasks" files of v1 cgroups to join */
	struct nsbox_watch *watch;     /* NULL: nothing to watch */
	int32_t exec_fd;               /* an nsbox-init; with NSBOX_REQUEST_INIT one of pass_fds */
	struct nsbox_store *store;     /* NULL: nothing is made ahead for it */
	struct nsbox_maker *maker;     /* NULL: nothing is made ahead, or no descriptor is named */
	int32_t layers;                /* socket that the layers of overlays are sent to, or -1 */
	const struct nsbox_view *view; /* by an init: what must still hold, or NULL */
	uint32_t patience; /* by an init: milliseconds that its answers may take; 0: a minute */
	/* By an init: limits of this process, besides the plan's; the stricter ones hold. */
	int32_t nice;
	uint32_t n_rlimits;
	const struct nsbox_rlimit *rlimits;
	/*
	 * Where the master of a new terminal goes, which replaces each -1 of stdio; NULL: none.
	 * It is the receiver's, also after a failure.
	 */
	int32_t *terminal;
	uint16_t rows;
	uint16_t columns;
};

/* A child's end, as waitid(2) and getrusage(2) tell it. */
struct nsbox_exit {
	int32_t code;   /* CLD_EXITED, CLD_KILLED, CLD_DUMPED; 0: still running */
	int32_t status; /* exit status or signal */
	int64_t user_usec;
	int64_t system_usec;
	int64_t voluntary_switches;
	int64_t involuntary_switches;
};

struct nsbox_lines; /* lines.c */

/*
 * Whole after nsbox_spawn returns; step tells success from failure. What is below
 * the line belongs to process.c, whose functions any number of threads may call.
 */
struct nsbox_result {
	int32_t pid;   /* in the caller's pid namespace */
	int32_t pidfd; /* owned by this struct; -1 once the end is known and nobody waits */
	int32_t step;
	int32_t error; /* errno */
	int32_t index; /* operation, join or fd that failed, or -1 */
	/* -- */
	int32_t report; /* channel over which an init tells the end; -1: it is our own child */
	int32_t killed; /* by this process */
	int32_t lost;   /* the init has ended, tells nonsense, or nothing */
	/* An init that ends with it, and is our own child: its pidfd and control socket; or -1. */
	int32_t init;
	int32_t control;
	/*
	 * Of an attended start: what has been heard of it, the pidfd of the init that was asked, or
	 * the control socket of the one that becomes the process; or -1.
	 */
	int32_t heard; /* enum heard */
	int32_t starter;
	int32_t starting;
	/* Of one that was started over a line: its second socket, or -1; and where it belongs. */
	int32_t names;
	int32_t is_free; /* the line is */
	struct nsbox_lines *lines;
	uint32_t stops; /* how many times in a row that init has been found stopped */
	uint64_t owner; /* nsbox_this_process() of who has spawned it */
	uint32_t lock;
	uint32_t waiters;
	/* CLOCK_MONOTONIC, ns: the beginning, and when it was first seen to have ended, or 0. */
	int64_t started_at;
	int64_t ended_at;
	struct nsbox_exit end;
};

/*
 * The dumpable mark of the calling process (PR_GET_DUMPABLE), while children
 * that change it are on their way. One for each process, zero at first.
 */
struct nsbox_dumpable {
	uint32_t lock;
	uint32_t count;
	uint32_t builders; /* how many of them need no mark: see spawn.c */
	uint32_t guards;   /* how many there have been */
	int32_t before;
};

/* dumpable: NULL if the child keeps the caller's ids, or does not share its memory. */
int nsbox_spawn(const struct nsbox_plan *plan, const struct nsbox_request *request,
		struct nsbox_dumpable *dumpable, struct nsbox_result *result);
int nsbox_dumpable_wanted(struct nsbox_dumpable *dumpable);
int nsbox_wait(struct nsbox_result *child, int timeout);
/* Once it has ended: exit status, or -N for signal N, and nanoseconds since the beginning. */
int nsbox_returncode(const struct nsbox_result *child);
int64_t nsbox_wall_time(const struct nsbox_result *child);
int nsbox_signal(struct nsbox_result *child, int sig);
int nsbox_discard(struct nsbox_result *child);
int nsbox_release(struct nsbox_result *child);

enum nsbox_start_mode {
	NSBOX_START_NORMAL,
	NSBOX_START_LAST,   /* the init ends with it */
	NSBOX_START_REPLACE /* the init becomes it */
};

/*
 * An init in a world of its own (control.c). Any number of threads may use it, but the start with
 * which that ends (LAST, REPLACE) is alone.
 */
struct nsbox_control {
	int32_t socket;   /* -1 once it is closed, or the last process's */
	int32_t listener; /* of its filter: NSBOX_REQUEST_KEEP_FILTER; or -1 */
	/* -- */
	uint64_t owner; /* as in nsbox_result */
	uint32_t lock;
	uint32_t users;
	int32_t closed;
	struct nsbox_result *init;
	struct nsbox_lines *lines; /* NULL until one is needed */
};

/*
 * Spawn an init, whose record is control->init: the request with exec_fd, an nsbox-init,
 * for a program, and the control for its streams. With `known` the Landlock rules are also
 * for the streams and pass_fds of the request, which the init does not keep.
 */
int nsbox_control_prepare(const struct nsbox_plan *plan, const struct nsbox_request *request,
			  int known, struct nsbox_dumpable *dumpable,
			  struct nsbox_control *control);
/* As nsbox_spawn, with an init that ends with the payload; the request has its exec_fd. */
int nsbox_spawn_with_init(const struct nsbox_plan *plan, const struct nsbox_request *request,
			  struct nsbox_dumpable *dumpable, struct nsbox_result *result);
/*
 * As nsbox_spawn, by the init; of the plan it takes the limits and the filter. An attended
 * start may return before it is known what has become of it: step says so when nsbox_wait()
 * returns 1, and pid is 0 until then if the process is a new one.
 */
int nsbox_control_start(struct nsbox_control *control, const struct nsbox_plan *plan,
			const struct nsbox_request *request, int mode, struct nsbox_result *result);
/*
 * openat2(2) by the init, into *fd, within so many milliseconds (0: a minute); 0 or -errno,
 * -ESRCH without an init.
 */
int nsbox_control_openat(struct nsbox_control *control, const char *path, uint64_t flags,
			 uint64_t mode, uint32_t patience, int32_t *fd);
int nsbox_control_close(struct nsbox_control *control);

/*
 * Which process this is: a number that it has, and none has that it is a fork of (forks.c). Whoever
 * owns something notes it, and in a fork knows by it that this is a copy.
 */
uint64_t nsbox_this_process(void);
/*
 * From now on a fork by a bare clone(2) has another number, too, and one by fork(3) waits until
 * nothing is half sent. *process is where the number is, or 0 as long as it is not known. -errno;
 * without effect the second time.
 */
int nsbox_guard_forks(const uint64_t **process);

/*
 * The layers of an overlay, as O_PATH descriptors: the upper one, then the lower ones,
 * topmost first. An overlay with many has several of these, in order.
 */
struct nsbox_layers {
	int32_t op; /* index of the overlay's operation */
	uint32_t count;
	int32_t fds[128];
};

int nsbox_receive_layers(int socket, struct nsbox_layers *layers);
int nsbox_release_layers(struct nsbox_layers *layers);
/* open(2), close-on-exec, into *fd, which is never lost on the way to Python; 0 or -errno. */
int nsbox_open(const char *path, int flags, int32_t *fd);
/* The same by openat2(2). */
int nsbox_open_within(int dirfd, const char *path, int flags, uint64_t mode, uint64_t resolve,
		      int32_t *fd);
/*
 * The namespace of a process, CLONE_NEWNS or CLONE_NEWIPC, by its pidfd: ENOTTY before Linux
 * 6.11, EACCES if the process is not the caller's to inspect (ptrace(2)).
 */
int nsbox_open_namespace(int pidfd, uint64_t nstype, int32_t *fd);
/* Close *fd, and set it to -1; without effect the second time. */
int nsbox_close(int32_t *fd);
/* Duplicate fd, close-on-exec, into *copy. 0 or -errno. */
int nsbox_dup(int fd, int32_t *copy);
/* Which of the descriptors is the first of a directory: its index; n for none, or -errno. */
int nsbox_find_directory(const int32_t *fds, uint32_t n);

/*
 * Several small files in one call (files.c). Write: count paths and texts by turns, *done
 * of them when one fails. Read: each text ends with a NUL, and is empty if its file cannot
 * be read; returns the size of them all, or -errno if there are no descriptors left. Open,
 * close-on-exec: files->count of them when one fails. Close: without effect the second time.
 */
struct nsbox_files {
	uint32_t count;
	int32_t fds[16];
};
int nsbox_write_files(const char *items, uint32_t count, uint32_t *done);
int nsbox_read_files(const char *paths, uint32_t count, char *buffer, uint32_t size);
int nsbox_open_files(const char *paths, uint32_t count, int flags, struct nsbox_files *files);
int nsbox_close_files(struct nsbox_files *files);

/* What a thread waits for that works in the background (bell.c). */
struct nsbox_bell {
	int64_t delay; /* nanoseconds until it is heard */
	int64_t last;  /* when somebody has rung; 0: it has been heard since */
	int32_t fd;    /* -1 once it is closed */
	uint32_t lock;
	uint32_t urgent; /* to somebody who has */
};
int nsbox_bell_open(struct nsbox_bell *bell);
int nsbox_bell_ring(struct nsbox_bell *bell, int urgent);
int nsbox_bell_await(struct nsbox_bell *bell, int timeout);
int nsbox_bell_close(struct nsbox_bell *bell);

/* What a path leads to. */
struct nsbox_identity {
	uint64_t inode;
	uint64_t mount;
	uint32_t major;
	uint32_t minor;
};

/* What a caller sees of the host (view.c); paths and seen are arrays of the owner's. */
struct nsbox_view {
	const char *const *paths;
	struct nsbox_identity *seen;
	uint32_t n_paths;
	uint32_t uid;
	uint32_t gid;
	int32_t root;  /* directory fd that the paths begin at, and stay below; -1: the caller's */
	int32_t table; /* /proc/thread-self/mountinfo, of the owner's too; -1 at first */
	const struct nsbox_view *next; /* one that has to hold with it; or NULL */
};
int nsbox_view_take(struct nsbox_view *view);
int nsbox_view_close(struct nsbox_view *view);

/* The watcher of this process, or NULL without memory; one is enough, and is never freed. */
struct nsbox_watcher *nsbox_watcher_create(void);
/* In a fork, which has no copy of the thread: close what belongs to it. */
void nsbox_watcher_forget(struct nsbox_watcher *watcher);
int nsbox_watch_add(struct nsbox_watch *watch);
int nsbox_watch_remove(struct nsbox_watch *watch);
/* Send SIGKILL to everything in a cgroup, frozen or not. */
int nsbox_cgroup_kill(int directory);

/* The thread that makes things ahead: one is enough, and is never freed. NULL without memory. */
struct nsbox_maker *nsbox_maker_create(void);
/* Before a fork, and at the end: finish what is at hand, and end the thread until resumed. */
int nsbox_maker_stop(struct nsbox_maker *maker);
int nsbox_maker_resume(struct nsbox_maker *maker);
/* In a fork: close the copies of all that was made ahead. */
int nsbox_maker_forget(struct nsbox_maker *maker);
/* Wait until the thread has nothing to do. */
int nsbox_maker_settle(struct nsbox_maker *maker);
/* Let go of all that was made ahead; it will be made anew. Returns when nothing is left. */
int nsbox_maker_drain(struct nsbox_maker *maker);
/* Empty at first; it keeps a copy of the plan. dumpable: as for nsbox_spawn. */
struct nsbox_store *nsbox_store_create(struct nsbox_maker *maker, const struct nsbox_plan *plan,
				       struct nsbox_dumpable *dumpable);
/* Make ahead now what the next spawn can use; returns how many can. Only for who measures. */
int nsbox_store_fill(struct nsbox_store *store);
int nsbox_store_destroy(struct nsbox_store *store);

/* A cgroup that is made ahead (cgroup.c), as lists of strings, each with a NUL at its end. */
struct nsbox_cgroup_form {
	uint32_t n_directories;
	uint32_t n_settings;  /* a path and a text each */
	uint32_t n_entrances; /* paths of files to write to */
	uint32_t n_figures;   /* paths of files to read */
};
struct nsbox_cgroup;

/* Whose it is; all zero at first. */
struct nsbox_cgroup_holder {
	struct nsbox_maker *maker;
	struct nsbox_cgroup *cgroup;
	uint64_t owner; /* as in nsbox_result: in a fork nothing has an effect */
};

/* Order one: the lists of the form one after the other. 0 or -errno, EAGAIN if there are many. */
int nsbox_cgroup_order(struct nsbox_maker *maker, const struct nsbox_cgroup_form *form,
		       const char *text, uint32_t size, struct nsbox_cgroup_holder *holder);
/* Wait until it is there, and tell its files, which stay its own. 0 or -errno. */
int nsbox_cgroup_take(struct nsbox_cgroup_holder *holder, struct nsbox_files *entrances,
		      struct nsbox_files *figures);
int nsbox_cgroup_close_entrances(struct nsbox_cgroup_holder *holder);
/* As nsbox_read_files. */
int nsbox_cgroup_read(struct nsbox_cgroup_holder *holder, char *buffer, uint32_t size);
/* Have it removed by the thread, which it belongs to then; false if there can be none. */
int nsbox_cgroup_retire(struct nsbox_cgroup_holder *holder);
/* Remove it now, or as soon as that can be done. */
int nsbox_cgroup_release(struct nsbox_cgroup_holder *holder);
/* Return when nothing is left of those that were retired, but what cannot be removed. */
int nsbox_maker_tidy(struct nsbox_maker *maker);
/*
 * Get the directories of one that could not be removed, which are the caller's then. Returns
 * their size, 0 if there is none; with less room nothing is done.
 */
int nsbox_maker_left(struct nsbox_maker *maker, char *buffer, uint32_t size);

int nsbox_namespace_create(uint64_t nstype, int owner, const char *uid_map, const char *gid_map,
			   int deny_setgroups, struct nsbox_result *result);

/* AT_SECURE of getauxval(3): is the program more privileged than who started it? */
int nsbox_secure_execution(void);

/* The version of Landlock, or -errno: ENOSYS, or EOPNOTSUPP if it is switched off. */
int nsbox_landlock_abi(void);

/* System calls one to one; see src/nsbox/lowlevel.py. */
int nsbox_unshare(uint64_t flags);
int nsbox_setns(int fd, int nstype);
int nsbox_pivot_root(const char *new_root, const char *put_old);
int nsbox_mount(const char *source, const char *target, const char *filesystemtype,
		uint64_t mountflags, const char *data);
int nsbox_umount2(const char *target, int flags);
int nsbox_open_tree(int dirfd, const char *path, uint32_t flags);
int nsbox_move_mount(int from_dirfd, const char *from_path, int to_dirfd, const char *to_path,
		     uint32_t flags);
int nsbox_mount_setattr(int dirfd, const char *path, uint32_t flags, uint64_t attr_set,
			uint64_t attr_clr, uint64_t propagation, int userns_fd);
int nsbox_openat2(int dirfd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve);
int nsbox_fsopen(const char *fsname, uint32_t flags);
int nsbox_fsconfig(int fd, uint32_t cmd, const char *key, const char *value, int aux);
int nsbox_fsmount(int fd, uint32_t flags, uint32_t attr_flags);
int nsbox_pidfd_open(int pid, uint32_t flags);
int nsbox_pidfd_send_signal(int pidfd, int sig, uint32_t flags);
int nsbox_close_range(uint32_t first, uint32_t last, uint32_t flags);
int nsbox_fallocate(int fd, int mode, int64_t offset, int64_t length);
int64_t nsbox_filesystem(int fd); /* its type by fstatfs(2), *_MAGIC */
int nsbox_sethostname(const char *name, uint64_t length);
int nsbox_prctl(int option, uint64_t argument);

#endif
