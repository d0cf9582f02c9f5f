/* SPDX-License-Identifier: MIT
 *
 * chain.c: which layer answers for this offset?
 *
 * Purpose     Walks from the top of a chain down, one map() per layer, until a layer has the bytes, or one has an index of
 *             itself and all below it (index.c).
 * Owns        Nothing; the epoch section of a held piece belongs to the caller.
 * Invariants  I1  Each step narrows the range to what the layer above said nothing about, so the answer holds for
 *                 all of it.
 *             I2  Past the end of a layer the answer is zeros, never a deeper layer (graph.h I2).
 *             I3  No recursion and no allocation; the memo is a hint that may be empty.
 * Order       None.
 * Concurrency Any loop. A remembered ABSENT may be older than a write that runs at the same time: the request then
 *             sees the state before that write, as it may.
 * Failure     The error of map(); nothing is held then.
 * Tests       request_test.c
 */
#include "graph/filter.h"

/* `above` is the lowest layer that was asked; it may keep space for what it does not have. */
static int found_zero(struct piece *p, struct graph_node *layer, const struct graph_node *above, uint64_t end, unsigned depth)
{
    bool kept = above && p->layer == above && p->e.has_host, past_end = layer != above;
    p->layer = layer;
    p->e = (struct fmt_extent){ .kind = FMT_ZERO, .len = end - p->pos, .has_host = kept, .host = kept ? p->e.host : 0 };
    p->len = end - p->pos;
    p->depth = depth;
    p->past_end = past_end;
    return 0;
}

/* No layer has it. */
static int found_nothing(struct piece *p, struct graph_node *last, uint64_t end, unsigned depth, bool bounded)
{
    found_zero(p, last, last, end, depth);
    if (bounded)
        p->e.kind = FMT_ABSENT;
    else
        p->layer = NULL;
    return 0;
}

/* Does the filter l answer a read itself? As what is encoded: bytes only through read_encoded, which asks the filter. */
static bool ask_filter(struct co *co, struct graph_node *l, uint64_t end, unsigned depth, struct piece *p)
{
    uint64_t size = atomic_load_explicit(&l->im->size, memory_order_acquire);
    if (!l->flt->read || p->pos >= size)
        return false;
    p->layer = l;
    p->len = min_u64(end, size) - p->pos;
    p->e = (struct fmt_extent){ .kind = FMT_ENCODED, .len = p->len };
    p->depth = depth;
    p->held = true;
    p->tok = epoch_enter(l->im->epoch, co_loop(co));
    return true;
}

/* Asks layer l, which lies below `above`, at p->pos. 0: it answers, or it ends here; 1: it has nothing up to *end, which is
 * narrowed; -errno. */
static int ask_layer(struct co *co, struct graph_node *l, const struct graph_node *above, uint64_t *end, unsigned depth, struct piece *p)
{
    uint64_t size = atomic_load_explicit(&l->im->size, memory_order_acquire);
    if (p->pos >= size)
        return found_zero(p, l, above, *end, depth);
    *end = min_u64(*end, size);
    p->tok = epoch_enter(l->im->epoch, co_loop(co));
    p->layer = l;
    p->held = true;
    int r = l->im->ops->map(co, l->im, p->pos, *end - p->pos, &p->e);
    if (r) {
        piece_release(co, p);
        return r;
    }
    ASSERT(p->e.len > 0 && p->e.len <= *end - p->pos);
    *end = p->pos + p->e.len;
    p->len = p->e.len;
    p->depth = depth;
    if (p->e.kind == FMT_ABSENT || p->e.kind == FMT_ZERO)
        piece_release(co, p);
    return p->e.kind == FMT_ABSENT;
}

int chain_walk(struct co *co, struct graph_node *n, struct graph_node *bottom, uint64_t pos, uint64_t end, struct piece *p)
{
    *p = (struct piece){ .pos = pos };
    struct graph_node *above = NULL;
    unsigned depth = 0;
    for (struct graph_node *l = n; l && l != bottom; depth += !l->flt, above = l, l = l->backing) {
        int r = ask_layer(co, l, above, &end, depth, p);
        if (r <= 0)
            return r;
    }
    return found_nothing(p, above, end, depth ? depth - 1 : 0, true);
}

/* Is it worth, and right, to ask the index that begins at l? Large ranges are cheaper to walk than to remember. */
static struct chain_index *index_for(const struct graph_node *l, const struct graph_node *bottom, uint64_t pos, uint64_t end)
{
    struct chain_index *ix = atomic_load_explicit(&l->index, memory_order_acquire);
    bool whole = ix && (!bottom || bottom == index_below(ix));
    return whole && end - pos <= CHAIN_WIDE && pos < atomic_load_explicit(&l->im->size, memory_order_acquire) ? ix : NULL;
}

int chain_find(struct co *co, struct graph_node *n, struct graph_node *bottom, uint64_t pos, uint64_t end,
               struct chain_memo *memo, struct piece *p)
{
    *p = (struct piece){ .pos = pos };
    struct graph_node *above = NULL;
    unsigned depth = 0, step = 0;                /* filters are no depth, but steps */
    for (struct graph_node *l = n; l && l != bottom;) {
        if (step < CHAIN_MEMO && pos < memo->absent_to[step]) {
            end = min_u64(end, memo->absent_to[step++]);
            depth += !l->flt;
            above = l;
            l = l->backing;
            continue;
        }
        if (UNLIKELY(l->flt != NULL) && memo->reading && ask_filter(co, l, end, depth, p))
            return 0;
        struct chain_index *ix = index_for(l, bottom, pos, end);
        int r = ix ? index_find(co, ix, end, p) : ask_layer(co, l, above, &end, depth, p);
        if (r < 0)
            return r;
        if (ix) {
            p->depth += depth;
            end = pos + p->len;
            if (p->e.kind != FMT_ABSENT)
                return 0;
            above = index_last(ix);
            l = index_below(ix);
            depth += index_layers(ix);
            step += index_layers(ix);
            continue;
        }
        if (!r)
            return 0;
        if (step < CHAIN_MEMO)
            memo->absent_to[step] = end;
        step++;
        depth += !l->flt;
        above = l;
        l = l->backing;
    }
    return found_nothing(p, above, end, depth ? depth - 1 : 0, bottom != NULL);
}
