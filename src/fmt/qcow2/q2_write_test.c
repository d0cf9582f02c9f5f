/* SPDX-License-Identifier: MIT
 *
 * q2_write_test.c: the plan of an allocating write, for every kind of entry, flag and layer below.
 *
 * Purpose      Tables of q2_write_plan() for short entries and of fill_in(): what must be filled, what may go without the
 *              data barrier (Q23, W3 of q2_write.c), how far one plan reaches.
 * Owns         A slice of 64 entries in memory; no image is open.
 * Invariants   None.
 * Concurrency  Pure.
 * Failure      A failed row fails the test.
 * Tests        This is one.
 */
#include "base/test.h"

#include "fmt/qcow2/q2_write.c"

#define CLUSTER 65536ull
#define HOST 0x500000ull
#define METADATA 0x300000ull             /* where the L1 table lies */

static struct q2_image image;
static struct stor store;
static _Atomic uint64_t words[64];
static struct meta_block block = { .words = words };

static void setup(uint64_t below_zero_from)
{
    image = (struct q2_image){ .g = q2_geom_make(3, 16, 4, false), .overlap = FMT_OVERLAP_CONSTANT };
    q2_slices_set(&image, 512);
    image.im.store = image.im.data = &store;
    store.traits = (struct stor_traits){ .regular = true, .zero_growth = true, .zero_crash = true };
    atomic_store(&image.im.below_zero_from, below_zero_from);
    image.h.l1_off = METADATA;
    image.h.l1_size = 100;
    q2_fixed_update(&image);
}

static void put(unsigned i, enum q2_kind kind, bool copied, uint64_t host)
{
    struct q2_l2e e = { .kind = kind, .copied = copied, .host = kind == Q2_UNALLOCATED || kind == Q2_ZERO_PLAIN ? 0 : host, .comp_bytes = 512 };
    atomic_store(&words[i], be64_word(q2_l2e_encode(&image.g, &e)));
}

static int make_plan(unsigned index, unsigned max, uint64_t guest, struct q2_wplan *ret)
{
    struct q2_wspan s = { &block, index, max, guest, max * CLUSTER };
    return q2_write_plan(&image, &s, ret);
}

/* ---- one entry ---- */

struct one { enum q2_kind kind; bool copied; enum q2_need need; bool zero_alone, zero_over; };    /* zero: without and over a backing image */
static const struct one ones[] = {
    { Q2_UNALLOCATED, false, Q2_NEED_CLUSTER,   true,  false },
    { Q2_UNALLOCATED, true,  Q2_NEED_CLUSTER,   true,  false },
    { Q2_ZERO_PLAIN,  false, Q2_NEED_CLUSTER,   true,  true },
    { Q2_ZERO_PLAIN,  true,  Q2_NEED_CLUSTER,   true,  true },
    { Q2_ZERO_ALLOC,  false, Q2_NEED_CLUSTER,   true,  true },          /* shared: what it keeps is not ours */
    { Q2_ZERO_ALLOC,  true,  Q2_NEED_KEPT, true,  true },
    { Q2_NORMAL,      false, Q2_NEED_CLUSTER,   false, false },
    { Q2_NORMAL,      true,  Q2_NEED_NOTHING,   false, false },
    { Q2_COMPRESSED,  false, Q2_NEED_CLUSTER,   false, false },
    { Q2_COMPRESSED,  true,  Q2_NEED_CLUSTER,   false, false },
};
enum { ONES = sizeof ones / sizeof ones[0] };

static void test_one(void **state)
{
    for (unsigned i = 0; i < ONES; i++)
        for (unsigned over = 0; over < 2; over++) {
            struct q2_wplan p;
            bool zero = over ? ones[i].zero_over : ones[i].zero_alone;
            setup(over ? UINT64_MAX : 0);
            put(5, ones[i].kind, ones[i].copied, HOST);
            assert_int_equal(make_plan(5, 1, 5 * CLUSTER, &p), 0);
            if (p.need != ones[i].need || p.zero_first != zero)
                fail_msg("row %u, %s backing", i, over ? "with" : "without");
            if (p.need == Q2_NEED_NOTHING)
                continue;
            assert_int_equal(p.n, 1);
            assert_int_equal(p.zero_last, zero);
            assert_int_equal(p.zero_all, zero);
            if (p.need == Q2_NEED_KEPT)
                assert_int_equal(p.host, HOST);
        }
}

/* The layer below ends inside the range: what lies behind its end reads zero (11.009). */
static void test_border(void **state)
{
    struct q2_wplan p;
    setup(5 * CLUSTER + 512);
    for (unsigned i = 0; i < 8; i++)
        put(i, Q2_UNALLOCATED, false, 0);
    assert_int_equal(make_plan(5, 1, 5 * CLUSTER, &p), 0);
    assert_false(p.zero_first);          /* its first bytes may come from below */
    assert_int_equal(make_plan(6, 1, 6 * CLUSTER, &p), 0);
    assert_true(p.zero_first);
    assert_int_equal(make_plan(4, 4, 4 * CLUSTER, &p), 0);
    assert_int_equal(p.n, 4);
    assert_true(!p.zero_first && p.zero_last && !p.zero_all);
}

