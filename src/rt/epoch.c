/* SPDX-License-Identifier: MIT
 *
 * epoch.c: grace periods over the loops of a runtime.
 *
 * Purpose      Tells the home loop when every section that was open at some moment has been left.
 * Owns         struct epoch: one slot per loop, the control word, the queues of callbacks and waiters
 * Invariants   I1 (epoch.h) a callback, or a return from a wait, comes after every section open at the call
 *              I2 slot.in[p] of loop l counts the open sections of loop l that entered in phase p; only l writes it
 *              I3 ctl is written by the home loop only; bit 0 is the phase, bit 1 + p says "someone waits for phase p"
 *              I4 while a grace period runs, it or a message that will look again is on its way to the home loop
 *              I5 stamps of queued callbacks never decrease along the queue
 * Concurrency  enter, leave: any loop, each on its own slot. All else: the home loop.
 * Failure      epoch_new: -ENOMEM. Nothing else can fail: messages and callbacks are intrusive.
 * Tests        epoch_test.c, stress_test.c (several loops, TSan)
 *
 * Why it is correct. A grace period that begins at T has to see, for each loop and EACH of the two phases, the
 * counter at zero at some moment after T; the moments need not be the same. That alone gives I1: a section open
 * at T is counted in one of those counters, and a counter that reads zero counts no open section. So the known
 * trap of this kind of scheme (a loop reads the phase, is held up while the phase changes, then counts itself
 * under the old one) cannot break I1: under whichever phase it counts itself, both are looked at by every
 * grace period. If it counts itself after we looked, then its section began after T.
 *
 * What that late section can see: enter stores the counter and then loads shared state; we store the new shared
 * state (the caller did, before calling) and then load the counter. Both sides have a full barrier between, so
 * if we read zero although the section is entering, its loads see what was stored before T.
 *
 * The phase is only there so that a grace period ends although new sections keep coming: (A) wait until the
 * counters of the other phase are zero - nobody enters there any more, except a loop that was held up as above,
 * once; (B) change the phase, so that new sections leave the present one alone; (C) wait until that one is zero.
 * A counter that read zero once in this grace period is not looked at again.
 *
 * Leaving stores with release order and we load with acquire order: what a section did happens before what we do.
 *
 * Being told: we publish "someone waits for p" and then load the counters; a section that leaves stores its
 * counter and, when it became zero, loads ctl. All sequentially consistent: either we see zero or it sees
 * the flag and sends the slot's message. A message that is still under way is not sent again; the home loop clears
 * `posted` before it looks at the counters, so what the sender stored before it saw `posted` set is seen then.
 *
 * Freeing: a loop may still be inside epoch_leave (it has stored zero and is about to read ctl) when the home loop
 * already knows that all is over. So the memory goes only after one message has been to every other loop and back.
 */
#include <stdlib.h>
#include <string.h>

#include "rt/epoch.h"
#include "rt/rt_priv.h"

#define PHASE 1u
#define WAITS(p) (2u << (p))

struct slot {
    _Alignas(64) _Atomic uint64_t in[2];
    atomic_bool posted;             /* msg is on its way home */
    struct rt_msg msg, bye;
    struct epoch *d;
};

struct waiter {
    struct waiter *next;
    struct co *co;
    uint64_t stamp;
};

struct epoch {
    _Alignas(64) _Atomic uint32_t ctl;
    struct slot *slots;
    struct rt_loop *home;
    /* home loop only, from here on */
    _Alignas(64) unsigned loops;
    uint64_t done;                  /* grace periods that have passed */
    uint64_t wanted;                /* highest stamp that somebody holds */
    uint64_t pending[2];            /* bit l: in[p] of loop l has not been seen at zero in this grace period */
    bool running, flipped, dying;
    bool kicked;                    /* kick is on its way */
    struct rt_msg kick;
    struct epoch_cb *cb_head, **cb_tail;
    struct waiter *waiters;
    unsigned goodbyes;              /* loops that the farewell message has still to visit */
};

/* ---- sections ---- */

