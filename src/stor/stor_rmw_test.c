/* SPDX-License-Identifier: MIT
 *
 * stor_rmw_test.c: writes that share a block of the device, from two loops at once (I3 of stor.h).
 *
 * Purpose      Shows that nobody's bytes are lost and that the length ends up exact, with a toy store whose requests
 *              take effect at seeded moments between issue and completion.
 * Tests        stor_write.c, stor_order.c
 */
#include "stor/stor_test.h"

#include <stdlib.h>
#include <string.h>

enum { BLOCK = 4096, SECTOR = 512, BLOCKS = 4, WRITERS = 24, ROUNDS = 60 };

/* FEATURES 11.018. Each writer owns the sectors whose number is its own modulo WRITERS, and nobody else writes them. */
struct writer {
    struct toy *t;
    unsigned id;
    uint64_t seed;
    uint8_t want[BLOCKS * BLOCK];
};

static void write_own_sectors(struct co *co, void *arg)
{
    struct writer *w = arg;
    struct prng p;
    prng_init(&p, w->seed);
    for (unsigned i = 0; i < ROUNDS; i++) {
        unsigned k = (unsigned)prng_below(&p, BLOCKS * BLOCK / SECTOR);
        k = k - k % WRITERS + w->id;
        if (k >= BLOCKS * BLOCK / SECTOR)
            continue;
        uint8_t *at = w->want + k * SECTOR;
        if (prng_one_in(&p, 5)) {
            memset(at, 0, SECTOR);
            CHECK_EQ(stor_zero(co, &w->t->s, (uint64_t)k * SECTOR, SECTOR, 0), 0);
        } else {
            prng_fill(&p, at, SECTOR);
            CHECK_EQ(stor_write_buf(co, &w->t->s, at, SECTOR, (uint64_t)k * SECTOR, prng_one_in(&p, 4) ? STOR_FUA : 0), 0);
        }
    }
}

static void test_sectors(void **state)
{
    for (uint64_t seed = 1; seed <= 4; seed++) {
        struct prng rng;
        struct toy *t = toy_new(BLOCKS * BLOCK, BLOCK, BLOCK);
        struct writer *w = calloc(WRITERS, sizeof *w);
        void *args[WRITERS];
        prng_init(&rng, seed);
        t->rng = &rng;
        t->delay_ns = 60000;
        for (unsigned i = 0; i < WRITERS; i++) {
            w[i] = (struct writer){ .t = t, .id = i, .seed = seed * 100 + i };
            args[i] = &w[i];
        }
        t_run_many(WRITERS, write_own_sectors, args);
        for (unsigned k = 0; k < BLOCKS * BLOCK / SECTOR; k++)
            assert_memory_equal(t->bytes + k * SECTOR, w[k % WRITERS].want + k * SECTOR, SECTOR);
        order_check(&t->s.internal->order);
        free(w);
        toy_free(t);
    }
}

/* An aligned change of a whole block beside a sub-block write into it: all sectors but that one are the former's. */
struct pair {
    struct toy *t;
    bool aligned;
    unsigned mode;                        /* 0 write, 1 zero, 2 discard */
    uint64_t sector;
    uint8_t fill;
};

static void write_pair(struct co *co, void *arg)
{
    const struct pair *p = arg;
    uint8_t *buf = aligned_alloc(BLOCK, BLOCK);
    memset(buf, p->fill, BLOCK);
    if (!p->aligned)
        CHECK_EQ(stor_write_buf(co, &p->t->s, buf, SECTOR, p->sector * SECTOR, 0), 0);
    else if (p->mode == 0)
        CHECK_EQ(stor_write_buf(co, &p->t->s, buf, BLOCK, 0, 0), 0);
    else if (p->mode == 1)
        CHECK_EQ(stor_zero(co, &p->t->s, 0, BLOCK, 0), 0);
    else
        CHECK_EQ(stor_discard(co, &p->t->s, 0, BLOCK), 0);
    free(buf);
}

static void test_aligned_beside_rmw(void **state)
{
    struct prng rng;
    prng_init(&rng, 9);
    for (unsigned i = 0; i < 300; i++) {
        struct toy *t = toy_new(BLOCK, BLOCK, BLOCK);
        struct pair a = { t, true, i % 3, 0, 0xa0 }, b = { t, false, 0, prng_below(&rng, BLOCK / SECTOR), 0xb0 };
        /* Both orders of arrival; the aligned one sometimes finds the store in its fast mode, sometimes not. */
        void *args[2] = { i % 2 ? (void *)&a : (void *)&b, i % 2 ? (void *)&b : (void *)&a };
        uint8_t whole = a.mode ? 0 : 0xa0;
        memset(t->bytes, 0x11, BLOCK);
        t->rng = &rng;
        t->delay_ns = 100000;
        t_run_many(2, write_pair, args);
        for (unsigned k = 0; k < BLOCK; k++) {
            uint8_t got = t->bytes[k];
            if (k / SECTOR == b.sector)
                assert_true(got == 0xb0 || got == whole);
            else
                assert_int_equal(got, whole);
        }
        toy_free(t);
    }
}

