/* SPDX-License-Identifier: MIT
 *
 * watch.c: who sees the changes of a disk.
 *
 * Purpose     Lets jobs stand around every write, zero and discard of a node: dirty tracking, write-blocking mirrors, copies
 *             before writes, thresholds.
 * Owns        node->watches, the links of watchers that are in it
 * Invariants  I1  A request sees the watchers that were there when it looked, each once, from the latest to the first, and all of
 *                 them until it ends.
 *             I2  A watcher that graph_watch_remove has returned for is inside no request.
 *             I3  What follows a change of the length follows that one alone: another one that is refused meanwhile does not end it.
 * Order       none
 * Concurrency Requests look inside a section of the gate of the node, or of one above it, and follow the links without a lock. A watcher is linked and
 *             unlinked on the home loop and waits for one grace period: whoever may hold a link to it is in a section that is
 *             open then. A watcher that is unlinked keeps its own link, so those who stand in it go on to the next one, which
 *             cannot go away before they have left either.
 * Failure     none of this can fail
 * Tests       watch_test.c
 */
#include "graph/graph_priv.h"

int graph_change_go(struct co *co, struct graph_change *ch)
{
    struct graph_watch *w = ch->next;
    ASSERT(ch->run);
    if (w) {
        ch->next = atomic_load_explicit(&w->link, memory_order_acquire);
        return w->change(co, w, ch);
    }
    int (*run)(struct co *co, void *arg) = ch->run;
    ch->run = NULL;                      /* at most once */
    return run(co, ch->arg);
}

int graph_change_read(struct co *co, const struct graph_change *ch, struct iov v, uint64_t off)
{
    return chain_read(co, ch->node, v, off);
}

int watch_run(struct co *co, struct graph_change *ch, int (*run)(struct co *co, void *arg), void *arg)
{
    ch->next = atomic_load_explicit(&ch->node->watches, memory_order_acquire);
    ch->run = run;
    ch->arg = arg;
    int r = graph_change_go(co, ch);
    ASSERT(r < 0 || !ch->run);           /* nobody answers for a change that was not made */
    return r;
}

void graph_watch_add(struct co *co, struct graph_node *n, struct graph_watch *w)
{
    ASSERT_LOOP(n->g->home);
    ASSERT(!w->node && w->change && !n->flt);        /* a filter hands requests on before anybody looks */
    w->node = n;
    atomic_store(&w->link, atomic_load(&n->watches));
    atomic_store(&n->watches, w);
    gates_empty(co, n);
}

void graph_watch_remove(struct co *co, struct graph_watch *w)
{
    struct graph_node *n = w->node;
    ASSERT_LOOP(n->g->home);
    while (w->following || w->aheads)
        co_breathe(co);
    _Atomic(struct graph_watch *) *at = &n->watches;
    while (atomic_load(at) != w)
        at = &atomic_load(at)->link;
    atomic_store(at, atomic_load(&w->link));
    gates_empty(co, n);
    w->node = NULL;
}

/* ---- changes of the length ---- */

static struct graph_watch *first_following(const struct graph_node *n, const void *whom)
{
    struct graph_watch *w = atomic_load(&((struct graph_node *)(uintptr_t)n)->watches);
    while (w && w->following != whom)
        w = atomic_load(&w->link);
    return w;
}

int graph_resize_ahead(struct co *co, struct graph_node *n, struct byre_err *err)
{
    int r = 0;
    ASSERT_LOOP(n->g->home);
    for (struct graph_watch *w = atomic_load(&n->watches); w && !r; w = atomic_load(&w->link)) {
        if (!w->follows || !w->follows->ahead)
            continue;
        w->aheads++;                     /* as `following`; several may do this at once */
        r = w->follows->ahead(co, w, err);
        w->aheads--;
    }
    return r;
}

int watches_resize_begin(struct co *co, struct graph_node *n, const void *who, uint64_t size, struct byre_err *err)
{
    int r = 0;
    for (struct graph_watch *w = atomic_load(&n->watches); w && !r; w = atomic_load(&w->link)) {
        if (!w->follows || w->following)
            continue;
        w->following = who;              /* it cannot be removed, so its link can be followed afterwards */
        r = w->follows->begin(co, w, size, err);
    }
    return r;
}

void watches_resized(struct graph_node *n, uint64_t size)
{
    for (struct graph_watch *w = atomic_load(&n->watches); w; w = atomic_load(&w->link))
        if (w->following)
            w->follows->now(w, size);
}

void watches_resize_end(struct co *co, struct graph_node *n, const void *who, bool done)
{
    for (struct graph_watch *w; (w = first_following(n, who));) {
        w->follows->end(co, w, done);
        w->following = NULL;
    }
}

int watches_allow(const struct graph_node *n, const char *what, struct byre_err *err)
{
    for (struct graph_watch *w = atomic_load(&((struct graph_node *)(uintptr_t)n)->watches); w; w = atomic_load(&w->link))
        if (w->follows)
            return byre_fail(err, BUSY, "%s: a job copies it, and would not see it %s", n->filename, what);
    return 0;
}
