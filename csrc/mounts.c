/*
 * mounts.c - the operations of a plan: they build the new root and enter it.
 *
 * Runs between clone and exec, under the rule at the head of child.c. (Only
 * open_source() may also run in the caller.)
 *
 * A mount is first made detached, a mere fd: cloned from the host
 * (open_tree(2)) or new (fsopen(2), fsmount(2)). Its attributes are set while
 * no path leads to it, and only then is it moved onto its target. Targets are
 * resolved with openat2(2) below the new root, as if that were "/" already
 * (RESOLVE_IN_ROOT), and never through a magic link. So no symbolic link of a
 * foreign tree leads out, whoever changes it meanwhile.
 */
#include "internal.h"

#include <fcntl.h>
#include <linux/limits.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/stat.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif

#define MS_PRIVATE_PROPAGATION (1UL << 18)

static const struct nsbox_op *operation(const struct spawn *spawn, uint32_t index)
{
	return &spawn->plan->ops[index];
}

/* ---- sources: mounts of the host, cloned ---------------------------- */

static int set_attributes(int fd, uint32_t flags, uint64_t attributes, int idmap)
{
	/* Private, or what the host mounts later would appear in the sandbox. */
	return nsbox_mount_setattr(fd, "", AT_EMPTY_PATH | flags, attributes, 0,
				   MS_PRIVATE_PROPAGATION, idmap);
}

/*
 * AT_RECURSIVE in both calls: without it in the first the kernel refuses trees
 * with locked submounts, without it in the second a submount of a read-only
 * bind would stay writable.
 */
int open_source(struct spawn *spawn, uint32_t index)
{
	const struct nsbox_op *op = operation(spawn, index);
	if (op->code == NSBOX_OP_PATH)
		return open_path(spawn, index);
	int fd = lift((int)RETRY(nsbox_open_tree(
		AT_FDCWD, op->source, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE)));
	if (fd < 0)
		return fail(spawn, NSBOX_STEP_OPEN_TREE, (int)index, fd);
	spawn->sources[index] = fd;
	int err = set_attributes(fd, AT_RECURSIVE, op->attributes, -1);
	if (err < 0)
		return fail(spawn, NSBOX_STEP_SOURCE_ATTRIBUTES, (int)index, err);
	if (op->idmap < 0)
		return 0;
	err = set_attributes(fd, AT_RECURSIVE, MOUNT_ATTR_IDMAP, op->idmap);
	return err < 0 ? fail(spawn, NSBOX_STEP_IDMAP, (int)index, err) : 0;
}

/* ---- targets -------------------------------------------------------- */

static int resolve(int root, const char *path, uint64_t flags)
{
	return (int)RETRY(nsbox_openat2(root, path, O_PATH | O_CLOEXEC | flags, 0,
					RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS));
}

static int identify(int fd, uint32_t mask, struct statx *info)
{
	return (int)sys(__NR_statx, fd, "", AT_EMPTY_PATH, mask, info);
}

static uint64_t mount_id(int fd)
{
	struct statx info;
	return identify(fd, STATX_MNT_ID, &info) == 0 ? info.stx_mnt_id : 0;
}

/*
 * Does fd lie on a file system that this spawn made? Asked of the very object
 * that is about to be changed, since a symbolic link in an image may have led
 * from our tmpfs to a directory of the host that is bound elsewhere.
 */
static bool on_own_mount(struct spawn *spawn, int fd)
{
	uint64_t id = mount_id(fd);
	for (uint32_t index = 0; id && index < spawn->plan->n_ops; index++) {
		if (!spawn->own[index])
			continue;
		if (!spawn->mount_ids[index])
			spawn->mount_ids[index] = mount_id(spawn->mounts[index]);
		if (spawn->mount_ids[index] == id)
			return true;
	}
	return false;
}

/* Make one missing component below parent, and return an fd of it. */
static int create_component(struct spawn *spawn, uint32_t index, int parent, const char *name,
			    bool directory)
{
	int err;

	if (!on_own_mount(spawn, parent))
		return fail(spawn, NSBOX_STEP_TARGET, (int)index, -ENOENT);
	if (directory) {
		err = (int)sys(__NR_mkdirat, parent, name, 0755);
		if (err < 0)
			return fail(spawn, NSBOX_STEP_MKDIR, (int)index, err);
	} else {
		err = (int)sys(__NR_mknodat, parent, name, S_IFREG | 0444, 0);
		if (err < 0)
			return fail(spawn, NSBOX_STEP_MKNOD, (int)index, err);
	}
	int fd = (int)RETRY(nsbox_openat2(parent, name, O_PATH | O_CLOEXEC | O_NOFOLLOW, 0,
					  RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS));
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
 * Move the detached mount fd onto the operation's target, and remember it.
 *
 * The new root, and scratch below it, are stacked on the host's "/": the one
 * directory that is sure to exist. The process still stands beneath them, on
 * the host's root.
 */
static int attach(struct spawn *spawn, uint32_t index, int fd)
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
		err = nsbox_move_mount(fd, "", target, "",
				       MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
		sys(__NR_close, target);
	}
	return err < 0 ? fail(spawn, NSBOX_STEP_MOVE_MOUNT, (int)index, err) : 0;
}

