/* SPDX-License-Identifier: MIT
 *
 * stor_gate_test.c: what every store gets from the gate, shown on a toy store with strict limits.
 *
 * Purpose      Ranges, splitting, short transfers, ends of stores, bouncing, zeroing, discards, extents.
 * Tests        stor.c, stor_write.c. FEATURES 3.012, 11.023, 11.024, G.060
 */
#include "stor/stor_test.h"

#include <stdlib.h>
#include <string.h>

enum { SIZE = 1 << 20 };

static void fill(uint8_t *buf, size_t len, uint64_t seed)
{
    struct prng p;
    prng_init(&p, seed);
    prng_fill(&p, buf, len);
}

static void ranges(struct co *co, void *arg)
{
    struct toy *t = toy_new(4096, 1, 1);
    uint8_t b[16] = { 0 };
    struct iovec slot;
    struct stor_extent e;
    CHECK_EQ(stor_read(co, &t->s, iov_one(&slot, b, 16), UINT64_MAX - 7), -EINVAL);
    CHECK_EQ(stor_read(co, &t->s, iov_one(&slot, b, 16), (uint64_t)INT64_MAX - 15), -EINVAL);
    CHECK_EQ(stor_read(co, &t->s, iov_one(&slot, b, 16), (uint64_t)INT64_MAX - 16), 0);
    CHECK_EQ(stor_write_buf(co, &t->s, b, 16, UINT64_MAX - 7, 0), -EINVAL);
    CHECK_EQ(stor_zero(co, &t->s, UINT64_MAX, 1, 0), -EINVAL);
    CHECK_EQ(stor_discard(co, &t->s, UINT64_MAX, 1), -EINVAL);
    CHECK_EQ(stor_extent(co, &t->s, UINT64_MAX, 1, &e), -EINVAL);
    CHECK_EQ(stor_extent(co, &t->s, 0, 0, &e), -EINVAL);
    CHECK_EQ(stor_truncate(co, &t->s, (uint64_t)INT64_MAX + 1), -EINVAL);
    CHECK_EQ(stor_preallocate(co, &t->s, 0, 1), -ENOTSUP);
    CHECK_EQ(stor_lock(co, &t->s, 16, 0, NULL), -EINVAL);
    CHECK_EQ(stor_write_buf(co, &t->s, b, 0, 100, 0), 0);
    CHECK_EQ(stor_zero(co, &t->s, 100, 0, 0), 0);
    CHECK_EQ(t->count[TOY_WRITE] + t->count[TOY_ZERO], 0);
    t->s.read_only = true;
    CHECK_EQ(stor_write_buf(co, &t->s, b, 16, 0, 0), -EROFS);
    CHECK_EQ(stor_zero(co, &t->s, 0, 16, 0), -EROFS);
    CHECK_EQ(stor_discard(co, &t->s, 0, 16), -EROFS);
    CHECK_EQ(stor_truncate(co, &t->s, 0), -EROFS);
    CHECK_EQ(stor_copy(co, &t->s, 0, &t->s, 0, 1), -EROFS);
    stor_close(co, &t->s);
    stor_close(co, NULL);
}

static void splitting(struct co *co, void *arg)
{
    struct toy *t = toy_new(SIZE, 1, 1);
    uint8_t *a = malloc(SIZE), *b = malloc(SIZE);
    fill(a, SIZE, 1);
    t->s.lim.max_transfer = 10000;
    t->short_max = 7777;
    CHECK_EQ(stor_write_buf(co, &t->s, a, 300001, 17, 0), 0);
    CHECK(t->longest == 10000);
    CHECK_EQ(stor_read_exact(co, &t->s, b, 300001, 17), 0);
    CHECK(!memcmp(a, b, 300001));
    CHECK(!memcmp(t->bytes + 17, a, 300001));
    CHECK_EQ(t->count[TOY_WRITE], 39);    /* 300001 in steps of 7777 */
    free(a);
    free(b);
    toy_free(t);
}

