/* SPDX-License-Identifier: MIT
 *
 * cmd_mirror.c: blockdev-mirror, drive-mirror, block-job-change (FEATURES 9.020 to 9.037, G.027, G.028).
 *
 * Purpose      Arguments to options of the job; the file that drive-mirror makes.
 * Owns         nothing
 * Invariants   I1 a file that drive-mirror has made is removed again when the job could not be started
 * Concurrency  home loop
 * Failure      as ctl_priv.h
 * Tests        tests/cli/mirror_test.py
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/id.h"
#include "ctl/cmd_mirror.h"
#include "ctl/job_args.h"
#include "ctl/new_image.h"
#include "graph/blockdev.h"
#include "graph/runtime.h"
#include "stor/stor.h"

struct mirror_args {
    struct ctl_job_args job;
    const char *device, *target, *format, *node_name, *replaces, *bitmap;
    uint64_t granularity, buf_size, deadline, max_slowdown, max_hold_ms;
    int sync, mode, bitmap_mode, copy_mode, on_source_error, on_target_error, converge;
    bool has_mode, has_bitmap_mode, has_max_hold_ms, unmap, has_unmap, carry_bitmaps, copy_range;
};

static const char *const sync_words[] = { "top", "full", "none", "incremental", "bitmap", NULL };
static const struct ctl_shape sync_shape = { .name = "MirrorSyncMode", .words = sync_words };
static const char *const mode_words[] = { "existing", "absolute-paths", NULL };
static const struct ctl_shape mode_shape = { .name = "NewImageMode", .words = mode_words };
static const char *const copy_mode_words[] = { "background", "write-blocking", NULL };
const struct ctl_shape ctl_copy_mode_shape = { .name = "MirrorCopyMode", .words = copy_mode_words };
static const char *const bitmap_mode_words[] = { "on-success", "never", "always", NULL };
static const struct ctl_shape bitmap_mode_shape = { .name = "BitmapSyncMode", .words = bitmap_mode_words };
static const char *const converge_words[] = { "off", "throttle", "write-blocking", "auto", NULL };
const struct ctl_shape ctl_converge_shape = { .name = "ConvergeMode", .words = converge_words };

#define COMMON_ROWS \
    { "device", CTL_STR, true, CTL_AT(struct mirror_args, device), .doc = "The disk that is copied, by device or node." }, \
    { "sync", CTL_ENUM, true, CTL_AT(struct mirror_args, sync), .of = &sync_shape, .doc = "All that can be read, what the top image holds, or only what is written from now on; bitmap: what a dirty bitmap says, to a " \
      "target that holds the rest; incremental: that, with bitmap-mode on-success." }, \
    { "bitmap", CTL_STR, false, CTL_AT(struct mirror_args, bitmap), .doc = "Of the disk, for sync bitmap and incremental." }, \
    { "bitmap-mode", CTL_ENUM, false, CTL_AT_HAS(struct mirror_args, bitmap_mode), .of = &bitmap_mode_shape, \
      .doc = "on-success: cleared when the mirror has ended well; always: what has been copied is taken out in any case; never: it stays." }, \
    { "replaces", CTL_STR, false, CTL_AT(struct mirror_args, replaces), .doc = "Node whose users go to the target at the end; the source's unless given." }, \
    { "granularity", CTL_SIZE, false, CTL_AT(struct mirror_args, granularity), .max = UINT32_MAX, .doc = "How much one changed byte makes dirty: a power of two, 512 to 64 MiB; no less than what a target allocates at once that gets a part of the disk." }, \
    { "buf-size", CTL_SIZE, false, CTL_AT(struct mirror_args, buf_size), .max = UINT32_MAX, .doc = "Memory for what is under way; 16 MiB unless given. With more, more is under way at once as long as the target keeps up." }, \
    CTL_ON_ERROR_ROW("on-source-error", struct mirror_args, on_source_error), \
    CTL_ON_ERROR_ROW("on-target-error", struct mirror_args, on_target_error), \
    { "x-byre-carry-bitmaps", CTL_BOOL, false, CTL_AT(struct mirror_args, carry_bitmaps), \
      .doc = "The target gets the disk's dirty bitmaps at the end, with what they say then. None of their names may be taken there." }, \
    { "x-byre-use-copy-range", CTL_BOOL, false, CTL_AT(struct mirror_args, copy_range), \
      .doc = "The kernel copies where the source is raw and both sides are plain parts of files. Not where the target detects zeroes." }, \
    CTL_CONVERGE_ROWS(struct mirror_args), \
    CTL_JOB_ROWS(struct mirror_args)

static const struct ctl_arg blockdev_rows[] = {
    { "target", CTL_STR, true, CTL_AT(struct mirror_args, target), .doc = "Node that becomes the copy." },
    CTL_FILTER_NAME_ROW(struct mirror_args),
    COMMON_ROWS,
    CTL_ARGS_END
};
static const struct ctl_arg drive_rows[] = {
    { "target", CTL_STR, true, CTL_AT(struct mirror_args, target), .doc = "File that becomes the copy." },
    { "format", CTL_STR, false, CTL_AT(struct mirror_args, format), .doc = "Of the target; the source's unless given." },
    { "node-name", CTL_STR, false, CTL_AT(struct mirror_args, node_name), .doc = "Name of the target's node." },
    { "mode", CTL_ENUM, false, CTL_AT_HAS(struct mirror_args, mode), .of = &mode_shape, .doc = "absolute-paths unless given: the file is made." },
    { "unmap", CTL_BOOL, false, CTL_AT_HAS(struct mirror_args, unmap), .doc = "Zeros need no space on the target; true unless given." },
    COMMON_ROWS,
    CTL_ARGS_END
};

/* What of the bitmap arguments goes together; the words of backups. */
static int bitmap_of(struct ctl_call *call, const struct mirror_args *a, struct job_mirror_opts *o)
{
    bool incremental = a->sync == 3, by_bitmap = incremental || a->sync == 4;
    if (!by_bitmap && (a->bitmap || a->has_bitmap_mode))
        return byre_fail(&call->err, BAD_ARGUMENT, "'bitmap' and 'bitmap-mode' go with sync=bitmap or sync=incremental, not with sync=%s", sync_words[a->sync]);
    if (!by_bitmap)
        return 0;
    if (!a->bitmap)
        return byre_fail(&call->err, BAD_ARGUMENT, "sync=%s needs a 'bitmap'", sync_words[a->sync]);
    if (incremental && a->has_bitmap_mode && a->bitmap_mode != JOB_BITMAP_ON_SUCCESS)
        return byre_fail(&call->err, BAD_ARGUMENT, "sync=incremental has bitmap-mode on-success; use sync=bitmap for another one");
    if (!incremental && !a->has_bitmap_mode)
        return byre_fail(&call->err, BAD_ARGUMENT, "sync=bitmap needs a 'bitmap-mode'");
    o->bitmap = a->bitmap;
    o->bitmap_mode = (enum job_bitmap_mode)a->bitmap_mode;
    return 0;
}

