/* SPDX-License-Identifier: MIT
 *
 * backup_copy.h: the copy engine beside a filter copy-before-write, as something that may be left alone. Private to backup.c.
 *
 * Concurrency  Home loop of the graph.
 */
#ifndef JOB_BACKUP_COPY_H
#define JOB_BACKUP_COPY_H

#include "job/backup.h"

struct backup_copy;
/* Copies what is todo of the filter, whose source and target are o's. Suspends. */
MUST_USE int backup_copy_new(struct co *co, const struct job_backup_opts *o, struct cbw *cb, struct backup_copy **ret_bc, struct byre_err *err);
/* Begins to copy, for the job, which is woken when it has ended. */
MUST_USE int backup_copy_begin(struct backup_copy *bc, struct job *job, struct byre_err *err);
/* It stands nowhere where the job's state is in its hands, or has ended. */
bool backup_copy_is_away(const struct backup_copy *bc);
bool backup_copy_has_ended(const struct backup_copy *bc);
/* Of one that has ended: 0, or what failed. */
struct backup_failure { int error; bool read; uint64_t off; };
struct backup_failure backup_copy_result(const struct backup_copy *bc);
/* What was written and is to be discarded, since the last call: the next range from `from` on. false: none. */
bool backup_copy_written(struct backup_copy *bc, uint64_t from, uint64_t *ret_start, uint64_t *ret_end);
uint64_t backup_copy_written_bytes(const struct backup_copy *bc);
void backup_copy_forget_written(struct backup_copy *bc, uint64_t start, uint64_t end);
/* What the job reads the source by. */
struct graph_node *backup_copy_reader(const struct backup_copy *bc);
/* Ends it, or leaves it alone until it has, in the group left_in. Suspends. */
void backup_copy_drop(struct co *co, struct backup_copy *bc, struct co_group *left_in);

#endif
