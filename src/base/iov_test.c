/* SPDX-License-Identifier: MIT
 *
 * iov_test.c: windows compared with a plain buffer under random cuts; mem_is_zero at every length and place.
 */
#include <stdlib.h>
#include <string.h>

#include "base/iov.h"
#include "base/prng.h"
#include "base/test.h"

enum { PIECES = 12, BYTES = 600 };

/* Cuts buf into pieces, some of them empty. */
static size_t random_pieces(struct prng *p, uint8_t *buf, size_t len, struct iovec *vec)
{
    size_t cnt = 0, at = 0;
    while (cnt < PIECES - 1) {
        size_t n = prng_one_in(p, 4) ? 0 : prng_below(p, 2 * len / PIECES + 1);
        if (n > len - at)
            n = len - at;
        vec[cnt++] = (struct iovec){ buf + at, n };
        at += n;
    }
    vec[cnt++] = (struct iovec){ buf + at, len - at };
    return cnt;
}

static void window_shows_the_bytes(void **state)
{
    struct prng p;
    prng_init(&p, 1);
    for (int round = 0; round < 3000; round++) {
        uint8_t mem[BYTES], flat[BYTES], got[BYTES];
        struct iovec vec[PIECES], out[PIECES];
        prng_fill(&p, mem, sizeof mem);
        memcpy(flat, mem, sizeof flat);
        struct iov v = iov_of(vec, random_pieces(&p, mem, BYTES, vec));
        assert_int_equal(v.len_bytes, BYTES);
        uint64_t off = 0;
        for (int cut = 0; cut < 3; cut++) {     /* a slice of a slice of a slice */
            uint64_t o = prng_below(&p, v.len_bytes + 1), n = prng_below(&p, v.len_bytes - o + 1);
            v = iov_slice(v, o, n);
            off += o;
            assert_int_equal(v.len_bytes, n);
            assert_true(n == 0 || v.skip_bytes < v.vec->iov_len);
        }
        size_t n = (size_t)v.len_bytes;
        iov_to_buf(v, got, n);
        assert_memory_equal(got, flat + off, n);

        uint64_t covered;
        size_t cnt = iov_count(v), max = prng_below(&p, PIECES + 1), seen = 0;
        size_t wrote = iov_export(v, out, max, &covered);
        assert_int_equal(wrote, max < cnt ? max : cnt);
        for (size_t i = 0; i < wrote; i++) {
            assert_true(out[i].iov_len > 0);
            assert_memory_equal(out[i].iov_base, flat + off + seen, out[i].iov_len);
            seen += out[i].iov_len;
        }
        assert_int_equal(seen, covered);
        assert_true(wrote < cnt || covered == n);

        size_t part = prng_below(&p, n + 1);
        prng_fill(&p, got, n);
        iov_from_buf(v, got, part);
        memcpy(flat + off, got, part);
        assert_memory_equal(mem, flat, BYTES);
        iov_set(v, 0x5a);
        memset(flat + off, 0x5a, n);
        assert_memory_equal(mem, flat, BYTES);
        assert_int_equal(iov_is_zero(v), n == 0);
        iov_set(v, 0);
        assert_true(iov_is_zero(v));
        if (n) {
            mem[off + prng_below(&p, n)] = 1;
            assert_false(iov_is_zero(v));
        }
    }
}

static void one_buffer(void **state)
{
    uint8_t buf[16] = "0123456789abcde";
    struct iovec slot;
    struct iov v = iov_slice(iov_one(&slot, buf, 16), 4, 6);
    char out[7] = { 0 };
    iov_to_buf(v, out, 6);
    assert_string_equal(out, "456789");
    assert_int_equal(iov_count(iov_slice(v, 6, 0)), 0);
    assert_int_equal(iov_of(NULL, 0).len_bytes, 0);
    struct iovec empty[3] = { { buf, 0 }, { buf, 0 }, { buf, 0 } };
    assert_int_equal(iov_count(iov_of(empty, 3)), 0);
}

static void alignment(void **state)
{
    _Alignas(64) uint8_t buf[256];
    struct iovec vec[2] = { { buf, 64 }, { buf + 128, 128 } };
    struct iov v = iov_of(vec, 2);
    assert_true(iov_is_aligned(v, 64));
    assert_false(iov_is_aligned(v, 128));
    assert_true(iov_is_aligned(v, 1));
    assert_false(iov_is_aligned(iov_slice(v, 1, 64), 2));
    assert_true(iov_is_aligned(iov_slice(v, 32, 32), 32));
}

static void zero_detection(void **state)
{
    enum { MAX = 700 };
    uint8_t *buf = calloc(1, MAX + 64);
    for (size_t shift = 0; shift < 17; shift++) {
        for (size_t len = 0; len <= 300; len++) {
            assert_true(mem_is_zero(buf + shift, len));
            buf[shift + len] = 1;                               /* just behind: must not count */
            if (shift)
                buf[shift - 1] = 1;
            assert_true(mem_is_zero(buf + shift, len));
            buf[shift + len] = 0;
            if (shift)
                buf[shift - 1] = 0;
        }
        for (size_t at = 0; at < MAX; at++) {
            buf[shift + at] = 0x80;
            assert_false(mem_is_zero(buf + shift, MAX));
            assert_false(mem_is_zero(buf + shift, at + 1));
            assert_true(mem_is_zero(buf + shift, at));
            buf[shift + at] = 0;
        }
    }
    free(buf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(window_shows_the_bytes), cmocka_unit_test(one_buffer),
        cmocka_unit_test(alignment), cmocka_unit_test(zero_detection),
    };
    return cmocka_run_group_tests_name("base-iov", tests, NULL, NULL);
}
