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
 *             No name in a header changes here: that is rebase.c (Q18).
 * Concurrency Home loop. Requests of all loops wait at the gates meanwhile.
 * Failure     A refused change has moved nothing, and nobody has given up anything for it.
 * Tests       runtime_test.c
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/mutant.h"
#include "graph/active.h"
#include "graph/filter.h"

/* What an overlay wants of what lies below it. */
static struct graph_user backing_demand(const struct graph_node *n)
{
    return (struct graph_user){ .who = n->name, .perm = STOR_PERM_READ, .idle = n->inactive,
                                .shared = STOR_PERM_READ | STOR_PERM_WRITE_UNCHANGED | (n->lenient ? STOR_PERM_WRITE : 0) };
}

/* One change of edges. */
struct change {
    struct graph_node *from, *to;
    bool insert;                        /* `from` comes to lie below `to` */
    bool remove;                        /* `from` lies over `to`, and no longer afterwards */
    bool longer;                        /* `to` may be longer */
    const struct graph_going *going;    /* what the caller has, and gives up; NULL: nothing */
};

/* Does the edge from m to c->from move? */
static bool moves(const struct change *c, const struct graph_node *m)
{
    return m->backing == c->from && !graph_goes_to(c->to, m);
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
    bool around = (c->insert && c->to->flt) || (c->remove && c->from->flt);
    if (m->under && !around)
        return byre_fail(err, PERMISSION, "node '%s': '%s' is an image over it, and cannot come to lie over another node", c->from->name, m->backing_use.who);
    if (m->frozen)
        return byre_fail(err, PERMISSION, "node '%s': '%s' uses it, and a job needs that to stay so", c->from->name, m->backing_use.who);
    if (m->promised && !(c->remove && c->from->flt))
        return byre_fail(err, PERMISSION, "node '%s': a job is going to give '%s', which lies over it, another backing node", c->from->name, m->name);
    if (m->backing_use.perm & (STOR_PERM_WRITE | STOR_PERM_RESIZE) && end->read_only)
        return byre_fail(err, READ_ONLY, "node '%s' is read-only, and '%s' writes", c->to->name, m->backing_use.who);
    if (graph_length(c->from) != graph_length(end) && !(c->longer && graph_length(c->from) < graph_length(end)))
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
        if (chain_has(m, c->from) && depth > m->g->max_depth)
            return byre_fail(err, BACKING_DEPTH, "node '%s': its backing chain would have more than %u images", m->name, m->g->max_depth);
    }
    return 0;
}

/* May the edge below n change? Its owner's job itself may have frozen it `own` times. */
static int check_free(const struct graph_node *n, unsigned own, const void *owner, struct byre_err *err)
{
    if (n->frozen > own)
        return byre_fail(err, PERMISSION, "node '%s': a job needs what lies below it to stay", n->name);
    if (n->promised && n->promised != owner)
        return byre_fail(err, PERMISSION, "node '%s': a job is going to give it another backing node", n->name);
    return 0;
}

/* What `to` will want of `from`, beside those who stay there. That it has nothing below it may be what a job needs. */
static int check_below(const struct change *c, struct byre_err *err)
{
    struct graph_user want = backing_demand(c->to);
    if (c->to->backing)
        return byre_fail(err, BAD_ARGUMENT, "node '%s' has something below it already", c->to->name);
    int r = check_free(c->to, 0, NULL, err);
    if (r)
        return r;
    if (c->to->flt) {
        want.perm = 0;
        want.shared = STOR_PERM_ALL;
    }
    for (const struct graph_user *u = c->from->users; u; u = u->next)
        if (c->to->flt && is_moving_use(c, u)) {
            want.perm |= u->perm;
            want.shared &= u->shared & ~c->to->flt->deny;
        }
    for (const struct graph_user *u = c->from->users; u; u = u->next)
        if (!is_moving_use(c, u) && ((want.perm & ~u->shared) || (u->perm & ~want.shared)))
            return byre_fail(err, PERMISSION, "node '%s': '%s' uses it in a way that node '%s' above it would not allow", c->from->name, u->who, c->to->name);
    r = check_depths(c, err);
    return r ? r : check_chain(c->to, c->from, err);
}