static int fill_opts(struct ctl_call *call, const struct mirror_args *a, struct job_mirror_opts *o)
{
    static const enum job_mirror_sync syncs[] = { JOB_MIRROR_TOP, JOB_MIRROR_FULL, JOB_MIRROR_NONE, JOB_MIRROR_BITMAP, JOB_MIRROR_BITMAP };
    int r = ctl_job_may(call, &a->job);
    if (r)
        return r;
    *o = (struct job_mirror_opts){
        .source = ctl_named(call, a->device), .sync = syncs[a->sync], .blocking = a->copy_mode == 1, .granularity = a->granularity, .buf_bytes = a->buf_size,
        .keep_space = a->has_unmap && !a->unmap, .copy_range = a->copy_range, .on_source_error = ctl_on_error(a->on_source_error),
        .on_target_error = ctl_on_error(a->on_target_error), .converge = (enum converge_mode)a->converge, .deadline_s = a->deadline,
        .max_slowdown = (unsigned)a->max_slowdown, .max_hold_ms = a->max_hold_ms, .has_max_hold = a->has_max_hold_ms,
        .carry_bitmaps = a->carry_bitmaps, .filter_node_name = a->job.filter_node_name, .job = ctl_job_opts(&a->job, a->device) };
    if (!o->source)
        return call->err.code;
    r = graph_need_image(o->source, "a mirror", &call->err);
    if (r)
        return r;
    if (o->sync == JOB_MIRROR_TOP && !graph_backing(graph_skip_filters(o->source)))
        o->sync = JOB_MIRROR_FULL;           /* FEATURES 9.021 */
    r = bitmap_of(call, a, o);
    if (r)
        return r;
    if (a->replaces)
        o->replaces = ctl_node(call, a->replaces);
    return a->replaces && !o->replaces ? call->err.code : 0;
}

