/* SPDX-License-Identifier: MIT
 *
 * qed_fill_test.c: the holes of a QED file are filled while the disk is in use.
 *
 * Purpose      Data, tables and the L1 table come down, whatever lies where; requests beside it; crashes and failures at each step.
 * Owns         The disk of q2_disk_test.c.
 * Invariants   None.
 * Order        None.
 * Concurrency  One loop.
 * Failure      A failed check fails the test.
 * Tests        This is one. FEATURES 2.006, 2.011, 2.020, G.020
 */
#include "fmt/qed/qed_disk_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CLUSTERS 60u

static uint8_t fill_of(uint64_t i) { return (uint8_t)(i + 1); }

/* Changes a word of the file with nothing open, durably. */
static void poke(uint64_t off, uint64_t v)
{
    le64_put((le64 *)(disk.bytes + off), v);
    le64_put((le64 *)(disk.durable + off), v);
}
static uint64_t peek(uint64_t off) { return le64_get((const le64 *)(disk.bytes + off)); }
static uint64_t l1_at(void) { return peek(40); }
static uint64_t entry_at(uint64_t guest) { return peek(l1_at() + guest / SPAN * 8) + guest % SPAN / C * 8; }

static void all_durable(void)
{
    memcpy(disk.durable, disk.bytes, disk.len);
    disk.durable_len = disk.len;
}

/* Guest clusters 0 to CLUSTERS and as many at each SPAN hold fill_of; those for which lost() is true lose their entry. */
static bool none(uint64_t i) { return false; }
static bool some(uint64_t i) { return i % 3 == 1; }
static bool singles(uint64_t i) { return i % 4 == 2; }
static bool first_ones(uint64_t i) { return i < 20; }

struct lay { unsigned tables; bool (*lost)(uint64_t i); bool l1_last; unsigned edge; };      /* edge: clusters at the end that nothing names */

static uint64_t guest_of(uint64_t i) { return i / CLUSTERS * SPAN + i % CLUSTERS * C; }

static void lay_out(struct co *co, const struct lay *l)
{
    make(co, NULL);
    struct qed_image *q = reopen(co, false);
    for (uint64_t i = 0; i < l->tables * CLUSTERS; i++)
        CHECK_EQ(g_put(co, q, guest_of(i), C, fill_of(i)), 0);
    CHECK_EQ(shut(co, q), 0);
    for (uint64_t i = 0; i < l->tables * CLUSTERS; i++)
        if (l->lost(i))
            poke(entry_at(guest_of(i)), 0);
    if (l->l1_last) {
        memcpy(disk.bytes + disk.len, disk.bytes + l1_at(), T * C);
        poke(40, disk.len);
        disk.len += T * C;
    }
    memset(disk.bytes + disk.len, 0xee, l->edge * C);
    disk.len += l->edge * C;
    all_durable();
}

static bool as_laid(struct co *co, struct qed_image *q, const struct lay *l)
{
    bool ok = true;
    for (uint64_t i = 0; ok && i < l->tables * CLUSTERS; i++)
        ok = holds(co, q, guest_of(i), C, l->lost(i) ? 0 : fill_of(i));
    return ok;
}

/* The smallest file that holds it. */
static uint64_t least(const struct lay *l)
{
    uint64_t n = 1 + T + l->tables * T;
    for (uint64_t i = 0; i < l->tables * CLUSTERS; i++)
        n += !l->lost(i);
    return n * C;
}

static const struct lay lays[] = { { 1, none, false, 7 }, { 1, some, false, 0 }, { 1, some, true, 3 }, { 3, some, false, 0 }, { 3, singles, true, 1 },
    { 2, first_ones, false, 0 }, { 3, first_ones, true, 0 } };

