/*
 * child.c - runs between clone and exec.
 *
 * The rule: the child shares its memory with a program that has other threads,
 * which may hold any lock and be inside malloc. So nothing but raw system
 * calls and memory of this spawn: no libc function that could lock, allocate
 * or store errno, no Python. (The compiler may call memcpy, memset and strlen,
 * which do neither; the module is linked so that they are bound when it is
 * loaded, since the dynamic linker's lazy binding would take locks here.) It
 * ends by execve or exit_process, never by return, hence frees nothing; all
 * its descriptors are close-on-exec.
 */
#include "internal.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/openat2.h>
#include <linux/prctl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>

int fail(struct spawn *spawn, enum nsbox_step step, int index, long error)
{
	spawn->result.step = (int32_t)step;
	spawn->result.error = (int32_t)-error;
	spawn->result.index = index;
	return (int)error;
}

/* ---- ids ------------------------------------------------------------ */

/*
 * A change from uid 0 to another clears the effective set, and this set-up is
 * not over: take it back from the permitted set, which PR_SET_KEEPCAPS kept.
 */
static int regain_capabilities(struct spawn *spawn)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	long err = sys(__NR_capget, &header, data);
	data[0].effective = data[0].permitted;
	data[1].effective = data[1].permitted;
	if (err == 0)
		err = sys(__NR_capset, &header, data);
	return err < 0 ? fail(spawn, NSBOX_STEP_KEEP_CAPABILITIES, -1, err) : 0;
}

static bool has_capabilities(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	return sys(__NR_capget, &header, data) < 0 || data[0].permitted || data[1].permitted;
}

static int set_ids(struct spawn *spawn)
{
	const struct nsbox_plan *plan = spawn->plan;

	/* With joined namespaces the launcher has dropped the groups already. */
	if ((plan->flags & NSBOX_PLAN_CLEAR_GROUPS) && !plan->n_joins) {
		long err = sys(__NR_setgroups, 0, 0);
		if (err < 0)
			return fail(spawn, NSBOX_STEP_SETGROUPS, -1, err);
	}
	long err = sys(__NR_setresgid, plan->gid, plan->gid, plan->gid);
	if (err < 0)
		return fail(spawn, NSBOX_STEP_SETRESGID, -1, err);
	err = sys(__NR_setresuid, plan->uid, plan->uid, plan->uid);
	return err < 0 ? fail(spawn, NSBOX_STEP_SETRESUID, -1, err) : 0;
}

void exit_if_orphaned(const struct spawn *spawn)
{
	struct pollfd caller = { .fd = spawn->caller_pidfd, .events = POLLIN };
	const uint64_t no_time[2] = { 0, 0 };

	if (sys(__NR_ppoll, &caller, 1, no_time, 0, sizeof(signal_mask)) > 0)
		exit_process(1);
}

/* Whoever writes them may be gone, and had perhaps no right to send us the signal of that. */
void await_maps(struct spawn *spawn)
{
	uint32_t go;

	while ((go = __atomic_load_n(&spawn->go, __ATOMIC_ACQUIRE)) == GO_WAIT)
		if (futex_wait_for(&spawn->go, GO_WAIT, STOP_TICK) == -ETIMEDOUT)
			exit_if_orphaned(spawn);
	if (go == GO_ABORT)
		exit_process(1);
}

/*
 * Wait until the other half has written the id maps, then take on the ids
 * inside. Before that this process has no id that its user namespace knows,
 * and may not create a file in a file system of that namespace.
 */
int take_ids(struct spawn *spawn)
{
	await_maps(spawn);
	/* In a user namespace of our own the old uid is not its root: nothing to keep. */
	if (spawn->plan->uid_map) {
		look_at_dumpable(spawn);
		int err = set_ids(spawn);
		restore_dumpable(spawn);
		return err < 0 ? -1 : die_with_caller(spawn);
	}
	long err = sys(__NR_prctl, PR_SET_KEEPCAPS, 1, 0, 0, 0);
	/* Locked, as in a sandbox: whoever has none has none to keep. */
	if (err < 0 && !(err == -EPERM && !has_capabilities()))
		return fail(spawn, NSBOX_STEP_KEEP_CAPABILITIES, -1, err);
	if (set_ids(spawn) < 0 || regain_capabilities(spawn) < 0)
		return -1;
	return die_with_caller(spawn);
}

/*
 * The ids that this spawn asks for, instead of the plan's. Late, because the
 * set-up needs the plan's ids and their capabilities.
 */
