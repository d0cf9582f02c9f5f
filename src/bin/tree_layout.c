/* SPDX-License-Identifier: MIT
 *
 * tree_layout.c: in which order, and how far to the right, byre tree shows images.
 *
 * Purpose      Makes rows of a tree: what lies below others comes first, and stands to the left of them.
 * Owns         struct tree_rows
 * Invariants   I1 every image has one row, but for raw files that are there as external data files alone: their users tell them
 *              I2 no recursion: chains are as long as somebody made them. Loops end: an image is drawn once
 * Concurrency  main thread
 * Failure      false: no memory
 * Tests        tests/cli/tree_test.py
 */
#include <stdlib.h>
#include <string.h>

#include "bin/tree_draw.h"

struct layout { const struct byre_tree *t; struct tree_rows *rows; bool *drawn; };

static bool put(struct layout *l, const struct tree_row *row)
{
    struct tree_rows *rows = l->rows;
    if (rows->count == rows->cap) {
        size_t cap = rows->cap ? rows->cap * 2 : 64;
        struct tree_row *at = reallocarray(rows->at, cap, sizeof *at);
        if (!at)
            return false;
        rows->at = at;
        rows->cap = cap;
    }
    rows->at[rows->count++] = *row;
    if (row->image != BYRE_TREE_NOWHERE)
        l->drawn[row->image] = true;
    return true;
}

static struct byre_tree_image get(const struct layout *l, size_t i)
{
    struct byre_tree_image im;
    byre_tree_get(l->t, i, &im);
    return im;
}

/* The first of the images from i on, linked by next_child, that is not drawn yet. */
static size_t not_drawn(const struct layout *l, size_t i)
{
    while (i != BYRE_TREE_NOWHERE && l->drawn[i])
        i = get(l, i).next_child;
    return i;
}

/* All that lies above the last row, which is an image. Goes back over the rows' parents instead of a stack. */
static bool put_above(struct layout *l)
{
    size_t at = l->rows->count - 1, root = at, child = get(l, l->rows->at[at].image).first_child;
    for (;;) {
        child = not_drawn(l, child);
        if (child != BYRE_TREE_NOWHERE) {
            size_t next = get(l, child).next_child, below = at;
            l->drawn[child] = true;
            if (!put(l, &(struct tree_row){ .image = child, .depth = l->rows->at[at].depth + 1, .parent = below,
                                            .last = not_drawn(l, next) == BYRE_TREE_NOWHERE }))
                return false;
            at = l->rows->count - 1;
            child = get(l, child).first_child;
            continue;
        }
        if (at == root)
            return true;
        child = get(l, l->rows->at[at].image).next_child;
        at = l->rows->at[at].parent;
    }
}

static bool is_data_alone(const struct byre_tree_image *im)
{
    return im->first_child == BYRE_TREE_NOWHERE && im->first_user != BYRE_TREE_NOWHERE && im->format && !strcmp(im->format, "raw");
}

static bool put_roots(struct layout *l)
{
    for (size_t i = 0; i < byre_tree_count(l->t); i++) {
        struct byre_tree_image im = get(l, i);
        if (im.backing.link != BYRE_TREE_NONE || is_data_alone(&im))
            continue;
        if (!put(l, &(struct tree_row){ .image = i, .parent = BYRE_TREE_NOWHERE, .last = true }) || !put_above(l))
            return false;
    }
    return true;
}

/* ---- what lies on files that are not there ---- */

struct lost { const char *key; size_t image; };

static int by_key(const void *a, const void *b)
{
    const struct lost *x = a, *y = b;
    int c = strcmp(x->key, y->key);
    return c ? c : (x->image > y->image) - (x->image < y->image);
}

static const char *note_of(int link)
{
    switch (link) {
    case BYRE_TREE_MISSING: return "missing";
    case BYRE_TREE_REMOTE: return "on a server";
    case BYRE_TREE_UNREADABLE: return "cannot be looked at";
    case BYRE_TREE_FOUND: return "is gone now";
    default: return "not understood";
    }
}

static bool put_lost(struct layout *l, const struct lost *lost, size_t n)
{
    size_t root = 0;
    for (size_t i = 0; i < n; i++) {
        struct byre_tree_image im = get(l, lost[i].image);
        if (!i || strcmp(lost[i].key, lost[i - 1].key)) {
            if (!put(l, &(struct tree_row){ .image = BYRE_TREE_NOWHERE, .label = lost[i].key, .note = note_of(im.backing.link), .parent = BYRE_TREE_NOWHERE, .last = true }))
                return false;
            root = l->rows->count - 1;
        }
        bool last = i + 1 == n || strcmp(lost[i].key, lost[i + 1].key);
        if (!put(l, &(struct tree_row){ .image = lost[i].image, .depth = 1, .parent = root, .last = last }) || !put_above(l))
            return false;
    }
    return true;
}

static bool put_all_lost(struct layout *l)
{
    size_t n = 0, count = byre_tree_count(l->t);
    struct lost *lost = calloc(count + 1, sizeof *lost);
    if (!lost)
        return false;
    for (size_t i = 0; i < count; i++) {
        struct byre_tree_image im = get(l, i);
        if (im.backing.link != BYRE_TREE_NONE && im.backing.to == BYRE_TREE_NOWHERE)
            lost[n++] = (struct lost){ im.backing.path ? im.backing.path : im.backing.name ? im.backing.name : "?", i };
    }
    if (n)
        qsort(lost, n, sizeof *lost, by_key);
    bool ok = put_lost(l, lost, n);
    free(lost);
    return ok;
}

static bool put_loops(struct layout *l)
{
    for (size_t i = 0; i < byre_tree_count(l->t); i++) {
        struct byre_tree_image im = get(l, i);
        if (l->drawn[i] || is_data_alone(&im))
            continue;
        if (!put(l, &(struct tree_row){ .image = i, .parent = BYRE_TREE_NOWHERE, .last = true, .loop = true }) || !put_above(l))
            return false;
    }
    return true;
}

bool tree_layout(const struct byre_tree *t, struct tree_rows *ret)
{
    struct layout l = { .t = t, .rows = ret, .drawn = calloc(byre_tree_count(t) + 1, sizeof *l.drawn) };
    bool ok = l.drawn && put_roots(&l) && put_all_lost(&l) && put_loops(&l);
    free(l.drawn);
    return ok;
}

void tree_rows_fini(struct tree_rows *rows)
{
    free(rows->at);
    *rows = (struct tree_rows){ 0 };
}
