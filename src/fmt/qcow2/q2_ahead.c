/* SPDX-License-Identifier: MIT
 *
 * q2_ahead.c: free clusters are zeroed ahead, many in one call.
 *
 * Purpose     A first write of a part of a cluster that is used again must be surrounded by zeros. One call of the file system makes a
 *             long piece of free space read zero for little more than it takes for a single cluster; the next such writes then
 *             find zeros, as at the frontier, and write their data alone.
 * Owns        The tags Q2_READY_ZERO and Q2_READY_HOLE in `ready`; how long the next piece is.
 * Invariants  A1  A cluster with the tag reads zero: it was zeroed in this opening, when it was free, and nobody writes into free clusters.
 *                 What becomes free comes without the tag (q2_alloc_freed and the scan).
 *             A2  Only where zeroed space keeps its zeros in a crash during a later write into it: regular files with
 *                 traits.zero_growth, as at the frontier (I5 of q2_alloc.c). Elsewhere, and for pieces that are not worth a call, the
 *                 writer fills (graph/fill.c), which measures what that costs.
 *             A3  Nothing is zeroed that metadata lies in, whatever its count says: an image may be damaged (q2_guard.h). Nor what is free
 *                 only because the disk counts it 0: where a count is wrong, a write may hit the cluster that it was given, and
 *                 never those beside it. What this opening freed, or a scrub or q2_prove.c proved, has a tag that says so (I8 of q2_alloc.c).
 *             A4  The store zeroes by itself or not at all: zeros are never written here.
 *             A5  What is zeroed is never `settled`: an entry needs the barrier behind data, which also makes the zeros durable (Q2, Q23).
 *             A6  A free cluster that is a hole of the file reads zero as it is. Nothing is changed for that, so a count is enough; and it
 *                 is known to be free by no more than that, until q2_prove.c has looked: a table is zeroed there all the same.
 * Order       Q2: the zeros are with the store before the cluster is handed out.
 * Concurrency Home loop, under mx, so that nobody takes what is being zeroed. Suspends.
 * Failure     None: then the writer fills, and no further piece is tried in this opening.
 * Tests       q2_core_test.c, q2_disk_test.c (A1), q2_prove_test.c, crash explorer (c64k geometries, mutants AHEAD_*)
 */
#include "base/assert.h"
#include "fmt/qcow2/q2_alloc_priv.h"
#include "fmt/qcow2/q2_guard.h"

/* A piece begins small and grows as long as it is used up: a disk that is seldom written does not zero much that nobody needs. */
#define AHEAD_BYTES_FIRST (UINT64_C(2) << 20)
#define AHEAD_BYTES_MAX (UINT64_C(32) << 20)
/* For a call the file system waits until nobody writes: with large clusters that many must not come to few writes. */
#define AHEAD_CLUSTERS_MAX UINT64_C(128)
/* The question for holes waits for others' calls of that kind as well; the answer costs the same for any length. */
#define ASK_BYTES (UINT64_C(1) << 30)
/* Shorter pieces are not worth a call. */
#define AHEAD_BYTES_MIN (UINT64_C(128) << 10)

/* Where x and what follows it with the same tag end, at most `bytes` from its beginning on. */
static uint64_t run_end(const struct q2_image *q, const struct rset_range *x, uint64_t bytes)
{
    struct rset_range y;
    uint64_t most = max_u64(x->end, x->start + (bytes >> q->g.cluster_bits));
    if (MUTANT(MUT_AHEAD_IN_USE))
        return most;
    return rset_next(&q->alloc->ready, x->end, &y) && y.start == x->end && y.tag == x->tag ? min_u64(y.end, most) : x->end;
}

/* Where a piece that begins with x ends: proved free and not zeroed up to there (A3). */
static uint64_t piece_end(const struct q2_image *q, const struct rset_range *x)
{
    uint32_t bits = q->g.cluster_bits;
    uint64_t to = run_end(q, x, q->alloc->ahead_bytes);
    for (uint64_t c = x->start; c < to && !MUTANT(MUT_AHEAD_IN_USE); c++)
        if (!q2_guard_clear(q, c << bits))
            return c;
    return to;
}

static bool may_zero(const struct q2_image *q)
{
    const struct stor_traits *t = &q->im.store->traits;
    return t->regular && t->zero_growth && q->opts.frontier_bytes != UINT64_MAX && !q->alloc->ahead_fails && q2_guard_ready(q);      /* A2 */
}

/* Clusters [x->end, to) read zero, as x does. */
static void tag_zero(struct q2_alloc *a, struct rset_range *x, uint64_t to, uint32_t tag)
{
    x->tag = tag;
    if (to > x->end && rset_contains(&a->ready, x->end, to) && rset_add(&a->ready, x->end, to, tag) < 0)
        return;                          /* no memory: they are zeroed again */
}

/* A6. false: it holds bytes, or nobody knows. */
static bool is_hole(struct co *co, struct q2_image *q, struct rset_range *x)
{
    struct q2_alloc *a = q->alloc;
    uint32_t bits = q->g.cluster_bits;
    uint64_t from = x->start << bits, to = run_end(q, x, ASK_BYTES) << bits;
    struct stor_extent e;
    if (from >= a->data_from && from < a->data_to)
        return false;
    if (stor_extent(co, q->im.store, from, to - from, &e) < 0)
        e = (struct stor_extent){ STOR_DATA, from, to - from };
    bool hole = e.content == STOR_HOLE && (e.off + e.len) >> bits >= x->end;
    if (hole) {
        tag_zero(a, x, min_u64(e.off + e.len, to) >> bits, Q2_READY_HOLE);
    } else {
        a->data_from = from;
        a->data_to = e.content == STOR_HOLE ? x->end << bits : e.off + e.len;
    }
    return hole;
}

/* x is free by its count alone. */
static void counted_free(struct co *co, struct q2_image *q, struct rset_range *x)
{
    if (!is_hole(co, q, x) && (run_end(q, x, AHEAD_BYTES_MIN) - x->start) << q->g.cluster_bits >= AHEAD_BYTES_MIN)
        q2_prove_want(q);
}

void q2_ahead_zero(struct co *co, struct q2_image *q, struct rset_range *x)
{
    struct q2_alloc *a = q->alloc;
    uint32_t bits = q->g.cluster_bits;
    if (x->tag == Q2_READY_ZERO || x->tag == Q2_READY_HOLE || !may_zero(q))
        return;
    if (x->tag != Q2_READY_PROVED) {
        counted_free(co, q, x);
        return;
    }
    a->ahead_bytes = a->ahead_bytes ? min_u64(a->ahead_bytes * 4, max_u64(AHEAD_BYTES_MAX, AHEAD_CLUSTERS_MAX << bits)) : AHEAD_BYTES_FIRST;
    uint64_t to = piece_end(q, x);
    if (to < x->end || (to - x->start) << bits < AHEAD_BYTES_MIN)
        return;
    stor_event(co, q->im.store, STOR_EV_CLUSTER_ALLOC_SPACE);
    if (!MUTANT(MUT_AHEAD_UNZEROED) && stor_zero(co, q->im.store, x->start << bits, (to - x->start) << bits, STOR_NO_FALLBACK) < 0) {
        a->ahead_fails = true;
        return;
    }
    tag_zero(a, x, to, Q2_READY_ZERO);
}
