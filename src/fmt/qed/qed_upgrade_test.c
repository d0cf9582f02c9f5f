/* SPDX-License-Identifier: MIT
 *
 * qed_upgrade_test.c: QED images made at random become qcow2 images; every request fails in turn.
 *
 * Purpose      Data stays where it is, the guest reads the same, each cluster is counted once; after a failure it is one of the two.
 * Owns         A store in memory.
 * Invariants   None.
 * Concurrency  One loop at a time.
 * Failure      A failed check fails the test.
 * Tests        This is one. FEATURES G.020
 */
#include "stor/stor_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/qed/qed_made_test.h"

#define C MADE_C

static bool is_format(void *arg, const char *option) { return !strcmp(option, "format") || (arg && !strcmp(option, "backing_fmt")); }

static int upgrade(struct co *co, struct toy *t, const char *backing_fmt, struct byre_err *err)
{
    struct fmt_create_opts o = { .format = (char *)"qcow2", .backing_fmt = (char *)backing_fmt };
    struct fmt_amend_opts a = { .o = &o, .given = is_format, .arg = (void *)backing_fmt };
    struct fmt_image *im = NULL;
    int r = fmt_qed_ops.open(co, &t->s, &(struct fmt_open_opts){ 0 }, &im, err);
    if (r < 0)
        return r;
    r = im->ops->amend(co, im, &a, err);
    im->store = im->data = &toy_new(0, 1, 1)->s;            /* which close takes along */
    int closed = im->ops->close(co, im);
    return r < 0 ? r : closed;
}

static bool is_qed(const struct toy *t) { return !memcmp(t->bytes, "QED", 4); }

static int check(struct co *co, struct toy *t, struct fmt_check_result *ret)
{
    const struct fmt_ops *ops = is_qed(t) ? &fmt_qed_ops : &fmt_qcow2_ops;
    struct fmt_image *im = NULL;
    *ret = (struct fmt_check_result){ 0 };
    int r = ops->open(co, &t->s, &(struct fmt_open_opts){ .check_mode = true, .read_only = true }, &im, NULL);
    if (r < 0)
        return r;
    r = ops->check(co, im, &(struct fmt_check_opts){ 0 }, ret, NULL);
    im->store = im->data = &toy_new(0, 1, 1)->s;
    CHECK_EQ(ops->close(co, im), 0);
    return r;
}

static struct toy *make(struct made *m, uint64_t seed)
{
    *m = (struct made){ .table = 1u << seed % 4, .holes = seed % 3, .tables = 1 + seed % 4 };
    prng_init(&m->p, seed);
    struct toy *t = toy_new(MADE_CLUSTERS * C, 1, 1);
    t->len = made_image(m, t->bytes);
    return t;
}

static void random_images(struct co *co, void *arg)
{
    for (uint64_t seed = 1; seed <= 100 && !t_failures; seed++) {
        struct made m;
        struct fmt_check_result r;
        uint64_t at;
        struct toy *t = make(&m, seed);
        struct made_guest *guest = made_read(&m, t->bytes, t->len);
        CHECK_EQ(upgrade(co, t, NULL, NULL), 0);
        CHECK(!is_qed(t) && made_same_qcow2(&m, t->bytes, t->len, guest, &at));
        CHECK_EQ(check(co, t, &r), 0);
        CHECK(!r.corruptions && !r.leaks && !r.check_errors);
        free(guest);
        toy_free(t);
    }
}

struct turn { enum toy_op op; unsigned left; bool fired; };
static int failing(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    struct turn *f = t->hook_arg;
    if (op != f->op || f->fired || f->left--)
        return 0;
    f->fired = true;
    return op == TOY_WRITE ? -ENOSPC : -EIO;
}

