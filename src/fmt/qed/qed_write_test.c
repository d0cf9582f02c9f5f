/* SPDX-License-Identifier: MIT
 *
 * qed_write_test.c: the write side of QED over a disk with a volatile cache: the order of what reaches it, several writes at once, what
 * failures leave.
 *
 * Purpose      Rules E1 to E4 of the module one by one; the crash explorer drives them together.
 * Owns         The disk of q2_disk_test.c.
 * Invariants   None.
 * Concurrency  One loop.
 * Failure      A failed check fails the test.
 * Tests        This is one. FEATURES 2.006, 2.008, 2.009, 2.010, 2.011, 2.012, 2.013, 2.014, 2.015, 2.016, 2.017, 2.021, G.019, G.020
 */
#include "fmt/qed/qed_disk_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the mark (E1, E4) ---- */

static struct { unsigned unmarked, grown, tables; } seen;
static int watch(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    bool table = what == 'W' && off >= C && off < C + T * C;
    seen.grown += what == 'T';
    seen.tables += table;
    seen.unmarked += (what == 'T' || table) && !marked(disk.durable);
    return 0;
}

static void mark(struct co *co, void *arg)
{
    make(co, NULL);
    struct qed_image *q = reopen(co, false);
    memset(&seen, 0, sizeof seen);
    disk.hook = watch;
    CHECK(holds(co, q, 0, C, 0) && !marked(disk.bytes));
    CHECK_EQ(flush(co, q), 0);
    CHECK(!marked(disk.bytes));                   /* opening, reading and flushing are no reason */
    CHECK_EQ(q->im.ops->discard(co, &q->im, 0, SIZE), 0);
    CHECK_EQ(q->im.ops->zero(co, &q->im, 0, SIZE, 0), 0);
    CHECK(!marked(disk.bytes));                   /* nor is what reads zero already */
    CHECK_EQ(g_put(co, q, 100 * C, C, 1), 0);
    CHECK(marked(disk.durable));
    CHECK_EQ(flush(co, q), 0);
    CHECK(seen.tables == 1 && seen.grown == 1 && seen.unmarked == 0);
    disk.hook = NULL;
    CHECK_EQ(shut(co, q), 0);
    CHECK(sound(co));
    q = reopen(co, false);
    CHECK_EQ(g_put(co, q, 100 * C, C, 2), 0);
    CHECK_EQ(flush(co, q), 0);
    CHECK(!marked(disk.bytes));                   /* in place */
    CHECK_EQ(shut(co, q), 0);
    CHECK(disk.len == (1 + 2 * T + 1) * C);
}

/* E2, E3: a table points nowhere that is not durable, whatever the moment; what was flushed is there. */
static unsigned crash_at;
static int until(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf) { return crash_at-- == 0 || crash_at > UINT32_MAX / 2 ? -EIO : 0; }

static void crashes(struct co *co, void *arg)
{
    bool done = false;
    for (unsigned i = 0; !done; i++) {
        make(co, NULL);
        struct qed_image *q = reopen(co, false);
        crash_at = i;
        disk.hook = until;
        int r = g_put(co, q, 3 * C + 512, 2 * C, 1);
        int f = r == 0 ? flush(co, q) : r;
        int r2 = g_put(co, q, SPAN, C, 2);
        int f2 = r2 == 0 ? flush(co, q) : r2;
        done = crash_at < UINT32_MAX / 2;
        crash(co, q);
        struct fmt_check_result res = checked(co);
        CHECK_EQ(res.corruptions, 0);
        CHECK(!res.leaks || marked(disk.bytes));  /* E1 */
        q = reopen(co, true);
        CHECK(f < 0 || holds(co, q, 3 * C + 512, 2 * C, 1));
        CHECK(f2 < 0 || holds(co, q, SPAN, C, 2));
        CHECK_EQ(shut(co, q), 0);
    }
}

/* A write of the header that fails: no mark, no allocation. One that cannot be taken away stays. */
static unsigned fail_left;
static int fail_header(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf) { return what == 'W' && off == 0 && fail_left && fail_left-- ? -EIO : 0; }

