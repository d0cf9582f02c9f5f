/* SPDX-License-Identifier: MIT
 *
 * copy.c: the copy engine.
 *
 * Purpose     Walks the sources by their status, leaves out what the target has already, and moves the rest in
 *             pieces.
 * Owns        One struct copying per job, on the frame of its caller.
 * Invariants  copy.h I1 to I5. Further: what next() says of a range (data, zeros, nothing to do) is what status said of the
 *             source; a source that changes meanwhile is the caller's matter (live.h).
 * Order       The flush of the target comes last.
 * Concurrency next and done on the job's loop; copy_piece on any loop, touching its worker and constant fields only,
 *             except the counters, which are atomic.
 * Failure     The first error; struct copy_result says where.
 * Tests       copy_test.c
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "copy/copy_priv.h"
#include "graph/live.h"
#include "stor/nbd.h"

/* Longest piece that keeps others from what they want to write. */
#define CLAIM_MAX (UINT64_C(64) << 20)

/* ---- which pieces there are (job's loop) ---- */

static void tell_progress(struct copying *c)
{
    if (c->job->progress && c->done != c->done_told) {
        c->done_told = c->done;
        c->job->progress(c->job->arg, c->done, c->total);
    }
}

/* len bytes need nothing to be done. */
static void pass_over(struct copying *c, uint64_t len)
{
    c->pos += len;
    if (!(c->job->flags & COPY_WORK))
        c->done += len;
}

/* Moves pos to the next wanted byte. false: there is none. */
static bool find_wanted(struct copying *c)
{
    if (c->pos >= c->want_end && c->pos < c->total) {
        uint64_t start, end;
        if (!c->job->select) {
            start = c->pos;
            end = c->total;
        } else if (!c->job->select(c->job->select_arg, c->pos, &start, &end)) {
            start = end = c->total;
        }
        ASSERT(end > c->pos);
        c->want_start = max_u64(start, c->pos);
        c->want_end = min_u64(end, c->total);
    }
    uint64_t from = min_u64(max_u64(c->pos, c->want_start), c->total);
    pass_over(c, from - c->pos);
    return c->pos < c->total;
}

/* The disk that supplies what is left out (COPY_BACKED). */
static struct graph_node *supplier(const struct copying *c)
{
    return c->job->against ? c->job->against : c->job->target;
}

/* What it has at `at`, at most len bytes; zeros behind its end. */
static int look_at_supplier(struct co *co, const struct copying *c, uint64_t at, uint64_t len, struct graph_status *st)
{
    uint64_t end = graph_length(supplier(c));
    if (at < end)
        return graph_status(co, supplier(c), NULL, at, min_u64(len, end - at), st);
    *st = (struct graph_status){ .len = len, .zero = true };
    return 0;
}

/* The source reads zeros for *len bytes at pos: what has the target there? May shorten *len. */
static int look_at_target(struct co *co, struct copying *c, uint64_t *len)
{
    struct graph_status st;
    c->ext_skip = c->target_zero && !c->job->claims;      /* who wants it back must be told */
    if (c->target_zero || !(c->job->flags & COPY_BACKED))
        return 0;
    int r = look_at_supplier(co, c, c->job->target_off + c->pos, *len, &st);
    if (r)
        return r;
    *len = st.len;
    c->ext_skip = st.zero;
    if (!st.zero)
        c->ext_kind = KIND_BLANK;
    return 0;
}

/* The extent at pos ends with a cluster of the target; where it cannot, the cluster is data. Returns its length. */
static uint64_t fit_clusters(struct copying *c, uint64_t len)
{
    bool mixed;
    len = pack_extent(&c->whole, c->job->target_off + c->pos, len, c->ext_kind == KIND_DATA && !c->ext_skip, &mixed);
    if (mixed) {
        c->ext_kind = KIND_DATA;
        c->ext_skip = false;
    }
    return min_u64(len, c->total - c->pos);
}

/* COPY_BELOW: is what the source has at off held by a layer above? *len: for how many bytes that holds. */
static int held_above(struct co *co, struct copying *c, struct graph_node *n, uint64_t off, uint64_t *len, bool *ret_held)
{
    struct graph_status st;
    *ret_held = false;
    if (!(c->job->flags & COPY_BELOW))
        return 0;
    int r = status_at(co, c->ahead + 1, n, c->job->below, off, *len, &st);
    if (r)
        return r;
    *len = st.len;
    *ret_held = st.present;
    return 0;
}

