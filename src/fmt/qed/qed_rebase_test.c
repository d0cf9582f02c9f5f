/* SPDX-License-Identifier: MIT
 *
 * qed_rebase_test.c: another backing file, and an image that is emptied.
 *
 * Purpose      Names of all lengths, from any place to any other; what is refused; the power fails, or a request does, at each step.
 * Owns         The disk of q2_disk_test.c.
 * Invariants   None.
 * Order        None.
 * Concurrency  One loop.
 * Failure      A failed check fails the test.
 * Tests        This is one. FEATURES 2.005, 2.007, 2.019, 1.059
 */
#include "fmt/qed/qed_disk_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void all_durable(void)
{
    memcpy(disk.durable, disk.bytes, disk.len);
    disk.durable_len = disk.len;
}

static void poke(uint64_t off, const void *bytes, uint64_t n)
{
    memcpy(disk.bytes + off, bytes, n);
    memcpy(disk.durable + off, bytes, n);
}

static void poke64(uint64_t off, uint64_t v)
{
    le64 x;
    le64_put(&x, v);
    poke(off, &x, 8);
}

static uint64_t peek(uint64_t off) { return le64_get((const le64 *)(disk.bytes + off)); }

/* ---- names ---- */

#define LONGEST QED_NAME_MAX
static char name_buf[2][LONGEST + 2];

/* A name of len bytes that differs from others of the same length by `salt`. */
static char *name_of(unsigned slot, size_t len, unsigned salt)
{
    for (size_t i = 0; i < len; i++)
        name_buf[slot][i] = (char)('a' + (i * 7 + salt * 11 + len) % 26);
    name_buf[slot][len] = 0;
    return name_buf[slot];
}

static int rebase(struct co *co, struct qed_image *q, const char *name, const char *format, bool dry_run)
{
    struct fmt_create_opts o = { .backing_file = (char *)(uintptr_t)name, .backing_fmt = (char *)(uintptr_t)format };
    return q->im.ops->amend(co, &q->im, &(struct fmt_amend_opts){ .o = &o, .rebase = true, .dry_run = dry_run }, NULL);
}

/* What does the image say? */
static bool says(struct co *co, const char *name, const char *format)
{
    struct qed_image *q = reopen(co, true);
    struct fmt_info i = { 0 };
    CHECK_EQ(q->im.ops->info(co, &q->im, &i, NULL), 0);
    bool same = (name ? i.backing_name && !strcmp(i.backing_name, name) : !i.backing_name) &&
                (format ? i.backing_format && !strcmp(i.backing_format, format) : !i.backing_format);
    same &= q->im.has_backing == (name != NULL);
    fmt_info_fini(&i);
    CHECK_EQ(shut(co, q), 0);
    return same;
}

static void names(struct co *co, void *arg)
{
    static const size_t lens[] = { 1, 8, 447, 448, 449, 512, 700, 1023 };
    for (unsigned from = 0; from < 8; from++)
        for (unsigned to = 0; to < 9; to++) {
            make(co, name_of(0, lens[from], 1));
            struct qed_image *q = reopen(co, false);
            CHECK_EQ(g_put(co, q, 3 * C, C, 9), 0);
            const char *name = to < 8 ? name_of(1, lens[to], 2) : NULL;
            CHECK_EQ(rebase(co, q, name, "raw", true), 0);
            CHECK(le32_get((const le32 *)(disk.bytes + 60)) == lens[from]);
            disk_mark();
            CHECK_EQ(rebase(co, q, name, to % 2 || !name ? "raw" : "qcow2", false), 0);
            CHECK(disk.writes <= (to < 8 && lens[to] > 448 ? 2u : 1u) && disk.flushes == disk.writes);
            CHECK(q->im.has_backing == (name != NULL));
            CHECK_EQ(shut(co, q), 0);
            CHECK(says(co, name, to % 2 && name ? "raw" : NULL));
            q = reopen(co, false);                /* and back, whatever lies where */
            CHECK(holds(co, q, 3 * C, C, 9));
            CHECK_EQ(rebase(co, q, name_of(0, lens[from], 1), "raw", false), 0);
            CHECK_EQ(shut(co, q), 0);
            CHECK(says(co, name_buf[0], "raw") && sound(co));
        }
}

