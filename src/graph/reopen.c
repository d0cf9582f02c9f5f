/* SPDX-License-Identifier: MIT
 *
 * reopen.c: changes of a chain that is open: a layer for writing, another backing chain, a layer without content.
 *
 * Purpose     What commit and rebase do to the nodes around the copying.
 * Owns        Nothing beyond the calls.
 * Invariants  R1  A node is never without an image: the new one is open before the old one is closed. Both hold their locks at the same
 *                 time, so what the old one denies others is lowered first; whoever takes the chance makes the call fail.
 *             R2  Indexes (D6) that remember the node's old image are gone before the image is.
 *             R3  While a layer may be written, first writes above it know nothing of what it holds (below_zero_from).
 *             R4  The name in the header changes before the edge does; when either fails, both are as before.
 * Order       graph_rebase: the caller has made durable what the new chain does not supply (J3). The name: Q18, in the format.
 * Concurrency Home loop, drained.
 * Failure     As it was, but for a lock that cannot be taken back, which is told.
 * Tests       runtime_test.c, tests/interop/test_commit.py, tests/interop/test_rebase.py, tests/cli/commit_test.py
 */
#include <stdlib.h>
#include <string.h>

#include "graph/filter.h"
#include "graph/live.h"

bool lies_above(const struct graph_node *m, const struct graph_node *n)
{
    for (; m; m = m->backing)
        if (m == n)
            return true;
    return false;
}

static struct graph_node *indexed_above(struct graph_node *n)
{
    for (struct graph_node *m = graph_next(n->g, NULL); m; m = graph_next(n->g, m))
        if (atomic_load(&m->index) && lies_above(m, n))
            return m;
    return NULL;
}

/* From the beginning each time: others may change the list while one goes. */
void indexes_drop(struct co *co, struct graph_node *n)
{
    struct graph_node *m;
    while ((m = indexed_above(n))) {
        m->refs++;
        co_lock(co, &n->g->index_mx);            /* nobody waits for its sections */
        index_detach(co, m);
        co_unlock(&n->g->index_mx);
        (void)node_unref(co, m);                 /* 0 unless its last user went meanwhile; then there is nobody left to tell */
    }
}

static bool is_top(const struct graph_node *n)
{
    for (struct graph_node *m = graph_next(n->g, NULL); m; m = graph_next(n->g, m))
        if (m->backing == n)
            return false;
    return true;
}

void indexes_make(struct graph_node *n)
{
    for (struct graph_node *m = graph_next(n->g, NULL); m; m = graph_next(n->g, m))
        if (m->ready && m->backing && lies_above(m, n) && (!m->read_only || is_top(m)))
            index_attach(m->backing);
}

static void forget_below(struct graph_node *n)
{
    for (struct graph_node *m = graph_next(n->g, NULL); m; m = graph_next(n->g, m))
        if (m->backing && lies_above(m->backing, n))
            atomic_store(&m->im->below_zero_from, UINT64_MAX);        /* R3 */
}

/* What is the image's, and not the node's. */
struct kept {
    struct fmt_image *im;
    unsigned lock_perm, lock_shared, data_perm, data_shared;
    char *data_filename;
    bool has_data_identity, guard_first, discard, listed, read_only;
    uint64_t data_a, data_b;
};

static struct kept keep(const struct graph_node *n)
{
    return (struct kept){ n->im, n->lock_perm, n->lock_shared, n->data_perm, n->data_shared, n->data_filename, n->has_data_identity, n->guard_first,
                          n->discard, n->bitmaps_listed, n->read_only, n->data_a, n->data_b };
}

static void put_back(struct graph_node *n, const struct kept *k)
{
    if (n->data_filename != k->data_filename)
        free(n->data_filename);
    n->im = k->im;
    n->lock_perm = k->lock_perm;
    n->lock_shared = k->lock_shared;
    n->data_perm = k->data_perm;
    n->data_shared = k->data_shared;
    n->data_filename = k->data_filename;
    n->has_data_identity = k->has_data_identity;
    n->guard_first = k->guard_first;
    n->discard = k->discard;
    n->bitmaps_listed = k->listed;
    n->data_a = k->data_a;
    n->data_b = k->data_b;
    n->read_only = k->read_only;
}

static int open_writable(struct co *co, struct graph_node *n, const struct kept *k, struct byre_err *err)
{
    n->lock_shared = n->data_shared = STOR_PERM_ALL;
    int r = node_lock(co, n, 0, err);
    if (r)
        return r;
    n->read_only = false;
    n->discard = true;                           /* zeros that are written down to it stay holes */
    n->data_filename = NULL;
    n->bitmaps_listed = false;
    return node_open_again(co, n, k->im->ops, err);
}

