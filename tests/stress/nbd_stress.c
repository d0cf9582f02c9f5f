/* SPDX-License-Identifier: MIT
 *
 * nbd_stress.c: several connections write, discard, zero and read the same clusters of a served disk, all at once.
 *
 *     nbd-stress SOCKET SECONDS SEED CONNECTIONS BYTES CLUSTER FILE [held]
 *
 * Purpose      No sector shows what was never written there, nor what was surely replaced before the read began (founding
 *              discussion: discard and rewrite). Every 16 bytes carry their guest offset and the number of the request that wrote
 *              them. held: the disk holds number 1 everywhere, otherwise zeros. FILE gets what the disk holds in the end.
 * Owns         The record of the last requests of each sector.
 * Invariants   R1  What was acknowledged before another request of the sector was sent, and that one has been acknowledged, is out:
 *                  a read that is sent later must not see it. A discard puts nothing out: it may leave what was there.
 * Order        Stamps from one counter, taken before a request is sent and after its answer is read.
 * Concurrency  A thread for each connection, DEPTH requests under way on each; one lock for the record.
 * Failure      Says what is wrong, exit 1.
 * Tests        test_discard_rewrite.py
 */
#include <endian.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/prng.h"

enum { SECTOR = 512, UNIT = 16, DEPTH = 4, KEPT = 64, CONNECTIONS_MAX = 16, IO_MAX = 128 * 1024 };
enum { READ = 0, WRITE = 1, FLUSH = 3, TRIM = 4, ZERO = 6 };
enum { FUA = 1, NO_HOLE = 2 };
#define NEVER UINT64_MAX

static void bad(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));
static void bad(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(1);
}

/* ---- the record ---- */

/* tag: number of a write, 0: zeros. out: when it was put out. */
struct kept { uint64_t tag, sent, done, out; };
struct sector { struct kept kept[KEPT]; };

static struct {
    pthread_mutex_t lock;
    struct sector *sectors;
    uint64_t count, stamp, tag, requests, units;
    uint64_t by_type[8];
} record = { .lock = PTHREAD_MUTEX_INITIALIZER, .stamp = 1, .tag = 1 };

/* The place of what was put out first; something is always out, unless far more is under way than this program sends. */
static struct kept *oldest(struct sector *s)
{
    struct kept *o = &s->kept[0];
    for (unsigned i = 1; i < KEPT; i++)
        if (s->kept[i].out < o->out)
            o = &s->kept[i];
    if (o->out == NEVER)
        bad("more than %u requests of one sector count", KEPT);
    return o;
}

static void record_init(uint64_t bytes, uint64_t first_tag)
{
    record.count = bytes / SECTOR;
    record.sectors = calloc(record.count, sizeof *record.sectors);
    if (!record.sectors)
        bad("no memory");
    for (uint64_t i = 0; i < record.count; i++)
        record.sectors[i].kept[0] = (struct kept){ .tag = first_tag, .done = 1, .out = NEVER };
}

struct request { unsigned type, flags; uint64_t off, len, tag, sent; uint8_t *buf; bool busy; };

static void record_send(struct request *r)
{
    pthread_mutex_lock(&record.lock);
    r->tag = r->type == WRITE ? ++record.tag : 0;
    r->sent = ++record.stamp;
    record.requests++;
    record.by_type[r->type]++;
    for (uint64_t i = r->off / SECTOR; r->type != READ && r->type != FLUSH && i < (r->off + r->len) / SECTOR; i++)
        *oldest(&record.sectors[i]) = (struct kept){ r->tag, r->sent, NEVER, NEVER };
    pthread_mutex_unlock(&record.lock);
}

/* R1 */
static void record_done(const struct request *r)
{
    pthread_mutex_lock(&record.lock);
    uint64_t now = ++record.stamp;
    for (uint64_t i = r->off / SECTOR; r->type != READ && r->type != FLUSH && i < (r->off + r->len) / SECTOR; i++)
        for (unsigned k = 0; k < KEPT; k++) {
            struct kept *e = &record.sectors[i].kept[k];
            if (e->sent == r->sent)
                e->done = now;
            else if (r->type != TRIM && e->done < r->sent && e->out == NEVER)
                e->out = now;
        }
    pthread_mutex_unlock(&record.lock);
}

