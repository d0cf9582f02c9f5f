/* SPDX-License-Identifier: MIT
 *
 * stor_order.c: who may write which blocks when.
 *
 * Purpose      Keeps invariant I3 of stor.h on stores whose driver takes whole blocks only. A write that does not
 *              fill its blocks reads them, changes its part and writes them back (RMW); whatever else wrote to one
 *              of these blocks between the read and the write would be lost. So an RMW holds its blocks exclusively
 *              and every other change of the store (aligned write, zero, discard, copy, truncate) holds its range
 *              shared. Shared holds do not exclude each other. Stores that take any bytes never come here.
 * Owns         The lists of holds in progress and of those who wait. The holds themselves lie in the frames of
 *              their coroutines.
 * Invariants   I1  Two granted holds that overlap are both shared.
 *              I2  A hold never passes an earlier one that it overlaps and conflicts with (nobody starves).
 *              I3  While `slow` is false no exclusive hold exists, granted or waiting.
 *              I4  An exclusive hold is granted only when `drained`: no fast writer is left.
 * Order        Nothing on disk.
 * Concurrency  Any loop. Two modes. FAST: a shared hold is one atomic increment in the slot of its own loop. SLOW:
 *              holds are in lists under `lock` (held for a list walk, never across a suspension).
 *              The first exclusive hold sets `slow` and waits until all slots have been seen at zero. Argument: a
 *              fast writer increments its slot and then loads `slow`; the exclusive one stores `slow` and then loads
 *              the slots; all four are sequentially consistent. If the writer loaded false, its load, and so its
 *              increment, came before the store, so the exclusive one sees the increment and waits for it. If it
 *              loaded true, it takes its increment back and goes through the lists, where the exclusive one is found.
 *              Who takes a count back and then sees `slow` looks whether the drain is complete, under the lock. The
 *              first who finds it complete, that or another exclusive one, wakes all who may go. After CALM_MAX shared holds without an exclusive one the mode is FAST
 *              again; shared holds that are still in the list stay there and later exclusive ones find them.
 *              Waiters sleep on a co_xevent of their own loop.
 * Failure      None.
 * Tests        stor_order_test.c, stor_rmw_test.c
 */
#include "stor/stor_priv.h"

#include "base/assert.h"

enum { CALM_MAX = 4096 };

static void list_add(struct order_list *l, struct order_hold *h)
{
    h->prev = l->tail;
    h->next = NULL;
    *(l->tail ? &l->tail->next : &l->head) = h;
    l->tail = h;
}

static void list_del(struct order_list *l, struct order_hold *h)
{
    *(h->prev ? &h->prev->next : &l->head) = h->next;
    *(h->next ? &h->next->prev : &l->tail) = h->prev;
}

static bool overlaps(const struct order_hold *a, const struct order_hold *b)
{
    return a->start < b->end && b->start < a->end;
}

static bool conflicts(const struct order_hold *a, const struct order_hold *b)
{
    return (a->exclusive || b->exclusive) && overlaps(a, b);
}

/* Does h conflict with an element of the list in front of `until` (NULL: of the whole list)? */
static bool list_conflicts(const struct order_list *l, const struct order_hold *until, const struct order_hold *h)
{
    for (const struct order_hold *x = l->head; x && x != until; x = x->next)
        if (conflicts(x, h))
            return true;
    return false;
}

/* May h be granted now? `until`: its place among those who wait (NULL: behind all). Lock held. */
static bool grantable(const struct stor_order *o, const struct order_hold *until, const struct order_hold *h)
{
    if (h->exclusive && (!o->drained || list_conflicts(&o->shared, NULL, h)))
        return false;
    return !list_conflicts(&o->exclusive, NULL, h) && !list_conflicts(&o->waiting, until, h);
}

static void grant(struct stor_order *o, struct order_hold *h)
{
    list_add(h->exclusive ? &o->exclusive : &o->shared, h);
}

static bool slots_empty(struct stor_order *o)
{
    for (unsigned i = 0; i < STOR_LOOPS_MAX; i++)
        if (atomic_load(&o->slot[i].writers))
            return false;
    return true;
}

