/* SPDX-License-Identifier: MIT
 *
 * q2_header_test.c: headers that are accepted, and every way of being refused.
 *
 * Purpose      One row per bad field; extensions; emit and parse are inverse; no byte pattern breaks the parser.
 * Owns         Nothing.
 * Invariants   None.
 * Concurrency  None.
 * Failure      A failed assertion fails the test.
 * Tests        This is one.
 */
#include "base/test.h"

#include <stdlib.h>
#include <string.h>

#include "base/cursor.h"
#include "base/prng.h"
#include "fmt/qcow2/q2_header.h"

#define CLUSTER 65536u
#define FILE_BYTES (64ull * CLUSTER)

/* A sound header of a disk of 1 GiB. */
static struct q2_header sound(uint32_t version)
{
    return (struct q2_header){
        .version = version, .cluster_bits = 16, .refcount_order = 4, .size = 1ull << 30, .l1_size = 2, .l1_off = 3 * CLUSTER,
        .rt_off = CLUSTER, .rt_clusters = 1, .header_len = version == 2 ? 72 : 112,
    };
}

static uint8_t *bytes_of(const struct q2_header *h)
{
    uint8_t *buf = malloc(CLUSTER);
    assert_non_null(buf);
    assert_int_equal(q2_header_emit(h, false, buf, CLUSTER, NULL), 0);
    return buf;
}

static void put(uint8_t *buf, uint32_t off, unsigned bytes, uint64_t v)
{
    for (unsigned i = 0; i < bytes; i++)
        buf[off + i] = (uint8_t)(v >> (8 * (bytes - 1 - i)));
}

struct patch { uint32_t off; unsigned bytes; uint64_t value; };
struct bad { const char *what; uint32_t version; struct patch p[3]; enum byre_reason reason; };

