/*
 * floor.c: the cost of the system calls themselves.
 *
 * Makes the system calls that nsbox makes for a sandbox without further layers
 * of security (NO_LAYERS in _spawners.py), in the same order, and nothing else:
 * no Python, no checks of arguments, no choices. What that sandbox costs above
 * this program is nsbox's own; what it costs up to here is the kernel's.
 *
 * Usage: floor WHO UID_MAP GID_MAP HOSTNAME [OPERATION]... -- PROGRAM [ARG]...
 *
 * WHO is "root" or "user" and says who the caller is: a root caller opens the
 * sources of the binds itself, because the child could not reach all of them;
 * a plain one must write "deny" to setgroups before its gid map.
 *
 * An operation is six words: KIND BASE PATH TEXT NUMBER EXTRA. BASE is the
 * position of the operation that made the mount in which PATH lies (-1: the
 * host's), and what the other words mean depends on the kind:
 *
 *   kind      path      text              number       extra
 *   bind      target    source            attributes
 *   device    target    source            attributes   MAJOR:MINOR
 *   mount     target    type              attributes   KEY=VALUE,...
 *   mkdir     target                      mode
 *   file      target    file to copy      mode
 *   symlink   target    what it says
 *   readonly                                           (the mount of BASE)
 *
 * _floor.py writes this command line from nsbox's own plan, so that the two
 * cannot drift apart. The program is run with floor's own environment.
 *
 * For each line on standard input one sandbox is started and reaped, and the
 * nanoseconds this took are written to standard output. The process stays up
 * between measurements so that its own start is never part of one.
 *
 * The child shares the parent's memory (CLONE_VM) on a stack of its own. It
 * waits on a futex until the parent has written the id maps, builds the new
 * root, drops privileges and execs; the kernel tells the parent of the exec by
 * clearing `alive`. Both share errno, which a library could not accept. Here
 * it is read only to name a failure, and at the end of the capabilities, where
 * the parent sleeps.
 *
 * What nsbox calls and this does not: the safe resolution of mount points in
 * directories that are not its own (openat2, statx, close), because here the
 * root is known to be an empty tmpfs; questions about descriptors that are to be
 * handed on (fstat, fcntl); kcmp, which tells that the child has left the memory
 * of the caller; geteuid and getegid, by which nsbox notices a caller that
 * changed its ids; and a second waitid.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/futex.h>
#include <linux/keyctl.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <linux/securebits.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define STACK_SIZE ((size_t)128 * 1024)
#define MAX_OPERATIONS 128
#define MAX_OPTIONS 4
#define WORDS 6

/* sys/mount.h has these but clashes with linux/mount.h. */
#define DETACH 2
#define PRIVATE (1UL << 18)
#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif

#define LOCKED_BITS                                                                                \
	(SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP_LOCKED |                    \
	 SECBIT_KEEP_CAPS_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE |                                   \
	 SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED)

#define NEW_NAMESPACES                                                                             \
	(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | \
	 CLONE_NEWCGROUP)

enum kind { BIND, DEVICE, MOUNT, MKDIR, FILE_COPY, SYMLINK, READONLY };

static const char *const kind_names[] = {
	[BIND] = "bind",      [DEVICE] = "device",   [MOUNT] = "mount",       [MKDIR] = "mkdir",
	[FILE_COPY] = "file", [SYMLINK] = "symlink", [READONLY] = "readonly",
};

struct option {
	const char *key;
	const char *value;
};

struct operation {
	enum kind kind;
	int base;
	const char *path;
	const char *text;
	unsigned int number;
	struct option options[MAX_OPTIONS];
	size_t noptions;
	unsigned int major;
	unsigned int minor;
	char *content;
	size_t size;
};

/* What to build: read from the command line once, never changed after. */
struct plan {
	int is_root;
	const char *uid_map;
	const char *gid_map;
	const char *hostname;
	struct operation operations[MAX_OPERATIONS];
	int noperations;
	char **argv;
	char **environment;
};

