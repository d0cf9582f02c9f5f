/* SPDX-License-Identifier: MIT
 *
 * qed_scrub.c: the check of an image that is in use, and the end of being unclean.
 *
 * Purpose      Runs the offline check's own walk beside requests. Of an image that was not closed cleanly it takes away the pointers that
 *              name nothing; whatever has no owner is used again, filled from the end of the file (qed_fill.c), or cut off.
 * Owns         q->unclean, q->given_up, q->scrubbing
 * Invariants   L1  While an image is unclean no table changes but by the scrub, and the file does not grow: a pointer behind its end
 *                  would name what is new, in this opening or after another crash. Reads and writes of clusters that are there go on.
 *              L2  Otherwise tables change beside the walk, and that does no harm: an entry that is there stays (qed_map.c M3), and what is
 *                  new lies behind the edge, the end of what was in use when the walk began; nothing in front of it is handed out
 *                  meanwhile.
 *              L3  A cluster is used again only when every table could be read, and none shares clusters with something else.
 *              L4  Damage beyond that is reported and left. An image in which an unreadable or a shared table may hold such pointers
 *                  stays unclean: what needs a cluster fails. One with clusters that have two owners keeps its mark.
 * Order        pointers taken away, durable | anything is allocated | mark off (qed_mark.c). What was changed before, durable | grace period | reuse.
 * Concurrency  Home loop, any requests beside it; the walk uses all cores as long as nothing is wrong. No resize.
 * Failure      The scrub is given up, nothing half done; an unclean image stays unclean.
 * Tests        qed_write_test.c, qed_fill_test.c, tests/interop/test_qed_scrub.py
 */
#include <inttypes.h>
#include <string.h>

#include "base/assert.h"
#include "fmt/qed/qed_check_priv.h"

/* ---- what others ask and tell ---- */

int qed_unclean_wait(struct co *co, struct qed_image *q)
{
    while (q->unclean && !q->given_up)
        co_wait(co, &q->held);
    return q->unclean ? -EIO : 0;
}

static void give_up(struct qed_image *q)
{
    q->given_up = true;
    co_wake_all(&q->held);
}

void qed_no_scrub(struct fmt_image *im) { give_up(qed_of(im)); }

int qed_scrub_excludes(const struct qed_image *q, const char *what, struct byre_err *err)
{
    if (q->scrubbing)
        return byre_fail(err, BUSY, "%s: cannot be %s while its scrub runs; wait for the job, or cancel it", q->name, what);
    if (q->unclean)
        return byre_fail(err, BUSY, "%s: was not closed cleanly and cannot be %s before a scrub has looked it through", q->name, what);
    return 0;
}

/* ---- pointers that name nothing ---- */

struct mend {
    struct qed_image *q;
    struct qed_checker *k;
    struct qed_edits beyond;             /* of the L1 table behind what the size uses: not in memory */
    uint64_t fixed;
    bool blind;                          /* a table was not looked into */
};

static int mend_table(struct co *co, void *arg, const struct qed_ref *r)
{
    struct mend *m = arg;
    const struct qed_checker *k = m->k;
    uint64_t first = r->v >> k->g->cluster_bits;
    (void)co;
    if (qed_table_kind(k->g, r->v, k->file_end) == QED_POINTER) {
        bool shared = qed_owned_next(&k->shared, first, first + k->g->table_clusters, true) != QED_OWNED_NONE;
        m->blind |= shared;
        return !shared;
    }
    m->fixed++;
    if (r->i * 8 >= m->q->l1_region.bytes)
        return qed_edits_add(&m->beyond, r->entry_off, 0);
    meta_region_put(m->q->meta, &m->q->l1_region, r->i, 0);
    return 0;
}

