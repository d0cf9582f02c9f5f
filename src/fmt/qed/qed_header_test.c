/* SPDX-License-Identifier: MIT
 *
 * qed_header_test.c: geometry, headers that are accepted, and every way of being refused.
 *
 * Purpose      One row per bad field; every geometry of the format; emit and parse are inverse; no byte pattern breaks the parser.
 * Owns         Nothing.
 * Invariants   None.
 * Concurrency  None.
 * Failure      A failed assertion fails the test.
 * Tests        This is one. FEATURES 2.001, 2.002, 2.003, 2.004, 2.005, 2.008, 2.009
 */
#include "base/test.h"

#include <stdlib.h>
#include <string.h>

#include "base/prng.h"
#include "fmt/qed/qed_header.h"

#define FILE_BYTES (64ull * 4096)

static struct qed_header sound(void)
{
    return (struct qed_header){ .cluster_size = 4096, .table_size = 2, .header_clusters = 1, .l1_off = 4096, .size = 1 << 20 };
}

struct patch { uint32_t off; unsigned bytes; uint64_t value; };

static void put(uint8_t *buf, const struct patch *p)
{
    for (unsigned i = 0; i < p->bytes; i++)
        buf[p->off + i] = (uint8_t)(p->value >> (8 * i));
}

static int parse(const struct patch *p, unsigned n, struct qed_header *ret, struct byre_err *err)
{
    struct qed_header h = sound();
    struct qed_disk_header d;
    qed_header_emit(&h, &d);
    for (unsigned i = 0; i < n; i++)
        put((uint8_t *)&d, &p[i]);
    return qed_header_parse((const uint8_t *)&d, sizeof d, FILE_BYTES, "x", ret, err);
}

static void bad_fields(void **state)
{
    static const struct { const char *what; struct patch p[3]; enum byre_reason reason; } rows[] = {
        { "magic", { { 0, 4, 0x00444552 } }, BYRE_R_BAD_FORMAT },
        { "cluster_size 2k", { { 4, 4, 2048 } }, BYRE_R_QED_HEADER },
        { "cluster_size 128M", { { 4, 4, 128 << 20 } }, BYRE_R_QED_HEADER },
        { "cluster_size 5000", { { 4, 4, 5000 } }, BYRE_R_QED_HEADER },
        { "cluster_size 0", { { 4, 4, 0 } }, BYRE_R_QED_HEADER },
        { "table_size 0", { { 8, 4, 0 } }, BYRE_R_QED_HEADER },
        { "table_size 3", { { 8, 4, 3 } }, BYRE_R_QED_HEADER },
        { "table_size 32", { { 8, 4, 32 } }, BYRE_R_QED_HEADER },
        { "header over the L1 table", { { 12, 4, 2 } }, BYRE_R_QED_HEADER },
        { "header huge", { { 12, 4, 0xffffffff } }, BYRE_R_QED_HEADER },
        { "feature bit 3", { { 16, 8, 8 } }, BYRE_R_QED_FEATURE },
        { "feature bit 5", { { 16, 8, 32 } }, BYRE_R_QED_FEATURE },
        { "feature bit 63", { { 16, 8, 1ull << 63 } }, BYRE_R_QED_FEATURE },
        { "L1 at 0", { { 40, 8, 0 } }, BYRE_R_QED_HEADER },
        { "L1 unaligned", { { 40, 8, 4097 } }, BYRE_R_QED_HEADER },
        { "L1 cut off", { { 40, 8, FILE_BYTES - 4096 } }, BYRE_R_QED_HEADER },
        { "L1 outside", { { 40, 8, FILE_BYTES } }, BYRE_R_QED_HEADER },
        { "L1 near 2^64", { { 40, 8, (uint64_t)-4096 } }, BYRE_R_QED_HEADER },
        { "size odd", { { 48, 8, 513 } }, BYRE_R_QED_HEADER },
        { "size above the limit", { { 48, 8, (1024ull * 1024 * 4096) + 512 } }, BYRE_R_QED_HEADER },
        { "size near 2^64", { { 48, 8, (uint64_t)-512 } }, BYRE_R_QED_HEADER },
        { "name outside", { { 16, 8, 1 }, { 56, 4, 4093 }, { 60, 4, 4 } }, BYRE_R_QED_HEADER },
        { "name far outside", { { 16, 8, 1 }, { 56, 4, 0xffffffff }, { 60, 4, 1 } }, BYRE_R_QED_HEADER },
        { "name too long", { { 16, 8, 1 }, { 56, 4, 64 }, { 60, 4, 1024 } }, BYRE_R_QED_HEADER },
        { "name huge", { { 16, 8, 1 }, { 56, 4, 64 }, { 60, 4, 0xffffffff } }, BYRE_R_QED_HEADER },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct qed_header h = { .size = 77 };
        struct byre_err err;
        int r = parse(rows[i].p, 3, &h, &err);
        if (r >= 0 || strcmp(err.reason, byre_reason_name(rows[i].reason)) || h.size != 77)
            fail_msg("%s: %d, %s", rows[i].what, r, r < 0 ? err.reason : "accepted");
    }
}

