/* SPDX-License-Identifier: MIT
 *
 * qed_check.c: which rules does an image break?
 *
 * Purpose      Each cluster has one owner; every pointer is aligned, behind the header and in the file. The numbers are those
 *              of the peer's check (2.020, 5.018); each finding has a stable id.
 * Owns         struct qed_checker while a check runs.
 * Invariants   I1 Memory follows the clusters that are in use (qed_owned.c I1), not what a file claims.
 *              I2 An L2 table that shares a cluster with something is not looked into: the work is bounded by the file.
 *              I3 Without fix nothing is written.
 *              I4 All cores look first; they tell nothing. If anything is wrong everything is looked at again, in order: findings
 *                 and numbers do not depend on threads.
 * Order        None; repair has its own (qed_repair.c).
 * Concurrency  Home loop, the image drained or read-only; work() on the CPU pool.
 * Failure      -ENOMEM, -EIO for want of the file's length; a table that cannot be read is counted in check_errors.
 * Tests        qed_read_test.c, qed_fix_test.c, tests/interop/test_qed.py, fuzz/qed_open.c
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/qed/qed_check_priv.h"

#define TABLE_ENTRIES 128u                        /* a table costs as much as so many entries */
#define FINDINGS_MAX 100000u                      /* told one by one; all are counted */

void qed_finding(struct qed_checker *k, bool fixed, const char *id, const char *fmt, ...)
{
    char text[200];
    va_list ap;
    if (!k->o->finding || (k->quiet && !fixed) || k->told++ >= FINDINGS_MAX)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    k->o->finding(k->o->arg, fixed, id, text);
}

/* How many were not told. */
void qed_findings_end(struct qed_checker *k)
{
    char text[80];
    if (!k->o->finding || k->told <= FINDINGS_MAX)
        return;
    snprintf(text, sizeof text, "%" PRIu64 " more findings are counted only", k->told - FINDINGS_MAX);
    k->o->finding(k->o->arg, false, "QED_MORE", text);
}

void qed_tell_unreadable(struct qed_checker *k, uint64_t cluster)
{
    k->unreadable++;
    bool quiet = k->quiet;
    k->quiet = false;
    qed_finding(k, false, "QED_UNREADABLE", "the cluster at %#" PRIx64 " cannot be read: it stays where it is, and the file as long as that needs", cluster << k->g->cluster_bits);
    k->quiet = quiet;
}

/* Tells runs of clusters without an owner, until all k->res.leaks are told. */
static void tell_leaks(struct qed_checker *k)
{
    uint64_t left = k->res.leaks, c = 0;
    while (left && k->o->finding && !k->quiet && k->told < FINDINGS_MAX) {
        uint64_t from = qed_owned_next(&k->owned, c, k->clusters, false);
        c = min_u64(qed_owned_next(&k->owned, from, k->clusters, true), k->clusters);
        left -= c - from;
        qed_finding(k, false, "QED_LEAK", "%" PRIu64 " clusters from offset %#" PRIx64 " on are not in use", c - from, from << k->g->cluster_bits);
    }
}

/* ---- in order ---- */

static int64_t own(struct qed_checker *k, uint64_t off, uint64_t n)
{
    uint64_t first = off >> k->g->cluster_bits;
    for (uint64_t c = first; k->shared.chunks && c < first + n; c++)
        if (qed_owned_has(&k->owned, c) && qed_owned_take(&k->shared, c, 1) < 0)
            return -ENOMEM;
    return qed_owned_take(&k->owned, first, n);
}

static int unreadable(void *arg, bool l1, uint64_t off, int error)
{
    struct qed_checker *k = arg;
    k->res.check_errors++;
    qed_finding(k, false, "QED_READ", "the %s table at %#" PRIx64 " cannot be read: %s", l1 ? "L1" : "L2", off, strerror(-error));
    return 0;
}

static void count_neighbours(struct qed_checker *k, const struct qed_ref *r)
{
    k->res.allocated_clusters++;
    k->res.fragmented_clusters += k->last_table == r->table && r->v != k->last + k->g->cluster_size;
    k->last = r->v;
    k->last_table = r->table;
}

/* A scrub: handed out in this opening, behind the edge that it looks up to. */
static bool is_new(const struct qed_checker *k, uint64_t v) { return k->live && v >= k->file_end && qed_kind(k->q, v) == QED_POINTER; }

/* A scrub lets others run now and then. < 0: it ends. */
static int breathe(struct co *co, struct qed_checker *k, unsigned entries)
{
    if (!k->o->step || !fmt_step_is_over(co, &k->steps, entries))
        return 0;
    co_breathe(co);
    fmt_step_begins(co, &k->steps);
    return k->o->step(co, k->o->arg);
}

