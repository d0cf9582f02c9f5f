/* SPDX-License-Identifier: MIT
 *
 * nbd_tls.c: TLS between an NBD server and libnbd (FEATURES 3.032).
 *
 * Purpose      Asks the server for TLS, checks who it is, and carries bytes between it and a socket pair at whose other end libnbd speaks
 *              plain NBD. libnbd's own TLS works in the stack of whoever calls it, reads its files there, and does not look for the host's
 *              name in the certificate when it is handed a socket.
 * Owns         the server's socket, the session, one end of the pair, the two coroutines
 * Invariants   I1 nothing of the server is shown to libnbd, and nothing of libnbd to the server, before the session stands
 *              I2 the greeting is shown again as it was; the flags in libnbd's answer are those that the server has got already
 * Order        none
 * Concurrency  the loop that began it; may be stopped from any
 * Failure      the end of either side is the end of both: libnbd sees a server that went away
 * Tests        tests/interop/test_nbd_client_tls.py
 */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/endian.h"
#include "proto/nbd/nbd_wire.h"
#include "rt/io.h"
#include "stor/nbd_priv.h"
#include "tls/session.h"

enum { GREETING_BYTES = 18, FLAGS_KNOWN = 3, CHUNK = 64 << 10, TEXT_MAX = 4096 };
#define FAREWELL_NS UINT64_C(200000000)

struct nbdc_tls {
    struct rt_loop *loop;
    int sock, near;
    struct tls_session *t;
    uint8_t flags;                           /* that the server has got */
    struct rt_task up, down;
    bool up_done;
    struct co_waitq ended;
    uint8_t up_buf[CHUNK], down_buf[CHUNK];
};

/* ---- in plain text ---- */

static int write_all(struct co *co, int fd, const void *buf, size_t len)
{
    for (size_t sent = 0; sent < len;) {
        struct iovec v = { (uint8_t *)(uintptr_t)buf + sent, len - sent };
        struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };
        int64_t n = rt_sendmsg(co, fd, &m);
        if (n <= 0)
            return n ? (int)n : -EPIPE;
        sent += (size_t)n;
    }
    return 0;
}

static int lost(int r, struct byre_err *err)
{
    return byre_fail_code(err, SYSTEM, r, "the NBD server does not get as far as TLS: %s", r == -ETIMEDOUT ? "no answer" : strerrordesc_np(-r));
}

/* The server's reason, which may be any bytes, as far as it can be shown. */
static int refused(struct co *co, int fd, uint32_t len, struct byre_err *err)
{
    char text[TEXT_MAX + 1] = "";
    len = len <= TEXT_MAX && !rt_recv_all(co, fd, text, len) ? len : 0;
    for (uint32_t i = 0; i < len; i++)
        if (text[i] < ' ' || text[i] > '~')
            text[i] = '?';
    text[len < 200 ? len : 200] = 0;
    return byre_fail(err, NOT_SUPPORTED, "the NBD server speaks no TLS%s%s", text[0] ? ": " : "", text);
}

/* Up to the answer to STARTTLS; greeting is what the server began with. */
static int ask_tls(struct co *co, int fd, uint8_t greeting[GREETING_BYTES], struct byre_err *err)
{
    struct { be32 flags; struct nbd_wire_option o; } __attribute__((packed)) ask;
    struct nbd_wire_opt_reply reply;
    int r = rt_recv_all(co, fd, greeting, GREETING_BYTES);
    if (r)
        return lost(r, err);
    if (memcmp(greeting, "NBDMAGICIHAVEOPT", 16) || !(greeting[17] & 1))
        return byre_fail(err, NOT_SUPPORTED, "the NBD server speaks no TLS: it is too old, or no NBD server");
    be32_put(&ask.flags, greeting[17] & FLAGS_KNOWN);
    be64_put(&ask.o.magic, NBD_MAGIC_OPTION);
    be32_put(&ask.o.option, NBD_OPT_STARTTLS);
    be32_put(&ask.o.len, 0);
    r = write_all(co, fd, &ask, sizeof ask);
    if (!r)
        r = rt_recv_all(co, fd, &reply, sizeof reply);
    if (r)
        return lost(r, err);
    if (be64_get(&reply.magic) != NBD_MAGIC_OPT_REPLY || be32_get(&reply.option) != NBD_OPT_STARTTLS)
        return byre_fail(err, PROTOCOL, "the NBD server does not answer the question for TLS");
    if (be32_get(&reply.type) != NBD_REP_ACK || be32_get(&reply.len))
        return refused(co, fd, be32_get(&reply.len), err);
    return 0;
}

