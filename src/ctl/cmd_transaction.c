/* SPDX-License-Identifier: MIT
 *
 * cmd_transaction.c: several changes that are one (FEATURES 8.020, 9.083, 9.086 to 9.089, G.035, G.036).
 *
 *     open each, in the order of the list         files are made, nodes opened; guests go on
 *     drain all, and what lies over them as over its file; remember the bitmaps
 *     apply each, in the order of the list        one moment for all disks
 *     store the bitmaps                           the last that may fail
 *     undo each that was applied, the last first  if anything failed
 *     let guests go on; end each
 *
 * Purpose      Runs the list.
 * Owns         struct ctl_act of each entry, in the arena of the call
 * Invariants   T1 when it fails, everything is as before: graph, bitmaps, files
 *              T2 no guest's request runs between the first change and the last. Where all entries are about bitmaps, formats over their nodes
 *                 write nothing of their own accord either, unless an entry is about such a format, too
 *              T3 nobody else changes edges or bitmaps meanwhile (graph_edges_hold, before any drain)
 * Concurrency  home loop; suspends
 * Failure      the first entry that fails says why
 * Tests        tests/daemon/transaction_test.py
 */
#include <string.h>

#include "ctl/ctl_priv.h"
#include "ctl/transaction.h"
#include "graph/reach.h"
#include "graph/runtime.h"
#include "job/group.h"

/* ---- entries that are plain commands ---- */

static const struct ctl_arg no_rows[] = { CTL_ARGS_END };
static const struct ctl_shape abort_shape = { .name = "Abort", .rows = no_rows };

static int abort_apply(struct co *co, struct ctl_act *t)
{
    return byre_fail(&t->call.err, CANCELLED, "Transaction aborted using Abort action");
}
static const struct ctl_action abort_action = { .apply = abort_apply, .groups = true, .bitmaps = true };

/* The image whose bitmap it is, whatever filter over it is named (graph_bitmaps_save). */
static int bitmap_open(struct co *co, struct ctl_act *t)
{
    struct graph_node *n = ctl_named(&t->call, *(const char *const *)t->call.args);       /* `node` is the first of their arguments */
    int r = n ? graph_need_image(n, "a bitmap", &t->call.err) : t->call.err.code;
    if (r)
        return r;
    t->node = graph_skip_filters(n);
    graph_ref(t->node);
    return 0;
}

/* The command looks its name up once more: what it finds must be what was drained, and whose bitmaps are remembered (T1, T2). */
static int bitmap_apply(struct co *co, struct ctl_act *t)
{
    struct graph_node *now = ctl_named(&t->call, *(const char *const *)t->call.args);
    int r = now ? ctl_act_same(t, graph_skip_filters(now)) : t->call.err.code;
    return r ? r : t->action->command->run(co, &t->call);
}

static bool merge_asks(struct ctl_act *t, const struct graph_node *n) { return ctl_merge_rests_on(t->call.c, t->call.args, n); }

#define BITMAP(name, cmd, ...) \
    static const struct ctl_action name##_action = { .command = &cmd, .open = bitmap_open, .apply = bitmap_apply, .bitmaps = true, __VA_ARGS__ }
BITMAP(add, ctl_cmd_bitmap_add);
BITMAP(clear, ctl_cmd_bitmap_clear);
BITMAP(disable, ctl_cmd_bitmap_disable);
BITMAP(enable, ctl_cmd_bitmap_enable);
BITMAP(merge, ctl_cmd_bitmap_merge, .asks = merge_asks);
BITMAP(remove, ctl_cmd_bitmap_remove);

/* A disk may lie on another node by now: others were at work until edges were held, or an entry further up has moved it. */
int ctl_act_same(struct ctl_act *t, const struct graph_node *now)
{
    return now == t->node ? 0 : byre_fail(&t->call.err, BUSY, "node '%s' is not what is named any more: it was moved meanwhile", graph_node_name(t->node));
}

/* ---- the table ---- */

struct entry { int type; const void *data; };        /* type: the index of its row in ENTRIES */
#define DATA(name, shape_) static const struct ctl_arg name##_data[] = { { "data", CTL_STRUCT, true, CTL_AT(struct entry, data), .of = &shape_ }, CTL_ARGS_END }
DATA(abort, abort_shape);
DATA(add, ctl_shape_bitmap_add);
DATA(bitmap, ctl_shape_bitmap);
DATA(merge, ctl_shape_bitmap_merge);
DATA(backup, ctl_shape_blockdev_backup);
DATA(drive, ctl_shape_drive_backup);
DATA(snapshot, ctl_shape_snapshot);
DATA(internal, ctl_shape_internal);
DATA(snapshot_sync, ctl_shape_snapshot_sync);
#define ENTRIES(X) \
    X("abort", abort_action, abort_data) \
    X("block-dirty-bitmap-add", add_action, add_data) \
    X("block-dirty-bitmap-clear", clear_action, bitmap_data) \
    X("block-dirty-bitmap-disable", disable_action, bitmap_data) \
    X("block-dirty-bitmap-enable", enable_action, bitmap_data) \
    X("block-dirty-bitmap-merge", merge_action, merge_data) \
    X("block-dirty-bitmap-remove", remove_action, bitmap_data) \
    X("blockdev-backup", ctl_action_blockdev_backup, backup_data) \
    X("blockdev-snapshot", ctl_action_snapshot, snapshot_data) \
    X("blockdev-snapshot-internal-sync", ctl_action_internal, internal_data) \
    X("blockdev-snapshot-sync", ctl_action_snapshot_sync, snapshot_sync_data) \
    X("drive-backup", ctl_action_drive_backup, drive_data)
