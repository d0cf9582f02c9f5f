/* SPDX-License-Identifier: MIT
 *
 * q2_write.c: make guest range R writable.
 *
 * Purpose     Reserves what an allocating write needs (q2_wplan.c), says what must be filled, and links it when the
 *             caller has written the data. Overwrites in place never come here.
 * Owns        One struct write_txn per allocating write: its guest-range lock, its pinned slice, its host run.
 * Invariants  W1  The range lock is taken before anything is decided, and held until commit or abort: nobody restarts
 *                 (STYLE.md, Functions and files). With subclusters it covers those alone that are touched, until it is seen that
 *                 the host cluster must be another one; then it is taken again over whole clusters, once. Who finds the
 *                 range taken looks again when the holder is done, and takes no lock when the place has become
 *                 writable: neighbouring small writes then go out together.
 *             W2  commit only sets words of a pinned slice: it cannot fail (fmt.h I3).
 *             W3  An entry goes without the data barrier only under Q23: whole host run known zero and settled, and
 *                 each cluster (with subclusters: each one that changes hands) read as zeros before.
 *             W4  A kept zero cluster or subcluster, or any cluster of an external data file, is filled only after every request
 *                 that could still write into it in place has left (zero_stamp, D3).
 *             W6  A cluster that is only about to be moved is replaced after every request that could still write into it in place has
 *                 left, and is not given back to such requests before commit or abort (q2_move.c B2).
 *             W7  Where small requests follow one another the rest of a new cluster is written with the first of them, although it reads
 *                 zero: the others then overwrite blocks, which costs a file system less than to fill a hole piece by piece.
 *             W5  In an encrypted image no space is known to be zero: its zeros are no ciphertext of zeros (D4, Q23).
 * Order       Q1, Q2, Q4, Q11, Q23. Old clusters are dropped after the entry was set (Q9).
 * Concurrency begin, commit and abort do their work on the home loop (rt_call), the caller's data I/O stays on its own.
 * Failure     begin: -ENOSPC, -EIO, -ENOMEM with nothing held. abort gives the clusters back.
 * Tests       q2_write_test.c (plans), q2_core_test.c, crash explorer, two-loop stress, faults.
 */
#include <stdlib.h>

#include "base/assert.h"
#include "base/mutant.h"
#include "fmt/qcow2/q2_guard.h"
#include "fmt/qcow2/q2_unclean.h"
#include "fmt/qcow2/q2_wplan.h"

struct write_txn {
    struct co_range lock;
    struct meta_block *block;
    uint32_t index, n;                   /* entries [index, index+n) of the slice */
    struct q2_run run;                   /* count 0: the entries keep their host clusters (kept zero clusters) */
    uint64_t host;                       /* of the first cluster */
    bool independent;                    /* Q23 */
    bool reserve;                        /* q2_write_reserve */
    bool streamed;                       /* W7 */
    bool holds;                          /* counted in hold_users (W6) */
};

/* The plan must speak of the clusters that were really given. */
static int replan(const struct q2_image *q, const struct write_txn *t, struct q2_wspan *s, struct q2_wplan *p)
{
    if (t->n == p->n)
        return 0;
    s->max = t->n;
    return q2_write_plan(q, s, p);
}

static void fill_in(const struct q2_image *q, struct write_txn *t, const struct q2_wplan *p, uint64_t off, uint64_t len, struct fmt_write *w)
{
    uint64_t cs = q->g.cluster_size, c0 = round_down(off, cs), end = c0 + t->n * cs;
    uint64_t size = atomic_load_explicit(&q->im.size, memory_order_relaxed);
    if (q->g.data_file && off < size)    /* it ends where the guest's disk ends; but the VM state lies behind that */
        end = min_u64(end, size);
    w->off = off;
    w->len = min_u64(len, end - off);
    w->host = t->host + (off - c0);
    w->head = off - p->start;
    w->tail = MUTANT(MUT_COW_NO_TAIL) ? 0 : min_u64(p->stop, end) - (off + w->len);
    bool known = t->run.count && t->run.known_zero;
    bool read = (w->head && !p->zero_first) || (w->tail && !p->zero_last);
    if (!w->head && !w->tail)
        w->fill = FMT_FILL_NONE;
    else if (read)
        w->fill = FMT_FILL_READ;
    else
        w->fill = known && !t->streamed ? FMT_FILL_NONE : FMT_FILL_ZERO;     /* W7 */
    t->independent = (q2_run_independent(q, &t->run) || (!t->run.count && MUTANT(MUT_SUB_UNORDERED))) && p->zero_all && w->fill == FMT_FILL_NONE;      /* W3 */
    w->priv = t;
}

