/* SPDX-License-Identifier: MIT
 *
 * q2_codec.c: bytes of a compressed cluster -> one cluster.
 *
 * Purpose      Raw deflate and zstd, tolerant of what may follow the data in its last sector (1.064) and of streams
 *              that go on or are not ended once the cluster is full; never writes more than one cluster.
 * Owns         Nothing between calls.
 * Invariants   I1 Every loop step consumes input or produces output, so time is bounded by the two lengths.
 *              I2 Working memory is at most the codec's state and one window of one cluster.
 * Order        None: no I/O.
 * Concurrency  Pure; called on worker threads.
 * Failure      -EIO: the bytes do not make one whole cluster; -ENOMEM.
 * Tests        q2_codec_test.c
 */
#include <libdeflate.h>
#include <zlib.h>
#include <zstd.h>

#include "fmt/qcow2/q2_image.h"

/* The tolerant way: accepts any stream whose first cluster_bytes bytes can be made. */
static int inflate_slow(const void *in, size_t in_bytes, void *out, size_t cluster_bytes)
{
    z_stream z = { .next_in = (Bytef *)(uintptr_t)in, .avail_in = (uInt)in_bytes, .next_out = out, .avail_out = (uInt)cluster_bytes };
    if (inflateInit2(&z, -15) != Z_OK)
        return -ENOMEM;
    int rc = inflate(&z, Z_FINISH);
    bool full = z.avail_out == 0 && (rc == Z_STREAM_END || rc == Z_BUF_ERROR || rc == Z_OK);
    inflateEnd(&z);
    return full ? 0 : -EIO;
}

static int decompress_deflate(const void *in, size_t in_bytes, void *out, size_t cluster_bytes)
{
    struct libdeflate_decompressor *d = libdeflate_alloc_decompressor();
    if (!d)
        return -ENOMEM;
    size_t used, made;
    enum libdeflate_result rc = libdeflate_deflate_decompress_ex(d, in, in_bytes, out, cluster_bytes, &used, &made);
    libdeflate_free_decompressor(d);
    if (rc == LIBDEFLATE_SUCCESS)
        return made == cluster_bytes ? 0 : -EIO;
    return inflate_slow(in, in_bytes, out, cluster_bytes);
}

/* The tolerant way: frames that are cut, or that would go on behind the cluster. */
static int unzstd_slow(ZSTD_DCtx *d, const void *in, size_t in_bytes, void *out, size_t cluster_bytes)
{
    ZSTD_inBuffer src = { in, in_bytes, 0 };
    ZSTD_outBuffer dst = { out, cluster_bytes, 0 };
    int window = 63 - __builtin_clzll(cluster_bytes | 1024);
    ZSTD_DCtx_reset(d, ZSTD_reset_session_and_parameters);
    if (ZSTD_isError(ZSTD_DCtx_setParameter(d, ZSTD_d_windowLogMax, window)))
        return -EIO;
    while (dst.pos < dst.size) {
        size_t in_before = src.pos, out_before = dst.pos;
        size_t rc = ZSTD_decompressStream(d, &dst, &src);
        if (ZSTD_isError(rc) || (src.pos == in_before && dst.pos == out_before))
            return -EIO;
    }
    return 0;
}

static int decompress_zstd(const uint8_t *in, size_t in_bytes, uint8_t *out, size_t cluster_bytes)
{
    ZSTD_DCtx *d = ZSTD_createDCtx();
    if (!d)
        return -ENOMEM;
    size_t from = 0, made = 0;
    while (made < cluster_bytes && from < in_bytes) {
        /* A frame at a time, so that padding behind the last one is never looked at. */
        size_t frame = ZSTD_findFrameCompressedSize(in + from, in_bytes - from);
        if (ZSTD_isError(frame) || !frame)
            break;
        size_t n = ZSTD_decompressDCtx(d, out + made, cluster_bytes - made, in + from, frame);
        if (ZSTD_isError(n))
            break;
        from += frame;
        made += n;
    }
    int rc = made == cluster_bytes ? 0 : unzstd_slow(d, in, in_bytes, out, cluster_bytes);
    ZSTD_freeDCtx(d);
    return rc;
}

int q2_decompress(uint8_t type, const void *in, size_t in_bytes, void *out, size_t cluster_bytes)
{
    if (!in_bytes)
        return -EIO;
    return type ? decompress_zstd(in, in_bytes, out, cluster_bytes) : decompress_deflate(in, in_bytes, out, cluster_bytes);
}
