/* SPDX-License-Identifier: MIT
 *
 * q2_compact_test.c: compaction of an image in use (G.010): what it makes of a file, and whom it meets.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "fmt/qcow2/q2_compact_priv.h"
#include "fmt/qcow2/q2_disk_test.h"

#define KIB 1024ull
#define MIB (1024 * KIB)
#define CS 4096ull

static const struct make plain = { 3, 16, CS, 16 * MIB };
static const struct opening small = { .frontier_bytes = 8 * CS };

/* ---- how far? ---- */

/* A file in letters: u used, m movable, f free, p on its way to being free, and a digit for the refcount block of clusters from
 * 10 * digit on. */
static struct q2_aim aim_of(const char *file, uint64_t room)
{
    struct rset_range free_ranges[64];
    struct q2_block_at blocks[16];
    struct q2_marks movable = { 0 }, passing = { 0 };
    struct q2_shape s = { .end = strlen(file), .free = free_ranges, .room = room, .movable = &movable, .passing = &passing, .blocks = blocks };
    for (uint64_t i = 0; file[i]; i++) {
        if (file[i] == 'm')
            q2_marks_add(&movable, i, 1);
        else if (file[i] == 'p')
            q2_marks_add(&passing, i, 1);
        else if (file[i] >= '0' && file[i] <= '9')
            blocks[s.block_count++] = (struct q2_block_at){ i, (uint64_t)(file[i] - '0') * 10 };
        else if (file[i] == 'f' && s.free_count && free_ranges[s.free_count - 1].end == i)
            free_ranges[s.free_count - 1].end++;
        else if (file[i] == 'f')
            free_ranges[s.free_count++] = (struct rset_range){ i, i + 1, 0 };
    }
    struct q2_aim a = q2_shape_aim(&s);
    q2_marks_fini(&movable);
    q2_marks_fini(&passing);
    return a;
}

static void test_shape(void **state)
{
    static const struct { const char *file; uint64_t room, target, moved; } rows[] = {
        { "uuu", 0, 3, 0 },
        { "uffmm", 2, 3, 2 },            /* both fit */
        { "ufmmm", 1, 4, 1 },            /* one does */
        { "umfmfm", 2, 4, 1 },           /* a hole behind is no room, and goes by itself */
        { "uffmum", 2, 5, 1 },           /* behind what stays */
        { "ufff", 3, 1, 0 },
        { "ufpfpm", 2, 2, 1 },
        { "uuffffffff1m", 8, 10, 1 },    /* the block counts nothing but itself and what is moved */
        { "u1ffffffffmm", 8, 10, 2 },    /* one in front, of what is behind: it need not move */
        { "uuffffffuf1u", 9, 12, 0 },
        { "uuffffffffff1f", 10, 2, 0 }, /* all that it counts is free */
        { "uuffffffffuf1f", 9, 13, 0 },  /* it counts something */
        { "uuffffffffffff1f2", 12, 2, 0 },
        { "uuffffffffufff1f2", 12, 15, 0 },
        { "m", 0, 1, 0 },
        { "", 0, 0, 0 },
    };
    for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct q2_aim a = aim_of(rows[i].file, rows[i].room);
        if (a.target != rows[i].target || a.moved != rows[i].moved)
            fprintf(stderr, "%s\n", rows[i].file);
        assert_int_equal(a.target, rows[i].target);
        assert_int_equal(a.moved, rows[i].moved);
    }
}

/* ---- an image with holes ---- */

static struct { unsigned steps, stop_at; int (*step)(struct co *co); uint64_t done, total; } heard;

static int on_step(struct co *co, void *arg, uint64_t bytes)
{
    heard.steps++;
    if (heard.stop_at && heard.steps == heard.stop_at)
        return -ECANCELED;
    return heard.step ? heard.step(co) : 0;
}

static void on_progress(void *arg, uint64_t done, uint64_t total)
{
    CHECK(done >= heard.done && done <= total);
    heard.done = done;
}

static struct fmt_compact_result compact(struct co *co, struct q2_image *q, bool zeros, int want)
{
    struct fmt_compact_opts o = { .look_for_zeros = zeros, .progress = on_progress, .step = on_step };
    struct fmt_compact_result res = { 0 };
    struct byre_err err = { 0 };
    heard.steps = 0;
    heard.done = 0;
    if (!CHECK_EQ(q2_compact(co, &q->im, &o, &res, &err), want))
        fprintf(stderr, "%s\n", err.text);
    CHECK(!q->compacting && !q->alloc->low_end && !atomic_load(&q->hold_end) && !q->hold_users);
    return res;
}

