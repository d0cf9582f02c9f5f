/* SPDX-License-Identifier: MIT
 *
 * stor.c: the gate of the byte stores: life cycle, reads, and the calls that need little more than a check.
 *
 * Purpose      One place that every request passes: ranges are checked here and nowhere else, drivers see only what
 *              they said they can take, and what they answer is checked before anybody believes it.
 * Owns         struct stor_internal of each store.
 * Invariants   I1  No request leaves [0, 2^63).
 *              I2  A read fills all of its buffer: bytes of the store, or zeros behind its end.
 *              I3  known_len is never above the length that the store keeps: it is set from lengths that nobody can
 *                  take back (those that a write in progress has for a moment do not count), and truncation clears it
 *                  while it holds everything.
 * Order        None; see stor_sync.c.
 * Concurrency  Any loop, at the same time. Reads take no lock: a read beside a write of the same bytes may see either.
 * Failure      -errno of the driver. A failed lookup of an extent is an answer: "data".
 * Tests        stor_gate_test.c
 */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "stor/stor_priv.h"

int stor_init(struct stor *s, const struct stor_ops *ops, const char *name)
{
    char *copy = strdup(name ? name : "");
    struct stor_internal *in = aligned_alloc(_Alignof(struct stor_internal), sizeof *in);
    if (!copy || !in) {
        free(copy);
        free(in);
        return -ENOMEM;
    }
    sync_init(&in->sync);
    order_init(&in->order);
    atomic_init(&in->known_len, 0);
    atomic_init(&in->shares, 0);
    atomic_init(&in->holders, 1);
    *s = (struct stor){ .ops = ops, .lim = { .block = 1, .mem_align = 1, .opt_block = 512 }, .name = copy, .internal = in };
    return 0;
}

void stor_fini(struct stor *s)
{
    sync_fini(&s->internal->sync);
    order_fini(&s->internal->order);
    free(s->internal);
    free(s->name);
    s->internal = NULL;
    s->name = NULL;
}

int stor_check_range(uint64_t off, uint64_t len)
{
    uint64_t end;
    return add_overflows(off, len, &end) || end > STOR_MAX_END ? -EINVAL : 0;
}

void stor_watch_ends(struct stor *s, struct stor_end_watch *w) { atomic_store(&s->end_watch, w); }

bool stor_mem_ok(const struct stor *s, struct iov v)
{
    uint64_t base_mask = s->lim.mem_align - 1, len_mask = s->lim.block - 1;
    if (!(base_mask | len_mask))
        return true;
    uint64_t left = v.len_bytes, skip = v.skip_bytes;
    for (size_t i = 0; left; i++, skip = 0) {
        uint64_t n = min_u64(v.vec[i].iov_len - skip, left);
        if ((((uintptr_t)v.vec[i].iov_base + skip) & base_mask) || (n & len_mask))
            return false;
        left -= n;
    }
    return true;
}

uint64_t stor_counts(const struct stor *s, struct iov v, uint64_t done, uint64_t n)
{
    bool fine = s->lim.mem_align <= s->lim.block || done + n >= v.len_bytes || stor_mem_ok(s, iov_slice(v, done + n, v.len_bytes - done - n));
    return fine ? n : round_down(n, s->lim.mem_align);
}

void *stor_bounce_new(const struct stor *s, uint64_t len)
{
    void *p;
    size_t align = max_u64(max_u64(s->lim.mem_align, s->lim.block), sizeof(void *));
    return posix_memalign(&p, align, len) ? NULL : p;
}

/* ---- reads ---- */

/* A read ended at `pos`. Is that the end of the store (I2)? 1: yes. 0: another request has made it longer since, or a file
 * system answers badly: once more. -EIO: it ends there again, although it was known to be longer; zeros would be a lie.
 * *length: 0 at first. */
