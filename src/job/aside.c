/* SPDX-License-Identifier: MIT
 *
 * aside.c: what a job can leave alone.
 *
 * Purpose      A target that stands still does not keep a job from its end, nor those who wait for the edges that are held meanwhile.
 * Owns         struct aside: the waiting coroutine's, then its own coroutine's
 * Invariants   I1 nobody is told that what was left alone is durable, or done
 * Order        none
 * Concurrency  home loop
 * Failure      the request's own, or JOB_LEFT_ALONE, which no request answers
 * Tests        mirror_test.c, tests/cli/nbd_stall_test.py, tests/daemon/backup_stalled_test.py, mirror_stalled_test.py
 */
#include "job/aside.h"

#include <stdlib.h>

#include "rt/loop.h"
#include "rt/sync.h"

struct aside {
    struct graph_node *node;
    struct graph_user *use;                      /* NULL: a flush */
    uint64_t size;
    struct job *job;
    struct co_group *left_in;
    bool done, left;
    int result;
    struct byre_err err;
};

static void aside_main(struct co *co, void *arg)
{
    struct aside *a = arg;
    a->result = a->use ? graph_resize_for(co, a->use, a->size, &a->err) : graph_flush(co, a->node);
    a->done = true;
    if (!a->left) {
        co_wake_all(&a->job->wake);
        return;
    }
    struct co_group *left_in = a->left_in;       /* the job may be gone */
    (void)graph_close(co, a->node);              /* I1 */
    free(a);
    co_group_leave(left_in);
}

static int run_aside(struct co *co, const struct aside *what, const struct job_patience *p, struct byre_err *err)
{
    struct job *job = what->job;
    struct aside *a = malloc(sizeof *a);
    if (!a)
        return byre_fail(err, NOMEM, "no memory for a request to a target");
    *a = *what;
    a->left_in = p->left_in;
    if (rt_spawn(co_loop(co), aside_main, a)) {
        free(a);
        return byre_fail(err, NOMEM, "no memory for a request to a target");
    }
    uint64_t old = co_set_deadline(co, p->until);
    while (!a->done && (p->stay || !job_cancelled(job)) && co_wait_cancellable(co, &job->wake) == 0)
        ;
    (void)co_set_deadline(co, old);
    if (!a->done) {
        a->left = true;
        graph_ref(a->node);
        co_group_enter(p->left_in);
        return JOB_LEFT_ALONE;
    }
    int r = a->result;
    if (r && err)
        *err = a->err;
    free(a);
    return r;
}

int job_flush_aside(struct co *co, struct job *job, struct graph_node *node, const struct job_patience *p)
{
    return run_aside(co, &(struct aside){ .node = node, .job = job }, p, NULL);
}

int job_resize_aside(struct co *co, struct job *job, struct graph_user *use, uint64_t size, const struct job_patience *p, struct byre_err *err)
{
    return run_aside(co, &(struct aside){ .node = use->node, .use = use, .size = size, .job = job }, p, err);
}