static void failing_header(struct co *co, void *arg)
{
    make(co, NULL);
    struct qed_image *q = reopen(co, false);
    uint64_t len = disk.len;
    disk.hook = fail_header;
    fail_left = 1;
    CHECK_EQ(g_put(co, q, 0, C, 1), -EIO);
    CHECK(!marked(disk.bytes) && disk.len == len);
    CHECK_EQ(g_put(co, q, 0, C, 1), 0);
    CHECK(marked(disk.bytes));
    fail_left = 2;                                /* the way back fails, too: nothing is written any more */
    CHECK_EQ(shut(co, q), -EIO);
    CHECK(marked(disk.bytes));
    disk.hook = NULL;
    struct fmt_check_result res = checked(co);
    CHECK(!res.corruptions);
}

/* ---- several at once (2.013) ---- */

static void together(struct co *co, void *arg)
{
    make(co, NULL);
    struct qed_image *q = reopen(co, false);
    struct fmt_write w[4];
    for (unsigned i = 0; i < 4; i++) {            /* all of them under way */
        CHECK_EQ(q->im.ops->write_begin(co, &q->im, i * C, C, &w[i]), 0);
        CHECK(w[i].len == C && w[i].host % C == 0);
        for (unsigned j = 0; j < i; j++)
            CHECK(w[i].host != w[j].host);
    }
    CHECK_EQ(write_new(co, q, &w[2], 3), 0);
    CHECK_EQ(write_new(co, q, &w[0], 1), 0);
    CHECK(kind_at(co, q, C, NULL) == FMT_ABSENT);                  /* fmt.h I2 */
    q->im.ops->write_abort(co, &q->im, &w[1]);
    CHECK_EQ(write_new(co, q, &w[3], 4), 0);
    CHECK(holds(co, q, 0, C, 1) && holds(co, q, C, C, 0) && holds(co, q, 2 * C, C, 3) && holds(co, q, 3 * C, C, 4));
    struct fmt_write again;
    CHECK_EQ(q->im.ops->write_begin(co, &q->im, 9 * C, 512, &again), 0);
    CHECK(again.host == w[1].host && again.fill == FMT_FILL_ZERO);                   /* used again, and not known to be zero */
    CHECK_EQ(write_new(co, q, &again, 9), 0);
    CHECK(holds(co, q, 9 * C, 512, 9) && holds(co, q, 9 * C + 512, C - 512, 0));
    CHECK_EQ(q->im.ops->write_begin(co, &q->im, 20 * C, C, &w[0]), 0);
    q->im.ops->write_abort(co, &q->im, &w[0]);
    CHECK_EQ(shut(co, q), 0);
    CHECK(sound(co));                             /* what was given back at the end is cut off */
}

/* D4, Q23: in settled space a first write costs its data, and one barrier when it is flushed. */
static void costs(struct co *co, void *arg)
{
    make(co, NULL);
    struct qed_image *q = reopen(co, false);
    CHECK_EQ(g_put(co, q, 0, C, 1), 0);
    CHECK_EQ(flush(co, q), 0);
    disk_mark();
    CHECK_EQ(g_put(co, q, 5 * C + 512, 512, 2), 0);
    CHECK(disk.writes == 1 && disk.flushes == 0);
    CHECK_EQ(flush(co, q), 0);
    CHECK(disk.writes == 2 && disk.flushes == 1);
    disk_mark();
    for (unsigned i = 0; i < 60; i++)             /* across a growth */
        CHECK_EQ(g_put(co, q, (10 + i) * C, C, 3), 0);
    CHECK(disk.writes == 60);
    CHECK_EQ(flush(co, q), 0);
    CHECK(disk.flushes == 2);                     /* the growth was not settled */
    CHECK_EQ(shut(co, q), 0);
    CHECK(sound(co));
}

/* ---- zero clusters and backing data ---- */

