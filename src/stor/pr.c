/* SPDX-License-Identifier: MIT
 *
 * pr.c: managers of persistent reservations, and the side of the client of their helpers' protocol.
 *
 * Purpose      Keeps a connection to each helper, sends it one command at a time, and does without it when it stands still, goes away or lies.
 * Owns         struct pr_manager: its connection; the duplicate of a descriptor that is on its way to a helper
 * Invariants   I1 a connection that is kept waits for a command: one on which something went wrong half way, or that was given up, is closed, since what
 *                 comes on it later would be taken for the answer to something else
 *              I2 a command is sent once. Nobody sends it again when the connection breaks: a second registration is refused where the first was done
 *              I3 the descriptor that goes out is a duplicate: whoever owns the file may close it while somebody waits here for his turn
 *              I4 descriptors go out and never come in: the socket refuses them, and what comes is received without room for any
 *              I5 every wait ends: by the limit of its call, or when the coroutine is cancelled
 *              I6 a manager with a user is not freed; its file, and who waits here, are users
 * Concurrency  home loop. `turn` is no lock: who waits for it gives up like for anything else (I5), and holds nothing
 * Failure      the connection is closed; the next command makes a new one
 * Tests        pr_test.c, tests/daemon/pr_test.py
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/list.h"
#include "rt/closer.h"
#include "rt/io.h"
#include "rt/sync.h"
#include "rt/unix_path.h"
#include "stor/file_priv.h"
#include "stor/pr.h"

struct pr_set {
    struct list managers;
    void (*changed)(void *arg, const char *id, bool connected);
    void *arg;
};

struct pr_manager {
    struct list_node link;
    struct pr_set *set;
    struct rt_loop *home;
    char *id, *path;                     /* constant */
    int fd;                              /* I1; -1: no connection */
    bool busy;                           /* somebody has his turn: fd is his */
    struct co_waitq turn;
    _Atomic unsigned users;              /* I6 */
};

/* ---- the set ---- */

int pr_set_new(struct pr_set **ret_s)
{
    struct pr_set *s = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;
    list_init(&s->managers);
    *ret_s = s;
    return 0;
}

void pr_set_watch(struct pr_set *s, void (*changed)(void *arg, const char *id, bool connected), void *arg)
{
    s->changed = changed;
    s->arg = arg;
}

static struct pr_manager *manager_of(struct list_node *at) { return CONTAINER_OF(at, struct pr_manager, link); }

struct pr_manager *pr_next(const struct pr_set *s, const struct pr_manager *prev)
{
    struct list_node *at = prev ? list_next(&s->managers, &prev->link) : list_first(&s->managers);
    return at ? manager_of(at) : NULL;
}

struct pr_manager *pr_find(const struct pr_set *s, const char *id)
{
    struct pr_manager *m = s ? pr_next(s, NULL) : NULL;
    while (m && strcmp(m->id, id))
        m = pr_next(s, m);
    return m;
}

const char *pr_id(const struct pr_manager *m) { return m->id; }
const char *pr_path(const struct pr_manager *m) { return m->path; }

int pr_get(const struct pr_set *s, const char *id, struct pr_manager **ret_m, struct byre_err *err)
{
    struct pr_manager *m = pr_find(s, id);
    if (!m)
        return byre_fail(err, NOT_FOUND, "No persistent reservation manager with id '%s'", id);
    ASSERT_LOOP(m->home);
    atomic_fetch_add(&m->users, 1);
    *ret_m = m;
    return 0;
}

void pr_put(struct pr_manager *m)
{
    if (m)
        atomic_fetch_sub(&m->users, 1);
}

/* Its connection is nobody's any more. */
static void manager_free(struct pr_manager *m)
{
    if (!m)
        return;
    free(m->id);
    free(m->path);
    free(m);
}

static void disconnect(struct pr_manager *m)
{
    if (m->fd >= 0)
        rt_close_soon(m->home, m->fd);
    m->fd = -1;
}

int pr_remove(struct pr_set *s, struct pr_manager *m, struct byre_err *err)
{
    ASSERT_LOOP(m->home);
    ASSERT(m->set == s);
    if (atomic_load(&m->users))          /* I6 */
        return byre_fail(err, PERMISSION, "object '%s' is in use, can not be deleted", m->id);
    list_remove(&m->link);
    disconnect(m);
    manager_free(m);
    return 0;
}

