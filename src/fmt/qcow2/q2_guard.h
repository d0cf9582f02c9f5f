/* SPDX-License-Identifier: MIT
 *
 * q2_guard.h: where does metadata lie? (FEATURES 1.111, 1.112)
 */
#ifndef Q2_GUARD_H
#define Q2_GUARD_H

#include "fmt/qcow2/q2_image.h"

/* Kinds of metadata: the first nine are those of FMT_OVERLAP_*, in that order. */
enum q2_what {
    Q2_K_HEADER, Q2_K_L1, Q2_K_L2, Q2_K_TABLE, Q2_K_BLOCK, Q2_K_SNAPSHOTS, Q2_K_OLD_L1, Q2_K_OLD_L2, Q2_K_BITMAPS, Q2_K_LUKS, Q2_K_COUNT,
    Q2_K_NONE = Q2_K_COUNT
};
const char *q2_what_name(enum q2_what k);
/* What of `want` (bits 1 << kind) does the cluster at `host` touch? Q2_K_NONE: nothing. Any loop, inside an epoch section of the
 * image, or home. Tables whose places are not known yet (q2_guard_ready) are not found. */
enum q2_what q2_guard_kind(const struct q2_image *q, uint64_t host, unsigned want);
/* Are the places of L2 tables and refcount blocks known? */
static inline bool q2_guard_ready(const struct q2_image *q) { return atomic_load_explicit(&q->guard, memory_order_acquire) != NULL; }
/* Any loop, like q2_guard_kind: may a guest write go to `host` in place, as far as the checks go that were asked for
 * (overlap-check)? false also when that is not known. */
bool q2_guard_passes(const struct q2_image *q, uint64_t host);
/* Home: the same for `bytes` at `host`, of a write. What is hit is noted for q2_corrupt. */
bool q2_guard_judge(struct q2_image *q, uint64_t host, uint64_t bytes);
/* Home, after q2_guard_need: no metadata of any kind lies in the cluster at `host`, as far as that is known. */
bool q2_guard_clear(const struct q2_image *q, uint64_t host);
/* Home: makes the places known. 0, -ENOMEM, -EIO. Suspends; inside struct sections, too. */
MUST_USE int q2_guard_need(struct co *co, struct q2_image *q);
/* Home: they have changed as a whole; they are found out anew when needed. */
void q2_guard_drop(struct q2_image *q);
void q2_guard_free(struct q2_image *q);
/* Home: may n clusters be handed out? -EUCLEAN: metadata lies there, whatever its count says; noted. */
MUST_USE int q2_guard_may_take(struct co *co, struct q2_image *q, uint64_t cluster, uint64_t n);
/* Home: may the cluster at `off`, which a table names as one of kind k, be changed as that? -EUCLEAN: it is something else as
 * well; noted. */
MUST_USE int q2_guard_may_change(struct co *co, struct q2_image *q, uint64_t off, enum q2_what k);

/* ---- whoever changes a root tells it here. Home. ---- */
/* Entry i of the L1 table, dirty, to be written by the next pass. */
void q2_l1_set(struct q2_image *q, uint64_t i, uint64_t raw);
/* Entry i of the refcount table in memory names `off` (0: nothing). */
void q2_rt_set(struct q2_image *q, uint64_t *rt, uint64_t i, uint64_t off);

/* Tests: does it say exactly what the tables in memory say? */
bool q2_guard_is_right(const struct q2_image *q);

#endif