/* FEATURES 2.010, 2.015, 2.016, G.019. */
static void zeros(struct co *co, void *arg)
{
    make(co, "base");
    struct qed_image *q = reopen(co, false);
    uint64_t host, same;
    CHECK(holds(co, q, 0, SIZE, BASE));
    CHECK_EQ(g_put(co, q, C + 512, 512, 1), 0);
    CHECK(holds(co, q, C, 512, BASE) && holds(co, q, C + 512, 512, 1) && holds(co, q, C + 1024, C - 1024, BASE));
    CHECK_EQ(q->im.ops->zero(co, &q->im, 4 * C, 4 * C, 0), 0);
    CHECK(kind_at(co, q, 5 * C, NULL) == FMT_ZERO);
    CHECK_EQ(g_put(co, q, 5 * C + 512, 512, 2), 0);
    CHECK(holds(co, q, 4 * C, C + 512, 0) && holds(co, q, 5 * C + 512, 512, 2) && holds(co, q, 5 * C + 1024, 3 * C - 1024, 0));
    CHECK(kind_at(co, q, C, &host) == FMT_DATA);
    CHECK_EQ(q->im.ops->discard(co, &q->im, 0, 3 * C), 0);
    CHECK(kind_at(co, q, C, &same) == FMT_DATA && same == host);  /* in place */
    CHECK(holds(co, q, 0, 3 * C, 0) && holds(co, q, 3 * C, C, BASE));
    CHECK_EQ(q->im.ops->zero(co, &q->im, SPAN - C, 2 * C, FMT_ZERO_UNMAP), 0);       /* two tables */
    CHECK(holds(co, q, SPAN - C, 2 * C, 0) && holds(co, q, SPAN + C, C, BASE));
    atomic_store(&q->im.below_zero_from, SPAN + 2 * C);           /* the backing image ends there */
    CHECK_EQ(q->im.ops->zero(co, &q->im, SPAN, SIZE - SPAN, 0), 0);
    CHECK(kind_at(co, q, SPAN + C, NULL) == FMT_ZERO && kind_at(co, q, SPAN + 2 * C, NULL) == FMT_ABSENT);
    CHECK_EQ(shut(co, q), 0);
    CHECK(sound(co));
}

/* FEATURES 2.008, 2.021: autoclear bits; a last part of a cluster holds anything. */
static void found(struct co *co, void *arg)
{
    make(co, NULL);
    disk.bytes[32] = 0x20;
    memset(disk.bytes + disk.len, 0xee, 100);
    disk.len += 100;
    struct qed_image *q = reopen(co, true);
    CHECK_EQ(shut(co, q), 0);
    CHECK_EQ(disk.bytes[32], 0x20);
    q = reopen(co, false);
    CHECK(disk.bytes[32] == 0 && disk.durable[32] == 0);
    CHECK_EQ(g_put(co, q, 0, C, 1), 0);           /* the table takes that place */
    CHECK(holds(co, q, C, 200 * C, 0));
    CHECK_EQ(shut(co, q), 0);
    CHECK(sound(co));
}

/* FEATURES 2.017, 2.018. */
static void sizes(struct co *co, void *arg)
{
    make(co, NULL);
    struct qed_image *q = reopen(co, false);
    CHECK_EQ(g_put(co, q, SIZE - C, C, 1), 0);
    CHECK_EQ(q->im.ops->resize(co, &q->im, SIZE - 512, FMT_PREALLOC_OFF, NULL), -ENOTSUP);
    CHECK_EQ(q->im.ops->resize(co, &q->im, 2 * SIZE, FMT_PREALLOC_FULL, NULL), -ENOTSUP);
    CHECK_EQ(q->im.ops->resize(co, &q->im, q->g.size_max + 512, FMT_PREALLOC_OFF, NULL), -EINVAL);
    CHECK_EQ(q->im.ops->resize(co, &q->im, q->g.size_max, FMT_PREALLOC_OFF, NULL), 0);
    CHECK_EQ(q->im.ops->resize_commit(co, &q->im, false, NULL), 0);
    CHECK(q->im.size == SIZE);
    CHECK_EQ(q->im.ops->resize(co, &q->im, q->g.size_max, FMT_PREALLOC_OFF, NULL), 0);
    CHECK_EQ(q->im.ops->resize_commit(co, &q->im, true, NULL), 0);
    CHECK_EQ(g_put(co, q, q->g.size_max - C, C, 2), 0);
    CHECK(holds(co, q, SIZE - C, C, 1) && holds(co, q, SIZE, C, 0) && holds(co, q, q->im.size - C, C, 2));
    CHECK_EQ(shut(co, q), 0);
    CHECK(sound(co));
    q = reopen(co, true);
    CHECK(q->im.size == q->g.size_max && holds(co, q, q->im.size - C, C, 2));
    CHECK_EQ(shut(co, q), 0);
}

/* ---- not closed cleanly ---- */

