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

#include "ctl/cmd_mirror.h"
#include "graph/blockdev.h"
#include "graph/runtime.h"
#include "stor/stor.h"

struct mirror_args {
    const char *job_id, *device, *target, *format, *node_name, *replaces, *filter_node_name;
    uint64_t speed, granularity, buf_size, deadline, max_slowdown, max_hold_ms;
    int sync, mode, copy_mode, on_source_error, on_target_error, converge;
    bool has_mode, has_on_source_error, has_on_target_error, has_max_hold_ms;
    bool unmap, has_unmap, auto_finalize, has_auto_finalize, auto_dismiss, has_auto_dismiss;
};

static const char *const sync_words[] = { "top", "full", "none", "incremental", "bitmap", NULL };
static const struct ctl_shape sync_shape = { .name = "MirrorSyncMode", .words = sync_words };
static const char *const mode_words[] = { "existing", "absolute-paths", NULL };
static const struct ctl_shape mode_shape = { .name = "NewImageMode", .words = mode_words };
static const char *const copy_mode_words[] = { "background", "write-blocking", NULL };
static const struct ctl_shape copy_mode_shape = { .name = "MirrorCopyMode", .words = copy_mode_words };
static const char *const on_error_words[] = { "report", "ignore", "enospc", "stop", "auto", NULL };
static const struct ctl_shape on_error_shape = { .name = "BlockdevOnError", .words = on_error_words };
static const char *const converge_words[] = { "off", "throttle", "write-blocking", "auto", NULL };
static const struct ctl_shape converge_shape = { .name = "ConvergeMode", .words = converge_words };

#define COMMON_ROWS \
    { "job-id", CTL_STR, false, CTL_AT(struct mirror_args, job_id), .doc = "Name of the job; the device's unless given." }, \
    { "device", CTL_STR, true, CTL_AT(struct mirror_args, device), .doc = "The disk that is copied, by device or node." }, \
    { "sync", CTL_ENUM, true, CTL_AT(struct mirror_args, sync), .of = &sync_shape, .doc = "All that can be read, what the top image holds, or only what is written from now on. Bitmaps are refused." }, \
    { "replaces", CTL_STR, false, CTL_AT(struct mirror_args, replaces), .doc = "Node whose users go to the target at the end; the source's unless given." }, \
    { "speed", CTL_SIZE, false, CTL_AT(struct mirror_args, speed), .doc = "Bytes copied per second; 0: no limit." }, \
    { "granularity", CTL_SIZE, false, CTL_AT(struct mirror_args, granularity), .max = UINT32_MAX, .doc = "How much one changed byte makes dirty: a power of two, 512 to 64 MiB." }, \
    { "buf-size", CTL_SIZE, false, CTL_AT(struct mirror_args, buf_size), .max = UINT32_MAX, .doc = "Memory for what is under way; 16 MiB unless given." }, \
    { "on-source-error", CTL_ENUM, false, CTL_AT_HAS(struct mirror_args, on_source_error), .of = &on_error_shape }, \
    { "on-target-error", CTL_ENUM, false, CTL_AT_HAS(struct mirror_args, on_target_error), .of = &on_error_shape }, \
    { "copy-mode", CTL_ENUM, false, CTL_AT(struct mirror_args, copy_mode), .of = &copy_mode_shape, .doc = "write-blocking: changes go to both sides before they are answered." }, \
    { "converge", CTL_ENUM, false, CTL_AT(struct mirror_args, converge), .of = &converge_shape, \
      .doc = "What may be done so that the job becomes ready: slow the guest down, send changes to both sides, or whatever is needed." }, \
    { "deadline", CTL_SIZE, false, CTL_AT(struct mirror_args, deadline), .max = UINT32_MAX, .doc = "Seconds in which it is to be ready; 0: none." }, \
    { "max-slowdown", CTL_SIZE, false, CTL_AT(struct mirror_args, max_slowdown), .max = 1000000, .doc = "The guest keeps at least this part of its write throughput: 1/20 unless given." }, \
    { "max-hold-ms", CTL_SIZE, false, CTL_AT_HAS(struct mirror_args, max_hold_ms), .max = 3600000, \
      .doc = "No request is held longer; 0: no limit. 1000 unless given, and no limit without converge." }, \
    { "auto-finalize", CTL_BOOL, false, CTL_AT_HAS(struct mirror_args, auto_finalize) }, \
    { "auto-dismiss", CTL_BOOL, false, CTL_AT_HAS(struct mirror_args, auto_dismiss) }

