/* SPDX-License-Identifier: MIT
 *
 * q2_clone_test.c: clusters that two places of a disk share (FEATURES G.004): what is shared and what is not, counts and flags, who is
 * waited for, what a failure and a power cut leave.
 *
 * Purpose      The steps of q2_clone.c one by one; what all of it does under load is the crash explorer's matter.
 * Owns         One disk (q2_disk_test.h).
 * Invariants   None.
 * Concurrency  One loop at a time.
 * Failure      A failed check fails the test.
 * Tests        q2_clone.c
 */
#include "fmt/qcow2/q2_clone.h"
#include "fmt/qcow2/q2_disk_test.h"
#include "fmt/qcow2/q2_guard.h"

#include <stdio.h>

#define KIB 1024ull
#define CS (64 * KIB)
#define N 4u                             /* clusters that are cloned */
#define SRC (2 * CS)
#define DST (40 * CS)
#define TURNS 3000u

static const struct make plain = { 3, 16, CS, 8192 * KIB }, two_bits = { 3, 2, CS, 8192 * KIB }, old = { 2, 16, CS, 8192 * KIB },
                         sub = { 3, 16, CS, 8192 * KIB, .sub = true };

static struct q2_image *begin(struct co *co, const struct make *m)
{
    img_make(co, m);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 16 * CS });
    for (unsigned i = 0; i < N; i++)
        CHECK_EQ(g_write(co, q, SRC + i * CS, CS, (uint8_t)(0x10 + i)), 0);
    CHECK_EQ(g_write(co, q, DST, CS, 0x77), 0);              /* the target has something of its own */
    CHECK_EQ(g_flush(co, q), 0);
    return q;
}

static int64_t g_clone(struct co *co, struct q2_image *q, uint64_t src, uint64_t dst, uint64_t len) { return q2_clone(co, &q->im, src, dst, len); }

static bool holds(struct co *co, struct q2_image *q, uint64_t at)
{
    for (unsigned i = 0; i < N; i++)
        if (!g_holds(co, q, at + i * CS, CS, (uint8_t)(0x10 + i)))
            return false;
    return true;
}

static bool writable(struct co *co, struct q2_image *q, uint64_t at)
{
    struct fmt_extent e;
    CHECK_EQ(q2_guard_need(co, q), 0);
    CHECK_EQ(q2_map(co, &q->im, at, CS, &e), 0);
    return e.kind == FMT_DATA && e.writable;
}

static uint64_t owners(struct co *co, struct q2_image *q, uint64_t at)
{
    uint64_t n = 0;
    CHECK_EQ(q2_refs_get(co, q, g_host(co, q, at) / CS, &n), 0);
    return n;
}

/* What was dropped has been released. */
static void at_rest(struct co *co, struct q2_image *q)
{
    CHECK_EQ(q2_alloc_halt_begin(co, q), 0);
    q2_alloc_halt_end(q);
}

static void end(struct co *co, struct q2_image *q)
{
    uint64_t leaks = 1;
    CHECK(states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, &leaks), 0);
    CHECK_EQ(leaks, 0);
}

/* ---- what is shared ---- */

