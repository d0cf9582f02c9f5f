/* SPDX-License-Identifier: MIT
 *
 * q2_encode_test.c: compressed clusters: packing, counting, rewriting, failure, kept decoded clusters.
 *
 * Purpose      K1..K6 of q2_pack.c, C1..C4 of q2_encode.c, U1..U4 of q2_decode.c, over cluster sizes and widths of counts.
 * Owns         One disk (q2_disk_test.h).
 * Invariants   None.
 * Concurrency  One loop at a time.
 * Failure      A failed check fails the test.
 * Tests        This is one.
 */
#include "fmt/qcow2/q2_disk_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KIB 1024ull
#define MIB (1024 * KIB)

static struct q2_l2e entry(struct co *co, struct q2_image *q, uint64_t guest)
{
    struct meta_block *b;
    uint32_t i;
    struct q2_l2e e = { 0 };
    CHECK_EQ(q2_slice_get(co, q, guest, &b, &i), 0);
    if (b) {
        CHECK(q2_entry_get(q, b, i, &e));
        meta_put(q->meta, b);
    }
    return e;
}

static uint64_t count_of(struct co *co, struct q2_image *q, uint64_t host)
{
    uint64_t n = 0;
    CHECK_EQ(q2_refs_get(co, q, host >> q->g.cluster_bits, &n), 0);
    return n;
}

/* Half noise, so that a cluster becomes about half as large. */
static uint8_t *half_noise(uint64_t seed, uint64_t len, uint64_t cs)
{
    struct prng r;
    uint8_t *p = calloc(1, len);
    prng_init(&r, seed);
    for (uint64_t at = 0; at < len; at += cs)
        prng_fill(&r, p + at, min_u64(cs / 2, len - at));
    return p;
}

static bool reads(struct co *co, struct q2_image *q, uint64_t off, uint64_t len, const uint8_t *want)
{
    uint8_t *buf = malloc(len);
    bool ok = CHECK_EQ(g_read(co, q, off, len, buf), 0) && CHECK(!memcmp(buf, want, len));
    free(buf);
    return ok;
}

static void sound(struct co *co)
{
    uint64_t leaks = 99;
    CHECK_EQ(img_faults(co, &leaks), 0);
    CHECK_EQ(leaks, 0);
}

/* ---- all sizes and widths ---- */

static void geometry(struct co *co, const struct make *m)
{
    img_make(co, m);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 8 * m->cluster_size });
    uint64_t cs = m->cluster_size, n = min_u64(m->size / cs, 150);
    uint8_t *bytes = half_noise(n, n * cs, cs);
    CHECK_EQ(g_compress_bytes(co, q, 0, n * cs, bytes), 0);              /* in one call: several parts */
    CHECK(reads(co, q, 0, n * cs, bytes));
    for (uint64_t i = 0; i < n; i++) {
        struct q2_l2e e = entry(co, q, i * cs);
        CHECK(e.kind == Q2_COMPRESSED && !e.copied && e.comp_bytes <= cs + 512);      /* C4 */
    }
    for (uint64_t i = 0; i < n; i += 3)                                  /* one by one, over what is there */
        CHECK_EQ(g_compress(co, q, i * cs, cs, (uint8_t)(1 + i)), 0);
    CHECK(states_ok(co, q));
    CHECK_EQ(g_flush(co, q), 0);
    for (uint64_t i = 1; i < n; i += 3)
        CHECK_EQ(g_write(co, q, i * cs + 512 % cs, min_u64(512, cs), 7), 0);
    CHECK(states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    sound(co);
    q = img_open(co, &(struct opening){ .read_only = true });
    for (uint64_t i = 0; i < n; i += 3)
        CHECK(g_holds(co, q, i * cs, cs, (uint8_t)(1 + i)));
    for (uint64_t i = 2; i < n; i += 3)
        CHECK(reads(co, q, i * cs, cs, bytes + i * cs));
    CHECK_EQ(img_close(co, q), 0);
    free(bytes);
}