#define CLUSTERS 600u
static bool kept(uint64_t i) { return i % 5 == 2 || i % 7 == 3; }

/* Guest cluster i holds i % 250 + 1 if it is kept, and nothing if not. zeros: every 11th of those kept. */
static struct q2_image *make_holes(struct co *co, const struct make *m, bool zeros)
{
    img_make(co, m);
    struct q2_image *q = img_open(co, &small);
    for (uint64_t i = 0; i < CLUSTERS; i++)
        CHECK_EQ(g_write(co, q, i * m->cluster_size, m->cluster_size, zeros && i % 11 == 0 ? 0 : (uint8_t)(i % 250 + 1)), 0);
    CHECK_EQ(g_flush(co, q), 0);
    for (uint64_t i = 0; i < CLUSTERS; i++)
        if (!kept(i))
            CHECK_EQ(q2_discard(co, &q->im, i * m->cluster_size, m->cluster_size), 0);
    CHECK_EQ(img_close(co, q), 0);
    return img_open(co, &small);
}

static bool holds(struct co *co, struct q2_image *q, bool zeros)
{
    uint64_t cs = q->g.cluster_size;
    bool ok = true;
    for (uint64_t i = 0; ok && i < CLUSTERS; i++)
        ok = g_holds(co, q, i * cs, cs, !kept(i) || (zeros && i % 11 == 0) ? 0 : (uint8_t)(i % 250 + 1));
    return ok;
}

static uint64_t kept_bytes(uint64_t cs)
{
    uint64_t n = 0;
    for (uint64_t i = 0; i < CLUSTERS; i++)
        n += kept(i);
    return n * cs;
}

static void no_faults(struct co *co)
{
    uint64_t leaks = 0;
    CHECK_EQ(img_faults(co, &leaks), 0);
    CHECK_EQ(leaks, 0);
}

static void end(struct co *co, struct q2_image *q, bool zeros)
{
    CHECK(states_ok(co, q));
    CHECK(holds(co, q, zeros));
    CHECK_EQ(img_close(co, q), 0);
    no_faults(co);
    q = img_open(co, &small);
    CHECK(holds(co, q, zeros));
    CHECK_EQ(img_close(co, q), 0);
}

static void shrinks_body(struct co *co, void *arg)
{
    struct q2_image *q = make_holes(co, arg, false);
    uint64_t before = disk.len, cs = q->g.cluster_size;
    struct fmt_compact_result res = compact(co, q, false, 0);
    CHECK(before > CLUSTERS * cs && res.length_before == before && res.length_after == disk.len);
    CHECK(disk.len <= kept_bytes(cs) + 40 * cs);     /* tables and counts: with clusters of 512 bytes there are some */
    CHECK(res.moved && !res.zeroed);
    res = compact(co, q, false, 0);                  /* nothing is left to do */
    CHECK(!res.moved && res.length_after == res.length_before);
    for (uint64_t i = 0; i < CLUSTERS; i++)          /* and it grows again */
        CHECK_EQ(g_write(co, q, i * cs, cs, kept(i) ? (uint8_t)(i % 250 + 1) : 7), 0);
    for (uint64_t i = 0; i < CLUSTERS; i++)
        if (!kept(i))
            CHECK_EQ(q2_discard(co, &q->im, i * cs, cs), 0);
    (void)compact(co, q, false, 0);
    CHECK(disk.len <= kept_bytes(cs) + 40 * cs);
    end(co, q, false);
}

static void test_shrinks(void **state)
{
    static const struct make rows[] = { { 3, 16, CS, 16 * MIB }, { 3, 64, 512, 2 * MIB }, { 3, 1, 512, 2 * MIB }, { 2, 16, CS, 16 * MIB },
        { 3, 16, CS, 16 * MIB, true } };
    for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++)
        t_run(0, shrinks_body, (void *)&rows[i]);
}

