/* SPDX-License-Identifier: MIT
 *
 * io_test.c: file and socket operations, every one on both backends.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <liburing.h>

#include "rt/rt_test.h"

#ifndef FALLOC_FL_KEEP_SIZE
#define FALLOC_FL_KEEP_SIZE 1
#endif

/* pwritev2 of this program (with large files on): counts durable writes of the threads backend */
static atomic_uint dsync_calls;
ssize_t __real_pwritev64v2(int fd, const struct iovec *v, int cnt, off_t off, int flags);
ssize_t __wrap_pwritev64v2(int fd, const struct iovec *v, int cnt, off_t off, int flags);
ssize_t __wrap_pwritev64v2(int fd, const struct iovec *v, int cnt, off_t off, int flags)
{
    if (flags == RWF_DSYNC)
        atomic_fetch_add(&dsync_calls, 1);
    return __real_pwritev64v2(fd, v, cnt, off, flags);
}

/* ---- files ---- */

static bool in_memory;         /* such files never answer from the loop itself in the threads backend */

static int temp_file(void)
{
    if (in_memory)
        return memfd_create("byre-rt-io", MFD_CLOEXEC);
    char name[] = "/tmp/byre-rt-io-XXXXXX";
    int fd = mkstemp(name);
    ASSERT(fd >= 0);
    unlink(name);
    return fd;
}

static void read_write(struct co *co)
{
    int fd = temp_file();
    char a[4] = "abc", b[6] = "defgh", back[16] = { 0 };
    struct iovec out[2] = { { a, 3 }, { b, 5 } }, in[3] = { { back, 2 }, { back + 2, 0 }, { back + 2, 14 } };
    ASSERT(rt_pwritev(co, fd, out, 2, 10, 0) == 8);
    atomic_store(&dsync_calls, 0);
    ASSERT(rt_pwritev(co, fd, out, 1, 4096, RT_RWF_DSYNC) == 3);
    ASSERT(atomic_load(&dsync_calls) == !strcmp(rt_backend_name(co_loop(co)), "threads"));
    ASSERT(rt_pwritev(co, fd, out, 2, 1 << 20, RT_RWF_DSYNC) == 8);
    int64_t n = rt_pwritev(co, fd, out, 2, 1 << 20, RT_RWF_DONTCACHE);      /* as the kernel likes; never for files in memory */
    ASSERT(n == -EOPNOTSUPP || (n == 8 && !in_memory));
    OK(rt_fdatasync(co, fd));
    ASSERT(rt_preadv(co, fd, in, 3, 10) == 16);
    ASSERT(!memcmp(back, "abcdefgh\0\0\0\0\0\0\0\0", 16));
    ASSERT(rt_preadv(co, fd, in, 3, (1 << 20) + 5) == 3);       /* short at the end of the file */
    ASSERT(!memcmp(back, "fgh", 3));
    ASSERT(rt_preadv(co, fd, in, 1, 1 << 21) == 0);
    struct stat st;
    OK(fstat(fd, &st));
    ASSERT(st.st_size == (1 << 20) + 8);
    OK(rt_fallocate(co, fd, 0, 0, 2 << 20));
    OK(fstat(fd, &st));
    ASSERT(st.st_size == 2 << 20);
    OK(rt_fallocate(co, fd, FALLOC_FL_KEEP_SIZE, 4 << 20, 4096));
    OK(fstat(fd, &st));
    ASSERT(st.st_size == 2 << 20);
    close(fd);
}
ON_BOTH(read_write)

/* ---- a lane, from three loops ---- */

enum { LANE_LOOPS = 3, LANE_WRITERS = 30, LANE_WRITES = 40, LANE_BYTES = 512 };
static struct lane_world { struct rt_lane lane; int fd; atomic_uint left; sem_t done; } lw;

