/* SPDX-License-Identifier: MIT
 *
 * hash.c: the streaming 128-bit hash.
 *
 * Purpose      Two 64-bit lanes take 16 bytes at a time; the length and two full mixes close it.
 * Owns         nothing
 * Invariants   I1 for a fixed block, absorbing is a bijection of the state, and for a fixed state it is an
 *              injection of the block: two inputs that differ in one block never collide before the final mix
 *              I2 the result depends on the bytes and the seed only, not on how calls split them
 * Concurrency  any thread, one owner per stream
 * Failure      none
 * Tests        util_test.c
 */
#include <string.h>

#include "base/endian.h"
#include "base/hash.h"

static inline uint64_t rotl(uint64_t v, int by)
{
    return v << by | v >> (64 - by);
}

static inline uint64_t load_le(const uint8_t *p)
{
    le64 v;
    memcpy(&v, p, sizeof v);
    return le64_get(&v);
}

static inline void absorb(uint64_t *a, uint64_t *b, const uint8_t *block)
{
    uint64_t x = load_le(block) * 0x9fb21c651e98df25u, y = load_le(block + 8) * 0xc2b2ae3d27d4eb4fu;
    *a ^= x ^ x >> 29;
    *a = (rotl(*a, 27) + *b) * 0x9e3779b97f4a7c15u;
    *b ^= y ^ y >> 31;
    *b = (rotl(*b, 33) + *a) * 0xd1342543de82ef95u;
}

void hash_init(struct hash_stream *h, uint64_t seed)
{
    memset(h, 0, sizeof *h);
    h->a = hash_mix64(seed ^ 0x6a09e667f3bcc908u);
    h->b = hash_mix64(seed + 0xbb67ae8584caa73bu);
}

void hash_update(struct hash_stream *h, const void *buf, size_t len_bytes)
{
    const uint8_t *p = buf;
    size_t have = h->len_bytes % 16;
    h->len_bytes += len_bytes;
    if (have) {
        size_t n = 16 - have < len_bytes ? 16 - have : len_bytes;
        memcpy(h->tail + have, p, n);
        if (have + n < 16)
            return;
        absorb(&h->a, &h->b, h->tail);
        p += n;
        len_bytes -= n;
    }
    uint64_t a = h->a, b = h->b;
    for (; len_bytes >= 16; p += 16, len_bytes -= 16)
        absorb(&a, &b, p);
    h->a = a;
    h->b = b;
    if (len_bytes)
        memcpy(h->tail, p, len_bytes);
}

struct hash128 hash_value(const struct hash_stream *h)
{
    uint64_t a = h->a, b = h->b;
    size_t have = h->len_bytes % 16;
    if (have) {
        uint8_t block[16] = { 0 };
        memcpy(block, h->tail, have);
        absorb(&a, &b, block);
    }
    a ^= hash_mix64(h->len_bytes);
    b += a;
    a = hash_mix64(a + rotl(b, 23));
    b = hash_mix64(b ^ a);
    a += hash_mix64(b);
    return (struct hash128){ a, b };
}

struct hash128 hash_buf(const void *buf, size_t len_bytes, uint64_t seed)
{
    struct hash_stream h;
    hash_init(&h, seed);
    hash_update(&h, buf, len_bytes);
    return hash_value(&h);
}