static int reopen_drained(struct co *co, struct graph_node *n, struct byre_err *err)
{
    struct kept k = keep(n);
    int r = open_writable(co, n, &k, err);
    if (r) {
        put_back(n, &k);
        if (node_lock(co, n, 0, NULL))
            graph_warn(n, "%s: could not be opened for writing, and its lock cannot be taken again", n->filename);
        return r;
    }
    int c = k.im->ops->close(co, k.im);
    (void)c;                                     /* it was open for reading: nothing is lost */
    free(k.data_filename);
    node_set_below(n);
    forget_below(n);
    return 0;
}

static int check_reopen(struct graph_node *n, const struct graph_user *self, unsigned perm, struct byre_err *err)
{
    if (n->is_view || n->force_share)
        return byre_fail(err, READ_ONLY, "%s: shows a part of an image, or an image that others write to, and cannot be written", n->filename);
    if (!n->im->ops->write_begin)
        return byre_fail(err, READ_ONLY, "%s: %s images can only be read", n->filename, n->im->ops->name);
    if (n->bitmaps_listed && n->im->bitmaps)
        return byre_fail(err, PERMISSION, "%s: its bitmaps are in use", n->filename);
    return perm_check(n, self, perm, "open for writing", err);
}

static int make_writable(struct co *co, struct graph_node *n, struct byre_err *err)
{
    graph_drain_begin(co, n);
    indexes_drop(co, n);
    int r = reopen_drained(co, n, err);
    filters_refresh(n->g);
    indexes_make(n);
    graph_drain_end(n);
    return r;
}

int graph_make_writable(struct co *co, struct graph_node *n, struct graph_node *overlay, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    ASSERT(overlay->backing == n);
    if (!n->read_only)
        return 0;
    int r = check_reopen(n, &overlay->backing_use, STOR_PERM_WRITE | STOR_PERM_RESIZE, err);
    if (!r)
        r = make_writable(co, n, err);
    if (!r)
        overlay->backing_use.shared |= STOR_PERM_WRITE | STOR_PERM_RESIZE;
    return r;
}

int graph_make_header_writable(struct co *co, struct graph_node *n, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    const struct graph_user nobody = { .who = "" };
    if (!n->read_only)
        return 0;
    int r = check_reopen(n, &nobody, STOR_PERM_WRITE_UNCHANGED, err);
    return r ? r : make_writable(co, n, err);
}

/* ---- and back ---- */

static int open_reading(struct co *co, struct graph_node *n, const struct kept *k, struct byre_err *err)
{
    n->lock_perm = n->data_perm = STOR_PERM_READ;
    n->lock_shared = n->data_shared = STOR_PERM_ALL;
    int r = node_lock(co, n, 0, err);
    if (r)
        return r;
    n->read_only = true;
    n->discard = false;
    n->data_filename = NULL;
    n->bitmaps_listed = false;
    return node_open_again(co, n, k->im->ops, err);
}

/* Opens n for reading, beside k, which is not closed. */
static int open_beside(struct co *co, struct graph_node *n, const struct kept *k, struct byre_err *err)
{
    int r = open_reading(co, n, k, err);
    if (r) {
        put_back(n, k);
        if (node_lock(co, n, 0, NULL))
            graph_warn(n, "%s: could not be opened for reading, and its lock cannot be taken again", n->filename);
    }
    return r;
}

/* Closing what was open for writing may change the file once more, so what is opened before, because a node needs an image (R1), is only
 * there in case that nothing can be opened behind it. */
static int close_writing(struct co *co, struct graph_node *n, struct byre_err *err)
{
    struct kept writing = keep(n);
    int r = n->im->ops->flush(co, n->im);
    if (r)
        return byre_fail_code(err, IO, r, "%s: cannot be made durable: %s", n->filename, strerror(-r));
    r = open_beside(co, n, &writing, err);
    if (r)
        return r;
    struct fmt_bitmap *bitmaps = writing.im->bitmaps;
    int closed = writing.im->ops->close(co, writing.im);
    bitmaps_free(n, bitmaps);
    free(writing.data_filename);
    struct kept between = keep(n);
    if (open_beside(co, n, &between, NULL) == 0) {
        int c = between.im->ops->close(co, between.im);
        (void)c;                                 /* it was open for reading: nothing is lost */
        free(between.data_filename);
    }
    return closed ? byre_fail_code(err, IO, closed, "%s: was not closed well: %s", n->filename, strerror(-closed)) : 0;
}

static bool has_bitmaps_of_ours(const struct graph_node *n)
{
    for (const struct fmt_bitmap *b = n->im->bitmaps; b; b = b->next)
        if (b->busy || !b->persistent)
            return true;
    return false;
}

