/* SPDX-License-Identifier: MIT
 *
 * q2_check_test.c: mending of entries as a table; repair that is cut at every write; one core and all cores.
 *
 * Purpose      A crash anywhere in a repair leaves nothing more dangerous than there was, and the image can be repaired
 *              again, to no findings and with the same mapping. What all cores find is what is found entry by entry.
 * Owns         Toy stores; the bytes of one image per scenario.
 * Invariants   None.
 * Concurrency  One loop at a time.
 * Failure      A failed check fails the test.
 * Tests        This is one.
 */
#include "stor/stor_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/qcow2/q2_check_priv.h"
#include "fmt/qcow2/q2_plan.h"

#define CLUSTER 1024u
#define DISK (384u << 10)
#define SAMPLES 24

/* ---- mending ---- */

struct mend_row { enum q2_ref_kind kind; uint64_t raw; bool outside; uint64_t v3, v2, v2_backed; };

static void mending(void **state)
{
    const uint64_t A = 0x50000, odd = 0x50200, C = Q2_E_COPIED, Z = Q2_E_ZERO, K = Q2_E_COMPRESSED, R = 1ull << 58, far = 1ull << 50;
    const struct mend_row rows[] = {
        { Q2_REF_L2, C | A, false, C | A, C | A, C | A },
        { Q2_REF_L2, C | A | 1ull << 60 | 8, false, C | A, C | A, C | A },
        { Q2_REF_L2, C | far, true, 0, 0, 0 },
        { Q2_REF_L2, C | odd, false, C | odd, C | odd, C | odd },          /* where the table is cannot be known */
        { Q2_REF_L2, 1ull << 60, false, 0, 0, 0 },
        { Q2_REF_DATA, C | A, false, C | A, C | A, C | A },
        { Q2_REF_DATA, C | A | R | 2, false, C | A, C | A, C | A },
        { Q2_REF_DATA, C | odd, false, C | odd, C | odd, C | odd },
        { Q2_REF_DATA, C | far, true, Z, 0, C | far },
        { Q2_REF_DATA, C | far | R, true, Z, 0, C | far | R },
        { Q2_REF_DATA, R, false, 0, 0, 0 },
        { Q2_REF_ZERO, Z, false, Z, 0, 0 },
        { Q2_REF_ZERO, C | A | Z, false, C | A | Z, C | A, C | A },
        { Q2_REF_ZERO, C | A | Z | R, false, C | A | Z, C | A, C | A },
        { Q2_REF_ZERO, C | odd | Z, false, Z, C | odd, C | odd },
        { Q2_REF_ZERO, C | far | Z, true, Z, 0, C | far | Z },
        { Q2_REF_COMPRESSED, K | 0x50123, false, K | 0x50123, K | 0x50123, K | 0x50123 },
        { Q2_REF_COMPRESSED, C | K | 0x50123, false, K | 0x50123, K | 0x50123, K | 0x50123 },
        { Q2_REF_COMPRESSED, K | far, true, Z, 0, K | far },
    };
    struct q2_geom g3 = q2_geom_make(3, 16, 4, false), g2 = q2_geom_make(2, 16, 4, false);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct q2_ref r = { .kind = rows[i].kind, .raw = rows[i].raw, .outside = rows[i].outside, .bytes = 65536 };
        r.off = r.kind == Q2_REF_COMPRESSED ? r.raw & g3.coff_mask : r.raw & Q2_L2E_OFF;
        uint64_t v3 = q2_mend_entry(&g3, &r, true).raw, v3b = q2_mend_entry(&g3, &r, false).raw;
        if (v3 != rows[i].v3 || v3b != v3 || q2_mend_entry(&g2, &r, true).raw != rows[i].v2 || q2_mend_entry(&g2, &r, false).raw != rows[i].v2_backed)
            fail_msg("row %zu", i);
    }
}

