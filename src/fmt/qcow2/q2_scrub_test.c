/* SPDX-License-Identifier: MIT
 *
 * q2_scrub_test.c: an unclean image serves at once and becomes clean behind (FEATURES 1.023, 1.114); a scrub of an image in
 * use frees leaks and reports damage (G.001); the set of clusters it leaves out.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/qcow2/q2_bms.h"
#include "fmt/qcow2/q2_disk_test.h"
#include "fmt/qcow2/q2_unclean.h"

#define KIB 1024ull
#define MIB (1024 * KIB)
#define CS 4096ull

static const struct make lazy = { 3, 16, CS, 16 * MIB, true };
static const struct opening at_once = { .unclean = true, .frontier_bytes = 8 * CS, .bitmap_region = MIB };

static bool marked(void) { return disk.bytes[79] & 1; }

/* ---- a scrub ---- */

static struct { unsigned findings, fixed, steps; char first[200]; int (*step)(struct co *co); } heard;

static void on_finding(void *arg, bool fixed, const char *id, const char *text)
{
    heard.findings++;
    heard.fixed += fixed;
    if (!fixed && !heard.first[0])
        snprintf(heard.first, sizeof heard.first, "%s: %s", id, text);
}

static uint64_t last_done, last_total;
static void on_progress(void *arg, uint64_t done, uint64_t total)
{
    CHECK(done >= last_done && total >= last_total && done <= total);        /* FEATURES 9.008 */
    last_done = done;
    last_total = total;
}

static int on_step(struct co *co, void *arg)
{
    heard.steps++;
    return heard.step ? heard.step(co) : 0;
}

static struct fmt_check_result scrub(struct co *co, struct q2_image *q, unsigned fix, int want)
{
    struct fmt_check_opts o = { .fix = fix, .finding = on_finding, .progress = on_progress, .step = on_step };
    struct fmt_check_result res = { 0 };
    struct byre_err err = { 0 };
    int (*step)(struct co *co) = heard.step;
    memset(&heard, 0, sizeof heard);
    heard.step = step;
    last_done = last_total = 0;
    if (!CHECK_EQ(q2_scrub(co, &q->im, &o, &res, &err), want))
        fprintf(stderr, "%s\n", err.text);
    if (want == 0)
        CHECK_EQ(last_done, last_total);
    return res;
}

/* ---- an image with everything in it, killed ---- */

static uint64_t device_bytes;            /* 0: a file */

/* The image lies on a device, with old bytes behind it. */
static void to_device(void)
{
    if (!device_bytes)
        return;
    memset(disk.bytes + disk.len, 0xee, device_bytes - disk.len);
    memset(disk.durable + disk.len, 0xee, device_bytes - disk.len);
    disk.len = disk.durable_len = device_bytes;
    disk.fixed_length = true;
}

/* Guest cluster i holds i + 1 where i % 3 is 0, for i < 120; free clusters lie between. */
static void make_killed(struct co *co, const struct make *m, bool power)
{
    img_make(co, m);
    to_device();
    struct q2_image *q = img_open(co, &(struct opening){ 0 });
    for (uint64_t i = 0; i < 60; i++)
        CHECK_EQ(g_write(co, q, 8 * MIB + i * CS, CS, 0x77), 0);
    CHECK_EQ(img_close(co, q), 0);
    q = img_open(co, &(struct opening){ 0 });
    CHECK_EQ(q2_discard(co, &q->im, 8 * MIB, 50 * CS), 0);
    CHECK_EQ(img_close(co, q), 0);
    q = img_open(co, &(struct opening){ .frontier_bytes = 8 * CS });
    for (uint64_t i = 0; i < 120; i += 3)
        CHECK_EQ(g_write(co, q, i * CS, CS, (uint8_t)(i + 1)), 0);
    CHECK_EQ(g_flush(co, q), 0);
    (power ? img_crash : img_kill)(co, q);
    CHECK(marked());
}

static bool old_content(struct co *co, struct q2_image *q, uint64_t from)
{
    bool ok = g_holds(co, q, 8 * MIB + 50 * CS, 10 * CS, 0x77) && g_holds(co, q, 8 * MIB, 50 * CS, 0);
    for (uint64_t i = from; ok && i < 120; i++)
        ok = g_holds(co, q, i * CS, CS, i % 3 ? 0 : (uint8_t)(i + 1));
    return ok;
}

static void no_faults(struct co *co)
{
    uint64_t leaks = 0;
    CHECK_EQ(img_faults(co, &leaks), 0);
    CHECK_EQ(leaks, 0);
}

/* ---- unclean ---- */

static unsigned requests;
static int count_requests(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    requests++;
    return 0;
}

static void serve_body(struct co *co, void *arg)
{
    make_killed(co, &lazy, arg != NULL);
    requests = 0;
    disk.hook = count_requests;
    struct q2_image *q = img_open(co, &at_once);
    CHECK(requests < 20);                            /* nothing is looked through, whatever the size */
    disk.hook = NULL;
    CHECK(q->unclean && atomic_load(&q->im.unclean) && marked());
    uint64_t end = disk.len, host = g_host(co, q, 3 * CS);
    CHECK(old_content(co, q, 0));
    CHECK_EQ(g_write(co, q, 0, CS, 0xa0), 0);                          /* an old cluster whole, */
    CHECK_EQ(g_write(co, q, 3 * CS + 512, 512, 0xa1), 0);              /* one in part, */
    CHECK_EQ(q2_discard(co, &q->im, 6 * CS, CS), 0);                   /* one dropped, */
    CHECK_EQ(q2_zero(co, &q->im, 9 * CS, CS, 0), 0);                   /* one that shall read zeros */
    CHECK_EQ(g_write(co, q, 12 * MIB, 3 * CS, 0xa2), 0);               /* and new ones */
    CHECK(g_host(co, q, 0) >= end && g_host(co, q, 3 * CS) >= end && g_host(co, q, 12 * MIB) >= end);
    CHECK(host < end && disk.bytes[host] == 4 && disk.bytes[host + 512] == 4);   /* U2: the old cluster is as it was */
    CHECK_EQ(g_write(co, q, 0, 512, 0xa3), 0);                         /* ours: in place */
    CHECK_EQ(q2_discard(co, &q->im, 12 * MIB, CS), 0);
    CHECK_EQ(g_flush(co, q), 0);
    struct byre_err err = { 0 };
    CHECK_EQ(q2_resize(co, &q->im, 32 * MIB, FMT_PREALLOC_OFF, &err), -EBUSY);
    struct fmt_check_result res = scrub(co, q, FMT_FIX_LEAKS, 0);
    CHECK(!res.corruptions && !res.leaks && !res.check_errors);
    CHECK(!q->unclean && !atomic_load(&q->im.unclean) && !marked());
    CHECK(old_content(co, q, 10) && g_holds(co, q, 512, CS - 512, 0xa0) && g_holds(co, q, 0, 512, 0xa3) && g_holds(co, q, 6 * CS, 4 * CS, 0));
    CHECK(g_holds(co, q, 3 * CS + 512, 512, 0xa1) && g_holds(co, q, 3 * CS, 512, 4) && g_holds(co, q, 12 * MIB + CS, 2 * CS, 0xa2));
    uint64_t before = g_host(co, q, 12 * CS);
    CHECK_EQ(g_write(co, q, 12 * CS, 512, 0xa4), 0);                   /* trust is back: in place */
    CHECK_EQ(g_host(co, q, 12 * CS), before);
    CHECK_EQ(g_write(co, q, 14 * MIB, 30 * CS, 0xa5), 0);              /* free old clusters are found again */
    CHECK(g_host(co, q, 14 * MIB) < end);
    CHECK(states_ok(co, q));
    CHECK_EQ(q2_resize(co, &q->im, 32 * MIB, FMT_PREALLOC_OFF, &err), 0);
    CHECK_EQ(q2_resize_commit(co, &q->im, true, &err), 0);
    CHECK_EQ(img_close(co, q), 0);
    no_faults(co);
}

