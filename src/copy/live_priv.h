/* SPDX-License-Identifier: MIT
 *
 * live_priv.h: the inside of live.c, live_watch.c and live_resize.c.
 */
#ifndef COPY_LIVE_PRIV_H
#define COPY_LIVE_PRIV_H

#include "base/dirty.h"
#include "copy/copy_priv.h"
#include "copy/live.h"

#define LIVE_SEGMENT_MAX (1u << 20)
#define LIVE_SLICE_NS UINT64_C(10000000)   /* who waits looks this often whether he still may */

/* When a piece was begun, and how many bytes were in pieces then. */
struct live_piece { uint64_t since_ns, behind; };

struct copy_live {
    struct graph_watch watch;
    struct copy_live_opts o;
    struct rt_loop *home;
    uint64_t size;
    struct dirty *dirty;                   /* any loop */
    struct dirty *whole;                   /* granules that the target holds (L6); NULL: it need not. Any loop */
    /* the engine: home */
    struct copying c;
    struct copy_job job;
    struct copy_part part;
    uint64_t cursor;                       /* where the search for dirty pieces goes on */
    uint64_t pieces_bytes;                 /* in pieces that are under way */
    unsigned pieces;
    uint64_t rate, rate_next_ns;
    struct live_piece *begun;              /* by lock */
    uint64_t flight, fastest_ns;           /* bytes that may be in pieces together, as long as they come back soon; how soon one did */
    bool pieces_held, owner_gone, awaited;
    bool conflict;                         /* something dirty is locked */
    uint64_t copied;
    int error; bool error_read; uint64_t error_off;
    bool over;                             /* nobody asks for pieces any more */
    struct co_waitq work;                  /* next(): something is dirty, or may go on */
    struct co_waitq moved;                 /* a lock, memory or the last request is free */
    struct co_range_locks busy;            /* granules of pieces and of changes that are carried over */
    struct co_range *piece_locks;          /* one for each worker */
    uint64_t piece_locks_free;
    uint64_t carry_bytes, carry_limit;     /* memory of changes under way */
    uint32_t segment;                      /* longest part of a change that goes to the target at once */
    unsigned holds;                        /* locks of changes that are not given back */
    unsigned scans;                        /* looks at what has to be copied, under way */
    struct dirty *next, *next_whole;       /* live_resize.c: for the new length */
    uint64_t old_size;                     /* and the old one */
    uint64_t ended;                        /* pieces, changes and scans that have come back */
    bool lost;                             /* copy_live_lose */
    /* any loop */
    _Atomic bool stop, paused, blocking, idle, kicked, resizing;
    _Atomic uint64_t guest, carried, marks, brake, brake_next_ns, longest_hold_ns;
    struct rt_msg kick;
};

/* live_watch.c */
int live_change(struct co *co, struct graph_watch *w, struct graph_change *ch);
/* live_resize.c */
extern const struct graph_watch_size live_follows;
/* live.c: home loop. The first error stays. */
void live_failed(struct copy_live *l, int error, bool read, uint64_t off);
/* Any loop. Marks; the engine learns of it. */
void live_touched(struct copy_live *l, uint64_t off, uint64_t len);
void live_tell(struct copy_live *l);       /* home: everybody who waits looks again */
void live_unlocked(struct copy_live *l);   /* home: a lock has been given back */

#endif
