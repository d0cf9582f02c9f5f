/* SPDX-License-Identifier: MIT
 *
 * top.h: the filter that a user named when he began a job, and that goes with it.
 */
#ifndef JOB_TOP_H
#define JOB_TOP_H

#include "graph/runtime.h"

struct job_top { struct graph_node *filter; bool inserted; };      /* {}: none */

/* Puts it over n. name NULL: there is none. On failure nothing is left. Suspends. */
MUST_USE int job_top_put(struct co *co, struct job_top *t, struct graph_node *n, enum graph_top kind, const char *name, struct byre_err *err);
/* Takes it out of the graph, if it is in it. Suspends. */
MUST_USE int job_top_take(struct co *co, struct job_top *t, struct byre_err *err);
/* The same, and forgets it. What does not work is warned of. Idempotent; suspends. */
void job_top_end(struct co *co, struct job_top *t);

#endif
