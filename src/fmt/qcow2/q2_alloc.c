/* SPDX-License-Identifier: MIT
 *
 * q2_alloc.c: which host clusters may I have?
 *
 * Purpose     Hands out counted clusters. Does not know what they are for, nor who points to them.
 * Owns        struct q2_alloc: the sets of clusters that nothing points to, and the scan for free ones.
 * Invariants  I1  A cluster is in exactly one state (q2_alloc_priv.h).
 *             I2  What take() hands out has refcount 1 in memory. `settled`: count and file length are durable
 *                 already; else the caller needs the data barrier before an entry (Q1).
 *             I3  A dropped cluster comes to `ready` only by q2_drop.c, after Q9 and D3.
 *             I4  The sets may miss free clusters, never hold used ones.
 *             I6  What L1 and refcount table name is not handed out, whatever its count says (q2_guard.h).
 *             I5  known_zero is told only of frontier clusters gained by growing a regular file in this run, past the length
 *                 found at open (D4), on a store where a hole is as good as zeros (traits.zero_growth). Elsewhere new
 *                 clusters are filled: a later write in place into what was left a hole could show somebody's old bytes
 *                 after a crash. Of a free cluster it is told after it was zeroed, on the same stores (q2_ahead.c).
 *             I8  `ready` tells what this opening knows to be free from what only a count on the disk says. Known is: what it lowered from
 *                 1 to 0, what a strict survey found without a name (q2_reclaim.c, q2_prove.c), and all of it once a scrub has found every count right.
 *             I7  What leaves the sets is in `given` in the same moment: a scrub that begins in between must not find a counted
 *                 cluster without an owner.
 * Order       Counts rise here, before any pointer (rank META_COUNTS, or settled by q2_frontier.c).
 * Concurrency Home loop. take suspends (counts to load, growth); mx keeps scan, take and release apart.
 * Failure     take fails whole: -ENOSPC after the whole scan and one round of settling frees, -EIO; nothing changed.
 * Tests       crash explorer (alloc churn, reuse), interop.
 */
#include <limits.h>
#include <stdlib.h>

#include "base/assert.h"
#include "fmt/frontier.h"
#include "fmt/qcow2/q2_alloc_priv.h"
#include "fmt/qcow2/q2_guard.h"
#include "fmt/qcow2/q2_unclean.h"

#define SCAN_SLICES_PER_TAKE 2u

int q2_alloc_new(struct co *co, struct q2_image *q)
{
    struct q2_alloc *a = calloc(1, sizeof *a);
    if (!a)
        return -ENOMEM;
    uint64_t len;
    int r = stor_length(co, q->im.store, &len);
    if (r < 0) {
        free(a);
        return r;
    }
    rset_init(&a->frontier);
    rset_init(&a->counted);
    rset_init(&a->ready);
    rset_init(&a->dropping);
    list_init(&a->batches);
    list_init(&a->kept);
    a->end = div_up(len, q->g.cluster_size);
    uint64_t used;
    if (!q->im.store->traits.regular && !q2_counts_in_memory(q) && q2_refs_end(co, q, &used) == 0)
        a->end = min_u64(a->end, used);  /* a device: the frontier grows behind what is used, as far as the device goes */
    a->zero_from = a->end;
    a->scan_end = q2_counts_in_memory(q) ? 0 : a->end;       /* later: q2_recount.c */
    a->settled_to = a->end;
    a->step_max = UINT64_MAX;
    q->alloc = a;
    return 0;
}

void q2_alloc_free(struct q2_image *q)
{
    struct q2_alloc *a = q->alloc;
    if (!a)
        return;
    rset_fini(&a->frontier);
    rset_fini(&a->counted);
    rset_fini(&a->ready);
    q2_marks_fini(&a->given);
    q2_prove_fini(a);
    q->leaked += a->lost + q2_drop_left(a);
    q2_drop_fini(a);
    free(a);
    q->alloc = NULL;
}

/* ---- scan: finds free clusters that earlier runs left behind ---- */

