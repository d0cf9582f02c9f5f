/* SPDX-License-Identifier: MIT
 *
 * qed_repair.c: which changes make an image sound again, and in which order?
 *
 * Purpose      Pointers to what is no cluster of the file are taken away, as the peer does it; whatever has several owners is copied
 *              until each has its own (G.021); clusters without an owner go (qed_shorten.c); then the need-check mark (E4).
 * Owns         Nothing beyond a call.
 * Invariants   I1 No guest byte changes that could be read before. A table that shares a cluster may be somebody's data: its entries are
 *                 mended in a copy, never in place.
 *              I2 The file grows only when no pointer is left behind its end: else such a pointer would name what is new. A table
 *                 that shares clusters may hold some, until its copy is linked: no copy goes to a place that one of them names. A
 *                 failure cuts the file back, but not when the write of an entry failed, which may have landed; then, as after a crash in
 *                 between, such a pointer names a cluster of zeros that is nobody else's.
 *              I3 Nothing is written while a table cannot be read: what it names is not known.
 *              I4 Running it again after a crash anywhere leads to the same end.
 *              I5 The mark goes when nothing is wrong, and not before.
 * Order        What was found durable | pointers taken away | copies of tables | L1 entries | copies of data | L2 entries | moves and cut
 *              (qed_shorten.c) | mark off. A barrier between any two (P5, E1, E2, E4).
 * Concurrency  Home loop, image drained, inside meta_struct_begin.
 * Failure      The first failed write ends it; what was done stays and is sound in itself.
 * Tests        qed_fix_test.c, tests/interop/test_qed_repair.py, tests/crash/qed_crash.c, fuzz/qed_fix.c
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/mutant.h"
#include "fmt/qed/qed_check_priv.h"

#define ROUNDS_MAX 8u
#define EDITS_MAX 65536u                          /* entries taken away that wait to be written */
#define BATCH_ENTRIES 4096u                       /* copies between two barriers: entries, */
#define COPY_FLOOR (64u << 20)           /* bytes that a repair may copy however short the file is */
#define BATCH_BYTES (256ull << 20)                /* and bytes */

struct mend {
    struct qed_checker *k;
    struct qed_edits edits;
    uint64_t *named;                              /* clusters behind the end that pointers in shared tables name, in order */
    size_t named_count, named_room, named_next;
    struct qed_owned seen;                        /* tables whose pointers are in that list, by their first cluster */
    uint64_t end;                                 /* of the file, with what was copied */
    uint64_t copied;                              /* bytes since the last barrier */
    uint64_t fixed;
};

static int nothing_unreadable(void *arg, bool l1, uint64_t off, int error) { return -EIO; }

static bool is_shared(const struct qed_checker *k, uint64_t table)
{
    uint64_t first = table >> k->g->cluster_bits, end = first + k->g->table_clusters;
    return qed_owned_next(&k->shared, first, end, true) != QED_OWNED_NONE;
}

/* ---- pointers that are none ---- */

static int take_away(struct co *co, struct mend *m, const struct qed_ref *r)
{
    m->fixed++;
    int rc = qed_edits_add(&m->edits, r->entry_off, 0);
    return rc < 0 || m->edits.count < EDITS_MAX ? rc : qed_edits_apply(co, &m->edits, m->k->q);
}

static int mend_table(struct co *co, void *arg, const struct qed_ref *r)
{
    struct mend *m = arg;
    if (qed_table_kind(m->k->g, r->v, m->k->file_end) == QED_POINTER)
        return !is_shared(m->k, r->v);                                               /* I1 */
    qed_finding(m->k, true, "QED_L1_ENTRY", "entry %" PRIu64 " of the L1 table is now 0 (was %#" PRIx64 ")", r->i, r->v);
    return take_away(co, m, r);
}

static int mend_entry(struct co *co, void *arg, const struct qed_ref *r)
{
    struct mend *m = arg;
    if (qed_entry_kind(m->k->g, r->v, m->k->file_end) != QED_BAD)
        return 0;
    qed_finding(m->k, true, "QED_L2_ENTRY", "the entry of guest offset %#" PRIx64 " is now 0 (was %#" PRIx64 ")", r->i, r->v);
    return take_away(co, m, r);
}

