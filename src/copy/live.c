/* SPDX-License-Identifier: MIT
 *
 * live.c: the copy of a disk that goes on being written.
 *
 * Purpose     The engine of copy.c with dirty pieces in place of a walk: which is next, what is done with it, and what follows
 *             from its failure. What the guest's changes do meanwhile stands in live_watch.c.
 * Owns        struct copy_live, from copy_live_start until its last request has ended (live_main).
 * Invariants  live.h L1 to L5. Further:
 *             M1  A piece is locked, then its bits are cleared, then it is read: a change that the read may have missed ends after the
 *                 bits were cleared, and sets them again.
 *             M2  idle is set before the bitmap is looked through, and the bitmap is set before idle is read (live_touched): one of the two
 *                 sees the other, so no change stays unnoticed.
 * Order       none here: the owner flushes
 * Concurrency live.h. Home: all but live_work, which runs on its worker's loop.
 * Failure     live.h
 * Tests       live_test.c
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "copy/live_priv.h"

#define BUF_DEFAULT (UINT64_C(16) << 20)
#define PIECES_FIRST 16u                /* so many pieces; beyond LIVE_SEGMENT_MAX there are more of them, up to COPY_WORKERS_MAX, and then larger ones */
#define FLIGHT_FIRST (UINT64_C(256) << 10)
#define SOON_NS UINT64_C(1000000)
#define LATE_NS UINT64_C(200000000)     /* pieces that take longer may have filled the queue of a slow target, where changes wait as well */

/* ---- waking ---- */

static void tell_owner(struct copy_live *l)
{
    if (!l->owner_gone && l->o.wake && (l->error || (l->awaited && !l->pieces && !l->holds)))
        l->o.wake(l->o.arg);
}

void live_tell(struct copy_live *l)
{
    ASSERT_LOOP(l->home);
    co_wake_all(&l->work);
    co_wake_all(&l->moved);
    tell_owner(l);
}

void live_unlocked(struct copy_live *l)
{
    co_wake_all(&l->moved);
    if (l->conflict)
        co_wake_all(&l->work);
    tell_owner(l);
}

static void kicked(struct rt_msg *m)
{
    struct copy_live *l = CONTAINER_OF(m, struct copy_live, kick);
    atomic_store(&l->kicked, false);
    live_tell(l);
}

void live_touched(struct copy_live *l, uint64_t off, uint64_t len)
{
    dirty_set(l->dirty, off, len);
    atomic_fetch_add(&l->marks, 1);      /* a full barrier: M2 */
    if (atomic_load(&l->idle) && !atomic_exchange(&l->kicked, true))
        rt_post(l->home, &l->kick);
}

void live_failed(struct copy_live *l, int error, bool read, uint64_t off)
{
    if (l->error)
        return;
    l->error = error;
    l->error_read = read;
    l->error_off = off;
}

void copy_live_lose(struct copy_live *l, int error)
{
    l->lost = true;
    l->error = 0;                        /* it is this that the owner is told */
    live_failed(l, error, false, l->size);
    live_tell(l);
}

/* ---- which piece is next (home) ---- */

static uint64_t granule(const struct copy_live *l) { return UINT64_C(1) << l->o.granularity_bits; }

/* Pieces are as large as keeps a target busy, and no larger: a change that goes to both sides waits behind them. */
static uint64_t piece_max(const struct copy_live *l)
{
    uint64_t most = min_u64(l->c.w.piece_bytes, l->flight / 2);
    if (l->rate)
        most = min_u64(most, l->rate / 8);
    return max_u64(granule(l), round_down(most, granule(l)));
}

static bool has_room(const struct copy_live *l) { return !l->pieces || l->pieces_bytes + piece_max(l) <= l->flight; }

/* How long do pieces take? What is far away takes its time for the first as for the last; what is slow takes longer for each that waits. */
static void learn(struct copy_live *l, const struct work_piece *p)
{
    const struct live_piece *b = &l->begun[p->lock];
    uint64_t took = rt_now(l->home) - b->since_ns, known = l->fastest_ns;
    if (took > SOON_NS)                  /* or there was nothing to send */
        l->fastest_ns = known ? min_u64(known + known / 64, took) : took;
    if (took > LATE_NS && took / 3 * 2 > l->fastest_ns)
        l->flight = max_u64(l->flight / 2, granule(l));
    else if (took < LATE_NS / 2 || (took / 5 * 4 < known && b->behind >= l->flight / 4))
        l->flight = min_u64(l->flight + p->len, UINT64_C(2) * l->c.w.workers * l->c.w.piece_bytes);
}

