/* SPDX-License-Identifier: MIT
 *
 * q2_tables_test.c: snapshot tables and bitmap directories, sound and broken, over a memory store.
 *
 * Purpose      Every rule of the two loaders has a row; the snapshot table that repair writes reads back as it was.
 * Owns         Memory stores.
 * Invariants   None.
 * Concurrency  One loop at a time.
 * Failure      A failed check fails the test.
 * Tests        This is one.
 */
#include "stor/stor_test.h"

#include <stdlib.h>
#include <string.h>

#include "base/cursor.h"
#include "fmt/qcow2/q2_check_priv.h"

#define CLUSTER 4096u
#define TABLE_OFF (8ull * CLUSTER)
#define FILE_BYTES (64ull * CLUSTER)

static struct q2_geom geom(void) { return q2_geom_make(3, 12, 4, false); }

static struct stor *store_with(struct co *co, const void *bytes, size_t len)
{
    struct stor *s = NULL;
    CHECK_EQ(stor_mem_new(co, "img", FILE_BYTES, &s), 0);
    CHECK_EQ(stor_write_buf(co, s, bytes, len, TABLE_OFF, 0), 0);
    return s;
}

/* ---- snapshots ---- */

struct snap { uint64_t l1_off; uint32_t l1_size, extra_len; const char *id, *name; uint16_t id_len, name_len; };

static void put_snapshot(struct wcur *c, const struct snap *s)
{
    struct q2_disk_snapshot d = { 0 };
    size_t id_len = s->id_len ? s->id_len : strlen(s->id), name_len = s->name_len ? s->name_len : strlen(s->name);
    be64_put(&d.l1_off, s->l1_off);
    be32_put(&d.l1_size, s->l1_size);
    be16_put(&d.id_len, (uint16_t)id_len);
    be16_put(&d.name_len, (uint16_t)name_len);
    be32_put(&d.date_sec, 1000);
    be32_put(&d.vm_state_size, 7);
    be32_put(&d.extra_len, s->extra_len);
    wcur_bytes(c, &d, sizeof d);
    for (uint32_t i = 0; i < s->extra_len; i++)
        wcur_u8(c, i == 7 ? 9 : i == 14 ? 0x40 : i >= 24 ? (uint8_t)i : 0);       /* state 9, disk size 0x4000, icount 0 */
    wcur_bytes(c, s->id, strlen(s->id));
    wcur_zero(c, id_len - strlen(s->id));
    wcur_bytes(c, s->name, strlen(s->name));
    wcur_zero(c, name_len - strlen(s->name));
    wcur_align(c, 8);
}

struct snap_row { struct snap s; unsigned faults; bool l1_ok; };

static const struct snap_row snap_rows[] = {
    { { 3 * CLUSTER, 10, 16, "1", "first", 0, 0 }, 0, true },
    { { 3 * CLUSTER, 10, 24, "1", "n\xc3\xa4me", 0, 0 }, 0, true },
    { { 3 * CLUSTER, 10, 100, "1", "extra", 0, 0 }, 0, true },
    { { 3 * CLUSTER, 10, 1024, "1", "extra", 0, 0 }, 0, true },
    { { 3 * CLUSTER, 10, 1025, "1", "extra", 0, 0 }, Q2_SNAP_BIG_EXTRA, true },
    { { 3 * CLUSTER, 10, 8, "1", "old", 0, 0 }, Q2_SNAP_SHORT_EXTRA, true },
    { { 3 * CLUSTER, 10, 16, "1", "a\nb", 0, 0 }, Q2_SNAP_BAD_NAME, true },
    { { 3 * CLUSTER, 10, 16, "1", "\xff\xfe", 0, 0 }, Q2_SNAP_BAD_NAME, true },
    { { 3 * CLUSTER, 10, 16, "1", "\xc0\x80", 0, 0 }, Q2_SNAP_BAD_NAME, true },
    { { 3 * CLUSTER, 10, 16, "1", "\xed\xa0\x80", 0, 0 }, Q2_SNAP_BAD_NAME, true },
    { { 3 * CLUSTER, 10, 16, "1", "cut \xe2\x82", 0, 0 }, Q2_SNAP_BAD_NAME, true },
    { { 3 * CLUSTER, 10, 16, "1", "with NUL", 0, 20 }, Q2_SNAP_BAD_NAME, true },
    { { 3 * CLUSTER, 10, 16, "1", "long", 0, 300 }, Q2_SNAP_BAD_NAME, true },
    { { 3 * CLUSTER, 10, 16, "long", "n", 200, 0 }, Q2_SNAP_BAD_NAME, true },
    { { 3 * CLUSTER + 8, 10, 16, "1", "unaligned", 0, 0 }, 0, false },
    { { 3 * CLUSTER, 0xffffffff, 16, "1", "huge", 0, 0 }, 0, false },
    { { 0, 10, 16, "1", "on the header", 0, 0 }, 0, false },
    { { 3 * CLUSTER, 10, 0x80000000, "1", "absurd", 0, 0 }, Q2_SNAP_CUT | Q2_SNAP_BIG_EXTRA, true },
};

