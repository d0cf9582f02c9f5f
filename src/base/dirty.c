/* SPDX-License-Identifier: MIT
 *
 * dirty.c: sparse bitmaps that many threads set at once.
 *
 * Purpose      What dirty.h declares.
 * Owns         The array of chunk pointers, the chunks, their share of the budget.
 * Invariants   I1, I2 of dirty.h. Further:
 *              C1 A pointer goes from NULL to a chunk or to dirty_all, or from dirty_all to a chunk; a chunk stays until
 *                 dirty_free, so that nobody who has seen it can lose it.
 * Order        None.
 * Concurrency  Pointers change by compare-and-swap, words by fetch_or and fetch_and; a bit that is set already costs a
 *              load. Release on the word pairs with whatever orders the reader behind the setter.
 * Failure      dirty.h
 * Tests        dirty_test.c (against a bool per bit; four threads)
 */
#include "base/dirty.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"

#define WORDS (DIRTY_CHUNK_BITS / 64)
#define BITS_MAX (UINT64_C(1) << 38)

struct dirty_chunk { _Atomic uint64_t words[WORDS]; };

static const uint64_t all_mark;
#define dirty_all ((struct dirty_chunk *)(uintptr_t)&all_mark)      /* only compared, never followed */

/* ---- life ---- */

int dirty_new(uint64_t size, unsigned granularity_bits, struct dirty_budget *budget, struct dirty **ret)
{
    ASSERT(granularity_bits >= DIRTY_GRANULARITY_BITS_MIN && granularity_bits <= DIRTY_GRANULARITY_BITS_MAX);
    uint64_t bits = div_up(size, UINT64_C(1) << granularity_bits), chunks = div_up(bits, DIRTY_CHUNK_BITS);
    if (bits > BITS_MAX)
        return -E2BIG;
    struct dirty *d = malloc(sizeof *d);
    _Atomic(struct dirty_chunk *) *list = d ? calloc(chunks ? chunks : 1, sizeof *list) : NULL;
    if (!list) {
        free(d);
        return -ENOMEM;
    }
    *d = (struct dirty){ .size = size, .granularity_bits = granularity_bits, .bits = bits, .chunk_count = chunks, .chunks = list, .budget = budget };
    *ret = d;
    return 0;
}

static struct dirty_chunk *chunk_at(const struct dirty *d, uint64_t i)
{
    return atomic_load_explicit(&d->chunks[i], memory_order_acquire);
}

static bool is_real(const struct dirty_chunk *c) { return c && c != dirty_all; }

static void chunk_free(struct dirty *d, struct dirty_chunk *c)
{
    free(c);
    if (d->budget)
        atomic_fetch_sub_explicit(&d->budget->used, sizeof *c, memory_order_relaxed);
}

void dirty_free(struct dirty *d)
{
    if (!d)
        return;
    for (uint64_t i = 0; i < d->chunk_count; i++)
        if (is_real(chunk_at(d, i)))
            chunk_free(d, chunk_at(d, i));
    free(d->chunks);
    free(d);
}

/* Bits of the chunk that belong to the disk. */
static uint32_t chunk_bits(const struct dirty *d, uint64_t i)
{
    return (uint32_t)min_u64(d->bits - i * DIRTY_CHUNK_BITS, DIRTY_CHUNK_BITS);
}

/* A new chunk with all bits of the disk in it equal to `value`. NULL: no memory, or none left in the budget. */
static struct dirty_chunk *chunk_new(struct dirty *d, uint64_t i, bool value)
{
    struct dirty_budget *b = d->budget;
    struct dirty_chunk *c = NULL;
    if (!b || atomic_fetch_add_explicit(&b->used, sizeof *c, memory_order_relaxed) + sizeof *c <= b->limit)
        c = calloc(1, sizeof *c);
    if (!c) {
        if (b)
            atomic_fetch_sub_explicit(&b->used, sizeof *c, memory_order_relaxed);
        return NULL;
    }
    uint32_t n = value ? chunk_bits(d, i) : 0;
    for (uint32_t w = 0; w * 64 < n; w++)
        c->words[w] = n - w * 64 >= 64 ? UINT64_MAX : (UINT64_C(1) << (n - w * 64)) - 1;
    return c;
}

/* ---- set and clear ---- */

/* Bits of word w that lie in [a, b). */
static uint64_t mask_of(uint32_t w, uint32_t a, uint32_t b)
{
    uint64_t m = UINT64_MAX;
    if (w == a / 64)
        m &= UINT64_MAX << (a % 64);
    if (w == b / 64)
        m &= (UINT64_C(1) << (b % 64)) - 1;
    return m;
}

static void words_set(struct dirty_chunk *c, uint32_t a, uint32_t b)
{
    for (uint32_t w = a / 64; w * 64 < b; w++) {
        uint64_t m = mask_of(w, a, b);
        if ((atomic_load_explicit(&c->words[w], memory_order_relaxed) & m) != m)
            atomic_fetch_or_explicit(&c->words[w], m, memory_order_release);
    }
}

