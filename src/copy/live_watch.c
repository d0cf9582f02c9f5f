/* SPDX-License-Identifier: MIT
 *
 * live_watch.c: what a guest's change does while its disk is copied.
 *
 * Purpose     Background: it is noted when it has ended. Blocking: what is clean is written to the target as well before the guest
 *             is answered. The brake: the guest is slowed down to a rate.
 * Owns        struct hold: the lock of one change, which may outlive its request; struct send: a part of it on its way to the target,
 *             with a copy of the bytes, because the guest may be answered before the target is (L5).
 * Invariants  W1  A change that is not under a lock marks its range after it has ended. So does one under a lock, before the lock is given
 *                 back, for whatever did not reach the target or was not tried (L1, L2).
 *             W2  Nobody here waits while the target is gated, for the lock of a piece while anybody waits for requests to end, or after
 *                 stop or a cancel: the one who closes gates may wait for us. Changes do wait for one another then: whoever drains a disk that is calm
 *                 finds it clean, however many write to the same place.
 * Order       source first, then the target; the guest is answered behind both (J1)
 * Concurrency On the loop of the request; locks are taken and given back on the home loop.
 * Failure     The source's error is the guest's. The target's is the owner's: the range is dirty, and the error stands (live.h).
 * Tests       live_test.c
 */
#include <stdlib.h>

#include "copy/live_priv.h"

/* A longer discard is read again by the pieces, which know what is not there. */
#define DISCARD_MAX (UINT64_C(8) << 20)
/* Who comes late to his turn, because his last change took so long, may catch up with this much. */
#define CREDIT_NS UINT64_C(100000000)

struct hold {
    struct copy_live *l;
    struct co_range range;
    uint64_t until;                        /* time at which the guest waits no longer */
    uint64_t drained;                      /* since when somebody waits for requests to end; 0: nobody does (L5) */
    uint64_t bytes;                        /* memory that is taken for it */
    unsigned refs;                         /* the request, and each send; on its loop */
    int error; uint64_t error_off;
    struct rt_msg msg;
};

struct send {
    struct hold *h;
    enum graph_change_kind kind;
    uint64_t off, len;
    unsigned flags;
    uint8_t *buf;
    int result;
    bool done, left;                       /* left: the guest waits no longer, the send frees itself */
    struct co_waitq q;
};

/* ---- the lock ---- */

static void give_back(struct rt_msg *m)
{
    struct hold *h = CONTAINER_OF(m, struct hold, msg);
    struct copy_live *l = h->l;
    if (h->error)
        live_failed(l, h->error, false, h->error_off);
    co_range_unlock(&l->busy, &h->range);
    l->carry_bytes -= h->bytes;
    l->holds--;
    l->ended++;
    free(h);
    live_unlocked(l);
}

static void hold_put(struct hold *h)
{
    if (--h->refs == 0)
        rt_post(h->l->home, &h->msg);
}

/* Inside a request, for which copy_live_stop waits. */
static bool is_over(const struct copy_live *l)
{
    return atomic_load(&l->stop) || (l->o.cancelled && atomic_load(l->o.cancelled));
}

static bool carries(struct copy_live *l)
{
    return atomic_load(&l->blocking) && !atomic_load(&l->paused) && !atomic_load(&l->resizing) && !is_over(l);
}

/* L5 */
static uint64_t wait_until(struct co *co, struct hold *h)
{
    const struct copy_live *l = h->l;
    uint64_t now = rt_now(co_loop(co));
    if (!graph_draining(l->o.source))
        h->drained = 0;
    else if (!h->drained)
        h->drained = now;
    return h->drained && l->o.patience_ns ? min_u64(h->until, h->drained + l->o.patience_ns) : h->until;
}

/* W2. A lock that another change has is given back when the target has answered it; a piece may have to read the source first. */
static bool must_not_wait(const struct copy_live *l) { return l->pieces || graph_is_gated(l->o.target); }

static int take_on_home(struct co *co, void *arg)
{
    struct hold *h = arg;
    struct copy_live *l = h->l;
    uint64_t start = h->range.start, end = h->range.end;
    for (;;) {
        if (!carries(l))
            return -EAGAIN;
        bool room = !l->carry_bytes || l->carry_bytes + h->bytes <= l->carry_limit;
        if (room && co_range_trylock(&l->busy, &h->range, start, end))
            break;
        if ((graph_draining(l->o.source) && must_not_wait(l)) || !co_wait_slice(co, &l->moved, wait_until(co, h), LIVE_SLICE_NS))
            return -EAGAIN;
        h->range.start = start;
        h->range.end = end;
    }
    l->carry_bytes += h->bytes;
    l->holds++;
    return 0;
}

