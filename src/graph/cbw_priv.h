/* SPDX-License-Identifier: MIT
 *
 * cbw_priv.h: the inside of cbw.c, cbw_copy.c and cbw_view.c.
 */
#ifndef GRAPH_CBW_PRIV_H
#define GRAPH_CBW_PRIV_H

#include "graph/cbw.h"
#include "graph/filters.h"

#define CBW_STEP (UINT64_C(1) << 20)         /* copied, read and locked at once, unless a granule is larger */

struct cbw {
    /* constant */
    struct graph_node *node, *target;        /* the filter; its side. Valid while the filter is there (cbw_claim holds it), or a section of the target's gate is open */
    struct rt_loop *home;
    uint64_t size, granule, timeout_ns;
    enum cbw_on_error on_error;
    bool compress, zeros_too;
    /* any loop */
    struct dirty *todo, *access;             /* not copied yet; what the snapshot has */
    _Atomic unsigned refs;
    _Atomic int broken;
    _Atomic bool broken_by_source, stop;
    /* home */
    struct co_range_locks busy;
    struct co_waitq moved;                   /* a lock or memory is free */
    uint64_t bytes;                          /* memory of copies under way */
};

/* A lock of whole granules and memory for their copy. Given back by the last who has it, on any one loop. */
struct cbw_hold {
    struct cbw *cb;
    struct co_range range;
    uint64_t until, bytes;
    bool reads;                              /* for the snapshot: it is not given up because of cbw_stop */
    unsigned refs;
    struct rt_msg msg;
};
/* NULL: *ret_error says why (-ETIMEDOUT, -ECANCELED, -ENOMEM). Any loop; suspends. */
struct cbw_hold *cbw_hold_take(struct co *co, struct cbw *cb, const struct cbw_hold *what, int *ret_error);
void cbw_hold_put(struct cbw_hold *h);
#define CBW_SLICE_NS UINT64_C(10000000)          /* who waits looks this often whether he still may */

/* cbw_copy.c: in front of a change of [off, off + len). 0: it may go on. */
MUST_USE int cbw_before(struct co *co, struct graph_node *n, uint64_t off, uint64_t len);

/* cbw_view.c: a node that shows the snapshot of the filter f below an image (B6). */
MUST_USE int cbw_view_below(struct co *co, struct graph_node *f, struct graph_node **ret_n, struct byre_err *err);

static inline bool cbw_is_off(struct cbw *cb) { return atomic_load(&cb->stop) || atomic_load(&cb->broken); }

#endif