/* Guest clusters 0 and 1 are there; the entry of cluster 2 points behind the end of the file; the mark is set. */
static void make_unclean(struct co *co)
{
    make(co, NULL);
    struct qed_image *q = reopen(co, false);
    CHECK_EQ(g_put(co, q, 0, 2 * C, 1), 0);
    CHECK_EQ(shut(co, q), 0);
    le64_put((le64 *)(disk.bytes + (1 + T) * C + 2 * 8), disk.len);
    disk.bytes[16] |= QED_F_NEED_CHECK;
    memcpy(disk.durable, disk.bytes, disk.len);
    disk.durable_len = disk.len;
}

static struct { struct qed_image *q; int result; bool done, before; struct co_group group; } late;
static void late_write(struct co *co, void *arg)
{
    late.result = g_put(co, late.q, 100 * C, C, 9);
    late.done = true;
    co_group_leave(&late.group);
}

static void start_late(struct co *co, struct qed_image *q)
{
    memset(&late, 0, sizeof late);
    late.q = q;
    co_group_enter(&late.group);
    CHECK_EQ(rt_spawn(co_loop(co), late_write, NULL), 0);
    for (unsigned i = 0; i < 50; i++)
        co_yield(co);
}

/* Did the bad entry go, durably, before the file grew? */
static int watch_growth(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    late.before |= what == 'T' && le64_get((const le64 *)(disk.durable + (1 + T) * C + 2 * 8)) != 0;
    return 0;
}

/* qed_scrub.c L1: clusters that are there may be used; what needs one waits until no pointer can name it. */
static void unclean(struct co *co, void *arg)
{
    struct fmt_check_result res = { 0 };
    make_unclean(co);
    struct qed_image *q = reopen_as(co, false, true);
    uint64_t len = disk.len;
    CHECK(q->im.unclean && holds(co, q, 0, 2 * C, 1));
    CHECK(kind_at(co, q, 2 * C, NULL) == FMT_ABSENT);             /* never followed */
    CHECK_EQ(g_put(co, q, C, 512, 5), 0);
    disk.hook = watch_growth;
    start_late(co, q);
    CHECK(!late.done && disk.len == len);
    CHECK_EQ(q->im.ops->resize(co, &q->im, 2 * SIZE, FMT_PREALLOC_OFF, NULL), -EBUSY);
    CHECK_EQ(scrub(co, q, 0, &res), 0);
    CHECK(res.corruptions_fixed == 1 && !res.corruptions && !q->im.unclean);
    co_group_wait(co, &late.group);
    CHECK(late.result == 0 && !late.before);
    disk.hook = NULL;
    CHECK(holds(co, q, 100 * C, C, 9) && holds(co, q, 2 * C, C, 0) && holds(co, q, C, 512, 5));
    CHECK_EQ(shut(co, q), 0);
    CHECK(sound(co));
}

/* Nobody scrubs: what waits fails, and the mark stays. A later scrub makes it good. */
static void no_scrub(struct co *co, void *arg)
{
    struct fmt_check_result res = { 0 };
    make_unclean(co);
    struct qed_image *q = reopen_as(co, false, true);
    start_late(co, q);
    q->im.ops->no_scrub(&q->im);
    co_group_wait(co, &late.group);
    CHECK_EQ(late.result, -EIO);
    CHECK_EQ(shut(co, q), 0);
    CHECK(marked(disk.bytes));
    q = reopen_as(co, false, true);
    q->im.ops->no_scrub(&q->im);
    CHECK_EQ(scrub(co, q, 0, &res), 0);
    CHECK_EQ(g_put(co, q, 100 * C, C, 9), 0);
    CHECK_EQ(shut(co, q), 0);
    CHECK(sound(co));
}

/* L2: of an image in use; leaks are used again, what was handed out meanwhile is nobody's fault. */
static void scrubbed(struct co *co, void *arg)
{
    struct fmt_check_result res = { 0 };
    struct fmt_write w, w2;
    make(co, NULL);
    struct qed_image *q = reopen(co, false);
    CHECK_EQ(g_put(co, q, 0, 4 * C, 1), 0);
    CHECK_EQ(shut(co, q), 0);
    le64_put((le64 *)(disk.bytes + (1 + T) * C + 8), 0);
    q = reopen(co, false);
    CHECK_EQ(q->im.ops->write_begin(co, &q->im, SPAN, C, &w), 0);
    q->im.ops->write_abort(co, &q->im, &w);
    CHECK_EQ(scrub(co, q, 0, &res), 0);
    CHECK(res.leaks == 2 && !res.corruptions);    /* what was given back counts, too */
    CHECK_EQ(scrub(co, q, FMT_FIX_LEAKS, &res), 0);
    CHECK(!res.corruptions && !res.leaks && res.leaks_fixed == 2);
    CHECK(disk.len == (1 + 3 * T + 3) * C);       /* the last cluster is in the hole now (qed_fill.c) */
    CHECK_EQ(q->im.ops->write_begin(co, &q->im, 10 * C, C, &w), 0);
    CHECK_EQ(q->im.ops->write_begin(co, &q->im, 11 * C, C, &w2), 0);
    CHECK(w.host == (1 + 3 * T + 3) * C && w.host < w2.host);
    CHECK(write_new(co, q, &w, 3) == 0 && write_new(co, q, &w2, 4) == 0);
    CHECK(holds(co, q, 10 * C, C, 3) && holds(co, q, 0, C, 1) && holds(co, q, 2 * C, 2 * C, 1));
    CHECK_EQ(shut(co, q), 0);
    CHECK(sound(co));
}

