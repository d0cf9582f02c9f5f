/* SPDX-License-Identifier: MIT
 *
 * loop_test.c: messages, calls between loops, spawning from elsewhere, wakeups, worker pools.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include "rt/rt_test.h"

/* ---- messages ---- */

enum { SENDERS = 4, EACH = 5000 };
struct numbered { struct rt_msg msg; int sender, seq; };
static struct numbered messages[SENDERS][EACH];
static int next_seq[SENDERS], arrived;
static struct rt_loop *target;

static void number_arrived(struct rt_msg *m)
{
    struct numbered *n = CONTAINER_OF(m, struct numbered, msg);
    ASSERT(rt_on_loop(target));
    ASSERT(n->seq == next_seq[n->sender]++);
    arrived++;
}

static void *sender(void *arg)
{
    int s = *(int *)arg;
    ASSERT(!rt_on_loop(target));
    for (int i = 0; i < EACH; i++) {
        messages[s][i] = (struct numbered){ .msg.fn = number_arrived, .sender = s, .seq = i };
        rt_post(target, &messages[s][i].msg);
        if (i % 500 == 0)
            usleep(200);            /* let the loop fall asleep now and then */
    }
    return NULL;
}

static void messages_keep_order(struct co *co)
{
    pthread_t th[SENDERS];
    int id[SENDERS];
    target = co_loop(co);
    arrived = 0;
    memset(next_seq, 0, sizeof next_seq);
    for (int i = 0; i < SENDERS; i++) {
        id[i] = i;
        OK(pthread_create(&th[i], NULL, sender, &id[i]));
    }
    while (arrived < SENDERS * EACH)
        OK(co_sleep(co, 200000));
    for (int i = 0; i < SENDERS; i++)
        pthread_join(th[i], NULL);
}
ON_BOTH(messages_keep_order)

/* A message wakes a loop that sleeps without any timer, every time. */
static void *one_by_one(void *arg)
{
    struct co_xevent **e = arg;
    for (int i = 0; i < 2000; i++) {
        while (!__atomic_load_n(&e[i], __ATOMIC_ACQUIRE))
            sched_yield();
        co_xevent_set(e[i]);
    }
    return NULL;
}

static void every_message_wakes(struct co *co)
{
    static struct co_xevent event[2000], *published[2000];
    pthread_t th;
    memset(published, 0, sizeof published);
    OK(pthread_create(&th, NULL, one_by_one, published));
    for (int i = 0; i < 2000; i++) {
        co_xevent_init(&event[i], co_loop(co));
        __atomic_store_n(&published[i], &event[i], __ATOMIC_RELEASE);
        co_xevent_wait(co, &event[i]);
    }
    pthread_join(th, NULL);
}
ON_BOTH(every_message_wakes)

/* ---- loops among themselves ---- */

static bool refuse_memory;
void *__real_mmap64(void *a, size_t n, int prot, int flags, int fd, off_t off);
void *__wrap_mmap64(void *a, size_t n, int prot, int flags, int fd, off_t off);
void *__wrap_mmap64(void *a, size_t n, int prot, int flags, int fd, off_t off)
{
    if (__atomic_load_n(&refuse_memory, __ATOMIC_RELAXED) && n < 1 << 20)
        return MAP_FAILED;
    return __real_mmap64(a, n, prot, flags, fd, off);
}

struct hop { struct rt *rt; int depth; struct co *first; };

static int hop(struct co *co, void *arg)
{
    struct hop *h = arg;
    unsigned n = rt_loop_count(h->rt), here = rt_loop_index(co_loop(co));
    ASSERT(rt_on_loop(co_loop(co)) && !rt_on_loop(rt_loop_at(h->rt, (here + 1) % n)));
    ASSERT(rt_of(co_loop(co)) == h->rt);
    if (h->depth == 0)
        return (int)here;
    h->depth--;
    int r = rt_call(co, rt_loop_at(h->rt, (here + 1) % n), hop, h);
    ASSERT(rt_on_loop(co_loop(co)) && rt_loop_index(co_loop(co)) == here);
    return r;
}

static int same_co(struct co *co, void *arg)
{
    return co == ((struct hop *)arg)->first ? 42 : -1;
}

static int see_limits(struct co *co, void *arg)
{
    ASSERT(co_set_deadline(co, 0) == *(uint64_t *)arg);
    return 0;
}

