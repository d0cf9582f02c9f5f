/* SPDX-License-Identifier: MIT
 *
 * rt.c: making and freeing a runtime.
 *
 * Purpose      Chooses the backend, starts the threads of the loops, and ends them in an order that leaves nobody
 *              holding freed memory.
 * Owns         struct rt, its loops and pools
 * Invariants   I1 rt_new either gives a runtime whose loops all run, or leaves nothing behind
 *              I2 no loop ends before all loops are idle, all coroutines have ended and no message is in flight
 * Order        ending: (a) every loop runs until its coroutines have ended; (b) rounds of one message to each loop
 *              until a round finds that no other message was delivered; (c) loops park, pools are joined (a worker
 *              may still be inside rt_post of its last result), the closer is told (closer.c I3); (d) loops release backend and stacks; join; free
 * Concurrency  rt_new, rt_free: one thread, not a loop's. rt_loop_more: one call at a time, of any thread that may block
 * Failure      rt_new: -errno with *err. A coroutine that has not ended a minute after rt_free began although nothing
 *              is left to do on its loop is a bug of the caller, asserted.
 * Tests        rt_test.c
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "rt/rt_priv.h"

#define STUCK_NS UINT64_C(60000000000)
#define STOP_TURN_NS UINT64_C(100000000)

/* ---- one loop ---- */

int rt_loop_init(struct rt *rt, unsigned index)
{
    struct rt_loop *loop = &rt->loops[index];
    loop->rt = rt;
    loop->index = index;
    loop->ops = rt->ops;
    loop->owner = pthread_self();
    list_init(&loop->all_co);
    int r = rt->ops->init(loop, &loop->state);
    loop->has_state = r == 0;
    return r;
}

void rt_loop_fini(struct rt_loop *loop)
{
    INV(I2, !loop->live && !loop->ready_head);
    co_pool_fini(loop);
    rt_bufs_fini(loop);
    if (loop->has_state)
        loop->ops->fini(loop->state);
    loop->has_state = false;
}

/* Runs until the loop's coroutines have ended. */
static void run_out(struct rt_loop *loop)
{
    uint64_t idle_since = 0;
    loop->stop = true;
    while (loop->live || loop->ready_head) {
        uint64_t before = loop->delivered;
        bool busy = loop->ready_head || loop->timers.root;
        rt_loop_turn(loop, STOP_TURN_NS);
        if (busy || loop->ready_head || loop->delivered != before)
            idle_since = 0;
        else if (!idle_since)
            idle_since = rt_now(loop);
        else
            INV(I2, rt_now(loop) - idle_since < STUCK_NS);
    }
}

static void wait_sem(sem_t *s)
{
    while (sem_wait(s))
        ;
}

static void *loop_thread(void *arg)
{
    struct rt_loop *loop = arg;
    struct rt *rt = loop->rt;
    loop->init_result = rt_loop_init(rt, (unsigned)(loop - rt->loops));
    bool ok = loop->init_result == 0;
    loop->tid = gettid();
    sem_post(&rt->started);
    if (!ok)
        return NULL;
    while (!loop->stop)
        rt_loop_turn(loop, UINT64_MAX);
    run_out(loop);
    while (!loop->parked) {
        if (loop->sync_asked && !loop->live && !loop->ready_head) {
            loop->sync_asked = false;
            loop->sync_delivered = loop->delivered;
            sem_post(&loop->sync_sem);
        }
        rt_loop_turn(loop, UINT64_MAX);
    }
    sem_post(&loop->sync_sem);
    wait_sem(&rt->go_exit);
    rt_loop_fini(loop);
    return NULL;
}

/* ---- ending ---- */

static void stop_arrived(struct rt_msg *m)
{
    struct rt_loop *loop = CONTAINER_OF(m, struct rt_loop, end_msg);
    loop->delivered--;
    loop->stop = loop->attention = true;
    rt_loop_kick(loop);         /* the turn that delivers this must not end in a sleep */
}

static void sync_arrived(struct rt_msg *m)
{
    struct rt_loop *loop = CONTAINER_OF(m, struct rt_loop, sync_msg);
    loop->delivered--;
    loop->sync_asked = loop->attention = true;
    rt_loop_kick(loop);         /* the turn that delivers this must not end in a sleep */
}

static void park_arrived(struct rt_msg *m)
{
    struct rt_loop *loop = CONTAINER_OF(m, struct rt_loop, end_msg);
    loop->delivered--;
    loop->parked = loop->attention = true;
    rt_loop_kick(loop);         /* the turn that delivers this must not end in a sleep */
}

static void wait_all(struct rt *rt)
{
    for (unsigned i = 0; i < rt->running; i++)
        wait_sem(&rt->loops[i].sync_sem);
}

static void tell_all(struct rt *rt, void (*fn)(struct rt_msg *m))
{
    for (unsigned i = 0; i < rt->running; i++) {
        rt->loops[i].end_msg.fn = fn;
        rt_post(&rt->loops[i], &rt->loops[i].end_msg);
    }
}

