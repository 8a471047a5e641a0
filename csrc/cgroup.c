/*
 * cgroup.c - cgroups that are made ahead of runs, and removed after them.
 *
 * A cgroup is a directory in each hierarchy, its settings, and open files: the entrances,
 * by which a child gets in, and those that hold the figures. Most of what this costs is the
 * kernel's. The thread of spare.c does it, on a processor that has nothing else to do.
 *
 * A record has one holder, until that is emptied by nsbox_cgroup_retire or _release. All look
 * at it under the lock of the maker: a signal handler, or another thread, may end a run in
 * the middle of its end.
 */
#include "spare.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

enum { RECORDS = 8, TRIES = 2 };

/* ---- the work: without the lock ---------------------------------------- */

static const char *skip(const char *list, uint32_t count)
{
	while (count--)
		list += string_length(list) + 1;
	return list;
}

static void close_files(struct nsbox_cgroup *cgroup)
{
	nsbox_close_files(&cgroup->entrances);
	nsbox_close_files(&cgroup->figures);
}

/* A directory that is gone is removed; return the error of the last that cannot be. */
static int remove_directories(const struct nsbox_cgroup *cgroup)
{
	const char *path = cgroup->text;
	int failed = 0;

	for (uint32_t i = 0; i < cgroup->form.n_directories; i++) {
		long err = sys(__NR_unlinkat, AT_FDCWD, path, AT_REMOVEDIR);
		if (err < 0 && err != -ENOENT)
			failed = (int)err;
		path = skip(path, 1);
	}
	return failed;
}

static int try_to_make(struct nsbox_cgroup *cgroup)
{
	const char *path = cgroup->text;
	uint32_t done;
	int err = 0;

	for (uint32_t i = 0; i < cgroup->form.n_directories && err == 0; i++) {
		err = (int)sys(__NR_mkdirat, AT_FDCWD, path, 0777);
		path = skip(path, 1);
	}
	if (err == 0)
		err = nsbox_write_files(path, cgroup->form.n_settings, &done);
	if (err < 0)
		return err;
	path = skip(path, 2 * cgroup->form.n_settings);
	err = nsbox_open_files(path, cgroup->form.n_entrances, O_WRONLY, &cgroup->entrances);
	if (err < 0)
		return err;
	path = skip(path, cgroup->form.n_entrances);
	return open_figures(path, cgroup->form.n_figures, &cgroup->figures);
}

static int make_cgroup(struct nsbox_cgroup *cgroup)
{
	int err = try_to_make(cgroup);
	if (err < 0) {
		close_files(cgroup);
		remove_directories(cgroup);
	}
	return err;
}

static int remove_cgroup(struct nsbox_cgroup *cgroup)
{
	close_files(cgroup);
	return remove_directories(cgroup);
}

/* Somebody may have cleaned up. */
static bool is_there(const struct nsbox_cgroup *cgroup)
{
	const char *path = cgroup->text;

	for (uint32_t i = 0; i < cgroup->form.n_directories; i++) {
		if (sys(__NR_faccessat, AT_FDCWD, path, F_OK) < 0)
			return false;
		path = skip(path, 1);
	}
	return true;
}

/* ---- the list: under the lock ------------------------------------------ */

static void drop(struct nsbox_cgroup *cgroup)
{
	struct nsbox_cgroup **link = &cgroup->maker->cgroups;

	while (*link != cgroup)
		link = &(*link)->next;
	*link = cgroup->next;
	free(cgroup);
}

/* The lock is let go of meanwhile. */
static int do_unlocked(struct nsbox_cgroup *cgroup, enum cgroup_state state,
		       int (*function)(struct nsbox_cgroup *))
{
	struct nsbox_maker *maker = cgroup->maker;

	cgroup->state = state;
	pthread_mutex_unlock(&maker->lock);
	int err = function(cgroup);
	pthread_mutex_lock(&maker->lock);
	pthread_cond_broadcast(&maker->idle);
	return err;
}

