/* SPDX-License-Identifier: MIT
 *
 * cmd_job.c: x-byre-scrub, x-byre-compact, query-jobs, job-pause, job-resume, job-cancel, job-complete, job-finalize, job-dismiss (FEATURES 8.015),
 * and the event JOB_STATUS_CHANGE (8.024).
 *
 * Purpose      The verbs of jobs, by their ids; and the jobs that change nothing of what a disk consists of.
 * Owns         nothing
 * Invariants   I1 jobs without an id are neither shown nor told of
 * Concurrency  home loop
 * Failure      as ctl_priv.h
 * Tests        ctl_test.c, tests/cli/job_test.py
 */
#include <string.h>

#include "ctl/ctl_priv.h"
#include "ctl/guard.h"
#include "ctl/job_args.h"
#include "job/compact.h"
#include "job/job.h"
#include "job/scrub.h"

/* ---- events ---- */
void ctl_job_changed(void *arg, const struct job *job)
{
    if (!job->id)
        return;                              /* I1 */
    ctl_guard_job_changed(arg, job);
    ctl_block_job_changed(arg, job);
    json_t *data = json_pack("{s:s,s:s}", "status", job_status_name(job->status), "id", job->id);
    ctl_send_event(arg, "JOB_STATUS_CHANGE", data);
}

/* ---- query-jobs ---- */
/* What a scrub has found: the words of the peer's ImageCheck, and ours for the findings. */
static int add_scrub(json_t *o, const struct job_scrub_result *r)
{
    const struct fmt_check_result *c = &r->counts;
    json_t *list = json_array();
    for (unsigned i = 0; list && i < r->listed; i++)
        if (json_array_append_new(list, json_pack("{s:s,s:s,s:b}", "id", r->list[i].id, "text", r->list[i].text, "fixed", r->list[i].fixed)))
            return -1;
    return json_object_set_new(o, "x-byre-check", json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:o}",
        "check-errors", (json_int_t)c->check_errors, "corruptions", (json_int_t)c->corruptions, "leaks", (json_int_t)c->leaks,
        "corruptions-fixed", (json_int_t)c->corruptions_fixed, "leaks-fixed", (json_int_t)c->leaks_fixed,
        "total-clusters", (json_int_t)c->total_clusters, "allocated-clusters", (json_int_t)c->allocated_clusters,
        "fragmented-clusters", (json_int_t)c->fragmented_clusters, "compressed-clusters", (json_int_t)c->compressed_clusters,
        "image-end-offset", (json_int_t)c->image_end_offset, "findings-total", (json_int_t)r->findings, "findings", list));
}

static int add_compact(json_t *o, const struct fmt_compact_result *r)
{
    return json_object_set_new(o, "x-byre-compact", json_pack("{s:I,s:I,s:I,s:I,s:I,s:I}", "bytes-moved", (json_int_t)r->moved, "bytes-zeroed", (json_int_t)r->zeroed,
        "length-before", (json_int_t)r->length_before, "length-after", (json_int_t)r->length_after,
        "allocated-before", (json_int_t)r->allocated_before, "allocated-after", (json_int_t)r->allocated_after));
}

