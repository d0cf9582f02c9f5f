/* SPDX-License-Identifier: MIT
 *
 * q2_core_test.c: allocator, growth, quarantine, header switches: what goes wrong between them, and what must not.
 *
 * Purpose      Every fault that once lost or could have lost data has a row here, with the rule that it broke; states of
 *              the allocator (I1 of q2_alloc.c) under growth, failure, abort and reuse.
 * Owns         One disk (q2_disk_test.h).
 * Invariants   None.
 * Concurrency  One loop at a time.
 * Failure      A failed check fails the test.
 * Tests        This is one.
 */
#include "fmt/qcow2/q2_disk_test.h"
#include "fmt/qcow2/q2_guard.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define KIB 1024ull
#define MIB (1024 * KIB)

/* Lets everything that was dropped come back, or be refused. */
static void settle(struct co *co, struct q2_image *q)
{
    int r = q2_drop_settle(co, q);
    (void)r;                             /* the tests look at what came of it */
}

/* Waiting for what was dropped ends however much is dropped meanwhile. */
#define DROPPERS 8u
#define DROPS_MOST 3000u
static struct { struct q2_image *q; unsigned drops, running; bool stop; } stream;

static void dropper(struct co *co, void *arg)
{
    while (!stream.stop && stream.drops < DROPS_MOST) {
        struct q2_run run;
        if (q2_alloc_take(co, stream.q, 1, &run) < 0)
            break;
        q2_alloc_drop(stream.q, run.cluster, run.count);
        stream.drops++;
        CHECK_EQ(meta_flush(co, stream.q->meta), 0);
    }
    stream.running--;
}

static void endless_body(struct co *co, void *arg)
{
    static const struct make plain = { 3, 16, 4096, 8 * MIB };
    img_make(co, &plain);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 65536 });
    struct q2_run run;
    stream.q = q;
    stream.drops = 0;
    stream.stop = false;
    CHECK_EQ(q2_alloc_take(co, q, 5, &run), 0);
    for (stream.running = 0; stream.running < DROPPERS; stream.running++)
        CHECK_EQ(rt_spawn(co_loop(co), dropper, NULL), 0);
    while (stream.drops < 50)
        co_yield(co);
    q2_alloc_drop(q, run.cluster, run.count);
    unsigned before = stream.drops;
    CHECK_EQ(q2_drop_settle(co, q), 0);
    CHECK(stream.running == DROPPERS && stream.drops < before + 500);
    for (uint64_t c = run.cluster; c < run.cluster + run.count; c++) {
        uint64_t n = 1;
        bool taken = !rset_overlaps(&q->alloc->ready, c, c + 1);
        CHECK(taken || (q2_refs_get(co, q, c, &n) == 0 && n == 0));      /* free, or somebody has taken it since */
    }
    stream.stop = true;
    while (stream.running)
        co_yield(co);
    CHECK_EQ(q2_drop_settle_all(co, q), 0);
    CHECK(states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
}

static void test_endless(void **state) { t_run(0, endless_body, NULL); }

/* ---- states of the allocator (I1) ---- */

/* Takes until the disk has `clusters`, in odd portions; gives some back. */
static void take_many(struct co *co, struct q2_image *q, uint64_t clusters, struct rset *held)
{
    for (uint64_t n = 0; q->alloc->end < clusters; n++) {
        struct q2_run run;
        if (!CHECK_EQ(q2_alloc_take(co, q, 1 + n % 7 * 5, &run), 0))
            return;
        CHECK(!rset_overlaps(held, run.cluster, run.cluster + run.count));       /* nobody has it */
        if (n % 5 == 4)
            q2_alloc_return(q, &run);
        else
            CHECK_EQ(rset_add(held, run.cluster, run.cluster + run.count, 0), 0);
        if (n % 40 == 0 && !CHECK(states_ok(co, q)))
            return;
    }
}

static void growth_of(struct co *co, const struct make *m, uint64_t step, uint64_t clusters)
{
    img_make(co, m);
    uint64_t leaks = 0;
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = step * m->cluster_size });
    uint64_t rt_off = q->h.rt_off;
    struct rset held;
    struct rset_range x;
    rset_init(&held);
    take_many(co, q, clusters, &held);
    CHECK(states_ok(co, q));
    bool moved = q->h.rt_off != rt_off;
    CHECK(moved || clusters * m->refcount_bits < 64 * 4096);     /* the table had to move (Q7) */
    CHECK_EQ(g_flush(co, q), 0);
    img_crash(co, q);                                /* nothing points anywhere: only leaks */
    CHECK_EQ(img_faults(co, NULL), 0);
    q = img_open(co, &(struct opening){ .frontier_bytes = step * m->cluster_size });
    while (q->alloc->reclaim)
        co_yield(co);
    CHECK(states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, &leaks), 0);
    if (m->version == 3)
        CHECK(leaks <= moved);                       /* what was recorded is free again (P1); the first table was not (Q7) */
    /* the same, and everything is given back before close */
    img_make(co, m);
    q = img_open(co, &(struct opening){ .frontier_bytes = step * m->cluster_size });
    rset_fini(&held);
    rset_init(&held);
    take_many(co, q, clusters, &held);
    for (uint64_t at = 0; rset_next(&held, at, &x); at = x.end)
        q2_alloc_return(q, &(struct q2_run){ .cluster = x.start, .count = x.end - x.start });
    rset_fini(&held);
    CHECK(states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, &leaks), 0);
    CHECK_EQ(leaks, 0);
}

static void growth_body(struct co *co, void *arg)
{
    static const uint32_t widths[] = { 1, 2, 4, 8, 16, 32, 64 };
    static const uint64_t steps[] = { 1, 3, 64, 65, 300, 5000 };
    for (unsigned w = 0; w < 7; w++)
        for (unsigned i = 0; i < 6; i++)
            growth_of(co, &(struct make){ 3, widths[w], 512, 64 * KIB }, steps[i], i < 2 ? 600 : 4500);
    growth_of(co, &(struct make){ 2, 16, 512, 64 * KIB }, 500, 17000);           /* 16 bits: a block counts 256, 64 blocks a table cluster */
    growth_of(co, &(struct make){ 3, 64, 4096, 1 * MIB }, 700, 2000);
}

static void test_growth(void **state) { t_run(0, growth_body, NULL); }

/* What take() says of a run, by where it came from. */
static void origin_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, 4096, 4 * MIB };
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 20 * 4096 });
    struct q2_run a, b, c;
    CHECK_EQ(q2_alloc_take(co, q, 2, &a), 0);        /* frontier; its counts are in memory alone */
    CHECK(a.count == 2 && a.known_zero && !a.settled);
    CHECK_EQ(g_flush(co, q), 0);
    CHECK_EQ(q2_alloc_take(co, q, 3, &a), 0);        /* and now on the disk */
    CHECK(a.count == 3 && a.known_zero && a.settled);
    q2_alloc_return(q, &a);
    CHECK(states_ok(co, q));
    CHECK_EQ(q2_alloc_take(co, q, 3, &b), 0);        /* the same clusters: somebody may have written there */
    CHECK(b.cluster == a.cluster && b.count == 3 && !b.known_zero && !b.settled);
    CHECK_EQ(q2_alloc_exact(co, q, 50, &c), 0);      /* more than a step, in one piece */
    CHECK(c.count == 50 && c.known_zero && c.settled);
    CHECK(states_ok(co, q));
    /* freed and come back: not zero, not settled */
    q2_alloc_drop(q, b.cluster, 2);
    CHECK(states_ok(co, q));
    settle(co, q);
    CHECK(rset_contains(&q->alloc->ready, b.cluster, b.cluster + 2));
    CHECK(!rset_overlaps(&q->alloc->ready, b.cluster + 2, b.cluster + 3));
    CHECK_EQ(q2_alloc_take(co, q, 2, &a), 0);
    CHECK(a.cluster == b.cluster && !a.known_zero && !a.settled);
    CHECK(states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, NULL), 0);
}

