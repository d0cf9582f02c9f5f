/* SPDX-License-Identifier: MIT
 *
 * runtime.c: other nodes under the same users, while they use them.
 *
 * Purpose     Moves edges: replacing a node, putting one above another, taking a filter out, another backing chain; and says which edges
 *             must stay.
 * Owns        Nothing beyond the calls. An edge is node->backing, one reference of the child and node->backing_use among its users.
 * Invariants  R1 to R3 of runtime.h.
 *             V1  Between the last check and the last edge moved nothing suspends: what was checked is what is moved.
 *             V2  One change of edges at a time (edges_mx), and edges_mx before any drain.
 * Order       What comes to lie below is durable before it does: from then on a guest's flush goes to what is above it only (J5).
 *             No name in a header changes here: that is reopen.c (Q18).
 * Concurrency Home loop. Requests of all loops wait at the gates meanwhile.
 * Failure     A refused change has moved nothing.
 * Tests       runtime_test.c
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "graph/filter.h"

/* One change of edges. */
struct change {
    struct graph_node *from, *to;
    bool insert;                        /* `from` comes to lie below `to` */
    bool remove;                        /* `from` lies over `to`, and no longer afterwards */
};

/* Does the edge from m to c->from move? */
static bool moves(const struct change *c, const struct graph_node *m)
{
    return m->backing == c->from && !lies_above(c->to, m);
}

static bool is_moving_use(const struct change *c, const struct graph_user *u)
{
    for (const struct graph_node *m = node_next(c->from->g, NULL); m; m = node_next(c->from->g, (struct graph_node *)(uintptr_t)m))
        if (&m->backing_use == u)
            return moves(c, m);
    return false;
}

/* ---- checks (R2) ---- */

static int check_edge(const struct change *c, struct graph_node *m, struct byre_err *err)
{
    const struct graph_node *end = c->insert && c->to->flt ? c->from : c->to;        /* a new filter can do what lies below it can */
    if (m->frozen)
        return byre_fail(err, PERMISSION, "node '%s': '%s' uses it, and a job needs that to stay so", c->from->name, m->backing_use.who);
    if (m->backing_use.perm & (STOR_PERM_WRITE | STOR_PERM_RESIZE) && end->read_only)
        return byre_fail(err, READ_ONLY, "node '%s' is read-only, and '%s' writes", c->to->name, m->backing_use.who);
    if (graph_length(c->from) != graph_length(end))
        return byre_fail(err, BAD_SIZE, "node '%s' has %" PRIu64 " bytes, and node '%s', in whose place it would come, has %" PRIu64, c->to->name,
                         graph_length(end), c->from->name, graph_length(c->from));
    int r = check_chain(m, c->to, err);
    return r ? r : users_fit(c->to, &m->backing_use, c->remove ? &c->from->backing_use : NULL, err);
}

/* graph.h I1 of every chain that goes through `from`, which gets one layer more. */
static int check_depths(const struct change *c, struct byre_err *err)
{
    for (struct graph_node *m = node_next(c->from->g, NULL); m; m = node_next(c->from->g, m)) {
        unsigned depth = !c->to->flt;
        for (const struct graph_node *l = m; l; l = l->backing)
            depth += !l->flt;
        if (lies_above(m, c->from) && depth > m->g->max_depth)
            return byre_fail(err, BACKING_DEPTH, "node '%s': its backing chain would have more than %u images", m->name, m->g->max_depth);
    }
    return 0;
}

/* What `to` will want of `from`, beside those who stay there. */
static int check_below(const struct change *c, struct byre_err *err)
{
    struct graph_user want = { .who = c->to->name, .perm = STOR_PERM_READ, .shared = STOR_PERM_READ | STOR_PERM_WRITE_UNCHANGED };
    if (c->to->backing)
        return byre_fail(err, BAD_ARGUMENT, "node '%s' has something below it already", c->to->name);
    if (c->to->flt) {
        want.perm = 0;
        want.shared = STOR_PERM_ALL;
    }
    for (const struct graph_user *u = c->from->users; u; u = u->next)
        if (c->to->flt && is_moving_use(c, u)) {
            want.perm |= u->perm;
            want.shared &= u->shared;
        }
    for (const struct graph_user *u = c->from->users; u; u = u->next)
        if (!is_moving_use(c, u) && ((want.perm & ~u->shared) || (u->perm & ~want.shared)))
            return byre_fail(err, PERMISSION, "node '%s': '%s' uses it in a way that node '%s' above it would not allow", c->from->name, u->who, c->to->name);
    int r = check_depths(c, err);
    return r ? r : check_chain(c->to, c->from, err);
}

