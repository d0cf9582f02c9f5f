/* SPDX-License-Identifier: MIT
 *
 * top.c: the filter that a user named when he began a job.
 *
 * Purpose      In with the job, out with it, however that ends (FEATURES 9.016, 9.035).
 * Owns         struct job_top's reference
 * Invariants   I1 the job's own nodes never mean the filter: it passes everything on
 * Order        none
 * Concurrency  home loop
 * Failure      a filter that cannot be taken out stays, passes everything on, and is warned of
 * Tests        tests/daemon/job_filter_test.py
 */
#include "job/top.h"

#include "graph/live.h"

int job_top_put(struct co *co, struct job_top *t, struct graph_node *n, enum graph_top kind, const char *name, struct byre_err *err)
{
    if (!name)
        return 0;
    int r = graph_top_new(graph_of(n), kind, name, &t->filter, err);
    if (!r)
        r = graph_insert_above(co, n, t->filter, err);
    t->inserted = !r;
    if (r && t->filter)
        job_top_end(co, t);
    return r;
}

int job_top_take(struct co *co, struct job_top *t, struct byre_err *err)
{
    if (!t->inserted)
        return 0;
    struct graph *g = graph_of(t->filter);
    graph_edges_hold(co, g);                 /* what lies below it may be another job's, which goes now, too */
    int r = graph_remove_filter(co, t->filter, err);
    graph_edges_let(co, g);
    t->inserted = r != 0;
    return r;
}

void job_top_end(struct co *co, struct job_top *t)
{
    struct byre_err why = { 0 };
    if (job_top_take(co, t, &why))
        graph_warn(t->filter, "%s", why.text);
    if (t->filter)
        (void)graph_close(co, t->filter);    /* it has nothing of its own */
    *t = (struct job_top){ NULL, false };
}