static void test_origin(void **state) { t_run(0, origin_body, NULL); }

/* Zeroing ahead (q2_ahead.c). */
static struct { unsigned zeros, error_from; uint64_t off, len; } ahead;

static int watch_zero(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    if (what != 'Z')
        return 0;
    ahead.zeros++;
    ahead.off = off;
    ahead.len = len;
    return ahead.error_from && ahead.zeros >= ahead.error_from ? -EIO : 0;
}

/* n clusters full of old bytes, free. Returns the first. */
static uint64_t free_clusters(struct co *co, struct q2_image *q, uint64_t n)
{
    struct q2_run run;
    CHECK_EQ(q2_alloc_exact(co, q, n, &run), 0);
    memset(disk.bytes + (run.cluster << q->g.cluster_bits), 0xee, n << q->g.cluster_bits);
    q2_alloc_drop(q, run.cluster, n);
    settle(co, q);
    CHECK(rset_contains(&q->alloc->ready, run.cluster, run.cluster + n));
    return run.cluster;
}

static bool tagged(const struct q2_image *q, uint64_t c)
{
    struct rset_range x;
    return rset_next(&q->alloc->ready, c, &x) && x.start <= c && x.tag == Q2_READY_ZERO;
}

static void ahead_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, 64 * KIB, 16 * MIB };
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 8 * MIB, .no_punch = true });
    uint64_t c = free_clusters(co, q, 40);
    struct q2_run a, b;
    ahead = (typeof(ahead)){ 0 };
    disk.hook = watch_zero;
    CHECK_EQ(q2_alloc_take(co, q, 1, &a), 0);        /* who has data for all of it */
    CHECK(a.cluster == c && !a.known_zero && ahead.zeros == 0);
    CHECK_EQ(q2_guard_need(co, q), 0);
    CHECK_EQ(q2_alloc_take_zeros(co, q, 1, &a), 0);  /* one call for many, and nothing is settled (A5) */
    CHECK(a.cluster == c + 1 && a.count == 1 && a.known_zero && !a.settled);
    CHECK(ahead.zeros == 1 && ahead.off == (c + 1) * 64 * KIB && ahead.len == 2 * MIB);
    CHECK(states_ok(co, q) && tagged(q, c + 2) && tagged(q, c + 32) && !tagged(q, c + 33));
    CHECK_EQ(q2_alloc_take_zeros(co, q, 2, &b), 0);
    CHECK(b.cluster == c + 2 && b.count == 2 && b.known_zero && ahead.zeros == 1);
    /* what comes back holds bytes again */
    memset(disk.bytes + (a.cluster << 16), 0xdd, 64 * KIB);
    q2_alloc_drop(q, a.cluster, 1);
    settle(co, q);
    CHECK(states_ok(co, q) && rset_contains(&q->alloc->ready, a.cluster, a.cluster + 1) && !tagged(q, a.cluster));
    q->alloc->hint = a.cluster;
    CHECK_EQ(q2_alloc_take_zeros(co, q, 1, &a), 0);  /* alone, and not worth a call */
    CHECK(a.cluster == c + 1 && !a.known_zero && ahead.zeros == 1);
    /* a failure: the caller fills, and nothing more is tried */
    ahead.error_from = 2;
    q->alloc->hint = c + 33;
    CHECK_EQ(q2_alloc_take_zeros(co, q, 1, &a), 0);
    CHECK(a.cluster == c + 33 && !a.known_zero && ahead.zeros == 2 && q->alloc->ahead_fails);
    CHECK_EQ(q2_alloc_take_zeros(co, q, 1, &a), 0);
    CHECK(a.cluster == c + 34 && !a.known_zero && ahead.zeros == 2 && states_ok(co, q));
    disk.hook = NULL;
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, NULL), 0);
}

static void test_ahead(void **state) { t_run(0, ahead_body, NULL); }

/* Where nothing is promised for zeros, or metadata lies in free clusters (A2, A3). */
static void ahead_not_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, 64 * KIB, 16 * MIB };
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 8 * MIB, .no_punch = true });
    uint64_t c = free_clusters(co, q, 20);
    struct q2_run a;
    ahead = (typeof(ahead)){ 0 };
    disk.hook = watch_zero;
    CHECK_EQ(q2_guard_need(co, q), 0);
    q->im.store->traits.zero_growth = false;
    CHECK_EQ(q2_alloc_take_zeros(co, q, 1, &a), 0);
    CHECK(a.cluster == c && !a.known_zero && ahead.zeros == 0);
    q->im.store->traits.zero_growth = true;
    uint64_t l1 = atomic_load(&q->fixed[0].off), end = atomic_exchange(&q->fixed_end, (c + 5) * 64 * KIB);
    atomic_store(&q->fixed[0].off, (c + 4) * 64 * KIB);      /* as if a table lay there that nobody has counted */
    CHECK_EQ(q2_alloc_take_zeros(co, q, 1, &a), 0);
    CHECK(a.cluster == c + 1 && a.known_zero && ahead.zeros == 1 && ahead.len == 3 * 64 * KIB);
    atomic_store(&q->fixed[0].off, l1);
    atomic_store(&q->fixed_end, end);
    disk.hook = NULL;
    CHECK_EQ(img_close(co, q), 0);
}

static void test_ahead_not(void **state) { t_run(0, ahead_not_body, NULL); }

/* 40 written clusters, of which the disk counts the first `zero` 0, and the first `gone` are no longer named. */
static struct q2_image *open_counted(struct co *co, unsigned zero, unsigned gone)
{
    const struct make m = { 3, 16, 64 * KIB, 16 * MIB };
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ 0 });
    for (unsigned i = 0; i < 40; i++)
        CHECK_EQ(g_write(co, q, i * 64 * KIB, 64 * KIB, (uint8_t)(i + 1)), 0);
    uint64_t first = g_host(co, q, 0) >> 16;
    CHECK_EQ(g_host(co, q, 39 * 64 * KIB) >> 16, first + 39);
    CHECK_EQ(img_close(co, q), 0);
    uint64_t block = be64_get(disk_be64(be64_get(disk_be64(48))));
    memset(disk.bytes + block + first * 2, 0, zero * 2);
    memset(disk.bytes + img_l2_at(0), 0, gone * 8);
    return img_open(co, &(struct opening){ .no_punch = true });
}

