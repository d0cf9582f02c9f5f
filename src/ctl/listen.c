/* SPDX-License-Identifier: MIT
 *
 * listen.c: monitors: how clients of the control socket get in.
 *
 * Purpose      Listens, lets clients of the right user in, connects to sockets, takes standard input and output.
 * Owns         listeners: sockets, paths
 * Invariants   I1 nobody can connect before the socket has mode 0600 (bind, chmod, then listen)
 *              I2 no byte of a peer of another user is read
 *              I3 a path is removed only if it is still the socket that was made here
 *              I4 it is removed whatever the folder is by then
 *              I5 no socket is closed on the loop: in one whose peer was not let in, or that waits to be accepted, descriptors may lie whose close takes long
 * Concurrency  home loop; path operations run on the blocking pool
 * Failure      byre_err names the path
 * Tests        ctl_test.c, tests/cli/serve_test.py, tests/daemon
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "ctl/ctl_priv.h"
#include "rt/closer.h"
#include "rt/io.h"
#include "rt/unix_path.h"

#define BACKLOG 16
#define ACCEPT_PAUSE_NS UINT64_C(100000000)

/* ---- listening ---- */
/* real: where it was made, also for who is in another folder then (--daemonize). */
struct bind_job { struct sockaddr_un sa; socklen_t len; bool abstract; int fd; uint64_t dev, ino; char *real; };

static int64_t bind_blocking(void *arg)
{
    struct bind_job *j = arg;
    struct stat st;
    int r = unix_bind(j->fd, &j->sa, j->len, j->abstract);
    if (r)
        return r;
    if (j->abstract)                     /* no permissions there: I2 has to do */
        return listen(j->fd, BACKLOG) ? -errno : 0;
    if (chmod(j->sa.sun_path, 0600) || lstat(j->sa.sun_path, &st) || listen(j->fd, BACKLOG)) {
        r = -errno;
        (void)unlink(j->sa.sun_path);
        return r;
    }
    j->dev = st.st_dev;
    j->ino = st.st_ino;
    j->real = unix_real_path(&j->sa);
    return 0;
}

static int64_t unlink_blocking(void *arg)
{
    struct ctl_listener *l = arg;
    struct stat st;
    if (l->path && lstat(l->path, &st) == 0 && st.st_dev == l->path_dev && st.st_ino == l->path_ino)
        (void)unlink(l->path);
    return 0;
}

/* ---- accepting ---- */
static bool is_allowed(int fd)
{
    struct ucred who;
    socklen_t len = sizeof who;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len))
        return false;
    return who.uid == geteuid() || who.uid == 0;
}

static void acceptor_co(struct co *co, void *arg)
{
    struct ctl_listener *l = arg;
    struct ctl *c = l->c;
    while (!co_cancelled(co)) {
        int fd = rt_accept(co, l->fd);
        if (fd == -ECONNABORTED || fd == -EINTR)
            continue;
        if (fd < 0) {
            (void)co_sleep(co, ACCEPT_PAUSE_NS);
            continue;
        }
        if (c->stopping || c->client_count >= CTL_CLIENTS_MAX || !is_allowed(fd)) {
            ctl_drop_socket(c->home, fd);
            continue;
        }
        client_start(c, &(struct ctl_end){ fd, fd, l->pretty });
        c->arrivals++;
    }
}

/* ---- listeners ---- */
static void listener_free(struct rt_loop *home, struct ctl_listener *l)
{
    if (l->fd >= 0)
        rt_close_soon(home, l->fd);
    free(l->path);
    free(l);
}

int listener_serve(struct ctl *c, struct ctl_listener *l, bool pretty, struct byre_err *err)
{
    if (c->stopping)
        return byre_fail(err, CANCELLED, "the daemon is about to end");      /* nobody would wait for its acceptor */
    l->c = c;
    l->pretty = pretty;
    if (rt_task_start(c->home, &l->acceptor, acceptor_co, l))
        return byre_fail(err, NOMEM, "no memory for a control socket");
    list_push_back(&c->listeners, &l->link);
    return 0;
}

