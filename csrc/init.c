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
 * No libc: memory is what is below and in begin.c, and does not grow.
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

/* The processes that the caller has asked for: polls[POLL_CHANNELS + i] is pids[i]'s channel. */
static struct pollfd *const polls = own.polls;
static int32_t pids[MOST_PROCESSES];
static uint32_t n_processes;
static int32_t last; /* the process that everything ends with, or 0 */
/* The last one that was started, if it has not been settled what became of that; or 0. */
static int32_t newcomer;
static int64_t next_look; /* at that one: when; 0: there is no need */

/* Of a process until its exec. */
static char stack[STACK_SIZE] __attribute__((aligned(16)));

/* One message and its descriptors. */
static char message[sizeof(struct start_request) + MOST_INLINE] __attribute__((aligned(8)));
static int32_t fds[MOST_DESCRIPTORS];
static int32_t received[MOST_DESCRIPTORS]; /* a copy, which the child may change */
static uint32_t n_fds;
static uint32_t n_channels; /* of these, at the beginning: 1, or 0 if it is over the control */

/* What it asks for, in the words of spawn.c. */
static struct nsbox_plan plan;
static struct nsbox_request request;
static struct spawn spawn;

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

static void answer(int channel, const struct reply *reply, int fd)
{
	/* Without memory for an answer the channel's end is one: nobody shall wait for more. */
	if (say(channel, reply, fd) < 0)
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
	answer(channel, &reply, -1);
}

/* ---- newcomers ------------------------------------------------------- */

/* Wait until it has executed, or failed: until then it has our memory, `spawn` and all. */
static void settle(void)
{
	await_exec(&spawn, &spawn.alive);
	if (!spawn.result.step && !spawn.executing)
		fail(&spawn, NSBOX_STEP_KILLED, -1, -ESRCH);
	if (spawn.result.pidfd >= 0)
		sys(__NR_close, spawn.result.pidfd);
	newcomer = 0;
}

static void forget(uint32_t i)
{
	n_processes--;
	pids[i] = pids[n_processes];
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
	if (pids[i] == newcomer) {
		settle();
		started = !spawn.result.step;
	}
	if (channel >= 0) {
		started ? answer(channel, &reply, -1) : answer_start(channel);
		sys(__NR_close, channel);
	}
	if (pids[i] == last)
		exit_process(0);
	forget(i);
}