static void bad_fields(void **state)
{
    static const struct bad rows[] = {
        { "magic", 3, { { 0, 4, 0x514649fa } }, BYRE_R_BAD_FORMAT },
        { "version 1", 3, { { 4, 4, 1 } }, BYRE_R_Q2_FEATURE },
        { "version 4", 3, { { 4, 4, 4 } }, BYRE_R_Q2_FEATURE },
        { "cluster_bits 8", 3, { { 20, 4, 8 } }, BYRE_R_Q2_HEADER },
        { "cluster_bits 22", 3, { { 20, 4, 22 } }, BYRE_R_Q2_HEADER },
        { "cluster_bits huge", 2, { { 20, 4, 0xffffffff } }, BYRE_R_Q2_HEADER },
        { "crypt_method 3", 3, { { 32, 4, 3 } }, BYRE_R_Q2_HEADER },
        { "LUKS without its extension", 3, { { 32, 4, 2 } }, BYRE_R_Q2_EXTENSION },
        { "size too large for L1", 3, { { 24, 8, (1ull << 30) + 1 } }, BYRE_R_Q2_HEADER },
        { "size 2^64-1", 3, { { 24, 8, UINT64_MAX } }, BYRE_R_Q2_HEADER },
        { "L1 too small", 3, { { 36, 4, 1 } }, BYRE_R_Q2_HEADER },
        { "L1 too large", 3, { { 36, 4, (32 << 20) / 8 + 1 } }, BYRE_R_Q2_TABLE },
        { "L1 size overflows", 3, { { 36, 4, 0xffffffff } }, BYRE_R_Q2_TABLE },
        { "L1 unaligned", 3, { { 40, 8, 3 * CLUSTER + 512 } }, BYRE_R_Q2_TABLE },
        { "L1 on the header", 3, { { 40, 8, 0 } }, BYRE_R_Q2_TABLE },
        { "L1 behind the end", 3, { { 40, 8, FILE_BYTES } }, BYRE_R_Q2_TABLE },
        { "L1 over the end", 3, { { 40, 8, FILE_BYTES - CLUSTER }, { 36, 4, CLUSTER / 8 + 1 } }, BYRE_R_Q2_TABLE },
        { "L1 above 2^56", 3, { { 40, 8, 1ull << 56 } }, BYRE_R_Q2_TABLE },
        { "refcount table absent", 3, { { 56, 4, 0 } }, BYRE_R_Q2_TABLE },
        { "refcount table too large", 3, { { 56, 4, 129 } }, BYRE_R_Q2_TABLE },
        { "refcount table size overflows", 3, { { 56, 4, 0xffffffff } }, BYRE_R_Q2_TABLE },
        { "refcount table unaligned", 3, { { 48, 8, CLUSTER + 8 } }, BYRE_R_Q2_TABLE },
        { "refcount table on the header", 3, { { 48, 8, 0 } }, BYRE_R_Q2_TABLE },
        { "refcount table behind the end", 3, { { 48, 8, FILE_BYTES + CLUSTER } }, BYRE_R_Q2_TABLE },
        { "too many snapshots", 3, { { 60, 4, 65537 }, { 64, 8, CLUSTER } }, BYRE_R_Q2_TABLE },
        { "snapshot table unaligned", 3, { { 60, 4, 1 }, { 64, 8, CLUSTER + 1 } }, BYRE_R_Q2_TABLE },
        { "snapshot table behind the end", 3, { { 60, 4, 1 }, { 64, 8, FILE_BYTES } }, BYRE_R_Q2_TABLE },
        { "snapshot table too long for the file", 3, { { 60, 4, 65536 }, { 64, 8, FILE_BYTES - CLUSTER } }, BYRE_R_Q2_TABLE },
        { "refcount_order 7", 3, { { 96, 4, 7 } }, BYRE_R_Q2_HEADER },
        { "header length 96", 3, { { 100, 4, 96 } }, BYRE_R_Q2_HEADER },
        { "header length 105", 3, { { 100, 4, 105 } }, BYRE_R_Q2_HEADER },
        { "header length over a cluster", 3, { { 100, 4, CLUSTER + 8 } }, BYRE_R_Q2_HEADER },
        { "unknown incompatible bit", 3, { { 72, 8, 1ull << 40 } }, BYRE_R_Q2_FEATURE },
        { "compression type without its bit", 3, { { 104, 1, 1 } }, BYRE_R_Q2_HEADER },
        { "compression bit without its type", 3, { { 72, 8, 8 } }, BYRE_R_Q2_HEADER },
        { "compression type 2", 3, { { 72, 8, 8 }, { 104, 1, 2 } }, BYRE_R_Q2_HEADER },
        { "backing name inside the header", 3, { { 8, 8, 64 }, { 16, 4, 4 } }, BYRE_R_Q2_HEADER },
        { "backing name behind the cluster", 3, { { 8, 8, CLUSTER + 8 }, { 16, 4, 4 } }, BYRE_R_Q2_HEADER },
        { "backing name over the cluster's end", 3, { { 8, 8, CLUSTER - 2 }, { 16, 4, 4 } }, BYRE_R_Q2_HEADER },
        { "backing name too long", 3, { { 8, 8, 1024 }, { 16, 4, 1024 } }, BYRE_R_Q2_HEADER },
        { "backing name with NUL", 3, { { 8, 8, 1024 }, { 16, 4, 4 } }, BYRE_R_Q2_HEADER },
        { "extension longer than the area", 3, { { 112, 4, 0x12345678 }, { 116, 4, CLUSTER } }, BYRE_R_Q2_EXTENSION },
        { "extension of 4 GiB", 3, { { 112, 4, 0x12345678 }, { 116, 4, 0xfffffff8 } }, BYRE_R_Q2_EXTENSION },
        { "backing format too long", 3, { { 112, 4, Q2_EXT_BACKING_FORMAT }, { 116, 4, 16 } }, BYRE_R_Q2_EXTENSION },
        { "backing format with NUL", 3, { { 112, 4, Q2_EXT_BACKING_FORMAT }, { 116, 4, 4 }, { 120, 4, 0 } }, BYRE_R_Q2_HEADER },
        { "crypto pointer without encryption", 3, { { 112, 4, Q2_EXT_CRYPTO }, { 116, 4, 16 } }, BYRE_R_Q2_EXTENSION },
        { "crypto pointer of 8 bytes", 3, { { 112, 4, Q2_EXT_CRYPTO }, { 116, 4, 8 } }, BYRE_R_Q2_EXTENSION },
        { "version 2: L1 unaligned", 2, { { 40, 8, 3 * CLUSTER + 512 } }, BYRE_R_Q2_TABLE },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct q2_header h = sound(rows[i].version), out;
        struct byre_err err = { 0 };
        uint8_t *buf = bytes_of(&h);
        for (int n = 0; n < 3; n++)
            put(buf, rows[i].p[n].off, rows[i].p[n].bytes, rows[i].p[n].value);
        int rc = q2_header_parse(buf, CLUSTER, FILE_BYTES, false, "img", &out, &err);
        if (rc != -byre_reason_errno(rows[i].reason) || strcmp(err.reason, byre_reason_name(rows[i].reason)))
            fail_msg("%s: got %d, %s: %s", rows[i].what, rc, err.reason ? err.reason : "-", err.text);
        assert_non_null(strstr(err.text, "img"));
        free(buf);
    }
}

