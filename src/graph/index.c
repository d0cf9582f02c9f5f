/* SPDX-License-Identifier: MIT
 *
 * index.c: the layers below an active one, resolved once (DESIGN D6).
 *
 * Purpose     Remembers which of the immutable layers of a chain answers for a guest range, so that a read costs the same at any
 *             depth. The index of a node covers that node and the nodes below it, down to the first that may change;
 *             all overlays of the node share it.
 * Owns        Windows: immutable sorted lists of extents, each for one aligned piece of the guest range, in a table
 *             of sets of 4. Whoever finds something out puts a longer list in the place of the old one.
 * Invariants  N1  A window is never changed once it is in the table, but for `used`; it is freed one grace period after it
 *                 was taken out.
 *             N2  An extent says what the walk from layer[0] down would say, as long as no layer changes its mapping.
 *             N3  Whoever uses an extent enters a section of the layer's image before he leaves the section in which he looked
 *                 it up.
 *             N4  Whoever fills a window looks at `fences` at the beginning of the section in which he asks the layers and
 *                 puts the answer into the table; if there were any he does not put it there.
 *                 So a change of a layer raises a fence, and waits: who saw none has put everything there. It takes out
 *                 what is concerned, and waits: who found that is inside a section of the layer. Then it changes the
 *                 mapping; what the old one names outlives the sections of the layer's image, as ever (D3).
 *             N5  All windows of a graph together take no more memory than its limit, but for those that wait for their
 *                 grace period. Without memory nothing is remembered, and everything works all the same.
 *             N6  Who finds something out in a window of which something was known already goes through the rest of it as well, layer by
 *                 layer, but no deeper than he had to go himself, where the tables for this place are at hand: nobody waits for a
 *                 table that he does not need.
 * Order       None.
 * Concurrency Find and fill: any loop, no lock. Attach, detach, changes: home loop.
 * Failure     The error of a layer's map(), which is not remembered.
 * Tests       index_test.c (every read against the plain walk; changes on two loops), tests/interop/test_chains.py
 */
#include <stdalign.h>
#include <stdlib.h>
#include <string.h>

#include "graph/graph_priv.h"

#define WAYS 4u
#define SLOTS_MAX (1u << 17)
#define WINDOW_BITS_MIN 17u
#define WINDOW_BITS_MAX 21u
#define CLUSTERS_PER_WINDOW 32u
#define EVICT_STEPS 64u
#define EXTENTS_MAX 320u                      /* of a window: a unit each (256 at most), and the ends of layers between */
#define CACHE_LINE 64u
#define LIMIT_DEFAULT (32ull << 20)

#ifdef INDEX_TEST                             /* a moment in which others may run, for tests */
void index_pause(void);
#define INDEX_PAUSE() index_pause()
#else
#define INDEX_PAUSE() (void)0
#endif

enum { HAS_HOST = 1, WRITABLE = 2, PAST_END = 4, ENCRYPTED = 8 };

/* A part of a window: many are looked at, each once in a while, so that each cache line is a miss; it lies in one. kind ABSENT: none of the
 * layers has it. */
struct index_extent {
    uint32_t start, len;                      /* in the window */
    uint64_t host;
    uint32_t enc_len;
    int32_t enc_guest;                        /* ENCODED: from the beginning of the window */
    uint16_t layer;
    uint8_t kind, flags;
};
/* All there is of an answer of map() must have its place here. */
_Static_assert(sizeof(struct fmt_extent) == 48 && sizeof(struct index_extent) == 32, "struct fmt_extent is kept whole");

struct window {
    uint64_t no;                              /* guest offset >> window_bits */
    uint32_t count;
    uint16_t swept;                           /* so many of the layers have been asked for all of the window (N6) */
    atomic_bool used;                         /* since the hand came by */
    struct chain_index *ix;
    union { struct rt_msg msg; struct epoch_cb cb; } gone;
    alignas(CACHE_LINE) struct index_extent e[];
};

