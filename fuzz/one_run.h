/* SPDX-License-Identifier: MIT
 *
 * one_run.h: for fuzz targets over code that suspends: one run of a coroutine, on a loop that all inputs share.
 */
#ifndef FUZZ_ONE_RUN_H
#define FUZZ_ONE_RUN_H

#include <stdbool.h>

#include "base/assert.h"
#include "rt/loop.h"

struct one_run { void (*fn)(struct co *co, void *arg); void *arg; bool done; };

static void one_run_co(struct co *co, void *arg)
{
    struct one_run *run = arg;
    run->fn(co, run->arg);
    run->done = true;
}

static bool one_run_done(void *arg) { return ((struct one_run *)arg)->done; }

/* Runs fn to its end; waits for whatever it waits for. */
static inline void one_run(void (*fn)(struct co *co, void *arg), void *arg)
{
    static struct rt *rt;
    struct rt_opts o = { .loops = 1, .manual = true, .cpu_workers = 1, .backend = RT_BACKEND_THREADS };
    struct one_run run = { fn, arg, false };
    if (!rt)
        ASSERT(!rt_new(&o, &rt, NULL));
    ASSERT(!rt_spawn_on(rt_loop_at(rt, 0), one_run_co, &run));
    rt_loop_run(rt_loop_at(rt, 0), one_run_done, &run);
}

#endif