/* Learns what the source has at pos. */
static int find_extent(struct co *co, struct copying *c)
{
    uint64_t off, len;
    bool held;
    const struct copy_part *part = reader_at(&c->rd, c->pos, &off, &len);
    struct graph_node *bottom = c->bottom[part - c->rd.parts];
    struct graph_status st;
    len = min_u64(len, RANGE_MAX);
    int r = held_above(co, c, part->node, off, &len, &held);
    if (!r && held)
        st = (struct graph_status){ .len = len, .data = true, .present = true };      /* whatever it is: it is not copied */
    else if (!r)
        r = status_at(co, c->ahead, part->node, bottom, off, len, &st);
    if (r && c->job->flags & COPY_SALVAGE)
        st = (struct graph_status){ .len = min_u64(len, PIECE_MIN), .data = true };
    else if (r)
        return r;
    c->ext_kind = st.zero ? KIND_ZERO : KIND_DATA;
    c->ext_skip = held || (bottom && !st.present && !st.past_end && !st.zero && !r);
    len = st.len;
    if (c->ext_kind == KIND_ZERO && c->min_sparse && !held) {
        r = look_at_target(co, c, &len);
        if (r)
            return r;
    }
    if (c->whole.unit)
        len = fit_clusters(c, len);
    c->ext_end = c->pos + len;
    return 0;
}

/* Does the extent at pos take bytes to be written? */
static bool is_data(const struct copying *c)
{
    return c->ext_kind != KIND_ZERO || !c->min_sparse;
}

/* Bytes of the piece at pos: data up to a border of piece_bytes in the target, zeros as far as they go. */
static uint64_t piece_len(const struct copying *c)
{
    uint64_t len = min_u64(c->ext_end, c->want_end) - c->pos, most = c->job->claims ? CLAIM_MAX : RANGE_MAX;
    if (is_data(c))
        most = c->w.piece_bytes - ((c->job->target_off + c->pos) & (c->w.piece_bytes - 1));
    uint64_t rate = c->job->hooks.speed ? c->job->hooks.speed(c->job->hooks.arg) : c->job->rate;
    if (rate && is_data(c))
        most = min_u64(most, round_up(max_u64(rate / 8, SECTOR), max_u64(SECTOR, c->whole.unit)));
    return min_u64(len, most);
}

/* Waits until the rate allows len more bytes. */
static int pace(struct co *co, struct copying *c, uint64_t len)
{
    uint64_t now = rt_now(co_loop(co));
    if (c->job->hooks.step)
        return c->job->hooks.step(co, c->job->hooks.arg, len);
    if (!c->job->rate)
        return 0;
    if (c->rate_next_ns < now)
        c->rate_next_ns = now;
    uint64_t wait = c->rate_next_ns - now;
    c->rate_next_ns += (uint64_t)((unsigned __int128)len * 1000000000u / c->job->rate);
    return wait ? co_sleep(co, wait) : 0;
}

/* As far as errors go that somebody wants to be asked about. */
static int learn_extent(struct co *co, struct copying *c)
{
    uint64_t begun_ns = rt_now(co_loop(co));
    int r = find_extent(co, c);
    while (r < 0) {
        uint64_t off, left;
        (void)reader_at(&c->rd, c->pos, &off, &left);
        struct copy_failure f = { r, true, c->pos, min_u64(min_u64(left, c->want_end - c->pos), PIECE_MIN - off % PIECE_MIN) };
        if (c->job->hooks.failed)
            r = c->job->hooks.failed(co, c->job->hooks.arg, &f);
        if (r == COPY_LEAVE) {
            c->ext_end = c->pos + f.len;
            c->ext_skip = true;
            atomic_fetch_add(&c->left_out, f.len);
            return 0;
        }
        if (r == 0)
            r = find_extent(co, c);
        else
            break;
    }
    if (r) {
        c->fail_off = c->pos;
        c->fail_begun_ns = begun_ns;
        c->fail_read = c->failed = true;
    }
    return r;
}

static int next_piece(struct co *co, void *ctx, struct work_piece *p)
{
    struct copying *c = ctx;
    for (unsigned n = 1;; n++) {
        if (c->job->cancel && atomic_load(c->job->cancel))
            return -ECANCELED;
        if (!find_wanted(c)) {
            tell_progress(c);
            return 0;
        }
        int r = c->pos >= c->ext_end ? learn_extent(co, c) : 0;
        if (r)
            return r;
        uint64_t len = piece_len(c);
        if (!c->ext_skip) {
            *p = (struct work_piece){ .pos = c->pos, .len = len, .kind = c->ext_kind, .fail_off = c->pos };
            c->pos += len;
            r = is_data(c) ? pace(co, c, len) : c->job->hooks.step ? pace(co, c, 0) : 0;
            return r ? r : 1;
        }
        r = c->job->hooks.step ? pace(co, c, 0) : 0;
        if (r)
            return r;
        len = min_u64(c->ext_end, c->want_end) - c->pos;
        atomic_fetch_add(&c->skipped, len);
        pass_over(c, len);
        tell_progress(c);
        if (n % STATUS_MAX == 0)
            co_breathe(co);
    }
}