static void mark_moving(const struct change *c, bool on)
{
    for (struct graph_node *m = node_next(c->from->g, NULL); m; m = node_next(c->from->g, m))
        if (moves(c, m))
            m->backing_use.moving = on;
}

static int check_change(const struct change *c, struct byre_err *err)
{
    int r = c->to->ending ? byre_fail(err, NOT_FOUND, "node '%s' is being closed", c->to->name) : c->insert ? check_below(c, err) : 0;
    mark_moving(c, true);                        /* they go together */
    for (struct graph_node *m = node_next(c->from->g, NULL); m && !r; m = node_next(c->from->g, m))
        if (moves(c, m))
            r = check_edge(c, m, err);
    mark_moving(c, false);
    return r;
}

/* ---- what the caller gives up (graph_go_over) ---- */

static void give_up(const struct graph_going *o, struct graph_node *had[GRAPH_GOING_USES])
{
    for (unsigned i = 0; i < GRAPH_GOING_USES; i++) {
        had[i] = o->uses[i] ? o->uses[i]->node : NULL;
        if (had[i])
            graph_user_remove(o->uses[i]);
    }
    if (o->frozen)
        graph_thaw(o->frozen, o->frozen_base);
}

/* Nothing has happened since (V1), so nobody is in the way. */
static void take_back(const struct graph_going *o, struct graph_node *const had[GRAPH_GOING_USES])
{
    for (unsigned i = 0; i < GRAPH_GOING_USES; i++)
        if (had[i])
            user_link(had[i], o->uses[i]);
    for (struct graph_node *m = o->frozen; m && m != o->frozen_base; m = m->backing)
        m->frozen++;
}

/* ---- moving ---- */

/* The only place where an edge changes (V1). Its users' demands stay as they are; `use` not NULL: an image's become these. The child that it
 * had keeps its reference, which is the caller's now. */
static struct graph_node *edge_move(struct graph_node *m, struct graph_node *to, const struct graph_user *use)
{
    struct graph_node *old = m->backing;
    graph_user_remove(&m->backing_use);
    m->backing = to;
    if (use && !m->flt)
        m->backing_use = *use;
    if (to) {
        to->refs++;
        user_link(to, &m->backing_use);
        if (!node_is_hidden(m))
            users_settle(m);                     /* what a filter asks for; an attachment says that itself */
    }
    if (!m->flt)
        node_set_below(m);
    return old;
}

static void edges_moved(struct graph *g)
{
    filters_refresh(g);
    gates_update(g);
}

struct graph_node *edge_to_medium(struct graph_node *a, struct graph_node *to)
{
    ASSERT(node_is_hidden(a) && a->shuts);
    struct graph_node *old = edge_move(a, to, NULL);
    a->backing_use.perm |= a->backing_use.asleep;        /* put aside for the medium that was there (active.c): the next one is active */
    a->backing_use.asleep = 0;
    edges_moved(a->g);
    return old;
}

/* V1. How many references of `from` have become free. */
static unsigned move_edges(const struct change *c)
{
    unsigned moved = 0;
    for (struct graph_node *m = node_next(c->from->g, NULL); m; m = node_next(c->from->g, m))
        if (moves(c, m)) {
            (void)edge_move(m, c->to, NULL);
            moved++;
        }
    if (c->remove)
        (void)edge_move(c->from, NULL, NULL);    /* its reference of `to` is given back in run_change */
    if (c->insert) {
        const struct graph_user use = backing_demand(c->to);
        (void)edge_move(c->to, c->from, &use);
    }
    edges_moved(c->from->g);
    return moved;
}

