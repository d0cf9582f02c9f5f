/* SPDX-License-Identifier: MIT
 *
 * session.c: one TLS connection.
 *
 * Purpose      GnuTLS between buffers: what arrived lies in `in`, what is to go lies in `out`; only this file moves either over the socket.
 * Owns         the session of GnuTLS, the buffers
 * Invariants   I1 the library never waits: it is told "again" when `in` is empty, and `out` takes whatever it writes
 *              I2 bytes leave in the order in which the library wrote them: one coroutine at a time empties `out`
 *              I3 `wire` does not move while the kernel reads it: the library writes to `out` alone
 *              I4 a step of the handshake runs while nobody else uses the session: nothing is received or sent before it is over
 *              I5 nothing that arrives is used before the peer was checked (tls_handshake)
 * Concurrency  one loop; the handshake's steps on the CPU pool (a coroutine's stack is too small for them). The library allows one
 *              sender beside one receiver.
 * Failure      any error of the library ends the session: a renegotiation, a record that was tampered with, an end without farewell
 * Tests        tls_test.c, tests/daemon/tls_test.py
 */
#include <arpa/inet.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/assert.h"
#include "base/checked.h"
#include "rt/io.h"
#include "rt/loop.h"
#include "rt/sync.h"
#include "tls/creds_priv.h"
#include "tls/session.h"

#define IN_BYTES (64u << 10)
#define RECORD 16384u                    /* the longest of the protocol */
#define OUT_MAX (1u << 20)               /* far above what a batch and answers of the protocol need: more is an attack */
#define TURN_RECORDS 64u                 /* short ones, too, take time: so many until others on the loop get their turn */
#define NAME_MAX_BYTES 4096u             /* of a peer */

struct tls_buf { uint8_t *p; size_t at, len, cap; };     /* [at, len) waits */

struct tls_session {
    struct tls_creds *creds;
    gnutls_session_t s;
    int fd;
    const char *hostname;
    char *peer;
    struct tls_buf in, out, wire;
    uint8_t *stage;                      /* a record that is gathered of several pieces */
    bool end;                            /* the socket has no more */
    bool broken;
    bool flushing;
    struct co_waitq flushed;
    unsigned records;                    /* since somebody else had a turn */
};

/* ---- what the library calls: never suspends ---- */

static bool reserve(struct tls_buf *b, size_t more)
{
    if (b->at == b->len)
        b->at = b->len = 0;
    if (b->cap - b->len >= more)
        return true;
    if (b->len + more > OUT_MAX)
        return false;
    size_t cap = max_u64(TLS_BATCH + 2 * RECORD, round_up(b->len + more, 4096));
    uint8_t *p = realloc(b->p, cap);
    if (!p)
        return false;
    b->p = p;
    b->cap = cap;
    return true;
}

static ssize_t push(gnutls_transport_ptr_t arg, const void *data, size_t len)
{
    struct tls_session *t = arg;
    if (t->broken || len > OUT_MAX || !reserve(&t->out, len)) {
        gnutls_lib.transport_set_errno(t->s, EPIPE);
        return -1;
    }
    memcpy(t->out.p + t->out.len, data, len);
    t->out.len += len;
    return (ssize_t)len;
}

static ssize_t pull(gnutls_transport_ptr_t arg, void *data, size_t len)
{
    struct tls_session *t = arg;
    size_t n = min_u64(len, t->in.len - t->in.at);
    if (!n && t->end)
        return 0;
    if (!n) {
        gnutls_lib.transport_set_errno(t->s, EAGAIN);
        return -1;
    }
    memcpy(data, t->in.p + t->in.at, n);
    t->in.at += n;
    return (ssize_t)n;
}

static int pull_ready(gnutls_transport_ptr_t arg, unsigned ms)
{
    const struct tls_session *t = arg;
    return t->in.at < t->in.len || t->end;
}

/* ---- life ---- */

void tls_session_free(struct tls_session *t)
{
    if (!t)
        return;
    ASSERT(!t->flushing);
    if (t->s)
        gnutls_lib.deinit(t->s);
    free(t->in.p);
    free(t->out.p);
    free(t->wire.p);
    free(t->stage);
    free(t->peer);
    tls_creds_unref(t->creds);
    free(t);
}

static bool is_address(const char *host)
{
    struct in6_addr a;
    return inet_pton(AF_INET, host, &a) == 1 || inet_pton(AF_INET6, host, &a) == 1;
}