struct chain_index {
    struct graph *g;
    struct epoch *epoch;
    unsigned count;
    struct graph_node **layer;                /* covered; `below` is the first that is not, NULL: none */
    struct graph_node *below;
    unsigned window_bits;
    uint64_t unit;                            /* fills begin at a multiple of this */
    uint64_t slots;                           /* 1 << slot_bits, at least WAYS */
    unsigned slot_bits;
    _Atomic(struct window *) *slot;
    _Atomic unsigned fences;                  /* changes in progress (N4) */
    _Atomic uint64_t leaving, hand;           /* windows that wait for their grace period; clock of eviction */
    _Atomic uint64_t fills;
};

static uint64_t window_bytes(uint32_t count) { return round_up(sizeof(struct window) + count * sizeof(struct index_extent), CACHE_LINE); }

/* The slots where a window may be, the i-th to look at. No conflict if there are as many slots as windows, and each is in its first one then. */
static _Atomic(struct window *) *slot_of(const struct chain_index *ix, uint64_t no, unsigned i)
{
    uint64_t at = no * WAYS;
    return &ix->slot[(at & (ix->slots - 1)) + (((at >> ix->slot_bits) + i) & (WAYS - 1))];
}

/* ---- leaving the table ---- */

static void window_free(struct window *w)
{
    atomic_fetch_sub_explicit(&w->ix->g->index_bytes, window_bytes(w->count), memory_order_relaxed);
    free(w);
}

static void on_grace(struct epoch_cb *cb)
{
    struct window *w = CONTAINER_OF(cb, struct window, gone.cb);
    struct chain_index *ix = w->ix;
    window_free(w);
    atomic_fetch_sub(&ix->leaving, 1);
}

static void on_home(struct rt_msg *m)
{
    struct window *w = CONTAINER_OF(m, struct window, gone.msg);
    epoch_defer(w->ix->epoch, &w->gone.cb, on_grace);
}

/* w is in no slot any more. Any loop. */
static void window_retire(struct window *w)
{
    atomic_fetch_add(&w->ix->leaving, 1);
    if (rt_on_loop(w->ix->g->home)) {
        on_home(&w->gone.msg);
        return;
    }
    w->gone.msg.fn = on_home;
    rt_post(w->ix->g->home, &w->gone.msg);
}

static bool take_out(_Atomic(struct window *) *slot, struct window *w)
{
    if (!atomic_compare_exchange_strong(slot, &w, NULL))
        return false;
    window_retire(w);
    return true;
}

/* Makes room for `bytes` more, at the cost of windows that nobody asked for lately. */
static bool have_room(struct chain_index *ix, uint64_t bytes)
{
    for (unsigned step = 0; step < EVICT_STEPS; step++) {
        if (atomic_load_explicit(&ix->g->index_bytes, memory_order_relaxed) + bytes <= ix->g->index_limit)
            return true;
        _Atomic(struct window *) *slot = &ix->slot[atomic_fetch_add_explicit(&ix->hand, 1, memory_order_relaxed) & (ix->slots - 1)];
        struct window *w = atomic_load(slot);
        if (w && !atomic_exchange_explicit(&w->used, false, memory_order_relaxed))
            take_out(slot, w);
    }
    return false;
}

/* ---- looking up ---- */

static struct window *window_at(const struct chain_index *ix, uint64_t no, _Atomic(struct window *) **ret_slot)
{
    for (unsigned i = 0; i < WAYS; i++) {
        _Atomic(struct window *) *slot = slot_of(ix, no, i);
        struct window *w = atomic_load(slot);
        if (w && w->no == no) {
            *ret_slot = slot;
            return w;
        }
    }
    return NULL;
}

/* How many of the extents begin at or before `at`. */
static uint32_t rank_of(const struct index_extent *e, uint32_t count, uint32_t at)
{
    const struct index_extent *base = e;
    uint32_t n = count;
    while (n > 1) {
        uint32_t half = n / 2;
        base += base[half - 1].start <= at ? half : 0;
        n -= half;
    }
    return (uint32_t)(base - e) + (n && base->start <= at);
}

static const struct index_extent *extent_at(const struct window *w, uint32_t at, unsigned window_bits)
{
    const struct index_extent *e = &w->e[(uint64_t)at * w->count >> window_bits];      /* there, if all are of one length */
    if (LIKELY(w->count && at >= e->start && at - e->start < e->len))
        return e;
    uint32_t n = rank_of(w->e, w->count, at);
    return n && at - w->e[n - 1].start < w->e[n - 1].len ? &w->e[n - 1] : NULL;
}

