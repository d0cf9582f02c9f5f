/* SPDX-License-Identifier: MIT
 *
 * qed_read_test.c: creation, opening, mapping, describing and checking of images whose tables are written by hand.
 *
 * Purpose      What each table entry means for a reader and for the check; what is refused.
 * Owns         A file in a scratch folder.
 * Invariants   None.
 * Concurrency  One loop at a time.
 * Failure      A failed check fails the test.
 * Tests        This is one. FEATURES 2.003, 2.004, 2.005, 2.006, 2.007, 2.009, 2.010, 2.020, 2.021, 2.022, 2.023
 */
#include "stor/stor_test.h"

#include <stdio.h>
#include <string.h>

#include "fmt/qed/qed_image.h"

#define C 4096u                                   /* cluster size */
#define T 2u                                      /* table size: 1024 entries */
#define SPAN (1024ull * C)
#define L2 (3ull * C)                             /* where the tests put the first L2 table */
#define DATA (5ull * C)                           /* first cluster behind it */

static struct stor *file_of(struct co *co, bool fresh, bool read_only)
{
    struct stor_file_opts o = { .create = fresh, .truncate_to_zero = fresh, .read_only = read_only };
    struct stor *s = NULL;
    CHECK_EQ(stor_file_open(co, t_path("x.qed"), &o, &s, NULL), 0);
    return s;
}

static void make(struct co *co, const struct fmt_create_opts *o)
{
    struct stor *s = file_of(co, true, false);
    CHECK_EQ(fmt_qed_ops.create(co, NULL, o, NULL), 0);
    CHECK_EQ(fmt_qed_ops.create(co, s, o, NULL), 0);
    stor_close(co, s);
}

/* Writes little-endian words; a file gets `clusters` clusters when that is more than it has. */
struct word { uint64_t off, v; };
static void poke(struct co *co, const struct word *w, unsigned n, uint64_t clusters)
{
    struct stor *s = file_of(co, false, false);
    if (clusters)
        CHECK_EQ(stor_truncate(co, s, clusters * C), 0);
    for (unsigned i = 0; i < n; i++) {
        le64 v;
        le64_put(&v, w[i].v);
        CHECK_EQ(stor_write_buf(co, s, &v, sizeof v, w[i].off, 0), 0);
    }
    stor_close(co, s);
}

static struct fmt_image *open_with(struct co *co, const struct fmt_open_opts *o, int want)
{
    struct stor *s = file_of(co, false, true);
    struct fmt_image *im = NULL;
    CHECK_EQ(fmt_qed_ops.open(co, s, o, &im, NULL), want);
    if (!im)
        stor_close(co, s);
    return im;
}

static struct fmt_image *open_image(struct co *co) { return open_with(co, &(struct fmt_open_opts){ .read_only = true }, 0); }

/* A small image with one L2 table; the words of the row on top. */
static struct fmt_image *image_of(struct co *co, const struct word *w, unsigned n, uint64_t clusters)
{
    struct word first = { C, L2 };
    make(co, &(struct fmt_create_opts){ .size = 4 * SPAN, .cluster_size = C, .table_size = T });
    poke(co, &first, 1, clusters);
    poke(co, w, n, 0);
    return open_image(co);
}