/* S2 of q2_shorten.c: when the file is cut, no durable entry of the refcount table names what goes. */
static unsigned cuts, late;
static int look_at_cut(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    const struct q2_disk_header *h = (const struct q2_disk_header *)disk.durable;
    for (uint64_t i = 0; what == 'T' && off < disk.len && i < be32_get(&h->rt_clusters) * 512ull / 8; i++)
        late += be64_get((const be64 *)(disk.durable + be64_get(&h->rt_off) + 8 * i)) >= off;
    cuts += what == 'T' && off < disk.len;
    return 0;
}

static void cut_body(struct co *co, void *arg)
{
    static const struct make tiny = { 3, 64, 512, 2 * MIB };       /* 64 counts a block */
    struct q2_image *q = make_holes(co, &tiny, false);
    uint64_t blocks = 0, left = 0;
    for (uint64_t i = 0; i < q->rt_entries; i++)
        blocks += q->rt[i] != 0;
    cuts = late = 0;
    disk.hook = look_at_cut;
    (void)compact(co, q, false, 0);
    disk.hook = NULL;
    for (uint64_t i = 0; i < q->rt_entries; i++)
        left += q->rt[i] != 0;
    CHECK(cuts && !late);
    CHECK(left < blocks);
    end(co, q, false);
}

static void test_cut(void **state) { t_run(0, cut_body, NULL); }

/* Subclusters: a part of each. */
static void sub_body(struct co *co, void *arg)
{
    uint64_t cs = 64 * KIB, sub = 2 * KIB;
    img_make(co, &(struct make){ .version = 3, .refcount_bits = 16, .cluster_size = cs, .size = 16 * MIB, .sub = true });
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = cs });
    for (uint64_t i = 0; i < 100; i++)
        CHECK_EQ(g_write(co, q, i * cs + i % 30 * sub, 2 * sub, i % 10 == 5 ? 0 : (uint8_t)(i + 1)), 0);
    for (uint64_t i = 0; i < 100; i += 2)
        CHECK_EQ(q2_discard(co, &q->im, i * cs, cs), 0);
    struct fmt_compact_result res = compact(co, q, true, 0);
    CHECK(res.moved && res.zeroed == 10 * cs);
    CHECK(disk.len <= (40 + 8) * cs);
    for (uint64_t i = 0; i < 100; i++) {
        CHECK(g_holds(co, q, i * cs + i % 30 * sub, 2 * sub, i % 2 == 0 || i % 10 == 5 ? 0 : (uint8_t)(i + 1)));
        CHECK(g_holds(co, q, i * cs + (i % 30 + 2) % 32 * sub, sub, 0));
    }
    CHECK_EQ(img_close(co, q), 0);
    no_faults(co);
}

static void test_subclusters(void **state) { t_run(0, sub_body, NULL); }

static void zeros_body(struct co *co, void *arg)
{
    struct q2_image *q = make_holes(co, &plain, true);
    uint64_t zeros = 0;
    for (uint64_t i = 0; i < CLUSTERS; i += 11)
        zeros += kept(i) ? CS : 0;
    struct fmt_compact_result res = compact(co, q, true, 0);
    CHECK_EQ(res.zeroed, zeros);
    CHECK(disk.len <= kept_bytes(CS) - zeros + 20 * CS);
    CHECK(!g_host(co, q, 22 * CS) && g_host(co, q, 2 * CS));
    end(co, q, true);
}

static void test_zeros(void **state) { t_run(0, zeros_body, NULL); }

/* Pieces share host clusters, and some are dropped. */
static void packed_body(struct co *co, void *arg)
{
    img_make(co, &(struct make){ 3, 16, 64 * KIB, 64 * MIB });
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 64 * KIB });
    uint64_t cs = 64 * KIB, n = 200;
    uint8_t *bytes = malloc(cs);
    for (uint64_t i = 0; i < n; i++) {
        for (uint64_t k = 0; k < cs; k++)            /* compresses to a third or so */
            bytes[k] = k % 3 ? (uint8_t)(i + 1) : (uint8_t)hash_mix64(i * cs + k);
        CHECK_EQ(g_compress_bytes(co, q, i * cs, cs, bytes), 0);
    }
    CHECK_EQ(q2_discard(co, &q->im, 0, n / 2 * cs), 0);
    CHECK_EQ(g_flush(co, q), 0);
    uint64_t before = disk.len;
    struct fmt_compact_result res = compact(co, q, true, 0);
    CHECK(res.moved && disk.len < before / 5 * 3);
    res = compact(co, q, true, 0);
    CHECK(disk.len < before / 5 * 3 && res.moved < 20 * cs);
    for (uint64_t i = n / 2; i < n; i++) {
        uint8_t *got = malloc(cs);
        CHECK_EQ(g_read(co, q, i * cs, cs, got), 0);
        for (uint64_t k = 0; k < cs; k++)
            bytes[k] = k % 3 ? (uint8_t)(i + 1) : (uint8_t)hash_mix64(i * cs + k);
        CHECK(memcmp(got, bytes, cs) == 0);
        free(got);
    }
    free(bytes);
    CHECK_EQ(img_close(co, q), 0);
    no_faults(co);
}

