/* SPDX-License-Identifier: MIT
 *
 * nbd_test_server.c: the NBD server over disks in memory, for the tests in this folder.
 *
 *     nbd_test_server [--unix PATH] [--tcp HOST:PORT] [--size BYTES] [--backend uring|threads] [--loops N]
 *                     [--connections N] [--handshake-ms N] [--requests N] [--bytes N]
 *
 * Prints one "listening ..." line per address, then "ready"; runs until SIGTERM or SIGINT, then stops in order and
 * prints "stopped". A line "remove NAME" or "force NAME" on standard input removes an export and prints the result.
 * Exports: disk0 (also the default), ro, big (2^62 bytes, keeps nothing), err (fails from 1 MiB on), slow (200 ms each),
 * block4k (minimum block 4096).
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/checked.h"
#include "export/nbd/nbd.h"

#define CHUNK (UINT64_C(64) << 10)
#define MIB (UINT64_C(1) << 20)

/* ---- disks ---- */

struct mem {
    uint64_t len;
    uint8_t **chunk;                 /* NULL: reads as zeros, not allocated */
    pthread_mutex_t lock;
    bool bottomless;                 /* reads zeros, forgets writes */
    bool failing, slow;
    unsigned flushes;
};

static void copy_out(struct mem *m, uint8_t *dst, uint64_t off, uint64_t len)
{
    while (len) {
        uint64_t in = off % CHUNK, n = min_u64(CHUNK - in, len);
        const uint8_t *c = m->bottomless ? NULL : m->chunk[off / CHUNK];
        if (c)
            memcpy(dst, c + in, n);
        else
            memset(dst, 0, n);
        dst += n;
        off += n;
        len -= n;
    }
}

/* src NULL: zeros */
static int copy_in(struct mem *m, const uint8_t *src, uint64_t off, uint64_t len, bool unmap)
{
    while (len && !m->bottomless) {
        uint64_t in = off % CHUNK, n = min_u64(CHUNK - in, len);
        uint8_t **c = &m->chunk[off / CHUNK];
        if (!src && unmap && n == CHUNK) {
            free(*c);
            *c = NULL;
        } else if (src || *c || !unmap) {
            if (!*c)
                *c = calloc(1, CHUNK);
            if (!*c)
                return -ENOSPC;
            if (src)
                memcpy(*c + in, src, n);
            else
                memset(*c + in, 0, n);
        }
        if (src)
            src += n;
        off += n;
        len -= n;
    }
    return 0;
}

static int before(struct co *co, struct mem *m, uint64_t off, uint64_t len)
{
    if (m->slow && co_sleep(co, UINT64_C(200000000)))
        return -ECANCELED;
    return m->failing && off + len > MIB ? -EIO : 0;
}

static uint64_t mem_length(void *disk)
{
    return ((struct mem *)disk)->len;
}

static int mem_read(struct co *co, void *disk, struct iov v, uint64_t off)
{
    struct mem *m = disk;
    int r = before(co, m, off, v.len_bytes);
    if (r)
        return r;
    pthread_mutex_lock(&m->lock);
    for (size_t i = 0; i < v.cnt; i++) {
        copy_out(m, v.vec[i].iov_base, off, v.vec[i].iov_len);
        off += v.vec[i].iov_len;
    }
    pthread_mutex_unlock(&m->lock);
    return 0;
}

static int mem_write(struct co *co, void *disk, struct iov v, uint64_t off, unsigned flags)
{
    struct mem *m = disk;
    int r = before(co, m, off, v.len_bytes);
    pthread_mutex_lock(&m->lock);
    for (size_t i = 0; i < v.cnt && !r; i++) {
        r = copy_in(m, v.vec[i].iov_base, off, v.vec[i].iov_len, false);
        off += v.vec[i].iov_len;
    }
    m->flushes += flags & NBD_DISK_FUA ? 1 : 0;
    pthread_mutex_unlock(&m->lock);
    return r == -EIO ? -ENOSPC : r;
}

static int mem_zero(struct co *co, void *disk, uint64_t off, uint64_t len, unsigned flags)
{
    struct mem *m = disk;
    if (m->failing && (flags & NBD_DISK_NO_FALLBACK))
        return -ENOTSUP;
    int r = before(co, m, off, len);
    pthread_mutex_lock(&m->lock);
    if (!r)
        r = copy_in(m, NULL, off, len, flags & NBD_DISK_UNMAP);
    m->flushes += flags & NBD_DISK_FUA ? 1 : 0;
    pthread_mutex_unlock(&m->lock);
    return r;
}

static int mem_discard(struct co *co, void *disk, uint64_t off, uint64_t len)
{
    return mem_zero(co, disk, off, len, NBD_DISK_UNMAP);
}

