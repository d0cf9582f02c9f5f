/* SPDX-License-Identifier: MIT
 *
 * cmd_block_job.c: query-block-jobs, the verbs block-job-*, and the events BLOCK_JOB_* (FEATURES 8.015, 8.024, 9.013).
 *
 * Purpose      Jobs that change what disks consist of, in the older words.
 * Owns         nothing
 * Invariants   I1 only jobs whose kind is a block job are shown, told of and found here
 *              I2 BLOCK_JOB_COMPLETED is sent after everything that the job promises is durable (J5)
 * Concurrency  home loop
 * Failure      as ctl_priv.h; DeviceNotActive for a job that there is not
 * Tests        tests/cli/live_commit_test.py
 */
#include <string.h>

#include "copy/latency.h"
#include "ctl/cmd_mirror.h"
#include "job/job.h"

/* ---- events ---- */
static const char *error_of(const struct job *job)
{
    return job->err.text[0] ? job->err.text : strerror(-job->result);
}

static json_t *state_json(const struct job *job)
{
    uint64_t done, total;
    job_progress_get(job, &done, &total);
    json_t *data = json_pack("{s:s,s:s,s:I,s:I,s:I}", "device", job->id, "type", job->kind->type, "len", (json_int_t)total, "offset", (json_int_t)done,
                             "speed", (json_int_t)job->speed);
    bool failed = job->status == JOB_CONCLUDED && job->result < 0 && job->result != -ECANCELED;
    if (data && failed && json_object_set_new(data, "error", json_string(error_of(job)))) {
        json_decref(data);
        data = NULL;
    }
    return data;
}

void ctl_block_job_changed(struct ctl *c, const struct job *job)
{
    if (!job->kind->block_job)
        return;
    if (job->status == JOB_READY)
        ctl_send_event(c, "BLOCK_JOB_READY", state_json(job));
    else if (job->status == JOB_PENDING && !job->auto_finalize)
        ctl_send_event(c, "BLOCK_JOB_PENDING", json_pack("{s:s,s:s}", "type", job->kind->type, "id", job->id));
    else if (job->status == JOB_CONCLUDED && job->result == -ECANCELED)
        ctl_send_event(c, "BLOCK_JOB_CANCELLED", state_json(job));
    else if (job->status == JOB_CONCLUDED)
        ctl_send_event(c, "BLOCK_JOB_COMPLETED", state_json(job));
}

void ctl_job_io_error(void *arg, const struct job *job, bool read, const char *action)
{
    if (job->id && job->kind->block_job)
        ctl_send_event(arg, "BLOCK_JOB_ERROR", json_pack("{s:s,s:s,s:s}", "device", job->id, "operation", read ? "read" : "write", "action", action));
}

/* ---- query-block-jobs ---- */
/* FEATURES 9.100. NULL: no memory */
static json_t *latency_json(const struct copy_latency *l)
{
    json_t *limits = json_array(), *bins = json_array();
    bool ok = limits && bins;
    for (unsigned i = 0; ok && i <= COPY_LATENCY_LIMITS; i++)
        ok = !json_array_append_new(bins, json_integer((json_int_t)l->bins[i])) &&
             (i == COPY_LATENCY_LIMITS || !json_array_append_new(limits, json_integer((json_int_t)copy_latency_limits[i])));
    json_t *o = ok ? json_pack("{s:O,s:O}", "boundaries", limits, "bins", bins) : NULL;
    json_decref(limits);
    json_decref(bins);
    return o;
}

