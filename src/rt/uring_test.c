/* SPDX-License-Identifier: MIT
 *
 * uring_test.c: the parts of uring.c that a healthy, recent kernel never shows: submissions that are refused for a
 * while, EAGAIN from sockets, cancellation between two steps of a request; and what lies in the submission entries.
 */
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "rt/backend.h"
#include "rt/rt_priv.h"
#include "rt/rt_test.h"

/* ---- a kernel with moods ---- */

static bool moody, always_refuse;
static struct prng mood;
static unsigned refused, dsync_seen, writes_seen;
static bool end_wake_poll;          /* the kernel ends the multishot poll for wakeups, as it may at any time */

/* Looks at the entries that are about to be submitted. */
static void inspect(struct io_uring *ring)
{
    for (unsigned i = ring->sq.sqe_head; i != ring->sq.sqe_tail; i++) {
        const struct io_uring_sqe *sqe = &ring->sq.sqes[i & ring->sq.ring_mask];
        if (sqe->opcode != IORING_OP_WRITE && sqe->opcode != IORING_OP_WRITEV)
            continue;
        writes_seen++;
        dsync_seen += sqe->rw_flags == RWF_DSYNC;
    }
}

static void before_submit(struct io_uring *ring)
{
    struct io_uring_sqe *sqe = end_wake_poll ? io_uring_get_sqe(ring) : NULL;
    if (sqe) {
        io_uring_prep_cancel(sqe, (void *)2, 0);        /* TAG_WAKE */
        io_uring_sqe_set_data64(sqe, 1);                /* TAG_IGNORE */
        end_wake_poll = false;
    }
    inspect(ring);
}

static int refusal(void)
{
    if (!always_refuse && (!moody || !prng_one_in(&mood, 2)))
        return 0;
    refused++;
    return prng_one_in(&mood, 2) ? -EAGAIN : prng_one_in(&mood, 2) ? -EBUSY : -EINTR;
}

int __real_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring)
{
    int r = refusal();
    if (!r)
        before_submit(ring);
    return r ? r : __real_io_uring_submit(ring);
}

int __real_io_uring_submit_and_wait(struct io_uring *ring, unsigned n);
int __wrap_io_uring_submit_and_wait(struct io_uring *ring, unsigned n);
int __wrap_io_uring_submit_and_wait(struct io_uring *ring, unsigned n)
{
    int r = refusal();
    if (!r)
        before_submit(ring);
    return r ? r : __real_io_uring_submit_and_wait(ring, n);
}

int __real_io_uring_submit_and_wait_timeout(struct io_uring *ring, struct io_uring_cqe **cqe, unsigned n,
                                            struct __kernel_timespec *ts, sigset_t *mask);
int __wrap_io_uring_submit_and_wait_timeout(struct io_uring *ring, struct io_uring_cqe **cqe, unsigned n,
                                            struct __kernel_timespec *ts, sigset_t *mask);
int __wrap_io_uring_submit_and_wait_timeout(struct io_uring *ring, struct io_uring_cqe **cqe, unsigned n,
                                            struct __kernel_timespec *ts, sigset_t *mask)
{
    int r = refusal();
    if (!r)
        before_submit(ring);
    return r ? r : __real_io_uring_submit_and_wait_timeout(ring, cqe, n, ts, mask);
}

static void run_small(void (*fn)(struct co *co))
{
    test_run_opts(&(struct rt_opts){ .backend = RT_BACKEND_URING, .manual = true, .ring_entries = 2 }, fn);
}

/* ---- refused submissions ---- */

static int file;

static void write_read(struct co *co, void *arg)
{
    uint64_t i = *(uint64_t *)arg, got = 0;
    struct iovec out = { &i, 8 }, in = { &got, 8 };
    ASSERT(rt_pwritev(co, file, &out, 1, i * 8, 0) == 8);
    ASSERT(rt_preadv(co, file, &in, 1, i * 8) == 8);
    ASSERT(got == i);
}

struct receiver { int fd; int result; };
static void receive(struct co *co, void *arg)
{
    struct receiver *r = arg;
    char c;
    r->result = (int)rt_recv(co, r->fd, &c, 1);
}

static void *set_event(void *arg)
{
    co_xevent_set(arg);
    return NULL;
}