static int at_end(struct co *co, struct stor *s, uint64_t pos, uint64_t *length)
{
    uint64_t before = *length;
    int r = stor_answer(s->ops->length(co, s, length));
    if (r < 0)
        return r;
    return pos >= *length ? 1 : pos < before ? -EIO : 0;
}

int stor_read_blocks(struct co *co, struct stor *s, struct iov v, uint64_t off, uint64_t *ret_got)
{
    uint64_t done = 0, max = stor_step(s), length = 0;
    while (done < v.len_bytes) {
        struct iov part = iov_slice(v, done, min_u64(v.len_bytes - done, max));
        int64_t n = s->ops->preadv(co, s, part, off + done);
        if (n < 0)
            return stor_answer(n);
        ASSERT((uint64_t)n <= part.len_bytes);
        uint64_t counts = is_aligned((uint64_t)n, s->lim.block) ? stor_counts(s, v, done, (uint64_t)n) : 0;
        done += counts ? counts : (uint64_t)n;
        /* A part of a block comes only from the end of the store. */
        if (counts)
            continue;
        int r = at_end(co, s, off + done, &length);
        if (r < 0)
            return r;
        if (r)
            break;
        done -= (uint64_t)n - stor_counts(s, v, done - (uint64_t)n, round_down((uint64_t)n, s->lim.block));
    }
    if (done < v.len_bytes)
        iov_set(iov_slice(v, done, v.len_bytes - done), 0);
    *ret_got = done;
    return 0;
}

/* Any range, any memory, through a buffer of whole blocks. */
static int read_bounced(struct co *co, struct stor *s, struct iov v, uint64_t off, uint64_t *ret_got)
{
    uint64_t end = off + v.len_bytes, pos = round_down(off, s->lim.block), last = round_up(end, s->lim.block);
    uint64_t step = min_u64(last - pos, stor_bounce_step(s)), got = 0;
    uint8_t *buf = stor_bounce_new(s, step);
    if (!buf)
        return -ENOMEM;
    int r = 0;
    for (uint64_t n; pos < last; pos += n) {
        struct iovec slot;
        uint64_t have;
        n = min_u64(last - pos, step);
        r = stor_read_blocks(co, s, iov_one(&slot, buf, n), pos, &have);
        if (r < 0)
            break;
        uint64_t from = max_u64(pos, off), to = min_u64(pos + n, end);
        iov_from_buf(iov_slice(v, from - off, to - from), buf + (from - pos), to - from);
        if (pos + have > from)
            got = min_u64(pos + have, to) - off;
    }
    free(buf);
    *ret_got = got;
    return r;
}

static int read_any(struct co *co, struct stor *s, struct iov v, uint64_t off, uint64_t *ret_got)
{
    int r = stor_check_range(off, v.len_bytes);
    *ret_got = 0;
    if (r < 0 || !v.len_bytes)
        return r;
    if (is_aligned(off | v.len_bytes, s->lim.block) && stor_mem_ok(s, v))
        return stor_read_blocks(co, s, v, off, ret_got);
    return read_bounced(co, s, v, off, ret_got);
}

int stor_read(struct co *co, struct stor *s, struct iov v, uint64_t off)
{
    uint64_t got;
    return read_any(co, s, v, off, &got);
}

int stor_read_exact(struct co *co, struct stor *s, void *buf, uint64_t len, uint64_t off)
{
    struct iovec slot;
    uint64_t got;
    int r = read_any(co, s, iov_one(&slot, buf, len), off, &got);
    return r < 0 ? r : got < len ? -EIO : 0;
}

/* ---- length ---- */

int stor_length_held(struct co *co, struct stor *s, uint64_t *ret_len)
{
    uint64_t len;
    int r = stor_answer(s->ops->length(co, s, &len));
    if (r < 0)
        return r;
    if (len > STOR_MAX_END)
        return -EFBIG;
    atomic_store(&s->internal->known_len, len);
    *ret_len = len;
    return 0;
}

