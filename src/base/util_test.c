/* SPDX-License-Identifier: MIT
 *
 * util_test.c: the small leaf headers: list, prng, hash, cursor.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cursor.h"
#include "base/hash.h"
#include "base/id.h"
#include "base/list.h"
#include "base/prng.h"
#include "base/test.h"

struct item { int v; struct list_node link; };

static int list_sum_in_order(struct list *l)
{
    int sum = 0;
    LIST_FOR(n, l)
        sum = 10 * sum + CONTAINER_OF(n, struct item, link)->v;
    return sum;
}

static void lists(void **state)
{
    struct list a, b;
    struct item it[6];
    list_init(&a);
    list_init(&b);
    for (int i = 0; i < 6; i++)
        it[i].v = i + 1;
    assert_true(list_empty(&a) && !list_first(&a) && !list_last(&a) && !list_pop_front(&a));
    for (int i = 0; i < 3; i++)
        list_push_back(&a, &it[i].link);
    list_push_front(&b, &it[4].link);
    list_push_front(&b, &it[3].link);
    list_insert_after(&it[4].link, &it[5].link);
    assert_int_equal(list_sum_in_order(&a), 123);
    assert_int_equal(list_sum_in_order(&b), 456);
    list_splice_back(&a, &b);
    list_splice_back(&a, &b);
    assert_int_equal(list_sum_in_order(&a), 123456);
    assert_true(list_empty(&b));
    LIST_FOR(n, &a)
        if (CONTAINER_OF(n, struct item, link)->v % 2)
            list_remove(n);
    assert_int_equal(list_sum_in_order(&a), 246);
    assert_false(list_linked(&it[0].link));
    assert_true(list_linked(&it[1].link));
    list_remove(&it[0].link);
    assert_ptr_equal(list_pop_front(&a), &it[1].link);
    assert_ptr_equal(list_last(&a), &it[5].link);
    assert_null(list_next(&a, &it[5].link));
}

static void prng_is_fixed(void **state)
{
    /* published first outputs of splitmix64 for seed 1234567 */
    uint64_t s = 1234567;
    assert_int_equal(splitmix64(&s), 6457827717110365317u);
    assert_int_equal(splitmix64(&s), 3203168211198807973u);
    /* xoshiro256** from state 1,2,3,4: its first outputs follow from the definition */
    struct prng p = { { 1, 2, 3, 4 } };
    assert_int_equal(prng_u64(&p), 11520);
    assert_int_equal(prng_u64(&p), 0);
    assert_int_equal(prng_u64(&p), 1509978240);
}

static void prng_is_even(void **state)
{
    struct prng p;
    uint64_t hits[7] = { 0 };
    prng_init(&p, 42);
    for (int i = 0; i < 70000; i++)
        hits[prng_below(&p, 7)]++;
    for (int i = 0; i < 7; i++)
        assert_in_range(hits[i], 9600, 10400);
    assert_int_equal(prng_below(&p, 1), 0);
    assert_int_equal(prng_below(&p, 0), 0);
    assert_int_equal(prng_range(&p, 9, 9), 9);
    assert_false(prng_one_in(&p, 0));
    uint64_t high = 0;
    for (int i = 0; i < 1000; i++)
        high += prng_below(&p, 3ull << 62) >> 62 == 2;      /* a biased cut would favour the low part */
    assert_in_range(high, 270, 400);
    uint8_t a[11], b[11];
    prng_init(&p, 5);
    prng_fill(&p, a, sizeof a);
    prng_init(&p, 5);
    prng_fill(&p, b, sizeof b);
    assert_memory_equal(a, b, sizeof a);
}

static void hash_ignores_how_calls_split(void **state)
{
    struct prng p;
    uint8_t buf[300];
    prng_init(&p, 6);
    prng_fill(&p, buf, sizeof buf);
    for (size_t len = 0; len <= sizeof buf; len++) {
        struct hash128 whole = hash_buf(buf, len, 9);
        struct hash_stream h;
        hash_init(&h, 9);
        for (size_t at = 0, n; at < len; at += n) {
            n = 1 + prng_below(&p, 40);
            n = n > len - at ? len - at : n;
            hash_update(&h, buf + at, n);
            (void)hash_value(&h);
        }
        assert_true(hash128_eq(whole, hash_value(&h)));
        assert_false(hash128_eq(whole, hash_buf(buf, len, 10)));
    }
    struct hash_stream h;
    hash_init(&h, 0);
    hash_update_u64(&h, 0x0807060504030201);
    assert_true(hash128_eq(hash_value(&h), hash_buf("\1\2\3\4\5\6\7\10", 8, 0)));
}

/* Each input bit flips each output bit about half of the time. */
static void hash_spreads(void **state)
{
    enum { LEN = 37, TRIES = 60 };
    struct prng p;
    uint8_t buf[LEN];
    prng_init(&p, 8);
    for (int bit = 0; bit < LEN * 8; bit++) {
        unsigned flips = 0;
        for (int t = 0; t < TRIES; t++) {
            prng_fill(&p, buf, LEN);
            struct hash128 a = hash_buf(buf, LEN, 0);
            buf[bit / 8] ^= (uint8_t)(1 << bit % 8);
            struct hash128 b = hash_buf(buf, LEN, 0);
            flips += (unsigned)__builtin_popcountll(a.lo ^ b.lo) + (unsigned)__builtin_popcountll(a.hi ^ b.hi);
        }
        assert_in_range(flips, TRIES * 64 - 350, TRIES * 64 + 350);     /* six standard deviations are 263 */
    }
}

