/* SPDX-License-Identifier: MIT
 *
 * q2_zero.c: zero and discard whole clusters.
 *
 * Purpose     Changes entries so that a guest range reads zero, and drops what they held.
 * Owns        Nothing beyond the call.
 * Invariants  Z1  The range lock is held while entries of the range change (fmt.h I2).
 *             Z2  A cluster never shows backing data after a discard (1.054).
 *             Z3  Space is kept (zero with a host offset) only for a cluster that is the image's own (COPIED).
 *             Z4  When space is kept, zero_stamp is set, so that no later fill meets an old in-place writer (D3).
 * Order       Entries rely on nothing new: no barrier before the tables. Q9, Q10.
 * Concurrency Works on the home loop, slice by slice; suspends for locks and loads between slices only.
 * Failure     What was done so far stays done: each cluster is old or zero.
 * Tests       plan table in q2_zero_test.c, crash explorer, interop.
 */
#include "base/assert.h"
#include "fmt/qcow2/q2_image.h"

enum mode { MODE_DISCARD, MODE_ZERO_UNMAP, MODE_ZERO_KEEP };

struct call { struct q2_image *q; uint64_t off, end; enum mode mode; };

/* What becomes of an entry. Pure. false: it stays. below: a layer below could show through. */
static bool after(const struct q2_geom *g, const struct q2_l2e *e, enum mode mode, bool below, struct q2_l2e *ret)
{
    *ret = (struct q2_l2e){ .kind = g->zero_clusters ? Q2_ZERO_PLAIN : Q2_UNALLOCATED };
    switch (e->kind) {
    case Q2_UNALLOCATED:
        return below && g->zero_clusters;
    case Q2_ZERO_PLAIN:
        return false;
    case Q2_ZERO_ALLOC:
        return mode != MODE_ZERO_KEEP;
    case Q2_NORMAL:
        if (mode == MODE_ZERO_KEEP && e->copied && g->zero_clusters)
            *ret = (struct q2_l2e){ .kind = Q2_ZERO_ALLOC, .copied = true, .host = e->host };
        return true;
    case Q2_COMPRESSED:
        return true;
    }
    return false;
}

static void change_slice(struct q2_image *q, const struct call *c, struct meta_block *b, uint32_t index, uint64_t off)
{
    uint64_t cs = q->g.cluster_size, below_from = atomic_load_explicit(&q->im.below_zero_from, memory_order_relaxed);
    for (; off < c->end && index < q->slice_entries; off += cs, index++) {
        struct q2_l2e old, new;
        if (!q2_entry_get(q, b, index, &old))
            continue;                        /* a bad entry stays for check to see */
        if (!after(&q->g, &old, c->mode, off < below_from, &new))
            continue;
        q2_entry_set(q, b, index, &new);
        if (new.kind == Q2_ZERO_ALLOC) {
            q->zero_stamp = epoch_stamp(q->im.epoch);                /* Z4 */
            q->zero_stamped = true;
        } else {
            q2_drop_entry(q, &old);
        }
    }
}

/* One slice, or the whole span of a missing table. Returns by *off how far it came. */
static int work_slice(struct co *co, const struct call *c, uint64_t *off)
{
    struct q2_image *q = c->q;
    uint64_t end = min_u64(c->end, round_down(*off, q->slice_span) + q->slice_span);
    bool below = *off < atomic_load_explicit(&q->im.below_zero_from, memory_order_relaxed);
    struct co_range lock;
    struct meta_block *b = NULL;
    uint32_t index = 0;
    co_range_lock(co, &q->locks, &lock, *off, round_up(end, q->g.cluster_size));      /* Z1 */
    int r = q2_slice_get(co, q, *off, &b, &index);
    if (r == 0 && !b && !below) {
        end = min_u64(c->end, round_down(*off, q2_l2_span(&q->g)) + q2_l2_span(&q->g));
    } else if (r == 0) {
        if (b)
            meta_put(q->meta, b);
        r = q2_slice_own(co, q, *off, &b, &index);
        if (r == 0) {
            struct call part = *c;
            part.end = end;
            change_slice(q, &part, b, index, *off);
            meta_put(q->meta, b);
        }
    }
    co_range_unlock(&q->locks, &lock);
    r = q2_judge(co, q, r, "L2 table", *off);
    *off = end;
    return r;
}

static int work_home(struct co *co, void *arg)
{
    struct call *c = arg;
    if (c->q->failed)
        return -EIO;
    uint64_t off = c->off;
    int r = 0;
    while (r == 0 && off < c->end)
        r = work_slice(co, c, &off);
    return r;
}

static int run(struct co *co, struct q2_image *q, uint64_t off, uint64_t len, enum mode mode)
{
    if (!q->g.zero_clusters && off < atomic_load_explicit(&q->im.below_zero_from, memory_order_relaxed))
        return -ENOTSUP;                     /* version 2 over a backing image cannot say "zero" */
    struct call c = { q, off, off + len, mode };
    return rt_call(co, q->im.home, work_home, &c);
}

int q2_zero(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, unsigned flags)
{
    return run(co, q2_of(im), off, len, flags & FMT_ZERO_UNMAP ? MODE_ZERO_UNMAP : MODE_ZERO_KEEP);
}

int q2_discard(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len)
{
    return run(co, q2_of(im), off, len, MODE_DISCARD);
}
