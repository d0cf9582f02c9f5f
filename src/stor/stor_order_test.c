/* SPDX-License-Identifier: MIT
 *
 * stor_order_test.c: holds on ranges, from two loops at once.
 *
 * Purpose      Exclusion, order of arrival, and the way between the two modes, checked by counters beside the holds.
 * Tests        stor_order.c
 */
#include "stor/stor_test.h"

#include <sched.h>
#include <stdlib.h>

enum { CELLS = 16, WORKERS = 32, ROUNDS = 400 };

static struct stor_order order;
static _Atomic int cell[CELLS];           /* > 0: shared holds; -1000000: an exclusive one */
static _Atomic unsigned exclusive_done;

struct worker { uint64_t seed; unsigned exclusive_one_in; };

static void use_cells(struct co *co, struct prng *p, bool exclusive, unsigned first, unsigned last)
{
    int by = exclusive ? -1000000 : 1;
    for (unsigned i = first; i < last; i++) {
        int was = atomic_fetch_add(&cell[i], by);
        CHECK(exclusive ? was == 0 : was >= 0);
    }
    if (prng_one_in(p, 3))
        co_yield(co);
    else if (prng_one_in(p, 4))
        (void)co_sleep(co, prng_below(p, 20000));
    for (unsigned i = first; i < last; i++)
        atomic_fetch_sub(&cell[i], by);
}

static void work(struct co *co, void *arg)
{
    const struct worker *w = arg;
    struct prng p;
    prng_init(&p, w->seed);
    for (unsigned n = 0; n < ROUNDS; n++) {
        bool exclusive = prng_one_in(&p, w->exclusive_one_in);
        unsigned first = (unsigned)prng_below(&p, CELLS), last = (unsigned)prng_range(&p, first + 1, CELLS);
        if (prng_one_in(&p, 2))
            last = first + 1;
        struct order_hold h = { .start = first * 4096u, .end = last == CELLS && exclusive ? UINT64_MAX : last * 4096u };
        order_enter(co, &order, &h, exclusive);
        if (n % 16 == 0)
            order_check(&order);
        use_cells(co, &p, exclusive, first, last);
        order_leave(co, &order, &h);
        if (exclusive)
            atomic_fetch_add(&exclusive_done, 1);
    }
}

static void run_workers(unsigned exclusive_one_in)
{
    struct worker w[WORKERS];
    void *args[WORKERS];
    order_init(&order);
    atomic_store(&exclusive_done, 0);
    for (unsigned i = 0; i < WORKERS; i++) {
        w[i] = (struct worker){ i + 1, i % 3 ? 0 : exclusive_one_in };
        args[i] = &w[i];
    }
    t_run_many(WORKERS, work, args);
    order_check(&order);
    assert_true(exclusive_done > 0);
    order_fini(&order);
}

static void test_mixed(void **state) { run_workers(4); }
/* So few exclusive holds that the fast mode comes back between them. */
static void test_rare(void **state) { run_workers(150); }

static bool is_slow(void) { return atomic_load(&order.slow); }

static void modes(struct co *co, void *arg)
{
    struct order_hold a = { .start = 0, .end = 1 }, b = { .start = 1, .end = 2 };
    order_init(&order);
    order_enter(co, &order, &a, false);
    CHECK(a.fast && !is_slow());
    order_leave(co, &order, &a);
    order_enter(co, &order, &b, true);
    CHECK(is_slow());
    order_enter(co, &order, &a, false);
    CHECK(!a.fast);
    order_leave(co, &order, &b);
    order_leave(co, &order, &a);
    for (unsigned i = 0; i < 5000 && is_slow(); i++) {
        order_enter(co, &order, &a, false);
        order_leave(co, &order, &a);
    }
    CHECK(!is_slow());
    order_fini(&order);
}

/* The moment in which the mode changes: one loop only takes shared holds, the other only exclusive ones, and the fast
 * mode comes back after each of those. Both threads share one processor, so that the exclusive one, when it wakes up,
 * interrupts the other between any two instructions. */
static _Atomic bool mode_race_over;

static cpu_set_t to_one_cpu(void)
{
    cpu_set_t old, one;
    CPU_ZERO(&one);
    sched_getaffinity(0, sizeof old, &old);
    for (int i = 0; i < CPU_SETSIZE && !CPU_COUNT(&one); i++)
        if (CPU_ISSET(i, &old))
            CPU_SET(i, &one);
    sched_setaffinity(0, sizeof one, &one);
    return old;
}

static void race_shared(struct co *co, void *arg)
{
    cpu_set_t old = to_one_cpu();
    while (!atomic_load(&mode_race_over)) {
        struct order_hold h = { .start = 0, .end = 1 };
        order_enter(co, &order, &h, false);
        if (atomic_fetch_add(&cell[0], 1) < 0)
            CHECK(!"shared beside exclusive");
        atomic_fetch_sub(&cell[0], 1);
        order_leave(co, &order, &h);
    }
    sched_setaffinity(0, sizeof old, &old);
}

