/* SPDX-License-Identifier: MIT
 *
 * q2_marks.c: a sparse set of clusters.
 *
 * Purpose      Remembers which clusters this opening has touched, for q2_scrub.c.
 * Owns         Its chunks of 32768 bits.
 * Invariants   I1 A cluster that was added is in the set until fini.
 * Order        None.
 * Concurrency  One owner.
 * Failure      None: without memory every cluster is in the set (all).
 * Tests        q2_scrub_test.c
 */
#include "fmt/qcow2/q2_marks.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

#define CHUNK_BITS 15u
#define WORDS ((1u << CHUNK_BITS) / 64)

void q2_marks_fini(struct q2_marks *m)
{
    for (uint64_t i = 0; i < m->chunk_count; i++)
        free(m->chunks[i]);
    free(m->chunks);
    *m = (struct q2_marks){ 0 };
}

static uint64_t *chunk_of(struct q2_marks *m, uint64_t i)
{
    if (i >= m->chunk_count) {
        uint64_t n = max_u64(i + 1, m->chunk_count * 2);
        uint64_t **p = n > SIZE_MAX / sizeof *p ? NULL : realloc(m->chunks, n * sizeof *p);
        if (!p)
            return NULL;
        memset(p + m->chunk_count, 0, (n - m->chunk_count) * sizeof *p);
        m->chunks = p;
        m->chunk_count = n;
    }
    if (!m->chunks[i])
        m->chunks[i] = calloc(WORDS, 8);
    return m->chunks[i];
}

void q2_marks_add(struct q2_marks *m, uint64_t first, uint64_t n)
{
    for (uint64_t c = first; c < first + n && !m->all; c++) {
        uint64_t *words = chunk_of(m, c >> CHUNK_BITS);
        if (words)
            words[(c >> 6) % WORDS] |= 1ull << (c & 63);
        else
            m->all = true;
    }
}

bool q2_marks_has(const struct q2_marks *m, uint64_t c)
{
    uint64_t i = c >> CHUNK_BITS;
    return m->all || (i < m->chunk_count && m->chunks[i] && m->chunks[i][(c >> 6) % WORDS] >> (c & 63) & 1);
}

bool q2_marks_next(const struct q2_marks *m, uint64_t from, uint64_t *ret)
{
    for (uint64_t c = from; c >> CHUNK_BITS < m->chunk_count;) {
        const uint64_t *words = m->chunks[c >> CHUNK_BITS];
        uint64_t word = words ? words[(c >> 6) % WORDS] >> (c & 63) : 0;
        if (word) {
            *ret = c + (unsigned)__builtin_ctzll(word);
            return true;
        }
        c = words ? (c | 63) + 1 : ((c >> CHUNK_BITS) + 1) << CHUNK_BITS;
    }
    return false;
}

uint64_t q2_marks_bytes(const struct q2_marks *m)
{
    uint64_t sum = m->chunk_count * sizeof *m->chunks;
    for (uint64_t i = 0; i < m->chunk_count; i++)
        sum += m->chunks[i] ? WORDS * 8 : 0;
    return sum;
}
