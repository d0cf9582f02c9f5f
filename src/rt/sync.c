/* SPDX-License-Identifier: MIT
 *
 * sync.c: waiting between the coroutines of one loop.
 *
 * Purpose      Wait queues, and on top of them mutex, semaphore, group, range locks, and an event for other threads.
 * Owns         nothing: waiters live in the frames of those who wait
 * Invariants   I1 a waiter that is queued is woken exactly once, or leaves by itself when interrupted
 *              I2 mutex and semaphore hand over directly: what was given to a waiter can be taken by nobody else
 *              I3 the list of a co_range_locks holds holders and waiters in the order of their requests; a request
 *                 holds its range when nothing in front of it overlaps it
 * Concurrency  one loop (co_xevent_set: any thread)
 * Failure      none
 * Tests        sync_test.c
 */
#include "base/checked.h"
#include "rt/rt_priv.h"

/* ---- wait queues ---- */

static void enqueue(struct co_waitq *q, struct co_waiter *w)
{
    w->next = NULL;
    w->prev = q->tail;
    if (q->tail)
        q->tail->next = w;
    else
        q->head = w;
    q->tail = w;
    w->queued = true;
}

static void dequeue(struct co_waitq *q, struct co_waiter *w)
{
    if (w->prev)
        w->prev->next = w->next;
    else
        q->head = w->next;
    if (w->next)
        w->next->prev = w->prev;
    else
        q->tail = w->prev;
    w->queued = false;
}

void co_wait(struct co *co, struct co_waitq *q)
{
    struct co_waiter w = { .co = co };
    enqueue(q, &w);
    co_suspend(co);
}

struct cancellable {
    struct co_waiter w;
    struct co_waitq *q;
    struct co_interrupt intr;
    int result;
};

static void wait_interrupted(struct co_interrupt *i, int why)
{
    struct cancellable *c = CONTAINER_OF(i, struct cancellable, intr);
    if (!c->w.queued)       /* woken already, about to run: the wake must not be lost */
        return;
    dequeue(c->q, &c->w);
    c->result = why;
    co_ready(c->w.co);
}

int co_wait_cancellable(struct co *co, struct co_waitq *q)
{
    struct cancellable c = { .w.co = co, .q = q };
    int r = co_intr_begin(co, &c.intr, wait_interrupted);
    if (r)
        return r;
    enqueue(q, &c.w);
    co_suspend(co);
    co_intr_end(co, &c.intr);
    return c.result;
}

bool co_wait_slice(struct co *co, struct co_waitq *q, uint64_t until, uint64_t slice)
{
    uint64_t now = rt_now(co_loop(co));
    if (now >= until)
        return false;
    uint64_t old = co_set_deadline(co, min_u64(until, now + slice));
    int r = co_wait_cancellable(co, q);
    (void)co_set_deadline(co, old);
    return r != -ECANCELED;
}

bool co_wake_one(struct co_waitq *q)
{
    struct co_waiter *w = q->head;
    if (!w)
        return false;
    dequeue(q, w);
    co_ready(w->co);
    return true;
}

unsigned co_wake_all(struct co_waitq *q)
{
    unsigned n = 0;
    while (co_wake_one(q))
        n++;
    return n;
}

/* ---- mutex, semaphore, group ---- */

void co_lock(struct co *co, struct co_mutex *m)
{
    if (m->held)
        co_wait(co, &m->q);     /* the mutex is ours when this returns */
    else
        m->held = true;
}

void co_unlock(struct co_mutex *m)
{
    ASSERT(m->held);
    if (!co_wake_one(&m->q))
        m->held = false;
}

void co_sem_down(struct co *co, struct co_sem *s, uint64_t n)
{
    if (!s->q.head && s->avail >= n) {
        s->avail -= n;
        return;
    }
    struct co_waiter w = { .co = co, .need = n };
    enqueue(&s->q, &w);
    co_suspend(co);             /* co_sem_up took n for us */
}

