/* SPDX-License-Identifier: MIT
 *
 * closer_test.c: closes that take long keep nobody but who asked for them, and not the end.
 *
 * Most of these closes stand at a gate of the test's, in place of a server; one is that of a socket that lingers.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

#include "rt/closer.h"
#include "rt/rt_test.h"

enum { FDS_MAX = 4096 };
static pthread_mutex_t gate_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t gate_moved = PTHREAD_COND_INITIALIZER;
static bool gate_open, slow[FDS_MAX];
static unsigned standing, closed[FDS_MAX];
static pthread_t closed_by[FDS_MAX];
static atomic_bool no_memory, no_threads;

int __real_close(int fd);
int __wrap_close(int fd);
int __wrap_close(int fd)
{
    ASSERT(fd >= 0 && fd < FDS_MAX);
    pthread_mutex_lock(&gate_lock);
    bool waits = slow[fd];
    slow[fd] = false;
    standing += waits;
    pthread_cond_broadcast(&gate_moved);
    while (waits && !gate_open)
        pthread_cond_wait(&gate_moved, &gate_lock);
    standing -= waits;
    pthread_mutex_unlock(&gate_lock);
    int r = __real_close(fd);
    pthread_mutex_lock(&gate_lock);
    closed[fd]++;
    closed_by[fd] = pthread_self();
    pthread_cond_broadcast(&gate_moved);
    pthread_mutex_unlock(&gate_lock);
    return r;
}

void *__real_malloc(size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_malloc(size_t n) { return atomic_load(&no_memory) ? NULL : __real_malloc(n); }

int __real_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg)
{
    return atomic_load(&no_threads) ? EAGAIN : __real_pthread_create(t, a, fn, arg);
}

static int a_file(bool takes_long)
{
    int fd = dup(0);
    ASSERT(fd >= 0 && fd < FDS_MAX);
    pthread_mutex_lock(&gate_lock);
    slow[fd] = takes_long;
    closed[fd] = 0;
    pthread_mutex_unlock(&gate_lock);
    return fd;
}

static void gate(bool open)
{
    pthread_mutex_lock(&gate_lock);
    gate_open = open;
    pthread_cond_broadcast(&gate_moved);
    pthread_mutex_unlock(&gate_lock);
}

static unsigned closes_of(int fd)
{
    pthread_mutex_lock(&gate_lock);
    unsigned n = closed[fd];
    pthread_mutex_unlock(&gate_lock);
    return n;
}

static void wait_closed(int fd)
{
    pthread_mutex_lock(&gate_lock);
    while (!closed[fd])
        pthread_cond_wait(&gate_moved, &gate_lock);
    pthread_mutex_unlock(&gate_lock);
}

static void wait_standing(unsigned n)
{
    pthread_mutex_lock(&gate_lock);
    while (standing != n)
        pthread_cond_wait(&gate_moved, &gate_lock);
    pthread_mutex_unlock(&gate_lock);
}

static void setup(void)
{
    gate(false);
}

/* ---- waiting ---- */

struct asking { int fds[3]; unsigned count; bool returned; struct rt_task task; };

static void ask_co(struct co *co, void *arg)
{
    struct asking *a = arg;
    rt_close_fds(co, a->fds, a->count);
    a->returned = true;
}

/* The loop goes on meanwhile, and who asked waits until all are closed. */
static void waits_for_its_own(struct co *co)
{
    struct asking a = { { a_file(false), a_file(true), a_file(false) }, 3, false, { 0 } };
    setup();
    OK(rt_task_start(co_loop(co), &a.task, ask_co, &a));
    for (unsigned i = 0; i < 50 || closes_of(a.fds[1]); i++)
        OK(co_sleep(co, MS));
    ASSERT(!a.returned);
    gate(true);
    rt_task_join(co, &a.task);
    for (unsigned i = 0; i < 3; i++) {
        ASSERT(closes_of(a.fds[i]) == 1);
        ASSERT(!pthread_equal(closed_by[a.fds[i]], pthread_self()));
    }
}
ON_BOTH(waits_for_its_own)

