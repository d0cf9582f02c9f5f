/* SPDX-License-Identifier: MIT
 *
 * cmd_job.c: byre job.
 *
 * Purpose      Shows, follows and steers the jobs of a running server.
 * Owns         the connection
 * Invariants   I1 `wait` says 0 only if no job that it waited for has failed or was cancelled
 * Concurrency  main thread
 * Failure      exit 1: no connection, no such job, a verb that was refused, a job that failed
 * Tests        tests/cli/job_test.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bin/commands.h"
#include "bin/progress.h"
#include "bin/qmp_link.h"

#define POLL_US 100000

struct opts { struct common common; char *output; bool progress_on, quiet; int progress; };

static const struct opt_row rows[] = {
    ROW_HELP,
    { "output", 0, OPT_STR, OPT_AT(struct opts, output), .arg = "FORM", .help = "human or json (wait: one object a line)" },
    ROW_PROGRESS(struct opts),
    { "quiet", 'q', OPT_BOOL, OPT_AT(struct opts, quiet), .help = "no progress" },
    OPT_END
};

struct jobctl {
    struct run *r;
    struct qmp_link link;
    const char *id;                      /* NULL: not given */
    bool json;
    json_t *failed;                      /* object: id -> true, from events */
};

static void on_event(void *arg, json_t *event)
{
    struct jobctl *c = arg;
    json_t *data = json_object_get(event, "data");
    const char *name = json_string_value(json_object_get(event, "event")), *status = json_string_value(json_object_get(data, "status"));
    const char *id = json_string_value(json_object_get(data, "id"));
    if (name && id && status && strcmp(name, "JOB_STATUS_CHANGE") == 0 && strcmp(status, "aborting") == 0)
        (void)json_object_set_new(c->failed, id, json_true());
}

static int print_value(struct run *r, const json_t *v, size_t flags)
{
    char *text = json_dumps(v, flags | JSON_ENCODE_ANY);
    if (!text)
        return run_fail(r, "no memory");
    printf("%s\n", text);
    free(text);
    fflush(stdout);
    return 0;
}

static int list_jobs(struct jobctl *c)
{
    size_t i;
    json_t *job, *list = qmp_link_do(&c->link, "query-jobs", NULL);
    if (!list)
        return 1;
    int code = c->json ? print_value(c->r, list, JSON_INDENT(4)) : 0;
    if (!c->json && json_array_size(list))
        printf("%-20s %-14s %-10s %20s %20s  %s\n", "ID", "TYPE", "STATUS", "DONE", "TOTAL", "ERROR");
    json_array_foreach(list, i, job)
        if (!c->json)
            printf("%-20s %-14s %-10s %20" PRIu64 " %20" PRIu64 "  %s\n", qmp_link_text(job, "id"), qmp_link_text(job, "type"), qmp_link_text(job, "status"),
                   qmp_link_number(job, "current-progress"), qmp_link_number(job, "total-progress"), qmp_link_text(job, "error"));
    json_decref(list);
    return code;
}

/* The id that was given, or that of the only job there is (allocated). NULL: told already. */
static char *target(struct jobctl *c)
{
    json_t *list = qmp_link_do(&c->link, "query-jobs", NULL);
    char *id = NULL;
    if (list && c->id)
        id = qmp_link_find_job(list, c->id) ? strdup(c->id) : NULL;
    else if (list && json_array_size(list) == 1)
        id = strdup(qmp_link_text(json_array_get(list, 0), "id"));
    if (list && !id)
        run_fail(c->r, c->id ? "there is no job '%s'" : json_array_size(list) ? "there are several jobs: say which" : "there is no job", c->id);
    json_decref(list);
    return id;
}

static int one_verb(struct jobctl *c, const char *verb)
{
    char command[32];
    char *id = target(c);
    if (!id)
        return 1;
    snprintf(command, sizeof command, "job-%s", verb);
    json_t *value = qmp_link_do(&c->link, command, json_pack("{s:s}", "id", id));
    int code = value ? 0 : 1;
    json_decref(value);
    free(id);
    return code;
}

/* ---- wait ---- */