/* L3: a table that shares a cluster is not looked into; what it names is no leak. */
static void scrubbed_shared(struct co *co, void *arg)
{
    struct fmt_check_result res = { 0 };
    make(co, NULL);
    struct qed_image *q = reopen(co, false);
    CHECK_EQ(g_put(co, q, 0, 4 * C, 1), 0);
    CHECK_EQ(g_put(co, q, SPAN, 8 * C, 2), 0);
    CHECK_EQ(shut(co, q), 0);
    le64_put((le64 *)(disk.bytes + (1 + T) * C + 5 * 8), le64_get((const le64 *)(disk.bytes + C + 8)));
    q = reopen(co, false);
    CHECK_EQ(scrub(co, q, FMT_FIX_LEAKS, &res), 0);
    CHECK(res.corruptions && !res.leaks_fixed);
    CHECK_EQ(g_put(co, q, 10 * C, 20 * C, 3), 0);
    CHECK(holds(co, q, SPAN, 8 * C, 2) && holds(co, q, 10 * C, 20 * C, 3));
    CHECK_EQ(shut(co, q), 0);
}

/* What a killed process took away may be in the page cache only: it is durable before the file grows. */
static void unclean_cached(struct co *co, void *arg)
{
    struct fmt_check_result res = { 0 };
    make_unclean(co);
    le64_put((le64 *)(disk.bytes + (1 + T) * C + 2 * 8), 0);
    struct qed_image *q = reopen_as(co, false, true);
    start_late(co, q);
    CHECK(!late.done);
    disk.hook = watch_growth;
    CHECK_EQ(scrub(co, q, 0, &res), 0);
    co_group_wait(co, &late.group);
    CHECK(late.result == 0 && !late.before);
    disk.hook = NULL;
    CHECK_EQ(shut(co, q), 0);
}

/* ---- tables that are named as data (qed_tables.c) ---- */

static struct { unsigned count; bool fatal; uint64_t off; } told;
static void on_corrupted(void *arg, const struct fmt_corruption *c)
{
    told.count++;
    told.fatal = c->fatal;
    told.off = c->off;
}

static struct qed_image *reopen_told(struct co *co)
{
    struct fmt_image *im = NULL;
    memset(&told, 0, sizeof told);
    int r = fmt_qed_ops.open(co, disk_open(false), &(struct fmt_open_opts){ .frontier_bytes = 32 * C, .corrupted = on_corrupted }, &im, NULL);
    ASSERT(r == 0);
    return qed_of(im);
}

static void make_two_tables(struct co *co)
{
    make(co, NULL);
    struct qed_image *q = reopen(co, false);
    CHECK_EQ(g_put(co, q, 0, 3 * C, 1), 0);
    CHECK_EQ(g_put(co, q, SPAN, C, 2), 0);
    CHECK_EQ(shut(co, q), 0);
}

