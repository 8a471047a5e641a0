/*
 * messages.c - what a caller says to an nsbox-init, and how it hears the answers.
 *
 * A request is one message, and its answers come over a channel of its own, or, if there will
 * be no other, over the same socket. The init is inside of the sandbox: an answer that is not what
 * it should be is the end of it, and nobody waits for one that does not come.
 */
#include "control.h"

#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

/* ---- an init that does not answer ------------------------------------ */

/* Nobody inside can do that to it; outside, its user can. */
bool is_stopped(int init)
{
	siginfo_t info;

	info.si_pid = 0;
	sys(__NR_waitid, P_PIDFD, init, &info, WSTOPPED | WNOHANG | WNOWAIT | __WALL, 0);
	return info.si_pid;
}

/*
 * What runs inside has the user id of its init: it may give it the lowest priority, and use up
 * the processors. And whoever freezes it has overtaken who waits.
 */
enum { MOST_PATIENCE = 60 * 1000 /* ms */ };

/* One that may take so many milliseconds for its answers, 0: as many as any. */
struct peer peer_until(int init, uint32_t patience)
{
	int64_t most = !patience || patience > MOST_PATIENCE ? MOST_PATIENCE : patience;

	return (struct peer){ init, monotonic_time() + most * 1000000 };
}

/*
 * Wait until something can be done with a socket to an init: 1; 0 if the init has ended, and
 * -ETIMEDOUT if somebody has stopped it, or it is too late.
 */
int await_event(int socket, short event, const struct peer *init)
{
	struct pollfd events[2] = { { .fd = socket, .events = event },
				    { .fd = init->pidfd, .events = POLLIN } };

	for (int stops = 0; stops < STOPS;) {
		int64_t left = init->deadline - monotonic_time();
		struct timespec tick = { .tv_nsec = left < 0 ? 0 : left };
		if (left > STOP_TICK)
			tick.tv_nsec = STOP_TICK;
		long ready = RETRY(sys(__NR_ppoll, events, 2, &tick, 0, sizeof(signal_mask)));
		if (ready < 0)
			return (int)ready; /* fewer descriptors are permitted than these */
		if (events[0].revents)
			return 1;
		if (events[1].revents)
			return 0;
		if (left <= STOP_TICK)
			break;
		stops = is_stopped(init->pidfd) ? stops + 1 : 0;
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

/* A channel: our end, and the other, which goes to the init with a message. */
static long make_channel(int32_t *ours, int32_t *theirs)
{
	static const int on = 1;
	int pair[2];

	long err = sys(__NR_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair);
	if (err < 0)
		return err;
	*theirs = pair[1];
	*ours = lift(pair[0]);
	/* Before the message is there: whoever answers is named by the kernel. */
	sys(__NR_setsockopt, *ours, SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
	return *ours < 0 ? *ours : 0;
}

/* With so many channels, for which there is room in the packet. Returns the step that failed. */
static enum nsbox_step send_with_channels(int socket, struct iovec *parts, size_t n,
					  struct packet *packet, int32_t *channels,
					  uint32_t n_channels, long *err)
{
	enum nsbox_step step = NSBOX_STEP_SOCKETPAIR;
	uint32_t made = 0;

	*err = 0;
	for (uint32_t i = 0; i < n_channels; i++)
		channels[i] = packet->fds[i] = -1;
	while (made < n_channels && *err >= 0) {
		*err = make_channel(&channels[made], &packet->fds[made]);
		made++;
	}
	if (*err >= 0) {
		*err = send_packet(socket, parts, n, packet);
		step = *err < 0 ? NSBOX_STEP_MESSAGE : NSBOX_STEP_NONE;
	}
	for (uint32_t i = 0; i < made; i++) {
		nsbox_close(&packet->fds[i]);
		if (step)
			nsbox_close(&channels[i]);
	}
	return step;
}

/* The same, until there is room in the socket; the gate is never closed while we wait. */
enum nsbox_step send_request(int socket, const struct peer *init, struct iovec *parts, size_t n,
			     struct packet *packet, int32_t *channels, uint32_t n_channels,
			     long *err)
{
	for (;;) {
		if (n_channels)
			close_gate();
		enum nsbox_step step =
			send_with_channels(socket, parts, n, packet, channels, n_channels, err);
		if (n_channels)
			open_gate();
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
			/* There may be room for others, which nobody has asked for. */
			for (size_t i = CMSG_LEN(0); i + sizeof fd <= head->cmsg_len;
			     i += sizeof fd) {
				nsbox_close(&answer->fd);
				memcpy(&answer->fd, at + i, sizeof fd);
			}
		}
	}
}

/* A message; descriptors that come with it only if they are wanted. As recvmsg(2), or -EMFILE. */
static long receive_message(int channel, struct answer *answer, bool wanted)
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
		.msg_controllen = wanted ? sizeof control : CMSG_SPACE(sizeof(struct ucred)),
	};

	answer->pid = 0;
	answer->fd = -1;
	long size = sys(__NR_recvmsg, channel, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	if (size < 0)
		return size;
	take_control(answer, &control.head, message.msg_controllen);
	if (message.msg_flags & MSG_TRUNC)
		return -EPROTO;
	/* We have no room for the descriptor. */
	return wanted && message.msg_flags & MSG_CTRUNC ? -EMFILE : size;
}

/*
 * Receive an answer. 1; 0 at the end of the channel; -errno, -EPROTO for what is no answer.
 */
static int receive_answer(int channel, struct answer *answer, bool wanted)
{
	long size = receive_message(channel, answer, wanted);
	/* Told once, and first: that what we have said was not all read. */
	if (size == -ECONNRESET)
		size = receive_message(channel, answer, wanted);
	if (size == sizeof answer->reply && answer->reply.version == PROTOCOL_VERSION)
		return 1;
	nsbox_close(&answer->fd);
	return size <= 0 ? (int)size : -EPROTO;
}

int receive(int channel, struct answer *answer)
{
	return receive_answer(channel, answer, true);
}

/* The pid alone of the next process that says that it is here; 0 if none does. */
int receive_pid(int channel)
{
	struct answer answer;

	int ret = receive_answer(channel, &answer, false);
	nsbox_close(&answer.fd);
	return ret == 1 && answer.reply.kind == REPLY_HERE ? answer.pid : 0;
}

/* The same, and wait for it; 0 also if the init has ended without one. */
int await(int channel, const struct peer *init, struct answer *answer)
{
	int ret = await_event(channel, POLLIN, init);

	answer->fd = -1;
	if (ret < 0)
		return ret;
	ret = receive(channel, answer);
	return ret == -EAGAIN ? 0 : ret;
}
