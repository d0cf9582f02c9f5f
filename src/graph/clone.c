/* SPDX-License-Identifier: MIT
 *
 * clone.c: a range of a disk becomes what another range of it is (FEATURES G.004).
 *
 * Purpose     Whole clusters that lie in the image itself are shared by its format; what reads zero becomes zero; the rest is copied.
 * Owns        One buffer of a request.
 * Invariants  C1  It is a write of the target to all who look: bitmaps, watchers, filters. Watchers and filters that want to see writes or
 *                 reads get them: then all of it is copied, by requests that they see.
 *             C2  What an image lacks at the source shows what lies below at that place: it is copied, never shared.
 *             C3  Where the ranges overlap, the target gets what the source held before.
 * Order       As for a write. What is shared: Q27, in the format.
 * Concurrency Any loop. Changes of the source meanwhile are in the target or not, sector by sector. Long ranges go in steps.
 * Failure     The first error; a part of the target may be the new content then.
 * Tests       ../fmt/qcow2/q2_clone_test.c, tests/cli/clone_test.py, tests/stress/test_clone_jobs.py (mutants CLONE_UNSEEN_*), tests/interop/test_clone.py, crash explorer
 */
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/mutant.h"
#include "graph/filter.h"
#include "graph/stats_priv.h"

#define COPY_BYTES (1u << 20)
#define COPY_ALIGN 4096u
/* Bytes that are shared inside one section of the gate; a multiple of every cluster. */
#define STEP_BYTES (1ull << 30)

struct cloning {
    struct graph_node *n;                /* through filters and watchers, */
    struct graph_node *image;            /* or, when nobody else has to see it, straight to the image, inside change_begin; else NULL */
    uint64_t src, dst;
    uint8_t *buf;                        /* of COPY_BYTES; made when it is needed */
};

static int read_some(struct co *co, const struct cloning *c, struct iov v, uint64_t off)
{
    return c->image ? chain_read(co, c->image, v, off) : node_read(co, c->n, v, off);
}

static int write_some(struct co *co, const struct cloning *c, struct iov v, uint64_t off)
{
    if (iov_is_zero(v))
        return c->image ? zero_range(co, c->image, off, v.len_bytes, GRAPH_UNMAP) : node_zero(co, c->n, off, v.len_bytes, GRAPH_UNMAP);
    return c->image ? chain_write(co, c->image, v, off, 0) : node_write(co, c->n, v, off, 0);
}

/* Bytes [at, at + len) of the ranges. C3: from the end where the target lies behind. */
static int copy_part(struct co *co, struct cloning *c, uint64_t at, uint64_t len)
{
    bool backwards = c->dst > c->src;
    int r = 0;
    if (!c->buf && !(c->buf = aligned_alloc(COPY_ALIGN, COPY_BYTES)))
        return -ENOMEM;
    for (uint64_t done = 0, part; r == 0 && done < len; done += part) {
        part = min_u64(len - done, COPY_BYTES);
        uint64_t pos = backwards ? at + len - done - part : at + done;
        struct iovec slot;
        struct iov v = iov_one(&slot, c->buf, part);
        r = read_some(co, c, v, c->src + pos);
        if (!r)
            r = write_some(co, c, v, c->dst + pos);
    }
    return r;
}

/* ---- sharing ---- */

/* Whole clusters from `at` on. How many bytes are done (> 0), or an error. */
static int64_t share_part(struct co *co, struct cloning *c, uint64_t at, uint64_t len)
{
    struct graph_node *m = c->image;
    uint64_t cs = m->im->cluster, pos = c->src + at;
    struct chain_memo memo = { .reading = true };
    struct piece p;
    int r = chain_find(co, m, NULL, pos, pos + len, &memo, &p);
    if (r)
        return r;
    piece_release(co, &p);
    uint64_t whole = round_down(p.len, cs);
    if (p.e.kind == FMT_ZERO && whole) {
        r = zero_range(co, m, c->dst + at, whole, GRAPH_UNMAP);
        return r ? r : (int64_t)whole;
    }
    bool own = p.layer == m && p.e.kind != FMT_ENCODED;
    int64_t n = own ? m->im->ops->clone(co, m->im, pos, c->dst + at, len) : 0;       /* C2 */
    if (n > 0 || (n < 0 && n != -ENOTSUP))
        return n;
    uint64_t part = n == -ENOTSUP ? len : own ? cs : min_u64(round_up(p.len, cs), len);
    r = copy_part(co, c, at, part);
    return r ? r : (int64_t)part;
}

static int share(struct co *co, struct cloning *c, uint64_t len)
{
    uint64_t cs = c->image->im->cluster;
    for (uint64_t at = 0; at < len; ) {
        uint64_t in = (c->src + at) % cs, part = min_u64(in ? cs - in : len - at, len - at);
        int64_t n = (int64_t)part;
        if (!in && part >= cs)
            n = share_part(co, c, at, round_down(part, cs));
        else
            n = copy_part(co, c, at, part) ?: n;
        if (n < 0)
            return (int)n;
        at += (uint64_t)n;
    }
    return 0;
}

/* ---- the request ---- */

/* The image below n, if it can share clusters of these ranges, and nobody has to see what is copied (C1). */
static struct graph_node *sharer(struct graph_node *n, uint64_t src, uint64_t dst, uint64_t len)
{
    for (; n && n->flt; n = n->backing)
        if ((n->flt->read || n->flt->write || n->flt->zero) && !MUTANT(MUT_CLONE_UNSEEN_FILTER))
            return NULL;
    uint64_t apart = src < dst ? dst - src : src - dst;
    if (!n || !n->im->ops->clone || (is_watched(n) && !MUTANT(MUT_CLONE_UNSEEN_WATCH)) || n->guard_first || apart < len || apart % n->im->cluster)
        return NULL;
    return n;
}

static int clone_inside(struct co *co, struct graph_node *n, uint64_t src, uint64_t dst, uint64_t len)
{
    if (!range_inside(src, len, graph_length(n)) || !range_inside(dst, len, graph_length(n)))
        return -EIO;
    if (src == dst)
        return 0;
    struct graph_node *m = sharer(n, src, dst, len);
    struct cloning c = { .n = n, .image = m, .src = src, .dst = dst };
    int r;
    if (!m) {
        r = copy_part(co, &c, 0, len);
    } else {
        r = change_begin(co, m, dst, len);
        if (!r) {
            r = share(co, &c, len);
            if (!MUTANT(MUT_CLONE_UNSEEN_BITMAP))
                change_end(m, dst, len);
            if (!r && m->writethrough)
                r = image_flush(co, m);
        }
    }
    free(c.buf);
    return r < 0 ? r : 0;
}

int graph_clone(struct co *co, struct graph_node *n, uint64_t src, uint64_t dst, uint64_t len)
{
    bool apart = src < dst ? dst - src >= len : src - dst >= len;
    int r = 0;
    for (uint64_t at = 0, part; r == 0 && at < len; at += part) {
        part = apart ? min_u64(len - at, STEP_BYTES - ((src + at) & (STEP_BYTES - 1))) : len;
        struct stats_done d = { GRAPH_STATS_WRITE, dst + at, part, stats_begin(co) };
        epoch_token t = gate_enter(co, n);     /* first: a resize may hold the gate */
        r = n->read_only ? -EPERM : clone_inside(co, n, src + at, dst + at, part);
        stats_end(co, n, &d, r);
        gate_leave(co, n, t);
    }
    return r;
}
