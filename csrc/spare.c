/*
 * spare.c - what is made ahead of spawns, and the thread of C that makes it.
 *
 * A store belongs to one sandbox. It has a base and a few spares (ahead.c): the
 * spawn that takes one needs neither a copy of the host's mount table nor a new
 * network namespace. The thread makes a spare again after each spawn, and lets go of
 * what the kernel is slow to free. Cgroups are made and removed by it too (cgroup.c). It
 * exists only while there is work.
 *
 * A sandbox resolves the paths of its sources at each spawn, and must seem to do so
 * still. So a spare is used only if the caller sees the same at each of these paths as
 * when the base was made, and the host's mount table has not changed since.
 *
 * All fails silently: without a spare a spawn does all by itself.
 */
#include "spare.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

enum { FILLED = 8, IDLE = 1000 * 1000 * 1000 /* ns */ };

/* The end of a thread takes no longer. */
enum { MOMENT = 1000 * 1000 * 1000 /* ns */ };

/* After failures in a row: 10 ms, twice as long each time, 10 s at most. */
enum { FIRST_PAUSE = 10 * 1000 * 1000, DOUBLINGS = 10 };

/* Under the lock; or in a fork, where another thread may have been about to list it. */
static void unlist(struct nsbox_store *store)
{
	struct nsbox_store **link = &store->maker->first;

	while (*link && *link != store)
		link = &(*link)->next;
	if (*link)
		*link = store->next;
}

/* ---- descriptors ---------------------------------------------------- */

void close_fd(int *fd)
{
	if (*fd >= 0)
		sys(__NR_close, *fd);
	*fd = -1;
}

static int copy_fd(int fd)
{
	return fd < 0 ? -1 : (int)sys(__NR_fcntl, fd, F_DUPFD_CLOEXEC, 3);
}

void close_spare(struct spare *spare)
{
	for (int kind = 0; kind < SPARE_COUNT; kind++)
		close_fd(&spare->fds[kind]);
}

const struct spare no_spare = { .fds = { -1, -1, -1, -1, -1, -1, -1, -1 } };
const struct base no_base = { .user = -1, .mounts = -1, .table = -1 };

/* Leave it to the thread to close; here, if there is no room. The caller holds the lock. */
static void use_up(struct nsbox_maker *maker, int *fd)
{
	if (*fd >= 0 && maker->n_used < USED)
		maker->used[maker->n_used++] = *fd;
	else
		close_fd(fd);
	*fd = -1;
}

/* The caller holds the lock. */
static void empty(struct nsbox_store *store)
{
	for (uint32_t i = 0; i < store->n_spares; i++)
		for (int kind = 0; kind < SPARE_COUNT; kind++)
			use_up(store->maker, &store->spares[i].fds[kind]);
	store->n_spares = 0;
	use_up(store->maker, &store->base.user);
	use_up(store->maker, &store->base.mounts);
	use_up(store->maker, &store->base.table);
	store->generation++;
}

/* ---- the thread ------------------------------------------------------ */

static bool is_complete(const struct nsbox_store *store)
{
	return store->base.mounts >= 0 && store->n_spares == SPARES;
}

/*
 * Descriptors are the program's, too: only so many stores have any. One that has not
 * been used for a while is emptied for another. The caller holds the lock.
 */
static bool has_room(struct nsbox_maker *maker)
{
	struct nsbox_store *oldest = NULL;
	int filled = 0;

	for (struct nsbox_store *store = maker->first; store; store = store->next) {
		if (store->base.mounts < 0)
			continue;
		filled++;
		oldest = store->busy ? oldest : store;
	}
	if (filled < FILLED)
		return true;
	if (!oldest || monotonic_time() - oldest->last_use < IDLE)
		return false;
	empty(oldest);
	return true;
}

static bool needs_work(struct nsbox_store *store)
{
	if (!store->wanted || store->unfit || monotonic_time() < store->pause_ends)
		return false;
	return store->base.mounts >= 0 || has_room(store->maker);
}

/* The caller holds the lock. */
static struct nsbox_store *find_work(const struct nsbox_maker *maker)
{
	if (maker->stops)
		return NULL;
	for (struct nsbox_store *store = maker->first; store; store = store->next)
		if (needs_work(store))
			return store;
	return NULL;
}

static void note_failure(struct nsbox_store *store, int err)
{
	uint32_t doublings = store->failures < DOUBLINGS ? store->failures : DOUBLINGS;

	store->unfit = store->unfit || err == -EXDEV;
	store->failures++;
	store->pause_ends = monotonic_time() + ((int64_t)FIRST_PAUSE << doublings);
	store->wanted = false;
}

