/* SPDX-License-Identifier: MIT
 *
 * q2_prove_test.c: clusters that an earlier opening freed are zeroed ahead once nothing was found to name them (DESIGN D4).
 *
 * Purpose      The steps of q2_prove.c one by one, and of images whose counts are wrong.
 * Owns         One disk (q2_disk_test.h).
 * Invariants   None.
 * Concurrency  One loop at a time.
 * Failure      A failed check fails the test.
 * Tests        q2_prove.c, q2_ahead.c
 */
#include "fmt/qcow2/q2_disk_test.h"

#include <string.h>

#include "fmt/qcow2/q2_guard.h"

#define KIB 1024ull
#define MIB (1024 * KIB)
#define C (64 * KIB)
#define N 40u

static struct { unsigned zeros, reads; uint64_t len; bool hold; uint64_t hold_at; } seen;

static int watch(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    (void)buf;
    if (what == 'Z' && len > C) {
        seen.zeros++;
        seen.len = len;
    }
    while (what == 'R' && seen.hold && seen.hold_at >= off && seen.hold_at < off + len) {
        seen.reads++;
        co_yield(co);
    }
    return 0;
}

/* N written clusters. The disk counts the first `zero` 0; of those the first `gone` are named by nothing. */
static struct q2_image *open_counted(struct co *co, unsigned zero, unsigned gone, uint64_t *ret_first)
{
    const struct make m = { 3, 16, C, 16 * MIB };
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ 0 });
    for (unsigned i = 0; i < N; i++)
        CHECK_EQ(g_write(co, q, i * C, C, (uint8_t)(i + 1)), 0);
    *ret_first = g_host(co, q, 0) >> 16;
    CHECK_EQ(g_host(co, q, (N - 1) * C) >> 16, *ret_first + N - 1);
    CHECK_EQ(img_close(co, q), 0);
    uint64_t block = be64_get(disk_be64(be64_get(disk_be64(48))));
    memset(disk.bytes + block + *ret_first * 2, 0, zero * 2);
    memset(disk.bytes + img_l2_at(0), 0, gone * 8);
    q = img_open(co, &(struct opening){ .no_punch = true });
    memset(&seen, 0, sizeof seen);
    disk.hook = watch;
    CHECK_EQ(q2_guard_need(co, q), 0);
    return q;
}

static void let_run(struct co *co, const struct q2_image *q)
{
    while (q->alloc->proof.state == Q2_PROOF_RUNS && co_sleep(co, 100000) == 0)      /* other threads look at the tables */
        ;
}

/* First writes of a part until a proof is there, or will not come. Returns how many. */
static unsigned write_until(struct co *co, struct q2_image *q, uint64_t at)
{
    unsigned n = 0;
    do {
        CHECK_EQ(g_write(co, q, at + n * C, 4 * KIB, 0x77), 0);
        n++;
        let_run(co, q);
    } while (q->alloc->proof.state == Q2_PROOF_NONE && n < 12);
    return n;
}

static bool parts_right(struct co *co, struct q2_image *q, uint64_t at, unsigned n)
{
    bool right = true;
    for (unsigned i = 0; i < n; i++)
        right &= g_holds(co, q, at + i * C, 4 * KIB, 0x77) && g_holds(co, q, at + i * C + 4 * KIB, 60 * KIB, 0);
    return right;
}

/* Freed by an earlier opening: the first ones are filled by themselves, then a piece is zeroed in one call. */
static void sound_body(struct co *co, void *arg)
{
    uint64_t first;
    struct q2_image *q = open_counted(co, 32, 32, &first);
    (void)arg;
    unsigned n = write_until(co, q, 8 * MIB);
    CHECK(q->alloc->proof.state == Q2_PROOF_THERE && n <= 4);
    CHECK(seen.zeros == 0);
    CHECK(states_ok(co, q));
    for (unsigned i = 0; i < 8; i++)
        CHECK_EQ(g_write(co, q, 8 * MIB + (n + i) * C, 4 * KIB, 0x77), 0);
    CHECK(seen.zeros == 1 && seen.len >= 16 * C);
    CHECK(parts_right(co, q, 8 * MIB, n + 8) && states_ok(co, q));
    for (unsigned i = 32; i < N; i++)
        CHECK(g_holds(co, q, i * C, C, (uint8_t)(i + 1)));
    disk.hook = NULL;
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, NULL), 0);
}

static void test_sound(void **state) { t_run(0, sound_body, NULL); }