static int scan_slice(struct co *co, struct q2_image *q)
{
    struct q2_alloc *a = q->alloc;
    const struct q2_geom *g = &q->g;
    uint64_t per_slice = (uint64_t)q->slice_bytes * 8 / g->refcount_bits;
    uint64_t c = a->scan_next, stop = min_u64(round_down(c, per_slice) + per_slice, a->scan_end);
    uint64_t ti = c >> g->block_bits;
    if (ti >= q->rt_entries) {
        a->scan_next = a->scan_end;
        return 0;
    }
    a->scan_next = stop;
    if (!q->rt[ti]) {
        a->scan_next = min_u64((ti + 1) << g->block_bits, a->scan_end);
        return 0;
    }
    struct meta_block *b;
    uint64_t in_block = c & ((1ull << g->block_bits) - 1);
    int r = q2_block_get(co, q, &q->kind_ref, q->rt[ti] + in_block / per_slice * q->slice_bytes, &b);
    if (r < 0)
        return r;
    for (; c < stop && r == 0; c++) {
        if (a->reclaim && c >= a->reclaim_start && c < a->reclaim_end)
            continue;                    /* q2_reclaim.c C1: it offers them itself when it ends */
        if (q2_refcount_get(g, (const void *)b->words, c % per_slice) || q2_hits_metadata(q, c << g->cluster_bits))
            continue;
        if (q2_prove_named(a, c))
            continue;                    /* its count is wrong */
        if (!a->scan_forgets || meta_forget(q->meta, c << g->cluster_bits, g->cluster_size))
            r = rset_add(&a->ready, c, c + 1, a->proved || q2_prove_free(a, c) ? Q2_READY_PROVED : 0);
    }
    meta_put(q->meta, b);
    return r;
}

int q2_alloc_freed(struct q2_image *q, uint64_t c, uint64_t end)
{
    if (q->unclean && !MUTANT(MUT_UNCLEAN_USED_EARLY))
        c = max_u64(c, q->unclean->first);       /* q2_unclean.c U1; the scan finds them when it begins */
    q2_prove_gone(q->alloc, c, end);
    return c < end ? rset_add(&q->alloc->ready, c, end, Q2_READY_PROVED) : 0;
}

void q2_alloc_proved(struct co *co, struct q2_image *q)
{
    struct q2_alloc *a = q->alloc;
    struct rset_range x;
    co_lock(co, &a->mx);
    a->proved = true;
    for (uint64_t at = 0; rset_next(&a->ready, at, &x); at = x.end)
        if (!x.tag && rset_add(&a->ready, x.start, x.end, Q2_READY_PROVED) < 0)
            break;                       /* no memory: it stays as it was */
    co_unlock(&a->mx);
}

void q2_alloc_scan_again(struct q2_image *q, uint64_t end)
{
    q->alloc->scan_forgets = true;
    q->alloc->scan_next = 0;
    q->alloc->scan_end = end;
}

/* ---- take ---- */

static int take_from(struct rset *s, uint64_t hint, uint64_t want, struct rset_range *ret)
{
    struct rset_range x;
    if (!rset_fit(s, hint, want, &x) && !rset_fit(s, 0, want, &x) && !rset_next(s, hint, &x) && !rset_next(s, 0, &x))
        return -ENOENT;
    if (hint > x.start && hint < x.end && x.end - hint >= want)
        x.start = hint;
    x.end = min_u64(x.end, x.start + want);
    int r = rset_remove(s, x.start, x.end);
    if (r == 0)
        *ret = x;
    return r;
}

/* zeros: the caller has no data for all of them. */
static int take_ready(struct co *co, struct q2_image *q, uint64_t want, bool zeros, struct q2_run *ret)
{
    struct q2_alloc *a = q->alloc;
    struct rset_range x;
    int r = take_from(&a->ready, a->hint, want, &x);
    if (r < 0)
        return r;
    if (zeros)
        q2_ahead_zero(co, q, &x);
    uint64_t n = x.end - x.start;
    r = q2_refs_add(co, q, x.start, n, 1);
    if (r < 0)
        return r;                        /* the range stays out of `ready`: missed, not lost on disk (I4) */
    a->hint = x.end;
    bool zero = x.tag == Q2_READY_ZERO || (x.tag == Q2_READY_HOLE && zeros);     /* A6 of q2_ahead.c */
    *ret = (struct q2_run){ .cluster = x.start, .count = n, .known_zero = zero || MUTANT(MUT_REUSED_IS_ZERO), .settled = zero && MUTANT(MUT_AHEAD_SETTLED) };
    return 0;
}

