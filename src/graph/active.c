/* SPDX-License-Identifier: MIT
 *
 * active.c: nodes that are not active (FEATURES 3.020, 3.069, 8.010, 10.020).
 *
 * Purpose     Hands the files of nodes to another process, and takes them back, without closing the nodes: their names, their places in the graph
 *             and the exports of them stay.
 * Owns        node->inactive, awake, turning; what users have put aside (graph_user.asleep).
 * Invariants  A1  A node that is not active is open for reading, holds no lock and writes nothing, not even when it is closed.
 *             A2  Its locks go last: behind the close of what was open for writing, which has made all of it durable and stored the bitmaps. They
 *                 go at the end of the call, when nothing can fail any more, so that whoever fails finds them.
 *             A3  A node that becomes active takes its locks first, and is opened anew behind them: header, tables and bitmaps are what the other
 *                 process has left. It is opened for reading before it is opened for writing: what cannot be taken over is left as it is.
 *             A4  Nobody who is active lies over a node that is not. The other way round is allowed.
 *             A5  What it records of its backing file is what it was when it went: another name means another disk than the chain that is open.
 *             A6  A call turns all of its nodes or none.
 * Order       Parents before children when they go, children before parents when they come.
 * Concurrency Home loop; edges are held, and all of the nodes drained, from the beginning to the end.
 * Failure     As it was. When that fails, too, it is told (graph_opts.warn), and the node stays what it was in between: not active, and perhaps
 *             with a lock. blockdev-set-active may be tried again.
 * Tests       tests/daemon/active_test.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "graph/active.h"
#include "graph/blockdev.h"
#include "graph/filter.h"
#include "graph/mode.h"

#define CHANGES (STOR_PERM_WRITE | STOR_PERM_RESIZE | STOR_PERM_WRITE_UNCHANGED)

/* One call. */
struct turning {
    struct graph *g;
    bool active;
    struct graph_node **all;             /* in the order of turning; each with a reference */
    size_t count, cap;
    struct node_set drained;             /* those, and the images over files of them */
    struct byre_err *err;
};

/* ---- what others ask ---- */

bool graph_is_active(const struct graph_node *n) { return !n->inactive; }

bool graph_meant_read_only(const struct graph_node *n)
{
    while (n->flt && n->backing)
        n = n->backing;
    if (n->auto_read_only && n->is_file)
        return false;
    return n->inactive && !n->flt ? n->awake.read_only : n->read_only;
}

int active_need(const struct graph_node *n, const char *what, struct byre_err *err)
{
    return n->inactive ? byre_fail(err, PERMISSION, "node '%s' is inactive and cannot %s", n->name, what) : 0;
}

int active_allows(const struct graph_node *n, bool idle, const char *who, struct byre_err *err)
{
    return (n->inactive || n->turning) && !idle ? byre_fail(err, PERMISSION, "node '%s' is inactive, and '%s' cannot use it", n->name, who) : 0;
}

static void put_aside(struct graph_user *u)
{
    u->asleep |= u->perm & CHANGES;
    u->perm &= ~(unsigned)CHANGES;
}

void active_settle_user(const struct graph_node *n, struct graph_user *u)
{
    if ((n->inactive || n->turning) && u->idle)
        put_aside(u);
}

void active_open_asleep(struct graph_node *n)
{
    n->inactive = true;
    n->awake = (struct node_awake){ n->read_only, n->discard };
    n->read_only = true;
    n->discard = false;
}

/* ---- which nodes, and in which order ---- */

#define CHILDREN 4u

/* The i-th node that n has an edge to; NULL: there is none. */
static struct graph_node *child_of(const struct graph_node *n, unsigned i)
{
    return i == 0 ? n->backing : i == 1 ? n->file : i == 2 ? n->data_node : n->side;
}

/* Is it among those who turn, or, when nodes go, in the way of those below it? */
static bool counts_as_parent(const struct turning *t, const struct graph_node *m) { return t->active ? m->going : !m->inactive; }

/* All that lies below those who are marked, as far as it is not active. */
static void mark_below(struct turning *t)
{
    for (bool more = true; more;) {
        more = false;
        for (struct graph_node *m = graph_next(t->g, NULL); m; m = graph_next(t->g, m))
            for (unsigned i = 0; m->going && i < CHILDREN; i++) {
                struct graph_node *c = child_of(m, i);
                if (c && c->inactive && !c->going)
                    c->going = more = true;
            }
    }
}

