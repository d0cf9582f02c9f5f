/* SPDX-License-Identifier: MIT
 *
 * fill.c: the rest of a new cluster, where its host bytes are not known to read as zeros.
 *
 * Purpose     Writes a request into a new cluster together with what must surround it: the guest's present bytes, or zeros.
 *             Zeros come in two ways: as bytes of one longer write, or by zero-range calls around a short one. Which is
 *             cheaper depends on disk, file system and cluster size, so it is measured, not assumed (DESIGN D4).
 * Owns        The measured costs of a node (struct fill_costs).
 * Invariants  I1  Either way all bytes of the cluster are with the store when the call returns.
 *             I2  A choice rests on the absolute size of the area and its ratio to the data, by means of the two estimates:
 *                 merged = fixed + bytes * per byte, split = (number of areas) * zero call + a write of the data alone.
 *             I3  The way not taken is tried now and then, so that an estimate follows the disk: TRIAL_FIRST turns after the beginning and
 *                 every TRIAL_EVERY from there, more seldom if it is far from being the better one, and sooner if what is known is slow.
 *             I5  What is measured is what a fill costs the disk, not how long it waits for others: a time counts as divided by the number
 *                 of fills in flight, and only when all of them go the same way. A zero-range call waits until nobody writes, and holds up
 *                 who comes after it: beside long writes it takes as long as they do. So a trial is a run of turns, until
 *                 TRIAL_ENOUGH measurements were made behind the last one of the other way.
 *             I4  Up to FILL_SMALL_BYTES bytes are never worth a call of their own.
 * Order       None: what is durable before what is decided in meta/.
 * Concurrency Any loop. The figures are relaxed atomics: a lost update costs precision only.
 * Failure     The first error.
 * Tests       fill_test.c (the choice, by table; convergence), request_test.c (content)
 */
#include <stdlib.h>
#include <string.h>

#include "base/mutant.h"
#include "graph/fill.h"
#include "graph/graph_priv.h"

/* Vectors with more elements than this are not merged with head and tail. */
#define WRITE_VECS 16
#define FILL_VECS 68u                    /* zero pages around the data: two clusters of qcow2. Where there are more, they are not merged */
#define TRIAL_FIRST 512u
#define TRIAL_SOON 32u
#define TRIAL_EVERY 4096u
#define TRIAL_FAR 8u                     /* so many times as costly is far; and then it is tried so much more seldom */
#define TRIAL_TURNS 160u                 /* where more are in flight nothing comes out, and things stay as they are */
#define TRIAL_ENOUGH 8u
#define SLOW_NS_PER_BYTE 4u              /* 250 MB/s */
#define WEIGHT 8u                        /* a new measurement counts 1/8, */
#define WEIGHT_TRIAL 2u                  /* in a trial, which makes few, 1/2 */

/* ---- what was measured ---- */

static void learn(_Atomic uint64_t *cost, uint64_t ns, uint64_t weight)
{
    uint64_t old = atomic_load_explicit(cost, memory_order_relaxed);
    uint64_t now = !old ? ns : (old * (weight - 1) + ns) / weight;
    atomic_store_explicit(cost, now ? now : 1, memory_order_relaxed);
}

struct fill_visit fill_enter(struct fill_costs *c, enum fill_way way)
{
    uint32_t others = atomic_load_explicit(&c->going[!way], memory_order_relaxed);
    uint32_t same = atomic_fetch_add_explicit(&c->going[way], 1, memory_order_relaxed);
    return (struct fill_visit){ .way = way, .with = others + same + 1, .alone = !others };
}

void fill_leave(struct fill_costs *c, const struct fill_visit *v) { atomic_fetch_sub_explicit(&c->going[v->way], 1, memory_order_relaxed); }

uint64_t fill_share(const struct fill_costs *c, const struct fill_visit *v, uint64_t ns)
{
    bool counts = v->alone && !atomic_load_explicit(&c->going[!v->way], memory_order_relaxed);       /* I5 */
    return counts ? ns / v->with + 1 : 0;
}

