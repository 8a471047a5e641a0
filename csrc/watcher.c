/*
 * watcher.c - one thread of C that ends payloads at their limits.
 *
 * It sleeps until the next moment at which something can be due: a deadline,
 * or the earliest time at which a payload could have used up its processor time
 * if it ran on all processors without a pause. So it wakes up seldom while there
 * is much left, and it needs neither the interpreter nor its lock: a program
 * that is busy in Python does not make it late, nor does one that never waits
 * for what it has spawned.
 *
 * The thread exists as long as there is something to watch. In a fork it does
 * not exist; nsbox_watcher_forget() lets go of the parent's.
 */
#include "internal.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#define NEVER INT64_MAX

/* Looking more often than this would cost more than it would gain: 4 ms. */
#define FLOOR 4000000

/* One life of the thread. */
struct keeper {
	struct nsbox_watcher *watcher;
	pthread_t thread;
	int wake;     /* eventfd: look again */
	int64_t next; /* when it does so by itself */
	bool stop;
};

struct nsbox_watcher {
	pthread_mutex_t lock;
	struct keeper *keeper; /* NULL while there is nothing to watch */
	struct nsbox_watch *first;
};

/* ---- cgroups -------------------------------------------------------- */

static int write_at(int directory, const char *name, const char *text)
{
	return write_file(directory, name, text, string_length(text));
}

/* Signal every process that the text lists; return how many those are. */
static int kill_listed(const char *text, long size)
{
	int count = 0, pid = 0;

	for (long i = 0; i < size; i++) {
		if (text[i] >= '0' && text[i] <= '9') {
			pid = pid * 10 + (text[i] - '0');
		} else {
			/* 0 stands for a process that our pid namespace does not know. */
			if (pid > 0 && sys(__NR_kill, pid, SIGKILL) == 0)
				count++;
			pid = 0;
		}
	}
	return count;
}

/* One look at the list, in portions that end with a line: the kernel cuts at none. */
static int kill_members(int directory)
{
	char text[4096];
	int count = 0;
	long size, kept = 0;

	long fd = RETRY(sys(__NR_openat, directory, "cgroup.procs", O_RDONLY | O_CLOEXEC));
	if (fd < 0)
		return (int)fd;
	while ((size = RETRY(sys(__NR_read, fd, text + kept, sizeof text - (size_t)kept))) > 0) {
		long end = kept + size, line = end;
		while (line > 0 && text[line - 1] != '\n')
			line--;
		count += kill_listed(text, line);
		kept = end - line;
		memmove(text, text + line, (size_t)kept);
	}
	sys(__NR_close, fd);
	return count;
}

/*
 * cgroup.kill since Linux 5.14. Otherwise until the list has no living process:
 * whoever has a SIGKILL pending cannot fork any more, so each round meets only
 * children of those that the one before has not seen. A frozen process of v1
 * would not die of it.
 */
int nsbox_cgroup_kill(int directory)
{
	enum { ROUNDS = 1000 };

	if (write_at(directory, "cgroup.kill", "1") == 0)
		return 0;
	write_at(directory, "freezer.state", "THAWED");
	int count = 1;
	for (int round = 0; round < ROUNDS && count > 0; round++)
		count = kill_members(directory);
	return count < 0 ? count : 0;
}

/* ---- one watch ------------------------------------------------------ */

static bool has_ended(const struct nsbox_watch *watch)
{
	const uint64_t no_time[2] = { 0, 0 };
	struct pollfd end = { .fd = watch->pidfd, .events = POLLIN };

	return sys(__NR_ppoll, &end, 1, no_time, 0, sizeof(signal_mask)) > 0;
}

/* cpu.stat has "usage_usec N" (its first line), cpuacct.usage nanoseconds; or -errno. */
static int64_t used_time(const struct nsbox_watch *watch)
{
	static const char key[] = "usage_usec ";
	char text[64];
	int64_t value = 0, unit = 1;
	long at = 0, size = RETRY(sys(__NR_pread64, watch->usage, text, sizeof text, 0));

	if (size < 0)
		return size;
	if (size > (long)sizeof key && memcmp(text, key, sizeof key - 1) == 0) {
		at = sizeof key - 1;
		unit = 1000;
	}
	for (; at < size && text[at] >= '0' && text[at] <= '9'; at++)
		value = value * 10 + (text[at] - '0');
	return value * unit;
}

static int64_t earlier(int64_t one, int64_t other)
{
	return one < other ? one : other;
}

/* When processor time can be used up at the earliest. */
static int64_t next_possible(const struct nsbox_watch *watch, int64_t now, int64_t used)
{
	int64_t pause = (watch->cpu_time - used) / watch->cpus;
	return now + (pause > FLOOR ? pause : FLOOR);
}

