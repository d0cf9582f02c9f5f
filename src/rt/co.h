/* SPDX-License-Identifier: MIT
 *
 * co.h: coroutines.
 *
 * A function that may suspend takes `struct co *` as its FIRST parameter; one that does not, cannot. Never
 * store a `co` in a struct (only the wait queues of rt do). A coroutine stays on the loop that started it
 * (DESIGN D1): between two suspensions nothing else runs on that loop.
 *
 * Stacks are small (64 KiB with a guard page; larger under sanitizers): no recursion, no alloca, no VLA,
 * frames below 1 KiB. Switches are announced to ASan and TSan.
 */
#ifndef RT_CO_H
#define RT_CO_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct co;
struct rt_loop;

typedef void co_fn(struct co *co, void *arg);

/* The loop this coroutine runs on. */
struct rt_loop *co_loop(const struct co *co);
/* Lets everything that is ready run, then goes on. Suspends. */
void co_yield(struct co *co);
/* For long work between its steps: as co_yield; and when the loop has not slept for 1 ms, sleeps 0.1 ms, so that the threads
 * which share the core with this one get their turn at once and not at the end of a time slice. Suspends. */
void co_breathe(struct co *co);
/* Sleeps at least ns. Suspends. 0, or -ECANCELED when the coroutine was cancelled. */
int co_sleep(struct co *co, uint64_t ns);
/* Was this coroutine cancelled (rt_cancel), or has its deadline passed? A cancelled coroutine sees
 * -ECANCELED from sleeps and socket waits (never from file I/O, which always completes) and unwinds. */
bool co_cancelled(const struct co *co);
/* Absolute time (rt_now) after which socket waits and sleeps answer -ETIMEDOUT; 0 = none. Returns the old one. */
uint64_t co_set_deadline(struct co *co, uint64_t at_ns);

/* Debug check: the bracketed code must not suspend. Usage: CO_ATOMIC(co) { ... } (no break out of it). */
void co_atomic_begin(struct co *co);
void co_atomic_end(struct co *co);
#define CO_NAME2_(a, b) a##b
#define CO_NAME_(a, b) CO_NAME2_(a, b)
#define CO_ATOMIC(co)                                                                                         \
    for (int CO_NAME_(co_once_, __LINE__) = (co_atomic_begin(co), 1); CO_NAME_(co_once_, __LINE__);           \
         CO_NAME_(co_once_, __LINE__) = (co_atomic_end(co), 0))

#endif