/* Extending writes that are no multiples of the block, all at once: the length is that of the furthest. */
struct extender { struct toy *t; uint64_t off, len; uint8_t fill; unsigned kind; };

static void extend(struct co *co, void *arg)
{
    const struct extender *x = arg;
    uint8_t *buf = malloc(x->len);
    memset(buf, x->fill, x->len);
    CHECK_EQ(stor_write_buf(co, &x->t->s, buf, x->len, x->off, 0), 0);
    free(buf);
}

static void watch_length(struct co *co, void *arg)
{
    struct extender *x = arg;
    uint64_t last = 0, now;
    for (unsigned i = 0; i < 40; i++) {
        CHECK_EQ(stor_length(co, &x->t->s, &now), 0);
        CHECK(now >= last);
        CHECK(now == x->len || (now - 700) % 1000 == 0);   /* only ends of writes, never the end of a block */
        last = now;
        (void)co_sleep(co, 20000);
    }
}

static void extend_or_watch(struct co *co, void *arg)
{
    struct extender *x = arg;
    if (x->kind)
        watch_length(co, x);
    else
        extend(co, x);
}

static void test_extending(void **state)
{
    enum { N = 20 };
    for (uint64_t seed = 1; seed <= 8; seed++) {
        struct prng rng;
        struct toy *t = toy_new(700, BLOCK, BLOCK);
        struct extender x[N + 1];
        void *args[N + 1];
        uint64_t end = 700;
        prng_init(&rng, seed);
        memset(t->bytes, 0x77, 700);
        t->rng = &rng;
        t->delay_ns = 50000;
        for (unsigned i = 0; i < N; i++) {
            x[i] = (struct extender){ t, 700 + 1000 * i, 1000, (uint8_t)(i + 1), 0 };
            end = x[i].off + x[i].len;
        }
        x[N] = (struct extender){ t, 0, 700, 0, 1 };
        for (unsigned i = 0; i <= N; i++)
            args[(i * 8 + seed) % (N + 1)] = &x[i];
        t_run_many(N + 1, extend_or_watch, args);
        assert_int_equal(t->len, end);
        for (uint64_t k = 0; k < end; k++)
            assert_int_equal(t->bytes[k], k < 700 ? 0x77 : (k - 700) / 1000 + 1);
        toy_free(t);
    }
}

/* Unaligned extending writes beside aligned extending ones: cutting back never takes what others wrote. */
static void test_extending_beside_aligned(void **state)
{
    for (uint64_t seed = 1; seed <= 100; seed++) {
        struct prng rng;
        struct toy *t = toy_new(0, BLOCK, 1);
        struct extender x[3] = { { t, 100, 500, 1, 0 }, { t, BLOCK, 2 * BLOCK, 2, 0 }, { t, 3 * BLOCK + 10, 20, 3, 0 } };
        void *args[3] = { &x[seed % 3], &x[(seed + 1) % 3], &x[(seed + 2) % 3] };
        prng_init(&rng, seed);
        t->rng = &rng;
        t->delay_ns = 100000;
        t_run_many(3, extend, args);
        assert_int_equal(t->len, 3 * BLOCK + 30);
        for (unsigned i = 0; i < 3; i++)
            for (uint64_t k = 0; k < x[i].len; k++)
                assert_int_equal(t->bytes[x[i].off + k], x[i].fill);
        toy_free(t);
    }
}

/* While one write has the store too long for a moment, another one looks at the length: nobody keeps what it sees. */
static _Atomic int cutting;

static int slow_cut(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    if (op == TOY_TRUNCATE && !atomic_exchange(&cutting, 1))
        (void)co_sleep(co, 30000000);
    return 0;
}

static void extend_or_look(struct co *co, void *arg)
{
    struct extender *x = arg;
    while (x->kind && !atomic_load(&cutting))
        (void)co_sleep(co, 1000000);
    extend(co, x);
}

static void test_passing_length_is_not_kept(void **state)
{
    struct toy *t = toy_new(700, BLOCK, 1);
    struct extender x[3] = { { t, BLOCK + 100, 50, 1, 0 }, { t, 10, 10, 2, 1 }, { t, BLOCK + 200, 10, 3, 0 } };
    void *args[2] = { &x[0], &x[1] };
    t->hook = slow_cut;
    atomic_store(&cutting, 0);
    t_run_many(2, extend_or_look, args);
    assert_int_equal(t->len, BLOCK + 150);
    t_run(0, extend, &x[2]);
    assert_int_equal(t->len, BLOCK + 210);
    toy_free(t);
}

/* A failing read of the read-modify-write: nothing is written, the caller learns it, the block is free again. */
static int fail_reads(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    return op == TOY_READ ? -EIO : 0;
}

static void failing_read(struct co *co, void *arg)
{
    struct toy *t = toy_new(BLOCK, BLOCK, 1);
    uint8_t b[100] = { 1 };
    t->hook = fail_reads;
    CHECK_EQ(stor_write_buf(co, &t->s, b, 100, 10, 0), -EIO);
    CHECK_EQ(t->count[TOY_WRITE], 0);
    t->hook = NULL;
    CHECK_EQ(stor_write_buf(co, &t->s, b, 100, 10, 0), 0);
    toy_free(t);
}