static bool may_show(const struct sector *s, uint64_t tag, uint64_t sent)
{
    for (unsigned i = 0; i < KEPT; i++)
        if (s->kept[i].done && s->kept[i].tag == tag && s->kept[i].out > sent)
            return true;
    return false;
}

static void judge(const struct request *r)
{
    pthread_mutex_lock(&record.lock);
    record.units += r->len / UNIT;
    for (uint64_t at = 0; at < r->len; at += UNIT) {
        uint64_t word[2], off = r->off + at;
        memcpy(word, r->buf + at, sizeof word);
        bool zero = !word[0] && !word[1];
        if (!zero && (word[0] != off / SECTOR * SECTOR || !word[1]))
            bad("bad block: %#" PRIx64 " holds %" PRIx64 " %" PRIx64 ", which was never written there", off, word[0], word[1]);
        if (!may_show(&record.sectors[off / SECTOR], zero ? 0 : word[1], r->sent))
            bad("bad block: %#" PRIx64 " holds %s of request %" PRIu64 ", which was replaced before", off, zero ? "zeros" : "data", word[1]);
    }
    pthread_mutex_unlock(&record.lock);
}

/* ---- the wire ---- */

static void put(int fd, const void *buf, size_t n)
{
    for (const char *p = buf; n;) {
        ssize_t w = send(fd, p, n, MSG_NOSIGNAL);
        if (w <= 0)
            bad("the connection broke while a request was sent");
        p += w;
        n -= (size_t)w;
    }
}

static void get(int fd, void *buf, size_t n)
{
    for (char *p = buf; n;) {
        ssize_t r = recv(fd, p, n, 0);
        if (r <= 0)
            bad("the connection broke while an answer was awaited");
        p += r;
        n -= (size_t)r;
    }
}

static int connect_to(const char *path)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a))
        bad("%s: cannot connect", path);
    uint8_t hello[18], option[4 + 16 + 6] = { 0, 0, 0, 3, 'I', 'H', 'A', 'V', 'E', 'O', 'P', 'T', 0, 0, 0, 7, 0, 0, 0, 6 };
    get(fd, hello, sizeof hello);
    put(fd, option, sizeof option);
    for (;;) {
        uint32_t head[5];
        uint8_t text[4096];
        get(fd, head, sizeof head);
        uint32_t kind = be32toh(head[3]), len = be32toh(head[4]);
        if (len > sizeof text || kind >> 31)
            bad("the export was refused");
        get(fd, text, len);
        if (kind == 1)
            return fd;
    }
}

static void send_request(int fd, struct request *r, unsigned slot)
{
    struct __attribute__((packed)) { uint32_t magic; uint16_t flags, type; uint64_t cookie, off; uint32_t len; } h = {
        htobe32(0x25609513), htobe16((uint16_t)r->flags), htobe16((uint16_t)r->type), htobe64(slot), htobe64(r->off), htobe32((uint32_t)r->len) };
    record_send(r);
    r->busy = true;
    for (uint64_t at = 0; r->type == WRITE && at < r->len; at += UNIT) {
        uint64_t word[2] = { (r->off + at) / SECTOR * SECTOR, r->tag };
        memcpy(r->buf + at, word, sizeof word);
    }
    put(fd, &h, sizeof h);
    if (r->type == WRITE)
        put(fd, r->buf, r->len);
}

static void take_answer(int fd, struct request *slots)
{
    struct __attribute__((packed)) { uint32_t magic, error; uint64_t cookie; } h;
    get(fd, &h, sizeof h);
    uint64_t slot = be64toh(h.cookie);
    if (be32toh(h.magic) != 0x67446698 || slot >= DEPTH || !slots[slot].busy)
        bad("an answer that fits no request");
    struct request *r = &slots[slot];
    if (h.error)
        bad("request of type %u at %#" PRIx64 "+%" PRIu64 ": error %u", r->type, r->off, r->len, be32toh(h.error));
    if (r->type == READ)
        get(fd, r->buf, r->len);
    record_done(r);
    if (r->type == READ)
        judge(r);
    r->busy = false;
}

/* ---- connections ---- */