/* FEATURES 1.040: what was lost reads zero, what was absent shows the layer below as before, contradictions stay. */
static void mending_extended(void **state)
{
    const uint64_t A = 0x50000, odd = 0x50200, C = Q2_E_COPIED, K = Q2_E_COMPRESSED, R = 1ull << 58, far = 1ull << 50, all = 0xffffffffull << 32;
    const struct { enum q2_ref_kind kind; uint64_t raw, bits; bool outside; uint64_t new_raw, new_bits; } rows[] = {
        { Q2_REF_L2, C | A, 0, false, C | A, 0 },
        { Q2_REF_L2, C | far, 0, true, 0, 0 },
        { Q2_REF_DATA, C | A, 0xff, false, C | A, 0xff },
        { Q2_REF_DATA, C | A | R | 2, all | 1, false, C | A, all | 1 },
        { Q2_REF_DATA, C | odd, 0xff, false, C | odd, 0xff },
        { Q2_REF_DATA, C | far, 0xff, true, 0, 0xffull << 32 },
        { Q2_REF_DATA, C | far, 0xffull << 40 | 0xff, true, 0, 0xffffull << 32 },
        { Q2_REF_DATA, C | far, 0xffull << 32 | 0xff, true, 0, 0xffull << 32 },
        { Q2_REF_ZERO, C | A, all, false, C | A, all },
        { Q2_REF_ZERO, C | A, 0, false, C | A, 0 },
        { Q2_REF_ZERO, C | odd, 0xfull << 32, false, 0, 0xfull << 32 },
        { Q2_REF_ZERO, C | odd, 0, false, 0, 0 },
        { Q2_REF_ZERO, C | far, 0xfull << 32, true, 0, 0xfull << 32 },
        { Q2_REF_ZERO, 0, 0xfull << 32, false, 0, 0xfull << 32 },
        { Q2_REF_DATA, 0, 1, false, 0, 1 },
        { Q2_REF_COMPRESSED, K | 0x50123, 0, false, K | 0x50123, 0 },
        { Q2_REF_COMPRESSED, C | K | 0x50123, 1, false, K | 0x50123, 1 },
        { Q2_REF_COMPRESSED, K | far, 0, true, 0, all },
    };
    struct q2_geom g = q2_geom_make(3, 16, 4, true);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct q2_ref r = { .kind = rows[i].kind, .raw = rows[i].raw, .bits = rows[i].bits, .outside = rows[i].outside, .bytes = 65536 };
        r.off = r.kind == Q2_REF_COMPRESSED ? r.raw & g.coff_mask : r.raw & Q2_L2E_OFF;
        for (int alone = 0; alone < 2; alone++) {
            struct q2_mended m = q2_mend_entry(&g, &r, alone);
            if (m.raw != rows[i].new_raw || m.bits != rows[i].new_bits)
                fail_msg("row %zu: %#llx %#llx", i, (unsigned long long)m.raw, (unsigned long long)m.bits);
        }
    }
}

/* ---- repair cut short ---- */

static uint8_t *image;                 /* bytes of the scenario */
static uint64_t image_len;
#define IMAGE_CAP (48u << 20)

/* A store that outlives its image, knows what is durable, and dies when told. One at a time. */
static struct { uint8_t *bytes, *durable; uint64_t len, durable_len; unsigned calls, die_at; } disk;

static bool dead(void) { return ++disk.calls >= disk.die_at; }

static int64_t disk_preadv(struct co *co, struct stor *s, struct iov v, uint64_t off)
{
    uint64_t n = off < disk.len ? min_u64(v.len_bytes, disk.len - off) : 0;
    if (n)
        iov_from_buf(v, disk.bytes + off, n);
    return (int64_t)n;
}

static bool watch_halves;               /* pairs of words are old (0, 0) or new (n, ~n), in every write */

static int64_t disk_pwritev(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags)
{
    if (dead() || off + v.len_bytes > IMAGE_CAP)
        return -EIO;
    iov_to_buf(v, disk.bytes + off, v.len_bytes);
    disk.len = max_u64(disk.len, off + v.len_bytes);
    for (uint64_t at = off; watch_halves && at < off + v.len_bytes; at += 16) {
        uint64_t a = be64_get((be64 *)(disk.bytes + at)), b = be64_get((be64 *)(disk.bytes + at + 8));
        if (!CHECK((!a && !b) || b == ~a))
            watch_halves = false;
    }
    return (int64_t)v.len_bytes;
}

static int disk_flush(struct co *co, struct stor *s)
{
    if (dead())
        return -EIO;
    disk.durable_len = disk.len;
    memcpy(disk.durable, disk.bytes, disk.len);
    return 0;
}