/* The old name lies where another program has put it. */
static void places(struct co *co, void *arg)
{
    for (uint32_t at = 64; at + 1000 <= C; at += 100) {
        make(co, NULL);
        char *old = name_of(0, 1000, at), *new = name_of(1, 900, at);
        le32 x;
        poke64(16, QED_F_BACKING);
        le32_put(&x, at);
        poke(56, &x, 4);
        le32_put(&x, 1000);
        poke(60, &x, 4);
        poke(at, old, 1000);
        CHECK(says(co, old, NULL));
        struct qed_image *q = reopen(co, false);
        CHECK_EQ(qed_put_mark(co, q, true), 0);   /* other changes of the header leave it alone */
        CHECK_EQ(qed_put_mark(co, q, false), 0);
        CHECK(!memcmp(disk.bytes + at, old, 1000));
        CHECK_EQ(rebase(co, q, new, "raw", false), 0);
        CHECK(!memcmp(disk.bytes + max_u64(at, 512), old + (max_u64(at, 512) - at), 1000 - (max_u64(at, 512) - at)));
        CHECK_EQ(shut(co, q), 0);
        CHECK(says(co, new, "raw"));
    }
}

static void refused(struct co *co, void *arg)
{
    make(co, "base");
    static char tabs[] = "a\tb", empty[] = "";
    uint8_t *before = malloc(disk.len);
    struct qed_image *q = reopen(co, false);
    memcpy(before, disk.bytes, disk.len);
    for (unsigned dry = 0; dry < 2; dry++) {
        CHECK_EQ(rebase(co, q, tabs, NULL, dry), -EINVAL);
        CHECK_EQ(rebase(co, q, empty, NULL, dry), -EINVAL);
        CHECK_EQ(rebase(co, q, name_of(0, LONGEST + 1, 0), NULL, dry), -ENOSPC);
    }
    struct fmt_create_opts o = { 0 };
    CHECK_EQ(q->im.ops->amend(co, &q->im, &(struct fmt_amend_opts){ .o = &o, .rebase = true, .partial = "x" }, NULL), -ENOTSUP);
    CHECK_EQ(shut(co, q), 0);
    CHECK(!memcmp(before, disk.bytes, disk.len));
    poke64(24, 1ull << 40);                       /* a compatible feature that nobody knows */
    memcpy(before, disk.bytes, disk.len);
    q = reopen(co, false);
    CHECK_EQ(rebase(co, q, "other", NULL, false), -ENOTSUP);
    CHECK_EQ(shut(co, q), 0);
    CHECK(!memcmp(before, disk.bytes, disk.len));
    free(before);
}

static unsigned left;
static int cut_off(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf) { return left-- == 0 || left > UINT32_MAX / 2 ? -EIO : 0; }
static int fail_one(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf) { return left-- == 0 ? -EIO : 0; }

/* R2: whole, whatever fails, and what was not flushed there or not. */
static void name_is_whole(struct co *co, void *arg)
{
    static const struct { size_t from, to; } moves[] = { { 5, 300 }, { 300, 900 }, { 900, 1000 }, { 900, 3 }, { 448, 449 }, { 40, 0 } };
    for (unsigned k = 0; k < 6 * 4; k++) {
        bool done = false, land = k & 1, one = k & 2;
        for (unsigned i = 0; !done; i += t_share()) {
            const char *old = name_of(0, moves[k / 4].from, 3), *new = moves[k / 4].to ? name_of(1, moves[k / 4].to, 4) : NULL;
            make(co, old);
            struct qed_image *q = reopen(co, false);
            left = i;
            disk.hook = one ? fail_one : cut_off;
            disk.land = land;
            int r = rebase(co, q, new, NULL, false);
            done = left < UINT32_MAX / 2;
            disk.hook = NULL;
            CHECK(done ? r == 0 : r < 0);
            CHECK(r == 0 || (q->im.has_backing && !strcmp(q->h.backing_name, old)));
            if (one)
                (void)shut(co, q);
            else
                crash(co, q);
            CHECK(says(co, r == 0 ? new : old, NULL) || (r < 0 && says(co, new, NULL)));
        }
        disk.land = false;
    }
}

/* ---- emptying ---- */

#define DATA 40u

