/* SPDX-License-Identifier: MIT
 *
 * nbd_server_test.c: the server in this process, clients on blocking sockets in the test's own thread: all three reply
 * modes, several loops, removal and stop under load, and every allocation failing in turn.
 */
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/checked.h"
#include "base/cursor.h"
#include "base/test.h"
#include "export/nbd/nbd.h"
#include "proto/nbd/nbd_codec.h"

#define DISK_BYTES (4u << 20)
#define LONG_READ 200000u

/* ---- allocations that fail ---- */

static atomic_int fail_in = -1;      /* the n-th allocation from now fails; negative: none */
static atomic_uint failed;

static bool allocation_fails(void)
{
    if (atomic_load(&fail_in) < 0 || atomic_fetch_sub(&fail_in, 1) != 0)
        return false;
    atomic_fetch_add(&failed, 1);
    return true;
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
int __real_posix_memalign(void **ret, size_t align, size_t n);
char *__real_strdup(const char *s);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
int __wrap_posix_memalign(void **ret, size_t align, size_t n);
char *__wrap_strdup(const char *s);

void *__wrap_malloc(size_t n) { return allocation_fails() ? NULL : __real_malloc(n); }
void *__wrap_calloc(size_t n, size_t size) { return allocation_fails() ? NULL : __real_calloc(n, size); }
void *__wrap_realloc(void *p, size_t n) { return allocation_fails() ? NULL : __real_realloc(p, n); }
int __wrap_posix_memalign(void **ret, size_t align, size_t n) { return allocation_fails() ? ENOMEM : __real_posix_memalign(ret, align, n); }
char *__wrap_strdup(const char *s) { return allocation_fails() ? NULL : __real_strdup(s); }

/* How many buffers the longest send had. */
static atomic_size_t longest_send;
ssize_t __real_sendmsg(int fd, const struct msghdr *m, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *m, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *m, int flags)
{
    if (m->msg_iovlen > atomic_load(&longest_send))
        atomic_store(&longest_send, m->msg_iovlen);
    return __real_sendmsg(fd, m, flags);
}

/* ---- the disk: zeros in its second half ---- */

struct disk {
    pthread_mutex_t lock;
    uint8_t *bytes;
    unsigned durable;
    uint64_t until_ns;           /* reads end at this time, all of them at once; 0: at once */
};

static uint64_t d_length(void *p) { return DISK_BYTES; }

static int d_read(struct co *co, void *p, struct iov v, uint64_t off)
{
    struct disk *d = p;
    pthread_mutex_lock(&d->lock);
    iov_from_buf(v, d->bytes + off, v.len_bytes);
    uint64_t until = d->until_ns, now = rt_now(co_loop(co));
    pthread_mutex_unlock(&d->lock);
    if (until > now)
        (void)co_sleep(co, until - now);
    co_yield(co);
    return 0;
}

static int d_write(struct co *co, void *p, struct iov v, uint64_t off, unsigned flags)
{
    struct disk *d = p;
    pthread_mutex_lock(&d->lock);
    iov_to_buf(v, d->bytes + off, v.len_bytes);
    d->durable += flags & NBD_DISK_FUA ? 1 : 0;
    pthread_mutex_unlock(&d->lock);
    co_yield(co);
    return 0;
}

static int d_zero(struct co *co, void *p, uint64_t off, uint64_t len, unsigned flags)
{
    struct disk *d = p;
    if (flags & NBD_DISK_NO_FALLBACK)
        return -ENOTSUP;
    pthread_mutex_lock(&d->lock);
    memset(d->bytes + off, 0, len);
    pthread_mutex_unlock(&d->lock);
    return 0;
}

static int d_discard(struct co *co, void *p, uint64_t off, uint64_t len) { return d_zero(co, p, off, len, 0); }

static int d_flush(struct co *co, void *p)
{
    struct disk *d = p;
    pthread_mutex_lock(&d->lock);
    d->durable++;
    pthread_mutex_unlock(&d->lock);
    return 0;
}

/* Pieces of 16 KiB, data and zeros by turns as the bytes are. */
static int d_status(struct co *co, void *p, uint64_t off, uint64_t len, struct nbd_disk_status *ret)
{
    struct disk *d = p;
    uint64_t n = min_u64(len, 16384 - off % 16384);
    pthread_mutex_lock(&d->lock);
    bool zero = mem_is_zero(d->bytes + off, n);
    pthread_mutex_unlock(&d->lock);
    *ret = (struct nbd_disk_status){ n, !zero, zero, !zero, 1 };
    return 0;
}

static const struct nbd_disk_ops d_ops = {
    .length = d_length, .read = d_read, .write = d_write, .zero = d_zero, .discard = d_discard, .flush = d_flush, .status = d_status,
};

/* ---- the server ---- */

struct fixture {
    struct rt *rt;
    struct nbd_server *srv;
    struct disk disk;
    char folder[32], path[48];
    sem_t done;
    int result;
    struct byre_err err;
};

static void run(struct fixture *f, co_fn *fn)
{
    ASSERT(rt_spawn_on(rt_loop_at(f->rt, 0), fn, f) == 0);
    while (sem_wait(&f->done))
        ;
}

static void start_co(struct co *co, void *arg)
{
    struct fixture *f = arg;
    const struct nbd_server_opts opts = { .connections_max = 50, .handshake_ms = 10000, .requests_max = 64, .bytes_max = 8 << 20,
                                          .stop_grace_ms = 20, .linger_ms = 300 };
    struct nbd_export *x;
    const struct nbd_export_opts o = { .name = "d", .description = "x", .ops = &d_ops, .disk = &f->disk, .writable = true,
                                       .is_default = true, .allocation_depth = true };
    ASSERT(nbd_server_new(co_loop(co), &opts, &f->srv, &f->err) == 0);
    ASSERT(nbd_server_add(f->srv, &o, &x, &f->err) == 0);
    ASSERT(nbd_server_listen_unix(co, nbd_server_door(f->srv), &(struct unix_addr){ .path = f->path }, &f->err) == 0);
    sem_post(&f->done);
}

static void stop_co(struct co *co, void *arg)
{
    struct fixture *f = arg;
    nbd_server_stop(co, f->srv);
    nbd_server_stop(co, f->srv);
    ASSERT(nbd_server_connections(f->srv) == 0 && !nbd_server_next(f->srv, NULL));
    nbd_server_free(f->srv);
    sem_post(&f->done);
}

static struct fixture *begin(enum rt_backend_kind kind, unsigned loops)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct rt_opts o = { .loops = loops, .backend = kind };
    ASSERT(f && (f->disk.bytes = calloc(1, DISK_BYTES)));
    for (size_t i = 0; i < DISK_BYTES / 2; i++)
        f->disk.bytes[i] = i / 16384 % 3 ? (uint8_t)(i * 31 + i / 509 + 1) : 0;
    pthread_mutex_init(&f->disk.lock, NULL);
    sem_init(&f->done, 0, 0);
    snprintf(f->folder, sizeof f->folder, "/tmp/nbd-test-XXXXXX");
    ASSERT(mkdtemp(f->folder));
    snprintf(f->path, sizeof f->path, "%s/s", f->folder);
    ASSERT(rt_new(&o, &f->rt, &f->err) == 0);
    run(f, start_co);
    return f;
}

