/* SPDX-License-Identifier: MIT
 *
 * bitmap.h: bits in an array of uint64_t words (host order; not a disk format). The caller owns the words and
 * knows how many bits there are; bits behind the last one are left alone by all calls and never looked at.
 */
#ifndef BASE_BITMAP_H
#define BASE_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BITMAP_NONE UINT64_MAX

static inline uint64_t bitmap_words(uint64_t bits) { return bits / 64 + (bits % 64 != 0); }
/* Zeroed words for `bits` bits (at least one word); NULL when memory ran out. Release with free(). */
uint64_t *bitmap_new(uint64_t bits);

static inline bool bitmap_test(const uint64_t *map, uint64_t bit) { return map[bit / 64] >> (bit % 64) & 1; }
static inline void bitmap_set(uint64_t *map, uint64_t bit) { map[bit / 64] |= UINT64_C(1) << (bit % 64); }
static inline void bitmap_clear(uint64_t *map, uint64_t bit) { map[bit / 64] &= ~(UINT64_C(1) << (bit % 64)); }
/* Sets the bit, tells whether it was set before. */
static inline bool bitmap_test_set(uint64_t *map, uint64_t bit)
{
    bool was = bitmap_test(map, bit);
    bitmap_set(map, bit);
    return was;
}

/* Ranges are [start, end). */
void bitmap_set_range(uint64_t *map, uint64_t start, uint64_t end);
void bitmap_clear_range(uint64_t *map, uint64_t start, uint64_t end);
uint64_t bitmap_count(const uint64_t *map, uint64_t start, uint64_t end);      /* set bits in the range */
bool bitmap_range_is(const uint64_t *map, uint64_t start, uint64_t end, bool value);   /* all bits equal value? (empty: true) */
/* First set (or clear) bit in [start, end); BITMAP_NONE: there is none. */
uint64_t bitmap_find_set(const uint64_t *map, uint64_t start, uint64_t end);
uint64_t bitmap_find_clear(const uint64_t *map, uint64_t start, uint64_t end);
/* First run of at least `want` clear bits in [start, end): its start; BITMAP_NONE. */
uint64_t bitmap_find_clear_run(const uint64_t *map, uint64_t start, uint64_t end, uint64_t want);

#endif
