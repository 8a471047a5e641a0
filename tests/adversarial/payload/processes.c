/* processes.c - attacks on other processes, and on the payload's own limits. */
#include "payload.h"

#include <linux/capability.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>

/* ---- other processes ------------------------------------------------ */

/* Keep every other process of this pid namespace stopped. */
int stop_others(char **args)
{
	(void)args;
	puts("ready");
	fflush(stdout);
	for (;;)
		kill(-1, SIGSTOP); /* whatever their numbers are by now */
}

/* The same for the children of a process of this pid namespace, until stdin ends. */
int stop_children(char **args)
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

/*
 * What a process can do to another: the names of what was possible with any pid from first to last
 * that is not this one.
 */
int reach_others(char **args)
{
	char byte;
	struct iovec local = { &byte, 1 }, remote = { (void *)outcome, 1 };
	int found = 0;

	for (pid_t pid = (pid_t)number(args[0]); pid <= number(args[1]); pid++) {
		if (pid == getpid())
			continue;
		int pidfd = (int)syscall(PIDFD_OPEN, pid, 0);
		const struct {
			const char *name;
			long result;
		} reached[] = {
			{ "kill", kill(pid, 0) },
			{ "ptrace", ptrace(PTRACE_SEIZE, pid, 0, 0) },
			{ "process_vm_readv", process_vm_readv(pid, &local, 1, &remote, 1, 0) },
			{ "kcmp", syscall(SYS_kcmp, getpid(), pid, 0, 0, 0) },
			{ "prlimit", prlimit(pid, RLIMIT_NOFILE, NULL, &(struct rlimit){ 0 }) },
			{ "setpriority", setpriority(PRIO_PROCESS, (id_t)pid, 19) },
			{ "sched_setscheduler",
			  sched_setscheduler(pid, SCHED_IDLE, &(struct sched_param){ 0 }) },
			{ "pidfd_getfd", syscall(PIDFD_GETFD, pidfd, 0, 0) },
			{ "setns", setns(pidfd, CLONE_NEWNET) },
		};
		for (size_t i = 0; i < sizeof reached / sizeof *reached; i++)
			if (reached[i].result >= 0)
				found += printf("%s(%d) ", reached[i].name, pid);
		if (pidfd >= 0)
			close(pidfd);
	}
	puts(found ? "" : "none");
	return 0;
}

/* Through a socket that was passed: a descriptor of the process at its other end. */
int peer(char **args)
{
	enum { PEERPIDFD = 77 }; /* SO_PEERPIDFD, Linux 6.5 */
	int pidfd = -1, found = 0;
	socklen_t size = sizeof pidfd;

	if (getsockopt((int)number(args[0]), SOL_SOCKET, PEERPIDFD, &pidfd, &size) < 0)
		return say(-1);
	for (int nr = 0; nr < 64; nr++)
		if (syscall(PIDFD_GETFD, pidfd, nr, 0) >= 0)
			found += printf("getfd(%d) ", nr);
	if (syscall(PIDFD_SEND_SIGNAL, pidfd, 0, NULL, 0) >= 0)
		found += printf("signal ");
	static const int kinds[] = { CLONE_NEWNS,  CLONE_NEWUTS, CLONE_NEWIPC,   CLONE_NEWUSER,
				     CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWCGROUP };
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
		if (setns(pidfd, kinds[i]) >= 0)
			found += printf("setns(%x) ", kinds[i]);
	/* linux/pidfd.h: PIDFD_GET_CGROUP_NAMESPACE to PIDFD_GET_UTS_NAMESPACE */
	for (unsigned request = 1; request <= 10; request++)
		if (ioctl(pidfd, 0xff00 | request, 0) >= 0)
			found += printf("namespace(%u) ", request);
	puts(found ? "" : "none");
	return 0;
}

/* A daemon that holds stdout open, and the payload ends at once. */
int daemonize(char **args)
{
	(void)args;
	if (fork() == 0) {
		setsid();
		if (fork() == 0) {
			for (int signal = 1; signal < 32; signal++)
				(void)!sigaction(
					signal, &(struct sigaction){ .sa_handler = SIG_IGN }, NULL);
			prctl(PR_SET_PDEATHSIG, 0);
			for (;;)
				pause();
		}
		_exit(0);
	}
	wait(NULL);
	puts("ok");
	return 0;
}

/* Processes without end, each of which tries to outlive the others. */
int fork_some(char **args)
{
	for (long left = number(args[0]); left > 0; left--) {
		if (fork() == 0) {
			setsid();
			for (;;)
				pause();
		}
	}
	puts("ok");
	return 0;
}

/* ---- privileges ----------------------------------------------------- */

int raise_capabilities(char **args)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = { { 0 } };

	(void)args;
	for (int capability = 0; capability < 41; capability++) {
		memset(data, 0, sizeof data);
		data[capability / 32].permitted = 1U << capability % 32;
		data[capability / 32].effective = data[capability / 32].permitted;
		if (syscall(SYS_capset, &header, data) == 0)
			return printf("ok %d\n", capability) < 0;
	}
	return say(-1);
}

int raise_ambient(char **args)
{
	(void)args;
	for (long capability = 0; capability < 41; capability++)
		if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0) == 0)
			return printf("ok %ld\n", capability) < 0;
	return say(-1);
}

int undo_no_new_privs(char **args)
{
	(void)args;
	return say(prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0));
}

int raise_limit(char **args)
{
	struct rlimit limit;
	int resource = (int)number(args[0]);

	getrlimit(resource, &limit);
	if (limit.rlim_max == RLIM_INFINITY) {
		puts("unlimited");
		return 0;
	}
	limit.rlim_cur = limit.rlim_max = limit.rlim_max + 1;
	rlim_t wanted = limit.rlim_max;
	if (setrlimit(resource, &limit) < 0)
		return say(-1);
	/* It may only be said that it is so. */
	getrlimit(resource, &limit);
	puts(limit.rlim_max < wanted ? "unchanged" : "ok");
	return 0;
}
