/* SPDX-License-Identifier: MIT
 *
 * cmd_debug.c: x-blockdev-change, x-debug-block-dirty-bitmap-sha256, qom-list-types (FEATURES 8.016, 8.018, 8.021, 9.017).
 *
 * Purpose      What tools ask for that look into the peer, in so far as it has a meaning here.
 * Owns         nothing
 * Invariants   none
 * Concurrency  home loop
 * Failure      as ctl_priv.h
 * Tests        tests/daemon/debug_test.py
 */
#include <string.h>

#include <nettle/sha2.h>

#include "base/checked.h"
#include "base/dirty.h"
#include "ctl/qom.h"
#include "graph/runtime.h"

/* ---- x-blockdev-change ---- */

struct change_args { const char *parent, *child, *node; };
static const struct ctl_arg change_rows[] = {
    { "parent", CTL_STR, true, CTL_AT(struct change_args, parent), .doc = "A device or a node." },
    { "child", CTL_STR, false, CTL_AT(struct change_args, child), .doc = "The child that is to go." },
    { "node", CTL_STR, false, CTL_AT(struct change_args, node), .doc = "The node that is to become one." },
    CTL_ARGS_END
};

struct looking { const struct graph_node *parent; const char *role; bool found; };

static void look_at_edge(void *arg, const struct graph_edge *e)
{
    struct looking *l = arg;
    l->found |= e->parent == l->parent && !strcmp(e->role, l->role);
}

static int run_change(struct co *co, struct ctl_call *call)
{
    const struct change_args *a = call->args;
    struct graph_node *n = ctl_named(call, a->parent);
    if (!n)
        return call->err.code;
    if (a->child && a->node)
        return byre_fail(&call->err, BAD_ARGUMENT, "The parameters child and node are in conflict");
    if (!a->child && !a->node)
        return byre_fail(&call->err, BAD_ARGUMENT, "Either child or node must be specified");
    if (a->node && !graph_find(call->c->env.graph, a->node))
        return byre_fail(&call->err, NOT_FOUND, "Node '%s' not found", a->node);
    struct looking l = { n, a->child ? a->child : "", !strcmp(a->child ? a->child : "", "file") };
    graph_each_edge(call->c->env.graph, look_at_edge, &l);
    if (a->child && !l.found)
        return byre_fail(&call->err, NOT_FOUND, "Node '%s' does not have child '%s'", a->parent, a->child);
    return byre_fail(&call->err, NOT_SUPPORTED, "The node %s does not support %s a child: of the drivers here none has a number of children that changes. "
                     "blockdev-reopen replaces one", a->parent, a->child ? "removing" : "adding");
}

/* ---- x-debug-block-dirty-bitmap-sha256 ---- */

#define SHA_BYTES 4096u
#define SHA_STEPS 64u                        /* so many between two turns of the loop */

struct sha_args { const char *node, *name; };
static const struct ctl_arg sha_rows[] = {
    { "node", CTL_STR, true, CTL_AT(struct sha_args, node) },
    { "name", CTL_STR, true, CTL_AT(struct sha_args, name) },
    CTL_ARGS_END
};
static const struct ctl_arg sha_ret_rows[] = { { "sha256", CTL_STR, true, CTL_AT_NONE }, CTL_ARGS_END };
static const struct ctl_shape sha_shape = { .name = "BlockDirtyBitmapSha256", .rows = sha_ret_rows };
static const struct ctl_arg ret_sha = { "hash", CTL_STRUCT, true, CTL_AT_NONE, .of = &sha_shape };