static void end(struct fixture *f)
{
    run(f, stop_co);
    rt_free(f->rt);
    ASSERT(access(f->path, F_OK) && rmdir(f->folder) == 0);
    free(f->disk.bytes);
    free(f);
}

/* ---- a client that may lose its connection at any time ---- */

struct client {
    int fd;
    enum nbdp_mode mode;
    uint64_t cookie;
    uint32_t error;              /* of the last reply */
    uint8_t data[LONG_READ];     /* of the last READ */
    uint8_t body[LONG_READ + 64];
};

static struct client the_client;

static bool get(struct client *c, void *buf, size_t n)
{
    for (char *p = buf; n;) {
        ssize_t r = recv(c->fd, p, n, 0);
        ASSERT(r >= 0 || errno == ECONNRESET || errno == EPIPE);      /* no time-out */
        if (r <= 0)
            return false;
        p += r;
        n -= (size_t)r;
    }
    return true;
}

static bool put(struct client *c, const void *buf, size_t n)
{
    for (const char *p = buf; n;) {
        ssize_t r = send(c->fd, p, n, MSG_NOSIGNAL);
        ASSERT(r > 0 || errno == ECONNRESET || errno == EPIPE);
        if (r <= 0)
            return false;
        p += r;
        n -= (size_t)r;
    }
    return true;
}

