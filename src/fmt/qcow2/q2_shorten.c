/* SPDX-License-Identifier: MIT
 *
 * q2_shorten.c: gives space back to the host: the end of the file, and the holes in it.
 *
 * Purpose      Says how far a file could be cut, cuts it also over refcount blocks that count nothing but themselves, and punches
 *              what is free.
 * Owns         Nothing.
 * Invariants   S1 A refcount block goes only if every cluster that it counts lies behind the cut, and is free or such a block.
 *              S2 Its entry of the refcount table is gone durably before the file is cut (Q24): an entry never names what is not there.
 *              S3 What is punched is out of the allocator's sets meanwhile: nobody gets it before the punch is over (Q9 c).
 * Order        table entries | META_B_CUT | counts of the blocks that are gone; truncate.
 * Concurrency  Home loop, beside requests: growth and takers are held off (grow_mx, mx) while the end moves.
 * Failure      The file stays as long as it was; a table sector that cannot be written is put back, or nothing is written any more.
 * Tests        q2_compact_test.c, crash explorer (compact-*, mutant BARRIER_CUT)
 */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "fmt/qcow2/q2_compact_priv.h"
#include "fmt/qcow2/q2_guard.h"
#include "fmt/qcow2/q2_unclean.h"

/* ---- how far? ---- */

/* The lowest cluster from which on everything is free, on its way to that, movable into the room that there is below, or a
 * refcount block that would then count nothing (S1). */
struct q2_aim q2_shape_aim(const struct q2_shape *s)
{
    struct q2_aim best = { .target = s->end };
    uint64_t moved = 0, room = s->room, needs = UINT64_MAX;
    size_t b = s->block_count, f = s->free_count;
    for (uint64_t c = s->end; c > 0;) {
        while (b && s->blocks[b - 1].cluster >= c)
            b--;
        while (f && s->free[f - 1].start >= c)
            f--;
        if (f && s->free[f - 1].end >= c) {
            room -= min_u64(room, c - s->free[f - 1].start);
            c = s->free[f - 1].start;
        } else if (s->movable && q2_marks_has(s->movable, c - 1)) {
            c--;
            moved++;
        } else if (b && s->blocks[b - 1].cluster == c - 1) {
            c--;
            needs = s->blocks[b - 1].covers < c ? min_u64(needs, s->blocks[b - 1].covers) : needs;
        } else if (s->passing && q2_marks_has(s->passing, c - 1)) {
            c--;
        } else {
            break;
        }
        if (moved > room)
            break;
        if (needs == UINT64_MAX || c <= needs) {
            best = (struct q2_aim){ c, moved };
            needs = UINT64_MAX;
        }
    }
    return best;
}

int q2_shape_free(const struct rset *set, struct rset_range **ret, size_t *ret_count)
{
    struct rset_range x, *list = malloc(max_u64(set->count, 1) * sizeof *list);
    size_t n = 0;
    if (!list)
        return -ENOMEM;
    for (uint64_t at = 0; n < set->count && rset_next(set, at, &x); at = x.end) {
        if (n && list[n - 1].end == x.start)
            list[n - 1].end = x.end;     /* it goes on, with another tag */
        else
            list[n++] = x;
    }
    *ret = list;
    *ret_count = n;
    return 0;
}

static int by_cluster(const void *a, const void *b)
{
    uint64_t x = ((const struct q2_block_at *)a)->cluster, y = ((const struct q2_block_at *)b)->cluster;
    return x < y ? -1 : x > y;
}

int q2_shape_blocks(const struct q2_image *q, struct q2_block_at **ret, size_t *ret_count)
{
    size_t n = 0, at = 0;
    for (uint64_t i = 0; i < q->rt_entries; i++)
        n += q->rt[i] != 0;
    struct q2_block_at *list = malloc(max_u64(n, 1) * sizeof *list);
    if (!list)
        return -ENOMEM;
    for (uint64_t i = 0; i < q->rt_entries; i++)
        if (q->rt[i])
            list[at++] = (struct q2_block_at){ q->rt[i] >> q->g.cluster_bits, i << q->g.block_bits };
    qsort(list, n, sizeof *list, by_cluster);
    *ret = list;
    *ret_count = n;
    return 0;
}

/* ---- refcount blocks that go ---- */

/* The sectors of the refcount table that hold entries [first, end), from memory; entries behind `end` are left out if cut. */
static int put_entries(struct co *co, struct q2_image *q, uint64_t first, uint64_t end, bool cut)
{
    uint64_t from = round_down(first, 64), to = min_u64(round_up(end, 64), q->rt_entries);
    be64 *buf = malloc((to - from) * 8);
    if (!buf)
        return -ENOMEM;
    for (uint64_t i = from; i < to; i++)
        be64_put(&buf[i - from], cut && i >= first && i < end ? 0 : q->rt[i]);
    int r = meta_write_now(co, q->meta, buf, (to - from) * 8, q->h.rt_off + from * 8);
    free(buf);
    return r;
}

/* Takes entries [first, end) of the refcount table away, durably (S2). */
static int take_entries(struct co *co, struct q2_image *q, uint64_t first, uint64_t end)
{
    int r = put_entries(co, q, first, end, true);
    if (r == -ENOMEM)
        return r;
    if (r < 0) {                                     /* each sector may be old or new: back to the old */
        int back = put_entries(co, q, first, end, false);
        if (back == 0)
            back = meta_barrier(co, q->meta, META_B_CUT);
        if (back < 0)
            meta_stop(q->meta, r);
        return r;
    }
    r = meta_barrier(co, q->meta, META_B_CUT);
    if (r < 0)
        return r;                                    /* nothing is written any more (meta I6) */
    for (uint64_t i = first; i < end; i++) {
        if (!q->rt[i])
            continue;
        bool gone = meta_forget(q->meta, q->rt[i], q->g.cluster_size);
        ASSERT(gone);                                /* blocks of counts are pinned only between two suspensions */
        q2_rt_set(q, q->rt, i, 0);
    }
    return 0;
}

