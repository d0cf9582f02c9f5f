/* SPDX-License-Identifier: MIT
 *
 * q2_snap_apply.c: the disk becomes what an internal snapshot holds.
 *
 * Purpose      A new L1 table that names what the snapshot's names; the size that the disk had then.
 * Owns         Nothing beyond the call.
 * Invariants   A1  A crash shows the disk as it was, or as the snapshot has it, never a mix, and every snapshot as it was (P3).
 *              A2  The L1 table that the header comes to name lies in space of its own and says COPIED nowhere, and no L2 table
 *                  below it does: all of it is shared with the snapshot. (An L1 table overwritten in place with the flags
 *                  of long ago let later writes change the snapshot.)
 *              A3  Counts change only where the two trees differ.
 *              A4  Space behind the end of the snapshot's disk (a VM's state) stays the snapshot's alone.
 * Order        Q14: counts up, COPIED cleared in the snapshot's L2 tables, new L1 | META_B_SNAP_APPLY | header bytes 24..47, one
 *              sector | META_B_SNAP_SWITCHED | counts of the old tree down, old L1 dropped | META_B_FINAL.
 * Concurrency  q2_snap.c N1.
 * Failure      Before the switch the disk is as it was. Behind it the snapshot is applied, and the error tells that space is not back.
 * Tests        q2_snap_test.c, crash explorer, tests/interop/test_snapshots.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/qcow2/q2_snap_priv.h"

int q2_snap_apply_plan(struct co *co, struct q2_snap *s)
{
    const struct q2_image *q = s->q;
    const struct q2_snapshot *it = s->it;
    (void)co;
    if (!s->rq->before && (q->h.autoclear & Q2_AUTOCLEAR_BITMAPS) && q->h.has_bitmaps && q->h.bitmap_count)
        return byre_fail(s->err, NOT_SUPPORTED, "%s: a snapshot cannot be applied to an image with %" PRIu32 " dirty bitmaps; remove them first", q->name, q->h.bitmap_count);
    s->entries = max_u64(q2_l1_entries(&q->g, it->disk_size), it->l1_size);      /* with the VM state behind its disk (FEATURES 1.058) */
    if (!is_aligned(it->disk_size, 512) || s->entries > Q2_L1_BYTES_MAX / 8)
        return byre_fail(s->err, Q2_SNAPSHOTS, "%s: snapshot '%s': %" PRIu64 " bytes are no size that a disk can have", q->name, it->name, it->disk_size);
    s->l1_bytes = s->entries * 8;
    return 0;
}

static int look(struct co *co, struct q2_snap *s)
{
    struct q2_image *q = s->q;
    uint64_t active = atomic_load_explicit(&q->l1, memory_order_relaxed)->entries;
    uint64_t *mine = q2_snap_words(active);
    s->words = q2_snap_words(s->entries);
    if (!mine || !s->words) {
        free(mine);
        return -ENOMEM;
    }
    q2_snap_active_words(q, mine, active);
    int r = q2_tree_init(&s->mine, &q->g, s->file_bytes, mine, active);
    free(mine);
    if (r == 0)
        r = q2_snap_read_l1(co, s, s->words, s->entries);
    if (r == 0)
        r = q2_tree_init(&s->its, &q->g, s->file_bytes, s->words, s->entries);
    if (r < 0)
        return r;
    q2_tree_subtract(&s->its, &s->mine);             /* A3 */
    r = q2_tree_count(co, q, &s->its, &s->shift.gain);
    if (r == 0)
        r = q2_tree_count(co, q, &s->mine, &s->shift.loss);
    return r == 0 ? q2_snap_check(co, s) : r;
}

static void clear_flags(struct q2_snap *s)
{
    for (uint64_t i = 0; i < s->entries; i++)
        s->words[i] &= ~be64_word(Q2_E_COPIED);
}

static int write_l1(struct co *co, struct q2_snap *s, uint64_t off)
{
    return s->entries ? meta_write_now(co, s->q->meta, s->words, q2_snap_words_bytes(s->entries), off) : 0;
}

