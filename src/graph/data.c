/* SPDX-License-Identifier: MIT
 *
 * data.c: the external data file of an image (FEATURES 1g), or the file with its header (3.062).
 *
 * Purpose     Which file is it, may it be opened, and its locks.
 * Owns        Nothing: the image that asked closes the file. The node's reference and use of it are the image's node's (graph.c).
 * Invariants  I1  The user's choice wins over what the image records. A recorded name is a plain path, whatever it looks like in
 *                 other places: never json:, never a protocol (CVE-2024-32498, CVE-2024-4467). Nothing is guessed about the
 *                 content: it is bytes.
 *             I2  A relative recorded name means a file beside the image. Ecosystem policy also takes it as the peer does, relative
 *                 to the working directory; two different files by that name are refused, not chosen from.
 *             I3  The data file is none of the images of the chain, nor the data file of one.
 *             I4  Locks as the peer's: whoever writes holds write and resize; resize is denied to others, and writing where all of the chain is to stand still.
 *                 Of a header: whoever writes holds write, and write is denied to others, too.
 *             I5  A data file that is a node is asked as one (under.c), a bare file too: what the image writes is seen by that node's filters,
 *                 watchers and bitmaps, and its locks are those of the node's file. It is none of the nodes that are the image's own file.
 *             I6  A header (struct graph_node, has_header) is always a node, which the user has named; no image records where its header is.
 * Order       None.
 * Concurrency Home loop, inside the opening of the image.
 * Failure     The file is closed again.
 * Tests       tests/interop/test_data_file.py, tests/daemon/data_node_test.py
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "graph/active.h"
#include "graph/under.h"

/* For messages, and as the option is called. */
static const char *other_file(const struct graph_node *n) { return n->has_header ? "header" : "external data file"; }
static const char *other_option(const struct graph_node *n) { return n->has_header ? "header" : "data-file"; }

static bool identity(struct graph *g, const struct stor *s, uint64_t *a, uint64_t *b)
{
    return g->opener.identity && g->opener.identity(g->opener.arg, s, a, b);
}

static int open_at(struct co *co, const struct data_ask *ask, const char *path, struct stor **ret_s, struct byre_err *err)
{
    struct graph_node *n = ask->n;
    struct stor_file_opts so = { .read_only = n->read_only || ask->look, .direct = ask->direct, .no_flush = ask->no_flush, .discard = n->discard,
                                 .locking = n->no_lock || ask->look ? STOR_LOCK_OFF : STOR_LOCK_AUTO, .passed = n->g->passed };
    return n->g->opener.open(co, n->g->opener.arg, path, &so, ret_s, err);
}

/* I2. beside: relative to the image; here: relative to the working directory. */
static int open_either(struct co *co, const struct data_ask *ask, const char *beside, const char *here, struct stor **ret_s, const char **ret_path, struct byre_err *err)
{
    struct graph *g = ask->n->g;
    struct stor *a = NULL, *b = NULL;
    struct byre_err why = { 0 };
    uint64_t id[4];
    int ra = open_at(co, ask, beside, &a, &why), rb = strcmp(beside, here) ? open_at(co, ask, here, &b, err) : -ENOENT;
    *ret_path = ra ? here : beside;
    *ret_s = ra ? b : a;
    if (ra && rb) {
        if (ra != -ENOENT || rb == -ENOENT)
            (void)byre_fail_code(err, SYSTEM, ra, "%s: cannot open its external data file: %s", ask->n->filename, why.text);
        return ra != -ENOENT ? ra : rb;
    }
    if (ra || rb)
        return 0;
    bool same = identity(g, a, &id[0], &id[1]) && identity(g, b, &id[2], &id[3]) && id[0] == id[2] && id[1] == id[3];
    stor_close(co, b);
    if (same)
        return 0;
    stor_close(co, a);
    return byre_fail(err, BAD_OPTION, "%s: its external data file may be '%s' or '%s'; say which by the option data-file.filename", ask->n->filename, beside, here);
}

