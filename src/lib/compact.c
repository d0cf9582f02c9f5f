/* SPDX-License-Identifier: MIT
 *
 * compact.c: compaction of an image as a job.
 *
 * Purpose      Hands a compaction to the format, and its progress and result to the caller.
 * Owns         struct compact_job
 * Invariants   I1 the job reports success when what it changed is durable
 * Concurrency  the job runs on the home loop
 * Failure      -ENOTSUP: the format has none
 * Tests        tests/cli/compact_test.py
 */
#include "base/list.h"
#include "byre/compact.h"
#include "lib/lib_priv.h"

struct compact_job {
    struct byre_job job;
    struct byre_image *image;
    struct byre_compact_opts o;
    struct byre_compact_result *result;
};

static void on_progress(void *arg, uint64_t done, uint64_t total)
{
    struct compact_job *c = arg;
    lib_job_progress(&c->job, done, total);
}

static int on_step(struct co *co, void *arg, uint64_t bytes)
{
    (void)co;
    (void)bytes;
    return atomic_load(&((struct compact_job *)arg)->job.cancel_wanted) ? -ECANCELED : 0;
}

static void give_result(struct compact_job *c, const struct fmt_compact_result *r)
{
    struct byre_compact_result *to = c->result, full = byre_compact_result_init();
    full.bytes_moved = r->moved;
    full.bytes_zeroed = r->zeroed;
    full.length_before = r->length_before;
    full.length_after = r->length_after;
    full.allocated_before = r->allocated_before;
    full.allocated_after = r->allocated_after;
    size_t size = to->struct_size;
    memcpy(to, &full, size < sizeof full ? size : sizeof full);
    to->struct_size = size;
}

static int compact_run(struct co *co, struct byre_job *job, struct byre_err *err)
{
    struct compact_job *c = CONTAINER_OF(job, struct compact_job, job);
    struct fmt_image *im = graph_image(c->image->node);
    struct fmt_compact_result result = { 0 };
    struct fmt_compact_opts o = { .look_for_zeros = !(c->o.flags & BYRE_COMPACT_KEEP_ZEROS), .progress = on_progress, .step = on_step, .arg = c };
    if (!im->ops->compact)
        return byre_fail(err, NOT_SUPPORTED, "%s: files of the format %s have nothing to compact", graph_filename(c->image->node), im->ops->name);
    int r = im->ops->compact(co, im, &o, &result, err);
    if (r == 0) {
        r = graph_flush(co, c->image->node);             /* I1 */
        if (r)
            return byre_fail_code(err, IO, r, "%s: what was moved could not be made durable", graph_filename(c->image->node));
    }
    give_result(c, &result);
    return r;
}

static void compact_fini(struct byre_job *job)
{
    struct compact_job *c = CONTAINER_OF(job, struct compact_job, job);
    atomic_fetch_sub(&c->image->users, 1);
}

int byre_compact_start(struct byre_image *image, const struct byre_compact_opts *opts, struct byre_compact_result *result,
                       struct byre_job **ret_job, struct byre_err *err)
{
    struct byre_compact_opts o;
    int r = lib_take_opts(&o, sizeof o, opts, err);
    if (r)
        return r;
    if (o.flags & ~(unsigned)BYRE_COMPACT_KEEP_ZEROS || image->check_mode)
        return byre_fail(err, BAD_ARGUMENT, "a compaction needs an image that is not opened for checking, and flags that are known");
    if (graph_read_only(image->node))
        return byre_fail(err, READ_ONLY, "%s: a compaction needs the image open for writing", byre_filename(image));
    struct compact_job *c = calloc(1, sizeof *c);
    if (!c)
        return byre_fail(err, NOMEM, "no memory for a compaction");
    c->job.run = compact_run;
    c->job.fini = compact_fini;
    c->image = image;
    c->o = o;
    c->result = result;
    atomic_fetch_add(&image->users, 1);
    return lib_job_start(&c->job, image->ctx, ret_job, err);
}