int stor_length(struct co *co, struct stor *s, uint64_t *ret_len)
{
    if (!stor_is_ordered(s))
        return stor_length_held(co, s, ret_len);
    /* Behind every request: meets only those who change the length for a moment (stor_write.c). */
    struct order_hold h = { .start = UINT64_MAX - 1, .end = UINT64_MAX };
    order_enter(co, &s->internal->order, &h, false);
    int r = stor_length_held(co, s, ret_len);
    order_leave(co, &s->internal->order, &h);
    return r;
}

int stor_truncate(struct co *co, struct stor *s, uint64_t len)
{
    if (len > STOR_MAX_END)
        return -EINVAL;
    if (s->read_only)
        return -EROFS;
    if (!s->ops->truncate)
        return -ENOTSUP;
    if (!stor_is_ordered(s))
        return stor_answer(s->ops->truncate(co, s, len));
    struct order_hold h = { .start = 0, .end = UINT64_MAX };
    order_enter(co, &s->internal->order, &h, true);
    atomic_store(&s->internal->known_len, 0);
    int r = stor_answer(s->ops->truncate(co, s, len));
    order_leave(co, &s->internal->order, &h);
    return r;
}

int stor_preallocate(struct co *co, struct stor *s, uint64_t off, uint64_t len)
{
    int r = stor_check_range(off, len);
    if (r < 0)
        return r;
    if (s->read_only)
        return -EROFS;
    if (!s->ops->preallocate)
        return -ENOTSUP;
    if (!len)
        return 0;
    if (!stor_is_ordered(s))
        return stor_answer(s->ops->preallocate(co, s, off, len));
    struct order_hold h = { .start = off, .end = off + len };
    order_enter(co, &s->internal->order, &h, false);
    r = stor_answer(s->ops->preallocate(co, s, off, len));
    order_leave(co, &s->internal->order, &h);
    return r;
}

void stor_stream(struct stor *s, bool on)
{
    if (s->ops->stream)
        s->ops->stream(s, on);
}

void stor_drop_cache(struct co *co, struct stor *s)
{
    if (s->ops->drop_cache)
        s->ops->drop_cache(co, s);
}

int64_t stor_cached(struct co *co, struct stor *s)
{
    return s->ops->cached ? stor_answer_bytes(s->ops->cached(co, s)) : 0;
}

int stor_allocated(struct co *co, struct stor *s, uint64_t *ret_bytes)
{
    return s->ops->allocated ? stor_answer(s->ops->allocated(co, s, ret_bytes)) : -ENOTSUP;
}

/* ---- extents ---- */

/* Makes a boundary inside the request a multiple of the block: a block that holds any data is data. */
static void round_extent(const struct stor *s, struct stor_extent *e, uint64_t req_end)
{
    uint64_t end = e->off + e->len, block = s->lim.block;
    if (end == req_end || is_aligned(end, block))
        return;
    uint64_t down = round_down(end, block), up = min_u64(round_up(end, block), req_end);
    if (e->content == STOR_HOLE && down > e->off) {
        e->len = down - e->off;
        return;
    }
    e->content = STOR_DATA;
    e->len = up - e->off;
}

int stor_extent(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *ret_e)
{
    int r = stor_check_range(off, len);
    if (r < 0)
        return r;
    if (!len)
        return -EINVAL;
    struct stor_extent e = { STOR_DATA, off, len };
    r = s->ops->extent ? s->ops->extent(co, s, off, len, &e) : -ENOTSUP;
    if (r < 0)
        e = (struct stor_extent){ STOR_DATA, off, len };
    ASSERT(e.off == off && e.len > 0);
    e.len = min_u64(e.len, len);
    round_extent(s, &e, off + len);
    *ret_e = e;
    return 0;
}

/* How many of the n extents can be told as they are. A border inside a block makes its neighbours overlap: the first one is then rounded,
 * others are left for the next question. */
