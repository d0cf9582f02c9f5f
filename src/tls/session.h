/* SPDX-License-Identifier: MIT
 *
 * session.h: a connected socket, spoken over with TLS: what rt_recv and rt_sendmsg are for a plain one.
 *
 *     tls_session_new -> tls_handshake -> tls_recv, tls_sendmsg ... -> tls_bye -> tls_session_free
 *
 * One coroutine may receive while another one sends; both on one loop, and on another one later when nobody is inside. Nothing blocks it: the handshake's
 * arithmetic runs on the CPU pool, and records are done TLS_BATCH bytes at a time, between which others get their turn.
 */
#ifndef TLS_SESSION_H
#define TLS_SESSION_H

#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"
#include "rt/co.h"
#include "tls/creds.h"

#define TLS_BATCH (64u << 10)

struct tls_session;
/* fd is borrowed. hostname (NULL: none; read by tls_handshake): whom a client means. */
MUST_USE int tls_session_new(struct tls_creds *c, int fd, const char *hostname, struct tls_session **ret_t, struct byre_err *err);
void tls_session_free(struct tls_session *t);    /* NULL ok */

/* With the check of the peer. The coroutine's deadline and cancellation hold. PROTOCOL, PERMISSION (the peer's certificate), SYSTEM. Suspends. */
MUST_USE int tls_handshake(struct co *co, struct tls_session *t, struct byre_err *err);
/* The distinguished name of the peer's certificate, or its user; NULL: it has proved none. After the handshake. */
const char *tls_peer(const struct tls_session *t);

/* As rt_recv and rt_sendmsg: at least one byte and maybe fewer than asked for; 0: the end; -errno. Suspend. */
MUST_USE int64_t tls_recv(struct co *co, struct tls_session *t, void *buf, size_t len);
MUST_USE int64_t tls_sendmsg(struct co *co, struct tls_session *t, const struct iovec *iov, unsigned cnt);
/* A farewell, if the socket takes it at once. denied: the peer is told that it may not be here. Nobody receives or sends any more. */
void tls_bye(struct tls_session *t, bool denied);

#endif
