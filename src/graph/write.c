/* SPDX-License-Identifier: MIT
 *
 * write.c: writes to the top layer.
 *
 * Purpose     Overwrites in place what may be overwritten; for the rest lets the format begin, fills and writes the
 *             new clusters in one transfer, and lets the format commit.
 * Owns        The pieces in flight of one request.
 * Invariants  I1  An in-place piece is written inside the epoch section in which it was mapped.
 *             I2  write_begin is never called inside a section of this coroutine (fmt.h I4).
 *             I3  Every successful write_begin is followed by exactly one commit or abort.
 *             I4  A request that is one piece, in place, costs no allocation and starts no coroutine.
 * Order       All bytes of a new cluster are with the store before the commit. What is durable before what is decided
 *             in meta/.
 * Concurrency Any loop; pieces of one request run at the same time on its loop. Pieces are begun in rising order of
 *             offset, and a piece in flight waits for no other, so two requests cannot wait for each other.
 *             Writes to the first sector of a guarded node run one at a time on the home loop.
 * Failure     The first error; a piece that failed is aborted and its old mapping stands.
 * Tests       request_test.c
 */
#include <stdlib.h>

#include "base/mutant.h"
#include "graph/filter.h"
#include "graph/stats_priv.h"

static int write_new(struct co *co, struct graph_node *n, struct fmt_write *w, struct iov v)
{
    struct rider *riders = NULL;
    int r = fill_write(co, n, w, v, &riders);
    if (r)
        n->im->ops->write_abort(co, n->im, w);
    else
        r = n->im->ops->write_commit(co, n->im, w);
    ride_end(riders, r);                 /* not before: what is answered can be read, and is covered by a flush */
    return r;
}

/* ---- pieces ---- */

int piece_plan(struct co *co, struct graph_node *n, uint64_t pos, uint64_t end, struct write_piece *p)
{
    struct fmt_extent e;
    for (;;) {
        p->tok = epoch_enter(n->im->epoch, co_loop(co));
        int r = n->im->ops->map(co, n->im, pos, end - pos, &e);
        if (!r && e.kind == FMT_DATA && e.writable) {
            ASSERT(e.len > 0 && e.len <= end - pos);
            p->in_place = true;
            p->pos = pos;
            p->len = e.len;
            p->host = e.host;
            return 0;
        }
        epoch_leave(n->im->epoch, co_loop(co), p->tok);
        if (!r)
            r = n->im->ops->write_begin(co, n->im, pos, end - pos, &p->w);
        if (r)
            return r;
        if (p->w.len) {
            ASSERT(p->w.off == pos && p->w.len <= end - pos);
            p->in_place = false;
            p->pos = pos;
            p->len = p->w.len;
            p->host = p->w.host;
            return 0;
        }
    }
}

void piece_drop(struct co *co, struct graph_node *n, struct write_piece *p)
{
    if (p->in_place)
        epoch_leave(n->im->epoch, co_loop(co), p->tok);
    else
        n->im->ops->write_abort(co, n->im, &p->w);
}

int piece_done(struct co *co, struct graph_node *n, struct write_piece *p)
{
    if (!p->in_place)
        return n->im->ops->write_commit(co, n->im, &p->w);
    epoch_leave(n->im->epoch, co_loop(co), p->tok);
    return 0;
}

static int piece_write(struct co *co, struct graph_node *n, struct write_piece *p, struct iov v, unsigned flags)
{
    if (!p->in_place)
        return write_new(co, n, &p->w, v);
    node_event(co, n, STOR_EV_WRITE_AIO);
    int r = stor_write(co, n->im->data, v, p->host, flags);
    epoch_leave(n->im->epoch, co_loop(co), p->tok);
    return r;
}

struct write_slot { struct write_piece p; struct iov v; struct writer *wr; unsigned index; };
struct writer { struct fan fan; struct graph_node *n; unsigned flags; struct write_slot slot[FAN_WIDTH]; };

static void slot_run(struct co *co, void *arg)
{
    struct write_slot *s = arg;
    fan_done(&s->wr->fan, s->index, piece_write(co, s->wr->n, &s->p, s->v, s->wr->flags));
}