static int mend_entry(struct co *co, void *arg, const struct qed_ref *r)
{
    struct mend *m = arg;
    struct qed_image *q = m->q;
    struct meta_block *b;
    if (qed_entry_kind(&q->g, r->v, m->k->file_end) != QED_BAD)
        return 0;
    uint64_t slice = round_down(r->entry_off, QED_SLICE_BYTES);
    int rc = meta_get(co, q->meta, &q->kind_l2, slice, &b);
    if (rc < 0)
        return rc;
    qed_entry_set(q, b, (uint32_t)((r->entry_off - slice) / 8), 0);
    meta_put(q->meta, b);
    m->fixed++;
    return 0;
}

static int mend_unreadable(void *arg, bool l1, uint64_t off, int error)
{
    struct mend *m = arg;
    m->blind = true;
    m->k->res.check_errors++;
    qed_finding(m->k, false, "QED_READ", "the %s table at %#" PRIx64 " cannot be read again: %s", l1 ? "L1" : "L2", off, strerror(-error));
    return 0;
}

/* Takes away what names nothing, durably. *ret_all: every table was looked into. */
static int mend(struct co *co, struct qed_image *q, struct qed_checker *k, bool *ret_all)
{
    static const struct qed_visitor v = { .table = mend_table, .entry = mend_entry, .unreadable = mend_unreadable };
    struct mend m = { .q = q, .k = k };
    struct qed_walk w = { .q = q, .v = &v, .arg = &m, .strict = true };
    int r = qed_walk(co, &w);
    if (r == 0 && m.beyond.count) {
        meta_struct_begin(co, q->meta);
        r = qed_edits_apply(co, &m.beyond, q);
        meta_struct_end(q->meta);
    }
    qed_edits_fini(&m.beyond);
    if (r == 0)
        r = meta_flush(co, q->meta);
    if (r < 0)
        return r;
    k->res.corruptions -= min_u64(k->res.corruptions, m.fixed);
    k->res.corruptions_fixed += m.fixed;
    *ret_all = !m.blind;
    return 0;
}

/* ---- what nobody owns ---- */

/* From now on it may be used; what lies at the end of the file is cut off when the mark goes. */
static void reuse(struct qed_image *q, struct qed_checker *k)
{
    struct qed_alloc *a = &q->a;
    uint64_t c = 0, end;
    for (; (c = qed_owned_next(&k->owned, c, k->clusters, false)) != QED_OWNED_NONE; c = end) {
        end = min_u64(qed_owned_next(&k->owned, c, k->clusters, true), k->clusters);
        if (rset_add(&a->spare, c, end, 0) < 0) {
            q->mark.keep = true;
            return;                              /* the rest stays lost until the next check */
        }
    }
}

/* The holes are filled from the end of the file (qed_fill.c). What lies at the end then goes with the mark. */
static int fill(struct co *co, struct qed_image *q, struct qed_checker *k, struct byre_err *err)
{
    uint64_t leaks = k->res.leaks;
    int r = 0;
    if (k->o->fix & FMT_FIX_LEAKS && !k->res.corruptions)
        r = qed_fill(co, k);
    else
        qed_alloc_told(q);                       /* they are in the result, and stay as they are wanted */
    k->res.leaks = min_u64(qed_holes(q), leaks);
    k->res.leaks_fixed += leaks - k->res.leaks;
    if (r == 0 && leaks > k->res.leaks)
        qed_finding(k, true, "QED_LEAK", "%" PRIu64 " clusters that were not in use are given back", leaks - k->res.leaks);
    return r < 0 && r != -ECANCELED ? byre_fail_code(err, IO, r, "%s: the holes of the file cannot be filled: %s", q->name, strerror(-r)) : r;
}

/* ---- the two kinds ---- */

