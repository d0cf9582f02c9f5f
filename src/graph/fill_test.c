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

/* Then the likely way is taken, until the other one has its turn. */
static void test_nothing_known(void **state)
{
    (void)state;
    struct fill_costs c = { 0 };
    for (uint64_t turn = 0; turn < 500; turn++) {
        assert_int_equal(fill_choose(&c, 0, 4 * K, 60 * K, turn), FILL_MERGED);
        assert_int_equal(fill_choose(&c, 0, 4 * K, M, turn), FILL_SPLIT);
    }
    assert_false(fill_estimate(&c, 0, 4 * K, M).known);
    assert_int_equal(fill_choose(&c, 0, 4 * K, M, 512), FILL_MERGED);
    c = (struct fill_costs){ 0 };
    fill_saw_zero(&c, 20000000);         /* a slow one does not last as long */
    assert_int_equal(fill_choose(&c, 0, 4 * K, M, 31), FILL_SPLIT);
    assert_int_equal(fill_choose(&c, 0, 4 * K, M, 32), FILL_MERGED);
}

/* A disk that does one thing after the other, and a guest that keeps `depth` first writes in flight. */
struct queue {
    struct fill_costs c;
    struct going { struct fill_visit v; uint64_t begin; } going[64];
    uint64_t now, depth, cost[2], area;
};

/* Turns [from, to). Returns how many went split. */
static unsigned play(struct queue *q, uint64_t from, uint64_t to)
{
    unsigned split = 0;
    for (uint64_t turn = from; turn < to; turn++) {
        struct going *g = &q->going[turn % q->depth];
        if (turn >= q->depth) {          /* it is the oldest, so the disk does it now */
            q->now += q->cost[g->v.way];
            uint64_t share = fill_share(&q->c, &g->v, q->now - g->begin);
            if (share && g->v.way == FILL_SPLIT)
                fill_saw_zero(&q->c, share);
            else if (share)
                fill_saw_write(&q->c, q->area + 4 * K, share);
            fill_leave(&q->c, &g->v);
        }
        *g = (struct going){ fill_enter(&q->c, fill_choose(&q->c, 0, 4 * K, q->area, turn)), q->now };
        split += g->v.way == FILL_SPLIT;
    }
    return split;
}

/* How long a fill waits for others says nothing of what it costs: the cheaper way is found at any depth, from either side. */
static void test_finds_the_cheaper_way(void **state)
{
    (void)state;
    static const uint64_t depths[] = { 1, 8, 64 }, areas[] = { 60 * K, M };
    for (unsigned i = 0; i < 3; i++) {
        for (unsigned k = 0; k < 4; k++) {
            bool split = k & 1;
            struct queue q = { .depth = depths[i], .area = areas[k >> 1], .cost = { split ? 450000 : 100000, split ? 100000 : 450000 } };
            (void)play(&q, 0, 1024);
            unsigned n = play(&q, 1024, 20000);
            assert_true(split ? n > 18000 : n < 976);
            assert_true(split ? n < 18976 : n > 0);      /* and the other one is not forgotten */
        }
    }
}

/* A disk that changes its ways is found out, whichever way is taken. */
static void test_follows_the_disk(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        struct queue q = { .depth = 16, .area = M, .cost = { 450000, i ? 100000 : 2000000 } };
        (void)play(&q, 0, 6000);
        q.cost[FILL_SPLIT] = i ? 2000000 : 100000;
        (void)play(&q, 6000, 16000);
        unsigned n = play(&q, 16000, 24000);
        assert_true(i ? n < 800 : n > 7200);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_choice), cmocka_unit_test(test_nothing_known), cmocka_unit_test(test_finds_the_cheaper_way),
        cmocka_unit_test(test_follows_the_disk) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