static int disk_truncate(struct co *co, struct stor *s, uint64_t len)
{
    if (dead() || len > IMAGE_CAP)
        return -EIO;
    if (len < disk.len)
        memset(disk.bytes + len, 0, disk.len - len);
    disk.len = len;
    return 0;
}

static int disk_length(struct co *co, struct stor *s, uint64_t *ret_len)
{
    *ret_len = disk.len;
    return 0;
}

static int disk_extent(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *ret_e)
{
    *ret_e = (struct stor_extent){ STOR_DATA, off, len };
    return 0;
}

static int disk_none(struct co *co, struct stor *s, uint64_t off, uint64_t len) { return -ENOTSUP; }
static int disk_zero(struct co *co, struct stor *s, uint64_t off, uint64_t len, unsigned flags) { return -ENOTSUP; }

static void disk_close(struct co *co, struct stor *s)
{
    stor_fini(s);
    free(s);
}

static const struct stor_ops disk_ops = {
    .name = "disk", .preadv = disk_preadv, .pwritev = disk_pwritev, .flush = disk_flush, .zero = disk_zero, .discard = disk_none,
    .truncate = disk_truncate, .length = disk_length, .extent = disk_extent, .close = disk_close,
};

static void disk_init(void)
{
    disk.bytes = calloc(1, IMAGE_CAP);
    disk.durable = calloc(1, IMAGE_CAP);
}

static void disk_fini(void)
{
    free(disk.bytes);
    free(disk.durable);
}

static void disk_load(const uint8_t *bytes, uint64_t len, unsigned die_at)
{
    memset(disk.bytes, 0, max_u64(disk.len, len));
    memcpy(disk.bytes, bytes, len);
    memcpy(disk.durable, bytes, len);
    disk.len = disk.durable_len = len;
    disk.calls = 0;
    disk.die_at = die_at;
}

static int open_disk(struct co *co, bool write, struct fmt_image **ret)
{
    struct stor *s = calloc(1, sizeof *s);
    struct fmt_open_opts o = { .check_mode = true, .read_only = !write };
    CHECK_EQ(stor_init(s, &disk_ops, "disk"), 0);
    s->lim = (struct stor_limits){ .block = 1, .mem_align = 1, .opt_block = 512 };
    s->traits.regular = true;
    int rc = fmt_qcow2_ops.open(co, s, &o, ret, NULL);
    if (rc)
        disk_close(co, s);
    return rc;
}

/* Repairs the disk; -EIO when cut. *ret: result. */
static int repair(struct co *co, struct fmt_check_result *ret)
{
    struct fmt_image *im;
    struct fmt_check_opts c = { .fix = FMT_FIX_LEAKS | FMT_FIX_ERRORS };
    int rc = open_disk(co, true, &im);
    if (rc)
        return rc;
    rc = im->ops->check(co, im, &c, ret, NULL);
    int closed = im->ops->close(co, im);
    return rc ? rc : closed;
}

/* The guest's view: where every cluster lies, by the L2 tables of the bytes. */
static uint64_t host_at(const uint8_t *b, uint64_t guest)
{
    const struct q2_disk_header *h = (const struct q2_disk_header *)b;
    struct q2_geom g = q2_geom_make(3, 10, be32_get(&h->refcount_order), false);
    uint64_t l1 = be64_get((const be64 *)(b + be64_get(&h->l1_off)) + q2_l1_index(&g, guest)) & Q2_L1E_OFF;
    return l1 ? be64_get((const be64 *)(b + l1) + q2_l2_index(&g, guest)) & Q2_L2E_OFF : 0;
}

struct scenario { const char *name; unsigned refcount_bits; void (*damage)(uint8_t *b, const struct q2_plan *p, struct prng *r); };

static uint64_t blocks_off(const struct q2_plan *p) { return p->blocks_first * CLUSTER; }

static void noisy_counts(uint8_t *b, const struct q2_plan *p, struct prng *r)
{
    for (uint64_t c = 0; c < p->clusters; c++) {
        uint64_t block = c >> p->g.block_bits, i = c & ((1ull << p->g.block_bits) - 1);
        if (prng_one_in(r, 3))
            q2_refcount_put(&p->g, b + blocks_off(p) + block * CLUSTER, i, prng_below(r, p->g.refcount_max > 3 ? 4 : 2));
    }
}

