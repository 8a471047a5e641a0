/* init.h - private to nsbox-init: init.c, and begin.c, which is how it begins. */
#ifndef NSBOX_INIT_H
#define NSBOX_INIT_H

#include "internal.h"

#include <poll.h>

enum { MOST_PROCESSES = 1024, STACK_SIZE = 32 * 1024 };

/* What is watched beside the channels. */
enum { POLL_CONTROL, POLL_CALLER, POLL_SIGNALS, POLL_CHANNELS };

/*
 * What is written while nothing is asked for, on one page: the upper end of the stack, and
 * the first of what is watched.
 */
enum { PAGE = 4096 };
extern struct own {
	char stack[STACK_SIZE + PAGE / 2];
	struct pollfd polls[POLL_CHANNELS + MOST_PROCESSES];
} own;

/* begin.c: give back what this program does not need; more of it if it stays for long. */
void become_small(bool stays);

/* init.c: what it does. argc: as from execve(2). */
__attribute__((noreturn)) void init_main(long argc);

#endif