static int zero_bytes_hook(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    t->full_at = UINT64_MAX;
    t->short_max = off >= 8192 ? 1 : 4096;       /* one byte of a block counts as nothing */
    return 0;
}

static void failing_writes(struct co *co, void *arg)
{
    struct toy *t = toy_new(SIZE, 1, 1);
    uint8_t *a = malloc(65536);
    memset(a, 7, 65536);
    t->full_at = 20000;
    CHECK_EQ(stor_write_buf(co, &t->s, a, 65536, 0, 0), -ENOSPC);
    CHECK(t->bytes[19999] == 7 && t->bytes[20000] == 0);
    toy_free(t);
    t = toy_new(SIZE, 512, 1);
    t->hook = zero_bytes_hook;
    CHECK_EQ(stor_write_buf(co, &t->s, a, 65536, 0, 0), -EIO);
    toy_free(t);
    free(a);
}

/* I5 */
static int answers_hook(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len) { return *(const int *)t->hook_arg; }

static void meanings(struct co *co, void *arg)
{
    static const int said[][2] = { { -EUCLEAN, -EIO }, { -ESTALE, -EIO }, { -ECANCELED, -EIO }, { -ENOSPC, -ENOSPC } };
    uint8_t *a = calloc(1, 8192);
    for (unsigned i = 0; i < sizeof said / sizeof said[0]; i++) {
        int answer = said[i][0], want = said[i][1];
        struct iovec slot;
        struct toy *t = toy_new(SIZE, 512, 1);
        t->hook = answers_hook;
        t->hook_arg = &answer;
        CHECK_EQ(stor_read(co, &t->s, iov_one(&slot, a, 8192), 0), want);
        CHECK_EQ(stor_read(co, &t->s, iov_one(&slot, a, 100), 300), want);
        CHECK_EQ(stor_read_exact(co, &t->s, a, 8192, 0), want);
        CHECK_EQ(stor_write_buf(co, &t->s, a, 8192, 0, 0), want);
        CHECK_EQ(stor_write_buf(co, &t->s, a, 100, 300, 0), want);
        CHECK_EQ(stor_zero(co, &t->s, 0, 8192, STOR_NO_FALLBACK), want);
        CHECK_EQ(stor_truncate(co, &t->s, 8192), want);
        CHECK_EQ(stor_flush(co, &t->s), want);               /* latched from here on */
        toy_free(t);
        t = toy_new(SIZE, 512, 1);
        t->hook = answers_hook;
        t->hook_arg = &answer;
        CHECK_EQ(stor_write_buf(co, &t->s, a, 8192, 0, STOR_FUA), want);
        toy_free(t);
    }
    free(a);
}

static void ends(struct co *co, void *arg)
{
    for (uint32_t block = 1; block <= 4096; block = block == 1 ? 512 : block * 8) {
        struct toy *t = toy_new(10001, block, block);
        uint8_t *a = malloc(30000), *b = malloc(30000);
        struct iovec slot;
        fill(t->bytes, 10001, 2);
        memset(a, 0, 30000);
        memcpy(a, t->bytes, 10001);
        memset(b, 0xee, 30000);
        CHECK_EQ(stor_read(co, &t->s, iov_one(&slot, b, 30000), 0), 0);
        CHECK(!memcmp(a, b, 30000));
        for (uint64_t off = 9000; off < 12000; off += 77) {
            memset(b, 0xee, 500);
            CHECK_EQ(stor_read(co, &t->s, iov_one(&slot, b, 500), off), 0);
            CHECK(!memcmp(b, a + off, 500));
            CHECK_EQ(stor_read_exact(co, &t->s, b, 500, off), off + 500 <= 10001 ? 0 : -EIO);
        }
        CHECK_EQ(stor_read_exact(co, &t->s, b, 1, 10000), 0);
        CHECK_EQ(stor_read_exact(co, &t->s, b, 1, 10001), -EIO);
        CHECK_EQ(stor_read_exact(co, &t->s, b, 0, 10001), 0);
        free(a);
        free(b);
        toy_free(t);
    }
}