/* Reap what has ended, orphans too. Returns whether there may be more. */
static bool reap_some(void)
{
	siginfo_t info;
	struct rusage usage;

	for (int count = 0; count < REAP_AT_ONCE; count++) {
		info.si_pid = 0;
		long err = sys(__NR_waitid, P_ALL, 0, &info, WEXITED | WNOHANG | __WALL, &usage);
		if (err < 0 || !info.si_pid)
			return false;
		for (uint32_t i = 0; i < n_processes; i++) {
			if (pids[i] == info.si_pid) {
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

/* The caller has closed a channel: it has given the process up. */
static void kill_abandoned(void)
{
	for (uint32_t i = 0; i < n_processes; i++) {
		struct pollfd *channel = &polls[POLL_CHANNELS + i];
		if (!channel->revents)
			continue;
		sys(__NR_kill, pids[i], SIGKILL);
		sys(__NR_close, channel->fd);
		*channel = (struct pollfd){ .fd = -1 };
	}
}

/* ---- requests ------------------------------------------------------- */

static void close_received(void)
{
	while (n_fds)
		sys(__NR_close, fds[--n_fds]);
}

/*
 * Take n addresses, behind each other and with a 0 after the last, from a body, whose last
 * byte is a 0 too. NULL if they are not as they should be.
 */
static const char *const *take_strings(char *body, uint64_t size, uint64_t **next, uint32_t n)
{
	uint64_t *addresses = *next;

	for (uint32_t i = 0; i < n; i++) {
		if (!addresses[i] || addresses[i] >= size)
			return NULL;
		addresses[i] += (uint64_t)(uintptr_t)body;
	}
	*next = addresses + n + 1;
	return addresses[n] ? NULL : (const char *const *)addresses;
}

/* Whether the counts of a request fit its body and its descriptors. */
static bool is_whole(const struct start_request *head)
{
	uint64_t strings = (uint64_t)head->n_executables + head->n_argv + head->n_envp + 3;
	uint64_t groups = head->n_groups < 0 ? 0 : (uint64_t)head->n_groups;
	uint64_t arrays = strings * sizeof(uint64_t) +
			  (uint64_t)head->n_rlimits * sizeof(struct nsbox_rlimit) +
			  (uint64_t)head->filter_length * sizeof(uint64_t) +
			  (groups + head->n_fds) * sizeof(uint32_t);
	uint64_t descriptors = (uint64_t)n_channels + head->in_memfd + head->n_tasks + head->n_fds;

	return head->in_memfd <= 1 && head->body_size <= MOST_BODY && arrays < head->body_size &&
	       head->cwd >= arrays && head->cwd < head->body_size && descriptors == n_fds &&
	       head->mode <= NSBOX_START_REPLACE;
}

/* The descriptors for the process, after the channel: those for 0, 1, 2, and the others. */
static bool take_descriptors(const int32_t *targets, uint32_t n)
{
	const int32_t *files = fds + n_channels;
	uint32_t standard = 0;

	for (uint32_t i = 0; i < n; i++)
		if (targets[i] < 0 || (i && targets[i] <= targets[i - 1]))
			return false;
	for (; standard < n && targets[standard] < 3; standard++)
		request.stdio[targets[standard]] = files[standard];
	request.pass_fds = targets + standard;
	request.n_pass_fds = n - standard;
	memcpy(received, files + standard, request.n_pass_fds * sizeof *fds);
	spawn.received = received;
	return true;
}

/* From a message to what spawn.c and child.c know. */
static bool take_start(const struct start_request *head, char *body)
{
	uint64_t *next = (uint64_t *)body;
	uint64_t size = head->body_size;

	plan = (struct nsbox_plan){
		.nice = head->nice,
		.n_rlimits = head->n_rlimits,
		.filter_length = head->filter_length,
	};
	request = (struct nsbox_request){
		.executables = take_strings(body, size, &next, head->n_executables),
		.stdio = { -1, -1, -1 },
		.umask = head->umask,
		.process_group = head->process_group,
		.uid = head->uid,
		.gid = head->gid,
		.n_groups = head->n_groups,
		.flags = head->flags,
		.cgroup = -1,
		.layers = -1,
		.n_tasks = head->n_tasks,
		.tasks = fds + n_channels + head->n_fds,
		.cwd = body + head->cwd,
	};
	spawn = (struct spawn){
		.plan = &plan,
		.request = &request,
		.result = no_result(),
		.mask = head->mask,
		.caller_pidfd = INIT_CALLER,
		/* Who clones may be a thread that ends before us, with whom all in here ends. */
		.parent = head->mode == NSBOX_START_REPLACE ? PARENT_STAYS : PARENT_LEAVES,
		.root = -1,
		.scratch = -1,
		.terminal = -1,
		.channel = -1,
	};
	request.argv = request.executables ? take_strings(body, size, &next, head->n_argv) : NULL;
	request.envp = request.argv ? take_strings(body, size, &next, head->n_envp) : NULL;
	if (!request.envp)
		return false;
	plan.rlimits = (const struct nsbox_rlimit *)next;
	plan.filter = plan.rlimits + plan.n_rlimits;
	request.groups = (const uint32_t *)((const uint64_t *)plan.filter + plan.filter_length);
	const uint32_t *end = request.groups + (head->n_groups < 0 ? 0 : head->n_groups);
	return take_descriptors((const int32_t *)end, head->n_fds);
}

/* ---- starting ------------------------------------------------------- */

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

	if (pid)
		settle();
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
		int channel = polls[POLL_CHANNELS + i].fd;
		if (pids[i] != pid)
			continue;
		if (channel >= 0) {
			answer_start(channel);
			sys(__NR_close, channel);
		}
		forget(i);
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

/* Whoever attends it is told of its exec only if we have to wait for that ourselves. */
static void start_process(uint32_t mode, bool wait)
{
	int channel = spawn.channel = fds[0];

	if (n_processes == MOST_PROCESSES)
		fail(&spawn, NSBOX_STEP_CLONE, -1, -EAGAIN);
	else
		launch();
	if (wait || !(request.flags & NSBOX_REQUEST_ATTENDED) || !newcomer) {
		bool started = await_start();
		answer_start(channel);
		if (!started)
			return;
	}
	polls[POLL_CHANNELS + n_processes] = (struct pollfd){ .fd = channel };
	pids[n_processes++] = spawn.result.pid;
	if (mode == NSBOX_START_LAST)
		last = spawn.result.pid;
	fds[0] = fds[--n_fds]; /* the channel stays */
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
	if (channel < 0)
		fail(&spawn, NSBOX_STEP_PASS_FD, -1, channel);
	else
		follow_request(&spawn);
	answer_start(channel < 0 ? told : spawn.channel);
	exit_process(1);
}

/* Whether the message made sense. */
static bool serve_start(uint64_t size)
{
	const struct start_request *head = (const struct start_request *)message;
	char *body = message + sizeof *head;

	if (size < sizeof *head)
		return false;
	n_channels = !is_over_control(head);
	if (!is_whole(head))
		return false;
	if (head->in_memfd) {
		int fd = fds[n_fds - 1];
		if (sys(__NR_lseek, fd, 0, SEEK_END) < (long)head->body_size)
			return false;
		long address = sys(__NR_mmap, 0, head->body_size, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE, fd, 0);
		if (address < 0 && address > -4096)
			return n_channels; /* no memory: the caller sees the channel close */
		body = (char *)address;
	} else if (size - sizeof *head != head->body_size) {
		return false;
	}
	bool sensible = !body[head->body_size - 1] && take_start(head, body);
	if (sensible && head->mode == NSBOX_START_REPLACE)
		become_process();
	if (sensible)
		start_process(head->mode, head->in_memfd);
	if (head->in_memfd)
		sys(__NR_munmap, body, head->body_size);
	return sensible;
}

/* ---- files ---------------------------------------------------------- */

/*
 * Open a path that begins at the root, without ".." and links: each part by itself, since
 * the filter may refuse openat2(2), whose arguments it cannot see. The path is changed.
 */
static int open_path_inside(char *path, uint64_t flags, uint64_t mode)
{
	enum { STEP = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC };
	int directory = (int)RETRY(sys(__NR_openat, AT_FDCWD, "/", STEP));
	char *part = path, *end;

	for (; directory >= 0; part = end + 1) {
		while (*part == '/')
			part++;
		for (end = part; *end && *end != '/'; end++)
			;
		bool final = !*end;
		*end = '\0';
		long fd = -EXDEV;
		if (part[0] != '.' || part[1] != '.' || part[2])
			fd = RETRY(sys(__NR_openat, directory, *part ? part : ".",
				       final ? flags | O_NOFOLLOW : STEP, mode));
		sys(__NR_close, directory);
		directory = (int)fd;
		if (final)
			break;
	}
	return directory;
}

static bool serve_open(uint64_t size)
{
	const struct open_request *head = (const struct open_request *)message;
	char *path = message + sizeof *head;

	if (size <= sizeof *head || message[size - 1] || n_fds != 1)
		return false;
	int fd =
		open_path_inside(path, head->flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, head->mode);
	const struct reply reply = {
		.version = PROTOCOL_VERSION,
		.kind = REPLY_OPENED,
		.error = fd < 0 ? -fd : 0,
	};
	answer(fds[0], &reply, fd);
	if (fd >= 0)
		sys(__NR_close, fd);
	return true;
}

/* ---- messages ------------------------------------------------------- */

/* The descriptors that came with a message. Descriptors of ours may be used up: then not all. */
static void take_fds(const struct cmsghdr *head, size_t size)
{
	n_fds = 0;
	if (size < sizeof *head || head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
		return;
	n_fds = (uint32_t)((head->cmsg_len - CMSG_LEN(0)) / sizeof *fds);
	memcpy(fds, CMSG_DATA(head), n_fds * sizeof *fds);
}

/*
 * Not all descriptors fitted in; without the channel, the caller sees that close. Returns false
 * for the request after which there would be no other: it may be tried elsewhere.
 */
static bool answer_no_room(uint64_t size)
{
	static const struct reply reply = {
		.version = PROTOCOL_VERSION,
		.kind = REPLY_STARTED,
		.step = NSBOX_STEP_MESSAGE,
		.error = EMFILE,
		.index = -1,
	};
	const struct start_request *head = (const struct start_request *)message;

	if (size >= sizeof *head && head->kind == REQUEST_START && is_over_control(head))
		return false;
	if (n_fds)
		answer(fds[0], &reply, -1);
	return true;
}

/* One message from the caller; false ends everything. */
static bool take_request(void)
{
	static union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(sizeof fds)];
	} control;
	struct iovec part = { message, sizeof message };
	struct msghdr packet = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof control,
	};

	settle_newcomer();
	long size = sys(__NR_recvmsg, INIT_CONTROL, &packet, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	if (size == -EAGAIN || size == -EINTR)
		return true;
	if (size < (long)(2 * sizeof(uint32_t)) || packet.msg_flags & MSG_TRUNC)
		return false;
	take_fds(&control.head, packet.msg_controllen);
	const uint32_t *head = (const uint32_t *)message;
	bool sensible = head[0] == PROTOCOL_VERSION;
	if (sensible && packet.msg_flags & MSG_CTRUNC) {
		sensible = answer_no_room((uint64_t)size);
	} else if (sensible) {
		if (head[1] == REQUEST_START)
			sensible = serve_start((uint64_t)size);
		else
			sensible = head[1] == REQUEST_OPEN && serve_open((uint64_t)size);
	}
	close_received();
	return sensible;
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
	signal_mask mask = forwarded();

	must(nsbox_prctl(PR_SET_DUMPABLE, 0));
	sys(__NR_prctl, PR_SET_NAME, "nsbox-init", 0, 0, 0);
	must(nsbox_close_range(3, ~0U, 0));
	/* What we hold is nothing for the processes that we start. */
	for (int fd = 0; fd < 3; fd++)
		must(sys(__NR_fcntl, fd, F_SETFD, FD_CLOEXEC));
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
		kill_abandoned();
		if (polls[POLL_SIGNALS].revents || more) {
			take_signals();
			more = reap_some();
			/* Some child has stopped, or ended: it may have been this one. */
			if (newcomer && !next_look)
				next_look = monotonic_time() + STOP_TICK;
		}
		/* Not 0, which would be the end of a process that it has become: see process.c. */
		if (polls[POLL_CONTROL].revents && !take_request())
			exit_process(1);
	}
}