/* One spawn; the memory through which parent and child talk. */
struct spawn {
	const struct plan *plan;
	uint32_t mapped; /* futex: the id maps are written */
	uint32_t alive;  /* futex: cleared by the kernel at exec or exit */
	sigset_t inherited_mask;
	int caller_pidfd;
	int mounts[MAX_OPERATIONS]; /* for each operation: its mount */
};

/* End parent or child, whoever it is, with a message. */
static _Noreturn void die(const char *what, int error)
{
	dprintf(STDERR_FILENO, "floor: %s: %s\n", what, strerror(error));
	_exit(125);
}

static _Noreturn void fail(const char *step)
{
	die(step, errno);
}

/* ---- Sources of binds: the parent's work for root, else the child's ---- */

static void open_source(struct spawn *s, int index)
{
	const struct operation *op = &s->plan->operations[index];
	struct mount_attr set = {
		.attr_set = op->number,
		.propagation = PRIVATE,
	};
	int tree = (int)syscall(SYS_open_tree, AT_FDCWD, op->text,
				OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);

	if (tree < 0)
		fail("open_tree");
	if (syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &set, sizeof(set)) <
	    0)
		fail("mount_setattr");
	s->mounts[index] = tree;
}

static void open_sources(struct spawn *s)
{
	for (int i = 0; i < s->plan->noperations; i++)
		if (s->plan->operations[i].kind <= DEVICE)
			open_source(s, i);
}

/* ---- Child: in the order of child_main ---- */

static void loopback_up(void)
{
	struct ifreq request = {
		.ifr_name = "lo",
		.ifr_flags = IFF_UP | IFF_RUNNING,
	};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		fail("socket");
	if (ioctl(fd, SIOCSIFFLAGS, &request) < 0)
		fail("loopback up");
	close(fd);
}

/* Files of the new root need an owner that is mapped, so this comes first. */
static void become_inner_root(struct spawn *s)
{
	while (!__atomic_load_n(&s->mapped, __ATOMIC_ACQUIRE))
		syscall(SYS_futex, &s->mapped, FUTEX_WAIT, 0, NULL);
	if (s->plan->is_root && syscall(SYS_setgroups, 0, NULL) < 0)
		fail("setgroups");
	if (syscall(SYS_setresgid, 0, 0, 0) < 0)
		fail("setresgid");
	if (syscall(SYS_setresuid, 0, 0, 0) < 0)
		fail("setresuid");
}

static void attach(struct spawn *s, int index, int base)
{
	if (syscall(SYS_move_mount, s->mounts[index], "", base, s->plan->operations[index].path,
		    MOVE_MOUNT_F_EMPTY_PATH) < 0)
		fail("move_mount");
}

/* Device nodes are mounted without nodev: they must be what they are taken for. */
static void attach_device(struct spawn *s, int index, int base)
{
	const struct operation *op = &s->plan->operations[index];
	struct statx info;

	if (statx(s->mounts[index], "", AT_EMPTY_PATH, STATX_TYPE, &info) < 0)
		fail("statx");
	if (!S_ISCHR(info.stx_mode) || info.stx_rdev_major != op->major ||
	    info.stx_rdev_minor != op->minor)
		die("device is another", ENODEV);
	if (mknodat(base, op->path, S_IFREG | 0666, 0) < 0)
		fail("mknodat");
	attach(s, index, base);
}

static void mount_new(struct spawn *s, int index, int base)
{
	const struct operation *op = &s->plan->operations[index];
	int fs = (int)syscall(SYS_fsopen, op->text, FSOPEN_CLOEXEC);

	if (fs < 0)
		fail("fsopen");
	for (size_t i = 0; i < op->noptions; i++)
		if (syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, op->options[i].key,
			    op->options[i].value, 0) < 0)
			fail("fsconfig");
	if (syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		fail("fsconfig create");
	s->mounts[index] = (int)syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, op->number);
	if (s->mounts[index] < 0)
		fail("fsmount");
	close(fs);
	attach(s, index, base);
}