static void lane_writer(struct co *co, void *arg)
{
    unsigned id = (unsigned)(uintptr_t)arg;
    for (unsigned i = 0; i < LANE_WRITES; i++) {
        char piece[LANE_BYTES];
        memset(piece, (int)(1 + (id * 7 + i) % 255), sizeof piece);
        struct iovec v = { piece, sizeof piece };
        ASSERT(rt_pwritev_lane(co, &lw.lane, lw.fd, &v, 1, (uint64_t)(i * LANE_WRITERS + id) * LANE_BYTES) == LANE_BYTES);
        if (i % 8 == 7)
            OK(co_sleep(co, 1000));
    }
    ASSERT(rt_pwritev_lane(co, &lw.lane, -1, &(struct iovec){ &lw, 1 }, 1, 0) == -EBADF);
    if (atomic_fetch_sub(&lw.left, 1) == 1)
        sem_post(&lw.done);
}

static void lane_on(enum rt_backend_kind kind)
{
    struct rt *rt;
    lw = (struct lane_world){ .fd = temp_file() };
    atomic_init(&lw.left, LANE_WRITERS);
    sem_init(&lw.done, 0, 0);
    OK(rt_new(&(struct rt_opts){ .loops = LANE_LOOPS, .backend = kind }, &rt, NULL));
    for (unsigned i = 0; i < LANE_WRITERS; i++)
        OK(rt_spawn_on(rt_loop_at(rt, i % LANE_LOOPS), lane_writer, (void *)(uintptr_t)i));
    while (sem_wait(&lw.done))
        ;
    rt_free(rt);
    assert_int_equal((uint32_t)lw.lane.word, 0);
    for (unsigned k = 0; k < LANE_WRITERS * LANE_WRITES; k++) {
        char back[LANE_BYTES], want[LANE_BYTES];
        memset(want, (int)(1 + (k % LANE_WRITERS * 7 + k / LANE_WRITERS) % 255), sizeof want);
        assert_int_equal(pread(lw.fd, back, sizeof back, (off_t)k * LANE_BYTES), LANE_BYTES);
        assert_memory_equal(back, want, sizeof want);
    }
    close(lw.fd);
    sem_destroy(&lw.done);
}

static void lane_uring(void **state) { lane_on(RT_BACKEND_URING); }
static void lane_threads(void **state) { lane_on(RT_BACKEND_THREADS); }

static void file_errors(struct co *co)
{
    char buf[8] = { 0 };
    struct iovec v = { buf, 8 };
    ASSERT(rt_preadv(co, 9999, &v, 1, 0) == -EBADF);
    ASSERT(rt_pwritev(co, -1, &v, 1, 0, 0) == -EBADF);
    ASSERT(rt_fdatasync(co, 9999) == -EBADF);
    ASSERT(rt_fallocate(co, 9999, 0, 0, 1) == -EBADF);
    int fd = open("/dev/full", O_RDWR);
    ASSERT(fd >= 0);
    ASSERT(rt_pwritev(co, fd, &v, 1, 0, 0) == -ENOSPC);
    close(fd);
    fd = temp_file();
    ASSERT(rt_fallocate(co, fd, 0, 0, 0) == -EINVAL);
    int ro = open("/dev/null", O_RDONLY);
    ASSERT(rt_pwritev(co, ro, &v, 1, 0, 0) == -EBADF);
    v.iov_base = (void *)8;
    ASSERT(rt_pwritev(co, fd, &v, 1, 0, 0) == -EFAULT);
    close(ro);
    close(fd);
}
ON_BOTH(file_errors)

static void more_pieces_than_the_kernel_takes(struct co *co)
{
    enum { N = 1500 };
    static char bytes[N], back[N];
    static struct iovec v[N];
    int fd = temp_file();
    for (int i = 0; i < N; i++) {
        bytes[i] = (char)i;
        v[i] = (struct iovec){ &bytes[i], 1 };
    }
    ASSERT(rt_pwritev(co, fd, v, N, 0, 0) == 1024);             /* short, not refused */
    v[0] = (struct iovec){ back, N };
    ASSERT(rt_preadv(co, fd, v, 1, 0) == 1024);
    ASSERT(!memcmp(bytes, back, 1024));
    close(fd);
}
ON_BOTH(more_pieces_than_the_kernel_takes)