static void calls(struct co *co)
{
    struct rt *rt = rt_of(co_loop(co));
    struct rt_loop *other = rt_loop_at(rt, 1);
    for (int depth = 0; depth < 10; depth++) {
        struct hop h = { .rt = rt, .depth = depth };
        ASSERT(hop(co, &h) == depth % 3);
    }
    struct hop h = { .first = co };
    ASSERT(rt_call(co, co_loop(co), same_co, &h) == 42);
    ASSERT(rt_call(co, other, same_co, &h) == -1);
    uint64_t at = rt_now(co_loop(co)) + 1000000 * MS;
    co_set_deadline(co, at);
    ASSERT(rt_call(co, other, see_limits, &at) == 0);
    co_set_deadline(co, 0);
}

struct on_other { atomic_int *left; struct rt_loop *where; };
static void spawned(struct co *co, void *arg)
{
    struct on_other *o = arg;
    ASSERT(rt_on_loop(o->where) && co_loop(co) == o->where);
    co_yield(co);
    atomic_fetch_sub(o->left, 1);
}

static void spawn_elsewhere(struct co *co)
{
    atomic_int left = 300;
    struct on_other o[3];
    for (unsigned i = 0; i < 3; i++)
        o[i] = (struct on_other){ &left, rt_loop_at(rt_of(co_loop(co)), i) };
    for (int i = 0; i < 300; i++)
        OK(rt_spawn_on(o[i % 3].where, spawned, &o[i % 3]));
    while (atomic_load(&left))
        OK(co_sleep(co, 100000));
}

static void call_without_memory(struct co *co)
{
    struct rt *rt = rt_of(co_loop(co));
    struct hop h = { .rt = rt };
    __atomic_store_n(&refuse_memory, true, __ATOMIC_RELAXED);
    ASSERT(rt_call(co, rt_loop_at(rt, 2), hop, &h) == -ENOMEM);     /* nothing is pooled on a fresh loop */
    __atomic_store_n(&refuse_memory, false, __ATOMIC_RELAXED);
    ASSERT(rt_call(co, rt_loop_at(rt, 2), hop, &h) == 2);
}

static void on_three_loops(void (*fn)(struct co *co))
{
    for (int kind = RT_BACKEND_URING; kind <= RT_BACKEND_THREADS; kind++)
        test_run_threaded(&(struct rt_opts){ .loops = 3, .backend = (enum rt_backend_kind)kind }, fn);
}

static void call_test(void **state) { on_three_loops(calls); }
static void spawn_elsewhere_test(void **state) { on_three_loops(spawn_elsewhere); }
static void call_without_memory_test(void **state) { on_three_loops(call_without_memory); }

/* ---- rt_loop_run, rt_loop_kick ---- */

static atomic_bool stop_now;
static bool asked_to_stop(void *arg)
{
    return atomic_load(&stop_now);
}

static void *stopper(void *arg)
{
    usleep(2000);
    atomic_store(&stop_now, true);
    rt_loop_kick(arg);
    return NULL;
}

static void kick_ends_the_run(void **state)
{
    for (int kind = RT_BACKEND_URING; kind <= RT_BACKEND_THREADS; kind++) {
        struct rt *rt;
        pthread_t th;
        assert_int_equal(rt_new(&(struct rt_opts){ .backend = (enum rt_backend_kind)kind, .manual = true }, &rt, NULL), 0);
        atomic_store(&stop_now, false);
        assert_int_equal(pthread_create(&th, NULL, stopper, rt_loop_at(rt, 0)), 0);
        rt_loop_run(rt_loop_at(rt, 0), asked_to_stop, NULL);    /* sleeps: nothing else is to do */
        pthread_join(th, NULL);
        rt_free(rt);
    }
}

/* Each kick is seen, wherever the loop is between looking and sleeping. */
enum { KICKS = 3000 };
static atomic_int kicks_sent, kicks_seen;

static bool kick_seen(void *arg)
{
    return atomic_load(&kicks_sent) > atomic_load(&kicks_seen);
}

static void *kicker(void *arg)
{
    for (int i = 0; i < KICKS; i++) {
        while (atomic_load(&kicks_seen) < i)
            if (i % 64 == 0)
                sched_yield();
        for (volatile int k = i * 7 % 400; k > 0; k--)      /* hits another moment each time */
            ;
        atomic_fetch_add(&kicks_sent, 1);
        rt_loop_kick(arg);
    }
    return NULL;
}