static void test_packed(void **state) { t_run(0, packed_body, NULL); }

/* What a snapshot shares stays, and so does the snapshot. */
static void snapshot_body(struct co *co, void *arg)
{
    struct q2_image *q = make_holes(co, &plain, false);
    CHECK_EQ(q2_snapshot_op(co, &q->im, &(struct fmt_snapshot_req){ .op = FMT_SNAPSHOT_CREATE, .name = "s" }, NULL, NULL), 0);
    for (uint64_t i = 0; i < CLUSTERS; i++)
        CHECK_EQ(g_write(co, q, i * CS, CS, 9), 0);
    CHECK_EQ(q2_discard(co, &q->im, 0, CLUSTERS / 2 * CS), 0);
    struct fmt_compact_result res = compact(co, q, true, 0);
    CHECK(res.moved && res.length_after < res.length_before);
    CHECK(g_holds(co, q, 0, CLUSTERS / 2 * CS, 0) && g_holds(co, q, CLUSTERS / 2 * CS, CLUSTERS / 2 * CS, 9));
    CHECK_EQ(q2_snapshot_op(co, &q->im, &(struct fmt_snapshot_req){ .op = FMT_SNAPSHOT_APPLY, .pick.any = "s" }, NULL, NULL), 0);
    end(co, q, false);
}

static void test_snapshot(void **state) { t_run(0, snapshot_body, NULL); }

/* A device has no end to cut; its holes are given back all the same. */
static unsigned punched;
static int count_punches(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    punched += what == 'D' ? (unsigned)(len / CS) : 0;
    return 0;
}

static void device_body(struct co *co, void *arg)
{
    struct q2_image *q = make_holes(co, &plain, false);
    CHECK_EQ(img_close(co, q), 0);
    disk.fixed_length = true;
    uint64_t len = disk.len;
    q = img_open(co, &small);
    punched = 0;
    disk.hook = count_punches;
    struct fmt_compact_result res = compact(co, q, false, 0);
    disk.hook = NULL;
    CHECK(res.moved && disk.len == len && punched > CLUSTERS / 2);
    end(co, q, false);
}

static void test_device(void **state) { t_run(0, device_body, NULL); }

/* The cut at the end fails, and no punch has emptied what lies behind it: the file stays as long as it was, with old bytes in it, while
 * the allocator's end has moved to its front. Space gained there anew is not taken for zeros (F2 of q2_frontier.c). */
static unsigned cuts_failed;
static int fail_cut(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    if (what != 'D' && (what != 'T' || off >= disk.len))
        return 0;
    cuts_failed += what == 'T';
    return -EIO;
}

static unsigned old_bytes(uint64_t from)
{
    unsigned n = 0;
    for (uint64_t c = from; c < disk.len / CS; c++)
        n += disk.bytes[c * CS + CS / 2] != 0;
    return n;
}

