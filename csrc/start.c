/*
 * start.c - a process that an nsbox-init starts, as its caller sees it.
 *
 * What comes back is in the same record that a spawn fills, and process.c goes on with it.
 */
#include "control.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

/* ---- the body of a start -------------------------------------------- */

/* What is written first is counted: with no memory to write to, that is all that is done. */
struct writer {
	char *memory;
	uint64_t size;
};

static uint64_t put(struct writer *to, const void *data, uint64_t size)
{
	uint64_t at = to->size;
	if (to->memory && size)
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

static bool add(struct start *start, int fd)
{
	if (start->packet.n_fds == MOST_DESCRIPTORS)
		return false;
	start->packet.fds[start->packet.n_fds++] = fd;
	return true;
}

/* Hand on fd as target, or return why not. `optional`: leave out what no exec would leave open. */
static int hand_on(struct start *start, const struct nsbox_request *request, int fd, int target,
		   bool optional)
{
	long flags = check_open(request, fd);

	if (optional && (flags < 0 || flags & FD_CLOEXEC))
		return 0;
	if (flags < 0)
		return (int)flags;
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
		bool own = request->stdio[target] < 0;
		int fd = own ? target : request->stdio[target];
		int err = hand_on(start, request, fd, target, own);
		if (err < 0)
			return failed(result, NSBOX_STEP_DUP, fd, err);
	}
	for (uint32_t i = 0; i < request->n_pass_fds; i++) {
		int fd = request->pass_fds[i];
		int err =
			hand_on(start, request, fd, fd, request->flags & NSBOX_REQUEST_INHERIT_FDS);
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
			  NSBOX_REQUEST_RESTORE_SIGNALS | NSBOX_REQUEST_SHIELD |
			  NSBOX_REQUEST_ATTENDED | NSBOX_REQUEST_OWN_CGROUPS),
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
	set_head(&start->head, plan, request, mode);
	start->packet.n_fds = !is_over_control(&start->head) && !is_over_line(&start->head);
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
		long err = fd < 0 ? 0 : check_open(request, fd);
		if (err < 0)
			return failed(result, NSBOX_STEP_DUP, fd, err);
	}
	for (uint32_t i = 0; i < request->n_pass_fds; i++) {
		int fd = request->pass_fds[i];
		long err = check_open(request, fd);
		if (err < 0 && !(request->flags & NSBOX_REQUEST_INHERIT_FDS))
			return failed(result, NSBOX_STEP_PASS_FD, fd, err);
	}
	return 0;
}

/*
 * A terminal for a request that asks for one. The init opens its master, which is checked
 * here; its slave goes where the request says nothing else.
 */