/* FEATURES 2.009, 2.010, 2.021: every kind of entry. */
static void mapping(struct co *co, void *arg)
{
    static const struct word w[] = {
        { L2 + 0 * 8, DATA }, { L2 + 1 * 8, DATA + C }, { L2 + 2 * 8, DATA + 3 * C }, { L2 + 3 * 8, 1 }, { L2 + 4 * 8, 1 },
        { L2 + 6 * 8, DATA + 2 * C + 512 }, { L2 + 7 * 8, DATA + 5 * C }, { L2 + 8 * 8, 2 }, { L2 + 9 * 8, DATA + 4 * C },
        { C + 2 * 8, 1 }, { C + 3 * 8, 9 * C }, { L2 + 511 * 8, 1 }, { L2 + 512 * 8, 1 },
    };
    struct fmt_image *im = image_of(co, w, sizeof w / sizeof w[0], 10);
    static const struct { uint64_t off; int r; enum fmt_kind kind; uint64_t len, host; } rows[] = {
        { 0, 0, FMT_DATA, 2 * C, DATA }, { 100, 0, FMT_DATA, 2 * C - 100, DATA + 100 }, { 2 * C, 0, FMT_DATA, C, DATA + 3 * C },
        { 3 * C, 0, FMT_ZERO, 2 * C, 0 }, { 5 * C, 0, FMT_ABSENT, C, 0 }, { 6 * C, -EIO, 0, 0, 0 }, { 7 * C, -EIO, 0, 0, 0 },
        { 8 * C, -EIO, 0, 0, 0 }, { 9 * C, 0, FMT_DATA, C, DATA + 4 * C }, { 10 * C, 0, FMT_ABSENT, 501 * C, 0 },
        { 511 * C, 0, FMT_ZERO, C, 0 }, { 512 * C, 0, FMT_ZERO, C, 0 }, { SPAN, 0, FMT_ABSENT, SPAN, 0 },
        { 2 * SPAN, -EIO, 0, 0, 0 }, { 3 * SPAN + C, -EIO, 0, 0, 0 },
    };
    CHECK(im->read_only && im->size == 4 * SPAN && im->cluster == C && im->below_zero_from == 0);
    for (unsigned twice = 0; twice < 2; twice++)
        for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
            struct fmt_extent e = { 0 };
            epoch_token t = epoch_enter(im->epoch, co_loop(co));
            int r = im->ops->map(co, im, rows[i].off, im->size - rows[i].off, &e);
            epoch_leave(im->epoch, co_loop(co), t);
            CHECK_EQ(r, rows[i].r);
            if (!r)
                CHECK(e.kind == rows[i].kind && e.len == rows[i].len && e.has_host == (e.kind == FMT_DATA) && (!e.has_host || e.host == rows[i].host) && !e.writable);
        }
    CHECK_EQ(im->ops->close(co, im), 0);
}

static void count(void *arg, bool fixed, const char *id, const char *text)
{
    CHECK(!fixed && !strncmp(id, "QED_", 4) && text[0]);
    ++*(unsigned *)arg;
}

/* FEATURES 2.020, 2.021: one rule broken per row; sound tables are L2 with data in DATA, DATA+C. */
static void checking(struct co *co, void *arg)
{
    static const struct { struct word w[2]; uint64_t clusters, corruptions, leaks, allocated, fragmented; } rows[] = {
        { { { L2, DATA }, { L2 + 8, DATA + C } }, 7, 0, 0, 2, 0 },
        { { { L2, DATA + C }, { L2 + 8, DATA } }, 7, 0, 0, 2, 1 },
        { { { L2, DATA }, { L2 + 8, 1 } }, 7, 0, 1, 1, 0 },
        { { { L2, DATA }, { L2 + 8, DATA } }, 7, 1, 1, 2, 1 },
        { { { L2, DATA }, { L2 + 8, DATA + C } }, 6, 1, 0, 2, 0 },
        { { { L2, DATA }, { L2 + 8, DATA + C + 512 } }, 7, 1, 1, 2, 1 },
        { { { L2, DATA }, { L2 + 8, 512 } }, 7, 1, 1, 2, 1 },
        { { { L2, DATA }, { L2 + 8, L2 } }, 7, 1, 1, 2, 1 },
        { { { L2, DATA }, { L2 + 8, C } }, 7, 1, 1, 2, 1 },
        { { { C, 1 }, { 0, 0x0000100000444551 } }, 7, 1, 4, 0, 0 },
        { { { C + 8, L2 }, { L2, DATA } }, 6, 2, 0, 1, 0 },
        { { { C + 8, DATA }, { L2, DATA } }, 7, 1, 0, 1, 0 },
        { { { C + 1023 * 8, 3 }, { L2, DATA } }, 6, 1, 0, 1, 0 },
        { { { L2 + 1023 * 8, DATA }, { L2, 0 } }, 40000, 0, 39994, 1, 0 },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct fmt_image *im = image_of(co, rows[i].w, 2, rows[i].clusters);
        unsigned told = 0;
        struct fmt_check_opts o = { .finding = count, .arg = &told };
        struct fmt_check_result r = { 0 };
        CHECK_EQ(im->ops->check(co, im, &o, &r, NULL), 0);
        bool ok = CHECK_EQ(r.corruptions, rows[i].corruptions);
        ok &= CHECK_EQ(r.leaks, rows[i].leaks);
        ok &= CHECK_EQ(r.allocated_clusters, rows[i].allocated);
        ok &= CHECK_EQ(r.fragmented_clusters, rows[i].fragmented);
        ok &= CHECK_EQ(r.check_errors, 0);
        ok &= CHECK_EQ(r.total_clusters, 4096);
        ok &= CHECK_EQ(told > 0, r.corruptions || r.leaks);
        if (!ok)
            fprintf(stderr, "row %zu\n", i);
        o.fix = FMT_FIX_LEAKS;
        CHECK_EQ(im->ops->check(co, im, &o, &r, NULL), -EROFS);
        CHECK_EQ(im->ops->close(co, im), 0);
    }
}

