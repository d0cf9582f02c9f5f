/* SPDX-License-Identifier: MIT
 *
 * nbd_door.c: doors: groups of listeners with terms of their own (FEATURES 10.024, G.042).
 *
 * Purpose      One server may be reached at several addresses: without TLS by a socket of this machine, with TLS from others.
 * Owns         doors; credentials are counted
 * Invariants   I1 a door is not freed before its last listener and its last connection
 *              I2 rules about names stand only where names are proved
 * Concurrency  home loop
 * Failure      nothing is made
 * Tests        nbd_server_test.c, tests/daemon/tls_test.py
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <linux/vm_sockets.h>

#include "export/nbd/nbd_priv.h"

void nbd_door_forget(struct nbd_door *d)
{
    if (!d)
        return;
    INV(I1, !d->n_conns);
    list_remove(&d->link);
    tls_creds_unref(d->creds);
    free(d->id);
    free(d->authz);
    free(d);
}

struct nbd_door *nbd_door_next(struct nbd_server *s, struct nbd_door *prev)
{
    struct list_node *n = prev ? list_next(&s->doors, &prev->link) : list_first(&s->doors);
    return n ? CONTAINER_OF(n, struct nbd_door, link) : NULL;
}

struct nbd_door *nbd_door_find(struct nbd_server *s, const char *id)
{
    struct nbd_door *d = nbd_door_next(s, NULL);
    while (d && (!d->id || strcmp(d->id, id)))
        d = nbd_door_next(s, d);
    return d;
}

static int check(struct nbd_server *s, const struct nbd_door_opts *o, struct byre_err *err)
{
    if (s->stopping)
        return byre_fail(err, CANCELLED, "NBD server: it is being stopped");
    if (o->id && nbd_door_find(s, o->id))
        return byre_fail(err, EXISTS, "there is an NBD server '%s' already", o->id);
    if (o->authz && !o->creds)
        return byre_fail(err, BAD_ARGUMENT, "NBD server: tls-authz needs tls-creds");
    if (o->authz && !tls_creds_names_peer(o->creds))      /* I2 */
        return byre_fail(err, BAD_ARGUMENT, "NBD server: tls-authz '%s' decides by names, and clients of '%s' prove none", o->authz, tls_creds_id(o->creds));
    return 0;
}

int nbd_door_new(struct nbd_server *s, const struct nbd_door_opts *o, struct nbd_door **ret_d, struct byre_err *err)
{
    ASSERT(!s->front || rt_on_loop(s->home));      /* the first one is made with the server */
    int r = check(s, o, err);
    if (r)
        return r;
    struct nbd_door *d = calloc(1, sizeof *d);
    if (!d)
        return byre_fail(err, NOMEM, "NBD server: no memory");
    list_node_init(&d->link);
    d->server = s;
    d->id = o->id ? strdup(o->id) : NULL;
    d->authz = o->authz ? strdup(o->authz) : NULL;
    d->connections_max = o->connections_max;
    d->handshake_ms = o->handshake_ms;
    d->creds = o->creds ? tls_creds_ref(o->creds) : NULL;
    d->objects = o->objects;
    if ((o->id && !d->id) || (o->authz && !d->authz)) {
        nbd_door_forget(d);
        return byre_fail(err, NOMEM, "NBD server: no memory");
    }
    list_push_back(&s->doors, &d->link);
    *ret_d = d;
    return 0;
}

static struct nbd_listener *listener_of(const struct nbd_door *d, unsigned i)
{
    LIST_FOR(n, &d->server->listeners) {
        struct nbd_listener *l = CONTAINER_OF(n, struct nbd_listener, link);
        if (l->door == d && !i--)
            return l;
    }
    return NULL;
}

void nbd_door_close(struct co *co, struct nbd_door *d)
{
    struct nbd_server *s = d->server;
    ASSERT_LOOP(s->home);
    for (struct nbd_listener *l; (l = listener_of(d, 0));)
        nbd_listener_stop(co, l);
    nbd_conns_stop(s, NULL, d);
    while (d->n_conns)
        co_wait(co, &s->changed);
    if (d == s->front)
        return;                          /* goes with the server */
    nbd_door_forget(d);
}

struct nbd_door_info nbd_door_get(const struct nbd_door *d)
{
    struct nbd_door_info i = { .id = d->id, .creds = d->creds ? tls_creds_id(d->creds) : NULL, .authz = d->authz, .connections = d->n_conns,
                               .connections_max = d->connections_max };
    while (listener_of(d, i.listeners))
        i.listeners++;
    return i;
}

char *nbd_door_address(const struct nbd_door *d, unsigned i)
{
    const struct nbd_listener *l = listener_of(d, i);
    union { struct sockaddr_storage ss; struct sockaddr_in in; struct sockaddr_in6 in6; struct sockaddr_un un; struct sockaddr_vm vm; } a = { .ss.ss_family = AF_UNSPEC };
    socklen_t n = sizeof a.ss;
    char host[INET6_ADDRSTRLEN] = "", *text = NULL;
    int r = -1;
    if (!l)
        return NULL;
    if (l->path)
        r = asprintf(&text, "unix:%s", l->path);
    else if (getsockname(l->fd, (struct sockaddr *)&a.ss, &n))
        r = asprintf(&text, "fd");
    else if (a.ss.ss_family == AF_INET)
        r = asprintf(&text, "%s:%u", inet_ntop(AF_INET, &a.in.sin_addr, host, sizeof host), ntohs(a.in.sin_port));
    else if (a.ss.ss_family == AF_INET6)
        r = asprintf(&text, "[%s]:%u", inet_ntop(AF_INET6, &a.in6.sin6_addr, host, sizeof host), ntohs(a.in6.sin6_port));
    else if (a.ss.ss_family == AF_VSOCK)
        r = asprintf(&text, "vsock:%u:%u", a.vm.svm_cid, a.vm.svm_port);
    else if (a.ss.ss_family == AF_UNIX && n > offsetof(struct sockaddr_un, sun_path) && !a.un.sun_path[0])
        r = asprintf(&text, "unix:@%.*s", (int)(n - offsetof(struct sockaddr_un, sun_path) - 1), a.un.sun_path + 1);
    else
        r = asprintf(&text, "unix:%.107s", a.ss.ss_family == AF_UNIX ? a.un.sun_path : "");
    return r < 0 ? NULL : text;
}
