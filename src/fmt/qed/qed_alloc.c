/* SPDX-License-Identifier: MIT
 *
 * qed_alloc.c: which clusters may I have?
 *
 * Purpose      Hands out clusters from behind the last one ever used. The format counts nothing: the length of the file is all that says
 *              what is free (2.011). It is made longer in steps, ahead of what is written (DESIGN D4).
 * Owns         q->a.
 * Invariants   A1  A cluster is handed out once. `next` rises, but for what is cut off, which nothing names.
 *              A2  Everything handed out lies in the file; below settled_to durably (E3). Else whoever names it needs the data barrier.
 *              A3  known_zero is told only of space gained by growing a regular file in this opening, behind the length found at open,
 *                  on a store where a hole is as good as zeros. A last part of a cluster that was found there is not (2.021).
 *              A4  The file never ends in front of `next`.
 * Order        None here: the mark is set before (E1), what names the space waits for it (A2).
 * Concurrency  Home loop. Growth and cutting exclude one another (mx).
 * Failure      take fails whole. A growth that failed may have left the file longer: cut off later.
 * Tests        qed_write_test.c, tests/interop/test_qed_write.py
 */
#include "base/assert.h"
#include "base/mutant.h"
#include "fmt/frontier.h"
#include "fmt/qed/qed_image.h"

void qed_alloc_init(struct qed_image *q, uint64_t file_bytes)
{
    struct qed_alloc *a = &q->a;
    const struct stor_traits *t = &q->im.store->traits;
    a->next = a->end = a->settled_to = file_bytes >> q->g.cluster_bits;
    a->zero_from = t->regular && t->zero_growth && q->frontier_bytes != UINT64_MAX ? div_up(file_bytes, q->g.cluster_size) : UINT64_MAX;
    a->step_max = UINT64_MAX;
    rset_init(&a->spare);
    a->told = 0;
}

void qed_alloc_fini(struct qed_image *q) { rset_fini(&q->a.spare); }

static bool settled(struct qed_image *q, uint64_t end)
{
    struct qed_alloc *a = &q->a;
    if (a->unsettled.end && meta_pass_durable(q->meta, a->unsettled.pass)) {
        a->settled_to = max_u64(a->settled_to, a->unsettled.end);
        a->unsettled.end = 0;
    }
    return end <= a->settled_to || MUTANT(MUT_QED_LENGTH_LATE);
}

/* ---- growth ---- */

static uint64_t step_clusters(const struct qed_image *q)
{
    return min_u64(frontier_step(q->frontier_bytes, q->a.end << q->g.cluster_bits, q->g.cluster_size), q->a.step_max);
}

/* Under mx: `step` more clusters. */
static int lengthen(struct co *co, struct qed_image *q, uint64_t step)
{
    struct qed_alloc *a = &q->a;
    uint64_t end, len;
    if (step > ((uint64_t)INT64_MAX >> q->g.cluster_bits) - a->end)
        return -EFBIG;
    end = a->end + step;
    int r = stor_length(co, q->im.store, &len);
    if (r == 0 && len < end << q->g.cluster_bits)
        r = q->im.store->traits.regular ? frontier_extend(co, q->im.store, len, end << q->g.cluster_bits) : -ENOSPC;
    if (r < 0) {
        a->overlong = true;                      /* perhaps */
        return r;
    }
    if (len > a->end << q->g.cluster_bits && a->zero_from != UINT64_MAX)
        a->zero_from = max_u64(a->zero_from, div_up(len, q->g.cluster_size));         /* A3: somebody else's bytes */
    (void)settled(q, 0);
    a->end = end;
    a->unsettled.end = end;
    a->unsettled.pass = meta_next_pass(q->meta);
    atomic_store_explicit(&q->file_end, end << q->g.cluster_bits, memory_order_release);
    return 0;
}

/* Sees to it that `want` clusters lie between next and end; 0: at least half a step. */
static int grow(struct co *co, struct qed_image *q, uint64_t want)
{
    struct qed_alloc *a = &q->a;
    int r = 0;
    co_lock(co, &a->mx);
    uint64_t step = max_u64(step_clusters(q), want), enough = want ? want : step / 2 + 1;
    while (a->end - a->next < enough) {
        r = lengthen(co, q, step);
        if (r == 0 || !frontier_no_space(r) || step <= max_u64(want, 1))
            break;
        step = max_u64(step / 4, max_u64(want, 1));          /* near the end of space the step shrinks (D4) */
        a->step_max = step;
    }
    co_unlock(&a->mx);
    return r;
}

static void grow_co(struct co *co, void *arg)
{
    struct qed_image *q = arg;
    q->a.grow_error = grow(co, q, 0);
    q->a.growing_behind = false;
    qed_mark_exit(q);
    co_group_leave(&q->a.behind);
}

/* Starts a growth in the background when little is left. The mark is set, and stays while it runs. */
static void grow_behind(struct qed_image *q)
{
    struct qed_alloc *a = &q->a;
    if (a->growing_behind || a->closing || a->grow_error || a->end - a->next > step_clusters(q) / 2)
        return;
    co_group_enter(&a->behind);
    a->growing_behind = true;
    q->mark.changers++;
    if (rt_spawn(q->im.home, grow_co, q) < 0) {
        q->mark.changers--;
        a->growing_behind = false;
        co_group_leave(&a->behind);
    }
}