static void no_table(uint8_t *b, const struct q2_plan *p, struct prng *r)
{
    be32_put(&((struct q2_disk_header *)b)->rt_clusters, 0);
}

static void lost_blocks(uint8_t *b, const struct q2_plan *p, struct prng *r)
{
    be64 *rt = (be64 *)(b + CLUSTER);
    be64_put(&rt[0], 0);
    be64_put(&rt[1], 3);
    be64_put(&rt[5], 1ull << 45);
}

static void wrong_flags(uint8_t *b, const struct q2_plan *p, struct prng *r)
{
    for (uint64_t t = 0; t < p->l2_count; t++)
        for (uint64_t i = 0; i < CLUSTER / 8; i++) {
            be64 *e = (be64 *)(b + (p->l2_first + t) * CLUSTER) + i;
            if (be64_get(e) && prng_one_in(r, 2))
                be64_put(e, be64_get(e) ^ Q2_E_COPIED);
        }
    be64 *l1 = (be64 *)(b + p->l1_first * CLUSTER);
    be64_put(l1, be64_get(l1) ^ Q2_E_COPIED);
}

static void reserved_bits(uint8_t *b, const struct q2_plan *p, struct prng *r)
{
    for (uint64_t t = 0; t < p->l2_count; t++) {
        be64 *e = (be64 *)(b + (p->l2_first + t) * CLUSTER) + 3;
        be64_put(e, be64_get(e) | 1ull << 57 | 4);
    }
    noisy_counts(b, p, r);
    wrong_flags(b, p, r);
}

/* Counts that are too high hold the flags back: lowering comes before setting them. */
static void high_counts_no_flags(uint8_t *b, const struct q2_plan *p, struct prng *r)
{
    for (uint64_t i = 0; i < 200; i++) {
        be64 *e = (be64 *)(b + p->l2_first * CLUSTER) + i;            /* the tables lie one behind the other */
        be64_put(e, be64_get(e) & ~Q2_E_COPIED);
        q2_refcount_put(&p->g, b + blocks_off(p), p->data_first + i, 3);
    }
}

static bool is_odd(uint64_t cluster) { return cluster % 16 == 5 && cluster < 100; }

/* Preallocated zero clusters that lie across two clusters, all counted: the entry goes before the counts do. */
static void unaligned_zeros(uint8_t *b, const struct q2_plan *p, struct prng *r)
{
    for (uint64_t i = 0; i < 100; i++) {
        be64 *e = (be64 *)(b + p->l2_first * CLUSTER) + i;
        if (is_odd(i)) {
            be64_put(e, (be64_get(e) + 512) | Q2_E_ZERO);
            be64_put(e + 1, be64_get(e + 1) & ~Q2_E_COPIED);
            q2_refcount_put(&p->g, b + blocks_off(p), p->data_first + i + 1, 2);
        }
    }
}

static void dirty_and_corrupt(uint8_t *b, const struct q2_plan *p, struct prng *r)
{
    be64_put(&((struct q2_disk_header *)b)->incompat, 3);
    noisy_counts(b, p, r);
}

static const struct scenario scenarios[] = {
    { "noisy counts", 16, noisy_counts },       { "noisy counts, 1 bit", 1, noisy_counts },      { "noisy counts, 64 bits", 64, noisy_counts },
    { "no refcount table", 16, no_table },      { "lost blocks", 16, lost_blocks },               { "wrong flags", 16, wrong_flags },
    { "reserved bits and more", 16, reserved_bits }, { "dirty and corrupt", 16, dirty_and_corrupt }, { "high counts, no flags", 16, high_counts_no_flags },
    { "unaligned zeros", 16, unaligned_zeros },
};

static void make_image(const struct scenario *s, struct prng *r, struct q2_plan *p)
{
    struct fmt_create_opts o = { .size = DISK, .cluster_size = CLUSTER, .refcount_bits = s->refcount_bits, .prealloc = FMT_PREALLOC_METADATA };
    CHECK_EQ(q2_plan_make(&o, false, p, NULL), 0);
    image_len = p->clusters * CLUSTER;
    memset(image, 0, 1u << 20);
    CHECK_EQ(q2_header_emit(&p->h, true, image, CLUSTER, NULL), 0);
    q2_plan_fill(p, 1, p->data_first - 1, image + CLUSTER);
    s->damage(image, p, r);
}

