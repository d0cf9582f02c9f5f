/* SPDX-License-Identifier: MIT
 *
 * snapshot.c: external snapshots: an overlay takes the place of a disk that is in use.
 *
 * Purpose     What must be true before a request goes to the overlay, and what becomes of the layer below.
 * Owns        Nothing beyond the calls.
 * Invariants  S1  Nothing is written to the overlay before its header names what lies below it, its file is where its name says, and what lies
 *                 below is durable.
 * Order       The name, the directory entry, the layer below (J5, in runtime.c), then the edges.
 * Concurrency Home loop; suspends.
 * Failure     As it was; the overlay names no backing file again.
 * Tests       tests/crash/snap_crash.c, tests/cli/blockdev_test.py
 */
#include <string.h>

#include "base/mutant.h"
#include "graph/blockdev.h"
#include "graph/filter.h"
#include "graph/mode.h"

static int may_be_overlay(const struct graph_node *n, const struct graph_node *overlay, struct byre_err *err)
{
    if (overlay == n)
        return byre_fail(err, BAD_ARGUMENT, "node '%s' cannot be its own overlay", n->name);
    if (overlay->backing)
        return byre_fail(err, BAD_ARGUMENT, "The overlay already has a backing image: node '%s'", overlay->name);
    if (overlay->users)
        return byre_fail(err, PERMISSION, "The overlay is already in use: node '%s', by '%s'", overlay->name, overlay->users->who);
    if (overlay->flt || !overlay->im->ops->make_empty || overlay->im->data_raw)
        return byre_fail(err, NOT_SUPPORTED, "The overlay does not support backing images: node '%s'", overlay->name);
    return overlay->read_only ? byre_fail(err, READ_ONLY, "node '%s' is read-only", overlay->name) : 0;
}

/* What is written to an overlay must not get lost because nobody finds its file. */
static int keep_name(struct co *co, const struct graph_node *n, struct byre_err *err)
{
    const struct graph_opener *op = &n->g->opener;
    const char *files[] = { n->filename, n->data_filename };
    for (unsigned i = 0; i < 2; i++) {
        if (!op->keep_name || !files[i] || (n->how && n->how->ref.nbd))
            continue;
        int r = op->keep_name(co, op->arg, files[i]);
        if (r)
            return byre_fail_code(err, IO, r, "%s: its name cannot be made durable: %s", files[i], strerror(-r));
    }
    return 0;
}

/* From now on what lies below only changes when somebody wants it to: it is opened for reading, so that its lock goes and an index pays. */
static void settle_below(struct co *co, struct graph_node *n)
{
    struct byre_err why = { 0 };
    if (!n || n->read_only || !n->how || mode_writer(n))
        return;
    if (graph_make_read_only(co, n, &why))
        graph_warn(n, "%s: stays open for writing: %s", n->filename, why.text);
}

int graph_snapshot_put(struct co *co, struct graph_node *n, struct graph_node *overlay, bool *ret_named, struct byre_err *err)
{
    struct graph_name none = { NULL, NULL };
    struct graph_node *image = graph_skip_filters(n);
    int r = may_be_overlay(n, overlay, err);
    if (r)
        return r;
    bool named = overlay->im->has_backing || !image;
    r = named ? 0 : graph_name_check(co, image, "let the overlay record a backing file before it is opened", err);
    if (r)
        return r;
    struct graph_name name = { image ? image->filename : NULL, image ? image->im->ops->name : NULL };
    bool late = MUTANT(MUT_SNAPSHOT_NAME_LATE);
    if (!named && !late)
        r = graph_record_backing(co, overlay, &name, err);
    if (r)
        return r;
    r = keep_name(co, overlay, err);
    if (!r)
        r = graph_insert_above(co, n, overlay, err);
    if (!r && !named && late && co_sleep(co, 1000000) == 0)
        r = graph_record_backing(co, overlay, &name, err);
    if (!r)
        node_note_below(co, overlay);
    if (r && !named && graph_record_backing(co, overlay, &none, NULL))
        graph_warn(overlay, "%s: records a backing file that it was to get, and did not", overlay->filename);
    *ret_named = !named;
    return r;
}

void graph_snapshot_take_back(struct co *co, struct graph_node *overlay, bool named)
{
    struct graph_name none = { NULL, NULL };
    struct byre_err why = { 0 };
    int r = graph_undo_insert(co, overlay, &why);
    if (!r && named)
        r = graph_record_backing(co, overlay, &none, &why);
    if (r)
        graph_warn(overlay, "%s: could not be taken out again: %s", overlay->filename, why.text);
}

void graph_snapshot_settle(struct co *co, struct graph_node *n) { settle_below(co, graph_skip_filters(n)); }

int graph_snapshot_above(struct co *co, struct graph_node *n, struct graph_node *overlay, struct byre_err *err)
{
    bool named;
    int r = graph_snapshot_put(co, n, overlay, &named, err);
    if (!r)
        graph_snapshot_settle(co, n);
    return r;
}