/* A check alone writes nothing. */
static void reading_only(struct co *co, void *arg)
{
    make(co, &(struct fmt_create_opts){ .size = 1 << 20 });
    struct fmt_image *im = open_with(co, &(struct fmt_open_opts){ .read_only = true, .check_mode = true }, 0);
    CHECK_EQ(im->ops->flush(co, im), 0);
    CHECK_EQ(im->ops->close(co, im), 0);
}

/* FEATURES 2.005, 2.006, 2.007, 2.022: what an image says of itself. */
static void describing(struct co *co, void *arg)
{
    static const struct { const char *name, *format, *want_format; uint64_t features; } rows[] = {
        { NULL, NULL, NULL, 0 }, { "base", "raw", "raw", 5 }, { "base.qcow2", "qcow2", NULL, 1 }, { "base", NULL, NULL, 1 },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct fmt_create_opts o = { .size = 1 << 20, .backing_file = (char *)rows[i].name, .backing_fmt = (char *)rows[i].format };
        make(co, &o);
        struct fmt_image *im = open_with(co, &(struct fmt_open_opts){ .read_only = true, .info_only = true }, 0);
        struct fmt_info f = { 0 };
        CHECK_EQ(im->ops->info(co, im, &f, NULL), 0);
        CHECK(f.virtual_size == 1 << 20 && f.cluster_size == 65536 && !f.dirty && !f.is_qcow2 && !f.vm_state_offset);
        CHECK(!f.backing_name == !rows[i].name && (!f.backing_name || !strcmp(f.backing_name, rows[i].name)));
        CHECK(!f.backing_format == !rows[i].want_format && (!f.backing_format || !strcmp(f.backing_format, rows[i].want_format)));
        CHECK(im->has_backing == !!rows[i].name && im->below_zero_from == (rows[i].name ? UINT64_MAX : 0));
        CHECK_EQ(qed_of(im)->h.features, rows[i].features);
        fmt_info_fini(&f);
        CHECK_EQ(im->ops->close(co, im), 0);
    }
    poke(co, &(struct word){ 16, QED_F_NEED_CHECK }, 1, 0);
    struct fmt_image *im = open_image(co);
    struct fmt_info f = { 0 };
    CHECK_EQ(im->ops->info(co, im, &f, NULL), 0);
    CHECK(f.dirty && !f.backing_name);
    fmt_info_fini(&f);
    CHECK_EQ(im->ops->close(co, im), 0);
}