static void shared_body(struct co *co, void *arg)
{
    struct q2_image *q = begin(co, arg);
    CHECK_EQ(g_clone(co, q, SRC, DST, N * CS), N * CS);
    for (unsigned i = 0; i < N; i++) {
        CHECK_EQ(g_host(co, q, SRC + i * CS), g_host(co, q, DST + i * CS));
        CHECK(!writable(co, q, SRC + i * CS) && !writable(co, q, DST + i * CS));
        CHECK_EQ(owners(co, q, SRC + i * CS), 2);
    }
    CHECK(holds(co, q, SRC) && holds(co, q, DST));
    CHECK_EQ(g_clone(co, q, DST, DST + N * CS, N * CS), N * CS);       /* and again: no flag is there to be cleared */
    CHECK_EQ(owners(co, q, SRC), 3);
    CHECK_EQ(g_clone(co, q, SRC, DST, CS), CS);                        /* what is the same stays the same */
    CHECK_EQ(g_flush(co, q), 0);
    at_rest(co, q);
    CHECK_EQ(owners(co, q, SRC), 3);
    CHECK_EQ(g_write(co, q, SRC, 512, 0x99), 0);
    CHECK(holds(co, q, DST) && holds(co, q, DST + N * CS) && g_holds(co, q, SRC, 512, 0x99) && g_holds(co, q, SRC + 512, CS - 512, 0x10));
    CHECK(writable(co, q, SRC) && !writable(co, q, DST));
    end(co, q);
    q = img_open(co, &(struct opening){ .no_punch = true });
    CHECK(q2_clone_any(q));
    CHECK_EQ(q2_discard(co, &q->im, DST, 2 * N * CS), 0);            /* who is left gets his flag at the close, not before */
    CHECK_EQ(g_flush(co, q), 0);
    at_rest(co, q);
    CHECK(owners(co, q, SRC + CS) == 1 && !writable(co, q, SRC + CS) && q2_clone_is_left(q, g_host(co, q, SRC + CS) / CS));
    end(co, q);
    q = img_open(co, &(struct opening){ .no_punch = true });
    CHECK(!q2_clone_any(q));
    CHECK(writable(co, q, SRC + CS));
    end(co, q);
}

static void test_shared(void **state)
{
    t_run(0, shared_body, (void *)(uintptr_t)&plain);
    t_run(0, shared_body, (void *)(uintptr_t)&sub);
}

/* ---- what is not ---- */

static void refused_body(struct co *co, void *arg)
{
    struct q2_image *q = begin(co, &two_bits);
    for (uint64_t i = 0; i < 2; i++)
        CHECK_EQ(g_clone(co, q, SRC, DST + i * N * CS, CS), CS);
    CHECK_EQ(owners(co, q, SRC), 3);
    CHECK_EQ(g_clone(co, q, SRC, DST + 2 * N * CS, N * CS), 0);        /* a count is at its end */
    CHECK_EQ(owners(co, q, SRC), 3);
    CHECK_EQ(g_clone(co, q, SRC + CS, DST + 2 * N * CS, N * CS), (N - 1) * CS);        /* nothing is behind them */
    CHECK_EQ(g_clone(co, q, SRC + N * CS, DST, CS), 0);
    CHECK_EQ(q2_zero(co, &q->im, SRC, CS, 0), 0);
    CHECK_EQ(g_clone(co, q, SRC, DST, N * CS), 0);
    CHECK_EQ(g_compress(co, q, SRC, CS, 0x55), 0);
    CHECK_EQ(g_clone(co, q, SRC, DST, N * CS), 0);
    end(co, q);
    q = begin(co, &old);
    CHECK_EQ(g_clone(co, q, SRC, DST, N * CS), -ENOTSUP);
    end(co, q);
    q = begin(co, &sub);
    CHECK_EQ(g_write(co, q, 20 * CS, 2 * KIB, 0x21), 0);             /* one subcluster: the others show what is below */
    CHECK_EQ(g_clone(co, q, 20 * CS, DST, CS), 0);
    CHECK_EQ(q2_zero(co, &q->im, SRC + 2 * KIB, 4 * KIB, 0), 0);     /* zeros of a cluster go along */
    CHECK_EQ(g_clone(co, q, SRC, DST, CS), CS);
    CHECK(g_holds(co, q, DST, 2 * KIB, 0x10) && g_holds(co, q, DST + 2 * KIB, 4 * KIB, 0) && g_holds(co, q, DST + 6 * KIB, CS - 6 * KIB, 0x10));
    CHECK_EQ(g_write(co, q, DST + 2 * KIB, 512, 0x22), 0);
    CHECK(g_holds(co, q, SRC + 2 * KIB, 4 * KIB, 0) && g_holds(co, q, DST + 2 * KIB, 512, 0x22));
    end(co, q);
}

static void test_refused(void **state) { t_run(0, refused_body, NULL); }

/* ---- who is waited for ---- */

struct cloner { struct q2_image *q; uint64_t src, dst, len; int64_t result; bool over; };

