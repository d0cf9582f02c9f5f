/* SPDX-License-Identifier: MIT
 *
 * qed_write.c: make this guest range writable.
 *
 * Purpose      Reserves clusters for a guest range that has none, says what must be filled around the data, and links them when the caller
 *              has written it. Overwrites in place never come here.
 * Owns         One struct write_txn for each allocating write: its range lock, its pinned slice, its clusters.
 * Invariants   W1  The range lock is taken before anything is decided, and held until commit or abort. Several writes allocate at once
 *                  (2.013). Who finds the range taken looks again when the holder is done, and takes no lock when the place has become
 *                  writable. Who finds it about to move waits for that, without a lock.
 *              W2  commit only sets words of a pinned slice: it cannot fail (fmt.h I3).
 *              W3  An entry goes without the data barrier only where the new clusters are known to read zero, in space that is settled,
 *                  and the guest read zeros there before (Q23).
 *              W4  The rest of a zero cluster is zeros, whatever the backing image holds there (2.010, G.019).
 *              W5  A bad entry is never replaced by a write: the check shall see it. One that names a table is bad, too.
 * Order        The mark before (E1), data before its entry (the data barrier of a pass), a new table before its root (qed_map.c).
 * Concurrency  begin, commit and abort do their work on the home loop (rt_call); the caller's data I/O stays on its own.
 * Failure      begin: -ENOSPC, -EIO, -ENOMEM with nothing held. abort gives the clusters back.
 * Tests        qed_write_test.c, tests/interop/test_qed_write.py
 */
#include <stdlib.h>

#include "base/assert.h"
#include "fmt/qed/qed_image.h"

struct write_txn {
    struct co_range lock;
    struct meta_block *block;
    uint32_t index;                               /* of the first entry in the slice */
    struct qed_run run;
    bool independent, streamed;
};

/* Does the guest read zeros in the cluster at `guest`, whatever lies below? */
static bool reads_zero(const struct qed_image *q, uint64_t v, uint64_t guest)
{
    return v == 1 || guest >= atomic_load_explicit(&q->im.below_zero_from, memory_order_relaxed);
}

/* How many of the next `max` clusters have none, at most? *ret_zero: bit 0, 1, 2: the first, the last, all of them read zeros. */
static uint32_t plan(const struct qed_image *q, const struct meta_block *b, uint32_t index, uint64_t guest, uint32_t max, unsigned *ret_zero)
{
    uint32_t n = 0;
    unsigned zero = 7;
    for (; n < max; n++, guest += q->g.cluster_size) {
        uint64_t v = qed_entry(b, index + n);
        if (v > 1)
            break;
        bool z = reads_zero(q, v, guest);
        zero = (n ? zero & 1 : z) | (unsigned)z << 1 | (z ? zero & 4 : 0);
    }
    *ret_zero = zero;
    return n;
}

static void fill_in(const struct qed_image *q, struct write_txn *t, unsigned zero, struct fmt_write *w)
{
    uint64_t cs = q->g.cluster_size, c0 = round_down(w->off, cs), end = c0 + t->run.count * cs;
    w->len = min_u64(w->len, end - w->off);
    w->host = t->run.off + (w->off - c0);
    w->head = w->off - c0;
    w->tail = end - (w->off + w->len);
    if (!w->head && !w->tail)
        w->fill = FMT_FILL_NONE;
    else if ((w->head && !(zero & 1)) || (w->tail && !(zero & 2)))
        w->fill = FMT_FILL_READ;
    else
        w->fill = t->run.known_zero && !t->streamed ? FMT_FILL_NONE : FMT_FILL_ZERO;        /* W4 */
    t->independent = qed_run_independent(q, &t->run) && zero & 4 && w->fill == FMT_FILL_NONE;     /* W3 */
    w->priv = t;
}

/* W5: may what is there be written in place? */
static int judge(struct qed_image *q, uint64_t v)
{
    if (qed_kind(q, v) == QED_POINTER && !qed_names_table(q, v))
        return 0;
    qed_tell(q, v, q->g.cluster_size, qed_kind(q, v) == QED_POINTER ? "a table is named as data" : "an entry names what is no cluster of the file,");
    return -EUCLEAN;
}

/* The range is locked. Sets w->len = 0 when it can be written in place. */
static int reserve(struct co *co, struct qed_image *q, struct write_txn *t, struct fmt_write *w)
{
    uint64_t cs = q->g.cluster_size, c0 = round_down(w->off, cs);
    unsigned zero;
    int r = qed_slice_own(co, q, c0, &t->block, &t->index);
    if (r < 0)
        return r;
    uint32_t n = plan(q, t->block, t->index, c0, (uint32_t)((round_up(w->off + w->len, cs) - c0) >> q->g.cluster_bits), &zero);
    if (!n) {
        w->len = 0;
        return judge(q, qed_entry(t->block, t->index));
    }
    r = qed_alloc_take(co, q, n, false, &t->run);
    if (r < 0)
        return r;
    (void)plan(q, t->block, t->index, c0, (uint32_t)t->run.count, &zero);        /* of those that were really given */
    fill_in(q, t, zero, w);
    return 0;
}

