/* SPDX-License-Identifier: MIT
 *
 * tree_draw.h: the forest that byre tree shows, and its pictures.
 */
#ifndef BIN_TREE_DRAW_H
#define BIN_TREE_DRAW_H

#include <stdbool.h>
#include <stdio.h>

#include "byre/byre.h"

/* One line of the picture, in the order in which they are drawn. */
struct tree_row {
    size_t image;                    /* BYRE_TREE_NOWHERE: a file that is not there, or not a file; then: */
    const char *label, *note;        /* its name as it was recorded, and what is wrong with it */
    size_t depth, parent;            /* row of what lies below it; BYRE_TREE_NOWHERE: nothing */
    bool last;                       /* of those that lie on the same */
    bool loop;                       /* its chain contains itself: drawn from here on */
};
struct tree_rows { struct tree_row *at; size_t count, cap; };

/* Lays the forest out: bases first, overlays under them. false: no memory. */
bool tree_layout(const struct byre_tree *t, struct tree_rows *ret);
void tree_rows_fini(struct tree_rows *rows);

void tree_draw_text(FILE *f, const struct byre_tree *t, const struct tree_rows *rows);
void tree_draw_svg(FILE *f, const struct byre_tree *t, const struct tree_rows *rows);

#endif
