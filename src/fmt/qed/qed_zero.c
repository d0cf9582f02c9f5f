/* SPDX-License-Identifier: MIT
 *
 * qed_zero.c: zero and discard whole clusters (2.015, 2.016).
 *
 * Purpose      Clusters that the image has are zeroed where they lie and keep their entry: the format counts nothing, so what lost its
 *              entry would be lost until a check. Others get a zero entry where a backing image could show through.
 * Owns         Nothing beyond the call.
 * Invariants   Z1  The range lock is held while entries of the range change (fmt.h I2).
 *              Z2  Nothing shows backing data after a discard (1.054).
 *              Z3  A bad entry stays for the check to see: what it covers cannot be zeroed.
 *              Z4  In an unclean image a bad entry reads as absent: before it is zeroed, the scrub takes it away or leaves it.
 * Order        The mark before (E1). A zero entry relies on nothing: no barrier in front of it.
 * Concurrency  Works on the home loop, slice by slice. Clusters are zeroed beside requests: whoever writes there in place at the same time
 *              may come first or last.
 * Failure      What was done so far stays done. -ENOTSUP: the store cannot zero, bytes must be written; a discard leaves it at that.
 * Tests        qed_write_test.c, tests/interop/test_qed_write.py
 */
#include "base/assert.h"
#include "fmt/qed/qed_image.h"

struct call {
    struct qed_image *q;
    uint64_t off, end;
    unsigned flags;                               /* STOR_* */
    bool advisory;                                /* a discard */
    bool absent;                                  /* clusters that are there stay as they are */
};

static int zero_host(struct co *co, const struct call *c, uint64_t host, uint64_t len)
{
    int r = len ? stor_zero(co, c->q->im.data, host, len, c->flags | STOR_NO_FALLBACK) : 0;
    return r == -ENOTSUP && c->advisory ? 0 : r;
}

/* Zeroes the clusters behind entries [index, index + n), run by run. */
static int zero_clusters(struct co *co, const struct call *c, const struct meta_block *b, uint32_t index, uint32_t n)
{
    struct qed_image *q = c->q;
    uint64_t host = 0, len = 0;
    int r = 0;
    for (uint32_t i = 0; i < n && r == 0; i++) {
        uint64_t v = qed_entry(b, index + i);
        enum qed_entry kind = qed_kind(q, v);
        bool bad = kind == QED_BAD || (kind == QED_POINTER && qed_names_table(q, v));
        if (bad && !c->advisory) {
            qed_tell(q, v, q->g.cluster_size, kind == QED_BAD ? "an entry names what is no cluster of the file," : "a table is named as data");
            return -EUCLEAN;                      /* Z3 */
        }
        if (bad || kind != QED_POINTER)
            continue;
        if (!len || v != host + len) {
            r = zero_host(co, c, host, len);
            host = v;
            len = 0;
        }
        len += q->g.cluster_size;
    }
    return r < 0 ? r : zero_host(co, c, host, len);
}

/* Is there an absent cluster under which something may show through? */
static bool lacks_zeros(const struct meta_block *b, uint32_t index, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (!qed_entry(b, index + i))
            return true;
    return false;
}

static int set_zeros(struct co *co, struct qed_image *q, uint64_t off, uint32_t n)
{
    struct meta_block *b = NULL;
    uint32_t index;
    int r = qed_mark_enter(co, q);
    if (r < 0)
        return r;
    r = qed_slice_own(co, q, off, &b, &index);
    if (r == 0) {
        for (uint32_t i = 0; i < n; i++)
            if (!qed_entry(b, index + i))
                qed_entry_set(q, b, index + i, 1);
        meta_put(q->meta, b);
    }
    qed_mark_exit(q);
    return r;
}

static bool has_bad(const struct qed_image *q, const struct meta_block *b, uint32_t index, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (qed_kind(q, qed_entry(b, index + i)) == QED_BAD)
            return true;
    return false;
}

/* The slice of off, locked. Z4: not before a bad entry of an image that nobody has looked through was judged. */
static int judged_slice(struct co *co, struct qed_image *q, uint64_t off, uint32_t n, struct meta_block **ret_b, uint32_t *ret_index)
{
    int r = qed_slice_get(co, q, off, ret_b, ret_index);
    if (r < 0 || !*ret_b || !q->unclean || !has_bad(q, *ret_b, *ret_index, n))
        return r;
    meta_put(q->meta, *ret_b);
    r = qed_unclean_wait(co, q);
    return r < 0 ? r : qed_slice_get(co, q, off, ret_b, ret_index);
}

/* Clusters [off, end) of one slice, locked. *ret_end: the end of the table when there is none and nothing to do. */
static int work_locked(struct co *co, const struct call *c, uint64_t off, uint64_t end, uint64_t *ret_end)
{
    struct qed_image *q = c->q;
    uint64_t cs = q->g.cluster_size, below = atomic_load_explicit(&q->im.below_zero_from, memory_order_relaxed);
    uint32_t index, n = (uint32_t)((end - off) >> q->g.cluster_bits), covered = off < below ? (uint32_t)min_u64(n, div_up(below - off, cs)) : 0;
    struct meta_block *b;
    int r = judged_slice(co, q, off, n, &b, &index);
    if (r < 0)
        return r;
    bool lacks = covered && (!b || lacks_zeros(b, index, covered));
    if (b) {
        r = c->absent ? 0 : zero_clusters(co, c, b, index, n);
        meta_put(q->meta, b);
    } else if (!covered) {
        *ret_end = round_down(off, q->g.l2_span) + q->g.l2_span;
    }
    return r == 0 && lacks ? set_zeros(co, q, off, covered) : r;
}

static int work_home(struct co *co, void *arg)
{
    const struct call *c = arg;
    struct qed_image *q = c->q;
    uint64_t span = qed_slice_span(q), end;
    int r = 0;
    for (uint64_t off = c->off; r == 0 && off < c->end; off = end) {
        struct co_range lock;
        end = min_u64(c->end, round_down(off, span) + span);
        co_range_lock(co, &q->locks, &lock, off, end);
        r = work_locked(co, c, off, end, &end);
        co_range_unlock(&q->locks, &lock);
    }
    return r == -EUCLEAN || r == -ESTALE ? -EIO : r;
}

/* The short last cluster of an image counts as whole (1.054). */
static int run(struct co *co, struct call *c)
{
    c->end = round_up(c->end, c->q->g.cluster_size);
    return rt_call(co, c->q->im.home, work_home, c);
}

int qed_zero(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, unsigned flags)
{
    struct call c = { .q = qed_of(im), .off = off, .end = off + len, .flags = flags & FMT_ZERO_UNMAP ? STOR_UNMAP : 0, .absent = flags & FMT_ZERO_ABSENT };
    return run(co, &c);
}

int qed_discard(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len)
{
    struct call c = { .q = qed_of(im), .off = off, .end = off + len, .flags = STOR_UNMAP, .advisory = true };
    return run(co, &c);
}