static int mem_flush(struct co *co, void *disk)
{
    struct mem *m = disk;
    pthread_mutex_lock(&m->lock);
    m->flushes++;
    pthread_mutex_unlock(&m->lock);
    return before(co, m, 0, m->failing ? MIB + 1 : 0);
}

static int mem_status(struct co *co, void *disk, uint64_t off, uint64_t len, struct nbd_disk_status *ret)
{
    struct mem *m = disk;
    bool data = false;
    if (m->failing && off >= MIB)
        return -EIO;
    if (m->failing)
        len = min_u64(len, MIB - off);
    uint64_t n = len;
    pthread_mutex_lock(&m->lock);
    if (!m->bottomless) {
        data = m->chunk[off / CHUNK];
        n = CHUNK - off % CHUNK;
        while (n < len && (m->chunk[(off + n) / CHUNK] != NULL) == data)
            n += CHUNK;
    }
    pthread_mutex_unlock(&m->lock);
    *ret = (struct nbd_disk_status){ min_u64(n, len), data, !data, data ? 1 + off / CHUNK % 2 : 0, 1 };
    return 0;
}

/* A bitmap in which every second MiB is dirty. */
static int mem_dirty(struct co *co, void *disk, unsigned i, uint64_t off, uint64_t len, struct nbd_disk_status *ret)
{
    *ret = (struct nbd_disk_status){ .len = min_u64(len, MIB - off % MIB), .data = off / MIB % 2 == i % 2 };
    return 0;
}

static const struct nbd_disk_ops mem_ops = {
    .length = mem_length, .read = mem_read, .write = mem_write, .zero = mem_zero, .discard = mem_discard,
    .flush = mem_flush, .status = mem_status, .dirty = mem_dirty,
};

static void mem_init(struct mem *m, uint64_t len, bool bottomless)
{
    *m = (struct mem){ .len = len, .bottomless = bottomless };
    pthread_mutex_init(&m->lock, NULL);
    if (!bottomless)
        m->chunk = calloc(div_up(len, CHUNK), sizeof *m->chunk);
    ASSERT(bottomless || m->chunk);
}

static void mem_fini(struct mem *m)
{
    for (uint64_t i = 0; m->chunk && i < div_up(m->len, CHUNK); i++)
        free(m->chunk[i]);
    free(m->chunk);
}

/* ---- server ---- */

enum { D_DISK0, D_RO, D_BIG, D_ERR, D_SLOW, D_BLOCK4K, D_COUNT };

struct test_server {
    struct nbd_server_opts opts;
    const char *unix_path, *tcp_host;
    uint16_t tcp_port;
    bool tcp;
    struct mem disk[D_COUNT];
    struct nbd_server *srv;
    sem_t done;
    const char *name;                /* of the export to remove */
    bool force;
    int result;
};

static void die(const struct byre_err *err)
{
    fprintf(stderr, "error: %s\n", err->text);
    exit(1);
}

static void add(struct test_server *t, int i, struct nbd_export_opts o)
{
    static const char *const bitmaps[] = { "even", "odd" };
    struct nbd_export *x;
    struct byre_err err;
    o.ops = &mem_ops;
    o.disk = &t->disk[i];
    o.allocation_depth = i == D_DISK0;
    o.bitmaps = bitmaps;
    o.bitmap_count = i == D_DISK0 ? 2 : 0;
    if (nbd_server_add(t->srv, &o, &x, &err))
        die(&err);
}

static void start_main(struct co *co, void *arg)
{
    struct test_server *t = arg;
    struct byre_err err;
    uint16_t port;
    if (nbd_server_new(co_loop(co), &t->opts, &t->srv, &err))
        die(&err);
    add(t, D_DISK0, (struct nbd_export_opts){ .name = "disk0", .description = "a disk in memory", .writable = true, .is_default = true });
    add(t, D_RO, (struct nbd_export_opts){ .name = "ro" });
    add(t, D_BIG, (struct nbd_export_opts){ .name = "big", .writable = true });
    add(t, D_ERR, (struct nbd_export_opts){ .name = "err", .writable = true });
    add(t, D_SLOW, (struct nbd_export_opts){ .name = "slow", .writable = true });
    add(t, D_BLOCK4K, (struct nbd_export_opts){ .name = "block4k", .writable = true, .block_min = 4096, .block_preferred = 65536 });
    if (t->unix_path && nbd_server_listen_unix(co, nbd_server_door(t->srv), &(struct unix_addr){ .path = t->unix_path }, &err))
        die(&err);
    if (t->unix_path)
        printf("listening unix:%s\n", t->unix_path);
    struct nbd_tcp_addr a = { t->tcp_host, t->tcp_port };
    if (t->tcp && nbd_server_listen_tcp(co, nbd_server_door(t->srv), &a, &port, &err))
        die(&err);
    if (t->tcp)
        printf("listening tcp:%s:%u\n", t->tcp_host, port);
    printf("ready %s\n", rt_backend_name(co_loop(co)));
    fflush(stdout);
    sem_post(&t->done);
}