static void write_file(const struct operation *op, int base)
{
	int fd = openat(base, op->path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
			op->number);

	if (fd < 0)
		fail("openat");
	if (write(fd, op->content, op->size) != (ssize_t)op->size)
		fail("write");
	close(fd);
}

static void make_readonly(int mount)
{
	struct mount_attr readonly = { .attr_set = MOUNT_ATTR_RDONLY };

	if (syscall(SYS_mount_setattr, mount, "", AT_EMPTY_PATH, &readonly, sizeof(readonly)) < 0)
		fail("read-only");
}

static void run_operation(struct spawn *s, int index)
{
	const struct operation *op = &s->plan->operations[index];
	int base = op->base < 0 ? AT_FDCWD : s->mounts[op->base];

	switch (op->kind) {
	case BIND: attach(s, index, base); break;
	case DEVICE: attach_device(s, index, base); break;
	case MOUNT: mount_new(s, index, base); break;
	case MKDIR:
		if (mkdirat(base, op->path, op->number) < 0)
			fail("mkdirat");
		break;
	case FILE_COPY: write_file(op, base); break;
	case SYMLINK:
		if (symlinkat(op->text, base, op->path) < 0)
			fail("symlinkat");
		break;
	case READONLY: make_readonly(base); break;
	}
}

/*
 * The new root, operation 0, was attached over "/". With "." twice the old root
 * lands over the new one, where umount2 finds it: pivot_root(2), NOTES.
 */
static void enter_root(struct spawn *s)
{
	if (fchdir(s->mounts[0]) < 0)
		fail("fchdir");
	if (syscall(SYS_pivot_root, ".", ".") < 0)
		fail("pivot_root");
	if (syscall(SYS_umount2, ".", DETACH) < 0)
		fail("umount2");
}

static void lower_limits(void)
{
	static const int resources[] = { RLIMIT_NICE, RLIMIT_RTPRIO, RLIMIT_CORE };
	static const struct rlimit none = { 0 };

	for (size_t i = 0; i < sizeof(resources) / sizeof(resources[0]); i++)
		if (setrlimit((__rlimit_resource_t)resources[i], &none) < 0)
			fail("setrlimit");
}

static void drop_privileges(void)
{
	struct __user_cap_header_struct header = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = { 0 };

	/* The kernel says by EINVAL where its capabilities end. */
	for (unsigned long cap = 0;; cap++)
		if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0) {
			if (errno == EINVAL)
				break;
			fail("drop bounding capabilities");
		}
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
		fail("clear ambient capabilities");
	int bits = prctl(PR_GET_SECUREBITS, 0, 0, 0, 0);
	if (bits < 0 || prctl(PR_SET_SECUREBITS, LOCKED_BITS | bits, 0, 0, 0) < 0)
		fail("securebits");
	if (syscall(SYS_capset, &header, none) < 0)
		fail("capset");
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		fail("no_new_privs");
}

/* The parent may have died before the request: then no signal comes any more. */
static void die_with_parent(struct spawn *s)
{
	struct pollfd parent = { .fd = s->caller_pidfd, .events = POLLIN };
	struct timespec no_time = { 0 };

	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
		fail("parent death signal");
	if (ppoll(&parent, 1, &no_time, NULL) > 0)
		_exit(125);
}

static void restore_signals(struct spawn *s)
{
	struct sigaction by_default = { .sa_handler = SIG_DFL };

	sigaction(SIGPIPE, &by_default, NULL);
	sigaction(SIGXFSZ, &by_default, NULL);
	sigprocmask(SIG_SETMASK, &s->inherited_mask, NULL);
}

static _Noreturn void child_main(void *arg)
{
	struct spawn *s = arg;
	mode_t mask;

	die_with_parent(s);
	mask = umask(0);
	if (!s->plan->is_root)
		open_sources(s);
	loopback_up();
	if (sethostname(s->plan->hostname, strlen(s->plan->hostname)) < 0)
		fail("sethostname");
	become_inner_root(s);
	die_with_parent(s); /* again: the change of ids has cleared it */
	for (int i = 0; i < s->plan->noperations; i++)
		run_operation(s, i);
	enter_root(s);
	if (setsid() < 0)
		fail("setsid");
	if (syscall(SYS_close_range, 3U, ~0U, 0) < 0)
		fail("close_range");
	umask(mask);
	lower_limits();
	if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0) < 0)
		fail("session keyring");
	drop_privileges();
	restore_signals(s);
	execve(s->plan->argv[0], s->plan->argv, s->plan->environment);
	fail("execve");
}

