/* SPDX-License-Identifier: MIT
 *
 * cmd_block.c: query-block, query-named-block-nodes, block_resize (FEATURES 8.011, 8.017), and the events
 * BLOCK_IMAGE_CORRUPTED (1.113), BLOCK_IO_ERROR (8.024).
 *
 * Purpose      What is open, and how large it shall be.
 * Owns         nothing
 * Invariants   none
 * Concurrency  home loop
 * Failure      as ctl_priv.h; DeviceNotFound for names of nothing
 * Tests        ctl_test.c, tests/cli/serve_test.py
 */
#include <string.h>

#include "ctl/ctl_priv.h"
#include "ctl/guard.h"
#include "export/exports.h"
#include "graph/blockdev.h"
#include "graph/cbw.h"
#include "graph/runtime.h"
#include "graph/stats.h"

/* Appends v (taken over; NULL: call->err, or memory ran out) to the reply. */
static int append(struct ctl_call *call, json_t *v)
{
    if (!v)
        return call->err.code ? call->err.code : ctl_no_memory(call);
    return json_array_append_new(call->ret, v) ? ctl_no_memory(call) : 0;
}

static bool writethrough_of(const struct ctl *c, const struct graph_node *n)
{
    for (size_t i = 0; i < c->env.device_count; i++)
        if (graph_skip_implicit(graph_attached(c->env.devices[i].node)) == n)
            return c->env.devices[i].writethrough;
    return false;
}

/* Of the last request of each kind (FEATURES 9.101). */
static const char *io_status(const struct graph_node *n)
{
    int error = graph_io_status(n);
    return !error ? "ok" : error == -ENOSPC ? "nospace" : "failed";
}

static int run_query_block(struct co *co, struct ctl_call *call)
{
    const struct ctl_env *e = &call->c->env;
    int r = 0;
    call->ret = json_array();
    if (!call->ret)
        return ctl_no_memory(call);
    for (size_t i = 0; i < e->device_count && !r; i++) {
        const struct ctl_device *d = &e->devices[i];
        struct graph_node *n = graph_skip_implicit(graph_attached(d->node));
        if (!graph_look_begin(n))
            continue;
        json_t *inserted = device_json(co, &(struct device_json){ n, false, d->writethrough }, &call->err);
        const char *status = io_status(n);
        graph_look_end(n);
        json_t *o = inserted ? json_pack("{s:s,s:b,s:b,s:o,s:s,s:s}", "device", d->name, "locked", 0, "removable", 0, "inserted", inserted, "type", "unknown",
                                         "io-status", status) : NULL;
        r = append(call, o);
    }
    return r;
}

struct nodes_args { bool flat; };
static const struct ctl_arg nodes_rows[] = { { "flat", CTL_BOOL, false, CTL_AT(struct nodes_args, flat), .doc = "Without what lies below each image." }, CTL_ARGS_END };

static int append_node(struct co *co, struct ctl_call *call, struct graph_node *n)
{
    struct device_json d = { n, ((const struct nodes_args *)call->args)->flat, writethrough_of(call->c, n) };
    int r = append(call, device_json(co, &d, &call->err));
    if (!r && !graph_is_filter(n) && !graph_is_bare_file(n) && !graph_file(n) && !graph_is_snapshot_access(n))
        r = append(call, file_node_json(co, &d, &call->err));
    return r;
}

static int run_query_named_block_nodes(struct co *co, struct ctl_call *call)
{
    int r = 0;
    call->ret = json_array();
    if (!call->ret)
        return ctl_no_memory(call);
    for (struct graph_node *n = graph_next(call->c->env.graph, NULL), *next; n && !r; n = next) {
        bool looks = graph_skip_filters(n) && graph_look_begin(n);       /* not at a filter that filters nothing yet, or at what is being closed */
        if (looks)
            r = append_node(co, call, n);
        next = graph_next(call->c->env.graph, n);
        if (looks)
            graph_look_end(n);
    }
    return r;
}

/* ---- BLOCK_IMAGE_CORRUPTED (1.113) ---- */
void ctl_image_corrupted(void *arg, const struct graph_node *n, const struct fmt_corruption *c)
{
    struct ctl *ctl = arg;
    const char *device = "";
    for (size_t i = 0; i < ctl->env.device_count; i++)
        if (graph_skip_implicit(graph_attached(ctl->env.devices[i].node)) == n)
            device = ctl->env.devices[i].name;
    json_t *data = json_pack("{s:s,s:s,s:s,s:b}", "device", device, "node-name", graph_node_name(n), "msg", c->text, "fatal", c->fatal);
    if (data && c->has_place && (json_object_set_new(data, "offset", json_integer((json_int_t)c->off)) ||
                                 json_object_set_new(data, "size", json_integer((json_int_t)c->bytes)))) {
        json_decref(data);
        data = NULL;
    }
    ctl_send_event(ctl, "BLOCK_IMAGE_CORRUPTED", data);
}