static void geometry_body(struct co *co, void *arg)
{
    for (uint32_t bits = 9; bits <= 21; bits++) {
        geometry(co, &(struct make){ 3, 16, 1ull << bits, min_u64(200ull << bits, 24 * MIB) });
        if (bits == 9 || bits == 12)
            for (uint32_t w = 1; w <= 64; w *= 2)
                geometry(co, &(struct make){ 3, w, 1ull << bits, 200ull << bits });
    }
    geometry(co, &(struct make){ 2, 16, 4096, 4096 * 200 });
}

static void test_geometry(void **state) { t_run(0, geometry_body, NULL); }

/* ---- packing ---- */

static void packing_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, 4096, 1 * MIB };
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 64 * KIB });
    CHECK_EQ(g_compress(co, q, 0, 4 * 4096, 1), 0);
    struct q2_l2e a = entry(co, q, 0), d = entry(co, q, 3 * 4096);
    CHECK_EQ(a.host >> 12, d.host >> 12);
    CHECK_EQ(count_of(co, q, a.host), 5);                                /* four, and one for filling it: K2 */
    CHECK_EQ(g_compress(co, q, 4 * 4096, 4096, 2), 0);
    struct q2_l2e e = entry(co, q, 4 * 4096);
    CHECK_EQ(e.host >> 12, a.host >> 12);
    CHECK(e.host / 512 > (d.host + 20) / 512 && e.host % 512 == 0);      /* K4 */
    /* all of them go, and the cluster stays with whoever fills it */
    uint64_t c = a.host >> 12;
    CHECK_EQ(q2_discard(co, &q->im, 0, 5 * 4096), 0);
    CHECK_EQ(g_flush(co, q), 0);
    CHECK_EQ(q2_drop_settle(co, q), 0);
    CHECK_EQ(count_of(co, q, a.host), 1);
    CHECK_EQ(g_write(co, q, 512 * KIB, 40 * 4096, 9), 0);
    for (uint64_t i = 0; i < 40; i++)
        CHECK(g_host(co, q, 512 * KIB + i * 4096) >> 12 != c);
    CHECK_EQ(g_compress(co, q, 8 * 4096, 4096, 3), 0);
    struct q2_l2e f = entry(co, q, 8 * 4096);
    CHECK_EQ(f.host >> 12, c);
    CHECK(f.host > e.host);                                              /* K1 */
    CHECK(states_ok(co, q));
    /* the last piece takes the reference for filling over: K2 */
    for (unsigned i = 0; (q->alloc->pack.pos >> 12) == c; i++)
        CHECK_EQ(g_compress(co, q, (16 + i) * 4096, 4096, 4), 0);
    uint64_t pieces = 0;
    for (unsigned i = 0; i < 64; i++)
        pieces += entry(co, q, i * 4096).kind == Q2_COMPRESSED && entry(co, q, i * 4096).host >> 12 == c;
    CHECK_EQ(count_of(co, q, a.host), pieces);
    CHECK_EQ(img_close(co, q), 0);
    sound(co);
}

static void test_packing(void **state) { t_run(0, packing_body, NULL); }

/* Nothing else than what was asked may be lost when the cluster being filled has as many owners as it can have (1.043). */
static void full_count_body(struct co *co, void *arg)
{
    const struct make m = { 3, 4, 4096, 1 * MIB };
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 64 * KIB });
    uint8_t *bytes = malloc(40 * 4096);
    for (unsigned i = 0; i < 40 * 4096; i++)
        bytes[i] = (uint8_t)(i / 4096);
    CHECK_EQ(g_compress_bytes(co, q, 0, 40 * 4096, bytes), 0);           /* K5: 15 a cluster at most, though they would all fit */
    for (unsigned i = 0; i < 40; i++)
        CHECK_EQ(entry(co, q, i * 4096).host >> 12, (entry(co, q, 0).host >> 12) + i / 15);
    CHECK(states_ok(co, q));
    free(bytes);
    uint64_t host = q->alloc->pack.pos, n = count_of(co, q, host);
    CHECK(host % 4096);
    CHECK_EQ(q2_refs_add(co, q, host >> 12, 1, (int64_t)(15 - n)), 0);   /* as a snapshot would */
    CHECK_EQ(g_compress(co, q, 60 * 4096, 4096, 60), 0);
    CHECK(entry(co, q, 60 * 4096).host >> 12 != host >> 12);
    CHECK_EQ(g_flush(co, q), 0);
    CHECK_EQ(q2_drop_settle(co, q), 0);
    CHECK_EQ(q2_refs_add(co, q, host >> 12, 1, -(int64_t)(15 - n)), 0);
    for (unsigned i = 0; i < 40; i++)
        CHECK(g_holds(co, q, i * 4096, 4096, (uint8_t)i));
    CHECK(g_holds(co, q, 60 * 4096, 4096, 60));
    CHECK_EQ(img_close(co, q), 0);
    sound(co);
}

