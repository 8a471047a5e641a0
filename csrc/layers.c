/*
 * layers.c - the layers of overlays, handed from the child to its caller.
 *
 * An upper layer in memory lies in scratch, to which no path leads once the host's
 * mounts are detached. A descriptor keeps it: whoever holds one can see what the
 * payload has changed.
 */
#include "internal.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { AT_ONCE = 128 }; /* nsbox_layers.fds; the kernel takes 253 (SCM_MAX_FD) */
_Static_assert(sizeof((struct nsbox_layers *)0)->fds == AT_ONCE * sizeof(int32_t), "AT_ONCE");

union control {
	struct cmsghdr header;
	char space[CMSG_SPACE(AT_ONCE * sizeof(int))];
};

/* ---- the child's part, under the rule at the head of child.c ---------- */

static long send_layers(int socket, int32_t index, const int *fds, size_t count)
{
	union control control;
	struct iovec text = { &index, sizeof index };
	struct msghdr message = {
		.msg_iov = &text,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = CMSG_SPACE(count * sizeof(int)),
	};

	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	control.header.cmsg_len = CMSG_LEN(count * sizeof(int));
	memcpy(CMSG_DATA(&control.header), fds, count * sizeof(int));
	/* Nobody reads while we are set up: a full socket must be an error, and not the end. */
	return RETRY(sys(__NR_sendmsg, socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT));
}

/*
 * The working directory is that of the layers: "upper", then "0", "1" and so on, of which
 * the first is topmost. Opened as the kernel has just done it for the overlay.
 */
int hand_out_layers(struct spawn *spawn, uint32_t index)
{
	char name[24] = "upper";
	int fds[AT_ONCE];
	size_t count = 0;
	long fd = 0, err = 0;

	for (uint64_t number = 0; fd >= 0 && err >= 0; number++) {
		fd = RETRY(sys(__NR_openat, AT_FDCWD, name, O_PATH | O_DIRECTORY | O_CLOEXEC));
		if (fd >= 0)
			fds[count++] = (int)fd;
		if (count == AT_ONCE || (fd < 0 && count)) {
			err = send_layers(spawn->request->layers, (int32_t)index, fds, count);
			while (count)
				sys(__NR_close, fds[--count]);
		}
		name[format_uint(name, number)] = '\0';
	}
	if (err >= 0 && fd != -ENOENT)
		err = fd;
	return err < 0 ? fail(spawn, NSBOX_STEP_LAYERS, (int)index, err) : 0;
}

/* ---- the caller's part ------------------------------------------------ */

/* Take what one message brought: 1, or 0 if there is none. */
int nsbox_receive_layers(int socket, struct nsbox_layers *layers)
{
	union control control;
	int32_t index = -1;
	struct iovec text = { &index, sizeof index };
	struct msghdr message = {
		.msg_iov = &text,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof control,
	};

	layers->count = 0;
	long size = RETRY(sys(__NR_recvmsg, socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT));
	if (size <= 0)
		return size == -EAGAIN ? 0 : (int)size;
	layers->op = index;
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	if (!header || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
		return -EMFILE; /* what could not be installed here was dropped */
	layers->count = (uint32_t)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
	memcpy(layers->fds, CMSG_DATA(header), layers->count * sizeof(int));
	bool whole = !(message.msg_flags & MSG_CTRUNC);
	for (uint32_t i = 0; i < layers->count; i++) {
		layers->fds[i] = lift(layers->fds[i]);
		whole = whole && layers->fds[i] >= 0;
	}
	return whole ? 1 : -EMFILE;
}

int nsbox_release_layers(struct nsbox_layers *layers)
{
	while (layers->count)
		sys(__NR_close, layers->fds[--layers->count]);
	return 0;
}
