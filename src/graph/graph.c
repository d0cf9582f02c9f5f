/* SPDX-License-Identifier: MIT
 *
 * graph.c: the graph, its list of nodes, how nodes end, and resize.
 *
 * Purpose     Names and finds nodes, counts their references, closes what nobody needs any more.
 * Owns        struct graph and struct graph_node; the image and the store below belong to the node.
 * Invariants  I1  A node in the list has refs > 0 or is being opened or closed.
 *             I2  node->backing holds one reference of the node it names.
 *             I3  Names are unique in a graph, among nodes that do not end.
 *             I4  A node ends once. Who finds it in the list while it ends (node_next) may take a reference, and it is freed when that is given back.
 *                 He does nothing with its image, which is being closed. graph_next and graph_find do not find it.
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

#include "base/id.h"
#include "graph/active.h"
#include "graph/filter.h"
#include "graph/mode.h"
#include "stor/nbd.h"
#include "graph/throttle.h"
#include "graph/stats_priv.h"

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
    g->tls = o->tls;
    g->passed = o->passed;
    g->prs = o->prs;
    g->warn = o->warn;
    g->warn_arg = o->warn_arg;
    g->linked = o->linked;
    g->linked_arg = o->linked_arg;
    g->index_limit = index_limit_of(o->index_bytes);
    list_init(&g->nodes);
    list_init(&g->throttles);
    list_init(&g->unders);
    list_init(&g->makings);
    *ret_g = g;
    return 0;
}

void graph_free(struct graph *g)
{
    if (!g)
        return;
    ASSERT(list_empty(&g->nodes) && list_empty(&g->makings) && !g->partings.n);
    throttle_groups_free(g);
    free(g);
}

/* ---- nodes ---- */

/* Letters, digits, '-', '.', '_'; a letter first: what the ecosystem takes as a name. */
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
    if (name && !id_is_good(name, GRAPH_NAME_MAX))
        return byre_fail(err, BAD_ARGUMENT, "'%s' is no acceptable node name (a letter, then at most %d letters, digits, '-', '.', '_')", name, GRAPH_NAME_MAX - 1);
    if (name && name_taken(g, name))
        return byre_fail(err, EXISTS, "there is a node '%s' already", name);
    struct graph_node *n = calloc(1, sizeof *n);
    if (!n)
        return byre_fail(err, NOMEM, "no memory for a node");
    n->g = g;
    n->serial = ++g->next_serial;
    if (name)
        snprintf(n->name, sizeof n->name, "%s", name);
    else
        snprintf(n->name, sizeof n->name, "#block%u", g->next_name++);
    if (stats_new(n, g->home) || gate_init(n)) {
        stats_free(n->stats);
        free(n);
        return byre_fail(err, NOMEM, "no memory for a node");
    }
    pthread_mutex_init(&n->ride_lock, NULL);
    list_push_back(&g->nodes, &n->link);
    n->refs = 1;
    *ret_n = n;
    return 0;
}

static void node_dispose(struct graph_node *n)
{
    ASSERT(!n->im && !n->backing && !n->users && !n->drains && !atomic_load(&n->watches) && !atomic_load(&n->rides));
    gate_fini(n);
    pthread_mutex_destroy(&n->ride_lock);
    free(n->filename);
    free(n->backing_filename);
    free(n->data_filename);
    free(n->key_secret);
    free(n->was_backing);
    node_how_free(n->how);
    stats_free(n->stats);
    free(n);
}

void node_free(struct graph_node *n)
{
    list_remove(&n->link);
    node_dispose(n);
}

/* What an ended node held references of; NULL: nothing. */
struct held { struct graph_node *below, *file, *data, *side; };

