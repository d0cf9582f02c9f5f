/* SPDX-License-Identifier: MIT
 *
 * carry.h: the bitmaps of a disk on its copy (FEATURES 9.040).
 */
#ifndef JOB_CARRY_H
#define JOB_CARRY_H

#include "graph/graph.h"

/* Could a copy of this format, under a name for messages, get them? Suspends. */
MUST_USE int job_carry_could(struct co *co, struct graph_node *from, const struct fmt_ops *ops, const char *copy, struct byre_err *err);
/* Could they be carried over, as things are? Changes nothing. Suspends. */
MUST_USE int job_carry_check(struct co *co, struct graph_node *from, struct graph_node *to, struct byre_err *err);
/* `to` gets them all, as they are now, or none. Both are drained, hold the same, and edges are held. Suspends. */
MUST_USE int job_carry_bitmaps(struct co *co, struct graph_node *from, struct graph_node *to, struct byre_err *err);

#endif
