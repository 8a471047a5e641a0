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
#include <sys/socket.h>

enum { MOST_FREE = 4 };

struct nsbox_lines {
	uint32_t lock;
	uint32_t holders;
	bool closed;
	uint32_t n_free;
	struct line free[MOST_FREE];
};

/* A fork has copies of it, which keep no process: whoever is not one says so. */
void close_line(struct line *line, bool foreign)
{
	if (line->talk >= 0 && !foreign)
		sys(__NR_shutdown, line->talk, SHUT_RDWR);
	nsbox_close(&line->talk);
	nsbox_close(&line->names);
	nsbox_close(&line->init);
}

static struct nsbox_lines *create_lines(void)
{
	struct nsbox_lines *lines = calloc(1, sizeof *lines);
	if (lines)
		lines->holders = 1;
	return lines;
}

/* The list, held once more. -ESRCH if the control is closed. */
long hold_lines(struct nsbox_control *control, struct nsbox_lines **held)
{
	*held = NULL;
	lock(&control->lock);
	long err = control->closed ? -ESRCH : 0;
	if (err == 0) {
		if (!control->lines)
			control->lines = create_lines();
		*held = control->lines;
		if (*held)
			__atomic_add_fetch(&(*held)->holders, 1, __ATOMIC_RELAXED);
		else
			err = -ENOMEM;
	}
	unlock(&control->lock);
	return err;
}

void let_go_of_lines(struct nsbox_lines *lines)
{
	if (lines && __atomic_sub_fetch(&lines->holders, 1, __ATOMIC_ACQ_REL) == 0)
		free(lines);
}

/* The control's own. `foreign`: this is a fork, and the lock whatever it was. */
void close_lines(struct nsbox_lines *lines, bool foreign)
{
	if (!lines)
		return;
	if (!foreign)
		lock(&lines->lock);
	lines->closed = true;
	while (lines->n_free)
		close_line(&lines->free[--lines->n_free], foreign);
	if (!foreign)
		unlock(&lines->lock);
	let_go_of_lines(lines);
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
void let_go_of_line(struct nsbox_result *child, bool foreign)
{
	struct line line = { child->report, child->names, child->starter };
	struct nsbox_lines *lines = child->lines;

	if (!lines)
		return;
	child->report = child->names = child->starter = -1;
	child->lines = NULL;
	if (child->is_free && line.init >= 0 && !foreign)
		give_back(lines, &line);
	close_line(&line, foreign);
	let_go_of_lines(lines);
}

/* Ask an init for one more. Returns the step that failed. */
enum nsbox_step open_line(int socket, const struct peer *init, struct line *line, long *err)
{
	struct line_request head = { PROTOCOL_VERSION, REQUEST_LINE };
	struct iovec part = { &head, sizeof head };
	struct packet packet = { .n_fds = 2 };
	int32_t channels[2] = { -1, -1 };

	*line = (struct line){ -1, -1, -1 };
	*err = sys(__NR_fcntl, init->pidfd, F_DUPFD_CLOEXEC, 3);
	if (*err < 0)
		return NSBOX_STEP_INIT;
	line->init = (int32_t)*err;
	enum nsbox_step step = send_request(socket, init, &part, 1, &packet, channels, 2, err);
	line->talk = channels[0];
	line->names = channels[1];
	if (step)
		close_line(line, false);
	return step;
}
