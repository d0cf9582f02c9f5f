/* SPDX-License-Identifier: MIT
 *
 * queue.c: asynchronous requests.
 *
 * Purpose      Two rings between one foreign thread and one loop: requests in, completions out. A batch costs one
 *              message to the loop; sleeping callers cost one eventfd write per wake-up, not per request.
 * Owns         rings, eventfd, worker coroutines (each runs one request after the other)
 * Invariants   I1 in_flight = submitted and not reaped <= depth <= ring size, so neither ring can overflow
 *              I2 `posted` is false only when the handler will see every request whose submitter saw it false
 *              I3 a sleeping caller (armed) is signalled when `want` completions are there: the caller stores want and armed and
 *                 then reads cq_tail; the loop stores cq_tail and then reads armed (all sequentially consistent)
 * Concurrency  submit, reap, in_flight, fd: one foreign thread at a time. Everything marked "loop": the queue's loop.
 * Failure      a request that cannot start for want of memory completes with -ENOMEM
 * Tests        lib_test.c, tests/lib
 */
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/list.h"
#include "lib/lib_priv.h"
#include "rt/sync.h"

#define DEPTH_DEFAULT 128u
#define DEPTH_MAX 4096u
#define CACHE_LINE 64

struct byre_queue {
    struct byre_image *image;
    struct graph_node *node, *reader;       /* reader: of the image */
    struct rt_loop *loop;
    struct byre_request *sq;
    struct byre_completion *cq;
    unsigned depth, mask;
    /* foreign thread */
    unsigned in_flight, cq_head;
    bool fd_given;
    int efd;                          /* -1: caller runs the loop */
    /* both sides */
    _Alignas(CACHE_LINE) atomic_uint sq_tail;
    atomic_bool posted;
    struct rt_msg msg;
    _Alignas(CACHE_LINE) atomic_uint cq_tail;
    atomic_uint want;
    atomic_bool armed;
    /* loop */
    _Alignas(CACHE_LINE) unsigned sq_head;
    unsigned workers, idle, starting; /* starting: woken or spawned for a request, not there yet */
    bool closing;
    struct co_waitq sleepers, closer;
};

/* ---- loop side ---- */
static int run_request(struct co *co, struct graph_node *n, const struct byre_request *rq)
{
    struct iovec slot;
    if (rq->op != BYRE_OP_FLUSH && !range_inside(rq->off, rq->len, graph_length(n)))
        return -EIO;
    if (rq->op != BYRE_OP_FLUSH && !rq->len)
        return 0;
    switch (rq->op) {
    case BYRE_OP_READ:
        return graph_read(co, n, rq->buf ? iov_one(&slot, rq->buf, rq->len) : iov_of(rq->iov, rq->iov_count), rq->off);
    case BYRE_OP_WRITE:
        return graph_write(co, n, rq->buf ? iov_one(&slot, rq->buf, rq->len) : iov_of(rq->iov, rq->iov_count), rq->off, rq->flags);
    case BYRE_OP_ZERO:
        return graph_zero(co, n, rq->off, rq->len, rq->flags);
    case BYRE_OP_DISCARD:
        return graph_discard(co, n, rq->off, rq->len);
    default:
        return graph_flush(co, n);
    }
}

static void complete(struct byre_queue *q, uint64_t tag, int result)
{
    unsigned tail = atomic_load_explicit(&q->cq_tail, memory_order_relaxed);
    q->cq[tail & q->mask] = (struct byre_completion){ .tag = tag, .result = result };
    atomic_store(&q->cq_tail, tail + 1);
    if (atomic_load(&q->armed) && (int)(tail + 1 - atomic_load(&q->want)) >= 0 && atomic_exchange(&q->armed, false)) {
        uint64_t one = 1;
        while (write(q->efd, &one, sizeof one) < 0 && errno == EINTR)
            ;
    }
}

static unsigned waiting_requests(struct byre_queue *q)
{
    return atomic_load_explicit(&q->sq_tail, memory_order_acquire) - q->sq_head;
}

static void worker(struct co *co, void *arg)
{
    struct byre_queue *q = arg;
    bool started = true;              /* counted in q->starting */
    for (;;) {
        if (started)
            q->starting--;
        started = false;
        while (waiting_requests(q)) {
            struct byre_request rq = q->sq[q->sq_head++ & q->mask];
            complete(q, rq.tag, run_request(co, rq.op == BYRE_OP_READ ? q->reader : q->node, &rq));
        }
        if (q->closing)
            break;
        q->idle++;
        co_wait(co, &q->sleepers);    /* whoever wakes us does idle--, starting++ */
        started = true;
    }
    if (--q->workers == 0)
        (void)co_wake_one(&q->closer);
}

