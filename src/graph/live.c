/* SPDX-License-Identifier: MIT
 *
 * live.c: layers of a chain that a job changes while the disk above is in use.
 *
 * Purpose     Keeps others away from layers whose content changes below their feet, and lets the lowest of them be written.
 * Owns        struct graph_claim; a reference of each of its layers.
 * Invariants  live.h. Further: a layer's own overlay is the only one that reads it while it is claimed.
 * Order       Giving up content: from the lowest layer to the top, each durable before the next (J2).
 * Concurrency Home loop.
 * Failure     graph_claim_layers leaves nothing behind but, perhaps, a longer base.
 * Tests       tests/cli/live_commit_test.py, tests/crash/test_chain_crash.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/mutant.h"
#include "graph/graph_priv.h"
#include "graph/live.h"
#include "graph/runtime.h"

#define CHANGES (STOR_PERM_WRITE | STOR_PERM_RESIZE)

struct claimed { struct graph_node *n; struct graph_user use; unsigned overlay_shared; bool opened; };

struct graph_claim {
    char *who;
    bool frozen, relaxed;
    bool base_let;                       /* the layer over the base puts up with changes of it; who makes them is the caller */
    unsigned count;                      /* all[0] is the top, all[count - 1] the base */
    struct claimed all[];
};

void graph_chain_hold(struct co *co, struct graph_node *const *all, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        if (all[i])
            graph_ref(all[i]);
    graph_edges_hold(co, all[0]->g);
}

void graph_chain_let(struct co *co, struct graph_node *const *all, unsigned count)
{
    graph_edges_let(co, all[0]->g);
    for (unsigned i = 0; i < count; i++)
        (void)node_unref(co, all[i]);            /* closes it when its last user went meanwhile; then there is nobody left to tell */
}

/* ---- claims ---- */

static struct graph_claim *claim_new(struct graph_node *top, const struct graph_node *base, const char *who)
{
    unsigned count = 1;
    for (const struct graph_node *n = top; n != base; n = n->backing)
        count++;
    struct graph_claim *c = calloc(1, sizeof *c + count * sizeof c->all[0]);
    if (!c || !(c->who = strdup(who))) {
        free(c);
        return NULL;
    }
    c->count = count;
    for (unsigned i = 0; i < count; i++, top = top->backing) {
        c->all[i].n = top;
        graph_ref(top);
    }
    return c;
}

/* Layers below the top: their overlays put up with changes, everybody else must not be there. */
static int take(struct graph_claim *c, unsigned i, struct byre_err *err)
{
    struct claimed *l = &c->all[i];
    struct graph_user *above = i ? &c->all[i - 1].n->backing_use : NULL;
    unsigned perm = i ? CHANGES : STOR_PERM_READ;
    l->use = (struct graph_user){ .who = c->who, .perm = STOR_PERM_READ, .shared = STOR_PERM_READ | STOR_PERM_WRITE_UNCHANGED };
    int r = perm_check(l->n, above, perm, c->who, err);
    if (!r && above) {
        l->overlay_shared = above->shared;
        above->shared |= CHANGES;
    }
    if (!r)
        r = graph_user_add(l->n, &l->use, err);
    if (!r)
        l->use.perm = perm;              /* what is seen through it changes, whether or not it is written itself */
    return r;
}

/* Its content changes no more; it still must not be changed by others. */
static void lower(struct graph_claim *c, unsigned i)
{
    struct claimed *l = &c->all[i];
    if (!l->use.node)
        return;
    l->use.perm = STOR_PERM_READ;
    if (i && c->all[i - 1].n->backing == l->n)
        c->all[i - 1].n->backing_use.shared = l->overlay_shared;
}

int graph_make_long(struct co *co, struct graph_node *base, uint64_t size, struct byre_err *err)
{
    return graph_length(base) < size ? graph_resize(co, base, size, FMT_PREALLOC_OFF, err) : 0;
}

