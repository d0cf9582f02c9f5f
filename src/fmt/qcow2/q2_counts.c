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
 * Concurrency  One owner.
 * Failure      -ENOMEM leaves every number as it was.
 * Tests        q2_counts_test.c
 */
#include "fmt/qcow2/q2_counts.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"

#define CHUNK_BITS 13u
#define CHUNK (1u << CHUNK_BITS)

static uint64_t chunk_count(const struct q2_counts *c) { return div_up(c->n, CHUNK); }

int q2_counts_init(struct q2_counts *c, uint64_t n)
{
    *c = (struct q2_counts){ .n = n };
    if (n / CHUNK > SIZE_MAX / sizeof *c->chunks / 2)
        return -ENOMEM;
    c->chunks = calloc(chunk_count(c) + 1, sizeof *c->chunks);
    return c->chunks ? 0 : -ENOMEM;
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

static int widen(struct q2_counts_chunk *k, uint8_t width)
{
    struct q2_counts_chunk w = { calloc(CHUNK, width), width };
    if (!w.data)
        return -ENOMEM;
    if (k->width)
        for (uint32_t i = 0; i < CHUNK; i++)
            store(&w, i, load(k, i));
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
    if (width_for(value) > k->width && widen(k, width_for(value)))
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

uint64_t q2_counts_next(const struct q2_counts *c, uint64_t i)
{
    while (i < c->n) {
        const struct q2_counts_chunk *k = &c->chunks[i >> CHUNK_BITS];
        uint64_t end = min_u64(c->n, (i | (CHUNK - 1)) + 1);
        for (; k->width && i < end; i++)
            if (load(k, i & (CHUNK - 1)))
                return i;
        i = end;
    }
    return Q2_COUNTS_NONE;
}

uint64_t q2_counts_bytes(const struct q2_counts *c)
{
    uint64_t sum = chunk_count(c) * sizeof *c->chunks;
    for (uint64_t i = 0; i < chunk_count(c); i++)
        sum += (uint64_t)c->chunks[i].width * CHUNK;
    return sum;
}