/* One message to each loop, answered by all once they have no coroutine. Returns how many other messages were
 * delivered until then. The same number twice: nothing was in flight when the second round began. */
static uint64_t sync_round(struct rt *rt)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < rt->running; i++) {
        rt->loops[i].sync_msg.fn = sync_arrived;
        rt_post(&rt->loops[i], &rt->loops[i].sync_msg);
    }
    wait_all(rt);
    for (unsigned i = 0; i < rt->running; i++)
        sum += rt->loops[i].sync_delivered;
    return sum;
}

static void end_threads(struct rt *rt)
{
    tell_all(rt, stop_arrived);
    uint64_t last = sync_round(rt), now;
    while ((now = sync_round(rt)) != last)
        last = now;
    tell_all(rt, park_arrived);
    wait_all(rt);
}

/* Without threads: goes on until nothing moves. */
static void end_inline(struct rt *rt)
{
    bool any = true;
    while (any) {
        any = false;
        for (unsigned i = 0; i < rt->count; i++) {
            if (!rt->sim)
                run_out(&rt->loops[i]);
            any |= rt->sim ? rt_loop_step(&rt->loops[i]) : rt_loop_deliver(&rt->loops[i]) > 0;
        }
    }
}

static void release(struct rt *rt)
{
    for (unsigned i = 0; i < rt->slots; i++)
        sem_destroy(&rt->loops[i].sync_sem);
    sem_destroy(&rt->started);
    sem_destroy(&rt->go_exit);
    free(rt->loops);
    free(rt);
}

static void free_pools(struct rt *rt)
{
    struct rt_pool *all[] = { &rt->blocking, &rt->cpu, &rt->io, &rt->lengthy };
    while (rt->pools)
        rt_pool_fini(all[--rt->pools]);
    rt_closer_end(rt->closer);
}

static void join_loops(struct rt *rt)
{
    for (unsigned i = 0; i < rt->slots; i++)
        if (rt->loops[i].has_thread && !rt->loops[i].init_result)
            sem_post(&rt->go_exit);
    for (unsigned i = 0; i < rt->slots; i++)
        if (rt->loops[i].has_thread)
            pthread_join(rt->loops[i].thread, NULL);
}

void rt_free(struct rt *rt)
{
    if (!rt)
        return;
    bool threads = !rt->manual && !rt->sim;
    if (threads)
        end_threads(rt);
    else
        end_inline(rt);
    free_pools(rt);
    if (threads)
        join_loops(rt);
    for (unsigned i = 0; !threads && i < rt->count; i++)
        rt_loop_fini(&rt->loops[i]);
    release(rt);
}

/* ---- making ---- */

static struct rt *alloc_rt(unsigned loops, unsigned spare)
{
    struct rt *rt = calloc(1, sizeof *rt);
    if (!rt)
        return NULL;
    void *mem;
    size_t bytes = (loops + spare) * sizeof *rt->loops;
    if (posix_memalign(&mem, _Alignof(struct rt_loop), bytes)) {
        free(rt);
        return NULL;
    }
    memset(mem, 0, bytes);
    rt->loops = mem;
    rt->count = loops;
    rt->slots = loops + spare;
    sem_init(&rt->started, 0, 0);
    sem_init(&rt->go_exit, 0, 0);
    for (unsigned i = 0; i < rt->slots; i++)
        sem_init(&rt->loops[i].sync_sem, 0, 0);
    return rt;
}

static int init_pools(struct rt *rt, unsigned cpu_workers)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (!cpu_workers)
        cpu_workers = cores > 0 ? (unsigned)cores : 1;
    if (cpu_workers > RT_CPU_WORKERS_MAX)
        cpu_workers = RT_CPU_WORKERS_MAX;
    struct { struct rt_pool *pool; unsigned max; } all[] = {
        { &rt->blocking, RT_BLOCKING_WORKERS_MAX }, { &rt->cpu, cpu_workers }, { &rt->io, RT_BLOCKING_WORKERS_MAX },
        { &rt->lengthy, RT_LONG_WORKERS_MAX },
    };
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
        int r = rt_pool_init(all[i].pool, all[i].max);
        if (r)
            return r;
        rt->pools++;
    }
    return rt_closer_new(&rt->closer);
}

/* Starts the thread of loop i and waits until it runs. */
static int start_loop(struct rt *rt, unsigned i)
{
    struct rt_loop *loop = &rt->loops[i];
    sigset_t all, old;
    loop->rt = rt;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = -pthread_create(&loop->thread, NULL, loop_thread, loop);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r)
        return r;
    loop->has_thread = true;
    wait_sem(&rt->started);
    return loop->init_result;
}

/* Ends what start_loop began, in a runtime where nothing has happened yet. */
static void abandon(struct rt *rt)
{
    if (rt->running && !rt->manual)
        end_threads(rt);
    free_pools(rt);
    join_loops(rt);
    release(rt);
}