static int claim_layers(struct co *co, struct graph_node *top, struct graph_node *base, const char *who, struct graph_claim **ret, struct byre_err *err)
{
    if (!graph_lies_above(top, base))
        return byre_fail(err, BUSY, "node '%s': does not lie below node '%s' any more", base->name, top->name);
    struct graph_claim *c = claim_new(top, base, who);
    if (!c)
        return byre_fail(err, NOMEM, "no memory to use a chain");
    struct graph_user *above = &c->all[c->count - 2].n->backing_use;
    const unsigned shared = above->shared;
    int r = graph_make_writable(co, base, c->all[c->count - 2].n, err);
    c->all[c->count - 1].opened = !r;
    if (!r)
        r = perm_check(base, above, CHANGES, who, err);
    if (!r) {
        above->shared |= CHANGES;                /* also of a base that was open for writing before */
        r = graph_make_long(co, base, graph_length(top), err);
    }
    above->shared = shared;                      /* take() says so for as long as the claim stands */
    for (unsigned i = 0; !r && i < c->count; i++)
        r = take(c, i, err);
    if (!r)
        r = graph_freeze(top, base, err);
    c->frozen = !r;
    if (r) {
        graph_claim_end(co, c);
        return r;
    }
    *ret = c;
    return 0;
}

int graph_claim_layers(struct co *co, struct graph_node *top, struct graph_node *base, const char *who, struct graph_claim **ret, struct byre_err *err)
{
    struct graph *g = top->g;
    graph_edges_hold(co, g);
    int r = claim_layers(co, top, base, who, ret, err);
    graph_edges_let(co, g);
    return r;
}

static int let_base(struct graph_claim *c, struct byre_err *err)
{
    struct claimed *l = &c->all[c->count - 1];
    struct graph_user *above = &c->all[c->count - 2].n->backing_use;
    int r = perm_check(l->n, above, CHANGES, c->who, err);
    if (r)
        return r;
    l->overlay_shared = above->shared;
    above->shared |= CHANGES;
    c->base_let = true;
    return 0;
}

/* Unless the disk is there now: then it is changed, whatever lies over it. */
static void shut_base(struct graph_claim *c)
{
    struct claimed *l = &c->all[c->count - 1];
    struct graph_user *above = &c->all[c->count - 2].n->backing_use;
    if (!c->base_let || above->node != l->n)
        return;
    for (const struct graph_user *u = l->n->users; u; u = u->next)
        if (u != above && (u->perm & ~l->overlay_shared))
            return;
    above->shared = l->overlay_shared;
}

int graph_claim_between(struct graph_node *top, struct graph_node *base, const char *who, struct graph_claim **ret, struct byre_err *err)
{
    ASSERT_LOOP(top->g->home);
    ASSERT(graph_lies_above(top, base));
    struct graph_claim *c = claim_new(top, base, who);
    int r = c ? 0 : byre_fail(err, NOMEM, "no memory to use a chain");
    for (unsigned i = 1; !r && i + 1 < c->count; i++)
        r = take(c, i, err);
    if (!r)
        r = let_base(c, err);
    *ret = c;
    return r;
}

/* What was opened for the claim does not go back to reading (mode.c M7) while the claim stands, though nobody writes to it for a moment. */
static void keep_opened(struct graph_claim *c, int by)
{
    for (unsigned i = 0; i < c->count; i++)
        if (c->all[i].opened)
            c->all[i].n->wanted += (unsigned)by;
}

void graph_claim_relax(struct graph_claim *c)
{
    if (c->frozen)
        graph_thaw(c->all[0].n, c->all[c->count - 1].n);
    c->frozen = false;
    if (c->relaxed)
        return;
    keep_opened(c, 1);
    for (unsigned i = 0; i < c->count; i++)
        lower(c, i);
    c->relaxed = true;
}

int graph_claim_again(struct graph_claim *c, struct byre_err *err)
{
    int r = 0;
    ASSERT(c->relaxed);
    for (unsigned i = 0; i < c->count; i++)
        graph_user_remove(&c->all[i].use);
    for (unsigned i = 0; !r && i < c->count; i++)
        r = i && c->all[i - 1].n->backing != c->all[i].n ? byre_fail(err, BUSY, "node '%s': lies above another node now", c->all[i - 1].n->name) : take(c, i, err);
    c->relaxed = false;
    if (!r)
        r = graph_freeze(c->all[0].n, c->all[c->count - 1].n, err);
    c->frozen = !r;
    keep_opened(c, -1);
    return r;
}

