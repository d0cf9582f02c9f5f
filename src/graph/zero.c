/* SPDX-License-Identifier: MIT
 *
 * zero.c: writing zeros and discarding.
 *
 * Purpose     The aligned middle of a range goes to the format; the edges are written as zero bytes unless they read
 *             zero already; where the format cannot, zero bytes are written everywhere.
 * Owns        Nothing.
 * Invariants  I1  After success the whole range reads zeros (zero) or nothing outside it changed (discard).
 *             I2  The short last granule of an image counts as whole (FEATURES 1.054).
 *             I3  With NO_FALLBACK nothing is changed before it is known that no bytes must be written at the edges.
 * Order       None here.
 * Concurrency Any loop. Long ranges go in steps, so that other requests wait for one step only.
 * Failure     The first error; a part of the range may be zero then. A discard that the store cannot do is no error
 *             (FEATURES 11.023).
 * Tests       request_test.c
 */
#include "base/mutant.h"
#include "graph/filter.h"
#include "graph/stats_priv.h"

/* Bytes of one call of the format; a multiple of every cluster. */
#define STEP_BYTES (1ull << 30)

struct parts { uint64_t start, mid, mid_end, end; };      /* edges: [start, mid) and [mid_end, end) */

static struct parts parts_of(const struct graph_node *n, uint64_t off, uint64_t len, uint64_t granule)
{
    uint64_t size = atomic_load_explicit(&n->im->size, memory_order_acquire);
    uint64_t end = min_u64(off + len, size);
    struct parts p = { .start = off, .mid = round_up(off, granule), .end = end };
    p.mid_end = end == size ? end : round_down(end, granule);
    if (p.mid >= p.mid_end) {
        p.mid = p.mid_end = end;                          /* one edge, no middle */
        if (off > end)
            p.start = end;
    }
    return p;
}

/* Does the piece read zero whatever comes to lie below n? Else a rebase writes zeros too (J3). */
static bool is_zero(const struct graph_node *n, const struct piece *p)
{
    bool own = p->layer == n && !p->past_end;
    return p->e.kind == FMT_ZERO && (own || !atomic_load_explicit(&n->alone, memory_order_acquire) || MUTANT(MUT_REBASE_ZERO_BELOW));
}

/* Makes [off, end) zero by writing bytes where the formats do not know it to be zero. */
static int zero_by_writing(struct co *co, struct graph_node *n, uint64_t off, uint64_t end, unsigned flags)
{
    struct chain_memo memo = { { 0 } };
    while (off < end) {
        struct piece p;
        int r = chain_find(co, n, NULL, off, end, &memo, &p);
        if (r)
            return r;
        piece_release(co, &p);
        if (!is_zero(n, &p))
            r = flags & GRAPH_NO_FALLBACK ? -ENOTSUP : chain_write_zeros(co, n, off, p.len);
        if (r)
            return r;
        off += p.len;
    }
    return 0;
}

/* Length of the next call for [off, end). Parts of clusters go alone: a format may refuse them where it takes whole ones. */
static uint64_t zero_part(const struct graph_node *n, uint64_t off, uint64_t end)
{
    uint64_t cluster = n->im->cluster, part = min_u64(end - off, STEP_BYTES - (off & (STEP_BYTES - 1)));
    if (off % cluster)
        return min_u64(part, cluster - off % cluster);
    return part > cluster && off + part != atomic_load_explicit(&n->im->size, memory_order_acquire) ? round_down(part, cluster) : part;
}

static int zero_middle(struct co *co, struct graph_node *n, uint64_t off, uint64_t end, unsigned flags)
{
    unsigned how = (flags & GRAPH_UNMAP && n->discard ? FMT_ZERO_UNMAP : 0) | (flags & GRAPH_NO_FALLBACK ? 0 : FMT_ZERO_SLOW);
    while (off < end) {
        uint64_t part = zero_part(n, off, end);
        int r = n->im->ops->zero(co, n->im, off, part, how);
        if (r == -ENOTSUP && !(flags & GRAPH_NO_FALLBACK))
            r = zero_by_writing(co, n, off, off + part, 0);
        if (r)
            return r;
        off += part;
    }
    return 0;
}

int zero_range(struct co *co, struct graph_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    struct parts p = parts_of(n, off, len, n->im->granule);
    int r = zero_by_writing(co, n, p.start, p.mid, flags);
    if (!r)
        r = zero_by_writing(co, n, p.mid_end, p.end, flags);
    return r ? r : zero_middle(co, n, p.mid, p.mid_end, flags);
}

