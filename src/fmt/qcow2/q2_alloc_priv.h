/* SPDX-License-Identifier: MIT
 *
 * q2_alloc_priv.h: what q2_alloc.c, q2_frontier.c and q2_drop.c share.
 *
 * Concurrency  Home loop. mx, grow_mx and pack.mx, and what they keep apart: docs/internals/concurrency.md.
 */
#ifndef Q2_ALLOC_PRIV_H
#define Q2_ALLOC_PRIV_H

#include "base/mutant.h"
#include "base/list.h"
#include "fmt/qcow2/q2_image.h"
#include "fmt/qcow2/q2_marks.h"
#include "fmt/qcow2/q2_prove.h"

#define Q2_DROP_SPARE 32u
/* Tags of `ready`; 0: only the count on the disk says that it is free. */
#define Q2_READY_ZERO 1u                 /* proved free, and zeroed ahead (q2_ahead.c) */
#define Q2_READY_PROVED 2u               /* free by what this opening itself did or saw (I8 of q2_alloc.c) */
#define Q2_READY_HOLE 3u                 /* as 0, and a hole of the file: it reads zero (A6 of q2_ahead.c) */

/* Every cluster below `end` is in exactly one of these states (I1 of q2_alloc.c):
 *   used       counted, something points to it or a caller holds it; the cluster that q2_pack.c fills is counted once more
 *              than something points to it
 *   frontier   counted, nothing points there; tag 1: known to read as zeros. Below settled_to: durable in count and length
 *   counted    counted, nothing points there, content unknown (returned by an aborted write)
 *   ready      count 0, may be taken; the tag says how far that can be relied on, and whether it was zeroed ahead (q2_ahead.c)
 *   dropped    counted, unlinked in memory: waits in q2_drop.c (quarantine)
 *   unseen     count 0, not yet found by the scan: only ever missed, never handed out */
struct q2_alloc {
    struct co_mutex mx;              /* over take, scan and the last step of a drop: they suspend in the middle */
    struct rset frontier, counted, ready;
    uint64_t end;                    /* clusters from here on have never been used or reserved */
    uint64_t zero_from;              /* clusters at or behind this read as zeros when first taken from the frontier */
    uint64_t scan_next, scan_end;    /* clusters whose counts were not looked at yet */
    bool scan_forgets;               /* what it finds may be cached: tables that were dropped while counts were in memory (q2_unclean.c U4) */
    uint64_t ahead_bytes;            /* of the last zeroing ahead (q2_ahead.c) */
    bool ahead_fails;                /* none is tried any more */
    uint64_t data_from, data_to;     /* host bytes that are no hole (q2_ahead.c) */
    struct q2_proof proof;           /* q2_prove.c */
    bool proved;                     /* a scrub has found every count right (I8 of q2_alloc.c): what the scan finds is free */
    uint64_t hint;                   /* where the next search of `ready` starts */
    uint64_t low_end;                /* what lies in front of it is taken first (q2_compact.c); 0: as it comes */
    /* growth (q2_frontier.c) */
    struct co_mutex grow_mx;
    uint64_t settled_to;             /* clusters of the frontier below this are durable in count and length (F1 of q2_frontier.c) */
    struct { uint64_t end, pass; } unsettled[4];     /* growths behind that, oldest first: settled when the pass has ended well */
    unsigned unsettled_count;
    bool growing_behind;             /* a background growth runs */
    bool halted;                     /* none is started (q2_alloc_halt_begin) */
    int grow_error;                  /* of the last growth */
    uint64_t step_max;               /* clusters; shrinks when space is short */
    /* the host bytes [pos, end) for compressed clusters (q2_pack.c). Clusters from that of pos on are counted for this */
    struct q2_pack {
        struct co_mutex mx;
        uint64_t pos, end;
        uint64_t pieces;             /* that lie in the cluster of pos, in front of it */
    } pack;
    /* quarantine (q2_drop.c) */
    struct rset dropping;            /* unlinked since the last freeze */
    struct q2_drop_extra { uint64_t cluster, count; } *extra;   /* further references of clusters in `dropping` */
    size_t extra_count, extra_cap;
    struct q2_drop_spare { uint64_t cluster, n; uint32_t tag; } spare[Q2_DROP_SPARE];  /* the same as dropping, where there was no memory */
    unsigned spare_count;
    uint64_t quarantined;            /* clusters on their way */
    struct list batches;             /* every batch that is on its way, the oldest first */
    struct list kept;                /* batches that are tried again: memory or storage failed */
    uint64_t kept_ranges;            /* bounds them */
    bool retrying;
    uint64_t batch_number;           /* of the newest */
    struct co_group drops;           /* releases that run */
    uint64_t lost;                   /* clusters leaked: counted, and nobody will lower that */
    uint64_t missed;                 /* free clusters that are not in `ready` for want of memory: of no use in this opening */
    struct co_waitq freed;           /* something became ready */
    bool closing;
    /* clusters that an earlier run may have left counted (q2_reclaim.c) */
    struct reclaim *reclaim;         /* NULL: none runs */
    uint64_t reclaim_start, reclaim_end;
    struct q2_marks given;           /* clusters handed out in this opening: not for a scrub to judge */
    bool reclaim_unfinished;         /* failed or cut short: the record stays for the next opening */
};