static int mend_pointers(struct co *co, struct mend *m)
{
    static const struct qed_visitor v = { .table = mend_table, .entry = mend_entry, .unreadable = nothing_unreadable };
    struct qed_walk w = { .q = m->k->q, .v = &v, .arg = m, .strict = true };
    if (!m->k->bad)
        return 0;
    int r = qed_walk(co, &w);
    if (r == 0)
        r = qed_edits_apply(co, &m->edits, m->k->q);
    return r < 0 || !m->fixed ? r : qed_barrier(co, m->k->q);
}

/* ---- several owners ---- */

static int see_shared(struct co *co, void *arg, const struct qed_ref *r)
{
    struct mend *m = arg;
    if (qed_table_kind(m->k->g, r->v, m->k->file_end) != QED_POINTER || !is_shared(m->k, r->v))
        return 0;
    int64_t twice = qed_owned_take(&m->seen, r->v >> m->k->g->cluster_bits, 1);
    return twice < 0 ? -ENOMEM : !twice;
}

static int see_named(struct co *co, void *arg, const struct qed_ref *r)
{
    struct mend *m = arg;
    if (r->v < m->k->file_end || !is_aligned(r->v, m->k->g->cluster_size))
        return 0;
    if (m->named_count == m->named_room) {
        size_t room = m->named_room ? m->named_room * 2 : 64;
        uint64_t *list = realloc(m->named, room * sizeof *list);
        if (!list)
            return -ENOMEM;
        m->named = list;
        m->named_room = room;
    }
    m->named[m->named_count++] = r->v;
    return 0;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* I2: which places behind the end do pointers name that cannot be taken away yet? */
static int find_named(struct co *co, struct mend *m)
{
    static const struct qed_visitor v = { .table = see_shared, .entry = see_named, .unreadable = nothing_unreadable };
    struct qed_walk w = { .q = m->k->q, .v = &v, .arg = m };
    int r = qed_owned_init(&m->seen, m->k->clusters);
    if (r == 0)
        r = qed_walk(co, &w);
    if (r == 0 && m->named_count)
        qsort(m->named, m->named_count, sizeof *m->named, by_value);
    return r;
}

/* len bytes behind what was copied. */
static uint64_t place_for(struct mend *m, uint64_t len)
{
    for (; m->named_next < m->named_count && m->named[m->named_next] < m->end + len; m->named_next++)
        if (m->named[m->named_next] >= m->end)
            m->end = m->named[m->named_next] + m->k->g->cluster_size;
    return m->end;
}

static void mend_fini(struct mend *m)
{
    qed_edits_fini(&m->edits);
    qed_owned_fini(&m->seen);
    free(m->named);
}

/* Copies `n` clusters to the end of the file and changes the entry. */
static int own_copy(struct co *co, struct mend *m, const struct qed_ref *r, uint64_t n, uint64_t table_end)
{
    const struct qed_geom *g = m->k->g;
    if (place_for(m, n << g->cluster_bits) > INT64_MAX)
        return -EFBIG;
    struct qed_copy c = { .from = r->v, .to = m->end, .len = n << g->cluster_bits, .table_end = table_end };
    if (c.len > (uint64_t)INT64_MAX - c.to || c.len > m->k->may_copy)
        return -EFBIG;
    m->k->may_copy -= c.len;
    int rc = qed_copy_out(co, m->k->q, &c);
    if (rc == 0)
        rc = qed_edits_add(&m->edits, r->entry_off, c.to);
    if (rc < 0)
        return rc;
    m->end += c.len;
    m->copied += c.len;
    m->fixed++;
    qed_finding(m->k, true, "QED_SHARED", "what lies at %#" PRIx64 " is copied to %#" PRIx64 " for the entry at %#" PRIx64, r->v, c.to, r->entry_off);
    return 0;
}

static int copy_table(struct co *co, void *arg, const struct qed_ref *r)
{
    struct mend *m = arg;
    if (qed_table_kind(m->k->g, r->v, m->k->file_end) != QED_POINTER || !is_shared(m->k, r->v))
        return 0;
    return own_copy(co, m, r, m->k->g->table_clusters, m->k->file_end);
}

/* All of them are linked at once: the list costs 16 bytes for each table that was copied. */
static int copy_tables(struct co *co, struct mend *m)
{
    static const struct qed_visitor v = { .table = copy_table, .unreadable = nothing_unreadable };
    struct qed_walk w = { .q = m->k->q, .v = &v, .arg = m, .strict = true };
    m->edits.begun = false;
    int r = find_named(co, m);
    if (r == 0)
        r = qed_walk(co, &w);
    if (r == 0)
        r = qed_edits_settle(co, &m->edits, m->k->q);
    if (r == 0 || m->edits.begun)
        return r;
    int cut = stor_truncate(co, m->k->q->im.store, m->k->file_end);                  /* I2: nothing is linked, so it ends again where it did */
    return cut < 0 ? cut : r;
}

static int own_table(struct co *co, void *arg, const struct qed_ref *r)
{
    struct mend *m = arg;
    if (qed_table_kind(m->k->g, r->v, m->k->file_end) != QED_POINTER)
        return 0;
    int64_t twice = qed_owned_take(&m->k->owned, r->v >> m->k->g->cluster_bits, m->k->g->table_clusters);
    return twice < 0 ? -ENOMEM : 1;
}

static int copy_entry(struct co *co, void *arg, const struct qed_ref *r)
{
    struct mend *m = arg;
    if (qed_entry_kind(m->k->g, r->v, m->k->file_end) != QED_POINTER)
        return 0;
    int64_t twice = qed_owned_take(&m->k->owned, r->v >> m->k->g->cluster_bits, 1);
    if (twice <= 0)
        return twice < 0 ? -ENOMEM : 0;
    int rc = own_copy(co, m, r, 1, 0);
    if (rc < 0 || (m->edits.count < BATCH_ENTRIES && m->copied < BATCH_BYTES))
        return rc;
    m->copied = 0;
    return qed_edits_settle(co, &m->edits, m->k->q);
}

static int copy_data(struct co *co, struct mend *m)
{
    static const struct qed_visitor v = { .table = own_table, .entry = copy_entry, .unreadable = nothing_unreadable };
    struct qed_walk w = { .q = m->k->q, .v = &v, .arg = m, .strict = true };
    int r = qed_check_own_first(m->k);
    if (r == 0)
        r = qed_walk(co, &w);
    return r < 0 ? r : qed_edits_settle(co, &m->edits, m->k->q);
}

/* The last, incomplete cluster belongs to nobody (2.021): what is copied begins there, in space that reads zeros. */
static int begin_growing(struct co *co, struct mend *m)
{
    m->end = m->k->file_end;
    return m->k->length > m->end ? stor_truncate(co, m->k->q->im.store, m->end) : 0;
}

/* ---- the whole ---- */

static int failed(const struct qed_checker *k, int r, struct byre_err *err)
{
    if (r == -ENOSPC)
        return byre_fail(err, NO_SPACE, "%s: no space left to repair it", k->q->name);
    if (r == -ENOMEM)
        return byre_fail(err, NOMEM, "%s: no memory to repair it", k->q->name);
    if (r == -EFBIG)
        return byre_fail(err, QED_CORRUPT, "%s: so many entries share tables or clusters that copies of their own would take more than the file itself: no crash did that, and it is not repaired", k->q->name);
    return byre_fail_code(err, IO, r, "%s: repair failed: %s", k->q->name, strerror(-r));
}

static int gather_again(struct co *co, struct qed_checker *k, bool sharing, struct byre_err *err)
{
    k->quiet = true;
    int r = qed_check_begin(co, k, sharing, err);
    return r < 0 ? r : qed_check_gather(co, k, sharing, err);
}

/* One round: what is found next depends on what was mended, tables before data. */
static int mend_round(struct co *co, struct qed_checker *k, uint64_t *ret_fixed, struct byre_err *err)
{
    struct mend m = { .k = k };
    int r = gather_again(co, k, true, err);
    if (r < 0 || !k->res.corruptions || k->res.check_errors)
        return r;
    r = mend_pointers(co, &m);
    uint64_t pointers = m.fixed;
    if (r == 0)
        r = begin_growing(co, &m);
    if (r == 0)
        r = copy_tables(co, &m);
    if (r == 0 && m.fixed == pointers && k->twice)
        r = copy_data(co, &m);
    mend_fini(&m);
    k->res.corruptions_fixed += m.fixed;
    *ret_fixed = m.fixed;
    return r < 0 ? failed(k, r, err) : 0;
}

static int mend(struct co *co, struct qed_checker *k, struct byre_err *err)
{
    for (unsigned round = 0; round < ROUNDS_MAX; round++) {
        uint64_t fixed = 0;
        int r = mend_round(co, k, &fixed, err);
        if (r < 0 || !fixed)
            return r;
    }
    return gather_again(co, k, false, err);
}

static int free_leaks(struct co *co, struct qed_checker *k, struct byre_err *err)
{
    uint64_t leaks = k->res.leaks;
    int r = qed_shorten(co, k, err);
    if (r == 0)
        r = gather_again(co, k, false, err);
    if (r == 0)
        k->res.leaks_fixed += leaks - min_u64(k->res.leaks, leaks);
    if (r == 0 && leaks > k->res.leaks)
        qed_finding(k, true, "QED_LEAK", "%" PRIu64 " clusters that were not in use are given back: the file has %" PRIu64 " bytes", leaks - k->res.leaks, k->length);
    return r;
}

/* E4: every step before has ended with a barrier. */
static int mark_off(struct co *co, struct qed_checker *k, struct byre_err *err)
{
    int r = k->q->h.features & QED_F_NEED_CHECK ? qed_put_mark(co, k->q, false) : 0;
    return r < 0 ? failed(k, r, err) : 0;
}

/* What is in memory is what is on the disk now. */
static int reload(struct co *co, struct qed_checker *k, struct byre_err *err)
{
    struct qed_image *q = k->q;
    _Atomic uint64_t *l1;
    uint64_t len, *dirty;
    int r = stor_length(co, q->im.store, &len);
    if (r == 0)
        r = qed_l1_read(co, q, q->h.size, &l1, &dirty);
    if (r < 0)
        return failed(k, r, err);
    meta_forget_all(q->meta);
    qed_l1_install(q, q->h.size, l1, dirty);
    qed_alloc_fini(q);
    qed_alloc_init(q, len);
    atomic_store(&q->file_end, qed_file_end(&q->g, len));
    return 0;
}

static int repair(struct co *co, struct qed_checker *k, struct byre_err *err)
{
    k->may_copy = max_u64(k->file_end, COPY_FLOOR);      /* an image that nobody trusts fills no disk */
    int r = qed_barrier(co, k->q);               /* what was found may be in the page cache only */
    if (r < 0)
        return failed(k, r, err);
    if (MUTANT(MUT_QED_MARK_EARLY))
        r = mark_off(co, k, err);
    if (r == 0 && k->o->fix & FMT_FIX_ERRORS && k->res.corruptions)
        r = mend(co, k, err);
    if (r == 0 && k->res.corruptions && k->o->fix & FMT_FIX_LEAKS)
        qed_finding(k, false, "QED_NOT_FREED", "nothing is freed as long as there are errors");
    if (r == 0 && !k->res.corruptions && !k->res.check_errors && k->res.leaks && k->o->fix & FMT_FIX_LEAKS)
        r = free_leaks(co, k, err);
    return r < 0 || k->res.corruptions || k->res.check_errors ? r : mark_off(co, k, err);
}

int qed_repair(struct co *co, struct qed_checker *k, struct byre_err *err)
{
    struct byre_err first = { 0 }, second = { 0 };
    if (k->res.check_errors) {                                                       /* I3 */
        qed_finding(k, false, "QED_NOT_FREED", "nothing is repaired: some tables cannot be read");
        return 0;
    }
    meta_struct_begin(co, k->q->meta);
    int r = repair(co, k, &first), reloaded = reload(co, k, &second);
    meta_struct_end(k->q->meta);
    if (err && (r < 0 || reloaded < 0))
        *err = r < 0 ? first : second;
    return r < 0 ? r : reloaded;
}
