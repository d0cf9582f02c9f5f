/* SPDX-License-Identifier: MIT
 *
 * ctx.c: the context, and the bridge from blocking callers into the runtime.
 *
 * Purpose      One runtime and one graph for all images of a context. Blocking calls of the library are a coroutine
 *              on a loop plus a thread that waits; nowhere else does a thread wait for a loop.
 * Owns         struct byre_ctx, its runtime and graph
 * Invariants   I1 a bridge is entered by no thread of the runtime
 *              I2 with CALLER_RUNS a bridge is never entered from inside a bridge
 * Concurrency  byre_ctx_new/free: one thread. lib_call: any foreign thread.
 * Failure      byre_ctx_new leaves nothing behind
 * Tests        lib_test.c, tests/lib
 */
#include <sched.h>
#include <semaphore.h>
#include <string.h>

#include "graph/blockdev.h"
#include "lib/lib_priv.h"
#include "stor/fdset.h"
#include "stor/pr.h"
#include "tls/objects.h"

_Static_assert((int)BYRE_POLICY_STRICT != (int)BYRE_POLICY_ECOSYSTEM, "two policies");
_Static_assert((int)BYRE_BACKEND_AUTO == (int)RT_BACKEND_AUTO && (int)BYRE_BACKEND_URING == (int)RT_BACKEND_URING &&
               (int)BYRE_BACKEND_THREADS == (int)RT_BACKEND_THREADS, "the same numbers");

int lib_take_opts(void *to, size_t to_size, const void *user, struct byre_err *err)
{
    memset(to, 0, to_size);
    if (!user)
        return 0;
    size_t have = *(const size_t *)user;
    if (have < sizeof(size_t))
        return byre_fail(err, BAD_ARGUMENT, "an option struct was not made by its _init function");
    memcpy(to, user, have < to_size ? have : to_size);
    for (size_t i = to_size; i < have; i++)
        if (((const char *)user)[i])
            return byre_fail(err, LIMIT, "an option struct holds a member that this version of the library does not know");
    return 0;
}

struct rt_loop *lib_ctx_home(struct byre_ctx *ctx)
{
    return lib_home(ctx);
}

struct graph *lib_ctx_graph(struct byre_ctx *ctx)
{
    return ctx->graph;
}

struct jobs *lib_ctx_jobs(struct byre_ctx *ctx)
{
    return &ctx->jobs;
}

struct tls_set *lib_ctx_tls(struct byre_ctx *ctx)
{
    return ctx->tls;
}

struct rt_loop *lib_next_loop(struct byre_ctx *ctx)
{
    return rt_loop_at(ctx->rt, atomic_fetch_add_explicit(&ctx->turn, 1, memory_order_relaxed) % ctx->loops);
}

/* ---- the bridge ---- */
struct bridge {
    int (*fn)(struct co *co, void *arg);
    void *arg;
    int result;
    bool done;                       /* caller_runs only: same thread */
    bool inline_;
    sem_t ended;
};

static void bridge_co(struct co *co, void *arg)
{
    struct bridge *b = arg;
    b->result = b->fn(co, b->arg);
    if (b->inline_)
        b->done = true;
    else
        sem_post(&b->ended);         /* b may be gone from here on */
}

static bool bridge_done(void *arg)
{
    return ((struct bridge *)arg)->done;
}

static int call_inline(struct byre_ctx *ctx, struct rt_loop *loop, struct bridge *b)
{
    INV(I2, !ctx->inside);
    b->inline_ = true;
    int r = rt_spawn(loop, bridge_co, b);
    if (r)
        return r;
    lib_run_until(ctx, bridge_done, b, -1);
    return b->result;
}

int lib_call(struct byre_ctx *ctx, struct rt_loop *loop, int (*fn)(struct co *co, void *arg), void *arg)
{
    struct bridge b = { .fn = fn, .arg = arg };
    if (ctx->caller_runs)
        return call_inline(ctx, loop, &b);
    INV(I1, !rt_on_loop(loop));
    sem_init(&b.ended, 0, 0);
    int r = rt_spawn_on(loop, bridge_co, &b);
    if (!r) {
        while (sem_wait(&b.ended))
            ;
        r = b.result;
    }
    sem_destroy(&b.ended);
    return r;
}

/* What fn returns and a coroutine that could not start look alike: fn's result travels apart. */
struct sure { int (*fn)(struct co *co, void *arg); void *arg; int result; };

static int sure_co(struct co *co, void *arg)
{
    struct sure *s = arg;
    s->result = s->fn(co, s->arg);
    return 0;
}

int lib_ctx_call(struct byre_ctx *ctx, int (*fn)(struct co *co, void *arg), void *arg)
{
    struct sure s = { fn, arg, 0 };
    while (lib_call(ctx, lib_home(ctx), sure_co, &s))
        sched_yield();
    return s.result;
}

/* ---- running the loop in the caller's thread ---- */
struct limit {
    bool (*stop)(void *arg);
    void *arg;
    bool timed_out;
    struct rt_task task;
    uint64_t ns;
};

static void limit_co(struct co *co, void *arg)
{
    struct limit *l = arg;
    if (l->ns)
        (void)co_sleep(co, l->ns);   /* cancelled: the other condition came first */
    else
        co_yield(co);
    l->timed_out = true;
}

static bool limit_reached(void *arg)
{
    struct limit *l = arg;
    return l->timed_out || l->stop(l->arg);
}

