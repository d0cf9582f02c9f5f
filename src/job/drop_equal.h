/* SPDX-License-Identifier: MIT
 *
 * drop_equal.h: an image gives up what the chain below it shows as well (FEATURES G.023).
 *
 * Invariants  I1  The header of the image names that chain, durably, before the first cluster is given up: with it or without it the
 *                 image reads the same, so any part of the work may be lost or kept by a crash (J3).
 * Concurrency Home loop; nobody else uses the image or changes the chain. Suspends. progress comes on the home loop.
 * Failure     Some of it is given up; the image reads as before.
 */
#ifndef JOB_DROP_EQUAL_H
#define JOB_DROP_EQUAL_H

#include "job/commit.h"

struct drop_equal {
    struct graph_node *top, *below;        /* below NULL: nothing, zeros */
    const struct job_copy_how *how;        /* progress, cancel; the second half of what is told */
};
/* Can the image give anything up? */
MUST_USE int drop_equal_check(struct graph_node *top, struct byre_err *err);
/* Durable when it returns 0. -ECANCELED. */
MUST_USE int drop_equal_run(struct co *co, const struct drop_equal *d, struct byre_err *err);

#endif
