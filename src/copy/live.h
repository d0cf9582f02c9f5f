/* SPDX-License-Identifier: MIT
 *
 * live.h: the copy engine over a disk that goes on being written (mirror, active commit).
 *
 * The source's changes are watched from the start. What is dirty is copied in pieces, as often as it becomes dirty; in blocking mode a
 * change of what is clean goes to the target at once, and the guest's request ends when both sides have it.
 *
 * Invariants
 *   L1  Nothing stale lands on the target after newer data: a piece is copied, and a change is carried over, under a lock of its
 *       range; a change without that lock makes its range dirty after it has ended.
 *   L2  A granule that is not dirty, in no piece and in no change that is under way, is on the target as it is in the source, whatever failed.
 *   L3  What a change touches in part of a dirty granule stays dirty.
 *   L4  Memory: buf_bytes for pieces and for changes that are carried over together, or 1 MiB if that is more; the bitmap beside it.
 *   L5  No request of the guest waits for the target longer than hold_ns (0: it may), nor longer than patience_ns (0: it may) while anybody waits for
 *       requests to end, nor after copy_live_stop; what it would have waited for is dirty then.
 *   L6  part: a granule is written as a whole before parts of it are: what the target fills it up with would hide what comes to lie below.
 * Order        Nothing is flushed here: the owner does, when the copy is clean.
 * Concurrency  Home loop of the source's graph, the owner's; pieces on all loops, changes on their requests' loops.
 * Failure      The first error of a piece or a change stands until the owner has taken it (copy_live_retry); no piece is begun meanwhile,
 *              and what it was about is dirty.
 */
#ifndef COPY_LIVE_H
#define COPY_LIVE_H

#include <stdatomic.h>

#include "copy/copy.h"
#include "rt/sync.h"

struct copy_live;
struct dirty;

struct copy_live_opts {
    struct graph_node *source, *target;     /* same length, or a longer target; each gets a reference of its own */
    struct graph_node *above;               /* only what layers above this one hold is copied. NULL: all that can be read */
    unsigned granularity_bits;
    uint64_t buf_bytes;                     /* 0: 16 MiB */
    uint64_t rate;                          /* of pieces, bytes per second; 0: no limit */
    uint64_t min_sparse;                    /* as struct copy_job */
    uint64_t hold_ns, patience_ns;          /* L5; patience_ns also: a change of the length waits so long for what is under way, and is refused then */
    bool keep_space;                        /* zeros take their place on the target */
    bool copy_range;                        /* let the kernel copy pieces where the source is raw and both sides are plain parts of files */
    bool part;                              /* of what the target does not hold itself it is not known how it will read: zeros are written, and granules, which
                                             * are no smaller than what it allocates, as a whole (L6), with what lies below `above` */
    /* Gives the target this length, if it has another: the source is about to grow, or has shrunk. Home loop. NULL: the source keeps its length. */
    int (*resize)(struct co *co, void *arg, uint64_t size, struct byre_err *err);
    /* Before edges are held for a change of the source's length: can the target follow? Home loop; while nothing of what is under way ends, for patience_ns,
     * it is not asked. NULL: nobody is. */
    int (*resize_ahead)(struct co *co, void *arg, struct byre_err *err);
    bool blocking;
    const atomic_bool *cancelled;           /* true: no change waits for the target any more, as after copy_live_stop; it may be a drain that keeps the owner
                                             * from calling that. Valid until that has returned. NULL: never */
    void (*wake)(void *arg);                /* home loop: there is an error, or (copy_live_await) it may be clean. Must not suspend */
    void *arg;
    struct copy_latency *latency;           /* latency.h: gets a reference of its own */
    struct co_group *alive;                 /* left when everything has ended and is freed, which may be long after copy_live_stop */
};

/* From here on every change of the source is followed. Suspends. */
MUST_USE int copy_live_start(struct co *co, const struct copy_live_opts *o, struct copy_live **ret_l, struct byre_err *err);
/* Ends it. What waits for the target goes on without it; requests that are with a store still end by themselves. l is gone. Suspends until no
 * request of the guest is inside. */
void copy_live_stop(struct co *co, struct copy_live *l);

/* Marks what has to be copied of [off, off + len): what the source has and the target does not read the same without.
 * *ret_len: how far it came. Suspends. */
MUST_USE int copy_live_scan(struct co *co, struct copy_live *l, uint64_t off, uint64_t len, uint64_t *ret_len);
void copy_live_mark(struct copy_live *l, uint64_t off, uint64_t len);
/* Adds to d what is not, or may not be, on the target as it is in the source. */
void copy_live_left(const struct copy_live *l, struct dirty *d);

void copy_live_await(struct copy_live *l, bool on);         /* the owner wants to know when it is clean */
void copy_live_pause(struct copy_live *l, bool on);         /* no new piece, and changes are not carried over */
void copy_live_hold_pieces(struct copy_live *l, bool on);   /* no new piece */
void copy_live_set_rate(struct copy_live *l, uint64_t rate);
void copy_live_set_blocking(struct copy_live *l, bool on);
bool copy_live_is_blocking(const struct copy_live *l);
void copy_live_set_brake(struct copy_live *l, uint64_t guest_rate);     /* bytes per second that the guest may change; 0: no limit */

struct copy_live_state {
    bool calm;                              /* nothing dirty, no piece under way: at most changes that are going to both sides, of which there
                                             * may be some at every moment while guests write */
    bool clean;                             /* calm, and no change under way: lasts only while the source is drained */
    uint64_t dirty, in_flight, copied;      /* bytes: dirty, in pieces, copied in all */
    uint64_t carried;                       /* changes that went to both sides, bytes */
    uint64_t guest;                         /* bytes changed by the guest since the start */
    uint64_t longest_hold_ns;               /* that a request has waited here, since the last call */
    int error; bool error_read; uint64_t error_off;
    bool over;                              /* the copy itself has ended with `error` (no memory, or copy_live_lose): trying again is of no use */
};
void copy_live_look(struct copy_live *l, struct copy_live_state *ret);
/* Nothing is known of the target any more: the copy fails with this, whatever the owner would do about an error. */
void copy_live_lose(struct copy_live *l, int error);
/* The error is forgotten; what failed is tried again. */
void copy_live_retry(struct copy_live *l);

#endif
