/*
 * landlock.c - the last fence around the file system: landlock(7).
 *
 * The mounts of the sandbox are all that it can name. Landlock holds also for
 * what it might reach without a name, by a descriptor that leads out of its
 * root. The rules are on the mounts that this spawn has made, by their own
 * descriptors. Without namespaces there are no such mounts, and Landlock is the
 * only fence: its rules are on files and directories of the host. The rules of
 * child.c hold here too.
 */
#include "internal.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>

#ifndef __NR_landlock_create_ruleset
#define __NR_landlock_create_ruleset 444
#define __NR_landlock_add_rule 445
#define __NR_landlock_restrict_self 446
#endif

enum { CREATE_RULESET_VERSION = 1, RULE_PATH_BENEATH = 1 };

/* linux/landlock.h, of Linux 6.12; older kernels take a shorter one. */
struct ruleset_attr {
	uint64_t handled_access_fs;
	uint64_t handled_access_net;
	uint64_t scoped;
};

struct path_beneath_attr {
	uint64_t allowed_access;
	int32_t parent_fd;
} __attribute__((packed));

/* EXECUTE, READ_FILE; WRITE_FILE, TRUNCATE; and IOCTL_DEV: the rights that files have. */
static const uint64_t FILE_READ = 1 << 0 | 1 << 2;
static const uint64_t FILE_WRITE = 1 << 1 | 1 << 14;
static const uint64_t FILE_RIGHTS = 1 << 0 | 1 << 2 | 1 << 1 | 1 << 14 | 1 << 15;

int nsbox_landlock_abi(void)
{
	return (int)sys(__NR_landlock_create_ruleset, 0, 0, CREATE_RULESET_VERSION);
}

/* The object of a rule; O_PATH, so to open it does nothing to it. */
int open_path(struct spawn *spawn, uint32_t index)
{
	const char *path = spawn->plan->ops[index].source;
	int fd = lift((int)RETRY(sys(__NR_openat, AT_FDCWD, path, O_PATH | O_CLOEXEC, 0)));

	if (fd < 0)
		return fail(spawn, NSBOX_STEP_OPEN_PATH, (int)index, fd);
	spawn->sources[index] = fd;
	return 0;
}

/* Allow rights on fd and what is below it; a file takes those of files that are in file_rights. */
static long allow(int ruleset, int fd, uint64_t rights, uint64_t file_rights)
{
	struct path_beneath_attr attr = { .allowed_access = rights, .parent_fd = fd };

	long err = sys(__NR_landlock_add_rule, ruleset, RULE_PATH_BENEATH, &attr, 0);
	if (err != -EINVAL)
		return err;
	attr.allowed_access = rights & file_rights;
	return sys(__NR_landlock_add_rule, ruleset, RULE_PATH_BENEATH, &attr, 0);
}

/*
 * What was handed on can be opened again by its link in /proc, as /dev/stdout
 * is, but not for more than it was opened for: the payload may be the owner of a
 * file that it was given to read.
 */
static int allow_descriptor(struct spawn *spawn, int ruleset, int fd)
{
	long flags = sys(__NR_fcntl, fd, F_GETFL);
	uint64_t file_rights = FILE_RIGHTS;

	if (flags >= 0 && !(flags & O_PATH) && (flags & O_ACCMODE) == O_RDONLY)
		file_rights &= ~FILE_WRITE;
	if (flags >= 0 && (flags & O_ACCMODE) == O_WRONLY)
		file_rights &= ~FILE_READ;
	long err = allow(ruleset, fd, spawn->plan->landlock_rights, file_rights);
	/* EBADFD: a pipe or socket, which Landlock leaves alone. EBADF: the caller had none. */
	if (err == -EBADFD || err == -EBADF)
		return 0;
	return err < 0 ? fail(spawn, NSBOX_STEP_LANDLOCK_RULE, -1, err) : 0;
}

/*
 * POSIX message queues are files of a file system that is mounted nowhere. An
 * IPC namespace that is not ours does not let us have it: its queues stay closed. So do the
 * host's, but where the caller is its root and the user namespace is the host's, too.
 *
 * Before pivot_root(2), since it is put where it goes with the old root: to let go of a mount
 * takes a grace period of RCU, and of each detached one takes another. (If it has no such
 * place it remains detached.)
 */
