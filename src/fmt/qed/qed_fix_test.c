/* SPDX-License-Identifier: MIT
 *
 * qed_fix_test.c: repair of images whose tables are made at random, sound and not.
 *
 * Purpose      After a repair nothing is wrong and no cluster is left over, and the guest reads what it read before.
 * Owns         A store in memory.
 * Invariants   None.
 * Concurrency  One loop at a time.
 * Failure      A failed check fails the test.
 * Tests        This is one. FEATURES 2.006, 2.020, 2.021, 5.017, G.020, G.021
 */
#include "stor/stor_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/qed/qed_check_priv.h"
#include "fmt/qed/qed_made_test.h"

#define C MADE_C

static void put(struct toy *t, uint64_t off, uint64_t v) { made_put(t->bytes, off, v); }

static struct toy *make(struct made *m)
{
    struct toy *t = toy_new(MADE_CLUSTERS * C, 1, 1);
    t->len = made_image(m, t->bytes);
    return t;
}

static struct made_guest *read_all(const struct made *m, const struct toy *t) { return made_read(m, t->bytes, t->len); }

static void same_guest(const struct made *m, const struct toy *t, const struct made_guest *before)
{
    uint64_t at;
    if (!CHECK(made_same(m, t->bytes, t->len, before, &at)))
        fprintf(stderr, "cluster %llu of those that are looked at\n", (unsigned long long)at);
}

/* ---- the tests ---- */

static int run_check(struct co *co, struct toy *t, unsigned fix, struct fmt_check_result *ret)
{
    struct fmt_image *im = NULL;
    struct fmt_check_opts o = { .fix = fix };
    *ret = (struct fmt_check_result){ 0 };
    int r = fmt_qed_ops.open(co, &t->s, &(struct fmt_open_opts){ .check_mode = true, .read_only = !fix }, &im, NULL);
    if (r < 0)
        return r;
    r = im->ops->check(co, im, &o, ret, NULL);
    CHECK(r < 0 || qed_of(im)->h.l1_off == made_header(t->bytes, t->len).l1_off);
    im->store = &toy_new(0, 1, 1)->s;             /* which close takes along */
    int closed = im->ops->close(co, im);
    return r < 0 ? r : closed;
}

/* FEATURES 5.017, G.021: whatever was wrong, once is enough. */
static void one_image(struct co *co, struct made *m, uint64_t seed)
{
    struct fmt_check_result before, fixed, after;
    struct toy *t = make(m);
    struct made_guest *guest = read_all(m, t);
    bool ok = CHECK_EQ(run_check(co, t, 0, &before), 0) && CHECK_EQ(run_check(co, t, FMT_FIX_LEAKS | FMT_FIX_ERRORS, &fixed), 0) &&
              CHECK_EQ(run_check(co, t, 0, &after), 0);
    if (ok) {
        ok = CHECK(!after.corruptions && !after.leaks && !after.check_errors);
        ok &= CHECK(m->damaged || (fixed.leaks_fixed == before.leaks && !before.corruptions && !fixed.corruptions_fixed));
        ok &= CHECK(!before.corruptions == !fixed.corruptions_fixed);
        ok &= CHECK(before.corruptions || before.leaks || t->len % C == 700 || t->len % C == 0);
        ok &= CHECK(!(made_header(t->bytes, t->len).features & QED_F_NEED_CHECK));
        same_guest(m, t, guest);
        unsigned writes = t->count[TOY_WRITE], cuts = t->count[TOY_TRUNCATE];
        ok &= CHECK_EQ(run_check(co, t, FMT_FIX_LEAKS | FMT_FIX_ERRORS, &fixed), 0);
        ok &= CHECK(t->count[TOY_WRITE] == writes && t->count[TOY_TRUNCATE] == cuts && !fixed.corruptions_fixed && !fixed.leaks_fixed);
    }
    if (!ok)
        fprintf(stderr, "seed %llu: table %u, %u tables, damaged %d\n", (unsigned long long)seed, m->table, m->tables, m->damaged);
    free(guest);
    toy_free(t);
}

static void random_images(struct co *co, void *arg)
{
    for (uint64_t seed = 1; seed <= 400 && !t_failures; seed += t_share()) {
        struct made m = { .table = 1u << seed % 4, .damaged = seed % 3, .holes = seed % 5, .marked = seed % 2 };
        prng_init(&m.p, seed);
        m.tables = 1 + (unsigned)prng_below(&m.p, m.table == 8 ? 4 : 7);
        one_image(co, &m, seed);
    }
}

