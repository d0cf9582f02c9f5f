/* SPDX-License-Identifier: MIT
 *
 * q2_snap_test.c: the pure parts of operations on snapshots: lists of tables, short forms of decoders, names.
 *
 * Purpose      What the passes over tables decide, by table.
 * Owns         Nothing.
 * Invariants   None.
 * Concurrency  None.
 * Failure      A failed assertion fails the test.
 * Tests        This is one.
 */
#include "base/test.h"

#include <stdlib.h>
#include <string.h>

#include "base/prng.h"
#include "fmt/qcow2/q2_snapshot.h"
#include "fmt/qcow2/q2_tree.h"

#define CS 4096ull

static uint64_t entry(uint64_t cluster, bool copied) { return be64_word(q2_l1e_encode(cluster * CS, copied)); }

/* Tables come out in the order of the file, each once; holes and flags do not matter. */
static void order(void **state)
{
    struct q2_geom g = q2_geom_make(3, 12, 4, false);
    const uint64_t words[] = { entry(9, true), 0, entry(3, false), entry(9, false), entry(5, true), 0, entry(3, true), entry(3, true) };
    struct q2_tree t;
    assert_int_equal(q2_tree_init(&t, &g, 100 * CS, words, 8), 0);
    assert_int_equal(t.count, 3);
    assert_true(t.t[0].off == 3 * CS && t.t[0].weight == 3);
    assert_true(t.t[1].off == 5 * CS && t.t[1].weight == 1);
    assert_true(t.t[2].off == 9 * CS && t.t[2].weight == 2);
    q2_tree_fini(&t);
    assert_int_equal(q2_tree_init(&t, &g, 100 * CS, words, 0), 0);
    assert_int_equal(t.count, 0);
    q2_tree_fini(&t);
}

/* 1.111: an entry that cannot be right is refused; the last cluster of the file may be cut short. */
static void wrong_entries(void **state)
{
    struct q2_geom g = q2_geom_make(3, 12, 4, false);
    const uint64_t bad[] = { be64_word(3 * CS + 512), be64_word(3 * CS | 1), be64_word(3 * CS | 1ull << 58), entry(100, false), entry(1ull << 43, false) };
    struct q2_tree t;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        uint64_t words[2] = { entry(3, true), bad[i] };
        assert_int_equal(q2_tree_init(&t, &g, 100 * CS, words, 2), -EUCLEAN);
    }
    uint64_t last = entry(99, false);
    assert_int_equal(q2_tree_init(&t, &g, 99 * CS + 1, &last, 1), 0);
    q2_tree_fini(&t);
}

static void fill(struct q2_tree *t, const uint64_t (*pairs)[2], size_t n)
{
    *t = (struct q2_tree){ .t = calloc(n + 1, sizeof *t->t), .count = n };
    for (size_t i = 0; i < n; i++)
        t->t[i] = (struct q2_tree_table){ pairs[i][0], pairs[i][1] };
}

/* FEATURES 1.088: what both trees have alike leaves both; another weight stays in both. */
static void subtract(void **state)
{
    const uint64_t a[][2] = { { 1, 1 }, { 3, 1 }, { 4, 2 }, { 7, 1 }, { 9, 1 } }, b[][2] = { { 2, 1 }, { 3, 1 }, { 4, 1 }, { 9, 1 }, { 12, 1 } };
    struct q2_tree x, y;
    fill(&x, a, 5);
    fill(&y, b, 5);
    q2_tree_subtract(&x, &y);
    assert_true(x.count == 3 && x.t[0].off == 1 && x.t[1].off == 4 && x.t[1].weight == 2 && x.t[2].off == 7);
    assert_true(y.count == 3 && y.t[0].off == 2 && y.t[1].off == 4 && y.t[1].weight == 1 && y.t[2].off == 12);
    q2_tree_fini(&x);
    q2_tree_fini(&y);
    fill(&x, a, 5);
    fill(&y, a, 5);
    q2_tree_subtract(&x, &y);
    assert_true(x.count == 0 && y.count == 0);
    q2_tree_fini(&x);
    q2_tree_fini(&y);
}

/* The short decoder never takes what the decoder refuses, nor a compressed entry, and finds the same host offset. */
static void plain_entries(void **state)
{
    struct prng r;
    uint64_t host, taken = 0;
    prng_init(&r, 11);
    for (unsigned i = 0; i < 200000; i++) {
        struct q2_geom g = q2_geom_make(2 + i % 2, 9 + i % 13, 4, i % 2 && i % 5 == 0 && i % 13 >= 5);
        uint64_t raw = prng_u64(&r) & prng_u64(&r) & (i % 3 ? ~(g.cluster_size - 1) | 1 : UINT64_MAX) & (i % 4 ? ~(0x3full << 56) : UINT64_MAX);
        struct q2_l2e e;
        if (!q2_l2e_plain(&g, raw, &host))
            continue;
        taken++;
        assert_true(q2_l2e_decode(&g, raw, &e) && e.kind != Q2_COMPRESSED && e.host == host);
    }
    assert_true(taken > 20000);
}

/* What may be written is what can be read back. */
static void names(void **state)
{
    char text[300];
    memset(text, 'x', sizeof text);
    text[255] = 0;
    assert_true(q2_snapshot_text_ok(text, false) && !q2_snapshot_text_ok(text, true));
    text[255] = 'x';
    text[256] = 0;
    assert_false(q2_snapshot_text_ok(text, false));
    text[127] = 0;
    assert_true(q2_snapshot_text_ok(text, true));
    assert_true(q2_snapshot_text_ok("", false) && q2_snapshot_text_ok("näme €", false));
    assert_false(q2_snapshot_text_ok("a\nb", false) || q2_snapshot_text_ok("\x7f", false) || q2_snapshot_text_ok("\xff", false) || q2_snapshot_text_ok("\xc3", false));
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(order), cmocka_unit_test(wrong_entries), cmocka_unit_test(subtract), cmocka_unit_test(plain_entries),
        cmocka_unit_test(names) };
    return cmocka_run_group_tests_name("q2_snap", tests, NULL, NULL);
}