static void failed_cut_body(struct co *co, void *arg)
{
    struct q2_image *q = make_holes(co, &plain, false);
    uint64_t len = disk.len, before = q->alloc->end, in_tail = 0;
    cuts_failed = 0;
    disk.hook = fail_cut;
    compact(co, q, false, -EIO);
    uint64_t end_now = q->alloc->end;
    CHECK(cuts_failed && disk.len == len && end_now < before && q->alloc->zero_from == end_now && old_bytes(end_now) > 16);
    for (uint64_t i = 0; i < CLUSTERS; i++)
        if (!kept(i)) {
            CHECK_EQ(g_write(co, q, i * CS, 512, 251), 0);
            uint64_t host = g_host(co, q, i * CS);
            in_tail += host >= end_now * CS && host < len;
        }
    CHECK(in_tail > 16 && disk.len > len);           /* some behind the old length, too */
    disk.hook = NULL;
    CHECK_EQ(g_flush(co, q), 0);
    CHECK(states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    q = img_open(co, &small);
    for (uint64_t i = 0; i < CLUSTERS; i++)
        if (kept(i))
            CHECK(g_holds(co, q, i * CS, CS, (uint8_t)(i % 250 + 1)));
        else
            CHECK(g_holds(co, q, i * CS, 512, 251) && g_holds(co, q, i * CS + 512, CS - 512, 0));
    CHECK_EQ(img_close(co, q), 0);
    no_faults(co);
}

static void test_failed_cut(void **state) { t_run(0, failed_cut_body, NULL); }

/* A block of counts lies behind the cut and is counted in front of it, and that count cannot be read when it has to fall: the cut goes
 * behind its cluster, which becomes free all the same, and the next cut takes it. */
static unsigned armed, failed_reads;
static int fail_behind_cut(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    const struct q2_disk_header *h = (const struct q2_disk_header *)disk.durable;
    uint64_t rt = be64_get(&h->rt_off);
    armed |= what == 'W' && off >= rt && off < rt + be32_get(&h->rt_clusters) * 512ull;
    if (what != 'R' || !armed || failed_reads)
        return 0;
    failed_reads++;
    return -EIO;
}

static void drop_from(struct q2_image *q, struct rset *held, uint64_t from)
{
    struct rset_range x;
    for (uint64_t at = from; rset_next(held, at, &x); at = x.end)
        q2_alloc_drop(q, max_u64(x.start, from), x.end - max_u64(x.start, from));
    CHECK_EQ(rset_remove(held, from, UINT32_MAX), 0);
}

static void uncount_body(struct co *co, void *arg)
{
    static const struct make tiny = { 3, 64, 512, 2 * MIB };       /* 64 counts a block */
    struct q2_run run;
    struct rset held;
    uint64_t leaks = 0;
    rset_init(&held);
    img_make(co, &tiny);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 90 * 512 });
    while (q->alloc->end < 300) {
        CHECK_EQ(q2_alloc_take(co, q, 1, &run), 0);
        CHECK_EQ(rset_add(&held, run.cluster, run.cluster + run.count, 0), 0);
    }
    uint64_t block = 0;
    for (uint64_t i = 0; i < q->rt_entries; i++)
        block = q->rt[i] && q->rt[i] / 512 / 64 < i ? q->rt[i] / 512 : block;
    CHECK(block > 100);
    drop_from(q, &held, block - 2);
    CHECK_EQ(q2_alloc_trim(co, q), 0);
    CHECK_EQ(meta_flush(co, q->meta), 0);
    meta_forget_all(q->meta);
    armed = failed_reads = 0;
    disk.hook = fail_behind_cut;
    CHECK_EQ(q2_shorten(co, q), 0);
    disk.hook = NULL;
    CHECK_EQ(failed_reads, 1);
    CHECK_EQ(disk.len, (block + 1) * 512);
    CHECK(states_ok(co, q));
    CHECK_EQ(q2_drop_settle(co, q), 0);
    CHECK_EQ(q->alloc->lost, 0);
    CHECK(states_ok(co, q));
    CHECK_EQ(q2_shorten(co, q), 0);
    CHECK(disk.len < block * 512);
    CHECK_EQ(q2_alloc_take(co, q, 100, &run), 0);                  /* and it grows again */
    q2_alloc_drop(q, run.cluster, run.count);
    drop_from(q, &held, 0);
    rset_fini(&held);
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, &leaks), 0);
    CHECK_EQ(leaks, 0);
}

static void test_uncount(void **state) { t_run(0, uncount_body, NULL); }

/* ---- refused, cancelled, failed ---- */

