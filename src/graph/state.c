/* SPDX-License-Identifier: MIT
 *
 * state.c: the VM state behind a disk is written.
 *
 * Purpose     Writes what graph_read_state reads (FEATURES 1.058, 11.033).
 * Owns        Nothing.
 * Invariants  S1  What is around the bytes in their clusters is the state that was there, or zeros: never what the layers below hold
 *                 at that place of their disks.
 *             S2  The image makes room for all of it before the first byte is written.
 * Order       As any write to the image: in the format and in meta/.
 * Concurrency Home loop, drained: it is rare, and long ones are rarer.
 * Failure     The first error; what was written before it stays.
 * Tests       tests/interop/test_vm_state.py, tests/faults (vm-state)
 */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "graph/under.h"

#define STEP_BYTES (1u << 20)
#define BUF_ALIGN 4096u

/* The new clusters of w, whole. */
static int fill_around(struct co *co, struct graph_node *n, const struct fmt_write *w, struct iov v)
{
    uint64_t bytes = w->head + w->len + w->tail;
    AUTOFREE uint8_t *buf = aligned_alloc(BUF_ALIGN, round_up(bytes, BUF_ALIGN));
    if (!buf)
        return -ENOMEM;
    struct iovec slot;
    int r = 0;
    if (w->fill == FMT_FILL_ZERO) {
        memset(buf, 0, w->head);
        memset(buf + w->head + w->len, 0, w->tail);
    } else {
        r = state_read(co, n, iov_one(&slot, buf, w->head), w->off - w->head);
        if (!r)
            r = state_read(co, n, iov_one(&slot, buf + w->head + w->len, w->tail), w->off + w->len);
    }
    iov_to_buf(v, buf + w->head, w->len);
    return r ? r : stor_write(co, n->im->data, iov_one(&slot, buf, bytes), w->host - w->head, 0);
}

static int write_new(struct co *co, struct graph_node *n, struct fmt_write *w, struct iov v)
{
    bool alone = w->fill == FMT_FILL_NONE || !(w->head | w->tail);
    int r = alone ? stor_write(co, n->im->data, v, w->host, 0) : fill_around(co, n, w, v);
    if (r) {
        n->im->ops->write_abort(co, n->im, w);
        return r;
    }
    return n->im->ops->write_commit(co, n->im, w);
}

static int write_piece(struct co *co, struct graph_node *n, struct write_piece *p, struct iov v)
{
    node_event(co, n, STOR_EV_WRITE_AIO);
    if (!p->in_place)
        return write_new(co, n, &p->w, v);
    int r = stor_write(co, n->im->data, v, p->host, 0);
    epoch_leave(n->im->epoch, co_loop(co), p->tok);
    return r;
}

static int write_drained(struct co *co, struct graph_node *n, struct iov v, uint64_t off)
{
    uint64_t at = n->im->ops->state_at(n->im);
    if (at > INT64_MAX || !range_inside(off, v.len_bytes, INT64_MAX - at))
        return -EFBIG;
    uint64_t start = at + off, pos = start, end = start + v.len_bytes;
    node_event(co, n, STOR_EV_VMSTATE_SAVE);
    int r = v.len_bytes ? n->im->ops->state_room(co, n->im, end) : 0;        /* S2 */
    while (pos < end && r == 0) {
        struct write_piece p;
        r = piece_plan(co, n, pos, min_u64(end, pos + STEP_BYTES), &p);
        if (r)
            break;
        uint64_t len = p.len;
        r = write_piece(co, n, &p, iov_slice(v, pos - start, len));
        pos += len;
    }
    return r;
}

/* The first of n and what it lies over, filters and files, that keeps a state (FEATURES 11.033). Home. */
static struct graph_node *keeper_of(struct graph_node *n)
{
    for (n = graph_skip_filters(n); n && !n->im->ops->state_at;)
        n = under_is_store(n->im->store) ? graph_skip_filters(n->file) : NULL;
    return n && n->im->ops->state_room ? n : NULL;
}

struct state_write { struct graph_node *n; struct iov v; uint64_t off; };

static int write_home(struct co *co, void *arg)
{
    const struct state_write *s = arg;
    struct graph_node *n = keeper_of(s->n);
    if (!n)
        return -ENOTSUP;
    graph_ref(n);
    node_whole_begin(co, n);
    int r = n->read_only ? -EPERM : write_drained(co, n, s->v, s->off);
    if (!r && (s->n->writethrough || n->writethrough))
        r = image_flush(co, n);
    node_whole_end(n);
    int closed = node_unref(co, n);
    return r ? r : closed;
}

int graph_write_state(struct co *co, struct graph_node *n, struct iov v, uint64_t off)
{
    struct state_write s = { n, v, off };
    return n->read_only ? -EPERM : rt_call(co, n->g->home, write_home, &s);
}
