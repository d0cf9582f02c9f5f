/* SPDX-License-Identifier: MIT
 *
 * dirty_test.c: sparse bitmaps against a bool per granule; several threads; memory that runs out. FEATURES 1.099, 9.076
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/dirty.h"
#include "base/prng.h"
#include "base/test.h"

enum { G = 9, BITS = 3 * (int)DIRTY_CHUNK_BITS - 77 };
#define SIZE (((uint64_t)BITS << G) - 100)

static int fail_in = -1;                 /* allocations until one fails; -1: never */
void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size)
{
    if (fail_in == 0)
        return NULL;
    fail_in -= fail_in > 0;
    return __real_calloc(n, size);
}

static void same(const struct dirty *d, const bool *m)
{
    uint64_t n = 0, at, end = 0, prev = 0;
    for (uint64_t i = 0; i < BITS; i++) {
        n += m[i];
        assert_int_equal(dirty_test(d, i << G), m[i]);
    }
    assert_int_equal(dirty_count(d), n << G);
    while (dirty_next(d, end, UINT64_MAX, &at, &end)) {
        for (uint64_t i = prev; i < at >> G; i++)
            assert_false(m[i]);
        for (uint64_t i = at >> G; i < (end - 1) >> G; i++)
            assert_true(m[i]);
        prev = (end + (1 << G) - 1) >> G;
    }
    for (uint64_t i = prev; i < BITS; i++)
        assert_false(m[i]);
    assert_false(dirty_test(d, SIZE));
}

/* The serial form and back, over all of it and in two parts. */
static void serial(const struct dirty *d, const bool *m)
{
    size_t bytes = BITS / 8 + 3, cut = 5000;
    uint8_t *buf = malloc(bytes);
    struct dirty *back;
    dirty_export(d, 0, buf, cut);
    dirty_export(d, cut * 8, buf + cut, bytes - cut);
    for (uint64_t i = 0; i < bytes * 8; i++)
        assert_int_equal(buf[i / 8] >> (i % 8) & 1, i < BITS && m[i]);
    assert_int_equal(dirty_new(SIZE, G, NULL, &back), 0);
    dirty_import(back, 0, buf, cut);
    dirty_import(back, cut * 8, buf + cut, bytes - cut);
    same(back, m);
    dirty_free(back);
    free(buf);
}

static void against_a_model(void **state)
{
    (void)state;
    struct prng p;
    prng_init(&p, 7);
    bool *m = calloc(BITS, 1);
    struct dirty *d;
    assert_int_equal(dirty_new(SIZE, G, NULL, &d), 0);
    for (unsigned round = 0; round < 300; round++) {
        uint64_t off = prng_below(&p, SIZE), len = prng_one_in(&p, 8) ? prng_below(&p, SIZE) : prng_below(&p, 200000);
        if (prng_one_in(&p, 6)) {
            off = round_down(off, (uint64_t)DIRTY_CHUNK_BITS << G);
            len = (uint64_t)DIRTY_CHUNK_BITS << G;
        }
        uint64_t end = min_u64(off + len, SIZE);
        if (prng_one_in(&p, 2)) {
            dirty_set(d, off, len);
            for (uint64_t i = off >> G; len && i <= (end - 1) >> G; i++)
                m[i] = true;
        } else {
            assert_int_equal(dirty_clear(d, off, len), 0);
            for (uint64_t i = (off + (1 << G) - 1) >> G; i < (end == SIZE ? BITS : end >> G); i++)
                m[i] = false;
        }
        if (round % 30 == 0) {
            same(d, m);
            serial(d, m);
        }
    }
    same(d, m);
    dirty_free(d);
    free(m);
}

static void kinds_and_runs(void **state)
{
    (void)state;
    struct dirty *d;
    uint64_t end;
    assert_int_equal(dirty_new(1 << 20, 12, NULL, &d), 0);                /* 256 granules */
    assert_int_equal(dirty_kind_of(d, 0, 256), DIRTY_ZEROS);
    dirty_set(d, 0x3fff, 2);                                              /* granules 3 and 4 */
    assert_int_equal(dirty_kind_of(d, 0, 256), DIRTY_MIXED);
    assert_int_equal(dirty_kind_of(d, 3, 2), DIRTY_ONES);
    assert_int_equal(dirty_kind_of(d, 256, 8), DIRTY_ZEROS);
    assert_false(dirty_run(d, 5, 1 << 20, &end));
    assert_int_equal(end, 0x3000);
    assert_true(dirty_run(d, 0x3001, 1 << 20, &end));
    assert_int_equal(end, 0x5000);
    assert_true(dirty_run(d, 0x3001, 0x3010, &end));
    assert_int_equal(end, 0x3010);
    dirty_set(d, 0, UINT64_MAX);
    assert_int_equal(dirty_kind_of(d, 0, 4096), DIRTY_ONES);              /* what lies behind the end does not count */
    assert_int_equal(dirty_count(d), 1 << 20);
    dirty_free(d);
}

