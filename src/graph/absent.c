/* SPDX-License-Identifier: MIT
 *
 * absent.c: filling in what a layer does not have, and the other way round, beside the requests of others.
 *
 * Purpose     For jobs that move content between layers and change nothing that a guest sees.
 * Owns        Nothing.
 * Invariants  A1  A range is written only if the layer has nothing there after the format has let the write begin: from then on to the
 *                 commit nobody else changes its entries (fmt.h I2). A guest's write that came first is never overwritten.
 *             A2  Content does not change, so bitmaps and watchers are not told.
 * Order       None here: as for any write. What is filled in is durable before it is counted on (J3, src/job/stream.c).
 * Concurrency Any loop, beside requests of others.
 * Failure     As graph_write; what was filled stays filled.
 * Tests       tests/cli/live_commit_test.py, tests/kill/test_kill_jobs.py
 */
#include "base/mutant.h"
#include "graph/graph_priv.h"
#include "graph/live.h"

/* Bytes from pos on, at most to end, that n has (*ret_absent false), or has not. */
static int look(struct co *co, struct graph_node *n, uint64_t pos, uint64_t end, uint64_t *ret_len, bool *ret_absent)
{
    struct fmt_extent e;
    epoch_token t = epoch_enter(n->im->epoch, co_loop(co));
    int r = n->im->ops->map(co, n->im, pos, end - pos, &e);
    epoch_leave(n->im->epoch, co_loop(co), t);
    if (r)
        return r;
    *ret_len = e.len;
    *ret_absent = e.kind == FMT_ABSENT;
    return 0;
}

/* The write may begin: is there still nothing? *ret_len: for how much of it that holds. 1: not for all of it, and nothing was done. */
static int fill_begun(struct co *co, struct graph_node *n, struct fmt_write *w, struct iov v, uint64_t *ret_len)
{
    bool absent = true;
    int r = look(co, n, w->off, w->off + w->len, ret_len, &absent);
    if (!r && (absent || MUTANT(MUT_ABSENT_BLIND)) && *ret_len == w->len)
        r = fill_write(co, n, w, v, NULL);
    else if (!r)
        r = 1;                                   /* no error: storage may say any of them */
    if (r) {
        n->im->ops->write_abort(co, n->im, w);
        return r;
    }
    return n->im->ops->write_commit(co, n->im, w);
}

static int fill_in(struct co *co, struct graph_node *n, struct iov v, uint64_t off)
{
    uint64_t pos = off, end = off + v.len_bytes, len;
    while (pos < end) {
        bool absent;
        int r = look(co, n, pos, end, &len, &absent);
        if (!r && !absent) {
            pos += len;
            continue;
        }
        struct fmt_write w;
        if (!r)
            r = n->im->ops->write_begin(co, n->im, pos, len, &w);
        if (!r && w.len)
            r = fill_begun(co, n, &w, iov_slice(v, pos - off, w.len), &len);
        if (r > 0)
            continue;                            /* somebody was faster: look again */
        if (r)
            return r;
        pos += w.len;
    }
    return 0;
}

static int may_change(const struct graph_node *n, uint64_t off, uint64_t len)
{
    if (n->read_only)
        return -EPERM;
    return range_inside(off, len, graph_length(n)) ? 0 : -EIO;
}

int graph_write_absent(struct co *co, struct graph_node *n, struct iov v, uint64_t off)
{
    epoch_token t = gate_enter(co, n);
    int r = may_change(n, off, v.len_bytes);
    if (!r && !n->is_raw)
        r = fill_in(co, n, v, off);
    gate_leave(co, n, t);
    return r;
}

int graph_zero_absent(struct co *co, struct graph_node *n, uint64_t off, uint64_t len)
{
    uint64_t granule = n->im->granule, end = off + len;
    epoch_token t = gate_enter(co, n);
    int r = may_change(n, off, len);
    bool whole = off % granule == 0 && (end % granule == 0 || end >= atomic_load_explicit(&n->im->size, memory_order_acquire));
    if (!r && !n->is_raw)
        r = whole ? n->im->ops->zero(co, n->im, off, min_u64(end, n->im->size) - off, FMT_ZERO_ABSENT) : -ENOTSUP;
    gate_leave(co, n, t);
    return r;
}

/* A table that is damaged may have kept something. */
static int all_absent(struct co *co, struct graph_node *n, uint64_t off, uint64_t end)
{
    bool absent = true;
    int r = 0;
    for (uint64_t len; off < end && !r && absent; off += len)
        r = look(co, n, off, end, &len, &absent);
    return r ? r : absent ? 0 : -EIO;
}

static int forget(struct co *co, struct graph_node *n, uint64_t off, uint64_t len, bool later)
{
    uint64_t cluster = n->im->cluster, size = atomic_load_explicit(&n->im->size, memory_order_acquire), end = min_u64(off + len, size);
    off = round_up(off, cluster);
    end = end == size ? end : round_down(end, cluster);
    if (!n->im->ops->forget)
        return -ENOTSUP;
    if (off >= end)
        return 0;
    epoch_token t = gate_enter(co, n);
    int r = may_change(n, off, end - off);
    if (!r)
        r = n->im->ops->forget(co, n->im, off, end - off, later);
    if (!r)
        r = all_absent(co, n, off, end);
    gate_leave(co, n, t);
    return r;
}

int graph_forget(struct co *co, struct graph_node *n, uint64_t off, uint64_t len) { return forget(co, n, off, len, false); }
int graph_forget_later(struct co *co, struct graph_node *n, uint64_t off, uint64_t len) { return forget(co, n, off, len, true); }
