/* SPDX-License-Identifier: MIT
 *
 * uring.c: the io_uring backend: one ring per loop.
 *
 * Purpose      Turns requests into submission entries, batches them until the loop waits, and completes them.
 * Owns         the ring, an eventfd for wakeups, the list of requests that found no submission entry
 * Invariants   I1 a request is in exactly one place: the deferred list, the ring (user_data points to it, or to its group), or done
 *              I2 done() is called once per request, from wait or submit, on the loop
 *              I3 the wakeup poll is armed, or its entry waits to be placed (wake_wanted)
 *              I4 the kernel has a request at the latest when BATCH more follow it: a device works on the first part of a
 *                 long burst while the loop still prepares the rest, and neighbours in it are merged (gather.c, and by the
 *                 kernel) into requests that overlap, not into a single one that all must wait for
 * Concurrency  wakeup: any thread. All else: the loop's thread (the ring is made for a single issuer).
 * Failure      init: -errno when the kernel refuses rings (EPERM, ENOSYS, ENOMEM) or is older than 5.13. A full
 *              submission queue is flushed; what the kernel does not take yet (EAGAIN, EBUSY while completions
 *              overflow) waits in the deferred list. Overflowed completions are kept by the kernel (NODROP) and
 *              fetched when the queue has been emptied.
 * Tests        uring_test.c, io_test.c (both backends, tiny rings), rt_test.c (refusal), stress_test.c
 *
 * Sockets are non-blocking, and then the kernel may answer EAGAIN instead of waiting itself (this differs between
 * kernel versions and operations): such a request becomes a poll and is issued again after that.
 *
 * Wakeups: a multishot poll on an eventfd that is never read. Each write to an eventfd wakes its pollers, so each
 * write gives a completion; if the poll ends, arming it again completes at once, which costs one empty turn.
 */
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "rt/gather.h"
#include "rt/io_priv.h"
#include "rt/rt_priv.h"

#define ENTRIES_DEFAULT 256u
#define CQ_FACTOR 16u
#define BATCH 16u
#define TAG_IGNORE 1u           /* user_data of cancel entries; requests and groups are aligned, so never 1 or 2, nor GATHER_TAG in them */
#define TAG_WAKE 2u
#define NEEDED_FEATURES (IORING_FEAT_NODROP | IORING_FEAT_FAST_POLL | IORING_FEAT_EXT_ARG | IORING_FEAT_RSRC_TAGS)
#define BACKOFF_NS 1000000

/* rt_req.priv[0]: what the ring does for the request */
enum stage { STAGE_OP, STAGE_POLL };
/* rt_req.priv[1] */
enum cancel { CANCEL_NO, CANCEL_WAITING, CANCEL_SENT };

struct uring {
    struct io_uring ring;
    int wake_fd;
    bool wake_wanted;
    unsigned waiting;                           /* requests since the last submission */
    struct gather gather;
    struct rt_req *deferred, **deferred_tail;   /* found no entry, in order */
    struct rt_req *cancels;                     /* cancellations that found none; linked by priv[2] */
};

static enum stage stage_of(const struct rt_req *r)
{
    return (enum stage)(uintptr_t)r->priv[0];
}

static void set_stage(struct rt_req *r, enum stage s)
{
    r->priv[0] = (void *)(uintptr_t)s;
}

static enum cancel cancel_of(const struct rt_req *r)
{
    return (enum cancel)(uintptr_t)r->priv[1];
}

static void set_cancel(struct rt_req *r, enum cancel c)
{
    r->priv[1] = (void *)(uintptr_t)c;
}

/* ---- submission ---- */

static int submit_now(struct uring *u)
{
    gather_forget(&u->gather);
    int r = io_uring_submit(&u->ring);
    u->waiting = io_uring_sq_ready(&u->ring);               /* what it refuses stays queued */
    return r;
}

static struct io_uring_sqe *get_sqe(struct uring *u)
{
    if (u->waiting >= BATCH)                                /* I4 */
        (void)submit_now(u);
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    if (!sqe && submit_now(u) > 0)
        sqe = io_uring_get_sqe(&u->ring);
    u->waiting += sqe != NULL;
    return sqe;
}

