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

typedef uint64_t vec16 __attribute__((vector_size(16)));

static inline vec16 load16(const uint8_t *p)
{
    vec16 v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline vec16 load64(const uint8_t *p)
{
    return load16(p) | load16(p + 16) | load16(p + 32) | load16(p + 48);
}

static inline uint64_t load8(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

bool mem_is_zero(const void *buf, size_t len_bytes)
{
    const uint8_t *p = buf, *end = p + len_bytes;
    if (len_bytes < 8) {
        while (p < end)
            if (*p++)
                return false;
        return true;
    }
    if (load8(p) | load8(end - 8))      /* most data shows at once that it is data */
        return false;
    for (; end - p >= 128; p += 128) {
        vec16 v = load64(p) | load64(p + 64);
        if (v[0] | v[1])
            return false;
    }
    for (; end - p >= 8; p += 8)
        if (load8(p))
            return false;
    return true;                        /* the last, partial word was covered by load8(end - 8) */
}