/* Make what is missing, a base or a spare. The caller holds the lock, and has it again after. */
static void work(struct nsbox_store *store)
{
	struct nsbox_maker *maker = store->maker;
	bool lacks_base = store->base.mounts < 0;
	uint32_t generation = store->generation;
	struct base base;
	struct spare spare;

	store->busy = true;
	pthread_mutex_unlock(&maker->lock);
	int err = lacks_base ? make_base(store, &base) : make_spare(store, &spare);
	pthread_mutex_lock(&maker->lock);
	if (err < 0) {
		note_failure(store, err);
		if (store->unfit)
			empty(store);
	} else if (lacks_base) {
		store->base = base;
	} else if (generation == store->generation) {
		store->spares[store->n_spares++] = spare;
	} else {
		for (int kind = 0; kind < SPARE_COUNT; kind++)
			use_up(maker, &spare.fds[kind]);
	}
	if (is_complete(store))
		store->wanted = false;
	store->busy = false;
	pthread_cond_broadcast(&maker->idle);
}

static void close_used(struct nsbox_maker *maker)
{
	int fds[USED];
	uint32_t count = maker->n_used;

	memcpy(fds, maker->used, sizeof fds);
	maker->n_used = 0;
	pthread_mutex_unlock(&maker->lock);
	for (uint32_t i = 0; i < count; i++)
		sys(__NR_close, fds[i]);
	pthread_mutex_lock(&maker->lock);
}

/*
 * Closing comes last: a short payload has ended by then, and it is this thread on which
 * the kernel takes its mounts apart, and not the payload, on whose end the caller waits.
 */
static void *make(void *argument)
{
	struct nsbox_maker *maker = argument;
	struct nsbox_store *store;
	struct nsbox_cgroup *cgroup;

	pthread_mutex_lock(&maker->lock);
	maker->tid = sys(__NR_gettid);
	for (;;) {
		store = maker->n_used < USED / 2 ? find_work(maker) : NULL;
		cgroup = store ? NULL : find_cgroup(maker);
		if (store)
			work(store);
		else if (cgroup)
			work_at_cgroup(cgroup);
		else if (maker->n_used)
			close_used(maker);
		else
			break;
	}
	maker->running = false;
	maker->ended_at = monotonic_time();
	pthread_cond_broadcast(&maker->idle);
	pthread_mutex_unlock(&maker->lock);
	return NULL;
}

/* Join a thread that is about to end. The caller holds the lock. */
static void join(struct nsbox_maker *maker)
{
	if (!maker->joinable)
		return;
	maker->joinable = false;
	pthread_join(maker->thread, NULL);
	/*
	 * It is joined a moment before it is gone, and a fork counts threads. Later than that its
	 * number may be another thread's, which lasts.
	 */
	while (monotonic_time() - maker->ended_at < MOMENT &&
	       sys(__NR_tgkill, sys(__NR_getpid), maker->tid, 0) == 0)
		sys(__NR_sched_yield);
}

/* The caller holds the lock. */
void start_thread(struct nsbox_maker *maker)
{
	if (maker->running || maker->stops ||
	    (!maker->n_used && !find_work(maker) && !find_cgroup(maker)))
		return;
	join(maker);
	maker->running = create_thread(&maker->thread, make, maker) == 0;
	maker->joinable = maker->running;
}

/* ---- for a spawn ------------------------------------------------------ */

static bool spare_has(const struct spare *spare, int fd)
{
	for (int kind = 0; kind < SPARE_COUNT; kind++)
		if (spare->fds[kind] == fd)
			return true;
	return false;
}

static bool store_has(const struct nsbox_store *store, int fd)
{
	if (fd == store->base.user || fd == store->base.mounts || fd == store->base.table)
		return true;
	for (int i = 0; i < SPARES; i++)
		if (spare_has(&store->spares[i], fd))
			return true;
	return false;
}

/* Whoever names it without having opened it must not have it: it may be the host's mounts. */
bool maker_has(struct nsbox_maker *maker, int fd)
{
	bool found = false;

	pthread_mutex_lock(&maker->lock);
	for (struct nsbox_store *store = maker->first; store && !found; store = store->next)
		found = store_has(store, fd);
	for (struct spare *spare = maker->in_use; spare && !found; spare = spare->next)
		found = spare_has(spare, fd);
	for (uint32_t i = 0; i < maker->n_used && !found; i++)
		found = maker->used[i] == fd;
	found = found || cgroups_have(maker, fd);
	pthread_mutex_unlock(&maker->lock);
	return found;
}

