/* SPDX-License-Identifier: MIT
 *
 * loop.c: one loop: mailbox, turns, spawning, calls and tasks.
 *
 * Purpose      Runs coroutines in the order they became ready, delivers messages, fires timers, waits below.
 * Owns         struct rt_loop: ready queue, timers, coroutine pool, backend state
 * Invariants   I1 a message is delivered exactly once, on its loop, messages of one sender in the order sent
 *              I2 a loop never sleeps while its inbox holds a message: see rt_post
 *              I3 a coroutine runs only inside rt_loop_turn or rt_loop_step of its loop
 * Concurrency  rt_post, rt_spawn_on, rt_loop_kick: any thread. All else: the loop.
 * Failure      rt_spawn, rt_spawn_on, rt_call, rt_task_start: -ENOMEM, nothing started
 * Tests        loop_test.c, stress_test.c
 *
 * The mailbox is a stack that senders push with compare-and-swap and the loop takes whole, then reverses.
 *
 * Sleeping (I2): the loop stores sleeping = 1, then reads the inbox; a sender pushes, then reads sleeping. All
 * four are sequentially consistent, so at least one of the two sees the other: either the loop does not
 * sleep, or the sender wakes the backend (whose wakeup also ends a wait that has not begun yet).
 */
#include "rt/rt_priv.h"

/* ---- messages ---- */

static void wake_if_sleeping(struct rt_loop *to)
{
    if (atomic_load(&to->sleeping) && atomic_exchange(&to->sleeping, false))
        to->ops->wakeup(to->state);
}

void rt_post(struct rt_loop *to, struct rt_msg *m)
{
    struct rt_msg *head = atomic_load_explicit(&to->inbox, memory_order_relaxed);
    do {
        m->next = head;
    } while (!atomic_compare_exchange_weak(&to->inbox, &head, m));
    wake_if_sleeping(to);       /* m may be gone by now */
}

void rt_loop_kick(struct rt_loop *loop)
{
    atomic_store(&loop->kicked, true);
    wake_if_sleeping(loop);
}

unsigned rt_loop_deliver(struct rt_loop *loop)
{
    if (!atomic_load_explicit(&loop->inbox, memory_order_relaxed))
        return 0;
    struct rt_msg *m = atomic_exchange(&loop->inbox, NULL), *first = NULL;
    while (m) {
        struct rt_msg *older = m->next;
        m->next = first;
        first = m;
        m = older;
    }
    unsigned n = 0;
    while (first) {
        m = first;
        first = m->next;        /* m may be gone after its function has run */
        loop->delivered++;
        m->fn(m);
        n++;
    }
    return n;
}

/* ---- running ---- */

static void run_first(struct rt_loop *loop)
{
    struct co *co = loop->ready_head;
    loop->ready_head = co->next;
    if (!loop->ready_head)
        loop->ready_tail = NULL;
    loop->ready_count--;
    co_resume(loop, co);
}

/* Moves the k-th ready coroutine to the front. */
static void bring_forward(struct rt_loop *loop, size_t k)
{
    struct co *before = NULL, *co = loop->ready_head;
    for (; k && co->next; k--) {
        before = co;
        co = co->next;
    }
    if (!before)
        return;
    before->next = co->next;
    if (loop->ready_tail == co)
        loop->ready_tail = before;
    co->next = loop->ready_head;
    loop->ready_head = co;
}

void rt_loop_fire_timers(struct rt_loop *loop)
{
    if (!loop->timers.root)
        return;
    uint64_t now = rt_now(loop);
    struct rt_timer *t;
    while ((t = rt_timer_take_due(&loop->timers, now)))
        t->fire(t);
}

static void next_turn(struct rt_loop *loop)
{
    loop->turn_ns = 0;
    loop->turns++;
}

static void wait_below(struct rt_loop *loop, uint64_t max_wait_ns)
{
    uint64_t timeout = max_wait_ns;
    if (loop->timers.root) {
        uint64_t now = rt_now(loop), at = loop->timers.root->at_ns;
        uint64_t left = at > now ? at - now : 0;
        timeout = left < timeout ? left : timeout;
    }
    if (loop->ready_head || loop->attention)
        timeout = 0;
    loop->attention = false;
    if (timeout) {
        loop->sleeps++;
        atomic_store(&loop->sleeping, true);
        if (atomic_load(&loop->inbox) || atomic_load(&loop->kicked))
            timeout = 0;
    }
    loop->ops->wait(loop->state, timeout);
    next_turn(loop);
    atomic_store_explicit(&loop->sleeping, false, memory_order_relaxed);
}

/* In front of the looks at what was kicked for, and seen by all before them: a store that came late would wipe out a kick that came behind the
 * last look, and the loop would sleep. */
static void forget_kick(struct rt_loop *loop)
{
    if (atomic_load(&loop->kicked))
        atomic_store(&loop->kicked, false);
}

void rt_loop_turn(struct rt_loop *loop, uint64_t max_wait_ns)
{
    forget_kick(loop);
    rt_loop_deliver(loop);
    for (size_t n = loop->ready_count; n && loop->ready_head; n--)
        run_first(loop);
    rt_loop_fire_timers(loop);
    wait_below(loop, max_wait_ns);
}

void rt_loop_run(struct rt_loop *loop, bool (*stop)(void *arg), void *arg)
{
    ASSERT(loop->rt->manual && !loop->current);
    ASSERT_LOOP(loop);
    while (!stop(arg)) {
        forget_kick(loop);
        rt_loop_deliver(loop);
        for (size_t n = loop->ready_count; n && loop->ready_head; n--) {
            run_first(loop);
            if (stop(arg))
                return;
        }
        rt_loop_fire_timers(loop);
        if (stop(arg))
            return;
        wait_below(loop, UINT64_MAX);
    }
}

