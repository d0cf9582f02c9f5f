/* SPDX-License-Identifier: MIT
 *
 * bench_rt.c: what the runtime's basic operations cost. Not a test.   usage: bench-rt [threads]
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/assert.h"
#include "rt/epoch.h"
#include "rt/io.h"
#include "rt/loop.h"
#include "rt/sync.h"

#define OK(call) ASSERT((call) == 0)

enum { FILE_BYTES = 16 << 20, BLOCK = 4096 };

static uint64_t cpu_ns(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (uint64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000000u
         + (uint64_t)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1000u;
}

struct clock { uint64_t wall, cpu; };

static struct clock begin(struct co *co)
{
    return (struct clock){ rt_now(co_loop(co)), cpu_ns() };
}

static void report(struct co *co, struct clock c, const char *what, double n)
{
    double wall = (double)(rt_now(co_loop(co)) - c.wall), cpu = (double)(cpu_ns() - c.cpu);
    printf("%-34s %9.1f ns wall %9.1f ns cpu %12.0f /s\n", what, wall / n, cpu / n, n * 1e9 / wall);
}

static void yielder(struct co *co, void *arg)
{
    for (int i = 0; i < *(int *)arg; i++)
        co_yield(co);
}

static void bench_switch(struct co *co, int coroutines)
{
    enum { TOTAL = 8000000 };
    struct rt_task t[64];
    char name[40];
    int rounds = TOTAL / coroutines;
    for (int i = 0; i < coroutines; i++)
        OK(rt_task_start(co_loop(co), &t[i], yielder, &rounds));
    struct clock c = begin(co);
    for (int i = 0; i < coroutines; i++)
        rt_task_join(co, &t[i]);
    snprintf(name, sizeof name, "yield (out and in), %d coroutines", coroutines);
    report(co, c, name, TOTAL);
}

static void empty(struct co *co, void *arg)
{
    (void)co;
    (void)arg;
}

static void bench_spawn(struct co *co)
{
    enum { N = 4000000, BATCH = 16 };
    struct clock c = begin(co);
    for (int i = 0; i < N / BATCH; i++) {
        for (int k = 0; k < BATCH; k++)
            OK(rt_spawn(co_loop(co), empty, NULL));
        co_yield(co);
    }
    report(co, c, "spawn, run, end", N);
}

static void bench_epoch(struct co *co)
{
    enum { N = 20000000 };
    struct epoch *d;
    OK(epoch_new(co_loop(co), &d));
    struct clock c = begin(co);
    for (int i = 0; i < N; i++)
        epoch_leave(d, co_loop(co), epoch_enter(d, co_loop(co)));
    report(co, c, "epoch enter and leave, alone", N);
    epoch_token t[2] = { epoch_enter(d, co_loop(co)), epoch_enter(d, co_loop(co)) };
    c = begin(co);
    for (int i = 0; i < N; i++)
        epoch_leave(d, co_loop(co), epoch_enter(d, co_loop(co)));
    report(co, c, "epoch enter and leave, busy", N);
    epoch_leave(d, co_loop(co), t[0]);
    epoch_leave(d, co_loop(co), t[1]);
    c = begin(co);
    for (int i = 0; i < N / 100; i++)
        epoch_wait(co, d);
    report(co, c, "epoch_wait, nobody inside", N / 100);
    epoch_free(d);
}

static int answer(struct co *co, void *arg)
{
    (void)co;
    return *(int *)arg;
}

struct caller { struct rt_loop *to; int n; };

static void caller(struct co *co, void *arg)
{
    struct caller *k = arg;
    int v = 7;
    for (int i = 0; i < k->n; i++)
        ASSERT(rt_call(co, k->to, answer, &v) == 7);
}

static void bench_call(struct co *co, int depth)
{
    enum { N = 200000 };
    struct rt_task t[64];
    struct caller k = { rt_loop_at(rt_of(co_loop(co)), 1), N / depth };
    char name[40];
    struct clock c = begin(co);
    for (int i = 0; i < depth; i++)
        OK(rt_task_start(co_loop(co), &t[i], caller, &k));
    for (int i = 0; i < depth; i++)
        rt_task_join(co, &t[i]);
    snprintf(name, sizeof name, "rt_call to another loop, depth %d", depth);
    report(co, c, name, N);
}

static int64_t nothing(void *arg)
{
    (void)arg;
    return 0;
}

static void bench_blocking(struct co *co)
{
    enum { N = 50000 };
    struct clock c = begin(co);
    for (int i = 0; i < N; i++)
        ASSERT(rt_blocking(co, nothing, NULL) == 0);
    report(co, c, "rt_blocking, depth 1", N);
}

struct reads { int fd, n; uint64_t range; };

static void read_some(struct co *co, void *arg)
{
    struct reads *r = arg;
    char *buf = malloc(BLOCK);
    struct iovec v = { buf, BLOCK };
    uint64_t at = (uintptr_t)co / 64 * BLOCK;
    for (int i = 0; i < r->n; i++) {
        at += 37 * BLOCK;
        int64_t got = rt_preadv(co, r->fd, &v, 1, at % r->range);
        ASSERT(got == (r->range > 1 ? BLOCK : 0));
    }
    free(buf);
}

static void bench_read(struct co *co, const char *what, int fd, uint64_t range, int depth)
{
    enum { N = 400000 };
    struct rt_task t[64];
    struct reads r = { fd, N / depth, range };
    char name[40];
    struct clock c = begin(co);
    for (int i = 0; i < depth; i++)
        OK(rt_task_start(co_loop(co), &t[i], read_some, &r));
    for (int i = 0; i < depth; i++)
        rt_task_join(co, &t[i]);
    snprintf(name, sizeof name, "%s, depth %d", what, depth);
    report(co, c, name, N);
}

static void bench_files(struct co *co)
{
    char path[] = "/tmp/bench-rt-XXXXXX";
    int fd = mkstemp(path), null = open("/dev/null", O_RDONLY);
    ASSERT(fd >= 0 && null >= 0);
    unlink(path);
    char *buf = malloc(FILE_BYTES);
    memset(buf, 1, FILE_BYTES);
    ASSERT(write(fd, buf, FILE_BYTES) == FILE_BYTES);
    free(buf);
    bench_read(co, "read of /dev/null", null, 1, 1);
    bench_read(co, "read of /dev/null", null, 1, 64);
    bench_read(co, "pread 4K, cached", fd, FILE_BYTES, 1);
    bench_read(co, "pread 4K, cached", fd, FILE_BYTES, 64);
    close(fd);
    close(null);
}

struct run { bool done; };

static void all(struct co *co, void *arg)
{
    printf("backend %s\n", rt_backend_name(co_loop(co)));
    bench_switch(co, 1);
    bench_switch(co, 2);
    bench_switch(co, 64);
    bench_spawn(co);
    bench_epoch(co);
    bench_call(co, 1);
    bench_call(co, 64);
    bench_blocking(co);
    bench_files(co);
    co_xevent_set(arg);
}

static void waiter(struct co *co, void *arg)
{
    co_xevent_wait(co, arg);
    ((struct run *)((char *)arg + sizeof(struct co_xevent)))->done = true;
}

static bool finished(void *arg)
{
    return ((struct run *)arg)->done;
}

int main(int argc, char **argv)
{
    struct rt *rt, *front;
    struct { struct co_xevent e; struct run run; } end = { 0 };
    struct rt_opts o = { .loops = 2 };
    (void)argv;
    if (argc > 1)
        o.backend = RT_BACKEND_THREADS;
    OK(rt_new(&o, &rt, NULL));
    OK(rt_new(&(struct rt_opts){ .manual = true }, &front, NULL));
    co_xevent_init(&end.e, rt_loop_at(front, 0));
    OK(rt_spawn(rt_loop_at(front, 0), waiter, &end.e));
    OK(rt_spawn_on(rt_loop_at(rt, 0), all, &end.e));
    rt_loop_run(rt_loop_at(front, 0), finished, &end.run);
    rt_free(rt);
    rt_free(front);
    return 0;
}