/* An image of which somebody counted clusters 0 that are in use (A3): a write hits the one that it is given, and no others. */
static void ahead_counted_body(struct co *co, void *arg)
{
    struct q2_image *q = open_counted(co, 40, 1);
    CHECK_EQ(q2_guard_need(co, q), 0);
    ahead = (typeof(ahead)){ 0 };
    disk.hook = watch_zero;
    CHECK_EQ(g_write(co, q, 8 * MIB, 4 * KIB, 0x77), 0);
    CHECK(g_holds(co, q, 8 * MIB, 4 * KIB, 0x77) && g_holds(co, q, 8 * MIB + 4 * KIB, 60 * KIB, 0));
    CHECK(ahead.len <= 64 * KIB);                    /* of the cluster alone, if at all */
    for (unsigned i = 1; i < 40; i++)
        CHECK(g_holds(co, q, i * 64 * KIB, 64 * KIB, (uint8_t)(i + 1)));
    struct fmt_check_result res;
    CHECK_EQ(q2_scrub(co, &q->im, &(struct fmt_check_opts){ 0 }, &res, NULL), 0);
    CHECK(res.corruptions > 0 && !q->alloc->proved); /* it proves nothing */
    CHECK_EQ(g_write(co, q, 9 * MIB, 4 * KIB, 0x77), 0);
    CHECK(ahead.len <= 64 * KIB);
    for (unsigned i = 2; i < 40; i++)
        CHECK(g_holds(co, q, i * 64 * KIB, 64 * KIB, (uint8_t)(i + 1)));
    disk.hook = NULL;
    (void)img_close(co, q);
}

static void test_ahead_counted(void **state) { t_run(0, ahead_counted_body, NULL); }

/* What is free by its count alone is zeroed ahead once a scrub has found the counts right, be it in the set already or not. */
static void ahead_proved_body(struct co *co, void *arg)
{
    for (unsigned scanned = 0; scanned < 2; scanned++) {
        struct q2_image *q = open_counted(co, 40, 40);
        struct q2_run a;
        struct fmt_check_result res;
        ahead = (typeof(ahead)){ 0 };
        disk.hook = watch_zero;
        CHECK_EQ(q2_guard_need(co, q), 0);
        if (scanned) {
            CHECK_EQ(q2_alloc_take_zeros(co, q, 1, &a), 0);
            CHECK(!a.known_zero && ahead.zeros == 0);
            q2_alloc_return(q, &a);
        }
        CHECK_EQ(q2_scrub(co, &q->im, &(struct fmt_check_opts){ 0 }, &res, NULL), 0);
        CHECK(res.corruptions == 0 && q->alloc->proved);
        for (unsigned i = 0; i <= scanned; i++)      /* the one that was given back comes first */
            CHECK_EQ(q2_alloc_take_zeros(co, q, 1, &a), 0);
        CHECK(a.known_zero && !a.settled && ahead.zeros == 1 && ahead.len > MIB && states_ok(co, q));
        disk.hook = NULL;
        CHECK_EQ(img_close(co, q), 0);
    }
}

static void test_ahead_proved(void **state) { t_run(0, ahead_proved_body, NULL); }

/* While free clusters are being zeroed all others who take or give back clusters are under way. */
static struct { struct q2_image *q; unsigned running, zeros; bool go_on; } beside;

static int hold_zero(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    beside.zeros += what == 'Z' && len > MIB;
    while (what == 'Z' && !beside.go_on)
        co_yield(co);
    return 0;
}

static void beside_co(struct co *co, void *arg)
{
    struct q2_image *q = beside.q;
    unsigned i = (unsigned)(uintptr_t)arg;
    struct q2_run run;
    if (i < 4)                           /* the first one zeroes */
        CHECK_EQ(g_write(co, q, (8 + i) * MIB, 4 * KIB, (uint8_t)(i + 1)), 0);
    else if (i < 8)
        CHECK_EQ(g_write(co, q, (8 + i) * MIB, 128 * KIB, (uint8_t)(i + 1)), 0);
    else if (i == 8)
        CHECK_EQ(g_compress(co, q, 4 * MIB, 64 * KIB, 0x99), 0);
    else if (i == 9)
        CHECK_EQ(q2_alloc_trim(co, q), 0);
    else if (i == 10)
        CHECK_EQ(q2_punch_free(co, q, NULL, NULL), 0);
    else if (i == 11)
        CHECK_EQ(q2_discard(co, &q->im, 2 * MIB, MIB), 0);
    else if (CHECK_EQ(q2_alloc_exact(co, q, 5, &run), 0))
        q2_alloc_drop(q, run.cluster, run.count);
    beside.running--;
}

static void ahead_beside_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, 64 * KIB, 16 * MIB };
    img_make(co, &m);
    struct q2_image *q = beside.q = img_open(co, &(struct opening){ .no_punch = true });
    for (unsigned i = 0; i < 4; i++)
        CHECK_EQ(g_write(co, q, i * MIB, MIB, 0xaa), 0);
    CHECK_EQ(q2_discard(co, &q->im, 0, 2 * MIB), 0);
    settle(co, q);
    CHECK_EQ(q2_guard_need(co, q), 0);
    beside.zeros = 0;
    beside.go_on = false;
    disk.hook = hold_zero;
    for (beside.running = 0; beside.running < 13; beside.running++) {
        CHECK_EQ(rt_spawn(co_loop(co), beside_co, (void *)(uintptr_t)beside.running), 0);
        for (unsigned i = 0; i < 100 && beside.running == 0; i++)
            co_yield(co);
    }
    CHECK(beside.zeros == 1);
    for (unsigned i = 0; i < 500; i++)
        co_yield(co);
    CHECK(g_holds(co, q, 3 * MIB, MIB, 0xaa));       /* who reads does not wait */
    beside.go_on = true;
    while (beside.running)
        co_yield(co);
    settle(co, q);
    CHECK(states_ok(co, q));
    for (unsigned i = 0; i < 8; i++)
        CHECK(g_holds(co, q, (8 + i) * MIB, i < 4 ? 4 * KIB : 128 * KIB, (uint8_t)(i + 1)) &&
              (i >= 4 || g_holds(co, q, (8 + i) * MIB + 4 * KIB, 60 * KIB, 0)));
    CHECK(g_holds(co, q, 4 * MIB, 64 * KIB, 0x99) && g_holds(co, q, 3 * MIB, MIB, 0xaa) && g_holds(co, q, 0, 3 * MIB, 0));
    disk.hook = NULL;
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, NULL), 0);
}

static void test_ahead_beside(void **state) { t_run(0, ahead_beside_body, NULL); }