static int setup(struct tls_session *t)
{
    static const gnutls_credentials_type_t types[] = { [TLS_ANON] = GNUTLS_CRD_ANON, [TLS_PSK] = GNUTLS_CRD_PSK, [TLS_X509] = GNUTLS_CRD_CERTIFICATE };
    const struct tls_creds *c = t->creds;
    int r = gnutls_lib.init(&t->s, (c->server ? GNUTLS_SERVER : GNUTLS_CLIENT) | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL | GNUTLS_NO_TICKETS);
    if (r < 0) {
        t->s = NULL;
        return r;
    }
    r = gnutls_lib.priority_set(t->s, c->priority);
    if (r >= 0)
        r = gnutls_lib.credentials_set(t->s, types[c->kind], c->cred);
    if (r >= 0 && t->hostname && !c->server && !is_address(t->hostname))
        r = gnutls_lib.server_name_set(t->s, GNUTLS_NAME_DNS, t->hostname, strlen(t->hostname));
    if (r < 0)
        return r;
    if (c->server && c->kind == TLS_X509 && c->verify)
        gnutls_lib.certificate_server_set_request(t->s, GNUTLS_CERT_REQUIRE);
    gnutls_lib.transport_set_ptr(t->s, t);
    gnutls_lib.transport_set_push_function(t->s, push);
    gnutls_lib.transport_set_pull_function(t->s, pull);
    gnutls_lib.transport_set_pull_timeout_function(t->s, pull_ready);
    return 0;
}

int tls_session_new(struct tls_creds *c, int fd, const char *hostname, struct tls_session **ret_t, struct byre_err *err)
{
    struct tls_session *t = calloc(1, sizeof *t);
    if (!t)
        return byre_fail(err, NOMEM, "no memory for a TLS connection");
    t->creds = tls_creds_ref(c);
    t->fd = fd;
    t->hostname = hostname;
    t->in.p = malloc(IN_BYTES);
    t->stage = malloc(RECORD);
    int r = t->in.p && t->stage ? setup(t) : GNUTLS_E_MEMORY_ERROR;
    if (r < 0) {
        int code = r == GNUTLS_E_MEMORY_ERROR ? byre_fail(err, NOMEM, "no memory for a TLS connection")
                                              : byre_fail(err, BAD_OPTION, "'%s' cannot be used: %s", c->id, gnutls_lib.strerror(r));
        tls_session_free(t);
        return code;
    }
    *ret_t = t;
    return 0;
}

const char *tls_peer(const struct tls_session *t)
{
    return t->peer;
}

/* ---- the socket ---- */

static int send_wire(struct co *co, struct tls_session *t)
{
    while (t->wire.at < t->wire.len) {
        struct iovec v = { t->wire.p + t->wire.at, t->wire.len - t->wire.at };
        struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };
        int64_t n = rt_sendmsg(co, t->fd, &m);
        if (n <= 0)
            return n ? (int)n : -EPIPE;
        t->wire.at += (size_t)n;
        t->records = 0;                  /* it suspended */
    }
    return 0;
}

/* Empties `out`. Whoever finds another one at it leaves it to that one, or (wait) waits until it is done. */
static int flush(struct co *co, struct tls_session *t, bool wait)
{
    while (t->flushing && wait)
        co_wait(co, &t->flushed);
    if (t->flushing)
        return 0;
    t->flushing = true;
    int r = 0;
    while (!r && !t->broken && (t->out.len || t->wire.at < t->wire.len)) {
        if (t->wire.at == t->wire.len) {
            struct tls_buf full = t->out;
            t->out = t->wire;            /* I3 */
            t->out.at = t->out.len = 0;
            t->wire = full;
        }
        r = send_wire(co, t);
    }
    t->flushing = false;
    t->broken |= r != 0 && r != -ECANCELED;      /* a cancelled receiver leaves the rest to the sender */
    co_wake_all(&t->flushed);
    return r ? r : t->broken ? -EPIPE : 0;
}

static int fill(struct co *co, struct tls_session *t)
{
    int64_t n = rt_recv(co, t->fd, t->in.p, IN_BYTES);
    t->records = 0;
    if (n < 0)
        return (int)n;
    t->in.at = 0;
    t->in.len = (size_t)n;
    t->end = n == 0;
    return 0;
}

/* ---- the handshake ---- */

struct step { struct tls_session *t; int result; };

/* The library's numbers are not errnos: they travel apart. */
static int64_t step(void *arg)
{
    struct step *s = arg;
    s->result = gnutls_lib.handshake(s->t->s);
    return 0;
}

static int told(struct tls_session *t, int r, struct byre_err *err)
{
    const char *alert = r == GNUTLS_E_FATAL_ALERT_RECEIVED ? gnutls_lib.alert_get_name(gnutls_lib.alert_get(t->s)) : NULL;
    return byre_fail(err, PROTOCOL, "the TLS handshake failed: %s%s%s", gnutls_lib.strerror(r), alert ? " " : "", alert ? alert : "");
}