static int set_requested_ids(struct spawn *spawn)
{
	const struct nsbox_request *request = spawn->request;
	long err;

	if (request->n_groups < 0 && request->gid < 0 && request->uid < 0)
		return 0;
	err = request->n_groups < 0 ? 0 : sys(__NR_setgroups, request->n_groups, request->groups);
	if (err < 0)
		return fail(spawn, NSBOX_STEP_EXTRA_GROUPS, -1, err);
	err = request->gid < 0 ? 0 : sys(__NR_setresgid, request->gid, request->gid, request->gid);
	if (err < 0)
		return fail(spawn, NSBOX_STEP_GROUP, -1, err);
	err = request->uid < 0 ? 0 : sys(__NR_setresuid, request->uid, request->uid, request->uid);
	if (err < 0)
		return fail(spawn, NSBOX_STEP_USER, -1, err);
	return regain_capabilities(spawn) < 0 ? -1 : die_with_caller(spawn);
}

/* ---- descriptors ---------------------------------------------------- */

static int set_stdio(struct spawn *spawn)
{
	int from[3];

	/* First out of the way of each other, then into place. */
	for (int target = 0; target < 3; target++) {
		from[target] = spawn->request->stdio[target];
		if (from[target] < 0)
			from[target] = spawn->terminal;
		if (from[target] < 0 || from[target] > 2 || from[target] == target)
			continue;
		long fd = sys(__NR_fcntl, from[target], F_DUPFD_CLOEXEC, 3);
		if (fd < 0)
			return fail(spawn, NSBOX_STEP_DUP, target, fd);
		from[target] = (int)fd;
	}
	for (int target = 0; target < 3; target++) {
		if (from[target] < 0)
			continue;
		/* dup3 onto itself is an error, and would keep FD_CLOEXEC if it were not. */
		long err = from[target] == target ? sys(__NR_fcntl, target, F_SETFD, 0)
						  : RETRY(sys(__NR_dup3, from[target], target, 0));
		if (err < 0)
			return fail(spawn, NSBOX_STEP_DUP, target, err);
	}
	return 0;
}

/* What an init has received, to the numbers by which the payload knows it. */
static int place_received(struct spawn *spawn)
{
	const struct nsbox_request *request = spawn->request;
	uint32_t n = spawn->received ? request->n_pass_fds : 0;
	int last = n ? request->pass_fds[n - 1] : 0;

	/* First out of the way of each other, then into place. */
	for (uint32_t i = 0; i < n; i++) {
		if (spawn->received[i] > last)
			continue;
		long fd = sys(__NR_fcntl, spawn->received[i], F_DUPFD_CLOEXEC, last + 1);
		if (fd < 0)
			return fail(spawn, NSBOX_STEP_PASS_FD, request->pass_fds[i], fd);
		spawn->received[i] = (int32_t)fd;
	}
	for (uint32_t i = 0; i < n; i++) {
		long err = RETRY(sys(__NR_dup3, spawn->received[i], request->pass_fds[i], 0));
		if (err < 0)
			return fail(spawn, NSBOX_STEP_PASS_FD, request->pass_fds[i], err);
	}
	return 0;
}

/* One of 0, 1, 2 that the exec would close: nobody has asked for it. */
static int close_standard(struct spawn *spawn, int target)
{
	long flags = sys(__NR_fcntl, target, F_GETFD);
	if (flags < 0 || !(flags & FD_CLOEXEC))
		return 0;
	int err = nsbox_close_range((uint32_t)target, (uint32_t)target, 0);
	return err < 0 ? fail(spawn, NSBOX_STEP_CLOSE_RANGE, -1, err) : 0;
}

/* Keep a descriptor of pass_fds: 1, or 0 if it is one to inherit and was not inheritable. */
static int keep(struct spawn *spawn, int fd)
{
	if (spawn->request->flags & NSBOX_REQUEST_INHERIT_FDS) {
		long flags = sys(__NR_fcntl, fd, F_GETFD);
		return flags >= 0 && !(flags & FD_CLOEXEC);
	}
	long err = sys(__NR_fcntl, fd, F_SETFD, 0);
	return err < 0 ? fail(spawn, NSBOX_STEP_PASS_FD, fd, err) : 1;
}

/*
 * Close whatever the caller had open: all but 0, 1, 2 and the fds asked for.
 * Not by FD_CLOEXEC: the kernel opens the program, and the interpreter that a
 * script names, before exec closes anything, and a hostile one may be a link to
 * /proc/self/fd/N, or to what lies below a directory of the host open there.
 */