/* Data, zeros, and what a peer or a crash has left: L1 at the end, tables in front, a lost cluster, entries behind the size. */
struct lay { bool l1_last, l1_between, lost, beyond; };

static void lay_out(struct co *co, const struct lay *l)
{
    make(co, "base");
    struct qed_image *q = reopen(co, false);
    for (unsigned i = 0; i < DATA; i++)
        CHECK_EQ(g_put(co, q, i * C + (i % 3) * SPAN, C, (uint8_t)(i + 10)), 0);
    CHECK_EQ(q->im.ops->zero(co, &q->im, 50 * C, 5 * C, 0), 0);
    CHECK_EQ(shut(co, q), 0);
    if (l->l1_last || l->l1_between) {            /* by one cluster: no hole of its length is in front of it */
        uint64_t at = l->l1_last ? disk.len : 0, old = peek(40);
        if (!at) {
            memmove(disk.bytes + C + C, disk.bytes + C, disk.len - C);
            memset(disk.bytes + C, 0xdd, C);
            disk.len += C;
            for (uint64_t k = 0; k < 3; k++) {
                uint64_t table = peek(old + C + 8 * k) + C;
                memcpy(disk.bytes + old + C + 8 * k, &(le64){ { 0 } }, 8);
                le64_put((le64 *)(disk.bytes + old + C + 8 * k), table);
                for (uint64_t i = 0; i < T * C; i += 8)
                    if (peek(table + i) > 1)
                        le64_put((le64 *)(disk.bytes + table + i), peek(table + i) + C);
            }
            le64_put((le64 *)(disk.bytes + 40), old + C);
        } else {
            memcpy(disk.bytes + at, disk.bytes + old, T * C);
            le64_put((le64 *)(disk.bytes + 40), at);
            disk.len += T * C;
        }
    }
    if (l->lost) {
        memset(disk.bytes + disk.len, 0xee, 3 * C);
        disk.len += 3 * C;
    }
    if (l->beyond) {                              /* a table that only a larger disk would use */
        memset(disk.bytes + disk.len, 0, T * C);
        le64_put((le64 *)(disk.bytes + peek(40) + 8 * 900), disk.len);
        disk.len += T * C;
    }
    all_durable();
}

static const struct lay lays[] = { { 0 }, { .l1_last = true }, { .l1_between = true }, { .lost = true }, { .beyond = true }, { .l1_last = true, .lost = true, .beyond = true } };

static bool shows_base(struct co *co, struct qed_image *q) { return holds(co, q, 0, SIZE, BASE); }

static bool shows_data(struct co *co, struct qed_image *q)
{
    bool ok = true;
    for (unsigned i = 0; ok && i < DATA; i++) {
        uint64_t host;
        if (kind_at(co, q, i * C + (i % 3) * SPAN, &host) == FMT_DATA)
            ok = holds(co, q, i * C + (i % 3) * SPAN, C, (uint8_t)(i + 10));
    }
    return ok;
}

static void empties(struct co *co, void *arg)
{
    for (unsigned k = 0; k < sizeof lays / sizeof lays[0]; k++)
        for (unsigned warm = 0; warm < 2; warm++) {
            lay_out(co, &lays[k]);
            struct qed_image *q = reopen(co, false);
            CHECK_EQ(warm ? g_put(co, q, 5 * C, C / 2, 99) : 0, 0);       /* tables are in memory, one is dirty */
            CHECK_EQ(q->im.ops->make_empty(co, &q->im, NULL), 0);
            CHECK(disk.len == (1 + T) * C && !marked(disk.bytes));
            CHECK(disk.durable_len == disk.len && peek(40) == C);
            CHECK(shows_base(co, q));
            for (unsigned i = 0; i < DATA; i++)
                CHECK_EQ(g_put(co, q, i * C + (i % 2) * SPAN, C, (uint8_t)(i + 60)), 0);
            CHECK_EQ(shut(co, q), 0);
            CHECK(sound(co));
            q = reopen(co, false);
            for (unsigned i = 0; i < DATA; i++)
                CHECK(holds(co, q, i * C + (i % 2) * SPAN, C, (uint8_t)(i + 60)));
            CHECK_EQ(q->im.ops->make_empty(co, &q->im, NULL), 0);
            CHECK_EQ(q->im.ops->make_empty(co, &q->im, NULL), 0);
            CHECK(disk.len == (1 + T) * C && shows_base(co, q));
            CHECK_EQ(shut(co, q), 0);
            CHECK(sound(co));
        }
}

