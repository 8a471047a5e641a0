/* spare.h - private to what is made ahead: spare.c, make.c, copy.c, cgroup.c. */
#ifndef NSBOX_SPARE_H
#define NSBOX_SPARE_H

#include "internal.h"

#include <pthread.h>
#include <sys/utsname.h>

enum { SPARES = 1, USED = 64 };

struct base {
	int user; /* -1: the caller is root, who needs none */
	int mounts;
	int table; /* /proc/thread-self/mountinfo: poll(2) tells of changes */
	uint32_t uid, gid;
	struct identity root, user_namespace;
	struct utsname host; /* a new UTS namespace begins as a copy of the caller's */
};

struct nsbox_store {
	struct nsbox_maker *maker;
	struct nsbox_store *next;
	uint64_t owner; /* nsbox_this_process(); 0: a fork's, without effect */
	struct nsbox_dumpable *dumpable;
	struct nsbox_plan plan;
	struct identity *identities; /* of each operation's source */
	struct base base;
	struct spare spares[SPARES];
	uint32_t n_spares;
	uint32_t generation; /* of the base: what is made of an older one is thrown away */
	bool wanted;         /* a spawn has come since all was there */
	bool busy;           /* the thread works at it */
	bool unfit;          /* the plan cannot be done ahead */
	uint32_t failures;
	int64_t pause_ends;
	int64_t last_use;
};

struct nsbox_maker {
	pthread_mutex_t lock;
	pthread_cond_t idle; /* no store or cgroup is busy any more, or this one is not */
	pthread_t thread;
	long tid;
	int64_t ended_at; /* when it had nothing more to do */
	bool running;     /* it will look for work again before it ends */
	bool joinable;    /* there was one since the last pthread_join */
	uint32_t stops;   /* by how many it shall not run now: several threads may fork at once */
	struct nsbox_store *first;
	struct nsbox_cgroup *cgroups;
	struct spare *in_use; /* by spawns, each where the spawn has it */
	int used[USED];       /* to be closed */
	uint32_t n_used;
};

enum cgroup_state {
	CGROUP_WANTED, /* yet to be made */
	CGROUP_MAKING,
	CGROUP_MADE,
	CGROUP_FAILED,  /* nothing is there */
	CGROUP_RETIRED, /* to be removed; nobody holds it */
	CGROUP_REMOVING,
	CGROUP_LEFT, /* it could not be removed; likewise */
};

struct nsbox_cgroup {
	struct nsbox_maker *maker;
	struct nsbox_cgroup *next;
	enum cgroup_state state;
	int error;      /* of making it, or 0 */
	uint32_t tries; /* to remove it */
	struct nsbox_cgroup_form form;
	struct nsbox_files entrances, figures;
	char text[]; /* lists, as the form has them */
};

/* copy.c */
size_t plan_size(const struct nsbox_plan *plan);
void copy_plan(const struct nsbox_plan *plan, struct nsbox_plan *copy, char *memory);
/* make.c */
int make_base(struct nsbox_store *store, struct base *base);
int make_spare(const struct nsbox_store *store, struct spare *spare);
bool is_true(const struct nsbox_store *store, const struct base *base);
bool table_has_changed(const struct base *base);
/* spare.c */
extern const struct base no_base;
extern const struct spare no_spare;
void close_fd(int *fd);
void close_spare(struct spare *spare);
/* The caller holds the lock, here and below. */
void start_thread(struct nsbox_maker *maker);
/* cgroup.c */
struct nsbox_cgroup *find_cgroup(const struct nsbox_maker *maker);
void work_at_cgroup(struct nsbox_cgroup *cgroup);
void remove_retired(struct nsbox_maker *maker);
bool cgroups_have(const struct nsbox_maker *maker, int fd);
void forget_cgroups(const struct nsbox_maker *maker);

#endif
