/* SPDX-License-Identifier: MIT
 *
 * cbw_copy.c: what a change does before it happens: old content goes to the target.
 *
 * Purpose     Cuts what a change touches and is todo into steps, several at a time; reads each step from the source and writes it to the target.
 * Owns        The steps of a change; struct send: a write to the target with bytes of its own, which the change may leave alone.
 * Invariants  cbw.h B1, B3 to B5. Further:
 *             C1  The source is read by the change's own coroutine, inside the gate that the change is in; only the write to the target may be left
 *                 alone, and it has entered the target's gate before that.
 *             C2  A step whose write was left alone keeps its lock until the write has ended; its granules stay todo.
 *             C3  What was looked at when the snapshot had been broken, or stopped, already is not old: changes come without a copy from then on, and
 *                 wait for no lock. It does not go to the target, whose readers (B6) ask nobody.
 * Order       The change follows its copies (J4).
 * Concurrency On the loop of the change.
 * Failure     By the policy: the change fails, or the snapshot is broken (B5).
 * Tests       cbw_test.c
 */
#include <stdlib.h>

#include "base/mutant.h"
#include "graph/cbw_priv.h"

#define BUF_ALIGN 4096u

struct send {
    struct cbw_hold *h;
    epoch_token tok;                             /* of the target's gate */
    uint64_t off, len;
    uint8_t *buf;                                /* NULL: zeros */
    int result;
    bool done, left;                             /* left: nobody waits, the send frees itself */
    struct co_waitq q;
};

/* ---- to the target ---- */

static void send_free(struct send *s)
{
    free(s->buf);
    free(s);
}

/* Reads the target the same as zeros already, whatever happens elsewhere? Shortens *len. */
static bool is_zero_there(struct co *co, const struct cbw *cb, uint64_t off, uint64_t *len)
{
    struct graph_status st;
    if (node_status(co, cb->target, NULL, off, *len, &st))
        return false;
    *len = st.len;
    return st.zero && ((st.present && !st.depth) || !graph_skip_filters(cb->target)->backing);
}

/* Here, for the target may stand still when it is asked, too (B4). */
static int send_zeros(struct co *co, const struct cbw *cb, uint64_t off, uint64_t len)
{
    int r = 0;
    for (uint64_t part; len && !r; off += part, len -= part) {
        part = len;
        if (cb->zeros_too || !is_zero_there(co, cb, off, &part))
            r = node_zero(co, cb->target, off, part, GRAPH_UNMAP);
    }
    return r;
}

static void send_main(struct co *co, void *arg)
{
    struct send *s = arg;
    const struct cbw *cb = s->h->cb;
    struct iovec slot;
    if (s->buf)
        s->result = node_write(co, cb->target, iov_one(&slot, s->buf, s->len), s->off, cb->compress ? GRAPH_COMPRESS : 0);
    else
        s->result = send_zeros(co, cb, s->off, s->len);
    epoch_leave(cb->target->gate, co_loop(co), s->tok);
    s->done = true;
    if (!s->left) {
        co_wake_all(&s->q);
        return;
    }
    cbw_hold_put(s->h);
    send_free(s);
}

/* Takes buf over. 0: the target has it. */
static int send(struct co *co, struct cbw_hold *h, uint8_t *buf, uint64_t off, uint64_t len)
{
    struct cbw *cb = h->cb;
    struct send *s = calloc(1, sizeof *s);
    if (!s) {
        free(buf);
        return -ENOMEM;
    }
    *s = (struct send){ .h = h, .off = off, .len = len, .buf = buf, .tok = epoch_enter(cb->target->gate, co_loop(co)) };      /* C1 */
    if (rt_spawn(co_loop(co), send_main, s))
        send_main(co, s);
    while (!s->done) {
        if (!cbw_is_off(cb) && co_wait_slice(co, &s->q, h->until, CBW_SLICE_NS))
            continue;
        if (s->done)
            break;
        s->left = true;                          /* C2 */
        h->refs++;
        return cbw_is_off(cb) ? -ECANCELED : -ETIMEDOUT;
    }
    int r = s->result;
    send_free(s);
    return r;
}

/* ---- from the source ---- */

static int copy_bytes(struct co *co, struct graph_node *n, struct cbw_hold *h, uint64_t off, uint64_t len)
{
    uint8_t *buf = aligned_alloc(BUF_ALIGN, round_up(len, BUF_ALIGN));
    struct iovec slot;
    int r = buf ? node_read(co, n->backing, iov_one(&slot, buf, len), off) : -ENOMEM;
    bool late = !r && cbw_is_off(h->cb);                         /* C3 */
    r = late ? -ECANCELED : r;
    if (r || mem_is_zero(buf, len)) {
        if (r && buf && !late)
            atomic_store(&h->cb->broken_by_source, true);
        free(buf);
        return r ? r : send(co, h, NULL, off, len);
    }
    return send(co, h, buf, off, len);
}