static int close_others(struct spawn *spawn)
{
	const struct nsbox_request *request = spawn->request;
	uint32_t first = 3;
	int err = 0;

	for (int target = 0; target < 3; target++)
		if (close_standard(spawn, target) < 0)
			return -1;
	for (uint32_t i = 0; i < request->n_pass_fds && err == 0; i++) {
		uint32_t fd = (uint32_t)request->pass_fds[i];
		int kept = keep(spawn, (int)fd);
		if (kept < 0)
			return -1;
		if (!kept)
			continue;
		if (fd > first)
			err = nsbox_close_range(first, fd - 1, 0);
		first = fd + 1;
	}
	/* A socket is nothing that a path could lead to. */
	if (spawn->channel >= 0 && err == 0) {
		if ((uint32_t)spawn->channel > first)
			err = nsbox_close_range(first, (uint32_t)spawn->channel - 1, 0);
		first = (uint32_t)spawn->channel + 1;
	}
	if (err == 0)
		err = nsbox_close_range(first, ~0U, 0);
	return err < 0 ? fail(spawn, NSBOX_STEP_CLOSE_RANGE, -1, err) : 0;
}

/* A session of its own: no controlling terminal whose input it could forge. */
static int set_session(struct spawn *spawn)
{
	uint32_t flags = spawn->request->flags;
	if (flags & NSBOX_REQUEST_SETSID) {
		long err = sys(__NR_setsid);
		if (err < 0)
			return fail(spawn, NSBOX_STEP_SETSID, -1, err);
	}
	if (flags & NSBOX_REQUEST_CONTROLLING_TERMINAL) {
		long err = sys(__NR_ioctl, 0, TIOCSCTTY, 0);
		if (err < 0)
			return fail(spawn, NSBOX_STEP_CONTROLLING_TERMINAL, -1, err);
	}
	if (spawn->request->process_group >= 0) {
		long err = sys(__NR_setpgid, 0, spawn->request->process_group);
		if (err < 0)
			return fail(spawn, NSBOX_STEP_SETPGID, -1, err);
	}
	return 0;
}

/* ---- the caller's death ----------------------------------------------- */

/*
 * Until the payload runs, and then too where its parent is a thread that stays, this
 * process dies with its caller. Called again after each change of ids, which clears the
 * setting. If the caller died before that, no signal comes any more: look.
 */
int die_with_caller(struct spawn *spawn)
{
	await_parent(spawn);
	int err = nsbox_prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (err < 0)
		return fail(spawn, NSBOX_STEP_PDEATHSIG, -1, err);
	exit_if_orphaned(spawn);
	return 0;
}

static int outlive_parent(struct spawn *spawn)
{
	if (spawn->parent == PARENT_STAYS)
		return 0;
	int err = nsbox_prctl(PR_SET_PDEATHSIG, 0);
	return err < 0 ? fail(spawn, NSBOX_STEP_PDEATHSIG, -1, err) : 0;
}

/* ---- the payload ---------------------------------------------------- */

/*
 * Resolved inside, with the payload's own rights, and not through a magic
 * link: /proc/self/fd/N could still lead to a directory of the host.
 */
static int change_directory(struct spawn *spawn)
{
	const char *cwd = spawn->request->cwd;
	if (!cwd[1] && spawn->plan->clone_flags & CLONE_NEWNS)
		return 0; /* "/", where pivot_root has left us */
	long fd = RETRY(nsbox_openat2(AT_FDCWD, cwd, O_PATH | O_DIRECTORY | O_CLOEXEC, 0,
				      RESOLVE_NO_MAGICLINKS));
	long err = fd < 0 ? fd : sys(__NR_fchdir, fd);
	return err < 0 ? fail(spawn, NSBOX_STEP_CHDIR, -1, err) : 0;
}

static void restore_signals(struct spawn *spawn)
{
	/* struct sigaction of the kernel, all zero: SIG_DFL, no flags, empty mask. */
	static const unsigned long default_action[4] = { 0 };
	if (spawn->request->flags & NSBOX_REQUEST_RESTORE_SIGNALS) {
		sys(__NR_rt_sigaction, SIGPIPE, default_action, 0, sizeof(signal_mask));
		sys(__NR_rt_sigaction, SIGXFSZ, default_action, 0, sizeof(signal_mask));
	}
	sys(__NR_rt_sigprocmask, SIG_SETMASK, &spawn->mask, 0, sizeof(signal_mask));
}

/* From the memfd, whose number is all that leads to it. */
static int execute_init(struct spawn *spawn)
{
	const struct nsbox_request *request = spawn->request;

	spawn->executing = true;
	long err = sys(__NR_execveat, request->exec_fd, "", request->argv, request->envp,
		       AT_EMPTY_PATH);
	return fail(spawn, NSBOX_STEP_INIT, -1, err);
}

