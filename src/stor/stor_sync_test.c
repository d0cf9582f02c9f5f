/* SPDX-License-Identifier: MIT
 *
 * stor_sync_test.c: flush, FUA and the latch (I1 of stor.h, RG27).
 *
 * Purpose      A toy store plays the kernel that reports a loss once and to whoever asks first; nobody else may be told
 *              that all is well.
 * Tests        stor_sync.c. FEATURES 3.010, 11.026
 */
#include "stor/stor_test.h"

#include <stdlib.h>
#include <string.h>

static int fail_one_flush(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    return op == TOY_FLUSH && t->count[TOY_FLUSH] == 2 ? *(int *)t->hook_arg : 0;
}

static void flush_fails(struct co *co, void *arg)
{
    struct toy *t = arg;
    CHECK_EQ(stor_flush(co, &t->s), -EIO);
    CHECK(stor_flush_latched(&t->s));
    CHECK_EQ(t->count[TOY_FLUSH], 2);     /* and the kernel is not asked again */
}

static void latch(struct co *co, void *arg)
{
    static const int errors[] = { -EIO, -ENOSPC, -ENOMEM };
    uint8_t b[512] = { 1 };
    for (unsigned direct = 0; direct < 2; direct++)
        for (unsigned i = 0; i < 3; i++) {
            struct toy *t = toy_new(4096, direct ? 512 : 1, 1);
            int answer = errors[i];
            t->s.traits.enospc_early = true;
            t->hook = fail_one_flush;
            t->hook_arg = &answer;
            CHECK_EQ(stor_flush(co, &t->s), 0);
            CHECK(!stor_flush_latched(&t->s));
            CHECK_EQ(stor_flush(co, &t->s), answer);
            flush_fails(co, t);
            CHECK_EQ(stor_write_buf(co, &t->s, b, 512, 0, STOR_FUA), -EIO);
            CHECK_EQ(stor_zero(co, &t->s, 0, 512, STOR_FUA), -EIO);
            CHECK_EQ(t->count[TOY_FUA] + t->count[TOY_ZERO], 0);
            CHECK_EQ(stor_write_buf(co, &t->s, b, 512, 0, 0), 0);
            t->s.no_flush = true;
            CHECK_EQ(stor_flush(co, &t->s), -EIO);
            toy_free(t);
        }
}

static void test_latch(void **state) { t_run(0, latch, NULL); }

static void flush_once(struct co *co, void *arg)
{
    struct toy *t = arg;
    int r = stor_flush(co, &t->s);
    CHECK_EQ(r, t->count[TOY_FLUSH] == 1 ? 0 : -EIO);
}

static void test_latch_is_seen_by_other_loops(void **state)
{
    struct toy *t = toy_new(4096, 1, 1);
    int answer = -EIO;
    t->hook = fail_one_flush;
    t->hook_arg = &answer;
    t_run(0, flush_once, t);
    t_run(0, flush_once, t);
    t_run(1, flush_fails, t);
    toy_free(t);
}

static void no_flush(struct co *co, void *arg)
{
    struct toy *t = toy_new(4096, 1, 1);
    uint8_t b[512] = { 1 };
    t->s.no_flush = true;
    CHECK_EQ(stor_flush(co, &t->s), 0);
    CHECK_EQ(stor_write_buf(co, &t->s, b, 512, 0, STOR_FUA), 0);
    CHECK_EQ(t->count[TOY_FLUSH] + t->count[TOY_FUA], 0);
    CHECK_EQ(t->count[TOY_WRITE], 1);
    toy_free(t);
}

static void test_no_flush(void **state) { t_run(1, no_flush, NULL); }

static int fail_fua(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    return op == TOY_FUA ? *(int *)t->hook_arg : 0;
}

static void fua(struct co *co, void *arg)
{
    static const struct { int answer; bool early, latched; } row[] = {
        { -EIO, true, true }, { -EIO, false, true }, { -ENOSPC, true, false }, { -ENOSPC, false, true },
        { -EDQUOT, true, false }, { -EINVAL, true, true },
    };
    uint8_t b[512] = { 1 };
    for (unsigned i = 0; i < sizeof row / sizeof row[0]; i++) {
        struct toy *t = toy_new(4096, 1, 1);
        int answer = row[i].answer;
        t->s.traits.enospc_early = row[i].early;
        t->hook_arg = &answer;
        CHECK_EQ(stor_write_buf(co, &t->s, b, 512, 0, STOR_FUA), 0);
        CHECK_EQ(t->count[TOY_FUA], 1);
        t->hook = fail_fua;
        CHECK_EQ(stor_write_buf(co, &t->s, b, 512, 0, STOR_FUA), answer);
        CHECK_EQ(stor_flush_latched(&t->s), row[i].latched);
        CHECK_EQ(stor_flush(co, &t->s), row[i].latched ? -EIO : 0);
        toy_free(t);
    }
}

static void test_fua(void **state) { t_run(0, fua, NULL); }

/* The kernel has one report of the loss. The FUA write takes it, and is slow to come back with it; the flush beside
 * it finds none and is back first. It must wait, and fail. The same for two FUA writes of a buffered store. */
struct race { struct toy *t; bool fua_too; unsigned role; };
static _Atomic int fua_in;

static int slow_loss(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    if (op != TOY_FUA || off != 0)
        return 0;
    atomic_store(&fua_in, 1);
    (void)co_sleep(co, 60000000);
    return -EIO;
}

