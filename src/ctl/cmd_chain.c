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

#include "ctl/cmd_mirror.h"
#include "ctl/guard.h"
#include "ctl/job_args.h"
#include "graph/live.h"
#include "graph/reach.h"
#include "graph/runtime.h"
#include "job/live_commit.h"
#include "job/mirror.h"
#include "job/stream.h"

struct chain_args {
    struct ctl_job_args job;
    const char *device, *base, *base_node, *top, *top_node, *bottom, *backing_file;
    uint64_t deadline, max_slowdown, max_hold_ms;
    int on_error, copy_mode, converge;
    bool has_max_hold_ms, backing_mask_protocol, drop_source, force;
};

#define COMMON_ROWS \
    { "base-node", CTL_STR, false, CTL_AT(struct chain_args, base_node), .doc = "Node of the layer that stays." }, \
    { "base", CTL_STR, false, CTL_AT(struct chain_args, base), .doc = "The same by the name of its file. Node names are better." }, \
    { "backing-file", CTL_STR, false, CTL_AT(struct chain_args, backing_file), .doc = "What is recorded as the name of the backing file, as it stands." }, \
    { "backing-mask-protocol", CTL_BOOL, false, CTL_AT(struct chain_args, backing_mask_protocol), .doc = "A protocol is recorded as the format raw. It always is." }, \
    CTL_ON_ERROR_ROW("on-error", struct chain_args, on_error, .doc = "What becomes of the job when a request fails."), \
    CTL_FILTER_NAME_ROW(struct chain_args), \
    CTL_JOB_ROWS(struct chain_args)

static const struct ctl_arg commit_rows[] = {
    { "device", CTL_STR, true, CTL_AT(struct chain_args, device), .doc = "The disk, by device or node." },
    { "top-node", CTL_STR, false, CTL_AT(struct chain_args, top_node), .doc = "Node of the layer that goes down." },
    { "top", CTL_STR, false, CTL_AT(struct chain_args, top), .doc = "The same by the name of its file. Node names are better." },
    { "drop-source", CTL_BOOL, false, CTL_AT(struct chain_args, drop_source), .doc = "The layers above the base give their space back as it goes. Those "
      "between top and base are no disks any more from the beginning." },
    { "force", CTL_BOOL, false, CTL_AT(struct chain_args, force), .doc = "Do it even though an image outside the chain is known to depend on the base, or on a "
      "layer between." },
    CTL_CONVERGE_ROWS(struct chain_args),
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
    *ret = ctl_node(call, name);
    return *ret ? 0 : call->err.code;
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
    return *ret ? ctl_keep(call, *ret) : byre_fail(&call->err, NOT_FOUND, "Can't find '%s' in the backing chain", file);
}

/* The disk; what every such command refuses. */
static int begin(struct ctl_call *call, const struct chain_args *a, struct graph_node **ret_disk)
{
    int r = ctl_job_may(call, &a->job);
    if (r)
        return r;
    *ret_disk = ctl_named(call, a->device);
    return *ret_disk ? 0 : call->err.code;
}

/* ---- commands ---- */

