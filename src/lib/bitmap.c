/* SPDX-License-Identifier: MIT
 *
 * bitmap.c: dirty bitmaps in the public words.
 *
 * Purpose      graph_bitmap_* for callers that block.
 * Owns         Nothing.
 * Invariants   I1 Everything runs on the home loop. What changes bitmaps holds edges, as commands of the control socket and jobs do that begin with one
 *                 (graph_edges_hold): a bitmap that was found stays while it is used.
 * Concurrency  any foreign thread
 * Failure      as graph.h
 * Tests        tests/cli/bitmap_test.py, lib_test.c
 */
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "graph/runtime.h"
#include "lib/lib_priv.h"

struct call {
    struct byre_image *image, *source;
    const char *name, *source_name;
    struct graph_bitmap_spec spec;
    uint64_t off, len;
    bool on, skip_broken, dirty;
    struct byre_bitmap_status status;
    int (*change)(struct co *co, struct call *c);
    struct byre_err *err;
};

static int on_home(struct call *c, int (*fn)(struct co *co, void *arg))
{
    return lib_call(c->image->ctx, lib_home(c->image->ctx), fn, c);
}

/* I1 */
static int alone_co(struct co *co, void *arg)
{
    struct call *c = arg;
    graph_edges_hold(co, c->image->ctx->graph);
    int r = c->change(co, c);
    graph_edges_let(co, c->image->ctx->graph);
    return r;
}

static int alone(struct call *c, int (*change)(struct co *co, struct call *c))
{
    c->change = change;
    return on_home(c, alone_co);
}

/* ---- one at a time ---- */

static int do_add(struct co *co, struct call *c)
{
    return graph_bitmap_add(co, c->image->node, &c->spec, c->err);
}

int byre_bitmap_add(struct byre_image *image, const char *name, const struct byre_bitmap_opts *opts, struct byre_err *err)
{
    struct byre_bitmap_opts o;
    int r = lib_take_opts(&o, sizeof o, opts, err);
    if (!r && (o.flags & ~(unsigned)(BYRE_BITMAP_PERSISTENT | BYRE_BITMAP_DISABLED)))
        r = byre_fail(err, BAD_ARGUMENT, "an option of the bitmap is out of range");
    if (r)
        return r;
    struct call c = { .image = image, .err = err, .spec = { name, o.granularity, o.flags & BYRE_BITMAP_PERSISTENT, o.flags & BYRE_BITMAP_DISABLED } };
    return alone(&c, do_add);
}

static int do_remove(struct co *co, struct call *c)
{
    return graph_bitmap_remove(co, c->image->node, c->name, c->err);
}

int byre_bitmap_remove(struct byre_image *image, const char *name, struct byre_err *err)
{
    struct call c = { .image = image, .name = name, .err = err };
    return alone(&c, do_remove);
}

static int do_clear(struct co *co, struct call *c)
{
    return graph_bitmap_clear(co, c->image->node, c->name, c->err);
}

int byre_bitmap_clear(struct byre_image *image, const char *name, struct byre_err *err)
{
    struct call c = { .image = image, .name = name, .err = err };
    return alone(&c, do_clear);
}

static int do_enable(struct co *co, struct call *c)
{
    return graph_bitmap_enable(co, c->image->node, c->name, c->on, c->err);
}

int byre_bitmap_enable(struct byre_image *image, const char *name, struct byre_err *err)
{
    struct call c = { .image = image, .name = name, .on = true, .err = err };
    return alone(&c, do_enable);
}

int byre_bitmap_disable(struct byre_image *image, const char *name, struct byre_err *err)
{
    struct call c = { .image = image, .name = name, .err = err };
    return alone(&c, do_enable);
}

static int do_merge(struct co *co, struct call *c)
{
    struct graph_bitmap_ref src = { c->source->node, c->source_name };
    return graph_bitmap_merge(co, c->image->node, c->name, &src, 1, c->err);
}

