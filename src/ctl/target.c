/* SPDX-License-Identifier: MIT
 *
 * target.c: which node a command means.
 *
 * Purpose      Names of devices and of nodes, in the ways in which commands take them.
 * Owns         nothing
 * Invariants   none
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

struct graph_node *ctl_named(struct ctl_call *call, const char *name)
{
    struct graph_node *n = device_node(call, name);
    if (!n)
        n = graph_find(call->c->env.graph, name);
    if (!n)
        (void)byre_fail(&call->err, NOT_FOUND, "Cannot find device='%s' nor node-name='%s'", name, name);
    return n;
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
    return 0;
}