static void fills(struct co *co, void *arg)
{
    for (unsigned i = 0; i < sizeof lays / sizeof lays[0]; i++)
        for (unsigned unclean = 0; unclean < 2; unclean++) {
            const struct lay *l = &lays[i];
            struct fmt_check_result res = { 0 };
            lay_out(co, l);
            disk.bytes[16] |= unclean ? QED_F_NEED_CHECK : 0;
            uint64_t lost = (disk.len - least(l)) / C;
            struct qed_image *q = reopen_as(co, false, true);
            CHECK_EQ(scrub(co, q, FMT_FIX_LEAKS, &res), 0);
            CHECK(!res.corruptions && !res.leaks && res.leaks_fixed == lost);
            CHECK(!q->filling && !q->hold_end && !q->a.spare.total);
            CHECK(disk.len == least(l) && !marked(disk.bytes));
            CHECK(as_laid(co, q, l));
            for (unsigned k = 0; k < 3; k++)      /* where tables lay there is data now, and it is written in place */
                CHECK_EQ(g_put(co, q, 100 * C, 80 * C, (uint8_t)(75 + k)), 0);
            CHECK_EQ(shut(co, q), 0);
            CHECK(sound(co));
            q = reopen(co, false);
            CHECK(as_laid(co, q, l) && holds(co, q, 100 * C, 80 * C, 77));
            CHECK_EQ(shut(co, q), 0);
        }
}

/* Tables of two clusters, and no two holes beside one another: data moves first, then tables fit; and where only tables lie behind the
 * holes, they slide. */
static void slides(struct co *co, void *arg)
{
    static const struct lay l = { 1, none, false, 0 };
    struct fmt_check_result res = { 0 };
    for (unsigned gap = 1; gap < 4; gap++) {
        lay_out(co, &l);
        struct qed_image *q = reopen(co, false);
        CHECK_EQ(g_put(co, q, SPAN, C, 201), 0);
        CHECK_EQ(g_put(co, q, 2 * SPAN, C, 202), 0);
        CHECK_EQ(shut(co, q), 0);
        uint64_t end = disk.len / C;              /* table, data, table, data; both data clusters to the holes' side: tables stay behind */
        for (unsigned k = 1; k < 3; k++) {        /* each table gets `gap` lost clusters in front of it */
            uint64_t to = end + gap;
            memcpy(disk.bytes + to * C, disk.bytes + peek(l1_at() + 8 * k), T * C);
            poke(l1_at() + 8 * k, to * C);
            end = to + T;
        }
        disk.len = end * C;
        all_durable();
        q = reopen(co, false);
        CHECK_EQ(scrub(co, q, FMT_FIX_LEAKS, &res), 0);
        CHECK(!res.corruptions && !res.leaks && res.leaks_fixed);
        CHECK(as_laid(co, q, &l) && holds(co, q, SPAN, C, 201) && holds(co, q, 2 * SPAN, C, 202));
        CHECK_EQ(shut(co, q), 0);
        CHECK(sound(co) && disk.len == (1 + T + 3 * T + CLUSTERS + 2) * C);
    }
}

/* ---- beside requests ---- */

static struct { struct qed_image *q; struct co_group group; bool stop; uint8_t model[3 * CLUSTERS + 200]; unsigned writes; uint64_t seed; } guest;

static uint64_t guest_cluster(unsigned i) { return i < 3 * CLUSTERS ? guest_of(i) : 3 * SPAN + (i - 3 * CLUSTERS) * C; }

static void guest_co(struct co *co, void *arg)
{
    uint8_t value = 1;
    while (!guest.stop) {
        guest.seed = guest.seed * 6364136223846793005u + 1442695040888963407u;
        unsigned i = (unsigned)(guest.seed >> 33) % (3 * CLUSTERS + 200);
        value = value == 250 ? 1 : value + 1;
        unsigned kind = (unsigned)(guest.seed >> 20) % 8;
        if (kind == 0) {
            CHECK_EQ(guest.q->im.ops->discard(co, &guest.q->im, guest_cluster(i), C), 0);
            guest.model[i] = 0;
        } else if (kind == 1) {
            CHECK(holds(co, guest.q, guest_cluster(i), C, guest.model[i]));
        } else if (kind == 2) {
            CHECK_EQ(flush(co, guest.q), 0);
        } else {
            CHECK_EQ(g_put(co, guest.q, guest_cluster(i), C, value), 0);
            guest.model[i] = value;
        }
        guest.writes++;
        co_yield(co);
    }
    co_group_leave(&guest.group);
}

static int turns(struct co *co, void *arg)
{
    for (unsigned i = 0; i < 5; i++)
        co_yield(co);
    return 0;
}