static void test_full_count(void **state) { t_run(0, full_count_body, NULL); }

/* Rewritten and not flushed, the old place is nobody's. */
static void rewrite_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, 4096, 4 * MIB };
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 16 * KIB });
    uint8_t *bytes = half_noise(5, 64 * 4096, 4096);
    CHECK_EQ(g_compress_bytes(co, q, 0, 64 * 4096, bytes), 0);
    CHECK_EQ(img_close(co, q), 0);
    q = img_open(co, &(struct opening){ .frontier_bytes = 16 * KIB });
    struct rset old;
    rset_init(&old);
    for (unsigned i = 0; i < 64; i++) {
        struct q2_l2e e = entry(co, q, i * 4096);
        CHECK(rset_add(&old, e.host >> 12, ((e.host + e.comp_bytes - 1) >> 12) + 1, 0) == 0);
    }
    CHECK_EQ(g_compress(co, q, 0, 32 * 4096, 1), 0);
    CHECK_EQ(g_write(co, q, 32 * 4096, 32 * 4096, 2), 0);
    CHECK_EQ(g_write(co, q, 1 * MIB, 100 * 4096, 3), 0);
    CHECK_EQ(g_compress(co, q, 2 * MIB, 100 * 4096, 4), 0);
    for (uint64_t at = 0; at < 4 * MIB; at += 4096) {
        struct q2_l2e e = entry(co, q, at);
        CHECK(!e.host || !rset_contains(&old, e.host >> 12, (e.host >> 12) + 1));
    }
    CHECK_EQ(g_flush(co, q), 0);
    CHECK_EQ(q2_drop_settle(co, q), 0);
    struct rset_range x;
    for (uint64_t at = 0; rset_next(&old, at, &x); at = x.end)           /* now it is free */
        for (uint64_t c = x.start; c < x.end; c++)
            CHECK_EQ(count_of(co, q, c << 12), 0);
    rset_fini(&old);
    CHECK(states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    sound(co);
    free(bytes);
}

static void test_rewrite(void **state) { t_run(0, rewrite_body, NULL); }

/* ---- failure ---- */

static uint64_t fail_from, fail_len;

static int fail_hook(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    return what == 'W' && off >= fail_from && off < fail_from + fail_len ? -EIO : 0;
}

static void failure_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, 4096, 1 * MIB };
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 64 * KIB });
    CHECK_EQ(g_compress(co, q, 0, 8 * 4096, 1), 0);
    CHECK_EQ(g_write(co, q, 8 * 4096, 8 * 4096, 2), 0);
    fail_from = q->alloc->pack.pos;
    fail_len = 4096;
    disk.hook = fail_hook;
    CHECK_EQ(g_compress(co, q, 4 * 4096, 8 * 4096, 3), -EIO);
    disk.hook = NULL;
    CHECK(q->alloc->pack.pos > fail_from);                               /* K1: those bytes may have been written */
    CHECK(g_holds(co, q, 0, 8 * 4096, 1) && g_holds(co, q, 8 * 4096, 8 * 4096, 2));
    CHECK(states_ok(co, q));
    CHECK_EQ(g_compress(co, q, 4 * 4096, 8 * 4096, 4), 0);
    CHECK(g_holds(co, q, 4 * 4096, 8 * 4096, 4));
    /* what an entry cannot say: nothing is done */
    uint64_t mask = q->g.coff_mask;
    q->g.coff_mask = q->alloc->pack.pos + 60;
    CHECK_EQ(g_compress(co, q, 0, 64 * 4096, 5), -EFBIG);
    q->g.coff_mask = mask;
    CHECK(g_holds(co, q, 0, 4 * 4096, 1) && g_holds(co, q, 4 * 4096, 8 * 4096, 4));
    CHECK(states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    sound(co);
}