/* The walk has come to an L2 table. 1: look at it; 0: no; < 0: the check ends. */
static int begin_table(struct co *co, struct qed_checker *k, const struct qed_ref *r)
{
    int b = breathe(co, k, TABLE_ENTRIES);
    if (b < 0 || is_new(k, r->v))
        return b < 0 ? b : 0;
    if (k->o->progress && !k->quiet)
        k->o->progress(k->o->arg, r->i + 1, k->g->entries);
    return 1;
}

/* One pointer to data. */
static int check_entry(struct co *co, void *arg, const struct qed_ref *r)
{
    struct qed_checker *k = arg;
    int b = breathe(co, k, 1);
    if (b < 0 || r->v == 1 || is_new(k, r->v))
        return b < 0 ? b : 0;
    count_neighbours(k, r);
    if (qed_entry_kind(k->g, r->v, k->file_end) != QED_POINTER) {
        k->res.corruptions++;
        k->bad++;
        qed_finding(k, false, "QED_L2_ENTRY", "the entry of guest offset %#" PRIx64 " points to %#" PRIx64 ", which is no cluster of the file", r->i, r->v);
        return 0;
    }
    int64_t twice = own(k, r->v, 1);
    if (twice > 0) {
        k->res.corruptions++;
        k->twice++;
        qed_finding(k, false, "QED_SHARED", "the cluster at %#" PRIx64 " of guest offset %#" PRIx64 " is in use twice", r->v, r->i);
    }
    return twice < 0 ? -ENOMEM : 0;
}

static int check_table(struct co *co, void *arg, const struct qed_ref *r)
{
    struct qed_checker *k = arg;
    int b = begin_table(co, k, r);
    if (b <= 0)
        return b;
    if (qed_table_kind(k->g, r->v, k->file_end) != QED_POINTER) {
        k->res.corruptions++;
        k->bad++;
        qed_finding(k, false, "QED_L1_ENTRY", "entry %" PRIu64 " of the L1 table points to %#" PRIx64 ", where no L2 table can be", r->i, r->v);
        return 0;
    }
    k->last_table = 0;
    int64_t twice = own(k, r->v, k->g->table_clusters);
    if (twice > 0) {                                                                 /* I2 */
        k->res.corruptions += (uint64_t)twice;
        qed_finding(k, false, "QED_SHARED", "%" PRId64 " clusters of the L2 table at %#" PRIx64 " (entry %" PRIu64 " of the L1 table) are in use twice", twice, r->v, r->i);
    }
    return twice < 0 ? -ENOMEM : !twice;
}

/* ---- on all cores, which tell nothing (I4) ---- */

/* What a piece adds up to. */
enum { SUM_ALLOCATED, SUM_FRAGMENTED, SUM_FIRST, SUM_LAST };

/* How many entries from i on are neighbours on the disk, and sound. 0: this one is not. */
static uint64_t sound_run(const struct qed_checker *k, const le64 *w, uint64_t i, uint64_t n)
{
    uint64_t v = le64_get(&w[i]), m = 1, most;
    if (qed_entry_kind(k->g, v, k->file_end) != QED_POINTER)
        return 0;
    most = min_u64(n - i, (k->file_end - v) >> k->g->cluster_bits);
    while (m < most && le64_get(&w[i + m]) == v + (m << k->g->cluster_bits))
        m++;
    return m;
}

static int look_at_piece(void *arg, unsigned worker, uint64_t guest, const le64 *w, uint64_t n, uint64_t sum[4])
{
    struct qed_checker *k = arg;
    for (uint64_t i = 0, m; i < n; i += m) {
        uint64_t v = le64_get(&w[i]);
        m = 1;
        if (v <= 1 || is_new(k, v))
            continue;
        m = sound_run(k, w, i, n);
        int64_t twice = m ? qed_owned_take(&k->owned, v >> k->g->cluster_bits, m) : 1;
        if (twice)
            return twice < 0 ? -ENOMEM : -EUCLEAN;
        sum[SUM_ALLOCATED] += m;
        sum[SUM_FRAGMENTED] += sum[SUM_LAST] && v != sum[SUM_LAST] + k->g->cluster_size;
        if (!sum[SUM_FIRST])
            sum[SUM_FIRST] = v;
        sum[SUM_LAST] = v + ((m - 1) << k->g->cluster_bits);
    }
    return 0;
}

static void add_piece(void *arg, uint64_t guest, const uint64_t sum[4])
{
    struct qed_checker *k = arg;
    uint64_t table = guest / k->g->l2_span + 1;
    if (!sum[SUM_FIRST])
        return;
    k->res.allocated_clusters += sum[SUM_ALLOCATED];
    k->res.fragmented_clusters += sum[SUM_FRAGMENTED] + (k->last_table == table && sum[SUM_FIRST] != k->last + k->g->cluster_size);
    k->last = sum[SUM_LAST];
    k->last_table = table;
}