/* [off, end) is todo, and locked. A compressed cluster is copied whole, whatever parts of it are. */
static int copy_extents(struct co *co, struct graph_node *n, struct cbw_hold *h, uint64_t off, uint64_t end)
{
    struct cbw *cb = h->cb;
    uint64_t longest = max_u64(CBW_STEP, cb->target->im->encode_bytes);
    while (off < end) {
        struct graph_status st = { .len = min_u64(end - off, longest) };
        int r = cb->compress ? 0 : node_status(co, n->backing, NULL, off, end - off, &st);
        if (!r && st.zero && cbw_is_off(cb))
            r = -ECANCELED;                                      /* C3 */
        if (r)
            return r;
        uint64_t part = st.zero ? st.len : min_u64(st.len, longest);
        r = st.zero ? send(co, h, NULL, off, part) : copy_bytes(co, n, h, off, part);
        if (r)
            return r;
        off += part;
    }
    return 0;
}

/* ---- steps ---- */

static uint64_t step_bytes(const struct cbw *cb) { return max_u64(CBW_STEP, cb->granule); }

static int copy_locked(struct co *co, struct graph_node *n, struct cbw_hold *h, uint64_t pos, uint64_t end)
{
    struct cbw *cb = h->cb;
    uint64_t start, stop;
    int r = MUTANT(MUT_CBW_COPIED_EARLY) ? dirty_clear(cb->todo, pos, end - pos) : 0;
    if (MUTANT(MUT_CBW_COPIED_EARLY))
        return r ? r : copy_extents(co, n, h, pos, end);
    for (uint64_t at = pos; !r && at < end && dirty_next(cb->todo, at, end, &start, &stop); at = stop)
        r = copy_extents(co, n, h, start, stop);
    return r ? r : dirty_clear(cb->todo, pos, end - pos);
}

/* Whole granules, at most step_bytes. */
static int copy_step(struct co *co, struct graph_node *n, uint64_t pos, uint64_t end, uint64_t until)
{
    struct cbw *cb = n->flt_arg;
    struct cbw_hold what = { .until = until, .bytes = min_u64(end - pos, CBW_STEP) };
    int r;
    what.range.start = pos;
    what.range.end = end;
    struct cbw_hold *h = cbw_hold_take(co, cb, &what, &r);
    if (!h)
        return r;
    r = copy_locked(co, n, h, pos, end);
    cbw_hold_put(h);
    return r;
}

struct step { struct steps *all; unsigned index; uint64_t pos, end; };
struct steps { struct fan fan; struct graph_node *n; uint64_t until; struct step slot[FAN_WIDTH]; };

static void step_main(struct co *co, void *arg)
{
    struct step *s = arg;
    fan_done(&s->all->fan, s->index, copy_step(co, s->all->n, s->pos, s->end, s->all->until));
}

static int copy_steps(struct co *co, struct graph_node *n, uint64_t pos, uint64_t end, uint64_t until)
{
    struct cbw *cb = n->flt_arg;
    struct steps *all = malloc(sizeof *all);
    uint64_t start, stop;
    if (!all)
        return -ENOMEM;
    fan_init(&all->fan);
    all->n = n;
    all->until = until;
    while (pos < end && !all->fan.error && dirty_next(cb->todo, pos, end, &start, &stop)) {
        unsigned i = fan_take(co, &all->fan);
        pos = min_u64(round_down(start, cb->granule) + step_bytes(cb), end);
        all->slot[i] = (struct step){ all, i, round_down(start, cb->granule), pos };
        if (pos == end || rt_spawn(co_loop(co), step_main, &all->slot[i]))
            step_main(co, &all->slot[i]);
    }
    int r = fan_wait(co, &all->fan);
    free(all);
    return r;
}

/* B5 */
static int failed(struct cbw *cb, int r)
{
    int none = 0;
    if (cbw_is_off(cb))
        return 0;
    if (cb->on_error == CBW_BREAK_GUEST_WRITE)
        return r == -ETIMEDOUT ? -EIO : r;
    atomic_compare_exchange_strong(&cb->broken, &none, r);
    return 0;
}

int cbw_before(struct co *co, struct graph_node *n, uint64_t off, uint64_t len)
{
    struct cbw *cb = n->flt_arg;
    uint64_t end = off >= cb->size ? off : min_u64(off + min_u64(len, cb->size - off), cb->size), start, stop;
    if (off >= end || cbw_is_off(cb) || !dirty_next(cb->todo, off, end, &start, &stop))
        return 0;
    uint64_t until = cb->timeout_ns ? rt_now(co_loop(co)) + cb->timeout_ns : UINT64_MAX;
    start = round_down(start, cb->granule);
    end = min_u64(round_up(end, cb->granule), cb->size);
    int r = end - start <= step_bytes(cb) ? copy_step(co, n, start, end, until) : copy_steps(co, n, start, end, until);
    return r ? failed(cb, r) : 0;
}