/* ---- Parent ---- */

/*
 * clone3 whose child calls entry(arg) on the stack given in args. In C alone
 * the child would return into frames that live on the parent's stack.
 */
static pid_t clone3_on_stack(struct clone_args *args, void (*entry)(void *), void *arg)
{
#if defined(__x86_64__)
	long result = SYS_clone3;
	register void (*r8)(void *) __asm__("r8") = entry;
	register void *r9 __asm__("r9") = arg;

	__asm__ volatile("syscall\n\t"
			 "test %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "xor %%ebp, %%ebp\n\t"
			 "mov %%r9, %%rdi\n\t"
			 "call *%%r8\n\t"
			 "hlt\n"
			 "1:"
			 : "+a"(result)
			 : "D"(args), "S"(sizeof(*args)), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return (pid_t)result;
#elif defined(__aarch64__)
	register long x0 __asm__("x0") = (long)args;
	register long x1 __asm__("x1") = sizeof(*args);
	register long x8 __asm__("x8") = SYS_clone3;
	register void (*x10)(void *) __asm__("x10") = entry;
	register void *x11 __asm__("x11") = arg;

	__asm__ volatile("svc #0\n\t"
			 "cbnz x0, 1f\n\t"
			 "mov x29, xzr\n\t"
			 "mov x0, x11\n\t"
			 "blr x10\n\t"
			 "brk #1\n"
			 "1:"
			 : "+r"(x0)
			 : "r"(x1), "r"(x8), "r"(x10), "r"(x11)
			 : "memory");
	return (pid_t)x0;
#else
#error "clone3 on a separate stack is written for x86_64 and aarch64 only"
#endif
}

static void write_proc(pid_t pid, const char *file, const char *text)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, file);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, text, strlen(text)) < 0) {
		int error = errno;

		kill(pid, SIGKILL);
		die(file, error);
	}
	close(fd);
}

/* Start the child and wait until it execs or ends. */
static void start(struct spawn *s, void *stack, int *pidfd)
{
	struct clone_args args = {
		.flags = CLONE_VM | CLONE_PIDFD | CLONE_CHILD_CLEARTID | CLONE_CLEAR_SIGHAND |
			 NEW_NAMESPACES,
		.pidfd = (uintptr_t)pidfd,
		.child_tid = (uintptr_t)&s->alive,
		.stack = (uintptr_t)stack,
		.stack_size = STACK_SIZE,
	};
	pid_t pid = clone3_on_stack(&args, child_main, s);

	if (pid < 0)
		die("clone3", -pid);
	if (!s->plan->is_root)
		write_proc(pid, "setgroups", "deny");
	write_proc(pid, "uid_map", s->plan->uid_map);
	write_proc(pid, "gid_map", s->plan->gid_map);
	__atomic_store_n(&s->mapped, 1, __ATOMIC_RELEASE);
	syscall(SYS_futex, &s->mapped, FUTEX_WAKE, 1);
	/* Not the private kind of futex: the kernel's wake is of the shared one. */
	while (__atomic_load_n(&s->alive, __ATOMIC_ACQUIRE))
		syscall(SYS_futex, &s->alive, FUTEX_WAIT, 1, NULL);
}

static void close_sources(struct spawn *s)
{
	for (int i = 0; i < s->plan->noperations; i++)
		if (s->plan->operations[i].kind <= DEVICE)
			close(s->mounts[i]);
}

static void reap(int pidfd)
{
	siginfo_t end = { 0 };
	struct rusage usage;

	if (syscall(SYS_waitid, P_PIDFD, pidfd, &end, WEXITED | __WALL, &usage) < 0)
		die("waitid", errno);
	close(pidfd);
	if (end.si_code != CLD_EXITED || end.si_status != 0)
		die("program did not exit with 0", ECHILD);
}

