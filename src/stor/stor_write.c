/* SPDX-License-Identifier: MIT
 *
 * stor_write.c: the gate's writes, zeroes and discards.
 *
 * Purpose      Turns any range into requests that the driver takes: whole blocks, in suitable memory, not longer than
 *              max_transfer; writes the rest of a short transfer; writes zeros where the driver cannot make them.
 * Owns         Nothing between calls.
 * Invariants   I1  The driver sees offsets and lengths that are multiples of limits.block, except at the last bytes
 *                  of its own choice (a short answer).
 *              I2  A sub-block write leaves the store exactly as long as max(length before, end of the write).
 * Order        None. FUA is asked from the driver; where a driver's durable write is not enough (the length was
 *              corrected after it), a flush follows.
 * Concurrency  Any loop. On stores with blocks every change holds its range in stor_order.c: shared when aligned,
 *              exclusive for a read-modify-write. One that reaches the end of the store holds everything behind it too,
 *              because it makes the store longer for a moment (whole block) and then cuts it back: an extending write
 *              of somebody else must not fall between the two. Truncation holds everything.
 *              On kernels where zeroing behind the end races with writes (traits.serial_growth) such zeroing holds
 *              everything as well.
 * Failure      -errno of the first request that failed; each block is old or new.
 * Tests        stor_gate_test.c, stor_rmw_test.c
 */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "stor/event.h"
#include "stor/stor_priv.h"

enum { ZEROS_BYTES = 32 * 1024, ZEROS_VECS = 32 };
static const _Alignas(4096) uint8_t zeros[ZEROS_BYTES];

/* Writes all of v, which is aligned in offset, length and memory. */
static int write_all(struct co *co, struct stor *s, struct iov v, uint64_t off, bool fua)
{
    uint64_t max = stor_step(s);
    for (uint64_t done = 0; done < v.len_bytes;) {
        struct iov part = iov_slice(v, done, min_u64(v.len_bytes - done, max));
        int64_t n = fua ? sync_fua_write(co, s, part, off + done) : s->ops->pwritev(co, s, part, off + done, 0);
        if (n < 0)
            return stor_answer(n);
        ASSERT((uint64_t)n <= part.len_bytes);
        n = (int64_t)stor_counts(s, v, done, round_down((uint64_t)n, s->lim.block));
        if (n == 0)
            return -EIO;
        done += (uint64_t)n;
    }
    return 0;
}

/* The same for any memory. */
static int write_blocks(struct co *co, struct stor *s, struct iov v, uint64_t off, bool fua)
{
    if (stor_mem_ok(s, v))
        return write_all(co, s, v, off, fua);
    uint64_t step = min_u64(v.len_bytes, stor_bounce_step(s));
    void *buf = stor_bounce_new(s, step);
    if (!buf)
        return -ENOMEM;
    int r = 0;
    for (uint64_t done = 0, n; done < v.len_bytes && r == 0; done += n) {
        struct iovec slot;
        n = min_u64(v.len_bytes - done, step);
        iov_to_buf(iov_slice(v, done, n), buf, n);
        r = write_all(co, s, iov_one(&slot, buf, n), off + done, fua);
    }
    free(buf);
    return r;
}

static int read_one_block(struct co *co, struct stor *s, uint8_t *buf, uint64_t off)
{
    struct iovec slot;
    uint64_t got;
    return stor_read_blocks(co, s, iov_one(&slot, buf, s->lim.block), off, &got);
}

/* The first or last block of a write. have: it was read already. By way of `spare` where it does not lie as the driver wants it. */
static int read_edge(struct co *co, struct stor *s, uint8_t *buf, uint8_t *spare, uint64_t off, bool last, bool have)
{
    stor_event(co, s, last ? STOR_EV_PWRITEV_RMW_TAIL : STOR_EV_PWRITEV_RMW_HEAD);
    uint8_t *to = (uintptr_t)buf % s->lim.mem_align ? spare : buf;
    int r = have ? 0 : read_one_block(co, s, to, off);
    if (!have && to != buf)
        memcpy(buf, to, s->lim.block);
    stor_event(co, s, last ? STOR_EV_PWRITEV_RMW_AFTER_TAIL : STOR_EV_PWRITEV_RMW_AFTER_HEAD);
    return r;
}

