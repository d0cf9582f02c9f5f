/* SPDX-License-Identifier: MIT
 *
 * amend.c: options of an image that is open are changed.
 *
 * Purpose      fmt_ops.amend as a job.
 * Owns         struct amend, until the job is forgotten
 * Invariants   I1 every option is known and its value acceptable before anything changes
 * Order        the format's; what was changed is durable when the job ends well
 * Concurrency  home loop
 * Failure      told when the job has concluded; names the image, the option and the value
 * Tests        tests/daemon/blockdev_create_test.py
 */
#include <stdlib.h>
#include <string.h>

#include "graph/live.h"
#include "job/create.h"
#include "job/create_opts.h"

struct amend {
    struct graph_node *node;
    struct graph_user use;               /* of node, with a reference, until the job has ended */
    json_t *options;
    bool force;
    const struct opt_row *rows;
    struct fmt_create_opts fo;
    uint64_t seen;
};

static bool is_given(void *arg, const char *option)
{
    struct amend *a = arg;
    return opt_find(a->rows, option) && opt_seen(a->rows, a->seen, option);
}

static int change(struct co *co, struct amend *a, struct graph *g, struct byre_err *err)
{
    static const char *const skip[] = { "driver", "format", NULL };
    struct fmt_amend_opts fa = { .o = &a->fo, .given = is_given, .arg = a, .force = a->force };
    a->fo.secrets = graph_secrets(g);
    int r = create_opts_take(a->options, skip, a->rows, &a->fo, &a->seen, err);
    if (!r)
        r = graph_amend(co, a->node, &fa, err);
    if (r)
        return r;
    r = graph_flush(co, a->node);
    return r ? byre_fail_code(err, IO, r, "%s: what was changed could not be made durable: %s", graph_filename(a->node), strerror(-r)) : 0;
}

static int amend_run(struct co *co, struct job *job, struct byre_err *err)
{
    struct amend *a = job->opaque;
    job_progress(job, 0, 1);
    int r = change(co, a, graph_of(a->node), err);
    job_progress(job, 1, 1);
    return r;
}

static void leave(struct co *co, struct amend *a)
{
    graph_user_remove(&a->use);
    (void)graph_close(co, a->node);      /* it was flushed when that was promised */
}

static int amend_commit(struct co *co, struct job *job, struct byre_err *err)
{
    leave(co, job->opaque);
    return 0;
}

static void amend_abort(struct co *co, struct job *job) { leave(co, job->opaque); }

static void amend_fini(struct job *job)
{
    struct amend *a = job->opaque;
    opt_fini(a->rows, &a->fo);
    json_decref(a->options);
    free(a);
}

const struct job_kind job_amend_kind = { .type = "amend", .run = amend_run, .commit = amend_commit, .abort = amend_abort, .fini = amend_fini };

static int check(const struct job_amend_opts *o, struct byre_err *err)
{
    const char *driver = json_string_value(json_object_get(o->options, "driver")), *have = graph_format(o->node)->name;
    if (!driver || strcmp(driver, have))
        return byre_fail(err, BAD_ARGUMENT, "node '%s' is of the driver '%s', which cannot be changed to '%s'", graph_node_name(o->node), have, driver ? driver : "");
    if (!graph_format(o->node)->amend || !fmt_amend_rows(have))
        return byre_fail(err, NOT_SUPPORTED, "node '%s': options of %s images cannot be changed", graph_node_name(o->node), have);
    return 0;
}

int job_amend_start(struct jobs *js, const struct job_amend_opts *o, struct job **ret_job, struct byre_err *err)
{
    int r = check(o, err);
    if (r)
        return r;
    struct amend *a = calloc(1, sizeof *a);
    json_t *options = json_deep_copy(o->options);
    if (!a || !options) {
        free(a);
        json_decref(options);
        return byre_fail(err, NOMEM, "no memory for a job");
    }
    *a = (struct amend){ .node = o->node, .options = options, .force = o->force, .rows = fmt_amend_rows(graph_format(o->node)->name),
        .use = { .who = job_amend_kind.type, .perm = STOR_PERM_READ | STOR_PERM_WRITE_UNCHANGED, .shared = STOR_PERM_ALL } };
    struct job_opts jo = o->job;
    jo.opaque = a;
    jo.nodes[0] = o->node;
    jo.keep_concluded = true;
    r = graph_user_add(a->node, &a->use, err);
    if (!r)
        r = job_start(js, &job_amend_kind, &jo, ret_job, err);
    if (r) {
        graph_user_remove(&a->use);
        json_decref(options);
        free(a);
        return r;
    }
    graph_ref(a->node);                  /* the job's coroutine has not run yet */
    return 0;
}