static void cloner_co(struct co *co, void *arg)
{
    struct cloner *c = arg;
    c->result = g_clone(co, c->q, c->src, c->dst, c->len);
    c->over = true;
}

static void turns(struct co *co, unsigned n)
{
    while (n--)
        co_yield(co);
}

/* L2: a writer in place has looked at the entry, and writes when the clone is under way. A scrub runs meanwhile (L4). */
static void inside_body(struct co *co, void *arg)
{
    static uint8_t bytes[CS];
    struct q2_image *q = begin(co, &plain);
    struct fmt_extent e;
    struct iovec v;
    memset(bytes, 0xd1, sizeof bytes);
    epoch_token t = epoch_enter(q->im.epoch, co_loop(co));
    CHECK_EQ(q2_map(co, &q->im, SRC, CS, &e), 0);
    CHECK(e.writable);
    struct cloner c = { q, SRC, DST, N * CS, 0, false };
    CHECK_EQ(rt_spawn(co_loop(co), cloner_co, &c), 0);
    turns(co, TURNS);
    CHECK(!c.over && !writable(co, q, SRC));
    CHECK(g_host(co, q, DST) != e.host && g_holds(co, q, DST, CS, 0x77));
    struct fmt_check_opts o = { .fix = FMT_FIX_LEAKS };
    struct fmt_check_result res = { 0 };
    CHECK_EQ(q2_scrub(co, &q->im, &o, &res, NULL), 0);
    CHECK(!res.corruptions && !res.check_errors && !res.leaks && !res.leaks_fixed);
    CHECK_EQ(stor_write(co, q->im.data, iov_one(&v, bytes, CS), e.host, 0), 0);
    epoch_leave(q->im.epoch, co_loop(co), t);
    while (!c.over)
        co_yield(co);
    CHECK_EQ(c.result, N * CS);
    CHECK(g_holds(co, q, SRC, CS, 0xd1) && g_holds(co, q, DST, CS, 0xd1) && g_host(co, q, DST) == e.host);
    end(co, q);
}

static void test_inside(void **state) { t_run(0, inside_body, NULL); }

/* L1: who writes to the source, or discards it, waits for a clone that has begun, and nobody waits for ever when two cross. */
static void crossing_body(struct co *co, void *arg)
{
    struct q2_image *q = begin(co, &plain);
    for (unsigned i = 0; i < N; i++)
        CHECK_EQ(g_write(co, q, DST + i * CS, CS, 0x77), 0);
    struct cloner c[2] = { { q, SRC, DST, N * CS, 0, false }, { q, DST, SRC, N * CS, 0, false } };
    for (unsigned i = 0; i < 2; i++)
        CHECK_EQ(rt_spawn(co_loop(co), cloner_co, &c[i]), 0);
    turns(co, 1);
    CHECK_EQ(q2_discard(co, &q->im, SRC, CS), 0);
    while (!c[0].over || !c[1].over)
        co_yield(co);
    CHECK(c[0].result == N * CS && c[1].result > 0);
    CHECK(holds(co, q, DST));
    CHECK(g_holds(co, q, SRC + CS, CS, 0x11) && g_holds(co, q, SRC + 3 * CS, CS, 0x13));
    CHECK_EQ(g_write(co, q, SRC, N * CS, 0x31), 0);
    CHECK(holds(co, q, DST));
    end(co, q);
}

static void test_crossing(void **state) { t_run(0, crossing_body, NULL); }

struct discarder { struct q2_image *q; uint64_t off, len; int result; bool over; };

static void discarder_co(struct co *co, void *arg)
{
    struct discarder *d = arg;
    d->result = q2_discard(co, &d->q->im, d->off, d->len);
    d->over = true;
}