static int take_frontier(struct q2_image *q, uint64_t want, struct q2_run *ret)
{
    struct q2_alloc *a = q->alloc;
    struct rset_range x;
    if (!rset_next(&a->frontier, 0, &x))
        return -ENOENT;
    x.end = min_u64(x.end, x.start + want);
    bool settled = q2_frontier_settled(q, x.end);
    int r = rset_remove(&a->frontier, x.start, x.end);
    if (r == 0)
        *ret = (struct q2_run){ .cluster = x.start, .count = x.end - x.start, .known_zero = x.tag == 1, .settled = settled };
    return r;
}

static int take_counted(struct q2_alloc *a, uint64_t want, struct q2_run *ret)
{
    struct rset_range x;
    int r = take_from(&a->counted, 0, want, &x);
    if (r == 0)
        *ret = (struct q2_run){ .cluster = x.start, .count = x.end - x.start };
    return r;
}

/* ---- compaction: space in front of a cluster ---- */

static int take_below(struct rset *s, uint64_t want, uint64_t end, struct rset_range *ret)
{
    struct rset_range x;
    bool fits = rset_fit(s, 0, want, &x) && x.start + want <= end;
    if (!fits && !(rset_next(s, 0, &x) && x.start < end))
        return -ENOENT;
    x.end = min_u64(min_u64(x.end, x.start + want), end);
    int r = rset_remove(s, x.start, x.end);
    if (r == 0)
        *ret = x;
    return r;
}

/* Under mx. */
static int take_low(struct co *co, struct q2_image *q, uint64_t want, uint64_t end, struct q2_run *ret)
{
    struct q2_alloc *a = q->alloc;
    struct rset_range x;
    int r = take_below(&a->counted, want, end, &x);
    if (r == -ENOENT) {
        r = take_below(&a->ready, want, end, &x);
        if (r == 0)
            r = q2_refs_add(co, q, x.start, x.end - x.start, 1);     /* on failure it stays out of `ready` (I4) */
    }
    if (r == 0)
        *ret = (struct q2_run){ .cluster = x.start, .count = x.end - x.start };
    return r;
}

/* What lies in metadata stays out of reach. When nobody can tell, it is to be had again. */
static int guarded(struct co *co, struct q2_image *q, const struct q2_run *run)
{
    int r = q2_guard_may_take(co, q, run->cluster, run->count);
    if (r < 0 && r != -EUCLEAN)
        q2_alloc_return(q, run);
    return r;
}

int q2_alloc_take_low(struct co *co, struct q2_image *q, uint64_t want, uint64_t end, struct q2_run *ret)
{
    struct q2_alloc *a = q->alloc;
    int r = q2_lazy_enter(co, q);
    if (r < 0)
        return r;
    co_lock(co, &a->mx);
    r = take_low(co, q, want, end, ret);
    if (r == 0)
        q2_marks_add(&a->given, ret->cluster, ret->count);   /* I7 */
    co_unlock(&a->mx);
    if (r == 0)
        r = guarded(co, q, ret);
    return r == -ENOENT ? -ENOSPC : r;
}

bool q2_alloc_low_has(const struct q2_image *q, uint64_t want, uint64_t end)
{
    struct rset_range x;
    uint64_t have = 0;
    for (uint64_t at = 0; have < want && rset_next(&q->alloc->ready, at, &x) && x.start < end; at = x.end)
        have += min_u64(x.end, end) - x.start;
    return have >= want;
}

void q2_alloc_prefer(struct q2_image *q, uint64_t end) { q->alloc->low_end = end; }

int q2_alloc_scan_all(struct co *co, struct q2_image *q)
{
    struct q2_alloc *a = q->alloc;
    int r = 0;
    while (r != -EUCLEAN && r != -ENOMEM && a->scan_next < a->scan_end) {
        co_lock(co, &a->mx);
        if (a->scan_next < a->scan_end)
            r = scan_slice(co, q);               /* one that cannot be read is passed over: its clusters are only missed */
        co_unlock(&a->mx);
        co_yield(co);
    }
    return r == -EUCLEAN || r == -ENOMEM ? r : 0;
}

