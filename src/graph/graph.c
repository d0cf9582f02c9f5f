/* SPDX-License-Identifier: MIT
 *
 * graph.c: the graph, its list of nodes, how nodes end, and resize.
 *
 * Purpose     Names and finds nodes, counts their references, closes what nobody needs any more.
 * Owns        struct graph and struct graph_node; the image and the store below belong to the node.
 * Invariants  I1  A node in the list has refs > 0 or is being opened or closed.
 *             I2  node->backing holds one reference of the node it names.
 *             I3  Names are unique in a graph.
 * Order       A node is flushed and closed before its backing node.
 * Concurrency Home loop, except the descriptions, which read what is constant while a node is open.
 * Failure     Closing goes on after an error and returns the first.
 * Tests       graph_test.c, open_test.c
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graph/filter.h"
#include "graph/throttle.h"

const uint8_t graph_zero_page[ZERO_PAGE_BYTES] __attribute__((aligned(4096)));

int graph_new(struct rt_loop *home, const struct graph_opts *o, struct graph **ret_g, struct byre_err *err)
{
    struct graph *g = calloc(1, sizeof *g);
    if (!g)
        return byre_fail(err, NOMEM, "no memory for a graph");
    g->home = home;
    g->opener = o->opener ? *o->opener : graph_file_opener;
    g->policy = o->policy;
    g->max_depth = o->max_depth ? o->max_depth : GRAPH_DEPTH_DEFAULT;
    g->secrets = o->secrets;
    g->warn = o->warn;
    g->warn_arg = o->warn_arg;
    g->index_limit = index_limit_of(o->index_bytes);
    list_init(&g->nodes);
    list_init(&g->throttles);
    *ret_g = g;
    return 0;
}

void graph_free(struct graph *g)
{
    if (!g)
        return;
    ASSERT(list_empty(&g->nodes));
    throttle_groups_free(g);
    free(g);
}

/* ---- nodes ---- */

/* Letters, digits, '-', '.', '_'; a letter first: what the ecosystem takes as a name. */
bool node_name_is_good(const char *name)
{
    size_t len = strlen(name);
    if (len > GRAPH_NAME_MAX)
        return false;
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)name[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        bool other = (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
        if (!letter && (!other || i == 0))
            return false;
    }
    return len > 0;
}

/* A node has it, or the file of one. */
static bool name_taken(struct graph *g, const char *name)
{
    LIST_FOR(l, &g->nodes) {
        const struct graph_node *n = CONTAINER_OF(l, struct graph_node, link);
        if (!strcmp(n->name, name) || !strcmp(n->file_name, name) || !strcmp(n->data_name, name))
            return true;
    }
    return false;
}

static int name_file(struct graph_node *n, char to[GRAPH_NAME_MAX + 1], const char *name, struct byre_err *err)
{
    if (name && name_taken(n->g, name))
        return byre_fail(err, EXISTS, "there is a node '%s' already", name);
    if (name)
        snprintf(to, GRAPH_NAME_MAX + 1, "%s", name);
    return 0;
}

int node_name_files(struct graph_node *n, const char *file, const char *data, struct byre_err *err)
{
    int r = name_file(n, n->file_name, file, err);
    return r ? r : name_file(n, n->data_name, data, err);
}

int node_new(struct graph *g, const char *name, struct graph_node **ret_n, struct byre_err *err)
{
    if (name && !node_name_is_good(name))
        return byre_fail(err, BAD_ARGUMENT, "'%s' is no acceptable node name (a letter, then at most %d letters, digits, '-', '.', '_')", name, GRAPH_NAME_MAX - 1);
    if (name && name_taken(g, name))
        return byre_fail(err, EXISTS, "there is a node '%s' already", name);
    struct graph_node *n = calloc(1, sizeof *n);
    if (!n)
        return byre_fail(err, NOMEM, "no memory for a node");
    n->g = g;
    if (name)
        snprintf(n->name, sizeof n->name, "%s", name);
    else
        snprintf(n->name, sizeof n->name, "#block%u", g->next_name++);
    if (gate_init(n)) {
        free(n);
        return byre_fail(err, NOMEM, "no memory for a node");
    }
    list_push_back(&g->nodes, &n->link);
    n->refs = 1;
    *ret_n = n;
    return 0;
}

void node_free(struct graph_node *n)
{
    ASSERT(!n->im && !n->backing && !n->users && !n->drains && !atomic_load(&n->watches));
    list_remove(&n->link);
    gate_fini(n);
    free(n->filename);
    free(n->backing_filename);
    free(n->data_filename);
    free(n->key_secret);
    node_how_free(n->how);
    free(n);
}

