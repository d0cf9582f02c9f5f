/* SPDX-License-Identifier: MIT
 *
 * data.c: the external data file of an image (FEATURES 1g).
 *
 * Purpose     Which file is it, may it be opened, and its locks.
 * Owns        Nothing: the image that asked closes the file.
 * Invariants  I1  The user's choice wins over what the image records. A recorded name is a plain path, whatever it looks like in
 *                 other places: never json:, never a protocol (CVE-2024-32498, CVE-2024-4467). Nothing is guessed about the
 *                 content: it is bytes.
 *             I2  A relative recorded name means a file beside the image. Ecosystem policy also takes it as the peer does, relative
 *                 to the working directory; two different files by that name are refused, not chosen from.
 *             I3  The data file is none of the images of the chain, nor the data file of one.
 *             I4  Locks as the peer's: whoever writes holds write and resize; resize is denied to others.
 * Order       None.
 * Concurrency Home loop, inside the opening of the image.
 * Failure     The file is closed again.
 * Tests       tests/interop/test_data_file.py
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "graph/graph_priv.h"

static bool identity(struct graph *g, const struct stor *s, uint64_t *a, uint64_t *b)
{
    return g->opener.identity && g->opener.identity(g->opener.arg, s, a, b);
}

static int open_at(struct co *co, const struct data_ask *ask, const char *path, struct stor **ret_s, struct byre_err *err)
{
    struct graph_node *n = ask->n;
    struct stor_file_opts so = { .read_only = n->read_only, .direct = ask->direct, .no_flush = ask->no_flush, .discard = n->discard,
                                 .locking = n->no_lock ? STOR_LOCK_OFF : STOR_LOCK_AUTO };
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

/* I3 */
static int check_place(const struct data_ask *ask, const struct stor *s, struct byre_err *err)
{
    struct graph_node *n = ask->n;
    const bool known = n->im && n->has_data_identity;        /* the image is opened once more (mode.c) */
    const uint64_t a = n->data_a, b = n->data_b;
    n->has_data_identity = identity(n->g, s, &n->data_a, &n->data_b);
    if (known && !data_is(n, true, a, b))
        return byre_fail_code(err, IO, -ESTALE, "%s: its external data file '%s' is another file than the one that is open", n->filename, n->data_filename);
    bool taken = n->has_identity && data_is(n, n->has_identity, n->id_a, n->id_b);
    for (const struct graph_node *at = ask->top; at && !taken; at = at->backing)
        taken = at != n && (data_is(n, at->has_identity, at->id_a, at->id_b) || data_is(at, n->has_data_identity, n->data_a, n->data_b));
    return taken ? byre_fail(err, BACKING_LOOP, "%s: its external data file '%s' is part of the same chain of images", n->filename, n->data_filename) : 0;
}

int data_open(struct co *co, void *arg, const char *name, struct stor **ret_s, struct byre_err *err)
{
    const struct data_ask *ask = arg;
    struct graph_node *n = ask->n;
    struct stor *s;
    int r = ask->path ? open_given(co, ask, &s, &n->data_filename, err) : open_recorded(co, ask, name, &s, &n->data_filename, err);
    if (r)
        return r;
    data_locks_of(n);                            /* I4 */
    r = check_place(ask, s, err);
    if (!r)
        r = data_lock(co, n, s, 0, err);
    if (r) {
        stor_close(co, s);
        return r;
    }
    (void)stor_file_seen(co, s, &n->data_seen);
    *ret_s = s;
    return 0;
}