/* A dirty range in [from, to) that nobody holds, locked for lock number i. */
static bool find_piece(struct copy_live *l, uint64_t from, uint64_t to, unsigned i, struct work_piece *p)
{
    uint64_t start, end, longest = piece_max(l);
    for (; from < to && dirty_next(l->dirty, from, to, &start, &end); from = start + granule(l)) {
        start = round_down(start, granule(l));
        end = min_u64(min_u64(round_up(end, granule(l)), l->size), start + longest);
        if (!co_range_trylock(&l->busy, &l->piece_locks[i], start, end)) {
            end = min_u64(start + granule(l), l->size);          /* perhaps the beginning of it */
            if (!co_range_trylock(&l->busy, &l->piece_locks[i], start, end)) {
                l->conflict = true;
                continue;
            }
        }
        *p = (struct work_piece){ .pos = start, .len = end - start, .lock = i, .fail_off = start };
        return true;
    }
    return false;
}

static bool take_piece(struct copy_live *l, struct work_piece *p)
{
    unsigned i = (unsigned)__builtin_ctzll(l->piece_locks_free);
    if (!find_piece(l, l->cursor, l->size, i, p) && !find_piece(l, 0, l->cursor, i, p))
        return false;
    l->piece_locks_free &= ~(UINT64_C(1) << i);
    l->begun[i] = (struct live_piece){ rt_now(l->home), l->pieces_bytes };
    l->cursor = p->pos + p->len;
    l->pieces++;
    l->pieces_bytes += p->len;
    return true;
}

static void give_piece(struct copy_live *l, const struct work_piece *p)
{
    co_range_unlock(&l->busy, &l->piece_locks[p->lock]);
    l->piece_locks_free |= UINT64_C(1) << p->lock;
    l->pieces--;
    l->pieces_bytes -= p->len;
    l->ended++;
}

static bool may_copy(const struct copy_live *l)
{
    return !atomic_load(&l->paused) && !atomic_load(&l->resizing) && !l->pieces_held && !l->error;
}

/* Until the rate allows another piece, or something has changed. */
static bool pace(struct co *co, struct copy_live *l)
{
    uint64_t now = rt_now(l->home);
    if (!l->rate || l->rate_next_ns <= now)
        return true;
    uint64_t old = co_set_deadline(co, l->rate_next_ns);
    (void)co_wait_cancellable(co, &l->work);
    (void)co_set_deadline(co, old);
    return false;
}

static void spend(struct copy_live *l, uint64_t bytes)
{
    if (l->rate)
        l->rate_next_ns = max_u64(l->rate_next_ns, rt_now(l->home)) + (uint64_t)((double)bytes * 1e9 / (double)l->rate);
}

static int live_next(struct co *co, void *ctx, struct work_piece *p)
{
    struct copy_live *l = CONTAINER_OF((struct copying *)ctx, struct copy_live, c);
    while (!atomic_load(&l->stop)) {
        if (may_copy(l) && !pace(co, l))
            continue;
        atomic_store(&l->idle, true);    /* M2 */
        l->conflict = false;
        if (may_copy(l) && !atomic_load(&l->stop) && has_room(l) && take_piece(l, p)) {
            atomic_store(&l->idle, false);
            if (dirty_clear(l->dirty, p->pos, p->len)) {
                live_failed(l, -ENOMEM, false, p->pos);
                give_piece(l, p);
                continue;
            }
            spend(l, p->len);
            return 1;
        }
        tell_owner(l);                   /* it may be clean now */
        co_wait(co, &l->work);
    }
    return 0;
}

