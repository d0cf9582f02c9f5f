/* SPDX-License-Identifier: MIT
 *
 * q2_codec.c: bytes of a compressed cluster -> one cluster, and back.
 *
 * Purpose      Raw deflate and zstd. Reading is tolerant of what may follow the data in its last sector (1.064) and of
 *              streams that go on or are not ended once the cluster is full; never writes more than one cluster.
 * Owns         States of the libraries that wait to be used again, at most Q2_CODECS_KEPT of them (struct q2_codecs).
 * Invariants   I1 Every loop step consumes input or produces output, so time is bounded by the two lengths.
 *              I2 Working memory is at most the codec's state and one window of one cluster.
 *              I3 What is compressed here is one stream (one frame) that ends inside the room it was given.
 * Order        None: no I/O.
 * Concurrency  Called on worker threads; a state is used by one call at a time, the lock is held for taking and giving only.
 * Failure      -EIO: the bytes do not make one whole cluster; -ENOMEM.
 * Tests        q2_codec_test.c; tests/interop/test_compress.py: the peers read what is made here
 */
#include <libdeflate.h>
#include <pthread.h>
#include <stdlib.h>
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

/* ---- states ---- */

#define Q2_CODECS_KEPT 16u

struct q2_codec {
    struct q2_codec *next;
    struct libdeflate_decompressor *inflate;
    struct libdeflate_compressor *deflate;
    int deflate_level;
    ZSTD_CCtx *zstd;
    ZSTD_DCtx *unzstd;
};

struct q2_codecs { pthread_mutex_t lock; struct q2_codec *idle; unsigned count; };

static void codec_free(struct q2_codec *c)
{
    libdeflate_free_decompressor(c->inflate);
    libdeflate_free_compressor(c->deflate);
    ZSTD_freeCCtx(c->zstd);
    ZSTD_freeDCtx(c->unzstd);
    free(c);
}

int q2_codecs_new(struct q2_codecs **ret)
{
    struct q2_codecs *k = calloc(1, sizeof *k);
    if (!k || pthread_mutex_init(&k->lock, NULL)) {
        free(k);
        return -ENOMEM;
    }
    *ret = k;
    return 0;
}

void q2_codecs_free(struct q2_codecs *k)
{
    if (!k)
        return;
    while (k->idle) {
        struct q2_codec *c = k->idle;
        k->idle = c->next;
        codec_free(c);
    }
    pthread_mutex_destroy(&k->lock);
    free(k);
}

static struct q2_codec *codec_take(struct q2_codecs *k)
{
    struct q2_codec *c = NULL;
    if (k) {
        pthread_mutex_lock(&k->lock);
        c = k->idle;
        if (c) {
            k->idle = c->next;
            k->count--;
        }
        pthread_mutex_unlock(&k->lock);
    }
    return c ? c : calloc(1, sizeof *c);
}

static void codec_give(struct q2_codecs *k, struct q2_codec *c)
{
    bool kept = false;
    if (k) {
        pthread_mutex_lock(&k->lock);
        kept = k->count < Q2_CODECS_KEPT;
        if (kept) {
            c->next = k->idle;
            k->idle = c;
            k->count++;
        }
        pthread_mutex_unlock(&k->lock);
    }
    if (!kept)
        codec_free(c);
}

/* ---- reading ---- */

