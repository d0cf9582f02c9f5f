/* SPDX-License-Identifier: MIT
 *
 * prng.h: a small seeded generator (xoshiro256**, seeded by splitmix64). The same seed gives the same sequence
 * on every machine. Not for secrets.
 */
#ifndef BASE_PRNG_H
#define BASE_PRNG_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

struct prng { uint64_t s[4]; };

/* One step of splitmix64: advances *state, returns the next value. */
static inline uint64_t splitmix64(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static inline void prng_init(struct prng *p, uint64_t seed)
{
    for (int i = 0; i < 4; i++)
        p->s[i] = splitmix64(&seed);
}

static inline uint64_t prng_rotl(uint64_t v, int by) { return v << by | v >> (64 - by); }

static inline uint64_t prng_u64(struct prng *p)
{
    uint64_t *s = p->s, ret = prng_rotl(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = prng_rotl(s[3], 45);
    return ret;
}

/* Uniform in [0, limit); limit 0 answers 0. Without bias. */
static inline uint64_t prng_below(struct prng *p, uint64_t limit)
{
    if (!limit)
        return 0;
    uint64_t floor = -limit % limit;      /* 2^64 mod limit: products whose low half lies below are refused */
    for (;;) {
        unsigned __int128 m = (unsigned __int128)prng_u64(p) * limit;
        if ((uint64_t)m >= floor)
            return (uint64_t)(m >> 64);
    }
}

/* Uniform in [lo, hi], lo <= hi. */
static inline uint64_t prng_range(struct prng *p, uint64_t lo, uint64_t hi)
{
    return hi - lo == UINT64_MAX ? prng_u64(p) : lo + prng_below(p, hi - lo + 1);
}

/* true once in n on average; n = 0 means never. */
static inline bool prng_one_in(struct prng *p, uint64_t n) { return n && prng_below(p, n) == 0; }

static inline void prng_fill(struct prng *p, void *buf, size_t len_bytes)
{
    uint8_t *dst = (uint8_t *)buf;
    while (len_bytes) {
        uint64_t v = prng_u64(p);
        size_t n = len_bytes < sizeof v ? len_bytes : sizeof v;
        memcpy(dst, &v, n);
        dst += n;
        len_bytes -= n;
    }
}

#endif