static void live_done(void *ctx, const struct work_piece *p, int r)
{
    struct copy_live *l = CONTAINER_OF((struct copying *)ctx, struct copy_live, c);
    int error = p->failed ? p->failed : r;
    if (error && !(error == -ECANCELED && atomic_load(&l->stop)))
        live_failed(l, error, p->fail_read, p->fail_off);
    if (error)
        dirty_set(l->dirty, p->pos, p->len);
    else if (l->whole)
        dirty_set(l->whole, p->pos, p->len);
    l->copied += error ? 0 : p->len;
    learn(l, p);
    give_piece(l, p);
    live_unlocked(l);
    co_wake_all(&l->work);               /* there is room again */
}

/* ---- what is done with it (the worker's loop) ---- */

static bool is_zero_there(const struct copy_live *l, const struct graph_status *there) { return there->zero && (there->present || !l->o.part); }

static int copy_zeros(struct co *co, struct copy_live *l, struct worker *wk, uint64_t pos, uint64_t len)
{
    while (len) {
        struct graph_status st = { .len = len };
        int r = l->o.keep_space ? 0 : graph_status(co, l->o.target, NULL, pos, len, &st);
        if (!r && !is_zero_there(l, &st))
            r = put_zeros(co, &l->c, wk, pos, st.len);
        if (r)
            return r;
        pos += st.len;
        len -= st.len;
    }
    return 0;
}

static int copy_bytes(struct co *co, struct copy_live *l, struct worker *wk, uint64_t pos, uint64_t len)
{
    while (len && !atomic_load(&l->stop)) {
        uint64_t n = min_u64(len, l->c.w.piece_bytes);
        wk->piece.pos = pos;             /* of buf[0] */
        int r = read_part(co, &l->c, wk->buf[0], pos, n);
        wk->piece.fail_read = r != 0;
        if (!r)
            r = put_range(co, &l->c, wk, 0, n);
        if (r)
            return r;
        pos += n;
        len -= n;
    }
    return len ? -ECANCELED : 0;
}

/* What changes while the kernel copies is dirty again behind it (M1), and the lock of the piece keeps changes that go to both sides away, as for any piece. */
static int copy_data(struct co *co, struct copy_live *l, struct worker *wk, uint64_t pos, uint64_t len)
{
    bool done = l->o.copy_range && kernel_may_copy(&l->c) && copy_by_kernel(co, &l->c, pos, pos + len) > 0;
    return done ? 0 : copy_bytes(co, l, wk, pos, len);
}

static int copy_extents(struct co *co, struct copy_live *l, struct worker *wk, uint64_t pos, uint64_t end)
{
    struct graph_node *above = l->whole ? NULL : l->o.above;         /* L6 */
    while (pos < end) {
        struct graph_status st;
        wk->piece.fail_off = pos;
        int r = atomic_load(&l->stop) ? -ECANCELED : graph_status(co, l->o.source, above, pos, end - pos, &st);
        if (r) {
            wk->piece.fail_read = true;
            return r;
        }
        bool wanted = !above || st.present || st.past_end || st.zero;
        if (wanted)
            r = st.zero ? copy_zeros(co, l, wk, pos, st.len) : copy_data(co, l, wk, pos, st.len);
        if (r)
            return r;
        pos += st.len;
    }
    return 0;
}

static int live_work(struct co *co, void *ctx, struct worker *wk)
{
    struct copy_live *l = CONTAINER_OF((struct copying *)ctx, struct copy_live, c);
    struct work_piece *p = &wk->piece;
    uint64_t pos = p->pos;
    wk->packed = (struct packed){ .e = NULL };
    p->fail_read = false;
    p->failed = copy_extents(co, l, wk, pos, pos + p->len);
    p->pos = pos;
    return 0;
}

/* ---- life ---- */

static void live_free(struct copy_live *l)
{
    copy_latency_unref(l->o.latency);
    reader_fini(&l->c.rd);
    dirty_free(l->dirty);
    dirty_free(l->whole);
    free(l->piece_locks);
    free(l->begun);
    free(l);
}

/* The engine: its coroutine is the last one that touches l. */
static void live_main(struct co *co, void *arg)
{
    struct copy_live *l = arg;
    struct byre_err err = { 0 };
    int r = window_run(co, &l->c.w, &err);
    l->over = true;
    if (r)
        live_failed(l, r, false, 0);
    live_tell(l);
    while (!l->owner_gone || l->holds || atomic_load(&l->kicked))
        co_wait(co, &l->moved);
    struct co_group *alive = l->o.alive;
    struct graph_node *source = l->o.source, *target = l->o.target;
    live_free(l);
    (void)graph_close(co, target);       /* whoever promised durability has flushed */
    (void)graph_close(co, source);
    if (alive)
        co_group_leave(alive);
}