/* q2_frontier.c: makes the frontier longer by at least `want` contiguous clusters. -ENOSPC, -EFBIG. Suspends. */
MUST_USE int q2_frontier_grow(struct co *co, struct q2_image *q, uint64_t want);
/* Is the cluster in front of `end` settled? */
bool q2_frontier_settled(struct q2_image *q, uint64_t end);
/* Makes all of the frontier settled: counts and a barrier. Suspends. */
MUST_USE int q2_frontier_settle(struct co *co, struct q2_image *q);
/* Starts a growth in the background when the frontier runs low. */
void q2_frontier_watch(struct q2_image *q);
/* Uncounts what nothing points to and cuts the file behind the last used cluster, never below `floor` (clusters). */
MUST_USE int q2_frontier_cut(struct co *co, struct q2_image *q, uint64_t floor);
/* Under grow_mx and mx: cuts the file to `end` clusters, all behind which is in `ready`, or was no longer counted, durably. */
MUST_USE int q2_frontier_cut_at(struct co *co, struct q2_image *q, uint64_t end);
/* q2_ahead.c, under mx: x was taken from `ready`. Zeroes it, and free clusters behind it, where that is cheap; x->tag says whether it was. */
void q2_ahead_zero(struct co *co, struct q2_image *q, struct rset_range *x);
/* q2_reclaim.c: starts freeing what an earlier run recorded; a drop inside the range is told while it runs. */
void q2_reclaim_saw(struct q2_alloc *a, uint64_t cluster, uint64_t n);
/* q2_alloc.c: clusters [c, end) have become free: their counts are 0. Old ones of an unclean image are not used before its end. */
MUST_USE int q2_alloc_freed(struct q2_image *q, uint64_t c, uint64_t end);
/* All counts were found right: what is counted 0 is free. Suspends. */
void q2_alloc_proved(struct co *co, struct q2_image *q);
/* q2_drop.c */
/* Every cluster that has lost a reference and is still counted. */
void q2_drop_each(const struct q2_alloc *a, void (*fn)(void *arg, uint64_t first, uint64_t n), void *arg);
/* Clusters that have lost a reference and are not on their way: what cannot be released. */
uint64_t q2_drop_left(const struct q2_alloc *a);
void q2_drop_fini(struct q2_alloc *a);
/* Waits until what was dropped before the call has been released, or failed, however much is dropped meanwhile. */
MUST_USE int q2_drop_settle(struct co *co, struct q2_image *q);
/* Nothing is on its way, or kept to be tried again. */
bool q2_drop_settled(const struct q2_image *q);
/* Until nothing is on its way any more: for whoever has stopped requests. */
MUST_USE int q2_drop_settle_all(struct co *co, struct q2_image *q);

#endif
