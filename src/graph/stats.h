/* SPDX-License-Identifier: MIT
 *
 * stats.h: what has been asked of a node, how long it took (FEATURES 9.095 to 9.097), and what failed.
 *
 * Counted are the requests that users make (graph_read, graph_write, ...): at the node that they name, and, where that is an attachment or a
 * filter, at the image below too. So an export's attachment has the numbers of the export, and an image those of all its users.
 *
 * Invariants
 *   C1  A slot belongs to one loop, which alone writes to it: counting takes no locked instruction and shares no cache line.
 *   C2  Times are those of the loop's turns (rt_turn): a request costs no look at the clock of its own. What ends in the turn in which it began
 *       took no time.
 *   C3  Histograms and intervals change while the node is drained: inside a section of a gate at or above n they stay what they are.
 * Concurrency  Counting on any loop; sums on any loop, each number by itself; changes on the home loop.
 */
#ifndef GRAPH_STATS_H
#define GRAPH_STATS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "rt/co.h"

struct graph;
struct graph_node;

enum graph_stats_op { GRAPH_STATS_READ, GRAPH_STATS_WRITE, GRAPH_STATS_DISCARD, GRAPH_STATS_FLUSH, GRAPH_STATS_OPS };   /* zeros are writes */

struct graph_op_stats {
    uint64_t bytes, done, failed;         /* done: that succeeded */
    uint64_t invalid;                     /* refused: out of range, or a change of what is read-only */
    uint64_t time_ns;                     /* of all but the invalid ones */
};
struct graph_stats {
    struct graph_op_stats of[GRAPH_STATS_OPS];
    uint64_t highest_write;               /* end of the write that went farthest; 0: none */
    bool was_used; uint64_t idle_ns;      /* since the last request ended */
};
/* Any loop. */
void graph_stats_get(const struct graph_node *n, uint64_t now_ns, struct graph_stats *ret);

/* How many requests took how long: bins[i] those of at least limits[i - 1] and less than limits[i] ns. */
struct graph_histogram { uint64_t *limits, *bins; unsigned limit_count; };      /* limit_count + 1 bins */
/* From now on, from zero; count 0: none is kept. Limits rise strictly, and the first is not 0. Home loop; drains. */
struct graph_limits { const uint64_t *ns; unsigned count; };
MUST_USE int graph_histogram_set(struct co *co, struct graph_node *n, enum graph_stats_op op, const struct graph_limits *l, struct byre_err *err);
/* Home loop. limit_count 0: there is none. The caller frees ret->limits and ret->bins. */
MUST_USE int graph_histogram_get(const struct graph_node *n, enum graph_stats_op op, struct graph_histogram *ret);

/* ---- the last few seconds (FEATURES 9.096) ---- */

#define GRAPH_INTERVALS_MAX 8u
struct graph_recent { uint64_t count, min_ns, max_ns, sum_ns; };      /* of requests that ended then, failed ones as well; without any: zeros */
struct graph_interval { uint64_t length_s, span_ns; struct graph_recent of[GRAPH_STATS_OPS]; };
/* Over the last so many seconds each, from now on; count 0: over none. Home loop; drains. */
struct graph_intervals { const uint64_t *seconds; unsigned count; };
MUST_USE int graph_intervals_set(struct co *co, struct graph_node *n, const struct graph_intervals *v, struct byre_err *err);
/* Number `i` of them. span_ns: how much time it tells of: its length, and up to a tenth more. false: there is none. Home loop. */
bool graph_interval_get(const struct graph_node *n, unsigned i, uint64_t now_ns, struct graph_interval *ret);

/* Bytes that were written at n, or at the image below when n is a filter, in the last seconds: eight at most, and no longer than it has been in
 * use. Zeros and discards count for 64 KiB at most each. span_ns: how long; false: less than a second, nothing can be said. Any loop. */
struct graph_changes { uint64_t bytes, span_ns; };
bool graph_changes_get(struct graph_node *n, uint64_t now_ns, struct graph_changes *ret);

/* ---- failures (FEATURES 8.024, 8.025, 9.101) ---- */

/* 0, or the error of the last request of one of the kinds, when that failed; -ENOSPC before others. Any loop. */
int graph_io_status(const struct graph_node *n);
/* A request at n failed, one that was allowed. It is told once a second of each node, on the home loop; must not suspend. fn NULL: nobody. */
struct graph_io_error { enum graph_stats_op op; int error; uint64_t begun_ns; };
typedef void graph_io_error_fn(void *arg, struct graph_node *n, const struct graph_io_error *e);
void graph_watch_io_errors(struct graph *g, graph_io_error_fn *fn, void *arg);

#endif
