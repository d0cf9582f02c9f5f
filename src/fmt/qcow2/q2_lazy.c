/* SPDX-License-Identifier: MIT
 *
 * q2_lazy.c: lazy refcounts (FEATURES 1.029, 1.114, 1.131): counts stay in memory while the image says that it is dirty.
 *
 * Purpose     Decides when the dirty bit is set and cleared, and tells meta/ in between that counts may be late.
 * Owns        q->lazy, q->lazy_on
 * Invariants  Z1  Counts are late only while the dirty bit is durable (Q12).
 *             Z2  The bit goes away only when every count is durable, and counts are written in time again from before that.
 *             Z3  Data before its entry is no matter of counts: that barrier stays.
 * Order       dirty bit | first table that relies on a late count.   all counts | dirty bit away. Both META_B_HEADER.
 * Concurrency Home loop; one at a time by lazy_mx. Allocations may run during leave: their counts are in time from its start.
 * Failure     enter: no allocation is made. leave: the image stays dirty, which is always right.
 * Tests       q2_core_test.c, crash explorer (geometries lazy-*, mutants LAZY_*), tests/interop/test_q2_lazy.py
 */
#include "base/mutant.h"
#include "fmt/qcow2/q2_image.h"

int q2_lazy_init(struct q2_image *q, struct byre_err *err)
{
    if (q->im.read_only || q->check_mode)
        return 0;
    if (q->opts.lazy_refcounts > 0 && q->g.version < 3)
        return byre_fail(err, BAD_OPTION, "%s: lazy refcounts need version 3 (compat=1.1) of the format", q->name);
    q->lazy = q->g.version >= 3 && (q->opts.lazy_refcounts ? q->opts.lazy_refcounts > 0 : q->h.compat & Q2_COMPAT_LAZY);
    return 0;
}

static int mark(struct co *co, struct q2_image *q, bool dirty)
{
    uint64_t old = q->h.incompat;
    q->h.incompat = dirty ? old | Q2_INCOMPAT_DIRTY : old & ~Q2_INCOMPAT_DIRTY;
    int r = q2_header_sync(co, q, 72, 80, META_B_HEADER);
    if (r < 0)
        q->h.incompat = old | (q->h.incompat & Q2_INCOMPAT_CORRUPT);
    return r;
}

int q2_lazy_enter(struct co *co, struct q2_image *q)
{
    if (!q->lazy || q->lazy_on || q->unclean)        /* unclean: the bit is there, and q2_scrub.c takes it away */
        return 0;
    co_lock(co, &q->lazy_mx);
    int r = 0;
    if (!q->lazy_on) {
        r = MUTANT(MUT_LAZY_DIRTY_LATE) ? 0 : mark(co, q, true);
        q->lazy_on = r == 0;
        if (r == 0)
            meta_set_lazy_counts(q->meta, true);                 /* Z1 */
    }
    co_unlock(&q->lazy_mx);
    return r;
}

int q2_clean_mark(struct co *co, struct q2_image *q)
{
    co_lock(co, &q->lazy_mx);
    int r = q->lazy_on ? -EINVAL : meta_flush(co, q->meta);
    if (r == 0)
        r = mark(co, q, false);
    co_unlock(&q->lazy_mx);
    return r;
}

int q2_lazy_leave(struct co *co, struct q2_image *q)
{
    co_lock(co, &q->lazy_mx);
    int r = 0;
    if (q->lazy_on) {
        if (MUTANT(MUT_LAZY_CLEAN_EARLY))
            r = mark(co, q, false);
        meta_set_lazy_counts(q->meta, false);                    /* Z2 */
        if (r == 0)
            r = meta_flush(co, q->meta);
        if (r == 0)
            r = mark(co, q, false);
        q->lazy_on = r < 0;              /* dirty still: counts in time are as good there */
    }
    co_unlock(&q->lazy_mx);
    return r;
}
