/*
 * limits.c - cgroups and resource limits, as the child takes them on.
 *
 * Runs between clone and exec, under the rule at the head of child.c.
 */
#include "internal.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <sys/resource.h>

/* ---- cgroups -------------------------------------------------------- */

static int join(struct spawn *spawn, long fd)
{
	long err = fd < 0 ? fd : RETRY(sys(__NR_write, fd, "0", 1));
	return err < 0 ? fail(spawn, NSBOX_STEP_CGROUP_JOIN, -1, err) : 0;
}

/*
 * Version 2: the child was born in its cgroup, unless a filter hid clone3.
 * Version 1: "0", which is the writer, into each "tasks". The kernel asks what
 * the opener of the file may do, so it does not matter who this process is by
 * now; and for a single thread it needs neither the lock nor the RCU grace
 * period that "cgroup.procs" costs.
 */
int enter_cgroups(struct spawn *spawn)
{
	const struct nsbox_request *request = spawn->request;

	if (spawn->call.outside) {
		long fd = RETRY(
			sys(__NR_openat, request->cgroup, "cgroup.procs", O_WRONLY | O_CLOEXEC));
		if (join(spawn, fd) < 0)
			return -1;
	}
	for (uint32_t i = 0; i < request->n_tasks; i++)
		if (join(spawn, request->tasks[i]) < 0)
			return -1;
	bool late = request->n_tasks || spawn->call.outside;
	if (!late || !(spawn->plan->clone_flags & CLONE_NEWCGROUP))
		return 0;
	int err = nsbox_unshare(CLONE_NEWCGROUP);
	return err < 0 ? fail(spawn, NSBOX_STEP_CGROUP_UNSHARE, -1, err) : 0;
}

/* ---- resource limits ------------------------------------------------ */

static int set_priority(struct spawn *spawn)
{
	int nice = spawn->plan->nice;
	if (nice == 0)
		return 0;
	/* The system call returns 20 - nice, so that it is never negative. */
	long now = 20 - sys(__NR_getpriority, PRIO_PROCESS, 0);
	if (nice <= now)
		return 0;
	long err = sys(__NR_setpriority, PRIO_PROCESS, 0, nice);
	return err < 0 ? fail(spawn, NSBOX_STEP_SETPRIORITY, -1, err) : 0;
}

/*
 * Each command waits for its init twice, which works for some microseconds then. Who asks for short
 * turns gets them the sooner where others use all processors, and no more of these: the slice of
 * sched(7) and sched_setattr(2), Linux 6.12; without effect before. Here, and not in the init,
 * since the payload's filter may refuse it. What the init starts has the usual slice, and therefore
 * the flag, which would take away a negative niceness, too.
 */
void ask_for_short_turns(void)
{
	static const uint64_t slice = 100 * 1000; /* ns, the shortest there is */
	struct {
		uint32_t size, policy;
		uint64_t flags;
		int32_t nice;
		uint32_t priority;
		uint64_t runtime, deadline, period;
	} attributes = {
		.size = sizeof attributes,
		.flags = SCHED_FLAG_RESET_ON_FORK,
		.nice = 20 - (int32_t)sys(__NR_getpriority, PRIO_PROCESS, 0),
		.runtime = slice,
	};

	if (attributes.nice >= 0 && sys(__NR_sched_getscheduler, 0) == SCHED_OTHER)
		sys(__NR_sched_setattr, 0, &attributes, 0);
}

/*
 * Last of all, since some of them would hinder the set-up. A limit never
 * loosens what holds for the caller: that would need a privilege.
 */
int set_limits(struct spawn *spawn)
{
	const struct nsbox_plan *plan = spawn->plan;
	struct rlimit now, limit;

	if (set_priority(spawn) < 0)
		return -1;
	for (uint32_t i = 0; i < plan->n_rlimits; i++) {
		int resource = plan->rlimits[i].resource;
		long err = sys(__NR_prlimit64, 0, resource, 0, &now);
		limit.rlim_cur = limit.rlim_max = plan->rlimits[i].value;
		if (err == 0 && limit.rlim_max > now.rlim_max)
			limit = (struct rlimit){ now.rlim_max, now.rlim_max };
		if (err == 0)
			err = sys(__NR_prlimit64, 0, resource, &limit, 0);
		if (err < 0)
			return fail(spawn, NSBOX_STEP_LIMIT, resource, err);
	}
	return 0;
}
