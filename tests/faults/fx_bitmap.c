/* SPDX-License-Identifier: MIT
 *
 * fx_bitmap.c: actions on bitmaps, and what those that claim to know must know.
 *
 * Purpose      The bitmaps "b0", of the image, and "n", that a scenario adds, while and after faults strike.
 * Owns         Nothing.
 * Invariants   Who knows, knows of every sector that holds anything else than when recording began: writes, and what an applied
 *              snapshot has brought back (P4).
 * Order        None.
 * Concurrency  Coroutines of the world's one loop.
 * Failure      fx_bad() for what may not be.
 * Tests        test_faults.py
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "fx.h"

static const char *const names[FX_BITMAPS] = { "b0", "n" };

void fx_bitmaps_start(struct fx_run *r)
{
    r->bitmap[0].known = !strcmp(r->c->g.image, "bitmap.qcow2");
}

/* It begins to record, with nothing dirty. While faults strike that is sure of no state of the file. */
static void begins(struct fx_run *r, unsigned which)
{
    r->bitmap[which].known = !fx_alloc.armed;
    memcpy(r->bitmap[which].base, r->m.now, sizeof r->m.now);
}

static int act(struct co *co, struct fx_run *r, unsigned action, struct byre_err *err)
{
    struct graph_node *n = r->w->node;
    struct graph_bitmap_ref src = { n, "b0" };
    switch (action) {
    case 0: return graph_bitmap_add(co, n, &(struct graph_bitmap_spec){ .name = "n", .persistent = true, .granularity = 512 }, err);
    case 1: return graph_bitmap_remove(co, n, "n", err);
    case 2: return graph_bitmap_add(co, n, &(struct graph_bitmap_spec){ .name = "m", .persistent = true, .disabled = true }, err);
    case 3: return graph_bitmap_enable(co, n, "n", false, err);
    case 4: return graph_bitmap_merge(co, n, "n", &src, 1, err);
    case 5: return graph_bitmap_enable(co, n, "n", true, err);
    case 6: return graph_bitmap_clear(co, n, "b0", err);
    default: return graph_bitmap_remove(co, n, "b0", err);
    }
}

/* Actions on what is not there, because an earlier step has failed, are no faults of theirs. */
int fx_bitmap_do(struct co *co, struct fx_run *r, unsigned action, struct byre_err *err)
{
    r->bitmap[0].known &= action < 6;
    r->bitmap[1].known &= action != 1 && action != 3;
    int e = act(co, r, action, err);
    if (e == 0 && (action == 0 || action == 6))
        begins(r, action == 0);
    return e == -ENOENT || e == -EEXIST ? 0 : e;
}

static void judge(struct co *co, struct fx_run *r, unsigned which, struct fmt_bitmap *b, bool all, const char *when)
{
    uint64_t len = graph_length(r->w->node);
    uint8_t *out = malloc(CX_SECTORS_MAX * CX_SECTOR);
    if (!out)
        abort();
    int e = cx_read_all(co, r->w, out);
    for (uint64_t i = 0; e == 0 && i < len / CX_SECTOR && !r->bad; i++) {
        uint32_t v = cx_version_of(r->c->values, out + i * CX_SECTOR, i);
        bool other = v >= 2 && v < 64 && !(r->bitmap[which].base[i] >> v & 1);
        if ((other || all) && !dirty_test(b->bits, i * CX_SECTOR))
            fx_bad(r, "%s: bitmap %s misses sector %" PRIu64 ", which holds version %u", when, b->name, i, v);
    }
    free(out);
}

void fx_bitmaps_judged(struct co *co, struct fx_run *r, bool now, const char *when)
{
    for (unsigned k = 0; k < FX_BITMAPS; k++) {
        struct fmt_bitmap *b;
        struct byre_err err = { .text = "" };
        if (!r->bitmap[k].known || graph_bitmap_find(co, r->w->node, names[k], &b, &err) < 0)
            continue;
        if (!b && (k == 0 || now))
            fx_bad(r, "%s: bitmap %s is gone", when, names[k]);
        if (!b || b->inconsistent)
            continue;
        if (graph_bitmap_load(co, r->w->node, b, &err) < 0 || !b->enabled)
            fx_bad(r, "%s: bitmap %s cannot be read, or does not record: %s", when, names[k], err.text);
        else
            judge(co, r, k, b, now && r->applied, when);
    }
}