static void test_killed(void **state) { t_run(0, serve_body, NULL); }
static void test_power(void **state) { t_run(0, serve_body, (void *)1); }

/* Closed, killed and opened again before a scrub has ended: as unclean as before, nothing lost, and then clean. */
static void again_body(struct co *co, void *arg)
{
    make_killed(co, &lazy, true);
    for (unsigned n = 0; n < 6; n++) {
        struct q2_image *q = img_open(co, &at_once);
        CHECK(q->unclean);
        CHECK_EQ(g_write(co, q, (4 * n) * CS, 2 * CS, (uint8_t)(0xb0 + n)), 0);
        CHECK_EQ(g_flush(co, q), 0);
        if (n % 3 == 0)
            CHECK_EQ(img_close(co, q), 0);
        else
            (n % 3 == 1 ? img_crash : img_kill)(co, q);
        CHECK(marked());
    }
    struct q2_image *q = img_open(co, &at_once);
    for (unsigned n = 0; n < 6; n++)
        CHECK(g_holds(co, q, (4 * n) * CS, 2 * CS, (uint8_t)(0xb0 + n)));
    CHECK(old_content(co, q, 22));
    scrub(co, q, 0, 0);
    CHECK(!q->unclean && !marked());
    CHECK_EQ(img_close(co, q), 0);
    no_faults(co);
    /* without anybody who scrubs it is repaired before open returns */
    make_killed(co, &lazy, false);
    q = img_open(co, &(struct opening){ 0 });
    CHECK(!q->unclean && !marked());
    CHECK_EQ(img_close(co, q), 0);
    no_faults(co);
}

static void test_again(void **state) { t_run(0, again_body, NULL); }

/* ---- beside a guest ---- */

static struct { struct q2_image *q; unsigned writes, stop; uint8_t value[2048]; struct co_group group; } guest;

/* Writes, drops and zeroes without pause, in 8 MiB; knows what each cluster holds. */
static void guest_co(struct co *co, void *arg)
{
    uint64_t x = 88172645463325252ull + (uintptr_t)arg * 977;
    while (!guest.stop) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        uint64_t i = (x >> 20) % 1000 * 2 + (uintptr_t)arg;
        uint8_t v = (uint8_t)(x >> 50);
        int r = 0;
        if (x % 4 == 0)
            r = q2_discard(co, &guest.q->im, i * CS, CS), v = 0;
        else if (x % 4 == 1)
            r = q2_zero(co, &guest.q->im, i * CS, CS, x & 16 ? FMT_ZERO_UNMAP : 0), v = 0;
        else
            r = g_write(co, guest.q, i * CS, CS, v);
        CHECK_EQ(r, 0);
        guest.value[i] = v;
        if (++guest.writes % 16 == 0)
            CHECK_EQ(g_flush(co, guest.q), 0);
        co_yield(co);
    }
    co_group_leave(&guest.group);
}

static void begin_guests(struct q2_image *q)
{
    memset(&guest, 0, sizeof guest);
    guest.q = q;
    for (uint64_t i = 0; i < 120; i += 3)
        guest.value[i] = (uint8_t)(i + 1);
    for (uintptr_t n = 0; n < 2; n++) {
        co_group_enter(&guest.group);
        CHECK_EQ(rt_spawn(q->im.home, guest_co, (void *)n), 0);
    }
}

static void end_guests(struct co *co)
{
    guest.stop = 1;
    co_group_wait(co, &guest.group);
    for (unsigned i = 0; i < 2000; i++)
        if (!CHECK(g_holds(co, guest.q, i * CS, CS, guest.value[i]))) {
            uint8_t buf[512];
            int r = g_read(co, guest.q, i * CS, 512, buf);
            fprintf(stderr, "cluster %u: %#x instead of %#x (%d), host %#lx old end %#lx\n", i, buf[0], guest.value[i], r, (long)g_host(co, guest.q, i * CS), (long)guest.q->file_end_at_open);
            break;
        }
}

static int slow(struct co *co)
{
    for (int i = 0; i < 50; i++)
        co_yield(co);
    return 0;
}