/* Grants whatever can be granted. gone: the hold that just ended, only those who overlap it can gain (NULL: all).
 * Lock held. */
static void kick(struct stor_order *o, const struct order_hold *gone)
{
    if (!o->drained) {
        o->drained = slots_empty(o);
        gone = NULL;
    }
    for (struct order_hold *h = o->waiting.head, *next; h; h = next) {
        next = h->next;
        if ((gone && !overlaps(gone, h)) || !grantable(o, h, h))
            continue;
        list_del(&o->waiting, h);
        h->waiting = false;
        grant(o, h);
        co_xevent_set(&h->wake);
    }
}

void order_init(struct stor_order *o)
{
    *o = (struct stor_order){ .drained = true };
    pthread_mutex_init(&o->lock, NULL);
}

void order_fini(struct stor_order *o)
{
    ASSERT(!o->shared.head && !o->exclusive.head && !o->waiting.head && slots_empty(o));
    pthread_mutex_destroy(&o->lock);
}

static void slot_leave(struct stor_order *o, struct order_slot *slot)
{
    atomic_fetch_sub(&slot->writers, 1);
    if (!atomic_load(&o->slow))
        return;
    pthread_mutex_lock(&o->lock);
    if (!o->drained)
        kick(o, NULL);
    pthread_mutex_unlock(&o->lock);
}

static struct order_slot *slot_of(struct co *co, struct stor_order *o)
{
    unsigned i = rt_loop_index(co_loop(co));
    ASSERT(i < STOR_LOOPS_MAX);
    return &o->slot[i];
}

static bool enter_fast(struct co *co, struct stor_order *o)
{
    if (atomic_load_explicit(&o->slow, memory_order_relaxed))
        return false;
    struct order_slot *slot = slot_of(co, o);
    atomic_fetch_add(&slot->writers, 1);
    if (!atomic_load(&o->slow))
        return true;
    slot_leave(o, slot);
    return false;
}

void order_enter(struct co *co, struct stor_order *o, struct order_hold *h, bool exclusive)
{
    ASSERT(h->start < h->end);
    h->exclusive = exclusive;
    h->fast = !exclusive && enter_fast(co, o);
    if (h->fast)
        return;
    pthread_mutex_lock(&o->lock);
    if (exclusive) {
        o->exclusives++;
        o->calm = 0;
        if (!atomic_load(&o->slow)) {
            o->drained = false;
            atomic_store(&o->slow, true);
        }
        if (!o->drained)
            kick(o, NULL);               /* the last fast writer may be behind us for the lock: it finds the drain complete and wakes nobody */
    }
    h->waiting = !grantable(o, NULL, h);
    if (h->waiting) {
        co_xevent_init(&h->wake, co_loop(co));
        list_add(&o->waiting, h);
    } else {
        grant(o, h);
    }
    bool wait = h->waiting;
    pthread_mutex_unlock(&o->lock);
    if (wait)
        co_xevent_wait(co, &h->wake);
}

void order_leave(struct co *co, struct stor_order *o, struct order_hold *h)
{
    if (h->fast) {
        slot_leave(o, slot_of(co, o));
        return;
    }
    pthread_mutex_lock(&o->lock);
    list_del(h->exclusive ? &o->exclusive : &o->shared, h);
    if (h->exclusive)
        o->exclusives--;
    else
        o->calm++;
    kick(o, h);
    if (!o->exclusives && o->calm >= CALM_MAX)
        atomic_store(&o->slow, false);
    pthread_mutex_unlock(&o->lock);
}

void order_check(struct stor_order *o)
{
    pthread_mutex_lock(&o->lock);
    uint32_t n = 0;
    for (struct order_hold *h = o->exclusive.head; h; h = h->next, n++) {
        INV(I4, o->drained);
        INV(I1, !list_conflicts(&o->shared, NULL, h) && !list_conflicts(&o->exclusive, h, h));
    }
    for (struct order_hold *h = o->waiting.head; h; h = h->next) {
        n += h->exclusive;
        INV(I2, h->waiting && !grantable(o, h, h));
    }
    INV(I3, n == o->exclusives && (!n || atomic_load(&o->slow)));
    pthread_mutex_unlock(&o->lock);
}
