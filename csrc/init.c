/*
 * init.c - nsbox-init: the first process of a sandbox that stays.
 *
 * It is executed when the world is finished and every layer of the plan is in force,
 * and starts processes in it as its caller asks (protocol.h). Nothing else is in it: it
 * reaps what it inherits, and ends, and with it everything in its pid namespace, when
 * its caller ends, closes the control socket, or says something that makes no sense.
 *
 * What runs in here is hostile and has the same user id. It cannot trace this process,
 * whose memory and descriptors nobody may look at, nor stop or kill it: the first of a
 * pid namespace takes no signal from inside that it has no handler for. A child shares
 * this memory until its exec, so the rules of child.c hold; it could be stopped on its
 * way, so nobody waits for it for ever (spawn.c).
 *
 * No libc: memory is what is below, in incoming.c and in begin.c, and does not grow.
 */
#include "init.h"
#include "protocol.h"

#include <fcntl.h>
#include <linux/mman.h>
#include <linux/prctl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>

/* How many are reaped before the next look at the caller: there may be no end of them. */
enum { REAP_AT_ONCE = 64 };

/*
 * The processes that the caller has asked for, and the lines for others: polls[POLL_CHANNELS + i]
 * is the channel of process i, or the first socket of its line.
 */
static struct pollfd *const polls = own.polls;
static struct process {
	int32_t pid;   /* 0: a line that is free */
	int32_t names; /* the second socket of its line; -1: it has none */
} processes[MOST_PROCESSES];
static uint32_t n_processes;
enum { NO_LINE = MOST_PROCESSES };
static int32_t last; /* the process that everything ends with, or 0 */
/* The last one that was started, if it has not been settled what became of that; or 0. */
static int32_t newcomer;
static int64_t next_look; /* at that one: when; 0: there is no need */

/* Of a process until its exec. */
static char stack[STACK_SIZE] __attribute__((aligned(16)));

/* ---- answers -------------------------------------------------------- */

