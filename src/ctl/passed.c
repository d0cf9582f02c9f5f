/* SPDX-License-Identifier: MIT
 *
 * passed.c: descriptors that clients send with their commands (FEATURES 3.023, G.051).
 *
 * Purpose      Receives them, keeps them until a command takes them, or under the name that getfd gave them.
 * Owns         the descriptors of a client: arriving, offered, named
 * Invariants   I1 what a client has sent is closed when it goes, when other descriptors come from it, or when a command has taken it: nothing stays
 *                 behind, whatever it sends
 *              I2 a command takes exactly one: what came together with others is refused, rather than guessed
 *              I3 descriptors belong to the first command that ends in what came with them or behind it; one that does not take them leaves them
 *                 to the next (as the peer has it)
 *              I4 a client has the names that it gave, and no others
 *              I5 whoever closes one waits for as long as a file server or a peer takes, within reason (rt/closer.h): no other client waits with it, and at the
 *                 end of the server nobody does. A socket that a command has taken no longer lingers when it is closed, whoever does that. (At the
 *                 limit of open files of this process the kernel itself closes what it cannot hand over, and there the loop does wait.)
 * Concurrency  home loop; what closes descriptors suspends, and has taken them out of the client before
 * Failure      as ctl_priv.h
 * Tests        tests/daemon/fdset_test.py
 */
#include "ctl/passed.h"

#include <ctype.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/size.h"
#include "ctl/ctl_priv.h"
#include "rt/closer.h"
#include "rt/io.h"

/* ---- sockets ---- */

/* Descriptors come with bytes: where there are none, and none come any more, nothing else is closed with it. false: it is still there. */
static bool shut_and_close(int fd)
{
    int unread;
    (void)shutdown(fd, SHUT_RDWR);               /* fails when the peer has gone already: no matter */
    if (ioctl(fd, FIONREAD, &unread) || unread)
        return false;
    (void)close(fd);
    return true;
}

void ctl_drop_socket(struct rt_loop *home, int fd)
{
    if (!shut_and_close(fd))
        rt_close_soon(home, fd);                 /* I5 */
}

/* ---- what arrives ---- */

void ctl_offer_close(struct co *co, struct ctl_offer *o)
{
    struct ctl_offer old = *o;
    *o = (struct ctl_offer){ 0 };
    rt_close_fds(co, old.fds, old.count);
}

void ctl_offer_move(struct co *co, struct ctl_offer *to, struct ctl_offer *from)
{
    struct ctl_offer old = *to;
    if (!from->count && !from->lost)
        return;
    *to = *from;
    *from = (struct ctl_offer){ 0 };
    rt_close_fds(co, old.fds, old.count);
}

/* All that a message may hold is received, so that nobody but us closes any of it (I5). */
static void collect(struct co *co, struct ctl_client *cl, struct msghdr *m)
{
    struct ctl_offer now = { .lost = m->msg_flags & MSG_CTRUNC };
    unsigned surplus = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if (now.count < CTL_OFFER_MAX)
                now.fds[now.count++] = fd;
            else
                cl->inbox.surplus[surplus++] = fd;
        }
    }
    now.lost |= surplus > 0;
    ctl_offer_move(co, &cl->arriving, &now);         /* I1 */
    rt_close_fds(co, cl->inbox.surplus, surplus);
}

int64_t ctl_receive(struct co *co, struct ctl_client *cl, void *data, size_t len)
{
    for (;;) {
        struct iovec v = { data, len };
        struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = cl->inbox.room, .msg_controllen = sizeof cl->inbox.room };
        int ready = rt_poll(co, cl->fd, POLLIN);
        if (ready < 0)
            return ready;
        ssize_t n = recvmsg(cl->fd, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (n < 0)
            return -errno;
        collect(co, cl, &m);
        return n;
    }
}

int ctl_take_offer(struct co *co, struct ctl_call *call, int *ret_fd)
{
    struct ctl_offer *o = call->client ? &call->client->offer : NULL;
    int r = 0;
    if (!o || (!o->count && !o->lost))
        return byre_fail(&call->err, NOT_FOUND, "No file descriptor supplied via SCM_RIGHTS");
    if (o->lost)
        r = byre_fail(&call->err, LIMIT, "not all descriptors of the message could be received: a message has at most %u, and this process a limit of open files", CTL_OFFER_MAX);
    else if (o->count > 1)               /* I2 */
        r = byre_fail(&call->err, BAD_ARGUMENT, "%u descriptors came in one message, and the command takes one", o->count);
    else
        *ret_fd = o->fds[--o->count];
    ctl_offer_close(co, o);
    return r;
}

/* ---- names ---- */

struct named { struct list_node link; int fd; char name[]; };

static struct named *find(const struct ctl_client *cl, const char *name)
{
    LIST_FOR(at, &cl->names) {
        struct named *n = CONTAINER_OF(at, struct named, link);
        if (!strcmp(n->name, name))
            return n;
    }
    return NULL;
}

/* Its descriptor, which is the caller's. */
static int forget(struct ctl_client *cl, struct named *n)
{
    int fd = n->fd;
    list_remove(&n->link);
    cl->name_count--;
    free(n);
    return fd;
}

static unsigned take_all(struct ctl_offer *o, int *fds)
{
    struct ctl_offer old = *o;
    *o = (struct ctl_offer){ 0 };
    memcpy(fds, old.fds, old.count * sizeof *fds);
    return old.count;
}

