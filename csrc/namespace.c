/*
 * namespace.c - a namespace without a process in it, held by an fd.
 *
 * The kernel makes namespaces only for processes: a short-lived child makes
 * one, the caller opens it through /proc and then lets the child end.
 */
#include "internal.h"

#include <fcntl.h>
#include <linux/mman.h>
#include <linux/prctl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif

enum { STACK = 64 * 1024 };

struct creation {
	uint64_t nstype;
	int owner;       /* user namespace to make it in, or -1 */
	uint32_t ready;  /* the namespace is there, or result tells why not */
	uint32_t go;     /* the caller has opened it */
	uint32_t alive;
	struct nsbox_result result;
};

static int creation_failed(struct creation *creation, enum nsbox_step step, long err)
{
	if (err >= 0)
		return 0;
	creation->result.step = (int32_t)step;
	creation->result.error = (int32_t)-err;
	return -1;
}

static void announce(uint32_t *word)
{
	__atomic_store_n(word, 1, __ATOMIC_RELEASE);
	futex_wake(word);
}

static void await(uint32_t *word, uint32_t value)
{
	while (__atomic_load_n(word, __ATOMIC_ACQUIRE) == value)
		futex_wait(word, value);
}

__attribute__((noreturn)) static void creation_main(void *argument)
{
	struct creation *creation = argument;

	/* Without an owner to enter first, the clone has made the namespace. */
	if (creation->owner >= 0) {
		sys(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
		int err = nsbox_setns(creation->owner, CLONE_NEWUSER);
		if (creation_failed(creation, NSBOX_STEP_SETNS, err) == 0)
			creation_failed(creation, NSBOX_STEP_UNSHARE,
					nsbox_unshare(creation->nstype));
	}
	announce(&creation->ready);
	await(&creation->go, 0);
	exit_process(0);
}

static const char *proc_name(uint64_t nstype)
{
	switch (nstype) {
	case CLONE_NEWUSER: return "user";
	case CLONE_NEWNS: return "mnt";
	case CLONE_NEWUTS: return "uts";
	case CLONE_NEWIPC: return "ipc";
	case CLONE_NEWNET: return "net";
	case CLONE_NEWCGROUP: return "cgroup";
	/* unshare(CLONE_NEWTIME) is for the children of the process that calls it */
	case CLONE_NEWTIME: return "time_for_children";
	default: return "pid_for_children";
	}
}

static int open_proc(int pid)
{
	char path[32] = "/proc/";
	size_t length = 6 + format_uint(path + 6, (uint64_t)pid);
	path[length] = '\0';
	return (int)RETRY(sys(__NR_openat, AT_FDCWD, path, O_PATH | O_DIRECTORY | O_CLOEXEC, 0));
}

static int write_map(int proc, const char *name, const char *text)
{
	return write_file(proc, name, text, string_length(text));
}

/* Write the maps of a user namespace, then open the namespace. */
static int take_hold(struct creation *creation, int proc, const char *uid_map, const char *gid_map,
		     int deny_setgroups)
{
	char path[32] = "ns/";
	const char *name = proc_name(creation->nstype);

	if (uid_map && deny_setgroups &&
	    creation_failed(creation, NSBOX_STEP_SETGROUPS_DENY, write_map(proc, "setgroups", "deny")))
		return -1;
	if (uid_map &&
	    creation_failed(creation, NSBOX_STEP_UID_MAP, write_map(proc, "uid_map", uid_map)))
		return -1;
	if (uid_map &&
	    creation_failed(creation, NSBOX_STEP_GID_MAP, write_map(proc, "gid_map", gid_map)))
		return -1;
	memcpy(path + 3, name, string_length(name) + 1);
	long fd = RETRY(sys(__NR_openat, proc, path, O_RDONLY | O_CLOEXEC, 0));
	if (creation_failed(creation, NSBOX_STEP_NAMESPACE_OPEN, fd))
		return -1;
	return (int)fd;
}

static int create(struct creation *creation, struct clone_call *call, const char *uid_map,
		  const char *gid_map, int deny_setgroups)
{
	long pid = clone_and_call(call);
	int fd = -1;

	if (creation_failed(creation, NSBOX_STEP_CLONE, pid))
		return -1;
	await(&creation->ready, 0);
	if (!creation->result.step) {
		int proc = open_proc((int)pid);
		if (!creation_failed(creation, NSBOX_STEP_NAMESPACE_OPEN, proc)) {
			fd = take_hold(creation, proc, uid_map, gid_map, deny_setgroups);
			sys(__NR_close, proc);
		}
	}
	announce(&creation->go);
	wait_for(P_PID, (int)pid, WEXITED);
	return fd;
}

/*
 * Make a namespace of type nstype (one CLONE_NEW* flag), owned by the user
 * namespace owner (-1: the caller's). Returns an fd of it; -errno with the
 * record in *result.
 */
int nsbox_namespace_create(uint64_t nstype, int owner, const char *uid_map, const char *gid_map,
			   int deny_setgroups, struct nsbox_result *result)
{
	static const signal_mask all = ~0ULL;
	signal_mask mask;
	/*
	 * A process that enters a user namespace in which others may hold
	 * capabilities gets a copy of our memory, not the memory (see spawn.c).
	 */
	int sharing = owner >= 0 ? MAP_SHARED : MAP_PRIVATE;
	long address = sys(__NR_mmap, 0, STACK, PROT_READ | PROT_WRITE, sharing | MAP_ANONYMOUS, -1, 0);
	if (address < 0 && address > -4096) {
		*result = (struct nsbox_result){ .step = NSBOX_STEP_MMAP, .error = ENOMEM,
						 .pidfd = -1, .index = -1 };
		return -ENOMEM;
	}
	struct creation *creation = (struct creation *)address;
	*creation = (struct creation){ .nstype = nstype, .owner = owner,
				       .result = { .pidfd = -1, .index = -1 } };
	struct clone_call call = {
		.flags = owner >= 0 ? 0 : CLONE_VM | nstype,
		.stack = (char *)address + 4096,
		.stack_size = STACK - 4096,
		.function = creation_main,
		.argument = creation,
	};
	sys(__NR_rt_sigprocmask, SIG_SETMASK, &all, &mask, sizeof mask);
	int fd = create(creation, &call, uid_map, gid_map, deny_setgroups);
	sys(__NR_rt_sigprocmask, SIG_SETMASK, &mask, 0, sizeof mask);
	*result = creation->result;
	sys(__NR_munmap, address, STACK);
	return fd >= 0 ? fd : -result->error;
}
