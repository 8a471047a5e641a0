/*
 * syscalls.c - one function for each system call, named as in its man page,
 * returning a value >= 0 or -errno. No policy, no ordering.
 */
#include "internal.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <sys/vfs.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

/* ---- clone ---------------------------------------------------------- */

#ifndef CLONE_CLEAR_SIGHAND
#define CLONE_CLEAR_SIGHAND 0x100000000ULL
#endif
#ifndef CLONE_INTO_CGROUP
#define CLONE_INTO_CGROUP 0x200000000ULL
#endif

/*
 * The child of a clone with a stack of its own finds nothing of our frame on
 * it, so it cannot come back through C: it calls function(argument), which
 * must not return. The two live in registers that the kernel preserves.
 */
#if defined(__x86_64__)
#define ENTER_CHILD                                                                                \
	"test %%rax, %%rax\n\t"                                                                    \
	"jnz 1f\n\t"                                                                               \
	"xor %%ebp, %%ebp\n\t"                                                                     \
	"mov %%r13, %%rdi\n\t"                                                                     \
	"call *%%r12\n\t"                                                                          \
	"hlt\n"                                                                                    \
	"1:"

static long raw_clone(long nr, const long args[5], void (*function)(void *), void *argument)
{
	register void (*r12)(void *) __asm__("r12") = function;
	register void *r13 __asm__("r13") = argument;
	register long r10 __asm__("r10") = args[3];
	register long r8 __asm__("r8") = args[4];
	long ret;
	__asm__ volatile("syscall\n\t" ENTER_CHILD
			 : "=a"(ret)
			 : "a"(nr), "D"(args[0]), "S"(args[1]), "d"(args[2]), "r"(r10), "r"(r8),
			   "r"(r12), "r"(r13)
			 : "rcx", "r11", "memory");
	return ret;
}
#elif defined(__aarch64__)
#define ENTER_CHILD                                                                                \
	"cbnz x0, 1f\n\t"                                                                          \
	"mov x29, #0\n\t"                                                                          \
	"mov x30, #0\n\t"                                                                          \
	"mov x0, x20\n\t"                                                                          \
	"blr x19\n\t"                                                                              \
	"brk #0\n"                                                                                 \
	"1:"

static long raw_clone(long nr, const long args[5], void (*function)(void *), void *argument)
{
	register void (*x19)(void *) __asm__("x19") = function;
	register void *x20 __asm__("x20") = argument;
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = args[0];
	register long x1 __asm__("x1") = args[1];
	register long x2 __asm__("x2") = args[2];
	register long x3 __asm__("x3") = args[3];
	register long x4 __asm__("x4") = args[4];
	__asm__ volatile("svc #0\n\t" ENTER_CHILD
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x19), "r"(x20)
			 : "memory");
	return x0;
}
#endif

static uint64_t complete_flags(const struct clone_call *call)
{
	uint64_t flags = call->flags;
	if (call->pidfd)
		flags |= CLONE_PIDFD;
	if (call->child_tid)
		flags |= CLONE_CHILD_CLEARTID;
	return flags;
}

/* clone(2): it stores no pid beside the pidfd, knows no cgroup, and keeps signal handlers. */
long clone_by_clone(struct clone_call *call)
{
	uint64_t flags = complete_flags(call);

	call->kept_handlers = true;
	if (call->cgroup >= 0) {
		/* The cgroup that the child is in when its namespace is made is the root of that.
		 */
		call->outside = true;
		flags &= ~(uint64_t)CLONE_NEWCGROUP;
	}
	long top = (long)(call->stack + call->stack_size);
	long pidfd = (long)call->pidfd, tid = (long)call->child_tid;
#if defined(__x86_64__)
	const long legacy[5] = { (long)flags, top, pidfd, tid, 0 };
#else
	const long legacy[5] = { (long)flags, top, pidfd, 0, tid };
#endif
	return raw_clone(__NR_clone, legacy, call->function, call->argument);
}

/*
 * clone3(2), or clone(2) where a seccomp filter answers ENOSYS to clone3 (as
 * container runtimes do, because they cannot look into its argument).
 */
