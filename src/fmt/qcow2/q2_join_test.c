/* SPDX-License-Identifier: MIT
 *
 * q2_join_test.c: writes that meet while one of them allocates (FEATURES G.012).
 *
 * Purpose      Who waits for whom, combination by combination; and that small writes to one unallocated cluster share its allocation.
 * Owns         One disk (q2_disk_test.h), and a gate in front of its writes of data.
 * Invariants   None.
 * Concurrency  One loop at a time.
 * Failure      A failed check fails the test.
 * Tests        q2_write.c W1, q2_wplan.c
 */
#include "fmt/qcow2/q2_disk_test.h"

#include <stdio.h>

#define KIB 1024ull
#define CS (64 * KIB)
#define TURNS 300u

static const struct make plain = { 3, 16, CS, 4096 * KIB }, sub = { 3, 16, CS, 4096 * KIB, .sub = true };

/* Writes of guest bytes arrive, in order; number i goes on when `open` is larger than i. */
static struct { unsigned arrived, open; } gate;

static int at_gate(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    if (what != 'W' || buf[0] < 0xa0)
        return 0;
    for (unsigned i = gate.arrived++; gate.open <= i;)
        co_yield(co);
    return 0;
}

struct guest { struct q2_image *q; uint64_t off, len; uint8_t fill; bool over; };

static void guest_co(struct co *co, void *arg)
{
    struct guest *g = arg;
    CHECK_EQ(g_write(co, g->q, g->off, g->len, g->fill), 0);
    g->over = true;
}

static void start(struct co *co, struct guest *g)
{
    CHECK_EQ(rt_spawn(g->q->im.home, guest_co, g), 0);
    for (unsigned i = 0; i < TURNS; i++)
        co_yield(co);
}

static void finish(struct co *co, struct guest *g, unsigned n)
{
    gate.open = UINT32_MAX;
    for (unsigned i = 0; i < n; i++)
        while (!g[i].over)
            co_yield(co);
}

/* ---- two ---- */

enum { NEITHER, BOTH_THERE, REST_THERE };        /* before: nothing; both clusters; a subcluster of the first, which none of them touches */

static const struct row { const char *what; bool sub; unsigned before; uint64_t a_off, a_len, b_off, b_len; bool together; } rows[] = {
    { "neighbours in one cluster", false, NEITHER, 0, 4 * KIB, 4 * KIB, 4 * KIB, false },
    { "the second in front of the first", false, NEITHER, 32 * KIB, 4 * KIB, 0, 4 * KIB, false },
    { "overlapping in one cluster", false, NEITHER, 0, 8 * KIB, 4 * KIB, 8 * KIB, false },
    { "the second begins where the allocation of the first ends", false, NEITHER, 60 * KIB, 4 * KIB, 64 * KIB, 4 * KIB, true },
    { "the second ends where the allocation of the first begins", false, NEITHER, 64 * KIB, 4 * KIB, 60 * KIB, 4 * KIB, true },
    { "whole clusters side by side", false, NEITHER, 0, CS, CS, CS, true },
    { "the second reaches into the next cluster", false, NEITHER, 0, 4 * KIB, 60 * KIB, 8 * KIB, false },
    { "neighbours in place", false, BOTH_THERE, 0, 4 * KIB, 4 * KIB, 4 * KIB, true },
    { "overlapping in place", false, BOTH_THERE, 0, 8 * KIB, 4 * KIB, 8 * KIB, true },
    { "subclusters of a cluster that is not there", true, NEITHER, 0, 2 * KIB, 8 * KIB, 2 * KIB, false },
    { "subclusters of a cluster that is there", true, REST_THERE, 0, 2 * KIB, 8 * KIB, 2 * KIB, true },
    { "neighbours in one subcluster of a cluster that is there", true, REST_THERE, 0, 1 * KIB, 1 * KIB, 1 * KIB, false },
    { "subclusters of two clusters", true, NEITHER, 62 * KIB, 2 * KIB, 64 * KIB, 2 * KIB, true },
};