/* ---- BLOCK_IO_ERROR (FEATURES 8.024, 8.025) ---- */
static const char *export_of(const struct ctl *c, const struct graph_node *n)
{
    struct exports *x = c->env.exports;
    for (struct export *e = x ? exports_next(x, NULL) : NULL; e; e = exports_next(x, e))
        if (e->node == n)
            return e->id;
    return NULL;
}

/* Only what came from outside. */
void ctl_io_error(void *arg, struct graph_node *n, const struct graph_io_error *e)
{
    struct ctl *c = arg;
    const char *device = NULL, *export = export_of(c, n);
    for (size_t i = 0; i < c->env.device_count; i++)
        if (c->env.devices[i].node == n || (export && graph_attached(c->env.devices[i].node) == graph_attached(n)))
            device = c->env.devices[i].name;
    if (!device && !export)
        return;
    json_t *data = json_pack("{s:s,s:s,s:s,s:s,s:s,s:b,s:s}", "device", device ? device : "", "qom-path", "", "node-name",
                             graph_attached_name(n), "operation", e->op == GRAPH_STATS_READ ? "read" : "write", "action", "report",
                             "nospace", e->error == -ENOSPC, "reason", strerror(-e->error));
    char said[GRAPH_COMPLAINT_MAX];
    bool more = graph_complaint(graph_attached(n), e->error, e->begun_ns, said);
    if (data && ((export && json_object_set_new(data, "x-byre-export", json_string(export))) ||
                 (more && json_object_set_new(data, "x-byre-complaint", json_string(said))))) {
        json_decref(data);
        data = NULL;
    }
    ctl_send_event(c, "BLOCK_IO_ERROR", data);
}

/* ---- block_resize ---- */
struct resize_args { const char *device, *node_name; uint64_t size; bool force; };
static const struct ctl_arg resize_rows[] = {
    { "device", CTL_STR, false, CTL_AT(struct resize_args, device) },
    { "node-name", CTL_STR, false, CTL_AT(struct resize_args, node_name) },
    { "size", CTL_SIZE, true, CTL_AT(struct resize_args, size), .doc = "Bytes." },
    { "force", CTL_BOOL, false, CTL_AT(struct resize_args, force), .doc = "Make it smaller even though another image is known to depend on it." },
    CTL_ARGS_END
};

static int resize_node(struct co *co, struct ctl_call *call, struct graph_node *n)
{
    const struct resize_args *a = call->args;
    int r = graph_writer_comes(co, n, &call->err);
    if (r)
        return r;
    if (graph_read_only(n) && graph_is_active(n))
        return byre_fail(&call->err, READ_ONLY, "node '%s' is read-only", graph_node_name(n));
    if (a->size < graph_length(n)) {
        r = ctl_guard(co, call, &(struct ctl_guard){ n, n, graph_skip_filters(n), a->force });
        if (!r)
            r = ctl_target(call, a->device, a->node_name, &n);
    }
    return r ? r : graph_resize(co, n, a->size, FMT_PREALLOC_OFF, &call->err);
}

static int resize_held(struct co *co, struct ctl_call *call)
{
    const struct resize_args *a = call->args;
    struct graph_node *n;
    int r = ctl_target(call, a->device, a->node_name, &n);
    if (r)
        return r;
    struct graph_node *awaited = graph_await_writer(n);
    r = resize_node(co, call, n);
    graph_await_end(co, awaited);
    graph_writer_gone(co, n);
    return r;
}

/* A mirror that ends takes a disk to another node: what is resized is the one on which the disk lies when nobody moves it any more. */
static int run_block_resize(struct co *co, struct ctl_call *call)
{
    const struct resize_args *a = call->args;
    struct graph_node *n;
    int r = ctl_target(call, a->device, a->node_name, &n);
    if (!r)
        r = graph_resize_ahead(co, n, &call->err);
    if (r)
        return r;
    return ctl_with_edges_held(co, call, resize_held);
}

const struct ctl_command ctl_cmd_query_block = { "query-block", NULL, 0, run_query_block, .ret = &ctl_ret_any, .doc = "Lists devices and the images in them." };
const struct ctl_command ctl_cmd_query_named_block_nodes = { "query-named-block-nodes", nodes_rows, sizeof(struct nodes_args), run_query_named_block_nodes,
    .ret = &ctl_ret_any, .doc = "Lists nodes with their images." };
const struct ctl_command ctl_cmd_block_resize = { "block_resize", resize_rows, sizeof(struct resize_args), run_block_resize,
    .doc = "Changes the size of a disk that is in use." };
