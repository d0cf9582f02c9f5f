/* SPDX-License-Identifier: MIT
 *
 * ctl.c: the server of the control socket.
 *
 * Purpose      Listens, lets clients of the right user in, sends events to all.
 * Owns         struct ctl: socket, path, list of clients
 * Invariants   I1 nobody can connect before the socket has mode 0600 (bind, chmod, then listen)
 *              I2 no byte of a peer of another user is read
 *              I3 a path is removed only if it is still the socket that was made here
 * Concurrency  home loop; path operations run on the blocking pool
 * Failure      byre_err names the path
 * Tests        ctl_test.c, tests/cli/serve_test.py
 */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "ctl/ctl_priv.h"
#include "job/job.h"
#include "rt/io.h"

#define BACKLOG 16
#define ACCEPT_PAUSE_NS UINT64_C(100000000)
#define STALE_TRIES 20                   /* a killed process may listen a moment longer than it lives */
#define STALE_PAUSE_NS 50000000

/* ---- listening ---- */
struct bind_job { struct sockaddr_un sa; int fd; uint64_t dev, ino; };

static bool refuses_clients(const struct sockaddr_un *sa)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return false;
    bool refused = connect(fd, (const struct sockaddr *)sa, sizeof *sa) && errno == ECONNREFUSED;
    close(fd);
    return refused;
}

static bool is_stale(const struct sockaddr_un *sa)
{
    struct stat st;
    if (lstat(sa->sun_path, &st) || !S_ISSOCK(st.st_mode))
        return false;
    for (int i = 0; i < STALE_TRIES; i++) {
        struct timespec pause = { 0, STALE_PAUSE_NS };
        if (refuses_clients(sa))
            return true;
        nanosleep(&pause, NULL);
    }
    return false;
}

static int try_bind(struct bind_job *j)
{
    const struct sockaddr *sa = (const struct sockaddr *)&j->sa;
    if (bind(j->fd, sa, sizeof j->sa) == 0)
        return 0;
    if (errno != EADDRINUSE)
        return -errno;
    if (!is_stale(&j->sa))
        return -EADDRINUSE;
    if (unlink(j->sa.sun_path) && errno != ENOENT)
        return -errno;
    return bind(j->fd, sa, sizeof j->sa) ? -errno : 0;
}

static int64_t bind_blocking(void *arg)
{
    struct bind_job *j = arg;
    struct stat st;
    int r = try_bind(j);
    if (r)
        return r;
    if (chmod(j->sa.sun_path, 0600) || lstat(j->sa.sun_path, &st) || listen(j->fd, BACKLOG)) {
        r = -errno;
        (void)unlink(j->sa.sun_path);
        return r;
    }
    j->dev = st.st_dev;
    j->ino = st.st_ino;
    return 0;
}

static int64_t unlink_blocking(void *arg)
{
    struct ctl *c = arg;
    struct stat st;
    if (c->path && lstat(c->path, &st) == 0 && st.st_dev == c->path_dev && st.st_ino == c->path_ino)
        (void)unlink(c->path);
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
    struct ctl *c = arg;
    while (!co_cancelled(co)) {
        int fd = rt_accept(co, c->listen_fd);
        if (fd == -ECONNABORTED || fd == -EINTR)
            continue;
        if (fd < 0) {
            (void)co_sleep(co, ACCEPT_PAUSE_NS);
            continue;
        }
        if (c->stopping || c->client_count >= CTL_CLIENTS_MAX || !is_allowed(fd))
            close(fd);
        else
            client_start(c, fd);
    }
}

