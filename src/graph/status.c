/* SPDX-License-Identifier: MIT
 *
 * status.c: what is where, in the terms of `map` (FEATURES 5.053, 11.030).
 *
 * Purpose     Turns the pieces of chain_find into status extents and merges neighbours that say the same.
 * Owns        Nothing; remembers per node whether its file has many holes that the format does not know of.
 * Invariants  I1  The file is asked only inside the section in which the range was mapped.
 *             I2  "zero" is said only of what reads zeros; "data" only of what has bytes stored.
 *             I3  Ranges behind the end of a shorter layer belong to the layer above it, as the peer counts.
 *             I4  Work that is asked for with a limit is bounded by it, however many pieces say the same: who asks for others can stop between.
 * Order       None.
 * Concurrency Any loop. The answer may be out of date when it arrives, like any status of a live disk.
 * Failure     An error of the first extent; when the file cannot be asked, its bytes count as data.
 * Tests       request_test.c, open_test.c; against `qemu-img map`: tests/cli/map_test.py
 */
#include "graph/filter.h"

/* A file that has clearly less space on disk than its clusters need was preallocated without space, or punched: then
 * its holes are worth asking for; what we have reserved for clusters to come is no such hole. Otherwise a cluster of data counts as data. The limit (a ninth of what is there, two
 * clusters at least) is the peer's, as seen from outside. */
static bool worth_asking(struct co *co, struct graph_node *n)
{
    int known = atomic_load_explicit(&n->recurse, memory_order_relaxed);
    if (known != RECURSE_UNKNOWN)
        return known == RECURSE_YES;
    uint64_t len, allocated, cluster = n->im->cluster;
    bool sparse = false;
    if (!stor_length(co, n->im->data, &len) && !stor_allocated(co, n->im->data, &allocated)) {
        uint64_t there = allocated / cluster, ahead = n->im->ops->reserved ? n->im->ops->reserved(co, n->im) : 0;
        sparse = div_up(len - min_u64(ahead, len), cluster) >= there + max_u64(2, there / 9);
    }
    atomic_store_explicit(&n->recurse, sparse ? RECURSE_YES : RECURSE_NO, memory_order_relaxed);
    return sparse;
}

#define AHEAD 16

/* One walk over a range: the memo of the chain, and extents of the file that were asked for in one go. */
struct status_walk {
    struct graph_node *n, *bottom;
    uint64_t end;
    struct chain_memo memo;
    bool ends;                          /* what follows the last answer is known to differ */
    uint64_t looks, looks_max;          /* answers of chain_find: so many were had; from so many on, neighbours are not merged */
    struct stor *file;                  /* that `ahead` is about */
    unsigned most, count, at;
    struct stor_extent ahead[AHEAD];
};

/* The extent of the file that begins at off, at most len bytes. */
static int file_extent_at(struct co *co, struct status_walk *w, struct stor *file, uint64_t off, uint64_t len, struct stor_extent *ret_x)
{
    bool known = file == w->file;
    while (known && w->at < w->count && w->ahead[w->at].off + w->ahead[w->at].len <= off)
        w->at++;
    if (!known || w->at >= w->count || w->ahead[w->at].off > off) {
        int n = stor_extents(co, file, off, len, w->ahead, w->most);
        if (n < 0)
            return n;
        w->file = file;
        w->count = (unsigned)n;
        w->at = 0;
    }
    *ret_x = w->ahead[w->at];
    return 0;
}

/* Narrows st to the first extent of the file at its host offset. true: a hole. */
static bool host_is_hole(struct co *co, struct status_walk *w, struct graph_node *n, struct graph_status *st)
{
    struct stor_extent x;
    if (file_extent_at(co, w, n->im->data, st->offset, st->len, &x))
        return false;
    uint64_t end = x.off + x.len;
    if (end > st->offset && end - st->offset < st->len) {
        st->len = end - st->offset;
        w->ends = n->im->data->lim.block <= 1 && !x.note;      /* else the border may have been rounded, or both sides mean the same */
    }
    st->note = n->is_raw ? x.note : 0;
    return x.content == STOR_HOLE;
}

static void status_of_data(struct co *co, struct status_walk *w, const struct piece *p, struct graph_status *st)
{
    st->data = true;
    st->has_offset = !p->layer->im->encrypted;          /* what lies there means nothing to others (FEATURES 1.075) */
    st->offset = p->e.host;
    if (p->layer->im->encrypted)
        return;
    if (p->layer->is_raw) {
        st->zero = host_is_hole(co, w, p->layer, st);
        st->data = !st->zero;
    } else if (worth_asking(co, p->layer)) {
        st->zero = host_is_hole(co, w, p->layer, st);
    }
}

static struct graph_node *layer_above(struct graph_node *n, unsigned depth)
{
    for (n = graph_skip_filters(n); depth--;)
        n = graph_skip_filters(n->backing);
    return n;
}

