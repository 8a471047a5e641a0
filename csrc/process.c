/*
 * process.c - a child from its start to its end: wait, signal, discard or release.
 *
 * Each function leaves the child's record whole. In Python a signal handler or
 * a trace function can raise between any two lines, after a lock is taken or
 * before a descriptor is closed; here nothing comes in between. The lock is held
 * over system calls that do not block.
 */
#include "internal.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <linux/stat.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

/* ---- how it ended --------------------------------------------------- */

/*
 * linux/pidfd.h, struct pidfd_info: 64 bytes in its first version, and exit_code
 * since Linux 6.15. It outlives the reaping of the process, so a status that
 * other code took from us (waitpid(-1), SIGCHLD ignored) is still known.
 */
struct pidfd_info_exit {
	uint64_t mask;
	uint64_t cgroupid;
	uint32_t pid, tgid, ppid;
	uint32_t other_ids[8];
	int32_t exit_code;
};
_Static_assert(sizeof(struct pidfd_info_exit) == 64, "PIDFD_INFO_SIZE_VER0");
#define INFO_PID (1U << 0)
#define INFO_EXIT (1U << 3)
#define GET_INFO _IOC(_IOC_READ | _IOC_WRITE, 0xFF, 11, sizeof(struct pidfd_info_exit))

static bool is_ours(const struct pidfd_info_exit *info)
{
	return (info->mask & INFO_PID) && info->ppid == (uint32_t)sys(__NR_getpid);
}

/*
 * The end of a process whose status other code took. Whoever takes it first
 * claims the process, which makes our waitid fail, and then releases it, which
 * makes the kernel note the status in the pidfd: between the two it is still our
 * child, and the pidfd hangs up (POLLHUP) when the note is there. The kernel looks for
 * the note first, and for the process then: one that is released between the two
 * looks has neither (ESRCH), and at a second question the note. `own`: it is no child of
 * somebody else.
 */
static int exit_of_reaped(int pidfd, bool own, struct nsbox_exit *end)
{
	struct pidfd_info_exit info = { .mask = INFO_EXIT };
	struct pollfd released = { .fd = pidfd };

	long err = sys(__NR_ioctl, pidfd, GET_INFO, &info);
	if (err == -ESRCH || (err == 0 && !(info.mask & INFO_EXIT))) {
		if (err == 0 && own && is_ours(&info))
			RETRY(sys(__NR_ppoll, &released, 1, 0, 0, sizeof(signal_mask)));
		info = (struct pidfd_info_exit){ .mask = INFO_EXIT };
		err = sys(__NR_ioctl, pidfd, GET_INFO, &info);
	}
	if (err < 0 || !(info.mask & INFO_EXIT))
		return -ECHILD;
	if (WIFEXITED(info.exit_code)) {
		end->code = CLD_EXITED;
		end->status = WEXITSTATUS(info.exit_code);
	} else {
		end->code = WCOREDUMP(info.exit_code) ? CLD_DUMPED : CLD_KILLED;
		end->status = WTERMSIG(info.exit_code);
	}
	return 0;
}

/*
 * The pid of a process that has not been reaped; 0 if there is none, or -errno if that cannot
 * be told: before Linux 6.13 it takes a descriptor.
 */
int pid_of(int pidfd)
{
	struct pidfd_info_exit info = { .mask = INFO_PID };

	long err = sys(__NR_ioctl, pidfd, GET_INFO, &info);
	if (err == -ESRCH || err == -EBADF)
		return 0;
	return err < 0 ? pid_in_fdinfo(pidfd) : (int)info.pid;
}

/* Nobody has its pid any more. */
bool is_reaped(int pidfd)
{
	return nsbox_pidfd_send_signal(pidfd, 0, 0) == -ESRCH;
}

static int64_t usec(const struct timeval *time)
{
	return (int64_t)time->tv_sec * 1000000 + time->tv_usec;
}

struct nsbox_exit exit_of(const siginfo_t *info, const struct rusage *usage)
{
	return (struct nsbox_exit){
		.code = info->si_code,
		.status = info->si_status,
		.user_usec = usec(&usage->ru_utime),
		.system_usec = usec(&usage->ru_stime),
		.voluntary_switches = usage->ru_nvcsw,
		.involuntary_switches = usage->ru_nivcsw,
	};
}

