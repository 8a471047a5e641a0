/* payload.h - what the parts of the hostile payload share; see main.c. */
#ifndef PAYLOAD_H
#define PAYLOAD_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Newer than some libcs' headers; the same numbers on every architecture. */
enum {
	PIDFD_SEND_SIGNAL = 424,
	OPEN_TREE = 428,
	MOVE_MOUNT = 429,
	FSOPEN = 430,
	FSPICK = 433,
	PIDFD_OPEN = 434,
	CLONE3 = 435,
	PIDFD_GETFD = 438,
	MOUNT_SETATTR = 442,
	LISTMOUNT = 458,
};

/* "ok", or the name of the errno that the last call has set. */
const char *outcome(long result);
/* Print that; returns 0, for `return say(...)`. */
int say(long result);
long number(const char *text);

/* processes.c */
int daemonize(char **args);
int fork_some(char **args);
int peer(char **args);
int raise_ambient(char **args);
int raise_capabilities(char **args);
int raise_limit(char **args);
int reach_others(char **args);
int stop_children(char **args);
int stop_others(char **args);
int undo_no_new_privs(char **args);

/* files.c */
int by_handle(char **args);
int deep_directories(char **args);
int fill_bytes(char **args);
int fill_inodes(char **args);
int fill_mapping(char **args);
int list_mounts(char **args);
int namespace_by_handle(char **args);
int open_file(char **args);
int survey(char **args);
int read_file(char **args);

/* channels.c */
int abstract(char **args);
int abstract_server(char **args);
int close_and_spin(char **args);
int connect_to(char **args);
int descriptors(char **args);
int flood(char **args);
int key_add(char **args);
int key_search(char **args);
int message_queue(char **args);
int new_link(char **args);
int shared_memory(char **args);
int terminal(char **args);
int type_character(char **args);

#endif