/* Of its bits from the first on, 8 in a byte, in whole groups of 8 bytes. The caller holds b, whose length may change on the way. */
static void hash_bits(struct co *co, const struct fmt_bitmap *b, struct sha256_ctx *h)
{
    uint8_t buf[SHA_BYTES / 8];
    unsigned steps = 0;
    for (uint64_t at = 0; at < b->bits->bits; at += sizeof buf * 8) {
        uint64_t bytes = round_up(div_up(b->bits->bits - at, 8), 8);
        memset(buf, 0, sizeof buf);
        dirty_export(b->bits, at, buf, min_u64(div_up(b->bits->bits - at, 8), sizeof buf));
        sha256_update(h, min_u64(bytes, sizeof buf), buf);
        if (++steps % SHA_STEPS == 0)
            co_yield(co);
    }
}

/* The bitmap does not go, and its image is not opened in another way, from the look at it to the hold (graph_edges_hold). */
static int hold_bitmap(struct co *co, struct ctl_call *call, struct graph_node *n, const char *name, struct fmt_bitmap **ret_b)
{
    struct graph *g = call->c->env.graph;
    struct fmt_bitmap *b = NULL;
    graph_edges_hold(co, g);
    int r = ctl_keep(call, graph_skip_filters(n));       /* its bitmaps are there, whatever becomes of the filters */
    if (!r)
        r = graph_bitmap_find(co, n, name, &b, &call->err);
    if (!r && !b)
        r = byre_fail(&call->err, NOT_FOUND, "Dirty bitmap '%s' not found", name);
    if (!r)
        r = graph_bitmap_load(co, n, b, &call->err);
    if (!r)
        graph_bitmap_hold(b);
    graph_edges_let(co, g);
    *ret_b = b;
    return r;
}

static int run_sha(struct co *co, struct ctl_call *call)
{
    const struct sha_args *a = call->args;
    struct graph_node *n = ctl_named(call, a->node);
    struct fmt_bitmap *b = NULL;
    struct sha256_ctx h;
    uint8_t digest[SHA256_DIGEST_SIZE];
    char text[2 * sizeof digest + 1];
    int r = n ? hold_bitmap(co, call, n, a->name, &b) : call->err.code;
    if (r)
        return r;
    struct graph_node *image = graph_skip_filters(n);        /* it is kept */
    sha256_init(&h);
    hash_bits(co, b, &h);
    sha256_digest(&h, sizeof digest, digest);
    graph_bitmap_release(image, b);
    for (unsigned i = 0; i < sizeof digest; i++)
        snprintf(text + 2 * i, 3, "%02x", digest[i]);
    call->ret = json_pack("{s:s}", "sha256", text);
    return call->ret ? 0 : ctl_no_memory(call);
}

/* ---- qom-list-types ---- */

struct types_args { const char *implements; bool abstract; };
static const struct ctl_arg types_rows[] = {
    { "implements", CTL_STR, false, CTL_AT(struct types_args, implements), .doc = "Only what is one of these." },
    { "abstract", CTL_BOOL, false, CTL_AT(struct types_args, abstract), .doc = "Also kinds of which no object can be made." },
    CTL_ARGS_END
};
static const struct ctl_arg type_rows[] = {
    { "name", CTL_STR, true, CTL_AT_NONE },
    { "abstract", CTL_BOOL, false, CTL_AT_NONE },
    { "parent", CTL_STR, false, CTL_AT_NONE },
    CTL_ARGS_END
};
static const struct ctl_shape type_shape = { .name = "ObjectTypeInfo", .rows = type_rows };
static const struct ctl_arg ret_types = { "types", CTL_STRUCT, true, CTL_AT_NONE, .of = &type_shape, .list = true };

static const struct { const char *start, *parent; } families[] = {
    { "secret", "secret_common" }, { "tls-creds-", "tls-creds" }, { "authz-", "authz" }, { "pr-manager-", "pr-manager" }, { "", "object" },
};
#define FAMILIES (sizeof families / sizeof families[0])

static const char *parent_of(const char *type)
{
    unsigned i = 0;
    while (strncmp(type, families[i].start, strlen(families[i].start)))
        i++;
    return families[i].parent;
}