#define ACTION(word, action, data) &action,
#define WORD(word, action, data) word,
#define CASE(word, action, data) { word, data },
static const struct ctl_action *const actions[] = { ENTRIES(ACTION) };
static const char *const type_words[] = { ENTRIES(WORD) NULL };
static const struct ctl_case entry_cases[] = { ENTRIES(CASE) { NULL, NULL } };
static const struct ctl_shape type_shape = { .name = "TransactionActionKind", .words = type_words };
static const struct ctl_arg entry_rows[] = { { "type", CTL_ENUM, true, CTL_AT(struct entry, type), .of = &type_shape }, CTL_ARGS_END };
static const struct ctl_shape entry_shape = { .name = "TransactionAction", .rows = entry_rows, .bytes = sizeof(struct entry), .tag = "type", .cases = entry_cases };

static const char *const mode_words[] = { "individual", "grouped", NULL };
static const struct ctl_shape mode_shape = { .name = "ActionCompletionMode", .words = mode_words };
struct properties { int mode; };
static const struct ctl_arg property_rows[] = {
    { "completion-mode", CTL_ENUM, false, CTL_AT(struct properties, mode), .of = &mode_shape, .doc = "grouped: jobs that the list starts end well all together, or none does." },
    CTL_ARGS_END
};
static const struct ctl_shape property_shape = { .name = "TransactionProperties", .rows = property_rows, .bytes = sizeof(struct properties) };

struct args { struct ctl_list actions; const struct properties *properties; };
static const struct ctl_arg rows[] = {
    { "actions", CTL_STRUCT, true, CTL_AT(struct args, actions), .of = &entry_shape, .list = true, .doc = "In this order." },
    { "properties", CTL_STRUCT, false, CTL_AT(struct args, properties), .of = &property_shape },
    CTL_ARGS_END
};

/* ---- running it ---- */

struct transaction { struct ctl_call *call; struct ctl_act *acts; size_t count, opened, drained, saved, applied; struct job_group *group; };

static int take_error(struct transaction *tx, const struct ctl_act *t)
{
    tx->call->err = t->call.err;
    tx->call->error_class = t->call.error_class;
    return t->call.err.code;
}

static int open_all(struct co *co, struct transaction *tx)
{
    for (; tx->opened < tx->count; tx->opened++) {
        struct ctl_act *t = &tx->acts[tx->opened];
        int r = t->action->open ? t->action->open(co, t) : 0;
        if (r)
            return take_error(tx, t);
    }
    return 0;
}

static struct graph_bitmaps_saved *saved_of(const struct transaction *tx, size_t count, const struct graph_node *n)
{
    for (size_t i = 0; i < count; i++)
        if (tx->acts[i].saved && tx->acts[i].node == n)
            return tx->acts[i].saved;
    return NULL;
}

/* May formats over n be kept from it while the list is applied (T2)? */
static bool may_shut(const struct transaction *tx, const struct graph_node *n)
{
    for (size_t i = 0; i < tx->count; i++) {
        struct ctl_act *t = &tx->acts[i];
        if (!t->action->bitmaps || (t->node && graph_rests_on(t->node, n)) || (t->action->asks && t->action->asks(t, n)))
            return false;
    }
    return true;
}

/* T2. Then the bitmaps of each node that has entries about them, once. */
static int begin_all(struct co *co, struct transaction *tx)
{
    for (; tx->drained < tx->count; tx->drained++)
        if (tx->acts[tx->drained].node)
            graph_still_begin(co, tx->acts[tx->drained].node);
    for (size_t i = 0; i < tx->count; i++) {
        tx->acts[i].shut = tx->acts[i].node && may_shut(tx, tx->acts[i].node);
        if (tx->acts[i].shut)
            graph_shut_begin(co, tx->acts[i].node);
    }
    for (; tx->saved < tx->count; tx->saved++) {
        struct ctl_act *t = &tx->acts[tx->saved];
        int r = t->node && t->action->bitmaps && !saved_of(tx, tx->saved, t->node) ? graph_bitmaps_save(co, t->node, &t->saved, &t->call.err) : 0;
        if (r)
            return take_error(tx, t);
    }
    return 0;
}

