/* SPDX-License-Identifier: MIT
 *
 * stats.c: what has been asked of nodes.
 *
 * Purpose     Sums, failures, histograms of latency. The last few seconds: recent.c.
 * Owns        struct node_stats of each node, and its histograms.
 * Invariants  C1 to C3 of stats.h. Further: C4  A message of a failure is under way at most once, and the node stays until it has arrived.
 * Order       None.
 * Concurrency As stats.h.
 * Failure     A histogram that could not be made leaves the old one as it was.
 * Tests       tests/cli/stats_test.py, tests/daemon/events_test.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "graph/stats_priv.h"

struct stats_histogram {
    unsigned limits, stride;             /* stride: of a loop's bins, so that no two loops share a cache line */
    uint64_t *limit;                     /* behind the bins */
    _Atomic uint64_t bins[];
};

static void failure_arrived(struct rt_msg *m);
static void count_histogram(struct node_stats *s, unsigned loop, enum graph_stats_op op, uint64_t ns);

int stats_new(struct graph_node *n, struct rt_loop *home)
{
    unsigned loops = rt_loop_slots(rt_of(home));
    void *p;
    if (posix_memalign(&p, 64, sizeof(struct node_stats) + 64 + loops * sizeof(struct stats_slot)))
        return -ENOMEM;
    memset(p, 0, sizeof(struct node_stats) + 64 + loops * sizeof(struct stats_slot));
    struct node_stats *s = p;
    s->loops = loops;
    s->node = n;
    s->failed_msg.fn = failure_arrived;
    n->stats = s;
    return 0;
}

void stats_free(struct node_stats *s)
{
    for (unsigned i = 0; s && i < GRAPH_STATS_OPS; i++)
        free(s->histogram[i]);
    if (s)
        free(s->recent);
    free(s);
}

/* ---- failures ---- */

#define TELL_NS UINT64_C(1000000000)

static void failure_arrived(struct rt_msg *m)
{
    struct node_stats *s = CONTAINER_OF(m, struct node_stats, failed_msg);
    const struct graph_io_error e = s->told;
    struct graph *g = s->node->g;
    atomic_store(&s->failed_posted, false);
    if (g->io_error_fn)
        g->io_error_fn(g->io_error_arg, s->node, &e);
}

void stats_quiet(struct co *co, struct graph_node *n)
{
    while (atomic_load(&n->stats->failed_posted))
        co_yield(co);
}

static void tell_failure(struct node_stats *s, const struct graph_io_error *e, uint64_t now)
{
    uint64_t last = atomic_load(&s->told_ns);
    if ((last && now < last + TELL_NS) || atomic_exchange(&s->failed_posted, true))
        return;
    atomic_store(&s->told_ns, now);
    s->told = *e;
    rt_post(s->node->g->home, &s->failed_msg);
}

static void note_failure(struct node_stats *s, const struct stats_done *d, int error, uint64_t now)
{
    atomic_store(&s->failed[d->op], error);
    atomic_fetch_or(&s->closer, STATS_FAILED);
    tell_failure(s, &(struct graph_io_error){ d->op, error, d->begun }, now);
}

/* One has succeeded. */
static void forget_failure(struct node_stats *s, enum graph_stats_op op)
{
    atomic_store(&s->failed[op], 0);
    atomic_fetch_and(&s->closer, ~(unsigned)STATS_FAILED);
    for (unsigned i = 0; i < GRAPH_STATS_OPS; i++)
        if (atomic_load(&s->failed[i]))
            atomic_fetch_or(&s->closer, STATS_FAILED);   /* behind the other: one that fails meanwhile does the same */
}

int graph_io_status(const struct graph_node *n)
{
    int status = 0;
    for (unsigned i = 0; i < GRAPH_STATS_OPS; i++) {
        int error = atomic_load(&n->stats->failed[i]);
        status = error == -ENOSPC || !status ? (error ? error : status) : status;
    }
    return status;
}

void graph_watch_io_errors(struct graph *g, graph_io_error_fn *fn, void *arg)
{
    ASSERT_LOOP(g->home);
    g->io_error_fn = fn;
    g->io_error_arg = arg;
}

/* error 0: it was invalid */
static void count_failure(struct graph_node *n, unsigned index, const struct stats_done *d, int error, uint64_t now)
{
    struct stats_slot *slot = &n->stats->slot[index];
    stats_add(error ? &slot->of[d->op].failed : &slot->of[d->op].invalid, 1);
    if (error) {
        stats_add(&slot->of[d->op].time_ns, now - d->begun);
        note_failure(n->stats, d, error, now);
        stats_count_recent(n->stats, index, d, now);
    }
    atomic_store_explicit(&slot->last_ns, now, memory_order_relaxed);
}