static int open_recorded(struct co *co, const struct data_ask *ask, const char *name, struct stor **ret_s, char **ret_path, struct byre_err *err)
{
    struct graph_node *n = ask->n;
    struct name_ref ref;
    const char *path;
    if (!name)
        return byre_fail(err, BAD_OPTION, "%s: records no external data file; 'data-file' is required for this image", n->filename);
    int r = name_parse(GRAPH_STRICT, name, n->filename, &ref, NULL);
    if (r == -ENOMEM)
        return byre_fail(err, NOMEM, "no memory for a file name");
    if (r)
        return byre_fail(err, REFUSED_REFERENCE, "%s: the name of its external data file, '%s', is not a plain path", n->filename, name);
    if (name_is_passed(&ref)) {
        name_ref_fini(&ref);
        return byre_fail(err, REFUSED_REFERENCE, "%s: the name of its external data file, '%s', leads to what a client has passed, which a name that an image records must not; say it as 'data-file' instead", n->filename, name);
    }
    bool here = n->g->policy != GRAPH_STRICT;
    r = open_either(co, ask, ref.path, here ? name : ref.path, ret_s, &path, err);
    if (!r && !(*ret_path = strdup(path))) {
        stor_close(co, *ret_s);
        r = byre_fail(err, NOMEM, "no memory for a file name");
    }
    name_ref_fini(&ref);
    return r;
}

static int open_given(struct co *co, const struct data_ask *ask, struct stor **ret_s, char **ret_path, struct byre_err *err)
{
    *ret_path = strdup(ask->path);
    if (!*ret_path)
        return byre_fail(err, NOMEM, "no memory for a file name");
    int r = open_at(co, ask, ask->path, ret_s, err);
    if (r) {
        free(*ret_path);
        *ret_path = NULL;
    }
    return r;
}

/* ---- a node (I5) ---- */

/* Is d among m and the images that m's file lies in? */
static bool is_made_of(const struct graph_node *m, const struct graph_node *d)
{
    for (; m; m = graph_skip_filters(m->file))
        if (m == d)
            return true;
    return false;
}

static int check_data_node(const struct graph_node *n, struct graph_node *d, const char *name, struct byre_err *err)
{
    if (!d)
        return byre_fail(err, NOT_FOUND, "there is no node '%s' that could be '%s'", name, other_option(n));
    struct graph_node *bottom = graph_skip_filters(d);
    if (!bottom)
        return byre_fail(err, BAD_ARGUMENT, "node '%s' is a filter that filters nothing: it cannot be '%s'", name, other_option(n));
    int r = active_allows(d, n->inactive, n->name, err);
    if (r || n->read_only || n->has_header)
        return r;
    if (d->read_only && !bottom->auto_read_only)
        return byre_fail(err, READ_ONLY, "node '%s' is read-only, and the image whose data it is to hold is to be written", name);
    return watches_allow(bottom, "grow under an image", err);
}

/* A header node that stays open for reading. */
static bool is_fixed(const struct graph_node *n, const struct graph_node *d)
{
    const struct graph_node *bottom = graph_skip_filters((struct graph_node *)(uintptr_t)d);
    return n->has_header && d && d->read_only && !(bottom && bottom->auto_read_only);
}

static unsigned perm_over(const struct graph_node *n, const struct graph_node *d, bool read_only)
{
    return STOR_PERM_READ | (read_only || is_fixed(n, d) ? 0 : STOR_PERM_WRITE | (n->has_header ? 0u : STOR_PERM_RESIZE));
}

unsigned data_perm_of(const struct graph_node *n, bool read_only) { return perm_over(n, n->data_node, read_only); }

static int use_data_node(struct graph_node *n, struct graph_node *d, struct byre_err *err)
{
    n->data_use = (struct graph_user){ .who = n->name, .perm = perm_over(n, d, n->read_only),
                                       .shared = STOR_PERM_ALL & ~(STOR_PERM_RESIZE | (n->has_header ? STOR_PERM_WRITE : 0u)), .idle = n->inactive };
    int r = graph_user_add(d, &n->data_use, err);
    if (r)
        return r;
    graph_ref(d);
    n->data_node = d;
    gates_update(n->g);
    return 0;
}

int data_from_node(struct co *co, struct graph_node *n, const char *name, struct stor **ret_s, struct byre_err *err)
{
    struct graph_node *d = n->data_node ? n->data_node : graph_find(n->g, name);
    int r = check_data_node(n, d, name, err);
    if (r)
        return r;
    struct graph_node *awaited = n->read_only ? NULL : graph_await_writer(d);
    graph_ref(d);
    if (!n->data_node && !n->read_only)
        r = graph_writer_comes(co, d, err);
    if (!r)
        r = check_data_node(n, d, name, err);    /* it may be open in another way by now */
    if (!r && !n->data_node)
        r = use_data_node(n, d, err);
    graph_await_end(co, awaited);
    if (!r)
        r = under_new(co, d, n->name, !(data_perm_of(n, n->read_only) & STOR_PERM_WRITE), ret_s, err);
    data_locks_of(n);                            /* I4 */
    if (!r)
        r = data_lock(co, n, *ret_s, 0, err);
    if (r)
        graph_writer_gone(co, d);
    (void)node_unref(co, d);                     /* n holds it, or its user has gone meanwhile: then there is nobody to tell */
    return r;
}

