/* SPDX-License-Identifier: MIT
 *
 * nbd_dial.c: sockets to NBD servers.
 *
 * Purpose      Names become addresses on a worker thread; each address is tried in turn. libnbd could do both, but would keep the
 *              loop from everything else while a name server thinks.
 * Owns         The socket until it is handed out.
 * Invariants   None.
 * Order        None.
 * Concurrency  Any loop; suspends. The coroutine's deadline and cancellation end a connect, not the look-up of a name.
 * Failure      The error of the last address.
 * Tests        tests/interop/test_nbd_client.py
 */
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

#include "base/checked.h"
#include "rt/io.h"
#include "rt/tcp.h"
#include "rt/unix_path.h"
#include "stor/fdset.h"
#include "stor/nbd_priv.h"

#define PORT "10809"
#define SEND_BYTES (1 << 20)

char *nbdc_peer(const struct stor_nbd_opts *o)
{
    char *text = NULL;
    if (o->where == STOR_NBD_UNIX)
        return strdup(o->path);
    if (o->where == STOR_NBD_FD)
        return asprintf(&text, "at the descriptor '%s'", o->fdname) < 0 ? NULL : text;
    bool colons = strchr(o->host, ':');
    const char *port = o->port ? o->port : PORT;
    return asprintf(&text, colons ? "%s[%s]:%s" : "%s%s:%s", o->where == STOR_NBD_VSOCK ? "vsock:" : "", o->host, port) < 0 ? NULL : text;
}

static int connect_to(struct co *co, const struct sockaddr *sa, socklen_t len, int *ret_fd)
{
    int fd = socket(sa->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    unix_refuse_descriptors(fd);
    int r = rt_connect(co, fd, sa, len);
    if (r < 0) {
        close(fd);
        return r;
    }
    *ret_fd = fd;
    return 0;
}

/* The default holds a part of a large request only: then client and server wake each other for each such part. TCP sizes its own. */
static void widen(int fd)
{
    int bytes = SEND_BYTES;
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);       /* what the system does not allow costs time only */
}

static int dial_unix(struct co *co, const struct stor_nbd_opts *o, int *ret_fd)
{
    struct sockaddr_un un;
    socklen_t len;
    if (!unix_addr_fill(&(struct unix_addr){ o->path, o->abstract, o->padded }, &un, &len))
        return -ENAMETOOLONG;
    int r = connect_to(co, (const struct sockaddr *)&un, len, ret_fd);
    if (!r)
        widen(*ret_fd);
    return r;
}

struct lookup { const struct stor_nbd_opts *o; struct addrinfo *list; };

static int64_t lookup_blocking(void *arg)
{
    struct lookup *l = arg;
    const struct stor_nbd_opts *o = l->o;
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG };
    if (o->ipv4 == STOR_NBD_OFF || (o->ipv6 == STOR_NBD_ON && o->ipv4 == STOR_NBD_UNSAID))
        hints.ai_family = AF_INET6;
    else if (o->ipv6 == STOR_NBD_OFF || (o->ipv4 == STOR_NBD_ON && o->ipv6 == STOR_NBD_UNSAID))
        hints.ai_family = AF_INET;
    int r = getaddrinfo(o->host, o->port ? o->port : PORT, &hints, &l->list);
    if (r == EAI_NONAME || r == EAI_ADDRFAMILY) {        /* addresses of this machine are found without a configured network too */
        hints.ai_flags = 0;
        r = getaddrinfo(o->host, o->port ? o->port : PORT, &hints, &l->list);
    }
    return r;
}

static int dial_inet(struct co *co, const struct stor_nbd_opts *o, int *ret_fd, struct byre_err *err)
{
    struct lookup l = { .o = o };
    int64_t e = rt_blocking(co, lookup_blocking, &l);
    if (e == -ENOMEM)
        return -ENOMEM;
    if (e)
        return byre_fail(err, NOT_FOUND, "the NBD server '%s' (port %s) cannot be found: %s", o->host, o->port ? o->port : PORT, gai_strerror((int)e));
    int r = -EADDRNOTAVAIL;
    for (const struct addrinfo *a = l.list; a; a = a->ai_next) {
        r = connect_to(co, a->ai_addr, a->ai_addrlen, ret_fd);
        if (r == 0 || r == -ECANCELED || r == -ETIMEDOUT)
            break;
    }
    freeaddrinfo(l.list);
    if (r == 0)
        tcp_tune(*ret_fd);
    return r;
}

static bool number_of(const char *text, uint32_t *ret)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    *ret = (uint32_t)v;
    return text[0] >= '0' && text[0] <= '9' && !*end && !errno && v <= UINT32_MAX;
}

static int dial_vsock(struct co *co, const struct stor_nbd_opts *o, int *ret_fd, struct byre_err *err)
{
    struct sockaddr_vm vm = { .svm_family = AF_VSOCK };
    if (!number_of(o->host, &vm.svm_cid) || !number_of(o->port ? o->port : PORT, &vm.svm_port))
        return byre_fail(err, BAD_OPTION, "NBD: '%s' and '%s' are no context identifier and port of a vsock", o->host, o->port ? o->port : PORT);
    return connect_to(co, (const struct sockaddr *)&vm, sizeof vm, ret_fd);
}

/* One that somebody else has made: it is there once. */
static int dial_fd(const struct stor_nbd_opts *o, int *ret_fd, struct byre_err *err)
{
    int fd, type = 0;
    socklen_t n = sizeof type;
    if (!o->passed)
        return byre_fail(err, NOT_FOUND, "NBD: the connection that was passed as '%s' has ended, and it cannot be made again from here", o->fdname);
    int r = passed_socket_take(o->passed, o->fdname, &fd, err);
    if (r)
        return r;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &n) || type != SOCK_STREAM) {
        close(fd);
        return byre_fail(err, BAD_ARGUMENT, "NBD: the descriptor '%s' is no stream socket", o->fdname);
    }
    if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0) {
        r = -errno;
        close(fd);
        return r;
    }
    widen(fd);
    tcp_tune(fd);
    *ret_fd = fd;
    return 0;
}

int nbdc_dial(struct co *co, const struct stor_nbd_opts *o, int *ret_fd, struct byre_err *err)
{
    struct byre_err why = { 0 };
    int r;
    switch (o->where) {
    case STOR_NBD_UNIX: r = dial_unix(co, o, ret_fd); break;
    case STOR_NBD_FD: r = dial_fd(o, ret_fd, &why); break;
    case STOR_NBD_INET: r = dial_inet(co, o, ret_fd, &why); break;
    default: r = dial_vsock(co, o, ret_fd, &why);
    }
    if (r < 0 && why.text[0]) {
        if (err)
            *err = why;
        return r;
    }
    if (r < 0) {
        char *peer = nbdc_peer(o);
        r = byre_fail_code(err, SYSTEM, r, "cannot connect to the NBD server %s: %s", peer ? peer : "", strerrordesc_np(-r));
        free(peer);
    }
    return r;
}
