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

static void check_same(const struct q2_counts *c, const uint64_t *model)
{
    for (uint64_t i = 0; i < N; i++)
        assert_true(q2_counts_get(c, i) == model[i]);
}

/* Runs added to one of three arrays, which are added up now and then. */
static void runs_and_sums(void **state)
{
    struct q2_counts c[3];
    struct prng r;
    uint64_t *model = calloc(N, 8);
    prng_init(&r, 6);
    for (int i = 0; i < 3; i++)
        assert_int_equal(q2_counts_init(&c[i], N), 0);
    for (int round = 0; round < 3000; round++) {
        uint64_t at = prng_below(&r, N), n = prng_below(&r, 1 + min_u64(N - at, round % 3 ? 40 : 20000));
        uint64_t by = round % 50 ? 1 + prng_below(&r, 3) : prng_u64(&r) >> prng_below(&r, 64);
        assert_int_equal(q2_counts_add_run(&c[prng_below(&r, 3)], at, n, by), 0);
        for (uint64_t i = at; i < at + n; i++)
            if (add_overflows(model[i], by, &model[i]))
                model[i] = UINT64_MAX;
        if (round % 100)
            continue;
        assert_int_equal(q2_counts_absorb(&c[0], &c[1 + round / 100 % 2]), 0);
        assert_true(q2_counts_next(&c[1 + round / 100 % 2], 0) == Q2_COUNTS_NONE);
    }
    assert_int_equal(q2_counts_absorb(&c[0], &c[1]), 0);
    assert_int_equal(q2_counts_absorb(&c[0], &c[2]), 0);
    check_same(&c[0], model);
    for (int i = 0; i < 3; i++) {
        uint64_t sum = 0;
        for (uint64_t k = 0; k < div_up(N, Q2_COUNTS_CHUNK); k++)
            sum += c[i].chunks[k].width * Q2_COUNTS_CHUNK;
        assert_true(c[i].data_bytes == sum);
        q2_counts_fini(&c[i]);
    }
    free(model);
}

static void ones(void **state)
{
    struct q2_counts c;
    struct prng r;
    uint8_t *model = calloc(N, 1);
    prng_init(&r, 7);
    assert_int_equal(q2_counts_init(&c, N), 0);
    for (int round = 0; round < 300; round++) {
        uint64_t at = prng_below(&r, N), n = prng_below(&r, N - at + 1), v = round % 20 ? prng_below(&r, 3) : 300;
        for (uint64_t i = at; i < at + n; i++) {
            model[i] = v > 2 ? 3 : (uint8_t)v;
            assert_int_equal(q2_counts_set(&c, i, v), 0);
        }
        for (int look = 0; look < 40; look++) {
            uint64_t from = look % 2 ? at + prng_below(&r, n + 1) : prng_below(&r, N), len = prng_below(&r, min_u64(N - from, 3000) + 1);
            bool all = true, none = true;
            for (uint64_t i = from; i < from + len; i++) {
                all &= model[i] == 1;
                none &= model[i] != 1;
            }
            assert_true(q2_counts_all_one(&c, from, len) == all);
            assert_true(q2_counts_none_one(&c, from, len) == none);
        }
    }
    q2_counts_fini(&c);
    free(model);
}

static void whole_chunks(void **state)
{
    static uint8_t disk[2 * Q2_COUNTS_CHUNK];
    struct q2_counts a, b;
    assert_int_equal(q2_counts_init(&a, N), 0);
    assert_int_equal(q2_counts_init(&b, N), 0);
    assert_true(q2_counts_same_chunk(&a, &b, 9000) && q2_counts_last(&a, 9000) == Q2_COUNTS_NONE);
    assert_int_equal(q2_counts_load16(&a, 1, disk), 0);
    assert_true(!a.data_bytes);
    disk[2 * 5 + 1] = 200;
    disk[2 * 4000 + 1] = 1;
    assert_int_equal(q2_counts_load16(&a, 1, disk), 0);
    assert_true(q2_counts_get(&a, 8192 + 5) == 200 && q2_counts_get(&a, 8192 + 4000) == 1 && q2_counts_get(&a, 8192) == 0);
    assert_true(q2_counts_last(&a, 8192) == 8192 + 4000 && a.data_bytes == Q2_COUNTS_CHUNK);
    assert_true(!q2_counts_same_chunk(&a, &b, 9000));
    assert_int_equal(q2_counts_set(&b, 8192 + 5, 200), 0);
    assert_true(!q2_counts_same_chunk(&a, &b, 9000));
    assert_int_equal(q2_counts_set(&b, 8192 + 4000, 1), 0);
    assert_true(q2_counts_same_chunk(&a, &b, 9000));
    disk[2 * 7] = 1;                                 /* 256 */
    assert_int_equal(q2_counts_load16(&a, 2, disk), 0);
    assert_true(q2_counts_get(&a, 16384 + 7) == 256 && q2_counts_get(&a, 16384 + 5) == 200);
    q2_counts_fini(&b);
    assert_int_equal(q2_counts_init(&b, N), 0);
    uint64_t bytes = a.data_bytes;
    assert_int_equal(q2_counts_absorb(&b, &a), 0);   /* whole chunks change hands */
    assert_true(bytes == 3 * Q2_COUNTS_CHUNK && b.data_bytes == bytes && !a.data_bytes && q2_counts_get(&b, 16384 + 7) == 256);
    q2_counts_fini(&a);
    q2_counts_fini(&b);
}

/* The short ways to look say what the long one says (FEATURES 1.086). */
static void lookups(void **state)
{
    struct q2_counts a;
    struct prng r;
    uint64_t end;
    prng_init(&r, 7);
    assert_int_equal(q2_counts_init(&a, N), 0);
    assert_true(q2_counts_empty(&a, 100, &end) && end == Q2_COUNTS_CHUNK);
    for (int i = 0; i < 300; i++) {
        uint64_t at = prng_below(&r, N), n = prng_below(&r, N - at), by = i % 50 ? prng_below(&r, 9) : prng_u64(&r) >> 40;
        assert_int_equal(q2_counts_add_run(&a, at, n, by), 0);
    }
    for (uint64_t i = 0, at = q2_counts_find(&a, 0, 200); i < N; i++) {
        assert_true(q2_counts_at(&a, i) == q2_counts_get(&a, i));
        if (q2_counts_get(&a, i) != 200)
            continue;
        assert_true(at == i);
        at = q2_counts_find(&a, i + 1, 200);
    }
    assert_int_equal(q2_counts_set(&a, N - 1, 201), 0);
    assert_true(q2_counts_find(&a, N - 1, 201) == N - 1 && q2_counts_find(&a, N, 201) == Q2_COUNTS_NONE);
    assert_true(!q2_counts_empty(&a, N - 1, &end) && end == N);
    assert_true(q2_counts_empty(&a, N, &end));
    q2_counts_fini(&a);
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
    const struct CMUnitTest tests[] = { cmocka_unit_test(against_model), cmocka_unit_test(sparse), cmocka_unit_test(empty),
        cmocka_unit_test(runs_and_sums), cmocka_unit_test(ones), cmocka_unit_test(whole_chunks), cmocka_unit_test(lookups) };
    return cmocka_run_group_tests_name("q2_counts", tests, NULL, NULL);
}