static void count_parents(struct turning *t)
{
    for (struct graph_node *m = graph_next(t->g, NULL); m; m = graph_next(t->g, m))
        m->parents = 0;
    for (struct graph_node *m = graph_next(t->g, NULL); m; m = graph_next(t->g, m))
        for (unsigned i = 0; i < CHILDREN; i++)
            if (child_of(m, i) && counts_as_parent(t, m))
                child_of(m, i)->parents++;
}

static void take(struct turning *t, struct graph_node *n)
{
    ASSERT(t->count < t->cap);
    graph_ref(n);
    t->all[t->count++] = n;
}

/* Parents before children; a child goes when the last of its parents does. */
static void order_from(struct turning *t)
{
    for (size_t at = 0; at < t->count; at++)
        for (unsigned i = 0; i < CHILDREN; i++) {
            struct graph_node *c = child_of(t->all[at], i);
            if (c && c->inactive == t->active && --c->parents == 0)
                take(t, c);
        }
}

static void turn_round(struct turning *t)
{
    for (size_t i = 0, k = t->count; i + 1 < k; i++) {
        struct graph_node *n = t->all[i];
        t->all[i] = t->all[--k];
        t->all[k] = n;
    }
}

/* n NULL: all that are not so yet. */
static int choose(struct turning *t, struct graph_node *n)
{
    for (struct graph_node *m = graph_next(t->g, NULL); m; m = graph_next(t->g, m)) {
        m->going = m->inactive == t->active && (!n || m == n);
        t->cap++;
    }
    t->all = calloc(t->cap + 1, sizeof *t->all);
    if (!t->all)
        return byre_fail(t->err, NOMEM, "no memory for a list of nodes");
    if (t->active)
        mark_below(t);
    count_parents(t);
    if (n && n->going && n->parents)
        return byre_fail(t->err, PERMISSION, "node '%s' is used by an active node", n->name);
    for (struct graph_node *m = graph_next(t->g, NULL); m; m = graph_next(t->g, m))
        if (m->going && !m->parents)
            take(t, m);
    order_from(t);
    if (t->active)
        turn_round(t);
    return 0;
}

static bool touches(const void *arg, const struct graph_node *m)
{
    const struct turning *t = arg;
    for (size_t i = 0; i < t->count; i++)
        if (t->all[i] == m || t->all[i] == m->file)
            return true;
    return false;
}

static void let_all(struct co *co, struct turning *t)
{
    node_set_end(co, &t->drained);
    for (size_t i = 0; i < t->count; i++)
        (void)node_unref(co, t->all[i]);         /* somebody else has it, or had it and has gone: then there is nobody to tell */
    free(t->all);
}

/* ---- users ---- */

/* The node whose edge this is; NULL: it is somebody from outside. */
static const struct graph_node *edge_of(struct graph *g, const struct graph_user *u)
{
    for (const struct graph_node *m = node_next(g, NULL); m; m = node_next(g, (struct graph_node *)(uintptr_t)m))
        if (&m->backing_use == u || &m->file_use == u || &m->data_use == u || &m->side_use == u)
            return m;
    return NULL;
}

/* Who is not ready to leave it alone. */
static int check_users(const struct graph_node *n, struct byre_err *err)
{
    if ((n->frozen && !n->flt) || n->of_job || n->promised)
        return byre_fail(err, BUSY, "node '%s': a job works at it, and it cannot become inactive", n->name);
    if (n->side)
        return byre_fail(err, BUSY, "node '%s' keeps a snapshot, or looks into one, and cannot become inactive", n->name);
    for (const struct graph_user *u = n->users; u; u = u->next) {
        const struct graph_node *m = edge_of(n->g, u);
        if (u->idle || (m && (m->inactive || m->under)))
            continue;
        return byre_fail(err, PERMISSION, "node '%s': '%s' %s it, and it cannot become inactive", n->name, u->who, u->perm & CHANGES ? "writes to" : "uses");
    }
    return 0;
}

/* Edges ask for less by themselves when what is above them sleeps. */
static bool sleeps(struct graph *g, const struct graph_user *u)
{
    const struct graph_node *m = u->idle ? edge_of(g, u) : NULL;
    return u->idle && (!m || node_is_hidden(m));
}

static void users_sleep(struct graph_node *n)
{
    for (struct graph_user *u = n->users; u; u = u->next)
        if (sleeps(n->g, u))
            put_aside(u);
    users_settle(n);
}

/* What was put aside is asked for again. Does everybody agree? */
static int users_wake(struct graph_node *n, struct byre_err *err)
{
    for (const struct graph_user *u = n->users; u; u = u->next) {
        struct graph_user want = *u;
        want.perm |= u->asleep;
        int r = u->asleep ? users_fit(n, &want, u, err) : 0;
        if (r)
            return r;
    }
    for (struct graph_user *u = n->users; u; u = u->next) {
        u->perm |= u->asleep;
        u->asleep = 0;
    }
    users_settle(n);
    return 0;
}