/* Everything stored so far is visible before anything is loaded from here on. */
static inline void full_barrier(struct epoch *d)
{
#ifdef RT_TSAN
    atomic_fetch_add(&d->ctl, 0);               /* TSan does not know fences */
#else
    (void)d;
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

/* Counts a section in under phase p, with a full barrier behind. */
static inline void count_in(struct slot *s, unsigned p)
{
    uint64_t n = atomic_load_explicit(&s->in[p], memory_order_relaxed) + 1;
#if defined(__x86_64__) || defined(RT_TSAN)
    atomic_exchange(&s->in[p], n);              /* a locked instruction is a full barrier, cheaper than a fence */
    atomic_signal_fence(memory_order_seq_cst);
#else
    atomic_store_explicit(&s->in[p], n, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

epoch_token epoch_enter(struct epoch *d, const struct rt_loop *loop)
{
    ASSERT_LOOP(loop);
    unsigned p = atomic_load_explicit(&d->ctl, memory_order_relaxed) & PHASE;
    count_in(&d->slots[loop->index], p);
    return p;
}

epoch_token epoch_enter_late(struct epoch *d, const struct rt_loop *loop, unsigned phase)
{
    count_in(&d->slots[loop->index], phase);
    return phase;
}

static void send_home(struct epoch *d, struct slot *s)
{
    if (!atomic_load(&s->posted) && !atomic_exchange(&s->posted, true))
        rt_post(d->home, &s->msg);
}

void epoch_leave(struct epoch *d, const struct rt_loop *loop, epoch_token t)
{
    struct slot *s = &d->slots[loop->index];
    ASSERT_LOOP(loop);
    ASSERT(t <= 1);
    uint64_t n = atomic_load_explicit(&s->in[t], memory_order_relaxed);
    INV(I2, n > 0);
    if (n > 1) {
        atomic_store_explicit(&s->in[t], n - 1, memory_order_release);
        return;
    }
    atomic_exchange(&s->in[t], 0);
    if (atomic_load(&d->ctl) & WAITS(t))
        send_home(d, s);
}

/* ---- grace periods (home loop) ---- */

/* Takes the loops whose counter of phase p is zero off pending[p]. true: none is left. */
static bool look(struct epoch *d, unsigned p)
{
    for (uint64_t left = d->pending[p]; left; left &= left - 1) {
        unsigned l = (unsigned)__builtin_ctzll(left);
        if (!atomic_load(&d->slots[l].in[p]))
            d->pending[p] &= ~(UINT64_C(1) << l);
    }
    return !d->pending[p];
}

static bool look_waiting(struct epoch *d, unsigned p, unsigned phase)
{
    atomic_store(&d->ctl, phase | WAITS(p));    /* first say it, then look again */
    return look(d, p);
}

static void pass(struct epoch *d)
{
    struct waiter **p = &d->waiters;
    d->running = false;
    d->done++;
    while (*p) {
        struct waiter *w = *p;
        if (w->stamp <= d->done) {
            *p = w->next;
            co_ready(w->co);
        } else {
            p = &w->next;
        }
    }
}

/* Moves the grace period on as far as the counters allow. true: it has passed. */
static bool advance(struct epoch *d)
{
    unsigned phase = atomic_load_explicit(&d->ctl, memory_order_relaxed) & PHASE;
    if (!d->flipped) {
        look(d, phase);                         /* whoever is out of both phases need not be waited for */
        if (!look(d, !phase) && !look_waiting(d, !phase, phase))
            return false;
        if (d->pending[phase]) {
            phase = !phase;
            d->flipped = true;
        }
    }
    if (d->flipped && !look_waiting(d, !phase, phase))
        return false;
    atomic_store(&d->ctl, phase);
    pass(d);
    return true;
}

static void begin(struct epoch *d)
{
    uint64_t all = d->loops == 64 ? UINT64_MAX : (UINT64_C(1) << d->loops) - 1;
    d->running = true;
    d->flipped = false;
    d->pending[0] = d->pending[1] = all;
    full_barrier(d);
}

static void run_callbacks(struct epoch *d)
{
    while (d->cb_head && d->cb_head->stamp <= d->done) {
        struct epoch_cb *cb = d->cb_head;
        d->cb_head = cb->next;
        if (!d->cb_head)
            d->cb_tail = &d->cb_head;
        cb->fn(cb);                             /* may queue more, with later stamps */
    }
}

static void say_goodbye(struct epoch *d);

/* In a message: does all that can be done now. */
static void drive(struct epoch *d)
{
    while (d->done < d->wanted) {
        if (!d->running)
            begin(d);
        if (!advance(d))
            break;
        run_callbacks(d);
    }
    if (d->dying)
        say_goodbye(d);
}

static void kick_arrived(struct rt_msg *m)
{
    struct epoch *d = CONTAINER_OF(m, struct epoch, kick);
    d->kicked = false;
    drive(d);
}

static void slot_arrived(struct rt_msg *m)
{
    struct slot *s = CONTAINER_OF(m, struct slot, msg);
    atomic_store(&s->posted, false);            /* before the counters are looked at */
    drive(s->d);
}

static void kick(struct epoch *d)
{
    if (d->kicked)
        return;
    d->kicked = true;
    rt_post(d->home, &d->kick);
}

/* ---- interface ---- */

uint64_t epoch_stamp(struct epoch *d)
{
    ASSERT_LOOP(d->home);
    uint64_t stamp = d->done + (d->running ? 2 : 1);    /* one that begins after now */
    if (stamp > d->wanted) {
        d->wanted = stamp;
        if (!d->running)
            kick(d);                            /* several requests of one turn share a grace period */
    }
    return stamp;
}

bool epoch_passed(struct epoch *d, uint64_t stamp)
{
    return d->done >= stamp;
}

void epoch_wait_stamp(struct co *co, struct epoch *d, uint64_t stamp)
{
    ASSERT_LOOP(d->home);
    struct waiter w = { .co = co, .stamp = stamp }, **p = &d->waiters;
    if (epoch_passed(d, stamp))
        return;
    ASSERT(stamp <= d->wanted);
    while (*p)
        p = &(*p)->next;
    *p = &w;
    co_suspend(co);
}

void epoch_wait(struct co *co, struct epoch *d)
{
    epoch_wait_stamp(co, d, epoch_stamp(d));
}

void epoch_defer(struct epoch *d, struct epoch_cb *cb, void (*fn)(struct epoch_cb *cb))
{
    cb->fn = fn;
    cb->stamp = epoch_stamp(d);
    cb->next = NULL;
    *d->cb_tail = cb;
    d->cb_tail = &cb->next;
}

struct drain { struct epoch_cb cb; struct co *co; };

static void drained(struct epoch_cb *cb)
{
    co_ready(CONTAINER_OF(cb, struct drain, cb)->co);
}

void epoch_drain(struct co *co, struct epoch *d)
{
    struct drain dr = { .co = co };
    epoch_defer(d, &dr.cb, drained);
    co_suspend(co);                             /* callbacks run from messages, so not before this */
}

int epoch_new(struct rt_loop *home, struct epoch **ret_d)
{
    void *mem;
    ASSERT_LOOP(home);
    unsigned loops = home->rt->slots;
    size_t bytes = sizeof(struct epoch) + loops * sizeof(struct slot);
    if (posix_memalign(&mem, _Alignof(struct epoch), bytes))
        return -ENOMEM;
    memset(mem, 0, bytes);
    struct epoch *d = mem;
    d->slots = (struct slot *)(d + 1);
    d->home = home;
    d->loops = loops;
    d->kick.fn = kick_arrived;
    d->cb_tail = &d->cb_head;
    for (unsigned l = 0; l < loops; l++) {
        d->slots[l].d = d;
        d->slots[l].msg.fn = slot_arrived;
    }
    *ret_d = d;
    return 0;
}

/* ---- freeing ---- */

static void goodbye_back(struct rt_msg *m)
{
    struct epoch *d = CONTAINER_OF(m, struct slot, bye)->d;
    if (--d->goodbyes == 0)
        free(d);
}

static void goodbye_there(struct rt_msg *m)
{
    struct slot *s = CONTAINER_OF(m, struct slot, bye);
    s->bye.fn = goodbye_back;
    rt_post(s->d->home, &s->bye);
}

/* Frees d once no message of it is under way and every other loop has been visited. A slot message that another
 * loop sends even now is delivered before that loop's goodbye comes back: messages of one sender keep their order. */
static void say_goodbye(struct epoch *d)
{
    if (d->goodbyes || d->kicked)
        return;
    for (unsigned l = 0; l < d->loops; l++)
        if (atomic_load(&d->slots[l].posted))
            return;                             /* its arrival comes back here */
    unsigned running = atomic_load(&d->home->rt->running);      /* one that comes later has never seen d */
    d->goodbyes = running - 1;
    if (!d->goodbyes) {
        free(d);
        return;
    }
    for (unsigned l = 0; l < running; l++) {
        struct slot *s = &d->slots[l];
        if (l == d->home->index)
            continue;
        s->bye.fn = goodbye_there;
        rt_post(rt_loop_at(d->home->rt, l), &s->bye);
    }
}

void epoch_free(struct epoch *d)
{
    if (!d)
        return;
    ASSERT_LOOP(d->home);
    INV(I1, !d->cb_head && !d->waiters);
    for (unsigned l = 0; l < d->loops; l++)
        INV(I2, !atomic_load(&d->slots[l].in[0]) && !atomic_load(&d->slots[l].in[1]));
    d->dying = true;
    say_goodbye(d);
}