/* What check mode lets through so that it can be mended; nothing else. */
static void check_mode(void **state)
{
    static const struct { struct patch p; bool ok; } rows[] = {
        { { 56, 4, 0 }, true }, { { 48, 8, FILE_BYTES + CLUSTER }, true }, { { 40, 8, FILE_BYTES + CLUSTER }, true }, { { 60, 4, 65537 }, true },
        { { 48, 8, CLUSTER + 8 }, false }, { { 40, 8, 3 * CLUSTER + 8 }, false }, { { 36, 4, 1 }, false }, { { 72, 8, 1ull << 40 }, false },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct q2_header h = sound(3), out;
        uint8_t *buf = bytes_of(&h);
        put(buf, rows[i].p.off, rows[i].p.bytes, rows[i].p.value);
        int rc = q2_header_parse(buf, CLUSTER, FILE_BYTES, true, "img", &out, NULL);
        assert_int_equal(rc == 0, rows[i].ok);
        if (!rc)
            q2_header_fini(&out);
        free(buf);
    }
}

static void add_ext(struct wcur *c, uint32_t type, const void *data, uint32_t len)
{
    wcur_be32(c, type);
    wcur_be32(c, len);
    wcur_bytes(c, data, len);
    wcur_align(c, 8);
}

static void extensions(void **state)
{
    struct q2_header h = sound(3), out;
    uint8_t *buf = bytes_of(&h), pair[24] = { 0 };
    memset(buf + 112, 0, CLUSTER - 112);
    struct wcur c = wcur_of(buf + 112, CLUSTER - 112);
    add_ext(&c, Q2_EXT_BACKING_FORMAT, "raw", 3);
    add_ext(&c, 0x12345678, "kept byte for byte", 18);
    put(pair, 0, 4, 5);
    put(pair, 8, 8, 640);
    put(pair, 16, 8, 7 * CLUSTER);
    add_ext(&c, Q2_EXT_BITMAPS, pair, 24);
    put(pair, 0, 8, 4 * CLUSTER);
    put(pair, 8, 8, 9 * CLUSTER);
    add_ext(&c, Q2_EXT_FRONTIER, pair, 16);
    add_ext(&c, Q2_EXT_DATA_FILE, "data.raw", 8);
    add_ext(&c, Q2_EXT_END, NULL, 0);
    add_ext(&c, 0x11111111, "never seen", 10);
    assert_int_equal(q2_header_parse(buf, CLUSTER, FILE_BYTES, false, "img", &out, NULL), 0);
    assert_string_equal(out.backing_format, "raw");
    assert_string_equal(out.data_file, "data.raw");
    assert_int_equal(out.unknown_count, 1);
    assert_int_equal(out.unknown[0].type, 0x12345678);
    assert_memory_equal(out.unknown[0].data, "kept byte for byte", 18);
    assert_true(out.has_bitmaps);
    assert_int_equal(out.bitmap_count, 5);
    assert_int_equal(out.bitmap_dir_bytes, 640);
    assert_int_equal(out.bitmap_dir_off, 7 * CLUSTER);
    assert_int_equal(buf[out.bitmaps_ext_off + 3], 5);
    assert_true(out.has_frontier);
    assert_int_equal(out.frontier_start, 4 * CLUSTER);
    assert_int_equal(out.frontier_end, 9 * CLUSTER);
    assert_int_equal(out.frontier_ext_off % 8, 0);
    q2_header_fini(&out);
    free(buf);
}