static void beside_body(struct co *co, void *arg)
{
    make_killed(co, &lazy, true);
    struct q2_image *q = img_open(co, &at_once);
    begin_guests(q);
    for (int i = 0; i < 300; i++)
        co_yield(co);
    struct fmt_check_result res = scrub(co, q, FMT_FIX_LEAKS, 0);
    CHECK(!res.corruptions && !res.check_errors);
    if (!CHECK(!q->unclean))
        fprintf(stderr, "%s\n", heard.first);
    for (unsigned n = 0; n < 3; n++) {               /* and the online check of a sound image finds nothing, whatever goes on */
        heard.step = n ? slow : NULL;
        for (int i = 0; i < 100; i++)
            co_yield(co);
        res = scrub(co, q, n == 2 ? 0 : FMT_FIX_LEAKS, 0);
        if (!CHECK(!res.corruptions && !res.leaks && !res.check_errors))
            fprintf(stderr, "%s\n", heard.first);
    }
    heard.step = NULL;
    CHECK(guest.writes > 200);
    end_guests(co);
    CHECK(states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    CHECK(!marked());
    no_faults(co);
}

static void test_beside(void **state) { t_run(0, beside_body, NULL); }

/* Cancelled at any step: nothing is half done, and the next one does it. */
static unsigned cancel_at;
static int cancel(struct co *co) { return heard.steps > cancel_at ? -ECANCELED : 0; }

static void cancel_body(struct co *co, void *arg)
{
    make_killed(co, &lazy, true);
    struct q2_image *q = img_open(co, &at_once);
    for (uint64_t i = 0; i < 120; i += 3)            /* many references, so that there are steps */
        CHECK_EQ(g_write(co, q, i * CS, CS, (uint8_t)(i + 1)), 0);
    heard.step = cancel;
    for (cancel_at = 0; q->unclean && cancel_at < 50; cancel_at++) {
        struct fmt_check_opts o = { .step = on_step };
        struct fmt_check_result res;
        struct byre_err err = { 0 };
        heard.steps = 0;
        int r = q2_scrub(co, &q->im, &o, &res, &err);
        CHECK(r == 0 || r < 0);
        CHECK_EQ(g_write(co, q, 1 * CS, CS, 0xcc), 0);
        if (r == 0)
            break;
    }
    heard.step = NULL;
    CHECK(!q->unclean);
    CHECK_EQ(img_close(co, q), 0);
    no_faults(co);
}

static void test_cancel(void **state) { t_run(0, cancel_body, NULL); }

/* U5: a write of a part of an old cluster is under way while the scrub comes to its end. */
static struct { struct q2_image *q; bool over; } ending;
static void scrub_co(struct co *co, void *arg)
{
    scrub(co, ending.q, 0, 0);
    ending.over = true;
}

static void under_way_body(struct co *co, void *arg)
{
    make_killed(co, &lazy, true);
    struct q2_image *q = img_open(co, &at_once);
    struct fmt_write w;
    struct fmt_extent e;
    CHECK_EQ(q2_write_begin(co, &q->im, 3 * CS, 512, &w), 0);          /* takes a new cluster, to be filled from the old one */
    ending.q = q;
    ending.over = false;
    CHECK_EQ(rt_spawn(q->im.home, scrub_co, NULL), 0);
    for (int i = 0; i < 2000; i++)
        co_yield(co);
    CHECK(q->unclean && !ending.over);
    CHECK_EQ(q2_map(co, &q->im, 3 * CS, 512, &e), 0);
    CHECK(!e.writable);                              /* else a write in place would be lost with the old cluster */
    q2_write_abort(co, &q->im, &w);
    while (!ending.over)
        co_yield(co);
    CHECK(!q->unclean);
    CHECK_EQ(q2_map(co, &q->im, 3 * CS, 512, &e), 0);
    CHECK(!e.writable);                              /* there are other tables now: the first write finds out where */
    CHECK_EQ(q2_write_begin(co, &q->im, 3 * CS, 512, &w), 0);
    CHECK_EQ(w.len, 0);
    CHECK_EQ(q2_map(co, &q->im, 3 * CS, 512, &e), 0);
    CHECK(e.writable);
    CHECK_EQ(img_close(co, q), 0);
    no_faults(co);
}

static void test_under_way(void **state) { t_run(0, under_way_body, NULL); }

/* ---- a device ---- */

static void set_be64(uint64_t off, uint64_t v)
{
    be64_put(disk_be64(off), v);
    memcpy(disk.durable + off, disk.bytes + off, 8);
}

struct writer { struct q2_image *q; uint64_t off, len; uint8_t fill; int result; bool over; };

static void writer_co(struct co *co, void *arg)
{
    struct writer *w = arg;
    w->result = g_write(co, w->q, w->off, w->len, w->fill);
    w->over = true;
}

static struct { uint64_t behind; bool flushed; unsigned early; } order;

/* Nothing is written behind the edge before what was read is durable. */
static int flush_first(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    order.flushed |= what == 'F';
    order.early += what == 'W' && off >= order.behind && !order.flushed;
    return 0;
}

/* Reads at once; what needs clusters waits until it is known where the used part ends. */
static void device_body(struct co *co, void *arg)
{
    device_bytes = 8 * MIB;
    make_killed(co, &lazy, arg != NULL);
    requests = 0;
    disk.hook = count_requests;
    struct q2_image *q = img_open(co, &at_once);
    CHECK(requests < 20);
    disk.hook = NULL;
    CHECK(q->unclean && q->unclean->edge == Q2_EDGE_SOUGHT);
    CHECK(old_content(co, q, 0));
    struct writer w[3] = { { q, 0, CS, 0xa0 }, { q, 3 * CS + 512, 512, 0xa1 }, { q, 12 * MIB, 3 * CS, 0xa2 } };
    for (unsigned i = 0; i < 3; i++)
        CHECK_EQ(rt_spawn(q->im.home, writer_co, &w[i]), 0);
    for (int i = 0; i < 200; i++)
        co_yield(co);
    CHECK(!w[0].over && !w[1].over && !w[2].over && old_content(co, q, 0));
    order.behind = 4 * MIB;
    order.flushed = false;
    for (uint64_t at = 0; at < device_bytes; at += CS)                  /* the last cluster of the image */
        if (disk.bytes[at] != 0xee || memcmp(disk.bytes + at, disk.bytes + at + 1, CS - 1))
            order.behind = at + CS;
    disk.hook = flush_first;
    struct fmt_check_result res = scrub(co, q, FMT_FIX_LEAKS, 0);
    disk.hook = NULL;
    CHECK_EQ(order.early, 0);
    for (int i = 0; i < 2000 && !(w[0].over && w[1].over && w[2].over); i++)
        co_yield(co);
    CHECK(w[0].over && w[1].over && w[2].over && !w[0].result && !w[1].result && !w[2].result);
    CHECK(!res.corruptions && !res.check_errors && !q->unclean);
    CHECK(old_content(co, q, 4) && g_holds(co, q, 0, CS, 0xa0) && g_holds(co, q, 3 * CS + 512, 512, 0xa1) && g_holds(co, q, 3 * CS, 512, 4));
    CHECK(g_holds(co, q, 12 * MIB, 3 * CS, 0xa2));
    CHECK_EQ(g_write(co, q, 14 * MIB, 30 * CS, 0xa5), 0);
    CHECK(states_ok(co, q));
    scrub(co, q, FMT_FIX_LEAKS, 0);
    CHECK_EQ(img_close(co, q), 0);
    CHECK(disk.len == device_bytes && !marked());
    no_faults(co);
    device_bytes = 0;
}

static void test_device(void **state) { t_run(0, device_body, NULL); }
static void test_device_power(void **state) { t_run(0, device_body, (void *)1); }

static uint64_t bad_at;
static int read_fails(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    return what == 'R' && off <= bad_at && bad_at < off + len ? -EIO : 0;
}

/* A table cannot be read: nothing is known to be free, so nothing is taken; reads go on. The next scrub tries again. */
static void device_unreadable_body(struct co *co, void *arg)
{
    device_bytes = 8 * MIB;
    make_killed(co, &lazy, false);
    bad_at = img_l2_at(8 * MIB);
    struct q2_image *q = img_open(co, &at_once);
    struct writer w = { q, 0, CS, 0xa0 };
    CHECK_EQ(rt_spawn(q->im.home, writer_co, &w), 0);
    disk.hook = read_fails;
    struct fmt_check_result res = scrub(co, q, 0, 0);
    disk.hook = NULL;
    CHECK(res.check_errors && q->unclean && q->unclean->edge == Q2_EDGE_NONE);
    while (!w.over)
        co_yield(co);
    CHECK_EQ(w.result, -EIO);
    CHECK_EQ(g_write(co, q, 3 * CS, CS, 0xa1), -EIO);
    CHECK(old_content(co, q, 0) && marked());
    scrub(co, q, 0, 0);
    CHECK(!q->unclean && !marked());
    CHECK_EQ(g_write(co, q, 3 * CS, CS, 0xa1), 0);
    CHECK(g_holds(co, q, 3 * CS, CS, 0xa1) && g_holds(co, q, 0, CS, 1));
    CHECK_EQ(img_close(co, q), 0);
    no_faults(co);
    device_bytes = 0;
}

/* A scrub that never comes holds nobody up for ever: what needs clusters fails, and goes on when one has come after all. */
static void device_alone_body(struct co *co, void *arg)
{
    device_bytes = 8 * MIB;
    make_killed(co, &lazy, false);
    struct q2_image *q = img_open(co, &at_once);
    struct writer w = { q, 0, CS, 0xa0 };
    CHECK_EQ(rt_spawn(q->im.home, writer_co, &w), 0);
    for (int i = 0; i < 200; i++)
        co_yield(co);
    CHECK(!w.over);
    q->im.ops->no_scrub(&q->im);
    for (int i = 0; i < 200 && !w.over; i++)
        co_yield(co);
    CHECK(w.over && w.result == -EIO && q->unclean && old_content(co, q, 0));
    scrub(co, q, 0, 0);
    q->im.ops->no_scrub(&q->im);
    CHECK(!q->unclean && !marked());
    CHECK_EQ(g_write(co, q, 0, CS, 0xa1), 0);
    CHECK(g_holds(co, q, 0, CS, 0xa1));
    CHECK_EQ(img_close(co, q), 0);
    no_faults(co);
    device_bytes = 0;
}

static void test_device_alone(void **state) { t_run(0, device_alone_body, NULL); }

static void test_device_unreadable(void **state) { t_run(0, device_unreadable_body, NULL); }

/* Hardly any room behind the used part: writes wait for the end of the scrub, then go in place, and none fails. */
static void device_tight_body(struct co *co, void *arg)
{
    device_bytes = 8 * MIB;
    make_killed(co, &lazy, false);
    uint64_t end = 0;
    for (uint64_t at = 0; at < device_bytes; at += CS)
        if (disk.bytes[at] != 0xee || memcmp(disk.bytes + at, disk.bytes + at + 1, CS - 1))
            end = at + CS;
    memset(disk.bytes + end, 0, disk.len - end);
    memset(disk.durable + end, 0, disk.len - end);
    disk.len = disk.durable_len = end + 6 * CS;
    struct q2_image *q = img_open(co, &at_once);
    struct writer w[40];
    for (uint64_t i = 0; i < 40; i++) {
        w[i] = (struct writer){ q, 3 * i * CS, CS, (uint8_t)(0x40 + i) };
        CHECK_EQ(rt_spawn(q->im.home, writer_co, &w[i]), 0);
    }
    scrub(co, q, FMT_FIX_LEAKS, 0);
    CHECK(!q->unclean);
    for (unsigned i = 0; i < 40; i++) {
        while (!w[i].over)
            co_yield(co);
        CHECK_EQ(w[i].result, 0);
        CHECK(g_holds(co, q, w[i].off, CS, w[i].fill));
    }
    CHECK_EQ(img_close(co, q), 0);
    no_faults(co);
    device_bytes = 0;
}

static void test_device_tight(void **state) { t_run(0, device_tight_body, NULL); }

/* The refcount structure of an image on a device is made anew behind what is used (Q2_REFCOUNT_TABLE): there is no end of the file. */
static void device_rebuild_body(struct co *co, void *arg)
{
    device_bytes = 8 * MIB;
    make_killed(co, &lazy, false);
    set_be64(be64_get(disk_be64(48)), 0);
    struct q2_image *q = img_open(co, &(struct opening){ 0 });         /* repairs first */
    CHECK(!q->unclean && !marked() && old_content(co, q, 0));
    CHECK_EQ(img_close(co, q), 0);
    no_faults(co);
    device_bytes = 0;
}

static void test_device_rebuild(void **state) { t_run(0, device_rebuild_body, NULL); }

/* ---- bitmaps of an unclean image (U7) ---- */

static bool dirty_any(const struct dirty *d, uint64_t off, uint64_t len)
{
    uint64_t from, to;
    return dirty_next(d, off, off + len, &from, &to);
}

static struct q2_bm *only_bitmap(struct q2_image *q)
{
    CHECK(q->bms && q->bms->count == 1);
    return &q->bms->list[0];
}

/* Its image is closed. */
static void bitmap_free(struct fmt_bitmap *b)
{
    dirty_free(b->bits);
    free(b->name);
    free(b);
}

/* The image of make_killed with a bitmap that was in use. */
static void make_killed_bitmap(struct co *co)
{
    make_killed(co, &lazy, false);
    struct q2_image *q = img_open(co, &at_once);
    scrub(co, q, 0, 0);
    struct fmt_bitmap *b = calloc(1, sizeof *b);
    struct byre_err err = { 0 };
    *b = (struct fmt_bitmap){ .name = strdup("b"), .granularity_bits = 12, .persistent = true, .enabled = true };
    CHECK_EQ(dirty_new(lazy.size, 12, NULL, &b->bits), 0);
    dirty_set(b->bits, 5 * MIB, 64 * KIB);
    q->im.bitmaps = b;
    CHECK_EQ(q2_bms_sync(co, &q->im, &err), 0);
    CHECK_EQ(q2_bms_enter(co, &q->im, 0, CS), 0);
    CHECK_EQ(g_write(co, q, 0, CS, 1), 0);
    CHECK_EQ(g_flush(co, q), 0);
    img_kill(co, q);
    bitmap_free(b);
    CHECK(marked());
}

/* Bitmaps that nobody counts stay where they are and as they are, until there is something to write: then all is in new clusters. */
static void bitmaps_body(struct co *co, void *arg)
{
    struct byre_err err = { 0 };
    bool early = arg;
    make_killed_bitmap(co);
    requests = 0;
    disk.hook = count_requests;
    struct q2_image *q = img_open(co, &at_once);
    CHECK_EQ(q2_bms_open(co, &q->im, &err), 0);
    CHECK(requests < 40);
    disk.hook = NULL;
    CHECK(q->unclean);
    struct q2_bm *bm = only_bitmap(q);
    struct fmt_bitmap *b = bm->pub;
    CHECK(bm->kept && !b->inconsistent && dirty_any(b->bits, 5 * MIB, 64 * KIB) && dirty_any(b->bits, 0, CS));
    uint64_t end = q->unclean->first * CS, table = bm->d.table_off, data = bm->table[0] & Q2_BME_OFF;
    CHECK(table && data && table < end && data < end);
    uint8_t before[2][CS];
    memcpy(before[0], disk.bytes + table, CS);
    memcpy(before[1], disk.bytes + data, CS);
    if (!early)
        scrub(co, q, FMT_FIX_LEAKS, 0);              /* trust is back, and yet nobody has looked whose these clusters were */
    CHECK_EQ(q2_bms_enter(co, &q->im, 9 * MIB, CS), 0);
    CHECK_EQ(g_write(co, q, 9 * MIB, CS, 0x99), 0);
    dirty_set(b->bits, 9 * MIB, CS);
    bm = only_bitmap(q);
    CHECK(bm->d.table_off != table && (bm->table[0] & Q2_BME_OFF) != data && bm->in_use);
    CHECK(!early || (bm->d.table_off >= end && (bm->table[0] & Q2_BME_OFF) >= end && q->h.bitmap_dir_off >= end));
    CHECK(memcmp(before[0], disk.bytes + table, CS) == 0 && memcmp(before[1], disk.bytes + data, CS) == 0);
    CHECK_EQ(g_flush(co, q), 0);
    if (early) {
        struct fmt_check_result res = scrub(co, q, FMT_FIX_LEAKS, 0);
        CHECK(!res.corruptions && !res.leaks && !q->unclean);
    }
    CHECK(states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    bitmap_free(b);
    no_faults(co);
    q = img_open(co, &(struct opening){ 0 });
    CHECK_EQ(q2_bms_open(co, &q->im, &err), 0);
    b = only_bitmap(q)->pub;
    CHECK(!b->inconsistent && !only_bitmap(q)->in_use && dirty_any(b->bits, 9 * MIB, CS) && dirty_any(b->bits, 5 * MIB, 64 * KIB) && !dirty_any(b->bits, 2 * MIB, MIB));
    CHECK_EQ(img_close(co, q), 0);
    bitmap_free(b);
}

static void test_bitmaps_early(void **state) { t_run(0, bitmaps_body, (void *)1); }
static void test_bitmaps_late(void **state) { t_run(0, bitmaps_body, NULL); }

/* Closed before anything was written: the bitmap is in use as it was, and not a byte of it has changed. */
static void bitmaps_idle_body(struct co *co, void *arg)
{
    struct byre_err err = { 0 };
    make_killed_bitmap(co);
    uint8_t *before = malloc(disk.len);
    uint64_t len = disk.len;
    memcpy(before, disk.bytes, len);
    struct q2_image *q = img_open(co, &at_once);
    CHECK_EQ(q2_bms_open(co, &q->im, &err), 0);
    struct fmt_bitmap *b = only_bitmap(q)->pub;
    CHECK_EQ(img_close(co, q), 0);
    bitmap_free(b);
    CHECK(disk.len == len && memcmp(before, disk.bytes, len) == 0);
    free(before);
}

static void test_bitmaps_idle(void **state) { t_run(0, bitmaps_idle_body, NULL); }

/* ---- damage of an unclean image ---- */

/* U3: a pointer behind the end is never followed and never taken for one of ours, however the file grows. */
static void stale_body(struct co *co, void *arg)
{
    make_killed(co, &lazy, false);
    uint64_t end = round_up(disk.len, CS), l1 = img_l1_at(14 * MIB);
    set_be64(img_l2_at(2 * CS), end | Q2_E_COPIED);                    /* the very first cluster that will be ours */
    set_be64(img_l2_at(5 * CS), (end + CS) | Q2_E_COPIED);
    set_be64(img_l2_at(8 * MIB + 60 * CS), (end + 2 * CS) | Q2_E_COPIED);
    set_be64(l1, (end + 3 * CS) | Q2_E_COPIED);                        /* and a table */
    struct q2_image *q = img_open(co, &at_once);
    CHECK(g_holds(co, q, 2 * CS, CS, 0) && g_holds(co, q, 14 * MIB, MIB, 0));       /* as after a repair */
    CHECK_EQ(g_write(co, q, 12 * MIB, 20 * CS, 0xdd), 0);              /* now there are clusters */
    CHECK(g_holds(co, q, 2 * CS, CS, 0) && g_holds(co, q, 8 * MIB + 60 * CS, CS, 0));
    CHECK_EQ(g_write(co, q, 5 * CS, CS, 0xde), 0);                     /* over it */
    CHECK(g_holds(co, q, 5 * CS, CS, 0xde) && g_holds(co, q, 12 * MIB, 20 * CS, 0xdd));
    CHECK(!q->failed);
    struct fmt_check_result res = scrub(co, q, FMT_FIX_LEAKS, 0);
    CHECK_EQ(res.corruptions, 0);
    CHECK(res.corruptions_fixed >= 4);
    CHECK(!q->unclean && !marked());
    CHECK(g_holds(co, q, 2 * CS, CS, 0) && g_holds(co, q, 8 * MIB + 60 * CS, CS, 0) && g_holds(co, q, 14 * MIB, MIB, 0));
    CHECK_EQ(g_write(co, q, 14 * MIB, 512, 1), 0);
    CHECK(g_holds(co, q, 12 * MIB, 20 * CS, 0xdd));
    CHECK_EQ(img_close(co, q), 0);
    no_faults(co);
}

static void test_stale(void **state) { t_run(0, stale_body, NULL); }

/* U2: two owners that a crash has left; one of them is written before, one while and one after the scrub. */
static void two_owners_body(struct co *co, void *arg)
{
    make_killed(co, &lazy, false);
    uint64_t a = be64_get(disk_be64(img_l2_at(0)));
    set_be64(img_l2_at(1 * CS), a);
    set_be64(img_l2_at(4 * CS), be64_get(disk_be64(img_l2_at(3 * CS))));
    struct q2_image *q = img_open(co, &at_once);
    CHECK_EQ(g_write(co, q, 0, 512, 0xe0), 0);
    CHECK(g_holds(co, q, CS, CS, 1));
    scrub(co, q, 0, 0);
    CHECK(!q->unclean);
    CHECK_EQ(g_write(co, q, 3 * CS, 512, 0xe1), 0);
    CHECK(g_holds(co, q, 4 * CS, CS, 4) && g_holds(co, q, 3 * CS, 512, 0xe1) && g_holds(co, q, 3 * CS + 512, 512, 4));
    CHECK_EQ(g_write(co, q, 1 * CS, 512, 0xe2), 0);
    CHECK(g_holds(co, q, 0, 512, 0xe0) && g_holds(co, q, 512, 512, 1));
    CHECK(states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    uint64_t leaks;
    CHECK(img_faults(co, &leaks) <= 1 && !leaks);    /* the last owner of what was shared has no COPIED flag: no harm in that */
}

static void test_two_owners(void **state) { t_run(0, two_owners_body, NULL); }

/* The refcount structure itself is in the way or outside: made anew, the guest notices nothing. */
static void structure_body(struct co *co, void *arg)
{
    for (unsigned n = 0; n < 4; n++) {
        make_killed(co, &lazy, false);
        uint64_t rt = be64_get(disk_be64(48));
        if (n == 0)
            set_be64(rt, round_up(disk.len, CS) + 16 * CS);            /* a block outside */
        if (n == 1)
            set_be64(rt, 0);                                           /* no block */
        if (n == 2)
            set_be64(rt, be64_get(disk_be64(img_l2_at(0))) & Q2_L2E_OFF);   /* a block that is guest data */
        if (n == 3)
            set_be64(rt, be64_get(disk_be64(rt)) | 512);               /* askew */
        struct q2_image *q = img_open(co, &at_once);
        CHECK(old_content(co, q, 0));
        CHECK_EQ(g_write(co, q, 9 * CS, CS, 0xf0), 0);
        struct fmt_check_result res = scrub(co, q, 0, 0);
        if (!CHECK(!res.corruptions && !q->unclean && !marked()))
            fprintf(stderr, "case %u: %s\n", n, heard.first);
        CHECK(old_content(co, q, 10) && g_holds(co, q, 0, CS, 1));
        CHECK(states_ok(co, q));
        CHECK_EQ(img_close(co, q), 0);
        no_faults(co);
    }
}

static void test_structure(void **state) { t_run(0, structure_body, NULL); }

/* The refcount table names a place that did not exist when the image was opened: data that comes to lie there is data. */
static void block_outside_body(struct co *co, void *arg)
{
    make_killed(co, &lazy, false);
    set_be64(be64_get(disk_be64(48)), round_up(disk.len, CS) + 16 * CS);
    struct q2_image *q = img_open(co, &at_once);
    for (unsigned round = 0; round < 2; round++)                           /* new clusters, then in place */
        for (uint64_t i = 0; i < 64; i++)
            CHECK_EQ(g_write(co, q, 12 * MIB + i * CS, CS, (uint8_t)(0x40 + i + round)), 0);
    struct fmt_check_result res = scrub(co, q, 0, 0);
    CHECK(!res.corruptions && !q->unclean && !marked());
    for (uint64_t i = 0; i < 64; i++)
        CHECK(g_holds(co, q, 12 * MIB + i * CS, CS, (uint8_t)(0x41 + i)));
    CHECK(old_content(co, q, 0) && states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    no_faults(co);
}

static void test_block_outside(void **state) { t_run(0, block_outside_body, NULL); }

/* L6: what cannot be mended here is told, and the image goes on as it was, for as long as it takes. */
static void hopeless_body(struct co *co, void *arg)
{
    make_killed(co, &lazy, false);
    uint64_t at = img_l2_at(12 * CS), good = be64_get(disk_be64(at));
    set_be64(at, good + 512);
    struct q2_image *q = img_open(co, &at_once);
    for (unsigned n = 0; n < 2; n++) {
        struct fmt_check_result res = scrub(co, q, FMT_FIX_LEAKS, 0);
        CHECK(res.corruptions > 0 && q->unclean && marked());
        CHECK(strstr(heard.first, "aligned"));
        uint8_t buf[512];
        CHECK_EQ(g_read(co, q, 12 * CS, 512, buf), -EIO);
        CHECK_EQ(g_write(co, q, 15 * CS, CS, 0xf1), 0);
        CHECK(old_content(co, q, 16));
    }
    CHECK_EQ(img_close(co, q), 0);
    CHECK(marked());
}

static void test_hopeless(void **state) { t_run(0, hopeless_body, NULL); }

/* ---- a sound image with leaks and damage ---- */

static void set_count(uint64_t host, uint16_t n)
{
    uint64_t at = be64_get(disk_be64(be64_get(disk_be64(48)))) + host / CS * 2;
    disk.bytes[at] = disk.durable[at] = (uint8_t)(n >> 8);
    disk.bytes[at + 1] = disk.durable[at + 1] = (uint8_t)n;
}

static void leaks_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, CS, 16 * MIB };
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ 0 });
    for (uint64_t i = 0; i < 40; i++)
        CHECK_EQ(g_write(co, q, i * CS, CS, 0x21), 0);
    CHECK_EQ(img_close(co, q), 0);
    uint64_t gone[3], two = be64_get(disk_be64(img_l2_at(9 * CS))) & Q2_L2E_OFF, low = be64_get(disk_be64(img_l2_at(11 * CS))) & Q2_L2E_OFF;
    for (unsigned i = 0; i < 3; i++) {               /* nobody's any more */
        gone[i] = be64_get(disk_be64(img_l2_at((3 + i) * CS))) & Q2_L2E_OFF;
        set_be64(img_l2_at((3 + i) * CS), 0);
    }
    set_count(two, 2);
    set_be64(img_l2_at(9 * CS), two);                /* and so not COPIED */
    q = img_open(co, &(struct opening){ 0 });
    struct fmt_check_result res = scrub(co, q, 0, 0);
    CHECK(res.leaks == 4 && res.leaks_fixed == 0 && res.corruptions == 0);
    begin_guests(q);
    memset(guest.value, 0, sizeof guest.value);
    for (unsigned i = 0; i < 40; i++)
        guest.value[i] = i >= 3 && i < 6 ? 0 : 0x21;
    uint64_t n = 0;
    while (guest.writes < 2)
        co_yield(co);
    res = scrub(co, q, FMT_FIX_LEAKS, 0);
    CHECK(res.leaks == 0 && res.leaks_fixed >= 3 && res.leaks_fixed <= 4 && heard.fixed == res.leaks_fixed);
    end_guests(co);
    CHECK(states_ok(co, q));
    CHECK_EQ(img_close(co, q), 0);
    (void)gone;
    CHECK(img_faults(co, &n) <= 1);                  /* the one count of 2 may have left a flag */
    CHECK_EQ(n, 0);
    /* a count that is too low is damage: told, and not touched */
    img_make(co, &m);
    q = img_open(co, &(struct opening){ 0 });
    for (uint64_t i = 0; i < 40; i++)
        CHECK_EQ(g_write(co, q, i * CS, CS, 0x21), 0);
    CHECK_EQ(img_close(co, q), 0);
    set_count(low, 0);
    q = img_open(co, &(struct opening){ 0 });
    uint8_t *before = malloc(disk.len);
    uint64_t len = disk.len;
    memcpy(before, disk.bytes, len);
    res = scrub(co, q, FMT_FIX_LEAKS, 0);
    CHECK(res.corruptions == 2 && res.leaks == 0);   /* the count, and the flag that contradicts it: as the offline check says */
    CHECK(disk.len == len && memcmp(before, disk.bytes, len) == 0);
    free(before);
    CHECK_EQ(img_close(co, q), 0);
    CHECK_EQ(img_faults(co, NULL), 2);
}

