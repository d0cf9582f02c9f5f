/* SPDX-License-Identifier: MIT
 *
 * q2_counts.c: sparse array of numbers with adaptive width.
 *
 * Purpose      Lets check count references with one byte per cluster in ordinary images, and nothing at all for
 *              the holes of a sparse file.
 * Owns         Its chunks (8192 numbers each).
 * Invariants   I1 A chunk of width w holds numbers below 2^(8w); width 0 has no data and is all zeros.
 *              I2 Widths only grow.
 * Order        None.
 * Concurrency  One owner; threads that touch different chunks need no lock.
 * Failure      -ENOMEM leaves every number as it was.
 * Tests        q2_counts_test.c
 */
#include "fmt/qcow2/q2_counts.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"

#define CHUNK_BITS Q2_COUNTS_CHUNK_BITS
#define CHUNK Q2_COUNTS_CHUNK
#define ONES 0x0101010101010101ull
#define HIGH_BITS 0x8080808080808080ull

static uint64_t chunk_count(const struct q2_counts *c) { return div_up(c->n, CHUNK); }

int q2_counts_init(struct q2_counts *c, uint64_t n)
{
    *c = (struct q2_counts){ .n = n };
    if (n / CHUNK > SIZE_MAX / sizeof *c->chunks / 2)
        return -ENOMEM;
    c->chunks = calloc(chunk_count(c) + 1, sizeof *c->chunks);
    return c->chunks ? 0 : -ENOMEM;
}

int q2_counts_grow(struct q2_counts *c, uint64_t n)
{
    uint64_t have = chunk_count(c) + 1, want = div_up(n, CHUNK) + 1;
    if (n <= c->n)
        return 0;
    if (n / CHUNK > SIZE_MAX / sizeof *c->chunks / 2)
        return -ENOMEM;
    if (want > have) {
        void *p = realloc(c->chunks, want * sizeof *c->chunks);
        if (!p)
            return -ENOMEM;
        c->chunks = p;
        memset(c->chunks + have, 0, (want - have) * sizeof *c->chunks);
    }
    c->n = n;
    return 0;
}

void q2_counts_fini(struct q2_counts *c)
{
    if (c->chunks)
        for (uint64_t i = 0; i < chunk_count(c); i++)
            free(c->chunks[i].data);
    free(c->chunks);
    *c = (struct q2_counts){ 0 };
}

static uint64_t load(const struct q2_counts_chunk *k, uint32_t at)
{
    switch (k->width) {
    case 1:
        return ((const uint8_t *)k->data)[at];
    case 2:
        return ((const uint16_t *)k->data)[at];
    case 4:
        return ((const uint32_t *)k->data)[at];
    case 8:
        return ((const uint64_t *)k->data)[at];
    default:
        return 0;
    }
}

static void store(const struct q2_counts_chunk *k, uint32_t at, uint64_t v)
{
    switch (k->width) {
    case 1:
        ((uint8_t *)k->data)[at] = (uint8_t)v;
        break;
    case 2:
        ((uint16_t *)k->data)[at] = (uint16_t)v;
        break;
    case 4:
        ((uint32_t *)k->data)[at] = (uint32_t)v;
        break;
    default:
        ((uint64_t *)k->data)[at] = v;
    }
}

static uint8_t width_for(uint64_t v) { return v <= UINT8_MAX ? 1 : v <= UINT16_MAX ? 2 : v <= UINT32_MAX ? 4 : 8; }

/* By whichever thread has the chunk. */
static void grown(struct q2_counts *c, uint64_t by) { __atomic_add_fetch(&c->data_bytes, by, __ATOMIC_RELAXED); }

static int widen(struct q2_counts *c, struct q2_counts_chunk *k, uint8_t width)
{
    struct q2_counts_chunk w = { calloc(CHUNK, width), width };
    if (!w.data)
        return -ENOMEM;
    if (k->width)
        for (uint32_t i = 0; i < CHUNK; i++)
            store(&w, i, load(k, i));
    grown(c, (width - k->width) * CHUNK);
    free(k->data);
    *k = w;
    return 0;
}

uint64_t q2_counts_get(const struct q2_counts *c, uint64_t i)
{
    return i < c->n ? load(&c->chunks[i >> CHUNK_BITS], i & (CHUNK - 1)) : 0;
}

