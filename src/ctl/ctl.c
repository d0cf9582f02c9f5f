/* SPDX-License-Identifier: MIT
 *
 * ctl.c: the server of control.
 *
 * Purpose      Sends events to all clients, executes commands of the command line, ends in order.
 * Owns         struct ctl: lists of listeners and clients
 * Invariants   I1 what it watches (jobs, exports, the graph) tells it nothing after ctl_stop has begun
 * Concurrency  home loop
 * Failure      byre_err
 * Tests        ctl_test.c, tests/cli/serve_test.py
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ctl/chardev.h"
#include "ctl/ctl_priv.h"
#include "ctl/guard.h"
#include "export/exports.h"
#include "graph/pr.h"
#include "graph/runtime.h"
#include "graph/stats.h"
#include "job/job.h"

/* ---- events ---- */
void ctl_send_event(struct ctl *c, const char *name, json_t *data)
{
    struct timespec now;
    struct qmp_text t;
    clock_gettime(CLOCK_REALTIME, &now);
    struct qmp_event e = { name, data, now.tv_sec, (int32_t)(now.tv_nsec / 1000) };
    LIST_FOR(at, &c->clients) {
        struct ctl_client *cl = CONTAINER_OF(at, struct ctl_client, link);
        if (!cl->negotiated || !data || qmp_make_event(&e, cl->pretty, &t))
            continue;                    /* memory ran out: what has happened can be asked for */
        client_put(cl, &t);
        free(t.text);
    }
    json_decref(data);
}

void ctl_send_shutdown(struct ctl *c, const char *reason)
{
    ctl_send_event(c, "SHUTDOWN", json_pack("{s:b,s:s}", "guest", 0, "reason", reason));
}

/* ---- the command line ---- */
int ctl_execute(struct co *co, struct ctl *c, const struct ctl_request *rq, json_t **ret_value, struct byre_err *err)
{
    ASSERT_LOOP(c->home);
    struct ctl_call call = { .c = c, .arguments = rq->arguments };
    const struct ctl_command *cmd = ctl_find_command(rq->command);
    int r;
    if (cmd)
        r = ctl_run(co, &call, cmd, rq->words);
    else
        r = byre_fail(&call.err, NOT_FOUND, "The command %s has not been found", rq->command);
    ctl_call_end(co, &call);
    if (r)
        *err = call.err;
    else if (ret_value)
        *ret_value = json_incref(call.ret);
    json_decref(call.ret);
    return r;
}

/* ---- life ---- */
/* c NULL: no more. */
static void watch_graph(struct graph *g, struct ctl *c)
{
    graph_watch_corruption(g, c ? ctl_image_corrupted : NULL, c);
    graph_watch_io_errors(g, c ? ctl_io_error : NULL, c);
    graph_watch_threshold(g, c ? ctl_write_threshold : NULL, c);
    if (graph_prs(g))
        pr_set_watch(graph_prs(g), c ? ctl_pr_changed : NULL, c);
}

int ctl_new(struct rt_loop *home, const struct ctl_env *env, struct ctl **ret_c, struct byre_err *err)
{
    struct ctl *c = calloc(1, sizeof *c);
    if (!c)
        return byre_fail(err, NOMEM, "no memory for a control socket");
    c->home = home;
    c->env = *env;
    list_init(&c->listeners);
    list_init(&c->clients);
    list_init(&c->chardevs);
    list_init(&c->left);
    if (env->jobs) {
        env->jobs->status_changed = ctl_job_changed;
        env->jobs->io_error = ctl_job_io_error;
        env->jobs->arg = c;
    }
    if (env->graph)
        watch_graph(env->graph, c);
    if (env->exports)
        exports_watch(env->exports, ctl_export_gone, c);
    *ret_c = c;
    return 0;
}

static bool all_silent(const struct ctl *c)
{
    LIST_FOR(at, &c->clients)
        if (!client_is_silent(CONTAINER_OF(at, struct ctl_client, link)))
            return false;
    return true;
}

static void close_clients(struct ctl *c, bool now)
{
    LIST_FOR(at, &c->clients)
        client_close(CONTAINER_OF(at, struct ctl_client, link), now);
}

void ctl_stop(struct co *co, struct ctl *c)
{
    ASSERT_LOOP(c->home);
    if (c->stopping)
        return;
    c->stopping = true;
    if (c->env.jobs) {
        c->env.jobs->status_changed = NULL;
        c->env.jobs->io_error = NULL;
    }
    if (c->env.graph)
        watch_graph(c->env.graph, NULL);
    if (c->env.exports)
        exports_watch(c->env.exports, NULL, NULL);
    listeners_quiet(co, c);
    close_clients(c, false);
    for (uint64_t end = rt_now(c->home) + CTL_LAST_WORDS_NS; !all_silent(c) && rt_now(c->home) < end;)
        if (co_sleep(co, CTL_LAST_WORDS_NS / 200))
            break;
    close_clients(c, true);
    co_group_wait(co, &c->alive);
    listeners_free(co, c);
    chardevs_free(co, c);
}

void ctl_free(struct ctl *c)
{
    if (!c)
        return;
    ASSERT(list_empty(&c->clients) && list_empty(&c->listeners) && list_empty(&c->chardevs));
    ctl_guard_free(c);
    free(c);
}
