/* SPDX-License-Identifier: MIT
 *
 * converge_test.c: decisions of converge.c against a guest and a target that are a few numbers.
 *
 * Purpose     Each kind of guest with each mode: is it ready in time, is the guest as fast as promised, and is it said what forbids it?
 * Owns        Nothing.
 * Invariants  None.
 * Concurrency Pure.
 * Failure     A failed check fails the test.
 * Tests       This is one.
 */
#include "base/test.h"

#include "job/converge.h"

#define MIB (1024.0 * 1024)

/* A target takes `target` bytes per second in all. The guest would write `guest`, in `hot` bytes of the disk, and each write makes
 * `spread` times its size dirty; for a minute before the job it wrote `before`, unless that is 0, and in the job nothing until `starts`. silent: before the
 * job it was seen to write nothing. slowest: once it writes. least_brake: 0 if there was none. */
struct world { double target, guest, hot, spread, size, deadline, share, before, starts; enum converge_mode mode; unsigned max_slowdown; bool silent; };
struct outcome { double ready_s, slowest, blocking_s, least_brake; enum converge_limit limit; bool braked; double limit_s; };

static struct outcome run(const struct world *w)
{
    struct outcome o = { .ready_s = -1, .slowest = 1e18, .blocking_s = -1, .limit_s = -1 };
    struct converge c = { .mode = w->mode, .deadline_ns = (uint64_t)(w->deadline * 1e9), .max_slowdown = w->max_slowdown };
    double dirty = w->size, copied = 0, guest = 0, dt = 0.1, t = 0, second = 0;
    unsigned ticks = 0;
    struct converge_sample s = { .now_ns = 1, .dirty = (uint64_t)dirty };
    if (w->before > 0)
        converge_before(&c, (uint64_t)(w->before * 60), UINT64_C(60000000000));
    if (w->silent)
        converge_before(&c, 0, UINT64_C(8000000000));
    converge_begin(&c, &s);
    for (; t < 300 && o.ready_s < 0; t += dt) {
        double wish = t >= w->starts ? w->guest : 0, want = c.brake && (double)c.brake < wish ? (double)c.brake : wish, room = w->target * dt, done = want * dt;
        if (c.blocking) {                  /* what is clean goes to the target first, as far as that is able; half of it is the copy's */
            double clean = 1 - dirty / (w->hot > w->size ? w->hot : w->size), both = done * clean, share = w->share > 0 ? w->share : 0.7;
            double pieces = room * (1 - share);              /* what the copy takes, if it may */
            if (c.copy_limit && (double)c.copy_limit * dt < pieces)
                pieces = (double)c.copy_limit * dt;
            double most = dirty > 0 ? room - pieces : room;
            if (both > most) {
                done *= most / both;
                both = most;
            }
            room -= both;
        } else {
            double fresh = done * w->spread;
            dirty = dirty + fresh > w->size ? w->size : dirty + fresh;
            if (dirty > w->hot && copied > w->size && w->hot < w->size)
                dirty = w->hot;
        }
        guest += done;
        double n = room < dirty ? room : dirty;
        dirty -= n;
        copied += n;
        if (!c.blocking && w->guest > 0 && w->hot < w->size && dirty < w->hot && copied >= w->size)
            dirty = w->hot;                /* rewritten before it was seen clean */
        second += done;
        if (++ticks % 10 == 0) {
            o.slowest = second < o.slowest && t > w->starts + 1 ? second : o.slowest;
            second = 0;
        }
        s = (struct converge_sample){ .now_ns = (uint64_t)((t + dt) * 1e9) + 1, .dirty = (uint64_t)dirty, .copied = (uint64_t)copied, .guest = (uint64_t)guest,
                                      .clean = dirty < 1, .ready = dirty < 1, .held = c.blocking };
        converge_step(&c, &s);
        if (dirty < 1)
            o.ready_s = t + dt;
        if (c.blocking && o.blocking_s < 0)
            o.blocking_s = t;
        o.braked |= c.brake != 0;
        o.least_brake = c.brake && (!(o.least_brake > 0) || (double)c.brake < o.least_brake) ? (double)c.brake : o.least_brake;
        if (c.limit != CONVERGE_NONE && o.limit_s < 0) {
            o.limit = c.limit;
            o.limit_s = t;
        }
        assert_true(!c.brake || (double)c.brake >= 4096);
    }
    return o;
}