/* The first on the list is the one that was used last. The caller holds the lock. */
static void to_front(struct nsbox_store *store)
{
	unlist(store);
	store->next = store->maker->first;
	store->maker->first = store;
	store->last_use = monotonic_time();
}

/* A fork has a copy of it meanwhile. The caller holds the lock. */
static void begin_use(struct nsbox_maker *maker, struct spare *spare)
{
	spare->next = maker->in_use;
	maker->in_use = spare;
}

/* Without effect on one that is not in use. The caller holds the lock. */
static void end_use(struct nsbox_maker *maker, struct spare *spare)
{
	struct spare **link = &maker->in_use;

	/* Its own numbers stay: a fork copies page by page, and has each in one place at least. */
	for (int kind = 0; kind < SPARE_COUNT; kind++) {
		int fd = spare->fds[kind];
		use_up(maker, &fd);
	}
	while (*link && *link != spare)
		link = &(*link)->next;
	if (*link)
		*link = spare->next;
}

/* The caller holds the lock. */
static enum stage take_out(struct nsbox_store *store, struct spare *spare, bool by_launcher)
{
	const struct base *base = &store->base;

	if (base->mounts >= 0 && table_has_changed(base)) {
		empty(store);
		note_failure(store, -ESTALE);
	}
	if (store->n_spares) {
		*spare = store->spares[--store->n_spares];
		store->spares[store->n_spares] = no_spare;
		return STAGE_REST;
	}
	if (base->mounts < 0 || (base->user >= 0 && !by_launcher))
		return STAGE_WHOLE;
	/* Copies: the originals may be closed at any time. */
	spare->fds[SPARE_SOURCES] = copy_fd(base->mounts);
	spare->fds[SPARE_USER] = copy_fd(base->user);
	if (spare->fds[SPARE_SOURCES] >= 0 && (base->user < 0 || spare->fds[SPARE_USER] >= 0))
		return STAGE_COPY;
	close_spare(spare);
	return STAGE_WHOLE;
}

/*
 * What a spawn can begin with: a spare; or the namespaces of a base to make a copy of,
 * if its launcher may map ids there; or nothing.
 */
enum stage store_take(struct nsbox_store *store, struct spare *spare, bool by_launcher)
{
	struct nsbox_maker *maker = store->maker;

	if (store->owner != nsbox_this_process())
		return STAGE_WHOLE;
	pthread_mutex_lock(&maker->lock);
	to_front(store);
	enum stage stage = take_out(store, spare, by_launcher);
	struct base base = store->base;
	uint32_t generation = store->generation;
	if (stage != STAGE_WHOLE)
		begin_use(maker, spare);
	pthread_mutex_unlock(&maker->lock);
	if (stage == STAGE_WHOLE)
		return stage;
	/* Without the lock: a file system that does not answer holds up nobody else. */
	bool valid = is_true(store, &base);
	pthread_mutex_lock(&maker->lock);
	/* Another thread may have found out what this one cannot see any more. */
	bool current = generation == store->generation;
	if (!valid && current) {
		empty(store);
		note_failure(store, -ESTALE);
	} else if (current) {
		store->failures = 0;
	}
	if (!valid || !current) {
		end_use(maker, spare);
		*spare = no_spare;
	}
	pthread_mutex_unlock(&maker->lock);
	return valid && current ? stage : STAGE_WHOLE;
}

/* After the spawn: let go of the spare that it has used, if so, and make another. */
void store_return(struct nsbox_store *store, struct spare *spare)
{
	struct nsbox_maker *maker = store->maker;

	if (store->owner != nsbox_this_process())
		return;
	pthread_mutex_lock(&maker->lock);
	end_use(maker, spare);
	store->wanted = !is_complete(store);
	start_thread(maker);
	pthread_mutex_unlock(&maker->lock);
}

/* ---- for Python ------------------------------------------------------- */

struct nsbox_maker *nsbox_maker_create(void)
{
	struct nsbox_maker *maker = calloc(1, sizeof *maker);
	if (maker) {
		pthread_mutex_init(&maker->lock, NULL);
		pthread_cond_init(&maker->idle, NULL);
	}
	return maker;
}

int nsbox_maker_stop(struct nsbox_maker *maker)
{
	pthread_mutex_lock(&maker->lock);
	maker->stops++;
	while (maker->running)
		pthread_cond_wait(&maker->idle, &maker->lock);
	join(maker);
	remove_retired(maker);
	pthread_mutex_unlock(&maker->lock);
	return 0;
}

