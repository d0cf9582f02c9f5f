/* SPDX-License-Identifier: MIT
 *
 * chain.c: commit and rebase as jobs.
 *
 * Purpose      Options and results of the public words; opens and closes the new chain.
 * Owns         struct commit_start, struct rebase_start
 * Invariants   I1 an image that a job uses stays open while it exists (byre_image.users)
 * Concurrency  the jobs run on the home loop, their copying on all loops
 * Failure      as job/commit.h
 * Tests        tests/cli/commit_test.py
 */
#include "base/list.h"
#include "byre/chain.h"
#include "job/commit.h"
#include "lib/lib_priv.h"

static void on_progress(void *arg, uint64_t done, uint64_t total) { lib_job_progress(arg, done, total); }

static struct job_copy_how how_of(struct byre_job *job, unsigned parallel, uint64_t rate)
{
    return (struct job_copy_how){ .rate = rate, .workers = parallel, .progress = on_progress, .arg = job, .cancel = &job->cancel_wanted };
}

/* Nobody but this job may use the image. */
static int take_image(struct byre_image *image, const char *what, struct byre_err *err)
{
    unsigned none = 0;
    if (image->check_mode)
        return byre_fail(err, BAD_ARGUMENT, "%s: is open to be checked and cannot be %s", byre_filename(image), what);
    if (!atomic_compare_exchange_strong(&image->users, &none, 1))
        return byre_fail(err, BUSY, "%s: is in use and cannot be %s", byre_filename(image), what);
    return 0;
}

/* ---- commit ---- */

struct commit_start {
    struct byre_job job;
    struct byre_image *image;
    struct byre_commit_opts o;
    char *base;
    struct byre_commit_result *result;
};

static int commit_job_run(struct co *co, struct byre_job *job, struct byre_err *err)
{
    struct commit_start *c = CONTAINER_OF(job, struct commit_start, job);
    struct graph_node *base = NULL;
    struct copy_result cr = { 0 };
    const struct commit_job cj = { .top = c->image->node, .base = c->base, .keep = c->o.flags & BYRE_COMMIT_KEEP,
                                   .how = how_of(job, c->o.parallel, c->o.rate_bytes) };
    int r = commit_run(co, &cj, &base, &cr, err);
    if (c->result) {
        struct byre_commit_result full = byre_commit_result_init();
        size_t size = c->result->struct_size;
        full.written = cr.written;
        full.zeroed = cr.zeroed;
        full.base = base ? graph_filename(base) : NULL;
        memcpy(c->result, &full, size < sizeof full ? size : sizeof full);
        c->result->struct_size = size;
    }
    return r;
}

static void commit_fini(struct byre_job *job)
{
    struct commit_start *c = CONTAINER_OF(job, struct commit_start, job);
    atomic_fetch_sub(&c->image->users, 1);
    free(c->base);
}

int byre_commit_start(struct byre_image *image, const struct byre_commit_opts *opts, struct byre_commit_result *result, struct byre_job **ret_job,
                      struct byre_err *err)
{
    struct byre_commit_opts o;
    int r = lib_take_opts(&o, sizeof o, opts, err);
    if (!r && (o.flags & ~(unsigned)BYRE_COMMIT_KEEP || o.parallel > COPY_PARALLEL_MAX))
        r = byre_fail(err, BAD_ARGUMENT, "an option of the commit is out of range");
    if (r)
        return r;
    struct commit_start *c = calloc(1, sizeof *c);
    char *base = c && o.base ? strdup(o.base) : NULL;
    if (!c || (o.base && !base)) {
        free(c);
        return byre_fail(err, NOMEM, "no memory for a commit");
    }
    r = take_image(image, "committed", err);
    if (r) {
        free(base);
        free(c);
        return r;
    }
    *c = (struct commit_start){ .job = { .run = commit_job_run, .fini = commit_fini }, .image = image, .o = o, .base = base, .result = result };
    return lib_job_start(&c->job, image->ctx, ret_job, err);
}

/* ---- rebase ---- */

struct rebase_start {
    struct byre_job job;
    struct byre_image *image;
    struct byre_rebase_opts o;
    char *file, *format;           /* NULL: none */
};