static void test_quiet_guest(void **state)
{
    for (int m = CONVERGE_OFF; m <= CONVERGE_AUTO; m++) {
        struct outcome o = run(&(struct world){ .target = 100 * MIB, .guest = 0, .size = 1000 * MIB, .deadline = 30, .mode = (enum converge_mode)m, .max_slowdown = 20 });
        assert_true(o.ready_s > 9 && o.ready_s < 11);
        assert_true(o.blocking_s < 0 && !o.braked && o.limit == CONVERGE_NONE);
    }
}

/* The target is ten times slower than a guest that rewrites 1 KiB for ever. */
static void test_hot_spot(void **state)
{
    struct world w = { .target = 10 * MIB, .guest = 100 * MIB, .hot = 65536, .spread = 0.001, .size = 50 * MIB, .deadline = 60, .max_slowdown = 20 };
    w.mode = CONVERGE_OFF;
    struct outcome o = run(&w);
    assert_true(o.ready_s < 0 && o.limit == CONVERGE_LIMIT_MODE);
    w.mode = CONVERGE_AUTO;
    o = run(&w);
    assert_true(o.ready_s > 0 && o.ready_s < 60 && o.blocking_s > 0);
    assert_true(o.slowest >= w.guest / 20);
    w.mode = CONVERGE_BLOCKING;
    o = run(&w);
    assert_true(o.ready_s > 0 && o.ready_s < 60 && !o.braked);
}

/* Small writes all over the disk, each makes sixteen times its size dirty. */
static void test_all_over(void **state)
{
    struct world w = { .target = 10 * MIB, .guest = 100 * MIB, .hot = 1e18, .spread = 16, .size = 200 * MIB, .deadline = 90, .max_slowdown = 20 };
    w.mode = CONVERGE_AUTO;
    struct outcome o = run(&w);
    assert_true(o.ready_s > 0 && o.ready_s < 90 && o.blocking_s >= 0);
    assert_true(o.slowest >= w.guest / 20 * 0.99);
    w.share = 0.2;                         /* the pieces take nearly all of the target, unless they step back */
    o = run(&w);
    assert_true(o.slowest >= w.guest / 20 * 0.99 && o.ready_s > 0);
    w.mode = CONVERGE_OFF;
    o = run(&w);
    assert_true(o.ready_s < 0 && o.limit == CONVERGE_LIMIT_MODE && o.limit_s < 5);
}

/* A guest in a burst when the job begins: it may be slowed down by what it did before, or a target for the mean of it would never be ready. */
static void test_burst(void **state)
{
    struct world w = { .target = 5 * MIB, .guest = 90 * MIB, .hot = 1e18, .spread = 16, .size = 100 * MIB, .deadline = 90, .max_slowdown = 20, .mode = CONVERGE_AUTO };
    struct outcome o = run(&w);
    assert_true(o.ready_s < 0 && o.limit == CONVERGE_LIMIT_SLOWDOWN);             /* a floor of 5.6 MiB/s leaves nothing of the target */
    w.before = 50 * MIB;
    o = run(&w);
    assert_true(o.ready_s > 0 && o.ready_s < 90);
    assert_true(o.slowest >= w.before / 20 * 0.99);
}