static int take_table(struct co *co, void *arg, const struct qed_ref *r)
{
    struct qed_checker *k = arg;
    int b = begin_table(co, k, r);
    if (b <= 0)
        return b;
    if (qed_table_kind(k->g, r->v, k->file_end) != QED_POINTER)
        return -EUCLEAN;
    int64_t twice = qed_owned_take(&k->owned, r->v >> k->g->cluster_bits, k->g->table_clusters);
    return twice < 0 ? -ENOMEM : twice ? -EUCLEAN : 1;
}

static int give_up(void *arg, bool l1, uint64_t off, int error) { return -EUCLEAN; }

/* ---- the whole ---- */

void qed_checker_fini(struct qed_checker *k)
{
    qed_owned_fini(&k->owned);
    qed_owned_fini(&k->shared);
}

int qed_check_own_first(struct qed_checker *k)
{
    qed_owned_clear(&k->owned);
    qed_owned_clear(&k->shared);
    k->last_table = 0;
    if (own(k, 0, k->g->header_bytes >> k->g->cluster_bits) < 0 || own(k, k->q->h.l1_off, k->g->table_clusters) < 0)
        return -ENOMEM;
    return 0;
}

int qed_check_begin(struct co *co, struct qed_checker *k, bool sharing, struct byre_err *err)
{
    struct fmt_check_result old = k->res;
    int r = stor_length(co, k->q->im.store, &k->length);
    if (r < 0)
        return byre_fail_code(err, IO, r, "%s: its length cannot be read", k->q->name);
    k->file_end = qed_file_end(k->g, k->length);
    k->clusters = k->file_end >> k->g->cluster_bits;
    if (qed_table_kind(k->g, k->q->h.l1_off, k->file_end) != QED_POINTER)
        return byre_fail(err, QED_HEADER, "%s: the L1 table does not lie in the file any more", k->q->name);
    k->res = (struct fmt_check_result){ .has_stats = true, .total_clusters = div_up(k->q->h.size, k->g->cluster_size),
        .corruptions_fixed = old.corruptions_fixed, .leaks_fixed = old.leaks_fixed };
    qed_checker_fini(k);
    if (qed_owned_init(&k->owned, k->clusters) || (sharing && qed_owned_init(&k->shared, k->clusters)))
        return byre_fail(err, NOMEM, "%s: no memory to check it", k->q->name);
    return 0;
}

static int walk_all(struct co *co, struct qed_checker *k, bool in_order)
{
    static const struct qed_visitor ordered = { .table = check_table, .entry = check_entry, .unreadable = unreadable };
    static const struct qed_visitor cores = { .table = take_table, .unreadable = give_up, .work = look_at_piece, .summed = add_piece };
    struct qed_walk w = { .q = k->q, .v = in_order ? &ordered : &cores, .arg = k, .strict = in_order };
    int r = qed_check_own_first(k);
    k->bad = k->twice = 0;
    k->res.allocated_clusters = k->res.fragmented_clusters = 0;
    if (!in_order)
        w.workers = (unsigned)min_u64(rt_cpu_workers(rt_of(co_loop(co))), FMT_PIECES_WORKERS_MAX);
    if (r == 0 && !in_order && !w.workers)
        return -EUCLEAN;
    return r < 0 ? r : qed_walk(co, &w);
}

int qed_check_gather(struct co *co, struct qed_checker *k, bool in_order, struct byre_err *err)
{
    int r = in_order ? -EUCLEAN : walk_all(co, k, false);
    if (r == -EUCLEAN)
        r = walk_all(co, k, true);
    if (r < 0)
        return r == -ENOMEM ? byre_fail(err, NOMEM, "%s: no memory to check it", k->q->name) : byre_fail_code(err, IO, r, "%s: cannot be checked", k->q->name);
    k->res.leaks = k->res.check_errors ? 0 : k->clusters - atomic_load(&k->owned.count);      /* what an unreadable table points to is not known to be free */
    tell_leaks(k);
    return 0;
}

int qed_check(struct co *co, struct fmt_image *im, const struct fmt_check_opts *o, struct fmt_check_result *ret, struct byre_err *err)
{
    struct qed_image *q = qed_of(im);
    struct qed_checker k = { .q = q, .g = &q->g, .o = o };
    if (o->fix && im->read_only)
        return byre_fail(err, READ_ONLY, "%s: a read-only image cannot be repaired", q->name);
    int r = im->read_only ? 0 : meta_flush(co, q->meta);
    if (r < 0)
        return byre_fail_code(err, IO, r, "%s: cached changes cannot be written", q->name);
    r = qed_check_begin(co, &k, false, err);
    if (r == 0)
        r = qed_check_gather(co, &k, false, err);
    if (r == 0 && o->fix)
        r = qed_repair(co, &k, err);
    qed_findings_end(&k);
    if (r == 0)
        *ret = k.res;
    qed_checker_fini(&k);
    return r;
}
