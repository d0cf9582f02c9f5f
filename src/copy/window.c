/* SPDX-License-Identifier: MIT
 *
 * window.c: workers that take pieces from one place.
 *
 * Purpose     Keeps a fixed number of pieces in flight, on one loop or spread over all, in order or not.
 * Owns        The workers and their buffers.
 * Invariants  I1  All bookkeeping is touched on the job's loop only; a worker visits it between two pieces.
 *             I2  next() is called by one worker at a time; seq counts its answers.
 *             I3  After an error no further piece is handed out, and nobody waits for a turn any more.
 *             I4  The first worker is the coroutine that called window_run: cancelling that one stops the window.
 * Order       window_turn: by seq.
 * Concurrency See copy.h.
 * Failure     The first error in time is the result. A worker that cannot be started makes the window smaller; one at
 *             least there is always.
 * Tests       copy_test.c
 */
#include <stdlib.h>

#include "copy/copy_priv.h"

/* Pieces that may be done or in hand beyond the first that is not done: bits of done_mask. */
#define AHEAD_MAX 64
_Static_assert(COPY_WORKERS_MAX <= AHEAD_MAX, "each worker may hold a piece");

int window_init(struct window *w, unsigned workers, uint32_t piece_bytes, struct byre_err *err)
{
    w->workers = workers ? workers : COPY_WORKERS_DEFAULT;
    w->piece_bytes = piece_bytes ? piece_bytes : COPY_PIECE_DEFAULT;
    if (w->workers > COPY_WORKERS_MAX)
        return byre_fail(err, BAD_ARGUMENT, "%u pieces in flight are too many, the most is %u", workers, COPY_WORKERS_MAX);
    if (!is_pow2(w->piece_bytes) || w->piece_bytes < PIECE_MIN || w->piece_bytes > COPY_PIECE_MAX)
        return byre_fail(err, BAD_ARGUMENT, "a piece of %u bytes is not acceptable", piece_bytes);
    return 0;
}

/* ---- on the job's loop ---- */

static void fail_with(struct window *w, int error)
{
    if (!w->error)
        w->error = error;
    co_wake_all(&w->turns);
}

static void piece_ended(struct window *w, struct worker *wk)
{
    uint64_t ahead = wk->piece.seq - w->turn;
    ASSERT(ahead < AHEAD_MAX);
    w->done_mask |= UINT64_C(1) << ahead;
    while (w->done_mask & 1) {
        w->done_mask >>= 1;
        w->turn++;
    }
    if (wk->result)
        fail_with(w, wk->result);
    w->ops->done(w->ctx, &wk->piece, wk->result);
    copy_latency_add(w->latency, rt_now(w->home) - wk->piece.begun_ns);
    wk->busy = false;
    co_wake_all(&w->turns);
}

/* Takes the result of the last piece and gives the next. 1: there is one; 0: none. */
static int visit(struct co *co, void *arg)
{
    struct worker *wk = arg;
    struct window *w = wk->w;
    if (wk->busy)
        piece_ended(w, wk);
    co_lock(co, &w->next_lock);
    while (w->issued - w->turn >= AHEAD_MAX && !w->error)
        co_wait(co, &w->turns);
    if (wk == w->all && co_cancelled(co))
        fail_with(w, -ECANCELED);
    int r = w->ended || w->error ? 0 : w->ops->next(co, w->ctx, &wk->piece);
    if (r < 0)
        fail_with(w, r);
    if (!r)
        w->ended = true;
    if (w->error)
        r = 0;                          /* also when it failed while next() was suspended */
    if (r > 0) {
        wk->piece.seq = w->issued++;
        wk->piece.begun_ns = rt_now(w->home);
        wk->busy = true;
    }
    co_unlock(&w->next_lock);
    return r;
}

static int wait_turn(struct co *co, void *arg)
{
    struct worker *wk = arg;
    while (!wk->w->error && wk->w->turn != wk->piece.seq)
        co_wait(co, &wk->w->turns);
    return wk->w->error ? -ECANCELED : 0;
}

static void worker_ended(struct rt_msg *m)
{
    struct worker *wk = CONTAINER_OF(m, struct worker, ended);
    if (wk->busy)
        piece_ended(wk->w, wk);
    else if (wk->result)
        fail_with(wk->w, wk->result);
    co_group_leave(&wk->w->running);
}

/* ---- on the worker's loop ---- */

int window_turn(struct co *co, struct worker *wk)
{
    return rt_call(co, wk->w->home, wait_turn, wk);
}

static void work(struct co *co, struct worker *wk)
{
    int r;
    while ((r = rt_call(co, wk->w->home, visit, wk)) > 0)
        wk->result = wk->w->ops->work(co, wk->w->ctx, wk);
    wk->result = r;                     /* not 0: no visit could be made, the piece in hand counts as failed */
}

static void worker_main(struct co *co, void *arg)
{
    struct worker *wk = arg;
    work(co, wk);
    rt_post(wk->w->home, &wk->ended);
}

/* ---- start and end ---- */

static int take_buffers(struct window *w)
{
    for (unsigned i = 0; i < w->workers; i++) {
        for (int b = 0; b <= w->two_buffers; b++) {
            w->all[i].buf[b] = aligned_alloc(BUF_ALIGN, w->piece_bytes);
            if (!w->all[i].buf[b])
                return -ENOMEM;
        }
    }
    return 0;
}

static void free_workers(struct window *w)
{
    for (unsigned i = 0; w->all && i < w->workers; i++) {
        free(w->all[i].buf[0]);
        free(w->all[i].buf[1]);
    }
    free(w->all);
    w->all = NULL;
}

static void start_workers(struct window *w)
{
    struct rt *rt = rt_of(w->home);
    unsigned home = rt_loop_index(w->home);
    for (unsigned i = 0; i < w->workers; i++) {
        struct worker *wk = &w->all[i];
        wk->w = w;
        wk->loop = rt_loop_at(rt, w->spread ? (home + i) % rt_loop_count(rt) : home);
        wk->ended.fn = worker_ended;
        if (!i)
            continue;
        co_group_enter(&w->running);
        if (rt_spawn_on(wk->loop, worker_main, wk))
            co_group_leave(&w->running);
    }
}

int window_run(struct co *co, struct window *w, struct byre_err *err)
{
    w->home = co_loop(co);
    w->all = calloc(w->workers, sizeof *w->all);
    if (!w->all || take_buffers(w)) {
        free_workers(w);
        return byre_fail(err, NOMEM, "no memory for %u buffers of %u bytes", w->workers, w->piece_bytes);
    }
    start_workers(w);
    work(co, &w->all[0]);
    co_group_wait(co, &w->running);
    free_workers(w);
    return w->error;
}