/*
 * Start one sandbox and reap it. The stack and the signal mask are made anew
 * each time, as a library must that keeps no state between its calls.
 */
static void spawn_and_reap(const struct plan *plan)
{
	struct spawn s = { .plan = plan, .alive = 1 };
	/* The child's change of ids makes the shared memory undumpable. */
	int dumpable = plan->is_root ? prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) : 0;
	sigset_t all;
	void *stack;
	int pidfd = -1;

	stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (stack == MAP_FAILED)
		die("mmap", errno);
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &s.inherited_mask);
	s.caller_pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	if (s.caller_pidfd < 0)
		die("pidfd_open", errno);
	if (plan->is_root)
		open_sources(&s);
	start(&s, stack, &pidfd);
	if (plan->is_root)
		close_sources(&s);
	close(s.caller_pidfd);
	sigprocmask(SIG_SETMASK, &s.inherited_mask, NULL);
	munmap(stack, STACK_SIZE);
	if (dumpable)
		prctl(PR_SET_DUMPABLE, dumpable, 0, 0, 0);
	reap(pidfd);
}

/* ---- Command line ---- */

static enum kind parse_kind(const char *word)
{
	for (size_t i = 0; i < sizeof(kind_names) / sizeof(kind_names[0]); i++)
		if (strcmp(word, kind_names[i]) == 0)
			return (enum kind)i;
	die(word, EINVAL);
}

static void parse_options(struct operation *op, char *text)
{
	for (char *word = strtok(text, ","); word; word = strtok(NULL, ",")) {
		char *equals = strchr(word, '=');

		if (!equals || op->noptions == MAX_OPTIONS)
			die(word, EINVAL);
		*equals = '\0';
		op->options[op->noptions++] = (struct option){
			.key = word,
			.value = equals + 1,
		};
	}
}

static void read_content(struct operation *op)
{
	FILE *file = fopen(op->text, "r");
	struct stat info;

	if (!file || fstat(fileno(file), &info) < 0)
		die(op->text, errno);
	op->size = (size_t)info.st_size;
	op->content = malloc(op->size + 1);
	if (!op->content || fread(op->content, 1, op->size, file) != op->size)
		die(op->text, EIO);
	fclose(file);
}

static void parse_operation(struct operation *op, char **words)
{
	op->kind = parse_kind(words[0]);
	op->base = atoi(words[1]);
	op->path = words[2];
	op->text = words[3];
	op->number = (unsigned int)strtoul(words[4], NULL, 10);
	if (op->kind == MOUNT)
		parse_options(op, words[5]);
	if (op->kind == FILE_COPY)
		read_content(op);
	if (op->kind == DEVICE && sscanf(words[5], "%u:%u", &op->major, &op->minor) != 2)
		die(words[5], EINVAL);
}

static void parse(struct plan *plan, char **words)
{
	plan->is_root = strcmp(words[1], "root") == 0;
	plan->uid_map = words[2];
	plan->gid_map = words[3];
	plan->hostname = words[4];
	for (words += 5; *words && strcmp(*words, "--") != 0; words += WORDS) {
		for (int i = 1; i < WORDS; i++)
			if (!words[i])
				die("incomplete operation", EINVAL);
		if (plan->noperations == MAX_OPERATIONS)
			die("too many operations", E2BIG);
		parse_operation(&plan->operations[plan->noperations++], words);
	}
	if (!words[0] || !words[1])
		die("no program given", EINVAL);
	plan->argv = words + 1;
	plan->environment = environ;
}

static long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (long long)time.tv_sec * 1000000000 + time.tv_nsec;
}

int main(int argc, char **argv)
{
	static struct plan plan;
	char line[16];

	if (argc < 5)
		die("too few arguments", EINVAL);
	parse(&plan, argv);
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof(line), stdin)) {
		long long before = now();

		spawn_and_reap(&plan);
		printf("%lld\n", now() - before);
	}
	return 0;
}