enum { MANY = 2500, BLOCK = 512 };
static int many_fd;

static void write_then_read(struct co *co, void *arg)
{
    unsigned i = *(unsigned *)arg;
    char buf[BLOCK];
    struct iovec v = { buf, BLOCK };
    memset(buf, (int)(i * 7), BLOCK);
    ASSERT(rt_pwritev(co, many_fd, &v, 1, (uint64_t)i * BLOCK, 0) == BLOCK);
    memset(buf, 0, BLOCK);
    ASSERT(rt_preadv(co, many_fd, &v, 1, (uint64_t)i * BLOCK) == BLOCK);
    for (int k = 0; k < BLOCK; k++)
        ASSERT((unsigned char)buf[k] == (unsigned char)(i * 7));
}

static void many_requests(struct co *co)
{
    static struct rt_task t[MANY];
    static unsigned id[MANY];
    many_fd = temp_file();
    for (unsigned i = 0; i < MANY; i++) {
        id[i] = i;
        OK(rt_task_start(co_loop(co), &t[i], write_then_read, &id[i]));
    }
    for (unsigned i = 0; i < MANY; i++)
        rt_task_join(co, &t[i]);
    close(many_fd);
}
ON_BOTH(many_requests)

static void files_in_memory(void **state)
{
    in_memory = true;
    for (int kind = RT_BACKEND_URING; kind <= RT_BACKEND_THREADS; kind++) {
        test_run((enum rt_backend_kind)kind, read_write);
        test_run((enum rt_backend_kind)kind, more_pieces_than_the_kernel_takes);
        test_run((enum rt_backend_kind)kind, many_requests);
    }
    in_memory = false;
}

/* Data in the page cache, out of it, half of it, and read past it: always the bytes of the file. */
static void cold_and_warm_reads(struct co *co)
{
    enum { LEN = 1 << 20, PIECE = 64 << 10 };
    char *buf = malloc(LEN), *got = malloc(LEN);
    struct prng p;
    int fd = temp_file();
    prng_init(&p, 5);
    prng_fill(&p, buf, LEN);
    ASSERT(pwrite(fd, buf, LEN, 0) == LEN);
    OK(fdatasync(fd));
    for (int round = 0; round < 60; round++) {
        OK(posix_fadvise(fd, 0, LEN, POSIX_FADV_DONTNEED));
        uint64_t at = prng_below(&p, LEN), n = 1 + prng_below(&p, PIECE), half = prng_below(&p, n);
        if (round % 3)
            ASSERT(pread(fd, got, half, (off_t)at) >= 0);
        struct iovec v[2] = { { got, half }, { got + half, n - half } };
        uint64_t want = n < LEN - at ? n : LEN - at, have = 0;
        memset(got, 0, n);
        while (have < want) {
            int64_t r = rt_preadv(co, fd, v, 2, at + have);
            ASSERT(r > 0);
            have += (uint64_t)r;
            if (have < want) {          /* short: from there on in one piece */
                v[0] = (struct iovec){ got + have, n - have };
                v[1].iov_len = 0;
            }
        }
        ASSERT(!memcmp(got, buf + at, want));
    }
    close(fd);
    free(buf);
    free(got);
}
ON_BOTH(cold_and_warm_reads)

/* A ring of 2 entries (and 32 completions): the queue is full most of the time, completions overflow. */
static void many_requests_tiny_ring(void **state)
{
    test_run_opts(&(struct rt_opts){ .backend = RT_BACKEND_URING, .manual = true, .ring_entries = 2 }, many_requests);
}

