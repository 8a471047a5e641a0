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

/* The first who rings says when it is heard. Under the lock its number is no other file's. */
int nsbox_bell_ring(struct nsbox_bell *bell)
{
	const struct itimerspec delay = {
		.it_value = { bell->delay / 1000, (long)(bell->delay % 1000) * 1000000 },
	};

	lock(&bell->lock);
	if (bell->fd >= 0 && !bell->rings) {
		bell->rings = 1;
		sys(__NR_timerfd_settime, bell->fd, 0, &delay, 0);
	}
	unlock(&bell->lock);
	return 0;
}

/* Wait until it is heard, for at most timeout milliseconds (negative: for ever): 1 then. */
int nsbox_bell_await(struct nsbox_bell *bell, int timeout)
{
	struct pollfd heard = { .fd = bell->fd, .events = POLLIN };
	const uint64_t limit[2] = { (uint64_t)timeout / 1000, (uint64_t)timeout % 1000 * 1000000 };
	uint64_t count;

	long ret = sys(__NR_ppoll, &heard, 1, timeout < 0 ? 0 : limit, 0, sizeof(signal_mask));
	if (ret <= 0)
		return (int)ret;
	lock(&bell->lock);
	bell->rings = 0;
	sys(__NR_read, bell->fd, &count, sizeof count);
	unlock(&bell->lock);
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
