/* SPDX-License-Identifier: MIT
 *
 * io.c: file and socket operations of a coroutine.
 *
 * Purpose      Puts a request into the caller's frame, hands it to the backend, suspends until it is done.
 * Owns         nothing
 * Invariants   I1 the frame stays until the request is done, whatever is cancelled meanwhile
 *              I2 file operations are never interrupted; a socket operation that succeeded although it was asked
 *                 to stop reports its success (no byte and no descriptor is lost)
 *              I3 while a lane holds requests, all of them are, or go to, the backend of the one loop that its word names
 * Concurrency  the coroutine's loop; every call suspends at least once. A request of a lane may be in the hands of another loop: it goes
 *              there and comes back as a message, and nobody else touches it meanwhile
 * Failure      the kernel's errno; -ECANCELED, -ETIMEDOUT for sockets
 * Tests        io_test.c (both backends)
 */
#include <limits.h>
#include <time.h>

#include "rt/io.h"
#include "rt/io_priv.h"
#include "rt/rt_priv.h"

#define CNT_MAX 1024u           /* the kernel's limit for one call */
#define RETRY_YIELDS 16
#define RETRY_NS 1000000
#define CONNECT_RETRY_NS 5000000

struct io_wait {
    struct rt_req req;
    struct co *co;
    struct co_interrupt intr;
    bool done, suspended;
    int why;                    /* what interrupted it */
    struct rt_lane *lane;       /* files, if there is one; the next two are only set then: */
    struct rt_loop *via;        /* whose backend does it, */
    struct rt_msg msg;          /* and the message there and back */
};

static void io_done(struct rt_req *r)
{
    struct io_wait *w = CONTAINER_OF(r, struct io_wait, req);
    INV(I1, !w->done);
    w->done = true;
    if (w->suspended)
        co_ready(w->co);
}

static int64_t io_run(struct co *co, struct io_wait *w)
{
    struct rt_loop *loop = co->loop;
    w->co = co;
    w->req.done = io_done;
    w->done = w->suspended = false;
    loop->ops->submit(loop->state, &w->req);
    if (w->done) {              /* at once: the others get their turn all the same */
        co_yield(co);
    } else {
        w->suspended = true;
        co_suspend(co);
    }
    return w->req.res;
}

/* ---- lanes: the word has the loop's index above the number of requests ---- */

#define LANE_LOOP_SHIFT 32

/* The loop that w goes to: the one that has requests of the lane, or else its own. */
static struct rt_loop *lane_enter(struct rt_lane *lane, struct rt_loop *own)
{
    uint64_t old = atomic_load(&lane->word), index;
    do {
        index = (uint32_t)old ? old >> LANE_LOOP_SHIFT : own->index;
    } while (!atomic_compare_exchange_weak(&lane->word, &old, (index << LANE_LOOP_SHIFT | (uint32_t)old) + 1));
    return &own->rt->loops[index];
}

static void lane_leave(struct rt_lane *lane)
{
    atomic_fetch_sub(&lane->word, 1);
}

static void lane_returned(struct rt_msg *m)
{
    io_done(&CONTAINER_OF(m, struct io_wait, msg)->req);
}

/* On w->via. */
static void lane_done(struct rt_req *r)
{
    struct io_wait *w = CONTAINER_OF(r, struct io_wait, req);
    lane_leave(w->lane);
    w->msg.fn = lane_returned;
    rt_post(w->co->loop, &w->msg);          /* w may be gone now */
}

static void lane_arrived(struct rt_msg *m)
{
    struct io_wait *w = CONTAINER_OF(m, struct io_wait, msg);
    w->via->ops->submit(w->via->state, &w->req);
}

static int64_t lane_run(struct co *co, struct io_wait *w)
{
    w->via = lane_enter(w->lane, co->loop);
    if (w->via == co->loop) {
        int64_t r = io_run(co, w);
        lane_leave(w->lane);
        return r;
    }
    w->co = co;
    w->req.done = lane_done;
    w->msg.fn = lane_arrived;
    w->done = false;
    w->suspended = true;                    /* the answer is a message: it cannot come before that */
    rt_post(w->via, &w->msg);
    co_suspend(co);
    return w->req.res;
}

/* ---- files ---- */

static void retry_due(struct rt_timer *t)
{
    co_ready(CONTAINER_OF(t, struct co_interrupt, timer)->co);
}

/* The kernel asks for patience: first let others run, then wait a little. Not interruptible. */
static void retry_pause(struct co *co, unsigned round)
{
    if (round < RETRY_YIELDS) {
        co_yield(co);
        return;
    }
    struct co_interrupt pause = { .co = co };
    rt_timer_arm(&co->loop->timers, &pause.timer, rt_now(co->loop) + RETRY_NS, retry_due);
    co_suspend(co);
}

static int64_t file_op_in(struct co *co, struct rt_lane *lane, struct rt_req req)
{
    struct io_wait w;
    w.lane = lane;
    for (unsigned round = 0;; round++) {
        w.req = req;
        int64_t r = lane ? lane_run(co, &w) : io_run(co, &w);
        if (r != -EINTR && r != -EAGAIN)
            return r;
        retry_pause(co, round);
    }
}