static void snapshots_rows(struct co *co, void *arg)
{
    uint8_t *bytes = malloc(8192);
    struct q2_geom g = geom();
    for (size_t i = 0; i < sizeof snap_rows / sizeof snap_rows[0]; i++) {
        const struct snap_row *row = &snap_rows[i];
        struct q2_header h = { .size = 1 << 20, .nb_snapshots = 2, .snapshots_off = TABLE_OFF };
        struct snap first = { 4 * CLUSTER, 1, 16, "0", "zero", 0, 0 }, last = row->s;
        bool absurd = row->faults & Q2_SNAP_CUT;
        if (absurd)
            last.extra_len = 0;
        struct wcur c = wcur_of(bytes, 8192);
        put_snapshot(&c, &first);
        size_t at = wcur_pos(&c);
        put_snapshot(&c, &last);
        CHECK(wcur_ok(&c));
        be32_put(&((struct q2_disk_snapshot *)(bytes + at))->extra_len, row->s.extra_len);
        struct stor *s = store_with(co, bytes, wcur_pos(&c));
        struct q2_snapshot_scan scan;
        CHECK_EQ(q2_snapshots_scan(co, s, &g, &h, &scan), 0);
        CHECK_EQ(scan.faults, row->faults);
        CHECK_EQ(scan.count, absurd ? 1 : 2);
        CHECK_EQ(scan.first_bad, row->faults ? 1 : 0);
        if (scan.count == 2) {
            CHECK_EQ(scan.snapshots[1].l1_ok, row->l1_ok);
            CHECK_EQ(scan.snapshots[1].vm_state_size, row->s.extra_len >= 8 ? 9 : 7);
            CHECK_EQ(scan.snapshots[1].disk_size, row->s.extra_len >= 16 ? 0x4000 : 1 << 20);
            CHECK_EQ(scan.table_bytes, wcur_pos(&c));
            CHECK(row->faults & Q2_SNAP_BAD_NAME || !strcmp(scan.snapshots[1].name, row->s.name));
        }
        q2_snapshots_free(scan.snapshots, scan.count);
        struct q2_snapshot *list = NULL;
        uint32_t count = 0;
        bool refused = row->faults & ~(unsigned)Q2_SNAP_SHORT_EXTRA;
        CHECK_EQ(q2_snapshots_load(co, s, &g, &h, &list, &count, NULL), refused ? -EINVAL : 0);
        CHECK_EQ(count, refused ? 0 : 2);
        q2_snapshots_free(list, count);
        stor_close(co, s);
    }
    free(bytes);
}

