/* SPDX-License-Identifier: MIT
 *
 * compare.c: are two disks the same? (FEATURES 5.026 to 5.028)
 *
 * Purpose     Walks both by their status, reads only where one of them has data, and finds the first difference.
 * Owns        One struct comparing per job, on the frame of its caller.
 * Invariants  I1  The difference that is reported is the first by offset: pieces before it have been compared.
 *             I2  Past the end of the shorter disk the longer one is compared with zeros.
 * Order       None.
 * Concurrency As copy.c.
 * Failure     The failure with the lowest offset, unless a difference lies before it.
 * Tests       compare_test.c
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "copy/copy_priv.h"

enum side { SIDE_A, SIDE_B, SIDES };
enum { READ_A = 1u << SIDE_A, READ_B = 1u << SIDE_B };      /* kind of a piece: which sides have data */

struct comparing {
    const struct compare_job *job;
    struct window w;
    struct graph_node *node[SIDES];
    uint64_t len[SIDES];
    uint64_t pos, total, done;
    struct graph_status st[SIDES];       /* at pos; len 0: not known */
    struct status_ahead *ahead;          /* SIDES of them */
    struct compare_result res;
    uint64_t diff;                       /* lowest so far; UINT64_MAX: none */
    uint64_t fail;                       /* lowest offset that failed; UINT64_MAX: none */
    int error;
};

/* ---- the walk (job's loop) ---- */

static int note_failure(struct comparing *c, enum side side, uint64_t off, bool status, int error)
{
    if (off < c->fail) {
        c->fail = off;
        c->error = error;
        c->res.fail_off = off;
        c->res.fail_b = side == SIDE_B;
        c->res.fail_status = status;
    }
    return error;
}

static void note_difference(struct comparing *c, enum compare_verdict what, uint64_t off)
{
    if (off < c->diff) {
        c->diff = off;
        c->res.verdict = what;
        c->res.off = round_down(off, SECTOR);
    }
}

static int side_status(struct co *co, struct comparing *c, enum side side)
{
    struct graph_status *st = &c->st[side];
    if (st->len)
        return 0;
    if (c->pos >= c->len[side]) {
        *st = (struct graph_status){ .len = c->total - c->pos, .zero = true };
        return 0;
    }
    int r = status_at(co, &c->ahead[side], c->node[side], NULL, c->pos, min_u64(c->len[side] - c->pos, RANGE_MAX), st);
    if (r) {
        st->len = 0;
        return note_failure(c, side, c->pos, true, r);
    }
    return 0;
}

static bool same_status(const struct graph_status *a, const struct graph_status *b)
{
    return a->present == b->present && a->data == b->data && a->zero == b->zero && a->has_offset == b->has_offset;
}

static void walk_on(struct comparing *c, uint64_t len)
{
    c->pos += len;
    for (int s = 0; s < SIDES; s++) {
        struct graph_status *st = &c->st[s];
        st->len -= len;
        st->offset += len;
    }
}

/* A piece that has to be read, or 0 when there is none. */
static int next_piece(struct co *co, void *ctx, struct work_piece *p)
{
    struct comparing *c = ctx;
    while (c->pos < c->total && c->pos < c->diff) {
        if (c->job->cancel && atomic_load(c->job->cancel))
            return -ECANCELED;
        int r = side_status(co, c, SIDE_A);
        if (!r)
            r = side_status(co, c, SIDE_B);
        if (r)
            return 0;                    /* noted; what was handed out before may still differ */
        if (c->job->strict && !same_status(&c->st[SIDE_A], &c->st[SIDE_B])) {
            note_difference(c, COMPARE_STATUS, c->pos);
            return 0;
        }
        unsigned kind = (c->st[SIDE_A].zero ? 0 : READ_A) | (c->st[SIDE_B].zero ? 0 : READ_B);
        uint64_t len = min_u64(c->st[SIDE_A].len, c->st[SIDE_B].len), pos = c->pos;
        if (kind)
            len = min_u64(len, c->w.piece_bytes - (pos & (c->w.piece_bytes - 1)));
        walk_on(c, len);
        if (kind) {
            *p = (struct work_piece){ .pos = pos, .len = len, .kind = kind };
            return 1;
        }
        c->done += len;
    }
    return 0;
}

