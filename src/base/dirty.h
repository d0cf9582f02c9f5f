/* SPDX-License-Identifier: MIT
 *
 * dirty.h: which parts of a disk have been touched: one bit per granule, set by any thread without a lock.
 *
 * The bits lie in chunks that exist only where some bits are set and some are not, so memory follows what was touched
 * and not the size of the disk. A bit too many is allowed, a bit too few is not: when memory for a chunk runs out, or
 * the budget is used up, all of the chunk counts as dirty.
 *
 * Invariants
 *   I1  A bit that was set is found set by whoever learns of it in order (a message, a lock, a grace period).
 *   I2  Bits behind the end of the disk are clear.
 * Concurrency  dirty_set, dirty_clear, dirty_test, dirty_next, dirty_count and dirty_export: any thread, at the same time.
 *              The rest: one owner, nobody else.
 */
#ifndef BASE_DIRTY_H
#define BASE_DIRTY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define DIRTY_CHUNK_BITS 32768u
#define DIRTY_GRANULARITY_BITS_MIN 9u
#define DIRTY_GRANULARITY_BITS_MAX 31u

/* Memory of several bitmaps together. */
struct dirty_budget { _Atomic uint64_t used; uint64_t limit; };

struct dirty_chunk;
struct dirty {
    uint64_t size;                       /* bytes of the disk */
    unsigned granularity_bits;
    uint64_t bits, chunk_count;
    _Atomic(struct dirty_chunk *) *chunks;   /* NULL: all clear; dirty_all: all set */
    struct dirty_budget *budget;
};

enum dirty_kind { DIRTY_ZEROS, DIRTY_ONES, DIRTY_MIXED };

/* All clear. budget may be NULL. -ENOMEM; -E2BIG: more than 2^38 granules. */
MUST_USE int dirty_new(uint64_t size, unsigned granularity_bits, struct dirty_budget *budget, struct dirty **ret);
/* A copy of d for a disk of `size` bytes: what lies behind the old end is clear, what lies behind the new one is gone. */
MUST_USE int dirty_copy(const struct dirty *d, uint64_t size, struct dirty **ret);
void dirty_free(struct dirty *d);

/* Every granule that [off, off+len) touches; what lies behind the end of the disk is left out. Cannot fail. */
void dirty_set(struct dirty *d, uint64_t off, uint64_t len);
/* Every granule that lies in [off, off+len) whole (the last one may be cut short by the end). -ENOMEM: some stay set. */
MUST_USE int dirty_clear(struct dirty *d, uint64_t off, uint64_t len);
/* Sets in dst what is set in src, whatever the granularities. */
void dirty_merge(struct dirty *dst, const struct dirty *src);

bool dirty_test(const struct dirty *d, uint64_t off);
/* The first run of equal bits from `off` on: its end in bytes (at most `end`, at most the size). Is it dirty? */
bool dirty_run(const struct dirty *d, uint64_t off, uint64_t end, uint64_t *ret_end);
/* The first dirty range in [off, end), cut to it. false: there is none. */
bool dirty_next(const struct dirty *d, uint64_t off, uint64_t end, uint64_t *ret_off, uint64_t *ret_end);
/* Set bits times granularity, in bytes. */
uint64_t dirty_count(const struct dirty *d);

/* Serial form: bit n is bit n%8 of byte n/8, bits behind the end are 0. first: multiple of 8. */
enum dirty_kind dirty_kind_of(const struct dirty *d, uint64_t first, uint64_t count);
void dirty_export(const struct dirty *d, uint64_t first, uint8_t *buf, size_t bytes);
/* Adds what is set in buf. */
void dirty_import(struct dirty *d, uint64_t first, const uint8_t *buf, size_t bytes);
/* Adds `count` bits. */
void dirty_set_bits(struct dirty *d, uint64_t first, uint64_t count);

#endif
