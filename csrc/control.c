/*
 * control.c - the caller's half of what an nsbox-init does (init.c, protocol.h).
 *
 * A start is one message and the answers to it, over a channel of its own; what comes
 * back is in the same record that a spawn fills, and process.c goes on with it. The init
 * is inside of the sandbox: an answer that is not what it should be is the end of it.
 */
#include "internal.h"
#include "protocol.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

/* Two descriptors of our own at most, and what is handed on. */
struct packet {
	int32_t fds[MOST_DESCRIPTORS];
	uint32_t n_fds;
};

/* ---- the record of a failure ---------------------------------------- */

static int failed(struct nsbox_result *result, enum nsbox_step step, int index, long error)
{
	result->step = (int32_t)step;
	result->error = (int32_t)-error;
	result->index = index;
	return (int)error;
}

/* ---- the control ---------------------------------------------------- */

/* Its socket, which stays open until let_go(); -1 if it is closed, or another process's. */
static int hold(struct nsbox_control *control)
{
	if (control->owner != (int32_t)sys(__NR_getpid)) {
		nsbox_close(&control->socket);
		return -1;
	}
	lock(&control->lock);
	int fd = control->closed ? -1 : control->socket;
	if (fd >= 0)
		control->users++;
	unlock(&control->lock);
	return fd;
}

static void let_go(struct nsbox_control *control)
{
	lock(&control->lock);
	if (--control->users == 0 && control->closed)
		nsbox_close(&control->socket);
	unlock(&control->lock);
}

/* Without effect the second time. After a fork the copy of the socket is all that is ours. */
int nsbox_control_close(struct nsbox_control *control)
{
	if (control->owner != (int32_t)sys(__NR_getpid))
		return nsbox_close(&control->socket);
	lock(&control->lock);
	control->closed = 1;
	if (!control->users)
		nsbox_close(&control->socket);
	unlock(&control->lock);
	return 0;
}

/* A sorted set of descriptors, as pass_fds is one. */
struct descriptors {
	int32_t fds[MOST_DESCRIPTORS];
	uint32_t n;
};

static int insert(struct descriptors *set, int fd)
{
	uint32_t i = set->n;

	if (i == MOST_DESCRIPTORS)
		return -E2BIG;
	for (; i > 0 && set->fds[i - 1] > fd; i--)
		set->fds[i] = set->fds[i - 1];
	set->fds[i] = fd;
	set->n++;
	return 0;
}

/*
 * What the payload is to be handed is known to the Landlock rules, which the init puts in
 * force for both. Streams as copies, for their numbers are needed.
 */
static int make_known(struct descriptors *set, const struct nsbox_request *request, int32_t *copies)
{
	int err = 0;

	for (int target = 0; target < 3 && err == 0; target++) {
		int fd = request->stdio[target] < 0 ? target : request->stdio[target];
		if (request->stdio[target] < 0 && request->terminal)
			continue; /* a file of the world itself */
		copies[target] = (int32_t)sys(__NR_fcntl, fd, F_DUPFD_CLOEXEC, 3);
		/* One that is not open is an error of the start, or none. */
		if (copies[target] >= 0)
			err = insert(set, copies[target]);
		else if (copies[target] != -EBADF)
			err = copies[target];
	}
	for (uint32_t i = 0; i < request->n_pass_fds && err == 0; i++)
		if (sys(__NR_fcntl, request->pass_fds[i], F_GETFD) >= 0)
			err = insert(set, request->pass_fds[i]);
	return err;
}

/* The request of an init: its world is the payload's, the rest is its own. */
static int spawn_init(const struct nsbox_plan *plan, const struct nsbox_request *request,
		      struct descriptors *passed, int control, struct nsbox_dumpable *dumpable,
		      struct nsbox_result *result)
{
	static const char *const argv[] = { "nsbox-init", NULL };
	static const uint32_t kept = NSBOX_REQUEST_SETSID | NSBOX_REQUEST_RESTORE_SIGNALS |
				     NSBOX_REQUEST_SHIELD | NSBOX_REQUEST_LATE_FILTER;
	struct nsbox_request own = *request;