static void prep_rw(struct io_uring_sqe *sqe, const struct rt_req *r)
{
    bool one = r->cnt == 1 && r->iov->iov_len <= INT32_MAX;
    if (r->op == RT_OP_READV && one)
        io_uring_prep_read(sqe, r->fd, r->iov->iov_base, (unsigned)r->iov->iov_len, r->off);
    else if (r->op == RT_OP_READV)
        io_uring_prep_readv(sqe, r->fd, r->iov, r->cnt, r->off);
    else if (one)
        io_uring_prep_write(sqe, r->fd, r->iov->iov_base, (unsigned)r->iov->iov_len, r->off);
    else
        io_uring_prep_writev(sqe, r->fd, r->iov, r->cnt, r->off);
    if (r->op == RT_OP_WRITEV)
        sqe->rw_flags = rt_rwf_of(r->flags);
}

static void prep_op(struct io_uring_sqe *sqe, const struct rt_req *r)
{
    switch (r->op) {
    case RT_OP_READV:
    case RT_OP_WRITEV:
        prep_rw(sqe, r);
        break;
    case RT_OP_FDATASYNC:
        io_uring_prep_fsync(sqe, r->fd, IORING_FSYNC_DATASYNC);
        break;
    case RT_OP_FALLOCATE:
        io_uring_prep_fallocate(sqe, r->fd, r->mode, (off_t)r->off, (off_t)r->len);
        break;
    case RT_OP_ACCEPT:
        io_uring_prep_accept(sqe, r->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        break;
    case RT_OP_RECV:
        io_uring_prep_recv(sqe, r->fd, r->buf, (size_t)r->len, (int)r->flags);
        break;
    case RT_OP_SENDMSG:
        io_uring_prep_sendmsg(sqe, r->fd, r->msg, r->flags | MSG_NOSIGNAL);
        break;
    case RT_OP_CONNECT:
        io_uring_prep_poll_add(sqe, r->fd, POLLOUT);
        break;
    case RT_OP_POLL:
        io_uring_prep_poll_add(sqe, r->fd, (unsigned)r->mode);
        break;
    }
}

static void fill(struct io_uring_sqe *sqe, struct rt_req *r)
{
    if (stage_of(r) == STAGE_POLL)
        io_uring_prep_poll_add(sqe, r->fd, r->op == RT_OP_SENDMSG ? POLLOUT : POLLIN);
    else
        prep_op(sqe, r);
    io_uring_sqe_set_data(sqe, r);
}

/* Places r into the ring, behind those that wait already. NULL: it waits. */
static struct io_uring_sqe *issue(struct uring *u, struct rt_req *r)
{
    struct io_uring_sqe *sqe = u->deferred ? NULL : get_sqe(u);
    if (sqe) {
        fill(sqe, r);
        return sqe;
    }
    r->next = NULL;
    *u->deferred_tail = r;
    u->deferred_tail = &r->next;
    return NULL;
}

/* The same for a request that may share an entry with its neighbours. */
static void issue_near(struct uring *u, struct rt_req *r)
{
    if (gather_join(&u->gather, r)) {
        u->waiting++;
        return;
    }
    struct io_uring_sqe *sqe = issue(u, r);
    if (sqe)
        gather_note(&u->gather, r, sqe);
}

static void uring_submit(void *state, struct rt_req *r)
{
    set_stage(r, STAGE_OP);
    set_cancel(r, CANCEL_NO);
    if (r->op == RT_OP_CONNECT) {
        r->res = rt_connect_begin(r);
        if (r->res != -EINPROGRESS) {
            r->done(r);
            return;
        }
    }
    issue_near(state, r);
}

static bool send_cancel(struct uring *u, struct rt_req *r)
{
    struct io_uring_sqe *sqe = get_sqe(u);
    if (!sqe)
        return false;
    io_uring_prep_cancel(sqe, r, 0);
    io_uring_sqe_set_data64(sqe, TAG_IGNORE);
    set_cancel(r, CANCEL_SENT);
    return true;
}

/* Takes r off the deferred list. false: it is not there. */
static bool undefer(struct uring *u, struct rt_req *r)
{
    for (struct rt_req **p = &u->deferred; *p; p = &(*p)->next) {
        if (*p != r)
            continue;
        *p = r->next;
        if (!*p)
            u->deferred_tail = p;
        return true;
    }
    return false;
}

static void uring_cancel(void *state, struct rt_req *r)
{
    struct uring *u = state;
    if (cancel_of(r) != CANCEL_NO)
        return;
    if (undefer(u, r)) {
        r->res = -ECANCELED;
        r->done(r);
    } else if (!send_cancel(u, r)) {
        set_cancel(r, CANCEL_WAITING);
        r->priv[2] = u->cancels;
        u->cancels = r;
    }
}

static void arm_wake(struct uring *u)
{
    struct io_uring_sqe *sqe = get_sqe(u);
    u->wake_wanted = !sqe;
    if (!sqe)
        return;
    io_uring_prep_poll_multishot(sqe, u->wake_fd, POLLIN);
    io_uring_sqe_set_data64(sqe, TAG_WAKE);
}

/* Places what found no entry before. */
static void place_waiting(struct uring *u)
{
    if (u->wake_wanted)
        arm_wake(u);
    while (u->cancels) {
        struct rt_req *r = u->cancels;
        if (!send_cancel(u, r))
            break;
        u->cancels = r->priv[2];
    }
    while (u->deferred) {
        struct io_uring_sqe *sqe = get_sqe(u);
        if (!sqe)
            break;
        struct rt_req *r = u->deferred;
        u->deferred = r->next;
        if (!u->deferred)
            u->deferred_tail = &u->deferred;
        fill(sqe, r);
    }
}

/* ---- completion ---- */

static void forget_cancel(struct uring *u, struct rt_req *r)
{
    struct rt_req **p = &u->cancels;
    while (*p != r)
        p = (struct rt_req **)&(*p)->priv[2];
    *p = r->priv[2];
}

static bool is_socket_transfer(const struct rt_req *r)
{
    return r->op == RT_OP_ACCEPT || r->op == RT_OP_RECV || r->op == RT_OP_SENDMSG;
}

static void complete(struct uring *u, struct rt_req *r, int res)
{
    bool again = stage_of(r) == STAGE_POLL ? res >= 0 : res == -EAGAIN && is_socket_transfer(r);
    if (again && cancel_of(r) == CANCEL_NO) {
        set_stage(r, stage_of(r) == STAGE_POLL ? STAGE_OP : STAGE_POLL);
        (void)issue(u, r);
        return;
    }
    if (cancel_of(r) == CANCEL_WAITING)
        forget_cancel(u, r);
    if (again)
        res = -ECANCELED;
    r->res = r->op == RT_OP_CONNECT && res >= 0 ? rt_connect_end(r) : res;
    r->done(r);
}

static void complete_group(struct uring *u, struct gather_group *g, int res)
{
    for (struct rt_req *r = gather_ended(&u->gather, g, res), *next; r; r = next) {
        next = r->next;
        (void)issue(u, r);
    }
}

static void reap(struct uring *u)
{
    struct io_uring_cqe *cqe;
    while (io_uring_peek_cqe(&u->ring, &cqe) == 0 && cqe) {
        uint64_t data = cqe->user_data;
        int res = cqe->res;
        unsigned flags = cqe->flags;
        io_uring_cqe_seen(&u->ring, cqe);
        if (data == TAG_WAKE) {
            if (!(flags & IORING_CQE_F_MORE))
                u->wake_wanted = true;
        } else if (data != TAG_IGNORE && data & GATHER_TAG) {
            complete_group(u, (struct gather_group *)(uintptr_t)(data & ~(uint64_t)GATHER_TAG), res);
        } else if (data != TAG_IGNORE) {
            complete(u, (struct rt_req *)(uintptr_t)data, res);
        }
    }
}

static void uring_wait(void *state, uint64_t timeout_ns)
{
    struct uring *u = state;
    struct io_uring_cqe *cqe;
    int r = 0;
    place_waiting(u);
    gather_forget(&u->gather);
    if (timeout_ns == 0 || io_uring_cq_ready(&u->ring)) {
        if (io_uring_sq_ready(&u->ring))
            r = io_uring_submit(&u->ring);
    } else if (timeout_ns == UINT64_MAX) {
        r = io_uring_submit_and_wait(&u->ring, 1);
    } else {
        struct __kernel_timespec ts = { (int64_t)(timeout_ns / 1000000000), (int64_t)(timeout_ns % 1000000000) };
        r = io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, &ts, NULL);
    }
    u->waiting = io_uring_sq_ready(&u->ring);
    if (r == -EAGAIN && !io_uring_cq_ready(&u->ring))       /* the kernel is short of memory for requests */
        nanosleep(&(struct timespec){ 0, BACKOFF_NS }, NULL);
    reap(u);
}

