/* SPDX-License-Identifier: MIT
 *
 * q2_ahead.c: a ring of reads in flight.
 *
 * Purpose      Keeps the storage busy while tables are looked at, with bounded memory and in a fixed order.
 * Owns         Slots and their buffers; one coroutine per read in flight.
 * Invariants   I1 Pieces are used in the order in which next() gave them.
 *              I2 When q2_ahead_run returns no read is in flight and nothing is allocated.
 * Order        Reads only.
 * Concurrency  Coroutines of one loop. Without a coroutine to be had a read is done by the caller itself.
 * Failure      A failed read is handed to use() with rc set.
 * Tests        q2_check_test.c, tests/interop/test_q2_check.py
 */
#include "fmt/qcow2/q2_ahead.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "rt/loop.h"
#include "rt/sync.h"

struct slot {
    struct q2_piece p;
    struct stor *store;
    struct co_waitq *q;
    uint64_t cap;              /* bytes of p.data */
    bool done;
};

static void read_slot(struct co *co, void *arg)
{
    struct slot *s = arg;
    struct iovec v;
    s->p.rc = stor_read(co, s->store, iov_one(&v, s->p.data, s->p.len), s->p.off);
    if (s->p.rc)
        memset(s->p.data, 0, s->p.len);
    s->done = true;
    co_wake_all(s->q);
}

/* Makes room for the piece. Small images get by with small buffers. */
static int make_room(struct slot *s)
{
    size_t align = s->store->lim.mem_align > 4096 ? s->store->lim.mem_align : 4096;
    if (s->p.len <= s->cap)
        return 0;
    free(s->p.data);
    s->p.data = NULL;
    s->cap = 0;
    void *mem;
    if (posix_memalign(&mem, align, round_up(s->p.len, 4096)))
        return -ENOMEM;
    s->p.data = mem;
    s->cap = round_up(s->p.len, 4096);
    return 0;
}

/* Starts the read of a slot. 0: nothing left to read; 1: started; -ENOMEM. */
static int start(struct co *co, struct slot *s, uint64_t max_bytes, const struct q2_ahead_ops *ops, void *arg)
{
    s->p.rc = 0;
    if (!ops->next(arg, &s->p))
        return 0;
    ASSERT(s->p.len && s->p.len <= max_bytes);
    int rc = make_room(s);
    if (rc)
        return rc;
    s->done = false;
    if (rt_spawn(co_loop(co), read_slot, s))
        read_slot(co, s);
    return 1;
}

static void wait_slot(struct co *co, struct slot *s)
{
    while (!s->done)
        co_wait(co, s->q);
}

static int run(struct co *co, struct slot *slots, uint64_t max_bytes, const struct q2_ahead_ops *ops, void *arg)
{
    unsigned head = 0, busy = 0;
    bool more = true;
    int rc = 0;
    for (;;) {
        while (more && !rc && busy < Q2_AHEAD_SLOTS) {
            int started = start(co, &slots[(head + busy) % Q2_AHEAD_SLOTS], max_bytes, ops, arg);
            if (started < 0)
                rc = started;
            more = started > 0;
            busy += more;
        }
        if (!busy)
            return rc;
        wait_slot(co, &slots[head]);
        if (!rc)
            rc = ops->use(co, arg, &slots[head].p);
        head = (head + 1) % Q2_AHEAD_SLOTS;
        busy--;
    }
}

int q2_ahead_run(struct co *co, struct stor *store, uint64_t max_bytes, const struct q2_ahead_ops *ops, void *arg)
{
    struct co_waitq q = { 0 };
    struct slot *slots = calloc(Q2_AHEAD_SLOTS, sizeof *slots);
    if (!slots)
        return -ENOMEM;
    for (unsigned i = 0; i < Q2_AHEAD_SLOTS; i++)
        slots[i] = (struct slot){ .store = store, .q = &q };
    int rc = run(co, slots, max_bytes, ops, arg);
    for (unsigned i = 0; i < Q2_AHEAD_SLOTS; i++)
        free(slots[i].p.data);
    free(slots);
    return rc;
}
