/* SPDX-License-Identifier: MIT
 *
 * q2_frontier.c: the zeroed frontier (DESIGN D4): space reserved ahead, so that a first write costs no more than
 * its data.
 *
 * Purpose     Extends the file in large steps; new refcount blocks and a larger refcount table are durable before anything
 *             can point into the space that they describe. Gives the unused rest back at close.
 * Owns        a->frontier, a->end, a->settled_to, the order of growth.
 * Invariants  F1  Every cluster in `frontier` is counted once and lies inside the file; below a->settled_to both are
 *                 durable. A growth that needs no new block waits for no barrier: its counts are dirty and go with the
 *                 next pass, and until that has ended well an entry that points there needs the data barrier (Q1).
 *             F2  tag 1 only for space that reads zero until it is first written, and after a crash too (q2_alloc.c I5).
 *             F3  A refcount block is found through the table only when it is durable itself (Q6).
 *             F4  Space that a failed write may have named on the disk (a failed write can have landed) is never used
 *                 again: it stays counted and behind a->end, a leak.
 *             F5  While a new block is not durable, nobody but the growth changes a count in it: it may be taken back.
 * Order       With new blocks: length + counts (in old blocks, in new self-describing blocks, new table)  |
 *             META_B_GROW_COUNTS  |  table entries (or header bytes 48..59)  |  META_B_GROW_ROOT / META_B_SWITCH_AFTER  |
 *             use. Without: length, counts in memory, use; the next pass: counts  |  META_B_DATA_TABLES  |  tables.
 *             Close: counts lowered  |  META_B_FINAL of the last pass  |  truncate. Q6, Q7, D4.
 * Concurrency Home loop. One growth at a time (grow_mx); it holds passes off while it writes (meta_struct_begin).
 * Failure     Nothing is reserved; the file may be longer than before, which close mends. A crash leaks at most one step.
 * Tests       crash explorer with steps of a few clusters; interop over all widths and cluster sizes.
 */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "fmt/frontier.h"
#include "fmt/qcow2/q2_alloc_priv.h"
#include "fmt/qcow2/q2_guard.h"
#include "fmt/qcow2/q2_unclean.h"

static uint64_t step_clusters(const struct q2_image *q)
{
    const struct q2_alloc *a = q->alloc;
    return min_u64(frontier_step(q->opts.frontier_bytes, a->end * q->g.cluster_size, q->g.cluster_size), a->step_max);
}

struct growth {
    uint64_t first, total;               /* clusters */
    uint64_t ti_first, blocks;           /* table index of the first new block; new blocks */
    uint64_t rt_clusters;                /* clusters of a new table, 0: the old one does */
    uint64_t usable;                     /* first cluster behind the metadata */
    bool zero;                           /* the space reads zero */
    bool named;                          /* something on the disk may name the new blocks or the new table */
};

/* How much metadata do `step` clusters need? Grows with itself, so it is iterated to a fixed point. */
static int plan(const struct q2_image *q, uint64_t step, struct growth *ret)
{
    const struct q2_alloc *a = q->alloc;
    const struct q2_geom *g = &q->g;
    struct growth p = { .first = a->end };
    for (unsigned i = 0; i < 64; i++) {
        uint64_t total = step + p.blocks + p.rt_clusters;
        uint64_t t0 = p.first >> g->block_bits, t1 = (p.first + total - 1) >> g->block_bits;
        uint64_t missing = 0, ti_first = t1 + 1;
        for (uint64_t t = t0; t <= t1; t++)
            if (t >= q->rt_entries || !q->rt[t]) {
                ti_first = min_u64(ti_first, t);
                missing++;
            }
        uint64_t rtc = 0;
        if (t1 >= q->rt_entries)
            rtc = div_up(max_u64(t1 + 1, q->rt_entries * 3 / 2) * 8, g->cluster_size);
        if (rtc * g->cluster_size > Q2_RT_BYTES_MAX) {
            rtc = div_up((t1 + 1) * 8, g->cluster_size);
            if (rtc * g->cluster_size > Q2_RT_BYTES_MAX)
                return -EFBIG;
        }
        bool stable = missing == p.blocks && rtc == p.rt_clusters;
        p.blocks = missing;
        p.rt_clusters = rtc;
        p.ti_first = ti_first;
        p.total = step + missing + rtc;
        if (stable) {
            p.usable = p.first + p.blocks + p.rt_clusters;
            *ret = p;
            return (p.first + p.total) > (1ull << 55) / g->cluster_size ? -EFBIG : 0;
        }
    }
    return -EFBIG;
}

