/* SPDX-License-Identifier: MIT
 *
 * aside.h: a flush that a job can leave alone, for targets that stand still.
 */
#ifndef JOB_ASIDE_H
#define JOB_ASIDE_H

#include "job/job.h"
#include "graph/graph.h"

/* Flushes node, of a job's coroutine. until (time of the loop): for so long, cancelled or not; 0: until the job is cancelled.
 * JOB_LEFT_ALONE: it goes on in the group left_in, and keeps the node open until it has ended. Suspends. */
#define JOB_LEFT_ALONE 1
MUST_USE int job_flush_aside(struct co *co, struct job *job, struct graph_node *node, struct co_group *left_in, uint64_t until);

#endif
