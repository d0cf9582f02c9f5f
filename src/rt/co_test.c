/* SPDX-License-Identifier: MIT
 *
 * co_test.c: coroutines: order, stacks, pool, memory failure, cancellation, deadlines, tasks, atomic sections.
 */
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "rt/rt_priv.h"
#include "rt/rt_test.h"

/* mmap (mmap64: large files are on) of this program: counted, and refused on demand */
static unsigned mmaps;
static bool refuse;
void *__real_mmap64(void *a, size_t n, int prot, int flags, int fd, off_t off);
void *__wrap_mmap64(void *a, size_t n, int prot, int flags, int fd, off_t off);
void *__wrap_mmap64(void *a, size_t n, int prot, int flags, int fd, off_t off)
{
    mmaps++;
    return refuse ? MAP_FAILED : __real_mmap64(a, n, prot, flags, fd, off);
}

static char trace[64];

static void note(char c)
{
    size_t n = strlen(trace);
    ASSERT(n + 1 < sizeof trace);
    trace[n] = c;
    trace[n + 1] = 0;
}

static void letter(struct co *co, void *arg)
{
    char c = *(char *)arg;
    note(c);
    co_yield(co);
    note(c);
    co_yield(co);
    note(c);
}

static void order(struct co *co)
{
    struct rt_task t[3];
    char c[3] = { 'a', 'b', 'c' };
    trace[0] = 0;
    for (int i = 0; i < 3; i++)
        OK(rt_task_start(co_loop(co), &t[i], letter, &c[i]));
    note('-');                  /* nothing ran yet */
    for (int i = 0; i < 3; i++)
        rt_task_join(co, &t[i]);
    ASSERT(!strcmp(trace, "-abcabcabc"));
}
ON_BOTH(order)

/* Uses a good part of the stack and checks that nobody else wrote there. */
static void stack_user(struct co *co, void *arg)
{
    volatile unsigned char mem[24 * 1024];
    unsigned char mine = *(unsigned char *)arg;
    for (int round = 0; round < 5; round++) {
        for (size_t i = 0; i < sizeof mem; i++)
            mem[i] = (unsigned char)(mine + i);
        co_yield(co);
        for (size_t i = 0; i < sizeof mem; i++)
            ASSERT(mem[i] == (unsigned char)(mine + i));
    }
}

static void stacks_are_apart(struct co *co)
{
    enum { N = 20 };
    struct rt_task t[N];
    unsigned char id[N];
    for (int i = 0; i < N; i++) {
        id[i] = (unsigned char)(i * 11);
        OK(rt_task_start(co_loop(co), &t[i], stack_user, &id[i]));
    }
    for (int i = 0; i < N; i++)
        rt_task_join(co, &t[i]);
}
ON_BOTH(stacks_are_apart)

static void floats(struct co *co, void *arg)
{
    double x = *(double *)arg, sum = 0;
    for (int i = 0; i < 100; i++) {
        sum += x / 3;
        co_yield(co);
    }
    ASSERT(sum > 33.3 * x && sum < 33.4 * x);
}

static void registers_survive(struct co *co)
{
    struct rt_task t[2];
    double x[2] = { 1.5, 7.25 };
    uint64_t a = 1, b = 2, c = 3, d = 4, e = 5, f = 6;
    for (int i = 0; i < 2; i++)
        OK(rt_task_start(co_loop(co), &t[i], floats, &x[i]));
    for (int i = 0; i < 100; i++) {
        co_yield(co);
        a += b, b += c, c += d, d += e, e += f, f += 1;
    }
    ASSERT(f == 106 && e > f && d > e && c > d && b > c && a > b);
    for (int i = 0; i < 2; i++)
        rt_task_join(co, &t[i]);
}
ON_BOTH(registers_survive)

static void nothing(struct co *co, void *arg)
{
    (*(int *)arg)++;
}

static void pool_is_reused(struct co *co)
{
    int runs = 0;
    for (int i = 0; i < 10; i++)
        OK(rt_spawn(co_loop(co), nothing, &runs));
    co_yield(co);
    unsigned before = mmaps;
    for (int k = 0; k < 1000; k++) {
        for (int i = 0; i < 10; i++)
            OK(rt_spawn(co_loop(co), nothing, &runs));
        co_yield(co);
    }
    ASSERT(runs == 10010);
    ASSERT(before > 10 && mmaps == before);
}
ON_BOTH(pool_is_reused)

