/* SPDX-License-Identifier: MIT
 *
 * gather.c: transfers that follow one another in one file and one submission become one.
 *
 * Purpose      Neighbouring reads or writes that are waiting to be submitted share an entry, and so one system call's work in the kernel, one
 *              lock of the file and one request of the device.
 * Owns         The groups: which requests share an entry, and the vector that the kernel is given.
 * Invariants   I1  An entry is changed only until it is submitted (gather_forget).
 *              I2  A request in a group ends once: with its own length when the transfer came so far, else by being issued again by itself.
 *                  So whatever fails or comes short is known of each request as if it had been alone.
 *              I3  Durable writes share nothing: their answer says that they are durable.
 * Concurrency  The loop's thread.
 * Failure      No memory for a group: the request stays alone.
 * Tests        uring_test.c, io_test.c
 */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "rt/gather.h"

#define IDLE_MAX 16u

static uint64_t length(const struct rt_req *r)
{
    uint64_t len = 0;
    for (unsigned i = 0; i < r->cnt; i++)
        len += r->iov[i].iov_len;
    return len;
}

static bool may_share(const struct rt_req *r)
{
    return (r->op == RT_OP_READV || (r->op == RT_OP_WRITEV && !r->flags)) && r->cnt && r->cnt <= GATHER_VECS / 2;
}

static struct gather_group *group_get(struct gather *ga)
{
    struct gather_group *g = ga->idle;
    if (!g)
        return malloc(sizeof *g);
    ga->idle = g->next;
    ga->idle_count--;
    return g;
}

static void group_put(struct gather *ga, struct gather_group *g)
{
    if (ga->idle_count >= IDLE_MAX) {
        free(g);
        return;
    }
    g->next = ga->idle;
    ga->idle = g;
    ga->idle_count++;
}

static void add(struct gather_group *g, struct rt_req *r, uint64_t len)
{
    memcpy(g->vec + g->cnt, r->iov, r->cnt * sizeof *r->iov);
    g->cnt += r->cnt;
    g->all[g->count++] = r;
    g->len += len;
}

/* The entry speaks of the whole group now. */
static void describe(const struct gather_near *n)
{
    const struct gather_group *g = n->group;
    if (n->first->op == RT_OP_READV)
        io_uring_prep_readv(n->sqe, n->first->fd, g->vec, g->cnt, n->first->off);
    else
        io_uring_prep_writev(n->sqe, n->first->fd, g->vec, g->cnt, n->first->off);
    io_uring_sqe_set_data64(n->sqe, (uint64_t)(uintptr_t)g | GATHER_TAG);
}

static bool follows(const struct gather_near *n, const struct rt_req *r, uint64_t len)
{
    if (n->first->fd != r->fd || n->first->op != r->op || n->first->off + n->len != r->off || n->len + len > GATHER_BYTES)
        return false;
    return n->group ? n->group->count < GATHER_REQS && n->group->cnt + r->cnt <= GATHER_VECS : true;
}

bool gather_join(struct gather *ga, struct rt_req *r)
{
    if (!ga->count || !may_share(r))
        return false;
    uint64_t len = length(r);
    for (unsigned i = 0; i < ga->count; i++) {
        struct gather_near *n = &ga->near[i];
        if (!follows(n, r, len))
            continue;
        if (!n->group) {
            struct gather_group *g = group_get(ga);
            if (!g)
                return false;
            g->count = g->cnt = 0;
            g->len = 0;
            add(g, n->first, n->len);
            n->group = g;
        }
        add(n->group, r, len);
        n->len += len;
        describe(n);
        return true;
    }
    return false;
}

void gather_note(struct gather *ga, struct rt_req *r, struct io_uring_sqe *sqe)
{
    uint64_t len;
    if (!may_share(r) || (len = length(r)) >= GATHER_BYTES)
        return;
    unsigned at = ga->count < GATHER_NEAR ? ga->count++ : ga->turn++ % GATHER_NEAR;
    ga->near[at] = (struct gather_near){ .sqe = sqe, .first = r, .len = len };
}

void gather_forget(struct gather *ga) { ga->count = ga->turn = 0; }

struct rt_req *gather_ended(struct gather *ga, struct gather_group *g, int res)
{
    struct rt_req *again = NULL, **last = &again;
    uint64_t end = 0, came = res > 0 ? (uint64_t)res : 0;
    ASSERT(came <= g->len);
    for (unsigned i = 0; i < g->count; i++) {
        struct rt_req *r = g->all[i];
        uint64_t len = length(r);
        end += len;
        if (end <= came) {                                   /* I2 */
            r->res = (int64_t)len;
            r->done(r);
            continue;
        }
        r->next = NULL;
        *last = r;
        last = &r->next;
    }
    group_put(ga, g);                                        /* not before: done() may have issued others */
    return again;
}

void gather_fini(struct gather *ga)
{
    while (ga->idle) {
        struct gather_group *g = ga->idle;
        ga->idle = g->next;
        free(g);
    }
}
