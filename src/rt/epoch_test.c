/* SPDX-License-Identifier: MIT
 *
 * epoch_test.c: grace periods: order and stamps on one loop, then readers on several loops against a writer that
 * poisons what it takes away.
 */
#include <stdatomic.h>

#include "rt/epoch.h"
#include "rt/rt_priv.h"
#include "rt/rt_test.h"

/* ---- one loop ---- */

static char trace[64];

static void note(char c)
{
    size_t n = strlen(trace);
    ASSERT(n + 1 < sizeof trace);
    trace[n] = c;
    trace[n + 1] = 0;
}

struct named { struct epoch_cb cb; char name; struct epoch *d; };

static void named_ran(struct epoch_cb *cb)
{
    note(CONTAINER_OF(cb, struct named, cb)->name);
}

static void callbacks_wait_for_sections(struct co *co)
{
    struct rt_loop *loop = co_loop(co);
    struct epoch *d;
    struct named a = { .name = 'a' }, b = { .name = 'b' }, c = { .name = 'c' };
    OK(epoch_new(loop, &d));
    trace[0] = 0;
    epoch_token outer = epoch_enter(d, loop);
    epoch_defer(d, &a.cb, named_ran);
    for (int i = 0; i < 10; i++)
        co_yield(co);
    ASSERT(!strcmp(trace, ""));
    epoch_token later = epoch_enter(d, loop);       /* opened behind the call: does not hold it up */
    epoch_leave(d, loop, outer);
    co_yield(co);
    co_yield(co);
    ASSERT(!strcmp(trace, "a"));
    epoch_defer(d, &b.cb, named_ran);
    epoch_defer(d, &c.cb, named_ran);
    for (int i = 0; i < 10; i++)
        co_yield(co);
    ASSERT(!strcmp(trace, "a"));
    epoch_leave(d, loop, later);
    epoch_drain(co, d);
    ASSERT(!strcmp(trace, "abc"));
    epoch_free(d);
}
ON_BOTH(callbacks_wait_for_sections)

static void never_inside_the_call(struct co *co)
{
    struct epoch *d;
    struct named a = { .name = 'x' };
    OK(epoch_new(co_loop(co), &d));
    trace[0] = 0;
    epoch_defer(d, &a.cb, named_ran);
    ASSERT(!strcmp(trace, ""));
    epoch_drain(co, d);
    ASSERT(!strcmp(trace, "x"));
    epoch_wait(co, d);
    epoch_free(d);
    epoch_free(NULL);
}
ON_BOTH(never_inside_the_call)

static void again(struct epoch_cb *cb)
{
    struct named *n = CONTAINER_OF(cb, struct named, cb);
    note(n->name);
    if (n->name++ < 'e')
        epoch_defer(n->d, cb, again);
}

static void callbacks_may_queue_more(struct co *co)
{
    struct named a = { .name = 'a' };
    OK(epoch_new(co_loop(co), &a.d));
    trace[0] = 0;
    epoch_defer(a.d, &a.cb, again);
    while (strlen(trace) < 5)
        epoch_wait(co, a.d);
    epoch_drain(co, a.d);
    ASSERT(!strcmp(trace, "abcde"));
    epoch_free(a.d);
}
ON_BOTH(callbacks_may_queue_more)

static void stamps(struct co *co)
{
    struct rt_loop *loop = co_loop(co);
    struct epoch *d;
    OK(epoch_new(loop, &d));
    epoch_token t = epoch_enter(d, loop);
    uint64_t s1 = epoch_stamp(d);
    ASSERT(!epoch_passed(d, s1));
    for (int i = 0; i < 5; i++)
        co_yield(co);
    ASSERT(!epoch_passed(d, s1));
    uint64_t s2 = epoch_stamp(d);
    ASSERT(s2 > s1);                            /* the one that runs began before now */
    epoch_leave(d, loop, t);
    for (int i = 0; i < 5; i++)
        co_yield(co);
    ASSERT(epoch_passed(d, s1) && epoch_passed(d, s2));     /* by themselves, nobody waited */
    epoch_wait_stamp(co, d, s2);
    uint64_t s3 = epoch_stamp(d);
    epoch_wait_stamp(co, d, s3);
    ASSERT(epoch_passed(d, s3));
    epoch_free(d);
}
ON_BOTH(stamps)