/* Polls complete all in one moment: more completions than the queue holds, and none was asked for in between. */
static int ready_pipe[2];
static unsigned polled;

static void poll_one(struct co *co, void *arg)
{
    ASSERT(rt_poll(co, ready_pipe[0], POLLIN) & POLLIN);
    polled++;
}

static void completions_overflow(struct co *co)
{
    enum { N = 600 };
    static struct rt_task t[N];
    OK(pipe2(ready_pipe, O_NONBLOCK | O_CLOEXEC));
    polled = 0;
    for (int i = 0; i < N; i++)
        OK(rt_task_start(co_loop(co), &t[i], poll_one, NULL));
    OK(co_sleep(co, 2 * MS));
    ASSERT(polled == 0);
    ASSERT(write(ready_pipe[1], "x", 1) == 1);
    for (int i = 0; i < N; i++)
        rt_task_join(co, &t[i]);
    ASSERT(polled == N);
    close(ready_pipe[0]);
    close(ready_pipe[1]);
}
ON_BOTH(completions_overflow)

static void completions_overflow_tiny_ring(void **state)
{
    test_run_opts(&(struct rt_opts){ .backend = RT_BACKEND_URING, .manual = true, .ring_entries = 2 }, completions_overflow);
}

/* ---- sockets ---- */

static void socket_pair(int fd[2])
{
    OK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fd));
}

static int64_t send_bytes(struct co *co, int fd, const void *buf, size_t len)
{
    struct iovec v = { (void *)(uintptr_t)buf, len };
    return rt_sendmsg(co, fd, &(struct msghdr){ .msg_iov = &v, .msg_iovlen = 1 });
}

static void send_all(struct co *co, int fd, const char *buf, size_t len)
{
    for (size_t at = 0; at < len;) {
        int64_t n = send_bytes(co, fd, buf + at, len - at);
        ASSERT(n > 0);
        at += (size_t)n;
    }
}

enum { STREAM = 1 << 20 };
static char stream_out[STREAM], stream_in[STREAM];

/* A long burst reaches the kernel in parts, before the loop is asked for completions. */
static unsigned begun;

static void send_one_byte(struct co *co, void *arg)
{
    begun++;
    ASSERT(send_bytes(co, *(int *)arg, "x", 1) == 1);
}

static void look_at_burst(struct co *co, void *arg)
{
    int arrived;
    (void)co;
    OK(ioctl(*(int *)arg, FIONREAD, &arrived));
    ASSERT(begun == 100 && arrived >= 95);      /* of 96, for the wakeup poll may be among them */
}

static void burst(struct co *co)
{
    struct rt_task t[100], look;
    int fd[2];
    begun = 0;
    socket_pair(fd);
    for (unsigned i = 0; i < 100; i++)
        OK(rt_task_start(co_loop(co), &t[i], send_one_byte, &fd[0]));
    OK(rt_task_start(co_loop(co), &look, look_at_burst, &fd[1]));
    rt_task_join(co, &look);
    for (unsigned i = 0; i < 100; i++)
        rt_task_join(co, &t[i]);
    close(fd[0]);
    close(fd[1]);
}

static void burst_in_parts(void **state)
{
    test_run(RT_BACKEND_URING, burst);
}

static void stream_writer(struct co *co, void *arg)
{
    send_all(co, *(int *)arg, stream_out, STREAM);
    shutdown(*(int *)arg, SHUT_WR);
}

static void stream(struct co *co)
{
    struct prng p;
    struct rt_task t;
    int fd[2];
    char c;
    prng_init(&p, 3);
    prng_fill(&p, stream_out, STREAM);
    memset(stream_in, 0, STREAM);
    socket_pair(fd);
    OK(rt_task_start(co_loop(co), &t, stream_writer, &fd[0]));
    OK(rt_recv_all(co, fd[1], stream_in, STREAM));
    ASSERT(rt_recv(co, fd[1], &c, 1) == 0);     /* end of stream, again and again */
    ASSERT(rt_recv(co, fd[1], &c, 1) == 0);
    ASSERT(rt_recv_all(co, fd[1], &c, 1) == -ECONNRESET);
    rt_task_join(co, &t);
    ASSERT(!memcmp(stream_in, stream_out, STREAM));
    close(fd[1]);
    int64_t n = send_bytes(co, fd[0], "x", 1);
    ASSERT(n == -EPIPE);                        /* and no signal */
    close(fd[0]);
}
ON_BOTH(stream)

