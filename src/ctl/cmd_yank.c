/* SPDX-License-Identifier: MIT
 *
 * cmd_yank.c: yank, query-yank (FEATURES 11.038, G.051).
 *
 * Purpose      Requests that wait for a server which stands still end at once, in the words of the peer's system emulator.
 * Owns         nothing
 * Invariants   I1 all instances are found before the first one is cut off: a wrong name changes nothing
 *              I2 nothing here suspends: both may be executed out of band, while a command waits for the very server
 * Concurrency  home loop
 * Failure      as ctl_priv.h; DeviceNotFound for names of nothing
 * Tests        tests/daemon/yank_test.py
 */
#include <stdio.h>
#include <string.h>

#include "ctl/ctl_priv.h"
#include "graph/cbw.h"
#include "graph/runtime.h"
#include "stor/nbd.h"

/* Is what lies below n, the node itself, on a server? Whoever has a file as a node of its own leaves it to that. */
static bool is_remote(struct graph_node *n)
{
    bool own = !graph_is_filter(n) && !graph_file(n) && !graph_is_snapshot_access(n);
    return own && graph_store(n) && stor_is_nbd(graph_store(n));
}

/* The name of the node of the server, as query-named-block-nodes has it. */
static void remote_name(struct graph_node *n, char *text, size_t max)
{
    if (graph_is_bare_file(n))
        snprintf(text, max, "%s", graph_node_name(n));
    else if (graph_file_node_name(n))
        snprintf(text, max, "%s", graph_file_node_name(n));
    else
        snprintf(text, max, "%s-file", graph_node_name(n));
}

static struct graph_node *find(struct ctl_call *call, const char *name)
{
    char text[GRAPH_NAME_MAX + 8];
    for (struct graph_node *n = graph_next(call->c->env.graph, NULL); n; n = graph_next(call->c->env.graph, n)) {
        if (!is_remote(n))
            continue;
        remote_name(n, text, sizeof text);
        if (!strcmp(text, name) || !strcmp(graph_node_name(n), name))
            return n;
    }
    return NULL;
}

static const char *const type_words[] = { "block-node", NULL };
static const struct ctl_shape type_shape = { .name = "YankInstanceType", .words = type_words };
struct instance { int type; const char *node_name; };
static const struct ctl_arg node_rows[] = { { "node-name", CTL_STR, true, CTL_AT(struct instance, node_name) }, CTL_ARGS_END };
static const struct ctl_arg instance_rows[] = { { "type", CTL_ENUM, true, CTL_AT(struct instance, type), .of = &type_shape }, CTL_ARGS_END };
static const struct ctl_case instance_cases[] = { { "block-node", node_rows }, { NULL, NULL } };
static const struct ctl_shape instance_shape = { .name = "YankInstance", .rows = instance_rows, .bytes = sizeof(struct instance), .tag = "type", .cases = instance_cases };

struct yank_args { struct ctl_list instances; };
static const struct ctl_arg yank_rows[] = {
    { "instances", CTL_STRUCT, true, CTL_AT(struct yank_args, instances), .of = &instance_shape, .list = true, .doc = "As query-yank lists them." },
    CTL_ARGS_END
};

static int run_yank(struct co *co, struct ctl_call *call)
{
    const struct yank_args *a = call->args;
    const struct instance *list = a->instances.items;
    ASSERT(co);
    for (size_t i = 0; i < a->instances.count; i++)
        if (!find(call, list[i].node_name)) {
            call->error_class = "DeviceNotFound";
            return byre_fail(&call->err, NOT_FOUND, "there is no node '%s' on a server", list[i].node_name);
        }
    for (size_t i = 0; i < a->instances.count; i++)
        graph_abandon(find(call, list[i].node_name));      /* I1 */
    return 0;
}

static int run_query(struct co *co, struct ctl_call *call)
{
    char text[GRAPH_NAME_MAX + 8];
    ASSERT(co);
    call->ret = json_array();
    for (struct graph_node *n = graph_next(call->c->env.graph, NULL); call->ret && n; n = graph_next(call->c->env.graph, n)) {
        if (!is_remote(n))
            continue;
        remote_name(n, text, sizeof text);
        if (json_array_append_new(call->ret, json_pack("{s:s,s:s}", "type", "block-node", "node-name", text)))
            return ctl_no_memory(call);
    }
    return call->ret ? 0 : ctl_no_memory(call);
}

static const struct ctl_arg ret_instances = { "instances", CTL_STRUCT, true, CTL_AT_NONE, .of = &instance_shape, .list = true };

const struct ctl_command ctl_cmd_query_yank = { "query-yank", NULL, 0, run_query, .ret = &ret_instances, .oob = true,
    .doc = "Lists what may wait for a server, and can be given up by yank." };
const struct ctl_command ctl_cmd_yank = { "yank", yank_rows, sizeof(struct yank_args), run_yank, .oob = true,
    .doc = "Gives up the connections to these servers: requests that wait for an answer fail at once. Connections come back as reconnect-delay says." };