static json_t *job_json(const struct job *job)
{
    uint64_t current, total;
    job_progress_get(job, &current, &total);
    json_t *o = json_pack("{s:I,s:s,s:I,s:s,s:s}", "current-progress", (json_int_t)current, "status", job_status_name(job->status),
                          "total-progress", (json_int_t)total, "type", job->kind->type, "id", job->id);
    if (o && job->status == JOB_CONCLUDED && job->result < 0 &&
        json_object_set_new(o, "error", json_string(job->err.text[0] ? job->err.text : strerror(-job->result)))) {
        json_decref(o);
        return NULL;
    }
    if (o && job->status == JOB_CONCLUDED && ((job->kind == &job_scrub_kind && add_scrub(o, job_scrub_result(job))) ||
                                              (job->kind == &job_compact_kind && add_compact(o, job_compact_result(job))))) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static int run_query_jobs(struct co *co, struct ctl_call *call)
{
    struct jobs *js = call->c->env.jobs;
    call->ret = json_array();
    for (struct job *job = js ? job_next(js, NULL) : NULL; job && call->ret; job = job_next(js, job))
        if (json_array_append_new(call->ret, job_json(job)))
            return ctl_no_memory(call);
    return call->ret ? 0 : ctl_no_memory(call);
}

/* ---- verbs ---- */
struct id_args { const char *id; };
static const struct ctl_arg id_rows[] = { { "id", CTL_STR, true, CTL_AT(struct id_args, id) }, CTL_ARGS_END };

/* ---- x-byre-query-job-end ---- */
static int run_query_job_end(struct co *co, struct ctl_call *call)
{
    const char *id = ((const struct id_args *)call->args)->id;
    const struct jobs *js = call->c->env.jobs;
    const struct job_end *e = js && !job_find(js, id) ? job_end_find(js, id) : NULL;
    if (!e)
        return byre_fail(&call->err, NOT_FOUND, js && job_find(js, id) ? "job '%s' has not ended, or is kept: query-jobs tells" : "no job '%s' is known to have ended", id);
    call->ret = json_pack("{s:s,s:s,s:b}", "id", e->id, "type", e->type, "success", e->result >= 0);
    if (call->ret && e->result < 0 && json_object_set_new(call->ret, "error", json_string(e->error ? e->error : strerror(-e->result)))) {
        json_decref(call->ret);
        call->ret = NULL;
    }
    return call->ret ? 0 : ctl_no_memory(call);
}
const struct ctl_command ctl_cmd_x_byre_job_end = { "x-byre-query-job-end", id_rows, sizeof(struct id_args), run_query_job_end, .ret = &ctl_ret_any, .oob = true,
    .doc = "Tells how a job ended that is not listed any more. The last 64 of them are remembered." };

static int verb(struct ctl_call *call, enum job_verb v)
{
    const struct id_args *a = call->args;
    struct job *job = call->c->env.jobs ? job_find(call->c->env.jobs, a->id) : NULL;
    return job ? job_do(job, v, &call->err) : byre_fail(&call->err, NOT_FOUND, "Job not found: '%s'", a->id);
}

#define VERB(name, NAME, text)                                                                                                           \
    static int run_job_##name(struct co *co, struct ctl_call *call) { return verb(call, NAME); }                                   \
    const struct ctl_command ctl_cmd_job_##name = { "job-" #name, id_rows, sizeof(struct id_args), run_job_##name, .doc = text, .oob = true };
VERB(cancel, JOB_CANCEL, "Ends a job without its result. What it changed so far stays readable.")
VERB(complete, JOB_COMPLETE, "Lets a job that is ready do its last step.")
VERB(dismiss, JOB_DISMISS, "Forgets a job that has ended.")
VERB(finalize, JOB_FINALIZE, "Lets a job that is pending take effect.")
VERB(pause, JOB_PAUSE, "Lets a job rest at its next pause point.")
VERB(resume, JOB_RESUME, "Lets a job that was paused go on.")
#undef VERB

/* ---- x-byre-scrub ---- */
struct scrub_args {
    struct ctl_job_args job;
    const char *device, *node_name, *fix;
};
static const struct ctl_arg scrub_rows[] = {
    { "device", CTL_STR, false, CTL_AT(struct scrub_args, device) },
    { "node-name", CTL_STR, false, CTL_AT(struct scrub_args, node_name) },
    { "fix", CTL_STR, false, CTL_AT(struct scrub_args, fix) },
    CTL_JOB_ROWS(struct scrub_args),
    CTL_ARGS_END
};

static int do_scrub(struct co *co, struct ctl_call *call)
{
    const struct scrub_args *a = call->args;
    struct graph_node *n;
    int r = ctl_target(call, a->device, a->node_name, &n);
    if (r)
        return r;
    if (a->fix && strcmp(a->fix, "none") && strcmp(a->fix, "leaks"))
        return byre_fail(&call->err, BAD_ARGUMENT, "Parameter 'fix' is 'none' or 'leaks', not '%s'; errors are repaired when the disk is not in use", a->fix);
    r = ctl_job_may(call, &a->job);
    if (r)
        return r;
    struct job_scrub_opts o = { .node = n, .fix_leaks = !a->fix || strcmp(a->fix, "none"),
        .job = ctl_job_opts(&a->job, graph_node_name(n)) };
    struct job *job;
    return job_scrub_start(call->c->env.jobs, &o, &job, &call->err);
}

static int run_x_byre_scrub(struct co *co, struct ctl_call *call) { return ctl_with_edges_held(co, call, do_scrub); }

const struct ctl_command ctl_cmd_x_byre_scrub = { "x-byre-scrub", scrub_rows, sizeof(struct scrub_args), run_x_byre_scrub,
    .doc = "Checks an image while it is in use, and gives back what nothing refers to." };

/* ---- x-byre-compact ---- */
struct compact_args {
    struct ctl_job_args job;
    const char *device, *node_name;
    bool zeros, has_zeros;
};
static const struct ctl_arg compact_rows[] = {
    { "device", CTL_STR, false, CTL_AT(struct compact_args, device) },
    { "node-name", CTL_STR, false, CTL_AT(struct compact_args, node_name) },
    { "zeros", CTL_BOOL, false, CTL_AT_HAS(struct compact_args, zeros) },
    CTL_JOB_ROWS(struct compact_args),
    CTL_ARGS_END
};

static int do_compact(struct co *co, struct ctl_call *call)
{
    const struct compact_args *a = call->args;
    struct graph_node *n;
    struct job *job;
    int r = ctl_target(call, a->device, a->node_name, &n);
    if (r)
        return r;
    r = ctl_job_may(call, &a->job);
    if (r)
        return r;
    struct job_compact_opts o = { .node = n, .look_for_zeros = !a->has_zeros || a->zeros,
        .job = ctl_job_opts(&a->job, graph_node_name(n)) };
    return job_compact_start(call->c->env.jobs, &o, &job, &call->err);
}

static int run_x_byre_compact(struct co *co, struct ctl_call *call) { return ctl_with_edges_held(co, call, do_compact); }

const struct ctl_command ctl_cmd_x_byre_compact = { "x-byre-compact", compact_rows, sizeof(struct compact_args), run_x_byre_compact,
    .doc = "Moves clusters to the front of an image while it is in use, and cuts it." };
const struct ctl_command ctl_cmd_query_jobs = { "query-jobs", NULL, 0, run_query_jobs, .ret = &ctl_ret_any, .doc = "Lists jobs with their states.", .oob = true };
