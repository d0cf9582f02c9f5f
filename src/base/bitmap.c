/* SPDX-License-Identifier: MIT
 *
 * bitmap.c: ranges and searches in bitmaps, a word at a time.
 *
 * Purpose      What bitmap.h declares.
 * Owns         nothing
 * Invariants   I1 only words that hold a bit of the given range are read or written
 * Concurrency  one owner
 * Failure      bitmap_new: NULL
 * Tests        bitmap_test.c (against a bool per bit)
 */
#include <stdlib.h>

#include "base/assert.h"
#include "base/bitmap.h"

#define WORDS_MAX (UINT64_C(1) << 36)       /* half a TiB: beyond any machine, within any allocator's arithmetic */

uint64_t *bitmap_new(uint64_t bits)
{
    uint64_t words = bitmap_words(bits);
    if (words >= WORDS_MAX)
        return NULL;
    return calloc(words ? (size_t)words : 1, sizeof(uint64_t));
}

/* Bits of word w that lie in [start, end). */
static inline uint64_t mask_of(uint64_t w, uint64_t start, uint64_t end)
{
    uint64_t m = UINT64_MAX;
    if (w == start / 64)
        m &= UINT64_MAX << (start % 64);
    if (w == end / 64)
        m &= (UINT64_C(1) << (end % 64)) - 1;
    return m;
}

void bitmap_set_range(uint64_t *map, uint64_t start, uint64_t end)
{
    ASSERT(start <= end);
    for (uint64_t w = start / 64, n = bitmap_words(end); w < n; w++)
        map[w] |= mask_of(w, start, end);
}

void bitmap_clear_range(uint64_t *map, uint64_t start, uint64_t end)
{
    ASSERT(start <= end);
    for (uint64_t w = start / 64, n = bitmap_words(end); w < n; w++)
        map[w] &= ~mask_of(w, start, end);
}

uint64_t bitmap_count(const uint64_t *map, uint64_t start, uint64_t end)
{
    uint64_t sum = 0;
    ASSERT(start <= end);
    for (uint64_t w = start / 64, n = bitmap_words(end); w < n; w++)
        sum += (uint64_t)__builtin_popcountll(map[w] & mask_of(w, start, end));
    return sum;
}

static uint64_t find(const uint64_t *map, uint64_t start, uint64_t end, uint64_t flip)
{
    if (start >= end)
        return BITMAP_NONE;
    for (uint64_t w = start / 64, n = bitmap_words(end); w < n; w++) {
        uint64_t hit = (map[w] ^ flip) & mask_of(w, start, end);
        if (hit)
            return w * 64 + (uint64_t)__builtin_ctzll(hit);
    }
    return BITMAP_NONE;
}

uint64_t bitmap_find_set(const uint64_t *map, uint64_t start, uint64_t end)
{
    return find(map, start, end, 0);
}

uint64_t bitmap_find_clear(const uint64_t *map, uint64_t start, uint64_t end)
{
    return find(map, start, end, UINT64_MAX);
}

bool bitmap_range_is(const uint64_t *map, uint64_t start, uint64_t end, bool value)
{
    return find(map, start, end, value ? UINT64_MAX : 0) == BITMAP_NONE;
}

uint64_t bitmap_find_clear_run(const uint64_t *map, uint64_t start, uint64_t end, uint64_t want)
{
    while (start < end && want <= end - start) {
        uint64_t from = want ? bitmap_find_clear(map, start, end) : start;
        if (from == BITMAP_NONE || want > end - from)
            return BITMAP_NONE;
        uint64_t hit = bitmap_find_set(map, from, from + want);
        if (hit == BITMAP_NONE)
            return from;
        start = hit + 1;
    }
    return BITMAP_NONE;
}
