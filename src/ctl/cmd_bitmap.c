/* SPDX-License-Identifier: MIT
 *
 * cmd_bitmap.c: block-dirty-bitmap-add, -remove, -clear, -enable, -disable, -merge (FEATURES 8.016).
 *
 * Purpose      Dirty bitmaps of what is served.
 * Owns         nothing
 * Invariants   none
 * Concurrency  home loop
 * Failure      as ctl_priv.h
 * Tests        ctl_test.c, tests/nbd/nbd_bitmap_test.py
 */

#include "ctl/transaction.h"
#include "graph/reach.h"
#include "graph/runtime.h"

struct add_args { const char *node, *name; uint64_t granularity; bool persistent, disabled; };
static const struct ctl_arg add_rows[] = {
    { "node", CTL_STR, true, CTL_AT(struct add_args, node) },
    { "name", CTL_STR, true, CTL_AT(struct add_args, name) },
    { "granularity", CTL_SIZE, false, CTL_AT(struct add_args, granularity), .doc = "Bytes for one bit, a power of two; 0 is the default of the format." },
    { "persistent", CTL_BOOL, false, CTL_AT(struct add_args, persistent), .doc = "Stored in the image, now and when it is closed." },
    { "disabled", CTL_BOOL, false, CTL_AT(struct add_args, disabled) },
    CTL_ARGS_END
};

const struct ctl_shape ctl_shape_bitmap_add = { .name = "BlockDirtyBitmapAdd", .rows = add_rows, .bytes = sizeof(struct add_args) };

static int do_add(struct co *co, struct ctl_call *call)
{
    const struct add_args *a = call->args;
    struct graph_node *n = ctl_named(call, a->node);
    struct graph_bitmap_spec s = { a->name, a->granularity, a->persistent, a->disabled };
    return n ? graph_bitmap_add(co, n, &s, &call->err) : call->err.code;
}

static int run_add(struct co *co, struct ctl_call *call) { return ctl_with_edges_held(co, call, do_add); }

struct one_args { const char *node, *name; };
static const struct ctl_arg one_rows[] = {
    { "node", CTL_STR, true, CTL_AT(struct one_args, node) },
    { "name", CTL_STR, true, CTL_AT(struct one_args, name) },
    CTL_ARGS_END
};

const struct ctl_shape ctl_shape_bitmap = { .name = "BlockDirtyBitmap", .rows = one_rows, .bytes = sizeof(struct one_args) };

static int do_remove(struct co *co, struct ctl_call *call)
{
    const struct one_args *a = call->args;
    struct graph_node *n = ctl_named(call, a->node);
    return n ? graph_bitmap_remove(co, n, a->name, &call->err) : call->err.code;
}

static int run_remove(struct co *co, struct ctl_call *call) { return ctl_with_edges_held(co, call, do_remove); }

static int do_clear(struct co *co, struct ctl_call *call)
{
    const struct one_args *a = call->args;
    struct graph_node *n = ctl_named(call, a->node);
    return n ? graph_bitmap_clear(co, n, a->name, &call->err) : call->err.code;
}

static int run_clear(struct co *co, struct ctl_call *call) { return ctl_with_edges_held(co, call, do_clear); }

static int do_enable(struct co *co, struct ctl_call *call)
{
    const struct one_args *a = call->args;
    struct graph_node *n = ctl_named(call, a->node);
    return n ? graph_bitmap_enable(co, n, a->name, true, &call->err) : call->err.code;
}

static int run_enable(struct co *co, struct ctl_call *call) { return ctl_with_edges_held(co, call, do_enable); }

static int do_disable(struct co *co, struct ctl_call *call)
{
    const struct one_args *a = call->args;
    struct graph_node *n = ctl_named(call, a->node);
    return n ? graph_bitmap_enable(co, n, a->name, false, &call->err) : call->err.code;
}

static int run_disable(struct co *co, struct ctl_call *call) { return ctl_with_edges_held(co, call, do_disable); }

/* ---- merge ---- */

struct bitmap_ref { const char *node, *name; };
static const struct ctl_arg ref_rows[] = {
    { "node", CTL_STR, true, CTL_AT(struct bitmap_ref, node) },
    { "name", CTL_STR, true, CTL_AT(struct bitmap_ref, name) },
    CTL_ARGS_END
};
static const struct ctl_shape ref_shape = { .name = "BlockDirtyBitmap", .rows = ref_rows, .bytes = sizeof(struct bitmap_ref) };

