/* SPDX-License-Identifier: MIT
 *
 * timer_test.c: the heap against a plain array, and sleeping coroutines.
 */
#include "rt/rt_priv.h"
#include "rt/rt_test.h"

enum { N = 60 };

static void nothing(struct rt_timer *t)
{
}

/* The timer that must come next. */
static int expected(const struct rt_timer *t)
{
    int best = -1;
    for (int i = 0; i < N; i++)
        if (t[i].armed && (best < 0 || t[i].at_ns < t[best].at_ns || (t[i].at_ns == t[best].at_ns && t[i].seq < t[best].seq)))
            best = i;
    return best;
}

static void heap_against_array(void **state)
{
    struct prng p;
    struct rt_timers h = { 0 };
    struct rt_timer t[N] = { 0 };
    prng_init(&p, 9);
    for (int step = 0; step < 60000; step++) {
        int i = (int)prng_below(&p, N), want = expected(t);
        assert_ptr_equal(h.root, want < 0 ? NULL : &t[want]);
        if (prng_one_in(&p, 4)) {
            uint64_t now = prng_below(&p, 50);
            bool due = want >= 0 && t[want].at_ns <= now;
            struct rt_timer *got = rt_timer_take_due(&h, now);
            assert_ptr_equal(got, due ? &t[want] : NULL);
            assert_true(!got || !got->armed);
        } else if (t[i].armed) {
            rt_timer_disarm(&h, &t[i]);
            assert_false(t[i].armed);
        } else {
            rt_timer_arm(&h, &t[i], prng_below(&p, 40), nothing);
        }
    }
    while (h.root)
        rt_timer_disarm(&h, h.root);
    rt_timer_disarm(&h, &t[0]);
    assert_null(rt_timer_take_due(&h, UINT64_MAX));
}

static void large_heap_sorts(void **state)
{
    enum { BIG = 5000 };
    struct prng p;
    struct rt_timers h = { 0 };
    struct rt_timer *t = calloc(BIG, sizeof *t), *got;
    uint64_t last = 0, seq = 0, n = 0;
    prng_init(&p, 1);
    for (int i = 0; i < BIG; i++)
        rt_timer_arm(&h, &t[i], prng_below(&p, 500), nothing);
    while ((got = rt_timer_take_due(&h, UINT64_MAX))) {
        assert_true(got->at_ns > last || (got->at_ns == last && (n == 0 || got->seq > seq)));
        last = got->at_ns;
        seq = got->seq;
        n++;
    }
    assert_int_equal(n, BIG);
    free(t);
}

static char order[16];
static size_t order_len;

static void sleeper(struct co *co, void *arg)
{
    unsigned ms = *(unsigned *)arg;
    uint64_t before = rt_now(co_loop(co));
    OK(co_sleep(co, ms * MS));
    ASSERT(rt_now(co_loop(co)) - before >= ms * MS);
    order[order_len++] = (char)('0' + ms / 5);
}

static void sleepers(struct co *co)
{
    static unsigned ms[] = { 20, 5, 15, 10, 0 };
    struct rt_task task[5];
    order_len = 0;
    for (int i = 0; i < 5; i++)
        OK(rt_task_start(co_loop(co), &task[i], sleeper, &ms[i]));
    for (int i = 0; i < 5; i++)
        rt_task_join(co, &task[i]);
    order[order_len] = 0;
    ASSERT(!strcmp(order, "01234"));
}
ON_BOTH(sleepers)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heap_against_array), cmocka_unit_test(large_heap_sorts), BOTH(sleepers),
    };
    return cmocka_run_group_tests_name("rt-timer", tests, NULL, NULL);
}
