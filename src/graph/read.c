/* SPDX-License-Identifier: MIT
 *
 * read.c: reads through a chain.
 *
 * Purpose     Splits a request at the borders of extents and layers and fetches each piece from its store.
 * Owns        The pieces in flight of one request.
 * Invariants  I1  A piece from a store is read inside the epoch section in which it was mapped (fmt.h I1).
 *             I2  A request that one extent answers costs no allocation and starts no coroutine.
 *             I3  Every section and every slot is given back before the request returns.
 * Order       None.
 * Concurrency Any loop. A request of several extents runs up to FAN_WIDTH of them at the same time, all on the
 *             loop of the request.
 * Failure     The first error of a piece; the buffers then hold anything. Without memory for coroutines pieces run one
 *             by one; without memory for the list of pieces, -ENOMEM.
 * Tests       request_test.c
 */
#include <stdlib.h>

#include "graph/stats_priv.h"
#include "graph/under.h"

/* ---- pieces in flight ---- */

unsigned fan_take(struct co *co, struct fan *f)
{
    while (!f->free_mask)
        co_wait(co, &f->q);
    unsigned slot = (unsigned)__builtin_ctz(f->free_mask);
    f->free_mask &= ~(1u << slot);
    return slot;
}

void fan_done(struct fan *f, unsigned slot, int error)
{
    if (error && !f->error)
        f->error = error;
    f->free_mask |= 1u << slot;
    co_wake_all(&f->q);
}

int fan_wait(struct co *co, struct fan *f)
{
    while (f->free_mask != (1u << FAN_WIDTH) - 1)
        co_wait(co, &f->q);
    return f->error;
}

/* ---- one piece ---- */

/* Somebody listens to formats: what is read from a layer below n concerns the files of those in between as well. */
static void tell_read(struct co *co, struct graph_node *n, const struct piece *p)
{
    if (p->e.kind != FMT_DATA && p->e.kind != FMT_ENCODED)
        return;
    for (struct graph_node *m = n; m && m != p->layer; m = m->backing)
        if (!m->flt)
            node_event(co, m, STOR_EV_READ_BACKING_AIO);
    if (p->e.kind == FMT_DATA)
        node_event(co, p->layer, STOR_EV_READ_AIO);
}

/* Fetches a piece of n into v (of its length) and releases it. */
static int piece_read(struct co *co, struct graph_node *n, struct piece *p, struct iov v)
{
    int r = 0;
    if (UNLIKELY(atomic_load_explicit(&n->g->listeners, memory_order_relaxed)))
        tell_read(co, n, p);
    switch (p->e.kind) {
    case FMT_DATA:
        r = stor_read(co, p->layer->im->data, v, p->e.host);
        break;
    case FMT_ENCODED:
        r = p->layer->im->ops->read_encoded(co, p->layer->im, &p->e, p->pos, v);
        break;
    case FMT_ZERO:
    case FMT_ABSENT:
        iov_set(v, 0);
        break;
    }
    piece_release(co, p);
    return r;
}

struct read_slot { struct piece p; struct iov v; struct reader *rd; unsigned index; };
struct reader { struct fan fan; struct graph_node *n; struct chain_memo memo; struct read_slot slot[FAN_WIDTH]; };

static void slot_run(struct co *co, void *arg)
{
    struct read_slot *s = arg;
    fan_done(&s->rd->fan, s->index, piece_read(co, s->rd->n, &s->p, s->v));
}

/* Hands a piece to a coroutine of its own, unless it is the last one or costs nothing to do here. */
static void slot_start(struct co *co, struct reader *rd, unsigned index, bool last)
{
    struct read_slot *s = &rd->slot[index];
    s->rd = rd;
    s->index = index;
    bool waits = s->p.e.kind == FMT_DATA || s->p.e.kind == FMT_ENCODED;
    if (last || !waits || rt_spawn(co_loop(co), slot_run, s))
        slot_run(co, s);
}

