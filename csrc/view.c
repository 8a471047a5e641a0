/*
 * view.c - what a caller sees of the host: is it still what was seen before?
 *
 * A sandbox resolves the paths of its mounts when it is made. One that was made
 * before it is used must not differ from one that would be made now. So what its
 * paths led to is noted when it is made, and looked at again when it is used. Each of
 * them is pinned by the sandbox's own mounts meanwhile: no number is used again.
 */
#include "internal.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <linux/stat.h>
#include <poll.h>

/* Zero if there is nothing: then that is what was seen. */
static struct nsbox_identity identify(const struct nsbox_view *view, const char *path)
{
	const unsigned int mask = STATX_INO | STATX_MNT_ID;
	struct statx info;
	long err;

	if (view->root < 0) {
		err = sys(__NR_statx, AT_FDCWD, path, AT_STATX_DONT_SYNC, mask, &info);
	} else {
		/* In a tree whose links end in it, too. */
		int fd = open_beneath(view->root, path, O_PATH, RESOLVE_IN_ROOT);
		err = fd < 0 ? fd : sys(__NR_statx, fd, "", AT_EMPTY_PATH, mask, &info);
		if (fd >= 0)
			sys(__NR_close, fd);
	}
	if (err < 0)
		return (struct nsbox_identity){ 0 };
	return (struct nsbox_identity){ info.stx_ino, info.stx_mnt_id, info.stx_dev_major,
					info.stx_dev_minor };
}

/*
 * Note what the paths lead to. The table is opened first: poll(2) tells of each change
 * of it since, one that comes while this looks around too.
 */
int nsbox_view_take(struct nsbox_view *view)
{
	long fd = RETRY(
		sys(__NR_openat, AT_FDCWD, "/proc/thread-self/mountinfo", O_RDONLY | O_CLOEXEC, 0));
	if (fd < 0)
		return (int)fd;
	view->table = lift((int)fd);
	if (view->table < 0)
		return view->table;
	view->uid = (uint32_t)sys(__NR_geteuid);
	view->gid = (uint32_t)sys(__NR_getegid);
	for (uint32_t i = 0; i < view->n_paths; i++)
		view->seen[i] = identify(view, view->paths[i]);
	return 0;
}

static bool holds(const struct nsbox_view *view)
{
	struct pollfd table = { .fd = view->table, .events = POLLPRI };
	const uint64_t no_time[2] = { 0, 0 };

	if (sys(__NR_ppoll, &table, 1, no_time, 0, sizeof(signal_mask)) != 0 ||
	    view->uid != (uint32_t)sys(__NR_geteuid) || view->gid != (uint32_t)sys(__NR_getegid))
		return false;
	for (uint32_t i = 0; i < view->n_paths; i++) {
		const struct nsbox_identity *seen = &view->seen[i];
		struct nsbox_identity now = identify(view, view->paths[i]);
		if (now.inode != seen->inode || now.mount != seen->mount ||
		    now.major != seen->major || now.minor != seen->minor)
			return false;
	}
	return true;
}

/* Whether the calling thread sees the same, as of the views behind it. */
int view_holds(const struct nsbox_view *view)
{
	for (; view; view = view->next)
		if (!holds(view))
			return 0;
	return 1;
}

/* Let go of its table; what it was taken with is others'. */
int nsbox_view_close(struct nsbox_view *view)
{
	return nsbox_close(&view->table);
}