/* waitid(2), with the child's rusage, which only the raw call returns. 1: it has ended. */
static int reap(int pidfd, struct nsbox_exit *end)
{
	siginfo_t info;
	struct rusage usage;

	memset(&info, 0, sizeof info);
	memset(&usage, 0, sizeof usage);
	long ret = sys(__NR_waitid, P_PIDFD, pidfd, &info, WEXITED | WNOHANG | __WALL, &usage);
	if (ret == -ECHILD && exit_of_reaped(pidfd, true, end) < 0)
		end->code = CLD_EXITED; /* the kernel kept no status: as Popen, assume success */
	if (ret == -ECHILD)
		return 1;
	if (ret < 0 || !info.si_pid)
		return (int)ret;
	*end = exit_of(&info, &usage);
	return 1;
}

/* ---- descriptors ---------------------------------------------------- */

int nsbox_open(const char *path, int flags, int32_t *fd)
{
	int opened = lift((int)RETRY(sys(__NR_openat, AT_FDCWD, path, flags | O_CLOEXEC, 0)));
	if (opened < 0)
		return opened;
	*fd = opened;
	return 0;
}

int nsbox_open_within(int dirfd, const char *path, int flags, uint64_t mode, uint64_t resolve,
		      int32_t *fd)
{
	int opened = lift(
		(int)RETRY(nsbox_openat2(dirfd, path, (uint64_t)flags | O_CLOEXEC, mode, resolve)));
	if (opened < 0)
		return opened;
	*fd = opened;
	return 0;
}

/* linux/pidfd.h, since Linux 6.11. */
enum { GET_IPC_NAMESPACE = _IO(0xFF, 2), GET_MNT_NAMESPACE = _IO(0xFF, 3) };

int nsbox_open_namespace(int pidfd, uint64_t nstype, int32_t *fd)
{
	int which = nstype == CLONE_NEWNS ? GET_MNT_NAMESPACE : GET_IPC_NAMESPACE;
	int opened = lift((int)sys(__NR_ioctl, pidfd, which, 0));
	if (opened < 0)
		return opened;
	*fd = opened;
	return 0;
}

int nsbox_dup(int fd, int32_t *copy)
{
	long duplicate = sys(__NR_fcntl, fd, F_DUPFD_CLOEXEC, 3);
	if (duplicate < 0)
		return (int)duplicate;
	*copy = (int32_t)duplicate;
	return 0;
}

int nsbox_find_directory(const int32_t *fds, uint32_t n)
{
	struct statx info;

	for (uint32_t i = 0; i < n; i++) {
		long err = sys(__NR_statx, fds[i], "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC,
			       STATX_TYPE, &info);
		if (err < 0 && err != -EBADF)
			return (int)err;
		if (err == 0 && (info.stx_mode & S_IFMT) == S_IFDIR)
			return (int)i;
	}
	return (int)n;
}

int nsbox_close(int32_t *fd)
{
	int number = __atomic_exchange_n(fd, -1, __ATOMIC_ACQ_REL);
	if (number >= 0)
		sys(__NR_close, number);
	return 0;
}

/* ---- the record ----------------------------------------------------- */

struct nsbox_result no_result(uint64_t owner)
{
	return (struct nsbox_result){
		.pidfd = -1,
		.index = -1,
		.report = -1,
		.init = -1,
		.control = -1,
		.starter = -1,
		.starting = -1,
		.names = -1,
		.owner = owner,
		.started_at = monotonic_time(),
	};
}

static void close_all(struct nsbox_result *child, bool foreign)
{
	let_go_of_line(child, foreign);
	nsbox_close(&child->pidfd);
	nsbox_close(&child->report);
	nsbox_close(&child->init);
	nsbox_close(&child->control);
	nsbox_close(&child->starting);
}

static void note_end(struct nsbox_result *child)
{
	if (!child->ended_at)
		child->ended_at = monotonic_time();
}

/*
 * After a fork this is the parent's child. The lock is whatever it was at that
 * moment, and the copy of the descriptor is all that is ours.
 */