/* Repairs to the end and looks at the result. */
static void repair_fully(struct co *co, const uint8_t *bytes, uint64_t len, const struct q2_plan *p, const char *what, unsigned n)
{
    struct fmt_check_result res = { 0 };
    bool zeroed = !strcmp(what, "unaligned zeros");
    disk_load(bytes, len, UINT32_MAX);
    int rc = repair(co, &res);
    if (rc || res.corruptions || res.leaks || res.check_errors) {
        fprintf(stderr, "%s, cut at %u: %d, %d corruptions, %d leaks\n", what, n, rc, (int)res.corruptions, (int)res.leaks);
        CHECK(false);
    }
    for (uint64_t g = 0; g < DISK; g += CLUSTER)
        if (!CHECK_EQ(host_at(disk.bytes, g), zeroed && is_odd(g / CLUSTER) ? 0 : p->data_first * CLUSTER + g))
            break;
    CHECK_EQ(be64_get(&((struct q2_disk_header *)disk.bytes)->incompat), 0);
    /* P5: a second one changes nothing. */
    uint64_t size = disk.len;
    uint8_t *after = malloc(size);
    memcpy(after, disk.bytes, size);
    CHECK_EQ(repair(co, &res), 0);
    CHECK_EQ(disk.len, size);
    CHECK(!memcmp(after, disk.bytes, size));
    free(after);
}

/* Findings by which a writer would destroy data: a cluster that counts as free or as owned by one, and is not. */
static void count_danger(void *arg, bool fixed, const char *id, const char *text)
{
    unsigned *n = arg;
    *n += !strcmp(id, "Q2_REFCOUNT_LOW") || (!strcmp(id, "Q2_COPIED") && strstr(text, "COPIED is set"));
}

static unsigned danger(struct co *co, const uint8_t *bytes, uint64_t len)
{
    unsigned n = 0;
    struct fmt_check_opts o = { .finding = count_danger, .arg = &n };
    struct fmt_check_result res;
    struct fmt_image *im;
    disk_load(bytes, len, UINT32_MAX);
    if (!CHECK_EQ(open_disk(co, false, &im), 0))
        return 0;
    CHECK_EQ(im->ops->check(co, im, &o, &res, NULL), 0);
    CHECK_EQ(im->ops->close(co, im), 0);
    return n;
}

/* What the power cut leaves: of every sector written since the last flush, old or new; of the length too. */
static uint64_t crash_state(struct prng *r, uint8_t *ret)
{
    uint64_t len = prng_one_in(r, 2) ? disk.len : disk.durable_len;
    for (uint64_t at = 0; at < len; at += 512) {
        const uint8_t *from = prng_one_in(r, 2) ? disk.durable : disk.bytes;
        uint64_t end = from == disk.durable ? disk.durable_len : disk.len;
        if (at + 512 <= end)
            memcpy(ret + at, from + at, 512);
        else
            memset(ret + at, 0, 512);
    }
    return len;
}

static void cut_everywhere(struct co *co, void *arg)
{
    const struct scenario *s = arg;
    struct prng r;
    struct q2_plan p;
    uint8_t *state = malloc(1u << 20);
    prng_init(&r, 11);
    image = malloc(1u << 20);
    disk_init();
    make_image(s, &r, &p);
    repair_fully(co, image, image_len, &p, s->name, 0);
    unsigned n = 1, before = danger(co, image, image_len);
    for (bool cut = true; cut && !atomic_load(&t_failures); n++) {
        for (unsigned sample = 0; cut && sample < SAMPLES && !atomic_load(&t_failures); sample += t_share()) {
            struct fmt_check_result res;
            disk_load(image, image_len, n);
            cut = repair(co, &res) != 0;
            CHECK(disk.len <= 1u << 20);
            uint64_t len = crash_state(&r, state);
            unsigned after = danger(co, state, len);
            if (!CHECK(after <= before))
                fprintf(stderr, "%s, cut at %u: %u dangers, %u before\n", s->name, n, after, before);
            repair_fully(co, state, len, &p, s->name, n);
        }
    }
    CHECK(n > 4);
    q2_plan_fini(&p);
    free(image);
    free(state);
    disk_fini();
}

