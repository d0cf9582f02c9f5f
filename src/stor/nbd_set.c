/* SPDX-License-Identifier: MIT
 *
 * nbd_set.c: the connections of one store (FEATURES 3.033, G.039).
 *
 * Purpose      Gives each request a connection; opens more of them while that helps; and when the server goes away, waits for it, does
 *              again what it may have lost, and lets the requests go on as if nothing had happened.
 * Owns         The connections; the coroutine that manages them.
 * Invariants   I0  A request that is given up (nbdc_abandon) ends when its connection is closed, not before: until then libnbd may use its buffer.
 *              I1  Several connections are used only with a server that promises one cache for all of them: then a flush on one covers
 *                  what was answered on any.
 *              I2  The end of one connection is the end of all: the server may have started anew. Nothing is sent by another one
 *                  until all have ended.
 *              I3  After a loss nothing is let in before the log (nbd_log.c) has been repeated and flushed; what cannot be repeated
 *                  ends the store (NBDC_BROKEN): a cache above believes that what it wrote is there.
 *              I4  A request that was lost is sent again, changes too: the same bytes at the same place, before anything that waits
 *                  for its answer. It is given up when reconnect-delay has passed since it was lost first, unless the server is back by
 *                  then and the repetition of the log goes on.
 *              I5  A further connection is let in when one that was there before has answered a request that began behind the handshake of
 *                  the new one. The end of a server may go unnoticed (a connection that is half open): else the new one leads to
 *                  the server that came in its place, and a flush there covers what that one has never seen.
 * Order        See I3: the flush covers what the log held.
 * Concurrency  Requests of any loop look for a connection under `lock` and wait on their own loop. The manager and the connection in the
 *              making (`fresh`) are the home loop's.
 *              One thing cannot be seen from here: a server that lives on may still be busy with requests of a connection that broke.
 *              It would do them after their repetition. NBD knows no way to ask; the manual says so.
 * Failure      While the server is away, and reconnect-delay has passed: -ENOTCONN. Broken: -EIO.
 * Tests        tests/interop/test_nbd_client.py, test_nbd_client_return.py
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "stor/nbd_priv.h"

#define SECOND_NS UINT64_C(1000000000)
#define PAUSE_MAX_NS (16 * SECOND_NS)
/* A server that is back, and for so long says nothing to what is repeated, is away. */
#define SILENCE_NS NBDC_HANDSHAKE_NS
/* A connection that lived shorter than this does not count as a return: the pauses between attempts go on growing. */
#define STEADY_NS (2 * SECOND_NS)

struct nbdc_waiter {
    struct nbdc_waiter *next;
    struct co_xevent wake;
};

/* ---- states ---- */

/* Everybody who waits looks again. lock held. */
static void wake_waiters(struct nbdc *n)
{
    for (struct nbdc_waiter *w = n->waiters, *next; w; w = next) {
        next = w->next;                          /* w is gone once it is set */
        co_xevent_set(&w->wake);
    }
    n->waiters = NULL;
}

static void set_state(struct nbdc *n, enum nbdc_state state)
{
    pthread_mutex_lock(&n->lock);
    n->state = state;
    if (state != NBDC_WAIT)
        wake_waiters(n);
    pthread_mutex_unlock(&n->lock);
}

static void kicked(struct rt_msg *m)
{
    struct nbdc *n = CONTAINER_OF(m, struct nbdc, kick);
    atomic_store(&n->kicked, false);
    co_wake_all(&n->wake);
}

/* The manager looks around. Any loop. */
static void kick(struct nbdc *n)
{
    if (!atomic_exchange(&n->kicked, true))
        rt_post(n->home, &n->kick);
}

void nbdc_set_lost(struct nbdc *n)
{
    pthread_mutex_lock(&n->lock);
    bool first = n->state == NBDC_UP;
    if (first) {
        n->state = n->o.reconnect_s ? NBDC_WAIT : NBDC_FAIL;
        n->lost = true;
        if (n->state == NBDC_FAIL)
            wake_waiters(n);
    }
    pthread_mutex_unlock(&n->lock);
    if (first)
        kick(n);
}

