/* SPDX-License-Identifier: MIT
 *
 * perm.c: who uses a node, for what, and what it lets others do (FEATURES 11.002).
 *
 * Purpose     Refuses a use that conflicts with another use of the same node, naming both.
 * Owns        The list node->users; the entries belong to the users.
 * Invariants  I1  For any two users a, b of a node: a->perm is a subset of b->shared.
 *             I2  An image may come to lie over a node (no filter) that others write while nobody uses it. Nobody begins to until they have gone, or
 *                 until a backup keeps for it what it shows (cbw.h B6). Who used it meanwhile stays when that backup ends.
 * Order       None.
 * Concurrency Home loop.
 * Failure     A refused use changes nothing.
 * Tests       graph_test.c
 */
#include <stdio.h>

#include "graph/active.h"
#include "graph/filter.h"
#include "graph/mode.h"

static const char *perm_name(unsigned perm)
{
    if (perm & STOR_PERM_WRITE)
        return "write";
    if (perm & STOR_PERM_RESIZE)
        return "resize";
    if (perm & STOR_PERM_WRITE_UNCHANGED)
        return "rewrite the same data";
    return "read";
}

int perm_check(struct graph_node *n, const struct graph_user *self, unsigned perm, const char *who, struct byre_err *err)
{
    for (const struct graph_user *u = n->users; u; u = u->next) {
        unsigned bad = perm & ~u->shared;
        if (u != self && bad)
            return byre_fail(err, PERMISSION, "node '%s': '%s' would %s, which '%s' does not allow", n->name, who, perm_name(bad), u->who);
    }
    return 0;
}

/* I2 */
static int check_unwritten_below(const struct graph_node *n, const struct graph_user *u, struct byre_err *err)
{
    for (const struct graph_user *o = n->lenient && n->backing && u->perm ? n->backing->users : NULL; o; o = o->next)
        if (o != &n->backing_use && o->perm & STOR_PERM_WRITE)
            return byre_fail(err, PERMISSION, "node '%s': '%s' would use it while '%s' writes node '%s', over which it lies, and no backup into it keeps what was there",
                             n->name, u->who, o->who, n->backing->name);
    return 0;
}

/* I1 at n and, since a filter hands on what it is asked, at what it filters. Skips u itself and `leaving` (may be NULL). */
int users_fit(struct graph_node *n, const struct graph_user *u, const struct graph_user *leaving, struct byre_err *err)
{
    const struct graph_user *self = u;
    unsigned shared = u->shared;
    for (struct graph_node *m = n; m; self = &m->backing_use, shared &= m->flt ? ~(m->flt->deny | m->deny_perm) : shared, m = m->flt ? m->backing : NULL)
        for (const struct graph_user *o = m->users; o; o = o->next) {
            unsigned bad = u->perm & ~o->shared, denied = o->perm & ~shared;
            if (o == self || o == u || o == leaving || o->moving || !(bad | denied))
                continue;
            if (bad)
                return byre_fail(err, PERMISSION, "node '%s': '%s' would %s, which '%s' does not allow", m->name, u->who, perm_name(bad), o->who);
            return byre_fail(err, PERMISSION, "node '%s': '%s' may %s, which '%s' would not allow", m->name, o->who, perm_name(denied), u->who);
        }
    while (n->flt && n->backing)
        n = n->backing;
    return check_unwritten_below(n, u, err);
}

void users_settle(struct graph_node *n)
{
    for (; n && n->flt && n->backing; n = n->backing) {
        n->backing_use.perm = n->take_perm;
        n->backing_use.shared = STOR_PERM_ALL & ~n->deny_perm;
        for (const struct graph_user *o = n->users; o; o = o->next) {
            n->backing_use.perm |= o->perm;
            n->backing_use.shared &= o->shared & ~(n->flt->deny | n->deny_perm);
        }
    }
    if (n)
        mode_settle(n);                          /* the last who wrote to it may have gone */
}

void user_link(struct graph_node *n, struct graph_user *u)
{
    u->node = n;
    u->next = n->users;
    n->users = u;
    users_settle(n);
}

int graph_user_add(struct graph_node *n, struct graph_user *u, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    int may = active_allows(n, u->idle, u->who, err);
    if (may)
        return may;
    active_settle_user(n, u);
    if (n->read_only && (u->perm & (STOR_PERM_WRITE | STOR_PERM_RESIZE)))
        return byre_fail(err, READ_ONLY, "node '%s' is read-only, '%s' would %s", n->name, u->who, perm_name(u->perm & ~STOR_PERM_READ));
    int r = users_fit(n, u, NULL, err);
    if (!r)
        user_link(n, u);
    return r;
}

void graph_user_remove(struct graph_user *u)
{
    struct graph_node *n = u->node;
    if (!n)
        return;
    ASSERT_LOOP(n->g->home);
    for (struct graph_user **at = &n->users; *at; at = &(*at)->next) {
        if (*at == u) {
            *at = u->next;
            break;
        }
    }
    u->node = NULL;
    u->next = NULL;
    users_settle(n);
}