/* The clusters of blocks that have gone, and that blocks which stay count. One behind the cut that cannot be uncounted has to stay in the
 * file: it is dropped like any other (tried once more when it is released, then told as lost), and the cut goes behind it. Whatever is
 * in front of that is still counted by blocks which stay. */
static void uncount_blocks(struct co *co, struct q2_image *q, const struct q2_block_at *blocks, size_t n, uint64_t first, uint64_t *end)
{
    uint64_t kept = *end;
    for (size_t i = 0; i < n; i++) {                 /* in rising order of clusters */
        uint64_t c = blocks[i].cluster;
        if (blocks[i].covers >> q->g.block_bits < first || c >> q->g.block_bits >= first)
            continue;
        if (c >= *end && q2_refs_add(co, q, c, 1, -1) == 0)
            continue;
        q2_alloc_drop(q, c, 1);
        kept = max_u64(kept, c + 1);
    }
    for (size_t i = 0; i < n; i++) {                 /* those that were uncounted all the same are free clusters of the file */
        uint64_t c = blocks[i].cluster, refs = 0;
        if (blocks[i].covers >> q->g.block_bits < first || c < *end || c >= kept)
            continue;
        if (q2_refs_get(co, q, c, &refs) < 0 || (!refs && q2_alloc_freed(q, c, c + 1) < 0))
            q->alloc->lost++;
    }
    *end = kept;
}

/* Under grow_mx, mx and the structural lock of meta. *end: may come to lie further behind. */
static int cut_blocks(struct co *co, struct q2_image *q, const struct q2_block_at *blocks, size_t n, uint64_t *end)
{
    uint64_t first = div_up(*end, 1ull << q->g.block_bits), last = first;
    for (uint64_t i = first; i < q->rt_entries; i++)
        last = q->rt[i] ? i + 1 : last;
    int r = last > first ? take_entries(co, q, first, last) : 0;
    if (r == 0 && last > first)
        uncount_blocks(co, q, blocks, n, first, end);
    return r;
}

/* Is there a block behind the cut, of what is in front of it? Then S1 does not hold; cannot be, by the shape. */
static bool sound(const struct q2_image *q, uint64_t end)
{
    for (uint64_t i = 0; i < q->rt_entries; i++)
        if (q->rt[i] >> q->g.cluster_bits >= end && i << q->g.block_bits < end)
            return false;
    return true;
}

/* The last that suspends comes before the end is chosen. */
static int shorten_to(struct co *co, struct q2_image *q, const struct q2_block_at *blocks, size_t block_count, uint64_t *ret_end)
{
    struct q2_alloc *a = q->alloc;
    struct q2_shape s = { .end = a->end, .room = UINT64_MAX, .blocks = blocks, .block_count = block_count };
    struct rset_range *list;
    int r = q2_shape_free(&a->ready, &list, &s.free_count);
    if (r < 0)
        return r;
    s.free = list;
    *ret_end = q2_shape_aim(&s).target;
    free(list);
    if (*ret_end < a->end && !sound(q, *ret_end))
        *ret_end = a->end;
    return cut_blocks(co, q, blocks, block_count, ret_end);
}

static int shorten_locked(struct co *co, struct q2_image *q)
{
    struct q2_block_at *blocks;
    uint64_t end = q->alloc->end;
    size_t n;
    meta_struct_begin(co, q->meta);
    int r = q2_shape_blocks(q, &blocks, &n);
    if (r == 0) {
        r = shorten_to(co, q, blocks, n, &end);
        free(blocks);
    }
    meta_struct_end(q->meta);
    return r < 0 || end == q->alloc->end ? r : q2_frontier_cut_at(co, q, end);
}

int q2_shorten(struct co *co, struct q2_image *q)
{
    struct q2_alloc *a = q->alloc;
    int r = q2_alloc_trim(co, q);
    if (r < 0 || !q->im.store->traits.regular || q2_counts_in_memory(q))
        return r;
    co_lock(co, &a->grow_mx);
    co_lock(co, &a->mx);
    r = shorten_locked(co, q);
    co_unlock(&a->mx);
    co_unlock(&a->grow_mx);
    return r;
}

/* ---- holes ---- */

#define PUNCH_BYTES (64ull << 20)

int q2_punch_free(struct co *co, struct q2_image *q, int (*step)(struct co *co, void *arg, uint64_t bytes), void *arg)
{
    struct q2_alloc *a = q->alloc;
    uint64_t most = max_u64(PUNCH_BYTES >> q->g.cluster_bits, 1), at = 0;
    int r = 0;
    while (r == 0) {
        struct rset_range x;
        co_lock(co, &a->mx);
        bool more = rset_next(&a->ready, at, &x);
        if (more) {
            x.start = max_u64(x.start, at);
            x.end = min_u64(x.end, x.start + most);
            r = rset_remove(&a->ready, x.start, x.end);          /* S3 */
        }
        co_unlock(&a->mx);
        if (!more || r < 0)
            break;
        int punched = stor_punch(co, q->im.store, x.start << q->g.cluster_bits, (x.end - x.start) << q->g.cluster_bits);
        (void)punched;                               /* advisory: they are free all the same */
        if (rset_add(&a->ready, x.start, x.end, x.tag && x.tag != Q2_READY_HOLE ? Q2_READY_PROVED : 0) < 0)
            a->missed += x.end - x.start;
        at = x.end;
        r = step ? step(co, arg, 0) : 0;
    }
    return r;
}