static void race_exclusive(struct co *co, void *arg)
{
    cpu_set_t old = to_one_cpu();
    for (unsigned n = 0; n < 3000; n++) {
        struct order_hold h = { .start = 0, .end = 1 };
        order_enter(co, &order, &h, true);
        CHECK_EQ(atomic_fetch_sub(&cell[0], 1000000), 0);
        (void)co_sleep(co, 20000);
        atomic_fetch_add(&cell[0], 1000000);
        order_leave(co, &order, &h);
        pthread_mutex_lock(&order.lock);
        order.calm = 1u << 30;            /* the next shared hold that ends makes it fast */
        pthread_mutex_unlock(&order.lock);
        (void)co_sleep(co, 20000);
    }
    atomic_store(&mode_race_over, true);
    sched_setaffinity(0, sizeof old, &old);
}

static void shared_or_exclusive(struct co *co, void *arg)
{
    if (arg)
        race_exclusive(co, NULL);
    else
        race_shared(co, NULL);
}

static void test_mode_race(void **state)
{
    int exclusive;
    void *args[2] = { NULL, &exclusive };
    order_init(&order);
    atomic_store(&mode_race_over, false);
    t_run_many(2, shared_or_exclusive, args);
    order_fini(&order);
}

/* Who arrives behind a waiting hold that it conflicts with does not pass it. All on one loop. */
struct turn { unsigned id; bool exclusive; uint64_t arrive_ns, stay_ns; };
static unsigned turns[4], turn_cnt;
static struct co_group turn_group;

static void take_turn(struct co *co, void *arg)
{
    const struct turn *t = arg;
    struct order_hold h = { .start = 0, .end = 10 };
    (void)co_sleep(co, t->arrive_ns);
    order_enter(co, &order, &h, t->exclusive);
    turns[turn_cnt++] = t->id;
    (void)co_sleep(co, t->stay_ns);
    order_leave(co, &order, &h);
    co_group_leave(&turn_group);
}

static void no_passing(struct co *co, void *arg)
{
    static struct turn t[] = {
        { 1, false, 0, 80000000 }, { 2, true, 20000000, 1000 }, { 3, false, 40000000, 1000 }, { 4, true, 60000000, 1000 },
    };
    order_init(&order);
    turn_cnt = 0;
    for (unsigned i = 0; i < 4; i++) {
        co_group_enter(&turn_group);
        CHECK_EQ(rt_spawn(co_loop(co), take_turn, &t[i]), 0);
    }
    co_group_wait(co, &turn_group);
    for (unsigned i = 0; i < 4; i++)
        CHECK_EQ(turns[i], i + 1);
    order_fini(&order);
}

/* The last fast writer has taken its count back and is about to look whether it has to wake somebody, when a second exclusive hold
 * arrives and finds the drain complete. */
static unsigned granted;

static void take_all(struct co *co, void *arg)
{
    struct order_hold h = { .start = 0, .end = 10 };
    order_enter(co, &order, &h, true);
    granted++;
    order_leave(co, &order, &h);
    co_group_leave(&turn_group);
}

static void drain_seen(struct co *co, void *arg)
{
    struct order_hold fast = { .start = 0, .end = 1 };
    order_init(&order);
    granted = 0;
    order_enter(co, &order, &fast, false);
    CHECK(fast.fast);
    struct order_slot *slot = &order.slot[rt_loop_index(co_loop(co))];
    co_group_enter(&turn_group);
    CHECK_EQ(rt_spawn(co_loop(co), take_all, NULL), 0);
    co_yield(co);
    CHECK(is_slow() && !order.drained);
    atomic_fetch_sub(&slot->writers, 1);             /* the first half of its leaving, */
    co_group_enter(&turn_group);
    CHECK_EQ(rt_spawn(co_loop(co), take_all, NULL), 0);
    co_yield(co);
    atomic_fetch_add(&slot->writers, 1);
    order_leave(co, &order, &fast);                  /* and the second */
    for (unsigned i = 0; i < 100 && granted < 2; i++)
        co_yield(co);
    if (!CHECK_EQ(granted, 2))
        abort();                         /* they would wait for ever */
    co_group_wait(co, &turn_group);
    order_check(&order);
    order_fini(&order);
}

static void test_drain_seen(void **state) { t_run(0, drain_seen, NULL); }
static void test_no_passing(void **state) { t_run(0, no_passing, NULL); }
static void test_modes(void **state) { t_run(1, modes, NULL); }

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_modes), cmocka_unit_test(test_mixed), cmocka_unit_test(test_rare),
        cmocka_unit_test(test_mode_race), cmocka_unit_test(test_no_passing), cmocka_unit_test(test_drain_seen),
    };
    return T_MAIN("order", tests);
}