/* ---- comparing a piece (the worker's loop) ---- */

/* Offset of the first byte that differs from the other buffer (NULL: from zero); len: none does. */
static uint64_t first_difference(const uint8_t *a, const uint8_t *b, uint64_t len)
{
    static const uint8_t zeros[SECTOR];
    for (uint64_t at = 0; at < len; at += SECTOR) {
        uint64_t n = min_u64(SECTOR, len - at);
        if (memcmp(a + at, b ? b + at : zeros, n))
            return at;
    }
    return len;
}

struct told { struct comparing *c; enum side side; uint64_t off; int error; };

static int tell(struct co *co, void *arg)
{
    const struct told *t = arg;
    if (t->error)
        note_failure(t->c, t->side, t->off, false, t->error);
    else
        note_difference(t->c, COMPARE_CONTENT, t->off);
    return 0;
}

static int compare_piece(struct co *co, void *ctx, struct worker *wk)
{
    struct comparing *c = ctx;
    const struct work_piece *p = &wk->piece;
    struct told t = { .c = c, .off = p->pos };
    for (int s = 0; s < SIDES; s++) {
        struct iovec slot;
        if (!(p->kind & 1u << s))
            continue;
        t.error = graph_read(co, c->node[s], iov_one(&slot, wk->buf[s], p->len), p->pos);
        t.side = (enum side)s;
        if (t.error)
            return rt_call(co, c->w.home, tell, &t);
    }
    const uint8_t *a = p->kind & READ_A ? wk->buf[SIDE_A] : wk->buf[SIDE_B];
    const uint8_t *b = p->kind == (READ_A | READ_B) ? wk->buf[SIDE_B] : NULL;
    bool same = b ? !memcmp(a, b, p->len) : mem_is_zero(a, p->len);
    if (same)
        return 0;
    t.off = p->pos + first_difference(a, b, p->len);
    return rt_call(co, c->w.home, tell, &t);
}

static void piece_over(void *ctx, const struct work_piece *p, int r)
{
    struct comparing *c = ctx;
    c->done += p->len;
    if (c->job->progress)
        c->job->progress(c->job->arg, c->done, c->total);
}

/* ---- the job ---- */

static int verdict(struct comparing *c, int r, struct byre_err *err)
{
    if (r == -ECANCELED)
        return byre_fail(err, CANCELLED, "the comparison was cancelled");
    if (r)
        return byre_fail_code(err, IO, r, "the comparison failed");
    if (c->error && c->fail < c->diff)
        return byre_fail_code(err, IO, c->error, "%s: cannot %s at offset %" PRIu64, graph_filename(c->node[c->res.fail_b ? SIDE_B : SIDE_A]),
                              c->res.fail_status ? "get the status" : "read", c->fail);
    return 0;
}

int compare_run(struct co *co, const struct compare_job *job, struct compare_result *ret, struct byre_err *err)
{
    static const struct window_ops ops = { next_piece, compare_piece, piece_over };
    struct comparing c = { .job = job, .node = { job->a, job->b }, .diff = UINT64_MAX, .fail = UINT64_MAX };
    for (int s = 0; s < SIDES; s++)
        c.len[s] = graph_length(c.node[s]);
    c.total = max_u64(c.len[SIDE_A], c.len[SIDE_B]);
    c.res.size_differs = c.len[SIDE_A] != c.len[SIDE_B];
    c.w = (struct window){ .ops = &ops, .ctx = &c, .two_buffers = true, .spread = !(job->flags & COPY_NO_SPREAD) };
    int r = window_init(&c.w, job->workers, job->piece_bytes, err);
    c.ahead = r ? NULL : calloc(SIDES, sizeof *c.ahead);
    if (!c.ahead)
        return r ? r : byre_fail(err, NOMEM, "no memory to compare");
    if (job->strict && c.res.size_differs)
        note_difference(&c, COMPARE_SIZE, min_u64(c.len[SIDE_A], c.len[SIDE_B]));
    else
        r = window_run(co, &c.w, NULL);
    free(c.ahead);
    r = verdict(&c, r, err);
    *ret = c.res;
    return r;
}
