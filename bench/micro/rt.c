/* SPDX-License-Identifier: MIT
 *
 * rt.c: coroutines, sections, requests to the backend.
 *
 * Purpose      See the table at the end.
 * Owns         Nothing.
 * Invariants   None.
 * Order        None.
 * Concurrency  One thread; 64 coroutines where the loop's own turn is to be shared by many, as it is under load.
 * Failure      None.
 * Tests        tests/bench/micro_test.py
 */
#include "micro.h"

#include "rt/epoch.h"
#include "rt/io.h"

enum { MANY = 64 };

struct share { uint64_t n; };

static void with_many(struct co *co, uint64_t n, co_fn *fn)
{
    struct rt_task t[MANY];
    struct share s = { n / MANY };
    for (unsigned i = 0; i < MANY; i++)
        OK(rt_task_start(co_loop(co), &t[i], fn, &s));
    for (unsigned i = 0; i < MANY; i++)
        rt_task_join(co, &t[i]);
}

static void yielder(struct co *co, void *arg)
{
    for (uint64_t i = ((struct share *)arg)->n; i; i--)
        co_yield(co);
}

static void reader(struct co *co, void *arg)
{
    char buf[64];
    struct iovec v = { buf, sizeof buf };
    for (uint64_t i = ((struct share *)arg)->n; i; i--)
        ASSERT(rt_preadv(co, 0, &v, 1, 0) == sizeof buf);
}

static void switches(struct co *co, uint64_t n) { with_many(co, n, yielder); }
static void requests(struct co *co, uint64_t n) { with_many(co, n, reader); }

static void empty(struct co *co, void *arg) { (void)arg; }

static void spawns(struct co *co, uint64_t n)
{
    for (uint64_t i = 0; i < n; i += MANY) {
        for (unsigned k = 0; k < MANY; k++)
            OK(rt_spawn(co_loop(co), empty, NULL));
        co_yield(co);
    }
}

static void sections(struct co *co, uint64_t n)
{
    struct epoch *d;
    OK(epoch_new(co_loop(co), &d));
    for (uint64_t i = 0; i < n; i++)
        epoch_leave(d, co_loop(co), epoch_enter(d, co_loop(co)));
    epoch_free(d);
    co_yield(co);               /* its memory goes by message */
}

const struct micro micro_rt[] = {
    { "switch", "a coroutine lets others run and is run again", switches },
    { "spawn", "a coroutine is started, runs and ends", spawns },
    { "request", "a read goes to the backend and comes back", requests },
    { "epoch", "an epoch section is entered and left", sections },
    { NULL },
};