static void make_now(struct nsbox_cgroup *cgroup)
{
	cgroup->error = do_unlocked(cgroup, CGROUP_MAKING, make_cgroup);
	cgroup->state = cgroup->error < 0 ? CGROUP_FAILED : CGROUP_MADE;
}

/* What died a moment ago may still count as there, so a second try is worth it. */
static void remove_now(struct nsbox_cgroup *cgroup)
{
	if (do_unlocked(cgroup, CGROUP_REMOVING, remove_cgroup) == 0)
		drop(cgroup);
	else
		cgroup->state = ++cgroup->tries < TRIES ? CGROUP_RETIRED : CGROUP_LEFT;
}

static struct nsbox_cgroup *find(const struct nsbox_maker *maker, enum cgroup_state state)
{
	struct nsbox_cgroup *cgroup = maker->cgroups;

	while (cgroup && cgroup->state != state)
		cgroup = cgroup->next;
	return cgroup;
}

/* The next run may be waited for; what is over is not. */
struct nsbox_cgroup *find_cgroup(const struct nsbox_maker *maker)
{
	struct nsbox_cgroup *wanted = maker->stops ? NULL : find(maker, CGROUP_WANTED);
	return wanted ? wanted : find(maker, CGROUP_RETIRED);
}

void work_at_cgroup(struct nsbox_cgroup *cgroup)
{
	if (cgroup->state == CGROUP_WANTED)
		make_now(cgroup);
	else
		remove_now(cgroup);
}

void remove_retired(struct nsbox_maker *maker)
{
	for (;;) {
		struct nsbox_cgroup *cgroup = find(maker, CGROUP_RETIRED);
		if (cgroup)
			remove_now(cgroup);
		else if (find(maker, CGROUP_REMOVING))
			pthread_cond_wait(&maker->idle, &maker->lock);
		else
			break;
	}
}

static bool has_file(const struct nsbox_files *files, int fd)
{
	for (uint32_t i = 0; i < files->count; i++)
		if (files->fds[i] == fd)
			return true;
	return false;
}

bool cgroups_have(const struct nsbox_maker *maker, int fd)
{
	for (struct nsbox_cgroup *cgroup = maker->cgroups; cgroup; cgroup = cgroup->next)
		if (has_file(&cgroup->entrances, fd) || has_file(&cgroup->figures, fd))
			return true;
	return false;
}

/* In a fork, where nobody has the lock: all but these descriptors is the parent's. */
void forget_cgroups(const struct nsbox_maker *maker)
{
	for (struct nsbox_cgroup *cgroup = maker->cgroups; cgroup; cgroup = cgroup->next)
		close_files(cgroup);
}

/* ---- for Python --------------------------------------------------------- */

/*
 * Return what is held, with the lock, and when nobody works at it; NULL without the lock, if
 * it is nobody's any more. In a fork the lock may be held by a thread that is not here.
 */
static struct nsbox_cgroup *hold(const struct nsbox_cgroup_holder *holder)
{
	struct nsbox_maker *maker = holder->maker;

	if (!maker || holder->owner != nsbox_this_process())
		return NULL;
	pthread_mutex_lock(&maker->lock);
	while (holder->cgroup &&
	       (holder->cgroup->state == CGROUP_MAKING || holder->cgroup->state == CGROUP_REMOVING))
		pthread_cond_wait(&maker->idle, &maker->lock);
	if (!holder->cgroup)
		pthread_mutex_unlock(&maker->lock);
	return holder->cgroup;
}

static bool has_room(const struct nsbox_maker *maker)
{
	uint32_t count = 0;

	for (struct nsbox_cgroup *cgroup = maker->cgroups; cgroup; cgroup = cgroup->next)
		count++;
	return count < RECORDS && !maker->stops;
}

