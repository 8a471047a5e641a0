/*
 * overlays.c - overlays that a plan asks for, and those that hold missing mount points.
 *
 * Runs between clone and exec, under the rule at the head of child.c.
 */
#include "mounts.h"

#include <fcntl.h>
#include <linux/limits.h>
#include <linux/mount.h>
#include <string.h>
#include <sys/stat.h>

/*
 * An overlay from the directory op->layers of scratch. The layers are named
 * relative to it, which is why the working directory moves there: nothing has
 * to be formatted or escaped, and no path of the host is resolved again.
 */
int make_overlay(struct spawn *spawn, uint32_t index, const struct filesystem *fs)
{
	const struct nsbox_op *op = operation(spawn, index);
	int layers = resolve(spawn->scratch, op->layers, O_DIRECTORY);
	if (layers < 0)
		return fail(spawn, NSBOX_STEP_TARGET, (int)index, layers);
	int err = (int)sys(__NR_fchdir, layers);
	sys(__NR_close, layers);
	if (err < 0)
		return fail(spawn, NSBOX_STEP_FCHDIR, (int)index, err);
	return make_mount(spawn, index, fs);
}

/* ---- read-only trees that lack mount points ------------------------- */

/* Is the mount point of some later operation missing in the tree of this one? 1, 0 or -errno. */
int lacks_mount_point(struct spawn *spawn, uint32_t index, int tree)
{
	size_t skip = string_length(operation(spawn, index)->target);
	for (uint32_t i = index + 1; i < spawn->plan->n_ops; i++) {
		const struct nsbox_op *later = operation(spawn, i);
		if (later->parent != (int)index || later->code == NSBOX_OP_READONLY)
			continue;
		int fd = resolve(tree, later->target + skip + (skip ? 1 : 0), 0);
		if (fd == -ENOENT)
			return 1;
		if (fd < 0)
			return fail(spawn, NSBOX_STEP_TARGET, (int)i, fd);
		sys(__NR_close, fd);
	}
	return 0;
}

/*
 * What the payload may do in a directory of the lower tree it shall be able to
 * do in its copy in the upper layer, which always belongs to it: its rights as
 * the owner, or else those of others.
 */
static int copied_mode(struct spawn *spawn, uint32_t index, int fd)
{
	struct statx info;
	int err = identify(fd, STATX_MODE | STATX_UID, &info);
	if (err < 0)
		return fail(spawn, NSBOX_STEP_TARGET, (int)index, err);
	return info.stx_uid == spawn->plan->uid ? info.stx_mode & 0777 : (info.stx_mode & 7) * 0111;
}

static int make_directory(struct spawn *spawn, uint32_t index, int parent, const char *name,
			  int mode)
{
	int err = mode < 0 ? mode : (int)sys(__NR_mkdirat, parent, name, mode);
	if (err == -EEXIST)
		return 0;
	return err < 0 ? fail(spawn, NSBOX_STEP_MKDIR, (int)index, err) : 0;
}

/* Copy the directories on a path of the lower tree, one that has no links, to the upper layer. */
static int copy_directories(struct spawn *spawn, uint32_t index, int tree, int upper, char *path)
{
	for (char *end = path; *end; end++) {
		if (end[1] && end[1] != '/')
			continue;
		char rest = end[1];
		end[1] = '\0';
		int fd = resolve(tree, path, O_DIRECTORY | O_NOFOLLOW);
		if (fd < 0)
			return fail(spawn, NSBOX_STEP_TARGET, (int)index, fd);
		int err = make_directory(spawn, index, upper, path, copied_mode(spawn, index, fd));
		sys(__NR_close, fd);
		if (err < 0)
			return err;
		end[1] = rest;
	}
	return 0;
}

/* The path below the root of its mount that fd was opened by, without links. */
static long real_path(int fd, char *buffer, size_t size)
{
	char link[40] = "/proc/self/fd/";
	link[14 + format_uint(link + 14, (uint64_t)fd)] = '\0';
	long length = sys(__NR_readlinkat, AT_FDCWD, link, buffer, size - 1);
	buffer[length < 0 ? 0 : length] = '\0';
	return length;
}