/* ---- two entries: how far does one plan reach? ---- */

static void test_two(void **state)
{
    for (unsigned n = 0; n < ONES * ONES * 2; n++) {
        const struct one *a = &ones[n % ONES], *b = &ones[n / ONES % ONES];
        bool apart = n / (ONES * ONES);
        struct q2_wplan p;
        setup(UINT64_MAX);
        put(0, a->kind, a->copied, HOST);
        put(1, b->kind, b->copied, HOST + CLUSTER + (apart ? CLUSTER : 0));
        put(2, Q2_NORMAL, true, HOST * 2);
        assert_int_equal(make_plan(0, 3, 0, &p), 0);
        if (a->need == Q2_NEED_NOTHING)
            continue;                    /* nothing is held: map() is asked again */
        unsigned want = a->need == b->need && (a->need == Q2_NEED_CLUSTER || !apart) ? 2 : 1;
        if (p.n != want || p.zero_first != a->zero_over || p.zero_last != (want == 2 ? b : a)->zero_over ||
            p.zero_all != (a->zero_over && (want == 1 || b->zero_over)))
            fail_msg("pair %u", n);
    }
}

/* ---- damage ---- */

static void test_damage(void **state)
{
    struct q2_wplan p;
    setup(0);
    for (unsigned kind = 0; kind < 2; kind++) {          /* metadata as own data: in place, kept zero (1.048) */
        put(0, kind ? Q2_ZERO_ALLOC : Q2_NORMAL, true, METADATA);
        assert_int_equal(make_plan(0, 1, 0, &p), -EUCLEAN);
        put(0, Q2_ZERO_ALLOC, true, METADATA - CLUSTER);
        put(1, kind ? Q2_ZERO_ALLOC : Q2_NORMAL, true, METADATA);
        assert_int_equal(make_plan(0, 2, 0, &p), 0);
        assert_int_equal(p.n, 1);        /* stops in front of it */
    }
    put(0, Q2_NORMAL, false, METADATA);  /* shared: it is only read, and replaced */
    assert_int_equal(make_plan(0, 1, 0, &p), 0);
    atomic_store(&words[0], be64_word(HOST | 1ull << 60));
    assert_int_equal(make_plan(0, 1, 0, &p), -EUCLEAN);
    put(0, Q2_UNALLOCATED, false, 0);
    atomic_store(&words[1], be64_word(HOST | 1ull << 60));
    assert_int_equal(make_plan(0, 2, 0, &p), 0);
    assert_int_equal(p.n, 1);
}

/* The places where nothing of the guest can lie (1.112, "constant"). */
static void test_places(void **state)
{
    setup(0);
    image.h.rt_off = 10 * CLUSTER;
    image.h.rt_clusters = 2;
    image.h.snapshots_off = 20 * CLUSTER;
    image.h.nb_snapshots = 2;
    image.h.has_bitmaps = true;
    image.h.bitmap_dir_off = 30 * CLUSTER;
    image.h.bitmap_dir_bytes = 100;
    for (unsigned bitmaps = 0; bitmaps < 2; bitmaps++) {
        image.h.autoclear = bitmaps ? Q2_AUTOCLEAR_BITMAPS : 0;
        q2_fixed_update(&image);
        for (uint64_t c = 0; c < 60; c++) {
            bool want = c == 0 || c == METADATA / CLUSTER || c == 10 || c == 11 || c == 20 || (bitmaps && c == 30);
            if (q2_hits_metadata(&image, c * CLUSTER) != want)
                fail_msg("cluster %u", (unsigned)c);
        }
    }
}

/* ---- what is filled, and what may go without the barrier ---- */

