/* SPDX-License-Identifier: MIT
 *
 * rt_test.h: running test code inside coroutines, on each backend.
 *
 * Checks inside coroutines and on other threads use ASSERT (it names the place and ends the program): cmocka's own
 * would jump from one stack to another.
 */
#ifndef RT_RT_TEST_H
#define RT_RT_TEST_H

#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/list.h"
#include "base/prng.h"
#include "base/test.h"
#include "rt/io.h"
#include "rt/loop.h"
#include "rt/sync.h"

#define MS UINT64_C(1000000)
#define OK(call) ASSERT((call) == 0)

struct test_main { void (*fn)(struct co *co); bool done; };

static inline void test_main_co(struct co *co, void *arg)
{
    struct test_main *m = arg;
    m->fn(co);
    m->done = true;
}

static inline bool test_is_done(void *arg)
{
    return ((struct test_main *)arg)->done;
}

/* Runs fn as a coroutine of a manual runtime. */
static inline void test_run_opts(const struct rt_opts *opts, void (*fn)(struct co *co))
{
    struct rt *rt;
    struct byre_err err;
    struct test_main m = { fn, false };
    if (rt_new(opts, &rt, &err)) {
        print_error("%s\n", err.text);
        abort();
    }
    OK(rt_spawn(rt_loop_at(rt, 0), test_main_co, &m));
    rt_loop_run(rt_loop_at(rt, 0), test_is_done, &m);
    rt_free(rt);
}

static inline void test_run(enum rt_backend_kind kind, void (*fn)(struct co *co))
{
    test_run_opts(&(struct rt_opts){ .backend = kind, .manual = true }, fn);
}

/* Defines a cmocka test per backend: name_uring and name_threads. */
#define ON_BOTH(name)                                                                           \
    static void name##_uring(void **state) { test_run(RT_BACKEND_URING, name); }               \
    static void name##_threads(void **state) { test_run(RT_BACKEND_THREADS, name); }
#define BOTH(name) cmocka_unit_test(name##_uring), cmocka_unit_test(name##_threads)

/* Runs fn on a loop of a threaded runtime and waits for it from the outside. */
struct test_remote { void (*fn)(struct co *co); sem_t done; };

static inline void test_remote_co(struct co *co, void *arg)
{
    struct test_remote *r = arg;
    r->fn(co);
    sem_post(&r->done);
}

static inline void test_run_threaded(const struct rt_opts *opts, void (*fn)(struct co *co))
{
    struct rt *rt;
    struct test_remote r = { .fn = fn };
    OK(rt_new(opts, &rt, NULL));
    sem_init(&r.done, 0, 0);
    OK(rt_spawn_on(rt_loop_at(rt, 0), test_remote_co, &r));
    while (sem_wait(&r.done))
        ;
    rt_free(rt);
    sem_destroy(&r.done);
}

#endif