/* One descriptor, a reader and a writer waiting at the same time. */
static void echo(struct co *co, void *arg)
{
    char buf[1000];
    int64_t n;
    while ((n = rt_recv(co, *(int *)arg, buf, sizeof buf)) > 0)
        send_all(co, *(int *)arg, buf, (size_t)n);
    ASSERT(n == 0);
    shutdown(*(int *)arg, SHUT_WR);
}

static void both_ways(struct co *co)
{
    struct rt_task w, e;
    int fd[2];
    char c;
    memset(stream_in, 0, STREAM);
    socket_pair(fd);
    OK(rt_task_start(co_loop(co), &e, echo, &fd[1]));
    OK(rt_task_start(co_loop(co), &w, stream_writer, &fd[0]));
    OK(rt_recv_all(co, fd[0], stream_in, STREAM));
    ASSERT(rt_recv(co, fd[0], &c, 1) == 0);
    rt_task_join(co, &e);
    rt_task_join(co, &w);
    ASSERT(!memcmp(stream_in, stream_out, STREAM));
    close(fd[0]);
    close(fd[1]);
}
ON_BOTH(both_ways)

static int listener(int family, struct sockaddr *sa, socklen_t *len, int backlog)
{
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    ASSERT(fd >= 0);
    OK(bind(fd, sa, *len));
    OK(listen(fd, backlog));
    OK(getsockname(fd, sa, len));
    return fd;
}

static int client(int family)
{
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    ASSERT(fd >= 0);
    return fd;
}

struct acceptor { int fd, got; };
static void accept_one(struct co *co, void *arg)
{
    struct acceptor *a = arg;
    a->got = rt_accept(co, a->fd);
}

static void accept_connect(struct co *co, int family, struct sockaddr *sa, socklen_t len)
{
    struct rt_task t;
    struct acceptor a = { .fd = listener(family, sa, &len, 5) };
    char buf[4];
    OK(rt_task_start(co_loop(co), &t, accept_one, &a));
    OK(co_sleep(co, 1 * MS));
    ASSERT(!t.done);
    int c = client(family);
    OK(rt_connect(co, c, sa, len));
    rt_task_join(co, &t);
    ASSERT(a.got >= 0);
    ASSERT(fcntl(a.got, F_GETFL) & O_NONBLOCK);
    ASSERT(fcntl(a.got, F_GETFD) & FD_CLOEXEC);
    send_all(co, c, "ping", 4);
    OK(rt_recv_all(co, a.got, buf, 4));
    ASSERT(!memcmp(buf, "ping", 4));
    close(a.got);
    ASSERT(rt_recv(co, c, buf, 1) == 0);
    close(c);
    close(a.fd);
    c = client(family);
    ASSERT(rt_connect(co, c, sa, len) == -ECONNREFUSED);
    close(c);
}

static void tcp(struct co *co)
{
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    accept_connect(co, AF_INET, (struct sockaddr *)&in, sizeof in);
}
ON_BOTH(tcp)

static struct sockaddr_un unix_name(void)
{
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    snprintf(un.sun_path, sizeof un.sun_path, "/tmp/byre-rt-io-%d.sock", (int)getpid());
    unlink(un.sun_path);
    return un;
}

