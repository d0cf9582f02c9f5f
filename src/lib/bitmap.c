/* SPDX-License-Identifier: MIT
 *
 * bitmap.c: dirty bitmaps in the public words.
 *
 * Purpose      graph_bitmap_* for callers that block.
 * Owns         Nothing.
 * Invariants   I1 Everything runs on the home loop: a bitmap that was found stays while it is used.
 * Concurrency  any foreign thread
 * Failure      as graph.h
 * Tests        tests/cli/bitmap_test.py, lib_test.c
 */
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
    struct byre_err *err;
};

static int on_home(struct call *c, int (*fn)(struct co *co, void *arg))
{
    return lib_call(c->image->ctx, lib_home(c->image->ctx), fn, c);
}

/* ---- one at a time ---- */

static int add_co(struct co *co, void *arg)
{
    struct call *c = arg;
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
    return on_home(&c, add_co);
}

static int remove_co(struct co *co, void *arg)
{
    struct call *c = arg;
    return graph_bitmap_remove(co, c->image->node, c->name, c->err);
}

int byre_bitmap_remove(struct byre_image *image, const char *name, struct byre_err *err)
{
    struct call c = { .image = image, .name = name, .err = err };
    return on_home(&c, remove_co);
}

static int clear_co(struct co *co, void *arg)
{
    struct call *c = arg;
    return graph_bitmap_clear(co, c->image->node, c->name, c->err);
}

int byre_bitmap_clear(struct byre_image *image, const char *name, struct byre_err *err)
{
    struct call c = { .image = image, .name = name, .err = err };
    return on_home(&c, clear_co);
}

static int enable_co(struct co *co, void *arg)
{
    struct call *c = arg;
    return graph_bitmap_enable(co, c->image->node, c->name, c->on, c->err);
}

int byre_bitmap_enable(struct byre_image *image, const char *name, struct byre_err *err)
{
    struct call c = { .image = image, .name = name, .on = true, .err = err };
    return on_home(&c, enable_co);
}

int byre_bitmap_disable(struct byre_image *image, const char *name, struct byre_err *err)
{
    struct call c = { .image = image, .name = name, .err = err };
    return on_home(&c, enable_co);
}

static int merge_co(struct co *co, void *arg)
{
    struct call *c = arg;
    struct graph_bitmap_ref src = { c->source->node, c->source_name };
    return graph_bitmap_merge(co, c->image->node, c->name, &src, 1, c->err);
}

int byre_bitmap_merge(struct byre_image *image, const char *name, struct byre_image *source, const char *source_name, struct byre_err *err)
{
    struct call c = { .image = image, .name = name, .source = source, .source_name = source_name, .err = err };
    if (source->ctx != image->ctx)
        return byre_fail(err, BAD_ARGUMENT, "both images must be open in one context");
    return on_home(&c, merge_co);
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

static int copy_one(struct co *co, struct call *c, struct fmt_bitmap *b)
{
    struct graph_node *to = c->image->node, *from = c->source->node;
    struct graph_bitmap_spec spec = { b->name, UINT64_C(1) << b->granularity_bits, true, !b->enabled };
    struct graph_bitmap_ref src = { from, b->name };
    int r = graph_bitmap_add(co, to, &spec, c->err);
    return r ? r : graph_bitmap_merge(co, to, b->name, &src, 1, c->err);
}

/* Can it be copied? 1: yes; 0: it is left out. */
static int choose(struct co *co, struct call *c, struct fmt_bitmap *b)
{
    struct byre_err why = { 0 };
    if (!b->persistent)
        return 0;
    int r = graph_bitmap_load(co, c->source->node, b, &why);
    if (!r)
        return 1;
    if (!c->skip_broken || (!b->bad && !b->inconsistent))
        return byre_fail_code(c->err, BITMAP_INCONSISTENT, r, "%s", why.text);
    graph_warn(c->image->node, "skipping bitmap: %s", why.text);
    return 0;
}

/* Takes out again what was added. */
static void undo(struct co *co, struct call *c, struct fmt_bitmap *end)
{
    struct fmt_bitmap *list;
    int r = graph_bitmaps(co, c->source->node, &list, NULL);
    for (; !r && list != end; list = list->next)
        if (list->persistent)
            (void)!graph_bitmap_remove(co, c->image->node, list->name, NULL);      /* those that were left out are not there */
}

static int copy_all_co(struct co *co, void *arg)
{
    struct call *c = arg;
    struct fmt_bitmap *b, *first, *there;
    int r = graph_bitmaps(co, c->source->node, &first, c->err);
    for (b = first; !r && b; b = b->next) {
        r = graph_bitmap_find(co, c->image->node, b->name, &there, c->err);
        if (!r && there && b->persistent)
            r = byre_fail(c->err, EXISTS, "%s: there is a bitmap '%s' already", graph_filename(c->image->node), b->name);
    }
    if (r)
        return r;
    graph_bitmap_batch_begin(c->image->node);
    for (b = first; !r && b; b = b->next) {
        r = choose(co, c, b);
        if (r > 0)
            r = copy_one(co, c, b);
    }
    if (r < 0)
        undo(co, c, b);
    int stored = graph_bitmap_batch_end(co, c->image->node, r ? NULL : c->err);
    if (!r && stored)
        undo(co, c, NULL);
    return r ? r : stored;
}

int byre_bitmap_copy_all(struct byre_image *image, struct byre_image *source, int skip_broken, struct byre_err *err)
{
    struct call c = { .image = image, .source = source, .skip_broken = skip_broken, .err = err };
    if (source->ctx != image->ctx || source == image)
        return byre_fail(err, BAD_ARGUMENT, "two images open in one context are needed");
    return on_home(&c, copy_all_co);
}