static int by_lo(const void *x, const void *y)
{
    const struct hash128 *a = x, *b = y;
    return a->lo < b->lo ? -1 : a->lo > b->lo;
}

/* Sparse inputs (few bits set, zeros of different lengths) do not collide, not even in 64 bits. */
static void hash_tells_sparse_inputs_apart(void **state)
{
    enum { LEN = 64, BITS = LEN * 8, MAX = BITS * (BITS + 1) / 2 + LEN + 1 };
    struct hash128 *all = malloc(sizeof *all * MAX);
    size_t n = 0;
    uint8_t buf[LEN] = { 0 };
    for (size_t len = 0; len <= LEN; len++)
        all[n++] = hash_buf(buf, len, 0);
    for (int i = 0; i < BITS; i++)
        for (int k = i; k < BITS; k++) {
            buf[i / 8] ^= (uint8_t)(1 << i % 8);
            if (k != i)
                buf[k / 8] ^= (uint8_t)(1 << k % 8);
            all[n++] = hash_buf(buf, LEN, 0);
            memset(buf, 0, LEN);
        }
    qsort(all, n, sizeof *all, by_lo);
    for (size_t i = 1; i < n; i++)
        assert_true(all[i].lo != all[i - 1].lo);
    free(all);
    assert_true(hash_mix64(1) != hash_mix64(2) && hash_combine(1, 2) != hash_combine(2, 1));
}

static void cursor_reads(void **state)
{
    static const uint8_t buf[] = { 1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 5, 0, 'x', 'y', 9 };
    struct rcur c = rcur_of(buf, sizeof buf);
    assert_int_equal(rcur_u8(&c), 1);
    assert_int_equal(rcur_be16(&c), 2);
    assert_int_equal(rcur_be32(&c), 3);
    assert_int_equal(rcur_be64(&c), 0x0000000000000004ull);
    assert_int_equal(rcur_le16(&c), 5);
    assert_memory_equal(rcur_view(&c, 2), "xy", 2);
    assert_false(rcur_at_end(&c));
    assert_int_equal(rcur_left(&c), 1);
    assert_true(rcur_skip(&c, 1));
    assert_true(rcur_at_end(&c) && rcur_ok(&c));
    assert_non_null(rcur_view(&c, 0));
    assert_true(rcur_seek(&c, 17));
    struct rcur sub = rcur_sub(&c, 2);
    assert_int_equal(rcur_u8(&sub), 'x');
    assert_int_equal(rcur_be16(&sub), 0);
    assert_false(rcur_ok(&sub));
    assert_true(rcur_ok(&c));
    assert_int_equal(rcur_u8(&c), 9);
}

static void cursor_error_sticks(void **state)
{
    uint8_t buf[3] = { 7, 7, 7 }, out[4] = { 1, 1, 1, 1 };
    struct rcur c = rcur_of(buf, 3);
    assert_int_equal(rcur_be32(&c), 0);
    assert_int_equal(rcur_u8(&c), 0);
    assert_false(rcur_bytes(&c, out, 4));
    assert_memory_equal(out, "\0\0\0\0", 4);
    assert_false(rcur_seek(&c, 0));
    assert_false(rcur_ok(&c) || rcur_at_end(&c));
    assert_int_equal(rcur_left(&c), 0);
    c = rcur_of(buf, 3);
    assert_null(rcur_view(&c, SIZE_MAX));
    c = rcur_of(buf, 3);
    assert_false(rcur_seek(&c, 4));
    struct rcur sub = rcur_sub(&c, 1);
    assert_false(rcur_ok(&sub));
}

static void cursor_writes(void **state)
{
    uint8_t buf[16];
    memset(buf, 0xee, sizeof buf);
    struct wcur w = wcur_of(buf, 12);
    assert_true(wcur_u8(&w, 1) && wcur_be16(&w, 2) && wcur_le32(&w, 3));
    assert_int_equal(wcur_pos(&w), 7);
    assert_true(wcur_align(&w, 4));
    assert_int_equal(wcur_pos(&w), 8);
    assert_true(wcur_bytes(&w, "abc", 3));
    assert_false(wcur_be16(&w, 0xffff));
    assert_false(wcur_ok(&w) || wcur_u8(&w, 1));
    assert_int_equal(wcur_left(&w), 0);
    assert_memory_equal(buf, "\1\0\2\3\0\0\0\0abc\xee\xee\xee\xee\xee", 16);
}

static void ids(void **state)
{
    static const char *const good[] = { "a", "Z", "a-b.c_9", "disk0" }, *const bad[] = { "", "0", "-a", ".a", "_a", "a b", "a\n", "a/", "\xc3\xa4", "a\xc3" };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        assert_true(id_is_good(good[i], SIZE_MAX));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(id_is_good(bad[i], SIZE_MAX));
    assert_true(id_is_good("abc", 3));
    assert_false(id_is_good("abcd", 3));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lists), cmocka_unit_test(prng_is_fixed), cmocka_unit_test(prng_is_even),
        cmocka_unit_test(hash_ignores_how_calls_split), cmocka_unit_test(hash_spreads),
        cmocka_unit_test(hash_tells_sparse_inputs_apart), cmocka_unit_test(cursor_reads),
        cmocka_unit_test(cursor_error_sticks), cmocka_unit_test(cursor_writes), cmocka_unit_test(ids),
    };
    return cmocka_run_group_tests_name("base-util", tests, NULL, NULL);
}