static void beside(struct co *co, void *arg)
{
    for (unsigned round = 0; round < 12; round++) {
        const struct lay *l = &lays[3 + round % 2];
        struct fmt_check_result res = { 0 };
        lay_out(co, l);
        disk.bytes[16] |= round & 1 ? QED_F_NEED_CHECK : 0;
        memset(&guest, 0, sizeof guest);
        guest.q = reopen_as(co, false, true);
        guest.seed = round;
        for (unsigned i = 0; i < 3 * CLUSTERS; i++)
            guest.model[i] = l->lost(i) ? 0 : fill_of(i);
        co_group_enter(&guest.group);
        CHECK_EQ(rt_spawn(co_loop(co), guest_co, NULL), 0);
        CHECK_EQ(guest.q->im.ops->scrub(co, &guest.q->im, &(struct fmt_check_opts){ .fix = FMT_FIX_LEAKS, .step = turns }, &res, NULL), 0);
        CHECK(!res.corruptions && !res.check_errors);
        guest.stop = true;
        co_group_wait(co, &guest.group);
        CHECK(guest.writes > 5);
        for (unsigned i = 0; i < 3 * CLUSTERS + 200; i++)
            CHECK(holds(co, guest.q, guest_cluster(i), C, guest.model[i]));
        CHECK_EQ(scrub(co, guest.q, FMT_FIX_LEAKS, &res), 0);
        CHECK_EQ(shut(co, guest.q), 0);
        CHECK(sound(co));
        guest.q = reopen(co, true);
        for (unsigned i = 0; i < 3 * CLUSTERS + 200; i++)
            CHECK(holds(co, guest.q, guest_cluster(i), C, guest.model[i]));
        CHECK_EQ(shut(co, guest.q), 0);
    }
}

/* F3: who writes in place has seen the old place, and is still inside when the cluster is to move. */
static struct { struct qed_image *q; struct co_group group; bool inside; uint64_t guest; } slow;

static void slow_co(struct co *co, void *arg)
{
    struct fmt_extent e;
    epoch_token t = epoch_enter(slow.q->im.epoch, co_loop(co));
    CHECK_EQ(slow.q->im.ops->map(co, &slow.q->im, slow.guest, C, &e), 0);
    CHECK(e.kind == FMT_DATA && e.writable);
    slow.inside = true;
    for (unsigned i = 0; i < 3000; i++)
        co_yield(co);
    uint8_t buf[C];
    memset(buf, 99, sizeof buf);
    CHECK_EQ(stor_write_buf(co, slow.q->im.store, buf, sizeof buf, e.host, 0), 0);
    epoch_leave(slow.q->im.epoch, co_loop(co), t);
    co_group_leave(&slow.group);
}

static void grace(struct co *co, void *arg)
{
    static const struct lay l = { 1, first_ones, false, 0 };
    struct fmt_check_result res = { 0 };
    lay_out(co, &l);
    disk.bytes[16] |= QED_F_NEED_CHECK;           /* a scrub of any other image waits for a grace period of its own */
    memset(&slow, 0, sizeof slow);
    slow.q = reopen_as(co, false, true);
    slow.guest = guest_of(CLUSTERS - 1);          /* the last cluster of the file */
    CHECK(holds(co, slow.q, slow.guest, C, fill_of(CLUSTERS - 1)));
    co_group_enter(&slow.group);
    CHECK_EQ(rt_spawn(co_loop(co), slow_co, NULL), 0);
    while (!slow.inside)
        co_yield(co);
    CHECK_EQ(scrub(co, slow.q, FMT_FIX_LEAKS, &res), 0);
    co_group_wait(co, &slow.group);
    CHECK(res.leaks_fixed == 20 && holds(co, slow.q, slow.guest, C, 99));
    CHECK_EQ(shut(co, slow.q), 0);
    CHECK(sound(co));
}

/* ---- crashes and failures ---- */

static unsigned left, one_more;
static int cut_off(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf) { return left-- == 0 || left > UINT32_MAX / 2 ? -EIO : 0; }
static int fail_one(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    if (what == 'R' || what == 'T' || left-- != 0)
        return 0;
    one_more = 1;
    return -EIO;
}