void nbdc_abandon(struct nbdc *n)
{
    atomic_fetch_add(&n->abandoned, 1);
    nbdc_set_lost(n);
    pthread_mutex_lock(&n->lock);
    wake_waiters(n);
    pthread_mutex_unlock(&n->lock);
}

#define HURRY_LOOKS 4u

/* What the end of an image writes last (bitmaps, marks) may be missing. */
static void tell_given_up(const struct nbdc *n)
{
    char text[400];
    snprintf(text, sizeof text, "%s: the server does not answer; what was still under way to it, when it was closed, is given up", n->s.name);
    if (n->warn)
        n->warn(n->warn_arg, text);
}

static void hurry_look(struct rt_timer *t)
{
    struct nbdc *n = CONTAINER_OF(t, struct nbdc, hurry);
    uint64_t answers = atomic_load(&n->answers);
    bool comes = !atomic_load(&n->inside) || answers != n->hurry_seen;
    n->hurry_seen = answers;
    n->hurry_idle = comes ? 0 : n->hurry_idle + 1;
    if (n->hurry_idle > HURRY_LOOKS) {           /* the first look may have come right behind the request */
        atomic_store(&n->given_up, true);
        tell_given_up(n);
        nbdc_abandon(n);
        return;
    }
    rt_timer_start(n->home, t, rt_now(n->home) + n->hurry_ns / HURRY_LOOKS, hurry_look);
}

void nbdc_hurry(struct nbdc *n, uint64_t ns)
{
    ASSERT_LOOP(n->home);
    if (n->closing)
        return;
    rt_timer_stop(n->home, &n->hurry);
    n->hurry_ns = ns;
    n->hurry_idle = 0;
    n->hurry_seen = atomic_load(&n->answers);
    if (!ns)
        atomic_store(&n->given_up, false);
    else if (!atomic_load(&n->given_up))
        rt_timer_start(n->home, &n->hurry, rt_now(n->home) + ns / HURRY_LOOKS, hurry_look);
}

/* ---- requests ---- */

/* The connection for a request of this loop: its own, else the one with the fewest requests. lock held, at least one is there. */
static struct nbdc_conn *choose(struct nbdc *n, struct rt_loop *loop)
{
    struct nbdc_conn *best = NULL;
    bool best_own = false;
    for (unsigned i = 0; i < n->conns; i++) {
        struct nbdc_conn *c = n->conn[i];
        bool own = c->loop == loop, less = best && atomic_load(&c->load) < atomic_load(&best->load);
        if (!best || (own && !best_own) || (own == best_own && less)) {
            best = c;
            best_own = own;
        }
    }
    ASSERT(best);
    if (n->conns < n->conns_max && !n->grow_on && atomic_load(&best->load) >= (best_own ? NBDC_GROW_AT : 1)) {
        n->grow_on = loop;
        kick(n);
    }
    return best;
}

/* A connection, counted; NULL: *ret_r says why not. Suspends while the server is waited for. since: n->abandoned when the request began. */
static struct nbdc_conn *take(struct co *co, struct nbdc *n, unsigned since, int *ret_r)
{
    for (;;) {
        struct nbdc_conn *c = NULL;
        struct nbdc_waiter w;
        pthread_mutex_lock(&n->lock);
        enum nbdc_state state = atomic_load(&n->abandoned) != since || atomic_load(&n->given_up) ? NBDC_FAIL : n->state;
        if (state == NBDC_UP) {
            c = choose(n, co_loop(co));
            atomic_fetch_add(&c->load, 1);
        } else if (state == NBDC_WAIT) {
            co_xevent_init(&w.wake, co_loop(co));
            w.next = n->waiters;
            n->waiters = &w;
        }
        pthread_mutex_unlock(&n->lock);
        if (state != NBDC_WAIT) {
            *ret_r = state == NBDC_FAIL ? -ENOTCONN : -EIO;
            return c;
        }
        co_xevent_wait(co, &w.wake);
    }
}

