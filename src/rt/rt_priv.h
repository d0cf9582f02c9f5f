/* SPDX-License-Identifier: MIT
 *
 * rt_priv.h: what the files of rt/ share: coroutines, timers, loops, pools. Private to rt/.
 *
 * Concurrency  The loop's own thread, but for the pools' queues (rt_pool_push), which take work from any.
 */
#ifndef RT_RT_PRIV_H
#define RT_RT_PRIV_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/assert.h"
#include "base/list.h"
#include "rt/backend.h"
#include "rt/co.h"
#include "rt/epoch.h"
#include "rt/loop.h"
#include "rt/sync.h"

#if defined(__SANITIZE_ADDRESS__)
#define RT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define RT_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define RT_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define RT_TSAN 1
#endif
#endif

#if defined(RT_ASAN) || defined(RT_TSAN)
#define CO_STACK_BYTES (256u * 1024)
#else
#define CO_STACK_BYTES (64u * 1024)
#endif
#define CO_POOL_MAX 1024u            /* idle coroutines that a loop keeps */
#define RT_LOOPS_MAX 64u
#define RT_BLOCKING_WORKERS_MAX 16u
#define RT_LONG_WORKERS_MAX 16u
#define RT_CPU_WORKERS_MAX 256u

/* ---- timers (timer.c): a pairing heap of intrusive nodes, first due first, equal times in arming order ---- */

struct rt_timers { struct rt_timer *root; uint64_t seq; };

void rt_timer_arm(struct rt_timers *h, struct rt_timer *t, uint64_t at_ns, void (*fire)(struct rt_timer *t));
void rt_timer_disarm(struct rt_timers *h, struct rt_timer *t);      /* harmless when not armed */
struct rt_timer *rt_timer_take_due(struct rt_timers *h, uint64_t now_ns);   /* disarms the first due one; NULL */

/* ---- coroutines (co.c) ---- */

/* A wait that rt_cancel or a deadline may end: lives in the frame of the waiting coroutine. fire() is called on
 * the loop with -ECANCELED or -ETIMEDOUT, at most once per cause, also after the wait was satisfied. */
struct co_interrupt {
    void (*fire)(struct co_interrupt *i, int why);
    struct rt_timer timer;
    struct co *co;
};

enum co_state { CO_IDLE, CO_READY, CO_RUNNING, CO_WAITING };

struct co {
    void *sp;                       /* saved stack pointer (or ucontext_t *) while not running */
    struct rt_loop *loop;
    struct co *next;                /* ready queue or pool */
    co_fn *fn;
    void *arg;
    struct co_interrupt *intr;      /* the interruptible wait it is in */
    uint64_t deadline_ns;           /* 0: none */
    struct rt_task *task;
    unsigned atomic_depth;
    enum co_state state;
    bool cancelled;
    struct rt_msg msg;              /* rt_spawn_on */
    struct list_node all;           /* in rt_loop.all_co */
    void *map;                      /* the mapping that holds guard page, stack and this struct */
    size_t map_bytes;
    void *stack_low;
    size_t stack_bytes;
#ifdef RT_ASAN
    void *fake_stack;
#endif
#ifdef RT_TSAN
    void *fiber;
#endif
};

/* Takes a coroutine from the loop's pool, or makes one. On the loop. NULL: memory ran out. */
struct co *co_get(struct rt_loop *loop);
/* Makes one that belongs to no loop yet. Any thread. NULL: memory ran out. */
struct co *co_make(void);
void co_adopt(struct rt_loop *loop, struct co *co);
/* Hands fn to a coroutine that co_get or co_adopt gave and makes it ready. */
void co_start(struct co *co, co_fn *fn, void *arg);
/* Puts a suspended coroutine at the end of the ready queue. On its loop. */
void co_ready(struct co *co);
/* Gives the thread back to the loop until somebody calls co_ready. */
void co_suspend(struct co *co);
/* Runs co until it suspends or ends. Called by the loop. */
void co_resume(struct rt_loop *loop, struct co *co);
/* Releases the pool (all: coroutines that are still suspended, too, without running them). */
void co_pool_fini(struct rt_loop *loop);
void co_kill_all(struct rt_loop *loop);

/* Opens an interruptible wait: 0, or -ECANCELED / -ETIMEDOUT at once when there is no point in waiting. */
int co_intr_begin(struct co *co, struct co_interrupt *i, void (*fire)(struct co_interrupt *i, int why));
void co_intr_end(struct co *co, struct co_interrupt *i);

/* One coroutine in a wait queue (sync.c); lives in its frame. */
struct co_waiter {
    struct co_waiter *next, *prev;
    struct co *co;
    uint64_t need;                  /* co_sem */
    bool queued;
};

/* ---- worker pools (pool.c) ---- */

