/*
 * namespace.c - a namespace without a process in it, held by an fd.
 *
 * The kernel makes namespaces only for processes: a short-lived child makes
 * one, opens it and hands it over. (The caller could not always open it: a child
 * that entered another user namespace is not dumpable, so its /proc entries are
 * root's.) It has a descriptor table of its own: whatever it is killed at, nothing
 * of it stays open in the caller's.
 */
#include "internal.h"

#include <fcntl.h>
#include <linux/mman.h>
#include <linux/prctl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif

enum { STACK = 64 * 1024 };

/* States of creation.state; the kernel sets 0 when the child ends (CLONE_CHILD_CLEARTID). */
enum { ENDED, MAKING, MADE, MAPPED };

struct creation {
	uint64_t nstype;
	int owner;   /* user namespace to make it in, or -1 */
	bool mapped; /* the child has to live until the caller has written its id maps */
	int socket;  /* that it goes over */
	int caller;
	uint32_t state;
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

static void announce(struct creation *creation, uint32_t state)
{
	__atomic_store_n(&creation->state, state, __ATOMIC_RELEASE);
	futex_wake(&creation->state);
}

static void await(struct creation *creation, uint32_t state)
{
	while (__atomic_load_n(&creation->state, __ATOMIC_ACQUIRE) == state)
		futex_wait(&creation->state, state);
}

static const char *proc_path(uint64_t nstype)
{
	switch (nstype) {
	case CLONE_NEWUSER: return "/proc/self/ns/user";
	case CLONE_NEWNS: return "/proc/self/ns/mnt";
	case CLONE_NEWUTS: return "/proc/self/ns/uts";
	case CLONE_NEWIPC: return "/proc/self/ns/ipc";
	case CLONE_NEWNET: return "/proc/self/ns/net";
	case CLONE_NEWCGROUP: return "/proc/self/ns/cgroup";
	/* A time namespace is for the children of the process that makes it. */
	default: return "/proc/self/ns/time_for_children";
	}
}

static void make_namespace(struct creation *creation)
{
	/* Without an owner to enter first, the clone has made the namespace. */
	if (creation->owner >= 0) {
		nsbox_prctl(PR_SET_DUMPABLE, 0);
		int err = nsbox_setns(creation->owner, CLONE_NEWUSER);
		if (creation_failed(creation, NSBOX_STEP_SETNS, err))
			return;
		err = nsbox_unshare(creation->nstype);
		if (creation_failed(creation, NSBOX_STEP_UNSHARE, err))
			return;
	}
	if (creation->nstype == CLONE_NEWNET && loopback_up(&creation->result) < 0)
		return;
	long fd = RETRY(
		sys(__NR_openat, AT_FDCWD, proc_path(creation->nstype), O_RDONLY | O_CLOEXEC, 0));
	if (creation_failed(creation, NSBOX_STEP_NAMESPACE_OPEN, fd) == 0)
		creation_failed(creation, NSBOX_STEP_NAMESPACE_OPEN,
				send_descriptor(creation->socket, (int)fd));
}

__attribute__((noreturn)) static void creation_main(void *argument)
{
	struct creation *creation = argument;

	nsbox_prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (sys(__NR_getppid) != creation->caller)
		exit_process(1);
	make_namespace(creation);
	if (creation->mapped && !creation->result.step) {
		announce(creation, MADE);
		await(creation, MADE);
	}
	exit_process(0);
}

/* The namespace, or -1. */
static int create(struct creation *creation, struct clone_call *call, const struct nsbox_plan *maps,
		  int socket)
{
	int err = 0;
	long pid = clone_and_call(call);

	if (creation_failed(creation, NSBOX_STEP_CLONE, pid))
		return -1;
	if (creation->mapped) {
		await(creation, MAKING);
		if (creation->state == MADE) {
			enum nsbox_step step = write_id_maps(maps, (int)pid, &err);
			creation_failed(creation, step, err);
			announce(creation, MAPPED);
		}
	}
	wait_for(P_PID, (int)pid, WEXITED);
	int fd = creation->result.step ? -1 : lift(receive_descriptor(socket));
	if (creation->result.step)
		return -1;
	if (fd == -EAGAIN)
		creation_failed(creation, NSBOX_STEP_KILLED, -ESRCH);
	else
		creation_failed(creation, NSBOX_STEP_NAMESPACE_OPEN, fd);
	return fd;
}

static int refused(struct nsbox_result *result, enum nsbox_step step, long err)
{
	result->step = (int32_t)step;
	result->error = (int32_t)-err;
	return (int)err;
}

/* All signals blocked: a handler must not run in a child that has our memory. */
static int create_undisturbed(struct creation *creation, struct clone_call *call,
			      const struct nsbox_plan *maps, int socket)
{
	static const signal_mask all = ~0ULL;
	signal_mask mask;

	sys(__NR_rt_sigprocmask, SIG_SETMASK, &all, &mask, sizeof mask);
	int fd = create(creation, call, maps, socket);
	sys(__NR_rt_sigprocmask, SIG_SETMASK, &mask, 0, sizeof mask);
	return fd;
}

/*
 * Make a namespace of type nstype (one CLONE_NEW* flag), owned by the user
 * namespace owner (-1: the caller's). Only a user namespace that the caller
 * owns has maps. Returns an fd of it, or -errno with the record in *result.
 */
int nsbox_namespace_create(uint64_t nstype, int owner, const char *uid_map, const char *gid_map,
			   int deny_setgroups, struct nsbox_result *result)
{
	/*
	 * A process that enters a user namespace in which others may hold
	 * capabilities gets a copy of our memory, not the memory (see spawn.c).
	 */
	int sharing = owner >= 0 ? MAP_SHARED : MAP_PRIVATE;
	int pair[2];

	*result = no_result(nsbox_this_process());
	long address =
		sys(__NR_mmap, 0, STACK, PROT_READ | PROT_WRITE, sharing | MAP_ANONYMOUS, -1, 0);
	if (address < 0 && address > -4096)
		return refused(result, NSBOX_STEP_MMAP, address);
	long err = sys(__NR_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair);
	if (err < 0) {
		sys(__NR_munmap, address, STACK);
		return refused(result, NSBOX_STEP_SOCKETPAIR, err);
	}
	struct creation *creation = (struct creation *)address;
	*creation = (struct creation){ .nstype = nstype,
				       .owner = owner,
				       .mapped = uid_map,
				       .socket = pair[1],
				       .caller = (int)sys(__NR_getpid),
				       .state = MAKING,
				       .result = *result };
	const struct nsbox_plan maps = {
		.uid_map = uid_map,
		.gid_map = gid_map,
		.flags = deny_setgroups ? NSBOX_PLAN_DENY_SETGROUPS : 0,
	};
	struct clone_call call = {
		.cgroup = -1,
		.flags = owner >= 0 ? 0 : CLONE_VM | nstype,
		.child_tid = &creation->state,
		.stack = (char *)address + 4096,
		.stack_size = STACK - 4096,
		.function = creation_main,
		.argument = creation,
	};
	int fd = create_undisturbed(creation, &call, &maps, pair[0]);
	*result = creation->result;
	sys(__NR_close, pair[0]);
	sys(__NR_close, pair[1]);
	sys(__NR_munmap, address, STACK);
	return result->step ? -result->error : fd;
}
