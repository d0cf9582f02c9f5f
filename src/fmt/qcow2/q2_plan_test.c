/* SPDX-License-Identifier: MIT
 *
 * q2_plan_test.c: fresh images as values.
 *
 * Purpose      Layout and bytes obey the specification in every geometry; two images are pinned byte for byte.
 * Owns         Nothing.
 * Invariants   None.
 * Concurrency  None.
 * Failure      A failed assertion fails the test.
 * Tests        This is one.
 */
#include "base/test.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "fmt/qcow2/q2_plan.h"

/* All bytes before the data. */
static uint8_t *metadata(const struct q2_plan *p, uint64_t *ret_len)
{
    uint64_t len = p->data_first << p->g.cluster_bits;
    uint8_t *buf = malloc(len);
    assert_non_null(buf);
    assert_int_equal(q2_header_emit(&p->h, true, buf, p->g.cluster_size, NULL), 0);
    if (p->data_first > 1)
        q2_plan_fill(p, 1, p->data_first - 1, buf + p->g.cluster_size);
    *ret_len = len;
    return buf;
}

static uint64_t word(const uint8_t *buf, uint64_t off) { return be64_get((const be64 *)(buf + off)); }

/* Follows every pointer of the image and counts; compares with the refcounts. */
static void check_bytes(const struct q2_plan *p, const uint8_t *buf, uint64_t len)
{
    const struct q2_geom *g = &p->g;
    uint64_t data = 0;
    uint8_t *refs = calloc(p->clusters, 1);
    for (uint64_t c = 0; c < 1 + p->rt_count + p->blocks_count + p->l1_count; c++)
        refs[c]++;
    for (uint64_t i = 0; i < p->h.l1_size; i++) {
        uint64_t l1e = word(buf, p->h.l1_off + 8 * i);
        struct q2_l1e e;
        assert_true(q2_l1e_decode(g, l1e, &e));
        assert_int_equal(e.l2_off != 0, p->l2_count != 0);
        if (!e.l2_off)
            continue;
        assert_true(e.copied && e.l2_off + g->cluster_size <= len);
        refs[e.l2_off >> g->cluster_bits]++;
        for (uint64_t j = 0; j < 1ull << g->l2_bits; j++) {
            struct q2_l2e d;
            assert_true(q2_l2e_decode(g, word(buf, e.l2_off + 8 * j), &d));
            bool inside = ((i << g->l2_bits) + j) << g->cluster_bits < p->h.size;
            assert_int_equal(d.kind, inside ? Q2_NORMAL : Q2_UNALLOCATED);
            if (!inside)
                continue;
            assert_true(d.copied && d.host >= len);
            refs[d.host >> g->cluster_bits]++;
            data++;
        }
    }
    assert_int_equal(data, p->data_count);
    for (uint64_t c = 0; c < (uint64_t)p->blocks_count << g->block_bits; c++) {
        uint64_t block;
        assert_true(q2_rte_decode(g, word(buf, p->h.rt_off + 8 * (c >> g->block_bits)), &block));
        assert_true(block && block + g->cluster_size <= len);
        uint64_t stored = q2_refcount_get(g, buf + block, c & ((1ull << g->block_bits) - 1));
        assert_int_equal(stored, c < p->clusters ? 1 : 0);
        if (c < p->clusters)
            assert_int_equal(refs[c], 1);
    }
    free(refs);
}

static void every_geometry(void **state)
{
    static const uint64_t sizes[] = { 0, 512, 100000, 1 << 20, (5 << 20) + 512 };
    for (unsigned bits = 9; bits <= 21; bits++)
        for (unsigned order = 0; order <= 6; order++)
            for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
                for (int pre = 0; pre < 2; pre++) {
                    struct fmt_create_opts o = { .size = sizes[s], .cluster_size = 1u << bits, .refcount_bits = 1u << order, .prealloc = pre ? FMT_PREALLOC_METADATA : FMT_PREALLOC_OFF };
                    struct q2_plan p;
                    uint64_t len;
                    assert_int_equal(q2_plan_make(&o, false, &p, NULL), 0);
                    uint8_t *buf = metadata(&p, &len);
                    check_bytes(&p, buf, len);
                    struct q2_header h;
                    assert_int_equal(q2_header_parse(buf, p.g.cluster_size, p.clusters << bits, false, "img", &h, NULL), 0);
                    assert_int_equal(h.size, (sizes[s] + 511) / 512 * 512);
                    q2_header_fini(&h);
                    free(buf);
                    q2_plan_fini(&p);
                }
}

