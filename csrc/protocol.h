/*
 * protocol.h - what a caller (control.h) and its nsbox-init (init.c) say to each other.
 *
 * Both come from one build, and the version says so. Requests go over the control
 * socket (SOCK_SEQPACKET), one message each, so threads of the caller need no lock. They
 * bring a socket of their own, the channel, over which the answers come; whoever closes a
 * channel gives up the process that it is about. But the last one, after which there is no init
 * any more, may have the control socket for its channel, and processes that are waited for go
 * over lines: two sockets that stay, one process at a time. docs/design.md tells the whole.
 *
 * Numbers are in the machine's own byte order; there are no bytes between the members.
 */
#ifndef PROTOCOL_H
#define PROTOCOL_H

#include "nsbox.h"

#include <stdbool.h>
#include <stdint.h>

enum { PROTOCOL_VERSION = 4 };

/* Where the init finds its descriptors: the control socket, and a pidfd of the caller. */
enum { INIT_CONTROL = 0, INIT_CALLER = 1 };

enum request_kind { REQUEST_START = 1, REQUEST_OPEN, REQUEST_LINE };

enum {
	MOST_DESCRIPTORS = 253,      /* SCM_MAX_FD */
	MOST_INLINE = 16 * 1024,     /* a longer body comes in a memfd */
	MOST_BODY = 16 * 1024 * 1024 /* more than execve(2) takes */
};

/*
 * Start a process. If it is attended (flags), nobody waits to hear that it executes: then
 * its end is told next, or why it has none. With the message come, in this order, descriptors of:
 * the channel, unless it needs none; n_fds files for the process; n_tasks files of cgroups, for
 * the child to write "0" to; a memfd with the body, if that is not behind this header.
 *
 * The body has, one behind the other: the strings' addresses, as offsets in the body, 0
 * for NULL, in three arrays that end with it (executables, argv, envp); n_rlimits of
 * struct nsbox_rlimit; filter_length of struct sock_filter; n_groups ids; n_fds target
 * numbers, in ascending order; strings. Its last byte is 0.
 */
struct start_request {
	uint32_t version;
	uint32_t kind;
	uint32_t mode;      /* enum nsbox_start_mode */
	uint32_t flags;     /* NSBOX_REQUEST_*: of those, what concerns the process itself */
	uint64_t body_size; /* all of the body */
	uint64_t mask;      /* of signals */
	uint64_t cwd;       /* offset */
	int64_t uid;
	int64_t gid;
	int32_t umask;
	int32_t process_group;
	int32_t nice;
	int32_t n_groups; /* -1: leave them */
	uint32_t n_executables;
	uint32_t n_argv;
	uint32_t n_envp;
	uint32_t n_rlimits;
	uint32_t filter_length; /* 0: the init has it in force already */
	uint32_t n_tasks;
	uint32_t n_fds;
	uint32_t in_memfd;
};

/* Nobody asks such an init for anything else, nor hears of it before the process has ended. */
static inline bool is_over_control(const struct start_request *head)
{
	return head->mode == NSBOX_START_REPLACE && head->flags & NSBOX_REQUEST_ATTENDED;
}

/*
 * One at a time, it comes over a line, and so do its answers, but HERE: that comes over the other
 * socket of it, where it wakes nobody.
 */
static inline bool is_over_line(const struct start_request *head)
{
	return head->mode == NSBOX_START_NORMAL && head->flags & NSBOX_REQUEST_ATTENDED;
}

/*
 * Open a file: with the rights of the init, which are the payload's. The body is its path,
 * with a 0 at the end, from the root, without ".."; no link is followed. With it comes
 * the channel.
 */
struct open_request {
	uint32_t version;
	uint32_t kind;
	uint64_t flags; /* of open(2) */
	uint64_t mode;
};

/*
 * Have a line. There is no body, and with it come its two sockets: for starts and their answers,
 * and for names.
 */
struct line_request {
	uint32_t version;
	uint32_t kind;
};

enum reply_kind {
	/* From the process itself, which the kernel's SCM_CREDENTIALS names, with its pidfd. */
	REPLY_HERE = 1,
	REPLY_STARTED, /* it executes, or why it does not */
	REPLY_ENDED,
	REPLY_OPENED /* with the descriptor, or the error */
};

struct reply {
	uint32_t version;
	uint32_t kind;
	int32_t step;
	int32_t error;
	int32_t index;
	int32_t unused;
	struct nsbox_exit end;
};

_Static_assert(sizeof(struct start_request) == 104, "no gaps");
_Static_assert(sizeof(struct open_request) == 24, "no gaps");
_Static_assert(sizeof(struct line_request) == 8, "no gaps");
_Static_assert(sizeof(struct reply) == 64, "no gaps");

#endif