/* A failing write that had made the store longer leaves the length as it was. */
static int fail_second_write(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    return op == TOY_WRITE && t->count[TOY_WRITE] == 2 ? -EIO : 0;
}

static void failing_extension(struct co *co, void *arg)
{
    struct toy *t = toy_new(1000, 512, 1);
    uint8_t b[3000] = { 1 };
    uint64_t len;
    t->short_max = 1024;
    t->hook = fail_second_write;
    CHECK_EQ(stor_write_buf(co, &t->s, b, 3000, 900, 0), -EIO);
    CHECK_EQ(stor_length(co, &t->s, &len), 0);
    CHECK(len <= 3900);
    toy_free(t);
}

/* On kernels where zeroing past the end races with writes: no write is with the driver while such a zero is. */
static _Atomic int writes_in, growing_in, grown;

static int count_in(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    if (op != TOY_ZERO && op != TOY_WRITE)
        return 0;
    pthread_mutex_lock(&t->lock);
    bool grows = op == TOY_ZERO && off + len > t->len;
    pthread_mutex_unlock(&t->lock);
    _Atomic int *in = grows ? &growing_in : op == TOY_WRITE ? &writes_in : NULL;
    if (in)
        atomic_fetch_add(in, 1);
    (void)co_sleep(co, 300000);
    if (grows)
        CHECK_EQ(atomic_load(&writes_in), 0);
    if (op == TOY_WRITE)
        CHECK_EQ(atomic_load(&growing_in), 0);
    if (in)
        atomic_fetch_sub(in, 1);
    atomic_fetch_add(&grown, grows);
    return 0;
}

static void grow_or_zero(struct co *co, void *arg)
{
    const struct extender *x = arg;
    if (x->kind)
        CHECK_EQ(stor_zero(co, &x->t->s, x->off, x->len, 0), 0);
    else
        extend(co, arg);
}

static void test_serial_growth(void **state)
{
    enum { N = 32 };
    struct toy *t = toy_new(0, 1, 1);
    struct extender x[N];
    void *args[N];
    t->s.traits.serial_growth = true;
    t->hook = count_in;
    for (unsigned i = 0; i < N; i++) {
        x[i] = (struct extender){ t, 1000 * i, 1000, 5, i % 4 == 3 };
        args[i] = &x[i];
    }
    atomic_store(&grown, 0);
    t_run_many(N, grow_or_zero, args);
    assert_true(atomic_load(&grown) > 0);
    assert_int_equal(t->len, N * 1000);
    for (unsigned i = 0; i < N * 1000; i++)
        assert_int_equal(t->bytes[i], i / 1000 % 4 == 3 ? 0 : 5);
    toy_free(t);
}

/* A store whose memory must be aligned to more than a block (the toy asserts that it is): each edge, short transfers, and requests that are cut. */
static void wide_memory(struct co *co, void *arg)
{
    enum { LEN = 64 * 512, MEM = 4096 };
    static const uint64_t shorts[] = { 0, MEM + 512, LEN }, most[] = { 0, MEM + 1024 };
    uint8_t *want = malloc(LEN), *got = malloc(LEN + 1), *b = aligned_alloc(MEM, LEN);
    for (unsigned k = 0; k < 6; k++) {
        struct toy *t = toy_new(LEN, 512, MEM);
        t->short_max = shorts[k % 3];
        t->s.lim.max_transfer = (uint32_t)most[k / 3];
        memset(want, 0, LEN);
        for (unsigned off = 0; off < 20 * 512; off += 300)
            for (unsigned len = 100; off + len <= LEN; len += 2311) {
                memset(b, (int)(off / 300 + len), len);
                memcpy(want + off, b, len);
                CHECK_EQ(stor_write_buf(co, &t->s, b, len, off, len % 2 ? STOR_FUA : 0), 0);
                memset(got, 1, len + 1);
                CHECK_EQ(stor_read_exact(co, &t->s, got, len, off), 0);
                CHECK(!memcmp(got, want + off, len) && got[len] == 1);
                CHECK_EQ(stor_read_exact(co, &t->s, b, round_up(len, 512), 0), 0);
                CHECK(!memcmp(b, want, len));
            }
        CHECK(!memcmp(t->bytes, want, LEN) && t->len == LEN);
        toy_free(t);
    }
    free(want);
    free(got);
    free(b);
}
static void test_wide_memory(void **state) { t_run(0, wide_memory, NULL); }

static void test_failing_read(void **state) { t_run(0, failing_read, NULL); }
static void test_failing_extension(void **state) { t_run(1, failing_extension, NULL); }

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sectors), cmocka_unit_test(test_aligned_beside_rmw), cmocka_unit_test(test_extending),
        cmocka_unit_test(test_extending_beside_aligned), cmocka_unit_test(test_passing_length_is_not_kept), cmocka_unit_test(test_failing_read),
        cmocka_unit_test(test_failing_extension), cmocka_unit_test(test_serial_growth), cmocka_unit_test(test_wide_memory),
    };
    return T_MAIN("rmw", tests);
}
