/* SPDX-License-Identifier: MIT
 *
 * pr.h: persistent reservations of the device that a node's data lies on (FEATURES 3.021).
 *
 * Concurrency  Home loop.
 */
#ifndef GRAPH_PR_H
#define GRAPH_PR_H

#include "graph/graph.h"
#include "stor/pr.h"

struct pr_set *graph_prs(const struct graph *g);      /* NULL: there are none */
/* Is it the id of a manager? NOT_FOUND: of nothing; BAD_OPTION: of another object. */
MUST_USE int pr_check(const struct graph *g, const char *id, struct byre_err *err);
/* pr_run (stor/pr.h) with the manager and the descriptor of the file that n is, filters, or lies over; the first of them that was opened with one. The caller
 * has a reference of n. NOT_SUPPORTED: none was. Suspends. */
MUST_USE int graph_pr_run(struct co *co, struct graph_node *n, const struct pr_call *call, struct pr_answer *ret, struct byre_err *err);

#endif
