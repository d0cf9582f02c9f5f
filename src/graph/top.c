/* SPDX-License-Identifier: MIT
 *
 * top.c: filters that stand over a node while a job works with it, for their names alone (FEATURES 9.035).
 *
 * Purpose     Whoever starts a job may name such a node, and sees by it where the job is.
 * Owns        Nothing.
 * Invariants  F1  What is asked of it is asked of what lies below it.
 * Order       None.
 * Concurrency Home loop; requests on any loop.
 * Failure     As graph.h.
 * Tests       tests/daemon/job_filter_test.py
 */
#include "graph/filter.h"

int graph_top_new(struct graph *g, enum graph_top kind, const char *node_name, struct graph_node **ret_n, struct byre_err *err)
{
    static const struct filter_ops ops[] = { [GRAPH_MIRROR_TOP] = { .name = "mirror_top" }, [GRAPH_COMMIT_TOP] = { .name = "commit_top" },
                                             [GRAPH_STREAM_TOP] = { .name = "stream_top" } };
    const struct filter_new f = { .ops = &ops[kind], .node_name = node_name };
    int r = filter_new(g, &f, ret_n, err);
    if (!r)
        (*ret_n)->of_job = true;
    return r;
}