/* Sets bits [a, b) of chunk i. */
static void chunk_set(struct dirty *d, uint64_t i, uint32_t a, uint32_t b)
{
    struct dirty_chunk *c = chunk_at(d, i);
    while (!c) {
        bool whole = a == 0 && b == chunk_bits(d, i);
        struct dirty_chunk *want = whole ? NULL : chunk_new(d, i, false);
        bool mine = want != NULL;
        if (!want)
            want = dirty_all;            /* all of it, or no memory: a superset */
        if (atomic_compare_exchange_strong_explicit(&d->chunks[i], &c, want, memory_order_acq_rel, memory_order_acquire))
            c = want;
        else if (mine)
            chunk_free(d, want);
    }
    if (c != dirty_all)
        words_set(c, a, b);
}

void dirty_set_bits(struct dirty *d, uint64_t first, uint64_t count)
{
    uint64_t end = first + min_u64(count, d->bits - min_u64(first, d->bits));
    while (first < end) {
        uint64_t i = first / DIRTY_CHUNK_BITS, stop = min_u64(end, (i + 1) * DIRTY_CHUNK_BITS);
        chunk_set(d, i, (uint32_t)(first % DIRTY_CHUNK_BITS), (uint32_t)(stop - i * DIRTY_CHUNK_BITS));
        first = stop;
    }
}

void dirty_set(struct dirty *d, uint64_t off, uint64_t len)
{
    if (!len || off >= d->size)
        return;
    uint64_t last = off + min_u64(len, d->size - off) - 1, first = off >> d->granularity_bits;
    dirty_set_bits(d, first, (last >> d->granularity_bits) - first + 1);
}

static int chunk_clear(struct dirty *d, uint64_t i, uint32_t a, uint32_t b)
{
    struct dirty_chunk *c = chunk_at(d, i);
    while (c == dirty_all) {
        struct dirty_chunk *want = chunk_new(d, i, true);
        if (!want)
            return -ENOMEM;
        if (atomic_compare_exchange_strong_explicit(&d->chunks[i], &c, want, memory_order_acq_rel, memory_order_acquire))
            c = want;
        else
            chunk_free(d, want);
    }
    for (uint32_t w = a / 64; c && w * 64 < b; w++) {
        uint64_t m = mask_of(w, a, b);
        if (atomic_load_explicit(&c->words[w], memory_order_relaxed) & m)
            atomic_fetch_and_explicit(&c->words[w], ~m, memory_order_acq_rel);
    }
    return 0;
}

int dirty_clear(struct dirty *d, uint64_t off, uint64_t len)
{
    uint64_t end = off + min_u64(len, d->size - min_u64(off, d->size)), g = UINT64_C(1) << d->granularity_bits;
    uint64_t first = div_up(off, g), stop = end == d->size ? d->bits : end / g;
    int r = 0;
    while (first < stop) {
        uint64_t i = first / DIRTY_CHUNK_BITS, part = min_u64(stop, (i + 1) * DIRTY_CHUNK_BITS);
        int rc = chunk_clear(d, i, (uint32_t)(first % DIRTY_CHUNK_BITS), (uint32_t)(part - i * DIRTY_CHUNK_BITS));
        r = r ? r : rc;
        first = part;
    }
    return r;
}

/* ---- looking ---- */

static bool bit_test(const struct dirty *d, uint64_t bit)
{
    const struct dirty_chunk *c = chunk_at(d, bit / DIRTY_CHUNK_BITS);
    if (!is_real(c))
        return c != NULL;
    uint32_t b = bit % DIRTY_CHUNK_BITS;
    return atomic_load_explicit(&c->words[b / 64], memory_order_acquire) >> (b % 64) & 1;
}

bool dirty_test(const struct dirty *d, uint64_t off)
{
    return off < d->size && bit_test(d, off >> d->granularity_bits);
}

/* First bit in [a, b) of the chunk that is not `value`; b: all are. */
static uint32_t words_find(const struct dirty_chunk *c, uint32_t a, uint32_t b, bool value)
{
    for (uint32_t w = a / 64; w * 64 < b; w++) {
        uint64_t x = atomic_load_explicit(&c->words[w], memory_order_acquire);
        uint64_t other = (value ? ~x : x) & mask_of(w, a, b);
        if (other)
            return w * 64 + (uint32_t)__builtin_ctzll(other);
    }
    return b;
}

