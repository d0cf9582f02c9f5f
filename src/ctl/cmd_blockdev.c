/* SPDX-License-Identifier: MIT
 *
 * cmd_blockdev.c: nodes that come and go, external snapshots, the names of backing files, and a picture of the graph (FEATURES 8.010,
 * 8.013, 9.073, 9.074, 11.001).
 *
 * Purpose      One call into graph/ per command.
 * Owns         nothing: nodes belong to the graph
 * Invariants   I1 a file that blockdev-snapshot-sync has made is removed again when the snapshot was not taken
 * Concurrency  home loop; suspends
 * Failure      as ctl_priv.h
 * Tests        tests/cli/blockdev_test.py
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/id.h"
#include "ctl/ctl_priv.h"
#include "ctl/new_image.h"
#include "ctl/transaction.h"
#include "graph/blockdev.h"
#include "rt/closer.h"
#include "stor/fdset.h"

/* ---- blockdev-add, blockdev-del ---- */

/* A connection to an NBD server that the client has named is offered to the node while the command lasts. One level of nodes for each object. */
#define SOCKETS_MAX 8u
struct sockets { char *key[SOCKETS_MAX]; unsigned count; };

/* In the arguments its name becomes the key by which it is found. */
static int offer_socket(struct co *co, struct ctl_call *call, json_t *server, struct sockets *out)
{
    const char *type = json_string_value(json_object_get(server, "type")), *name = json_string_value(json_object_get(server, "str"));
    struct fdsets *s = graph_passed(call->c->env.graph);
    int fd;
    if (!s || !type || strcmp(type, "fd") || !name)
        return 0;                        /* graph/ says what is wrong with it */
    if (out->count == SOCKETS_MAX)
        return byre_fail(&call->err, LIMIT, "a command adds at most %u nodes over connections that were passed", SOCKETS_MAX);
    int r = ctl_take_socket(co, call, "server.str", name, &fd);
    if (r)
        return r;
    r = passed_socket_offer(s, name, fd, &out->key[out->count], &call->err);
    if (r) {
        rt_close_fds(co, &fd, 1);
        return r;
    }
    out->count++;
    return json_object_set_new(server, "str", json_string(out->key[out->count - 1])) ? ctl_no_memory(call) : 0;
}

/* Objects inside objects, the last found first; deeper than this none is looked at, and the node then finds no connection. */
static int offer_sockets(struct co *co, struct ctl_call *call, struct sockets *out)
{
    json_t *todo[32] = { call->arguments }, *v;
    const char *key;
    size_t count = 1;
    int r = 0;
    while (count && !r) {
        json_t *o = todo[--count];
        json_object_foreach(o, key, v) {
            if (!r && !strcmp(key, "server"))
                r = offer_socket(co, call, v, out);
            else if (json_is_object(v) && count < sizeof todo / sizeof todo[0])
                todo[count++] = v;
        }
    }
    return r;
}

/* Those that no node has taken. */
static void withdraw_sockets(struct co *co, struct fdsets *s, struct sockets *given)
{
    int fds[SOCKETS_MAX];
    unsigned n = 0;
    while (given->count) {
        char *key = given->key[--given->count];
        if (passed_socket_withdraw(s, key, &fds[n]))
            n++;
        free(key);
    }
    rt_close_fds(co, fds, n);
}

static int run_add(struct co *co, struct ctl_call *call)
{
    struct graph_node *n;
    struct sockets given = { 0 };
    const char *name = json_string_value(json_object_get(call->arguments, "node-name"));
    if (!name)
        return byre_fail(&call->err, BAD_ARGUMENT, "'node-name' must be specified for the root node");
    int r = offer_sockets(co, call, &given);
    if (!r)
        r = graph_blockdev_add(co, call->c->env.graph, call->arguments, &n, &call->err);
    withdraw_sockets(co, graph_passed(call->c->env.graph), &given);
    return r;
}

struct del_args { const char *node_name; };
static const struct ctl_arg del_rows[] = { { "node-name", CTL_STR, true, CTL_AT(struct del_args, node_name) }, CTL_ARGS_END };

static int run_del(struct co *co, struct ctl_call *call)
{
    const char *name = ((const struct del_args *)call->args)->node_name;
    struct graph_node *n = graph_find_settled(co, call->c->env.graph, name);         /* not kept: it is to go */
    return n ? graph_blockdev_del(co, n, &call->err) : byre_fail(&call->err, NOT_FOUND, "Cannot find device='' nor node-name='%s'", name);
}

