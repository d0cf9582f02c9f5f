/* SPDX-License-Identifier: MIT
 *
 * nbd_conn.c: one connection: supervisor, reader, end.
 *
 * Purpose      The reader feeds the codec and starts a coroutine for each request; the sender (nbd_send.c) sends the
 *              answers; the supervisor starts both and takes the connection down in order, whatever the reason.
 * Owns         the socket, the codec, requests in flight.
 * Invariants   I1 at most requests_max requests, and bytes_max bytes unless a single request needs more.
 *              I2 the reader has a deadline until the handshake is over.
 *              I3 the gone message is the last thing that happens: nothing of the connection is touched behind it.
 * Order        end: reader, requests, sender, socket, gone message.
 * Concurrency  the connection's loop, but for what nbd_priv.h puts on the home loop.
 * Failure      every failure ends this connection; requests that have begun still run to their end.
 * Tests        tests/nbd
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "export/nbd/nbd_priv.h"

#define NS_PER_MS UINT64_C(1000000)

/* ---- handshake ---- */

/* Sends what the codec wrote. false: the connection is over. */
static bool send_output(struct co *co, struct nbd_conn *c)
{
    const uint8_t *b;
    for (size_t n; (n = nbdp_output(c->p, &b));) {
        struct iovec iov = { (void *)(uintptr_t)b, n };
        int64_t r = nbd_conn_sendv(co, c, &iov, 1);
        if (r <= 0)
            return false;
        nbdp_output_sent(c->p, (size_t)r);
    }
    return true;
}

static void describe(const struct nbd_conn *c, struct nbdp_export *ret)
{
    const struct nbd_export *x = c->x;
    *ret = (struct nbdp_export){
        .serial = x->serial, .name = x->name, .description = x->description, .size = x->ops->length(x->disk),
        .read_only = !x->writable, .multi_conn = c->door->connections_max != 1, .rotational = x->rotational,
        .block_min = x->block_min, .block_preferred = x->block_preferred, .block_max = x->block_max,
        .ctx_count = x->ctx_count, .ctx = (const char *const *)x->ctx,
    };
}

static void on_find_export(struct co *co, struct nbd_conn *c)
{
    size_t len;
    const char *name = nbdp_wanted_name(c->p, &len);
    int r = nbd_conn_find_export(co, c, name, len);
    struct nbdp_export e;
    if (r == -ENOENT) {
        nbdp_export_refused(c->p, NBD_REP_ERR_UNKNOWN, "no export of that name");
        return;
    }
    if (r) {
        nbdp_export_refused(c->p, NBD_REP_ERR_POLICY, "the server is out of memory");
        return;
    }
    describe(c, &e);
    if (e.size > INT64_MAX)
        nbdp_export_refused(c->p, NBD_REP_ERR_TOO_BIG, "the disk is too large");
    else
        nbdp_export_found(c->p, &e);
    if (!nbdp_in_transmission(c->p))
        (void)nbd_conn_find_export(co, c, NULL, 0);      /* let go of it; on failure it is held until the end */
}

static int list_on_home(struct co *co, void *arg)
{
    struct nbd_conn *c = arg;
    for (struct nbd_export *x = NULL; (x = nbd_server_next(c->server, x));)
        nbdp_list_item(c->p, x->name, x->description);
    return 0;
}

/* ---- requests ---- */

/* Waits until a request that needs so many bytes may begin (I1). */
static int wait_room(struct co *co, struct nbd_conn *c, uint64_t bytes)
{
    const struct nbd_server_opts *o = &c->server->opts;
    while (c->inflight >= o->requests_max || (c->inflight_bytes && c->inflight_bytes + bytes > o->bytes_max)) {
        int r = co_wait_cancellable(co, &c->room);
        if (r)
            return r;
    }
    return 0;
}

static struct nbd_req *admit(struct co *co, struct nbd_conn *c, uint64_t bytes)
{
    if (wait_room(co, c, bytes))
        return NULL;
    struct nbd_req *q = nbd_req_new(c, nbdp_request(c->p));
    if (!q)
        return NULL;
    q->charged = bytes;
    c->inflight_bytes += bytes;
    return q;
}

/* false: the connection is over (cancelled, or no memory even for the request itself). */
static bool on_payload(struct co *co, struct nbd_conn *c)
{
    uint32_t len = nbdp_request(c->p)->payload_len;
    struct nbd_req *q = admit(co, c, len);
    if (!q)
        return false;
    c->receiving = q;
    q->buf = nbd_buf_get(c, len);
    q->buf_len = len;
    if (q->buf)
        nbdp_payload_into(c->p, q->buf);
    else
        nbdp_payload_refuse(c->p, NBD_ENOMEM, "no memory for the data");
    return true;
}

static bool on_request(struct co *co, struct nbd_conn *c)
{
    const struct nbdp_request *r = nbdp_request(c->p);
    struct nbd_req *q = c->receiving;
    c->receiving = NULL;
    if (q)
        q->r = *r;
    else
        q = admit(co, c, r->error ? 0 : nbd_req_cost(r));
    if (!q)
        return false;
    if (r->error) {
        nbd_req_answer_error(q, r->error, r->why);
        return true;
    }
    c->executing++;
    if (rt_spawn(c->loop, nbd_req_main, q)) {
        c->executing--;
        nbd_req_answer_error(q, NBD_ENOMEM, "no memory for the request");
    }
    return true;
}