uint64_t rt_loop_next_timer(const struct rt_loop *loop)
{
    return loop->timers.root ? loop->timers.root->at_ns : UINT64_MAX;
}

bool rt_loop_step(struct rt_loop *loop)
{
    struct rt *rt = loop->rt;
    ASSERT(rt->sim && !rt->stepping);
    rt->stepping = loop;
    next_turn(loop);
    bool any = rt_loop_deliver(loop) > 0;
    if (loop->ready_head) {
        if (loop->ops->pick)
            bring_forward(loop, loop->ops->pick(loop->state, loop->ready_count));
        run_first(loop);
        any = true;
    }
    rt->stepping = NULL;
    return any;
}

/* ---- small questions ---- */

struct rt *rt_of(const struct rt_loop *loop)
{
    return loop->rt;
}

unsigned rt_loop_index(const struct rt_loop *loop)
{
    return loop->index;
}

const char *rt_backend_name(const struct rt_loop *loop)
{
    return loop->ops->name;
}

void *rt_loop_backend_arg(const struct rt_loop *loop)
{
    return loop->rt->backend_arg;
}

uint64_t rt_now(const struct rt_loop *loop)
{
    return loop->ops->now(loop->state);
}

uint64_t rt_turn(struct rt_loop *loop)
{
    if (!loop->turn_ns)
        loop->turn_ns = rt_now(loop);
    return loop->turn_ns;
}

uint64_t rt_turns(const struct rt_loop *loop)
{
    return loop->turns;
}

bool rt_on_loop(const struct rt_loop *loop)
{
    if (loop->rt->sim)
        return !loop->rt->stepping || loop->rt->stepping == loop;
    return pthread_equal(loop->owner, pthread_self());
}

/* ---- starting coroutines ---- */

int rt_spawn(struct rt_loop *loop, co_fn *fn, void *arg)
{
    ASSERT_LOOP(loop);
    struct co *co = co_get(loop);
    if (!co)
        return -ENOMEM;
    co_start(co, fn, arg);
    return 0;
}

static void spawn_arrived(struct rt_msg *m)
{
    struct co *co = CONTAINER_OF(m, struct co, msg);
    co_adopt(co->loop, co);
    co_start(co, co->fn, co->arg);
}

int rt_spawn_on(struct rt_loop *loop, co_fn *fn, void *arg)
{
    struct co *co = co_make();      /* the pool belongs to the loop; and memory is asked for where it can be refused */
    if (!co)
        return -ENOMEM;
    co->loop = loop;
    co->fn = fn;
    co->arg = arg;
    co->msg.fn = spawn_arrived;
    rt_post(loop, &co->msg);
    return 0;
}

void rt_loop_drop_messages(struct rt_loop *loop)
{
    struct rt_msg *m = atomic_exchange(&loop->inbox, NULL), *older;
    for (; m; m = older) {
        older = m->next;
        if (m->fn == spawn_arrived)
            m->fn(m);           /* for co_kill_all, which comes next */
    }
}

struct call {
    struct rt_msg msg;              /* there, then back */
    struct co *caller;
    struct rt_loop *to;
    int (*fn)(struct co *co2, void *arg);
    void *arg;
    int result;
    uint64_t deadline_ns;
    bool cancelled;
};

static void call_returned(struct rt_msg *m)
{
    co_ready(CONTAINER_OF(m, struct call, msg)->caller);
}

static void call_reply(struct call *c, int result)
{
    c->result = result;
    c->msg.fn = call_returned;
    rt_post(c->caller->loop, &c->msg);
}

static void call_main(struct co *co, void *arg)
{
    struct call *c = arg;
    co->deadline_ns = c->deadline_ns;
    co->cancelled = c->cancelled;
    call_reply(c, c->fn(co, c->arg));
}

static void call_arrived(struct rt_msg *m)
{
    struct call *c = CONTAINER_OF(m, struct call, msg);
    int r = rt_spawn(c->to, call_main, c);
    if (r)
        call_reply(c, r);
}

int rt_call(struct co *co, struct rt_loop *to, int (*fn)(struct co *co2, void *arg), void *arg)
{
    if (co->loop == to)
        return fn(co, arg);
    ASSERT(co->loop->rt == to->rt);
    struct call c = {
        .msg.fn = call_arrived, .caller = co, .to = to, .fn = fn, .arg = arg,
        .deadline_ns = co->deadline_ns, .cancelled = co->cancelled,
    };
    rt_post(to, &c.msg);
    co_suspend(co);     /* the reply is a message to this loop: it cannot come before this */
    return c.result;
}

/* ---- tasks ---- */

int rt_task_start(struct rt_loop *loop, struct rt_task *t, co_fn *fn, void *arg)
{
    ASSERT_LOOP(loop);
    struct co *co = co_get(loop);
    if (!co)
        return -ENOMEM;
    *t = (struct rt_task){ .co = co };
    co_start(co, fn, arg);
    co->task = t;
    return 0;
}

void rt_task_join(struct co *co, struct rt_task *t)
{
    struct co_waiter w = { .co = co }, *last = t->waiters;
    if (t->done)
        return;
    ASSERT(t->co && t->co->loop == co->loop && t->co != co);
    while (last && last->next)
        last = last->next;
    w.prev = last;
    if (last)
        last->next = &w;
    else
        t->waiters = &w;
    co_suspend(co);
}