/* ---- blockdev-reopen ---- */

static const struct ctl_arg reopen_rows[] = {
    { "options", CTL_STRUCT, true, CTL_AT_NONE, .of = &ctl_blockdev_shape, .list = true, .doc = "Of each node all that is not to be its default." }, CTL_ARGS_END
};

static int run_reopen(struct co *co, struct ctl_call *call)
{
    return graph_blockdev_reopen(co, call->c->env.graph, json_object_get(call->arguments, "options"), &call->err);
}

/* ---- blockdev-set-active ---- */

struct active_args { const char *node_name; bool active; };
static const struct ctl_arg active_rows[] = {
    { "node-name", CTL_STR, false, CTL_AT(struct active_args, node_name), .doc = "With all that lies below it; all nodes when it is not given." },
    { "active", CTL_BOOL, true, CTL_AT(struct active_args, active) }, CTL_ARGS_END
};

static int run_set_active(struct co *co, struct ctl_call *call)
{
    const struct active_args *a = call->args;
    struct graph_node *n = NULL;
    if (a->node_name && !(n = graph_find(call->c->env.graph, a->node_name)))
        return byre_fail(&call->err, NOT_FOUND, "Failed to find node with node-name='%s'", a->node_name);
    int r = ctl_keep(call, n);
    return r ? r : graph_set_active(co, call->c->env.graph, n, a->active, &call->err);
}

/* ---- blockdev-snapshot ---- */

struct snapshot_args { const char *node, *overlay; };
static const struct ctl_arg snapshot_rows[] = {
    { "node", CTL_STR, true, CTL_AT(struct snapshot_args, node), .doc = "What is kept as it is." },
    { "overlay", CTL_STR, true, CTL_AT(struct snapshot_args, overlay), .doc = "Takes its place; opened with \"backing\": null and used by nobody." },
    CTL_ARGS_END
};

const struct ctl_shape ctl_shape_snapshot = { .name = "BlockdevSnapshot", .rows = snapshot_rows, .bytes = sizeof(struct snapshot_args) };

/* Of a snapshot on its way. */
struct taking {
    struct graph_node *overlay;
    const struct graph_node *image;              /* the call holds it: what the new file names. NULL: none is made */
    bool named, made, put;
    char *below;
    struct graph_making *making;
};

static int put(struct co *co, struct ctl_act *t)
{
    struct taking *s = t->state;
    int r = graph_snapshot_put(co, t->node, s->overlay, &s->named, &t->call.err);
    s->put = !r;
    return r;
}

static int apply_snapshot(struct co *co, struct ctl_act *t)
{
    int r = ctl_act_same(t, ctl_named(&t->call, ((const struct snapshot_args *)t->call.args)->node));
    return r ? r : put(co, t);
}

static void undo_snapshot(struct co *co, struct ctl_act *t)
{
    struct taking *s = t->state;
    graph_snapshot_take_back(co, s->overlay, s->named);
}

static int open_snapshot(struct co *co, struct ctl_act *t)
{
    const struct snapshot_args *a = t->call.args;
    struct taking *s = t->state = ctl_arena_get(&t->call.arena, sizeof *s);
    t->node = ctl_named(&t->call, a->node);
    if (!t->node || !s)
        return s ? t->call.err.code : byre_fail(&t->call.err, NOMEM, "no memory for a snapshot");
    s->overlay = ctl_node(&t->call, a->overlay);
    if (!s->overlay)
        return t->call.err.code;
    graph_ref(s->overlay);
    graph_ref(t->node);
    return 0;
}

static void end_snapshot(struct co *co, struct ctl_act *t, bool good)
{
    struct taking *s = t->state;
    if (good)
        graph_snapshot_settle(co, t->node);
    (void)!graph_close(co, s->overlay);          /* the user has it */
}

const struct ctl_action ctl_action_snapshot = { .open = open_snapshot, .apply = apply_snapshot, .undo = undo_snapshot, .end = end_snapshot };

static int run_snapshot(struct co *co, struct ctl_call *call)
{
    return ctl_act_single(co, call, &ctl_action_snapshot);
}

/* ---- blockdev-snapshot-sync ---- */

