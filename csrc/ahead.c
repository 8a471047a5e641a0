/*
 * ahead.c - the part of a set-up that is done before anybody asks for a spawn.
 *
 * A base is a mount namespace that has nothing but clones of the host's mounts that
 * a plan needs, and a procfs: to copy it costs the same whatever the host has mounted.
 * From it come the spares, sets of namespaces in which all of the plan is done that
 * needs no payload. Each is made by a child of its own, which hands over descriptors
 * and ends. A spare is used by one spawn, whose child does the rest: finish_root().
 *
 * All of it runs under the rule at the head of child.c.
 */
#include "mounts.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

/* ---- descriptors for the caller ------------------------------------- */

static const struct {
	uint64_t flag;
	const char *path;
} namespaces[] = {
	[SPARE_USER] = { CLONE_NEWUSER, "/proc/self/ns/user" },
	[SPARE_UTS] = { CLONE_NEWUTS, "/proc/self/ns/uts" },
	[SPARE_IPC] = { CLONE_NEWIPC, "/proc/self/ns/ipc" },
	[SPARE_NET] = { CLONE_NEWNET, "/proc/self/ns/net" },
	[SPARE_SOURCES] = { CLONE_NEWNS, "/proc/self/ns/mnt" },
	[SPARE_ROOT] = { CLONE_NEWNS, "/proc/self/ns/mnt" },
};

uint64_t namespace_flag(int kind)
{
	return namespaces[kind].flag;
}

/* Hold this process's namespace of that kind, if it is one that was made for it. */
static int hold_namespace(struct spawn *spawn, int kind)
{
	if (!(spawn->clone_flags & namespaces[kind].flag))
		return 0;
	long fd = RETRY(sys(__NR_openat, AT_FDCWD, namespaces[kind].path, O_RDONLY | O_CLOEXEC, 0));
	if (fd < 0)
		return fail(spawn, NSBOX_STEP_NAMESPACE_OPEN, -1, fd);
	spawn->spare.fds[kind] = (int)fd;
	return 0;
}

/*
 * One message, with a bit for each descriptor that comes along. This process has a
 * descriptor table of its own by now, so whatever else it has opened ends with it.
 */
static int hand_over(struct spawn *spawn)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(SPARE_COUNT * sizeof(int))];
	} control;
	uint32_t present = 0;
	struct iovec data = { &present, sizeof present };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control };
	size_t count = 0;

	memset(&control, 0, sizeof control);
	for (int kind = 0; kind < SPARE_COUNT; kind++) {
		if (spawn->spare.fds[kind] < 0)
			continue;
		present |= 1U << kind;
		memcpy(CMSG_DATA(&control.header) + count++ * sizeof(int), &spawn->spare.fds[kind],
		       sizeof(int));
	}
	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	control.header.cmsg_len = CMSG_LEN(count * sizeof(int));
	message.msg_controllen = CMSG_SPACE(count * sizeof(int));
	long sent = RETRY(sys(__NR_sendmsg, spawn->transfer, &message, MSG_NOSIGNAL));
	return sent < 0 ? fail(spawn, NSBOX_STEP_NAMESPACE_OPEN, -1, sent) : 0;
}

/* The highest descriptor below limit that this child needs, or -1. */
static int next_needed(const struct spawn *spawn, int limit)
{
	int found = -1;

	for (uint32_t i = 0; i < spawn->plan->n_ops + 2; i++) {
		int fd = i == 0   ? spawn->transfer
			 : i == 1 ? spawn->caller_pidfd
				  : spawn->plan->ops[i - 2].idmap;
		if (fd < limit && fd > found)
			found = fd;
	}
	return found;
}

/*
 * First of all. Whoever waits for the end of a pipe waits until all its copies are
 * closed, so there should be none, or not for long: this child shares the caller's
 * table, and takes leave of it with as little as possible.
 */
static int leave_descriptors(struct spawn *spawn)
{
	int limit = INT32_MAX, fd = next_needed(spawn, limit);
	int err = nsbox_close_range((uint32_t)fd + 1, ~0U, CLOSE_RANGE_UNSHARE);

	while (err == 0 && fd >= 0) {
		limit = fd;
		fd = next_needed(spawn, limit);
		if (fd + 1 < limit)
			err = nsbox_close_range((uint32_t)fd + 1, (uint32_t)limit - 1, 0);
	}
	return err < 0 ? fail(spawn, NSBOX_STEP_CLOSE_RANGE, -1, err) : 0;
}

__attribute__((noreturn)) static void run(struct spawn *spawn, int (*function)(struct spawn *))
{
	if (spawn->call.kept_handlers)
		reset_signals();
	if (leave_descriptors(spawn) == 0 && die_with_caller(spawn) == 0 && function(spawn) == 0 &&
	    hand_over(spawn) == 0)
		spawn->executing = true;
	exit_process(0);
}