static void race_role(struct co *co, void *arg)
{
    const struct race *x = arg;
    uint8_t b[512] = { 1 };
    if (x->role == 0) {
        CHECK_EQ(stor_write_buf(co, &x->t->s, b, 512, 0, STOR_FUA), -EIO);
        return;
    }
    while (!atomic_load(&fua_in))
        (void)co_sleep(co, 1000000);
    if (x->fua_too)
        CHECK_EQ(stor_write_buf(co, &x->t->s, b, 512, 1024, STOR_FUA), -EIO);
    else
        CHECK_EQ(stor_flush(co, &x->t->s), -EIO);
}

static void test_loss_reported_to_another(void **state)
{
    for (unsigned i = 0; i < 2; i++) {
        struct toy *t = toy_new(4096, 1, 1);
        struct race x[2] = { { t, i, 0 }, { t, i, 1 } };
        void *args[2] = { &x[0], &x[1] };
        t->hook = slow_loss;
        atomic_store(&fua_in, 0);
        t_run_many(2, race_role, args);
        assert_true(stor_flush_latched(&t->s));
        toy_free(t);
    }
}

/* The same when it is the driver itself that has asked, in a plain write. What it was told while the system below was away is no loss. */
static int own_answer;

static int slow_own_flush(struct co *co, struct stor *s)
{
    atomic_store(&fua_in, 1);
    (void)co_sleep(co, 60000000);
    return own_answer;
}

static int flush_in_write(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    if (op == TOY_WRITE)
        sync_own_flush(co, &t->s, slow_own_flush);
    return 0;
}

static void own_role(struct co *co, void *arg)
{
    const struct race *x = arg;
    uint8_t b[512] = { 1 };
    if (x->role == 0) {
        CHECK_EQ(stor_write_buf(co, &x->t->s, b, 512, 0, 0), 0);
        return;
    }
    while (!atomic_load(&fua_in))
        (void)co_sleep(co, 1000000);
    uint64_t began = rt_now(co_loop(co));
    CHECK_EQ(stor_flush(co, &x->t->s), own_answer == -EIO ? -EIO : 0);
    CHECK(rt_now(co_loop(co)) - began > 20000000);           /* it has waited for the other one */
}

static void test_flush_of_the_driver(void **state)
{
    static const int answers[] = { -EIO, -ENOTCONN, 0 };
    for (unsigned i = 0; i < 3; i++) {
        struct toy *t = toy_new(4096, 1, 1);
        struct race x[2] = { { t, false, 0 }, { t, false, 1 } };
        void *args[2] = { &x[0], &x[1] };
        t->hook = flush_in_write;
        own_answer = answers[i];
        atomic_store(&fua_in, 0);
        t_run_many(2, own_role, args);
        assert_int_equal(stor_flush_latched(&t->s), answers[i] == -EIO);
        toy_free(t);
    }
}

/* Flushes of many coroutines share few flushes of the driver, and each is covered by one that began after it asked. */
static _Atomic uint64_t started;          /* flushes that began */
static _Atomic uint64_t finished_start;   /* number of the newest flush that came back */

static int number_flush(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    if (op != TOY_FLUSH)
        return 0;
    uint64_t mine = atomic_fetch_add(&started, 1) + 1;
    (void)co_sleep(co, 300000);
    CHECK(mine > atomic_load(&finished_start));
    atomic_store(&finished_start, mine);
    return 0;
}

static void flush_many(struct co *co, void *arg)
{
    struct toy *t = arg;
    for (unsigned i = 0; i < 50; i++) {
        uint64_t asked = atomic_load(&started);
        CHECK_EQ(stor_flush(co, &t->s), 0);
        CHECK(atomic_load(&finished_start) > asked);
    }
}

static void test_shared_flush(void **state)
{
    enum { N = 16 };
    struct toy *t = toy_new(4096, 1, 1);
    void *args[N];
    t->hook = number_flush;
    atomic_store(&started, 0);
    atomic_store(&finished_start, 0);
    for (unsigned i = 0; i < N; i++)
        args[i] = t;
    t_run_many(N, flush_many, args);
    assert_in_range(t->count[TOY_FLUSH], 50, N * 50 / 3);
    toy_free(t);
}

/* When a flush that many wait for fails, all of them fail. */
static int fail_third(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    if (op != TOY_FLUSH)
        return 0;
    (void)co_sleep(co, 200000);
    return t->count[TOY_FLUSH] >= 3 ? -EIO : 0;
}

static _Atomic unsigned good;

static void flush_until_failure(struct co *co, void *arg)
{
    struct toy *t = arg;
    int r;
    while ((r = stor_flush(co, &t->s)) == 0)
        atomic_fetch_add(&good, 1);
    CHECK_EQ(r, -EIO);
}

static void test_shared_failure(void **state)
{
    enum { N = 16 };
    for (unsigned round = 0; round < 10; round++) {
        struct toy *t = toy_new(4096, 1, 1);
        void *args[N];
        t->hook = fail_third;
        atomic_store(&good, 0);
        for (unsigned i = 0; i < N; i++)
            args[i] = t;
        t_run_many(N, flush_until_failure, args);
        assert_int_equal(t->count[TOY_FLUSH], 3);
        assert_in_range(atomic_load(&good), 1, N + 1);
        toy_free(t);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_latch), cmocka_unit_test(test_latch_is_seen_by_other_loops), cmocka_unit_test(test_no_flush),
        cmocka_unit_test(test_fua), cmocka_unit_test(test_loss_reported_to_another),
        cmocka_unit_test(test_flush_of_the_driver), cmocka_unit_test(test_shared_flush), cmocka_unit_test(test_shared_failure),
    };
    return T_MAIN("sync", tests);
}