/* FEATURES 1.105, 9.082: granularities differ; FEATURES 1.107: another size. */
static void merge_and_copy(void **state)
{
    (void)state;
    struct dirty *fine, *coarse, *big, *small;
    assert_int_equal(dirty_new(1 << 20, 9, NULL, &fine), 0);
    assert_int_equal(dirty_new(1 << 20, 16, NULL, &coarse), 0);
    dirty_set(fine, 100000, 1);
    dirty_set(coarse, 0, 1);
    dirty_merge(coarse, fine);
    assert_int_equal(dirty_count(coarse), 2 << 16);
    assert_true(dirty_test(coarse, 65536));
    dirty_merge(fine, coarse);
    assert_int_equal(dirty_count(fine), 2 << 16);
    assert_int_equal(dirty_copy(fine, 3 << 20, &big), 0);
    assert_int_equal(dirty_count(big), 2 << 16);
    assert_false(dirty_test(big, 2 << 20));
    assert_int_equal(dirty_copy(fine, 70000, &small), 0);
    assert_int_equal(dirty_count(small), 137 * 512);                      /* 70000 bytes are 136.7 granules */
    dirty_free(fine);
    dirty_free(coarse);
    dirty_free(big);
    dirty_free(small);
}

/* Without memory more counts as dirty, never less. */
static void memory_runs_out(void **state)
{
    (void)state;
    struct dirty_budget b = { .limit = 5000 };                            /* one chunk */
    struct dirty *d;
    assert_int_equal(dirty_new(SIZE, G, &b, &d), 0);
    dirty_set(d, 0, 1);
    assert_int_equal(dirty_count(d), 1 << G);
    dirty_set(d, (uint64_t)DIRTY_CHUNK_BITS << G, 1);
    assert_int_equal(dirty_count(d), (1 + (uint64_t)DIRTY_CHUNK_BITS) << G);
    assert_int_equal(dirty_clear(d, (uint64_t)DIRTY_CHUNK_BITS << G, 1 << G), -ENOMEM);
    assert_true(dirty_test(d, (uint64_t)DIRTY_CHUNK_BITS << G));
    fail_in = 0;
    dirty_set(d, (uint64_t)DIRTY_CHUNK_BITS << (G + 1), 1);
    fail_in = -1;
    assert_true(dirty_test(d, SIZE - 1));
    assert_int_equal(b.used, 4096);
    dirty_free(d);
    assert_int_equal(b.used, 0);
    assert_int_equal(dirty_new(UINT64_MAX, 9, NULL, &d), -E2BIG);
    assert_int_equal(dirty_new(UINT64_MAX, 31, NULL, &d), 0);
    dirty_set(d, 0, UINT64_MAX);
    assert_true(dirty_test(d, UINT64_MAX - 1));
    dirty_free(d);
}

struct thread { struct dirty *d; unsigned n; };

static void *setter(void *arg)
{
    struct thread *t = arg;
    for (uint64_t i = t->n; i < BITS; i += 4)
        dirty_set(t->d, i << G, 1);
    return NULL;
}

static void threads(void **state)
{
    (void)state;
    struct dirty *d;
    pthread_t id[4];
    struct thread t[4];
    assert_int_equal(dirty_new(SIZE, G, NULL, &d), 0);
    for (unsigned i = 0; i < 4; i++) {
        t[i] = (struct thread){ d, i };
        assert_int_equal(pthread_create(&id[i], NULL, setter, &t[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++)
        pthread_join(id[i], NULL);
    assert_int_equal(dirty_count(d), (uint64_t)BITS << G);
    dirty_free(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(against_a_model),
        cmocka_unit_test(kinds_and_runs),
        cmocka_unit_test(merge_and_copy),
        cmocka_unit_test(memory_runs_out),
        cmocka_unit_test(threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