/* ---- a base ---------------------------------------------------------- */

/* A source has to be what the caller has seen at its path; later callers compare with that. */
static int verify_source(struct spawn *spawn, uint32_t index)
{
	const struct identity *seen = &spawn->identities[index];
	struct statx info;

	int err = identify(spawn->sources[index], STATX_INO, &info);
	if (err == 0 && (info.stx_ino != seen->inode || info.stx_dev_major != seen->major ||
			 info.stx_dev_minor != seen->minor))
		err = -ESTALE;
	return err < 0 ? fail(spawn, NSBOX_STEP_OPEN_TREE, (int)index, err) : 0;
}

/* Put a detached mount into the base under a name of its own. */
static int add_entry(struct spawn *spawn, int fd, const char *name)
{
	struct statx info;

	int err = identify(fd, STATX_TYPE, &info);
	if (err == 0 && S_ISDIR(info.stx_mode))
		err = (int)sys(__NR_mkdirat, spawn->root, name, 0755);
	else if (err == 0)
		err = (int)sys(__NR_mknodat, spawn->root, name, S_IFREG | 0444, 0);
	if (err == 0)
		err = nsbox_move_mount(fd, "", spawn->root, name, MOVE_MOUNT_F_EMPTY_PATH);
	return err < 0 ? fail(spawn, NSBOX_STEP_MOVE_MOUNT, -1, err) : 0;
}

/* In a user namespace of the payload's the owner would be who makes it; here that is root. */
static int make_shared(struct spawn *spawn, uint32_t index)
{
	enum { MOST_OPTIONS = 8 };
	const struct nsbox_plan *plan = spawn->plan;
	const struct nsbox_op *op = operation(spawn, index);
	struct nsbox_option options[MOST_OPTIONS + 2];
	struct filesystem fs = { op->source, options, op->n_options, (uint32_t)op->attributes };
	char uid[24], gid[24];

	if (op->n_options > MOST_OPTIONS)
		return fail(spawn, NSBOX_STEP_FSCONFIG, (int)index, -E2BIG);
	memcpy(options, op->options, op->n_options * sizeof *options);
	if (plan->flags & NSBOX_PLAN_PARENT_SOURCES) {
		uid[format_uint(uid, plan->host_uid)] = '\0';
		gid[format_uint(gid, plan->host_gid)] = '\0';
		options[fs.n_options++] = (struct nsbox_option){ "uid", uid };
		options[fs.n_options++] = (struct nsbox_option){ "gid", gid };
	}
	return make_mount(spawn, index, &fs);
}

/* The same for what is in it. But at a device's path is the host's device by now. */
static int give_to_payload(struct spawn *spawn, uint32_t index)
{
	const struct nsbox_plan *plan = spawn->plan;
	const struct nsbox_op *op = operation(spawn, index);

	if (!(plan->flags & NSBOX_PLAN_PARENT_SOURCES) || op->code == NSBOX_OP_DEVICE)
		return 0;
	long err = sys(__NR_fchownat, spawn->mounts[op->parent], op->target, plan->host_uid,
		       plan->host_gid, AT_SYMLINK_NOFOLLOW);
	return err < 0 ? fail(spawn, NSBOX_STEP_CREATE_FILE, (int)index, err) : 0;
}

/*
 * A file system that is read-only when all is in it is the same for every spawn. It is
 * made and filled here, and belongs to a user namespace outside of every payload's; spawns
 * have clones of its mount, whose attributes the kernel locks in their user namespaces.
 */
static int add_shared(struct spawn *spawn, uint32_t index)
{
	char name[ENTRY_SIZE];

	if (operation(spawn, index)->code != NSBOX_OP_MOUNT)
		return run_operation(spawn, index) < 0 ? -1 : give_to_payload(spawn, index);
	int fd = make_shared(spawn, index);
	spawn->mounts[index] = fd;
	return fd < 0 ? -1 : add_entry(spawn, fd, entry_name(name, index) + 1);
}

/* After the last change to it. */
static int close_shared(struct spawn *spawn)
{
	for (uint32_t index = 0; index < spawn->plan->n_ops; index++) {
		const struct nsbox_op *op = operation(spawn, index);
		bool shared = op->code == NSBOX_OP_READONLY &&
			      operation(spawn, (uint32_t)op->parent)->flags & NSBOX_OP_SHARED;
		if (shared && run_operation(spawn, index) < 0)
			return -1;
	}
	return 0;
}