int nsbox_cgroup_order(struct nsbox_maker *maker, const struct nsbox_cgroup_form *form,
		       const char *text, uint32_t size, struct nsbox_cgroup_holder *holder)
{
	const uint32_t most = sizeof(((struct nsbox_files *)0)->fds) / sizeof(int32_t);

	if (!maker || form->n_entrances > most || form->n_figures > most)
		return -E2BIG;
	struct nsbox_cgroup *cgroup = calloc(1, sizeof *cgroup + size);
	if (!cgroup)
		return -ENOMEM;
	cgroup->maker = maker;
	cgroup->form = *form;
	memcpy(cgroup->text, text, size);
	pthread_mutex_lock(&maker->lock);
	bool room = has_room(maker);
	if (room) {
		cgroup->next = maker->cgroups;
		maker->cgroups = cgroup;
		holder->maker = maker;
		holder->owner = nsbox_this_process();
		holder->cgroup = cgroup;
		start_thread(maker);
	}
	pthread_mutex_unlock(&maker->lock);
	if (!room)
		free(cgroup);
	return room ? 0 : -EAGAIN;
}

int nsbox_cgroup_take(struct nsbox_cgroup_holder *holder, struct nsbox_files *entrances,
		      struct nsbox_files *figures)
{
	struct nsbox_cgroup *cgroup = hold(holder);

	if (!cgroup)
		return -ENOENT;
	if (cgroup->state == CGROUP_WANTED)
		make_now(cgroup);
	int err = cgroup->error;
	if (err == 0 && !is_there(cgroup))
		err = -ENOENT;
	*entrances = cgroup->entrances;
	*figures = cgroup->figures;
	pthread_mutex_unlock(&holder->maker->lock);
	return err;
}

int nsbox_cgroup_close_entrances(struct nsbox_cgroup_holder *holder)
{
	struct nsbox_cgroup *cgroup = hold(holder);

	if (!cgroup)
		return 0;
	nsbox_close_files(&cgroup->entrances);
	pthread_mutex_unlock(&holder->maker->lock);
	return 0;
}

int nsbox_cgroup_read(struct nsbox_cgroup_holder *holder, char *buffer, uint32_t size)
{
	struct nsbox_cgroup *cgroup = hold(holder);

	if (!cgroup)
		return -ENOENT;
	int used = read_opened(&cgroup->figures, buffer, size);
	pthread_mutex_unlock(&holder->maker->lock);
	return used;
}

int nsbox_cgroup_retire(struct nsbox_cgroup_holder *holder)
{
	struct nsbox_cgroup *cgroup = hold(holder);

	if (!cgroup)
		return false;
	struct nsbox_maker *maker = holder->maker;
	bool retired = !maker->stops;
	if (retired) {
		cgroup->state = CGROUP_RETIRED;
		holder->cgroup = NULL;
		start_thread(maker);
	}
	pthread_mutex_unlock(&maker->lock);
	return retired;
}

int nsbox_cgroup_release(struct nsbox_cgroup_holder *holder)
{
	struct nsbox_cgroup *cgroup = hold(holder);

	if (!cgroup)
		return 0;
	struct nsbox_maker *maker = holder->maker;
	holder->cgroup = NULL;
	if (cgroup->state == CGROUP_MADE)
		remove_now(cgroup);
	else
		drop(cgroup);
	start_thread(maker);
	pthread_mutex_unlock(&maker->lock);
	return 0;
}

int nsbox_maker_tidy(struct nsbox_maker *maker)
{
	pthread_mutex_lock(&maker->lock);
	remove_retired(maker);
	pthread_mutex_unlock(&maker->lock);
	return 0;
}

int nsbox_maker_left(struct nsbox_maker *maker, char *buffer, uint32_t size)
{
	uint32_t length = 0;

	pthread_mutex_lock(&maker->lock);
	struct nsbox_cgroup *cgroup = find(maker, CGROUP_LEFT);
	if (cgroup)
		length = (uint32_t)(skip(cgroup->text, cgroup->form.n_directories) - cgroup->text);
	if (cgroup && length <= size) {
		memcpy(buffer, cgroup->text, length);
		drop(cgroup);
	}
	pthread_mutex_unlock(&maker->lock);
	return (int)length;
}
