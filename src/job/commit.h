/* SPDX-License-Identifier: MIT
 *
 * commit.h: what an image holds goes into one below it; an image gets another backing file. Offline: nobody else uses the chain.
 *
 * Invariants  I1  commit (J2): copy, the base durable, only then the image is emptied. At every moment the image reads as before.
 *             I2  rebase (J3): what the new chain does not supply is in the image, durably, before its header names the new chain.
 *                 At every moment it reads as before, through the chain that the header names.
 *             I3  drop_equal (J3): the image gives nothing up before its header names, durably, a chain that shows the same there.
 * Concurrency Home loop of the graph; suspends. The copy runs on all loops. progress comes on the home loop and must not suspend.
 * Failure     What was copied so far stays; the chain reads as before. A second run ends the work.
 */
#ifndef JOB_COMMIT_H
#define JOB_COMMIT_H

#include <stdatomic.h>
#include <stdbool.h>

#include "copy/copy.h"

struct job_copy_how {
    uint64_t rate;                         /* bytes per second; 0 = no limit */
    unsigned workers;                      /* 0 = default */
    void (*progress)(void *arg, uint64_t done, uint64_t total); void *arg;     /* may be NULL */
    const _Atomic bool *cancel;            /* may be NULL */
};

struct commit_job {
    struct graph_node *top;                /* for writing, unless `keep` */
    const char *base;                      /* layer below that takes it all; NULL: the next one */
    bool keep;                             /* the image is not emptied */
    struct job_copy_how how;
};
/* *ret_base (may be NULL): the layer; it stays open for writing. */
MUST_USE int commit_run(struct co *co, const struct commit_job *job, struct graph_node **ret_base, struct copy_result *ret, struct byre_err *err);

struct rebase_job {
    struct graph_node *top;                /* for writing, with its old chain */
    struct graph_node *backing;            /* the new chain, read-only; NULL: none */
    struct graph_name to;                  /* what is recorded */
    bool unsafe;                           /* only the name changes: `backing` is said to hold the same */
    bool compress;
    bool drop_equal;                       /* behind the switch, whole clusters that the new chain holds as well are given up */
    struct job_copy_how how;
};
MUST_USE int rebase_run(struct co *co, const struct rebase_job *job, struct copy_result *ret, struct byre_err *err);

#endif