static int add_entries(struct spawn *spawn, int proc)
{
	char name[ENTRY_SIZE];

	if (add_entry(spawn, proc, "proc") < 0)
		return -1;
	for (uint32_t index = 0; index < spawn->plan->n_ops; index++) {
		int fd = spawn->sources[index];
		bool shared = operation(spawn, index)->flags & NSBOX_OP_SHARED;
		if ((fd >= 0 && verify_source(spawn, index) < 0) ||
		    (shared && add_shared(spawn, index) < 0) ||
		    (!shared && fd >= 0 && add_entry(spawn, fd, entry_name(name, index) + 1) < 0))
			return -1;
	}
	return close_shared(spawn);
}

/*
 * The procfs is a clone of the host's with all that is mounted on it. In a user
 * namespace the kernel lets nobody mount another that would show more than those
 * that are visible (mount_too_revealing in fs/namespace.c).
 */
static int build_base(struct spawn *spawn)
{
	static const struct nsbox_option options[] = { { "size", "64K" }, { "mode", "0755" } };
	static const struct filesystem empty = {
		.type = "tmpfs",
		.options = options,
		.n_options = 2,
		.attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
	};

	await_maps(spawn);
	sys(__NR_umask, 0);
	/* Nothing that the host mounts from now on may come here: whoever uses it would notice. */
	if (make_private(spawn, 0) < 0 || open_sources(spawn) < 0)
		return -1;
	int proc = (int)RETRY(nsbox_open_tree(AT_FDCWD, "/proc",
					      OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE));
	if (proc < 0)
		return fail(spawn, NSBOX_STEP_OPEN_TREE, -1, proc);
	spawn->root = make_mount(spawn, 0, &empty);
	if (spawn->root < 0)
		return -1;
	int err = nsbox_move_mount(spawn->root, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH);
	if (err < 0)
		return fail(spawn, NSBOX_STEP_MOVE_MOUNT, -1, err);
	if (add_entries(spawn, proc) < 0 || pivot(spawn, 0) < 0)
		return -1;
	return hold_namespace(spawn, SPARE_USER) < 0 ? -1 : hold_namespace(spawn, SPARE_SOURCES);
}

void base_main(void *argument)
{
	run(argument, build_base);
}

/* ---- a spare --------------------------------------------------------- */

/*
 * Two mount namespaces: a procfs that belongs to a new pid namespace may be mounted
 * only where another is visible, and that must not be the root that the payload gets.
 */
static int build_spare(struct spawn *spawn)
{
	for (int kind = SPARE_USER; kind <= SPARE_SOURCES; kind++)
		if (hold_namespace(spawn, kind) < 0)
			return -1;
	int err = nsbox_unshare(CLONE_NEWNS);
	if (err < 0)
		return fail(spawn, NSBOX_STEP_UNSHARE, -1, err);
	sys(__NR_umask, 0);
	if (hold_namespace(spawn, SPARE_ROOT) < 0 || open_sources(spawn) < 0 ||
	    run_operations(spawn) < 0)
		return -1;
	spawn->spare.fds[SPARE_RULESET] = make_ruleset(spawn);
	return spawn->result.step ? -1 : 0;
}

void ahead_main(void *argument)
{
	run(argument, build_spare);
}

/* ---- the rest -------------------------------------------------------- */

static int do_late(struct spawn *spawn, int (*function)(struct spawn *, uint32_t))
{
	for (uint32_t index = 0; index < spawn->plan->n_ops; index++)
		if (operation(spawn, index)->flags & NSBOX_OP_LATE && function(spawn, index) < 0)
			return -1;
	return 0;
}

/* What needs the sources, and a procfs that is visible: the mounts, detached. */
static int take_out(struct spawn *spawn, uint32_t index)
{
	if (has_source(operation(spawn, index)))
		return open_source(spawn, index);
	spawn->mounts[index] = make_filesystem(spawn, index);
	return spawn->mounts[index] < 0 ? -1 : 0;
}

static int put_in(struct spawn *spawn, uint32_t index)
{
	if (operation(spawn, index)->code == NSBOX_OP_MASK)
		return mask(spawn, index);
	int err = nsbox_move_mount(spawn->mounts[index], "", spawn->spare.fds[SPARE_PROC], "",
				   MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
	return err < 0 ? fail(spawn, NSBOX_STEP_MOVE_MOUNT, (int)index, err) : 0;
}

/* In a child that the launcher has made among the namespaces of a spare. */
int finish_root(struct spawn *spawn)
{
	if (take_ids(spawn) < 0 || do_late(spawn, take_out) < 0)
		return -1;
	int err = nsbox_setns(spawn->spare.fds[SPARE_ROOT], CLONE_NEWNS);
	if (err < 0)
		return fail(spawn, NSBOX_STEP_SETNS, -1, err);
	spawn->root = AT_FDCWD; /* setns(2) has moved us to its "/" */
	return do_late(spawn, put_in);
}
