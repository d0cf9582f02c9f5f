/* SPDX-License-Identifier: MIT
 *
 * job.h: something long that runs in the background: convert, compare, check, scrub, compaction, commit, rebase, amend.
 *
 * The functions that start a job, byre_..._start, are in convert.h, check.h, compact.h, chain.h and amend.h. Images that a job uses stay open until it is freed.
 */
#ifndef BYRE_JOB_H
#define BYRE_JOB_H

#include "byre/base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct byre_progress {
    uint64_t done, total;        /* in units of the job (bytes, clusters); total may grow; both 0: not known yet */
};

/* Result of the job once it has ended: 0 or a negative errno with *err. -ETIMEDOUT: it runs on after timeout_ms
 * (-1: waits for ever); a job that has ended with this error gives -EIO, and err tells which. May be called again. */
BYRE_EXPORT BYRE_MUST_USE int byre_job_wait(struct byre_job *job, int timeout_ms, struct byre_err *err);
/* From any thread. */
BYRE_EXPORT void byre_job_progress(const struct byre_job *job, struct byre_progress *ret);
/* Asks the job to end; byre_job_wait then gives -ECANCELED unless it was done already. From any thread. */
BYRE_EXPORT void byre_job_cancel(struct byre_job *job);
/* Cancels if it still runs, and waits. NULL is allowed. */
BYRE_EXPORT void byre_job_free(struct byre_job *job);

#ifdef __cplusplus
}
#endif
#endif
