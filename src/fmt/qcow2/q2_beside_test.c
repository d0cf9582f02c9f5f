/* SPDX-License-Identifier: MIT
 *
 * q2_beside_test.c: what a scrub, and the walk over a recorded frontier, could miss or count twice while the image changes its own
 * structure beside them (FEATURES G.001): each change is made in front of every single read of the walk, one after the other.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/qcow2/q2_bms.h"
#include "fmt/qcow2/q2_disk_test.h"
#include "fmt/qcow2/q2_guard.h"
#include "fmt/qcow2/q2_unclean.h"

#define KIB 1024ull
#define MIB (1024 * KIB)
#define CS 512ull
#define BUSY 40                          /* turns in which what was begun comes to its end */

/* A table of one cluster names 64 blocks of 64 counts: a file of 2 MiB. */
static const struct make tight = { 3, 64, CS, 16 * MIB }, tight_lazy = { 3, 64, CS, 16 * MIB, true };
static const struct opening soon = { .frontier_bytes = 64 * CS }, at_once = { .unclean = true, .frontier_bytes = 64 * CS, .bitmap_region = MIB };

/* ---- a change in front of the n-th read, or barrier, of somebody ---- */

#define PATIENCE 4000u                   /* turns that the read waits for it: a change may itself have to wait for who reads */

static struct {
    struct q2_image *q;
    struct co *changer;                  /* its own reads do not count */
    unsigned nth, seen, patience;
    bool begun, over;
    int (*change)(struct co *co, struct q2_image *q);
} other;

static void change_co(struct co *co, void *arg)
{
    other.changer = co;
    CHECK_EQ(other.change(co, other.q), 0);
    other.changer = NULL;
    other.over = true;
}

static int in_front(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    if ((what != 'R' && what != 'F') || co == other.changer || other.begun || other.seen++ != other.nth)
        return 0;
    other.begun = true;
    CHECK_EQ(rt_spawn(other.q->im.home, change_co, NULL), 0);
    for (unsigned i = 0; i < other.patience && !other.over; i++)
        co_yield(co);
    return 0;
}

static void arm(struct q2_image *q, unsigned nth, int (*change)(struct co *co, struct q2_image *q))
{
    memset(&other, 0, sizeof other);
    other.q = q;
    other.nth = nth;
    other.patience = PATIENCE;
    other.change = change;
    disk.hook = in_front;
}

/* Was there an n-th one? */
static bool disarm(struct co *co)
{
    disk.hook = NULL;
    while (other.begun && !other.over)
        co_yield(co);
    return other.begun;
}

/* ---- a scrub ---- */

static char first_finding[200];
static void on_finding(void *arg, bool fixed, const char *id, const char *text)
{
    if (!first_finding[0])
        snprintf(first_finding, sizeof first_finding, "%s: %s", id, text);
}

static struct fmt_check_result scrub(struct co *co, struct q2_image *q)
{
    struct fmt_check_opts o = { .fix = FMT_FIX_LEAKS, .finding = on_finding };
    struct fmt_check_result res = { 0 };
    struct byre_err err = { 0 };
    first_finding[0] = 0;
    if (!CHECK_EQ(q2_scrub(co, &q->im, &o, &res, &err), 0))
        fprintf(stderr, "%s\n", err.text);
    return res;
}

static void nothing_wrong(struct co *co)
{
    uint64_t leaks = 0;
    CHECK_EQ(img_faults(co, &leaks), 0);
    CHECK_EQ(leaks, 0);
}

/* ---- the refcount table moves ---- */

/* Guest bytes [0, 1 MiB) hold 0x31, in 2048 clusters and half of the table. */
static void half_full(struct co *co, const struct make *m)
{
    img_make(co, m);
    struct q2_image *q = img_open(co, &soon);
    CHECK_EQ(g_write(co, q, 0, MIB, 0x31), 0);
    CHECK_EQ(g_flush(co, q), 0);
    if (m->lazy)
        img_kill(co, q);
    else
        CHECK_EQ(img_close(co, q), 0);
}

