/* SPDX-License-Identifier: MIT
 *
 * rset.h: an ordered set of disjoint half-open ranges of uint64_t, each with a 32-bit tag. Neighbours with
 * equal tags merge. Balanced tree; every call O(log n) plus ranges touched. No locks: one owner.
 */
#ifndef BASE_RSET_H
#define BASE_RSET_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct rset_node;
struct rset {
    struct rset_node *root;
    uint64_t total;        /* sum of lengths */
    uint64_t count;        /* ranges */
    struct rset_node *spare;  /* nodes kept so that rset_remove never has to allocate; see rset_reserve */
    uint32_t spare_count;
};
struct rset_range { uint64_t start, end; uint32_t tag; };

void rset_init(struct rset *s);
void rset_fini(struct rset *s);
/* Makes sure that the next n add/remove calls cannot fail. -ENOMEM, nothing changed. */
MUST_USE int rset_reserve(struct rset *s, uint32_t n);
/* Adds [start, end); parts already present take the new tag. -ENOMEM, nothing changed. */
MUST_USE int rset_add(struct rset *s, uint64_t start, uint64_t end, uint32_t tag);
/* Removes whatever of [start, end) is present. -ENOMEM (a split), nothing changed. */
MUST_USE int rset_remove(struct rset *s, uint64_t start, uint64_t end);
/* First range with end > pos (so it contains pos or lies behind it). false: none. */
bool rset_next(const struct rset *s, uint64_t pos, struct rset_range *ret);
bool rset_overlaps(const struct rset *s, uint64_t start, uint64_t end);
bool rset_contains(const struct rset *s, uint64_t start, uint64_t end);
/* First range at or behind pos whose length is at least want (first fit). */
bool rset_fit(const struct rset *s, uint64_t pos, uint64_t want, struct rset_range *ret);
void rset_check(const struct rset *s);   /* asserts every invariant; for tests and the simulator */

#endif