static void many_at_once(struct co *co)
{
    enum { N = 3000 };          /* more than the pool keeps */
    int runs = 0;
    for (int i = 0; i < N; i++)
        OK(rt_spawn(co_loop(co), nothing, &runs));
    co_yield(co);
    ASSERT(runs == N);
    for (int i = 0; i < N; i++)
        OK(rt_spawn(co_loop(co), nothing, &runs));
    co_yield(co);
    ASSERT(runs == 2 * N);
}
ON_BOTH(many_at_once)

static void memory_refused(struct co *co)
{
    int runs = 0, ok = 0;
    struct rt_task t;
    refuse = true;
    for (int i = 0; i < 2000; i++)
        ok += rt_spawn(co_loop(co), nothing, &runs) == 0;   /* at most what is pooled */
    ASSERT(ok < 2000);
    ASSERT(rt_spawn(co_loop(co), nothing, &runs) == -ENOMEM);
    ASSERT(rt_task_start(co_loop(co), &t, nothing, &runs) == -ENOMEM);
    ASSERT(rt_spawn_on(co_loop(co), nothing, &runs) == -ENOMEM);
    refuse = false;
    co_yield(co);
    ASSERT(runs == ok);
    OK(rt_spawn(co_loop(co), nothing, &runs));
    co_yield(co);
    ASSERT(runs == ok + 1);
}
ON_BOTH(memory_refused)

/* Long work lets the core go about once a millisecond; work after a sleep begins anew; a cancelled one goes on. */
static void long_work_rests(struct co *co)
{
    struct rt_loop *loop = co_loop(co);
    OK(co_sleep(co, 2 * MS));
    uint64_t sleeps = loop->sleeps, begin = rt_now(loop), steps = 0;
    co_breathe(co);
    ASSERT(loop->sleeps == sleeps);
    while (rt_now(loop) - begin < 20 * MS || loop->sleeps == sleeps || loop->sleeps - sleeps >= steps) {      /* a busy machine rests for us */
        co_breathe(co);
        steps++;
    }
}
ON_BOTH(long_work_rests)

/* ---- cancellation and deadlines ---- */

struct sleeper { uint64_t ns, deadline_in; int result, again; bool cancelled; };

static void sleep_once(struct co *co, void *arg)
{
    struct sleeper *s = arg;
    if (s->deadline_in)
        ASSERT(co_set_deadline(co, rt_now(co_loop(co)) + s->deadline_in) == 0);
    s->result = co_sleep(co, s->ns);
    s->again = co_sleep(co, 0);
    s->cancelled = co_cancelled(co);
    co_set_deadline(co, 0);
}

static void cancel_sleep(struct co *co)
{
    struct sleeper s = { .ns = 3600 * 1000 * MS };
    struct rt_task t;
    uint64_t begin = rt_now(co_loop(co));
    OK(rt_task_start(co_loop(co), &t, sleep_once, &s));
    OK(co_sleep(co, 2 * MS));
    ASSERT(!t.done);
    rt_cancel(&t);
    rt_cancel(&t);
    rt_task_join(co, &t);
    ASSERT(s.result == -ECANCELED && s.again == -ECANCELED && s.cancelled);
    ASSERT(rt_now(co_loop(co)) - begin < 60000 * MS);     /* of an hour */
    ASSERT(t.done);
    rt_cancel(&t);              /* harmless */
    rt_task_join(co, &t);
}
ON_BOTH(cancel_sleep)

static void cancel_before_start(struct co *co)
{
    struct sleeper s = { .ns = 3600 * 1000 * MS };
    struct rt_task t;
    OK(rt_task_start(co_loop(co), &t, sleep_once, &s));
    rt_cancel(&t);
    rt_task_join(co, &t);
    ASSERT(s.result == -ECANCELED);
    /* the coroutine is reused: nothing of the cancellation is left */
    s = (struct sleeper){ .ns = 1 };
    OK(rt_task_start(co_loop(co), &t, sleep_once, &s));
    rt_task_join(co, &t);
    ASSERT(s.result == 0 && s.again == 0 && !s.cancelled);
}
ON_BOTH(cancel_before_start)

static void leave_deadline(struct co *co, void *arg)
{
    ASSERT(co_set_deadline(co, 1) == 0);        /* a reused coroutine begins without one */
    ASSERT(co_cancelled(co) && co_sleep(co, 0) == -ETIMEDOUT);
}

