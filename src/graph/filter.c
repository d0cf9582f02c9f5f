/* SPDX-License-Identifier: MIT
 *
 * filter.c: what all filters have in common, and attachments, which are filters that do nothing.
 *
 * Purpose     Makes them; the image in which there is nothing; passing requests on.
 * Owns        The image of a filter, and by the row's `free` what the filter has of its own.
 * Invariants  F1  A filter's image is as long as what it filters; with nothing below it, it is empty and read-only (an attachment: tray.c Y3).
 *             F2  Requests come to what lies below a filter inside a section of a gate at or above the filter.
 * Order       None: a filter has no metadata.
 * Concurrency Requests on any loop; all else on the home loop.
 * Failure     As graph.h.
 * Tests       runtime_test.c
 */
#include <stdlib.h>
#include <string.h>

#include "graph/active.h"
#include "graph/filter.h"

/* ---- the image in which there is nothing ---- */

struct shadow { struct fmt_image im; struct graph_node *n; struct fmt_ops ops; };

static int shadow_map(struct co *co, struct fmt_image *im, uint64_t off, uint64_t len, struct fmt_extent *ret_e)
{
    *ret_e = (struct fmt_extent){ .kind = FMT_ABSENT, .len = len };
    return 0;
}

/* chain.c: a filter below an overlay that wants to see reads. */
static int shadow_read(struct co *co, struct fmt_image *im, const struct fmt_extent *e, uint64_t off, struct iov v)
{
    return node_read(co, CONTAINER_OF(im, struct shadow, im)->n, v, off);
}

static int shadow_info(struct co *co, struct fmt_image *im, struct fmt_info *ret_info, struct byre_err *err)
{
    *ret_info = (struct fmt_info){ .virtual_size = im->size };
    return 0;
}

static int shadow_close(struct co *co, struct fmt_image *im)
{
    struct shadow *s = CONTAINER_OF(im, struct shadow, im);
    if (s->n->flt->free)
        s->n->flt->free(co, s->n);
    epoch_drain(co, im->epoch);
    epoch_free(im->epoch);
    free(s);
    return 0;
}

static struct shadow *shadow_new(struct graph_node *n, const char *name)
{
    struct shadow *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->n = n;
    s->ops = (struct fmt_ops){ .name = name ? name : "", .map = shadow_map, .read_encoded = shadow_read, .info = shadow_info, .close = shadow_close };
    s->im = (struct fmt_image){ .ops = &s->ops, .home = n->g->home, .granule = 1, .cluster = 1, .has_backing = true, .read_only = true, .below_zero_from = UINT64_MAX };
    if (epoch_new(n->g->home, &s->im.epoch)) {
        free(s);
        return NULL;
    }
    return s;
}

/* ---- life ---- */

/* Does n agree with what it filters? Makes it so. */
static bool refresh_one(struct graph_node *n)
{
    struct fmt_image *im = n->im;
    const struct graph_node *b = n->backing, *image = graph_skip_filters(n->backing);
    bool empty = !b && node_is_hidden(n);        /* tray.c Y3 */
    uint64_t size = image ? atomic_load(&image->im->size) : empty ? atomic_load(&im->size) : 0;        /* at once, however many lie between: others look while this runs */
    bool read_only = empty ? !(n->backing_use.perm & STOR_PERM_WRITE) : !b || b->read_only || n->inactive;
    struct stor *store = b ? b->im->store : NULL, *data = b ? b->im->data : NULL;
    uint32_t granule = b ? b->im->granule : 1, cluster = b ? b->im->cluster : 1;
    if (im->size == size && n->read_only == read_only && im->store == store && im->data == data && im->granule == granule && im->cluster == cluster)
        return true;                             /* it may be in use: only what lies above the change is drained */
    atomic_store(&im->size, size);
    n->read_only = im->read_only = read_only;
    im->store = store;
    im->data = data;
    im->granule = granule;
    im->cluster = cluster;
    if (n->flt->moved)
        n->flt->moved(n);
    return false;
}

void filters_refresh(struct graph *g)
{
    for (bool same = false; !same;) {            /* F1; what lies deeper is put right first, in as many rounds as filters lie over one another */
        same = true;
        LIST_FOR(l, &g->nodes) {
            struct graph_node *n = CONTAINER_OF(l, struct graph_node, link);
            if (n->flt && n->im && !refresh_one(n))
                same = false;
        }
    }
}

static unsigned filters_below(const struct graph_node *n)
{
    unsigned count = 0;
    for (; n; n = n->backing)
        count += n->flt != NULL;
    return count;
}

int filters_allow_above(const struct graph_node *n, struct byre_err *err)
{
    unsigned below = filters_below(n);
    return below >= FILTERS_MAX ? byre_fail(err, LIMIT, "node '%s': there are %u filters below it already, the limit is %u", n->name, below, FILTERS_MAX) : 0;
}