static int unclean(struct co *co, struct qed_image *q, struct qed_checker *k, struct byre_err *err)
{
    bool all = true;
    q->given_up = false;
    int r = meta_flush(co, q->meta);             /* L1: what a killed process took away may be in the page cache only */
    if (r < 0)
        return byre_fail_code(err, IO, r, "%s: cannot be made durable", q->name);
    r = qed_check_begin(co, k, true, err);
    if (r == 0)
        r = qed_check_gather(co, k, false, err);
    if (r == 0 && k->res.corruptions) {
        r = mend(co, q, k, &all);
        if (r < 0)
            return byre_fail_code(err, IO, r, "%s: cannot be mended", q->name);
    }
    if (r < 0 || !all || k->res.check_errors)
        return r;                                /* L4 */
    q->mark.keep = k->twice > 0;
    reuse(q, k);
    q->unclean = false;
    atomic_store(&q->im.unclean, false);
    co_wake_all(&q->held);
    return fill(co, q, k, err);
}

/* Now, or when nothing relies on it any more. */
static int clean_mark(struct co *co, struct qed_image *q, int result, struct byre_err *err)
{
    qed_mark_watch(q);
    if (result < 0)
        return result;
    int r = qed_mark_leave(co, q);
    return r < 0 ? byre_fail_code(err, IO, r, "%s: the mark cannot be taken away", q->name) : 0;
}

static int clean(struct co *co, struct qed_image *q, struct qed_checker *k, struct byre_err *err)
{
    struct co_range whole;
    co_range_lock(co, &q->locks, &whole, 0, UINT64_MAX);         /* L2: what is handed out already is linked, or given back */
    int r = meta_flush(co, q->meta);
    uint64_t edge = q->a.next;
    co_range_unlock(&q->locks, &whole);
    if (r < 0)
        return byre_fail_code(err, IO, r, "%s: cached changes cannot be written", q->name);
    epoch_wait(co, q->im.epoch);                 /* D3: what an earlier scrub has lost may just have been moved away from */
    r = qed_check_begin(co, k, false, err);
    k->live = true;
    k->clusters = edge;
    k->file_end = edge << q->g.cluster_bits;
    if (r == 0)
        r = qed_check_gather(co, k, false, err);
    if (r == 0 && !k->res.corruptions && !k->res.check_errors && (!k->res.leaks || k->o->fix & FMT_FIX_LEAKS))
        q->mark.keep = false;
    if (r < 0 || !(k->o->fix & FMT_FIX_LEAKS) || !k->res.leaks)
        return r;
    if (k->res.corruptions || k->res.check_errors) {             /* L3: a table that was not looked into owns what it names */
        qed_finding(k, false, "QED_NOT_FREED", "nothing is freed as long as there are errors");
        return 0;
    }
    r = qed_mark_enter(co, q);                                   /* the file may be cut when the mark goes */
    if (r < 0)
        return byre_fail_code(err, IO, r, "%s: the mark cannot be set", q->name);
    reuse(q, k);
    r = fill(co, q, k, err);
    qed_mark_exit(q);
    return r;
}

int qed_scrub(struct co *co, struct fmt_image *im, const struct fmt_check_opts *o, struct fmt_check_result *ret, struct byre_err *err)
{
    struct qed_image *q = qed_of(im);
    struct qed_checker k = { .q = q, .g = &q->g, .o = o };
    ASSERT_LOOP(im->home);
    if (!qed_writable(q))
        return byre_fail(err, READ_ONLY, "%s: a scrub is for an image that is open for writing; check it instead", q->name);
    if (q->changing)
        return byre_fail(err, BUSY, "%s: it is being %s", q->name, q->changing);
    if (q->scrubbing)
        return byre_fail(err, BUSY, "%s: its scrub runs already", q->name);
    q->scrubbing = true;
    bool was = q->unclean, kept = q->mark.keep;
    int r = was ? unclean(co, q, &k, err) : clean(co, q, &k, err);
    q->scrubbing = false;                         /* from here on another one may run */
    if (q->unclean)
        give_up(q);
    else if (was || k.res.leaks_fixed || (kept && !q->mark.keep))
        r = clean_mark(co, q, r, err);
    qed_findings_end(&k);
    *ret = k.res;
    qed_checker_fini(&k);
    return r;
}
