/*
 * begin.c - how nsbox-init begins: without a libc, and with next to nothing.
 *
 * There may be a thousand of it. So it has a stack of its own, on the page that it writes to
 * anyway, and unmaps what the kernel has made: the stack with arguments and environment, and the
 * vdso. It has nothing else than its own memory, which does not grow.
 */
#include "init.h"

#include <sched.h>
#include <string.h>

struct own own __attribute__((aligned(PAGE)));

/* ---- what the compiler calls ---------------------------------------- */

void *memset(void *to, int value, size_t size)
{
	char *byte = to;
	while (size--)
		*byte++ = (char)value;
	return to;
}

void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
	char *target = to;
	const char *source = from;
	while (size--)
		*target++ = *source++;
	return to;
}

/* ---- becoming small -------------------------------------------------- */

/*
 * Unmap all that is above this program. The kernel's stack is what costs: two pages, and a
 * branch of the page tables to itself, three more, for as long as the vdso is in it. How far
 * addresses go is found by trying. Where anything is sealed it all remains, and is no harm.
 */
static void unmap_the_rest(void)
{
	enum { LARGEST_PAGE = 64 * 1024, MOST_BITS = 48, LEAST_BITS = 36 };
	extern char _end[];
	uint64_t start = ((uintptr_t)_end + LARGEST_PAGE - 1) & ~(uint64_t)(LARGEST_PAGE - 1);
	long err = -EINVAL;

	/* Less a page: on x86_64 the last is nobody's. */
	for (int bits = MOST_BITS; err == -EINVAL && bits >= LEAST_BITS; bits--)
		err = sys(__NR_munmap, start, (1ULL << bits) - PAGE - start);
}

/* Who holds the larger table for a moment: whether it may go, and (the kernel's word) if it runs.
 */
struct holder {
	uint32_t released;
	uint32_t runs;
};

__attribute__((noreturn)) static void holder_main(void *argument)
{
	struct holder *holder = argument;

	while (!__atomic_load_n(&holder->released, __ATOMIC_ACQUIRE))
		futex_wait(&holder->released, 0);
	for (;;)
		sys(__NR_exit, 0); /* of this thread */
}

/*
 * The table of descriptors is a copy of the caller's: 8 bytes for each number up to the highest,
 * and no table ever shrinks. But who leaves a shared one gets a copy as large as it has to be.
 * So a thread has it too, for a moment, and ends with the old one; if there can be none, the
 * table stays as it is. (A process would be one of the world's, for whoever looks.)
 */
static void shrink_table(void)
{
	/* Here, since this page is in use anyway. */
	char holder_stack[512] __attribute__((aligned(16)));
	struct holder holder = { .runs = 1 };
	struct clone_call call = {
		.flags = CLONE_VM | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD,
		.cgroup = -1,
		.child_tid = &holder.runs,
		.stack = holder_stack,
		.stack_size = sizeof holder_stack,
		.function = holder_main,
		.argument = &holder,
	};

	if (clone_by_clone(&call) < 0)
		return;
	/* This closes nothing. */
	nsbox_close_range(~0U, ~0U, CLOSE_RANGE_UNSHARE);
	__atomic_store_n(&holder.released, 1, __ATOMIC_RELEASE);
	futex_wake(&holder.released);
	while (__atomic_load_n(&holder.runs, __ATOMIC_ACQUIRE))
		futex_wait(&holder.runs, 1);
}

void become_small(bool stays)
{
	if (stays)
		shrink_table();
	unmap_the_rest();
}

/* ---- the entry ------------------------------------------------------- */

__attribute__((used)) void *top_of_stack(void)
{
	return own.stack + sizeof own.stack;
}

/* The entry: the number of arguments, to a stack of our own, and nothing to return to. */
#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov (%rsp), %rbx\n\tcall top_of_stack\n"
	"\tmov %rax, %rsp\n\tmov %rbx, %rdi\n\tcall init_main\n\thlt\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x30, #0\n\tldr x19, [sp]\n"
	"\tbl top_of_stack\n\tmov sp, x0\n\tmov x0, x19\n\tbl init_main\n\tbrk #0\n");
#endif
