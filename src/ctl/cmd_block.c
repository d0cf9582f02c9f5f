/* SPDX-License-Identifier: MIT
 *
 * cmd_block.c: query-block, query-named-block-nodes, block_resize (FEATURES 8.011, 8.017), and the event
 * BLOCK_IMAGE_CORRUPTED (1.113).
 *
 * Purpose      What is open, and how large it shall be.
 * Owns         nothing
 * Invariants   none
 * Concurrency  home loop
 * Failure      as ctl_priv.h; DeviceNotFound for names of nothing
 * Tests        ctl_test.c, tests/cli/serve_test.py
 */
#include "ctl/ctl_priv.h"
#include "graph/runtime.h"

static int no_memory(struct ctl_call *call)
{
    return byre_fail(&call->err, NOMEM, "no memory for a reply");
}

/* Appends v (taken over; NULL: call->err, or memory ran out) to the reply. */
static int append(struct ctl_call *call, json_t *v)
{
    if (!v)
        return call->err.code ? call->err.code : no_memory(call);
    return json_array_append_new(call->ret, v) ? no_memory(call) : 0;
}

static bool writethrough_of(const struct ctl *c, const struct graph_node *n)
{
    for (size_t i = 0; i < c->env.device_count; i++)
        if (graph_skip_implicit(graph_attached(c->env.devices[i].node)) == n)
            return c->env.devices[i].writethrough;
    return false;
}

static int run_query_block(struct co *co, struct ctl_call *call)
{
    const struct ctl_env *e = &call->c->env;
    int r = 0;
    call->ret = json_array();
    if (!call->ret)
        return no_memory(call);
    for (size_t i = 0; i < e->device_count && !r; i++) {
        const struct ctl_device *d = &e->devices[i];
        json_t *inserted = device_json(co, &(struct device_json){ graph_skip_implicit(graph_attached(d->node)), false, d->writethrough }, &call->err);
        json_t *o = inserted ? json_pack("{s:s,s:b,s:b,s:o,s:s}", "device", d->name, "locked", 0, "removable", 0, "inserted", inserted, "type", "unknown") : NULL;
        r = append(call, o);
    }
    return r;
}

struct nodes_args { bool flat; };
static const struct ctl_arg nodes_rows[] = { { "flat", CTL_BOOL, false, CTL_AT(struct nodes_args, flat), .doc = "Without what lies below each image." }, CTL_ARGS_END };

static int run_query_named_block_nodes(struct co *co, struct ctl_call *call)
{
    const struct nodes_args *a = call->args;
    int r = 0;
    call->ret = json_array();
    if (!call->ret)
        return no_memory(call);
    for (struct graph_node *n = graph_next(call->c->env.graph, NULL); n && !r; n = graph_next(call->c->env.graph, n)) {
        struct device_json d = { n, a->flat, writethrough_of(call->c, n) };
        if (!graph_skip_filters(n))
            continue;                            /* a filter that filters nothing yet */
        r = append(call, device_json(co, &d, &call->err));
        if (!r && !graph_is_filter(n) && !graph_is_bare_file(n) && !graph_file(n))
            r = append(call, file_node_json(co, &d, &call->err));
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

/* ---- block_resize ---- */
struct resize_args { const char *device, *node_name; uint64_t size; };
static const struct ctl_arg resize_rows[] = {
    { "device", CTL_STR, false, CTL_AT(struct resize_args, device) },
    { "node-name", CTL_STR, false, CTL_AT(struct resize_args, node_name) },
    { "size", CTL_SIZE, true, CTL_AT(struct resize_args, size), .doc = "Bytes." },
    CTL_ARGS_END
};

static int run_block_resize(struct co *co, struct ctl_call *call)
{
    const struct resize_args *a = call->args;
    struct graph_node *n;
    int r = ctl_target(call, a->device, a->node_name, &n);
    if (r)
        return r;
    if (graph_read_only(n))
        return byre_fail(&call->err, READ_ONLY, "node '%s' is read-only", graph_node_name(n));
    return graph_resize(co, n, a->size, FMT_PREALLOC_OFF, &call->err);
}

const struct ctl_command ctl_cmd_query_block = { "query-block", NULL, 0, run_query_block, .ret = &ctl_ret_any, .doc = "Lists devices and the images in them." };
const struct ctl_command ctl_cmd_query_named_block_nodes = { "query-named-block-nodes", nodes_rows, sizeof(struct nodes_args), run_query_named_block_nodes,
    .ret = &ctl_ret_any, .doc = "Lists nodes with their images." };
const struct ctl_command ctl_cmd_block_resize = { "block_resize", resize_rows, sizeof(struct resize_args), run_block_resize,
    .doc = "Changes the size of a disk that is in use." };
