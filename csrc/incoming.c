/*
 * incoming.c - a message of the caller's, until it is what spawn.c and child.c know; and the paths
 * that he asks for.
 *
 * All is checked before anything is done: what makes no sense is the end of the init (init.c).
 */
#include "init.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

char message[sizeof(struct start_request) + MOST_INLINE] __attribute__((aligned(8)));
int32_t fds[MOST_DESCRIPTORS];
uint32_t n_fds;
uint32_t n_channels;
static int32_t received[MOST_DESCRIPTORS]; /* a copy of some, which the child may change */

static struct nsbox_plan plan;
struct nsbox_request request;
struct spawn spawn;

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
 * Returns the size; 0 if there is none after all, negative for what is none of ours. `truncated`:
 * not all descriptors fitted in.
 */
long receive_message(int socket, bool *truncated)
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

	long size = sys(__NR_recvmsg, socket, &packet, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	if (size == -EAGAIN || size == -EINTR)
		return 0;
	if (size < (long)(2 * sizeof(uint32_t)) || packet.msg_flags & MSG_TRUNC)
		return -EPROTO;
	take_fds(&control.head, packet.msg_controllen);
	*truncated = packet.msg_flags & MSG_CTRUNC;
	return size;
}

void close_received(void)
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
bool is_whole(const struct start_request *head)
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
bool take_start(const struct start_request *head, char *body)
{
	uint64_t *next = (uint64_t *)body;
	uint64_t size = head->body_size;

	plan = (struct nsbox_plan){
		.clone_flags = head->flags & NSBOX_REQUEST_OWN_CGROUPS ? CLONE_NEWCGROUP : 0,
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
		.result = no_result(0),
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

/* ---- files ---------------------------------------------------------- */

/*
 * Open a path that begins at the root, without ".." and links: each part by itself, since
 * the filter may refuse openat2(2), whose arguments it cannot see. The path is changed.
 */
int open_path_inside(char *path, uint64_t flags, uint64_t mode)
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