/* Of an image that counts clusters 0 which are in use none is zeroed, nor handed out once it is known (F1, F5). */
static void damaged_body(struct co *co, void *arg)
{
    uint64_t first;
    (void)arg;
    struct q2_image *q = open_counted(co, 36, 16, &first);
    unsigned n = write_until(co, q, 8 * MIB);
    CHECK(q->alloc->proof.state == Q2_PROOF_THERE && n <= 4);
    for (unsigned i = 0; i < 24; i++)    /* more than there are free ones */
        CHECK_EQ(g_write(co, q, 8 * MIB + (n + i) * C, 4 * KIB, 0x77), 0);
    CHECK(seen.zeros >= 1);
    for (unsigned i = 16; i < N; i++)
        CHECK(g_holds(co, q, i * C, C, (uint8_t)(i + 1)));
    CHECK(parts_right(co, q, 8 * MIB, n + 24));
    disk.hook = NULL;
    (void)img_close(co, q);
}

static void test_damaged(void **state) { t_run(0, damaged_body, NULL); }

/* First writes until a walk has begun, which is held where it reads the L2 table. Returns how many. */
static unsigned hold_walk(struct co *co, struct q2_image *q)
{
    unsigned n = 0;
    for (; n < 12 && q->alloc->proof.state == Q2_PROOF_NONE; n++) {
        CHECK_EQ(g_write(co, q, 8 * MIB + n * C, 4 * KIB, 0x77), 0);
        seen.hold_at = img_l2_at(0);
        seen.hold = true;                /* now the table is in memory */
    }
    while (q->alloc->proof.state == Q2_PROOF_RUNS && !seen.reads)
        co_yield(co);
    CHECK(q->alloc->proof.state == Q2_PROOF_RUNS && seen.reads);
    return n;
}

/* A reference that goes away while the tables are read counts: who saw it may still be inside (F2). */
static void dropped_body(struct co *co, void *arg)
{
    uint64_t first;
    (void)arg;
    struct q2_image *q = open_counted(co, 34, 32, &first);
    (void)hold_walk(co, q);
    epoch_token inside = epoch_enter(q->im.epoch, co_loop(co));      /* who reads it */
    q2_alloc_drop(q, first + 33, 1);
    memset(disk.bytes + img_l2_at(33 * C), 0, 8);    /* as the pass will have it */
    seen.hold = false;
    let_run(co, q);
    CHECK(q->alloc->proof.state == Q2_PROOF_THERE);
    CHECK(!q2_prove_free(q->alloc, first + 33) && q2_prove_free(q->alloc, first + 31));
    epoch_leave(q->im.epoch, co_loop(co), inside);
    disk.hook = NULL;
    (void)img_close(co, q);
}

static void test_dropped(void **state) { t_run(0, dropped_body, NULL); }

/* A table that may still be read is released: nothing is proved by that walk, and a later one is as good as any (F3). */
static void spoilt_body(struct co *co, void *arg)
{
    uint64_t first;
    (void)arg;
    struct q2_image *q = open_counted(co, 32, 32, &first);
    struct q2_run run;
    CHECK_EQ(q2_alloc_exact(co, q, 2, &run), 0);
    CHECK_EQ(g_flush(co, q), 0);
    unsigned n = hold_walk(co, q);
    q2_alloc_drop_table(q, run.cluster, run.count);
    CHECK_EQ(q2_drop_settle(co, q), 0);  /* it does not wait for the walk */
    seen.hold = false;
    let_run(co, q);
    CHECK(q->alloc->proof.state == Q2_PROOF_NONE && !q->alloc->proof.named);
    n += write_until(co, q, 8 * MIB + n * C);
    CHECK(q->alloc->proof.state == Q2_PROOF_THERE && parts_right(co, q, 8 * MIB, n));
    disk.hook = NULL;
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, NULL), 0);
}

static void test_spoilt(void **state) { t_run(0, spoilt_body, NULL); }

/* An image that closes does not wait for the whole walk; an entry that breaks a rule proves nothing, for this opening (F4). */
static void ends_body(struct co *co, void *arg)
{
    uint64_t first;
    (void)arg;
    struct q2_image *q = open_counted(co, 32, 32, &first);
    q2_alloc_quiesce(co, q);
    q2_prove_want(q);
    CHECK(q->alloc->proof.state == Q2_PROOF_NONE);   /* closing */
    q2_alloc_resume(q);
    q2_prove_want(q);
    q2_prove_want(q);
    CHECK(q->alloc->proof.state == Q2_PROOF_RUNS);
    q2_alloc_quiesce(co, q);
    CHECK(q->alloc->proof.state == Q2_PROOF_NONE && !q->alloc->proof.named);
    q2_alloc_resume(q);
    disk.hook = NULL;
    CHECK_EQ(img_close(co, q), 0);
    q = open_counted(co, 32, 32, &first);
    *(disk.bytes + img_l2_at((N - 1) * C)) |= 0x3f;  /* reserved bits */
    for (unsigned i = 0; i < 4; i++)
        q2_prove_want(q);
    let_run(co, q);
    CHECK(q->alloc->proof.state == Q2_PROOF_NEVER && !q2_prove_free(q->alloc, first));
    disk.hook = NULL;
    (void)img_close(co, q);
}