/* Read-modify-write of v at off; the caller holds the blocks exclusively. */
static int rmw_held(struct co *co, struct stor *s, struct iov v, uint64_t off, bool fua)
{
    uint64_t block = s->lim.block, end = off + v.len_bytes;
    uint64_t first = round_down(off, block), last = round_up(end, block);
    uint64_t step = min_u64(last - first, stor_bounce_step(s)), spare = round_up(step, max_u64(block, s->lim.mem_align));
    uint8_t *buf = stor_bounce_new(s, spare + block);
    if (!buf)
        return -ENOMEM;
    int r = 0;
    for (uint64_t pos = first, n; pos < last && r == 0; pos += n) {
        struct iovec slot;
        n = min_u64(last - pos, step);
        uint64_t from = max_u64(pos, off), to = min_u64(pos + n, end), tail = pos + n - block;
        if (pos < off)
            r = read_edge(co, s, buf, buf + spare, pos, false, false);
        if (r == 0 && end < pos + n)
            r = read_edge(co, s, buf + (tail - pos), buf + spare, tail, true, tail == pos && pos < off);
        if (r < 0)
            break;
        iov_to_buf(iov_slice(v, from - off, to - from), buf + (from - pos), to - from);
        r = write_all(co, s, iov_one(&slot, buf, n), pos, fua);
    }
    free(buf);
    return r;
}

/* Cuts the store back to `want` if whole blocks made it longer (I2). The caller holds everything behind. */
static int trim_length(struct co *co, struct stor *s, uint64_t want)
{
    uint64_t now;
    int r = stor_answer(s->ops->length(co, s, &now));
    if (r < 0 || now <= want)
        return r;
    return stor_answer(s->ops->truncate(co, s, want));
}

/* Does the store end before `last`, the end of the caller's exclusive hold?
 * Somebody who holds everything behind `last` may have made the store longer for a moment, so the length may be too
 * high to be kept. The answer is right all the same: such a writer's own blocks begin at or behind `last`, and if it
 * has made the store longer at all, it leaves it longer than that. */
static int reaches_end(struct co *co, struct stor *s, uint64_t last, bool *ret_yes)
{
    uint64_t length;
    int r = stor_answer(s->ops->length(co, s, &length));
    if (r < 0)
        return r;
    *ret_yes = last > length;
    if (!*ret_yes)
        stor_raise_known_len(s, last);
    return 0;
}

static int write_unaligned(struct co *co, struct stor *s, struct iov v, uint64_t off, bool fua)
{
    struct stor_order *o = &s->internal->order;
    uint64_t end = off + v.len_bytes, last = round_up(end, s->lim.block), length = UINT64_MAX;
    struct order_hold h = { .start = round_down(off, s->lim.block), .end = last };
    bool wide = false;
    int r = 0;
    order_enter(co, o, &h, true);
    if (s->traits.regular && last > atomic_load(&s->internal->known_len))
        r = reaches_end(co, s, last, &wide);
    if (wide) {
        /* With the wide hold the answer stays true, so this is not a loop. */
        order_leave(co, o, &h);
        h.end = UINT64_MAX;
        order_enter(co, o, &h, true);
        r = stor_length_held(co, s, &length);
    }
    if (r == 0)
        r = rmw_held(co, s, v, off, fua);
    if (wide && length != UINT64_MAX) {
        int r2 = trim_length(co, s, max_u64(length, end));
        r = r < 0 ? r : r2;
    }
    order_leave(co, o, &h);
    return r == 0 && wide && fua ? stor_flush(co, s) : r;
}

static int write_any(struct co *co, struct stor *s, struct iov v, uint64_t off, bool fua)
{
    if (!stor_is_ordered(s))
        return write_blocks(co, s, v, off, fua);
    if (!is_aligned(off | v.len_bytes, s->lim.block))
        return write_unaligned(co, s, v, off, fua);
    struct order_hold h = { .start = off, .end = off + v.len_bytes };
    order_enter(co, &s->internal->order, &h, false);
    int r = write_blocks(co, s, v, off, fua);
    order_leave(co, &s->internal->order, &h);
    return r;
}

int stor_write(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags)
{
    int r = stor_check_range(off, v.len_bytes);
    if (r < 0)
        return r;
    if (s->read_only)
        return -EROFS;
    bool fua = stor_wants_fua(s, flags);
    if (fua && stor_flush_latched(s))
        return -EIO;
    stor_tell_end(s, off + v.len_bytes);
    return v.len_bytes ? write_any(co, s, v, off, fua) : 0;
}