/* Reads v at off, of which the piece `first` is found already. */
static int read_pieces(struct co *co, struct graph_node *n, struct iov v, uint64_t off, struct piece *first)
{
    struct reader *rd = malloc(sizeof *rd);
    if (!rd) {
        piece_release(co, first);
        return -ENOMEM;
    }
    fan_init(&rd->fan);
    rd->n = n;
    rd->memo = (struct chain_memo){ .reading = true };
    uint64_t pos = off, end = off + v.len_bytes;
    bool have = true;
    while (pos < end && !rd->fan.error) {
        unsigned i = fan_take(co, &rd->fan);
        struct read_slot *s = &rd->slot[i];
        int r = 0;
        if (have)
            s->p = *first;
        else
            r = chain_find(co, n, NULL, pos, end, &rd->memo, &s->p);
        have = false;
        if (r) {
            fan_done(&rd->fan, i, r);
            break;
        }
        s->v = iov_slice(v, pos - off, s->p.len);
        pos += s->p.len;
        slot_start(co, rd, i, pos == end);
    }
    if (have)
        piece_release(co, first);
    int r = fan_wait(co, &rd->fan);
    free(rd);
    return r;
}

int chain_read(struct co *co, struct graph_node *n, struct iov v, uint64_t off)
{
    struct piece p;
    struct chain_memo memo = { .reading = true };
    if (!v.len_bytes)
        return 0;
    int r = chain_find(co, n, NULL, off, off + v.len_bytes, &memo, &p);
    if (r)
        return r;
    if (LIKELY(p.len == v.len_bytes))
        return piece_read(co, n, &p, v);
    return read_pieces(co, n, v, off, &p);
}

int graph_read(struct co *co, struct graph_node *n, struct iov v, uint64_t off)
{
    struct stats_done d = { GRAPH_STATS_READ, off, v.len_bytes, stats_begin(co) };
    epoch_token t = gate_enter(co, n);         /* first: a resize may hold the gate */
    int r = LIKELY(range_inside(off, v.len_bytes, graph_length(n))) ? node_read(co, n, v, off) : -EIO;
    stats_end(co, n, &d, r);
    gate_leave(co, n, t);
    return r;
}

/* ---- VM state ---- */

/* Piece by piece: it is read once, in large requests. */
int state_read(struct co *co, struct graph_node *n, struct iov v, uint64_t pos)
{
    uint64_t start = pos, end = pos + v.len_bytes;
    int r = 0;
    while (pos < end && r == 0) {
        struct piece p = { .pos = pos, .layer = n, .held = true, .tok = epoch_enter(n->im->epoch, co_loop(co)) };
        r = n->im->ops->map(co, n->im, pos, end - pos, &p.e);
        if (r) {
            piece_release(co, &p);
            break;
        }
        ASSERT(p.e.len > 0 && p.e.len <= end - pos);
        p.len = p.e.len;
        r = piece_read(co, n, &p, iov_slice(v, pos - start, p.len));
        pos += p.len;
    }
    return r;
}

/* By recursion into a node below a format: UNDER_LEVELS_MAX of them at most. */
int graph_read_state(struct co *co, struct graph_node *n, struct iov v, uint64_t off)
{
    epoch_token t = gate_enter(co, n);
    struct graph_node *own = graph_skip_filters(n);
    int r = -ENOTSUP;
    if (own && own->im->ops->state_at) {
        uint64_t at = own->im->ops->state_at(own->im);
        node_event(co, own, STOR_EV_VMSTATE_LOAD);
        r = at <= INT64_MAX && range_inside(off, v.len_bytes, INT64_MAX - at) ? state_read(co, own, v, at + off) : -EIO;
    } else if (own && under_is_store(own->im->store)) {
        r = graph_read_state(co, under_door(own->im->store), v, off);
    }
    gate_leave(co, n, t);
    return r;
}