/* ---- take and return ---- */

static bool take_spare(struct qed_image *q, uint64_t want, bool whole, struct qed_run *ret)
{
    struct qed_alloc *a = &q->a;
    struct rset_range x;
    if (q->scrubbing && !q->filling)
        return false;                            /* qed_scrub.c L2 */
    if (!rset_fit(&a->spare, 0, want, &x) && (whole || !rset_next(&a->spare, 0, &x)))
        return false;
    uint64_t n = min_u64(x.end - x.start, want);
    if (rset_remove(&a->spare, x.start, x.start + n) < 0)
        return false;
    a->told -= min_u64(a->told, n);
    *ret = (struct qed_run){ .off = x.start << q->g.cluster_bits, .count = n, .settled = settled(q, x.start + n), .known_zero = MUTANT(MUT_QED_SPARE_ZERO) };
    return true;
}

static bool take_next(struct qed_image *q, uint64_t want, bool whole, struct qed_run *ret)
{
    struct qed_alloc *a = &q->a;
    uint64_t n = min_u64(want, a->end - a->next);
    if (!n || (whole && n < want))
        return false;
    *ret = (struct qed_run){ .off = a->next << q->g.cluster_bits, .count = n, .known_zero = a->next >= a->zero_from, .settled = settled(q, a->next + n) };
    a->next += n;
    return true;
}

int qed_alloc_take(struct co *co, struct qed_image *q, uint64_t want, bool whole, struct qed_run *ret)
{
    INV(K1, q->mark.changers && q->mark.set);
    stor_event(co, q->im.store, STOR_EV_CLUSTER_ALLOC);
    q->a.taken++;
    for (;;) {
        if (take_spare(q, want, whole, ret))
            return 0;
        if (take_next(q, want, whole, ret)) {
            grow_behind(q);
            return 0;
        }
        int r = grow(co, q, whole ? want : 1);
        if (r < 0)
            return r;
    }
}

void qed_alloc_offer(struct qed_image *q, uint64_t first, uint64_t n)
{
    if (rset_add(&q->a.spare, first, first + n, 0) < 0)
        q->mark.keep = true;                     /* qed_mark.c K2 */
}

void qed_alloc_return(struct qed_image *q, const struct qed_run *r) { qed_alloc_offer(q, r->off >> q->g.cluster_bits, r->count); }

/* ---- holes ---- */

uint64_t qed_holes(const struct qed_image *q)
{
    const struct qed_alloc *a = &q->a;
    struct rset_range x;
    bool tail = a->next && rset_next(&a->spare, a->next - 1, &x) && x.end == a->next;
    return a->spare.total - (tail ? x.end - x.start : 0);
}

/* E4 */
bool qed_alloc_owes(const struct qed_image *q) { return !MUTANT(MUT_QED_HOLES_FORGOTTEN) && qed_holes(q) > q->a.told; }

void qed_alloc_told(struct qed_image *q) { q->a.told = q->a.spare.total; }

struct reserved_call { const struct qed_image *q; uint64_t bytes; };

static int reserved_home(struct co *co, void *arg)
{
    (void)co;
    struct reserved_call *c = arg;
    c->bytes = (c->q->a.end - c->q->a.next) << c->q->g.cluster_bits;
    return 0;
}

uint64_t qed_reserved(struct co *co, struct fmt_image *im)
{
    struct reserved_call c = { qed_of(im), 0 };
    return rt_call(co, im->home, reserved_home, &c) == 0 ? c.bytes : 0;
}

/* ---- the end ---- */

int qed_alloc_cut(struct co *co, struct qed_image *q)
{
    struct qed_alloc *a = &q->a;
    struct rset_range x;
    int r = 0;
    co_lock(co, &a->mx);
    if (a->next && rset_next(&a->spare, a->next - 1, &x) && x.end == a->next) {
        r = rset_remove(&a->spare, x.start, x.end);
        a->next = r < 0 ? a->next : x.start;
        a->told -= r < 0 ? 0 : min_u64(a->told, x.end - x.start);
    }
    if (r == 0 && (a->next < a->end || a->overlong)) {
        uint64_t old = a->end;
        a->end = a->next;
        a->settled_to = min_u64(a->settled_to, a->end);
        a->unsettled.end = 0;
        atomic_store_explicit(&q->file_end, a->end << q->g.cluster_bits, memory_order_release);
        r = stor_truncate(co, q->im.store, a->end << q->g.cluster_bits);
        a->overlong = r < 0;
        if (r < 0 && a->zero_from != UINT64_MAX)
            a->zero_from = max_u64(a->zero_from, old);        /* A3: what lies there may come back */
    }
    co_unlock(&a->mx);
    return r;
}

void qed_alloc_stop(struct co *co, struct qed_image *q)
{
    q->a.closing = true;
    co_group_wait(co, &q->a.behind);
}
