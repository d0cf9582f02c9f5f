/* SPDX-License-Identifier: MIT
 *
 * q2_counts.h: a number per host cluster, for check and repair. Costs memory only where a number is not zero, and
 * only as many bytes as the largest number of its neighbourhood needs. Pure.
 */
#ifndef Q2_COUNTS_H
#define Q2_COUNTS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define Q2_COUNTS_NONE UINT64_MAX

struct q2_counts_chunk { void *data; uint8_t width; };       /* width in bytes: 0 (all zero), 1, 2, 4, 8 */
struct q2_counts {
    uint64_t n;                                              /* indexes 0..n-1 */
    struct q2_counts_chunk *chunks;
    uint64_t data_bytes;                                     /* of all chunks */
};
#define Q2_COUNTS_CHUNK_BITS 13u
#define Q2_COUNTS_CHUNK (1u << Q2_COUNTS_CHUNK_BITS)         /* numbers per chunk; different chunks may be used by different threads */

/* n may be 0. -ENOMEM. */
MUST_USE int q2_counts_init(struct q2_counts *c, uint64_t n);
/* Makes the array longer; the new numbers are 0. -ENOMEM: unchanged. */
MUST_USE int q2_counts_grow(struct q2_counts *c, uint64_t n);
void q2_counts_fini(struct q2_counts *c);
uint64_t q2_counts_get(const struct q2_counts *c, uint64_t i);      /* 0 for i >= n */
MUST_USE int q2_counts_set(struct q2_counts *c, uint64_t i, uint64_t value);
/* Adds with saturation at 2^64 - 1. -ENOMEM: unchanged. */
MUST_USE int q2_counts_add(struct q2_counts *c, uint64_t i, uint64_t by);
/* Takes away, not below zero. Cannot fail. */
void q2_counts_sub(struct q2_counts *c, uint64_t i, uint64_t by);
/* First index >= i with a number other than zero; Q2_COUNTS_NONE. */
uint64_t q2_counts_next(const struct q2_counts *c, uint64_t i);
/* First index >= i whose number is `small` (1..255); Q2_COUNTS_NONE. */
uint64_t q2_counts_find(const struct q2_counts *c, uint64_t i, uint8_t small);
/* Are all numbers from i to the end of its chunk (*ret_end, at most n) zero? Says no without looking at each. */
bool q2_counts_empty(const struct q2_counts *c, uint64_t i, uint64_t *ret_end);
/* The number at i < n; as q2_counts_get, for inner loops. */
static inline uint64_t q2_counts_at(const struct q2_counts *c, uint64_t i)
{
    const struct q2_counts_chunk *k = &c->chunks[i >> Q2_COUNTS_CHUNK_BITS];
    if (k->width == 1)
        return ((const uint8_t *)k->data)[i & (Q2_COUNTS_CHUNK - 1)];
    return k->width ? q2_counts_get(c, i) : 0;
}

/* The same for many at once; [i, i + n) lies in the array. */
MUST_USE int q2_counts_add_run(struct q2_counts *c, uint64_t i, uint64_t n, uint64_t by);    /* -ENOMEM: a part is done */
bool q2_counts_all_one(const struct q2_counts *c, uint64_t i, uint64_t n);                   /* is each of them 1? */
bool q2_counts_none_one(const struct q2_counts *c, uint64_t i, uint64_t n);                  /* is none of them 1? */
/* A whole chunk, all zeros so far, from big-endian 16-bit numbers. -ENOMEM: it is all zeros still. */
MUST_USE int q2_counts_load16(struct q2_counts *c, uint64_t chunk, const uint8_t *from);
/* Are the chunks that hold i equal, and all their numbers below 256? Cheap; false may mean "not known". */
bool q2_counts_same_chunk(const struct q2_counts *a, const struct q2_counts *b, uint64_t i);
/* The last index of that chunk with a number other than zero; Q2_COUNTS_NONE. */
uint64_t q2_counts_last(const struct q2_counts *c, uint64_t i);
/* Adds all numbers of src, an array of the same size, and leaves src all zeros. -ENOMEM: what is not added yet is in src still. */
MUST_USE int q2_counts_absorb(struct q2_counts *c, struct q2_counts *src);
/* Bytes of memory in use. */
uint64_t q2_counts_bytes(const struct q2_counts *c);

#endif