/* Leaks are left alone beside damage, which only `all` mends; the mark stays. */
static void leaks_only(struct co *co, void *arg)
{
    unsigned refused = 0, freed = 0;
    for (uint64_t seed = 1; seed <= 60 && !t_failures; seed++) {
        struct made m = { .table = 2, .damaged = seed % 2, .holes = true, .marked = true, .tables = 3 };
        struct fmt_check_result before, fixed, after;
        prng_init(&m.p, seed);
        struct toy *t = make(&m);
        uint64_t len = t->len;
        CHECK_EQ(run_check(co, t, 0, &before), 0);
        CHECK_EQ(run_check(co, t, FMT_FIX_LEAKS, &fixed), 0);
        CHECK_EQ(run_check(co, t, 0, &after), 0);
        if (before.corruptions) {
            CHECK(after.corruptions == before.corruptions && after.leaks == before.leaks && t->len == len && t->count[TOY_WRITE] == 0);
            CHECK(made_header(t->bytes, t->len).features & QED_F_NEED_CHECK);
            refused++;
        } else {
            CHECK(!after.leaks && !after.corruptions && !(made_header(t->bytes, t->len).features & QED_F_NEED_CHECK));
            freed++;
        }
        toy_free(t);
    }
    CHECK(refused > 10 && freed > 10);
}

/* Every request fails in turn: then the image is as good as it was, and the next repair ends well. */
struct turn { enum toy_op op; unsigned left; bool fired; uint64_t off; };
static int failing(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    struct turn *f = t->hook_arg;
    if (op != f->op || f->fired || f->left--)
        return 0;
    f->fired = true;
    f->off = off;
    return op == TOY_WRITE ? -ENOSPC : -EIO;
}

static void failures(struct co *co, void *arg)
{
    static const enum toy_op ops[] = { TOY_READ, TOY_WRITE, TOY_FLUSH, TOY_TRUNCATE, TOY_ZERO };
    unsigned fired[5] = { 0 };
    for (uint64_t seed = 1; seed <= 12; seed++)
        for (unsigned o = 0; o < 5; o++)
            for (unsigned i = 0, more = 1; more && !t_failures; i += t_share()) {
                struct made m = { .table = 1u << seed % 3, .damaged = seed % 3, .holes = true, .marked = true, .tables = 3 };
                struct turn f = { .op = ops[o], .left = i };
                struct fmt_check_result r;
                prng_init(&m.p, seed);
                struct toy *t = make(&m);
                struct made_guest *guest = read_all(&m, t);
                t->hook = failing;
                t->hook_arg = &f;
                int first = run_check(co, t, FMT_FIX_LEAKS | FMT_FIX_ERRORS, &r);
                more = f.fired;
                fired[o] += f.fired;
                CHECK(f.fired || !first);
                same_guest(&m, t, guest);
                t->hook = NULL;
                if (ops[o] != TOY_FLUSH || !f.fired) {        /* a store whose flush has failed stays refused */
                    CHECK_EQ(run_check(co, t, FMT_FIX_LEAKS | FMT_FIX_ERRORS, &r), 0);
                    CHECK_EQ(run_check(co, t, 0, &r), 0);
                    CHECK(!r.corruptions && !r.leaks);
                    same_guest(&m, t, guest);
                }
                free(guest);
                toy_free(t);
            }
    for (unsigned o = 0; o < 4; o++)
        CHECK(fired[o] * t_share() > 20);
}

/* A table at the end that fits into no hole as it is: single holes between data, and between tables. */
static void tables_in_the_way(struct co *co, void *arg)
{
    for (unsigned data = 0; data < 2; data++) {
        struct made m = { .table = 4, .tables = 3 };
        struct toy *t = toy_new(64 * C, 1, 1);
        struct qed_header h = { .cluster_size = C, .table_size = 4, .header_clusters = 1, .size = 3 * 2048 * C };
        struct fmt_check_result r;
        h.l1_off = data ? C : 2 * C;              /* else cluster 1 is a hole in front of the L1 table */
        qed_header_emit(&h, (struct qed_disk_header *)t->bytes);
        for (unsigned i = 0, at = data ? 5 : 7; i < 3; i++, at += 5) {
            put(t, h.l1_off + i * 8, at * C);
            put(t, at * C, 1);
            if (data) {                           /* data 4 apart, in the holes between: nowhere is there room for 4 */
                put(t, at * C + 8, (at + 4) * C);
                memset(t->bytes + (at + 4) * C, (int)at, C);
            }
        }
        if (data) {
            put(t, 5 * C + 8, 1);                 /* cluster 9 is free */
            put(t, 15 * C + 16, 25 * C);
            put(t, 15 * C + 24, 27 * C);
        }
        t->len = data ? 28 * C : 21 * C;
        struct made_guest *guest = read_all(&m, t);
        CHECK_EQ(run_check(co, t, FMT_FIX_LEAKS, &r), 0);
        CHECK(r.leaks_fixed > 0 && !r.leaks);
        CHECK_EQ(t->len, (data ? 1 + 4 + 12 + 4 : 1 + 4 + 12) * C);
        same_guest(&m, t, guest);
        free(guest);
        toy_free(t);
    }
}

