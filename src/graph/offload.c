/* SPDX-License-Identifier: MIT
 *
 * offload.c: copies that the kernel makes (FEATURES 11.029).
 *
 * Purpose     Finds the host ranges of both sides and hands them to the store.
 * Owns        Nothing.
 * Invariants  I1  The target range stays begun while the kernel copies. So does the source range stay where it is: its section is open
 *                 (graph_copy), or it is a part of a raw image, whose place never changes (graph_copy_now).
 *             I2  A new cluster is committed only when all of it has been copied.
 *             I3  graph_copy_now is in no section of the source while it waits for anything: a drain of the source does not wait for the kernel. The
 *                 store is lent meanwhile (stor_lend), so the node may be opened in another way.
 * Order       As for a write.
 * Concurrency Any loop. In graph_copy the section of the source is open while the target begins a write, so a piece that
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

/* Host bytes of the source. */
struct lump { struct stor *store; uint64_t host, len; };

static int64_t copy_lump(struct co *co, struct graph_node *dst, uint64_t dst_off, const struct lump *from)
{
    struct write_piece to;
    int r = piece_plan(co, dst, dst_off, dst_off + from->len, &to);
    if (r)
        return r;
    bool fill = !to.in_place && to.w.fill != FMT_FILL_NONE && (to.w.head | to.w.tail);
    if (!fill)
        r = copy_all(co, dst->im->data, to.host, from->store, from->host, to.len);
    if (fill || r) {
        piece_drop(co, dst, &to);
        return fill ? -ENOTSUP : r;
    }
    r = piece_done(co, dst, &to);
    return r ? r : (int64_t)to.len;
}

/* Does somebody, or dst itself (detect-zeroes), want to see the bytes that dst, at whose gate we are, is to get? */
static bool needs_bytes(const struct graph_node *dst, uint64_t dst_off)
{
    return dst->flt || dst->writethrough || dst->detect != GRAPH_DETECT_OFF || is_watched(dst) || (dst->guard_first && dst_off < SECTOR);
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
    if (!range_inside(src_off, len, graph_length(src)))
        return -EIO;
    if (needs_bytes(dst, dst_off))
        return -ENOTSUP;
    int64_t n = change_begin(co, dst, dst_off, len);
    if (n)
        return n < 0 ? n : -EINVAL;
    n = chain_find(co, src, NULL, src_off, src_off + len, &memo, &from);
    if (n)
        return n;
    const struct lump lump = { from.layer ? from.layer->im->data : NULL, from.e.host, from.len };
    n = from.e.kind == FMT_DATA && from.layer != dst ? copy_lump(co, dst, dst_off, &lump) : -ENOTSUP;
    piece_release(co, &from);
    change_end(dst, dst_off, len);
    return n;
}

/* What of [off, off + len) is in one place for good, from off on; its store is lent to us. Does not wait for the gate. */
static int find_fixed(struct co *co, struct graph_node *src, uint64_t off, uint64_t len, struct lump *ret)
{
    struct chain_memo memo = { .reading = true };
    struct piece from = { .held = false };
    epoch_token t = epoch_enter(src->gate, co_loop(co));
    int r = atomic_load_explicit(&src->gated, memory_order_acquire) ? -ENOTSUP : 0;
    struct graph_node *n = graph_attached(src);
    if (!r && !range_inside(off, len, graph_length(n)))
        r = -EIO;
    if (!r)
        r = chain_find(co, n, NULL, off, off + len, &memo, &from);
    if (!r && (from.e.kind != FMT_DATA || !from.layer->is_raw || !stor_lend(from.layer->im->data)))
        r = -ENOTSUP;
    if (!r)
        *ret = (struct lump){ from.layer->im->data, from.e.host, from.len };
    piece_release(co, &from);
    gate_leave(co, src, t);
    return r;
}

static int64_t put_lump(struct co *co, struct graph_node *dst, uint64_t dst_off, const struct lump *from)
{
    epoch_token t = gate_enter(co, dst);
    struct graph_node *n = graph_attached(dst);
    int64_t r = needs_bytes(n, dst_off) || n->im->data == from->store ? -ENOTSUP : change_begin(co, n, dst_off, from->len);
    if (!r) {
        r = copy_lump(co, n, dst_off, from);
        change_end(n, dst_off, from->len);
    }
    gate_leave(co, dst, t);
    return r;
}

/* In front of the gate of the target it may wait, as a write does. */
int64_t graph_copy_now(struct co *co, struct graph_node *dst, uint64_t dst_off, struct graph_node *src, uint64_t src_off, uint64_t len)
{
    struct lump from = { 0 };
    int r = find_fixed(co, src, src_off, len, &from);
    if (r)
        return r;
    int64_t n = put_lump(co, dst, dst_off, &from);
    stor_give_back(co, from.store);
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
