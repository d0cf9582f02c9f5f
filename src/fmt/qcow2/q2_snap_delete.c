/* SPDX-License-Identifier: MIT
 *
 * q2_snap_delete.c: an internal snapshot goes.
 *
 * Purpose      A snapshot table without it; then everything that it named loses one owner.
 * Owns         Nothing beyond the call.
 * Invariants   I1  A crash shows the snapshot as it was, or none, with leaks (P3).
 *              I2  COPIED is set in the active disk only for clusters whose count fell to 1 here: nobody else names them.
 * Order        Q15: new snapshot table | META_B_SNAP_DELETE | header bytes 60..71 | META_B_SNAP_SWITCHED | counts down, COPIED set
 *              (in any order: it depends on how many references there are, and those are gone; a count on the disk that is
 *              still higher is a leak) | META_B_FINAL.
 * Concurrency  q2_snap.c N1.
 * Failure      Before the switch nothing has changed. Behind it the snapshot is gone, and the error tells that space is not back.
 * Tests        q2_snap_test.c, crash explorer, tests/interop/test_snapshots.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/qcow2/q2_snap_priv.h"

/* The list without it; only the array belongs to the caller. */
static int shorter_list(const struct q2_snap *s, struct q2_snapshot_scan *ret)
{
    size_t at = (size_t)(s->it - s->old.snapshots);
    *ret = (struct q2_snapshot_scan){ .count = s->old.count - 1 };
    ret->snapshots = calloc(s->old.count, sizeof *ret->snapshots);
    if (!ret->snapshots)
        return -ENOMEM;
    memcpy(ret->snapshots, s->old.snapshots, at * sizeof *ret->snapshots);
    memcpy(ret->snapshots + at, s->it + 1, (ret->count - at) * sizeof *ret->snapshots);
    return 0;
}

int q2_snap_delete_plan(struct co *co, struct q2_snap *s)
{
    struct q2_snapshot_scan list;
    (void)co;
    if (shorter_list(s, &list) < 0)
        return byre_fail(s->err, NOMEM, "%s: no memory for the snapshot table", s->q->name);
    s->table_bytes = q2_snapshots_emit(&list, &s->q->g, NULL);
    free(list.snapshots);
    return 0;
}

/* All entries of both L1 tables. */
static int look(struct co *co, struct q2_snap *s)
{
    struct q2_image *q = s->q;
    uint64_t active = atomic_load_explicit(&q->l1, memory_order_relaxed)->entries;
    s->words = q2_snap_words(max_u64(active, s->it->l1_size));
    if (!s->words)
        return -ENOMEM;
    q2_snap_active_words(q, s->words, active);
    int r = q2_tree_init(&s->mine, &q->g, s->file_bytes, s->words, active);
    if (r == 0)
        r = q2_snap_read_l1(co, s, s->words, s->it->l1_size);
    if (r == 0)
        r = q2_tree_init(&s->its, &q->g, s->file_bytes, s->words, s->it->l1_size);
    if (r == 0)
        r = q2_tree_count(co, q, &s->its, &s->shift.loss);
    return r == 0 ? q2_snap_check(co, s) : r;
}

static int write_table(struct co *co, struct q2_snap *s)
{
    struct q2_snapshot_scan list;
    int r = shorter_list(s, &list);
    if (r == 0)
        r = q2_snap_write_table(co, s, &list);
    free(list.snapshots);
    return r < 0 ? r : meta_barrier(co, s->q->meta, META_B_SNAP_DELETE);
}

int q2_snap_delete(struct co *co, struct q2_snap *s)
{
    struct q2_image *q = s->q;
    int r = look(co, s);
    if (r < 0)
        return q2_snap_fail(s, r, "reading tables");
    if (MUTANT(MUT_SNAP_FREE_FIRST))
        r = q2_shift_down(co, &s->shift);
    if (r == 0)
        r = write_table(co, s);
    if (r == 0)
        r = q2_snap_switch_table(co, s, s->old.count - 1);
    if (r < 0)
        return q2_snap_fail(s, r, "writing tables");
    if (MUTANT(MUT_SNAP_FREE_FIRST)) {
        q2_counts_fini(&s->shift.loss);
        r = q2_counts_init(&s->shift.loss, s->shift.state.n);
    }
    if (r == 0)
        r = q2_snap_settle(co, s, true, s->it->l1_off, (uint64_t)s->it->l1_size * 8);
    if (r == -EUCLEAN)
        r = q2_corrupt_locked(co, q, "what is left of the refcounts behind", 0);
    return r < 0 ? byre_fail_code(s->err, IO, r, "%s: the snapshot is deleted, but not all of its space was given back: %s; check -r leaks frees it", q->name, strerror(-r)) : 0;
}
