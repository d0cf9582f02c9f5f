/* SPDX-License-Identifier: MIT
 *
 * live_commit.h: a layer below the disk goes into one of those below it, while the disk is in use (FEATURES 9.042, 9.044 to 9.053).
 *
 * Invariants  I1  At every moment, and whatever is cut short, every image that names `top` as its backing file shows what it showed.
 *             I2  The base is durable before any image names it (J2). A job that concluded well has left nothing that is not durable (J5).
 */
#ifndef JOB_LIVE_COMMIT_H
#define JOB_LIVE_COMMIT_H

#include "job/copying.h"

struct job_live_commit_opts {
    struct graph_node *disk;             /* its chain it is */
    struct graph_node *top, *base;       /* layers below it. base NULL: the deepest */
    const char *backing_file;            /* what the overlay of top records; NULL: the name of base */
    const char *filter_node_name;        /* of a filter that stands over top meanwhile; NULL: none */
    enum job_on_error on_error;
    unsigned workers;                    /* 0: default */
    bool drop_source;                    /* what the base has durably is given up by the layers above it, as it goes */
    uint64_t window;                     /* with it: so many bytes at once, a multiple of all clusters; 0: default */
    struct job_opts job;                 /* opaque is not looked at; speed: bytes of data per second */
};
extern const struct job_kind job_live_commit_kind;
/* Refused: nothing has changed, but the length of the base perhaps. Suspends. */
MUST_USE int job_live_commit_start(struct co *co, struct jobs *js, const struct job_live_commit_opts *o, struct job **ret_job, struct byre_err *err);

#endif
