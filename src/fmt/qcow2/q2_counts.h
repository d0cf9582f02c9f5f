/* SPDX-License-Identifier: MIT
 *
 * q2_counts.h: a number per host cluster, for check and repair. Costs memory only where a number is not zero, and
 * only as many bytes as the largest number of its neighbourhood needs. Pure.
 */
#ifndef Q2_COUNTS_H
#define Q2_COUNTS_H

#include <stdint.h>

#include "base/err.h"

#define Q2_COUNTS_NONE UINT64_MAX

struct q2_counts_chunk { void *data; uint8_t width; };       /* width in bytes: 0 (all zero), 1, 2, 4, 8 */
struct q2_counts {
    uint64_t n;                                              /* indexes 0..n-1 */
    struct q2_counts_chunk *chunks;
};

/* n may be 0. -ENOMEM. */
MUST_USE int q2_counts_init(struct q2_counts *c, uint64_t n);
void q2_counts_fini(struct q2_counts *c);
uint64_t q2_counts_get(const struct q2_counts *c, uint64_t i);      /* 0 for i >= n */
MUST_USE int q2_counts_set(struct q2_counts *c, uint64_t i, uint64_t value);
/* Adds with saturation at 2^64 - 1. -ENOMEM: unchanged. */
MUST_USE int q2_counts_add(struct q2_counts *c, uint64_t i, uint64_t by);
/* Takes away, not below zero. Cannot fail. */
void q2_counts_sub(struct q2_counts *c, uint64_t i, uint64_t by);
/* First index >= i with a number other than zero; Q2_COUNTS_NONE. */
uint64_t q2_counts_next(const struct q2_counts *c, uint64_t i);
/* Bytes of memory in use. */
uint64_t q2_counts_bytes(const struct q2_counts *c);

#endif
