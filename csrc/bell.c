/*
 * bell.c - wakes a thread of Python that works for others, but not at once.
 *
 * Whoever rings goes on with something that somebody waits for. The thread would want
 * the interpreter's lock and a processor just then, so it lets a moment pass first; here,
 * where it needs neither.
 */
#include "internal.h"

#include <poll.h>
#include <sys/eventfd.h>

int nsbox_bell_open(struct nsbox_bell *bell)
{
	bell->fd = lift((int)sys(__NR_eventfd2, 0, EFD_CLOEXEC | EFD_NONBLOCK));
	return bell->fd < 0 ? bell->fd : 0;
}

/* It rings until somebody has heard it. Under the lock its number is no other file's. */
int nsbox_bell_ring(struct nsbox_bell *bell)
{
	const uint64_t one = 1;

	lock(&bell->lock);
	if (bell->fd >= 0)
		sys(__NR_write, bell->fd, &one, sizeof one);
	unlock(&bell->lock);
	return 0;
}

/*
 * Wait until it rings, for at most timeout milliseconds (negative: for ever), and then
 * for pause more. Only for who closes it.
 */
int nsbox_bell_await(struct nsbox_bell *bell, int timeout, int pause)
{
	struct pollfd ringing = { .fd = bell->fd, .events = POLLIN };
	const uint64_t limit[2] = { (uint64_t)timeout / 1000, (uint64_t)timeout % 1000 * 1000000 };
	const uint64_t moment[2] = { (uint64_t)pause / 1000, (uint64_t)pause % 1000 * 1000000 };
	uint64_t count;

	long ret = sys(__NR_ppoll, &ringing, 1, timeout < 0 ? 0 : limit, 0, sizeof(signal_mask));
	if (ret <= 0)
		return (int)ret;
	sys(__NR_ppoll, 0, 0, moment, 0, sizeof(signal_mask));
	sys(__NR_read, bell->fd, &count, sizeof count);
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