/* As execvpe(3): a candidate that is not there gives way to the next, another error is kept. */
static int execute(struct spawn *spawn)
{
	const struct nsbox_request *request = spawn->request;
	long last = -ENOENT, kept = 0;

	spawn->executing = true;
	for (int i = 0; request->executables[i]; i++) {
		last = sys(__NR_execve, request->executables[i], request->argv, request->envp);
		if (last != -ENOENT && last != -ENOTDIR && !kept)
			kept = last;
	}
	return fail(spawn, NSBOX_STEP_EXECVE, -1, kept ? kept : last);
}

bool has_source(const struct nsbox_op *op)
{
	return op->code == NSBOX_OP_BIND || op->code == NSBOX_OP_DEVICE ||
	       op->code == NSBOX_OP_MASK || op->code == NSBOX_OP_PATH;
}

int open_sources(struct spawn *spawn)
{
	for (uint32_t index = 0; index < spawn->plan->n_ops; index++) {
		const struct nsbox_op *op = &spawn->plan->ops[index];
		if (has_source(op) && !is_for_later(spawn, op) && open_source(spawn, index) < 0)
			return -1;
	}
	return 0;
}

/* The new root, and all that is in it. */
static int build_root(struct spawn *spawn)
{
	if (spawn->stage == STAGE_REST)
		return finish_root(spawn);
	/* All before the first mount: some of the mounts change the working directory. */
	bool by_caller =
		spawn->plan->flags & NSBOX_PLAN_PARENT_SOURCES && spawn->stage == STAGE_WHOLE;
	if (!by_caller && open_sources(spawn) < 0)
		return -1;
	return run_operations(spawn);
}

static int set_up(struct spawn *spawn)
{
	/* Modes in the plan are exact; the payload gets a mask again below. */
	int umask = (int)sys(__NR_umask, 0);
	if (spawn->request->umask >= 0)
		umask = spawn->request->umask;
	/*
	 * Ids before descriptors: whoever changes them looks at the caller's pidfd again.
	 * Landlock between: its rules are on descriptors of mounts and of what is handed on.
	 */
	if (build_root(spawn) < 0 || open_terminal(spawn) < 0 || set_stdio(spawn) < 0 ||
	    set_session(spawn) < 0 || set_requested_ids(spawn) < 0 ||
	    forbid_new_privileges(spawn) < 0 || restrict_self(spawn) < 0 || close_others(spawn) < 0)
		return -1;
	sys(__NR_umask, umask);
	if (drop_privileges(spawn) < 0 || outlive_parent(spawn) < 0)
		return -1;
	if (change_directory(spawn) < 0)
		return -1;
	return spawn->request->flags & NSBOX_REQUEST_INIT ? 0 : set_limits(spawn);
}

/*
 * In a child of an init, or in the init that becomes the payload: the world is there
 * and all layers are in force. What is left is what this process asks for.
 */
void follow_request(struct spawn *spawn)
{
	/* Ids first, as in set_up(): the caller's pidfd is where a stream belongs. */
	if (enter_cgroups(spawn) < 0 || set_requested_ids(spawn) < 0 || outlive_parent(spawn) < 0 ||
	    set_stdio(spawn) < 0 || place_received(spawn) < 0 || set_session(spawn) < 0 ||
	    close_others(spawn) < 0)
		return;
	if (spawn->request->umask >= 0)
		sys(__NR_umask, spawn->request->umask);
	/* Also through a magic link: what such a one leads to, this process has been given. */
	long err = RETRY(sys(__NR_chdir, spawn->request->cwd));
	if (err < 0) {
		fail(spawn, NSBOX_STEP_CHDIR, -1, err);
		return;
	}
	if (set_limits(spawn) < 0)
		return;
	restore_signals(spawn);
	if (install_filter(spawn) == 0)
		execute(spawn);
}

void child_main(void *argument)
{
	struct spawn *spawn = argument;

	if (spawn->shielded) {
		__atomic_store_n(&spawn->launcher, LAUNCHER_HAS_CLONED, __ATOMIC_RELEASE);
		futex_wake(&spawn->launcher);
	}
	if (spawn->call.kept_handlers)
		reset_signals();
	bool bare = spawn->request->flags & NSBOX_REQUEST_BARE;
	if (bare ||
	    (die_with_caller(spawn) == 0 && enter_cgroups(spawn) == 0 && set_up(spawn) == 0)) {
		restore_signals(spawn);
		if (spawn->request->flags & NSBOX_REQUEST_STAYS)
			ask_for_short_turns();
		bool init = spawn->request->flags & NSBOX_REQUEST_INIT;
		bool late = spawn->request->flags & NSBOX_REQUEST_LATE_FILTER;
		if (late || install_filter(spawn) == 0)
			init ? execute_init(spawn) : execute(spawn);
	}
	exit_process(1);
}