/* A name, or an object of a node and a name. */
struct source { const char *local; const struct bitmap_ref *external; };
static const struct ctl_arg source_rows[] = {
    { "local", CTL_STR, false, CTL_AT(struct source, local) },
    { "external", CTL_STRUCT, false, CTL_AT(struct source, external), .of = &ref_shape },
    CTL_ARGS_END
};
static const struct ctl_shape source_shape = { .name = "name, or object with 'node' and 'name'", .rows = source_rows, .bytes = sizeof(struct source) };

struct merge_args { const char *node, *target; struct ctl_list bitmaps; };
static const struct ctl_arg merge_rows[] = {
    { "node", CTL_STR, true, CTL_AT(struct merge_args, node) },
    { "target", CTL_STR, true, CTL_AT(struct merge_args, target) },
    { "bitmaps", CTL_ALT, true, CTL_AT(struct merge_args, bitmaps), .of = &source_shape, .list = true },
    CTL_ARGS_END
};

const struct ctl_shape ctl_shape_bitmap_merge = { .name = "BlockDirtyBitmapMerge", .rows = merge_rows, .bytes = sizeof(struct merge_args) };

static int source_of(struct ctl_call *call, struct graph_node *n, const struct source *from, struct graph_bitmap_ref *ret)
{
    *ret = (struct graph_bitmap_ref){ n, from->local };
    if (from->local)
        return 0;
    ret->name = from->external->name;
    ret->node = ctl_named(call, from->external->node);
    return ret->node ? 0 : call->err.code;
}

bool ctl_merge_rests_on(struct ctl *c, const void *args, const struct graph_node *n)
{
    const struct merge_args *a = args;
    const struct source *from = a->bitmaps.items;
    for (size_t i = 0; i < a->bitmaps.count; i++) {
        const struct graph_node *m = from[i].local ? NULL : graph_find(c->env.graph, from[i].external->node);
        if (!from[i].local && (!m || graph_rests_on(m, n)))      /* a device, perhaps */
            return true;
    }
    return false;
}

static int do_merge(struct co *co, struct ctl_call *call)
{
    const struct merge_args *a = call->args;
    const struct source *from = a->bitmaps.items;
    struct graph_node *n = ctl_named(call, a->node);
    if (!n)
        return call->err.code;
    struct graph_bitmap_ref *src = ctl_arena_get(&call->arena, (a->bitmaps.count + 1) * sizeof *src);
    int r = src ? 0 : byre_fail(&call->err, NOMEM, "no memory for a list of bitmaps");
    for (size_t i = 0; !r && i < a->bitmaps.count; i++)
        r = source_of(call, n, &from[i], &src[i]);
    return r ? r : graph_bitmap_merge(co, n, a->target, src, (unsigned)a->bitmaps.count, &call->err);
}

static int run_merge(struct co *co, struct ctl_call *call) { return ctl_with_edges_held(co, call, do_merge); }

const struct ctl_command ctl_cmd_bitmap_add = { "block-dirty-bitmap-add", add_rows, sizeof(struct add_args), run_add,
    .doc = "Begins a dirty bitmap: what is written from now on is marked." };
const struct ctl_command ctl_cmd_bitmap_remove = { "block-dirty-bitmap-remove", one_rows, sizeof(struct one_args), run_remove,
    .doc = "Deletes a dirty bitmap." };
const struct ctl_command ctl_cmd_bitmap_clear = { "block-dirty-bitmap-clear", one_rows, sizeof(struct one_args), run_clear,
    .doc = "Forgets what is marked in a dirty bitmap." };
const struct ctl_command ctl_cmd_bitmap_enable = { "block-dirty-bitmap-enable", one_rows, sizeof(struct one_args), run_enable,
    .doc = "Lets a dirty bitmap record again." };
const struct ctl_command ctl_cmd_bitmap_disable = { "block-dirty-bitmap-disable", one_rows, sizeof(struct one_args), run_disable,
    .doc = "Keeps a dirty bitmap as it is, whatever is written." };
const struct ctl_command ctl_cmd_bitmap_merge = { "block-dirty-bitmap-merge", merge_rows, sizeof(struct merge_args), run_merge,
    .doc = "Adds to a dirty bitmap what others hold, of this node or of others of the same size: all of them, or none." };
