/* SPDX-License-Identifier: MIT
 *
 * slab_test.c: memory of cached blocks.
 *
 * Purpose      Blocks of several sizes, taken and given back at random; what that costs the process.
 * Owns         Nothing.
 * Invariants   None.
 * Concurrency  One thread.
 * Failure      A failed check fails the test.
 * Tests        This is one.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/prng.h"
#include "base/test.h"
#include "meta/meta_priv.h"

#define MOST 1000u

static bool holds(const struct meta_block *b, uint32_t bytes, uint8_t byte)
{
    const uint8_t *p = (const void *)b->words;
    return p[0] == byte && p[bytes - 1] == byte && memcmp(p, p + 1, bytes - 1) == 0;
}

/* No block lies on another, whatever the order, and the memory that is kept is that of the most that were used at once. */
static void random_order(uint32_t bytes, uint64_t seed)
{
    struct meta_slab s;
    struct prng p;
    static struct meta_block *b[MOST];
    static uint8_t byte[MOST];
    unsigned used = 0, trims = 0;
    prng_init(&p, seed);
    meta_slab_init(&s, bytes);
    memset(b, 0, sizeof b);
    for (unsigned round = 0; round < 20000; round++) {
        unsigned i = (unsigned)prng_below(&p, round / 4000 % 2 ? MOST / 50 : MOST);
        if (b[i]) {
            assert_true(holds(b[i], bytes, byte[i]));
            meta_slab_give(&s, b[i]);
            b[i] = NULL;
            used--;
        } else {
            b[i] = meta_slab_take(&s);
            assert_non_null(b[i]);
            assert_true(is_aligned((uintptr_t)b[i]->words, min_u64(bytes, 4096)));
            assert_true(!b[i]->pins && !b[i]->dirty_sectors && !b[i]->off && !b[i]->kind);
            byte[i] = (uint8_t)round;
            memset((void *)b[i]->words, byte[i], bytes);
            b[i]->off = UINT64_MAX;
            used++;
        }
        if (prng_one_in(&p, 500)) {
            meta_slab_trim(&s, s.partial_count);
            trims++;
            assert_true(bytes < 4096 || meta_slab_bytes(&s) == (uint64_t)used * bytes);
        }
        assert_true(meta_slab_bytes(&s) >= (uint64_t)used * bytes && meta_slab_bytes(&s) <= (uint64_t)(MOST + 63) * bytes);
    }
    assert_true(trims > 10);
    for (unsigned i = 0; i < MOST; i++)
        if (b[i]) {
            assert_true(holds(b[i], bytes, byte[i]));
            meta_slab_give(&s, b[i]);
        }
    assert_true(s.partial_count <= 1 && !s.full_count);       /* one spare chunk */
    meta_slab_trim(&s, 1);
    assert_int_equal(meta_slab_bytes(&s), 0);
    assert_null(s.partial);
    meta_slab_fini(&s);
}

static void any_order(void **state)
{
    static const uint32_t bytes[] = { 512, 2048, 4096, 16384 };
    (void)state;
    for (unsigned i = 0; i < 4; i++)
        random_order(bytes[i], i);
}

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#endif

#ifndef SANITIZED
static uint64_t rss_bytes(void)
{
    unsigned long size, resident;
    FILE *f = fopen("/proc/self/statm", "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%lu %lu", &size, &resident), 2);
    fclose(f);
    return (uint64_t)resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* A block costs its bytes and little more; what is scattered among blocks in use goes back, too. */
static void cost(void **state)
{
    enum { N = 8192, BYTES = 4096, KEPT = 16 };
    static struct meta_block *b[N];
    struct meta_slab s;
    (void)state;
    memset(b, 0xff, sizeof b);
    meta_slab_init(&s, BYTES);
    uint64_t before = rss_bytes();
    for (unsigned i = 0; i < N; i++) {
        b[i] = meta_slab_take(&s);
        memset((void *)b[i]->words, 1, BYTES);
    }
    uint64_t all = rss_bytes() - before;
    assert_true(all > N * BYTES * 99ull / 100 && all < N * BYTES * 106ull / 100);
    assert_int_equal(meta_slab_bytes(&s), N * BYTES);
    for (unsigned i = 0; i < N; i++)
        if (i % KEPT)
            meta_slab_give(&s, b[i]);
    assert_int_equal(meta_slab_bytes(&s), N * BYTES);
    meta_slab_trim(&s, s.partial_count);
    assert_int_equal(meta_slab_bytes(&s), N * BYTES / KEPT);
    assert_true(rss_bytes() - before < all / 8);
    for (unsigned i = 0; i < N; i += KEPT) {
        assert_true(holds(b[i], BYTES, 1));
        meta_slab_give(&s, b[i]);
    }
    meta_slab_fini(&s);
}
#else
static void cost(void **state) { (void)state; }          /* the sanitizer's own memory is counted, too */
#endif

int main(void)
{
    static const struct CMUnitTest tests[] = { cmocka_unit_test(any_order), cmocka_unit_test(cost) };
    return cmocka_run_group_tests_name("meta-slab", tests, NULL, NULL);
}