/* A guest that only read before the job, or for its first seconds: what it may be slowed down to follows from its writes, once it makes some. */
static void test_silent(void **state)
{
    struct world w = { .target = 5 * MIB, .guest = 90 * MIB, .hot = 1e18, .spread = 16, .size = 100 * MIB, .deadline = 90, .max_slowdown = 20, .mode = CONVERGE_AUTO, .silent = true };
    struct outcome o = run(&w);
    assert_true(o.least_brake >= w.guest / 20 * 1.2 && o.limit == CONVERGE_LIMIT_SLOWDOWN);      /* as if nobody had looked */
    w = (struct world){ .target = 50 * MIB, .guest = 80 * MIB, .hot = 1e18, .spread = 1, .size = 1500 * MIB, .deadline = 60, .max_slowdown = 20, .mode = CONVERGE_THROTTLE, .silent = true, .starts = 15 };
    o = run(&w);
    assert_true(o.ready_s > 0 && o.ready_s < 60 && o.braked);
    assert_true(o.slowest >= w.guest / 20 * 0.99);
    /* changes go to both sides long before there are any: then the pace at that counts */
    w = (struct world){ .target = 10 * MIB, .guest = 100 * MIB, .hot = 1e18, .spread = 16, .size = 500 * MIB, .deadline = 60, .max_slowdown = 20, .mode = CONVERGE_AUTO, .silent = true, .starts = 5 };
    o = run(&w);
    assert_true(o.blocking_s >= 0 && o.blocking_s < 5 && o.braked);
    assert_true(o.least_brake >= 7 * MIB / 20 * 0.99);
}

/* What forbids it is said long before the time is over. */
static void test_forbidden(void **state)
{
    struct world w = { .target = 10 * MIB, .guest = 100 * MIB, .hot = 1e18, .spread = 16, .size = 2000 * MIB, .deadline = 60, .max_slowdown = 20, .mode = CONVERGE_AUTO };
    struct outcome o = run(&w);
    assert_true(o.limit == CONVERGE_LIMIT_DEADLINE && o.limit_s < 5);
    /* the guest may become hardly slower, and takes the target's time */
    w = (struct world){ .target = 10 * MIB, .guest = 10 * MIB, .hot = 1e18, .spread = 16, .size = 500 * MIB, .deadline = 80, .max_slowdown = 1, .mode = CONVERGE_AUTO };
    o = run(&w);
    assert_true(o.limit != CONVERGE_NONE);
    assert_true(o.slowest >= 10 * MIB * 0.29);
}

/* A guest that writes faster than can be copied, but may be slowed down. */
static void test_throttle(void **state)
{
    struct world w = { .target = 50 * MIB, .guest = 80 * MIB, .hot = 1e18, .spread = 1, .size = 500 * MIB, .deadline = 60, .max_slowdown = 20, .mode = CONVERGE_THROTTLE };
    struct outcome o = run(&w);
    assert_true(o.ready_s > 0 && o.ready_s < 60 && o.braked && o.blocking_s < 0);
    assert_true(o.slowest >= w.guest / 20 * 0.99);
    w.max_slowdown = 1;
    o = run(&w);
    assert_true(o.ready_s < 0 && o.limit == CONVERGE_LIMIT_SLOWDOWN);
}

/* A guest that is as slow as it was told to be needs nothing from the pieces; one that is slower does. */
static void test_own_brake(void **state)
{
    for (int slower = 0; slower < 2; slower++) {
        struct converge c = { .mode = CONVERGE_AUTO, .deadline_ns = UINT64_C(60000000000), .max_slowdown = 20 };
        struct converge_sample s = { .now_ns = 1, .dirty = (uint64_t)(1000 * MIB) };
        converge_begin(&c, &s);
        for (unsigned tick = 0; tick < 100; tick++) {
            double guest = !c.blocking ? 100 * MIB : !c.brake ? 20 * MIB : (double)c.brake * (slower ? 0.5 : 0.92);
            s.now_ns += 100000000;
            s.guest += (uint64_t)(guest / 10);
            s.copied += (uint64_t)(4 * MIB / 10);
            s.dirty -= (uint64_t)(4 * MIB / 10);
            s.held = c.blocking;
            converge_step(&c, &s);
        }
        assert_true(c.brake && (double)c.brake > 100 * MIB / 20 && (double)c.brake < 100 * MIB / 10);
        assert_true(slower ? c.copy_limit > 0 && c.copy_limit < 1 << 20 : c.copy_limit == 0);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quiet_guest), cmocka_unit_test(test_hot_spot),  cmocka_unit_test(test_all_over),
        cmocka_unit_test(test_burst), cmocka_unit_test(test_silent), cmocka_unit_test(test_forbidden),   cmocka_unit_test(test_throttle),  cmocka_unit_test(test_own_brake),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