/* Who is told to end, and who has no time left, goes; what he handed over is closed all the same, once. */
static void need_not_wait(struct co *co)
{
    struct asking a = { { a_file(true) }, 1, false, { 0 } };
    int late = a_file(true);
    setup();
    OK(rt_task_start(co_loop(co), &a.task, ask_co, &a));
    OK(co_sleep(co, 5 * MS));
    ASSERT(!a.returned);
    rt_cancel(&a.task);
    rt_task_join(co, &a.task);
    ASSERT(a.returned && !closes_of(a.fds[0]));
    uint64_t until = rt_now(co_loop(co)) + 5 * MS;
    ASSERT(co_set_deadline(co, until) == 0);
    rt_close_fds(co, &late, 1);
    ASSERT(rt_now(co_loop(co)) >= until && rt_now(co_loop(co)) < until + RT_CLOSE_PATIENCE_NS / 2);
    ASSERT(co_set_deadline(co, 0) == until && !closes_of(late));
    gate(true);
    wait_closed(a.fds[0]);
    wait_closed(late);
    for (int i = 0; i < 20; i++)         /* nothing arrives that nobody waits for */
        OK(co_sleep(co, MS));
    ASSERT(closes_of(a.fds[0]) == 1 && closes_of(late) == 1);
}
ON_BOTH(need_not_wait)

static void patience_ends(struct co *co)
{
    int fd = a_file(true);
    setup();
    uint64_t from = rt_now(co_loop(co));
    rt_close_fds(co, &fd, 1);
    ASSERT(rt_now(co_loop(co)) - from >= RT_CLOSE_PATIENCE_NS && !closes_of(fd));
    gate(true);
    wait_closed(fd);
}
static void test_patience(void **state) { test_run(RT_BACKEND_AUTO, patience_ends); }

/* Arrivals and cancellations in every order. */
static void races(struct co *co)
{
    struct prng p;
    prng_init(&p, 7);
    gate(true);
    for (int i = 0; i < 500; i++) {
        struct asking a = { { a_file(false) }, 1, false, { 0 } };
        OK(rt_task_start(co_loop(co), &a.task, ask_co, &a));
        for (uint64_t n = prng_below(&p, 4); n; n--)
            co_yield(co);
        if (prng_below(&p, 4))
            OK(co_sleep(co, prng_below(&p, 60000)));
        rt_cancel(&a.task);
        rt_task_join(co, &a.task);
        wait_closed(a.fds[0]);           /* the number is free for the next one */
    }
}
ON_BOTH(races)

/* ---- the end ---- */

static int left_behind[2 * RT_CLOSERS_MAX + 1];

/* All threads stand still, and more waits for one. */
static void leave_many(struct co *co)
{
    setup();
    for (unsigned i = 0; i < 2 * RT_CLOSERS_MAX; i++)
        rt_close_soon(co_loop(co), left_behind[i] = a_file(true));
    wait_standing(RT_CLOSERS_MAX);
}

static void end_waits_for_nothing(enum rt_backend_kind kind)
{
    test_run(kind, leave_many);
    wait_standing(RT_CLOSERS_MAX);       /* the runtime is gone, and each of them still stands there */
    for (unsigned i = 0; i < 2 * RT_CLOSERS_MAX; i++)
        assert_int_equal(closes_of(left_behind[i]), 0);
    gate(true);
    for (unsigned i = 0; i < 2 * RT_CLOSERS_MAX; i++)
        wait_closed(left_behind[i]);
    nanosleep(&(struct timespec){ 0, 20 * 1000000 }, NULL);
    for (unsigned i = 0; i < 2 * RT_CLOSERS_MAX; i++)
        assert_int_equal(closes_of(left_behind[i]), 1);
}
static void test_end_uring(void **state) { end_waits_for_nothing(RT_BACKEND_URING); }
static void test_end_threads(void **state) { end_waits_for_nothing(RT_BACKEND_THREADS); }

/* Those that have nothing to do are gone with the runtime. */
static unsigned thread_count(void)
{
    char line[128];
    unsigned n = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        (void)sscanf(line, "Threads: %u", &n);
    if (f)
        fclose(f);
    return n;
}

static void close_some(struct co *co)
{
    int fds[] = { a_file(false), a_file(false) };
    gate(true);
    rt_close_fds(co, fds, 1);
    rt_close_soon(co_loop(co), fds[1]);
    wait_closed(fds[1]);
    OK(co_sleep(co, 20 * MS));
}