static void stop_main(struct co *co, void *arg)
{
    struct test_server *t = arg;
    nbd_server_stop(co, t->srv);
    nbd_server_free(t->srv);
    sem_post(&t->done);
}

static void remove_main(struct co *co, void *arg)
{
    struct test_server *t = arg;
    struct nbd_export *x = nbd_server_find(t->srv, t->name);
    struct byre_err err;
    t->result = x ? nbd_server_remove(co, t->srv, x, t->force, &err) : -ENOENT;
    sem_post(&t->done);
}

static void run(struct rt *rt, struct test_server *t, co_fn *fn)
{
    ASSERT(rt_spawn_on(rt_loop_at(rt, 0), fn, t) == 0);
    while (sem_wait(&t->done))
        ;
}

static void command(struct rt *rt, struct test_server *t, char *line)
{
    line[strcspn(line, "\n")] = 0;
    char *name = strchr(line, ' ');
    if (!name)
        return;
    *name++ = 0;
    t->name = name;
    t->force = !strcmp(line, "force");
    run(rt, t, remove_main);
    printf("removed %s: %d\n", name, t->result);
    fflush(stdout);
}

/* Until a signal; commands from standard input meanwhile. */
static void wait_for_end(struct rt *rt, struct test_server *t, int signals)
{
    struct pollfd p[] = { { signals, POLLIN, 0 }, { 0, POLLIN, 0 } };
    char line[4096];
    for (;;) {
        if (poll(p, 2, -1) < 0)
            continue;
        if (p[0].revents)
            break;
        if (p[1].revents && fgets(line, sizeof line, stdin))
            command(rt, t, line);
        else if (p[1].revents)
            p[1].fd = -1;
    }
    close(signals);
}

static void parse(struct test_server *t, struct rt_opts *o, uint64_t *size, int argc, char **argv)
{
    static const struct option longs[] = {
        { "unix", 1, 0, 'u' }, { "tcp", 1, 0, 't' }, { "size", 1, 0, 's' }, { "backend", 1, 0, 'b' }, { "loops", 1, 0, 'l' },
        { "connections", 1, 0, 'c' }, { "handshake-ms", 1, 0, 'h' }, { "requests", 1, 0, 'r' }, { "bytes", 1, 0, 'B' }, { 0 },
    };
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        uint64_t n = optarg ? strtoull(optarg, NULL, 0) : 0;
        char *colon = optarg ? strrchr(optarg, ':') : NULL;
        if (c == 'u')
            t->unix_path = optarg;
        else if (c == 't' && colon) {
            t->tcp = true;
            *colon = 0;
            t->tcp_host = optarg;
            t->tcp_port = (uint16_t)strtoul(colon + 1, NULL, 10);
        } else if (c == 's')
            *size = n;
        else if (c == 'b')
            o->backend = !strcmp(optarg, "uring") ? RT_BACKEND_URING : !strcmp(optarg, "threads") ? RT_BACKEND_THREADS : RT_BACKEND_AUTO;
        else if (c == 'l')
            o->loops = (unsigned)n;
        else if (c == 'c')
            t->opts.connections_max = (unsigned)n;
        else if (c == 'h')
            t->opts.handshake_ms = (unsigned)n;
        else if (c == 'r')
            t->opts.requests_max = (unsigned)n;
        else if (c == 'B')
            t->opts.bytes_max = n;
        else
            exit(2);
    }
}

int main(int argc, char **argv)
{
    static struct test_server t = { .opts = NBD_SERVER_OPTS_DEFAULT };
    struct rt_opts ro = { .loops = 2 };
    uint64_t size = 64 * MIB;
    struct byre_err err;
    struct rt *rt;
    sigset_t set;
    parse(&t, &ro, &size, argc, argv);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    sem_init(&t.done, 0, 0);
    for (int i = 0; i < D_COUNT; i++)
        mem_init(&t.disk[i], i == D_BIG ? UINT64_C(1) << 62 : i == D_DISK0 ? size : 16 * MIB, i == D_BIG);
    t.disk[D_ERR].failing = true;
    t.disk[D_SLOW].slow = true;
    int signals = signalfd(-1, &set, SFD_CLOEXEC);      /* before "ready": tests count descriptors */
    if (rt_new(&ro, &rt, &err))
        die(&err);
    run(rt, &t, start_main);
    wait_for_end(rt, &t, signals);
    run(rt, &t, stop_main);
    rt_free(rt);
    printf("stopped, %u flushes\n", t.disk[D_DISK0].flushes);
    for (int i = 0; i < D_COUNT; i++)
        mem_fini(&t.disk[i]);
    return 0;
}
