/* SPDX-License-Identifier: MIT
 *
 * pr.c: persistent reservations of the device that a node's data lies on.
 *
 * Purpose     Which file is meant by a node, and which manager; stor/pr.c does the rest.
 * Owns        Nothing.
 * Invariants  None. The node's image and store may become others while the helper is asked: nothing of them is looked at then.
 * Order       None: a reservation is no data, and says nothing about what is durable.
 * Concurrency Home loop.
 * Failure     Names the node.
 * Tests       tests/daemon/pr_test.py
 */
#include "fmt/secret.h"
#include "graph/graph_priv.h"
#include "graph/pr.h"
#include "graph/throttle.h"
#include "tls/objects.h"

struct pr_set *graph_prs(const struct graph *g) { return g->prs; }

static bool is_other_object(const struct graph *g, const char *id)
{
    struct secret *s = g->secrets ? secret_get(g->secrets, id) : NULL;
    bool found = s != NULL;
    secret_put(s);
    return found || (g->tls && tls_set_has(g->tls, id)) || throttle_group_find((struct graph *)(uintptr_t)g, id);
}

int pr_check(const struct graph *g, const char *id, struct byre_err *err)
{
    if (pr_find(g->prs, id))
        return 0;
    return is_other_object(g, id) ? byre_fail(err, BAD_OPTION, "Object with id '%s' is not a persistent reservation manager", id)
                                  : byre_fail(err, NOT_FOUND, "No persistent reservation manager with id '%s'", id);
}

static struct stor *find_store(struct graph_node *n)
{
    for (n = graph_skip_filters(n); n; n = graph_skip_filters(n->file))
        if (n->im->store && stor_pr_manager(n->im->store))
            return n->im->store;
    return NULL;
}

int graph_pr_run(struct co *co, struct graph_node *n, const struct pr_call *call, struct pr_answer *ret, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    struct byre_err why = { 0 };
    struct stor *s = find_store(n);
    if (!s)
        return byre_fail(err, NOT_SUPPORTED, "node '%s' has no persistent reservation manager: neither it nor the file below it was opened with the option 'pr-manager'", n->name);
    int r = stor_pr_run(co, s, call, ret, &why);
    return r ? byre_fail_code(err, IO, r, "node '%s': %s", n->name, why.text) : 0;
}
