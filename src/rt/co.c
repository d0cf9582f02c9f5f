/* SPDX-License-Identifier: MIT
 *
 * co.c: coroutines: stacks, the pool, switching, cancellation and deadlines.
 *
 * Purpose      Gives a loop cheap threads of control that it switches by hand.
 * Owns         one mapping per coroutine: [guard][stack ...][struct co]. The struct lies above the stack, so a
 *              coroutine costs one mapping and touches two pages when small.
 * Invariants   I1 a coroutine is in exactly one place: pool (IDLE), ready queue (READY), loop.current (RUNNING),
 *              or known to whoever will call co_ready (WAITING)
 *              I2 live counts the coroutines of the loop that are not IDLE
 *              I3 intr is set only while the coroutine is in an interruptible wait
 * Order        none
 * Concurrency  co_make: any thread. All else: the loop. Only co_suspend and what calls it suspend.
 * Failure      co_get and co_make: NULL when the mapping is refused
 * Tests        co_test.c
 *
 * A coroutine's function returns into co_main, which stays at the bottom of the stack for the next user: pooled
 * coroutines are reused without touching their context. Stacks of one size would put the hot lines of all
 * coroutines into the same cache sets; so each struct starts at an offset ("colour") of its own.
 */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "rt/rt_priv.h"

#ifdef RT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef RT_TSAN
#include <sanitizer/tsan_interface.h>
#endif

#define GUARD_BYTES (16u * 1024)    /* more than a page: a large frame must not step over it */
#define COLOURS 12u
#define COLOUR_BYTES 320u       /* a multiple of the cache line that does not divide the page */

/* RT_UCONTEXT (for tests): the fallback of other processors, here. */
#if (defined(__x86_64__) || defined(__aarch64__)) && !defined(RT_UCONTEXT)
#define CO_ASM 1
void rt_co_switch(void **save_sp, void *to_sp);
void rt_co_entry(void);
#else
#include <ucontext.h>
#endif

/* ---- contexts ---- */

_Noreturn static void co_main(struct co *co);

#ifdef CO_ASM

static void prepare_stack(struct co *co)
{
    uintptr_t top = ((uintptr_t)co->stack_low + co->stack_bytes) & ~(uintptr_t)15;
#if defined(__x86_64__)
    /* what rt_co_switch pops: return address, r15, r14, r13, r12, rbx, rbp */
    uintptr_t *sp = (uintptr_t *)top - 9;       /* so that the stack is 16-aligned at rt_co_entry's call */
    memset(sp, 0, 9 * sizeof *sp);
    sp[0] = (uintptr_t)rt_co_entry;
    sp[4] = (uintptr_t)co;
    sp[5] = (uintptr_t)co_main;
#else
    /* x19, x20 ... x29, x30, d8 ... d15 */
    uintptr_t *sp = (uintptr_t *)top - 20;
    memset(sp, 0, 20 * sizeof *sp);
    sp[0] = (uintptr_t)co;
    sp[1] = (uintptr_t)co_main;
    sp[11] = (uintptr_t)rt_co_entry;
#endif
    co->sp = sp;
}

static inline void switch_raw(void **save_sp, void *to_sp)
{
    rt_co_switch(save_sp, to_sp);
}

#else   /* ucontext: the "stack pointer" points to the context, which lies in the frame of who was left */

static void ucontext_main(unsigned hi, unsigned lo)
{
    co_main((struct co *)((uintptr_t)hi << 16 << 16 | lo));
}

static void prepare_stack(struct co *co)
{
    ucontext_t *u = co->stack_low;          /* the first context lies at the far end of its own stack */
    getcontext(u);
    u->uc_link = NULL;
    u->uc_stack.ss_sp = (char *)co->stack_low + sizeof *u;
    u->uc_stack.ss_size = co->stack_bytes - sizeof *u;
    uintptr_t p = (uintptr_t)co;
    makecontext(u, (void (*)(void))ucontext_main, 2, (unsigned)(p >> 16 >> 16), (unsigned)p);
    co->sp = u;
}

static void switch_raw(void **save_sp, void *to_sp)
{
    ucontext_t here;
    *save_sp = &here;
    swapcontext(&here, to_sp);
}

#endif

/* Loop to coroutine. */
static void switch_in(struct rt_loop *loop, struct co *co)
{
#ifdef RT_ASAN
    __sanitizer_start_switch_fiber(&loop->main_fake_stack, co->stack_low, co->stack_bytes);
#endif
#ifdef RT_TSAN
    loop->main_fiber = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(co->fiber, 0);
#endif
    switch_raw(&loop->main_sp, co->sp);
#ifdef RT_ASAN
    __sanitizer_finish_switch_fiber(loop->main_fake_stack, NULL, NULL);
#endif
}