static void test_nothing_left(void **state)
{
    unsigned before = thread_count();
    test_run(RT_BACKEND_THREADS, close_some);
    for (int i = 0; i < 100 && thread_count() > before; i++)      /* the kernel counts one that was joined a moment longer */
        nanosleep(&(struct timespec){ 0, 1000000 }, NULL);
    assert_int_equal(thread_count(), before);
}

/* ---- failures ---- */

static void fails_here(struct co *co)
{
    int fds[] = { a_file(false), a_file(false) }, more[] = { a_file(false), a_file(false) };
    atomic_store(&no_memory, true);
    rt_close_fds(co, fds, 2);
    rt_close_soon(co_loop(co), more[0]);
    atomic_store(&no_memory, false);
    ASSERT(closes_of(fds[0]) == 1 && closes_of(fds[1]) == 1 && closes_of(more[0]) == 1);
    ASSERT(pthread_equal(closed_by[fds[1]], pthread_self()) && pthread_equal(closed_by[more[0]], pthread_self()));
    atomic_store(&no_threads, true);
    fds[0] = a_file(false);
    rt_close_fds(co, fds, 1);
    rt_close_soon(co_loop(co), more[1]);
    atomic_store(&no_threads, false);
    ASSERT(closes_of(fds[0]) == 1 && closes_of(more[1]) == 1 && pthread_equal(closed_by[fds[0]], pthread_self()));
    rt_close_fds(co, NULL, 0);
}
static void test_failures(void **state) { test_run(RT_BACKEND_THREADS, fails_here); }

/* One thread is there, another one is not to be had: who comes waits for it. */
static void waits_for_a_thread(struct co *co)
{
    struct asking a = { { a_file(false) }, 1, false, { 0 } };
    setup();
    int first = a_file(true);
    rt_close_soon(co_loop(co), first);
    wait_standing(1);
    atomic_store(&no_threads, true);
    OK(rt_task_start(co_loop(co), &a.task, ask_co, &a));
    for (int i = 0; i < 20; i++)
        OK(co_sleep(co, MS));
    ASSERT(!a.returned && !closes_of(a.fds[0]));
    gate(true);
    rt_task_join(co, &a.task);
    atomic_store(&no_threads, false);
    ASSERT(closes_of(first) == 1 && closes_of(a.fds[0]) == 1);
}
static void test_one_thread(void **state) { test_run(RT_BACKEND_THREADS, waits_for_a_thread); }

/* ---- a socket that lingers ---- */

static int lingering(int *ret_far)
{
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t n = sizeof at;
    static const char full[65536];
    int door = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), near = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ASSERT(bind(door, (struct sockaddr *)&at, n) == 0 && listen(door, 1) == 0 && getsockname(door, (struct sockaddr *)&at, &n) == 0);
    OK(connect(near, (struct sockaddr *)&at, n));
    *ret_far = accept4(door, NULL, NULL, SOCK_CLOEXEC);
    ASSERT(*ret_far >= 0);
    close(door);
    OK(setsockopt(near, SOL_SOCKET, SO_LINGER, &(struct linger){ 1, 600 }, sizeof(struct linger)));
    while (send(near, full, sizeof full, MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
        ;
    return near;
}

static int far_end;

static void linger_co(struct co *co)
{
    struct asking a = { { lingering(&far_end) }, 1, false, { 0 } };
    pthread_mutex_lock(&gate_lock);
    closed[a.fds[0]] = 0;
    pthread_mutex_unlock(&gate_lock);
    OK(rt_task_start(co_loop(co), &a.task, ask_co, &a));
    for (int i = 0; i < 100; i++)
        OK(co_sleep(co, MS));
    ASSERT(!a.returned);                 /* it does linger */
    rt_cancel(&a.task);
    rt_task_join(co, &a.task);
    left_behind[0] = a.fds[0];
}

static void test_lingering_socket(void **state)
{
    test_run(RT_BACKEND_AUTO, linger_co);
    assert_int_equal(closes_of(left_behind[0]), 0);      /* the runtime has ended before */
    close(far_end);
    wait_closed(left_behind[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(waits_for_its_own), BOTH(need_not_wait), cmocka_unit_test(test_patience), BOTH(races), cmocka_unit_test(test_end_uring),
        cmocka_unit_test(test_end_threads), cmocka_unit_test(test_nothing_left), cmocka_unit_test(test_failures), cmocka_unit_test(test_one_thread),
        cmocka_unit_test(test_lingering_socket),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