/* Zeros where entries should be, tables over the end of the file, counts over the limit. */
static void snapshots_ends(struct co *co, void *arg)
{
    uint8_t bytes[256];
    struct q2_geom g = geom();
    struct snap one = { 4 * CLUSTER, 1, 16, "0", "zero", 0, 0 };
    struct wcur c = wcur_of(bytes, sizeof bytes);
    put_snapshot(&c, &one);
    struct stor *s = store_with(co, bytes, wcur_pos(&c));
    static const struct { uint32_t count; uint64_t off; uint32_t want, bad; unsigned faults; } rows[] = {
        { 1, TABLE_OFF, 1, 0, 0 },
        { 3, TABLE_OFF, 1, 2, Q2_SNAP_ENDED },
        { 2, FILE_BYTES, 0, 2, Q2_SNAP_ENDED | Q2_SNAP_OUTSIDE },
        { 2, 1ull << 50, 0, 2, Q2_SNAP_ENDED | Q2_SNAP_OUTSIDE },
        { 70000, TABLE_OFF, 1, 1, Q2_SNAP_ENDED | Q2_SNAP_COUNT },
        { 0, 1ull << 50, 0, 0, 0 },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct q2_header h = { .size = 1 << 20, .nb_snapshots = rows[i].count, .snapshots_off = rows[i].off };
        struct q2_snapshot_scan scan;
        CHECK_EQ(q2_snapshots_scan(co, s, &g, &h, &scan), 0);
        CHECK_EQ(scan.count, rows[i].want);
        CHECK_EQ(scan.bad_entries, rows[i].bad);
        CHECK_EQ(scan.faults, rows[i].faults);
        q2_snapshots_free(scan.snapshots, scan.count);
    }
    stor_close(co, s);
}

/* emit (for repair) and scan are inverse, unknown extra data included. */
static void snapshots_emit(struct co *co, void *arg)
{
    uint8_t bytes[2048];
    struct q2_geom g = geom();
    struct q2_header h = { .size = 1 << 20, .nb_snapshots = 3, .snapshots_off = TABLE_OFF };
    struct snap list[] = { { 4 * CLUSTER, 1, 16, "1", "plain", 0, 0 }, { 5 * CLUSTER, 2, 24, "2", "icount", 0, 0 }, { 6 * CLUSTER, 3, 200, "3", "more", 0, 0 } };
    struct wcur c = wcur_of(bytes, sizeof bytes);
    for (int i = 0; i < 3; i++)
        put_snapshot(&c, &list[i]);
    struct stor *s = store_with(co, bytes, wcur_pos(&c));
    struct q2_snapshot_scan scan;
    CHECK_EQ(q2_snapshots_scan(co, s, &g, &h, &scan), 0);
    uint8_t again[2048];
    CHECK_EQ(q2_snapshots_emit(&scan, &g, NULL), wcur_pos(&c));
    CHECK_EQ(q2_snapshots_emit(&scan, &g, again), wcur_pos(&c));
    /* The 32-bit state size is written from the 64-bit one. */
    for (uint64_t at = 0; at < wcur_pos(&c); at += round_up(40 + be32_get((be32 *)(bytes + at + 36)) + be16_get((be16 *)(bytes + at + 12)) + be16_get((be16 *)(bytes + at + 14)), 8))
        be32_put((be32 *)(bytes + at + 32), 9);
    CHECK(!memcmp(again, bytes, wcur_pos(&c)));
    q2_snapshots_free(scan.snapshots, scan.count);
    stor_close(co, s);
}

/* ---- bitmaps ---- */

struct bm { uint64_t table_off; uint32_t entries, flags; uint8_t type, granularity; uint32_t extra; const char *name; };

static size_t put_bitmap(uint8_t *p, const struct bm *b)
{
    struct q2_disk_bitmap_entry d = { .type = b->type, .granularity_bits = b->granularity };
    size_t len = strlen(b->name);
    be64_put(&d.table_off, b->table_off);
    be32_put(&d.table_entries, b->entries);
    be32_put(&d.flags, b->flags);
    be16_put(&d.name_len, (uint16_t)len);
    be32_put(&d.extra_len, b->extra);
    memset(p, 0, 24 + round_up(b->extra + len, 8));
    memcpy(p, &d, sizeof d);
    memcpy(p + 24 + b->extra, b->name, len);
    return 24 + round_up(b->extra + len, 8);
}