long clone_and_call(struct clone_call *call)
{
	uint64_t flags = complete_flags(call);
	uint64_t settid = call->pid ? CLONE_PARENT_SETTID : 0;
	uint64_t into = call->cgroup >= 0 ? CLONE_INTO_CGROUP : 0;
	struct clone_args args = {
		.flags = flags | settid | into | CLONE_CLEAR_SIGHAND,
		.parent_tid = (uint64_t)(uintptr_t)call->pid,
		.pidfd = (uint64_t)(uintptr_t)call->pidfd,
		.child_tid = (uint64_t)(uintptr_t)call->child_tid,
		.stack = (uint64_t)(uintptr_t)call->stack,
		.stack_size = call->stack_size,
		.cgroup = into ? (uint32_t)call->cgroup : 0,
	};
	const long modern[5] = { (long)&args, sizeof args };
	long ret = raw_clone(__NR_clone3, modern, call->function, call->argument);
	/* clone(2) has no room for CLONE_NEWTIME: its bit is part of the exit signal. */
	if (ret != -ENOSYS || (flags & CLONE_NEWTIME))
		return ret;
	return clone_by_clone(call);
}

/*
 * A thread of the calling one's process that libc does not know, with the thread-local
 * storage of its maker. It ends by exit(2). The kernel clears and wakes *running then.
 */
long clone_thread(char *stack, size_t stack_size, uint32_t *running, void (*function)(void *),
		  void *argument)
{
	const long flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD |
			   CLONE_SYSVSEM | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
	long top = (long)(stack + stack_size), tid = (long)running;
#if defined(__x86_64__)
	const long args[5] = { flags, top, tid, tid, 0 };
#else
	const long args[5] = { flags, top, tid, 0, tid };
#endif
	return raw_clone(__NR_clone, args, function, argument);
}

/* ---- processes and signals ------------------------------------------ */

void exit_process(int status)
{
	sys(__NR_exit_group, status);
	/* A filter that refuses even this is in place: an invalid instruction ends us too. */
	for (;;)
		__builtin_trap();
}

/*
 * Not the private kind of futex: the kernel's wake for CLONE_CHILD_CLEARTID is
 * of the shared kind, and the two do not meet.
 */
long futex_wait(uint32_t *word, uint32_t value)
{
	return sys(__NR_futex, word, FUTEX_WAIT, value, 0);
}

/* The same for that many nanoseconds, below a second, at most; then -ETIMEDOUT. */
long futex_wait_for(uint32_t *word, uint32_t value, uint64_t nanoseconds)
{
	const uint64_t timeout[2] = { 0, nanoseconds };
	return sys(__NR_futex, word, FUTEX_WAIT, value, timeout);
}

long futex_wake(uint32_t *word)
{
	return sys(__NR_futex, word, FUTEX_WAKE, 1);
}

/* A lock is free, taken, or taken while others wait for it, who have to be woken. */
enum { FREE, TAKEN, CONTENDED };

void lock(uint32_t *word)
{
	uint32_t before = FREE;

	if (__atomic_compare_exchange_n(word, &before, TAKEN, false, __ATOMIC_ACQUIRE,
					__ATOMIC_RELAXED))
		return;
	while (__atomic_exchange_n(word, CONTENDED, __ATOMIC_ACQUIRE) != FREE)
		futex_wait(word, CONTENDED);
}

void unlock(uint32_t *word)
{
	if (__atomic_exchange_n(word, FREE, __ATOMIC_RELEASE) == CONTENDED)
		futex_wake(word);
}

/*
 * A thread for which no signal of the program is meant. Those of libc itself it must take
 * (sigfillset leaves them out): setuid(3) waits until every thread has changed its ids.
 */
int create_thread(pthread_t *thread, void *(*function)(void *), void *argument)
{
	sigset_t all, mask;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &mask);
	int err = -pthread_create(thread, NULL, function, argument);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	return err;
}

