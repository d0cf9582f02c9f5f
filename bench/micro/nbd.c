/* SPDX-License-Identifier: MIT
 *
 * nbd.c: requests of an NBD client: taken apart alone, and served from the receive to the send.
 *
 * Purpose      See the table at the end.
 * Owns         The stream that the client sends: a handshake, then one request over and over.
 * Invariants   None.
 * Order        None.
 * Concurrency  One thread. A receive gets at most DEPTH requests, which are then served together.
 * Failure      None.
 * Tests        tests/bench/micro_test.py
 */
#include "micro.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "export/nbd/nbd_priv.h"

enum { DEPTH = 64, BLOCK = 4096 };

static struct { uint8_t head[64]; size_t head_len; uint64_t sent, end; bool write; uint64_t unit; } stream;

static void put(const void *p, size_t len)
{
    memcpy(stream.head + stream.head_len, p, len);
    stream.head_len += len;
}

static void put_option(uint32_t option)
{
    struct nbd_wire_option o;
    be64_put(&o.magic, NBD_MAGIC_OPTION);
    be32_put(&o.option, option);
    be32_put(&o.len, 0);
    put(&o, sizeof o);
}

static void stream_begin(uint64_t n, bool write)
{
    be32 flags;
    memset(&stream, 0, sizeof stream);
    be32_put(&flags, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    put(&flags, sizeof flags);
    put_option(NBD_OPT_STRUCTURED_REPLY);
    put_option(NBD_OPT_EXPORT_NAME);
    stream.write = write;
    stream.unit = sizeof(struct nbd_wire_request) + (write ? BLOCK : 0);
    stream.end = stream.head_len + n * stream.unit;
}

static void request_at(uint64_t i, struct nbd_wire_request *r)
{
    be32_put(&r->magic, NBD_MAGIC_REQUEST);
    be16_put(&r->flags, 0);
    be16_put(&r->type, stream.write ? NBD_CMD_WRITE : NBD_CMD_READ);
    be64_put(&r->cookie, i);
    be64_put(&r->off, i * 100003 % (DISK_BYTES / BLOCK) * BLOCK);
    be32_put(&r->len, BLOCK);
}

/* The bytes of the stream from `sent` on, as far as one element of it reaches. */
static uint64_t feed_some(uint8_t *buf, uint64_t len)
{
    uint64_t n;
    if (stream.sent < stream.head_len) {
        n = min_u64(len, stream.head_len - stream.sent);
        memcpy(buf, stream.head + stream.sent, n);
    } else {
        uint64_t at = stream.sent - stream.head_len, in = at % stream.unit;
        struct nbd_wire_request r;
        request_at(at / stream.unit, &r);
        if (in < sizeof r) {
            n = min_u64(len, sizeof r - in);
            memcpy(buf, (uint8_t *)&r + in, n);
        } else {
            n = min_u64(len, stream.unit - in);
            memset(buf, 0x55, n);
        }
    }
    stream.sent += n;
    return n;
}

static int64_t feed(void *buf, uint64_t len)
{
    uint64_t got = 0, stop = stream.sent < stream.head_len ? stream.head_len : min_u64(stream.end, stream.sent + DEPTH * stream.unit);
    while (got < len && stream.sent < stop)
        got += feed_some((uint8_t *)buf + got, min_u64(len - got, stop - stream.sent));
    return (int64_t)got;
}

/* ---- parsing alone ---- */

static void parse(struct co *co, uint64_t n, bool write)
{
    static uint8_t payload[BLOCK];
    static const struct nbdp_export x = { .serial = 1, .name = "", .size = DISK_BYTES, .block_min = 1, .block_preferred = 4096 };
    struct nbdp *p;
    struct nbdp_head head;
    stream_begin(n, write);
    OK(nbdp_new(NULL, NBDP_TLS_NONE, &p));
    for (uint64_t got = 0; got < n;) {
        const uint8_t *out;
        uint8_t *buf;
        enum nbdp_event ev = nbdp_next(p);
        nbdp_output_sent(p, nbdp_output(p, &out));
        if (ev == NBDP_NEED_INPUT) {
            size_t room = nbdp_space(p, &buf);
            nbdp_filled(p, (size_t)feed(buf, room));
        } else if (ev == NBDP_FIND_EXPORT) {
            nbdp_export_found(p, &x);
        } else if (ev == NBDP_PAYLOAD) {
            nbdp_payload_into(p, payload);
        } else if (ev == NBDP_REQUEST) {
            const struct nbdp_request *r = nbdp_request(p);
            ASSERT(!r->error);
            if (write)
                nbdp_reply_ok(r, &head);
            else
                nbdp_reply_data(r, r->off, BLOCK, true, &head);
            got++;
        } else {
            ASSERT(ev == NBDP_READY);
        }
    }
    nbdp_free(p);
}

static void parse_reads(struct co *co, uint64_t n) { parse(co, n, false); }
static void parse_writes(struct co *co, uint64_t n) { parse(co, n, true); }

/* ---- the whole server ---- */

static void serve(struct co *co, uint64_t n, bool write)
{
    struct disk d;
    struct nbd_server *s;
    struct nbd_export *x;
    disk_open(co, &d, DISK_BYTES);
    disk_fill(co, &d);
    struct nbd_export_opts o = { .name = "", .ops = &nbd_graph_ops, .disk = d.n, .writable = true };
    OK(nbd_server_new(co_loop(co), NULL, &s, NULL));
    OK(nbd_server_add(s, &o, &x, NULL));
    stream_begin(n, write);
    echo_feed = feed;
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    ASSERT(fd >= 0);
    nbd_conn_start(nbd_server_door(s), fd);
    while (nbd_server_connections(s))
        co_yield(co);
    nbd_server_stop(co, s);
    nbd_server_free(s);
    disk_close(co, &d);
}

static void serve_reads(struct co *co, uint64_t n) { serve(co, n, false); }
static void serve_writes(struct co *co, uint64_t n) { serve(co, n, true); }

const struct micro micro_nbd[] = {
    { "nbd-read", "an NBD read is taken apart and the head of its answer made", parse_reads },
    { "nbd-write", "the same for a write of 4 KiB", parse_writes },
    { "serve-read", "an NBD read of 4 KiB is served from qcow2, 64 at a time, without the kernel's part", serve_reads },
    { "serve-write", "the same for a write in place", serve_writes },
    { NULL },
};