static void known_extensions_once(void **state)
{
    static const struct { uint32_t type, len; } rows[] = {
        { Q2_EXT_BACKING_FORMAT, 3 }, { Q2_EXT_FEATURE_NAMES, 48 }, { Q2_EXT_BITMAPS, 24 }, { Q2_EXT_DATA_FILE, 3 }, { Q2_EXT_FRONTIER, 16 },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct q2_header h = sound(3), out;
        struct byre_err err = { 0 };
        uint8_t *buf = bytes_of(&h), data[64];
        memset(data, 'a', sizeof data);
        memset(buf + 112, 0, CLUSTER - 112);
        struct wcur c = wcur_of(buf + 112, CLUSTER - 112);
        add_ext(&c, rows[i].type, data, rows[i].len);
        add_ext(&c, rows[i].type, data, rows[i].len);
        assert_int_equal(q2_header_parse(buf, CLUSTER, FILE_BYTES, false, "img", &out, &err), -EINVAL);
        assert_string_equal(err.reason, "Q2_EXTENSION");
        free(buf);
    }
}

/* Limits of what is kept: 64 extensions, 64 KiB. */
static void too_much_unknown(void **state)
{
    for (unsigned n = 63; n <= 65; n++) {
        struct q2_header h = sound(3), out;
        uint8_t *buf = bytes_of(&h);
        memset(buf + 112, 0, CLUSTER - 112);
        struct wcur c = wcur_of(buf + 112, CLUSTER - 112);
        for (unsigned i = 0; i < n; i++)
            add_ext(&c, 0x40000000 + i, "x", 1);
        int rc = q2_header_parse(buf, CLUSTER, FILE_BYTES, false, "img", &out, NULL);
        assert_int_equal(rc, n > 64 ? -EINVAL : 0);
        if (!rc)
            q2_header_fini(&out);
        free(buf);
    }
    struct q2_header h = sound(3), out;
    h.cluster_bits = 21;
    h.l1_off = h.rt_off = 2 << 20;
    uint8_t *buf = malloc(2 << 20), *junk = calloc(1, 65537);
    assert_int_equal(q2_header_emit(&h, false, buf, 2 << 20, NULL), 0);
    struct wcur c = wcur_of(buf + 112, (2 << 20) - 112);
    add_ext(&c, 0x40000000, junk, 65537);
    assert_int_equal(q2_header_parse(buf, 2 << 20, 32 << 20, false, "img", &out, NULL), -EINVAL);
    put(buf, 116, 4, 65536);
    assert_int_equal(q2_header_parse(buf, 2 << 20, 32 << 20, false, "img", &out, NULL), 0);
    q2_header_fini(&out);
    free(junk);
    free(buf);
}

