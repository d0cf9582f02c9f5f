/* SPDX-License-Identifier: MIT
 *
 * check_online.c: byre check --control: the check of a disk that a server has in use (FEATURES G.001).
 *
 * Purpose      Starts the job x-byre-scrub, follows it, and takes its result from query-jobs.
 * Owns         the connection; the job, which is dismissed in the end
 * Invariants   I1 a signal cancels the job before this program ends
 * Concurrency  main thread
 * Failure      message on standard error, exit code 1
 * Tests        tests/cli/scrub_test.py
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bin/check_online.h"
#include "bin/qmp_link.h"

#define POLL_US 50000

/* The node to be checked, and what it is. Borrowed from *ret_list. NULL: told already. */
static const json_t *find_node(struct run *r, struct qmp_link *l, const char *name, json_t **ret_list)
{
    size_t i;
    json_t *dev;
    *ret_list = qmp_link_do(l, "query-block", NULL);
    json_array_foreach(*ret_list, i, dev) {
        json_t *in = json_object_get(dev, "inserted");
        if (in && (!name || strcmp(qmp_link_text(in, "node-name"), name) == 0 || strcmp(qmp_link_text(dev, "device"), name) == 0))
            return in;
    }
    if (*ret_list)
        run_fail(r, name ? "the server has no disk '%s'" : "the server has no disk", name);
    return NULL;
}

static int act(struct qmp_link *l, const char *command, const char *id)
{
    json_t *v = qmp_link_do(l, command, json_pack("{s:s}", "id", id));
    json_decref(v);
    return v ? 0 : 1;
}

/* Until the job has concluded: its entry, owned. NULL: told already. */
static json_t *follow(struct run *r, struct qmp_link *l, const char *id, const struct progress_opts *po)
{
    struct progress_view v;
    bool cancelled = false;
    progress_begin(&v, r, po);
    progress_catch_signals();
    for (;;) {
        json_t *list = qmp_link_do(l, "query-jobs", NULL), *job = list ? json_incref(qmp_link_find_job(list, id)) : NULL;
        json_decref(list);
        bool over = job && strcmp(qmp_link_text(job, "status"), "concluded") == 0;
        if (job) {
            struct byre_progress p = { qmp_link_number(job, "current-progress"), qmp_link_number(job, "total-progress") };
            progress_show(&v, &p, over, over);
        }
        if (!job || over) {
            progress_close(&v);
            if (!job && list)
                run_fail(r, "the job '%s' is gone", id);
            return job;
        }
        if (progress_signal() && !cancelled) {           /* I1 */
            cancelled = true;
            if (act(l, "job-cancel", id)) {
                json_decref(job);
                return NULL;
            }
        }
        json_decref(job);
        usleep(POLL_US);
    }
}

static void tell_findings(const json_t *check)
{
    size_t i;
    json_t *f, *list = json_object_get(check, "findings");
    json_array_foreach(list, i, f)
        fprintf(stderr, "%s%s\n", json_is_true(json_object_get(f, "fixed")) ? "Repaired: " : "", qmp_link_text(f, "text"));
    if (qmp_link_number(check, "findings-total") > json_array_size(list))
        fprintf(stderr, "%llu more findings are counted only\n", (unsigned long long)(qmp_link_number(check, "findings-total") - json_array_size(list)));
}

static int take_result(struct run *r, const json_t *job, struct byre_check_result *ret)
{
    const json_t *c = json_object_get(job, "x-byre-check");
    const char *error = qmp_link_text(job, "error");
    bool found = qmp_link_number(c, "corruptions") || qmp_link_number(c, "check-errors");
    if (!c || (*error && !found))
        return run_fail(r, "Check failed: %s", *error ? error : "the server gives no result");
    if (!qmp_link_number(c, "total-clusters"))
        return run_fail(r, "Check failed: the job was cancelled");
    tell_findings(c);
    *ret = byre_check_result_init();
    ret->corruptions = qmp_link_number(c, "corruptions");
    ret->leaks = qmp_link_number(c, "leaks");
    ret->check_errors = qmp_link_number(c, "check-errors");
    ret->corruptions_fixed = qmp_link_number(c, "corruptions-fixed");
    ret->leaks_fixed = qmp_link_number(c, "leaks-fixed");
    ret->has_stats = 1;
    ret->total_clusters = qmp_link_number(c, "total-clusters");
    ret->allocated_clusters = qmp_link_number(c, "allocated-clusters");
    ret->fragmented_clusters = qmp_link_number(c, "fragmented-clusters");
    ret->compressed_clusters = qmp_link_number(c, "compressed-clusters");
    ret->image_end_offset = qmp_link_number(c, "image-end-offset");
    return 0;
}

static int run_job(struct run *r, struct qmp_link *l, const struct check_online *c, const char *node, struct byre_check_result *ret)
{
    char id[64];
    snprintf(id, sizeof id, "check-%d", (int)getpid());
    json_t *v = qmp_link_do(l, "x-byre-scrub", json_pack("{s:s,s:s,s:s,s:b}", "node-name", node, "job-id", id, "fix", c->fix_leaks ? "leaks" : "none", "auto-dismiss", 0));
    json_decref(v);
    if (!v)
        return 1;
    json_t *job = follow(r, l, id, &c->progress);
    int code = job ? take_result(r, job, ret) : 1;
    if (job && act(l, "job-dismiss", id))
        code = 1;
    json_decref(job);
    return code;
}

int check_online(struct run *r, const struct check_online *c, struct byre_check_result *ret, char **ret_filename, char **ret_format)
{
    struct qmp_link l;
    json_t *list = NULL;
    int code = qmp_link_open(r, c->path, &l);
    if (!code)
        code = qmp_link_negotiate(&l);
    const json_t *node = code ? NULL : find_node(r, &l, c->node, &list);
    if (!code)
        code = node ? run_job(r, &l, c, qmp_link_text(node, "node-name"), ret) : 1;
    if (!code) {
        *ret_filename = strdup(qmp_link_text(node, "file"));
        *ret_format = strdup(qmp_link_text(node, "drv"));
        if (!*ret_filename || !*ret_format)
            code = run_fail(r, "no memory");
    }
    json_decref(list);
    qmp_link_close(&l);
    return code;
}