static void test_leaks(void **state) { t_run(0, leaks_body, NULL); }

/* L1: what waits in quarantine, is reserved or in hand is no leak. */
static void waiting_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, CS, 16 * MIB };
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ 0 });
    CHECK_EQ(g_write(co, q, 0, 64 * CS, 0x21), 0);
    CHECK_EQ(img_close(co, q), 0);
    q = img_open(co, &(struct opening){ .frontier_bytes = 32 * CS });
    struct q2_run hand, back;
    CHECK_EQ(q2_alloc_take(co, q, 3, &hand), 0);
    CHECK_EQ(q2_alloc_take(co, q, 3, &back), 0);
    q2_alloc_return(q, &back);
    CHECK_EQ(q2_discard(co, &q->im, 0, 16 * CS), 0);
    epoch_token t = epoch_enter(q->im.epoch, co_loop(co));             /* holds the quarantine */
    CHECK_EQ(g_flush(co, q), 0);
    CHECK_EQ(q2_discard(co, &q->im, 16 * CS, 16 * CS), 0);
    struct fmt_check_result res = scrub(co, q, FMT_FIX_LEAKS, 0);
    CHECK(res.leaks == 0 && res.leaks_fixed == 0 && res.corruptions == 0);
    CHECK(states_ok(co, q));
    struct byre_err err = { 0 };
    CHECK_EQ(q2_scrub_excludes(q, "resized", &err), 0);
    epoch_leave(q->im.epoch, co_loop(co), t);
    q2_alloc_return(q, &hand);
    CHECK_EQ(img_close(co, q), 0);
    no_faults(co);
}

