/* SPDX-License-Identifier: MIT
 *
 * cmd_base.c: qmp_capabilities, query-version, query-commands, quit (FEATURES 8.009).
 *
 * Purpose      The protocol's own commands.
 * Owns         nothing
 * Invariants   none
 * Concurrency  home loop
 * Failure      as ctl_priv.h
 * Tests        ctl_test.c, tests/cli/serve_test.py
 */
#include "ctl/ctl_priv.h"

struct capabilities_args { json_t *enable; };
static const struct ctl_arg capabilities_rows[] = { { "enable", CTL_ANY, false, CTL_AT(struct capabilities_args, enable) }, CTL_ARGS_END };

static int run_capabilities(struct co *co, struct ctl_call *call)
{
    const struct capabilities_args *a = call->args;
    if (a->enable && !json_is_array(a->enable))
        return byre_fail(&call->err, BAD_ARGUMENT, "Invalid parameter type for 'enable', expected: array");
    if (a->enable && json_array_size(a->enable))
        return byre_fail(&call->err, NOT_SUPPORTED, "no capability can be enabled");
    call->client->negotiated = true;
    return 0;
}

static int run_query_version(struct co *co, struct ctl_call *call)
{
    const struct ctl_env *e = &call->c->env;
    call->ret = json_pack("{s:{s:i,s:i,s:i},s:s}", "qemu", "micro", e->micro, "minor", e->minor, "major", e->major, "package", e->package ? e->package : "");
    return call->ret ? 0 : byre_fail(&call->err, NOMEM, "no memory for a reply");
}

static int run_query_commands(struct co *co, struct ctl_call *call)
{
    call->ret = json_array();
    for (const struct ctl_command *const *c = ctl_commands; *c; c++)
        if (!call->ret || json_array_append_new(call->ret, json_pack("{s:s}", "name", (*c)->name)))
            return byre_fail(&call->err, NOMEM, "no memory for a reply");
    return 0;
}

static int run_quit(struct co *co, struct ctl_call *call)
{
    if (call->c->env.quit)
        call->c->env.quit(call->c->env.arg);
    return 0;
}

const struct ctl_command ctl_cmd_qmp_capabilities = { "qmp_capabilities", capabilities_rows, sizeof(struct capabilities_args), run_capabilities, true };
const struct ctl_command ctl_cmd_query_version = { "query-version", NULL, 0, run_query_version, false };
const struct ctl_command ctl_cmd_query_commands = { "query-commands", NULL, 0, run_query_commands, false };
const struct ctl_command ctl_cmd_quit = { "quit", NULL, 0, run_quit, false };
