/*
 * spawn.c - the caller's half of a spawn.
 *
 *   caller                        child (child.c)
 *   ------                        ---------------
 *   clone3(CLONE_VM | CLONE_NEW*) ->  opens sources, brings up lo, ...
 *   writes the id maps; go        ->  takes on its ids, builds and enters the root
 *   waits until alive is 0        <-  execve, or exit with a record
 *
 * The child shares the caller's memory (the cost of a copy grows with the
 * caller) but not its stack, and CLONE_VFORK is not used: a suspended caller
 * could not write the maps. The kernel clears `alive` when the child lets go
 * of the memory (CLONE_CHILD_CLEARTID), so neither success nor failure needs a
 * pipe, whose ends other threads' children could inherit and keep open.
 *
 * A plan that joins namespaces goes through a launcher, because setns(2) must
 * not change the calling thread:
 *
 *   caller -> launcher: setns...; clone3(CLONE_PARENT | ...) -> child
 *
 * The launcher shares the caller's descriptors, so that the child's pidfd is
 * the caller's, and the child is the caller's child. Where the joined
 * namespaces let others see or trace the newcomer, the launcher has a copy of
 * the memory instead of sharing it (NSBOX_PLAN_PRIVATE_MEMORY), and is not
 * dumpable: only someone privileged over the caller itself could look inside.
 *
 * Parent and launcher use raw system calls too: the child has the calling
 * thread's thread-local storage.
 */
#include "internal.h"

#include <fcntl.h>
#include <linux/mman.h>
#include <linux/prctl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

enum { STACK_SIZE = 128 * 1024 };

/* ---- memory of a spawn ---------------------------------------------- */

static size_t aligned(size_t size)
{
	return (size + 4095) & ~(size_t)4095;
}

/* One mapping: struct spawn, its arrays, the stacks (child, launcher). */
static struct spawn *allocate(const struct nsbox_plan *plan, size_t *size)
{
	size_t per_op = sizeof(uint64_t) + 2 * sizeof(int) + sizeof(bool);
	size_t head = aligned(sizeof(struct spawn) + plan->n_ops * per_op);
	int sharing = plan->flags & NSBOX_PLAN_PRIVATE_MEMORY ? MAP_SHARED : MAP_PRIVATE;

