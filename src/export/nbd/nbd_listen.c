/* SPDX-License-Identifier: MIT
 *
 * nbd_listen.c: listening sockets and accepting.
 *
 * Purpose      Makes unix and TCP listeners, accepts within the limit of connections, removes unix paths at the end.
 * Owns         listener descriptors and the unix paths made here.
 * Invariants   I1 a path is removed only if it is still the socket that was made here, and then always: also when nobody listens there after all,
 *                 and when the folder is another one by then (--daemonize).
 *              I2 accepting goes on whatever a client or a shortage of descriptors does.
 *              I3 no client can send descriptors, which nobody here takes: closing one may take long, and would be done by the loop. On a kernel that
 *                 cannot keep them out (before Linux 6.16), or from who has connected to a passed socket before, whoever may connect to a unix socket
 *                 can stop a loop so; the cheap way against it, to receive control data with each request, costs every guest more than it is worth.
 * Concurrency  home loop; blocking calls (name lookup, unlink, bind to a path) run on the blocking pool.
 * Failure      byre_err names the address.
 * Tests        tests/nbd/nbd_listen_test.py
 */
#include <fcntl.h>
#include <inttypes.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "base/checked.h"
#include "export/nbd/nbd_priv.h"
#include "rt/tcp.h"
#include "rt/unix_path.h"

#define BACKLOG SOMAXCONN
#define ACCEPT_PAUSE_NS UINT64_C(100000000)      /* after a failure, such as a shortage of descriptors */
#define PORT_TRIES 20                            /* for one free port on several addresses */

/* ---- accepting ---- */

static void tune(int fd)
{
    tcp_tune(fd);
    unix_refuse_descriptors(fd);         /* I3 */
}

static void accept_main(struct co *co, void *arg)
{
    struct nbd_listener *l = arg;
    struct nbd_door *d = l->door;
    while (!co_cancelled(co)) {
        int fd = rt_accept(co, l->fd);
        if (fd == -ECONNABORTED || fd == -EINTR)
            continue;                                 /* the client went away before it was accepted */
        if (fd < 0) {
            (void)co_sleep(co, ACCEPT_PAUSE_NS);      /* woken early only to end */
            continue;
        }
        if (d->server->stopping || (d->connections_max && d->n_conns >= d->connections_max)) {
            close(fd);
            continue;
        }
        tune(fd);
        nbd_conn_start(d, fd);
    }
}

static int64_t unlink_path(void *arg)
{
    struct nbd_listener *l = arg;
    struct stat st;
    if (!lstat(l->real, &st) && st.st_dev == l->path_id.st_dev && st.st_ino == l->path_id.st_ino)
        (void)unlink(l->real);      /* I1; nothing can be done about a failure */
    return 0;
}

void nbd_listener_free(struct nbd_listener *l)
{
    if (!l)
        return;
    if (l->fd >= 0)
        close(l->fd);
    free(l->path);
    free(l->real);
    free(l);
}

void nbd_listener_stop(struct co *co, struct nbd_listener *l)
{
    rt_cancel(&l->task);
    rt_task_join(co, &l->task);
    if (l->real && rt_blocking(co, unlink_path, l) < 0)
        (void)unlink_path(l);
    list_remove(&l->link);
    l->door->server->n_listeners--;
    nbd_listener_free(l);
}

/* path: as it was given; real: the same without links, from the root. */
struct where { char *path, *real; };

/* Takes fd and what it was made at (malloc'ed; NULL: no path), also on failure. */
static int start(struct nbd_door *d, int fd, struct where at, struct byre_err *err)
{
    struct nbd_listener *l = calloc(1, sizeof *l);
    if (!l) {
        close(fd);
        free(at.path);
        free(at.real);
        return byre_fail(err, NOMEM, "NBD server: no memory for a listener");
    }
    l->door = d;
    l->fd = fd;
    l->path = at.path;
    l->real = at.real;
    if (l->real && lstat(l->real, &l->path_id))
        l->path_id = (struct stat){ 0 };
    int r = rt_task_start(d->server->home, &l->task, accept_main, l);
    if (r) {
        nbd_listener_free(l);
        return byre_fail(err, NOMEM, "NBD server: no memory for a listener");
    }
    list_push_back(&d->server->listeners, &l->link);
    d->server->n_listeners++;
    return 0;
}