static json_t *block_job_json(const struct job *job)
{
    uint64_t done, total;
    job_progress_get(job, &done, &total);
    bool stands = job->pauses > 0;
    json_t *o = json_pack("{s:s,s:s,s:I,s:I,s:b,s:b,s:I,s:s,s:b,s:s,s:b,s:b}", "device", job->id, "type", job->kind->type, "len", (json_int_t)total,
                          "offset", (json_int_t)done, "busy", !stands && !job->done, "paused", stands, "speed", (json_int_t)job->speed,
                          "io-status", !job->io_error ? "ok" : job->io_error == -ENOSPC ? "nospace" : "failed",
                          "ready", job->status == JOB_READY || job->status == JOB_STANDBY, "status", job_status_name(job->status),
                          "auto-finalize", job->auto_finalize, "auto-dismiss", job->auto_dismiss);
    if (o && job->status == JOB_CONCLUDED && job->result < 0 && json_object_set_new(o, "error", json_string(error_of(job)))) {
        json_decref(o);
        return NULL;
    }
    if (o && job->latency && json_object_set_new(o, "x-byre-copy-latency", latency_json(job->latency))) {
        json_decref(o);
        return NULL;
    }
    if (o && job_is_mirror(job) && ctl_mirror_json(job, o)) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static int run_query_block_jobs(struct co *co, struct ctl_call *call)
{
    struct jobs *js = call->c->env.jobs;
    call->ret = json_array();
    for (struct job *job = js ? job_next(js, NULL) : NULL; job && call->ret; job = job_next(js, job))
        if (job->kind->block_job && json_array_append_new(call->ret, block_job_json(job)))
            return ctl_no_memory(call);
    return call->ret ? 0 : ctl_no_memory(call);
}

/* ---- verbs ---- */
struct device_args { const char *device; uint64_t speed; bool force; };
static const struct ctl_arg device_rows[] = { { "device", CTL_STR, true, CTL_AT(struct device_args, device), .doc = "Id of the job." }, CTL_ARGS_END };
static const struct ctl_arg id_rows[] = { { "id", CTL_STR, true, CTL_AT(struct device_args, device), .doc = "Id of the job." }, CTL_ARGS_END };

static struct job *find(struct ctl_call *call, const char *id)
{
    struct job *job = call->c->env.jobs ? job_find(call->c->env.jobs, id) : NULL;
    if (job && job->kind->block_job)
        return job;
    call->error_class = "DeviceNotActive";
    (void)byre_fail(&call->err, NOT_FOUND, "Block job '%s' not found", id);
    return NULL;
}

static int verb(struct ctl_call *call, enum job_verb v)
{
    const struct device_args *a = call->args;
    struct job *job = find(call, a->device);
    return job ? job_do(job, v, &call->err) : call->err.code;
}

#define VERB(name, rows, NAME, text)                                                                                                \
    static int run_block_job_##name(struct co *co, struct ctl_call *call) { return verb(call, NAME); }                              \
    const struct ctl_command ctl_cmd_block_job_##name = { "block-job-" #name, rows, sizeof(struct device_args), run_block_job_##name, .doc = text };
VERB(complete, device_rows, JOB_COMPLETE, "Lets a job that is ready do its last step.")
VERB(dismiss, id_rows, JOB_DISMISS, "Forgets a job that has ended.")
VERB(finalize, id_rows, JOB_FINALIZE, "Lets a job that is pending take effect.")
VERB(pause, device_rows, JOB_PAUSE, "Lets a job rest at its next pause point.")
VERB(resume, device_rows, JOB_RESUME, "Lets a job go on that was paused, or that stopped because of an error.")
#undef VERB

static const struct ctl_arg cancel_rows[] = {
    { "device", CTL_STR, true, CTL_AT(struct device_args, device), .doc = "Id of the job." },
    { "force", CTL_BOOL, false, CTL_AT(struct device_args, force), .doc = "Also when it is paused; and a mirror that is ready does not end well." },
    CTL_ARGS_END
};

static int run_cancel(struct co *co, struct ctl_call *call)
{
    const struct device_args *a = call->args;
    struct job *job = find(call, a->device);
    if (!job)
        return call->err.code;
    if (job->user_paused && !a->force)
        return byre_fail(&call->err, BAD_ARGUMENT, "The block job '%s' is paused: resume it first, or use force", a->device);
    if (job_is_mirror(job) && !a->force && (job->status == JOB_READY || job->status == JOB_STANDBY))
        return job_mirror_leave(job, &call->err);            /* FEATURES 9.011 */
    return job_do(job, JOB_CANCEL, &call->err);
}

static const struct ctl_arg speed_rows[] = {
    { "device", CTL_STR, true, CTL_AT(struct device_args, device), .doc = "Id of the job." },
    { "speed", CTL_SIZE, true, CTL_AT(struct device_args, speed), .doc = "Bytes per second; 0: no limit." },
    CTL_ARGS_END
};

static int run_set_speed(struct co *co, struct ctl_call *call)
{
    const struct device_args *a = call->args;
    struct job *job = find(call, a->device);
    return job ? job_set_speed(job, a->speed, &call->err) : call->err.code;
}

const struct ctl_command ctl_cmd_block_job_cancel = { "block-job-cancel", cancel_rows, sizeof(struct device_args), run_cancel,
    .doc = "Ends a job. What it changed so far stays readable." };
const struct ctl_command ctl_cmd_block_job_set_speed = { "block-job-set-speed", speed_rows, sizeof(struct device_args), run_set_speed,
    .doc = "Limits how fast a job works, from now on." };
const struct ctl_command ctl_cmd_query_block_jobs = { "query-block-jobs", NULL, 0, run_query_block_jobs, .ret = &ctl_ret_any,
    .doc = "Lists block jobs with their progress. In x-byre-copy-latency: how many pieces took how long, as a histogram of query-blockstats, in ns." };