/* Zeros around the data that are more than it, and too many to be written with it (W7: those are written all the same). */
static bool wants_zeros(const struct q2_image *q, const struct write_txn *t, const struct q2_wspan *s, const struct q2_wplan *p)
{
    uint64_t end = s->off + s->len, head = s->off - p->start, tail = p->stop > end ? p->stop - end : 0;
    bool read = (head && !p->zero_first) || (tail && !p->zero_last);
    return !read && !t->streamed && !q->im.encrypted && head + tail > max_u64(FMT_FILL_SMALL_BYTES, s->len);
}

/* The first entry of the span is refused: is it because of what lies where it points? */
static void note_hit(struct q2_image *q, const struct q2_wspan *s)
{
    struct q2_l2e e;
    uint64_t in = q2_in_cluster(&q->g, s->off);
    if (q2_entry_get(q, s->b, s->index, &e) && !q->g.data_file && e.host && e.kind != Q2_COMPRESSED)
        (void)q2_guard_judge(q, e.host + in, min_u64(s->len, q->g.cluster_size - in));       /* notes it */
}

/* The slice is pinned, the range locked. Sets w->len = 0 and holds nothing when the range can be written in place. */
static int reserve(struct co *co, struct q2_image *q, struct write_txn *t, struct q2_wspan *s, struct fmt_write *w)
{
    struct q2_wplan p;
    int r = q2_guard_need(co, q);
    if (r < 0)
        return r;
    r = q2_write_plan(q, s, &p);
    if (r < 0) {
        note_hit(q, s);
        return q2_corrupt(co, q, "the L2 entry of guest offset", s->off);
    }
    bool whole = !((t->lock.start | t->lock.end) & (q->g.cluster_size - 1)) || MUTANT(MUT_SUB_LOCK_NARROW);
    if (p.need == Q2_NEED_NOTHING || (p.need == Q2_NEED_CLUSTER && !whole)) {      /* held since it was locked (W1): begin again */
        w->len = 0;
        return 0;
    }
    if (p.held) {                                                   /* W6 */
        q->hold_users++;
        t->holds = true;
        if (!MUTANT(MUT_MOVE_NO_GRACE))
            epoch_wait_stamp(co, q->im.epoch, q->hold_stamp);
    }
    if (p.need == Q2_NEED_KEPT || q->g.data_file) {
        if ((p.stale || q->g.data_file) && q->zero_stamped && !MUTANT(MUT_ZERO_NO_STAMP))
            epoch_wait_stamp(co, q->im.epoch, q->zero_stamp);       /* W4 */
        t->host = q->g.data_file ? round_down(s->off, q->g.cluster_size) : p.host;
        t->n = p.n;
    } else {
        r = wants_zeros(q, t, s, &p) ? q2_alloc_take_zeros(co, q, p.n, &t->run) : q2_alloc_take(co, q, p.n, &t->run);
        if (r < 0)
            return r;
        if (q->im.encrypted && !MUTANT(MUT_CRYPT_KNOWN_ZERO))
            t->run.known_zero = false;                              /* W5 */
        t->host = t->run.cluster << q->g.cluster_bits;
        t->n = (uint32_t)t->run.count;
        r = replan(q, t, s, &p);
        ASSERT(r == 0);
    }
    fill_in(q, t, &p, s->off, s->len, w);
    return 0;
}

static void txn_end(struct q2_image *q, struct write_txn *t)
{
    if (t->block)
        meta_put(q->meta, t->block);
    co_range_unlock(&q->locks, &t->lock);
    if (t->holds && --q->hold_users == 0)
        co_wake_all(&q->hold_left);
    free(t);
}

struct call { struct q2_image *q; uint64_t off, len; struct fmt_write *w; };

/* Pins the slice of s->off. */
static int pin(struct co *co, struct q2_image *q, struct write_txn *t, struct q2_wspan *s)
{
    int r = q2_slice_get(co, q, s->off, &t->block, &t->index);
    s->b = t->block;
    s->index = t->index;
    if (r < 0 || (q2_slice_is_own(q, s->off) && q2_write_in_place(q, s)))
        return r;
    if (t->block)
        meta_put(q->meta, t->block);
    t->block = NULL;
    r = q2_slice_own(co, q, s->off, &t->block, &t->index);
    s->b = t->block;
    s->index = t->index;
    return r;
}