static int decompress_deflate(struct q2_codec *c, const uint8_t *in, size_t in_bytes, uint8_t *out, size_t cluster_bytes, size_t *ret_used)
{
    if (!c->inflate)
        c->inflate = libdeflate_alloc_decompressor();
    if (!c->inflate)
        return -ENOMEM;
    size_t used, made;
    enum libdeflate_result rc = libdeflate_deflate_decompress_ex(c->inflate, in, in_bytes, out, cluster_bytes, &used, &made);
    if (rc == LIBDEFLATE_SUCCESS) {
        *ret_used = used;
        return made == cluster_bytes ? 0 : -EIO;
    }
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

static int decompress_zstd(struct q2_codec *c, const uint8_t *in, size_t in_bytes, uint8_t *out, size_t cluster_bytes, size_t *ret_used)
{
    if (!c->unzstd)
        c->unzstd = ZSTD_createDCtx();
    if (!c->unzstd)
        return -ENOMEM;
    size_t from = 0, made = 0;
    while (made < cluster_bytes && from < in_bytes) {
        /* A frame at a time, so that padding behind the last one is never looked at. */
        size_t frame = ZSTD_findFrameCompressedSize(in + from, in_bytes - from);
        if (ZSTD_isError(frame) || !frame)
            break;
        size_t n = ZSTD_decompressDCtx(c->unzstd, out + made, cluster_bytes - made, in + from, frame);
        if (ZSTD_isError(n))
            break;
        from += frame;
        made += n;
    }
    if (made == cluster_bytes)
        *ret_used = from;
    return made == cluster_bytes ? 0 : unzstd_slow(c->unzstd, in, in_bytes, out, cluster_bytes);
}

int q2_decompress_used(struct q2_codecs *k, uint8_t type, const void *in, size_t in_bytes, void *out, size_t cluster_bytes, size_t *ret_used)
{
    if (!in_bytes)
        return -EIO;
    struct q2_codec *c = codec_take(k);
    if (!c)
        return -ENOMEM;
    *ret_used = in_bytes;
    int r = (type ? decompress_zstd : decompress_deflate)(c, in, in_bytes, out, cluster_bytes, ret_used);
    codec_give(k, c);
    return r;
}

int q2_decompress(struct q2_codecs *k, uint8_t type, const void *in, size_t in_bytes, void *out, size_t cluster_bytes)
{
    size_t used;
    return q2_decompress_used(k, type, in, in_bytes, out, cluster_bytes, &used);
}

/* ---- writing ---- */

/* Default levels. Deflate: the fastest that makes images no larger than the peer's; small clusters take more for that. */
#define DEFLATE_LEVEL(cluster_bytes) ((cluster_bytes) < 16384 ? 5 : 1)
#define DEFLATE_LEVEL_MAX 12
#define SMALL_WINDOW_LEVEL 6
#define SMALL_WINDOW_LEVEL_MAX 9
#define ZSTD_LEVEL 3
#define ZSTD_LEVEL_MAX 22

static int level_of(unsigned wanted, int normal, int most)
{
    return !wanted ? normal : wanted > (unsigned)most ? most : (int)wanted;
}

/* Matches reach back 4 KiB at most. The state is made anew: this is for images that go to readers with little memory. */
static int64_t deflate_small(int level, const void *in, size_t n, void *out, size_t room)
{
    z_stream z = { .next_in = (Bytef *)(uintptr_t)in, .avail_in = (uInt)n, .next_out = out, .avail_out = (uInt)room };
    if (deflateInit2(&z, level, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY) != Z_OK)
        return -ENOMEM;
    int rc = deflate(&z, Z_FINISH);
    size_t made = room - z.avail_out;
    (void)deflateEnd(&z);                        /* tells only that a stream was cut short */
    return rc == Z_STREAM_END ? (int64_t)made : 0;
}

static int64_t compress_deflate(struct q2_codec *c, const struct fmt_encoding *how, const void *in, size_t n, void *out, size_t room)
{
    if (how->small_window)
        return deflate_small(level_of(how->level, SMALL_WINDOW_LEVEL, SMALL_WINDOW_LEVEL_MAX), in, n, out, room);
    int level = level_of(how->level, DEFLATE_LEVEL(n), DEFLATE_LEVEL_MAX);
    if (c->deflate && c->deflate_level != level) {
        libdeflate_free_compressor(c->deflate);
        c->deflate = NULL;
    }
    if (!c->deflate)
        c->deflate = libdeflate_alloc_compressor(level);
    if (!c->deflate)
        return -ENOMEM;
    c->deflate_level = level;
    return (int64_t)libdeflate_deflate_compress(c->deflate, in, n, out, room);
}

static int64_t compress_zstd(struct q2_codec *c, const struct fmt_encoding *how, const void *in, size_t n, void *out, size_t room)
{
    if (!c->zstd)
        c->zstd = ZSTD_createCCtx();
    if (!c->zstd)
        return -ENOMEM;
    size_t made = ZSTD_compressCCtx(c->zstd, out, room, in, n, level_of(how->level, ZSTD_LEVEL, ZSTD_LEVEL_MAX));
    return ZSTD_isError(made) ? 0 : (int64_t)made;
}

int64_t q2_compress(struct q2_codecs *k, uint8_t type, const struct fmt_encoding *how, const void *in, size_t n, void *out, size_t room)
{
    struct q2_codec *c = codec_take(k);
    if (!c)
        return -ENOMEM;
    int64_t r = (type ? compress_zstd : compress_deflate)(c, how, in, n, out, room);
    codec_give(k, c);
    return r;
}