/* Random requests, one after the other, from misaligned buffers in several pieces, against a plain array. */
static void model(struct co *co, void *arg)
{
    uint32_t block = *(uint32_t *)arg;
    struct toy *t = toy_new(100000, block, block < 512 ? 1 : 512);
    struct prng p;
    uint8_t *want = calloc(1, SIZE), *buf = malloc(SIZE), *back = malloc(SIZE);
    uint64_t len = 100000;
    prng_init(&p, block);
    t->s.lim.max_transfer = 64 * 1024;
    t->s.lim.zero_block = 1024;
    for (unsigned i = 0; i < 1500; i++) {
        uint64_t off = prng_below(&p, 600000), n = prng_range(&p, 1, prng_one_in(&p, 4) ? 300000 : 6000);
        uint64_t cut = prng_below(&p, n + 1), now;
        struct iovec v[2] = { { buf + 1, cut }, { buf + 2 + cut, n - cut } };
        prng_fill(&p, buf, n + 4);
        switch (prng_below(&p, 4)) {
        case 0:
            CHECK_EQ(stor_zero(co, &t->s, off, n, prng_one_in(&p, 2) ? STOR_UNMAP : 0), 0);
            memset(want + off, 0, n);
            len = max_u64(len, off + n);
            break;
        case 1:
            CHECK_EQ(stor_read(co, &t->s, iov_of(v, 2), off), 0);
            iov_to_buf(iov_of(v, 2), back, n);
            CHECK(!memcmp(back, want + off, n));
            break;
        default:
            iov_to_buf(iov_of(v, 2), want + off, n);
            CHECK_EQ(stor_write(co, &t->s, iov_of(v, 2), off, 0), 0);
            len = max_u64(len, off + n);
        }
        CHECK_EQ(stor_length(co, &t->s, &now), 0);
        if (!CHECK_EQ(now, len) || !CHECK(!memcmp(t->bytes, want, SIZE)))
            break;
    }
    free(want);
    free(buf);
    free(back);
    toy_free(t);
}

static void zeroing(struct co *co, void *arg)
{
    struct toy *t = toy_new(SIZE, 1, 1);
    t->s.lim.zero_block = 4096;
    memset(t->bytes, 1, SIZE);
    CHECK_EQ(stor_zero(co, &t->s, 100, 20000, STOR_NO_FALLBACK), 0);
    CHECK(t->bytes[99] == 1 && mem_is_zero(t->bytes + 100, 20000) && t->bytes[20100] == 1);
    CHECK_EQ(t->count[TOY_ZERO], 1);
    CHECK_EQ(t->count[TOY_WRITE], 2);
    CHECK_EQ(stor_zero(co, &t->s, 30000, 200, STOR_NO_FALLBACK), -ENOTSUP);   /* no whole block in it */
    CHECK_EQ(stor_zero(co, &t->s, 30000, 200, 0), 0);
    CHECK(t->bytes[29999] == 1 && mem_is_zero(t->bytes + 30000, 200) && t->bytes[30200] == 1);
    t->no_zero = true;
    CHECK_EQ(stor_zero(co, &t->s, 40000, 100000, STOR_NO_FALLBACK), -ENOTSUP);
    CHECK(t->bytes[40000] == 1 && t->bytes[139999] == 1);
    t->longest = 0;
    CHECK_EQ(stor_zero(co, &t->s, 1, SIZE + (2u << 20), 0), 0);
    CHECK(t->bytes[0] == 1 && mem_is_zero(t->bytes + 1, SIZE + (2u << 20)));
    CHECK(t->longest <= 1u << 20);
    CHECK_EQ(t->len, 1 + SIZE + (2u << 20));
    toy_free(t);
}

static void zero_durably(struct co *co, void *arg)
{
    struct toy *t = toy_new(SIZE, 1, 1);
    CHECK_EQ(stor_zero(co, &t->s, 0, 8192, STOR_FUA), 0);
    CHECK_EQ(t->count[TOY_FLUSH], 1);
    t->s.no_flush = true;
    CHECK_EQ(stor_zero(co, &t->s, 0, 8192, STOR_FUA), 0);
    CHECK_EQ(t->count[TOY_FLUSH], 1);
    toy_free(t);
}