static void uring_wakeup(void *state)
{
    struct uring *u = state;
    uint64_t one = 1;
    while (write(u->wake_fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

static uint64_t uring_now(void *state)
{
    (void)state;
    return rt_monotonic_ns();
}

/* ---- making ---- */

static int check_ring(const struct uring *u)
{
    static const uint8_t ops[] = {
        IORING_OP_READ, IORING_OP_READV, IORING_OP_WRITE, IORING_OP_WRITEV, IORING_OP_FSYNC, IORING_OP_FALLOCATE,
        IORING_OP_POLL_ADD, IORING_OP_ASYNC_CANCEL, IORING_OP_ACCEPT, IORING_OP_RECV, IORING_OP_SENDMSG,
    };
    if ((u->ring.features & NEEDED_FEATURES) != NEEDED_FEATURES)
        return -ENOSYS;
    struct io_uring_probe *probe = io_uring_get_probe_ring((struct io_uring *)&u->ring);
    if (!probe)
        return -ENOMEM;
    int r = 0;
    for (size_t i = 0; i < sizeof ops; i++)
        if (!io_uring_opcode_supported(probe, ops[i]))
            r = -ENOSYS;
    io_uring_free_probe(probe);
    return r;
}

/* Newer kernels can leave completion work to the moment we wait for it; older ones refuse the flags. TASKRUN_FLAG makes
 * that work visible to reap, so that completions also arrive while coroutines keep the loop from ever waiting. */
static int make_ring(struct uring *u, unsigned entries)
{
    static const unsigned flag_sets[] = {
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
        0,
    };
    int r = -EINVAL;
    for (size_t i = 0; i < sizeof flag_sets / sizeof flag_sets[0] && r == -EINVAL; i++) {
        struct io_uring_params p = {
            .flags = flag_sets[i] | IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE, .cq_entries = entries * CQ_FACTOR,
        };
        r = io_uring_queue_init_params(entries, &u->ring, &p);
    }
    return r;
}

static int uring_init(struct rt_loop *loop, void **ret_state)
{
    struct uring *u = calloc(1, sizeof *u);
    if (!u)
        return -ENOMEM;
    u->deferred_tail = &u->deferred;
    int r = make_ring(u, loop->rt->ring_entries ? loop->rt->ring_entries : ENTRIES_DEFAULT);
    if (r)
        goto fail;
    r = check_ring(u);
    if (r)
        goto fail_ring;
    u->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (u->wake_fd < 0) {
        r = -errno;
        goto fail_ring;
    }
    (void)io_uring_register_ring_fd(&u->ring);      /* saves a table look-up per call; not essential */
    arm_wake(u);
    *ret_state = u;
    return 0;
fail_ring:
    io_uring_queue_exit(&u->ring);
fail:
    free(u);
    return r;
}

static void uring_fini(void *state)
{
    struct uring *u = state;
    INV(I1, !u->deferred && !u->cancels);
    io_uring_queue_exit(&u->ring);
    gather_fini(&u->gather);
    close(u->wake_fd);
    free(u);
}

const struct rt_backend_ops rt_uring_ops = {
    .name = "io_uring",
    .init = uring_init,
    .fini = uring_fini,
    .submit = uring_submit,
    .cancel = uring_cancel,
    .wait = uring_wait,
    .wakeup = uring_wakeup,
    .now = uring_now,
};