void co_sem_up(struct co_sem *s, uint64_t n)
{
    ASSERT(n <= UINT64_MAX - s->avail);
    s->avail += n;
    while (s->q.head && s->q.head->need <= s->avail) {
        s->avail -= s->q.head->need;
        co_wake_one(&s->q);
    }
}

void co_group_enter(struct co_group *g)
{
    g->n++;
}

void co_group_leave(struct co_group *g)
{
    ASSERT(g->n);
    if (--g->n == 0)
        co_wake_all(&g->q);
}

void co_group_wait(struct co *co, struct co_group *g)
{
    while (g->n)
        co_wait(co, &g->q);
}

/* ---- range locks ---- */

/* The latest request in front of r that overlaps it (an empty range overlaps nothing). The list's head is the
 * newest request; next leads to older ones. */
static struct co_range *conflict(struct co_range *from, const struct co_range *r)
{
    if (r->start == r->end)
        return NULL;
    for (; from; from = from->next)
        if (from->start < r->end && r->start < from->end && from->start < from->end)
            return from;
    return NULL;
}

static void range_push(struct co_range_locks *l, struct co_range *r)
{
    r->prev = NULL;
    r->next = l->head;
    if (l->head)
        l->head->prev = r;
    l->head = r;
}

static void range_set(struct co_range *r, uint64_t start, uint64_t end)
{
    ASSERT(start <= end);
    *r = (struct co_range){ .start = start, .end = end };
}

/* Until nothing in front of r overlaps it. */
static void range_await(struct co *co, struct co_range *r)
{
    struct co_range *other;
    while ((other = conflict(r->next, r)))
        co_wait(co, &other->q);
}

void co_range_lock(struct co *co, struct co_range_locks *l, struct co_range *r, uint64_t start, uint64_t end)
{
    range_set(r, start, end);
    range_push(l, r);
    range_await(co, r);
}

void co_range_lock_two(struct co *co, struct co_range_locks *l, struct co_range *a, struct co_range *b)
{
    ASSERT(a->end <= b->start || b->end <= a->start);
    range_set(a, a->start, a->end);
    range_set(b, b->start, b->end);
    range_push(l, a);
    range_push(l, b);           /* before anybody is waited for: who comes later stands behind both */
    range_await(co, a);
    range_await(co, b);
}

bool co_range_trylock(struct co_range_locks *l, struct co_range *r, uint64_t start, uint64_t end)
{
    range_set(r, start, end);
    if (conflict(l->head, r))
        return false;
    range_push(l, r);
    return true;
}

void co_range_unlock(struct co_range_locks *l, struct co_range *r)
{
    if (r->prev)
        r->prev->next = r->next;
    else
        l->head = r->next;
    if (r->next)
        r->next->prev = r->prev;
    co_wake_all(&r->q);
}

bool co_range_wait(struct co *co, const struct co_range_locks *l, uint64_t start, uint64_t end)
{
    const struct co_range asked = { .start = start, .end = end };
    struct co_range *oldest = NULL, *r = conflict(l->head, &asked);
    for (; r; r = conflict(r->next, &asked))
        oldest = r;
    if (oldest)
        co_wait(co, &oldest->q);
    return oldest;
}

/* ---- events from elsewhere ---- */

static void xevent_arrived(struct rt_msg *m)
{
    struct co_xevent *e = CONTAINER_OF(m, struct co_xevent, msg);
    e->set = true;
    co_wake_all(&e->q);
}

void co_xevent_init(struct co_xevent *e, struct rt_loop *loop)
{
    *e = (struct co_xevent){ .msg.fn = xevent_arrived, .loop = loop };
}

void co_xevent_set(struct co_xevent *e)
{
    rt_post(e->loop, &e->msg);
}

void co_xevent_wait(struct co *co, struct co_xevent *e)
{
    ASSERT(co->loop == e->loop);
    if (!e->set)
        co_wait(co, &e->q);
}
