/* control.h - private to the caller's half of the protocol: control.c, messages.c, start.c. */
#ifndef NSBOX_CONTROL_H
#define NSBOX_CONTROL_H

#include "internal.h"
#include "protocol.h"

#include <sys/uio.h>

enum { MOST_ERROR = 4095 };

/* Two descriptors of our own at most, and what is handed on. */
struct packet {
	int32_t fds[MOST_DESCRIPTORS];
	uint32_t n_fds;
};

/* One answer: with pid, who sent it; with fd, a descriptor, which is the receiver's. */
struct answer {
	struct reply reply;
	int32_t pid;
	int32_t fd;
};

/*
 * What a process is started over that somebody waits for: the socket of requests and answers, that
 * of names, and a pidfd of the init.
 */
struct line {
	int32_t talk;
	int32_t names;
	int32_t init;
};

int failed(struct nsbox_result *result, enum nsbox_step step, int index, long error);

/* messages.c */
struct peer peer_until(int init, uint32_t patience);
enum nsbox_step send_request(int socket, const struct peer *init, struct iovec *parts, size_t n,
			     struct packet *packet, int32_t *channels, uint32_t n_channels,
			     long *err);
int receive(int channel, struct answer *answer);
int receive_pid(int channel);
int await(int channel, const struct peer *init, struct answer *answer);

/* start.c */
int add_watch(const struct nsbox_request *request, struct nsbox_result *result);
int start_process(struct nsbox_control *control, const struct nsbox_plan *plan,
		  const struct nsbox_request *request, int mode, struct nsbox_result *result);

/* lines.c */
long hold_lines(struct nsbox_control *control, struct nsbox_lines **held);
void let_go_of_lines(struct nsbox_lines *lines);
void close_lines(struct nsbox_lines *lines, bool foreign);
bool take_line(struct nsbox_lines *lines, struct line *line);
enum nsbox_step open_line(int socket, const struct peer *init, struct line *line, long *err);
void close_line(struct line *line, bool foreign);

/* control.c */
int hold(struct nsbox_control *control);
void let_go(struct nsbox_control *control);

#endif