void pr_set_empty(struct pr_set *s, struct rt_loop *home)
{
    ASSERT_LOOP(home);
    s->changed = NULL;
    for (struct pr_manager *m = pr_next(s, NULL); m; m = pr_next(s, m))
        disconnect(m);
}

void pr_set_free(struct pr_set *s)
{
    if (!s)
        return;
    while (!list_empty(&s->managers)) {
        struct pr_manager *m = manager_of(list_pop_front(&s->managers));
        ASSERT(m->fd < 0);
        manager_free(m);
    }
    free(s);
}

/* ---- the connection ---- */

static void tell(const struct pr_manager *m, bool connected)
{
    if (m->set->changed)
        m->set->changed(m->set->arg, m->id, connected);
}

static void hang_up(struct pr_manager *m)
{
    if (m->fd < 0)
        return;
    disconnect(m);
    tell(m, false);
}

/* I1: the helper is there, and has said nothing that nobody asked for. */
static bool is_quiet(const struct pr_manager *m)
{
    char byte;
    return recv(m->fd, &byte, sizeof byte, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN;
}

bool pr_look(struct pr_manager *m)
{
    ASSERT_LOOP(m->home);
    if (m->fd >= 0 && !m->busy && !is_quiet(m))
        hang_up(m);
    return m->fd >= 0;
}

/* passed: a descriptor that goes with the first byte; -1: none. */
static int send_all(struct co *co, int fd, const void *buf, size_t len, int passed)
{
    union { struct cmsghdr align; char space[CMSG_SPACE(sizeof(int))]; } control;
    for (size_t at = 0; at < len;) {
        struct iovec v = { (char *)(uintptr_t)buf + at, len - at };
        struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };
        if (passed >= 0) {
            memset(&control, 0, sizeof control);
            m.msg_control = &control;
            m.msg_controllen = sizeof control.space;
            struct cmsghdr *c = CMSG_FIRSTHDR(&m);
            c->cmsg_level = SOL_SOCKET;
            c->cmsg_type = SCM_RIGHTS;
            c->cmsg_len = CMSG_LEN(sizeof passed);
            memcpy(CMSG_DATA(c), &passed, sizeof passed);
        }
        int64_t n = rt_sendmsg(co, fd, &m);
        if (n <= 0)
            return n ? (int)n : -EPIPE;
        at += (size_t)n;
        passed = -1;
    }
    return 0;
}

/* What became of a wait. */
static int broken(const struct pr_manager *m, int code, unsigned limit_ms, struct byre_err *err)
{
    if (code == -ECANCELED)
        return byre_fail(err, CANCELLED, "pr-manager '%s': cancelled while the helper at '%s' was waited for", m->id, m->path);
    if (code == -ETIMEDOUT)
        return byre_fail_code(err, IO, code, "pr-manager '%s': the helper at '%s' did not answer within %u ms", m->id, m->path, limit_ms);
    return byre_fail_code(err, IO, code, "pr-manager '%s': the helper at '%s' closed the connection: %s", m->id, m->path, strerror(-code));
}

/* No feature is wanted. */
static int shake_hands(struct co *co, int fd)
{
    uint8_t features[PRP_FEATURES_BYTES];
    int r = rt_recv_all(co, fd, features, sizeof features);
    memset(features, 0, sizeof features);
    return r ? r : send_all(co, fd, features, sizeof features, -1);
}

static int dial(struct co *co, struct pr_manager *m, unsigned limit_ms, struct byre_err *err)
{
    struct sockaddr_un sa;
    socklen_t len;
    if (!unix_addr_fill(&(struct unix_addr){ .path = m->path }, &sa, &len))
        return byre_fail(err, BAD_ARGUMENT, "Failed to connect to '%s': the path of a socket has 1 to %u bytes", m->path, UNIX_PATH_MAX);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), r = fd < 0 ? -errno : 0;
    if (!r) {
        unix_refuse_descriptors(fd);     /* I4 */
        r = rt_connect(co, fd, (const struct sockaddr *)&sa, len);
    }
    if (r && r != -ECANCELED && r != -ETIMEDOUT)
        (void)byre_fail_code(err, SYSTEM, r, "Failed to connect to '%s': %s", m->path, strerror(-r));
    else if (r || (r = shake_hands(co, fd)))
        r = broken(m, r, limit_ms, err);
    if (!r) {
        m->fd = fd;
        tell(m, true);
    } else if (fd >= 0) {
        rt_close_soon(m->home, fd);
    }
    return r;
}

