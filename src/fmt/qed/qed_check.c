/* SPDX-License-Identifier: MIT
 *
 * qed_check.c: which rules does an image break?
 *
 * Purpose      Each cluster has one owner; every pointer is aligned, behind the header and in the file. The numbers are those
 *              of the peer's check (2.020, 5.018); each finding has a stable id.
 * Owns         struct checker while a check runs.
 * Invariants   I1 Memory follows the clusters that are in use, not the length that a file claims: 4 KiB for each 32768
 *                 clusters of which one is in use, and one word for each 32768 there are.
 *              I2 An L2 table that shares a cluster with something is not looked into: the work is bounded by the file.
 *              I3 Nothing is written.
 * Order        None.
 * Concurrency  Home loop.
 * Failure      -ENOMEM, -EIO for want of the file's length; a table that cannot be read is counted in check_errors.
 * Tests        qed_read_test.c, tests/interop/test_qed.py, fuzz/qed_open.c
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/qed/qed_image.h"

#define CHUNK_BITS 15u
#define CHUNK_WORDS ((1u << CHUNK_BITS) / 64)
#define PIECE_BYTES (1u << 20)
#define FINDINGS_MAX 100000u                      /* told one by one; all are counted */

struct checker {
    const struct qed_image *q;
    const struct qed_geom *g;
    const struct fmt_check_opts *o;
    uint64_t file_end, clusters;
    uint64_t **chunks;                            /* a bit per cluster of the file that has an owner */
    uint64_t chunk_count, used;
    uint8_t *l1, *l2;                             /* a piece of each */
    uint64_t told;
    struct fmt_check_result res;
};

static void finding(struct checker *k, const char *id, const char *fmt, ...) PRINTF_LIKE(3, 4);
static void finding(struct checker *k, const char *id, const char *fmt, ...)
{
    char text[200];
    va_list ap;
    if (!k->o->finding || k->told++ >= FINDINGS_MAX)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    k->o->finding(k->o->arg, false, id, text);
}

/* How many were not told. */
static void findings_end(struct checker *k)
{
    char text[80];
    if (!k->o->finding || k->told <= FINDINGS_MAX)
        return;
    snprintf(text, sizeof text, "%" PRIu64 " more findings are counted only", k->told - FINDINGS_MAX);
    k->o->finding(k->o->arg, false, "QED_MORE", text);
}

/* ---- owners ---- */

/* Gives n clusters from byte offset off on an owner. Returns how many had one already; -ENOMEM. */
static int64_t own(struct checker *k, uint64_t off, uint64_t n)
{
    int64_t twice = 0;
    for (uint64_t c = off >> k->g->cluster_bits, end = c + n; c < end; c++) {
        uint64_t **chunk = &k->chunks[c >> CHUNK_BITS], bit = 1ull << (c & 63);
        if (!*chunk && !(*chunk = calloc(CHUNK_WORDS, 8)))
            return -ENOMEM;
        uint64_t *word = &(*chunk)[(c >> 6) % CHUNK_WORDS];
        twice += (*word & bit) != 0;
        k->used += !(*word & bit);
        *word |= bit;
    }
    return twice;
}

static bool is_owned(const struct checker *k, uint64_t c)
{
    const uint64_t *chunk = k->chunks[c >> CHUNK_BITS];
    return chunk && chunk[(c >> 6) % CHUNK_WORDS] >> (c & 63) & 1;
}

/* Tells runs of clusters without an owner, until all k->res.leaks are told. */
static void tell_leaks(struct checker *k)
{
    uint64_t left = k->res.leaks, c = 0, per = 1ull << CHUNK_BITS;
    while (left && k->o->finding && k->told < FINDINGS_MAX) {
        while (is_owned(k, c))
            c++;
        uint64_t from = c;
        while (c < k->clusters && !is_owned(k, c))
            c = k->chunks[c >> CHUNK_BITS] ? c + 1 : min_u64(round_down(c, per) + per, k->clusters);
        left -= c - from;
        finding(k, "QED_LEAK", "%" PRIu64 " clusters from offset %#" PRIx64 " on are not in use", c - from, from << k->g->cluster_bits);
    }
}

/* ---- tables, piece by piece ---- */

struct entries {                                  /* of one table, in order */
    uint64_t off;                                 /* of the table */
    uint64_t at, end;                             /* bytes of the table: looked at next; present in buf up to */
    uint64_t from;                                /* byte of the table that buf begins with */
    uint8_t *buf;
};

/* Skips the holes of the file; then reads a piece. 0: there is one; 1: the table ends. */
static int next_piece(struct co *co, struct checker *k, struct entries *e)
{
    while (e->at < k->g->table_bytes) {
        struct stor_extent x;
        uint64_t left = k->g->table_bytes - e->at, n = min_u64(PIECE_BYTES, left);
        int r = stor_extent(co, k->q->im.store, e->off + e->at, left, &x);
        if (r == 0 && x.content == STOR_HOLE && x.off + x.len >= e->off + e->at + 8) {
            e->at = min_u64(round_down(x.off + x.len - e->off, 8), k->g->table_bytes);
            continue;
        }
        r = stor_read_exact(co, k->q->im.store, e->buf, n, e->off + e->at);
        if (r < 0)
            return r;
        e->from = e->at;
        e->end = e->at + n;
        return 0;
    }
    return 1;
}

/* The next entry that is not 0, in host order. 0: there is one; 1: the table ends; < 0: it cannot be read. */
static int next_entry(struct co *co, struct checker *k, struct entries *e, uint64_t *ret_i, uint64_t *ret_v)
{
    for (;;) {
        int r = e->at < e->end ? 0 : next_piece(co, k, e);
        if (r)
            return r;
        for (; e->at < e->end; e->at += 8) {
            uint64_t v = le64_get((const le64 *)(e->buf + (e->at - e->from)));
            if (!v)
                continue;
            *ret_i = e->at / 8;
            *ret_v = v;
            e->at += 8;
            return 0;
        }
    }
}