int byre_bitmap_merge(struct byre_image *image, const char *name, struct byre_image *source, const char *source_name, struct byre_err *err)
{
    struct call c = { .image = image, .name = name, .source = source, .source_name = source_name, .err = err };
    if (source->ctx != image->ctx)
        return byre_fail(err, BAD_ARGUMENT, "both images must be open in one context");
    return alone(&c, do_merge);
}

/* ---- looking ---- */

static int find(struct co *co, struct call *c, struct fmt_bitmap **ret_b)
{
    int r = graph_bitmap_find(co, c->image->node, c->name, ret_b, c->err);
    if (!r && !*ret_b)
        r = byre_fail(c->err, NOT_FOUND, "%s: there is no bitmap '%s'", graph_filename(c->image->node), c->name);
    return r;
}

/* Another thread does not remove what is being looked at. */
static int looking(struct co *co, struct call *c, int (*look)(struct co *co, struct call *c))
{
    struct graph_node *n = graph_skip_filters(c->image->node);
    graph_hold_image(co, n);
    int r = look(co, c);
    graph_release_image(n);
    return r;
}

static int get_held(struct co *co, struct call *c)
{
    struct fmt_bitmap *b;
    int r = find(co, c, &b);
    if (!r && !b->bad && !b->inconsistent)
        r = graph_bitmap_load(co, c->image->node, b, b->bits ? NULL : c->err);
    if (r && (!b || !b->bad))
        return r;
    c->status.granularity = UINT64_C(1) << b->granularity_bits;
    c->status.dirty = b->bits ? dirty_count(b->bits) : 0;
    c->status.flags = (b->persistent ? BYRE_BITMAP_PERSISTENT : 0) | (b->enabled ? 0 : BYRE_BITMAP_DISABLED) |
                      (b->inconsistent ? BYRE_BITMAP_INCONSISTENT : 0) | (b->bad ? BYRE_BITMAP_DAMAGED : 0) | (b->busy ? BYRE_BITMAP_BUSY : 0);
    return 0;
}

static int get_co(struct co *co, void *arg) { return looking(co, arg, get_held); }

int byre_bitmap_get(struct byre_image *image, const char *name, struct byre_bitmap_status *ret, struct byre_err *err)
{
    struct call c = { .image = image, .name = name, .err = err, .status = byre_bitmap_status_init() };
    int r = on_home(&c, get_co);
    size_t size = ret->struct_size;
    if (r)
        return r;
    memcpy(ret, &c.status, size < sizeof c.status ? size : sizeof c.status);
    ret->struct_size = size;
    return 0;
}

static int run_held(struct co *co, struct call *c)
{
    struct fmt_bitmap *b;
    uint64_t end;
    int r = find(co, c, &b);
    if (!r)
        r = graph_bitmap_load(co, c->image->node, b, c->err);
    if (r)
        return r;
    if (c->off >= b->bits->size) {           /* the end of a raw image, rounded up to whole sectors */
        c->dirty = dirty_test(b->bits, b->bits->size - 1);
        return 0;
    }
    c->dirty = dirty_run(b->bits, c->off, c->off + c->len, &end);
    c->len = end - c->off;
    return 0;
}

static int run_co(struct co *co, void *arg) { return looking(co, arg, run_held); }

int byre_bitmap_run(struct byre_image *image, const char *name, uint64_t off, uint64_t len, uint64_t *ret_len, struct byre_err *err)
{
    struct call c = { .image = image, .name = name, .off = off, .len = len, .err = err };
    if (!len || !range_inside(off, len, graph_length(image->node)))
        return byre_fail(err, BAD_ARGUMENT, "the range does not lie inside the image");
    int r = on_home(&c, run_co);
    if (r)
        return r;
    *ret_len = c.len;
    return c.dirty;
}

/* ---- all of them ---- */

/* Names, owned, for the bitmaps themselves may go when their image is opened in another way meanwhile. */
struct names { char **list; unsigned count; };

static void names_free(struct names *n)
{
    while (n->count)
        free(n->list[--n->count]);
    free(n->list);
}

