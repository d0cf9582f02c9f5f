/* SPDX-License-Identifier: MIT
 *
 * cmd_export.c: query-block-exports (FEATURES 8.019).
 *
 * Purpose      What is offered to whom.
 * Owns         nothing
 * Invariants   none
 * Concurrency  home loop
 * Failure      as ctl_priv.h
 * Tests        ctl_test.c, tests/cli/serve_test.py
 */
#include "ctl/ctl_priv.h"
#include "graph/runtime.h"

static int run_query_block_exports(struct co *co, struct ctl_call *call)
{
    const struct ctl_env *e = &call->c->env;
    call->ret = json_array();
    for (size_t i = 0; i < e->export_count; i++) {
        const struct ctl_export *x = &e->exports[i];
        json_t *o = json_pack("{s:s,s:b,s:s,s:s}", "node-name", graph_node_name(graph_attached(x->node)), "shutting-down", x->shutting_down, "type", x->type, "id", x->id);
        if (!call->ret || json_array_append_new(call->ret, o))
            return byre_fail(&call->err, NOMEM, "no memory for a reply");
    }
    return call->ret ? 0 : byre_fail(&call->err, NOMEM, "no memory for a reply");
}

const struct ctl_command ctl_cmd_query_block_exports = { "query-block-exports", NULL, 0, run_query_block_exports,
    .ret = &ctl_ret_any, .doc = "Lists what is offered to clients." };