static int shake(struct co *co, struct tls_session *t, struct byre_err *err)
{
    for (;;) {
        struct step s = { .t = t };
        if (rt_cpu(co, step, &s))            /* I4 */
            return byre_fail(err, NOMEM, "no memory for a TLS handshake");
        bool over = s.result < 0 && s.result != GNUTLS_E_AGAIN && s.result != GNUTLS_E_INTERRUPTED && gnutls_lib.error_is_fatal(s.result);
        if (over)
            (void)gnutls_lib.alert_send_appropriate(t->s, s.result);      /* the peer learns why, if it can */
        int r = flush(co, t, true);
        if (over)
            return told(t, s.result, err);
        if (!r && s.result == 0)
            return 0;
        if (!r && t->in.at == t->in.len)
            r = fill(co, t);
        if (r)
            return byre_fail_code(err, SYSTEM, r, "the TLS handshake failed: %s", r == -ETIMEDOUT ? "no answer" : strerror(-r));
    }
}

/* ---- who is there ---- */

struct checking { struct tls_session *t; unsigned status; struct byre_err *err; };

static int take_name(struct tls_session *t, struct byre_err *err)
{
    unsigned n;
    const gnutls_datum_t *list = gnutls_lib.certificate_get_peers(t->s, &n);
    gnutls_x509_crt_t crt;
    size_t len = NAME_MAX_BYTES;
    if (!list || !n || gnutls_lib.x509_crt_init(&crt) < 0)
        return byre_fail(err, PERMISSION, "the peer has no certificate");
    t->peer = malloc(len);
    int r = t->peer ? gnutls_lib.x509_crt_import(crt, list, GNUTLS_X509_FMT_DER) : GNUTLS_E_MEMORY_ERROR;
    if (r >= 0)
        r = gnutls_lib.x509_crt_get_dn(crt, t->peer, &len);
    gnutls_lib.x509_crt_deinit(crt);
    return r < 0 ? byre_fail(err, PERMISSION, "the name in the peer's certificate cannot be read: %s", gnutls_lib.strerror(r)) : 0;
}

static int check_certificate(struct tls_session *t, struct byre_err *err)
{
    const char *purpose = t->creds->server ? GNUTLS_KP_TLS_WWW_CLIENT : GNUTLS_KP_TLS_WWW_SERVER;
    gnutls_typed_vdata_st what[2] = { { .type = GNUTLS_DT_KEY_PURPOSE_OID, .data = (unsigned char *)(uintptr_t)purpose },
                                      { .type = GNUTLS_DT_DNS_HOSTNAME, .data = (unsigned char *)(uintptr_t)t->hostname } };
    unsigned status = 0;
    int r = gnutls_lib.certificate_verify_peers(t->s, what, t->creds->server ? 1 : 2, &status);
    if (r == GNUTLS_E_NO_CERTIFICATE_FOUND)
        return byre_fail(err, PERMISSION, "the peer has no certificate");
    if (r < 0)
        return byre_fail(err, PERMISSION, "the peer's certificate cannot be checked: %s", gnutls_lib.strerror(r));
    if (status)
        return byre_fail(err, PERMISSION, "the peer's certificate is not accepted: %s%s%s%s", tls_verify_text(status), status & GNUTLS_CERT_UNEXPECTED_OWNER ? ", not of '" : "",
                         status & GNUTLS_CERT_UNEXPECTED_OWNER ? t->hostname : "", status & GNUTLS_CERT_UNEXPECTED_OWNER ? "'" : "");
    return take_name(t, err);
}

/* On a worker: signatures are computed. */
static int64_t check(void *arg)
{
    struct checking *k = arg;
    struct tls_session *t = k->t;
    if (t->creds->kind == TLS_X509)
        return t->creds->verify ? check_certificate(t, k->err) : 0;
    const char *user = t->creds->kind == TLS_PSK && t->creds->server ? gnutls_lib.psk_server_get_username(t->s) : NULL;
    if (!user)
        return t->creds->kind == TLS_PSK && t->creds->server ? byre_fail(k->err, PERMISSION, "the peer has no name") : 0;
    t->peer = strdup(user);
    return t->peer ? 0 : byre_fail(k->err, NOMEM, "no memory for a TLS connection");
}

int tls_handshake(struct co *co, struct tls_session *t, struct byre_err *err)
{
    struct byre_err why = { 0 };
    if (tls_creds_needs_hostname(t->creds) && !t->hostname)
        return byre_fail(err, BAD_OPTION, "TLS: the certificate of the server is checked against the name of its host: give tls-hostname");
    int r = shake(co, t, err);
    if (r)
        return r;
    struct checking k = { .t = t, .err = &why };
    r = (int)rt_cpu(co, check, &k);
    if (r && !why.text[0])
        r = byre_fail(&why, NOMEM, "no memory for a TLS handshake");
    if (r) {
        if (err)
            *err = why;
        tls_bye(t, true);
    }
    return r;
}