/* Writes v at off, of which the piece `first` is planned already. */
static int write_pieces(struct co *co, struct graph_node *n, struct iov v, uint64_t off, unsigned flags, struct write_piece *first)
{
    struct writer *wr = malloc(sizeof *wr);
    if (!wr) {
        piece_drop(co, n, first);
        return -ENOMEM;
    }
    fan_init(&wr->fan);
    wr->n = n;
    wr->flags = flags;
    uint64_t pos = off, end = off + v.len_bytes;
    while (pos < end && !wr->fan.error) {
        unsigned i = fan_take(co, &wr->fan);
        struct write_slot *s = &wr->slot[i];
        s->wr = wr;
        s->index = i;
        int r = 0;
        if (pos == off)
            s->p = *first;
        else
            r = piece_plan(co, n, pos, end, &s->p);
        if (r) {
            fan_done(&wr->fan, i, r);
            break;
        }
        s->v = iov_slice(v, pos - off, s->p.len);
        pos += s->p.len;
        if (pos == end || rt_spawn(co_loop(co), slot_run, s))
            slot_run(co, s);
    }
    int r = fan_wait(co, &wr->fan);
    free(wr);
    return r;
}

int chain_write(struct co *co, struct graph_node *n, struct iov v, uint64_t off, unsigned flags)
{
    /* The last sector of an image whose size is no multiple of 512 has no place for its end; raw has rounded already. */
    uint64_t size = atomic_load_explicit(&n->im->size, memory_order_acquire);
    if (off >= size || !v.len_bytes)
        return 0;
    if (UNLIKELY(v.len_bytes > size - off))
        v = iov_slice(v, 0, size - off);
    if (UNLIKELY(atomic_load_explicit(&n->rides, memory_order_relaxed) != NULL) && !flags && ride_along(co, n, &v, off))
        return 0;
    struct write_piece p;
    int r = piece_plan(co, n, off, off + v.len_bytes, &p);
    if (r)
        return r;
    if (LIKELY(p.len == v.len_bytes))
        return piece_write(co, n, &p, v, flags);
    return write_pieces(co, n, v, off, flags, &p);
}

#define ZERO_VECS 16
int chain_write_zeros(struct co *co, struct graph_node *n, uint64_t off, uint64_t len)
{
    struct iovec vec[ZERO_VECS];
    for (size_t i = 0; i < ZERO_VECS; i++)
        vec[i] = (struct iovec){ (void *)(uintptr_t)graph_zero_page, ZERO_PAGE_BYTES };
    struct iov all = iov_of(vec, ZERO_VECS);
    int r = 0;
    while (len && !r) {
        uint64_t part = min_u64(len, all.len_bytes);
        r = chain_write(co, n, iov_slice(all, 0, part), off, 0);
        off += part;
        len -= part;
    }
    return r;
}

/* ---- the first sector of a disk that was guessed to be raw ---- */

static int guarded_on_home(struct co *co, void *arg)
{
    struct guarded *gd = arg;
    uint8_t sector[SECTOR];
    struct iovec slot;
    co_lock(co, &gd->n->first_sector);
    int r = chain_read(co, gd->n, iov_one(&slot, sector, SECTOR), 0);
    if (!r) {
        uint64_t part = min_u64(gd->v.len_bytes, SECTOR - gd->off);
        iov_to_buf(gd->v, sector + gd->off, part);
        r = fmt_signature(sector, SECTOR) ? -EPERM : gd->what(co, gd->arg);
    }
    co_unlock(&gd->n->first_sector);
    return r;
}

int guard_first_sector(struct co *co, struct guarded *gd)
{
    return rt_call(co, gd->n->g->home, guarded_on_home, gd);
}

/* ---- the request ---- */

int change_begin(struct co *co, struct graph_node *n, uint64_t off, uint64_t len)
{
    if (UNLIKELY(n->read_only))
        return -EPERM;
    if (UNLIKELY(!range_inside(off, len, graph_length(n))))
        return -EIO;
    if (UNLIKELY(!len))
        return 1;
    const struct fmt_ahead *a = atomic_load_explicit(&n->im->ahead, memory_order_acquire);
    if (LIKELY(!a) || fmt_ahead_entered(a, off, len))
        return 0;
    return n->im->ops->bitmap_enter(co, n->im, off, len);
}