static int lengthen(struct co *co, struct q2_image *q, struct growth *p)
{
    uint64_t want = (p->first + p->total) << q->g.cluster_bits, len;
    int r = stor_length(co, q->im.store, &len);
    if (r < 0)
        return r;
    const struct stor_traits *t = &q->im.store->traits;
    p->zero = t->regular && t->zero_growth && p->first >= q->alloc->zero_from && len <= p->first << q->g.cluster_bits && q->opts.frontier_bytes != UINT64_MAX;
    if (len >= want)
        return 0;
    return t->regular ? frontier_extend(co, q->im.store, len, want) : -ENOSPC;
}

/* New blocks and the new table must read zero before they are filled. */
static int clear_metadata(struct co *co, struct q2_image *q, const struct growth *p)
{
    uint64_t cs = q->g.cluster_size, n = p->blocks + p->rt_clusters;
    if (!n)
        return 0;
    if (!meta_forget(q->meta, p->first * cs, n * cs))
        return -EUCLEAN;
    return p->zero ? 0 : stor_zero(co, q->im.store, p->first * cs, n * cs, 0);
}

static void enter_blocks(struct q2_image *q, uint64_t *rt, const struct growth *p, bool enter)
{
    uint64_t at = p->first << q->g.cluster_bits, t = p->ti_first;
    for (uint64_t i = 0; i < p->blocks; t++) {
        if (enter ? rt[t] != 0 : rt[t] != at)
            continue;
        q2_rt_set(q, rt, t, enter ? at : 0);
        at += q->g.cluster_size;
        i++;
    }
}

static uint8_t *rt_bytes(const uint64_t *rt, uint64_t from, uint64_t n)
{
    uint8_t *buf = malloc(n * 8);
    for (uint64_t i = 0; buf && i < n; i++)
        be64_put((be64 *)(buf + i * 8), rt[from + i]);
    return buf;
}

/* The table entries of the new blocks, in whole sectors. */
static int write_entries(struct co *co, struct q2_image *q, const struct growth *p)
{
    if (!p->blocks)
        return 0;
    uint64_t a = round_down(p->ti_first, 64), b = min_u64(round_up(((p->first + p->total - 1) >> q->g.block_bits) + 1, 64), q->rt_entries);
    uint8_t *buf = rt_bytes(q->rt, a, b - a);
    if (!buf)
        return -ENOMEM;
    stor_event(co, q->im.store, STOR_EV_REFBLOCK_ALLOC_HOOKUP);
    int r = meta_write_now(co, q->meta, buf, (b - a) * 8, q->h.rt_off + a * 8);
    free(buf);
    return r < 0 ? r : meta_barrier(co, q->meta, META_B_GROW_ROOT);
}

/* Q7: the new table is durable already; one sector of the header switches. */
static int switch_table(struct co *co, struct q2_image *q, const struct growth *p)
{
    uint64_t old_off = q->h.rt_off;
    uint32_t old_clusters = q->h.rt_clusters;
    stor_event(co, q->im.store, STOR_EV_REFBLOCK_ALLOC_SWITCH_TABLE);
    q->h.rt_off = (p->first + p->blocks) << q->g.cluster_bits;
    q->h.rt_clusters = (uint32_t)p->rt_clusters;
    int r = q2_header_sync(co, q, 48, 60, META_B_SWITCH_AFTER);
    if (r < 0) {
        q->h.rt_off = old_off;
        q->h.rt_clusters = old_clusters;
        return r;
    }
    q2_fixed_update(q);
    q2_alloc_drop_table(q, old_off >> q->g.cluster_bits, old_clusters);      /* a scrub may be reading it */
    return 0;
}

