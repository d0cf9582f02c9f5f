/* SPDX-License-Identifier: MIT
 *
 * pack_test.c: extents and runs that end with clusters.
 *
 * Purpose      The two pure functions of pack.c by table.
 * Owns         Nothing.
 * Invariants   None.
 * Concurrency  One thread.
 * Failure      A failed check fails the test.
 * Tests        This is one.
 */
#include "stor/stor_test.h"

#include <stdlib.h>
#include <string.h>

#include "copy/copy_priv.h"

static void test_extents(void **state)
{
    /* clusters of 4096, a target of 20000 bytes */
    static const struct { uint64_t at, len; bool data; uint64_t want; bool mixed; } cases[] = {
        { 0, 4096, true, 4096, false },
        { 0, 100, true, 4096, false },               /* data goes on to the border */
        { 512, 4096, true, 7680, false },
        { 16384, 100, true, 3616, false },           /* ... or to the end */
        { 16384, 9999, true, 3616, false },
        { 0, 4096, false, 4096, false },
        { 0, 5000, false, 4096, false },             /* what is none ends before it */
        { 0, 4095, false, 4096, true },              /* no whole cluster: data */
        { 4096, 512, false, 4096, true },
        { 512, 4096, false, 3584, false },
        { 512, 512, false, 3584, true },
        { 16384, 100, false, 3616, true },
        { 16384, 3616, false, 3616, false },         /* the end counts as a border */
        { 12288, 7712, false, 7712, false },
    };
    struct pack_place p = { NULL, 4096, 20000 };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bool mixed = !cases[i].mixed;
        uint64_t n = pack_extent(&p, cases[i].at, cases[i].len, cases[i].data, &mixed);
        if (n != cases[i].want || mixed != cases[i].mixed)
            print_error("case %zu: %llu %d\n", i, (unsigned long long)n, mixed);
        assert_true(n == cases[i].want && mixed == cases[i].mixed);
    }
}

static void test_runs(void **state)
{
    enum { LEN = 20480 };
    static const struct { uint64_t at, data_at, data_len, run; bool zero; } cases[] = {
        { 0, 0, LEN, LEN, false },
        { 0, 0, 0, LEN, true },
        { 0, 9000, 1, 8192, true },
        { 0, 100, 1, 4096, false },
        { 0, 4000, 200, 8192, false },
        { 1024, 0, 1, 3072, false },
        { 1024, 3072, 1, 3072, true },
        { 1024, LEN - 1, 1, LEN - 1024, true },
    };
    struct pack_place p = { NULL, 4096, 1 << 20 };
    uint8_t *buf = malloc(LEN);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bool zero;
        memset(buf, 0, LEN);
        memset(buf + cases[i].data_at, 1, cases[i].data_len);
        uint64_t n = pack_run(&p, buf, LEN, cases[i].at, &zero);
        if (n != cases[i].run || zero != cases[i].zero)
            print_error("case %zu: %llu %d\n", i, (unsigned long long)n, zero);
        assert_true(n == cases[i].run && zero == cases[i].zero);
    }
    free(buf);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_extents), cmocka_unit_test(test_runs) };
    return T_MAIN("copy pack", tests);
}
