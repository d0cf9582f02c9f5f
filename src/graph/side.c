/* SPDX-License-Identifier: MIT
 *
 * side.c: nodes that a request goes to beside its chain.
 *
 * Purpose     A filter that copies before it writes has a target; what looks into a snapshot that such a filter keeps has the filter. Both are sides:
 *             whoever drains them drains those who send requests there, too, and no chain may come to lie over itself by way of one.
 * Owns        node->side, its reference and its use; the links of the walk.
 * Invariants  S1  A walk suspends nowhere and visits each node once, so its links are its own.
 * Order       None.
 * Concurrency Home loop.
 * Failure     side_set: n is as before.
 * Tests       cbw_test.c
 */
#include "graph/graph_priv.h"

int side_set(struct graph_node *n, struct graph_node *to, const struct graph_user *use, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    ASSERT(!n->side);
    n->side_use = *use;
    int r = graph_user_add(to, &n->side_use, err);
    if (r)
        return r;
    n->side = to;
    to->refs++;
    n->g->sides++;
    gates_update(n->g);
    return 0;
}

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

bool goes_to(struct graph_node *top, const struct graph_node *n)
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