static bool limit_finished(void *arg)
{
    return ((struct limit *)arg)->task.done;
}

void lib_run_until(struct byre_ctx *ctx, bool (*stop)(void *arg), void *arg, int timeout_ms)
{
    struct rt_loop *loop = lib_home(ctx);
    if (stop(arg))
        return;
    ASSERT(ctx->caller_runs);
    ctx->inside = true;
    if (timeout_ms < 0) {
        rt_loop_run(loop, stop, arg);
    } else {
        struct limit l = { .stop = stop, .arg = arg, .ns = (uint64_t)timeout_ms * 1000000 };
        if (rt_task_start(loop, &l.task, limit_co, &l) == 0) {
            rt_loop_run(loop, limit_reached, &l);
            rt_cancel(&l.task);
            rt_loop_run(loop, limit_finished, &l);
        }
    }
    ctx->inside = false;
}

/* ---- life ---- */
struct making { struct byre_ctx *ctx; struct graph_opts opts; struct byre_err *err; };

static int make_graph(struct co *co, void *arg)
{
    struct making *m = arg;
    jobs_init(&m->ctx->jobs, co_loop(co));
    return graph_new(co_loop(co), &m->opts, &m->ctx->graph, m->err);
}

static int free_graph(struct co *co, void *arg)
{
    struct byre_ctx *ctx = arg;
    jobs_stop(co, &ctx->jobs);
    (void)graph_blockdev_close_all(co, ctx->graph);          /* all are closed, or about to be; whoever was to be told has been */
    graph_free(ctx->graph);
    fdsets_empty(ctx->passed, co_loop(co));
    pr_set_empty(ctx->prs, co_loop(co));
    return 0;
}

int byre_ctx_new(const struct byre_ctx_opts *opts, struct byre_ctx **ret_ctx, struct byre_err *err)
{
    struct byre_ctx_opts o;
    int r = lib_take_opts(&o, sizeof o, opts, err);
    if (r)
        return r;
    if ((o.flags & ~(unsigned)(BYRE_CTX_CALLER_RUNS | BYRE_CTX_RECORD_OVERLAYS | LIB_CTX_MORE_LOOPS)) || o.policy < 0 || o.policy > BYRE_POLICY_ECOSYSTEM ||
        o.backend < 0 || o.backend > BYRE_BACKEND_THREADS)
        return byre_fail(err, BAD_ARGUMENT, "a context option is out of range");
    struct byre_ctx *ctx = calloc(1, sizeof *ctx);
    if (!ctx)
        return byre_fail(err, NOMEM, "no memory for a context");
    pthread_mutex_init(&ctx->ids_mx, NULL);
    list_init(&ctx->claims);
    ctx->caller_runs = o.flags & BYRE_CTX_CALLER_RUNS;
    ctx->policy = o.policy == BYRE_POLICY_STRICT ? GRAPH_STRICT : GRAPH_ECOSYSTEM;
    ctx->loops = o.loops ? o.loops : 1;
    struct rt_opts ro = { .loops = ctx->loops, .backend = (enum rt_backend_kind)o.backend, .manual = ctx->caller_runs };
    if (o.flags & LIB_CTX_MORE_LOOPS)
        ro.spare = ctx->loops + LIB_SPARE_LOOPS <= 64 ? LIB_SPARE_LOOPS : ctx->loops < 64 ? 64 - ctx->loops : 0;
    r = lib_records_init(&ctx->records, &o, err);
    if (!r)
        r = secret_set_new(&ctx->secrets) || tls_set_new(&ctx->tls) || fdsets_new(&ctx->passed) || pr_set_new(&ctx->prs) ? byre_fail(err, NOMEM, "no memory for a context") : rt_new(&ro, &ctx->rt, err);
    if (!r) {
        struct making m = { .ctx = ctx, .err = err,
                            .opts = { .policy = ctx->policy, .max_depth = o.max_depth, .secrets = ctx->secrets, .tls = ctx->tls, .passed = ctx->passed, .prs = ctx->prs, .warn = o.warn, .warn_arg = o.warn_arg,
                                      .linked = ctx->records.on ? lib_records_linked : NULL, .linked_arg = &ctx->records } };
        r = lib_call(ctx, lib_home(ctx), make_graph, &m);
    }
    if (r) {
        rt_free(ctx->rt);
        secret_set_free(ctx->secrets);
        tls_set_free(ctx->tls);
        fdsets_free(ctx->passed);
        pr_set_free(ctx->prs);
        free(ctx->records.registry);
        pthread_mutex_destroy(&ctx->ids_mx);
        free(ctx);
        return r;
    }
    *ret_ctx = ctx;
    return 0;
}

void byre_ctx_free(struct byre_ctx *ctx)
{
    if (!ctx)
        return;
    ASSERT(atomic_load(&ctx->users) == 0);
    (void)lib_ctx_call(ctx, free_graph, ctx);
    rt_free(ctx->rt);
    secret_set_free(ctx->secrets);
    tls_set_free(ctx->tls);
    fdsets_free(ctx->passed);
    pr_set_free(ctx->prs);
    free(ctx->records.registry);
    pthread_mutex_destroy(&ctx->ids_mx);
    free(ctx);
}

const char *byre_ctx_backend(const struct byre_ctx *ctx)
{
    return rt_backend_name(rt_loop_at(ctx->rt, 0));
}