static struct copy_taken taken(const struct work_piece *p) { return (struct copy_taken){ p->lock, p->pos, p->len }; }

static void piece_over(void *ctx, const struct work_piece *p, int r)
{
    struct copying *c = ctx;
    const struct copy_taken t = taken(p);
    if (p->claimed)
        c->job->claims->give(c->job->claims->arg, &t, r == 0);
    if (r && !c->failed && r != -ECANCELED) {
        c->failed = true;
        c->fail_off = p->fail_off;
        c->fail_begun_ns = p->begun_ns;
        c->fail_read = p->fail_read;
    }
    c->done += p->len;
    tell_progress(c);
}

/* ---- what is done with a piece (the worker's loop) ---- */

static void count(_Atomic uint64_t *what, uint64_t bytes)
{
    atomic_fetch_add_explicit(what, bytes, memory_order_relaxed);
}

/* Before the first change of the target by this piece. */
static int take_turn(struct co *co, const struct copying *c, struct worker *wk)
{
    if (c->job->flags & COPY_OUT_OF_ORDER || wk->piece.turned)
        return 0;
    wk->piece.turned = true;
    return window_turn(co, wk);
}

/* Writes bytes that stand at buf; pos: position of buf[0]. */
static int put_data(struct co *co, struct copying *c, struct worker *wk, const uint8_t *buf, uint64_t pos, uint64_t len)
{
    struct iovec slot;
    struct pack_bytes b = { buf, c->job->target_off + pos, len };
    int r = take_turn(co, c, wk);
    if (!r && c->place.unit)
        r = pack_write(co, &c->place, &wk->packed, &b);
    else if (!r && c->job->flags & COPY_ABSENT)
        r = graph_write_absent(co, c->job->target, iov_one(&slot, buf, len), b.at);
    else if (!r)
        r = graph_write(co, c->out, iov_one(&slot, buf, len), b.at, 0);
    if (!r)
        count(&c->written, len);
    return r;
}

/* Where the format cannot say zero. The buffer is not in use: zeros are pieces of their own, or parts of it. */
static int put_absent_zeros(struct co *co, const struct copying *c, uint64_t at, uint64_t len)
{
    static const uint8_t zeros[PIECE_MIN] __attribute__((aligned(BUF_ALIGN)));
    int r = graph_zero_absent(co, c->job->target, at, len);
    for (uint64_t n, end = at + len; r == -ENOTSUP && at < end; at += n) {
        struct iovec slot;
        n = min_u64(end - at, PIECE_MIN - at % PIECE_MIN);
        int w = graph_write_absent(co, c->job->target, iov_one(&slot, zeros, n), at);
        if (w)
            return w;
    }
    return r == -ENOTSUP ? 0 : r;
}

int put_zeros(struct co *co, struct copying *c, struct worker *wk, uint64_t pos, uint64_t len)
{
    if (c->target_zero) {
        count(&c->skipped, len);
        return 0;
    }
    int r = take_turn(co, c, wk);
    if (!r && c->job->flags & COPY_ABSENT)
        r = put_absent_zeros(co, c, c->job->target_off + pos, len);
    else if (!r)
        r = graph_zero(co, c->out, c->job->target_off + pos, len, c->keep_space ? 0 : GRAPH_UNMAP);
    if (!r)
        count(&c->zeroed, len);
    return r;
}

/* Writes [from, to) of the worker's buffer: data as data, long runs of zeros as zeros. */
int put_range(struct co *co, struct copying *c, struct worker *wk, uint64_t from, uint64_t to)
{
    while (from < to) {
        const uint8_t *buf = wk->buf[0] + from;
        uint64_t pos = wk->piece.pos + from, run = to - from;
        bool zero = false;
        if (c->min_sparse && c->place.unit)
            run = pack_run(&c->place, buf, run, c->job->target_off + pos, &zero);
        else if (c->min_sparse)
            run = sparse_run(buf, run, c->job->target_off + pos, c->min_sparse, &zero);
        int r = zero ? put_zeros(co, c, wk, pos, run) : put_data(co, c, wk, buf, pos, run);
        if (r) {
            wk->piece.fail_off = pos;
            return r;
        }
        from += run;
    }
    return 0;
}