static bool is_foreign(struct nsbox_result *child)
{
	if (child->owner == nsbox_this_process())
		return false;
	close_all(child, true);
	if (!child->end.code)
		child->end.code = CLD_EXITED; /* as Popen, assume success */
	note_end(child);
	return true;
}

/* An init that has said nothing has ended, and so has everything else that it started. */
static void assume_killed(struct nsbox_result *child)
{
	/* Whatever process it was that the init has called its child: nobody waits for that one. */
	if (exit_of_reaped(child->pidfd, false, &child->end) < 0) {
		child->end.code = CLD_KILLED;
		child->end.status = SIGKILL;
	}
}

bool is_readable(int fd)
{
	const uint64_t no_time[2] = { 0, 0 };
	struct pollfd readable = { .fd = fd, .events = POLLIN };

	return sys(__NR_ppoll, &readable, 1, no_time, 0, sizeof(signal_mask)) > 0;
}

enum { PATIENCE = 1000 /* ms */ };

/*
 * It has ended, and its init has not said how for a while: it has ended too, though a fork
 * of this process keeps the other end of the channel open; it is stopped or frozen; or a
 * tracer inside does not let go of the process. Whoever killed it knows what came of that.
 */
static bool is_unheard(struct nsbox_result *child)
{
	if (!is_readable(child->pidfd))
		return false;
	note_end(child);
	return monotonic_time() - child->ended_at >= PATIENCE * 1000000LL &&
	       (child->killed || is_reaped(child->pidfd));
}

/* It was started over a line, and who it is has not been looked at. */
static bool is_unnamed(const struct nsbox_result *child)
{
	return child->names >= 0 && child->heard == HEARD_NOTHING && !child->end.code;
}

/* By an init, whose child it is. Whoever tells nonsense is not listened to any longer. */
static int look_at_report(struct nsbox_result *child)
{
	int ret = child->lost ? -EPIPE : hear_end(child);
	if (ret == 0 && is_unnamed(child) && is_readable(child->starter)) {
		/* What that had to say it has said before its end. */
		ret = hear_end(child);
		ret = ret == 0 ? -EPIPE : ret;
	}
	if (ret == 1 || (ret == 0 && !is_unheard(child)))
		return ret;
	/* Whom to kill? */
	if (is_unnamed(child) && !hear_name(child))
		give_up_start(child, -ESRCH);
	if (child->end.code)
		return 1;
	nsbox_pidfd_send_signal(child->pidfd, SIGKILL, 0);
	child->lost = 1;
	if (!is_readable(child->pidfd))
		return 0;
	assume_killed(child);
	return 1;
}

/* By the kernel alone. */
static int look_at_own(struct nsbox_result *child)
{
	int ret = reap(child->pidfd, &child->end);
	/* An init that cannot execute exits with 1; nobody has to ask about a usual end. */
	bool usual = child->end.code == CLD_EXITED && child->end.status != 1;
	if (ret == 1 && child->heard && !usual)
		hear_replacement(child, true);
	return ret;
}

/* By an init that is our own child, and whose end is that of everything: it comes last. */
static int look_at_init(struct nsbox_result *child)
{
	struct nsbox_exit end;

	int ret = reap(child->init, &end);
	if (ret == 1 && hear_end(child) != 1)
		assume_killed(child);
	return ret;
}

static bool may_run(const struct nsbox_result *child)
{
	return !child->end.code && (child->pidfd >= 0 || is_unnamed(child));
}

/* Who else sleeps on a line does not hear what has been read from it. */
static void wake_others(struct nsbox_result *child)
{
	if (child->names < 0)
		return;
	child->is_free = 0;
	sys(__NR_shutdown, child->report, SHUT_RDWR);
}

/* The caller holds the lock. 1: the end is known. */
static int look(struct nsbox_result *child)
{
	int ret = 1;

	if (may_run(child)) {
		if (child->report < 0)
			ret = look_at_own(child);
		else
			ret = child->init < 0 ? look_at_report(child) : look_at_init(child);
	}
	if (ret == 1)
		note_end(child);
	if (ret == 1 && child->waiters)
		wake_others(child);
	else if (ret == 1)
		close_all(child, false);
	return ret;
}

