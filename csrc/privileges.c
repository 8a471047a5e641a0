/*
 * privileges.c - what the child gives up before the payload runs.
 *
 * All of it is permanent: after it nothing in this process, or below it, can
 * take anything back. The rules of child.c hold here too.
 */
#include "internal.h"
#include "protocol.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <sys/resource.h>
#include <sys/vfs.h>

/* ---- user namespaces ------------------------------------------------ */

/*
 * A file below the procfs at /proc of the host, whose mounts are still ours: in
 * it, with no mount and no link on the way, or someone could have put a file of
 * his own there.
 */
static int open_proc_sys(const char *path)
{
	struct statfs info;
	int proc = (int)RETRY(
		sys(__NR_openat, AT_FDCWD, "/proc", O_PATH | O_DIRECTORY | O_CLOEXEC, 0));
	if (proc < 0)
		return proc;
	int fd = open_beneath(proc, path, O_WRONLY,
			      RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS);
	sys(__NR_close, proc);
	if (fd < 0)
		return fd;
	long err = sys(__NR_fstatfs, fd, &info);
	if (err == 0 && info.f_type != PROC_SUPER_MAGIC)
		err = -ENODEV;
	if (err < 0)
		sys(__NR_close, fd);
	return err < 0 ? (int)err : fd;
}

/*
 * user_namespaces(7): limits of the user namespace that the files are opened
 * in, which only CAP_SYS_RESOURCE over it could raise again. Inotify instances
 * and watches count for the caller's user too, who has 128, and some ten thousands
 * or more by the size of the memory: one payload gets a few of them.
 */
int limit_user_namespace(struct spawn *spawn, int index)
{
	static const struct {
		const char *path, *value;
		bool optional;
	} limits[] = {
		{ "sys/user/max_user_namespaces", "0\n", false },
		{ "sys/user/max_inotify_instances", "16", true }, /* CONFIG_INOTIFY_USER */
		{ "sys/user/max_inotify_watches", "8192", true },
	};

	for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
		int fd = open_proc_sys(limits[i].path);
		if (fd == -ENOENT && limits[i].optional)
			continue;
		if (fd < 0)
			return fail(spawn, NSBOX_STEP_PROC_SYS, index, fd);
		long written = RETRY(
			sys(__NR_pwrite64, fd, limits[i].value, string_length(limits[i].value), 0));
		sys(__NR_close, fd);
		if (written < 0)
			return fail(spawn, NSBOX_STEP_MAX_USER_NAMESPACES, index, written);
	}
	return 0;
}

/* ---- limits and keys ------------------------------------------------ */

/* Lower a hard limit, and the soft one, to what is no more than it. */
static int lower_limit(struct spawn *spawn, int resource, uint64_t most)
{
	uint64_t limit[2] = { 0, 0 };
	long err = most ? sys(__NR_prlimit64, 0, resource, 0, limit) : 0;

	limit[0] = limit[1] = limit[1] < most ? limit[1] : most;
	if (err == 0)
		err = sys(__NR_prlimit64, 0, resource, limit, 0);
	return err < 0 ? fail(spawn, NSBOX_STEP_LOWER_LIMITS, resource, err) : 0;
}

/* Of what counts for the caller's user as well, root too, half is left to him. */
static int halve_limit(struct spawn *spawn, int resource)
{
	uint64_t limit[2];
	long err = sys(__NR_prlimit64, 0, resource, 0, limit);

	if (err == 0 && limit[0] == RLIM_INFINITY)
		return 0;
	limit[0] = limit[1] = limit[0] / 2;
	if (err == 0)
		err = sys(__NR_prlimit64, 0, resource, limit, 0);
	return err < 0 ? fail(spawn, NSBOX_STEP_LOWER_LIMITS, resource, err) : 0;
}

/*
 * No priority above the caller's, and no core dump, whoever the caller is and whatever he may.
 *
 * One byte is too little for any file, and by fs/coredump.c the word for that the program which
 * core_pattern may name does not get the dump either. With 0 it would: root of the host would work
 * on what the payload has in memory, outside of all limits. (Of a caller whose own hard limit is
 * 0 it stays that.)
 */
static int lower_limits(struct spawn *spawn)
{
	if (lower_limit(spawn, RLIMIT_NICE, 0) < 0 || lower_limit(spawn, RLIMIT_RTPRIO, 0) < 0)
		return -1;
	if (halve_limit(spawn, RLIMIT_SIGPENDING) < 0 || halve_limit(spawn, RLIMIT_MSGQUEUE) < 0)
		return -1;
	return lower_limit(spawn, RLIMIT_CORE, 1);
}

/* The session keyring would cross into the sandbox: keyrings(7). */
static int join_keyring(struct spawn *spawn)
{
	if (!(spawn->plan->flags & NSBOX_PLAN_NEW_KEYRING))
		return 0;
	long err = sys(__NR_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0);
	/* A kernel without keys has none to protect. */
	return err < 0 && err != -ENOSYS ? fail(spawn, NSBOX_STEP_KEYRING, -1, err) : 0;
}

/* ---- capabilities --------------------------------------------------- */