static const char *const mode_words[] = { "existing", "absolute-paths", NULL };
static const struct ctl_shape mode_shape = { .name = "NewImageMode", .words = mode_words };
enum { MODE_EXISTING, MODE_ABSOLUTE };
struct sync_args { const char *device, *node_name, *file, *new_name, *format; int mode; bool has_mode; };
static const struct ctl_arg sync_rows[] = {
    { "device", CTL_STR, false, CTL_AT(struct sync_args, device) },
    { "node-name", CTL_STR, false, CTL_AT(struct sync_args, node_name) },
    { "snapshot-file", CTL_STR, true, CTL_AT(struct sync_args, file) },
    { "snapshot-node-name", CTL_STR, false, CTL_AT(struct sync_args, new_name), .doc = "Name of the new node." },
    { "format", CTL_STR, false, CTL_AT(struct sync_args, format), .doc = "Of the new image; qcow2 when it is not given." },
    { "mode", CTL_ENUM, false, CTL_AT_HAS(struct sync_args, mode), .of = &mode_shape, .doc = "absolute-paths when it is not given: the image is made." },
    CTL_ARGS_END
};

static int open_new(struct co *co, struct ctl_call *call, const struct sync_args *a, const char *format, struct graph_node **ret_n)
{
    const char *path;
    int named = graph_name_to_make(graph_policy_of(call->c->env.graph), a->file, &path, &call->err);
    if (named)
        return named;
    json_t *o = json_pack("{s:s,s:n,s:{s:s,s:s}}", "driver", format, "backing", "file", "driver", "file", "filename", path ? path : a->file);
    if (o && a->new_name && json_object_set_new(o, "node-name", json_string(a->new_name))) {
        json_decref(o);
        o = NULL;
    }
    int r = o ? graph_blockdev_add(co, call->c->env.graph, o, ret_n, &call->err) : byre_fail(&call->err, NOMEM, "no memory for a node");
    json_decref(o);
    return r;
}

const struct ctl_shape ctl_shape_snapshot_sync = { .name = "BlockdevSnapshotSync", .rows = sync_rows, .bytes = sizeof(struct sync_args) };

static int check_sync(struct co *co, struct ctl_call *call, const struct sync_args *a, const struct fmt_ops *ops)
{
    if (!ops || !ops->make_empty || !ops->create)
        return byre_fail(&call->err, UNKNOWN_FORMAT, "the format '%s' is not known, or has no backing images", a->format ? a->format : "qcow2");
    if (a->new_name && !id_is_good(a->new_name, GRAPH_NAME_MAX))     /* before a file that may be there is given up */
        return byre_fail(&call->err, BAD_ARGUMENT, "'%s' is no acceptable node name (a letter, then at most %d letters, digits, '-', '.', '_')", a->new_name, GRAPH_NAME_MAX - 1);
    if (a->new_name && graph_find(call->c->env.graph, a->new_name))
        return byre_fail(&call->err, EXISTS, "New overlay node-name already in use: '%s'", a->new_name);
    return 0;
}

static int make_overlay(struct co *co, struct ctl_act *t)
{
    const struct sync_args *a = t->call.args;
    const char *format = a->format ? a->format : "qcow2";
    const struct fmt_ops *ops = fmt_by_name(format);
    struct taking *s = t->state;
    bool make = !a->has_mode || a->mode == MODE_ABSOLUTE;
    int r = check_sync(co, &t->call, a, ops);
    if (r)
        return r;
    struct graph_node *image = graph_skip_filters(t->node);
    if (!image)
        return byre_fail(&t->call.err, BAD_ARGUMENT, "node '%s' is a filter that filters nothing", graph_node_name(t->node));
    r = ctl_keep(&t->call, image);               /* a filter may come to lie over another one meanwhile */
    if (r)
        return r;
    s->image = make ? image : NULL;
    r = make ? ctl_claim_image(co, t->call.c->env.graph, a->file, "the snapshot", &s->making, &t->call.err) : 0;
    if (r)
        return r;
    s->below = strdup(graph_filename(image));
    if (make)
        r = ctl_make_image(co, &(struct ctl_new_image){ t->call.c->env.graph, s->making, a->file, ops, graph_length(image), image }, &t->call.err);
    s->made = make && !r;
    if (!r)
        r = open_new(co, &t->call, a, format, &s->overlay);
    if (!r)
        graph_ref(s->overlay);                   /* nobody deletes it before it is where it belongs */
    if (r && s->made)
        graph_making_drop(co, s->making);        /* I1 */
    if (r) {
        graph_making_end(s->making);
        free(s->below);
    }
    return r;
}

