/* SPDX-License-Identifier: MIT
 *
 * copying.c: what jobs that copy have in common.
 *
 * Purpose      The hooks of the copy engine in terms of a job.
 * Owns         nothing
 * Invariants   I1 a job's state moves by one hand at a time, however many pieces are in flight
 * Order        none
 * Concurrency  home loop
 * Failure      -ECANCELED when the job is
 * Tests        tests/cli/live_commit_test.py
 */
#include "job/copying.h"

#define RETRY_NS UINT64_C(100000000)

static int on_step(struct co *co, void *arg, uint64_t bytes)
{
    struct job_copying *c = arg;
    co_lock(co, &c->one);
    int r = bytes ? job_spend(co, c->job, bytes) : job_point(co, c->job);
    co_unlock(&c->one);
    return r;
}

enum job_on_error job_decide(enum job_on_error policy, int error)
{
    if (policy == JOB_ON_ERROR_ENOSPC)
        return error == -ENOSPC ? JOB_ON_ERROR_STOP : JOB_ON_ERROR_REPORT;
    return policy;
}

void job_tell_error(const struct job *job, bool read, enum job_on_error done)
{
    static const char *const words[] = { [JOB_ON_ERROR_REPORT] = "report", [JOB_ON_ERROR_IGNORE] = "ignore", [JOB_ON_ERROR_STOP] = "stop" };
    const struct jobs *js = job->jobs;
    if (js->io_error)
        js->io_error(js->arg, job, read, words[done]);
}

static int ignore(struct co *co, const struct job_copying *c, const struct copy_failure *f)
{
    if (c->leave && f->read)
        return COPY_LEAVE;
    int r = co_sleep(co, RETRY_NS);
    return r ? r : job_point(co, c->job);
}

static int on_failed(struct co *co, void *arg, const struct copy_failure *f)
{
    struct job_copying *c = arg;
    enum job_on_error how = job_decide(f->read ? c->on_read : c->on_write, f->error);
    int r = f->error;
    unsigned resumed = c->resumed;
    co_lock(co, &c->one);
    if (job_cancelled(c->job)) {
        r = -ECANCELED;
    } else if (c->resumed != resumed) {
        r = 0;                           /* it failed before the job was resumed: again */
    } else {
        job_tell_error(c->job, f->read, how);
        if (how == JOB_ON_ERROR_IGNORE)
            r = ignore(co, c, f);
        if (how == JOB_ON_ERROR_STOP) {
            r = job_stop_for(co, c->job, f->error);
            c->resumed++;
        }
    }
    co_unlock(&c->one);
    return r;
}

static uint64_t speed_now(void *arg) { return ((struct job_copying *)arg)->job->speed; }

struct copy_hooks job_copying_hooks(struct job_copying *c)
{
    return (struct copy_hooks){ .step = on_step, .failed = on_failed, .speed = speed_now, .arg = c, .latency = c->job->latency };
}

/* ---- progress ---- */

int job_copying_count(struct co *co, struct job_copying *c, const struct copy_job *cj, struct byre_err *err)
{
    uint64_t most = 0;
    for (unsigned i = 0; i < cj->part_count; i++)
        most += cj->parts[i].len;
    job_progress(c->job, 0, most);           /* until it is known: there is no more than that */
    int r = copy_work(co, cj, &c->work, err);
    if (!r)
        job_progress(c->job, 0, c->work);
    return r;
}

/* A guest's discard may make more work than was counted. */
void job_copying_progress(void *arg, uint64_t done, uint64_t total)
{
    const struct job_copying *c = arg;
    (void)total;                         /* of the disk */
    done += c->before;
    job_progress(c->job, done, max_u64(c->work, done));
}

void job_copying_part_done(struct job_copying *c)
{
    uint64_t done, total;
    job_progress_get(c->job, &done, &total);
    c->before = done;
}

void job_copying_all_done(struct job_copying *c)
{
    uint64_t done, total;
    job_progress_get(c->job, &done, &total);
    job_progress(c->job, total, total);
}