void ctl_client_descriptors_end(struct co *co, struct ctl_client *cl)
{
    int fds[2 * CTL_OFFER_MAX + CTL_NAMES_MAX + 1];      /* together: they are waited for once */
    unsigned n = take_all(&cl->arriving, fds);
    n += take_all(&cl->offer, fds + n);
    while (!list_empty(&cl->names))
        fds[n++] = forget(cl, CONTAINER_OF(list_first(&cl->names), struct named, link));
    if (client_is_socket(cl)) {
        fds[n] = cl->fd;
        n += !shut_and_close(cl->fd);
        cl->fd = cl->out_fd = -1;
    }
    rt_close_fds(co, fds, n);
}

static int descriptor_of(struct ctl_call *call, const char *what, const char *name, int *ret_fd)
{
    uint64_t v;
    if (call->client) {                  /* numbers are not the client's to know: what lies behind one may be an image */
        struct named *n = find(call->client, name);
        if (!n)
            return byre_fail(&call->err, NOT_FOUND, "File descriptor named '%s' has not been found", name);
        *ret_fd = forget(call->client, n);
        return 0;
    }
    if (size_parse(name, &v) || v < 3 || v > INT32_MAX || fcntl((int)v, F_GETFD) < 0)
        return byre_fail(&call->err, BAD_ARGUMENT, "%s: '%s' is no descriptor", what, name);
    *ret_fd = (int)v;
    return 0;
}

/* I5. Its data goes out all the same, behind the close. One that is to be cut off at once (no time to linger) does not wait, and stays so. false: it is no socket. */
static bool linger_no_more(int fd)
{
    struct linger l = { 0 };
    socklen_t n = sizeof l;
    if (getsockopt(fd, SOL_SOCKET, SO_LINGER, &l, &n))
        return false;
    return !l.l_onoff || !l.l_linger || !setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){ 0 }, sizeof l);
}

int ctl_take_socket(struct co *co, struct ctl_call *call, const char *what, const char *name, int *ret_fd)
{
    int fd, r = descriptor_of(call, what, name, &fd);
    if (!r && !linger_no_more(fd)) {
        rt_close_fds(co, &fd, 1);
        r = byre_fail(&call->err, BAD_ARGUMENT, "%s: the descriptor '%s' is no socket", what, name);
    }
    if (!r)
        *ret_fd = fd;
    return r;
}

/* ---- getfd, closefd ---- */

struct name_args { const char *name; };
static const struct ctl_arg getfd_rows[] = {
    { "fdname", CTL_STR, true, CTL_AT(struct name_args, name), .doc = "Begins with no digit. If there is a descriptor of that name, it is closed, and this one takes its place." }, CTL_ARGS_END
};
static const struct ctl_arg closefd_rows[] = { { "fdname", CTL_STR, true, CTL_AT(struct name_args, name) }, CTL_ARGS_END };

/* *ret_old: the one that had the name, which is the caller's now; -1: none had. */
static int give_name(struct ctl_call *call, const char *name, int fd, int *ret_old)
{
    struct ctl_client *cl = call->client;
    struct named *old = find(cl, name);
    size_t len = strlen(name);
    if (isdigit((unsigned char)name[0]))
        return byre_fail(&call->err, BAD_ARGUMENT, "Parameter 'fdname' expects a name not starting with a digit");
    if (len > CTL_NAME_BYTES_MAX)
        return byre_fail(&call->err, BAD_ARGUMENT, "Parameter 'fdname' has at most %u bytes", CTL_NAME_BYTES_MAX);
    if (!old && cl->name_count >= CTL_NAMES_MAX)
        return byre_fail(&call->err, LIMIT, "this client has named %u descriptors, and no more", CTL_NAMES_MAX);
    struct named *n = malloc(sizeof *n + len + 1);
    if (!n)
        return byre_fail(&call->err, NOMEM, "no memory for the name of a descriptor");
    *ret_old = old ? forget(cl, old) : -1;
    n->fd = fd;
    memcpy(n->name, name, len + 1);
    list_push_back(&cl->names, &n->link);
    cl->name_count++;
    return 0;
}

static int run_getfd(struct co *co, struct ctl_call *call)
{
    const struct name_args *a = call->args;
    int fd, old, r = ctl_take_offer(co, call, &fd);
    if (r)
        return r;
    r = give_name(call, a->name, fd, &old);
    if (r)
        old = fd;                        /* nobody's name is its */
    if (old >= 0)
        rt_close_fds(co, &old, 1);
    return r;
}

static int run_closefd(struct co *co, struct ctl_call *call)
{
    const struct name_args *a = call->args;
    struct named *n = call->client ? find(call->client, a->name) : NULL;
    if (!n)
        return byre_fail(&call->err, NOT_FOUND, "File descriptor named '%s' not found", a->name);
    int fd = forget(call->client, n);
    rt_close_fds(co, &fd, 1);
    return 0;
}

const struct ctl_command ctl_cmd_getfd = { "getfd", getfd_rows, sizeof(struct name_args), run_getfd,
    .doc = "Takes the descriptor that came with the command, and gives it a name, by which further commands of this client may use it. It is closed when the client goes." };
const struct ctl_command ctl_cmd_closefd = { "closefd", closefd_rows, sizeof(struct name_args), run_closefd,
    .doc = "Closes a descriptor that getfd has named." };
