/*
 * payload.c - a hostile payload: `payload ATTACK [ARGUMENT...]`.
 *
 * Each attack prints one word: the name of the errno that stopped it, or "ok"
 * (with a value, if there is one) when it got what it wanted. Static, so that it
 * runs in any root; raw system calls, so that no libc stands in between.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

/* Newer than some libcs' headers; the same numbers on every architecture. */
enum {
	PIDFD_SEND_SIGNAL = 424,
	IO_URING_SETUP = 425,
	OPEN_TREE = 428,
	MOVE_MOUNT = 429,
	FSOPEN = 430,
	FSPICK = 433,
	PIDFD_OPEN = 434,
	CLONE3 = 435,
	PIDFD_GETFD = 438,
	MOUNT_SETATTR = 442,
	STATMOUNT = 457,
	LISTMOUNT = 458,
};

static const char *outcome(long result)
{
	return result < 0 ? strerrorname_np(errno) : "ok";
}

static int say(long result)
{
	puts(outcome(result));
	return 0;
}

static long number(const char *text)
{
	return text ? (long)strtoull(text, NULL, 0) : 0;
}

/* ---- any system call ------------------------------------------------ */

#define NAMED(name)                                                                                \
	{                                                                                          \
#name, SYS_##name                                                                  \
	}

static const struct {
	const char *name;
	long number;
} calls[] = {
	NAMED(acct), NAMED(add_key), NAMED(adjtimex), NAMED(bpf), NAMED(chroot), NAMED(clock_settime),
	NAMED(clone), NAMED(delete_module), NAMED(fanotify_init), NAMED(finit_module),
	NAMED(init_module), NAMED(io_uring_setup), NAMED(kcmp), NAMED(kexec_load), NAMED(keyctl),
	NAMED(kill), NAMED(linkat), NAMED(lookup_dcookie), NAMED(mbind), NAMED(memfd_create),
	NAMED(migrate_pages), NAMED(mknodat), NAMED(mount), NAMED(move_pages),
	NAMED(name_to_handle_at), NAMED(open_by_handle_at), NAMED(openat), NAMED(perf_event_open),
	NAMED(personality), NAMED(pivot_root), NAMED(prlimit64), NAMED(process_vm_readv),
	NAMED(ptrace), NAMED(quotactl), NAMED(reboot), NAMED(renameat2), NAMED(sethostname),
	NAMED(setdomainname), NAMED(setns), NAMED(setpriority), NAMED(settimeofday), NAMED(socket),
	NAMED(swapoff), NAMED(swapon), NAMED(syslog), NAMED(umount2), NAMED(unlinkat),
	NAMED(unshare), NAMED(userfaultfd), NAMED(vhangup), NAMED(fchmodat), NAMED(fchownat),
	NAMED(utimensat), NAMED(mkdirat), NAMED(symlinkat), NAMED(truncate), NAMED(setxattr),
	NAMED(setgroups), NAMED(setresuid), NAMED(setresgid), NAMED(sched_setscheduler),
	{ "open_tree", OPEN_TREE }, { "move_mount", MOVE_MOUNT }, { "fsopen", FSOPEN },
	{ "fspick", FSPICK }, { "mount_setattr", MOUNT_SETATTR }, { "pidfd_open", PIDFD_OPEN },
	{ "pidfd_getfd", PIDFD_GETFD }, { "pidfd_send_signal", PIDFD_SEND_SIGNAL },
#ifdef __x86_64__
	NAMED(iopl), NAMED(ioperm), NAMED(modify_ldt),
#endif
};

static long call_number(const char *name)
{
	for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
		if (!strcmp(calls[i].name, name))
			return calls[i].number;
	fprintf(stderr, "unknown call %s\n", name);
	exit(2);
}

/* An argument: a number, or "s:TEXT" for a string, or "z:SIZE" for that many zero bytes. */
static long argument(char *text)
{
	if (!text)
		return 0;
	if (!strncmp(text, "s:", 2))
		return (long)(text + 2);
	if (!strncmp(text, "z:", 2))
		return (long)calloc(1, (size_t)number(text + 2));
	return number(text);
}

static int call(char **args)
{
	long a[6] = { 0 };
	for (int i = 0; i < 6 && args[i + 1]; i++)
		a[i] = argument(args[i + 1]);
	return say(syscall(call_number(args[0]), a[0], a[1], a[2], a[3], a[4], a[5]));
}

/* ---- other processes ------------------------------------------------ */

/* Keep every other process of this pid namespace stopped. */
static int stop_others(char **args)
{
	(void)args;
	puts("ready");
	fflush(stdout);
	while (kill(1, 0) == 0)
		for (int pid = 2; pid < 64; pid++)
			if (pid != getpid())
				kill(pid, SIGSTOP);
	return 0;
}

/* The same for the children of a process of this pid namespace, until stdin ends. */
static int stop_children(char **args)
{
	char path[64], text[4096];
	struct pollfd end = { .fd = 0, .events = POLLIN };

	snprintf(path, sizeof path, "/proc/%s/task/%s/children", args[0], args[0]);
	puts("ready");
	fflush(stdout);
	while (poll(&end, 1, 0) == 0) {
		int fd = open(path, O_RDONLY);
		ssize_t length = read(fd, text, sizeof text - 1);
		close(fd);
		text[length < 0 ? 0 : length] = '\0';
		for (char *next = text; *next;) {
			long pid = strtol(next, &next, 10);
			if (pid > 0 && pid != getpid())
				kill((pid_t)pid, SIGSTOP);
			next += *next == ' ';
		}
	}
	return 0;
}

/* ---- which attack --------------------------------------------------- */

static const struct {
	const char *name;
	int (*run)(char **args);
} attacks[] = {
	{ "call", call },
	{ "stop-others", stop_others },
	{ "stop-children", stop_children },
};

int main(int argc, char **argv)
{
	for (size_t i = 0; argc > 1 && i < sizeof attacks / sizeof *attacks; i++)
		if (!strcmp(attacks[i].name, argv[1]))
			return attacks[i].run(argv + 2);
	fprintf(stderr, "unknown attack\n");
	return 2;
}
