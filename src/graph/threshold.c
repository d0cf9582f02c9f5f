/* SPDX-License-Identifier: MIT
 *
 * threshold.c: tells once that a node was written to behind an offset (FEATURES 9.098).
 *
 * Purpose     A watcher of the node (watch.c) that looks at the ends of writes. At a bare file it looks at the store, to which images over the file
 *             write directly.
 * Owns        node->threshold.
 * Invariants  Several filters over an image have one threshold, the image's: the one that was set last.
 *             T1  The message is under way at most once: it is not posted again before it has arrived.
 * Order       None.
 * Concurrency Set on the home loop; looked at on any.
 * Failure     Memory, when it is set.
 * Tests       tests/cli/blockdev_test.py
 */
#include <stdlib.h>
#include <string.h>

#include "graph/filter.h"

struct threshold {
    struct graph_watch w;
    struct stor_end_watch at_store;
    struct rt_msg msg;
    struct graph_node *node;
    char named[GRAPH_NAME_MAX + 1];      /* the node that the user named: this one, or a filter over it */
    _Atomic uint64_t offset;             /* 0: not armed */
    atomic_bool posted;                  /* T1 */
    uint64_t told_offset, told_end;      /* of the message */
};

static void arrived(struct rt_msg *m)
{
    struct threshold *t = CONTAINER_OF(m, struct threshold, msg);
    struct graph *g = t->node->g;
    if (g->threshold_fn)
        g->threshold_fn(g->threshold_arg, t->named, t->told_end - t->told_offset, t->told_offset);
    atomic_store(&t->posted, false);
}

static void look_at(struct threshold *t, uint64_t end)
{
    uint64_t offset = atomic_load(&t->offset);
    bool over = offset && end > offset;
    if (over && !atomic_exchange(&t->posted, true)) {
        if (atomic_compare_exchange_strong(&t->offset, &offset, 0)) {
            t->told_offset = offset;
            t->told_end = end;
            rt_post(t->node->g->home, &t->msg);
        } else {
            atomic_store(&t->posted, false);
        }
    }
}

static int look(struct co *co, struct graph_watch *w, struct graph_change *ch)
{
    if (ch->kind != GRAPH_CHANGE_DISCARD)
        look_at(CONTAINER_OF(w, struct threshold, w), ch->off + ch->len);
    return graph_change_go(co, ch);
}

static void look_at_store(struct stor_end_watch *w, uint64_t end) { look_at(CONTAINER_OF(w, struct threshold, at_store), end); }

void threshold_follow(struct graph_node *n)
{
    if (n->threshold && n->is_file)
        stor_watch_ends(n->im->store, &n->threshold->at_store);
}

int graph_set_write_threshold(struct co *co, struct graph_node *n, uint64_t offset, struct byre_err *err)
{
    ASSERT_LOOP(n->g->home);
    const struct graph_node *named = n;
    int r = graph_need_image(n, "a threshold", err);
    n = graph_skip_filters(n);
    if (r || (!n->threshold && !offset))
        return r;
    bool is_new = !n->threshold;
    if (is_new) {
        struct threshold *t = calloc(1, sizeof *t);
        if (!t)
            return byre_fail(err, NOMEM, "no memory for a threshold");
        t->node = n;
        t->w.change = look;
        t->msg.fn = arrived;
        t->at_store.fn = look_at_store;
        n->threshold = t;
        graph_ref(n);                            /* the caller holds what he named, which may be a filter that comes to lie elsewhere */
        if (n->is_file)
            threshold_follow(n);
        else
            graph_watch_add(co, n, &t->w);
    }
    memcpy(n->threshold->named, named->name, sizeof named->name);
    atomic_store(&n->threshold->offset, offset);
    if (is_new)
        (void)!graph_close(co, n);               /* whoever took it away meanwhile was told what there was to tell */
    return 0;
}

uint64_t graph_write_threshold(const struct graph_node *n)
{
    return n->threshold ? atomic_load(&n->threshold->offset) : 0;
}

void graph_watch_threshold(struct graph *g, graph_threshold_fn *fn, void *arg)
{
    ASSERT_LOOP(g->home);
    g->threshold_fn = fn;
    g->threshold_arg = arg;
}

void threshold_free(struct co *co, struct graph_node *n)
{
    struct threshold *t = n->threshold;
    if (!t)
        return;
    if (n->is_file)
        stor_watch_ends(n->im->store, NULL);     /* nobody shares it any more, or writes */
    _Atomic(struct graph_watch *) *at = &n->watches;
    while (!n->is_file && atomic_load(at) != &t->w)
        at = &atomic_load(at)->link;
    if (!n->is_file)
        atomic_store(at, atomic_load(&t->w.link));      /* nobody is inside: no grace period is needed */
    while (atomic_load(&t->posted))              /* T1: it is on its way to this loop */
        co_yield(co);
    n->threshold = NULL;
    free(t);
}
