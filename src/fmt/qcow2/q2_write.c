/* SPDX-License-Identifier: MIT
 *
 * q2_write.c: make guest range R writable.
 *
 * Purpose     Plans an allocating write (which clusters, what must be filled), reserves it, and links it when the
 *             caller has written the data. Overwrites in place never come here.
 * Owns        One struct write_txn per allocating write: its guest-range lock, its pinned slice, its host run.
 * Invariants  W1  The range lock is taken before anything is looked up, and held until commit or abort: nobody
 *                 restarts (STYLE A.7).
 *             W2  commit only sets words of a pinned slice: it cannot fail (fmt.h I3).
 *             W3  An entry goes without the data barrier only under Q23: whole host run known zero and settled, and
 *                 each cluster read as zeros before.
 *             W4  A kept zero cluster, or any cluster of an external data file, is filled only after every request that
 *                 could still write into it in place has left (zero_stamp, D3).
 * Order       Q1, Q2, Q4, Q11, Q23. Old clusters are dropped after the entry was set (Q9).
 * Concurrency begin, commit and abort do their work on the home loop (rt_call), the caller's data I/O stays on its own.
 * Failure     begin: -ENOSPC, -EIO, -ENOMEM with nothing held. abort gives the clusters back.
 * Tests       q2_write_test.c (plans), q2_core_test.c, crash explorer, two-loop stress, faults.
 */
#include <stdlib.h>

#include "base/assert.h"
#include "base/mutant.h"
#include "fmt/qcow2/q2_image.h"

struct write_txn {
    struct co_range lock;
    struct meta_block *block;
    uint32_t index, n;                   /* entries [index, index+n) of the slice */
    struct q2_run run;                   /* count 0: the entries keep their host clusters (kept zero clusters) */
    uint64_t host;                       /* of the first cluster */
    bool independent;                    /* Q23 */
};

/* What a first look at an entry says. */
enum need { NEED_NOTHING, NEED_KEPT_ZERO, NEED_CLUSTER };

static enum need need_of(const struct q2_l2e *e)
{
    if (e->kind == Q2_NORMAL && (e->copied || MUTANT(MUT_SHARED_IN_PLACE)))
        return NEED_NOTHING;
    if (e->kind == Q2_ZERO_ALLOC && e->copied)
        return NEED_KEPT_ZERO;
    return NEED_CLUSTER;
}

/* Does the guest read zeros there, whatever lies below? */
static bool reads_zero(const struct q2_image *q, const struct q2_l2e *e, uint64_t guest_cluster)
{
    if (e->kind == Q2_ZERO_PLAIN || e->kind == Q2_ZERO_ALLOC)
        return true;
    if (MUTANT(MUT_COW_UNORDERED))
        return e->kind == Q2_UNALLOCATED;
    return e->kind == Q2_UNALLOCATED && guest_cluster >= atomic_load_explicit(&q->im.below_zero_from, memory_order_relaxed);
}

struct plan {
    enum need need;
    uint32_t n;
    bool zero_first, zero_last, zero_all;
    uint64_t host;                       /* NEED_KEPT_ZERO */
};

/* Decodes an entry that a write may act on: not one that names header, L1 or refcount table as its own data (M2). */
static bool entry_ok(const struct q2_image *q, const struct meta_block *b, uint32_t index, uint64_t guest, struct q2_l2e *ret)
{
    if (!q2_entry_get(q, b, index, ret) || !q2_entry_fits(q, ret, guest))
        return false;
    return need_of(ret) == NEED_CLUSTER || q->g.data_file || !q2_hits_metadata(q, ret->host);
}