static int fail_extent(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len)
{
    return op == TOY_EXTENT ? -EIO : op == TOY_DISCARD ? *(int *)t->hook_arg : 0;
}

/* FEATURES 11.023 */
static void discards(struct co *co, void *arg)
{
    struct toy *t = toy_new(SIZE, 512, 1);
    int answer = -ENOTSUP;
    t->s.lim.zero_block = 4096;
    memset(t->bytes, 1, SIZE);
    t->s.discard_ok = false;
    CHECK_EQ(stor_discard(co, &t->s, 0, SIZE), 0);
    CHECK_EQ(t->count[TOY_DISCARD], 0);
    t->s.discard_ok = true;
    CHECK_EQ(stor_discard(co, &t->s, 1, 8191), 0);
    CHECK(t->bytes[4095] == 1 && mem_is_zero(t->bytes + 4096, 4096) && t->bytes[8192] == 1);
    CHECK_EQ(stor_discard(co, &t->s, 4097, 4095), 0);
    CHECK_EQ(t->count[TOY_DISCARD], 1);
    t->hook = fail_extent;
    t->hook_arg = &answer;
    CHECK_EQ(stor_discard(co, &t->s, 0, 4096), 0);
    answer = -EIO;
    CHECK_EQ(stor_discard(co, &t->s, 0, 4096), -EIO);
    toy_free(t);
}

static void extents(struct co *co, void *arg)
{
    struct toy *t = toy_new(SIZE, 4096, 512);
    struct stor_extent e;
    int answer = 0;
    t->bytes[9000] = 1;                   /* data: bytes 8704 to 9216 */
    CHECK_EQ(stor_extent(co, &t->s, 0, SIZE, &e), 0);
    CHECK(e.content == STOR_HOLE && e.off == 0 && e.len == 8192);
    CHECK_EQ(stor_extent(co, &t->s, 8192, SIZE - 8192, &e), 0);
    CHECK(e.content == STOR_DATA && e.len == 4096);
    CHECK_EQ(stor_extent(co, &t->s, 8704, 600, &e), 0);
    CHECK(e.content == STOR_DATA && e.len == 600);
    CHECK_EQ(stor_extent(co, &t->s, 9216, 100, &e), 0);
    CHECK(e.content == STOR_HOLE && e.len == 100);
    t->hook = fail_extent;
    t->hook_arg = &answer;
    CHECK_EQ(stor_extent(co, &t->s, 0, SIZE, &e), 0);
    CHECK(e.content == STOR_DATA && e.off == 0 && e.len == SIZE);
    CHECK_EQ(stor_copy(co, &t->s, 0, &t->s, 4096, 4096), -ENOTSUP);
    toy_free(t);
}

#define RUN(fn, loop, arg) static void test_##fn(void **state) { t_run(loop, fn, arg); }
RUN(ranges, 0, NULL)
RUN(splitting, 1, NULL)
RUN(failing_writes, 0, NULL)
RUN(meanings, 0, NULL)
RUN(ends, 0, NULL)
RUN(zeroing, 1, NULL)
RUN(zero_durably, 0, NULL)
RUN(discards, 0, NULL)
RUN(extents, 0, NULL)

static void test_model(void **state)
{
    static uint32_t blocks[] = { 1, 512, 4096 };
    for (unsigned i = 0; i < 3; i++)
        t_run(i % 2, model, &blocks[i]);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranges), cmocka_unit_test(test_splitting), cmocka_unit_test(test_failing_writes), cmocka_unit_test(test_meanings),
        cmocka_unit_test(test_ends), cmocka_unit_test(test_model), cmocka_unit_test(test_zeroing),
        cmocka_unit_test(test_zero_durably), cmocka_unit_test(test_discards), cmocka_unit_test(test_extents),
    };
    return T_MAIN("gate", tests);
}