int stor_write_buf(struct co *co, struct stor *s, const void *buf, uint64_t len, uint64_t off, unsigned flags)
{
    struct iovec slot;
    return stor_write(co, s, iov_one(&slot, buf, len), off, flags);
}

static int write_zeros(struct co *co, struct stor *s, uint64_t off, uint64_t len)
{
    struct iovec vec[ZEROS_VECS];
    for (unsigned i = 0; i < ZEROS_VECS; i++)
        vec[i] = (struct iovec){ (void *)(uintptr_t)zeros, ZEROS_BYTES };
    struct iov all = iov_of(vec, ZEROS_VECS);
    int r = 0;
    for (uint64_t n; len && r == 0; off += n, len -= n) {
        n = min_u64(len, all.len_bytes - (off % ZEROS_BYTES));
        r = write_any(co, s, iov_slice(all, 0, n), off, false);
    }
    return r;
}

/* The driver's zeroing of an aligned range, under the hold that it needs. */
static int zero_driver(struct co *co, struct stor *s, uint64_t off, uint64_t len, unsigned flags)
{
    if (!s->ops->zero)
        return -ENOTSUP;
    if (!stor_is_ordered(s))
        return stor_answer(s->ops->zero(co, s, off, len, flags));
    struct order_hold h = { .start = off, .end = off + len };
    bool grows = false;
    int r = 0;
    if (s->traits.serial_growth) {
        uint64_t length;
        r = stor_answer(s->ops->length(co, s, &length));
        if (r < 0)
            return r;
        grows = h.end > length;
        if (grows)
            h = (struct order_hold){ .start = 0, .end = UINT64_MAX };
    }
    order_enter(co, &s->internal->order, &h, grows);
    r = stor_answer(s->ops->zero(co, s, off, len, flags));
    order_leave(co, &s->internal->order, &h);
    return r;
}

static uint64_t zero_unit(const struct stor *s)
{
    return max_u64(s->lim.block, s->lim.zero_block ? s->lim.zero_block : 1);
}

static int zero_any(struct co *co, struct stor *s, uint64_t off, uint64_t len, unsigned flags)
{
    uint64_t unit = zero_unit(s), end = off + len;
    uint64_t first = round_up(off, unit), last = round_down(end, unit);
    int r = first < last ? zero_driver(co, s, first, last - first, flags & (STOR_UNMAP | STOR_NO_FALLBACK | STOR_SLOW)) : -ENOTSUP;
    if (r == -ENOTSUP && !(flags & STOR_NO_FALLBACK))
        return write_zeros(co, s, off, len);
    if (r == 0 && off < first)
        r = write_zeros(co, s, off, first - off);
    if (r == 0 && last < end)
        r = write_zeros(co, s, last, end - last);
    return r;
}

int stor_zero(struct co *co, struct stor *s, uint64_t off, uint64_t len, unsigned flags)
{
    int r = stor_check_range(off, len);
    if (r < 0)
        return r;
    if (s->read_only)
        return -EROFS;
    bool fua = stor_wants_fua(s, flags);
    if (fua && stor_flush_latched(s))
        return -EIO;
    if (!len)
        return 0;
    stor_tell_end(s, off + len);
    r = zero_any(co, s, off, len, flags);
    return r == 0 && fua ? stor_flush(co, s) : r;
}

int stor_discard(struct co *co, struct stor *s, uint64_t off, uint64_t len)
{
    return s->discard_ok || s->read_only ? stor_punch(co, s, off, len) : stor_check_range(off, len);
}

int stor_punch(struct co *co, struct stor *s, uint64_t off, uint64_t len)
{
    int r = stor_check_range(off, len);
    if (r < 0)
        return r;
    if (s->read_only)
        return -EROFS;
    uint64_t first = round_up(off, zero_unit(s)), last = round_down(off + len, zero_unit(s));
    if (!s->ops->discard || first >= last)
        return 0;
    if (!stor_is_ordered(s)) {
        r = stor_answer(s->ops->discard(co, s, first, last - first));
    } else {
        struct order_hold h = { .start = first, .end = last };
        order_enter(co, &s->internal->order, &h, false);
        r = stor_answer(s->ops->discard(co, s, first, last - first));
        order_leave(co, &s->internal->order, &h);
    }
    return r == -ENOTSUP ? 0 : r;
}