/* A loop reads the phase, is held up while grace periods pass, and then counts itself under the old phase. The next
 * grace period has to see it, whichever phase that is. */
static void held_up_between_reading_and_counting(struct co *co)
{
    struct rt_loop *loop = co_loop(co);
    struct epoch *d;
    OK(epoch_new(loop, &d));
    for (unsigned phase = 0; phase < 2; phase++) {
        for (int flips = 0; flips < 3; flips++) {
            struct named a = { .name = 'l' };
            trace[0] = 0;
            epoch_token late = epoch_enter_late(d, loop, phase);
            epoch_defer(d, &a.cb, named_ran);
            for (int i = 0; i < 10; i++)
                co_yield(co);
            ASSERT(!strcmp(trace, ""));
            epoch_token t = epoch_enter(d, loop);       /* whoever comes now does not hold it up */
            epoch_leave(d, loop, late);
            for (int i = 0; i < 10; i++)
                co_yield(co);
            ASSERT(!strcmp(trace, "l"));
            uint64_t s = epoch_stamp(d);                /* changes the phase, or not */
            co_yield(co);
            epoch_leave(d, loop, t);
            epoch_wait_stamp(co, d, s);
        }
    }
    epoch_free(d);
}
ON_BOTH(held_up_between_reading_and_counting)

/* New sections open all the time, one always overlapping the next: a grace period ends all the same. */
static bool stop_churn;
static void churn(struct co *co, void *arg)
{
    struct rt_loop *loop = co_loop(co);
    epoch_token t = epoch_enter(arg, loop);
    while (!stop_churn) {
        co_yield(co);
        epoch_token next = epoch_enter(arg, loop);
        epoch_leave(arg, loop, t);
        t = next;
    }
    epoch_leave(arg, loop, t);
}

static void no_starvation(struct co *co)
{
    struct rt_task t[3];
    struct epoch *d;
    OK(epoch_new(co_loop(co), &d));
    stop_churn = false;
    for (int i = 0; i < 3; i++)
        OK(rt_task_start(co_loop(co), &t[i], churn, d));
    for (int i = 0; i < 100; i++)
        epoch_wait(co, d);
    stop_churn = true;
    for (int i = 0; i < 3; i++)
        rt_task_join(co, &t[i]);
    epoch_drain(co, d);
    epoch_free(d);
}
ON_BOTH(no_starvation)

/* ---- several loops ----
 * The writer publishes a cell, readers use the published one inside sections, suspending now and then. The writer
 * swaps it, and after a grace period poisons the old one without any lock: a reader that still looks at it sees the
 * poison (and TSan sees the race). */

enum { LOOPS = 3, READERS = 6, CELLS = 8, SWAPS = 1500, POISON = -1 };

struct cell { long value[4]; struct epoch_cb cb; struct board *board; bool busy; };
struct board {
    struct epoch *d;
    struct rt *rt;
    _Atomic(struct cell *) current;
    struct cell cells[CELLS];
    atomic_bool stop;
    atomic_int readers;
    atomic_long reads;
};

static void read_cell(struct co *co, struct board *b, struct prng *p)
{
    struct rt_loop *loop = co_loop(co);
    epoch_token t = epoch_enter(b->d, loop);
    struct cell *c = atomic_load_explicit(&b->current, memory_order_acquire);
    long v = c->value[0];
    ASSERT(v != POISON);
    for (uint64_t n = prng_below(p, 4); n; n--)
        co_yield(co);
    if (prng_one_in(p, 200))
        (void)co_sleep(co, prng_below(p, 300000));
    for (int i = 0; i < 4; i++)
        ASSERT(c->value[i] == v);
    epoch_leave(b->d, loop, t);
    atomic_fetch_add_explicit(&b->reads, 1, memory_order_relaxed);
}

static void reader(struct co *co, void *arg)
{
    struct board *b = arg;
    struct prng p;
    prng_init(&p, (uint64_t)(uintptr_t)co);
    while (!atomic_load_explicit(&b->stop, memory_order_relaxed)) {
        read_cell(co, b, &p);
        if (prng_one_in(&p, 3))
            co_yield(co);
        if (prng_one_in(&p, 500))
            (void)co_sleep(co, 200000);     /* let the loop fall asleep */
    }
    atomic_fetch_sub(&b->readers, 1);
}