static void test_waiting(void **state) { t_run(0, waiting_body, NULL); }

/* ---- beside the walk over a recorded frontier (q2_reclaim.c) ---- */

static struct { struct co *me, *held; bool go; } walk_of_other;

static int hold_other(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    if (what != 'R' || co == walk_of_other.me || (walk_of_other.held && walk_of_other.held != co))
        return 0;
    walk_of_other.held = co;
    while (!walk_of_other.go)
        co_yield(co);
    return 0;
}

static struct { struct q2_image *q; bool over; uint64_t fixed; } patient;
static void patient_co(struct co *co, void *arg)
{
    patient.fixed = scrub(co, patient.q, FMT_FIX_LEAKS, 0).leaks_fixed;
    patient.over = true;
}

/* Both free the same clusters: the scrub waits for the section of the walk, each cluster is given back once, and what is in use again
 * by then is left alone. */
static void reclaim_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, CS, 16 * MIB };
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 64 * CS });
    CHECK_EQ(g_write(co, q, 0, CS, 0x11), 0);
    CHECK_EQ(g_flush(co, q), 0);
    img_kill(co, q);
    q = img_open(co, &(struct opening){ .frontier_bytes = CS });
    memset(&walk_of_other, 0, sizeof walk_of_other);
    walk_of_other.me = co;
    disk.hook = hold_other;
    for (unsigned i = 0; i < 100 && !walk_of_other.held; i++)
        co_yield(co);
    CHECK(walk_of_other.held && q->alloc->reclaim);
    patient.q = q;
    patient.over = false;
    CHECK_EQ(rt_spawn(q->im.home, patient_co, NULL), 0);
    walk_of_other.me = NULL;                         /* hold the walk, nobody else */
    for (unsigned i = 0; i < 3000; i++)
        co_yield(co);
    CHECK(!patient.over && q->alloc->reclaim);
    walk_of_other.go = true;
    for (unsigned i = 1; i < 20; i++)
        CHECK_EQ(g_write(co, q, i * CS, CS, (uint8_t)(0x40 + i)), 0);
    while (q->alloc->reclaim || !patient.over)
        co_yield(co);
    disk.hook = NULL;
    CHECK(states_ok(co, q));
    for (unsigned i = 20; i < 60; i++)
        CHECK_EQ(g_write(co, q, i * CS, CS, (uint8_t)(0x40 + i)), 0);
    for (unsigned i = 1; i < 60; i++)
        CHECK(g_holds(co, q, i * CS, CS, (uint8_t)(0x40 + i)));
    CHECK_EQ(img_close(co, q), 0);
    no_faults(co);
}

