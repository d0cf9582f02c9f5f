/* SPDX-License-Identifier: MIT
 *
 * q2_tree.h: passes over all L2 tables of one L1 table, straight on the disk, in large pieces. For operations that change
 * an image as a whole (snapshots); the image is drained and its cache clean.
 */
#ifndef Q2_TREE_H
#define Q2_TREE_H

#include "fmt/qcow2/q2_counts.h"
#include "fmt/qcow2/q2_image.h"

/* Marks in q2_shift.state. */
enum { Q2_LEFT_ONE = 1, Q2_LEFT_NONE = 2 };

struct q2_tree_table { uint64_t off, weight; };           /* weight: how many L1 entries name it */
struct q2_tree { struct q2_tree_table *t; size_t count; };      /* in the order of the file, each table once */

/* words: an L1 table in disk order. -EUCLEAN: an entry that cannot be right, or a table outside the file. -ENOMEM. */
MUST_USE int q2_tree_init(struct q2_tree *t, const struct q2_geom *g, uint64_t file_bytes, const uint64_t *words, uint64_t entries);
void q2_tree_fini(struct q2_tree *t);
/* Takes out of both what both have with the same weight. */
void q2_tree_subtract(struct q2_tree *a, struct q2_tree *b);
/* Adds every reference, those to the tables included. -EUCLEAN: an entry that cannot be right or leads out of c; -EIO. */
MUST_USE int q2_tree_count(struct co *co, struct q2_image *q, const struct q2_tree *t, struct q2_counts *c);
/* Calls fn for each table: its words in disk order, which it may change (*changed, which is never reset: it stands for the tables read
 * together). Must not suspend; < 0: it ends with that. */
typedef int q2_tree_fn(void *arg, const struct q2_tree_table *t, uint64_t *words, bool *changed);
MUST_USE int q2_tree_each(struct co *co, struct q2_image *q, const struct q2_tree *t, q2_tree_fn *fn, void *arg);
/* Clears COPIED in every entry. */
MUST_USE int q2_tree_unflag(struct co *co, struct q2_image *q, const struct q2_tree *t);
/* Sets COPIED in entries whose cluster is marked Q2_LEFT_ONE. -EUCLEAN: one is marked Q2_LEFT_NONE. */
MUST_USE int q2_tree_flag(struct co *co, struct q2_image *q, const struct q2_tree *t, const struct q2_counts *state);

#endif
