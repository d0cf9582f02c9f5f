/* SPDX-License-Identifier: MIT
 *
 * q2_geom_test.c: entries, refcounts and tables in all geometries.
 *
 * Purpose      Decoders accept exactly what the specification allows and are the inverse of the encoders.
 * Owns         Nothing.
 * Invariants   None.
 * Concurrency  None.
 * Failure      A failed assertion fails the test.
 * Tests        This is one.
 */
#include "base/test.h"

#include <stdlib.h>
#include <string.h>

#include "base/prng.h"
#include "fmt/qcow2/q2_geom.h"

static void derived(void **state)
{
    struct q2_geom g = q2_geom_make(3, 16, 4, false);
    assert_int_equal(g.cluster_size, 65536);
    assert_int_equal(g.l2_bits, 13);
    assert_int_equal(g.block_bits, 15);
    assert_int_equal(g.refcount_max, 65535);
    assert_int_equal(g.csize_shift, 54);
    assert_int_equal(g.csize_mask, 255);
    assert_int_equal(q2_l2_span(&g), 512ull << 20);
    assert_int_equal(q2_l1_entries(&g, (512ull << 20) + 1), 2);
    assert_int_equal(q2_l1_index(&g, (1ull << 30) + 70000), 2);
    assert_int_equal(q2_l2_index(&g, (1ull << 30) + 70000), 1);
    g = q2_geom_make(2, 9, 4, false);
    assert_int_equal(g.csize_shift, 61);
    assert_int_equal(g.csize_mask, 1);
    assert_false(g.zero_clusters);
    g = q2_geom_make(3, 21, 0, false);
    assert_int_equal(g.refcount_max, 1);
    assert_int_equal(g.block_bits, 24);
    g = q2_geom_make(3, 14, 6, true);
    assert_true(g.refcount_max == UINT64_MAX);
    assert_int_equal(g.l2_bits, 10);
}

struct row { uint64_t raw; bool ok; enum q2_kind kind; uint64_t host, bytes; bool copied; };

static void l2_rows(void **state)
{
    static const struct row rows[] = {
        { 0, true, Q2_UNALLOCATED, 0, 0, false },
        { Q2_E_COPIED, true, Q2_UNALLOCATED, 0, 0, true },
        { 1, true, Q2_ZERO_PLAIN, 0, 0, false },
        { 0x50001, true, Q2_ZERO_ALLOC, 0x50000, 0, false },
        { Q2_E_COPIED | 0x50000, true, Q2_NORMAL, 0x50000, 0, true },
        { 0x00ffffffffff0000, true, Q2_NORMAL, 0x00ffffffffff0000, 0, false },
        { 0x50002, false, 0, 0, 0, false },
        { 0x50100, false, 0, 0, 0, false },
        { 0x50200, false, 0, 0, 0, false },
        { 0x58000, false, 0, 0, 0, false },
        { 1ull << 56 | 0x50000, false, 0, 0, 0, false },
        { 1ull << 61, false, 0, 0, 0, false },
        { Q2_E_COMPRESSED | 0x50000, true, Q2_COMPRESSED, 0x50000, 512, false },
        { Q2_E_COMPRESSED | 0x501ff, true, Q2_COMPRESSED, 0x501ff, 1, false },
        { Q2_E_COMPRESSED | 3ull << 54 | 0x50001, true, Q2_COMPRESSED, 0x50001, 2047, false },
        { Q2_E_COMPRESSED | 255ull << 54, true, Q2_COMPRESSED, 0, 131072, false },
        { Q2_E_COPIED | Q2_E_COMPRESSED | 512, true, Q2_COMPRESSED, 512, 512, true },
    };
    struct q2_geom g = q2_geom_make(3, 16, 4, false);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct q2_l2e e;
        bool ok = q2_l2e_decode(&g, rows[i].raw, &e);
        assert_int_equal(ok, rows[i].ok);
        if (!ok)
            continue;
        assert_int_equal(e.kind, rows[i].kind);
        assert_int_equal(e.host, rows[i].host);
        assert_int_equal(e.comp_bytes, rows[i].bytes);
        assert_int_equal(e.copied, rows[i].copied);
        assert_true(q2_l2e_encode(&g, &e) == rows[i].raw);
    }
}