static int bind_path(struct co *co, struct ctl_listener *l, const struct unix_addr *a, struct byre_err *err)
{
    struct bind_job j = { .abstract = a->abstract };
    if (!unix_addr_fill(a, &j.sa, &j.len))
        return byre_fail(err, BAD_ARGUMENT, "'%s': the path of a socket has 1 to %u bytes", a->path, UNIX_PATH_MAX);
    l->path = a->abstract ? NULL : strdup(a->path);
    l->fd = j.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if ((!l->path && !a->abstract) || j.fd < 0)
        return byre_fail(err, NOMEM, "%s: no memory or descriptor for a control socket", a->path);
    int64_t r = rt_blocking(co, bind_blocking, &j);
    if (j.real) {
        free(l->path);
        l->path = j.real;
    }
    l->path_dev = j.dev;
    l->path_ino = j.ino;
    if (r == -EADDRINUSE)
        return byre_fail_code(err, EXISTS, (int)r, "%s: something is there already that is no forgotten socket", a->path);
    return r ? byre_fail_code(err, SYSTEM, (int)r, "%s: cannot listen: %s", a->path, strerror((int)-r)) : 0;
}

static int take_fd(struct ctl_listener *l, int fd, struct byre_err *err)
{
    int listens = 0;
    socklen_t n = sizeof listens;
    l->fd = fd;
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &n) || !listens)
        return byre_fail(err, BAD_ARGUMENT, "descriptor %d is no listening socket", fd);
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    (void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    return 0;
}

int listener_open(struct co *co, const struct unix_addr *a, int fd, struct ctl_listener **ret, struct byre_err *err)
{
    struct ctl_listener *l = calloc(1, sizeof *l);
    if (!l) {
        if (!a)
            rt_close_soon(co_loop(co), fd);
        return byre_fail(err, NOMEM, "no memory for a control socket");
    }
    l->fd = -1;
    int r = a ? bind_path(co, l, a, err) : take_fd(l, fd, err);
    if (r)
        listener_free(co_loop(co), l);   /* nothing was made at the path */
    else
        *ret = l;
    return r;
}

void listener_drop(struct co *co, struct ctl_listener *l)
{
    if (rt_blocking(co, unlink_blocking, l) < 0)
        (void)unlink_blocking(l);
    rt_close_fds(co, &l->fd, 1);         /* an abstract name is free before this is answered */
    l->fd = -1;
    listener_free(co_loop(co), l);
}

int ctl_listen(struct co *co, struct ctl *c, const char *path, struct byre_err *err)
{
    ASSERT_LOOP(c->home);
    struct ctl_listener *l;
    int r = listener_open(co, &(struct unix_addr){ .path = path }, -1, &l, err);
    if (r)
        return r;
    r = listener_serve(c, l, false, err);
    if (r)
        listener_drop(co, l);
    return r;
}

uint64_t ctl_arrivals(const struct ctl *c)
{
    return c->arrivals;
}

/* ---- sockets of others ---- */
int monitor_connect(struct co *co, const struct unix_addr *a, int fd, int *ret_fd, struct byre_err *err)
{
    struct sockaddr_un sa;
    socklen_t len;
    int r = 0;
    if (a && !unix_addr_fill(a, &sa, &len))
        return byre_fail(err, BAD_ARGUMENT, "'%s': the path of a socket has 1 to %u bytes", a->path, UNIX_PATH_MAX);
    if (a) {
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        r = fd < 0 ? -errno : rt_connect(co, fd, (const struct sockaddr *)&sa, len);
    } else {
        r = fcntl(fd, F_SETFD, FD_CLOEXEC) || fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) ? -errno : 0;
    }
    if (!r && !is_allowed(fd))
        r = -EACCES;
    *ret_fd = fd;
    if (!r)
        return 0;
    if (fd >= 0)
        rt_close_soon(co_loop(co), fd);
    return byre_fail_code(err, SYSTEM, r, "%s: cannot connect: %s", a ? a->path : "the descriptor of a monitor", strerror(-r));
}

/* ---- the end ---- */
void listeners_quiet(struct co *co, struct ctl *c)
{
    LIST_FOR(at, &c->listeners) {
        struct ctl_listener *l = CONTAINER_OF(at, struct ctl_listener, link);
        rt_cancel(&l->acceptor);
        rt_task_join(co, &l->acceptor);
    }
}

void listeners_free(struct co *co, struct ctl *c)
{
    while (!list_empty(&c->listeners)) {
        struct ctl_listener *l = CONTAINER_OF(list_first(&c->listeners), struct ctl_listener, link);
        list_remove(&l->link);
        listener_drop(co, l);
    }
}