/* A measurement of this way: what does it weigh? */
static uint64_t weigh(struct fill_costs *c, enum fill_way way)
{
    bool trial = atomic_load_explicit(&c->trial_until, memory_order_relaxed) && atomic_load_explicit(&c->trial_way, memory_order_relaxed) == way;
    return trial && atomic_fetch_add_explicit(&c->trial_seen, 1, memory_order_relaxed) < TRIAL_ENOUGH ? WEIGHT_TRIAL : WEIGHT;
}

void fill_saw_zero(struct fill_costs *c, uint64_t ns) { learn(&c->zero_ns, ns, weigh(c, FILL_SPLIT)); }

void fill_saw_write(struct fill_costs *c, uint64_t bytes, uint64_t ns)
{
    uint64_t fixed = atomic_load_explicit(&c->write_ns, memory_order_relaxed);
    if (bytes <= FILL_SMALL_BYTES)
        learn(&c->write_ns, ns, WEIGHT);
    else
        learn(&c->mib_ns, (ns > fixed ? ns - fixed : 1) * (1u << 20) / bytes, weigh(c, FILL_MERGED));
}

struct fill_estimate fill_estimate(const struct fill_costs *c, uint64_t head, uint64_t data, uint64_t tail)
{
    uint64_t zero = atomic_load_explicit(&c->zero_ns, memory_order_relaxed), fixed = atomic_load_explicit(&c->write_ns, memory_order_relaxed);
    uint64_t mib = atomic_load_explicit(&c->mib_ns, memory_order_relaxed);
    uint64_t calls = (head > 0) + (tail > 0), all = head + data + tail;
    return (struct fill_estimate){ .known = zero && mib, .merged_ns = fixed + mib * all / (1u << 20), .split_ns = calls * zero + fixed + mib * data / (1u << 20) };
}

/* Does a trial of the way that is not `way` begin? (I3) */
static bool trial_begins(const struct fill_costs *c, const struct fill_estimate *e, uint64_t area, enum fill_way way, uint64_t turn)
{
    uint64_t here = way == FILL_MERGED ? e->merged_ns : e->split_ns, there = way == FILL_MERGED ? e->split_ns : e->merged_ns;
    if (!e->known && turn >= TRIAL_SOON && here > area * SLOW_NS_PER_BYTE && !atomic_load_explicit(&c->trial_until, memory_order_relaxed))
        return true;
    return turn % (e->known && there > here * TRIAL_FAR ? TRIAL_EVERY * TRIAL_FAR : TRIAL_EVERY) == TRIAL_FIRST;
}

enum fill_way fill_choose(struct fill_costs *c, uint64_t head, uint64_t data, uint64_t tail, uint64_t turn)
{
    uint64_t area = head + tail;
    if (area <= FILL_SMALL_BYTES)
        return FILL_MERGED;                                      /* I4 */
    struct fill_estimate e = fill_estimate(c, head, data, tail);
    bool merged = e.known ? e.merged_ns <= e.split_ns : area <= ZERO_PAGE_BYTES;    /* as long as only one is known: the likely one */
    enum fill_way way = merged ? FILL_MERGED : FILL_SPLIT;
    if (trial_begins(c, &e, area, way, turn)) {
        atomic_store_explicit(&c->trial_way, merged ? FILL_SPLIT : FILL_MERGED, memory_order_relaxed);
        atomic_store_explicit(&c->trial_seen, 0, memory_order_relaxed);
        atomic_store_explicit(&c->trial_until, turn + TRIAL_TURNS, memory_order_relaxed);
    }
    bool tries = turn < atomic_load_explicit(&c->trial_until, memory_order_relaxed) && atomic_load_explicit(&c->trial_seen, memory_order_relaxed) < TRIAL_ENOUGH;
    return tries ? (enum fill_way)atomic_load_explicit(&c->trial_way, memory_order_relaxed) : way;
}

/* ---- writing ---- */

struct around { const uint8_t *head, *tail; bool zeros; };       /* zeros: both are graph_zero_page, of any length */

static size_t add(struct iovec *vec, const uint8_t *from, uint64_t len, bool zeros)
{
    size_t n = 0;
    for (uint64_t part; len; len -= part) {
        part = zeros ? min_u64(len, ZERO_PAGE_BYTES) : len;
        vec[n++] = (struct iovec){ (void *)(uintptr_t)from, part };
    }
    return n;
}

