/* SPDX-License-Identifier: MIT
 *
 * q2_kept_test.c: what cannot be freed at once is freed later (FEATURES G.005).
 *
 * Purpose      FEATURES G.005. Counts that cannot be read or written when a cluster has lost its last reference: once, or until the close.
 * Owns         One disk (q2_disk_test.h), and how its reads fail.
 * Invariants   None.
 * Concurrency  One loop at a time.
 * Failure      A failed check fails the test.
 * Tests        q2_drop.c, q2_frontier.c, and what the close tells (q2_driver.c).
 */
#include "fmt/qcow2/q2_disk_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KIB 1024ull
#define MIB (1024 * KIB)

/* Counts of 64 bits in clusters of 512 bytes: a block counts 32 KiB of the file, and the cache holds eight of them. */
static const struct make wide = { 3, 64, 512, 2 * MIB };

static struct { struct q2_image *q; unsigned skip, times, struck; uint64_t told; } bad;

static bool is_block(uint64_t off)
{
    for (uint64_t i = 0; i < bad.q->rt_entries; i++)
        if (bad.q->rt[i] && off - bad.q->rt[i] < bad.q->g.cluster_size)
            return true;
    return false;
}

static int fail_counts(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    if (what != 'R' || !bad.times || !is_block(off))
        return 0;
    if (bad.skip) {
        bad.skip--;
        return 0;
    }
    bad.times--;
    bad.struck++;
    return -EIO;
}

static void told(void *arg, uint64_t bytes) { bad.told += bytes; }

/* A full disk of which everything is discarded, durably; counts fail when they are lowered. */
static struct q2_image *full(struct co *co, unsigned skip, unsigned times)
{
    img_make(co, &wide);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 64 * KIB, .cache_bytes = 4096 });
    CHECK_EQ(g_write(co, q, 0, wide.size, 0xaa), 0);
    CHECK_EQ(g_flush(co, q), 0);
    memset(&bad, 0, sizeof bad);
    bad.q = q;
    q->opts.leaked = told;
    CHECK_EQ(q2_discard(co, &q->im, 0, wide.size), 0);
    bad.skip = skip;
    bad.times = times;
    disk.hook = fail_counts;
    return q;
}

static uint64_t kept_clusters(const struct q2_image *q) { return q2_drop_left(q->alloc); }

static void nothing_left(struct co *co)
{
    uint64_t leaks = 1;
    CHECK_EQ(img_faults(co, &leaks), 0);
    CHECK_EQ(leaks, 0);
    CHECK_EQ(bad.told, 0);
}

/* Fails some times, at several places; the close alone makes it good. */
static void at_close(struct co *co, void *arg)
{
    for (unsigned skip = 0; skip < 80; skip += 13)
        for (unsigned times = 1; times < 4; times++) {
            struct q2_image *q = full(co, skip, times);
            CHECK_EQ(img_close(co, q), 0);
            CHECK_EQ(bad.struck, times);
            nothing_left(co);
        }
}

static void test_at_close(void **state) { t_run(0, at_close, NULL); }