int graph_make_read_only(struct co *co, struct graph_node *n, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    if (n->read_only)
        return 0;
    for (const struct graph_user *u = n->users; u; u = u->next)
        if (u->perm & (STOR_PERM_WRITE | STOR_PERM_RESIZE))
            return byre_fail(err, PERMISSION, "node '%s': is written by '%s'", n->name, u->who);
    if (has_bitmaps_of_ours(n))
        return byre_fail(err, BUSY, "%s: its bitmaps are in use", n->filename);
    graph_drain_begin(co, n);
    indexes_drop(co, n);
    int r = close_writing(co, n, err);
    node_set_below(n);
    for (struct graph_node *m = graph_next(n->g, NULL); m; m = graph_next(n->g, m))
        if (m->backing == n && !m->flt) {
            m->backing_use.shared &= ~(unsigned)(STOR_PERM_WRITE | STOR_PERM_RESIZE);
            node_set_below(m);
        }
    indexes_make(n);
    filters_refresh(n->g);
    graph_drain_end(n);
    return r;
}

/* ---- another backing chain ---- */

static bool is_changed(void *arg, const char *option)
{
    return !strcmp(option, "backing_file") || !strcmp(option, "backing_fmt");
}

static int set_name(struct co *co, struct graph_node *n, const struct graph_name *to, bool dry_run, struct byre_err *err)
{
    struct fmt_create_opts o = { .backing_file = (char *)(uintptr_t)to->file, .backing_fmt = (char *)(uintptr_t)to->format };
    struct fmt_amend_opts a = { .o = &o, .given = is_changed, .rebase = true, .dry_run = dry_run };
    if (!n->im->ops->amend)
        return byre_fail(err, NOT_SUPPORTED, "%s: the backing file of %s images cannot be changed", n->filename, n->im->ops->name);
    return n->im->ops->amend(co, n->im, &a, err);
}

int graph_mark_partial(struct co *co, struct graph_node *n, const char *through, struct byre_err *err)
{
    struct fmt_create_opts o = { 0 };
    struct fmt_amend_opts a = { .o = &o, .given = is_changed, .rebase = true, .partial = through };
    ASSERT_LOOP(n->g->home);
    if (!n->im->ops->amend)
        return byre_fail(err, NOT_SUPPORTED, "%s: %s images cannot say of themselves that they are parts", n->filename, n->im->ops->name);
    graph_drain_begin(co, n);
    co_lock(co, &n->whole);
    int r = n->im->ops->amend(co, n->im, &a, err);
    co_unlock(&n->whole);
    graph_drain_end(n);
    return r;
}

static int full_name(const struct graph_node *n, const char *file, char **ret, struct byre_err *err)
{
    struct name_ref ref;
    *ret = NULL;
    if (!file)
        return 0;
    int r = name_parse(n->g->policy, file, n->filename, &ref, NULL);
    *ret = strdup(r ? file : ref.path);          /* a name that nobody can open may be recorded, too */
    if (!r)
        name_ref_fini(&ref);
    return *ret ? 0 : byre_fail(err, NOMEM, "no memory for a file name");
}

static void change_edge(struct graph_node *n, struct graph_node *backing, struct graph_user *use)
{
    graph_user_remove(use);
    if (n->backing)
        graph_user_remove(&n->backing_use);
    n->backing = backing;
    if (!backing)
        return;
    int r = node_use_backing(n, NULL);
    ASSERT(r == 0);                              /* R4: `use` was let in, and it was the same */
    backing->refs++;
}

static int rebase_drained(struct co *co, struct graph_node *n, struct graph_node *backing, const struct graph_name *to, struct byre_err *err)
{
    struct graph_user use = { .who = n->name, .perm = STOR_PERM_READ, .shared = STOR_PERM_READ | STOR_PERM_WRITE_UNCHANGED };
    char *name;
    if (to->longest && graph_length(n) > to->longest)
        return byre_fail(err, BUSY, "%s: has become longer", n->filename);
    int r = full_name(n, to->file, &name, err);
    if (!r && backing)
        r = graph_user_add(backing, &use, err);
    if (!r)
        r = set_name(co, n, to, false, err);
    if (r) {
        graph_user_remove(&use);
        free(name);
        return r;
    }
    struct graph_node *old = n->backing;
    free(n->backing_filename);
    n->backing_filename = name;
    indexes_drop(co, n);
    change_edge(n, backing, &use);
    n->im->has_backing = to->file != NULL;
    graph_stand_alone(n, false);
    if (backing)
        index_attach(backing);
    filters_refresh(n->g);
    gates_update(n->g);
    (void)node_unref(co, old);                   /* read only: closing it loses nothing */
    return 0;
}

