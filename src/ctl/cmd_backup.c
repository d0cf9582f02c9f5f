/* SPDX-License-Identifier: MIT
 *
 * cmd_backup.c: blockdev-backup, drive-backup (FEATURES 9.060 to 9.068, G.037, G.079).
 *
 * Purpose      Arguments to options of the job; the file that drive-backup makes.
 * Owns         nothing
 * Invariants   I1 a file that drive-backup has made is removed again when the job could not be prepared, or is not wanted
 * Concurrency  home loop
 * Failure      as ctl_priv.h
 * Tests        tests/daemon/backup_test.py
 */
#include "ctl/cmd_backup.h"

#include <string.h>
#include <unistd.h>

#include "ctl/new_image.h"
#include "ctl/transaction.h"
#include "graph/blockdev.h"
#include "graph/runtime.h"
#include "job/backup.h"
#include "job/group.h"

struct ctl_backup_perf { bool copy_range; uint64_t workers, max_chunk, min_cluster; bool has_workers; };

#define WORDS(name_, text, ...)                                                                                                 \
    static const char *const name_##_words[] = { __VA_ARGS__, NULL };                                                            \
    static const struct ctl_shape name_ = { .name = text, .words = name_##_words }
WORDS(sync_mode, "MirrorSyncMode", "top", "full", "none", "incremental", "bitmap");
WORDS(bitmap_mode, "BitmapSyncMode", "on-success", "never", "always");
WORDS(on_cbw_error, "OnCbwError", "break-guest-write", "break-snapshot");
enum { SYNC_TOP, SYNC_FULL, SYNC_NONE, SYNC_INCREMENTAL, SYNC_BITMAP };

static const struct ctl_arg perf_rows[] = {
    { "use-copy-range", CTL_BOOL, false, CTL_AT(struct ctl_backup_perf, copy_range), .doc = "The kernel copies where the source is raw and both sides are plain parts of files; what a guest writes there waits for it. Not with compress, nor where the target detects zeroes." },
    { "max-workers", CTL_SIZE, false, CTL_AT_HAS(struct ctl_backup_perf, workers), .max = INT32_MAX, .doc = "Pieces that are copied at the same time, at most 64; 16 unless given." },
    { "max-chunk", CTL_SIZE, false, CTL_AT(struct ctl_backup_perf, max_chunk), .max = INT64_MAX, .doc = "Longest piece in bytes; 0: as it likes." },
    { "min-cluster-size", CTL_SIZE, false, CTL_AT(struct ctl_backup_perf, min_cluster), .max = UINT32_MAX, .doc = "A power of two: no less is copied at once." },
    CTL_ARGS_END
};
static const struct ctl_shape perf = { .name = "BackupPerf", .rows = perf_rows, .bytes = sizeof(struct ctl_backup_perf) };

#define COMMON_ROWS \
    { "device", CTL_STR, true, CTL_AT(struct ctl_backup_args, device), .doc = "The disk that is copied, by device or node." }, \
    { "sync", CTL_ENUM, true, CTL_AT(struct ctl_backup_args, sync), .of = &sync_mode, \
      .doc = "All that can be read, what the top image holds, what a bitmap holds, or only what is about to be overwritten." }, \
    { "bitmap", CTL_STR, false, CTL_AT(struct ctl_backup_args, bitmap), .doc = "A dirty bitmap of the disk: what it holds is copied, or it begins anew at this moment." }, \
    { "bitmap-mode", CTL_ENUM, false, CTL_AT_HAS(struct ctl_backup_args, bitmap_mode), .of = &bitmap_mode, \
      .doc = "When the bitmap is set to what was written since: if the backup is whole, never, or always, and then with what was not copied." }, \
    { "compress", CTL_BOOL, false, CTL_AT(struct ctl_backup_args, compress), .doc = "Clusters are stored compressed." }, \
    CTL_ON_ERROR_ROW("on-source-error", struct ctl_backup_args, on_source_error), \
    CTL_ON_ERROR_ROW("on-target-error", struct ctl_backup_args, on_target_error), \
    { "on-cbw-error", CTL_ENUM, false, CTL_AT_HAS(struct ctl_backup_args, on_cbw_error), .of = &on_cbw_error, \
      .doc = "What becomes of it when what a guest is about to overwrite cannot be copied: its write fails, or, unless this is given, the backup does." }, \
    { "cbw-timeout", CTL_SIZE, false, CTL_AT(struct ctl_backup_args, cbw_timeout), .max = UINT32_MAX, .doc = "Seconds that a guest's write may wait for the target; 0: no limit." }, \
    { "discard-source", CTL_BOOL, false, CTL_AT(struct ctl_backup_args, discard_source), \
      .doc = "What is durable on the target is discarded of the source, which is a node snapshot-access, or one that nobody else writes." }, \
    CTL_FILTER_NAME_ROW(struct ctl_backup_args), \
    { "x-perf", CTL_STRUCT, false, CTL_AT(struct ctl_backup_args, perf), .of = &perf }, \
    CTL_JOB_ROWS(struct ctl_backup_args)

const struct ctl_arg ctl_blockdev_backup_rows[] = {
    { "target", CTL_STR, true, CTL_AT(struct ctl_backup_args, target), .doc = "Node that becomes the copy; as long as the disk, and in nobody's use." },
    COMMON_ROWS,
    CTL_ARGS_END
};

WORDS(image_mode, "NewImageMode", "existing", "absolute-paths");
const struct ctl_arg ctl_drive_backup_rows[] = {
    { "target", CTL_STR, true, CTL_AT(struct ctl_backup_args, target), .doc = "File that becomes the copy." },
    { "format", CTL_STR, false, CTL_AT(struct ctl_backup_args, format), .doc = "Of the target; the disk's unless given." },
    { "mode", CTL_ENUM, false, CTL_AT_HAS(struct ctl_backup_args, mode), .of = &image_mode, .doc = "absolute-paths unless given: the file is made." },
    COMMON_ROWS,
    CTL_ARGS_END
};

/* Which of the two go together (FEATURES 9.061 to 9.063). */
static int check_bitmap(const struct ctl_backup_args *a, struct byre_err *err)
{
    bool by_it = a->sync == SYNC_INCREMENTAL || a->sync == SYNC_BITMAP;
    if (by_it && !a->bitmap)
        return byre_fail(err, BAD_ARGUMENT, "must provide a valid bitmap name for '%s' sync mode", sync_mode_words[a->sync]);
    if (a->sync == SYNC_BITMAP && !a->has_bitmap_mode)
        return byre_fail(err, BAD_ARGUMENT, "Bitmap sync mode must be given when using sync mode 'bitmap'");
    if (a->sync == SYNC_INCREMENTAL && a->has_bitmap_mode && a->bitmap_mode != JOB_BITMAP_ON_SUCCESS)
        return byre_fail(err, BAD_ARGUMENT, "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'");
    if (!a->bitmap && a->has_bitmap_mode)
        return byre_fail(err, BAD_ARGUMENT, "Cannot specify bitmap sync mode without a bitmap");
    if (a->bitmap && !by_it && !a->has_bitmap_mode)
        return byre_fail(err, BAD_ARGUMENT, "Bitmap sync mode must be given when providing a bitmap");
    if (a->bitmap && a->sync == SYNC_NONE)
        return byre_fail(err, BAD_ARGUMENT, "sync mode 'none' does not produce meaningful bitmap outputs");
    if (a->bitmap && !by_it && a->bitmap_mode == JOB_BITMAP_NEVER)
        return byre_fail(err, BAD_ARGUMENT, "Bitmap sync mode 'never' has no meaningful effect when combined with sync mode '%s'", sync_mode_words[a->sync]);
    return 0;
}

static int fill_perf(const struct ctl_backup_perf *p, struct job_backup_opts *o, struct byre_err *err)
{
    if (!p)
        return 0;
    if (p->has_workers && !p->workers)
        return byre_fail(err, BAD_ARGUMENT, "max-workers must be between 1 and %d", INT32_MAX);
    o->workers = p->workers > UINT16_MAX ? UINT16_MAX : (unsigned)p->workers;
    o->copy_range = p->copy_range;
    o->max_chunk = p->max_chunk;
    o->min_cluster = p->min_cluster;
    return 0;
}

static int fill_opts(struct ctl_call *call, const struct ctl_backup_args *a, struct job_backup_opts *o)
{
    static const enum job_backup_sync syncs[] = { JOB_BACKUP_TOP, JOB_BACKUP_FULL, JOB_BACKUP_NONE, JOB_BACKUP_BITMAP, JOB_BACKUP_BITMAP };
    int r = ctl_job_may(call, &a->job);
    if (!r)
        r = check_bitmap(a, &call->err);
    if (r)
        return r;
    *o = (struct job_backup_opts){
        .source = ctl_named(call, a->device), .sync = syncs[a->sync], .bitmap = a->bitmap, .bitmap_mode = (enum job_bitmap_mode)a->bitmap_mode,
        .compress = a->compress, .discard_source = a->discard_source, .on_source_error = ctl_on_error(a->on_source_error),
        .on_target_error = ctl_on_error(a->on_target_error),
        .on_cbw_error = a->has_on_cbw_error && !a->on_cbw_error ? CBW_BREAK_GUEST_WRITE : CBW_BREAK_SNAPSHOT, .cbw_timeout_ns = a->cbw_timeout * 1000000000,
        .filter_node_name = a->job.filter_node_name, .job = ctl_job_opts(&a->job, a->device) };
    if (!o->source)
        return call->err.code;
    struct graph_node *image = graph_skip_filters(o->source);
    if (o->sync == JOB_BACKUP_TOP && (!image || !graph_backing(image)))
        o->sync = JOB_BACKUP_FULL;
    return fill_perf(a->perf, o, &call->err);
}

/* ---- drive-backup ---- */

/* What the new image names as its backing file: with sync=none the disk itself. NULL: none. */
static struct graph_node *backing_for(const struct job_backup_opts *o)
{
    struct graph_node *image = graph_skip_filters(o->source);
    if (o->sync == JOB_BACKUP_NONE)
        return image;
    return o->sync == JOB_BACKUP_TOP ? graph_skip_filters(graph_backing(image)) : NULL;
}

static int make_file(struct co *co, struct ctl_call *call, const struct ctl_backup_args *a, const char *format, const struct job_backup_opts *o,
                     struct graph_making **ret_making)
{
    const struct fmt_ops *ops = format ? fmt_by_name(format) : NULL;
    struct graph_node *below = backing_for(o);
    if (!ops || !ops->create)
        return byre_fail(&call->err, UNKNOWN_FORMAT, "Unknown driver '%s'", format ? format : "");
    if (a->compress && !ops->encode)
        return byre_fail(&call->err, NOT_SUPPORTED, "%s: %s images cannot hold compressed clusters", a->target, ops->name);
    if (below && !ops->make_empty)
        return byre_fail(&call->err, NOT_SUPPORTED, "%s images cannot have a backing file, which sync=%s needs", format, sync_mode_words[a->sync]);
    if (ctl_keep(call, below))
        return call->err.code;
    int r = ctl_claim_image(co, call->c->env.graph, a->target, "the copy", ret_making, &call->err);
    if (r)
        return r;
    r = ctl_make_image(co, &(struct ctl_new_image){ call->c->env.graph, *ret_making, a->target, ops, graph_length(o->source), below }, &call->err);
    if (r)
        graph_making_end(TAKE(*ret_making));
    return r;
}

static void drop_made(struct co *co, struct ctl_backup *b)
{
    graph_making_drop(co, b->making);
    graph_making_end(TAKE(b->making));
}

/* The target is open alone, without what its header names: old content comes to it in whole clusters, zeros too. */
static int prepare_drive(struct co *co, struct ctl_call *call, const struct ctl_backup_args *a, struct job_backup_opts *o, struct ctl_backup *ret)
{
    struct graph *g = call->c->env.graph;
    bool make = !a->has_mode || a->mode == 1;
    const char *format = a->format || !make ? a->format : graph_format(graph_skip_filters(o->source))->name;
    const struct graph_open_opts oo = { .filename = a->target, .format = format, .discard = true, .no_backing = o->sync != JOB_BACKUP_FULL };
    int r = make ? job_backup_could(co, call->c->env.jobs, o, &call->err) : 0;       /* a file that is there is not given up for what is refused */
    if (!r && make)
        r = make_file(co, call, a, format, o, &ret->making);
    if (r)
        return r;
    r = graph_open(co, g, &oo, &o->target, &call->err);
    if (!r) {
        r = job_backup_prepare(co, call->c->env.jobs, o, &ret->job, &call->err);
        (void)graph_close(co, o->target);        /* the job has a reference of its own */
    }
    if (r && make)
        drop_made(co, ret);                      /* I1 */
    else if (!r && make && backing_for(o))
        graph_tell_linked(co, g, a->target, graph_filename(backing_for(o)));
    return r;
}

/* ---- steps ---- */

int ctl_backup_prepare(struct co *co, struct ctl_call *call, const struct ctl_backup_args *a, bool drive, struct ctl_backup *ret)
{
    struct job_backup_opts o;
    *ret = (struct ctl_backup){ 0 };
    int r = fill_opts(call, a, &o);
    if (r)
        return r;
    if (drive)
        return prepare_drive(co, call, a, &o, ret);
    o.target = ctl_named(call, a->target);
    if (!o.target)
        return call->err.code;
    struct graph_node *awaited = graph_await_writer(o.target);
    r = graph_writer_comes(co, o.target, &call->err);
    if (!r)
        r = job_backup_prepare(co, call->c->env.jobs, &o, &ret->job, &call->err);
    graph_await_end(co, awaited);
    if (r)
        graph_writer_gone(co, o.target);
    return r;
}

void ctl_backup_commit(struct ctl_backup *b)
{
    graph_making_end(TAKE(b->making));
    job_begin(b->job);
}

void ctl_backup_abort(struct co *co, struct ctl_backup *b)
{
    job_backup_abandon(co, b->job);
    if (b->making)
        drop_made(co, b);
}

/* ---- as an entry of a transaction ---- */

static int act_open(struct co *co, struct ctl_act *t)
{
    t->node = ctl_named(&t->call, ((const struct ctl_backup_args *)t->call.args)->device);
    if (!t->node)
        return t->call.err.code;
    graph_ref(t->node);
    return 0;
}

static int act_apply(struct co *co, struct ctl_act *t, bool drive)
{
    struct ctl_backup *b = ctl_arena_get(&t->call.arena, sizeof *b);
    int r = b ? ctl_backup_prepare(co, &t->call, t->call.args, drive, b) : byre_fail(&t->call.err, NOMEM, "no memory for a backup");
    if (!r && t->group)
        job_group_join(t->group, b->job);
    t->state = b;
    return r;
}

static int act_apply_node(struct co *co, struct ctl_act *t) { return act_apply(co, t, false); }
static int act_apply_file(struct co *co, struct ctl_act *t) { return act_apply(co, t, true); }
static void act_undo(struct co *co, struct ctl_act *t) { ctl_backup_abort(co, t->state); }

static void act_end(struct co *co, struct ctl_act *t, bool good)
{
    if (good)
        ctl_backup_commit(t->state);
}

const struct ctl_shape ctl_shape_blockdev_backup = { .name = "BlockdevBackup", .rows = ctl_blockdev_backup_rows, .bytes = sizeof(struct ctl_backup_args) };
const struct ctl_shape ctl_shape_drive_backup = { .name = "DriveBackup", .rows = ctl_drive_backup_rows, .bytes = sizeof(struct ctl_backup_args) };
const struct ctl_action ctl_action_blockdev_backup = { .command = &ctl_cmd_blockdev_backup, .groups = true, .open = act_open, .apply = act_apply_node,
                                                       .undo = act_undo, .end = act_end };
const struct ctl_action ctl_action_drive_backup = { .command = &ctl_cmd_drive_backup, .groups = true, .open = act_open, .apply = act_apply_file,
                                                    .undo = act_undo, .end = act_end };

static int run_drive_backup(struct co *co, struct ctl_call *call)
{
    struct ctl_backup b;
    int r = ctl_backup_prepare(co, call, call->args, true, &b);
    if (!r)
        ctl_backup_commit(&b);
    return r;
}

static int run_blockdev_backup(struct co *co, struct ctl_call *call)
{
    struct ctl_backup b;
    int r = ctl_backup_prepare(co, call, call->args, false, &b);
    if (!r)
        ctl_backup_commit(&b);
    return r;
}

const struct ctl_command ctl_cmd_blockdev_backup = { "blockdev-backup", ctl_blockdev_backup_rows, sizeof(struct ctl_backup_args), run_blockdev_backup,
    .doc = "Copies a disk as it is at this moment to another node, while it goes on being written. It is whole and durable when the job has succeeded." };
const struct ctl_command ctl_cmd_drive_backup = { "drive-backup", ctl_drive_backup_rows, sizeof(struct ctl_backup_args), run_drive_backup,
    .doc = "The same for a file, which is made unless mode is existing. blockdev-backup is better." };