/* More than the table can name; and then the old table's place is free, and taken. */
static int fill(struct co *co, struct q2_image *q)
{
    uint64_t table = q->h.rt_off;
    int r = g_write(co, q, 4 * MIB, 3 * MIB / 2, 0x32);
    if (r == 0)
        r = g_flush(co, q);
    CHECK(q2_counts_in_memory(q) || q->h.rt_off != table);
    for (int i = 0; i < BUSY; i++)
        co_yield(co);
    if (r == 0)
        r = g_write(co, q, 8 * MIB, 16 * KIB, 0x33);
    return r < 0 ? r : g_flush(co, q);
}

static void table_body(struct co *co, void *arg)
{
    const struct make *m = arg;
    unsigned n = 0;
    for (bool more = true; more && n < 400; n += t_share()) {
        half_full(co, m);
        struct q2_image *q = img_open(co, m->lazy ? &at_once : &soon);
        CHECK(!q->unclean == !m->lazy);
        arm(q, n, fill);
        struct fmt_check_result res = scrub(co, q);
        more = disarm(co);
        if (!CHECK(!res.corruptions && !res.check_errors && !res.leaks && !q->unclean && (m->lazy || !res.leaks_fixed)))
            fprintf(stderr, "in front of read %u: %llu leaks freed, %s\n", n, (unsigned long long)res.leaks_fixed, first_finding);
        CHECK(g_holds(co, q, 0, MIB, 0x31));
        if (more)
            CHECK(g_holds(co, q, 4 * MIB, 3 * MIB / 2, 0x32) && g_holds(co, q, 8 * MIB, 16 * KIB, 0x33));
        res = scrub(co, q);
        CHECK(!res.corruptions && !res.check_errors && !res.leaks);
        CHECK(states_ok(co, q));
        CHECK_EQ(img_close(co, q), 0);
        nothing_wrong(co);
    }
    CHECK(n > 10 && n < 400);
}

static void test_table(void **state) { t_run(0, table_body, (void *)&tight); }
static void test_table_unclean(void **state) { t_run(0, table_body, (void *)&tight_lazy); }

/* ---- another set of bitmaps, of an unclean image ---- */

static struct fmt_bitmap *new_bitmap(struct q2_image *q, const char *name)
{
    struct fmt_bitmap *b = calloc(1, sizeof *b);
    *b = (struct fmt_bitmap){ .name = strdup(name), .granularity_bits = 12, .persistent = true, .enabled = true, .next = q->im.bitmaps };
    CHECK_EQ(dirty_new(16 * MIB, 12, NULL, &b->bits), 0);
    dirty_set(b->bits, 5 * MIB, 64 * KIB);
    q->im.bitmaps = b;
    return b;
}

static void free_bitmaps(struct fmt_bitmap *b)
{
    for (struct fmt_bitmap *next; b; b = next) {
        next = b->next;
        dirty_free(b->bits);
        free(b->name);
        free(b);
    }
}

/* Everything in it anew, and in another place. */
static int other_set(struct co *co, struct q2_image *q)
{
    struct byre_err err = { 0 };
    uint64_t dir = q->h.bitmap_dir_off;
    for (struct fmt_bitmap *b = q->im.bitmaps; b; b = b->next)
        b->changed = true;
    int r = q2_bms_sync(co, &q->im, &err);
    CHECK(r < 0 || q->h.bitmap_dir_off != dir);
    return r;
}