static void test_ends(void **state) { t_run(0, ends_body, NULL); }

static struct { bool hold; int result; unsigned flushes, zeros; } durable;

static int watch_flush(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    (void)off;
    (void)buf;
    durable.zeros += what == 'Z' && len > C;
    if (what != 'F')
        return 0;
    durable.flushes++;
    while (durable.hold)
        co_yield(co);
    return durable.result;
}

/* What was walked must be durable before anything is zeroed on its word, also when the flush takes longer than the walk; and when it fails nothing is. */
static void durable_body(struct co *co, void *arg)
{
    uint64_t first;
    for (int fails = 0; fails < 2; fails++) {
        struct q2_image *q = open_counted(co, 32, 32, &first);
        memset(&durable, 0, sizeof durable);
        durable.hold = true;
        disk.hook = watch_flush;
        while (q->alloc->proof.state == Q2_PROOF_NONE)
            q2_prove_want(q);
        for (unsigned i = 0; i < 2000 && co_sleep(co, 100000) == 0; i++)
            ;
        CHECK(q->alloc->proof.state == Q2_PROOF_RUNS && durable.flushes == 1);
        CHECK_EQ(g_write(co, q, 8 * MIB, 4 * KIB, 0x77), 0);
        CHECK(durable.zeros == 0 && !q2_prove_free(q->alloc, first + 31));
        durable.result = fails ? -EIO : 0;
        durable.hold = false;
        let_run(co, q);
        CHECK(q->alloc->proof.state == (fails ? Q2_PROOF_NEVER : Q2_PROOF_THERE) && q2_prove_free(q->alloc, first + 31) == !fails);
        disk.hook = NULL;
        CHECK(img_close(co, q) == 0 || fails);
    }
    (void)arg;
}

static void test_durable(void **state) { t_run(0, durable_body, NULL); }

/* Holes need neither proof nor call (A6 of q2_ahead.c). */
static void holes_body(struct co *co, void *arg)
{
    uint64_t first;
    (void)arg;
    struct q2_image *q = open_counted(co, 32, 32, &first);
    struct q2_run run;
    memset(disk.bytes + first * C, 0, 8 * C);
    disk.holes = true;
    CHECK_EQ(q2_alloc_take_zeros(co, q, 1, &run), 0);
    CHECK(run.cluster == first && run.known_zero && !run.settled && seen.zeros == 0 && q->alloc->proof.state == Q2_PROOF_NONE);
    for (unsigned i = 1; i < 8; i++) {
        CHECK_EQ(q2_alloc_take_zeros(co, q, 1, &run), 0);
        CHECK(run.cluster == first + i && run.known_zero);
    }
    CHECK_EQ(q2_alloc_take_zeros(co, q, 1, &run), 0);
    CHECK(run.cluster == first + 8 && !run.known_zero && states_ok(co, q));
    disk.hook = NULL;
    disk.holes = false;
    (void)img_close(co, q);
}

static void test_holes(void **state) { t_run(0, holes_body, NULL); }

static void prove_now(struct co *co, struct q2_image *q)
{
    while (q->alloc->proof.state == Q2_PROOF_NONE)
        q2_prove_want(q);
    let_run(co, q);
}

/* A hole is known by its count alone: what something names is not handed out once that is known, though it reads zero (F5). */
static void named_holes_body(struct co *co, void *arg)
{
    uint64_t first;
    (void)arg;
    struct q2_image *q = open_counted(co, 36, 16, &first);
    struct q2_run run;
    memset(disk.bytes + first * C, 0, 36 * C);
    disk.holes = true;
    CHECK_EQ(q2_alloc_take_zeros(co, q, 1, &run), 0);
    CHECK(run.cluster == first && run.known_zero);
    prove_now(co, q);
    CHECK(q->alloc->proof.state == Q2_PROOF_THERE);
    for (unsigned i = 1; i < 40; i++) {
        CHECK_EQ(q2_alloc_take_zeros(co, q, 1, &run), 0);
        CHECK(run.cluster < first + 16 || run.cluster >= first + 36);
        CHECK(run.known_zero || i >= 16);
    }
    CHECK(seen.zeros == 0);
    disk.hook = NULL;
    disk.holes = false;
    (void)img_close(co, q);
}