/* I5. Returns what co_set_deadline is to get back. */
static uint64_t begin_limit(struct co *co, unsigned limit_ms)
{
    uint64_t before = co_set_deadline(co, 0), until = rt_now(co_loop(co)) + (uint64_t)limit_ms * 1000000;
    (void)co_set_deadline(co, before && before < until ? before : until);
    return before;
}

int pr_add(struct co *co, struct pr_set *s, const struct pr_new *what, struct byre_err *err)
{
    struct pr_manager *m = calloc(1, sizeof *m);
    char *id = strdup(what->id), *path = strdup(what->path);
    if (!m || !id || !path) {
        free(id);
        free(path);
        free(m);
        return byre_fail(err, NOMEM, "no memory for an object");
    }
    *m = (struct pr_manager){ .set = s, .home = co_loop(co), .id = id, .path = path, .fd = -1 };
    uint64_t before = begin_limit(co, what->limit_ms);
    int r = dial(co, m, what->limit_ms, err);
    (void)co_set_deadline(co, before);
    if (r)
        manager_free(m);
    else
        list_push_back(&s->managers, &m->link);
    return r;
}

/* ---- commands ---- */

static int take_turn(struct co *co, struct pr_manager *m)
{
    if (m->busy)
        return co_wait_cancellable(co, &m->turn);        /* 0: it was handed over */
    m->busy = true;
    return 0;
}

static void give_turn(struct pr_manager *m)
{
    if (!co_wake_one(&m->turn))          /* else it is his, whoever asks before he runs */
        m->busy = false;
}

/* fd goes out. */
static int exchange(struct co *co, struct pr_manager *m, int fd, const struct pr_call *call, struct pr_answer *ret, struct byre_err *err)
{
    uint8_t request[PRP_REQUEST_MAX], head[PRP_HEAD_BYTES];
    struct byre_err why = { 0 };
    int r = send_all(co, m->fd, request, prp_request_emit(&call->request, request), fd);
    if (!r)
        r = rt_recv_all(co, m->fd, head, sizeof head);
    if (r)
        return broken(m, r, call->limit_ms, err);
    r = prp_head_parse(head, &call->request, &ret->head, &why);
    if (r)
        return byre_fail(err, PROTOCOL, "pr-manager '%s': the helper at '%s' makes no sense: %s", m->id, m->path, why.text);
    r = rt_recv_all(co, m->fd, ret->data, ret->head.len_bytes);
    return r ? broken(m, r, call->limit_ms, err) : 0;
}

static int converse(struct co *co, struct pr_manager *m, int fd, const struct pr_call *call, struct pr_answer *ret, struct byre_err *err)
{
    if (m->fd >= 0 && !is_quiet(m))
        hang_up(m);
    int r = m->fd < 0 ? dial(co, m, call->limit_ms, err) : 0;
    if (r)
        return r;
    r = exchange(co, m, fd, call, ret, err);
    if (r)
        hang_up(m);                      /* I1 */
    return r;
}

int pr_run(struct co *co, struct pr_manager *m, const struct pr_call *call, struct pr_answer *ret, struct byre_err *err)
{
    ASSERT_LOOP(m->home);
    int fd = fcntl(call->fd, F_DUPFD_CLOEXEC, 0);        /* I3 */
    if (fd < 0)
        return byre_fail_code(err, SYSTEM, -errno, "pr-manager '%s': no descriptor for the helper: %s", m->id, strerror(errno));
    atomic_fetch_add(&m->users, 1);      /* I6 */
    uint64_t before = begin_limit(co, call->limit_ms);
    int r = take_turn(co, m);
    if (!r) {
        r = converse(co, m, fd, call, ret, err);
        give_turn(m);
    } else {
        r = broken(m, r, call->limit_ms, err);
    }
    (void)co_set_deadline(co, before);
    rt_close_soon(m->home, fd);
    pr_put(m);
    return r;
}

/* ---- of a store ---- */

struct pr_manager *stor_pr_manager(const struct stor *s)
{
    return s->ops == &file_ops ? ((const struct file_stor *)s)->pr : NULL;
}

int stor_pr_run(struct co *co, struct stor *s, const struct pr_call *call, struct pr_answer *ret, struct byre_err *err)
{
    struct pr_call own = *call;
    struct pr_manager *m = stor_pr_manager(s);
    ASSERT(m);
    own.fd = file_of(s)->fd;
    return pr_run(co, m, &own, ret, err);
}