/* The zero flag exists in version 3 without extended L2 only; narrow offsets of small clusters are bounded. */
static void l2_versions(void **state)
{
    struct q2_l2e e;
    struct q2_geom v2 = q2_geom_make(2, 16, 4, false), ext = q2_geom_make(3, 16, 4, true), small = q2_geom_make(3, 9, 4, false);
    assert_false(q2_l2e_decode(&v2, 1, &e));
    assert_false(q2_l2e_decode(&v2, 0x50001, &e));
    assert_false(q2_l2e_decode(&ext, 1, &e));
    assert_true(q2_l2e_decode(&v2, 0x50000, &e));
    assert_false(q2_l2e_decode(&small, Q2_E_COMPRESSED | 1ull << 56, &e));
    assert_true(q2_l2e_decode(&small, Q2_E_COMPRESSED | 1ull << 55, &e));
}

/* FEATURES 1.040: what an extended entry means, and what is none. */
static void extended_entries(void **state)
{
    static const struct { uint64_t raw, bits; bool ok; enum q2_kind kind; uint64_t host; } rows[] = {
        { 0, 0, true, Q2_UNALLOCATED, 0 },
        { Q2_E_COPIED, 0, true, Q2_UNALLOCATED, 0 },
        { 0, 0xffffffffull << 32, true, Q2_UNALLOCATED, 0 },
        { 0, 1, false, 0, 0 },                                            /* allocated without a cluster */
        { 0x50000, 0, true, Q2_NORMAL, 0x50000 },
        { Q2_E_COPIED | 0x50000, 0xffffffff, true, Q2_NORMAL, 0x50000 },
        { 0x50000, 0xffffull << 48 | 0xffff, true, Q2_NORMAL, 0x50000 },
        { 0x50000, 0x8000000080000000, false, 0, 0 },                     /* both */
        { 0x50000, 1ull << 32 | 1, false, 0, 0 },
        { 0x50000, UINT64_MAX, false, 0, 0 },
        { 0x50002, 0, false, 0, 0 },
        { 1ull << 56 | 0x50000, 0, false, 0, 0 },
        { 0x50200, 0, false, 0, 0 },
        { 0x58000, 0xffffffff, false, 0, 0 },
        { Q2_E_COMPRESSED | 0x501ff, 0, true, Q2_COMPRESSED, 0x501ff },
        { Q2_E_COMPRESSED | 0x501ff, 1, false, 0, 0 },
        { Q2_E_COMPRESSED | 0x501ff, 1ull << 32, false, 0, 0 },
    };
    struct q2_geom g = q2_geom_make(3, 16, 4, true);
    assert_int_equal(g.sub_bits, 11);
    assert_int_equal(g.l2_bits, 12);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct q2_l2e e;
        uint64_t bits;
        bool ok = q2_l2x_decode(&g, rows[i].raw, rows[i].bits, &e);
        if (ok != rows[i].ok)
            fail_msg("row %zu", i);
        if (!ok)
            continue;
        assert_int_equal(e.kind, rows[i].kind);
        assert_int_equal(e.host, rows[i].host);
        assert_int_equal(e.alloc, rows[i].bits & 0xffffffff);
        assert_int_equal(e.zero, rows[i].bits >> 32);
        assert_true(q2_l2x_encode(&g, &e, &bits) == rows[i].raw);
        assert_true(bits == rows[i].bits);
    }
    struct q2_l2e e;                     /* the flag of short entries has no meaning, and never comes back */
    uint64_t bits;
    assert_true(q2_l2x_decode(&g, 0x50001, 0xff, &e));
    assert_true(q2_l2x_encode(&g, &e, &bits) == 0x50000 && bits == 0xff);
}