static int run_blockdev_mirror(struct co *co, struct ctl_call *call)
{
    const struct mirror_args *a = call->args;
    struct job_mirror_opts o;
    struct job *job;
    int r = fill_opts(call, a, &o);
    if (r)
        return r;
    o.target = ctl_named(call, a->target);
    if (!o.target)
        return call->err.code;
    struct graph_node *awaited = graph_await_writer(o.target);
    r = graph_writer_comes(co, o.target, &call->err);
    if (!r)
        r = job_mirror_start(co, call->c->env.jobs, &o, &job, &call->err);
    graph_await_end(co, awaited);
    if (r)
        graph_writer_gone(co, o.target);
    return r;
}

/* ---- drive-mirror ---- */

/* What the new image names as its backing file. NULL: none. */
static struct graph_node *backing_for(const struct job_mirror_opts *o)
{
    struct graph_node *image = graph_skip_filters(o->source);
    if (!image || o->sync == JOB_MIRROR_FULL)
        return NULL;
    return o->sync == JOB_MIRROR_TOP ? graph_skip_filters(graph_backing(image)) : image;
}

static int open_file(struct co *co, struct graph *g, const struct mirror_args *a, const char *format, struct job_mirror_opts *o, struct byre_err *err)
{
    o->over_source = o->sync == JOB_MIRROR_NONE;
    const struct graph_open_opts oo = { .filename = a->target, .format = format, .node_name = a->node_name, .discard = true, .no_backing = o->over_source };
    return graph_open(co, g, &oo, &o->target, err);
}

/* Of the node that the target becomes. */
static int check_name(struct ctl_call *call, const char *name)
{
    if (name && !id_is_good(name, GRAPH_NAME_MAX))
        return byre_fail(&call->err, BAD_ARGUMENT, "'%s' is no acceptable node name (a letter, then at most %d letters, digits, '-', '.', '_')", name, GRAPH_NAME_MAX - 1);
    return name && graph_find(call->c->env.graph, name) ? byre_fail(&call->err, EXISTS, "there is a node '%s' already", name) : 0;
}

static int run_drive_mirror(struct co *co, struct ctl_call *call)
{
    const struct mirror_args *a = call->args;
    struct job_mirror_opts o;
    struct job *job;
    bool make = !a->has_mode || a->mode == 1;
    int r = fill_opts(call, a, &o);
    if (r)
        return r;
    const char *format = a->format || !make ? a->format : graph_format(graph_skip_filters(o.source))->name;
    const struct fmt_ops *ops = format ? fmt_by_name(format) : NULL;
    if (format && (!ops || !ops->create))
        return byre_fail(&call->err, UNKNOWN_FORMAT, "Unknown driver '%s'", format);
    if (make && o.sync == JOB_MIRROR_BITMAP)
        return byre_fail(&call->err, BAD_ARGUMENT, "sync=%s needs mode=existing: the target holds already what the bitmap does not say", sync_words[a->sync]);
    if (make && o.sync != JOB_MIRROR_FULL && !ops->make_empty)
        return byre_fail(&call->err, NOT_SUPPORTED, "%s images cannot have a backing file, which sync=%s needs", format, sync_words[a->sync]);
    CLEANUP(graph_making_endp) struct graph_making *making = NULL;
    r = make ? ctl_claim_image(co, call->c->env.graph, a->target, "the copy", &making, &call->err) : 0;
    if (r)
        return r;
    struct graph_node *below_node = make ? backing_for(&o) : NULL;
    AUTOFREE char *below = below_node ? strdup(graph_filename(below_node)) : NULL;
    r = ctl_keep(call, below_node);
    if (!r && make)
        r = job_mirror_could(co, call->c->env.jobs, &o, &(struct job_mirror_made){ ops, a->target }, &call->err);
    if (!r)
        r = check_name(call, a->node_name);
    if (r)
        return r;
    r = make ? ctl_make_image(co, &(struct ctl_new_image){ call->c->env.graph, making, a->target, ops, graph_length(o.source), below_node }, &call->err) : 0;
    if (r)
        return r;
    r = open_file(co, call->c->env.graph, a, format, &o, &call->err);
    if (!r) {
        r = job_mirror_start(co, call->c->env.jobs, &o, &job, &call->err);
        (void)graph_close(co, o.target);     /* the job has a reference of its own */
    }
    if (r && make)
        graph_making_drop(co, making);           /* I1 */
    else if (!r)
        graph_tell_linked(co, call->c->env.graph, a->target, below);
    return r;
}