struct connection { pthread_t thread; const char *path; uint64_t bytes, cluster, seed; double until; };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void draw(struct prng *p, const struct connection *c, struct request *r)
{
    static const uint8_t types[16] = { WRITE, WRITE, WRITE, WRITE, WRITE, READ, READ, READ, READ, READ, TRIM, TRIM, TRIM, ZERO, ZERO, FLUSH };
    r->type = types[prng_below(p, 16)];
    if (r->type == FLUSH && prng_below(p, 8))
        r->type = TRIM;
    r->flags = r->type == ZERO && prng_below(p, 2) ? NO_HOLE : r->type == WRITE && !prng_below(p, 64) ? FUA : 0;
    bool whole = prng_below(p, 2);
    uint64_t unit = whole ? c->cluster : SECTOR, most = IO_MAX / unit ? IO_MAX / unit : 1;
    r->len = unit * (1 + prng_below(p, whole ? (most < 3 ? most : 3) : 24));
    r->off = prng_below(p, c->bytes / unit) * unit;
    if (r->off + r->len > c->bytes)
        r->len = c->bytes - r->off;
    if (r->type == FLUSH)
        r->off = r->len = 0;
}

static void *run(void *arg)
{
    struct connection *c = arg;
    struct request slots[DEPTH] = { 0 };
    struct prng p;
    int fd = connect_to(c->path);
    prng_init(&p, c->seed);
    for (unsigned i = 0; i < DEPTH; i++)
        if (!(slots[i].buf = malloc(4 * IO_MAX + c->cluster * 3)))
            bad("no memory");
    while (now() < c->until) {
        for (unsigned i = 0; i < DEPTH; i++)
            if (!slots[i].busy) {
                draw(&p, c, &slots[i]);
                send_request(fd, &slots[i], i);
            }
        take_answer(fd, slots);
    }
    for (unsigned i = 0; i < DEPTH; i++)
        while (slots[i].busy)
            take_answer(fd, slots);
    for (unsigned i = 0; i < DEPTH; i++)
        free(slots[i].buf);
    close(fd);
    return NULL;
}

/* All is at rest: one read of everything, judged as any other, and kept. */
static void read_all(const char *path, uint64_t bytes, const char *to)
{
    struct request slots[DEPTH] = { { .type = READ } };
    int fd = connect_to(path);
    FILE *f = fopen(to, "wb");
    slots[0].buf = malloc(IO_MAX);
    if (!f || !slots[0].buf)
        bad("%s: cannot be written", to);
    for (uint64_t off = 0; off < bytes; off += IO_MAX) {
        slots[0].off = off;
        slots[0].len = bytes - off < IO_MAX ? bytes - off : IO_MAX;
        send_request(fd, &slots[0], 0);
        take_answer(fd, slots);
        if (fwrite(slots[0].buf, 1, slots[0].len, f) != slots[0].len)
            bad("%s: cannot be written", to);
    }
    if (fclose(f))
        bad("%s: cannot be written", to);
    free(slots[0].buf);
    close(fd);
}

int main(int argc, char **argv)
{
    struct connection c[CONNECTIONS_MAX];
    if (argc < 8)
        bad("usage: nbd-stress SOCKET SECONDS SEED CONNECTIONS BYTES CLUSTER FILE [held]");
    unsigned count = (unsigned)strtoul(argv[4], NULL, 10);
    uint64_t bytes = strtoull(argv[5], NULL, 10);
    if (!count || count > CONNECTIONS_MAX)
        bad("1 to %u connections", CONNECTIONS_MAX);
    record_init(bytes, argc > 8 ? 1 : 0);
    for (unsigned i = 0; i < count; i++) {
        c[i] = (struct connection){ .path = argv[1], .bytes = bytes, .cluster = strtoull(argv[6], NULL, 10),
            .seed = strtoull(argv[3], NULL, 10) * 1000 + i, .until = now() + strtod(argv[2], NULL) };
        if (pthread_create(&c[i].thread, NULL, run, &c[i]))
            bad("no thread");
    }
    for (unsigned i = 0; i < count; i++)
        pthread_join(c[i].thread, NULL);
    read_all(argv[1], bytes, argv[7]);
    printf("%u connections, %" PRIu64 " requests (%" PRIu64 " writes, %" PRIu64 " reads, %" PRIu64 " discards, %" PRIu64 " zeroes, %" PRIu64
           " flushes), %" PRIu64 " MiB read and judged, 0 bad blocks\n", count, record.requests, record.by_type[WRITE], record.by_type[READ],
           record.by_type[TRIM], record.by_type[ZERO], record.by_type[FLUSH], record.units * UNIT >> 20);
    free(record.sectors);
    return 0;
}