int64_t monotonic_time(void)
{
	struct timespec now = { 0, 0 };
	sys(__NR_clock_gettime, CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000 + now.tv_nsec;
}

/* The kernel's struct sigaction; libc's differs, and its sigaction() takes locks. */
struct kernel_sigaction {
	void (*handler)(int);
	unsigned long flags;
	void (*restorer)(void);
	signal_mask mask;
};

/* What CLONE_CLEAR_SIGHAND does, for the clone that lacks it: handlers go, SIG_IGN stays. */
void reset_signals(void)
{
	for (int signal = 1; signal <= SIGNAL_COUNT; signal++) {
		struct kernel_sigaction action;
		if (sys(__NR_rt_sigaction, signal, 0, &action, sizeof action.mask) < 0)
			continue;
		if (action.handler == SIG_DFL || action.handler == SIG_IGN)
			continue;
		memset(&action, 0, sizeof action);
		sys(__NR_rt_sigaction, signal, &action, 0, sizeof action.mask);
	}
}

long wait_for(int idtype, int id, int options)
{
	return RETRY(sys(__NR_waitid, idtype, id, 0, options | __WALL, 0));
}

/* Bring up "lo" of the calling process's network namespace; see netdevice(7). */
int loopback_up(struct nsbox_result *result)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	long fd = sys(__NR_socket, AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0) {
		result->step = NSBOX_STEP_SOCKET;
		result->error = (int32_t)-fd;
		return -1;
	}
	long err = sys(__NR_ioctl, fd, SIOCSIFFLAGS, &request);
	sys(__NR_close, fd);
	if (err < 0) {
		result->step = NSBOX_STEP_LOOPBACK_UP;
		result->error = (int32_t)-err;
		return -1;
	}
	return 0;
}

/* ---- descriptors ---------------------------------------------------- */

/*
 * Move a descriptor out of the way of 0, 1, 2, which are free where the caller has
 * them closed, and which the child puts the payload's in. Takes fd.
 */
int lift(int fd)
{
	if (fd < 0 || fd > 2)
		return fd;
	long lifted = sys(__NR_fcntl, fd, F_DUPFD_CLOEXEC, 3);
	sys(__NR_close, fd);
	return (int)lifted;
}

/*
 * openat2(2) with RESOLVE_IN_ROOT or RESOLVE_BENEATH. A path that goes up (.., most of
 * all in links) is refused with EAGAIN if anything was mounted or renamed meanwhile,
 * anywhere on the host; other spawns mount all the time. So again, until one of
 * many attempts meets with a quiet moment.
 */
int open_beneath(int dirfd, const char *path, uint64_t flags, uint64_t resolve)
{
	enum { ATTEMPTS = 10000 };
	int fd = -EAGAIN;

	for (int attempt = 0; attempt < ATTEMPTS && fd == -EAGAIN; attempt++)
		fd = (int)RETRY(nsbox_openat2(dirfd, path, flags | O_CLOEXEC, 0, resolve));
	return fd;
}

/* ---- text ----------------------------------------------------------- */

size_t string_length(const char *text)
{
	size_t length = 0;
	while (text[length])
		length++;
	return length;
}

/* Decimal digits of value, not NUL-terminated; buffer holds 20. */
size_t format_uint(char *buffer, uint64_t value)
{
	char digits[20];
	size_t count = 0, length = 0;
	do {
		digits[count++] = (char)('0' + value % 10);
		value /= 10;
	} while (value);
	while (count)
		buffer[length++] = digits[--count];
	return length;
}

/* The kernel's files take a write whole or not at all. */
int write_file(int dirfd, const char *path, const char *text, size_t size)
{
	long fd = RETRY(sys(__NR_openat, dirfd, path, O_WRONLY | O_CLOEXEC, 0));
	if (fd < 0)
		return (int)fd;
	long written = RETRY(sys(__NR_write, fd, text, size));
	sys(__NR_close, fd);
	if (written < 0)
		return (int)written;
	return (size_t)written == size ? 0 : -EIO;
}

int nsbox_secure_execution(void)
{
	return getauxval(AT_SECURE) != 0;
}

/* ---- one to one, for nsbox.lowlevel --------------------------------- */

int nsbox_unshare(uint64_t flags)
{
	return (int)sys(__NR_unshare, flags);
}

int nsbox_setns(int fd, int nstype)
{
	return (int)sys(__NR_setns, fd, nstype);
}

int nsbox_pivot_root(const char *new_root, const char *put_old)
{
	return (int)sys(__NR_pivot_root, new_root, put_old);
}

int nsbox_mount(const char *source, const char *target, const char *filesystemtype,
		uint64_t mountflags, const char *data)
{
	return (int)sys(__NR_mount, source, target, filesystemtype, mountflags, data);
}

int nsbox_umount2(const char *target, int flags)
{
	return (int)sys(__NR_umount2, target, flags);
}

