/* SPDX-License-Identifier: MIT
 *
 * q2_zero_test.c: what becomes of an entry, for every kind, flag, mode, version and layer below.
 *
 * Purpose      The table of after() and a judgement of after_sub(): 1.053, 1.054 and invariants Z2, Z3 of q2_zero.c.
 * Owns         Nothing.
 * Invariants   None.
 * Concurrency  Pure.
 * Failure      A failed row fails the test.
 * Tests        This is one.
 */
#include "base/prng.h"
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

/* FEATURES 1.053, 1.054, G.011: extended entries. What the guest reads in each subcluster before and after, what becomes of the
 * host cluster, and that nothing is written when nothing changes. */
static char shows(const struct q2_l2e *e, unsigned i, uint32_t below)
{
    if (e->alloc >> i & 1)
        return 'd';
    return e->zero >> i & 1 || !(below >> i & 1) ? '0' : 'b';
}

static void judge_sub(const struct q2_l2e *e, enum mode mode, uint32_t mask, uint32_t below, unsigned n)
{
    struct q2_l2e new = *e;
    bool zero = true, changed = after_sub(e, mode, mask, below, &new);
    if (!changed)
        new = *e;
    for (unsigned i = 0; i < 32; i++) {
        char was = shows(e, i, below), is = shows(&new, i, below);
        if (is != (mask >> i & 1 ? '0' : was))
            fail_msg("case %u: subcluster %u: '%c' becomes '%c'", n, i, was, is);
        zero &= !(mask >> i & 1) || was == '0';
    }
    bool had = e->kind == Q2_NORMAL, has = new.kind == Q2_NORMAL, rest = e->alloc & ~mask;
    if (has && (!had || new.host != e->host || new.copied != e->copied))
        fail_msg("case %u: another host cluster", n);
    if (!has && (new.host || new.copied || new.alloc))
        fail_msg("case %u: a cluster that is given up leaves something behind", n);
    if (had && !has && (rest || (mode == MODE_ZERO_KEEP && e->copied)))
        fail_msg("case %u: the cluster is taken away", n);
    if (had && has && !rest && (e->alloc || mask == Q2_SUB_ALL) && !(mode == MODE_ZERO_KEEP && e->copied))
        fail_msg("case %u: a cluster that holds nothing is kept", n);
    if (changed != (!zero || had != has))
        fail_msg("case %u: changed %d", n, changed);
    if (changed && mask == Q2_SUB_ALL && new.zero != Q2_SUB_ALL)
        fail_msg("case %u: not told as zero", n);
}

static void test_subclusters(void **state)
{
    static const uint32_t some[] = { 0, 1, 3, 0x80000000, 0xffff0000, 0xff, Q2_SUB_ALL };
    struct prng r;
    unsigned n = 0;
    prng_init(&r, 3);
    for (unsigned kind = 0; kind < 3; kind++)
        for (unsigned c = 0; c < 300000; c++, n++) {
            unsigned pick = (unsigned)prng_below(&r, 8);
            uint32_t a = some[prng_below(&r, 7)], z = some[prng_below(&r, 7)], mask = some[1 + prng_below(&r, 6)], below = some[prng_below(&r, 7)];
            a = pick & 1 ? a & (uint32_t)prng_u64(&r) : a;
            mask = pick & 2 && mask & (uint32_t)(prng_u64(&r) >> 32) ? (uint32_t)prng_u64(&r) | 1 : mask;
            struct q2_l2e e = { .kind = kind ? Q2_NORMAL : Q2_UNALLOCATED, .copied = kind == 2, .host = kind ? HOST : 0, .alloc = kind ? a : 0 };
            e.zero = z & ~e.alloc;
            judge_sub(&e, (enum mode)(c % 3), mask, below, n);
        }
    struct q2_l2e packed = { .kind = Q2_COMPRESSED, .host = HOST, .comp_bytes = 512 }, new;
    assert_false(after_sub(&packed, MODE_ZERO_KEEP, 0xff, 0, &new));
    for (int mode = 0; mode < 3; mode++) {
        assert_true(after_sub(&packed, (enum mode)mode, Q2_SUB_ALL, 0, &new));
        assert_true(new.kind == Q2_UNALLOCATED && new.zero == Q2_SUB_ALL && !new.host);
    }
}

/* Which subclusters a range holds, at its ends and at the end of the disk. */
static void test_masks(void **state)
{
    static struct q2_image q;
    q.g = q2_geom_make(3, 16, 4, true);
    atomic_store(&q.im.size, 0x25a00);
    assert_int_equal(mask_of(&q, 0x10000, 0, 0x30000), Q2_SUB_ALL);
    assert_int_equal(mask_of(&q, 0x10000, 0x10800, 0x30000), Q2_SUB_ALL - 1);
    assert_int_equal(mask_of(&q, 0x10000, 0x10000, 0x11000), 3);
    assert_int_equal(mask_of(&q, 0x20000, 0, 0x25800), 0x7ff);
    assert_int_equal(mask_of(&q, 0x20000, 0, 0x25a00), Q2_SUB_ALL);      /* the short last one counts as whole */
    assert_int_equal(mask_of(&q, 0x20000, 0x25800, 0x25a00), Q2_SUB_ALL - 0x7ff);
    assert_int_equal(below_of(&q, 0x10000, 0x10000), 0);
    assert_int_equal(below_of(&q, 0x10000, 0x10001), 1);
    assert_int_equal(below_of(&q, 0x10000, 0x10800), 1);
    assert_int_equal(below_of(&q, 0x10000, 0x10801), 3);
    assert_int_equal(below_of(&q, 0x10000, UINT64_MAX), Q2_SUB_ALL);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_after), cmocka_unit_test(test_encodes), cmocka_unit_test(test_subclusters), cmocka_unit_test(test_masks) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
