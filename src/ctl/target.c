/* SPDX-License-Identifier: MIT
 *
 * target.c: which node a command means.
 *
 * Purpose      Names of devices and of nodes, in the ways in which commands take them.
 * Owns         a reference of each node that a call has named, until it ends
 * Invariants   I1 a command may suspend: what it has named is not closed before it has ended
 * Concurrency  home loop
 * Failure      DeviceNotFound for a device that there is not; GenericError for a node
 * Tests        ctl_test.c, tests/cli/serve_test.py
 */
#include <string.h>

#include "ctl/ctl_priv.h"
#include "graph/runtime.h"

static struct graph_node *device_node(const struct ctl_call *call, const char *device)
{
    const struct ctl_env *e = &call->c->env;
    for (size_t i = 0; i < e->device_count; i++)
        if (strcmp(e->devices[i].name, device) == 0)
            return graph_skip_implicit(graph_attached(e->devices[i].node));
    return NULL;
}

struct ctl_kept { struct ctl_kept *next; struct graph_node *node; };

int ctl_keep(struct ctl_call *call, struct graph_node *n)
{
    struct ctl_kept *k = n ? ctl_arena_get(&call->arena, sizeof *k) : NULL;
    if (!n)
        return 0;
    if (!k)
        return byre_fail(&call->err, NOMEM, "no memory for a command");
    *k = (struct ctl_kept){ call->kept, n };
    call->kept = k;
    graph_ref(n);                        /* I1 */
    return 0;
}

void ctl_let_nodes(struct co *co, struct ctl_call *call)
{
    for (const struct ctl_kept *k = call->kept; k; k = k->next)
        (void)graph_close(co, k->node);  /* whoever took it away meanwhile was told what there was to tell */
    call->kept = NULL;
}

void ctl_call_end(struct co *co, struct ctl_call *call)
{
    ctl_let_nodes(co, call);
    ctl_arena_free(&call->arena);
}

static struct graph_node *kept(struct ctl_call *call, struct graph_node *n) { return ctl_keep(call, n) ? NULL : n; }

struct graph_node *ctl_node(struct ctl_call *call, const char *name)
{
    struct graph_node *n = graph_find(call->c->env.graph, name);
    if (!n)
        (void)byre_fail(&call->err, NOT_FOUND, "Cannot find device='' nor node-name='%s'", name);
    return kept(call, n);
}

struct graph_node *ctl_named(struct ctl_call *call, const char *name)
{
    struct graph_node *n = device_node(call, name);
    if (!n)
        n = graph_find(call->c->env.graph, name);
    if (!n)
        (void)byre_fail(&call->err, NOT_FOUND, "Cannot find device='%s' nor node-name='%s'", name, name);
    return kept(call, n);
}

int ctl_with_edges_held(struct co *co, struct ctl_call *call, int (*run)(struct co *co, struct ctl_call *call))
{
    struct graph *g = call->c->env.graph;
    graph_edges_hold(co, g);
    int r = run(co, call);
    graph_edges_let(co, g);
    return r;
}

int ctl_target(struct ctl_call *call, const char *device, const char *node_name, struct graph_node **ret_n)
{
    if (!device == !node_name)
        return byre_fail(&call->err, BAD_ARGUMENT, "one of 'device' and 'node-name' must be given, and not both");
    struct graph_node *n = node_name ? graph_find(call->c->env.graph, node_name) : device_node(call, device);
    if (!n) {
        call->error_class = device ? "DeviceNotFound" : NULL;
        return byre_fail(&call->err, NOT_FOUND, "there is no %s '%s'", device ? "device" : "node", device ? device : node_name);
    }
    *ret_n = n;
    return ctl_keep(call, n);
}
