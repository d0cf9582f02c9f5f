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
 *             I3  The way not taken is tried now and then, so that an estimate follows the disk: one time in PROBE_EVERY.
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
#define FILL_VECS 64u                    /* zero pages around the data: a cluster has at most 2 MiB */
#define PROBE_EVERY 64u
#define WEIGHT 8                         /* a new measurement counts 1/8 */

/* ---- what was measured ---- */

static void learn(_Atomic uint64_t *cost, uint64_t ns)
{
    uint64_t old = atomic_load_explicit(cost, memory_order_relaxed);
    uint64_t now = !old ? ns : (old * (WEIGHT - 1) + ns) / WEIGHT;
    atomic_store_explicit(cost, now ? now : 1, memory_order_relaxed);
}

void fill_saw_zero(struct fill_costs *c, uint64_t ns) { learn(&c->zero_ns, ns); }

void fill_saw_write(struct fill_costs *c, uint64_t bytes, uint64_t ns)
{
    uint64_t fixed = atomic_load_explicit(&c->write_ns, memory_order_relaxed);
    if (bytes <= FILL_SMALL_BYTES)
        learn(&c->write_ns, ns);
    else
        learn(&c->mib_ns, (ns > fixed ? ns - fixed : 1) * (1u << 20) / bytes);
}

struct fill_estimate fill_estimate(const struct fill_costs *c, uint64_t head, uint64_t data, uint64_t tail)
{
    uint64_t zero = atomic_load_explicit(&c->zero_ns, memory_order_relaxed), fixed = atomic_load_explicit(&c->write_ns, memory_order_relaxed);
    uint64_t mib = atomic_load_explicit(&c->mib_ns, memory_order_relaxed);
    uint64_t calls = (head > 0) + (tail > 0), all = head + data + tail;
    return (struct fill_estimate){ .known = zero && mib, .merged_ns = fixed + mib * all / (1u << 20), .split_ns = calls * zero + fixed + mib * data / (1u << 20) };
}

enum fill_way fill_choose(const struct fill_costs *c, uint64_t head, uint64_t data, uint64_t tail, uint64_t turn)
{
    uint64_t area = head + tail;
    if (area <= FILL_SMALL_BYTES)
        return FILL_MERGED;                                      /* I4 */
    struct fill_estimate e = fill_estimate(c, head, data, tail);
    if (!e.known)
        return turn % 2 == (area > ZERO_PAGE_BYTES) ? FILL_MERGED : FILL_SPLIT;       /* both once, the likely one first */
    bool merged = e.merged_ns <= e.split_ns;
    if (turn % PROBE_EVERY == PROBE_EVERY - 1)
        merged = !merged;                                        /* I3 */
    return merged ? FILL_MERGED : FILL_SPLIT;
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

/* Writes head, v, tail as one transfer that ends behind the tail; three transfers when v has too many elements. */
static int write_merged(struct co *co, struct stor *s, const struct fmt_write *w, struct iov v, const struct around *a)
{
    struct iovec vec[FILL_VECS + WRITE_VECS + 4];
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

static int zero_timed(struct co *co, struct graph_node *n, uint64_t off, uint64_t len)
{
    uint64_t begin = rt_now(co_loop(co));
    int r = len ? stor_zero(co, n->im->data, off, len, 0) : 0;
    if (!r && len)
        fill_saw_zero(&n->fill, rt_now(co_loop(co)) - begin);
    return r;
}

static int write_split(struct co *co, struct graph_node *n, const struct fmt_write *w, struct iov v)
{
    int r = zero_timed(co, n, w->host - w->head, w->head);
    uint64_t begin = rt_now(co_loop(co));
    if (!r)
        r = stor_write(co, n->im->data, v, w->host, 0);
    if (!r)
        fill_saw_write(&n->fill, w->len, rt_now(co_loop(co)) - begin);
    return r ? r : zero_timed(co, n, w->host + w->len, w->tail);
}

static int write_zero_filled(struct co *co, struct graph_node *n, const struct fmt_write *w, struct iov v)
{
    static const struct around zeros = { graph_zero_page, graph_zero_page, true };
    uint64_t area = w->head + w->tail, turn = area > FILL_SMALL_BYTES ? atomic_fetch_add_explicit(&n->fill.turns, 1, memory_order_relaxed) : 0;
    if (fill_choose(&n->fill, w->head, w->len, w->tail, turn) == FILL_SPLIT) {
        atomic_fetch_add_explicit(&n->fill.split, 1, memory_order_relaxed);
        return write_split(co, n, w, v);
    }
    atomic_fetch_add_explicit(&n->fill.merged, 1, memory_order_relaxed);
    if (area <= FILL_SMALL_BYTES)
        return write_merged(co, n->im->data, w, v, &zeros);
    uint64_t begin = rt_now(co_loop(co));
    int r = write_merged(co, n->im->data, w, v, &zeros);
    if (!r)
        fill_saw_write(&n->fill, area + w->len, rt_now(co_loop(co)) - begin);
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
    int r = read_around(co, n, w, buf, roomy, lo, hi);
    if (shared)
        *ret_riders = riders = ride_close(n, &d);
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
    if (w->fill == FMT_FILL_NONE || !(w->head | w->tail))
        return stor_write(co, n->im->data, v, w->host, 0);
    return w->fill == FMT_FILL_ZERO ? write_zero_filled(co, n, w, v) : write_copied(co, n, w, v, ret_riders);
}