/* L1: a clone waits for somebody's write, and behind it somebody waits for a range that holds source and target. */
static void between_body(struct co *co, void *arg)
{
    struct q2_image *q = begin(co, &plain);
    struct cloner c = { q, SRC, DST, N * CS, 0, false };
    struct discarder d = { q, SRC, DST + CS - SRC, 0, false };
    struct co_range writer;
    co_range_lock(co, &q->locks, &writer, SRC, SRC + CS);
    CHECK_EQ(rt_spawn(co_loop(co), cloner_co, &c), 0);
    turns(co, 2);
    CHECK_EQ(rt_spawn(co_loop(co), discarder_co, &d), 0);
    turns(co, 2);
    CHECK(!c.over && !d.over);
    co_range_unlock(&q->locks, &writer);
    for (unsigned i = 0; i < 100 * TURNS && !(c.over && d.over); i++)
        co_yield(co);
    CHECK(c.over && d.over);                         /* else both wait for ever */
    CHECK(c.result == (int64_t)c.len && d.result == 0);
    CHECK(g_holds(co, q, SRC, CS, 0) && g_holds(co, q, DST, CS, 0) && g_holds(co, q, DST + CS, CS, 0x11));
    end(co, q);
}

static void test_between(void **state) { t_run(0, between_body, NULL); }

/* ---- failures and power cuts ---- */

static unsigned fail_at, seen;

static int nth_fails(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    return what != 'F' && seen++ == fail_at ? -EIO : 0;
}

/* L3: the n-th call of the disk fails, once. The clone is told as failed, or is whole; nothing is lost or counted too low. */
static void failing_body(struct co *co, void *arg)
{
    unsigned failed = 0;
    bool reached = true;
    for (fail_at = 0; reached && fail_at < 64; fail_at++) {
        struct q2_image *q = begin(co, &plain);
        seen = 0;
        disk.hook = nth_fails;
        int64_t r = g_clone(co, q, SRC, DST, N * CS);
        disk.hook = NULL;
        reached = seen > fail_at;
        failed += r < 0;
        CHECK(r == N * CS || r == -EIO);
        CHECK(holds(co, q, SRC) && (r < 0 ? g_holds(co, q, DST, CS, 0x77) : holds(co, q, DST)));
        if (r < 0) {
            CHECK(writable(co, q, SRC));
            CHECK_EQ(g_write(co, q, SRC, 512, 0x10), 0);
        }
        CHECK_EQ(g_clone(co, q, SRC, DST, N * CS), N * CS);
        CHECK(holds(co, q, DST));
        if (fail_at % 2)
            CHECK_EQ(q2_discard(co, &q->im, SRC, N * CS), 0);
        end(co, q);
    }
    CHECK(failed > 1 && !reached);
}

static void test_failing(void **state) { t_run(0, failing_body, NULL); }

/* The clone has returned, and no flush came: counted, flags gone, not linked. That is a leak and nothing else, and the next opening
 * sets the flag that is missing. */
static void cut_body(struct co *co, void *arg)
{
    struct q2_image *q = begin(co, &plain);
    uint64_t leaks = 0;
    CHECK_EQ(g_clone(co, q, SRC, DST, N * CS), N * CS);
    img_crash(co, q);
    CHECK_EQ(img_faults(co, &leaks), 0);
    CHECK(leaks >= N);
    q = img_open(co, &(struct opening){ .no_punch = true });
    CHECK(holds(co, q, SRC) && g_holds(co, q, DST, CS, 0x77) && !writable(co, q, SRC));
    CHECK_EQ(g_clone(co, q, SRC, DST, N * CS), N * CS);
    CHECK_EQ(g_write(co, q, SRC, N * CS, 0x41), 0);
    CHECK_EQ(g_flush(co, q), 0);
    CHECK(holds(co, q, DST));
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, NULL), 0);
}

static void test_cut(void **state) { t_run(0, cut_body, NULL); }

/* L7: what says that no flag is missing is gone before one may be: the power fails when the count of a cluster has fallen. */
static void unsettled_body(struct co *co, void *arg)
{
    struct q2_image *q = begin(co, arg);
    CHECK_EQ(g_clone(co, q, SRC, DST, N * CS), N * CS);
    end(co, q);
    for (unsigned i = 0; i < 2; i++) {
        q = img_open(co, &(struct opening){ .no_punch = true });
        CHECK(!q->clones.any && (q->h.autoclear & Q2_AUTOCLEAR_SETTLED));
        CHECK_EQ(g_write(co, q, SRC + i * CS, CS, 0x42), 0);
        CHECK_EQ(g_flush(co, q), 0);
        at_rest(co, q);
        CHECK_EQ(g_flush(co, q), 0);
        CHECK(owners(co, q, DST + i * CS) == 1 && !writable(co, q, DST + i * CS));
        img_crash(co, q);
        q = img_open(co, &(struct opening){ .no_punch = true });
        CHECK(q->clones.all && q->clones.any);
        CHECK_EQ(img_close(co, q), 0);
        CHECK_EQ(img_faults(co, NULL), 0);       /* what it had ahead may leak */
    }
}