static int64_t file_op(struct co *co, struct rt_req req)
{
    return file_op_in(co, NULL, req);
}

int64_t rt_preadv(struct co *co, int fd, const struct iovec *iov, unsigned cnt, uint64_t off)
{
    cnt = cnt < CNT_MAX ? cnt : CNT_MAX;
    return file_op(co, (struct rt_req){ .op = RT_OP_READV, .fd = fd, .iov = iov, .cnt = cnt, .off = off });
}

int64_t rt_pwritev(struct co *co, int fd, const struct iovec *iov, unsigned cnt, uint64_t off, unsigned flags)
{
    cnt = cnt < CNT_MAX ? cnt : CNT_MAX;
    return file_op(co, (struct rt_req){ .op = RT_OP_WRITEV, .fd = fd, .iov = iov, .cnt = cnt, .off = off, .flags = flags });
}

int64_t rt_pwritev_lane(struct co *co, struct rt_lane *lane, int fd, const struct iovec *iov, unsigned cnt, uint64_t off)
{
    cnt = cnt < CNT_MAX ? cnt : CNT_MAX;
    return file_op_in(co, lane, (struct rt_req){ .op = RT_OP_WRITEV, .fd = fd, .iov = iov, .cnt = cnt, .off = off });
}

int rt_fdatasync(struct co *co, int fd)
{
    return (int)file_op(co, (struct rt_req){ .op = RT_OP_FDATASYNC, .fd = fd });
}

int rt_fallocate(struct co *co, int fd, int mode, uint64_t off, uint64_t len)
{
    return (int)file_op(co, (struct rt_req){ .op = RT_OP_FALLOCATE, .fd = fd, .mode = mode, .off = off, .len = len });
}

/* ---- sockets ---- */

static void io_interrupted(struct co_interrupt *i, int why)
{
    struct io_wait *w = CONTAINER_OF(i, struct io_wait, intr);
    if (w->done || w->why)
        return;
    w->why = why;
    w->co->loop->ops->cancel(w->co->loop->state, &w->req);
}

static int64_t socket_op(struct co *co, struct rt_req req)
{
    struct io_wait w = { .req = req };
    int64_t r;
    do {
        int stop = co_intr_begin(co, &w.intr, io_interrupted);
        if (stop)
            return stop;
        w.req = req;
        r = io_run(co, &w);
        co_intr_end(co, &w.intr);
    } while (r == -EINTR && !w.why);
    return r < 0 && w.why ? w.why : r;
}

int rt_accept(struct co *co, int fd)
{
    return (int)socket_op(co, (struct rt_req){ .op = RT_OP_ACCEPT, .fd = fd });
}

int rt_connect(struct co *co, int fd, const struct sockaddr *sa, socklen_t len)
{
    for (;;) {
        int64_t r = socket_op(co, (struct rt_req){ .op = RT_OP_CONNECT, .fd = fd, .sa = sa, .len = len });
        if (r != -EAGAIN)       /* the queue of a unix socket is full: nothing tells when it is not */
            return (int)r;
        int stop = co_sleep(co, CONNECT_RETRY_NS);
        if (stop)
            return stop;
    }
}

int64_t rt_recv(struct co *co, int fd, void *buf, size_t len)
{
    return socket_op(co, (struct rt_req){ .op = RT_OP_RECV, .fd = fd, .buf = buf, .len = len });
}

int rt_recv_all(struct co *co, int fd, void *buf, size_t len)
{
    for (size_t at = 0; at < len;) {
        int64_t n = rt_recv(co, fd, (uint8_t *)buf + at, len - at);
        if (n <= 0)
            return n ? (int)n : -ECONNRESET;
        at += (size_t)n;
    }
    return 0;
}

int64_t rt_sendmsg(struct co *co, int fd, const struct msghdr *msg)
{
    return socket_op(co, (struct rt_req){ .op = RT_OP_SENDMSG, .fd = fd, .msg = msg });
}

int rt_poll(struct co *co, int fd, short events)
{
    return (int)socket_op(co, (struct rt_req){ .op = RT_OP_POLL, .fd = fd, .mode = (unsigned short)events });
}

/* ---- for the backends ---- */

uint64_t rt_monotonic_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

int rt_rwf_of(unsigned flags)
{
    return flags & RT_RWF_DSYNC ? RWF_DSYNC : flags & RT_RWF_DONTCACHE ? RWF_DONTCACHE : 0;
}

int rt_connect_begin(const struct rt_req *r)
{
    if (connect(r->fd, r->sa, (socklen_t)r->len) == 0)
        return 0;
    return errno == EINTR ? -EINPROGRESS : -errno;
}

int rt_connect_end(const struct rt_req *r)
{
    int code = 0;
    socklen_t n = sizeof code;
    if (getsockopt(r->fd, SOL_SOCKET, SO_ERROR, &code, &n))
        return -errno;
    return -code;
}