static void cut_repairs(void **state)
{
    for (size_t i = 0; i < sizeof scenarios / sizeof scenarios[0]; i++)
        t_run(0, cut_everywhere, (void *)(uintptr_t)&scenarios[i]);
}

/* ---- limits ---- */

struct count_findings { unsigned budget, all; };

static void on_finding(void *arg, bool fixed, const char *id, const char *text)
{
    struct count_findings *c = arg;
    c->all++;
    c->budget += !strcmp(id, "Q2_TOO_MANY_REFERENCES");
}

/* An L1 table whose every entry names the same table, in a small file: ends soon, is told, frees nothing. */
static void endless_tables(struct co *co, void *arg)
{
    uint64_t entries = (32u << 20) / 8, l1_off = 4ull << 16, len = l1_off + (32u << 20);
    struct q2_header h = { .version = 3, .cluster_bits = 16, .refcount_order = 4, .size = 1ull << 40, .l1_size = (uint32_t)entries, .l1_off = l1_off, .rt_off = 1u << 16, .rt_clusters = 1 };
    disk_init();
    disk.len = len;
    disk.die_at = UINT32_MAX;
    CHECK_EQ(q2_header_emit(&h, false, disk.bytes, 1u << 16, NULL), 0);
    be64_put((be64 *)(disk.bytes + (1u << 16)), 2u << 16);
    for (uint64_t i = 0; i < entries; i++)
        be64_put((be64 *)(disk.bytes + l1_off) + i, 3u << 16);
    for (int write = 0; write < 2; write++) {
        struct count_findings c = { 0 };
        struct fmt_check_opts o = { .finding = on_finding, .arg = &c, .fix = write ? FMT_FIX_LEAKS | FMT_FIX_ERRORS : 0 };
        struct fmt_check_result res = { 0 };
        struct fmt_image *im;
        CHECK_EQ(open_disk(co, write, &im), 0);
        CHECK_EQ(im->ops->check(co, im, &o, &res, NULL), 0);
        CHECK_EQ(im->ops->close(co, im), 0);
        CHECK(c.budget >= 1);
        CHECK(res.corruptions > 0);
        CHECK_EQ(disk.len, len);
        CHECK_EQ(be64_get((be64 *)(disk.bytes + l1_off)), 3u << 16);
    }
    disk_fini();
}

static void endless(void **state) { t_run(0, endless_tables, NULL); }

/* ---- all cores and one by one ---- */

/* A random image: tables of runs, of scattered, compressed and damaged entries; counts that are mostly right. */
struct random_image { struct prng r; struct q2_geom g; uint64_t clusters, l1_off, tables, l2_off, data; uint64_t *counts; };

static uint64_t random_entry(struct random_image *m, unsigned style, uint64_t *at)
{
    const uint32_t bits = m->g.cluster_bits;
    uint64_t c = style == 0 && *at < m->clusters ? (*at)++ : m->data + prng_below(&m->r, m->clusters - m->data);
    if (!prng_below(&m->r, 40))
        *at = c;                                     /* a new run */
    if (style == 3 && !prng_below(&m->r, 30))        /* damage: beyond the end, odd, reserved bits */
        return Q2_E_COPIED | (prng_below(&m->r, 2) ? (m->clusters + prng_below(&m->r, 3)) << bits : (c << bits) + 512 * prng_below(&m->r, 2)) |
               prng_below(&m->r, 3) << 60 | prng_below(&m->r, 2) << 3;
    if (style == 2 && prng_below(&m->r, 2)) {
        uint64_t sectors = prng_below(&m->r, m->g.csize_mask + 1), off = (c << bits) + prng_below(&m->r, m->g.cluster_size);
        for (uint64_t i = c; i <= (off / 512 + sectors) * 512 >> bits && i < m->clusters; i++)
            m->counts[i]++;
        return Q2_E_COMPRESSED | sectors << m->g.csize_shift | off;
    }
    if (style && !prng_below(&m->r, 4))
        return prng_below(&m->r, 2);                 /* nothing, or zeros */
    m->counts[c]++;
    return c << bits | (m->counts[c] == 1 || !prng_below(&m->r, 200) ? Q2_E_COPIED : 0) | (prng_below(&m->r, 8) ? 0 : Q2_E_ZERO);
}

