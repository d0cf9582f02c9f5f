/* SPDX-License-Identifier: MIT
 *
 * qed_owned.h: which clusters of the file have an owner: one bit each, with memory only where there is one. Clusters may be
 * taken by several threads at once; everything else is for one.
 */
#ifndef QED_OWNED_H
#define QED_OWNED_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define QED_OWNED_NONE UINT64_MAX

struct qed_owned {
    uint64_t n;                                   /* clusters 0..n-1 */
    _Atomic(_Atomic uint64_t *) *chunks;
    _Atomic uint64_t count;                       /* bits that are set */
};

/* -ENOMEM. */
MUST_USE int qed_owned_init(struct qed_owned *o, uint64_t n);
void qed_owned_fini(struct qed_owned *o);
/* Nobody owns anything. */
void qed_owned_clear(struct qed_owned *o);
/* Clusters behind the end are there, too, from now on. -ENOMEM: unchanged. */
MUST_USE int qed_owned_grow(struct qed_owned *o, uint64_t n);
/* Clusters [first, first + len), all below n, have an owner. How many had one already; -ENOMEM. Any thread. */
MUST_USE int64_t qed_owned_take(struct qed_owned *o, uint64_t first, uint64_t len);
void qed_owned_drop(struct qed_owned *o, uint64_t first, uint64_t len);
bool qed_owned_has(const struct qed_owned *o, uint64_t c);
/* The first cluster from `from` on, below `to`, that has an owner (owned), or none; QED_OWNED_NONE. */
uint64_t qed_owned_next(const struct qed_owned *o, uint64_t from, uint64_t to, bool owned);
/* The last cluster below `to` that has an owner; QED_OWNED_NONE. */
uint64_t qed_owned_last(const struct qed_owned *o, uint64_t to);
/* The first run of len clusters without an owner that ends at or before `to`; QED_OWNED_NONE. */
uint64_t qed_owned_gap(const struct qed_owned *o, uint64_t from, uint64_t to, uint64_t len);

#endif
