/*
 * lines.c - the lines to an nsbox-init: see protocol.h.
 *
 * To make one takes longer than to say over it what is to be said. So those that are free are
 * kept, in a list that the control and the processes over its lines share: it is there as long as
 * one of them. After a fork it is the parent's; who changes it meanwhile leaves it whole.
 */
#include "control.h"

#include <fcntl.h>
#include <stdlib.h>

enum { MOST_FREE = 8 };

struct nsbox_lines {
	uint32_t lock;
	uint32_t holders;
	bool closed;
	uint32_t n_free;
	struct line free[MOST_FREE];
};

void close_line(struct line *line)
{
	nsbox_close(&line->talk);
	nsbox_close(&line->names);
	nsbox_close(&line->init);
}

static void close_free(struct nsbox_lines *lines)
{
	while (lines->n_free)
		close_line(&lines->free[--lines->n_free]);
}

/* The list, held once more; NULL if the control is closed, or without memory. */
struct nsbox_lines *hold_lines(struct nsbox_control *control)
{
	lock(&control->lock);
	if (!control->lines && !control->closed) {
		control->lines = calloc(1, sizeof *control->lines);
		if (control->lines)
			control->lines->holders = 1;
	}
	struct nsbox_lines *lines = control->lines;
	if (lines)
		__atomic_add_fetch(&lines->holders, 1, __ATOMIC_RELAXED);
	unlock(&control->lock);
	return lines;
}

void let_go_of_lines(struct nsbox_lines **held)
{
	struct nsbox_lines *lines = __atomic_exchange_n(held, NULL, __ATOMIC_ACQ_REL);

	if (lines && __atomic_sub_fetch(&lines->holders, 1, __ATOMIC_ACQ_REL) == 0) {
		close_free(lines);
		free(lines);
	}
}

/* No process needs one any more. `foreign`: this is a fork, and the lock whatever it was. */
void close_lines(struct nsbox_lines **held, bool foreign)
{
	struct nsbox_lines *lines = *held;

	if (lines && !foreign)
		lock(&lines->lock);
	if (lines) {
		lines->closed = true;
		close_free(lines);
	}
	if (lines && !foreign)
		unlock(&lines->lock);
	let_go_of_lines(held);
}

bool take_line(struct nsbox_lines *lines, struct line *line)
{
	bool found = false;

	lock(&lines->lock);
	if (lines->n_free) {
		found = true;
		*line = lines->free[lines->n_free - 1];
		__atomic_store_n(&lines->n_free, lines->n_free - 1, __ATOMIC_RELEASE);
	}
	unlock(&lines->lock);
	return found;
}

static void give_back(struct nsbox_lines *lines, struct line *line)
{
	lock(&lines->lock);
	if (!lines->closed && lines->n_free < MOST_FREE) {
		lines->free[lines->n_free] = *line;
		__atomic_store_n(&lines->n_free, lines->n_free + 1, __ATOMIC_RELEASE);
		*line = (struct line){ -1, -1, -1 };
	}
	unlock(&lines->lock);
}

/* The process has ended, or is nobody's any more. */
void let_go_of_line(struct nsbox_result *child)
{
	struct line line = { child->report, child->names, child->starter };

	child->report = child->names = child->starter = -1;
	if (child->lines && child->is_free && line.init >= 0)
		give_back(child->lines, &line);
	close_line(&line);
	let_go_of_lines(&child->lines);
}

/* Ask an init for one more. Returns the step that failed. */
enum nsbox_step open_line(int socket, int init, struct nsbox_gate *gate, struct line *line,
			  long *err)
{
	struct line_request head = { PROTOCOL_VERSION, REQUEST_LINE };
	struct iovec part = { &head, sizeof head };
	struct packet packet = { .n_fds = 2 };
	int32_t channels[2] = { -1, -1 };

	*line = (struct line){ -1, -1, -1 };
	*err = sys(__NR_fcntl, init, F_DUPFD_CLOEXEC, 3);
	if (*err < 0)
		return NSBOX_STEP_INIT;
	line->init = (int32_t)*err;
	enum nsbox_step step =
		send_request(socket, init, gate, &part, 1, &packet, channels, 2, err);
	line->talk = channels[0];
	line->names = channels[1];
	if (step)
		close_line(line);
	return step;
}