/* From what there is, without growing. -ENOENT: nothing. */
static int take_present(struct co *co, struct q2_image *q, uint64_t want, bool zeros, unsigned slices, struct q2_run *ret)
{
    struct q2_alloc *a = q->alloc;
    co_lock(co, &a->mx);
    int r = 0;                           /* an unreadable slice is skipped: its clusters are only missed */
    for (unsigned i = 0; i < slices && r == 0 && a->scan_next < a->scan_end && !a->ready.total; i++)
        r = scan_slice(co, q);
    if (r != -EUCLEAN)
        r = a->low_end ? take_low(co, q, want, a->low_end, ret) : -ENOENT;
    if (r == -ENOENT || r == -EIO)
        r = take_counted(a, want, ret);
    if (r == -ENOENT)
        r = take_ready(co, q, want, zeros, ret);
    if (r == -ENOENT || r == -EIO)
        r = take_frontier(q, want, ret);
    if (r == 0)
        q2_marks_add(&a->given, ret->cluster, ret->count);   /* I7 */
    co_unlock(&a->mx);
    return r;
}

static int take(struct co *co, struct q2_image *q, uint64_t want, bool zeros, struct q2_run *ret)
{
    ASSERT_LOOP(q->im.home);
    struct q2_alloc *a = q->alloc;
    unsigned slices = SCAN_SLICES_PER_TAKE;
    int lazy = q2_unclean_await(co, q);
    if (lazy == 0)
        lazy = q2_lazy_enter(co, q);
    if (lazy < 0)
        return lazy;
    stor_event(co, q->im.store, STOR_EV_CLUSTER_ALLOC);
    for (bool settled = false;;) {
        int r = take_present(co, q, want, zeros, slices, ret);
        if (r != -ENOENT) {
            if (r == 0)
                r = guarded(co, q, ret);
            if (r == 0)
                q2_frontier_watch(q);
            return r;
        }
        r = q2_frontier_grow(co, q, 1);
        if (r == 0)
            continue;
        if (!frontier_no_space(r))
            return r;
        if (a->scan_next < a->scan_end) {
            slices = UINT_MAX;           /* before giving up: every count is looked at, */
        } else if (!settled) {
            settled = true;              /* and what was freed may come back (D3) */
            if (q2_drop_settle(co, q) < 0)
                return r;
        } else {
            return r;
        }
    }
}

int q2_alloc_take(struct co *co, struct q2_image *q, uint64_t want, struct q2_run *ret) { return take(co, q, want, false, ret); }

int q2_alloc_take_zeros(struct co *co, struct q2_image *q, uint64_t want, struct q2_run *ret) { return take(co, q, want, true, ret); }

int q2_alloc_exact(struct co *co, struct q2_image *q, uint64_t n, struct q2_run *ret)
{
    struct q2_alloc *a = q->alloc;
    if (n == 1)
        return q2_alloc_take(co, q, 1, ret);
    int lazy = q2_unclean_await(co, q);
    if (lazy == 0)
        lazy = q2_lazy_enter(co, q);
    if (lazy < 0)
        return lazy;
    stor_event(co, q->im.store, STOR_EV_CLUSTER_ALLOC);
    for (unsigned tries = 0; tries < 16; tries++) {
        struct rset_range x;
        if (rset_fit(&a->frontier, 0, n, &x) && q2_frontier_settled(q, x.start + n)) {
            int r = rset_remove(&a->frontier, x.start, x.start + n);
            if (r == 0) {
                *ret = (struct q2_run){ .cluster = x.start, .count = n, .known_zero = x.tag == 1, .settled = true };
                q2_marks_add(&a->given, x.start, n);         /* I7 */
                r = guarded(co, q, ret);
            }
            return r;
        }
        int r = q2_frontier_grow(co, q, n);
        if (r == 0)
            r = q2_frontier_settle(co, q);
        if (r < 0)
            return r;
    }
    return -ENOSPC;
}

