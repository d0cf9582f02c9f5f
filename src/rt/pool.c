/* SPDX-License-Identifier: MIT
 *
 * pool.c: worker threads for what cannot be done on a loop.
 *
 * Purpose      A bounded pool, started lazily, that runs work items in the order they were queued; and the calls
 *              rt_blocking, rt_blocking_long and rt_cpu that wait for one, rt_cpu_split that waits for several.
 * Owns         its threads, the queue links of waiting items
 * Invariants   I1 an item that was accepted runs exactly once
 *              I2 while items wait, every idle worker has been signalled, or all workers are busy
 *              I3 struct split lies in the frame of the caller: who takes the last share of `left` is the last to touch it
 * Concurrency  rt_pool_push: any thread; init and fini: the thread that makes and frees the runtime
 * Failure      rt_pool_push: -ENOMEM only when the pool has no thread at all and cannot start one
 * Tests        loop_test.c, stress_test.c
 *
 * Workers take no signals: those belong to the program's own threads.
 */
#include <signal.h>
#include <stdlib.h>

#include "rt/rt_priv.h"

#define WORKER_STACK_BYTES (1024u * 1024)

int rt_pool_init(struct rt_pool *p, unsigned max)
{
    *p = (struct rt_pool){ .max = max };
    p->threads = calloc(max, sizeof *p->threads);
    if (!p->threads)
        return -ENOMEM;
    if (pthread_mutex_init(&p->lock, NULL)) {
        free(p->threads);
        return -ENOMEM;
    }
    if (pthread_cond_init(&p->more, NULL)) {
        pthread_mutex_destroy(&p->lock);
        free(p->threads);
        return -ENOMEM;
    }
    return 0;
}

static void *worker(void *arg)
{
    struct rt_pool *p = arg;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->head && !p->stop) {
            p->idle++;
            pthread_cond_wait(&p->more, &p->lock);
            p->idle--;
        }
        struct rt_work *w = p->head;
        if (!w)
            break;
        p->head = w->next;
        if (!p->head)
            p->tail = NULL;
        p->queued--;
        pthread_mutex_unlock(&p->lock);
        w->run(w);              /* w may be gone afterwards */
        pthread_mutex_lock(&p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

bool rt_worker_start(pthread_t *ret, void *(*fn)(void *arg), void *arg)
{
    pthread_attr_t attr;
    sigset_t all, old;
    if (pthread_attr_init(&attr))
        return false;
    sigfillset(&all);
    pthread_attr_setstacksize(&attr, WORKER_STACK_BYTES);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    bool ok = !pthread_create(ret, &attr, fn, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    return ok;
}

/* lock held */
static void start_worker_locked(struct rt_pool *p)
{
    if (p->started < p->max && rt_worker_start(&p->threads[p->started], worker, p))
        p->started++;
}

int rt_pool_push(struct rt_pool *p, struct rt_work *w)
{
    int r = 0;
    pthread_mutex_lock(&p->lock);
    ASSERT(!p->stop);
    if (p->queued >= p->idle)
        start_worker_locked(p);
    if (p->started) {
        w->next = NULL;
        if (p->tail)
            p->tail->next = w;
        else
            p->head = w;
        p->tail = w;
        p->queued++;
        if (p->idle)
            pthread_cond_signal(&p->more);
    } else {
        r = -ENOMEM;
    }
    pthread_mutex_unlock(&p->lock);
    return r;
}

void rt_pool_fini(struct rt_pool *p)
{
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->more);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < p->started; i++)
        pthread_join(p->threads[i], NULL);
    ASSERT(!p->head);
    pthread_cond_destroy(&p->more);
    pthread_mutex_destroy(&p->lock);
    free(p->threads);
}

/* ---- rt_blocking, rt_blocking_long, rt_cpu ---- */

struct job {
    struct rt_work work;
    struct rt_msg msg;
    struct co *co;
    int64_t (*fn)(void *arg);
    void *arg;
    int64_t result;
};

