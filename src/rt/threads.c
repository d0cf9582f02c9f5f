/* SPDX-License-Identifier: MIT
 *
 * threads.c: the backend for systems that refuse io_uring: worker threads for files, epoll for sockets.
 *
 * Purpose      The same operations as uring.c with ordinary system calls.
 * Owns         one epoll descriptor and one eventfd per loop, a table of descriptors that somebody waits for
 * Invariants   I1 a socket request is in the list of its descriptor exactly while it waits
 *              I2 a descriptor with waiters is armed in epoll for the union of what they wait for
 *              I3 done() is called once per request, on the loop
 * Concurrency  wakeup: any thread; file_run: a worker. All else: the loop.
 * Failure      init: -errno. A request that cannot be queued is done with -ENOMEM.
 * Tests        io_test.c (both backends), stress_test.c
 *
 * Reads that the page cache can answer are done on the loop; everything else of a file goes to a worker.
 * Sockets are tried at once and wait only after EAGAIN. epoll entries are one-shot and may be stale, because
 * the owner of a descriptor may close it without telling us: so ENOENT and EEXIST lead to the other call.
 */
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "rt/io.h"
#include "rt/io_priv.h"
#include "rt/rt_priv.h"

#define EVENTS_MAX 64
#define WAKE_DATA UINT64_MAX
#define INLINE_READ_MAX (256u * 1024)

struct fd_slot {
    struct rt_req *waiting;     /* linked by next, oldest first */
    bool added;                 /* epoll knew it when we last asked */
};

struct threads {
    struct rt_loop *loop;
    int epoll_fd, wake_fd;
    bool no_pwait2;
    struct fd_slot *slots;
    unsigned slot_count;
};

/* Lies in rt_req.priv of file requests. */
struct file_req { struct rt_work work; struct rt_msg msg; struct threads *t; };
_Static_assert(sizeof(struct file_req) <= sizeof(((struct rt_req *)0)->priv), "rt_req.priv is too small");

static struct file_req *file_of(struct rt_req *r)
{
    return (struct file_req *)(void *)r->priv;
}

static struct rt_req *req_of(struct file_req *f)
{
    return CONTAINER_OF(f, struct rt_req, priv);
}

/* ---- files ---- */

static int64_t write_dsync(const struct rt_req *r)
{
    int64_t n = pwritev2(r->fd, r->iov, (int)r->cnt, (off_t)r->off, RWF_DSYNC);
    if (n >= 0 || (errno != ENOSYS && errno != EOPNOTSUPP))
        return n;
    n = pwritev(r->fd, r->iov, (int)r->cnt, (off_t)r->off);
    return n >= 0 && fdatasync(r->fd) ? -1 : n;
}

/* Nothing is done in its place: who asks for it has other ways. */
static int64_t write_uncached(const struct rt_req *r)
{
    int64_t n = pwritev2(r->fd, r->iov, (int)r->cnt, (off_t)r->off, RWF_DONTCACHE);
    if (n < 0 && errno == ENOSYS)
        errno = EOPNOTSUPP;
    return n;
}

static int64_t file_call(const struct rt_req *r)
{
    switch (r->op) {
    case RT_OP_READV:
        return preadv(r->fd, r->iov, (int)r->cnt, (off_t)r->off);
    case RT_OP_WRITEV:
        return r->flags & RT_RWF_DSYNC ? write_dsync(r) : r->flags & RT_RWF_DONTCACHE ? write_uncached(r) : pwritev(r->fd, r->iov, (int)r->cnt, (off_t)r->off);
    case RT_OP_FDATASYNC:
        return fdatasync(r->fd);
    case RT_OP_FALLOCATE:
        return fallocate(r->fd, r->mode, (off_t)r->off, (off_t)r->len);
    default:
        UNREACHABLE();
    }
}

static void file_arrived(struct rt_msg *m)
{
    struct rt_req *r = req_of(CONTAINER_OF(m, struct file_req, msg));
    r->done(r);
}

static void file_run(struct rt_work *w)
{
    struct file_req *f = CONTAINER_OF(w, struct file_req, work);
    struct rt_req *r = req_of(f);
    int64_t n = file_call(r);
    r->res = n < 0 ? -errno : n;
    rt_post(f->t->loop, &f->msg);
}

/* Data that is in the page cache is copied here and now, which saves two switches of threads. Not for direct I/O:
 * there the call would wait for the device. false: a worker has to do it. */
