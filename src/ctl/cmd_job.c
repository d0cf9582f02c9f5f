/* SPDX-License-Identifier: MIT
 *
 * cmd_job.c: query-jobs, job-pause, job-resume, job-cancel, job-complete, job-finalize, job-dismiss (FEATURES 8.015),
 * and the event JOB_STATUS_CHANGE (8.024).
 *
 * Purpose      The verbs of jobs, by their ids.
 * Owns         nothing
 * Invariants   I1 jobs without an id are neither shown nor told of
 * Concurrency  home loop
 * Failure      as ctl_priv.h
 * Tests        ctl_test.c, tests/cli/job_test.py
 */
#include <string.h>

#include "ctl/ctl_priv.h"
#include "job/job.h"

/* ---- events ---- */
void ctl_job_changed(void *arg, const struct job *job)
{
    if (!job->id)
        return;                              /* I1 */
    json_t *data = json_pack("{s:s,s:s}", "status", job_status_name(job->status), "id", job->id);
    ctl_send_event(arg, "JOB_STATUS_CHANGE", data);
}

/* ---- query-jobs ---- */
static json_t *job_json(const struct job *job)
{
    uint64_t current, total;
    job_progress_get(job, &current, &total);
    json_t *o = json_pack("{s:I,s:s,s:I,s:s,s:s}", "current-progress", (json_int_t)current, "status", job_status_name(job->status),
                          "total-progress", (json_int_t)total, "type", job->kind->type, "id", job->id);
    if (o && job->status == JOB_CONCLUDED && job->result < 0 && job->result != -ECANCELED &&
        json_object_set_new(o, "error", json_string(job->err.text[0] ? job->err.text : strerror(-job->result)))) {
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
            return byre_fail(&call->err, NOMEM, "no memory for a reply");
    return call->ret ? 0 : byre_fail(&call->err, NOMEM, "no memory for a reply");
}

/* ---- verbs ---- */
struct id_args { const char *id; };
static const struct ctl_arg id_rows[] = { { "id", CTL_STR, true, CTL_AT(struct id_args, id) }, CTL_ARGS_END };

static int verb(struct ctl_call *call, enum job_verb v)
{
    const struct id_args *a = call->args;
    struct job *job = call->c->env.jobs ? job_find(call->c->env.jobs, a->id) : NULL;
    return job ? job_do(job, v, &call->err) : byre_fail(&call->err, NOT_FOUND, "Job not found: '%s'", a->id);
}

#define VERB(name, NAME)                                                                                                           \
    static int run_job_##name(struct co *co, struct ctl_call *call) { return verb(call, NAME); }                                   \
    const struct ctl_command ctl_cmd_job_##name = { "job-" #name, id_rows, sizeof(struct id_args), run_job_##name, false };
VERB(cancel, JOB_CANCEL)
VERB(complete, JOB_COMPLETE)
VERB(dismiss, JOB_DISMISS)
VERB(finalize, JOB_FINALIZE)
VERB(pause, JOB_PAUSE)
VERB(resume, JOB_RESUME)
#undef VERB

const struct ctl_command ctl_cmd_query_jobs = { "query-jobs", NULL, 0, run_query_jobs, false };