static void bitmaps_body(struct co *co, void *arg)
{
    struct byre_err err = { 0 };
    unsigned n = 0;
    for (bool more = true; more && n < 400; n += t_share()) {
        img_make(co, &tight_lazy);
        struct q2_image *q = img_open(co, &soon);
        new_bitmap(q, "a");
        new_bitmap(q, "b");
        CHECK_EQ(q2_bms_sync(co, &q->im, &err), 0);
        CHECK_EQ(q2_bms_enter(co, &q->im, 0, CS), 0);
        CHECK_EQ(g_write(co, q, 0, 64 * KIB, 0x31), 0);
        CHECK_EQ(g_flush(co, q), 0);
        struct fmt_bitmap *list = q->im.bitmaps;
        img_kill(co, q);
        free_bitmaps(list);
        q = img_open(co, &at_once);
        CHECK(q->unclean);
        CHECK_EQ(q2_bms_open(co, &q->im, &err), 0);
        CHECK_EQ(other_set(co, q), 0);               /* all of it is ours */
        arm(q, n, other_set);
        struct fmt_check_result res = scrub(co, q);
        more = disarm(co);
        if (!CHECK(!res.corruptions && !res.check_errors && !res.leaks && !q->unclean))
            fprintf(stderr, "in front of read %u: %s\n", n, first_finding);
        res = scrub(co, q);
        CHECK(!res.corruptions && !res.check_errors && !res.leaks && states_ok(co, q));
        list = q->im.bitmaps;
        CHECK_EQ(img_close(co, q), 0);
        free_bitmaps(list);
        nothing_wrong(co);
        q = img_open(co, &soon);
        CHECK_EQ(q2_bms_open(co, &q->im, &err), 0);
        unsigned good = 0;
        uint64_t from, to;
        list = q->im.bitmaps;
        for (struct fmt_bitmap *b = list; b; b = b->next)
            good += !b->bad && !b->inconsistent && dirty_next(b->bits, 5 * MIB, 6 * MIB, &from, &to);
        CHECK_EQ(good, 2);
        CHECK_EQ(img_close(co, q), 0);
        free_bitmaps(list);
    }
    CHECK(n > 10 && n < 400);
}

static void test_bitmaps(void **state) { t_run(0, bitmaps_body, NULL); }

/* One that does not record, and was in use because a resize was cut short: nobody wants to mark it, the close makes it exact all the same. */
static void halted_body(struct co *co, void *arg)
{
    struct byre_err err = { 0 };
    uint64_t from, to;
    img_make(co, &tight_lazy);
    struct q2_image *q = img_open(co, &soon);
    new_bitmap(q, "a")->enabled = false;
    CHECK_EQ(q2_bms_sync(co, &q->im, &err), 0);
    CHECK_EQ(g_write(co, q, 0, 64 * KIB, 0x31), 0);
    CHECK_EQ(g_flush(co, q), 0);
    CHECK_EQ(q2_bms_resizing(co, &q->im, &err), 0);
    for (unsigned opened = 0; opened < 2; opened++) {
        struct fmt_bitmap *list = q->im.bitmaps;
        if (opened)
            CHECK_EQ(img_close(co, q), 0);
        else
            img_kill(co, q);
        free_bitmaps(list);
        q = img_open(co, opened ? &(struct opening){ .read_only = true } : &at_once);
        CHECK_EQ(q2_bms_open(co, &q->im, &err), 0);
        CHECK(q->bms && q->bms->count == 1 && q->bms->list[0].in_use == !opened);
        if (opened)
            continue;
        CHECK(q->unclean);
        struct fmt_check_result res = scrub(co, q);
        CHECK(!res.corruptions && !res.check_errors && !q->unclean);
    }
    struct fmt_bitmap *list = q->im.bitmaps;
    CHECK_EQ(q2_bms_load(co, &q->im, list, &err), 0);
    CHECK(!list->enabled && !list->inconsistent && dirty_next(list->bits, 5 * MIB, 6 * MIB, &from, &to));
    CHECK_EQ(img_close(co, q), 0);
    free_bitmaps(list);
    nothing_wrong(co);
}

static void test_halted(void **state) { t_run(0, halted_body, NULL); }

/* While an extension of the header that lies across two sectors is rewritten, the header names no bitmaps for a moment. */
static int half_a_switch(struct co *co, struct q2_image *q)
{
    meta_struct_begin(co, q->meta);
    q->h.autoclear &= ~Q2_AUTOCLEAR_BITMAPS;
    for (int i = 0; i < BUSY; i++)
        co_yield(co);
    q->h.autoclear |= Q2_AUTOCLEAR_BITMAPS;
    meta_struct_end(q->meta);
    return 0;
}