void open_queues(struct spawn *spawn)
{
	if (!spawn->plan->landlock_rights)
		return;
	int context = nsbox_fsopen("mqueue", FSOPEN_CLOEXEC);
	if (context < 0)
		return;
	int fd = nsbox_fsconfig(context, FSCONFIG_CMD_CREATE, 0, 0, 0);
	if (fd == 0)
		fd = lift(nsbox_fsmount(context, FSMOUNT_CLOEXEC, 0));
	sys(__NR_close, context);
	if (fd < 0)
		return;
	spawn->queues = fd;
	nsbox_move_mount(fd, "", AT_FDCWD, "/proc", MOVE_MOUNT_F_EMPTY_PATH);
}

static int allow_queues(struct spawn *spawn, int ruleset)
{
	if (spawn->queues < 0)
		return 0;
	long err = allow(ruleset, spawn->queues, spawn->plan->landlock_rights, FILE_RIGHTS);
	return err < 0 ? fail(spawn, NSBOX_STEP_LANDLOCK_RULE, -1, err) : 0;
}

/* The rules on mounts that this child has made: one that was made ahead has its rule already. */
static int allow_mounts(struct spawn *spawn, int ruleset)
{
	const struct nsbox_plan *plan = spawn->plan;

	for (uint32_t i = 0; i < plan->n_rules; i++) {
		int op = plan->rules[i].op;
		if (spawn->mounts[op] < 0)
			continue;
		long err = allow(ruleset, spawn->mounts[op], plan->rules[i].rights, FILE_RIGHTS);
		if (err < 0)
			return fail(spawn, NSBOX_STEP_LANDLOCK_RULE, op, err);
	}
	return 0;
}

static int allow_descriptors(struct spawn *spawn, int ruleset)
{
	const struct nsbox_request *request = spawn->request;

	for (int fd = 0; fd < 3; fd++)
		if (allow_descriptor(spawn, ruleset, fd) < 0)
			return -1;
	for (uint32_t i = 0; i < request->n_pass_fds; i++)
		if (allow_descriptor(spawn, ruleset, request->pass_fds[i]) < 0)
			return -1;
	return 0;
}

static bool wants_landlock(const struct nsbox_plan *plan)
{
	return plan->landlock_rights || plan->landlock_scoped;
}

/* A ruleset with all the rules that do not depend on what is handed on; -1: failed, or none. */
int make_ruleset(struct spawn *spawn)
{
	const struct nsbox_plan *plan = spawn->plan;
	struct ruleset_attr attr = {
		.handled_access_fs = plan->landlock_rights,
		.handled_access_net = plan->landlock_net,
		.scoped = plan->landlock_scoped,
	};
	size_t size = plan->landlock_scoped ? sizeof attr
		      : plan->landlock_net  ? offsetof(struct ruleset_attr, scoped)
					    : sizeof attr.handled_access_fs;

	if (!wants_landlock(plan))
		return -1;
	int ruleset = (int)sys(__NR_landlock_create_ruleset, &attr, size, 0);
	if (ruleset < 0)
		return fail(spawn, NSBOX_STEP_LANDLOCK_RULESET, -1, ruleset);
	if (plan->landlock_rights &&
	    (allow_mounts(spawn, ruleset) < 0 || allow_queues(spawn, ruleset) < 0))
		return -1;
	return ruleset;
}

int restrict_self(struct spawn *spawn)
{
	const struct nsbox_plan *plan = spawn->plan;
	bool ahead = spawn->stage == STAGE_REST;

	if (!wants_landlock(plan))
		return 0;
	int ruleset = ahead ? spawn->spare.fds[SPARE_RULESET] : make_ruleset(spawn);
	if (ruleset < 0)
		return -1;
	if (plan->landlock_rights &&
	    ((ahead && allow_mounts(spawn, ruleset) < 0) || allow_descriptors(spawn, ruleset) < 0))
		return -1;
	long err = sys(__NR_landlock_restrict_self, ruleset, 0);
	sys(__NR_close, ruleset);
	return err < 0 ? fail(spawn, NSBOX_STEP_LANDLOCK_RESTRICT, -1, err) : 0;
}