/* Looks at up to max entries from index on. -EUCLEAN: the first one is damaged. */
static int make_plan(const struct q2_image *q, const struct meta_block *b, uint32_t index, uint32_t max, uint64_t guest, struct plan *ret)
{
    struct plan p = { .zero_all = true };
    for (p.n = 0; p.n < max; p.n++) {
        struct q2_l2e e;
        if (!entry_ok(q, b, index + p.n, guest + ((uint64_t)p.n << q->g.cluster_bits), &e)) {
            if (p.n)
                break;
            return -EUCLEAN;
        }
        enum need need = need_of(&e);
        bool zero = reads_zero(q, &e, guest + ((uint64_t)p.n << q->g.cluster_bits));
        if (p.n == 0) {
            p.need = need;
            p.host = e.host;
            p.zero_first = zero;
            if (need == NEED_NOTHING)
                break;
        } else if (need != p.need || (need == NEED_KEPT_ZERO && e.host != p.host + ((uint64_t)p.n << q->g.cluster_bits))) {
            break;
        }
        p.zero_last = zero;
        p.zero_all &= zero;
    }
    *ret = p;
    return 0;
}

/* zero_last must speak of the last cluster that was really given. */
static int replan(const struct q2_image *q, const struct write_txn *t, uint64_t guest, struct plan *p)
{
    if (t->n == p->n)
        return 0;
    return make_plan(q, t->block, t->index, t->n, guest, p);
}

static void fill_in(const struct q2_image *q, struct write_txn *t, const struct plan *p, uint64_t off, uint64_t len, struct fmt_write *w)
{
    uint64_t cs = q->g.cluster_size, c0 = round_down(off, cs), end = c0 + t->n * cs;
    if (q->g.data_file)                  /* it ends where the guest's disk ends */
        end = min_u64(end, atomic_load_explicit(&q->im.size, memory_order_relaxed));
    w->off = off;
    w->len = min_u64(len, end - off);
    w->host = t->host + (off - c0);
    w->head = off - c0;
    w->tail = MUTANT(MUT_COW_NO_TAIL) ? 0 : end - (off + w->len);
    bool known = t->run.count && t->run.known_zero;
    bool read = (w->head && !p->zero_first) || (w->tail && !p->zero_last);
    if (!w->head && !w->tail)
        w->fill = FMT_FILL_NONE;
    else if (read)
        w->fill = FMT_FILL_READ;
    else
        w->fill = known ? FMT_FILL_NONE : FMT_FILL_ZERO;
    t->independent = q2_run_independent(q, &t->run) && p->zero_all && w->fill == FMT_FILL_NONE;      /* W3 */
    w->priv = t;
}

/* The slice is pinned, the range locked. Sets w->len = 0 and holds nothing when the range can be written in place. */
static int reserve(struct co *co, struct q2_image *q, struct write_txn *t, uint64_t off, struct fmt_write *w)
{
    uint64_t c0 = t->lock.start, len = w->len;
    uint32_t max = (uint32_t)((t->lock.end - t->lock.start) >> q->g.cluster_bits);
    struct plan p;
    int r = make_plan(q, t->block, t->index, max, c0, &p);
    if (r < 0)
        return q2_corrupt(co, q, "L2 entry", c0);
    if (p.need == NEED_NOTHING) {
        w->len = 0;
        return 0;
    }
    if (p.need == NEED_KEPT_ZERO || q->g.data_file) {
        if (q->zero_stamped && !MUTANT(MUT_ZERO_NO_STAMP))
            epoch_wait_stamp(co, q->im.epoch, q->zero_stamp);       /* W4 */
        t->host = q->g.data_file ? c0 : p.host;
        t->n = p.n;
    } else {
        r = q2_alloc_take(co, q, p.n, &t->run);
        if (r < 0)
            return r;
        t->host = t->run.cluster << q->g.cluster_bits;
        t->n = (uint32_t)t->run.count;
        r = replan(q, t, c0, &p);
        ASSERT(r == 0);
    }
    fill_in(q, t, &p, off, len, w);
    return 0;
}

static bool in_place_now(const struct q2_image *q, const struct meta_block *b, uint32_t index)
{
    struct q2_l2e e;
    return b && q2_entry_get(q, b, index, &e) && need_of(&e) == NEED_NOTHING;
}

static void txn_end(struct q2_image *q, struct write_txn *t)
{
    if (t->block)
        meta_put(q->meta, t->block);
    co_range_unlock(&q->locks, &t->lock);
    free(t);
}