static void switch_body(struct co *co, void *arg)
{
    struct byre_err err = { 0 };
    unsigned n = 0;
    img_make(co, &tight);
    struct q2_image *q = img_open(co, &soon);
    new_bitmap(q, "a");
    CHECK_EQ(q2_bms_sync(co, &q->im, &err), 0);
    CHECK_EQ(g_write(co, q, 0, 64 * KIB, 0x31), 0);
    struct fmt_bitmap *list = q->im.bitmaps;
    CHECK_EQ(img_close(co, q), 0);
    free_bitmaps(list);
    q = img_open(co, &soon);                         /* so that nothing of it was handed out in this opening */
    CHECK_EQ(q2_bms_open(co, &q->im, &err), 0);
    const struct q2_bm *bm = &q->bms->list[0];
    CHECK(bm->d.table_off && !q2_marks_has(&q->alloc->given, bm->d.table_off / CS) && !q2_marks_has(&q->alloc->given, q->h.bitmap_dir_off / CS));
    for (bool more = true; more && n < 400; n += t_share()) {
        CHECK_EQ(g_write(co, q, MIB + n * CS, CS, 0x32), 0);           /* something to be flushed */
        arm(q, n, half_a_switch);
        other.patience = 2;              /* the read goes on while it is half done */
        struct fmt_check_result res = scrub(co, q);
        more = disarm(co);
        if (!CHECK(!res.corruptions && !res.check_errors && !res.leaks && !res.leaks_fixed))
            fprintf(stderr, "in front of read %u: %s\n", n, first_finding);
    }
    CHECK(n > 5 && n < 400);
    CHECK_EQ(g_flush(co, q), 0);                     /* nothing that a scrub would have to wait for, */
    arm(q, 0, half_a_switch);
    other.begun = true;
    CHECK_EQ(rt_spawn(q->im.home, change_co, NULL), 0);
    co_yield(co);
    CHECK(!(q->h.autoclear & Q2_AUTOCLEAR_BITMAPS));                   /* but for this */
    struct fmt_check_result res = scrub(co, q);
    CHECK(disarm(co) && !res.corruptions && !res.check_errors && !res.leaks && !res.leaks_fixed);
    list = q->im.bitmaps;
    CHECK_EQ(img_close(co, q), 0);
    free_bitmaps(list);
    nothing_wrong(co);
}

static void test_switch(void **state) { t_run(0, switch_body, NULL); }

/* ---- readers of an old cluster (U5 of q2_unclean.c) ---- */

static struct { struct q2_image *q; bool over; } behind;
static void scrub_co(struct co *co, void *arg)
{
    struct fmt_check_result res = scrub(co, behind.q);
    CHECK(!res.corruptions && !res.check_errors);
    behind.over = true;
}

/* Dropped while nobody knows counts, so it never was in quarantine: it is not anybody else's before who reads it has left. */
static void reader_body(struct co *co, void *arg)
{
    half_full(co, &tight_lazy);
    struct q2_image *q = img_open(co, &at_once);
    epoch_token inside = epoch_enter(q->im.epoch, co_loop(co));
    uint64_t host = g_host(co, q, 64 * KIB);
    CHECK(host && disk.bytes[host] == 0x31);
    CHECK_EQ(q2_discard(co, &q->im, 0, 512 * KIB), 0);
    CHECK_EQ(g_flush(co, q), 0);
    behind.q = q;
    behind.over = false;
    CHECK_EQ(rt_spawn(q->im.home, scrub_co, NULL), 0);
    for (int i = 0; i < 20000 && !behind.over; i++)
        co_yield(co);
    CHECK_EQ(g_write(co, q, 4 * MIB, MIB, 0x32), 0);
    CHECK_EQ(disk.bytes[host], 0x31);
    CHECK(q->unclean && !behind.over);
    epoch_leave(q->im.epoch, co_loop(co), inside);
    while (!behind.over)
        co_yield(co);
    CHECK(!q->unclean);
    CHECK(g_holds(co, q, 0, 512 * KIB, 0) && g_holds(co, q, 512 * KIB, 512 * KIB, 0x31) && g_holds(co, q, 4 * MIB, MIB, 0x32));
    CHECK_EQ(img_close(co, q), 0);
    nothing_wrong(co);
}

static void test_reader(void **state) { t_run(0, reader_body, NULL); }

/* ---- an old table that is cached ---- */