/* The second half of an extended entry, seldom one that contradicts the first. */
static uint64_t random_bits(struct random_image *m, uint64_t raw, bool damage)
{
    uint64_t alloc = prng_u64(&m->r) & Q2_SUB_ALL, zero = prng_u64(&m->r) & Q2_SUB_ALL;
    if (damage && !prng_below(&m->r, 200))
        return zero << 32 | alloc;
    if (raw & Q2_E_COMPRESSED)
        return 0;
    return (zero & ~alloc) << 32 | (raw & Q2_L2E_OFF && prng_below(&m->r, 4) ? alloc : 0);
}

static void random_image(struct random_image *m, uint32_t cluster_bits, uint32_t order, uint64_t seed, bool sub)
{
    uint64_t cs = 1ull << cluster_bits;
    prng_init(&m->r, seed);
    bool calm = sub && seed % 4 == 3;                /* such large tables would never be without a finding */
    m->g = q2_geom_make(3, cluster_bits, order, sub);
    m->clusters = min_u64(20000, IMAGE_CAP / cs - 1);
    m->tables = sub ? 16 : 60;
    uint64_t blocks = div_up(m->clusters, 1ull << m->g.block_bits), rt_clusters = div_up(blocks * 8, cs);
    m->l1_off = (2 + rt_clusters + blocks) * cs;
    m->l2_off = m->l1_off + cs;
    m->data = m->l2_off / cs + m->tables;
    m->counts = calloc(m->clusters + 1, 8);
    disk.len = m->clusters * cs;
    struct q2_header h = { .version = 3, .cluster_bits = cluster_bits, .refcount_order = order, .size = m->tables * q2_l2_span(&m->g), .l1_size = (uint32_t)m->tables,
                           .l1_off = m->l1_off, .rt_off = cs, .rt_clusters = (uint32_t)rt_clusters, .incompat = sub ? Q2_INCOMPAT_EXT_L2 : 0 };
    CHECK_EQ(q2_header_emit(&h, false, disk.bytes, cs, NULL), 0);
    for (uint64_t i = 0; i < m->data; i++)
        m->counts[i] = i != 1 + rt_clusters;         /* one cluster between table and blocks is free */
    for (uint64_t t = 0; t < m->tables; t++) {
        uint64_t part = (m->clusters - m->data) / m->tables, at = m->data + (calm ? t * part : prng_below(&m->r, m->clusters / 2)), stop = at + part;
        be64_put((be64 *)(disk.bytes + m->l1_off) + t, Q2_E_COPIED | (m->l2_off + t * cs));
        for (uint64_t i = 0; i < cs / m->g.l2_entry_bytes; i++) {
            unsigned style = seed % 4 == 3 ? 0 : t % 4;
            uint64_t raw = calm ? at < stop ? Q2_E_COPIED | at << cluster_bits : 0 : random_entry(m, style, &at);
            if (calm && at < stop)
                m->counts[at++]++;
            be64 *e = (be64 *)(disk.bytes + m->l2_off + t * cs + i * m->g.l2_entry_bytes);
            be64_put(e, raw);
            if (sub)
                be64_put(e + 1, random_bits(m, raw, style == 3 || seed == 47));     /* 47: nothing else is wrong */
        }
    }
    for (uint64_t i = 0; i < blocks; i++)
        be64_put((be64 *)(disk.bytes + cs) + i, (2 + rt_clusters + i) * cs);
    for (uint64_t c = 0; c < m->clusters; c++) {
        uint64_t v = seed % 4 == 3 || prng_below(&m->r, 300) ? m->counts[c] : prng_below(&m->r, 3);
        if (seed % 4 == 3 && c == 2 * Q2_COUNTS_CHUNK)
            v++;                                     /* between chunks without faults */
        q2_refcount_put(&m->g, disk.bytes + (2 + rt_clusters) * cs, c, min_u64(v, m->g.refcount_max));
    }
    free(m->counts);
}

static void sum_up(void *arg, bool fixed, const char *id, const char *text)
{
    uint64_t *h = arg;
    for (; *text; text++)
        *h = *h * 31 + (uint8_t)*text;
}