static int node_end(struct co *co, struct graph_node *n, struct held *ret)
{
    int r = 0;
    while (n->looks)
        co_wait(co, &n->looked);
    gate_empty(co, n);
    threshold_free(co, n);
    stats_quiet(co, n);
    index_detach(co, n);
    struct fmt_image *im = n->im;
    if (im) {
        struct fmt_bitmap *bitmaps = im->bitmaps;
        n->im = n->flt ? im : NULL;              /* it is gone before its store is closed, and others go by the list meanwhile */
        r = im->ops->close(co, im);
        n->im = NULL;
        bitmaps_free(n, bitmaps);
    }
    if (n->backing)
        graph_user_remove(&n->backing_use);
    graph_user_remove(&n->file_use);
    graph_user_remove(&n->data_use);
    graph_user_remove(&n->side_use);
    *ret = (struct held){ n->backing, n->file, n->data_node, n->side };
    hastes_forget(n);
    n->g->sides -= n->side != NULL;
    n->backing = n->side = NULL;
    list_remove(&n->link);
    while (n->refs)                              /* a drain came by while it ended (I4) */
        co_wait(co, &n->let_go);
    node_dispose(n);
    return r;
}

/* A node over the file f has ended, and others go on: what it held of locks is not wanted any more. Its reference is not given back here: the others
 * may end meanwhile. */
static void leave_file(struct co *co, struct graph_node *f)
{
    int r = f->flt ? 0 : node_lock(co, f, 0, NULL);          /* only lowers it */
    (void)r;
    mode_writer_gone(co, graph_skip_filters(f)); /* an image is closed now, or by its next user */
}

/* What is not below but beside n: given up now, or, by its last user, later. */
static void end_later(struct graph_node *n, struct graph_node **last)
{
    n->end_next = *last;
    *last = n;
}

static void give_up_file(struct co *co, struct graph_node *f, struct graph_node **last)
{
    if (f && f->refs > 1)
        leave_file(co, f);
    if (f && f->refs > 1)
        f->refs--;
    else if (f)
        end_later(f, last);
}

