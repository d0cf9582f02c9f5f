/* SPDX-License-Identifier: MIT
 *
 * stats_priv.h: counting, on the way of every request. Private to graph/.
 *
 * Invariants   C1 to C3 of stats.h.
 * Concurrency  As stats.h: a slot is written by its own loop, and read by any.
 */
#ifndef GRAPH_STATS_PRIV_H
#define GRAPH_STATS_PRIV_H

#include "graph/graph_priv.h"
#include "graph/runtime.h"
#include "graph/stats.h"
#include "rt/loop.h"

struct stats_op { _Atomic uint64_t bytes, done, failed, invalid, time_ns; };
#define STATS_MARKS 8u
/* How much had been changed at a moment. ns 0: none yet. */
struct stats_mark { _Atomic uint64_t ns, changed; };
struct stats_slot {
    _Alignas(64) struct stats_op of[GRAPH_STATS_OPS];
    _Atomic uint64_t highest_write, last_ns;
    _Atomic uint64_t changed;            /* what changes cost: bytes of data; zeros and discards as below */
    uint64_t next_mark_ns; unsigned marks;                   /* of the slot's loop alone */
    struct stats_mark mark[STATS_MARKS];
};
struct stats_histogram;
struct stats_recent;
enum { STATS_HISTOGRAM = 1, STATS_RECENT = 2, STATS_FAILED = 4 };      /* what else is to be done when a request ends */
struct node_stats {
    unsigned loops;
    _Atomic unsigned closer;             /* STATS_*; the first two by C3 */
    struct stats_histogram *histogram[GRAPH_STATS_OPS];      /* C3. NULL: none */
    struct stats_recent *recent;         /* C3. NULL: none */
    _Atomic int failed[GRAPH_STATS_OPS]; /* error of the last request; 0: it succeeded */
    struct graph_node *node;
    struct rt_msg failed_msg;
    atomic_bool failed_posted;           /* the message is on its way, and what it says is not to be changed */
    struct graph_io_error told;
    _Atomic uint64_t told_ns;            /* when it was posted last; 0: never */
    struct stats_slot slot[];
};

MUST_USE int stats_new(struct graph_node *n, struct rt_loop *home);      /* makes n->stats */
void stats_free(struct node_stats *s);
/* Nobody is inside any more: until it is not told of any more. Suspends. */
void stats_quiet(struct co *co, struct graph_node *n);

/* C1 */
static inline void stats_add(_Atomic uint64_t *to, uint64_t v)
{
    atomic_store_explicit(to, atomic_load_explicit(to, memory_order_relaxed) + v, memory_order_relaxed);
}

#define STATS_BLANK_MOST UINT64_C(65536)        /* a change without data costs no more than so many bytes of data */
struct stats_done { enum graph_stats_op op; uint64_t off, len; uint64_t begun; bool blank; };      /* blank: zeros, or a discard */
/* What does not lie on the way of most: failures, histograms, intervals. */
void stats_failed(struct graph_node *n, struct rt_loop *loop, const struct stats_done *d, int error);
void stats_closer(struct node_stats *s, unsigned loop, const struct stats_done *d, uint64_t now);

/* recent.c: once a second of a slot that is used, before what is counted then. */
void stats_mark(struct stats_slot *slot, uint64_t now);

static inline void stats_count(struct node_stats *s, unsigned index, const struct stats_done *d, uint64_t now)
{
    struct stats_slot *slot = &s->slot[index];
    struct stats_op *o = &slot->of[d->op];
    if (UNLIKELY(now >= slot->next_mark_ns))
        stats_mark(slot, now);
    stats_add(&o->bytes, d->len);
    stats_add(&o->done, 1);
    stats_add(&o->time_ns, now - d->begun);
    atomic_store_explicit(&slot->last_ns, now, memory_order_relaxed);
    if (d->op == GRAPH_STATS_WRITE || d->op == GRAPH_STATS_DISCARD)
        stats_add(&slot->changed, d->blank ? min_u64(d->len, STATS_BLANK_MOST) : d->len);
    if (d->op == GRAPH_STATS_WRITE && d->off + d->len > atomic_load_explicit(&slot->highest_write, memory_order_relaxed))
        atomic_store_explicit(&slot->highest_write, d->off + d->len, memory_order_relaxed);
    if (UNLIKELY(atomic_load_explicit(&s->closer, memory_order_relaxed)))
        stats_closer(s, index, d, now);
}

static inline uint64_t stats_begin(struct co *co)
{
    return rt_turn(co_loop(co));
}

/* Inside the section of n's gate, when the request has ended with r. */
static inline void stats_end(struct co *co, struct graph_node *n, const struct stats_done *d, int r)
{
    struct rt_loop *loop = co_loop(co);
    if (UNLIKELY(r < 0)) {
        stats_failed(n, loop, d, r);
        return;
    }
    uint64_t now = rt_turn(loop);
    unsigned index = rt_loop_index(loop);
    stats_count(n->stats, index, d, now);
    if (n->flt) {
        n = graph_skip_filters(n);
        if (n)
            stats_count(n->stats, index, d, now);
    }
}

/* recent.c: by C3 */
void stats_count_recent(const struct node_stats *s, unsigned loop, const struct stats_done *d, uint64_t now);

#endif
