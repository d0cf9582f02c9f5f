/* SPDX-License-Identifier: MIT
 *
 * q2_amend_priv.h: what q2_amend.c and q2_downgrade.c share.
 */
#ifndef Q2_AMEND_PRIV_H
#define Q2_AMEND_PRIV_H

#include "fmt/qcow2/q2_image.h"

/* Can version 2 say what the image says? -ENOTSUP names what it cannot. Reads the snapshot table; writes nothing. Suspends. */
MUST_USE int q2_downgrade_check(struct co *co, struct q2_image *q, uint64_t new_size, struct byre_err *err);
/* Gets rid of everything that says "reads zero" in the tables: no guest byte changes. Drained. */
MUST_USE int q2_downgrade_zeros(struct co *co, struct q2_image *q, struct byre_err *err);
/* q2_expand.c: the same in the tables of snapshots. */
MUST_USE int q2_expand_snapshots(struct co *co, struct q2_image *q, struct byre_err *err);

#endif