/* ---- new file systems ----------------------------------------------- */

struct filesystem {
	const char *type;
	const struct nsbox_option *options;
	uint32_t n_options;
	uint32_t attributes;
};

/* A detached mount of a new file system. */
static int make_mount(struct spawn *spawn, uint32_t index, const struct filesystem *fs)
{
	int context = nsbox_fsopen(fs->type, FSOPEN_CLOEXEC);
	if (context < 0)
		return fail(spawn, NSBOX_STEP_FSOPEN, (int)index, context);
	for (uint32_t i = 0; i < fs->n_options; i++) {
		const struct nsbox_option *option = &fs->options[i];
		uint32_t command = option->value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG;
		int err = nsbox_fsconfig(context, command, option->key, option->value, 0);
		if (err < 0)
			return fail(spawn, NSBOX_STEP_FSCONFIG, (int)index, err);
	}
	int err = nsbox_fsconfig(context, FSCONFIG_CMD_CREATE, 0, 0, 0);
	if (err < 0)
		return fail(spawn, NSBOX_STEP_FSCONFIG_CREATE, (int)index, err);
	int fd = lift(nsbox_fsmount(context, FSMOUNT_CLOEXEC, fs->attributes));
	sys(__NR_close, context);
	return fd < 0 ? fail(spawn, NSBOX_STEP_FSMOUNT, (int)index, fd) : fd;
}

/* ---- overlays ------------------------------------------------------- */

/*
 * An overlay from the directory op->layers of scratch. The layers are named
 * relative to it, which is why the working directory moves there: nothing has
 * to be formatted or escaped, and no path of the host is resolved again.
 */
static int make_overlay(struct spawn *spawn, uint32_t index, const struct filesystem *fs)
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

/* A new file system, or an overlay if there are layers. */
static int op_mount(struct spawn *spawn, uint32_t index)
{
	const struct nsbox_op *op = operation(spawn, index);
	struct filesystem fs = {
		.type = op->source,
		.options = op->options,
		.n_options = op->n_options,
		.attributes = (uint32_t)op->attributes,
	};
	int fd = op->layers ? make_overlay(spawn, index, &fs) : make_mount(spawn, index, &fs);
	if (fd < 0)
		return fd;
	if (op->code == NSBOX_OP_SCRATCH)
		spawn->scratch = fd;
	else if (!*op->target)
		spawn->root = fd;
	return attach(spawn, index, fd);
}

/* Is the mount point of some later operation missing in the tree of this one? 1, 0 or -errno. */
static int lacks_mount_point(struct spawn *spawn, uint32_t index, int tree)
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
static int scaffold(struct spawn *spawn, uint32_t index, int tree)
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

/* ---- binds ---------------------------------------------------------- */

static int op_bind(struct spawn *spawn, uint32_t index)
{
	const struct nsbox_op *op = operation(spawn, index);
	int fd = spawn->sources[index];
	struct statx info;

	/* move_mount would take a file for "/", and all that comes later would fail. */
	if (!*op->target) {
		int err = identify(fd, STATX_TYPE, &info);
		if (err == 0 && !S_ISDIR(info.stx_mode))
			err = -ENOTDIR;
		if (err < 0)
			return fail(spawn, NSBOX_STEP_OPEN_TREE, (int)index, err);
	}
	int lacking = op->layers ? lacks_mount_point(spawn, index, fd) : 0;
	if (lacking > 0)
		fd = scaffold(spawn, index, fd);
	if (lacking < 0 || fd < 0)
		return -1;
	if (!*op->target)
		spawn->root = fd;
	return attach(spawn, index, fd);
}

/* Identity is checked on the fd that is mounted: a path may mean another object by now. */
static int check_device(struct spawn *spawn, uint32_t index)
{
	struct statx info;

	int err = identify(spawn->sources[index], STATX_TYPE, &info);
	if (err < 0)
		return fail(spawn, NSBOX_STEP_DEVICE, (int)index, err);
	uint64_t device = ((uint64_t)info.stx_rdev_major << 32) | info.stx_rdev_minor;
	if (!S_ISCHR(info.stx_mode) || device != operation(spawn, index)->device)
		return fail(spawn, NSBOX_STEP_DEVICE, (int)index, -ENODEV);
	return 0;
}

