/* SPDX-License-Identifier: MIT
 *
 * q2_shift.h: changes very many refcounts at once, straight on the disk: each refcount block that is concerned is read and
 * written once. For operations that change an image as a whole; the image is drained and its cache clean.
 *
 * `gain` and `loss` say how many references each cluster is about to get and how many it has that are to go. What
 * they have in common is never touched: up raises by gain - loss, down lowers by loss - gain, where that is more than 0.
 */
#ifndef Q2_SHIFT_H
#define Q2_SHIFT_H

#include "fmt/qcow2/q2_tree.h"

struct q2_shift {
    struct q2_image *q;
    struct q2_counts gain, loss;
    bool fresh;                        /* what gains is counted once, by who took it, and nothing names it yet */
    struct q2_counts state;            /* Q2_LEFT_*: filled by down, look */
    uint64_t raised;                   /* refcount table entries below this one were raised */
    uint64_t freed, freed_from, freed_to;   /* down: clusters without an owner now, and where they lie */
    uint64_t bad_cluster, bad_count;   /* what check refused */
};

/* For a file of that length. -ENOMEM. */
MUST_USE int q2_shift_init(struct q2_shift *s, struct q2_image *q, uint64_t file_bytes);
void q2_shift_fini(struct q2_shift *s);
/* May it be done? -EUCLEAN: a count is lower than the references known, or a reference leads to header, L1, refcount or
 * snapshot table, bitmap directory or a refcount block; -ERANGE: a sum does not fit the width. bad_* say which. Writes nothing. */
MUST_USE int q2_shift_check(struct co *co, struct q2_shift *s);
MUST_USE int q2_shift_up(struct co *co, struct q2_shift *s);
/* Takes back what up has done, also when it failed in the middle. What cannot be taken back is a leak. */
MUST_USE int q2_shift_undo(struct co *co, struct q2_shift *s);
/* Lowers, and marks what is left in `state`. -EUCLEAN: below zero. */
MUST_USE int q2_shift_down(struct co *co, struct q2_shift *s);
/* Marks in `state` which of the clusters concerned have one owner now. */
MUST_USE int q2_shift_look(struct co *co, struct q2_shift *s);

#endif