static int write_new_table(struct co *co, struct q2_image *q, const struct growth *p, const uint64_t *rt, uint64_t entries)
{
    uint8_t *buf = rt_bytes(rt, 0, entries);
    if (!buf)
        return -ENOMEM;
    stor_event(co, q->im.store, STOR_EV_REFBLOCK_ALLOC_WRITE_TABLE);
    int r = meta_write_now(co, q->meta, buf, entries * 8, (p->first + p->blocks) << q->g.cluster_bits);
    free(buf);
    return r;
}

/* Counts and roots, with a table that already names the new blocks in memory. */
static int make_durable(struct co *co, struct q2_image *q, struct growth *p)
{
    int r = q2_refs_add(co, q, p->first, p->total, 1);
    if (r < 0 || MUTANT(MUT_FRONTIER_UNSETTLED))
        return r;
    stor_event(co, q->im.store, p->rt_clusters ? STOR_EV_REFBLOCK_ALLOC_WRITE_BLOCKS : STOR_EV_REFBLOCK_ALLOC_WRITE);
    r = meta_counts_locked(co, q->meta);
    if (r == 0 && p->rt_clusters)
        r = write_new_table(co, q, p, q->rt, q->rt_entries);
    if (r == 0)
        r = meta_barrier(co, q->meta, p->rt_clusters ? META_B_SWITCH_BEFORE : META_B_GROW_COUNTS);
    if (r == 0) {
        p->named = true;
        r = p->rt_clusters ? switch_table(co, q, p) : write_entries(co, q, p);
    }
    if (r < 0 && !p->named) {            /* what stays counted is a leak */
        int u = q2_refs_add(co, q, p->first, p->total, -1);
        (void)u;
    }
    return r;
}

static int enlarge_rt_memory(struct q2_image *q, const struct growth *p, uint64_t **ret_old, uint64_t *ret_old_entries)
{
    *ret_old = NULL;
    if (!p->rt_clusters)
        return 0;
    uint64_t n = p->rt_clusters * q->g.cluster_size / 8;
    uint64_t *rt = calloc(n, 8);
    if (!rt)
        return -ENOMEM;
    memcpy(rt, q->rt, q->rt_entries * 8);
    *ret_old = q->rt;
    *ret_old_entries = q->rt_entries;
    q->rt = rt;
    q->rt_entries = n;
    return 0;
}

/* Says in the header where unused counted space may lie, so that the next opening can free it (D4, D9). Payload and
 * autoclear bit share the first sector: one write. In the same epoch as the counts: a crash between leaks as before. */
static int record(struct co *co, struct q2_image *q, uint64_t start, uint64_t end)
{
    struct q2_header *h = &q->h;
    if (!h->has_frontier || !h->frontier_ext_off || h->frontier_ext_off + 16 > 512 || q->g.version < 3)
        return 0;
    bool fresh = !(h->autoclear & Q2_AUTOCLEAR_FRONTIER);
    h->frontier_start = fresh ? start : min_u64(h->frontier_start, start);
    h->frontier_end = fresh ? end : max_u64(h->frontier_end, end);
    h->autoclear |= Q2_AUTOCLEAR_FRONTIER;
    return q2_header_record_frontier(co, q);
}

/* ---- settled or not (F1) ---- */

/* All growths up to now are durable. */
static void all_settled(struct q2_alloc *a)
{
    a->unsettled_count = 0;
    a->settled_to = a->end;
}

bool q2_frontier_settled(struct q2_image *q, uint64_t end)
{
    struct q2_alloc *a = q->alloc;
    unsigned n = 0;
    for (; n < a->unsettled_count && meta_pass_durable(q->meta, a->unsettled[n].pass); n++)
        a->settled_to = max_u64(a->settled_to, a->unsettled[n].end);
    a->unsettled_count -= n;
    memmove(a->unsettled, a->unsettled + n, a->unsettled_count * sizeof *a->unsettled);
    return end <= a->settled_to;
}