/* NULL: the change goes without. */
static struct hold *hold_take(struct co *co, struct copy_live *l, const struct graph_change *ch, uint64_t since)
{
    uint64_t granule = UINT64_C(1) << l->o.granularity_bits;
    struct hold *h = malloc(sizeof *h);
    if (!h)
        return NULL;
    uint64_t part = l->whole ? granule : 0;    /* of which a granule may go as a whole */
    *h = (struct hold){ .l = l, .until = l->o.hold_ns ? since + l->o.hold_ns : UINT64_MAX, .refs = 1, .msg.fn = give_back,
                        .bytes = min_u64(ch->kind != GRAPH_CHANGE_ZERO ? max_u64(ch->len, part) : part, l->segment) };
    h->range.start = round_down(ch->off, granule);
    h->range.end = round_up(ch->off + ch->len, granule);
    if (rt_call(co, l->home, take_on_home, h) == 0)
        return h;
    free(h);
    return NULL;
}

/* ---- to the target ---- */

static void send_main(struct co *co, void *arg)
{
    struct send *s = arg;
    struct hold *h = s->h;
    struct copy_live *l = h->l;
    struct iovec slot;
    if (s->kind == GRAPH_CHANGE_WRITE)
        s->result = graph_write(co, l->o.target, iov_one(&slot, s->buf, s->len), s->off, 0);
    else
        s->result = graph_zero(co, l->o.target, s->off, s->len, s->flags);
    if (s->result && !h->error) {
        h->error = s->result;
        h->error_off = s->off;
    }
    if (s->result)
        live_touched(l, s->off, s->len);
    else
        atomic_fetch_add(&l->carried, s->len);
    s->done = true;
    if (!s->left) {
        co_wake_all(&s->q);
        return;
    }
    free(s->buf);
    free(s);
    hold_put(h);
}

/* What a discard has left, and what lies around a change, is asked of the source. */
static int fill_send(struct co *co, struct send *s, const struct graph_change *ch)
{
    struct iovec slot;
    if (s->kind == GRAPH_CHANGE_WRITE) {
        iov_to_buf(iov_slice(*ch->v, s->off - ch->off, s->len), s->buf, s->len);
        return 0;
    }
    int r = graph_change_read(co, ch, iov_one(&slot, s->buf, s->len), s->off);
    bool zeros = !r && mem_is_zero(s->buf, s->len);
    s->kind = zeros ? GRAPH_CHANGE_ZERO : GRAPH_CHANGE_WRITE;
    return r;
}

static struct send *send_new(struct co *co, struct hold *h, const struct graph_change *ch, enum graph_change_kind kind, uint64_t off, uint64_t len)
{
    struct send *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    *s = (struct send){ .h = h, .kind = kind, .off = off, .len = len,
                        .flags = (ch->flags & GRAPH_UNMAP || ch->kind == GRAPH_CHANGE_DISCARD) && !h->l->o.keep_space ? GRAPH_UNMAP : 0 };
    if (kind == GRAPH_CHANGE_ZERO)
        return s;
    s->buf = aligned_alloc(BUF_ALIGN, round_up(len, BUF_ALIGN));
    if (s->buf && !fill_send(co, s, ch))
        return s;
    free(s->buf);
    free(s);
    return NULL;
}

/* As a change of this kind. 0: the target has it. Else it is not waited for any longer, or failed. */
static int send_part(struct co *co, struct hold *h, const struct graph_change *ch, enum graph_change_kind kind, uint64_t off, uint64_t len)
{
    struct copy_live *l = h->l;
    struct send *s = send_new(co, h, ch, kind, off, len);
    if (!s)
        return -ENOMEM;
    if (rt_spawn(co_loop(co), send_main, s)) {
        free(s->buf);
        free(s);
        return -ENOMEM;
    }
    while (!s->done) {
        bool go_on = !is_over(l) && !atomic_load(&l->paused) && !graph_is_gated(l->o.target);
        if (go_on && co_wait_slice(co, &s->q, wait_until(co, h), LIVE_SLICE_NS))
            continue;
        if (s->done)
            break;
        s->left = true;
        h->refs++;
        return -ETIMEDOUT;
    }
    int r = s->result;
    free(s->buf);
    free(s);
    return r;
}

static uint64_t granule_of(const struct copy_live *l) { return UINT64_C(1) << l->o.granularity_bits; }

/* L6. Of [off, *stop), which is clean: false: up to *stop it goes as it is; true: so far its granule goes as a whole. */
static bool cut_granule(const struct copy_live *l, uint64_t off, uint64_t *stop)
{
    uint64_t granule = granule_of(l), start = round_down(off, granule), next = min_u64(start + granule, l->size), last = round_down(*stop, granule);
    if ((off > start || *stop < next || granule > l->segment) && !dirty_test(l->whole, start)) {
        *stop = min_u64(*stop, next);
        return true;
    }
    if (last > off && last < *stop && *stop < l->size && !dirty_test(l->whole, last))
        *stop = last;
    return false;
}