/* While requests go on: kept, told to whoever looks for leaks, counted, and tried again by the next passes. */
static void by_flushes(struct co *co, void *arg)
{
    struct q2_image *q = full(co, 5, 1);
    CHECK_EQ(g_flush(co, q), 0);
    co_group_wait(co, &q->alloc->drops);
    if (!kept_clusters(q))
        CHECK_EQ(q2_drop_settle(co, q), 0);          /* tries it again at its end */
    CHECK_EQ(bad.struck, 1);
    for (unsigned i = 0; i < 8 && kept_clusters(q); i++) {
        CHECK_EQ(g_write(co, q, i * 512, 512, 0xbb), 0);
        CHECK_EQ(g_flush(co, q), 0);
        co_group_wait(co, &q->alloc->drops);
    }
    CHECK_EQ(kept_clusters(q), 0);
    CHECK(list_empty(&q->alloc->kept) && q->alloc->kept_ranges == 0 && q->alloc->lost == 0);
    CHECK(states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    nothing_left(co);
}

static void test_by_flushes(void **state) { t_run(0, by_flushes, NULL); }

struct seen { struct rset all; };
static void see(void *arg, uint64_t first, uint64_t n)
{
    struct seen *s = arg;
    CHECK(!rset_overlaps(&s->all, first, first + n));
    CHECK_EQ(rset_add(&s->all, first, first + n, 0), 0);
}

/* Nothing that is kept is handed out, and whoever judges leaks hears of all of it. */
static void is_held(struct co *co, void *arg)
{
    struct q2_image *q = full(co, 0, 1u << 30);
    CHECK_EQ(g_flush(co, q), 0);
    CHECK_EQ(q2_drop_settle(co, q), 0);
    uint64_t n = kept_clusters(q);
    CHECK(n > 0 && n <= wide.size / 512 + 1024);
    struct seen s;
    rset_init(&s.all);
    q2_drop_each(q->alloc, see, &s);
    CHECK_EQ(s.all.total, n);
    bad.times = 0;
    struct rset_range x;
    for (uint64_t at = 0; rset_next(&s.all, at, &x); at = x.end)
        for (uint64_t c = x.start; c < x.end; c++) {
            uint64_t count = 0;
            CHECK(q2_refs_get(co, q, c, &count) == 0 && count == 1);
            CHECK(!rset_overlaps(&q->alloc->ready, c, c + 1) && !rset_overlaps(&q->alloc->counted, c, c + 1));
        }
    struct q2_run run;
    for (unsigned i = 0; i < 500; i++)
        if (CHECK_EQ(q2_alloc_take(co, q, 1 + i % 9, &run), 0)) {
            CHECK(!rset_overlaps(&s.all, run.cluster, run.cluster + run.count));
            q2_alloc_return(q, &run);
        }
    rset_fini(&s.all);
    CHECK_EQ(img_close(co, q), 0);
    nothing_left(co);
}

static void test_is_held(void **state) { t_run(0, is_held, NULL); }

/* Space is short: before a write is refused, what was kept is tried again. */
static uint64_t most_bytes;
static int full_disk(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    if ((what == 'W' || what == 'T' || what == 'Z') && off + len > most_bytes)
        return -ENOSPC;
    return fail_counts(co, what, off, len, buf);
}

static void when_short(struct co *co, void *arg)
{
    struct q2_image *q = full(co, 0, 1u << 30);
    CHECK_EQ(g_flush(co, q), 0);
    CHECK_EQ(q2_drop_settle(co, q), 0);
    CHECK(kept_clusters(q) > 100);
    most_bytes = disk.len;
    disk.hook = full_disk;
    bad.times = 0;
    CHECK_EQ(g_write(co, q, 0, wide.size, 0xcc), 0);
    CHECK(g_holds(co, q, 0, wide.size, 0xcc));
    CHECK_EQ(img_close(co, q), 0);
    nothing_left(co);
}

static void test_when_short(void **state) { t_run(0, when_short, NULL); }

/* Counts of one block can never be read: the others are lowered; the close says how much is left, and a check finds just that. */
static uint64_t dead_block;
static int one_block(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    bad.struck += what == 'R' && off == dead_block;
    return what == 'R' && off == dead_block ? -EIO : 0;
}

static void is_told(struct co *co, void *arg)
{
    struct q2_image *q = full(co, 0, 0);
    uint64_t i = 0;
    while (i < q->rt_entries && (!q->rt[i] || meta_cached(q->meta, q->rt[i], 512)))
        i++;
    dead_block = i < q->rt_entries ? q->rt[i] : 0;
    disk.hook = one_block;
    CHECK_EQ(img_close(co, q), 0);
    disk.hook = NULL;
    uint64_t leaks = 0;
    CHECK_EQ(img_faults(co, &leaks), 0);
    CHECK(bad.struck > 1 && leaks > 0);
    CHECK_EQ(bad.told, leaks * 512);
    if (atomic_load(&t_failures))
        fprintf(stderr, "struck %u, %d leaks\n", bad.struck, (int)leaks);
}

static void test_is_told(void **state) { t_run(0, is_told, NULL); }

/* ---- what is uncounted when the file is cut ---- */

static bool no_memory;
void *__real_malloc(size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_malloc(size_t n) { return no_memory && n < 128 ? NULL : __real_malloc(n); }      /* small things: ranges */

static int and_no_memory(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    if (what != 'R' || off != dead_block || !bad.times)
        return 0;
    bad.times--;
    bad.struck++;
    no_memory = true;
    return -EIO;
}

/* The counts of the second block of a long range cannot be read, and there is no memory to split it when those of the third have been
 * lowered: nothing is handed out twice, or uncounted twice. */
static void in_the_middle(struct co *co, void *arg)
{
    img_make(co, &wide);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 256 * KIB, .cache_bytes = 4096 });
    CHECK_EQ(g_write(co, q, 0, wide.size, 0xaa), 0);
    CHECK_EQ(g_flush(co, q), 0);
    struct q2_run run;
    CHECK_EQ(q2_alloc_exact(co, q, 300, &run), 0);
    CHECK_EQ(g_flush(co, q), 0);
    q2_alloc_return(q, &run);
    for (uint64_t c = 0, n; c < 1024; c += 32)       /* the blocks of other clusters fill the cache */
        CHECK_EQ(q2_refs_get(co, q, c, &n), 0);
    memset(&bad, 0, sizeof bad);
    bad.times = 1;
    dead_block = q->rt[(run.cluster >> q->g.block_bits) + 1];
    disk.hook = and_no_memory;
    int r = q2_alloc_trim(co, q);
    no_memory = false;
    CHECK(r < 0 && bad.struck == 1);
    CHECK(states_ok(co, q));
    CHECK_EQ(q2_alloc_trim(co, q), 0);
    CHECK(states_ok(co, q) && g_holds(co, q, 0, wide.size, 0xaa));
    CHECK_EQ(img_close(co, q), 0);
    nothing_left(co);
}