/* Until events of n files; as ppoll(2). */
static long sleep_until(struct pollfd *events, int n, int timeout)
{
	struct timespec limit = { timeout / 1000, (long)(timeout % 1000) * 1000000 };

	return sys(__NR_ppoll, events, n, timeout < 0 ? 0 : &limit, 0, sizeof(signal_mask));
}

/* Until an init tells of the end, the child has ended, or that has been so for a while. */
static long sleep_until_told(const struct nsbox_result *child, int timeout, int64_t ended_at)
{
	struct pollfd events[2] = { { .fd = child->lost ? -1 : child->report, .events = POLLIN },
				    { .fd = child->pidfd, .events = POLLIN } };

	if (!ended_at || child->lost)
		return sleep_until(events, 2, timeout);
	return sleep_until(events, 1, timeout < 0 || timeout > PATIENCE ? PATIENCE : timeout);
}

/*
 * The same, and for no longer than a tick. Of what an init says before the end nobody has to
 * be woken.
 */
static long sleep_unheard(const struct nsbox_result *child, int timeout)
{
	bool replaced = child->names < 0;
	struct pollfd events[2] = { { .fd = replaced ? child->pidfd : child->starter,
				      .events = POLLIN },
				    { .fd = child->report, .events = POLLIN } };
	int tick = STOP_TICK / 1000000;

	return sleep_until(events, replaced ? 1 : 2,
			   timeout < 0 || timeout > tick ? tick : timeout);
}

/* Nothing of the end: has it begun, or is its init stopped by somebody, as in await_event()? */
static void look_at_start(struct nsbox_result *child)
{
	bool replaced = child->names < 0;
	int init = replaced ? child->pidfd : child->starter;

	/* Another thread may have heard of it meanwhile: what comes next is not the beginning. */
	if (child->heard == HEARD_NOTHING && replaced)
		hear_replacement(child, false);
	else if (is_unnamed(child))
		hear_name(child);
	if (child->heard != HEARD_NOTHING || child->end.code)
		return;
	child->stops = is_stopped(init) ? child->stops + 1 : 0;
	if (child->stops < STOPS)
		return;
	if (replaced)
		nsbox_pidfd_send_signal(child->pidfd, SIGKILL, 0);
	else
		give_up_start(child, -ETIMEDOUT);
}

/*
 * Sleep until the child has ended, but do not reap it: who does that must hold
 * the lock. A pidfd becomes readable before the child of a debugger can be reaped,
 * so without a timeout waitid is better.
 */
static long sleep_until_end(const struct nsbox_result *child, int timeout)
{
	int pidfd = child->init < 0 ? child->pidfd : child->init;
	struct pollfd ended = { .fd = pidfd, .events = POLLIN };

	if (timeout < 0) {
		long ret = sys(__NR_waitid, P_PIDFD, pidfd, 0, WEXITED | WNOWAIT | __WALL, 0);
		/* EAGAIN: somebody has made the pidfd non-blocking, as uvloop does. */
		if (ret != -ECHILD && ret != -EAGAIN)
			return ret;
	}
	return sleep_until(&ended, 1, timeout);
}

/*
 * Wait for at most timeout milliseconds; negative: for ever. Returns 1 if the
 * child has ended, and child->end says how; 0 if not; -EINTR if a signal came, for
 * Python to run its handlers and call again.
 */
int nsbox_wait(struct nsbox_result *child, int timeout)
{
	if (is_foreign(child))
		return 1;
	lock(&child->lock);
	if (!timeout || !may_run(child)) {
		int ret = look(child);
		unlock(&child->lock);
		return ret;
	}
	/* As long as somebody sleeps on it, the descriptor stays open. */
	child->waiters++;
	for (;;) {
		bool told = child->report >= 0 && child->init < 0;
		bool unheard = child->heard == HEARD_NOTHING;
		int64_t ended_at = child->ended_at;
		unlock(&child->lock);
		long slept = unheard ? sleep_unheard(child, timeout)
			     : told  ? sleep_until_told(child, timeout, ended_at)
				     : sleep_until_end(child, timeout);
		lock(&child->lock);
		child->waiters--;
		int ret = look(child);
		if (ret == 0 && unheard)
			look_at_start(child);
		/* What we slept on may have told only that its end is to be seen elsewhere. */
		if (ret == 0 && slept >= 0 && timeout < 0) {
			child->waiters++;
			continue;
		}
		unlock(&child->lock);
		return ret == 0 && slept < 0 ? (int)slept : ret;
	}
}