static uint32_t pow2_below(uint64_t n, uint32_t most)
{
    uint32_t p = PIECE_MIN;
    while (p * 2 <= n && p < most)
        p *= 2;
    return p;
}

static int live_prepare(struct copy_live *l, struct byre_err *err)
{
    static const struct window_ops ops = { live_next, live_work, live_done };
    uint64_t half = (l->o.buf_bytes ? l->o.buf_bytes : BUF_DEFAULT) / 2;
    uint32_t piece = (uint32_t)max_u64(pow2_below(half / PIECES_FIRST, LIVE_SEGMENT_MAX), pow2_below(half / COPY_WORKERS_MAX, COPY_PIECE_MAX));
    unsigned workers = (unsigned)min_u64(max_u64(half / piece, 1), COPY_WORKERS_MAX);
    l->c.job = &l->job;
    l->c.out = l->o.target;
    l->c.min_sparse = l->o.min_sparse;
    l->c.keep_space = l->o.keep_space;
    l->job = (struct copy_job){ .target = l->o.target, .flags = COPY_OUT_OF_ORDER | COPY_NO_FLUSH };
    l->part = (struct copy_part){ l->o.source, 0, l->size };
    l->c.w = (struct window){ .ops = &ops, .ctx = &l->c, .spread = true, .latency = l->o.latency };
    l->carry_limit = half;
    l->segment = (uint32_t)min_u64(LIVE_SEGMENT_MAX, max_u64(half / 4, PIECE_MIN));
    l->piece_locks = calloc(workers, sizeof *l->piece_locks);
    l->begun = calloc(workers, sizeof *l->begun);
    l->piece_locks_free = workers < 64 ? (UINT64_C(1) << workers) - 1 : UINT64_MAX;
    l->flight = FLIGHT_FIRST;
    int r = window_init(&l->c.w, workers, piece, err);
    if (!r)
        r = reader_init(&l->c.rd, &l->part, 1, err);
    if (!r)
        r = dirty_new(l->size, l->o.granularity_bits, NULL, &l->dirty);
    if (!r && l->o.part)
        r = dirty_new(l->size, l->o.granularity_bits, NULL, &l->whole);
    if (!r && (!l->piece_locks || !l->begun))
        r = -ENOMEM;
    return r ? byre_fail_code(err, NOMEM, r, "%s: no memory for a copy", graph_filename(l->o.source)) : 0;
}

int copy_live_start(struct co *co, const struct copy_live_opts *o, struct copy_live **ret_l, struct byre_err *err)
{
    if (graph_length(o->target) < graph_length(o->source))
        return byre_fail(err, NO_SPACE, "%s: has %" PRIu64 " bytes, %s has %" PRIu64, graph_filename(o->target), graph_length(o->target),
                         graph_filename(o->source), graph_length(o->source));
    if (graph_read_only(o->target))
        return byre_fail(err, READ_ONLY, "%s: is open read-only", graph_filename(o->target));
    struct copy_live *l = calloc(1, sizeof *l);
    if (!l)
        return byre_fail(err, NOMEM, "no memory for a copy");
    l->o = *o;
    copy_latency_ref(o->latency);
    l->home = co_loop(co);
    l->size = graph_length(o->source);
    l->rate = o->rate;
    l->watch.change = live_change;
    l->watch.follows = o->resize ? &live_follows : NULL;
    l->kick.fn = kicked;
    int r = live_prepare(l, err);
    if (!r && rt_spawn(l->home, live_main, l))
        r = byre_fail(err, NOMEM, "no memory for a copy");
    if (r) {
        live_free(l);
        return r;
    }
    if (o->alive)
        co_group_enter(o->alive);
    graph_ref(o->source);
    graph_ref(o->target);
    graph_watch_add(co, o->source, &l->watch);
    atomic_store(&l->blocking, o->blocking);                 /* not before: a change that waited for the target would keep add from returning */
    *ret_l = l;
    return 0;
}