/* The name of an unknown feature comes from the file, if it is text (1.018). */
static void unknown_feature_is_named(void **state)
{
    struct q2_header h = sound(3), out;
    struct byre_err err = { 0 };
    uint8_t *buf = bytes_of(&h), entry[96] = { 0, 39, 'o', 't', 'h', 'e', 'r' };
    memcpy(entry + 48, "\0\050quantum clusters", 18);
    memset(buf + 112, 0, CLUSTER - 112);
    struct wcur c = wcur_of(buf + 112, CLUSTER - 112);
    add_ext(&c, Q2_EXT_FEATURE_NAMES, entry, 96);
    put(buf, 72, 8, 1ull << 40);
    assert_int_equal(q2_header_parse(buf, CLUSTER, FILE_BYTES, false, "img", &out, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "quantum clusters"));
    buf[120 + 50] = '\n';
    assert_int_equal(q2_header_parse(buf, CLUSTER, FILE_BYTES, false, "img", &out, &err), -ENOTSUP);
    assert_null(strchr(err.text, '\n'));
    assert_non_null(strstr(err.text, "40"));
    free(buf);
}

static void supported(void **state)
{
    struct byre_err err = { 0 };
    struct q2_header h = sound(3);
    assert_int_equal(q2_header_supported(&h, "img", &err), 0);
    h.incompat = Q2_INCOMPAT_DIRTY | Q2_INCOMPAT_CORRUPT | Q2_INCOMPAT_COMPRESSION | Q2_INCOMPAT_EXT_L2;
    assert_int_equal(q2_header_supported(&h, "img", &err), 0);
    h.incompat = Q2_INCOMPAT_DATA_FILE;
    assert_int_equal(q2_header_supported(&h, "img", &err), 0);
    h.nb_snapshots = 1;                  /* the snapshot's clusters would be the disk's */
    assert_int_equal(q2_header_supported(&h, "img", &err), -EINVAL);
    h.nb_snapshots = 0;
    h.incompat = 0;
    h.crypt_method = 1;                  /* that a secret is needed is q2_crypt.c's matter */
    assert_int_equal(q2_header_supported(&h, "img", &err), 0);
}

/* emit and parse: what is known, unknown extensions, unknown header fields (1.002, 1.022). */
static void round_trip(void **state)
{
    uint8_t tail[16], pad[7] = { 1, 2, 3, 4, 5, 6, 7 };
    memset(tail, 0x5a, sizeof tail);
    struct q2_unknown_ext unknown[2] = { { 0x12345678, 5, (uint8_t *)"abcde" }, { 0x77777777, 0, (uint8_t *)"" } };
    struct q2_header h = sound(3), out;
    h.header_len = 128;
    h.tail_bytes = tail;
    h.tail_len = sizeof tail;
    memcpy(h.pad, pad, sizeof pad);
    h.unknown = unknown;
    h.unknown_count = 2;
    h.backing_name = (char *)"base.qcow2";
    h.backing_format = (char *)"qcow2";
    h.compat = Q2_COMPAT_LAZY | 1ull << 20;
    h.autoclear = Q2_AUTOCLEAR_BITMAPS;
    h.incompat = Q2_INCOMPAT_COMPRESSION | Q2_INCOMPAT_DIRTY;
    h.compression_type = 1;
    h.has_bitmaps = true;
    h.bitmap_count = 2;
    h.bitmap_dir_bytes = 64;
    h.bitmap_dir_off = 5 * CLUSTER;
    uint8_t *buf = malloc(CLUSTER), *again = malloc(CLUSTER);
    assert_int_equal(q2_header_emit(&h, true, buf, CLUSTER, NULL), 0);
    assert_int_equal(q2_header_parse(buf, CLUSTER, FILE_BYTES, false, "img", &out, NULL), 0);
    assert_string_equal(out.backing_name, "base.qcow2");
    assert_int_equal(out.tail_len, 16);
    assert_memory_equal(out.tail_bytes, tail, 16);
    assert_int_equal(out.unknown_count, 2);
    assert_true(out.compat == h.compat && out.autoclear == h.autoclear && out.incompat == h.incompat);
    assert_true(out.has_frontier && out.frontier_start == 0 && out.frontier_end == 0);
    assert_int_equal(q2_header_emit(&out, false, again, CLUSTER, NULL), 0);
    assert_memory_equal(again, buf, CLUSTER);
    q2_header_fini(&out);
    free(buf);
    free(again);
}

