/* SPDX-License-Identifier: MIT
 *
 * loop.h: the runtime (a few loops, each one thread with one io_uring and one coroutine scheduler), spawning,
 * messages between loops, worker pools.
 *
 * Concurrency: rt_post, rt_spawn_on and rt_loop_kick may be called from any thread; all else from the loop itself.
 */
#ifndef RT_LOOP_H
#define RT_LOOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "rt/co.h"

struct rt;

enum rt_backend_kind {
    RT_BACKEND_AUTO,      /* io_uring, or threads when the kernel refuses it */
    RT_BACKEND_URING,
    RT_BACKEND_THREADS,
};

struct rt_opts {
    unsigned loops;                   /* 1..64; 0 = 1 */
    unsigned spare;                   /* loops that rt_loop_more may start later; with `loops` at most 64 */
    enum rt_backend_kind backend;     /* AUTO obeys the environment variable BYRE_BACKEND=uring|threads|auto */
    unsigned cpu_workers;             /* 0 = number of cores */
    unsigned ring_entries;            /* io_uring: submission queue size; 0 = 256. Small values are for tests */
    bool manual;                      /* no threads are made for loops: the caller runs loop 0 by rt_loop_run, from the thread
                                       * that called rt_new (only with loops = 1) */
};

/* Starts the loops' threads. On failure nothing is left behind. */
MUST_USE int rt_new(const struct rt_opts *opts, struct rt **ret_rt, struct byre_err *err);
/* Stops all loops (their coroutines must have ended; asserted) and joins the threads. NULL ok. */
void rt_free(struct rt *rt);
unsigned rt_loop_count(const struct rt *rt);                 /* those of rt_new, over which work is spread */
unsigned rt_loop_slots(const struct rt *rt);                 /* those and all that may come: for arrays with a place for each loop */
struct rt_loop *rt_loop_at(struct rt *rt, unsigned i);       /* i below rt_loop_count, or of one that rt_loop_more gave */
/* Starts one of the spare loops. It gets no work but what is sent to it by name (rt_spawn_on, rt_call), and ends with the runtime. One call at a
 * time, none beside rt_free; blocks for the start of a thread. -ENOSPC: no spare one is left. */
MUST_USE int rt_loop_more(struct rt *rt, struct rt_loop **ret_loop);
/* Names its thread, as ps and top show it: the first 15 bytes of the name. Nothing happens where it has none of its own. Any thread. */
void rt_loop_name(struct rt_loop *loop, const char *name);
int64_t rt_loop_thread_id(const struct rt_loop *loop);       /* as the kernel counts threads. Any thread; 0: it has none of its own */
struct rt *rt_of(const struct rt_loop *loop);
unsigned rt_loop_index(const struct rt_loop *loop);          /* below rt_loop_slots */
const char *rt_backend_name(const struct rt_loop *loop);     /* "io_uring", "threads" or "sim" */
bool rt_on_loop(const struct rt_loop *loop);                 /* is the calling thread this loop's? */
#define ASSERT_LOOP(l) ASSERT(rt_on_loop(l))

/* Runs loop 0 of a manual runtime in the calling thread until stop(arg) is true (checked after every step). */
void rt_loop_run(struct rt_loop *loop, bool (*stop)(void *arg), void *arg);
/* Makes the loop take a turn soon, so that rt_loop_run looks at stop again. Any thread. */
void rt_loop_kick(struct rt_loop *loop);

/* Monotonic time in ns (virtual under simulation). */
uint64_t rt_now(const struct rt_loop *loop);

/* The time of the loop's turn: the clock is read at most once between two waits of the loop, however many ask. On the loop. */
uint64_t rt_turn(struct rt_loop *loop);

/* How many turns the loop has taken. What was asked of the kernel in one turn and is there in the next has not waited for a device. On the loop. */
uint64_t rt_turns(const struct rt_loop *loop);