static void crashes(struct co *co, void *arg)
{
    static const struct lay few[] = { { 2, singles, true, 1 }, { 1, first_ones, false, 0 } };
    for (unsigned k = 0; k < 4; k++) {
        const struct lay *l = &few[k % 2];
        bool done = false;
        for (unsigned i = 0; !done; i += 1 + i / 16) {
            struct fmt_check_result res = { 0 };
            lay_out(co, l);
            struct qed_image *q = reopen_as(co, false, true);
            left = i;
            disk.hook = cut_off;
            done = scrub(co, q, FMT_FIX_LEAKS, &res) == 0;
            disk.hook = NULL;
            if (k / 2)
                crash(co, q);
            else
                CHECK(shut(co, q) <= 0);
            res = checked(co);
            CHECK(!res.corruptions && !res.check_errors);
            q = reopen_as(co, false, true);
            CHECK(as_laid(co, q, l));
            CHECK_EQ(scrub(co, q, FMT_FIX_LEAKS, &res), 0);
            CHECK(!res.leaks && as_laid(co, q, l));
            CHECK_EQ(shut(co, q), 0);
            CHECK(sound(co) && disk.len == least(l));
        }
    }
}

/* One request fails; then the disk goes on being used. */
static void failures(struct co *co, void *arg)
{
    static const struct lay l = { 2, singles, true, 1 };
    one_more = 1;
    for (unsigned i = 0; one_more; i++) {
        struct fmt_check_result res = { 0 };
        lay_out(co, &l);
        struct qed_image *q = reopen_as(co, false, true);
        left = i;
        one_more = 0;
        disk.hook = fail_one;
        (void)scrub(co, q, FMT_FIX_LEAKS, &res);
        disk.hook = NULL;
        CHECK(as_laid(co, q, &l));
        int r = 0;
        for (unsigned k = 0; k < 10; k++)
            r |= g_put(co, q, 3 * SPAN + k * C, C, 55);
        int f = flush(co, q);
        bool kept = r == 0 && f == 0 && holds(co, q, 3 * SPAN, C, 55);
        (void)shut(co, q);
        res = checked(co);
        CHECK(!res.corruptions && !res.check_errors);
        q = reopen(co, true);
        CHECK(as_laid(co, q, &l));
        CHECK(!kept || holds(co, q, 3 * SPAN, 10 * C, 55));
        CHECK_EQ(shut(co, q), 0);
    }
}

/* The entries of what was moved cannot be written once: where it was is lost, which the mark says; and before the next scrub uses it
 * again, whoever may have seen the old entries has left. */
static uint64_t table;
static int fail_table(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    return what == 'W' && off >= table && off < table + T * C && left-- == 0 ? -EIO : 0;
}

static void late_co(struct co *co, void *arg)
{
    struct qed_image *q = slow.q;
    epoch_token t = epoch_enter(q->im.epoch, co_loop(co));
    slow.inside = true;
    for (unsigned i = 0; i < 3000; i++)
        co_yield(co);
    CHECK(q->scrubbing && !q->a.spare.total);
    epoch_leave(q->im.epoch, co_loop(co), t);
    co_group_leave(&slow.group);
}

static void lost(struct co *co, void *arg)
{
    static const struct lay l = { 1, first_ones, false, 0 };
    for (unsigned again = 0; again < 2; again++) {
        struct fmt_check_result res = { 0 };
        lay_out(co, &l);
        memset(&slow, 0, sizeof slow);
        struct qed_image *q = slow.q = reopen_as(co, false, true);
        table = peek(l1_at());
        left = 0;
        disk.hook = fail_table;
        CHECK(scrub(co, q, FMT_FIX_LEAKS, &res) < 0 && left == UINT32_MAX);
        disk.hook = NULL;
        CHECK(as_laid(co, q, &l) && !q->a.spare.total);
        if (again) {
            co_group_enter(&slow.group);
            CHECK_EQ(rt_spawn(co_loop(co), late_co, NULL), 0);
            while (!slow.inside)
                co_yield(co);
            CHECK_EQ(scrub(co, q, FMT_FIX_LEAKS, &res), 0);
            co_group_wait(co, &slow.group);
        }
        CHECK_EQ(shut(co, q), 0);
        CHECK(marked(disk.bytes) == !again);
        q = reopen_as(co, false, true);
        if (!again)
            CHECK_EQ(scrub(co, q, FMT_FIX_LEAKS, &res), 0);
        CHECK(as_laid(co, q, &l));
        CHECK_EQ(shut(co, q), 0);
        CHECK(sound(co) && disk.len == least(&l));
    }
}

