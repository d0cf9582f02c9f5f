/* SPDX-License-Identifier: MIT
 *
 * q2_guard_test.c: where metadata lies, and what happens when an entry names it as data (FEATURES 1.048, 1.111, 1.112, 1.113; Q22).
 *
 * Purpose      The guard says what the tables say, whatever is done and however many tables there are. For each kind of metadata: no
 *              write goes there in place, the image is marked and told of, and behind the mark nothing is written, whichever request
 *              of the disk fails and wherever the power does.
 * Owns         The disk of q2_disk_test.h.
 * Invariants   None.
 * Concurrency  One loop.
 * Failure      A failed check fails the test.
 * Tests        This is one.
 */
#include "fmt/qcow2/q2_disk_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/qcow2/q2_guard.h"
#include "fmt/qcow2/q2_snapshot.h"

#define CS 4096ull
#define SPAN (CS / 8 * CS)               /* guest bytes of an L2 table */

static const struct make plain = { 3, 16, CS, 16 * SPAN };
static struct { unsigned count; bool fatal, has_place; uint64_t off, bytes; char text[300]; } told;

static void on_corrupted(void *arg, const struct fmt_corruption *c)
{
    (void)arg;
    told.count++;
    told.fatal = c->fatal;
    told.has_place = c->has_place;
    told.off = c->off;
    told.bytes = c->bytes;
    snprintf(told.text, sizeof told.text, "%s", c->text);
}

static int snapshot(struct co *co, struct q2_image *q, enum fmt_snapshot_op op, const char *name)
{
    struct fmt_snapshot_req rq = { .op = op, .name = name, .pick = { .name = name } };
    return q2_snapshot_op(co, &q->im, &rq, NULL, NULL);
}

/* ---- it says what the tables say ---- */

static void right_body(struct co *co, void *arg)
{
    img_make(co, &plain);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 3 * CS });
    CHECK(!q2_guard_ready(q));                       /* opening costs nothing */
    for (unsigned i = 0; i < 16; i++) {              /* a table each, and refcount blocks on the way */
        CHECK_EQ(g_write(co, q, i * SPAN, 8 * CS, 1), 0);
        CHECK(q2_guard_ready(q) && states_ok(co, q));
    }
    CHECK_EQ(snapshot(co, q, FMT_SNAPSHOT_CREATE, "a"), 0);
    CHECK(!q2_guard_ready(q));
    CHECK_EQ(g_write(co, q, 3 * SPAN, CS, 2), 0);    /* copies a table */
    CHECK(q2_guard_ready(q) && states_ok(co, q));
    CHECK_EQ(g_flush(co, q), 0);
    CHECK_EQ(snapshot(co, q, FMT_SNAPSHOT_APPLY, "a"), 0);
    CHECK_EQ(g_write(co, q, 4 * SPAN, CS, 3), 0);
    CHECK(q2_guard_ready(q) && states_ok(co, q));
    CHECK_EQ(snapshot(co, q, FMT_SNAPSHOT_DELETE, "a"), 0);
    CHECK_EQ(g_write(co, q, 5 * SPAN, CS, 4), 0);
    CHECK(q2_guard_ready(q) && states_ok(co, q));
    CHECK_EQ(q2_cut(co, q, 8 * SPAN, 16 * SPAN), 0); /* takes tables away */
    CHECK(q2_guard_ready(q) && states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, NULL), 0);
}

static void test_right(void **state) { t_run(0, right_body, NULL); }

/* Many tables: the hash grows, also while it is made, and others change the tables between two steps of that. */
struct many { struct q2_image *q; uint64_t entries; bool over; };
static void change_co(struct co *co, void *arg)
{
    struct many *m = arg;
    struct prng rng;
    prng_init(&rng, 7);
    for (unsigned i = 0; !m->over; i++) {
        uint64_t at = prng_below(&rng, m->entries);
        q2_l1_set(m->q, at, i % 3 ? (1000 + prng_below(&rng, 5000)) * CS | Q2_E_COPIED : 0);
        if (i % 50 == 49)
            co_yield(co);
    }
    m->over = false;
}