/* graph.h I1 */
int check_chain(const struct graph_node *n, const struct graph_node *backing, struct byre_err *err)
{
    unsigned depth = 1;
    for (const struct graph_node *m = backing; m; depth += !m->flt, m = m->backing)
        if (m == n || (m->has_identity && n->has_identity && m->id_a == n->id_a && m->id_b == n->id_b))
            return byre_fail(err, BACKING_LOOP, "%s: would be in its own backing chain", n->filename);
    if (depth > n->g->max_depth)
        return byre_fail(err, BACKING_DEPTH, "%s: its backing chain would have more than %u images", n->filename, n->g->max_depth);
    return 0;
}

static int may_rebase(const struct graph_node *n, const struct graph_node *backing, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    if (n->frozen)
        return byre_fail(err, PERMISSION, "node '%s': a job needs what lies below it to stay", n->name);
    if (n->read_only)
        return byre_fail(err, READ_ONLY, "%s: is open read-only", n->filename);
    int r = check_chain(n, backing, err);
    return r ? r : check_parts(n, backing, err);
}

int graph_rebase_check(struct co *co, struct graph_node *n, struct graph_node *backing, const struct graph_name *to, struct byre_err *err)
{
    int may = may_rebase(n, backing, err);
    if (may)
        return may;
    graph_drain_begin(co, n);
    co_lock(co, &n->whole);
    int r = set_name(co, n, to, true, err);
    co_unlock(&n->whole);
    graph_drain_end(n);
    return r;
}

int graph_rebase(struct co *co, struct graph_node *n, struct graph_node *backing, const struct graph_name *to, struct byre_err *err)
{
    co_lock(co, &n->g->edges_mx);
    int r = may_rebase(n, backing, err);
    if (!r) {
        graph_drain_begin(co, n);
        co_lock(co, &n->whole);
        r = rebase_drained(co, n, backing, to, err);
        co_unlock(&n->whole);
        graph_drain_end(n);
    }
    co_unlock(&n->g->edges_mx);
    return r;
}

int graph_record_backing(struct co *co, struct graph_node *n, const struct graph_name *to, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    char *name;
    if (n->read_only)
        return byre_fail(err, READ_ONLY, "%s: is open read-only", n->filename);
    int r = full_name(n, to->file, &name, err);
    if (r)
        return r;
    graph_drain_begin(co, n);
    co_lock(co, &n->whole);
    r = set_name(co, n, to, false, err);
    if (!r) {
        free(n->backing_filename);
        n->backing_filename = name;
        n->im->has_backing = to->file != NULL;
    } else {
        free(name);
    }
    co_unlock(&n->whole);
    graph_drain_end(n);
    return r;
}

void graph_stand_alone(struct graph_node *n, bool on)
{
    atomic_store(&n->alone, on);
    if (on)
        atomic_store(&n->im->below_zero_from, UINT64_MAX);
    else
        node_set_below(n);
}

static bool is_named(const struct graph_node *overlay, const char *name)
{
    struct name_ref ref;
    if (!strcmp(overlay->backing->filename, name))
        return true;
    if (name_parse(overlay->g->policy, name, overlay->filename, &ref, NULL))
        return false;
    bool same = !strcmp(overlay->backing->filename, ref.path);
    name_ref_fini(&ref);
    return same;
}

struct graph_node *graph_layer(struct co *co, struct graph_node *top, const char *name)
{
    for (struct graph_node *m = top; m->backing; m = m->backing)
        if (is_named(m, name))
            return m->backing;
    const struct graph_opener *op = &top->g->opener;
    struct stor_file_opts so = { .read_only = true, .locking = STOR_LOCK_OFF };
    struct name_ref ref;
    struct stor *s;
    uint64_t a, b;
    if (!op->identity || name_parse(top->g->policy, name, NULL, &ref, NULL))
        return NULL;
    so.nbd = name_nbd(&ref);
    int r = op->open(co, op->arg, ref.path, &so, &s, NULL);
    name_ref_fini(&ref);
    if (r)
        return NULL;
    bool has = op->identity(op->arg, s, &a, &b);
    stor_close(co, s);
    for (struct graph_node *m = top->backing; m && has; m = m->backing)
        if (m->has_identity && m->id_a == a && m->id_b == b)
            return m;
    return NULL;
}

/* ---- without content ---- */

int graph_make_empty(struct co *co, struct graph_node *n, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    if (n->read_only)
        return byre_fail(err, READ_ONLY, "%s: is open read-only", n->filename);
    if (!n->im->ops->make_empty)
        return byre_fail(err, NOT_SUPPORTED, "%s: %s images cannot be emptied", n->filename, n->im->ops->name);
    graph_drain_begin(co, n);
    co_lock(co, &n->whole);
    int r = n->im->ops->make_empty(co, n->im, err);
    co_unlock(&n->whole);
    graph_drain_end(n);
    return r;
}
