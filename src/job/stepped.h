/* SPDX-License-Identifier: MIT
 *
 * stepped.h: a store through which a job writes, and at each request of which it can be paused and cancelled.
 */
#ifndef JOB_STEPPED_H
#define JOB_STEPPED_H

#include "job/job.h"
#include "stor/stor.h"

/* Takes `below` over on success: it is closed with it. Home loop, in the job's coroutine. -ENOMEM. */
MUST_USE int stepped_new(struct job *job, struct stor *below, struct stor **ret_s);
/* Has anything been asked of it that changes what it holds? */
bool stepped_touched(const struct stor *s);
struct stor *stepped_below(const struct stor *s);

#endif