/* FEATURES 2.003, 2.004, 2.023: every geometry is made, says what it is, and is clean; the limits are exact. */
static void creating(struct co *co, void *arg)
{
    for (unsigned bits = 12; bits <= 26; bits += 2)
        for (unsigned t = 1; t <= 16; t *= 2) {
            struct qed_geom g = qed_geom_make(1ull << bits, t, 1);
            struct fmt_create_opts o = { .size = g.size_max, .cluster_size = g.cluster_size, .table_size = t };
            make(co, &o);
            struct fmt_image *im = open_image(co);
            struct fmt_check_result r = { 0 };
            uint64_t len;
            CHECK(im->size == g.size_max && qed_of(im)->g.table_bytes == g.table_bytes);
            CHECK_EQ(stor_length(co, im->store, &len), 0);
            CHECK_EQ(len, g.cluster_size + g.table_bytes);
            CHECK_EQ(im->ops->check(co, im, &(struct fmt_check_opts){ 0 }, &r, NULL), 0);
            CHECK(!r.corruptions && !r.leaks && !r.check_errors && !r.allocated_clusters);
            struct fmt_extent e = { 0 };
            epoch_token tok = epoch_enter(im->epoch, co_loop(co));
            CHECK_EQ(im->ops->map(co, im, g.size_max - 512, 512, &e), 0);
            epoch_leave(im->epoch, co_loop(co), tok);
            CHECK(e.kind == FMT_ABSENT && e.len == 512);
            CHECK_EQ(im->ops->close(co, im), 0);
            o.size += 512;
            CHECK_EQ(fmt_qed_ops.create(co, NULL, &o, NULL), -EINVAL);
        }
    char name[QED_NAME_MAX + 2];
    memset(name, 'n', sizeof name);
    name[QED_NAME_MAX] = 0;
    make(co, &(struct fmt_create_opts){ .size = 0, .backing_file = name, .cluster_size = C });
    struct fmt_image *im = open_image(co);
    CHECK(!strcmp(qed_of(im)->h.backing_name, name) && im->size == 0);
    CHECK_EQ(im->ops->close(co, im), 0);
    name[QED_NAME_MAX] = 'n';
    name[QED_NAME_MAX + 1] = 0;
    static const struct fmt_create_opts bad[] = {
        { .cluster_size = 2048 }, { .cluster_size = 128 << 20 }, { .cluster_size = 5000 }, { .table_size = 3 }, { .table_size = 32 },
        { .backing_fmt = (char *)"raw" }, { .backing_file = (char *)"" }, { .backing_file = (char *)"a\nb" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        CHECK_EQ(fmt_qed_ops.create(co, NULL, &bad[i], NULL), -EINVAL);
    CHECK_EQ(fmt_qed_ops.create(co, NULL, &(struct fmt_create_opts){ .backing_file = name }, NULL), -EINVAL);
    struct toy *device = toy_new(1 << 20, 1, 1);
    device->s.traits.regular = false;
    CHECK_EQ(fmt_qed_ops.create(co, &device->s, &(struct fmt_create_opts){ .size = 1 << 20 }, NULL), -ENOTSUP);
    CHECK_EQ(device->count[TOY_WRITE], 0);
    toy_free(device);
}

static void probing(struct co *co, void *arg)
{
    uint8_t head[512] = "QED";
    CHECK(fmt_probe(head, sizeof head) == &fmt_qed_ops && fmt_by_name("qed") == &fmt_qed_ops);
    CHECK(fmt_probe(head, 63) == &fmt_raw_ops);
    head[3] = 1;
    CHECK(fmt_probe(head, sizeof head) == &fmt_raw_ops);
}

/* Reads that fail, one after the other: the opening fails and gives everything back, or all is well. */
static int fail_at;
static int failing(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len) { return op == TOY_READ && fail_at-- == 0 ? -EIO : 0; }

static void failing_reads(struct co *co, void *arg)
{
    for (int i = 0, opened = 0; !opened; i++) {
        struct toy *t = toy_new(8 * C, 1, 1);
        struct qed_header h = { .cluster_size = C, .table_size = T, .header_clusters = 1, .l1_off = C, .size = SPAN, .features = 1, .backing_off = 64, .backing_len = 4 };
        qed_header_emit(&h, (struct qed_disk_header *)t->bytes);
        memcpy(t->bytes + 64, "base", 4);
        le64_put((le64 *)(t->bytes + C), L2);
        struct fmt_image *im = NULL;
        struct fmt_extent e;
        fail_at = i;
        t->hook = failing;
        int r = fmt_qed_ops.open(co, &t->s, &(struct fmt_open_opts){ .read_only = true }, &im, NULL);
        CHECK_EQ(r, i < 3 ? -EIO : 0);
        if (im) {
            epoch_token tok = epoch_enter(im->epoch, co_loop(co));
            CHECK_EQ(im->ops->map(co, im, 0, C, &e), i == 3 ? -EIO : 0);
            CHECK_EQ(im->ops->map(co, im, 0, C, &e), 0);                 /* a failure is not remembered */
            epoch_leave(im->epoch, co_loop(co), tok);
            opened = i > 3;
            CHECK_EQ(im->ops->close(co, im), 0);
        } else {
            toy_free(t);
        }
    }
}

/* Everything from here on cannot be read. */
static uint64_t bad_from, bad_to;
static int failing_there(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    return op == TOY_READ && off < bad_to && off + len > bad_from ? -EIO : 0;
}

/* Tables that cannot be read are counted, nothing is called a leak, and nothing is repaired. */
static void failing_check(struct co *co, void *arg)
{
    for (int i = 0; i < 2; i++) {
        struct toy *t = toy_new(8 * C, 1, 1);
        struct qed_header h = { .cluster_size = C, .table_size = T, .header_clusters = 1, .l1_off = C, .size = SPAN, .features = QED_F_NEED_CHECK };
        qed_header_emit(&h, (struct qed_disk_header *)t->bytes);
        le64_put((le64 *)(t->bytes + C), L2);
        le64_put((le64 *)(t->bytes + L2), 1);                   /* else it would be a hole, and not read */
        struct fmt_image *im = NULL;
        struct fmt_check_result r = { 0 };
        CHECK_EQ(fmt_qed_ops.open(co, &t->s, &(struct fmt_open_opts){ .check_mode = true }, &im, NULL), 0);
        bad_from = i ? L2 : C;
        bad_to = bad_from + T * C;
        t->hook = failing_there;
        CHECK_EQ(im->ops->check(co, im, &(struct fmt_check_opts){ .fix = FMT_FIX_LEAKS | FMT_FIX_ERRORS }, &r, NULL), 0);
        CHECK_EQ(r.check_errors, 1);
        CHECK(!r.leaks && !r.corruptions && !r.leaks_fixed);
        CHECK(t->count[TOY_WRITE] == 0 && t->count[TOY_TRUNCATE] == 0);
        t->hook = NULL;
        CHECK_EQ(im->ops->close(co, im), 0);
    }
}

/* Empty parts of a large table are skipped by what the store says of its holes, and not an entry too far. */
static void empty_tables(struct co *co, void *arg)
{
    struct toy *t = toy_new(33 * C, 1, 1);
    struct qed_header h = { .cluster_size = C, .table_size = 16, .header_clusters = 1, .l1_off = C, .size = 8192ull * C + C };
    qed_header_emit(&h, (struct qed_disk_header *)t->bytes);
    le64_put((le64 *)(t->bytes + C), 17 * C);
    le64_put((le64 *)(t->bytes + 17 * C + 5000 * 8), 1);
    struct fmt_image *im = NULL;
    CHECK_EQ(fmt_qed_ops.open(co, &t->s, &(struct fmt_open_opts){ .read_only = true }, &im, NULL), 0);
    static const struct { uint64_t off, end; enum fmt_kind kind; } rows[] = {
        { 100, 4992 * C, FMT_ABSENT }, { 4992 * C, 5000 * C, FMT_ABSENT }, { 5000 * C, 5001 * C, FMT_ZERO }, { 5001 * C, 5120 * C, FMT_ABSENT },      /* its slice is in the cache: no more is asked */
        { 5120 * C, 8192ull * C, FMT_ABSENT },
        { 8192ull * C, 8193ull * C, FMT_ABSENT },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct fmt_extent e = { 0 };
        epoch_token tok = epoch_enter(im->epoch, co_loop(co));
        CHECK_EQ(im->ops->map(co, im, rows[i].off, im->size - rows[i].off, &e), 0);
        epoch_leave(im->epoch, co_loop(co), tok);
        CHECK_EQ(e.kind, rows[i].kind);
        CHECK_EQ(rows[i].off + e.len, rows[i].end);
    }
    CHECK_EQ(im->ops->close(co, im), 0);
}

#define RUN(name) static void test_##name(void **state) { t_run(0, name, NULL); }
RUN(mapping)
RUN(checking)
RUN(reading_only)
RUN(describing)
RUN(creating)
RUN(probing)
RUN(failing_reads)
RUN(failing_check)
RUN(empty_tables)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mapping), cmocka_unit_test(test_checking), cmocka_unit_test(test_reading_only), cmocka_unit_test(test_describing),
        cmocka_unit_test(test_creating), cmocka_unit_test(test_probing), cmocka_unit_test(test_failing_reads), cmocka_unit_test(test_failing_check),
        cmocka_unit_test(test_empty_tables),
    };
    return T_MAIN("qed-read", tests);
}
