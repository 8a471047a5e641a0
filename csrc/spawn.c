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
 * The launcher shares the caller's descriptors until the child's pidfd, which is
 * the caller's, is among them; and the child is the caller's child. Where the
 * joined namespaces let others see or trace the newcomer, the launcher has a copy
 * of the memory instead of sharing it (NSBOX_PLAN_PRIVATE_MEMORY), and is not
 * dumpable: only someone privileged over the caller itself could look inside.
 *
 * A child whose cgroup may run out of memory is cloned by a launcher too, with
 * CLONE_VFORK (NSBOX_REQUEST_SHIELD). When the OOM killer picks a process, it
 * kills everyone who shares its memory: that would be us. One that is under way
 * from vfork to exec it passes over, so the system call at hand fails with
 * ENOMEM instead. CLONE_VFORK suspends who clones, and the caller has maps to write:
 *
 *   caller -> launcher: clone3(CLONE_PARENT | CLONE_VFORK | ...) -> child
 *   writes the id maps; go                                       ->  as above
 *
 * Caller and launcher use raw system calls too: the child has the calling
 * thread's thread-local storage.
 */
#include "internal.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/mman.h>
#include <linux/prctl.h>
#include <poll.h>
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

/* One mapping: struct spawn, its arrays, the stacks (child, launcher, errand). */
struct spawn *allocate_spawn(const struct nsbox_plan *plan, size_t *size)
{
	size_t per_op = sizeof(int64_t) + 2 * sizeof(int) + sizeof(bool);
	size_t head = aligned(sizeof(struct spawn) + plan->n_ops * per_op);
	int sharing = plan->flags & NSBOX_PLAN_PRIVATE_MEMORY ? MAP_SHARED : MAP_PRIVATE;