static void named_tables(struct co *co, void *arg)
{
    make_two_tables(co);
    le64 *l1 = (le64 *)(disk.bytes + C), *l2 = (le64 *)(disk.bytes + le64_get(&l1[0]));
    uint64_t names[] = { C, 2 * C, le64_get(&l1[0]), le64_get(&l1[1]) + C };         /* the L1 table and its second cluster, both L2 tables */
    for (unsigned i = 0; i < 4; i++)
        le64_put(&l2[10 + i], names[i]);
    uint64_t len = disk.len;
    uint8_t *before = malloc(len);
    memcpy(before, disk.bytes, len);
    for (unsigned i = 0; i < 4; i++) {
        struct qed_image *q = reopen_told(co);
        uint64_t off = (10 + i) * C, host = 0;
        CHECK(kind_at(co, q, off, &host) == FMT_DATA && host == names[i]);            /* read it may be */
        CHECK_EQ(g_put(co, q, off + 512, 512, 9), -EIO);
        CHECK(told.count == 1 && !told.fatal && told.off == names[i]);
        CHECK_EQ(g_put(co, q, off, C, 9), -EIO);
        CHECK_EQ(q->im.ops->zero(co, &q->im, off, C, 0), -EIO);
        CHECK_EQ(q->im.ops->discard(co, &q->im, off, C), 0);
        CHECK(told.count == 1 && !memcmp(before + C, disk.bytes + C, len - C));
        CHECK_EQ(g_put(co, q, C, C, 1), 0);       /* the others go on */
        CHECK_EQ(shut(co, q), 0);
    }
    free(before);
}

static void shared_tables(struct co *co, void *arg)
{
    make_two_tables(co);
    le64 *l1 = (le64 *)(disk.bytes + C);
    le64_put(&l1[2], le64_get(&l1[1]));
    struct qed_image *q = reopen_told(co);
    CHECK_EQ(g_put(co, q, SPAN, C, 3), 0);        /* in place */
    CHECK(!told.count);
    CHECK_EQ(g_put(co, q, SPAN + 4 * C, C, 3), -EIO);
    CHECK_EQ(g_put(co, q, 2 * SPAN + 700 * C, C, 3), -EIO);
    CHECK_EQ(told.count, 1);
    CHECK_EQ(g_put(co, q, 8 * C, C, 3), 0);
    CHECK(holds(co, q, 8 * C, C, 3) && holds(co, q, SPAN, C, 3));
    CHECK_EQ(shut(co, q), 0);
}

/* What a table uses is no place for another, whatever the allocator says. */
static void refused_spare(struct co *co, void *arg)
{
    make_two_tables(co);
    struct qed_image *q = reopen(co, false);
    struct meta_block *b;
    uint32_t index;
    CHECK(qed_slice_get(co, q, 0, &b, &index) == 0 && b);
    CHECK_EQ(rset_add(&q->a.spare, b->off / C, b->off / C + T, 0), 0);
    CHECK_EQ(g_put(co, q, 2 * SPAN, C, 4), 0);
    CHECK_EQ(g_put(co, q, 3 * SPAN, C, 5), 0);
    CHECK(holds(co, q, 0, 3 * C, 1) && holds(co, q, 2 * SPAN, C, 4) && holds(co, q, 3 * SPAN, C, 5));
    meta_put(q->meta, b);
    CHECK_EQ(shut(co, q), 0);
    CHECK(marked(disk.bytes));                    /* a check shall look */
    struct fmt_check_result res = checked(co);
    CHECK(!res.corruptions && !res.leaks);
}

/* ---- what a resize takes away (qed_resize.c S3) ---- */

