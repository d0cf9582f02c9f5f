/* SPDX-License-Identifier: MIT
 *
 * haste.c: requests that nobody may have to wait for because a limit makes them slow.
 *
 * Purpose     Says of each throttle node whether requests that stand there go on at once: because the end has begun, or because they may belong to
 *             somebody who is on his way out (an export that is removed, a job that is cancelled) and waits for them.
 * Owns        graph->hastes, graph->in_haste, node->hasty
 * Invariants  H1  hasty is true exactly while requests of a node whose haste has begun may come there: it is that node, or lies below it, beside
 *                 it (side.c) or below its files. Requests that come there from elsewhere are let through as well, which is why it is no more than that.
 *             H2  A haste names a node that is in the list, or none: that goes with it.
 * Order       None.
 * Concurrency Home loop; requests of any loop look at hasty.
 * Failure     None.
 * Tests       throttle_test.c, tests/cli/throttle_end_test.py
 */
#include "graph/graph_priv.h"
#include "graph/reach.h"

static bool is_concerned(const struct graph_node *n)
{
    for (const struct graph_haste *h = n->g->hastes; h; h = h->next)
        if (h->begun && (graph_goes_to(h->node, n) || graph_rests_on(h->node, n)))
            return true;
    return false;
}

void hastes_update(struct graph *g)
{
    bool begun = false;
    for (const struct graph_haste *h = g->hastes; h; h = h->next)
        begun |= h->begun;
    if (!begun && !g->in_haste)
        return;
    g->in_haste = begun;
    LIST_FOR(l, &g->nodes) {
        struct graph_node *n = CONTAINER_OF(l, struct graph_node, link);
        if (n->flt)
            atomic_store(&n->hasty, begun && is_concerned(n));
    }
}

void hastes_forget(struct graph_node *n)
{
    struct graph_haste **at = &n->g->hastes;
    while (*at) {
        struct graph_haste *h = *at;
        if (h->node == n) {
            *at = h->next;
            h->node = NULL;
        } else {
            at = &h->next;
        }
    }
    hastes_update(n->g);
}

void graph_haste_may(struct graph_haste *h, struct graph_node *n)
{
    ASSERT_LOOP(n->g->home);
    ASSERT(!h->node);
    *h = (struct graph_haste){ .next = n->g->hastes, .node = n };
    n->g->hastes = h;
}

void graph_haste_begin(struct graph_haste *h)
{
    if (!h->node || h->begun)
        return;
    ASSERT_LOOP(h->node->g->home);
    h->begun = true;
    hastes_update(h->node->g);
}

void graph_haste_end(struct graph_haste *h)
{
    if (!h->node)
        return;
    struct graph *g = h->node->g;
    ASSERT_LOOP(g->home);
    struct graph_haste **at = &g->hastes;
    while (*at != h)
        at = &(*at)->next;
    *at = h->next;
    h->node = NULL;
    hastes_update(g);
}

bool graph_is_hasty(const struct graph_node *n)
{
    return atomic_load_explicit(&n->hasty, memory_order_relaxed) || atomic_load_explicit(&n->g->parting, memory_order_relaxed);
}