/* Free clusters behind each other are cut off whatever their tags are. */
static void cut_tags_body(struct co *co, void *arg)
{
    struct q2_image *q = open_counted(co, 40, 40);
    struct q2_run a;
    CHECK_EQ(q2_alloc_take(co, q, 1, &a), 0);        /* now the scan has looked at them */
    CHECK_EQ(rset_add(&q->alloc->ready, a.cluster + 20, a.cluster + 30, Q2_READY_PROVED), 0);
    q2_alloc_drop(q, a.cluster, 1);
    CHECK_EQ(q2_alloc_trim(co, q), 0);
    CHECK(q->alloc->end == a.cluster && !q->alloc->ready.total && states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
}

static void test_cut_tags(void **state) { t_run(0, cut_tags_body, NULL); }

static struct { struct q2_image *q; uint64_t cluster, count_at_punch; unsigned punches; } punched;

static int watch_punch(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    if (what == 'D' && off <= punched.cluster * 4096 && punched.cluster * 4096 < off + len) {
        punched.punches++;
        CHECK_EQ(q2_refs_get(co, punched.q, punched.cluster, &punched.count_at_punch), 0);
    }
    return 0;
}

static uint64_t count_of(struct co *co, struct q2_image *q, uint64_t cluster)
{
    uint64_t n = UINT64_MAX;
    CHECK_EQ(q2_refs_get(co, q, cluster, &n), 0);
    return n;
}

/* A cluster with three owners (compressed data) loses them one by one and all at once (D1..D3, Q9). */
static void quarantine_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, 4096, 4 * MIB };
    for (unsigned together = 0; together < 2; together++) {
        img_make(co, &m);
        struct q2_image *q = img_open(co, &(struct opening){ 0 });
        struct q2_run run;
        CHECK_EQ(q2_alloc_take(co, q, 4, &run), 0);
        uint64_t c = run.cluster + 1;
        CHECK_EQ(q2_refs_add(co, q, c, 1, 2), 0);
        CHECK_EQ(g_flush(co, q), 0);
        punched = (typeof(punched)){ .q = q, .cluster = c };
        disk.hook = watch_punch;
        for (unsigned i = 0; i < 3; i++) {
            q2_alloc_drop(q, i ? c : run.cluster, i < 2 ? 2 : 1);      /* with a neighbour before, behind, alone */
            if (!together)
                settle(co, q);
        }
        CHECK(states_ok(co, q));
        if (together) {
            CHECK_EQ(count_of(co, q, c), 3);         /* nothing has happened before the pass, */
            epoch_token t = epoch_enter(q->im.epoch, co_loop(co));
            CHECK_EQ(g_flush(co, q), 0);
            for (unsigned i = 0; i < 50; i++)
                co_yield(co);
            CHECK_EQ(count_of(co, q, c), 3);         /* nor while a request may still see it */
            CHECK_EQ(punched.punches, 0);
            epoch_leave(q->im.epoch, co_loop(co), t);
            settle(co, q);
        }
        CHECK_EQ(count_of(co, q, c), 0);
        CHECK_EQ(punched.punches, 1);
        CHECK_EQ(punched.count_at_punch, 1);         /* still counted: nobody can have it (D3) */
        CHECK(rset_contains(&q->alloc->ready, c, c + 1));
        CHECK(states_ok(co, q) && !q->failed);
        CHECK_EQ(img_close(co, q), 0);
        CHECK_EQ(img_faults(co, NULL), 0);
    }
}

static void test_quarantine(void **state) { t_run(0, quarantine_body, NULL); }

/* ---- reclaim: a process was killed in the middle of a pass, the power fails after the next one began to write ---- */

static struct { uint8_t *bytes; uint64_t len; bool armed; } killed;

static int kill_at_flush(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    if (what == 'F' && killed.armed) {
        killed.bytes = malloc(disk.len);
        memcpy(killed.bytes, disk.bytes, disk.len);
        killed.len = disk.len;
        killed.armed = false;
    }
    return 0;
}

static uint64_t watched;                 /* host offset */
static unsigned flushes_before;          /* flushes that came before the first write there */

static int watch_write(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    if (what == 'W' && flushes_before == UINT32_MAX && off <= watched && watched < off + len)
        flushes_before = disk.flushes;
    return 0;
}

static void reclaim_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, 4096, 4 * MIB };
    const struct opening o = { .frontier_bytes = 64 * KIB };
    img_make(co, &m);
    struct q2_image *q = img_open(co, &o);
    CHECK_EQ(g_write(co, q, 0, 4096, 0xaa), 0);
    CHECK_EQ(g_flush(co, q), 0);
    watched = g_host(co, q, 0);
    uint8_t *durable = malloc(disk.durable_len);
    uint64_t durable_len = disk.durable_len;
    memcpy(durable, disk.durable, durable_len);
    CHECK_EQ(q2_discard(co, &q->im, 0, 4096), 0);
    killed.armed = true;
    disk.hook = kill_at_flush;
    CHECK_EQ(g_flush(co, q), 0);                     /* the entry is gone from the cache's bytes, not from the medium's */
    CHECK(!killed.armed);
    disk.hook = NULL;
    CHECK_EQ(img_close(co, q), 0);
    /* what the killed process left behind */
    memcpy(disk.bytes, killed.bytes, killed.len);
    disk.len = killed.len;
    memcpy(disk.durable, durable, durable_len);
    disk.durable_len = durable_len;
    q = img_open(co, &o);
    while (q->alloc->reclaim)
        co_yield(co);
    flushes_before = UINT32_MAX;
    disk.hook = watch_write;
    for (unsigned i = 1; i < 40 && flushes_before == UINT32_MAX; i++)
        CHECK_EQ(g_write(co, q, i * 4096, 4096, 0xbb), 0);
    CHECK(flushes_before != UINT32_MAX);             /* the cluster is used again */
    CHECK(flushes_before > 0);                       /* else guest offset 0 may show somebody else's bytes (P2) */
    disk.hook = NULL;
    CHECK_EQ(img_close(co, q), 0);
    free(durable);
    free(killed.bytes);
}

static void test_reclaim_barrier(void **state) { t_run(0, reclaim_body, NULL); }

/* ---- header switches whose write fails although it lands ---- */

static struct { uint32_t from, to; unsigned times; int error; } fail_header;

/* Fails (and lands) writes of the first sector that change bytes [from, to). */
static int fail_switch(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    if (what != 'W' || off != 0 || !fail_header.times || !memcmp(buf + fail_header.from, disk.bytes + fail_header.from, fail_header.to - fail_header.from))
        return 0;
    fail_header.times--;
    return fail_header.error;
}

/* After a switch that failed: what was promised holds whether the switch is on the medium or not. */
static void after_switch(struct co *co, struct q2_image *q, bool landed)
{
    int r = 0;
    for (uint64_t off = 4096; off < 32 * KIB; off += 512)
        r |= g_write(co, q, off, 512, 0xcc);
    r |= g_flush(co, q);                             /* may be refused; if not, it is a promise */
    if (landed)
        img_kill(co, q);
    else
        img_crash(co, q);
    CHECK_EQ(img_faults(co, NULL), 0);
    q = img_open(co, &(struct opening){ .read_only = true });
    CHECK(g_holds(co, q, 0, 512, 0xaa));
    if (r == 0)
        CHECK(g_holds(co, q, 4096, 28 * KIB, 0xcc));
    CHECK_EQ(img_close(co, q), 0);
}

static bool header_changed(void) { return memcmp(disk.bytes + 36, disk.durable + 36, 12); }

static int fail_barrier(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    return what == 'F' && header_changed() ? -EIO : 0;
}

static void l1_switch_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, 512, 32 * KIB };
    for (unsigned mode = 0; mode < 4; mode++) {
        img_make(co, &m);
        struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 64 * KIB });
        struct byre_err err;
        CHECK_EQ(g_write(co, q, 0, 512, 0xaa), 0);
        CHECK_EQ(g_flush(co, q), 0);
        fail_header = (typeof(fail_header)){ 36, 48, 1, -EIO };
        disk.hook = mode & 1 ? fail_barrier : fail_switch;
        disk.land = true;
        CHECK(q2_resize(co, &q->im, 8 * MIB, FMT_PREALLOC_OFF, &err) < 0);
        after_switch(co, q, mode & 2);
    }
}

