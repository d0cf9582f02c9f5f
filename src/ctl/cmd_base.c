/* SPDX-License-Identifier: MIT
 *
 * cmd_base.c: qmp_capabilities, query-version, query-commands, query-qmp-schema, quit (FEATURES 8.009).
 *
 * Purpose      The protocol's own commands.
 * Owns         nothing
 * Invariants   none
 * Concurrency  home loop
 * Failure      as ctl_priv.h
 * Tests        ctl_test.c, tests/cli/serve_test.py
 */
#include "ctl/ctl_priv.h"

static const char *const capability_words[] = { "oob", NULL };
static const struct ctl_shape capability = { .name = "QMPCapability", .words = capability_words };
struct capabilities_args { struct ctl_list enable; };
static const struct ctl_arg capabilities_rows[] = {
    { "enable", CTL_ENUM, false, CTL_AT(struct capabilities_args, enable), .list = true, .of = &capability },
    CTL_ARGS_END
};

static int run_capabilities(struct co *co, struct ctl_call *call)
{
    const struct capabilities_args *a = call->args;
    if (!call->client)
        return byre_fail(&call->err, NOT_SUPPORTED, "there is no connection to negotiate for");
    call->client->oob = a->enable.count;     /* the only one there is */
    call->client->negotiated = true;
    return 0;
}

static int run_query_version(struct co *co, struct ctl_call *call)
{
    const struct ctl_env *e = &call->c->env;
    call->ret = json_pack("{s:{s:i,s:i,s:i},s:s}", "qemu", "micro", e->micro, "minor", e->minor, "major", e->major, "package", e->package ? e->package : "");
    return call->ret ? 0 : ctl_no_memory(call);
}

static int run_query_commands(struct co *co, struct ctl_call *call)
{
    call->ret = json_array();
    for (const struct ctl_command *const *c = ctl_commands; *c; c++)
        if (!call->ret || json_array_append_new(call->ret, json_pack("{s:s}", "name", (*c)->name)))
            return ctl_no_memory(call);
    return 0;
}

static int run_query_qmp_schema(struct co *co, struct ctl_call *call)
{
    call->ret = ctl_schema_json();
    return call->ret ? 0 : ctl_no_memory(call);
}

static int run_quit(struct co *co, struct ctl_call *call)
{
    if (call->c->env.quit)
        call->c->env.quit(call->c->env.arg);
    return 0;
}

/* ---- rows of answers ---- */
const struct ctl_arg ctl_ret_any = { "value", CTL_ANY, true, CTL_AT_NONE };

static const struct ctl_arg name_rows[] = { { "name", CTL_STR, true, CTL_AT_NONE }, CTL_ARGS_END };
static const struct ctl_shape name_shape = { .name = "CommandInfo", .rows = name_rows };
static const struct ctl_arg ret_names = { "commands", CTL_STRUCT, true, CTL_AT_NONE, .of = &name_shape, .list = true };
static const struct ctl_arg triple_rows[] = {
    { "major", CTL_INT, true, CTL_AT_NONE }, { "minor", CTL_INT, true, CTL_AT_NONE }, { "micro", CTL_INT, true, CTL_AT_NONE }, CTL_ARGS_END
};
static const struct ctl_shape triple = { .name = "VersionTriple", .rows = triple_rows };
static const struct ctl_arg version_rows[] = { { "qemu", CTL_STRUCT, true, CTL_AT_NONE, .of = &triple }, { "package", CTL_STR, true, CTL_AT_NONE }, CTL_ARGS_END };
static const struct ctl_shape version = { .name = "VersionInfo", .rows = version_rows };
static const struct ctl_arg ret_version = { "version", CTL_STRUCT, true, CTL_AT_NONE, .of = &version };

const struct ctl_command ctl_cmd_qmp_capabilities = { "qmp_capabilities", capabilities_rows, sizeof(struct capabilities_args), run_capabilities, true,
    .doc = "Ends the negotiation that a connection begins with. Before it no other command runs and no event is sent." };
const struct ctl_command ctl_cmd_query_version = { "query-version", NULL, 0, run_query_version, .ret = &ret_version, .oob = true, .doc = "Tells the version of the program." };
const struct ctl_command ctl_cmd_query_commands = { "query-commands", NULL, 0, run_query_commands, .ret = &ret_names, .doc = "Lists the commands." };
const struct ctl_command ctl_cmd_query_qmp_schema = { "query-qmp-schema", NULL, 0, run_query_qmp_schema, .ret = &ctl_ret_any,
    .doc = "Describes commands, events and their members in a form for programs." };
const struct ctl_command ctl_cmd_quit = { "quit", NULL, 0, run_quit, .doc = "Ends the server as a signal does: requests are answered, images closed." };