	*size = head + 2 * STACK_SIZE;
	long address = sys(__NR_mmap, 0, *size, PROT_READ | PROT_WRITE,
			   sharing | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (address < 0 && address > -4096)
		return NULL;

	struct spawn *spawn = (struct spawn *)address;
	spawn->mount_ids = (uint64_t *)(spawn + 1);
	spawn->sources = (int *)(spawn->mount_ids + plan->n_ops);
	spawn->mounts = spawn->sources + plan->n_ops;
	spawn->own = (bool *)(spawn->mounts + plan->n_ops);
	spawn->call.stack = (char *)address + head;
	spawn->call.stack_size = STACK_SIZE;
	for (uint32_t i = 0; i < plan->n_ops; i++)
		spawn->sources[i] = spawn->mounts[i] = -1;
	return spawn;
}

/* ---- id maps -------------------------------------------------------- */

/* Write /proc/<pid>/<name>. */
static int write_proc(int pid, const char *name, const char *text)
{
	static const char prefix[] = "/proc/";
	char path[64];
	size_t length = sizeof prefix - 1;

	memcpy(path, prefix, length);
	length += format_uint(path + length, (uint64_t)pid);
	path[length++] = '/';
	memcpy(path + length, name, string_length(name) + 1);
	return write_file(AT_FDCWD, path, text, string_length(text));
}

/* user_namespaces(7): "deny" must come before gid_map for a writer without CAP_SETGID. */
enum nsbox_step write_id_maps(const struct nsbox_plan *plan, int pid, int *err)
{
	if (!plan->uid_map)
		return NSBOX_STEP_NONE;
	if (plan->flags & NSBOX_PLAN_DENY_SETGROUPS) {
		*err = write_proc(pid, "setgroups", "deny");
		if (*err < 0)
			return NSBOX_STEP_SETGROUPS_DENY;
	}
	*err = write_proc(pid, "uid_map", plan->uid_map);
	if (*err < 0)
		return NSBOX_STEP_UID_MAP;
	*err = write_proc(pid, "gid_map", plan->gid_map);
	return *err < 0 ? NSBOX_STEP_GID_MAP : NSBOX_STEP_NONE;
}

/* ---- the child ------------------------------------------------------ */

static void let_go(struct spawn *spawn, uint32_t state)
{
	__atomic_store_n(&spawn->go, state, __ATOMIC_RELEASE);
	futex_wake(&spawn->go);
}

/* Clone the child, and wait until it has become the payload or recorded why not. */
static void start_child(struct spawn *spawn)
{
	struct clone_call *call = &spawn->call;
	int err = 0;

	call->flags = CLONE_VM | spawn->parent_flags | spawn->plan->clone_flags;
	call->pidfd = &spawn->result.pidfd;
	call->child_tid = &spawn->alive;
	call->function = child_main;
	call->argument = spawn;
	spawn->alive = 1;
	long pid = clone_and_call(call);
	if (pid < 0) {
		spawn->alive = 0;
		fail(spawn, NSBOX_STEP_CLONE, -1, pid);
		return;
	}
	spawn->result.pid = (int32_t)pid;
	enum nsbox_step step = write_id_maps(spawn->plan, (int)pid, &err);
	let_go(spawn, step ? GO_ABORT : GO_RUN);
	while (__atomic_load_n(&spawn->alive, __ATOMIC_ACQUIRE))
		futex_wait(&spawn->alive, 1);
	/* The child's own record comes first: its end is why a map could not be written. */
	if (spawn->result.step)
		return;
	if (step)
		fail(spawn, step, -1, err);
	else if (!spawn->executing)
		fail(spawn, NSBOX_STEP_KILLED, -1, -ESRCH);
}

/* ---- the launcher --------------------------------------------------- */

/*
 * In two passes: whoever is privileged here can join everything and enters the
 * user namespace last; a plain user gets the right to join the others by
 * entering it.
 */
static int join_namespaces(struct spawn *spawn)
{
	const struct nsbox_plan *plan = spawn->plan;
	uint64_t joined = 0;
	int err = 0, failed = -1;

	for (int pass = 0; pass < 2; pass++) {
		failed = -1;
		for (uint32_t i = 0; i < plan->n_joins; i++) {
			if (joined >> i & 1)
				continue;
			int ret = nsbox_setns(plan->joins[i], plan->join_types[i]);
			if (ret == 0) {
				joined |= 1ULL << i;
			} else if (failed < 0) {
				failed = (int)i;
				err = ret;
			}
		}
	}
	return failed < 0 ? 0 : fail(spawn, NSBOX_STEP_SETNS, failed, err);
}

__attribute__((noreturn)) static void launcher_main(void *argument)
{
	struct spawn *spawn = argument;
	const struct nsbox_plan *plan = spawn->plan;

	if (plan->flags & NSBOX_PLAN_PRIVATE_MEMORY)
		sys(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
	if (plan->flags & NSBOX_PLAN_CLEAR_GROUPS) {
		long err = sys(__NR_setgroups, 0, 0);
		if (err < 0) {
			fail(spawn, NSBOX_STEP_SETGROUPS, -1, err);
			exit_process(1);
		}
	}
	if (join_namespaces(spawn) == 0)
		start_child(spawn);
	exit_process(0);
}

static void start_launcher(struct spawn *spawn)
{
	bool private = spawn->plan->flags & NSBOX_PLAN_PRIVATE_MEMORY;
	struct clone_call call = {
		.flags = CLONE_FILES | (private ? 0 : CLONE_VM),
		.stack = spawn->call.stack + STACK_SIZE,
		.stack_size = STACK_SIZE,
		.function = launcher_main,
		.argument = spawn,
	};

	spawn->parent_flags = CLONE_PARENT;
	long pid = clone_and_call(&call);
	if (pid < 0) {
		fail(spawn, NSBOX_STEP_CLONE, -1, pid);
		return;
	}
	wait_for(P_PID, (int)pid, WEXITED);
	/* Somebody killed it, or its end would have come after the child's exec or record. */
	if (!spawn->result.step && (spawn->alive || !spawn->executing))
		fail(spawn, NSBOX_STEP_KILLED, -1, -ESRCH);
}

/* ---- the whole ------------------------------------------------------ */

static int open_sources_early(struct spawn *spawn)
{
	return spawn->plan->flags & NSBOX_PLAN_PARENT_SOURCES ? open_sources(spawn) : 0;
}

static int open_caller_pidfd(struct spawn *spawn)
{
	spawn->caller_pidfd = -1;
	if (!(spawn->request->flags & NSBOX_REQUEST_DIE_WITH_THREAD))
		return 0;
	int fd = nsbox_pidfd_open((int)sys(__NR_getpid), 0);
	if (fd < 0)
		return fail(spawn, NSBOX_STEP_PIDFD_OPEN, -1, fd);
	spawn->caller_pidfd = fd;
	return 0;
}

static void close_prepared(struct spawn *spawn)
{
	for (uint32_t i = 0; i < spawn->plan->n_ops; i++)
		if (spawn->plan->flags & NSBOX_PLAN_PARENT_SOURCES && spawn->sources[i] >= 0)
			sys(__NR_close, spawn->sources[i]);
	if (spawn->caller_pidfd >= 0)
		sys(__NR_close, spawn->caller_pidfd);
}

/* A caller without standard streams must not get a pidfd for one. */
static void lift_pidfd(struct spawn *spawn)
{
	int low = spawn->result.pidfd;
	if (low < 0 || low > 2)
		return;
	long fd = sys(__NR_fcntl, low, F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return;
	sys(__NR_close, low);
	spawn->result.pidfd = (int32_t)fd;
}

/* After a failure nothing is left: the half-built child is killed, reaped and closed. */
static void discard_child(struct spawn *spawn)
{
	if (spawn->result.pidfd < 0)
		return;
	nsbox_pidfd_send_signal(spawn->result.pidfd, SIGKILL, 0);
	wait_for(P_PIDFD, spawn->result.pidfd, WEXITED);
	sys(__NR_close, spawn->result.pidfd);
	spawn->result.pidfd = -1;
}

int nsbox_spawn(const struct nsbox_plan *plan, const struct nsbox_request *request,
		struct nsbox_result *result)
{
	static const signal_mask all = ~0ULL;
	size_t size;
	struct spawn *spawn = allocate(plan, &size);
	if (!spawn) {
		*result = (struct nsbox_result){
			.pidfd = -1, .step = NSBOX_STEP_MMAP, .error = ENOMEM, .index = -1
		};
		return -ENOMEM;
	}
	spawn->plan = plan;
	spawn->request = request;
	spawn->result.pidfd = spawn->result.index = -1;
	spawn->root = spawn->scratch = -1;

	/* A handler of the program must not run in the child, nor here in between. */
	sys(__NR_rt_sigprocmask, SIG_SETMASK, &all, &spawn->mask, sizeof(signal_mask));
	if (open_caller_pidfd(spawn) == 0 && open_sources_early(spawn) == 0) {
		if (plan->n_joins)
			start_launcher(spawn);
		else
			start_child(spawn);
	}
	close_prepared(spawn);
	if (spawn->result.step)
		discard_child(spawn);
	lift_pidfd(spawn);
	sys(__NR_rt_sigprocmask, SIG_SETMASK, &spawn->mask, 0, sizeof(signal_mask));

	*result = spawn->result;
	sys(__NR_munmap, spawn, size);
	return -result->error;
}
