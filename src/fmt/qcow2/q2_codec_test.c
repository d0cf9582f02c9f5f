/* SPDX-License-Identifier: MIT
 *
 * q2_codec_test.c: streams as writers make them, with foreign bytes behind them, cut, endless or hostile.
 *
 * Purpose      Exactly one cluster comes out or -EIO; not one byte beyond.
 * Owns         Nothing.
 * Invariants   None.
 * Concurrency  None.
 * Failure      A failed assertion fails the test.
 * Tests        This is one.
 */
#include "base/test.h"

#include <libdeflate.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "base/prng.h"
#include "fmt/qcow2/q2_image.h"

#define GUARD 64u

/* Half noise, half pattern: compresses to roughly a half. */
static uint8_t *content(size_t len, uint64_t seed)
{
    struct prng r;
    uint8_t *p = malloc(len);
    prng_init(&r, seed);
    prng_fill(&r, p, len / 2);
    for (size_t i = len / 2; i < len; i++)
        p[i] = (uint8_t)(i / 37);
    return p;
}

/* Decompresses into a guarded buffer and compares. */
static int decode(uint8_t type, const uint8_t *in, size_t in_len, size_t cluster, const uint8_t *want)
{
    uint8_t *exact = malloc(in_len ? in_len : 1), *out = malloc(cluster + GUARD);
    memcpy(exact, in, in_len);
    memset(out, 0xee, cluster + GUARD);
    int rc = q2_decompress(NULL, type, exact, in_len, out, cluster);
    for (size_t i = cluster; i < cluster + GUARD; i++)
        assert_int_equal(out[i], 0xee);
    if (!rc && want)
        assert_memory_equal(out, want, cluster);
    free(exact);
    free(out);
    return rc;
}

static size_t deflate_raw(const uint8_t *in, size_t len, uint8_t *out, size_t cap, int window, int flush)
{
    z_stream z = { .next_in = (Bytef *)(uintptr_t)in, .avail_in = (uInt)len, .next_out = out, .avail_out = (uInt)cap };
    assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, -window, 8, Z_DEFAULT_STRATEGY), Z_OK);
    int rc = deflate(&z, flush);
    assert_true(rc == Z_STREAM_END || rc == Z_OK);
    size_t n = cap - z.avail_out;
    deflateEnd(&z);
    return n;
}

/* Windows of 4 and 32 KiB, libdeflate's own streams; junk behind; cut short. */
static void deflate_streams(void **state)
{
    for (unsigned bits = 9; bits <= 21; bits++) {
        size_t cluster = 1u << bits, cap = cluster * 2 + 4096;
        uint8_t *data = content(cluster, bits), *comp = malloc(cap);
        for (int window = 12; window <= 15; window += 3) {
            size_t n = deflate_raw(data, cluster, comp, cap, window, Z_FINISH);
            assert_int_equal(decode(0, comp, n, cluster, data), 0);
            memset(comp + n, 0xa5, 600);
            assert_int_equal(decode(0, comp, n + 600, cluster, data), 0);
            assert_int_equal(decode(0, comp, n / 2, cluster, NULL), -EIO);
        }
        struct libdeflate_compressor *c = libdeflate_alloc_compressor(9);
        size_t n = libdeflate_deflate_compress(c, data, cluster, comp, cap);
        libdeflate_free_compressor(c);
        assert_true(n > 0);
        assert_int_equal(decode(0, comp, n, cluster, data), 0);
        free(data);
        free(comp);
    }
}

/* A stream without its end mark is good once the cluster is full; one that would go on is cut there; one that is too short is refused. */
static void deflate_odd_ends(void **state)
{
    size_t cluster = 65536, cap = 300000;
    uint8_t *data = content(cluster * 2, 7), *comp = malloc(cap);
    size_t n = deflate_raw(data, cluster, comp, cap, 12, Z_SYNC_FLUSH);
    assert_int_equal(decode(0, comp, n, cluster, data), 0);
    n = deflate_raw(data, cluster * 2, comp, cap, 12, Z_FINISH);
    assert_int_equal(decode(0, comp, n, cluster, data), 0);
    n = deflate_raw(data, cluster - 1, comp, cap, 12, Z_FINISH);
    assert_int_equal(decode(0, comp, n, cluster, NULL), -EIO);
    n = deflate_raw(data, cluster, comp, cap, 12, Z_FINISH);
    comp[n / 3] ^= 0x10;
    int rc = decode(0, comp, n, cluster, NULL);
    assert_true(rc == 0 || rc == -EIO);
    free(data);
    free(comp);
}

