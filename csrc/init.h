/* init.h - private to nsbox-init: init.c, incoming.c, and begin.c, which is how it begins. */
#ifndef NSBOX_INIT_H
#define NSBOX_INIT_H

#include "internal.h"
#include "protocol.h"

#include <poll.h>

enum { MOST_PROCESSES = 1024, STACK_SIZE = 32 * 1024 };

/* What is watched beside the channels. */
enum { POLL_CONTROL, POLL_CALLER, POLL_SIGNALS, POLL_CHANNELS };

/*
 * What is written while nothing is asked for, on one page: the upper end of the stack, the first
 * of what is watched, and what SIGCHLD is for our caller, and so for the processes (struct
 * sigaction of the kernel).
 */
enum { PAGE = 4096 };
extern struct own {
	char stack[STACK_SIZE + PAGE / 2];
	unsigned long chld_action[4];
	struct pollfd polls[POLL_CHANNELS + MOST_PROCESSES];
} own;

/* incoming.c: one message and its descriptors, */
extern char message[sizeof(struct start_request) + MOST_INLINE];
extern int32_t fds[MOST_DESCRIPTORS];
extern uint32_t n_fds;
extern uint32_t n_channels; /* of these, at the beginning: 1, or 0 if the request needs none */
/* and what it asks for, in the words of spawn.c. */
extern struct nsbox_request request;
extern struct spawn spawn;
long receive_message(int socket, bool *truncated);
void close_received(void);
bool is_whole(const struct start_request *head);
bool take_start(const struct start_request *head, char *body);
int open_path_inside(char *path, uint64_t flags, uint64_t mode);

/* begin.c: give back what this program does not need; more of it if it stays for long. */
void become_small(bool stays);

/* init.c: what it does. argc: as from execve(2). */
__attribute__((noreturn)) void init_main(long argc);

#endif