static void many_body(struct co *co, void *arg)
{
    struct q2_l1 *l1;
    uint64_t *dirty;
    img_make(co, &plain);
    struct q2_image *q = img_open(co, &(struct opening){ 0 });
    struct many m = { .q = q, .entries = 200000 };
    CHECK_EQ(q2_l1_replace(q, m.entries, NULL, &l1, &dirty), 0);
    for (uint64_t i = 0; i < m.entries; i += 2)
        atomic_store(&l1->words[i], be64_word((7 + i) * CS | Q2_E_COPIED));
    q2_l1_install(q, l1, dirty);
    CHECK_EQ(rt_spawn(q->im.home, change_co, &m), 0);
    for (unsigned i = 0; i < 5; i++) {
        q2_guard_drop(q);
        CHECK_EQ(q2_guard_need(co, q), 0);
        CHECK(q2_guard_ready(q) && q2_guard_is_right(q));
        for (unsigned k = 0; k < 200; k++)
            co_yield(co);
        CHECK(q2_guard_ready(q) && q2_guard_is_right(q));
    }
    m.over = true;
    while (m.over)
        co_yield(co);
    for (uint64_t i = 0; i < m.entries; i++)         /* all of it goes again */
        q2_l1_set(q, i, 0);
    CHECK(q2_guard_ready(q) && q2_guard_is_right(q));
    img_crash(co, q);
}

static void test_many(void **state) { t_run(0, many_body, NULL); }

/* ---- each kind ---- */

struct places { uint64_t l1, l2, table, block, snapshots, old_l1, old_l2, data; };

/* An image with a snapshot, one table of its own, and one data cluster at guest offset 9 * CS. */
static struct places damaged_base(struct co *co)
{
    img_make(co, &plain);
    struct q2_image *q = img_open(co, &(struct opening){ .no_punch = true });
    CHECK_EQ(g_write(co, q, 0, 12 * CS, 1), 0);
    CHECK_EQ(g_flush(co, q), 0);
    struct q2_snapshot_scan scan;
    struct places p = { .old_l2 = img_l2_at(0) / CS * CS };
    CHECK_EQ(snapshot(co, q, FMT_SNAPSHOT_CREATE, "a"), 0);
    CHECK_EQ(g_write(co, q, 0, 12 * CS, 2), 0);
    CHECK_EQ(g_flush(co, q), 0);
    CHECK_EQ(q2_snapshots_scan(co, q->im.store, &q->g, &q->h, &scan), 0);
    p.l1 = q->h.l1_off;
    p.l2 = img_l2_at(0) / CS * CS;
    p.table = q->h.rt_off;
    p.block = q->rt[0];
    p.snapshots = q->h.snapshots_off;
    p.old_l1 = scan.snapshots[0].l1_off;
    p.data = g_host(co, q, 9 * CS);
    q2_snapshots_free(scan.snapshots, scan.count);
    CHECK_EQ(img_close(co, q), 0);
    CHECK(p.l2 != p.old_l2);
    return p;
}

static void put_word(uint64_t at, uint64_t v)
{
    be64_put(disk_be64(at), v);
    be64_put((be64 *)(disk.durable + at), v);
}

static bool is_marked(void) { return be64_get((const be64 *)(disk.durable + 72)) & Q2_INCOMPAT_CORRUPT; }

static void kind_of(struct co *co, uint64_t victim, unsigned bit, bool in_default, bool kept_zero)
{
    struct { unsigned given; bool caught; } sets[] = {
        { 0, in_default }, { FMT_OVERLAP_GIVEN, false }, { FMT_OVERLAP_GIVEN | bit, true }, { FMT_OVERLAP_GIVEN | (FMT_OVERLAP_ALL & ~bit), false },
        { FMT_OVERLAP_GIVEN | FMT_OVERLAP_ALL, true },
    };
    uint8_t before[CS], *all = malloc(disk.len);
    uint64_t len = disk.len;
    put_word(img_l2_at(9 * CS), victim | Q2_E_COPIED | (kept_zero ? Q2_E_ZERO : 0));
    memcpy(all, disk.bytes, len);
    for (unsigned i = 0; i < sizeof sets / sizeof sets[0]; i++) {
        memcpy(disk.bytes, all, len);
        memcpy(disk.durable, all, len);
        disk.len = disk.durable_len = len;
        memcpy(before, disk.bytes + victim, CS);
        memset(&told, 0, sizeof told);
        struct q2_image *q = img_open(co, &(struct opening){ .overlap = sets[i].given, .corrupted = on_corrupted, .no_punch = true });
        int r = g_write(co, q, 9 * CS + 1024, 512, 0xee);
        CHECK_EQ(r, sets[i].caught ? -EIO : 0);
        CHECK_EQ(told.count, sets[i].caught);
        if (sets[i].caught) {
            if (!CHECK(told.fatal && told.has_place && told.off == victim + 1024 && told.bytes == 512))
                fprintf(stderr, "bit %x set %u: %s (%#llx, %llu; victim %#llx)\n", bit, i, told.text, (unsigned long long)told.off, (unsigned long long)told.bytes, (unsigned long long)victim);
            CHECK(is_marked());
            CHECK_EQ(g_write(co, q, 0, CS, 1), -EIO);                  /* nothing goes on */
            CHECK(!g_holds(co, q, 0, CS, 2));
        } else {
            CHECK(!q->failed && disk.bytes[victim + 1024] == 0xee);    /* who asks for it gets it */
        }
        img_kill(co, q);
        if (sets[i].caught)
            CHECK(!memcmp(before, disk.bytes + victim, CS));
    }
    free(all);
}