static int open_sync(struct co *co, struct ctl_act *t)
{
    const struct sync_args *a = t->call.args;
    t->state = ctl_arena_get(&t->call.arena, sizeof(struct taking));
    int r = t->state ? ctl_target(&t->call, a->device, a->node_name, &t->node) : byre_fail(&t->call.err, NOMEM, "no memory for a snapshot");
    if (r)
        return r;
    graph_ref(t->node);                          /* a job may take it out of its chain while a file is made */
    r = make_overlay(co, t);
    if (r)
        (void)!graph_close(co, t->node);         /* somebody else has it, or it has lost its last user and nobody is there to be told */
    return r;
}

static int apply_sync(struct co *co, struct ctl_act *t)
{
    const struct sync_args *a = t->call.args;
    struct graph_node *now = NULL;
    int r = ctl_target(&t->call, a->device, a->node_name, &now);
    if (!r)
        r = ctl_act_same(t, now);
    const struct taking *s = t->state;
    if (!r && s->image && graph_skip_filters(t->node) != s->image)
        r = byre_fail(&t->call.err, BUSY, "what lies below node '%s' was moved meanwhile: the new file names another image", graph_node_name(t->node));
    return r ? r : put(co, t);
}

static void end_sync(struct co *co, struct ctl_act *t, bool good)
{
    const struct sync_args *a = t->call.args;
    struct taking *s = t->state;
    if (good)
        graph_snapshot_settle(co, t->node);
    (void)!graph_close(co, s->overlay);          /* it is the user's, too: nothing is closed here */
    int deleted = good ? 0 : graph_blockdev_del(co, s->overlay, NULL);       /* nothing was written to it */
    if (!good && s->made && deleted != -EPERM)   /* else it could not be taken out, and is in use: told already */
        graph_making_drop(co, s->making);        /* I1 */
    graph_making_end(s->making);
    if (good)
        (void)graph_blockdev_disown(co, s->overlay);         /* a job that takes it out of the chain closes it; others hold it: nothing is closed here */
    if (good && s->made)
        graph_tell_linked(co, t->call.c->env.graph, a->file, s->below);
    free(s->below);
}

const struct ctl_action ctl_action_snapshot_sync = { .open = open_sync, .apply = apply_sync, .undo = undo_snapshot, .end = end_sync };

static int run_snapshot_sync(struct co *co, struct ctl_call *call)
{
    return ctl_act_single(co, call, &ctl_action_snapshot_sync);
}

/* ---- change-backing-file ---- */

struct change_args { const char *device, *image, *file; };
static const struct ctl_arg change_rows[] = {
    { "device", CTL_STR, true, CTL_AT(struct change_args, device), .doc = "In whose chain the image is." },
    { "image-node-name", CTL_STR, true, CTL_AT(struct change_args, image) },
    { "backing-file", CTL_STR, true, CTL_AT(struct change_args, file), .doc = "What the image records from now on; nothing is opened." },
    CTL_ARGS_END
};

/* Edges: what lies below the image is looked at, which may suspend, and is what its header says then. */
static int do_change(struct co *co, struct ctl_call *call)
{
    const struct change_args *a = call->args;
    struct graph_node *top = ctl_named(call, a->device), *n = top ? ctl_node(call, a->image) : NULL;
    if (!n)
        return call->err.code;
    struct graph_node *at = top;
    while (at && at != n)
        at = graph_backing(at);
    if (!at)
        return byre_fail(&call->err, BAD_ARGUMENT, "'%s' and image file are not in the same chain", a->device);
    struct graph_node *below = graph_skip_filters(graph_backing(n));
    if (!below)
        return byre_fail(&call->err, BAD_ARGUMENT, "not allowed to change backing_file of '%s': it has none", a->image);
    const struct graph_name name = { a->file, graph_format(below)->name };
    return graph_record_backing(co, n, &name, &call->err);
}

static int run_change(struct co *co, struct ctl_call *call) { return ctl_with_edges_held(co, call, do_change); }

/* ---- x-debug-query-block-graph ---- */

struct picture { json_t *nodes, *edges; bool failed; };

