/* SPDX-License-Identifier: MIT
 *
 * meta_priv.h: the inside of meta/. Private to this folder.
 *
 *   cache.c  blocks that were read and validated
 *   pass.c   a pass: the frozen state and its barriers
 *   frees.c  space that lost its last pointer
 *   clean.c  blocks that were not used for a while
 *   slab.c   memory of blocks (slab.h)
 */
#ifndef META_PRIV_H
#define META_PRIV_H

#include "base/assert.h"
#include "base/list.h"
#include "base/mutant.h"
#include "meta/meta.h"
#include "meta/slab.h"

struct meta_load {                       /* somebody who wants a block that is not cached; only one of them reads it */
    uint64_t off;
    bool reading, forgotten;             /* forgotten: its space was forgotten meanwhile */
    struct co_waitq q;
    struct meta_load *next;
};

struct meta_waiter {                     /* somebody who waits for a pass */
    uint64_t want;                       /* number of the first pass that will do */
    int result;
    bool done;
    struct co_waitq q;
    struct meta_waiter *next;
};

struct meta {
    /* constant */
    struct meta_opts o;
    uint32_t dirty_unit;                 /* bytes per bit of dirty_sectors: 512, more for blocks over 32 KiB */
    uint64_t limit_min, limit_max;       /* blocks: of the budget, and as far as it may grow */
    uint64_t dirty_max;                  /* more dirty blocks than this start a pass; a cache that grows holds no more dirt */
    uint64_t bucket_mask;
    _Atomic(struct meta_block *) *buckets;
    /* cache, home loop */
    struct meta_slab slab;               /* memory of the blocks */
    struct meta_block *all, *hand;       /* ring of every block */
    uint64_t blocks, limit;              /* limit: from limit_min to limit_max */
    struct meta_stats stats;             /* loads, evicted, cleaned */
    struct meta_block *dirty_head, *dirty_tail;
    uint64_t dirty_blocks, dirty_counts; /* of them of rank META_COUNTS */
    bool lazy;                           /* counts need not be durable */
    struct meta_region *regions;
    struct meta_load *loads;
    uint64_t loading;                    /* blocks that are being read */
    uint64_t reclaiming;                 /* blocks that wait for their grace period */
    /* clean.c */
    struct rt_timer clean_timer;
    int clean_state;
    bool clean_again;                    /* there is something for the next interval */
    struct meta_block *sweep;            /* the next to look at */
    uint64_t sweep_left, trim_left;
    unsigned grace_tries;
    uint32_t *marks;                     /* of evicted blocks; NULL: none yet */
    uint64_t marks_mask;
    /* passes */
    struct co_mutex order;               /* a pass or a structural change holds it */
    uint64_t pass_started;               /* number of the newest pass that froze */
    uint64_t pass_durable;               /* number of the newest pass that ended well */
    bool runner;                         /* somebody runs or is about to run a pass */
    struct meta_waiter *waiters;
    bool need_data, need_table;
    bool data_done;                      /* the running pass has made the data store durable already */
    bool kicked;                         /* a background pass was asked for */
    int failed;                          /* first barrier failure: nothing is written any more (I6) */
    _Atomic bool clean;
    uint64_t barriers[META_B_COUNT];
    /* frees */
    struct meta_free *frees_new, **frees_new_tail;
    uint64_t frees_waiting;
    struct co_waitq frees_q;
};

/* cache.c */
void meta_block_clean_(struct meta *m, struct meta_block *b);             /* takes b off the dirty list */
void meta_block_redirty_(struct meta *m, struct meta_block *b, uint64_t sectors);
void meta_update_clean_(struct meta *m);
void meta_evict_(struct meta *m, struct meta_block *b);                   /* clean, not pinned */
/* clean.c */
void meta_clean_want_(struct meta *m);                                    /* there is something that may come to be dropped */
void meta_clean_stop_(struct meta *m);
void meta_mark_evicted_(struct meta *m, uint64_t off);                    /* for lack of room */
void meta_grow_for_(struct meta *m, uint64_t off);                        /* it is about to be read */
/* frees.c */
struct meta_free *meta_frees_take_(struct meta *m);                       /* at the freeze */
void meta_frees_durable_(struct meta *m, struct meta_free *list);         /* the pass ended well */
void meta_frees_back_(struct meta *m, struct meta_free *list);            /* it did not */

#endif