static void kinds_body(struct co *co, void *arg)
{
    for (unsigned kept = 0; kept < 2; kept++)
        for (unsigned i = 0; i < 7; i++) {
            struct places p = damaged_base(co);
            const struct { uint64_t at; unsigned bit; bool by_default; } kinds[] = {
                { p.l1, FMT_OVERLAP_ACTIVE_L1, true }, { p.l2, FMT_OVERLAP_ACTIVE_L2, true }, { p.table, FMT_OVERLAP_REFCOUNT_TABLE, true },
                { p.block, FMT_OVERLAP_REFCOUNT_BLOCK, true }, { p.snapshots, FMT_OVERLAP_SNAPSHOT_TABLE, true },
                { p.old_l1, FMT_OVERLAP_INACTIVE_L1, true }, { p.old_l2, FMT_OVERLAP_INACTIVE_L2, false },
            };
            kind_of(co, kinds[i].at, kinds[i].bit, kinds[i].by_default, kept);
        }
}

static void test_kinds(void **state) { t_run(0, kinds_body, NULL); }

/* The snapshot table may be longer than its entries are at least: names count too. */
static void long_names_body(struct co *co, void *arg)
{
    char name[200];
    img_make(co, &plain);
    struct q2_image *q = img_open(co, &(struct opening){ 0 });
    CHECK_EQ(g_write(co, q, 9 * CS, CS, 1), 0);
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = 0;
    for (unsigned i = 0; i < 20; i++)
        CHECK_EQ(snapshot(co, q, FMT_SNAPSHOT_CREATE, name), 0);
    CHECK_EQ(g_write(co, q, 9 * CS, CS, 1), 0);
    uint64_t victim = q->h.snapshots_off + CS;
    CHECK(20 * sizeof(struct q2_disk_snapshot) < CS);
    CHECK_EQ(img_close(co, q), 0);
    put_word(img_l2_at(9 * CS), victim | Q2_E_COPIED);
    q = img_open(co, &(struct opening){ 0 });
    CHECK_EQ(g_write(co, q, 9 * CS, 512, 2), -EIO);
    img_kill(co, q);
    CHECK(is_marked());
}

static void test_long_names(void **state) { t_run(0, long_names_body, NULL); }

/* ---- tables that lie where they should not ---- */

static void expect_corrupt(struct co *co, uint64_t guest, uint64_t victim)
{
    uint8_t before[CS];
    memcpy(before, disk.bytes + victim, CS);
    memset(&told, 0, sizeof told);
    struct q2_image *q = img_open(co, &(struct opening){ .corrupted = on_corrupted, .no_punch = true });
    CHECK_EQ(g_write(co, q, guest, CS, 0xee), -EIO);
    CHECK(told.count == 1 && told.fatal);
    img_kill(co, q);
    CHECK(is_marked() && !memcmp(before, disk.bytes + victim, CS));
}

/* A table that nothing counts: its cluster looks free, and no other one does. */
static void look_free(const struct places *p, uint64_t at)
{
    const uint8_t zero[2] = { 0 };
    for (uint64_t c = 0; c < disk.len / CS; c++)
        if (disk.bytes[p->block + 2 * c] == 0 && disk.bytes[p->block + 2 * c + 1] == 0)
            disk.bytes[p->block + 2 * c + 1] = disk.durable[p->block + 2 * c + 1] = 1;
    memcpy(disk.bytes + p->block + 2 * (at / CS), zero, 2);
    memcpy(disk.durable + p->block + 2 * (at / CS), zero, 2);
}

