/* SPDX-License-Identifier: MIT
 *
 * group.c: jobs that end together.
 *
 * Purpose      A meeting point for the members of a group, and the end of all when one fails.
 * Owns         struct job_group, counted by its members and its maker
 * Invariants   G1 a meeting is over when as many have come as there are members; who leaves badly ends it for all
 *              G2 nobody commits before everybody is prepared
 *              G3 when they have met, a user's cancel comes too late for each of them, whichever wakes first: another may have committed
 * Order        none of its own
 * Concurrency  home loop
 * Failure      none
 * Tests        job_test.c, tests/daemon/transaction_test.py
 */
#include "job/group.h"

#include <stdlib.h>

#include "base/assert.h"

struct job_group { unsigned refs, members, here; uint64_t meeting; bool broken; struct job *first; };

struct job_group *job_group_new(void)
{
    struct job_group *g = calloc(1, sizeof *g);
    if (g)
        g->refs = 1;
    return g;
}

void job_group_let(struct job_group *g)
{
    if (g && --g->refs == 0)
        free(g);
}

void job_group_join(struct job_group *g, struct job *job)
{
    ASSERT(!job->group && job->status == JOB_CREATED);
    job->group = g;
    job->group_next = g->first;
    g->first = job;
    g->refs++;
    g->members++;
}

int group_meet(struct co *co, struct job *job)
{
    struct job_group *g = job->group;
    if (!g || job_cancelled(job))
        return job_cancelled(job) ? -ECANCELED : 0;
    uint64_t meeting = g->meeting;
    if (++g->here == g->members) {
        g->here = 0;
        g->meeting++;
        for (struct job *m = g->first; m; m = m->group_next)
            co_wake_all(&m->wake);
        return 0;
    }
    while (g->meeting == meeting && !job_cancelled(job))
        co_wait(co, &job->wake);
    return g->meeting == meeting || g->broken ? -ECANCELED : 0;      /* G3 */
}

void group_finalize(struct job *job)
{
    for (struct job *m = job->group ? job->group->first : NULL; m; m = m->group_next) {
        m->finalize_wanted = true;
        co_wake_all(&m->wake);
    }
}

void group_part(struct job *job, bool well)
{
    struct job_group *g = job->group;
    if (!g)
        return;
    struct job **at = &g->first;
    while (*at != job)
        at = &(*at)->group_next;
    *at = job->group_next;
    job->group = NULL;
    g->members--;
    g->broken |= !well;
    for (struct job *m = g->first; m && !well; m = m->group_next)
        job_give_up(m);                          /* G1 */
    job_group_let(g);
}
