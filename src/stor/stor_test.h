/* SPDX-License-Identifier: MIT
 *
 * stor_test.h: what the tests of the byte stores share: a runtime of two loops on each backend, checks that may fail
 * inside a coroutine, and a toy store that obeys limits strictly and fails on request. For unit tests only.
 */
#ifndef STOR_STOR_TEST_H
#define STOR_STOR_TEST_H

#include "base/test.h"

#include <stdatomic.h>
#include <stdbool.h>

#include "base/prng.h"
#include "rt/loop.h"
#include "rt/sync.h"
#include "stor/stor_priv.h"

/* ---- checks: record and go on (a coroutine cannot be left by longjmp) ---- */

extern _Atomic unsigned t_failures;
bool t_check(bool ok, const char *what, const char *file, int line);
bool t_check_eq(int64_t a, int64_t b, const char *what, const char *file, int line);
#define CHECK(c) t_check(!!(c), #c, __FILE__, __LINE__)
#define CHECK_EQ(a, b) t_check_eq((int64_t)(a), (int64_t)(b), #a " == " #b, __FILE__, __LINE__)

/* ---- runtime ---- */

extern struct rt *t_rt;                  /* two loops; made anew for each group */
/* Runs fn(co, arg) as a coroutine of loop i; waits for its end. Then fails the test if any check failed. */
void t_run(unsigned i, void (*fn)(struct co *co, void *arg), void *arg);
/* Runs n coroutines at once, number k on loop k % 2 with argument args[k]. */
void t_run_many(unsigned n, void (*fn)(struct co *co, void *arg), void *const *args);
/* Runs the group on both backends, or, where BYRE_TEST_BACKENDS=one, on the one that its name falls to (both get about half of all groups).
 * Returns the sum of failed tests (main's exit code). */
int t_main(const char *name, const struct CMUnitTest *tests, size_t cnt);
#define T_MAIN(name, tests) t_main(name, tests, sizeof(tests) / sizeof((tests)[0]))
/* One in how many cases of an exhaustive loop is run: 1, or what BYRE_TEST_SHARE says (a prime, so that no class of cases goes
 * missing). For ThreadSanitizer, which looks at how threads meet and not at each of ten thousand faults. */
unsigned t_share(void);
bool t_is_ci(void);                      /* CI=true: what cannot be tested here is a failure */
/* A path in a fresh folder of this process under $TMPDIR (or /var/tmp); the folder goes at exit. */
const char *t_path(const char *name);

/* ---- toy store ---- */

enum toy_op { TOY_READ, TOY_WRITE, TOY_FUA, TOY_FLUSH, TOY_ZERO, TOY_DISCARD, TOY_TRUNCATE, TOY_EXTENT, TOY_OPS };

struct toy {
    struct stor s;                       /* first */
    pthread_mutex_t lock;
    uint8_t *bytes;                      /* guarded by lock */
    uint64_t len, cap;                   /* guarded by lock */
    struct prng *rng;                    /* NULL: no delays; else each request sleeps 0 to delay_ns before and after */
    uint64_t delay_ns;
    uint64_t short_max;                  /* transfers move at most this many bytes */
    uint64_t full_at;                    /* writes that begin at or behind it: -ENOSPC; those that cross it are short */
    bool no_zero;
    _Atomic unsigned count[TOY_OPS];
    uint64_t longest;                    /* longest request seen */
    /* Called before the request has its effect; a negative result is the answer. */
    int (*hook)(struct co *co, struct toy *t, enum toy_op op, uint64_t off, uint64_t len);
    void *hook_arg;
};

/* A growable store of len zero bytes. Asserts on every request that breaks its limits. */
struct toy *toy_new(uint64_t len, uint32_t block, uint32_t mem_align);
/* Stops the test if the store is in use. */
void toy_free(struct toy *t);

#endif
