/* SPDX-License-Identifier: MIT
 *
 * job.c: a blocking call that runs behind, and how a foreign thread follows it.
 *
 * Purpose      Runs one function as a coroutine of the home loop; result, progress and cancel from outside. No more than that:
 *              work that others watch and steer, with ids, states and verbs, is a struct job of src/job.
 * Owns         struct byre_job and what its kind embeds it in
 * Invariants   I1 `ended` is set once, after the last access of the coroutine to anything but the signal
 * Concurrency  wait, free: one foreign thread at a time; progress, cancel: any
 * Failure      a job that cannot start is finished and freed
 * Tests        lib_test.c
 */
#include <pthread.h>
#include <time.h>

#include "lib/lib_priv.h"

/* Apart from the job, so that the coroutine's last step touches nothing that the waiter frees under it. */
struct lib_signal {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool ended;                      /* guarded by lock */
    atomic_uint refs;
};

static struct lib_signal *signal_new(void)
{
    struct lib_signal *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&s->lock, NULL);
    atomic_init(&s->refs, 2);
    return s;
}

static void signal_unref(struct lib_signal *s)
{
    if (atomic_fetch_sub(&s->refs, 1) > 1)
        return;
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

static void job_co(struct co *co, void *arg)
{
    struct byre_job *job = arg;
    struct lib_signal *s = job->signal;
    int r = job->run(co, job, &job->err);
    job->result = r;
    pthread_mutex_lock(&s->lock);
    s->ended = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    signal_unref(s);
}

static void job_release(struct byre_job *job)
{
    job->fini(job);
    free(job);
}

int lib_job_start(struct byre_job *job, struct byre_ctx *ctx, struct byre_job **ret_job, struct byre_err *err)
{
    job->ctx = ctx;
    job->signal = signal_new();
    int r = job->signal ? 0 : -ENOMEM;
    if (!r)
        r = ctx->caller_runs ? rt_spawn(lib_home(ctx), job_co, job) : rt_spawn_on(lib_home(ctx), job_co, job);
    if (r) {
        if (job->signal) {
            signal_unref(job->signal);
            signal_unref(job->signal);
        }
        job_release(job);
        return byre_fail_code(err, NOMEM, r, "no memory for a job");
    }
    *ret_job = job;
    return 0;
}

static bool job_ended(void *arg)
{
    struct lib_signal *s = ((struct byre_job *)arg)->signal;
    pthread_mutex_lock(&s->lock);
    bool ended = s->ended;
    pthread_mutex_unlock(&s->lock);
    return ended;
}

static bool wait_threaded(struct lib_signal *s, int timeout_ms)
{
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += timeout_ms / 1000;
    end.tv_nsec += timeout_ms % 1000 * 1000000L;
    if (end.tv_nsec >= 1000000000L) {
        end.tv_sec++;
        end.tv_nsec -= 1000000000L;
    }
    pthread_mutex_lock(&s->lock);
    int r = 0;
    while (!s->ended && r != ETIMEDOUT)
        r = timeout_ms < 0 ? pthread_cond_wait(&s->changed, &s->lock) : pthread_cond_timedwait(&s->changed, &s->lock, &end);
    bool ended = s->ended;
    pthread_mutex_unlock(&s->lock);
    return ended;
}

static bool wait_ended(struct byre_job *job, int timeout_ms)
{
    if (!job->ctx->caller_runs)
        return wait_threaded(job->signal, timeout_ms);
    lib_run_until(job->ctx, job_ended, job, timeout_ms);
    return job_ended(job);
}

/* A store's time limit is no error of the caller's. */
int byre_job_wait(struct byre_job *job, int timeout_ms, struct byre_err *err)
{
    if (!wait_ended(job, timeout_ms))
        return -ETIMEDOUT;
    if (job->result < 0 && err)
        *err = job->err;
    return job->result == -ETIMEDOUT ? -EIO : job->result;
}

void byre_job_progress(const struct byre_job *job, struct byre_progress *ret)
{
    struct byre_job *j = (struct byre_job *)(uintptr_t)job;
    ret->done = atomic_load_explicit(&j->done_units, memory_order_relaxed);
    ret->total = atomic_load_explicit(&j->total_units, memory_order_relaxed);
}

void byre_job_cancel(struct byre_job *job)
{
    atomic_store(&job->cancel_wanted, true);
}

void byre_job_free(struct byre_job *job)
{
    if (!job)
        return;
    byre_job_cancel(job);
    while (!wait_ended(job, -1))
        ;
    signal_unref(job->signal);
    job_release(job);
}
