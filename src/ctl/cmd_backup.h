/* SPDX-License-Identifier: MIT
 *
 * cmd_backup.h: a backup in steps, for its commands and for transactions. Private to ctl/.
 *
 *     ctl_backup_prepare -> ctl_backup_commit | ctl_backup_abort
 *
 * Concurrency  Home loop; suspends. Source and target may be drained by the caller.
 */
#ifndef CTL_CMD_BACKUP_H
#define CTL_CMD_BACKUP_H

#include "ctl/job_args.h"

struct graph_making;
struct job;
struct ctl_backup_args {
    struct ctl_job_args job;
    const char *device, *target, *format, *bitmap;
    uint64_t cbw_timeout;
    int sync, mode, bitmap_mode, on_source_error, on_target_error, on_cbw_error;
    bool has_mode, has_bitmap_mode, has_on_cbw_error, compress, discard_source;
    const struct ctl_backup_perf *perf;
};
extern const struct ctl_arg ctl_blockdev_backup_rows[], ctl_drive_backup_rows[];

/* What was prepared. */
struct ctl_backup { struct job *job; struct graph_making *making; };      /* making: of the file that was made; NULL: none was */
/* drive: the target is a file. The disk is kept as it is now; nothing runs yet. Fails through call->err; nothing is left then. */
MUST_USE int ctl_backup_prepare(struct co *co, struct ctl_call *call, const struct ctl_backup_args *a, bool drive, struct ctl_backup *ret);
void ctl_backup_commit(struct ctl_backup *b);
/* All is as before when it returns; the job concludes as cancelled. */
void ctl_backup_abort(struct co *co, struct ctl_backup *b);

#endif
