/*
 * forks.c - what this process has, and a fork of it only has copies of.
 */
#include "internal.h"

#include <sys/mman.h>

/* ---- which process this is -------------------------------------------- */

/*
 * A number that none of those has whose memory this process has got a copy of; 0: nobody has asked
 * yet. A pid is no such number: a fork of process 1 is process 1 too, in a pid namespace of its
 * own.
 *
 * The kernel clears it in the copy, whatever makes that: fork(3), or a bare clone(2), of which no
 * hook is told; and before anybody's hook. Who shares our memory, as after vfork(2), has no copies.
 */
static uint64_t unguarded;
static uint64_t *number = &unguarded;

/* The last one that was given: to this process, or to one that it is a fork of. */
static uint64_t last;

uint64_t nsbox_this_process(void)
{
	uint64_t given = __atomic_load_n(number, __ATOMIC_RELAXED);

	if (given)
		return given;
	uint64_t next = __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
	/* If another thread was faster, it is that one's. */
	return __atomic_compare_exchange_n(number, &given, next, false, __ATOMIC_RELAXED,
					   __ATOMIC_RELAXED)
		       ? next
		       : given;
}

static void place_number(void)
{
	const size_t size = sizeof *number;
	long page =
		sys(__NR_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page < 0 && page > -4096)
		return;
	/* What only seems to be Linux may not know of this: then open_gate_in_fork() clears it. */
	sys(__NR_madvise, page, size, MADV_WIPEONFORK);
	*(uint64_t *)page = *number;
	number = (uint64_t *)page;
}

/* ---- the gate --------------------------------------------------------- */

/*
 * What is under way to an init: a fork at that moment would have copies of both ends of a
 * channel, and the caller would never see it close. So forks wait for the moment to pass.
 *
 * By the hooks of fork(3), and not Python's: between those run handlers of signals, finalizers and
 * the program's own hooks, which may start something in this very thread, and would wait for
 * themselves.
 */
static uint32_t gate;

/* How often this thread has closed it: what runs then may fork, a hook of another's for example. */
static _Thread_local uint32_t closed;

void close_gate(void)
{
	if (!closed++)
		lock(&gate);
}

void open_gate(void)
{
	if (!--closed)
		unlock(&gate);
}

static void open_gate_in_fork(void)
{
	*number = 0;
	open_gate();
}

/* ---- both --------------------------------------------------------------- */

int nsbox_guard_forks(const uint64_t **process)
{
	static uint32_t one_at_a_time;
	static bool guarded;
	int err = 0;

	lock(&one_at_a_time);
	if (!guarded) {
		err = pthread_atfork(close_gate, open_gate, open_gate_in_fork);
		guarded = err == 0;
		if (guarded)
			place_number();
	}
	unlock(&one_at_a_time);
	*process = number;
	return -err;
}