int nbd_server_listen_fd(struct co *co, struct nbd_door *d, int fd, struct byre_err *err)
{
    ASSERT_LOOP(d->server->home);
    int listens = 0;
    socklen_t n = sizeof listens;
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &n) || !listens) {
        close(fd);
        return byre_fail(err, BAD_ARGUMENT, "NBD server: descriptor %d is no listening socket", fd);
    }
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    (void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    unix_refuse_descriptors(fd);
    return start(d, fd, (struct where){ 0 }, err);
}

/* ---- unix ---- */

struct bind_job { struct sockaddr_un sa; socklen_t len; bool abstract, label_fails; const char *label; int fd; struct stat id; char *real; };      /* id, real: of the path, where one was made */

/* The security label of sockets that this thread makes from now on (SELinux; FEATURES 7.018); NULL: the usual one. */
static int set_label(const char *label)
{
    int fd = open("/proc/thread-self/attr/sockcreate", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    size_t len = label ? strlen(label) + 1 : 1;
    ssize_t n = write(fd, label ? label : "\n", len);
    int r = n < 0 ? -errno : (size_t)n < len ? -EIO : 0;
    close(fd);
    return r;
}

/* What bind made is of no use. */
static void remove_path(const struct bind_job *j)
{
    struct stat st;
    if (!j->abstract && j->id.st_ino && !lstat(j->sa.sun_path, &st) && st.st_dev == j->id.st_dev && st.st_ino == j->id.st_ino)
        (void)unlink(j->sa.sun_path);        /* I1 */
}

static int64_t give_up(void *arg)
{
    remove_path(arg);
    return 0;
}

static int64_t bind_path(void *arg)
{
    struct bind_job *j = arg;
    j->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (j->fd < 0)
        return -errno;
    unix_refuse_descriptors(j->fd);
    int r = unix_bind(j->fd, &j->sa, j->len, j->abstract);
    if (!r && !j->abstract && lstat(j->sa.sun_path, &j->id))
        j->id = (struct stat){ 0 };
    if (!r && listen(j->fd, BACKLOG))
        r = -errno;
    if (!r && !j->abstract && !(j->real = unix_real_path(&j->sa)))
        r = -ENOMEM;
    if (r) {
        close(j->fd);
        remove_path(j);
    }
    return r;
}

/* The thread goes on to other work: it does not keep the label. */
static int64_t bind_labelled(void *arg)
{
    struct bind_job *j = arg;
    int r = set_label(j->label);
    j->label_fails = r != 0;
    if (r)
        return r;
    r = (int)bind_path(j);
    int back = set_label(NULL);
    j->label_fails = !r && back;
    if (j->label_fails) {
        close(j->fd);
        remove_path(j);
    }
    return r ? r : back;
}

int nbd_server_listen_unix(struct co *co, struct nbd_door *d, const struct unix_addr *a, struct byre_err *err)
{
    ASSERT_LOOP(d->server->home);
    struct bind_job j = { .abstract = a->abstract, .label = a->label };
    if (!unix_addr_fill(a, &j.sa, &j.len))
        return byre_fail(err, BAD_ARGUMENT, "NBD server: socket path '%.120s' must have 1 to %u bytes", a->path, UNIX_PATH_MAX);
    char *copy = a->abstract ? NULL : strdup(a->path);
    int64_t r = copy || a->abstract ? rt_blocking(co, a->label ? bind_labelled : bind_path, &j) : -ENOMEM;
    if (!r) {
        int started = start(d, j.fd, (struct where){ copy, j.real }, err);
        if (started && rt_blocking(co, give_up, &j) < 0)
            (void)give_up(&j);
        return started;
    }
    free(copy);
    free(j.real);
    if (j.label_fails)
        return byre_fail_code(err, SYSTEM, (int)r, "NBD server: the socket '%s' cannot have the SELinux label '%.200s': %s", a->path, a->label, strerror((int)-r));
    if (r == -EADDRINUSE && a->abstract)
        return byre_fail(err, EXISTS, "NBD server: somebody listens under the abstract name '%s' already", a->path);
    if (r == -EADDRINUSE)
        return byre_fail(err, EXISTS, "NBD server: '%s' exists and is no abandoned socket", a->path);
    return byre_fail_code(err, SYSTEM, (int)r, "NBD server: cannot listen on '%s': %s", a->path, strerror((int)-r));
}

/* ---- virtual machines ---- */

int nbd_server_listen_vsock(struct co *co, struct nbd_door *d, const struct nbd_vsock_addr *a, struct byre_err *err)
{
    ASSERT_LOOP(d->server->home);
    ASSERT(co);
    struct sockaddr_vm vm = { .svm_family = AF_VSOCK, .svm_cid = a->cid, .svm_port = a->port };
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return byre_fail_code(err, NOT_SUPPORTED, -errno, "NBD server: this kernel has no sockets of virtual machines (vsock): %s", strerror(errno));
    if (bind(fd, (struct sockaddr *)&vm, sizeof vm) || listen(fd, BACKLOG)) {
        int r = -errno;
        close(fd);
        return byre_fail_code(err, SYSTEM, r, "NBD server: cannot listen on vsock %u port %u: %s", a->cid, a->port, strerror(-r));
    }
    return start(d, fd, (struct where){ 0 }, err);
}

/* ---- TCP ---- */

#define ADDRS_MAX 8u

struct tcp_job {
    const char *host;
    uint16_t port;
    int fd[ADDRS_MAX];
    unsigned count;
    int gai;                 /* result of the name lookup */
};

static uint16_t port_of(int fd)
{
    struct sockaddr_storage ss;
    socklen_t n = sizeof ss;
    if (getsockname(fd, (struct sockaddr *)&ss, &n))
        return 0;
    if (ss.ss_family == AF_INET6)
        return ntohs(((struct sockaddr_in6 *)&ss)->sin6_port);
    return ntohs(((struct sockaddr_in *)&ss)->sin_port);
}

static int bind_one(const struct addrinfo *a, uint16_t port, int *ret_fd)
{
    struct sockaddr_storage ss;
    int on = 1;
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol);
    if (fd < 0)
        return -errno;
    memcpy(&ss, a->ai_addr, a->ai_addrlen);
    if (a->ai_family == AF_INET6)
        ((struct sockaddr_in6 *)&ss)->sin6_port = htons(port);
    else
        ((struct sockaddr_in *)&ss)->sin_port = htons(port);
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (a->ai_family == AF_INET6)
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&ss, a->ai_addrlen) || listen(fd, BACKLOG)) {
        int r = -errno;
        close(fd);
        return r;
    }
    *ret_fd = fd;
    return 0;
}

