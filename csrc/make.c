/*
 * make.c - bases and spares, made by children (ahead.c); and whether a base still holds.
 */
#include "spare.h"

#include <fcntl.h>
#include <linux/stat.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

/* ---- is a base still true? ------------------------------------------ */

static int look_at(const char *path, struct identity *identity)
{
	struct statx info;

	long err = sys(__NR_statx, AT_FDCWD, path, AT_STATX_DONT_SYNC, STATX_INO | STATX_MNT_ID,
		       &info);
	if (err < 0)
		return (int)err;
	if (!(info.stx_mask & STATX_MNT_ID))
		return -ENOSYS;
	*identity = (struct identity){ info.stx_ino, info.stx_mnt_id, info.stx_dev_major,
				       info.stx_dev_minor };
	return 0;
}

static bool same(const char *path, const struct identity *seen)
{
	struct identity now = { 0, 0, 0, 0 };
	return look_at(path, &now) == 0 && now.inode == seen->inode && now.mount == seen->mount &&
	       now.major == seen->major && now.minor == seen->minor;
}

static const char USER_NAMESPACE[] = "/proc/thread-self/ns/user";

static int remember(struct nsbox_store *store, struct base *base)
{
	base->uid = (uint32_t)sys(__NR_geteuid);
	base->gid = (uint32_t)sys(__NR_getegid);
	int err = look_at("/", &base->root);
	if (err == 0)
		err = look_at(USER_NAMESPACE, &base->user_namespace);
	if (err == 0)
		err = (int)sys(__NR_uname, &base->host);
	for (uint32_t i = 0; i < store->plan.n_ops && err == 0; i++)
		if (has_source(&store->plan.ops[i]))
			err = look_at(store->plan.ops[i].source, &store->identities[i]);
	return err;
}

/* Asked once for each change: whoever gets the answer empties the store before others ask. */
bool table_has_changed(const struct base *base)
{
	struct pollfd table = { .fd = base->table, .events = POLLPRI };
	const uint64_t no_time[2] = { 0, 0 };

	return sys(__NR_ppoll, &table, 1, no_time, 0, sizeof(signal_mask)) != 0;
}

/* All threads change their ids with seteuid(2), but none at the same moment. */
static bool is_same_caller(const struct base *base)
{
	return base->uid == (uint32_t)sys(__NR_geteuid) && base->gid == (uint32_t)sys(__NR_getegid);
}

/* For the calling thread; what it sees may differ from what others see. */
bool is_true(const struct nsbox_store *store, const struct base *base)
{
	struct utsname host;

	if (!is_same_caller(base) || !same("/", &base->root) ||
	    !same(USER_NAMESPACE, &base->user_namespace) || sys(__NR_uname, &host) < 0 ||
	    strncmp(host.domainname, base->host.domainname, sizeof host.domainname) != 0)
		return false;
	for (uint32_t i = 0; i < store->plan.n_ops; i++)
		if (has_source(&store->plan.ops[i]) &&
		    !same(store->plan.ops[i].source, &store->identities[i]))
			return false;
	return true;
}

/* ---- children that make things --------------------------------------- */

/* Take what the child has sent; all of it, or nothing. */
static int receive(int socket, struct spare *spare)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(SPARE_COUNT * sizeof(int))];
	} control;
	uint32_t present = 0;
	struct iovec data = { &present, sizeof present };
	struct msghdr message = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof control,
	};

	control.header.cmsg_len = 0;
	long size = RETRY(sys(__NR_recvmsg, socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT));
	if (size < 0)
		return (int)size;
	size_t count = message.msg_controllen < CMSG_LEN(sizeof(int))
			       ? 0
			       : (control.header.cmsg_len - CMSG_LEN(0)) / sizeof(int);
	int err = message.msg_flags & MSG_CTRUNC ? -EMFILE : 0;
	size_t taken = 0;
	for (int kind = 0; kind < SPARE_COUNT && taken < count; kind++) {
		if (!(present >> kind & 1))
			continue;
		memcpy(&spare->fds[kind], CMSG_DATA(&control.header) + taken++ * sizeof(int),
		       sizeof(int));
		spare->fds[kind] = lift(spare->fds[kind]);
		if (spare->fds[kind] < 0)
			err = spare->fds[kind];
	}
	if (err < 0)
		close_spare(spare);
	return err;
}