static void unix_stream(struct co *co)
{
    struct sockaddr_un un = unix_name();
    accept_connect(co, AF_UNIX, (struct sockaddr *)&un, sizeof un);
    unlink(un.sun_path);
    int c = client(AF_UNIX);
    ASSERT(rt_connect(co, c, (struct sockaddr *)&un, sizeof un) == -ENOENT);
    close(c);
}
ON_BOTH(unix_stream)

struct connector { struct sockaddr_un *un; int fd, result; };
static void connect_one(struct co *co, void *arg)
{
    struct connector *k = arg;
    k->result = rt_connect(co, k->fd, (struct sockaddr *)k->un, sizeof *k->un);
}

/* A full queue of a unix listener answers EAGAIN, for which nothing can be polled. */
static void full_backlog(struct co *co)
{
    enum { N = 6 };
    struct sockaddr_un un = unix_name();
    socklen_t len = sizeof un;
    struct connector k[N];
    struct rt_task t[N];
    int fd = listener(AF_UNIX, (struct sockaddr *)&un, &len, 1), got[N];
    for (int i = 0; i < N; i++) {
        k[i] = (struct connector){ &un, client(AF_UNIX), 1 };
        OK(rt_task_start(co_loop(co), &t[i], connect_one, &k[i]));
    }
    OK(co_sleep(co, 12 * MS));
    ASSERT(!t[N - 1].done);
    for (int i = 0; i < N; i++)
        ASSERT((got[i] = rt_accept(co, fd)) >= 0);
    for (int i = 0; i < N; i++) {
        rt_task_join(co, &t[i]);
        OK(k[i].result);
        close(k[i].fd);
        close(got[i]);
    }
    close(fd);
    unlink(un.sun_path);
}
ON_BOTH(full_backlog)

/* ---- cancelling and deadlines ---- */

struct stuck { int fd, result; enum { RECV, ACCEPT, POLL, SEND } what; uint64_t deadline; };

static void get_stuck(struct co *co, void *arg)
{
    struct stuck *s = arg;
    char c;
    co_set_deadline(co, s->deadline);
    switch (s->what) {
    case RECV: s->result = (int)rt_recv(co, s->fd, &c, 1); break;
    case ACCEPT: s->result = rt_accept(co, s->fd); break;
    case POLL: s->result = rt_poll(co, s->fd, POLLIN); break;
    case SEND:
        while ((s->result = (int)send_bytes(co, s->fd, stream_out, STREAM)) > 0)
            ;
        break;
    }
}

static void stuck_sockets(struct co *co, bool by_deadline)
{
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t len = sizeof in;
    int fd[2], lfd = listener(AF_INET, (struct sockaddr *)&in, &len, 5);
    uint64_t begin = rt_now(co_loop(co));
    socket_pair(fd);
    for (int what = RECV; what <= SEND; what++) {
        struct stuck s = { .fd = what == ACCEPT ? lfd : fd[0], .result = 1, .what = what };
        struct rt_task t;
        uint64_t at = rt_now(co_loop(co)) + 5 * MS;
        s.deadline = by_deadline ? at : 0;
        OK(rt_task_start(co_loop(co), &t, get_stuck, &s));
        OK(co_sleep(co, 2 * MS));
        ASSERT(by_deadline || !t.done);
        if (!by_deadline)
            rt_cancel(&t);
        rt_task_join(co, &t);
        ASSERT(s.result == (by_deadline ? -ETIMEDOUT : -ECANCELED));
        ASSERT(!by_deadline || rt_now(co_loop(co)) >= at);
    }
    ASSERT(rt_now(co_loop(co)) - begin < 5000 * MS);
    /* nothing of the cancelled waits is left: the bytes that were sent arrive, the socket works */
    char c;
    ASSERT(rt_recv(co, fd[1], &c, 1) == 1);
    ASSERT(c == stream_out[0]);
    send_all(co, fd[1], "k", 1);
    ASSERT(rt_recv(co, fd[0], &c, 1) == 1 && c == 'k');
    close(fd[0]);
    close(fd[1]);
    close(lfd);
}