static int check_change(const struct change *c, struct byre_err *err)
{
    int r = c->insert ? check_below(c, err) : 0;
    for (struct graph_node *m = node_next(c->from->g, NULL); m && !r; m = node_next(c->from->g, m))
        if (moves(c, m))
            r = check_edge(c, m, err);
    return r;
}

/* ---- moving ---- */

static void move_edge(struct graph_node *m, struct graph_node *to)
{
    graph_user_remove(&m->backing_use);
    m->backing = to;
    to->refs++;
    user_link(to, &m->backing_use);
    if (!m->flt)
        node_set_below(m);
}

/* V1. How many references of `from` have become free. */
static unsigned move_edges(const struct change *c)
{
    unsigned moved = 0;
    for (struct graph_node *m = node_next(c->from->g, NULL); m; m = node_next(c->from->g, m))
        if (moves(c, m)) {
            move_edge(m, c->to);
            moved++;
        }
    if (c->remove) {
        graph_user_remove(&c->from->backing_use);
        c->from->backing = NULL;
        if (!c->from->flt)
            node_set_below(c->from);
    }
    if (c->insert) {
        c->to->backing = c->from;
        c->from->refs++;
        if (!c->to->flt)
            c->to->backing_use = (struct graph_user){ .who = c->to->name, .perm = STOR_PERM_READ, .shared = STOR_PERM_READ | STOR_PERM_WRITE_UNCHANGED };
        user_link(c->from, &c->to->backing_use);
        users_settle(c->to);
        if (!c->to->flt)
            node_set_below(c->to);
    }
    filters_refresh(c->from->g);
    gates_update(c->from->g);
    return moved;
}

/* n is to lie below `above`, which does not hand flushes on. Nobody writes to n meanwhile. */
static int flush_below(struct co *co, struct graph_node *n, const struct graph_node *above, struct byre_err *err)
{
    int r = n->read_only || above->flt ? 0 : node_flush(co, n);
    return r ? byre_fail_code(err, IO, r, "%s: cannot be made durable, so nothing is put above it: %s", n->filename, strerror(-r)) : 0;
}

static int run_change(struct co *co, const struct change *c, struct byre_err *err)
{
    struct graph *g = c->from->g;
    unsigned moved = 0;
    ASSERT_LOOP(g->home);
    ASSERT(c->from != c->to);
    c->from->refs++;
    c->to->refs++;
    co_lock(co, &g->edges_mx);
    graph_drain_begin(co, c->from);
    graph_drain_begin(co, c->to);
    indexes_drop(co, c->from);                   /* R3 */
    int r = c->insert ? flush_below(co, c->from, c->to, err) : 0;
    if (!r)
        r = check_change(c, err);
    if (!r)
        moved = move_edges(c);
    indexes_make(c->from);
    indexes_make(c->to);
    graph_drain_end(c->to);
    graph_drain_end(c->from);
    co_unlock(&g->edges_mx);
    if (!r && c->remove)
        (void)node_unref(co, c->to);             /* what the filter held; others hold it now, or it was held by the caller alone */
    (void)node_unref(co, c->to);
    while (moved--)
        (void)node_unref(co, c->from);           /* closes it when nobody else has it; its close then has nobody to tell */
    (void)node_unref(co, c->from);
    return r;
}

int graph_replace_node(struct co *co, struct graph_node *from, struct graph_node *to, struct byre_err *err)
{
    return run_change(co, &(struct change){ .from = from, .to = to }, err);
}

int graph_insert_above(struct co *co, struct graph_node *from, struct graph_node *to, struct byre_err *err)
{
    return run_change(co, &(struct change){ .from = from, .to = to, .insert = true }, err);
}

