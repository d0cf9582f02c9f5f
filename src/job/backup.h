/* SPDX-License-Identifier: MIT
 *
 * backup.h: the job that copies a disk as it is at this moment, while it goes on being written (FEATURES 9.060 to 9.069, G.037).
 *
 * Invariants
 *   I1  J4: what the target holds at the end is what the source held when the job was prepared. It succeeds only when all of it is there, and durable.
 *   I2  A bitmap is given up to what was written since only behind that; until then, and when the job fails, it holds what it held and what was
 *       written since (on-success, never), or of what it held only what was not copied (always), unless the target cannot be made durable.
 *   I3  A guest's write fails because of the target only if on-cbw-error says so; else the job does.
 *   I4  At the end the graph is as it was.
 * Concurrency Home loop of the graph.
 * Failure     The target holds a part.
 */
#ifndef JOB_BACKUP_H
#define JOB_BACKUP_H

#include "graph/cbw.h"
#include "job/copying.h"

enum job_backup_sync { JOB_BACKUP_TOP, JOB_BACKUP_FULL, JOB_BACKUP_NONE, JOB_BACKUP_BITMAP };

struct job_backup_opts {
    struct graph_node *source, *target;      /* the same length */
    enum job_backup_sync sync;
    const char *bitmap;                      /* of the source's image; NULL: none. Copied before the call returns, as filter_node_name */
    enum job_bitmap_mode bitmap_mode;
    bool compress, discard_source, copy_range;
    enum job_on_error on_source_error, on_target_error;
    enum cbw_on_error on_cbw_error;
    uint64_t cbw_timeout_ns, min_cluster;
    unsigned workers;                        /* pieces at the same time, at most COPY_WORKERS_MAX; 0: 16 */
    uint64_t max_chunk;                      /* 0: none */
    const char *filter_node_name;            /* NULL: users do not see the filter */
    struct job_opts job;                     /* opaque is not looked at; speed: bytes copied per second */
};
extern const struct job_kind job_backup_kind;

/* What can be said before there is a target: what job_backup_prepare would refuse whatever that is. Suspends. */
MUST_USE int job_backup_could(struct co *co, const struct jobs *js, const struct job_backup_opts *o, struct byre_err *err);
/* From here on the disk is kept as it is now: whoever wants several to be of one moment drains them around it. The job does nothing before
 * job_begin. It enters no gate, so others may have drained source and target. Suspends. */
MUST_USE int job_backup_prepare(struct co *co, struct jobs *js, const struct job_backup_opts *o, struct job **ret_job, struct byre_err *err);
/* Of a job that was prepared and has not begun: all is as before when it returns, and the job is about to conclude as cancelled. Suspends. */
void job_backup_abandon(struct co *co, struct job *job);

#endif