static int drop_bounding_set(struct spawn *spawn, uint64_t keep)
{
	for (unsigned capability = 0; capability < 64; capability++) {
		if (keep >> capability & 1)
			continue;
		long err = sys(__NR_prctl, PR_CAPBSET_DROP, capability, 0, 0, 0);
		if (err == -EINVAL)
			break; /* past the last one that this kernel knows */
		if (err < 0)
			return fail(spawn, NSBOX_STEP_CAPBSET_DROP, (int)capability, err);
	}
	return 0;
}

/* The sets of capset(2); all that is not kept goes with permitted and effective. */
static long set_sets(uint64_t permitted, uint64_t inheritable)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	for (int i = 0; i < 2; i++) {
		data[i].effective = data[i].permitted = (uint32_t)(permitted >> (32 * i));
		data[i].inheritable = (uint32_t)(inheritable >> (32 * i));
	}
	return sys(__NR_capset, &header, data);
}

/*
 * The ambient set is what lets capabilities survive the exec of a program
 * without file capabilities. Only what is inheritable too can be in it.
 */
static int set_ambient(struct spawn *spawn, uint64_t keep)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	long err = sys(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	if (err < 0)
		return fail(spawn, NSBOX_STEP_CAP_AMBIENT, -1, err);
	if (!keep)
		return 0;
	err = sys(__NR_capget, &header, data);
	if (err == 0)
		err = set_sets((uint64_t)data[1].permitted << 32 | data[0].permitted, keep);
	if (err < 0)
		return fail(spawn, NSBOX_STEP_CAP_INHERITABLE, -1, err);
	for (unsigned capability = 0; capability < 64; capability++) {
		if (!(keep >> capability & 1))
			continue;
		err = sys(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0);
		if (err < 0)
			return fail(spawn, NSBOX_STEP_CAP_AMBIENT, (int)capability, err);
	}
	return 0;
}

/* Being user 0 gives nothing at an exec, for ever. */
static int lock_securebits(struct spawn *spawn)
{
	unsigned long bits = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP_LOCKED |
			     SECBIT_KEEP_CAPS_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE |
			     SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;

	/* What the caller has locked already stays as it is; KEEP_CAPS was for the set-up. */
	long err = sys(__NR_prctl, PR_GET_SECUREBITS, 0, 0, 0, 0);
	if (err >= 0)
		err = sys(__NR_prctl, PR_SET_SECUREBITS,
			  bits | ((unsigned long)err & ~(1UL << SECURE_KEEP_CAPS)), 0, 0, 0);
	return err < 0 ? fail(spawn, NSBOX_STEP_SECUREBITS, -1, err) : 0;
}

/*
 * All five sets become exactly the capabilities that the plan keeps, and none of
 * this can be undone: the bits that say so are locked while CAP_SETPCAP is still
 * there to do it. A plain user without a user namespace has none; then the
 * bounding set stays, of which no_new_privs lets nothing be gained.
 */
static int set_capabilities(struct spawn *spawn)
{
	uint64_t keep = spawn->plan->capabilities;
	bool bounds = !(spawn->plan->flags & NSBOX_PLAN_KEEP_BOUNDS);

	if (bounds && drop_bounding_set(spawn, keep) < 0)
		return -1;
	if (set_ambient(spawn, keep) < 0 || (bounds && lock_securebits(spawn) < 0))
		return -1;
	long err = set_sets(keep, keep);
	return err < 0 ? fail(spawn, NSBOX_STEP_CAPSET, -1, err) : 0;
}

/* landlock(7) asks for it from whoever lacks CAP_SYS_ADMIN, so it comes first. */
int forbid_new_privileges(struct spawn *spawn)
{
	long err = sys(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	return err < 0 ? fail(spawn, NSBOX_STEP_NO_NEW_PRIVS, -1, err) : 0;
}

int drop_privileges(struct spawn *spawn)
{
	if (lower_limits(spawn) < 0 || join_keyring(spawn) < 0)
		return -1;
	return set_capabilities(spawn);
}

/* ---- the system-call filter ----------------------------------------- */

/*
 * A filter whose last process ends is freed in the middle of that end, by a thread of the kernel's
 * that takes 20 us. So one that an init has for its only process gets a listener, which nobody
 * listens to, and which goes to the caller: who holds it keeps the filter. Negative if there can
 * be none, as where the caller has such a filter itself (EBUSY).
 */
static long install_with_listener(const void *program)
{
	long fd = sys(__NR_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER,
		      program);
	/* Where it cannot be sent it is closed by the exec, and no harm is done. */
	if (fd >= 0)
		send_descriptor(INIT_CONTROL, (int)fd);
	return fd;
}

/*
 * After this only execve(2), and what an init calls too: whatever the filter refuses, the set-up
 * does not need any more.
 */
int install_filter(struct spawn *spawn)
{
	const struct nsbox_plan *plan = spawn->plan;
	struct {
		unsigned short length;
		const void *filter;
	} program = { (unsigned short)plan->filter_length, plan->filter };
	_Static_assert(sizeof program == sizeof(struct sock_fprog), "struct sock_fprog");

	if (!plan->filter_length)
		return 0;
	if (spawn->request->flags & NSBOX_REQUEST_KEEP_FILTER &&
	    install_with_listener(&program) >= 0)
		return 0;
	long err = sys(__NR_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
	return err < 0 ? fail(spawn, NSBOX_STEP_SECCOMP, -1, err) : 0;
}