/* What a coroutine does first after it was switched to. */
static inline void arrived(struct co *co)
{
#ifdef RT_ASAN
    __sanitizer_finish_switch_fiber(co->fake_stack, &co->loop->main_stack_low, &co->loop->main_stack_bytes);
#else
    (void)co;
#endif
}

/* Coroutine to loop. last: this stack is never used again. */
static inline void switch_out(struct co *co, bool last)
{
    struct rt_loop *loop = co->loop;
#ifdef RT_ASAN
    __sanitizer_start_switch_fiber(last ? NULL : &co->fake_stack, loop->main_stack_low, loop->main_stack_bytes);
#else
    (void)last;
#endif
#ifdef RT_TSAN
    __tsan_switch_to_fiber(loop->main_fiber, 0);
#endif
    switch_raw(&co->sp, loop->main_sp);
    arrived(co);
}

/* ---- making, pooling, ending ---- */

static void finish(struct co *co)
{
    struct rt_loop *loop = co->loop;
    struct rt_task *task = co->task;
    ASSERT(!co->atomic_depth && !co->intr);
    co->state = CO_IDLE;
    if (--loop->live == 0 && loop->stop)
        loop->attention = true;     /* rt_free waits for this */
    co->next = loop->pool;
    loop->pool = co;
    loop->pool_count++;
    if (task) {
        struct co_waitq q = { task->waiters, NULL };
        task->done = true;
        task->co = NULL;
        task->waiters = NULL;
        co_wake_all(&q);        /* from here on the task may be gone */
    }
}

_Noreturn static void co_main(struct co *co)
{
    arrived(co);
    while (co->fn) {            /* NULL: the pool is being released */
        co->fn(co, co->arg);
        finish(co);
        switch_out(co, false);
    }
    switch_out(co, true);
    UNREACHABLE();
}

struct co *co_make(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), guard = page > GUARD_BYTES ? page : GUARD_BYTES;
    size_t bytes = CO_STACK_BYTES + guard;
    char *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (map == MAP_FAILED)
        return NULL;
    if (mprotect(map, guard, PROT_NONE)) {
        munmap(map, bytes);
        return NULL;
    }
    size_t colour = (uintptr_t)map / bytes % COLOURS;       /* neighbours in memory differ */
    size_t room = (sizeof(struct co) + 63) / 64 * 64 + colour * COLOUR_BYTES;
    struct co *co = (struct co *)(map + bytes - room);
    co->map = map;
    co->map_bytes = bytes;
    co->stack_low = map + guard;
    co->stack_bytes = bytes - guard - room;
    list_node_init(&co->all);
    prepare_stack(co);
#ifdef RT_TSAN
    co->fiber = __tsan_create_fiber(0);
    __tsan_set_fiber_name(co->fiber, "coroutine");
#endif
    return co;
}

void co_adopt(struct rt_loop *loop, struct co *co)
{
    co->loop = loop;
    list_push_back(&loop->all_co, &co->all);
}

static void co_unmap(struct co *co)
{
    list_remove(&co->all);
#ifdef RT_TSAN
    __tsan_destroy_fiber(co->fiber);
#endif
#ifdef RT_ASAN
    ASAN_UNPOISON_MEMORY_REGION(co->stack_low, co->stack_bytes);
#endif
    munmap(co->map, co->map_bytes);
}

/* Releases an idle coroutine. */
static void co_destroy(struct co *co)
{
#ifdef RT_ASAN
    struct rt_loop *loop = co->loop;    /* lets it leave its stack for good, so that ASan forgets about it */
    co->fn = NULL;
    switch_in(loop, co);
#endif
    co_unmap(co);
}

struct co *co_get(struct rt_loop *loop)
{
    struct co *co = loop->pool;
    if (co) {
        loop->pool = co->next;
        loop->pool_count--;
        return co;
    }
    co = co_make();
    if (co)
        co_adopt(loop, co);
    return co;
}

void co_start(struct co *co, co_fn *fn, void *arg)
{
    co->fn = fn;
    co->arg = arg;
    co->deadline_ns = 0;
    co->task = NULL;
    co->cancelled = false;
    co->atomic_depth = 0;
    co->intr = NULL;
    co->loop->live++;
    co->state = CO_WAITING;
    co_ready(co);
}

void co_pool_fini(struct rt_loop *loop)
{
    while (loop->pool) {
        struct co *co = loop->pool;
        loop->pool = co->next;
        loop->pool_count--;
        co_destroy(co);
    }
}

void co_kill_all(struct rt_loop *loop)
{
    ASSERT(!loop->current);
    LIST_FOR(n, &loop->all_co) {
        struct co *co = CONTAINER_OF(n, struct co, all);
        if (co->state != CO_IDLE)
            co_unmap(co);
    }
    loop->live = 0;
    loop->ready_head = loop->ready_tail = NULL;
    loop->ready_count = 0;
    loop->timers.root = NULL;
}

/* ---- switching ---- */

