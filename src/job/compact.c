/* SPDX-License-Identifier: MIT
 *
 * compact.c: ops->compact of a format as a job.
 *
 * Purpose      Pause points, speed, progress and the result around the format's own work.
 * Owns         struct compact, until the job is forgotten
 * Invariants   none
 * Order        the format's; what was moved is durable when the job concludes well
 * Concurrency  home loop
 * Failure      as the format; a cancelled compaction has moved what it has moved
 * Tests        tests/cli/compact_test.py, src/fmt/qcow2/q2_compact_test.c
 */
#include "job/compact.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"

struct compact {
    struct job *job;
    struct graph_node *node;
    struct graph_user use;               /* of node, with a reference, until the job has ended: it stays open, and nobody reopens it */
    bool look_for_zeros;
    struct fmt_compact_result result;
};

static void on_progress(void *arg, uint64_t done, uint64_t total) { job_progress(((struct compact *)arg)->job, done, total); }

static int on_step(struct co *co, void *arg, uint64_t bytes) { return job_spend(co, ((struct compact *)arg)->job, bytes); }

static int compact_run(struct co *co, struct job *job, struct byre_err *err)
{
    struct compact *c = job->opaque;
    struct fmt_image *im = graph_image(c->node);
    struct fmt_compact_opts o = { .look_for_zeros = c->look_for_zeros, .progress = on_progress, .step = on_step, .arg = c };
    c->job = job;
    return im->ops->compact(co, im, &o, &c->result, err);
}

static void leave(struct co *co, struct compact *c)
{
    graph_user_remove(&c->use);
    (void)graph_close(co, c->node);      /* it was flushed when that was promised */
}

static int compact_commit(struct co *co, struct job *job, struct byre_err *err)
{
    struct compact *c = job->opaque;
    int r = graph_flush(co, c->node);
    if (!r)
        leave(co, c);
    return r ? byre_fail_code(err, IO, r, "%s: what was moved could not be made durable: %s", graph_filename(c->node), strerror(-r)) : 0;
}

static void compact_abort(struct co *co, struct job *job) { leave(co, job->opaque); }

static void compact_fini(struct job *job) { free(job->opaque); }

const struct job_kind job_compact_kind = { .type = "x-byre-compact", .run = compact_run, .commit = compact_commit, .abort = compact_abort, .has_speed = true, .fini = compact_fini };

int job_compact_start(struct jobs *js, const struct job_compact_opts *o, struct job **ret_job, struct byre_err *err)
{
    if (!graph_format(o->node)->compact)
        return byre_fail(err, NOT_SUPPORTED, "%s: files of the format %s have nothing to compact", graph_filename(o->node), graph_format(o->node)->name);
    if (graph_read_only(o->node))
        return byre_fail(err, READ_ONLY, "%s: is read-only here", graph_filename(o->node));
    struct compact *c = calloc(1, sizeof *c);
    if (!c)
        return byre_fail(err, NOMEM, "no memory for a compaction");
    c->node = o->node;
    c->look_for_zeros = o->look_for_zeros;
    c->use = (struct graph_user){ .who = job_compact_kind.type, .perm = STOR_PERM_READ | STOR_PERM_WRITE_UNCHANGED, .shared = STOR_PERM_ALL };
    struct job_opts jo = o->job;
    jo.opaque = c;
    jo.nodes[0] = o->node;
    int r = graph_user_add(c->node, &c->use, err);
    if (!r)
        r = job_start(js, &job_compact_kind, &jo, ret_job, err);
    if (r < 0) {
        graph_user_remove(&c->use);
        free(c);
        return r;
    }
    graph_ref(c->node);                  /* the job's coroutine has not run yet */
    return 0;
}

const struct fmt_compact_result *job_compact_result(const struct job *job)
{
    ASSERT(job->kind == &job_compact_kind);
    return &((const struct compact *)job->opaque)->result;
}
