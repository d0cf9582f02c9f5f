/* SPDX-License-Identifier: MIT
 *
 * nbd_send.c: requests in flight, their buffers, and sending their answers.
 *
 * Purpose      One sender per connection takes answers that are ready and gives them to the kernel in one call,
 *              headers and data gathered; how many, see send_most. A request's coroutine ends when its answer is queued; the sender frees it.
 * Owns         queued requests; spare requests and buffers of the connection.
 * Invariants   I1 inflight counts requests from nbd_req_new to nbd_req_free, inflight_bytes what they were charged.
 *              I2 answers of one request are sent without a gap, whole.
 *              I3 after a failed send nothing more is sent: answers are dropped, so nobody waits for this client.
 * Concurrency  the connection's loop. The sender suspends in sends and when there is nothing to send.
 * Failure      a failed send shuts the socket; the reader then sees the end of the stream.
 * Tests        tests/nbd
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "export/nbd/nbd_priv.h"

/* ---- buffers ---- */

/* Size class of a buffer, NBD_BUF_CLASSES: too long to be kept. */
static unsigned class_of(uint32_t len)
{
    unsigned k = 0;
    while (k < NBD_BUF_CLASSES && len > 4096u << k)
        k++;
    return k;
}

void *nbd_buf_get(struct nbd_conn *c, uint32_t len)
{
    unsigned k = class_of(len);
    struct nbd_buf *b = k < NBD_BUF_CLASSES ? c->kept[k] : NULL;
    if (b) {
        c->kept[k] = b->next;
        c->kept_bytes -= 4096u << k;
        return b;
    }
    void *p;
    return posix_memalign(&p, 4096, k < NBD_BUF_CLASSES ? 4096u << k : len) ? NULL : p;
}

void nbd_buf_put(struct nbd_conn *c, void *buf, uint32_t len)
{
    unsigned k = class_of(len);
    if (!buf)
        return;
    if (k >= NBD_BUF_CLASSES || c->kept_bytes + (4096u << k) > NBD_KEEP_BYTES) {
        free(buf);
        return;
    }
    struct nbd_buf *b = buf;
    b->next = c->kept[k];
    c->kept[k] = b;
    c->kept_bytes += 4096u << k;
}

/* Frees kept buffers, the large ones first, until at most so many bytes are left. */
static void trim_kept(struct nbd_conn *c, uint32_t bytes)
{
    for (unsigned k = NBD_BUF_CLASSES; k--;)
        while (c->kept[k] && c->kept_bytes > bytes) {
            struct nbd_buf *b = c->kept[k];
            c->kept[k] = b->next;
            c->kept_bytes -= 4096u << k;
            free(b);
        }
}

void nbd_conn_free_pools(struct nbd_conn *c)
{
    struct list_node *n;
    trim_kept(c, 0);
    while ((n = list_pop_front(&c->spare)))
        free(CONTAINER_OF(n, struct nbd_req, link));
}

/* ---- requests ---- */

struct nbd_req *nbd_req_new(struct nbd_conn *c, const struct nbdp_request *r)
{
    struct list_node *n = list_pop_front(&c->spare);
    struct nbd_req *q = n ? CONTAINER_OF(n, struct nbd_req, link) : malloc(sizeof *q);
    if (!q)
        return NULL;
    list_node_init(&q->link);
    q->conn = c;
    q->r = *r;
    q->buf = NULL;
    q->buf_len = 0;
    q->turn = rt_turns(c->loop);
    q->charged = 0;
    q->parts = &q->first;
    q->n_parts = 0;
    c->inflight++;
    return q;
}

void nbd_req_free(struct nbd_req *q)
{
    struct nbd_conn *c = q->conn;
    nbd_buf_put(c, q->buf, q->buf_len);
    if (q->parts != &q->first)
        free(q->parts);
    INV(I1, c->inflight > 0 && c->inflight_bytes >= q->charged);
    c->inflight--;
    c->inflight_bytes -= q->charged;
    list_push_back(&c->spare, &q->link);
    (void)co_wake_one(&c->room);
    if (c->inflight)
        return;
    trim_kept(c, NBD_KEEP_IDLE_BYTES);
    co_wake_all(&c->changed);
}

void nbd_req_answer(struct nbd_req *q)
{
    struct nbd_conn *c = q->conn;
    ASSERT(q->n_parts > 0);
    q->waited = rt_turns(c->loop) - q->turn > NBD_TURNS_AT_ONCE;
    list_push_back(&c->to_send, &q->link);
    (void)co_wake_one(&c->sendq);
}