/* Of all that the source keeps. */
static int take_names(struct co *co, struct call *c, struct names *ret)
{
    struct fmt_bitmap *first;
    unsigned all = 0;
    int r = graph_bitmaps(co, c->source->node, &first, c->err);
    for (const struct fmt_bitmap *b = first; b; b = b->next)
        all++;
    if (!r && !(ret->list = calloc(all + 1, sizeof *ret->list)))
        r = -ENOMEM;
    for (const struct fmt_bitmap *b = first; !r && b; b = b->next)
        if (b->persistent && (ret->list[ret->count] = strdup(b->name)))
            ret->count++;
        else if (b->persistent)
            r = -ENOMEM;
    return r == -ENOMEM ? byre_fail(c->err, NOMEM, "no memory for a list of bitmaps") : r;
}

static int need_none(struct co *co, struct call *c, const struct names *n)
{
    struct fmt_bitmap *there;
    int r = 0;
    for (unsigned i = 0; !r && i < n->count; i++) {
        r = graph_bitmap_find(co, c->image->node, n->list[i], &there, c->err);
        if (!r && there)
            r = byre_fail(c->err, EXISTS, "%s: there is a bitmap '%s' already", graph_filename(c->image->node), n->list[i]);
    }
    return r;
}

/* Can it be copied? 1: yes, *spec says how it is made; 0: it is left out, or has gone. */
static int choose(struct co *co, struct call *c, const char *name, struct graph_bitmap_spec *spec)
{
    struct byre_err why = { 0 };
    struct fmt_bitmap *b;
    int r = graph_bitmap_find(co, c->source->node, name, &b, c->err);
    if (r || !b || !b->persistent)
        return r;
    *spec = (struct graph_bitmap_spec){ name, UINT64_C(1) << b->granularity_bits, true, !b->enabled };
    r = graph_bitmap_load(co, c->source->node, b, &why);
    if (!r)
        return 1;
    if (!c->skip_broken || (!b->bad && !b->inconsistent))
        return byre_fail_code(c->err, BITMAP_INCONSISTENT, r, "%s", why.text);
    graph_warn(c->image->node, "skipping bitmap: %s", why.text);
    return 0;
}

static int copy_one(struct co *co, struct call *c, const char *name)
{
    struct graph_node *to = c->image->node, *from = c->source->node, *image = graph_skip_filters(from);
    struct graph_bitmap_spec spec;
    struct graph_bitmap_ref src = { from, name };
    graph_hold_image(co, image);
    int r = choose(co, c, name, &spec);
    graph_release_image(image);
    if (r <= 0)
        return r;
    r = graph_bitmap_add(co, to, &spec, c->err);
    return r ? r : graph_bitmap_merge(co, to, name, &src, 1, c->err);
}

/* Takes out again what was added. */
static void undo(struct co *co, struct call *c, const struct names *n, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        (void)!graph_bitmap_remove(co, c->image->node, n->list[i], NULL);      /* those that were left out are not there */
}

static int copy_named(struct co *co, struct call *c, const struct names *n)
{
    unsigned i = 0;
    int r = need_none(co, c, n);
    if (r)
        return r;
    graph_bitmap_batch_begin(c->image->node);
    for (; !r && i < n->count; i++)
        r = copy_one(co, c, n->list[i]);
    if (r)
        undo(co, c, n, i);
    int stored = graph_bitmap_batch_end(co, c->image->node, r ? NULL : c->err);
    if (!r && stored)
        undo(co, c, n, n->count);
    return r ? r : stored;
}

static int do_copy_all(struct co *co, struct call *c)
{
    struct names n = { 0 };
    struct graph_node *image = graph_skip_filters(c->source->node);
    graph_hold_image(co, image);
    int r = take_names(co, c, &n);
    graph_release_image(image);
    if (!r)
        r = copy_named(co, c, &n);
    names_free(&n);
    return r;
}

int byre_bitmap_copy_all(struct byre_image *image, struct byre_image *source, int skip_broken, struct byre_err *err)
{
    struct call c = { .image = image, .source = source, .skip_broken = skip_broken, .err = err };
    if (source->ctx != image->ctx || source == image)
        return byre_fail(err, BAD_ARGUMENT, "two images open in one context are needed");
    return alone(&c, do_copy_all);
}
