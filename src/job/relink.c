/* SPDX-License-Identifier: MIT
 *
 * relink.c: images of a chain in use get another image below them.
 *
 * Purpose     The list of what changes, opening images whose header is to be written, and the way back.
 * Owns        struct relink: a reference of each node that it names.
 * Invariants  relink.h
 * Order       none of its own: graph_rebase is durable when it returns (Q18); what it relies on is before (J2, J3)
 * Concurrency home loop
 * Failure     As before, or, when an image cannot be set back, it names the new chain, which is warned of.
 * Tests       tests/cli/live_commit_test.py, tests/crash/test_chain_crash.py
 */
#include "job/relink.h"

#include <stdlib.h>
#include <string.h>

#define LINKS_MAX 64u                    /* overlays of one image in one graph */

struct link { struct graph_node *n, *from, *to; char *file, *format; struct fmt_info old; bool optional, opened, done; };
struct relink { unsigned count; struct link all[LINKS_MAX]; };

int relink_new(struct relink **ret, struct byre_err *err)
{
    *ret = calloc(1, sizeof **ret);
    return *ret ? 0 : byre_fail(err, NOMEM, "no memory to change a chain");
}

static int copy_names(struct link *k, const struct graph_name *name, struct byre_err *err)
{
    k->file = name->file ? strdup(name->file) : NULL;
    k->format = name->format ? strdup(name->format) : NULL;
    bool all = !name->file == !k->file && !name->format == !k->format;
    return all ? 0 : byre_fail(err, NOMEM, "no memory for a file name");
}

int relink_add(struct co *co, struct relink *l, const struct relink_what *w, struct byre_err *err)
{
    if (l->count == LINKS_MAX)
        return byre_fail(err, LIMIT, "%s: more than %u images lie right above it", graph_filename(w->n), LINKS_MAX);
    struct link *k = &l->all[l->count++];
    *k = (struct link){ .n = w->n, .from = graph_backing(w->n), .to = w->to, .optional = w->optional };
    graph_ref(k->n);
    if (k->from)
        graph_ref(k->from);
    if (k->to)
        graph_ref(k->to);
    int r = copy_names(k, &w->name, err);
    if (!r)
        r = graph_format(k->n)->info(co, graph_image(k->n), &k->old, err);
    if (!r && !graph_read_only(k->n) && !k->optional)
        r = graph_rebase_check(co, k->n, k->to, &w->name, err);
    return r;
}

static int change(struct co *co, struct link *k, uint64_t longest, struct byre_err *err)
{
    const struct graph_name name = { k->file, k->format, longest };
    int r = graph_make_header_writable(co, k->n, err);
    k->opened = !r;
    if (!r)
        r = graph_rebase(co, k->n, k->to, &name, err);
    k->done = !r;
    return r;
}

static void set_back(struct co *co, struct link *k)
{
    struct byre_err why = { 0 };
    const struct graph_name name = { k->old.backing_name, k->old.backing_format, 0 };
    if (k->done && graph_rebase(co, k->n, k->from, &name, &why))
        graph_warn(k->n, "%s: goes on naming '%s' as its backing file, which shows the same: %s", graph_filename(k->n), k->file ? k->file : "", why.text);
    else
        k->done = false;
}

int relink_run(struct co *co, struct relink *l, uint64_t longest, struct byre_err *err)
{
    for (unsigned i = 0; i < l->count; i++) {
        struct byre_err why = { 0 };
        struct link *k = &l->all[i];
        if (k->done)
            continue;
        int r = change(co, k, k->optional ? 0 : longest, &why);
        if (r && k->optional) {
            graph_warn(k->n, "%s: goes on naming the backing file that it had: %s", graph_filename(k->n), why.text);
        } else if (r) {
            while (i-- > 0)
                set_back(co, &l->all[i]);
            if (err)
                *err = why;
            return r;
        }
    }
    return 0;
}

static void link_end(struct co *co, struct link *k)
{
    if (k->opened)
        graph_writer_gone(co, k->n);
    struct graph_node *held[] = { k->n, k->from, k->to };
    for (unsigned i = 0; i < 3; i++) {
        int r = held[i] ? graph_close(co, held[i]) : 0;
        (void)r;                         /* what is closed here is open for reading, or has a claim that tells */
    }
    free(k->file);
    free(k->format);
    fmt_info_fini(&k->old);
}

void relink_free(struct co *co, struct relink *l)
{
    for (unsigned i = 0; l && i < l->count; i++)
        link_end(co, &l->all[i]);
    free(l);
}
