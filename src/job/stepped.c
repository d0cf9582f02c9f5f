/* SPDX-License-Identifier: MIT
 *
 * stepped.c: a store with a pause point before each request.
 *
 * Purpose      Code that writes for long and knows nothing of jobs (a format that makes an image) can be paused and cancelled like a job's own.
 * Owns         the store below
 * Invariants   I1 a request that a cancel meets changes nothing, and fails with -EIO (stor.h I5): that it was told to is the job's to say
 *              I2 nothing is asked of the store below in one piece that takes longer than to zero ZERO_STEP_BYTES, but preallocation
 * Order        that of the requests
 * Concurrency  home loop, in the job's coroutine
 * Failure      as the store below
 * Tests        create_test.c
 */
#include "job/stepped.h"

#include <stdlib.h>

#include "base/checked.h"

#define ZERO_STEP_BYTES (UINT64_C(64) << 20)

struct stepped { struct stor s; struct job *job; struct stor *below; bool touched; };      /* s is the first */

static struct stepped *of(const struct stor *s) { return (struct stepped *)(uintptr_t)s; }

/* Before something that changes the store. */
static int step(struct co *co, struct stepped *t)
{
    int r = job_point(co, t->job);
    t->touched |= !r;
    return r;
}

static int64_t stepped_preadv(struct co *co, struct stor *s, struct iov v, uint64_t off)
{
    uint64_t have;
    int r = job_point(co, of(s)->job);
    if (!r)
        r = stor_length(co, of(s)->below, &have);
    uint64_t len = !r && off < have ? min_u64(v.len_bytes, have - off) : 0;
    if (len)
        r = stor_read(co, of(s)->below, iov_slice(v, 0, len), off);
    return r ? r : (int64_t)len;
}

static int64_t stepped_pwritev(struct co *co, struct stor *s, struct iov v, uint64_t off, unsigned flags)
{
    int r = step(co, of(s));
    if (!r)
        r = stor_write(co, of(s)->below, v, off, flags);
    return r ? r : (int64_t)v.len_bytes;
}

static int stepped_flush(struct co *co, struct stor *s)
{
    int r = job_point(co, of(s)->job);
    return r ? r : stor_flush(co, of(s)->below);
}

static int stepped_zero(struct co *co, struct stor *s, uint64_t off, uint64_t len, unsigned flags)
{
    int r = 0;
    for (uint64_t n; len && !r; off += n, len -= n) {
        n = min_u64(len, ZERO_STEP_BYTES);
        r = step(co, of(s));
        if (!r)
            r = stor_zero(co, of(s)->below, off, n, flags);
    }
    return r;
}

static int stepped_discard(struct co *co, struct stor *s, uint64_t off, uint64_t len)
{
    int r = step(co, of(s));
    return r ? r : stor_discard(co, of(s)->below, off, len);
}

static int stepped_truncate(struct co *co, struct stor *s, uint64_t len)
{
    int r = step(co, of(s));
    return r ? r : stor_truncate(co, of(s)->below, len);
}

static int stepped_preallocate(struct co *co, struct stor *s, uint64_t off, uint64_t len)
{
    int r = step(co, of(s));
    return r ? r : stor_preallocate(co, of(s)->below, off, len);
}

static int stepped_length(struct co *co, struct stor *s, uint64_t *ret_len) { return stor_length(co, of(s)->below, ret_len); }

static void stepped_close(struct co *co, struct stor *s)
{
    stor_close(co, of(s)->below);
    stor_fini(s);
    free(of(s));
}

static const struct stor_ops stepped_ops = {
    .name = "stepped",
    .preadv = stepped_preadv,
    .pwritev = stepped_pwritev,
    .flush = stepped_flush,
    .zero = stepped_zero,
    .discard = stepped_discard,
    .truncate = stepped_truncate,
    .preallocate = stepped_preallocate,
    .length = stepped_length,
    .close = stepped_close,
};

int stepped_new(struct job *job, struct stor *below, struct stor **ret_s)
{
    struct stepped *t = calloc(1, sizeof *t);
    if (!t || stor_init(&t->s, &stepped_ops, below->name)) {
        free(t);
        return -ENOMEM;
    }
    t->job = job;
    t->below = below;
    t->s.traits.regular = below->traits.regular;
    t->s.lim = (struct stor_limits){ .block = 1, .mem_align = 1, .opt_block = below->lim.opt_block };
    *ret_s = &t->s;
    return 0;
}

bool stepped_touched(const struct stor *s) { return of(s)->touched; }
struct stor *stepped_below(const struct stor *s) { return of(s)->below; }
