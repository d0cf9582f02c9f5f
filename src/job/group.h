/* SPDX-License-Identifier: MIT
 *
 * group.h: jobs that end together (FEATURES 9.015, 9.088, G.035, G.036): all of them well, or none.
 *
 * Each member waits where the others are not yet: when its work is done, when it may be finalized, and when it is prepared. So none commits before
 * all can. When one fails or is cancelled, the others are cancelled.
 *
 * Concurrency  home loop
 */
#ifndef JOB_GROUP_H
#define JOB_GROUP_H

#include "job/job.h"

/* NULL: no memory. The maker gives it back with job_group_let when all have joined. */
struct job_group *job_group_new(void);
void job_group_let(struct job_group *g);
/* A job that has not begun. */
void job_group_join(struct job_group *g, struct job *job);

/* ---- for job.c ---- */
/* Waits until all members are here. -ECANCELED. */
MUST_USE int group_meet(struct co *co, struct job *job);
/* A user wants one of them finalized: all are. */
void group_finalize(struct job *job);
/* Told to end, by whoever it was. */
void job_give_up(struct job *job);
/* The job has ended. */
void group_part(struct job *job, bool well);

#endif
