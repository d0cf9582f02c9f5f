/* SPDX-License-Identifier: MIT
 *
 * copying.h: what jobs that copy have in common: pauses, a speed that changes, cancelling, progress, what becomes of errors and of bitmaps.
 *
 * A mirror, which goes by copy/live.h, and a backup have only the decision from here: their errors come by other ways.
 *
 * Concurrency  Home loop. The hooks are called by copy_run.
 */
#ifndef JOB_COPYING_H
#define JOB_COPYING_H

#include "base/checked.h"
#include "copy/copy.h"
#include "job/job.h"

/* What is done when a request fails (FEATURES 9.009, 9.010). ENOSPC: STOP when there is no space, else REPORT. */
enum job_on_error { JOB_ON_ERROR_REPORT, JOB_ON_ERROR_IGNORE, JOB_ON_ERROR_ENOSPC, JOB_ON_ERROR_STOP };

/* What becomes of the dirty bitmap that a copy goes by. ON_SUCCESS: what was copied is taken out of it when the job has ended well. ALWAYS: also when it
 * has not. NEVER: it goes on saying what it said. */
enum job_bitmap_mode { JOB_BITMAP_ON_SUCCESS, JOB_BITMAP_NEVER, JOB_BITMAP_ALWAYS };

/* What `policy` makes of this error: never ENOSPC. */
enum job_on_error job_decide(enum job_on_error policy, int error);
/* Says to those who watch jobs (struct jobs' io_error) that a request failed, and what is done: REPORT, IGNORE or STOP. */
void job_tell_error(const struct job *job, bool read, enum job_on_error done);

/* The default grain of a copying job (runs of zeros that are left out, dirty bits): what the format says, from 4 KiB to 64 KiB. */
static inline uint64_t job_grain(uint64_t bytes) { return min_u64(max_u64(bytes, 4096), 65536); }

struct job_copying {
    struct job *job;
    enum job_on_error on_read, on_write;
    bool leave;                          /* what cannot be read, and is ignored, is left out; else it is tried again and again */
    struct co_mutex one;                 /* one at a time asks, waits or stands still */
    unsigned resumed;                    /* how often it stood still because of an error, and went on */
    uint64_t work, before;               /* bytes that are to be worked on, as counted first; those of copies that have ended */
};
/* To be put into copy_job.hooks; c lives as long as copy_run. */
struct copy_hooks job_copying_hooks(struct job_copying *c);
/* Counts what cj, whose hooks are c's, is going to work on: from then on that is the total of the job (FEATURES 11.031), and until then the length of its parts.
 * Suspends. */
MUST_USE int job_copying_count(struct co *co, struct job_copying *c, const struct copy_job *cj, struct byre_err *err);
/* copy_job.progress of a copy with COPY_WORK, with arg = c. */
void job_copying_progress(void *arg, uint64_t done, uint64_t total);
/* One of several copies has ended; all of them: what guests have taken over meanwhile counts as done. */
void job_copying_part_done(struct job_copying *c);
void job_copying_all_done(struct job_copying *c);

#endif
