/* SPDX-License-Identifier: MIT
 *
 * bitmap_revert.c: dirty bitmaps of a node whose whole content is replaced (a snapshot is applied, G.007).
 *
 * Purpose      What a bitmap knew was of another content: afterwards all of the disk is dirty in every one, also in those that do
 *              not record.
 * Owns         struct bitmaps_revert, from begin to end.
 * Invariants   I1  Before the content can be seen to change, the disk holds every persistent bitmap all dirty, in use and, where
 *                  there is room to say so, claimed: whatever happens from then on it is a superset, or nobody trusts it (P4).
 *              I2  When nothing was touched, every bitmap has its old bits again, and is marked changed as it was, or until the
 *                  old bits are on the disk again.
 *              I3  What can be known to be impossible for a disk of the new size is refused before anything is changed.
 * Order        all dirty, old size (bitmaps_sync) | in use (bitmaps_resizing) | the change | all dirty, new size (bitmaps_sync).
 * Concurrency  Home loop, drained, node->whole held.
 * Failure      begin: as it was, or, when the way back fails too, all dirty on the disk, and closing tries again. end: what is on
 *              the disk is in use, and closing tries again.
 * Tests        bitmap_revert_test.c, crash explorer (bitmaps, mutant SNAP_BITMAPS_LATE), tests/faults, tests/interop/test_snapshots.py
 */
#include <inttypes.h>
#include <stdlib.h>

#include "base/mutant.h"
#include "graph/graph_priv.h"

struct reverted {
    struct fmt_bitmap *b;
    struct dirty *old;                       /* what it had; NULL: it has that still */
    struct dirty *now, *then;                /* all dirty, for the old size and the new one; NULL: in use or gone */
    bool changed;                            /* as it was */
};
struct bitmaps_revert { struct tracked *t; unsigned count; bool persistent, sound; struct reverted of[]; };

static void revert_free(struct bitmaps_revert *z)
{
    for (unsigned i = 0; i < z->count; i++) {
        dirty_free(z->of[i].old);
        dirty_free(z->of[i].now);
        dirty_free(z->of[i].then);
    }
    free(z->t);
    free(z);
}

static int all_dirty(const struct graph_node *n, const struct fmt_bitmap *b, uint64_t size, struct dirty **ret, struct byre_err *err)
{
    int r = dirty_new(size, b->granularity_bits, b->bits->budget, ret);
    if (r == 0)
        dirty_set(*ret, 0, size);
    if (r == -E2BIG)
        return byre_fail(err, LIMIT, "%s: a disk of %" PRIu64 " bytes has too many granules for bitmap '%s'; remove it first", n->filename, size, b->name);
    return r ? byre_fail(err, NOMEM, "%s: bitmap '%s' for a disk of %" PRIu64 " bytes", n->filename, b->name, size) : 0;
}

/* What it must come to hold, for each sound one; the others stay what they are. */
static int prepare(struct co *co, struct graph_node *n, uint64_t size, struct bitmaps_revert *z, struct byre_err *err)
{
    for (struct fmt_bitmap *b = n->im->bitmaps; b; b = b->next) {
        if (b->busy)
            return byre_fail(err, BITMAP_BUSY, "%s: no snapshot can be applied: bitmap '%s' is in use by a job or an export", n->filename, b->name);
        z->persistent |= b->persistent;
        int r = b->bad || b->inconsistent ? 0 : graph_bitmap_load(co, n, b, b->bits ? NULL : err);
        if (r && !b->bad)
            return r;
        if (b->bad || b->inconsistent)       /* perhaps found damaged just now */
            continue;
        z->sound |= b->persistent;
        struct reverted *v = &z->of[z->count++];
        *v = (struct reverted){ .b = b, .changed = b->changed };
        r = all_dirty(n, b, b->bits->size, &v->now, err);
        if (!r)
            r = all_dirty(n, b, size, &v->then, err);
        if (r)
            return r;
    }
    return z->sound && n->im->ops->bitmaps_fit ? n->im->ops->bitmaps_fit(n->im, size, err) : 0;
}

static void take_bits(struct reverted *v, struct dirty **from)
{
    if (v->old)
        dirty_free(v->b->bits);
    else
        v->old = v->b->bits;
    v->b->bits = *from;
    v->b->changed = v->b->persistent;
    *from = NULL;
}

/* stored: the disk may have other bits than the old ones. */
static void give_back(struct co *co, struct graph_node *n, struct bitmaps_revert *z, bool stored)
{
    struct byre_err why = { 0 };
    for (unsigned i = 0; i < z->count; i++) {
        struct reverted *v = &z->of[i];
        if (!v->old)
            continue;
        dirty_free(v->b->bits);
        v->b->bits = v->old;
        v->b->changed = stored ? v->b->persistent : v->changed;
        v->old = NULL;
    }
    if (stored && z->sound && bitmaps_store(co, n, &why))
        graph_warn(n, "%s", why.text);       /* all dirty on the disk, and closing tries again */
}

static int store(struct co *co, struct graph_node *n, struct bitmaps_revert *z, struct byre_err *err)
{
    for (unsigned i = 0; i < z->count; i++)
        take_bits(&z->of[i], &z->of[i].now);
    int r = z->sound ? bitmaps_store(co, n, err) : 0;
    if (r) {
        give_back(co, n, z, false);          /* the old set stands */
        return r;
    }
    r = z->persistent ? n->im->ops->bitmaps_resizing(co, n->im, err) : 0;
    if (r)
        give_back(co, n, z, true);
    return r;
}

static void finish(struct graph_node *n, struct bitmaps_revert *z)
{
    bitmaps_publish(n, z->t);
    z->t = NULL;
    revert_free(z);
}

int bitmaps_revert_begin(struct co *co, struct graph_node *n, uint64_t size, struct bitmaps_revert **ret, struct byre_err *err)
{
    unsigned count = 0;
    int r = bitmaps_list(co, n, err);
    *ret = NULL;
    for (struct fmt_bitmap *b = n->im->bitmaps; b; b = b->next)
        count++;
    if (r || !count)
        return r;
    struct bitmaps_revert *z = calloc(1, sizeof *z + count * sizeof z->of[0]);
    if (!z || !(z->t = bitmaps_tracked(n, 0))) {
        free(z);
        return byre_fail(err, NOMEM, "%s: bitmaps", n->filename);
    }
    r = prepare(co, n, size, z, err);
    if (r == 0 && !MUTANT(MUT_SNAP_BITMAPS_LATE))
        r = store(co, n, z, err);
    if (r == 0)
        *ret = z;
    else
        finish(n, z);                        /* one that was found damaged on the way records no longer */
    return r;
}

void bitmaps_revert_end(struct co *co, struct graph_node *n, struct bitmaps_revert *z, bool touched)
{
    struct byre_err why = { 0 };
    if (!z)
        return;
    if (!touched)
        give_back(co, n, z, true);
    for (unsigned i = 0; touched && i < z->count; i++) {
        struct reverted *v = &z->of[i];
        if (v->then->size == graph_length(n))
            take_bits(v, &v->then);
        else if (v->now)
            take_bits(v, &v->now);           /* else it failed so late that nobody knows: what it has is all dirty, and fits */
    }
    if (touched && z->sound && bitmaps_store(co, n, &why))
        graph_warn(n, "%s", why.text);
    finish(n, z);
}