static void works_through_refusals(struct co *co)
{
    enum { N = 200, S = 40 };
    static struct rt_task t[N], st[S];
    static uint64_t id[N];
    struct receiver rc[S];
    struct co_xevent e;
    int fd[S][2];
    char c;
    pthread_t th;
    file = memfd_create("byre-uring-test", MFD_CLOEXEC);
    ASSERT(file >= 0);
    for (int i = 0; i < S; i++) {
        OK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd[i]));
        rc[i] = (struct receiver){ .fd = fd[i][0] };
        OK(rt_task_start(co_loop(co), &st[i], receive, &rc[i]));
    }
    for (uint64_t i = 0; i < N; i++) {
        id[i] = i;
        OK(rt_task_start(co_loop(co), &t[i], write_read, &id[i]));
    }
    co_yield(co);                           /* all requests are in the ring or wait for room in it */
    for (int i = 0; i < S; i++) {           /* some are cancelled where they wait, some get a byte, some both */
        if (i % 3 != 1)
            ASSERT(write(fd[i][1], "b", 1) == 1);
        if (i % 3)
            rt_cancel(&st[i]);
        if (i % 8 == 7)
            co_yield(co);
    }
    for (int i = 0; i < N; i++)
        rt_task_join(co, &t[i]);
    for (int i = 0; i < S; i++) {
        rt_task_join(co, &st[i]);
        ASSERT(i % 3 != 0 || rc[i].result == 1);
        ASSERT(i % 3 != 1 || rc[i].result == -ECANCELED);
        ASSERT(rc[i].result == 1 || rc[i].result == -ECANCELED);
        ASSERT(i % 3 != 2 || rc[i].result == 1 || read(fd[i][0], &c, 1) == 1);      /* no byte is lost */
        close(fd[i][0]);
        close(fd[i][1]);
    }
    co_xevent_init(&e, co_loop(co));
    OK(pthread_create(&th, NULL, set_event, &e));
    co_xevent_wait(co, &e);
    pthread_join(th, NULL);
    close(file);
}

/* FEATURES G.058 */
static void refused_submissions(void **state)
{
    for (uint64_t seed = 0; seed < 12; seed++) {
        prng_init(&mood, seed);
        refused = 0;
        moody = true;
        run_small(works_through_refusals);
        moody = false;
        assert_true(refused > 20);
    }
    run_small(works_through_refusals);
}

static void wake_poll_ends(struct co *co)
{
    for (int i = 0; i < 20; i++) {
        struct co_xevent e;
        pthread_t th;
        end_wake_poll = true;
        OK(co_sleep(co, 300000));
        ASSERT(!end_wake_poll);
        co_xevent_init(&e, co_loop(co));
        OK(pthread_create(&th, NULL, set_event, &e));
        co_xevent_wait(co, &e);
        pthread_join(th, NULL);
    }
}

static void wake_poll_is_armed_again(void **state)
{
    run_small(wake_poll_ends);
    test_run(RT_BACKEND_URING, wake_poll_ends);
}

/* ---- EAGAIN, and cancellation in the middle ---- */

struct raw { struct rt_req req; struct co *co; bool waiting, done; };

static void raw_done(struct rt_req *r)
{
    struct raw *w = CONTAINER_OF(r, struct raw, req);
    ASSERT(!w->done);
    w->done = true;
    if (w->waiting)
        co_ready(w->co);
}

static void raw_wait(struct raw *w)
{
    w->waiting = !w->done;
    if (w->waiting)
        co_suspend(w->co);
}

static void raw_recv_flags(struct raw *w, struct co *co, int fd, char *buf, unsigned flags)
{
    *w = (struct raw){ .co = co };
    w->req = (struct rt_req){ .op = RT_OP_RECV, .fd = fd, .buf = buf, .len = 1, .flags = flags, .done = raw_done };
    rt_uring_ops.submit(co->loop->state, &w->req);
}

/* Receives with MSG_DONTWAIT: the kernel answers EAGAIN, as older ones do for every non-blocking socket. */
static void raw_recv(struct raw *w, struct co *co, int fd, char *buf)
{
    raw_recv_flags(w, co, fd, buf, MSG_DONTWAIT);
}