/* And before a count that was too high is lowered: the power fails between count and link, so the source's flag is right as it is; then a scrub, or a
 * repair, finds the leak. */
static void lowered_body(struct co *co, void *arg)
{
    bool repair = arg != NULL;
    struct q2_image *q = begin(co, &plain);
    CHECK_EQ(g_clone(co, q, SRC + CS, DST + N * CS, CS), CS);          /* so that there are some anyway */
    CHECK_EQ(g_flush(co, q), 0);
    CHECK_EQ(g_clone(co, q, SRC, DST, CS), CS);
    img_crash(co, q);
    q = img_open(co, &(struct opening){ .no_punch = true });
    CHECK_EQ(img_close(co, q), 0);
    q = img_open(co, &(struct opening){ .no_punch = true, .check = repair });
    CHECK_EQ(owners(co, q, SRC), 2);
    CHECK(q->h.autoclear & Q2_AUTOCLEAR_SETTLED);
    struct fmt_check_opts o = { .fix = FMT_FIX_LEAKS };
    struct fmt_check_result res = { 0 };
    struct byre_err err = { 0 };
    CHECK_EQ(repair ? q->im.ops->check(co, &q->im, &o, &res, &err) : q2_scrub(co, &q->im, &o, &res, &err), 0);
    CHECK(res.leaks_fixed > 0);
    CHECK(!(q->h.autoclear & Q2_AUTOCLEAR_SETTLED));
    CHECK_EQ(img_close(co, q), 0);
    q = img_open(co, &(struct opening){ .no_punch = true });
    CHECK(q->clones.any == repair);
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, NULL), 0);
}

static void test_unsettled(void **state)
{
    t_run(0, unsettled_body, (void *)(uintptr_t)&plain);
    t_run(0, unsettled_body, (void *)(uintptr_t)&sub);
    t_run(0, lowered_body, NULL);
    t_run(0, lowered_body, (void *)(uintptr_t)&plain);
}

/* A close looks at the tables that this opening's clones were made in, and at others until it has found who is left alone (L6). */
#define SPAN (512 * 4096ull)             /* of one table */
static struct { uint64_t at; unsigned reads; } far;

static int watch_far(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    (void)co;
    (void)buf;
    far.reads += what == 'R' && off <= far.at && far.at < off + len;
    return 0;
}

/* Opens it, and counts reads of the table of `guest`. */
static struct q2_image *far_open(struct co *co, uint64_t guest)
{
    far.at = img_l2_at(guest);
    struct q2_image *q = img_open(co, &(struct opening){ 0 });
    far.reads = 0;
    disk.hook = watch_far;
    return q;
}

/* Closes it: sound, and the table was read or not. */
static void far_close(struct co *co, struct q2_image *q, bool reads)
{
    CHECK_EQ(img_close(co, q), 0);
    disk.hook = NULL;
    CHECK_EQ(far.reads > 0, reads);
    CHECK_EQ(img_faults(co, NULL), 0);
}

static void far_clone(struct co *co, struct q2_image *q, uint64_t src, uint64_t dst) { CHECK_EQ(q2_clone(co, &q->im, src, dst, 8 * KIB), (int64_t)(8 * KIB)); }

static bool says(const struct q2_image *q, bool settled)
{
    return q2_clone_any(q) && q->clones.everywhere && q->clones.any == !settled && q->clones.all == !settled && !(q->h.autoclear & Q2_AUTOCLEAR_SETTLED) == !settled;
}