/* n is to lie below `above`, which does not hand flushes on. Nobody writes to n meanwhile. */
static int flush_below(struct co *co, struct graph_node *n, const struct graph_node *above, struct byre_err *err)
{
    if (MUTANT(MUT_SNAPSHOT_UNFLUSHED) || MUTANT(MUT_LIVE_COMMIT_UNFLUSHED))      /* behind the flush of a live commit, this one would do */
        return 0;
    if (!above->flt && graph_rests_on(n, above)) /* it would wait for a flush of what the caller has drained */
        return byre_fail(err, BACKING_LOOP, "%s: what is to lie below it, '%s', has its files in it", above->filename, n->name);
    int r = n->read_only || above->flt ? 0 : node_flush(co, n);
    return r ? byre_fail_code(err, IO, r, "%s: cannot be made durable, so nothing is put above it: %s", n->filename, strerror(-r)) : 0;
}

void graph_edges_hold(struct co *co, struct graph *g)
{
    ASSERT_LOOP(g->home);
    if (g->edges_by != co) {
        co_lock(co, &g->edges_mx);
        g->edges_by = co;
    }
    g->edges_depth++;
}

void graph_edges_let(struct co *co, struct graph *g)
{
    ASSERT(g->edges_by == co && g->edges_depth);
    if (--g->edges_depth)
        return;
    g->edges_by = NULL;
    co_unlock(&g->edges_mx);
}

/* Of who keeps others away until then: what he has is in his way as well, and stays his when it is refused. */
static int check_going(const struct change *c, struct byre_err *err)
{
    struct graph_node *had[GRAPH_GOING_USES];
    if (!c->going)
        return check_change(c, err);
    give_up(c->going, had);
    int r = check_change(c, err);
    if (r)
        take_back(c->going, had);
    return r;
}

