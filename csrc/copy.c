/*
 * copy.c - a plan in memory of its own, for the thread that makes things ahead.
 *
 * Python frees a plan with its last reference, and a collected cycle in no certain order.
 */
#include "spare.h"

#include <string.h>

/* Memory of which pieces are taken one after the other; at first NULL, to know how much it is. */
struct arena {
	char *memory;
	size_t used;
};

static void *put(struct arena *arena, const void *data, size_t size)
{
	char *place = arena->memory ? arena->memory + arena->used : NULL;
	if (place && size)
		memcpy(place, data, size);
	arena->used += (size + 15) & ~(size_t)15;
	return place;
}

static const char *put_text(struct arena *arena, const char *text)
{
	return text ? put(arena, text, string_length(text) + 1) : NULL;
}

static void put_op(struct arena *arena, const struct nsbox_op *op, struct nsbox_op *copy)
{
	struct nsbox_op whole = *op;
	struct nsbox_option *options = put(arena, op->options, op->n_options * sizeof *op->options);

	for (uint32_t i = 0; i < op->n_options; i++) {
		struct nsbox_option option = { put_text(arena, op->options[i].key),
					       put_text(arena, op->options[i].value) };
		if (options)
			options[i] = option;
	}
	whole.options = options;
	whole.source = put_text(arena, op->source);
	whole.target = put_text(arena, op->target);
	whole.layers = put_text(arena, op->layers);
	whole.content = put(arena, op->content, op->content_size);
	if (copy)
		*copy = whole;
}

/* What making things ahead needs of a plan: all but joins, filter and limits. */
static void put_plan(struct arena *arena, const struct nsbox_plan *plan, struct nsbox_plan *copy)
{
	struct nsbox_op *ops = put(arena, plan->ops, plan->n_ops * sizeof *plan->ops);

	*copy = (struct nsbox_plan){
		.clone_flags = plan->clone_flags,
		.flags = plan->flags,
		.uid = plan->uid,
		.gid = plan->gid,
		.uid_map = put_text(arena, plan->uid_map),
		.gid_map = put_text(arena, plan->gid_map),
		.host_uid = plan->host_uid,
		.host_gid = plan->host_gid,
		.n_ops = plan->n_ops,
		.ops = ops,
		.landlock_rights = plan->landlock_rights,
		.landlock_net = plan->landlock_net,
		.landlock_scoped = plan->landlock_scoped,
		.n_rules = plan->n_rules,
		.rules = put(arena, plan->rules, plan->n_rules * sizeof *plan->rules),
	};
	for (uint32_t i = 0; i < plan->n_ops; i++)
		put_op(arena, &plan->ops[i], ops ? &ops[i] : NULL);
}

/* Bytes that the pieces of a copy take. */
size_t plan_size(const struct nsbox_plan *plan)
{
	struct arena arena = { NULL, 0 };
	struct nsbox_plan copy;

	put_plan(&arena, plan, &copy);
	return arena.used;
}

void copy_plan(const struct nsbox_plan *plan, struct nsbox_plan *copy, char *memory)
{
	struct arena arena = { memory, 0 };

	put_plan(&arena, plan, copy);
}