static void tables_body(struct co *co, void *arg)
{
    static const struct make small = { 3, 16, 4096, 4 * SPAN };
    (void)arg;
    img_make(co, &small);
    struct q2_image *q = img_open(co, &(struct opening){ 0 });
    for (unsigned i = 0; i < 4; i++)
        CHECK_EQ(g_write(co, q, i * SPAN, 16 * KIB, (uint8_t)(i + 1)), 0);
    CHECK_EQ(img_close(co, q), 0);
    q = far_open(co, 3 * SPAN);
    CHECK(!q->clones.everywhere);
    far_clone(co, q, 0, SPAN);
    far_clone(co, q, 0, 2 * SPAN);
    CHECK_EQ(g_write(co, q, 0, 8 * KIB, 0x66), 0);          /* two owners are left */
    far_close(co, q, false);
    q = far_open(co, 2 * SPAN);                              /* nothing happens, or nobody is left alone */
    CHECK(says(q, true));
    CHECK_EQ(g_write(co, q, 4096 * 40, 8 * KIB, 0x67), 0);
    far_clone(co, q, 4096 * 40, 4096 * 60);
    CHECK(!(q->h.autoclear & Q2_AUTOCLEAR_SETTLED));
    far_close(co, q, false);
    q = far_open(co, 3 * SPAN);
    CHECK(says(q, true));
    CHECK_EQ(g_write(co, q, 4096 * 60, 4096, 0x68), 0);      /* in the first table; and the others are in the third one */
    CHECK_EQ(g_write(co, q, SPAN, 8 * KIB, 0x69), 0);
    far_close(co, q, false);
    q = far_open(co, 3 * SPAN);
    CHECK(says(q, true));
    CHECK_EQ(g_write(co, q, 4096 * 41, 4096, 0x67), 0);
    CHECK_EQ(q2_clone_distrust(co, q), 0);
    far_close(co, q, true);
    q = far_open(co, 3 * SPAN);                              /* the mark has gone: only what is cloned from here on */
    CHECK(!q2_clone_any(q) && !q->clones.everywhere && !(q->h.autoclear & Q2_AUTOCLEAR_SETTLED));
    far_clone(co, q, SPAN, 4096 * 80);
    CHECK_EQ(g_write(co, q, SPAN, 8 * KIB, 0x6a), 0);
    far_close(co, q, false);
    q = img_open(co, &(struct opening){ 0 });
    CHECK(!q2_clone_any(q) && g_holds(co, q, 4096 * 80, 8 * KIB, 0x69) && g_holds(co, q, 2 * SPAN, 8 * KIB, 1) && g_holds(co, q, 4096 * 40, 8 * KIB, 0x67));
    CHECK_EQ(img_close(co, q), 0);
}

static void test_tables(void **state) { t_run(0, tables_body, NULL); }

/* Of one owner who was left alone the count cannot be read: all tables are looked at, and the close goes well. */
static void unknown_body(struct co *co, void *arg)
{
    struct q2_image *q = begin(co, &plain);
    uint64_t n;
    CHECK_EQ(g_clone(co, q, SRC, DST, CS), CS);
    CHECK_EQ(g_write(co, q, SRC, CS, 0x41), 0);
    CHECK_EQ(g_flush(co, q), 0);
    at_rest(co, q);
    CHECK(q2_clone_is_left(q, g_host(co, q, DST) / CS) && q->rt_entries > 5 && !q->rt[5]);
    q->rt[5] = UINT64_C(1) << 40;                            /* no block is there */
    q2_clone_left(q, UINT64_C(5) << q->g.block_bits, 1);
    CHECK_EQ(q2_refs_get(co, q, UINT64_C(5) << q->g.block_bits, &n), -EUCLEAN);
    CHECK_EQ(q2_clone_settle(co, q), 0);
    CHECK(writable(co, q, DST));                             /* the owner that can be known has been found */
    q->rt[5] = 0;
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, NULL), 0);
}

static void test_unknown(void **state) { t_run(0, unknown_body, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_shared, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_refused, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_inside, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_crossing, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_between, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_failing, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_cut, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_unsettled, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_unknown, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_tables, disk_setup, disk_teardown),
    };
    return T_MAIN("q2_clone", tests);
}