void stats_failed(struct graph_node *n, struct rt_loop *loop, const struct stats_done *d, int error)
{
    uint64_t size = n->im ? graph_length(n) : 0;
    bool silent = tray_is_silent(n);
    bool change = d->op == GRAPH_STATS_WRITE || d->op == GRAPH_STATS_DISCARD;
    bool invalid = d->off > size || d->len > size - d->off || (change && n->read_only) || error == -EINVAL || silent;
    uint64_t now = rt_turn(loop);
    unsigned index = rt_loop_index(loop);
    count_failure(n, index, d, invalid ? 0 : error, now);
    if (!n->flt || silent)                       /* nobody below was asked */
        return;
    n = graph_skip_filters(n);
    if (n)
        count_failure(n, index, d, invalid ? 0 : error, now);
}

void stats_closer(struct node_stats *s, unsigned loop, const struct stats_done *d, uint64_t now)
{
    if (atomic_load(&s->failed[d->op]))
        forget_failure(s, d->op);
    count_histogram(s, loop, d->op, now - d->begun);
    stats_count_recent(s, loop, d, now);
}

static uint64_t get(const _Atomic uint64_t *v) { return atomic_load_explicit((_Atomic uint64_t *)(uintptr_t)v, memory_order_relaxed); }

void graph_stats_get(const struct graph_node *n, uint64_t now_ns, struct graph_stats *ret)
{
    uint64_t last = 0;
    *ret = (struct graph_stats){ 0 };
    for (unsigned i = 0; i < n->stats->loops; i++) {
        const struct stats_slot *slot = &n->stats->slot[i];
        for (unsigned op = 0; op < GRAPH_STATS_OPS; op++) {
            const struct stats_op *o = &slot->of[op];
            struct graph_op_stats *r = &ret->of[op];
            r->bytes += get(&o->bytes);
            r->done += get(&o->done);
            r->failed += get(&o->failed);
            r->invalid += get(&o->invalid);
            r->time_ns += get(&o->time_ns);
        }
        ret->highest_write = max_u64(ret->highest_write, get(&slot->highest_write));
        last = max_u64(last, get(&slot->last_ns));
    }
    ret->was_used = last != 0;
    ret->idle_ns = last && now_ns > last ? now_ns - last : 0;
}

/* ---- histograms ---- */

static void count_histogram(struct node_stats *s, unsigned loop, enum graph_stats_op op, uint64_t ns)
{
    struct stats_histogram *h = s->histogram[op];
    if (!h)
        return;
    unsigned low = 0, high = h->limits;          /* the first limit above ns */
    while (low < high) {
        unsigned mid = low + (high - low) / 2;
        if (h->limit[mid] > ns)
            high = mid;
        else
            low = mid + 1;
    }
    stats_add(&h->bins[(size_t)loop * h->stride + low], 1);
}

static struct stats_histogram *histogram_new(const struct graph_limits *l, unsigned loops)
{
    unsigned stride = (unsigned)round_up(l->count + 1, 8) + 8;
    size_t bins = (size_t)stride * loops;
    struct stats_histogram *h = calloc(1, sizeof *h + (bins + l->count) * sizeof(uint64_t));
    if (!h)
        return NULL;
    h->limits = l->count;
    h->stride = stride;
    h->limit = (uint64_t *)(void *)(h->bins + bins);
    memcpy(h->limit, l->ns, l->count * sizeof *l->ns);
    return h;
}

int graph_histogram_set(struct co *co, struct graph_node *n, enum graph_stats_op op, const struct graph_limits *l, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    for (unsigned i = 0; i < l->count; i++)
        if (l->ns[i] <= (i ? l->ns[i - 1] : 0))
            return byre_fail(err, BAD_ARGUMENT, "boundaries of a histogram rise strictly, and the first is not 0; number %u is %" PRIu64, i + 1, l->ns[i]);
    struct stats_histogram *h = l->count ? histogram_new(l, n->stats->loops) : NULL;
    if (l->count && !h)
        return byre_fail(err, NOMEM, "no memory for a histogram");
    graph_shut_begin(co, n);                    /* C3 */
    struct node_stats *s = n->stats;
    free(s->histogram[op]);
    s->histogram[op] = h;
    atomic_fetch_and(&s->closer, ~(unsigned)STATS_HISTOGRAM);
    for (unsigned i = 0; i < GRAPH_STATS_OPS; i++)
        if (s->histogram[i])
            atomic_fetch_or(&s->closer, STATS_HISTOGRAM);
    graph_shut_end(n);
    return 0;
}

int graph_histogram_get(const struct graph_node *n, enum graph_stats_op op, struct graph_histogram *ret)
{
    const struct stats_histogram *h = n->stats->histogram[op];
    *ret = (struct graph_histogram){ 0 };
    if (!h)
        return 0;
    uint64_t *limits = malloc(h->limits * sizeof *limits), *bins = calloc(h->limits + 1, sizeof *bins);
    if (!limits || !bins) {
        free(limits);
        free(bins);
        return -ENOMEM;
    }
    memcpy(limits, h->limit, h->limits * sizeof *limits);
    for (unsigned loop = 0; loop < n->stats->loops; loop++)
        for (unsigned i = 0; i <= h->limits; i++)
            bins[i] += get(&h->bins[(size_t)loop * h->stride + i]);
    *ret = (struct graph_histogram){ limits, bins, h->limits };
    return 0;
}
