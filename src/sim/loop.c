/* SPDX-License-Identifier: MIT
 *
 * loop.c: clock, events and scheduler of the simulated machine.
 *
 * Purpose      Steps all loops of one runtime in one thread; what runs next, and when time passes, comes from the seed.
 * Owns         The event heap, the virtual clock.
 * Invariants   L1  Time moves only when an event or a timer fires, never backwards.
 *              L2  Nothing but the seed and the program decides the order: no addresses, no real time.
 * Order        None.
 * Concurrency  One thread.
 * Failure      A program that can never go on is told so: -EDEADLK, -ETIME.
 * Tests        store_test.c (same seed, same trace)
 */
#include <stdlib.h>

#include "base/assert.h"
#include "rt/backend.h"
#include "sim/mem.h"
#include "sim/world.h"

/* ---- events: a binary heap by (time, order of creation) ---- */

static bool earlier(const struct sim_event *a, const struct sim_event *b)
{
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->seq < b->seq;
}

void sim_event_add(struct sim_world *w, uint64_t delay_ns, void (*fire)(void *arg), void *arg)
{
    SIM_PUSH_ROOM(w->heap, w->heap_count, w->heap_cap);
    size_t i = w->heap_count++;
    struct sim_event e = { w->now_ns + delay_ns, w->event_seq++, fire, arg };
    for (; i && earlier(&e, &w->heap[(i - 1) / 2]); i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = e;
}

bool sim_event_fire(struct sim_world *w)
{
    if (!w->heap_count)
        return false;
    struct sim_event top = w->heap[0], last = w->heap[--w->heap_count];
    size_t i = 0;
    for (;;) {
        size_t k = 2 * i + 1;
        if (k >= w->heap_count)
            break;
        if (k + 1 < w->heap_count && earlier(&w->heap[k + 1], &w->heap[k]))
            k++;
        if (!earlier(&w->heap[k], &last))
            break;
        w->heap[i] = w->heap[k];
        i = k;
    }
    if (w->heap_count)
        w->heap[i] = last;
    if (top.at_ns > w->now_ns)
        w->now_ns = top.at_ns;
    top.fire(top.arg);
    return true;
}

/* ---- backend: files are stores of their own here, sockets do not exist ---- */

static int be_init(struct rt_loop *loop, void **ret_state)
{
    *ret_state = rt_loop_backend_arg(loop);
    return 0;
}

static void be_fini(void *state) { (void)state; }

static void be_submit(void *state, struct rt_req *r)
{
    (void)state;
    r->res = -ENOSYS;
    r->done(r);
}

static void be_cancel(void *state, struct rt_req *r)
{
    (void)state;
    (void)r;
}

static void be_wait(void *state, uint64_t timeout_ns)
{
    (void)state;
    (void)timeout_ns;
    UNREACHABLE();                       /* the caller steps */
}

static void be_wakeup(void *state) { (void)state; }

static uint64_t be_now(void *state) { return ((struct sim_world *)state)->now_ns; }

static size_t be_pick(void *state, size_t n)
{
    struct sim_world *w = state;
    return w->direct ? 0 : (size_t)prng_below(&w->rng, n);
}

const struct rt_backend_ops sim_backend_ops = {
    .name = "sim", .init = be_init, .fini = be_fini, .submit = be_submit, .cancel = be_cancel,
    .wait = be_wait, .wakeup = be_wakeup, .now = be_now, .pick = be_pick,
};

/* ---- steps ---- */

static bool step_loops(struct sim_world *w)
{
    unsigned n = rt_loop_count(w->rt), first = n > 1 ? (unsigned)prng_below(&w->rng, n) : 0;
    for (unsigned i = 0; i < n; i++)
        if (rt_loop_step(rt_loop_at(w->rt, (first + i) % n)))
            return true;
    return false;
}

static bool fire_timers(struct sim_world *w)
{
    uint64_t at = UINT64_MAX;
    for (unsigned i = 0; i < rt_loop_count(w->rt); i++) {
        uint64_t t = rt_loop_next_timer(rt_loop_at(w->rt, i));
        at = t < at ? t : at;
    }
    if (at == UINT64_MAX || (w->heap_count && w->heap[0].at_ns < at))
        return false;
    if (at > w->now_ns)
        w->now_ns = at;
    for (unsigned i = 0; i < rt_loop_count(w->rt); i++)
        rt_loop_fire_timers(rt_loop_at(w->rt, i));
    return true;
}

/* Sometimes the disk is quicker than the processor. */
static bool step(struct sim_world *w)
{
    if (w->heap_count && prng_one_in(&w->rng, 4))
        return sim_event_fire(w);
    return step_loops(w) || fire_timers(w) || sim_event_fire(w);
}

bool sim_recording;

struct run { int (*fn)(struct co *co, void *arg); void *arg; int result; bool done; };

static void run_main(struct co *co, void *arg)
{
    struct run *r = arg;
    r->result = r->fn(co, r->arg);
    r->done = true;
}

int sim_run(struct sim_world *w, int (*fn)(struct co *co, void *arg), void *arg, uint64_t steps_max)
{
    struct run r = { .fn = fn, .arg = arg };
    int rc = rt_spawn(rt_loop_at(w->rt, 0), run_main, &r);
    if (rc < 0)
        return rc;
    if (!steps_max)
        steps_max = 50000000;
    sim_recording = w->trace != NULL;
    while (step(w) && steps_max)
        steps_max--;
    sim_recording = false;
    if (!steps_max) {
        rt_sim_kill(w->rt);
        return -ETIME;
    }
    if (r.done)
        return r.result;
    rt_sim_kill(w->rt);
    return -EDEADLK;
}