/* ---- one node ---- */

/* Memory, and snapshots of an image, are not opened anew. */
static bool can_switch(const struct graph_node *n) { return n->how && !(n->is_view && !n->how->ref.node.window.on); }

static struct node_mode reading(const struct graph_node *n)
{
    struct node_mode m = mode_of(n);
    m.read_only = true;
    m.discard = false;
    return m;
}

static struct node_mode wanted(const struct graph_node *n)
{
    struct node_mode m = mode_of(n);
    m.read_only = n->awake.read_only;
    m.discard = n->awake.discard;
    return m;
}

/* What the image records of its backing file. *ret: owned; NULL: nothing. */
static int recorded(struct co *co, struct graph_node *n, char **ret, struct byre_err *err)
{
    struct fmt_info info = { 0 };
    *ret = NULL;
    if (n->flt || !n->im->has_backing)
        return 0;
    int r = n->im->ops->info(co, n->im, &info, err);
    if (!r && info.backing_name && !(*ret = strdup(info.backing_name)))
        r = byre_fail(err, NOMEM, "no memory for a file name");
    fmt_info_fini(&info);
    return r;
}

/* An index of fixed layers (D6) does not cover it any more. */
static void drop_indexes(struct co *co, struct graph_node *n)
{
    graph_shut_begin(co, n);
    indexes_drop(co, n);
    graph_shut_end(n);
}

/* An image is open for reading when it returns 0, and all that it was told is durable. */
static int stop_writing(struct co *co, struct graph_node *n, struct byre_err *err)
{
    const struct node_mode to = reading(n);
    if (n->read_only) {
        drop_indexes(co, n);
        return 0;
    }
    if (can_switch(n))
        return mode_switch_all(co, n, &to, err);
    int r = n->im->ops->flush(co, n->im);
    if (r)
        return byre_fail_code(err, IO, r, "%s: cannot be made durable: %s", n->filename, strerror(-r));
    n->read_only = true;
    return 0;
}

/* Failed on the way. Writes again if it can. */
static void go_on(struct co *co, struct graph_node *n)
{
    struct byre_err why = { 0 };
    const struct node_mode to = wanted(n);
    int r = n->read_only && !n->awake.read_only ? mode_switch_all(co, n, &to, &why) : 0;
    n->inactive = r != 0;
    if (r)
        graph_warn(n, "%s: is inactive now, and keeps its lock: it was not closed well, and could not be opened for writing again: %s", n->filename, why.text);
    else if (users_wake(n, &why))
        graph_warn(n, "%s: its users cannot write to it any more: %s", n->filename, why.text);
}

static void no_locks(struct graph_node *n)
{
    locks_of(n, 0);
    data_locks_of(n);
}

/* Another machine may write the file: what this one remembers of it is not to be read any more. */
static const struct name_node *file_options(const struct graph_node *n)
{
    static const struct name_node none = { 0 };
    const struct graph_node *f = n->file && n->file->how ? n->file : n;
    return f->how ? &f->how->ref.node : &none;
}

static void drop_cache(struct co *co, struct graph_node *n)
{
    if (n->flt || !n->im->store || file_options(n)->keep_cache)
        return;
    stor_drop_cache(co, n->im->store);
    if (n->im->second)
        stor_drop_cache(co, n->im->second);
}

/* Somebody else of this machine may have kept it there: mapped, or read just now. */
static int check_dropped(struct co *co, struct graph_node *n, struct byre_err *err)
{
    if (n->flt || !n->im->store || !file_options(n)->check_cache)
        return 0;
    int64_t bytes = stor_cached(co, n->im->store);
    if (bytes >= 0 && n->im->second) {
        int64_t more = stor_cached(co, n->im->second);
        bytes = more < 0 ? more : bytes + more;
    }
    if (bytes < 0)
        return byre_fail_code(err, IO, (int)bytes, "%s: what the page cache has of it cannot be learned", n->filename);
    return bytes ? byre_fail(err, BUSY, "%s: page cache still in use: %" PRId64 " bytes (x-check-cache-dropped)", n->filename, bytes) : 0;
}