/* Data and what surrounds it are about to be written. */
static void tell_fill(struct co *co, const struct graph_node *n, enum stor_event_kind around)
{
    node_event(co, n, around);
    node_event(co, n, STOR_EV_WRITE_AIO);
}

/* Writes head, v, tail as one transfer that ends behind the tail; three transfers when v has too many elements. */
static int write_merged(struct co *co, struct stor *s, const struct fmt_write *w, struct iov v, const struct around *a)
{
    struct iovec vec[FILL_VECS + WRITE_VECS];
    if (iov_count(v) > WRITE_VECS) {
        size_t cnt = add(vec, a->head, w->head, a->zeros);
        int r = w->head ? stor_write(co, s, iov_of(vec, cnt), w->host - w->head, 0) : 0;
        if (!r)
            r = stor_write(co, s, v, w->host, 0);
        cnt = add(vec, a->tail, w->tail, a->zeros);
        return r || !w->tail ? r : stor_write(co, s, iov_of(vec, cnt), w->host + w->len, 0);
    }
    size_t cnt = add(vec, a->head, w->head, a->zeros);
    cnt += iov_export(v, vec + cnt, WRITE_VECS, NULL);
    cnt += add(vec + cnt, a->tail, w->tail, a->zeros);
    return stor_write(co, s, iov_of(vec, cnt), w->host - w->head, 0);
}

static int zero_timed(struct co *co, struct graph_node *n, const struct fill_visit *v, uint64_t off, uint64_t len)
{
    if (len)
        node_event(co, n, STOR_EV_CLUSTER_ALLOC_SPACE);
    uint64_t begin = rt_now(co_loop(co));
    int r = len ? stor_zero(co, n->im->data, off, len, 0) : 0;
    uint64_t share = fill_share(&n->fill, v, rt_now(co_loop(co)) - begin);
    if (!r && len && share)
        fill_saw_zero(&n->fill, share);
    return r;
}

/* A write that takes `bytes` began at `begin` and has ended well. */
static void write_timed(struct co *co, struct graph_node *n, const struct fill_visit *v, uint64_t bytes, uint64_t begin)
{
    uint64_t share = fill_share(&n->fill, v, rt_now(co_loop(co)) - begin);
    if (share)
        fill_saw_write(&n->fill, bytes, share);
}

static int write_split(struct co *co, struct graph_node *n, const struct fill_visit *visit, const struct fmt_write *w, struct iov v)
{
    int r = zero_timed(co, n, visit, w->host - w->head, w->head);
    node_event(co, n, STOR_EV_WRITE_AIO);
    uint64_t begin = rt_now(co_loop(co));
    if (!r)
        r = stor_write(co, n->im->data, v, w->host, 0);
    if (!r)
        write_timed(co, n, visit, w->len, begin);
    return r ? r : zero_timed(co, n, visit, w->host + w->len, w->tail);
}

/* QED has clusters of up to 64 MiB. */
static bool can_merge(const struct fmt_write *w) { return div_up(w->head, ZERO_PAGE_BYTES) + div_up(w->tail, ZERO_PAGE_BYTES) <= FILL_VECS; }

static int write_zero_filled(struct co *co, struct graph_node *n, const struct fmt_write *w, struct iov v)
{
    static const struct around zeros = { graph_zero_page, graph_zero_page, true };
    uint64_t area = w->head + w->tail;
    if (area <= FILL_SMALL_BYTES) {
        atomic_fetch_add_explicit(&n->fill.merged, 1, memory_order_relaxed);
        tell_fill(co, n, STOR_EV_CLUSTER_ALLOC_SPACE);
        return write_merged(co, n->im->data, w, v, &zeros);
    }
    uint64_t turn = atomic_fetch_add_explicit(&n->fill.turns, 1, memory_order_relaxed), begin = rt_now(co_loop(co));
    struct fill_visit visit = fill_enter(&n->fill, can_merge(w) ? fill_choose(&n->fill, w->head, w->len, w->tail, turn) : FILL_SPLIT);
    atomic_fetch_add_explicit(visit.way == FILL_SPLIT ? &n->fill.split : &n->fill.merged, 1, memory_order_relaxed);
    if (visit.way == FILL_MERGED)
        tell_fill(co, n, STOR_EV_CLUSTER_ALLOC_SPACE);
    int r = visit.way == FILL_SPLIT ? write_split(co, n, &visit, w, v) : write_merged(co, n->im->data, w, v, &zeros);
    if (!r && visit.way == FILL_MERGED)
        write_timed(co, n, &visit, area + w->len, begin);
    fill_leave(&n->fill, &visit);
    return r;
}