/* A job that is cancelled between two steps leaves what is done. */
static int enough(struct co *co, void *arg) { return left-- == 0 ? -ECANCELED : 0; }

static void cancelled(struct co *co, void *arg)
{
    static const struct lay l = { 3, singles, true, 1 };
    int r = -ECANCELED;
    unsigned seen = 0;
    for (unsigned i = 0; r == -ECANCELED; i++) {
        struct fmt_check_result res = { 0 };
        lay_out(co, &l);
        uint64_t whole = disk.len;
        disk.bytes[16] |= i & 1 ? QED_F_NEED_CHECK : 0;
        struct qed_image *q = reopen_as(co, false, true);
        left = i;
        r = q->im.ops->scrub(co, &q->im, &(struct fmt_check_opts){ .fix = FMT_FIX_LEAKS, .step = enough }, &res, NULL);
        CHECK(r == 0 || r == -ECANCELED);
        CHECK(as_laid(co, q, &l) && !q->filling && !q->hold_end);
        CHECK_EQ(shut(co, q), 0);
        bool mark = marked(disk.bytes);
        res = checked(co);
        CHECK(!res.corruptions && !res.check_errors);
        CHECK(mark || !res.leaks || (!(i & 1) && disk.len == whole));        /* K2. A check of a sound image may not have begun to fill */
        seen |= mark ? 2 : res.leaks ? 0 : 1;
        q = reopen_as(co, false, true);           /* and the next one goes on */
        CHECK(atomic_load(&q->im.unclean) == mark);
        CHECK_EQ(scrub(co, q, FMT_FIX_LEAKS, &res), 0);
        CHECK(!res.leaks && as_laid(co, q, &l));
        CHECK_EQ(shut(co, q), 0);
        CHECK(sound(co) && disk.len == least(&l));
    }
    CHECK_EQ(seen, 3);
}

/* Holes that are left are under the mark as long as nobody else has used them up. */
static void used_up(struct co *co, void *arg)
{
    static const struct lay l = { 3, singles, true, 1 };
    struct fmt_check_result res = { 0 };
    lay_out(co, &l);
    disk.bytes[16] |= QED_F_NEED_CHECK;
    struct qed_image *q = reopen_as(co, false, true);
    left = 0;
    do {                                          /* not before the image has been looked through */
        unsigned steps = left;
        int r = q->im.ops->scrub(co, &q->im, &(struct fmt_check_opts){ .fix = FMT_FIX_LEAKS, .step = enough }, &res, NULL);
        CHECK_EQ(r, -ECANCELED);
        left = steps + 1;
    } while (q->unclean);
    uint64_t holes = qed_holes(q);
    CHECK(holes > 3 && qed_alloc_owes(q) && marked(disk.bytes));
    CHECK_EQ(qed_mark_leave(co, q), 0);
    CHECK(marked(disk.bytes) && q->mark.set);
    for (uint64_t i = 0; i < holes; i++)
        CHECK_EQ(g_put(co, q, guest_of(CLUSTERS) + (200 + i) * C, C, 44), 0);
    CHECK(!qed_holes(q) && !qed_alloc_owes(q));
    CHECK_EQ(qed_mark_leave(co, q), 0);
    CHECK(!marked(disk.bytes) && as_laid(co, q, &l));
    struct qed_run run[2];                        /* what a write that failed gives back, with another one behind it */
    CHECK_EQ(qed_mark_enter(co, q), 0);
    CHECK_EQ(qed_alloc_take(co, q, 2, true, &run[0]), 0);
    CHECK_EQ(g_put(co, q, guest_of(CLUSTERS) + 300 * C, C, 45), 0);
    qed_alloc_return(q, &run[0]);
    qed_mark_exit(q);
    CHECK_EQ(shut(co, q), 0);
    CHECK(marked(disk.bytes) && checked(co).leaks == 2);
    q = reopen(co, false);
    CHECK(as_laid(co, q, &l) && !marked(disk.bytes));
    CHECK_EQ(shut(co, q), 0);
    CHECK(sound(co));
}

/* F7: bytes [bad, bad + C) of the file cannot be read. It is told once, all else goes on. */
static uint64_t bad[2];
static unsigned said;
static int cannot_read(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    for (unsigned i = 0; i < 2; i++)
        if (what == 'R' && bad[i] && off < bad[i] + C && bad[i] < off + len)
            return -EIO;
    return 0;
}