static void deadline_is_not_inherited(struct co *co)
{
    for (int i = 0; i < 3; i++) {
        struct rt_task t;
        OK(rt_task_start(co_loop(co), &t, leave_deadline, NULL));
        rt_task_join(co, &t);
    }
}
ON_BOTH(deadline_is_not_inherited)

static void cancel_when_due(struct co *co)
{
    /* the sleep is over, but its coroutine has not run yet: it reports success, the next wait is cancelled */
    struct sleeper s = { .ns = 1 * MS };
    struct rt_task t;
    OK(rt_task_start(co_loop(co), &t, sleep_once, &s));
    co_yield(co);
    usleep(3000);
    co_yield(co);               /* the timer fires behind this */
    if (!t.done)
        rt_cancel(&t);
    rt_task_join(co, &t);
    ASSERT(s.result == 0 || s.result == -ECANCELED);
    ASSERT(s.result == 0 || s.again == -ECANCELED);
}
ON_BOTH(cancel_when_due)

static void deadline_ends_sleep(struct co *co)
{
    struct sleeper s = { .ns = 3600 * 1000 * MS, .deadline_in = 3 * MS };
    struct rt_task t;
    OK(rt_task_start(co_loop(co), &t, sleep_once, &s));
    rt_task_join(co, &t);
    ASSERT(s.result == -ETIMEDOUT && s.again == -ETIMEDOUT && s.cancelled);
    s = (struct sleeper){ .ns = 1 * MS, .deadline_in = 3600 * 1000 * MS };
    OK(rt_task_start(co_loop(co), &t, sleep_once, &s));
    rt_task_join(co, &t);
    ASSERT(s.result == 0 && !s.cancelled);
}
ON_BOTH(deadline_ends_sleep)

static void join_late_and_many(struct co *co);
static struct rt_task joined;
static void joiner(struct co *co, void *arg)
{
    rt_task_join(co, &joined);
    note(*(char *)arg);
}

static void join_late_and_many(struct co *co)
{
    struct sleeper s = { .ns = 2 * MS };
    struct rt_task t[3];
    char c[3] = { 'x', 'y', 'z' };
    trace[0] = 0;
    OK(rt_task_start(co_loop(co), &joined, sleep_once, &s));
    for (int i = 0; i < 3; i++)
        OK(rt_task_start(co_loop(co), &t[i], joiner, &c[i]));
    for (int i = 0; i < 3; i++)
        rt_task_join(co, &t[i]);
    ASSERT(!strcmp(trace, "xyz"));
}
ON_BOTH(join_late_and_many)

/* ---- what must end the program ---- */

static int child_status(void (*fn)(struct co *co))
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        signal(SIGABRT, SIG_DFL);
        signal(SIGSEGV, SIG_DFL);
        if (!freopen("/dev/null", "w", stderr))
            _exit(3);
        test_run(RT_BACKEND_THREADS, fn);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void suspends_in_atomic(struct co *co)
{
    CO_ATOMIC(co) {
        co_yield(co);
    }
}

static void no_suspend_in_atomic(struct co *co)
{
    int n = 0;
    CO_ATOMIC(co) {
        CO_ATOMIC(co) n++;
        n++;
    }
    co_yield(co);
    ASSERT(n == 2);
}

static void runs_off_the_stack(struct co *co)
{
    *((volatile char *)co->stack_low - 1) = 1;
}

static void violations_are_caught(void **state)
{
    int s = child_status(suspends_in_atomic);
    assert_true(WIFSIGNALED(s) && WTERMSIG(s) == SIGABRT);
    s = child_status(no_suspend_in_atomic);
    assert_true(WIFEXITED(s) && WEXITSTATUS(s) == 0);
    s = child_status(runs_off_the_stack);               /* a sanitizer may turn the signal into an exit of its own */
    assert_false(WIFEXITED(s) && WEXITSTATUS(s) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(order), BOTH(stacks_are_apart), BOTH(registers_survive), BOTH(pool_is_reused), BOTH(many_at_once),
        BOTH(memory_refused), BOTH(long_work_rests), BOTH(cancel_sleep), BOTH(cancel_before_start), BOTH(deadline_is_not_inherited), BOTH(cancel_when_due),
        BOTH(deadline_ends_sleep), BOTH(join_late_and_many), cmocka_unit_test(violations_are_caught),
    };
    return cmocka_run_group_tests_name("rt-co", tests, NULL, NULL);
}
