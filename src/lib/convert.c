/* SPDX-License-Identifier: MIT
 *
 * convert.c: copying and comparing as jobs.
 *
 * Purpose      The copy engine behind the public words.
 * Owns         struct convert_job, struct compare_job_
 * Invariants   I1 images that a job uses stay open while it exists (byre_image.users)
 * Concurrency  jobs run on the home loop, their pieces on all loops
 * Failure      as copy/copy.h
 * Tests        tests/cli/convert_test.py, compare_test.py
 */
#include "base/checked.h"
#include "base/list.h"
#include "copy/copy.h"
#include "lib/lib_priv.h"

#define CONVERT_FLAGS (BYRE_CONVERT_OUT_OF_ORDER | BYRE_CONVERT_OFFLOAD | BYRE_CONVERT_SALVAGE | BYRE_CONVERT_TARGET_ZERO | \
                       BYRE_CONVERT_PRE_ZERO | BYRE_CONVERT_BACKED | BYRE_CONVERT_COMPRESS | BYRE_CONVERT_FRESH)

struct convert_job {
    struct byre_job job;
    struct byre_convert_opts o;
    struct byre_convert_result *result;
    struct byre_image *target;
    unsigned count;
    struct byre_image **sources;
    struct copy_part *parts;
};

static void convert_progress(void *arg, uint64_t done, uint64_t total)
{
    lib_job_progress(&((struct convert_job *)arg)->job, done, total);
}

static void convert_salvaged(void *arg, uint64_t off, uint64_t len, int error)
{
    struct convert_job *c = arg;
    if (c->o.salvaged)
        c->o.salvaged(c->o.arg, off, len, error);
}

static unsigned copy_flags(unsigned flags)
{
    static const struct { unsigned pub, copy; } map[] = {
        { BYRE_CONVERT_OUT_OF_ORDER, COPY_OUT_OF_ORDER }, { BYRE_CONVERT_OFFLOAD, COPY_OFFLOAD }, { BYRE_CONVERT_SALVAGE, COPY_SALVAGE },
        { BYRE_CONVERT_TARGET_ZERO, COPY_TARGET_ZERO }, { BYRE_CONVERT_PRE_ZERO, COPY_PRE_ZERO }, { BYRE_CONVERT_BACKED, COPY_BACKED },
        { BYRE_CONVERT_COMPRESS, COPY_COMPRESS },
    };
    unsigned r = flags & BYRE_CONVERT_FRESH ? 0 : COPY_USED;
    for (size_t i = 0; i < sizeof map / sizeof map[0]; i++)
        if (flags & map[i].pub)
            r |= map[i].copy;
    return r;
}

static void give(void *to, const void *full, size_t full_size)
{
    size_t size = *(const size_t *)to;
    memcpy(to, full, size < full_size ? size : full_size);
    *(size_t *)to = size;
}

static int convert_run(struct co *co, struct byre_job *job, struct byre_err *err)
{
    struct convert_job *c = CONTAINER_OF(job, struct convert_job, job);
    struct copy_result cr = { 0 };
    struct copy_job cj = {
        .parts = c->parts, .part_count = c->count, .target = c->target->node, .flags = copy_flags(c->o.flags),
        .workers = c->o.parallel, .min_sparse = c->o.sparse_bytes, .rate = c->o.rate_bytes,
        .encoding = { .level = c->o.compress_level, .small_window = c->o.compress_small_window != 0 },
        .progress = convert_progress, .salvaged = convert_salvaged, .arg = c, .cancel = &job->cancel_wanted };
    int r = copy_run(co, &cj, &cr, err);
    if (c->result) {
        struct byre_convert_result full = byre_convert_result_init();
        full.read = cr.read;
        full.written = cr.written;
        full.zeroed = cr.zeroed;
        full.skipped = cr.skipped;
        full.offloaded = cr.offloaded;
        full.unreadable = cr.unreadable;
        full.fail_offset = cr.fail_off;
        full.fail_read = cr.fail_read;
        give(c->result, &full, sizeof full);
    }
    return r;
}

static void convert_fini(struct byre_job *job)
{
    struct convert_job *c = CONTAINER_OF(job, struct convert_job, job);
    for (unsigned i = 0; i < c->count; i++)
        atomic_fetch_sub(&c->sources[i]->users, 1);
    atomic_fetch_sub(&c->target->users, 1);
    free(c->sources);
    free(c->parts);
}

static int convert_check(const struct byre_convert_opts *o, struct byre_image *const *sources, unsigned count, struct byre_err *err)
{
    if ((o->flags & ~(unsigned)CONVERT_FLAGS) || o->parallel > COPY_PARALLEL_MAX || o->sparse_bytes % 512 || !count)
        return byre_fail(err, BAD_ARGUMENT, "an option of the conversion is out of range");
    if ((o->source_offset || o->length) && count != 1)
        return byre_fail(err, BAD_ARGUMENT, "a part can be copied of one source only");
    if (!range_inside(o->source_offset, o->length, byre_size(sources[0])))
        return byre_fail(err, BAD_ARGUMENT, "the range to copy does not lie inside the source");
    return 0;
}

