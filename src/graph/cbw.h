/* SPDX-License-Identifier: MIT
 *
 * cbw.h: a disk as it was at one moment, while it is written: the filter copy-before-write (FEATURES 3.060, 9.070) and what looks into the
 * snapshot that it keeps (3.061, 9.071).
 *
 * In front of every change the filter copies what is there to its target, unless that is there already. Somebody who copies beside it claims what he
 * has read before he writes it.
 *
 *   cbw.c              the state, locks of ranges, claims, the filter as a row of filters.c
 *   cbw_copy.c         what a guest's change does first
 *   cbw_view.c         reads and discards of the snapshot, and the node snapshot-access
 *
 * Invariants
 *   B1  A granule is `todo` until its old content is on the target, whole; it is copied, and read from the source for the snapshot, under a
 *       lock of it. A change of the source begins when what it touches is not todo, or nobody wants the snapshot any more.
 *   B2  So who finds a granule todo under its lock knows that what he has read of it before, without one, is old.
 *   B3  Who holds a lock, or waits for one, waits for no gate: he is inside that of the filter, or of the target.
 *   B4  No change waits longer than `timeout_ns` for the target (0: it may), nor after cbw_stop.
 *   B5  When a change went on though its old content was not copied, the snapshot is broken before it, and for good.
 *   B6  A target may lie over the source itself (fleecing, FEATURES 9.069): then what shows the snapshot lies between the two, so that who
 *       reads the target sees what was there, whatever of it is copied already. Such a snapshot has the whole disk.
 * Order       None: who promises that the target is durable flushes it (J4).
 * Concurrency Requests on any loop. The rest on the home loop.
 */
#ifndef GRAPH_CBW_H
#define GRAPH_CBW_H

#include "base/dirty.h"
#include "graph/graph.h"
#include "rt/epoch.h"
#include "rt/sync.h"

struct cbw;
#define CBW_GRANULE_MIN (UINT64_C(64) << 10)
#define CBW_GRANULE_MAX (UINT64_C(64) << 20)

enum cbw_on_error { CBW_BREAK_GUEST_WRITE, CBW_BREAK_SNAPSHOT };
struct cbw_opts {
    struct graph_node *source, *target;     /* the target is not shorter */
    const struct dirty *only;               /* the snapshot has these parts only; NULL: all. Not kept */
    uint64_t min_granule;                   /* 0, or a power of two */
    enum cbw_on_error on_error;
    uint64_t timeout_ns;
    bool compress;
    bool zeros_too;                         /* zeros are written though the target reads zero: something may come to lie below it */
    bool of_job;                            /* a job inserts it, and takes it out when it ends */
    struct graph_node *over;                /* B6: the target's image, which lies over the source; NULL: it does not, and must not */
    const char *node_name;
};
/* A filter, with one reference, that filters `below`: the source, or NULL: it is to be inserted above the source. */
MUST_USE int graph_cbw_new(struct co *co, const struct cbw_opts *o, struct graph_node *below, struct graph_node **ret_n, struct byre_err *err);
/* NULL: n is none. */
struct cbw *graph_cbw(const struct graph_node *n);
/* How large a granule is for this target. */
uint64_t cbw_granule_for(const struct graph_node *target, uint64_t min_granule);
uint64_t cbw_granule(const struct cbw *cb);

/* The next range that is todo, from `from` on. Any loop. false: there is none. */
bool cbw_next(const struct cbw *cb, uint64_t from, uint64_t *ret_start, uint64_t *ret_end);
uint64_t cbw_left(const struct cbw *cb);                     /* bytes that are todo, at most the size */
const struct dirty *cbw_todo(const struct cbw *cb);
int cbw_broken(const struct cbw *cb);                        /* 0, or why the snapshot is broken */
bool cbw_broken_by_source(const struct cbw *cb);             /* the old content could not be read */
/* Changes wait for nothing any more, and nothing is copied before them. */
void cbw_stop(struct cbw *cb);

/* Between the two nobody else copies what lies in the range, nor changes what is todo of it; requests to the target with an `inner`
 * attachment (runtime.h), on any loop, wait for no gate. Whoever drains the source does not wait for the end of the claim. -ECANCELED: after
 * cbw_stop; or why the snapshot is broken. Home; suspends. */
struct cbw_claim { struct cbw *cb; struct co_range range; epoch_token tok; };
MUST_USE int cbw_claim(struct co *co, struct cbw *cb, struct cbw_claim *c, uint64_t off, uint64_t len);
/* copied: all that was todo is on the target now. Home. */
void cbw_claim_end(struct cbw_claim *c, bool copied);

/* B6: the image of `target` when it lies right over `source`; NULL. */
struct graph_node *cbw_over(struct graph_node *target, const struct graph_node *source);
/* `over` lies over what the filter f filters again (NULL: over `source`), which changes from now on as it likes. Home; suspends. */
void graph_cbw_let_over(struct co *co, struct graph_node *f, struct graph_node *over, struct graph_node *source);

/* One more user of the state, which may outlive the node. Any loop. */
void cbw_ref(struct cbw *cb);
void cbw_unref(struct cbw *cb);

/* Does n show the snapshot of such a filter? Then a discard of it says that a part is not wanted any more, and nothing is kept for it. */
bool graph_is_snapshot_access(const struct graph_node *n);

#endif