/* W1: locks the range and pins the slice. */
static int enter(struct co *co, struct q2_image *q, struct write_txn *t, struct q2_wspan *s)
{
    uint64_t unit = 1ull << q->g.sub_bits, cs = q->g.cluster_size, end = s->off + s->len;
    co_range_lock(co, &q->locks, &t->lock, round_down(s->off, unit), round_up(end, unit));
    int r = pin(co, q, t, s);
    if (unit == cs || r < 0 || q2_write_keeps(q, s) || MUTANT(MUT_SUB_LOCK_NARROW))
        return r;
    if (t->block)
        meta_put(q->meta, t->block);
    t->block = NULL;
    co_range_unlock(&q->locks, &t->lock);
    co_range_lock(co, &q->locks, &t->lock, round_down(s->off, cs), round_up(end, cs));
    return pin(co, q, t, s);
}

/* Waits while somebody works on the beginning of the range. 1: it may be written in place now; 0: the lock is needed. */
static int wait_in_place(struct co *co, struct q2_image *q, struct q2_wspan s)
{
    uint64_t unit = 1ull << q->g.sub_bits, from = round_down(s.off, unit);
    struct meta_block *b;
    if (!co_range_wait(co, &q->locks, from, from + unit))
        return 0;
    int r = q2_slice_get(co, q, s.off, &b, &s.index);
    if (r < 0 || !b)
        return r;
    s.b = b;
    r = q2_write_in_place(q, &s);
    meta_put(q->meta, b);
    return r;
}

static int begin_home(struct co *co, void *arg)
{
    struct call *c = arg;
    struct q2_image *q = c->q;
    uint64_t c0 = round_down(c->off, q->g.cluster_size), end = min_u64(c->off + c->len, round_down(c0, q->slice_span) + q->slice_span);
    struct q2_wspan s = { .max = (uint32_t)((round_up(end, q->g.cluster_size) - c0) >> q->g.cluster_bits), .off = c->off, .len = end - c->off };
    if (q->failed)
        return -EIO;
    bool streamed = fmt_streams_go_on(&q->streams, c->off, c->off + c->len);
    q2_unclean_room_wait(co, q);
    if (wait_in_place(co, q, s) > 0) {                      /* W1; an error shows again below */
        c->w->len = 0;
        return 0;
    }
    struct write_txn *t = calloc(1, sizeof *t);
    if (!t)
        return -ENOMEM;
    t->streamed = streamed && c->len <= q->g.cluster_size / FMT_STREAM_PART;
    int r = enter(co, q, t, &s);
    c->w->len = s.len;
    if (r == 0)
        r = reserve(co, q, t, &s, c->w);
    r = q2_judge(co, q, r, "the L2 table of guest offset", c0);
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

/* Entry i of the write is set. */
static void link_one(struct q2_image *q, struct write_txn *t, const struct fmt_write *w, uint32_t i)
{
    uint64_t cs = q->g.cluster_size, guest = round_down(w->off, cs) + i * cs, to = min_u64(w->off + w->len, guest + cs);
    uint32_t touched = q->g.ext_l2 && !t->reserve ? q2_sub_touched(&q->g, max_u64(w->off, guest) - guest, to - guest) : 0;
    struct q2_l2e old = { .kind = Q2_UNALLOCATED };
    bool ok = q2_entry_get(q, t->block, t->index + i, &old);
    struct q2_l2e new = q2_write_after(q, &old, t->host + i * cs, touched);
    q2_entry_set(q, t->block, t->index + i, &new);
    if (ok && t->run.count)
        q2_drop_entry(q, &old);
}

static int commit_home(struct co *co, void *arg)
{
    struct call *c = arg;
    struct q2_image *q = c->q;
    struct write_txn *t = c->w->priv;
    CO_ATOMIC(co) {                                          /* W2 */
        for (uint32_t i = 0; i < t->n; i++)
            link_one(q, t, c->w, i);
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

void q2_write_reserve(struct fmt_write *w)
{
    struct write_txn *t = w->priv;
    t->reserve = true;
}

bool q2_write_known_zero(const struct fmt_write *w)
{
    const struct write_txn *t = w->priv;
    return t->run.count && t->run.known_zero;
}