/*
 * Directories of the lower tree can belong to users that this user namespace
 * does not know, and then nothing can be made in them, not even in an overlay.
 * The part of path that exists is therefore copied to the upper layer.
 */
static int copy_existing_part(struct spawn *spawn, uint32_t index, int tree, int upper,
			      const char *path)
{
	char prefix[PATH_MAX], real[PATH_MAX];
	size_t length = string_length(path);
	int fd = -ENOENT;

	if (length >= sizeof prefix)
		return fail(spawn, NSBOX_STEP_TARGET, (int)index, -ENAMETOOLONG);
	memcpy(prefix, path, length + 1);
	while (fd == -ENOENT) {
		while (length && prefix[length - 1] != '/')
			length--;
		if (!length)
			return 0; /* nothing of it exists but the root, which has its copy */
		prefix[--length] = '\0';
		fd = resolve(tree, prefix, O_DIRECTORY);
	}
	if (fd < 0)
		return fail(spawn, NSBOX_STEP_TARGET, (int)index, fd);
	long err = real_path(fd, real, sizeof real);
	sys(__NR_close, fd);
	if (err < 0)
		return fail(spawn, NSBOX_STEP_TARGET, (int)index, err);
	return copy_directories(spawn, index, tree, upper, real + (*real == '/'));
}

static int fill_upper(struct spawn *spawn, uint32_t index, int tree, int layers)
{
	size_t skip = string_length(operation(spawn, index)->target);
	int upper = resolve(layers, "upper", O_DIRECTORY);
	if (upper < 0)
		return fail(spawn, NSBOX_STEP_TARGET, (int)index, upper);
	for (uint32_t i = index + 1; i < spawn->plan->n_ops; i++) {
		const struct nsbox_op *later = operation(spawn, i);
		if (later->parent != (int)index || later->code == NSBOX_OP_READONLY)
			continue;
		const char *path = later->target + skip + (skip ? 1 : 0);
		if (copy_existing_part(spawn, i, tree, upper, path) < 0)
			return -1;
	}
	sys(__NR_close, upper);
	return 0;
}

/*
 * A read-only tree that lacks mount points gets an empty overlay above it, in
 * which they can be made: the host's file system stays as it is.
 */
int scaffold(struct spawn *spawn, uint32_t index, int tree)
{
	static const struct nsbox_option options[] = {
		{ "lowerdir", "lower" },
		{ "upperdir", "upper" },
		{ "workdir", "work" },
		{ "userxattr", 0 },
	};
	const struct nsbox_op *op = operation(spawn, index);
	struct filesystem fs = {
		.type = "overlay",
		.options = options,
		.n_options = spawn->plan->flags & NSBOX_PLAN_USER_XATTR ? 4 : 3,
		/* Writable until the mount points are made; the plan has a READONLY for later. */
		.attributes = (uint32_t)(op->attributes & ~(uint64_t)MOUNT_ATTR_RDONLY),
	};
	if (make_directory(spawn, index, spawn->scratch, op->layers, 0700) < 0)
		return -1;
	int layers = resolve(spawn->scratch, op->layers, O_DIRECTORY);
	if (layers < 0)
		return fail(spawn, NSBOX_STEP_TARGET, (int)index, layers);
	int mode = copied_mode(spawn, index, tree);
	if (make_directory(spawn, index, layers, "lower", 0700) < 0 ||
	    make_directory(spawn, index, layers, "upper", mode) < 0 ||
	    make_directory(spawn, index, layers, "work", 0700) < 0 ||
	    fill_upper(spawn, index, tree, layers) < 0)
		return -1;
	int err = nsbox_move_mount(tree, "", layers, "lower", MOVE_MOUNT_F_EMPTY_PATH);
	if (err < 0)
		return fail(spawn, NSBOX_STEP_MOVE_MOUNT, (int)index, err);
	sys(__NR_close, layers);
	spawn->own[index] = true;
	return make_overlay(spawn, index, &fs);
}