static void tables_body(struct co *co, void *arg)
{
    for (unsigned i = 0; i < 5; i++) {               /* an L2 table over others; named a second time as the image's own */
        struct places p = damaged_base(co);
        const uint64_t at[] = { p.l1, p.table, p.block, p.snapshots, p.l2 };
        put_word(img_l1_at(5 * SPAN), at[i] | Q2_E_COPIED);
        expect_corrupt(co, 5 * SPAN, at[i]);
    }
    for (unsigned i = 0; i < 3; i++) {               /* a refcount block over others */
        struct places p = damaged_base(co);
        const uint64_t at[] = { p.l1, p.l2, p.table };
        put_word(p.table, at[i]);
        expect_corrupt(co, 3 * SPAN, at[i]);
    }
    for (unsigned i = 0; i < 5; i++) {               /* counts are not changed there */
        struct places p = damaged_base(co);
        const uint64_t at[] = { p.l1, p.l2, p.table, p.old_l1, p.snapshots };
        uint8_t before[CS];
        if (at[i] != p.table)
            memset(disk.bytes + at[i] + 64, 1, 64);  /* counts that can be changed, as far as they go */
        memcpy(before, disk.bytes + at[i], CS);
        put_word(p.table, at[i]);
        struct q2_image *q = img_open(co, &(struct opening){ .no_punch = true });
        if (at[i] == p.table)
            memcpy(before, disk.bytes + at[i], CS);
        CHECK_EQ(q2_refs_add(co, q, 40, 2, 1), -EUCLEAN);
        (void)!g_flush(co, q);
        img_kill(co, q);
        CHECK(!memcmp(before, disk.bytes + at[i], CS));
    }
    for (unsigned i = 0; i < 4; i++) {               /* tables that nothing counts: their clusters look free */
        struct places p = damaged_base(co);
        const uint64_t at[] = { p.l2, p.block, p.old_l1, p.l2 };
        look_free(&p, at[i]);
        expect_corrupt(co, (3 + i) * SPAN, at[i] == p.block ? p.l1 : at[i]);
    }
}

static void test_tables(void **state) { t_run(0, tables_body, NULL); }

/* The space that a snapshot's table gets lies in metadata, whatever its count says: the snapshot is refused, and nobody gets that space behind it. */
static void snapshot_body(struct co *co, void *arg)
{
    for (unsigned i = 0; i < 2; i++) {
        struct places p = damaged_base(co);
        uint64_t victim = i ? p.old_l1 : p.l2;
        uint8_t before[CS];
        look_free(&p, victim);
        memcpy(before, disk.bytes + victim, CS);
        struct q2_image *q = img_open(co, &(struct opening){ .no_punch = true });
        CHECK_EQ(snapshot(co, q, FMT_SNAPSHOT_CREATE, "b"), -EIO);
        CHECK(q2_marks_has(&q->alloc->given, victim / CS));
        CHECK(!rset_overlaps(&q->alloc->counted, victim / CS, victim / CS + 1));
        img_kill(co, q);
        CHECK(!memcmp(before, disk.bytes + victim, CS));
    }
}

static void test_snapshot(void **state) { t_run(0, snapshot_body, NULL); }

/* A mapping that is not the image's own names a table: it is replaced, and the table stays what it is. */
static void dropped_body(struct co *co, void *arg)
{
    for (unsigned i = 0; i < 4; i++) {
        struct places p = damaged_base(co);
        const uint64_t at[] = { p.l2, p.block, p.old_l1, p.l1 };
        uint8_t before[CS];
        put_word(img_l2_at(9 * CS), at[i]);
        memcpy(before, disk.bytes + at[i], CS);
        memset(&told, 0, sizeof told);
        struct q2_image *q = img_open(co, &(struct opening){ .corrupted = on_corrupted });
        CHECK_EQ(i % 2 ? q2_discard(co, &q->im, 9 * CS, CS) : g_write(co, q, 9 * CS, CS, 3), 0);
        CHECK_EQ(g_flush(co, q), 0);
        for (unsigned k = 0; k < 500; k++)
            co_yield(co);
        CHECK(q->failed && told.count == 1);
        if (at[i] != p.l2 && at[i] != p.block)       /* those two have changed, and are still what they were */
            CHECK(!memcmp(before, disk.bytes + at[i], CS));
        else
            CHECK(!mem_is_zero(disk.bytes + at[i], CS));
        img_kill(co, q);
        CHECK(is_marked());
    }
}

static void test_dropped(void **state) { t_run(0, dropped_body, NULL); }

