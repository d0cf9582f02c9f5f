/* SPDX-License-Identifier: MIT
 *
 * drain.c: the gate that every request passes, and closing it.
 *
 * Purpose     Draining a node: no request is inside and none gets in, for it and for every node above it.
 *
 *             three ways     of which nodes new requests wait           whose requests have ended when it returns       a format that has n below it
 *             drain          n, and all above it: overlays, filters,    the same, and of formats' stores over those      goes on with its metadata
 *                            those that send requests there beside
 *                            their chain (side.c)
 *             still          those, and images that lie over n, or      the same, and of those images                    goes on with its metadata
 *                            over a node above it, as over their
 *                            file, and all above such an image
 *             shut           those of drain, and formats' stores        as drain                                         waits, even with that: nothing
 *                            (under.c) that lead to n                                                                    inside may wait for it
 *
 *             All three nest, also in one another, and keep nobody else from draining the same node: they hold off requests, not changes (that
 *             is edges_mx and `whole`: docs/internals/concurrency.md). Attachments that are `inner` wait at no gate. "Shut" closes gates, no node.
 * Owns        node->gate, gated, drains, stills, shuts, waiters; graph->stills, waiting, drain_round.
 * Invariants  I1  gated is true exactly while some node that requests for this one go to (chain, sides) has drains > 0.
 *                 A format's store over nodes (under.c) is gated while one of those is shut, which is more than drained. What rests
 *                 on a node by such a store, or by one that it shares, is gated while that is still.
 *             I2  A request that saw gated == false is inside a section of the gate, which drain waits for; one
 *                 that saw true has left its section and waits. There is no third way: the request enters its
 *                 section before it looks, drain sets the flag before it starts to wait.
 * Order       None.
 * Concurrency A request touches its own loop's slot of the gate and reads one flag: no shared write while nobody
 *             drains. Waiters come to the home loop by message and are woken by event.
 * Failure     None of this can fail.
 * Tests       graph_test.c (nesting, waiters of two loops, drain of a backing node)
 */
#include "graph/under.h"

/* A request that waits for the gate to open. Lives in the frame of its coroutine. */
struct gate_waiter {
    struct rt_msg msg;
    struct co_xevent open;
    struct graph_node *n;
    struct gate_waiter *next;
};

int gate_init(struct graph_node *n)
{
    return epoch_new(n->g->home, &n->gate);
}

void gate_fini(struct graph_node *n)
{
    ASSERT(!n->waiters);
    epoch_free(n->gate);
}

void gate_empty(struct co *co, struct graph_node *n)
{
    epoch_wait(co, n->gate);
}

static void waiter_arrives(struct rt_msg *m)
{
    struct gate_waiter *w = CONTAINER_OF(m, struct gate_waiter, msg);
    if (!atomic_load(&w->n->gated)) {
        co_xevent_set(&w->open);
        return;
    }
    w->next = w->n->waiters;
    w->n->waiters = w;
}

void gate_wait_open(struct co *co, struct graph_node *n)
{
    struct gate_waiter w = { .n = n };
    w.msg.fn = waiter_arrives;
    co_xevent_init(&w.open, co_loop(co));
    rt_post(n->g->home, &w.msg);
    co_xevent_wait(co, &w.open);
}

/* Of a format's store: is a node shut that its requests go to? */
static bool is_shut(struct graph_node *n)
{
    LIST_FOR(l, &n->g->nodes) {
        const struct graph_node *m = CONTAINER_OF(l, struct graph_node, link);
        if (m->shuts && graph_goes_to(n, m))
            return true;
    }
    return false;
}

/* Does it rest on a node that is still? */
static bool is_held_still(const struct graph_node *n)
{
    LIST_FOR(l, &n->g->nodes) {
        const struct graph_node *m = CONTAINER_OF(l, struct graph_node, link);
        if (m->stills && graph_rests_on(n, m))
            return true;
    }
    return false;
}

bool graph_draining(const struct graph_node *n) { return atomic_load_explicit(&n->g->waiting, memory_order_acquire) != 0; }
bool graph_is_gated(const struct graph_node *n) { return atomic_load_explicit(&n->gated, memory_order_acquire); }

void gates_update(struct graph *g)
{
    LIST_FOR(l, &g->nodes) {
        struct graph_node *n = CONTAINER_OF(l, struct graph_node, link);
        bool gated = n->under ? is_shut(n) : !n->inner && (goes_to_drained(n) || (g->stills && is_held_still(n)));
        atomic_store(&n->gated, gated);
        while (!gated && n->waiters) {
            struct gate_waiter *w = n->waiters;
            n->waiters = w->next;
            co_xevent_set(&w->open);
        }
    }
    hastes_update(g);
}

static void empty_once(struct co *co, struct graph_node *n, bool still)
{
    unsigned round = ++n->g->drain_round;
    struct graph_node *m = node_next(n->g, NULL);
    while (m) {
        if (m->drain_round == round || !(graph_goes_to(m, n) || (still && graph_rests_on(m, n)))) {
            m = node_next(n->g, m);
            continue;
        }
        m->drain_round = round;
        m->refs++;                      /* stays in the list while we wait */
        gate_empty(co, m);
        bool closing = m->refs == 1 || m->ending;    /* its last user went away, before or meanwhile */
        (void)node_unref(co, m);        /* 0 unless closing; then there is nobody left to tell */
        m = node_next(n->g, closing ? NULL : m);
    }
}

/* Who is inside one gate may enter that of a side without looking whether it is closed (cbw.c), and stay there when he has left the first. So
 * that one is waited for once more behind the first, and again for a side of a side. */
void gates_empty(struct co *co, struct graph_node *n)
{
    atomic_fetch_add(&n->g->waiting, 1);
    for (unsigned passes = 1 + n->g->sides; passes; passes--)
        empty_once(co, n, false);
    atomic_fetch_sub(&n->g->waiting, 1);
}

/* Also what rests on n. The same goes for the files of images. Not for who closes a node that is still: a request of such an image may do that,
 * because it makes n longer, and would wait for itself. */
static void gates_empty_still(struct co *co, struct graph_node *n)
{
    atomic_fetch_add(&n->g->waiting, 1);
    for (unsigned passes = 1 + n->g->sides + UNDER_LEVELS_MAX; passes; passes--)
        empty_once(co, n, true);
    atomic_fetch_sub(&n->g->waiting, 1);
}

void graph_drain_begin(struct co *co, struct graph_node *n)
{
    ASSERT_LOOP(n->g->home);
    n->drains++;
    gates_update(n->g);
    gates_empty(co, n);
}

void graph_drain_end(struct graph_node *n)
{
    ASSERT_LOOP(n->g->home);
    ASSERT(n->drains > 0);
    n->drains--;
    gates_update(n->g);
}

void graph_still_begin(struct co *co, struct graph_node *n)
{
    ASSERT_LOOP(n->g->home);
    n->drains++;
    n->stills++;
    n->g->stills++;
    gates_update(n->g);
    gates_empty_still(co, n);
}

void graph_still_end(struct graph_node *n)
{
    ASSERT(n->stills > 0);
    n->stills--;
    n->g->stills--;
    graph_drain_end(n);
}

void graph_shut_begin(struct co *co, struct graph_node *n)
{
    n->shuts++;
    graph_drain_begin(co, n);
}

void graph_shut_end(struct graph_node *n)
{
    ASSERT(n->shuts > 0);
    n->shuts--;
    graph_drain_end(n);
}