/* What the supplier has for the piece. */
static int read_supplier(struct co *co, const struct copying *c, uint8_t *buf, uint64_t at, uint64_t len)
{
    struct iovec slot;
    uint64_t end = graph_length(supplier(c)), have = at < end ? min_u64(len, end - at) : 0;
    memset(buf + have, 0, len - have);
    return have ? graph_read(co, supplier(c), iov_one(&slot, buf, have), at) : 0;
}

/* Writes what differs from what the supplier has. */
static int put_differences(struct co *co, struct copying *c, struct worker *wk)
{
    uint64_t len = wk->piece.len, at = c->job->target_off + wk->piece.pos, granule = max_u64(graph_image(c->job->target)->granule, max_u64(SECTOR, c->place.unit));
    int r = read_supplier(co, c, wk->buf[1], at, len);
    uint64_t from = 0, pos = 0;          /* [from, pos) differs and is not written yet */
    while (!r && pos < len) {
        uint64_t part = min_u64(granule - (at + pos) % granule, len - pos);
        bool same = !memcmp(wk->buf[0] + pos, wk->buf[1] + pos, part);
        if (same) {
            r = put_range(co, c, wk, from, pos);
            from = pos + part;
            count(&c->skipped, part);
        }
        pos += part;
    }
    return r ? r : put_range(co, c, wk, from, len);
}

/* ---- reading ---- */

struct salvage { struct copying *c; uint64_t pos, len; int error; };

static int tell_salvaged(struct co *co, void *arg)
{
    const struct salvage *s = arg;
    if (s->c->job->salvaged)
        s->c->job->salvaged(s->c->job->arg, s->pos, s->len, s->error);
    return 0;
}

/* With COPY_COMPRESS a cluster may hold the end of one source and the beginning of the next. */
int read_part(struct co *co, struct copying *c, uint8_t *buf, uint64_t pos, uint64_t len)
{
    int r = 0;
    for (uint64_t n; len && !r; buf += n, pos += n, len -= n) {
        struct iovec slot;
        uint64_t off, left;
        const struct copy_part *part = reader_at(&c->rd, pos, &off, &left);
        n = min_u64(len, left);
        r = graph_read(co, part->node, iov_one(&slot, buf, n), off);
    }
    return r;
}

/* Reads in small steps, and where one fails sector by sector: zeros for the sectors that cannot be read. */
static int read_salvaging(struct co *co, struct copying *c, struct worker *wk)
{
    uint64_t step = 128 * SECTOR, at = 0;
    while (at < wk->piece.len) {
        uint64_t n = min_u64(step, wk->piece.len - at);
        int r = read_part(co, c, wk->buf[0] + at, wk->piece.pos + at, n);
        if (r && step > SECTOR) {
            step = SECTOR;
            continue;
        }
        if (r) {
            struct salvage s = { c, wk->piece.pos + at, n, r };
            memset(wk->buf[0] + at, 0, n);
            count(&c->unreadable, n);
            r = rt_call(co, c->w.home, tell_salvaged, &s);
            if (r)
                return r;
        }
        at += n;
        if (at % (128 * SECTOR) == 0)
            step = 128 * SECTOR;
    }
    return 0;
}

static int read_piece(struct co *co, struct copying *c, struct worker *wk)
{
    int r = read_part(co, c, wk->buf[0], wk->piece.pos, wk->piece.len);
    if (r && c->job->flags & COPY_SALVAGE)
        r = read_salvaging(co, c, wk);
    wk->piece.fail_read = r != 0;
    if (!r)
        count(&c->read, wk->piece.len);
    return r;
}

#define VAIN_MAX 16u                         /* then the kernel is not asked any more: it costs a wait each time, of guests, too */

bool kernel_may_copy(const struct copying *c) { return atomic_load(&((struct copying *)(uintptr_t)c)->vain) < VAIN_MAX; }

int copy_by_kernel(struct co *co, struct copying *c, uint64_t at, uint64_t end)
{
    while (at < end) {
        uint64_t off, left;
        const struct copy_part *part = reader_at(&c->rd, at, &off, &left);
        int64_t n = graph_copy_now(co, c->out, c->job->target_off + at, part->node, off, min_u64(end - at, left));
        if (n <= 0) {
            atomic_fetch_add(&c->vain, n != -EBUSY);
            return n == -EBUSY ? -EBUSY : 0;
        }
        count(&c->offloaded, (uint64_t)n);
        count(&c->written, (uint64_t)n);
        at += (uint64_t)n;
    }
    atomic_store(&c->vain, 0);
    return 1;
}