void q2_alloc_return(struct q2_image *q, const struct q2_run *r)
{
    struct q2_alloc *a = q->alloc;
    if (rset_add(&a->counted, r->cluster, r->cluster + r->count, 0) < 0)
        q2_alloc_drop(q, r->cluster, r->count);  /* a reference that nobody has: freed in its time */
}

int q2_taken_keep(struct q2_image *q, struct q2_taken *t, const struct q2_run *run)
{
    if (t->count == t->cap) {
        size_t cap = t->cap ? 2 * t->cap : 32;
        struct q2_run *runs = realloc(t->runs, cap * sizeof *runs);
        if (!runs) {
            q2_alloc_return(q, run);
            return -ENOMEM;
        }
        t->runs = runs;
        t->cap = cap;
    }
    if (!meta_forget(q->meta, run->cluster << q->g.cluster_bits, run->count << q->g.cluster_bits))
        return -EUCLEAN;
    t->runs[t->count++] = *run;
    return 0;
}

void q2_taken_end(struct q2_image *q, struct q2_taken *t, bool give_back)
{
    for (size_t i = 0; i < t->count && give_back; i++)
        q2_alloc_return(q, &t->runs[i]);
    free(t->runs);
    *t = (struct q2_taken){ 0 };
}

#define HALT_ROUNDS 16u

int q2_alloc_halt_begin(struct co *co, struct q2_image *q)
{
    struct q2_alloc *a = q->alloc;
    a->halted = true;
    for (unsigned i = 0; i < HALT_ROUNDS; i++) {
        int r = q2_drop_settle_all(co, q);
        if (r < 0) {
            a->halted = false;
            return r;
        }
        co_group_wait(co, &a->drops);
        if (q2_drop_settled(q))
            return 0;
    }
    a->halted = false;
    return list_empty(&a->kept) ? -ENOMEM : -EIO;    /* what was dropped finds no memory to be released with, or its counts fail */
}

void q2_alloc_halt_end(struct q2_image *q) { q->alloc->halted = false; }

void q2_alloc_offer(struct q2_image *q, uint64_t from, uint64_t to)
{
    struct q2_alloc *a = q->alloc;
    q2_prove_gone(a, from, to);
    if (from < a->scan_end)
        a->scan_next = min_u64(a->scan_next, from);      /* found again when `ready` is empty: no memory is needed for them */
    from = max_u64(from, a->scan_end);
    if (from < to && rset_add(&a->ready, from, to, Q2_READY_PROVED) < 0)
        a->missed += to - from;
}

void q2_alloc_quiesce(struct co *co, struct q2_image *q)
{
    struct q2_alloc *a = q->alloc;
    if (!a)
        return;
    a->closing = true;
    do {
        co_group_wait(co, &a->drops);
        epoch_drain(co, q->im.epoch);
    } while (a->drops.n);
}

int q2_alloc_trim(struct co *co, struct q2_image *q)
{
    int r = q2_pack_close(co, q);
    if (r == 0)
        r = q2_drop_settle(co, q);
    if (r < 0)
        return r;
    struct q2_alloc *a = q->alloc;
    co_lock(co, &a->grow_mx);
    co_lock(co, &a->mx);
    r = q2_frontier_cut(co, q, 0);
    co_unlock(&a->mx);
    co_unlock(&a->grow_mx);
    return r;
}

void q2_alloc_resume(struct q2_image *q)
{
    if (q->alloc)
        q->alloc->closing = false;
}

int q2_alloc_close(struct co *co, struct q2_image *q)
{
    struct q2_alloc *a = q->alloc;
    if (!a || q->im.read_only)
        return 0;
    a->closing = true;
    co_lock(co, &a->grow_mx);            /* a growth behind ends first */
    co_unlock(&a->grow_mx);
    int r = q2_pack_close(co, q);
    r = r == -EUCLEAN ? r : 0;           /* else what it could not give back is dropped, */
    int r2 = q2_drop_settle_all(co, q);  /* and released here */
    uint64_t floor = q->file_end_at_open >> q->g.cluster_bits;
    int r3 = q2_frontier_cut(co, q, floor);
    if (r3 == -ENOMEM || r3 == -EIO)
        r3 = q2_frontier_cut(co, q, floor);      /* what could not be uncounted once (G.005) */
    return r < 0 ? r : r2 < 0 ? r2 : r3;
}