static void bitmap_rows(struct co *co, void *arg)
{
    static const struct { struct bm b; bool ok; } rows[] = {
        { { 3 * CLUSTER, 1, 0, 1, 16, 0, "fine" }, true },
        { { 3 * CLUSTER, 1, 3, 1, 9, 0, "in use, auto" }, true },
        { { 0, 0, 0, 1, 31, 0, "empty" }, true },
        { { 3 * CLUSTER, 1, 8, 1, 16, 0, "reserved flag" }, false },
        { { 3 * CLUSTER, 1, 0, 0, 16, 0, "type 0" }, false },
        { { 3 * CLUSTER, 1, 0, 2, 16, 0, "type 2" }, false },
        { { 3 * CLUSTER, 1, 0, 1, 8, 0, "granularity 8" }, false },
        { { 3 * CLUSTER, 1, 0, 1, 32, 0, "granularity 32" }, false },
        { { 3 * CLUSTER, 1, 0, 1, 255, 0, "granularity 255" }, false },
        { { 3 * CLUSTER + 8, 1, 0, 1, 16, 0, "unaligned" }, false },
        { { 0, 1, 0, 1, 16, 0, "on the header" }, false },
        { { 3 * CLUSTER, 0xffffffff, 0, 1, 16, 0, "huge" }, false },
        { { 3 * CLUSTER, (512 << 20) / CLUSTER + 1, 0, 1, 16, 0, "over 512 MiB" }, false },
        { { 3 * CLUSTER, 1, 4, 1, 16, 8, "extra data" }, false },
        { { 3 * CLUSTER, 1, 0, 1, 16, 0, "" }, false },
        { { 3 * CLUSTER, 1, 0, 1, 16, 0, "con\ttrol" }, false },
        { { 3 * CLUSTER, 1, 0, 1, 16, 0, "zero" }, false },          /* the name of the first one */
    };
    struct q2_geom g = geom();
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint8_t dir[256];
        struct bm first = { 4 * CLUSTER, 2, 0, 1, 12, 0, "zero" };
        size_t len = put_bitmap(dir, &first);
        len += put_bitmap(dir + len, &rows[i].b);
        struct stor *s = store_with(co, dir, len);
        struct q2_header h = { .has_bitmaps = true, .autoclear = Q2_AUTOCLEAR_BITMAPS, .bitmap_count = 2, .bitmap_dir_off = TABLE_OFF, .bitmap_dir_bytes = len };
        struct q2_bitmap *list = NULL;
        uint32_t count = 0;
        struct byre_err err = { 0 };
        int rc = q2_bitmaps_load(co, s, &g, &h, &list, &count, &err);
        CHECK_EQ(rc, 0);
        CHECK_EQ(count, 2);
        CHECK(!list[0].bad && !strcmp(list[0].name, "zero") && !list[0].raw);          /* whatever the second one is (G.015) */
        CHECK_EQ(list[1].bad == NULL, rows[i].ok);
        CHECK_EQ(list[1].pos, 32);
        if (rows[i].ok)
            CHECK(!strcmp(list[1].name, rows[i].b.name) && list[1].flags == rows[i].b.flags);
        else
            CHECK(list[1].raw_len == len - 32 && !memcmp(list[1].raw, dir + 32, len - 32));
        q2_bitmaps_free(list, count);
        stor_close(co, s);
    }
}

