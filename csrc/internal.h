/* internal.h - private to csrc/: raw system calls and the pieces both halves of a spawn share. */
#ifndef NSBOX_INTERNAL_H
#define NSBOX_INTERNAL_H

#define _GNU_SOURCE /* before any libc header: O_PATH, AT_EMPTY_PATH, CLONE_* */

#include "nsbox.h"

#include <asm/unistd.h>
#include <errno.h>
#include <linux/types.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>

/*
 * System calls newer than some build hosts' headers. From 424 on the numbers
 * are the same on every architecture (asm-generic/unistd.h).
 */
#ifndef __NR_pidfd_send_signal
#define __NR_pidfd_send_signal 424
#endif
#ifndef __NR_open_tree
#define __NR_open_tree 428
#define __NR_move_mount 429
#define __NR_fsopen 430
#define __NR_fsconfig 431
#define __NR_fsmount 432
#endif
#ifndef __NR_pidfd_open
#define __NR_pidfd_open 434
#define __NR_clone3 435
#endif
#ifndef __NR_close_range
#define __NR_close_range 436
#endif
#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE (1U << 1)
#endif
#ifndef __NR_openat2
#define __NR_openat2 437
#endif
#ifndef __NR_mount_setattr
#define __NR_mount_setattr 442
#endif
#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE (1U << 1)
#endif

/*
 * A raw system call: the result or -errno. Not libc's syscall(): that stores
 * errno in thread-local storage, and a child made with CLONE_VM shares the
 * thread-local storage of the thread that cloned it, while both run.
 */
#if defined(__x86_64__)
static inline long raw_syscall6(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long ret;
	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}
#elif defined(__aarch64__)
static inline long raw_syscall6(long nr, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;
	__asm__ volatile("svc #0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory");
	return x0;
}
#else
#error "nsbox supports x86_64 and aarch64"
#endif