/* FEATURES 1.041: a range of a cluster as subclusters. */
static void subclusters(void **state)
{
    static const struct { uint64_t from, to; uint32_t touched, inside; } rows[] = {
        { 0, 1, 1, 0 }, { 0, 2048, 1, 1 }, { 0, 2049, 3, 1 }, { 1, 2048, 1, 0 }, { 2047, 2049, 3, 0 }, { 2048, 4096, 2, 2 },
        { 0, 65536, Q2_SUB_ALL, Q2_SUB_ALL }, { 1, 65536, Q2_SUB_ALL, Q2_SUB_ALL - 1 }, { 0, 65535, Q2_SUB_ALL, Q2_SUB_ALL >> 1 },
        { 65535, 65536, 1u << 31, 0 }, { 63488, 65536, 1u << 31, 1u << 31 }, { 512, 1024, 1, 0 }, { 6144, 12288, 0x38, 0x38 },
    };
    struct q2_geom g = q2_geom_make(3, 16, 4, true), plain = q2_geom_make(3, 16, 4, false);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (q2_sub_touched(&g, rows[i].from, rows[i].to) != rows[i].touched || q2_sub_inside(&g, rows[i].from, rows[i].to) != rows[i].inside)
            fail_msg("row %zu", i);
    assert_int_equal(plain.sub_bits, plain.cluster_bits);
    for (uint32_t bits = Q2_EXT_L2_BITS_MIN; bits <= Q2_CLUSTER_BITS_MAX; bits++) {
        struct q2_geom x = q2_geom_make(3, bits, 4, true);
        for (unsigned a = 0; a < 32; a++)
            for (unsigned b = a + 1; b <= 32; b++)
                assert_true(q2_sub_inside(&x, (uint64_t)a << x.sub_bits, (uint64_t)b << x.sub_bits) == (uint32_t)((1ull << b) - (1ull << a)));
    }
}

static void l2_round_trip(void **state)
{
    struct prng r;
    prng_init(&r, 1);
    for (uint32_t bits = Q2_CLUSTER_BITS_MIN; bits <= Q2_CLUSTER_BITS_MAX; bits++) {
        struct q2_geom g = q2_geom_make(3, bits, 4, false);
        unsigned accepted = 0;
        for (int i = 0; i < 20000; i++) {
            uint64_t raw = prng_u64(&r);
            if (i % 2)
                raw &= ~(0x3f000000000001feull | ((g.cluster_size - 1) & ~1ull)) | Q2_E_COMPRESSED;
            struct q2_l2e e;
            if (!q2_l2e_decode(&g, raw, &e))
                continue;
            accepted++;
            assert_true(e.host < 1ull << 56);
            assert_true(e.kind == Q2_COMPRESSED || is_aligned(e.host, g.cluster_size));
            assert_true(q2_l2e_encode(&g, &e) == raw);
        }
        assert_true(accepted > 1000);
    }
}

static void l1_and_table_entries(void **state)
{
    struct q2_geom g = q2_geom_make(3, 16, 4, false);
    struct q2_l1e e;
    uint64_t off;
    assert_true(q2_l1e_decode(&g, Q2_E_COPIED | 0x70000, &e));
    assert_int_equal(e.l2_off, 0x70000);
    assert_true(e.copied);
    assert_true(q2_l1e_encode(0x70000, true) == (Q2_E_COPIED | 0x70000));
    assert_true(q2_l1e_encode(0, true) == 0);
    for (int bit = 0; bit < 63; bit++)
        assert_int_equal(q2_l1e_decode(&g, 1ull << bit, &e), bit >= 16 && bit < 56);
    for (int bit = 0; bit < 64; bit++)
        assert_int_equal(q2_rte_decode(&g, 1ull << bit, &off), bit >= 16 && bit < 56);
    assert_true(q2_rte_decode(&g, 0, &off) && off == 0);
}