static int make_terminal(struct nsbox_control *control, struct nsbox_request *request,
			 int32_t *slave, struct nsbox_result *result)
{
	if (!request->terminal)
		return 0;
	if (check_descriptors(request, result) < 0)
		return -1;
	int err = nsbox_control_openat(control, "/dev/pts/ptmx", O_RDWR, 0, request->patience,
				       request->terminal);
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

/*
 * Is the process what the init says? Its pidfd and its pid are of one process, and it is
 * none that could be ours, whom a signal would then meet: 0. A lie: -EPROTO; else why we
 * cannot tell.
 */
static int check_process(int pidfd, int pid)
{
	if (pidfd < 0 || pid <= 0 || pid == (int)sys(__NR_getpid))
		return -EPROTO;
	int found = pid_of(pidfd);
	/* What has been reaped has no pid any more, and is no danger. */
	if (found == pid || is_reaped(pidfd))
		return 0;
	return found < 0 ? found : -EPROTO;
}

/* What can fail in an init, or in what it starts: see follow_request() in child.c. */
static bool is_step_of_init(int32_t step)
{
	switch (step) {
	case NSBOX_STEP_CLONE:
	case NSBOX_STEP_PIDFD_OPEN:
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

/*
 * The first word of a process is who it is, and the kernel vouches for that: 0. Anything else
 * is why there will be no process.
 */
static int take_name(int ret, struct answer *answer, struct nsbox_result *result)
{
	if (ret != 1 || answer->reply.kind != REPLY_HERE)
		return refused(ret, answer, result);
	result->pid = answer->pid;
	ret = check_process(answer->fd, answer->pid);
	if (ret < 0)
		return refused(ret, answer, result);
	result->pidfd = lift(answer->fd);
	return result->pidfd < 0 ? failed(result, NSBOX_STEP_INIT, -1, result->pidfd) : 0;
}

static int await_start(int32_t *channel, const struct peer *init, struct nsbox_result *result)
{
	struct answer answer;

	int ret = await(*channel, init, &answer);
	if (take_name(ret, &answer, result) < 0)
		return -1;
	ret = await(*channel, init, &answer);
	if (ret != 1 || answer.reply.kind != REPLY_STARTED || answer.reply.step) {
		nsbox_close(&result->pidfd);
		return refused(ret, &answer, result);
	}
	nsbox_close(&answer.fd);
	result->report = *channel;
	*channel = -1;
	return 0;
}

/*
 * What the init that was to become the process has said; it has closed the channel since, by
 * its exec or its end. 0 if the process has begun, however it ended.
 */
static int take_replacement(int channel, bool here, struct nsbox_result *result)
{
	struct answer answer;

	int ret = receive(channel, &answer);
	if (!here && ret == 1 && answer.reply.kind == REPLY_HERE) {
		nsbox_close(&answer.fd);
		here = true;
		ret = receive(channel, &answer);
	}
	/* A fork may keep the other end open. */
	if (ret == -EAGAIN)
		ret = 0;
	return here && ret == 0 ? 0 : refused(ret, &answer, result);
}

/* The init becomes the process: the exec closes its end of the channel, and says no more. */
static int await_replacement(int channel, struct nsbox_control *control, const struct peer *init,
			     struct nsbox_result *result)
{
	/* Whatever it says, it closes the channel next: one time to wake up is enough. */
	int ret = await_event(channel, 0, init);
	if (ret < 0)
		return failed(result, NSBOX_STEP_INIT, -1, ret);
	if (take_replacement(channel, false, result) < 0)
		return -1;
	result->pid = control->init->pid;
	result->pidfd = take_pidfd(control->init, &result->end);
	return 0;
}

/* Nothing else is started by that init, nor was by another thread at the same time. */
static int32_t take_socket(struct nsbox_control *control)
{
	lock(&control->lock);
	int32_t socket = control->socket;
	control->socket = -1;
	unlock(&control->lock);
	return socket;
}

/* ---- attended -------------------------------------------------------- */

/*
 * Nobody is woken for what an init says of a start while the calling thread has nothing to
 * do but to wait for the end: it is read then, or when a signal is to be sent.
 */
static void attend_replacement(struct nsbox_control *control, struct nsbox_result *result)
{
	result->pid = control->init->pid;
	result->pidfd = take_pidfd(control->init, &result->end);
	result->starting = take_socket(control);
	result->heard = HEARD_NOTHING;
}

/* The line is the process's until its end. */
static void attend_over(const struct line *line, struct nsbox_lines *lines,
			struct nsbox_result *result)
{
	result->report = line->talk;
	result->names = line->names;
	result->starter = line->init;
	result->lines = lines;
	result->heard = HEARD_NOTHING;
}

/* There has been no process, unless somebody here has killed it. */
static void note_failure(struct nsbox_result *child)
{
	child->end = (struct nsbox_exit){ .code = CLD_EXITED, .status = 1 };
	if (!child->killed || (child->step != NSBOX_STEP_KILLED && child->step != NSBOX_STEP_INIT))
		return;
	child->end = (struct nsbox_exit){ .code = CLD_KILLED, .status = SIGKILL };
	child->step = NSBOX_STEP_NONE;
}

/* What follows is called by process.c, with the lock held. */
void give_up_start(struct nsbox_result *child, int err)
{
	failed(child, NSBOX_STEP_INIT, -1, err);
	note_failure(child);
}

/*
 * Who it is that was started over a line; false if that has not been said. With the pidfd of the
 * init, which is not needed any more, there is a place for that of the process.
 */
bool hear_name(struct nsbox_result *child)
{
	struct answer answer;

	if (!is_readable(child->names))
		return false;
	if (!child->waiters)
		nsbox_close(&child->starter);
	int ret = receive(child->names, &answer);
	if (take_name(ret == -EAGAIN ? 0 : ret, &answer, child) < 0)
		note_failure(child);
	child->heard = HEARD_HERE;
	return true;
}

/* Whether it has begun; and when it has been reaped, whether it failed then. */
void hear_replacement(struct nsbox_result *child, bool ended)
{
	struct answer answer;

	if (ended) {
		if (take_replacement(child->starting, child->heard == HEARD_HERE, child) < 0)
			note_failure(child);
		child->heard = HEARD_ALL;
		return;
	}
	int ret = receive(child->starting, &answer);
	if (ret == -EAGAIN)
		return;
	if (ret == 1 && answer.reply.kind == REPLY_HERE) {
		nsbox_close(&answer.fd);
		child->heard = HEARD_HERE;
		return;
	}
	/* It goes on as an init, which is of no use to anybody. */
	refused(ret, &answer, child);
	child->heard = HEARD_ALL;
	nsbox_pidfd_send_signal(child->pidfd, SIGKILL, 0);
}

/* All has been said of its process, but perhaps its name, of which the pid may be asked for. */
static void free_line(struct nsbox_result *child)
{
	if (child->heard == HEARD_NOTHING)
		child->pid = receive_pid(child->names);
	child->is_free = child->pid > 0;
}

/* How a process ended, if the init has said so: 1, or 0 if not yet; -EPIPE if it never will. */
int hear_end(struct nsbox_result *child)
{
	struct answer answer;

	int ret = receive(child->report, &answer);
	if (ret == 1 && child->heard != HEARD_ALL && answer.reply.kind == REPLY_STARTED) {
		if (child->heard == HEARD_HERE)
			child->heard = HEARD_ALL;
		if (answer.reply.step) {
			refused(ret, &answer, child);
			note_failure(child);
			return 1;
		}
		nsbox_close(&answer.fd);
		ret = receive(child->report, &answer);
	}
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
	child->end = *said;
	if (child->names >= 0)
		free_line(child);
	return 1;
}

/* The init and its control are the process's from now on, for they end with it. */
static void bind_to_init(struct nsbox_result *result, struct nsbox_control *control)
{
	struct nsbox_exit unused;

	result->init = take_pidfd(control->init, &unused);
	result->control = take_socket(control);
}

/* A line that is free, or a new one. */
static enum nsbox_step find_line(struct nsbox_lines *lines, int socket, const struct peer *init,
				 struct line *line, long *err)
{
	return take_line(lines, line) ? NSBOX_STEP_NONE : open_line(socket, init, line, err);
}

/* It has not been sent: if the init has refused the line, that is why. */
static int not_sent(const struct line *line, enum nsbox_step step, long err,
		    struct nsbox_result *result)
{
	struct answer answer;

	if (step == NSBOX_STEP_INIT && receive(line->talk, &answer) == 1)
		return refused(1, &answer, result);
	return failed(result, step, -1, err);
}

static int start_over_line(struct nsbox_control *control, int socket, const struct peer *init,
			   struct iovec *parts, size_t n, struct start *start,
			   struct nsbox_result *result)
{
	struct nsbox_lines *lines;
	struct line line;

	long err = hold_lines(control, &lines);
	if (err < 0)
		return failed(result, NSBOX_STEP_INIT, -1, err);
	enum nsbox_step step = find_line(lines, socket, init, &line, &err);
	if (step) {
		let_go_of_lines(lines);
		return failed(result, step, -1, err);
	}
	step = send_request(line.talk, init, parts, n, &start->packet, NULL, 0, &err);
	if (step) {
		int ret = not_sent(&line, step, err, result);
		close_line(&line, false);
		let_go_of_lines(lines);
		return ret;
	}
	attend_over(&line, lines, result);
	return 0;
}

/* Send it, and see what becomes of it. */
static int start_by(struct nsbox_control *control, int socket, const struct peer *init,
		    struct start *start, struct nsbox_result *result)
{
	struct iovec parts[2] = { { &start->head, sizeof start->head },
				  { start->body, start->head.body_size } };
	size_t n = start->head.in_memfd ? 1 : 2;
	int32_t channel = -1;
	long err = 0;
	int ret = 0;

	if (is_over_line(&start->head))
		return start_over_line(control, socket, init, parts, n, start, result);
	enum nsbox_step step = send_request(socket, init, parts, n, &start->packet, &channel,
					    !is_over_control(&start->head), &err);
	if (step)
		return failed(result, step, -1, err);
	if (is_over_control(&start->head))
		attend_replacement(control, result);
	else if (start->head.mode == NSBOX_START_REPLACE)
		ret = await_replacement(channel, control, init, result);
	else
		ret = await_start(&channel, init, result);
	if (ret == 0 && start->head.mode == NSBOX_START_LAST)
		bind_to_init(result, control);
	/* After a failure that is the word for the init to kill what there may be. */
	nsbox_close(&channel);
	return ret;
}

/* The limits of time hold from now on. */
int add_watch(const struct nsbox_request *request, struct nsbox_result *result)
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
int start_process(struct nsbox_control *control, const struct nsbox_plan *plan,
		  const struct nsbox_request *request, int mode, struct nsbox_result *result)
{
	struct nsbox_request own = *request;
	struct start start;
	int32_t slave = -1;

	/* Who the process is has to be known where its time begins, or its init is to be kept. */
	if (mode == NSBOX_START_LAST || (mode == NSBOX_START_NORMAL && request->watch))
		own.flags &= ~(uint32_t)NSBOX_REQUEST_ATTENDED;
	int socket = hold(control);
	if (socket < 0)
		return failed(result, NSBOX_STEP_INIT, -1, -ESRCH);
	int pidfd = borrow_pidfd(control->init);
	const struct peer init = peer_until(pidfd, request->patience);
	int err = pidfd < 0 || is_readable(pidfd) ? -ESRCH : 0;
	/* A world that was made before, and would be another now. */
	if (err == 0 && !view_holds(request->view))
		err = -ESTALE;
	if (err < 0)
		failed(result, NSBOX_STEP_INIT, -1, err);
	else
		err = make_terminal(control, &own, &slave, result);
	if (err == 0) {
		err = fill(&start, plan, &own, mode, result);
		if (err == 0)
			err = start_by(control, socket, &init, &start, result);
		nsbox_close(&start.procs);
		nsbox_close(&start.memfd);
	}
	nsbox_close(&slave);
	if (pidfd >= 0)
		give_back_pidfd(control->init);
	let_go(control);
	return err < 0 ? err : begin_watch(request, result);
}

int nsbox_control_start(struct nsbox_control *control, const struct nsbox_plan *plan,
			const struct nsbox_request *request, int mode, struct nsbox_result *result)
{
	*result = no_result(nsbox_this_process());
	int err = add_watch(request, result);
	return err < 0 ? err : start_process(control, plan, request, mode, result);
}
