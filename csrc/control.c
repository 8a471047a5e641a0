/*
 * control.c - the caller's half of an nsbox-init's life (init.c, protocol.h).
 *
 * How it is spoken with is in messages.c, and what it starts in start.c.
 */
#include "control.h"

#include <fcntl.h>
#include <linux/limits.h>
#include <sys/socket.h>

int failed(struct nsbox_result *result, enum nsbox_step step, int index, long error)
{
	result->step = (int32_t)step;
	result->error = (int32_t)-error;
	result->index = index;
	return (int)error;
}

/* ---- the control ---------------------------------------------------- */

/* Its socket, which stays open until let_go(); -1 if it is closed, or another process's. */
int hold(struct nsbox_control *control)
{
	if (control->owner != nsbox_this_process()) {
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

void let_go(struct nsbox_control *control)
{
	lock(&control->lock);
	if (--control->users == 0 && control->closed)
		nsbox_close(&control->socket);
	unlock(&control->lock);
}

/* Without effect the second time. After a fork the copy of the socket is all that is ours. */
int nsbox_control_close(struct nsbox_control *control)
{
	bool foreign = control->owner != nsbox_this_process();

	if (!foreign)
		lock(&control->lock);
	struct nsbox_lines *lines = control->lines;
	control->lines = NULL;
	control->closed = 1;
	nsbox_close(&control->listener);
	if (foreign || !control->users)
		nsbox_close(&control->socket);
	if (!foreign)
		unlock(&control->lock);
	close_lines(lines, foreign);
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
		      const struct descriptors *passed, int control,
		      struct nsbox_dumpable *dumpable, struct nsbox_result *result)
{
	static const char *const argv[] = { "nsbox-init", NULL };
	static const char *const staying[] = { "nsbox-init", "stays", NULL };
	static const uint32_t kept = NSBOX_REQUEST_SETSID | NSBOX_REQUEST_RESTORE_SIGNALS |
				     NSBOX_REQUEST_SHIELD | NSBOX_REQUEST_LATE_FILTER |
				     NSBOX_REQUEST_KEEP_FILTER | NSBOX_REQUEST_STAYS;
	struct nsbox_request own = *request;

	int caller = lift(nsbox_pidfd_open((int)sys(__NR_getpid), 0));
	if (caller < 0)
		return failed(result, NSBOX_STEP_PIDFD_OPEN, -1, caller);
	own.argv = request->flags & NSBOX_REQUEST_STAYS ? staying : argv;
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

/* If one has been sent, and there is room for it. */
static void take_listener(struct nsbox_control *control)
{
	int fd = lift(receive_descriptor(control->socket));
	control->listener = fd < 0 ? -1 : fd;
}

int nsbox_control_prepare(const struct nsbox_plan *plan, const struct nsbox_request *request,
			  int known, struct nsbox_dumpable *dumpable, struct nsbox_control *control)
{
	struct descriptors passed = { .n = 0 };
	int32_t copies[3] = { -1, -1, -1 };
	int pair[2];

	control->owner = nsbox_this_process();
	int err = known ? make_known(&passed, request, copies) : 0;
	if (err == 0)
		err = insert(&passed, request->exec_fd);
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
	else if (request->flags & NSBOX_REQUEST_KEEP_FILTER)
		take_listener(control);
	return err;
}

/* ---- files ---------------------------------------------------------- */

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
			 uint64_t mode, uint32_t patience, int32_t *fd)
{
	struct open_request head = { PROTOCOL_VERSION, REQUEST_OPEN, flags, mode };
	size_t size = string_length(path) + 1;
	struct iovec parts[2] = { { &head, sizeof head }, { (void *)(uintptr_t)path, size } };
	struct packet packet = { .n_fds = 1 };
	struct answer answer = { .fd = -1 };
	int32_t channel = -1;
	long err = 0;

	/* As the kernel has it; and a message of such a length would be the end of the init. */
	if (size > PATH_MAX)
		return -ENAMETOOLONG;
	int socket = hold(control);
	if (socket < 0)
		return -ESRCH;
	int pidfd = borrow_pidfd(control->init);
	const struct peer init = peer_until(pidfd, patience);
	if (pidfd < 0)
		err = -ESRCH;
	else if (!send_request(socket, &init, parts, 2, &packet, &channel, 1, &err)) {
		err = await(channel, &init, &answer);
		err = err == 0 ? -ESRCH : err;
	}
	if (pidfd >= 0)
		give_back_pidfd(control->init);
	let_go(control);
	nsbox_close(&channel);
	if (err == 1)
		err = opened(&answer);
	*fd = err < 0 ? -1 : lift(answer.fd);
	return err < 0 ? (int)err : *fd < 0 ? *fd : 0;
}

/* ---- an init for one process ----------------------------------------- */

int nsbox_spawn_with_init(const struct nsbox_plan *plan, const struct nsbox_request *request,
			  struct nsbox_dumpable *dumpable, struct nsbox_result *result)
{
	struct nsbox_result init = no_result(nsbox_this_process());
	struct nsbox_control control = { .socket = -1, .listener = -1, .init = &init };
	struct nsbox_request world = *request, payload = *request;

	*result = no_result(nsbox_this_process());
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
		err = start_process(&control, plan, &payload, NSBOX_START_LAST, result);
	/* Nothing of these is left if the payload has taken them. */
	nsbox_control_close(&control);
	nsbox_discard(&init);
	return err;
}