static int do_request(struct co *co, struct nbdc *n, struct nbdc_req *r)
{
    uint64_t lost_at = 0;
    unsigned since = atomic_load(&n->abandoned);
    int result;
    nbdc_log_prepare(&n->log, r);
    for (;;) {
        struct nbdc_conn *c = take(co, n, since, &result);
        if (!c)
            break;
        if (r->what == NBDC_FLUSH)
            r->upto = nbdc_log_acked(&n->log);
        nbdc_conn_do(co, c, r);
        result = r->result;
        if (result != NBDC_LOST) {
            atomic_fetch_add(&n->answers, 1);
            return result;
        }
        uint64_t now = rt_now(co_loop(co));
        lost_at = lost_at ? lost_at : now;
        result = -ENOTCONN;
        if (now - lost_at > n->o.reconnect_s * SECOND_NS)        /* I4 */
            break;
    }
    nbdc_log_drop(&n->log, r);
    return result;
}

int nbdc_do(struct co *co, struct nbdc *n, struct nbdc_req *r)
{
    atomic_fetch_add(&n->inside, 1);
    int result = do_request(co, n, r);
    atomic_fetch_sub(&n->inside, 1);
    return result;
}

/* ---- one more connection ---- */

static bool add_conn(struct nbdc *n, struct nbdc_conn *c)
{
    pthread_mutex_lock(&n->lock);
    bool fits = n->state == NBDC_UP && n->conns < n->conns_max;
    if (fits)
        n->conn[n->conns++] = c;
    pthread_mutex_unlock(&n->lock);
    return fits;
}

/* Does the server still offer what the store was opened for? */
static bool same_export(const struct nbdc *n, const struct nbdc_info *b)
{
    const struct nbdc_info *a = &n->info;
    bool writable = n->s.read_only || !b->read_only, blocks = b->min_block <= n->s.lim.block && (!b->max_block || b->max_block >= n->s.lim.max_transfer);
    bool can = a->can_flush == b->can_flush && a->can_multi == b->can_multi && a->can_fua <= b->can_fua && a->can_zero <= b->can_zero &&
               a->can_trim <= b->can_trim && a->can_fast_zero <= b->can_fast_zero && a->has_status <= b->has_status;
    return a->size == b->size && writable && blocks && can;
}

/* I5. Waits as long as a connection that was there is silent, until it is dropped. */
static int old_one_answers(struct co *co, struct nbdc *n)
{
    struct nbdc_conn *c = NULL;
    struct nbdc_req r = { .what = NBDC_READ, .len = n->s.lim.block, .result = NBDC_LOST };
    if (n->info.size < r.len)
        return -ENOTSUP;                         /* no bytes, no need */
    AUTOFREE void *buf = r.buf = malloc(r.len);
    if (!buf)
        return -ENOMEM;
    pthread_mutex_lock(&n->lock);
    if (n->state == NBDC_UP && n->conns)
        atomic_fetch_add(&(c = n->conn[0])->load, 1);
    pthread_mutex_unlock(&n->lock);
    if (c)
        nbdc_conn_do(co, c, &r);
    return r.result == NBDC_LOST ? -ENOTCONN : 0;        /* an error is an answer */
}