static void cancel_sockets(struct co *co)
{
    stuck_sockets(co, false);
}
ON_BOTH(cancel_sockets)

static void deadline_sockets(struct co *co)
{
    stuck_sockets(co, true);
}
ON_BOTH(deadline_sockets)

/* Data and cancellation in the same turn: the byte is either reported or still there, never lost. */
static void cancel_races_data(struct co *co)
{
    int fd[2], lost = 0;
    socket_pair(fd);
    for (int i = 0; i < 300; i++) {
        struct stuck s = { .fd = fd[0], .what = RECV };
        struct rt_task t;
        char c;
        OK(rt_task_start(co_loop(co), &t, get_stuck, &s));
        co_yield(co);
        co_yield(co);
        ASSERT(write(fd[1], "d", 1) == 1);
        if (i % 3 == 0)
            co_yield(co);
        rt_cancel(&t);
        rt_task_join(co, &t);
        ASSERT(s.result == 1 || s.result == -ECANCELED);
        if (s.result != 1)
            lost += read(fd[0], &c, 1) != 1;
        ASSERT(recv(fd[0], &c, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN);
    }
    ASSERT(lost == 0);
    close(fd[0]);
    close(fd[1]);
}
ON_BOTH(cancel_races_data)

/* A cancelled coroutine still finishes its file operations. */
static void file_io_ignores_cancel(struct co *co, void *arg)
{
    char buf[4] = "abcd";
    struct iovec v = { buf, 4 };
    ASSERT(co_cancelled(co));
    ASSERT(co_sleep(co, 1) == -ECANCELED);
    ASSERT(rt_pwritev(co, *(int *)arg, &v, 1, 0, 0) == 4);
    OK(rt_fdatasync(co, *(int *)arg));
    ASSERT(rt_preadv(co, *(int *)arg, &v, 1, 2) == 2);
}

static void cancelled_files(struct co *co)
{
    struct rt_task t;
    int fd = temp_file();
    OK(rt_task_start(co_loop(co), &t, file_io_ignores_cancel, &fd));
    rt_cancel(&t);
    rt_task_join(co, &t);
    close(fd);
}
ON_BOTH(cancelled_files)

/* Two coroutines wait for different things of one descriptor. One is served and goes; the other must not be forgotten. */
static void two_waiters(struct co *co)
{
    int fd[2];
    struct rt_task in, out;
    socket_pair(fd);
    struct stuck r = { .fd = fd[0], .what = RECV }, w = { .fd = fd[0], .what = SEND };
    OK(rt_task_start(co_loop(co), &out, get_stuck, &w));        /* fills the socket, then waits */
    OK(co_sleep(co, 2 * MS));
    OK(rt_task_start(co_loop(co), &in, get_stuck, &r));
    OK(co_sleep(co, 1 * MS));
    ASSERT(!in.done && !out.done);
    ASSERT(write(fd[1], "r", 1) == 1);
    rt_task_join(co, &in);
    ASSERT(r.result == 1 && !out.done);
    /* the reader is gone, so only what the descriptor is armed for can wake the writer */
    close(fd[1]);
    rt_task_join(co, &out);
    ASSERT(w.result == -EPIPE || w.result == -ECONNRESET);
    close(fd[0]);
}
ON_BOTH(two_waiters)

/* A coroutine that never waits does not keep messages, sockets and timers from the others. */
static bool stop_spinning;
static void spinner(struct co *co, void *arg)
{
    while (!stop_spinning)
        co_yield(co);
}

static void others_get_their_turn(struct co *co)
{
    struct rt_task t, sp;
    int fd[2];
    socket_pair(fd);
    stop_spinning = false;
    OK(rt_task_start(co_loop(co), &sp, spinner, NULL));
    struct stuck s = { .fd = fd[0], .what = RECV };
    OK(rt_task_start(co_loop(co), &t, get_stuck, &s));
    OK(co_sleep(co, 1 * MS));
    ASSERT(write(fd[1], "x", 1) == 1);      /* without the loop: nothing else is submitted meanwhile */
    rt_task_join(co, &t);
    ASSERT(s.result == 1);
    stop_spinning = true;
    rt_task_join(co, &sp);
    close(fd[0]);
    close(fd[1]);
}
ON_BOTH(others_get_their_turn)

/* Descriptor numbers are reused for other sockets: what was known about the old one must not disturb. */
static void reused_descriptors(struct co *co)
{
    for (int i = 0; i < 50; i++) {
        int fd[2];
        struct stuck s = { .what = RECV };
        struct rt_task t;
        socket_pair(fd);
        s.fd = fd[0];
        OK(rt_task_start(co_loop(co), &t, get_stuck, &s));
        co_yield(co);
        co_yield(co);
        send_all(co, fd[1], "q", 1);
        rt_task_join(co, &t);
        ASSERT(s.result == 1);
        close(fd[i % 2]);
        close(fd[!(i % 2)]);
    }
    int file = temp_file();
    ASSERT(rt_poll(co, file, POLLIN | POLLOUT) > 0);    /* files are always ready */
    ASSERT(rt_poll(co, 9999, POLLIN) == -EBADF);
    char c;
    ASSERT(rt_recv(co, file, &c, 1) == -ENOTSOCK);
    ASSERT(rt_accept(co, 9999) == -EBADF);
    close(file);
}
ON_BOTH(reused_descriptors)

/* ---- older kernels: they refuse ring flags that they do not know ---- */

static unsigned unknown_flags, flags_in_use;
int __real_io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *p);
int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *p);
int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *p)
{
    if (p->flags & unknown_flags)
        return -EINVAL;
    flags_in_use = p->flags;
    return __real_io_uring_queue_init_params(entries, ring, p);
}