/* Sends an option and reads its replies; *ret_type = type of the last one. */
static bool option(struct client *c, uint32_t opt, const void *data, uint32_t len, uint32_t *ret_type)
{
    struct nbd_wire_option h;
    struct nbd_wire_opt_reply r;
    char sink[256];
    be64_put(&h.magic, NBD_MAGIC_OPTION);
    be32_put(&h.option, opt);
    be32_put(&h.len, len);
    if (!put(c, &h, sizeof h) || !put(c, data, len))
        return false;
    do {
        if (!get(c, &r, sizeof r))
            return false;
        ASSERT(be64_get(&r.magic) == NBD_MAGIC_OPT_REPLY && be32_get(&r.option) == opt && be32_get(&r.len) <= sizeof sink);
        if (!get(c, sink, be32_get(&r.len)))
            return false;
        *ret_type = be32_get(&r.type);
    } while (*ret_type > NBD_REP_ACK && *ret_type <= NBD_REP_META_CONTEXT);
    return true;
}

static bool enter(struct client *c, struct fixture *f, enum nbdp_mode mode)
{
    static const char go[] = "\0\0\0\1d\0\0", meta[] = "\0\0\0\1d\0\0\0\1\0\0\0\x0f" "base:allocation";
    struct sockaddr_un sa = { .sun_family = AF_UNIX };
    struct timeval limit = { 20, 0 };
    char greeting[18];
    be32 flags;
    uint32_t type = 0;
    memcpy(sa.sun_path, f->path, sizeof f->path);
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    c->mode = mode;
    ASSERT(c->fd >= 0);
    if (connect(c->fd, (struct sockaddr *)&sa, sizeof sa))
        return false;
    ASSERT(!setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
    be32_put(&flags, 3);
    if (!get(c, greeting, sizeof greeting) || !put(c, &flags, sizeof flags) || !option(c, NBD_OPT_LIST, NULL, 0, &type))
        return false;
    if (mode != NBDP_SIMPLE && !option(c, mode == NBDP_EXTENDED ? NBD_OPT_EXTENDED_HEADERS : NBD_OPT_STRUCTURED_REPLY, NULL, 0, &type))
        return false;
    if (mode != NBDP_SIMPLE && !option(c, NBD_OPT_SET_META_CONTEXT, meta, sizeof meta - 1, &type))
        return false;
    return option(c, NBD_OPT_GO, go, sizeof go - 1, &type) && type == NBD_REP_ACK;
}

static bool ask(struct client *c, uint16_t type, uint64_t off, uint32_t len, const void *payload)
{
    uint8_t h[32];
    struct wcur w = wcur_of(h, sizeof h);
    bool ext = c->mode == NBDP_EXTENDED;
    wcur_be32(&w, ext ? NBD_MAGIC_REQUEST_EXT : NBD_MAGIC_REQUEST);
    wcur_be16(&w, ext && payload ? NBD_CMD_FLAG_PAYLOAD_LEN : 0);
    wcur_be16(&w, type);
    wcur_be64(&w, ++c->cookie);
    wcur_be64(&w, off);
    if (ext)
        wcur_be64(&w, len);
    else
        wcur_be32(&w, len);
    return put(c, h, wcur_pos(&w)) && put(c, payload, payload ? len : 0);
}

/* One chunk of a READ into data; errors into error; the rest is skipped. */
static bool take_chunk(struct client *c, unsigned type, uint64_t len, uint64_t off)
{
    ASSERT(len <= sizeof c->body);
    if (!get(c, c->body, len))
        return false;
    struct rcur r = rcur_of(c->body, len);
    if (type & 0x8000)
        c->error = rcur_be32(&r);
    if (type == NBD_REPLY_TYPE_OFFSET_DATA || type == NBD_REPLY_TYPE_OFFSET_HOLE) {
        uint64_t at = rcur_be64(&r) - off, n = type == NBD_REPLY_TYPE_OFFSET_HOLE ? rcur_be32(&r) : rcur_left(&r);
        ASSERT(range_inside(at, n, LONG_READ));
        if (type == NBD_REPLY_TYPE_OFFSET_HOLE)
            memset(c->data + at, 0, n);
        else
            rcur_bytes(&r, c->data + at, n);
    }
    return true;
}

/* The whole answer to the last request. */
static bool answer(struct client *c, uint64_t off, uint32_t read_len)
{
    bool last = false, ext = c->mode == NBDP_EXTENDED;
    c->error = 0;
    while (!last) {
        uint8_t h[32];
        if (!get(c, h, c->mode == NBDP_SIMPLE ? 16 : ext ? 32 : 20))
            return false;
        struct rcur r = rcur_of(h, sizeof h);
        uint32_t magic = rcur_be32(&r);
        ASSERT(magic == (c->mode == NBDP_SIMPLE ? NBD_MAGIC_SIMPLE : ext ? NBD_MAGIC_CHUNK_EXT : NBD_MAGIC_CHUNK));
        if (c->mode == NBDP_SIMPLE) {
            c->error = rcur_be32(&r);
            ASSERT(rcur_be64(&r) == c->cookie);
            return c->error || get(c, c->data, read_len);
        }
        last = rcur_be16(&r) & NBD_REPLY_FLAG_DONE;
        unsigned type = rcur_be16(&r);
        ASSERT(rcur_be64(&r) == c->cookie && (!ext || rcur_be64(&r) == off));
        if (!take_chunk(c, type, ext ? rcur_be64(&r) : rcur_be32(&r), off))
            return false;
    }
    return true;
}

/* Reads and compares with the disk. false: the connection was lost, or the read failed for want of memory. */
static bool check_read(struct client *c, struct fixture *f, uint64_t off, uint32_t len)
{
    if (!ask(c, NBD_CMD_READ, off, len, NULL) || !answer(c, off, len))
        return false;
    ASSERT(c->error == 0 || c->error == NBD_ENOMEM);
    pthread_mutex_lock(&f->disk.lock);
    bool same = !memcmp(c->data, f->disk.bytes + off, len);
    pthread_mutex_unlock(&f->disk.lock);
    ASSERT(c->error || same);
    return !c->error;
}

static bool change(struct client *c, uint16_t type, uint64_t off, uint32_t len, const void *payload)
{
    if (!ask(c, type, off, len, payload) || !answer(c, off, 0))
        return false;
    ASSERT(c->error == 0 || c->error == NBD_ENOMEM);
    return !c->error;
}

/* A whole session. true: everything was answered without an error. */
static bool session(struct fixture *f, enum nbdp_mode mode)
{
    static uint8_t text[100000];
    struct client *c = &the_client;
    memset(text, mode + 'a', sizeof text);
    bool ok = enter(c, f, mode);
    if (ok) {
        ok &= change(c, NBD_CMD_WRITE, 1000, sizeof text, text);
        ok &= change(c, NBD_CMD_WRITE, 7, 300, text);
        ok &= check_read(c, f, 0, 4096);
        ok &= check_read(c, f, 500, LONG_READ);
        ok &= check_read(c, f, DISK_BYTES - 65536, 65536);
        ok &= change(c, NBD_CMD_WRITE_ZEROES, 2000, 50000, NULL);
        ok &= change(c, NBD_CMD_TRIM, 100000, 16384, NULL);
        ok &= change(c, NBD_CMD_CACHE, 0, 65536, NULL);
        ok &= change(c, NBD_CMD_FLUSH, 0, 0, NULL);
        if (mode != NBDP_SIMPLE)
            ok &= change(c, NBD_CMD_BLOCK_STATUS, 0, 1 << 20, NULL);
        ok &= check_read(c, f, 0, LONG_READ);
        ok &= ask(c, NBD_CMD_DISC, 0, 0, NULL);
    }
    close(c->fd);
    return ok;
}

/* ---- tests ---- */

static void sessions_in_all_modes(void **state)
{
    for (enum rt_backend_kind kind = RT_BACKEND_URING; kind <= RT_BACKEND_THREADS; kind++) {
        struct fixture *f = begin(kind, 2);
        for (int i = 0; i < 9; i++)
            assert_true(session(f, (enum nbdp_mode)(i % 3)));
        pthread_mutex_lock(&f->disk.lock);
        assert_true(f->disk.durable == 9);
        pthread_mutex_unlock(&f->disk.lock);
        end(f);
    }
}

/* 32 requests that come together; the longest send of their answers. */
static size_t longest_of_a_burst(struct fixture *f, uint64_t wait_ns)
{
    enum { N = 32 };
    struct client *c = &the_client;
    uint8_t asked[N * 28], got[16 + 512];
    struct wcur w = wcur_of(asked, sizeof asked);
    uint32_t seen = 0;
    ASSERT(enter(c, f, NBDP_SIMPLE));
    for (unsigned i = 0; i < N; i++) {
        wcur_be32(&w, NBD_MAGIC_REQUEST);
        wcur_be32(&w, NBD_CMD_READ);
        wcur_be64(&w, i);
        wcur_be64(&w, i * 16384u);
        wcur_be32(&w, 512);
    }
    pthread_mutex_lock(&f->disk.lock);
    f->disk.until_ns = wait_ns ? rt_now(rt_loop_at(f->rt, 0)) + wait_ns : 0;
    pthread_mutex_unlock(&f->disk.lock);
    atomic_store(&longest_send, 0);
    ASSERT(put(c, asked, sizeof asked));
    for (unsigned i = 0; i < N; i++) {
        ASSERT(get(c, got, sizeof got));
        struct rcur r = rcur_of(got, sizeof got);
        ASSERT(rcur_be32(&r) == NBD_MAGIC_SIMPLE && rcur_be32(&r) == 0);
        uint64_t k = rcur_be64(&r);
        ASSERT(k < N && !(seen & 1u << k) && !memcmp(got + 16, f->disk.bytes + k * 16384u, 512));
        seen |= 1u << k;
    }
    close(c->fd);
    return atomic_load(&longest_send);
}

static void answers_that_waited_leave_in_parts(void **state)
{
    struct fixture *f = begin(RT_BACKEND_THREADS, 1);
    size_t prompt = longest_of_a_burst(f, 0), waited = longest_of_a_burst(f, 100000000);
    print_message("buffers in the longest send: %zu, and %zu behind a wait\n", prompt, waited);
    assert_in_range(prompt, 64, 128);
    assert_in_range(waited, 2, 8);
    end(f);
}

/* How much of the answer waits at the client when it takes none? */
static int waiting(struct client *c, struct fixture *f, uint32_t len)
{
    int n = 0, before = -1;
    ASSERT(ask(c, NBD_CMD_READ, 0, len, NULL));
    for (int i = 0; i < 200 && (n != before || n < 1000); i++) {
        before = n;
        usleep(10000);
        ASSERT(ioctl(c->fd, FIONREAD, &n) == 0);
    }
    return n;
}

static int system_limit(void)
{
    int n = 0;
    FILE *file = fopen("/proc/sys/net/core/wmem_max", "re");
    ASSERT(file && fscanf(file, "%d", &n) == 1);
    fclose(file);
    return n;
}

/* The answer to a long READ goes into the socket whole, as far as the system's limit allows; short ones do not ask for that. */
static void a_long_answer_leaves_at_once(void **state)
{
    struct fixture *f = begin(RT_BACKEND_URING, 1);
    struct client *c = &the_client;
    const uint32_t len = 1u << 20;
    pthread_mutex_lock(&f->disk.lock);
    memset(f->disk.bytes, 'x', len);
    pthread_mutex_unlock(&f->disk.lock);
    ASSERT(enter(c, f, NBDP_SIMPLE));
    for (uint32_t i = 0; i < 16; i++)
        ASSERT(ask(c, NBD_CMD_READ, 0, 65536, NULL));
    int narrow = waiting(c, f, 65536), wide;
    close(c->fd);
    ASSERT(enter(c, f, NBDP_SIMPLE));
    wide = waiting(c, f, len);
    close(c->fd);
    print_message("waiting at the client: %d bytes of short answers, %d of a long one\n", narrow, wide);
    assert_in_range(narrow, 65536, 400000);
    if (system_limit() >= (int)(2 * len))
        assert_int_equal(wide, len + 16);
    else
        assert_true(wide > narrow || system_limit() <= 212992 / 2);
    end(f);
}

/* Once and for ever from the n-th allocation on, for every n until a session needs no more. */
static void every_allocation_fails_in_turn(void **state)
{
    for (enum nbdp_mode mode = NBDP_SIMPLE; mode <= NBDP_EXTENDED; mode++) {
        struct fixture *f = begin(RT_BACKEND_THREADS, 2);
        int n = 0, hit = 0;
        for (;; n++) {
            ASSERT(n < 2000);
            atomic_store(&failed, 0);
            atomic_store(&fail_in, n);
            (void)session(f, mode);
            atomic_store(&fail_in, -1);
            if (!atomic_load(&failed))
                break;
            hit++;
            assert_true(session(f, mode));      /* the server is whole */
        }
        assert_true(hit >= 5);
        end(f);
    }
}

struct storm { struct fixture *f; atomic_bool *stop; unsigned seed; };

/* Writes and reads until the server says no or goes away. */
static void *storm_main(void *arg)
{
    struct storm *s = arg;
    struct client *c = calloc(1, sizeof *c);
    ASSERT(c);
    for (unsigned i = s->seed; !atomic_load(s->stop); i++) {
        if (!enter(c, s->f, (enum nbdp_mode)(i % 3))) {
            close(c->fd);
            break;
        }
        bool ok = true;
        for (int k = 0; ok && k < 50 && !atomic_load(s->stop); k++)
            ok = ask(c, NBD_CMD_READ, i * 512 % 65536, 65536, NULL) && answer(c, i * 512 % 65536, 65536) && c->error != NBD_EIO;
        close(c->fd);
    }
    free(c);
    return NULL;
}

static void reject_co(struct co *co, void *arg)
{
    struct fixture *f = arg;
    struct nbd_export *x = nbd_server_find(f->srv, "d");
    f->result = nbd_server_remove(co, f->srv, x, false, &f->err);
    if (f->result)
        ASSERT(f->err.text[0] && nbd_server_remove(co, f->srv, x, true, &f->err) == 0);
    sem_post(&f->done);
}

static void removal_and_stop_under_load(void **state)
{
    for (int i = 0; i < 6; i++) {
        struct fixture *f = begin(i & 1 ? RT_BACKEND_URING : RT_BACKEND_THREADS, 3);
        struct storm s[4];
        pthread_t t[4];
        atomic_bool stop = false;
        for (unsigned k = 0; k < 4; k++) {
            s[k] = (struct storm){ f, &stop, k };
            ASSERT(!pthread_create(&t[k], NULL, storm_main, &s[k]));
        }
        usleep(20000u * (unsigned)(i + 1) / 2);
        if (i & 2)
            run(f, reject_co);
        atomic_store(&stop, i & 4);
        run(f, stop_co);
        atomic_store(&stop, true);
        for (unsigned k = 0; k < 4; k++)
            pthread_join(t[k], NULL);
        rt_free(f->rt);
        ASSERT(rmdir(f->folder) == 0);
        free(f->disk.bytes);
        free(f);
    }
}

/* ---- refusals of the control calls ---- */

static void refuse_co(struct co *co, void *arg)
{
    struct fixture *f = arg;
    static char longest[NBD_STRING_MAX + 2];
    struct nbd_export *x;
    struct nbd_server *s;
    struct nbd_server_opts bad = NBD_SERVER_OPTS_DEFAULT;
    bad.requests_max = 257;
    ASSERT(nbd_server_new(co_loop(co), &bad, &s, &f->err) == -EINVAL);
    bad.requests_max = 0;
    ASSERT(nbd_server_new(co_loop(co), &bad, &s, NULL) == -EINVAL);
    struct nbd_export_opts o = { .name = "d", .ops = &d_ops, .disk = &f->disk };
    ASSERT(nbd_server_add(f->srv, &o, &x, &f->err) == -EEXIST);
    memset(longest, 'n', sizeof longest - 1);
    o.name = longest;
    ASSERT(nbd_server_add(f->srv, &o, &x, &f->err) == -EINVAL);
    longest[NBD_STRING_MAX] = 0;
    ASSERT(nbd_server_add(f->srv, &o, &x, &f->err) == 0 && !nbd_export_writable(x) && nbd_export_users(x) == 0);
    ASSERT(!strcmp(nbd_export_name(x), longest) && nbd_server_find(f->srv, longest) == x);
    o.name = "e";
    o.block_min = 3;
    ASSERT(nbd_server_add(f->srv, &o, &x, &f->err) == -EINVAL);
    o.block_min = 131072;
    ASSERT(nbd_server_add(f->srv, &o, &x, &f->err) == -EINVAL);
    o.block_min = 0;
    o.bitmap_count = 1;
    ASSERT(nbd_server_add(f->srv, &o, &x, &f->err) == -E2BIG);
    ASSERT(nbd_server_listen_fd(co, nbd_server_door(f->srv), dup(0), &f->err) == -EINVAL);
    sem_post(&f->done);
}

static void control_calls_refuse_nonsense(void **state)
{
    struct fixture *f = begin(RT_BACKEND_THREADS, 1);
    run(f, refuse_co);
    end(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sessions_in_all_modes),
        cmocka_unit_test(a_long_answer_leaves_at_once),
        cmocka_unit_test(answers_that_waited_leave_in_parts),
        cmocka_unit_test(every_allocation_fails_in_turn),
        cmocka_unit_test(removal_and_stop_under_load),
        cmocka_unit_test(control_calls_refuse_nonsense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
