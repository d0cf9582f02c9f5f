/* SPDX-License-Identifier: MIT
 *
 * rebase.c: changes of a chain that is open: another backing chain, its name, marks, a layer without content. (Options: blockdev_reopen.c, mode.c.)
 *
 * Purpose     What commit and rebase do to the nodes around the copying.
 * Owns        Nothing beyond the calls.
 * Invariants  R1  The name in the header changes before the edge does; when either fails, both are as before.
 * Order       graph_rebase: the caller has made durable what the new chain does not supply (J3). The name: Q18, in the format.
 * Concurrency Home loop, drained.
 * Failure     As it was.
 * Tests       runtime_test.c, tests/interop/test_commit.py, tests/interop/test_rebase.py, tests/cli/commit_test.py
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graph/filter.h"
#include "graph/live.h"

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

static int amend_mark(struct co *co, struct graph_node *n, struct fmt_amend_opts *a, struct byre_err *err)
{
    struct fmt_create_opts o = { 0 };
    a->o = &o;
    a->given = is_changed;
    a->rebase = true;
    ASSERT_LOOP(n->g->home);
    if (!n->im->ops->amend)
        return byre_fail(err, NOT_SUPPORTED, "%s: %s images cannot say of themselves that they are parts", n->filename, n->im->ops->name);
    int r = node_change_begin(co, n, err);
    if (!r)
        r = n->im->ops->amend(co, n->im, a, err);
    node_change_end(n);
    return r;
}

int graph_mark_partial(struct co *co, struct graph_node *n, const struct graph_node *through, struct byre_err *err)
{
    const char *name = through->filename, *token = through->im->token;
    struct byre_err why = { 0 };
    int r = amend_mark(co, n, &(struct fmt_amend_opts){ .partial = name, .partial_token = token }, &why);
    if (r == -ENOSPC && token)                   /* a header with little room */
        r = amend_mark(co, n, &(struct fmt_amend_opts){ .partial = name }, &why);
    if (r && err)
        *err = why;
    return r;
}

int graph_give_token(struct co *co, struct graph_node *n, struct byre_err *err)
{
    uint8_t bytes[16];
    char text[2 * sizeof bytes + 1];
    const struct graph_opener *op = &n->g->opener;
    int r = op->random ? op->random(op->arg, bytes, sizeof bytes) : secret_random(bytes, sizeof bytes);
    if (r)
        return byre_fail_code(err, IO, r, "%s: no random numbers for a token", n->filename);
    for (size_t i = 0; i < sizeof bytes; i++)
        snprintf(text + 2 * i, 3, "%02x", bytes[i]);
    return amend_mark(co, n, &(struct fmt_amend_opts){ .token = text }, err);
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

static int rebase_drained(struct co *co, struct graph_node *n, struct graph_node *backing, const struct graph_name *to, struct byre_err *err)
{
    struct graph_user use = { .who = n->name, .perm = STOR_PERM_READ, .shared = STOR_PERM_READ | STOR_PERM_WRITE_UNCHANGED };
    char *name;
    if (to->longest && graph_length(n) > to->longest)
        return byre_fail(err, BUSY, "%s: has become longer", n->filename);
    int r = full_name(n, to->file, &name, err);
    if (!r)
        r = edge_prepare(co, n, backing, err);
    if (!r && backing)
        r = graph_user_add(backing, &use, err);
    if (!r)
        r = set_name(co, n, to, false, err);
    if (r) {
        graph_user_remove(&use);
        free(name);
        return r;
    }
    free(n->backing_filename);
    n->backing_filename = name;
    n->im->has_backing = to->file != NULL;
    indexes_drop(co, n);
    graph_user_remove(&use);                     /* R1: it was let in, and the edge's is the same */
    edge_to_backing(co, n, backing);
    graph_stand_alone(n, false);
    return 0;
}

/* graph.h I1 */
int check_chain(const struct graph_node *n, const struct graph_node *backing, struct byre_err *err)
{
    unsigned depth = 1;
    if (backing && backing->ending)
        return byre_fail(err, NOT_FOUND, "node '%s' is being closed", backing->name);
    if (backing && backing->inactive && !n->inactive)       /* active.c A4 */
        return byre_fail(err, PERMISSION, "node '%s' is inactive, and cannot lie below the active node '%s'", backing->name, n->name);
    for (const struct graph_node *m = backing; m; depth += !m->flt, m = m->backing)
        if (m == n || (m->has_identity && n->has_identity && m->id_a == n->id_a && m->id_b == n->id_b))
            return byre_fail(err, BACKING_LOOP, "%s: would be in its own backing chain", n->filename);
    if (backing && n->g->sides && graph_goes_to((struct graph_node *)(uintptr_t)backing, n))
        return byre_fail(err, BACKING_LOOP, "%s: what is to lie below it sends requests to it", n->filename);
    if (backing && graph_rests_on(backing, n))
        return byre_fail(err, BACKING_LOOP, "%s: what is to lie below it has its files in it", n->filename);
    if (depth > n->g->max_depth)
        return byre_fail(err, BACKING_DEPTH, "%s: its backing chain would have more than %u images", n->filename, n->g->max_depth);
    return 0;
}

static int may_rebase(struct graph_node *n, struct graph_node *backing, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    return n->read_only ? byre_fail(err, READ_ONLY, "%s: is open read-only", n->filename) : check_below_of(n, backing, err);
}

int graph_rebase_check(struct co *co, struct graph_node *n, struct graph_node *backing, const struct graph_name *to, struct byre_err *err)
{
    int may = may_rebase(n, backing, err);
    if (may)
        return may;
    int r = node_change_begin(co, n, err);
    if (!r)
        r = set_name(co, n, to, true, err);
    node_change_end(n);
    return r;
}

void graph_tell_linked(struct co *co, struct graph *g, const char *overlay, const char *backing)
{
    if (g->linked && backing)
        g->linked(co, g->linked_arg, overlay, backing);
}

int graph_rebase(struct co *co, struct graph_node *n, struct graph_node *backing, const struct graph_name *to, struct byre_err *err)
{
    graph_edges_hold(co, n->g);
    int r = may_rebase(n, backing, err);
    if (!r) {
        r = node_change_begin(co, n, err);
        if (!r)
            r = rebase_drained(co, n, backing, to, err);
        node_change_end(n);
    }
    if (!r)
        node_note_below(co, n);
    if (!r)
        graph_tell_linked(co, n->g, n->filename, n->backing_filename);
    graph_edges_let(co, n->g);
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
    r = node_change_begin(co, n, err);
    if (!r)
        r = set_name(co, n, to, false, err);
    if (!r) {
        free(n->backing_filename);
        n->backing_filename = name;
        n->im->has_backing = to->file != NULL;
    } else {
        free(name);
    }
    node_change_end(n);
    if (!r)
        node_note_below(co, n);
    if (!r)
        graph_tell_linked(co, n->g, n->filename, n->backing_filename);
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
    struct stor_file_opts so = { .read_only = true, .locking = STOR_LOCK_OFF, .passed = top->g->passed };
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
    int r = node_change_begin(co, n, err);
    if (!r)
        r = n->im->ops->make_empty(co, n->im, err);
    node_change_end(n);
    return r;
}
