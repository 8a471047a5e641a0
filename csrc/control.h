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

int failed(struct nsbox_result *result, enum nsbox_step step, int index, long error);

/* messages.c */
enum nsbox_step send_request(int socket, int init, struct nsbox_gate *gate, struct iovec *parts,
			     size_t n, struct packet *packet, int *channel, long *err);
int receive(int channel, struct answer *answer);
int await(int channel, int init, struct answer *answer);

/* start.c */
int add_watch(const struct nsbox_request *request, struct nsbox_result *result);
int start_process(struct nsbox_control *control, const struct nsbox_plan *plan,
		  const struct nsbox_request *request, int mode, struct nsbox_gate *gate,
		  struct nsbox_result *result);

/* control.c */
int hold(struct nsbox_control *control);
void let_go(struct nsbox_control *control);

#endif