static uint8_t expected(const struct row *r, uint64_t at, uint8_t got)
{
    bool a = at - r->a_off < r->a_len, b = at - r->b_off < r->b_len;
    if (a && b && r->together)
        return got == 0xa1 || got == 0xb2 ? got : 0xa1;      /* at the same time: either, byte for byte */
    if (a || b)
        return b ? 0xb2 : 0xa1;
    return r->before == BOTH_THERE || (r->before == REST_THERE && at - 40 * KIB < 2 * KIB) ? 0x33 : 0;
}

static void two(struct co *co, const struct row *r)
{
    static uint8_t buf[2 * CS];
    img_make(co, r->sub ? &sub : &plain);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 8 * CS });
    CHECK_EQ(g_write(co, q, 8 * CS, CS, 0x44), 0);           /* the table is there */
    if (r->before)
        CHECK_EQ(g_write(co, q, r->before == BOTH_THERE ? 0 : 40 * KIB, r->before == BOTH_THERE ? 2 * CS : 2 * KIB, 0x33), 0);
    gate.arrived = gate.open = 0;
    disk.hook = at_gate;
    struct guest g[2] = { { q, r->a_off, r->a_len, 0xa1, false }, { q, r->b_off, r->b_len, 0xb2, false } };
    start(co, &g[0]);
    CHECK_EQ(gate.arrived, 1);
    start(co, &g[1]);
    if (!CHECK_EQ(gate.arrived, r->together ? 2 : 1))
        fprintf(stderr, "%s\n", r->what);
    finish(co, g, 2);
    disk.hook = NULL;
    CHECK_EQ(g_read(co, q, 0, 2 * CS, buf), 0);
    uint64_t wrong = 0;
    for (uint64_t i = 0; i < 2 * CS; i++)
        wrong += buf[i] != expected(r, i, buf[i]);
    if (!CHECK_EQ(wrong, 0))
        fprintf(stderr, "%s: %llu bytes\n", r->what, (unsigned long long)wrong);
    CHECK(states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    uint64_t leaks = 1;
    CHECK_EQ(img_faults(co, &leaks), 0);
    CHECK_EQ(leaks, 0);
}

static void all_rows(struct co *co, void *arg)
{
    for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++)
        two(co, &rows[i]);
}

static void test_rows(void **state) { t_run(0, all_rows, NULL); }

/* ---- many ---- */

/* Small writes to one cluster that is not there: the first allocates, all others wait for that and then go out together, in place. */
static void share(struct co *co, void *arg)
{
    enum { N = 16 };
    struct guest g[N];
    img_make(co, &plain);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 8 * CS });
    CHECK_EQ(g_write(co, q, 8 * CS, CS, 0x44), 0);
    gate.arrived = gate.open = 0;
    disk.hook = at_gate;
    uint64_t spare = q->alloc->frontier.total + q->alloc->ready.total + q->alloc->counted.total, end = q->alloc->end;
    for (unsigned i = 0; i < N; i++) {
        unsigned at = i * 7 % N;
        g[i] = (struct guest){ q, at * (CS / N), CS / N, (uint8_t)(0xa0 + at), false };
        start(co, &g[i]);
    }
    CHECK_EQ(gate.arrived, 1);
    gate.open = 1;
    for (unsigned i = 0; i < TURNS; i++)
        co_yield(co);
    CHECK_EQ(gate.arrived, N);                   /* one turn later all others are with the disk */
    CHECK(g[0].over && !g[1].over);
    finish(co, g, N);
    disk.hook = NULL;
    uint64_t now = q->alloc->frontier.total + q->alloc->ready.total + q->alloc->counted.total;
    CHECK_EQ(spare + (q->alloc->end - end) - now, 1);        /* one cluster for all of them */
    uint64_t host = g_host(co, q, 0);
    for (unsigned i = 0; i < N; i++)
        CHECK(g_holds(co, q, i * (CS / N), CS / N, (uint8_t)(0xa0 + i)) && g_host(co, q, i * (CS / N)) == host + i * (CS / N));
    CHECK(states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    uint64_t leaks = 1;
    CHECK_EQ(img_faults(co, &leaks), 0);
    CHECK_EQ(leaks, 0);
}

static void test_share(void **state) { t_run(0, share, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_rows, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_share, disk_setup, disk_teardown),
    };
    return T_MAIN("q2_join", tests);
}
