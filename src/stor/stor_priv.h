/* SPDX-License-Identifier: MIT
 *
 * stor_priv.h: the inside of the gate. Private to stor/.
 *
 *   stor.c        range checks, reads, and the calls that only pass through
 *   stor_write.c  writes, sub-block writes, zeroing, discard
 *   stor_order.c  who may write which blocks when (I3)
 *   stor_sync.c   flush, FUA and the latch (I1)
 *
 * Concurrency  Any loop, at the same time; see each file.
 */
#ifndef STOR_PRIV_H
#define STOR_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/assert.h"
#include "base/checked.h"
#include "rt/sync.h"
#include "stor/stor.h"

/* Largest offset + 1 of any request: what the kernel can address. */
#define STOR_MAX_END ((uint64_t)INT64_MAX)
/* Bounced requests move through a buffer of at most this many bytes. */
#define STOR_BOUNCE_BYTES_MAX (256u * 1024)
/* Most loops of a runtime (rt/loop.h). */
#define STOR_LOOPS_MAX 64

/* ---- stor_order.c ---- */

/* One write in progress. Lives in the frame of its coroutine. */
struct order_hold {
    uint64_t start, end;                  /* [start, end) */
    bool exclusive;
    bool fast;                            /* counted in a slot, in no list */
    struct order_hold *prev, *next;       /* guarded by stor_order.lock */
    struct co_xevent wake;                /* only for those who had to wait */
    bool waiting;                         /* guarded by stor_order.lock */
};
struct order_list { struct order_hold *head, *tail; };

struct order_slot { _Alignas(64) _Atomic uint32_t writers; };

struct stor_order {
    _Atomic bool slow;                    /* changed with `lock` held */
    pthread_mutex_t lock;
    bool drained;                         /* guarded by lock: no writer of the fast time is left */
    uint32_t exclusives;                  /* guarded by lock: exclusive holds, granted or waiting */
    uint32_t calm;                        /* guarded by lock: shared holds that ended since the last exclusive one */
    struct order_list shared, exclusive, waiting;   /* guarded by lock */
    struct order_slot slot[STOR_LOOPS_MAX];
};

void order_init(struct stor_order *o);
void order_fini(struct stor_order *o);
/* Waits until [start, end) may be written. Shared holds exclude exclusive ones; exclusive ones exclude all.
 * Granted in order of arrival among those that overlap. Suspends. */
void order_enter(struct co *co, struct stor_order *o, struct order_hold *h, bool exclusive);
void order_leave(struct co *co, struct stor_order *o, struct order_hold *h);
/* Asserts the invariants of the lists. For tests. */
void order_check(struct stor_order *o);

/* ---- stor_sync.c ---- */

struct sync_op;
struct sync_waiter;
struct flush_waiter;

struct stor_sync {
    _Atomic bool failed;                  /* I1: never cleared */
    pthread_mutex_t lock;
    uint64_t last_seq;                    /* guarded by lock */
    struct sync_op *oldest, *newest;      /* guarded by lock: in progress, by seq */
    struct sync_waiter *waiters;          /* guarded by lock */
    bool flushing;                        /* guarded by lock: a flush is with the driver */
    struct flush_waiter *batch, **batch_tail;   /* guarded by lock: they share the next flush */
};

void sync_init(struct stor_sync *y);
void sync_fini(struct stor_sync *y);
/* One FUA write of the driver: latches when it must, and answers only when no operation beside it can turn out to
 * have swallowed an error that concerns it. Bytes written (maybe fewer than asked) or -errno. Suspends. */
MUST_USE int64_t sync_fua_write(struct co *co, struct stor *s, struct iov v, uint64_t off);
/* A flush that the driver makes by itself, in a request that is no sync operation: whoever asked meanwhile is answered behind it, and a failure latches.
 * -ENOTCONN does not: it was not made, and the driver has kept what it was for. Suspends. */
void sync_own_flush(struct co *co, struct stor *s, int (*flush)(struct co *co, struct stor *s));

/* ---- the gate's own state ---- */

struct stor_internal {
    struct stor_sync sync;
    struct stor_order order;
    _Atomic unsigned shares;              /* owners beside the first */
    _Atomic unsigned holders;             /* who keeps it open: the owners as one, and each to whom it is lent */
    _Atomic uint64_t known_len;           /* the store is at least this long (0: not known). Used when block > 1 */
};

/* Notes that the store is at least len long. The caller holds an order that excludes truncation. */
static inline void stor_raise_known_len(struct stor *s, uint64_t len)
{
    uint64_t was = atomic_load(&s->internal->known_len);
    while (was < len && !atomic_compare_exchange_weak(&s->internal->known_len, &was, len))
        continue;
}

/* A range is about to be written that ends there. */
static inline void stor_tell_end(struct stor *s, uint64_t end)
{
    struct stor_end_watch *w = atomic_load_explicit(&s->end_watch, memory_order_acquire);
    if (UNLIKELY(w != NULL))
        w->fn(w, end);
}

/* Must writes of this store be ordered with each other? */
static inline bool stor_is_ordered(const struct stor *s) { return s->lim.block > 1 || s->traits.serial_growth; }
/* Flags of a write that count: FUA is void in the mode that never flushes. */
static inline bool stor_wants_fua(const struct stor *s, unsigned flags) { return (flags & STOR_FUA) && !s->no_flush; }
/* Longest request of the driver: a multiple of the block and, unless it is shorter than that, of the alignment in memory, so that the next one is aligned, too. */
static inline uint64_t stor_step(const struct stor *s)
{
    uint64_t unit = max_u64(s->lim.block, s->lim.max_transfer < s->lim.mem_align ? 1 : s->lim.mem_align);
    return s->lim.max_transfer ? round_down(s->lim.max_transfer, unit) : STOR_MAX_END;
}
/* How much of a transfer of n bytes at `done` of v counts, so that the rest can go to the driver as it lies in memory. */
uint64_t stor_counts(const struct stor *s, struct iov v, uint64_t done, uint64_t n);
/* Bytes of a bounce buffer: a multiple of the block. */
static inline uint64_t stor_bounce_step(const struct stor *s) { return max_u64(STOR_BOUNCE_BYTES_MAX, s->lim.block); }
/* I5. What a driver has answered. */
static inline int64_t stor_answer_bytes(int64_t r) { return r == -EUCLEAN || r == -ESTALE || r == -ECANCELED ? -EIO : r; }
static inline int stor_answer(int64_t r) { return (int)stor_answer_bytes(r); }
/* 0, or -EINVAL when [off, off+len) leaves what can be addressed. */
MUST_USE int stor_check_range(uint64_t off, uint64_t len);
/* May v go to the driver as it lies in memory? */
bool stor_mem_ok(const struct stor *s, struct iov v);
/* Aligned memory of len bytes for the driver; free() it. NULL: no memory. */
void *stor_bounce_new(const struct stor *s, uint64_t len);
/* Reads whole blocks into memory that suits the driver; behind the end it gives zeros. *ret_got = bytes that exist. */
MUST_USE int stor_read_blocks(struct co *co, struct stor *s, struct iov v, uint64_t off, uint64_t *ret_got);
/* Length from the driver, remembered in known_len. The caller holds the order of the end of the store, so that nobody
 * changes the length for a moment (stor_write.c). */
MUST_USE int stor_length_held(struct co *co, struct stor *s, uint64_t *ret_len);

#endif