static void waits_after_eagain(struct co *co)
{
    int fd[2];
    char c = 0;
    struct raw w;
    OK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd));
    raw_recv(&w, co, fd[0], &c);
    OK(co_sleep(co, 1 * MS));
    ASSERT(!w.done);
    ASSERT(write(fd[1], "z", 1) == 1);
    raw_wait(&w);
    ASSERT(w.req.res == 1 && c == 'z');
    raw_recv(&w, co, fd[0], &c);            /* cancelled while it polls */
    OK(co_sleep(co, 1 * MS));
    rt_uring_ops.cancel(co->loop->state, &w.req);
    rt_uring_ops.cancel(co->loop->state, &w.req);
    raw_wait(&w);
    ASSERT(w.req.res == -ECANCELED);
    raw_recv(&w, co, fd[0], &c);            /* cancelled in one batch with its first try: EAGAIN and "not found" */
    rt_uring_ops.cancel(co->loop->state, &w.req);
    raw_wait(&w);
    ASSERT(w.req.res == -ECANCELED);
    ASSERT(write(fd[1], "y", 1) == 1);
    raw_recv(&w, co, fd[0], &c);
    raw_wait(&w);
    ASSERT(w.req.res == 1 && c == 'y');
    shutdown(fd[1], SHUT_RDWR);
    raw_recv(&w, co, fd[0], &c);
    raw_wait(&w);
    ASSERT(w.req.res == 0);
    close(fd[0]);
    close(fd[1]);
}

/* A cancellation finds no room in the ring, and its request completes meanwhile: it must be forgotten. */
static void completes_before_its_cancel(struct co *co)
{
    int fd[2];
    char c = 0, d[4];
    struct raw w, other[4];
    OK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd));
    raw_recv_flags(&w, co, fd[0], &c, 0);
    OK(co_sleep(co, 1 * MS));
    always_refuse = true;
    for (int i = 0; i < 4; i++)             /* two fill the ring, two wait */
        raw_recv_flags(&other[i], co, fd[1], &d[i], 0);
    ASSERT(write(fd[1], "w", 1) == 1);
    rt_uring_ops.cancel(co->loop->state, &w.req);
    while (!w.done)
        co_yield(co);
    ASSERT(w.req.res == 1 && c == 'w');
    memset(&w, 0x5a, sizeof w);             /* nobody may look at it any more */
    always_refuse = false;
    ASSERT(write(fd[0], "1234", 4) == 4);
    for (int i = 0; i < 4; i++) {
        raw_wait(&other[i]);
        ASSERT(other[i].req.res == 1);
    }
    ASSERT(d[0] + d[1] + d[2] + d[3] == '1' + '2' + '3' + '4' && d[0] * d[1] * d[2] * d[3] == '1' * '2' * '3' * '4');
    for (size_t i = 0; i < sizeof w; i++)
        ASSERT(((unsigned char *)&w)[i] == 0x5a);
    close(fd[0]);
    close(fd[1]);
}

static void stale_cancel(void **state)
{
    run_small(completes_before_its_cancel);
}

static void eagain_and_cancel(void **state)
{
    run_small(waits_after_eagain);
    test_run(RT_BACKEND_URING, waits_after_eagain);
}

/* ---- entries ---- */

static void durable_writes(struct co *co)
{
    char b[4] = "abc";
    struct iovec v[2] = { { b, 1 }, { b + 1, 2 } };
    file = memfd_create("byre-uring-test", MFD_CLOEXEC);
    ASSERT(rt_pwritev(co, file, v, 1, 0, RT_RWF_DSYNC) == 1);
    ASSERT(dsync_seen == 1 && writes_seen == 1);
    ASSERT(rt_pwritev(co, file, v, 2, 0, RT_RWF_DSYNC) == 3);
    ASSERT(dsync_seen == 2 && writes_seen == 2);
    ASSERT(rt_pwritev(co, file, v, 2, 0, 0) == 3 && rt_pwritev(co, file, v, 1, 0, 0) == 1);
    ASSERT(dsync_seen == 2 && writes_seen == 4);
    close(file);
}

/* FEATURES G.059 */
static void durable_writes_say_so(void **state)
{
    dsync_seen = writes_seen = 0;
    test_run(RT_BACKEND_URING, durable_writes);
}

/* ---- neighbours (gather.c) ---- */

enum { PAGE = 4096, PAGES = 40 };
static uint8_t pages[PAGES][PAGE];

struct transfer { struct rt_task task; bool write; unsigned flags; uint64_t off; uint8_t *buf; size_t len; int64_t res; };

static void transfer(struct co *co, void *arg)
{
    struct transfer *t = arg;
    struct iovec v[2] = { { t->buf, t->len / 2 }, { t->buf + t->len / 2, t->len - t->len / 2 } };
    t->res = t->write ? rt_pwritev(co, file, v, 2, t->off, t->flags) : rt_preadv(co, file, v, 2, t->off);
}

