/* SPDX-License-Identifier: MIT
 *
 * mem_test.c: the store in memory and the one that keeps nothing.
 *
 * Tests        mem.c, null.c
 */
#include "stor/stor_test.h"

#include <stdlib.h>
#include <string.h>

enum { SIZE = 1 << 20, CHUNK = 65536 };

static void random_requests(struct co *co, void *arg)
{
    struct stor *s;
    struct prng p;
    uint8_t *want = calloc(1, SIZE), *buf = malloc(SIZE);
    uint64_t len = 1000, now;
    prng_init(&p, 3);
    CHECK_EQ(stor_mem_new(co, "m", len, &s), 0);
    for (unsigned i = 0; i < 3000; i++) {
        uint64_t off = prng_below(&p, SIZE - 1), n = prng_range(&p, 1, prng_one_in(&p, 4) ? SIZE - off : min_u64(SIZE - off, 9000));
        struct iovec slot;
        switch (prng_below(&p, 6)) {
        case 0:
            CHECK_EQ(stor_zero(co, s, off, n, 0), 0);
            memset(want + off, 0, n);
            len = max_u64(len, off + n);
            break;
        case 1:
            CHECK_EQ(stor_truncate(co, s, off), 0);
            memset(want + off, 0, SIZE - off);
            len = off;
            break;
        case 2:
            CHECK_EQ(stor_discard(co, s, off, n), 0);
            if (off < len)
                memset(want + off, 0, min_u64(n, len - off));
            break;
        case 3:
            CHECK_EQ(stor_read(co, s, iov_one(&slot, buf, n), off), 0);
            CHECK(!memcmp(buf, want + off, n));
            break;
        default:
            prng_fill(&p, buf, n);
            memcpy(want + off, buf, n);
            CHECK_EQ(stor_write_buf(co, s, buf, n, off, prng_one_in(&p, 3) ? STOR_FUA : 0), 0);
            len = max_u64(len, off + n);
        }
        CHECK_EQ(stor_length(co, s, &now), 0);
        if (!CHECK_EQ(now, len))
            break;
    }
    struct iovec slot;
    CHECK_EQ(stor_read(co, s, iov_one(&slot, buf, SIZE), 0), 0);
    CHECK(!memcmp(buf, want, SIZE));
    CHECK_EQ(stor_flush(co, s), 0);
    stor_close(co, s);
    free(want);
    free(buf);
}

static void holes(struct co *co, void *arg)
{
    struct stor *s;
    struct stor_extent e;
    uint64_t bytes;
    CHECK_EQ(stor_mem_new(co, "m", (uint64_t)INT64_MAX, &s), 0);
    CHECK_EQ(stor_extent(co, s, 0, (uint64_t)INT64_MAX, &e), 0);
    CHECK(e.content == STOR_HOLE && e.len == (uint64_t)INT64_MAX);
    CHECK_EQ(stor_write_buf(co, s, "x", 1, 1ull << 50, 0), 0);
    CHECK_EQ(stor_write_buf(co, s, "x", 1, (1ull << 50) + CHUNK, 0), 0);
    CHECK_EQ(stor_extent(co, s, 5, (uint64_t)INT64_MAX - 5, &e), 0);
    CHECK(e.content == STOR_HOLE && e.off == 5 && e.len == (1ull << 50) - 5);
    CHECK_EQ(stor_extent(co, s, (1ull << 50) + 10, 1ull << 40, &e), 0);
    CHECK(e.content == STOR_DATA && e.len == 2 * CHUNK - 10);
    CHECK_EQ(stor_allocated(co, s, &bytes), 0);
    CHECK_EQ(bytes, 2 * CHUNK);
    CHECK_EQ(stor_zero(co, s, 0, (uint64_t)INT64_MAX, 0), 0);
    CHECK_EQ(stor_allocated(co, s, &bytes), 0);
    CHECK_EQ(bytes, 0);
    CHECK_EQ(stor_preallocate(co, s, 0, 1), -ENOTSUP);
    CHECK_EQ(stor_lock(co, s, STOR_PERM_ALL, 0, NULL), 0);
    uint64_t a, b;
    CHECK(!stor_file_identity(s, &a, &b));
    stor_close(co, s);
    CHECK_EQ(stor_mem_new(co, "m", (uint64_t)INT64_MAX + 1, &s), -EINVAL);
}

static void null_store(struct co *co, void *arg)
{
    struct stor_null_opts o = { .len = 10000, .latency_ns = 5000000, .read_zeroes = true };
    struct stor *s;
    struct stor_extent e;
    uint8_t b[100];
    memset(b, 7, sizeof b);
    CHECK_EQ(stor_null_new(co, &o, &s), 0);
    uint64_t before = rt_now(co_loop(co));
    CHECK_EQ(stor_read_exact(co, s, b, 100, 0), 0);
    CHECK(rt_now(co_loop(co)) - before >= 5000000);
    CHECK(mem_is_zero(b, 100));
    CHECK_EQ(stor_read_exact(co, s, b, 100, 9999), -EIO);
    CHECK_EQ(stor_write_buf(co, s, b, 100, 0, STOR_FUA), 0);
    CHECK_EQ(stor_flush(co, s), 0);
    CHECK_EQ(stor_extent(co, s, 0, 10000, &e), 0);
    CHECK(e.content == STOR_HOLE && e.len == 10000);
    stor_close(co, s);
    o = (struct stor_null_opts){ .len = 10000 };
    memset(b, 7, sizeof b);
    CHECK_EQ(stor_null_new(co, &o, &s), 0);
    CHECK_EQ(stor_read_exact(co, s, b, 100, 0), 0);
    CHECK(mem_is_zero(b, 100));                  /* no old memory for whoever asks */
    CHECK_EQ(stor_extent(co, s, 0, 10000, &e), 0);
    CHECK(e.content == STOR_DATA);
    stor_close(co, s);
}

static void test_random(void **state) { t_run(0, random_requests, NULL); }
static void test_holes(void **state) { t_run(1, holes, NULL); }
static void test_null(void **state) { t_run(0, null_store, NULL); }

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random), cmocka_unit_test(test_holes), cmocka_unit_test(test_null),
    };
    return T_MAIN("mem", tests);
}
