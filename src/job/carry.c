/* SPDX-License-Identifier: MIT
 *
 * carry.c: the bitmaps of a disk on its copy.
 *
 * Purpose      Whoever goes over to the copy goes on with the bitmaps.
 * Owns         nothing
 * Invariants   C1 what a bitmap of the copy says is what the one of the disk said while nobody wrote to either
 * Order        persistent ones are stored in the copy before the users are on it
 * Concurrency  home loop
 * Failure      the copy has the bitmaps that it had before
 * Tests        tests/cli/mirror_bitmap_test.py, tests/cli/mirror_test.py
 */
#include "job/carry.h"

#include "base/dirty.h"
#include "graph/runtime.h"

/* Whatever the copy is, if it is of this format. */
static int could_one(struct co *co, struct graph_node *from, const struct fmt_ops *ops, const char *copy, struct fmt_bitmap *b, struct byre_err *err)
{
    if (b->persistent && !ops->bitmaps_sync)
        return byre_fail(err, NOT_SUPPORTED, "%s: %s images cannot keep bitmaps, and '%s' of '%s' is persistent", copy, ops->name, b->name, graph_node_name(from));
    return graph_bitmap_load(co, from, b, err);
}

int job_carry_could(struct co *co, struct graph_node *from, const struct fmt_ops *ops, const char *copy, struct byre_err *err)
{
    struct fmt_bitmap *b;
    int r = graph_bitmaps(co, from, &b, err);
    for (; !r && b; b = b->next)
        r = could_one(co, from, ops, copy, b, err);
    return r;
}

/* What is there already may be older than bitmaps are. */
static int check_version(struct co *co, struct graph_node *image, const struct fmt_bitmap *b, struct byre_err *err)
{
    struct fmt_info info = { 0 };
    if (!b->persistent || graph_format(image) != &fmt_qcow2_ops)
        return 0;
    int r = graph_format(image)->info(co, graph_image(image), &info, err);
    if (r)
        return r;
    if (info.version < 3)
        r = byre_fail(err, NOT_SUPPORTED, "%s: version 2 images cannot keep bitmaps, and '%s' is persistent", graph_filename(image), b->name);
    fmt_info_fini(&info);
    return r;
}

int job_carry_check(struct co *co, struct graph_node *from, struct graph_node *to, struct byre_err *err)
{
    struct fmt_bitmap *b, *there;
    struct graph_node *image = graph_skip_filters(to);
    int r = graph_need_image(to, "a bitmap", err);
    if (!r)
        r = graph_bitmaps(co, from, &b, err);
    for (; !r && b; b = b->next) {
        r = graph_bitmap_find(co, image, b->name, &there, err);
        if (!r && there)
            r = byre_fail(err, EXISTS, "%s: there is a bitmap '%s' already, so that of '%s' cannot be carried over", graph_filename(image), b->name, graph_node_name(from));
        if (!r)
            r = could_one(co, from, graph_format(image), graph_filename(image), b, err);
        if (!r)
            r = check_version(co, image, b, err);
    }
    return r;
}

static int carry_all(struct co *co, struct graph_node *from, struct graph_node *image, struct byre_err *err)
{
    struct fmt_bitmap *b;
    int r = graph_bitmaps(co, from, &b, err);
    for (; !r && b; b = b->next) {
        const struct graph_bitmap_spec s = { b->name, UINT64_C(1) << b->granularity_bits, b->persistent, !b->enabled };
        r = graph_bitmap_load(co, from, b, err);
        if (!r)
            r = graph_bitmap_add(co, image, &s, err);
        if (!r)
            r = graph_bitmap_set(co, image, b->name, b->bits, err);      /* C1 */
    }
    return r;
}

int job_carry_bitmaps(struct co *co, struct graph_node *from, struct graph_node *to, struct byre_err *err)
{
    struct graph_node *image = graph_skip_filters(to);
    struct graph_bitmaps_saved *saved;
    int r = graph_bitmaps_save(co, image, &saved, err);
    if (r)
        return r;
    r = carry_all(co, from, image, err);
    if (!r)
        r = graph_bitmaps_keep(co, saved, err);
    if (r)
        graph_bitmaps_undo(co, saved);
    else
        graph_bitmaps_done(saved);
    return r;
}