/* Of a source that nobody writes. The piece is shortened by what was copied; what was not is copied as usual, also behind an error: that tells whose it is. */
static int offload(struct co *co, struct copying *c, struct worker *wk)
{
    struct work_piece *p = &wk->piece;
    int r = take_turn(co, c, wk);
    while (!r && p->len) {
        uint64_t off, left;
        const struct copy_part *part = reader_at(&c->rd, p->pos, &off, &left);
        int64_t n = graph_copy(co, c->job->target, c->job->target_off + p->pos, part->node, off, min_u64(p->len, left));
        if (n <= 0)
            break;
        count(&c->offloaded, (uint64_t)n);
        count(&c->written, (uint64_t)n);
        p->pos += (uint64_t)n;
        p->len -= (uint64_t)n;
        p->fail_off = p->pos;
    }
    return r;
}

/* Before the turn of the piece comes (pack.c I1). */
static int encode_piece(struct co *co, struct copying *c, struct worker *wk)
{
    struct pack_bytes b = { wk->buf[0], c->job->target_off + wk->piece.pos, wk->piece.len };
    return c->place.unit ? pack_encode(co, &c->place, &c->encoding, &b, &wk->packed) : 0;
}

static int copy_data(struct co *co, struct copying *c, struct worker *wk)
{
    int r = c->job->flags & COPY_OFFLOAD ? offload(co, c, wk) : 0;
    if (r || !wk->piece.len)
        return r;
    r = read_piece(co, c, wk);
    if (!r)
        r = encode_piece(co, c, wk);
    if (r)
        return r;
    return c->job->flags & COPY_BACKED ? put_differences(co, c, wk) : put_range(co, c, wk, 0, wk->piece.len);
}

static int put_blank(struct co *co, struct copying *c, struct worker *wk)
{
    memset(wk->buf[0], 0, wk->piece.len);
    int r = encode_piece(co, c, wk);
    if (r)
        return r;
    if (wk->piece.kind == KIND_BLANK)
        return put_differences(co, c, wk);
    return put_data(co, c, wk, wk->buf[0], wk->piece.pos, wk->piece.len);
}

/* ---- pieces of a source that others write ---- */

struct taking { struct copying *c; struct worker *wk; };

static int take_on_home(struct co *co, void *arg)
{
    struct taking *t = arg;
    const struct copy_claims *cl = t->c->job->claims;
    t->wk->piece.lock = (unsigned)(t->wk - t->c->w.all);
    const struct copy_taken what = taken(&t->wk->piece);
    int r = cl->take(co, cl->arg, &what);
    t->wk->piece.claimed = r == 0;
    return r;
}

/* What is wanted still. zeros: the buffer holds nothing. */
static int put_wanted(struct co *co, struct copying *c, struct worker *wk, bool zeros)
{
    const struct copy_claims *cl = c->job->claims;
    uint64_t pos = wk->piece.pos, end = pos + wk->piece.len, start, stop;
    int r = 0;
    for (uint64_t at = pos; !r && at < end && cl->wanted(cl->arg, at, &start, &stop) && start < end; at = stop) {
        start = max_u64(start, at);
        stop = min_u64(stop, end);
        r = zeros ? put_zeros(co, c, wk, start, stop - start) : put_range(co, c, wk, start - pos, stop - pos);
    }
    return r;
}

static int give_on_home(struct co *co, void *arg)
{
    struct taking *t = arg;
    const struct copy_claims *cl = t->c->job->claims;
    const struct copy_taken what = taken(&t->wk->piece);
    cl->give(cl->arg, &what, false);
    t->wk->piece.claimed = false;
    return 0;
}

/* What is wanted of a piece that is taken: nobody changes the source there. As copy_by_kernel. */
static int offload_wanted(struct co *co, struct copying *c, struct worker *wk)
{
    const struct copy_claims *cl = c->job->claims;
    uint64_t end = wk->piece.pos + wk->piece.len, at = wk->piece.pos, start, stop;
    int r = 1;
    for (; r > 0 && at < end && cl->wanted(cl->arg, at, &start, &stop) && start < end; at = stop)
        r = copy_by_kernel(co, c, max_u64(start, at), min_u64(stop, end));
    return r;
}

/* 1: the kernel has copied it. 0: it is to be copied as usual, also behind an error: that tells whose it is. What was copied already is
 * written once more then. */