static void stale(struct co *co, void *arg)
{
    struct fmt_check_result res = { 0 };
    make_two_tables(co);
    le64 *l1 = (le64 *)(disk.bytes + C);
    uint64_t at = disk.len;
    le64_put(&l1[5], at);                         /* a table behind the size, with data; and data behind the size in the last table */
    le64_put((le64 *)(disk.bytes + at), at + T * C);
    disk.len = at + (T + 1) * C;
    memset(disk.bytes + at + T * C, 7, C);
    struct qed_image *q = reopen(co, false);
    CHECK_EQ(q->im.ops->resize(co, &q->im, 8 * SPAN, FMT_PREALLOC_OFF, NULL), 0);
    CHECK_EQ(q->im.ops->resize_commit(co, &q->im, true, NULL), 0);
    CHECK(holds(co, q, 5 * SPAN, C, 0));
    CHECK_EQ(shut(co, q), 0);
    CHECK(marked(disk.bytes));
    res = checked(co);
    CHECK(!res.corruptions && res.leaks == T + 1);
    q = reopen_as(co, false, true);
    CHECK_EQ(scrub(co, q, FMT_FIX_LEAKS, &res), 0);
    CHECK_EQ(shut(co, q), 0);
    CHECK(sound(co) && disk.len == at);
    q = reopen(co, false);                        /* data behind the size, in the last table of it */
    CHECK_EQ(q->im.ops->resize(co, &q->im, 9 * SPAN - 100 * C, FMT_PREALLOC_OFF, NULL), 0);
    CHECK_EQ(q->im.ops->resize_commit(co, &q->im, true, NULL), 0);
    CHECK_EQ(g_put(co, q, 8 * SPAN, C, 3), 0);
    CHECK_EQ(shut(co, q), 0);
    le64 *last = (le64 *)(disk.bytes + le64_get((le64 *)(disk.bytes + C) + 8));
    le64_put(&last[1000], disk.len);
    disk.len += C;
    q = reopen(co, false);
    CHECK_EQ(q->im.ops->resize(co, &q->im, 9 * SPAN, FMT_PREALLOC_OFF, NULL), 0);
    CHECK_EQ(q->im.ops->resize_commit(co, &q->im, true, NULL), 0);
    CHECK(q->mark.keep);
    CHECK_EQ(scrub(co, q, FMT_FIX_LEAKS, &res), 0);
    CHECK(res.leaks_fixed == 1 && !q->mark.keep);
    CHECK_EQ(shut(co, q), 0);
    le64_put((le64 *)(disk.bytes + C) + 9, le64_get((le64 *)(disk.bytes + C)));      /* what it named has another owner */
    q = reopen(co, false);
    CHECK_EQ(q->im.ops->resize(co, &q->im, 16 * SPAN, FMT_PREALLOC_OFF, NULL), 0);
    CHECK_EQ(q->im.ops->resize_commit(co, &q->im, true, NULL), 0);
    CHECK(q->mark.keep);
    CHECK_EQ(scrub(co, q, 0, &res), 0);           /* the same opening can prove it */
    CHECK(!q->mark.keep && !marked(disk.bytes));
    CHECK(holds(co, q, 0, 3 * C, 1) && holds(co, q, 9 * SPAN, C, 0));
    CHECK_EQ(shut(co, q), 0);
    CHECK(sound(co));
}

/* ---- qed_zero.c Z4 ---- */

static bool late_discard;
static void late_zero(struct co *co, void *arg)
{
    late.result = late_discard ? late.q->im.ops->discard(co, &late.q->im, 0, 8 * C) : late.q->im.ops->zero(co, &late.q->im, 0, 8 * C, 0);
    late.done = true;
    co_group_leave(&late.group);
}

static void unclean_zero(struct co *co, void *arg)
{
    for (unsigned i = 0; i < 4; i++) {
        struct fmt_check_result res = { 0 };
        make_unclean(co);
        struct qed_image *q = reopen_as(co, false, true);
        memset(&late, 0, sizeof late);
        late.q = q;
        late_discard = i & 1;
        atomic_store(&q->im.below_zero_from, UINT64_MAX);         /* something may show through */
        co_group_enter(&late.group);
        CHECK_EQ(rt_spawn(co_loop(co), late_zero, NULL), 0);
        for (unsigned k = 0; k < 50; k++)
            co_yield(co);
        CHECK(!late.done);
        if (i < 2)
            CHECK_EQ(scrub(co, q, 0, &res), 0);
        else
            q->im.ops->no_scrub(&q->im);
        co_group_wait(co, &late.group);
        CHECK_EQ(late.result, i < 2 ? 0 : -EIO);
        CHECK(i >= 2 || (kind_at(co, q, 2 * C, NULL) == FMT_ZERO && holds(co, q, 0, 8 * C, 0)));
        CHECK_EQ(shut(co, q), 0);
    }
}

static void leave_co(struct co *co, void *arg)
{
    CHECK_EQ(qed_mark_leave(co, late.q), 0);
    co_group_leave(&late.group);
}

/* The mark goes while the header gets another size. */
static int leave_beside(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    if (what != 'W' || off != 0 || late.done)
        return 0;
    late.done = true;
    co_group_enter(&late.group);
    CHECK_EQ(rt_spawn(co_loop(co), leave_co, NULL), 0);
    for (unsigned i = 0; i < 200; i++)
        co_yield(co);
    return 0;
}