static int apply_all(struct co *co, struct transaction *tx)
{
    for (; tx->applied < tx->count; tx->applied++) {
        struct ctl_act *t = &tx->acts[tx->applied];
        int r = t->action->apply(co, t);
        if (r)
            return take_error(tx, t);
    }
    for (size_t i = 0; i < tx->count; i++) {
        int r = tx->acts[i].saved ? graph_bitmaps_keep(co, tx->acts[i].saved, &tx->call->err) : 0;
        if (r)
            return r;
    }
    return 0;
}

static void undo_all(struct co *co, struct transaction *tx)
{
    for (size_t i = tx->applied; i-- > 0;)
        if (tx->acts[i].action->undo)
            tx->acts[i].action->undo(co, &tx->acts[i]);
}

static void close_nodes(struct co *co, struct transaction *tx)
{
    for (size_t i = 0; i < tx->opened; i++)
        if (tx->acts[i].node)
            (void)!graph_close(co, tx->acts[i].node);      /* somebody else has it */
}

static void end_all(struct co *co, struct transaction *tx, bool good)
{
    for (size_t i = tx->saved; i-- > 0;) {
        if (tx->acts[i].saved && good)
            graph_bitmaps_done(tx->acts[i].saved);
        else if (tx->acts[i].saved)
            graph_bitmaps_undo(co, tx->acts[i].saved);
    }
    for (size_t i = 0; i < tx->drained; i++) {
        if (tx->acts[i].shut)
            graph_shut_end(tx->acts[i].node);
        if (tx->acts[i].node)
            graph_still_end(tx->acts[i].node);
    }
    graph_edges_let(co, tx->call->c->env.graph);
    for (size_t i = 0; i < tx->count; i++)
        ctl_let_nodes(co, &tx->acts[i].call);    /* the ends count who has a node */
    if (!good)
        close_nodes(co, tx);                     /* what was opened for the list can be deleted */
    for (size_t i = 0; i < tx->opened; i++) {
        size_t k = good ? i : tx->opened - 1 - i;
        if (tx->acts[k].action->end)
            tx->acts[k].action->end(co, &tx->acts[k], good);
    }
    if (good)
        close_nodes(co, tx);
}

static int make_acts(struct transaction *tx, const struct args *a)
{
    const struct entry *e = a->actions.items;
    bool grouped = a->properties && a->properties->mode == 1;
    tx->count = a->actions.count;
    tx->acts = ctl_arena_get(&tx->call->arena, tx->count * sizeof *tx->acts + 1);
    tx->group = grouped ? job_group_new() : NULL;
    if (!tx->acts || (grouped && !tx->group))
        return byre_fail(&tx->call->err, NOMEM, "no memory for a transaction");
    for (size_t i = 0; i < tx->count; i++) {
        tx->acts[i] = (struct ctl_act){ .action = actions[e[i].type], .group = tx->group,
                                        .call = { .c = tx->call->c, .client = tx->call->client, .args = e[i].data } };
        if (grouped && !tx->acts[i].action->groups)
            return byre_fail(&tx->call->err, NOT_SUPPORTED, "Action '%s' does not support Transaction property completion-mode = grouped", type_words[e[i].type]);
    }
    return 0;
}

int ctl_act_single(struct co *co, struct ctl_call *call, const struct ctl_action *action)
{
    struct ctl_act t = { .action = action, .call = { .c = call->c, .client = call->client, .args = call->args } };
    struct transaction tx = { .call = call, .acts = &t, .count = 1 };
    int r = open_all(co, &tx);
    graph_edges_hold(co, call->c->env.graph);
    if (!r)
        r = apply_all(co, &tx);
    end_all(co, &tx, !r);
    ctl_call_end(co, &t.call);
    return r;
}

static int run(struct co *co, struct ctl_call *call)
{
    struct transaction tx = { .call = call };
    int r = make_acts(&tx, call->args);
    if (!r) {
        r = open_all(co, &tx);
        graph_edges_hold(co, call->c->env.graph);        /* T3 */
        if (!r)
            r = begin_all(co, &tx);
        if (!r)
            r = apply_all(co, &tx);
        if (r)
            undo_all(co, &tx);
        end_all(co, &tx, !r);
    }
    for (size_t i = 0; i < tx.count && tx.acts; i++)
        ctl_call_end(co, &tx.acts[i].call);
    job_group_let(tx.group);
    return r;
}

const struct ctl_command ctl_cmd_transaction = { "transaction", rows, sizeof(struct args), run,
    .doc = "Makes several changes of disks at one moment, all of them or none. With completion-mode grouped the jobs among them end together." };
