/* SPDX-License-Identifier: MIT
 *
 * q2_clone.h: two places of one disk share clusters (FEATURES G.004). Home loop, but q2_clone.
 */
#ifndef Q2_CLONE_H
#define Q2_CLONE_H

#include "fmt/qcow2/q2_image.h"

/* fmt_ops.clone. */
int64_t q2_clone(struct co *co, struct fmt_image *im, uint64_t src, uint64_t dst, uint64_t len);
/* Are there clusters that two places of the disk share, as far as the image says? */
static inline bool q2_clone_any(const struct q2_image *q) { return q->h.autoclear & Q2_AUTOCLEAR_CLONES; }
/* Behind the opening for writing. */
void q2_clone_opened(struct q2_image *q);
/* A shared cluster is about to lose an owner, or its flag: the image does not say any more that no flag is missing. Durable when it returns 0. */
MUST_USE int q2_clone_unsettle(struct co *co, struct q2_image *q);
/* The same; and nobody will know of which cluster. */
MUST_USE int q2_clone_distrust(struct co *co, struct q2_image *q);
/* Clusters have lost an owner and have others: one of those may be the only one now, without a flag that says so. */
void q2_clone_left(struct q2_image *q, uint64_t cluster, uint64_t n);
/* May it be that the flag of the one entry that names this cluster is missing for that reason? */
bool q2_clone_is_left(const struct q2_image *q, uint64_t cluster);
/* Drained, and nothing is dropped that has not been released: sets the flags that are missing; durable when it returns 0. */
MUST_USE int q2_clone_settle(struct co *co, struct q2_image *q);
void q2_clone_free(struct q2_image *q);

#endif
