/* SPDX-License-Identifier: MIT
 *
 * cmd_chain.c: block-commit and block-stream (FEATURES 9.042, 9.044 to 9.059, G.077).
 *
 * Purpose      Which layers are meant, and the job.
 * Owns         nothing
 * Invariants   none
 * Concurrency  home loop
 * Failure      as ctl_priv.h
 * Tests        tests/cli/live_commit_test.py
 */
#include <string.h>

#include "ctl/ctl_priv.h"
#include "graph/live.h"
#include "job/live_commit.h"
#include "job/mirror.h"
#include "job/stream.h"

struct chain_args {
    const char *job_id, *device, *base, *base_node, *top, *top_node, *bottom, *backing_file, *filter_node_name;
    uint64_t speed;
    int on_error;
    bool has_on_error, backing_mask_protocol, drop_source, auto_finalize, has_auto_finalize, auto_dismiss, has_auto_dismiss;
};

static const char *const on_error_words[] = { "report", "ignore", "enospc", "stop", "auto", NULL };
static const struct ctl_shape on_error_shape = { .name = "BlockdevOnError", .words = on_error_words };

#define COMMON_ROWS \
    { "job-id", CTL_STR, false, CTL_AT(struct chain_args, job_id), .doc = "Name of the job; the device's unless given." }, \
    { "base-node", CTL_STR, false, CTL_AT(struct chain_args, base_node), .doc = "Node of the layer that stays." }, \
    { "base", CTL_STR, false, CTL_AT(struct chain_args, base), .doc = "The same by the name of its file. Node names are better." }, \
    { "backing-file", CTL_STR, false, CTL_AT(struct chain_args, backing_file), .doc = "What is recorded as the name of the backing file, as it stands." }, \
    { "backing-mask-protocol", CTL_BOOL, false, CTL_AT(struct chain_args, backing_mask_protocol), .doc = "A protocol is recorded as the format raw. It always is." }, \
    { "speed", CTL_SIZE, false, CTL_AT(struct chain_args, speed), .doc = "Bytes of data per second; 0: no limit." }, \
    { "on-error", CTL_ENUM, false, CTL_AT_HAS(struct chain_args, on_error), .of = &on_error_shape, .doc = "What becomes of the job when a request fails." }, \
    { "filter-node-name", CTL_STR, false, CTL_AT(struct chain_args, filter_node_name), .doc = "Must be free. No filter is needed, and none appears." }, \
    { "auto-finalize", CTL_BOOL, false, CTL_AT_HAS(struct chain_args, auto_finalize) }, \
    { "auto-dismiss", CTL_BOOL, false, CTL_AT_HAS(struct chain_args, auto_dismiss) }

static const struct ctl_arg commit_rows[] = {
    { "device", CTL_STR, true, CTL_AT(struct chain_args, device), .doc = "The disk, by device or node." },
    { "top-node", CTL_STR, false, CTL_AT(struct chain_args, top_node), .doc = "Node of the layer that goes down." },
    { "top", CTL_STR, false, CTL_AT(struct chain_args, top), .doc = "The same by the name of its file. Node names are better." },
    { "drop-source", CTL_BOOL, false, CTL_AT(struct chain_args, drop_source), .doc = "The layers above the base give their space back as it goes. Those "
      "between top and base are no disks any more from the beginning." },
    COMMON_ROWS,
    CTL_ARGS_END
};
static const struct ctl_arg stream_rows[] = {
    { "device", CTL_STR, true, CTL_AT(struct chain_args, device), .doc = "The image that takes up what lies below it, by device or node." },
    { "bottom", CTL_STR, false, CTL_AT(struct chain_args, bottom), .doc = "Node of the last layer that is taken up, instead of a base." },
    COMMON_ROWS,
    CTL_ARGS_END
};

/* ---- which layer? ---- */

static int node_of(struct ctl_call *call, const char *name, struct graph_node **ret)
{
    *ret = graph_find(call->c->env.graph, name);
    return *ret ? 0 : byre_fail(&call->err, NOT_FOUND, "Cannot find device='' nor node-name='%s'", name);
}

/* By node or by file; NULL: neither is given. what: "base" */
static int layer_of(struct co *co, struct ctl_call *call, struct graph_node *disk, const char *file, const char *node, const char *what, struct graph_node **ret)
{
    *ret = NULL;
    if (file && node)
        return byre_fail(&call->err, BAD_ARGUMENT, "'%s' and '%s-node' are mutually exclusive", what, what);
    if (node)
        return node_of(call, node, ret);
    if (!file)
        return 0;
    *ret = strcmp(file, graph_filename(disk)) ? graph_layer(co, disk, file) : disk;
    return *ret ? 0 : byre_fail(&call->err, NOT_FOUND, "Can't find '%s' in the backing chain", file);
}