int node_unref(struct co *co, struct graph_node *n)
{
    int first = 0;
    struct graph_node *last = NULL;              /* sides and files of which nobody else has a reference, by end_next */
    while (n) {
        struct held h = { NULL };
        ASSERT(n->refs > 0);
        if (--n->refs == 0 && n->ending) {
            co_wake_all(&n->let_go);
        } else if (n->refs == 0) {
            n->ending = true;
            int r = node_end(co, n, &h);
            first = first ? first : r;
        }
        if (h.side && h.side->refs > 1)
            h.side->refs--;
        else if (h.side)
            end_later(h.side, &last);
        give_up_file(co, h.file, &last);
        give_up_file(co, h.data, &last);
        n = h.below;
        if (n && n->refs > 1)
            mode_writer_gone(co, graph_skip_filters(n));         /* what has ended may be a filter through which it was written */
        if (!n && last) {
            n = last;
            last = n->end_next;
        }
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

struct secret_set *graph_secrets(const struct graph *g) { return g->secrets; }

struct fdsets *graph_passed(const struct graph *g) { return g->passed; }
const char *graph_node_name(const struct graph_node *n) { return n->name; }
const char *graph_file_node_name(const struct graph_node *n) { return n->file_name[0] ? n->file_name : NULL; }
enum graph_detect graph_detect_zeroes(const struct graph_node *n) { return n->detect; }
const char *graph_filename(const struct graph_node *n) { return n->filename; }
const struct fmt_ops *graph_format(const struct graph_node *n) { return n->im->ops; }
struct fmt_image *graph_image(struct graph_node *n) { return n->im; }
struct stor *graph_store(struct graph_node *n) { return n->im->store; }
const char *graph_data_filename(const struct graph_node *n) { return n->data_filename && !n->has_header ? n->data_filename : n->filename; }
struct graph_node *graph_backing(const struct graph_node *n) { return n->backing; }
const char *graph_backing_filename(const struct graph_node *n) { return n->backing_filename; }
const struct fill_costs *graph_fill_costs(const struct graph_node *n) { return &n->fill; }
bool graph_read_only(const struct graph_node *n) { return n->read_only; }
bool graph_probed(const struct graph_node *n) { return n->probed; }
struct graph *graph_of(const struct graph_node *n) { return n->g; }

void graph_ref(struct graph_node *n)
{
    ASSERT_LOOP(n->g->home);
    n->refs++;
}

uint64_t graph_length(const struct graph_node *n)
{
    return round_up(atomic_load_explicit(&n->im->size, memory_order_acquire), SECTOR);
}

struct graph_node *graph_find(struct graph *g, const char *node_name)
{
    LIST_FOR(l, &g->nodes) {
        struct graph_node *n = CONTAINER_OF(l, struct graph_node, link);
        if (!strcmp(n->name, node_name) && !node_is_hidden(n) && n->ready && !n->ending)
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
    while (prev && (node_is_hidden(prev) || !prev->ready || prev->ending));      /* one that is being opened or closed may have no image (I4) */
    return prev;
}

bool graph_look_begin(struct graph_node *n)
{
    ASSERT_LOOP(n->g->home);
    n->looks += !n->ending;
    return !n->ending;
}

void graph_look_end(struct graph_node *n)
{
    ASSERT(n->looks);
    if (--n->looks == 0)
        co_wake_all(&n->looked);
}

void graph_abandon(struct graph_node *n)
{
    ASSERT_LOOP(n->g->home);
    for (; n; n = n->flt ? n->backing : n->file) {
        if (n->im->store)
            stor_nbd_abandon(n->im->store);
        if (n->im->second)
            stor_nbd_abandon(n->im->second);
        if (n->data_node)
            graph_abandon(n->data_node);         /* not deeper than formats lie over one another (UNDER_LEVELS_MAX) */
    }
}

_Static_assert(GRAPH_COMPLAINT_MAX == STOR_NBD_COMPLAINT_MAX, "a complaint is handed on as it is");

bool graph_complaint(const struct graph_node *n, int error, uint64_t since_ns, char ret[GRAPH_COMPLAINT_MAX])
{
    for (; n; n = n->backing)
        for (const struct graph_node *f = n; f; f = f->flt ? f->backing : f->file)
            if ((f->im->store && stor_nbd_complaint(f->im->store, error, since_ns, ret)) || (f->im->data && stor_nbd_complaint(f->im->data, error, since_ns, ret)))
                return true;
    return false;
}

/* The stores of n itself. */
static void hurry_files(const struct graph_node *n, uint64_t ns)
{
    if (n->flt || !n->im)
        return;
    if (n->im->store)
        stor_nbd_hurry(n->im->store, ns);
    if (n->im->second)
        stor_nbd_hurry(n->im->second, ns);
}

void graph_hurry(struct graph_node *n, uint64_t ns)
{
    ASSERT_LOOP(n->g->home);
    for (; n; n = n->flt ? n->backing : n->file) {
        hurry_files(n, ns);
        if (n->data_node)
            graph_hurry(n->data_node, ns);
    }
}

void graph_hurry_all(struct graph *g, uint64_t ns)
{
    ASSERT_LOOP(g->home);
    for (struct graph_node *n = node_next(g, NULL); n; n = node_next(g, n))
        hurry_files(n, ns);
}

int graph_close_hurried(struct co *co, struct graph_node *n)
{
    ASSERT_LOOP(n->g->home);
    for (struct graph_node *m = n; m; m = m->flt ? m->backing : m->file) {
        if (m->data_node && m->data_node->refs > 1)
            graph_hurry(m->data_node, n->g->patience);
        if (m->refs > 1) {
            graph_hurry(m, n->g->patience);
            break;
        }
    }
    return node_unref(co, n);
}

/* ---- changes of the image as a whole ---- */

void graph_hold_image(struct co *co, struct graph_node *n) { co_lock(co, &n->whole); }
void graph_release_image(struct graph_node *n) { co_unlock(&n->whole); }

void node_whole_begin(struct co *co, struct graph_node *n)
{
    graph_shut_begin(co, n);
    graph_hold_image(co, n);
}

void node_whole_end(struct graph_node *n)
{
    graph_release_image(n);
    graph_shut_end(n);
}

int node_change_begin(struct co *co, struct graph_node *n, struct byre_err *err)
{
    node_whole_begin(co, n);
    int r = active_need(n, "be changed", err);
    return !r && n->read_only ? byre_fail(err, READ_ONLY, "%s: is open read-only", n->filename) : r;
}

void node_change_end(struct graph_node *n)
{
    filters_refresh(n->g);
    node_whole_end(n);
}

/* ---- resize ---- */

#define FOLLOW_MAX 8u                    /* disks that follow one another (graph_watch_size) */

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
    uint64_t old = atomic_load(&n->im->size);    /* to the byte: what lies behind it in its last sector reads zeros so far */
    int r = ops->resize(co, n->im, size, prealloc, err);
    if (r || !ops->resize_commit)
        return r;
    int z = size > old ? clear_uncovered(co, n, old, size) : 0;
    r = ops->resize_commit(co, n->im, z == 0, err);
    return z ? byre_fail_code(err, IO, z, "%s: the new part cannot be cleared; the size is still %" PRIu64, n->filename, old) : r;
}

/* The same, and its bitmaps follow. alone: edges may be let before it has ended, and whoever came for a bitmap then would keep bits that are about to go. */
static int resize_all(struct co *co, struct graph_node *n, uint64_t size, enum fmt_prealloc prealloc, bool alone, struct byre_err *err)
{
    struct bitmaps_resize *z;
    uint64_t old = graph_length(n);
    int r = bitmaps_resize_begin(co, n, round_up(size, SECTOR), alone, &z, err);
    if (r)
        return r;
    r = resize_drained(co, n, size, prealloc, err);
    bitmaps_resize_end(co, n, z, graph_length(n) == round_up(size, SECTOR));
    if (graph_length(n) > old)
        mode_forget_below(n);                    /* nobody has written the new part yet */
    return r;
}

static int resize(struct co *co, struct graph_node *n, const struct graph_user *self, const void *who, uint64_t size, enum fmt_prealloc prealloc, struct byre_err *err)
{
    if (n->g->resizes > FOLLOW_MAX)
        return byre_fail(err, LIMIT, "%s: too many disks that follow one another would be resized", n->filename);
    if (n->inactive)
        return active_need(n, "be resized", err);
    if (n->read_only)
        return byre_fail(err, READ_ONLY, "%s: is open read-only", n->filename);
    if (!n->im->ops->resize)
        return byre_fail(err, NOT_SUPPORTED, "%s: %s images cannot be resized", n->filename, n->im->ops->name);
    int r = perm_check(n, self, STOR_PERM_RESIZE, "resize", err);
    if (!r)
        r = watches_resize_begin(co, n, who, round_up(size, SECTOR), err);
    if (!r)
        r = perm_check(n, self, STOR_PERM_RESIZE, "resize", err);      /* that may have taken its time */
    if (!r)
        r = node_lock(co, n, STOR_PERM_RESIZE, err);
    if (r)
        return r;
    r = node_change_begin(co, n, err);
    uint64_t old = graph_length(n);
    if (!r)
        r = resize_all(co, n, size, prealloc, self != NULL, err);
    if (graph_length(n) != old)
        watches_resized(n, graph_length(n));
    uint64_t len;
    if (n->file && n->is_raw && !stor_length(co, n->im->store, &len) && n->file->im->size < round_up(len, SECTOR))
        atomic_store(&n->file->im->size, round_up(len, SECTOR));     /* it is the same file, of which this may be a part */
    node_change_end(n);
    if (node_lock(co, n, 0, NULL) && !r)
        r = byre_fail(err, LOCKED, "%s: was resized, but its lock cannot be lowered again", n->filename);
    return r;
}

int node_set_length(struct co *co, struct graph_node *n, uint64_t size, bool only_grow)
{
    ASSERT_LOOP(n->g->home);
    int r = watches_allow(n, "change its length", NULL);
    if (r || n->read_only)
        return r ? r : -EROFS;
    node_whole_begin(co, n);
    if (!only_grow || graph_length(n) < size)
        r = resize_all(co, n, size, FMT_PREALLOC_OFF, false, NULL);
    node_change_end(n);
    return r;
}

static int resize_followed(struct co *co, struct graph_node *n, const struct graph_user *self, uint64_t size, enum fmt_prealloc prealloc, struct byre_err *err)
{
    uint64_t old = graph_length(n);              /* not before edges are held: another may be at it */
    n->g->resizes++;
    int r = resize(co, n, self, &old, size, prealloc, err);
    watches_resize_end(co, n, &old, graph_length(n) != old);
    n->g->resizes--;
    return r;
}

int node_resize(struct co *co, struct graph_node *n, const struct graph_user *self, uint64_t size, enum fmt_prealloc prealloc, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    graph_edges_hold(co, n->g);
    int r = resize_followed(co, n, self, size, prealloc, err);
    graph_edges_let(co, n->g);
    return r;
}

int graph_resize_for(struct co *co, struct graph_user *u, uint64_t size, struct byre_err *err)
{
    struct graph_node *n = u->node;
    ASSERT_LOOP(n->g->home);
    int r = perm_check(n, u, STOR_PERM_RESIZE, u->who, err);
    if (r)
        return r;
    u->perm |= STOR_PERM_RESIZE;                 /* nobody comes who would not put up with it: nothing else keeps him away when edges are let */
    r = resize_followed(co, n, u, size, FMT_PREALLOC_OFF, err);
    u->perm &= ~(unsigned)STOR_PERM_RESIZE;
    return r;
}

int graph_resize(struct co *co, struct graph_node *n, uint64_t size, enum fmt_prealloc prealloc, struct byre_err *err)
{
    return node_resize(co, n, NULL, size, prealloc, err);
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
    if (n->inactive)
        return active_need(n, "have a snapshot made, applied or deleted", err);
    if (n->read_only)
        return byre_fail(err, READ_ONLY, "%s: is open read-only", n->filename);
    int r = rq->op == FMT_SNAPSHOT_APPLY ? perm_check(n, NULL, STOR_PERM_WRITE | STOR_PERM_RESIZE, "apply a snapshot", err) : 0;
    if (!r && rq->op == FMT_SNAPSHOT_APPLY)
        r = watches_allow(n, "become another", err);
    if (r)
        return r;
    r = node_change_begin(co, n, err);
    if (!r)
        r = rq->op == FMT_SNAPSHOT_APPLY ? apply_drained(co, n, rq, ret, err) : n->im->ops->snapshot(co, n->im, rq, ret, err);
    node_change_end(n);
    return r;
}

/* ---- options ---- */

static int amend_resize(struct co *co, void *arg, uint64_t size, struct byre_err *err)
{
    int r = watches_allow(arg, "change its length", err);
    return r ? r : resize_all(co, arg, size, FMT_PREALLOC_OFF, false, err);
}

int graph_amend(struct co *co, struct graph_node *n, struct fmt_amend_opts *a, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    if (n->inactive)
        return active_need(n, "be amended", err);
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
    r = node_change_begin(co, n, err);
    if (!r)
        r = n->im->ops->amend(co, n->im, a, err);
    node_change_end(n);
    if (node_lock(co, n, 0, NULL) && !r)
        r = byre_fail(err, LOCKED, "%s: was amended, but its lock cannot be lowered again", n->filename);
    return r;
}