	*size = head + 2 * STACK_SIZE + ERRAND_STACK_SIZE;
	long address = sys(__NR_mmap, 0, *size, PROT_READ | PROT_WRITE,
			   sharing | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (address < 0 && address > -4096)
		return NULL;

	struct spawn *spawn = (struct spawn *)address;
	spawn->mount_ids = (int64_t *)(spawn + 1);
	spawn->sources = (int *)(spawn->mount_ids + plan->n_ops);
	spawn->mounts = spawn->sources + plan->n_ops;
	spawn->own = (bool *)(spawn->mounts + plan->n_ops);
	spawn->call.stack = (char *)address + head;
	spawn->call.stack_size = STACK_SIZE;
	spawn->errand_stack = spawn->call.stack + 2 * STACK_SIZE;
	for (uint32_t i = 0; i < plan->n_ops; i++)
		spawn->sources[i] = spawn->mounts[i] = -1;
	for (int i = 0; i < SPARE_COUNT; i++)
		spawn->spare.fds[i] = -1;
	spawn->result = no_result(nsbox_this_process());
	spawn->plan = plan;
	spawn->root = spawn->scratch = spawn->caller_pidfd = spawn->transfer = -1;
	spawn->queues = -1;
	spawn->channel = spawn->terminal = -1;
	spawn->terminal_sockets[0] = spawn->terminal_sockets[1] = -1;
	spawn->clone_flags = plan->clone_flags;
	spawn->n_joins = plan->n_joins;
	spawn->joins = plan->joins;
	spawn->join_types = plan->join_types;
	return spawn;
}

/* ---- the dumpable mark ---------------------------------------------- */

/*
 * A child that shares our memory and changes its ids makes the kernel mark the
 * memory as not dumpable (commit_creds). That protects it: until its exec the
 * child is a process of another user with our memory in it. So the mark stays
 * while any such child is on its way, and the last to arrive takes it off.
 */
static void guard_dumpable(struct spawn *spawn)
{
	struct nsbox_dumpable *dumpable = spawn->dumpable;

	lock(&dumpable->lock);
	__atomic_add_fetch(&dumpable->guards, 1, __ATOMIC_SEQ_CST);
	dumpable->builders += spawn->stage == STAGE_AHEAD;
	if (__atomic_fetch_add(&dumpable->count, 1, __ATOMIC_SEQ_CST) == 0)
		dumpable->before = nsbox_prctl(PR_GET_DUMPABLE, 0);
	unlock(&dumpable->lock);
}

/*
 * A builder (make.c), of which there is one at a time, works on while the caller goes on
 * and must not find the mark. It needs none: when it has its ids it is in a user namespace
 * of its own, in which nobody else is, so nobody has the capability over it that another
 * process would have to have to trace it (cap_ptrace_access_check() in the kernel's
 * security/commoncap.c). In the builder, hence without the lock.
 */
static bool is_alone(struct nsbox_dumpable *dumpable)
{
	return __atomic_load_n(&dumpable->count, __ATOMIC_SEQ_CST) == 1;
}

/* Right before its change of ids: has the program itself set the mark meanwhile? */
void look_at_dumpable(struct spawn *spawn)
{
	struct nsbox_dumpable *dumpable = spawn->dumpable;

	if (!dumpable || spawn->stage != STAGE_AHEAD)
		return;
	uint32_t guards = __atomic_load_n(&dumpable->guards, __ATOMIC_SEQ_CST);
	bool alone = is_alone(dumpable);
	int mark = nsbox_prctl(PR_GET_DUMPABLE, 0);
	if (alone && mark == 0 && guards == __atomic_load_n(&dumpable->guards, __ATOMIC_SEQ_CST))
		dumpable->before = 0;
}

/* Right after it. Where another child is under way, the mark is restored when that arrives. */
void restore_dumpable(struct spawn *spawn)
{
	struct nsbox_dumpable *dumpable = spawn->dumpable;

	if (!dumpable || spawn->stage != STAGE_AHEAD)
		return;
	while (!spawn->restored && dumpable->before == 1 && is_alone(dumpable)) {
		nsbox_prctl(PR_SET_DUMPABLE, 1);
		spawn->restored = is_alone(dumpable);
		if (!spawn->restored)
			nsbox_prctl(PR_SET_DUMPABLE, 0);
	}
}

/* The mark to restore in a fork of this process, which may be copied while it is off. */
int nsbox_dumpable_wanted(struct nsbox_dumpable *dumpable)
{
	lock(&dumpable->lock);
	int wanted = dumpable->count ? dumpable->before : nsbox_prctl(PR_GET_DUMPABLE, 0);
	unlock(&dumpable->lock);
	return wanted;
}

/*
 * `alive` is cleared a moment before the child leaves our memory (exec_mmap in
 * the kernel's fs/exec.c): only kcmp(2) tells for sure that it has. The callers
 * are privileged, so they may ask; a kernel without kcmp cannot answer.
 */
static void release_dumpable(struct spawn *spawn)
{
	struct nsbox_dumpable *dumpable = spawn->dumpable;
	int pid = spawn->result.pid;
	long self = sys(__NR_getpid);
	while (pid > 0 && sys(__NR_kcmp, self, pid, KCMP_VM, 0, 0) == 0)
		sys(__NR_sched_yield);
	lock(&dumpable->lock);
	dumpable->builders -= spawn->stage == STAGE_AHEAD;
	/* A mark that the program may have set since a builder restored it stays. */
	if (dumpable->count - 1 == dumpable->builders && dumpable->before == 1 && !spawn->restored)
		nsbox_prctl(PR_SET_DUMPABLE, 1);
	/* Last: a builder that finds itself alone finds the mark restored. */
	__atomic_sub_fetch(&dumpable->count, 1, __ATOMIC_SEQ_CST);
	unlock(&dumpable->lock);
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

/*
 * On the host, and in a pid namespace that it joins, a process with the
 * payload's uid may send the child SIGSTOP, or the launcher if that uid is the caller's,
 * and would keep us waiting for ever, with all signals blocked. Who is found stopped
 * several times in a row was not stopped together with us: the set-up is over. (Only
 * the parent learns anything here; in a launcher this does nothing, and the caller looks.)
 */
void kill_if_stopped(const int32_t *who, uint32_t *stops)
{
	int pidfd = __atomic_load_n(who, __ATOMIC_ACQUIRE);
	siginfo_t info;

	info.si_pid = 0;
	if (sys(__NR_waitid, P_PIDFD, pidfd, &info, WSTOPPED | WNOHANG | WNOWAIT | __WALL, 0) < 0)
		return; /* nor does it spoil the count */
	*stops = info.si_pid ? *stops + 1 : 0;
	if (*stops >= STOPS)
		nsbox_pidfd_send_signal(pidfd, SIGKILL, 0);
}

/* Clone the child; with CLONE_VFORK, return when it has executed or ended. */
static int clone_child(struct spawn *spawn)
{
	static void (*const functions[])(void *) = {
		[STAGE_WHOLE] = child_main, [STAGE_COPY] = child_main, [STAGE_BASE] = base_main,
		[STAGE_AHEAD] = ahead_main, [STAGE_REST] = child_main,
	};
	const struct nsbox_request *request = spawn->request;
	struct clone_call *call = &spawn->call;

	call->flags = CLONE_VM | spawn->parent_flags | spawn->clone_flags;
	if (spawn->shielded)
		call->flags |= CLONE_VFORK;
	if (spawn->stage == STAGE_BASE || spawn->stage == STAGE_AHEAD)
		call->flags |= CLONE_FILES; /* see leave_descriptors in ahead.c */
	/* The root of a cgroup namespace is where its maker is: v1 cgroups are joined first. */
	if (request->n_tasks)
		call->flags &= ~(uint64_t)CLONE_NEWCGROUP;
	call->cgroup = request->cgroup;
	call->pid = &spawn->result.pid;
	call->pidfd = &spawn->result.pidfd;
	call->child_tid = &spawn->alive;
	call->function = functions[spawn->stage];
	call->argument = spawn;
	spawn->alive = 1;
	long pid = clone_adopted(spawn, call);
	if (pid < 0) {
		/* A clone that fails late has stored, and then withdrawn, a descriptor. */
		spawn->result.pidfd = -1;
		spawn->alive = 0;
		return fail(spawn, NSBOX_STEP_CLONE, -1, pid);
	}
	spawn->result.pid = (int32_t)pid;
	return 0;
}

/* Wait until the child has become the payload, or has ended: the kernel clears *alive then. */
void await_exec(struct spawn *spawn, uint32_t *alive)
{
	while (__atomic_load_n(alive, __ATOMIC_ACQUIRE))
		if (futex_wait_for(alive, 1, STOP_TICK) == -ETIMEDOUT)
			kill_if_stopped(&spawn->result.pidfd, &spawn->stops);
}

/*
 * A launcher leaves the caller's descriptor table first, in which the child's pidfd is by
 * now: whatever it is killed at, no file of a map stays open there.
 */
static enum nsbox_step map_ids(const struct spawn *spawn, bool by_launcher, int *err)
{
	*err = by_launcher ? nsbox_close_range(0, ~0U, CLOSE_RANGE_UNSHARE) : 0;
	return *err < 0 ? NSBOX_STEP_CLOSE_RANGE
			: write_id_maps(spawn->plan, spawn->result.pid, err);
}

/* Map the child's ids, and wait until it has become the payload or recorded why not. */
static void accompany_child(struct spawn *spawn, bool by_launcher)
{
	enum nsbox_step step = NSBOX_STEP_NONE;
	int err = 0;

	if (spawn->stage != STAGE_REST) {
		step = map_ids(spawn, by_launcher, &err);
		let_go(spawn, step ? GO_ABORT : GO_RUN);
	}
	await_exec(spawn, &spawn->alive);
	/* The child's own record comes first: its end is why a map could not be written. */
	if (spawn->result.step)
		return;
	if (step)
		fail(spawn, step, -1, err);
	else if (!spawn->executing)
		fail(spawn, NSBOX_STEP_KILLED, -1, -ESRCH);
}

static void start_child(struct spawn *spawn, bool by_launcher)
{
	if (clone_child(spawn) == 0)
		accompany_child(spawn, by_launcher);
}

/* ---- the launcher --------------------------------------------------- */

/*
 * In two passes: whoever is privileged here can join everything and enters the
 * user namespace last; a plain user gets the right to join the others by
 * entering it. What fails for want of anything else fails at once.
 */
static int join_namespaces(struct spawn *spawn)
{
	uint64_t joined = 0;

	for (int pass = 0; pass < 2; pass++) {
		for (uint32_t i = 0; i < spawn->n_joins; i++) {
			if (joined >> i & 1)
				continue;
			int ret = nsbox_setns(spawn->joins[i], spawn->join_types[i]);
			if (ret == 0)
				joined |= 1ULL << i;
			else if (ret != -EPERM || pass == 1)
				return fail(spawn, NSBOX_STEP_SETNS,
					    spawn->stage == STAGE_WHOLE ? (int)i : -1, ret);
		}
	}
	return 0;
}

__attribute__((noreturn)) static void launcher_main(void *argument)
{
	struct spawn *spawn = argument;
	const struct nsbox_plan *plan = spawn->plan;

	if (die_with_caller(spawn) < 0)
		exit_process(1);
	if (plan->flags & NSBOX_PLAN_PRIVATE_MEMORY)
		nsbox_prctl(PR_SET_DUMPABLE, 0);
	if (plan->flags & NSBOX_PLAN_CLEAR_GROUPS) {
		long err = sys(__NR_setgroups, 0, 0);
		if (err < 0) {
			fail(spawn, NSBOX_STEP_SETGROUPS, -1, err);
			exit_process(1);
		}
	}
	if (join_namespaces(spawn) == 0) {
		if (spawn->shielded || spawn->stage == STAGE_REST)
			clone_child(spawn);
		else
			start_child(spawn, true);
	}
	exit_process(0);
}

/* What /proc/self/fdinfo/<pidfd> says: a pid, 0 if there is none, or -errno. */
int pid_in_fdinfo(int pidfd)
{
	static const char directory[] = "/proc/self/fdinfo/", key[] = "\nPid:\t";
	char path[64], text[512];
	int pid = 0;

	memcpy(path, directory, sizeof directory);
	size_t length = sizeof directory - 1;
	path[length + format_uint(path + length, (uint64_t)pidfd)] = '\0';
	long fd = RETRY(sys(__NR_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC));
	if (fd < 0)
		return (int)fd;
	long size = RETRY(sys(__NR_read, fd, text, sizeof text - 1));
	sys(__NR_close, fd);
	if (size < 0)
		return (int)size;
	text[size] = '\0';
	const char *found = strstr(text, key);
	if (!found)
		return 0;
	for (found += sizeof key - 1; *found >= '0' && *found <= '9'; found++)
		pid = pid * 10 + (*found - '0');
	return pid;
}

/*
 * The child of a launcher that has ended: is there one? Whoever is killed within clone3(2)
 * can leave the number of a pidfd that the kernel has withdrawn, but no pid then. clone(2)
 * cannot store a pidfd and a pid both. If it cannot be told, there may be one to discard.
 */
static bool find_child(struct spawn *spawn)
{
	struct nsbox_result *result = &spawn->result;

	if (!result->pid && spawn->call.kept_handlers && result->pidfd >= 0)
		result->pid = pid_of(result->pidfd);
	if (result->pid < 0)
		fail(spawn, NSBOX_STEP_CLONE, -1, result->pid);
	if (!result->pid)
		result->pidfd = -1;
	return result->pid > 0;
}

/* The launcher is suspended until the child executes, or has ended: what is left is ours. */
static void accompany_from_outside(struct spawn *spawn, int launcher)
{
	uint32_t stops = 0;

	while (__atomic_load_n(&spawn->launcher, __ATOMIC_ACQUIRE) == LAUNCHER_RUNS)
		if (futex_wait_for(&spawn->launcher, LAUNCHER_RUNS, STOP_TICK) == -ETIMEDOUT)
			kill_if_stopped(&launcher, &stops);
	if (!spawn->result.step && find_child(spawn))
		accompany_child(spawn, false);
}

static void start_launcher(struct spawn *spawn)
{
	bool private = spawn->plan->flags & NSBOX_PLAN_PRIVATE_MEMORY;
	bool outside = spawn->shielded || spawn->stage == STAGE_REST;
	int pidfd = -1;
	struct clone_call call = {
		.flags = CLONE_FILES | (private ? 0 : CLONE_VM),
		.pidfd = &pidfd,
		.cgroup = -1,
		.stack = spawn->call.stack + STACK_SIZE,
		.stack_size = STACK_SIZE,
		.child_tid = outside ? &spawn->launcher : NULL,
		.function = launcher_main,
		.argument = spawn,
	};

	spawn->parent_flags = CLONE_PARENT;
	spawn->launcher = LAUNCHER_RUNS;
	long pid = clone_adopted(spawn, &call);
	if (pid < 0) {
		fail(spawn, NSBOX_STEP_CLONE, -1, pid);
		return;
	}
	if (outside)
		accompany_from_outside(spawn, pidfd);
	struct pollfd launcher = { .fd = pidfd, .events = POLLIN };
	static const uint64_t tick[2] = { 0, STOP_TICK }; /* not one that ppoll counts down */
	uint32_t stops = 0;
	while (RETRY(sys(__NR_ppoll, &launcher, 1, tick, 0, sizeof(signal_mask))) == 0) {
		kill_if_stopped(&spawn->result.pidfd, &spawn->stops);
		kill_if_stopped(&pidfd, &stops);
	}
	wait_for(P_PID, (int)pid, WEXITED);
	sys(__NR_close, pidfd);
	/* Its end comes after the child's exec or record, or somebody has killed it. */
	if (!spawn->result.step && (spawn->alive || !spawn->executing)) {
		fail(spawn, NSBOX_STEP_KILLED, -1, -ESRCH);
		find_child(spawn);
	}
}

/* ---- the whole ------------------------------------------------------ */

/* Is it open (its flags), and not one of those that are kept for spawns to come (-EBADF)? */
long check_open(const struct nsbox_request *request, int fd)
{
	if (request->maker && maker_has(request->maker, fd))
		return -EBADF;
	return sys(__NR_fcntl, fd, F_GETFD);
}

/*
 * Before anything is opened here: a number that is not open yet could come to
 * mean one of our own descriptors, and reach the payload.
 */
static int check_descriptors(struct spawn *spawn)
{
	const struct nsbox_request *request = spawn->request;

	for (int target = 0; target < 3; target++) {
		int fd = request->stdio[target];
		long err = fd < 0 ? 0 : check_open(request, fd);
		if (err < 0)
			return fail(spawn, NSBOX_STEP_DUP, fd, err);
	}
	for (uint32_t i = 0; i < request->n_pass_fds; i++) {
		if (request->flags & NSBOX_REQUEST_INHERIT_FDS)
			break;
		long err = check_open(request, request->pass_fds[i]);
		if (err < 0)
			return fail(spawn, NSBOX_STEP_PASS_FD, request->pass_fds[i], err);
	}
	return 0;
}

/* By it the child sees that its caller has died. Not among 0, 1, 2, which it will replace. */
int open_caller_pidfd(struct spawn *spawn)
{
	int fd = lift(nsbox_pidfd_open((int)sys(__NR_getpid), 0));
	if (fd < 0)
		return fail(spawn, NSBOX_STEP_PIDFD_OPEN, -1, fd);
	spawn->caller_pidfd = fd;
	return 0;
}

/*
 * Join what was made ahead. With a spare only a pid and a cgroup namespace are left
 * to make, and the ids are mapped already.
 */
static void use_spare(struct spawn *spawn)
{
	if (spawn->stage == STAGE_REST) {
		spawn->go = GO_RUN;
		spawn->clone_flags &= CLONE_NEWPID | CLONE_NEWCGROUP;
	}
	for (int kind = SPARE_USER; kind <= SPARE_SOURCES; kind++) {
		if (spawn->spare.fds[kind] < 0)
			continue;
		spawn->spare_joins[spawn->n_joins] = spawn->spare.fds[kind];
		spawn->spare_types[spawn->n_joins++] = (int32_t)namespace_flag(kind);
	}
	spawn->joins = spawn->spare_joins;
	spawn->join_types = spawn->spare_types;
}

static int prepare(struct spawn *spawn)
{
	if (check_descriptors(spawn) < 0 || open_caller_pidfd(spawn) < 0 ||
	    prepare_terminal(spawn) < 0)
		return -1;
	/*
	 * From outside, as for a shielded child, nobody can map ids in a base's user namespace.
	 * A terminal is opened in the very devpts that this spawn mounts.
	 */
	if (spawn->request->store && !spawn->request->terminal)
		spawn->stage = store_take(spawn->request->store, &spawn->spare, !spawn->shielded);
	if (spawn->stage != STAGE_WHOLE) {
		use_spare(spawn);
		return 0;
	}
	return spawn->plan->flags & NSBOX_PLAN_PARENT_SOURCES ? open_sources(spawn) : 0;
}

static void close_prepared(struct spawn *spawn)
{
	/* Whoever opens the sources closes them: the child's are numbers in a table of its own. */
	bool ours = spawn->plan->flags & NSBOX_PLAN_PARENT_SOURCES && spawn->stage == STAGE_WHOLE;
	for (uint32_t i = 0; i < spawn->plan->n_ops; i++)
		if (ours && spawn->sources[i] >= 0)
			sys(__NR_close, spawn->sources[i]);
	if (spawn->caller_pidfd >= 0)
		sys(__NR_close, spawn->caller_pidfd);
	close_terminal_sockets(spawn);
}

/* As lift(), but it is kept if that fails: it is what the child can still be killed by. */
static int lift_pidfd(struct spawn *spawn)
{
	int fd = spawn->result.pidfd;
	if (fd > 2)
		return 0;
	long lifted = sys(__NR_fcntl, fd, F_DUPFD_CLOEXEC, 3);
	if (lifted < 0)
		return fail(spawn, NSBOX_STEP_PIDFD_OPEN, -1, lifted);
	sys(__NR_close, fd);
	spawn->result.pidfd = (int)lifted;
	return 0;
}

/* Here, and not later in Python: whoever waits for the interpreter's lock waits long. */
static void watch_child(struct spawn *spawn)
{
	struct nsbox_watch *watch = spawn->request->watch;
	int err = watch ? watch_begin(watch, spawn->result.pidfd) : 0;
	if (err < 0)
		fail(spawn, NSBOX_STEP_WATCH, -1, err);
}

/* After a failure nothing is left: the half-built child is killed, reaped and closed. */
void discard_child(struct spawn *spawn)
{
	if (spawn->result.pid && spawn->result.pidfd >= 0) {
		nsbox_pidfd_send_signal(spawn->result.pidfd, SIGKILL, 0);
		wait_for(P_PIDFD, spawn->result.pidfd, WEXITED);
		sys(__NR_close, spawn->result.pidfd);
	}
	spawn->result.pidfd = -1;
}

void start(struct spawn *spawn, struct nsbox_dumpable *dumpable)
{
	spawn->dumpable = dumpable;
	if (dumpable)
		guard_dumpable(spawn);
	if (spawn->n_joins || spawn->shielded)
		start_launcher(spawn);
	else
		start_child(spawn, false);
	/* A child whose launcher was killed waits for its maps for ever, in our memory. */
	if (spawn->result.step && spawn->result.pidfd >= 0)
		nsbox_pidfd_send_signal(spawn->result.pidfd, SIGKILL, 0);
	if (dumpable)
		release_dumpable(spawn);
}

int nsbox_spawn(const struct nsbox_plan *plan, const struct nsbox_request *request,
		struct nsbox_dumpable *dumpable, struct nsbox_result *result)
{
	static const signal_mask all = ~0ULL;
	size_t size;

	*result = no_result(nsbox_this_process());
	int err = request->watch ? nsbox_watch_add(request->watch) : 0;
	if (err < 0) {
		result->step = NSBOX_STEP_WATCH;
		result->error = -err;
		return err;
	}
	struct spawn *spawn = allocate_spawn(plan, &size);
	if (!spawn) {
		result->step = NSBOX_STEP_MMAP;
		result->error = ENOMEM;
		return -ENOMEM;
	}
	spawn->result.started_at = result->started_at;
	spawn->request = request;
	/* With a copy of the memory it is the copy's processes that share a fate. */
	spawn->shielded = (request->flags & NSBOX_REQUEST_SHIELD) &&
			  !(plan->flags & NSBOX_PLAN_PRIVATE_MEMORY);
	spawn->parent = choose_parent(request);

	/* A handler of the program must not run in the child, nor here in between. */
	sys(__NR_rt_sigprocmask, SIG_SETMASK, &all, &spawn->mask, sizeof(signal_mask));
	if (prepare(spawn) == 0)
		start(spawn, dumpable);
	if (!spawn->result.step)
		take_terminal(spawn);
	close_prepared(spawn);
	if (!spawn->result.step && lift_pidfd(spawn) == 0)
		watch_child(spawn);
	if (spawn->result.step)
		discard_child(spawn);
	if (request->store)
		store_return(request->store, &spawn->spare);
	/* Whole before signals come back: their handlers may raise, and leave this to its owner. */
	*result = spawn->result;
	signal_mask mask = spawn->mask;
	sys(__NR_munmap, spawn, size);
	sys(__NR_rt_sigprocmask, SIG_SETMASK, &mask, 0, sizeof mask);
	return -result->error;
}
