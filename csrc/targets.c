/*
 * targets.c - where a mount goes: mount points, found or made, below the new root.
 *
 * Runs between clone and exec, under the rule at the head of child.c.
 */
#include "mounts.h"

#include <fcntl.h>
#include <linux/limits.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <sys/stat.h>

/* ---- what a descriptor is -------------------------------------------- */

int resolve(int root, const char *path, uint64_t flags)
{
	return open_beneath(root, path, O_PATH | flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
}

int identify(int fd, uint32_t mask, struct statx *info)
{
	return (int)sys(__NR_statx, fd, "", AT_EMPTY_PATH, mask, info);
}

/* Of the mount that fd lies on, or -errno: ENOSYS if the kernel does not tell (before 5.8). */
int64_t mount_id(int fd)
{
	struct statx info;
	int err = identify(fd, STATX_MNT_ID, &info);
	if (err < 0)
		return err;
	return info.stx_mask & STATX_MNT_ID ? (int64_t)info.stx_mnt_id : -ENOSYS;
}

/*
 * Does fd lie on a file system that this spawn made: 1, 0 or -errno. Asked of the very object
 * that is about to be changed, since a symbolic link in an image may have led
 * from our tmpfs to a directory of the host that is bound elsewhere.
 */
static int on_own_mount(struct spawn *spawn, int fd)
{
	int64_t id = mount_id(fd);
	for (uint32_t index = 0; id >= 0 && index < spawn->plan->n_ops; index++) {
		if (!spawn->own[index])
			continue;
		if (!spawn->mount_ids[index])
			spawn->mount_ids[index] = mount_id(spawn->mounts[index]);
		if (spawn->mount_ids[index] < 0)
			return (int)spawn->mount_ids[index];
		if (spawn->mount_ids[index] == id)
			return 1;
	}
	return id < 0 ? (int)id : 0;
}

/* ---- mount points ---------------------------------------------------- */

/* Make one missing component below parent, and return an fd of it. */
static int create_component(struct spawn *spawn, uint32_t index, int parent, const char *name,
			    bool directory)
{
	int err = on_own_mount(spawn, parent);
	if (err <= 0)
		return fail(spawn, NSBOX_STEP_TARGET, (int)index, err < 0 ? err : -ENOENT);
	if (directory) {
		err = (int)sys(__NR_mkdirat, parent, name, 0755);
		if (err < 0)
			return fail(spawn, NSBOX_STEP_MKDIR, (int)index, err);
	} else {
		err = (int)sys(__NR_mknodat, parent, name, S_IFREG | 0444, 0);
		if (err < 0)
			return fail(spawn, NSBOX_STEP_MKNOD, (int)index, err);
	}
	int fd = open_beneath(parent, name, O_PATH | O_NOFOLLOW,
			      RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
	return fd < 0 ? fail(spawn, NSBOX_STEP_TARGET, (int)index, fd) : fd;
}

/* Walk to target, making what is missing: each prefix is resolved in-root anew. */
static int create_target(struct spawn *spawn, uint32_t index, int root, bool directory)
{
	const char *target = operation(spawn, index)->target;
	char prefix[PATH_MAX];
	size_t start = 0, end = 0;
	int parent = root;

	while (target[start]) {
		while (target[end] && target[end] != '/' && end < sizeof prefix - 1) {
			prefix[end] = target[end];
			end++;
		}
		prefix[end] = '\0';
		bool last = !target[end];
		if (!last && target[end] != '/')
			return fail(spawn, NSBOX_STEP_TARGET, (int)index, -ENAMETOOLONG);
		int fd = resolve(root, prefix, last ? 0 : O_DIRECTORY);
		if (fd == -ENOENT)
			fd = create_component(spawn, index, parent, prefix + start,
					      !last || directory);
		else if (fd < 0)
			return fail(spawn, NSBOX_STEP_TARGET, (int)index, fd);
		if (fd < 0)
			return fd;
		if (parent != root)
			sys(__NR_close, parent);
		parent = fd;
		if (last)
			break;
		prefix[end] = '/';
		start = ++end;
	}
	return parent;
}

/* The target's fd: it is found, or made like the root of the mount fd, a directory or a file. */
static int find_target(struct spawn *spawn, uint32_t index, int fd)
{
	const struct nsbox_op *op = operation(spawn, index);
	int root = op->flags & NSBOX_OP_IN_SCRATCH ? spawn->scratch : spawn->root;
	struct statx info;

	int target = resolve(root, op->target, 0);
	if (target >= 0)
		return target;
	int err = target == -ENOENT ? identify(fd, STATX_TYPE, &info) : target;
	if (err < 0)
		return fail(spawn, NSBOX_STEP_TARGET, (int)index, err);
	return create_target(spawn, index, root, S_ISDIR(info.stx_mode));
}

/*
 * Ahead of a spawn a mount may only be put in a file system of our own. In the
 * host's, whoever removes the mount point removes the mount with it.
 */
static int stays_ours(struct spawn *spawn, uint32_t index, int target)
{
	if (spawn->stage != STAGE_AHEAD || on_own_mount(spawn, target) > 0)
		return 0;
	return fail(spawn, NSBOX_STEP_TARGET, (int)index, -EXDEV);
}

/* Find or make the mount point of what will be mounted late, unless it only hides something. */
int reserve_target(struct spawn *spawn, uint32_t index)
{
	const struct nsbox_op *op = operation(spawn, index);
	int target;

	if (op->code != NSBOX_OP_MOUNT)
		return 0;
	if (op->flags & NSBOX_OP_PLACED)
		target = resolve(spawn->mounts[op->parent], op->target, O_DIRECTORY);
	else
		target = find_target(spawn, index, spawn->root);
	if (target < 0)
		return fail(spawn, NSBOX_STEP_TARGET, (int)index, target);
	spawn->spare.fds[SPARE_PROC] = target;
	return stays_ours(spawn, index, target);
}

/*
 * Move the detached mount fd onto the operation's target, and remember it.
 *
 * The new root, and scratch below it, are stacked on the host's "/": the one
 * directory that is sure to exist. The process still stands beneath them, on
 * the host's root.
 */
int attach(struct spawn *spawn, uint32_t index, int fd)
{
	const struct nsbox_op *op = operation(spawn, index);
	int err;

	spawn->mounts[index] = fd;
	if (!*op->target) {
		err = nsbox_move_mount(fd, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH);
	} else if (op->flags & NSBOX_OP_PLACED) {
		err = nsbox_move_mount(fd, "", spawn->mounts[op->parent], op->target,
				       MOVE_MOUNT_F_EMPTY_PATH);
	} else {
		int target = find_target(spawn, index, fd);
		if (target < 0)
			return target;
		if (stays_ours(spawn, index, target) < 0)
			return -1;
		err = nsbox_move_mount(fd, "", target, "",
				       MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
		sys(__NR_close, target);
	}
	return err < 0 ? fail(spawn, NSBOX_STEP_MOVE_MOUNT, (int)index, err) : 0;
}