void copy_live_stop(struct co *co, struct copy_live *l)
{
    atomic_store(&l->stop, true);
    copy_live_await(l, false);
    live_tell(l);
    graph_watch_remove(co, &l->watch);
    l->owner_gone = true;
    live_tell(l);
}

/* ---- what has to be copied at the beginning ---- */

/* The source has `st` at off: what of it, at most st->len, is on the target already? Marks the rest. */
static int scan_extent(struct co *co, struct copy_live *l, uint64_t off, struct graph_status *st)
{
    bool wanted = !l->o.above || st->present || st->past_end || st->zero;
    struct graph_status ts = { .len = st->len };
    if (wanted && st->zero && !l->o.keep_space) {
        int r = graph_status(co, l->o.target, NULL, off, st->len, &ts);
        if (r)
            return r;
        st->len = ts.len;
        wanted = !is_zero_there(l, &ts);
    }
    if (wanted)
        live_touched(l, off, st->len);
    return 0;
}

int copy_live_scan(struct co *co, struct copy_live *l, uint64_t off, uint64_t len, uint64_t *ret_len)
{
    struct graph_status st = { .len = len };
    while (atomic_load(&l->resizing) && !atomic_load(&l->stop))
        co_wait(co, &l->moved);
    l->scans++;
    int r = off < l->size ? graph_status(co, l->o.source, l->o.above, off, min_u64(min_u64(len, l->size - off), RANGE_MAX), &st) : 0;
    if (!r && off < l->size)
        r = scan_extent(co, l, off, &st);
    l->scans--;
    l->ended++;
    if (atomic_load(&l->resizing))
        live_tell(l);
    *ret_len = r ? 0 : st.len;
    return r;
}

void copy_live_left(const struct copy_live *l, struct dirty *d)
{
    dirty_merge(d, l->dirty);
    for (const struct co_range *r = l->busy.head; r; r = r->next)
        dirty_set(d, r->start, r->end - r->start);
}

void copy_live_mark(struct copy_live *l, uint64_t off, uint64_t len) { live_touched(l, off, len); }

/* ---- steering ---- */

void copy_live_pause(struct copy_live *l, bool on)
{
    atomic_store(&l->paused, on);
    live_tell(l);
}

void copy_live_hold_pieces(struct copy_live *l, bool on)
{
    l->pieces_held = on;
    live_tell(l);
}

void copy_live_set_rate(struct copy_live *l, uint64_t rate)
{
    if (rate == l->rate)
        return;
    l->rate = rate;
    l->rate_next_ns = 0;
    live_tell(l);
}

void copy_live_set_blocking(struct copy_live *l, bool on)
{
    atomic_store(&l->blocking, on);
    live_tell(l);
}

bool copy_live_is_blocking(const struct copy_live *l) { return atomic_load(&((struct copy_live *)(uintptr_t)l)->blocking); }

void copy_live_set_brake(struct copy_live *l, uint64_t guest_rate) { atomic_store(&l->brake, guest_rate); }

void copy_live_look(struct copy_live *l, struct copy_live_state *ret)
{
    uint64_t start, end;
    bool dirty = dirty_next(l->dirty, 0, l->size, &start, &end);
    bool calm = !dirty && !l->pieces && !l->error;
    *ret = (struct copy_live_state){
        .calm = calm, .clean = calm && !l->holds, .dirty = dirty ? min_u64(dirty_count(l->dirty), l->size) : 0,
        .in_flight = l->pieces_bytes, .copied = l->copied, .carried = atomic_load(&l->carried), .guest = atomic_load(&l->guest),
        .longest_hold_ns = atomic_exchange(&l->longest_hold_ns, 0), .error = l->error,
        .over = l->over || l->lost, .error_read = l->error_read, .error_off = l->error_off };
}

void copy_live_await(struct copy_live *l, bool on)
{
    if (on != l->awaited)
        tell_stream(l->o.target, on);    /* the owner flushes when it is clean */
    l->awaited = on;
}

void copy_live_retry(struct copy_live *l)
{
    if (!l->lost && !l->over)            /* it may have come to that while the owner waited */
        l->error = 0;
    live_tell(l);
}
