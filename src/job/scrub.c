/* SPDX-License-Identifier: MIT
 *
 * scrub.c: ops->scrub of a format as a job.
 *
 * Purpose      Pause points, speed, progress and the result around the format's own work.
 * Owns         struct scrub, until the job is forgotten
 * Invariants   I1 damage that is left makes the job fail, with the numbers in its error; leaks alone do not
 * Order        the format's
 * Concurrency  home loop
 * Failure      as the format; a cancelled scrub has freed what it has freed
 * Tests        tests/cli/scrub_test.py, src/fmt/qcow2/q2_scrub_test.c
 */
#include "job/scrub.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/assert.h"

struct scrub {
    struct job *job;
    struct graph_node *node;
    struct graph_user use;               /* of node, with a reference, until the job has ended: it stays open, and nobody reopens it */
    bool fix_leaks, keep_failed;
    uint64_t spent;                      /* progress that was paid for */
    struct job_scrub_result result;
};

static void on_finding(void *arg, bool fixed, const char *id, const char *text)
{
    struct scrub *s = arg;
    struct job_scrub_result *r = &s->result;
    r->findings++;
    if (r->listed == JOB_SCRUB_FINDINGS)
        return;
    if (!r->list && !(r->list = calloc(JOB_SCRUB_FINDINGS, sizeof *r->list)))
        return;
    struct job_scrub_finding *f = &r->list[r->listed++];
    f->fixed = fixed;
    snprintf(f->id, sizeof f->id, "%s", id);
    snprintf(f->text, sizeof f->text, "%s", text);
}

static void on_progress(void *arg, uint64_t done, uint64_t total) { job_progress(((struct scrub *)arg)->job, done, total); }

static int on_step(struct co *co, void *arg)
{
    struct scrub *s = arg;
    uint64_t done, total;
    job_progress_get(s->job, &done, &total);
    uint64_t units = done > s->spent ? done - s->spent : 0;
    s->spent += units;
    return job_spend(co, s->job, units);
}

static bool on_stands(void *arg) { return ((struct scrub *)arg)->job->status == JOB_PAUSED; }

static int scrub_run(struct co *co, struct job *job, struct byre_err *err)
{
    struct scrub *s = job->opaque;
    struct fmt_image *im = graph_image(s->node);
    struct fmt_check_opts o = { .fix = s->fix_leaks ? FMT_FIX_LEAKS : 0, .finding = on_finding, .progress = on_progress, .step = on_step, .stands = on_stands, .arg = s };
    struct fmt_check_result *c = &s->result.counts;
    s->job = job;
    int r = im->ops->scrub(co, im, &o, c, err);
    if (r == 0 && (c->corruptions || c->check_errors))           /* I1 */
        r = byre_fail(err, Q2_CORRUPT, "%s: %" PRIu64 " errors were found, and %" PRIu64 " places cannot be read%s", graph_filename(s->node), c->corruptions,
                      c->check_errors, atomic_load(&im->unclean) ? "; old clusters go on being copied when they are written. Run check -r all when the disk is not in use" : "");
    if (r < 0 && r != -ECANCELED && s->keep_failed)
        job->auto_dismiss = false;
    return r;
}

static void leave(struct co *co, struct scrub *s)
{
    graph_user_remove(&s->use);
    (void)graph_close(co, s->node);      /* who uses it still, closes it well; else what it frees late are leaks */
}

/* Also of one that was cancelled before it ran: requests may have been waiting for it. */
static void scrub_abort(struct co *co, struct job *job)
{
    struct fmt_image *im = graph_image(((struct scrub *)job->opaque)->node);
    if (im->ops->no_scrub)
        im->ops->no_scrub(im);
    leave(co, job->opaque);
}

static int scrub_commit(struct co *co, struct job *job, struct byre_err *err)
{
    leave(co, job->opaque);
    return 0;
}

static void scrub_fini(struct job *job)
{
    struct scrub *s = job->opaque;
    free(s->result.list);
    free(s);
}

const struct job_kind job_scrub_kind = { .type = "x-byre-scrub", .run = scrub_run, .commit = scrub_commit, .abort = scrub_abort, .has_speed = true, .fini = scrub_fini };

int job_scrub_start(struct jobs *js, const struct job_scrub_opts *o, struct job **ret_job, struct byre_err *err)
{
    if (!graph_format(o->node)->scrub)
        return byre_fail(err, NOT_SUPPORTED, "%s: the format %s has no check of a disk in use", graph_filename(o->node), graph_format(o->node)->name);
    if (graph_read_only(o->node))
        return byre_fail(err, READ_ONLY, "%s: is read-only here, and can be checked by 'byre check' at the same time", graph_filename(o->node));
    struct scrub *s = calloc(1, sizeof *s);
    if (!s)
        return byre_fail(err, NOMEM, "no memory for a scrub");
    s->node = o->node;
    s->fix_leaks = o->fix_leaks;
    s->keep_failed = o->keep_failed;
    s->use = (struct graph_user){ .who = job_scrub_kind.type, .perm = STOR_PERM_READ | STOR_PERM_WRITE_UNCHANGED, .shared = STOR_PERM_ALL };
    struct job_opts jo = o->job;
    jo.opaque = s;
    jo.nodes[0] = o->node;
    int r = graph_user_add(s->node, &s->use, err);
    if (!r)
        r = job_start(js, &job_scrub_kind, &jo, ret_job, err);
    if (r < 0) {
        graph_user_remove(&s->use);
        free(s);
        return r;
    }
    graph_ref(s->node);                  /* the job's coroutine has not run yet */
    return 0;
}

const struct job_scrub_result *job_scrub_result(const struct job *job)
{
    ASSERT(job->kind == &job_scrub_kind);
    return &((const struct scrub *)job->opaque)->result;
}
