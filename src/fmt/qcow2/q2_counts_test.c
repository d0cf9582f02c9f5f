/* SPDX-License-Identifier: MIT
 *
 * q2_counts_test.c: the sparse array of counts against a plain one.
 *
 * Purpose      Numbers of all sizes survive widening; memory follows what is used.
 * Owns         Nothing.
 * Invariants   None.
 * Concurrency  None.
 * Failure      A failed assertion fails the test.
 * Tests        This is one.
 */
#include "base/test.h"

#include <stdlib.h>

#include "base/checked.h"
#include "base/prng.h"
#include "fmt/qcow2/q2_counts.h"

#define N 40000u

static void against_model(void **state)
{
    struct q2_counts c;
    struct prng r;
    uint64_t *model = calloc(N, 8);
    prng_init(&r, 5);
    assert_int_equal(q2_counts_init(&c, N), 0);
    for (int i = 0; i < 200000; i++) {
        uint64_t at = prng_below(&r, i % 5 ? 9000 : N), v = prng_u64(&r) >> prng_below(&r, 64);
        switch (prng_below(&r, 3)) {
        case 0:
            assert_int_equal(q2_counts_set(&c, at, v), 0);
            model[at] = v;
            break;
        case 1:
            assert_int_equal(q2_counts_add(&c, at, v), 0);
            if (add_overflows(model[at], v, &model[at]))
                model[at] = UINT64_MAX;
            break;
        default:
            q2_counts_sub(&c, at, v);
            model[at] -= min_u64(model[at], v);
        }
    }
    uint64_t next = q2_counts_next(&c, 0);
    for (uint64_t i = 0; i < N; i++) {
        assert_true(q2_counts_get(&c, i) == model[i]);
        if (!model[i])
            continue;
        assert_true(next == i);
        next = q2_counts_next(&c, i + 1);
    }
    assert_true(next == Q2_COUNTS_NONE);
    q2_counts_fini(&c);
    free(model);
}

/* A sparse file of 16 TiB with clusters of 512 bytes: nothing but the places that are used costs memory. */
static void sparse(void **state)
{
    struct q2_counts c;
    uint64_t n = 1ull << 35;
    assert_int_equal(q2_counts_init(&c, n), 0);
    assert_int_equal(q2_counts_add(&c, n - 1, 1), 0);
    assert_int_equal(q2_counts_add(&c, 12345, 300), 0);
    assert_true(q2_counts_next(&c, 0) == 12345);
    assert_true(q2_counts_next(&c, 12346) == n - 1);
    assert_true(q2_counts_get(&c, n) == 0);
    assert_true(q2_counts_bytes(&c) - n / 8192 * sizeof *c.chunks < 64 << 10);
    q2_counts_fini(&c);
}

static void empty(void **state)
{
    struct q2_counts c;
    assert_int_equal(q2_counts_init(&c, 0), 0);
    assert_true(q2_counts_next(&c, 0) == Q2_COUNTS_NONE);
    assert_true(q2_counts_get(&c, 0) == 0);
    q2_counts_fini(&c);
    q2_counts_fini(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(against_model), cmocka_unit_test(sparse), cmocka_unit_test(empty) };
    return cmocka_run_group_tests_name("q2_counts", tests, NULL, NULL);
}