static void close_all(struct tcp_job *j)
{
    while (j->count)
        close(j->fd[--j->count]);
}

/* All addresses with one port. Addresses that this machine does not have are left out if another one works. */
static int bind_all(struct tcp_job *j, const struct addrinfo *list)
{
    uint16_t port = j->port;
    int missing = -EADDRNOTAVAIL;
    for (const struct addrinfo *a = list; a && j->count < ADDRS_MAX; a = a->ai_next) {
        if (a->ai_family != AF_INET && a->ai_family != AF_INET6)
            continue;
        int r = bind_one(a, port, &j->fd[j->count]);
        if (r == -EAFNOSUPPORT || r == -EADDRNOTAVAIL) {
            missing = r;
            continue;
        }
        if (r) {
            close_all(j);
            return r;
        }
        j->count++;
        if (!port)
            port = port_of(j->fd[0]);
    }
    return j->count ? 0 : missing;
}

static int64_t bind_tcp(void *arg)
{
    struct tcp_job *j = arg;
    struct addrinfo *list, hints = { .ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM, .ai_family = AF_UNSPEC };
    j->gai = getaddrinfo(j->host && *j->host ? j->host : NULL, "0", &hints, &list);
    if (j->gai)
        return -EINVAL;
    int r = bind_all(j, list);
    for (int i = 0; r == -EADDRINUSE && !j->port && i < PORT_TRIES; i++)
        r = bind_all(j, list);
    freeaddrinfo(list);
    return r;
}

int nbd_server_listen_tcp(struct co *co, struct nbd_door *d, const struct nbd_tcp_addr *addr, uint16_t *ret_port, struct byre_err *err)
{
    ASSERT_LOOP(d->server->home);
    struct tcp_job j = { .host = addr->host, .port = addr->port };
    const char *shown = addr->host && *addr->host ? addr->host : "*";
    int r = (int)rt_blocking(co, bind_tcp, &j);
    if (r && j.gai)
        return byre_fail(err, BAD_ARGUMENT, "NBD server: host '%.200s': %s", shown, gai_strerror(j.gai));
    if (r)
        return byre_fail_code(err, SYSTEM, r, "NBD server: cannot listen on %.200s port %u: %s", shown, addr->port, strerror(-r));
    uint16_t port = port_of(j.fd[0]);
    for (unsigned i = 0; i < j.count; i++) {
        if (r)
            close(j.fd[i]);
        else
            r = start(d, j.fd[i], (struct where){ 0 }, err);
    }
    if (!r)
        *ret_port = port;
    return r;      /* a listener that did start is ended by stop */
}