static int remove_above(struct co *co, struct graph_node *n, struct byre_err *err)
{
    if (n->frozen)
        return byre_fail(err, PERMISSION, "node '%s': a job needs what lies below it to stay", n->name);
    return run_change(co, &(struct change){ .from = n, .to = n->backing, .remove = true }, err);
}

int graph_remove_filter(struct co *co, struct graph_node *f, struct byre_err *err)
{
    if (!graph_is_filter(f) || !f->backing)
        return byre_fail(err, BAD_ARGUMENT, "node '%s' filters nothing", f->name);
    return remove_above(co, f, err);
}

int graph_undo_insert(struct co *co, struct graph_node *n, struct byre_err *err)
{
    ASSERT(n->backing);
    return remove_above(co, n, err);
}

/* ---- another backing chain ---- */

static int set_backing_drained(struct co *co, struct graph_node *n, struct graph_node *backing, struct byre_err *err)
{
    const struct graph_user want = { .who = n->name, .perm = STOR_PERM_READ, .shared = STOR_PERM_READ | STOR_PERM_WRITE_UNCHANGED };
    indexes_drop(co, n);
    int r = backing && backing != n->backing ? flush_below(co, backing, n, err) : 0;
    if (r)
        return r;
    r = n->frozen ? byre_fail(err, PERMISSION, "node '%s': a job needs what lies below it to stay", n->name) : check_chain(n, backing, err);
    if (!r)
        r = check_parts(n, backing, err);
    if (!r && backing)
        r = users_fit(backing, &want, n->backing == backing ? &n->backing_use : NULL, err);
    if (r)
        return r;
    struct graph_node *old = n->backing;
    graph_user_remove(&n->backing_use);
    n->backing = backing;
    if (backing) {
        backing->refs++;
        n->backing_use = want;
        user_link(backing, &n->backing_use);
    }
    node_set_below(n);
    filters_refresh(n->g);
    if (backing)
        index_attach(backing);
    indexes_make(n);
    gates_update(n->g);
    (void)node_unref(co, old);                   /* read-only, or the caller holds it */
    return 0;
}

int graph_set_backing(struct co *co, struct graph_node *n, struct graph_node *backing, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    if (n->flt)
        return byre_fail(err, BAD_ARGUMENT, "node '%s' is a filter and has no backing node", n->name);
    co_lock(co, &n->g->edges_mx);
    graph_drain_begin(co, n);
    int r = set_backing_drained(co, n, backing, err);
    graph_drain_end(n);
    co_unlock(&n->g->edges_mx);
    return r;
}

/* ---- edges that must stay ---- */

int graph_freeze(struct graph_node *top, const struct graph_node *base, struct byre_err *err)
{
    ASSERT_LOOP(top->g->home);
    if (base && !lies_above(top, base))
        return byre_fail(err, BAD_ARGUMENT, "node '%s' is not below node '%s'", base->name, top->name);
    for (struct graph_node *m = top; m && m != base; m = m->backing)
        m->frozen++;
    return 0;
}

void graph_thaw(struct graph_node *top, const struct graph_node *base)
{
    for (struct graph_node *m = top; m && m != base; m = m->backing) {
        ASSERT(m->frozen > 0);
        m->frozen--;
    }
}

/* ---- a picture ---- */

void graph_each_edge(struct graph *g, void (*fn)(void *arg, const struct graph_edge *e), void *arg)
{
    ASSERT_LOOP(g->home);
    for (struct graph_node *m = node_next(g, NULL); m; m = node_next(g, m)) {
        if (m->backing)
            fn(arg, &(struct graph_edge){ .parent = m, .child = m->backing, .role = node_is_hidden(m) ? "root" : m->flt ? "file" : "backing",
                                          .who = m->backing_use.who, .outside = node_is_hidden(m), .perm = m->backing_use.perm, .shared = m->backing_use.shared });
        if (m->file)
            fn(arg, &(struct graph_edge){ .parent = m, .child = m->file, .role = "file", .who = m->name, .perm = m->file_use.perm, .shared = m->file_use.shared });
    }
}
