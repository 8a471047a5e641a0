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
#include "mounts.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#define MS_PRIVATE_PROPAGATION (1UL << 18)

/* ---- sources: mounts of the host, cloned ---------------------------- */

static int set_attributes(int fd, uint32_t flags, uint64_t attributes, int idmap)
{
	/* Private, or what the host mounts later would appear in the sandbox. */
	return nsbox_mount_setattr(fd, "", AT_EMPTY_PATH | flags, attributes, 0,
				   MS_PRIVATE_PROPAGATION, idmap);
}

static int clone_tree(struct spawn *spawn, uint32_t index, const char *path)
{
	int fd = lift((int)RETRY(nsbox_open_tree(
		AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE)));
	return fd < 0 ? fail(spawn, NSBOX_STEP_OPEN_TREE, (int)index, fd) : fd;
}

/*
 * AT_RECURSIVE in both calls: without it in the first the kernel refuses trees
 * with locked submounts, without it in the second a submount of a read-only
 * bind would stay writable.
 */
int open_source(struct spawn *spawn, uint32_t index)
{
	const struct nsbox_op *op = operation(spawn, index);
	char entry[ENTRY_SIZE];

	if (op->code == NSBOX_OP_PATH)
		return open_path(spawn, index);
	if (is_shared(spawn, index))
		return 0; /* it lies in one that is shared, and comes with that */
	int fd = clone_tree(spawn, index, in_base(spawn) ? entry_name(entry, index) : op->source);
	if (fd < 0)
		return fd;
	spawn->sources[index] = fd;
	if (in_base(spawn))
		return 0; /* it has the attributes of what it is a clone of */
	int err = set_attributes(fd, AT_RECURSIVE, op->attributes, -1);
	if (err < 0)
		return fail(spawn, NSBOX_STEP_SOURCE_ATTRIBUTES, (int)index, err);
	if (op->idmap < 0)
		return 0;
	err = set_attributes(fd, AT_RECURSIVE, MOUNT_ATTR_IDMAP, op->idmap);
	return err < 0 ? fail(spawn, NSBOX_STEP_IDMAP, (int)index, err) : 0;
}

/* ---- new file systems ----------------------------------------------- */

/* A detached mount of a new file system. */
int make_mount(struct spawn *spawn, uint32_t index, const struct filesystem *fs)
{
	int context = nsbox_fsopen(fs->type, FSOPEN_CLOEXEC);
	if (context < 0)
		return fail(spawn, NSBOX_STEP_FSOPEN, (int)index, context);
	for (uint32_t i = 0; i < fs->n_options; i++) {
		const struct nsbox_option *option = &fs->options[i];
		uint32_t command = option->value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG;
		long err = RETRY(nsbox_fsconfig(context, command, option->key, option->value, 0));
		if (err < 0)
			return fail(spawn, NSBOX_STEP_FSCONFIG, (int)index, err);
	}
	long err = RETRY(nsbox_fsconfig(context, FSCONFIG_CMD_CREATE, 0, 0, 0));
	if (err < 0)
		return fail(spawn, NSBOX_STEP_FSCONFIG_CREATE, (int)index, err);
	int fd = lift((int)RETRY(nsbox_fsmount(context, FSMOUNT_CLOEXEC, fs->attributes)));
	sys(__NR_close, context);
	return fd < 0 ? fail(spawn, NSBOX_STEP_FSMOUNT, (int)index, fd) : fd;
}

/* A new file system, or an overlay if there are layers; detached. */
int make_filesystem(struct spawn *spawn, uint32_t index)
{
	const struct nsbox_op *op = operation(spawn, index);
	struct filesystem fs = {
		.type = op->source,
		.options = op->options,
		.n_options = op->n_options,
		.attributes = (uint32_t)op->attributes,
	};
	return op->layers ? make_overlay(spawn, index, &fs) : make_mount(spawn, index, &fs);
}

static int op_mount(struct spawn *spawn, uint32_t index)
{
	const struct nsbox_op *op = operation(spawn, index);
	char entry[ENTRY_SIZE];

	int fd = is_shared(spawn, index) ? clone_tree(spawn, index, entry_name(entry, index))
					 : make_filesystem(spawn, index);
	if (fd < 0)
		return fd;
	if (op->code == NSBOX_OP_OVERLAY && spawn->request->layers >= 0 &&
	    hand_out_layers(spawn, index) < 0)
		return -1;
	if (op->code == NSBOX_OP_SCRATCH)
		spawn->scratch = fd;
	else if (!*op->target)
		spawn->root = fd;
	return attach(spawn, index, fd);
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
	return open_beneath(base, op->target, O_PATH, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
}

int mask(struct spawn *spawn, uint32_t index)
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

/* And the NIS domain, of which a new namespace has the host's: as the kernel has it at first. */
static int op_hostname(struct spawn *spawn, uint32_t index)
{
	static const char no_domain[] = "(none)";
	const char *name = operation(spawn, index)->source;
	int err = nsbox_sethostname(name, string_length(name));
	if (err == 0)
		err = (int)sys(__NR_setdomainname, no_domain, sizeof no_domain - 1);
	return err < 0 ? fail(spawn, NSBOX_STEP_SETHOSTNAME, (int)index, err) : 0;
}

int make_private(struct spawn *spawn, uint32_t index)
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
	int64_t id = mount_id(fd);
	sys(__NR_close, fd);
	return id;
}

/*
 * pivot_root(2), "pivot_root(".", ".")": the old root ends up stacked on the
 * new one. umount2(2) takes what is topmost, and the old root can carry mounts
 * itself (scratch; whatever the host has stacked on its "/"): detach until
 * nothing is left above the new root, or ".." would lead to the host.
 */
int pivot(struct spawn *spawn, uint32_t index)
{
	long err = sys(__NR_fchdir, spawn->root);
	if (err < 0)
		return fail(spawn, NSBOX_STEP_FCHDIR, (int)index, err);
	err = nsbox_pivot_root(".", ".");
	if (err < 0)
		return fail(spawn, NSBOX_STEP_PIVOT_ROOT, (int)index, err);
	int64_t root = mount_id(spawn->root), top = root;
	while (root < 0 || (top = topmost()) != root) {
		err = top < 0 ? top : nsbox_umount2(".", 2 /* MNT_DETACH */);
		if (err < 0)
			return fail(spawn, NSBOX_STEP_UMOUNT, (int)index, err);
	}
	return 0;
}

static int op_pivot(struct spawn *spawn, uint32_t index)
{
	open_queues(spawn);
	return pivot(spawn, index);
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

int run_operation(struct spawn *spawn, uint32_t index)
{
	static int (*const run[])(struct spawn *, uint32_t) = {
		[NSBOX_OP_LOOPBACK] = op_loopback,
		[NSBOX_OP_HOSTNAME] = op_hostname,
		[NSBOX_OP_IDS] = op_ids,
		[NSBOX_OP_PROPAGATION] = make_private,
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
		[NSBOX_OP_MASK] = mask,
		[NSBOX_OP_PATH] = op_path,
	};
	const struct nsbox_op *op = operation(spawn, index);

	spawn->own[index] = op->flags & NSBOX_OP_OWN;
	return (is_for_later(spawn, op) ? reserve_target : run[op->code])(spawn, index);
}

int run_operations(struct spawn *spawn)
{
	for (uint32_t index = 0; index < spawn->plan->n_ops; index++) {
		bool there =
			is_shared(spawn, index) && operation(spawn, index)->code != NSBOX_OP_MOUNT;
		if (!there && run_operation(spawn, index) < 0)
			return -1;
	}
	return 0;
}