/* All in one turn of the loop, in this order. */
static void transfer_all(struct co *co, struct transfer *t, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        OK(rt_task_start(co_loop(co), &t[i].task, transfer, &t[i]));
    for (unsigned i = 0; i < n; i++)
        rt_task_join(co, &t[i].task);
}

static void fill_transfers(struct transfer *t, unsigned n, bool write, unsigned flags)
{
    for (unsigned i = 0; i < n; i++) {
        t[i] = (struct transfer){ .write = write, .flags = flags, .off = i * PAGE, .buf = pages[i], .len = PAGE };
        memset(pages[i], write ? (int)i + 1 : 0, PAGE);
    }
}

static void check_pages(unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        ASSERT(pages[i][0] == i + 1 && !memcmp(pages[i], pages[i] + 1, PAGE - 1));
}

static void neighbours_share(struct co *co)
{
    static struct transfer t[PAGES];
    file = memfd_create("byre-uring-test", MFD_CLOEXEC);
    writes_seen = dsync_seen = 0;
    fill_transfers(t, PAGES, true, 0);
    transfer_all(co, t, PAGES);
    ASSERT(writes_seen == 3);                /* 64 KiB, 64 KiB, 32 KiB */
    for (unsigned i = 0; i < PAGES; i++)
        ASSERT(t[i].res == PAGE);
    fill_transfers(t, PAGES, false, 0);
    transfer_all(co, t, PAGES);
    check_pages(PAGES);
    writes_seen = 0;
    fill_transfers(t, 8, true, RT_RWF_DSYNC);
    transfer_all(co, t, 8);
    ASSERT(writes_seen == 8 && dsync_seen == 8);
    fill_transfers(t, 8, true, 0);
    for (unsigned i = 0; i < 8; i++)
        t[i].off = 2 * i * PAGE;             /* no neighbours */
    writes_seen = 0;
    transfer_all(co, t, 8);
    ASSERT(writes_seen == 8);
    fill_transfers(t, 8, true, 0);
    t[3].write = false;                      /* a read is no neighbour of a write */
    writes_seen = 0;
    transfer_all(co, t, 8);
    ASSERT(writes_seen == 2);
    close(file);
}

/* The file may not become longer than `most`: what fits has been written, and nobody else says that he has. */
static void part_of_neighbours(struct co *co)
{
    static struct transfer t[8];
    const rlim_t most = 4 * PAGE + 100;
    struct rlimit old;
    OK(getrlimit(RLIMIT_FSIZE, &old));
    signal(SIGXFSZ, SIG_IGN);
    OK(setrlimit(RLIMIT_FSIZE, &(struct rlimit){ most, old.rlim_max }));
    file = memfd_create("byre-uring-test", MFD_CLOEXEC);
    fill_transfers(t, 8, true, 0);
    transfer_all(co, t, 8);
    for (int i = 0; i < 8; i++)
        ASSERT(t[i].res == (i < 4 ? PAGE : i == 4 ? 100 : -EFBIG));
    OK(setrlimit(RLIMIT_FSIZE, &old));
    fill_transfers(t, 8, false, 0);
    transfer_all(co, t, 8);
    for (int i = 0; i < 8; i++)
        ASSERT(t[i].res == (i < 4 ? PAGE : i == 4 ? 100 : 0));
    check_pages(4);
    ASSERT(pages[4][99] == 5 && pages[4][100] == 0);
    close(file);
    file = open("/dev/null", O_RDONLY | O_CLOEXEC);
    fill_transfers(t, 8, true, 0);
    transfer_all(co, t, 8);
    for (int i = 0; i < 8; i++)
        ASSERT(t[i].res == -EBADF);
    close(file);
}

static void neighbours(void **state)
{
    test_run(RT_BACKEND_URING, neighbours_share);
    test_run(RT_BACKEND_URING, part_of_neighbours);
    prng_init(&mood, 7);
    moody = true;
    run_small(part_of_neighbours);
    test_run(RT_BACKEND_URING, part_of_neighbours);
    moody = false;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refused_submissions), cmocka_unit_test(wake_poll_is_armed_again), cmocka_unit_test(eagain_and_cancel),
        cmocka_unit_test(stale_cancel), cmocka_unit_test(durable_writes_say_so), cmocka_unit_test(neighbours),
    };
    return cmocka_run_group_tests_name("rt-uring", tests, NULL, NULL);
}