static int op_device(struct spawn *spawn, uint32_t index)
{
	const struct nsbox_op *op = operation(spawn, index);
	int fd = spawn->sources[index], base = spawn->mounts[op->parent];

	if (check_device(spawn, index) < 0)
		return -1;
	int err = (int)sys(__NR_mknodat, base, op->target, S_IFREG | op->mode, 0);
	if (err < 0)
		return fail(spawn, NSBOX_STEP_MKNOD, (int)index, err);
	err = nsbox_move_mount(fd, "", base, op->target, MOVE_MOUNT_F_EMPTY_PATH);
	return err < 0 ? fail(spawn, NSBOX_STEP_MOVE_MOUNT, (int)index, err) : 0;
}

/* ---- masks ---------------------------------------------------------- */

/*
 * What a mask is to hide. In a procfs it is looked for below that very mount, whose
 * identity is checked, and with no link on the way: what is masked is the kernel's
 * file, or what a container that we live in has put over it. Elsewhere it is
 * whatever the path leads to inside.
 */
static int find_masked(struct spawn *spawn, uint32_t index)
{
	const struct nsbox_op *op = operation(spawn, index);
	struct statfs info;

	if (!(op->flags & NSBOX_OP_PLACED))
		return resolve(spawn->root, op->target, 0);
	int base = spawn->mounts[op->parent];
	long err = sys(__NR_fstatfs, base, &info);
	if (err == 0 && info.f_type != PROC_SUPER_MAGIC)
		err = -ENODEV;
	if (err < 0)
		return (int)err;
	return (int)RETRY(nsbox_openat2(base, op->target, O_PATH | O_CLOEXEC, 0,
					RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS));
}