/* Gets enough workers going for the requests that wait. */
static void dispatch(struct byre_queue *q)
{
    while (waiting_requests(q) > q->starting) {
        if (q->idle) {
            q->idle--;
            q->starting++;
            (void)co_wake_one(&q->sleepers);
        } else if (q->workers < q->depth && rt_spawn(q->loop, worker, q) == 0) {
            q->workers++;
            q->starting++;
        } else if (q->workers) {
            break;                    /* those that run will take the rest */
        } else {
            complete(q, q->sq[q->sq_head++ & q->mask].tag, -ENOMEM);
        }
    }
}

static void on_message(struct rt_msg *m)
{
    struct byre_queue *q = CONTAINER_OF(m, struct byre_queue, msg);
    atomic_store(&q->posted, false);
    dispatch(q);
}

/* ---- foreign side ---- */
static int request_check(const struct byre_request *rq)
{
    static const unsigned allowed[] = { [BYRE_OP_WRITE] = BYRE_FUA | BYRE_COMPRESS, [BYRE_OP_ZERO] = BYRE_FUA | BYRE_UNMAP | BYRE_NO_FALLBACK, [BYRE_OP_FLUSH] = 0 };
    if (rq->op < BYRE_OP_READ || rq->op > BYRE_OP_FLUSH || rq->reserved || (rq->flags & ~allowed[rq->op]))
        return -EINVAL;
    if (rq->op != BYRE_OP_READ && rq->op != BYRE_OP_WRITE)
        return 0;
    if (rq->buf || !rq->len)
        return rq->len > SIZE_MAX / 2 ? -EINVAL : 0;
    return rq->iov && iov_of(rq->iov, rq->iov_count).len_bytes == rq->len ? 0 : -EINVAL;
}

static unsigned available(struct byre_queue *q)
{
    return atomic_load(&q->cq_tail) - q->cq_head;
}

/* Asks to be signalled when n completions wait. true: they are there already and nobody will signal. */
static bool arm(struct byre_queue *q, unsigned n)
{
    atomic_store(&q->want, q->cq_head + n);
    atomic_store(&q->armed, true);
    return available(q) >= n && atomic_exchange(&q->armed, false);
}

/* The caller polls: the descriptor becomes readable with the next completion. */
static void signal_next(struct byre_queue *q)
{
    uint64_t one = 1;
    if (arm(q, 1))
        (void)!write(q->efd, &one, sizeof one);
}

int byre_queue_submit(struct byre_queue *q, const struct byre_request *reqs, unsigned count)
{
    unsigned tail = atomic_load_explicit(&q->sq_tail, memory_order_relaxed), n = 0;
    for (; n < count && q->in_flight < q->depth; n++, q->in_flight++) {
        int r = request_check(&reqs[n]);
        if (r && n == 0)
            return r;
        if (r)
            break;
        q->sq[tail++ & q->mask] = reqs[n];
    }
    if (!n)
        return 0;
    atomic_store_explicit(&q->sq_tail, tail, memory_order_release);
    if (q->efd < 0)
        dispatch(q);
    else if (!atomic_exchange(&q->posted, true))
        rt_post(q->loop, &q->msg);
    if (q->fd_given)
        signal_next(q);
    return (int)n;
}

static unsigned harvest(struct byre_queue *q, struct byre_completion *ret, unsigned max)
{
    unsigned n = 0, have = available(q);
    for (; n < max && n < have; n++)
        ret[n] = q->cq[q->cq_head++ & q->mask];
    q->in_flight -= n;
    return n;
}

static void clear_signal(struct byre_queue *q)
{
    uint64_t count;
    while (read(q->efd, &count, sizeof count) < 0 && errno == EINTR)
        ;
}

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Sleeps until `min` completions wait or the time is over. */
static void sleep_for(struct byre_queue *q, unsigned min, int timeout_ms)
{
    uint64_t end = timeout_ms < 0 ? 0 : now_ms() + (uint64_t)timeout_ms;
    while (available(q) < min) {
        uint64_t now = timeout_ms < 0 ? 0 : now_ms();
        struct pollfd p = { .fd = q->efd, .events = POLLIN };
        if (timeout_ms >= 0 && now >= end)
            break;
        if (arm(q, min))
            break;
        (void)poll(&p, 1, timeout_ms < 0 ? -1 : (int)(end - now));
        clear_signal(q);
    }
    atomic_store(&q->armed, false);
}