int nsbox_returncode(const struct nsbox_result *child)
{
	return child->end.code == CLD_EXITED ? child->end.status : -child->end.status;
}

int64_t nsbox_wall_time(const struct nsbox_result *child)
{
	return child->ended_at - child->started_at;
}

/*
 * Whom a signal is for has to be known. If nobody says so for a while, the init is stopped, frozen
 * or kept: without its line it starts nothing, or kills that. The caller holds the lock.
 */
static void await_name(struct nsbox_result *child)
{
	while (is_unnamed(child) && look(child) == 0 && !hear_name(child)) {
		struct pollfd events[3] = { { .fd = child->names, .events = POLLIN },
					    { .fd = child->report, .events = POLLIN },
					    { .fd = child->starter, .events = POLLIN } };
		struct timespec limit = { PATIENCE / 1000, 0 }; /* which the kernel counts down */
		child->waiters++;
		unlock(&child->lock);
		int ret = (int)RETRY(sys(__NR_ppoll, events, 3, &limit, 0, sizeof(signal_mask)));
		lock(&child->lock);
		child->waiters--;
		if (ret <= 0 && is_unnamed(child))
			give_up_start(child, ret < 0 ? ret : -ETIMEDOUT);
	}
}

/* Send a signal; 0 also if the child has ended. */
int nsbox_signal(struct nsbox_result *child, int sig)
{
	if (is_foreign(child))
		return 0;
	lock(&child->lock);
	int ret = 0;
	await_name(child);
	/* Whatever keeps us from looking: a kill must not be lost. */
	if (look(child) != 1) {
		ret = nsbox_pidfd_send_signal(child->pidfd, sig, 0);
		child->killed = child->killed || sig == SIGKILL;
	}
	unlock(&child->lock);
	return ret == -ESRCH ? 0 : ret;
}

/* Whatever the process is for it: with its init, nothing is left. */
static void kill_init(struct nsbox_result *child)
{
	/* Under the lock its number is no other file's. */
	lock(&child->lock);
	if (child->init >= 0)
		nsbox_pidfd_send_signal(child->init, SIGKILL, 0);
	unlock(&child->lock);
}

/* Kill the child if it runs, reap it, let go of everything. 1: it was running. */
int nsbox_discard(struct nsbox_result *child)
{
	if (is_foreign(child) || !may_run(child))
		return 0;
	nsbox_signal(child, SIGKILL);
	kill_init(child);
	while (nsbox_wait(child, -1) == -EINTR)
		;
	return 1;
}

/*
 * Let go of the descriptors, and leave the child alone. What its init takes for the sign
 * of our end stays open until that comes.
 */
int nsbox_release(struct nsbox_result *child)
{
	nsbox_close(&child->init);
	return nsbox_close(&child->pidfd);
}

/* ---- for control.c and start.c -------------------------------------- */

/* The pidfd, which stays open until it is given back; -1 if the end is known. */
int borrow_pidfd(struct nsbox_result *child)
{
	lock(&child->lock);
	int pidfd = child->end.code ? -1 : child->pidfd;
	if (pidfd >= 0)
		child->waiters++;
	unlock(&child->lock);
	return pidfd;
}

void give_back_pidfd(struct nsbox_result *child)
{
	lock(&child->lock);
	child->waiters--;
	if (child->end.code && !child->waiters)
		nsbox_close(&child->pidfd);
	unlock(&child->lock);
}

/* The pidfd, and what may be known of the end: the process is no longer this record's. */
int take_pidfd(struct nsbox_result *child, struct nsbox_exit *end)
{
	lock(&child->lock);
	int pidfd = child->pidfd;
	child->pidfd = -1;
	*end = child->end;
	unlock(&child->lock);
	return pidfd;
}