/* As the source has it now. Who changes it without our lock marks it when he has ended. */
static int send_granule(struct co *co, struct hold *h, const struct graph_change *ch, uint64_t off)
{
    struct copy_live *l = h->l;
    uint64_t start = round_down(off, granule_of(l)), end = min_u64(start + granule_of(l), l->size);
    for (uint64_t at = start, n; at < end; at += n) {
        n = min_u64(end - at, l->segment);
        int r = send_part(co, h, ch, GRAPH_CHANGE_DISCARD, at, n);       /* which is read from there */
        if (r)
            return r;
    }
    dirty_set(l->whole, start, end - start);
    return 0;
}

static int send_clean(struct co *co, struct hold *h, const struct graph_change *ch, uint64_t off, uint64_t *stop)
{
    struct copy_live *l = h->l;
    uint64_t most = off + l->segment, granule = granule_of(l);
    if (l->whole && cut_granule(l, off, stop))
        return send_granule(co, h, ch, off);
    if (ch->kind != GRAPH_CHANGE_ZERO && *stop > most)
        *stop = l->whole && granule <= l->segment ? round_down(most, granule) : most;
    int r = send_part(co, h, ch, ch->kind, off, *stop - off);
    uint64_t first = round_up(off, granule), end = *stop < l->size ? round_down(*stop, granule) : *stop;
    if (!r && l->whole && first < end)
        dirty_set(l->whole, first, end - first);
    return r;
}

/* Carries over what is clean of [off, end); the rest stays dirty (L3). */
static void carry(struct co *co, struct hold *h, const struct graph_change *ch)
{
    struct copy_live *l = h->l;
    uint64_t off = ch->off, end = ch->off + ch->len, stop;
    while (off < end) {
        bool dirty = dirty_run(l->dirty, off, end, &stop);
        stop = min_u64(stop, end);
        if (!dirty && send_clean(co, h, ch, off, &stop)) {
            live_touched(l, off, end - off);                 /* W1 */
            return;
        }
        off = stop;
    }
}

static int change_both(struct co *co, struct copy_live *l, struct graph_change *ch, uint64_t since)
{
    bool long_discard = ch->kind == GRAPH_CHANGE_DISCARD && ch->len > DISCARD_MAX;
    struct hold *h = long_discard ? NULL : hold_take(co, l, ch, since);
    int r = graph_change_go(co, ch);
    if (!h || r)
        live_touched(l, ch->off, ch->len);
    else
        carry(co, h, ch);
    if (h)
        hold_put(h);
    return r;
}

/* ---- the brake ---- */

static uint64_t cost_of(const struct graph_change *ch)
{
    return ch->kind == GRAPH_CHANGE_WRITE ? ch->len : min_u64(ch->len, PIECE_MIN);
}

/* This change's turn, if changes go by at `rate`; whoever comes later is sent further back. */
static uint64_t turn_of(struct copy_live *l, uint64_t now, uint64_t rate, uint64_t bytes)
{
    uint64_t cost = (uint64_t)((double)bytes * 1e9 / (double)rate), next = atomic_load(&l->brake_next_ns), at;
    do
        at = max_u64(next, now - min_u64(now, CREDIT_NS));
    while (!atomic_compare_exchange_weak(&l->brake_next_ns, &next, at + cost));
    return at;
}

static void brake(struct co *co, struct copy_live *l, const struct graph_change *ch, uint64_t since)
{
    uint64_t rate = atomic_load(&l->brake);
    if (!rate)
        return;
    struct co_waitq nobody = { NULL, NULL };
    uint64_t at = turn_of(l, since, rate, cost_of(ch));
    if (l->o.hold_ns)
        at = min_u64(at, since + l->o.hold_ns / 2);          /* the other half is for the target */
    while (!is_over(l) && atomic_load(&l->brake) && !graph_draining(l->o.source) && co_wait_slice(co, &nobody, at, LIVE_SLICE_NS))
        ;
}

int live_change(struct co *co, struct graph_watch *w, struct graph_change *ch)
{
    struct copy_live *l = CONTAINER_OF(w, struct copy_live, watch);
    if (atomic_load(&l->stop))
        return graph_change_go(co, ch);
    uint64_t since = rt_now(co_loop(co));
    brake(co, l, ch, since);
    atomic_fetch_add_explicit(&l->guest, cost_of(ch), memory_order_relaxed);
    int r;
    if (carries(l)) {
        r = change_both(co, l, ch, since);
    } else {
        r = graph_change_go(co, ch);
        live_touched(l, ch->off, ch->len);
    }
    uint64_t held = rt_now(co_loop(co)) - since, longest = atomic_load(&l->longest_hold_ns);
    while (held > longest && !atomic_compare_exchange_weak(&l->longest_hold_ns, &longest, held))
        ;
    return r;
}
