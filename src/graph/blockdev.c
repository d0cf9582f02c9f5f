/* SPDX-License-Identifier: MIT
 *
 * blockdev.c: nodes by the options of the ecosystem.
 *
 * Purpose     Takes nested options apart into nodes, from the innermost out, and opens each; keeps which nodes belong to the user.
 * Owns        The nodes that nested options made, until their parents hold them.
 * Invariants  B1  A child that is a node of its own is named in its parent's options before the parent is opened: nesting costs no recursion.
 *             B2  Names of nodes are taken from the user's options only, never from what an image records.
 *             B3  What lies below something that is only read is open for reading, down to the file, until somebody writes to it (graph_writer_comes).
 * Order       None.
 * Concurrency Home loop.
 * Failure     What was opened by a failed call is closed again.
 * Tests       tests/cli/blockdev_test.py
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "graph/active.h"
#include "graph/blockdev.h"
#include "graph/filter.h"
#include "graph/filters.h"

#define NODES_MAX 64u                  /* that one object of options may nest */

/* One call of graph_blockdev_add. */
struct adding {
    struct graph *g;
    json_t *root;                      /* whose nested children become names */
    const struct graph_open_opts *top; /* how the outermost node is opened; NULL: as its options say */
    struct graph_node *made[NODES_MAX];
    unsigned made_count;
    const json_t *lent[NODES_MAX];     /* options that are read-only because those around them are (B3) */
    unsigned lent_count;
};

static const char *str_of(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return json_is_string(v) ? json_string_value(v) : NULL;
}

const char *const blockdev_children[] = { "file", "data-file", "header", "backing", "image", "target", NULL };

bool blockdev_is_null(const char *driver) { return driver && (!strcmp(driver, "null-co") || !strcmp(driver, "null-aio")); }

bool blockdev_needs_node(const json_t *parent, const char *key, const json_t *child)
{
    const char *driver = str_of(child, "driver");
    if (!json_is_object(child))
        return false;
    bool data = !strcmp(key, "data-file"), plain = (!driver || name_driver_is_file(driver) || !strcmp(driver, "nbd")) && !json_object_get(child, "file");
    bool filter = str_of(parent, "driver") && filter_by_name(str_of(parent, "driver"));
    bool more = data && json_object_size(child) > (size_t)(driver != NULL) + (json_object_get(child, "filename") != NULL);
    return filter || (strcmp(key, "file") && !data) || !plain || more || json_object_get(child, "node-name");
}

static json_t *nested_child(json_t *o, const char **ret_key)
{
    bool has_target = str_of(o, "driver") && !strcmp(str_of(o, "driver"), "copy-before-write");
    for (const char *const *k = blockdev_children; *k; k++) {
        json_t *child = json_object_get(o, *k);
        if (child && (strcmp(*k, "target") || has_target) && blockdev_needs_node(o, *k, child)) {
            *ret_key = *k;
            return child;
        }
    }
    return NULL;
}

/* ---- what a child has from its parent (FEATURES 11.015) ---- */

/* "cache.NAME" of a node, nested or with a dot; NULL: not given. */
static json_t *cache_option(const json_t *o, const char *name)
{
    char dotted[32];
    snprintf(dotted, sizeof dotted, "cache.%s", name);
    json_t *v = json_object_get(json_object_get(o, "cache"), name);
    return v ? v : json_object_get(o, dotted);
}

static int inherit_cache(const json_t *parent, json_t *child, const char *name)
{
    json_t *v = cache_option(parent, name), *cache = json_object_get(child, "cache");
    char dotted[32];
    if (!v || cache_option(child, name))
        return 0;
    snprintf(dotted, sizeof dotted, "cache.%s", name);
    return cache ? json_object_set(cache, name, v) : json_object_set(child, dotted, v);
}

static bool says_mode(const json_t *o) { return json_object_get(o, "read-only") || json_object_get(o, "auto-read-only"); }