static void unreadable(struct checker *k, const char *what, uint64_t off, int error)
{
    k->res.check_errors++;
    finding(k, "QED_READ", "the %s table at %#" PRIx64 " cannot be read: %s", what, off, strerror(-error));
}

/* One pointer to data. */
static int check_cluster(struct checker *k, uint64_t guest, uint64_t v)
{
    if (qed_entry_kind(k->g, v, k->file_end) != QED_POINTER) {
        k->res.corruptions++;
        finding(k, "QED_L2_ENTRY", "the entry of guest offset %#" PRIx64 " points to %#" PRIx64 ", which is no cluster of the file", guest, v);
        return 0;
    }
    int64_t twice = own(k, v, 1);
    if (twice > 0) {
        k->res.corruptions++;
        finding(k, "QED_SHARED", "the cluster at %#" PRIx64 " of guest offset %#" PRIx64 " is in use twice", v, guest);
    }
    return twice < 0 ? -ENOMEM : 0;
}

static int check_l2(struct co *co, struct checker *k, uint64_t guest, uint64_t off)
{
    struct entries e = { .off = off, .buf = k->l2 };
    uint64_t i, v, last = 0;
    int r;
    while ((r = next_entry(co, k, &e, &i, &v)) == 0) {
        if (v == 1)
            continue;
        k->res.allocated_clusters++;
        k->res.fragmented_clusters += last && v != last + k->g->cluster_size;
        last = v;
        r = check_cluster(k, guest + (i << k->g->cluster_bits), v);
        if (r < 0)
            return r;
    }
    if (r < 0)
        unreadable(k, "L2", off, r);
    return 0;
}

static int check_table(struct co *co, struct checker *k, uint64_t i, uint64_t v)
{
    if (qed_table_kind(k->g, v, k->file_end) != QED_POINTER) {
        k->res.corruptions++;
        finding(k, "QED_L1_ENTRY", "entry %" PRIu64 " of the L1 table points to %#" PRIx64 ", where no L2 table can be", i, v);
        return 0;
    }
    int64_t twice = own(k, v, k->g->table_clusters);
    if (twice < 0)
        return -ENOMEM;
    if (twice) {                                                                     /* I2 */
        k->res.corruptions += (uint64_t)twice;
        finding(k, "QED_SHARED", "%" PRId64 " clusters of the L2 table at %#" PRIx64 " (entry %" PRIu64 " of the L1 table) are in use twice", twice, v, i);
        return 0;
    }
    return check_l2(co, k, i * k->g->l2_span, v);
}

static int check_l1(struct co *co, struct checker *k)
{
    struct entries e = { .off = k->q->h.l1_off, .buf = k->l1 };
    uint64_t i, v;
    int r;
    if (own(k, 0, k->g->header_bytes >> k->g->cluster_bits) < 0 || own(k, e.off, k->g->table_clusters) < 0)
        return -ENOMEM;
    while ((r = next_entry(co, k, &e, &i, &v)) == 0) {
        r = check_table(co, k, i, v);
        if (r < 0)
            return r;
        if (k->o->progress)
            k->o->progress(k->o->arg, i + 1, k->g->entries);
    }
    if (r < 0)
        unreadable(k, "L1", e.off, r);
    return 0;
}

/* ---- the whole ---- */

static int begin(struct co *co, struct checker *k, struct byre_err *err)
{
    uint64_t len;
    int r = stor_length(co, k->q->im.store, &len);
    if (r < 0)
        return byre_fail_code(err, IO, r, "%s: its length cannot be read", k->q->name);
    k->file_end = qed_file_end(k->g, len);
    k->clusters = k->file_end >> k->g->cluster_bits;
    k->chunk_count = div_up(k->clusters, 1ull << CHUNK_BITS);
    k->res.total_clusters = div_up(k->q->h.size, k->g->cluster_size);
    k->res.has_stats = true;
    k->chunks = calloc(k->chunk_count, sizeof *k->chunks);
    k->l1 = malloc(PIECE_BYTES);
    k->l2 = malloc(PIECE_BYTES);
    if (!qed_table_kind(k->g, k->q->h.l1_off, k->file_end))
        return byre_fail(err, QED_HEADER, "%s: the L1 table does not lie in the file any more", k->q->name);
    return k->chunks && k->l1 && k->l2 ? 0 : byre_fail(err, NOMEM, "%s: no memory to check it", k->q->name);
}

int qed_check(struct co *co, struct fmt_image *im, const struct fmt_check_opts *o, struct fmt_check_result *ret, struct byre_err *err)
{
    const struct qed_image *q = qed_of(im);
    struct checker k = { .q = q, .g = &q->g, .o = o };
    if (o->fix)
        return byre_fail(err, READ_ONLY, "%s: images of the format qed can be checked, but not repaired yet", q->name);
    int r = begin(co, &k, err);
    if (r == 0 && check_l1(co, &k) < 0)
        r = byre_fail(err, NOMEM, "%s: no memory to check it", q->name);
    if (r == 0) {
        k.res.leaks = k.res.check_errors ? 0 : k.clusters - k.used;      /* what an unreadable table points to is not known to be free */
        tell_leaks(&k);
        findings_end(&k);
        *ret = k.res;
    }
    for (uint64_t i = 0; k.chunks && i < k.chunk_count; i++)
        free(k.chunks[i]);
    free(k.chunks);
    free(k.l1);
    free(k.l2);
    return r;
}