static void failures(struct co *co, void *arg)
{
    static const enum toy_op ops[] = { TOY_READ, TOY_WRITE, TOY_FLUSH, TOY_TRUNCATE };
    unsigned as_qed = 0, as_qcow2 = 0;
    for (uint64_t seed = 1; seed <= 8; seed++)
        for (unsigned o = 0; o < 4; o++)
            for (unsigned i = 0, more = 1; more && !t_failures; i++) {
                struct turn f = { .op = ops[o], .left = i };
                struct made m;
                struct fmt_check_result r;
                struct toy *t = make(&m, seed);
                struct made_guest *guest = made_read(&m, t->bytes, t->len);
                uint64_t at, len = t->len;
                t->hook = failing;
                t->hook_arg = &f;
                int first = upgrade(co, t, NULL, NULL);
                more = f.fired;
                t->hook = NULL;
                if (is_qed(t)) {
                    as_qed++;
                    CHECK(first < 0 && made_same(&m, t->bytes, t->len, guest, &at));
                    CHECK(t->len == len || ops[o] == TOY_FLUSH || ops[o] == TOY_TRUNCATE);
                } else {
                    as_qcow2++;
                    CHECK(made_same_qcow2(&m, t->bytes, t->len, guest, &at));
                }
                if (ops[o] != TOY_FLUSH || !f.fired) {
                    CHECK_EQ(check(co, t, &r), 0);
                    CHECK(!r.corruptions && !r.check_errors);
                }
                free(guest);
                toy_free(t);
            }
    CHECK(as_qed > 30 && as_qcow2 > 8);
}

/* The old name may lie anywhere in the header; the new one neither over it nor in the first sector. */
static void names(struct co *co, void *arg)
{
    static const struct { uint32_t off, len; const char *fmt; uint64_t features; int want; } rows[] = {
        { 64, 4, "qcow2", 1, 0 }, { 64, 1023, "raw", 1, 0 }, { 64, 8, NULL, 5, 0 }, { 600, 1023, "qed", 1, 0 }, { 1500, 1023, "raw", 5, 0 },
        { 3072, 1023, "raw", 1, 0 }, { 4095, 1, "raw", 1, 0 }, { 4000, 1023, "raw", 1, 0 }, { 5000, 100, "raw", 1, 0 },
        { 64, 4, NULL, 1, -EINVAL }, { 64, 4, "nonsense", 1, -EINVAL }, { 64, 4, "qcow2", 5, -EINVAL }, { 0, 0, "raw", 0, -EINVAL },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct qed_header h = { .cluster_size = C, .table_size = 1, .header_clusters = 2, .l1_off = 2 * C, .size = 1 << 20, .features = rows[i].features,
                                .backing_off = rows[i].off, .backing_len = rows[i].len };
        struct toy *t = toy_new(3 * C, 1, 1);
        char name[QED_NAME_MAX + 1] = "";
        memset(name, 'a' + (int)i, rows[i].len);
        qed_header_emit(&h, (struct qed_disk_header *)t->bytes);
        memcpy(t->bytes + rows[i].off, name, rows[i].len);
        struct byre_err err = { 0 };
        CHECK_EQ(upgrade(co, t, rows[i].fmt, &err), rows[i].want);
        if (CHECK_EQ(is_qed(t), rows[i].want != 0) && !rows[i].want) {
            struct fmt_image *im = NULL;
            struct fmt_info f = { 0 };
            CHECK_EQ(fmt_qcow2_ops.open(co, &t->s, &(struct fmt_open_opts){ .read_only = true, .info_only = true }, &im, NULL), 0);
            CHECK_EQ(im->ops->info(co, im, &f, NULL), 0);
            CHECK(!strcmp(f.backing_name, name) && !strcmp(f.backing_format, rows[i].fmt ? rows[i].fmt : "raw") && f.virtual_size == 1 << 20);
            fmt_info_fini(&f);
            im->store = im->data = &toy_new(0, 1, 1)->s;
            CHECK_EQ(im->ops->close(co, im), 0);
        } else {
            CHECK(err.text[0] && t->len == 3 * C);
        }
        toy_free(t);
    }
}

#define RUN(name) static void test_##name(void **state) { t_run(0, name, NULL); }
RUN(random_images)
RUN(failures)
RUN(names)

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_random_images), cmocka_unit_test(test_failures), cmocka_unit_test(test_names) };
    return T_MAIN("qed-upgrade", tests);
}