/* ---- block-job-change ---- */

struct change_args { const char *id; int type, copy_mode; };
static const char *const type_words[] = { "mirror", NULL };
static const struct ctl_shape type_shape = { .name = "JobType", .words = type_words };
static const struct ctl_arg change_rows[] = {
    { "id", CTL_STR, true, CTL_AT(struct change_args, id), .doc = "Id of the job." },
    { "type", CTL_ENUM, true, CTL_AT(struct change_args, type), .of = &type_shape },
    CTL_ARGS_END
};
static const struct ctl_arg change_mirror_rows[] = {
    { "copy-mode", CTL_ENUM, true, CTL_AT(struct change_args, copy_mode), .of = &ctl_copy_mode_shape, .doc = "From now on; both ways, as often as you like." },
    CTL_ARGS_END
};
static const struct ctl_case change_cases[] = { { "mirror", change_mirror_rows }, { NULL, NULL } };

static int run_change(struct co *co, struct ctl_call *call)
{
    const struct change_args *a = call->args;
    struct job *job = call->c->env.jobs ? job_find(call->c->env.jobs, a->id) : NULL;
    if (!job)
        return byre_fail(&call->err, NOT_FOUND, "Job not found: '%s'", a->id);
    if (!job_is_mirror(job))
        return byre_fail(&call->err, NOT_SUPPORTED, "Job '%s' of type %s has no copy mode", a->id, job->kind->type);
    return job_mirror_set_blocking(job, a->copy_mode == 1, &call->err);
}

/* ---- what query-block-jobs says beside the rest ---- */

static const char *state_word(const struct job *job, const struct job_mirror_state *s)
{
    if (s->ended)
        return "ended";
    if (job->status == JOB_READY || job->status == JOB_STANDBY)
        return "ready";
    if (s->converge->limit != CONVERGE_NONE)
        return "held up";
    return s->converge->brake ? "slowing the guest down" : s->blocking ? "sending changes to both sides" : "copying";
}

int ctl_mirror_json(const struct job *job, json_t *o)
{
    struct job_mirror_state s;
    job_mirror_look(job, &s);
    const struct converge *c = s.converge;
    json_t *x = json_pack("{s:s,s:s,s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:f,s:I}", "mode", converge_mode_name(c->mode), "state", state_word(job, &s), "limit",
                          converge_limit_name(c->limit), "copy-mode", s.blocking ? "write-blocking" : "background", "dirty-bytes", (json_int_t)s.dirty,
                          "dirty-rate", (json_int_t)c->dirty_rate, "copy-rate", (json_int_t)c->copy_rate, "guest-rate", (json_int_t)c->guest_rate,
                          "guest-rate-before", (json_int_t)c->guest_before, "guest-rate-limit", (json_int_t)c->brake, "longest-hold-us",
                          (json_int_t)(s.longest_hold_ns / 1000), "ready-in-seconds", c->left_s, "pivot-pause-us", (json_int_t)(s.pivot_pause_ns / 1000));
    if (x && c->deadline_ns && json_object_set_new(x, "deadline-in-seconds", json_real(s.time_left_s))) {
        json_decref(x);
        return -1;
    }
    return json_object_set_new(o, "actively-synced", json_boolean(s.actively_synced)) || json_object_set_new(o, "x-byre-converge", x) ? -1 : 0;
}

const struct ctl_command ctl_cmd_blockdev_mirror = { "blockdev-mirror", blockdev_rows, sizeof(struct mirror_args), run_blockdev_mirror,
    .doc = "Makes another node the same as a disk in use, keeps it so, and lets it take the disk's place when block-job-complete says so; from then on, however "
           "busy the disk is, it ends. In x-byre-converge query-block-jobs tells rates in bytes per second, when it will be ready (-1: never, as things are), what is "
           "done about it, which limit forbids more, and how long users stood still when they went over." };
const struct ctl_command ctl_cmd_drive_mirror = { "drive-mirror", drive_rows, sizeof(struct mirror_args), run_drive_mirror,
    .doc = "The same for a file, which is made unless mode is existing." };
const struct ctl_command ctl_cmd_block_job_change = { "block-job-change", change_rows, sizeof(struct change_args), run_change, .tag = "type", .cases = change_cases,
    .doc = "Changes how a mirror handles what is written meanwhile." };