void graph_claim_end(struct co *co, struct graph_claim *c)
{
    if (!c)
        return;
    graph_claim_relax(c);
    for (unsigned i = 0; i < c->count; i++)
        graph_user_remove(&c->all[i].use);
    shut_base(c);
    keep_opened(c, -1);
    for (unsigned i = c->count; i-- > 0;)
        if (c->all[i].opened && c->all[i].n->refs > 1)
            graph_writer_gone(co, c->all[i].n);
    for (unsigned i = 0; i < c->count; i++) {
        struct graph_node *n = c->all[i].n;
        bool writable = !n->read_only && n->refs == 1;
        int r = node_unref(co, n);
        if (r && writable)
            graph_warn(c->all[c->count - 1].n, "a layer of the chain was not closed well: %s", strerror(-r));
    }
    free(c->who);
    free(c);
}

/* ---- what is between top and base gives its content up ---- */

int graph_claim_open_all(struct co *co, struct graph_claim *c, struct byre_err *err)
{
    for (unsigned i = 0; i + 1 < c->count; i++) {
        struct claimed *l = &c->all[i];
        if (!l->n->im->ops->forget || l->n->im->data_raw)
            return byre_fail(err, NOT_SUPPORTED, "%s: cannot give up a part of its content", l->n->filename);
        int r = graph_make_header_writable(co, l->n, err);
        l->opened = !r;
        if (!r)
            r = perm_check(l->n, &l->use, STOR_PERM_WRITE_UNCHANGED, c->who, err);
        if (r)
            return r;
        l->use.perm |= STOR_PERM_WRITE_UNCHANGED;        /* of the top, too: it stays open for writing (mode.c M7) */
        l->n->discard = true;                    /* that is what it is for */
    }
    return 0;
}

/* Whatever a layer goes on hiding, those above it must go on showing: they forget no more than it has forgotten, and no more than it is long. */
int graph_claim_forget(struct co *co, const struct graph_claim *c, uint64_t off, uint64_t end, struct byre_err *err)
{
    for (unsigned k = c->count - 1; k-- > 0 && off < end;) {
        unsigned i = MUTANT(MUT_FORGET_TOP_FIRST) ? c->count - 2 - k : k;
        struct graph_node *n = c->all[i].n;
        uint64_t size = atomic_load_explicit(&n->im->size, memory_order_acquire);
        end = end >= size ? size : round_down(end, n->im->cluster);
        int r = end > off ? graph_forget(co, n, off, end - off) : 0;
        if (r)
            return byre_fail_code(err, IO, r, "%s: cannot give up its content at offset %" PRIu64 ": %s", n->filename, off, strerror(-r));
    }
    return 0;
}

int graph_claim_mark(struct co *co, const struct graph_claim *c, struct byre_err *err)
{
    int r = 0;
    if (c->count > 2)                            /* before the first mark: without a token they go by the name */
        r = graph_give_token(co, c->all[0].n, err);
    if (r == -ENOSPC)
        r = 0;
    for (unsigned i = 1; i + 1 < c->count && !r; i++)
        r = graph_mark_partial(co, c->all[i].n, c->all[0].n, err);
    return r;
}

/* ---- names ---- */

static bool means(const struct graph_node *overlay, const char *name, const struct graph_node *base)
{
    struct name_ref ref;
    if (name_parse(overlay->g->policy, name, overlay->filename, &ref, NULL))
        return false;
    bool same = !ref.data_path && !strcmp(ref.path, base->filename);
    name_ref_fini(&ref);
    return same;
}

const char *graph_name_format(struct graph_node *base)
{
    const struct graph_node *image = graph_skip_filters(base);
    return image ? graph_format(image)->name : NULL;
}

int graph_name_of(struct co *co, const struct graph_node *overlay, struct graph_node *like, char **ret_name, struct byre_err *err)
{
    struct graph_node *base = like->backing;
    struct fmt_info info = { 0 };
    graph_ref(base);                             /* whatever becomes of the edge */
    int r = graph_name_check(co, base, "say by 'backing-file' what is to be recorded", err);
    if (!r)
        r = like->im->ops->info(co, like->im, &info, err);
    if (r) {
        (void)node_unref(co, base);              /* it is open for reading, or its user is there to be told */
        return r;
    }
    const struct graph_node *image = graph_skip_filters(base);       /* which is what a name opens: a filter is in no file */
    bool fits = info.backing_name && means(overlay, info.backing_name, image);
    char *name = strdup(fits ? info.backing_name : image->filename);
    *ret_name = fits || !name ? NULL : graph_real_path(co, name);
    if (*ret_name)
        free(name);
    else
        *ret_name = name;
    fmt_info_fini(&info);
    (void)node_unref(co, base);
    return *ret_name ? 0 : byre_fail(err, NOMEM, "no memory for a file name");
}