/* A cluster of data that an entry of the L1 table calls a table, too. Entry `first` of that table calls a table what names the data. */
static struct toy *data_or_table(unsigned first, uint8_t data[C])
{
    struct toy *t = toy_new(64 * C, 1, 1);
    struct qed_header h = { .cluster_size = C, .table_size = 1, .header_clusters = 1, .l1_off = C, .size = 2 * 512 * C };
    qed_header_emit(&h, (struct qed_disk_header *)t->bytes);
    put(t, C + first * 8, 2 * C);
    put(t, C + !first * 8, 3 * C);
    put(t, 2 * C, 3 * C);
    for (unsigned i = 0; i < 512; i++)
        put(t, 3 * C + i * 8, i < 8 ? (4 + i) * C : i == 20 ? 1 : i % 2 ? 0xda7a0001u + i : 0);
    t->len = 4 * C;
    memcpy(data, t->bytes + 3 * C, C);
    return t;
}

/* zeros: pointers behind the end may have come to name clusters of zeros, but nothing else. */
static void both_are_right(struct toy *t, unsigned first, const uint8_t data[C], bool zeros)
{
    static const uint8_t none[C];
    uint64_t v = made_entry(t->bytes, t->len, first * 512);
    CHECK(v > 1 && !memcmp(t->bytes + v, data, C));
    for (unsigned i = 0; i < 512; i++) {
        v = made_entry(t->bytes, t->len, !first * 512 + i);
        CHECK(v == (i == 20) || (zeros && v > 1 && !memcmp(t->bytes + v, none, C)));
    }
}

/* Its bytes stay, whichever entry comes first; in the table that it is said to be pointers behind the end lead nowhere, also when the
 * file grows (repair I1, I2). */
static void data_called_a_table(struct co *co, void *arg)
{
    for (unsigned first = 0; first < 2; first++) {
        struct fmt_check_result r;
        uint8_t data[C];
        struct toy *t = data_or_table(first, data);
        CHECK_EQ(run_check(co, t, FMT_FIX_LEAKS | FMT_FIX_ERRORS, &r), 0);
        CHECK_EQ(run_check(co, t, 0, &r), 0);
        CHECK(!r.corruptions && !r.leaks && !r.check_errors);
        both_are_right(t, first, data, false);
        toy_free(t);
    }
}

/* The same when a request of the first repair fails: the next one must not take what the file has grown over for clusters. */
static void data_called_a_table_fails(struct co *co, void *arg)
{
    static const enum toy_op ops[] = { TOY_READ, TOY_WRITE, TOY_TRUNCATE, TOY_ZERO };
    unsigned fired = 0;
    for (unsigned first = 0; first < 2; first++)
        for (unsigned o = 0; o < 4; o++)
            for (unsigned i = 0, more = 1; more && !t_failures; i += t_share()) {
                struct turn f = { .op = ops[o], .left = i };
                struct fmt_check_result r;
                uint8_t data[C];
                struct toy *t = data_or_table(first, data);
                t->hook = failing;
                t->hook_arg = &f;
                (void)run_check(co, t, FMT_FIX_LEAKS | FMT_FIX_ERRORS, &r);
                more = f.fired;
                fired += f.fired;
                t->hook = NULL;
                bool entry = ops[o] == TOY_WRITE && f.off < 2 * C;            /* may have landed: nothing is cut */
                CHECK_EQ(run_check(co, t, FMT_FIX_LEAKS | FMT_FIX_ERRORS, &r), 0);
                both_are_right(t, first, data, entry);
                toy_free(t);
            }
    CHECK(fired * t_share() > 20);
}

#define RUN(name) static void test_##name(void **state) { t_run(0, name, NULL); }
RUN(random_images)
RUN(leaks_only)
RUN(failures)
RUN(tables_in_the_way)
RUN(data_called_a_table)
RUN(data_called_a_table_fails)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_images), cmocka_unit_test(test_leaks_only), cmocka_unit_test(test_failures), cmocka_unit_test(test_tables_in_the_way),
        cmocka_unit_test(test_data_called_a_table), cmocka_unit_test(test_data_called_a_table_fails),
    };
    return T_MAIN("qed-fix", tests);
}