struct write_req { struct graph_node *n; struct iov v; uint64_t off; unsigned flags; };

static int write_call(struct co *co, void *arg)
{
    const struct write_req *q = arg;
    return chain_write(co, q->n, q->v, q->off, q->flags);
}

/* fua: STOR_FUA, for raw images. */
static int write_inside(struct co *co, struct graph_node *n, struct iov v, uint64_t off, unsigned flags, bool fua)
{
    unsigned how = fua && n->is_raw ? STOR_FUA : 0;
    if (UNLIKELY(flags & GRAPH_COMPRESS))
        return chain_write_compressed(co, n, v, off);
    if (LIKELY(!n->guard_first || off >= SECTOR))
        return chain_write(co, n, v, off, how);
    struct write_req q = { n, v, off, how };
    struct guarded gd = { n, v, off, write_call, &q };
    return guard_first_sector(co, &gd);
}

struct watched_write { struct graph_change ch; struct iov v; bool fua; };

static int watched_write(struct co *co, void *arg)
{
    const struct watched_write *q = arg;
    return write_inside(co, q->ch.node, q->v, q->ch.off, q->ch.flags, q->fua);
}

static int write_watched(struct co *co, struct graph_node *n, struct iov v, uint64_t off, unsigned flags, bool fua)
{
    struct watched_write q = { { .node = n, .kind = GRAPH_CHANGE_WRITE, .off = off, .len = v.len_bytes, .v = &v, .flags = flags }, v, fua };
    return watch_run(co, &q.ch, watched_write, &q);
}

int node_write(struct co *co, struct graph_node *n, struct iov v, uint64_t off, unsigned flags)
{
    for (; UNLIKELY(n->flt != NULL); n = n->backing)
        if (n->flt->write)
            return n->flt->write(co, n, v, off, flags);
    bool fua = (flags & GRAPH_FUA) || n->writethrough;
    if (UNLIKELY(n->detect != GRAPH_DETECT_OFF) && !(flags & GRAPH_COMPRESS) && iov_is_zero(v))
        return node_zero(co, n, off, v.len_bytes, (flags & GRAPH_FUA) | (n->detect == GRAPH_DETECT_UNMAP ? GRAPH_UNMAP : 0));
    int r = change_begin(co, n, off, v.len_bytes);
    if (LIKELY(!r)) {
        r = is_watched(n) ? write_watched(co, n, v, off, flags, fua) : write_inside(co, n, v, off, flags, fua);
        change_end(n, off, v.len_bytes);
    }
    if (UNLIKELY(!r && fua && !n->is_raw))
        r = image_flush(co, n);
    return r < 0 ? r : 0;
}

int graph_write(struct co *co, struct graph_node *n, struct iov v, uint64_t off, unsigned flags)
{
    struct stats_done d = { GRAPH_STATS_WRITE, off, v.len_bytes, stats_begin(co) };
    epoch_token t = gate_enter(co, n);         /* first: a resize may hold the gate */
    int r = LIKELY(!n->read_only) ? node_write(co, n, v, off, flags) : -EPERM;
    stats_end(co, n, &d, r);
    gate_leave(co, n, t);
    return r;
}

int node_flush(struct co *co, struct graph_node *n)
{
    for (; UNLIKELY(n->flt != NULL); n = n->backing)
        if (n->flt->flush)
            return n->flt->flush(co, n);
        else if (MUTANT(MUT_FILTER_FLUSH_STOPS))
            return 0;
    return n->read_only ? 0 : image_flush(co, n);
}

int graph_flush(struct co *co, struct graph_node *n)
{
    struct stats_done d = { GRAPH_STATS_FLUSH, 0, 0, stats_begin(co) };
    epoch_token t = gate_enter(co, n);
    int r = n->read_only ? 0 : node_flush(co, n);
    stats_end(co, n, &d, r);
    gate_leave(co, n, t);
    return r;
}
