/* SPDX-License-Identifier: MIT
 *
 * q2_zero.c: zero and discard whole clusters, and subclusters.
 *
 * Purpose     Changes entries so that a guest range reads zero, and drops what they held.
 * Owns        Nothing beyond the call.
 * Invariants  Z1  The range lock is held while entries of the range change (fmt.h I2).
 *             Z2  A cluster never shows backing data after a discard (1.054).
 *             Z3  Space is kept (zero with a host offset) only for a cluster that is the image's own (COPIED).
 *             Z4  When space is kept, zero_stamp is set, so that no later fill meets an old in-place writer (D3). In an external
 *                 data file the place is the same for ever: the stamp is set always, and the punch is over before the lock goes (Q21).
 *             Z5  Whole clusters are locked, also where only subclusters change: the last one takes the host cluster away
 *                 from under all of them.
 *             Z6  What a layer forgets (its bytes lie in the layer below by then) may still be under way to somebody who looked the
 *                 entry up before: its place in an external data file is punched a grace period later (Q9). Inside an image the
 *                 allocator waits.
 * Order       Entries rely on nothing new: no barrier before the tables. Q9, Q10.
 * Concurrency Works on the home loop, slice by slice; suspends for locks and loads between slices only.
 * Failure     What was done so far stays done: each cluster or subcluster is old or zero. -ENOTSUP: a part of a compressed
 *             cluster can only be written (1.068); a discard leaves it alone.
 * Tests       plan tables in q2_zero_test.c, crash explorer, interop.
 */
#include "base/assert.h"
#include "fmt/qcow2/q2_guard.h"
#include "fmt/qcow2/q2_image.h"
#include "fmt/qcow2/q2_unclean.h"

#define SLICE_WORDS_MAX 512u

enum mode { MODE_DISCARD, MODE_ZERO_UNMAP, MODE_ZERO_KEEP, MODE_ZERO_ABSENT /* only what is not there */, MODE_FORGET /* becomes what is not there */ };

struct call {
    struct q2_image *q;
    uint64_t off, end;
    enum mode mode;
    bool empty;                          /* the clusters that are kept give back their bytes (discard-no-unref) */
};