/* Every width against a naive model: neighbours stay as they are. */
static void refcounts(void **state)
{
    struct prng r;
    prng_init(&r, 2);
    for (uint32_t order = 0; order <= 6; order++) {
        struct q2_geom g = q2_geom_make(3, 9, order, false);
        uint64_t n = 1ull << g.block_bits, *model = calloc(n, 8);
        uint8_t block[512] = { 0 };
        for (int i = 0; i < 20000; i++) {
            uint64_t at = prng_below(&r, n), v = prng_u64(&r) & g.refcount_max;
            q2_refcount_put(&g, block, at, v);
            model[at] = v;
        }
        for (uint64_t i = 0; i < n; i++)
            assert_true(q2_refcount_get(&g, block, i) == model[i]);
        free(model);
    }
}

/* The packing as the specification writes it: low bits first, larger widths big endian. */
static void refcount_layout(void **state)
{
    uint8_t block[512] = { 0 };
    struct q2_geom g = q2_geom_make(3, 9, 0, false);
    q2_refcount_put(&g, block, 9, 1);
    assert_int_equal(block[1], 2);
    memset(block, 0, sizeof block);
    g = q2_geom_make(3, 9, 2, false);
    q2_refcount_put(&g, block, 1, 9);
    assert_int_equal(block[0], 0x90);
    memset(block, 0, sizeof block);
    g = q2_geom_make(3, 9, 4, false);
    q2_refcount_put(&g, block, 1, 0x1234);
    assert_int_equal(block[2], 0x12);
    assert_int_equal(block[3], 0x34);
}

static void tables(void **state)
{
    struct q2_geom g = q2_geom_make(3, 16, 4, false);
    assert_true(q2_table_ok(&g, 65536, 8192, 8, 65536));
    assert_false(q2_table_ok(&g, 65536, 8193, 8, 65536));
    assert_false(q2_table_ok(&g, 65537, 1, 8, 65536));
    assert_false(q2_table_ok(&g, 65536, UINT64_MAX / 4, 8, UINT64_MAX));
    assert_false(q2_table_ok(&g, UINT64_MAX & ~0xffffull, 65536, 1, UINT64_MAX));
    assert_false(q2_table_ok(&g, 1ull << 56, 1, 8, 65536));
    assert_true(q2_table_ok(&g, (1ull << 56) - 65536, 8192, 8, 65536));
    assert_true(q2_table_ok(&g, 0, 0, 8, 0));
}

/* Guest data in a file of its own: offset 0 is a place there, and only COPIED says that it is one (1.078). */
static void data_file_entries(void **state)
{
    struct q2_geom g = q2_geom_make(3, 16, 4, false);
    struct q2_l2e e;
    g.data_file = true;
    static const struct { uint64_t raw; enum q2_kind kind; bool copied; } rows[] = {
        { 0, Q2_UNALLOCATED, false }, { 1, Q2_ZERO_PLAIN, false }, { Q2_E_COPIED, Q2_NORMAL, true }, { Q2_E_COPIED | 1, Q2_ZERO_ALLOC, true },
        { Q2_E_COPIED | 0x50000, Q2_NORMAL, true }, { Q2_E_COPIED | 0x50001, Q2_ZERO_ALLOC, true },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        assert_true(q2_l2e_decode(&g, rows[i].raw, &e));
        assert_int_equal(e.kind, rows[i].kind);
        assert_int_equal(e.copied, rows[i].copied);
        assert_true(q2_l2e_encode(&g, &e) == rows[i].raw);
    }
    e = (struct q2_l2e){ .kind = Q2_UNALLOCATED, .copied = true };       /* never becomes a place by encoding */
    assert_true(q2_l2e_encode(&g, &e) == 0);
    e.kind = Q2_ZERO_PLAIN;
    assert_true(q2_l2e_encode(&g, &e) == 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(derived), cmocka_unit_test(l2_rows), cmocka_unit_test(data_file_entries), cmocka_unit_test(extended_entries), cmocka_unit_test(subclusters), cmocka_unit_test(l2_versions), cmocka_unit_test(l2_round_trip),
        cmocka_unit_test(l1_and_table_entries), cmocka_unit_test(refcounts), cmocka_unit_test(refcount_layout), cmocka_unit_test(tables),
    };
    return cmocka_run_group_tests_name("q2_geom", tests, NULL, NULL);
}
