/* SPDX-License-Identifier: MIT
 *
 * leave.c: how a job leaves its target.
 *
 * Purpose      Waits for what the job has left alone, closes the target behind it, and keeps nobody waiting for a target that stands still.
 * Owns         struct job_leave from job_leave on: the waiting coroutine's, then its own coroutine's
 * Invariants   leave.h L1 to L3
 * Order        last request | settle | last | closed | end of the job, unless it took too long (J4)
 * Concurrency  home loop
 * Failure      none: what could not be closed well was promised to nobody
 * Tests        ../sim/backup_test.c, mirror_test.c, tests/daemon/backup_stalled_test.py, tests/cli/nbd_stall_test.py
 */
#include "job/leave.h"

#include "base/assert.h"
#include "rt/loop.h"

static void lose_patience(struct rt_timer *t)
{
    const struct job_leave *l = CONTAINER_OF(t, struct job_leave, patience);
    graph_warn(l->target, "%s: does not answer; the requests of a job that is over are given up", graph_filename(l->target));
    graph_abandon(l->target);
}

/* Nobody waits for a limit of a target that he is about to leave. */
static void hasten(struct job_leave *l)
{
    graph_haste_may(&l->haste, l->target);
    if (!l->keeps_pace)
        graph_haste_begin(&l->haste);
}

/* L3 */
static void close_target(struct co *co, struct job_leave *l)
{
    if (l->may_abandon)
        graph_hurry(l->target, JOB_CLOSE_NS);
    if (l->last)
        l->last(co, l);
    graph_writer_gone(co, l->target);
    if (l->may_abandon)
        (void)graph_close_hurried(co, l->target);            /* it was flushed when that was promised */
    else
        (void)graph_close(co, l->target);
    graph_haste_end(&l->haste);
}

static void leave_main(struct co *co, void *arg)
{
    struct job_leave *l = arg;
    struct rt_loop *home = l->jobs->home;
    hasten(l);
    if (l->may_abandon)
        rt_timer_start(home, &l->patience, rt_now(home) + JOB_ABANDON_NS, lose_patience);
    co_group_wait(co, &l->inside);
    if (l->settle)
        l->settle(co, l);
    rt_timer_stop(home, &l->patience);
    close_target(co, l);
    l->done = true;
    co_wake_all(&l->q);
    if (!l->alone)
        return;                          /* job_leave goes on */
    struct jobs *js = l->jobs;
    l->free(l);
    co_group_leave(&js->alive);
}

void job_leave(struct co *co, struct job_leave *l, struct jobs *js, uint64_t patience)
{
    uint64_t old = co_set_deadline(co, rt_now(js->home) + patience);
    l->jobs = js;
    co_group_enter(&js->alive);
    if (rt_spawn(js->home, leave_main, l))
        leave_main(co, l);               /* no memory: here */
    while (!l->done && co_wait_cancellable(co, &l->q) == 0)
        ;
    (void)co_set_deadline(co, old);
    l->alone = !l->done;
    if (l->alone)
        return;
    co_group_leave(&js->alive);
    l->free(l);
}

void job_leave_now(struct co *co, struct job_leave *l)
{
    if (!l)
        return;
    ASSERT(!l->inside.n);
    hasten(l);
    close_target(co, l);
    l->free(l);
}