	int caller = lift(nsbox_pidfd_open((int)sys(__NR_getpid), 0));
	if (caller < 0)
		return failed(result, NSBOX_STEP_PIDFD_OPEN, -1, caller);
	insert(passed, request->exec_fd);
	own.argv = argv;
	own.envp = argv + 1;
	own.cwd = "/";
	own.stdio[INIT_CONTROL] = control;
	own.stdio[INIT_CALLER] = own.stdio[2] = caller;
	own.process_group = -1;
	own.terminal = NULL;
	own.flags = (request->flags & kept) | NSBOX_REQUEST_INIT;
	own.pass_fds = passed->fds;
	own.n_pass_fds = passed->n;
	int err = nsbox_spawn(plan, &own, dumpable, result);
	sys(__NR_close, caller);
	return err;
}

int nsbox_control_prepare(const struct nsbox_plan *plan, const struct nsbox_request *request,
			  int known, struct nsbox_dumpable *dumpable, struct nsbox_control *control)
{
	struct descriptors passed = { .n = 0 };
	int32_t copies[3] = { -1, -1, -1 };
	int pair[2];

	control->owner = (int32_t)sys(__NR_getpid);
	int err = known ? make_known(&passed, request, copies) : 0;
	if (err < 0) {
		err = failed(control->init, NSBOX_STEP_MESSAGE, -1, err);
	} else {
		err = (int)sys(__NR_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair);
		control->socket = err < 0 ? -1 : lift(pair[0]);
		int other = err < 0 ? -1 : lift(pair[1]);
		if (control->socket < 0 || other < 0)
			err = failed(control->init, NSBOX_STEP_SOCKETPAIR, -1,
				     err < 0 ? err : -EMFILE);
		else
			err = spawn_init(plan, request, &passed, other, dumpable, control->init);
		nsbox_close(&other);
	}
	for (int i = 0; i < 3; i++)
		nsbox_close(&copies[i]);
	if (err < 0)
		nsbox_close(&control->socket);
	return err;
}

/* ---- the gate ------------------------------------------------------- */

int nsbox_gate_close(struct nsbox_gate *gate)
{
	lock(&gate->lock);
	return 0;
}

int nsbox_gate_open(struct nsbox_gate *gate)
{
	unlock(&gate->lock);
	return 0;
}

/* ---- an init that does not answer ------------------------------------ */

/* How often, and how many times in a row, an init is found stopped before it is given up. */
enum { STOP_TICK = 100 * 1000 * 1000 /* ns */, STOPS = 5 };

/* Nobody inside can do that to it; outside, its user can. */
static bool is_stopped(int init)
{
	siginfo_t info;

	info.si_pid = 0;
	sys(__NR_waitid, P_PIDFD, init, &info, WSTOPPED | WNOHANG | WNOWAIT | __WALL, 0);
	return info.si_pid;
}

/*
 * Wait until something can be done with a socket to an init: 1; 0 if the init has ended, and
 * -ETIMEDOUT if somebody has stopped it.
 */
static int await_event(int socket, short event, int init)
{
	static const uint64_t tick[2] = { 0, STOP_TICK };
	struct pollfd events[2] = { { .fd = socket, .events = event },
				    { .fd = init, .events = POLLIN } };

	for (int stops = 0; stops < STOPS;) {
		long ready = RETRY(sys(__NR_ppoll, events, 2, tick, 0, sizeof(signal_mask)));
		if (events[0].revents)
			return 1;
		if (events[1].revents)
			return 0;
		stops = ready == 0 && is_stopped(init) ? stops + 1 : 0;
	}
	return -ETIMEDOUT;
}

/* ---- requests ------------------------------------------------------- */

/* Send a message. Returns -EAGAIN if its socket is full. */
static long send_packet(int socket, struct iovec *parts, size_t n, const struct packet *packet)
{
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(sizeof packet->fds)];
	} control;
	size_t size = packet->n_fds * sizeof *packet->fds;
	struct msghdr message = {
		.msg_iov = parts,
		.msg_iovlen = n,
		.msg_control = &control,
		.msg_controllen = CMSG_SPACE(size),
	};

	memset(&control, 0, CMSG_SPACE(size));
	control.head = (struct cmsghdr){ .cmsg_len = CMSG_LEN(size),
					 .cmsg_level = SOL_SOCKET,
					 .cmsg_type = SCM_RIGHTS };
	memcpy(CMSG_DATA(&control.head), packet->fds, size);
	return RETRY(sys(__NR_sendmsg, socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT));
}