/* It was replaced while counts were in memory, so nobody released it: what lies there later is no table any more. */
static void cached_body(struct co *co, void *arg)
{
    half_full(co, &tight_lazy);
    struct q2_image *q = img_open(co, &at_once);
    uint64_t span = CS / 8 * CS, table = be64_get(disk_be64(img_l1_at(0))) & Q2_L1E_OFF, n = 0;
    CHECK(table / CS < q->unclean->first && g_holds(co, q, 0, span, 0x31) && meta_cached(q->meta, table, CS));
    CHECK_EQ(g_write(co, q, 0, span, 0x32), 0);
    CHECK_EQ(g_flush(co, q), 0);
    struct fmt_check_result res = scrub(co, q);
    CHECK(!res.corruptions && !res.leaks && !q->unclean);
    CHECK_EQ(q2_refs_get(co, q, table / CS, &n), 0);
    CHECK_EQ(n, 0);
    CHECK_EQ(q2_alloc_scan_all(co, q), 0);
    uint64_t free = q->alloc->ready.total;
    CHECK(rset_contains(&q->alloc->ready, table / CS, table / CS + 1) && !meta_cached(q->meta, table, CS));
    CHECK_EQ(g_write(co, q, 8 * MIB, free * CS, 0x33), 0);             /* some of it comes to lie there, */
    CHECK_EQ(q2_discard(co, &q->im, 8 * MIB, free * CS), 0);           /* and goes */
    CHECK_EQ(g_flush(co, q), 0);
    CHECK_EQ(q2_drop_settle(co, q), 0);
    CHECK(!q->failed && g_holds(co, q, 0, span, 0x32) && states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    nothing_wrong(co);
}

static void test_cached(void **state) { t_run(0, cached_body, NULL); }

/* A crash left one cluster to a guest's table and to the counts. The guest's is replaced before the scrub begins: the counts
 * keep the cluster, and nothing of the table (N1 of q2_recount.c). */
static void two_owners_body(struct co *co, void *arg)
{
    half_full(co, &tight_lazy);
    uint64_t span = CS / 8 * CS, table = be64_get(disk_be64(img_l1_at(0))) & Q2_L1E_OFF;
    be64_put(disk_be64(be64_get(disk_be64(48))), table);           /* the first entry of the refcount table */
    struct q2_image *q = img_open(co, &at_once);
    CHECK(g_holds(co, q, 0, span, 0x31) && meta_cached(q->meta, table, CS));
    CHECK_EQ(g_write(co, q, 0, span, 0x32), 0);
    struct fmt_check_result res = scrub(co, q);
    CHECK(!res.corruptions && !res.leaks && !q->unclean && q->rt[0] == table);
    CHECK_EQ(q2_alloc_scan_all(co, q), 0);           /* reads all counts */
    CHECK_EQ(q2_discard(co, &q->im, 64 * KIB, 64 * KIB), 0);
    CHECK(g_holds(co, q, 0, span, 0x32) && !q->failed && states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    nothing_wrong(co);
}

static void test_two_owners(void **state) { t_run(0, two_owners_body, NULL); }

/* ---- between a count and a reference (I7 of q2_alloc.c) ---- */

static struct { struct q2_image *q; struct co *co; bool let, over; struct q2_run run; uint64_t want; } taker;
static void taker_co(struct co *co, void *arg)
{
    taker.co = co;
    CHECK_EQ(taker.want == 1 ? q2_alloc_take(co, taker.q, 1, &taker.run) : q2_alloc_exact(co, taker.q, taker.want, &taker.run), 0);
    taker.over = true;
}

static int hold_taker(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    while (what == 'R' && co == taker.co && !taker.let)
        co_yield(co);
    return 0;
}

/* What is handed out is known as that before anybody waits for anything. */
static void taker_body(struct co *co, void *arg)
{
    struct byre_err err = { 0 };
    half_full(co, &tight);
    struct q2_image *q = img_open(co, &soon);
    struct fmt_snapshot_req rq = { .op = FMT_SNAPSHOT_CREATE, .name = "s" };
    CHECK_EQ(q2_snapshot_op(co, &q->im, &rq, NULL, &err), 0);
    for (uint64_t want = 1; want < 4; want += 2) {
        struct rset_range x;
        CHECK_EQ(q2_frontier_grow(co, q, 8), 0);
        CHECK_EQ(q2_frontier_settle(co, q), 0);
        CHECK_EQ(q2_alloc_scan_all(co, q), 0);
        rset_fini(&q->alloc->ready);                 /* as if nothing else was free */
        rset_init(&q->alloc->ready);
        CHECK(rset_fit(&q->alloc->frontier, 0, want, &x));
        q2_guard_drop(q);                            /* so that the places of tables have to be read */
        memset(&taker, 0, sizeof taker);
        taker.q = q;
        taker.want = want;
        disk.hook = hold_taker;
        CHECK_EQ(rt_spawn(q->im.home, taker_co, NULL), 0);
        for (int i = 0; i < BUSY; i++)
            co_yield(co);
        CHECK(!taker.over && !rset_contains(&q->alloc->frontier, x.start, x.start + want));
        for (uint64_t c = x.start; c < x.start + want; c++)
            CHECK(q2_marks_has(&q->alloc->given, c));
        taker.let = true;
        while (!taker.over)
            co_yield(co);
        disk.hook = NULL;
        CHECK(taker.run.cluster == x.start && taker.run.count == want);
        q2_alloc_return(q, &taker.run);
    }
    CHECK_EQ(img_close(co, q), 0);
    nothing_wrong(co);
}

static void test_taker(void **state) { t_run(0, taker_body, NULL); }

/* ---- the walk over a recorded frontier ---- */

static struct { uint64_t l1; bool held, let; struct co *me; } walk;
static int hold_l1(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    if (what != 'R' || off != walk.l1 || walk.held || co == walk.me)
        return 0;
    walk.held = true;
    while (!walk.let)
        co_yield(co);
    return 0;
}

/* A table that lost its flag is copied to the end of a file that grows, after the walk has asked for its length: what it names, in the
 * recorded range, is not given back. */
static void walk_body(struct co *co, void *arg)
{
    static const struct make plain = { 3, 16, 4 * KIB, 16 * MIB };
    img_make(co, &plain);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = MIB });
    CHECK_EQ(g_write(co, q, 0, 256 * KIB, 0x31), 0);
    CHECK_EQ(g_flush(co, q), 0);
    img_kill(co, q);
    uint64_t at = img_l1_at(0), l1 = be64_get(disk_be64(at)), n = 0;
    be64_put(disk_be64(at), l1 & ~Q2_E_COPIED);
    memcpy(disk.durable + at, disk.bytes + at, 8);
    memset(&walk, 0, sizeof walk);
    walk.me = co;
    walk.l1 = at;
    q = img_open(co, &(struct opening){ .frontier_bytes = 64 * KIB });
    CHECK(q->alloc->reclaim);
    uint64_t host = g_host(co, q, 16 * KIB), len = disk.len;
    disk.hook = hold_l1;
    for (int i = 0; i < 1000 && !walk.held; i++)
        co_yield(co);
    CHECK(walk.held && q->alloc->reclaim);
    CHECK_EQ(g_write(co, q, 1 * MIB, 4 * KIB, 0x32), 0);
    CHECK_EQ(g_flush(co, q), 0);
    CHECK((be64_get(disk_be64(at)) & Q2_L1E_OFF) >= len);
    walk.let = true;
    while (q->alloc->reclaim)
        co_yield(co);
    disk.hook = NULL;
    CHECK_EQ(q2_refs_get(co, q, host / (4 * KIB), &n), 0);
    CHECK(n == 1 && states_ok(co, q));
    CHECK_EQ(g_write(co, q, 2 * MIB, MIB, 0x33), 0);
    CHECK(g_holds(co, q, 0, 256 * KIB, 0x31));
    CHECK_EQ(img_close(co, q), 0);
    (void)img_faults(co, &n);                        /* flags that followed the one in the L1 table: no harm in them */
    CHECK_EQ(n, 0);
}

static void test_walk(void **state) { t_run(0, walk_body, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table), cmocka_unit_test(test_table_unclean), cmocka_unit_test(test_bitmaps), cmocka_unit_test(test_halted), cmocka_unit_test(test_reader),
        cmocka_unit_test(test_cached), cmocka_unit_test(test_two_owners), cmocka_unit_test(test_switch), cmocka_unit_test(test_taker), cmocka_unit_test(test_walk),
    };
    ASSERT(disk_setup(NULL) == 0);
    int failed = T_MAIN("qcow2 beside", tests);
    disk_teardown(NULL);
    return failed;
}
