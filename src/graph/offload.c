/* SPDX-License-Identifier: MIT
 *
 * offload.c: copies that the kernel makes (FEATURES 11.029).
 *
 * Purpose     Finds the host ranges of both sides and hands them to the store.
 * Owns        Nothing.
 * Invariants  I1  The source range stays mapped (its section is open) and the target range stays begun while the
 *                 kernel copies.
 *             I2  A new cluster is committed only when all of it has been copied.
 * Order       As for a write.
 * Concurrency Any loop. The section of the source is open while the target begins a write, so a piece that
 *             lies in the target itself is not copied here (fmt.h I4).
 * Failure     -ENOTSUP before anything was changed, or the error of the copy; a begun write is aborted.
 * Tests       ../copy/copy_test.c, on files
 */
#include "graph/filter.h"

/* Copies p->len bytes; short answers of the kernel are continued. */
static int copy_all(struct co *co, struct stor *dst, uint64_t dst_host, struct stor *src, uint64_t src_host, uint64_t len)
{
    while (len) {
        int64_t n = stor_copy(co, dst, dst_host, src, src_host, len);
        if (n <= 0)
            return n ? (int)n : -ENOTSUP;
        dst_host += (uint64_t)n;
        src_host += (uint64_t)n;
        len -= (uint64_t)n;
    }
    return 0;
}

static int64_t copy_piece(struct co *co, struct graph_node *dst, uint64_t dst_off, const struct piece *from)
{
    struct write_piece to;
    int r = piece_plan(co, dst, dst_off, dst_off + from->len, &to);
    if (r)
        return r;
    bool fill = !to.in_place && to.w.fill != FMT_FILL_NONE && (to.w.head | to.w.tail);
    if (!fill)
        r = copy_all(co, dst->im->data, to.host, from->layer->im->data, from->e.host, to.len);
    if (fill || r) {
        piece_drop(co, dst, &to);
        return fill ? -ENOTSUP : r;
    }
    r = piece_done(co, dst, &to);
    return r ? r : (int64_t)to.len;
}

/* Never waits for one gate while inside the other: whoever drains both would wait for us for ever. */
static void enter_both(struct co *co, struct graph_node *dst, struct graph_node *src, epoch_token *td, epoch_token *ts)
{
    for (;;) {
        *td = gate_enter(co, dst);
        *ts = epoch_enter(src->gate, co_loop(co));
        if (!atomic_load_explicit(&src->gated, memory_order_acquire))
            return;
        gate_leave(co, src, *ts);
        gate_leave(co, dst, *td);
        gate_wait_open(co, src);
    }
}

static int64_t copy_inside(struct co *co, struct graph_node *dst, uint64_t dst_off, struct graph_node *src, uint64_t src_off, uint64_t len)
{
    struct chain_memo memo = { .reading = true };
    struct piece from;
    dst = graph_attached(dst);                 /* they stay while the gates are entered */
    src = graph_attached(src);
    if (dst->flt)                              /* it may want to see the bytes */
        return -ENOTSUP;
    if (!range_inside(src_off, len, graph_length(src)))
        return -EIO;
    if (dst->writethrough || is_watched(dst) || (dst->guard_first && dst_off < SECTOR))
        return -ENOTSUP;
    int64_t n = change_begin(co, dst, dst_off, len);
    if (n)
        return n < 0 ? n : -EINVAL;
    n = chain_find(co, src, NULL, src_off, src_off + len, &memo, &from);
    if (n)
        return n;
    n = from.e.kind == FMT_DATA && from.layer != dst ? copy_piece(co, dst, dst_off, &from) : -ENOTSUP;
    piece_release(co, &from);
    change_end(dst, dst_off, len);
    return n;
}

/* In front of the gate of the target it may wait, as a write does. */
int64_t graph_copy_now(struct co *co, struct graph_node *dst, uint64_t dst_off, struct graph_node *src, uint64_t src_off, uint64_t len)
{
    epoch_token td = gate_enter(co, dst), ts = epoch_enter(src->gate, co_loop(co));
    bool closed = atomic_load_explicit(&src->gated, memory_order_acquire);
    int64_t n = closed ? -ENOTSUP : copy_inside(co, dst, dst_off, src, src_off, len);
    gate_leave(co, src, ts);
    gate_leave(co, dst, td);
    return n;
}

int64_t graph_copy(struct co *co, struct graph_node *dst, uint64_t dst_off, struct graph_node *src, uint64_t src_off, uint64_t len)
{
    epoch_token td, ts;
    enter_both(co, dst, src, &td, &ts);
    int64_t n = copy_inside(co, dst, dst_off, src, src_off, len);
    gate_leave(co, src, ts);
    gate_leave(co, dst, td);
    return n;
}
