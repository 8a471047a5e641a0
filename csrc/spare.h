/* spare.h - private to what is made ahead: spare.c, make.c, copy.c. */
#ifndef NSBOX_SPARE_H
#define NSBOX_SPARE_H

#include "internal.h"

#include <sys/utsname.h>

enum { SPARES = 1 };

struct base {
	int user; /* -1: the caller is root, who needs none */
	int mounts;
	bool large; /* the host has many mounts, of which a copy takes long */
	int table;  /* /proc/thread-self/mountinfo: poll(2) tells of changes */
	uint32_t uid, gid;
	struct identity root, user_namespace;
	struct utsname host; /* a new UTS namespace begins as a copy of the caller's */
};

struct nsbox_store {
	struct nsbox_maker *maker;
	struct nsbox_store *next;
	int32_t owner; /* process that it belongs to; 0: a fork's, without effect */
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

#endif