static int fall_asleep(struct co *co, struct graph_node *n, struct byre_err *err)
{
    int r = check_users(n, err);
    if (r)
        return r;
    n->turning = true;                           /* nobody comes meanwhile who would be in the way */
    users_sleep(n);
    n->awake = (struct node_awake){ n->read_only, n->discard };
    if (n->flt && n->flt->rest)
        n->flt->rest(co, n);
    if (!n->flt)
        r = stop_writing(co, n, err);
    free(n->was_backing);
    n->was_backing = NULL;
    if (!r)
        r = recorded(co, n, &n->was_backing, err);
    if (r) {
        go_on(co, n);
    } else {
        n->inactive = true;
        drop_cache(co, n);
        no_locks(n);                             /* A2: they are kept (mode_locks_hold) until the call ends */
    }
    n->turning = false;
    filters_refresh(n->g);
    return r;
}

/* A5 */
static int check_backing(struct co *co, struct graph_node *n, struct byre_err *err)
{
    char *now;
    int r = recorded(co, n, &now, err);
    bool same = now && n->was_backing ? !strcmp(now, n->was_backing) : now == n->was_backing;
    if (!r && !same)
        r = byre_fail(err, BACKING_OPEN, "%s: records the backing file '%s' now, and recorded '%s' when it became inactive: close the node and open it anew", n->filename,
                      now ? now : "", n->was_backing ? n->was_backing : "");
    free(now);
    return r;
}

/* A3 */
static int open_anew(struct co *co, struct graph_node *n, struct byre_err *err)
{
    struct node_mode to = reading(n);
    if (!can_switch(n)) {
        n->read_only = n->awake.read_only;
        return 0;
    }
    drop_cache(co, n);
    int r = check_dropped(co, n, err);
    if (!r)
        r = mode_switch_all(co, n, &to, err);
    if (!r)
        r = check_backing(co, n, err);
    to = wanted(n);
    return r || to.read_only ? r : mode_switch_all(co, n, &to, err);
}

static int wake_up(struct co *co, struct graph_node *n, struct byre_err *err)
{
    n->inactive = false;                         /* it wants locks from here on */
    n->turning = true;
    int r = n->flt ? 0 : open_anew(co, n, err);
    filters_refresh(n->g);                       /* others may be asked to let somebody write below */
    if (!r)
        r = users_wake(n, err);
    if (r) {
        struct byre_err why = { 0 };
        n->inactive = n->turning = true;
        if (!n->flt && !n->read_only && stop_writing(co, n, &why))
            graph_warn(n, "%s: is inactive, and is still open for writing: %s", n->filename, why.text);
        no_locks(n);
        filters_refresh(n->g);
    }
    n->turning = false;
    if (!r && !n->flt)
        indexes_make(n);
    return r;
}

/* ---- the whole ---- */

static int turn(struct co *co, struct graph_node *n, bool active, struct byre_err *err)
{
    return active ? wake_up(co, n, err) : fall_asleep(co, n, err);
}

static int turn_all(struct co *co, struct turning *t)
{
    size_t done = 0;
    int r = 0;
    while (!r && done < t->count) {
        r = turn(co, t->all[done], t->active, t->err);
        done += !r;
    }
    while (r && done) {                          /* A6 */
        struct byre_err why = { 0 };
        struct graph_node *n = t->all[--done];
        if (turn(co, n, !t->active, &why))
            graph_warn(n, "node '%s': stays %s, though another one could not become so: %s", n->name, t->active ? "active" : "inactive", why.text);
    }
    return r;
}

static void hold_locks(struct turning *t)
{
    for (size_t i = 0; i < t->count; i++)
        if (!t->all[i]->flt)
            mode_locks_hold(t->all[i]);
}

/* Parents and children in turn: none of them wants what it had. */
static void let_locks(struct co *co, struct turning *t)
{
    for (size_t i = 0; i < t->count; i++)
        if (!t->all[i]->flt)
            mode_locks_let(co, t->all[i]);
    for (size_t i = 0; i < t->count; i++)
        mode_writer_gone(co, t->all[i]);               /* who wrote to it may have gone while it slept */
}

int graph_set_active(struct co *co, struct graph *g, struct graph_node *n, bool active, struct byre_err *err)
{
    ASSERT_LOOP(g->home);
    struct turning t = { .g = g, .active = active, .err = err };
    graph_edges_hold(co, g);                     /* before any drain (runtime.c, V2) */
    int r = choose(&t, n);
    if (!r)
        r = node_set_begin(co, g, touches, &t, false, &t.drained, err);      /* what rests on one of these turns too, or sleeps: it need not be stilled */
    if (!r) {
        hold_locks(&t);
        r = turn_all(co, &t);
        let_locks(co, &t);
    }
    let_all(co, &t);
    graph_edges_let(co, g);
    return r;
}