/* The space up to `end` is settled when the next pass has ended well. */
static void settles_later(struct q2_image *q, uint64_t end)
{
    struct q2_alloc *a = q->alloc;
    unsigned last = sizeof a->unsettled / sizeof *a->unsettled - 1;
    unsigned i = min_u64(a->unsettled_count, last);      /* full: the newest two become one, which waits for the later pass */
    a->unsettled[i].end = end;
    a->unsettled[i].pass = meta_next_pass(q->meta);
    a->unsettled_count = i + 1;
}

int q2_frontier_settle(struct co *co, struct q2_image *q)
{
    struct q2_alloc *a = q->alloc;
    co_lock(co, &a->grow_mx);
    int r = 0;
    if (!q2_frontier_settled(q, a->end)) {
        meta_struct_begin(co, q->meta);
        r = meta_counts_locked(co, q->meta);
        if (r == 0)
            r = meta_barrier(co, q->meta, META_B_GROW_COUNTS);
        if (r == 0)
            all_settled(a);
        meta_struct_end(q->meta);
    }
    co_unlock(&a->grow_mx);
    return r;
}

/* Plans over clusters that are free by their counts. A file that was cut short underneath may still have counted
 * clusters, and entries that name them, behind its end: they are left alone. */
static int plan_free(struct co *co, struct q2_image *q, uint64_t step, struct growth *ret)
{
    struct q2_alloc *a = q->alloc;
    for (;;) {
        uint64_t used;
        int r = plan(q, step, ret);
        if (r == 0)
            r = q2_refs_first_used(co, q, ret->first, ret->total, &used);
        if (r < 0 || used == ret->first + ret->total)
            return r;
        a->end = used + 1;
    }
}

/* The new blocks and the new table leave memory again. */
static void take_back(struct q2_image *q, const struct growth *p, uint64_t *old_rt, uint64_t old_entries)
{
    bool gone = meta_forget(q->meta, p->first << q->g.cluster_bits, p->blocks << q->g.cluster_bits);
    ASSERT(gone);                        /* blocks of counts are pinned only between two suspensions */
    enter_blocks(q, q->rt, p, false);
    if (old_rt) {
        free(q->rt);
        q->rt = old_rt;
        q->rt_entries = old_entries;
    }
}

/* Counts of space that old blocks describe. */
static int count_in_memory(struct co *co, struct q2_image *q, const struct growth *p)
{
    struct q2_alloc *a = q->alloc;
    int r = q2_refs_add(co, q, p->first, p->total, 1);
    if (r < 0)
        return r;
    a->end = p->first + p->total;
    if (MUTANT(MUT_FRONTIER_UNSETTLED))
        all_settled(a);
    else
        settles_later(q, a->end);
    return 0;
}

static int count_with_blocks(struct co *co, struct q2_image *q, struct growth *p)
{
    struct q2_alloc *a = q->alloc;
    uint64_t *old_rt = NULL, old_entries = 0;
    if (p->rt_clusters)
        stor_event(co, q->im.store, STOR_EV_REFTABLE_GROW);
    int r = enlarge_rt_memory(q, p, &old_rt, &old_entries);
    if (r < 0)
        return r;
    /* F5: a block that also counts clusters in front of the new space is nobody's to use before it is durable */
    bool shared = p->blocks && p->ti_first << q->g.block_bits < p->first;
    if (shared)
        co_lock(co, &a->mx);
    enter_blocks(q, q->rt, p, true);
    r = make_durable(co, q, p);
    if (r < 0)
        take_back(q, p, old_rt, old_entries);
    if (shared)
        co_unlock(&a->mx);
    if (r < 0) {
        if (p->named) {
            a->end = p->first + p->total;  /* F4 */
            q2_marks_add(&a->given, p->first, p->total);
        }
        return r;
    }
    free(old_rt);
    a->end = p->first + p->total;
    all_settled(a);                        /* its barrier covered what was counted before, too */
    return 0;
}

/* While counts are in memory only the length must be durable (Q6, Q12): the dirty bit says that nobody may rely on counts.
 * 1: they have reached the image meanwhile. */