static bool read_cached(struct rt_req *r)
{
    uint64_t len = 0;
    for (unsigned i = 0; i < r->cnt; i++)
        len += r->iov[i].iov_len;
    int flags = len && len <= INLINE_READ_MAX ? fcntl(r->fd, F_GETFL) : -1;
    if (flags < 0 || flags & O_DIRECT)
        return false;
    ssize_t n = preadv2(r->fd, r->iov, (int)r->cnt, (off_t)r->off, RWF_NOWAIT);
    r->res = n;
    return n > 0 && (uint64_t)n == len;
}

static void file_submit(struct threads *t, struct rt_req *r)
{
    if (r->op == RT_OP_READV && read_cached(r)) {
        r->done(r);
        return;
    }
    struct file_req *f = file_of(r);
    *f = (struct file_req){ .work.run = file_run, .msg.fn = file_arrived, .t = t };
    int code = rt_pool_push(&t->loop->rt->io, &f->work);
    if (code) {
        r->res = code;
        r->done(r);
    }
}

/* ---- sockets ---- */

static uint32_t events_of(const struct rt_req *r)
{
    switch (r->op) {
    case RT_OP_ACCEPT:
    case RT_OP_RECV:
        return EPOLLIN;
    case RT_OP_POLL:
        return (uint32_t)r->mode & (EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLRDNORM | EPOLLWRNORM);
    default:
        return EPOLLOUT;
    }
}

static int64_t poll_now(const struct rt_req *r)
{
    struct pollfd p = { .fd = r->fd, .events = (short)r->mode };
    int n = poll(&p, 1, 0);
    if (n < 0)
        return -errno;
    if (n && p.revents & POLLNVAL)
        return -EBADF;
    return n ? p.revents : -EAGAIN;
}

