/* SPDX-License-Identifier: MIT
 *
 * q2_lazy_test.c: lazy refcounts (FEATURES 1.029, 1.114, 1.131): when the dirty bit is there, what is written in between,
 * and what a crash leaves.
 */
#include <stdlib.h>
#include <string.h>

#include "fmt/qcow2/q2_disk_test.h"

#define KIB 1024ull
#define MIB (1024 * KIB)

static const struct make lazy = { 3, 16, 4096, 8 * MIB, true };
static const struct make eager = { 3, 16, 4096, 8 * MIB, false };

static bool marked(void) { return disk.bytes[79] & 1; }
static bool marked_durably(void) { return disk.durable[79] & 1; }

/* ---- the bit ---- */

static struct { struct q2_image *q; unsigned table_writes, unmarked, count_writes; uint64_t block; } seen;

/* Every write of an L2 table finds the bit durable; writes of the first refcount block are counted. */
static int watch(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    if (what == 'W' && off >= seen.block && off < seen.block + 4096)
        seen.count_writes++;
    if (what == 'W' && meta_cached(seen.q->meta, off, len) && !(off >= seen.block && off < seen.block + 4096)) {
        seen.table_writes++;
        seen.unmarked += !marked_durably();
    }
    return 0;
}

static void bit_body(struct co *co, void *arg)
{
    img_make(co, &lazy);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 64 * 4096 });
    CHECK(!marked());                                /* opening alone is no reason */
    CHECK(g_holds(co, q, 0, 4096, 0));
    CHECK_EQ(g_flush(co, q), 0);
    CHECK(!marked());
    seen.q = q;
    seen.block = q->rt[0];
    disk.hook = watch;
    CHECK_EQ(g_write(co, q, 0, 4096, 0x11), 0);
    CHECK(marked_durably());                         /* before the allocation was answered */
    CHECK_EQ(g_flush(co, q), 0);
    unsigned counts = seen.count_writes;
    for (uint64_t i = 1; i < 40; i++) {              /* inside the space that was reserved: no count is written any more */
        CHECK_EQ(g_write(co, q, i * 64 * KIB, 4096, 0x22), 0);
        CHECK_EQ(q2_discard(co, &q->im, (i - 1) * 64 * KIB, 4096), 0);
        CHECK_EQ(g_flush(co, q), 0);
    }
    CHECK_EQ(seen.count_writes, counts);
    CHECK(seen.table_writes >= 40);
    CHECK_EQ(seen.unmarked, 0);
    CHECK(meta_is_clean(q->meta));                   /* a flush has nothing to wait for because of late counts */
    disk.hook = NULL;
    CHECK(states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    CHECK(!marked_durably());
    uint64_t leaks;
    CHECK_EQ(img_faults(co, &leaks), 0);
    CHECK_EQ(leaks, 0);
}

static void test_bit(void **state) { t_run(0, bit_body, NULL); }

/* FEATURES 1.131: the option of an opening against what the image says; version 2 cannot. */
static void option_body(struct co *co, void *arg)
{
    static const struct { const struct make *m; signed char opt; bool dirty; } t[] = {
        { &lazy, 0, true }, { &lazy, -1, false }, { &eager, 0, false }, { &eager, 1, true },
    };
    for (unsigned i = 0; i < 4; i++) {
        img_make(co, t[i].m);
        struct q2_image *q = img_open(co, &(struct opening){ .lazy = t[i].opt });
        CHECK_EQ(g_write(co, q, 0, 4096, 0x11), 0);
        CHECK(marked() == t[i].dirty);
        CHECK_EQ(img_close(co, q), 0);
        CHECK(!marked());
        CHECK_EQ(img_faults(co, NULL), 0);
    }
    struct fmt_image *im;
    img_make(co, &(struct make){ 2, 16, 4096, 8 * MIB });
    CHECK_EQ(img_try_open(co, &(struct opening){ .lazy = 1 }, &im), -EINVAL);
    struct q2_image *q = img_open(co, &(struct opening){ .lazy = -1 });
    CHECK_EQ(img_close(co, q), 0);
}

static void test_option(void **state) { t_run(0, option_body, NULL); }

/* ---- failures ---- */