/* How a job ended that is not listed any more. NULL: the server does not know it. */
static json_t *end_of(struct jobctl *c, const char *id)
{
    json_t *msg = json_pack("{s:s,s:{s:s}}", "execute", "x-byre-query-job-end", "arguments", "id", id), *answer = msg ? qmp_link_exchange(&c->link, msg) : NULL;
    json_t *end = json_incref(json_object_get(answer, "return"));
    json_decref(msg);
    json_decref(answer);
    return end;
}
static int tell_end(struct jobctl *c, const char *id, const json_t *job)
{
    bool failed = json_object_get(c->failed, id) || json_is_false(json_object_get(job, "success")) || *qmp_link_text(job, "error");
    const char *error = qmp_link_text(job, "error");
    if (c->json) {
        json_t *o = json_pack("{s:s,s:b}", "id", id, "success", !failed);
        if (o && *error)
            (void)json_object_set_new(o, "error", json_string(error));
        (void)print_value(c->r, o, JSON_COMPACT);
        json_decref(o);
    } else if (failed) {
        run_fail(c->r, "job '%s' failed: %s", id, *error ? error : "it was cancelled, or its error is gone with it");
    }
    return failed;
}

static void show(const struct opts *o, struct progress_view *v, const json_t *job, bool end)
{
    struct byre_progress p = { qmp_link_number(job, "current-progress"), qmp_link_number(job, "total-progress") };
    if (!o->quiet)
        progress_show(v, &p, end, end);
}

/* seen: it was there a moment ago. */
static int tell_gone(struct jobctl *c, const char *id, bool seen)
{
    json_t *end = end_of(c, id);
    int code = end || seen ? tell_end(c, id, end) : run_fail(c->r, "there is no job '%s'", id);
    json_decref(end);
    return code;
}

static int wait_for(struct jobctl *c, const char *id, bool seen)
{
    const struct opts *o = c->r->opts;
    struct progress_opts po = { o->progress_on || (o->progress == PROGRESS_NONE && isatty(STDOUT_FILENO) && !c->json), o->progress, "bytes" };
    struct progress_view v;
    progress_begin(&v, c->r, &po);
    int code = -1;
    while (code < 0) {
        json_t *list = qmp_link_do(&c->link, "query-jobs", NULL), *job = list ? qmp_link_find_job(list, id) : NULL;
        bool concluded = job && strcmp(qmp_link_text(job, "status"), "concluded") == 0;
        if (job)
            show(o, &v, job, concluded);
        if (!list || !job || concluded)
            progress_close(&v);
        if (!list)
            code = 1;
        else if (!job || concluded)
            code = job ? tell_end(c, id, job) : tell_gone(c, id, seen);
        seen |= job != NULL;
        json_decref(list);
        if (code < 0)
            usleep(POLL_US);
    }
    return code;
}

static int wait_all(struct jobctl *c)
{
    if (c->id)
        return wait_for(c, c->id, false);
    size_t i;
    json_t *job, *list = qmp_link_do(&c->link, "query-jobs", NULL);
    int code = list ? 0 : 1;
    json_array_foreach(list, i, job)
        code |= wait_for(c, qmp_link_text(job, "id"), true);
    json_decref(list);
    return code;
}

static int act(struct jobctl *c, const char *what)
{
    static const char *const verbs[] = { "pause", "resume", "cancel", "complete", "finalize", "dismiss", NULL };
    if (strcmp(what, "list") == 0)
        return list_jobs(c);
    if (strcmp(what, "wait") == 0)
        return wait_all(c);
    for (const char *const *v = verbs; *v; v++)
        if (strcmp(what, *v) == 0)
            return one_verb(c, what);
    return run_usage(c->r, "'%s' is none of list, wait, pause, resume, cancel, complete, finalize, dismiss", what);
}

static int cmd_run(struct run *r)
{
    const struct opts *o = r->opts;
    struct jobctl c = { .r = r };
    if (r->argc < 2 || r->argc > 3)
        return run_usage(r, "the path of a control socket and what to do are needed");
    int form = run_output(r, o->output);
    if (form < 0)
        return 1;
    c.json = form;
    c.id = r->argc == 3 ? r->argv[2] : NULL;
    c.failed = json_object();
    int code = c.failed ? qmp_link_open(r, r->argv[0], &c.link) : run_fail(r, "no memory");
    c.link.on_event = on_event;
    c.link.arg = &c;
    if (!code)
        code = qmp_link_negotiate(&c.link);
    if (!code)
        code = act(&c, r->argv[1]);
    if (c.failed)
        qmp_link_close(&c.link);
    json_decref(c.failed);
    return code;
}

const struct cmd cmd_job = { "job", "PATH list|wait|pause|resume|cancel|complete|finalize|dismiss [ID]", "Follow and steer the jobs of a running server",
                             rows, sizeof(struct opts), cmd_run, .flags = CMD_NOT_PEER };