/* The active layer: as a mirror, which is completed by block-job-complete (FEATURES 9.043). */
static int commit_active(struct co *co, struct ctl_call *call, const struct chain_args *a, const struct job_live_commit_opts *c)
{
    struct job_mirror_opts o = { .source = c->disk, .target = c->base, .active_commit = true, .on_source_error = c->on_error, .on_target_error = c->on_error,
                                 .blocking = a->copy_mode == 1, .converge = (enum converge_mode)a->converge, .deadline_s = a->deadline,
                                 .max_slowdown = (unsigned)a->max_slowdown, .max_hold_ms = a->max_hold_ms, .has_max_hold = a->has_max_hold_ms,
                                 .filter_node_name = a->job.filter_node_name, .job = c->job };
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

/* Which layers a commit is about: o->disk, o->top, o->base. */
static int find_layers(struct co *co, struct ctl_call *call, const struct chain_args *a, struct job_live_commit_opts *o)
{
    int r = begin(call, a, &o->disk);
    if (!r)
        r = layer_of(co, call, o->disk, a->top, a->top_node, "top", &o->top);
    if (!r)
        r = layer_of(co, call, o->disk, a->base, a->base_node, "base", &o->base);
    bool steered = a->copy_mode || a->converge || a->deadline || a->max_slowdown || a->has_max_hold_ms;
    if (!r && steered && o->top && o->top != o->disk)
        return byre_fail(&call->err, BAD_ARGUMENT, "'copy-mode', 'converge', 'deadline', 'max-slowdown' and 'max-hold-ms' are for a commit of the disk itself: "
                         "nothing is written to '%s' meanwhile", graph_node_name(o->top));
    return r;
}

/* From the top to the base, which may be the end of the chain. */
static struct ctl_guard committed(const struct job_live_commit_opts *o)
{
    struct graph_node *top = graph_skip_filters(o->top ? o->top : o->disk), *last = o->base;
    for (struct graph_node *n = top; !last && n; n = graph_skip_filters(graph_backing(n)))
        if (!graph_skip_filters(graph_backing(n)))
            last = n;
    return (struct ctl_guard){ o->disk, top, last, false };
}

static bool commits_something(const struct ctl_guard *g)
{
    return g->last != g->from && graph_backing(g->from) && graph_lies_above(g->from, g->last);
}

/* Its images must not change under others. Those above the base are of no use afterwards. */
static int guard_commit(struct co *co, struct ctl_call *call, const struct chain_args *a, const struct job_live_commit_opts *o)
{
    struct ctl_guard taken = committed(o);
    if (!commits_something(&taken))
        return 0;                                /* the job says what is wrong */
    ctl_guard_committing(co, call->c, &taken, ctl_job_opts(&a->job, a->device).id);
    struct job_live_commit_opts again = { 0 };
    int r = find_layers(co, call, a, &again);
    if (!r && (again.disk != o->disk || again.top != o->top || again.base != o->base))
        r = byre_fail(&call->err, BUSY, "the chain of '%s' has changed in this moment", a->device);
    if (r)
        return r;
    struct ctl_guard g = committed(&again);      /* its layers may be others by now */
    if (!commits_something(&g))
        return 0;
    g.force = a->force;
    g.from = a->drop_source ? g.from : graph_backing(g.from);
    return ctl_guard(co, call, &g);
}

static int run_block_commit(struct co *co, struct ctl_call *call)
{
    const struct chain_args *a = call->args;
    struct job_live_commit_opts o = { .backing_file = a->backing_file, .on_error = ctl_on_error(a->on_error), .drop_source = a->drop_source,
                                      .filter_node_name = a->job.filter_node_name, .job = ctl_job_opts(&a->job, a->device) };
    struct job *job;
    int r = find_layers(co, call, a, &o);
    if (!r)
        r = guard_commit(co, call, a, &o);
    if (!r)
        r = find_layers(co, call, a, &o);        /* time has passed */
    if (!r)
        r = !o.top || o.top == o.disk ? commit_active(co, call, a, &o) : job_live_commit_start(co, call->c->env.jobs, &o, &job, &call->err);
    if (r)
        ctl_guard_not_started(call->c, o.job.id);
    return r;
}

static int run_block_stream(struct co *co, struct ctl_call *call)
{
    const struct chain_args *a = call->args;
    struct job_stream_opts o = { .backing_file = a->backing_file, .on_error = ctl_on_error(a->on_error), .filter_node_name = a->job.filter_node_name,
                                 .job = ctl_job_opts(&a->job, a->device) };
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
        if (!r && !graph_lies_above(o.node, bottom))
            return byre_fail(&call->err, BAD_ARGUMENT, "node '%s' is no layer below '%s'", a->bottom, a->device);
        o.base = r ? NULL : graph_backing(bottom);
    }
    return r ? r : job_stream_start(co, call->c->env.jobs, &o, &job, &call->err);
}

const struct ctl_command ctl_cmd_block_commit = { "block-commit", commit_rows, sizeof(struct chain_args), run_block_commit,
    .doc = "Copies what a layer below the disk and those between hold into a base below it, and lets the images above name the base instead. The disk stays in use. "
           "A part that was copied when the job fails is harmless; a new job does the rest. A disk that is committed itself, and becomes shorter meanwhile, keeps that length: "
           "the base is cut when the disk goes over to it, unless it was longer from the beginning." };
const struct ctl_command ctl_cmd_block_stream = { "block-stream", stream_rows, sizeof(struct chain_args), run_block_stream,
    .doc = "Takes up into an image what layers below it hold, and lets it name the layer below those instead, or none. The disk stays in use." };