static void txn_end(struct qed_image *q, struct write_txn *t)
{
    if (t->block)
        meta_put(q->meta, t->block);
    co_range_unlock(&q->locks, &t->lock);
    qed_mark_exit(q);
    free(t);
}

/* Is the cluster at `off` there? *ret_held: it is about to move. */
static bool is_there(struct co *co, struct qed_image *q, uint64_t off, bool *ret_held)
{
    struct meta_block *b;
    uint32_t index;
    *ret_held = false;
    if (qed_slice_get(co, q, off, &b, &index) < 0 || !b)
        return false;                             /* an error shows again when the lock is held */
    uint64_t v = qed_entry(b, index);
    meta_put(q->meta, b);
    struct qed_held h = qed_held_now(q);
    *ret_held = qed_held_has(&h, v);
    return qed_kind(q, v) == QED_POINTER && !qed_names_table(q, v);
}

/* Waits while somebody works on the beginning of the range, or it is about to move. 1: it may be written in place now; 0: the lock is
 * needed. */
static int wait_in_place(struct co *co, struct qed_image *q, uint64_t off)
{
    uint64_t from = round_down(off, q->g.cluster_size);
    bool waited = co_range_wait(co, &q->locks, from, from + q->g.cluster_size), held = false;
    if (!waited && !atomic_load(&q->hold_end))
        return 0;
    bool there = is_there(co, q, off, &held);
    while (there && held) {                       /* qed_fill.c F3 */
        co_wait(co, &q->unheld);
        waited = true;
        there = is_there(co, q, off, &held);
    }
    return there && waited;
}

struct call { struct qed_image *q; struct fmt_write *w; };

static int begin_home(struct co *co, void *arg)
{
    struct call *c = arg;
    struct qed_image *q = c->q;
    struct fmt_write *w = c->w;
    uint64_t cs = q->g.cluster_size, span = qed_slice_span(q), whole = w->len;
    bool streamed = fmt_streams_go_on(&q->streams, w->off, w->off + whole);
    if (wait_in_place(co, q, w->off)) {                     /* W1 */
        w->len = 0;
        return 0;
    }
    struct write_txn *t = calloc(1, sizeof *t);
    if (!t)
        return -ENOMEM;
    int r = qed_mark_enter(co, q);
    if (r < 0) {
        free(t);
        return r;
    }
    t->streamed = streamed && whole <= cs / FMT_STREAM_PART;
    w->len = min_u64(whole, round_down(w->off, span) + span - w->off);
    co_range_lock(co, &q->locks, &t->lock, round_down(w->off, cs), round_up(w->off + w->len, cs));
    r = reserve(co, q, t, w);
    if (r < 0 || w->len == 0)
        txn_end(q, t);
    return r == -EUCLEAN || r == -ESTALE ? -EIO : r;
}

int qed_write_begin(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_write *w)
{
    struct call c = { qed_of(im), w };
    *w = (struct fmt_write){ .off = off, .len = len };
    return rt_call(co, im->home, begin_home, &c);
}

static int commit_home(struct co *co, void *arg)
{
    struct call *c = arg;
    struct qed_image *q = c->q;
    struct write_txn *t = c->w->priv;
    CO_ATOMIC(co) {                                          /* W2 */
        for (uint32_t i = 0; i < t->run.count; i++)
            qed_entry_set(q, t->block, t->index + i, t->run.off + i * q->g.cluster_size);
        if (!t->independent)
            meta_need_data_barrier(q->meta);
    }
    txn_end(q, t);
    return 0;
}

static int abort_home(struct co *co, void *arg)
{
    (void)co;
    struct call *c = arg;
    struct write_txn *t = c->w->priv;
    qed_alloc_return(c->q, &t->run);
    txn_end(c->q, t);
    return 0;
}

/* Without a coroutine for the way home: tries until there is one, for what is begun must end. */
static void end_at_home(struct co *co, struct fmt_image *im, struct fmt_write *w, int (*fn)(struct co *co, void *arg))
{
    struct call c = { qed_of(im), w };
    while (rt_call(co, im->home, fn, &c) == -ENOMEM)
        co_yield(co);
}

int qed_write_commit(struct co *co, struct fmt_image *im, struct fmt_write *w)
{
    end_at_home(co, im, w, commit_home);
    return 0;
}

void qed_write_abort(struct co *co, struct fmt_image *im, struct fmt_write *w) { end_at_home(co, im, w, abort_home); }
