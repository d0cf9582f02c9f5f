/* SPDX-License-Identifier: MIT
 *
 * stor_sync.c: flush, FUA, and the latch.
 *
 * Purpose      Makes sure that nothing is called durable once the system below has said that something was lost
 *              (RG27). The kernel reports a lost page once per open file: whoever asks first gets the error, whoever
 *              asks next gets success.
 * Owns         The latch; the list of sync operations (flush, FUA write) that are with the driver; the batch of those
 *              who wait for the next flush.
 * Invariants   I1  Once `failed` is set it stays set, and no flush or FUA write of the store succeeds.
 *              I2  A sync operation X is acknowledged only after every sync operation that was with the driver when
 *                  X came back, and that might have swallowed an error that concerns X, has come back too; and only
 *                  if none of them set the latch.
 *              I3  At most one flush is with the driver, beside those that it makes by itself; one that is joined began after its caller asked.
 * Order        A flush covers the writes that completed before it was asked for, on any loop.
 * Concurrency  Any loop. `lock` is held for list work only. A flush that finds another one under way joins the batch
 *              of the next one; when the first comes back, it makes the head of the batch the next leader.
 *              Why I2: operation A on one loop may take the error from the kernel while B, at the same time on another
 *              loop, finds none; B must not be acknowledged before A has set the latch. A has not been acknowledged
 *              either, so A is still in the list when B comes back. It is enough to wait for those that started
 *              before B came back, and for their answer from the driver, not for their acknowledgement: no cycles.
 *              With O_DIRECT a FUA write learns of its own loss by its own result, and no error that it takes can be
 *              about its data in another's place; it therefore does not wait. A flush always does.
 * Failure      Any failed flush sets the latch; so does a failed FUA write, as its result does not say which half
 *              failed: the write, or the flush after it. One exception: no space left, where the driver states that
 *              this shows in the write itself (traits.enospc_early); a full disk must not end the life of the store.
 * Tests        stor_sync_test.c
 */
#include "stor/stor_priv.h"

#include "base/assert.h"

/* A flush or a FUA write between its start and its answer from the driver. */
struct sync_op {
    uint64_t seq;
    struct sync_op *prev, *next;          /* guarded by stor_sync.lock */
};

struct sync_waiter {
    struct sync_waiter *next;
    uint64_t upto;                        /* waits for all operations with seq <= upto */
    struct co_xevent wake;
};

struct flush_waiter {
    struct flush_waiter *next;
    struct flush_waiter *followers;       /* for the leader: the others of its batch */
    bool lead;                            /* woken to lead, not with a result */
    int res;
    struct co_xevent wake;
};

void sync_init(struct stor_sync *y)
{
    *y = (struct stor_sync){ .failed = false };
    y->batch_tail = &y->batch;
    pthread_mutex_init(&y->lock, NULL);
}

void sync_fini(struct stor_sync *y)
{
    ASSERT(!y->oldest && !y->waiters && !y->flushing && !y->batch);
    pthread_mutex_destroy(&y->lock);
}

static void op_begin(struct stor_sync *y, struct sync_op *op)
{
    pthread_mutex_lock(&y->lock);
    *op = (struct sync_op){ .seq = ++y->last_seq, .prev = y->newest };
    *(y->newest ? &y->newest->next : &y->oldest) = op;
    y->newest = op;
    pthread_mutex_unlock(&y->lock);
}

/* Takes op off the list and wakes those who waited for it to come back. Lock held. */
static void op_unlink(struct stor_sync *y, struct sync_op *op)
{
    *(op->prev ? &op->prev->next : &y->oldest) = op->next;
    *(op->next ? &op->next->prev : &y->newest) = op->prev;
    uint64_t oldest = y->oldest ? y->oldest->seq : UINT64_MAX;
    for (struct sync_waiter **p = &y->waiters; *p;) {
        struct sync_waiter *w = *p;
        if (w->upto >= oldest) {
            p = &w->next;
            continue;
        }
        *p = w->next;
        co_xevent_set(&w->wake);
    }
}