int filter_new(struct graph *g, const struct filter_new *f, struct graph_node **ret_n, struct byre_err *err)
{
    ASSERT_LOOP(g->home);
    struct graph_node *n;
    int r = f->below ? filters_allow_above(f->below, err) : 0;
    if (!r && f->below)
        r = active_allows(f->below, f->inactive, f->node_name ? f->node_name : f->ops->name, err);
    if (!r)
        r = node_new(g, f->node_name, &n, err);
    if (r)
        return r;
    n->inactive = f->inactive;
    struct shadow *s = shadow_new(n, f->ops->name);
    n->filename = s ? strdup(f->below ? f->below->filename : "") : NULL;
    if (!n->filename) {
        if (s)
            epoch_free(s->im.epoch);
        free(s);
        node_free(n);
        return byre_fail(err, NOMEM, "no memory for a node");
    }
    n->flt = f->ops;
    n->flt_arg = f->arg;
    n->im = &s->im;
    n->no_lock = true;
    n->ready = true;
    n->backing = f->below;
    n->backing_use = (struct graph_user){ .who = n->name, .shared = STOR_PERM_ALL, .idle = f->inactive };
    if (f->below) {
        r = graph_user_add(f->below, &n->backing_use, NULL);
        ASSERT(r == 0);                          /* it wants nothing yet */
        f->below->refs++;
    }
    filters_refresh(g);
    gates_update(g);
    *ret_n = n;
    return 0;
}

/* One that nobody has seen yet. */
static void filter_discard(struct graph_node *n)
{
    struct shadow *s = CONTAINER_OF(n->im, struct shadow, im);
    epoch_free(s->im.epoch);
    free(s);
    n->im = NULL;
    node_free(n);
}

/* ---- attachments ---- */

static const struct filter_ops attachment = { .name = NULL };

static bool is_attachment(const struct graph_node *n) { return n->flt == &attachment || n->flt == &tray_ops; }

int graph_attach(struct graph_node *n, const struct graph_attach_opts *o, struct graph_node **ret_a, struct byre_err *err)
{
    struct graph_node *a;
    struct filter_new f = { .ops = o->tray ? &tray_ops : &attachment };
    ASSERT(!is_attachment(n));
    int r = filter_new(n->g, &f, &a, err);
    if (r)
        return r;
    char *who = strdup(o->who);
    if (who) {
        free(a->filename);
        a->filename = who;
    }
    a->backing_use = (struct graph_user){ .who = a->filename, .perm = o->perm, .shared = o->shared, .idle = o->idle };
    r = who ? graph_user_add(n, &a->backing_use, err) : byre_fail(err, NOMEM, "no memory for a node");
    if (r) {
        filter_discard(a);
        return r;
    }
    a->inner = o->inner;
    a->backing = n;
    n->refs++;
    filters_refresh(n->g);
    gates_update(n->g);
    *ret_a = a;
    return 0;
}

bool node_is_hidden(const struct graph_node *n) { return is_attachment(n); }

int graph_detach(struct co *co, struct graph_node *a)
{
    ASSERT(is_attachment(a));
    ASSERT_LOOP(a->g->home);
    return node_unref(co, a);
}

struct graph_node *graph_attached(struct graph_node *n) { return is_attachment(n) ? n->backing : n; }

const char *graph_attached_name(struct graph_node *n)
{
    const struct graph_node *named = graph_skip_implicit(graph_attached(n));
    return named ? named->name : "";
}

bool graph_is_filter(const struct graph_node *n) { return n->flt && !is_attachment(n); }

bool graph_is_bare_file(const struct graph_node *n) { return n->is_file; }
struct graph_node *graph_file(const struct graph_node *n) { return n->file; }

void graph_set_implicit(struct graph_node *n) { n->implicit = true; }

struct graph_node *graph_skip_implicit(struct graph_node *n)
{
    while (n && n->implicit)
        n = n->backing;
    return n;
}

struct graph_node *graph_skip_filters(struct graph_node *n)
{
    while (n && n->flt)
        n = n->backing;
    return n;
}

int graph_need_image(const struct graph_node *n, const char *what, struct byre_err *err)
{
    if (graph_skip_filters((struct graph_node *)(uintptr_t)n))
        return 0;
    return byre_fail(err, BAD_ARGUMENT, "node '%s' is a filter that filters nothing: %s needs an image", graph_node_name(n), what);
}

/* ---- limits (FEATURES 11.039) ---- */

static uint64_t own_limit(const struct graph_node *n)
{
    if (!n->flt)
        return n->im->data->lim.max_transfer;
    return n->flt->max_transfer ? n->flt->max_transfer(n) : 0;
}

uint64_t graph_max_transfer(const struct graph_node *n)
{
    ASSERT_LOOP(n->g->home);
    uint64_t least = 0;
    for (const struct graph_node *layer = n; layer; layer = layer->backing)
        for (const struct graph_node *m = layer; m; m = m != layer && m->flt ? m->backing : m->file) {
            uint64_t own = own_limit(m);
            if (own && (!least || own < least))
                least = own;
        }
    return least;
}

/* ---- requests, inside a gate ---- */

int node_read(struct co *co, struct graph_node *n, struct iov v, uint64_t off)
{
    for (; UNLIKELY(n->flt != NULL); n = n->backing)
        if (n->flt->read)
            return n->flt->read(co, n, v, off);
    return chain_read(co, n, v, off);
}