static void test_l1_switch_lands(void **state) { t_run(0, l1_switch_body, NULL); }

static void rt_switch_body(struct co *co, void *arg)
{
    const struct make m = { 3, 64, 512, 8 * MIB };   /* a block counts 64 clusters, a table cluster names 64 blocks */
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 37 * 512 });
    fail_header = (typeof(fail_header)){ 48, 60, 4, -EIO };      /* those of the background too */
    disk.hook = fail_switch;
    disk.land = true;
    int r = 0;
    for (uint64_t off = 0; r == 0 && off < m.size; off += 4096)
        r = g_write(co, q, off, 4096, 0xcc);
    CHECK(r < 0 && fail_header.times < 4);
    CHECK(states_ok(co, q));
    (void)g_flush(co, q);
    img_crash(co, q);
    CHECK_EQ(img_faults(co, NULL), 0);
}

static void test_rt_switch_lands(void **state) { t_run(0, rt_switch_body, NULL); }

/* ---- refcount table entries whose write fails although it lands; a smaller step follows ---- */

static unsigned fail_rt;
static struct q2_image *fail_q;

static int fail_entries(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    uint64_t rt = fail_q->h.rt_off, end = rt + ((uint64_t)fail_q->h.rt_clusters << fail_q->g.cluster_bits);
    if (what != 'W' || off < rt || off >= end || len < 1024 || !fail_rt)
        return 0;
    fail_rt--;
    return -ENOSPC;
}

static void rt_entries_body(struct co *co, void *arg)
{
    const struct make m = { 3, 64, 512, 16 * MIB };
    img_make(co, &m);
    struct q2_image *q = fail_q = img_open(co, &(struct opening){ .frontier_bytes = 1037 * 512 });
    fail_rt = 1;                                     /* a write of entries in two sectors of the table */
    disk.hook = fail_entries;
    disk.land = true;
    uint64_t off = 0;
    for (; fail_rt && off < m.size; off += 4096)
        CHECK_EQ(g_write(co, q, off, 4096, 0x5a), 0);
    CHECK_EQ(fail_rt, 0);
    for (uint64_t first = q->alloc->end, at = 0; at < (first + 20) * 512; off += 512) {      /* into the space that the entries name */
        CHECK_EQ(g_write(co, q, off, 512, 0x5a), 0);
        at = g_host(co, q, off);
    }
    CHECK_EQ(g_flush(co, q), 0);
    CHECK(states_ok(co, q));
    img_crash(co, q);
    CHECK_EQ(img_faults(co, NULL), 0);
}

static void test_rt_entries_land(void **state) { t_run(0, rt_entries_body, NULL); }

/* ---- a failed request is not a damaged image ---- */

static struct { char what; uint64_t off, len; unsigned times; } fail_io;

static int fail_range(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    if (what != fail_io.what || !fail_io.times || off >= fail_io.off + fail_io.len || fail_io.off >= off + len)
        return 0;
    fail_io.times--;
    return -EIO;
}

static void transient_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, 4096, 16 * MIB };
    for (unsigned what = 0; what < 4; what++) {
        img_make(co, &m);
        struct q2_image *q = img_open(co, &(struct opening){ 0 });
        CHECK_EQ(g_write(co, q, 0, 8192, 0x11), 0);
        CHECK_EQ(img_close(co, q), 0);
        uint64_t block = be64_get(disk_be64(be64_get(disk_be64(48)))), l2 = round_down(img_l2_at(0), 4096);
        q = img_open(co, &(struct opening){ 0 });
        uint8_t buf[512];
        fail_io = (typeof(fail_io)){ 'R', what < 3 ? l2 : block, 4096, 1 };
        disk.hook = fail_range;
        CHECK_EQ(what == 0 ? g_read(co, q, 0, 512, buf) : what == 1 ? g_write(co, q, 0, 512, 0x22) : what == 2 ? q2_discard(co, &q->im, 4096, 4096) :
                     g_write(co, q, 8 * MIB, 512, 0x33), what < 3 ? -EIO : 0);
        CHECK_EQ(fail_io.times, 0);
        CHECK(g_holds(co, q, 0, 8192, 0x11));        /* the next ones work */
        fail_io = (typeof(fail_io)){ 'T', 0, UINT64_MAX, 1 };
        if (!q->alloc->frontier.total)
            CHECK_EQ(g_write(co, q, 12 * MIB, 512, 0x33), -EIO);
        CHECK_EQ(g_write(co, q, 12 * MIB, 4096, 0x33), 0);
        fail_io.times = 0;
        CHECK_EQ(g_flush(co, q), 0);
        CHECK(!(q->h.incompat & Q2_INCOMPAT_CORRUPT));
        CHECK_EQ(img_close(co, q), 0);
        CHECK_EQ(img_faults(co, NULL), 0);
    }
}

static void test_transient(void **state) { t_run(0, transient_body, NULL); }

/* Damage is: a table behind the end of the file, an entry with reserved bits. */
static void damage_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, 4096, 16 * MIB };
    for (unsigned what = 0; what < 6; what++) {
        img_make(co, &m);
        struct q2_image *q = img_open(co, &(struct opening){ 0 });
        CHECK_EQ(g_write(co, q, 0, 8192, 0x11), 0);
        CHECK_EQ(img_close(co, q), 0);
        if (what < 2)
            be64_put(disk_be64(img_l1_at(0)), Q2_E_COPIED | 64 * MIB);
        else if (what < 4)
            be64_put(disk_be64(img_l2_at(0)), Q2_E_COPIED | 1ull << 60 | 0x10000);
        else
            be64_put(disk_be64(img_l1_at(0)), Q2_E_COPIED | 1ull << 60 | 0x10000);
        q = img_open(co, &(struct opening){ 0 });
        uint8_t buf[512];
        CHECK_EQ(what & 1 ? g_read(co, q, 0, 512, buf) : g_write(co, q, 0, 512, 1), -EIO);
        CHECK(q->h.incompat & Q2_INCOMPAT_CORRUPT);
        CHECK_EQ(be64_get(disk_be64(72)), Q2_INCOMPAT_CORRUPT);
        (void)img_close(co, q);
    }
}

static void test_damage(void **state) { t_run(0, damage_body, NULL); }

/* ---- a new refcount block also counts older clusters: nobody may use it before it is durable ---- */

static struct { uint64_t rt_off; bool reached, go; } held;

static int hold_rt(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    if (what != 'W' || off != held.rt_off || held.go)
        return 0;
    held.reached = true;
    while (!held.go)
        co_yield(co);
    return -EIO;
}

struct guest { struct q2_image *q; uint64_t off, len; uint8_t fill; int r; bool done; };
static void guest_co(struct co *co, void *arg)
{
    struct guest *g = arg;
    g->r = g_write(co, g->q, g->off, g->len, g->fill);
    g->done = true;
}

/* Turns until *flag, at most n. */
static bool turns(struct co *co, const bool *flag, unsigned n)
{
    while (n-- && !*(volatile const bool *)flag)
        co_yield(co);
    return *flag;
}