/* What fill gives does not depend on how it is asked. */
static void fill_in_pieces(void **state)
{
    struct fmt_create_opts o = { .size = 3 << 20, .cluster_size = 512, .refcount_bits = 64, .prealloc = FMT_PREALLOC_METADATA };
    struct q2_plan p;
    uint64_t len;
    assert_int_equal(q2_plan_make(&o, false, &p, NULL), 0);
    uint8_t *all = metadata(&p, &len), *one = malloc(512 * 7);
    for (uint64_t c = 1; c + 7 <= p.data_first; c += 5) {
        q2_plan_fill(&p, c, 7, one);
        assert_memory_equal(one, all + c * 512, 512 * 7);
    }
    free(one);
    free(all);
    q2_plan_fini(&p);
}

struct golden { struct fmt_create_opts o; uint64_t len, lo, hi; };

/* Pinned: a change of these bytes must be meant. Lengths and hashes of the bytes before the data. */
static void golden_bytes(void **state)
{
    const struct golden rows[] = {
        { { .size = 1 << 30 }, 262144, 0x47817a37f49cb8b3ull, 0x98b078644d11b247ull },
        { { .size = 10 << 20, .version = 2, .cluster_size = 4096, .backing_file = (char *)"base.raw", .backing_fmt = (char *)"raw" }, 16384, 0xdeea4cf772bc0f8dull, 0xca8bfea6934369cbull },
        { { .size = 1 << 20, .cluster_size = 512, .refcount_bits = 1, .compression_type = (char *)"zstd", .lazy_refcounts = true, .prealloc = FMT_PREALLOC_METADATA }, 18432, 0x2668fabb9ab9ece5ull, 0x4ab4e00941c34b7aull },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct q2_plan p;
        uint64_t len;
        assert_int_equal(q2_plan_make(&rows[i].o, false, &p, NULL), 0);
        uint8_t *buf = metadata(&p, &len);
        struct hash128 h = hash_buf(buf, len, 0);
        if (len != rows[i].len || h.lo != rows[i].lo || h.hi != rows[i].hi)
            fail_msg("row %zu: len %" PRIu64 ", 0x%016" PRIx64 "ull, 0x%016" PRIx64 "ull", i, len, h.lo, h.hi);
        free(buf);
        q2_plan_fini(&p);
    }
}

static void limits(void **state)
{
    struct q2_plan p;
    struct byre_err err = { 0 };
    struct fmt_create_opts o = { .size = 2ull << 50 };
    assert_int_equal(q2_plan_make(&o, false, &p, &err), 0);
    assert_int_equal(p.h.l1_size, 4u << 20);
    q2_plan_fini(&p);
    o.size += 512;
    assert_int_equal(q2_plan_make(&o, false, &p, &err), -EINVAL);
    assert_non_null(strstr(err.text, "size"));
    o = (struct fmt_create_opts){ .size = UINT64_MAX };
    assert_int_equal(q2_plan_make(&o, false, &p, &err), -EINVAL);
    o = (struct fmt_create_opts){ .size = 100ull << 30, .cluster_size = 512, .refcount_bits = 64, .prealloc = FMT_PREALLOC_METADATA };
    assert_int_equal(q2_plan_make(&o, false, &p, &err), -EINVAL);
    assert_non_null(strstr(err.text, "refcount"));
}

static void measure(void **state)
{
    struct fmt_measure m;
    struct fmt_create_opts o = { .size = 1 << 30 };
    assert_int_equal(q2_measure(&o, 0, &m, NULL), 0);
    assert_int_equal(m.required, 393216);
    assert_int_equal(m.fully_allocated, 1074135040);
    assert_int_equal(q2_measure(&o, 65536, &m, NULL), 0);
    assert_int_equal(m.required, 393216 + 65536);
    assert_int_equal(q2_measure(&o, UINT64_MAX, &m, NULL), 0);
    assert_int_equal(m.required, m.fully_allocated);
    o.prealloc = FMT_PREALLOC_FULL;
    assert_int_equal(q2_measure(&o, 0, &m, NULL), 0);
    assert_int_equal(m.required, m.fully_allocated);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_geometry), cmocka_unit_test(fill_in_pieces), cmocka_unit_test(golden_bytes), cmocka_unit_test(limits), cmocka_unit_test(measure),
    };
    return cmocka_run_group_tests_name("q2_plan", tests, NULL, NULL);
}
