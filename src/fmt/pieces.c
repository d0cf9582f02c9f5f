/* SPDX-License-Identifier: MIT
 *
 * pieces.c: a ring of reads in flight.
 *
 * Purpose      Keeps the storage busy while tables are looked at, with bounded memory and in a fixed order.
 * Owns         Slots and their buffers; one coroutine per read in flight.
 * Invariants   I1 Pieces are used in the order in which next() gave them.
 *              I2 When fmt_pieces_run returns no read is in flight and nothing is allocated.
 * Order        Reads only.
 * Concurrency  Coroutines of one loop; work() on threads of the CPU pool, each with a piece and a worker number that
 *              are its own meanwhile. Without a coroutine to be had a read is done by the caller itself.
 * Failure      A failed read is handed to use() with rc set.
 * Tests        q2_check_test.c, tests/interop/test_q2_check.py
 */
#include "fmt/pieces.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/checked.h"
#include "rt/loop.h"
#include "rt/sync.h"

#define BATCH_BYTES (256u << 10)

struct ring {
    struct stor *store;
    const struct fmt_pieces_ops *ops;
    void *arg;
    uint64_t max_bytes, caps;  /* caps: bytes of all buffers */
    struct co_waitq changed;   /* some slot is done */
    unsigned slots, workers;
    uint64_t busy;             /* bit per worker number in use */
    struct slot *ready, **ready_tail;      /* read, waiting for a worker */
    int rc;                    /* the first failure of work() or worked() */
};

struct slot {
    struct fmt_piece p;
    struct ring *ring;
    struct slot *next;
    uint64_t cap;              /* bytes of p.data */
    bool done;
};

/* What a worker takes at once: small pieces are not worth a switch of threads each. */
struct batch { struct ring *ring; struct slot *first; unsigned worker; };

static struct slot *take_batch(struct ring *r)
{
    struct slot *first = r->ready, *last = first;
    uint64_t bytes = first->p.len;
    for (; last->next && bytes + last->next->p.len <= BATCH_BYTES; last = last->next)
        bytes += last->next->p.len;
    r->ready = last->next;
    if (!r->ready)
        r->ready_tail = &r->ready;
    last->next = NULL;
    return first;
}

static int64_t work(void *arg)
{
    struct batch *b = arg;
    int rc = 0;
    for (struct slot *s = b->first; s && !rc; s = s->next)
        rc = b->ring->ops->work(b->ring->arg, b->worker, &s->p);
    return rc;
}

/* As long as something is ready and there is a worker number for this coroutine. */
static void have_a_look(struct co *co, struct ring *r)
{
    uint64_t all = r->workers == 64 ? UINT64_MAX : (1ull << r->workers) - 1;
    if (r->busy == all)
        return;                                  /* those who have one will look at it */
    struct batch b = { .ring = r, .worker = (unsigned)__builtin_ctzll(~r->busy) };
    r->busy |= 1ull << b.worker;
    while (r->ready) {
        b.first = take_batch(r);
        int rc = (int)rt_cpu(co, work, &b);
        if (!rc && r->ops->worked)
            rc = r->ops->worked(r->arg, b.worker);
        if (rc && !r->rc)
            r->rc = rc;
        for (struct slot *s = b.first, *next; s; s = next) {
            next = s->next;
            s->done = true;
        }
        co_wake_all(&r->changed);
    }
    r->busy &= ~(1ull << b.worker);
}

static void read_slot(struct co *co, void *arg)
{
    struct slot *s = arg;
    struct ring *r = s->ring;
    struct iovec v;
    s->p.rc = r->ops->exact ? stor_read_exact(co, r->store, s->p.data, s->p.len, s->p.off)
                            : stor_read(co, r->store, iov_one(&v, s->p.data, s->p.len), s->p.off);
    if (s->p.rc)
        memset(s->p.data, 0, s->p.len);
    if (s->p.rc || !r->workers) {
        s->done = true;
        co_wake_all(&r->changed);
        return;
    }
    s->next = NULL;
    *r->ready_tail = s;
    r->ready_tail = &s->next;
    have_a_look(co, r);
}

/* Makes room for the piece. Small images get by with small buffers. */
static int make_room(struct slot *s)
{
    size_t align = s->ring->store->lim.mem_align > 4096 ? s->ring->store->lim.mem_align : 4096;
    if (s->p.len <= s->cap)
        return 0;
    free(s->p.data);
    s->p.data = NULL;
    s->ring->caps -= s->cap;
    s->cap = 0;
    void *mem;
    if (posix_memalign(&mem, align, round_up(s->p.len, 4096)))
        return -ENOMEM;
    s->p.data = mem;
    s->cap = round_up(s->p.len, 4096);
    s->ring->caps += s->cap;
    return 0;
}

/* Starts the read of a slot. 0: nothing left to read; 1: started; -ENOMEM. */
static int start(struct co *co, struct slot *s)
{
    const struct ring *r = s->ring;
    s->p.rc = 0;
    if (!r->ops->next(r->arg, &s->p))
        return 0;
    ASSERT(s->p.len && s->p.len <= r->max_bytes);
    int rc = make_room(s);
    if (rc)
        return rc;
    s->done = false;
    memset(s->p.marks, 0, sizeof s->p.marks);
    if (rt_spawn(co_loop(co), read_slot, s))
        read_slot(co, s);
    return 1;
}

/* May one more slot be used? */
static bool may_start(const struct ring *r, unsigned busy)
{
    return busy < FMT_PIECES_SLOTS || (busy < r->slots && r->caps + r->max_bytes <= FMT_PIECES_ROOM);
}

static int run(struct co *co, struct ring *r, struct slot *slots)
{
    unsigned head = 0, busy = 0;
    bool more = true;
    int rc = 0;
    for (;;) {
        while (more && !rc && may_start(r, busy)) {
            int started = start(co, &slots[(head + busy) % r->slots]);
            if (started < 0)
                rc = started;
            more = started > 0;
            busy += more;
        }
        if (!busy)
            return rc ? rc : r->rc;
        while (!slots[head].done)
            co_wait(co, &r->changed);
        rc = rc ? rc : r->rc;
        if (!rc)
            rc = r->ops->use(co, r->arg, &slots[head].p);
        head = (head + 1) % r->slots;
        busy--;
    }
}

int fmt_pieces_run_on(struct co *co, struct stor *store, uint64_t max_bytes, const struct fmt_pieces_ops *ops, void *arg, unsigned workers)
{
    struct ring r = { .store = store, .ops = ops, .arg = arg, .max_bytes = max_bytes, .slots = FMT_PIECES_SLOTS, .workers = ops->work ? workers : 0 };
    ASSERT(workers <= FMT_PIECES_WORKERS_MAX);
    r.ready_tail = &r.ready;
    if (r.workers)
        r.slots = FMT_PIECES_SLOTS_MAX;
    struct slot *slots = calloc(r.slots, sizeof *slots);
    if (!slots)
        return -ENOMEM;
    for (unsigned i = 0; i < r.slots; i++)
        slots[i].ring = &r;
    int rc = run(co, &r, slots);
    for (unsigned i = 0; i < r.slots; i++)
        free(slots[i].p.data);
    free(slots);
    return rc;
}

int fmt_pieces_run(struct co *co, struct stor *store, uint64_t max_bytes, const struct fmt_pieces_ops *ops, void *arg)
{
    return fmt_pieces_run_on(co, store, max_bytes, ops, arg, 0);
}