struct inline_wait { struct byre_queue *q; unsigned min; };

static bool inline_enough(void *arg)
{
    struct inline_wait *w = arg;
    return available(w->q) >= w->min;
}

static void run_inline(struct byre_queue *q, unsigned min, int timeout_ms)
{
    struct inline_wait w = { q, min ? min : 1 };
    lib_run_until(q->image->ctx, inline_enough, &w, min ? timeout_ms : 0);
}

int byre_queue_reap(struct byre_queue *q, struct byre_completion *ret, unsigned max, unsigned min, int timeout_ms)
{
    if (min > q->in_flight)
        min = q->in_flight;
    if (min > max)
        min = max;
    if (q->efd < 0) {
        if (q->in_flight && available(q) < (min ? min : 1))
            run_inline(q, min, timeout_ms);
        return (int)harvest(q, ret, max);
    }
    if (available(q) < min && timeout_ms != 0)
        sleep_for(q, min, timeout_ms);
    unsigned n = harvest(q, ret, max);
    if (q->fd_given) {                          /* readable for what is left, or comes, alone */
        clear_signal(q);
        if (q->in_flight)
            signal_next(q);
    }
    return (int)n;
}

unsigned byre_queue_in_flight(const struct byre_queue *q)
{
    return q->in_flight;
}

int byre_queue_fd(struct byre_queue *q)
{
    if (q->efd < 0)
        return -ENOTSUP;
    q->fd_given = true;
    if (q->in_flight)
        signal_next(q);
    return q->efd;
}

/* ---- life ---- */
static int close_workers(struct co *co, void *arg)
{
    struct byre_queue *q = arg;
    q->closing = true;
    q->starting += q->idle;
    q->idle = 0;
    (void)co_wake_all(&q->sleepers);
    while (q->workers)
        co_wait(co, &q->closer);
    return 0;
}

static void queue_release(struct byre_queue *q)
{
    if (q->efd >= 0)
        close(q->efd);
    free(q->sq);
    free(q->cq);
    free(q);
}

void byre_queue_free(struct byre_queue *q)
{
    if (!q)
        return;
    struct byre_completion drop[16];
    while (q->in_flight)
        byre_queue_reap(q, drop, 16, 1, -1);
    while (lib_call(q->image->ctx, q->loop, close_workers, q) == -ENOMEM)
        sched_yield();               /* close_workers itself returns 0: somebody will free memory */
    atomic_fetch_sub(&q->image->users, 1);
    queue_release(q);
}

static struct byre_queue *queue_alloc(unsigned depth, bool with_fd)
{
    void *mem;
    unsigned ring = 1;
    while (ring < depth)
        ring *= 2;
    if (posix_memalign(&mem, CACHE_LINE, sizeof(struct byre_queue)))
        return NULL;
    struct byre_queue *q = memset(mem, 0, sizeof *q);
    q->sq = calloc(ring, sizeof *q->sq);
    q->cq = calloc(ring, sizeof *q->cq);
    q->depth = depth;
    q->mask = ring - 1;
    q->efd = with_fd ? eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) : -1;
    if (q->sq && q->cq && (q->efd >= 0 || !with_fd))
        return q;
    queue_release(q);
    return NULL;
}

int byre_queue_new(struct byre_image *image, const struct byre_queue_opts *opts, struct byre_queue **ret_queue, struct byre_err *err)
{
    struct byre_queue_opts o;
    struct byre_ctx *ctx = image->ctx;
    int r = lib_take_opts(&o, sizeof o, opts, err);
    if (r)
        return r;
    if (o.depth > DEPTH_MAX || o.loop < 0 || (unsigned)o.loop > ctx->loops)
        return byre_fail(err, BAD_ARGUMENT, "a queue has 1 to %u places and runs on one of %u loops", DEPTH_MAX, ctx->loops);
    struct byre_queue *q = queue_alloc(o.depth ? o.depth : DEPTH_DEFAULT, !ctx->caller_runs);
    if (!q)
        return byre_fail(err, NOMEM, "no memory or descriptor for a queue");
    q->image = image;
    q->node = image->node;
    q->reader = image->reader;
    q->loop = o.loop ? rt_loop_at(ctx->rt, (unsigned)o.loop - 1) : lib_next_loop(ctx);
    q->msg.fn = on_message;
    atomic_fetch_add(&image->users, 1);
    *ret_queue = q;
    return 0;
}