static int grow_unclean(struct co *co, struct q2_image *q, uint64_t step)
{
    struct q2_alloc *a = q->alloc;
    struct growth p = { .first = a->end, .total = step, .usable = a->end };
    uint64_t end = p.first + p.total;
    if (end > (1ull << 55) / q->g.cluster_size || ((end >> q->g.block_bits) + 1) * 8 > Q2_RT_BYTES_MAX)
        return -EFBIG;
    int r = rset_reserve(&a->frontier, 2);
    if (r == 0)
        r = q2_unclean_room(q, end);
    if (r == 0)
        r = lengthen(co, q, &p);
    if (r == 0)
        r = record(co, q, p.first << q->g.cluster_bits, end << q->g.cluster_bits);
    if (r == 0)
        r = q2_counts_in_memory(q) ? q2_unclean_add(co, q, p.first, p.total, 1) : 1;
    if (r)
        return r;
    a->end = end;
    settles_later(q, end);
    r = rset_add(&a->frontier, p.usable, a->end, p.zero ? 1 : 0);
    INV(F1, r == 0);
    return 0;
}

static int grow_locked(struct co *co, struct q2_image *q, uint64_t step)
{
    struct q2_alloc *a = q->alloc;
    struct growth p;
    int r = q2_counts_in_memory(q) ? grow_unclean(co, q, step) : 1;
    if (r <= 0)
        return r;
    stor_event(co, q->im.store, STOR_EV_REFBLOCK_ALLOC);
    r = plan_free(co, q, step, &p);
    if (r == 0)
        r = q2_guard_may_take(co, q, p.first, p.blocks + p.rt_clusters);
    if (r == 0)
        r = rset_reserve(&a->frontier, 2);
    if (r == 0)
        r = lengthen(co, q, &p);
    if (r == 0)
        r = clear_metadata(co, q, &p);
    if (r == 0)
        r = record(co, q, p.first << q->g.cluster_bits, (p.first + p.total) << q->g.cluster_bits);
    if (r == 0)
        r = p.blocks || p.rt_clusters ? count_with_blocks(co, q, &p) : count_in_memory(co, q, &p);
    if (r < 0)
        return r;
    r = rset_add(&a->frontier, p.usable, a->end, p.zero ? 1 : 0);
    INV(F1, r == 0);
    return 0;
}

/* A volume that was full may have been made longer: the step grows again, by as much as it shrank each time. */
static void space_is_there(struct q2_alloc *a, uint64_t step)
{
    a->grow_error = 0;
    if (step >= a->step_max)
        a->step_max = step > UINT64_MAX / 4 ? UINT64_MAX : step * 4;
}

int q2_frontier_grow(struct co *co, struct q2_image *q, uint64_t want)
{
    struct q2_alloc *a = q->alloc;
    struct rset_range x;
    co_lock(co, &a->grow_mx);
    int r = 0;
    if (!(want ? rset_fit(&a->frontier, 0, want, &x) : false) && !a->closing) {
        uint64_t step = max_u64(step_clusters(q), want);
        for (;;) {
            meta_struct_begin(co, q->meta);
            r = grow_locked(co, q, step);
            meta_struct_end(q->meta);
            if (!frontier_no_space(r) || step <= max_u64(want, 1))
                break;
            step = max_u64(step / 4, max_u64(want, 1));      /* near the end of space the step shrinks (D4) */
            a->step_max = step;
        }
        if (r == 0)
            space_is_there(a, step);
    }
    co_unlock(&a->grow_mx);
    return r;
}

static void grow_co(struct co *co, void *arg)
{
    struct q2_image *q = arg;
    struct q2_alloc *a = q->alloc;
    a->grow_error = q2_frontier_grow(co, q, 0);
    a->growing_behind = false;
    co_group_leave(&a->drops);
}

struct reserved_call { const struct q2_image *q; uint64_t bytes; };