/* What becomes of an entry. Pure. false: it stays. below: a layer below could show through. */
static bool after(const struct q2_geom *g, const struct q2_l2e *e, enum mode mode, bool below, struct q2_l2e *ret)
{
    *ret = (struct q2_l2e){ .kind = g->zero_clusters && mode != MODE_FORGET ? Q2_ZERO_PLAIN : Q2_UNALLOCATED };
    if (mode == MODE_FORGET)
        return e->kind != Q2_UNALLOCATED;
    if (mode == MODE_ZERO_ABSENT && e->kind != Q2_UNALLOCATED)
        return false;
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

/* MODE_FORGET: only a whole compressed cluster can go. */
static bool forget_sub(const struct q2_l2e *e, uint32_t mask, struct q2_l2e *ret)
{
    *ret = (struct q2_l2e){ .kind = Q2_UNALLOCATED };
    if (e->kind == Q2_COMPRESSED || mask == Q2_SUB_ALL)
        return mask == Q2_SUB_ALL && (e->kind != Q2_UNALLOCATED || e->zero);
    bool left = e->alloc & ~mask;
    if (left || e->kind != Q2_NORMAL)
        *ret = *e;
    ret->alloc = e->alloc & ~mask;
    ret->zero = e->zero & ~mask;
    return mask & (e->alloc | e->zero);
}

/* The same for subclusters `mask` of an extended entry. below: those in which a layer below could show through. */
static bool after_sub(const struct q2_l2e *e, enum mode mode, uint32_t mask, uint32_t below, struct q2_l2e *ret)
{
    static const struct q2_l2e all_zero = { .kind = Q2_UNALLOCATED, .zero = Q2_SUB_ALL };
    if (mode == MODE_FORGET)
        return forget_sub(e, mask, ret);
    *ret = all_zero;
    if (e->kind == Q2_COMPRESSED)
        return mask == Q2_SUB_ALL && mode != MODE_ZERO_ABSENT;
    if (mode == MODE_ZERO_ABSENT) {
        uint32_t absent = mask & below & ~(e->alloc | e->zero);
        *ret = *e;
        ret->zero |= absent;
        return absent;
    }
    uint32_t change = mask & (e->alloc | (below & ~e->zero));
    bool host = e->kind == Q2_NORMAL, kept = host && mode == MODE_ZERO_KEEP && e->copied;         /* Z3 */
    bool gone = host && !kept && !(e->alloc & ~mask) && (e->alloc || mask == Q2_SUB_ALL);        /* nothing of it is left */
    if (!change && !gone)
        return false;
    *ret = *e;
    ret->alloc &= ~mask;
    ret->zero = mask == Q2_SUB_ALL ? Q2_SUB_ALL : e->zero | change;
    if (gone) {
        ret->kind = Q2_UNALLOCATED;
        ret->host = 0;
        ret->copied = false;
    }
    return true;
}

/* Which subclusters of the cluster at `guest` does [from, to) hold whole, and in which does something lie below? The last
 * one may be cut short by the end of the disk. */
static uint32_t mask_of(const struct q2_image *q, uint64_t guest, uint64_t from, uint64_t to)
{
    uint64_t cs = q->g.cluster_size, end = to == atomic_load_explicit(&q->im.size, memory_order_relaxed) ? round_up(to, cs) : to;
    return q2_sub_inside(&q->g, max_u64(from, guest) - guest, min_u64(end, guest + cs) - guest);
}

static uint32_t below_of(const struct q2_image *q, uint64_t guest, uint64_t below_from)
{
    return below_from <= guest ? 0 : q2_sub_touched(&q->g, 0, min_u64(below_from - guest, q->g.cluster_size));
}

/* Entry `index` of b maps the cluster at `guest`; c->off and c->end may lie inside. -ENOTSUP. *ret_gone: it gave its space up. */
static int change_sub(struct q2_image *q, const struct call *c, struct meta_block *b, uint32_t index, uint64_t guest, bool *ret_gone)
{
    struct q2_l2e old, new;
    uint32_t mask = mask_of(q, guest, c->off, c->end);
    if (!mask || !q2_entry_get(q, b, index, &old) || !q2_entry_fits(q, &old, guest))
        return 0;
    if (old.kind == Q2_COMPRESSED && mask != Q2_SUB_ALL)
        return c->mode == MODE_ZERO_UNMAP || c->mode == MODE_ZERO_KEEP ? -ENOTSUP : 0;
    if (!after_sub(&old, c->mode, mask, below_of(q, guest, atomic_load_explicit(&q->im.below_zero_from, memory_order_relaxed)), &new))
        return 0;
    q2_entry_set(q, b, index, &new);
    if (new.kind == Q2_NORMAL || q->g.data_file) {
        q->zero_stamp = epoch_stamp(q->im.epoch);                    /* Z4 */
        q->zero_stamped = true;
    }
    if (new.kind == Q2_UNALLOCATED) {
        q2_drop_entry(q, &old);
        *ret_gone = old.kind == Q2_NORMAL;
    }
    return 0;
}

static int change_slice_sub(struct q2_image *q, const struct call *c, struct meta_block *b, uint32_t index, uint64_t off, uint64_t *gone)
{
    int r = 0;
    for (uint32_t i = 0; r == 0 && off < c->end && index < q->slice_entries; off += q->g.cluster_size, index++, i++) {
        bool one = false;
        r = change_sub(q, c, b, index, off, &one);
        gone[i / 64] |= (uint64_t)one << (i % 64);
    }
    return r;
}

/* gone: bit i is set when the i-th entry from here on gave its space up. */
static void change_slice(struct q2_image *q, const struct call *c, struct meta_block *b, uint32_t index, uint64_t off, uint64_t *gone)
{
    uint64_t cs = q->g.cluster_size, below_from = atomic_load_explicit(&q->im.below_zero_from, memory_order_relaxed);
    for (uint32_t i = 0; off < c->end && index < q->slice_entries; off += cs, index++, i++) {
        struct q2_l2e old, new;
        if (!q2_entry_get(q, b, index, &old) || !q2_entry_fits(q, &old, off))
            continue;                        /* a bad entry stays for check to see */
        if (!after(&q->g, &old, c->mode, off < below_from, &new))
            continue;
        q2_entry_set(q, b, index, &new);
        if (new.kind == Q2_ZERO_ALLOC || q->g.data_file) {
            q->zero_stamp = epoch_stamp(q->im.epoch);                /* Z4 */
            q->zero_stamped = true;
        }
        if (new.kind == Q2_ZERO_ALLOC)
            gone[i / 64] |= (uint64_t)c->empty << (i % 64);
        if (new.kind != Q2_ZERO_ALLOC) {
            q2_drop_entry(q, &old);
            gone[i / 64] |= (uint64_t)(old.kind == Q2_NORMAL || old.kind == Q2_ZERO_ALLOC) << (i % 64);
        }
    }
}

/* Punches the clusters behind the entries of a pinned slice that have just turned zero and keep their place. Inside their range
 * lock: whoever fills them again comes later. A crash may show the punch without the entry: zeros either way. */
static void empty_kept(struct co *co, struct q2_image *q, struct meta_block *b, uint32_t index, const uint64_t *gone, uint32_t n)
{
    struct stor *s = q->im.data;
    for (uint32_t i = 0; i < n && !q->opts.discard_no_punch && s->discard_ok; i++) {
        struct q2_l2e e;
        if (!(gone[i / 64] >> (i % 64) & 1) || !q2_entry_get(q, b, index + i, &e) || e.kind != Q2_ZERO_ALLOC)
            continue;
        if (q->g.data_file || q2_guard_clear(q, e.host))
            (void)!stor_discard(co, s, e.host, q->g.cluster_size);       /* advisory */
    }
}

/* One slice, or the whole span of a missing table. Returns by *off how far it came. */
static int work_slice(struct co *co, const struct call *c, uint64_t *off)
{
    struct q2_image *q = c->q;
    uint64_t end = min_u64(c->end, round_down(*off, q->slice_span) + q->slice_span), first = round_down(*off, q->g.cluster_size);
    bool below = *off < atomic_load_explicit(&q->im.below_zero_from, memory_order_relaxed);
    struct co_range lock;
    struct meta_block *b = NULL;
    uint32_t index = 0;
    co_range_lock(co, &q->locks, &lock, first, round_up(end, q->g.cluster_size));      /* Z1, Z5 */
    int r = q2_slice_get(co, q, *off, &b, &index);
    if (r == 0 && !b && (!below || c->mode == MODE_FORGET)) {
        end = min_u64(c->end, round_down(*off, q2_l2_span(&q->g)) + q2_l2_span(&q->g));
    } else if (r == 0) {
        if (b)
            meta_put(q->meta, b);
        r = q2_slice_own(co, q, *off, &b, &index);
        if (r == 0) {
            struct call part = *c;
            uint64_t gone[SLICE_WORDS_MAX / 64] = { 0 };
            part.end = end;
            if (q->g.ext_l2)
                r = change_slice_sub(q, &part, b, index, first, gone);
            else
                change_slice(q, &part, b, index, first, gone);
            if (c->empty)
                empty_kept(co, q, b, index, gone, (uint32_t)div_up(end - first, q->g.cluster_size));
            meta_put(q->meta, b);
            if (q->g.data_file && (c->mode == MODE_DISCARD || c->mode == MODE_ZERO_UNMAP))
                q2_data_punch(co, q, first, gone, (uint32_t)div_up(end - first, q->g.cluster_size));
        }
    }
    co_range_unlock(&q->locks, &lock);
    r = q2_judge(co, q, r, "the L2 table of guest offset", *off);
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
    while (r == 0 && off < c->end) {
        q2_unclean_room_wait(co, c->q);
        r = work_slice(co, c, &off);
    }
    return r;
}

static int run(struct co *co, struct q2_image *q, uint64_t off, uint64_t len, enum mode mode)
{
    if (!q->g.zero_clusters && mode != MODE_FORGET && off < atomic_load_explicit(&q->im.below_zero_from, memory_order_relaxed))
        return -ENOTSUP;                     /* version 2 over a backing image cannot say "zero" */
    bool keep = q->opts.discard_no_unref && (mode == MODE_DISCARD || mode == MODE_ZERO_UNMAP);
    struct call c = { q, off, off + len, keep ? MODE_ZERO_KEEP : mode, keep };
    return rt_call(co, q->im.home, work_home, &c);
}

int q2_zero(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, unsigned flags)
{
    if (flags & FMT_ZERO_ABSENT)
        return im->data_raw ? 0 : run(co, q2_of(im), off, len, MODE_ZERO_ABSENT);
    if (im->data_raw)
        return q2_data_raw_zero(co, q2_of(im), off, len, flags);
    return run(co, q2_of(im), off, len, flags & FMT_ZERO_UNMAP ? MODE_ZERO_UNMAP : MODE_ZERO_KEEP);
}

int q2_discard(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len)
{
    if (im->data_raw)
        return q2_data_raw_discard(co, q2_of(im), off, len);
    return run(co, q2_of(im), off, len, MODE_DISCARD);
}

/* Which of n clusters from guest offset `first` on have no place in the data file now? Their range lock is held. */
static int without_place(struct co *co, struct q2_image *q, uint64_t first, uint32_t n, uint64_t *ret_bits)
{
    struct meta_block *b = NULL;
    uint32_t index = 0;
    int r = q2_slice_get(co, q, first, &b, &index);
    for (uint32_t i = 0; r == 0 && i < n; i++) {
        struct q2_l2e e = { .kind = Q2_UNALLOCATED };
        bool known = !b || q2_entry_get(q, b, index + i, &e);
        ret_bits[i / 64] |= (uint64_t)(known && e.kind == Q2_UNALLOCATED) << (i % 64);
    }
    if (b)
        meta_put(q->meta, b);
    return r;
}

/* Behind the pass that made the entries absent: whoever had looked them up before reads their bytes first (Z6). */
static int punch_forgotten(struct co *co, void *arg)
{
    const struct call *c = arg;
    struct q2_image *q = c->q;
    uint64_t off = round_down(c->off, q->g.cluster_size);
    epoch_wait(co, q->im.epoch);
    while (off < c->end) {
        uint64_t end = min_u64(round_up(c->end, q->g.cluster_size), round_down(off, q->slice_span) + q->slice_span);
        uint64_t bits[SLICE_WORDS_MAX / 64] = { 0 };
        uint32_t n = (uint32_t)((end - off) / q->g.cluster_size);
        struct co_range lock;
        co_range_lock(co, &q->locks, &lock, off, end);               /* as every punch of a data file */
        if (without_place(co, q, off, n, bits) == 0)                 /* else the bytes stay: no entry names them */
            q2_data_punch(co, q, off, bits, n);
        co_range_unlock(&q->locks, &lock);
        off = end;
    }
    return 0;
}

int q2_forget(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, bool later)
{
    struct q2_image *q = q2_of(im);
    if (im->data_raw)
        return -ENOTSUP;
    int r = run(co, q, off, len, MODE_FORGET);
    if (r == 0 && !(later && !q->g.data_file))
        r = im->ops->flush(co, im);
    if (r == 0 && q->g.data_file)
        r = rt_call(co, im->home, punch_forgotten, &(struct call){ .q = q, .off = off, .end = off + len });
    return r;
}