static void old_clusters_body(struct co *co, void *arg)
{
    const struct make m = { 3, 64, 512, 64 * KIB };  /* a block counts 64 clusters */
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 8 * 512 });
    CHECK_EQ(g_write(co, q, 0, 512, 9), 0);          /* the L2 table is there */
    CHECK_EQ(img_close(co, q), 0);
    uint64_t rt = be64_get(disk_be64(48)), block = be64_get(disk_be64(rt));
    for (uint64_t c = 1; c <= 2; c++)                /* two more blocks, all they count is used */
        be64_put(disk_be64(rt + 8 * c), (60 + c) * 512);
    for (uint64_t i = 0; i < 64; i++) {
        be64_put(disk_be64(block + 8 * i), 1);
        be64_put(disk_be64(61 * 512 + 8 * i), 1);
        be64_put(disk_be64(62 * 512 + 8 * i), 1);
    }
    disk.len = (3 * 64 + 20) * 512;                  /* 20 clusters more, which no block counts */
    q = img_open(co, &(struct opening){ .frontier_bytes = 8 * 512 });
    held = (typeof(held)){ .rt_off = rt };
    disk.hook = hold_rt;
    struct guest a = { .q = q, .off = 512, .len = 512, .fill = 1 }, b = { .q = q, .off = 1024, .len = 512, .fill = 2 };
    CHECK_EQ(rt_spawn(co_loop(co), guest_co, &a), 0);
    CHECK(turns(co, &held.reached, 1000));
    CHECK_EQ(rt_spawn(co_loop(co), guest_co, &b), 0);
    (void)turns(co, &b.done, 300);
    held.go = true;
    CHECK(turns(co, &a.done, 1000) && turns(co, &b.done, 1000));
    CHECK_EQ(g_flush(co, q), 0);
    CHECK(states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, NULL), 0);
}

static void test_old_clusters(void **state) { t_run(0, old_clusters_body, NULL); }

/* ---- damaged images: metadata is neither overwritten nor punched nor handed out (1.048, 1.111) ---- */

/* An image of two data clusters at guest 0 and 4096, closed. */
static void two_clusters(struct co *co, bool zero)
{
    const struct make m = { 3, 16, 4096, 16 * MIB };
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ 0 });
    CHECK_EQ(g_write(co, q, 0, 8192, 0x11), 0);
    if (zero)
        CHECK_EQ(q2_zero(co, &q->im, 0, 8192, 0), 0);
    CHECK_EQ(img_close(co, q), 0);
}

static void set_count(uint64_t host, uint16_t n)     /* one block, 16 bits */
{
    be16_put((be16 *)(disk.bytes + be64_get(disk_be64(be64_get(disk_be64(48))))) + host / 4096, n);
}

struct region { uint64_t off; uint8_t bytes[4096]; };
static struct region keep(uint64_t off)
{
    struct region r = { .off = off };
    memcpy(r.bytes, disk.bytes + off, 4096);
    return r;
}
static bool kept(const struct region *r) { return !memcmp(r->bytes, disk.bytes + r->off, 4096); }

static void kept_zero_body(struct co *co, void *arg)
{
    two_clusters(co, true);
    uint64_t l1 = be64_get(disk_be64(40)), l2 = img_l2_at(0);
    be64_put(disk_be64(l2), Q2_E_COPIED | Q2_E_ZERO | (l1 - 4096));
    be64_put(disk_be64(l2 + 8), Q2_E_COPIED | Q2_E_ZERO | l1);
    struct region r = keep(l1);
    struct q2_image *q = img_open(co, &(struct opening){ 0 });
    CHECK(g_write(co, q, 0, 8192, 0xee) < 0);
    CHECK(kept(&r));
    (void)img_close(co, q);
    CHECK(kept(&r));
}

static void test_kept_zero_on_metadata(void **state) { t_run(0, kept_zero_body, NULL); }

static void table_on_table_body(struct co *co, void *arg)
{
    two_clusters(co, false);
    uint64_t rt = be64_get(disk_be64(48));
    be64_put(disk_be64(img_l1_at(0)), Q2_E_COPIED | rt);
    struct region r = keep(rt);
    struct q2_image *q = img_open(co, &(struct opening){ 0 });
    CHECK(g_write(co, q, 65536, 4096, 0xee) < 0);
    CHECK(q2_discard(co, &q->im, 0, 8192) < 0);
    (void)g_flush(co, q);
    CHECK(kept(&r));
    (void)img_close(co, q);
    CHECK(kept(&r));
}

static void test_l2_on_refcount_table(void **state) { t_run(0, table_on_table_body, NULL); }

/* A data entry names metadata; discarding it must not punch or free that. victim: host offset. */
static void drop_metadata(struct co *co, uint64_t victim)
{
    be64_put(disk_be64(img_l2_at(4096)), Q2_E_COPIED | victim);
    struct region r = keep(victim);
    struct q2_image *q = img_open(co, &(struct opening){ 0 });
    CHECK(g_holds(co, q, 0, 4096, 0x11));            /* its table is cached */
    (void)q2_discard(co, &q->im, 4096, 4096);
    (void)g_flush(co, q);
    settle(co, q);
    if (victim != round_down(img_l2_at(4096), 4096)) /* that one has changed, as it should */
        CHECK(kept(&r));
    else
        CHECK(be64_get(disk_be64(img_l2_at(0))) & Q2_L2E_OFF);
    CHECK(!rset_contains(&q->alloc->ready, victim / 4096, victim / 4096 + 1));
    (void)img_close(co, q);
}

static void drop_metadata_body(struct co *co, void *arg)
{
    two_clusters(co, false);
    drop_metadata(co, be64_get(disk_be64(40)));
    two_clusters(co, false);
    drop_metadata(co, be64_get(disk_be64(48)));
    two_clusters(co, false);
    drop_metadata(co, be64_get(disk_be64(be64_get(disk_be64(48)))));
    two_clusters(co, false);
    drop_metadata(co, round_down(img_l2_at(0), 4096));
}

static void test_drop_metadata(void **state) { t_run(0, drop_metadata_body, NULL); }

/* Metadata with count 0: the scan must not offer it. */
static void uncounted_body(struct co *co, void *arg)
{
    for (unsigned which = 0; which < 2; which++) {
        two_clusters(co, false);
        uint64_t victim = which ? round_down(img_l2_at(0), 4096) : be64_get(disk_be64(be64_get(disk_be64(48))));
        set_count(victim, 0);
        memcpy(disk.durable, disk.bytes, disk.len);
        struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 64 * KIB });
        for (uint64_t off = 2 * MIB; off < 4 * MIB; off += 256 * KIB)
            (void)g_write(co, q, off, 4096, 0x77);
        CHECK(q->failed || g_holds(co, q, 0, 8192, 0x11));
        CHECK(!rset_contains(&q->alloc->ready, victim / 4096, victim / 4096 + 1));
        (void)img_close(co, q);
        q = img_open(co, &(struct opening){ .read_only = true });
        CHECK(g_holds(co, q, 0, 8192, 0x11));
        CHECK_EQ(img_close(co, q), 0);
    }
}

static void test_uncounted_metadata(void **state) { t_run(0, uncounted_body, NULL); }