/* Starts a coroutine on the CURRENT loop; it first runs when the caller suspends or returns. -ENOMEM. */
MUST_USE int rt_spawn(struct rt_loop *loop, co_fn *fn, void *arg);
/* The same from any thread, by message. -ENOMEM. */
MUST_USE int rt_spawn_on(struct rt_loop *loop, co_fn *fn, void *arg);

/* Runs fn(co2, arg) as a coroutine of loop `to` and waits for its result. Directly (no switch, same co)
 * when already there. Suspends otherwise. -ENOMEM when no coroutine can be had; else fn's result. */
MUST_USE int rt_call(struct co *co, struct rt_loop *to, int (*fn)(struct co *co2, void *arg), void *arg);

/* Message: intrusive, no allocation, from any thread. fn runs on the loop, outside any coroutine; must not block. */
struct rt_msg {
    struct rt_msg *next;                    /* private to rt */
    void (*fn)(struct rt_msg *m);
};
void rt_post(struct rt_loop *to, struct rt_msg *m);

/* A timer: intrusive, no allocation, in memory that lives until it has fired or was stopped. On its loop only. fire runs there, outside
 * any coroutine, once; it must not block, and may start the timer again. A timer keeps no loop from ending. */
struct rt_timer {
    struct rt_timer *child, *next, *prev;   /* prev: left sibling, or the parent of a first child */
    uint64_t at_ns, seq;
    void (*fire)(struct rt_timer *t);       /* the timer is disarmed when this is called */
    bool armed;
};
void rt_timer_start(struct rt_loop *loop, struct rt_timer *t, uint64_t at_ns, void (*fire)(struct rt_timer *t));    /* at_ns: as rt_now. It is not running */
void rt_timer_stop(struct rt_loop *loop, struct rt_timer *t);       /* harmless when it does not run */

/* A buffer for data, aligned to 4096; its bytes are anything. bytes is the same at put, which is on the same loop; NULL ok. Large ones are kept
 * for the next get of about that size, up to 32 MiB for each loop, for one or two seconds. NULL: memory ran out. On the loop. */
void *rt_buf_get(struct rt_loop *loop, size_t bytes);
void rt_buf_put(struct rt_loop *loop, void *buf, size_t bytes);

/* A cancellable coroutine: handle lives in the caller's struct, valid until the coroutine has ended. */
struct rt_task { struct co *co; void *waiters; bool done; };
MUST_USE int rt_task_start(struct rt_loop *loop, struct rt_task *t, co_fn *fn, void *arg);
void rt_cancel(struct rt_task *t);                           /* same loop; harmless when already done */
void rt_task_join(struct co *co, struct rt_task *t);         /* suspends until done */

/* Runs fn(arg) on a worker thread and waits. The blocking pool is for system calls that have no ring
 * operation (ftruncate, SEEK_HOLE, ioctl, open, fcntl); the CPU pool for compression and
 * hashing. Suspends. Returns fn's result; -ENOMEM when it could not be queued. */
MUST_USE int64_t rt_blocking(struct co *co, int64_t (*fn)(void *arg), void *arg);
MUST_USE int64_t rt_cpu(struct co *co, int64_t (*fn)(void *arg), void *arg);
/* The same for what moves data, and may stand still (copy_file_range): on threads of its own, so that it keeps nobody from the blocking pool.
 * -EBUSY: as many run as there are threads, nothing was run. */
MUST_USE int64_t rt_blocking_long(struct co *co, int64_t (*fn)(void *arg), void *arg);
/* fn(arg, i) for every i below n, each once, in any order, on up to RT_SPLIT_MAX threads of the CPU pool at the same time;
 * returns when all are done. Takes no memory. Suspends. 0; -ENOMEM: no worker to be had, nothing was run. */
#define RT_SPLIT_MAX 8u
MUST_USE int rt_cpu_split(struct co *co, void (*fn)(void *arg, unsigned i), void *arg, unsigned n);
/* Work that waits for a thread of the CPU pool now. Any thread; of interest to tests. */
unsigned rt_cpu_waiting(struct rt *rt);
unsigned rt_cpu_workers(const struct rt *rt);                /* how many threads the CPU pool may have, >= 1 */

#endif