/* Is all that it lies over only read? But for a filter that is there to write. */
static bool only_reads(const json_t *o)
{
    const char *driver = str_of(o, "driver");
    return json_is_true(json_object_get(o, "read-only")) && !(driver && (!strcmp(driver, "copy-on-read") || !strcmp(driver, "copy-before-write")));
}

/* B3. A server's disk is asked for as it was: whether it may be written shows only then. */
static int lend(struct adding *ad, json_t *child)
{
    const char *driver = str_of(child, "driver");
    if (says_mode(child) || !driver || blockdev_is_null(driver))
        return 0;
    if (name_driver_is_file(driver) || !strcmp(driver, "nbd"))
        return json_object_set_new(child, "auto-read-only", json_true());
    if (!filter_by_name(driver) && ad->lent_count < NODES_MAX)
        ad->lent[ad->lent_count++] = child;
    return json_object_set_new(child, "read-only", json_true());
}

static bool is_lent(const struct adding *ad, const json_t *o)
{
    for (unsigned i = 0; i < ad->lent_count; i++)
        if (ad->lent[i] == o)
            return true;
    return false;
}

/* What a nested child does not say of itself: the cache mode of its parent; a backing file is only read. Idempotent. */
static int inherit(struct adding *ad, const json_t *parent, const char *key, json_t *child)
{
    if (json_is_false(json_object_get(parent, "active")) && !json_object_get(child, "active") && json_object_set_new(child, "active", json_false()))
        return -ENOMEM;                          /* what another process writes is locked by it all the way down */
    if (!strcmp(key, "target"))
        return 0;
    if (strcmp(key, "backing") && only_reads(parent) && lend(ad, child))
        return -ENOMEM;
    if (!strcmp(key, "backing") && !json_object_get(child, "read-only") && json_object_set_new(child, "read-only", json_true()))
        return -ENOMEM;
    return !inherit_cache(parent, child, "direct") && !inherit_cache(parent, child, "no-flush") ? 0 : -ENOMEM;
}

/* ---- one node, whose children have names ---- */

static int take_size(const json_t *o, const char *key, uint64_t def, uint64_t *ret, struct byre_err *err)
{
    const json_t *v = json_object_get(o, key);
    *ret = def;
    return v ? name_take_size(key, v, ret, err) : 0;
}

static int check_null(const json_t *o, struct byre_err *err)
{
    static const char *const known[] = { "driver", "node-name", "size", "latency-ns", "read-zeroes", "read-only", "auto-read-only", "force-share", "discard",
                                         "cache", "detect-zeroes", "active", NULL };
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)o, key, v) {
        const char *const *k = known;
        while (*k && strcmp(*k, key))
            k++;
        if (!*k)
            return byre_fail(err, BAD_OPTION, "json: the option '%s' is not supported", key);
    }
    return 0;
}

static int null_open(struct co *co, struct graph_node *n, const struct stor_null_opts *so, struct byre_err *err)
{
    struct stor *s;
    const struct fmt_open_opts fo = { .read_only = n->inactive ? n->awake.read_only : n->read_only };
    n->filename = strdup("null-co://");
    int r = n->filename ? stor_null_new(co, so, &s) : -ENOMEM;
    if (r)
        return byre_fail_code(err, NOMEM, r, "no memory for a node");
    r = fmt_raw_ops.open(co, s, &fo, &n->im, err);
    if (r) {
        stor_close(co, s);
        return r;
    }
    n->is_raw = n->no_lock = n->discard = n->is_file = n->ready = true;
    gates_update(n->g);
    return 0;
}

static int add_null(struct co *co, struct graph *g, const json_t *o, struct graph_node **ret_n, struct byre_err *err)
{
    struct stor_null_opts so = { .read_zeroes = json_is_true(json_object_get(o, "read-zeroes")) };
    struct graph_node *n;
    int r = check_null(o, err);
    if (!r)
        r = take_size(o, "size", STOR_NULL_LEN, &so.len, err);
    if (!r)
        r = take_size(o, "latency-ns", 0, &so.latency_ns, err);
    if (!r)
        r = node_new(g, str_of(o, "node-name"), &n, err);
    if (r)
        return r;
    n->read_only = json_is_true(json_object_get(o, "read-only"));
    if (json_is_false(json_object_get(o, "active")))
        active_open_asleep(n);
    r = null_open(co, n, &so, err);
    if (r)
        (void)node_unref(co, n);
    else
        *ret_n = n;
    return r;
}