static int aligned_extents(const struct stor *s, struct stor_extent *list, int n, uint64_t req_end)
{
    for (int i = 0; i < n; i++) {
        uint64_t end = list[i].off + list[i].len;
        if (end == req_end || is_aligned(end, s->lim.block))
            continue;
        if (i)
            return i;
        round_extent(s, &list[0], req_end);
        return 1;
    }
    return n;
}

int stor_extents(struct co *co, struct stor *s, uint64_t off, uint64_t len, struct stor_extent *list, unsigned max)
{
    if (!s->ops->extents || max < 2 || stor_check_range(off, len) < 0 || !len) {
        int r = stor_extent(co, s, off, len, &list[0]);
        return r < 0 ? r : 1;
    }
    int n = s->ops->extents(co, s, off, len, list, max);
    if (n < 0) {
        list[0] = (struct stor_extent){ STOR_DATA, off, len };
        return 1;
    }
    ASSERT(n > 0 && (unsigned)n <= max && list[0].off == off);
    return aligned_extents(s, list, n, off + len);
}

/* ---- copy, locks, close ---- */

int64_t stor_copy(struct co *co, struct stor *dst, uint64_t dst_off, struct stor *src, uint64_t src_off, uint64_t len)
{
    int r = stor_check_range(dst_off, len);
    if (r == 0)
        r = stor_check_range(src_off, len);
    if (r < 0)
        return r;
    if (dst->read_only)
        return -EROFS;
    if (!dst->ops->copy_from || !len)
        return len ? -ENOTSUP : 0;
    stor_tell_end(dst, dst_off + len);
    if (!stor_is_ordered(dst))
        return stor_answer_bytes(dst->ops->copy_from(co, dst, dst_off, src, src_off, len));
    bool aligned = is_aligned(dst_off | len, dst->lim.block);
    if (!aligned)
        return -ENOTSUP;
    struct order_hold h = { .start = dst_off, .end = dst_off + len };
    order_enter(co, &dst->internal->order, &h, false);
    int64_t n = stor_answer_bytes(dst->ops->copy_from(co, dst, dst_off, src, src_off, len));
    order_leave(co, &dst->internal->order, &h);
    return n;
}

int stor_lock(struct co *co, struct stor *s, unsigned perm, unsigned shared, struct byre_err *err)
{
    if ((perm | shared) & ~STOR_PERM_ALL)
        return byre_fail(err, BAD_ARGUMENT, "%s: unknown lock permission", s->name);
    return s->ops->lock ? s->ops->lock(co, s, NULL, perm, shared, err) : 0;
}

int stor_lock_beside(struct co *co, struct stor *s, struct stor *old, unsigned perm, unsigned shared, struct byre_err *err)
{
    if ((perm | shared) & ~STOR_PERM_ALL)
        return byre_fail(err, BAD_ARGUMENT, "%s: unknown lock permission", s->name);
    return s->ops->lock ? s->ops->lock(co, s, s->ops == old->ops ? old : NULL, perm, shared, err) : 0;
}

void stor_close(struct co *co, struct stor *s)
{
    if (!s)
        return;
    if (atomic_load(&s->internal->shares)) {
        atomic_fetch_sub(&s->internal->shares, 1);
        return;
    }
    if (s->ops->lock && atomic_load(&s->internal->holders) > 1) {
        int r = s->ops->lock(co, s, NULL, 0, STOR_PERM_ALL, NULL);
        (void)r;                             /* they go when it is closed */
    }
    stor_give_back(co, s);
}

bool stor_lend(struct stor *s)
{
    bool can = s->ops->copy_from != NULL;
    if (can)
        atomic_fetch_add(&s->internal->holders, 1);
    return can;
}

void stor_give_back(struct co *co, struct stor *s)
{
    if (atomic_fetch_sub(&s->internal->holders, 1) == 1)
        s->ops->close(co, s);
}

struct stor *stor_share(struct stor *s)
{
    atomic_fetch_add(&s->internal->shares, 1);
    return s;
}
