/* SPDX-License-Identifier: MIT
 *
 * relink.h: images of a chain in use get another image below them: all of them, or none.
 *
 * Invariants  I1  Whoever calls has made durable that each image shows the same by either chain (J2, J3). So what is left when it fails, or
 *                 is cut short, reads right whatever each of them names.
 * Concurrency Home loop; suspends.
 */
#ifndef JOB_RELINK_H
#define JOB_RELINK_H

#include "graph/live.h"

struct relink;
MUST_USE int relink_new(struct relink **ret, struct byre_err *err);
struct relink_what {
    struct graph_node *n, *to;           /* to NULL: nothing lies below n any more */
    struct graph_name name;              /* what n records; copied */
    bool optional;                       /* it is only warned of when n cannot be changed */
};
/* Refused when it is seen already that n cannot record it. All nodes stay open. */
MUST_USE int relink_add(struct co *co, struct relink *l, const struct relink_what *w, struct byre_err *err);
/* In the order in which they were added, durably. When one fails, those before are set back (FEATURES G.034). longest: graph_name. */
MUST_USE int relink_run(struct co *co, struct relink *l, uint64_t longest, struct byre_err *err);
/* NULL: nothing. */
void relink_free(struct co *co, struct relink *l);

#endif