static int open_new_chain(struct co *co, const struct rebase_start *c, struct graph_node **ret, struct byre_err *err)
{
    struct byre_err why = { 0 };
    int cache = c->o.cache;
    struct graph_open_opts go = {
        .filename = c->file, .overlay = graph_filename(c->image->node), .format = c->format, .read_only = true, .share = true,
        .direct = cache == BYRE_CACHE_NONE || cache == BYRE_CACHE_DIRECTSYNC, .no_flush = cache == BYRE_CACHE_UNSAFE };
    int r = graph_open(co, c->image->ctx->graph, &go, ret, &why);
    return r ? byre_fail_code(err, BACKING_OPEN, r, "Could not open new backing file '%s': %s", c->file, why.text) : 0;
}

static int rebase_job_run(struct co *co, struct byre_job *job, struct byre_err *err)
{
    struct rebase_start *c = CONTAINER_OF(job, struct rebase_start, job);
    struct rebase_job rj = { .top = c->image->node, .to = { c->file, c->format }, .unsafe = c->o.flags & BYRE_REBASE_UNSAFE,
                             .compress = c->o.flags & BYRE_REBASE_COMPRESS,
                             .drop_equal = c->o.flags & BYRE_REBASE_DROP_EQUAL, .how = how_of(job, c->o.parallel, 0) };
    int r = c->file && !rj.unsafe ? open_new_chain(co, c, &rj.backing, err) : 0;
    if (!r)
        r = rebase_run(co, &rj, NULL, err);
    int closed = rj.backing ? graph_close(co, rj.backing) : 0;
    (void)closed;                                  /* it is open for reading: nothing is lost */
    return r;
}

static void rebase_fini(struct byre_job *job)
{
    struct rebase_start *c = CONTAINER_OF(job, struct rebase_start, job);
    atomic_fetch_sub(&c->image->users, 1);
    free(c->file);
    free(c->format);
}

static int rebase_check(const struct byre_image *image, const struct byre_rebase_opts *o, struct byre_err *err)
{
    bool named = o->backing_file && o->backing_file[0];
    if (o->flags & ~(unsigned)(BYRE_REBASE_UNSAFE | BYRE_REBASE_COMPRESS | BYRE_REBASE_DROP_EQUAL) || o->parallel > COPY_PARALLEL_MAX || o->cache < 0 || o->cache > BYRE_CACHE_UNSAFE)
        return byre_fail(err, BAD_ARGUMENT, "an option of the rebase is out of range");
    if (named && !o->backing_format)
        return byre_fail(err, BACKING_FORMAT, "Could not change the backing file to '%s': backing format must be specified", o->backing_file);
    if (named && !fmt_by_name(o->backing_format))
        return byre_fail(err, UNKNOWN_FORMAT, "Invalid format name: '%s'", o->backing_format);
    if (o->flags & BYRE_REBASE_UNSAFE && o->flags & BYRE_REBASE_DROP_EQUAL)
        return byre_fail(err, BAD_ARGUMENT, "%s: what equals the new backing file is not known in an unsafe rebase", byre_filename(image));
    if (o->flags & BYRE_REBASE_UNSAFE && graph_backing(image->node))
        return byre_fail(err, BAD_ARGUMENT, "%s: an unsafe rebase needs the image open without its backing chain", byre_filename(image));
    return 0;
}

int byre_rebase_start(struct byre_image *image, const struct byre_rebase_opts *opts, struct byre_job **ret_job, struct byre_err *err)
{
    struct byre_rebase_opts o;
    int r = lib_take_opts(&o, sizeof o, opts, err);
    if (!r)
        r = rebase_check(image, &o, err);
    if (r)
        return r;
    bool named = o.backing_file && o.backing_file[0];
    struct rebase_start *c = calloc(1, sizeof *c);
    char *file = c && named ? strdup(o.backing_file) : NULL, *format = file ? strdup(o.backing_format) : NULL;
    if (!c || (named && !format))
        r = byre_fail(err, NOMEM, "no memory for a rebase");
    if (!r)
        r = take_image(image, "rebased", err);
    if (r) {
        free(file);
        free(format);
        free(c);
        return r;
    }
    *c = (struct rebase_start){ .job = { .run = rebase_job_run, .fini = rebase_fini }, .image = image, .o = o, .file = file, .format = format };
    return lib_job_start(&c->job, image->ctx, ret_job, err);
}
