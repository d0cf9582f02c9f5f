/* SPDX-License-Identifier: MIT
 *
 * transaction.h: entries of a transaction. Private to ctl/.
 *
 * A kind of entry is one row, struct ctl_action; its arguments are those of the command of the same name. To add one: the row and the shape of its
 * arguments beside the command, a line in ENTRIES of cmd_transaction.c.
 */
#ifndef CTL_TRANSACTION_H
#define CTL_TRANSACTION_H

#include "ctl/ctl_priv.h"

struct job_group;
struct ctl_action;
struct ctl_act {
    const struct ctl_action *action;
    struct ctl_call call;                /* args: decoded; err, error_class: filled by what fails; arena */
    struct graph_node *node;             /* set by open, with a reference, given back at the end: is still. NULL: none */
    bool shut;                           /* and formats over it write nothing to it */
    struct graph_bitmaps_saved *saved;
    struct job_group *group;             /* that a job joins before it begins (job/group.h); NULL: none */
    void *state;                         /* the row's */
};
struct ctl_action {
    const struct ctl_command *command;
    bool bitmaps;                        /* changes bitmaps of `node`, which are put back when the transaction fails */
    bool groups;                         /* goes with completion-mode grouped */
    /* In what changes bitmaps: does apply look into an image that rests on n, beside that of node? NULL: no */
    bool (*asks)(struct ctl_act *t, const struct graph_node *n);
    int (*open)(struct co *co, struct ctl_act *t);       /* before anybody is drained: what takes time. Fails: leaves nothing. NULL: nothing */
    int (*apply)(struct co *co, struct ctl_act *t);      /* drained. Fails: leaves nothing */
    void (*undo)(struct co *co, struct ctl_act *t);      /* drained, after apply, the last one first. NULL: nothing but bitmaps */
    void (*end)(struct co *co, struct ctl_act *t, bool good);      /* after open; nobody is drained any more, and node is there when it is good. NULL: nothing */
};
/* In apply: is what the entry names, looked up once more (NULL: gone), still t->node? */
MUST_USE int ctl_act_same(struct ctl_act *t, const struct graph_node *now);
/* One entry as a command of its own. */
MUST_USE int ctl_act_single(struct co *co, struct ctl_call *call, const struct ctl_action *action);
extern const struct ctl_action ctl_action_blockdev_backup, ctl_action_drive_backup;
extern const struct ctl_shape ctl_shape_blockdev_backup, ctl_shape_drive_backup;
extern const struct ctl_action ctl_action_snapshot, ctl_action_snapshot_sync, ctl_action_internal;
/* args: of a merge. Does one of its sources lie in an image that rests on n? */
bool ctl_merge_rests_on(struct ctl *c, const void *args, const struct graph_node *n);
extern const struct ctl_shape ctl_shape_bitmap_add, ctl_shape_bitmap, ctl_shape_bitmap_merge, ctl_shape_snapshot, ctl_shape_snapshot_sync, ctl_shape_internal;

#endif
