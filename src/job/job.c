/* SPDX-License-Identifier: MIT
 *
 * job.c: the life of a job.
 *
 * Purpose      Runs a kind's work in a coroutine of its own, from created to concluded, and lets users steer it.
 * Owns         struct job from job_start to its dismissal; struct jobs' list
 * Invariants   I1 to I4 of job.h
 * Order        none of its own: kind->commit makes things durable before the job concludes (J5)
 * Concurrency  home loop; current, total and cancelled are atomic for readers elsewhere
 * Failure      a job that fails keeps its first error until it is dismissed
 * Tests        job_test.c
 */
#include "job/group.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/id.h"
#include "copy/latency.h"

#define ID_MAX 127u
#define SLICE_NS UINT64_C(100000000)     /* how much of an unused rate may be made up for */

/* ---- the one setter ---- */
static void set_status(struct job *job, enum job_status to)
{
    INV(I1, job_may_move(job->status, to));
    job->status = to;
    if (job->jobs->status_changed)
        job->jobs->status_changed(job->jobs->arg, job);
}

/* ---- the list ---- */
void jobs_init(struct jobs *js, struct rt_loop *home)
{
    memset(js, 0, sizeof *js);
    js->home = home;
    list_init(&js->all);
}

struct job *job_find(const struct jobs *js, const char *id)
{
    LIST_FOR(n, &js->all) {
        struct job *job = CONTAINER_OF(n, struct job, link);
        if (job->id && strcmp(job->id, id) == 0)
            return job;
    }
    return NULL;
}

struct job *job_next(const struct jobs *js, const struct job *at)
{
    struct list_node *n = at ? list_next(&js->all, &at->link) : list_first(&js->all);
    while (n && !CONTAINER_OF(n, struct job, link)->id)
        n = list_next(&js->all, n);
    return n ? CONTAINER_OF(n, struct job, link) : NULL;
}

const struct job_end *job_end_find(const struct jobs *js, const char *id)
{
    for (unsigned i = 1; i <= JOB_ENDS_KEPT; i++) {
        const struct job_end *e = &js->ends[(js->ends_at + JOB_ENDS_KEPT - i) % JOB_ENDS_KEPT];
        if (e->id && strcmp(e->id, id) == 0)
            return e;
    }
    return NULL;
}

/* Takes the name over. */
static void remember_end(struct jobs *js, const struct job *job)
{
    struct job_end *e = &js->ends[js->ends_at];
    js->ends_at = (js->ends_at + 1) % JOB_ENDS_KEPT;
    free(e->id);
    free(e->error);
    *e = (struct job_end){ job->id, job->result < 0 ? strdup(job->err.text[0] ? job->err.text : strerror(-job->result)) : NULL, job->kind->type, job->result };
}

static void ends_free(struct jobs *js)
{
    for (unsigned i = 0; i < JOB_ENDS_KEPT; i++) {
        free(js->ends[i].id);
        free(js->ends[i].error);
        js->ends[i] = (struct job_end){ NULL };
    }
}

static void forget(struct job *job)
{
    set_status(job, JOB_NULL);
    list_remove(&job->link);
    if (job->kind->fini)
        job->kind->fini(job);
    copy_latency_unref(job->latency);
    if (job->id)
        remember_end(job->jobs, job);
    free(job);
}

/* ---- standing still, and speed ---- */
static bool must_stand(const struct job *job) { return job->pauses && !job_cancelled(job); }

static void stand(struct co *co, struct job *job)
{
    enum job_status back = job->status;
    bool moves = back == JOB_RUNNING || back == JOB_READY;
    if (moves)
        set_status(job, back == JOB_READY ? JOB_STANDBY : JOB_PAUSED);
    while (must_stand(job))
        co_wait(co, &job->wake);
    if (moves)
        set_status(job, back);
}

int job_point(struct co *co, struct job *job)
{
    ASSERT_LOOP(job->jobs->home);
    if (must_stand(job))
        stand(co, job);
    return job_cancelled(job) ? -ECANCELED : 0;
}

int job_spend(struct co *co, struct job *job, uint64_t units)
{
    uint64_t now = rt_now(job->jobs->home);
    if (job->speed) {
        uint64_t cost = (uint64_t)((double)units * 1e9 / (double)job->speed);
        uint64_t from = now > SLICE_NS && job->spent_until < now - SLICE_NS ? now - SLICE_NS : job->spent_until;
        job->spent_until = from + cost;
    }
    int r = job_point(co, job);
    while (r == 0 && job->speed && (now = rt_now(job->jobs->home)) < job->spent_until) {
        uint64_t old = co_set_deadline(co, job->spent_until);
        (void)co_wait_cancellable(co, &job->wake);       /* until then, or until something has changed */
        (void)co_set_deadline(co, old);
        r = job_point(co, job);
    }
    return r;
}

int job_stop_for(struct co *co, struct job *job, int error)
{
    job->io_error = error;
    if (!job->user_paused) {
        job->user_paused = true;
        job_hold(job);
    }
    return job_point(co, job);
}

