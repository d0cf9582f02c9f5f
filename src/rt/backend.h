/* SPDX-License-Identifier: MIT
 *
 * backend.h: what a loop needs from the system below it. Three implementations: rt/uring.c, rt/threads.c and
 * sim/loop.c (tests only). Private to rt/ and sim/.
 */
#ifndef RT_BACKEND_H
#define RT_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/err.h"
#include "rt/loop.h"

enum rt_op { RT_OP_READV, RT_OP_WRITEV, RT_OP_FDATASYNC, RT_OP_FALLOCATE, RT_OP_ACCEPT, RT_OP_CONNECT, RT_OP_RECV, RT_OP_SENDMSG, RT_OP_POLL };

/* One operation in flight: lives in the frame of the waiting coroutine. */
struct rt_req {
    enum rt_op op;
    int fd;
    unsigned cnt, flags;
    int mode;
    uint64_t off, len;
    const struct iovec *iov;
    void *buf;
    const struct msghdr *msg;
    const struct sockaddr *sa;
    int64_t res;                         /* set at completion */
    void (*done)(struct rt_req *r);      /* called on the loop */
    struct rt_req *next;                 /* private to the backend while in flight */
    void *priv[6];                       /* private to the backend */
};

struct rt_backend_ops {
    const char *name;
    /* Makes the per-loop state. -errno: this backend is refused here. */
    int (*init)(struct rt_loop *loop, void **ret_state);
    void (*fini)(void *state);
    /* Starts r. Never blocks; may batch until `wait`. Failure to start is reported through r->done too. */
    void (*submit)(void *state, struct rt_req *r);
    /* Asks for early completion of r (sockets only). r->done still comes, once. */
    void (*cancel)(void *state, struct rt_req *r);
    /* Submits what is batched, then waits until something completes, a wakeup arrives, or timeout_ns passes
     * (0 = poll, UINT64_MAX = for ever); calls done() for what completed. */
    void (*wait)(void *state, uint64_t timeout_ns);
    /* From any thread: makes a wait in progress (or the next one) return. */
    void (*wakeup)(void *state);
    uint64_t (*now)(void *state);
    /* Which of n ready coroutines runs next? NULL = the first. */
    size_t (*pick)(void *state, size_t n);
};

extern const struct rt_backend_ops rt_uring_ops, rt_threads_ops;

/* For the simulator: a runtime of n loops over the given backend, all stepped by the caller in one thread.
 * backend_arg is handed to init through rt_loop_backend_arg(loop). */
MUST_USE int rt_new_sim(const struct rt_backend_ops *ops, void *backend_arg, unsigned loops, struct rt **ret_rt);
void *rt_loop_backend_arg(const struct rt_loop *loop);
/* One scheduling step: deliver messages, run one ready coroutine. false: nothing to run on this loop. */
bool rt_loop_step(struct rt_loop *loop);
/* Earliest timer of the loop, UINT64_MAX if none; fires those that are due. */
uint64_t rt_loop_next_timer(const struct rt_loop *loop);
void rt_loop_fire_timers(struct rt_loop *loop);
/* Destroys coroutines that are suspended without running them (a simulated power cut). Memory that they own
 * is given back by the simulator's arena, not here. Messages are dropped, timers forgotten; requests in flight lie in
 * frames that are gone now, so the backend must forget them without calling done. */
void rt_sim_kill(struct rt *rt);

#endif