static void test_in_the_middle(void **state) { t_run(0, in_the_middle, NULL); }

/* A snapshot takes the counts as they are: it waits for what is kept, or is refused. */
static void holds_snapshots_up(struct co *co, void *arg)
{
    struct fmt_snapshot_req rq = { .op = FMT_SNAPSHOT_CREATE, .name = "s" };
    struct byre_err err = { 0 };
    struct q2_image *q = full(co, 0, 1u << 30);
    CHECK_EQ(g_flush(co, q), 0);
    CHECK_EQ(q2_drop_settle(co, q), 0);
    CHECK(kept_clusters(q) > 0);
    CHECK_EQ(q2_snapshot_op(co, &q->im, &rq, NULL, &err), -EIO);
    CHECK(kept_clusters(q) > 0 && !q->failed);
    bad.times = 0;
    CHECK_EQ(q2_snapshot_op(co, &q->im, &rq, NULL, &err), 0);
    CHECK_EQ(kept_clusters(q), 0);
    CHECK_EQ(img_close(co, q), 0);
    nothing_left(co);
}

static void test_holds_snapshots_up(void **state) { t_run(0, holds_snapshots_up, NULL); }

/* Two batches that hold the last two references of one cluster (compressed clusters share theirs): one of them frees it. */
static void last_two(struct co *co, void *arg)
{
    struct q2_run run;
    img_make(co, &wide);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 64 * KIB });
    CHECK_EQ(q2_alloc_take(co, q, 1, &run), 0);
    CHECK_EQ(q2_refs_add(co, q, run.cluster, 1, 1), 0);
    co_lock(co, &q->alloc->mx);                  /* so that both have looked before either goes on */
    for (unsigned i = 0; i < 2; i++) {
        q2_alloc_drop(q, run.cluster, 1);
        CHECK_EQ(g_flush(co, q), 0);
        while (meta_frees_waiting(q->meta))
            co_yield(co);
    }
    for (unsigned i = 0; i < 100; i++)
        co_yield(co);
    CHECK_EQ(q->alloc->drops.n, 2);
    co_unlock(&q->alloc->mx);
    co_group_wait(co, &q->alloc->drops);
    uint64_t n = 1;
    CHECK(q2_refs_get(co, q, run.cluster, &n) == 0 && n == 0);
    CHECK(rset_overlaps(&q->alloc->ready, run.cluster, run.cluster + 1));
    CHECK(q->alloc->lost == 0 && states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    nothing_left(co);
}

static void test_last_two(void **state) { t_run(0, last_two, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_at_close, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_by_flushes, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_is_held, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_when_short, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_is_told, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_in_the_middle, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_holds_snapshots_up, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_last_two, disk_setup, disk_teardown),
    };
    return T_MAIN("q2_kept", tests);
}