int nsbox_maker_settle(struct nsbox_maker *maker)
{
	pthread_mutex_lock(&maker->lock);
	while (maker->running)
		pthread_cond_wait(&maker->idle, &maker->lock);
	pthread_mutex_unlock(&maker->lock);
	return 0;
}

/* What was used meanwhile has waited for it. */
int nsbox_maker_resume(struct nsbox_maker *maker)
{
	pthread_mutex_lock(&maker->lock);
	if (maker->stops)
		maker->stops--;
	start_thread(maker);
	pthread_mutex_unlock(&maker->lock);
	return 0;
}

int nsbox_maker_drain(struct nsbox_maker *maker)
{
	nsbox_maker_stop(maker);
	pthread_mutex_lock(&maker->lock);
	for (struct nsbox_store *store = maker->first; store; store = store->next) {
		empty(store);
		store->wanted = false;
	}
	while (maker->n_used)
		close_used(maker);
	pthread_mutex_unlock(&maker->lock);
	return nsbox_maker_resume(maker);
}

/*
 * The thread is not here, and the lock may be held for good by one that is not either.
 * But what is listed is open: it is listed last, and taken off the list first.
 */
int nsbox_maker_forget(struct nsbox_maker *maker)
{
	for (struct nsbox_store *store = maker->first; store; store = store->next) {
		for (uint32_t i = 0; i < SPARES; i++)
			close_spare(&store->spares[i]);
		close_fd(&store->base.user);
		close_fd(&store->base.mounts);
		close_fd(&store->base.table);
		store->owner = 0;
	}
	for (struct spare *spare = maker->in_use; spare; spare = spare->next)
		close_spare(spare);
	for (uint32_t i = 0; i < maker->n_used; i++)
		close_fd(&maker->used[i]);
	forget_cgroups(maker);
	return 0;
}

/* The copy outlives the plan, and so has descriptors of its own. */
static void copy_id_maps(struct nsbox_store *store)
{
	struct nsbox_op *ops = (struct nsbox_op *)store->plan.ops;
	for (uint32_t i = 0; i < store->plan.n_ops; i++)
		if (ops[i].idmap >= 0) {
			ops[i].idmap = copy_fd(ops[i].idmap);
			store->unfit = store->unfit || ops[i].idmap < 0;
		}
}

struct nsbox_store *nsbox_store_create(struct nsbox_maker *maker, const struct nsbox_plan *plan,
				       struct nsbox_dumpable *dumpable)
{
	size_t head = (sizeof(struct nsbox_store) + 15) & ~(size_t)15;
	size_t pieces = plan_size(plan);
	size_t size = head + pieces + plan->n_ops * sizeof(struct identity);
	struct nsbox_store *store = maker ? calloc(1, size) : NULL;
	if (!store)
		return NULL;
	copy_plan(plan, &store->plan, (char *)store + head);
	store->identities = (struct identity *)((char *)store + head + pieces);
	store->maker = maker;
	store->owner = nsbox_this_process();
	store->dumpable = dumpable;
	store->base = no_base;
	for (uint32_t i = 0; i < SPARES; i++)
		store->spares[i] = no_spare;
	copy_id_maps(store);
	pthread_mutex_lock(&maker->lock);
	store->next = maker->first;
	maker->first = store;
	pthread_mutex_unlock(&maker->lock);
	return store;
}

int nsbox_store_fill(struct nsbox_store *store)
{
	struct spare none = no_spare;

	pthread_mutex_lock(&store->maker->lock);
	store->pause_ends = 0;
	pthread_mutex_unlock(&store->maker->lock);
	store_return(store, &none);
	nsbox_maker_settle(store->maker);
	return (int)store->n_spares;
}

/* Nothing is left when this returns. */
int nsbox_store_destroy(struct nsbox_store *store)
{
	if (!store)
		return 0;
	struct nsbox_maker *maker = store->maker;
	if (store->owner == nsbox_this_process()) {
		pthread_mutex_lock(&maker->lock);
		store->unfit = true;
		while (store->busy)
			pthread_cond_wait(&maker->idle, &maker->lock);
		unlist(store);
		pthread_mutex_unlock(&maker->lock);
	} else if (store->owner) {
		/* In a fork, before nsbox_maker_forget(): that of a thread that is not here. */
		unlist(store);
	}
	for (uint32_t i = 0; i < SPARES; i++)
		close_spare(&store->spares[i]);
	close_fd(&store->base.user);
	close_fd(&store->base.mounts);
	close_fd(&store->base.table);
	for (uint32_t i = 0; i < store->plan.n_ops; i++)
		if (store->plan.ops[i].idmap >= 0)
			sys(__NR_close, store->plan.ops[i].idmap);
	free(store);
	return 0;
}