static void test_reclaim(void **state) { t_run(0, reclaim_body, NULL); }

/* The directory of bitmaps that the walk is reading keeps its bytes: it is read inside the section, too. */
static void reclaim_bitmaps_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, CS, 16 * MIB };
    struct byre_err err = { 0 };
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ .frontier_bytes = 64 * CS });
    struct fmt_bitmap *b = calloc(1, sizeof *b);
    *b = (struct fmt_bitmap){ .name = strdup("b"), .granularity_bits = 12, .persistent = true, .enabled = true };
    CHECK_EQ(dirty_new(m.size, 12, NULL, &b->bits), 0);
    q->im.bitmaps = b;
    CHECK_EQ(q2_bms_sync(co, &q->im, &err), 0);
    CHECK_EQ(g_write(co, q, 0, CS, 0x11), 0);
    CHECK_EQ(g_flush(co, q), 0);
    img_kill(co, q);
    bitmap_free(b);
    memset(&walk_of_other, 0, sizeof walk_of_other);
    walk_of_other.me = co;
    disk.hook = hold_other;
    q = img_open(co, &(struct opening){ .frontier_bytes = CS });
    CHECK_EQ(q2_bms_open(co, &q->im, &err), 0);
    for (unsigned i = 0; i < 100 && !walk_of_other.held; i++)
        co_yield(co);
    CHECK(walk_of_other.held && q->alloc->reclaim);
    uint64_t dir = q->h.bitmap_dir_off / CS, n = 0;
    CHECK_EQ(q2_bms_sync(co, &q->im, &err), 0);      /* another set: the old directory is dropped */
    CHECK(q->h.bitmap_dir_off / CS != dir);
    CHECK_EQ(g_flush(co, q), 0);
    for (unsigned i = 0; i < 300; i++)
        co_yield(co);
    CHECK_EQ(q2_refs_get(co, q, dir, &n), 0);
    CHECK(n == 1 && !rset_contains(&q->alloc->ready, dir, dir + 1));
    walk_of_other.go = true;
    while (q->alloc->reclaim)
        co_yield(co);
    disk.hook = NULL;
    b = q->im.bitmaps;
    CHECK_EQ(img_close(co, q), 0);
    bitmap_free(b);
    no_faults(co);
}