static int run_change(struct co *co, const struct change *c, struct byre_err *err)
{
    struct graph *g = c->from->g;
    unsigned moved = 0;
    ASSERT_LOOP(g->home);
    ASSERT(c->from != c->to);
    c->from->refs++;
    c->to->refs++;
    graph_edges_hold(co, g);
    graph_shut_begin(co, c->from);
    graph_shut_begin(co, c->to);
    indexes_drop(co, c->from);                   /* R3 */
    int r = c->insert ? flush_below(co, c->from, c->to, err) : 0;
    if (!r)
        r = check_going(c, err);
    if (!r)
        moved = move_edges(c);
    indexes_make(c->from);
    indexes_make(c->to);
    graph_shut_end(c->to);
    graph_shut_end(c->from);
    graph_edges_let(co, g);
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

int graph_go_over(struct co *co, const struct graph_going *o, struct byre_err *err)
{
    return run_change(co, &(struct change){ .from = o->from, .to = o->to, .insert = o->insert, .longer = o->longer, .going = o }, err);
}

static int remove_above(struct co *co, struct graph_node *n, struct byre_err *err)
{
    if (n->frozen)
        return byre_fail(err, PERMISSION, "node '%s': a job needs what lies below it to stay", n->name);
    return run_change(co, &(struct change){ .from = n, .to = n->backing, .remove = true }, err);
}

int graph_remove_filter(struct co *co, struct graph_node *f, struct byre_err *err)
{
    struct graph *g = f->g;
    graph_edges_hold(co, g);                     /* what lies below it is looked at, and may be about to change */
    int r = graph_is_filter(f) && f->backing ? remove_above(co, f, err) : byre_fail(err, BAD_ARGUMENT, "node '%s' filters nothing", f->name);
    graph_edges_let(co, g);
    return r;
}

int graph_undo_insert(struct co *co, struct graph_node *n, struct byre_err *err)
{
    struct graph *g = n->g;
    graph_edges_hold(co, g);
    ASSERT(n->backing);
    int r = remove_above(co, n, err);
    graph_edges_let(co, g);
    return r;
}

/* ---- another backing chain ---- */

int check_below_of(struct graph_node *n, struct graph_node *backing, struct byre_err *err)
{
    int free = check_free(n, 0, NULL, err);
    if (free)
        return free;
    int r = check_chain(n, backing, err);
    return r ? r : check_parts(n, backing, err);
}

int edge_prepare(struct co *co, struct graph_node *n, struct graph_node *backing, struct byre_err *err)
{
    int r = backing && backing != n->backing ? flush_below(co, backing, n, err) : 0;
    return r ? r : check_below_of(n, backing, err);
}

void edge_to_backing(struct co *co, struct graph_node *n, struct graph_node *backing)
{
    const struct graph_user want = backing_demand(n);
    struct graph_node *old = edge_move(n, backing, &want);
    edges_moved(n->g);
    if (backing)
        index_attach(backing);
    indexes_make(n);
    (void)node_unref(co, old);                   /* read-only, or the caller holds it */
}

/* perm.c I2 */
static int fit_below(struct graph_node *n, struct graph_node *backing, struct byre_err *err)
{
    const struct graph_user *leaving = n->backing == backing ? &n->backing_use : NULL;
    const struct graph_user lenient = { .who = n->name, .perm = STOR_PERM_READ, .shared = STOR_PERM_READ | STOR_PERM_WRITE_UNCHANGED | STOR_PERM_WRITE };
    n->lenient = false;
    const struct graph_user strict = backing_demand(n);
    int r = users_fit(backing, &strict, leaving, err);
    if (!r || n->users || backing->flt || users_fit(backing, &lenient, leaving, NULL))
        return r;
    n->lenient = true;
    return 0;
}

static int set_backing_drained(struct co *co, struct graph_node *n, struct graph_node *backing, struct byre_err *err)
{
    indexes_drop(co, n);
    int r = edge_prepare(co, n, backing, err);
    if (!r && backing)
        r = fit_below(n, backing, err);
    if (r)
        indexes_make(n);
    else
        edge_to_backing(co, n, backing);
    return r;
}

int graph_set_backing(struct co *co, struct graph_node *n, struct graph_node *backing, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    if (n->flt)
        return byre_fail(err, BAD_ARGUMENT, "node '%s' is a filter and has no backing node", n->name);
    graph_edges_hold(co, n->g);
    graph_shut_begin(co, n);
    int r = set_backing_drained(co, n, backing, err);
    graph_shut_end(n);
    if (!r)
        node_note_below(co, n);
    graph_edges_let(co, n->g);
    return r;
}

/* ---- another node below a filter ---- */

const struct graph_node *node_snapshot_keeper(const struct graph_node *f)
{
    for (struct graph_node *m = node_next(f->g, NULL); m; m = node_next(f->g, m))
        if (m->flt && m->flt->deny && m->users && graph_goes_to(m, f))
            return m;
    return NULL;
}

/* Filters that f alone has used, above `to`, are nobody's when f has left them: what the last of them asks of `to` is then not asked any more. NULL:
 * there is no such. */
static const struct graph_user *use_that_goes(const struct graph_node *f, const struct graph_node *to)
{
    const struct graph_user *above = &f->backing_use;
    for (const struct graph_node *m = f->backing; m && m->flt && m->users == above && !above->next; m = m->backing) {
        if (m->backing == to)
            return &m->backing_use;
        above = &m->backing_use;
    }
    return NULL;
}

static int check_filtered(const struct graph_node *f, struct graph_node *to, struct byre_err *err)
{
    const struct graph_node *keeps = graph_skip_filters(to) == graph_skip_filters(f->backing) ? NULL : node_snapshot_keeper(f);
    struct graph_user want = f->backing_use;
    if (f->frozen)
        return byre_fail(err, PERMISSION, "node '%s': a job needs what lies below it to stay", f->name);
    if (keeps)
        return byre_fail(err, PERMISSION, "node '%s': node '%s' keeps a snapshot of its disk, or in it, and it cannot become another one meanwhile", f->name, keeps->name);
    if (want.perm & (STOR_PERM_WRITE | STOR_PERM_RESIZE) && to->read_only)
        return byre_fail(err, READ_ONLY, "node '%s' is read-only, and '%s' writes through '%s'", to->name, f->users ? f->users->who : "", f->name);
    if (f->users && graph_length(f) != graph_length(to))
        return byre_fail(err, BAD_SIZE, "node '%s' has %" PRIu64 " bytes, and '%s', which is in use, has %" PRIu64, to->name, graph_length(to), f->name, graph_length(f));
    if (chain_has(to, f))
        return byre_fail(err, BACKING_LOOP, "node '%s' lies above node '%s', or is it", to->name, f->name);
    int r = check_chain(f, to, err);
    return r ? r : users_fit(to, &f->backing_use, use_that_goes(f, to), err);
}

static int set_filtered_drained(struct co *co, struct graph_node *f, struct graph_node *to, struct byre_err *err)
{
    struct graph_node *old = f->backing;
    int r = old && !old->read_only ? node_flush(co, old) : 0;        /* no flush of a guest reaches it any more */
    if (r)
        return byre_fail_code(err, IO, r, "node '%s': cannot be made durable: %s", old->name, strerror(-r));
    indexes_drop(co, f);
    r = check_filtered(f, to, err);
    if (r)
        return r;
    (void)edge_move(f, to, NULL);
    edges_moved(f->g);
    indexes_make(f);
    return old ? node_unref(co, old) : 0;
}

int graph_set_filtered(struct co *co, struct graph_node *f, struct graph_node *to, struct byre_err *err)
{
    ASSERT_LOOP(f->g->home);
    ASSERT(graph_is_filter(f));
    graph_edges_hold(co, f->g);
    graph_shut_begin(co, f);
    int r = set_filtered_drained(co, f, to, err);
    graph_shut_end(f);
    graph_edges_let(co, f->g);
    return r;
}

/* ---- edges that must stay ---- */

int graph_freeze(struct graph_node *top, const struct graph_node *base, struct byre_err *err)
{
    ASSERT_LOOP(top->g->home);
    if (base && !chain_has(top, base))
        return byre_fail(err, BAD_ARGUMENT, "node '%s' is not below node '%s'", base->name, top->name);
    for (const struct graph_node *m = top; m && m != base; m = m->backing)
        if (m->of_job || (m->backing && m->backing->of_job))
            return byre_fail(err, PERMISSION, "node '%s' is there for a job that runs, and goes with it", m->of_job ? m->name : m->backing->name);
    for (const struct graph_node *m = top; m && m != base; m = m->backing)
        if (m->promised)
            return byre_fail(err, PERMISSION, "node '%s': a job is going to give it another backing node", m->name);
    for (struct graph_node *m = top; m && m != base; m = m->backing)
        m->frozen++;
    return 0;
}

int graph_promise(struct graph_node *n, const void *owner, unsigned own, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    int r = n->flt ? byre_fail(err, PERMISSION, "node '%s': is a filter over '%s', and would have to filter another image when the job ends", n->name, n->backing->name) : 0;
    if (!r)
        r = active_need(n, "be given another backing node", err);
    if (!r)
        r = check_free(n, own, owner, err);
    if (!r)
        n->promised = owner;
    return r;
}

void graph_promise_end(struct graph *g, const void *owner)
{
    ASSERT_LOOP(g->home);
    for (struct graph_node *n = node_next(g, NULL); n; n = node_next(g, n))
        if (n->promised == owner)
            n->promised = NULL;
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
        if (m->backing && !m->under)             /* else it is the edge "file" of who has it */
            fn(arg, &(struct graph_edge){ .parent = m, .child = m->backing, .role = node_is_hidden(m) ? "root" : m->flt ? "file" : "backing",
                                          .who = m->backing_use.who, .outside = node_is_hidden(m), .perm = m->backing_use.perm, .shared = m->backing_use.shared });
        if (m->file)
            fn(arg, &(struct graph_edge){ .parent = m, .child = m->file, .role = "file", .who = m->name, .perm = m->file_use.perm, .shared = m->file_use.shared });
        if (m->data_node)
            fn(arg, &(struct graph_edge){ .parent = m, .child = m->data_node, .role = m->has_header ? "header" : "data-file", .who = m->name, .perm = m->data_use.perm, .shared = m->data_use.shared });
    }
}