/* The first process by its pidfd, in case that the cgroup's list cannot be read. */
static void finish(struct nsbox_watch *watch, int hit)
{
	watch->hit = hit;
	watch->next = NEVER;
	nsbox_pidfd_send_signal(watch->pidfd, SIGKILL, 0);
	if (watch->cgroup >= 0)
		nsbox_cgroup_kill(watch->cgroup);
}

/* Look whether something is due, and note when to look again. */
static void check(struct nsbox_watch *watch, int64_t now)
{
	if (has_ended(watch)) {
		if (watch->outlived)
			nsbox_cgroup_kill(watch->cgroup);
		watch->outlived = 0;
		watch->next = NEVER;
		return;
	}
	watch->next = watch->deadline;
	if (now >= watch->deadline) {
		finish(watch, NSBOX_HIT_WALL_TIME);
		return;
	}
	if (!watch->cpu_time)
		return;
	int64_t used = used_time(watch);
	if (used >= watch->cpu_time)
		finish(watch, NSBOX_HIT_CPU_TIME);
	else
		watch->next = earlier(watch->next, next_possible(watch, now, used < 0 ? 0 : used));
}

/* ---- the thread ----------------------------------------------------- */

/* Look at what is due; return when the next is, with the pidfds to wait for meanwhile. */
static int64_t check_all(struct nsbox_watcher *watcher, struct pollfd *fds, size_t room, size_t *n)
{
	int64_t now = monotonic_time(), next = NEVER;

	for (struct nsbox_watch *watch = watcher->first; watch; watch = watch->link) {
		if (watch->pidfd < 0)
			continue;
		if (watch->outlived || now >= watch->next)
			check(watch, now);
		if (watch->next < next)
			next = watch->next;
		if (watch->outlived && *n < room)
			fds[(*n)++] = (struct pollfd){ .fd = watch->pidfd, .events = POLLIN };
	}
	return next;
}

static size_t count_outlived(const struct nsbox_watcher *watcher)
{
	size_t count = 0;
	for (const struct nsbox_watch *watch = watcher->first; watch; watch = watch->link)
		count += watch->outlived && watch->pidfd >= 0;
	return count;
}

/*
 * Without memory for the list the ends of payloads go unseen until the next
 * wake-up, but deadlines are kept.
 */
static void sleep_until(struct keeper *keeper, int64_t next, struct pollfd *fds, size_t n)
{
	uint64_t value, pause[2];
	uint64_t *timeout = NULL;

	if (next != NEVER) {
		int64_t rest = next - monotonic_time();
		rest = rest > 0 ? rest : 0;
		pause[0] = (uint64_t)rest / 1000000000;
		pause[1] = (uint64_t)rest % 1000000000;
		timeout = pause;
	}
	sys(__NR_ppoll, fds, n, timeout, 0, sizeof(signal_mask));
	sys(__NR_read, keeper->wake, &value, sizeof value);
}

static void *watch_over(void *argument)
{
	struct keeper *keeper = argument;
	struct nsbox_watcher *watcher = keeper->watcher;
	struct pollfd alone, *list = NULL;
	size_t room = 0;

	for (;;) {
		pthread_mutex_lock(&watcher->lock);
		if (keeper->stop)
			break;
		size_t wanted = 1 + count_outlived(watcher), n = 1;
		if (wanted > room) {
			struct pollfd *larger = realloc(list, wanted * sizeof *list);
			list = larger ? larger : list;
			room = larger ? wanted : room;
		}
		struct pollfd *fds = list ? list : &alone;
		fds[0] = (struct pollfd){ .fd = keeper->wake, .events = POLLIN };
		int64_t next = keeper->next = check_all(watcher, fds, room, &n);
		pthread_mutex_unlock(&watcher->lock);
		sleep_until(keeper, next, fds, n);
	}
	pthread_mutex_unlock(&watcher->lock);
	free(list);
	return NULL;
}

static void wake(const struct keeper *keeper)
{
	const uint64_t one = 1;
	sys(__NR_write, keeper->wake, &one, sizeof one);
}

static int start_keeper(struct nsbox_watcher *watcher)
{
	struct keeper *keeper = malloc(sizeof *keeper);

	if (!keeper)
		return -ENOMEM;
	*keeper = (struct keeper){ .watcher = watcher, .next = NEVER };
	keeper->wake = lift((int)sys(__NR_eventfd2, 0, EFD_CLOEXEC | EFD_NONBLOCK));
	int err = keeper->wake < 0 ? keeper->wake : 0;
	if (err == 0) {
		err = create_thread(&keeper->thread, watch_over, keeper);
		if (err < 0)
			sys(__NR_close, keeper->wake);
	}
	if (err < 0)
		free(keeper);
	else
		watcher->keeper = keeper;
	return err;
}

/* ---- for Python ----------------------------------------------------- */