void job_hold(struct job *job)
{
    job->pauses++;
    co_wake_all(&job->wake);             /* one that waits because of its speed stands still at once */
}

void job_unhold(struct job *job)
{
    ASSERT(job->pauses);
    job->pauses--;
    co_wake_all(&job->wake);
}

/* ---- what the work tells ---- */
void job_progress(struct job *job, uint64_t current, uint64_t total)
{
    atomic_store_explicit(&job->total, total, memory_order_relaxed);
    atomic_store_explicit(&job->current, current, memory_order_relaxed);
}

void job_progress_get(const struct job *job, uint64_t *ret_current, uint64_t *ret_total)
{
    struct job *j = (struct job *)(uintptr_t)job;
    *ret_current = atomic_load_explicit(&j->current, memory_order_relaxed);
    *ret_total = atomic_load_explicit(&j->total, memory_order_relaxed);
}

void job_ready(struct job *job)
{
    set_status(job, JOB_READY);
}

/* ---- its nodes ---- */
void job_goes_to(struct job *job, struct graph_node *n)
{
    unsigned i = 0;
    while (i < JOB_NODES && job->haste[i].node)
        i++;
    ASSERT(i < JOB_NODES);
    graph_haste_may(&job->haste[i], n);
    if (job_cancelled(job))
        graph_haste_begin(&job->haste[i]);
}

/* What it still waits for is not worth waiting for. */
static void hasten(struct job *job)
{
    for (unsigned i = 0; i < JOB_NODES; i++)
        graph_haste_begin(&job->haste[i]);
}

static void leave_nodes(struct job *job)
{
    for (unsigned i = 0; i < JOB_NODES; i++)
        graph_haste_end(&job->haste[i]);
}

/* ---- the life ---- */
static int cancelled_error(struct job *job)
{
    job->err = (struct byre_err){ 0 };       /* whatever the work said while it stopped: it was told to */
    return -ECANCELED;
}

static int finish(struct co *co, struct job *job)
{
    set_status(job, JOB_WAITING);
    if (job->user_paused) {              /* since its work looked last: from here on nobody may resume it */
        job->user_paused = false;
        job_unhold(job);
    }
    if (group_meet(co, job))
        return cancelled_error(job);
    set_status(job, JOB_PENDING);
    while (!job->finalize_wanted && !job_cancelled(job))
        co_wait(co, &job->wake);
    if (job_cancelled(job) || group_meet(co, job))
        return cancelled_error(job);
    int r = job->kind->prepare ? job->kind->prepare(co, job, &job->err) : 0;
    if (r)
        return r;
    if (group_meet(co, job))
        return cancelled_error(job);
    return job->kind->commit ? job->kind->commit(co, job, &job->err) : 0;
}

static int work(struct co *co, struct job *job)
{
    while (job->waits)                   /* a cancel is seen behind it: who is about to begin it has it in hand */
        co_wait(co, &job->wake);
    if (job_cancelled(job))
        return cancelled_error(job);
    set_status(job, JOB_RUNNING);
    int r = job_point(co, job);
    if (r == 0)
        r = job->kind->run(co, job, &job->err);
    if (r == 0 && job_cancelled(job) && job->status != JOB_READY)
        r = -ECANCELED;
    if (r < 0)
        return job_cancelled(job) ? cancelled_error(job) : r;
    return finish(co, job);
}

static void job_co(struct co *co, void *arg)
{
    struct job *job = arg;
    struct jobs *js = job->jobs;
    job->result = work(co, job);
    group_part(job, job->result >= 0);
    if (job->result < 0) {
        hasten(job);
        set_status(job, JOB_ABORTING);
        if (job->kind->abort)
            job->kind->abort(co, job);
    }
    leave_nodes(job);
    job->done = true;
    set_status(job, JOB_CONCLUDED);
    if (job->auto_dismiss || js->stopping)
        forget(job);
    co_group_leave(&js->alive);
}

static int make_job(struct jobs *js, const struct job_kind *kind, const struct job_opts *o, struct job **ret)
{
    struct job *job = calloc(1, sizeof *job);
    char *id = o->id ? strdup(o->id) : NULL;
    if (!job || (o->id && !id)) {
        free(job);
        free(id);
        return -ENOMEM;
    }
    job->jobs = js;
    job->kind = kind;
    job->opaque = o->opaque;
    job->waits = o->waits;
    job->latency = kind->block_job ? copy_latency_new() : NULL;
    job->id = id;
    job->auto_finalize = job->finalize_wanted = !o->keep_pending;
    job->auto_dismiss = !o->keep_concluded;
    job->speed = o->speed;
    job->spent_until = rt_now(js->home);
    *ret = job;
    return 0;
}

