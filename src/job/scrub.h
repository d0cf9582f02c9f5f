/* SPDX-License-Identifier: MIT
 *
 * scrub.h: the job that checks a disk in use (FEATURES G.001), or looks an image through that was not closed cleanly.
 */
#ifndef JOB_SCRUB_H
#define JOB_SCRUB_H

#include "graph/graph.h"
#include "job/job.h"

#define JOB_SCRUB_FINDINGS 100u          /* kept; all are counted */

struct job_scrub_finding { bool fixed; char id[24]; char text[200]; };
struct job_scrub_result {
    struct fmt_check_result counts;
    uint64_t findings;                   /* told in all */
    struct job_scrub_finding *list;      /* the first of them */
    unsigned listed;
};

struct job_scrub_opts {
    struct graph_node *node;             /* must stay open until the job has ended */
    bool fix_leaks;
    bool keep_failed;                    /* dismissed by itself only if nothing is wrong */
    struct job_opts job;                 /* opaque is not looked at; speed: guest bytes per second */
};
extern const struct job_kind job_scrub_kind;
/* -ENOTSUP: the format has no scrub; -EROFS. */
MUST_USE int job_scrub_start(struct jobs *js, const struct job_scrub_opts *o, struct job **ret_job, struct byre_err *err);
/* Of a job that is job_scrub_kind and has concluded: what was found, also when it failed for that. */
const struct job_scrub_result *job_scrub_result(const struct job *job);

#endif
