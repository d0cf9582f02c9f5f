/* SPDX-License-Identifier: MIT
 *
 * tray.c: attachments with a tray.
 *
 * Purpose     Stops answering while the tray is open, or nothing is in it; another node comes under the same attachment.
 * Owns        nothing beyond the attachment's edge
 * Invariants  Y1  tray_open, and whether there is a medium, change only while the attachment is shut: a request is answered by one medium, or by none.
 *             Y2  The medium is the attachment's edge as long as it is in the tray, so it is the node that every other user of it has, too.
 *             Y3  Without a medium the attachment is as long as the last one was, and asks nothing of anybody.
 *             Y4  What was written is durable when the tray is open: no flush that comes later reaches the medium.
 *             Y5  Nothing suspends from the last check of a medium to its edge.
 * Order       Y4; nothing else is written.
 * Concurrency requests on any loop, inside the gate; all else on the home loop
 * Failure     What fails has changed nothing, but for graph_tray_remove. Nothing here allocates.
 * Tests       tray_test.c, tests/daemon/medium_test.py
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "graph/active.h"
#include "graph/blockdev.h"
#include "graph/filter.h"
#include "graph/tray.h"

/* ---- requests ---- */

static bool answers(const struct graph_node *a) { return a->backing && !a->tray_open; }

static int tray_read(struct co *co, struct graph_node *a, struct iov v, uint64_t off)
{
    return answers(a) ? node_read(co, a->backing, v, off) : -ENOMEDIUM;
}

static int tray_write(struct co *co, struct graph_node *a, struct iov v, uint64_t off, unsigned flags)
{
    return answers(a) ? node_write(co, a->backing, v, off, flags) : -ENOMEDIUM;
}

static int tray_zero(struct co *co, struct graph_node *a, uint64_t off, uint64_t len, unsigned flags)
{
    return answers(a) ? node_zero(co, a->backing, off, len, flags) : -ENOMEDIUM;
}

static int tray_discard(struct co *co, struct graph_node *a, uint64_t off, uint64_t len)
{
    return answers(a) ? node_discard(co, a->backing, off, len) : -ENOMEDIUM;
}

/* Y4: there is nothing left that it could make durable. */
static int tray_flush(struct co *co, struct graph_node *a)
{
    return answers(a) ? node_flush(co, a->backing) : 0;
}

static int tray_status(struct co *co, struct graph_node *a, uint64_t off, uint64_t len)
{
    return answers(a) ? 0 : -ENOMEDIUM;
}

const struct filter_ops tray_ops = { .read = tray_read, .write = tray_write, .zero = tray_zero, .discard = tray_discard, .flush = tray_flush, .status = tray_status };

static bool has_tray(const struct graph_node *a) { return a->flt == &tray_ops; }

bool tray_is_silent(const struct graph_node *n) { return has_tray(n) && !answers(n); }

/* ---- the tray ---- */

bool graph_tray_is_open(const struct graph_node *a) { return a->tray_open; }

int graph_tray_open(struct co *co, struct graph_node *a, struct byre_err *err)
{
    ASSERT_LOOP(a->g->home);
    ASSERT(has_tray(a));
    graph_edges_hold(co, a->g);
    graph_shut_begin(co, a);
    int r = a->backing && !a->tray_open ? node_flush(co, a->backing) : 0;        /* Y4 */
    if (r)
        r = byre_fail_code(err, IO, r, "node '%s': cannot be made durable, so it is not let go: %s", a->backing->name, strerror(-r));
    else
        a->tray_open = true;
    graph_shut_end(a);
    graph_edges_let(co, a->g);
    return r;
}

void graph_tray_close(struct co *co, struct graph_node *a)
{
    ASSERT_LOOP(a->g->home);
    ASSERT(has_tray(a));
    graph_edges_hold(co, a->g);
    graph_shut_begin(co, a);
    a->tray_open = false;
    graph_shut_end(a);
    graph_edges_let(co, a->g);
}

/* ---- the medium ---- */

int graph_tray_fits(struct graph_node *a, struct graph_node *n, const struct graph_tray_told *told, struct byre_err *err)
{
    unsigned count = told ? told->count(told->arg) : 0;
    uint64_t now = graph_length(a), then = graph_length(n);
    int r = graph_need_image(n, "a tray", err);
    if (!r)
        r = active_allows(n, false, a->filename, err);
    if (!r && a->backing_use.perm & STOR_PERM_WRITE && graph_meant_read_only(n))
        return byre_fail(err, READ_ONLY, "node '%s' is read-only, and '%s' writes", n->name, a->filename);
    if (!r && count && now != then)
        return byre_fail(err, BAD_SIZE, "node '%s' has %" PRIu64 " bytes, and %u clients of '%s' were told %" PRIu64 ": nobody can tell them another size", n->name, then,
                         count, a->filename, now);
    if (!r)
        r = filters_allow_above(n, err);
    if (!r)
        r = check_chain(a, n, err);
    return r ? r : users_fit(n, &a->backing_use, &a->backing_use, err);
}

/* Y5 */
static int insert_shut(struct graph_node *a, struct graph_node *n, const struct graph_tray_told *told, struct byre_err *err)
{
    int r = graph_tray_fits(a, n, told, err);
    if (!r && a->backing_use.perm & STOR_PERM_WRITE && n->read_only)
        r = byre_fail(err, READ_ONLY, "node '%s' is open for reading, and '%s' writes", n->name, a->filename);
    if (!r)
        (void)edge_to_medium(a, n);              /* nothing was there */
    return r;
}

int graph_tray_insert(struct co *co, struct graph_node *a, struct graph_node *n, const struct graph_tray_told *told, struct byre_err *err)
{
    struct graph *g = a->g;
    ASSERT_LOOP(g->home);
    ASSERT(has_tray(a) && a->tray_open && !a->backing);
    graph_ref(n);
    struct graph_node *awaited = a->backing_use.perm & STOR_PERM_WRITE ? graph_await_writer(n) : NULL;
    graph_edges_hold(co, g);
    int r = awaited ? graph_writer_comes(co, n, err) : 0;
    graph_shut_begin(co, a);
    if (!r)
        r = insert_shut(a, n, told, err);
    graph_shut_end(a);
    graph_await_end(co, awaited);
    if (r)
        graph_writer_gone(co, n);
    graph_edges_let(co, g);
    (void)node_unref(co, n);                     /* the tray has it, or the caller */
    return r;
}

int graph_tray_remove(struct co *co, struct graph_node *a)
{
    struct graph *g = a->g;
    ASSERT_LOOP(g->home);
    ASSERT(has_tray(a));
    graph_edges_hold(co, g);
    struct graph_node *n = NULL;
    if (a->backing) {
        graph_shut_begin(co, a);
        n = edge_to_medium(a, NULL);
        graph_shut_end(a);
        graph_writer_gone(co, n);
    }
    graph_edges_let(co, g);
    return n ? node_unref(co, n) : 0;
}