struct rt_work { struct rt_work *next; void (*run)(struct rt_work *w); };

struct rt_pool {
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct rt_work *head, *tail;    /* guarded by lock, as all below */
    unsigned queued, idle, started, max;
    bool stop;
    pthread_t *threads;
};

MUST_USE int rt_pool_init(struct rt_pool *p, unsigned max);
/* Waits for the work in hand and joins the threads. */
void rt_pool_fini(struct rt_pool *p);
/* Queues w; starts a thread if that helps. Any thread. -ENOMEM when there is no worker and none can be had. */
MUST_USE int rt_pool_push(struct rt_pool *p, struct rt_work *w);
/* A thread that takes no signals. false: none is to be had. */
MUST_USE bool rt_worker_start(pthread_t *ret, void *(*fn)(void *arg), void *arg);

/* ---- closing (closer.c) ---- */

struct rt_closer;
MUST_USE int rt_closer_new(struct rt_closer **ret_c);
/* Waits for no close; what is left is closed behind it. No loop calls it any more. NULL ok. */
void rt_closer_end(struct rt_closer *c);

/* ---- kept buffers (buf.c) ---- */

#define RT_BUF_CLASSES 6u            /* 128 KiB to 4 MiB */
struct rt_bufs {
    struct { struct rt_buf *first; unsigned count, low; } of[RT_BUF_CLASSES];
    size_t bytes;
    struct rt_loop *loop;
    struct rt_timer timer;
};
size_t rt_bufs_kept(const struct rt_loop *loop);       /* bytes */
void rt_bufs_fini(struct rt_loop *loop);

/* ---- epochs (epoch.c), for its test ---- */

/* epoch_enter of a loop that was held up after it had read `phase` (0 or 1): it may be the old one by now. */
uint32_t epoch_enter_late(struct epoch *d, const struct rt_loop *loop, unsigned phase);

/* ---- loops (loop.c) and the runtime (rt.c) ---- */

struct rt_loop {
    struct rt *rt;
    unsigned index;
    const struct rt_backend_ops *ops;
    void *state;                    /* of the backend */
    struct co *current;             /* the coroutine that runs now */
    struct co *ready_head, *ready_tail;
    size_t ready_count;
    struct rt_timers timers;
    struct rt_bufs bufs;
    struct co *pool;                /* idle coroutines */
    unsigned pool_count, live;      /* live: started and not ended */
    struct list all_co;
    void *main_sp;                  /* the loop's own context while a coroutine runs */
#ifdef RT_ASAN
    void *main_fake_stack;
    const void *main_stack_low;
    size_t main_stack_bytes;
#endif
#ifdef RT_TSAN
    void *main_fiber;
#endif
    pthread_t owner;
    bool stop, parked, sync_asked;  /* set by messages of rt_free */
    bool attention;                 /* one of these has just been set: do not sleep */
    uint64_t delivered;             /* messages other than those of rt_free */
    uint64_t turn_ns;               /* rt_turn; 0: nobody has asked yet in this turn */
    uint64_t turns;                 /* rt_turns */
    uint64_t sleeps;                /* how often the loop has waited */
    uint64_t busy_sleeps, busy_since;   /* co_breathe: the loop has not slept since then */
    uint64_t sync_delivered;        /* the same when the last round was answered */
    struct rt_msg sync_msg, end_msg;
    sem_t sync_sem;
    int init_result;
    bool has_thread, has_state;
    pthread_t thread;
    pid_t tid;                      /* of thread */

    /* written by other threads: own cache line */
    _Alignas(64) _Atomic(struct rt_msg *) inbox;    /* newest first */
    atomic_bool sleeping, kicked;
};

struct rt {
    unsigned count;                 /* loops of rt_new */
    unsigned slots;                 /* and those that may come */
    atomic_uint running;            /* loops that have been started: the first ones */
    bool manual, sim;
    struct rt_loop *stepping;       /* sim: the loop inside rt_loop_step */
    const struct rt_backend_ops *ops;
    void *backend_arg;
    unsigned ring_entries;
    struct rt_pool blocking, cpu, io, lengthy;
    atomic_uint longs;              /* calls of rt_blocking_long that run */
    unsigned pools;                 /* how many of the four are initialised */
    struct rt_closer *closer;       /* NULL: sim */
    sem_t started, go_exit;
    struct rt_loop *loops;
};

/* One turn: messages, ready coroutines, timers, then the backend (waits if there is nothing to do). */
void rt_loop_turn(struct rt_loop *loop, uint64_t max_wait_ns);
unsigned rt_loop_deliver(struct rt_loop *loop);
void rt_loop_drop_messages(struct rt_loop *loop);      /* before co_kill_all */
MUST_USE int rt_loop_init(struct rt *rt, unsigned index);
void rt_loop_fini(struct rt_loop *loop);

#endif