static struct job_opts opts_of(const struct chain_args *a)
{
    return (struct job_opts){ .id = a->job_id ? a->job_id : a->device, .speed = a->speed, .keep_pending = a->has_auto_finalize && !a->auto_finalize,
                              .keep_concluded = a->has_auto_dismiss && !a->auto_dismiss };
}

static enum job_on_error on_error_of(const struct chain_args *a)
{
    static const enum job_on_error words[] = { JOB_ON_ERROR_REPORT, JOB_ON_ERROR_IGNORE, JOB_ON_ERROR_ENOSPC, JOB_ON_ERROR_STOP, JOB_ON_ERROR_REPORT };
    return a->has_on_error ? words[a->on_error] : JOB_ON_ERROR_REPORT;
}

/* The disk; what every such command refuses. */
static int begin(struct ctl_call *call, const struct chain_args *a, struct graph_node **ret_disk)
{
    if (!call->c->env.jobs)
        return byre_fail(&call->err, NOT_SUPPORTED, "there are no jobs here");
    if (a->filter_node_name && graph_find(call->c->env.graph, a->filter_node_name))
        return byre_fail(&call->err, EXISTS, "there is a node '%s' already", a->filter_node_name);
    *ret_disk = ctl_named(call, a->device);
    return *ret_disk ? 0 : call->err.code;
}

/* ---- commands ---- */

/* The active layer: as a mirror, which is completed by block-job-complete (FEATURES 9.043). */
static int commit_active(struct co *co, struct ctl_call *call, const struct chain_args *a, const struct job_live_commit_opts *c)
{
    struct job_mirror_opts o = { .source = c->disk, .target = c->base, .active_commit = true, .on_source_error = c->on_error, .on_target_error = c->on_error,
                                 .job = c->job };
    struct job *job;
    if (a->drop_source)
        return byre_fail(&call->err, NOT_SUPPORTED, "'drop-source' is for layers below the disk; '%s' itself is written while it is committed", a->device);
    if (a->backing_file)
        return byre_fail(&call->err, BAD_ARGUMENT, "'backing-file' is not possible when '%s' itself is committed: no image names it", a->device);
    for (struct graph_node *n = graph_backing(o.source); !c->base && n; n = graph_backing(n))
        o.target = n;
    if (!o.target)
        return byre_fail(&call->err, BAD_ARGUMENT, "'%s' has no backing image that it could be committed into", a->device);
    return job_mirror_start(co, call->c->env.jobs, &o, &job, &call->err);
}

static int run_block_commit(struct co *co, struct ctl_call *call)
{
    const struct chain_args *a = call->args;
    struct job_live_commit_opts o = { .backing_file = a->backing_file, .on_error = on_error_of(a), .drop_source = a->drop_source, .job = opts_of(a) };
    struct job *job;
    int r = begin(call, a, &o.disk);
    if (!r)
        r = layer_of(co, call, o.disk, a->top, a->top_node, "top", &o.top);
    if (!r)
        r = layer_of(co, call, o.disk, a->base, a->base_node, "base", &o.base);
    if (r)
        return r;
    if (!o.top || o.top == o.disk)
        return commit_active(co, call, a, &o);
    return job_live_commit_start(co, call->c->env.jobs, &o, &job, &call->err);
}

static int run_block_stream(struct co *co, struct ctl_call *call)
{
    const struct chain_args *a = call->args;
    struct job_stream_opts o = { .backing_file = a->backing_file, .on_error = on_error_of(a), .job = opts_of(a) };
    struct job *job;
    int r = begin(call, a, &o.node);
    o.disk = o.node;
    if (!r)
        r = layer_of(co, call, o.node, a->base, a->base_node, "base", &o.base);
    if (!r && a->bottom) {
        struct graph_node *bottom;
        if (o.base)
            return byre_fail(&call->err, BAD_ARGUMENT, "'bottom' and 'base' or 'base-node' are mutually exclusive");
        r = node_of(call, a->bottom, &bottom);
        if (!r && !graph_lies_below(o.node, bottom))
            return byre_fail(&call->err, BAD_ARGUMENT, "node '%s' is no layer below '%s'", a->bottom, a->device);
        o.base = r ? NULL : graph_backing(bottom);
    }
    return r ? r : job_stream_start(co, call->c->env.jobs, &o, &job, &call->err);
}

const struct ctl_command ctl_cmd_block_commit = { "block-commit", commit_rows, sizeof(struct chain_args), run_block_commit,
    .doc = "Copies what a layer below the disk and those between hold into a base below it, and lets the images above name the base instead. The disk stays in use. "
           "A part that was copied when the job fails is harmless; a new job does the rest." };
const struct ctl_command ctl_cmd_block_stream = { "block-stream", stream_rows, sizeof(struct chain_args), run_block_stream,
    .doc = "Takes up into an image what layers below it hold, and lets it name the layer below those instead, or none. The disk stays in use." };
