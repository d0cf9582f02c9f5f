/* SPDX-License-Identifier: MIT
 *
 * aside.c: a flush that a job can leave alone.
 *
 * Purpose      A target that stands still does not keep a job from its end.
 * Owns         struct aside: the job's while it waits, then its own coroutine's
 * Invariants   I1 nobody is told that what was left alone is durable
 * Order        none
 * Concurrency  home loop
 * Failure      the flush's own, or JOB_LEFT_ALONE, which no flush answers
 * Tests        mirror_test.c, tests/cli/nbd_stall_test.py, tests/daemon/backup_stalled_test.py
 */
#include "job/aside.h"

#include <stdlib.h>

#include "rt/loop.h"
#include "rt/sync.h"

struct aside { struct graph_node *node; struct job *job; struct co_group *left_in; bool done, left; int result; };

static void aside_main(struct co *co, void *arg)
{
    struct aside *a = arg;
    a->result = graph_flush(co, a->node);
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

int job_flush_aside(struct co *co, struct job *job, struct graph_node *node, struct co_group *left_in, uint64_t until)
{
    struct aside *a = calloc(1, sizeof *a);
    if (!a)
        return -ENOMEM;
    *a = (struct aside){ .node = node, .job = job, .left_in = left_in };
    if (rt_spawn(co_loop(co), aside_main, a)) {
        free(a);
        return -ENOMEM;
    }
    uint64_t old = co_set_deadline(co, until);
    while (!a->done && (until || !job_cancelled(job)) && co_wait_cancellable(co, &job->wake) == 0)
        ;
    (void)co_set_deadline(co, old);
    if (!a->done) {
        a->left = true;
        graph_ref(node);
        co_group_enter(left_in);
        return JOB_LEFT_ALONE;
    }
    int r = a->result;
    free(a);
    return r;
}