static int find_child(struct graph *g, const char *what, const char *name, struct graph_node **ret_n, struct byre_err *err)
{
    *ret_n = graph_find(g, name);
    return *ret_n ? 0 : byre_fail(err, NOT_FOUND, "there is no node '%s' that could be '%s'", name, what);
}

/* For an image that has no backing node yet. */
static int hang_below(struct co *co, struct graph_node *n, struct graph_node *below, struct byre_err *err)
{
    if (!n->im->ops->make_empty || n->im->data_raw)
        return byre_fail(err, BAD_OPTION, "%s: '%s' images like this one have no 'backing'", n->filename, n->im->ops->name);
    int r = graph_set_backing(co, n, below, err);
    if (!r)
        n->im->has_backing = true;
    return r;
}

/* An image. `backing` is taken out of the options: its node is hung below when the image is open. */
static int add_image(struct co *co, const struct adding *ad, json_t *o, const struct graph_open_opts *top, struct graph_node **ret_n, struct byre_err *err)
{
    struct graph *g = ad->g;
    const json_t *backing = json_object_get(o, "backing");
    struct graph_node *below = NULL;
    int r = json_is_string(backing) ? find_child(g, "backing", json_string_value(backing), &below, err) : 0;
    if (r)
        return r;
    if (below)
        json_object_set_new(o, "backing", json_null());
    char *text = json_dumps(o, JSON_COMPACT), *name = NULL;
    if (!text || asprintf(&name, "json:%s", text) < 0) {
        free(text);
        return byre_fail(err, NOMEM, "no memory for a file name");
    }
    struct graph_open_opts go = { .filename = name, .read_only = json_is_true(json_object_get(o, "read-only")), .node_refs = true,
                                  .stable = ad->top && ad->top->stable, .inactive = json_is_false(json_object_get(o, "active")) };
    if (below)
        below->refs++;
    if (top) {
        go = *top;
        go.filename = name;
        go.node_refs = true;
    }
    bool automatic = !go.read_only && json_is_true(json_object_get(o, "auto-read-only")), bare = name_driver_is_file(str_of(o, "driver"));
    go.read_only |= automatic && bare;           /* until somebody writes */
    r = graph_open(co, g, &go, ret_n, err);
    if ((r == -EACCES || r == -EROFS) && automatic) {
        go.read_only = true;
        r = graph_open(co, g, &go, ret_n, err);
    }
    if (!r)
        (*ret_n)->auto_read_only = automatic && (bare || go.read_only);
    free(name);
    free(text);
    if (!r && below) {
        r = hang_below(co, *ret_n, below, err);
        if (r)
            (void)graph_close(co, *ret_n);
    }
    if (below)
        (void)node_unref(co, below);
    return r;
}

static int add_one(struct co *co, struct adding *ad, json_t *o, const struct graph_open_opts *top, struct graph_node **ret_n, struct byre_err *err)
{
    const char *driver = str_of(o, "driver");
    if (!driver)
        return byre_fail(err, BAD_OPTION, "Parameter 'driver' is missing");
    if (blockdev_is_null(driver))
        return add_null(co, ad->g, o, ret_n, err);
    const struct filter_driver *f = filter_by_name(driver);
    return f ? filter_add(co, ad->g, f, o, ret_n, err) : add_image(co, ad, o, top, ret_n, err);
}

/* ---- the whole ---- */

