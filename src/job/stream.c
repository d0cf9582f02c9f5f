/* SPDX-License-Identifier: MIT
 *
 * stream.c: stream as a job.
 *
 * Purpose     Which ranges are taken up, and what follows.
 * Owns        struct stream, until the job is forgotten; references of the image and of the layers below it.
 * Invariants  stream.h. Further: S1  The layers below do not change: users keep writers away from each of them that is not kept.
 *             S2  Zeros are taken up as well where the base would show something else, also behind the end of a layer.
 * Order       copy | flush of the image | backing name in one sector | event (J3, J5).
 * Concurrency Home loop; the copy on all loops, beside guests' requests (graph/absent.c).
 * Failure     What was taken up stays; the image shows what it showed.
 * Tests       tests/cli/live_commit_test.py, tests/kill/test_kill_jobs.py, tests/crash/test_chain_crash.py
 */
#include "job/stream.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "graph/reach.h"
#include "graph/runtime.h"
#include "job/relink.h"
#include "job/top.h"


struct stream {
    struct job_copying how;
    struct graph_node *node, *base;      /* the node has a reference of ours, and so has the layer below it */
    struct graph_node *below;
    char *who, *name;
    unsigned workers;
    bool frozen;                         /* edges down to the base stay */
    struct graph_user use;
    struct job_top filter;               /* over what the user calls the image */
    uint64_t length;                     /* of the image, when it was copied */
    struct copy_result result;
};

/* ---- the work ---- */

static int take_up(struct co *co, struct stream *s, struct byre_err *err)
{
    struct copy_part part = { s->node, 0, graph_length(s->node) };
    uint64_t granule = graph_image(s->node)->granule;
    struct copy_job cj = {
        .parts = &part, .part_count = 1, .target = s->node, .below = s->below, .above = s->base, .workers = s->workers,
        .flags = COPY_OUT_OF_ORDER | COPY_BELOW | COPY_ABSENT | COPY_WORK | (s->base ? 0 : COPY_TARGET_ZERO),
        .min_sparse = job_grain(granule), .progress = job_copying_progress, .arg = &s->how,
        .hooks = job_copying_hooks(&s->how) };
    s->length = part.len;
    int r = job_copying_count(co, &s->how, &cj, err);
    if (!r)
        r = copy_run(co, &cj, &s->result, err);
    if (!r)
        job_copying_all_done(&s->how);
    return r;
}

static int run(struct co *co, struct job *job, struct byre_err *err)
{
    struct stream *s = job->opaque;
    s->how.job = job;
    if (s->below == s->base)
        return 0;
    if (s->base)
        graph_stand_alone(s->node, true);        /* S2 */
    int r = take_up(co, s, err);
    if (!r && s->result.left_out)
        r = byre_fail_code(err, IO, -EIO, "%s: %" PRIu64 " bytes below it could not be read, so it keeps its backing file", graph_filename(s->node), s->result.left_out);
    return r;
}

/* ---- the end ---- */

static void thaw(struct stream *s)
{
    if (s->frozen)
        graph_thaw(s->node, s->base);
    s->frozen = false;
    if (s->node)
        graph_promise_end(graph_of(s->node), s);
}

static void release(struct co *co, struct stream *s)
{
    job_top_end(co, &s->filter);
    thaw(s);
    graph_user_remove(&s->use);
    if (s->node) {
        graph_stand_alone(s->node, false);
        graph_writer_gone(co, s->node);
    }
    int r = s->below ? graph_close(co, s->below) : 0;
    (void)r;                             /* it is open for reading */
    r = s->node ? graph_close(co, s->node) : 0;
    (void)r;                             /* somebody else has it open, too, or it was made durable above */
    s->node = s->below = NULL;
}

static int switch_chain(struct co *co, struct stream *s, struct byre_err *err)
{
    struct relink *l = NULL;
    const struct relink_what w = { .n = s->node, .to = s->base, .name = { s->name, graph_name_format(s->base), 0 } };
    graph_edges_hold(co, graph_of(s->node));     /* nobody comes between */
    thaw(s);
    int r = relink_new(&l, err);
    if (!r)
        r = relink_add(co, l, &w, err);
    if (!r)
        r = relink_run(co, l, s->length, err);
    relink_free(co, l);
    graph_edges_let(co, graph_of(s->node));
    return r;
}

static int finish(struct co *co, struct job *job, struct byre_err *err)
{
    struct stream *s = job->opaque;
    int r = s->below == s->base ? 0 : switch_chain(co, s, err);
    if (!r)
        release(co, s);
    return r;
}