/* Reads what surrounds [lo, hi) of the guest to its place in buf, which begins with the head of w and has room for all of it, or (not roomy) for head and tail alone.
 * One read for all where what lies between is the smaller part. */
static int read_around(struct co *co, struct graph_node *n, const struct fmt_write *w, uint8_t *buf, bool roomy, uint64_t lo, uint64_t hi)
{
    struct iovec slot;
    uint64_t from = w->off - w->head, to = w->off + w->len + w->tail, head = lo - from, tail = to - hi;
    bool whole = roomy && head && tail && hi - lo <= head + tail;
    int r = head ? chain_read(co, n, iov_one(&slot, buf, whole ? to - from : head), from) : 0;
    if (!r && !whole && tail)
        r = chain_read(co, n, iov_one(&slot, buf + (roomy ? hi - from : w->head), tail), hi);
    return r;
}

/* Puts the write, what surrounds it and what others bring together, and writes it. roomy: buf has room for all of it, not for head and tail alone. */
static int write_around(struct co *co, struct graph_node *n, const struct fmt_write *w, struct iov v, uint8_t *buf, bool roomy, struct rider **ret_riders)
{
    struct ride d;
    struct rider *riders = NULL;
    uint64_t lo = w->off, hi = w->off + w->len;
    bool shared = roomy && ret_riders;
    if (shared) {
        ride_open(n, &d, w);
        ride_call(co, n, &d, &lo, &hi);
    }
    node_event(co, n, STOR_EV_COW_READ);
    int r = read_around(co, n, w, buf, roomy, lo, hi);
    if (shared)
        *ret_riders = riders = ride_close(n, &d);
    if (!r)
        tell_fill(co, n, STOR_EV_COW_WRITE);
    const struct around a = { buf, buf + w->head + (roomy ? w->len : 0), false };
    if (r || !riders)
        return r ? r : write_merged(co, n->im->data, w, v, &a);
    struct iovec slot;
    iov_to_buf(v, buf + w->head, w->len);
    ride_put(riders, buf, w->off - w->head);
    if (MUTANT(MUT_RIDE_TOLD_EARLY)) {
        ride_end(riders, 0);
        *ret_riders = NULL;
    }
    return stor_write(co, n->im->data, iov_one(&slot, buf, w->head + w->len + w->tail), w->host - w->head, 0);
}

/* The guest's present bytes around the write. Where those are the larger part, others may go along. */
static int write_copied(struct co *co, struct graph_node *n, const struct fmt_write *w, struct iov v, struct rider **ret_riders)
{
    bool roomy = w->len <= w->head + w->tail;
    uint64_t bytes = w->head + w->tail + (roomy ? w->len : 0);
    uint8_t *buf = rt_buf_get(co_loop(co), bytes);
    if (!buf)
        return -ENOMEM;
    int r = write_around(co, n, w, v, buf, roomy, ret_riders);
    rt_buf_put(co_loop(co), buf, bytes);
    return r;
}

int fill_write(struct co *co, struct graph_node *n, const struct fmt_write *w, struct iov v, struct rider **ret_riders)
{
    if (w->fill == FMT_FILL_NONE || !(w->head | w->tail)) {
        if (UNLIKELY(n->im->store->events != NULL))
            tell_fill(co, n, w->head | w->tail ? STOR_EV_CLUSTER_ALLOC_SPACE : STOR_EV_NONE);
        return stor_write(co, n->im->data, v, w->host, 0);
    }
    return w->fill == FMT_FILL_ZERO ? write_zero_filled(co, n, w, v) : write_copied(co, n, w, v, ret_riders);
}
