/* SPDX-License-Identifier: MIT
 *
 * ride.c: small writes into a cluster that is being copied travel with the copy.
 *
 * Purpose      While the surroundings of a first write are read, writes to the same cluster arrive: the guest writes one small piece after
 *              the other. Each would wait for the copy and then be a transfer of its own; instead the copy takes their bytes along.
 * Owns         The list of copies of a node that take others along; those on board, from ride_close to ride_end.
 * Invariants   R1  What is on board lies in granules that the copy itself writes to: only those does the format link (fmt.h; with subclusters
 *                  less than what is copied).
 *              R2  Nobody gets on once the bytes are put together (ride_close), and nobody is told before the copy has been committed. If that fails
 *                  each writes by himself.
 *              R3  A copy waits for nobody on board. Who is on board waits for the copy, as he would wait for its range.
 *              R4  Who is ready to run gets on before the copy begins to read (ride_call): bytes that are on board already are not read.
 *                  Nobody gets off, so what is on board then is on board when the bytes are put together.
 * Order        As for the write whose copy it is.
 * Concurrency  Any loop; ride_lock of the node for list work only.
 * Failure      See R2.
 * Tests        ride_test.c, stress_test.c, tests/crash/ride_crash.c
 */
#include "base/mutant.h"
#include "graph/graph_priv.h"

void ride_open(struct graph_node *n, struct ride *d, const struct fmt_write *w)
{
    uint64_t granule = n->im->granule, end = w->off + w->len;
    d->from = max_u64(round_down(w->off, granule), w->off - w->head);        /* R1 */
    d->to = min_u64(round_up(end, granule), end + w->tail);
    d->first = NULL;
    d->last = &d->first;
    pthread_mutex_lock(&n->ride_lock);
    d->next = atomic_load_explicit(&n->rides, memory_order_relaxed);
    atomic_store_explicit(&n->rides, d, memory_order_relaxed);
    pthread_mutex_unlock(&n->ride_lock);
}

/* Passes over the list: one suffices when they came in rising or in falling order. */
#define PASSES 2

void ride_call(struct co *co, struct graph_node *n, struct ride *d, uint64_t *lo, uint64_t *hi)
{
    co_yield(co);                                /* R4 */
    pthread_mutex_lock(&n->ride_lock);
    for (int i = 0; i < PASSES; i++)
        for (const struct rider *r = d->first; r; r = r->next) {
            uint64_t end = r->off + r->v->len_bytes;
            if ((r->off > *hi || end < *lo) && !MUTANT(MUT_RIDE_GAP_UNREAD))
                continue;
            *lo = min_u64(*lo, r->off);
            *hi = max_u64(*hi, end);
        }
    pthread_mutex_unlock(&n->ride_lock);
}

struct rider *ride_close(struct graph_node *n, struct ride *d)
{
    pthread_mutex_lock(&n->ride_lock);
    struct ride *at = atomic_load_explicit(&n->rides, memory_order_relaxed);
    if (at == d) {
        atomic_store_explicit(&n->rides, d->next, memory_order_relaxed);
    } else {
        while (at->next != d)
            at = at->next;
        at->next = d->next;
    }
    pthread_mutex_unlock(&n->ride_lock);
    return d->first;
}

void ride_put(const struct rider *list, uint8_t *buf, uint64_t off)
{
    for (; list && !MUTANT(MUT_RIDE_LEFT_BEHIND); list = list->next)
        iov_to_buf(*list->v, buf + (list->off - off), list->v->len_bytes);
}

void ride_end(struct rider *list, int result)
{
    for (struct rider *next; list; list = next) {
        next = list->next;                       /* it is gone once it is told */
        list->done = result == 0 || MUTANT(MUT_RIDE_FAILURE_HIDDEN);
        co_xevent_set(&list->over);
    }
}

bool ride_along(struct co *co, struct graph_node *n, const struct iov *v, uint64_t off)
{
    struct rider me = { .v = v, .off = off };
    pthread_mutex_lock(&n->ride_lock);
    struct ride *d = atomic_load_explicit(&n->rides, memory_order_relaxed);
    while (d && (off < d->from || off + v->len_bytes > d->to))
        d = d->next;
    if (d) {
        co_xevent_init(&me.over, co_loop(co));
        *d->last = &me;
        d->last = &me.next;
    }
    pthread_mutex_unlock(&n->ride_lock);
    if (!d)
        return false;
    co_xevent_wait(co, &me.over);
    return me.done;
}