enum { NEW_ZERO = 1, NEW_SETTLED = 2, KEPT = 4, CRASH_ZERO = 8, STREAMED = 16 };
struct fill_row { unsigned what; bool zero_first, zero_last, zero_all; uint64_t off, len; uint32_t n; enum fmt_fill fill; bool independent; };
#define GOOD (NEW_ZERO | NEW_SETTLED | CRASH_ZERO)
static const struct fill_row fills[] = {
    /* whole clusters: nothing to fill; independent only with everything that Q23 asks */
    { GOOD,                   true,  true,  true,  0, CLUSTER, 1, FMT_FILL_NONE, true },
    { GOOD,                   false, false, false, 0, CLUSTER, 1, FMT_FILL_NONE, false },        /* had data, or backing data */
    { NEW_ZERO | NEW_SETTLED, true,  true,  true,  0, CLUSTER, 1, FMT_FILL_NONE, false },        /* a crash may show old blocks */
    { NEW_ZERO | CRASH_ZERO,  true,  true,  true,  0, CLUSTER, 1, FMT_FILL_NONE, false },        /* its count is not durable */
    { NEW_SETTLED | CRASH_ZERO, true, true, true,  0, CLUSTER, 1, FMT_FILL_NONE, false },        /* reused */
    { KEPT | CRASH_ZERO,      true,  true,  true,  0, CLUSTER, 1, FMT_FILL_NONE, false },        /* holds old bytes */
    /* a part of one */
    { GOOD,                   true,  true,  true,  4096, 512, 1, FMT_FILL_NONE, true },
    { NEW_ZERO | NEW_SETTLED, true,  true,  true,  4096, 512, 1, FMT_FILL_NONE, false },
    { 0,                      true,  true,  true,  4096, 512, 1, FMT_FILL_ZERO, false },
    { GOOD | STREAMED,        true,  true,  true,  4096, 512, 1, FMT_FILL_ZERO, false },         /* others follow at once (W7) */
    { GOOD | STREAMED,        true,  true,  true,  0, CLUSTER, 1, FMT_FILL_NONE, true },
    { KEPT,                   true,  true,  true,  4096, 512, 1, FMT_FILL_ZERO, false },
    { GOOD,                   false, false, false, 4096, 512, 1, FMT_FILL_READ, false },
    { 0,                      false, false, false, 4096, 512, 1, FMT_FILL_READ, false },
    /* several: only the first has a head, only the last a tail */
    { GOOD,                   true,  false, false, 4096, 3 * CLUSTER - 4096, 3, FMT_FILL_NONE, false },     /* no tail */
    { GOOD,                   false, true,  false, 4096, 3 * CLUSTER - 4096, 3, FMT_FILL_READ, false },
    { GOOD,                   false, true,  false, 0, 2 * CLUSTER + 512, 3, FMT_FILL_NONE, false },         /* no head */
    { GOOD,                   true,  false, false, 0, 2 * CLUSTER + 512, 3, FMT_FILL_READ, false },
    { 0,                      true,  true,  false, 512, 2 * CLUSTER + 512, 3, FMT_FILL_ZERO, false },
    { GOOD,                   true,  true,  false, 512, 2 * CLUSTER + 512, 3, FMT_FILL_NONE, false },       /* data in the middle goes */
    { GOOD,                   true,  true,  true,  512, 2 * CLUSTER + 512, 3, FMT_FILL_NONE, true },
};

static void test_fill(void **state)
{
    for (size_t i = 0; i < sizeof fills / sizeof fills[0]; i++) {
        const struct fill_row *f = &fills[i];
        const uint64_t guest = 10 * CLUSTER;
        struct q2_wplan p = { .need = f->what & KEPT ? Q2_NEED_KEPT : Q2_NEED_CLUSTER, .n = f->n, .zero_first = f->zero_first, .zero_last = f->zero_last, .zero_all = f->zero_all,
            .start = guest, .stop = guest + f->n * CLUSTER };
        struct write_txn t = { .n = f->n, .host = HOST, .streamed = f->what & STREAMED };
        struct fmt_write w = { 0 };
        setup(0);
        store.traits.zero_crash = f->what & CRASH_ZERO;
        if (!(f->what & KEPT))
            t.run = (struct q2_run){ .cluster = HOST / CLUSTER, .count = f->n, .known_zero = f->what & NEW_ZERO, .settled = f->what & NEW_SETTLED };
        fill_in(&image, &t, &p, guest + f->off, f->len, &w);
        if (w.fill != f->fill || t.independent != f->independent)
            fail_msg("row %zu: fill %d, independent %d", i, (int)w.fill, t.independent);
        assert_int_equal(w.off, guest + f->off);
        assert_int_equal(w.len, f->len);
        assert_int_equal(w.host, HOST + f->off);
        assert_int_equal(w.head, f->off);
        assert_int_equal(w.head + w.len + w.tail, f->n * CLUSTER);
    }
}

static void test_streams(void **state)
{
    (void)state;
    setup(0);
    assert_false(fmt_streams_go_on(&image.streams, 0, 4096));              /* nothing was there before */
    assert_true(fmt_streams_go_on(&image.streams, 4096, 8192));
    assert_false(fmt_streams_go_on(&image.streams, 4096, 8192));           /* not where one ended any more */
    for (uint64_t i = 1; i < FMT_STREAMS; i++)
        assert_false(fmt_streams_go_on(&image.streams, i << 30, (i << 30) + 512));
    for (uint64_t i = 1; i < FMT_STREAMS; i++)            /* as many at once as are remembered */
        assert_true(fmt_streams_go_on(&image.streams, (i << 30) + 512, (i << 30) + 1024));
    for (uint64_t off = 1 << 20; off < 2 << 20; off += 65536)
        assert_false(fmt_streams_go_on(&image.streams, off, off + 4096));  /* strides are none */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one), cmocka_unit_test(test_border), cmocka_unit_test(test_two), cmocka_unit_test(test_damage), cmocka_unit_test(test_places), cmocka_unit_test(test_fill), cmocka_unit_test(test_streams),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