static void fill_parts(struct convert_job *c)
{
    for (unsigned i = 0; i < c->count; i++) {
        uint64_t size = byre_size(c->sources[i]);
        c->parts[i] = (struct copy_part){ c->sources[i]->node, 0, size };
        if (c->o.source_offset || c->o.length) {
            c->parts[i].off = c->o.source_offset;
            c->parts[i].len = c->o.length ? c->o.length : size - c->o.source_offset;
        }
        atomic_fetch_add(&c->sources[i]->users, 1);
    }
    atomic_fetch_add(&c->target->users, 1);
}

int byre_convert_start(struct byre_image *const *sources, unsigned source_count, struct byre_image *target, const struct byre_convert_opts *opts,
                       struct byre_convert_result *result, struct byre_job **ret_job, struct byre_err *err)
{
    struct byre_convert_opts o;
    int r = lib_take_opts(&o, sizeof o, opts, err);
    if (!r)
        r = convert_check(&o, sources, source_count, err);
    if (r)
        return r;
    struct convert_job *c = calloc(1, sizeof *c);
    struct byre_image **list = c ? calloc(source_count, sizeof(struct byre_image *)) : NULL;
    struct copy_part *parts = list ? calloc(source_count, sizeof *parts) : NULL;
    if (!parts) {
        free(list);
        free(c);
        return byre_fail(err, NOMEM, "no memory for a conversion");
    }
    memcpy(list, sources, source_count * sizeof(struct byre_image *));
    *c = (struct convert_job){ .job = { .run = convert_run, .fini = convert_fini }, .o = o, .result = result, .target = target,
                               .count = source_count, .sources = list, .parts = parts };
    fill_parts(c);
    return lib_job_start(&c->job, target->ctx, ret_job, err);
}

/* ---- compare ---- */
_Static_assert((int)BYRE_SAME == (int)COMPARE_SAME && (int)BYRE_DIFFER_CONTENT == (int)COMPARE_CONTENT &&
               (int)BYRE_DIFFER_STATUS == (int)COMPARE_STATUS && (int)BYRE_DIFFER_SIZE == (int)COMPARE_SIZE, "the same numbers");

struct comparing {
    struct byre_job job;
    struct byre_image *a, *b;
    bool strict;
    struct byre_compare_result *result;
};

static void compare_progress(void *arg, uint64_t done, uint64_t total)
{
    lib_job_progress(&((struct comparing *)arg)->job, done, total);
}

static int comparing_run(struct co *co, struct byre_job *job, struct byre_err *err)
{
    struct comparing *c = CONTAINER_OF(job, struct comparing, job);
    struct compare_result cr = { 0 };
    struct compare_job cj = { .a = c->a->node, .b = c->b->node, .strict = c->strict, .progress = compare_progress, .arg = c,
                              .cancel = &job->cancel_wanted };
    int r = compare_run(co, &cj, &cr, err);
    struct byre_compare_result full = byre_compare_result_init();
    full.difference = (int)cr.verdict;
    full.size_differs = cr.size_differs;
    full.offset = r ? cr.fail_off : cr.off;
    full.failed_image = !r ? 0 : cr.fail_b ? 2 : 1;
    full.failed_status = r && cr.fail_status;
    give(c->result, &full, sizeof full);
    return r;
}

static void comparing_fini(struct byre_job *job)
{
    struct comparing *c = CONTAINER_OF(job, struct comparing, job);
    atomic_fetch_sub(&c->a->users, 1);
    atomic_fetch_sub(&c->b->users, 1);
}

int byre_compare_start(struct byre_image *a, struct byre_image *b, unsigned flags, struct byre_compare_result *result,
                       struct byre_job **ret_job, struct byre_err *err)
{
    if ((flags & ~(unsigned)BYRE_COMPARE_STRICT) || !result)
        return byre_fail(err, BAD_ARGUMENT, "an option of the comparison is out of range");
    struct comparing *c = calloc(1, sizeof *c);
    if (!c)
        return byre_fail(err, NOMEM, "no memory for a comparison");
    c->job.run = comparing_run;
    c->job.fini = comparing_fini;
    c->a = a;
    c->b = b;
    c->strict = flags & BYRE_COMPARE_STRICT;
    c->result = result;
    atomic_fetch_add(&a->users, 1);
    atomic_fetch_add(&b->users, 1);
    return lib_job_start(&c->job, a->ctx, ret_job, err);
}