static struct fmt_check_result gather(struct co *co, struct q2_image *q, bool one_by_one, uint64_t *ret_findings)
{
    struct fmt_check_opts o = { .finding = sum_up, .arg = ret_findings };
    struct q2_checker *k = calloc(1, sizeof *k);
    *k = (struct q2_checker){ .q = q, .store = q->im.store, .g = &q->g, .o = &o, .leftover = UINT64_MAX, .one_by_one = one_by_one };
    *ret_findings = 0;
    CHECK_EQ(q2_gather(co, k, NULL), 0);
    struct fmt_check_result res = k->res;
    q2_checker_fini(k);
    free(k);
    return res;
}

static void same_with_all_cores(struct co *co, void *arg)
{
    struct random_image m;
    disk_init();
    disk.die_at = UINT32_MAX;
    for (uint64_t seed = 0; seed < 52; seed += t_share()) {
        bool sub = seed >= 40;
        struct fmt_image *im;
        uint64_t serial_findings, findings;
        memset(disk.bytes, 0, IMAGE_CAP);
        random_image(&m, sub ? 14 : 9 + seed % 3, seed % 5 + 2, seed, sub);
        CHECK_EQ(open_disk(co, false, &im), 0);
        struct fmt_check_result serial = gather(co, q2_of(im), true, &serial_findings), all = gather(co, q2_of(im), false, &findings);
        CHECK(!sub || seed % 4 == 3 || (serial.corruptions > 0 && serial.compressed_clusters > 0));
        CHECK(sub || (serial.corruptions > 0 && serial.leaks > 0 && (serial.compressed_clusters > 0 || seed % 4 == 3) && serial.fragmented_clusters > 0));
        CHECK(!memcmp(&serial, &all, sizeof all));
        CHECK_EQ(serial_findings, findings);
        CHECK_EQ(im->ops->close(co, im), 0);
    }
    disk_fini();
}

static void all_cores(void **state) { t_run(0, same_with_all_cores, NULL); }

/* ---- both halves of an extended entry in one write ---- */

static void halves_body(struct co *co, void *arg)
{
    struct q2_plan p;
    struct prng r;
    struct fmt_image *im;
    prng_init(&r, 1);
    image = malloc(1u << 20);
    disk_init();
    make_image(&scenarios[0], &r, &p);
    disk_load(image, image_len, UINT32_MAX);
    CHECK_EQ(open_disk(co, true, &im), 0);
    struct q2_edits e = { 0 };
    uint64_t base = 2u << 20, n = 0;
    watch_halves = true;
    for (uint64_t at = 0; at < 24u << 20; at += 16 * (1 + prng_below(&r, 20))) {      /* more than one batch, spans cut anywhere */
        n++;
        if (n == 100)                    /* an odd number in the batch from here on */
            CHECK_EQ(q2_edits_add(co, &e, q2_of(im), 1u << 20, 0), 0);
        CHECK_EQ(q2_edits_add_pair(co, &e, q2_of(im), base + at, n, ~n), 0);
    }
    CHECK_EQ(q2_edits_apply(co, &e, q2_of(im)), 0);
    CHECK(watch_halves && n > Q2_EDITS_MAX);
    watch_halves = false;
    for (uint64_t step = 16; step <= 4096; step *= 256) {           /* 8 bytes each, every other one: no place where two of them are a pair */
        for (uint64_t i = 0; i < 8192 && i * step < 24u << 20; i++)
            CHECK_EQ(q2_edits_add(co, &e, q2_of(im), base + 8 + i * step, i + 1), 0);
        CHECK_EQ(q2_edits_apply(co, &e, q2_of(im)), 0);
        for (uint64_t i = 0; i < 8192 && i * step < 24u << 20; i++)
            CHECK_EQ(be64_get((be64 *)(disk.bytes + base + 8 + i * step)), i + 1);
    }
    q2_edits_fini(&e);
    CHECK_EQ(im->ops->close(co, im), 0);
    q2_plan_fini(&p);
    free(image);
    disk_fini();
}

static void halves(void **state) { t_run(0, halves_body, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(mending), cmocka_unit_test(mending_extended), cmocka_unit_test(halves), cmocka_unit_test(cut_repairs), cmocka_unit_test(endless), cmocka_unit_test(all_cores) };
    return T_MAIN("q2_check", tests);
}