static unsigned fail_left;
static int fail_header(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    return what == 'W' && off == 0 && fail_left && fail_left-- ? -EIO : 0;
}

/* No bit, no allocation; the next one tries again. A bit that cannot be taken away stays, and the next opening mends. */
static void failure_body(struct co *co, void *arg)
{
    img_make(co, &lazy);
    struct q2_image *q = img_open(co, &(struct opening){ 0 });
    disk.hook = fail_header;
    fail_left = 1;
    CHECK_EQ(g_write(co, q, 0, 4096, 0x11), -EIO);
    CHECK(!marked());
    CHECK_EQ(g_write(co, q, 0, 4096, 0x11), 0);
    CHECK(marked());
    CHECK_EQ(g_flush(co, q), 0);
    fail_left = 2;
    CHECK(img_close(co, q) < 0);
    disk.hook = NULL;
    CHECK(marked());
    q = img_open(co, &(struct opening){ 0 });
    CHECK(!marked());
    CHECK(g_holds(co, q, 0, 4096, 0x11));
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, NULL), 0);
}

static void test_failure(void **state) { t_run(0, failure_body, NULL); }

/* FEATURES 1.114: killed or without power, what was flushed is there, and an opening for writing makes the image clean. */
static void crash_body(struct co *co, void *arg)
{
    for (unsigned kill = 0; kill < 2; kill++) {
        img_make(co, &lazy);
        struct q2_image *q = img_open(co, &(struct opening){ 0 });
        for (uint64_t i = 0; i < 60; i++)
            CHECK_EQ(g_write(co, q, 6 * MIB + i * 4096, 4096, 0x22), 0);
        CHECK_EQ(img_close(co, q), 0);
        q = img_open(co, &(struct opening){ 0 });
        CHECK_EQ(q2_discard(co, &q->im, 6 * MIB, 50 * 4096), 0);
        CHECK_EQ(img_close(co, q), 0);               /* free clusters between used ones */
        q = img_open(co, &(struct opening){ .frontier_bytes = 16 * 4096 });
        for (uint64_t i = 0; i < 20; i++)
            CHECK_EQ(g_write(co, q, i * 8192, 4096, 0x33), 0);
        CHECK_EQ(g_flush(co, q), 0);
        CHECK_EQ(g_write(co, q, 4 * MIB, 4096, 0x44), 0);
        (kill ? img_kill : img_crash)(co, q);
        CHECK(marked());
        CHECK(img_faults(co, NULL) > 0);             /* the counts are late indeed */
        q = img_open(co, &(struct opening){ .read_only = true });
        CHECK(g_holds(co, q, 19 * 8192, 4096, 0x33));
        CHECK_EQ(img_close(co, q), 0);
        CHECK(marked());                             /* FEATURES 1.023: reading changes nothing */
        q = img_open(co, &(struct opening){ 0 });
        CHECK(!marked());
        for (uint64_t i = 0; i < 20; i++)
            CHECK(g_holds(co, q, i * 8192, 4096, 0x33));
        CHECK_EQ(img_close(co, q), 0);
        CHECK_EQ(img_faults(co, NULL), 0);
    }
}

static void test_crash(void **state) { t_run(0, crash_body, NULL); }

/* A cache that is full of late counts writes them all the same. */
static void pressure_body(struct co *co, void *arg)
{
    img_make(co, &(struct make){ 3, 64, 512, 8 * MIB, true });
    struct q2_image *q = img_open(co, &(struct opening){ .cache_bytes = 32 * KIB, .frontier_bytes = 512 * KIB });
    for (uint64_t off = 0; off < 8 * MIB; off += 512)
        CHECK_EQ(g_write(co, q, off, 512, 0x55), 0);
    CHECK_EQ(g_flush(co, q), 0);
    CHECK(states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, NULL), 0);
}

static void test_pressure(void **state) { t_run(0, pressure_body, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bit), cmocka_unit_test(test_option), cmocka_unit_test(test_failure), cmocka_unit_test(test_crash),
        cmocka_unit_test(test_pressure),
    };
    ASSERT(disk_setup(NULL) == 0);
    int failed = T_MAIN("qcow2 lazy", tests);
    disk_teardown(NULL);
    return failed;
}