static struct q2_image *in_use;
static int others(struct co *co)
{
    struct fmt_compact_result res;
    struct fmt_check_result found = { 0 };
    CHECK_EQ(q2_compact(co, &in_use->im, &(struct fmt_compact_opts){ 0 }, &res, NULL), -EBUSY);
    CHECK_EQ(q2_scrub(co, &in_use->im, &(struct fmt_check_opts){ 0 }, &found, NULL), -EBUSY);
    CHECK_EQ(q2_resize(co, &in_use->im, 32 * MIB, FMT_PREALLOC_OFF, NULL), -EBUSY);
    CHECK_EQ(q2_snapshot_op(co, &in_use->im, &(struct fmt_snapshot_req){ .op = FMT_SNAPSHOT_CREATE, .name = "s" }, NULL, NULL), -EBUSY);
    return 0;
}

static void refused_body(struct co *co, void *arg)
{
    struct q2_image *q = in_use = make_holes(co, &plain, false);
    heard.step = others;
    (void)compact(co, q, false, 0);
    CHECK(heard.steps > 2);
    heard.step = NULL;
    CHECK_EQ(q2_resize(co, &q->im, 32 * MIB, FMT_PREALLOC_OFF, NULL), 0);
    (void)compact(co, q, false, -EBUSY);             /* before it is committed */
    CHECK_EQ(q2_resize_commit(co, &q->im, true, NULL), 0);
    end(co, q, false);
    q = img_open(co, &(struct opening){ .read_only = true });
    struct fmt_compact_result res;
    CHECK_EQ(q2_compact(co, &q->im, &(struct fmt_compact_opts){ 0 }, &res, NULL), -EROFS);
    CHECK_EQ(img_close(co, q), 0);
}

static void test_refused(void **state) { t_run(0, refused_body, NULL); }

/* Damage is told, nothing is moved. */
static void damaged_body(struct co *co, void *arg)
{
    struct q2_image *q = make_holes(co, &plain, false);
    CHECK_EQ(img_close(co, q), 0);
    uint64_t at = img_l2_at(2 * CS), to = img_l2_at(3 * CS);
    be64_put(disk_be64(at), be64_get(disk_be64(to)));              /* two owners of one cluster */
    q = img_open(co, &small);
    struct fmt_compact_result res = compact(co, q, false, -EIO);
    CHECK(!res.moved);
    CHECK_EQ(img_close(co, q), 0);
}

static void test_damaged(void **state) { t_run(0, damaged_body, NULL); }

static void cancel_body(struct co *co, void *arg)
{
    bool ended = false;
    for (unsigned at = 1; !ended && at < 200; at++) {
        struct q2_image *q = make_holes(co, &plain, true);
        struct fmt_compact_opts o = { .look_for_zeros = true, .step = on_step };
        struct fmt_compact_result res = { 0 };
        heard.steps = 0;
        heard.stop_at = at;
        int r = q2_compact(co, &q->im, &o, &res, NULL);
        ended = r == 0;
        CHECK(r == 0 || r == -ECANCELED);
        heard.stop_at = 0;
        if (at % 2)
            (void)compact(co, q, false, 0);
        end(co, q, true);
    }
    CHECK(ended);
}

static void test_cancel(void **state) { t_run(0, cancel_body, NULL); }

static unsigned fail_at, calls;
static char fail_what;
static int fail_nth(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf) { return what == fail_what && ++calls == fail_at ? -EIO : 0; }

/* Any request fails: the guest's data stays, the next opening finds a sound image. */
static void failing_body(struct co *co, void *arg)
{
    static const char what[] = "RWFTD";
    for (unsigned w = 0; what[w]; w++) {
        unsigned step = t_share() * (what[w] == 'F' || what[w] == 'T' ? 1 : 13);
        fail_what = what[w];
        for (fail_at = 1; fail_at < 4000; fail_at += step) {
            struct q2_image *q = make_holes(co, &plain, true);
            struct fmt_compact_opts o = { .look_for_zeros = fail_at % 2 };
            struct fmt_compact_result res = { 0 };
            struct byre_err err = { 0 };
            disk.hook = fail_nth;
            disk.land = fail_at % 3 == 0;
            calls = 0;
            int r = q2_compact(co, &q->im, &o, &res, &err);
            disk.hook = NULL;
            bool hit = calls >= fail_at;
            CHECK(r == 0 || err.code);
            CHECK(holds(co, q, true));
            int c = img_close(co, q);
            CHECK(c == 0 || hit);
            disk.land = false;
            CHECK_EQ(img_faults(co, NULL), 0);
            q = img_open(co, &small);
            CHECK(holds(co, q, true));
            CHECK_EQ(img_close(co, q), 0);
            if (!hit)
                break;
        }
        CHECK(fail_at > 1 && fail_at < 4000);
    }
}