/* The operation is back from the driver: latches, and waits for the others if `wait` (I2). */
static int op_end(struct co *co, struct stor_sync *y, struct sync_op *op, bool fatal, bool wait)
{
    struct sync_waiter w;
    pthread_mutex_lock(&y->lock);
    if (fatal)
        atomic_store(&y->failed, true);
    op_unlink(y, op);
    wait = wait && y->oldest;
    if (wait) {
        w.upto = y->last_seq;
        co_xevent_init(&w.wake, co_loop(co));
        w.next = y->waiters;
        y->waiters = &w;
    }
    pthread_mutex_unlock(&y->lock);
    if (wait)
        co_xevent_wait(co, &w.wake);
    return atomic_load(&y->failed) ? -EIO : 0;
}

int64_t sync_fua_write(struct co *co, struct stor *s, struct iov v, uint64_t off)
{
    struct stor_sync *y = &s->internal->sync;
    struct sync_op op;
    if (atomic_load(&y->failed))
        return -EIO;
    op_begin(y, &op);
    int64_t n = s->ops->pwritev(co, s, v, off, STOR_FUA);
    bool full = n == -ENOSPC || n == -EDQUOT || n == -EFBIG;
    bool fatal = n < 0 && !(full && s->traits.enospc_early);
    int r = op_end(co, y, &op, fatal, n >= 0 && !s->traits.direct);
    return n < 0 ? n : r < 0 ? r : n;
}

void sync_own_flush(struct co *co, struct stor *s, int (*flush)(struct co *co, struct stor *s))
{
    struct stor_sync *y = &s->internal->sync;
    struct sync_op op;
    op_begin(y, &op);
    int r = flush(co, s);
    (void)!op_end(co, y, &op, r < 0 && r != -ENOTCONN, false);
}

/* A flush came back: passes the lead on to the next batch, if there is one. */
static void pass_lead(struct stor_sync *y)
{
    pthread_mutex_lock(&y->lock);
    struct flush_waiter *next = y->batch;
    y->batch = NULL;
    y->batch_tail = &y->batch;
    y->flushing = next != NULL;
    pthread_mutex_unlock(&y->lock);
    if (next) {
        next->lead = true;
        next->followers = next->next;
        co_xevent_set(&next->wake);
    }
}

/* Flushes for the caller and the followers. Entered with `flushing` set by or for the caller. */
static int lead_flush(struct co *co, struct stor *s, struct flush_waiter *followers)
{
    struct stor_sync *y = &s->internal->sync;
    struct sync_op op;
    op_begin(y, &op);
    int res = atomic_load(&y->failed) ? -EIO : stor_answer(s->ops->flush(co, s));
    ASSERT(res <= 0);
    if (res < 0)
        atomic_store(&y->failed, true);   /* before the next leader asks the kernel, which would find no error */
    pass_lead(y);
    int r = op_end(co, y, &op, res < 0, true);
    res = res < 0 ? res : r;
    for (struct flush_waiter *f = followers, *next; f; f = next) {
        next = f->next;
        f->res = res;
        co_xevent_set(&f->wake);
    }
    return res;
}

int stor_flush(struct co *co, struct stor *s)
{
    struct stor_sync *y = &s->internal->sync;
    if (atomic_load(&y->failed))
        return -EIO;
    if (s->no_flush || s->read_only || !s->ops->flush)
        return 0;
    struct flush_waiter me = { .next = NULL };
    pthread_mutex_lock(&y->lock);
    bool join = y->flushing;
    if (join) {
        co_xevent_init(&me.wake, co_loop(co));
        *y->batch_tail = &me;
        y->batch_tail = &me.next;
    }
    y->flushing = true;
    pthread_mutex_unlock(&y->lock);
    if (!join)
        return lead_flush(co, s, NULL);
    co_xevent_wait(co, &me.wake);
    return me.lead ? lead_flush(co, s, me.followers) : me.res;
}

bool stor_flush_latched(const struct stor *s)
{
    return atomic_load(&s->internal->sync.failed);
}