/* Everything in front of the barrier. Only tables that the disk does not have already need their flags cleared. */
static int prepare(struct co *co, struct q2_snap *s)
{
    struct q2_image *q = s->q;
    int r = q2_shift_up(co, &s->shift);
    if (r == 0 && !MUTANT(MUT_SNAP_STALE_COPIED))
        r = q2_tree_unflag(co, q, &s->its);
    if (!MUTANT(MUT_SNAP_STALE_COPIED))
        clear_flags(s);                              /* A2 */
    if (r == 0)
        r = write_l1(co, s, q2_run_off(q, &s->l1));
    return r < 0 ? r : meta_barrier(co, q->meta, META_B_SNAP_APPLY);
}

/* The one step: place and length of the L1 table and the size of the disk share a sector. */
static int switch_header(struct co *co, struct q2_snap *s, uint64_t l1_off)
{
    struct q2_header *h = &s->q->h, old = *h;
    s->named = true;
    h->l1_off = l1_off;
    h->l1_size = (uint32_t)s->entries;
    h->size = s->it->disk_size;
    int r = q2_header_sync(co, s->q, 24, 48, META_B_SNAP_SWITCHED);
    if (r < 0) {
        h->l1_off = old.l1_off;
        h->l1_size = old.l1_size;
        h->size = old.size;
    }
    s->switched = r == 0;
    return r;
}

/* A deliberate fault: the L1 table is overwritten where it stands, with the flags that the snapshot has kept; the flags
 * are mended at the end. */
static int in_place(struct co *co, struct q2_snap *s)
{
    struct q2_image *q = s->q;
    int r = q2_shift_up(co, &s->shift);
    if (r == 0)
        r = write_l1(co, s, q->h.l1_off);
    if (r == 0)
        r = meta_barrier(co, q->meta, META_B_SNAP_APPLY);
    if (r == 0)
        r = switch_header(co, s, q->h.l1_off);
    clear_flags(s);
    return r;
}

static int mend_in_place(struct co *co, struct q2_snap *s)
{
    int r = q2_tree_unflag(co, s->q, &s->its);
    return r < 0 ? r : write_l1(co, s, s->q->h.l1_off);
}

int q2_snap_apply(struct co *co, struct q2_snap *s)
{
    struct q2_image *q = s->q;
    uint64_t old_off = q->h.l1_off, old_bytes = (uint64_t)q->h.l1_size * 8, *dirty = NULL;
    bool h1 = MUTANT(MUT_SNAP_APPLY_IN_PLACE) && s->entries == q->h.l1_size;
    struct q2_l1 *l1 = NULL;
    int r = look(co, s);
    if (r == 0)
        r = q2_l1_replace(q, s->entries, NULL, &l1, &dirty);
    if (r < 0)
        return q2_snap_fail(s, r, "reading tables");
    if (MUTANT(MUT_SNAP_APPLY_FREE_FIRST))
        r = q2_shift_down(co, &s->shift);
    if (r == 0 && h1)
        r = in_place(co, s);
    else if (r == 0)
        r = prepare(co, s);
    if (r == 0 && !h1)
        r = switch_header(co, s, q2_run_off(q, &s->l1));
    if (r < 0) {
        int u = q2_shift_undo(co, &s->shift);
        (void)u;                                     /* counts stay too high: safe (N3 of q2_snap.c) */
        meta_forget_all(q->meta);
        q2_l1_discard(l1, dirty);
        return q2_snap_fail(s, r, "writing tables");
    }
    for (uint64_t i = 0; i < s->entries; i++)
        atomic_store_explicit(&l1->words[i], s->words[i], memory_order_relaxed);
    q2_l1_install(q, l1, dirty);
    atomic_store(&q->im.size, q->h.size);
    r = h1 ? mend_in_place(co, s) : 0;
    if (r == 0 && !MUTANT(MUT_SNAP_APPLY_FREE_FIRST))
        r = q2_snap_settle(co, s, false, old_off, h1 ? 0 : old_bytes);
    else if (r == 0)
        meta_forget_all(q->meta);
    if (r == -EUCLEAN)
        r = q2_corrupt_locked(co, q, "what is left of the refcounts behind", 0);
    return r < 0 ? byre_fail_code(s->err, IO, r, "%s: the snapshot is applied, but not all of the old space was given back: %s; check -r leaks frees it", q->name, strerror(-r)) : 0;
}