static int reserved_home(struct co *co, void *arg)
{
    (void)co;
    struct reserved_call *c = arg;
    c->bytes = c->q->alloc ? c->q->alloc->frontier.total << c->q->g.cluster_bits : 0;
    return 0;
}

uint64_t q2_reserved(struct co *co, struct fmt_image *im)
{
    struct reserved_call c = { q2_of(im), 0 };
    if (c.q->g.data_file)
        return 0;                        /* of the file that holds the tables alone */
    return rt_call(co, im->home, reserved_home, &c) == 0 ? c.bytes : 0;
}

void q2_frontier_watch(struct q2_image *q)
{
    struct q2_alloc *a = q->alloc;
    uint64_t step = step_clusters(q);
    if (a->growing_behind || a->halted || a->closing || a->grow_error || a->ready.total || !a->frontier.total || a->frontier.total > step / 2)
        return;
    co_group_enter(&a->drops);
    a->growing_behind = true;
    if (rt_spawn(q->im.home, grow_co, q) < 0) {
        a->growing_behind = false;
        co_group_leave(&a->drops);
    }
}

/* What could not be uncounted is still nobody's. */
static void put_back(struct q2_alloc *a, struct rset *to, struct rset *left)
{
    struct rset_range x;
    if (!to->count) {
        *to = *left;
        return;
    }
    for (uint64_t at = 0; rset_next(left, at, &x); at = x.end)
        if (rset_add(to, x.start, x.end, x.tag) < 0)
            a->lost += x.end - x.start;
    rset_fini(left);
}

/* Lowers the counts of everything in `from` and hands it to `ready`; what fails stays there. */
static int uncount(struct co *co, struct q2_image *q, struct rset *from)
{
    struct q2_alloc *a = q->alloc;
    struct rset_range x;
    int first = 0;
    struct rset set = *from;                 /* nobody else takes of it while counts are read */
    rset_init(from);
    for (uint64_t at = 0; rset_next(&set, at, &x); at = x.end) {
        x.start = max_u64(x.start, at);
        x.end = min_u64(x.end, q2_refs_slice_end(q, x.start));
        int r = rset_reserve(&set, 1);           /* what has been lowered leaves it, also from the middle of a range */
        if (r == 0)
            r = q2_refs_add(co, q, x.start, x.end - x.start, -1);
        if (r == 0) {
            if (rset_add(&a->ready, x.start, x.end, Q2_READY_PROVED) < 0)
                a->missed += x.end - x.start;
            r = rset_remove(&set, x.start, x.end);
        }
        first = r < 0 && first == 0 ? r : first;
    }
    put_back(a, from, &set);
    return first;
}

int q2_frontier_cut_at(struct co *co, struct q2_image *q, uint64_t end)
{
    struct q2_alloc *a = q->alloc;
    int r = rset_remove(&a->ready, end, a->end);
    if (r < 0)
        return r;
    a->end = end;
    a->scan_end = min_u64(a->scan_end, end);
    a->zero_from = min_u64(a->zero_from, end);
    all_settled(a);                        /* the pass above; space gained anew at the same place starts unsettled */
    q->file_end_at_open = min_u64(q->file_end_at_open, end << q->g.cluster_bits);
    return stor_truncate(co, q->im.store, end << q->g.cluster_bits);
}

int q2_frontier_cut(struct co *co, struct q2_image *q, uint64_t floor)
{
    struct q2_alloc *a = q->alloc;
    int r = uncount(co, q, &a->frontier);
    int r2 = uncount(co, q, &a->counted);
    int r3 = meta_flush(co, q->meta);
    if (r < 0 || r2 < 0 || r3 < 0)
        return r < 0 ? r : r2 < 0 ? r2 : r3;
    uint64_t end = a->end, free = floor;
    struct rset_range x;
    for (uint64_t at = floor; rset_next(&a->ready, at, &x); at = x.end) {
        if (x.start != at)
            free = max_u64(x.start, floor);  /* else it goes on, with another tag */
        if (x.end == a->end)
            end = free;
    }
    if (end == a->end || !q->im.store->traits.regular)
        return 0;
    return q2_frontier_cut_at(co, q, end);
}