/* M1: what is there still is what it was. */
static void emptied_in_part(struct co *co, void *arg)
{
    for (unsigned k = 0; k < 4 * sizeof lays / sizeof lays[0]; k++) {
        bool done = false, land = k & 1, one = k & 2;
        for (unsigned i = 0; !done; i += t_share()) {
            struct fmt_check_result res = { 0 };
            const struct lay *l = &lays[k / 4];
            lay_out(co, l);
            uint64_t lost = checked(co).leaks;
            struct qed_image *q = reopen(co, false);
            CHECK_EQ(g_put(co, q, 1000 * C, C, BASE), 0);
            left = i;
            disk.hook = one ? fail_one : cut_off;
            disk.land = land;
            int r = q->im.ops->make_empty(co, &q->im, NULL);
            done = left < UINT32_MAX / 2;
            disk.hook = NULL;
            disk.land = false;
            CHECK(!done || r == 0);
            CHECK(one || r == 0 || shows_data(co, q));
            if (i % 2)
                crash(co, q);
            else
                (void)shut(co, q);
            bool mark = marked(disk.bytes);
            res = checked(co);
            CHECK(!res.corruptions && !res.check_errors && (mark || !res.leaks || res.leaks == lost));
            q = reopen(co, false);
            CHECK(shows_data(co, q));
            CHECK_EQ(q->im.ops->make_empty(co, &q->im, NULL), 0);
            CHECK(shows_base(co, q) && disk.len == (1 + T) * C);
            CHECK_EQ(shut(co, q), 0);
            CHECK(sound(co));
        }
    }
}

/* Neither begins while the other goes on, nor before an unclean image was looked through. */
static struct qed_image *other;
static int meanwhile(struct co *co, void *arg)
{
    CHECK_EQ(other->im.ops->make_empty(co, &other->im, NULL), -EBUSY);
    left++;
    return 0;
}
static int scrubs(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    struct fmt_check_result res;
    if (left++ == 1)
        CHECK_EQ(scrub(co, other, FMT_FIX_LEAKS, &res), -EBUSY);
    return 0;
}

static void excludes(struct co *co, void *arg)
{
    struct fmt_check_result res = { 0 };
    lay_out(co, &lays[1]);
    other = reopen(co, false);
    left = 0;
    CHECK_EQ(other->im.ops->scrub(co, &other->im, &(struct fmt_check_opts){ .fix = FMT_FIX_LEAKS, .step = meanwhile }, &res, NULL), 0);
    CHECK(left > 0);
    left = 0;
    disk.hook = scrubs;
    CHECK_EQ(other->im.ops->make_empty(co, &other->im, NULL), 0);
    disk.hook = NULL;
    CHECK(left > 1);
    CHECK_EQ(shut(co, other), 0);
    lay_out(co, &lays[3]);
    disk.bytes[16] |= QED_F_NEED_CHECK;
    all_durable();
    other = reopen_as(co, false, true);
    CHECK_EQ(other->im.ops->make_empty(co, &other->im, NULL), -EBUSY);
    CHECK_EQ(rebase(co, other, "elsewhere", NULL, false), 0);
    CHECK_EQ(scrub(co, other, FMT_FIX_LEAKS, &res), 0);
    CHECK_EQ(other->im.ops->make_empty(co, &other->im, NULL), 0);
    CHECK_EQ(shut(co, other), 0);
    CHECK(sound(co) && says(co, "elsewhere", NULL));
}

#define RUN(name) static void test_##name(void **state) { t_run(0, name, NULL); }
RUN(names)
RUN(places)
RUN(refused)
RUN(name_is_whole)
RUN(empties)
RUN(emptied_in_part)
RUN(excludes)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names), cmocka_unit_test(test_places), cmocka_unit_test(test_refused), cmocka_unit_test(test_name_is_whole),
        cmocka_unit_test(test_empties), cmocka_unit_test(test_emptied_in_part), cmocka_unit_test(test_excludes),
    };
    ASSERT(disk_setup(NULL) == 0);
    int failed = T_MAIN("qed-rebase", tests);
    disk_teardown(NULL);
    return failed;
}