static void no_kick_is_lost(void **state)
{
    for (int kind = RT_BACKEND_URING; kind <= RT_BACKEND_THREADS; kind++) {
        struct rt *rt;
        pthread_t th;
        assert_int_equal(rt_new(&(struct rt_opts){ .backend = (enum rt_backend_kind)kind, .manual = true }, &rt, NULL), 0);
        atomic_store(&kicks_sent, 0);
        atomic_store(&kicks_seen, 0);
        assert_int_equal(pthread_create(&th, NULL, kicker, rt_loop_at(rt, 0)), 0);
        for (int i = 0; i < KICKS; i++) {
            rt_loop_run(rt_loop_at(rt, 0), kick_seen, NULL);
            atomic_fetch_add(&kicks_seen, 1);
        }
        pthread_join(th, NULL);
        rt_free(rt);
    }
}

/* The worst moment: behind the last look at stop, before the loop sleeps. */
struct late_kick { struct rt_loop *loop; int asked; };

static bool kicks_itself(void *arg)
{
    struct late_kick *k = arg;
    if (k->asked++ > 1)
        return true;
    rt_loop_kick(k->loop);
    return false;
}

static void kick_in_the_worst_moment(void **state)
{
    for (int kind = RT_BACKEND_URING; kind <= RT_BACKEND_THREADS; kind++) {
        struct rt *rt;
        assert_int_equal(rt_new(&(struct rt_opts){ .backend = (enum rt_backend_kind)kind, .manual = true }, &rt, NULL), 0);
        struct late_kick k = { rt_loop_at(rt, 0), 0 };
        rt_loop_run(k.loop, kicks_itself, &k);
        rt_free(rt);
    }
}

/* ---- worker pools ---- */

static atomic_int running, peak, done_count;
static atomic_bool gate_open;

static int64_t slow(void *arg)
{
    int n = atomic_fetch_add(&running, 1) + 1, seen = atomic_load(&peak);
    while (n > seen && !atomic_compare_exchange_weak(&peak, &seen, n))
        ;
    while (!atomic_load(&gate_open))
        usleep(100);
    atomic_fetch_sub(&running, 1);
    return *(int *)arg * INT64_C(10000000000);
}

struct worker_user { int v; bool cpu; };
static void use_worker(struct co *co, void *arg)
{
    struct worker_user *u = arg;
    int64_t r = u->cpu ? rt_cpu(co, slow, &u->v) : rt_blocking(co, slow, &u->v);
    ASSERT(r == u->v * INT64_C(10000000000));
    ASSERT(rt_on_loop(co_loop(co)));
    atomic_fetch_add(&done_count, 1);
}

static void workers(struct co *co, bool cpu, int limit)
{
    enum { N = 60 };
    struct rt_task t[N];
    struct worker_user u[N];
    atomic_store(&peak, 0);
    atomic_store(&done_count, 0);
    atomic_store(&gate_open, false);
    for (int i = 0; i < N; i++) {
        u[i] = (struct worker_user){ i - 20, cpu };
        OK(rt_task_start(co_loop(co), &t[i], use_worker, &u[i]));
    }
    while (atomic_load(&running) < limit)
        OK(co_sleep(co, 1 * MS));           /* the loop itself is free meanwhile */
    OK(co_sleep(co, 5 * MS));
    ASSERT(atomic_load(&done_count) == 0 && atomic_load(&running) == limit);
    atomic_store(&gate_open, true);
    for (int i = 0; i < N; i++)
        rt_task_join(co, &t[i]);
    ASSERT(atomic_load(&done_count) == N && atomic_load(&running) == 0 && atomic_load(&peak) == limit);
}

static void both_pools(struct co *co)
{
    workers(co, false, 16);
    workers(co, true, 3);
}

static void pools_test(void **state)
{
    for (int kind = RT_BACKEND_URING; kind <= RT_BACKEND_THREADS; kind++)
        test_run_opts(&(struct rt_opts){ .backend = (enum rt_backend_kind)kind, .manual = true, .cpu_workers = 3 }, both_pools);
}

/* Several workers on one call: they meet in it, and each index is done once. */
static atomic_uint index_seen[40];