static void test_named_holes(void **state) { t_run(0, named_holes_body, NULL); }

/* Of a damaged image such a cluster may have been written since by who names it: no table goes there without being zeroed first (A6 of q2_ahead.c). */
static void written_hole_body(struct co *co, void *arg)
{
    uint64_t first;
    (void)arg;
    struct q2_image *q = open_counted(co, 36, 16, &first);
    struct q2_run run = { 0 };
    memset(disk.bytes + first * C, 0, 36 * C);
    disk.holes = true;
    for (unsigned i = 0; i < 16; i++)
        CHECK_EQ(q2_alloc_take_zeros(co, q, 1, &run), 0);
    CHECK(run.cluster == first + 15 && run.known_zero);
    CHECK_EQ(g_write(co, q, 16 * C, C, 0x80), 0);    /* in place */
    CHECK(g_host(co, q, 16 * C) >> 16 == first + 16);
    CHECK_EQ(q2_alloc_take(co, q, 1, &run), 0);      /* as for an L2 table */
    CHECK(run.cluster == first + 16 && !run.known_zero);
    disk.hook = NULL;
    disk.holes = false;
    (void)img_close(co, q);
}

static void test_written_hole(void **state) { t_run(0, written_hole_body, NULL); }

static struct { unsigned reads, fails_at; } unread;

static int fail_read(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    (void)co;
    (void)off;
    (void)len;
    (void)buf;
    return what == 'R' && unread.reads++ == unread.fails_at ? -EIO : 0;
}

/* Whichever read of the walk fails, nothing is proved (F4). */
static void unreadable_body(struct co *co, void *arg)
{
    const struct fmt_snapshot_req rq = { .op = FMT_SNAPSHOT_CREATE, .name = "s" };
    const struct make m = { 3, 16, C, 16 * MIB };
    struct byre_err err;
    bool proved = false;
    (void)arg;
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ 0 });
    CHECK_EQ(g_write(co, q, 0, MIB, 1), 0);
    CHECK_EQ(q->im.ops->snapshot(co, &q->im, &rq, NULL, &err), 0);
    CHECK_EQ(g_write(co, q, 0, MIB, 2), 0);
    CHECK_EQ(img_close(co, q), 0);
    for (unread.fails_at = 0; !proved && unread.fails_at < 100; unread.fails_at++) {
        q = img_open(co, &(struct opening){ 0 });
        unread.reads = 0;
        disk.hook = fail_read;
        prove_now(co, q);
        disk.hook = NULL;
        proved = q->alloc->proof.state == Q2_PROOF_THERE;
        CHECK(proved == (unread.reads <= unread.fails_at));
        CHECK(proved || (q->alloc->proof.state == Q2_PROOF_NEVER && !q->alloc->proof.named));
        CHECK_EQ(img_close(co, q), 0);
    }
    CHECK(proved && unread.fails_at > 6);        /* active L1 and L2, snapshot table, its L1 and L2, refcount table */
}

static void test_unreadable(void **state) { t_run(0, unreadable_body, NULL); }

#define TABLES 1000u

static struct { struct q2_alloc *a; unsigned before, behind; } closes;

static int close_meanwhile(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    (void)co;
    (void)off;
    (void)len;
    (void)buf;
    if (what != 'R')
        return 0;
    closes.behind += closes.a->closing;
    if (++closes.before == 100)
        closes.a->closing = true;
    return 0;
}

/* Who closes the image, or takes a snapshot, does not wait until all tables were read. */
static void cut_short_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, 512, 32 * MIB };
    (void)arg;
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ 0 });
    for (unsigned i = 0; i < TABLES; i++)
        CHECK_EQ(g_write(co, q, i * 32 * KIB, 512, 0x11), 0);
    CHECK_EQ(img_close(co, q), 0);
    q = img_open(co, &(struct opening){ 0 });
    closes.a = q->alloc;
    closes.before = closes.behind = 0;
    disk.hook = close_meanwhile;
    prove_now(co, q);
    disk.hook = NULL;
    CHECK(closes.before >= 100 && closes.behind < TABLES / 5);
    CHECK(q->alloc->proof.state == Q2_PROOF_NONE && !q->alloc->proof.named);
    q2_alloc_resume(q);
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, NULL), 0);
}

static void test_cut_short(void **state) { t_run(0, cut_short_body, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_sound, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_damaged, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_dropped, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_spoilt, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_durable, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_ends, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_holes, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_named_holes, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_written_hole, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_unreadable, disk_setup, disk_teardown),
        cmocka_unit_test_setup_teardown(test_cut_short, disk_setup, disk_teardown),
    };
    return T_MAIN("q2_prove", tests);
}