static void test_failure(void **state) { t_run(0, failure_body, NULL); }

static void no_space_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, 4096, 4 * MIB };
    img_make(co, &m);
    disk.len = disk.durable_len = round_up(disk.len, 4096) + 20 * 4096;
    disk.fixed_length = true;
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 64 * KIB });
    uint8_t *bytes = half_noise(3, 4 * MIB, 4096);
    uint64_t done = 0;
    int r = 0;
    for (; r == 0 && done < 1024; done += r == 0)
        r = g_compress_bytes(co, q, done * 4096, 4096, bytes + done * 4096);
    CHECK_EQ(r, -ENOSPC);
    CHECK(done > 20 && done < 60);
    CHECK(reads(co, q, 0, done * 4096, bytes));
    CHECK(states_ok(co, q));
    CHECK_EQ(q2_discard(co, &q->im, 0, 20 * 4096), 0);                   /* and it goes on when there is room again */
    CHECK_EQ(g_compress_bytes(co, q, done * 4096, 4096, bytes + done * 4096), 0);
    CHECK(reads(co, q, 20 * 4096, (done - 19) * 4096, bytes + 20 * 4096));
    CHECK_EQ(img_close(co, q), 0);
    sound(co);
    free(bytes);
}

static void test_no_space(void **state) { t_run(0, no_space_body, NULL); }

/* ---- kept clusters ---- */

static unsigned fetched;

static int count_hook(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    fetched += what == 'R';
    co_yield(co);
    return 0;
}

struct part { struct q2_image *q; uint64_t off; uint8_t fill; struct co_group *group; };

static void part_co(struct co *co, void *arg)
{
    struct part *p = arg;
    CHECK(g_holds(co, p->q, p->off, 512, p->fill));
    co_group_leave(p->group);
}

static void kept_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, 4096, 1 * MIB };
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 64 * KIB });
    struct co_group group = { 0 };
    CHECK_EQ(g_compress(co, q, 0, 4096, 1), 0);
    fetched = 0;
    disk.hook = count_hook;
    struct part p[8];
    for (unsigned i = 0; i < 8; i++) {                                   /* at the same time: one fetches, the others wait */
        p[i] = (struct part){ q, i * 512, 1, &group };
        co_group_enter(&group);
        CHECK_EQ(rt_spawn(co_loop(co), part_co, &p[i]), 0);
    }
    co_group_wait(co, &group);
    CHECK_EQ(fetched, 1);
    CHECK(g_holds(co, q, 512, 1024, 1) && g_holds(co, q, 0, 4096, 1));
    CHECK_EQ(fetched, 1);
    disk.hook = NULL;
    CHECK_EQ(img_close(co, q), 0);
    sound(co);
}

static void test_kept(void **state) { t_run(0, kept_body, NULL); }

/* The same host place, again and again, with other bytes: a kept cluster is never shown for the new ones (U2). */
static void stale_body(struct co *co, void *arg)
{
    const struct make m = { 3, 1, 512, 16 * KIB };
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 512 });
    unsigned same = 0;
    uint64_t last = 0;
    for (unsigned n = 1; n <= 60; n++) {
        CHECK_EQ(g_compress(co, q, 0, 512, (uint8_t)n), 0);
        CHECK(g_holds(co, q, 256, 256, (uint8_t)n));
        CHECK(g_holds(co, q, 0, 256, (uint8_t)n));
        same += entry(co, q, 0).host <= last;
        last = entry(co, q, 0).host;
        CHECK_EQ(g_flush(co, q), 0);
        CHECK_EQ(q2_drop_settle(co, q), 0);
    }
    CHECK(same > 10);                                                    /* places were used again */
    CHECK_EQ(img_close(co, q), 0);
    sound(co);
}

static void test_stale(void **state) { t_run(0, stale_body, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_geometry), cmocka_unit_test(test_packing), cmocka_unit_test(test_full_count), cmocka_unit_test(test_rewrite),
        cmocka_unit_test(test_failure), cmocka_unit_test(test_no_space), cmocka_unit_test(test_kept), cmocka_unit_test(test_stale),
    };
    ASSERT(disk_setup(NULL) == 0);
    int failed = T_MAIN("qcow2 encode", tests);
    disk_teardown(NULL);
    return failed;
}
