/* SPDX-License-Identifier: MIT
 *
 * slab.c: memory of cached blocks.
 *
 * Purpose     Blocks of one size without a remainder: malloc takes about twice the bytes of a block that is aligned to a page, and
 *             keeps what is freed here and there.
 * Owns        Chunks: a mapping of META_CHUNK_BLOCKS blocks each, and their headers.
 * Invariants  B1  A chunk is in `full` if no block of it is free, else in `partial`.
 *             B2  touched: the block's memory was used since it was last given back to the system. Every used block is touched.
 *             B3  At most one chunk has all its blocks free, and it is `spare`.
 * Order       None.
 * Concurrency Home loop of the image. That nobody on another loop looks at a block any more when it is given back is for
 *             cache.c to see to (I4 of meta.h).
 * Failure     take: NULL. Whatever the system does not take back stays, and is used again.
 * Tests       slab_test.c; the loops of suite faults refuse each mapping
 */
#include "meta/slab.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/checked.h"
#include "meta/meta_priv.h"

#if defined(__SANITIZE_ADDRESS__)
#define SLAB_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SLAB_ASAN 1
#endif
#endif
#ifdef SLAB_ASAN
#include <sanitizer/asan_interface.h>
#define POISON(p, n) ASAN_POISON_MEMORY_REGION(p, n)
#define UNPOISON(p, n) ASAN_UNPOISON_MEMORY_REGION(p, n)
#else
#define POISON(p, n) ((void)0)
#define UNPOISON(p, n) ((void)0)
#endif

#define ALL UINT64_MAX

struct meta_chunk {
    struct meta_chunk *next, *prev;
    uint64_t free, touched;              /* bit per block */
    uint8_t *mem;
    struct meta_block block[META_CHUNK_BLOCKS];
};

static uint64_t chunk_bytes(const struct meta_slab *s) { return (uint64_t)s->block_bytes * META_CHUNK_BLOCKS; }

void meta_slab_init(struct meta_slab *s, uint32_t block_bytes)
{
    *s = (struct meta_slab){ .block_bytes = block_bytes };
}

/* ---- rings ---- */

static void push(struct meta_chunk **ring, uint64_t *count, struct meta_chunk *c)
{
    if (*ring) {
        c->next = *ring;
        c->prev = (*ring)->prev;
        c->prev->next = c;
        c->next->prev = c;
    } else {
        c->next = c->prev = c;
    }
    *ring = c;
    ++*count;
}

static void pull(struct meta_chunk **ring, uint64_t *count, struct meta_chunk *c)
{
    c->next->prev = c->prev;
    c->prev->next = c->next;
    if (*ring == c)
        *ring = c->next == c ? NULL : c->next;
    --*count;
}

/* ---- chunks ---- */

static struct meta_chunk *chunk_new(struct meta_slab *s)
{
    struct meta_chunk *c = calloc(1, sizeof *c);
    void *mem = c ? mmap(NULL, chunk_bytes(s), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : MAP_FAILED;
    if (mem == MAP_FAILED) {
        free(c);
        return NULL;
    }
    c->mem = mem;
    c->free = ALL;
    POISON(c->mem, chunk_bytes(s));
    POISON(c->block, sizeof c->block);
    push(&s->partial, &s->partial_count, c);
    s->spare = c;
    return c;
}

/* All its blocks are free. */
static void chunk_free(struct meta_slab *s, struct meta_chunk *c)
{
    INV(B1, c->free == ALL);
    pull(&s->partial, &s->partial_count, c);
    if (s->spare == c)
        s->spare = NULL;
    UNPOISON(c->mem, chunk_bytes(s));
    UNPOISON(c->block, sizeof c->block);
    (void)munmap(c->mem, chunk_bytes(s));            /* it cannot fail for a whole mapping of our own */
    free(c);
}

void meta_slab_fini(struct meta_slab *s)
{
    ASSERT(!s->full);
    while (s->partial)
        chunk_free(s, s->partial);
}

/* ---- blocks ---- */

struct meta_block *meta_slab_take(struct meta_slab *s)
{
    struct meta_chunk *c = s->partial ? s->partial : chunk_new(s);
    if (!c)
        return NULL;
    uint64_t from = c->free & c->touched ? c->free & c->touched : c->free;
    unsigned i = (unsigned)__builtin_ctzll(from);
    if (s->spare == c)
        s->spare = NULL;
    c->free &= ~(1ull << i);
    c->touched |= 1ull << i;
    if (!c->free) {
        pull(&s->partial, &s->partial_count, c);
        push(&s->full, &s->full_count, c);
    }
    struct meta_block *b = &c->block[i];
    UNPOISON(b, sizeof *b);
    memset(b, 0, sizeof *b);
    b->chunk = c;
    b->words = (_Atomic uint64_t *)(void *)(c->mem + (uint64_t)i * s->block_bytes);
    UNPOISON((void *)b->words, s->block_bytes);
    return b;
}

void meta_slab_give(struct meta_slab *s, struct meta_block *b)
{
    struct meta_chunk *c = b->chunk;
    uint64_t bit = 1ull << (b - c->block);
    INV(B2, !(c->free & bit) && c->touched & bit);
    POISON((void *)b->words, s->block_bytes);
    POISON(b, sizeof *b);
    if (!c->free) {
        pull(&s->full, &s->full_count, c);
        push(&s->partial, &s->partial_count, c);
    }
    c->free |= bit;
    if (c->free != ALL)
        return;
    if (s->spare)
        chunk_free(s, c);
    else
        s->spare = c;                                /* B3 */
}

/* Whole pages of a run of free blocks. */
static void trim_run(const struct meta_slab *s, struct meta_chunk *c, unsigned first, unsigned end, uint64_t page)
{
    uint64_t from = round_up((uint64_t)first * s->block_bytes, page), to = round_down((uint64_t)end * s->block_bytes, page);
    if (from >= to || madvise(c->mem + from, to - from, MADV_DONTNEED))
        return;
    for (unsigned i = first; i < end; i++)
        if ((uint64_t)i * s->block_bytes >= from && (uint64_t)(i + 1) * s->block_bytes <= to)
            c->touched &= ~(1ull << i);
}

static void trim_chunk(const struct meta_slab *s, struct meta_chunk *c, uint64_t page)
{
    for (unsigned i = 0, end; i < META_CHUNK_BLOCKS && c->free & c->touched; i = end + 1) {
        for (end = i; end < META_CHUNK_BLOCKS && c->free >> end & 1; end++)
            ;
        uint64_t run = end > i ? (end - i == 64 ? ALL : ((1ull << (end - i)) - 1) << i) : 0;
        if (run & c->touched)
            trim_run(s, c, i, end, page);
    }
}

void meta_slab_trim(struct meta_slab *s, uint64_t most)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    for (most = min_u64(most, s->partial_count); most && s->partial; most--) {
        struct meta_chunk *c = s->partial;
        s->partial = c->next;                        /* the ring turns: c is the last now */
        if (c->free == ALL)
            chunk_free(s, c);
        else
            trim_chunk(s, c, page);
    }
}

static uint64_t ring_blocks(const struct meta_chunk *ring, uint64_t count)
{
    uint64_t n = 0;
    for (const struct meta_chunk *c = ring; count; count--, c = c->next)
        n += (unsigned)__builtin_popcountll(c->touched);
    return n;
}

uint64_t meta_slab_bytes(const struct meta_slab *s)
{
    return (ring_blocks(s->partial, s->partial_count) + ring_blocks(s->full, s->full_count)) * s->block_bytes;
}