/* What a map() at `by` bytes further on would have said, no longer than `most`. */
static struct fmt_extent cut_front(struct fmt_extent x, uint64_t by, uint64_t most)
{
    x.len = min_u64(x.len - by, most);
    if (x.kind != FMT_ENCODED)
        x.host += by;
    return x;
}

static struct fmt_extent unpack(const struct index_extent *e, uint64_t window_start)
{
    return (struct fmt_extent){
        .kind = e->kind, .has_host = e->flags & HAS_HOST, .writable = e->flags & WRITABLE, .len = e->len, .host = e->host,
        .enc_len = e->enc_len, .encrypted = e->flags & ENCRYPTED,
        .enc_guest = e->kind == FMT_ENCODED ? window_start + (uint64_t)(int64_t)e->enc_guest : 0,
    };
}

/* false: it does not fit. */
static bool pack(const struct piece *p, uint64_t window_start, uint32_t start, struct index_extent *ret)
{
    const struct fmt_extent *x = &p->e;
    int64_t guest = x->kind == FMT_ENCODED ? (int64_t)(x->enc_guest - window_start) : 0;
    *ret = (struct index_extent){
        .start = start, .len = (uint32_t)x->len, .host = x->host, .enc_len = (uint32_t)x->enc_len, .enc_guest = (int32_t)guest, .layer = (uint16_t)p->depth,
        .kind = (uint8_t)x->kind, .flags = (uint8_t)((x->has_host ? HAS_HOST : 0) | (x->writable ? WRITABLE : 0) | (p->past_end ? PAST_END : 0) | (x->encrypted ? ENCRYPTED : 0)),
    };
    return ret->len == x->len && ret->enc_len == x->enc_len && ret->enc_guest == guest && ret->layer == p->depth;
}

/* The piece at [p->pos, end) as an extent of w says. */
static void use_extent(struct co *co, const struct chain_index *ix, struct window *w, const struct index_extent *e, uint64_t end, struct piece *p)
{
    uint64_t window_start = w->no << ix->window_bits, start = window_start + e->start;
    p->layer = ix->layer[e->layer];
    p->depth = e->layer;
    p->past_end = e->flags & PAST_END;
    p->e = cut_front(unpack(e, window_start), p->pos - start, end - p->pos);
    p->len = p->e.len;
    if (!atomic_load_explicit(&w->used, memory_order_relaxed))
        atomic_store_explicit(&w->used, true, memory_order_relaxed);
    p->held = p->e.kind == FMT_DATA || p->e.kind == FMT_ENCODED;
    INDEX_PAUSE();
    if (p->held)
        p->tok = epoch_enter(p->layer->im->epoch, co_loop(co));        /* N3 */
}

static bool look_up(struct co *co, const struct chain_index *ix, uint64_t end, struct piece *p)
{
    _Atomic(struct window *) *slot;
    struct window *w = window_at(ix, p->pos >> ix->window_bits, &slot);
    const struct index_extent *e = w ? extent_at(w, (uint32_t)(p->pos & ((1ull << ix->window_bits) - 1)), ix->window_bits) : NULL;
    if (e)
        use_extent(co, ix, w, e, end, p);
    return e;
}

/* ---- filling ---- */

/* Does b say what a would say if it were longer? */
static bool joins(const struct index_extent *a, const struct index_extent *b)
{
    return a->start + a->len == b->start && a->layer == b->layer && a->flags == b->flags && a->kind == b->kind && a->kind != FMT_ENCODED &&
           (!(a->flags & HAS_HOST) || a->host + a->len == b->host);
}

/* A window while it is made. */
struct draft { uint64_t from; uint32_t count; bool grew; struct index_extent e[EXTENTS_MAX]; };      /* from: of the guest */