static void test_reclaim_bitmaps(void **state) { t_run(0, reclaim_bitmaps_body, NULL); }

/* A reference that was dropped without memory for the quarantine is a leak like any other, but somebody may still be inside: it is
 * freed one grace period later (D3). */
static void lost_body(struct co *co, void *arg)
{
    const struct make m = { 3, 16, CS, 16 * MIB };
    img_make(co, &m);
    struct q2_image *q = img_open(co, &(struct opening){ 0 });
    CHECK_EQ(g_write(co, q, 0, 8 * CS, 0x21), 0);
    CHECK_EQ(img_close(co, q), 0);
    q = img_open(co, &(struct opening){ 0 });
    epoch_token inside = epoch_enter(q->im.epoch, co_loop(co));        /* a request that writes in place */
    uint64_t host = g_host(co, q, 3 * CS), n = 0;
    struct meta_block *block;
    uint32_t i;
    CHECK_EQ(q2_slice_own(co, q, 3 * CS, &block, &i), 0);
    meta_set_word(q->meta, block, i, 0);             /* a drop of which nothing remains */
    meta_put(q->meta, block);
    patient.q = q;
    patient.over = false;
    CHECK_EQ(rt_spawn(q->im.home, patient_co, NULL), 0);
    for (int k = 0; k < 3000; k++)
        co_yield(co);
    CHECK_EQ(q2_refs_get(co, q, host / CS, &n), 0);
    CHECK(!patient.over && n == 1 && !rset_contains(&q->alloc->ready, host / CS, host / CS + 1));
    epoch_leave(q->im.epoch, co_loop(co), inside);
    while (!patient.over)
        co_yield(co);
    CHECK_EQ(patient.fixed, 1);
    CHECK_EQ(img_close(co, q), 0);
    no_faults(co);
}

