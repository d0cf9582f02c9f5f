/* SPDX-License-Identifier: MIT
 *
 * aside.h: what a job asks of a target, and can leave alone when the target stands still.
 */
#ifndef JOB_ASIDE_H
#define JOB_ASIDE_H

#include "job/job.h"
#include "graph/graph.h"

/* While others wait (edges are held, a guest stands at a gate) a target is waited for no longer than this. */
#define JOB_TARGET_NS UINT64_C(10000000000)
#define JOB_TARGET_TEXT "10 seconds"

/* How long: until the job is cancelled, unless `stay`; until `until` (time of the loop), unless that is 0. What is left alone goes on in the group
 * left_in, and keeps the node open until it has ended. */
struct job_patience { struct co_group *left_in; uint64_t until; bool stay; };

/* Flushes node, of a job. JOB_LEFT_ALONE: it was left alone, and nothing is known. Suspends. */
#define JOB_LEFT_ALONE 1
MUST_USE int job_flush_aside(struct co *co, struct job *job, struct graph_node *node, const struct job_patience *p);
/* The node that `use` uses gets this length (graph_resize_for), while the caller holds the edges. What was left alone may do so still, and nothing of the
 * node is to be relied on. `use` lasts as long as left_in. */
MUST_USE int job_resize_aside(struct co *co, struct job *job, struct graph_user *use, uint64_t size, const struct job_patience *p, struct byre_err *err);

#endif