static void header_shared(struct co *co, void *arg)
{
    make(co, NULL);
    struct qed_image *q = reopen(co, false);
    CHECK_EQ(g_put(co, q, 0, C, 1), 0);
    CHECK_EQ(q->im.ops->resize(co, &q->im, 2 * SIZE, FMT_PREALLOC_OFF, NULL), 0);
    memset(&late, 0, sizeof late);
    late.q = q;
    disk.hook = leave_beside;
    CHECK_EQ(q->im.ops->resize_commit(co, &q->im, true, NULL), 0);
    co_group_wait(co, &late.group);
    disk.hook = NULL;
    CHECK(late.done && marked(disk.bytes) == q->mark.set);
    CHECK_EQ(shut(co, q), 0);
    CHECK(sound(co));
    q = reopen(co, true);
    CHECK_EQ(q->im.size, 2 * SIZE);
    CHECK_EQ(shut(co, q), 0);
}

/* ---- the cache of tables ---- */

#define TABLES 40u
static void read_all_over(struct co *co, struct qed_image *q)
{
    for (uint64_t i = 0; i < TABLES * 2; i++)     /* each slice of each table */
        CHECK(holds(co, q, i * SPAN / 2, C, (uint8_t)(i + 1)));
}

/* FEATURES 2.014: tables are read once as long as they fit; more of them than the caller allows are never kept; what is not used goes. */
static void cache(struct co *co, void *arg)
{
    make(co, NULL);
    struct qed_image *q = reopen(co, false);
    CHECK_EQ(q->im.ops->resize(co, &q->im, TABLES * SPAN, FMT_PREALLOC_OFF, NULL), 0);
    CHECK_EQ(q->im.ops->resize_commit(co, &q->im, true, NULL), 0);
    for (uint64_t i = 0; i < TABLES * 2; i++)
        CHECK_EQ(g_put(co, q, i * SPAN / 2, C, (uint8_t)(i + 1)), 0);
    CHECK_EQ(shut(co, q), 0);
    for (unsigned k = 0; k < 3; k++) {            /* the default; a quarter of what there is; dropped after a while */
        struct fmt_image *im = NULL;
        struct fmt_open_opts o = { .cache_bytes = k == 1 ? TABLES / 2 * QED_SLICE_BYTES : 0, .cache_clean_ms = k == 2 ? 20 : 0 };
        CHECK_EQ(fmt_qed_ops.open(co, disk_open(false), &o, &im, NULL), 0);
        q = qed_of(im);
        read_all_over(co, q);
        CHECK_EQ(meta_stats(q->meta).loads, TABLES * 2);
        if (k < 2)
            read_all_over(co, q);
        CHECK(k != 0 || meta_stats(q->meta).loads == TABLES * 2);
        CHECK(k != 1 || (meta_stats(q->meta).loads > TABLES * 2 && meta_stats(q->meta).blocks <= TABLES / 2));
        for (unsigned i = 0; k == 2 && i < 200 && meta_stats(q->meta).blocks; i++)
            CHECK_EQ(co_sleep(co, 20000000), 0);
        CHECK(k != 2 || !meta_stats(q->meta).blocks);
        read_all_over(co, q);
        CHECK_EQ(shut(co, q), 0);
    }
}

#define RUN(name) static void test_##name(void **state) { t_run(0, name, NULL); }
RUN(mark)
RUN(crashes)
RUN(failing_header)
RUN(together)
RUN(costs)
RUN(zeros)
RUN(found)
RUN(sizes)
RUN(unclean)
RUN(no_scrub)
RUN(scrubbed)
RUN(scrubbed_shared)
RUN(unclean_cached)
RUN(header_shared)
RUN(named_tables)
RUN(shared_tables)
RUN(refused_spare)
RUN(stale)
RUN(unclean_zero)
RUN(cache)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mark), cmocka_unit_test(test_crashes), cmocka_unit_test(test_failing_header), cmocka_unit_test(test_together),
        cmocka_unit_test(test_costs), cmocka_unit_test(test_zeros), cmocka_unit_test(test_found), cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_unclean), cmocka_unit_test(test_no_scrub), cmocka_unit_test(test_scrubbed),
        cmocka_unit_test(test_scrubbed_shared), cmocka_unit_test(test_unclean_cached), cmocka_unit_test(test_header_shared),
        cmocka_unit_test(test_named_tables), cmocka_unit_test(test_shared_tables), cmocka_unit_test(test_refused_spare), cmocka_unit_test(test_stale),
        cmocka_unit_test(test_unclean_zero), cmocka_unit_test(test_cache),
    };
    ASSERT(disk_setup(NULL) == 0);
    int failed = T_MAIN("qed-write", tests);
    disk_teardown(NULL);
    return failed;
}