static const struct ctl_arg blockdev_rows[] = {
    { "target", CTL_STR, true, CTL_AT(struct mirror_args, target), .doc = "Node that becomes the copy." },
    { "filter-node-name", CTL_STR, false, CTL_AT(struct mirror_args, filter_node_name), .doc = "Must be free. No filter is needed, and none appears." },
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

static enum job_on_error on_error(bool given, int word)
{
    static const enum job_on_error words[] = { JOB_ON_ERROR_REPORT, JOB_ON_ERROR_IGNORE, JOB_ON_ERROR_ENOSPC, JOB_ON_ERROR_STOP, JOB_ON_ERROR_REPORT };
    return given ? words[word] : JOB_ON_ERROR_REPORT;
}

static int fill_opts(struct ctl_call *call, const struct mirror_args *a, struct job_mirror_opts *o)
{
    static const enum job_mirror_sync syncs[] = { JOB_MIRROR_TOP, JOB_MIRROR_FULL, JOB_MIRROR_NONE };
    if (!call->c->env.jobs)
        return byre_fail(&call->err, NOT_SUPPORTED, "there are no jobs here");
    if (a->sync >= (int)(sizeof syncs / sizeof *syncs))
        return byre_fail(&call->err, NOT_SUPPORTED, "Sync mode '%s' not supported", sync_words[a->sync]);
    if (a->filter_node_name && graph_find(call->c->env.graph, a->filter_node_name))
        return byre_fail(&call->err, EXISTS, "there is a node '%s' already", a->filter_node_name);
    *o = (struct job_mirror_opts){
        .source = ctl_named(call, a->device), .sync = syncs[a->sync], .blocking = a->copy_mode == 1, .granularity = a->granularity, .buf_bytes = a->buf_size,
        .keep_space = a->has_unmap && !a->unmap, .on_source_error = on_error(a->has_on_source_error, a->on_source_error),
        .on_target_error = on_error(a->has_on_target_error, a->on_target_error), .converge = (enum converge_mode)a->converge, .deadline_s = a->deadline,
        .max_slowdown = (unsigned)a->max_slowdown, .max_hold_ms = a->max_hold_ms, .has_max_hold = a->has_max_hold_ms,
        .job = { .id = a->job_id ? a->job_id : a->device, .speed = a->speed, .keep_pending = a->has_auto_finalize && !a->auto_finalize,
                 .keep_concluded = a->has_auto_dismiss && !a->auto_dismiss } };
    if (!o->source)
        return call->err.code;
    if (o->sync == JOB_MIRROR_TOP && !graph_backing(o->source))
        o->sync = JOB_MIRROR_FULL;           /* FEATURES 9.021 */
    if (a->replaces && !(o->replaces = graph_find(call->c->env.graph, a->replaces)))
        return byre_fail(&call->err, NOT_FOUND, "Cannot find device='' nor node-name='%s'", a->replaces);
    return 0;
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
    return o.target ? job_mirror_start(co, call->c->env.jobs, &o, &job, &call->err) : call->err.code;
}

/* ---- drive-mirror ---- */

/* What the new image names as its backing file. NULL: none. */
static struct graph_node *backing_for(const struct job_mirror_opts *o)
{
    return o->sync == JOB_MIRROR_FULL ? NULL : o->sync == JOB_MIRROR_TOP ? graph_skip_filters(graph_backing(o->source)) : graph_skip_filters(o->source);
}

static int make_file(struct co *co, const char *file, const struct fmt_ops *ops, const struct job_mirror_opts *o, struct byre_err *err)
{
    struct graph_node *below = backing_for(o);
    struct stor *s;
    char *name = below ? realpath(graph_filename(below), NULL) : NULL;
    const struct fmt_create_opts how = { .size = graph_length(o->source), .version = 3, .refcount_bits = 16, .backing_file = name,
                                         .backing_fmt = below ? (char *)(uintptr_t)graph_format(below)->name : NULL };
    const struct stor_file_opts so = { .create = true, .truncate_to_zero = true };
    int r = below && !name ? byre_fail(err, NOT_SUPPORTED, "%s: is no plain file that another image could name", graph_filename(below)) : ops->create(co, NULL, &how, err);
    if (!r)
        r = stor_file_open(co, file, &so, &s, err);
    if (!r) {
        r = ops->create(co, s, &how, err);
        stor_close(co, s);
        if (r)
            (void)unlink(file);
    }
    free(name);
    return r;
}

static int open_file(struct co *co, struct graph *g, const struct mirror_args *a, const char *format, struct job_mirror_opts *o, struct byre_err *err)
{
    o->over_source = o->sync == JOB_MIRROR_NONE;
    const struct graph_open_opts oo = { .filename = a->target, .format = format, .node_name = a->node_name, .discard = true, .no_backing = o->over_source };
    return graph_open(co, g, &oo, &o->target, err);
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
    if (make && o.sync != JOB_MIRROR_FULL && !ops->make_empty)
        return byre_fail(&call->err, NOT_SUPPORTED, "%s images cannot have a backing file, which sync=%s needs", format, sync_words[a->sync]);
    if (make && graph_uses_file(co, call->c->env.graph, a->target))
        return byre_fail(&call->err, EXISTS, "'%s' is the file of a node that is open; the copy needs a file of its own", a->target);
    r = make ? make_file(co, a->target, ops, &o, &call->err) : 0;
    if (r)
        return r;
    r = open_file(co, call->c->env.graph, a, format, &o, &call->err);
    if (!r) {
        r = job_mirror_start(co, call->c->env.jobs, &o, &job, &call->err);
        (void)graph_close(co, o.target);     /* the job has a reference of its own */
    }
    if (r && make)
        (void)unlink(a->target);             /* I1 */
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
    { "copy-mode", CTL_ENUM, true, CTL_AT(struct change_args, copy_mode), .of = &copy_mode_shape, .doc = "From now on; both ways, as often as you like." },
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
