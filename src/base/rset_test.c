/* SPDX-License-Identifier: MIT
 *
 * rset_test.c: range sets against one tag per point, with a check of all invariants after each step, and with
 * allocation failures at every place.
 */
#include <stdlib.h>
#include <string.h>

#include "base/prng.h"
#include "base/rset.h"
#include "base/test.h"

enum { SPACE = 400 };

/* malloc of this program: fails when the countdown reaches zero (see the link arguments) */
static int64_t fail_in = -1;
void *__real_malloc(size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_malloc(size_t n)
{
    if (fail_in >= 0 && fail_in-- == 0) {
        fail_in = 0;
        return NULL;
    }
    return __real_malloc(n);
}

static void compare(const struct rset *s, const int *model)
{
    uint64_t total = 0, count = 0, pos = 0;
    struct rset_range r;
    rset_check(s);
    for (int i = 0; i < SPACE; i++) {
        total += model[i] >= 0;
        count += model[i] >= 0 && (i == 0 || model[i] != model[i - 1]);
    }
    assert_int_equal(s->total, total);
    assert_int_equal(s->count, count);
    while (rset_next(s, pos, &r)) {
        for (uint64_t i = pos; i < r.start; i++)
            assert_int_equal(model[i], -1);
        for (uint64_t i = r.start; i < r.end; i++)
            assert_int_equal(model[i], r.tag);
        pos = r.end;
    }
    for (; pos < SPACE; pos++)
        assert_int_equal(model[pos], -1);
}

static void compare_queries(const struct rset *s, const int *model, struct prng *p)
{
    uint64_t a = prng_below(p, SPACE), b = prng_range(p, a, SPACE), want = prng_below(p, 40) + 1;
    bool any = false, all = true, got;
    struct rset_range r;
    for (uint64_t i = a; i < b; i++) {
        any |= model[i] >= 0;
        all &= model[i] >= 0;
    }
    assert_int_equal(rset_overlaps(s, a, b), any);
    assert_int_equal(rset_contains(s, a, b), all);
    uint64_t fit = UINT64_MAX;
    for (uint64_t i = a; i < SPACE && fit == UINT64_MAX; i++) {
        if (model[i] < 0 || (i > 0 && model[i - 1] == model[i]))
            continue;
        uint64_t n = i;
        while (n < SPACE && model[n] == model[i])
            n++;
        if (n - i >= want)
            fit = i;
    }
    got = rset_fit(s, a, want, &r);
    assert_int_equal(got, fit != UINT64_MAX);
    assert_true(!got || r.start == fit);
}

static void random_steps(struct prng *p, int steps, uint64_t max_len, bool faults)
{
    struct rset s;
    int model[SPACE];
    memset(model, -1, sizeof model);
    rset_init(&s);
    for (int i = 0; i < steps; i++) {
        uint64_t a = prng_below(p, SPACE), b = a + prng_below(p, max_len + 1);
        int tag = prng_one_in(p, 2) ? (int)prng_below(p, 3) : -1;
        if (b > SPACE)
            b = SPACE;
        fail_in = faults && prng_one_in(p, 2) ? (int64_t)prng_below(p, 2) : -1;
        int r = tag < 0 ? rset_remove(&s, a, b) : rset_add(&s, a, b, (uint32_t)tag);
        assert_true(r == 0 || (r == -ENOMEM && fail_in >= 0));
        fail_in = -1;
        for (uint64_t k = a; r == 0 && k < b; k++)
            model[k] = tag;
        compare(&s, model);
        compare_queries(&s, model, p);
    }
    rset_fini(&s);
}

static void against_a_model(void **state)
{
    struct prng p;
    prng_init(&p, 11);
    for (int i = 0; i < 20; i++) {
        random_steps(&p, 300, 3, false);
        random_steps(&p, 200, 60, false);
        random_steps(&p, 60, SPACE, false);
        random_steps(&p, 300, 5, true);
    }
}

static void reserve_means_no_failure(void **state)
{
    struct rset s;
    rset_init(&s);
    assert_int_equal(rset_reserve(&s, 51), 0);
    fail_in = 0;
    assert_int_equal(rset_add(&s, 0, 1000, 1), 0);
    for (uint64_t i = 0; i < 50; i++)                   /* every call splits: two nodes each */
        assert_int_equal(rset_add(&s, 20 * i + 5, 20 * i + 6, 2), 0);
    fail_in = -1;
    rset_check(&s);
    assert_int_equal(s.count, 101);
    fail_in = 0;
    assert_int_equal(rset_reserve(&s, 100), -ENOMEM);
    assert_int_equal(rset_reserve(&s, UINT32_MAX), -ENOMEM);
    fail_in = -1;
    rset_check(&s);
    rset_fini(&s);
}

static void failure_changes_nothing(void **state)
{
    struct rset s;
    rset_init(&s);
    fail_in = 0;
    assert_int_equal(rset_add(&s, 3, 9, 0), -ENOMEM);
    assert_int_equal(s.count, 0);
    fail_in = -1;
    assert_int_equal(rset_add(&s, 3, 9, 0), 0);
    fail_in = 0;
    assert_int_equal(rset_remove(&s, 4, 5), -ENOMEM);
    assert_true(rset_contains(&s, 3, 9));
    assert_int_equal(rset_remove(&s, 3, 9), 0);         /* no split: needs nothing */
    fail_in = -1;
    rset_fini(&s);
}

static void ends_of_the_space(void **state)
{
    struct rset s;
    struct rset_range r;
    rset_init(&s);
    assert_int_equal(rset_add(&s, 5, 5, 0), 0);
    assert_false(rset_next(&s, 0, &r));
    assert_int_equal(rset_add(&s, UINT64_MAX - 1, UINT64_MAX, 4), 0);
    assert_int_equal(rset_add(&s, 0, 1, 4), 0);
    assert_true(rset_next(&s, 1, &r));
    assert_int_equal(r.end, UINT64_MAX);
    assert_false(rset_next(&s, UINT64_MAX, &r));
    assert_int_equal(rset_add(&s, 0, UINT64_MAX, 4), 0);
    assert_int_equal(s.count, 1);
    assert_int_equal(s.total, UINT64_MAX);
    rset_check(&s);
    rset_fini(&s);
}

static void large_set(void **state)
{
    struct rset s;
    struct rset_range r;
    struct prng p;
    enum { N = 20000 };
    prng_init(&p, 3);
    rset_init(&s);
    for (uint64_t i = 0; i < N; i++)
        assert_int_equal(rset_add(&s, 10 * i, 10 * i + 1 + i % 7, 0), 0);
    rset_check(&s);
    for (int i = 0; i < N / 2; i++) {
        uint64_t at = 10 * prng_below(&p, N);
        assert_int_equal(rset_remove(&s, at, at + 10), 0);
    }
    rset_check(&s);
    assert_int_equal(rset_add(&s, 1000, 1020, 0), 0);
    assert_true(rset_fit(&s, 0, 20, &r));
    assert_true(r.start <= 1000 && r.end >= 1020);
    assert_false(rset_fit(&s, 0, 100, &r));
    rset_fini(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(against_a_model), cmocka_unit_test(reserve_means_no_failure),
        cmocka_unit_test(failure_changes_nothing), cmocka_unit_test(ends_of_the_space), cmocka_unit_test(large_set),
    };
    return cmocka_run_group_tests_name("base-rset", tests, NULL, NULL);
}
