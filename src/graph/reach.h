/* SPDX-License-Identifier: MIT
 *
 * reach.h: does one node lie above another, do its requests come there?
 *
 * Each is asked about an upper node and a lower one, in this order, and goes by edges of these kinds:
 *
 *                         the node itself   backing   side (side.c)   file of an image (under.c, or a store that is shared)
 *     chain_has           yes               yes       no              no
 *     graph_lies_above    no                yes       no              no
 *     graph_goes_to       yes               yes       yes             no
 *     graph_rests_on      no                yes       yes             one at least
 *
 * graph_drain_begin gates what goes to a node, graph_still_begin also what rests on it.
 *
 * Invariants   An answer holds until the caller suspends, or lets the edges go: none of these suspends.
 * Concurrency  Home loop.
 */
#ifndef GRAPH_REACH_H
#define GRAPH_REACH_H

#include "graph/graph.h"

bool graph_lies_above(const struct graph_node *top, const struct graph_node *n);
/* top, or the layer of its chain, that lies right above n. NULL: none. */
struct graph_node *graph_overlay_in(struct graph_node *top, const struct graph_node *n);
bool graph_goes_to(struct graph_node *top, const struct graph_node *n);
bool graph_rests_on(const struct graph_node *top, const struct graph_node *n);

/* ---- inside graph/ ---- */
bool chain_has(const struct graph_node *top, const struct graph_node *n);
/* Does top go to a node that is drained? */
bool goes_to_drained(struct graph_node *top);

#endif