struct zero_req { struct graph_node *n; uint64_t off, len; unsigned flags; };

static int zero_call(struct co *co, void *arg)
{
    const struct zero_req *q = arg;
    return zero_range(co, q->n, q->off, q->len, q->flags);
}

static int zero_inside(struct co *co, struct graph_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    if (LIKELY(!n->guard_first || off >= SECTOR))
        return zero_range(co, n, off, len, flags);
    struct iovec slot;
    struct zero_req q = { n, off, len, flags };
    struct guarded gd = { n, iov_one(&slot, graph_zero_page, min_u64(len, SECTOR)), off, zero_call, &q };
    return guard_first_sector(co, &gd);
}

static int watched_zero(struct co *co, void *arg)
{
    const struct zero_req *q = arg;
    return zero_inside(co, q->n, q->off, q->len, q->flags);
}

static int zero_watched(struct co *co, struct zero_req *q)
{
    struct graph_change ch = { .node = q->n, .kind = GRAPH_CHANGE_ZERO, .off = q->off, .len = q->len, .flags = q->flags };
    return watch_run(co, &ch, watched_zero, q);
}

int node_zero(struct co *co, struct graph_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    for (; UNLIKELY(n->flt != NULL); n = n->backing)
        if (n->flt->zero)
            return n->flt->zero(co, n, off, len, flags);
    int r = change_begin(co, n, off, len);
    if (!r) {
        struct zero_req q = { n, off, len, flags };
        r = is_watched(n) ? zero_watched(co, &q) : zero_inside(co, n, off, len, flags);
        change_end(n, off, len);
    }
    if (!r && (flags & GRAPH_FUA || n->writethrough))
        r = image_flush(co, n);
    return r < 0 ? r : 0;
}

int graph_zero(struct co *co, struct graph_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    struct stats_done d = { GRAPH_STATS_WRITE, off, len, stats_begin(co), .blank = true };
    epoch_token t = gate_enter(co, n);         /* first: a resize may hold the gate */
    int r = n->read_only ? -EPERM : node_zero(co, n, off, len, flags);
    stats_end(co, n, &d, r);
    gate_leave(co, n, t);
    return r;
}

static int discard_inside(struct co *co, struct graph_node *n, uint64_t off, uint64_t len)
{
    /* Of a guarded first sector all or nothing may go: never a few bytes that complete a signature. */
    struct parts p = parts_of(n, off, len, n->guard_first ? SECTOR : n->im->granule);
    for (uint64_t at = p.mid; at < p.mid_end; ) {
        uint64_t part = min_u64(p.mid_end - at, STEP_BYTES - (at & (STEP_BYTES - 1)));
        int r = n->im->ops->discard(co, n->im, at, part);
        if (r)
            return r == -ENOTSUP ? 0 : r;
        at += part;
    }
    return 0;
}

static int watched_discard(struct co *co, void *arg)
{
    const struct zero_req *q = arg;
    return discard_inside(co, q->n, q->off, q->len);
}

static int discard_watched(struct co *co, struct zero_req *q)
{
    struct graph_change ch = { .node = q->n, .kind = GRAPH_CHANGE_DISCARD, .off = q->off, .len = q->len };
    return watch_run(co, &ch, watched_discard, q);
}

int node_discard(struct co *co, struct graph_node *n, uint64_t off, uint64_t len)
{
    for (; UNLIKELY(n->flt != NULL); n = n->backing)
        if (n->flt->discard)
            return n->flt->discard(co, n, off, len);
    int r = change_begin(co, n, off, n->discard ? len : 0);
    if (!r) {
        struct zero_req q = { n, off, len, 0 };
        r = is_watched(n) ? discard_watched(co, &q) : discard_inside(co, n, off, len);
        change_end(n, off, len);
    }
    return r < 0 ? r : 0;
}

int graph_discard(struct co *co, struct graph_node *n, uint64_t off, uint64_t len)
{
    struct stats_done d = { GRAPH_STATS_DISCARD, off, len, stats_begin(co), .blank = true };
    epoch_token t = gate_enter(co, n);
    int r = n->read_only ? -EPERM : node_discard(co, n, off, len);
    stats_end(co, n, &d, r);
    gate_leave(co, n, t);
    return r;
}
