/*
 * bell.c - wakes a thread of Python that works for others, but not at once.
 *
 * Whoever rings goes on with something that somebody waits for. The thread would want
 * the interpreter's lock and a processor just then. So to ring is to set a timer: the
 * thread does not even wake up before it is time.
 */
#include "internal.h"

#include <poll.h>
#include <sys/timerfd.h>

int nsbox_bell_open(struct nsbox_bell *bell)
{
	long fd = sys(__NR_timerfd_create, CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	bell->fd = lift((int)fd);
	return bell->fd < 0 ? bell->fd : 0;
}

static void set(const struct nsbox_bell *bell, int64_t delay)
{
	const struct itimerspec timer = {
		.it_value = { (long)(delay / 1000000000), (long)(delay % 1000000000) },
	};
	sys(__NR_timerfd_settime, bell->fd, 0, &timer, 0);
}

/*
 * The first who rings sets the timer; who rings later puts it off, unless it is urgent to
 * somebody. Under the lock the number of the descriptor is no other file's.
 */
int nsbox_bell_ring(struct nsbox_bell *bell, int urgent)
{
	lock(&bell->lock);
	if (bell->fd >= 0) {
		if (!bell->last)
			set(bell, bell->delay);
		bell->last = monotonic_time();
		bell->urgent |= !!urgent;
	}
	unlock(&bell->lock);
	return 0;
}

/* The timer has run out: tell if it is heard now. */
static int is_heard(struct nsbox_bell *bell)
{
	uint64_t count;
	int64_t left = bell->last + bell->delay - monotonic_time();

	sys(__NR_read, bell->fd, &count, sizeof count);
	if (left > 0 && !bell->urgent) {
		set(bell, left);
		return 0;
	}
	bell->last = 0;
	bell->urgent = 0;
	return 1;
}

/* Wait until it is heard, for at most timeout milliseconds (negative: for ever): 1 then. */
int nsbox_bell_await(struct nsbox_bell *bell, int timeout)
{
	struct pollfd ready = { .fd = bell->fd, .events = POLLIN };
	const uint64_t limit[2] = { (uint64_t)timeout / 1000, (uint64_t)timeout % 1000 * 1000000 };
	int heard = 0;

	while (!heard) {
		long ret =
			sys(__NR_ppoll, &ready, 1, timeout < 0 ? 0 : limit, 0, sizeof(signal_mask));
		if (ret <= 0)
			return (int)ret;
		lock(&bell->lock);
		heard = is_heard(bell);
		unlock(&bell->lock);
	}
	return 1;
}

/* Without effect the second time. */
int nsbox_bell_close(struct nsbox_bell *bell)
{
	lock(&bell->lock);
	nsbox_close(&bell->fd);
	unlock(&bell->lock);
	return 0;
}