/* Puts e, of which nothing is known, before e[i]. false: there is no place for it. */
static bool put_at(struct draft *d, uint32_t i, struct index_extent e)
{
    bool with_last = i && joins(&d->e[i - 1], &e), with_next = i < d->count && joins(&e, &d->e[i]);
    uint32_t tail = i + with_next, to = i + 1 - with_last;         /* what lies behind e goes from here to there */
    if (d->count + 1 - with_last - with_next > EXTENTS_MAX)
        return false;
    if (with_last) {
        e.len += d->e[i - 1].len;
        e.start = d->e[i - 1].start;
        e.host = d->e[i - 1].host;
    }
    if (with_next)
        e.len += d->e[i].len;
    if (to != tail)
        memmove(&d->e[to], &d->e[tail], (d->count - tail) * sizeof e);
    d->e[to - 1] = e;
    d->count += to - tail;
    return d->grew = true;
}

/* From `at` on, the first of which nothing is known; ret_i: how many extents lie before it. */
static uint32_t unknown_from(const struct draft *d, uint32_t at, uint32_t *ret_i)
{
    uint32_t i = rank_of(d->e, d->count, at);
    if (i && d->e[i - 1].start + d->e[i - 1].len > at)
        at = d->e[i - 1].start + d->e[i - 1].len;
    for (; i < d->count && d->e[i].start == at; i++)
        at += d->e[i].len;
    *ret_i = i;
    return at;
}

/* Puts in what p, found at `from` of the window, says of places of which nothing is known. false: not all of it. */
static bool put(struct draft *d, uint32_t from, const struct piece *p)
{
    uint64_t end = from + p->e.len;
    uint32_t i;
    for (uint32_t at = from; (at = unknown_from(d, at, &i)) < end;) {
        struct piece part = *p;
        struct index_extent e;
        part.e = cut_front(p->e, at - from, (i < d->count ? min_u64(end, d->e[i].start) : end) - at);
        if (!pack(&part, d->from, at, &e) || !put_at(d, i, e))
            return false;
        at += e.len;
    }
    return true;
}

/* What layer `depth` has of [0, *to) of the window where those above have nothing, which are all asked. Past its end nobody has anything: *to
 * shrinks. false: it cannot be said. */
static bool sweep_layer(struct co *co, struct chain_index *ix, struct draft *d, unsigned depth, uint64_t *to)
{
    struct fmt_image *im = ix->layer[depth]->im;
    if (!im->ops->map_at_hand)
        return false;
    uint64_t size = atomic_load_explicit(&im->size, memory_order_acquire);
    *to = min_u64(*to, size > d->from ? size - d->from : 0);
    bool ok = true;
    epoch_token t = epoch_enter(im->epoch, co_loop(co));
    uint32_t i;
    for (uint32_t at = 0; ok && (at = unknown_from(d, at, &i)) < *to;) {
        struct piece p = { .depth = depth };
        ok = im->ops->map_at_hand(im, d->from + at, *to - at, &p.e) == 0;
        ASSERT(!ok || (p.e.len > 0 && p.e.len <= *to - at));
        if (ok && p.e.kind != FMT_ABSENT)
            ok = put(d, at, &p);
        at += ok ? (uint32_t)p.e.len : 0;
    }
    epoch_leave(im->epoch, co_loop(co), t);
    return ok;
}

/* N6: what the layers down to `depth` have of the rest of the window. What cannot be said now is left to those who ask for it. */
static void sweep(struct co *co, struct chain_index *ix, struct draft *d, unsigned depth)
{
    uint64_t to = 1ull << ix->window_bits;
    for (unsigned i = 0; i <= depth && to; i++)
        if (!sweep_layer(co, ix, d, i, &to))
            return;
}