static void slow_index(void *arg, unsigned i)
{
    int v = 1;
    (void)slow(&v);
    atomic_fetch_add(&index_seen[i], 1);
}

static void open_gate_when(struct co *co, void *arg)
{
    int limit = *(int *)arg;
    while (atomic_load(&running) < limit)
        OK(co_sleep(co, 1 * MS));           /* the loop itself is free meanwhile */
    OK(co_sleep(co, 5 * MS));
    ASSERT(atomic_load(&running) == limit && rt_cpu_waiting(rt_of(co_loop(co))) == 0);
    atomic_store(&gate_open, true);
}

static void split_in(struct co *co, unsigned n, int limit)
{
    struct rt_task t;
    for (unsigned i = 0; i < 40; i++)
        atomic_store(&index_seen[i], 0);
    atomic_store(&peak, 0);
    atomic_store(&gate_open, false);
    OK(rt_task_start(co_loop(co), &t, open_gate_when, &limit));
    OK(rt_cpu_split(co, slow_index, NULL, n));
    rt_task_join(co, &t);
    ASSERT(atomic_load(&peak) == limit && atomic_load(&running) == 0);
    for (unsigned i = 0; i < 40; i++)
        ASSERT(atomic_load(&index_seen[i]) == (i < n));
}

static void splits(struct co *co)
{
    int workers = (int)rt_cpu_workers(rt_of(co_loop(co))), most = workers < (int)RT_SPLIT_MAX ? workers : (int)RT_SPLIT_MAX;
    split_in(co, 40, most);
    split_in(co, 2, most < 2 ? most : 2);
    split_in(co, 1, 1);
    split_in(co, 0, 0);
}

static void split_test(void **state)
{
    static const unsigned workers[] = { 1, 3, 12 };
    for (int kind = RT_BACKEND_URING; kind <= RT_BACKEND_THREADS; kind++)
        for (unsigned i = 0; i < 3; i++)
            test_run_opts(&(struct rt_opts){ .backend = (enum rt_backend_kind)kind, .manual = true, .cpu_workers = workers[i] }, splits);
}

/* Threads cannot be had: -ENOMEM; as soon as there is one, work only waits. */
static int thread_budget = -1;
int __real_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg)
{
    if (thread_budget == 0)
        return EAGAIN;
    if (thread_budget > 0)
        thread_budget--;
    return __real_pthread_create(t, a, fn, arg);
}

static void no_threads(struct co *co)
{
    int v = 1;
    atomic_store(&gate_open, true);
    thread_budget = 0;
    ASSERT(rt_blocking(co, slow, &v) == -ENOMEM);
    ASSERT(rt_cpu(co, slow, &v) == -ENOMEM);
    ASSERT(rt_cpu_split(co, slow_index, NULL, 3) == -ENOMEM);
    thread_budget = 1;
    ASSERT(rt_blocking(co, slow, &v) == INT64_C(10000000000));
    ASSERT(thread_budget == 0);
    struct rt_task t[3];
    struct worker_user u[3] = { { 1, false }, { 2, false }, { 3, false } };
    for (int i = 0; i < 3; i++)
        OK(rt_task_start(co_loop(co), &t[i], use_worker, &u[i]));
    for (int i = 0; i < 3; i++)
        rt_task_join(co, &t[i]);
    thread_budget = 1;                      /* one thread does the work of all */
    atomic_store(&index_seen[0], 0);
    atomic_store(&index_seen[1], 0);
    OK(rt_cpu_split(co, slow_index, NULL, 2));
    ASSERT(thread_budget == 0 && atomic_load(&index_seen[0]) == 1 && atomic_load(&index_seen[1]) == 1);
    thread_budget = -1;
}
ON_BOTH(no_threads)

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(messages_keep_order), BOTH(every_message_wakes), cmocka_unit_test(call_test),
        cmocka_unit_test(spawn_elsewhere_test), cmocka_unit_test(call_without_memory_test),
        cmocka_unit_test(kick_ends_the_run), cmocka_unit_test(no_kick_is_lost),
        cmocka_unit_test(kick_in_the_worst_moment), cmocka_unit_test(pools_test), cmocka_unit_test(split_test), BOTH(no_threads),
    };
    return cmocka_run_group_tests_name("rt-loop", tests, NULL, NULL);
}
