/* SPDX-License-Identifier: MIT
 *
 * create.h: the jobs that make images (FEATURES 1.147, 8.012) and change options of images, by options as blockdev-create and x-blockdev-amend have them.
 */
#ifndef JOB_CREATE_H
#define JOB_CREATE_H

#include <jansson.h>

#include "graph/graph.h"
#include "job/job.h"

struct job_create_opts {
    struct graph *graph;
    const json_t *options;               /* "driver": file, luks, qcow2, qed; copied */
    struct job_opts job;                 /* opaque is not looked at */
};
extern const struct job_kind job_create_kind;
/* What is wrong with the options or their nodes is told by the job. */
MUST_USE int job_create_start(struct jobs *js, const struct job_create_opts *o, struct job **ret_job, struct byre_err *err);

struct job_amend_opts {
    struct graph_node *node;
    const json_t *options;               /* "driver": the node's; copied */
    bool force;                          /* what may lose something is wanted all the same */
    struct job_opts job;
};
extern const struct job_kind job_amend_kind;
/* -EINVAL: another driver; -ENOTSUP: images of the format are not changed; else the job tells. */
MUST_USE int job_amend_start(struct jobs *js, const struct job_amend_opts *o, struct job **ret_job, struct byre_err *err);

#endif
