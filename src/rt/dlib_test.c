/* SPDX-License-Identifier: MIT
 *
 * dlib_test.c: libraries that are loaded when they are first needed: found, not there, without one of the functions.
 *
 * The library is libm: everybody has it, and nothing here is linked with it.
 */
#include "rt/dlib.h"
#include "rt/rt_test.h"

struct table { double (*floor)(double x); double (*ceil)(double x); };

static const char *const good_names[] = { "floor", "ceil" }, *const bad_names[] = { "floor", "no_such_function" };
static struct table good, again, bad, absent;
static struct rt_dlib good_lib = RT_DLIB("libm.so.6", "tests", good, good_names), again_lib = RT_DLIB("libm.so.6", "tests", again, good_names),
                      bad_lib = RT_DLIB("libm.so.6", "tests", bad, bad_names), absent_lib = RT_DLIB("libno-such.so.7", "tests", absent, good_names);

static void finds_functions(struct co *co)
{
    OK(rt_dlib_load(co, &good_lib, NULL));
    ASSERT(good.floor(2.5) == 2.0 && good.ceil(2.5) == 3.0);
    OK(rt_dlib_load(co, &good_lib, NULL));
}

static bool says(const struct byre_err *err, const char *word)
{
    return strstr(err->text, word);
}

static void leaves_the_table_alone(struct co *co)
{
    struct byre_err err = { 0 };
    for (int i = 0; i < 2; i++) {                /* a failure is not remembered */
        ASSERT(rt_dlib_load(co, &bad_lib, &err) == -ENOTSUP);
        ASSERT(says(&err, "tests need the library libm.so.6") && says(&err, "no_such_function"));
        ASSERT(!bad.floor && !bad.ceil);
        ASSERT(rt_dlib_load(co, &absent_lib, &err) == -ENOTSUP);
        ASSERT(says(&err, "libno-such.so.7") && !absent.floor);
        ASSERT(rt_dlib_load(co, &absent_lib, NULL) == -ENOTSUP);
    }
}

ON_BOTH(finds_functions)
ON_BOTH(leaves_the_table_alone)

/* ---- two loops at the same time ---- */

struct meeting { struct rt *rt; _Atomic int there, loaded; sem_t done; };

static void load_with_the_other(struct co *co, void *arg)
{
    struct meeting *m = arg;
    atomic_fetch_add(&m->there, 1);
    while (atomic_load(&m->there) < 2)
        co_yield(co);
    OK(rt_dlib_load(co, &again_lib, NULL));
    ASSERT(again.floor(-0.5) == -1.0 && again.ceil(0.5) == 1.0);
    atomic_fetch_add(&m->loaded, 1);
    sem_post(&m->done);
}

static void two_loops_at_once(void **state)
{
    struct meeting m = { 0 };
    OK(rt_new(&(struct rt_opts){ .loops = 2 }, &m.rt, NULL));
    sem_init(&m.done, 0, 0);
    for (unsigned i = 0; i < 2; i++)
        OK(rt_spawn_on(rt_loop_at(m.rt, i), load_with_the_other, &m));
    for (int i = 0; i < 2; i++)
        while (sem_wait(&m.done))
            ;
    rt_free(m.rt);
    ASSERT(m.loaded == 2);
    sem_destroy(&m.done);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_loops_at_once),
        BOTH(finds_functions),
        BOTH(leaves_the_table_alone),
    };
    return cmocka_run_group_tests_name("rt-dlib", tests, NULL, NULL);
}
