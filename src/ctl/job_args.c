/* SPDX-License-Identifier: MIT
 *
 * job_args.c: what the commands that begin jobs have in common.
 *
 * Purpose      Their words, and what all of them refuse.
 * Owns         constant tables
 * Invariants   none
 * Concurrency  home loop
 * Failure      as ctl_priv.h
 * Tests        tests/cli/job_test.py, tests/cli/mirror_test.py, tests/daemon/backup_test.py
 */
#include "ctl/job_args.h"

static const char *const on_error_words[] = { "report", "ignore", "enospc", "stop", "auto", NULL };
const struct ctl_shape ctl_on_error_shape = { .name = "BlockdevOnError", .words = on_error_words };

enum job_on_error ctl_on_error(int word)
{
    static const enum job_on_error words[] = { JOB_ON_ERROR_REPORT, JOB_ON_ERROR_IGNORE, JOB_ON_ERROR_ENOSPC, JOB_ON_ERROR_STOP, JOB_ON_ERROR_ENOSPC };
    return words[word];
}

struct job_opts ctl_job_opts(const struct ctl_job_args *a, const char *device)
{
    return (struct job_opts){ .id = a->id ? a->id : device, .speed = a->speed, .keep_pending = a->has_auto_finalize && !a->auto_finalize,
                              .keep_concluded = a->has_auto_dismiss && !a->auto_dismiss };
}

int ctl_job_may(struct ctl_call *call, const struct ctl_job_args *a)
{
    if (!call->c->env.jobs)
        return byre_fail(&call->err, NOT_SUPPORTED, "there are no jobs here");
    if (a->filter_node_name && graph_find(call->c->env.graph, a->filter_node_name))
        return byre_fail(&call->err, EXISTS, "there is a node '%s' already", a->filter_node_name);
    return 0;
}
