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
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/ctl_priv.h"

struct add_args { const char *node, *name; int64_t granularity; bool persistent, disabled; };
static const struct ctl_arg add_rows[] = {
    { "node", CTL_STR, true, CTL_AT(struct add_args, node) },
    { "name", CTL_STR, true, CTL_AT(struct add_args, name) },
    { "granularity", CTL_INT, false, CTL_AT(struct add_args, granularity) },
    { "persistent", CTL_BOOL, false, CTL_AT(struct add_args, persistent) },
    { "disabled", CTL_BOOL, false, CTL_AT(struct add_args, disabled) },
    CTL_ARGS_END
};

static int run_add(struct co *co, struct ctl_call *call)
{
    const struct add_args *a = call->args;
    struct graph_node *n = ctl_named(call, a->node);
    if (n && a->granularity < 0)
        return byre_fail(&call->err, BAD_ARGUMENT, "Parameter 'granularity' must not be negative (%" PRId64 ")", a->granularity);
    struct graph_bitmap_spec s = { a->name, (uint64_t)a->granularity, a->persistent, a->disabled };
    return n ? graph_bitmap_add(co, n, &s, &call->err) : call->err.code;
}

struct one_args { const char *node, *name; };
static const struct ctl_arg one_rows[] = {
    { "node", CTL_STR, true, CTL_AT(struct one_args, node) },
    { "name", CTL_STR, true, CTL_AT(struct one_args, name) },
    CTL_ARGS_END
};

static int run_remove(struct co *co, struct ctl_call *call)
{
    const struct one_args *a = call->args;
    struct graph_node *n = ctl_named(call, a->node);
    return n ? graph_bitmap_remove(co, n, a->name, &call->err) : call->err.code;
}

static int run_clear(struct co *co, struct ctl_call *call)
{
    const struct one_args *a = call->args;
    struct graph_node *n = ctl_named(call, a->node);
    return n ? graph_bitmap_clear(co, n, a->name, &call->err) : call->err.code;
}

static int run_enable(struct co *co, struct ctl_call *call)
{
    const struct one_args *a = call->args;
    struct graph_node *n = ctl_named(call, a->node);
    return n ? graph_bitmap_enable(co, n, a->name, true, &call->err) : call->err.code;
}

static int run_disable(struct co *co, struct ctl_call *call)
{
    const struct one_args *a = call->args;
    struct graph_node *n = ctl_named(call, a->node);
    return n ? graph_bitmap_enable(co, n, a->name, false, &call->err) : call->err.code;
}

/* ---- merge ---- */

struct merge_args { const char *node, *target; json_t *bitmaps; };
static const struct ctl_arg merge_rows[] = {
    { "node", CTL_STR, true, CTL_AT(struct merge_args, node) },
    { "target", CTL_STR, true, CTL_AT(struct merge_args, target) },
    { "bitmaps", CTL_ANY, true, CTL_AT(struct merge_args, bitmaps) },
    CTL_ARGS_END
};

/* A name, or an object of a node and a name. */
static int source_of(struct ctl_call *call, struct graph_node *n, json_t *v, struct graph_bitmap_ref *ret)
{
    const char *node = NULL, *name = NULL;
    *ret = (struct graph_bitmap_ref){ n, json_string_value(v) };
    if (json_is_string(v))
        return 0;
    if (json_unpack_ex(v, NULL, JSON_STRICT, "{s:s,s:s}", "node", &node, "name", &name))
        return byre_fail(&call->err, BAD_ARGUMENT, "Invalid parameter type for 'bitmaps', expected: names, or objects with 'node' and 'name'");
    ret->name = name;
    ret->node = ctl_named(call, node);
    return ret->node ? 0 : call->err.code;
}

static int run_merge(struct co *co, struct ctl_call *call)
{
    const struct merge_args *a = call->args;
    struct graph_node *n = ctl_named(call, a->node);
    if (!n)
        return call->err.code;
    if (!json_is_array(a->bitmaps))
        return byre_fail(&call->err, BAD_ARGUMENT, "Invalid parameter type for 'bitmaps', expected: array");
    size_t count = json_array_size(a->bitmaps);
    struct graph_bitmap_ref *src = calloc(count + 1, sizeof *src);
    int r = src ? 0 : byre_fail(&call->err, NOMEM, "no memory for a list of bitmaps");
    for (size_t i = 0; !r && i < count; i++)
        r = source_of(call, n, json_array_get(a->bitmaps, i), &src[i]);
    if (!r)
        r = graph_bitmap_merge(co, n, a->target, src, (unsigned)count, &call->err);
    free(src);
    return r;
}

const struct ctl_command ctl_cmd_bitmap_add = { "block-dirty-bitmap-add", add_rows, sizeof(struct add_args), run_add, false };
const struct ctl_command ctl_cmd_bitmap_remove = { "block-dirty-bitmap-remove", one_rows, sizeof(struct one_args), run_remove, false };
const struct ctl_command ctl_cmd_bitmap_clear = { "block-dirty-bitmap-clear", one_rows, sizeof(struct one_args), run_clear, false };
const struct ctl_command ctl_cmd_bitmap_enable = { "block-dirty-bitmap-enable", one_rows, sizeof(struct one_args), run_enable, false };
const struct ctl_command ctl_cmd_bitmap_disable = { "block-dirty-bitmap-disable", one_rows, sizeof(struct one_args), run_disable, false };
const struct ctl_command ctl_cmd_bitmap_merge = { "block-dirty-bitmap-merge", merge_rows, sizeof(struct merge_args), run_merge, false };