/* A read-only image is not touched, goes on, and is told of once. */
static void read_only_body(struct co *co, void *arg)
{
    uint8_t buf[CS];
    (void)damaged_base(co);
    put_word(img_l2_at(9 * CS), 0x1200 | Q2_E_COPIED);
    memset(&told, 0, sizeof told);
    struct q2_image *q = img_open(co, &(struct opening){ .read_only = true, .corrupted = on_corrupted });
    for (unsigned i = 0; i < 3; i++)
        CHECK_EQ(g_read(co, q, 9 * CS, CS, buf), -EIO);
    CHECK(g_holds(co, q, 0, CS, 2) && told.count == 1 && !told.fatal);
    CHECK_EQ(img_close(co, q), 0);
    CHECK(!is_marked());
    memset(&told, 0, sizeof told);                   /* for writing, a read is enough to know that nothing can be relied on */
    q = img_open(co, &(struct opening){ .corrupted = on_corrupted });
    CHECK_EQ(g_read(co, q, 9 * CS, CS, buf), -EIO);
    CHECK(told.count == 1 && told.fatal && is_marked());
    CHECK(!g_holds(co, q, 0, CS, 2));
    img_kill(co, q);
}

static void test_read_only(void **state) { t_run(0, read_only_body, NULL); }

/* ---- Q22: the mark first, then nothing ---- */

static struct {
    struct q2_image *q;
    unsigned n, fail_at; bool persistent, land;
    bool header_over;                    /* the request that makes the mark durable has ended */
    unsigned late;                       /* writes behind that, or beside the header once the image is refused */
} cut;

static int q22_hook(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    for (unsigned i = 0; i < 3; i++)
        co_yield(co);
    bool marking = what == 'W' && off == 0 && len == 512 && buf && be64_get((const be64 *)(buf + 72)) & Q2_INCOMPAT_CORRUPT;
    cut.header_over |= marking;
    if (cut.header_over && what == 'W' && off != 0)
        cut.late++;
    if (++cut.n < cut.fail_at || (cut.n > cut.fail_at && !cut.persistent))
        return 0;
    disk.land = cut.land;
    return -EIO;
}

static void flush_co(struct co *co, void *arg)
{
    bool *over = arg;
    (void)!g_flush(co, cut.q);
    *over = true;
}

/* Dirty tables and a pass that writes them, while the write that is stopped comes. false: nothing failed any more. */
static bool q22_round(struct co *co, unsigned mode, bool crash)
{
    struct places p = damaged_base(co);
    bool over = false;
    put_word(img_l2_at(9 * CS), p.l2 | Q2_E_COPIED);
    struct q2_image *q = cut.q = img_open(co, &(struct opening){ .no_punch = true });
    CHECK_EQ(g_write(co, q, 2 * SPAN, CS, 7), 0);
    CHECK_EQ(g_write(co, q, 20 * CS, CS, 7), 0);
    cut.n = cut.late = 0;
    cut.header_over = false;
    cut.persistent = mode & 1;
    cut.land = mode & 2;
    disk.hook = q22_hook;
    CHECK_EQ(rt_spawn(q->im.home, flush_co, &over), 0);
    for (unsigned i = 0; i < 4 * (mode >> 2); i++)   /* the pass is somewhere in the middle */
        co_yield(co);
    CHECK_EQ(g_write(co, q, 9 * CS, 512, 0xee), -EIO);
    while (!over)
        co_yield(co);
    bool failed = cut.n >= cut.fail_at;
    CHECK_EQ(g_flush(co, q), -EIO);
    CHECK_EQ(g_write(co, q, 0, CS, 9), -EIO);
    CHECK(cut.late == 0);
    CHECK(q->failed && (failed || is_marked()));
    if (crash)
        img_crash(co, q);
    else
        img_kill(co, q);
    CHECK(disk.bytes[p.l2] != 0xee && disk.bytes[p.l2 + 511] != 0xee);       /* no guest data in a table */
    struct fmt_image *im = NULL;
    int r = img_try_open(co, &(struct opening){ 0 }, &im);
    CHECK_EQ(r, is_marked() ? -EACCES : 0);
    if (im)
        img_kill(co, q2_of(im));
    return failed;
}

static void q22_body(struct co *co, void *arg)
{
    for (unsigned mode = 0; mode < 24; mode += 5)
        for (cut.fail_at = 1; q22_round(co, mode, cut.fail_at & 1); cut.fail_at += t_share())
            if (!CHECK(cut.fail_at < 200))
                break;
}

static void test_q22(void **state) { t_run(0, q22_body, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_right, NULL), cmocka_unit_test(test_many), cmocka_unit_test(test_kinds), cmocka_unit_test(test_long_names), cmocka_unit_test(test_tables),
        cmocka_unit_test(test_snapshot), cmocka_unit_test(test_dropped), cmocka_unit_test(test_read_only), cmocka_unit_test(test_q22),
    };
    int failed = 0;
    (void)disk_setup(NULL);
    failed = T_MAIN("qcow2 guard", tests);
    (void)disk_teardown(NULL);
    return failed;
}