/* Opens the innermost child that needs a node, and names it in its parent. 1: there was none. B1 */
static int add_innermost(struct co *co, struct adding *ad, struct byre_err *err)
{
    json_t *parent = NULL, *at = ad->root, *child;
    const char *key = NULL, *next;
    while ((child = nested_child(at, &next))) {
        if (inherit(ad, at, next, child))
            return byre_fail(err, NOMEM, "no memory for a node");
        parent = at;
        at = child;
        key = next;
    }
    if (!parent)
        return 1;
    if (ad->made_count == NODES_MAX)
        return byre_fail(err, LIMIT, "more than %u nodes are nested in one another", NODES_MAX);
    struct graph_node *n;
    int r = add_one(co, ad, at, NULL, &n, err);
    if (r)
        return r;
    n->auto_read_only |= is_lent(ad, at) && n->read_only && !n->flt;
    ad->made[ad->made_count++] = n;
    return json_object_set_new(parent, key, json_string(n->name)) ? byre_fail(err, NOMEM, "no memory for a node") : 0;
}

int graph_blockdev_add(struct co *co, struct graph *g, const json_t *options, struct graph_node **ret_n, struct byre_err *err)
{
    ASSERT_LOOP(g->home);
    json_t *root = json_deep_copy(options);
    int r = root ? blockdev_open(co, g, root, NULL, ret_n, err) : byre_fail(err, NOMEM, "no memory for a node");
    json_decref(root);
    if (!r)
        (*ret_n)->owned = true;
    return r;
}

int blockdev_open(struct co *co, struct graph *g, json_t *root, const struct graph_open_opts *top, struct graph_node **ret_n, struct byre_err *err)
{
    struct adding ad = { .g = g, .root = root, .top = top };
    int r = 0;
    while (!r)
        r = add_innermost(co, &ad, err);
    if (r > 0)
        r = add_one(co, &ad, ad.root, ad.top, ret_n, err);
    while (ad.made_count)
        (void)node_unref(co, ad.made[--ad.made_count]);      /* what opened holds what it needs */
    return r;
}

/* ---- whose a node is ---- */

bool graph_blockdev_owned(const struct graph_node *n) { return n->owned; }

void graph_blockdev_own(struct graph_node *n)
{
    ASSERT(!n->owned);
    n->owned = true;
}

struct graph_node *graph_find_settled(struct co *co, struct graph *g, const char *node_name)
{
    struct graph_node *n = graph_find(g, node_name);
    if (!n || !n->going_back)
        return n;
    graph_edges_hold(co, g);                     /* whoever does that holds them */
    graph_edges_let(co, g);
    return graph_find(g, node_name);
}

int graph_blockdev_del(struct co *co, struct graph_node *n, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    if (!n->owned)
        return byre_fail(err, PERMISSION, "node '%s' was not made by blockdev-add, and cannot be deleted", n->name);
    if (n->users)
        return byre_fail(err, PERMISSION, "node '%s' is in use by '%s'", n->name, n->users->who);
    if (n->refs > 1)
        return byre_fail(err, PERMISSION, "node '%s' is in use", n->name);
    char name[GRAPH_NAME_MAX + 1];
    memcpy(name, n->name, sizeof name);
    n->owned = false;
    int r = node_unref(co, n);
    return r ? byre_fail_code(err, IO, r, "node '%s' was closed with an error: not everything that was written may be on the disk", name) : 0;
}

int graph_blockdev_disown(struct co *co, struct graph_node *n)
{
    ASSERT_LOOP(n->g->home);
    if (!n->owned || n->refs == 1)
        return 0;
    n->owned = false;
    return node_unref(co, n);
}

bool graph_uses_file(struct co *co, struct graph *g, const char *path)
{
    const struct stor_file_opts so = { .read_only = true, .locking = STOR_LOCK_OFF, .passed = g->passed };
    struct stor *s;
    uint64_t a, b;
    bool used = false;
    const char *file;
    if (!g->opener.identity || graph_name_to_make(g->policy, path, &file, NULL) || !file || g->opener.open(co, g->opener.arg, file, &so, &s, NULL))
        return false;
    bool has = g->opener.identity(g->opener.arg, s, &a, &b);
    stor_close(co, s);
    for (struct graph_node *n = node_next(g, NULL); n && has && !used; n = node_next(g, n))
        used = (n->has_identity && n->id_a == a && n->id_b == b) || data_is(n, true, a, b);
    return used;
}