struct call { struct q2_image *q; uint64_t off, len; struct fmt_write *w; };

static int begin_home(struct co *co, void *arg)
{
    struct call *c = arg;
    struct q2_image *q = c->q;
    uint64_t cs = q->g.cluster_size, c0 = round_down(c->off, cs);
    uint64_t end = min_u64(round_up(c->off + c->len, cs), round_down(c0, q->slice_span) + q->slice_span);
    if (q->failed)
        return -EIO;
    struct write_txn *t = calloc(1, sizeof *t);
    if (!t)
        return -ENOMEM;
    co_range_lock(co, &q->locks, &t->lock, c0, end);         /* W1 */
    int r = q2_slice_get(co, q, c0, &t->block, &t->index);
    if (r == 0 && !in_place_now(q, t->block, t->index)) {
        if (t->block)
            meta_put(q->meta, t->block);
        t->block = NULL;
        r = q2_slice_own(co, q, c0, &t->block, &t->index);
    }
    c->w->len = min_u64(c->len, end - c->off);
    if (r == 0)
        r = reserve(co, q, t, c->off, c->w);
    r = q2_judge(co, q, r, "L2 table", c0);
    if (r < 0 || c->w->len == 0)
        txn_end(q, t);
    return r;
}

int q2_write_begin(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_write *w)
{
    struct call c = { q2_of(im), off, len, w };
    return rt_call(co, im->home, begin_home, &c);
}

void q2_drop_entry(struct q2_image *q, const struct q2_l2e *e)
{
    uint32_t bits = q->g.cluster_bits;
    if (q->g.data_file)
        return;                          /* nothing in the data file is counted; whoever changed the entry punches */
    if (e->kind == Q2_NORMAL || e->kind == Q2_ZERO_ALLOC) {
        q2_alloc_drop(q, e->host >> bits, 1);
    } else if (e->kind == Q2_COMPRESSED) {
        uint64_t a = e->host >> bits, z = (e->host + e->comp_bytes - 1) >> bits;
        q2_alloc_drop_packed(q, a, z - a + 1);
    }
}

static int commit_home(struct co *co, void *arg)
{
    struct call *c = arg;
    struct q2_image *q = c->q;
    struct write_txn *t = c->w->priv;
    CO_ATOMIC(co) {                                          /* W2 */
        for (uint32_t i = 0; i < t->n; i++) {
            struct q2_l2e old, new = { .kind = Q2_NORMAL, .copied = true, .host = t->host + ((uint64_t)i << q->g.cluster_bits) };
            bool ok = q2_entry_get(q, t->block, t->index + i, &old);
            q2_entry_set(q, t->block, t->index + i, &new);
            if (ok && t->run.count)
                q2_drop_entry(q, &old);
        }
        if (!t->independent)
            meta_need_data_barrier(q->meta);
    }
    txn_end(q, t);
    return 0;
}

int q2_write_commit(struct co *co, struct fmt_image *im, struct fmt_write *w)
{
    struct call c = { q2_of(im), 0, 0, w };
    int r = rt_call(co, im->home, commit_home, &c);
    while (r == -ENOMEM) {                                   /* no coroutine for the way home: the data is written, so try until there is one */
        co_yield(co);
        r = rt_call(co, im->home, commit_home, &c);
    }
    return r;
}

static int abort_home(struct co *co, void *arg)
{
    (void)co;
    struct call *c = arg;
    struct write_txn *t = c->w->priv;
    if (t->run.count)
        q2_alloc_return(c->q, &t->run);
    txn_end(c->q, t);
    return 0;
}

void q2_write_abort(struct co *co, struct fmt_image *im, struct fmt_write *w)
{
    struct call c = { q2_of(im), 0, 0, w };
    while (rt_call(co, im->home, abort_home, &c) == -ENOMEM)
        co_yield(co);
}

bool q2_write_known_zero(const struct fmt_write *w)
{
    const struct write_txn *t = w->priv;
    return t->run.count && t->run.known_zero;
}