static void hear(void *arg, bool fixed, const char *id, const char *text)
{
    if (strcmp(id, "QED_UNREADABLE"))
        return;
    said++;
    CHECK(!fixed && (strtoull(strstr(text, "0x"), NULL, 0) == bad[0] || strtoull(strstr(text, "0x"), NULL, 0) == bad[1]));
}

/* Where guest cluster i lies, as nobody has opened it. */
static uint64_t place_of(uint64_t i) { return peek(entry_at(guest_of(i))); }

static void unreadable(struct co *co, void *arg)
{
    static const uint64_t at[][2] = { { 59, 60 * 4 }, { 59, 40 }, { 0, 60 * 4 }, { 0, 1 } };      /* near the end and the middle; in front of all holes; 240: none */
    for (unsigned k = 0; k < 4 * 4; k++) {
        const struct lay *l = &(const struct lay[]){ { 1, some, false, 0 }, { 1, some, true, 3 } }[k & 1];
        bool offline = k & 2;
        struct fmt_check_result res = { 0 };
        struct fmt_check_opts o = { .fix = FMT_FIX_LEAKS | (offline ? FMT_FIX_ERRORS : 0), .finding = hear };
        lay_out(co, l);
        disk.bytes[16] |= QED_F_NEED_CHECK;
        all_durable();
        uint64_t last = 0, lost = (disk.len - least(l)) / C;
        for (unsigned i = 0; i < 2; i++) {
            bad[i] = at[k / 4][i] < CLUSTERS && !l->lost(at[k / 4][i]) ? place_of(at[k / 4][i]) : 0;
            last = max_u64(last, bad[i]);
        }
        said = 0;
        disk.hook = cannot_read;
        struct qed_image *q = reopen_as(co, false, true);
        if (offline) {
            q->unclean = false;                   /* as if it had been opened for a check */
            atomic_store(&q->im.unclean, false);
            CHECK_EQ(q->im.ops->check(co, &q->im, &o, &res, NULL), 0);
            q->mark.set = false;
        } else {
            CHECK_EQ(q->im.ops->scrub(co, &q->im, &o, &res, NULL), 0);
        }
        disk.hook = NULL;
        bool behind = last >= least(l);           /* it keeps the file from becoming as short as it could */
        CHECK(!res.corruptions && !res.check_errors && res.leaks_fixed + res.leaks == lost && (res.leaks > 0) == behind);
        CHECK(said == behind + (behind && bad[0] && bad[1] && min_u64(bad[0], bad[1]) >= least(l)));
        CHECK(!marked(disk.bytes) && as_laid(co, q, l));
        CHECK_EQ(shut(co, q), 0);
        CHECK(!marked(disk.bytes) && disk.len == (behind ? last + C : least(l)));
        res = checked(co);
        CHECK(!res.corruptions && !res.check_errors && res.leaks == (disk.len - least(l)) / C);
        q = reopen(co, false);                    /* and when it can be read again */
        CHECK(as_laid(co, q, l));
        CHECK_EQ(scrub(co, q, FMT_FIX_LEAKS, &res), 0);
        CHECK(!res.leaks && as_laid(co, q, l));
        CHECK_EQ(shut(co, q), 0);
        CHECK(sound(co) && disk.len == least(l));
    }
}

#define RUN(name) static void test_##name(void **state) { t_run(0, name, NULL); }
RUN(fills)
RUN(slides)
RUN(beside)
RUN(grace)
RUN(crashes)
RUN(failures)
RUN(lost)
RUN(cancelled)
RUN(used_up)
RUN(unreadable)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fills), cmocka_unit_test(test_slides), cmocka_unit_test(test_beside), cmocka_unit_test(test_grace),
        cmocka_unit_test(test_crashes), cmocka_unit_test(test_failures), cmocka_unit_test(test_lost), cmocka_unit_test(test_cancelled),
        cmocka_unit_test(test_used_up), cmocka_unit_test(test_unreadable),
    };
    ASSERT(disk_setup(NULL) == 0);
    int failed = T_MAIN("qed-fill", tests);
    disk_teardown(NULL);
    return failed;
}
