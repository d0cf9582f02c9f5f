/* SPDX-License-Identifier: MIT
 *
 * backend.c: a backend of the runtime that does every request in full as soon as the loop waits, and asks no kernel.
 *
 * Purpose      What is counted is what byre does around a request. Transfers move no byte, but for what is received.
 * Owns         The requests in flight.
 * Invariants   None.
 * Order        Requests are done in the order in which they came.
 * Concurrency  One thread.
 * Failure      None.
 * Tests        tests/bench/micro_test.py
 */
#include "micro.h"

#include <stdlib.h>

int64_t (*echo_feed)(void *buf, uint64_t len);

struct echo { struct rt_req *first, **last; uint64_t now_ns; };

static int echo_init(struct rt_loop *loop, void **ret_state)
{
    struct echo *e = calloc(1, sizeof *e);
    if (!e)
        return -ENOMEM;
    e->last = &e->first;
    *ret_state = e;
    return 0;
}

static void echo_fini(void *state) { free(state); }

static void echo_submit(void *state, struct rt_req *r)
{
    struct echo *e = state;
    r->next = NULL;
    *e->last = r;
    e->last = &r->next;
}

static int64_t bytes_of(const struct iovec *v, size_t cnt)
{
    int64_t sum = 0;
    for (size_t i = 0; i < cnt; i++)
        sum += (int64_t)v[i].iov_len;
    return sum;
}

static int64_t result_of(struct rt_req *r)
{
    switch (r->op) {
    case RT_OP_READV:
    case RT_OP_WRITEV:
        return bytes_of(r->iov, r->cnt);
    case RT_OP_SENDMSG:
        return bytes_of(r->msg->msg_iov, r->msg->msg_iovlen);
    case RT_OP_RECV:
        return echo_feed(r->buf, r->len);
    default:
        return 0;
    }
}

static void echo_cancel(void *state, struct rt_req *r)
{
    struct echo *e = state;
    struct rt_req **p = &e->first;
    while (*p && *p != r)
        p = &(*p)->next;
    if (!*p)
        return;
    *p = r->next;
    if (!*p)
        e->last = p;
    r->res = -ECANCELED;
    r->done(r);
}

static void echo_wait(void *state, uint64_t timeout_ns)
{
    struct echo *e = state;
    struct rt_req *r = e->first, *next;
    e->first = NULL;
    e->last = &e->first;
    e->now_ns += 1000;
    for (; r; r = next) {
        next = r->next;
        r->res = result_of(r);
        if (r->res == -1)
            echo_submit(e, r);
        else
            r->done(r);
    }
}

static void echo_wakeup(void *state) { (void)state; }
static uint64_t echo_now(void *state) { return ((struct echo *)state)->now_ns; }

const struct rt_backend_ops echo_ops = {
    .name = "echo", .init = echo_init, .fini = echo_fini, .submit = echo_submit, .cancel = echo_cancel, .wait = echo_wait,
    .wakeup = echo_wakeup, .now = echo_now,
};