/* ---- carrying ---- */

static void cut(struct nbdc_tls *c)
{
    (void)shutdown(c->near, SHUT_RDWR);      /* fails when it has ended already: no matter */
    (void)shutdown(c->sock, SHUT_RDWR);
}

static int send_up(struct co *co, struct nbdc_tls *c, size_t len)
{
    for (size_t sent = 0; sent < len;) {
        struct iovec v = { c->up_buf + sent, len - sent };
        int64_t n = tls_sendmsg(co, c->t, &v, 1);
        if (n <= 0)
            return n ? (int)n : -EPIPE;
        sent += (size_t)n;
    }
    return 0;
}

static void up_co(struct co *co, void *arg)
{
    struct nbdc_tls *c = arg;
    be32 flags;
    int64_t n = rt_recv_all(co, c->near, &flags, sizeof flags) || be32_get(&flags) != c->flags ? 0 : 1;      /* I2 */
    while (n > 0) {
        n = rt_recv(co, c->near, c->up_buf, CHUNK);
        if (n > 0 && send_up(co, c, (size_t)n))
            n = -EPIPE;
    }
    if (!n)
        tls_bye(c->t, false);
    cut(c);
    c->up_done = true;
    co_wake_all(&c->ended);
}

static void down_co(struct co *co, void *arg)
{
    struct nbdc_tls *c = arg;
    int64_t n = 1;
    while (n > 0) {
        n = tls_recv(co, c->t, c->down_buf, CHUNK);
        if (n > 0 && write_all(co, c->near, c->down_buf, (size_t)n))
            break;
    }
    cut(c);
}

/* ---- life ---- */

static void tls_free(struct nbdc_tls *c)
{
    tls_session_free(c->t);
    if (c->near >= 0)
        close(c->near);
    close(c->sock);
    free(c);
}

static int stop_on_loop(struct co *co, void *arg)
{
    struct nbdc_tls *c = arg;
    uint64_t old = co_set_deadline(co, rt_now(c->loop) + FAREWELL_NS);
    while (!c->up_done && !co_wait_cancellable(co, &c->ended))
        ;                                    /* libnbd has closed its end: what it said last goes out */
    (void)co_set_deadline(co, old);
    cut(c);
    rt_cancel(&c->up);
    rt_cancel(&c->down);
    rt_task_join(co, &c->up);
    rt_task_join(co, &c->down);
    tls_free(c);
    return 0;
}

void nbdc_tls_stop(struct co *co, struct nbdc_tls *c)
{
    while (c && rt_call(co, c->loop, stop_on_loop, c) == -ENOMEM)
        co_breathe(co);
}

static int carry(struct nbdc_tls *c, const uint8_t greeting[GREETING_BYTES], int *ret_far)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair))
        return -errno;
    c->near = pair[0];
    int r = send(c->near, greeting, GREETING_BYTES, MSG_NOSIGNAL) == GREETING_BYTES ? rt_task_start(c->loop, &c->up, up_co, c) : -EIO;
    if (!r && rt_task_start(c->loop, &c->down, down_co, c)) {
        c->down.done = true;                 /* it never ran: up ends by itself, and is waited for */
        cut(c);
    }
    if (r)
        close(pair[1]);
    else
        *ret_far = pair[1];
    return r;
}

int nbdc_tls_begin(struct co *co, const struct stor_nbd_opts *o, int sock, int *ret_far, struct nbdc_tls **ret_c, struct byre_err *err)
{
    uint8_t greeting[GREETING_BYTES];
    const char *host = o->tls_hostname ? o->tls_hostname : o->where == STOR_NBD_INET ? o->host : NULL;
    struct nbdc_tls *c = calloc(1, sizeof *c);
    if (!c) {
        close(sock);
        return byre_fail(err, NOMEM, "no memory for a TLS connection");
    }
    c->loop = co_loop(co);
    c->sock = sock;
    c->near = -1;
    int r = ask_tls(co, sock, greeting, err);
    if (!r)
        r = tls_session_new(o->creds, sock, host, &c->t, err);
    if (!r)
        r = tls_handshake(co, c->t, err);
    c->flags = greeting[17] & FLAGS_KNOWN;
    if (!r) {
        r = carry(c, greeting, ret_far);     /* I1 */
        if (r)
            r = byre_fail_code(err, SYSTEM, r, "no TLS connection can be made: %s", strerrordesc_np(-r));
    }
    if (r)
        tls_free(c);
    else
        *ret_c = c;
    return r;
}