/* A window in the place of `old` (NULL: none) that knows p, too, found at `from` of the guest. NULL: no memory, no room, or nothing new. */
static struct window *window_new(struct co *co, struct chain_index *ix, const struct window *old, uint64_t from, const struct piece *p)
{
    uint64_t no = from >> ix->window_bits;
    struct draft *d = malloc(sizeof *d);
    struct window *x = NULL;
    uint16_t swept = old ? old->swept : 0;
    if (!d)
        return NULL;
    d->from = no << ix->window_bits;
    d->count = old ? old->count : 0;
    d->grew = false;
    if (old)
        memcpy(d->e, old->e, old->count * sizeof d->e[0]);
    bool ok = put(d, (uint32_t)(from - d->from), p);      /* without room for it, it is asked for again */
    if (ok && old && p->depth >= swept) {
        sweep(co, ix, d, p->depth);
        swept = (uint16_t)(p->depth + 1);
    }
    uint64_t bytes = window_bytes(d->count);
    if (d->grew && have_room(ix, bytes))
        x = aligned_alloc(CACHE_LINE, bytes);
    if (x) {
        atomic_fetch_add_explicit(&ix->g->index_bytes, bytes, memory_order_relaxed);
        *x = (struct window){ .no = no, .count = d->count, .swept = swept, .ix = ix, .used = old && atomic_load_explicit(&old->used, memory_order_relaxed) };
        memcpy(x->e, d->e, d->count * sizeof d->e[0]);
    }
    free(d);
    return x;
}

/* The slot for a window that is not in the table: an empty one, else one that was not used since the last search. */
static _Atomic(struct window *) *victim(const struct chain_index *ix, uint64_t no, struct window **ret_old)
{
    _Atomic(struct window *) *best = NULL;
    for (unsigned i = 0; i < WAYS; i++) {
        _Atomic(struct window *) *slot = slot_of(ix, no, i);
        struct window *w = atomic_load(slot);
        if (!w) {
            *ret_old = NULL;
            return slot;
        }
        bool used = atomic_exchange_explicit(&w->used, false, memory_order_relaxed);
        if (!best || !used) {
            best = slot;
            *ret_old = w;
        }
    }
    return best;
}

/* Puts what the walk found at [from, from + p->len) into the table. */
static void remember(struct co *co, struct chain_index *ix, uint64_t from, const struct piece *p)
{
    uint64_t no = from >> ix->window_bits;
    _Atomic(struct window *) *slot;
    struct window *old = window_at(ix, no, &slot), *w = window_new(co, ix, old, from, p);
    if (!w)
        return;
    if (!old)
        slot = victim(ix, no, &old);
    struct window *was = old;
    if (!atomic_compare_exchange_strong(slot, &was, w)) {
        window_free(w);
        return;
    }
    atomic_fetch_add_explicit(&ix->fills, 1, memory_order_relaxed);
    if (old)
        window_retire(old);
}

/* The gap of the table around pos, from a multiple of the unit on, at most to the end of the window and of the layer. */
static void gap_around(const struct chain_index *ix, uint64_t pos, uint64_t *ret_from, uint64_t *ret_to)
{
    uint64_t mask = (1ull << ix->window_bits) - 1, start = pos & ~mask, size = atomic_load_explicit(&ix->layer[0]->im->size, memory_order_acquire);
    _Atomic(struct window *) *slot;
    const struct window *w = window_at(ix, pos >> ix->window_bits, &slot);
    uint32_t n = w ? rank_of(w->e, w->count, (uint32_t)(pos & mask)) : 0;
    *ret_from = max_u64(round_down(pos, ix->unit), start + (n ? w->e[n - 1].start + w->e[n - 1].len : 0));
    *ret_to = min_u64(size, start + (w && n < w->count ? w->e[n].start : mask + 1));
}

/* Walks, remembers, and answers for [p->pos, end). */
static int fill(struct co *co, struct chain_index *ix, uint64_t end, struct piece *p)
{
    uint64_t pos = p->pos, from, to;
    bool fenced = atomic_load(&ix->fences);      /* N4 */
    gap_around(ix, pos, &from, &to);
    if (from > pos || to <= pos) {               /* it is known since a moment ago */
        from = pos;
        to = end;
    }
    for (;;) {
        int r = chain_walk(co, ix->layer[0], ix->below, from, to, p);
        if (r && from == pos)
            return r;
        if (r) {                                 /* of a part that nobody asked for */
            from = pos;
            continue;
        }
        if (!fenced && (from ^ (from + p->len - 1)) >> ix->window_bits == 0)
            remember(co, ix, from, p);
        if (from + p->len > pos)
            break;
        piece_release(co, p);
        from += p->len;
    }
    p->pos = pos;
    p->e = cut_front(p->e, pos - from, end - pos);
    p->len = p->e.len;
    return 0;
}