static void job_done(struct rt_msg *m)
{
    co_ready(CONTAINER_OF(m, struct job, msg)->co);
}

static void job_run(struct rt_work *w)
{
    struct job *j = CONTAINER_OF(w, struct job, work);
    j->result = j->fn(j->arg);
    rt_post(j->co->loop, &j->msg);
}

static int64_t run_in(struct co *co, struct rt_pool *p, int64_t (*fn)(void *arg), void *arg)
{
    if (co->loop->rt->sim) {    /* one thread, one seed: the work runs here; others may go before it and behind it */
        co_yield(co);
        int64_t r = fn(arg);
        co_yield(co);
        return r;
    }
    struct job j = { .work.run = job_run, .msg.fn = job_done, .co = co, .fn = fn, .arg = arg };
    int r = rt_pool_push(p, &j.work);
    if (r)
        return r;
    co_suspend(co);
    return j.result;
}

int64_t rt_blocking(struct co *co, int64_t (*fn)(void *arg), void *arg)
{
    return run_in(co, &co->loop->rt->blocking, fn, arg);
}

int64_t rt_blocking_long(struct co *co, int64_t (*fn)(void *arg), void *arg)
{
    struct rt *rt = co->loop->rt;
    int64_t r = -EBUSY;
    if (atomic_fetch_add(&rt->longs, 1) < RT_LONG_WORKERS_MAX)
        r = run_in(co, &rt->lengthy, fn, arg);
    atomic_fetch_sub(&rt->longs, 1);
    return r;
}

int64_t rt_cpu(struct co *co, int64_t (*fn)(void *arg), void *arg)
{
    return run_in(co, &co->loop->rt->cpu, fn, arg);
}

/* ---- rt_cpu_split ---- */

struct split {
    void (*fn)(void *arg, unsigned i);
    void *arg;
    unsigned n;
    atomic_uint next;               /* the first i that nobody has taken */
    atomic_uint left;               /* workers that are not done, and the caller while it queues them */
    struct rt_msg msg;
    struct co *co;
};

struct share { struct rt_work work; struct split *s; };

static void split_done(struct rt_msg *m)
{
    co_ready(CONTAINER_OF(m, struct split, msg)->co);
}

static void share_run(struct rt_work *w)
{
    struct split *s = CONTAINER_OF(w, struct share, work)->s;
    struct rt_loop *loop = s->co->loop;
    for (unsigned i; (i = atomic_fetch_add(&s->next, 1)) < s->n; )
        s->fn(s->arg, i);
    if (atomic_fetch_sub(&s->left, 1) == 1)          /* I3 */
        rt_post(loop, &s->msg);
}

int rt_cpu_split(struct co *co, void (*fn)(void *arg, unsigned i), void *arg, unsigned n)
{
    struct rt *rt = co->loop->rt;
    if (rt->sim) {
        for (unsigned i = 0; i < n; i++) {
            co_yield(co);
            fn(arg, i);
        }
        co_yield(co);
        return 0;
    }
    struct split s = { .fn = fn, .arg = arg, .n = n, .msg.fn = split_done, .co = co };
    struct share share[RT_SPLIT_MAX];
    unsigned width = rt_cpu_workers(rt), queued = 0;
    width = width < RT_SPLIT_MAX ? width : RT_SPLIT_MAX;
    width = width < n ? width : n;
    atomic_init(&s.left, width + 1);
    int r = 0;
    for (; queued < width && r == 0; queued += r == 0) {
        share[queued] = (struct share){ .work.run = share_run, .s = &s };
        r = rt_pool_push(&rt->cpu, &share[queued].work);
    }
    if (queued || !n)
        r = 0;                                       /* those who came in do the work of all */
    if (atomic_fetch_sub(&s.left, 1 + width - queued) != 1 + width - queued)
        co_suspend(co);
    return r;
}

unsigned rt_cpu_waiting(struct rt *rt)
{
    pthread_mutex_lock(&rt->cpu.lock);
    unsigned n = rt->cpu.queued;
    pthread_mutex_unlock(&rt->cpu.lock);
    return n;
}
