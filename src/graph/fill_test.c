/* SPDX-License-Identifier: MIT
 *
 * fill_test.c: which way the surroundings of a first write are zeroed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "graph/fill.h"

#define K 1024u
#define M (1024u * K)

static void measured(struct fill_costs *c, uint64_t zero_ns, uint64_t write_ns, uint64_t mib_ns)
{
    *c = (struct fill_costs){ 0 };
    fill_saw_zero(c, zero_ns);
    fill_saw_write(c, 4 * K, write_ns);
    fill_saw_write(c, M, write_ns + mib_ns);
}

/* DESIGN D4: the ratio of data to the area around it, and the absolute size of that area, decide. */
static void test_choice(void **state)
{
    (void)state;
    static const struct { uint64_t zero_ns, write_ns, mib_ns, head, data, tail; enum fill_way want; } rows[] = {
        { 50000, 20000, 400000, 4 * K, 4 * K, 56 * K, FILL_MERGED },         /* 60 KiB cost 23 us, two calls 100 us */
        { 50000, 20000, 400000, 512 * K, 4 * K, 508 * K, FILL_SPLIT },       /* 1020 KiB cost 400 us */
        { 50000, 20000, 400000, 0, 4 * K, 252 * K, FILL_SPLIT },             /* one call 50 us, 252 KiB 98 us */
        { 50000, 20000, 400000, 126 * K, 4 * K, 126 * K, FILL_MERGED },      /* the same area in two pieces: 100 us */
        { 5000, 20000, 4000000, 4 * K, 4 * K, 56 * K, FILL_SPLIT },          /* a slow disk that zeroes at once */
        { 5000000, 20000, 400000, M, 4 * K, M - 4 * K, FILL_MERGED },        /* a file system whose zeroing waits for a journal */
        { 1, 1, 4000000, 8 * K, 4 * K, 8 * K, FILL_MERGED },                 /* too small for a call, whatever it costs */
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct fill_costs c;
        measured(&c, rows[i].zero_ns, rows[i].write_ns, rows[i].mib_ns);
        assert_int_equal(fill_choose(&c, rows[i].head, rows[i].data, rows[i].tail, 0), rows[i].want);
    }
}

static void test_nothing_known_tries_both(void **state)
{
    (void)state;
    struct fill_costs c = { 0 };
    assert_int_equal(fill_choose(&c, 0, 4 * K, 60 * K, 0), FILL_MERGED);
    assert_int_equal(fill_choose(&c, 0, 4 * K, 60 * K, 1), FILL_SPLIT);
    assert_int_equal(fill_choose(&c, 0, 4 * K, M, 0), FILL_SPLIT);
    assert_int_equal(fill_choose(&c, 0, 4 * K, M, 1), FILL_MERGED);
    assert_false(fill_estimate(&c, 0, 4 * K, M).known);
}

/* A disk that changes its ways is found out by the probes. */
static void test_follows_the_disk(void **state)
{
    (void)state;
    struct fill_costs c;
    measured(&c, 10000, 20000, 1000000);
    unsigned split_before = 0, split_after = 0;
    for (uint64_t turn = 0; turn < 20000; turn++) {
        bool slow = turn >= 2000;
        if (fill_choose(&c, 0, 4 * K, M, turn) == FILL_SPLIT) {
            fill_saw_zero(&c, slow ? 30000000 : 10000);
            fill_saw_write(&c, 4 * K, 20000);
            split_before += !slow;
            split_after += turn >= 10000;
        } else {
            fill_saw_write(&c, M + 4 * K, 1020000);
        }
    }
    assert_true(split_before > 1900);
    assert_true(split_after < 10000 / 32);
    assert_true(split_after > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_choice), cmocka_unit_test(test_nothing_known_tries_both), cmocka_unit_test(test_follows_the_disk) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