/* The store that the node was opened as. */
static int take_node(const struct data_ask *ask, struct stor **ret_s, struct byre_err *err)
{
    struct graph_node *n = ask->n, *d = n->data_node;
    const struct graph_node *bottom = graph_skip_filters(d);
    if (is_made_of(graph_skip_filters(n->file), bottom))
        return byre_fail(err, BACKING_LOOP, "%s: node '%s' is its file, and cannot be its %s, too", n->filename, d->name, other_file(n));
    for (const struct graph_node *at = ask->top; at; at = at->backing)
        if (at == bottom)
            return byre_fail(err, BACKING_LOOP, "%s: node '%s', which is to be its %s, is part of the same chain of images", n->filename, d->name, other_file(n));
    n->data_filename = strdup(d->filename);
    if (!n->data_filename)
        return byre_fail(err, NOMEM, "no memory for a file name");
    *ret_s = *ask->of_node;
    *ask->of_node = NULL;
    return 0;
}

/* I3 */
static int check_place(const struct data_ask *ask, const struct stor *s, struct byre_err *err)
{
    struct graph_node *n = ask->n;
    const bool known = n->im && n->has_data_identity;        /* the image is opened once more (mode.c) */
    const uint64_t a = n->data_a, b = n->data_b;
    const struct graph_node *bottom = under_is_store(s) ? graph_skip_filters(n->data_node) : NULL;
    n->has_data_identity = bottom ? bottom->is_file && bottom->has_identity : identity(n->g, s, &n->data_a, &n->data_b);
    if (bottom && n->has_data_identity) {
        n->data_a = bottom->id_a;
        n->data_b = bottom->id_b;
    }
    if (known && !data_is(n, true, a, b))
        return byre_fail_code(err, IO, -ESTALE, "%s: its %s '%s' is another file than the one that is open", n->filename, other_file(n), n->data_filename);
    bool taken = n->has_identity && data_is(n, n->has_identity, n->id_a, n->id_b);
    for (const struct graph_node *at = ask->top; at && !taken; at = at->backing)
        taken = at != n && (data_is(n, at->has_identity, at->id_a, at->id_b) || data_is(at, n->has_data_identity, n->data_a, n->data_b));
    return taken ? byre_fail(err, BACKING_LOOP, "%s: its %s '%s' is part of the same chain of images", n->filename, other_file(n), n->data_filename) : 0;
}

int data_open(struct co *co, void *arg, const char *name, struct stor **ret_s, struct byre_err *err)
{
    const struct data_ask *ask = arg;
    struct graph_node *n = ask->n;
    struct stor *s;
    int r = *ask->of_node ? take_node(ask, &s, err) : ask->path ? open_given(co, ask, &s, &n->data_filename, err) : open_recorded(co, ask, name, &s, &n->data_filename, err);
    if (r)
        return r;
    data_locks_of(n);                            /* I4 */
    r = check_place(ask, s, err);
    if (!r && !under_is_store(s))                /* a node's is: here the image's own file is held (open.c I6), and no other one is waited for */
        r = data_lock(co, n, s, 0, err);
    if (r) {
        stor_close(co, s);
        return r;
    }
    (void)under_seen(co, s, &n->data_seen);
    *ret_s = s;
    return 0;
}

/* ---- the one that is recorded ---- */

/* Of the file that is used as it is. A window or another format shows something else than the file. */
static bool used_identity(const struct graph_node *n, uint64_t *a, uint64_t *b)
{
    const struct graph_node *bottom = graph_skip_filters(n->data_node);
    *a = bottom ? bottom->id_a : n->data_a;
    *b = bottom ? bottom->id_b : n->data_b;
    return bottom ? bottom->has_identity && bottom->is_raw && !bottom->is_view && !under_shows_format(bottom->im->store) : n->has_data_identity;
}

bool data_is_recorded(struct co *co, struct graph_node *n)
{
    if (!n->data_node && !(n->how && n->how->ref.data_path))
        return true;
    struct fmt_info info = { 0 };
    struct stor *s;
    char *path = NULL;
    uint64_t used[2], a, b;
    const struct data_ask ask = { .n = n, .look = true };
    if (!used_identity(n, &used[0], &used[1]) || n->im->ops->info(co, n->im, &info, NULL))
        return false;
    int r = open_recorded(co, &ask, info.data_file, &s, &path, NULL);
    bool same = !r && identity(n->g, s, &a, &b) && a == used[0] && b == used[1];
    if (!r)
        stor_close(co, s);
    fmt_info_fini(&info);
    free(path);
    return same;
}