/* Status of the beginning of [off, w->end). w->ends: what follows is known to differ. */
static int status_first(struct co *co, struct status_walk *w, uint64_t off, struct graph_status *st)
{
    struct piece p;
    struct graph_node *n = w->n;
    int r = chain_find(co, n, w->bottom, off, w->end, &w->memo, &p);
    w->ends = false;
    w->looks++;
    if (r)
        return r;
    unsigned depth = p.past_end && p.depth ? p.depth - 1 : p.depth;
    *st = (struct graph_status){ .len = p.len, .depth = depth, .node = layer_above(n, depth), .past_end = p.past_end };
    st->present = !p.past_end && p.layer && p.e.kind != FMT_ABSENT;
    switch (p.e.kind) {
    case FMT_DATA:
        status_of_data(co, w, &p, st);
        break;
    case FMT_ENCODED:
        st->data = true;
        st->compressed = !p.e.encrypted;
        break;
    case FMT_ZERO:
        st->zero = true;
        st->has_offset = p.e.has_host && !st->node->im->encrypted;      /* no layer has it: the lowest may keep space for it */
        st->offset = p.e.host;
        break;
    case FMT_ABSENT:
        break;
    }
    piece_release(co, &p);
    return 0;
}

static bool same_kind(const struct graph_status *a, const struct graph_status *b)
{
    return a->present == b->present && a->past_end == b->past_end && a->data == b->data && a->zero == b->zero
           && a->note == b->note && a->compressed == b->compressed && a->node == b->node && a->has_offset == b->has_offset
           && (!a->has_offset || a->offset + a->len == b->offset);
}

/* Status of [off, ...), neighbours merged; the answer behind the merged ones is kept in *next (len 0: none). */
static int status_merged(struct co *co, struct status_walk *w, uint64_t off, struct graph_status *ret, struct graph_status *next)
{
    int r = 0;
    if (next->len)
        *ret = *next;
    else
        r = status_first(co, w, off, ret);
    next->len = 0;
    while (!r && off + ret->len < w->end && !w->ends && w->looks < w->looks_max) {
        if (status_first(co, w, off + ret->len, next)) {
            next->len = 0;              /* an error there is told to whoever asks there */
            break;
        }
        if (!same_kind(ret, next))
            break;
        ret->len += next->len;
        next->len = 0;
    }
    return r;
}

/* May anybody be told of the range, and do the filters above it let him ask? */
static int may_ask(struct co *co, struct graph_node *n, uint64_t off, uint64_t len)
{
    int r = len && range_inside(off, len, graph_length(n)) ? 0 : -EIO;
    for (struct graph_node *f = n; f && f->flt && !r; f = f->backing)
        if (f->flt->status)
            r = f->flt->status(co, f, off, len);
    return r;
}

static int list_inside(struct co *co, struct graph_node *n, struct graph_node *bottom, uint64_t off, uint64_t len,
                       struct graph_status *list, unsigned max)
{
    ASSERT(max > 0);
    struct status_walk w = { .n = n, .bottom = bottom, .end = off + len, .looks_max = UINT64_MAX, .most = max < AHEAD ? max : AHEAD };
    struct graph_status next = { 0 };
    unsigned count = 0;
    int r = may_ask(co, n, off, len);
    while (count < max && off < w.end && !r) {
        r = status_merged(co, &w, off, &list[count], &next);
        off += list[count].len;
        count += !r;
    }
    return count ? (int)count : r;
}

int graph_status_list(struct co *co, struct graph_node *n, struct graph_node *bottom, uint64_t off, uint64_t len,
                      struct graph_status *list, unsigned max)
{
    epoch_token t = gate_enter(co, n);
    int r = list_inside(co, n, bottom, off, len, list, max);
    gate_leave(co, n, t);
    return r;
}

int node_status(struct co *co, struct graph_node *n, struct graph_node *bottom, uint64_t off, uint64_t len, struct graph_status *ret)
{
    int r = list_inside(co, n, bottom, off, len, ret, 1);
    return r < 0 ? r : 0;
}

int graph_status(struct co *co, struct graph_node *n, struct graph_node *bottom, uint64_t off, uint64_t len, struct graph_status *ret)
{
    int r = graph_status_list(co, n, bottom, off, len, ret, 1);
    return r < 0 ? r : 0;
}

int graph_status_some(struct co *co, struct graph_node *n, uint64_t off, uint64_t len, unsigned *looks, struct graph_status *ret)
{
    ASSERT(*looks > 0);
    epoch_token t = gate_enter(co, n);
    struct status_walk w = { .n = n, .end = off + len, .looks_max = *looks, .most = 1 };
    struct graph_status next = { 0 };
    int r = may_ask(co, n, off, len);
    if (!r)
        r = status_merged(co, &w, off, ret, &next);
    gate_leave(co, n, t);
    *looks = (unsigned)w.looks;
    return r;
}