/* n ends. *ret_below, *ret_file: what it held a reference of; NULL: nothing. */
static int node_end(struct co *co, struct graph_node *n, struct graph_node **ret_below, struct graph_node **ret_file)
{
    int r = 0;
    gate_empty(co, n);
    threshold_free(co, n);
    index_detach(co, n);
    if (n->im) {
        struct fmt_bitmap *bitmaps = n->im->bitmaps;
        r = n->im->ops->close(co, n->im);
        n->im = NULL;
        bitmaps_free(n, bitmaps);
    }
    if (n->backing)
        graph_user_remove(&n->backing_use);
    *ret_below = n->backing;
    n->backing = NULL;
    graph_user_remove(&n->file_use);
    *ret_file = n->file;
    node_free(n);
    return r;
}

/* A node over the bare file f has ended: what it held of locks is not wanted any more. */
static int leave_file(struct co *co, struct graph_node *f)
{
    struct graph_node *below, *file;
    if (--f->refs == 0) {
        int r = node_end(co, f, &below, &file);
        ASSERT(!below && !file);
        return r;
    }
    if (node_lock(co, f, 0, NULL))
        graph_warn(f, "%s: its lock cannot be lowered again", f->filename);
    return 0;
}

int node_unref(struct co *co, struct graph_node *n)
{
    int first = 0;
    while (n) {
        struct graph_node *below, *file;
        ASSERT(n->refs > 0);
        if (--n->refs)
            break;
        int r = node_end(co, n, &below, &file);
        int f = file ? leave_file(co, file) : 0;
        if (!first)
            first = r ? r : f;
        n = below;
    }
    return first;
}

int graph_close(struct co *co, struct graph_node *n)
{
    ASSERT_LOOP(n->g->home);
    return node_unref(co, n);
}

void graph_warn(const struct graph_node *n, const char *fmt, ...)
{
    char text[400];
    va_list ap;
    if (!n->g->warn)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    n->g->warn(n->g->warn_arg, text);
}

void graph_watch_corruption(struct graph *g, graph_corrupted_fn *fn, void *arg)
{
    ASSERT_LOOP(g->home);
    g->corrupted = fn;
    g->corrupted_arg = arg;
}

/* ---- description ---- */

const char *graph_node_name(const struct graph_node *n) { return n->name; }
const char *graph_file_node_name(const struct graph_node *n) { return n->file_name[0] ? n->file_name : NULL; }
enum graph_detect graph_detect_zeroes(const struct graph_node *n) { return n->detect; }
const char *graph_filename(const struct graph_node *n) { return n->filename; }
const struct fmt_ops *graph_format(const struct graph_node *n) { return n->im->ops; }
struct fmt_image *graph_image(struct graph_node *n) { return n->im; }
struct stor *graph_store(struct graph_node *n) { return n->im->store; }
const char *graph_data_filename(const struct graph_node *n) { return n->data_filename ? n->data_filename : n->filename; }
struct graph_node *graph_backing(const struct graph_node *n) { return n->backing; }
const char *graph_backing_filename(const struct graph_node *n) { return n->backing_filename; }
const struct fill_costs *graph_fill_costs(const struct graph_node *n) { return &n->fill; }
bool graph_read_only(const struct graph_node *n) { return n->read_only; }
bool graph_probed(const struct graph_node *n) { return n->probed; }

uint64_t graph_length(const struct graph_node *n)
{
    return round_up(atomic_load_explicit(&n->im->size, memory_order_acquire), SECTOR);
}

struct graph_node *graph_find(struct graph *g, const char *node_name)
{
    LIST_FOR(l, &g->nodes) {
        struct graph_node *n = CONTAINER_OF(l, struct graph_node, link);
        if (!strcmp(n->name, node_name) && !node_is_hidden(n))
            return n;
    }
    return NULL;
}

struct graph_node *node_next(struct graph *g, struct graph_node *prev)
{
    struct list_node *l = prev ? list_next(&g->nodes, &prev->link) : list_first(&g->nodes);
    return l ? CONTAINER_OF(l, struct graph_node, link) : NULL;
}

struct graph_node *graph_next(struct graph *g, struct graph_node *prev)
{
    do
        prev = node_next(g, prev);
    while (prev && node_is_hidden(prev));
    return prev;
}

/* ---- resize ---- */

/* The range that growing uncovers must read zeros: where a longer backing image has data (FEATURES 11.009), and in the
 * rest of the old last cluster, which may hold bytes behind the old end (Q19). */
static int clear_uncovered(struct co *co, struct graph_node *n, uint64_t from, uint64_t to)
{
    uint64_t cluster = n->im->cluster, below = n->backing ? graph_length(n->backing) : 0;
    uint64_t end = min_u64(to, round_up(max_u64(below, from), cluster));
    return end > from ? zero_range(co, n, from, end - from, 0) : 0;
}

static int resize_drained(struct co *co, struct graph_node *n, uint64_t size, enum fmt_prealloc prealloc, struct byre_err *err)
{
    const struct fmt_ops *ops = n->im->ops;
    uint64_t old = graph_length(n);
    int r = ops->resize(co, n->im, size, prealloc, err);
    if (r || !ops->resize_commit)
        return r;
    int z = size > old ? clear_uncovered(co, n, old, size) : 0;
    r = ops->resize_commit(co, n->im, z == 0, err);
    return z ? byre_fail_code(err, IO, z, "%s: the new part cannot be cleared; the size is still %" PRIu64, n->filename, old) : r;
}