/* Tries the operation. -EAGAIN: it has to wait. waited: epoll has reported the descriptor. */
static int64_t socket_try(struct rt_req *r, bool waited)
{
    int64_t n;
    switch (r->op) {
    case RT_OP_ACCEPT:
        n = accept4(r->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        break;
    case RT_OP_RECV:
        n = recv(r->fd, r->buf, (size_t)r->len, MSG_DONTWAIT);
        break;
    case RT_OP_SENDMSG:
        n = sendmsg(r->fd, r->msg, (int)r->flags | MSG_NOSIGNAL | MSG_DONTWAIT);
        break;
    case RT_OP_CONNECT:
        if (waited)
            return rt_connect_end(r);
        n = rt_connect_begin(r);
        return n == -EINPROGRESS ? -EAGAIN : n == -EAGAIN ? -EBUSY : n;
    default:
        return poll_now(r);
    }
    return n < 0 ? -errno : n;
}

static struct fd_slot *slot_of(struct threads *t, int fd)
{
    unsigned want = (unsigned)fd + 1;
    if (fd < 0)
        return NULL;
    if (want > t->slot_count) {
        unsigned count = want < 64 ? 64 : want + want / 2;
        struct fd_slot *bigger = realloc(t->slots, count * sizeof *bigger);
        if (!bigger)
            return NULL;
        memset(bigger + t->slot_count, 0, (count - t->slot_count) * sizeof *bigger);
        t->slots = bigger;
        t->slot_count = count;
    }
    return &t->slots[fd];
}

/* Arms fd for what its waiters want. */
static int arm(struct threads *t, struct fd_slot *s, int fd)
{
    struct epoll_event ev = { .events = EPOLLONESHOT, .data.u64 = (uint64_t)fd };
    for (struct rt_req *r = s->waiting; r; r = r->next)
        ev.events |= events_of(r);
    int op = s->added ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    int r = epoll_ctl(t->epoll_fd, op, fd, &ev);
    if (r && (errno == ENOENT || errno == EEXIST))
        r = epoll_ctl(t->epoll_fd, errno == ENOENT ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &ev);
    s->added = r == 0;
    return r ? -errno : 0;
}

static void unlink_req(struct fd_slot *s, struct rt_req *r)
{
    struct rt_req **p = &s->waiting;
    while (*p != r)
        p = &(*p)->next;
    *p = r->next;
}

static void finish(struct rt_req *r, int64_t res)
{
    r->res = res == -EBUSY && r->op == RT_OP_CONNECT ? -EAGAIN : res;
    r->done(r);
}

static void socket_submit(struct threads *t, struct rt_req *r)
{
    int64_t res = socket_try(r, false);
    if (res != -EAGAIN) {
        finish(r, res);
        return;
    }
    struct fd_slot *s = slot_of(t, r->fd);
    if (!s) {
        finish(r, -ENOMEM);
        return;
    }
    struct rt_req **p = &s->waiting;
    while (*p)
        p = &(*p)->next;
    r->next = NULL;
    *p = r;
    int code = arm(t, s, r->fd);
    if (code) {
        unlink_req(s, r);
        finish(r, code);
    }
}

/* epoll reported fd: tries every waiter; those that still have to wait stay. */
static void fd_ready(struct threads *t, unsigned fd)
{
    struct fd_slot *s = fd < t->slot_count ? &t->slots[fd] : NULL;
    struct rt_req *todo = s ? s->waiting : NULL, *ended = NULL, **end = &ended, **keep;
    if (!todo)
        return;
    keep = &s->waiting;
    while (todo) {
        struct rt_req *r = todo;
        todo = r->next;
        r->res = r->op == RT_OP_CONNECT && poll_now(&(struct rt_req){ .fd = r->fd, .mode = POLLOUT }) == -EAGAIN
                     ? -EAGAIN : socket_try(r, true);
        struct rt_req ***list = r->res == -EAGAIN ? &keep : &end;
        **list = r;
        *list = &r->next;
    }
    *keep = NULL;
    *end = NULL;
    int code = s->waiting ? arm(t, s, (int)fd) : 0;
    if (code) {                 /* nobody would ever wake them: they end with the error */
        *end = s->waiting;
        for (struct rt_req *r = s->waiting; r; r = r->next)
            r->res = code;
        s->waiting = NULL;
    }
    while (ended) {
        struct rt_req *r = ended;
        ended = r->next;
        r->done(r);
    }
}

/* ---- the backend ---- */

static void threads_submit(void *state, struct rt_req *r)
{
    if (r->op <= RT_OP_FALLOCATE)
        file_submit(state, r);
    else
        socket_submit(state, r);
}

static void threads_cancel(void *state, struct rt_req *r)
{
    struct threads *t = state;
    unlink_req(&t->slots[r->fd], r);
    r->res = -ECANCELED;
    r->done(r);
}

static int wait_events(struct threads *t, struct epoll_event *ev, uint64_t timeout_ns)
{
    struct timespec ts = { (time_t)(timeout_ns / 1000000000), (long)(timeout_ns % 1000000000) };
    if (!t->no_pwait2) {
        int n = epoll_pwait2(t->epoll_fd, ev, EVENTS_MAX, timeout_ns == UINT64_MAX ? NULL : &ts, NULL);
        if (n >= 0 || errno != ENOSYS)
            return n;
        t->no_pwait2 = true;    /* Linux before 5.11: milliseconds, rounded up */
    }
    uint64_t ms = timeout_ns / 1000000 + (timeout_ns % 1000000 != 0);
    return epoll_wait(t->epoll_fd, ev, EVENTS_MAX, timeout_ns == UINT64_MAX ? -1 : ms > INT32_MAX ? INT32_MAX : (int)ms);
}

static void threads_wait(void *state, uint64_t timeout_ns)
{
    struct threads *t = state;
    struct epoll_event ev[EVENTS_MAX];
    int n = wait_events(t, ev, timeout_ns);
    for (int i = 0; i < n; i++)
        if (ev[i].data.u64 != WAKE_DATA)
            fd_ready(t, (unsigned)ev[i].data.u64);
}

static void threads_wakeup(void *state)
{
    struct threads *t = state;
    uint64_t one = 1;
    while (write(t->wake_fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

static uint64_t threads_now(void *state)
{
    (void)state;
    return rt_monotonic_ns();
}

static int threads_init(struct rt_loop *loop, void **ret_state)
{
    /* edge-triggered and never read: each write to the eventfd is one event */
    struct epoll_event ev = { .events = EPOLLIN | EPOLLET, .data.u64 = WAKE_DATA };
    struct threads *t = calloc(1, sizeof *t);
    if (!t)
        return -ENOMEM;
    t->loop = loop;
    t->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    t->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (t->epoll_fd >= 0 && t->wake_fd >= 0 && !epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, t->wake_fd, &ev)) {
        *ret_state = t;
        return 0;
    }
    int code = -errno;
    if (t->epoll_fd >= 0)
        close(t->epoll_fd);
    if (t->wake_fd >= 0)
        close(t->wake_fd);
    free(t);
    return code;
}

static void threads_fini(void *state)
{
    struct threads *t = state;
    close(t->epoll_fd);
    close(t->wake_fd);
    free(t->slots);
    free(t);
}

const struct rt_backend_ops rt_threads_ops = {
    .name = "threads",
    .init = threads_init,
    .fini = threads_fini,
    .submit = threads_submit,
    .cancel = threads_cancel,
    .wait = threads_wait,
    .wakeup = threads_wakeup,
    .now = threads_now,
};
