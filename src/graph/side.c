/* SPDX-License-Identifier: MIT
 *
 * side.c: nodes that a request goes to beside its chain.
 *
 * Purpose     A filter that copies before it writes has a target; what looks into a snapshot that such a filter keeps has the filter. Both are sides:
 *             whoever drains them drains those who send requests there, too, and no chain may come to lie over itself by way of one.
 * Owns        node->side, its reference and its use.
 * Invariants  S1  No node comes to itself by sides and backing nodes (graph_goes_to): whoever adds an edge has asked.
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