/* The request of nobody: no cgroup, nothing to hand on. */
static const struct nsbox_request nothing = { .cgroup = -1, .umask = -1, .layers = -1 };

/* Start the child of that stage, wait for its end, and take what it has made. */
static int make_by_child(struct spawn *spawn, struct nsbox_dumpable *dumpable, struct spare *spare,
			 const struct base *base)
{
	int pair[2];

	long err = sys(__NR_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair);
	if (err < 0)
		return (int)err;
	pair[0] = lift(pair[0]);
	pair[1] = lift(pair[1]);
	spawn->transfer = pair[1];
	spawn->request = &nothing;
	if (pair[0] >= 0 && pair[1] >= 0 && open_caller_pidfd(spawn) == 0) {
		start(spawn, dumpable);
		discard_child(spawn);
		close_fd(&spawn->caller_pidfd);
	} else if (!spawn->result.error) {
		spawn->result.error = EMFILE;
	}
	err = spawn->result.error ? -spawn->result.error : receive(pair[0], spare);
	close_fd(&pair[0]);
	close_fd(&pair[1]);
	if (err == 0 && !is_same_caller(base)) {
		close_spare(spare);
		err = -ESTALE;
	}
	return (int)err;
}

/* "id id 1", so that a namespace between the caller's and the payload's changes nothing. */
static void map_to_itself(char *text, uint32_t id)
{
	size_t length = format_uint(text, id);
	text[length++] = ' ';
	length += format_uint(text + length, id);
	memcpy(text + length, " 1", 3);
}

/*
 * Before all else the descriptor that tells of changes: what changes while the base
 * is made, is a change since. A plain user may make mount namespaces only in a user
 * namespace of his own.
 */
int make_base(struct nsbox_store *store, struct base *base)
{
	bool root = store->plan.flags & NSBOX_PLAN_PARENT_SOURCES;
	struct nsbox_plan plan = store->plan;
	struct spare made = no_spare;
	char uid_map[64], gid_map[64];
	size_t size;

	*base = no_base;
	base->table = lift((int)RETRY(sys(__NR_openat, AT_FDCWD, "/proc/thread-self/mountinfo",
					  O_RDONLY | O_CLOEXEC, 0)));
	int err = base->table < 0 ? base->table : remember(store, base);
	struct spawn *spawn = err < 0 ? NULL : allocate_spawn(&plan, &size);
	if (spawn) {
		map_to_itself(uid_map, base->uid);
		map_to_itself(gid_map, base->gid);
		plan.uid_map = root ? NULL : uid_map;
		plan.gid_map = root ? NULL : gid_map;
		spawn->stage = STAGE_BASE;
		spawn->clone_flags = CLONE_NEWNS | (root ? 0 : CLONE_NEWUSER);
		spawn->identities = store->identities;
		err = make_by_child(spawn, NULL, &made, base);
		sys(__NR_munmap, spawn, size);
	} else if (err == 0) {
		err = -ENOMEM;
	}
	base->user = made.fds[SPARE_USER];
	base->mounts = made.fds[SPARE_SOURCES];
	if (err < 0)
		close_fd(&base->table);
	return err;
}

int make_spare(const struct nsbox_store *store, struct spare *spare)
{
	size_t size;

	*spare = no_spare;
	struct spawn *spawn = allocate_spawn(&store->plan, &size);
	if (!spawn)
		return -ENOMEM;
	spawn->stage = STAGE_AHEAD;
	spawn->clone_flags &= ~(uint64_t)(CLONE_NEWPID | CLONE_NEWCGROUP);
	for (int kind = 0; kind < 2; kind++) {
		int fd = kind == 0 ? store->base.user : store->base.mounts;
		if (fd < 0)
			continue;
		spawn->spare_joins[spawn->n_joins] = fd;
		spawn->spare_types[spawn->n_joins++] = kind == 0 ? CLONE_NEWUSER : CLONE_NEWNS;
	}
	spawn->joins = spawn->spare_joins;
	spawn->join_types = spawn->spare_types;
	int err = make_by_child(spawn, store->dumpable, spare, &store->base);
	sys(__NR_munmap, spawn, size);
	return err;
}