static bool is_wanted(const struct types_args *a, const char *name, const char *parent)
{
    const char *what = a->implements;
    return !what || !strcmp(what, "object") || !strcmp(what, "user-creatable") || !strcmp(what, name) || !strcmp(what, parent);
}

static bool has_members(const char *family)
{
    for (const char *const *w = ctl_object_types.words; *w; w++)
        if (!strcmp(parent_of(*w), family))
            return true;
    return false;
}

static int run_types(struct co *co, struct ctl_call *call)
{
    const struct types_args *a = call->args;
    bool ok = (call->ret = json_array()) != NULL;
    for (unsigned i = 0; ok && a->abstract && i + 1 < FAMILIES; i++)
        if (has_members(families[i].parent) && is_wanted(a, families[i].parent, "object"))
            ok = !json_array_append_new(call->ret, json_pack("{s:s,s:b,s:s}", "name", families[i].parent, "abstract", 1, "parent", "object"));
    for (const char *const *w = ctl_object_types.words; ok && *w; w++)
        if (is_wanted(a, *w, parent_of(*w)))
            ok = !json_array_append_new(call->ret, json_pack("{s:s,s:s}", "name", *w, "parent", parent_of(*w)));
    return ok ? 0 : ctl_no_memory(call);
}

/* ---- qom-list-properties ---- */

struct properties_args { const char *type; };
static const struct ctl_arg properties_rows[] = { { "typename", CTL_STR, true, CTL_AT(struct properties_args, type), .doc = "A kind of objects that object-add makes." }, CTL_ARGS_END };
static const struct ctl_arg property_rows[] = { { "name", CTL_STR, true, CTL_AT_NONE }, { "type", CTL_STR, true, CTL_AT_NONE }, CTL_ARGS_END };
static const struct ctl_shape property_shape = { .name = "ObjectPropertyInfo", .rows = property_rows };
static const struct ctl_arg ret_properties = { "properties", CTL_STRUCT, true, CTL_AT_NONE, .of = &property_shape, .list = true };

static const char *type_name(const struct ctl_arg *row)
{
    return row->of ? row->of->name : row->type == CTL_BOOL ? "bool" : row->type == CTL_STR ? "string" : "int";
}

static int run_properties(struct co *co, struct ctl_call *call)
{
    const struct ctl_arg *row = ctl_object_rows(((const struct properties_args *)call->args)->type);
    ASSERT(co);
    if (!row) {
        call->error_class = "DeviceNotFound";
        return byre_fail(&call->err, NOT_FOUND, "Class '%s' not found", ((const struct properties_args *)call->args)->type);
    }
    call->ret = json_pack("[{s:s,s:s}]", "name", "type", "type", "string");
    bool ok = call->ret;
    for (; ok && row->name; row++)
        ok = !json_array_append_new(call->ret, json_pack("{s:s,s:s}", "name", row->name, "type", type_name(row)));
    return ok ? 0 : ctl_no_memory(call);
}

const struct ctl_command ctl_cmd_qom_list_properties = { "qom-list-properties", properties_rows, sizeof(struct properties_args), run_properties, .ret = &ret_properties,
    .doc = "Lists what object-add takes for a kind of objects." };
const struct ctl_command ctl_cmd_blockdev_change = { "x-blockdev-change", change_rows, sizeof(struct change_args), run_change,
    .doc = "Refused: adds a child to a node, or takes one away, which no driver here can." };
const struct ctl_command ctl_cmd_bitmap_sha256 = { "x-debug-block-dirty-bitmap-sha256", sha_rows, sizeof(struct sha_args), run_sha, .ret = &ret_sha,
    .doc = "Tells a hash of what a dirty bitmap says, so that two can be compared." };
const struct ctl_command ctl_cmd_qom_list_types = { "qom-list-types", types_rows, sizeof(struct types_args), run_types, .ret = &ret_types,
    .doc = "Lists the kinds of objects that object-add makes." };