/* ---- records ---- */

/* Result of the library's call as a result of ours. */
static int64_t failed(struct tls_session *t, ssize_t r)
{
    t->broken = true;
    return r == GNUTLS_E_PREMATURE_TERMINATION ? 0 : r == GNUTLS_E_MEMORY_ERROR ? -ENOMEM : -EPROTO;
}

/* What has arrived and fits; 0: nothing that is whole has. *ret_end: there will be nothing more. */
static int64_t take(struct tls_session *t, uint8_t *buf, size_t len, bool *ret_end)
{
    size_t got = 0;
    while (got < len && t->records < TURN_RECORDS) {
        ssize_t r = gnutls_lib.record_recv(t->s, buf + got, min_u64(len - got, RECORD));
        t->records++;
        if (r > 0) {
            got += (size_t)r;
        } else if (r == 0) {
            *ret_end = true;
            break;
        } else if (r == GNUTLS_E_AGAIN && t->in.at == t->in.len && !t->end) {
            break;
        } else if (r == GNUTLS_E_REHANDSHAKE || (gnutls_lib.error_is_fatal((int)r))) {
            *ret_end = true;
            return got ? (int64_t)got : failed(t, r);      /* what was whole before it counts */
        }
    }
    return (int64_t)got;
}

int64_t tls_recv(struct co *co, struct tls_session *t, void *buf, size_t len)
{
    for (;;) {
        bool end = t->broken;
        int64_t n = end ? 0 : take(t, buf, len, &end);
        if (n || end)
            return n;
        int r = t->out.len ? flush(co, t, false) : 0;      /* an answer of the protocol itself */
        if (!r && t->records >= TURN_RECORDS) {
            co_yield(co);
            t->records = 0;
            continue;                            /* a part of a record may lie in the library when nothing does in `in` */
        }
        if (!r && t->in.at == t->in.len)
            r = fill(co, t);
        if (r)
            return r;
    }
}

static int put_record(struct tls_session *t, const uint8_t *p, size_t len)
{
    while (len) {
        ssize_t r = gnutls_lib.record_send(t->s, p, len);
        if (r == GNUTLS_E_INTERRUPTED || r == GNUTLS_E_AGAIN)
            continue;                    /* I1: the buffer takes all, so it does not come to that */
        if (r <= 0) {
            t->broken = true;
            return r == GNUTLS_E_MEMORY_ERROR ? -ENOMEM : -EPIPE;
        }
        p += r;
        len -= (size_t)r;
    }
    return 0;
}

/* Up to TLS_BATCH bytes as records: long pieces as they lie, short ones together. Returns how many. */
static int64_t encrypt(struct tls_session *t, const struct iovec *iov, unsigned cnt)
{
    size_t done = 0, staged = 0;
    int r = 0;
    for (unsigned i = 0; !r && i < cnt && done < TLS_BATCH; i++) {
        const uint8_t *p = iov[i].iov_base;
        size_t left = min_u64(iov[i].iov_len, TLS_BATCH - done);
        done += left;
        while (!r && left) {
            size_t n = min_u64(left, RECORD - staged);
            if (n == RECORD) {
                r = put_record(t, p, n);
            } else {
                memcpy(t->stage + staged, p, n);
                staged += n;
            }
            p += n;
            left -= n;
            if (!r && staged == RECORD) {
                r = put_record(t, t->stage, staged);
                staged = 0;
            }
        }
    }
    if (!r && staged)
        r = put_record(t, t->stage, staged);
    return r ? r : (int64_t)done;
}

int64_t tls_sendmsg(struct co *co, struct tls_session *t, const struct iovec *iov, unsigned cnt)
{
    if (t->broken)
        return -EPIPE;
    int64_t n = encrypt(t, iov, cnt);
    int r = n > 0 ? flush(co, t, true) : 0;
    return r ? r : n;
}

void tls_bye(struct tls_session *t, bool denied)
{
    if (t->broken || t->flushing || t->wire.at < t->wire.len)
        return;
    if (denied)
        (void)gnutls_lib.alert_send(t->s, GNUTLS_AL_FATAL, GNUTLS_A_ACCESS_DENIED);
    else
        (void)gnutls_lib.bye(t->s, GNUTLS_SHUT_WR);
    if (t->out.len)
        (void)send(t->fd, t->out.p, t->out.len, MSG_DONTWAIT | MSG_NOSIGNAL);      /* a courtesy: nobody waits for it */
    t->broken = true;
}