static void poison(struct epoch_cb *cb)
{
    struct cell *c = CONTAINER_OF(cb, struct cell, cb);
    for (int i = 0; i < 4; i++)
        c->value[i] = POISON;
    c->busy = false;
}

static struct cell *free_cell(struct co *co, struct board *b)
{
    for (;;) {
        for (int i = 0; i < CELLS; i++)
            if (!b->cells[i].busy)
                return &b->cells[i];
        epoch_wait(co, b->d);
        co_yield(co);
    }
}

static void publish(struct co *co, struct board *b, long v)
{
    struct cell *c = free_cell(co, b), *old = atomic_load_explicit(&b->current, memory_order_relaxed);
    c->busy = true;
    for (int i = 0; i < 4; i++)
        c->value[i] = v;
    atomic_store_explicit(&b->current, c, memory_order_release);
    if (!old)
        return;
    switch (v % 3) {
    case 0:
        epoch_defer(b->d, &old->cb, poison);
        break;
    case 1:
        epoch_wait(co, b->d);
        poison(&old->cb);
        break;
    default: {
        uint64_t s = epoch_stamp(b->d);
        while (!epoch_passed(b->d, s))
            OK(co_sleep(co, 20000));
        poison(&old->cb);
    }
    }
}

static void readers_and_writer(struct co *co)
{
    struct board b = { .rt = rt_of(co_loop(co)) };
    OK(epoch_new(co_loop(co), &b.d));
    publish(co, &b, 0);
    atomic_store(&b.readers, READERS);
    for (unsigned i = 0; i < READERS; i++)
        OK(rt_spawn_on(rt_loop_at(b.rt, i % rt_loop_count(b.rt)), reader, &b));
    for (long v = 1; v <= SWAPS; v++) {
        publish(co, &b, v);
        if (v % 7 == 0)
            co_yield(co);
    }
    atomic_store(&b.stop, true);
    while (atomic_load(&b.readers))
        OK(co_sleep(co, 1 * MS));
    epoch_drain(co, b.d);
    epoch_free(b.d);                /* straight away: others may still be on their way out of epoch_leave */
    ASSERT(atomic_load(&b.reads) > 100);
}

static void several_loops(void **state)
{
    for (int kind = RT_BACKEND_URING; kind <= RT_BACKEND_THREADS; kind++)
        for (unsigned loops = 1; loops <= LOOPS; loops++)
            test_run_threaded(&(struct rt_opts){ .loops = loops, .backend = (enum rt_backend_kind)kind }, readers_and_writer);
}

/* A section on another loop is left while the home loop sleeps: only the message can tell it. Then the domain goes. */
struct holder { struct epoch *d; struct co_xevent entered; uint64_t hold_ns; };

static void hold_section(struct co *co, void *arg)
{
    struct holder *h = arg;
    epoch_token t = epoch_enter(h->d, co_loop(co));
    co_xevent_set(&h->entered);
    if (h->hold_ns)
        OK(co_sleep(co, h->hold_ns));
    epoch_leave(h->d, co_loop(co), t);
}

static void wakes_the_home_loop(struct co *co)
{
    struct rt *rt = rt_of(co_loop(co));
    for (unsigned i = 0; i < 300; i++) {
        struct holder h = { .hold_ns = i % 3 * 100000 };
        OK(epoch_new(co_loop(co), &h.d));
        co_xevent_init(&h.entered, co_loop(co));
        OK(rt_spawn_on(rt_loop_at(rt, 1 + i % 2), hold_section, &h));
        co_xevent_wait(co, &h.entered);
        epoch_wait(co, h.d);
        epoch_free(h.d);
    }
}

static void wakes_the_home_loop_test(void **state)
{
    for (int kind = RT_BACKEND_URING; kind <= RT_BACKEND_THREADS; kind++)
        test_run_threaded(&(struct rt_opts){ .loops = 3, .backend = (enum rt_backend_kind)kind }, wakes_the_home_loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(callbacks_wait_for_sections), BOTH(never_inside_the_call), BOTH(callbacks_may_queue_more), BOTH(stamps),
        BOTH(held_up_between_reading_and_counting), BOTH(no_starvation), cmocka_unit_test(several_loops), cmocka_unit_test(wakes_the_home_loop_test),
    };
    return cmocka_run_group_tests_name("rt-epoch", tests, NULL, NULL);
}