/* A channel, whose other end goes to the init with the message. Returns the step that failed. */
static enum nsbox_step send_once(int socket, struct iovec *parts, size_t n, struct packet *packet,
				 int *channel, long *err)
{
	static const int on = 1;
	int pair[2];

	*err = sys(__NR_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair);
	if (*err < 0)
		return NSBOX_STEP_SOCKETPAIR;
	*channel = lift(pair[0]);
	packet->fds[0] = pair[1];
	/* Before the message is there: whoever answers is named by the kernel. */
	sys(__NR_setsockopt, *channel, SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
	*err = send_packet(socket, parts, n, packet);
	sys(__NR_close, pair[1]);
	if (*channel >= 0 && *err >= 0)
		return NSBOX_STEP_NONE;
	enum nsbox_step step = *channel < 0 ? NSBOX_STEP_SOCKETPAIR : NSBOX_STEP_MESSAGE;
	*err = *channel < 0 ? *channel : *err;
	nsbox_close(channel);
	return step;
}

/* The same, until there is room in the socket; the gate is never closed while we wait. */
static enum nsbox_step send_request(int socket, int init, struct nsbox_gate *gate,
				    struct iovec *parts, size_t n, struct packet *packet,
				    int *channel, long *err)
{
	for (;;) {
		nsbox_gate_close(gate);
		enum nsbox_step step = send_once(socket, parts, n, packet, channel, err);
		nsbox_gate_open(gate);
		if (step != NSBOX_STEP_MESSAGE)
			return step;
		if (*err == -EPIPE || *err == -ECONNRESET) {
			*err = -ESRCH;
			return NSBOX_STEP_INIT;
		}
		if (*err != -EAGAIN)
			return step;
		int room = await_event(socket, POLLOUT, init);
		if (room != 1) {
			*err = room == 0 ? -ESRCH : room;
			return NSBOX_STEP_INIT;
		}
	}
}

/* ---- answers -------------------------------------------------------- */

/* One answer: with pid, who sent it; with fd, a descriptor, which is the receiver's. */
struct answer {
	struct reply reply;
	int32_t pid;
	int32_t fd;
};

static void take_control(struct answer *answer, const struct cmsghdr *head, size_t size)
{
	const char *at = (const char *)head;
	struct ucred sender;
	int32_t fd;

	for (; size >= sizeof *head; at += CMSG_ALIGN(head->cmsg_len)) {
		head = (const struct cmsghdr *)at;
		if (head->cmsg_len < sizeof *head || head->cmsg_len > size)
			return;
		size -= CMSG_ALIGN(head->cmsg_len) < size ? CMSG_ALIGN(head->cmsg_len) : size;
		if (head->cmsg_level != SOL_SOCKET)
			continue;
		if (head->cmsg_type == SCM_CREDENTIALS) {
			memcpy(&sender, CMSG_DATA(head), sizeof sender);
			answer->pid = sender.pid;
		} else if (head->cmsg_type == SCM_RIGHTS) {
			/* There may be room for a second, which nobody has asked for. */
			for (size_t i = CMSG_LEN(0); i + sizeof fd <= head->cmsg_len;
			     i += sizeof fd) {
				nsbox_close(&answer->fd);
				memcpy(&answer->fd, at + i, sizeof fd);
			}
		}
	}
}

/*
 * Receive an answer of that kind. 1; 0 at the end of the channel; -errno, -EPROTO for what
 * is no answer.
 */
static int receive(int channel, struct answer *answer)
{
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec part = { &answer->reply, sizeof answer->reply };
	struct msghdr message = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof control,
	};

	answer->pid = 0;
	answer->fd = -1;
	long size = sys(__NR_recvmsg, channel, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	if (size == -ECONNRESET)
		size = 0;
	if (size < 0)
		return (int)size;
	take_control(answer, &control.head, message.msg_controllen);
	/* We have no room for the descriptor. */
	if (message.msg_flags & MSG_CTRUNC) {
		nsbox_close(&answer->fd);
		return -EMFILE;
	}
	if (size == sizeof answer->reply && !(message.msg_flags & MSG_TRUNC) &&
	    answer->reply.version == PROTOCOL_VERSION)
		return 1;
	nsbox_close(&answer->fd);
	return size == 0 ? 0 : -EPROTO;
}

/* The same, and wait for it; 0 also if the init has ended without one. */
static int await(int channel, int init, struct answer *answer)
{
	int ret = await_event(channel, POLLIN, init);

	answer->fd = -1;
	if (ret < 0)
		return ret;
	ret = receive(channel, answer);
	return ret == -EAGAIN ? 0 : ret;
}

/*
 * How a process ended, if the init has said so: 1, or 0 if not yet; -EPIPE if it never
 * will. process.c calls it with the lock held.
 */
int receive_end(int channel, struct nsbox_exit *end)
{
	struct answer answer;

	int ret = receive(channel, &answer);
	if (ret == -EAGAIN || ret == -EINTR)
		return 0;
	if (ret != 1)
		return -EPIPE;
	nsbox_close(&answer.fd);
	const struct nsbox_exit *said = &answer.reply.end;
	bool exited = said->code == CLD_EXITED && said->status >= 0 && said->status < 256;
	bool killed = (said->code == CLD_KILLED || said->code == CLD_DUMPED) && said->status > 0 &&
		      said->status <= SIGNAL_COUNT;
	if (answer.reply.kind != REPLY_ENDED || !(exited || killed))
		return -EPIPE;
	*end = *said;
	return 1;
}

/* ---- the body of a start -------------------------------------------- */

/* What is written first is counted: with no memory to write to, that is all that is done. */
struct writer {
	char *memory;
	uint64_t size;
};

static uint64_t put(struct writer *to, const void *data, uint64_t size)
{
	uint64_t at = to->size;
	if (to->memory)
		memcpy(to->memory + at, data, size);
	to->size += size;
	return at;
}

/* Strings go behind everything; their addresses to the place that was kept for them. */
static uint32_t put_strings(struct writer *to, uint64_t *addresses, const char *const *strings)
{
	static const uint64_t none;
	uint32_t n = 0;

	for (; strings[n]; n++) {
		uint64_t at = put(to, strings[n], string_length(strings[n]) + 1);
		if (to->memory)
			memcpy(to->memory + *addresses, &at, sizeof at);
		*addresses += sizeof at;
	}
	if (to->memory)
		memcpy(to->memory + *addresses, &none, sizeof none);
	*addresses += sizeof none;
	return n;
}

static uint32_t count(const char *const *strings)
{
	uint32_t n = 0;
	while (strings[n])
		n++;
	return n;
}

/* Write all of the body, see protocol.h; targets has head->n_fds numbers. */
static void put_body(struct writer *to, struct start_request *head, const struct nsbox_plan *plan,
		     const struct nsbox_request *request, const int32_t *targets)
{
	static const int32_t end;
	uint64_t addresses = 0;

	to->size = (head->n_executables + head->n_argv + head->n_envp + 3) * sizeof addresses;
	put(to, plan->rlimits, plan->n_rlimits * sizeof *plan->rlimits);
	put(to, request->rlimits, request->n_rlimits * sizeof *request->rlimits);
	put(to, plan->filter, head->filter_length * sizeof(uint64_t));
	if (head->n_groups > 0)
		put(to, request->groups, (uint64_t)head->n_groups * sizeof *request->groups);
	put(to, targets, head->n_fds * sizeof *targets);
	head->cwd = put(to, request->cwd, string_length(request->cwd) + 1);
	put_strings(to, &addresses, request->executables);
	put_strings(to, &addresses, request->argv);
	put_strings(to, &addresses, request->envp);
	put(to, &end, 1);
	head->body_size = to->size;
}

/* The body in a memfd; its descriptor, or -errno. */
static int put_in_memfd(struct start_request *head, const struct nsbox_plan *plan,
			const struct nsbox_request *request, const int32_t *targets)
{
	uint64_t size = head->body_size;
	int fd = lift((int)sys(__NR_memfd_create, "nsbox-start", MFD_CLOEXEC));

	if (fd < 0)
		return fd;
	long ret = sys(__NR_ftruncate, fd, size);
	if (ret == 0)
		ret = sys(__NR_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (ret < 0 && ret > -4096) {
		sys(__NR_close, fd);
		return (int)ret;
	}
	struct writer writer = { .memory = (char *)ret };
	put_body(&writer, head, plan, request, targets);
	sys(__NR_munmap, writer.memory, size);
	return fd;
}

/* ---- what goes with it ---------------------------------------------- */

/* A start under way. */
struct start {
	struct start_request head;
	struct packet packet;
	int32_t targets[MOST_DESCRIPTORS];
	int32_t procs; /* opened here: cgroup.procs, and the body; or -1 */
	int32_t memfd;
	char body[MOST_INLINE] __attribute__((aligned(8)));
};

static bool is_inheritable(int fd)
{
	long flags = sys(__NR_fcntl, fd, F_GETFD);
	return flags >= 0 && !(flags & FD_CLOEXEC);
}

static bool add(struct start *start, int fd)
{
	if (start->packet.n_fds == MOST_DESCRIPTORS)
		return false;
	start->packet.fds[start->packet.n_fds++] = fd;
	return true;
}

/* Hand on fd as target, or return why not. */
static int hand_on(struct start *start, int fd, int target)
{
	long err = sys(__NR_fcntl, fd, F_GETFD);
	if (err < 0)
		return (int)err;
	if (!add(start, fd))
		return -E2BIG;
	start->targets[start->head.n_fds++] = target;
	return 0;
}

/* As check_descriptors() in spawn.c, before anything is opened here. */
static int add_descriptors(struct start *start, const struct nsbox_request *request,
			   struct nsbox_result *result)
{
	for (int target = 0; target < 3; target++) {
		int fd = request->stdio[target] < 0 ? target : request->stdio[target];
		if (request->stdio[target] < 0 && !is_inheritable(fd))
			continue;
		int err = hand_on(start, fd, target);
		if (err < 0)
			return failed(result, NSBOX_STEP_DUP, fd, err);
	}
	for (uint32_t i = 0; i < request->n_pass_fds; i++) {
		int fd = request->pass_fds[i];
		if (request->flags & NSBOX_REQUEST_INHERIT_FDS && !is_inheritable(fd))
			continue;
		int err = hand_on(start, fd, fd);
		if (err < 0)
			return failed(result,
				      err == -E2BIG ? NSBOX_STEP_MESSAGE : NSBOX_STEP_PASS_FD, fd,
				      err);
	}
	return 0;
}

static int add_cgroups(struct start *start, const struct nsbox_request *request,
		       struct nsbox_result *result)
{
	bool fits = true;

	if (request->cgroup >= 0) {
		long fd = RETRY(
			sys(__NR_openat, request->cgroup, "cgroup.procs", O_WRONLY | O_CLOEXEC));
		if (fd < 0)
			return failed(result, NSBOX_STEP_CGROUP_JOIN, -1, fd);
		start->procs = lift((int)fd);
		fits = add(start, start->procs);
	}
	for (uint32_t i = 0; i < request->n_tasks; i++)
		fits = fits && add(start, request->tasks[i]);
	start->head.n_tasks = request->n_tasks + (request->cgroup >= 0);
	return fits ? 0 : failed(result, NSBOX_STEP_MESSAGE, -1, -E2BIG);
}

static void set_head(struct start_request *head, const struct nsbox_plan *plan,
		     const struct nsbox_request *request, int mode)
{
	bool late = request->flags & NSBOX_REQUEST_LATE_FILTER;

	*head = (struct start_request){
		.version = PROTOCOL_VERSION,
		.kind = REQUEST_START,
		.mode = (uint32_t)mode,
		.flags = request->flags &
			 (NSBOX_REQUEST_SETSID | NSBOX_REQUEST_CONTROLLING_TERMINAL |
			  NSBOX_REQUEST_RESTORE_SIGNALS | NSBOX_REQUEST_SHIELD),
		.uid = request->uid,
		.gid = request->gid,
		.umask = request->umask,
		.process_group = request->process_group,
		.nice = plan->nice > request->nice ? plan->nice : request->nice,
		.n_groups = request->n_groups,
		.n_executables = count(request->executables),
		.n_argv = count(request->argv),
		.n_envp = count(request->envp),
		.n_rlimits = plan->n_rlimits + request->n_rlimits,
		.filter_length = late ? plan->filter_length : 0,
	};
	sys(__NR_rt_sigprocmask, SIG_BLOCK, NULL, &head->mask, sizeof(signal_mask));
}

/* The body, in line or in a memfd. */
static int add_body(struct start *start, const struct nsbox_plan *plan,
		    const struct nsbox_request *request, struct nsbox_result *result)
{
	struct writer writer = { .memory = NULL };

	put_body(&writer, &start->head, plan, request, start->targets);
	if (writer.size > MOST_BODY)
		return failed(result, NSBOX_STEP_EXECVE, -1, -E2BIG);
	if (writer.size <= MOST_INLINE) {
		writer.memory = start->body;
		put_body(&writer, &start->head, plan, request, start->targets);
		return 0;
	}
	start->memfd = put_in_memfd(&start->head, plan, request, start->targets);
	if (start->memfd < 0)
		return failed(result, NSBOX_STEP_MESSAGE, -1, start->memfd);
	start->head.in_memfd = 1;
	return add(start, start->memfd) ? 0 : failed(result, NSBOX_STEP_MESSAGE, -1, -E2BIG);
}

/* Everything that goes to the init, but for the channel. */
static int fill(struct start *start, const struct nsbox_plan *plan,
		const struct nsbox_request *request, int mode, struct nsbox_result *result)
{
	start->procs = start->memfd = -1;
	start->packet.n_fds = 1;
	set_head(&start->head, plan, request, mode);
	if (add_descriptors(start, request, result) < 0 || add_cgroups(start, request, result) < 0)
		return -1;
	return add_body(start, plan, request, result);
}

/* ---- a terminal ----------------------------------------------------- */

/* Before anything is opened here, as in add_descriptors(). */
static int check_descriptors(const struct nsbox_request *request, struct nsbox_result *result)
{
	for (int target = 0; target < 3; target++) {
		int fd = request->stdio[target];
		long err = fd < 0 ? 0 : sys(__NR_fcntl, fd, F_GETFD);
		if (err < 0)
			return failed(result, NSBOX_STEP_DUP, fd, err);
	}
	for (uint32_t i = 0; i < request->n_pass_fds; i++) {
		int fd = request->pass_fds[i];
		long err = sys(__NR_fcntl, fd, F_GETFD);
		if (err < 0 && !(request->flags & NSBOX_REQUEST_INHERIT_FDS))
			return failed(result, NSBOX_STEP_PASS_FD, fd, err);
	}
	return 0;
}

/*
 * A terminal for a request that asks for one. The init opens its master, which is checked
 * here; its slave goes where the request says nothing else.
 */
static int make_terminal(struct nsbox_control *control, struct nsbox_gate *gate,
			 struct nsbox_request *request, int32_t *slave, struct nsbox_result *result)
{
	if (!request->terminal)
		return 0;
	if (check_descriptors(request, result) < 0)
		return -1;
	int err =
		nsbox_control_openat(control, "/dev/pts/ptmx", O_RDWR, 0, gate, request->terminal);
	if (err < 0)
		return failed(result, NSBOX_STEP_TERMINAL_OPEN, -1, err);
	*slave = open_slave_of(*request->terminal, request);
	if (*slave < 0)
		return failed(result, NSBOX_STEP_TERMINAL_PEER, -1, *slave);
	for (int target = 0; target < 3; target++)
		if (request->stdio[target] < 0)
			request->stdio[target] = *slave;
	return 0;
}

/* ---- starting ------------------------------------------------------- */

enum { MOST_ERROR = 4095 };

/*
 * The process is what the init says: a pidfd and a pid are of one process, and it is
 * none that could be ours, whom a signal would then meet.
 */
static bool is_of(int pidfd, int pid)
{
	if (pidfd < 0 || pid <= 0 || pid == (int)sys(__NR_getpid))
		return false;
	/* What has been reaped has no pid any more, and is no danger. */
	return pid_of(pidfd) == pid || nsbox_pidfd_send_signal(pidfd, 0, 0) == -ESRCH;
}

/* What the init says of a start, after the process itself has told its pid. As await(). */
static int await_word(int channel, int init, struct answer *answer, struct nsbox_result *result)
{
	int ret = await(channel, init, answer);

	if (ret != 1 || answer->reply.kind != REPLY_HERE)
		return ret;
	nsbox_close(&answer->fd);
	result->pid = answer->pid;
	return await(channel, init, answer);
}

/* What can fail in an init, or in what it starts: see follow_request() in child.c. */
static bool is_step_of_init(int32_t step)
{
	switch (step) {
	case NSBOX_STEP_CLONE:
	case NSBOX_STEP_KILLED:
	case NSBOX_STEP_MESSAGE:
	case NSBOX_STEP_CGROUP_JOIN:
	case NSBOX_STEP_DUP:
	case NSBOX_STEP_PASS_FD:
	case NSBOX_STEP_CLOSE_RANGE:
	case NSBOX_STEP_SETSID:
	case NSBOX_STEP_CONTROLLING_TERMINAL:
	case NSBOX_STEP_SETPGID:
	case NSBOX_STEP_EXTRA_GROUPS:
	case NSBOX_STEP_GROUP:
	case NSBOX_STEP_USER:
	case NSBOX_STEP_KEEP_CAPABILITIES:
	case NSBOX_STEP_PDEATHSIG:
	case NSBOX_STEP_CHDIR:
	case NSBOX_STEP_SETPRIORITY:
	case NSBOX_STEP_LIMIT:
	case NSBOX_STEP_SECCOMP:
	case NSBOX_STEP_EXECVE: return true;
	default: return false;
	}
}

/* It is not what was hoped for: no word at all, a failure, or nonsense. */
static int refused(int ret, struct answer *answer, struct nsbox_result *result)
{
	const struct reply *reply = &answer->reply;

	nsbox_close(&answer->fd);
	if (ret != 1)
		return failed(result, NSBOX_STEP_INIT, -1, ret == 0 ? -ESRCH : ret);
	if (reply->kind != REPLY_STARTED || !is_step_of_init(reply->step) || reply->error <= 0 ||
	    reply->error > MOST_ERROR)
		return failed(result, NSBOX_STEP_INIT, -1, -EPROTO);
	return failed(result, (enum nsbox_step)reply->step, reply->index, -reply->error);
}

static int await_start(int32_t *channel, int init, struct nsbox_result *result)
{
	struct answer answer;

	int ret = await_word(*channel, init, &answer, result);
	if (ret != 1 || answer.reply.kind != REPLY_STARTED || answer.reply.step ||
	    !is_of(answer.fd, result->pid))
		return refused(ret, &answer, result);
	int pidfd = lift(answer.fd);
	if (pidfd < 0)
		return failed(result, NSBOX_STEP_INIT, -1, pidfd);
	result->pidfd = pidfd;
	result->report = *channel;
	*channel = -1;
	return 0;
}

/* The init becomes the process: the exec closes its end of the channel, and says no more. */
static int await_replacement(int channel, struct nsbox_control *control, int init,
			     struct nsbox_result *result)
{
	struct pollfd events[2] = { { .fd = channel }, { .fd = init, .events = POLLIN } };
	struct answer answer;

	/* Whatever it says, it closes the channel next: one time to wake up is enough. */
	RETRY(sys(__NR_ppoll, events, 2, 0, 0, sizeof(signal_mask)));
	int ret = await_word(channel, init, &answer, result);
	if (ret != 0 || !result->pid)
		return refused(ret, &answer, result);
	result->pid = control->init->pid;
	result->pidfd = take_pidfd(control->init, &result->end);
	return 0;
}

/* The init and its control are the process's from now on, for they end with it. */
static void bind_to_init(struct nsbox_result *result, struct nsbox_control *control)
{
	struct nsbox_exit unused;

	result->init = take_pidfd(control->init, &unused);
	lock(&control->lock);
	result->control = control->socket;
	control->socket = -1;
	unlock(&control->lock);
}

/* Send it, and see what becomes of it. */
static int start_by(struct nsbox_control *control, int socket, int init, struct start *start,
		    struct nsbox_gate *gate, struct nsbox_result *result)
{
	struct iovec parts[2] = { { &start->head, sizeof start->head },
				  { start->body, start->head.body_size } };
	size_t n = start->head.in_memfd ? 1 : 2;
	int32_t channel = -1;
	long err = 0;

	enum nsbox_step step =
		send_request(socket, init, gate, parts, n, &start->packet, &channel, &err);
	if (step)
		return failed(result, step, -1, err);
	int ret = start->head.mode == NSBOX_START_REPLACE
			  ? await_replacement(channel, control, init, result)
			  : await_start(&channel, init, result);
	if (ret == 0 && start->head.mode == NSBOX_START_LAST)
		bind_to_init(result, control);
	/* After a failure that is the word for the init to kill what there may be. */
	nsbox_close(&channel);
	return ret;
}

/* The limits of time hold from now on. */
static int add_watch(const struct nsbox_request *request, struct nsbox_result *result)
{
	int err = request->watch ? nsbox_watch_add(request->watch) : 0;
	return err < 0 ? failed(result, NSBOX_STEP_WATCH, -1, err) : 0;
}

static int begin_watch(const struct nsbox_request *request, struct nsbox_result *result)
{
	int err = request->watch ? watch_begin(request->watch, result->pidfd) : 0;
	if (err == 0)
		return 0;
	nsbox_discard(result);
	return failed(result, NSBOX_STEP_WATCH, -1, err);
}

/* The result is empty, and the watch on its list. */
static int start_process(struct nsbox_control *control, const struct nsbox_plan *plan,
			 const struct nsbox_request *request, int mode, struct nsbox_gate *gate,
			 struct nsbox_result *result)
{
	struct nsbox_request own = *request;
	struct start start;
	int32_t slave = -1;

	int socket = hold(control);
	if (socket < 0)
		return failed(result, NSBOX_STEP_INIT, -1, -ESRCH);
	int init = borrow_pidfd(control->init);
	int err = init < 0 ? failed(result, NSBOX_STEP_INIT, -1, -ESRCH) : 0;
	if (err == 0)
		err = make_terminal(control, gate, &own, &slave, result);
	if (err == 0) {
		err = fill(&start, plan, &own, mode, result);
		if (err == 0)
			err = start_by(control, socket, init, &start, gate, result);
		nsbox_close(&start.procs);
		nsbox_close(&start.memfd);
	}
	nsbox_close(&slave);
	if (init >= 0)
		give_back_pidfd(control->init);
	let_go(control);
	return err < 0 ? err : begin_watch(request, result);
}

int nsbox_control_start(struct nsbox_control *control, const struct nsbox_plan *plan,
			const struct nsbox_request *request, int mode, struct nsbox_gate *gate,
			struct nsbox_result *result)
{
	*result = no_result();
	int err = add_watch(request, result);
	return err < 0 ? err : start_process(control, plan, request, mode, gate, result);
}

/* The init's answer to an open: 0 with a descriptor, or why there is none. */
static int opened(struct answer *answer)
{
	const struct reply *reply = &answer->reply;
	bool sensible = reply->kind == REPLY_OPENED && (reply->error == 0) == (answer->fd >= 0) &&
			reply->error >= 0 && reply->error <= MOST_ERROR;

	if (sensible && reply->error == 0)
		return 0;
	nsbox_close(&answer->fd);
	return sensible ? -reply->error : -EPROTO;
}

int nsbox_control_openat(struct nsbox_control *control, const char *path, uint64_t flags,
			 uint64_t mode, struct nsbox_gate *gate, int32_t *fd)
{
	struct open_request head = { PROTOCOL_VERSION, REQUEST_OPEN, flags, mode };
	struct iovec parts[2] = { { &head, sizeof head },
				  { (void *)(uintptr_t)path, string_length(path) + 1 } };
	struct packet packet = { .n_fds = 1 };
	struct answer answer = { .fd = -1 };
	int32_t channel = -1;
	long err = 0;

	int socket = hold(control);
	if (socket < 0)
		return -ESRCH;
	int init = borrow_pidfd(control->init);
	if (init < 0)
		err = -ESRCH;
	else if (!send_request(socket, init, gate, parts, 2, &packet, &channel, &err)) {
		err = await(channel, init, &answer);
		err = err == 0 ? -ESRCH : err;
	}
	if (init >= 0)
		give_back_pidfd(control->init);
	let_go(control);
	nsbox_close(&channel);
	if (err == 1)
		err = opened(&answer);
	*fd = err < 0 ? -1 : lift(answer.fd);
	return err < 0 ? (int)err : *fd < 0 ? *fd : 0;
}

int nsbox_spawn_with_init(const struct nsbox_plan *plan, const struct nsbox_request *request,
			  struct nsbox_dumpable *dumpable, struct nsbox_gate *gate,
			  struct nsbox_result *result)
{
	struct nsbox_result init = no_result();
	struct nsbox_control control = { .socket = -1, .init = &init };
	struct nsbox_request world = *request, payload = *request;

	*result = no_result();
	if (add_watch(request, result) < 0)
		return -result->error;
	/* Cgroups are the init's, and so of all; the limits of time are the payload's. */
	world.watch = NULL;
	payload.cgroup = -1;
	payload.n_tasks = 0;
	payload.flags &= ~(uint32_t)NSBOX_REQUEST_SHIELD;
	int err = nsbox_control_prepare(plan, &world, 1, dumpable, &control);
	if (err < 0)
		*result = init;
	else
		err = start_process(&control, plan, &payload, NSBOX_START_LAST, gate, result);
	/* Nothing of these is left if the payload has taken them. */
	nsbox_control_close(&control);
	nsbox_discard(&init);
	return err;
}