/* A cluster is freed whose count is 0 already: nothing is punched, the image is marked corrupt (CVE-2014-0147). */
static void underflow_body(struct co *co, void *arg)
{
    two_clusters(co, false);
    uint64_t host = be64_get(disk_be64(img_l2_at(0))) & Q2_L2E_OFF;
    set_count(host, 0);
    struct region r = keep(host);
    struct q2_image *q = img_open(co, &(struct opening){ 0 });
    CHECK_EQ(q2_discard(co, &q->im, 0, 4096), 0);
    CHECK_EQ(g_flush(co, q), 0);
    settle(co, q);
    CHECK(kept(&r));
    CHECK(q->h.incompat & Q2_INCOMPAT_CORRUPT);
    uint8_t buf[512];
    CHECK_EQ(g_read(co, q, 4096, 512, buf), -EIO);   /* all later requests fail (1.113) */
    CHECK_EQ(g_write(co, q, 4096, 512, 1), -EIO);
    CHECK(g_flush(co, q) < 0);
    (void)img_close(co, q);
    CHECK_EQ(be64_get(disk_be64(72)) & Q2_INCOMPAT_CORRUPT, Q2_INCOMPAT_CORRUPT);
}

static void test_underflow(void **state) { t_run(0, underflow_body, NULL); }

/* ---- closing after a failure while a pass runs behind ---- */

static unsigned fail_writes;
static int fail_some(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    if (what != 'W' || !fail_writes)
        return 0;
    fail_writes--;
    return -EIO;
}

/* n writes fail: those of a pass that began behind, those of close, or both. Nothing is used after it was freed, and what
 * is on the disk is sound. */
static bool close_with(struct co *co, unsigned n)
{
    const struct make m = { 3, 16, 512, 4 * MIB };
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ .cache_bytes = 8 * 512 });
    for (uint64_t off = 0; off < 2 * MIB; off += 32 * KIB)
        CHECK_EQ(g_write(co, q, off, 512, 1), 0);
    CHECK_EQ(g_flush(co, q), 0);
    for (uint64_t off = 0; off < 2 * MIB; off += 32 * KIB)
        CHECK_EQ(q2_discard(co, &q->im, off, 512), 0);
    fail_writes = n;
    disk.hook = fail_some;
    bool failed = img_close(co, q) < 0;
    disk.hook = NULL;
    for (unsigned i = 0; i < 100; i++)
        co_yield(co);                    /* whatever is left behind runs now */
    CHECK_EQ(img_faults(co, NULL), 0);
    return failed;
}

static void close_body(struct co *co, void *arg)
{
    unsigned failed = 0;
    for (unsigned n = 1; n < 40; n++)
        failed += close_with(co, n);
    CHECK(failed > 0);                   /* and it is told */
    CHECK(close_with(co, UINT32_MAX));   /* the disk is gone for good */
}

static void test_close_after_failure(void **state) { t_run(0, close_body, NULL); }

/* ---- space: no false ENOSPC ---- */

static void device_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, 512, 8 * MIB };   /* a block counts 256 clusters: 128 KiB */
    img_make(co, &m);
    disk.len = 4 * MIB;
    disk.fixed_length = true;
    struct q2_image *q = img_open(co, &(struct opening){ 0 });
    for (uint64_t off = 0; off < 2 * MIB; off += 64 * KIB)
        if (!CHECK_EQ(g_write(co, q, off, 64 * KIB, 0x31), 0))
            break;
    CHECK(states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, NULL), 0);
    q = img_open(co, &(struct opening){ 0 });
    CHECK(g_holds(co, q, 0, 2 * MIB, 0x31));
    int r = 0;
    for (uint64_t off = 2 * MIB; r == 0 && off < 8 * MIB; off += 4096)
        r = g_write(co, q, off, 4096, 0x32);
    CHECK_EQ(r, -ENOSPC);
    CHECK(g_host(co, q, 3 * MIB + 512 * KIB));       /* most of the device was used */
    CHECK_EQ(q2_discard(co, &q->im, 0, 64 * KIB), 0);
    CHECK_EQ(g_write(co, q, 0, 32 * KIB, 0x33), 0);  /* what was freed comes back (D3) */
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, NULL), 0);
}

static void test_device(void **state) { t_run(0, device_body, NULL); }

/* Free clusters that lie behind many used ones are found before ENOSPC is told. */
static void scan_all_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, 512, 8 * MIB };
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ .no_punch = true });
    CHECK_EQ(g_write(co, q, 0, 3 * MIB, 0x31), 0);
    CHECK_EQ(q2_discard(co, &q->im, 2 * MIB, 512 * KIB), 0);
    CHECK_EQ(img_close(co, q), 0);
    disk.fixed_length = true;
    q = img_open(co, &(struct opening){ 0 });
    CHECK_EQ(g_write(co, q, 4 * MIB, 256 * KIB, 0x32), 0);
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, NULL), 0);
}

static void test_scan_all(void **state) { t_run(0, scan_all_body, NULL); }

/* FEATURES G.003: a lookup in tables that are cached takes no lock and asks no other loop: it is answered on its own loop while the home
 * loop stands still with every lock of the tables and of the allocator in its hands. */
static struct { struct q2_image *q; uint64_t end; _Atomic int state; } lookups;      /* state: 1 begun, 2 all answered */

static void look_up_all(struct co *co, void *arg)
{
    atomic_store(&lookups.state, 1);
    epoch_token t = epoch_enter(lookups.q->im.epoch, co_loop(co));
    for (uint64_t off = 0; off < lookups.end; off += 64 * KIB) {
        struct fmt_extent e;
        CHECK_EQ(q2_map(co, &lookups.q->im, off, 64 * KIB, &e), 0);
        CHECK(e.kind == (off % (128 * KIB) ? FMT_ABSENT : FMT_DATA));
    }
    epoch_leave(lookups.q->im.epoch, co_loop(co), t);
    atomic_store(&lookups.state, 2);
}

static void lookups_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, 64 * KIB, 16 * MIB };
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ 0 });
    lookups.q = q;
    lookups.end = 16 * MIB;
    for (uint64_t off = 0; off < lookups.end; off += 128 * KIB)
        CHECK_EQ(g_write(co, q, off, 64 * KIB, 0x41), 0);
    CHECK(q->im.home == co_loop(co));
    co_lock(co, &q->l2_mx);
    co_lock(co, &q->alloc->mx);
    atomic_store(&lookups.state, 0);
    CHECK_EQ(rt_spawn_on(rt_loop_at(t_rt, 1), look_up_all, NULL), 0);
    time_t begun = time(NULL);
    while (atomic_load(&lookups.state) != 2 && time(NULL) - begun < 20)
        continue;                            /* on purpose: this loop serves nobody */
    CHECK_EQ(atomic_load(&lookups.state), 2);
    co_unlock(&q->alloc->mx);
    co_unlock(&q->l2_mx);
    while (atomic_load(&lookups.state) != 2)
        (void)co_sleep(co, 1000000);
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, NULL), 0);
}

static void test_lookups(void **state) { t_run(0, lookups_body, NULL); }

/* ---- amendments: what they end, and what is left when the image cannot be read again ---- */

static bool given_nothing(void *arg, const char *option) { return false; }

