/*
 * adopt.c - children of the main thread, made by another one.
 *
 * The parent-death signal comes when the thread ends whose child one is: who clones
 * in a thread of a pool has a payload that dies with the pool, or none that dies with
 * the program. The main thread lasts as long as the program. So a thread that lives
 * only for that makes the clone, and its end is waited for: the kernel gives the
 * children of a thread to the first of the process that is alive (find_alive_thread()
 * in its kernel/exit.c), which is the main thread. The thread is a copy of the calling
 * one in all that a child inherits: namespaces, affinity, privileges, filters, ...
 *
 *   caller                    thread              child, or launcher
 *   ------                    ------              ------------------
 *   clone(CLONE_THREAD ...) ->
 *                             clone3(...)      -> waits
 *   waits                  <- exit
 *   adopted                                    -> asks to die with its parent; goes on
 *
 * It has no thread-local storage of its own and is unknown to libc: the calling
 * thread, whose it has, does nothing meanwhile, and both use raw system calls only.
 */
#include "internal.h"

#include <linux/kcmp.h>
#include <sched.h>

enum { TICK = 10 * 1000 * 1000 /* ns */ };

/* The main thread can end before the others: then it is no parent for anybody. */
static bool main_thread_lives(long pid)
{
	return sys(__NR_kcmp, pid, sys(__NR_gettid), KCMP_VM, 0, 0) <= 0;
}

enum parent choose_parent(const struct nsbox_request *request)
{
	long pid = sys(__NR_getpid);

	if (request->flags & (NSBOX_REQUEST_ATTENDED | NSBOX_REQUEST_BARE) ||
	    sys(__NR_gettid) == pid)
		return PARENT_STAYS;
	return main_thread_lives(pid) ? PARENT_AWAITED : PARENT_LEAVES;
}

struct errand {
	struct clone_call *call;
	long result;
};

__attribute__((noreturn)) static void run_errand(void *argument)
{
	struct errand *errand = argument;

	errand->result = clone_and_call(errand->call);
	for (;;)
		sys(__NR_exit, 0);
}

/* The kernel says that a thread is gone a moment before it gives its children away. */
static void await_end(uint32_t *running, uint32_t tid)
{
	while (__atomic_load_n(running, __ATOMIC_ACQUIRE))
		futex_wait(running, tid);
	while (sys(__NR_tgkill, sys(__NR_getpid), tid, 0) == 0)
		sys(__NR_sched_yield);
}

long clone_adopted(struct spawn *spawn, struct clone_call *call)
{
	struct errand errand = { .call = call };
	uint32_t running = 0;

	if (spawn->parent != PARENT_AWAITED)
		return clone_and_call(call);
	long tid =
		clone_thread(spawn->errand_stack, ERRAND_STACK_SIZE, &running, run_errand, &errand);
	/* Who has a new pid or time namespace for its children may make no threads. */
	if (tid == -EINVAL) {
		spawn->parent = PARENT_LEAVES;
		return clone_and_call(call);
	}
	if (tid < 0)
		return tid;
	await_end(&running, (uint32_t)tid);
	__atomic_store_n(&spawn->parent, PARENT_STAYS, __ATOMIC_RELEASE);
	futex_wake(&spawn->parent);
	return errand.result;
}

/* In the child, which no signal tells of the caller's death yet. */
void await_parent(struct spawn *spawn)
{
	while (__atomic_load_n(&spawn->parent, __ATOMIC_ACQUIRE) == PARENT_AWAITED) {
		futex_wait_for(&spawn->parent, PARENT_AWAITED, TICK);
		exit_if_orphaned(spawn);
	}
}