static int op_mask(struct spawn *spawn, uint32_t index)
{
	static const struct nsbox_option options[] = { { "nr_inodes", "1" }, { "mode", "0555" } };
	const struct filesystem empty = {
		.type = "tmpfs",
		.options = options,
		.n_options = 2,
		.attributes = (uint32_t)operation(spawn, index)->attributes,
	};
	struct statx info;

	int target = find_masked(spawn, index);
	int err = target < 0 ? target : identify(target, STATX_TYPE, &info);
	if (err < 0)
		return fail(spawn, NSBOX_STEP_MASK_TARGET, (int)index, err);
	int fd = spawn->sources[index];
	if (S_ISDIR(info.stx_mode))
		fd = make_mount(spawn, index, &empty);
	else if (check_device(spawn, index) < 0)
		return -1;
	if (fd < 0)
		return -1;
	err = nsbox_move_mount(fd, "", target, "",
			       MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
	sys(__NR_close, target);
	return err < 0 ? fail(spawn, NSBOX_STEP_MASK, (int)index, err) : 0;
}

/* ---- content of the file systems made here -------------------------- */

/*
 * Plain *at() calls are safe for these. Their mount is a tmpfs of ours, the plan
 * lets their paths lead through nothing but directories that it has made there
 * (neither links nor mount points), and nobody else can reach it yet.
 */
static int op_directory(struct spawn *spawn, uint32_t index)
{
	const struct nsbox_op *op = operation(spawn, index);
	int err = (int)sys(__NR_mkdirat, spawn->mounts[op->parent], op->target, op->mode);
	return err < 0 ? fail(spawn, NSBOX_STEP_MKDIR, (int)index, err) : 0;
}

static int op_symlink(struct spawn *spawn, uint32_t index)
{
	const struct nsbox_op *op = operation(spawn, index);
	int err = (int)sys(__NR_symlinkat, op->source, spawn->mounts[op->parent], op->target);
	return err < 0 ? fail(spawn, NSBOX_STEP_SYMLINK, (int)index, err) : 0;
}

static int op_file(struct spawn *spawn, uint32_t index)
{
	const struct nsbox_op *op = operation(spawn, index);
	long fd = RETRY(sys(__NR_openat, spawn->mounts[op->parent], op->target,
			    O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, op->mode));
	if (fd < 0)
		return fail(spawn, NSBOX_STEP_CREATE_FILE, (int)index, fd);
	long written = RETRY(sys(__NR_write, fd, op->content, op->content_size));
	sys(__NR_close, fd);
	if (written < 0)
		return fail(spawn, NSBOX_STEP_WRITE_FILE, (int)index, written);
	if ((uint64_t)written != op->content_size)
		return fail(spawn, NSBOX_STEP_WRITE_FILE, (int)index, -ENOSPC);
	return 0;
}

/* ---- the rest of the world ------------------------------------------ */

static int op_loopback(struct spawn *spawn, uint32_t index)
{
	spawn->result.index = (int32_t)index;
	return loopback_up(&spawn->result);
}

static int op_hostname(struct spawn *spawn, uint32_t index)
{
	const char *name = operation(spawn, index)->source;
	int err = nsbox_sethostname(name, string_length(name));
	return err < 0 ? fail(spawn, NSBOX_STEP_SETHOSTNAME, (int)index, err) : 0;
}

static int op_propagation(struct spawn *spawn, uint32_t index)
{
	int err =
		nsbox_mount_setattr(AT_FDCWD, "/", AT_RECURSIVE, 0, 0, MS_PRIVATE_PROPAGATION, -1);
	return err < 0 ? fail(spawn, NSBOX_STEP_PROPAGATION, (int)index, err) : 0;
}

static int op_readonly(struct spawn *spawn, uint32_t index)
{
	int fd = spawn->mounts[operation(spawn, index)->parent];
	int err = nsbox_mount_setattr(fd, "", AT_EMPTY_PATH, MOUNT_ATTR_RDONLY, 0, 0, -1);
	return err < 0 ? fail(spawn, NSBOX_STEP_READONLY, (int)index, err) : 0;
}

/* The mount id of what is stacked topmost on our root, where ".." leads; or -errno. */
static int64_t topmost(void)
{
	int fd = (int)RETRY(nsbox_openat2(AT_FDCWD, "/..", O_PATH | O_CLOEXEC, 0, 0));
	if (fd < 0)
		return fd;
	uint64_t id = mount_id(fd);
	sys(__NR_close, fd);
	return id ? (int64_t)id : -ENOSYS;
}

/*
 * pivot_root(2), "pivot_root(".", ".")": the old root ends up stacked on the
 * new one. umount2(2) takes what is topmost, and the old root can carry mounts
 * itself (scratch; whatever the host has stacked on its "/"): detach until
 * nothing is left above the new root, or ".." would lead to the host.
 */
static int op_pivot(struct spawn *spawn, uint32_t index)
{
	long err = sys(__NR_fchdir, spawn->root);
	if (err < 0)
		return fail(spawn, NSBOX_STEP_FCHDIR, (int)index, err);
	err = nsbox_pivot_root(".", ".");
	if (err < 0)
		return fail(spawn, NSBOX_STEP_PIVOT_ROOT, (int)index, err);
	int64_t root = (int64_t)mount_id(spawn->root), top;
	while ((top = topmost()) != root) {
		if (!root)
			top = -ENOSYS; /* no STATX_MNT_ID: nothing could be verified */
		err = top < 0 ? top : nsbox_umount2(".", 2 /* MNT_DETACH */);
		if (err < 0)
			return fail(spawn, NSBOX_STEP_UMOUNT, (int)index, err);
	}
	return 0;
}

static int op_path(struct spawn *spawn, uint32_t index)
{
	if (operation(spawn, index)->device && check_device(spawn, index) < 0)
		return -1;
	spawn->mounts[index] = spawn->sources[index];
	return 0;
}

static int op_ids(struct spawn *spawn, uint32_t index)
{
	(void)index;
	return take_ids(spawn);
}

static int op_no_user_namespaces(struct spawn *spawn, uint32_t index)
{
	return limit_user_namespace(spawn, (int)index);
}

int run_operations(struct spawn *spawn)
{
	static int (*const run[])(struct spawn *, uint32_t) = {
		[NSBOX_OP_LOOPBACK] = op_loopback,
		[NSBOX_OP_HOSTNAME] = op_hostname,
		[NSBOX_OP_IDS] = op_ids,
		[NSBOX_OP_PROPAGATION] = op_propagation,
		[NSBOX_OP_SCRATCH] = op_mount,
		[NSBOX_OP_BIND] = op_bind,
		[NSBOX_OP_DEVICE] = op_device,
		[NSBOX_OP_MOUNT] = op_mount,
		[NSBOX_OP_OVERLAY] = op_mount,
		[NSBOX_OP_DIRECTORY] = op_directory,
		[NSBOX_OP_FILE] = op_file,
		[NSBOX_OP_SYMLINK] = op_symlink,
		[NSBOX_OP_READONLY] = op_readonly,
		[NSBOX_OP_PIVOT] = op_pivot,
		[NSBOX_OP_NO_USER_NAMESPACES] = op_no_user_namespaces,
		[NSBOX_OP_MASK] = op_mask,
		[NSBOX_OP_PATH] = op_path,
	};
	for (uint32_t index = 0; index < spawn->plan->n_ops; index++) {
		const struct nsbox_op *op = operation(spawn, index);
		spawn->own[index] = op->flags & NSBOX_OP_OWN;
		if (run[op->code](spawn, index) < 0)
			return -1;
	}
	return 0;
}
