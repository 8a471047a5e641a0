/* mounts.h - private to the files that build the new root: targets.c, overlays.c, mounts.c, ... */
#ifndef NSBOX_MOUNTS_H
#define NSBOX_MOUNTS_H

#include "internal.h"

#include <linux/stat.h>

#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif

struct filesystem {
	const char *type;
	const struct nsbox_option *options;
	uint32_t n_options;
	uint32_t attributes;
};

static inline const struct nsbox_op *operation(const struct spawn *spawn, uint32_t index)
{
	return &spawn->plan->ops[index];
}

/* Whether this child's "/" is that of a base, until it enters its own. */
static inline bool in_base(const struct spawn *spawn)
{
	return spawn->stage == STAGE_COPY || spawn->stage == STAGE_AHEAD ||
	       spawn->stage == STAGE_REST;
}

/* Whether an operation has been carried out in the base already. */
static inline bool is_shared(const struct spawn *spawn, uint32_t index)
{
	return in_base(spawn) && operation(spawn, index)->flags & NSBOX_OP_SHARED;
}

/* Name of an operation's source in the root of a base: "/" and its index. */
enum { ENTRY_SIZE = 24 };

static inline const char *entry_name(char *buffer, uint32_t index)
{
	buffer[0] = '/';
	buffer[1 + format_uint(buffer + 1, index)] = '\0';
	return buffer;
}

/* targets.c */
int resolve(int root, const char *path, uint64_t flags);
int identify(int fd, uint32_t mask, struct statx *info);
int64_t mount_id(int fd);
int attach(struct spawn *spawn, uint32_t index, int fd);
int reserve_target(struct spawn *spawn, uint32_t index);
/* overlays.c */
int make_overlay(struct spawn *spawn, uint32_t index, const struct filesystem *fs);
int lacks_mount_point(struct spawn *spawn, uint32_t index, int tree);
int scaffold(struct spawn *spawn, uint32_t index, int tree);
/* mounts.c */
int make_private(struct spawn *spawn, uint32_t index);
int run_operation(struct spawn *spawn, uint32_t index);
int make_mount(struct spawn *spawn, uint32_t index, const struct filesystem *fs);
int make_filesystem(struct spawn *spawn, uint32_t index);
int mask(struct spawn *spawn, uint32_t index);
int pivot(struct spawn *spawn, uint32_t index);

#endif