static void test_failing(void **state) { t_run(0, failing_body, NULL); }

/* ---- meetings ---- */

/* Writes to this host range wait until `wait` is false. */
static struct { uint64_t from, end; bool wait, arrived; } gate;
static int gated(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    if (what == 'W' && off < gate.end && off + len > gate.from && gate.wait) {
        gate.arrived = true;
        while (gate.wait)
            co_yield(co);
    }
    return 0;
}

struct guest { struct q2_image *q; uint64_t off, len; uint8_t fill; bool done; };
static void guest_co(struct co *co, void *arg)
{
    struct guest *g = arg;
    CHECK_EQ(g_write(co, g->q, g->off, g->len, g->fill), 0);
    g->done = true;
}

struct worker { struct q2_image *q; bool done; };
static void compact_co(struct co *co, void *arg)
{
    struct worker *w = arg;
    (void)compact(co, w->q, true, 0);
    w->done = true;
}
static void unhold_co(struct co *co, void *arg)
{
    struct worker *w = arg;
    q2_unhold(co, w->q);
    w->done = true;
}

static void turns(struct co *co, unsigned n)
{
    while (n--)
        co_yield(co);
}

/* B1: a writer is still inside, in place, when its cluster is to be moved; another comes meanwhile. */
static void inside_body(struct co *co, void *arg)
{
    uint64_t last = CLUSTERS - 1;
    while (!kept(last))
        last--;
    struct q2_image *q = make_holes(co, &plain, false);
    uint64_t host = g_host(co, q, last * CS);
    gate.from = host;
    gate.end = host + CS;
    gate.wait = true;
    gate.arrived = false;
    disk.hook = gated;
    struct guest one = { q, last * CS, 512, 0xd1 }, two = { q, last * CS + 1024, 512, 0xd2 };
    struct worker w = { q };
    CHECK_EQ(rt_spawn(co_loop(co), guest_co, &one), 0);
    while (!gate.arrived)
        co_yield(co);
    CHECK_EQ(rt_spawn(co_loop(co), compact_co, &w), 0);
    turns(co, 20000);
    CHECK(!w.done && g_host(co, q, last * CS) == host);
    CHECK_EQ(rt_spawn(co_loop(co), guest_co, &two), 0);
    turns(co, 2000);
    gate.wait = false;
    while (!w.done || !one.done || !two.done)
        co_yield(co);
    disk.hook = NULL;
    uint64_t now = g_host(co, q, last * CS);
    CHECK(now && now != host);
    uint8_t old = (uint8_t)(last % 250 + 1);
    CHECK(g_holds(co, q, last * CS, 512, 0xd1) && g_holds(co, q, last * CS + 512, 512, old));
    CHECK(g_holds(co, q, last * CS + 1024, 512, 0xd2) && g_holds(co, q, last * CS + 1536, CS - 1536, old));
    CHECK_EQ(img_close(co, q), 0);
    no_faults(co);
}

static void test_inside(void **state) { t_run(0, inside_body, NULL); }

static int gated_new(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    if (what == 'W' && gate.wait && (off >= gate.end || off + len <= gate.from) && buf[0] == 0xe1) {
        gate.arrived = true;
        while (gate.wait)
            co_yield(co);
    }
    return 0;
}

/* B2: a held cluster is being replaced by a writer; the hold must not end in front of him. */
static void users_body(struct co *co, void *arg)
{
    struct q2_image *q = make_holes(co, &plain, false);
    uint64_t host = g_host(co, q, 2 * CS);
    gate.from = host;
    gate.end = host + CS;
    gate.wait = true;
    gate.arrived = false;
    disk.hook = gated_new;
    struct guest one = { q, 2 * CS, 512, 0xe1 }, two = { q, 2 * CS + 1024, 512, 0xe2 };
    struct worker w = { q };
    q2_hold(co, q, host, host + CS);
    CHECK_EQ(rt_spawn(co_loop(co), guest_co, &one), 0);
    while (!gate.arrived)
        co_yield(co);
    CHECK_EQ(rt_spawn(co_loop(co), unhold_co, &w), 0);
    turns(co, 100);
    CHECK(!w.done);
    CHECK_EQ(rt_spawn(co_loop(co), guest_co, &two), 0);
    turns(co, 1000);
    gate.wait = false;
    while (!w.done || !one.done || !two.done)
        co_yield(co);
    disk.hook = NULL;
    CHECK(g_host(co, q, 2 * CS) != host);
    CHECK(g_holds(co, q, 2 * CS, 512, 0xe1) && g_holds(co, q, 2 * CS + 512, 512, 3));
    CHECK(g_holds(co, q, 2 * CS + 1024, 512, 0xe2) && g_holds(co, q, 2 * CS + 1536, CS - 1536, 3));
    CHECK_EQ(img_close(co, q), 0);
    no_faults(co);
}