static bool on_need_input(struct co *co, struct nbd_conn *c)
{
    uint8_t *buf;
    size_t room = nbdp_space(c->p, &buf);
    int64_t n = nbd_conn_recv(co, c, buf, room);
    if (n <= 0)
        return false;
    nbdp_filled(c->p, (size_t)n);
    return true;
}

/* One event. false: the reader has nothing more to do. */
static bool handle(struct co *co, struct nbd_conn *c, enum nbdp_event ev)
{
    switch (ev) {
    case NBDP_NEED_INPUT:
        return on_need_input(co, c);
    case NBDP_REQUEST:
        return on_request(co, c);
    case NBDP_PAYLOAD:
        return on_payload(co, c);
    case NBDP_FIND_EXPORT:
        on_find_export(co, c);
        return true;
    case NBDP_LIST:
        if (rt_call(co, c->server->home, list_on_home, c))
            return false;
        nbdp_list_end(c->p);
        return true;
    case NBDP_READY:
        (void)co_set_deadline(co, 0);
        c->moving = c->wanted && c->wanted != c->loop;
        return !c->moving;
    case NBDP_STARTTLS:
        if (nbd_conn_starttls(co, c))
            return false;
        nbdp_tls_started(c->p);
        return true;
    case NBDP_CLOSE:
        break;
    }
    return false;
}

static void reader_main(struct co *co, void *arg)
{
    struct nbd_conn *c = arg;
    unsigned limit_ms = c->door->handshake_ms;
    if (limit_ms && !nbdp_in_transmission(c->p))
        (void)co_set_deadline(co, rt_now(c->loop) + limit_ms * NS_PER_MS);
    for (;;) {
        enum nbdp_event ev = nbdp_next(c->p);
        if (!send_output(co, c) || !handle(co, c, ev))
            break;
    }
    if (c->receiving)
        nbd_req_free(c->receiving);
    c->receiving = NULL;
    c->reader_done = true;
    co_wake_all(&c->changed);
}

/* ---- supervisor ---- */

/* Waits for a change at most until the given time. true: the time is over. */
static bool wait_change(struct co *co, struct nbd_conn *c, uint64_t until_ns)
{
    (void)co_set_deadline(co, until_ns);
    int r = co_wait_cancellable(co, &c->changed);
    (void)co_set_deadline(co, 0);
    return r == -ETIMEDOUT;
}

/* Until the reader has ended by itself, or was told to end. */
static void supervise_reader(struct co *co, struct nbd_conn *c)
{
    while (!c->reader_done && !c->stopping)
        co_wait(co, &c->changed);
    if (!c->reader_done && nbdp_in_transmission(c->p)) {
        uint64_t until = rt_now(c->loop) + c->server->opts.stop_grace_ms * NS_PER_MS;
        nbdp_set_shutdown(c->p);
        while (!c->reader_done && !wait_change(co, c, until))
            ;
    }
    rt_cancel(&c->reader);
    rt_task_join(co, &c->reader);
}

/* Requests end by themselves; answers are given time as long as the client takes some of them, at a stop once only. */
static void finish_requests(struct co *co, struct nbd_conn *c)
{
    while (c->executing)
        co_wait(co, &c->changed);
    bool was_stopping = c->stopping;
    uint64_t linger = c->server->opts.linger_ms * NS_PER_MS, seen = c->sent_bytes, until = rt_now(c->loop) + linger;
    while (c->inflight) {
        if (c->stopping && !was_stopping) {
            was_stopping = true;
            until = rt_now(c->loop) + linger;
        }
        if (!wait_change(co, c, c->broken ? 0 : until))
            continue;
        if (c->stopping || c->sent_bytes == seen)
            nbd_conn_shut(c);
        seen = c->sent_bytes;
        until = rt_now(c->loop) + linger;
    }
}

static void stop_sender(struct co *co, struct nbd_conn *c)
{
    c->sender_quit = true;
    co_wake_all(&c->sendq);
    while (!c->sender_done)
        co_wait(co, &c->changed);
}

static void serve(struct co *co, struct nbd_conn *c)
{
    c->reader_done = c->sender_quit = c->sender_done = false;
    if (rt_spawn(c->loop, nbd_sender_main, c))
        return;
    if (!rt_task_start(c->loop, &c->reader, reader_main, c)) {
        supervise_reader(co, c);
        finish_requests(co, c);
    }
    stop_sender(co, c);
}

void nbd_conn_fini(struct nbd_conn *c)
{
    close(c->fd);
    tls_session_free(c->tls);
    nbdp_free(c->p);
    ASSERT(!c->inflight && !c->executing && list_empty(&c->to_send));
    nbd_conn_free_pools(c);
}

/* A connection that moves has a second life, on another loop: there is a codec then. */
void nbd_conn_main(struct co *co, void *arg)
{
    struct nbd_conn *c = arg;
    if (c->p || !nbdp_new(NULL, c->door->creds ? NBDP_TLS_REQUIRED : NBDP_TLS_NONE, &c->p))
        serve(co, c);
    c->moving = c->moving && !c->broken;
    if (c->tls && !c->broken && !c->moving)
        tls_bye(c->tls, false);
    if (!c->moving)
        nbd_conn_fini(c);
    rt_post(c->server->home, &c->gone_msg);      /* I3 */
}

void nbd_conn_stop_msg(struct rt_msg *m)
{
    struct nbd_conn *c = CONTAINER_OF(m, struct nbd_conn, stop_msg);
    c->stopping = true;
    co_wake_all(&c->changed);
    rt_post(c->server->home, &c->ack_msg);       /* the home loop may free c from here on */
}