static int give_token(struct co *co, struct q2_image *q)
{
    static const struct fmt_create_opts none;
    const struct fmt_amend_opts a = { .o = &none, .given = given_nothing, .rebase = true, .token = "00112233445566778899aabbccddeeff" };
    return fmt_qcow2_ops.amend(co, &q->im, &a, NULL);
}

/* P1, D4: an amendment ends the search for what a crash left counted; it begins anew behind it. */
static void amended_early_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, 4096, 16 * MIB };
    const struct opening o = { .frontier_bytes = 256 * KIB };
    struct q2_run run;
    uint64_t leaks = 0;
    img_make(co, &m);
    struct q2_image *q = img_open(co, &o);
    CHECK_EQ(q2_alloc_take(co, q, 20, &run), 0);
    CHECK_EQ(g_flush(co, q), 0);
    img_crash(co, q);
    CHECK_EQ(img_faults(co, &leaks), 0);
    CHECK(leaks >= 20);
    q = img_open(co, &o);
    CHECK(q->alloc->reclaim);
    CHECK_EQ(give_token(co, q), 0);
    while (q->alloc->reclaim)
        co_yield(co);
    CHECK(states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, &leaks), 0);
    CHECK_EQ(leaks, 0);
}

static void test_amended_early(void **state) { t_run(0, amended_early_body, NULL); }

static bool header_written;

static int fail_reads(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    header_written |= what == 'W' && off == 0;
    return what == 'R' && header_written ? -EIO : 0;
}

/* The header was changed and cannot be read again: nothing works any more, nothing is written, and nobody dies of it. */
static void not_read_again_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, 4096, 4 * MIB };
    struct fmt_check_result res = { 0 };
    struct fmt_compact_result cres = { 0 };
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 64 * KIB });
    CHECK_EQ(g_write(co, q, 0, 8192, 0xaa), 0);
    CHECK_EQ(g_flush(co, q), 0);
    header_written = false;
    disk.hook = fail_reads;
    CHECK(give_token(co, q) < 0);
    CHECK(header_written && !q->alloc);
    disk.hook = NULL;
    disk_mark();
    CHECK(q2_scrub(co, &q->im, &(struct fmt_check_opts){ .fix = FMT_FIX_LEAKS }, &res, NULL) < 0);
    CHECK(fmt_qcow2_ops.compact(co, &q->im, &(struct fmt_compact_opts){ 0 }, &cres, NULL) < 0);
    CHECK(g_write(co, q, 64 * KIB, 4096, 0xbb) < 0);
    CHECK(g_flush(co, q) < 0);
    CHECK(img_close(co, q) < 0);
    CHECK_EQ(disk.writes, 0);
    CHECK_EQ(img_faults(co, NULL), 0);
    q = img_open(co, &(struct opening){ .read_only = true });
    CHECK(g_holds(co, q, 0, 8192, 0xaa));
    CHECK_EQ(img_close(co, q), 0);
}

static void test_not_read_again(void **state) { t_run(0, not_read_again_body, NULL); }

/* ---- what a layer forgets, while somebody still reads it ---- */

static int open_data(struct co *co, void *arg, const char *name, struct stor **ret_s, struct byre_err *err)
{
    return stor_mem_new(co, name, *(const uint64_t *)arg, ret_s);
}

struct forgetting { struct q2_image *q; bool done; int r; };

static void forget_one(struct co *co, void *arg)
{
    struct forgetting *f = arg;
    f->r = fmt_qcow2_ops.forget(co, &f->q->im, 4096, 4096, false);
    f->done = true;
}

static bool data_holds(struct co *co, struct q2_image *q, uint64_t off, uint8_t fill)
{
    uint8_t buf[4096];
    struct iovec slot;
    bool ok = stor_read(co, q->im.data, iov_one(&slot, buf, sizeof buf), off) == 0;
    for (size_t i = 0; ok && i < sizeof buf; i++)
        ok = buf[i] == fill;
    return ok;
}

/* Q9, I1 of fmt.h: bytes in an external data file go when nobody who has looked their entry up reads them any more. */
static void forget_body(struct co *co, void *arg)
{
    uint64_t size = 1 * MIB;
    const struct fmt_host host = { .open_data = open_data, .arg = &size };
    struct forgetting f = { 0 };
    struct fmt_extent e;
    img_make(co, &(struct make){ 3, 16, 4096, size, .host = &host });
    struct q2_image *q = f.q = img_open(co, &(struct opening){ .host = &host });
    CHECK_EQ(g_write(co, q, 0, 16384, 0xaa), 0);
    CHECK_EQ(g_flush(co, q), 0);
    epoch_token t = epoch_enter(q->im.epoch, co_loop(co));
    CHECK_EQ(q2_map(co, &q->im, 4096, 4096, &e), 0);
    CHECK(e.kind == FMT_DATA && e.host == 4096);
    CHECK_EQ(rt_spawn(co_loop(co), forget_one, &f), 0);
    for (unsigned i = 0; i < 10000 && e.kind == FMT_DATA; i++) {
        co_yield(co);
        CHECK_EQ(q2_map(co, &q->im, 4096, 4096, &e), 0);
    }
    CHECK(e.kind == FMT_ABSENT);
    for (unsigned i = 0; i < 1000; i++)
        co_yield(co);
    CHECK(!f.done);
    CHECK(data_holds(co, q, 4096, 0xaa));            /* what was looked up before */
    epoch_leave(q->im.epoch, co_loop(co), t);
    while (!f.done)
        co_yield(co);
    CHECK_EQ(f.r, 0);
    CHECK(data_holds(co, q, 0, 0xaa) && data_holds(co, q, 4096, 0) && data_holds(co, q, 8192, 0xaa));
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, NULL), 0);
}

static void test_forget(void **state) { t_run(0, forget_body, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_endless), cmocka_unit_test(test_growth),
        cmocka_unit_test(test_origin), cmocka_unit_test(test_ahead), cmocka_unit_test(test_ahead_not), cmocka_unit_test(test_ahead_counted),
        cmocka_unit_test(test_ahead_proved), cmocka_unit_test(test_ahead_beside), cmocka_unit_test(test_cut_tags),
        cmocka_unit_test(test_quarantine),
        cmocka_unit_test(test_reclaim_barrier),
        cmocka_unit_test(test_l1_switch_lands),
        cmocka_unit_test(test_rt_switch_lands),
        cmocka_unit_test(test_rt_entries_land),
        cmocka_unit_test(test_transient),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_old_clusters),
        cmocka_unit_test(test_kept_zero_on_metadata),
        cmocka_unit_test(test_l2_on_refcount_table),
        cmocka_unit_test(test_drop_metadata),
        cmocka_unit_test(test_uncounted_metadata),
        cmocka_unit_test(test_underflow),
        cmocka_unit_test(test_close_after_failure),
        cmocka_unit_test(test_device),
        cmocka_unit_test(test_scan_all),
        cmocka_unit_test(test_lookups),
        cmocka_unit_test(test_amended_early),
        cmocka_unit_test(test_not_read_again),
        cmocka_unit_test(test_forget),
    };
    ASSERT(disk_setup(NULL) == 0);
    int failed = T_MAIN("qcow2 core", tests);
    disk_teardown(NULL);
    return failed;
}
