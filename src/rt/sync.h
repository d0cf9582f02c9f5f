/* SPDX-License-Identifier: MIT
 *
 * sync.h: waiting between coroutines of ONE loop. None of these is for use across loops: post a message, or
 * use rt_call. Wake order is first come, first served (the simulator may permute ready coroutines).
 */
#ifndef RT_SYNC_H
#define RT_SYNC_H

#include <stdbool.h>
#include <stdint.h>

#include "rt/co.h"
#include "rt/loop.h"

struct co_waiter;
/* Wait queue. Zero-initialised is empty. */
struct co_waitq { struct co_waiter *head, *tail; };
void co_wait(struct co *co, struct co_waitq *q);              /* suspends until woken; not cancellable */
int  co_wait_cancellable(struct co *co, struct co_waitq *q);  /* 0, -ECANCELED, -ETIMEDOUT */
/* Until it is woken, or `slice` has passed, or `until` (as rt_now) has come: who waits looks again whether he still may. false: no longer, `until` has
 * come already, or it was cancelled. */
bool co_wait_slice(struct co *co, struct co_waitq *q, uint64_t until, uint64_t slice);
bool co_wake_one(struct co_waitq *q);                         /* true if somebody was there; makes it ready, does not switch */
unsigned co_wake_all(struct co_waitq *q);
static inline bool co_waitq_empty(const struct co_waitq *q) { return !q->head; }

/* Mutex (fair). */
struct co_mutex { bool held; struct co_waitq q; };
void co_lock(struct co *co, struct co_mutex *m);
void co_unlock(struct co_mutex *m);

/* Counting semaphore (fair). */
struct co_sem { uint64_t avail; struct co_waitq q; };
void co_sem_down(struct co *co, struct co_sem *s, uint64_t n);
void co_sem_up(struct co_sem *s, uint64_t n);

/* Count of unfinished things; wait until it is zero. */
struct co_group { uint64_t n; struct co_waitq q; };
void co_group_enter(struct co_group *g);
void co_group_leave(struct co_group *g);
void co_group_wait(struct co *co, struct co_group *g);

/* Exclusive locks on ranges [start, end). A holder lives in the caller's frame or struct. Fair among
 * overlapping waiters (a later request never passes an earlier one that it overlaps). */
struct co_range_locks { struct co_range *head; };
struct co_range {
    uint64_t start, end;
    struct co_range *next, *prev;
    struct co_waitq q;
};
void co_range_lock(struct co *co, struct co_range_locks *l, struct co_range *r, uint64_t start, uint64_t end);
/* Both of [start, end) of a and of b, which do not overlap. One after the other they would be a deadlock with anybody who asks for a
 * range that overlaps both while the first one is waited for. */
void co_range_lock_two(struct co *co, struct co_range_locks *l, struct co_range *a, struct co_range *b);
bool co_range_trylock(struct co_range_locks *l, struct co_range *r, uint64_t start, uint64_t end);
void co_range_unlock(struct co_range_locks *l, struct co_range *r);
/* Takes nothing. false: nobody holds or wants any of [start, end). Else waits until the oldest such request has ended, and
 * returns true: all who wait like this run in the same turn, where those who queue for the lock run one after the other. */
bool co_range_wait(struct co *co, const struct co_range_locks *l, uint64_t start, uint64_t end);

/* Wake from another thread or loop: an event owned by one loop, settable once from anywhere. */
struct co_xevent { struct rt_msg msg; struct rt_loop *loop; struct co_waitq q; bool set; };
void co_xevent_init(struct co_xevent *e, struct rt_loop *loop);
void co_xevent_set(struct co_xevent *e);                      /* any thread; at most once */
void co_xevent_wait(struct co *co, struct co_xevent *e);      /* on e->loop; e may be freed when this returns */

#endif