static void good_fields(void **state)
{
    static const struct { const char *what; struct patch p[3]; } rows[] = {
        { "as it is", { { 0 } } },
        { "size 0", { { 48, 8, 0 } } },
        { "the largest size", { { 48, 8, 1024ull * 1024 * 4096 } } },
        { "header 0", { { 12, 4, 0 } } },
        { "table_size 1", { { 8, 4, 1 } } },
        { "the last place for L1", { { 40, 8, FILE_BYTES - 8192 } } },
        { "every compat bit", { { 24, 8, UINT64_MAX } } },
        { "every autoclear bit", { { 32, 8, UINT64_MAX } } },
        { "need check, raw backing", { { 16, 8, 7 }, { 56, 4, 4092 }, { 60, 4, 4 } } },
        { "a name of 1023", { { 16, 8, 1 }, { 56, 4, 64 }, { 60, 4, 1023 } } },
        { "name fields without the bit", { { 56, 4, 0xffffffff }, { 60, 4, 0xffffffff } } },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct qed_header h;
        struct byre_err err = { 0 };
        if (parse(rows[i].p, 3, &h, &err) < 0)
            fail_msg("%s: %s", rows[i].what, err.text);
    }
    struct qed_header h;
    assert_int_equal(parse((struct patch[]){ { 24, 8, 32 }, { 32, 8, 64 } }, 2, &h, NULL), 0);
    assert_true(h.compat == 32 && h.autoclear == 64);
    uint8_t half[63] = "QED";
    assert_int_equal(qed_header_parse(half, sizeof half, FILE_BYTES, "x", &h, NULL), -EINVAL);
}

static void names(void **state)
{
    struct qed_header h = sound();
    h.backing_len = 4;
    assert_int_equal(qed_header_take_name(&h, (const uint8_t *)"base", "x", NULL), 0);
    assert_string_equal(h.backing_name, "base");
    assert_int_equal(qed_header_take_name(&h, (const uint8_t *)"b\0se", "x", NULL), -EINVAL);
    assert_int_equal(qed_header_take_name(&h, (const uint8_t *)"b\nse", "x", NULL), -EINVAL);
    assert_string_equal(h.backing_name, "base");
    qed_header_fini(&h);
}

static void geometries(void **state)
{
    for (unsigned bits = 12; bits <= 26; bits++)
        for (uint32_t table = 1; table <= 16; table *= 2) {
            struct qed_geom g = qed_geom_make(1ull << bits, table, 1);
            assert_int_equal(g.entries, table * (1ull << bits) / 8);
            assert_true(g.size_max % 512 == 0 && g.size_max <= INT64_MAX && is_pow2(g.entries));
            assert_true(g.size_max == INT64_MAX - 511 || g.size_max == g.entries * g.entries * g.cluster_size);
            assert_true(qed_l1_used(&g, g.size_max) <= g.entries && qed_l1_used(&g, g.size_max) <= 1u << 21);
            uint64_t last = g.size_max - 512;
            assert_int_equal(qed_l1_index(&g, last) * g.l2_span + qed_l2_index(&g, last) * g.cluster_size + qed_in_cluster(&g, last), last);
        }
    assert_true(qed_table_size_ok(1) && !qed_table_size_ok(0) && !qed_table_size_ok(12) && !qed_table_size_ok(32));
    assert_int_equal(qed_geom_make(4096, 1, UINT32_MAX).header_bytes, UINT32_MAX * 4096ull);
}

static void entries(void **state)
{
    struct qed_geom g = qed_geom_make(4096, 2, 2);
    uint64_t end = qed_file_end(&g, 10 * 4096 + 100);
    assert_int_equal(end, 10 * 4096);
    static const struct { uint64_t v; enum qed_entry cluster, table; } rows[] = {
        { 0, QED_ABSENT, QED_ABSENT }, { 1, QED_ZERO, QED_BAD }, { 2, QED_BAD, QED_BAD }, { 4095, QED_BAD, QED_BAD },
        { 4096, QED_BAD, QED_BAD }, { 8192, QED_POINTER, QED_POINTER }, { 8193, QED_BAD, QED_BAD }, { 8192 + 2048, QED_BAD, QED_BAD },
        { 8 * 4096, QED_POINTER, QED_POINTER }, { 9 * 4096, QED_POINTER, QED_BAD }, { 10 * 4096, QED_BAD, QED_BAD },
        { 1ull << 63 | 8192, QED_BAD, QED_BAD }, { (uint64_t)-4096, QED_BAD, QED_BAD }, { (uint64_t)-8192, QED_BAD, QED_BAD },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        assert_int_equal(qed_entry_kind(&g, rows[i].v, end), rows[i].cluster);
        assert_int_equal(qed_table_kind(&g, rows[i].v, end), rows[i].table);
    }
}

/* Any 64 bytes: refused, or a geometry that holds, and the same bytes again. */
static void any_bytes(void **state)
{
    struct prng rng;
    prng_init(&rng, 11);
    unsigned accepted = 0;
    for (unsigned i = 0; i < 200000; i++) {
        struct qed_header h = sound(), again;
        struct qed_disk_header d, e;
        qed_header_emit(&h, &d);
        for (unsigned n = 1 + prng_u64(&rng) % 3; n--;)
            ((uint8_t *)&d)[prng_u64(&rng) % sizeof d] = (uint8_t)(prng_u64(&rng) % 4 ? 1u << prng_u64(&rng) % 8 : prng_u64(&rng));
        if (qed_header_parse((const uint8_t *)&d, sizeof d, FILE_BYTES, "x", &again, NULL))
            continue;
        accepted++;
        struct qed_geom g = qed_header_geom(&again);
        assert_true(again.l1_off + g.table_bytes <= FILE_BYTES && again.size <= g.size_max && again.l1_off >= g.header_bytes);
        qed_header_emit(&again, &e);
        assert_memory_equal(&d, &e, again.features & QED_F_BACKING ? 64 : 56);
    }
    assert_true(accepted > 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_fields), cmocka_unit_test(good_fields), cmocka_unit_test(names), cmocka_unit_test(geometries),
        cmocka_unit_test(entries), cmocka_unit_test(any_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
