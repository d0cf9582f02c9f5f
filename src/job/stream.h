/* SPDX-License-Identifier: MIT
 *
 * stream.h: an image takes up what layers below it hold, and lies over what lay below those (FEATURES 9.054 to 9.059).
 *
 * Invariants  I1  The image shows the same at every moment, and after any crash, by the chain that its header names.
 *             I2  What was taken up is durable before the header names the shorter chain (J3). A job that concluded well has left nothing
 *                 that is not durable (J5). Guests' writes are never overwritten.
 */
#ifndef JOB_STREAM_H
#define JOB_STREAM_H

#include "job/copying.h"

struct job_stream_opts {
    struct graph_node *node;             /* the image, or a filter over it */
    struct graph_node *disk;             /* whose chain it is in; may be the same */
    struct graph_node *base;             /* stays; NULL: nothing does */
    const char *backing_file;            /* what is recorded; NULL: the name of base */
    const char *filter_node_name;        /* of a filter that stands over the node meanwhile; NULL: none */
    enum job_on_error on_error;          /* IGNORE: what cannot be read is left, and so is the chain */
    unsigned workers;                    /* 0: default */
    struct job_opts job;                 /* opaque is not looked at; speed: bytes of data per second */
};
extern const struct job_kind job_stream_kind;
/* Refused: nothing has changed. Suspends. */
MUST_USE int job_stream_start(struct co *co, struct jobs *js, const struct job_stream_opts *o, struct job **ret_job, struct byre_err *err);

#endif
