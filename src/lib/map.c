/* SPDX-License-Identifier: MIT
 *
 * map.c: block status of an image.
 *
 * Purpose      graph_status in the public words.
 * Owns         nothing
 * Invariants   I1 an answer lies inside the range that was asked for and is not empty
 * Concurrency  any foreign thread
 * Failure      -errno; *ret untouched
 * Tests        tests/cli/map_test.py
 */
#include "base/checked.h"
#include "lib/lib_priv.h"

struct asking { struct byre_image *image; uint64_t off, len; unsigned flags; struct graph_status st; };

static int status_co(struct co *co, void *arg)
{
    struct asking *a = arg;
    struct graph_node *bottom = a->flags & BYRE_MAP_TOP ? graph_backing(a->image->node) : NULL;
    return graph_status(co, a->image->node, bottom, a->off, a->len, &a->st);
}

/* The context that was asked for in the place of what is allocated (x-dirty-bitmap), as the peer shows it. */
static void show_note(struct graph_status *s)
{
    s->data = !(s->note & STOR_NOTE_HOLE);
    s->zero = s->note & STOR_NOTE_ZERO;
    s->present = s->has_offset = s->data || s->zero;
}

int byre_map(struct byre_image *image, uint64_t off, uint64_t len, unsigned flags, struct byre_extent *ret)
{
    struct asking a = { .image = image, .off = off, .len = len, .flags = flags };
    if (!len || (flags & ~(unsigned)BYRE_MAP_TOP))
        return -EINVAL;
    if (!range_inside(off, len, graph_length(image->node)))
        return -EIO;
    int r = lib_call(image->ctx, lib_next_loop(image->ctx), status_co, &a);
    if (r)
        return r;
    const struct graph_status *s = &a.st;
    INV(I1, s->len > 0 && s->len <= len);
    if (s->note)
        show_note(&a.st);
    struct byre_extent full = byre_extent_init();
    full.start = off;
    full.len = s->len;
    full.depth = s->depth;
    full.flags = (s->present ? BYRE_MAP_PRESENT : 0) | (s->zero ? BYRE_MAP_ZERO : 0) | (s->data ? BYRE_MAP_DATA : 0) |
                 (s->compressed ? BYRE_MAP_COMPRESSED : 0) | (s->has_offset ? BYRE_MAP_OFFSET : 0);
    full.offset = s->has_offset ? s->offset : 0;
    full.filename = s->has_offset && s->node ? graph_data_filename(s->node) : NULL;
    size_t size = ret->struct_size;
    memcpy(ret, &full, size < sizeof full ? size : sizeof full);
    ret->struct_size = size;
    return 0;
}
