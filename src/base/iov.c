/* SPDX-License-Identifier: MIT
 *
 * iov.c: windows over lists of buffers.
 *
 * Purpose      Slicing, exporting, filling, copying and testing what a struct iov shows.
 * Owns         nothing; all lists and buffers are the caller's
 * Invariants   I1 skip_bytes < vec[0].iov_len unless len_bytes is 0; I2 the list holds at least skip + len bytes
 * Concurrency  any thread, as far as the buffers allow
 * Failure      none; ranges outside the window are bugs of the caller (asserted)
 * Tests        iov_test.c
 */
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "base/assert.h"
#include "base/iov.h"

/* Walks the pieces of a window: while (iov_piece(&v, &p, &n)) ... */
static bool iov_piece(struct iov *v, uint8_t **ret_p, size_t *ret_len)
{
    while (v->len_bytes) {
        INV(I2, v->cnt > 0);
        size_t n = v->vec->iov_len - v->skip_bytes;
        uint8_t *p = (uint8_t *)v->vec->iov_base + v->skip_bytes;
        if (n > v->len_bytes)
            n = (size_t)v->len_bytes;
        v->vec++;
        v->cnt--;
        v->skip_bytes = 0;
        v->len_bytes -= n;
        if (n) {
            *ret_p = p;
            *ret_len = n;
            return true;
        }
    }
    return false;
}

/* Leaves out empty elements at the front, so that I1 holds. */
static struct iov iov_settle(struct iov v)
{
    while (v.len_bytes && v.skip_bytes >= v.vec->iov_len) {
        v.skip_bytes -= v.vec->iov_len;
        v.vec++;
        INV(I2, v.cnt > 1);
        v.cnt--;
    }
    return v;
}

struct iov iov_of(const struct iovec *vec, size_t cnt)
{
    struct iov v = { vec, cnt, 0, 0 };
    for (size_t i = 0; i < cnt; i++)
        v.len_bytes += vec[i].iov_len;
    return iov_settle(v);
}

struct iov iov_slice(struct iov v, uint64_t off_bytes, uint64_t len_bytes)
{
    ASSERT(off_bytes <= v.len_bytes && len_bytes <= v.len_bytes - off_bytes);
    if (!len_bytes)
        return (struct iov){ v.vec, v.cnt, 0, 0 };
    uint64_t skip = v.skip_bytes + off_bytes;
    while (skip >= v.vec->iov_len) {
        skip -= v.vec->iov_len;
        v.vec++;
        INV(I2, v.cnt > 1);
        v.cnt--;
    }
    v.skip_bytes = (size_t)skip;
    v.len_bytes = len_bytes;
    return v;
}

size_t iov_count(struct iov v)
{
    uint8_t *p;
    size_t n, cnt = 0;
    while (iov_piece(&v, &p, &n))
        cnt++;
    return cnt;
}

size_t iov_export(struct iov v, struct iovec *out, size_t max, uint64_t *ret_len)
{
    uint8_t *p;
    size_t n, cnt = 0;
    uint64_t len = 0;
    while (cnt < max && iov_piece(&v, &p, &n)) {
        out[cnt++] = (struct iovec){ p, n };
        len += n;
    }
    if (ret_len)
        *ret_len = len;
    return cnt;
}

void iov_set(struct iov v, uint8_t byte)
{
    uint8_t *p;
    size_t n;
    while (iov_piece(&v, &p, &n))
        memset(p, byte, n);
}

void iov_from_buf(struct iov v, const void *buf, size_t len_bytes)
{
    const uint8_t *src = buf;
    uint8_t *p;
    size_t n;
    ASSERT(len_bytes <= v.len_bytes);
    v.len_bytes = len_bytes;
    while (iov_piece(&v, &p, &n)) {
        memcpy(p, src, n);
        src += n;
    }
}

void iov_to_buf(struct iov v, void *buf, size_t len_bytes)
{
    uint8_t *dst = buf, *p;
    size_t n;
    ASSERT(len_bytes <= v.len_bytes);
    v.len_bytes = len_bytes;
    while (iov_piece(&v, &p, &n)) {
        memcpy(dst, p, n);
        dst += n;
    }
}

bool iov_is_zero(struct iov v)
{
    uint8_t *p;
    size_t n;
    while (iov_piece(&v, &p, &n))
        if (!mem_is_zero(p, n))
            return false;
    return true;
}

bool iov_is_aligned(struct iov v, size_t mem_align)
{
    uint8_t *p;
    size_t n;
    ASSERT(mem_align && !(mem_align & (mem_align - 1)));
    while (iov_piece(&v, &p, &n))
        if (((uintptr_t)p | n) & (mem_align - 1))
            return false;
    return true;
}

typedef uint64_t vec16 __attribute__((vector_size(16), may_alias));

static inline vec16 load16(const uint8_t *p)
{
    vec16 v;
    memcpy(&v, p, sizeof v);
    return v;
}

#define STRIDE 256u      /* bytes between two looks at what was found: the look costs as much as four loads */

/* STRIDE bytes from an aligned place: being aligned, each is or'ed straight from memory. */
static inline bool stride_is_zero(const uint8_t *p)
{
    const vec16 *v = __builtin_assume_aligned(p, sizeof *v);
    vec16 a = v[0] | v[2] | v[4] | v[6] | v[8] | v[10] | v[12] | v[14];
    a |= v[1] | v[3] | v[5] | v[7] | v[9] | v[11] | v[13] | v[15];
    _Static_assert(STRIDE == 16 * sizeof *v, "as many as are named");
#ifdef __SSE2__
    return _mm_movemask_epi8(_mm_cmpeq_epi8((__m128i)a, _mm_setzero_si128())) == 0xffff;
#else
    return !(a[0] | a[1]);
#endif
}

bool mem_is_zero(const void *buf, size_t len_bytes)
{
    const uint8_t *p = buf, *end = p + len_bytes;
    if (len_bytes < 16) {
        while (p < end)
            if (*p++)
                return false;
        return true;
    }
    vec16 ends = load16(p) | load16(end - 16);          /* most data shows at once that it is data */
    if (ends[0] | ends[1])
        return false;
    if (len_bytes <= 32)
        return true;
    p += 16 - ((uintptr_t)p & 15);                      /* what is skipped, and the rest behind the last whole word, was looked at */
    for (; (size_t)(end - p) >= STRIDE; p += STRIDE)
        if (!stride_is_zero(p))
            return false;
    for (; end - p >= 16; p += 16) {
        vec16 v = load16(p);
        if (v[0] | v[1])
            return false;
    }
    return true;
}
