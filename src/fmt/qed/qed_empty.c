/* SPDX-License-Identifier: MIT
 *
 * qed_empty.c: an image that holds nothing of its own any more (FEATURES 1.059): what commit leaves.
 *
 * Purpose      Takes every L2 table out of the L1 table, and makes the file as short as that allows: the header and the L1 table.
 * Owns         Nothing beyond the call; the image is drained.
 * Invariants   M1  The caller says that the layers below hold the content, durably (J2). So any mix of tables that are gone and tables that
 *                  are not reads the same, and their order does not matter.
 *              M2  Space is used again, or cut off, when no durable entry leads to it (E7). It all is free then, whatever was lost or damaged
 *                  before: nothing but the header and the L1 table has an owner.
 * Order        The mark (E1) | the L1 table: entries that the size does not use, then the others by a pass | moves of the L1 table, the cut, the
 *              mark away (qed_fill.c, qed_mark.c).
 * Concurrency  Home loop, drained. Suspends. No scrub.
 * Failure      Some of it is gone, the disk reads the same; what is lost is under the mark.
 * Tests        qed_rebase_test.c, tests/interop/test_qed_rebase.py, crash explorer (qed-chain, mutant QED_EMPTY_EARLY)
 */
#include <string.h>

#include "base/assert.h"
#include "base/mutant.h"
#include "fmt/qed/qed_check_priv.h"

/* ---- the L1 table ---- */

struct beyond { const struct qed_image *q; struct qed_edits edits; };

static int see_entry(struct co *co, void *arg, const struct qed_ref *r)
{
    struct beyond *b = arg;
    (void)co;
    return r->i * 8 < b->q->l1_region.bytes ? 0 : qed_edits_add(&b->edits, r->entry_off, 0);
}

static int unreadable(void *arg, bool l1, uint64_t off, int error) { return error; }

/* Entries that lie behind what the size uses are not in memory. */
static int clear_beyond(struct co *co, struct qed_image *q)
{
    static const struct qed_visitor v = { .table = see_entry, .unreadable = unreadable };
    struct beyond b = { .q = q };
    struct qed_walk w = { .q = q, .v = &v, .arg = &b };
    int r = qed_walk(co, &w);
    if (r == 0 && b.edits.count) {
        meta_struct_begin(co, q->meta);
        r = qed_edits_settle(co, &b.edits, q);
        meta_struct_end(q->meta);
    }
    qed_edits_fini(&b.edits);
    return r;
}

static int clear_l1(struct co *co, struct qed_image *q)
{
    int r = meta_flush(co, q->meta);              /* what waits is for tables that go */
    if (r == 0)
        r = clear_beyond(co, q);
    for (uint64_t i = 0; r == 0 && i < q->l1_region.bytes / 8; i++)
        if (atomic_load_explicit(&q->l1_region.words[i], memory_order_relaxed))
            meta_region_put(q->meta, &q->l1_region, i, 0);
    return r < 0 || MUTANT(MUT_QED_EMPTY_EARLY) ? r : meta_flush(co, q->meta);
}

/* ---- space ---- */

/* M2. -ENOMEM: what is not known to be free is lost, and the mark stays. */
static int free_all(struct co *co, struct qed_image *q)
{
    struct qed_alloc *a = &q->a;
    unsigned bits = q->g.cluster_bits;
    uint64_t l1 = q->h.l1_off >> bits, behind = l1 + q->g.table_clusters, first = q->g.header_bytes >> bits;
    epoch_wait(co, q->im.epoch);
    meta_struct_begin(co, q->meta);
    meta_forget_all(q->meta);
    meta_struct_end(q->meta);
    int r = qed_tables_note(co, q);
    rset_fini(&a->spare);
    rset_init(&a->spare);
    a->told = 0;
    q->mark.keep = false;
    if (r == 0 && first < l1)
        r = rset_add(&a->spare, first, l1, 0);
    if (r == 0 && behind < a->next)
        r = rset_add(&a->spare, behind, a->next, 0);
    q->mark.keep |= r < 0;
    return r;
}

static int empty(struct co *co, struct qed_image *q)
{
    static const struct fmt_check_opts nothing = { 0 };
    struct qed_checker k = { .q = q, .g = &q->g, .o = &nothing };
    int r = qed_mark_enter(co, q);
    if (r < 0)
        return r;
    r = clear_l1(co, q);
    if (r == 0)
        r = free_all(co, q);
    if (r == 0)
        r = qed_fill(co, &k);                    /* the L1 table may lie anywhere */
    q->mark.keep |= r < 0;                        /* tables may be gone, whose space is not known to be free */
    qed_mark_exit(q);
    r = r < 0 ? r : qed_mark_leave(co, q);
    return r < 0 ? r : 0;
}

int qed_make_empty(struct co *co, struct fmt_image *im, struct byre_err *err)
{
    struct qed_image *q = qed_of(im);
    ASSERT_LOOP(im->home);
    int r = qed_scrub_excludes(q, "emptied", err);
    if (r < 0)
        return r;
    q->changing = "emptied";                      /* no scrub begins */
    r = empty(co, q);
    q->changing = NULL;
    return r < 0 ? byre_fail_code(err, IO, r, "%s: cannot be emptied: %s", q->name, strerror(-r)) : 0;
}