static int try_new(const struct rt_opts *opts, const struct rt_backend_ops *ops, struct rt **ret_rt)
{
    struct rt *rt = alloc_rt(opts->loops ? opts->loops : 1, opts->spare);
    if (!rt)
        return -ENOMEM;
    rt->manual = opts->manual;
    rt->ops = ops;
    rt->ring_entries = opts->ring_entries;
    int r = init_pools(rt, opts->cpu_workers);
    for (unsigned i = 0; !r && i < rt->count; i++) {
        r = rt->manual ? rt_loop_init(rt, i) : start_loop(rt, i);
        if (!r)
            rt->running = i + 1;
    }
    if (r) {
        abandon(rt);
        return r;
    }
    *ret_rt = rt;
    return 0;
}

/* AUTO obeys the environment. false: it holds a word that means nothing. */
static bool choose_kind(enum rt_backend_kind *kind)
{
    const char *word = getenv("BYRE_BACKEND");
    if (*kind != RT_BACKEND_AUTO || !word || !*word || !strcmp(word, "auto"))
        return true;
    if (!strcmp(word, "uring") || !strcmp(word, "io_uring"))
        *kind = RT_BACKEND_URING;
    else if (!strcmp(word, "threads"))
        *kind = RT_BACKEND_THREADS;
    else
        return false;
    return true;
}

int rt_new(const struct rt_opts *opts, struct rt **ret_rt, struct byre_err *err)
{
    enum rt_backend_kind kind = opts->backend;
    if (opts->loops > RT_LOOPS_MAX || opts->spare > RT_LOOPS_MAX - max_u64(opts->loops, 1) || (opts->manual && (opts->loops > 1 || opts->spare)))
        return byre_fail(err, BAD_ARGUMENT, "%u loops and %u spare ones: from 1 to %u are possible, and 1 in manual mode", opts->loops, opts->spare, RT_LOOPS_MAX);
    if (!choose_kind(&kind))
        return byre_fail(err, BAD_OPTION, "BYRE_BACKEND is '%s': expected uring, threads or auto", getenv("BYRE_BACKEND"));
    int r = -ENOSYS;
    if (kind != RT_BACKEND_THREADS)
        r = try_new(opts, &rt_uring_ops, ret_rt);
    if (r && kind == RT_BACKEND_URING)
        return byre_fail_code(err, SYSTEM, r, "io_uring cannot be used here: %s", strerror(-r));
    if (r)
        r = try_new(opts, &rt_threads_ops, ret_rt);
    if (r)
        return byre_fail_code(err, SYSTEM, r, "the runtime cannot start: %s", strerror(-r));
    return 0;
}

unsigned rt_loop_count(const struct rt *rt)
{
    return rt->count;
}

unsigned rt_loop_slots(const struct rt *rt)
{
    return rt->slots;
}

/* ---- loops that come later ---- */

int rt_loop_more(struct rt *rt, struct rt_loop **ret_loop)
{
    unsigned i = rt->running;
    if (i == rt->slots)
        return -ENOSPC;
    struct rt_loop *loop = &rt->loops[i];
    int r = start_loop(rt, i);
    if (r) {
        if (loop->has_thread)            /* it has ended by itself: the slot is as it was, but for what its start has left */
            pthread_join(loop->thread, NULL);
        loop->has_thread = false;
        return r;
    }
    rt->running = i + 1;
    *ret_loop = loop;
    return 0;
}

void rt_loop_name(struct rt_loop *loop, const char *name)
{
    char short_name[16];
    snprintf(short_name, sizeof short_name, "%s", name);
    if (loop->has_thread)
        (void)pthread_setname_np(loop->thread, short_name);      /* it is told apart by its number, too */
}

int64_t rt_loop_thread_id(const struct rt_loop *loop)
{
    return loop->tid;
}

unsigned rt_cpu_workers(const struct rt *rt)
{
    return rt->cpu.max ? rt->cpu.max : 1;
}

struct rt_loop *rt_loop_at(struct rt *rt, unsigned i)
{
    ASSERT(i < rt->slots);
    return &rt->loops[i];
}

/* ---- for the simulator ---- */

int rt_new_sim(const struct rt_backend_ops *ops, void *backend_arg, unsigned loops, struct rt **ret_rt)
{
    ASSERT(loops >= 1 && loops <= RT_LOOPS_MAX);
    struct rt *rt = alloc_rt(loops, 0);
    if (!rt)
        return -ENOMEM;
    rt->sim = true;
    rt->ops = ops;
    rt->backend_arg = backend_arg;
    for (unsigned i = 0; i < loops; i++) {
        int r = rt_loop_init(rt, i);
        if (r) {
            while (i--)
                rt_loop_fini(&rt->loops[i]);
            release(rt);
            return r;
        }
    }
    rt->running = loops;
    *ret_rt = rt;
    return 0;
}

void rt_sim_kill(struct rt *rt)
{
    ASSERT(rt->sim && !rt->stepping);
    for (unsigned i = 0; i < rt->count; i++)        /* first all: a message may lie in a frame of another loop */
        rt_loop_drop_messages(&rt->loops[i]);
    for (unsigned i = 0; i < rt->count; i++)
        co_kill_all(&rt->loops[i]);
}
