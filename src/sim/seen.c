/* SPDX-License-Identifier: MIT
 *
 * seen.c: shared set of keys.
 *
 * Purpose      Tells new states from known ones, over all processes of a run.
 * Owns         One anonymous shared mapping.
 * Invariants   A key is in the table once: looked for and entered under the lock of its first slot's stripe.
 *              Zero marks an empty slot; a key of zero is entered as one.
 * Order        None.
 * Concurrency  Any number of processes; spin locks over stripes of slots. A probe that leaves its stripe goes on under the
 *              lock of its first slot: two keys can only race for a slot if one of them has run on into the other's
 *              stripe, therefore slots are claimed by compare-and-swap.
 * Failure      Full: everything is "seen".
 * Tests        explorer_test.c
 */
#include "sim/seen.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

#define STRIPES 1024u

struct slot { _Atomic uint64_t lo, hi; };

struct sim_seen {
    _Atomic uint64_t count;
    uint64_t mask, bytes;
    _Atomic uint8_t lock[STRIPES];
    struct slot slot[];
};

struct sim_seen *sim_seen_new(unsigned bits)
{
    uint64_t n = 1ull << bits, bytes = sizeof(struct sim_seen) + n * sizeof(struct slot);
    struct sim_seen *s = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (s == MAP_FAILED)
        abort();
    s->mask = n - 1;
    s->bytes = bytes;
    return s;
}

void sim_seen_free(struct sim_seen *s)
{
    if (s)
        munmap(s, s->bytes);
}

bool sim_seen_add(struct sim_seen *s, struct hash128 key)
{
    uint64_t lo = key.lo | !key.lo, hi = key.hi | !key.hi, at = hash_mix64(lo) & s->mask;
    _Atomic uint8_t *lock = &s->lock[at * STRIPES / (s->mask + 1)];
    bool added = false;
    while (atomic_exchange_explicit(lock, 1, memory_order_acquire))
        __builtin_ia32_pause();
    for (uint64_t i = 0; i <= s->mask; i++, at = (at + 1) & s->mask) {
        uint64_t was = atomic_load(&s->slot[at].lo);
        if (!was && atomic_load(&s->count) < (s->mask / 4) * 3 && atomic_compare_exchange_strong(&s->slot[at].lo, &was, lo)) {
            atomic_store(&s->slot[at].hi, hi);
            atomic_fetch_add(&s->count, 1);
            added = true;
            break;
        }
        if (!was)
            break;                       /* full */
        if (was == lo) {
            uint64_t h;
            while (!(h = atomic_load(&s->slot[at].hi)))
                __builtin_ia32_pause();
            if (h == hi)
                break;
        }
    }
    atomic_store_explicit(lock, 0, memory_order_release);
    return added;
}

uint64_t sim_seen_count(const struct sim_seen *s) { return atomic_load(&((struct sim_seen *)s)->count); }