static int offload_claimed(struct co *co, struct copying *c, struct worker *wk)
{
    struct taking t = { c, wk };
    if (!(c->job->flags & COPY_OFFLOAD) || wk->piece.kind != KIND_DATA || !kernel_may_copy(c))
        return 0;
    int r = rt_call(co, c->w.home, take_on_home, &t);
    if (r)
        return r;
    return offload_wanted(co, c, wk) > 0 ? 1 : rt_call(co, c->w.home, give_on_home, &t);
}

static int claimed_piece(struct co *co, struct copying *c, struct worker *wk)
{
    int done = offload_claimed(co, c, wk);
    if (done)
        return done < 0 ? done : 0;
    bool zeros = wk->piece.kind == KIND_ZERO && c->min_sparse;
    int r = 0;
    if (!zeros && wk->piece.kind == KIND_DATA)
        r = read_piece(co, c, wk);
    else if (!zeros)
        memset(wk->buf[0], 0, wk->piece.len);
    if (!r && !zeros)
        r = encode_piece(co, c, wk);
    if (!r)
        r = rt_call(co, c->w.home, take_on_home, &(struct taking){ c, wk });
    return r ? r : put_wanted(co, c, wk, zeros);
}

static int try_piece(struct co *co, struct copying *c, struct worker *wk)
{
    if (c->job->claims) {
        wk->packed = (struct packed){ .e = NULL };
        int r = claimed_piece(co, c, wk);
        packed_fini(&wk->packed);
        return r;
    }
    if (wk->piece.kind == KIND_ZERO && c->min_sparse)
        return put_zeros(co, c, wk, wk->piece.pos, wk->piece.len);
    wk->packed = (struct packed){ .e = NULL };
    int r = wk->piece.kind == KIND_DATA ? copy_data(co, c, wk) : put_blank(co, c, wk);
    packed_fini(&wk->packed);
    return r;
}

struct asking { const struct copying *c; struct copy_failure f; };

static int ask_failed(struct co *co, void *arg)
{
    const struct asking *a = arg;
    return a->c->job->hooks.failed(co, a->c->job->hooks.arg, &a->f);
}

static int copy_piece(struct co *co, void *ctx, struct worker *wk)
{
    struct copying *c = ctx;
    struct work_piece *p = &wk->piece;
    int r = try_piece(co, c, wk);
    while (r < 0 && r != -ECANCELED && c->job->hooks.failed) {
        struct asking a = { c, { r, p->fail_read, p->fail_off, p->len } };
        r = rt_call(co, c->w.home, ask_failed, &a);
        if (r == COPY_LEAVE) {
            count(&c->left_out, p->len);
            return 0;
        }
        if (r)
            return r;
        p->fail_read = false;
        p->fail_off = p->pos;
        r = try_piece(co, c, wk);
    }
    return r;
}

/* ---- the job ---- */

/* Extents of the target that are looked at before it is held not to be all zero. */
#define ZERO_EXTENTS_MAX 64

static bool target_is_zero(struct co *co, const struct copying *c)
{
    uint64_t at = c->job->target_off, end = at + c->total;
    for (unsigned i = 0; i < ZERO_EXTENTS_MAX && at < end; i++) {
        struct graph_status st;
        if (graph_status(co, c->job->target, NULL, at, end - at, &st) || !st.zero)
            return false;
        at += st.len;
    }
    return at >= end;
}

/* Makes the target zero if that costs little. */
static void prepare_target(struct co *co, struct copying *c)
{
    const struct copy_job *job = c->job;
    c->target_zero = (job->flags & COPY_TARGET_ZERO) != 0;
    if (c->target_zero || !(job->flags & COPY_PRE_ZERO) || job->select || !c->min_sparse || !c->total)
        return;
    c->target_zero = target_is_zero(co, c) || !graph_zero(co, job->target, job->target_off, c->total, GRAPH_UNMAP | GRAPH_NO_FALLBACK);
}

static int prepare_walk(struct copying *c, struct byre_err *err)
{
    const struct copy_job *job = c->job;
    c->bottom = calloc(job->part_count + 1, sizeof *c->bottom);
    c->ahead = calloc(2, sizeof *c->ahead);
    if (!c->bottom || !c->ahead)
        return byre_fail(err, NOMEM, "no memory for %u sources", job->part_count);
    struct graph_node *base = job->against ? job->against : (job->flags & (COPY_BACKED | COPY_USED)) == COPY_BACKED ? graph_backing(job->target) : NULL;
    for (unsigned i = 0; i < job->part_count && job->above; i++)
        c->bottom[i] = job->above;
    for (unsigned i = 0; i < job->part_count && base; i++)
        for (struct graph_node *n = graph_backing(job->parts[i].node); n; n = graph_backing(n))
            if (n == base && job->parts[i].off == job->target_off + c->rd.start[i])
                c->bottom[i] = n;
    return 0;
}