int nsbox_open_tree(int dirfd, const char *path, uint32_t flags)
{
	return (int)sys(__NR_open_tree, dirfd, path, flags);
}

int nsbox_move_mount(int from_dirfd, const char *from_path, int to_dirfd, const char *to_path,
		     uint32_t flags)
{
	return (int)sys(__NR_move_mount, from_dirfd, from_path, to_dirfd, to_path, flags);
}

int nsbox_mount_setattr(int dirfd, const char *path, uint32_t flags, uint64_t attr_set,
			uint64_t attr_clr, uint64_t propagation, int userns_fd)
{
	struct mount_attr attr = {
		.attr_set = attr_set,
		.attr_clr = attr_clr,
		.propagation = propagation,
		.userns_fd = (__u64)(userns_fd < 0 ? 0 : userns_fd),
	};
	return (int)sys(__NR_mount_setattr, dirfd, path, flags, &attr, sizeof attr);
}

int nsbox_openat2(int dirfd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve)
{
	struct open_how how = { .flags = flags, .mode = mode, .resolve = resolve };
	return (int)sys(__NR_openat2, dirfd, path, &how, sizeof how);
}

int nsbox_fsopen(const char *fsname, uint32_t flags)
{
	return (int)sys(__NR_fsopen, fsname, flags);
}

int nsbox_fsconfig(int fd, uint32_t cmd, const char *key, const char *value, int aux)
{
	return (int)sys(__NR_fsconfig, fd, cmd, key, value, aux);
}

int nsbox_fsmount(int fd, uint32_t flags, uint32_t attr_flags)
{
	return (int)sys(__NR_fsmount, fd, flags, attr_flags);
}

int nsbox_pidfd_open(int pid, uint32_t flags)
{
	return (int)sys(__NR_pidfd_open, pid, flags);
}

int nsbox_pidfd_send_signal(int pidfd, int sig, uint32_t flags)
{
	return (int)sys(__NR_pidfd_send_signal, pidfd, sig, 0, flags);
}

int nsbox_close_range(uint32_t first, uint32_t last, uint32_t flags)
{
	return (int)sys(__NR_close_range, first, last, flags);
}

int nsbox_fallocate(int fd, int mode, int64_t offset, int64_t length)
{
	return (int)sys(__NR_fallocate, fd, mode, offset, length);
}

int64_t nsbox_filesystem(int fd)
{
	struct statfs info;

	long err = sys(__NR_fstatfs, fd, &info);
	return err < 0 ? err : (int64_t)info.f_type;
}

int nsbox_sethostname(const char *name, uint64_t length)
{
	return (int)sys(__NR_sethostname, name, length);
}

int nsbox_prctl(int option, uint64_t argument)
{
	return (int)sys(__NR_prctl, option, argument, 0, 0, 0);
}

/* ---- one descriptor over a socket -------------------------------------- */

union one_descriptor {
	struct cmsghdr head;
	char bytes[CMSG_SPACE(sizeof(int))];
};

long send_descriptor(int socket, int fd)
{
	char nothing = 0;
	struct iovec part = { &nothing, 1 };
	union one_descriptor control;
	struct msghdr message = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof control,
	};

	memset(&control, 0, sizeof control);
	control.head = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof fd),
					 .cmsg_level = SOL_SOCKET,
					 .cmsg_type = SCM_RIGHTS };
	memcpy(CMSG_DATA(&control.head), &fd, sizeof fd);
	return RETRY(sys(__NR_sendmsg, socket, &message, MSG_NOSIGNAL));
}

/* What has been sent by now; -EAGAIN if nothing has, -EMFILE if there was no room for it. */
int receive_descriptor(int socket)
{
	char nothing;
	struct iovec part = { &nothing, 1 };
	union one_descriptor control;
	struct msghdr message = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof control,
	};
	int fd;

	long size = RETRY(sys(__NR_recvmsg, socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT));
	if (size < 0)
		return (int)size;
	if (message.msg_controllen < CMSG_LEN(sizeof fd) || control.head.cmsg_level != SOL_SOCKET ||
	    control.head.cmsg_type != SCM_RIGHTS)
		return message.msg_flags & MSG_CTRUNC ? -EMFILE : -EPROTO;
	memcpy(&fd, CMSG_DATA(&control.head), sizeof fd);
	return fd;
}