/* First bit in [from, end) that is not `value`; end: all are. */
static uint64_t bits_find(const struct dirty *d, uint64_t from, uint64_t end, bool value)
{
    while (from < end) {
        uint64_t i = from / DIRTY_CHUNK_BITS, base = i * DIRTY_CHUNK_BITS, stop = min_u64(end, base + DIRTY_CHUNK_BITS);
        const struct dirty_chunk *c = chunk_at(d, i);
        uint64_t at = !is_real(c) ? ((c != NULL) == value ? stop : from)
                                  : base + words_find(c, (uint32_t)(from - base), (uint32_t)(stop - base), value);
        if (at < stop)
            return at;
        from = stop;
    }
    return end;
}

bool dirty_run(const struct dirty *d, uint64_t off, uint64_t end, uint64_t *ret_end)
{
    end = min_u64(end, d->size);
    ASSERT(off < end);
    unsigned g = d->granularity_bits;
    uint64_t first = off >> g, last = ((end - 1) >> g) + 1;
    bool value = bit_test(d, first);
    uint64_t at = bits_find(d, first, last, value);
    *ret_end = at == last ? end : at << g;
    if (*ret_end <= off)                 /* the bit has changed between the two looks: this granule alone */
        *ret_end = min_u64(end, (first + 1) << g);
    return value;
}

bool dirty_next(const struct dirty *d, uint64_t off, uint64_t end, uint64_t *ret_off, uint64_t *ret_end)
{
    end = min_u64(end, d->size);
    if (off >= end)
        return false;
    unsigned g = d->granularity_bits;
    uint64_t last = ((end - 1) >> g) + 1, at = bits_find(d, off >> g, last, false);
    if (at == last)
        return false;
    *ret_off = max_u64(off, at << g);
    uint64_t stop = bits_find(d, at, last, true);
    *ret_end = stop == last ? end : max_u64(stop, at + 1) << g;
    return true;
}

uint64_t dirty_count(const struct dirty *d)
{
    uint64_t n = 0;
    for (uint64_t i = 0; i < d->chunk_count; i++) {
        const struct dirty_chunk *c = chunk_at(d, i);
        if (c && c == dirty_all)
            n += chunk_bits(d, i);
        for (uint32_t w = 0; is_real(c) && w < WORDS; w++)
            n += (uint64_t)__builtin_popcountll(atomic_load_explicit(&c->words[w], memory_order_relaxed));
    }
    return n << d->granularity_bits;
}

/* ---- serial form ---- */

enum dirty_kind dirty_kind_of(const struct dirty *d, uint64_t first, uint64_t count)
{
    uint64_t end = first + min_u64(count, d->bits - min_u64(first, d->bits));
    if (first >= end)
        return DIRTY_ZEROS;
    bool value = bit_test(d, first);
    if (bits_find(d, first, end, value) < end)
        return DIRTY_MIXED;
    return value ? DIRTY_ONES : DIRTY_ZEROS;
}

void dirty_export(const struct dirty *d, uint64_t first, uint8_t *buf, size_t bytes)
{
    ASSERT(first % 8 == 0);
    memset(buf, 0, bytes);
    uint64_t end = first + min_u64((uint64_t)bytes * 8, d->bits - min_u64(first, d->bits));
    for (uint64_t at = bits_find(d, first, end, false); at < end; at = bits_find(d, at, end, false)) {
        uint64_t stop = bits_find(d, at, end, true);
        if (stop == at)
            stop = at + 1;
        for (; at < stop; at++) {
            if (at % 8 == 0 && stop - at >= 8) {
                size_t whole = (size_t)((stop - at) / 8);
                memset(buf + (at - first) / 8, 0xff, whole);
                at += whole * 8 - 1;
                continue;
            }
            buf[(at - first) / 8] |= (uint8_t)(1u << (at % 8));
        }
    }
}

void dirty_import(struct dirty *d, uint64_t first, const uint8_t *buf, size_t bytes)
{
    ASSERT(first % 8 == 0);
    uint64_t bits = (uint64_t)bytes * 8, run = 0, n = 0;
    for (uint64_t i = 0; i < bits; i++) {
        if (!n && i % 64 == 0 && bits - i >= 64 && !memcmp(buf + i / 8, "\0\0\0\0\0\0\0", 8)) {
            i += 63;
            continue;
        }
        if (buf[i / 8] >> (i % 8) & 1) {
            run = n ? run : i;
            n++;
        } else if (n) {
            dirty_set_bits(d, first + run, n);
            n = 0;
        }
    }
    if (n)
        dirty_set_bits(d, first + run, n);
}

/* ---- whole bitmaps ---- */

void dirty_merge(struct dirty *dst, const struct dirty *src)
{
    uint64_t at, end = 0;
    while (dirty_next(src, end, UINT64_MAX, &at, &end))
        dirty_set(dst, at, end - at);
}

int dirty_copy(const struct dirty *d, uint64_t size, struct dirty **ret)
{
    int r = dirty_new(size, d->granularity_bits, d->budget, ret);
    if (r == 0)
        dirty_merge(*ret, d);
    return r;
}