/* The extension: counts and lengths that do not fit the directory. */
static void bitmap_extension(struct co *co, void *arg)
{
    uint8_t dir[64];
    struct bm one = { 4 * CLUSTER, 2, 0, 1, 12, 0, "zero" };
    size_t len = put_bitmap(dir, &one);
    struct stor *s = store_with(co, dir, len);
    static const struct { uint32_t count; uint64_t bytes, off; int rc; } rows[] = {
        { 1, 32, TABLE_OFF, 0 },
        { 2, 32, TABLE_OFF, -EINVAL }, { 0, 32, TABLE_OFF, -EINVAL },
        { 1, 32, TABLE_OFF + 8, -EINVAL }, { 1, 32, FILE_BYTES, -EINVAL }, { 1, 32, 1ull << 60, -EINVAL }, { 1, UINT64_MAX, TABLE_OFF, -EINVAL },
        { 65536, 65536 * 32, TABLE_OFF, -EINVAL }, { 1, 65 << 20, TABLE_OFF, -EINVAL }, { 1, 32, 0, -EINVAL },
    };
    struct q2_geom g = geom();
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct q2_header h = { .has_bitmaps = true, .autoclear = Q2_AUTOCLEAR_BITMAPS, .bitmap_count = rows[i].count, .bitmap_dir_off = rows[i].off, .bitmap_dir_bytes = rows[i].bytes };
        struct q2_bitmap *list = NULL;
        uint32_t count = 0;
        CHECK_EQ(q2_bitmaps_load(co, s, &g, &h, &list, &count, NULL), rows[i].rc);
        q2_bitmaps_free(list, count);
        h.autoclear = 0;                                  /* not trusted: not read (1.031) */
        count = 7;
        CHECK_EQ(q2_bitmaps_load(co, s, &g, &h, &list, &count, NULL), 0);
        CHECK_EQ(count, 0);
    }
    stor_close(co, s);
}

/* A directory that ends inside an entry, or goes on behind the last one: the entries in front stay good (G.015). */
static void bitmap_ends(struct co *co, void *arg)
{
    uint8_t dir[128] = { 0 };
    struct bm one = { 4 * CLUSTER, 2, 0, 1, 12, 0, "zero" }, two = { 3 * CLUSTER, 1, 0, 1, 16, 0, "one" };
    size_t len = put_bitmap(dir, &one);
    put_bitmap(dir + len, &two);
    struct stor *s = store_with(co, dir, sizeof dir);
    static const struct { uint32_t count, bytes, good, all; } rows[] = {
        { 2, 64, 2, 2 }, { 2, 56, 1, 2 }, { 2, 48, 1, 2 }, { 1, 64, 1, 2 }, { 1, 40, 1, 2 }, { 1, 24, 0, 1 }, { 2, 72, 2, 3 },
    };
    struct q2_geom g = geom();
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct q2_header h = { .has_bitmaps = true, .autoclear = Q2_AUTOCLEAR_BITMAPS, .bitmap_count = rows[i].count, .bitmap_dir_off = TABLE_OFF,
            .bitmap_dir_bytes = rows[i].bytes };
        struct q2_bitmap *list;
        uint32_t count;
        CHECK_EQ(q2_bitmaps_load(co, s, &g, &h, &list, &count, NULL), 0);
        CHECK_EQ(count, rows[i].all);
        for (uint32_t k = 0; k < count; k++)
            CHECK_EQ(list[k].bad == NULL, k < rows[i].good);
        q2_bitmaps_free(list, count);
    }
    stor_close(co, s);
}

#define IN_LOOP(fn) static void test_##fn(void **state) { t_run(0, fn, NULL); }
IN_LOOP(snapshots_rows)
IN_LOOP(snapshots_ends)
IN_LOOP(snapshots_emit)
IN_LOOP(bitmap_rows)
IN_LOOP(bitmap_extension)
IN_LOOP(bitmap_ends)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_snapshots_rows), cmocka_unit_test(test_snapshots_ends), cmocka_unit_test(test_snapshots_emit),
        cmocka_unit_test(test_bitmap_rows), cmocka_unit_test(test_bitmap_extension), cmocka_unit_test(test_bitmap_ends),
    };
    return T_MAIN("q2_tables", tests);
}
