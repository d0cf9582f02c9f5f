/* SPDX-License-Identifier: MIT
 *
 * guard.h: images that others depend on are not changed under them (src/tree/guard.c decides), but for files that a commit has left behind.
 *
 *     ctl_guard; before a commit starts ctl_guard_committing, then ctl_guard_not_started or, as the job goes on, ctl_guard_job_changed
 */
#ifndef CTL_GUARD_H
#define CTL_GUARD_H

#include "ctl/ctl_priv.h"
#include "job/job.h"
#include "tree/tree.h"

/* In the chain of `disk` the layers from `from` down to `last` are about to change. */
struct ctl_guard { struct graph_node *disk, *from, *last; bool force; };
/* 0, or DEPENDENTS in call->err: an image outside the chain depends on one of them. Suspends: look nodes up again. */
MUST_USE int ctl_guard(struct co *co, struct ctl_call *call, const struct ctl_guard *g);
/* Before the job of that id commits the layers above `last`: when it has succeeded, those files are no dependents of the base. Suspends. */
void ctl_guard_committing(struct co *co, struct ctl *c, const struct ctl_guard *g, const char *job);
void ctl_guard_not_started(struct ctl *c, const char *job);
void ctl_guard_job_changed(struct ctl *c, const struct job *job);
void ctl_guard_free(struct ctl *c);

#endif
