/* SPDX-License-Identifier: MIT
 *
 * reach.c: does one node lie above another, do its requests come there?
 *
 * Purpose     The walks of the graph behind drains, checks for cycles and what jobs ask of a chain.
 * Owns        The links of the walk in each node.
 * Invariants  S1  A walk suspends nowhere and visits each node once, so its links are its own.
 * Order       None.
 * Concurrency Home loop.
 * Failure     None.
 * Tests       cbw_test.c, graph_test.c, runtime_test.c
 */
#include "graph/graph_priv.h"

bool chain_has(const struct graph_node *top, const struct graph_node *n)
{
    for (; top; top = top->backing)
        if (top == n)
            return true;
    return false;
}

struct graph_node *graph_overlay_in(struct graph_node *top, const struct graph_node *n)
{
    while (top && top->backing != n)
        top = top->backing;
    return top;
}

bool graph_lies_above(const struct graph_node *top, const struct graph_node *n) { return top && chain_has(top->backing, n); }

/* n NULL: one that is drained. */
static bool is_it(const struct graph_node *m, const struct graph_node *n)
{
    return n ? m == n : m->drains != 0;
}

static bool chain_goes_to(const struct graph_node *top, const struct graph_node *n)
{
    for (; top; top = top->backing)
        if (is_it(top, n))
            return true;
    return false;
}

static bool goes_to(struct graph_node *top, const struct graph_node *n)
{
    if (!top || !top->g->sides)
        return chain_goes_to(top, n);
    unsigned round = ++top->g->walk_round;
    top->walk_next = NULL;
    for (struct graph_node *todo = top, *m; (m = todo); ) {
        todo = m->walk_next;
        for (; m && m->walk_seen != round; m = m->backing) {
            m->walk_seen = round;
            if (is_it(m, n))
                return true;
            if (m->side && m->side->walk_queued != round) {
                m->side->walk_queued = round;
                m->side->walk_next = todo;
                todo = m->side;
            }
        }
    }
    return false;
}

bool goes_to_drained(struct graph_node *top) { return goes_to(top, NULL); }

bool graph_goes_to(struct graph_node *top, const struct graph_node *n)
{
    ASSERT_LOOP(n->g->home);
    return goes_to(top, n);
}

static bool rests_on(struct graph_node *top, const struct graph_node *n, unsigned round);

/* Is n where this file of an image lies? */
static bool is_in(struct graph_node *file, const struct graph_node *n, unsigned round) { return file && (graph_goes_to(file, n) || rests_on(file, n, round)); }

/* Each node once: the target of a filter may lie over that filter (FEATURES 9.069). */
static bool rests_on(struct graph_node *top, const struct graph_node *n, unsigned round)
{
    for (; top && top->rest_seen != round; top = top->backing) {
        top->rest_seen = round;
        if (is_in(top->file, n, round) || is_in(top->data_node, n, round) || (top->side && rests_on(top->side, n, round)))
            return true;
    }
    return false;
}

bool graph_rests_on(const struct graph_node *top, const struct graph_node *n)
{
    ASSERT_LOOP(n->g->home);
    return rests_on((struct graph_node *)(uintptr_t)top, n, ++n->g->rest_round);
}
