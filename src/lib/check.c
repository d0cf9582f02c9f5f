/* SPDX-License-Identifier: MIT
 *
 * check.c: consistency check and repair as a job; the same beside requests.
 *
 * Purpose      Hands a check to the format, and its findings, progress and counts to the caller.
 * Owns         struct check_job
 * Invariants   I1 a repair that changed something is flushed before the job reports success
 * Concurrency  the job runs on the home loop; findings are told from there
 * Failure      -ENOTSUP: the format has no check
 * Tests        tests/cli/check_test.py, lib_test.c
 */
#include "base/list.h"
#include "lib/lib_priv.h"

struct check_job {
    struct byre_job job;
    struct byre_image *image;
    struct byre_check_opts o;
    struct byre_check_result *result;
};

static void on_finding(void *arg, bool fixed, const char *id, const char *text)
{
    struct check_job *c = arg;
    if (c->o.finding)
        c->o.finding(c->o.arg, fixed, id, text);
}

static void on_progress(void *arg, uint64_t done, uint64_t total)
{
    struct check_job *c = arg;
    lib_job_progress(&c->job, done, total);
}

static void give_result(struct check_job *c, const struct fmt_check_result *r)
{
    struct byre_check_result *to = c->result, full = byre_check_result_init();
    full.corruptions = r->corruptions;
    full.leaks = r->leaks;
    full.check_errors = r->check_errors;
    full.corruptions_fixed = r->corruptions_fixed;
    full.leaks_fixed = r->leaks_fixed;
    full.has_stats = r->has_stats;
    full.total_clusters = r->total_clusters;
    full.allocated_clusters = r->allocated_clusters;
    full.fragmented_clusters = r->fragmented_clusters;
    full.compressed_clusters = r->compressed_clusters;
    full.image_end_offset = r->image_end_offset;
    size_t size = to->struct_size;
    memcpy(to, &full, size < sizeof full ? size : sizeof full);
    to->struct_size = size;
}

static int on_step(struct co *co, void *arg)
{
    struct check_job *c = arg;
    (void)co;
    return atomic_load(&c->job.cancel_wanted) ? -ECANCELED : 0;
}

static int check_run(struct co *co, struct byre_job *job, struct byre_err *err)
{
    struct check_job *c = CONTAINER_OF(job, struct check_job, job);
    struct fmt_image *im = graph_image(c->image->node);
    struct fmt_check_result result = { 0 };
    struct fmt_check_opts o = { .finding = on_finding, .arg = c, .progress = on_progress, .step = c->o.flags ? NULL : on_step,       /* a repair is never left half done */
        .fix = (c->o.flags & BYRE_FIX_LEAKS ? FMT_FIX_LEAKS : 0) | (c->o.flags & BYRE_FIX_ERRORS ? FMT_FIX_ERRORS : 0) };
    if (!im->ops->check)
        return byre_fail(err, NOT_SUPPORTED, "%s: the format %s has no consistency check", graph_filename(c->image->node), im->ops->name);
    int r = im->ops->check(co, im, &o, &result, err);
    if (!r && o.fix && (result.corruptions_fixed || result.leaks_fixed)) {
        r = graph_flush(co, c->image->node);
        if (r)
            return byre_fail_code(err, IO, r, "%s: what was repaired could not be made durable", graph_filename(c->image->node));
    }
    if (!r)
        give_result(c, &result);
    return r;
}

static int scrub_run(struct co *co, struct byre_job *job, struct byre_err *err)
{
    struct check_job *c = CONTAINER_OF(job, struct check_job, job);
    struct fmt_image *im = graph_image(c->image->node);
    struct fmt_check_result result = { 0 };
    struct fmt_check_opts o = { .finding = on_finding, .arg = c, .progress = on_progress, .step = on_step, .fix = c->o.flags & BYRE_FIX_LEAKS ? FMT_FIX_LEAKS : 0 };
    if (!im->ops->scrub)
        return byre_fail(err, NOT_SUPPORTED, "%s: the format %s has no check of a disk in use", graph_filename(c->image->node), im->ops->name);
    int r = im->ops->scrub(co, im, &o, &result, err);
    if (!r)
        give_result(c, &result);
    return r;
}

static void check_fini(struct byre_job *job)
{
    struct check_job *c = CONTAINER_OF(job, struct check_job, job);
    atomic_fetch_sub(&c->image->users, 1);
}

static int start(struct byre_image *image, const struct byre_check_opts *o, int (*run)(struct co *co, struct byre_job *job, struct byre_err *err),
                 struct byre_check_result *result, struct byre_job **ret_job, struct byre_err *err)
{
    struct check_job *c = calloc(1, sizeof *c);
    if (!c)
        return byre_fail(err, NOMEM, "no memory for a check");
    c->job.run = run;
    c->job.fini = check_fini;
    c->image = image;
    c->o = *o;
    c->result = result;
    atomic_fetch_add(&image->users, 1);
    return lib_job_start(&c->job, image->ctx, ret_job, err);
}

int byre_scrub_start(struct byre_image *image, const struct byre_check_opts *opts, struct byre_check_result *result,
                     struct byre_job **ret_job, struct byre_err *err)
{
    struct byre_check_opts o;
    int r = lib_take_opts(&o, sizeof o, opts, err);
    if (r)
        return r;
    if (o.flags & ~(unsigned)BYRE_FIX_LEAKS || image->check_mode)
        return byre_fail(err, BAD_ARGUMENT, "a scrub is for an image in use, and mends leaks at most");
    if (graph_read_only(image->node))
        return byre_fail(err, READ_ONLY, "%s: a scrub needs the image open for writing; check it instead", byre_filename(image));
    return start(image, &o, scrub_run, result, ret_job, err);
}

int byre_check_start(struct byre_image *image, const struct byre_check_opts *opts, struct byre_check_result *result,
                     struct byre_job **ret_job, struct byre_err *err)
{
    struct byre_check_opts o;
    int r = lib_take_opts(&o, sizeof o, opts, err);
    if (r)
        return r;
    if (o.flags & ~(unsigned)(BYRE_FIX_LEAKS | BYRE_FIX_ERRORS) || !image->check_mode)
        return byre_fail(err, BAD_ARGUMENT, "a check needs an image opened for checking and flags that are known");
    if (o.flags && graph_read_only(image->node))
        return byre_fail(err, READ_ONLY, "%s: a repair needs the image open for writing", byre_filename(image));
    return start(image, &o, check_run, result, ret_job, err);
}