static void grow_co(struct co *co, void *arg)
{
    struct nbdc *n = arg;
    struct nbd_handle *h;
    struct nbdc_info info;
    struct nbdc_conn *c;
    pthread_mutex_lock(&n->lock);
    struct rt_loop *loop = n->grow_on;
    pthread_mutex_unlock(&n->lock);
    int r = nbdc_handshake(co, &n->o, rt_now(n->home) + NBDC_GROW_NS, &h, &info, NULL);
    if (!r) {
        r = same_export(n, &info) ? old_one_answers(co, n) : -ESTALE;
        if (r)
            nbdc_close(co, h);
    }
    if (!r)
        r = nbdc_conn_new(co, n, loop, h, &c);
    if (!r && !add_conn(n, c)) {
        nbdc_conn_stop(co, c);
        nbdc_conn_free(co, c);
    }
    pthread_mutex_lock(&n->lock);
    if (r)
        n->conns_max = n->conns;                 /* the server takes no more: what there is must do */
    n->grow_on = NULL;
    pthread_mutex_unlock(&n->lock);
}

static void grow_begin(struct nbdc *n)
{
    n->growing = rt_task_start(n->home, &n->grower, grow_co, n) == 0;
    if (n->growing)
        return;
    pthread_mutex_lock(&n->lock);
    n->grow_on = NULL;
    pthread_mutex_unlock(&n->lock);
}

static void grow_end(struct co *co, struct nbdc *n)
{
    if (!n->growing)
        return;
    rt_cancel(&n->grower);
    rt_task_join(co, &n->grower);
    n->growing = false;
}

/* ---- loss and return ---- */

static void drop_conns(struct co *co, struct nbdc *n)
{
    struct nbdc_conn *old[STOR_NBD_CONNECTIONS_MAX];
    pthread_mutex_lock(&n->lock);
    unsigned count = n->conns;
    memcpy(old, n->conn, sizeof old);
    n->conns = 0;
    pthread_mutex_unlock(&n->lock);
    for (unsigned i = 0; i < count; i++)
        nbdc_conn_stop(co, old[i]);
    for (unsigned i = 0; i < count; i++)
        nbdc_conn_free(co, old[i]);
}

static unsigned most_conns(const struct nbdc *n)
{
    unsigned asked = n->o.connections ? (unsigned)n->o.connections : STOR_NBD_CONNECTIONS;
    return n->info.can_multi ? asked : 1;        /* I1 */
}

/* The first connection of a server that is there. lock is not held; no other one exists. */
static void go_up(struct nbdc *n, struct nbdc_conn *c)
{
    pthread_mutex_lock(&n->lock);
    n->conn[0] = c;
    n->conns = 1;
    n->conns_max = most_conns(n);
    n->state = NBDC_UP;
    wake_waiters(n);
    pthread_mutex_unlock(&n->lock);
}

enum outcome { BACK, AGAIN, NEVER };

/* One attempt. */
static enum outcome try_again(struct co *co, struct nbdc *n)
{
    struct nbd_handle *h;
    struct nbdc_info info;
    struct nbdc_conn *c;
    if (nbdc_handshake(co, &n->o, rt_now(n->home) + NBDC_HANDSHAKE_NS, &h, &info, NULL))
        return AGAIN;
    if (!same_export(n, &info)) {
        nbdc_close(co, h);
        return NEVER;                            /* another disk under the same name */
    }
    if (nbdc_conn_new(co, n, n->home, h, &c))
        return AGAIN;
    n->fresh = c;
    int r = n->closing ? NBDC_LOST : nbdc_log_loss(&n->log) == NBDC_NOTHING ? 0 : nbdc_log_repeat(co, &n->log, c);
    n->fresh = NULL;
    if (r == 0 && !c->dead && !n->closing) {
        atomic_fetch_add(&n->returns, 1);
        go_up(n, c);
        return BACK;
    }
    nbdc_conn_stop(co, c);
    nbdc_conn_free(co, c);
    return r < 0 ? NEVER : AGAIN;
}

/* Is the server back, with the repetition of the log under way? That may take longer than anybody wants to wait for a server. Home. */
static bool repeats(const struct nbdc *n)
{
    return n->fresh && !n->fresh->dead && rt_now(n->home) - n->log.repeated_ns < SILENCE_NS;
}