#define SYS_PICK(_0, _1, _2, _3, _4, _5, _6, name, ...) name
#define sys0(nr) raw_syscall6(nr, 0, 0, 0, 0, 0, 0)
#define sys1(nr, a) raw_syscall6(nr, (long)(a), 0, 0, 0, 0, 0)
#define sys2(nr, a, b) raw_syscall6(nr, (long)(a), (long)(b), 0, 0, 0, 0)
#define sys3(nr, a, b, c) raw_syscall6(nr, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define sys4(nr, a, b, c, d) raw_syscall6(nr, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define sys5(nr, a, b, c, d, e)                                                                    \
	raw_syscall6(nr, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define sys6(nr, a, b, c, d, e, f)                                                                 \
	raw_syscall6(nr, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
/* sys(nr, ...): as many arguments as given. */
#define sys(...) SYS_PICK(__VA_ARGS__, sys6, sys5, sys4, sys3, sys2, sys1, sys0, )(__VA_ARGS__)

enum { SIGNAL_COUNT = 64 };
typedef uint64_t signal_mask; /* the kernel's sigset_t: one bit for each signal */

/*
 * A clone whose child calls function(argument). The exit signal is 0: until its
 * exec, which makes it SIGCHLD, the child is our own affair, invisible to the
 * program's SIGCHLD handler and to its waitpid(-1).
 */
struct clone_call {
	uint64_t flags;
	int32_t *pid;        /* where the kernel stores the pid, or NULL (clone3 only) */
	int *pidfd;          /* where the pidfd goes, or NULL for none */
	int cgroup;          /* v2 cgroup to be born in (clone3 only), or -1 */
	uint32_t *child_tid; /* cleared and woken when the child gives up this memory, or NULL */
	char *stack;
	size_t stack_size;
	void (*function)(void *); /* must not return */
	void *argument;
	bool kept_handlers; /* set if the child must reset its signal handlers itself */
	bool outside;       /* set if the child must enter the cgroup itself */
};

/*
 * The thread whose child the payload is, by the end of which it dies. Either it is known
 * to stay as long as it should, or the child has to wait until such a one has adopted it
 * (adopt.c), or it does not stay, and the payload lives on without it.
 */
enum parent { PARENT_STAYS, PARENT_AWAITED, PARENT_LEAVES };

/* How often, and how many times in a row, somebody is found stopped before he is given up. */
enum { STOP_TICK = 100 * 1000 * 1000 /* ns */, STOPS = 5 };

enum { ERRAND_STACK_SIZE = 16 * 1024 };

/* States of spawn.launcher; the kernel sets LAUNCHER_ENDED (CLONE_CHILD_CLEARTID). */
enum { LAUNCHER_ENDED, LAUNCHER_RUNS, LAUNCHER_HAS_CLONED };

/*
 * How much of the work a child does: all of it, in a copy of the host's mount namespace
 * or of a base; or part of it ahead (ahead.c), the base of a store or a spare set of
 * namespaces; or the rest, with a spare.
 */
enum stage { STAGE_WHOLE, STAGE_COPY, STAGE_BASE, STAGE_AHEAD, STAGE_REST };

/* The descriptors of a spare; those of a base are two of them. */
enum {
	SPARE_USER,    /* namespaces; -1: the plan wants no new one of that kind */
	SPARE_UTS,     /* ... */
	SPARE_IPC,     /* ... */
	SPARE_NET,     /* ... */
	SPARE_SOURCES, /* mount namespace with the sources and a procfs, a copy of the base */
	SPARE_ROOT,    /* mount namespace with the finished root */
	SPARE_PROC,    /* mount point of the procfs in it, or -1 */
	SPARE_RULESET, /* Landlock rules on its mounts, or -1 */
	SPARE_COUNT
};

struct spare {
	int fds[SPARE_COUNT];
	struct spare *next; /* of those in use: struct nsbox_maker */
};

/* What was at the path of a source when a base was made. */
struct identity {
	uint64_t inode;
	uint64_t mount;
	uint32_t major, minor;
};

/* States of spawn.go, on which the child waits for its id maps. */
enum { GO_WAIT, GO_RUN, GO_ABORT };

/*
 * One spawn in progress: what the two halves (or three, with a launcher) read
 * and write. It lies in memory that all of them share.
 */
struct spawn {
	const struct nsbox_plan *plan;
	const struct nsbox_request *request;
	struct nsbox_result result;
	signal_mask mask; /* the caller's, for the payload */
	int caller_pidfd; /* becomes readable when the caller dies */
	uint32_t go;
	uint32_t alive;        /* cleared by the kernel when the child execs or ends */
	uint32_t stops;        /* how many times in a row the child has been found stopped */
	bool executing;        /* the set-up is done: what ends the child now ends the payload */
	uint64_t parent_flags; /* CLONE_PARENT in a launcher */
	uint64_t clone_flags;  /* CLONE_NEW* of the child */
	bool shielded;         /* the launcher clones with CLONE_VFORK */
	uint32_t parent;       /* enum parent */
	char *errand_stack;
	uint32_t launcher;
	struct clone_call call;
	int *sources;       /* for each operation: fd of its detached source, or -1 */
	int *mounts;        /* for each operation: fd of the mount it made, or -1 */
	int64_t *mount_ids; /* for each operation: its mount's id once asked for, or 0 */
	bool *own;          /* for each operation: mount points may be made in its mount */
	int root;           /* the new root */
	int scratch;
	int queues; /* the file system of POSIX message queues, for a rule of Landlock; or -1 */
	enum stage stage;
	struct nsbox_dumpable *dumpable; /* NULL: not at stake */
	bool restored;                   /* by a builder, when it had its ids */
	uint32_t n_joins;                /* the launcher's, as in struct nsbox_plan */
	const int32_t *joins;
	const int32_t *join_types;
	int32_t spare_joins[SPARE_COUNT];
	int32_t spare_types[SPARE_COUNT];
	struct spare spare;                /* made by this child, or used by it */
	int transfer;                      /* socket over which the caller gets what was made */
	const struct identity *identities; /* STAGE_BASE: what each source has to be */
	int terminal;                      /* the child's: slave of a terminal of its own, or -1 */
	int32_t terminal_sockets[2];       /* over which its master goes, from [1] to [0]; or -1 */
	/* Of a process that an init starts (init.c): */
	int32_t *received; /* for each of pass_fds: where its file is; NULL: there already */
	int channel;       /* a socket to keep until the exec, above all pass_fds; or -1 */
};

/*
 * Of an attended start: nothing; that it has begun, so who it is, but not if it will fail; all
 * (as of starts that are not attended).
 */
enum heard { HEARD_ALL, HEARD_NOTHING, HEARD_HERE };

/* What a builder leaves to the spawn that uses its spare. */
static inline bool is_for_later(const struct spawn *spawn, const struct nsbox_op *op)
{
	return spawn->stage == STAGE_AHEAD && op->flags & NSBOX_OP_LATE;
}

/* Record the first failure and return its -errno, for `return fail(...)`. */
int fail(struct spawn *spawn, enum nsbox_step step, int index, long error);

/* child.c: runs in the child, never returns. */
__attribute__((noreturn)) void child_main(void *spawn);
void follow_request(struct spawn *spawn);
int open_sources(struct spawn *spawn);
bool has_source(const struct nsbox_op *op);
void await_maps(struct spawn *spawn);
void exit_if_orphaned(const struct spawn *spawn);
int take_ids(struct spawn *spawn);
int die_with_caller(struct spawn *spawn);
/* privileges.c */
int limit_user_namespace(struct spawn *spawn, int index);
int forbid_new_privileges(struct spawn *spawn);
int drop_privileges(struct spawn *spawn);
int install_filter(struct spawn *spawn);
/* landlock.c */
int open_path(struct spawn *spawn, uint32_t index);
void open_queues(struct spawn *spawn);
int make_ruleset(struct spawn *spawn);
int restrict_self(struct spawn *spawn);
/* ahead.c */
__attribute__((noreturn)) void base_main(void *spawn);
__attribute__((noreturn)) void ahead_main(void *spawn);
int finish_root(struct spawn *spawn);
uint64_t namespace_flag(int kind);
/* adopt.c */
enum parent choose_parent(const struct nsbox_request *request);
long clone_adopted(struct spawn *spawn, struct clone_call *call);
void await_parent(struct spawn *spawn);
/* limits.c: in the child */
int enter_cgroups(struct spawn *spawn);
int set_limits(struct spawn *spawn);
void ask_for_short_turns(void);
/* process.c */
struct rusage;
struct nsbox_exit exit_of(const siginfo_t *info, const struct rusage *usage);
int pid_of(int pidfd);
bool is_reaped(int pidfd);
bool is_readable(int fd);
int borrow_pidfd(struct nsbox_result *child);
void give_back_pidfd(struct nsbox_result *child);
int take_pidfd(struct nsbox_result *child, struct nsbox_exit *end);
/* owner: nsbox_this_process(), or 0 in an init, whose children nobody inherits. */
struct nsbox_result no_result(uint64_t owner);
/* messages.c */
/* An nsbox-init that is asked for something, by its pidfd, and until when it may answer. */
struct peer {
	int pidfd;
	int64_t deadline; /* on CLOCK_MONOTONIC */
};
int await_event(int socket, short event, const struct peer *init);
bool is_stopped(int init);
/* forks.c: while the gate is closed no fork begins. */
void close_gate(void);
void open_gate(void);
/* lines.c */
void let_go_of_line(struct nsbox_result *child, bool foreign);
/* start.c */
bool hear_name(struct nsbox_result *child);
void hear_replacement(struct nsbox_result *child, bool ended);
void give_up_start(struct nsbox_result *child, int err);
int hear_end(struct nsbox_result *child);
/* terminal.c */
int prepare_terminal(struct spawn *spawn);
int open_terminal(struct spawn *spawn);
int take_terminal(struct spawn *spawn);
void close_terminal_sockets(struct spawn *spawn);
int open_slave_of(int master, const struct nsbox_request *request);
/* watcher.c */
int watch_begin(struct nsbox_watch *watch, int pidfd);
/* view.c: whether the calling thread sees the same, as of the views behind it. */
int view_holds(const struct nsbox_view *view);
/*
 * files.c: as nsbox_open_files, to read, but those that this host does not have stay closed; and
 * as nsbox_read_files.
 */
int open_figures(const char *paths, uint32_t count, struct nsbox_files *files);
int read_opened(const struct nsbox_files *files, char *buffer, uint32_t size);
/* layers.c */
int hand_out_layers(struct spawn *spawn, uint32_t index);
/* mounts.c */
int open_source(struct spawn *spawn, uint32_t index);
int run_operations(struct spawn *spawn);

/* spare.c */
bool maker_has(struct nsbox_maker *maker, int fd);
long check_open(const struct nsbox_request *request, int fd);
enum stage store_take(struct nsbox_store *store, struct spare *spare, bool by_launcher);
void store_return(struct nsbox_store *store, struct spare *spare);

/* spawn.c */
void await_exec(struct spawn *spawn, uint32_t *alive);
void kill_if_stopped(const int32_t *who, uint32_t *stops);
int pid_in_fdinfo(int pidfd);
struct spawn *allocate_spawn(const struct nsbox_plan *plan, size_t *size);
int open_caller_pidfd(struct spawn *spawn);
void start(struct spawn *spawn, struct nsbox_dumpable *dumpable);
void look_at_dumpable(struct spawn *spawn);
void restore_dumpable(struct spawn *spawn);
void discard_child(struct spawn *spawn);
/* The step that failed, with -errno in *err, or NSBOX_STEP_NONE */
enum nsbox_step write_id_maps(const struct nsbox_plan *plan, int pid, int *err);

/* syscalls.c */
long clone_and_call(struct clone_call *call);
long clone_by_clone(struct clone_call *call);
long clone_thread(char *stack, size_t stack_size, uint32_t *running, void (*function)(void *),
		  void *argument);
long futex_wait(uint32_t *word, uint32_t value);
long futex_wait_for(uint32_t *word, uint32_t value, uint64_t nanoseconds);
long futex_wake(uint32_t *word);
int create_thread(pthread_t *thread, void *(*function)(void *), void *argument);
void lock(uint32_t *word);
void unlock(uint32_t *word);
long wait_for(int idtype, int id, int options);
__attribute__((noreturn)) void exit_process(int status);
void reset_signals(void);
int64_t monotonic_time(void); /* nanoseconds */
int loopback_up(struct nsbox_result *result);
int lift(int fd);
long send_descriptor(int socket, int fd);
int receive_descriptor(int socket);
int open_beneath(int dirfd, const char *path, uint64_t flags, uint64_t resolve);
size_t format_uint(char *buffer, uint64_t value);
int write_file(int dirfd, const char *path, const char *text, size_t size);
size_t string_length(const char *text);

/* A system call that a signal may cut short: our signals are blocked, but a debugger's are not. */
#define RETRY(call)                                                                                \
	__extension__({                                                                            \
		long retry_;                                                                       \
		do {                                                                               \
			retry_ = (call);                                                           \
		} while (retry_ == -EINTR);                                                        \
		retry_;                                                                            \
	})

#endif
