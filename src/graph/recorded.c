/* SPDX-License-Identifier: MIT
 *
 * recorded.c: what is the name of a node's file worth in another image's header?
 *
 * Purpose     A header records a file and a format. A node may show more than those two say: commands and jobs that record names ask here first.
 * Owns        nothing
 * Invariants  N1  A name that is recorded without having been given by the user leads to what the node shows.
 *             N2  An image that lies below another one because somebody put it there, and not by the name in the header, is known as such: who comes
 *                 by a name does not share that chain, and gets the images that are recorded.
 * Order       none; before anything is written
 * Concurrency home loop; suspends. The caller keeps the node.
 * Failure     nothing has changed
 * Tests       tests/daemon/recorded_test.py
 */
#include <stdlib.h>
#include <string.h>

#include "graph/live.h"
#include "graph/under.h"

/* What keeps the name of its file from meaning n. NULL: nothing. */
static const char *beside_name(struct co *co, struct graph_node *n)
{
    if (under_shows_format(n->im->store))
        return "lies over another format";
    if (n->is_view)
        return n->how && n->how->ref.node.window.on ? "shows a part of its file" : "shows an internal snapshot";
    if (n->has_header)
        return "has its header in another file";
    return data_is_recorded(co, n) ? NULL : "has another external data file than its header records";
}

/* Is what lies below n, all the way down, what headers say (N2)? */
static bool chain_is_recorded(const struct graph_node *n)
{
    for (const struct graph_node *below; n; n = below) {
        below = graph_skip_filters(n->backing);
        if (below ? n->below_serial != below->serial : n->backing_filename != NULL)
            return false;
    }
    return true;
}

int graph_name_check(struct co *co, struct graph_node *n, const char *instead, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    struct graph_node *image = graph_skip_filters(n);
    if (!image)
        return byre_fail(err, BAD_ARGUMENT, "node '%s' is a filter that filters nothing: no file name means it", n->name);
    const char *why = beside_name(co, image);
    if (!why && !chain_is_recorded(image))
        why = "lies over other backing images than headers record";
    return why ? byre_fail(err, NOT_SUPPORTED, "%s: node '%s' %s, which no file name says, so it cannot be recorded as a backing file; %s", image->filename, image->name, why, instead) : 0;
}

/* ---- what lies below (N2) ---- */

struct resolved { char *path, *real; };

static int64_t resolve(void *arg)
{
    struct resolved *x = arg;
    x->real = realpath(x->path, NULL);
    return 0;
}

char *graph_real_path(struct co *co, const char *path)
{
    struct resolved x = { .path = strdup(path) };            /* who asks may lose it meanwhile */
    if (x.path && rt_blocking(co, resolve, &x) < 0)
        x.real = NULL;
    free(x.path);
    return x.real;
}

static bool same_path(struct co *co, const char *a, const char *b)
{
    if (!strcmp(a, b))
        return true;
    char *other = strdup(b), *x = graph_real_path(co, a), *y = other ? graph_real_path(co, other) : NULL;
    bool same = x && y && !strcmp(x, y);
    free(other);
    free(x);
    free(y);
    return same;
}

/* Would this be guessed? Of a raw disk that depends on what is in it. */
static bool is_guessed(struct co *co, const struct graph_node *image)
{
    uint8_t head[PROBE_BYTES];
    struct iovec slot;
    if (image->g->policy == GRAPH_STRICT)
        return false;
    if (image->probed || !image->is_raw)
        return true;
    struct stor *s = stor_share(image->im->store);
    int r = stor_read(co, s, iov_one(&slot, head, sizeof head), 0);
    stor_close(co, s);
    return !r && fmt_probe(head, sizeof head) == &fmt_raw_ops;
}

/* Would `image` be opened in its format? */
static bool same_format(struct co *co, const struct graph_node *n, const struct graph_node *image)
{
    struct fmt_info info = { 0 };
    if (n->im->ops->info(co, n->im, &info, NULL))
        return false;
    bool same = info.backing_format ? fmt_by_name(info.backing_format) == image->im->ops : is_guessed(co, image);
    fmt_info_fini(&info);
    return same;
}

void node_note_below(struct co *co, struct graph_node *n)
{
    struct graph_node *image = graph_skip_filters(n->backing);
    n->below_serial = 0;
    if (!image || !n->backing_filename)
        return;
    graph_ref(image);
    bool same = same_path(co, n->backing_filename, image->filename) && same_format(co, n, image) && !beside_name(co, image);
    if (graph_skip_filters(n->backing) == image)         /* or else whoever put another there has noted that */
        n->below_serial = same ? image->serial : 0;
    (void)node_unref(co, image);                 /* it lies below n, or its user is there to be told */
}

bool node_is_as_recorded(struct graph_node *n)
{
    if (n->data_node || (n->how && n->how->ref.data_path))
        return false;
    return chain_is_recorded(n);
}