static void as_on(unsigned refused, unsigned needed)
{
    unknown_flags = refused;
    for (unsigned entries = 2; entries <= 256; entries *= 128) {
        struct rt_opts o = { .backend = RT_BACKEND_URING, .manual = true, .ring_entries = entries };
        test_run_opts(&o, many_requests);
        assert_int_equal(flags_in_use & needed, needed);
        test_run_opts(&o, completions_overflow);
        test_run_opts(&o, both_ways);
        test_run_opts(&o, tcp);
        test_run_opts(&o, cancel_sockets);
        test_run_opts(&o, deadline_sockets);
        test_run_opts(&o, cancel_races_data);
        test_run_opts(&o, others_get_their_turn);
    }
    unknown_flags = 0;
}

static void newest_kernel(void **state)
{
    as_on(0, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
}

static void linux_5_19(void **state)
{
    as_on(IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, IORING_SETUP_COOP_TASKRUN);
}

static void linux_5_13(void **state)
{
    as_on(~0u & ~(IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(read_write), BOTH(lane), BOTH(file_errors), BOTH(more_pieces_than_the_kernel_takes), BOTH(many_requests),
        cmocka_unit_test(files_in_memory), BOTH(cold_and_warm_reads), cmocka_unit_test(many_requests_tiny_ring), cmocka_unit_test(burst_in_parts), BOTH(completions_overflow),
        cmocka_unit_test(completions_overflow_tiny_ring), BOTH(stream), BOTH(both_ways), BOTH(tcp), BOTH(unix_stream),
        BOTH(full_backlog), BOTH(cancel_sockets), BOTH(deadline_sockets), BOTH(cancel_races_data),
        BOTH(cancelled_files), BOTH(two_waiters), BOTH(others_get_their_turn),
        BOTH(reused_descriptors), cmocka_unit_test(newest_kernel), cmocka_unit_test(linux_5_19),
        cmocka_unit_test(linux_5_13),
    };
    return cmocka_run_group_tests_name("rt-io", tests, NULL, NULL);
}