static int check_job(const struct copying *c, struct byre_err *err)
{
    const struct copy_job *job = c->job;
    uint64_t have = graph_length(job->target);
    if (job->min_sparse % SECTOR)
        return byre_fail(err, BAD_ARGUMENT, "%" PRIu64 ": the shortest run of zeros must be a multiple of %u", job->min_sparse, SECTOR);
    if ((job->against && !(job->flags & COPY_BACKED)) || (job->above && job->flags & COPY_BACKED))
        return byre_fail(err, BAD_ARGUMENT, "%s: these ways to choose what is copied exclude one another", graph_filename(job->target));
    if (job->flags & COPY_ABSENT && job->flags & (COPY_BACKED | COPY_COMPRESS | COPY_OFFLOAD))
        return byre_fail(err, BAD_ARGUMENT, "%s: what is absent can only be written plainly", graph_filename(job->target));
    if (job->claims && (job->flags & (COPY_BACKED | COPY_ABSENT | COPY_SALVAGE) || !(job->flags & COPY_OUT_OF_ORDER) || job->target_off))
        return byre_fail(err, BAD_ARGUMENT, "%s: a source that others write is copied plainly, in any order", graph_filename(job->target));
    if (job->flags & COPY_BACKED && job->flags & COPY_TARGET_ZERO)
        return byre_fail(err, BAD_ARGUMENT, "%s: cannot both hide a backing image and be all zeros", graph_filename(job->target));
    if (job->flags & COPY_COMPRESS && job->flags & COPY_OFFLOAD)
        return byre_fail(err, BAD_ARGUMENT, "%s: what the kernel copies cannot be compressed", graph_filename(job->target));
    if (job->flags & COPY_COMPRESS && !graph_image(job->target)->encode_bytes)
        return byre_fail(err, NOT_SUPPORTED, "%s: this image (%s) cannot hold compressed clusters", graph_filename(job->target), graph_format(job->target)->name);
    if (graph_read_only(job->target))
        return byre_fail(err, READ_ONLY, "%s: is open read-only", graph_filename(job->target));
    if (!range_inside(job->target_off, c->total, have))
        return byre_fail(err, NO_SPACE, "%s: has %" PRIu64 " bytes, %" PRIu64 " are to be copied to offset %" PRIu64, graph_filename(job->target), have,
                         c->total, job->target_off);
    return 0;
}

static int tell_failure(const struct copying *c, int r, struct byre_err *err)
{
    if (r == -ECANCELED)
        return byre_fail(err, CANCELLED, "the copy was cancelled");
    if (!c->failed)
        return byre_fail_code(err, IO, r, "the copy failed");
    uint64_t off = c->job->target_off + c->fail_off, left;
    const struct graph_node *n = c->fail_read ? reader_at(&c->rd, c->fail_off, &off, &left)->node : c->job->target;
    char said[GRAPH_COMPLAINT_MAX];
    bool more = graph_complaint(n, r, c->fail_begun_ns, said);
    return byre_fail_code(err, IO, r, "%s: cannot %s at offset %" PRIu64 "%s%s", graph_filename(n), c->fail_read ? "read" : "write", off, more ? "; " : "", more ? said : "");
}

static void prepare_packing(struct copying *c)
{
    c->place = (struct pack_place){ c->job->target, graph_image(c->job->target)->encode_bytes, graph_length(c->job->target), c->out };
    c->whole = c->place;
    c->encoding = c->job->encoding;
    c->encoding.leave_zeros = c->min_sparse != 0;
    c->w.piece_bytes = (uint32_t)max_u64(c->w.piece_bytes, c->place.unit);
}

static void prepare_claims(struct copying *c)
{
    const struct copy_claims *cl = c->job->claims;
    c->whole = (struct pack_place){ .unit = max_u64(cl->unit, c->place.unit), .end = c->job->target_off + c->total };
    c->w.piece_bytes = (uint32_t)max_u64(c->w.piece_bytes, c->whole.unit);
}

void tell_stream(struct graph_node *target, bool on)
{
    const struct fmt_image *im = graph_image(target);
    stor_stream(im->store, on);
    if (im->data != im->store)
        stor_stream(im->data, on);
}