int index_find(struct co *co, struct chain_index *ix, uint64_t end, struct piece *p)
{
    int r = 0;
    epoch_token t = epoch_enter(ix->epoch, co_loop(co));
    if (!look_up(co, ix, end, p))
        r = fill(co, ix, end, p);
    epoch_leave(ix->epoch, co_loop(co), t);
    return r;
}

struct graph_node *index_below(const struct chain_index *ix) { return ix->below; }

unsigned index_layers(const struct chain_index *ix) { return ix->count; }

struct graph_node *index_last(const struct chain_index *ix) { return ix->layer[ix->count - 1]; }

/* ---- life ---- */

/* Only this process can change where this layer's bytes are, and it says so. Raw: they never move. */
static bool is_fixed(const struct graph_node *n)
{
    return n->read_only && !n->inactive && !n->flt && (n->is_raw || (!n->force_share && !n->no_lock));
}

static void set_windows(struct chain_index *ix)
{
    uint64_t unit = 1ull << 16;
    for (unsigned i = 0; i < ix->count; i++)
        if (!ix->layer[i]->is_raw)
            unit = min_u64(unit, max_u64(ix->layer[i]->im->granule, SECTOR));
    ix->unit = unit;
    ix->window_bits = WINDOW_BITS_MIN;
    while (ix->window_bits < WINDOW_BITS_MAX && 1ull << ix->window_bits < unit * CLUSTERS_PER_WINDOW)
        ix->window_bits++;
    uint64_t windows = (graph_length(ix->layer[0]) >> ix->window_bits) + 1;
    ix->slot_bits = 2;
    while (1ull << ix->slot_bits < min_u64(windows, SLOTS_MAX))
        ix->slot_bits++;
    ix->slots = 1ull << ix->slot_bits;
}

static int index_new(struct graph_node *n, unsigned count, struct chain_index **ret_ix)
{
    struct chain_index *ix = calloc(1, sizeof *ix);
    if (!ix)
        return -ENOMEM;
    ix->g = n->g;
    ix->count = count;
    ix->layer = calloc(count, sizeof *ix->layer);
    for (unsigned i = 0; ix->layer && i < count; i++, n = n->backing) {
        ix->layer[i] = n;
        ix->fences += n->index_fences;
    }
    ix->below = n;
    if (ix->layer)
        set_windows(ix);
    ix->slot = ix->layer ? calloc(ix->slots, sizeof *ix->slot) : NULL;
    if (!ix->slot || epoch_new(ix->g->home, &ix->epoch)) {
        free(ix->slot);
        free(ix->layer);
        free(ix);
        return -ENOMEM;
    }
    *ret_ix = ix;
    return 0;
}

void index_attach(struct graph_node *n)
{
    unsigned count = 0;
    struct chain_index *ix;
    if (atomic_load(&n->index) || n->g->index_limit == 0)
        return;
    for (const struct graph_node *l = n; l && is_fixed(l) && count < UINT16_MAX; l = l->backing)
        count++;
    if (count >= 2 && !index_new(n, count, &ix))
        atomic_store(&n->index, ix);             /* without memory it goes without */
}

void index_detach(struct co *co, struct graph_node *n)
{
    struct chain_index *ix = atomic_exchange(&n->index, NULL);
    if (!ix)
        return;
    for (uint64_t i = 0; i < ix->slots; i++) {
        struct window *w = atomic_load(&ix->slot[i]);
        if (w)
            window_free(w);
    }
    while (atomic_load(&ix->leaving)) {
        co_yield(co);
        epoch_drain(co, ix->epoch);
    }
    epoch_free(ix->epoch);
    free(ix->slot);
    free(ix->layer);
    free(ix);
}

struct index_stats index_stats(const struct graph_node *n)
{
    struct index_stats s = { .bytes = atomic_load(&n->g->index_bytes) };
    struct chain_index *ix = atomic_load(&n->index);
    if (ix) {
        s.layers = ix->count;
        s.fills = atomic_load(&ix->fills);
    }
    return s;
}

uint64_t index_limit_of(uint64_t asked) { return asked == UINT64_MAX ? 0 : asked ? asked : LIMIT_DEFAULT; }