int q2_counts_set(struct q2_counts *c, uint64_t i, uint64_t value)
{
    ASSERT(i < c->n);
    struct q2_counts_chunk *k = &c->chunks[i >> CHUNK_BITS];
    if (!k->width && !value)
        return 0;
    if (width_for(value) > k->width && widen(c, k, width_for(value)))
        return -ENOMEM;
    store(k, i & (CHUNK - 1), value);
    return 0;
}

int q2_counts_add(struct q2_counts *c, uint64_t i, uint64_t by)
{
    uint64_t old = q2_counts_get(c, i), sum;
    return q2_counts_set(c, i, add_overflows(old, by, &sum) ? UINT64_MAX : sum);
}

void q2_counts_sub(struct q2_counts *c, uint64_t i, uint64_t by)
{
    ASSERT(i < c->n);
    struct q2_counts_chunk *k = &c->chunks[i >> CHUNK_BITS];
    uint32_t at = i & (CHUNK - 1);
    if (k->width)
        store(k, at, load(k, at) - min_u64(load(k, at), by));
}

/* Eight narrow numbers at once. */
static uint64_t eight(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

static void put_eight(uint8_t *p, uint64_t v) { memcpy(p, &v, 8); }

uint64_t q2_counts_next(const struct q2_counts *c, uint64_t i)
{
    while (i < c->n) {
        const struct q2_counts_chunk *k = &c->chunks[i >> CHUNK_BITS];
        uint64_t end = min_u64(c->n, (i | (CHUNK - 1)) + 1);
        while (k->width && i < end) {
            if (k->width == 1 && i % 8 == 0 && i + 8 <= end && !eight((const uint8_t *)k->data + (i & (CHUNK - 1))))
                i += 8;
            else if (load(k, i & (CHUNK - 1)))
                return i;
            else
                i++;
        }
        i = end;
    }
    return Q2_COUNTS_NONE;
}

uint64_t q2_counts_find(const struct q2_counts *c, uint64_t i, uint8_t small)
{
    for (uint64_t end; i < c->n; i = end) {
        const struct q2_counts_chunk *k = &c->chunks[i >> CHUNK_BITS];
        const uint8_t *from = k->width == 1 ? (const uint8_t *)k->data + (i & (CHUNK - 1)) : NULL, *at;
        end = min_u64(c->n, (i | (CHUNK - 1)) + 1);
        if (from && (at = memchr(from, small, end - i)))
            return i + (uint64_t)(at - from);
        for (; k->width > 1 && i < end; i++)
            if (load(k, i & (CHUNK - 1)) == small)
                return i;
    }
    return Q2_COUNTS_NONE;
}

bool q2_counts_empty(const struct q2_counts *c, uint64_t i, uint64_t *ret_end)
{
    *ret_end = min_u64(c->n, (i | (CHUNK - 1)) + 1);
    return i >= c->n || !c->chunks[i >> CHUNK_BITS].width;
}

/* ---- many at once ---- */

/* Adds `by` to narrow numbers as long as they stay narrow; how many. */
static uint32_t add_narrow(uint8_t *p, uint32_t n, uint64_t by)
{
    uint32_t i = 0;
    for (; i < n && by < 0x80; i++) {
        if (i + 8 <= n && !(eight(p + i) & HIGH_BITS)) {
            put_eight(p + i, eight(p + i) + by * ONES);
            i += 7;
        } else if (p[i] + by <= UINT8_MAX) {
            p[i] = (uint8_t)(p[i] + by);
        } else {
            break;
        }
    }
    return i;
}

int q2_counts_add_run(struct q2_counts *c, uint64_t i, uint64_t n, uint64_t by)
{
    uint64_t end = i + n;
    ASSERT(end >= i && end <= c->n);
    while (i < end) {
        struct q2_counts_chunk *k = &c->chunks[i >> CHUNK_BITS];
        uint64_t stop = min_u64(end, (i | (CHUNK - 1)) + 1);
        if (!k->width && by && widen(c, k, 1))
            return -ENOMEM;
        if (k->width == 1)
            i += add_narrow((uint8_t *)k->data + (i & (CHUNK - 1)), (uint32_t)(stop - i), by);
        if (i < stop && q2_counts_add(c, i, by))
            return -ENOMEM;
        i += i < stop;
    }
    return 0;
}

bool q2_counts_all_one(const struct q2_counts *c, uint64_t i, uint64_t n)
{
    uint64_t end = i + n;
    ASSERT(end >= i && end <= c->n);
    for (; i < end; i++) {
        const struct q2_counts_chunk *k = &c->chunks[i >> CHUNK_BITS];
        uint32_t at = i & (CHUNK - 1);
        if (k->width == 1 && at + 8 <= CHUNK && i + 8 <= end && eight((const uint8_t *)k->data + at) == ONES)
            i += 7;
        else if (load(k, at) != 1)
            return false;
    }
    return true;
}

bool q2_counts_none_one(const struct q2_counts *c, uint64_t i, uint64_t n)
{
    uint64_t end = i + n;
    ASSERT(end >= i && end <= c->n);
    for (; i < end; i++)
        if (load(&c->chunks[i >> CHUNK_BITS], i & (CHUNK - 1)) == 1)
            return false;
    return true;
}

int q2_counts_load16(struct q2_counts *c, uint64_t chunk, const uint8_t *from)
{
    struct q2_counts_chunk *k = &c->chunks[chunk];
    uint8_t high = 0, any = 0;
    ASSERT(chunk < chunk_count(c) && !k->width);
    for (uint32_t i = 0; i < CHUNK; i++) {
        high |= from[2 * i];
        any |= from[2 * i + 1];
    }
    if (!(high | any))
        return 0;
    struct q2_counts_chunk w = { malloc(high ? 2 * CHUNK : CHUNK), high ? 2 : 1 };
    if (!w.data)
        return -ENOMEM;
    for (uint32_t i = 0; i < CHUNK; i++) {
        if (high)
            ((uint16_t *)w.data)[i] = (uint16_t)(from[2 * i] << 8 | from[2 * i + 1]);
        else
            ((uint8_t *)w.data)[i] = from[2 * i + 1];
    }
    grown(c, w.width * CHUNK);
    *k = w;
    return 0;
}

bool q2_counts_same_chunk(const struct q2_counts *a, const struct q2_counts *b, uint64_t i)
{
    const struct q2_counts_chunk *x = &a->chunks[i >> CHUNK_BITS], *y = &b->chunks[i >> CHUNK_BITS];
    ASSERT(i < a->n && i < b->n);
    if (x->width > 1 || x->width != y->width)
        return false;
    return !x->width || !memcmp(x->data, y->data, CHUNK);
}

uint64_t q2_counts_last(const struct q2_counts *c, uint64_t i)
{
    const struct q2_counts_chunk *k = &c->chunks[i >> CHUNK_BITS];
    ASSERT(i < c->n);
    for (uint32_t at = k->width ? CHUNK : 0; at-- > 0;)
        if (load(k, at))
            return (i & ~(uint64_t)(CHUNK - 1)) + at;
    return Q2_COUNTS_NONE;
}

/* Both narrow: as many as fit at once. */
static uint32_t absorb_narrow(uint8_t *to, uint8_t *from, uint32_t i)
{
    for (; i + 8 <= CHUNK && !((eight(to + i) | eight(from + i)) & HIGH_BITS); i += 8) {
        put_eight(to + i, eight(to + i) + eight(from + i));
        put_eight(from + i, 0);
    }
    return i;
}

static int absorb_chunk(struct q2_counts *c, struct q2_counts *src, uint64_t chunk)
{
    struct q2_counts_chunk *k = &c->chunks[chunk], *s = &src->chunks[chunk];
    for (uint32_t i = 0; i < CHUNK; i++) {
        if (k->width == 1 && s->width == 1 && i % 8 == 0)
            i = absorb_narrow(k->data, s->data, i);
        if (i == CHUNK)
            break;
        uint64_t v = load(s, i);
        if (v && q2_counts_add(c, chunk * CHUNK + i, v))
            return -ENOMEM;
        store(s, i, 0);
    }
    return 0;
}

int q2_counts_absorb(struct q2_counts *c, struct q2_counts *src)
{
    ASSERT(c->n == src->n);
    for (uint64_t i = 0; i < chunk_count(c); i++) {
        struct q2_counts_chunk *k = &c->chunks[i], *s = &src->chunks[i];
        if (!s->width)
            continue;
        if (k->width) {
            int rc = absorb_chunk(c, src, i);
            if (rc)
                return rc;
            free(s->data);
        } else {
            *k = *s;
            grown(c, s->width * CHUNK);
        }
        src->data_bytes -= s->width * CHUNK;
        *s = (struct q2_counts_chunk){ 0 };
    }
    return 0;
}

uint64_t q2_counts_bytes(const struct q2_counts *c) { return chunk_count(c) * sizeof *c->chunks + c->data_bytes; }