static void give_up(struct co *co, struct job *job) { release(co, job->opaque); }

static void stream_free(struct stream *s)
{
    free(s->name);
    free(s->who);
    free(s);
}

static void fini(struct job *job) { stream_free(job->opaque); }

const struct job_kind job_stream_kind = { .type = "stream", .run = run, .commit = finish, .abort = give_up, .has_speed = true, .block_job = true, .fini = fini };

/* ---- the beginning ---- */

static int choose_name(struct co *co, const struct job_stream_opts *o, struct stream *s, struct byre_err *err)
{
    if (!s->base)
        return 0;
    if (!o->backing_file)
        return graph_name_of(co, s->node, graph_overlay_in(s->node, s->base), &s->name, err);
    s->name = strdup(o->backing_file);
    return s->name ? 0 : byre_fail(err, NOMEM, "no memory for a file name");
}

/* Nobody writes to the image but those who do already, and nobody changes its length. */
static int use_node(struct co *co, struct stream *s, struct byre_err *err)
{
    const struct graph_name name = { s->name, graph_name_format(s->base), 0 };
    int r = graph_make_header_writable(co, s->node, err);
    if (!r)
        r = graph_rebase_check(co, s->node, s->base, &name, err);
    s->use = (struct graph_user){ .who = s->who, .perm = STOR_PERM_WRITE_UNCHANGED, .shared = STOR_PERM_ALL & ~(unsigned)STOR_PERM_RESIZE };
    if (!r)
        r = graph_user_add(s->node, &s->use, err);
    if (!r)
        r = graph_freeze(s->node, s->base, err);
    s->frozen = !r;
    return r || s->below == s->base ? r : graph_promise(s->node, s, 1, err);
}

static int begin(struct co *co, const struct job_stream_opts *o, struct stream *s, struct byre_err *err)
{
    s->who = strdup(o->job.id ? o->job.id : "stream");
    if (!s->who)
        return byre_fail(err, NOMEM, "no memory for a stream");
    int r = choose_name(co, o, s, err);
    return r ? r : use_node(co, s, err);
}

static int check(const struct job_stream_opts *o, struct byre_err *err)
{
    int r = graph_need_image(o->node, "a stream", err);
    if (!r)
        r = graph_need_root(o->node, err);
    if (r)
        return r;
    if (o->node != o->disk && !graph_lies_above(o->disk, o->node))
        return byre_fail(err, BAD_ARGUMENT, "node '%s' is no layer below '%s'", graph_node_name(o->node), graph_node_name(o->disk));
    if (o->base && !graph_lies_above(graph_skip_filters(o->node), o->base))
        return byre_fail(err, BAD_ARGUMENT, "node '%s' is no layer below '%s'", graph_node_name(o->base), graph_node_name(o->node));
    if (!o->base && o->backing_file)
        return byre_fail(err, BAD_ARGUMENT, "backing file specified, but streaming the entire chain");
    return 0;
}

static int start(struct co *co, struct jobs *js, const struct job_stream_opts *o, struct job **ret_job, struct byre_err *err)
{
    int r = check(o, err);
    if (r)
        return r;
    struct graph_node *image = graph_skip_filters(o->node);
    struct stream *s = calloc(1, sizeof *s);
    struct job_opts jo = o->job;
    if (!s)
        return byre_fail(err, NOMEM, "no memory for a stream");
    *s = (struct stream){ .how = { .on_read = o->on_error, .on_write = o->on_error, .leave = true }, .node = image, .base = o->base,
                          .below = graph_backing(image), .workers = o->workers };
    graph_ref(s->node);
    if (s->below)
        graph_ref(s->below);
    jo.opaque = s;
    jo.nodes[0] = s->node;
    r = begin(co, o, s, err);
    if (!r)
        r = job_top_put(co, &s->filter, o->node, GRAPH_STREAM_TOP, o->filter_node_name, err);
    if (!r)
        r = job_start(js, &job_stream_kind, &jo, ret_job, err);
    if (r) {
        release(co, s);
        stream_free(s);
    }
    return r;
}

/* The chain stays as it is from the look at it until it is frozen. */
int job_stream_start(struct co *co, struct jobs *js, const struct job_stream_opts *o, struct job **ret_job, struct byre_err *err)
{
    struct graph_node *const named[] = { o->node, o->disk, o->base };
    graph_chain_hold(co, named, 3);
    int r = start(co, js, o, ret_job, err);
    graph_chain_let(co, named, 3);
    return r;
}