static void test_lost(void **state) { t_run(0, lost_body, NULL); }

/* ---- failures ---- */

static unsigned fail_at, calls;
static int fail_nth(struct co *co, char what, uint64_t off, uint64_t len, const uint8_t *buf)
{
    return (what == 'W' || what == 'F' || what == 'R') && ++calls == fail_at ? -EIO : 0;
}

/* Any request of the scrub fails: the guest's data stays, and another opening makes it clean. */
static void failing_body(struct co *co, void *arg)
{
    unsigned failed = 0;
    for (fail_at = 1; fail_at < 400; fail_at += t_share()) {
        make_killed(co, &lazy, false);
        struct q2_image *q = img_open(co, &at_once);
        CHECK_EQ(g_write(co, q, 0, CS, 0xa0), 0);
        CHECK_EQ(q2_discard(co, &q->im, 3 * CS, CS), 0);
        CHECK_EQ(g_flush(co, q), 0);
        disk.hook = fail_nth;
        calls = 0;
        struct fmt_check_opts o = { 0 };
        struct fmt_check_result res = { 0 };
        struct byre_err err = { 0 };
        int r = q2_scrub(co, &q->im, &o, &res, &err);
        disk.hook = NULL;
        bool hit = calls >= fail_at;
        failed += r < 0 || res.check_errors || res.corruptions;
        CHECK(r == 0 || err.code);
        int c = img_close(co, q);
        CHECK(c == 0 || hit);
        q = img_open(co, &at_once);
        CHECK(g_holds(co, q, 0, CS, 0xa0) && g_holds(co, q, 3 * CS, CS, 0) && old_content(co, q, 4));
        if (q->unclean)
            scrub(co, q, 0, 0);
        CHECK(!q->unclean && !marked());
        CHECK_EQ(img_close(co, q), 0);
        no_faults(co);
        if (!hit)
            break;
    }
    CHECK(fail_at < 400 && failed * t_share() > 10);
}

static void test_failing(void **state) { t_run(0, failing_body, NULL); }

/* ---- the set ---- */

static void test_marks(void **state)
{
    struct q2_marks m = { 0 };
    assert_false(q2_marks_has(&m, 0));
    q2_marks_add(&m, 5, 3);
    q2_marks_add(&m, 32767, 2);
    for (uint64_t i = 0; i < 70000; i++)
        assert_int_equal(q2_marks_has(&m, i), (i >= 5 && i < 8) || i == 32767 || i == 32768);
    q2_marks_fini(&m);
    assert_false(q2_marks_has(&m, 6));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_marks), cmocka_unit_test(test_killed), cmocka_unit_test(test_power), cmocka_unit_test(test_again),
        cmocka_unit_test(test_beside), cmocka_unit_test(test_cancel), cmocka_unit_test(test_under_way), cmocka_unit_test(test_stale), cmocka_unit_test(test_two_owners),
        cmocka_unit_test(test_structure), cmocka_unit_test(test_block_outside), cmocka_unit_test(test_hopeless), cmocka_unit_test(test_leaks), cmocka_unit_test(test_waiting), cmocka_unit_test(test_reclaim),
        cmocka_unit_test(test_failing), cmocka_unit_test(test_reclaim_bitmaps), cmocka_unit_test(test_lost), cmocka_unit_test(test_device), cmocka_unit_test(test_device_power), cmocka_unit_test(test_device_unreadable), cmocka_unit_test(test_device_alone),
        cmocka_unit_test(test_device_tight), cmocka_unit_test(test_device_rebuild), cmocka_unit_test(test_bitmaps_early), cmocka_unit_test(test_bitmaps_late), cmocka_unit_test(test_bitmaps_idle),
    };
    ASSERT(disk_setup(NULL) == 0);
    int failed = T_MAIN("qcow2 scrub", tests);
    disk_teardown(NULL);
    return failed;
}
