/* SPDX-License-Identifier: MIT
 *
 * epoch.h: grace periods (DESIGN D3). One mechanism serves freed clusters, evicted tables, watchers and
 * drain: raise a flag or unlink the thing, wait one grace period, and nobody still uses the old state.
 *
 *     token = epoch_enter(d, loop)  ... look up, do I/O (may suspend) ...  epoch_leave(d, loop, token)
 *
 * Enter and leave touch only the caller's own loop's slot (one cache line each): no shared writes on the fast path.
 *
 * Invariant I1: a callback queued by epoch_defer (or a return of epoch_wait) happens after every section that
 *               was open at the call has been left.
 * Deadlock rule: never wait for a grace period inside a section of the same domain.
 * Concurrency: enter/leave on any loop of the runtime; defer, wait and advance on the domain's home loop only.
 */
#ifndef RT_EPOCH_H
#define RT_EPOCH_H

#include <stdint.h>

#include "base/err.h"
#include "rt/co.h"
#include "rt/loop.h"

struct epoch;

MUST_USE int epoch_new(struct rt_loop *home, struct epoch **ret_d);
/* Every section must have been left and every callback run (see epoch_drain). */
void epoch_free(struct epoch *d);

typedef uint32_t epoch_token;
epoch_token epoch_enter(struct epoch *d, const struct rt_loop *loop);
void epoch_leave(struct epoch *d, const struct rt_loop *loop, epoch_token t);

/* Suspends until every section open now has been left. */
void epoch_wait(struct co *co, struct epoch *d);

struct epoch_cb { struct epoch_cb *next; void (*fn)(struct epoch_cb *cb); uint64_t stamp; };
/* Runs cb->fn on the home loop after a grace period. Intrusive, cannot fail. */
void epoch_defer(struct epoch *d, struct epoch_cb *cb, void (*fn)(struct epoch_cb *cb));
/* Waits until all callbacks queued so far have run. */
void epoch_drain(struct co *co, struct epoch *d);

/* Stamps without callbacks: epoch_stamp now, later epoch_passed(stamp)? (true: a grace period has gone by.)
 * epoch_wait_stamp waits until it has. */
uint64_t epoch_stamp(struct epoch *d);
bool epoch_passed(struct epoch *d, uint64_t stamp);
void epoch_wait_stamp(struct co *co, struct epoch *d, uint64_t stamp);

#endif
