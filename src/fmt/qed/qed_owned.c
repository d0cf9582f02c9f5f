/* SPDX-License-Identifier: MIT
 *
 * qed_owned.c: a bit per cluster.
 *
 * Purpose      The set that check, repair and upgrade judge by.
 * Owns         Its chunks.
 * Invariants   I1 Memory follows the clusters in use, not the length that a file claims: 4 KiB for each 32768 clusters of
 *                 which one was taken, and one word for each 32768 there are.
 * Order        None.
 * Concurrency  qed_owned_take: any number of threads. Everything else: one thread, and no take meanwhile.
 * Failure      -ENOMEM.
 * Tests        qed_fix_test.c, qed_read_test.c
 */
#include "fmt/qed/qed_owned.h"

#include <stdlib.h>

#include "base/assert.h"
#include "base/checked.h"

#define CHUNK_BITS 15u
#define CHUNK (1ull << CHUNK_BITS)
#define CHUNK_WORDS (CHUNK / 64)

static uint64_t chunks_of(uint64_t n) { return div_up(n, CHUNK); }

int qed_owned_init(struct qed_owned *o, uint64_t n)
{
    *o = (struct qed_owned){ .n = n };
    o->chunks = calloc(chunks_of(n) + 1, sizeof *o->chunks);
    return o->chunks ? 0 : -ENOMEM;
}

void qed_owned_clear(struct qed_owned *o)
{
    for (uint64_t i = 0; o->chunks && i < chunks_of(o->n); i++) {
        free((void *)atomic_load(&o->chunks[i]));
        atomic_store(&o->chunks[i], NULL);
    }
    atomic_store(&o->count, 0);
}

void qed_owned_fini(struct qed_owned *o)
{
    qed_owned_clear(o);
    free((void *)o->chunks);
    *o = (struct qed_owned){ .n = 0 };
}

int qed_owned_grow(struct qed_owned *o, uint64_t n)
{
    uint64_t have = chunks_of(o->n), want = chunks_of(n);
    if (want > have) {
        void *list = realloc((void *)o->chunks, (want + 1) * sizeof *o->chunks);
        if (!list)
            return -ENOMEM;
        o->chunks = list;
        for (uint64_t i = have; i <= want; i++)
            atomic_init(&o->chunks[i], NULL);
    }
    o->n = max_u64(o->n, n);
    return 0;
}

static _Atomic uint64_t *chunk_of(const struct qed_owned *o, uint64_t c)
{
    return atomic_load_explicit(&o->chunks[c >> CHUNK_BITS], memory_order_acquire);
}

/* The chunk of cluster c, made if need be; two threads may want that at once. */
static _Atomic uint64_t *ensure_chunk(struct qed_owned *o, uint64_t c)
{
    _Atomic uint64_t *have = chunk_of(o, c), *none = NULL;
    if (have)
        return have;
    _Atomic uint64_t *mine = calloc(CHUNK_WORDS, sizeof *mine);
    if (!mine || atomic_compare_exchange_strong(&o->chunks[c >> CHUNK_BITS], &none, mine))
        return mine;
    free((void *)mine);
    return none;
}

/* Bits [c, c + n) of one word, n at least 1. */
static uint64_t mask_of(uint64_t c, uint64_t n) { return (n == 64 ? UINT64_MAX : (1ull << n) - 1) << (c & 63); }

int64_t qed_owned_take(struct qed_owned *o, uint64_t first, uint64_t len)
{
    int64_t twice = 0;
    ASSERT(range_inside(first, len, o->n));
    for (uint64_t c = first, end = first + len, n; c < end; c += n) {
        _Atomic uint64_t *chunk = ensure_chunk(o, c);
        if (!chunk)
            return -ENOMEM;
        n = min_u64(64 - (c & 63), end - c);
        uint64_t mask = mask_of(c, n), old = atomic_fetch_or_explicit(&chunk[(c & (CHUNK - 1)) / 64], mask, memory_order_relaxed);
        twice += __builtin_popcountll(old & mask);
    }
    atomic_fetch_add_explicit(&o->count, len - (uint64_t)twice, memory_order_relaxed);
    return twice;
}

void qed_owned_drop(struct qed_owned *o, uint64_t first, uint64_t len)
{
    for (uint64_t c = first; c < first + len; c++) {
        _Atomic uint64_t *chunk = chunk_of(o, c);
        if (!chunk || !qed_owned_has(o, c))
            continue;
        atomic_fetch_and(&chunk[(c & (CHUNK - 1)) / 64], ~mask_of(c, 1));
        atomic_fetch_sub(&o->count, 1);
    }
}

static uint64_t word_of(const struct qed_owned *o, uint64_t c)
{
    _Atomic uint64_t *chunk = chunk_of(o, c);
    return chunk ? atomic_load_explicit(&chunk[(c & (CHUNK - 1)) / 64], memory_order_relaxed) : 0;
}

bool qed_owned_has(const struct qed_owned *o, uint64_t c) { return c < o->n && word_of(o, c) >> (c & 63) & 1; }

uint64_t qed_owned_next(const struct qed_owned *o, uint64_t from, uint64_t to, bool owned)
{
    to = min_u64(to, o->n);
    for (uint64_t c = from; c < to;) {
        if (!chunk_of(o, c)) {
            if (!owned)
                return c;
            c = round_down(c, CHUNK) + CHUNK;
            continue;
        }
        uint64_t w = word_of(o, c), bits = (owned ? w : ~w) >> (c & 63);
        if (bits) {
            c += (uint64_t)__builtin_ctzll(bits);
            return c < to ? c : QED_OWNED_NONE;
        }
        c = round_down(c, 64) + 64;
    }
    return QED_OWNED_NONE;
}

uint64_t qed_owned_last(const struct qed_owned *o, uint64_t to)
{
    for (uint64_t c = min_u64(to, o->n); c > 0;) {
        if (!chunk_of(o, c - 1)) {
            c = round_down(c - 1, CHUNK);
            continue;
        }
        uint64_t w = word_of(o, c - 1) << (63 - ((c - 1) & 63));
        if (w)
            return c - 1 - (uint64_t)__builtin_clzll(w);
        c = round_down(c - 1, 64);
    }
    return QED_OWNED_NONE;
}

uint64_t qed_owned_gap(const struct qed_owned *o, uint64_t from, uint64_t to, uint64_t len)
{
    for (;;) {
        uint64_t first = qed_owned_next(o, from, to, false);
        if (first == QED_OWNED_NONE || !range_inside(first, len, to))
            return QED_OWNED_NONE;
        uint64_t used = qed_owned_next(o, first, first + len, true);
        if (used == QED_OWNED_NONE)
            return first;
        from = used + 1;
    }
}
