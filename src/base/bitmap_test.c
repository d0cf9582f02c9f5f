/* SPDX-License-Identifier: MIT
 *
 * bitmap_test.c: bitmaps against one bool per bit.
 */
#include <stdlib.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/prng.h"
#include "base/test.h"

enum { BITS = 333 };

static uint64_t model_find(const bool *m, uint64_t a, uint64_t b, bool want)
{
    for (; a < b; a++)
        if (m[a] == want)
            return a;
    return BITMAP_NONE;
}

static uint64_t model_run(const bool *m, uint64_t a, uint64_t b, uint64_t want)
{
    for (; a + want <= b && a < b; a++)
        if (model_find(m, a, a + want, true) == BITMAP_NONE)
            return a;
    return BITMAP_NONE;
}

static void against_a_model(void **state)
{
    struct prng p;
    bool m[BITS] = { 0 };
    uint64_t *map = bitmap_new(BITS);
    assert_non_null(map);
    prng_init(&p, 2);
    for (int i = 0; i < 20000; i++) {
        uint64_t a = prng_below(&p, BITS + 1), b = prng_range(&p, a, prng_one_in(&p, 3) ? BITS : a + (BITS - a) / 9);
        bool value = prng_one_in(&p, 2);
        if (value)
            bitmap_set_range(map, a, b);
        else
            bitmap_clear_range(map, a, b);
        for (uint64_t k = a; k < b; k++)
            m[k] = value;
        uint64_t bit = prng_below(&p, BITS), count = 0;
        assert_int_equal(bitmap_test_set(map, bit), m[bit]);
        m[bit] = true;
        if (prng_one_in(&p, 2)) {
            bitmap_clear(map, bit);
            m[bit] = false;
        }
        for (uint64_t k = 0; k < BITS; k++)
            assert_int_equal(bitmap_test(map, k), m[k]);
        a = prng_below(&p, BITS + 1);
        b = prng_range(&p, a, BITS);
        for (uint64_t k = a; k < b; k++)
            count += m[k];
        uint64_t want = 1 + prng_below(&p, 30);
        assert_int_equal(bitmap_count(map, a, b), count);
        assert_int_equal(bitmap_find_set(map, a, b), model_find(m, a, b, true));
        assert_int_equal(bitmap_find_clear(map, a, b), model_find(m, a, b, false));
        assert_int_equal(bitmap_range_is(map, a, b, true), count == b - a);
        assert_int_equal(bitmap_range_is(map, a, b, false), count == 0);
        assert_int_equal(bitmap_find_clear_run(map, a, b, want), model_run(m, a, b, want));
    }
    assert_int_equal(map[BITS / 64] >> (BITS % 64), 0);     /* nothing behind the end was touched */
    free(map);
}

static void edges(void **state)
{
    uint64_t word[2] = { 0, 0 };
    bitmap_set_range(word, 0, 64);
    assert_int_equal(word[0], UINT64_MAX);
    assert_int_equal(word[1], 0);
    bitmap_clear_range(word, 64, 64);
    bitmap_clear_range(word, 1, 63);
    assert_int_equal(word[0], 1 | 1ull << 63);
    uint64_t *none = bitmap_new(0);
    assert_non_null(none);
    assert_int_equal(bitmap_find_clear(none, 0, 0), BITMAP_NONE);
    free(none);
    assert_null(bitmap_new(UINT64_MAX));
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(against_a_model), cmocka_unit_test(edges) };
    return cmocka_run_group_tests_name("base-bitmap", tests, NULL, NULL);
}