/* Numbers for pointers: the index in `nodes`, + 1. */
static json_int_t id_of(struct picture *p, const void *what, const char *type, const char *name)
{
    size_t i;
    json_t *o;
    json_array_foreach(p->nodes, i, o)
        if (json_integer_value(json_object_get(o, "x-key")) == (json_int_t)(uintptr_t)what)
            return (json_int_t)i + 1;
    o = json_pack("{s:I,s:s,s:s,s:I}", "id", (json_int_t)json_array_size(p->nodes) + 1, "type", type, "name", name, "x-key", (json_int_t)(uintptr_t)what);
    p->failed |= !o || json_array_append_new(p->nodes, o);
    return (json_int_t)json_array_size(p->nodes);
}

static json_t *perms_json(unsigned perm)
{
    static const struct { unsigned bit; const char *name; } names[] = {
        { STOR_PERM_READ, "consistent-read" }, { STOR_PERM_WRITE, "write" }, { STOR_PERM_WRITE_UNCHANGED, "write-unchanged" }, { STOR_PERM_RESIZE, "resize" } };
    json_t *a = json_array();
    for (size_t i = 0; a && i < sizeof names / sizeof names[0]; i++)
        if (perm & names[i].bit)
            json_array_append_new(a, json_string(names[i].name));
    return a;
}

static void draw_edge(void *arg, const struct graph_edge *e)
{
    struct picture *p = arg;
    json_int_t parent = id_of(p, e->parent, e->outside ? "block-backend" : "block-driver", e->outside ? e->who : graph_node_name(e->parent));
    json_int_t child = id_of(p, e->child, "block-driver", graph_node_name(e->child));
    json_t *o = json_pack("{s:I,s:I,s:s,s:o,s:o}", "parent", parent, "child", child, "name", e->role, "perm", perms_json(e->perm), "shared-perm", perms_json(e->shared));
    p->failed |= !o || json_array_append_new(p->edges, o);
}

static int run_graph(struct co *co, struct ctl_call *call)
{
    struct picture p = { json_array(), json_array(), false };
    struct graph *g = call->c->env.graph;
    size_t i;
    json_t *o;
    for (struct graph_node *n = graph_next(g, NULL); n; n = graph_next(g, n))
        (void)id_of(&p, n, "block-driver", graph_node_name(n));
    graph_each_edge(g, draw_edge, &p);
    json_array_foreach(p.nodes, i, o)
        json_object_del(o, "x-key");
    call->ret = json_pack("{s:o,s:o}", "nodes", p.nodes, "edges", p.edges);
    return call->ret && !p.failed ? 0 : ctl_no_memory(call);
}

const struct ctl_command ctl_cmd_blockdev_add = { "blockdev-add", ctl_blockdev_rows, 0, run_add, .open = true, .tag = "driver", .cases = ctl_blockdev_cases,
    .doc = "Opens a node, with all that its options nest." };
const struct ctl_command ctl_cmd_blockdev_del = { "blockdev-del", del_rows, sizeof(struct del_args), run_del,
    .doc = "Closes a node that blockdev-add has opened. It must not be in use." };
const struct ctl_command ctl_cmd_blockdev_reopen = { "blockdev-reopen", reopen_rows, 0, run_reopen,
    .doc = "Gives nodes other options while they are used, and images other nodes below them: all of the list, or nothing. What is left out goes back to its "
           "default. 'backing' must be said of an image that has one, by name, or null for nothing." };
const struct ctl_command ctl_cmd_blockdev_set_active = { "blockdev-set-active", active_rows, sizeof(struct active_args), run_set_active,
    .doc = "Hands the files of nodes to another process (active false): what was written is durable, nothing is locked any more, and the nodes stay, to be read "
           "only; or takes them back as they are then (true). All of the nodes, or none." };
const struct ctl_command ctl_cmd_blockdev_snapshot = { "blockdev-snapshot", snapshot_rows, sizeof(struct snapshot_args), run_snapshot,
    .doc = "Keeps a disk as it is at this moment: an overlay takes its place under all who use it, while they use it." };
const struct ctl_command ctl_cmd_blockdev_snapshot_sync = { "blockdev-snapshot-sync", sync_rows, sizeof(struct sync_args), run_snapshot_sync,
    .doc = "The same with an overlay that is made and opened by the way." };
const struct ctl_command ctl_cmd_change_backing_file = { "change-backing-file", change_rows, sizeof(struct change_args), run_change,
    .doc = "Changes the name of the backing file that an image records. The open chain stays as it is." };
const struct ctl_command ctl_cmd_block_graph = { "x-debug-query-block-graph", NULL, 0, run_graph, .ret = &ctl_ret_any,
    .doc = "Nodes and edges of the graph, with what each edge wants and lets others do." };