/* ---- of all nodes over one ---- */

static struct graph_node *indexed_above(struct graph_node *n)
{
    for (struct graph_node *m = graph_next(n->g, NULL); m; m = graph_next(n->g, m))
        if (atomic_load(&m->index) && chain_has(m, n))
            return m;
    return NULL;
}

/* From the beginning each time: others may change the list while one goes. */
void indexes_drop(struct co *co, struct graph_node *n)
{
    struct graph_node *m;
    while ((m = indexed_above(n))) {
        m->refs++;
        co_lock(co, &n->g->index_mx);            /* nobody waits for its sections */
        index_detach(co, m);
        co_unlock(&n->g->index_mx);
        (void)node_unref(co, m);                 /* 0 unless its last user went meanwhile; then there is nobody left to tell */
    }
}

static bool is_top(const struct graph_node *n)
{
    for (struct graph_node *m = node_next(n->g, NULL); m; m = node_next(n->g, m))
        if (m->backing == n && !node_is_hidden(m))
            return false;
    return true;
}

void indexes_make(struct graph_node *n)
{
    for (struct graph_node *m = graph_next(n->g, NULL); m; m = graph_next(n->g, m))
        if (m->ready && m->backing && chain_has(m, n) && (!m->read_only || is_top(m)))
            index_attach(m->backing);
}

/* ---- changes of a mapping ---- */

static bool covers(const struct chain_index *ix, const struct graph_node *n)
{
    for (unsigned i = 0; ix && i < ix->count; i++)
        if (ix->layer[i] == n)
            return true;
    return false;
}

static void drop_range(struct chain_index *ix, uint64_t off, uint64_t len)
{
    uint64_t first = off >> ix->window_bits, last = (len > UINT64_MAX - off ? UINT64_MAX : off + len - 1) >> ix->window_bits;
    for (uint64_t i = 0; i < ix->slots; i++) {
        struct window *w = atomic_load(&ix->slot[i]);
        if (w && w->no >= first && w->no <= last)
            take_out(&ix->slot[i], w);           /* if it is gone already, so much the better: nobody fills (N4) */
    }
}

/* The nodes whose indexes cover n, linked by index_next, each with a reference and a fence more. */
static struct graph_node *fence_all(struct graph_node *n)
{
    struct graph_node *list = NULL;
    LIST_FOR(l, &n->g->nodes) {
        struct graph_node *m = CONTAINER_OF(l, struct graph_node, link);
        struct chain_index *ix = atomic_load(&m->index);
        if (!covers(ix, n))
            continue;
        atomic_fetch_add(&ix->fences, 1);
        m->refs++;
        m->index_next = list;
        list = m;
    }
    return list;
}

void graph_mapping_change_begin(struct co *co, struct graph_node *n, uint64_t off, uint64_t len)
{
    ASSERT_LOOP(n->g->home);
    ASSERT(len > 0);
    co_lock(co, &n->g->index_mx);                /* of index_next */
    n->index_fences++;
    struct graph_node *list = fence_all(n), *next;
    for (struct graph_node *m = list; m; m = m->index_next)
        epoch_wait(co, atomic_load(&m->index)->epoch);
    for (struct graph_node *m = list; m; m = m->index_next)
        drop_range(atomic_load(&m->index), off, len);
    for (struct graph_node *m = list; m; m = m->index_next)
        epoch_wait(co, atomic_load(&m->index)->epoch);
    for (; list; list = next) {
        next = list->index_next;
        (void)node_unref(co, list);              /* 0 unless its last user went meanwhile; then there is nobody left to tell */
    }
    co_unlock(&n->g->index_mx);
}

void graph_mapping_change_end(struct graph_node *n)
{
    ASSERT_LOOP(n->g->home);
    ASSERT(n->index_fences > 0);
    n->index_fences--;
    LIST_FOR(l, &n->g->nodes) {
        struct graph_node *m = CONTAINER_OF(l, struct graph_node, link);
        struct chain_index *ix = atomic_load(&m->index);
        if (covers(ix, n))
            atomic_fetch_sub(&ix->fences, 1);
    }
}