struct nsbox_watcher *nsbox_watcher_create(void)
{
	struct nsbox_watcher *watcher = calloc(1, sizeof *watcher);
	if (watcher)
		pthread_mutex_init(&watcher->lock, NULL);
	return watcher;
}

/* Nothing is freed: the lock may be held, for good, by a thread that is not here. */
void nsbox_watcher_forget(struct nsbox_watcher *watcher)
{
	if (watcher->keeper)
		sys(__NR_close, watcher->keeper->wake);
}

/*
 * Replace a descriptor by a copy: the original's number becomes another file's when
 * its owner closes it, at whatever moment, and a kill would meet another cgroup.
 */
static int copy_descriptor(int32_t *fd)
{
	if (*fd < 0)
		return 0;
	int copy = (int)sys(__NR_fcntl, *fd, F_DUPFD_CLOEXEC, 3);
	*fd = copy < 0 ? -1 : copy;
	return copy < 0 ? copy : 0;
}

static void set_deadline(struct nsbox_watch *watch)
{
	watch->deadline = watch->wall_time ? monotonic_time() + watch->wall_time : NEVER;
}

/* With copies of its descriptors. The caller holds the lock. */
static int list(struct nsbox_watcher *watcher, struct nsbox_watch *watch)
{
	int err = copy_descriptor(&watch->cgroup), failed = copy_descriptor(&watch->usage);

	err = err < 0 ? err : failed;
	if (err == 0 && !watcher->keeper)
		err = start_keeper(watcher);
	if (err < 0)
		return err;
	watch->link = watcher->first;
	watcher->first = watch;
	watch->listed = true;
	return 0;
}

/*
 * The second time, for a payload that is started later: its time begins anew. The
 * thread does not look at it before it runs.
 */
int nsbox_watch_add(struct nsbox_watch *watch)
{
	struct nsbox_watcher *watcher = watch->watcher;

	if (!watcher)
		return -ENOMEM;
	/* From the beginning of the spawn on, as Usage.wall_time counts. */
	set_deadline(watch);
	if (watch->owner)
		return 0;
	watch->pidfd = -1;
	watch->next = NEVER;
	pthread_mutex_lock(&watcher->lock);
	int err = list(watcher, watch);
	/* Last: whoever removes it closes its copies, and never what they are copies of. */
	__atomic_store_n(&watch->owner, nsbox_this_process(), __ATOMIC_RELEASE);
	pthread_mutex_unlock(&watcher->lock);
	return err;
}

/*
 * The payload runs: from now on its limits hold. Whoever waits closes the original. The
 * thread looks soon enough by itself, unless this is due before all others. -ECANCELED if
 * another thread has removed it meanwhile, as the program's end does.
 */
int watch_begin(struct nsbox_watch *watch, int pidfd)
{
	struct nsbox_watcher *watcher = watch->watcher;
	int32_t copy = pidfd;
	int err = copy_descriptor(&copy);

	if (err < 0)
		return err;
	pthread_mutex_lock(&watcher->lock);
	bool listed = watch->listed;
	if (listed) {
		watch->pidfd = copy;
		watch->next = watch->deadline;
		if (watch->cpu_time)
			watch->next =
				earlier(watch->next, next_possible(watch, monotonic_time(), 0));
		if (watch->outlived || watch->next < watcher->keeper->next)
			wake(watcher->keeper);
	}
	pthread_mutex_unlock(&watcher->lock);
	if (listed)
		return 0;
	nsbox_close(&copy);
	return -ECANCELED;
}

/* Take it off the list; return the keeper if it was the last. The caller holds the lock. */
static struct keeper *unlist(struct nsbox_watcher *watcher, struct nsbox_watch *watch)
{
	struct nsbox_watch **link = &watcher->first;

	if (!watch->listed)
		return NULL;
	while (*link != watch)
		link = &(*link)->link;
	*link = watch->link;
	watch->listed = false;
	if (watcher->first)
		return NULL;
	struct keeper *last = watcher->keeper;
	watcher->keeper = NULL;
	last->stop = true;
	wake(last);
	return last;
}

/* Without effect the second time. After a fork the copies of descriptors are all that is ours. */
int nsbox_watch_remove(struct nsbox_watch *watch)
{
	struct nsbox_watcher *watcher = watch->watcher;
	struct keeper *last = NULL;
	uint64_t owner = __atomic_load_n(&watch->owner, __ATOMIC_ACQUIRE);

	if (!owner)
		return 0;
	if (owner == nsbox_this_process()) {
		pthread_mutex_lock(&watcher->lock);
		last = unlist(watcher, watch);
		pthread_mutex_unlock(&watcher->lock);
	}
	nsbox_close(&watch->pidfd);
	nsbox_close(&watch->cgroup);
	nsbox_close(&watch->usage);
	if (!last)
		return 0;
	pthread_join(last->thread, NULL);
	sys(__NR_close, last->wake);
	free(last);
	return 0;
}