/* With fd >= 0 a copy of that goes too. */
static long say(int channel, const struct reply *reply, int fd)
{
	struct iovec part = { (void *)(uintptr_t)reply, sizeof *reply };
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(sizeof fd)];
	} control;
	struct msghdr packet = { .msg_iov = &part, .msg_iovlen = 1 };

	if (fd >= 0) {
		control.head = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof fd),
						 .cmsg_level = SOL_SOCKET,
						 .cmsg_type = SCM_RIGHTS };
		memcpy(CMSG_DATA(&control.head), &fd, sizeof fd);
		packet.msg_control = &control;
		packet.msg_controllen = sizeof control;
	}
	return sys(__NR_sendmsg, channel, &packet, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void answer(int channel, const struct reply *reply)
{
	/* Without memory for an answer the channel's end is one: nobody shall wait for more. */
	if (say(channel, reply, -1) < 0)
		sys(__NR_shutdown, channel, SHUT_RDWR);
}

static void answer_start(int channel)
{
	const struct reply reply = {
		.version = PROTOCOL_VERSION,
		.kind = REPLY_STARTED,
		.step = spawn.result.step,
		.error = spawn.result.error,
		.index = spawn.result.index,
	};
	answer(channel, &reply);
}

/* ---- newcomers ------------------------------------------------------- */

/* Wait until it has executed, or failed: until then it has our memory, `spawn` and all. */
static void settle(void)
{
	await_exec(&spawn, &spawn.alive);
	if (!spawn.result.step && !spawn.executing)
		fail(&spawn, NSBOX_STEP_KILLED, -1, -ESRCH);
	newcomer = 0;
}

/* Of the newcomer, when it has been settled what became of it, and who waits has been told. */
static void close_pidfd(void)
{
	if (spawn.result.pidfd >= 0)
		sys(__NR_close, spawn.result.pidfd);
	spawn.result.pidfd = -1;
}

/* Room for a process, or a line. */
static void remember(int channel, short events, int32_t pid, int32_t names)
{
	polls[POLL_CHANNELS + n_processes] = (struct pollfd){ .fd = channel, .events = events };
	processes[n_processes++] = (struct process){ .pid = pid, .names = names };
}

static void close_channel(uint32_t i)
{
	if (polls[POLL_CHANNELS + i].fd >= 0)
		sys(__NR_close, polls[POLL_CHANNELS + i].fd);
	if (processes[i].names >= 0)
		sys(__NR_close, processes[i].names);
	polls[POLL_CHANNELS + i] = (struct pollfd){ .fd = -1 };
	processes[i].names = -1;
}

/* The process has ended, or never been: its line is free, and else nothing is left of it. */
static void release(uint32_t i)
{
	if (processes[i].names >= 0) {
		processes[i].pid = 0;
		polls[POLL_CHANNELS + i].events = POLLIN;
		return;
	}
	close_channel(i);
	n_processes--;
	processes[i] = processes[n_processes];
	polls[POLL_CHANNELS + i] = polls[POLL_CHANNELS + n_processes];
}

/* ---- ends ----------------------------------------------------------- */

static void answer_end(uint32_t i, const siginfo_t *info, const struct rusage *usage)
{
	bool started = true;

	const struct reply reply = {
		.version = PROTOCOL_VERSION,
		.kind = REPLY_ENDED,
		.end = exit_of(info, usage),
	};
	int channel = polls[POLL_CHANNELS + i].fd;
	bool new = processes[i].pid == newcomer;
	if (new) {
		settle();
		started = !spawn.result.step;
	}
	if (channel >= 0)
		started ? answer(channel, &reply) : answer_start(channel);
	if (processes[i].pid == last)
		exit_process(0);
	release(i);
	if (new)
		close_pidfd();
}

/* Reap so many at most of what has ended, orphans too. Returns whether there may be more. */
static bool reap(int most)
{
	siginfo_t info;
	struct rusage usage;

	for (int count = 0; count < most; count++) {
		info.si_pid = 0;
		long err = sys(__NR_waitid, P_ALL, 0, &info, WEXITED | WNOHANG | __WALL, &usage);
		if (err < 0 || !info.si_pid)
			return false;
		for (uint32_t i = 0; i < n_processes; i++) {
			if (processes[i].pid == info.si_pid) {
				answer_end(i, &info, &usage);
				break;
			}
		}
	}
	return true;
}

/* Signals from outside, which have no sender in here, are meant for the one process. */
static void take_signals(void)
{
	struct signalfd_siginfo signals[8];

	long size = sys(__NR_read, polls[POLL_SIGNALS].fd, signals, sizeof signals);
	for (long i = 0; i < size / (long)sizeof *signals; i++)
		if (signals[i].ssi_signo != SIGCHLD && !signals[i].ssi_pid && last)
			sys(__NR_kill, last, signals[i].ssi_signo);
}

/* The caller has closed a channel: it has given the process up, or needs no line any more. */
static void drop_abandoned(void)
{
	for (uint32_t i = n_processes; i-- > 0;) {
		if (!(polls[POLL_CHANNELS + i].revents & (POLLHUP | POLLERR)))
			continue;
		close_channel(i);
		if (processes[i].pid)
			sys(__NR_kill, processes[i].pid, SIGKILL);
		else
			release(i);
	}
}

/* ---- starting ------------------------------------------------------- */

static void inherit_chld_action(void)
{
	sys(__NR_rt_sigaction, SIGCHLD, own.chld_action, 0, sizeof(signal_mask));
}

/* The first word of a child: by SCM_CREDENTIALS it tells the caller the child's pid. */
static long announce(int channel, int pidfd)
{
	static const struct reply reply = { .version = PROTOCOL_VERSION, .kind = REPLY_HERE };
	return say(channel, &reply, pidfd);
}

__attribute__((noreturn)) static void process_main(void *unused)
{
	(void)unused;
	int self = nsbox_pidfd_open((int)sys(__NR_getpid), 0);
	long err = self < 0 ? self : announce(spawn.channel, self);
	if (err < 0) {
		/* So many files may be under way in sockets of the same user that no more are
		 * taken. */
		fail(&spawn, self < 0 ? NSBOX_STEP_PIDFD_OPEN : NSBOX_STEP_MESSAGE, -1, err);
	} else {
		spawn.channel = -1; /* nothing that it keeps */
		inherit_chld_action();
		follow_request(&spawn);
	}
	exit_process(1);
}

/*
 * By clone(2), for filters hide clone3(2). With SIGCHLD from the beginning, and not only from
 * the exec on: who is killed right before it ends like one who was killed after it.
 */
static void clone_process(uint64_t flags)
{
	struct clone_call *call = &spawn.call;

	*call = (struct clone_call){
		.flags = CLONE_VM | SIGCHLD | flags,
		.pidfd = &spawn.result.pidfd,
		.cgroup = -1,
		.child_tid = &spawn.alive,
		.stack = stack,
		.stack_size = sizeof stack,
		.function = process_main,
	};
	spawn.alive = 1;
	long pid = clone_by_clone(call);
	if (pid < 0) {
		spawn.result.pidfd = -1;
		spawn.alive = 0;
		fail(&spawn, NSBOX_STEP_CLONE, -1, pid);
	} else {
		spawn.result.pid = (int32_t)pid;
	}
}

__attribute__((noreturn)) static void launcher_main(void *unused)
{
	(void)unused;
	clone_process(CLONE_VFORK);
	for (;;)
		sys(__NR_exit, 0); /* of this thread */
}

/*
 * Into a cgroup whose memory may run out: with CLONE_VFORK, as spawn.c does, and for the
 * same reason. It suspends a thread of ours, which nobody in here can stop.
 */
static void clone_shielded(void)
{
	static char launcher_stack[8192] __attribute__((aligned(16)));
	struct clone_call call = {
		.flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD,
		.cgroup = -1,
		.child_tid = &spawn.launcher,
		.stack = launcher_stack,
		.stack_size = sizeof launcher_stack,
		.function = launcher_main,
	};

	spawn.launcher = LAUNCHER_RUNS;
	long err = clone_by_clone(&call);
	if (err < 0)
		fail(&spawn, NSBOX_STEP_CLONE, -1, err);
	else
		await_exec(&spawn, &spawn.launcher);
}

static void launch(void)
{
	if (request.flags & NSBOX_REQUEST_SHIELD)
		clone_shielded();
	else
		clone_process(0);
	newcomer = spawn.result.pid;
	next_look = 0;
}

/* What became of the newcomer; it is gone if it has failed. Whether it has started. */
static bool await_start(void)
{
	int32_t pid = newcomer;

	if (pid) {
		settle();
		close_pidfd();
	}
	if (pid && spawn.result.step)
		wait_for(P_PID, pid, WEXITED);
	return !spawn.result.step;
}

/* Before the next request takes its memory: one that its caller has not waited for. */
static void settle_newcomer(void)
{
	int32_t pid = newcomer;

	if (!pid || await_start())
		return;
	for (uint32_t i = 0; i < n_processes; i++) {
		if (processes[i].pid != pid)
			continue;
		if (polls[POLL_CHANNELS + i].fd >= 0)
			answer_start(polls[POLL_CHANNELS + i].fd);
		release(i);
		return;
	}
}

/*
 * One that nobody waits for may be stopped on its way like any other: from the first signal
 * on that may tell of it, it is looked at now and then. Returns until when, in nanoseconds; 0:
 * there is no need.
 */
static uint64_t look_at_newcomer(void)
{
	if (!newcomer || !next_look)
		return 0;
	int64_t now = monotonic_time();
	if (now >= next_look) {
		if (__atomic_load_n(&spawn.alive, __ATOMIC_ACQUIRE))
			kill_if_stopped(&spawn.result.pidfd, &spawn.stops);
		else
			settle_newcomer();
		next_look = now + STOP_TICK;
	}
	return newcomer ? (uint64_t)(next_look - now) : 0;
}

/* A process that its caller waits to hear of. */
static void start_process(uint32_t mode)
{
	int channel = spawn.channel = fds[0];

	if (n_processes == MOST_PROCESSES)
		fail(&spawn, NSBOX_STEP_MESSAGE, -1, -EAGAIN); /* ours, not the kernel's */
	else
		launch();
	bool started = await_start();
	answer_start(channel);
	if (!started)
		return;
	remember(channel, 0, spawn.result.pid, -1);
	if (mode == NSBOX_START_LAST)
		last = spawn.result.pid;
	fds[0] = fds[--n_fds]; /* the channel stays */
}

/* One over a line. Its caller is told of its exec only if we have to wait for that ourselves. */
static void start_over_line(uint32_t line, bool wait)
{
	int channel = polls[POLL_CHANNELS + line].fd;

	spawn.channel = processes[line].names;
	launch();
	if (wait || !newcomer) {
		bool started = await_start();
		answer_start(channel);
		if (!started)
			return;
	}
	processes[line].pid = spawn.result.pid;
	polls[POLL_CHANNELS + line].events = 0;
}

/* Become the process. The caller sees the channel close by the exec, or reads why not. */
__attribute__((noreturn)) static void become_process(void)
{
	uint32_t n = request.n_pass_fds;
	int above = n ? request.pass_fds[n - 1] + 1 : 3;
	int told = n_channels ? fds[0] : INIT_CONTROL;
	long channel = sys(__NR_fcntl, told, F_DUPFD_CLOEXEC, above);

	/* Whoever has not said so is taken for one that has not begun, and is started again. */
	if (announce(told, -1) < 0)
		exit_process(1);
	/* Session and process group are its own already. */
	request.flags &= ~(uint32_t)NSBOX_REQUEST_SETSID;
	spawn.channel = (int)channel;
	inherit_chld_action();
	if (channel < 0)
		fail(&spawn, NSBOX_STEP_PASS_FD, -1, channel);
	else
		follow_request(&spawn);
	answer_start(channel < 0 ? told : spawn.channel);
	exit_process(1);
}

/*
 * A request that cannot be served now. If its channel has not come, the caller sees that close.
 * Returns false for the last one, which may be tried elsewhere.
 */
static bool refuse(uint32_t line, bool is_last, int32_t error)
{
	if (is_last)
		return false;
	spawn.result = no_result(0);
	fail(&spawn, NSBOX_STEP_MESSAGE, -1, -error);
	if (line != NO_LINE)
		answer_start(polls[POLL_CHANNELS + line].fd);
	else if (n_fds)
		answer_start(fds[0]);
	return true;
}

/* Whether the message made sense. `line`: it came over that one; or NO_LINE. */
static bool serve_start(uint64_t size, uint32_t line)
{
	const struct start_request *head = (const struct start_request *)message;
	char *body = message + sizeof *head;

	if (size < sizeof *head || is_over_line(head) != (line != NO_LINE))
		return false;
	n_channels = !is_over_control(head) && line == NO_LINE;
	if (!is_whole(head))
		return false;
	if (head->in_memfd) {
		int fd = fds[n_fds - 1];
		if (sys(__NR_lseek, fd, 0, SEEK_END) < (long)head->body_size)
			return false;
		long address = sys(__NR_mmap, 0, head->body_size, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE, fd, 0);
		if (address < 0 && address > -4096)
			return refuse(line, is_over_control(head), ENOMEM);
		body = (char *)address;
	} else if (size - sizeof *head != head->body_size) {
		return false;
	}
	bool sensible = !body[head->body_size - 1] && take_start(head, body);
	if (sensible && head->mode == NSBOX_START_REPLACE)
		become_process();
	if (sensible && line != NO_LINE)
		start_over_line(line, head->in_memfd);
	else if (sensible)
		start_process(head->mode);
	if (head->in_memfd)
		sys(__NR_munmap, body, head->body_size);
	return sensible;
}

/* ---- files ---------------------------------------------------------- */

static bool serve_open(uint64_t size)
{
	const struct open_request *head = (const struct open_request *)message;
	char *path = message + sizeof *head;

	if (size <= sizeof *head || message[size - 1] || n_fds != 1)
		return false;
	int fd =
		open_path_inside(path, head->flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, head->mode);
	struct reply reply = {
		.version = PROTOCOL_VERSION,
		.kind = REPLY_OPENED,
		.error = fd < 0 ? -fd : 0,
	};
	if (fd >= 0) {
		long err = say(fds[0], &reply, fd);
		sys(__NR_close, fd);
		if (err >= 0)
			return true;
		/* So many files may be under way that no more are taken: that goes without one. */
		reply.error = (int32_t)-err;
	}
	answer(fds[0], &reply);
	return true;
}

/* ---- messages ------------------------------------------------------- */

/* The caller has a new line, from now on. */
static bool serve_line(uint64_t size)
{
	if (size != sizeof(struct line_request) || n_fds != 2)
		return false;
	if (n_processes == MOST_PROCESSES)
		return refuse(NO_LINE, false, EAGAIN);
	remember(fds[0], POLLIN, 0, fds[1]);
	n_fds = 0;
	return true;
}

/* Not all descriptors fitted in: descriptors of ours are used up. */
static bool answer_no_room(uint64_t size, uint32_t line)
{
	const struct start_request *head = (const struct start_request *)message;
	bool start = head->kind == REQUEST_START && size >= sizeof *head;

	return refuse(line, start && is_over_control(head), EMFILE);
}

static bool serve(uint64_t size, uint32_t line)
{
	switch (((const uint32_t *)message)[1]) {
	case REQUEST_START: return serve_start(size, line);
	case REQUEST_OPEN: return line == NO_LINE && serve_open(size);
	case REQUEST_LINE: return line == NO_LINE && serve_line(size);
	default: return false;
	}
}

/*
 * One message from the caller, over a line or the control socket; false ends everything. No
 * newcomer has our memory any more.
 */
static bool take_request(uint32_t line)
{
	bool truncated = false;

	long size = receive_message(line == NO_LINE ? INIT_CONTROL : polls[POLL_CHANNELS + line].fd,
				    &truncated);
	if (size <= 0)
		return size == 0;
	bool sensible = *(const uint32_t *)message == PROTOCOL_VERSION &&
			(truncated ? answer_no_room : serve)((uint64_t)size, line);
	close_received();
	return sensible;
}

/* Something has come over a free line; if that was its end, it is there no more. */
static bool is_asked(uint32_t i)
{
	return i < n_processes && !processes[i].pid && polls[POLL_CHANNELS + i].revents;
}

static void take_requests(void)
{
	bool sensible = true;

	for (uint32_t i = n_processes; i-- > 0;) {
		if (!is_asked(i))
			continue;
		settle_newcomer(); /* by which this one may have got a lower number */
		sensible = sensible && (!is_asked(i) || take_request(i));
	}
	if (polls[POLL_CONTROL].revents) {
		settle_newcomer();
		sensible = sensible && take_request(NO_LINE);
	}
	/* Not 0, which would be the end of a process that it has become: see process.c. */
	if (!sensible)
		exit_process(1);
}

/* ---- the whole ------------------------------------------------------ */

/* Signals that somebody outside may mean for the process that everything ends with. */
static signal_mask forwarded(void)
{
	static const int signals[] = { SIGCHLD, SIGHUP,  SIGINT,  SIGQUIT, SIGTERM,
				       SIGUSR1, SIGUSR2, SIGCONT, SIGWINCH };
	signal_mask mask = 0;

	for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
		mask |= 1ULL << (signals[i] - 1);
	return mask;
}

/* An init that is not as it has to be does not begin. */
static long must(long ret)
{
	if (ret < 0)
		exit_process(1);
	return ret;
}

static void set_up(void)
{
	static const unsigned long default_action[4] = { 0 };
	signal_mask mask = forwarded();

	must(nsbox_prctl(PR_SET_DUMPABLE, 0));
	sys(__NR_prctl, PR_SET_NAME, "nsbox-init", 0, 0, 0);
	must(nsbox_close_range(3, ~0U, 0));
	/* What we hold is nothing for the processes that we start. */
	for (int fd = 0; fd < 3; fd++)
		must(sys(__NR_fcntl, fd, F_SETFD, FD_CLOEXEC));
	/* Ignored, it would have the kernel reap our children, and nobody know of their ends. */
	must(sys(__NR_rt_sigaction, SIGCHLD, default_action, own.chld_action, sizeof mask));
	must(sys(__NR_rt_sigprocmask, SIG_SETMASK, &mask, 0, sizeof mask));
	long signals =
		must(sys(__NR_signalfd4, -1, &mask, sizeof mask, SFD_CLOEXEC | SFD_NONBLOCK));
	polls[POLL_CONTROL] = (struct pollfd){ .fd = INIT_CONTROL, .events = POLLIN };
	polls[POLL_CALLER] = (struct pollfd){ .fd = INIT_CALLER, .events = POLLIN };
	polls[POLL_SIGNALS] = (struct pollfd){ .fd = (int)signals, .events = POLLIN };
}

/* With a second argument it is to stay: see NSBOX_REQUEST_STAYS. */
__attribute__((noreturn, used)) void init_main(long argc)
{
	bool more = false;

	set_up();
	become_small(argc > 1);
	for (;;) {
		uint64_t look = look_at_newcomer();
		const uint64_t limit[2] = { 0, more ? 0 : look };
		long ready = sys(__NR_ppoll, polls, POLL_CHANNELS + n_processes,
				 more || look ? limit : NULL, 0, sizeof(signal_mask));
		if (ready < 0 && ready != -EINTR)
			exit_process(1);
		if (polls[POLL_CALLER].revents)
			exit_process(0);
		drop_abandoned();
		if (polls[POLL_SIGNALS].revents || more) {
			/* One before the signals are taken, since somebody may wait to hear of it.
			 */
			reap(1);
			take_signals();
			more = reap(REAP_AT_ONCE);
			/* Some child has stopped, or ended: it may have been this one. */
			if (newcomer && !next_look)
				next_look = monotonic_time() + STOP_TICK;
		}
		take_requests();
	}
}