static void test_users(void **state) { t_run(0, users_body, NULL); }

/* Where a map has read an entry, on another loop as it were, and has not said yet what it makes of it. */
static struct { struct q2_image *q; struct meta_block *b; uint32_t index; uint64_t to; } paused;
void q2_map_pause(void);
void q2_map_pause(void)
{
    struct q2_image *q = paused.q;
    struct q2_l2e old, new;
    if (!q)
        return;
    paused.q = NULL;
    CHECK(q2_entry_get(q, paused.b, paused.index, &old));
    new = old;
    new.host = paused.to;
    q2_entry_set(q, paused.b, paused.index, &new);
    q2_alloc_drop_moved(q, old.host >> q->g.cluster_bits, 1);
    meta_need_data_barrier(q->meta);
    atomic_store(&q->hold_end, 0);
}

/* B1: an entry is read, the cluster is moved and the hold ends before the map looks whether it is held. */
static void late_look_body(struct co *co, void *arg)
{
    static const struct make makes[] = { { 3, 16, CS, 16 * MIB }, { .version = 3, .refcount_bits = 16, .cluster_size = 64 * KIB, .size = 16 * MIB, .sub = true } };
    for (unsigned i = 0; i < 2; i++) {
        img_make(co, &makes[i]);
        struct q2_image *q = img_open(co, &small);
        uint64_t cs = q->g.cluster_size;
        struct fmt_extent e;
        struct q2_run run;
        CHECK_EQ(g_write(co, q, 0, cs, 7), 0);
        uint64_t host = g_host(co, q, 0);
        CHECK_EQ(q2_alloc_take(co, q, 1, &run), 0);
        paused.to = run.cluster * cs;
        uint8_t *buf = malloc(cs);
        memset(buf, 7, cs);
        CHECK_EQ(stor_write_buf(co, q->im.data, buf, cs, paused.to, 0), 0);
        free(buf);
        CHECK_EQ(q2_slice_get(co, q, 0, &paused.b, &paused.index), 0);
        q2_hold(co, q, host, host + cs);
        epoch_token t = epoch_enter(q->im.epoch, co_loop(co));
        paused.q = q;
        CHECK_EQ(q2_map(co, &q->im, 0, cs, &e), 0);
        CHECK(!paused.q && e.kind == FMT_DATA);
        CHECK(!e.writable || e.host == run.cluster * cs);
        CHECK_EQ(q2_map(co, &q->im, 0, cs, &e), 0);
        CHECK(e.writable && e.host == run.cluster * cs);
        epoch_leave(q->im.epoch, co_loop(co), t);
        meta_put(q->meta, paused.b);
        CHECK(g_holds(co, q, 0, cs, 7));
        CHECK_EQ(img_close(co, q), 0);
        no_faults(co);
    }
}

static void test_late_look(void **state) { t_run(0, late_look_body, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shape), cmocka_unit_test(test_shrinks), cmocka_unit_test(test_cut), cmocka_unit_test(test_subclusters), cmocka_unit_test(test_zeros), cmocka_unit_test(test_packed),
        cmocka_unit_test(test_snapshot), cmocka_unit_test(test_device), cmocka_unit_test(test_failed_cut),
        cmocka_unit_test(test_refused), cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_uncount), cmocka_unit_test(test_cancel), cmocka_unit_test(test_failing), cmocka_unit_test(test_inside), cmocka_unit_test(test_users), cmocka_unit_test(test_late_look),
    };
    ASSERT(disk_setup(NULL) == 0);
    int failed = T_MAIN("qcow2 compact", tests);
    disk_teardown(NULL);
    return failed;
}