/* Q18: extensions that change keep their place whether or not there is a feature name table behind them. */
static void feature_names_last(void **state)
{
    struct q2_header h = sound(3), out;
    uint8_t *buf = malloc(CLUSTER);
    h.has_bitmaps = true;
    h.bitmap_count = 1;
    assert_int_equal(q2_header_emit(&h, true, buf, CLUSTER, NULL), 0);
    assert_int_equal(q2_header_parse(buf, CLUSTER, FILE_BYTES, false, "img", &out, NULL), 0);
    assert_true(out.frontier_ext_off + 16 <= 512 && out.bitmaps_ext_off + 24 <= 512);
    uint32_t names = 0;
    for (uint32_t i = 112; i < 1024; i += 8)
        if (be32_get((be32 *)(buf + i)) == Q2_EXT_FEATURE_NAMES)
            names = i;
    assert_true(names > out.frontier_ext_off && names > out.bitmaps_ext_off);
    q2_header_fini(&out);
    free(buf);
}

static void does_not_fit(void **state)
{
    struct q2_header h = sound(3);
    struct byre_err err = { 0 };
    char name[500];
    uint8_t buf[512];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = 0;
    h.cluster_bits = 9;
    h.backing_name = name;
    assert_int_equal(q2_header_emit(&h, false, buf, sizeof buf, &err), -ENOSPC);
    name[380] = 0;
    assert_int_equal(q2_header_emit(&h, false, buf, sizeof buf, &err), 0);
    assert_int_equal(q2_header_emit(&h, true, buf, sizeof buf, &err), -ENOSPC);
}

/* A file that ends inside its header, at every length. */
static void every_length(void **state)
{
    struct q2_header h = sound(3), out;
    h.backing_name = (char *)"base";
    uint8_t *buf = bytes_of(&h);
    for (size_t len = 0; len < 1024; len++) {
        uint8_t *exact = malloc(len ? len : 1);
        memcpy(exact, buf, len);
        if (!q2_header_parse(exact, len, FILE_BYTES, len % 2, "img", &out, NULL))
            q2_header_fini(&out);
        free(exact);
    }
    free(buf);
}

/* Sound headers with a few bytes changed at random: refused or accepted, never more. */
static void random_bytes(void **state)
{
    struct prng r;
    prng_init(&r, 3);
    struct q2_header h = sound(3), out;
    h.backing_name = (char *)"base";
    h.backing_format = (char *)"raw";
    uint8_t *buf = bytes_of(&h), *copy = malloc(CLUSTER);
    unsigned accepted = 0;
    for (int i = 0; i < 30000; i++) {
        memcpy(copy, buf, 1024);
        for (uint64_t n = prng_range(&r, 1, 4); n; n--)
            copy[prng_below(&r, 640)] = (uint8_t)prng_u64(&r);
        if (q2_header_parse(copy, 1024, FILE_BYTES, i % 2, "img", &out, NULL))
            continue;
        accepted++;
        struct q2_geom g = q2_geom_make(out.version, out.cluster_bits, out.refcount_order, out.incompat & Q2_INCOMPAT_EXT_L2);
        assert_true(q2_l1_entries(&g, out.size) <= out.l1_size);
        q2_header_fini(&out);
    }
    assert_true(accepted > 1000);
    free(buf);
    free(copy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_fields), cmocka_unit_test(check_mode), cmocka_unit_test(extensions), cmocka_unit_test(known_extensions_once),
        cmocka_unit_test(too_much_unknown), cmocka_unit_test(unknown_feature_is_named), cmocka_unit_test(supported), cmocka_unit_test(round_trip),
        cmocka_unit_test(feature_names_last), cmocka_unit_test(does_not_fit), cmocka_unit_test(every_length), cmocka_unit_test(random_bytes),
    };
    return cmocka_run_group_tests_name("q2_header", tests, NULL, NULL);
}