static void stream(const struct copying *c, bool on)
{
    if (!(c->job->flags & COPY_NO_FLUSH))
        tell_stream(c->job->target, on);
}

/* Where one loop has all the work there is: pieces that are written one at a time, each waiting for the last (what is compressed is so on the CPU
 * pool, several at a time), and a server at the other end of a socket, which needs processors itself. Hand-overs between loops cost more there
 * than a second thread that copies from the page cache gains. */
static bool one_loop(const struct copying *c)
{
    bool in_turn = !(c->job->flags & (COPY_OUT_OF_ORDER | COPY_COMPRESS));
    return c->job->flags & COPY_NO_SPREAD || in_turn || stor_is_nbd(graph_image(c->job->target)->data);
}

static int run_checked(struct co *co, struct copying *c, struct byre_err *err)
{
    static const struct window_ops ops = { next_piece, copy_piece, piece_over };
    const struct copy_job *job = c->job;
    c->w = (struct window){ .ops = &ops, .ctx = c, .two_buffers = job->flags & COPY_BACKED, .spread = !one_loop(c), .latency = job->hooks.latency };
    int r = window_init(&c->w, job->workers, job->piece_bytes, err);
    if (r)
        return r;
    if (job->flags & COPY_COMPRESS)
        prepare_packing(c);
    if (job->claims)
        prepare_claims(c);
    prepare_target(co, c);
    stream(c, true);
    if (job->progress)
        job->progress(job->arg, 0, c->total);
    r = window_run(co, &c->w, err);
    stream(c, false);
    if (r)
        return c->w.error ? tell_failure(c, r, err) : r;
    if (job->flags & COPY_NO_FLUSH)
        return 0;
    r = graph_flush(co, job->target);
    return r ? byre_fail_code(err, IO, r, "%s: cannot flush", graph_filename(job->target)) : 0;
}

static void fill_result(const struct copying *c, struct copy_result *ret)
{
    if (!ret)
        return;
    *ret = (struct copy_result){
        .read = c->read, .written = c->written, .zeroed = c->zeroed, .skipped = c->skipped, .offloaded = c->offloaded,
        .unreadable = c->unreadable, .left_out = c->left_out, .fail_off = c->fail_off, .fail_read = c->fail_read,
    };
}

/* Extents are read from tables in memory for the most part: others get their turn now and then. */
static int count_work(struct co *co, struct copying *c, uint64_t *bytes)
{
    int r = 0;
    for (unsigned n = 0; !r && find_wanted(c); n++) {
        r = find_extent(co, c);
        if (r == -ECANCELED)
            return r;
        if (r) {                             /* the copy meets it as well, and has a policy for it: until then all the rest is work */
            *bytes += c->total - c->pos;
            return 0;
        }
        uint64_t end = min_u64(c->ext_end, c->want_end);
        *bytes += c->ext_skip ? 0 : end - c->pos;
        c->pos = end;
        r = c->job->hooks.step ? pace(co, c, 0) : 0;
        if (n % STATUS_MAX == 0)
            co_breathe(co);
    }
    return r;
}

int copy_work(struct co *co, const struct copy_job *job, uint64_t *ret_bytes, struct byre_err *err)
{
    struct copying c = { .job = job, .min_sparse = job->min_sparse, .out = job->target, .target_zero = job->flags & COPY_TARGET_ZERO };
    uint64_t bytes = 0;
    int r = reader_init(&c.rd, job->parts, job->part_count, err);
    if (r)
        return r;
    c.total = reader_total(&c.rd);
    r = prepare_walk(&c, err);
    if (!r)
        r = count_work(co, &c, &bytes);
    free(c.bottom);
    free(c.ahead);
    reader_fini(&c.rd);
    if (r == -ECANCELED)
        return byre_fail(err, CANCELLED, "the copy was cancelled");
    if (!r)
        *ret_bytes = bytes;
    return r;
}

int copy_run(struct co *co, const struct copy_job *job, struct copy_result *ret, struct byre_err *err)
{
    struct copying c = { .job = job, .min_sparse = job->min_sparse, .out = job->claims ? job->claims->door : job->target };
    int r = reader_init(&c.rd, job->parts, job->part_count, err);
    if (r)
        return r;
    c.total = reader_total(&c.rd);
    r = check_job(&c, err);
    if (!r)
        r = prepare_walk(&c, err);
    if (!r)
        r = run_checked(co, &c, err);
    fill_result(&c, ret);
    free(c.bottom);
    free(c.ahead);
    reader_fini(&c.rd);
    return r;
}
