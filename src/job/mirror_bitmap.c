/* SPDX-License-Identifier: MIT
 *
 * mirror_bitmap.c: a mirror by a dirty bitmap.
 *
 * Purpose     What it marks in the beginning, and what remains of it in the end.
 * Owns        The hold on the bitmap.
 * Invariants  mirror_bitmap.h. Bits are looked up anew after each suspension: a change of the length replaces them.
 * Order       target, durable | the bitmap, durable if it is persistent (B1)
 * Concurrency Home loop.
 * Failure     The bitmap stays as it is, which is warned of.
 * Tests       mirror_test.c, tests/cli/mirror_bitmap_test.py
 */
#include "job/mirror_bitmap.h"

#include <string.h>

#include "base/dirty.h"

#define MARKS_AT_ONCE 1024u

int mirror_bitmap_take(struct co *co, struct mirror_bitmap *b, const char *name, struct byre_err *err)
{
    struct fmt_bitmap *found;
    int r = graph_bitmap_find(co, b->node, name, &found, err);
    if (!r && !found)
        r = byre_fail(err, NOT_FOUND, "Bitmap '%s' could not be found in node '%s'", name, graph_node_name(b->node));
    if (!r && found->busy)
        r = byre_fail(err, BITMAP_BUSY, "%s: bitmap '%s' is in use by a job or an export", graph_filename(b->node), name);
    if (!r)
        r = graph_bitmap_load(co, b->node, found, err);
    if (r)
        return r;
    b->b = found;
    graph_bitmap_hold(found);
    return 0;
}

int mirror_bitmap_mark(const struct mirror_bitmap *b, struct copy_live *l, uint64_t *off)
{
    const struct dirty *d = b->b->bits;
    uint64_t start, end = *off;
    bool more = true;
    for (unsigned i = 0; i < MARKS_AT_ONCE && (more = dirty_next(d, end, d->size, &start, &end)); i++)
        copy_live_mark(l, start, end - start);
    *off = end;
    return !more;
}

void mirror_bitmap_give(struct mirror_bitmap *b)
{
    if (b->b)
        graph_bitmap_release(b->node, b->b);
    b->b = NULL;
}

static void replace(struct co *co, struct mirror_bitmap *b, const struct dirty *content)
{
    struct byre_err why = { 0 };
    if (graph_bitmap_set_held(co, b->node, b->b, content, &why))
        graph_warn(b->node, "bitmap '%s' still says what has been copied: %s", b->b->name, why.text);
}

void mirror_bitmap_done(struct co *co, struct mirror_bitmap *b)
{
    if (b->b && b->mode != JOB_BITMAP_NEVER)
        replace(co, b, NULL);
}

void mirror_bitmap_skip(struct mirror_bitmap *b)
{
    if (b->b && b->mode != JOB_BITMAP_NEVER)
        graph_warn(b->node, "bitmap '%s' still says what has been copied: no memory", b->b->name);
    mirror_bitmap_give(b);
}

struct dirty *mirror_bitmap_left(const struct mirror_bitmap *b, const struct copy_live *l)
{
    struct dirty *left = NULL;
    if (!b->b || b->mode != JOB_BITMAP_ALWAYS || dirty_new(b->b->bits->size, b->b->granularity_bits, NULL, &left))
        return NULL;
    copy_live_left(l, left);
    return left;
}

void mirror_bitmap_keep(struct co *co, struct mirror_bitmap *b, struct dirty *left)
{
    replace(co, b, left);
    dirty_free(left);
}
