/* SPDX-License-Identifier: MIT
 *
 * compact.h: the job that makes the file of a disk in use as small as what it holds.
 */
#ifndef JOB_COMPACT_H
#define JOB_COMPACT_H

#include "graph/graph.h"
#include "job/job.h"

struct job_compact_opts {
    struct graph_node *node;             /* must stay open until the job has ended */
    bool look_for_zeros;
    struct job_opts job;                 /* opaque is not looked at; speed: bytes read or moved per second */
};
extern const struct job_kind job_compact_kind;
/* -ENOTSUP: the format has no compaction; -EROFS. */
MUST_USE int job_compact_start(struct jobs *js, const struct job_compact_opts *o, struct job **ret_job, struct byre_err *err);
/* Of a job that is job_compact_kind and has concluded: what was done, also when it failed or was cancelled. */
const struct fmt_compact_result *job_compact_result(const struct job *job);

#endif
