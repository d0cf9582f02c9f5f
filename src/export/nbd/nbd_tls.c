/* SPDX-License-Identifier: MIT
 *
 * nbd_tls.c: TLS on a connection, and who may come in (FEATURES 10.003).
 *
 * Purpose      Between the answer to STARTTLS and the first option behind it.
 * Owns         the session until the connection has it
 * Invariants   I1 a connection has a session only when its peer was checked and, where there are rules, allowed
 *              I2 rules that are not there allow nobody
 *              I3 rules that ask somebody else (PAM) and are not answered keep nobody from the blocking pool: only others who come in wait
 * Concurrency  the connection's loop; rules may read files and ask others, on threads for what may stand still
 * Failure      the connection ends
 * Tests        tests/daemon/tls_test.py
 */
#include "export/nbd/nbd_priv.h"
#include "tls/objects.h"

#define BUSY_NS UINT64_C(20000000)
#define BUSY_TRIES 250u

struct asking { struct nbd_door *d; const char *peer; };

static int64_t ask_rules(void *arg)
{
    struct asking *a = arg;
    struct authz *rules = tls_set_authz(a->d->objects, a->d->authz);
    bool yes = rules && authz_allows(rules, a->peer);      /* I2 */
    authz_unref(rules);
    return yes ? 0 : -EACCES;
}

/* I3: all of those threads are taken only while many stand still, and then nobody comes in. */
static int allowed(struct co *co, struct asking *a)
{
    int64_t r;
    for (unsigned tries = 0; (r = rt_blocking_long(co, ask_rules, a)) == -EBUSY && tries < BUSY_TRIES; tries++)
        if (co_sleep(co, BUSY_NS))
            break;
    return (int)r;
}

int nbd_conn_starttls(struct co *co, struct nbd_conn *c)
{
    struct nbd_door *d = c->door;
    struct tls_session *t;
    int r = tls_session_new(d->creds, c->fd, NULL, &t, NULL);
    if (r)
        return r;
    r = tls_handshake(co, t, NULL);
    if (!r && d->authz) {
        struct asking a = { d, tls_peer(t) };
        r = allowed(co, &a);
        if (r)
            tls_bye(t, true);
    }
    if (r)
        tls_session_free(t);
    else
        c->tls = t;                      /* I1 */
    return r;
}
