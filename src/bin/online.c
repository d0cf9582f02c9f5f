/* SPDX-License-Identifier: MIT
 *
 * online.c: a job on a disk that a server has in use, from the client's side.
 *
 * Purpose      Finds the disk, starts a job on it, follows it to its end and dismisses it.
 * Owns         the connection; the job
 * Invariants   I1 a signal cancels the job before this program ends
 * Concurrency  main thread
 * Failure      message on standard error, exit code 1
 * Tests        tests/cli/scrub_test.py, tests/cli/compact_test.py
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bin/online.h"
#include "bin/qmp_link.h"

#define POLL_US 50000

/* The node that is meant, and what it is. Borrowed from *ret_list. NULL: told already. */
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
    if (!*ret_list || !name) {
        if (*ret_list)
            run_fail(r, "the server has no disk of its own: which of its nodes is meant?");
        return NULL;
    }
    json_decref(*ret_list);
    *ret_list = qmp_link_do(l, "query-named-block-nodes", json_pack("{s:b}", "flat", 1));
    json_array_foreach(*ret_list, i, dev)
        if (strcmp(qmp_link_text(dev, "node-name"), name) == 0)
            return dev;
    if (*ret_list)
        run_fail(r, "the server has no disk '%s' and no such node", name);
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

static int run_job(struct run *r, struct qmp_link *l, struct online *o, const char *node)
{
    char id[64];
    snprintf(id, sizeof id, "%s-%d", o->word, (int)getpid());
    json_t *args = json_pack("{s:s,s:s,s:b}", "node-name", node, "job-id", id, "auto-dismiss", 0);
    if (o->args && args)
        json_object_update(args, o->args);
    json_t *v = qmp_link_do(l, o->command, args);
    json_decref(v);
    if (!v)
        return 1;
    o->job = follow(r, l, id, &o->progress);
    int code = o->job ? 0 : 1;
    if (o->job && act(l, "job-dismiss", id))
        code = 1;
    return code;
}

int online_run(struct run *r, struct online *o)
{
    struct qmp_link l;
    json_t *list = NULL;
    int code = qmp_link_open(r, o->path, &l);
    if (!code)
        code = qmp_link_negotiate(&l);
    const json_t *node = code ? NULL : find_node(r, &l, o->node, &list);
    if (!code)
        code = node ? run_job(r, &l, o, qmp_link_text(node, "node-name")) : 1;
    if (!code) {
        o->filename = strdup(qmp_link_text(node, "file"));
        o->format = strdup(qmp_link_text(node, "drv"));
        if (!o->filename || !o->format)
            code = run_fail(r, "no memory");
    }
    json_decref(list);
    qmp_link_close(&l);
    return code;
}

void online_fini(struct online *o)
{
    json_decref(o->job);
    json_decref(o->args);
    free(o->filename);
    free(o->format);
}