int ctl_listen(struct co *co, struct ctl *c, const char *path, struct byre_err *err)
{
    ASSERT_LOOP(c->home);
    struct bind_job j = { .sa = { .sun_family = AF_UNIX } };
    if (!*path || strlen(path) >= sizeof j.sa.sun_path)
        return byre_fail(err, BAD_ARGUMENT, "'%s': the path of a socket has 1 to %zu bytes", path, sizeof j.sa.sun_path - 1);
    memcpy(j.sa.sun_path, path, strlen(path));
    c->path = strdup(path);
    j.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (!c->path || j.fd < 0) {
        if (j.fd >= 0)
            close(j.fd);
        return byre_fail(err, NOMEM, "%s: no memory or descriptor for a control socket", path);
    }
    int64_t r = rt_blocking(co, bind_blocking, &j);
    if (r == 0) {
        c->listen_fd = j.fd;
        c->path_dev = j.dev;
        c->path_ino = j.ino;
        r = rt_task_start(c->home, &c->acceptor, acceptor_co, c);
        c->has_acceptor = r == 0;
        return r ? byre_fail(err, NOMEM, "%s: no memory for a control socket", path) : 0;
    }
    close(j.fd);
    if (r == -EADDRINUSE)
        return byre_fail_code(err, EXISTS, (int)r, "%s: something is there already that is no forgotten socket", path);
    return byre_fail_code(err, SYSTEM, (int)r, "%s: cannot listen: %s", path, strerror((int)-r));
}

/* ---- events ---- */
void ctl_send_event(struct ctl *c, const char *name, json_t *data)
{
    struct timespec now;
    struct qmp_text t;
    clock_gettime(CLOCK_REALTIME, &now);
    struct qmp_event e = { name, data, now.tv_sec, (int32_t)(now.tv_nsec / 1000) };
    int r = data ? qmp_make_event(&e, false, &t) : -ENOMEM;
    json_decref(data);
    if (r)
        return;                          /* memory ran out: what has happened can be asked for */
    LIST_FOR(at, &c->clients) {
        struct ctl_client *cl = CONTAINER_OF(at, struct ctl_client, link);
        if (cl->negotiated)
            client_put(cl, &t);
    }
    free(t.text);
}

void ctl_send_shutdown(struct ctl *c, const char *reason)
{
    ctl_send_event(c, "SHUTDOWN", json_pack("{s:b,s:s}", "guest", 0, "reason", reason));
}

/* ---- life ---- */
int ctl_new(struct rt_loop *home, const struct ctl_env *env, struct ctl **ret_c, struct byre_err *err)
{
    struct ctl *c = calloc(1, sizeof *c);
    if (!c)
        return byre_fail(err, NOMEM, "no memory for a control socket");
    c->home = home;
    c->env = *env;
    c->listen_fd = -1;
    list_init(&c->clients);
    if (env->jobs) {
        env->jobs->status_changed = ctl_job_changed;
        env->jobs->io_error = ctl_job_io_error;
        env->jobs->arg = c;
    }
    if (env->graph)
        graph_watch_corruption(env->graph, ctl_image_corrupted, c);
    *ret_c = c;
    return 0;
}

static bool all_silent(const struct ctl *c)
{
    LIST_FOR(at, &c->clients)
        if (!client_is_silent(CONTAINER_OF(at, struct ctl_client, link)))
            return false;
    return true;
}

static void close_clients(struct ctl *c, bool now)
{
    LIST_FOR(at, &c->clients)
        client_close(CONTAINER_OF(at, struct ctl_client, link), now);
}

void ctl_stop(struct co *co, struct ctl *c)
{
    ASSERT_LOOP(c->home);
    if (c->stopping)
        return;
    c->stopping = true;
    if (c->env.jobs) {
        c->env.jobs->status_changed = NULL;
        c->env.jobs->io_error = NULL;
    }
    if (c->env.graph)
        graph_watch_corruption(c->env.graph, NULL, NULL);
    if (c->has_acceptor) {
        rt_cancel(&c->acceptor);
        rt_task_join(co, &c->acceptor);
    }
    close_clients(c, false);
    for (uint64_t end = rt_now(c->home) + CTL_LAST_WORDS_NS; !all_silent(c) && rt_now(c->home) < end;)
        if (co_sleep(co, CTL_LAST_WORDS_NS / 200))
            break;
    close_clients(c, true);
    co_group_wait(co, &c->alive);
    if (c->listen_fd >= 0) {
        if (rt_blocking(co, unlink_blocking, c) < 0)
            (void)unlink_blocking(c);
        close(c->listen_fd);
        c->listen_fd = -1;
    }
}

void ctl_free(struct ctl *c)
{
    if (!c)
        return;
    ASSERT(list_empty(&c->clients) && c->listen_fd < 0);
    free(c->path);
    free(c);
}
