/* SPDX-License-Identifier: MIT
 *
 * parting.c: the end of all nodes.
 *
 * Purpose      Makes durable what guests were told, and closes the nodes, so that one whose file or server stands still keeps no other one from it.
 * Owns         a coroutine for each node that is flushed or closed; those that close are in `partings`, which are waited for, with those that open an
 *              image for reading again behind who wrote to it (mode_settle): at the end none of these begins
 * Invariants   I1 a node that is flushed may lose its last user meanwhile: its end waits for the flush, as for those who describe it (graph_look_begin)
 *              I2 one whose flush has not ended is not flushed a second time beside it
 * Order        none between nodes: each is closed behind those that lie over it, as node_unref has it
 * Concurrency  home loop
 * Failure      no memory for a coroutine: a flush is left to the close; a close is done one after the other
 * Tests        graph_test.c, tests/daemon/end_test.py
 */
#include "graph/blockdev.h"
#include "graph/graph_priv.h"
#include "graph/runtime.h"

#define LAST_PATIENCE_NS UINT64_C(30000000000)

static void flush_co(struct co *co, void *arg)
{
    struct graph_node *n = arg;
    if (!graph_is_gated(n))              /* who has closed the gate may wait for what ends behind this */
        (void)!graph_flush(co, n);       /* its close flushes again, and tells */
    n->parting = false;
    graph_look_end(n);
}

void graph_flush_soon(struct graph *g)
{
    ASSERT_LOOP(g->home);
    for (struct graph_node *n = graph_next(g, NULL); n; n = graph_next(g, n)) {
        if (n->parting || n->read_only || n->flt || graph_is_gated(n) || !graph_look_begin(n))      /* I2; a filter keeps nothing back */
            continue;
        n->parting = !rt_spawn(g->home, flush_co, n);
        if (!n->parting)
            graph_look_end(n);
    }
}

static void close_co(struct co *co, void *arg)
{
    struct graph_node *n = arg;
    struct graph *g = n->g;
    graph_closed_badly(g, node_unref(co, n));
    co_group_leave(&g->partings);
}

/* The first of those that the user owns, whose reference is the caller's now. */
static struct graph_node *disown_one(struct graph *g)
{
    struct graph_node *n = graph_next(g, NULL);
    while (n && !n->owned)
        n = graph_next(g, n);
    if (n)
        n->owned = false;
    return n;
}

void graph_parting(struct graph *g)
{
    atomic_store(&g->parting, true);     /* nobody waits for a limit any more (haste.c) */
    g->patience = LAST_PATIENCE_NS;      /* who is in more of a hurry meanwhile leaves it at that (graph_close_hurried) */
    graph_hurry_all(g, LAST_PATIENCE_NS);
}

void graph_closed_badly(struct graph *g, int error)
{
    ASSERT_LOOP(g->home);
    if (!g->parting_error)
        g->parting_error = error;
}

int graph_blockdev_close_all(struct co *co, struct graph *g)
{
    ASSERT_LOOP(g->home);
    graph_parting(g);                    /* again: of those that have come since */
    for (struct graph_node *n; (n = disown_one(g));) {
        co_group_enter(&g->partings);
        if (rt_spawn(g->home, close_co, n))
            close_co(co, n);
    }
    co_group_wait(co, &g->partings);
    return g->parting_error;
}
