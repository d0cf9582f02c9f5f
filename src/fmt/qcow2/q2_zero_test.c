/* SPDX-License-Identifier: MIT
 *
 * q2_zero_test.c: what becomes of an entry, for every kind, flag, mode, version and layer below.
 *
 * Purpose      The table of after(): 1.053, 1.054 and invariants Z2, Z3 of q2_zero.c.
 * Owns         Nothing.
 * Invariants   None.
 * Concurrency  Pure.
 * Failure      A failed row fails the test.
 * Tests        This is one.
 */
#include "base/test.h"

#include "fmt/qcow2/q2_zero.c"

#define HOST 0x50000ull

/* v3, v2: what after() makes of it with modes discard, unmap, keep, each without and with a layer below that could show
 * through. '-' stays, 'U' unallocated, 'Z' zero without space, 'K' zero that keeps its host cluster. */
struct row { enum q2_kind kind; bool copied; const char *v3, *v2; };
static const struct row rows[] = {
    { Q2_UNALLOCATED, false, "-Z-Z-Z", "------" },       /* version 2 over a backing image never comes here: run() refuses */
    { Q2_UNALLOCATED, true,  "-Z-Z-Z", "------" },
    { Q2_ZERO_PLAIN,  false, "------", "------" },
    { Q2_ZERO_PLAIN,  true,  "------", "------" },
    { Q2_ZERO_ALLOC,  false, "ZZZZ--", "UUUU--" },
    { Q2_ZERO_ALLOC,  true,  "ZZZZ--", "UUUU--" },
    { Q2_NORMAL,      false, "ZZZZZZ", "UUUUUU" },       /* shared: its space cannot be kept (Z3) */
    { Q2_NORMAL,      true,  "ZZZZKK", "UUUUUU" },
    { Q2_COMPRESSED,  false, "ZZZZZZ", "UUUUUU" },
    { Q2_COMPRESSED,  true,  "ZZZZZZ", "UUUUUU" },
};

static char letter(bool changes, const struct q2_l2e *e)
{
    if (!changes)
        return '-';
    switch (e->kind) {
    case Q2_UNALLOCATED:
        return e->copied || e->host ? '?' : 'U';
    case Q2_ZERO_PLAIN:
        return e->copied || e->host ? '?' : 'Z';
    case Q2_ZERO_ALLOC:
        return e->copied && e->host == HOST ? 'K' : '?';
    default:
        return '?';
    }
}

static void test_after(void **state)
{
    for (uint32_t version = 2; version <= 3; version++) {
        struct q2_geom g = q2_geom_make(version, 16, 4, false);
        for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
            for (unsigned k = 0; k < 6; k++) {
                enum mode mode = k < 2 ? MODE_DISCARD : k < 4 ? MODE_ZERO_UNMAP : MODE_ZERO_KEEP;
                struct q2_l2e e = { .kind = rows[i].kind, .copied = rows[i].copied, .host = HOST, .comp_bytes = 512 }, new;
                if (e.kind == Q2_UNALLOCATED || e.kind == Q2_ZERO_PLAIN)
                    e.host = 0;
                char got = letter(after(&g, &e, mode, k & 1, &new), &new), want = (version == 3 ? rows[i].v3 : rows[i].v2)[k];
                if (got != want)
                    fail_msg("version %u, row %zu, column %u: '%c', not '%c'", version, i, k, got, want);
            }
    }
}

/* What is written is always an entry that the version can read back as such. */
static void test_encodes(void **state)
{
    for (uint32_t version = 2; version <= 3; version++) {
        struct q2_geom g = q2_geom_make(version, 16, 4, false);
        for (unsigned n = 0; n < 5 * 2 * 3 * 2; n++) {
            struct q2_l2e e = { .kind = (enum q2_kind)(n % 5), .copied = n / 5 % 2, .host = HOST }, new, back;
            if (!after(&g, &e, (enum mode)(n / 10 % 3), n / 30, &new))
                continue;
            assert_true(q2_l2e_decode(&g, q2_l2e_encode(&g, &new), &back));
            assert_int_equal(back.kind, new.kind);
            assert_int_equal(back.host, new.host);
            assert_int_equal(back.copied, new.copied);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_after), cmocka_unit_test(test_encodes) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
