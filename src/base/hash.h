/* SPDX-License-Identifier: MIT
 *
 * hash.h: mixing of integers and a streaming 128-bit hash, for tables and for telling states apart. Fast and
 * well spread; no defence against somebody who builds collisions. Results are the same on every machine.
 */
#ifndef BASE_HASH_H
#define BASE_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bijective: distinct inputs give distinct outputs. */
static inline uint64_t hash_mix64(uint64_t v)
{
    v = (v ^ v >> 32) * 0xd6e8feb86659fd93u;
    v = (v ^ v >> 32) * 0xd6e8feb86659fd93u;
    return v ^ v >> 32;
}

/* Depends on the order of its arguments. */
static inline uint64_t hash_combine(uint64_t a, uint64_t b)
{
    return hash_mix64(hash_mix64(a + 0x9e3779b97f4a7c15u) ^ b);
}

struct hash128 { uint64_t lo, hi; };

static inline bool hash128_eq(struct hash128 a, struct hash128 b) { return a.lo == b.lo && a.hi == b.hi; }

struct hash_stream {
    uint64_t a, b;
    uint64_t len_bytes;
    uint8_t tail[16];       /* bytes of an unfinished block: len_bytes % 16 of them */
};

void hash_init(struct hash_stream *h, uint64_t seed);
/* Any split of the same bytes into calls gives the same result. */
void hash_update(struct hash_stream *h, const void *buf, size_t len_bytes);
static inline void hash_update_u64(struct hash_stream *h, uint64_t v)
{
    uint8_t b[8];
    for (int i = 0; i < 8; i++)
        b[i] = (uint8_t)(v >> (8 * i));
    hash_update(h, b, sizeof b);
}
/* Value of what was fed so far; the stream can go on. */
struct hash128 hash_value(const struct hash_stream *h);
/* All at once. */
struct hash128 hash_buf(const void *buf, size_t len_bytes, uint64_t seed);

#endif