void co_ready(struct co *co)
{
    struct rt_loop *loop = co->loop;
    INV(I1, co->state == CO_WAITING);
    co->state = CO_READY;
    co->next = NULL;
    if (loop->ready_tail)
        loop->ready_tail->next = co;
    else
        loop->ready_head = co;
    loop->ready_tail = co;
    loop->ready_count++;
}

void co_suspend(struct co *co)
{
    INV(I1, co->state == CO_RUNNING && co->loop->current == co);
    ASSERT(!co->atomic_depth);
    co->state = CO_WAITING;
    switch_out(co, false);
}

void co_resume(struct rt_loop *loop, struct co *co)
{
    INV(I1, co->state == CO_READY && !loop->current);
    co->state = CO_RUNNING;
    loop->current = co;
    switch_in(loop, co);
    loop->current = NULL;
    if (co->state == CO_IDLE && loop->pool_count > CO_POOL_MAX) {
        loop->pool = co->next;          /* it was put there last */
        loop->pool_count--;
        co_destroy(co);
    }
}

void co_yield(struct co *co)
{
    INV(I1, co->state == CO_RUNNING && co->loop->current == co);
    ASSERT(!co->atomic_depth);
    co->state = CO_WAITING;
    co_ready(co);
    switch_out(co, false);
}

#define BUSY_NS 1000000u
#define REST_NS 100000u
void co_breathe(struct co *co)
{
    struct rt_loop *loop = co->loop;
    uint64_t now = rt_now(loop);
    bool slept = loop->busy_sleeps != loop->sleeps;
    if (slept) {
        loop->busy_sleeps = loop->sleeps;
        loop->busy_since = now;
    }
    if (slept || loop->rt->sim || now - loop->busy_since < BUSY_NS)
        co_yield(co);
    else
        (void)co_sleep(co, REST_NS);     /* one that is cancelled finds out by itself */
}

struct rt_loop *co_loop(const struct co *co)
{
    return co->loop;
}

void co_atomic_begin(struct co *co)
{
    co->atomic_depth++;
}

void co_atomic_end(struct co *co)
{
    ASSERT(co->atomic_depth);
    co->atomic_depth--;
}

/* ---- cancellation and deadlines ---- */

bool co_cancelled(const struct co *co)
{
    return co->cancelled || (co->deadline_ns && rt_now(co->loop) >= co->deadline_ns);
}

uint64_t co_set_deadline(struct co *co, uint64_t at_ns)
{
    uint64_t old = co->deadline_ns;
    co->deadline_ns = at_ns;
    return old;
}

static void deadline_passed(struct rt_timer *t)
{
    struct co_interrupt *i = CONTAINER_OF(t, struct co_interrupt, timer);
    i->fire(i, -ETIMEDOUT);
}

int co_intr_begin(struct co *co, struct co_interrupt *i, void (*fire)(struct co_interrupt *i, int why))
{
    INV(I3, !co->intr);
    if (co->cancelled)
        return -ECANCELED;
    if (co->deadline_ns && rt_now(co->loop) >= co->deadline_ns)
        return -ETIMEDOUT;
    i->fire = fire;
    i->co = co;
    i->timer.armed = false;
    if (co->deadline_ns)
        rt_timer_arm(&co->loop->timers, &i->timer, co->deadline_ns, deadline_passed);
    co->intr = i;
    return 0;
}

void co_intr_end(struct co *co, struct co_interrupt *i)
{
    rt_timer_disarm(&co->loop->timers, &i->timer);
    co->intr = NULL;
}

/* ---- sleeping ---- */

struct sleep {
    struct co_interrupt intr;
    struct rt_timer timer;
    int result;
    bool over;
};

static void sleep_end(struct sleep *s, int result)
{
    if (s->over)
        return;
    s->over = true;
    s->result = result;
    co_ready(s->intr.co);
}

static void sleep_due(struct rt_timer *t)
{
    sleep_end(CONTAINER_OF(t, struct sleep, timer), 0);
}

static void sleep_interrupted(struct co_interrupt *i, int why)
{
    sleep_end(CONTAINER_OF(i, struct sleep, intr), why);
}

int co_sleep(struct co *co, uint64_t ns)
{
    struct sleep s = { .result = 0 };
    struct rt_timers *timers = &co->loop->timers;
    int r = co_intr_begin(co, &s.intr, sleep_interrupted);
    if (r)
        return r;
    uint64_t now = rt_now(co->loop);
    rt_timer_arm(timers, &s.timer, ns > UINT64_MAX - now ? UINT64_MAX : now + ns, sleep_due);
    co_suspend(co);
    rt_timer_disarm(timers, &s.timer);
    co_intr_end(co, &s.intr);
    return s.result;
}

void rt_cancel(struct rt_task *t)
{
    struct co *co = t->co;
    if (!co)
        return;
    ASSERT_LOOP(co->loop);
    co->cancelled = true;
    if (co->intr)
        co->intr->fire(co->intr, -ECANCELED);
}