static size_t frame(uint8_t *out, size_t cap, const uint8_t *in, size_t len)
{
    size_t n = ZSTD_compress(out, cap, in, len, 3);
    assert_false(ZSTD_isError(n));
    return n;
}

static void zstd_frames(void **state)
{
    for (unsigned bits = 9; bits <= 21; bits++) {
        size_t cluster = 1u << bits, cap = cluster * 2 + 8192;
        uint8_t *data = content(cluster, bits), *comp = malloc(cap);
        size_t n = frame(comp, cap, data, cluster);
        assert_int_equal(decode(1, comp, n, cluster, data), 0);
        memset(comp + n, 0, 700);                                  /* padding */
        assert_int_equal(decode(1, comp, n + 700, cluster, data), 0);
        memset(comp + n, 0xa5, 700);                               /* another cluster's bytes */
        assert_int_equal(decode(1, comp, n + 700, cluster, data), 0);
        assert_int_equal(decode(1, comp, n - 8, cluster, NULL), -EIO);
        n = frame(comp, cap, data, cluster / 4);                   /* several frames */
        n += frame(comp + n, cap - n, data + cluster / 4, cluster / 2);
        n += frame(comp + n, cap - n, data + cluster / 4 * 3, cluster / 4);
        assert_int_equal(decode(1, comp, n + 100, cluster, data), 0);
        free(data);
        free(comp);
    }
}

/* Skippable and empty frames make no output: they must not make the decoder loop. */
static void zstd_no_progress(void **state)
{
    uint8_t comp[8192], skip[8] = { 0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0 };
    size_t n = 0;
    while (n + sizeof skip <= sizeof comp) {
        memcpy(comp + n, skip, sizeof skip);
        n += sizeof skip;
    }
    assert_int_equal(decode(1, comp, n, 65536, NULL), -EIO);
    for (n = 0; n + 64 < sizeof comp;)
        n += frame(comp + n, sizeof comp - n, comp, 0);
    assert_int_equal(decode(1, comp, n, 65536, NULL), -EIO);
    memset(comp, 0, sizeof comp);
    assert_int_equal(decode(1, comp, sizeof comp, 65536, NULL), -EIO);
}

/* A frame of more than the cluster is cut there; a frame that wants a window of many megabytes is not obeyed. */
static void zstd_large_frames(void **state)
{
    size_t cluster = 65536, cap = 1 << 20;
    uint8_t *data = content(cluster * 4, 9), *comp = malloc(cap);
    size_t n = frame(comp, cap, data, cluster);
    assert_int_equal(decode(1, comp, n, cluster, data), 0);
    uint8_t window[] = { 0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xb8 /* 2^33 */, 0x01, 0x00, 0x00 };
    assert_int_equal(decode(1, window, sizeof window, cluster, NULL), -EIO);
    free(data);
    free(comp);
}

static void noise(void **state)
{
    struct prng r;
    uint8_t in[2048];
    prng_init(&r, 4);
    for (int i = 0; i < 3000; i++) {
        size_t len = prng_below(&r, sizeof in);
        prng_fill(&r, in, len);
        if (i % 3 == 0 && len > 4)
            memcpy(in, "\x28\xb5\x2f\xfd", 4);
        int rc = decode(i & 1, in, len, 4096, NULL);
        assert_true(rc == 0 || rc == -EIO);
    }
    assert_int_equal(decode(0, in, 0, 4096, NULL), -EIO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(deflate_streams), cmocka_unit_test(deflate_odd_ends), cmocka_unit_test(zstd_frames),
        cmocka_unit_test(zstd_no_progress), cmocka_unit_test(zstd_large_frames), cmocka_unit_test(noise),
    };
    return cmocka_run_group_tests_name("q2_codec", tests, NULL, NULL);
}