static void patience_ends(struct rt_timer *t)
{
    struct nbdc *n = CONTAINER_OF(t, struct nbdc, patience);
    if (repeats(n)) {
        rt_timer_start(n->home, t, rt_now(n->home) + SECOND_NS, patience_ends);
        return;
    }
    pthread_mutex_lock(&n->lock);
    if (n->state == NBDC_WAIT) {
        n->state = NBDC_FAIL;
        wake_waiters(n);
    }
    pthread_mutex_unlock(&n->lock);
}

/* Until the server is back, or never will be: the end of patience. pause_ns: before the first attempt; grows. */
static void recover(struct co *co, struct nbdc *n, uint64_t *pause_ns)
{
    enum outcome what = nbdc_log_loss(&n->log) == NBDC_FOR_GOOD || n->o.where == STOR_NBD_FD ? NEVER : AGAIN;      /* I3 */
    while (what == AGAIN && !n->closing) {
        /* While requests wait, a server that is back is found at once. Their time begins before this, and ends for good: no pause
           becomes shorter while it runs. */
        uint64_t pause = n->patience.armed ? min_u64(*pause_ns, SECOND_NS) : *pause_ns;
        if (pause && co_sleep(co, pause))
            break;
        what = try_again(co, n);
        if (!n->patience.armed || !*pause_ns)    /* it grows from when nobody waits any more */
            *pause_ns = *pause_ns ? min_u64(*pause_ns * 2, PAUSE_MAX_NS) : SECOND_NS;
    }
    rt_timer_stop(n->home, &n->patience);
    if (what != BACK)
        set_state(n, NBDC_BROKEN);
}

static void manage_co(struct co *co, void *arg)
{
    struct nbdc *n = arg;
    uint64_t up_at = rt_now(n->home), pause_ns = 0;
    while (!n->closing) {
        pthread_mutex_lock(&n->lock);
        bool lost = n->lost, grow = n->grow_on && !lost;
        n->lost = false;
        pthread_mutex_unlock(&n->lock);
        if (n->growing && n->grower.done)
            n->growing = false;
        if (lost) {
            if (n->o.reconnect_s)                /* from now on: a name look-up of the grower may take long */
                rt_timer_start(n->home, &n->patience, rt_now(n->home) + n->o.reconnect_s * SECOND_NS, patience_ends);
            drop_conns(co, n);                   /* I2 */
            grow_end(co, n);                     /* behind it: the grower may wait for one of them. It adds nothing meanwhile */
            if (rt_now(n->home) - up_at > STEADY_NS)
                pause_ns = 0;
            recover(co, n, &pause_ns);
            up_at = rt_now(n->home);
        } else if (grow && !n->growing) {
            grow_begin(n);
        } else if (co_wait_cancellable(co, &n->wake)) {
            break;
        }
    }
    grow_end(co, n);
}

int nbdc_set_start(struct co *co, struct nbdc *n, struct nbd_handle *h)
{
    struct nbdc_conn *c;
    n->kick.fn = kicked;
    n->state = NBDC_WAIT;
    int r = nbdc_conn_new(co, n, n->home, h, &c);
    if (r)
        return r;
    go_up(n, c);
    r = rt_task_start(n->home, &n->manager, manage_co, n);
    if (r)
        drop_conns(co, n);
    return r;
}

void nbdc_set_stop(struct co *co, struct nbdc *n)
{
    ASSERT_LOOP(n->home);
    n->closing = true;
    rt_timer_stop(n->home, &n->hurry);
    if (n->fresh)
        nbdc_conn_stop(co, n->fresh);
    rt_cancel(&n->manager);
    drop_conns(co, n);                           /* the manager waits for the grower, and that may wait for one of them */
    rt_task_join(co, &n->manager);
    drop_conns(co, n);                           /* one that it has added meanwhile */
    while (atomic_load(&n->kicked))              /* the message lies in our own inbox */
        co_yield(co);
}
