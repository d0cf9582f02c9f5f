/* SPDX-License-Identifier: MIT
 *
 * recorded.c: what is the name of a node's file worth in another image's header?
 *
 * Purpose     A header records a file and a format. A node may show more than those two say: commands and jobs that record names ask here first.
 * Owns        nothing
 * Invariants  N1  A name that is recorded without having been given by the user leads to what the node shows.
 * Order       none; before anything is written
 * Concurrency home loop; suspends. The caller keeps the node.
 * Failure     nothing has changed
 * Tests       tests/daemon/recorded_test.py
 */
#include "graph/live.h"
#include "graph/under.h"

/* What keeps the name of its file from meaning n. NULL: nothing. */
static const char *beside_name(struct co *co, struct graph_node *n)
{
    if (under_shows_format(n->im->store))
        return "lies over another format";
    if (n->is_view)
        return n->how && n->how->ref.node.window.on ? "shows a part of its file" : "shows an internal snapshot";
    return data_is_recorded(co, n) ? NULL : "has another external data file than its header records";
}

int graph_name_check(struct co *co, struct graph_node *n, const char *instead, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    struct graph_node *image = graph_skip_filters(n);
    if (!image)
        return byre_fail(err, BAD_ARGUMENT, "node '%s' is a filter that filters nothing: no file name means it", n->name);
    const char *why = beside_name(co, image);
    return why ? byre_fail(err, NOT_SUPPORTED, "%s: node '%s' %s, which no file name says, so it cannot be recorded as a backing file; %s", image->filename, image->name, why, instead) : 0;
}