int job_may_start(const struct jobs *js, const struct job_kind *kind, const struct job_opts *o, struct byre_err *err)
{
    ASSERT_LOOP(js->home);
    if (js->stopping)
        return byre_fail(err, CANCELLED, "the program is about to end");
    if (o->id && !id_is_good(o->id, ID_MAX))
        return byre_fail(err, BAD_ARGUMENT, "Invalid job ID '%s': it begins with a letter and goes on with letters, digits and '-._'", o->id);
    if (o->id && job_find(js, o->id))
        return byre_fail(err, EXISTS, "Job ID '%s' already in use", o->id);
    if (o->speed && !kind->has_speed)
        return byre_fail(err, NOT_SUPPORTED, "a job of type %s has no speed to set", kind->type);
    return 0;
}

int job_start(struct jobs *js, const struct job_kind *kind, const struct job_opts *o, struct job **ret_job, struct byre_err *err)
{
    struct job *job;
    int r = job_may_start(js, kind, o, err);
    if (r)
        return r;
    r = make_job(js, kind, o, &job);
    if (r == 0) {
        co_group_enter(&js->alive);
        r = rt_spawn(js->home, job_co, job);
        if (r) {
            co_group_leave(&js->alive);
            copy_latency_unref(job->latency);
            free(job->id);
            free(job);
        }
    }
    if (r)
        return byre_fail(err, NOMEM, "no memory for a job");
    for (unsigned i = 0; i < JOB_NODES; i++)
        if (o->nodes[i])
            job_goes_to(job, o->nodes[i]);
    list_push_back(&js->all, &job->link);
    set_status(job, JOB_CREATED);
    *ret_job = job;
    return 0;
}

void job_begin(struct job *job)
{
    ASSERT_LOOP(job->jobs->home);
    job->waits = false;
    co_wake_all(&job->wake);
}

void job_give_up(struct job *job)
{
    atomic_store(&job->cancelled, true);
    hasten(job);
    co_wake_all(&job->wake);
}

void jobs_stop(struct co *co, struct jobs *js)
{
    ASSERT_LOOP(js->home);
    js->stopping = true;
    LIST_FOR(n, &js->all) {
        struct job *job = CONTAINER_OF(n, struct job, link);
        if (job->status == JOB_CONCLUDED)
            forget(job);
        else
            job_give_up(job);
    }
    co_group_wait(co, &js->alive);
    ASSERT(list_empty(&js->all));
    ends_free(js);
}

/* ---- verbs ---- */
static int allowed(const struct job *job, enum job_verb v, struct byre_err *err)
{
    if (job_may_verb(v, job->status))
        return 0;
    return byre_fail(err, BAD_ARGUMENT, "Job '%s' in state '%s' cannot accept command verb '%s'", job->id ? job->id : job->kind->type,
                     job_status_name(job->status), job_verb_name(v));
}

static int pause_job(struct job *job, struct byre_err *err)
{
    if (job->user_paused)
        return byre_fail(err, BAD_ARGUMENT, "Job '%s' is already paused", job->id);
    job->user_paused = true;
    job_hold(job);
    return 0;
}

static int resume_job(struct job *job, struct byre_err *err)
{
    if (!job->user_paused)
        return byre_fail(err, BAD_ARGUMENT, "Job '%s' cannot be resumed: nobody has paused it", job->id);
    job->user_paused = false;
    job->io_error = 0;
    job_unhold(job);
    return 0;
}

static int complete_job(struct job *job, struct byre_err *err)
{
    if (!job->kind->complete)
        return byre_fail(err, NOT_SUPPORTED, "Job '%s' of type %s ends by itself and cannot be completed", job->id, job->kind->type);
    int r = job->kind->complete(job, err);           /* of one that stands still: when it goes on */
    co_wake_all(&job->wake);
    return r;
}

int job_do(struct job *job, enum job_verb v, struct byre_err *err)
{
    ASSERT_LOOP(job->jobs->home);
    int r = allowed(job, v, err);
    if (r)
        return r;
    switch (v) {
    case JOB_CANCEL:
        job_give_up(job);
        return 0;
    case JOB_PAUSE:
        return pause_job(job, err);
    case JOB_RESUME:
        return resume_job(job, err);
    case JOB_COMPLETE:
        return complete_job(job, err);
    case JOB_FINALIZE:
        if (job->finalize_wanted)
            return byre_fail(err, BAD_ARGUMENT, "Job '%s' is being finalized already", job->id);
        job->finalize_wanted = true;
        co_wake_all(&job->wake);
        group_finalize(job);
        return 0;
    case JOB_DISMISS:
        forget(job);
        return 0;
    default:
        return byre_fail(err, BAD_ARGUMENT, "the verb %s needs a value", job_verb_name(v));
    }
}

int job_set_speed(struct job *job, uint64_t speed, struct byre_err *err)
{
    int r = allowed(job, JOB_SET_SPEED, err);
    if (r)
        return r;
    if (!job->kind->has_speed)
        return byre_fail(err, NOT_SUPPORTED, "Job '%s' of type %s has no speed to set", job->id, job->kind->type);
    job->speed = speed;
    job->spent_until = rt_now(job->jobs->home);
    co_wake_all(&job->wake);
    return 0;
}