void nbd_req_answer_error(struct nbd_req *q, enum nbd_error e, const char *why)
{
    q->parts = &q->first;
    q->n_parts = 1;
    q->first.data_len = 0;
    nbdp_reply_error(&q->r, e, why, &q->first.head);
    nbd_req_answer(q);
}

/* ---- sending ---- */

void nbd_conn_shut(struct nbd_conn *c)
{
    c->broken = true;
    (void)shutdown(c->fd, SHUT_RDWR);      /* fails when the peer has gone already: no matter */
}

/* A unix socket holds some 200 KiB, and says that there is room when three quarters of them have been taken: an answer of 1 MiB leaves in
 * six pieces, each of which wakes this side and the client. Small answers are better off without: the client begins with the first ones
 * while others are still being read. TCP grows its buffers by itself, and would stop doing so. */
void nbd_conn_widen(struct nbd_conn *c)
{
    int bytes = 2 << 20, domain = 0;             /* the system's limit may allow less */
    socklen_t len = sizeof domain;
    if (c->wide)
        return;
    c->wide = true;
    if (getsockopt(c->fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == AF_UNIX)
        (void)setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
}

static unsigned gather_one(struct nbd_conn *c, const struct nbd_req *q, unsigned cnt)
{
    for (unsigned i = 0; i < q->n_parts; i++) {
        struct nbd_part *p = &q->parts[i];
        c->iov[cnt++] = (struct iovec){ p->head.b, p->head.len };
        if (p->data_len)
            c->iov[cnt++] = (struct iovec){ p->data, p->data_len };
    }
    return cnt;
}

/* How many elements one call takes. Answers that a device was waited for come in bursts: when they leave in few at a time, the client asks anew
 * while the rest are on their way, and the device is given new work before it has run dry. Those that took no waiting cost this processor
 * alone, and most of that cost is per call. */
static unsigned send_most(const struct nbd_conn *c)
{
    const struct nbd_req *q = CONTAINER_OF(list_first(&c->to_send), struct nbd_req, link);
    return q->waited ? NBD_SEND_IOV_WAITED : NBD_SEND_IOV;
}

/* Moves answers that fit one call from to_send to batch; returns how many elements of c->iov they take. */
static unsigned gather(struct nbd_conn *c, struct list *batch)
{
    unsigned cnt = 0, most = send_most(c);
    struct list_node *n;
    while ((n = list_first(&c->to_send))) {
        struct nbd_req *q = CONTAINER_OF(n, struct nbd_req, link);
        ASSERT(2 * q->n_parts <= NBD_SEND_IOV);
        if (cnt && cnt + 2 * q->n_parts > most)
            break;
        cnt = gather_one(c, q, cnt);
        list_remove(n);
        list_push_back(batch, n);
    }
    return cnt;
}

/* Drops the first n bytes of iov[*at, cnt). */
static void advance(struct iovec *iov, unsigned cnt, unsigned *at, size_t n)
{
    while (*at < cnt && n >= iov[*at].iov_len)
        n -= iov[(*at)++].iov_len;
    if (*at < cnt && n) {
        iov[*at].iov_base = (char *)iov[*at].iov_base + n;
        iov[*at].iov_len -= n;
    }
}

static void send_all(struct co *co, struct nbd_conn *c, unsigned cnt)
{
    unsigned at = 0;
    while (at < cnt && !c->broken) {
        int64_t n = nbd_conn_sendv(co, c, c->iov + at, cnt - at);
        if (n <= 0) {
            nbd_conn_shut(c);
            return;
        }
        c->sent_bytes += (uint64_t)n;
        advance(c->iov, cnt, &at, (size_t)n);
    }
}

void nbd_sender_main(struct co *co, void *arg)
{
    struct nbd_conn *c = arg;
    struct list batch;
    struct list_node *n;
    list_init(&batch);
    for (;;) {
        while (list_empty(&c->to_send) && !c->sender_quit)
            co_wait(co, &c->sendq);
        if (list_empty(&c->to_send))
            break;
        send_all(co, c, gather(c, &batch));
        while ((n = list_pop_front(&batch)))
            nbd_req_free(CONTAINER_OF(n, struct nbd_req, link));
    }
    c->sender_done = true;
    co_wake_all(&c->changed);
}