/* The same, and its bitmaps follow. */
static int resize_all(struct co *co, struct graph_node *n, uint64_t size, enum fmt_prealloc prealloc, struct byre_err *err)
{
    struct bitmaps_resize *z;
    int r = bitmaps_resize_begin(co, n, round_up(size, SECTOR), &z, err);
    if (r)
        return r;
    r = resize_drained(co, n, size, prealloc, err);
    bitmaps_resize_end(co, n, z, graph_length(n) == round_up(size, SECTOR));
    return r;
}

int graph_resize(struct co *co, struct graph_node *n, uint64_t size, enum fmt_prealloc prealloc, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    if (n->read_only)
        return byre_fail(err, READ_ONLY, "%s: is open read-only", n->filename);
    if (!n->im->ops->resize)
        return byre_fail(err, NOT_SUPPORTED, "%s: %s images cannot be resized", n->filename, n->im->ops->name);
    int r = perm_check(n, NULL, STOR_PERM_RESIZE, "resize", err);
    if (!r)
        r = node_lock(co, n, STOR_PERM_RESIZE, err);
    if (r)
        return r;
    graph_drain_begin(co, n);
    co_lock(co, &n->whole);
    r = resize_all(co, n, size, prealloc, err);
    co_unlock(&n->whole);
    if (n->file && n->is_raw && n->file->im->size < n->im->size)
        atomic_store(&n->file->im->size, n->im->size);      /* it is the same file */
    filters_refresh(n->g);
    graph_drain_end(n);
    if (node_lock(co, n, 0, NULL) && !r)
        r = byre_fail(err, LOCKED, "%s: was resized, but its lock cannot be lowered again", n->filename);
    return r;
}

/* ---- internal snapshots ---- */

struct applying { struct graph_node *n; struct bitmaps_revert *z; };

static int before_apply(struct co *co, void *arg, uint64_t size, struct byre_err *err)
{
    struct applying *a = arg;
    return bitmaps_revert_begin(co, a->n, size, &a->z, err);
}

static int apply_drained(struct co *co, struct graph_node *n, const struct fmt_snapshot_req *rq, struct fmt_snapshot_info *ret, struct byre_err *err)
{
    struct applying a = { .n = n };
    struct fmt_snapshot_req with = *rq;
    bool touched = false;
    with.before = before_apply;
    with.arg = &a;
    with.touched = &touched;
    int r = n->im->ops->snapshot(co, n->im, &with, ret, err);
    bitmaps_revert_end(co, n, a.z, touched);
    return r;
}

int graph_snapshot(struct co *co, struct graph_node *n, const struct fmt_snapshot_req *rq, struct fmt_snapshot_info *ret, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    if (!n->im->ops->snapshot)
        return byre_fail(err, NOT_SUPPORTED, "%s: %s images have no internal snapshots", n->filename, n->im->ops->name);
    if (n->read_only)
        return byre_fail(err, READ_ONLY, "%s: is open read-only", n->filename);
    int r = rq->op == FMT_SNAPSHOT_APPLY ? perm_check(n, NULL, STOR_PERM_WRITE | STOR_PERM_RESIZE, "apply a snapshot", err) : 0;
    if (r)
        return r;
    graph_drain_begin(co, n);
    co_lock(co, &n->whole);
    r = rq->op == FMT_SNAPSHOT_APPLY ? apply_drained(co, n, rq, ret, err) : n->im->ops->snapshot(co, n->im, rq, ret, err);
    co_unlock(&n->whole);
    filters_refresh(n->g);
    graph_drain_end(n);
    return r;
}

/* ---- options ---- */

static int amend_resize(struct co *co, void *arg, uint64_t size, struct byre_err *err)
{
    return resize_all(co, arg, size, FMT_PREALLOC_OFF, err);
}

int graph_amend(struct co *co, struct graph_node *n, struct fmt_amend_opts *a, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    if (n->read_only)
        return byre_fail(err, READ_ONLY, "%s: is open read-only", n->filename);
    if (!n->im->ops->amend)
        return byre_fail(err, NOT_SUPPORTED, "%s: options of %s images cannot be changed", n->filename, n->im->ops->name);
    a->resize = amend_resize;
    a->resize_arg = n;
    int r = perm_check(n, NULL, STOR_PERM_RESIZE, "amend", err);
    if (!r)
        r = node_lock(co, n, STOR_PERM_RESIZE, err);
    if (r)
        return r;
    graph_drain_begin(co, n);
    co_lock(co, &n->whole);
    r = n->im->ops->amend(co, n->im, a, err);
    co_unlock(&n->whole);
    filters_refresh(n->g);
    graph_drain_end(n);
    if (node_lock(co, n, 0, NULL) && !r)
        r = byre_fail(err, LOCKED, "%s: was amended, but its lock cannot be lowered again", n->filename);
    return r;
}
