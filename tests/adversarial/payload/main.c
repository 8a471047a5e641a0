/*
 * main.c - a hostile payload: `payload ATTACK [ARGUMENT...]`.
 *
 * Each attack prints one word: the name of the errno that stopped it, or "ok"
 * (with a value, if there is one) when it got what it wanted. Static, so that it
 * runs in any root; raw system calls, so that no libc stands in between.
 */
#include "payload.h"

const char *outcome(long result)
{
	return result < 0 ? strerrorname_np(errno) : "ok";
}

int say(long result)
{
	puts(outcome(result));
	return 0;
}

long number(const char *text)
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
	NAMED(inotify_add_watch), NAMED(inotify_init1), NAMED(ioctl), NAMED(kexec_load),
	NAMED(keyctl), NAMED(kill), NAMED(linkat), NAMED(mkdirat), NAMED(mknodat), NAMED(mount), NAMED(name_to_handle_at), NAMED(openat),
	NAMED(perf_event_open), NAMED(personality), NAMED(pivot_root), NAMED(prlimit64),
	NAMED(process_vm_readv), NAMED(ptrace), NAMED(quotactl),
	NAMED(reboot), NAMED(renameat2), NAMED(sched_setscheduler), NAMED(semget),
	NAMED(setdomainname), NAMED(setgroups), NAMED(sethostname), NAMED(setns),
	NAMED(setpriority), NAMED(setresgid), NAMED(setresuid),
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
	{ "survey", survey },
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
